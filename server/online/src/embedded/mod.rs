//! The embedded store: one directory, no server, the default.
//!
//! **Engine.** Each table is one redb file (a copy-on-write B-tree), so that dropping an epoch removes a file, sizes are
//! exact, and views write independently. redb was measured against fjall (an LSM tree) on 1 M rows of about 200 bytes,
//! 10 per entity, on 2 shared cores; medians in µs:
//!
//! | | redb | fjall |
//! |---|---|---|
//! | newest row ≤ T of one entity | 1.7–2.4 | 5.6 (one sorted run) to 22 (after ordinary writes) |
//! | the same, 99th percentile | 2.6–7 | 12–69 |
//! | bulk load, rows/s, sort included | 420,000 | 409,000 (one sorted run), 122,000 (ordinary batches) |
//! | size on disk, raw 196 MB | 209 MB | 189 MB (LZ4) |
//! | one synced write | 3–7 ms | 3–4 ms |
//! | synced writes of 1,000 rows at random keys, rows/s | 13,000 | not limited by this |
//!
//! Reads decide what a model waits for, so redb it is. Its price is writes at random keys (each copies the page it
//! changes), and that a table filled by them is about twice as large as one that was loaded.
//!
//! The store around it, on the same rows: a read of one entity 2.5–3.2 µs, of 100 entities 0.25–0.4 ms; 64 writers of single
//! rows 4,000 to 11,000 rows/s, synced; a trim that removes 900,000 of 1 M rows 3–5 s. A load of 2 M rows of twenty numbers,
//! which takes 233 bytes a row and 1.1 times that on disk, costs 1.8 CPU µs a row, reading them from Parquet included; of 5 M
//! rows of which 100,000 stay 0.9 CPU µs a row.
//!
//! **Durability.** A write is acknowledged after its commit was synced to disk, always; writers that wait at the same time
//! share a sync. A process killed at any instant, or a machine that loses power, loses no acknowledged write, and shows no
//! half of a call. Opening after a crash checks the last commit, in time proportional to the file (about 2 s per GB). A file
//! whose disk has failed, or was full, is opened again in the same way while the store is in use; what is served is read again as
//! soon as that is done, and written as soon as there is room.
//!
//! **Memory.** [`EmbeddedOptions::table_cache_bytes`] per table, filled as needed, the operating system's page cache behind
//! it, and while a table is loaded [`EmbeddedOptions::load_memory_bytes`] for sorting.

mod catalogue;
mod directory;
mod keys;
mod load;
mod packed;
mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use async_trait::async_trait;
use eadem_values::Digest;

use crate::{
    Answer, Coverage, KEY_BYTES_MAX, KeyBytes, Merged, OnlineStore, PointRead, Row, ScanCursor, ScanPage, Span,
    StoreError, TableId, TableSnapshot, TableStatus, Trim,
};
use catalogue::Catalogue;
pub use directory::{DirectoryLock, LockInfo};
use directory::{OwnedDirectory, failed, sync_folder};
use load::LoadEnd;
use table::{MetaChange, Table, encode_rows, run_blocking};

/// How an embedded store uses the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbeddedOptions {
    /// The most memory that one table's cache of pages takes.
    pub table_cache_bytes: usize,
    /// How much memory a bulk load of one table takes for sorting before it spills to disk.
    pub load_memory_bytes: usize,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self { table_cache_bytes: 128 * 1024 * 1024, load_memory_bytes: 96 * 1024 * 1024 }
    }
}

/// A store in a directory of this machine. It belongs to one process; see [`EmbeddedStore::owner`] for finding it.
///
/// Its asynchronous methods need a Tokio runtime. Dropping it waits for writes under way.
pub struct EmbeddedStore {
    inner: Arc<Inner>,
}

