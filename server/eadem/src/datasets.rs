//! Training sets: a service of the registry as the offline store makes them, and their record.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail};
use eadem_api::serving::validation;
use eadem_api::{Problem, check_not_retired};
use eadem_engine::CallClass;
use eadem_offline::{
    DatasetFeature, DatasetOptions, DatasetReport, DatasetSpec, DatasetWatch, KeptSpine, Location, OfflineError,
    OnDemandBinding, OnDemandView, OutputFormat, ProtectedPlace, ReadVersion, Recipe, SpineColumns, SpineQuery,
    StoredView, ViewOfService, create_dataset, keep_entities_spine, rebuild_dataset, tables_of_query, unless_cancelled,
};
use eadem_registry::model::{BoundTo, Placement, ResolvedService, ViewRef, ViewVersion, required_key_name};
use eadem_registry::{DatasetColumn, DatasetRecord, ObjectKind, Registry};
use eadem_semantics::{AsStored, InvalidAsStored, KnownAtCut};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use tokio::sync::Semaphore;

use crate::adapters::source_spec;
use crate::dataset_diff;
pub(crate) use crate::dataset_request::DatasetRequest;
use crate::dataset_request::{CreateRequest, DiffRequest, PinnedInputs, RebuildRequest, SpineSource};
use crate::erasure;
use crate::home::Stores;
use crate::placement::ambiguous_commit;
use crate::workers::Handle;

/// Threads that read each view's history.
const WORKERS: usize = 2;

/// What is written into the specification of a job that makes a training set.
pub(crate) struct Pins {
    /// `name@version`.
    pub(crate) service: String,
    pub(crate) inputs: PinnedInputs,
}

/// Checks what can be checked before the work begins, and pins what a new training set is made from: the service's version,
/// the commits of its tables, a copy of the spine where it is a file.
///
/// # Errors
/// 404 for a service or dataset that does not exist, 400 for a spine, a column, a cut, a split or an output that cannot be.
pub(crate) async fn check_and_pin(stores: &Stores, request: &DatasetRequest) -> Result<Option<Pins>, Problem> {
    let malformed = |detail: String| Problem::bad_request("malformed_job", detail);
    // Before anything else is said of them: a URL may hold what must not be repeated.
    let named = request.locations().into_iter().try_for_each(Location::check);
    named.map_err(|error| malformed(error.to_string()))?;
    let check_place = |output: &str| {
        let is_absolute = Path::new(output).is_absolute() || output.contains("://");
        if !is_absolute || is_in_the_stores(stores, output).map_err(|error| malformed(error.to_string()))? {
            let reason = "name an absolute path outside the store's own directory";
            return Err(malformed(format!("output `{output}`: {reason}")));
        }
        Ok(())
    };
    match request {
        DatasetRequest::Rebuild(request) => {
            if OutputFormat::of_name(&request.output).is_none() {
                let output = &request.output;
                return Err(malformed(format!("output `{output}`: a training set is a .parquet or an .arrow file")));
            }
            check_place(&request.output)?;
            let record = known_dataset(stores, &request.rebuild).await?;
            let protected = protected_from_rebuild(stores, &record).await;
            let protected =
                protected.map_err(|error| Problem::internal("the sources could not be read", format!("{error:#}")))?;
            ProtectedPlace::check(protected, &request.output).map_err(|error| malformed(error.to_string()))?;
            Ok(None)
        }
        DatasetRequest::Diff(DiffRequest { diff: (a, b) }) => {
            known_dataset(stores, a).await?;
            known_dataset(stores, b).await.map(|_| None)
        }
        DatasetRequest::Create(request) => {
            request.options().map_err(|error| malformed(format!("{error:#}")))?;
            check_place(&request.output)?;
            let cut: Result<KnownAtCut, _> = request.known_at_cut.parse();
            let cut =
                cut.map_err(|error| malformed(format!("known_at_cut is `spine`, `none` or an instant: {error}")))?;
            if request.pinned.is_some() {
                return Err(malformed("`pinned` is for the server to say; leave it out".to_owned()));
            }
            let service = stores.registry.resolve_service(&request.service).await?;
            check_not_retired(ObjectKind::Service, &request.service, service.mark.as_ref())?;
            let as_stored: Option<AsStored> =
                request.as_stored.as_deref().map(str::parse).transpose().map_err(|error: InvalidAsStored| {
                    Problem::bad_request("malformed_as_stored", format!("as_stored: {error}"))
                })?;
            let service = as_it_was(service, as_stored)?;
            let spec = dataset_spec(stores, &service, cut, request).await;
            let spec = spec.map_err(|error| Problem::internal("the service could not be prepared", error))?;
            spec.check_columns().map_err(|error| malformed(error.to_string()))?;
            spec.check_output(&stores.offline, &request.output).map_err(|error| malformed(error.to_string()))?;
            let tables = commits_of_tables(stores, &spec, as_stored).await?;
            let source = request.spine_source().map_err(|error| malformed(error.to_string()))?;
            let spine = check_spine(stores, request, &service, &spec, source).await;
            let spine = spine.map_err(|error| malformed(format!("{error:#}")))?;
            Ok(Some(Pins {
                service: spec.service,
                inputs: PinnedInputs { spine, tables, placements: placements(&service) },
            }))
        }
    }
}

