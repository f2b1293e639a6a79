//! The projects of a directory, and the stores of each.
//!
//! The first project is the directory's own: its registry also keeps tokens, quotas and which projects there are. Every other
//! one has a registry, an offline and an online store of its own, so that no name of one means anything in another.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, Weak};

use anyhow::Context as _;
use async_trait::async_trait;
use eadem_api::serving::{OnlineThenHistory, RowSource};
use eadem_api::{
    ApiState, ByProject, Clock, Metrics, PlanCache, Problem, ProjectFiles, Projects, Readiness, Refusals, RequestLog,
    SystemClock, Uploads, Usage,
};
use eadem_engine::Engine;
use eadem_offline::{Location, limit_object_stores};
use eadem_online::scylla::ScyllaStore;
use eadem_online::{CachedStore, DirectoryLock, EmbeddedOptions, EmbeddedStore, StoreError};
use eadem_registry::{DEFAULT_PROJECT, Registry, RegistryError};
use futures::future::join_all;
use tokio::sync::{OnceCell, Semaphore};

use crate::access::TokenBook;
use crate::adapters::{EngineTransforms, Inspector};
use crate::config::{CONFIGURATION_TABLES, Config};
use crate::dataset_diff::remove_left_scratch;
use crate::effects::HistoryEffects;
use crate::home::{NoOnlineStore, OpenError, Status, Stores, engine_config, history_of, not_ours};
use crate::job_threads::JobThreads;
use crate::jobs::JobRunner;
use crate::quarantine::RefusedRows;

/// Where a project's files are.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Sources and outputs of jobs are named relative to it.
    pub(crate) folder: PathBuf,
    /// What the process keeps there itself.
    pub(crate) data_dir: PathBuf,
}

impl Place {
    /// The place of a project of this directory.
    pub(crate) fn of(directory: &Path, config: &Config, project: &str) -> Self {
        let data_dir = directory.join(&config.store.data_dir);
        if project == DEFAULT_PROJECT {
            return Self { folder: directory.to_owned(), data_dir };
        }
        Self { folder: directory.join(OTHERS).join(project), data_dir: data_dir.join(OTHERS).join(project) }
    }
}

/// The folder with a folder for every other project.
const OTHERS: &str = "projects";

/// What makes a project's directory this process's, and tells others where it listens.
enum Owner {
    /// The online store in it.
    Store(Arc<EmbeddedStore>),
    /// The lock alone: the online store is elsewhere.
    Lock(DirectoryLock),
}

impl Owner {
    fn announce(&self, address: &str) -> Result<(), StoreError> {
        match self {
            Self::Store(store) => store.announce(address),
            Self::Lock(lock) => lock.announce(address),
        }
    }
}

/// A project's online store, which no other process of this machine has.
struct Held {
    owner: Owner,
    online: Arc<CachedStore>,
}

impl Held {
    async fn open(place: &Place, config: &Config, project: &str) -> Result<Self, OpenError> {
        let database = config.store.online_database(project).map_err(OpenError::Other)?;
        let folder = place.data_dir.join("online");
        let cache_bytes_max = config.store.online_cache_bytes_max;
        let (owner, online) = match database {
            None => {
                let store = Arc::new(EmbeddedStore::open(folder, EmbeddedOptions::default()).map_err(not_ours)?);
                // The directory is ours alone, and so is every write.
                (Owner::Store(Arc::clone(&store)), CachedStore::new(store, cache_bytes_max, true))
            }
            Some(database) => {
                let lock = DirectoryLock::acquire(folder).map_err(not_ours)?;
                let store = ScyllaStore::open(database).await.map_err(|error| OpenError::Other(error.into()))?;
                (Owner::Lock(lock), CachedStore::new(Arc::new(store), cache_bytes_max, false))
            }
        };
        Ok(Self { owner, online: Arc::new(online) })
    }
}

/// A project that is open.
pub(crate) struct OpenProject {
    pub(crate) state: Arc<ApiState>,
    pub(crate) jobs: JobRunner,
    /// `None`: another process holds it.
    owner: Option<Owner>,
}

impl OpenProject {
    /// Tells others where this process listens.
    pub(crate) fn announce(&self, address: &str) -> Result<(), StoreError> {
        self.owner.as_ref().map_or(Ok(()), |owner| owner.announce(address))
    }
}

/// The projects of a directory. Those that were asked for are open.
pub(crate) struct OpenProjects {
    /// What states of projects know of all of them.
    itself: Weak<Self>,
    directory: PathBuf,
    config: Config,
    /// Whether this process holds the directory, and with it all online stores in it.
    holds: bool,
    registry: Registry,
    engine: Engine,
    job_threads: Arc<JobThreads>,
    book: Arc<TokenBook>,
    usage: Arc<Usage>,
    uploads: Arc<Uploads>,
    in_flight: Arc<Semaphore>,
    body_bytes: Arc<Semaphore>,
    clock: Arc<dyn Clock>,
    /// Those that exist and were asked for. Each is opened once, however many ask for it.
    opened: RwLock<BTreeMap<String, Arc<OnceCell<Arc<OpenProject>>>>>,
    /// What is refused to strangers, whichever project they name.
    refusals: Arc<Refusals>,
}

