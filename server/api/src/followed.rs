//! What is read of the registry, and kept until the registry changes.
//!
//! Of several that want the same at one revision one reads and the others wait for it. Where the registry's database fails, what
//! was known before stands; what the registry says does not exist any more goes. Reading goes on when whoever asked has gone.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};

/// How long whoever could have what was known before waits for what is so now.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long after a failure what is known is not asked for again.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Why something could not be read.
#[derive(Debug, Clone)]
pub(crate) enum Unread<E> {
    /// The registry has answered: there is no such thing, or not any more.
    Refused(E),
    /// The registry has not answered.
    Failed(E),
}

impl<E> Unread<E> {
    fn into_error(self) -> E {
        match self {
            Self::Refused(error) | Self::Failed(error) => error,
        }
    }
}

type Read<V, E> = Result<V, Unread<E>>;

/// Values by key, each as of some revision of the registry.
pub(crate) struct Followed<K, V, E> {
    inner: Arc<Inner<K, V, E>>,
    patience: Duration,
}

struct Inner<K, V, E> {
    known: RwLock<HashMap<K, Known<V>>>,
    reads: Mutex<Reads<K, V, E>>,
    known_max: usize,
}

struct Known<V> {
    revision: u64,
    value: V,
}

struct Reads<K, V, E> {
    under_way: HashMap<K, UnderWay<V, E>>,
    /// When the registry's database failed, if nothing has been read since.
    failed_at: Option<Instant>,
}

#[derive(Clone)]
struct UnderWay<V, E> {
    revision: u64,
    began: Instant,
    outcome: Shared<BoxFuture<'static, Read<V, E>>>,
}

impl<K, V, E> Followed<K, V, E>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Clone + Send + Sync + 'static,
{
    /// Of so many keys at most; more and all are read again.
    pub(crate) fn new(known_max: usize) -> Self {
        let reads = Mutex::new(Reads { under_way: HashMap::new(), failed_at: None });
        Self { inner: Arc::new(Inner { known: RwLock::default(), reads, known_max }), patience: PATIENCE }
    }

    /// The value at this revision, or a later one. `read` is told what was known before.
    ///
    /// # Errors
    /// The registry has none; or it has not answered, and nothing was known before.
    pub(crate) async fn get<F>(&self, key: &K, revision: u64, read: impl FnOnce(Option<V>) -> F) -> Result<V, E>
    where
        F: Future<Output = Read<V, E>> + Send + 'static,
    {
        let old = match self.inner.known(key) {
            Some((known, value)) if known >= revision => return Ok(value),
            old => old.map(|(_, value)| value),
        };
        // Seldom, and large.
        Box::pin(self.follow(key, revision, old, read)).await
    }

    /// What is so now; if that cannot be had soon, what was known before.
    async fn follow<F>(&self, key: &K, revision: u64, old: Option<V>, read: impl FnOnce(Option<V>) -> F) -> Result<V, E>
    where
        F: Future<Output = Read<V, E>> + Send + 'static,
    {
        if let Some(old) = &old
            && self.inner.has_just_failed()
        {
            return Ok(old.clone());
        }
        let (under_way, is_failing) = match self.inner.join(key, revision, || read(old.clone())) {
            Joined::Known(value) => return Ok(value),
            Joined::UnderWay(under_way, is_failing) => (under_way, is_failing),
        };
        let Some(old) = old else { return under_way.outcome.await.map_err(Unread::into_error) };
        // Where the database does not answer nobody waits for it again and again.
        let until = if is_failing { under_way.began } else { under_way.began + self.patience };
        match tokio::time::timeout_at(until.into(), under_way.outcome).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Unread::Refused(error))) => Err(error),
            Ok(Err(Unread::Failed(_))) | Err(_) => Ok(old),
        }
    }

    /// Forgets what turned out to be wrong at the revision that it was read at.
    pub(crate) fn forget(&self, key: &K, is_wrong: impl FnOnce(&V) -> bool) {
        let mut known = self.inner.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.get(key).is_some_and(|known| is_wrong(&known.value)) {
            known.remove(key);
        }
    }
}

