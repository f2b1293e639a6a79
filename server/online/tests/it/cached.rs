//! What is kept in memory is what a read would find: by the conformance suite, by chance, and where reads and writes meet.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use eadem_online::conformance::{CASES, Subject, Violation, run_all};
use eadem_online::{
    Answer, CacheRule, CachedStore, Coverage, EmbeddedOptions, EmbeddedStore, Found, KeyBytes, MemoryStore, Merged,
    OnlineStore, PointRead, Row, RowBody, ScanCursor, ScanPage, StoreError, TableId, TableStatus, Trim,
};
use eadem_semantics::ReadAt;
use eadem_values::Digest;
use tokio::sync::Semaphore;

use crate::support::{Dice, key, row, row_known, seed, table};

const BYTES_MAX: u64 = 1 << 20;

const fn kept(now_us: i64, stale_us_max: i64) -> CacheRule {
    CacheRule { now_us, stale_us_max, fresh: false }
}

async fn find(store: &CachedStore, name: &str, at_us: i64, rule: CacheRule) -> Found {
    let key = key(name);
    let read = PointRead { key: &key, at: ReadAt::as_known_then(at_us) };
    store.find(table(1), &[read], rule).await.unwrap().remove(0)
}

fn event_time_us(found: &Found) -> Option<i64> {
    found.row.as_ref().map(|row| row.order.event_time_us)
}

/// A store in this process, loaded, with a cache that sees all writes.
async fn embedded(folder: &tempfile::TempDir) -> (Arc<EmbeddedStore>, CachedStore) {
    let store = Arc::new(EmbeddedStore::open(folder.path(), EmbeddedOptions::default()).unwrap());
    let cached = CachedStore::new(store.clone(), BYTES_MAX, true);
    cached.create_epoch(table(1)).await.unwrap();
    cached.finish_load(table(1), Coverage::whole()).await.unwrap();
    (store, cached)
}

/// A store elsewhere: it counts the keys that it was asked for, and answers when it may.
#[derive(Debug)]
struct Elsewhere {
    store: MemoryStore,
    keys_read: AtomicU64,
    may_answer: Semaphore,
}

impl Elsewhere {
    async fn loaded() -> Arc<Self> {
        let elsewhere = Self {
            store: MemoryStore::new(),
            keys_read: AtomicU64::new(0),
            may_answer: Semaphore::new(Semaphore::MAX_PERMITS),
        };
        elsewhere.store.create_epoch(table(1)).await.unwrap();
        elsewhere.store.finish_load(table(1), Coverage::whole()).await.unwrap();
        Arc::new(elsewhere)
    }

    /// From here on nothing is answered unless permits are added.
    fn hold(&self) {
        self.may_answer.forget_permits(self.may_answer.available_permits());
    }

    fn keys_read(&self) -> u64 {
        self.keys_read.load(Ordering::SeqCst)
    }
}

/// Whoever gives up is not kept by what can be answered without waiting.
#[tokio::test]
async fn very_many_reads_of_a_store_in_this_process_can_be_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let (_, cached) = embedded(&folder).await;
    let keys: Vec<KeyBytes> = (0..5_000).map(|number| key(&format!("key {number}"))).collect();
    for rule in [kept(1, 0), CacheRule { fresh: true, ..kept(1, 0) }] {
        let find = |count: usize| {
            let reads: Vec<PointRead<'_>> =
                keys[..count].iter().map(|key| PointRead { key, at: ReadAt::as_known_then(9) }).collect();
            let cached = &cached;
            async move { cached.find(table(1), &reads, rule).await.unwrap().len() }
        };
        let given_up = tokio::time::timeout(std::time::Duration::ZERO, find(5_000)).await;
        assert!(given_up.is_err(), "it was not asked whether anybody waits");
        // And it was not the worse for it.
        assert_eq!(tokio::time::timeout(std::time::Duration::ZERO, find(200)).await, Ok(200));
        assert_eq!(find(5_000).await, 5_000);
    }
}

