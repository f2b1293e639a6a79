//! A view's Delta table: opening it, and reading its state.

use std::collections::BTreeMap;
use std::sync::Arc;

use deltalake_core::DeltaTable;
use deltalake_core::kernel::StructField;
use deltalake_core::kernel::transaction::CommitProperties;
use deltalake_core::logstore::{LogStoreRef, StorageConfig, default_logstore};
use deltalake_core::operations::create::CreateBuilder;
use deltalake_core::protocol::SaveMode;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};

use crate::cache::Caches;
use crate::commit::live_files;
use crate::erasure::ErasureLedger;
use crate::error::OfflineError;
use crate::lanes::{CommittedLane, Lanes, read_lane_log, withdrawn_at};
use crate::location::{Location, OfflineStore};
use crate::schema::{COLUMN_EVENT_DATE, TableSchema};
use crate::spec::{Placement, ViewSpec};

/// Where a table's log is, relative to the table.
pub(crate) const LOG_FOLDER: &str = "_delta_log";

/// How the names of data files end.
pub(crate) const DATA_EXTENSION: &str = ".parquet";

const PROPERTY_VIEW: &str = "eadem.view";
const PROPERTY_VIEW_DIGEST: &str = "eadem.viewDigest";
/// Tables that were made before placements could be switched do not say it.
const PROPERTY_PLACEMENT: &str = "eadem.placement";

/// A data file of one version of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFile {
    /// Relative to the table.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// The range that its event times lie in, ends included, in microseconds; `None` if its writer did not say.
    pub event_time_us: Option<(i64, i64)>,
    /// Whether every row was known at its event time, as its writer said: then there is no need to read both.
    #[serde(default)]
    pub is_known_at_event_time: bool,
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

/// How much a table holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableContents {
    /// The version: the commit axis of time.
    pub commit: u64,
    /// Its data files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Their rows; `None` if some writer did not say.
    pub rows: Option<u64>,
}

/// The Delta table of one view version.
#[derive(Debug, Clone)]
pub struct ViewTable {
    pub(crate) location: Location,
    pub(crate) schema: TableSchema,
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) log_store: LogStoreRef,
    pub(crate) caches: Arc<Caches>,
    pub(crate) erasures: Option<Arc<dyn ErasureLedger>>,
    view: String,
    view_digest: String,
    placement: Placement,
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
        let location = self.table_location(view)?;
        let (store, log_store) = open_log(&location);
        Ok(ViewTable {
            location,
            schema: TableSchema::try_new(view)?,
            store,
            log_store,
            caches: self.caches.clone(),
            erasures: self.erasures.clone(),
            view: view.id(),
            view_digest: view.digest.clone(),
            placement: view.placement,
        })
    }
}

pub(crate) fn open_log(location: &Location) -> (Arc<dyn ObjectStore>, LogStoreRef) {
    let store: Arc<dyn ObjectStore> = Arc::new(PrefixStore::new(location.store.clone(), location.path.clone()));
    let log_store = default_logstore(store.clone(), location.store.clone(), &location.url, &StorageConfig::default());
    (store, log_store)
}

pub(crate) fn table_error(location: &Location, reason: impl std::fmt::Display) -> OfflineError {
    OfflineError::Table { table: location.url.to_string(), reason: reason.to_string() }
}

