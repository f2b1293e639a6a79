//! What the routes share.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use eadem_online::CacheUsage;
use eadem_registry::model::{Placement, ResolvedService, StoredView, ViewVersion};
use eadem_registry::{Actor, DEFAULT_PROJECT, ObjectKind, Registry, RegistryError, SourceInspector};
use eadem_values::Digest;
use futures::StreamExt as _;
use prometheus::proto::MetricFamily;
use serde_json::Value as Json;
use tokio::sync::Semaphore;

use crate::access::{Credentials, ProjectFiles, ProjectUsage, Refusals};
use crate::clock::{Clock, as_us};
use crate::effect::{Effects, Policy};
use crate::followed::{Followed, Unread};
use crate::jobs::Jobs;
use crate::limits::Limits;
use crate::metrics::{Metrics, PlanCounters, StoredTable};
use crate::problem::Problem;
use crate::projects::Projects;
use crate::quarantine::Quarantine;
use crate::readiness::{Hindrance, Readiness};
use crate::request_log::RequestLog;
use crate::routes::Told;
use crate::serving::{History, RowSource, ServingPlan, Transforms};
use crate::uploads::Uploads;

/// How often the registry is asked whether another process changed it.
const REVISION_POLL: Duration = Duration::from_millis(500);

/// How long a scrape waits for what the stores hold.
const TABLES_MAX: Duration = Duration::from_secs(2);

/// How long the answer to a refused request waits for the trail.
const TELL_MAX: Duration = Duration::from_secs(2);

/// Plans kept at once; more and all are compiled again.
const PLANS_MAX: usize = 10_000;

/// Components of one plan that are loaded at once. Those that have to be compiled take a processor each.
const LOADS_AT_ONCE: usize = 4;

/// What the binary knows of the stores and the routes show.
#[async_trait]
pub trait StoreStatus: Send + Sync {
    /// What the online store holds, per view.
    ///
    /// # Errors
    /// A store that cannot be read.
    async fn online(&self) -> Result<Json, Problem>;

    /// The tables of the online store.
    ///
    /// # Errors
    /// A store that cannot be read.
    async fn tables(&self) -> Result<Vec<StoredTable>, Problem>;

    /// The offline and online tables of a view version: `{"offline": …, "online": […]}`.
    ///
    /// # Errors
    /// A store that cannot be read.
    async fn view_tables(&self, view: &ViewVersion) -> Result<Json, Problem>;

    /// What does not work at the moment; empty when ready.
    async fn not_ready(&self) -> Vec<Hindrance>;

    /// What is kept of the online store in memory; `None` where there is none.
    fn cache(&self) -> Option<CacheUsage>;
}

/// Everything that a route may need.
pub struct ApiState {
    /// Definitions and versions of the project.
    pub registry: Registry,
    /// Tokens, projects and quotas, which are those of all projects.
    pub main_registry: Registry,
    /// Transforms ready for a request.
    pub transforms: Arc<dyn Transforms>,
    /// Where rows are read.
    pub rows: Arc<dyn RowSource>,
    /// What was stored once.
    pub history: Arc<dyn History>,
    /// What a source's columns are.
    pub inspector: Arc<dyn SourceInspector>,
    /// Long work.
    pub jobs: Arc<dyn Jobs>,
    /// What plans would do to values.
    pub effects: Arc<dyn Effects>,
    /// What plans may do without being asked about it.
    pub policy: Policy,
    /// Refused rows.
    pub quarantine: Arc<dyn Quarantine>,
    /// The stores' own view of themselves.
    pub status: Arc<dyn StoreStatus>,
    /// Whether they answer.
    pub readiness: Readiness,
    /// The project.
    pub project: String,
    /// All projects of the server; gone where it ends.
    pub projects: Weak<dyn Projects>,
    /// Files that whoever is let in may name.
    pub files: ProjectFiles,
    /// Who is let in.
    pub credentials: Arc<dyn Credentials>,
    /// What the project uses, and may use.
    pub usage: Arc<ProjectUsage>,
    /// What was refused, before it is written.
    pub refusals: Arc<Refusals>,
    /// What was refused to those who may ask for nothing here, which is no business of the project's.
    pub main_refusals: Arc<Refusals>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What one request may ask for.
    pub limits: Limits,
    /// Tables of `eadem.toml` that are configuration and no definitions.
    pub configuration_tables: &'static [&'static str],
    /// Compiled services.
    pub plans: PlanCache,
    /// What was counted.
    pub metrics: Arc<Metrics>,
    /// Which requests are logged.
    pub request_log: RequestLog,
    /// Places for requests that are served at once, of all projects.
    pub in_flight: Arc<Semaphore>,
    /// Bytes that the bodies of requests may take at once, of all projects.
    pub body_bytes: Arc<Semaphore>,
    /// Components on their way in, of all projects.
    pub uploads: Arc<Uploads>,
}

