//! Erasures: rows that are gone for readers and writers at once, and taken out of the files by a job.
//!
//! Who may be erased up to when, somebody else knows ([`ErasureLedger`]). Every reader and writer of tables asks. Of an entity
//! all rows up to an instant go, so a reader may leave them out before or after it chooses the winner: what the winner beats
//! lies before it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch};
use arrow_schema::DataType as ArrowType;
use async_trait::async_trait;
use chrono::Utc;
use deltalake_core::kernel::{Action, Add};
use deltalake_core::protocol::{DeltaOperation, SaveMode};
use eadem_semantics::erased;
use eadem_values::{EntityKey, KeyType, KeyValue};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt};
use serde_json::Value as Json;

use crate::backfill::Cancel;
use crate::commit::{Base, Change, Committed, LiveFile, Proposal, adds_of, commit_once, live_files};
use crate::error::OfflineError;
use crate::lanes::{LaneChange, describe, read_lane_log};
use crate::ledger::LedgerError;
use crate::location::Location;
use crate::partition::PartitionWriter;
use crate::schema::COLUMN_EVENT_TIME;
use crate::table::{DataFile, ViewTable, load, open_log};

const INFO_ROWS: &str = "eadem.rowsErased";
const INFO_FILES: &str = "eadem.filesRewritten";
const INFO_BYTES: &str = "eadem.bytesRewritten";
const DATA_EXTENSION: &str = ".parquet";
const LOG_FOLDER: &str = "_delta_log";

/// Bytes of kept rows that are held before they are written.
const BUFFERED_BYTES_MAX: usize = 256 << 20;

/// The erasures of one entity type, at one moment.
pub trait ErasedEntities: Send + Sync + fmt::Debug {
    /// Up to when (and with) the rows of an entity are erased, in microseconds; `None` if none are.
    fn up_to_us(&self, key: &EntityKey) -> Option<i64>;

    /// The latest such instant of any entity.
    fn latest_us(&self) -> i64;

    /// The join keys of the entity type, in declared order.
    fn keys(&self) -> &[(String, KeyType)];
}

/// Who knows what is erased.
#[async_trait]
pub trait ErasureLedger: Send + Sync + fmt::Debug {
    /// The erasures of a view's entity type, `name@version`, as this process knows them; `None` if there are none. What others
    /// have erased a moment ago need not be among them unless `now` is set.
    ///
    /// # Errors
    /// The message says why it cannot be told; then nothing is read or written.
    async fn of_view(&self, view: &str, now: bool) -> Result<Option<Arc<dyn ErasedEntities>>, LedgerError>;
}

/// The erasures of a view's entity type, as readers and writers apply them.
#[derive(Debug, Clone)]
pub(crate) struct ErasedRows(Arc<dyn ErasedEntities>);

impl ErasedRows {
    /// What is erased of a view's entity type now; `None` if nothing is.
    pub(crate) async fn of_view(
        ledger: Option<&Arc<dyn ErasureLedger>>,
        view: &str,
        now: bool,
    ) -> Result<Option<Self>, OfflineError> {
        match ledger {
            None => Ok(None),
            Some(ledger) => Ok(ledger.of_view(view, now).await?.map(Self)),
        }
    }

    /// Whether the file can hold an erased row, by its times.
    fn may_be_in(&self, file: &DataFile) -> bool {
        file.event_time_us.is_none_or(|(earliest, _)| earliest <= self.0.latest_us())
    }

    /// Whether a row of this entity and time is erased.
    pub(crate) fn takes(&self, key: &EntityKey, event_time_us: i64) -> bool {
        erased(event_time_us, self.0.up_to_us(key))
    }

    /// Which rows stay, of these columns; `None`: all of them.
    ///
    /// # Errors
    /// Columns of other types than keys and times have.
    pub(crate) fn staying(
        &self,
        keys: &[ArrayRef],
        event_times: &ArrayRef,
    ) -> Result<Option<BooleanArray>, OfflineError> {
        let columns: Vec<ArrayRef> = keys
            .iter()
            .map(|column| match column.data_type() {
                ArrowType::Int64 | ArrowType::Utf8 => Ok(column.clone()),
                _ => arrow_cast::cast(column, &ArrowType::Utf8),
            })
            .collect::<Result<_, _>>()?;
        let times = event_times.as_primitive::<TimestampMicrosecondType>();
        let part = |column: &ArrayRef, row: usize| match column.data_type() {
            ArrowType::Int64 => KeyValue::Int64(column.as_primitive::<Int64Type>().value(row)),
            _ => KeyValue::Utf8(column.as_string::<i32>().value(row).to_owned()),
        };
        let (mut last, mut all_stay): (Option<(EntityKey, Option<i64>)>, bool) = (None, true);
        let mut stays = Vec::with_capacity(times.len());
        for row in 0..times.len() {
            let key = EntityKey(columns.iter().map(|column| part(column, row)).collect());
            // Rows of one entity mostly lie together.
            let up_to_us = match &last {
                Some((known, up_to_us)) if *known == key => *up_to_us,
                _ => self.0.up_to_us(&key),
            };
            last = Some((key, up_to_us));
            let goes = erased(times.value(row), up_to_us);
            all_stay &= !goes;
            stays.push(!goes);
        }
        Ok((!all_stay).then(|| BooleanArray::from(stays)))
    }

