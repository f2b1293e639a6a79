//! One online table: a file of its own, a published snapshot for readers, and one thread that writes.
//!
//! All writes of a table go through its writer thread, which commits whatever waits as one transaction. A commit costs a
//! sync of the file (milliseconds), and while it lasts the next group gathers, so many writers share each sync. Readers
//! never wait for it: they use the snapshot of the last commit.
//!
//! redb refuses every write, and every read that its cache does not hold, on a database that met one failure of the disk. So the
//! writer opens the file again, right after a write that failed or when a reader asks for it, and publishes what the last
//! durable commit left. A disk that was full for a moment is thereby not full for ever.

use std::fs::File;
use std::future::ready;
use std::io::Read;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{self, JoinHandle};

use eadem_semantics::{RowOrder, erased, is_candidate, trim_mask, visible_from_us};
use redb::{
    CursorError, Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable, ReadableTableMetadata,
    TableDefinition,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::EmbeddedOptions;
use super::catalogue::{Catalogue, ViewErasures};
use super::directory::failed;
use super::keys;
use super::load::{LoadBuffer, LoadEnd};
use super::packed::PackedRows;
use crate::{
    Answer, Coverage, KeyBytes, LoadState, Merged, PointRead, Row, RowBody, ScanCursor, ScanPage, Span, StoreError,
    TableId, TableSnapshot, TableStatus, Trim, Winner,
};

/// Row key → encoded body.
const ROWS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("rows");
/// One entry, `table`: [`Meta`] as JSON.
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const META_KEY: &str = "table";

/// Requests that may wait for the writer; further ones wait to be queued.
const QUEUED_WRITES_MAX: usize = 256;
/// A commit takes no more waiting requests once it has this many bytes of rows.
const GROUP_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How many row keys a trim looks at between two removals.
const TRIM_STEP_ROWS: usize = 64 * 1024;
/// Beyond so many rows that are newer than a winner nobody looks for the first that will be visible.
const NEWER_ROWS_MAX: usize = 16;

/// Where a load meets rows that are there, so many are inserted one by one before the next run is tried.
const ROWS_AFTER_MEETING: usize = 64;

type RowsSnapshot = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// What a table knows about itself; changed only together with its rows.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Meta {
    state: LoadState,
    claims: Coverage,
    trimmed_to_us: Option<i64>,
}

/// The table as of one commit.
struct Snapshot {
    /// Which opening of the file it is of, from 1.
    opening: u64,
    rows: RowsSnapshot,
    state: LoadState,
    coverage: Coverage,
}

/// A row in the form in which it is stored.
pub(super) struct EncodedRow {
    pub(super) key: Vec<u8>,
    pub(super) body: Vec<u8>,
}

impl EncodedRow {
    pub(super) fn bytes(&self) -> usize {
        self.key.len() + self.body.len()
    }
}

/// Rows checked and encoded, in key order, which is the cheapest to write.
pub(super) fn encode_rows(rows: &[Row]) -> Result<Vec<EncodedRow>, StoreError> {
    rows.iter().try_for_each(Row::check_limits)?;
    let encode = |row: &Row| EncodedRow { key: keys::row_key(&row.key, &row.order), body: row.body.encode() };
    let mut encoded: Vec<EncodedRow> = rows.iter().map(encode).collect();
    encoded.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    Ok(encoded)
}

/// A change of the table's own record.
pub(super) enum MetaChange {
    Claim(Coverage),
    FinishLoad {
        coverage: Coverage,
        /// Up to when the rows of the load were trimmed, if they were.
        trimmed_to_us: Option<i64>,
        /// Which opening of the file the load began in.
        opening: u64,
    },
    TrimTo(i64),
}

enum Write {
    /// Rows, durable before the answer.
    Rows(Vec<EncodedRow>),
    /// Rows of a load in key order, each once; durable with the next commit that is.
    Load(PackedRows),
    Meta(MetaChange),
    Remove(Vec<Vec<u8>>),
    Erase {
        key: KeyBytes,
        up_to_us: i64,
    },
    /// Nothing but what comes before every write: a file that has failed is opened again.
    OpenAgain,
}

/// A part of a trim.
struct TrimStep {
    /// Keys of rows to remove.
    losers: Vec<Vec<u8>>,
    /// The row key to go on after; `None`: the table is done.
    next: Option<Vec<u8>>,
}

struct Request {
    write: Write,
    reply: Reply,
}

/// What the writer thread and the readers share.
struct Core {
    id: TableId,
    path: PathBuf,
    catalogue: Arc<Catalogue>,
    cache_bytes: usize,
    // Before `db`, so that it is dropped first: a snapshot is a reading transaction.
    published: RwLock<Arc<Snapshot>>,
    /// The writer's. `None` while the file could not be opened again.
    db: Mutex<Option<Database>>,
    /// The latest opening of the file in which the disk failed; 0: none.
    failed_opening: AtomicU64,
    /// Whether it may hold rows that no trim has judged together with all others.
    has_untrimmed_rows: AtomicBool,
}

struct Writer {
    requests: mpsc::Sender<Request>,
    thread: JoinHandle<()>,
}

pub(super) struct Table {
    core: Arc<Core>,
    /// Started by the first write, because most tables of a server that only reads never have one.
    writer: Mutex<Option<Writer>>,
    load: Mutex<LoadBuffer>,
    /// Held while a full buffer of a load is sorted and written.
    pub(super) settling: Arc<tokio::sync::Mutex<()>>,
}

