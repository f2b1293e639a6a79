//! A view's Delta table: opening, reading its state, and the one commit of a job.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use deltalake_core::DeltaTable;
use deltalake_core::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake_core::kernel::{Action, Add, StructField, Transaction};
use deltalake_core::logstore::{LogStoreRef, StorageConfig, default_logstore};
use deltalake_core::operations::create::CreateBuilder;
use deltalake_core::protocol::{DeltaOperation, SaveMode};
use object_store::ObjectStore;
use object_store::prefix::PrefixStore;
use serde::{Deserialize, Serialize};

use crate::error::OfflineError;
use crate::ledger::{JobPlan, PlannedFile};
use crate::location::{Location, OfflineStore};
use crate::partition::event_time_range;
use crate::quarantine;
use crate::schema::{COLUMN_EVENT_DATE, TableSchema};
use crate::spec::ViewSpec;

const INFO_LANES: &str = "eadem.lanes";
const INFO_LANES_BEFORE: &str = "eadem.lanesBefore";
const PROPERTY_VIEW: &str = "eadem.view";
const PROPERTY_VIEW_DIGEST: &str = "eadem.viewDigest";
const COMMIT_ATTEMPTS_MAX: usize = 32;

/// A file whose rows are in a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommittedLane {
    /// Relative to the source's location.
    pub path: String,
    /// Digest of its bytes: the lane.
    pub digest: String,
    /// The range of event times that was loaded, `[from, to)` in microseconds; `None`: all.
    pub range_us: Option<(i64, i64)>,
}

/// A data file of one version of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFile {
    /// Relative to the table.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// The range that its event times lie in, ends included, in microseconds; `None` if its writer did not say.
    pub event_time_us: Option<(i64, i64)>,
}

/// Which version of a table is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReadVersion {
    /// The one that is current when the reading begins.
    Current,
    /// This one.
    At(u64),
    /// None: there was no table, and whatever has come since is not looked at.
    NoTable,
}

impl ReadVersion {
    /// The version that [`ViewTable::version`] gave, for good.
    pub fn pinned(version: Option<u64>) -> Self {
        version.map_or(Self::NoTable, Self::At)
    }
}

/// The Delta table of one view version.
#[derive(Debug, Clone)]
pub struct ViewTable {
    pub(crate) location: Location,
    pub(crate) schema: TableSchema,
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) log_store: LogStoreRef,
    view: String,
    view_digest: String,
}

/// One version of a table.
#[derive(Debug, Clone)]
pub(crate) struct TableState {
    pub(crate) version: u64,
    pub(crate) files: Vec<DataFile>,
}

impl OfflineStore {
    /// The table of a view version, whether it exists yet or not.
    ///
    /// # Errors
    /// Names that cannot be columns or locations.
    pub fn table(&self, view: &ViewSpec) -> Result<ViewTable, OfflineError> {
        let location = self.table_location(&view.name, view.version)?;
        let (store, log_store) = open_log(&location);
        Ok(ViewTable {
            location,
            schema: TableSchema::try_new(view)?,
            store,
            log_store,
            view: view.id(),
            view_digest: view.digest.clone(),
        })
    }
}

pub(crate) fn open_log(location: &Location) -> (Arc<dyn ObjectStore>, LogStoreRef) {
    let store: Arc<dyn ObjectStore> = Arc::new(PrefixStore::new(location.store.clone(), location.path.clone()));
    let log_store = default_logstore(store.clone(), location.store.clone(), &location.url, &StorageConfig::default());
    (store, log_store)
}

fn table_error(location: &Location, reason: impl std::fmt::Display) -> OfflineError {
    OfflineError::Table { table: location.url.to_string(), reason: reason.to_string() }
}

/// Loads a table's log; `None` if there is no table.
async fn load(location: &Location, log_store: &LogStoreRef) -> Result<Option<DeltaTable>, OfflineError> {
    let mut table = DeltaTable::new(log_store.clone());
    match table.verify_deltatable_existence().await {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(error) => return Err(table_error(location, error)),
    }
    table.load().await.map_err(|error| table_error(location, error))?;
    Ok(Some(table))
}