    /// The same of a batch with columns of the table's names.
    pub(crate) fn staying_in(&self, batch: &RecordBatch) -> Result<Option<BooleanArray>, OfflineError> {
        let column = |name: &str| Ok::<_, OfflineError>(batch.column(batch.schema().index_of(name)?).clone());
        let keys = self.0.keys().iter().map(|(name, _)| column(name)).collect::<Result<Vec<_>, _>>()?;
        self.staying(&keys, &column(COLUMN_EVENT_TIME)?)
    }

    /// The batch without erased rows, and how many these were.
    pub(crate) fn without(&self, batch: RecordBatch) -> Result<(RecordBatch, u64), OfflineError> {
        match self.staying_in(&batch)? {
            None => Ok((batch, 0)),
            Some(stays) => {
                let rows = batch.num_rows();
                let kept = arrow_select::filter::filter_record_batch(&batch, &stays)?;
                let gone = (rows - kept.num_rows()) as u64;
                Ok((kept, gone))
            }
        }
    }

    /// Whether a row is erased of which quarantine keeps this. A row of an erased entity whose time cannot be told goes as well;
    /// one that names no entity stays.
    pub(crate) fn takes_kept(&self, inputs: &str) -> bool {
        let Ok(kept) = serde_json::from_str::<Json>(inputs) else { return false };
        let part = |(name, key_type): &(String, KeyType)| KeyValue::from_json(name, *key_type, &kept["keys"][name]);
        let Ok(key) = self.0.keys().iter().map(part).collect::<Result<Vec<_>, _>>() else { return false };
        let Some(up_to_us) = self.0.up_to_us(&EntityKey(key)) else { return false };
        let time_us = kept["event_time"].as_str().and_then(|text| eadem_values::parse_timestamp(text).ok());
        time_us.is_none_or(|time_us| time_us <= up_to_us)
    }
}

impl ViewTable {
    /// What is erased of the view's entity type, for readers.
    pub(crate) async fn erased(&self) -> Result<Option<ErasedRows>, OfflineError> {
        ErasedRows::of_view(self.erasures.as_ref(), self.view_id(), false).await
    }

    /// What is erased of it by now, by whichever process: for writers.
    pub(crate) async fn erased_now(&self) -> Result<Option<ErasedRows>, OfflineError> {
        ErasedRows::of_view(self.erasures.as_ref(), self.view_id(), true).await
    }

    /// The names of keys and event time: what tells whether a row is erased.
    fn deciding_columns(&self) -> Vec<String> {
        let mut names = self.key_names();
        names.push(COLUMN_EVENT_TIME.to_owned());
        names
    }
}

/// An erasure to carry out in the table of one view. The same job again resumes it, and never commits twice.
#[derive(Clone)]
pub struct Erasure {
    /// The job's id.
    pub job: String,
    /// The table.
    pub table: ViewTable,
    /// Stops the job between batches of rows.
    pub cancel: Cancel,
}

/// What an erasure did to the files of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErasureReport {
    /// The version of the table that it made; `None`: there was nothing to take out.
    pub version: Option<u64>,
    /// Rows that were taken out.
    pub rows: u64,
    /// Files that were written again, or went whole.
    pub files_rewritten: u64,
    /// Their bytes before.
    pub bytes_rewritten: u64,
}

impl ErasureReport {
    /// What the commit says of itself; nothing if there was none.
    pub(crate) fn of(committed: Option<Committed>) -> Self {
        let Some(committed) = committed else { return Self::default() };
        let count = |name: &str| committed.info[name].as_u64().unwrap_or_default();
        Self {
            version: Some(committed.version),
            rows: count(INFO_ROWS),
            files_rewritten: count(INFO_FILES),
            bytes_rewritten: count(INFO_BYTES),
        }
    }
}

