//! How fast rows are loaded: a bound on rows a second, so that a load leaves the stores time for reads.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use eadem_offline::Cancel;
use tokio::time::Instant;

/// So much of the allowance may gather: who was late may go faster for so long, and no longer.
const GATHERS_FOR: Duration = Duration::from_millis(100);

/// Rows are handed over in pieces of at most this share of a second's allowance.
const PIECES_PER_S: u64 = 10;

/// A bound on the rows a second of all threads of a job together.
#[derive(Debug)]
pub(crate) struct Pace {
    /// 0: none.
    rows_per_s_max: u64,
    began: Instant,
    /// Up to when, since it began, the allowance is used.
    used_until: Mutex<Duration>,
}

impl Pace {
    /// So many rows a second at most; 0: as fast as it goes.
    pub(crate) fn new(rows_per_s_max: u64) -> Self {
        Self { rows_per_s_max, began: Instant::now(), used_until: Mutex::default() }
    }

    /// How many rows are handed over at once, at most.
    pub(crate) fn rows_at_once(&self) -> usize {
        match self.rows_per_s_max {
            0 => usize::MAX,
            rows_per_s => usize::try_from(rows_per_s / PIECES_PER_S).unwrap_or(usize::MAX).max(1),
        }
    }

    /// Waits until these rows may be handed over, or the job is called off.
    pub(crate) async fn wait_for(&self, rows: usize, cancel: &Cancel) {
        let wait = self.take(rows as u64, self.began.elapsed());
        if wait.is_zero() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = cancel.cancelled() => {}
        }
    }

    /// Takes these rows out of the allowance, at this time since it began; says for how long to wait before they go.
    fn take(&self, rows: u64, now: Duration) -> Duration {
        if self.rows_per_s_max == 0 {
            return Duration::ZERO;
        }
        let mut used_until = self.used_until.lock().unwrap_or_else(PoisonError::into_inner);
        let from = (*used_until).max(now.saturating_sub(GATHERS_FOR));
        *used_until = from + Duration::from_secs_f64(rows as f64 / self.rows_per_s_max as f64);
        from.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When the last of so many pieces goes, if each is asked for when the one before has gone and after a pause.
    fn last_goes_at(pace: &Pace, pieces: u32, pause: Duration) -> Duration {
        let mut now = Duration::ZERO;
        for _ in 0..pieces {
            now += pause;
            now += pace.take(pace.rows_at_once() as u64, now);
        }
        now
    }

    #[test]
    fn rows_go_at_the_pace_and_no_faster() {
        // A tenth of a second's rows each: the first goes at once, the last nine pieces later.
        let pace = Pace::new(1_000);
        assert_eq!(pace.rows_at_once(), 100);
        assert_eq!(last_goes_at(&pace, 100, Duration::ZERO), Duration::from_millis(9_900));
    }

    #[test]
    fn who_is_slower_does_not_wait_and_saves_nothing_up() {
        let pace = Pace::new(1_000);
        let slower = Duration::from_secs(1);
        assert_eq!(last_goes_at(&pace, 5, slower), slower * 5);
        // After all that time: one piece that has gathered, one whose turn it is, and then at the pace.
        let now = slower * 60;
        let waits = [(); 4].map(|()| pace.take(100, now));
        assert_eq!(waits, [0, 0, 100, 200].map(Duration::from_millis));
    }

    #[test]
    fn threads_share_one_allowance() {
        let pace = Pace::new(10);
        assert_eq!(pace.rows_at_once(), 1);
        let waits = [(); 3].map(|()| pace.take(1, Duration::ZERO));
        assert_eq!(waits, [0, 100, 200].map(Duration::from_millis));
    }

    #[test]
    fn without_a_bound_nothing_waits() {
        let pace = Pace::new(0);
        assert_eq!(pace.take(u64::MAX, Duration::ZERO), Duration::ZERO);
        assert_eq!(pace.rows_at_once(), usize::MAX);
        // One row every ten seconds is a pace, too.
        assert_eq!(Pace::new(1).rows_at_once(), 1);
    }
}