/// Places that no training set takes: what registered sources read, whether it is made of them or not.
async fn protected_places(stores: &Stores) -> anyhow::Result<Vec<ProtectedPlace>> {
    let sources = stores.registry.sources().await?;
    // One that has nothing to read has no place.
    let specs = sources.iter().filter_map(|source| source_spec(&stores.project, source).ok());
    Ok(specs.flat_map(|source| ProtectedPlace::of_source(&source)).collect())
}

/// The same for one that is made again: also the spine that it was made of at first. The recipe has a copy of that, and only the
/// job knows where it was.
async fn protected_from_rebuild(stores: &Stores, record: &DatasetRecord) -> anyhow::Result<Vec<ProtectedPlace>> {
    let mut places = protected_places(stores).await?;
    let spec = match stores.registry.job(&record.id).await {
        Ok(job) => job.spec,
        Err(error) if error.is_not_found() => Json::Null,
        Err(error) => return Err(error.into()),
    };
    if let Some(spine) = spec["spine"].as_str() {
        let what = format!("the spine that dataset {} was made of", record.id);
        places.push(ProtectedPlace { what, location: spine.to_owned() });
    }
    Ok(places)
}

/// A service with its views in the placements whose tables are read.
fn as_it_was(service: ResolvedService, as_stored: Option<AsStored>) -> Result<ResolvedService, Problem> {
    let Some(as_stored) = as_stored else { return Ok(service) };
    if let Some(reason) = service.views.values().find_map(|view| ambiguous_commit(view, as_stored)) {
        return Err(Problem::not_found("not_stored", reason));
    }
    match as_stored {
        AsStored::Time(at_us) => Ok(service.as_placed_at(at_us).unwrap_or(service)),
        AsStored::Commit(_) => Ok(service),
    }
}

fn placements(service: &ResolvedService) -> BTreeMap<String, Placement> {
    let stored = service.views.values().filter_map(|view| Some((view, view.stored.as_ref()?)));
    stored.map(|(view, stored)| (view.id.to_string(), stored.deployment.placement)).collect()
}

/// A service with its views in the placements that a job has settled.
fn as_pinned(service: ResolvedService, pinned: &PinnedInputs) -> ResolvedService {
    let placed = service.placed(|view, deployment| {
        let placement = pinned.placements.get(&view.to_string()).copied();
        placement.unwrap_or_else(|| deployment.first_placement())
    });
    placed.unwrap_or(service)
}

async fn known_dataset(stores: &Stores, id: &str) -> Result<DatasetRecord, Problem> {
    Ok(stores.registry.dataset(id).await?)
}