async fn load_or_create(
    location: &Location,
    log_store: &LogStoreRef,
    fields: Vec<StructField>,
    partitions: &[&str],
    properties: &[(&str, String)],
) -> Result<DeltaTable, OfflineError> {
    if let Some(table) = load(location, log_store).await? {
        return Ok(table);
    }
    let mut configuration = vec![
        ("delta.enableExpiredLogCleanup".to_owned(), Some("false".to_owned())),
        ("delta.appendOnly".to_owned(), Some("false".to_owned())),
    ];
    configuration.extend(properties.iter().map(|(key, value)| ((*key).to_owned(), Some(value.clone()))));
    let created = CreateBuilder::new()
        .with_log_store(log_store.clone())
        .with_save_mode(SaveMode::Ignore)
        .with_columns(fields)
        .with_partition_columns(partitions.iter().copied())
        .with_configuration(configuration)
        .with_raise_if_key_not_exists(false)
        // A table is created by its version 0 or not at all: with retries, the loser of a race would commit the same
        // creation again as the next version.
        .with_commit_properties(CommitProperties::default().with_max_retries(0))
        .await;
    match created {
        Ok(table) => Ok(table),
        // Another job may have created it in the meantime.
        Err(error) => load(location, log_store).await?.ok_or_else(|| table_error(location, error)),
    }
}

/// Commits `adds` as the one version of `job`, unless the table has it already. Gives the version. With a plan, the commit
/// says which files it loads, and is refused if another job has loaded rows of theirs since the plan was made.
async fn commit_once(
    location: &Location,
    log_store: &LogStoreRef,
    table: DeltaTable,
    job: &str,
    adds: &[serde_json::Value],
    plan: Option<&JobPlan>,
) -> Result<u64, OfflineError> {
    let fail = |error: &dyn std::fmt::Display| table_error(location, error);
    let mut table = table;
    for _ in 0..COMMIT_ATTEMPTS_MAX {
        let snapshot = table.snapshot().map_err(|error| fail(&error))?;
        let base = snapshot.version();
        let seen = snapshot.transaction_version(log_store.as_ref(), job).await.map_err(|error| fail(&error))?;
        if seen.is_some() {
            return version_of_job(location, log_store, base, job).await;
        }
        let mut actions = Vec::with_capacity(adds.len());
        for add in adds {
            let add: Add = serde_json::from_value(add.clone())
                .map_err(|source| OfflineError::Json { what: "an add action of the job ledger", source })?;
            actions.push(Action::Add(add));
        }
        let mut metadata: HashMap<String, serde_json::Value> = HashMap::new();
        if let Some(plan) = plan {
            check_still_new(plan, &read_lanes(location, log_store, base).await?)?;
            let before = latest_lanes_commit(location, log_store, base).await?;
            metadata.insert(INFO_LANES.to_owned(), serde_json::json!(planned_lanes(plan)));
            metadata.insert(INFO_LANES_BEFORE.to_owned(), serde_json::json!(before));
        }
        let properties = CommitProperties::default()
            .with_metadata(metadata)
            .with_application_transaction(Transaction::new(job, 1))
            .with_cleanup_expired_logs(Some(false))
            // What this commit may say depends on the version it follows, so a lost race starts over from there.
            .with_max_retries(0);
        let operation = DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None };
        let committed = CommitBuilder::from(properties)
            .with_actions(actions)
            .build(Some(snapshot), log_store.clone(), operation)
            .await;
        match committed {
            Ok(commit) => return Ok(commit.version()),
            Err(error) => {
                table.load().await.map_err(|error| fail(&error))?;
                let now = table.snapshot().map_err(|error| fail(&error))?.version();
                if now == base {
                    return Err(fail(&error));
                }
            }
        }
    }
    Err(fail(&"too many other writers; try again later"))
}

fn planned_lanes(plan: &JobPlan) -> Vec<CommittedLane> {
    let lane = |file: &PlannedFile| CommittedLane {
        path: file.path.clone(),
        digest: file.digest.clone(),
        range_us: plan.range_us,
    };
    plan.files.iter().map(lane).collect()
}

