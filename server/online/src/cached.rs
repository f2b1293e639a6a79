//! Rows that were read, kept in memory: a store in front of another.
//!
//! **What is kept.** For an entity of a table the answer to a read as known then, and for which other T it is the answer as
//! well ([`Span`]). That an entity has no row is kept too. Whether a row is too old to be served is decided by whoever reads
//! it, so nothing is served past its TTL.
//!
//! **When it goes.** Every write that passes here takes what it touches out of memory before it returns, also what others
//! are just reading: their answer is used once and not kept. If all writes of a store pass here, because the process holds the
//! store alone, what is kept is what a read would find. Of other stores an answer is kept for as long as the view says that it
//! may be stale, counted from when it was read.
//!
//! **Many at once.** Of several that want the same row of a store that is not in this process, one reads and the others wait
//! for it.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use eadem_semantics::{ReadAt, RowOrder, visible_from_us};
use eadem_values::Digest;
use hashbrown::DefaultHashBuilder;
use quick_cache::sync::{Cache, DefaultLifecycle, GuardResult, PlaceholderGuard};
use quick_cache::{Equivalent, Weighter};

use crate::{
    Answer, Coverage, KeyBytes, Merged, OnlineStore, PointRead, Row, ScanCursor, ScanPage, Span, StoreError, TableId,
    TableSnapshot, TableStatus, Trim,
};

/// What an entry takes beside its key and values: itself, its places in the cache's tables, what the allocator adds.
const ENTRY_BYTES: u64 = 224;

/// What a row of some ten features takes: only to size the cache's own tables at the start.
const TYPICAL_ENTRY_BYTES: u64 = 512;

/// How a read uses what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheRule {
    /// The time of the request, in microseconds.
    pub now_us: i64,
    /// How long ago an answer may have been read from a store that others write to as well; 0: such are not kept.
    pub stale_us_max: i64,
    /// Ask the store. Of a store that others write to as well, what it says takes the place of what was kept.
    pub fresh: bool,
}

/// A row as it is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRow {
    /// Its place among the rows of its entity.
    pub order: RowOrder,
    /// Its values in the canonical row encoding.
    pub values: Bytes,
    /// Whether its transform failed on it.
    pub failed: bool,
}

/// What a read found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The greatest candidate.
    pub row: Option<FoundRow>,
    /// As [`Answer::proved`].
    pub proved: bool,
    /// Whether it was in memory.
    pub kept: bool,
}

impl From<Answer> for Found {
    fn from(answer: Answer) -> Self {
        let row = answer.winner.map(|winner| FoundRow {
            order: winner.order,
            values: winner.body.values,
            failed: winner.body.error.is_some(),
        });
        Self { row, proved: answer.proved, kept: false }
    }
}

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheUsage {
    /// Answers.
    pub entries: u64,
    /// Bytes that they take, about.
    pub bytes: u64,
    /// The most that they may take.
    pub bytes_max: u64,
}

/// An answer in memory.
struct Entry {
    row: Option<FoundRow>,
    /// The first T for which it holds.
    from_us: i64,
    /// The first T for which it does no longer.
    until_us: i64,
    /// The T that it was read for.
    read_at_us: i64,
    /// When it was read.
    kept_at_us: i64,
}

impl Entry {
    /// What was found at T by `read`, and holds for the T between these two that see it.
    fn of(found: &Found, read: ReadAt, (since_us, until_us): (i64, i64), now_us: i64) -> Self {
        let row = found.row.clone();
        let from_us = row.as_ref().map_or(i64::MIN, |row| visible_from_us(&row.order)).max(since_us);
        Self { row, from_us, until_us, read_at_us: read.at_us, kept_at_us: now_us }
    }

    fn found(&self) -> Found {
        Found { row: self.row.clone(), proved: true, kept: true }
    }
}

/// The key of an answer: the table as of the last time that all of it went out of memory, and the entity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct EntryKey {
    table: u64,
    key: KeyBytes,
}