/// Keeps the spine where it is a file; else checks that the job will be able to make it.
async fn check_spine(
    stores: &Stores,
    request: &CreateRequest,
    service: &ResolvedService,
    spec: &DatasetSpec,
    source: SpineSource<'_>,
) -> anyhow::Result<Option<KeptSpine>> {
    match source {
        SpineSource::File(file) => keep_spine(stores, file).await.map(Some),
        SpineSource::Query(sql) => {
            let columns = spine_query(stores, sql).await?.columns();
            let mut needed = vec![request.timestamp_column.as_str()];
            let keys = spec.key_columns();
            needed.extend(keys.values().map(String::as_str));
            match needed.into_iter().find(|name| !columns.iter().any(|column| column == name)) {
                None => Ok(None),
                Some(missing) => {
                    bail!("the spine's query gives no column `{missing}`; it gives {}", columns.join(", "))
                }
            }
        }
        SpineSource::Entities(times) => {
            times.instants_us()?;
            let views = spec.views_of_entity()?;
            if let Some(entity) = &request.entity {
                let is_entity = |view: &ViewVersion| {
                    view.stored.as_ref().is_some_and(|stored| {
                        stored.entity.name == *entity && views.iter().any(|of| of.view.id() == view.id.to_string())
                    })
                };
                if !service.views.values().any(|view| is_entity(view)) {
                    bail!("entity `{entity}` does not have all keys of {}", spec.service);
                }
            }
            Ok(None)
        }
    }
}

/// A query over the registered sources that it names, planned.
async fn spine_query(stores: &Stores, sql: &str) -> anyhow::Result<SpineQuery> {
    let mut sources = Vec::new();
    for name in tables_of_query(sql)? {
        let source = stores.registry.source(&name).await.map_err(|error| match error.is_not_found() {
            true => anyhow::anyhow!("the spine's query reads `{name}`, and {error}"),
            false => error.into(),
        })?;
        sources.push(source_spec(&stores.project, &source).map_err(anyhow::Error::msg)?);
    }
    Ok(SpineQuery::plan(sql, sources).await?)
}

fn is_in_the_stores(stores: &Stores, output: &str) -> Result<bool, OfflineError> {
    let own = Location::parse(&stores.data_dir.display().to_string())?;
    Ok(Location::parse(output)?.is_within(&own))
}

/// The commit of every table that the service reads: the current one, or that of a time or number.
async fn commits_of_tables(
    stores: &Stores,
    spec: &DatasetSpec,
    as_stored: Option<AsStored>,
) -> Result<BTreeMap<String, Option<u64>>, Problem> {
    let failed = |error: OfflineError| match &error {
        OfflineError::NotStored { .. } => Problem::not_found("not_stored", error.to_string()),
        _ => Problem::internal("the offline tables could not be read", error),
    };
    let mut commits = BTreeMap::new();
    for view in &spec.views {
        if let ViewOfService::Stored(stored) = view {
            let table = stores.offline.table(&stored.view).map_err(failed)?;
            let commit = match as_stored {
                None => table.version().await.map_err(failed)?,
                Some(as_stored) => Some(table.version_as_stored(as_stored).await.map_err(failed)?.version),
            };
            commits.insert(stored.view.id(), commit);
        }
    }
    if matches!(as_stored, Some(AsStored::Commit(_))) && commits.len() != 1 {
        let detail = format!(
            "the number of a commit names one state of one table; {} reads {} tables: give a time",
            spec.service,
            commits.len()
        );
        return Err(Problem::not_found("not_stored", detail));
    }
    Ok(commits)
}

/// Copying and hashing a large file is not for the threads of requests, and not for several of them at once: it is held in
/// memory.
async fn keep_spine(stores: &Stores, spine: &str) -> anyhow::Result<KeptSpine> {
    static ONE_AT_A_TIME: Semaphore = Semaphore::const_new(1);
    let _turn = ONE_AT_A_TIME.acquire().await?;
    let (offline, spine) = (Arc::clone(&stores.offline), spine.to_owned());
    let keep = async move {
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || runtime.block_on(offline.keep_spine(&spine))).await
    };
    Ok(stores.job_threads.run(keep).await???)
}

