//! The trait that every online store implements, and what goes in and out of it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;

use async_trait::async_trait;
use bytes::Bytes;
use eadem_semantics::{Lifetime, ReadAt, RowOrder};
use eadem_values::Digest;
use serde::{Deserialize, Serialize};

use crate::{KeyBytes, Row, RowBody, StoreError};

/// One online table: a view version in one epoch. A recompute loads a new epoch beside the old one; which epoch is current
/// is not the store's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TableId {
    /// The view version's digest.
    pub view: Digest,
    /// The epoch.
    pub epoch: u64,
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} epoch {}", self.view.short(), self.epoch)
    }
}

/// What a table holds for certain. A reader may trust an answer only within it.
///
/// Claims merge without regard to their order: the claim for the newer offline commit says from when on history is
/// complete (for equal commits the earlier time), and lanes keep their furthest position.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Coverage {
    /// Every row that wins at some T at or after this time is here; [`i64::MIN`]: every row there is. `None`: nothing is
    /// certain yet.
    pub complete_since_us: Option<i64>,
    /// The offline commit up to which that holds.
    pub offline_commit: Option<i64>,
    /// Per lane the position up to (and with) which its rows are here.
    pub lanes: BTreeMap<String, i64>,
}

impl Coverage {
    /// All history, whatever the commit.
    pub fn whole() -> Self {
        Self { complete_since_us: Some(i64::MIN), ..Self::default() }
    }

    /// Complete for reads at or after this time.
    pub fn since(complete_since_us: i64) -> Self {
        Self { complete_since_us: Some(complete_since_us), ..Self::default() }
    }

    /// Both claims in one.
    pub fn merge(&mut self, claim: &Self) {
        if let Some(claimed_us) = claim.complete_since_us {
            let newer = claim.offline_commit > self.offline_commit;
            let same = claim.offline_commit == self.offline_commit;
            let earlier = self.complete_since_us.is_none_or(|known_us| claimed_us < known_us);
            if newer || self.complete_since_us.is_none() || (same && earlier) {
                self.complete_since_us = Some(claimed_us);
                self.offline_commit = claim.offline_commit;
            }
        }
        for (lane, position) in &claim.lanes {
            let known = self.lanes.entry(lane.clone()).or_insert(*position);
            *known = (*known).max(*position);
        }
    }
}

impl Coverage {
    /// Whether the table alone answers this read, also when it finds nothing.
    ///
    /// Trimming spares what wins with the cut K = T; only a table with all its history answers for another cut.
    pub fn proves(&self, read: ReadAt) -> bool {
        let Some(since_us) = self.complete_since_us else { return false };
        since_us == i64::MIN || (read.known_by_us == read.at_us && read.at_us >= since_us)
    }

    /// The claim that is left once the table was trimmed. [`i64::MIN`] is kept for "never trimmed".
    pub(crate) fn after_trim(&self, trimmed_to_us: Option<i64>) -> Self {
        let mut left = self.clone();
        if let (Some(since_us), Some(trimmed_us)) = (left.complete_since_us, trimmed_to_us) {
            left.complete_since_us = Some(since_us.max(trimmed_us).max(i64::MIN + 1));
        }
        left
    }
}

/// Whether a table may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoadState {
    /// Its first load has not finished: it takes rows and answers no reads.
    Loading,
    /// It answers reads.
    Ready,
}

/// How a table stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableStatus {
    /// Which table.
    pub table: TableId,
    /// Whether it answers reads.
    pub state: LoadState,
    /// What it holds for certain.
    pub coverage: Coverage,
    /// Rows stored. A store that would have to read them all to know may estimate large numbers.
    pub rows: u64,
    /// Bytes that the table takes on disk, or in memory for a store without one; estimated where rows are.
    pub bytes: u64,
}

/// One question: what does this entity's history say at this time?
#[derive(Debug, Clone, Copy)]
pub struct PointRead<'a> {
    /// The entity.
    pub key: &'a KeyBytes,
    /// The time T and the knowledge cut K.
    pub at: ReadAt,
}

/// The row that wins a read. How old it may be is decided by whoever asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Winner {
    /// Its times and tie digest.
    pub order: RowOrder,
    /// What it says.
    pub body: RowBody,
}