/// Refuses a plan that has gone stale: a job that was interrupted and is resumed late would load rows a second time.
fn check_still_new(plan: &JobPlan, lanes: &Lanes) -> Result<(), OfflineError> {
    let meets_plan = |loaded: Option<(i64, i64)>| match (loaded, plan.range_us) {
        (Some(loaded), Some(planned)) => loaded.0 < planned.1 && planned.0 < loaded.1,
        _ => true,
    };
    let refuse = |file: &PlannedFile, what: &str| {
        let reason = format!("{what} since this job was planned; cancel it and start a new one");
        Err(OfflineError::File { file: file.url.clone(), reason })
    };
    for file in &plan.files {
        let was_known = |lane: &&CommittedLane| lane.range_us.is_some_and(|range| file.loaded_us.contains(&range));
        let same_bytes = lanes.values().flatten().filter(|lane| lane.digest == file.digest);
        if same_bytes.filter(|lane| !was_known(lane)).any(|lane| meets_plan(lane.range_us)) {
            return refuse(file, "was loaded by another job");
        }
        if lanes.get(&file.path).is_some_and(|lanes| lanes.iter().any(|lane| lane.digest != file.digest)) {
            return refuse(file, "was loaded with another content by another job");
        }
    }
    Ok(())
}

/// The version in which a job was committed, at or before `latest`.
async fn version_of_job(
    location: &Location,
    log_store: &LogStoreRef,
    latest: u64,
    job: &str,
) -> Result<u64, OfflineError> {
    for version in (0..=latest).rev() {
        let actions = read_commit(location, log_store, version).await?;
        let is_job = |action: &serde_json::Value| action["txn"]["appId"].as_str() == Some(job);
        if actions.iter().any(is_job) {
            return Ok(version);
        }
    }
    Ok(latest)
}

async fn read_commit(
    location: &Location,
    log_store: &LogStoreRef,
    version: u64,
) -> Result<Vec<serde_json::Value>, OfflineError> {
    let bytes = log_store.read_commit_entry(version).await.map_err(|error| table_error(location, error))?;
    let Some(bytes) = bytes else { return Ok(Vec::new()) };
    bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            serde_json::from_slice(line).map_err(|source| OfflineError::Json { what: "a commit of the table", source })
        })
        .collect()
}

/// The latest commit, at or before `version`, that says which files it loaded. Commits that do say point to the one before
/// them, so that a long log of other commits is not read over and over.
async fn latest_lanes_commit(
    location: &Location,
    log_store: &LogStoreRef,
    version: u64,
) -> Result<Option<u64>, OfflineError> {
    for version in (0..=version).rev() {
        let actions = read_commit(location, log_store, version).await?;
        if actions.iter().any(|action| action["commitInfo"].get(INFO_LANES).is_some()) {
            return Ok(Some(version));
        }
    }
    Ok(None)
}

/// The files whose rows are in a table, by path.
type Lanes = BTreeMap<String, Vec<CommittedLane>>;

/// What was loaded by the commits up to `latest`.
async fn read_lanes(location: &Location, log_store: &LogStoreRef, latest: u64) -> Result<Lanes, OfflineError> {
    let mut lanes = Lanes::new();
    let mut next = latest_lanes_commit(location, log_store, latest).await?;
    while let Some(version) = next {
        let actions = read_commit(location, log_store, version).await?;
        let Some(info) = actions.iter().map(|action| &action["commitInfo"]).find(|info| !info.is_null()) else {
            break;
        };
        let committed: Vec<CommittedLane> = serde_json::from_value(info[INFO_LANES].clone())
            .map_err(|source| OfflineError::Json { what: "the lanes of a commit", source })?;
        for lane in committed {
            lanes.entry(lane.path.clone()).or_default().push(lane);
        }
        next = info[INFO_LANES_BEFORE].as_u64();
    }
    Ok(lanes)
}