/// Runs a dataset job.
pub(crate) async fn run(
    stores: &Stores,
    id: &str,
    request: DatasetRequest,
    handle: &Arc<Handle>,
) -> anyhow::Result<Json> {
    let step = |message: &str| {
        handle.report(eadem_api::JobProgress { total: 1, message: message.to_owned(), ..Default::default() });
    };
    let (made, message) = match request {
        DatasetRequest::Create(request) => (create(stores, id, *request, handle, &step).await?, "written"),
        DatasetRequest::Rebuild(request) => {
            step("joining");
            (rebuild(stores, request, watch(handle, WRITING)).await?, "written")
        }
        DatasetRequest::Diff(request) => (dataset_diff::run(stores, id, &request, handle, &step).await?, "compared"),
    };
    let rows = made["rows"].as_u64().unwrap_or_default();
    let (message, rows_per_s) = (message.to_owned(), handle.progress().rows_per_s);
    handle.report(eadem_api::JobProgress { done: 1, total: 1, rows, rows_per_s, message, ..Default::default() });
    Ok(made)
}

/// A spine of the job's own making, with what there is to say about it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct MadeSpine {
    kept: Option<KeptSpine>,
    #[serde(default)]
    notes: Vec<String>,
}

/// The name under which a job remembers the spine that it has made: one that is resumed takes that one.
const SPINE_CHUNK: &str = "spine";

/// The spine that a job has made itself; `None`: it has made none yet.
pub(crate) async fn spine_made_by(registry: &Registry, job: &str) -> anyhow::Result<Option<KeptSpine>> {
    Ok(made_by(registry, job).await?.and_then(|made| made.kept))
}

async fn made_by(registry: &Registry, job: &str) -> anyhow::Result<Option<MadeSpine>> {
    let chunks = registry.list_chunks(job).await?;
    let chunk = chunks.into_iter().find(|chunk| chunk.chunk == SPINE_CHUNK);
    Ok(chunk.map(|chunk| serde_json::from_value(chunk.result)).transpose()?)
}

async fn spine_of_job(
    stores: &Stores,
    id: &str,
    request: &CreateRequest,
    spec: &DatasetSpec,
    step: &dyn Fn(&str),
) -> anyhow::Result<MadeSpine> {
    if let Some(kept) = &spec.kept_spine {
        return Ok(MadeSpine { kept: Some(kept.clone()), notes: Vec::new() });
    }
    if let Some(made) = made_by(&stores.registry, id).await? {
        return Ok(made);
    }
    let made = loop {
        let erased_before = stores.registry.erasures_now().await?.revision();
        let made = make_spine(stores, id, request, spec, step).await;
        if stores.registry.erasures_now().await?.revision() == erased_before {
            break made?;
        }
        // An erasure may have gone through the kept spines before this one was among them: another takes its place.
        if let Ok(MadeSpine { kept: Some(kept), .. }) = made {
            stores.offline.discard_spine(&kept).await?;
        }
    };
    stores.registry.record_chunk(id, SPINE_CHUNK, &serde_json::to_value(&made)?, None, stores.clock.now_us()).await?;
    Ok(made)
}

async fn make_spine(
    stores: &Stores,
    id: &str,
    request: &CreateRequest,
    spec: &DatasetSpec,
    step: &dyn Fn(&str),
) -> anyhow::Result<MadeSpine> {
    let cancel = &spec.watch.cancel;
    Ok(match request.spine_source()? {
        SpineSource::File(file) => {
            let kept = unless_cancelled(cancel, keep_spine(stores, file)).await?;
            MadeSpine { kept: Some(kept), notes: Vec::new() }
        }
        SpineSource::Query(sql) => {
            step("asking the sources for the spine");
            let query = unless_cancelled(cancel, spine_query(stores, sql)).await?;
            let found = query.keep(&stores.offline, id, cancel).await?;
            MadeSpine { kept: Some(found.kept), notes: found.notes }
        }
        SpineSource::Entities(times) => {
            step("looking for the entities");
            let kept = keep_entities_spine(&stores.offline, spec, &times.instants_us()?, id).await?;
            MadeSpine { kept: Some(kept), notes: Vec::new() }
        }
    })
}

/// What a job does that makes a training set, once its rows come.
const WRITING: &str = "joining and writing";

