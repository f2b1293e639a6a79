//! The registry in SQLite: one file, any number of readers, one writer at a time.

mod database;
mod datasets;
mod entities;
mod epochs;
mod erasures;
mod jobs;
mod lifecycle;
mod projects;
mod search;
mod services;
mod sources;
mod tokens;
mod trail;
mod transforms;
mod views;
mod workers;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use eadem_values::{Description, Digest};
use sqlx::{Any, AnyConnection, AnyPool, AssertSqlSafe, Row, Transaction};
use tokio::sync::watch;

use database::{Database, Dialect};
use erasures::ErasureCache;

use crate::access::Actor;
use crate::error::{AppliedChange, ObjectKind, RegistryError};
use crate::model::{About, ViewVersion};

pub use database::{PostgresAddress, RegistryAddress};
pub use datasets::{DatasetColumn, DatasetRecord};
pub use epochs::{Epoch, EpochState};
pub use erasures::{EntityErasures, ErasedEntity, Erasures, NewErasure};
pub use jobs::{ChunkWork, JobChunk, JobRecord, JobState};
pub use lifecycle::{LifecycleChange, LifecycleState, Mark, Marked};
pub use projects::{DEFAULT_PROJECT, ProjectRecord, Quota};
pub use search::{SEARCH_KINDS, SEARCH_LIMIT_MAX, Search, SearchHit, SearchHitState, SearchResult};
pub use services::ServiceSummary;
pub use tokens::{NewToken, TokenRecord};
pub use trail::{TrailEntry, TrailEvent, TrailFault, TrailFilter, TrailHead, TrailOutcome, TrailVerdict};
pub use transforms::{Acceptance, TransformRecord};
pub use views::ViewSummary;
pub use workers::{JobActivity, JobWorker, NewWorker, PartClaim, RecordedWork, WorkerReport};

/// What planning and resolving read.
pub(crate) mod read {
    pub(crate) use super::datasets::require_dataset_id;
    pub(crate) use super::entities::{load_entity, unknown_entity};
    pub(crate) use super::epochs::is_online;
    pub(crate) use super::lifecycle::{
        datasets_of, datasets_of_view, dependants_of, load_service_mark, load_service_marks, load_transform_marks,
        marked_versions, readers_of, transforms_named,
    };
    pub(crate) use super::services::{
        load_service_entries, load_service_head, load_service_versions, load_written_entries, require_service_version,
    };
    pub(crate) use super::sources::{load_columns, load_source, unknown_source};
    pub(crate) use super::trail::head_digest;
    pub(crate) use super::transforms::{load_description, transform_id};
    pub(crate) use super::views::{
        head_version_id, load_upstream_pins, load_versions, load_view_version, require_view_version,
    };
}

/// What applying writes.
pub(crate) mod write {
    pub(crate) use super::entities::save_entity;
    pub(crate) use super::search::{Indexed, Indexer};
    pub(crate) use super::services::{insert_service_version, save_service, set_service_head};
    pub(crate) use super::sources::save_source;
    pub(crate) use super::views::{insert_version, save_deployment, save_upstreams, save_view, set_head};
}

pub(crate) use lifecycle::read_mark;
pub(crate) use services::WrittenEntry;

/// The registry. Cheap to clone; all clones share connections, cache and subscribers.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
    /// Who changes it through this handle.
    actor: Arc<Actor>,
    project: Arc<OfProject>,
}

/// The project that a registry's definitions belong to.
struct OfProject {
    name: String,
    /// Where it is kept what the project may have; `None`: in this registry itself.
    main: Option<Registry>,
}

struct Shared {
    database: Database,
    announced: watch::Sender<u64>,
    cache: Mutex<Cache>,
    erasures: ErasureCache,
}

/// How far the registry has got: what processes tell each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reached {
    revision: u64,
    /// Told too, so that nobody has to ask at each revision whether there is an erasure to be heeded.
    erasures_revision: u64,
}

impl Reached {
    fn read(row: &SqlRow) -> Result<Self, RegistryError> {
        let revision = unsigned(row.try_get("revision")?)?;
        Ok(Self { revision, erasures_revision: unsigned(row.try_get("erasures_revision")?)? })
    }