impl Table {
    /// Makes the file of a new table. Durable when it returns, except for the file's name in its folder.
    pub(super) fn create(
        id: TableId,
        path: &Path,
        options: &EmbeddedOptions,
        catalogue: Arc<Catalogue>,
    ) -> Result<Self, StoreError> {
        let create = || -> Result<Database, redb::Error> {
            let db = Database::builder().set_cache_size(options.table_cache_bytes).create(path)?;
            let txn = db.begin_write()?;
            txn.open_table(ROWS)?;
            let meta = Meta { state: LoadState::Loading, claims: Coverage::default(), trimmed_to_us: None };
            write_meta(&txn, &meta)?;
            txn.commit()?;
            Ok(db)
        };
        let db = create().map_err(|error| failed("creating", path, error))?;
        Self::with_database(id, path, db, options, catalogue)
    }

    /// Opens a table that is there. After a crash this takes time in proportion to the file, since the last commit is
    /// checked.
    pub(super) fn open(
        id: TableId,
        path: &Path,
        options: &EmbeddedOptions,
        catalogue: Arc<Catalogue>,
    ) -> Result<Self, StoreError> {
        let db = open_database(path, options.table_cache_bytes).map_err(|error| failed("opening", path, error))?;
        Self::with_database(id, path, db, options, catalogue)
    }

    fn with_database(
        id: TableId,
        path: &Path,
        db: Database,
        options: &EmbeddedOptions,
        catalogue: Arc<Catalogue>,
    ) -> Result<Self, StoreError> {
        let snapshot = Snapshot::take(&db, 1).map_err(|error| failed("reading", path, error))?;
        let is_empty = snapshot.rows.is_empty().map_err(|error| failed("reading", path, redb::Error::from(error)))?;
        let published = RwLock::new(Arc::new(snapshot));
        let has_untrimmed_rows = AtomicBool::new(!is_empty);
        let core = Arc::new(Core {
            id,
            path: path.to_owned(),
            catalogue,
            cache_bytes: options.table_cache_bytes,
            published,
            db: Mutex::new(Some(db)),
            failed_opening: AtomicU64::new(0),
            has_untrimmed_rows,
        });
        let load = Mutex::new(LoadBuffer::new(path, options.load_memory_bytes));
        Ok(Self { core, writer: Mutex::default(), load, settling: Arc::default() })
    }

    /// Rows that were handed to a load.
    pub(super) fn load(&self) -> MutexGuard<'_, LoadBuffer> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it may hold rows that no trim has judged together with all others.
    pub(super) fn has_untrimmed_rows(&self) -> bool {
        self.core.has_untrimmed_rows.load(Ordering::Acquire)
    }

    /// Writes what was handed to the load, and makes the table ready.
    pub(super) async fn finish_load(self: &Arc<Self>, coverage: Coverage) -> Result<LoadEnd, StoreError> {
        let gathered = {
            // A buffer on its way to the disk holds rows of calls that have returned.
            let _turn = self.settling.lock().await;
            self.load().take()?
        };
        // Rows of a load are durable with the end of it only: those of before the file was opened again are lost.
        let opening = self.core.snapshot().opening;
        let table = Arc::clone(self);
        let end = run_blocking(move || {
            let is_empty = |snapshot: &Snapshot| snapshot.rows.is_empty().map_err(|e| table.core.reading_failed(e));
            let was_empty = table.core.reading(is_empty)?;
            let end = gathered.load_into(&table)?;
            if !was_empty || end.trim.is_none() {
                table.core.has_untrimmed_rows.store(true, Ordering::Release);
            }
            Ok(end)
        })
        .await?;
        let trimmed_to_us = end.trim.map(|trim| trim.complete_since_us);
        self.change(MetaChange::FinishLoad { coverage, trimmed_to_us, opening }).await?;
        Ok(end)
    }

    pub(super) fn id(&self) -> TableId {
        self.core.id
    }

    pub(super) fn path(&self) -> &Path {
        &self.core.path
    }

    pub(super) async fn merge(&self, rows: Vec<EncodedRow>) -> Result<Merged, StoreError> {
        self.write(Write::Rows(rows)).await
    }

    pub(super) async fn change(&self, change: MetaChange) -> Result<(), StoreError> {
        self.write(Write::Meta(change)).await.map(|_| ())
    }

    pub(super) async fn erase(&self, key: KeyBytes, up_to_us: i64) -> Result<u64, StoreError> {
        Ok(self.write(Write::Erase { key, up_to_us }).await?.erased)
    }

