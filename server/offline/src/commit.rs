//! The one commit of a job: proposed again on top of whatever others have committed meanwhile, and never made twice.

use std::collections::{BTreeSet, HashMap};

use async_trait::async_trait;
use deltalake_core::DeltaTable;
use deltalake_core::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake_core::kernel::{Action, Add, LogicalFileView, Remove, Transaction};
use deltalake_core::logstore::LogStoreRef;
use deltalake_core::protocol::{DeltaOperation, SaveMode};
use futures::stream::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::Value as Json;

use crate::backfill::Room;
use crate::cancel::Cancel;
use crate::erase_files::{Erasable, LookedInto, Rewriting};
use crate::erasure::ErasedRows;
use crate::error::OfflineError;
use crate::lanes::{LaneChange, describe, read_lane_log};
use crate::ledger::JobPlan;
use crate::location::Location;
use crate::partition::{TAG_KNOWN_AT, TAG_LANE, event_time_range};
use crate::replace::Withdrawal;
use crate::schema::COLUMN_EVENT_TIME;
use crate::table::{DataFile, ViewTable, delete_if_there, read_commit, table_error};

/// Whoever loses has been overtaken by one that won: all together they come on, however many they are.
const COMMIT_ATTEMPTS_MAX: usize = 256;
const INFO_ROWS_REMOVED: &str = "eadem.rowsRemoved";

/// Data files whose existence is asked for at once.
const LOOKUPS_AT_ONCE: usize = 16;

/// A data file that a table's version holds, with its action.
#[derive(Debug, Clone)]
pub(crate) struct LiveFile {
    pub(crate) file: DataFile,
    pub(crate) add: Add,
    /// The one lane of all its rows; `None`: there may be several.
    pub(crate) lane: Option<String>,
    /// Its rows, if its writer said so.
    pub(crate) rows: Option<u64>,
}

impl LiveFile {
    fn of(view: &LogicalFileView) -> Self {
        // The columns that would replace it cannot give tags.
        #[allow(deprecated)]
        Self::of_add(view.add_action())
    }

    /// The file of an add action, committed or not.
    pub(crate) fn of_add(add: Add) -> Self {
        let tag = |name: &str| add.tags.as_ref()?.get(name)?.clone();
        let stats: Option<Json> = add.stats.as_deref().and_then(|stats| serde_json::from_str(stats).ok());
        Self {
            file: DataFile {
                path: object_path(&add.path),
                bytes: u64::try_from(add.size).unwrap_or_default(),
                event_time_us: add.stats.as_deref().and_then(event_time_range),
                is_known_at_event_time: tag(TAG_KNOWN_AT).as_deref() == Some(COLUMN_EVENT_TIME),
            },
            lane: tag(TAG_LANE),
            rows: stats.and_then(|stats| stats["numRecords"].as_u64()),
            add,
        }
    }

    pub(crate) fn remove(&self, data_change: bool, now_ms: i64) -> Remove {
        Remove {
            path: self.add.path.clone(),
            data_change,
            deletion_timestamp: Some(now_ms),
            extended_file_metadata: Some(true),
            partition_values: Some(self.add.partition_values.clone()),
            size: Some(self.add.size),
            tags: self.add.tags.clone(),
            ..Remove::default()
        }
    }
}

/// The path of a file in the store, where the log names it `path`.
pub(crate) fn object_path(path: &str) -> String {
    Path::from_url_path(path).map_or_else(|_| path.to_owned(), |path| path.to_string())
}

/// The files of add actions.
pub(crate) fn paths_of(adds: &[Add]) -> Vec<String> {
    adds.iter().map(|add| object_path(&add.path)).collect()
}

/// What becomes of one file when rows go.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Effect {
    /// None of its rows goes.
    Stays,
    /// So many rows go; the others stand in these files.
    Goes { rows: u64, kept: Vec<Add> },
}

impl Effect {
    /// The files that take its place.
    pub(crate) fn kept(&self) -> &[Add] {
        match self {
            Self::Stays => &[],
            Self::Goes { kept, .. } => kept,
        }
    }
}

/// What a table holds where a commit is proposed.
pub(crate) struct Base {
    pub(crate) version: u64,
    /// In the order of their paths.
    pub(crate) files: Vec<LiveFile>,
}