/// Whoever wants something at a revision finds that it is known by now, or that it is being read, and whether the registry's
/// database was failing when that began.
enum Joined<V, E> {
    Known(V),
    UnderWay(UnderWay<V, E>, bool),
}

impl<K, V, E> Inner<K, V, E>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Clone + Send + Sync + 'static,
{
    fn known(&self, key: &K) -> Option<(u64, V)> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(key).map(|known| (known.revision, known.value.clone()))
    }

    fn reads(&self) -> MutexGuard<'_, Reads<K, V, E>> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_just_failed(&self) -> bool {
        self.reads().failed_at.is_some_and(|failed_at| failed_at.elapsed() < RETRY_AFTER)
    }

    fn join<F>(self: &Arc<Self>, key: &K, revision: u64, read: impl FnOnce() -> F) -> Joined<V, E>
    where
        F: Future<Output = Read<V, E>> + Send + 'static,
    {
        let mut reads = self.reads();
        // Somebody may have read it meanwhile.
        if let Some((known, value)) = self.known(key)
            && known >= revision
        {
            return Joined::Known(value);
        }
        let is_failing = reads.failed_at.is_some();
        if let Some(under_way) = reads.under_way.get(key)
            && under_way.revision >= revision
        {
            return Joined::UnderWay(under_way.clone(), is_failing);
        }
        let (inner, of_key, reading) = (Arc::clone(self), key.clone(), read());
        let outcome = async move {
            let read = reading.await;
            inner.learn(&of_key, revision, &read);
            read
        };
        let under_way = UnderWay { revision, began: Instant::now(), outcome: outcome.boxed().shared() };
        tokio::spawn(under_way.outcome.clone());
        reads.under_way.insert(key.clone(), under_way.clone());
        Joined::UnderWay(under_way, is_failing)
    }

    fn learn(&self, key: &K, revision: u64, read: &Read<V, E>) {
        match read {
            Ok(value) => self.keep(key, revision, value.clone()),
            Err(Unread::Refused(_)) => {
                let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
                if known.get(key).is_some_and(|known| known.revision <= revision) {
                    known.remove(key);
                }
            }
            Err(Unread::Failed(_)) => {}
        }
        let mut reads = self.reads();
        reads.failed_at = matches!(read, Err(Unread::Failed(_))).then(Instant::now);
        if reads.under_way.get(key).is_some_and(|under_way| under_way.revision == revision) {
            reads.under_way.remove(key);
        }
    }

    fn keep(&self, key: &K, revision: u64, value: V) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.get(key).is_some_and(|known| known.revision > revision) {
            return;
        }
        if known.len() >= self.known_max && !known.contains_key(key) {
            // What nobody has asked for since the registry changed goes first.
            known.retain(|_, known| known.revision >= revision);
            if known.len() >= self.known_max {
                known.clear();
            }
        }
        known.insert(key.clone(), Known { revision, value });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    type Numbers = Followed<&'static str, u64, &'static str>;

    /// A registry that counts how often it is asked, and answers as often as it is let.
    #[derive(Clone)]
    struct Source {
        asked: Arc<AtomicUsize>,
        answers: Arc<Semaphore>,
    }

    impl Source {
        fn new(answers: usize) -> Self {
            Self { asked: Arc::default(), answers: Arc::new(Semaphore::new(answers)) }
        }

        fn read(
            &self,
            answer: Read<u64, &'static str>,
        ) -> impl Future<Output = Read<u64, &'static str>> + Send + 'static {
            let source = self.clone();
            async move {
                source.asked.fetch_add(1, Ordering::Relaxed);
                source.answers.acquire().await.unwrap().forget();
                answer
            }
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::Relaxed)
        }
    }

    const DOWN: Read<u64, &str> = Err(Unread::Failed("the database is down"));

    #[tokio::test]
    async fn of_many_one_reads_and_a_revision_is_read_once() {
        let (numbers, source) = (Numbers::new(10), Source::new(0));
        let all = futures::future::join_all((0..50).map(|_| numbers.get(&"a", 1, |_| source.read(Ok(7)))));
        let (all, ()) = tokio::join!(all, async {
            tokio::task::yield_now().await;
            source.answers.add_permits(50);
        });
        assert!(all.iter().all(|read| *read == Ok(7)));
        assert_eq!((numbers.get(&"a", 1, |_| source.read(Ok(8))).await, source.asked()), (Ok(7), 1));
        // At the next revision again, and what was known is told.
        let next = numbers.get(&"a", 2, |old| source.read(Ok(old.unwrap() + 1))).await;
        assert_eq!((next, source.asked()), (Ok(8), 2));
    }

    #[tokio::test]
    async fn reading_goes_on_where_whoever_asked_has_gone() {
        let (numbers, source) = (Numbers::new(10), Source::new(0));
        let gone = tokio::time::timeout(Duration::ZERO, numbers.get(&"a", 1, |_| source.read(Ok(7)))).await;
        assert!(gone.is_err());
        source.answers.add_permits(1);
        assert_eq!((numbers.get(&"a", 1, |_| source.read(Ok(8))).await, source.asked()), (Ok(7), 1));
    }

    #[tokio::test]
    async fn what_was_known_stands_where_the_database_fails_and_goes_where_it_says_so() {
        let (numbers, source) = (Numbers::new(10), Source::new(100));
        assert_eq!(numbers.get(&"a", 1, |_| source.read(Ok(7))).await, Ok(7));
        assert_eq!(numbers.get(&"a", 2, |_| source.read(DOWN)).await, Ok(7));
        // Until a while has passed nobody asks it for what is known.
        assert_eq!((numbers.get(&"a", 2, |_| source.read(DOWN)).await, source.asked()), (Ok(7), 2));
        assert_eq!(numbers.get(&"b", 2, |_| source.read(DOWN)).await, Err("the database is down"));
        numbers.inner.reads().failed_at = None;
        assert_eq!(numbers.get(&"a", 2, |_| source.read(Err(Unread::Refused("no such")))).await, Err("no such"));
        // And then it is not known any more.
        assert_eq!(numbers.get(&"a", 3, |_| source.read(DOWN)).await, Err("the database is down"));
    }

    #[tokio::test]
    async fn a_database_that_does_not_answer_is_waited_for_once_at_most() {
        let source = Source::new(1);
        let numbers = Numbers { patience: Duration::from_millis(20), ..Numbers::new(10) };
        assert_eq!(numbers.get(&"a", 1, |_| source.read(Ok(7))).await, Ok(7));
        let began = Instant::now();
        assert_eq!(numbers.get(&"a", 2, |_| source.read(Ok(8))).await, Ok(7));
        assert!(began.elapsed() >= numbers.patience);
        for _ in 0..1_000 {
            assert_eq!(numbers.get(&"a", 2, |_| source.read(Ok(8))).await, Ok(7));
        }
        assert!(began.elapsed() < 100 * numbers.patience, "each has waited");
        assert_eq!(source.asked(), 2);
        // It is read as soon as there is an answer.
        source.answers.add_permits(1);
        while numbers.inner.known(&"a") != Some((2, 8)) {
            tokio::task::yield_now().await;
        }
        assert_eq!(numbers.get(&"a", 2, |_| source.read(Ok(9))).await, Ok(8));
    }

    #[tokio::test]
    async fn what_turned_out_to_be_wrong_is_read_again_and_too_many_are_forgotten() {
        let (numbers, source) = (Numbers::new(2), Source::new(100));
        assert_eq!(numbers.get(&"a", 1, |_| source.read(Ok(7))).await, Ok(7));
        numbers.forget(&"a", |known| *known == 8);
        assert_eq!(numbers.get(&"a", 1, |_| source.read(Ok(8))).await, Ok(7));
        numbers.forget(&"a", |known| *known == 7);
        assert_eq!(numbers.get(&"a", 1, |_| source.read(Ok(8))).await, Ok(8));
        for key in ["b", "c", "d"] {
            numbers.get(&key, 2, |_| source.read(Ok(1))).await.unwrap();
            assert!(numbers.inner.known.read().unwrap().len() <= 2);
        }
    }
}