impl ApiState {
    /// Tells in the trail that something was refused. What is refused again and again is counted. That it cannot be told is no
    /// reason to answer otherwise.
    pub(crate) async fn tell_refused(&self, told: &Told, code: &str, detail: &str) {
        let now_us = self.clock.now_us();
        let Told { actor, verb, object, acts_here } = told;
        let (refusals, registry) = match acts_here {
            true => (&self.refusals, &self.registry),
            false => (&self.main_refusals, &self.main_registry),
        };
        let entries = refusals.note(actor, verb, object, code, detail, now_us);
        if entries.is_empty() {
            return;
        }
        let registry = registry.clone();
        // Told also where the client goes away meanwhile: what follows within a minute is only counted.
        let telling = tokio::spawn(async move {
            if let Err(error) = registry.note_refusals(&entries, now_us).await {
                tracing::warn!(%error, "a refusal could not be told in the trail");
            }
        });
        if tokio::time::timeout(TELL_MAX, telling).await.is_err() {
            tracing::warn!(verb, code, "the registry takes long to be told of a refusal");
        }
    }

    /// The registry, in which changes are told as this one's.
    pub(crate) fn registry_of(&self, actor: &Actor) -> Registry {
        self.registry.acting(actor.clone())
    }

    /// The registry of all projects, in the same way.
    pub(crate) fn main_registry_of(&self, actor: &Actor) -> Registry {
        self.main_registry.acting(actor.clone())
    }

    /// Whether this is the project of whoever names none. What all projects have in common is told in its trail.
    pub(crate) fn is_main(&self) -> bool {
        self.project == DEFAULT_PROJECT
    }

    /// Loads the components that views run in requests before anybody asks, at the start and whenever the registry has changed:
    /// also those that came by way of another server. Goes on until the state is gone.
    pub async fn keep_components_loaded(state: Weak<Self>) {
        let Some(mut changes) = state.upgrade().map(|state| state.registry.changes()) else { return };
        while let Some(state) = state.upgrade() {
            state.load_components().await;
            drop(state);
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    async fn load_components(&self) {
        let views = match self.registry.views().await {
            Ok(views) => views,
            Err(error) => return tracing::warn!(%error, "nobody knows which components to load"),
        };
        let is_stored = |stored: &StoredView| stored.deployment.placement == Placement::OnWrite;
        let newest = views.iter().map(|view| &view.newest);
        let run = newest.filter(|view| !view.is_retired() && !view.stored.as_ref().is_some_and(is_stored));
        let components: BTreeSet<Digest> = run.map(|view| view.transform).collect();
        load(Arc::clone(&self.transforms), components).await;
    }

    /// What is counted of the project, and how its stores stand.
    pub(crate) async fn gather_metrics(&self) -> Result<Vec<MetricFamily>, prometheus::Error> {
        // A store that does not answer is a reason to look at metrics, not to give none.
        let tables = tokio::time::timeout(TABLES_MAX, self.status.tables()).await;
        let tables = tables.ok().and_then(Result::ok).unwrap_or_default();
        let revision = self.registry.known_revision();
        self.metrics.gather(revision, &tables, self.status.cache())
    }
}

/// How a request names what it wants.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Wanted {
    /// `name` or `name@version`.
    Service(String),
    /// A list of features, with the entity type where it was said.
    Features { names: Vec<String>, entity: Option<String> },
    /// All features of an entity type.
    Entity(Option<String>),
}

/// Services and lists of features, compiled. Each is compiled once for a revision of the registry.
pub struct PlanCache {
    plans: Followed<Wanted, Arc<CountedPlan>, Problem>,
    made_at: Instant,
    /// When the next request shall ask the registry, in microseconds since this was made.
    next_poll_us: AtomicU64,
}

/// A plan, and where what is served by it is counted.
pub(crate) struct CountedPlan {
    pub(crate) plan: ServingPlan,
    pub(crate) counters: PlanCounters,
}

impl Default for PlanCache {
    fn default() -> Self {
        Self { plans: Followed::new(PLANS_MAX), made_at: Instant::now(), next_poll_us: AtomicU64::new(0) }
    }
}

impl PlanCache {
    /// The registry's revision as this process last saw it. A registry that does not tell of changes is asked at most every
    /// half second; one that cannot be asked has not changed as far as anybody knows.
    async fn revision(&self, registry: &Registry) -> u64 {
        let last = registry.known_revision();
        if registry.tells_of_changes() || !self.is_poll_due() {
            return last;
        }
        match registry.revision().await {
            Ok(revision) => revision,
            Err(error) => {
                tracing::warn!(%error, "the registry cannot be asked whether it has changed; serving on");
                last
            }
        }
    }

    /// Whether this request is the one to ask. Nobody waits for anybody: a lock that is waited for would be handed from one
    /// request to the next, and put all of them in a row.
    fn is_poll_due(&self) -> bool {
        let (now_us, due_us) = (as_us(self.made_at.elapsed()), self.next_poll_us.load(Ordering::Relaxed));
        let next_us = now_us.saturating_add(as_us(REVISION_POLL));
        let claim = || self.next_poll_us.compare_exchange(due_us, next_us, Ordering::Relaxed, Ordering::Relaxed);
        now_us >= due_us && claim().is_ok()
    }