impl OpenProjects {
    /// Opens the first project of a directory; makes what is not there yet. With `holds`, the directory becomes this process's.
    pub(crate) async fn open_first(
        directory: &Path,
        config: &Config,
        holds: bool,
    ) -> Result<(Arc<Self>, Arc<OpenProject>), OpenError> {
        let place = Place::of(directory, config, DEFAULT_PROJECT);
        make_folder(&place.data_dir).map_err(OpenError::Other)?;
        // Before anything else is opened: whoever does not get the directory leaves all of it alone.
        let held = match holds {
            true => Some(Held::open(&place, config, DEFAULT_PROJECT).await?),
            false => None,
        };
        let projects = Self::assemble(directory, config, holds, &place).await.map_err(OpenError::Other)?;
        let open = projects.open_at(DEFAULT_PROJECT, place, projects.registry.clone(), held);
        let main = projects.cell(DEFAULT_PROJECT).get_or_try_init(|| open).await.cloned();
        Ok((projects, main.map_err(OpenError::Other)?))
    }

    async fn assemble(directory: &Path, config: &Config, holds: bool, place: &Place) -> anyhow::Result<Arc<Self>> {
        limit_object_stores(config.store.limits());
        let registry = Registry::connect(&config.store.registry_address(&place.data_dir, DEFAULT_PROJECT)?).await?;
        let engine = Engine::new(engine_config(&config.engine, &place.data_dir)?)?;
        let usage = Arc::new(Usage::default());
        let book = TokenBook::open(registry.clone(), Arc::clone(&usage)).await?;
        let limits = &config.limits;
        let requests_max = limits.requests_in_flight_max.min(Semaphore::MAX_PERMITS);
        let bodies_bytes_max = limits.bodies_bytes_max.max(limits.body_bytes_max).min(Semaphore::MAX_PERMITS);
        Ok(Arc::new_cyclic(|itself| Self {
            itself: itself.clone(),
            directory: directory.to_owned(),
            config: config.clone(),
            holds,
            registry,
            uploads: Arc::new(Uploads::new(engine.clone(), &config.limits)),
            engine,
            job_threads: Arc::default(),
            book,
            usage,
            in_flight: Arc::new(Semaphore::new(requests_max)),
            body_bytes: Arc::new(Semaphore::new(bodies_bytes_max)),
            clock: Arc::new(SystemClock),
            opened: RwLock::default(),
            refusals: Arc::default(),
        }))
    }

    /// The tokens that are let in.
    pub(crate) fn book(&self) -> &Arc<TokenBook> {
        &self.book
    }

    /// Where jobs of all projects have their work done.
    pub(crate) fn job_threads(&self) -> &JobThreads {
        &self.job_threads
    }

    /// The routes of all projects, of which this is the first.
    pub(crate) fn routes(self: &Arc<Self>, main: &OpenProject) -> ByProject {
        ByProject::new(Arc::clone(&main.state), Arc::clone(self) as _)
    }

    /// A project, which is opened if it was not yet.
    ///
    /// # Errors
    /// No such project, or its stores cannot be opened.
    pub(crate) async fn project(&self, name: &str) -> anyhow::Result<Arc<OpenProject>> {
        let known = self.opened.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        let cell = match known {
            Some(cell) => cell,
            None => {
                self.registry.project(name).await?;
                self.cell(name)
            }
        };
        cell.get_or_try_init(|| self.open_other(name)).await.cloned()
    }

    async fn open_other(&self, name: &str) -> anyhow::Result<Arc<OpenProject>> {
        let place = Place::of(&self.directory, &self.config, name);
        make_folder(&place.folder)?;
        make_folder(&place.data_dir)?;
        let held = match self.holds {
            true => Some(Held::open(&place, &self.config, name).await?),
            false => None,
        };
        let address = self.config.store.registry_address(&place.data_dir, name)?;
        let registry = Registry::connect(&address).await?.of_project(name, &self.registry);
        self.open_at(name, place, registry, held).await
    }

    /// Opens every project there is. One that cannot be opened does not keep the others from being served.
    pub(crate) async fn open_all(&self) -> anyhow::Result<()> {
        let records = self.registry.projects().await?;
        join_all(records.iter().map(async |record| {
            if let Err(error) = self.project(&record.name).await {
                tracing::error!(project = record.name, error = format!("{error:#}"), "the project cannot be served");
            }
        }))
        .await;
        Ok(())
    }

    fn cell(&self, name: &str) -> Arc<OnceCell<Arc<OpenProject>>> {
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(opened.entry(name.to_owned()).or_default())
    }