/// What work that blocks on the disk takes along.
struct Inner {
    // Tables before the directory: the lock goes last.
    tables: RwLock<BTreeMap<TableId, Arc<Table>>>,
    catalogue: Arc<Catalogue>,
    /// Held while the list of tables changes.
    changing_tables: Mutex<()>,
    options: EmbeddedOptions,
    directory: OwnedDirectory,
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore").field("path", &self.path()).finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens the store in a directory, and makes it if it is empty or missing. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError::InUse`] with the owner's address, [`StoreError::FormatTooNew`], [`StoreError::NotAStore`],
    /// [`StoreError::Failed`].
    pub fn open(path: impl AsRef<Path>, options: EmbeddedOptions) -> Result<Self, StoreError> {
        let directory = OwnedDirectory::acquire(path.as_ref())?;
        let catalogue = if directory.is_formatted()? {
            Catalogue::open(&directory.catalogue_path())?
        } else {
            directory.clear_unfinished()?;
            let catalogue = Catalogue::create(&directory.catalogue_path())?;
            directory.write_format()?;
            catalogue
        };
        let catalogue = Arc::new(catalogue);
        let listed = catalogue.tables()?;
        directory.remove_strays(&listed.iter().map(|(_, file_id)| *file_id).collect::<Vec<_>>())?;
        let mut tables = BTreeMap::new();
        for (id, file_id) in listed {
            let path = directory.table_path(file_id);
            let table = Table::open(id, &path, &options, Arc::clone(&catalogue))?;
            tables.insert(id, Arc::new(table));
        }
        let tables = RwLock::new(tables);
        let inner = Inner { tables, catalogue, changing_tables: Mutex::default(), options, directory };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Writes into the lock file where this process's server listens, so that other processes can ask it.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub fn announce(&self, address: &str) -> Result<(), StoreError> {
        self.inner.directory.announce(Some(address))
    }

    /// The process that has the store in this directory open now, with its server's address; `None` if nobody has.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if the lock file cannot be read.
    pub fn owner(path: impl AsRef<Path>) -> Result<Option<LockInfo>, StoreError> {
        directory::owner(path.as_ref())
    }

    /// The store's directory.
    pub fn path(&self) -> &Path {
        self.inner.directory.path()
    }
}

impl Inner {
    fn table(&self, id: TableId) -> Result<Arc<Table>, StoreError> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        tables.get(&id).cloned().ok_or(StoreError::UnknownTable(id))
    }

    fn all_tables(&self) -> Vec<Arc<Table>> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn create_epoch(&self, id: TableId) -> Result<(), StoreError> {
        let _changing = self.changing_tables.lock().unwrap_or_else(PoisonError::into_inner);
        if self.table(id).is_ok() {
            return Ok(());
        }
        let file_id = self.catalogue.next_file_id()?;
        let path = self.directory.table_path(file_id);
        // Left by an attempt that failed before it was entered.
        remove_file_if_there(&path)?;
        let table = Table::create(id, &path, &self.options, Arc::clone(&self.catalogue))?;
        self.sync_tables_folder()?;
        self.catalogue.add_table(id, file_id)?;
        self.tables.write().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::new(table));
        Ok(())
    }

    fn drop_epoch(&self, id: TableId) -> Result<(), StoreError> {
        let _changing = self.changing_tables.lock().unwrap_or_else(PoisonError::into_inner);
        // Struck out first: a crash from here on leaves a stray file, which the next start removes.
        self.catalogue.remove_table(id)?;
        let dropped = self.tables.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        let Some(table) = dropped else { return Ok(()) };
        // Reads under way keep the file until they are done.
        remove_file_if_there(table.path())
    }

    fn sync_tables_folder(&self) -> Result<(), StoreError> {
        let folder = self.directory.tables_path();
        sync_folder(&folder).map_err(|error| failed("syncing", &folder, error))
    }
}

fn remove_file_if_there(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed("removing", path, error)),
        _ => Ok(()),
    }
}