/// What a job commits.
pub(crate) struct Change {
    pub(crate) actions: Vec<Action>,
    /// Entries of the commitInfo.
    pub(crate) info: Vec<(String, Json)>,
    pub(crate) operation: DeltaOperation,
}

/// A job's idea of what to commit on top of a state.
#[async_trait]
pub(crate) trait Proposal: Send {
    /// The change; `None` if on top of this state there is nothing to do.
    ///
    /// # Errors
    /// A state on top of which the job must not be committed.
    async fn on(&mut self, base: &Base) -> Result<Option<Change>, OfflineError>;
}

/// A job's commit.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Committed {
    pub(crate) version: u64,
    /// Its commitInfo.
    pub(crate) info: Json,
    /// The names of the files that it has added; `None`: its commit could not be found.
    added: Option<BTreeSet<String>>,
}

impl Committed {
    pub(crate) fn rows_removed(&self) -> u64 {
        self.info[INFO_ROWS_REMOVED].as_u64().unwrap_or_default()
    }

    /// Whether it is known not to have this file.
    fn leaves_out(&self, path: &str) -> bool {
        self.added.as_ref().is_some_and(|added| !added.contains(name_of(path)))
    }
}

/// The name of a file, without the folders. It has a digest of the file's bytes, so it tells files of one table apart.
fn name_of(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// Deletes those of the files that a job has written for its commit that the commit does not have: what was written for an
/// attempt before, and what was written again since. `None`: there is no commit, and there will be none.
pub(crate) async fn discard_uncommitted(
    store: &dyn ObjectStore,
    written: impl IntoIterator<Item = String>,
    committed: Option<&Committed>,
) -> Result<(), OfflineError> {
    for path in written {
        if committed.is_none_or(|committed| committed.leaves_out(&path)) {
            delete_if_there(store, &Path::from(path.as_str())).await?;
        }
    }
    Ok(())
}

/// The files of a loaded table, by path.
pub(crate) fn live_files(table: &DeltaTable, location: &Location) -> Result<Vec<LiveFile>, OfflineError> {
    let snapshot = table.snapshot().map_err(|error| table_error(location, error))?;
    let mut files: Vec<LiveFile> = snapshot.log_data().iter().map(|file| LiveFile::of(&file)).collect();
    files.sort_by(|one, other| one.file.path.cmp(&other.file.path));
    Ok(files)
}

/// Commits what `proposal` says as the one version of `job`, unless the table has it already. `None`: there was nothing to do.
pub(crate) async fn commit_once(
    location: &Location,
    log_store: &LogStoreRef,
    table: DeltaTable,
    job: &str,
    proposal: &mut dyn Proposal,
) -> Result<Option<Committed>, OfflineError> {
    let fail = |error: &dyn std::fmt::Display| table_error(location, error);
    let mut table = table;
    for _ in 0..COMMIT_ATTEMPTS_MAX {
        let snapshot = table.snapshot().map_err(|error| fail(&error))?;
        let version = snapshot.version();
        if is_committed(location, log_store, &table, job).await? {
            return commit_of_job(location, log_store, version, job).await.map(Some);
        }
        let base = Base { version, files: live_files(&table, location)? };
        let proposed = match proposal.on(&base).await {
            Ok(proposed) => proposed,
            // Another process that is at the same job may have committed it, and cleared away what was left over.
            Err(error) => match commit_of_other(location, log_store, &mut table, job).await {
                Some(committed) => return Ok(Some(committed)),
                None => return Err(error),
            },
        };
        let Some(change) = proposed else { return Ok(None) };
        let added = change.actions.iter().filter_map(|action| match action {
            Action::Add(add) => Some(name_of(&add.path).to_owned()),
            _ => None,
        });
        let added: BTreeSet<String> = added.collect();
        let info: HashMap<String, Json> = change.info.into_iter().collect();
        let properties = CommitProperties::default()
            .with_metadata(info.clone())
            .with_application_transaction(Transaction::new(job, 1))
            .with_cleanup_expired_logs(Some(false))
            // What this commit may say depends on the version it follows, so a lost race starts over from there.
            .with_max_retries(0);
        let committed = CommitBuilder::from(properties)
            .with_actions(change.actions)
            .build(Some(snapshot), log_store.clone(), change.operation)
            .await;
        match committed {
            Ok(commit) => {
                let info = info.into_iter().collect();
                return Ok(Some(Committed { version: commit.version(), info, added: Some(added) }));
            }
            Err(error) => {
                table.load().await.map_err(|error| fail(&error))?;
                let now = table.snapshot().map_err(|error| fail(&error))?.version();
                if now == version {
                    return Err(fail(&error));
                }
            }
        }
    }
    Err(fail(&"too many other writers; try again later"))
}

/// Whether the table, as it was loaded, has the commit of a job.
pub(crate) async fn is_committed(
    location: &Location,
    log_store: &LogStoreRef,
    table: &DeltaTable,
    job: &str,
) -> Result<bool, OfflineError> {
    let snapshot = table.snapshot().map_err(|error| table_error(location, error))?;
    let seen = snapshot.transaction_version(log_store.as_ref(), job).await;
    Ok(seen.map_err(|error| table_error(location, error))?.is_some())
}

/// The commit of a job that another process has made since the table was loaded.
async fn commit_of_other(
    location: &Location,
    log_store: &LogStoreRef,
    table: &mut DeltaTable,
    job: &str,
) -> Option<Committed> {
    table.load().await.ok()?;
    let is_there = is_committed(location, log_store, table, job).await.ok()?;
    let latest = table.version().filter(|_| is_there)?;
    commit_of_job(location, log_store, latest, job).await.ok()
}

/// The commit of a job, at or before `latest`.
async fn commit_of_job(
    location: &Location,
    log_store: &LogStoreRef,
    latest: u64,
    job: &str,
) -> Result<Committed, OfflineError> {
    for version in (0..=latest).rev() {
        let actions = read_commit(location, log_store, version).await?;
        let is_job = |action: &Json| action["txn"]["appId"].as_str() == Some(job);
        if actions.iter().any(is_job) {
            let added = actions.iter().filter_map(|action| action["add"]["path"].as_str());
            let added = Some(added.map(|path| name_of(path).to_owned()).collect());
            let infos = actions.into_iter().map(|mut action| action["commitInfo"].take());
            let info = infos.into_iter().find(|info| !info.is_null()).unwrap_or_default();
            return Ok(Committed { version, info, added });
        }
    }
    Ok(Committed { version: latest, info: Json::Null, added: None })
}

/// Reads the add actions that a ledger keeps.
pub(crate) fn adds_of(actions: &[Json]) -> Result<Vec<Add>, OfflineError> {
    let read = |add: &Json| {
        serde_json::from_value(add.clone())
            .map_err(|source| OfflineError::Json { what: "an add action of the job ledger", source })
    };
    actions.iter().map(read).collect()
}

/// Data files that a job is going to add.
pub(crate) struct NewFiles<'a> {
    table: &'a dyn Erasable,
    job: &'a str,
    adds: Vec<Add>,
    are_there: bool,
    looked_into: LookedInto,
    /// Everything that was written for the commit, whether it is still among `adds` or not.
    written: BTreeSet<String>,
}