/// Files that are written again without their erased rows, on their way into one commit.
#[derive(Default)]
pub(crate) struct RewrittenFiles {
    actions: Vec<Action>,
    rows: u64,
    files: u64,
    bytes: u64,
}

impl RewrittenFiles {
    /// So many rows go from this file; the others stand in `kept`.
    pub(crate) fn add(&mut self, file: &LiveFile, rows: u64, kept: Vec<Add>) {
        self.rows += rows;
        self.files += 1;
        self.bytes += file.file.bytes;
        self.actions.push(Action::Remove(file.remove(true, Utc::now().timestamp_millis())));
        self.actions.extend(kept.into_iter().map(Action::Add));
    }

    /// Whether there is nothing to commit.
    pub(crate) fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }

    /// The commit, which tells what it did besides what `info` says.
    pub(crate) fn into_change(self, mut info: Vec<(String, Json)>) -> Change {
        info.push((INFO_ROWS.to_owned(), self.rows.into()));
        info.push((INFO_FILES.to_owned(), self.files.into()));
        info.push((INFO_BYTES.to_owned(), self.bytes.into()));
        let operation = DeltaOperation::Write { mode: SaveMode::Overwrite, partition_by: None, predicate: None };
        Change { actions: self.actions, info, operation }
    }
}

/// Files that hold erased rows and are in no current version.
#[derive(Debug, Clone)]
pub struct DoomedFiles {
    location: Location,
    files: Vec<ObjectMeta>,
    /// Relative to the table, as recipes name them.
    pub paths: BTreeSet<String>,
}

impl DoomedFiles {
    /// The data files below `location` that `holds_erased` says so of, without those that are in the current version.
    pub(crate) async fn find(
        location: &Location,
        cancel: &Cancel,
        mut holds_erased: impl AsyncFnMut(&DataFile) -> Result<bool, OfflineError>,
    ) -> Result<Self, OfflineError> {
        // First what is there, then what is needed: what is committed in between is needed.
        let listed: Vec<ObjectMeta> = location.store.list(Some(&location.path)).try_collect().await?;
        let current = current_paths(location).await?;
        let mut doomed = Self { location: location.clone(), files: Vec::new(), paths: BTreeSet::new() };
        for meta in listed {
            let Some(path) = relative_to(location, &meta.location) else { continue };
            let is_data = path.ends_with(DATA_EXTENSION) && !path.starts_with(LOG_FOLDER);
            if !is_data || current.contains(&path) {
                continue;
            }
            if cancel.is_cancelled() {
                return Err(OfflineError::Cancelled);
            }
            let file = DataFile { path: path.clone(), bytes: meta.size, event_time_us: None };
            let holds = match holds_erased(&file).await {
                Ok(holds) => holds,
                // Somebody has cleared it away.
                Err(_) if !is_there(location, &meta.location).await? => false,
                Err(error) => return Err(error),
            };
            if holds {
                doomed.paths.insert(path);
                doomed.files.push(meta);
            }
        }
        Ok(doomed)
    }

    /// How many files these are.
    pub fn count(&self) -> usize {
        self.files.len()
    }