/// The same without a copy of the key's bytes.
#[derive(Hash)]
struct EntryKeyRef<'a> {
    table: u64,
    key: &'a KeyBytes,
}

impl Equivalent<EntryKey> for EntryKeyRef<'_> {
    fn equivalent(&self, other: &EntryKey) -> bool {
        self.table == other.table && *self.key == other.key
    }
}

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<EntryKey, Arc<Entry>> for ByBytes {
    fn weight(&self, key: &EntryKey, entry: &Arc<Entry>) -> u64 {
        let values_bytes = entry.row.as_ref().map_or(0, |row| row.values.len());
        ENTRY_BYTES + (key.key.as_slice().len() + values_bytes) as u64
    }
}

type Lifecycle = DefaultLifecycle<EntryKey, Arc<Entry>>;
type Entries = Cache<EntryKey, Arc<Entry>, ByBytes, DefaultHashBuilder, Lifecycle>;
type Place<'a> = PlaceholderGuard<'a, EntryKey, Arc<Entry>, ByBytes, DefaultHashBuilder, Lifecycle>;

/// Numbers of the tables: a table gets another one whenever all of it goes out of memory.
#[derive(Debug, Default)]
struct Tables {
    numbers: HashMap<TableId, u64>,
    last: u64,
}

/// A store whose answers are kept in memory.
pub struct CachedStore {
    store: Arc<dyn OnlineStore>,
    /// `None`: nothing is kept.
    entries: Option<Entries>,
    tables: RwLock<Tables>,
    sees_all_writes: bool,
}

impl fmt::Debug for CachedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedStore").field("store", &self.store).field("usage", &self.usage()).finish()
    }
}

impl CachedStore {
    /// In front of `store`, with about `bytes_max` bytes at most; with none nothing is kept. `sees_all_writes`: nobody writes
    /// to the store but through this.
    pub fn new(store: Arc<dyn OnlineStore>, bytes_max: u64, sees_all_writes: bool) -> Self {
        let estimated = usize::try_from(bytes_max / TYPICAL_ENTRY_BYTES).unwrap_or(usize::MAX);
        let entries = (bytes_max > 0)
            .then(|| Cache::with(estimated, bytes_max, ByBytes, DefaultHashBuilder::default(), Lifecycle::default()));
        Self { store, entries, tables: RwLock::default(), sees_all_writes }
    }

    /// How much is kept.
    pub fn usage(&self) -> CacheUsage {
        match &self.entries {
            Some(entries) => {
                CacheUsage { entries: entries.len() as u64, bytes: entries.weight(), bytes_max: entries.capacity() }
            }
            None => CacheUsage { entries: 0, bytes: 0, bytes_max: 0 },
        }
    }