    pub(crate) async fn plan(&self, state: &ApiState, wanted: &Wanted) -> Result<Arc<CountedPlan>, Problem> {
        let revision = self.revision(&state.registry).await;
        let compiled = self.plans.get(wanted, revision, |old| {
            let (registry, transforms, metrics) =
                (state.registry.clone(), Arc::clone(&state.transforms), Arc::clone(&state.metrics));
            compile(registry, transforms, metrics, wanted.clone(), old.is_some())
        });
        compiled.await
    }
}

/// Compiles a plan, and has its components loaded. One that takes another's place does so once they are; for a first one nobody
/// waits longer than has to be.
async fn compile(
    registry: Registry,
    transforms: Arc<dyn Transforms>,
    metrics: Arc<Metrics>,
    wanted: Wanted,
    replaces: bool,
) -> Result<Arc<CountedPlan>, Unread<Problem>> {
    let service = resolve(&registry, &wanted).await?;
    let plan = ServingPlan::compile(Arc::new(service))
        .map_err(|error| Unread::Refused(Problem::internal("the service could not be compiled", error)))?;
    let components = plan.components();
    if !components.is_empty() {
        let loading = load(transforms, components);
        match replaces {
            true => loading.await,
            false => drop(tokio::spawn(loading)),
        }
    }
    Ok(Arc::new(CountedPlan { counters: metrics.of_plan(&plan), plan }))
}

/// One that does not load is tried again by the request that needs it, which says why.
async fn load(transforms: Arc<dyn Transforms>, components: BTreeSet<Digest>) {
    let one = |component: Digest| {
        let transforms = Arc::clone(&transforms);
        async move {
            if let Err(error) = transforms.load(&component).await {
                tracing::warn!(%error, "a component could not be loaded");
            }
        }
    };
    futures::stream::iter(components).for_each_concurrent(LOADS_AT_ONCE, one).await;
}

impl From<RegistryError> for Unread<Problem> {
    fn from(error: RegistryError) -> Self {
        match error.is_callers_fault() {
            true => Self::Refused(error.into()),
            false => Self::Failed(error.into()),
        }
    }
}

impl From<Problem> for Unread<Problem> {
    fn from(refused: Problem) -> Self {
        Self::Refused(refused)
    }
}

async fn resolve(registry: &Registry, wanted: &Wanted) -> Result<ResolvedService, Unread<Problem>> {
    let service = match wanted {
        Wanted::Service(reference) => registry.resolve_service(reference).await?,
        Wanted::Features { names, entity } => registry.resolve_features(names, entity.as_deref()).await?,
        Wanted::Entity(entity) => {
            let (entity, names) = features_of_entity(registry, entity.as_deref()).await?;
            registry.resolve_features(&names, Some(&entity)).await?
        }
    };
    // One that is retired is known, and not served.
    if let Some(name) = &service.name {
        let name = format_args!("{name}@{}", service.version.unwrap_or_default());
        crate::routes::check_not_retired(ObjectKind::Service, name, service.mark.as_ref())?;
    }
    Ok(service)
}

/// Every stored feature of an entity type, by bare name where only one of its views has it. Without a name, the only
/// entity type there is.
async fn features_of_entity(
    registry: &Registry,
    entity: Option<&str>,
) -> Result<(String, Vec<String>), Unread<Problem>> {
    let entity = match entity {
        Some(name) => registry.entity(name).await?.name,
        None => {
            let mut entities = registry.entities().await?;
            match (entities.pop(), entities.is_empty()) {
                (Some(only), true) => only.name,
                (None, _) => {
                    let detail = "no entity is defined; apply definitions first";
                    return Err(Problem::not_found("unknown_entity", detail).into());
                }
                (Some(last), false) => {
                    let names: Vec<String> = entities.into_iter().chain([last]).map(|entity| entity.name).collect();
                    let detail = format!("say which features, which service, or which entity: {}", names.join(", "));
                    return Err(Problem::bad_request("ambiguous_entity", detail).into());
                }
            }
        }
    };
    let views = registry.views().await?;
    let of_entity = views
        .iter()
        .map(|view| &view.newest)
        .filter(|view| !view.is_retired() && view.stored.as_ref().is_some_and(|stored| stored.entity.name == entity));
    let mut features: Vec<(String, String)> = Vec::new();
    for view in of_entity {
        features.extend(view.description.outputs.iter().map(|output| (view.id.name.clone(), output.name.clone())));
    }
    if features.is_empty() {
        let detail = format!("no view describes the entity `{entity}`");
        return Err(Problem::not_found("unknown_feature", detail).into());
    }
    let served = views.iter().filter(|view| !view.newest.is_retired());
    let all = served.flat_map(|view| &view.newest.description.outputs);
    let mut views_with: HashMap<&str, usize> = HashMap::new();
    for output in all {
        *views_with.entry(output.name.as_str()).or_default() += 1;
    }
    let is_unique = |feature: &str| views_with.get(feature) == Some(&1);
    let name = |(view, feature): &(String, String)| {
        if is_unique(feature) { feature.clone() } else { format!("{view}:{feature}") }
    };
    Ok((entity.clone(), features.iter().map(name).collect()))
}