/// The job as whoever makes or reads its training set sees it. How fast that is counts from now on.
pub(crate) fn watch(handle: &Arc<Handle>, message: &str) -> DatasetWatch {
    let (told, began, message) = (Arc::clone(handle), Instant::now(), message.to_owned());
    let progress = move |done: u64, total: u64| told.rows(done, total, began.elapsed(), message.clone());
    DatasetWatch { cancel: handle.cancel.clone(), progress: Some(Arc::new(progress)) }
}

async fn create(
    stores: &Stores,
    id: &str,
    request: CreateRequest,
    handle: &Arc<Handle>,
    step: &dyn Fn(&str),
) -> anyhow::Result<Json> {
    let service = stores.registry.resolve_service(&request.service).await?;
    let service = match &request.pinned {
        Some(pinned) => as_pinned(service, pinned),
        None => service,
    };
    let cut: KnownAtCut = request.known_at_cut.parse().context("known_at_cut is `spine`, `none` or an instant")?;
    let mut spec = dataset_spec(stores, &service, cut, &request).await?;
    spec.watch.cancel = handle.cancel.clone();
    let spine = spine_of_job(stores, id, &request, &spec, step).await?;
    spec.kept_spine = spine.kept;
    spec.watch = watch(handle, WRITING);
    step("joining");
    let mut report = create_dataset(&stores.offline, &spec, &request.output).await?;
    report.notes.extend(spine.notes);
    let record = DatasetRecord {
        id: id.to_owned(),
        name: spec.service.clone(),
        service: service.name.clone().zip(service.version),
        rows: report.rows as u64,
        content_digest: report.content_digest,
        output: request.output.clone(),
        recipe: serde_json::to_value(&report.recipe)?,
        report: json!({
            "spine": report.spine,
            "statistics": report.statistics,
            "errors": errors_json(&report),
            "plans": report.plans,
            "notes": report.notes,
        }),
        columns: service
            .entries
            .iter()
            .map(|entry| DatasetColumn {
                name: entry.output_name.clone(),
                view: entry.view.clone(),
                feature: entry.feature.clone(),
                role: entry.role.clone(),
            })
            .collect(),
        created_at_us: stores.clock.now_us(),
    };
    stores.registry.record_dataset(&record).await?;
    Ok(report_json(id, &request.output, &report))
}

async fn rebuild(stores: &Stores, request: RebuildRequest, watch: DatasetWatch) -> anyhow::Result<Json> {
    let record = stores.registry.dataset(&request.rebuild).await?;
    let protected = protected_from_rebuild(stores, &record).await?;
    let report = rebuild_to(stores, &record, &request.output, protected, watch).await?;
    Ok(report_json(&record.id, &request.output, &report))
}

/// Makes a dataset again from its recipe.
pub(crate) async fn rebuild_to(
    stores: &Stores,
    record: &DatasetRecord,
    output: &str,
    protected: Vec<ProtectedPlace>,
    watch: DatasetWatch,
) -> anyhow::Result<DatasetReport> {
    if let Some(hindrance) = erasure::hindrance_of_dataset(&stores.registry, &record.id).await? {
        anyhow::bail!("{hindrance}");
    }
    let recipe = recipe_of(record)?;
    let service = stores.registry.resolve_service(&recipe.service).await?;
    let spec = DatasetSpec {
        columns: recipe.columns.clone(),
        with_status: recipe.with_status,
        options: recipe.options.clone(),
        protected,
        watch,
        ..service_spec(stores, &service, recipe.cut, None).await?
    };
    Ok(rebuild_dataset(&stores.offline, &recipe, &spec, output).await?)
}

pub(crate) fn recipe_of(record: &DatasetRecord) -> anyhow::Result<Recipe> {
    serde_json::from_value(record.recipe.clone())
        .with_context(|| format!("the recipe of dataset {} cannot be read", record.id))
}