    fn to_message(self) -> String {
        format!("{} {}", self.revision, self.erasures_revision)
    }

    fn of_message(text: &str) -> Option<Self> {
        let (revision, erasures_revision) = text.split_once(' ')?;
        Some(Self { revision: revision.parse().ok()?, erasures_revision: erasures_revision.parse().ok()? })
    }
}

/// Objects as they stand at one revision.
#[derive(Default)]
struct Cache {
    revision: u64,
    view_versions: HashMap<i64, Arc<ViewVersion>>,
    descriptions: HashMap<i64, (Digest, Arc<Description>)>,
}

/// A row of a result.
pub(crate) type SqlRow = sqlx::any::AnyRow;

/// A transaction.
pub(crate) struct Session {
    transaction: Transaction<'static, Any>,
}

impl Session {
    /// Where queries run.
    pub(crate) fn sql(&mut self) -> &mut AnyConnection {
        &mut self.transaction
    }
}

/// One consistent view of the registry.
pub(crate) struct Snapshot {
    session: Session,
    pub(crate) revision: u64,
    pub(crate) definitions_revision: u64,
    shared: Arc<Shared>,
}

impl std::ops::Deref for Snapshot {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl std::ops::DerefMut for Snapshot {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

/// One change of the registry, visible as a whole when it is committed.
pub(crate) struct Change {
    session: Session,
    shared: Arc<Shared>,
    actor: Arc<Actor>,
    project: Arc<OfProject>,
}

impl std::ops::Deref for Change {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl std::ops::DerefMut for Change {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

impl Change {
    /// Who makes it.
    pub(crate) fn actor(&self) -> &Actor {
        &self.actor
    }

    /// Notes what happens to objects as one more revision of the definitions, and says which.
    pub(crate) async fn note_definitions(
        &mut self,
        actions: &[(ObjectKind, &str, String)],
        now_us: i64,
    ) -> Result<u64, RegistryError> {
        let revision: i64 = sqlx::query_scalar(
            "UPDATE registry_state SET definitions_revision = definitions_revision + 1 RETURNING definitions_revision",
        )
        .fetch_one(self.sql())
        .await?;
        let actor = self.actor().name.clone();
        let placed: Vec<_> = (0_i64..).zip(actions).collect();
        for placed in placed.chunks(ROWS_PER_STATEMENT) {
            let mut query = sqlx::query(AssertSqlSafe(format!(
                "INSERT INTO definition_change (definitions_revision, position, at_us, object_kind, object_name, action, actor)
                 VALUES {}",
                rows_of_parameters(placed.len(), 7)
            )))
            .persistent(false);
            for (position, (kind, name, action)) in placed {
                query = query.bind(revision).bind(*position).bind(now_us).bind(kind.as_str());
                query = query.bind(*name).bind(action).bind(&actor);
            }
            query.execute(self.sql()).await?;
        }
        unsigned(revision)
    }

    /// Commits what servers must follow: the revision moves on, and subscribers hear of it.
    pub(crate) async fn commit_and_announce(mut self) -> Result<u64, RegistryError> {
        let moved = "UPDATE registry_state SET revision = revision + 1 RETURNING revision, erasures_revision";
        let reached = Reached::read(&sqlx::query(moved).fetch_one(self.sql()).await?)?;
        self.shared.database.announce(&mut self.session.transaction, reached).await?;
        self.session.transaction.commit().await?;
        self.shared.announce(reached);
        Ok(reached.revision)
    }

    /// Commits what no server needs to follow.
    pub(crate) async fn commit_quietly(self) -> Result<(), RegistryError> {
        Ok(self.session.transaction.commit().await?)
    }
}

impl Shared {
    /// Asks the database for the number of changes so far.
    async fn refresh(&self) -> Result<u64, RegistryError> {
        let asked = sqlx::query("SELECT revision, erasures_revision FROM registry_state");
        let reached = Reached::read(&asked.fetch_one(&self.database.readers).await?)?;
        self.announce(reached);
        Ok(reached.revision)
    }

    fn announce(&self, Reached { revision, erasures_revision }: Reached) {
        // First: whoever knows the revision shall know of its erasures.
        self.erasures.hear_of(erasures_revision);
        self.announced.send_if_modified(|last| {
            let is_newer = revision > *last;
            if is_newer {
                *last = revision;
            }
            is_newer
        });
    }

