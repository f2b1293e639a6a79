//! The one commit of a job: proposed again on top of whatever others have committed meanwhile, and never made twice.

use std::collections::HashMap;

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

use crate::error::OfflineError;
use crate::lanes::{LaneChange, describe, read_lane_log};
use crate::ledger::JobPlan;
use crate::location::Location;
use crate::partition::{TAG_LANE, event_time_range};
use crate::replace::Withdrawal;
use crate::table::{DataFile, ViewTable, read_commit, table_error};

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
        let add = view.add_action();
        let tag = |name: &str| add.tags.as_ref()?.get(name)?.clone();
        let stats: Option<Json> = add.stats.as_deref().and_then(|stats| serde_json::from_str(stats).ok());
        Self {
            file: DataFile {
                path: view.object_store_path().to_string(),
                bytes: u64::try_from(add.size).unwrap_or_default(),
                event_time_us: add.stats.as_deref().and_then(event_time_range),
            },
            lane: tag(TAG_LANE),
            rows: stats.and_then(|stats| stats["numRecords"].as_u64()),
            add,
        }
    }

    /// A file that is not committed yet.
    pub(crate) fn of_add(add: Add) -> Self {
        let tag = |name: &str| add.tags.as_ref()?.get(name)?.clone();
        let stats: Option<Json> = add.stats.as_deref().and_then(|stats| serde_json::from_str(stats).ok());
        let path = Path::from_url_path(&add.path).map_or_else(|_| add.path.clone(), |path| path.to_string());
        Self {
            file: DataFile {
                path,
                bytes: u64::try_from(add.size).unwrap_or_default(),
                event_time_us: add.stats.as_deref().and_then(event_time_range),
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
}

impl Committed {
    pub(crate) fn rows_removed(&self) -> u64 {
        self.info[INFO_ROWS_REMOVED].as_u64().unwrap_or_default()
    }
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
        let seen = snapshot.transaction_version(log_store.as_ref(), job).await.map_err(|error| fail(&error))?;
        if seen.is_some() {
            return commit_of_job(location, log_store, version, job).await.map(Some);
        }
        let base = Base { version, files: live_files(&table, location)? };
        let Some(change) = proposal.on(&base).await? else { return Ok(None) };
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
            Ok(commit) => return Ok(Some(Committed { version: commit.version(), info: info.into_iter().collect() })),
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
            let infos = actions.into_iter().map(|mut action| action["commitInfo"].take());
            let info = infos.into_iter().find(|info| !info.is_null()).unwrap_or_default();
            return Ok(Committed { version, info });
        }
    }
    Ok(Committed { version: latest, info: Json::Null })
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
    location: &'a Location,
    store: &'a dyn ObjectStore,
    adds: Vec<Add>,
    are_there: bool,
}

impl<'a> NewFiles<'a> {
    pub(crate) fn of(location: &'a Location, store: &'a dyn ObjectStore, adds: &[Json]) -> Result<Self, OfflineError> {
        Ok(Self { location, store, adds: adds_of(adds)?, are_there: false })
    }

    /// The files, if all of them are still there: a job that is resumed long after it broke off may have lost some to a
    /// vacuum.
    pub(crate) async fn checked(&mut self) -> Result<&[Add], OfflineError> {
        if !self.are_there {
            let lookups: Vec<_> = self.adds.iter().map(|add| self.look_up(add)).collect();
            futures::stream::iter(lookups).buffer_unordered(LOOKUPS_AT_ONCE).try_collect::<Vec<()>>().await?;
            self.are_there = true;
        }
        Ok(&self.adds)
    }

    async fn look_up(&self, add: &Add) -> Result<(), OfflineError> {
        match self.store.head(&Path::from(add.path.as_str())).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::NotFound { .. }) => Err(OfflineError::File {
                file: format!("{}/{}", self.location.url, add.path),
                reason: "a data file of this job is gone: it broke off so long ago that a vacuum has deleted it; \
                         start a new job"
                    .to_owned(),
            }),
            Err(error) => Err(error.into()),
        }
    }
}

/// New files and nothing else.
struct Append<'a> {
    new: NewFiles<'a>,
}

#[async_trait]
impl Proposal for Append<'_> {
    async fn on(&mut self, _: &Base) -> Result<Option<Change>, OfflineError> {
        let adds = self.new.checked().await?.iter().cloned();
        Ok(Some(Change { actions: adds.map(Action::Add).collect(), info: Vec::new(), operation: append() }))
    }
}

pub(crate) fn append() -> DeltaOperation {
    DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None }
}

/// Commits new files of a table that has no lanes, unless `job` has done so already.
pub(crate) async fn append_once(
    location: &Location,
    log_store: &LogStoreRef,
    store: &dyn ObjectStore,
    table: DeltaTable,
    job: &str,
    adds: &[Json],
) -> Result<(), OfflineError> {
    let mut proposal = Append { new: NewFiles::of(location, store, adds)? };
    commit_once(location, log_store, table, job, &mut proposal).await.map(|_| ())
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
        let lanes = LaneChange::of_plan(self.plan, &log.lanes)?;
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
        let new = self.new.checked().await?.to_vec();
        // What was erased since it was written.
        let new = self.table.adds_without_erased(self.job, new).await?;
        let adds = new.into_iter().chain(withdrawn.adds);
        let removes = withdrawn.removes.into_iter().map(Action::Remove);
        Ok(Some(Change { actions: removes.chain(adds.map(Action::Add)).collect(), info, operation }))
    }
}

impl ViewTable {
    /// Makes a job's rows visible and those that they replace invisible, all at once and only once.
    pub(crate) async fn commit(&self, job: &str, adds: &[Json], plan: &JobPlan) -> Result<Committed, OfflineError> {
        let table = self.ensure().await?;
        let new = NewFiles::of(&self.location, self.store.as_ref(), adds)?;
        let mut proposal = Backfilled { table: self, job, plan, new, withdrawal: Withdrawal::new(self, job) };
        let committed = commit_once(&self.location, &self.log_store, table, job, &mut proposal).await?;
        committed.ok_or_else(|| table_error(&self.location, "a backfill has nothing to commit"))
    }
}