/// What is asked for, as the offline store makes it.
async fn dataset_spec(
    stores: &Stores,
    service: &ResolvedService,
    cut: KnownAtCut,
    request: &CreateRequest,
) -> anyhow::Result<DatasetSpec> {
    let pinned = request.pinned.as_ref();
    let named = match request.spine_source()? {
        SpineSource::File(file) => file.to_owned(),
        SpineSource::Query(_) => "the spine's query".to_owned(),
        SpineSource::Entities(_) => "the spine of all entities".to_owned(),
    };
    Ok(DatasetSpec {
        spine: named,
        kept_spine: pinned.and_then(|pinned| pinned.spine.clone()),
        columns: SpineColumns { timestamp: request.timestamp_column.clone(), renamed: request.columns.clone() },
        with_status: !request.no_status,
        options: request.options()?,
        protected: protected_places(stores).await?,
        ..service_spec(stores, service, cut, pinned.map(|pinned| &pinned.tables)).await?
    })
}

/// A service as the offline store joins it: every view once for each role, those that others depend on first.
async fn service_spec(
    stores: &Stores,
    service: &ResolvedService,
    cut: KnownAtCut,
    tables: Option<&BTreeMap<String, Option<u64>>>,
) -> anyhow::Result<DatasetSpec> {
    let mut views = ViewList { stores, service, tables, views: Vec::new(), positions: HashMap::new() };
    let mut features = Vec::with_capacity(service.entries.len());
    for entry in &service.entries {
        let view = Box::pin(views.position(&entry.view, entry.role.as_deref())).await?;
        let version = views.version(&entry.view)?;
        features.push(DatasetFeature {
            name: entry.output_name.clone(),
            view,
            feature: entry.feature.clone(),
            default: version.defaults.get(&entry.feature).cloned(),
        });
    }
    let (Some(name), Some(version), Some(digest)) = (&service.name, service.version, service.digest) else {
        bail!("a training set needs a service");
    };
    Ok(DatasetSpec {
        service: format!("{name}@{version}"),
        service_digest: digest.to_string(),
        spine: String::new(),
        kept_spine: None,
        columns: SpineColumns::default(),
        views: views.views,
        features,
        cut,
        with_status: true,
        engine_fingerprint: fingerprint(stores.transforms.engine().fingerprint()),
        workers: WORKERS,
        options: DatasetOptions::default(),
        memory_bytes_max: stores.job_memory_bytes_max,
        protected: Vec::new(),
        watch: DatasetWatch::default(),
    })
}

/// The engine's fingerprint with what else decides values on the way into a training set: the evaluator of the sources'
/// expressions, and the rules of time zones.
fn fingerprint(engine: &str) -> String {
    format!("{engine} datafusion/{} chrono-tz/{}", env!("LOCKED_DATAFUSION_VERSION"), env!("LOCKED_CHRONO_TZ_VERSION"))
}

struct ViewList<'a> {
    stores: &'a Stores,
    service: &'a ResolvedService,
    /// The commits to read, where they are pinned.
    tables: Option<&'a BTreeMap<String, Option<u64>>>,
    views: Vec<ViewOfService>,
    positions: HashMap<(ViewRef, Option<String>), usize>,
}