    /// Sends rows of a load on their way, from a thread that may block; gives where the answer will come.
    pub(super) fn load_blocking(
        &self,
        rows: PackedRows,
    ) -> Result<oneshot::Receiver<Result<Merged, StoreError>>, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.requests()?.blocking_send(Request { write: Write::Load(rows), reply }).map_err(|_| StoreError::Closed)?;
        Ok(answer)
    }

    async fn write(&self, write: Write) -> Result<Merged, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.requests()?.send(Request { write, reply }).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    fn requests(&self) -> Result<mpsc::Sender<Request>, StoreError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writer) = writer.as_ref() {
            return Ok(writer.requests.clone());
        }
        let (requests, queue) = mpsc::channel(QUEUED_WRITES_MAX);
        let core = Arc::clone(&self.core);
        let thread = thread::Builder::new()
            .name("eadem-online".to_owned())
            .spawn(move || write_until_closed(&core, queue))
            .map_err(|error| StoreError::failed("starting the writer of an online table", error))?;
        *writer = Some(Writer { requests: requests.clone(), thread });
        Ok(requests)
    }

    /// Has the file opened again if the disk has failed.
    async fn open_again(&self) -> Result<(), StoreError> {
        self.write(Write::OpenAgain).await.map(drop)
    }

    /// Tries something that reads, and once more where the disk had failed and the file could be opened again.
    async fn once_more<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        match attempt().await {
            Err(error) if is_of_disk(&error) => {
                self.open_again().await?;
                attempt().await
            }
            outcome => outcome,
        }
    }

    pub(super) async fn read(&self, reads: &[PointRead<'_>]) -> Result<Vec<Answer>, StoreError> {
        self.once_more(|| ready(self.answers(reads))).await
    }

    /// The same without waiting; `None` where the file has to be opened again first.
    pub(super) fn read_now(&self, reads: &[PointRead<'_>]) -> Option<Result<Vec<Answer>, StoreError>> {
        unless_of_disk(self.answers(reads))
    }

    fn answers(&self, reads: &[PointRead<'_>]) -> Result<Vec<Answer>, StoreError> {
        self.answer_each(reads, |core, snapshot, erasures, range, read| {
            let winner = core.winner(snapshot, read, erasures, range)?;
            Ok(Answer { winner, proved: snapshot.coverage.proves(read.at) })
        })
    }

    pub(super) async fn read_spans(&self, reads: &[PointRead<'_>]) -> Result<Vec<Span>, StoreError> {
        self.once_more(|| ready(self.spans(reads))).await
    }

    /// The same without waiting; `None` where the file has to be opened again first.
    pub(super) fn read_spans_now(&self, reads: &[PointRead<'_>]) -> Option<Result<Vec<Span>, StoreError>> {
        unless_of_disk(self.spans(reads))
    }

    fn spans(&self, reads: &[PointRead<'_>]) -> Result<Vec<Span>, StoreError> {
        self.answer_each(reads, |core, snapshot, erasures, range, read| {
            let winner = core.winner(snapshot, read, erasures, range)?;
            let until_us = core.holds_until_us(snapshot, read, winner.as_ref(), range)?;
            let since_us = snapshot.coverage.complete_since_us.unwrap_or(i64::MAX);
            Ok(Span { answer: Answer { winner, proved: snapshot.coverage.proves(read.at) }, since_us, until_us })
        })
    }

    fn answer_each<T>(
        &self,
        reads: &[PointRead<'_>],
        answer: impl Fn(&Core, &Snapshot, Option<ViewErasures<'_>>, &mut KeyRange, &PointRead<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        self.core.reading(|snapshot| {
            if snapshot.state == LoadState::Loading {
                return Err(StoreError::StillLoading(self.core.id));
            }
            let erasures = self.core.catalogue.erasures_of(self.core.id.view);
            let mut range = KeyRange::default();
            reads.iter().map(|read| answer(&self.core, snapshot, erasures, &mut range, read)).collect()
        })
    }

    /// A page of rows.
    pub(super) async fn scan(
        self: &Arc<Self>,
        cursor: Option<ScanCursor>,
        page_bytes_max: usize,
    ) -> Result<ScanPage, StoreError> {
        self.once_more(|| {
            let (table, cursor) = (Arc::clone(self), cursor.clone());
            let scan = move |snapshot: &Snapshot| table.core.scan(snapshot, cursor.as_ref(), page_bytes_max);
            let core = Arc::clone(&self.core);
            run_blocking(move || core.reading(scan))
        })
        .await
    }

    pub(super) async fn status(&self) -> Result<TableStatus, StoreError> {
        self.once_more(|| ready(self.core.reading(|snapshot| self.core.status(snapshot)))).await
    }

    /// What it holds for certain.
    pub(super) fn coverage(&self) -> Coverage {
        self.core.snapshot().coverage.clone()
    }

    /// Whether what is served can be read: the file, by redb and by itself. A file that has failed is opened again.
    pub(super) async fn probe(self: &Arc<Self>) -> Result<(), StoreError> {
        if self.core.snapshot().state == LoadState::Loading {
            return Ok(());
        }
        if self.core.has_failed() {
            self.open_again().await?;
        }
        self.once_more(|| {
            let core = Arc::clone(&self.core);
            run_blocking(move || core.reading(|snapshot| core.probe(snapshot)))
        })
        .await
    }

    /// The table as it is now, whatever becomes of it.
    pub(super) fn kept_snapshot(&self) -> Result<KeptSnapshot, StoreError> {
        let snapshot = self.core.snapshot();
        let status = self.core.status(&snapshot)?;
        Ok(KeptSnapshot { core: Arc::clone(&self.core), snapshot, status, next: Some(None) })
    }

    /// Raises `complete_since` first, so that no read is proved by rows that are about to go; then removes, step by step,
    /// so that writers get their turn in between.
    ///
    /// What a step decides stays right whatever arrives meanwhile: a row is beaten by one that is there, and the one that
    /// beats it goes only if itself beaten, erased or too old, and then the beaten row's event time is covered as well.
    pub(super) async fn trim(self: &Arc<Self>, trim: Trim) -> Result<u64, StoreError> {
        self.change(MetaChange::TrimTo(trim.complete_since_us)).await?;
        let mut removed = 0;
        let mut after = None;
        loop {
            let look = || {
                let (core, after) = (Arc::clone(&self.core), after.clone());
                run_blocking(move || core.reading(|snapshot| core.trim_step(snapshot, trim, after.as_deref())))
            };
            let TrimStep { losers, next } = self.once_more(look).await?;
            if !losers.is_empty() {
                removed += self.write(Write::Remove(losers)).await?.erased;
            }
            match next {
                Some(next) => after = Some(next),
                None => return Ok(removed),
            }
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Writer { requests, thread }) = writer else { return };
        // Closes the queue; the writer finishes what is in it and leaves the file closed in good order.
        drop(requests);
        if thread.join().is_err() {
            tracing::error!(table = %self.core.id, "the writer of an online table panicked");
        }
    }
}

/// A table as it stood at one moment.
pub(super) struct KeptSnapshot {
    // Before `core`, so that it is dropped first: a snapshot is a reading transaction of the database in there.
    snapshot: Arc<Snapshot>,
    core: Arc<Core>,
    status: TableStatus,
    /// Where to go on, from the beginning if it says nothing; `None` at the end.
    next: Option<Option<ScanCursor>>,
}

impl TableSnapshot for KeptSnapshot {
    fn status(&self) -> &TableStatus {
        &self.status
    }

    fn next_rows(&mut self, bytes_max: usize) -> Result<Vec<Row>, StoreError> {
        let Some(cursor) = &self.next else { return Ok(Vec::new()) };
        let page = self.core.scan(&self.snapshot, cursor.as_ref(), bytes_max)?;
        self.next = page.next.map(Some);
        Ok(page.rows)
    }

    fn erasures(&self) -> Result<Vec<(KeyBytes, i64)>, StoreError> {
        self.core.catalogue.list_erasures(self.core.id.view)
    }
}

/// Runs what blocks on the disk where it may.
pub(super) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(stopped) => Err(StoreError::failed("working on the online store", stopped)),
    }
}

fn open_database(path: &Path, cache_bytes: usize) -> Result<Database, redb::DatabaseError> {
    Database::builder().set_cache_size(cache_bytes).open(path)
}

/// Whether the disk failed, now or before: what was asked may do once the file has been opened again.
fn is_of_disk(error: &StoreError) -> bool {
    let StoreError::Failed { source, .. } = error else { return false };
    matches!(
        source.downcast_ref::<redb::Error>(),
        Some(redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::DatabaseClosed)
    )
}

fn unless_of_disk<T>(outcome: Result<T, StoreError>) -> Option<Result<T, StoreError>> {
    match outcome {
        Err(error) if is_of_disk(&error) => None,
        outcome => Some(outcome),
    }
}

/// What becomes of a load whose file was opened again before its end.
#[derive(Debug, thiserror::Error)]
#[error("the disk failed while the load was under way, and rows of it were lost; load again")]
struct LostLoad;

/// What a database says of which there is none: the file could not be opened again.
#[derive(Debug, thiserror::Error)]
#[error("the disk has failed, and the file could not be opened again; it is tried with every further write")]
struct NotOpen;

/// The bounds of one lookup; kept between lookups for their memory.
#[derive(Default)]
struct KeyRange {
    first: Vec<u8>,
    last: Vec<u8>,
}

impl Core {
    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.published.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads what is published, and notes it if the disk fails.
    fn reading<T>(&self, read: impl FnOnce(&Snapshot) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let snapshot = self.snapshot();
        let outcome = read(&snapshot);
        if let Err(error) = &outcome
            && is_of_disk(error)
        {
            self.failed_opening.fetch_max(snapshot.opening, Ordering::AcqRel);
        }
        outcome
    }

    /// Whether the disk has failed since the file was last opened.
    fn has_failed(&self) -> bool {
        self.failed_opening.load(Ordering::Acquire) >= self.snapshot().opening
    }

    /// Opens the file again, if the disk has failed, and shows readers what the last durable commit left. Only the writer may.
    fn open_if_failed(&self) -> Result<(), StoreError> {
        if !self.has_failed() {
            return Ok(());
        }
        let opening = self.snapshot().opening + 1;
        let mut db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        // Closing leaves the file as a crash would: the next opening goes back to the last commit. Readers of the published
        // snapshot are told that it is closed, and ask for this.
        drop(db.take());
        let opened =
            open_database(&self.path, self.cache_bytes).map_err(|error| failed("opening", &self.path, error))?;
        let snapshot = Snapshot::take(&opened, opening).map_err(|error| failed("reading", &self.path, error))?;
        *self.published.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
        *db = Some(opened);
        tracing::info!(table = %self.id, path = %self.path.display(), "opened again after the disk had failed");
        Ok(())
    }

    /// Asks the file for something small, through redb and beside it: what redb has in memory says nothing about the disk.
    fn probe(&self, snapshot: &Snapshot) -> Result<(), StoreError> {
        snapshot.rows.first().map_err(|error| self.reading_failed(error))?;
        let mut first_byte = [0];
        let read = File::open(&self.path).and_then(|mut file| file.read_exact(&mut first_byte));
        read.map_err(|error| failed("reading", &self.path, error))
    }

    fn reading_failed(&self, error: impl Into<redb::Error>) -> StoreError {
        failed("reading", &self.path, error.into())
    }

    fn damaged(&self, what: &str) -> StoreError {
        StoreError::NotAStore { path: self.path.clone(), what: format!("{what}; load a new epoch of the view") }
    }

    /// Walks from the newest row with event time ≤ T towards older ones, past those not known by K.
    fn winner(
        &self,
        snapshot: &Snapshot,
        read: &PointRead<'_>,
        erasures: Option<ViewErasures<'_>>,
        range: &mut KeyRange,
    ) -> Result<Option<Winner>, StoreError> {
        keys::put_newest_at(&mut range.first, read.key, read.at.at_us);
        keys::put_oldest(&mut range.last, read.key);
        let bounds = range.first.as_slice()..=range.last.as_slice();
        let candidates = snapshot.rows.range::<&[u8]>(bounds).map_err(|error| self.reading_failed(error))?;
        for entry in candidates {
            let (row_key, body) = entry.map_err(|error| self.reading_failed(error))?;
            let (_, order) =
                keys::parse_row_key(row_key.value()).ok_or_else(|| self.damaged("a row's key is damaged"))?;
            if !is_candidate(&order, read.at) {
                continue;
            }
            let erased_up_to_us = match erasures {
                Some(erasures) => erasures.up_to_us(read.key.as_slice())?,
                None => None,
            };
            if erased(order.event_time_us, erased_up_to_us) {
                return Ok(None);
            }
            let body = RowBody::decode(body.value()).ok_or_else(|| self.damaged("a row is damaged"))?;
            return Ok(Some(Winner { order, body }));
        }
        Ok(None)
    }

    /// The first T at which a row that is greater than the winner becomes visible. Few are: what has not happened yet. Beyond
    /// some of them nothing is said.
    fn holds_until_us(
        &self,
        snapshot: &Snapshot,
        read: &PointRead<'_>,
        winner: Option<&Winner>,
        range: &mut KeyRange,
    ) -> Result<i64, StoreError> {
        keys::put_newest_at(&mut range.first, read.key, i64::MAX);
        let bounds = range.first.as_slice()..=range.last.as_slice();
        let newer = snapshot.rows.range::<&[u8]>(bounds).map_err(|error| self.reading_failed(error))?;
        let mut until_us = i64::MAX;
        for (looked_at, entry) in newer.enumerate() {
            let (row_key, _) = entry.map_err(|error| self.reading_failed(error))?;
            let (_, order) =
                keys::parse_row_key(row_key.value()).ok_or_else(|| self.damaged("a row's key is damaged"))?;
            if winner.is_some_and(|winner| order <= winner.order) {
                break;
            }
            if looked_at == NEWER_ROWS_MAX {
                return Ok(read.at.at_us.saturating_add(1));
            }
            // Rows that are erased and no winner are behind it, or would have been it: seen at T, they say nothing of later.
            if !is_candidate(&order, read.at) {
                until_us = until_us.min(visible_from_us(&order));
            }
        }
        Ok(until_us)
    }

    fn status(&self, snapshot: &Snapshot) -> Result<TableStatus, StoreError> {
        let rows = snapshot.rows.len().map_err(|error| self.reading_failed(error))?;
        let file = std::fs::metadata(&self.path).map_err(|error| failed("reading", &self.path, error))?;
        let bytes = bytes_on_disk(&file);
        Ok(TableStatus { table: self.id, state: snapshot.state, coverage: snapshot.coverage.clone(), rows, bytes })
    }

    fn scan(
        &self,
        snapshot: &Snapshot,
        cursor: Option<&ScanCursor>,
        page_bytes_max: usize,
    ) -> Result<ScanPage, StoreError> {
        let mut erasures = ErasuresByEntity::new(self.catalogue.erasures_of(self.id.view));
        let mut page = ScanPage { rows: Vec::new(), next: None };
        let mut page_bytes = 0;
        for entry in
            rows_after(&snapshot.rows, cursor.map(|cursor| &cursor.0[..])).map_err(|e| self.reading_failed(e))?
        {
            let (row_key, body) = entry.map_err(|error| self.reading_failed(error))?;
            if page_bytes >= page_bytes_max.max(1) {
                let last = page.rows.last().map(|row: &Row| keys::row_key(&row.key, &row.order));
                page.next = last.map(|key| ScanCursor(key.into()));
                break;
            }
            let (key, order) =
                keys::parse_row_key(row_key.value()).ok_or_else(|| self.damaged("a row's key is damaged"))?;
            if erased(order.event_time_us, erasures.up_to_us(key)?) {
                continue;
            }
            page_bytes += row_key.value().len() + body.value().len();
            let body = RowBody::decode(body.value()).ok_or_else(|| self.damaged("a row is damaged"))?;
            page.rows.push(Row { key: KeyBytes::new(key.to_vec()), order, body });
        }
        Ok(page)
    }

    /// What to remove among the next entities.
    fn trim_step(&self, snapshot: &Snapshot, trim: Trim, after: Option<&[u8]>) -> Result<TrimStep, StoreError> {
        let mut erasures = ErasuresByEntity::new(self.catalogue.erasures_of(self.id.view));
        let mut losers = Vec::new();
        let mut entity: Vec<u8> = Vec::new();
        let mut orders: Vec<RowOrder> = Vec::new();
        let mut rows_seen = 0;
        let mut end_of_step = None;
        let mut last_key = Vec::new();
        let mut judge = |entity: &[u8], orders: &mut Vec<RowOrder>| -> Result<(), StoreError> {
            let erased_up_to_us = erasures.up_to_us(entity)?;
            let wins = trim_mask(orders, trim.complete_since_us);
            let entity = KeyBytes::new(entity.to_vec());
            for (order, wins) in orders.drain(..).zip(wins) {
                if !wins || trim.forgets(&order) || erased(order.event_time_us, erased_up_to_us) {
                    losers.push(keys::row_key(&entity, &order));
                }
            }
            Ok(())
        };
        for entry in rows_after(&snapshot.rows, after).map_err(|error| self.reading_failed(error))? {
            let (row_key, _) = entry.map_err(|error| self.reading_failed(error))?;
            let (key, order) =
                keys::parse_row_key(row_key.value()).ok_or_else(|| self.damaged("a row's key is damaged"))?;
            if key != entity {
                judge(&entity, &mut orders)?;
                if rows_seen >= TRIM_STEP_ROWS {
                    end_of_step = Some(last_key.clone());
                    break;
                }
                entity = key.to_vec();
            }
            orders.push(order);
            rows_seen += 1;
            last_key.clear();
            last_key.extend_from_slice(row_key.value());
        }
        judge(&entity, &mut orders)?;
        Ok(TrimStep { losers, next: end_of_step })
    }

    /// Applies a group of writes as one transaction, and shows the result to readers.
    fn commit(&self, writes: Vec<Write>) -> Result<Vec<Merged>, StoreError> {
        if writes.iter().all(|write| matches!(write, Write::OpenAgain)) {
            return Ok(vec![Merged::default(); writes.len()]);
        }
        let db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(db) = db.as_ref() else { return Err(failed("writing", &self.path, NotOpen)) };
        self.commit_to(db, writes).map_err(|error| failed("writing", &self.path, error))
    }

    fn commit_to(&self, db: &Database, writes: Vec<Write>) -> Result<Vec<Merged>, redb::Error> {
        let durable = writes.iter().any(|write| !matches!(write, Write::Load(_)));
        let mut txn = db.begin_write()?;
        if !durable {
            txn.set_durability(Durability::None)?;
        }
        let mut outcomes = Vec::with_capacity(writes.len());
        for write in writes {
            outcomes.push(self.apply(&txn, write)?);
        }
        txn.commit()?;
        let snapshot = Arc::new(Snapshot::take(db, self.snapshot().opening)?);
        *self.published.write().unwrap_or_else(PoisonError::into_inner) = snapshot;
        Ok(outcomes)
    }

    fn apply(&self, txn: &redb::WriteTransaction, write: Write) -> Result<Merged, redb::Error> {
        match write {
            Write::Rows(rows) => self.insert(txn, rows),
            Write::Load(rows) => self.insert_sorted(txn, &rows),
            Write::Meta(change) => apply_meta_change(txn, change).map(|()| Merged::default()),
            Write::Remove(row_keys) => remove(txn, &row_keys),
            Write::Erase { key, up_to_us } => erase(txn, &key, up_to_us),
            Write::OpenAgain => Ok(Merged::default()),
        }
    }

    fn insert(&self, txn: &redb::WriteTransaction, rows: Vec<EncodedRow>) -> Result<Merged, redb::Error> {
        self.has_untrimmed_rows.store(true, Ordering::Release);
        let mut erasures = ErasuresByEntity::new(self.catalogue.erasures_of(self.id.view));
        let mut table = txn.open_table(ROWS)?;
        let mut merged = Merged::default();
        for EncodedRow { key, body } in rows {
            insert_one(&mut table, &key, &body, &mut erasures, &mut merged)?;
        }
        Ok(merged)
    }

    /// Rows in key order, each once. Where none that is there stands between them they go in as whole pages.
    fn insert_sorted(&self, txn: &redb::WriteTransaction, rows: &PackedRows) -> Result<Merged, redb::Error> {
        let mut erasures = ErasuresByEntity::new(self.catalogue.erasures_of(self.id.view));
        let mut table = txn.open_table(ROWS)?;
        let mut merged = Merged::default();
        let mut next = 0;
        while next < rows.len() {
            next = insert_run(&mut table, rows, next, &mut erasures, &mut merged)?;
            let end = rows.len().min(next + ROWS_AFTER_MEETING);
            for row in next..end {
                let (key, body) = rows.get(row);
                insert_one(&mut table, key, body, &mut erasures, &mut merged)?;
            }
            next = end;
        }
        Ok(merged)
    }
}

type RowsTable<'a> = redb::Table<'a, &'static [u8], &'static [u8]>;

/// Inserts a row wherever it belongs, unless it is erased.
fn insert_one(
    table: &mut RowsTable<'_>,
    key: &[u8],
    body: &[u8],
    erasures: &mut ErasuresByEntity<'_>,
    merged: &mut Merged,
) -> Result<(), redb::Error> {
    if is_erased(key, erasures)? {
        merged.erased += 1;
        return Ok(());
    }
    let stored_beats_it = {
        let stored = table.insert(key, body)?;
        stored.map(|stored| stored.value().to_vec()).filter(|stored| beats(stored, body))
    };
    if let Some(stored) = stored_beats_it {
        table.insert(key, stored.as_slice())?;
    }
    merged.kept += 1;
    Ok(())
}

/// Inserts sorted rows from `first` on through one gap between rows that are there. Gives the first row that does not fit.
fn insert_run(
    table: &mut RowsTable<'_>,
    rows: &PackedRows,
    first: usize,
    erasures: &mut ErasuresByEntity<'_>,
    merged: &mut Merged,
) -> Result<usize, redb::Error> {
    let mut cursor = table.upper_bound_mut(Bound::Included(rows.get(first).0))?;
    let mut next = first;
    while next < rows.len() {
        let (key, body) = rows.get(next);
        if is_erased(key, erasures)? {
            merged.erased += 1;
        } else {
            match cursor.insert_before(key, body) {
                Ok(()) => merged.kept += 1,
                Err(CursorError::UnorderedKey) => break,
                Err(error) => return Err(error.into()),
            }
        }
        next += 1;
    }
    cursor.close()?;
    Ok(next)
}

/// Which of two bodies of one row stays; see [`RowBody::merge_order`].
pub(super) fn beats(stored: &[u8], arriving: &[u8]) -> bool {
    if stored == arriving {
        return false;
    }
    match (RowBody::decode(stored), RowBody::decode(arriving)) {
        (Some(stored), Some(arriving)) => stored.merge_order(&arriving).is_gt(),
        // A damaged body loses against a sound one.
        (stored, _) => stored.is_some(),
    }
}

fn is_erased(row_key: &[u8], erasures: &mut ErasuresByEntity<'_>) -> Result<bool, redb::Error> {
    if erasures.view.is_none() {
        return Ok(false);
    }
    let Some((key, order)) = keys::parse_row_key(row_key) else { return Ok(false) };
    let up_to_us = erasures.up_to_us(key).map_err(|error| redb::Error::Io(std::io::Error::other(error)))?;
    Ok(erased(order.event_time_us, up_to_us))
}

fn remove(txn: &redb::WriteTransaction, row_keys: &[Vec<u8>]) -> Result<Merged, redb::Error> {
    let mut table = txn.open_table(ROWS)?;
    let mut removed = Merged::default();
    for key in row_keys {
        if table.remove(key.as_slice())?.is_some() {
            removed.erased += 1;
        }
    }
    Ok(removed)
}

fn erase(txn: &redb::WriteTransaction, key: &KeyBytes, up_to_us: i64) -> Result<Merged, redb::Error> {
    let mut table = txn.open_table(ROWS)?;
    let mut range = KeyRange::default();
    keys::put_newest_at(&mut range.first, key, up_to_us);
    keys::put_oldest(&mut range.last, key);
    let bounds = range.first.as_slice()..=range.last.as_slice();
    let mut removed = Merged::default();
    for entry in table.extract_from_if::<&[u8], _>(bounds, |_, _| true)? {
        entry?;
        removed.erased += 1;
    }
    Ok(removed)
}

fn apply_meta_change(txn: &redb::WriteTransaction, change: MetaChange) -> Result<(), redb::Error> {
    let mut meta = {
        let table = txn.open_table(META)?;
        let stored = table.get(META_KEY)?;
        parse_meta(stored.as_ref().map(|stored| stored.value()))?
    };
    match change {
        MetaChange::Claim(claim) => meta.claims.merge(&claim),
        MetaChange::FinishLoad { coverage, trimmed_to_us, .. } => {
            meta.claims.merge(&coverage);
            meta.state = LoadState::Ready;
            meta.trimmed_to_us = meta.trimmed_to_us.max(trimmed_to_us);
        }
        MetaChange::TrimTo(complete_since_us) => {
            meta.trimmed_to_us = meta.trimmed_to_us.max(Some(complete_since_us));
        }
    }
    write_meta(txn, &meta)
}

fn write_meta(txn: &redb::WriteTransaction, meta: &Meta) -> Result<(), redb::Error> {
    let text = serde_json::to_vec(meta).map_err(|error| redb::Error::Io(error.into()))?;
    txn.open_table(META)?.insert(META_KEY, text.as_slice())?;
    Ok(())
}

fn parse_meta(stored: Option<&[u8]>) -> Result<Meta, redb::Error> {
    let text = stored.ok_or_else(|| redb::Error::Corrupted("the table's own record is missing".to_owned()))?;
    serde_json::from_slice(text)
        .map_err(|error| redb::Error::Corrupted(format!("the table's own record is unreadable: {error}")))
}

impl Snapshot {
    fn take(db: &Database, opening: u64) -> Result<Self, redb::Error> {
        let txn = db.begin_read()?;
        let meta = txn.open_table(META)?;
        let Meta { state, claims, trimmed_to_us } = parse_meta(meta.get(META_KEY)?.as_ref().map(|m| m.value()))?;
        Ok(Self { opening, rows: txn.open_table(ROWS)?, state, coverage: claims.after_trim(trimmed_to_us) })
    }
}

type RowRange = redb::Range<'static, &'static [u8], &'static [u8]>;

fn rows_after(rows: &RowsSnapshot, after: Option<&[u8]>) -> Result<RowRange, redb::StorageError> {
    use std::ops::Bound::{Excluded, Unbounded};
    match after {
        Some(after) => rows.range::<&[u8]>((Excluded(after), Unbounded)),
        None => rows.range::<&[u8]>(..),
    }
}

/// Erasures of the entity at hand, looked up once for all its rows.
struct ErasuresByEntity<'a> {
    view: Option<ViewErasures<'a>>,
    entity: Vec<u8>,
    up_to_us: Option<i64>,
    looked_up: bool,
}

impl<'a> ErasuresByEntity<'a> {
    fn new(view: Option<ViewErasures<'a>>) -> Self {
        Self { view, entity: Vec::new(), up_to_us: None, looked_up: false }
    }

    fn up_to_us(&mut self, entity: &[u8]) -> Result<Option<i64>, StoreError> {
        let Some(view) = self.view else { return Ok(None) };
        if !self.looked_up || self.entity != entity {
            self.up_to_us = view.up_to_us(entity)?;
            self.entity = entity.to_vec();
            self.looked_up = true;
        }
        Ok(self.up_to_us)
    }
}

/// What a file really takes: redb makes files longer ahead of need, and leaves the rest a hole.
#[cfg(unix)]
fn bytes_on_disk(file: &std::fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    file.blocks() * 512
}

#[cfg(not(unix))]
fn bytes_on_disk(file: &std::fs::Metadata) -> u64 {
    file.len()
}

/// The writer thread: takes what waits, commits it as one, answers.
fn write_until_closed(core: &Core, mut queue: mpsc::Receiver<Request>) {
    while let Some(first) = queue.blocking_recv() {
        let mut group = vec![first];
        let mut group_bytes = group[0].write.bytes();
        while group_bytes < GROUP_BYTES_MAX
            && group.len() < QUEUED_WRITES_MAX
            && let Ok(next) = queue.try_recv()
        {
            group_bytes += next.write.bytes();
            group.push(next);
        }
        let opened = core.open_if_failed();
        let (writes, replies) = without_lost_loads(core, group);
        // Whoever asked may have gone meanwhile; its write stands all the same.
        match opened.and_then(|()| core.commit(writes)) {
            Ok(outcomes) => {
                replies.into_iter().zip(outcomes).for_each(|(reply, outcome)| drop(reply.send(Ok(outcome))))
            }
            Err(error) => {
                if is_of_disk(&error) {
                    core.failed_opening.fetch_max(core.snapshot().opening, Ordering::AcqRel);
                }
                replies.into_iter().for_each(|reply| drop(reply.send(Err(error.clone()))));
                // At once, so that reads need not wait for the next write.
                if let Err(error) = core.open_if_failed() {
                    tracing::warn!(table = %core.id, %error, "the disk has failed; the file is not open");
                }
            }
        }
    }
}

type Reply = oneshot::Sender<Result<Merged, StoreError>>;

/// The writes of a group. Ends of loads that began before the file was opened again are refused.
fn without_lost_loads(core: &Core, group: Vec<Request>) -> (Vec<Write>, Vec<Reply>) {
    let opening = core.snapshot().opening;
    let (mut writes, mut replies) = (Vec::with_capacity(group.len()), Vec::with_capacity(group.len()));
    for Request { write, reply } in group {
        if matches!(&write, Write::Meta(MetaChange::FinishLoad { opening: began, .. }) if *began != opening) {
            drop(reply.send(Err(failed("loading", &core.path, LostLoad))));
        } else {
            writes.push(write);
            replies.push(reply);
        }
    }
    (writes, replies)
}

impl Write {
    fn bytes(&self) -> usize {
        match self {
            Self::Rows(rows) => rows.iter().map(EncodedRow::bytes).sum(),
            Self::Load(rows) => rows.bytes(),
            Self::Remove(row_keys) => row_keys.iter().map(Vec::len).sum(),
            Self::Meta(_) | Self::Erase { .. } | Self::OpenAgain => 0,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;
    use eadem_values::{Digest, TieDigest};

    use super::*;

    fn new_table(folder: &Path) -> Arc<Table> {
        let catalogue = Arc::new(Catalogue::create(&folder.join("catalogue.redb")).unwrap());
        let id = TableId { view: Digest::of(b"view"), epoch: 1 };
        Arc::new(Table::create(id, &folder.join("1.redb"), &EmbeddedOptions::default(), catalogue).unwrap())
    }

    fn row(time_us: i64) -> Row {
        let order = RowOrder { event_time_us: time_us, known_at_us: time_us, tie: TieDigest::from_bytes([0; 16]) };
        Row { key: KeyBytes::new(b"entity".to_vec()), order, body: RowBody::of_values(Bytes::from_static(b"values")) }
    }

    async fn load(table: &Table, time_us: i64) {
        let mut rows = PackedRows::default();
        rows.push_row(&row(time_us));
        table.write(Write::Load(rows)).await.unwrap();
    }

    async fn finish(table: &Table, opening: u64) -> Result<(), StoreError> {
        table.change(MetaChange::FinishLoad { coverage: Coverage::whole(), trimmed_to_us: None, opening }).await
    }

    #[tokio::test]
    async fn a_load_during_which_the_disk_failed_does_not_end_well() {
        let folder = tempfile::tempdir().unwrap();
        let table = new_table(folder.path());
        load(&table, 1).await;
        table.core.failed_opening.store(1, Ordering::Release);
        load(&table, 2).await;
        // Whatever a failure of the disk has left of the first row.
        let refused = finish(&table, 1).await.unwrap_err().to_string();
        assert!(refused.contains("load again"), "{refused}");
        assert_eq!(table.status().await.unwrap().state, LoadState::Loading);
        // Loaded again it is whole.
        load(&table, 1).await;
        finish(&table, 2).await.unwrap();
        assert_eq!(table.status().await.unwrap().rows, 2);
    }

    #[tokio::test]
    async fn what_reads_a_closed_file_has_it_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let table = new_table(folder.path());
        table.merge(encode_rows(&[row(1)]).unwrap()).await.unwrap();
        finish(&table, 1).await.unwrap();
        drop(table.core.db.lock().unwrap().take());
        let entity = row(1).key;
        let reads = [PointRead { key: &entity, at: eadem_semantics::ReadAt::as_known_then(9) }];
        assert!(table.read_now(&reads).is_none(), "nothing can be read at once");
        assert!(table.read(&reads).await.unwrap()[0].winner.is_some());
        assert!(table.read_now(&reads).unwrap().unwrap()[0].proved);
        table.probe().await.unwrap();
        std::fs::remove_file(table.path()).unwrap();
        assert!(table.probe().await.is_err(), "a file that is gone cannot be read");
    }
}