    /// Answers many reads, in their order, from memory where the rule allows.
    ///
    /// # Errors
    /// As for [`OnlineStore::read`].
    pub async fn find(
        &self,
        table: TableId,
        reads: &[PointRead<'_>],
        rule: CacheRule,
    ) -> Result<Vec<Found>, StoreError> {
        let Some(entries) = self.entries_for(rule) else {
            let at_once = |reads: &[PointRead<'_>]| self.store.read_now(table, reads);
            let answers = match in_parts(reads, at_once).await {
                Some(answers) => answers?,
                None => self.store.read(table, reads).await?,
            };
            return Ok(answers.into_iter().map(Found::from).collect());
        };
        let number = self.number(table);
        let mut found: Vec<Option<Found>> = Vec::with_capacity(reads.len());
        let mut missing = Vec::new();
        for (at, read) in reads.iter().enumerate() {
            let kept = self.kept(entries, number, read, rule);
            if kept.is_none() {
                missing.push(at);
            }
            found.push(kept);
        }
        if !missing.is_empty() {
            self.fetch((entries, number, rule), table, reads, &missing, &mut found).await?;
        }
        Ok(found.into_iter().flatten().collect())
    }

    /// The cache, if this rule lets anything be kept.
    fn entries_for(&self, rule: CacheRule) -> Option<&Entries> {
        let may_keep = match self.sees_all_writes {
            // What is kept needs no refreshing.
            true => !rule.fresh,
            false => rule.stale_us_max > 0,
        };
        self.entries.as_ref().filter(|_| may_keep)
    }

    fn number(&self, table: TableId) -> u64 {
        let known = self.tables.read().unwrap_or_else(PoisonError::into_inner).numbers.get(&table).copied();
        known.unwrap_or_else(|| {
            let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
            let next = tables.last + 1;
            let number = *tables.numbers.entry(table).or_insert(next);
            tables.last = tables.last.max(number);
            number
        })
    }

    /// What is in memory and answers this read.
    fn kept(&self, entries: &Entries, number: u64, read: &PointRead<'_>, rule: CacheRule) -> Option<Found> {
        if rule.fresh {
            return None;
        }
        let entry = entries.get(&EntryKeyRef { table: number, key: read.key })?;
        self.answers(&entry, read.at, rule).then(|| entry.found())
    }

    fn answers(&self, entry: &Entry, read: ReadAt, rule: CacheRule) -> bool {
        read.known_by_us == read.at_us && read.at_us >= entry.from_us && !self.is_outlived(entry, read, rule)
    }

    /// Whether no such read, nor a later one, is answered by this entry any more.
    fn is_outlived(&self, entry: &Entry, read: ReadAt, rule: CacheRule) -> bool {
        if self.sees_all_writes {
            return read.at_us >= entry.until_us;
        }
        let age_us = rule.now_us.saturating_sub(entry.kept_at_us);
        // A clock that went back could give an entry any age.
        let is_too_old = !(0..=rule.stale_us_max).contains(&age_us);
        is_too_old || read.at_us > entry.read_at_us.saturating_add(rule.stale_us_max)
    }

    /// Reads what is missing, and keeps it.
    async fn fetch(
        &self,
        (entries, number, rule): (&Entries, u64, CacheRule),
        table: TableId,
        reads: &[PointRead<'_>],
        missing: &[usize],
        found: &mut [Option<Found>],
    ) -> Result<(), StoreError> {
        // Nobody waits here who is waited for: what others are reading is looked at when all of ours is given back.
        let mut own: Vec<(usize, Place<'_>)> = Vec::with_capacity(missing.len());
        let mut of_others = Vec::new();
        for at in missing {
            match self.place(entries, number, &reads[*at], rule) {
                Some(place) => own.push((*at, place)),
                None => of_others.push(*at),
            }
        }
        let points: Vec<PointRead<'_>> = own.iter().map(|(at, _)| reads[*at]).collect();
        let spans = self.spans(table, &points).await?;
        for ((at, place), span) in own.into_iter().zip(spans) {
            found[at] = Some(keep(span, reads[at].at, rule, place));
        }
        for at in of_others {
            found[at] = Some(self.join((entries, number, rule), table, &reads[at]).await?);
        }
        Ok(())
    }

    /// The place of an entity's answer, to be filled; `None` while somebody else is about it, or what stands there is good for
    /// others.
    fn place<'a>(&self, entries: &'a Entries, number: u64, read: &PointRead<'_>, rule: CacheRule) -> Option<Place<'a>> {
        let key = EntryKey { table: number, key: read.key.clone() };
        match entries.get_value_or_guard(&key, Some(Duration::ZERO)) {
            GuardResult::Guard(place) => return Some(place),
            GuardResult::Value(entry) if rule.fresh || self.is_outlived(&entry, read.at, rule) => {
                entries.remove(&key);
            }
            GuardResult::Value(_) | GuardResult::Timeout => return None,
        }
        match entries.get_value_or_guard(&key, Some(Duration::ZERO)) {
            GuardResult::Guard(place) => Some(place),
            GuardResult::Value(_) | GuardResult::Timeout => None,
        }
    }

    /// What somebody else reads, or, if that does not answer this read, what we do. What can be read at once is not waited for.
    async fn join(
        &self,
        (entries, number, rule): (&Entries, u64, CacheRule),
        table: TableId,
        read: &PointRead<'_>,
    ) -> Result<Found, StoreError> {
        let points = std::slice::from_ref(read);
        if let Some(answers) = self.store.read_now(table, points) {
            return only(answers?).map(Found::from);
        }
        let key = EntryKey { table: number, key: read.key.clone() };
        match entries.get_value_or_guard_async(&key).await {
            Ok(entry) if self.answers(&entry, read.at, rule) => Ok(entry.found()),
            Ok(_) => only(self.store.read(table, points).await?).map(Found::from),
            Err(place) => Ok(keep(only(self.spans(table, points).await?)?, read.at, rule, place)),
        }
    }

    async fn spans(&self, table: TableId, points: &[PointRead<'_>]) -> Result<Vec<Span>, StoreError> {
        if points.is_empty() {
            return Ok(Vec::new());
        }
        match in_parts(points, |points| self.store.read_spans_now(table, points)).await {
            Some(spans) => spans,
            None => self.store.read_spans(table, points).await,
        }
    }

    /// Takes all of a table out of memory, also what is just being read.
    fn forget(&self, table: TableId) {
        self.tables.write().unwrap_or_else(PoisonError::into_inner).numbers.remove(&table);
    }

    /// Takes an entity out of memory, also what is just being read.
    fn forget_entity(&self, table: TableId, key: &KeyBytes) {
        let Some(entries) = &self.entries else { return };
        let number = self.tables.read().unwrap_or_else(PoisonError::into_inner).numbers.get(&table).copied();
        if let Some(number) = number {
            entries.remove(&EntryKeyRef { table: number, key });
        }
    }
}

/// Reads that a store answers at once, and without that anything else happens on this thread. It may take a millisecond.
const AT_ONCE_MAX: usize = 256;

/// Answers at once, many reads in parts between which others have their turn, and whoever asks may give up. `None`: the store does
/// not answer at once.
async fn in_parts<A>(
    reads: &[PointRead<'_>],
    read: impl Fn(&[PointRead<'_>]) -> Option<Result<Vec<A>, StoreError>>,
) -> Option<Result<Vec<A>, StoreError>> {
    if reads.len() <= AT_ONCE_MAX {
        return read(reads);
    }
    let mut all = Vec::with_capacity(reads.len());
    for part in reads.chunks(AT_ONCE_MAX) {
        match read(part)? {
            Ok(answers) => all.extend(answers),
            Err(error) => return Some(Err(error)),
        }
        tokio::task::yield_now().await;
    }
    Some(Ok(all))
}

/// A store that answers fewer reads than it was asked.
#[derive(Debug, thiserror::Error)]
#[error("the store gave no answer")]
struct NoAnswer;

fn only<T>(answers: Vec<T>) -> Result<T, StoreError> {
    answers.into_iter().next().ok_or_else(|| StoreError::failed("reading a row", NoAnswer))
}

/// Puts what was read into its place, unless it is not proved, or not for the cut K = T.
fn keep(span: Span, read: ReadAt, rule: CacheRule, place: Place<'_>) -> Found {
    let found = Found::from(span.answer);
    if found.proved && read.known_by_us == read.at_us {
        let entry = Entry::of(&found, read, (span.since_us, span.until_us), rule.now_us);
        // Refused: a write has taken the place away meanwhile.
        let _ = place.insert(Arc::new(entry));
    }
    found
}

/// Writes go to the store, and what they touch out of memory. Reads of the trait always ask the store.
#[async_trait]
impl OnlineStore for CachedStore {
    fn kind(&self) -> &'static str {
        self.store.kind()
    }

    async fn create_epoch(&self, table: TableId) -> Result<(), StoreError> {
        self.store.create_epoch(table).await
    }

    async fn drop_epoch(&self, table: TableId) -> Result<(), StoreError> {
        let dropped = self.store.drop_epoch(table).await;
        self.forget(table);
        dropped
    }

    async fn tables(&self) -> Result<Vec<TableStatus>, StoreError> {
        self.store.tables().await
    }

    async fn status(&self, table: TableId) -> Result<TableStatus, StoreError> {
        self.store.status(table).await
    }

    async fn coverage(&self, table: TableId) -> Result<Coverage, StoreError> {
        self.store.coverage(table).await
    }

    fn keeps_unfinished_loads(&self) -> bool {
        self.store.keeps_unfinished_loads()
    }

    async fn merge(&self, table: TableId, rows: Vec<Row>) -> Result<Merged, StoreError> {
        let keys: Vec<KeyBytes> = rows.iter().map(|row| row.key.clone()).collect();
        // Also after an error: some of it may have happened.
        let merged = self.store.merge(table, rows).await;
        keys.iter().for_each(|key| self.forget_entity(table, key));
        merged
    }

    async fn bulk_load(&self, table: TableId, rows: Vec<Row>) -> Result<(), StoreError> {
        self.store.bulk_load(table, rows).await
    }

    async fn finish_load(&self, table: TableId, coverage: Coverage) -> Result<(), StoreError> {
        let finished = self.store.finish_load(table, coverage).await;
        self.forget(table);
        finished
    }

    async fn announce_trim(&self, table: TableId, trim: Trim) -> Result<(), StoreError> {
        self.store.announce_trim(table, trim).await
    }

    async fn finish_load_trimmed(&self, table: TableId, coverage: Coverage, trim: Trim) -> Result<u64, StoreError> {
        let finished = self.store.finish_load_trimmed(table, coverage, trim).await;
        self.forget(table);
        finished
    }

    fn snapshot(&self, table: TableId) -> Option<Result<Box<dyn TableSnapshot>, StoreError>> {
        self.store.snapshot(table)
    }

    async fn cover(&self, table: TableId, coverage: Coverage) -> Result<(), StoreError> {
        let covered = self.store.cover(table, coverage).await;
        // A claim for a newer commit may begin later: less may be proved than was.
        self.forget(table);
        covered
    }

    async fn read(&self, table: TableId, reads: &[PointRead<'_>]) -> Result<Vec<Answer>, StoreError> {
        self.store.read(table, reads).await
    }

    fn read_now(&self, table: TableId, reads: &[PointRead<'_>]) -> Option<Result<Vec<Answer>, StoreError>> {
        self.store.read_now(table, reads)
    }

    async fn read_spans(&self, table: TableId, reads: &[PointRead<'_>]) -> Result<Vec<Span>, StoreError> {
        self.store.read_spans(table, reads).await
    }

    fn read_spans_now(&self, table: TableId, reads: &[PointRead<'_>]) -> Option<Result<Vec<Span>, StoreError>> {
        self.store.read_spans_now(table, reads)
    }

    async fn ping(&self) -> Result<Option<i64>, StoreError> {
        self.store.ping().await
    }

    async fn scan(
        &self,
        table: TableId,
        cursor: Option<ScanCursor>,
        page_bytes_max: usize,
    ) -> Result<ScanPage, StoreError> {
        self.store.scan(table, cursor, page_bytes_max).await
    }

    async fn trim(&self, table: TableId, trim: Trim) -> Result<u64, StoreError> {
        let trimmed = self.store.trim(table, trim).await;
        // Less is proved than was.
        self.forget(table);
        trimmed
    }

    async fn erase(&self, view: Digest, key: &KeyBytes, up_to_us: i64) -> Result<u64, StoreError> {
        let erased = self.store.erase(view, key, up_to_us).await;
        let tables: Vec<TableId> = {
            let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
            tables.numbers.keys().filter(|table| table.view == view).copied().collect()
        };
        tables.into_iter().for_each(|table| self.forget_entity(table, key));
        erased
    }

    async fn erased_up_to(&self, view: Digest, key: &KeyBytes) -> Result<Option<i64>, StoreError> {
        self.store.erased_up_to(view, key).await
    }
}