    fn with_cache<T>(&self, revision: u64, use_cache: impl FnOnce(&mut Cache) -> T) -> Option<T> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.revision > revision {
            return None;
        }
        if cache.revision < revision {
            *cache = Cache { revision, ..Cache::default() };
        }
        Some(use_cache(&mut cache))
    }
}

impl Registry {
    /// Opens the registry in this file, makes it if there is none, and brings its schema up to date.
    ///
    /// # Errors
    /// As [`Registry::connect`].
    pub async fn open(file: &Path) -> Result<Self, RegistryError> {
        Self::connect(&RegistryAddress::File(file.to_owned())).await
    }

    /// Opens the registry at this address, makes it if there is none, and brings its schema up to date.
    ///
    /// # Errors
    /// What is there is no registry, cannot be reached, or was written by a newer version.
    pub async fn connect(address: &RegistryAddress) -> Result<Self, RegistryError> {
        let (announced, _) = watch::channel(0);
        let database = Database::open(address).await?;
        let shared = Arc::new(Shared {
            database,
            announced,
            cache: Mutex::new(Cache::default()),
            erasures: ErasureCache::default(),
        });
        if let Dialect::Postgres(address) = &shared.database.dialect {
            database::follow(address.clone(), Arc::downgrade(&shared));
        }
        shared.refresh().await?;
        let project = Arc::new(OfProject { name: DEFAULT_PROJECT.to_owned(), main: None });
        let registry = Self { shared, actor: Arc::new(Actor::system()), project };
        registry.index_if_empty().await?;
        Ok(registry)
    }

    /// The same registry, in which changes are told as this one's.
    #[must_use]
    pub fn acting(&self, actor: Actor) -> Self {
        Self { actor: Arc::new(actor), ..self.clone() }
    }

    /// The same registry as that of a project whose quotas are kept in another one, with those of all projects.
    #[must_use]
    pub fn of_project(&self, name: &str, main: &Self) -> Self {
        let project = OfProject { name: name.to_owned(), main: Some(main.clone()) };
        Self { project: Arc::new(project), ..self.clone() }
    }

    /// Closes all connections; what is committed is in the database.
    pub async fn close(&self) {
        self.shared.database.readers.close().await;
        self.shared.database.writer.close().await;
    }

    /// The number of changes so far. Cheap: one row. Subscribers of [`Registry::changes`] hear of changes that other
    /// processes made whenever somebody asks.
    ///
    /// # Errors
    /// The database failed.
    pub async fn revision(&self) -> Result<u64, RegistryError> {
        self.shared.refresh().await
    }

    /// The number of `apply`s so far: what a plan is made against.
    ///
    /// # Errors
    /// The database failed.
    pub async fn definitions_revision(&self) -> Result<u64, RegistryError> {
        Ok(self.snapshot().await?.definitions_revision)
    }

    /// Whether subscribers of [`Registry::changes`] hear of what other processes change without asking.
    pub fn tells_of_changes(&self) -> bool {
        matches!(self.shared.database.dialect, Dialect::Postgres(_))
    }

    /// Follows the revision. The receiver holds the newest one; it wakes at each change made through this registry.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.announced.subscribe()
    }

    /// The newest revision that this process has heard of, without asking for it.
    pub fn known_revision(&self) -> u64 {
        *self.shared.announced.borrow()
    }

    pub(crate) async fn snapshot(&self) -> Result<Snapshot, RegistryError> {
        let transaction = self.shared.database.begin_snapshot().await?;
        let mut session = Session { transaction };
        let row =
            sqlx::query("SELECT revision, definitions_revision FROM registry_state").fetch_one(session.sql()).await?;
        Ok(Snapshot {
            revision: unsigned(row.try_get("revision")?)?,
            definitions_revision: unsigned(row.try_get("definitions_revision")?)?,
            session,
            shared: Arc::clone(&self.shared),
        })
    }

    pub(crate) async fn change(&self) -> Result<Change, RegistryError> {
        let transaction = self.shared.database.begin_change().await?;
        let (shared, actor, project) = (Arc::clone(&self.shared), Arc::clone(&self.actor), Arc::clone(&self.project));
        Ok(Change { session: Session { transaction }, shared, actor, project })
    }