impl<'a> NewFiles<'a> {
    pub(crate) fn of(table: &'a dyn Erasable, job: &'a str, adds: &[Json]) -> Result<Self, OfflineError> {
        let adds = adds_of(adds)?;
        let written = paths_of(&adds).into_iter().collect();
        Ok(Self { table, job, adds, are_there: false, looked_into: LookedInto::default(), written })
    }

    /// The files, without the rows that were erased since they were written, if all of them are still there: a job that is
    /// resumed long after it broke off may have lost some.
    pub(crate) async fn ready(&mut self) -> Result<&[Add], OfflineError> {
        if !self.are_there {
            let lookups: Vec<_> = self.adds.iter().map(|add| self.look_up(add)).collect();
            futures::stream::iter(lookups).buffer_unordered(LOOKUPS_AT_ONCE).try_collect::<Vec<()>>().await?;
            self.are_there = true;
        }
        if let Some(erased) = self.table.erased_by_now().await? {
            self.leave_out(&erased).await?;
        }
        Ok(&self.adds)
    }

    async fn leave_out(&mut self, erased: &ErasedRows) -> Result<(), OfflineError> {
        let (looked_into, cancel) = (self.looked_into.clone(), Cancel::default());
        let rewriting =
            Rewriting { table: self.table, job: self.job, erased, looked_into: &looked_into, cancel: &cancel };
        let mut kept = Vec::with_capacity(self.adds.len());
        for add in &self.adds {
            let file = LiveFile::of_add(add.clone());
            match rewriting.of(&file).await? {
                Effect::Stays => kept.push(file.add),
                Effect::Goes { kept: adds, .. } => {
                    self.written.extend(paths_of(&adds));
                    kept.extend(adds);
                }
            }
        }
        self.adds = kept;
        Ok(())
    }