impl ViewTable {
    /// Where the table is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// The current version: the commit axis of time. `None` if nothing was ever loaded.
    ///
    /// # Errors
    /// A log that cannot be read.
    pub async fn version(&self) -> Result<Option<u64>, OfflineError> {
        Ok(self.load_with_rows().await?.and_then(|table| table.version()))
    }

    /// The files whose rows are in the table, by path.
    ///
    /// # Errors
    /// A log that cannot be read.
    pub async fn lanes(&self) -> Result<BTreeMap<String, Vec<CommittedLane>>, OfflineError> {
        match self.version().await? {
            Some(latest) => read_lanes(&self.location, &self.log_store, latest).await,
            None => Ok(Lanes::new()),
        }
    }

    pub(crate) async fn ensure(&self) -> Result<DeltaTable, OfflineError> {
        let properties = [(PROPERTY_VIEW, self.view.clone()), (PROPERTY_VIEW_DIGEST, self.view_digest.clone())];
        let table = load_or_create(
            &self.location,
            &self.log_store,
            self.schema.delta_fields(),
            &[COLUMN_EVENT_DATE],
            &properties,
        )
        .await?;
        self.check(&table)?;
        Ok(table)
    }

    /// Loads the table for readers; `None` if no job was ever committed to it. The job that comes first makes the table in
    /// version 0 and commits its rows in version 1: killed in between, it leaves a table that proves nothing missing.
    async fn load_with_rows(&self) -> Result<Option<DeltaTable>, OfflineError> {
        let Some(table) = load(&self.location, &self.log_store).await? else { return Ok(None) };
        self.check(&table)?;
        Ok(Some(table).filter(|table| table.version().is_some_and(|version| version > 0)))
    }

    /// A table belongs to one view version for ever.
    fn check(&self, table: &DeltaTable) -> Result<(), OfflineError> {
        let snapshot = table.snapshot().map_err(|error| table_error(&self.location, error))?;
        let owner = snapshot.metadata().configuration().get(PROPERTY_VIEW_DIGEST);
        match owner {
            Some(digest) if *digest == self.view_digest => Ok(()),
            Some(digest) => Err(table_error(
                &self.location,
                format!("holds another definition of {} ({digest}); versions never change", self.view),
            )),
            None => Err(table_error(&self.location, "was not made by eadem; choose another offline location")),
        }
    }

    /// The table's state at a version; `None` if there is no table, or no job was committed to it by then.
    pub(crate) async fn state(&self, version: ReadVersion) -> Result<Option<TableState>, OfflineError> {
        if matches!(version, ReadVersion::NoTable | ReadVersion::At(0)) {
            return Ok(None);
        }
        let Some(mut table) = self.load_with_rows().await? else { return Ok(None) };
        if let ReadVersion::At(version) = version {
            table.load_version(version).await.map_err(|error| table_error(&self.location, error))?;
        }
        let snapshot = table.snapshot().map_err(|error| table_error(&self.location, error))?;
        let mut files: Vec<DataFile> = snapshot
            .log_data()
            .iter()
            .map(|file| DataFile {
                path: file.object_store_path().to_string(),
                bytes: u64::try_from(file.size()).unwrap_or_default(),
                event_time_us: file.stats().as_deref().and_then(event_time_range),
            })
            .collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Some(TableState { version: snapshot.version(), files }))
    }

    /// Makes a job's files visible, all at once and only once.
    pub(crate) async fn commit(
        &self,
        job: &str,
        adds: &[serde_json::Value],
        plan: &JobPlan,
    ) -> Result<u64, OfflineError> {
        let table = self.ensure().await?;
        commit_once(&self.location, &self.log_store, table, job, adds, Some(plan)).await
    }
}

/// Makes a job's refused rows visible in the view's quarantine table.
pub(crate) async fn commit_quarantine(
    location: &Location,
    job: &str,
    adds: &[serde_json::Value],
) -> Result<(), OfflineError> {
    let (_, log_store) = open_log(location);
    let table = load_or_create(location, &log_store, quarantine::delta_fields(), &[], &[]).await?;
    commit_once(location, &log_store, table, job, adds, None).await.map(|_| ())
}