/// Deletes a file. One that somebody else has deleted already is as good.
pub(crate) async fn delete_if_there(store: &dyn ObjectStore, path: &Path) -> Result<(), OfflineError> {
    match store.delete(path).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What the store says of a file, if there is one.
pub(crate) async fn meta_if_there(store: &dyn ObjectStore, path: &Path) -> Result<Option<ObjectMeta>, OfflineError> {
    match store.head(path).await {
        Ok(meta) => Ok(Some(meta)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether there is such a file.
pub(crate) async fn is_there(store: &dyn ObjectStore, path: &Path) -> Result<bool, OfflineError> {
    Ok(meta_if_there(store, path).await?.is_some())
}

/// Loads a table's log; `None` if there is no table.
pub(crate) async fn load(location: &Location, log_store: &LogStoreRef) -> Result<Option<DeltaTable>, OfflineError> {
    let mut table = DeltaTable::new(log_store.clone());
    match table.verify_deltatable_existence().await {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(error) => return Err(table_error(location, error)),
    }
    table.load().await.map_err(|error| table_error(location, error))?;
    Ok(Some(table))
}

pub(crate) async fn load_or_create(
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

/// The actions of a commit; none if there is no such version.
pub(crate) async fn read_commit(
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

impl ViewTable {
    /// The names of the join keys, in declared order.
    pub(crate) fn key_names(&self) -> Vec<String> {
        self.schema.keys.iter().map(|(name, _)| name.clone()).collect()
    }

    /// `name@version` of the view.
    pub(crate) fn view_id(&self) -> &str {
        &self.view
    }

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

    /// What the table holds now; `None` if nothing was ever loaded.
    ///
    /// # Errors
    /// A log that cannot be read.
    pub async fn contents(&self) -> Result<Option<TableContents>, OfflineError> {
        let Some(table) = self.load_with_rows().await? else { return Ok(None) };
        let files = live_files(&table, &self.location)?;
        Ok(Some(TableContents {
            commit: table.version().unwrap_or_default(),
            files: files.len(),
            bytes: files.iter().map(|file| file.file.bytes).sum(),
            rows: files.iter().map(|file| file.rows).sum(),
        }))
    }

    /// The files whose rows are in the table, by path.
    ///
    /// # Errors
    /// A log that cannot be read.
    pub async fn lanes(&self) -> Result<BTreeMap<String, Vec<CommittedLane>>, OfflineError> {
        match self.version().await? {
            Some(latest) => Ok(read_lane_log(&self.location, &self.log_store, latest).await?.lanes),
            None => Ok(Lanes::new()),
        }
    }

    pub(crate) async fn ensure(&self) -> Result<DeltaTable, OfflineError> {
        let properties = [
            (PROPERTY_VIEW, self.view.clone()),
            (PROPERTY_VIEW_DIGEST, self.view_digest.clone()),
            (PROPERTY_PLACEMENT, self.placement.as_str().to_owned()),
        ];
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
    pub(crate) async fn load_with_rows(&self) -> Result<Option<DeltaTable>, OfflineError> {
        let Some(table) = load(&self.location, &self.log_store).await? else { return Ok(None) };
        self.check(&table)?;
        Ok(Some(table).filter(|table| table.version().is_some_and(|version| version > 0)))
    }

    /// A table belongs to one view version, in one placement, for ever.
    pub(crate) fn check(&self, table: &DeltaTable) -> Result<(), OfflineError> {
        let snapshot = table.snapshot().map_err(|error| table_error(&self.location, error))?;
        let configuration = snapshot.metadata().configuration();
        let owner = configuration.get(PROPERTY_VIEW_DIGEST);
        if let Some(placement) = configuration.get(PROPERTY_PLACEMENT)
            && placement != self.placement.as_str()
        {
            let reason = format!(
                "holds {} as it was placed {placement}, and is read as {}; the registry is not the one that it was \
                 written with",
                self.view,
                self.placement.as_str()
            );
            return Err(table_error(&self.location, reason));
        }
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
        self.state_of(&table).map(Some)
    }

    /// The files of a table in the state in which it was loaded.
    pub(crate) fn state_of(&self, table: &DeltaTable) -> Result<TableState, OfflineError> {
        let version = table.version().unwrap_or_default();
        let files = live_files(table, &self.location)?.into_iter().map(|live| live.file).collect();
        Ok(TableState { version, files })
    }

    /// The version, at or before the current one, in which rows were last taken out of the table; `None`: never.
    ///
    /// # Errors
    /// A log that cannot be read.
    pub async fn withdrawn_at(&self) -> Result<Option<u64>, OfflineError> {
        match self.version().await? {
            Some(latest) => withdrawn_at(&self.location, &self.log_store, latest).await,
            None => Ok(None),
        }
    }
}