/// Waits until the store was asked for so many keys.
async fn asked_for(store: &Elsewhere, keys: u64) {
    while store.keys_read() < keys {
        tokio::task::yield_now().await;
    }
}

/// A store that is another one in all but its reads.
macro_rules! reads_of_its_own {
    ($store:ident, $field:ident, { $($reads:tt)* }) => {
        #[async_trait]
        impl OnlineStore for $store {
            $($reads)*

            fn kind(&self) -> &'static str {
                self.$field.kind()
            }
            async fn create_epoch(&self, table: TableId) -> Result<(), StoreError> {
                self.$field.create_epoch(table).await
            }
            async fn drop_epoch(&self, table: TableId) -> Result<(), StoreError> {
                self.$field.drop_epoch(table).await
            }
            async fn tables(&self) -> Result<Vec<TableStatus>, StoreError> {
                self.$field.tables().await
            }
            async fn status(&self, table: TableId) -> Result<TableStatus, StoreError> {
                self.$field.status(table).await
            }
            async fn coverage(&self, table: TableId) -> Result<Coverage, StoreError> {
                self.$field.coverage(table).await
            }
            async fn merge(&self, table: TableId, rows: Vec<Row>) -> Result<Merged, StoreError> {
                self.$field.merge(table, rows).await
            }
            async fn bulk_load(&self, table: TableId, rows: Vec<Row>) -> Result<(), StoreError> {
                self.$field.bulk_load(table, rows).await
            }
            async fn finish_load(&self, table: TableId, coverage: Coverage) -> Result<(), StoreError> {
                self.$field.finish_load(table, coverage).await
            }
            async fn announce_trim(&self, table: TableId, trim: Trim) -> Result<(), StoreError> {
                self.$field.announce_trim(table, trim).await
            }
            async fn finish_load_trimmed(&self, table: TableId, coverage: Coverage, trim: Trim) -> Result<u64, StoreError> {
                self.$field.finish_load_trimmed(table, coverage, trim).await
            }
            async fn cover(&self, table: TableId, coverage: Coverage) -> Result<(), StoreError> {
                self.$field.cover(table, coverage).await
            }
            async fn ping(&self) -> Result<Option<i64>, StoreError> {
                self.$field.ping().await
            }
            async fn scan(
                &self,
                table: TableId,
                cursor: Option<ScanCursor>,
                page_bytes_max: usize,
            ) -> Result<ScanPage, StoreError> {
                self.$field.scan(table, cursor, page_bytes_max).await
            }
            async fn trim(&self, table: TableId, trim: Trim) -> Result<u64, StoreError> {
                self.$field.trim(table, trim).await
            }
            async fn erase(&self, view: Digest, key: &KeyBytes, up_to_us: i64) -> Result<u64, StoreError> {
                self.$field.erase(view, key, up_to_us).await
            }
            async fn erased_up_to(&self, view: Digest, key: &KeyBytes) -> Result<Option<i64>, StoreError> {
                self.$field.erased_up_to(view, key).await
            }
        }
    };
}