    async fn open_at(
        &self,
        name: &str,
        place: Place,
        registry: Registry,
        held: Option<Held>,
    ) -> anyhow::Result<Arc<OpenProject>> {
        let (owner, online) = held.map(|held| (held.owner, held.online)).unzip();
        let config = &self.config;
        let root = config.store.offline_root(&self.directory, &place.data_dir, name);
        let metrics = Arc::new(Metrics::new(name).context("metrics")?);
        let usage = self.usage.of(name, &metrics);
        let transforms = EngineTransforms::new(registry.clone(), self.engine.clone(), Arc::clone(&usage));
        let (transforms, job_threads) = (Arc::new(transforms), Arc::clone(&self.job_threads));
        let stores = Stores::open(&place, config, registry, transforms, job_threads, online, &root)?;
        let history = history_of(&stores, config);
        let rows: Arc<dyn RowSource> = match &stores.online {
            Some(online) => {
                // Whoever held the directory before is gone: its lock is ours.
                stores.registry.forget_workers_of(&stores.home_id).await?;
                if let Err(error) = remove_left_scratch(&stores).await {
                    tracing::warn!(project = name, error = format!("{error:#}"), "the project is opened all the same");
                }
                let (registry, online) = (stores.registry.clone(), Arc::clone(online));
                let reads_max = config.limits.history_reads_max;
                Arc::new(OnlineThenHistory::new(registry, online, Arc::clone(&history), reads_max))
            }
            None => Arc::new(NoOnlineStore { stores: stores.clone() }),
        };
        let jobs = JobRunner::new(stores.clone(), &config.jobs);
        let state = ApiState {
            inspector: Arc::new(Inspector::new(stores.project.clone())),
            jobs: Arc::new(jobs.clone()),
            effects: Arc::new(HistoryEffects::new(stores.clone())),
            policy: config.policy.clone(),
            quarantine: Arc::new(RefusedRows::new(stores.clone())),
            status: Arc::new(Status::new(stores.clone(), config)),
            readiness: Readiness::default(),
            project: name.to_owned(),
            projects: self.itself.clone() as _,
            files: self.files_of(&place)?,
            credentials: Arc::clone(&self.book) as _,
            usage,
            refusals: if name == DEFAULT_PROJECT { Arc::clone(&self.refusals) } else { Arc::default() },
            main_refusals: Arc::clone(&self.refusals),
            registry: stores.registry,
            main_registry: self.registry.clone(),
            transforms: stores.transforms,
            rows,
            history,
            clock: Arc::clone(&self.clock),
            limits: config.limits.clone(),
            configuration_tables: CONFIGURATION_TABLES,
            plans: PlanCache::default(),
            metrics,
            request_log: RequestLog::of_share(config.server.request_log_share),
            in_flight: Arc::clone(&self.in_flight),
            body_bytes: Arc::clone(&self.body_bytes),
            uploads: Arc::clone(&self.uploads),
        };
        Ok(Arc::new(OpenProject { state: Arc::new(state), jobs, owner }))
    }
}

impl OpenProjects {
    /// What may be named in this place by those who are let in to one project.
    fn files_of(&self, place: &Place) -> anyhow::Result<ProjectFiles> {
        let main = Place::of(&self.directory, &self.config, DEFAULT_PROJECT);
        // In it are the stores of all projects.
        let root = self.config.store.offline_root(&main.folder, &main.data_dir, DEFAULT_PROJECT);
        let root = Location::parse(&root)?;
        let touches_stores = move |place: &str| {
            // What is no location is refused by whoever opens it.
            Location::parse(place).is_ok_and(|place| place.is_within(&root) || root.is_within(&place))
        };
        let others = main.folder.join(OTHERS);
        // The folder of all other projects is one's own where one is in it.
        let others = (!place.folder.starts_with(&others)).then_some(others);
        let not_yours: Vec<&Path> = std::iter::once(main.data_dir.as_path()).chain(others.as_deref()).collect();
        Ok(ProjectFiles::new(&place.folder, &not_yours, touches_stores))
    }
}

fn make_folder(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

#[async_trait]
impl Projects for OpenProjects {
    async fn open(&self, name: &str) -> Result<Arc<ApiState>, Problem> {
        let (projects, named) = (self.itself.upgrade(), name.to_owned());
        // Whoever asked may go away before a project is open, and the next one finds it open then.
        let opening = tokio::spawn(async move {
            let projects = projects.context("the server ends")?;
            projects.project(&named).await
        });
        match opening.await.unwrap_or_else(|error| Err(error.into())) {
            Ok(project) => Ok(Arc::clone(&project.state)),
            Err(error) => match error.downcast_ref::<RegistryError>() {
                Some(RegistryError::NotFound { .. }) => {
                    Err(Problem::not_found("unknown_project", format!("{error:#}")))
                }
                _ => Err(Problem::internal("the project could not be opened", format!("{error:#}"))),
            },
        }
    }

    fn opened(&self) -> Vec<Arc<ApiState>> {
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        opened.values().filter_map(|cell| Some(Arc::clone(&cell.get()?.state))).collect()
    }
}
