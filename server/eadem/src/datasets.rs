//! Training sets: a service of the registry as the offline store makes them, and their record.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use eadem_api::Problem;
use eadem_api::serving::validation;
use eadem_engine::CallClass;
use eadem_offline::{
    DatasetFeature, DatasetReport, DatasetSpec, KeptSpine, Location, OfflineError, OnDemandBinding, OnDemandView,
    ReadVersion, Recipe, SpineColumns, StoredView, ViewOfService, create_dataset, rebuild_dataset,
};
use eadem_registry::model::{BoundTo, ResolvedService, ViewRef, ViewVersion, required_key_name};
use eadem_registry::{DatasetColumn, DatasetRecord, RegistryError};
use eadem_semantics::KnownAtCut;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use tokio::sync::Semaphore;

use crate::home::Stores;
use crate::jobs::Handle;

/// Threads that read each view's history.
const WORKERS: usize = 2;

/// What `POST /jobs/dataset` takes: a new training set, or one to rebuild.
#[derive(Debug)]
pub(crate) enum DatasetRequest {
    /// Make it again from its recipe.
    Rebuild(RebuildRequest),
    /// Make it.
    Create(CreateRequest),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RebuildRequest {
    /// The dataset's id.
    rebuild: String,
    /// The file to write: a path or URL that the server can reach.
    output: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateRequest {
    /// `name` or `name@version`.
    service: String,
    /// Parquet or CSV: a path or URL that the server can reach.
    spine: String,
    /// The file to write.
    output: String,
    #[serde(default = "default_timestamp_column")]
    timestamp_column: String,
    /// Key or request field → the spine's column, where the names differ.
    #[serde(default)]
    columns: BTreeMap<String, String>,
    /// `spine`, `none` or an instant.
    #[serde(default = "default_cut")]
    known_at_cut: String,
    /// Leave the status columns out.
    #[serde(default)]
    no_status: bool,
    /// What it is made from, as it was when the job was started. The server adds it; whoever asks cannot.
    #[serde(default)]
    pinned: Option<PinnedInputs>,
}

/// What a training set is made from, besides definitions: a job that is resumed makes the same bytes of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PinnedInputs {
    spine: KeptSpine,
    /// For each stored view, `name@version`, the commit of its table; null where nothing was loaded.
    tables: BTreeMap<String, Option<u64>>,
}

/// What is written into the specification of a job that makes a training set.
pub(crate) struct Pins {
    /// `name@version`.
    pub(crate) service: String,
    pub(crate) inputs: PinnedInputs,
}

fn default_timestamp_column() -> String {
    "timestamp".to_owned()
}

fn default_cut() -> String {
    "spine".to_owned()
}

impl DatasetRequest {
    /// Reads a job's specification: one with `rebuild` is a rebuild.
    pub(crate) fn read(spec: &Json) -> serde_json::Result<Self> {
        match spec.get("rebuild") {
            Some(_) => serde_json::from_value(spec.clone()).map(Self::Rebuild),
            None => serde_json::from_value(spec.clone()).map(Self::Create),
        }
    }