reads_of_its_own!(Elsewhere, store, {
    async fn read(&self, table: TableId, reads: &[PointRead<'_>]) -> Result<Vec<Answer>, StoreError> {
        // What it will say is what it had when it was asked.
        let answers = self.store.read(table, reads).await;
        self.keys_read.fetch_add(reads.len() as u64, Ordering::SeqCst);
        self.may_answer.acquire().await.unwrap().forget();
        answers
    }
});

/// Reads through the cache, and compares with the store behind it.
#[derive(Debug)]
struct Compared {
    cached: CachedStore,
}

reads_of_its_own!(Compared, cached, {
    async fn read(&self, table: TableId, reads: &[PointRead<'_>]) -> Result<Vec<Answer>, StoreError> {
        // Between the two a write may become visible, and it may be visible before it is acknowledged and forgotten here.
        const ATTEMPTS: usize = 10_000;
        let mut agreed = 0;
        for _ in 0..ATTEMPTS {
            let answers = self.cached.read(table, reads).await;
            let found = self.cached.find(table, reads, kept(0, 0)).await;
            let is_same = match (&answers, found) {
                (Ok(answers), Ok(found)) => answers
                    .iter()
                    .zip(found)
                    .all(|(answer, found)| Found::from(answer.clone()) == Found { kept: false, ..found }),
                (Err(_), Err(_)) => true,
                _ => false,
            };
            // Twice: the second time from memory.
            agreed = if is_same { agreed + 1 } else { 0 };
            if agreed == 2 {
                return answers;
            }
            tokio::task::yield_now().await;
        }
        panic!("the cache and its store do not agree");
    }

    fn read_now(&self, table: TableId, reads: &[PointRead<'_>]) -> Option<Result<Vec<Answer>, StoreError>> {
        self.cached.read_now(table, reads)
    }
});

struct CachedSubject {
    folder: tempfile::TempDir,
    store: Option<Arc<Compared>>,
}

impl CachedSubject {
    fn open(&mut self) -> Result<(), Violation> {
        let store = EmbeddedStore::open(self.folder.path(), EmbeddedOptions::default())?;
        let cached = CachedStore::new(Arc::new(store), BYTES_MAX, true);
        self.store = Some(Arc::new(Compared { cached }));
        Ok(())
    }
}

#[async_trait]
impl Subject for CachedSubject {
    fn store(&self) -> Arc<dyn OnlineStore> {
        self.store.clone().unwrap()
    }

    async fn restart(&mut self) -> Result<(), Violation> {
        self.store = None;
        self.open()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cache_agrees_with_its_store_in_the_whole_suite() {
    let new_subject = async || {
        let mut subject = CachedSubject { folder: tempfile::tempdir().unwrap(), store: None };
        subject.open()?;
        Ok(subject)
    };
    let violations = run_all(seed(), new_subject).await;
    println!("S10: cases={} faults={}", CASES.len(), violations.len());
    assert!(violations.is_empty(), "seed {}: {violations:#?}", seed());
}

#[tokio::test]
async fn whatever_is_written_in_whatever_order_the_cache_finds_what_the_store_finds() {
    let seed = seed();
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let mut below = |end: usize| dice.below(end) as i64;
    let folder = tempfile::tempdir().unwrap();
    let (store, cached) = embedded(&folder).await;
    let mut hits = 0;
    for step in 0..3_000 {
        let name = format!("e{}", below(4));
        match below(20) {
            0..=3 => {
                let (event, known) = (below(100), below(100));
                cached.merge(table(1), vec![row_known(&name, event, known)]).await.unwrap();
            }
            4 => {
                let mut failed = row_known(&name, below(100), below(100));
                failed.body = RowBody::of_error("no result");
                cached.merge(table(1), vec![failed]).await.unwrap();
            }
            5 if below(20) == 0 => {
                cached.erase(table(1).view, &key(&name), below(60)).await.unwrap();
            }
            6 if below(40) == 0 => {
                let trim = Trim { complete_since_us: below(50), forget_up_to_us: None };
                cached.trim(table(1), trim).await.unwrap();
            }
            7 if below(10) == 0 => {
                cached.bulk_load(table(1), vec![row_known(&name, below(100), 0)]).await.unwrap();
                cached.finish_load(table(1), Coverage::default()).await.unwrap();
            }
            _ => {
                let keys: Vec<KeyBytes> = (0..4).map(|number| key(&format!("e{number}"))).collect();
                let at = ReadAt::as_known_then(below(110));
                let hindsight = ReadAt::with_hindsight(at.at_us);
                let mut reads: Vec<PointRead<'_>> = keys.iter().map(|key| PointRead { key, at }).collect();
                reads.push(PointRead { key: &keys[0], at: hindsight });
                let found = cached.find(table(1), &reads, kept(0, 0)).await.unwrap();
                hits += found.iter().filter(|found| found.kept).count();
                let answers = store.read(table(1), &reads).await.unwrap();
                for ((found, answer), read) in found.into_iter().zip(answers).zip(&reads) {
                    assert_eq!(Found { kept: false, ..found }, Found::from(answer), "step {step}, {read:?}");
                }
            }
        }
    }
    assert!(hits > 500, "only {hits} reads were answered from memory");
}

#[tokio::test]
async fn a_row_is_seen_from_the_microsecond_on_at_which_it_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let (_, cached) = embedded(&folder).await;
    cached.merge(table(1), vec![row("a", 10), row_known("a", 20, 50), row_known("a", 30, 40)]).await.unwrap();
    let mut seen = BTreeMap::new();
    for at_us in [35, 36, 39, 40, 49, 50, 60, 9, 10, 39, 1_000] {
        seen.insert(at_us, event_time_us(&find(&cached, "a", at_us, kept(at_us, 0)).await));
    }
    let expected = [(9, None), (10, Some(10)), (35, Some(10)), (36, Some(10)), (39, Some(10)), (40, Some(30))];
    let later = [(49, Some(30)), (50, Some(30)), (60, Some(30)), (1_000, Some(30))];
    assert_eq!(seen, expected.into_iter().chain(later).collect());
    assert!(find(&cached, "a", 2_000, kept(2_000, 0)).await.kept);
}

#[tokio::test]
async fn that_there_is_nothing_is_kept_until_there_is_something() {
    let folder = tempfile::tempdir().unwrap();
    let (_, cached) = embedded(&folder).await;
    assert!(!find(&cached, "a", 10, kept(10, 0)).await.kept);
    let found = find(&cached, "a", 10, kept(10, 0)).await;
    assert_eq!(found, Found { row: None, proved: true, kept: true });
    cached.merge(table(1), vec![row("a", 5)]).await.unwrap();
    assert_eq!(event_time_us(&find(&cached, "a", 10, kept(10, 0)).await), Some(5));
}

#[tokio::test]
async fn what_is_written_while_it_is_read_is_not_kept_as_it_was() {
    let store = Elsewhere::loaded().await;
    let cached = Arc::new(CachedStore::new(store.clone(), BYTES_MAX, true));
    cached.merge(table(1), vec![row("a", 1)]).await.unwrap();
    store.hold();
    let reading = tokio::spawn({
        let cached = Arc::clone(&cached);
        async move { find(&cached, "a", 10, kept(10, 0)).await }
    });
    asked_for(&store, 1).await;
    cached.merge(table(1), vec![row("a", 2)]).await.unwrap();
    store.may_answer.add_permits(10);
    assert_eq!(event_time_us(&reading.await.unwrap()), Some(1), "it was asked before the write");
    let after = find(&cached, "a", 10, kept(10, 0)).await;
    assert_eq!((event_time_us(&after), after.kept), (Some(2), false));
}

#[tokio::test]
async fn many_that_want_the_same_row_read_it_once() {
    let store = Elsewhere::loaded().await;
    store.merge(table(1), vec![row("a", 1)]).await.unwrap();
    store.hold();
    let cached = Arc::new(CachedStore::new(store.clone(), BYTES_MAX, false));
    let readers: Vec<_> = (0..50)
        .map(|_| {
            let cached = Arc::clone(&cached);
            tokio::spawn(async move {
                // Twice in one request as well.
                let key = key("a");
                let read = PointRead { key: &key, at: ReadAt::as_known_then(10) };
                cached.find(table(1), &[read, read], kept(10, 5)).await.unwrap()
            })
        })
        .collect();
    asked_for(&store, 1).await;
    store.may_answer.add_permits(1_000);
    for reader in readers {
        for found in reader.await.unwrap() {
            assert_eq!(event_time_us(&found), Some(1));
        }
    }
    assert_eq!(store.keys_read(), 1);
}

#[tokio::test]
async fn a_reader_that_gives_up_leaves_its_place_to_the_next() {
    let store = Elsewhere::loaded().await;
    store.merge(table(1), vec![row("a", 1)]).await.unwrap();
    store.hold();
    let cached = Arc::new(CachedStore::new(store.clone(), BYTES_MAX, false));
    let ask = || {
        let cached = Arc::clone(&cached);
        tokio::spawn(async move { find(&cached, "a", 10, kept(10, 5)).await })
    };
    let first = ask();
    asked_for(&store, 1).await;
    let second = ask();
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    store.may_answer.add_permits(10);
    assert_eq!(event_time_us(&second.await.unwrap()), Some(1));
    assert_eq!(store.keys_read(), 2);
}

#[tokio::test]
async fn what_others_write_is_seen_when_an_answer_is_as_old_as_it_may_be() {
    let store = Elsewhere::loaded().await;
    let cached = CachedStore::new(store.clone(), BYTES_MAX, false);
    store.merge(table(1), vec![row("a", 1)]).await.unwrap();
    let first = find(&cached, "a", 100, kept(100, 50)).await;
    assert_eq!((event_time_us(&first), first.kept), (Some(1), false));
    store.merge(table(1), vec![row("a", 90)]).await.unwrap();
    let within = find(&cached, "a", 150, kept(150, 50)).await;
    assert_eq!((event_time_us(&within), within.kept), (Some(1), true));
    let over = find(&cached, "a", 151, kept(151, 50)).await;
    assert_eq!((event_time_us(&over), over.kept), (Some(90), false));
    // A clock that went back, and a view that keeps nothing.
    store.merge(table(1), vec![row("a", 95)]).await.unwrap();
    assert_eq!(event_time_us(&find(&cached, "a", 120, kept(120, 50)).await), Some(95));
    store.merge(table(1), vec![row("a", 96)]).await.unwrap();
    assert_eq!(event_time_us(&find(&cached, "a", 120, kept(120, 0)).await), Some(96));
    // Who asks for what is there gets it, and so do those after.
    let fresh = CacheRule { fresh: true, ..kept(121, 50) };
    assert_eq!(event_time_us(&find(&cached, "a", 121, fresh).await), Some(96));
    let after = find(&cached, "a", 122, kept(122, 50)).await;
    assert_eq!((event_time_us(&after), after.kept), (Some(96), true));
}

#[tokio::test]
async fn a_read_of_the_past_does_not_push_out_what_live_reads_want() {
    let folder = tempfile::tempdir().unwrap();
    let (_, cached) = embedded(&folder).await;
    cached.merge(table(1), vec![row("a", 10), row("a", 100)]).await.unwrap();
    find(&cached, "a", 200, kept(200, 0)).await;
    assert_eq!(event_time_us(&find(&cached, "a", 50, kept(200, 0)).await), Some(10));
    assert!(find(&cached, "a", 201, kept(201, 0)).await.kept);
}

#[tokio::test]
async fn it_takes_no_more_than_it_may() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = embedded(&folder).await;
    let cached = CachedStore::new(store, 100_000, true);
    let rows = (0..2_000).map(|number| row(&format!("entity {number}"), 1)).collect();
    cached.merge(table(1), rows).await.unwrap();
    for number in 0..2_000 {
        find(&cached, &format!("entity {number}"), 10, kept(10, 0)).await;
        let usage = cached.usage();
        assert!(usage.bytes <= usage.bytes_max && usage.bytes_max <= 100_000, "{usage:?}");
    }
    assert!(cached.usage().entries > 100, "{:?}", cached.usage());
    let none = CachedStore::new(Arc::new(MemoryStore::new()), 0, true);
    none.create_epoch(table(1)).await.unwrap();
    none.finish_load(table(1), Coverage::whole()).await.unwrap();
    find(&none, "a", 10, kept(10, 0)).await;
    assert!(!find(&none, "a", 10, kept(10, 0)).await.kept);
    assert_eq!(none.usage().bytes, 0);
}
