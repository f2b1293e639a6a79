//! Taking erased rows out of data files: those of a table's current version, and those that a job is about to commit.
//!
//! A data file never changes. What was found in one holds until more is erased, so nobody looks into it twice for the same.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::{BooleanArray, RecordBatch};
use async_trait::async_trait;
use chrono::Utc;
use deltalake_core::DeltaTable;
use deltalake_core::kernel::Action;
use deltalake_core::logstore::LogStoreRef;
use deltalake_core::protocol::{DeltaOperation, SaveMode};
use futures::TryStreamExt;
use futures::stream::BoxStream;
use object_store::ObjectStore;
use serde_json::Value as Json;

use crate::cancel::Cancel;
use crate::commit::{
    Base, Change, Committed, Effect, LiveFile, Proposal, adds_of, commit_once, discard_uncommitted, paths_of,
};
use crate::doomed::DoomedFiles;
use crate::erasure::ErasedRows;
use crate::error::OfflineError;
use crate::lanes::{LaneChange, describe, read_lane_log};
use crate::ledger::ChunkOutcome;
use crate::location::Location;
use crate::partition::PartitionWriter;
use crate::quarantine::Quarantine;
use crate::schema::COLUMN_EVENT_TIME;
use crate::table::{DataFile, ViewTable, delete_if_there};

const INFO_ROWS: &str = "eadem.rowsErased";
const INFO_FILES: &str = "eadem.filesRewritten";
const INFO_BYTES: &str = "eadem.bytesRewritten";

pub(crate) type Batches = BoxStream<'static, Result<RecordBatch, OfflineError>>;

/// A table that erased rows are taken out of: a view's, or a quarantine.
#[async_trait]
pub(crate) trait Erasable: Send + Sync {
    fn place(&self) -> &Location;

    fn store(&self) -> &Arc<dyn ObjectStore>;

    fn log_store(&self) -> &LogStoreRef;

    /// What is erased of it by now, by whichever process.
    async fn erased_by_now(&self) -> Result<Option<ErasedRows>, OfflineError>;

    /// The table as it is now; `None` if there is nothing in it.
    async fn loaded(&self) -> Result<Option<DeltaTable>, OfflineError>;

    /// Of the rows of a file what tells whether they are erased.
    async fn deciding_rows(&self, file: &DataFile) -> Result<Batches, OfflineError>;

    /// The rows of a file as they stand in it.
    async fn whole_rows(&self, file: &DataFile) -> Result<Batches, OfflineError>;

    /// Which rows stay; `None`: all of them.
    fn staying(&self, batch: &RecordBatch, erased: &ErasedRows) -> Result<Option<BooleanArray>, OfflineError>;

    /// Writes the rows of a file again.
    fn rewriter(&self, job: &str, file: &LiveFile) -> PartitionWriter;

    /// What a commit on top of `version` says besides what it does.
    async fn commit_info(&self, version: u64) -> Result<Vec<(String, Json)>, OfflineError>;
}

#[async_trait]
impl Erasable for ViewTable {
    fn place(&self) -> &Location {
        &self.location
    }

    fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    fn log_store(&self) -> &LogStoreRef {
        &self.log_store
    }

    async fn erased_by_now(&self) -> Result<Option<ErasedRows>, OfflineError> {
        self.erased_now().await
    }

    async fn loaded(&self) -> Result<Option<DeltaTable>, OfflineError> {
        self.load_with_rows().await
    }

    async fn deciding_rows(&self, file: &DataFile) -> Result<Batches, OfflineError> {
        let mut names = self.key_names();
        names.push(COLUMN_EVENT_TIME.to_owned());
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.raw_batches(file, &names).await
    }

    async fn whole_rows(&self, file: &DataFile) -> Result<Batches, OfflineError> {
        self.raw_batches(file, &[]).await
    }

    fn staying(&self, batch: &RecordBatch, erased: &ErasedRows) -> Result<Option<BooleanArray>, OfflineError> {
        erased.staying_in(batch)
    }

    fn rewriter(&self, job: &str, file: &LiveFile) -> PartitionWriter {
        self.writer_in_place_of(job, file.lane.as_deref())
    }

    async fn commit_info(&self, version: u64) -> Result<Vec<(String, Json)>, OfflineError> {
        let log = read_lane_log(&self.location, &self.log_store, version).await?;
        Ok(describe(&LaneChange::default(), &log, None))
    }
}

/// What was found in data files, for all who look into those of one table.
#[derive(Debug, Clone, Default)]
pub struct LookedInto(Arc<Mutex<HashMap<String, Finding>>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finding {
    /// Nothing that was erased by this revision.
    Clean(u64),
    /// Erased rows, and there is no way back.
    HoldsErased,
}

impl LookedInto {
    /// Whether a file holds erased rows, if that is known.
    fn holds_erased(&self, file: &DataFile, erased: &ErasedRows) -> Option<bool> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(&file.path)? {
            Finding::HoldsErased => Some(true),
            Finding::Clean(revision) => (*revision == erased.revision()).then_some(false),
        }
    }

    fn note(&self, path: &str, finding: Finding) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), finding);
    }
}