impl ViewList<'_> {
    fn version(&self, view: &ViewRef) -> anyhow::Result<Arc<ViewVersion>> {
        self.service.views.get(view).cloned().with_context(|| format!("{view} is not part of the service"))
    }

    fn read_version(&self, view: &ViewRef) -> anyhow::Result<ReadVersion> {
        let Some(tables) = self.tables else { return Ok(ReadVersion::Current) };
        let version = tables.get(&view.to_string());
        version.map(|version| ReadVersion::pinned(*version)).with_context(|| format!("no commit is pinned for {view}"))
    }

    /// The position of a view in a role, after those that it depends on. The registry refuses cycles.
    async fn position(&mut self, view: &ViewRef, role: Option<&str>) -> anyhow::Result<usize> {
        let identity = (view.clone(), role.map(str::to_owned));
        if let Some(position) = self.positions.get(&identity) {
            return Ok(*position);
        }
        let version = self.version(view)?;
        let made = match &version.stored {
            Some(stored) => {
                let keys = &stored.entity.keys;
                ViewOfService::Stored(Box::new(StoredView {
                    view: self.stores.table_spec(&version).await?,
                    keys: keys.iter().map(|key| required_key_name(&stored.entity, &key.name, role)).collect(),
                    version: self.read_version(view)?,
                }))
            }
            None => ViewOfService::OnDemand(self.on_demand(&version).await?),
        };
        self.views.push(made);
        let position = self.views.len() - 1;
        self.positions.insert(identity, position);
        Ok(position)
    }

    async fn on_demand(&mut self, view: &ViewVersion) -> anyhow::Result<OnDemandView> {
        let mut bindings = Vec::with_capacity(view.bindings.len());
        for binding in &view.bindings {
            bindings.push(match &binding.from {
                BoundTo::Request(field) => OnDemandBinding::Request(field.clone()),
                BoundTo::RequestTimestamp => OnDemandBinding::RequestTimestamp,
                BoundTo::Literal(value) => OnDemandBinding::Literal(value.clone()),
                BoundTo::Feature(upstream) => OnDemandBinding::Feature {
                    view: Box::pin(self.position(&upstream.view, upstream.role.as_deref())).await?,
                    feature: upstream.feature.clone(),
                },
                BoundTo::Column(column) => bail!("on-demand view {} is bound to column `{column}`", view.id),
            });
        }
        Ok(OnDemandView {
            id: view.id.to_string(),
            digest: view.digest.to_string(),
            transform: self.stores.transforms.get(&view.transform, CallClass::Batch).await?,
            validation: validation(view),
            bindings,
        })
    }
}

fn report_json(id: &str, output: &str, report: &DatasetReport) -> Json {
    let mut lines = vec![
        format!("dataset {id}: {} rows, {} features, in {output}", report.rows, report.recipe.features.len()),
        format!("content {}", report.content_digest),
    ];
    let mut not_present: BTreeMap<&str, u64> = BTreeMap::new();
    for statuses in report.statuses.values() {
        for (status, count) in statuses {
            *not_present.entry(status.as_str()).or_default() += count;
        }
    }
    let counts: Vec<String> = not_present.iter().map(|(status, count)| format!("{status} {count}")).collect();
    lines.push(format!("statuses: {}", counts.join(", ")));
    let errors = errors_json(report);
    lines.extend(failure_lines(&errors));
    lines.extend(report.spine.lines());
    lines.extend(report.notes.iter().cloned());
    json!({
        "id": id,
        "output": output,
        "rows": report.rows,
        "content_digest": report.content_digest,
        "statuses": report.statuses,
        "spine": report.spine,
        "statistics": report.statistics,
        "errors": errors,
        "plans": report.plans,
        "recipe": report.recipe,
        "notes": report.notes,
        "lines": lines,
    })
}

/// Rows on which on-demand views failed.
fn errors_json(report: &DatasetReport) -> Json {
    let failed = |(view, row, reason): &(String, usize, String)| json!({ "view": view, "row": row, "reason": reason });
    report.errors.iter().map(failed).collect()
}

/// Failed rows that are told, each with its reason.
const FAILURES_TOLD: usize = 5;

/// What is told of [`errors_json`].
pub(crate) fn failure_lines(errors: &Json) -> Vec<String> {
    let errors = errors.as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
    let line = |failed: &Json| {
        format!("{} failed on row {}: {}", text(&failed["view"]), failed["row"], text(&failed["reason"]))
    };
    let mut lines: Vec<String> = errors.iter().take(FAILURES_TOLD).map(line).collect();
    if errors.len() > FAILURES_TOLD {
        lines.push(format!("on-demand views failed on more rows: the first {} are in `--output json`", errors.len()));
    }
    lines
}

/// Whether this is one of [`failure_lines`].
pub(crate) fn is_failure_line(line: &str) -> bool {
    line.contains(" failed on row ") || line.contains(" failed on more rows: ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_fingerprint_names_what_evaluates_expressions_and_knows_time_zones() {
        let fingerprint = super::fingerprint("engine");
        let locked = |package: &str| fingerprint.contains(&format!(" {package}/")) && !fingerprint.contains("unknown");
        assert!(fingerprint.starts_with("engine ") && locked("datafusion") && locked("chrono-tz"), "{fingerprint}");
    }
}