    fn output(&self) -> &str {
        match self {
            Self::Create(request) => &request.output,
            Self::Rebuild(request) => &request.output,
        }
    }
}

/// Checks what can be checked before the work begins, and pins what a new training set is made from: the service's version,
/// the commits of its tables, a copy of the spine.
///
/// # Errors
/// 404 for a service or dataset that does not exist, 400 for a spine, a column, a cut or an output that cannot be.
pub(crate) async fn check_and_pin(stores: &Stores, request: &DatasetRequest) -> Result<Option<Pins>, Problem> {
    let malformed = |detail: String| Problem::bad_request("malformed_job", detail);
    let registry_failed = |error: RegistryError| match error {
        RegistryError::NotFound { .. } => Problem::not_found("unknown_service", error.to_string()),
        RegistryError::MalformedVersion(_) => Problem::bad_request("malformed_version", error.to_string()),
        _ if error.is_callers_fault() => malformed(error.to_string()),
        _ => Problem::internal("the registry failed", error),
    };
    let output = Path::new(request.output());
    if output.extension().is_none_or(|extension| extension != "parquet") {
        return Err(malformed(format!("output `{}`: a training set is a .parquet file", output.display())));
    }
    let is_absolute = output.is_absolute() || request.output().contains("://");
    if !is_absolute || is_in_the_stores(stores, request.output()).map_err(|error| malformed(error.to_string()))? {
        return Err(malformed(format!(
            "output `{}`: name an absolute path outside the store's own directory",
            output.display()
        )));
    }
    match request {
        DatasetRequest::Rebuild(request) => {
            let dataset = stores.registry.dataset(&request.rebuild).await;
            dataset.map(|_| None).map_err(|error| match error.is_not_found() {
                true => Problem::not_found("unknown_dataset", error.to_string()),
                false => Problem::internal("the registry failed", error),
            })
        }
        DatasetRequest::Create(request) => {
            let cut: Result<KnownAtCut, _> = request.known_at_cut.parse();
            let cut =
                cut.map_err(|error| malformed(format!("known_at_cut is `spine`, `none` or an instant: {error}")))?;
            if request.pinned.is_some() {
                return Err(malformed("`pinned` is for the server to say; leave it out".to_owned()));
            }
            let service = stores.registry.resolve_service(&request.service).await.map_err(registry_failed)?;
            let spec = dataset_spec(stores, &service, cut, request).await;
            let spec = spec.map_err(|error| Problem::internal("the service could not be prepared", error))?;
            spec.check_columns().map_err(|error| malformed(error.to_string()))?;
            spec.check_output(&stores.offline, &request.output).map_err(|error| malformed(error.to_string()))?;
            let tables = commits_of_tables(stores, &spec).await;
            let tables = tables.map_err(|error| Problem::internal("the offline tables could not be read", error))?;
            let spine = keep_spine(stores, &request.spine).await.map_err(|error| malformed(error.to_string()))?;
            Ok(Some(Pins { service: spec.service, inputs: PinnedInputs { spine, tables } }))
        }
    }
}

fn is_in_the_stores(stores: &Stores, output: &str) -> Result<bool, OfflineError> {
    let own = Location::parse(&stores.data_dir.display().to_string())?;
    Ok(Location::parse(output)?.is_within(&own))
}

/// The current commit of every table that the service reads.
async fn commits_of_tables(stores: &Stores, spec: &DatasetSpec) -> Result<BTreeMap<String, Option<u64>>, OfflineError> {
    let mut commits = BTreeMap::new();
    for view in &spec.views {
        if let ViewOfService::Stored(stored) = view {
            commits.insert(stored.view.id(), stores.offline.table(&stored.view)?.version().await?);
        }
    }
    Ok(commits)
}

/// Copying and hashing a large file is not for the threads of requests, and not for several of them at once: it is held in
/// memory.
async fn keep_spine(stores: &Stores, spine: &str) -> anyhow::Result<KeptSpine> {
    static ONE_AT_A_TIME: Semaphore = Semaphore::const_new(1);
    let _turn = ONE_AT_A_TIME.acquire().await?;
    let (offline, spine) = (Arc::clone(&stores.offline), spine.to_owned());
    let runtime = tokio::runtime::Handle::current();
    Ok(tokio::task::spawn_blocking(move || runtime.block_on(offline.keep_spine(&spine))).await??)
}

/// Runs a dataset job.
pub(crate) async fn run(
    stores: &Stores,
    id: &str,
    request: DatasetRequest,
    handle: &Arc<Handle>,
) -> anyhow::Result<Json> {
    handle.report(eadem_api::JobProgress { total: 1, message: "joining".to_owned(), ..Default::default() });
    let made = match request {
        DatasetRequest::Create(request) => create(stores, id, request).await?,
        DatasetRequest::Rebuild(request) => rebuild(stores, request).await?,
    };
    let rows = made["rows"].as_u64().unwrap_or_default();
    handle.report(eadem_api::JobProgress {
        done: 1,
        total: 1,
        rows,
        message: "written".to_owned(),
        ..Default::default()
    });
    Ok(made)
}

async fn create(stores: &Stores, id: &str, request: CreateRequest) -> anyhow::Result<Json> {
    let service = stores.registry.resolve_service(&request.service).await?;
    let cut: KnownAtCut = request.known_at_cut.parse().context("known_at_cut is `spine`, `none` or an instant")?;
    let spec = dataset_spec(stores, &service, cut, &request).await?;
    let report = create_dataset(&stores.offline, &spec, &request.output).await?;
    let record = DatasetRecord {
        id: id.to_owned(),
        name: spec.service.clone(),
        service: service.name.clone().zip(service.version),
        rows: report.rows as u64,
        content_digest: report.content_digest,
        recipe: serde_json::to_value(&report.recipe)?,
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

async fn rebuild(stores: &Stores, request: RebuildRequest) -> anyhow::Result<Json> {
    let record = stores.registry.dataset(&request.rebuild).await?;
    let recipe: Recipe = serde_json::from_value(record.recipe).context("the dataset's recipe cannot be read")?;
    let service = stores.registry.resolve_service(&recipe.service).await?;
    let as_recorded = CreateRequest {
        service: recipe.service.clone(),
        spine: String::new(),
        output: request.output.clone(),
        timestamp_column: recipe.columns.timestamp.clone(),
        columns: recipe.columns.renamed.clone(),
        known_at_cut: String::new(),
        no_status: !recipe.with_status,
        pinned: None,
    };
    let spec = dataset_spec(stores, &service, recipe.cut, &as_recorded).await?;
    let report = rebuild_dataset(&stores.offline, &recipe, &spec, &request.output).await?;
    Ok(report_json(&record.id, &request.output, &report))
}

/// A service as the offline store joins it: every view once for each role, those that others depend on first.
async fn dataset_spec(
    stores: &Stores,
    service: &ResolvedService,
    cut: KnownAtCut,
    request: &CreateRequest,
) -> anyhow::Result<DatasetSpec> {
    let pinned = request.pinned.as_ref();
    let tables = pinned.map(|pinned| &pinned.tables);
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
        spine: request.spine.clone(),
        kept_spine: pinned.map(|pinned| pinned.spine.clone()),
        columns: SpineColumns { timestamp: request.timestamp_column.clone(), renamed: request.columns.clone() },
        views: views.views,
        features,
        cut,
        with_status: !request.no_status,
        engine_fingerprint: fingerprint(stores.engine.fingerprint()),
        workers: WORKERS,
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
                    view: self.stores.view_spec(&version).await?,
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
    for (view, row, reason) in report.errors.iter().take(5) {
        lines.push(format!("{view} failed on row {row}: {reason}"));
    }
    lines.extend(report.notes.iter().cloned());
    json!({
        "id": id,
        "output": output,
        "rows": report.rows,
        "content_digest": report.content_digest,
        "statuses": report.statuses,
        "recipe": report.recipe,
        "notes": report.notes,
        "lines": lines,
    })
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
