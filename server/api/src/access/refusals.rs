//! What is noted of refused requests: enough to see what happened, and never so much that whoever is refused can fill a disk.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use eadem_registry::{Actor, TrailEvent, TrailOutcome};

/// For so long refusals of one kind are one entry and a count.
const WINDOW_US: i64 = 60_000_000;

/// Kinds of refusals that have entries of their own in one window: so many of strangers, and as many of those with a token; all others
/// of each share one. Strangers cannot make the others' disappear among theirs.
const KINDS_MAX: usize = 16;

/// Longer texts are cut: they are the client's.
const TEXT_CHARS_MAX: usize = 300;

/// What makes refusals equal. Nothing in it is a client's own choice but the route, of which there are as many as there are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind {
    token_id: Option<String>,
    verb: String,
    code: String,
}

/// What is counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Entry {
    Of(Kind),
    /// All further kinds, of those with a token or of strangers.
    Others {
        have_token: bool,
    },
}

impl Entry {
    fn has_token(&self) -> bool {
        match self {
            Self::Of(kind) => kind.token_id.is_some(),
            Self::Others { have_token } => *have_token,
        }
    }
}

/// The refusals of the window that has begun. The first of a kind is written at once, those that follow are counted and
/// written as one entry when the window is over.
#[derive(Debug, Default)]
pub struct Refusals {
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    began_at_us: i64,
    kinds: HashMap<Entry, Repeated>,
}

#[derive(Debug)]
struct Repeated {
    actor: Actor,
    event: TrailEvent,
    /// After the first.
    count: u64,
}

impl Refusals {
    /// Notes a refusal, and gives what is to be written now.
    pub(crate) fn note(
        &self,
        actor: &Actor,
        verb: &str,
        object: &str,
        code: &str,
        detail: &str,
        now_us: i64,
    ) -> Vec<(Actor, TrailEvent)> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let mut written = window.end_if_over(now_us);
        let kind = Kind { token_id: actor.token_id.clone(), verb: verb.to_owned(), code: code.to_owned() };
        let have_token = kind.token_id.is_some();
        let mut entry = Entry::Of(kind);
        if !window.kinds.contains_key(&entry) && window.entries(have_token) >= KINDS_MAX {
            entry = Entry::Others { have_token };
        }
        if let Some(repeated) = window.kinds.get_mut(&entry) {
            repeated.count += 1;
            return written;
        }
        let told = if detail.is_empty() { code.to_owned() } else { format!("{code}: {detail}") };
        let event = TrailEvent {
            verb: verb.to_owned(),
            object: cut(object),
            before: None,
            after: None,
            outcome: TrailOutcome::Refused,
            detail: cut(&told),
            count: 1,
        };
        written.push((actor.clone(), event.clone()));
        let event = match entry {
            Entry::Of(_) => event,
            Entry::Others { .. } => TrailEvent { verb: "several".to_owned(), object: "several".to_owned(), ..event },
        };
        window.kinds.insert(entry, Repeated { actor: actor.clone(), event, count: 0 });
        written
    }

    /// What a window that is over has to say. With `now`, also the one that is not over.
    pub fn end_window(&self, now_us: i64, now: bool) -> Vec<(Actor, TrailEvent)> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if now { window.end(now_us) } else { window.end_if_over(now_us) }
    }
}

impl Window {
    /// How many there are of those with a token, or of strangers.
    fn entries(&self, have_token: bool) -> usize {
        self.kinds.keys().filter(|entry| entry.has_token() == have_token).count()
    }

    fn end_if_over(&mut self, now_us: i64) -> Vec<(Actor, TrailEvent)> {
        // A clock that was set back must not keep a window open.
        let is_over = now_us.saturating_sub(self.began_at_us).unsigned_abs() >= WINDOW_US.unsigned_abs();
        if is_over { self.end(now_us) } else { Vec::new() }
    }

    fn end(&mut self, now_us: i64) -> Vec<(Actor, TrailEvent)> {
        self.began_at_us = now_us;
        let repeated = std::mem::take(&mut self.kinds).into_iter().filter(|(_, repeated)| repeated.count > 0);
        let event = |(entry, Repeated { actor, event, count }): (Entry, Repeated)| {
            let (actor, detail) = match entry {
                Entry::Of(_) => (actor, format!("again within a minute: {}", event.detail)),
                // Those who share an entry are several.
                Entry::Others { .. } => {
                    (Actor { name: "several".to_owned(), ..Actor::default() }, "more within a minute".to_owned())
                }
            };
            (actor, TrailEvent { count, detail: cut(&detail), ..event })
        };
        repeated.map(event).collect()
    }
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_US: i64 = 1_700_000_000_000_000;

    fn note(refusals: &Refusals, verb: &str, now_us: i64) -> Vec<(Actor, TrailEvent)> {
        refusals.note(&Actor::system(), verb, "/somewhere", "no_credential", "this needs a token", now_us)
    }

    #[test]
    fn the_first_is_written_and_those_that_follow_are_counted() {
        let refusals = Refusals::default();
        assert_eq!(note(&refusals, "GET /jobs", NOW_US).len(), 1);
        for _ in 0..1_000 {
            assert!(note(&refusals, "GET /jobs", NOW_US + 1).is_empty());
        }
        assert!(refusals.end_window(NOW_US + WINDOW_US - 1, false).is_empty());
        let written = refusals.end_window(NOW_US + WINDOW_US, false);
        assert_eq!(written.len(), 1);
        assert_eq!(written[0].1.count, 1_000);
        assert!(refusals.end_window(NOW_US + 2 * WINDOW_US, false).is_empty());
    }

    #[test]
    fn however_many_kinds_there_are_a_window_writes_few_entries() {
        let refusals = Refusals::default();
        let mut entries = 0;
        for number in 0..100_000 {
            entries += note(&refusals, &format!("GET /{number}"), NOW_US).len();
        }
        let rest = refusals.end_window(NOW_US + WINDOW_US, false);
        entries += rest.len();
        assert!(entries <= 2 * (KINDS_MAX + 1), "{entries}");
        let counted: u64 = rest.iter().map(|(_, event)| event.count).sum();
        assert_eq!(counted + (entries - rest.len()) as u64, 100_000);
    }

    #[test]
    fn a_clients_text_is_cut() {
        let long = "x".repeat(10_000);
        let written = Refusals::default().note(&Actor::system(), "GET /jobs", &long, "code", &long, NOW_US);
        assert!(written[0].1.object.len() <= TEXT_CHARS_MAX && written[0].1.detail.len() <= TEXT_CHARS_MAX);
    }
}