    /// All of their bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// Deletes them. One that is gone already is as good, and one that a job has committed meanwhile stays: it takes another
    /// pass.
    ///
    /// # Errors
    /// A store that refuses, a log that cannot be read.
    pub async fn delete(&self) -> Result<(), OfflineError> {
        let location = &self.location;
        let current = current_paths(location).await?;
        for file in &self.files {
            let is_current = relative_to(location, &file.location).is_some_and(|path| current.contains(&path));
            if is_current {
                continue;
            }
            match location.store.delete(&file.location).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// The files of the current version of the table at a location.
async fn current_paths(location: &Location) -> Result<BTreeSet<String>, OfflineError> {
    let (_, log_store) = open_log(location);
    let Some(table) = load(location, &log_store).await? else { return Ok(BTreeSet::new()) };
    Ok(live_files(&table, location)?.into_iter().map(|live| live.file.path).collect())
}

async fn is_there(location: &Location, path: &Path) -> Result<bool, OfflineError> {
    match location.store.head(path).await {
        Ok(_) => Ok(true),
        Err(object_store::Error::NotFound { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What becomes of one file.
#[derive(Debug, Clone)]
enum Effect {
    Stays,
    /// So many rows go; the others stand in these files.
    Goes {
        rows: u64,
        kept: Vec<Add>,
    },
}

/// Takes the rows that are erased by now out of the table's current version.
///
/// # Errors
/// A table that cannot be read, a full disk, cancellation. The table is then as it was.
pub async fn erase_rows(erasure: &Erasure) -> Result<ErasureReport, OfflineError> {
    let table = &erasure.table;
    let Some(erased) = table.erased_now().await? else { return Ok(ErasureReport::default()) };
    let Some(loaded) = table.load_with_rows().await? else { return Ok(ErasureReport::default()) };
    let mut proposal = Erased { erasure, erased, known: BTreeMap::new() };
    let committed = commit_once(&table.location, &table.log_store, loaded, &erasure.job, &mut proposal).await?;
    Ok(ErasureReport::of(committed))
}

/// The data files of the table's folder that hold erased rows although no reader of the current version needs them: those
/// that [`erase_rows`] has replaced, and those of earlier versions and of jobs that broke off.
///
/// # Errors
/// A folder that cannot be listed, a file that cannot be read, cancellation.
pub async fn doomed_files(erasure: &Erasure) -> Result<Option<DoomedFiles>, OfflineError> {
    let table = &erasure.table;
    let Some(erased) = table.erased_now().await? else { return Ok(None) };
    let holds_erased = async |file: &DataFile| table.holds_erased(file, &erased).await;
    DoomedFiles::find(&table.location, &erasure.cancel, holds_erased).await.map(Some)
}

fn relative_to(location: &Location, path: &Path) -> Option<String> {
    let parts: Vec<String> = path.prefix_match(&location.path)?.map(|part| part.as_ref().to_owned()).collect();
    Some(parts.join("/"))
}

impl ViewTable {
    async fn holds_erased(&self, file: &DataFile, erased: &ErasedRows) -> Result<bool, OfflineError> {
        let names = self.deciding_columns();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut batches = self.raw_batches_of(file, &names).await?;
        while let Some(batch) = batches.try_next().await? {
            if erased.staying_in(&batch)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What becomes of one file without erased rows.
    async fn rewritten(
        &self,
        job: &str,
        file: &LiveFile,
        erased: &ErasedRows,
        cancel: &Cancel,
    ) -> Result<Effect, OfflineError> {
        if !erased.may_be_in(&file.file) || !self.holds_erased(&file.file, erased).await? {
            return Ok(Effect::Stays);
        }
        let schema = self.schema.file_schema();
        let mut writer = PartitionWriter::new(self.store.clone(), schema, Some(self.key_names()), BUFFERED_BYTES_MAX)
            .of_job(job)
            .of_lane(file.lane.as_deref());
        let (mut rows, mut batches) = (0, self.raw_batches_of(&file.file, &[]).await?);
        while let Some(batch) = batches.try_next().await? {
            if cancel.is_cancelled() {
                return Err(OfflineError::Cancelled);
            }
            let (kept, gone) = erased.without(batch)?;
            rows += gone;
            writer.write(kept).await?;
        }
        Ok(Effect::Goes { rows, kept: adds_of(&writer.finish().await?)? })
    }

    /// New files of a job without the rows that were erased since it wrote them.
    ///
    /// # Errors
    /// A file that cannot be read, or written again.
    pub(crate) async fn adds_without_erased(&self, job: &str, adds: Vec<Add>) -> Result<Vec<Add>, OfflineError> {
        let Some(erased) = self.erased_now().await? else { return Ok(adds) };
        let mut kept = Vec::with_capacity(adds.len());
        for add in adds {
            let file = LiveFile::of_add(add);
            match self.rewritten(job, &file, &erased, &Cancel::default()).await? {
                Effect::Stays => kept.push(file.add),
                Effect::Goes { kept: adds, .. } => kept.extend(adds),
            }
        }
        Ok(kept)
    }
}

/// What an erasure commits.
struct Erased<'a> {
    erasure: &'a Erasure,
    erased: ErasedRows,
    /// Files that were looked into for an attempt before.
    known: BTreeMap<String, Effect>,
}

#[async_trait]
impl Proposal for Erased<'_> {
    async fn on(&mut self, base: &Base) -> Result<Option<Change>, OfflineError> {
        let table = &self.erasure.table;
        let mut rewritten = RewrittenFiles::default();
        for file in &base.files {
            let effect = match self.known.get(&file.file.path) {
                Some(effect) => effect.clone(),
                None => table.rewritten(&self.erasure.job, file, &self.erased, &self.erasure.cancel).await?,
            };
            self.known.insert(file.file.path.clone(), effect.clone());
            if let Effect::Goes { rows, kept } = effect {
                rewritten.add(file, rows, kept);
            }
        }
        if rewritten.is_empty() {
            return Ok(None);
        }
        let log = read_lane_log(&table.location, &table.log_store, base.version).await?;
        Ok(Some(rewritten.into_change(describe(&LaneChange::default(), &log, None))))
    }
}