/// The answer to a [`PointRead`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The greatest candidate that this table holds.
    pub winner: Option<Winner>,
    /// Whether no other store can know better. If not, the answer is the maximum of this and the offline store's.
    pub proved: bool,
}

/// An answer to a read as known then, and for which other T it is the answer as well, as long as no row is written or erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The answer.
    pub answer: Answer,
    /// The first T for which the table claims to know: an earlier one is not proved.
    pub since_us: i64,
    /// Between the two it is the answer for every T that already sees the winner, and for every one if there is no winner. At
    /// least the microsecond after the T that was asked for.
    pub until_us: i64,
}

impl Span {
    /// Of a store that knows nothing beyond the T that was asked for.
    pub(crate) fn of_instant(answer: Answer, read: &PointRead<'_>) -> Self {
        Self { answer, since_us: read.at.at_us, until_us: read.at.at_us.saturating_add(1) }
    }
}

/// What became of merged rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Merged {
    /// Rows that are now in the table, those that were there before included.
    pub kept: u64,
    /// Rows left out because an erasure covers them.
    pub erased: u64,
}

/// What a trim may remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trim {
    /// Reads at T before this time are no longer proved; rows that win at no T from here on go.
    pub complete_since_us: i64,
    /// Rows with an event time up to (and with) this one go as well, because every read finds them too old to matter.
    /// `None`: no row ever grows too old.
    pub forget_up_to_us: Option<i64>,
}

impl Trim {
    /// Whether every read finds this row too old to matter.
    pub(crate) fn forgets(&self, row: &RowOrder) -> bool {
        self.forget_up_to_us.is_some_and(|up_to_us| row.event_time_us <= up_to_us)
    }
}

/// How long a view's rows stay online.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// The view's TTL and horizon.
    pub lifetime: Lifetime,
    /// For how far back reads at past times are answered online; 0: only live reads.
    pub history_us: i64,
    /// How much longer than needed rows stay, against clocks that differ and work that runs late.
    pub slack_us: i64,
}

impl Retention {
    /// The trim that is due at `now_us`: online history is kept, and rows older than TTL + horizon + history + slack go.
    /// Without a TTL no row is ever too old.
    pub fn trim_at(&self, now_us: i64) -> Trim {
        let complete_since_us = now_us.saturating_sub(self.history_us);
        let readable_for_us = self.lifetime.readable_for_us();
        let forget_up_to_us = readable_for_us
            .map(|readable_us| complete_since_us.saturating_sub(self.slack_us).saturating_sub(readable_us));
        Trim { complete_since_us, forget_up_to_us }
    }

    /// For how long after its event time a row is kept at least; `None`: for ever. A database's own expiry uses this.
    pub fn keep_for_us(&self) -> Option<i64> {
        let readable_us = self.lifetime.readable_for_us()?;
        Some(readable_us.saturating_add(self.history_us).saturating_add(self.slack_us))
    }
}

/// Where a scan goes on. Opaque; valid for the store and table that gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanCursor(pub(crate) Bytes);

/// A part of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanPage {
    /// Rows in the store's own order: an entity's rows stand together, newest first.
    pub rows: Vec<Row>,
    /// Where to go on; `None`: this was the last page.
    pub next: Option<ScanCursor>,
}

/// A table as it stood at one moment, whatever is written or dropped since. The store keeps what it shows for as long as it
/// lives. Its methods block on the disk.
pub trait TableSnapshot: Send {
    /// How the table stood.
    fn status(&self) -> &TableStatus;