    /// Deletes what the commit does not have because it held erased rows.
    pub(crate) async fn discard_uncommitted(&self, committed: &Committed) -> Result<(), OfflineError> {
        let left: Vec<String> = self.written.iter().filter(|path| committed.leaves_out(path)).cloned().collect();
        if left.is_empty() || self.table.erased_by_now().await?.is_none() {
            return Ok(());
        }
        discard_uncommitted(self.table.store().as_ref(), left, Some(committed)).await
    }

    async fn look_up(&self, add: &Add) -> Result<(), OfflineError> {
        match self.table.store().head(&Path::from(add.path.as_str())).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::NotFound { .. }) => Err(OfflineError::File {
                file: format!("{}/{}", self.table.place().url, add.path),
                reason:
                    "a data file of this job is gone: it broke off so long ago that a vacuum has deleted it, or an \
                         erasure has, because it held erased rows; start a new job"
                        .to_owned(),
            }),
            Err(error) => Err(error.into()),
        }
    }
}

pub(crate) fn append() -> DeltaOperation {
    DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None }
}

/// What a backfill commits: its new files, and the withdrawal of the rows that they take the place of.
struct Backfilled<'a> {
    table: &'a ViewTable,
    job: &'a str,
    plan: &'a JobPlan,
    new: NewFiles<'a>,
    withdrawal: Withdrawal<'a>,
}

#[async_trait]
impl Proposal for Backfilled<'_> {
    async fn on(&mut self, base: &Base) -> Result<Option<Change>, OfflineError> {
        let log = read_lane_log(&self.table.location, &self.table.log_store, base.version).await?;
        let lanes = LaneChange::of_plan(self.job, self.plan, &log.lanes)?;
        let withdrawn = self.withdrawal.of(&lanes.withdrawn, &base.files).await?;
        let mut info = describe(&lanes, &log, (!withdrawn.removes.is_empty()).then_some(base.version + 1));
        info.push((INFO_ROWS_REMOVED.to_owned(), withdrawn.rows.into()));
        let operation = match withdrawn.removes.is_empty() {
            true => append(),
            false => DeltaOperation::Write {
                mode: SaveMode::Overwrite,
                partition_by: None,
                predicate: lanes.withdrawn.expression(),
            },
        };
        let adds = self.new.ready().await?.iter().cloned().chain(withdrawn.adds);
        let removes = withdrawn.removes.into_iter().map(Action::Remove);
        Ok(Some(Change { actions: removes.chain(adds.map(Action::Add)).collect(), info, operation }))
    }
}

impl ViewTable {
    /// Makes a job's rows visible and those that they replace invisible, all at once and only once.
    pub(crate) async fn commit(
        &self,
        job: &str,
        adds: &[Json],
        plan: &JobPlan,
        room: &Room,
    ) -> Result<Committed, OfflineError> {
        let table = self.ensure().await?;
        let new = NewFiles::of(self, job, adds)?;
        let mut proposal = Backfilled { table: self, job, plan, new, withdrawal: Withdrawal::new(self, job, room) };
        let committed = commit_once(&self.location, &self.log_store, table, job, &mut proposal).await?;
        let committed = committed.ok_or_else(|| table_error(&self.location, "a backfill has nothing to commit"))?;
        proposal.new.discard_uncommitted(&committed).await?;
        discard_uncommitted(self.store.as_ref(), proposal.withdrawal.into_written(), Some(&committed)).await?;
        Ok(committed)
    }
}