/// Finds erased rows in the files of one table, and writes files again without them.
pub(crate) struct Rewriting<'a> {
    pub(crate) table: &'a dyn Erasable,
    pub(crate) job: &'a str,
    pub(crate) erased: &'a ErasedRows,
    pub(crate) looked_into: &'a LookedInto,
    pub(crate) cancel: &'a Cancel,
}

impl Rewriting<'_> {
    /// Whether there are erased rows in a file.
    pub(crate) async fn finds_in(&self, file: &DataFile) -> Result<bool, OfflineError> {
        if !self.erased.may_be_in(file) {
            return Ok(false);
        }
        if let Some(known) = self.looked_into.holds_erased(file, self.erased) {
            return Ok(known);
        }
        let found = self.look_into(file).await?;
        let finding = if found { Finding::HoldsErased } else { Finding::Clean(self.erased.revision()) };
        self.looked_into.note(&file.path, finding);
        Ok(found)
    }

    async fn look_into(&self, file: &DataFile) -> Result<bool, OfflineError> {
        let mut batches = self.table.deciding_rows(file).await?;
        while let Some(batch) = batches.try_next().await? {
            self.cancel.check()?;
            if self.table.staying(&batch, self.erased)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What becomes of one file without erased rows.
    pub(crate) async fn of(&self, file: &LiveFile) -> Result<Effect, OfflineError> {
        if !self.finds_in(&file.file).await? {
            return Ok(Effect::Stays);
        }
        let mut writer = self.table.rewriter(self.job, file);
        let (mut rows, mut batches) = (0, self.table.whole_rows(&file.file).await?);
        while let Some(batch) = batches.try_next().await? {
            self.cancel.check()?;
            let kept = match self.table.staying(&batch, self.erased)? {
                None => batch,
                Some(stays) => {
                    rows += (stays.len() - stays.true_count()) as u64;
                    arrow_select::filter::filter_record_batch(&batch, &stays)?
                }
            };
            writer.write(kept).await?;
        }
        let kept = adds_of(&writer.finish().await?)?;
        for path in paths_of(&kept) {
            self.looked_into.note(&path, Finding::Clean(self.erased.revision()));
        }
        Ok(Effect::Goes { rows, kept })
    }
}

/// The add actions of files that a part of a job has just written, without the rows that were erased meanwhile, and how many
/// these were. Files that hold such rows are deleted: an erasure that was recorded before they were written has perhaps
/// listed the table's files already, and one that is recorded later lists those that are left.
async fn settle(
    table: &dyn Erasable,
    job: &str,
    adds: Vec<Json>,
    begun_with: Option<&ErasedRows>,
) -> Result<(Vec<Json>, u64), OfflineError> {
    if adds.is_empty() {
        return Ok((adds, 0));
    }
    let Some(erased) = table.erased_by_now().await? else { return Ok((adds, 0)) };
    if begun_with.is_some_and(|begun_with| begun_with.revision() == erased.revision()) {
        return Ok((adds, 0));
    }
    let (looked_into, cancel) = (LookedInto::default(), Cancel::default());
    let rewriting = Rewriting { table, job, erased: &erased, looked_into: &looked_into, cancel: &cancel };
    let (mut settled, mut gone) = (Vec::with_capacity(adds.len()), 0);
    for (json, add) in adds.iter().zip(adds_of(&adds)?) {
        let file = LiveFile::of_add(add);
        match rewriting.of(&file).await? {
            Effect::Stays => settled.push(json.clone()),
            Effect::Goes { rows, kept } => {
                gone += rows;
                let kept = kept.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>();
                settled.extend(kept.map_err(|source| OfflineError::Json { what: "an add action", source })?);
                delete_if_there(table.store().as_ref(), &file.file.path.as_str().into()).await?;
            }
        }
    }
    Ok((settled, gone))
}

/// The same for all that a part of a job has written.
pub(crate) async fn settle_outcome(
    (table, quarantine): (&ViewTable, &Quarantine),
    job: &str,
    outcome: &mut ChunkOutcome,
    begun_with: Option<&ErasedRows>,
) -> Result<(), OfflineError> {
    let (adds, gone) = settle(table, job, std::mem::take(&mut outcome.adds), begun_with).await?;
    outcome.adds = adds;
    outcome.rows_stored = outcome.rows_stored.saturating_sub(gone);
    outcome.rows_erased += gone;
    let refused = std::mem::take(&mut outcome.quarantine_adds);
    (outcome.quarantine_adds, _) = settle(quarantine, job, refused, begun_with).await?;
    Ok(())
}

/// A table of a view, or its quarantine.
#[derive(Debug, Clone)]
pub enum ErasedTable {
    /// Its rows.
    View(Box<ViewTable>),
    /// What is kept of refused ones.
    Quarantine(Box<Quarantine>),
}

impl ErasedTable {
    fn files(&self) -> &dyn Erasable {
        match self {
            Self::View(table) => table.as_ref(),
            Self::Quarantine(quarantine) => quarantine.as_ref(),
        }
    }
}

impl From<ViewTable> for ErasedTable {
    fn from(table: ViewTable) -> Self {
        Self::View(Box::new(table))
    }
}

impl From<Quarantine> for ErasedTable {
    fn from(quarantine: Quarantine) -> Self {
        Self::Quarantine(Box::new(quarantine))
    }
}

/// An erasure to carry out in one table. The same job again resumes it, and never commits twice.
#[derive(Clone)]
pub struct Erasure {
    /// The job's id.
    pub job: String,
    /// The table.
    pub table: ErasedTable,
    /// Stops the job between batches of rows.
    pub cancel: Cancel,
    /// What jobs before have found in the files of this table; it is added to.
    pub looked_into: LookedInto,
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
    fn of(committed: Option<&Committed>) -> Self {
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

impl Erasure {
    fn rewriting<'a>(&'a self, erased: &'a ErasedRows) -> Rewriting<'a> {
        Rewriting {
            table: self.table.files(),
            job: &self.job,
            erased,
            looked_into: &self.looked_into,
            cancel: &self.cancel,
        }
    }
}

/// Takes the rows that are erased by now out of the table's current version.
///
/// # Errors
/// A table that cannot be read, a full disk, cancellation. The table is then as it was.
pub async fn erase_rows(erasure: &Erasure) -> Result<ErasureReport, OfflineError> {
    let table = erasure.table.files();
    let Some(erased) = table.erased_by_now().await? else { return Ok(ErasureReport::default()) };
    let Some(loaded) = table.loaded().await? else { return Ok(ErasureReport::default()) };
    let mut proposal = Erased { rewriting: erasure.rewriting(&erased), known: BTreeMap::new() };
    let committed = commit_once(table.place(), table.log_store(), loaded, &erasure.job, &mut proposal).await?;
    let written = proposal.known.into_values().flat_map(|effect| paths_of(effect.kept()));
    discard_uncommitted(table.store().as_ref(), written, committed.as_ref()).await?;
    Ok(ErasureReport::of(committed.as_ref()))
}

/// The data files of the table's folder that hold erased rows although no reader of the current version needs them: those
/// that [`erase_rows`] has replaced, and those of earlier versions and of jobs that broke off.
///
/// # Errors
/// A folder that cannot be listed, a file that cannot be read, cancellation.
pub async fn doomed_files(erasure: &Erasure) -> Result<Option<DoomedFiles>, OfflineError> {
    let table = erasure.table.files();
    let Some(erased) = table.erased_by_now().await? else { return Ok(None) };
    DoomedFiles::find(&erasure.rewriting(&erased)).await.map(Some)
}

/// What an erasure commits.
struct Erased<'a> {
    rewriting: Rewriting<'a>,
    /// What becomes of files that were looked into for an attempt before.
    known: BTreeMap<String, Effect>,
}

impl Erased<'_> {
    async fn effect(&mut self, file: &LiveFile) -> Result<Effect, OfflineError> {
        if let Some(effect) = self.known.get(&file.file.path) {
            return Ok(effect.clone());
        }
        let effect = self.rewriting.of(file).await?;
        self.known.insert(file.file.path.clone(), effect.clone());
        Ok(effect)
    }
}

#[async_trait]
impl Proposal for Erased<'_> {
    async fn on(&mut self, base: &Base) -> Result<Option<Change>, OfflineError> {
        let (mut rows_erased, mut files, mut bytes) = (0, 0_u64, 0);
        let mut actions = Vec::new();
        let now_ms = Utc::now().timestamp_millis();
        for file in &base.files {
            if let Effect::Goes { rows, kept } = self.effect(file).await? {
                rows_erased += rows;
                files += 1;
                bytes += file.file.bytes;
                actions.push(Action::Remove(file.remove(true, now_ms)));
                actions.extend(kept.into_iter().map(Action::Add));
            }
        }
        if actions.is_empty() {
            return Ok(None);
        }
        let mut info = self.rewriting.table.commit_info(base.version).await?;
        info.push((INFO_ROWS.to_owned(), rows_erased.into()));
        info.push((INFO_FILES.to_owned(), files.into()));
        info.push((INFO_BYTES.to_owned(), bytes.into()));
        let operation = DeltaOperation::Write { mode: SaveMode::Overwrite, partition_by: None, predicate: None };
        Ok(Some(Change { actions, info, operation }))
    }
}