#[async_trait]
impl OnlineStore for EmbeddedStore {
    fn kind(&self) -> &'static str {
        "embedded"
    }

    async fn create_epoch(&self, table: TableId) -> Result<(), StoreError> {
        let inner = Arc::clone(&self.inner);
        run_blocking(move || inner.create_epoch(table)).await
    }

    async fn drop_epoch(&self, table: TableId) -> Result<(), StoreError> {
        let inner = Arc::clone(&self.inner);
        run_blocking(move || inner.drop_epoch(table)).await
    }

    async fn tables(&self) -> Result<Vec<TableStatus>, StoreError> {
        let mut statuses = Vec::new();
        for table in self.inner.all_tables() {
            statuses.push(table.status().await?);
        }
        Ok(statuses)
    }

    async fn status(&self, table: TableId) -> Result<TableStatus, StoreError> {
        self.inner.table(table)?.status().await
    }

    async fn coverage(&self, table: TableId) -> Result<Coverage, StoreError> {
        Ok(self.inner.table(table)?.coverage())
    }

    async fn merge(&self, table: TableId, rows: Vec<Row>) -> Result<Merged, StoreError> {
        let table = self.inner.table(table)?;
        let rows = encode_rows(&rows)?;
        if rows.is_empty() { Ok(Merged::default()) } else { table.merge(rows).await }
    }

    async fn bulk_load(&self, table: TableId, rows: Vec<Row>) -> Result<(), StoreError> {
        let table = self.inner.table(table)?;
        rows.iter().try_for_each(Row::check_limits)?;
        if !table.load().push(&rows) {
            return Ok(());
        }
        drop(rows);
        // One buffer is written at a time; whoever fills the next meanwhile waits here, which bounds the memory.
        let turn = Arc::clone(&table.settling).lock_owned().await;
        run_blocking(move || {
            // Whoever called may be gone before this is done; the rows are still those of calls that have returned.
            let _turn = turn;
            let Some(full) = table.load().take_full() else { return Ok(()) };
            let settled = full.settle();
            table.load().settle(settled)
        })
        .await
    }

    async fn finish_load(&self, table: TableId, coverage: Coverage) -> Result<(), StoreError> {
        self.inner.table(table)?.finish_load(coverage).await.map(|_| ())
    }

    async fn announce_trim(&self, table: TableId, trim: Trim) -> Result<(), StoreError> {
        self.inner.table(table)?.load().announce_trim(trim);
        Ok(())
    }

    async fn finish_load_trimmed(&self, table: TableId, coverage: Coverage, trim: Trim) -> Result<u64, StoreError> {
        let table = self.inner.table(table)?;
        let LoadEnd { trim: through, left_out } = table.finish_load(coverage).await?;
        if through == Some(trim) && !table.has_untrimmed_rows() {
            return Ok(left_out);
        }
        Ok(left_out + table.trim(trim).await?)
    }

    fn snapshot(&self, table: TableId) -> Option<Result<Box<dyn TableSnapshot>, StoreError>> {
        let snapshot = self.inner.table(table).and_then(|table| table.kept_snapshot());
        Some(snapshot.map(|snapshot| Box::new(snapshot) as Box<dyn TableSnapshot>))
    }

    async fn cover(&self, table: TableId, coverage: Coverage) -> Result<(), StoreError> {
        self.inner.table(table)?.change(MetaChange::Claim(coverage)).await
    }

    async fn read(&self, table: TableId, reads: &[PointRead<'_>]) -> Result<Vec<Answer>, StoreError> {
        self.inner.table(table)?.read(reads).await
    }

    fn read_now(&self, table: TableId, reads: &[PointRead<'_>]) -> Option<Result<Vec<Answer>, StoreError>> {
        self.inner.table(table).map_or_else(|error| Some(Err(error)), |table| table.read_now(reads))
    }

    async fn read_spans(&self, table: TableId, reads: &[PointRead<'_>]) -> Result<Vec<Span>, StoreError> {
        self.inner.table(table)?.read_spans(reads).await
    }

    fn read_spans_now(&self, table: TableId, reads: &[PointRead<'_>]) -> Option<Result<Vec<Span>, StoreError>> {
        self.inner.table(table).map_or_else(|error| Some(Err(error)), |table| table.read_spans_now(reads))
    }

    async fn ping(&self) -> Result<Option<i64>, StoreError> {
        if !self.inner.directory.is_formatted()? {
            let what = "the file that says its format is gone".to_owned();
            return Err(StoreError::NotAStore { path: self.path().to_owned(), what });
        }
        for table in self.inner.all_tables() {
            match table.probe().await {
                // It was dropped meanwhile.
                Err(_) if self.inner.table(table.id()).is_err() => {}
                probed => probed?,
            }
        }
        Ok(None)
    }

    async fn scan(
        &self,
        table: TableId,
        cursor: Option<ScanCursor>,
        page_bytes_max: usize,
    ) -> Result<ScanPage, StoreError> {
        self.inner.table(table)?.scan(cursor, page_bytes_max).await
    }

    async fn trim(&self, table: TableId, trim: Trim) -> Result<u64, StoreError> {
        self.inner.table(table)?.trim(trim).await
    }

    async fn erase(&self, view: Digest, key: &KeyBytes, up_to_us: i64) -> Result<u64, StoreError> {
        let key_bytes = key.as_slice().len();
        if key_bytes > KEY_BYTES_MAX {
            return Err(StoreError::KeyTooLong { entity: key.shown(), bytes: key_bytes });
        }
        // Entered first: from here on no writer lets such a row in and no reader lets one out.
        let inner = Arc::clone(&self.inner);
        let entry = key.clone();
        run_blocking(move || inner.catalogue.add_erasure(view, &entry, up_to_us)).await?;
        let mut removed = 0;
        for table in self.inner.all_tables().into_iter().filter(|table| table.id().view == view) {
            removed += table.erase(key.clone(), up_to_us).await?;
        }
        Ok(removed)
    }

    async fn erased_up_to(&self, view: Digest, key: &KeyBytes) -> Result<Option<i64>, StoreError> {
        self.inner.catalogue.erasures_of(view).map_or(Ok(None), |erasures| erasures.up_to_us(key.as_slice()))
    }
}