    /// To be called once much was written. That it failed makes queries slow at worst.
    pub(crate) async fn gather_statistics(&self) {
        if let Err(error) = self.shared.database.gather_statistics().await {
            tracing::warn!(%error, "the registry's database could not count what its tables hold");
        }
    }

    pub(crate) fn readers(&self) -> &AnyPool {
        &self.shared.database.readers
    }
}

/// Rows that one statement writes or asks for: enough to be quick, and few enough for the parameters of both databases.
pub(crate) const ROWS_PER_STATEMENT: usize = 500;

/// `($1, $2), ($3, $4)`, so many rows of so many columns.
pub(crate) fn rows_of_parameters(rows: usize, columns: usize) -> String {
    let row = |row: usize| {
        let parameters: Vec<String> = (1..=columns).map(|column| format!("${}", row * columns + column)).collect();
        format!("({})", parameters.join(", "))
    };
    (0..rows).map(row).collect::<Vec<_>>().join(", ")
}

pub(crate) async fn changes_since(
    connection: &mut Session,
    definitions_revision: u64,
) -> Result<Vec<AppliedChange>, RegistryError> {
    const LISTED_MAX: i64 = 50;
    let rows = sqlx::query(
        "SELECT definitions_revision, at_us, object_kind, object_name, action FROM definition_change
         WHERE definitions_revision > $1 ORDER BY definitions_revision, position LIMIT $2",
    )
    .bind(signed(definitions_revision)?)
    .bind(LISTED_MAX)
    .fetch_all(connection.sql())
    .await?;
    rows.iter()
        .map(|row| {
            Ok(AppliedChange {
                definitions_revision: unsigned(row.try_get("definitions_revision")?)?,
                at_us: row.try_get("at_us")?,
                object_kind: row.try_get("object_kind")?,
                object_name: row.try_get("object_name")?,
                action: row.try_get("action")?,
            })
        })
        .collect()
}

pub(crate) async fn load_tags(connection: &mut Session, kind: &str, name: &str) -> Result<Vec<String>, RegistryError> {
    let tags =
        sqlx::query_scalar("SELECT tag FROM object_tag WHERE object_kind = $1 AND object_name = $2 ORDER BY tag")
            .bind(kind)
            .bind(name)
            .fetch_all(connection.sql())
            .await?;
    Ok(tags)
}

pub(crate) async fn save_tags(
    connection: &mut Session,
    kind: &str,
    name: &str,
    about: &About,
) -> Result<(), RegistryError> {
    sqlx::query("DELETE FROM object_tag WHERE object_kind = $1 AND object_name = $2")
        .bind(kind)
        .bind(name)
        .execute(connection.sql())
        .await?;
    for tag in &about.tags {
        sqlx::query("INSERT INTO object_tag (object_kind, object_name, tag) VALUES ($1, $2, $3)")
            .bind(kind)
            .bind(name)
            .bind(tag)
            .execute(connection.sql())
            .await?;
    }
    Ok(())
}

/// A count as SQL stores it.
pub(crate) fn signed(count: u64) -> Result<i64, RegistryError> {
    i64::try_from(count).map_err(|_| RegistryError::Invalid(format!("{count} is too large to be stored")))
}

/// A count as it was stored.
pub(crate) fn unsigned<T: TryFrom<i64>>(stored: i64) -> Result<T, RegistryError> {
    T::try_from(stored).map_err(|_| RegistryError::damaged(format!("{stored} stands where a count is expected")))
}

/// A flag as it was stored: the databases have no type for it in common.
pub(crate) fn read_flag(stored: i64) -> bool {
    stored != 0
}

pub(crate) fn read_digest(stored: Vec<u8>) -> Result<Digest, RegistryError> {
    let bytes: [u8; 32] = stored.try_into().map_err(|_| RegistryError::damaged("a digest has not 32 bytes"))?;
    Ok(Digest::from_bytes(bytes))
}

pub(crate) fn read_name<T>(stored: &str, read: impl Fn(&str) -> Option<T>) -> Result<T, RegistryError> {
    read(stored).ok_or_else(|| RegistryError::damaged(format!("unknown word `{stored}`")))
}