    /// The next rows, of about `bytes_max` at most (one row at least), in the store's own order; none at the end. Rows that are
    /// erased by now may be left out.
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::NotAStore`].
    fn next_rows(&mut self, bytes_max: usize) -> Result<Vec<Row>, StoreError>;

    /// The erasures of the table's view, as they are now: every one by which this snapshot left rows out.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn erasures(&self) -> Result<Vec<(KeyBytes, i64)>, StoreError>;
}

/// A store of online rows.
///
/// **Order-free.** A table's state is a function of the set of rows merged and erasures made, whatever their order,
/// partition and repetition. Rows are the same if key and [`RowOrder`] are.
///
/// **Durable.** What returned `Ok` survives a crash of the process and of the machine, if the store is a durable one. The
/// exception is [`OnlineStore::bulk_load`], which promises nothing before [`OnlineStore::finish_load`].
///
/// **Read your writes.** What a call wrote, a later call reads.
///
/// Calls may come from many tasks at once. Batches are bounded by the caller; within one call a store allocates in
/// proportion to what it was given or asked for.
#[async_trait]
pub trait OnlineStore: Send + Sync + fmt::Debug {
    /// A short name of the kind of store, for logs and metrics: `embedded`, `memory`, `scylla`.
    fn kind(&self) -> &'static str;

    /// Makes an empty epoch in state [`LoadState::Loading`]. One that exists is left as it is.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    async fn create_epoch(&self, table: TableId) -> Result<(), StoreError>;

    /// Removes an epoch and all its rows. One that does not exist is no error.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    async fn drop_epoch(&self, table: TableId) -> Result<(), StoreError>;

    /// All tables, by id.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    async fn tables(&self) -> Result<Vec<TableStatus>, StoreError>;

    /// How one table stands.
    ///
    /// # Errors
    /// [`StoreError::UnknownTable`], [`StoreError::Failed`].
    async fn status(&self, table: TableId) -> Result<TableStatus, StoreError>;

    /// What one table holds for certain, as it may be believed at the moment. Costs no more than a read, unlike
    /// [`OnlineStore::status`], which may have to count.
    ///
    /// # Errors
    /// [`StoreError::UnknownTable`], [`StoreError::Failed`].
    async fn coverage(&self, table: TableId) -> Result<Coverage, StoreError>;

    /// Adds rows, durably. Works in both states, so that writers feed an epoch while it loads. A call is applied whole
    /// or refused whole.
    ///
    /// # Errors
    /// [`StoreError::UnknownTable`], [`StoreError::KeyTooLong`], [`StoreError::ValueTooLarge`], [`StoreError::Failed`].
    async fn merge(&self, table: TableId, rows: Vec<Row>) -> Result<Merged, StoreError>;

    /// Adds rows as [`OnlineStore::merge`] does, fast and in any order, and promises nothing before
    /// [`OnlineStore::finish_load`]: until then they may or may not be seen, and a crash may lose them (unless the store
    /// [keeps unfinished loads](OnlineStore::keeps_unfinished_loads)). Loading the same rows again is harmless. Calls may run at
    /// once.
    ///
    /// # Errors
    /// As for [`OnlineStore::merge`].
    async fn bulk_load(&self, table: TableId, rows: Vec<Row>) -> Result<(), StoreError>;

    /// Whether the rows of returned [`OnlineStore::bulk_load`] calls stay, whatever becomes of the process: then a load that
    /// broke off goes on where it stopped. In a store that does not, it starts over, in a new epoch.
    fn keeps_unfinished_loads(&self) -> bool {
        false
    }

    /// Makes every row of earlier, returned [`OnlineStore::bulk_load`] calls durable, then merges the coverage that they
    /// give, and makes the table [`LoadState::Ready`], in one step. On a ready table: the same for a later load.
    ///
    /// # Errors
    /// [`StoreError::UnknownTable`], [`StoreError::Failed`].
    async fn finish_load(&self, table: TableId, coverage: Coverage) -> Result<(), StoreError>;

    /// Says by what the load under way will be trimmed in the end, so that a store may leave out at once what that trim would
    /// remove among the rows that are loaded. Whoever has announced a trim ends the load with
    /// [`OnlineStore::finish_load_trimmed`] and the same one.
    ///
    /// # Errors
    /// [`StoreError::UnknownTable`], [`StoreError::Failed`].
    async fn announce_trim(&self, table: TableId, trim: Trim) -> Result<(), StoreError> {
        let _ = trim;
        self.coverage(table).await.map(drop)
    }

    /// [`OnlineStore::finish_load`], then [`OnlineStore::trim`]. Says how many rows went, those included that were left out
    /// since the trim was announced (a row that was handed in twice may count twice).
    ///
    /// # Errors
    /// [`StoreError::UnknownTable`], [`StoreError::Failed`].
    async fn finish_load_trimmed(&self, table: TableId, coverage: Coverage, trim: Trim) -> Result<u64, StoreError> {
        self.finish_load(table, coverage).await?;
        self.trim(table, trim).await
    }

    /// A table as it is now, for a copy of it; `None` from a store whose database has tools of its own for that.
    fn snapshot(&self, table: TableId) -> Option<Result<Box<dyn TableSnapshot>, StoreError>> {
        let _ = table;
        None
    }

    /// Merges a claim about rows that were merged before, such as the lane positions of a stream's commit.
    ///
    /// # Errors
    /// [`StoreError::UnknownTable`], [`StoreError::Failed`].
    async fn cover(&self, table: TableId, coverage: Coverage) -> Result<(), StoreError>;

    /// Answers many reads, in their order. Keys may repeat and need not exist.
    ///
    /// # Errors
    /// [`StoreError::UnknownTable`], [`StoreError::StillLoading`], [`StoreError::Failed`].
    async fn read(&self, table: TableId, reads: &[PointRead<'_>]) -> Result<Vec<Answer>, StoreError>;

    /// The same at once, without waiting, from a store that can (an embedded one); `None` from one that cannot.
    fn read_now(&self, table: TableId, reads: &[PointRead<'_>]) -> Option<Result<Vec<Answer>, StoreError>> {
        let _ = (table, reads);
        None
    }

    /// As [`OnlineStore::read`], for whoever keeps answers. All reads have the cut K = T.
    ///
    /// # Errors
    /// As for [`OnlineStore::read`].
    async fn read_spans(&self, table: TableId, reads: &[PointRead<'_>]) -> Result<Vec<Span>, StoreError> {
        let answers = self.read(table, reads).await?;
        Ok(answers.into_iter().zip(reads).map(|(answer, read)| Span::of_instant(answer, read)).collect())
    }

    /// The same at once; `None` from a store that cannot.
    fn read_spans_now(&self, table: TableId, reads: &[PointRead<'_>]) -> Option<Result<Vec<Span>, StoreError>> {
        let _ = (table, reads);
        None
    }

    /// Whether the store can answer reads, as cheaply as that can be found out, and the time of its clock in microseconds
    /// since 1970, if it has one of its own.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    async fn ping(&self) -> Result<Option<i64>, StoreError>;

    /// A page of a table's rows, of about `page_bytes_max` at most (one row at least). A row that is there during the
    /// whole scan comes exactly once. Works in both states.
    ///
    /// # Errors
    /// [`StoreError::UnknownTable`], [`StoreError::Failed`].
    async fn scan(
        &self,
        table: TableId,
        cursor: Option<ScanCursor>,
        page_bytes_max: usize,
    ) -> Result<ScanPage, StoreError>;

    /// Raises `complete_since`, then removes what no proved read needs, and says how many rows went. Never lowers it.
    ///
    /// # Errors
    /// [`StoreError::UnknownTable`], [`StoreError::Failed`].
    async fn trim(&self, table: TableId, trim: Trim) -> Result<u64, StoreError>;

    /// Removes an entity's rows with event time up to (and with) `up_to_us`, from every epoch of the view, present and
    /// future, and keeps out those that arrive later. Erasures of one entity merge by maximum. Says how many rows went.
    ///
    /// # Errors
    /// [`StoreError::KeyTooLong`], [`StoreError::Failed`].
    async fn erase(&self, view: Digest, key: &KeyBytes, up_to_us: i64) -> Result<u64, StoreError>;

    /// Up to when an entity is erased in a view.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    async fn erased_up_to(&self, view: Digest, key: &KeyBytes) -> Result<Option<i64>, StoreError>;
}

/// How much of a table [`scan_all`] holds at once.
const SCAN_PAGE_BYTES: usize = 1024 * 1024;

/// Shows every row of a table to `visit`, a page at a time, until it breaks off.
///
/// # Errors
/// As for [`OnlineStore::scan`].
pub async fn scan_all(
    store: &dyn OnlineStore,
    table: TableId,
    mut visit: impl FnMut(Row) -> ControlFlow<()> + Send,
) -> Result<(), StoreError> {
    let mut cursor = None;
    loop {
        let page = store.scan(table, cursor, SCAN_PAGE_BYTES).await?;
        for row in page.rows {
            if visit(row).is_break() {
                return Ok(());
            }
        }
        match page.next {
            Some(next) => cursor = Some(next),
            None => return Ok(()),
        }
    }
}
