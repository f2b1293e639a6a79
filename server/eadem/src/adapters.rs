//! Where the rooms meet: what one crate needs of another, as traits that the needing crate owns.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arrow_array::ArrayRef;
use async_trait::async_trait;
use eadem_api::ProjectUsage;
use eadem_api::serving::{
    self, HistoryState, RowSourceError, StoredCommit, StoredRow, TransformUnavailable, lifetime, validation,
};
use eadem_engine::{Applied, CallClass, Cost, Engine, EngineError, thread_cpu_time};
use eadem_offline::{self as offline, ChunkOutcome, Claim, JobLedger, JobPlan, LedgerError, Part};
use eadem_query::{AppliedRows, FailedRow, RowTransform, TransformFailure};
use eadem_registry::model::{
    self as registry_model, BoundTo, ColumnType, Place, RowFormat, SourceColumn, StoredView, ViewVersion,
};
use eadem_registry::{ChunkWork, InspectError, Registry, SourceInspector};
use eadem_semantics::{AsStored, Lifetime, ReadAt};
use eadem_values::{Description, Digest, EntityKey, Literal, Value, encode_values};
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use tokio::sync::Semaphore;
use tokio::task::JoinError;

use crate::home::Stores;
use crate::placement;

/// A component in the engine, as requests or jobs run it.
#[derive(Debug)]
pub(crate) struct EngineTransform {
    transform: eadem_engine::Transform,
    class: CallClass,
    /// What jobs use is counted here; what requests use is counted with them.
    usage: Arc<ProjectUsage>,
}

impl RowTransform for EngineTransform {
    fn description(&self) -> &Description {
        self.transform.description()
    }

    fn digest(&self) -> &Digest {
        self.transform.digest()
    }

    fn fuel_per_row(&self) -> Option<u64> {
        self.transform.cost().map(|cost| cost.fuel_per_row.round() as u64)
    }

    fn apply(&self, rows: usize, inputs: &[ArrayRef]) -> Result<AppliedRows, TransformFailure> {
        let apply = || self.transform.apply(rows, inputs, self.class);
        let (applied, cpu) = match self.class {
            CallClass::Batch => timed(apply),
            CallClass::Serving if self.transform.runs_inline(rows) => timed_in_brief(apply),
            CallClass::Serving => self.apply_in_pool(rows, inputs)?,
        };
        if self.class == CallClass::Batch {
            self.usage.job_took(rows, cpu);
        }
        let applied = applied.map_err(|error| TransformFailure {
            transform: self.transform.description().name.clone(),
            row: match &error {
                EngineError::Deadline { row, .. } => Some(*row),
                _ => None,
            },
            message: without_row(&error),
            is_busy: matches!(error, EngineError::Busy { .. }),
        })?;
        let failed = applied.rows.failed.into_iter();
        Ok(AppliedRows {
            columns: applied.columns,
            dropped: applied.rows.dropped,
            failed: failed.map(|failed| FailedRow { row: failed.row, message: failed.message }).collect(),
            cpu,
        })
    }
}

/// A call of so little time has not waited for a processor: who loses one gets it back later.
const BRIEF: Duration = Duration::from_micros(200);

/// As [`timed`], for calls that are brief as a rule: to ask the system how long the thread has run costs a fifth of such a call. Of
/// one that takes longer, up to a millisecond that the thread ran before may be counted with it.
fn timed_in_brief<T>(call: impl FnOnce() -> T) -> (T, Duration) {
    const KNOWN_FOR: Duration = Duration::from_millis(1);
    thread_local! {
        /// How long this thread had run, and when that was asked.
        static RAN: Cell<Option<(Instant, Duration)>> = const { Cell::new(None) };
    }
    let began = Instant::now();
    let known = RAN.get().filter(|(asked_at, _)| began.saturating_duration_since(*asked_at) < KNOWN_FOR);
    let (_, ran_before) = known.unwrap_or_else(|| {
        let asked = (began, thread_cpu_time());
        RAN.set(Some(asked));
        asked
    });
    let given = call();
    let took = began.elapsed();
    let cpu = if took <= BRIEF { took } else { took.min(thread_cpu_time().saturating_sub(ran_before)) };
    (given, cpu)
}

/// What a call gives, and the processor time that it took on this thread.
fn timed<T>(call: impl FnOnce() -> T) -> (T, Duration) {
    let began = thread_cpu_time();
    let given = call();
    (given, thread_cpu_time().saturating_sub(began))
}

/// The engine's message without its own number of the row: whoever passed the columns knows the row by another.
fn without_row(error: &EngineError) -> String {
    match error {
        EngineError::Deadline { row, transform, .. } => {
            let text = error.to_string();
            let numbered = format!("row {row} of transform {transform} ");
            text.strip_prefix(&numbered).map_or(text.clone(), str::to_owned)
        }
        other => other.to_string(),
    }
}

impl EngineTransform {
    /// A call too long for the thread of a request: it waits its turn in the engine's bounded pool, and the thread of the
    /// request is handed to others meanwhile.
    fn apply_in_pool(
        &self,
        rows: usize,
        inputs: &[ArrayRef],
    ) -> Result<(Result<Applied, EngineError>, Duration), TransformFailure> {
        let failure = |message: String, is_busy: bool| TransformFailure {
            transform: self.transform.description().name.clone(),
            row: None,
            message,
            is_busy,
        };
        let (transform, inputs, class) = (self.transform.clone(), inputs.to_vec(), self.class);
        let call = move || timed(|| transform.apply(rows, &inputs, class));
        let expected_us = self.transform.expected_cpu_us(rows);
        let pool = self.transform.engine().cpu_pool();
        let pending = pool.submit(expected_us, call).map_err(|full| failure(full.to_string(), true))?;
        let wait = || tokio::runtime::Handle::current().block_on(pending);
        tokio::task::block_in_place(wait).map_err(|lost| failure(lost.to_string(), false))
    }
}

/// The registry's components, loaded into the engine once.
pub(crate) struct EngineTransforms {
    registry: Registry,
    engine: Engine,
    usage: Arc<ProjectUsage>,
    components: Arc<Mutex<HashMap<Digest, InEngine>>>,
}

/// A component that was asked for.
enum InEngine {
    Loaded(eadem_engine::Transform),
    /// All who want it wait for the same, and it goes on when none of them waits any more.
    Loading(Shared<BoxFuture<'static, Result<eadem_engine::Transform, TransformUnavailable>>>),
}

impl EngineTransforms {
    pub(crate) fn new(registry: Registry, engine: Engine, usage: Arc<ProjectUsage>) -> Self {
        Self { registry, engine, usage, components: Arc::default() }
    }

    /// A component for calls of this class.
    pub(crate) async fn get(
        &self,
        digest: &Digest,
        class: CallClass,
    ) -> Result<Arc<dyn RowTransform>, TransformUnavailable> {
        let transform = match self.in_engine(*digest) {
            InEngine::Loaded(transform) => transform,
            InEngine::Loading(loading) => loading.await?,
        };
        Ok(Arc::new(EngineTransform { transform, class, usage: Arc::clone(&self.usage) }))
    }

    fn in_engine(&self, digest: Digest) -> InEngine {
        let mut components = self.components.lock().unwrap_or_else(PoisonError::into_inner);
        match components.get(&digest) {
            Some(InEngine::Loaded(transform)) => return InEngine::Loaded(transform.clone()),
            Some(InEngine::Loading(loading)) => return InEngine::Loading(loading.clone()),
            None => {}
        }
        let (registry, engine, all) = (self.registry.clone(), self.engine.clone(), Arc::clone(&self.components));
        let loading = async move {
            let loaded = load_into_engine(registry, engine, digest).await;
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            match &loaded {
                Ok(transform) => all.insert(digest, InEngine::Loaded(transform.clone())),
                // Whoever wants it next tries again.
                Err(_) => all.remove(&digest),
            };
            loaded
        };
        let loading = loading.boxed().shared();
        tokio::spawn(loading.clone());
        components.insert(digest, InEngine::Loading(loading.clone()));
        InEngine::Loading(loading)
    }

    /// The engine that they are in.
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }
}

async fn load_into_engine(
    registry: Registry,
    engine: Engine,
    digest: Digest,
) -> Result<eadem_engine::Transform, TransformUnavailable> {
    let unavailable = |message: String| TransformUnavailable { digest, message };
    let record = registry.transform(&digest).await.map_err(|error| unavailable(error.to_string()))?;
    let load = move || {
        let cost = stored_cost(&record.acceptance);
        let strict_nan = record.acceptance.strict_nan;
        // Asked only where there is no artefact.
        let component = || {
            let read = tokio::runtime::Handle::current().block_on(registry.component(&digest));
            read.map_err(|error| error.to_string())
        };
        engine.load(digest, component, record.description.as_ref().clone(), strict_nan, cost)
    };
    let loaded = tokio::task::spawn_blocking(load).await.map_err(|error| unavailable(error.to_string()))?;
    loaded.map_err(|error| unavailable(error.to_string()))
}

fn stored_cost(acceptance: &eadem_registry::Acceptance) -> Option<Cost> {
    Some(Cost {
        fuel_per_row: acceptance.fuel_per_row? as f64,
        cpu_us_per_call: acceptance.nanoseconds_per_call? as f64 / 1e3,
        cpu_us_per_row: acceptance.nanoseconds_per_row? as f64 / 1e3,
        memory_bytes: acceptance.memory_bytes?,
        batch_rows: u32::try_from(acceptance.measured_rows?).unwrap_or(u32::MAX),
    })
}

#[async_trait]
impl serving::Transforms for EngineTransforms {
    async fn load(&self, digest: &Digest) -> Result<Arc<dyn RowTransform>, TransformUnavailable> {
        self.get(digest, CallClass::Serving).await
    }
}

/// Reads sources for `plan`.
pub(crate) struct Inspector {
    project: PathBuf,
}

impl Inspector {
    pub(crate) fn new(project: PathBuf) -> Self {
        Self { project }
    }
}

#[async_trait]
impl SourceInspector for Inspector {
    async fn columns(&self, source: &registry_model::Source) -> Result<Vec<SourceColumn>, InspectError> {
        let kind = source.origin.as_ref().map_or("parquet", |origin| origin.format.name());
        let spec = source_spec(&self.project, source)
            .map_err(|message| InspectError { statement: kind.to_owned(), message })?;
        let columns = offline::inspect(&spec).await.map_err(|error| inspect_error(kind, &error))?;
        let column = |column: offline::InspectedColumn| SourceColumn {
            name: column.name,
            column_type: match column.data_type {
                Some(data_type) => ColumnType::Known(data_type),
                None => ColumnType::Other(column.arrow_type.to_string()),
            },
        };
        Ok(columns.into_iter().map(column).collect())
    }
}

fn inspect_error(kind: &str, error: &offline::OfflineError) -> InspectError {
    match error {
        offline::OfflineError::Source { field, reason, .. } => {
            InspectError { statement: field.clone(), message: reason.clone() }
        }
        other => InspectError { statement: kind.to_owned(), message: other.to_string() },
    }
}

/// A source as the offline store reads it. Relative paths are relative to the project's folder.
pub(crate) fn source_spec(project: &Path, source: &registry_model::Source) -> Result<offline::SourceSpec, String> {
    let origin = source.origin.as_ref().ok_or_else(|| {
        format!(
            "source `{}` has nothing to read: what this version of a view reads is not where its rows are now",
            source.name
        )
    })?;
    Ok(source_spec_at(offline_origin(project, origin), source))
}

/// A source of which only the meaning counts: nobody reads it, and it may be gone.
fn unread_source_spec(project: &Path, source: &registry_model::Source) -> offline::SourceSpec {
    let nowhere = offline::Origin::Parquet { locations: Vec::new() };
    let origin = source.origin.as_ref().map_or(nowhere, |origin| offline_origin(project, origin));
    source_spec_at(origin, source)
}

fn source_spec_at(origin: offline::Origin, source: &registry_model::Source) -> offline::SourceSpec {
    offline::SourceSpec {
        name: source.name.clone(),
        origin,
        types: source.types.clone(),
        columns: source.columns.iter().map(|(name, text)| (name.clone(), text.clone())).collect(),
        filter: source.filter.clone(),
        time_zone: source.time_zone.clone(),
        event_time: match &source.event_time {
            registry_model::EventTime::Column(column) => offline::EventTime::Column(column.clone()),
            registry_model::EventTime::Literal(us) => offline::EventTime::Literal(*us),
        },
        known_at: match &source.known_at {
            registry_model::KnownAt::EventTime => offline::KnownAt::EventTime,
            registry_model::KnownAt::Column(column) => offline::KnownAt::Column(column.clone()),
            registry_model::KnownAt::AfterUs(us) => offline::KnownAt::After(*us),
        },
        event_id: source.event_id.clone(),
        max_ahead_us: source.max_ahead_us,
    }
}

fn offline_origin(project: &Path, origin: &registry_model::Origin) -> offline::Origin {
    let (url_env, cursor, location) = match &origin.place {
        Place::Database { url_env, cursor } => (url_env.clone(), cursor.clone(), String::new()),
        Place::Path(path) if path.contains("://") => (String::new(), None, path.clone()),
        Place::Path(path) => (String::new(), None, project.join(path).display().to_string()),
    };
    match &origin.format {
        RowFormat::Parquet => offline::Origin::Parquet { locations: vec![location] },
        RowFormat::Json => offline::Origin::Json { locations: vec![location] },
        RowFormat::Delta => offline::Origin::Delta { location },
        RowFormat::Csv { delimiter, null, names } => {
            // Definitions take one ASCII character.
            let delimiter = u8::try_from(*delimiter).unwrap_or(b',');
            let format = offline::CsvFormat { delimiter, null: null.clone(), names: names.clone() };
            offline::Origin::Csv { locations: vec![location], format }
        }
        RowFormat::Postgres { query } => {
            offline::Origin::Postgres(offline::PostgresQuery { url_env, query: query.clone(), cursor })
        }
    }
}

fn stored_part(view: &ViewVersion) -> Result<&StoredView, String> {
    view.stored.as_ref().ok_or_else(|| format!("{} is computed on demand and stores nothing", view.id))
}

/// A stored view as the offline store computes it from this source.
fn spec_of(
    view: &ViewVersion,
    source: offline::SourceSpec,
    transform: Arc<dyn RowTransform>,
) -> Result<offline::ViewSpec, String> {
    let stored = stored_part(view)?;
    let key = |key: &registry_model::JoinKey| offline::JoinKey {
        name: key.name.clone(),
        key_type: key.key_type,
        column: key.name.clone(),
    };
    let binding = |binding: &registry_model::Binding| match &binding.from {
        BoundTo::Column(column) => Ok(offline::Binding::Column(column.clone())),
        BoundTo::Literal(value) => literal(value).map(offline::Binding::Literal),
        other => Err(format!("{}: input `{}` of a stored view is bound to {other:?}", view.id, binding.input.name)),
    };
    Ok(offline::ViewSpec {
        name: view.id.name.clone(),
        version: view.id.version,
        digest: view.digest.to_string(),
        source,
        keys: stored.entity.keys.iter().map(key).collect(),
        transform,
        bindings: view.bindings.iter().map(binding).collect::<Result<_, _>>()?,
        lifetime: lifetime(stored),
        placement: offline_placement(stored.deployment.placement),
        first_placement: offline_placement(stored.deployment.first_placement()),
        validation: validation(view),
    })
}

fn offline_placement(placement: registry_model::Placement) -> offline::Placement {
    match placement {
        registry_model::Placement::OnWrite => offline::Placement::OnWrite,
        registry_model::Placement::OnRead => offline::Placement::OnRead,
    }
}

/// The past of views, from their offline tables.
pub(crate) struct OfflineHistory {
    stores: Stores,
    calls: BlockingCalls,
    /// How long the reads of one view may take.
    deadline: Duration,
}

/// Calls that block a thread each, so many at once.
struct BlockingCalls(Arc<Semaphore>);

impl BlockingCalls {
    fn new(at_once: usize) -> Self {
        Self(Arc::new(Semaphore::new(at_once)))
    }

    /// Runs a call when there is a place, if that is within `wait`. The call keeps its place until it ends, also where whoever wanted
    /// it does not wait so long.
    async fn run<T: Send + 'static>(
        &self,
        wait: Duration,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Result<T, JoinError>, NoPlace> {
        let place = tokio::time::timeout(wait, Arc::clone(&self.0).acquire_owned()).await;
        let place = place.ok().and_then(Result::ok).ok_or(NoPlace)?;
        let called = tokio::task::spawn_blocking(move || {
            let _place = place;
            call()
        });
        Ok(called.await)
    }
}

/// Others had all places for too long.
#[derive(Debug)]
struct NoPlace;

impl OfflineHistory {
    pub(crate) fn new(stores: Stores, deadline: Duration) -> Self {
        Self { stores, calls: BlockingCalls::new(HISTORY_CALLS_AT_ONCE), deadline }
    }

    async fn table(&self, view: &ViewVersion) -> Result<(offline::ViewTable, Lifetime), RowSourceError> {
        let spec = self.stores.table_spec(view).await.map_err(|error| unavailable(&error))?;
        let table = self.stores.offline.table(&spec).map_err(|error| unavailable(&error))?;
        Ok((table, spec.lifetime))
    }

    fn too_slow(&self) -> RowSourceError {
        unavailable(&format!(
            "did not answer within {} ms (limits.history_ms_max); a table of many small files is faster after compaction",
            self.deadline.as_millis()
        ))
    }
}

fn unavailable(error: &dyn std::fmt::Display) -> RowSourceError {
    RowSourceError::Unavailable { store: "offline", message: error.to_string() }
}

fn history_error(error: &offline::OfflineError) -> RowSourceError {
    match error {
        offline::OfflineError::NotStored { .. } => RowSourceError::NotStored(error.to_string()),
        offline::OfflineError::Vacuumed { .. } => RowSourceError::Vacuumed(error.to_string()),
        other => unavailable(other),
    }
}

/// Calls that read at the same time. Each takes a thread and waits on it for others, that read files: were there as many
/// calls as threads, they would wait for ever.
const HISTORY_CALLS_AT_ONCE: usize = 16;

#[async_trait]
impl serving::History for OfflineHistory {
    async fn winners(
        &self,
        view: &ViewVersion,
        keys: &[EntityKey],
        reads: &[ReadAt],
        state: HistoryState,
    ) -> Result<Vec<Option<StoredRow>>, RowSourceError> {
        let began = Instant::now();
        let (table, lifetime) = self.table(view).await?;
        let (keys, reads) = (keys.to_vec(), reads.to_vec());
        let (runtime, deadline) = (tokio::runtime::Handle::current(), self.deadline);
        // Files are decoded row by row: not on the threads of requests. The deadline stands where the work is, so that it
        // ends the work too.
        let read = move || {
            let read = async {
                let version = match state {
                    HistoryState::Newest => offline::ReadVersion::Current,
                    HistoryState::Beside(commit) => table.version_beside(commit).await?,
                    HistoryState::Commit(commit) => offline::ReadVersion::At(commit),
                };
                table.read_entities(&keys, &reads, lifetime, version).await
            };
            let left = deadline.saturating_sub(began.elapsed());
            runtime.block_on(async { tokio::time::timeout(left, read).await })
        };
        let found = self.calls.run(deadline, read).await.map_err(|NoPlace| self.too_slow())?;
        let found = found.map_err(|error| unavailable(&error))?;
        let found = found.map_err(|_| self.too_slow())?.map_err(|error| {
            let error = history_error(&error);
            // A request that names no commit is not at fault where files are gone.
            let names_commit = matches!(state, HistoryState::Commit(_));
            if !names_commit && error.is_of_request() { unavailable(&error) } else { error }
        })?;
        Ok(found.into_iter().map(|row| row.map(stored_row)).collect())
    }

    async fn commit(&self, view: &ViewVersion, as_stored: AsStored) -> Result<StoredCommit, RowSourceError> {
        if let Some(reason) = placement::ambiguous_commit(view, as_stored) {
            return Err(RowSourceError::NotStored(reason));
        }
        let (table, _) = self.table(view).await?;
        let stored = tokio::time::timeout(self.deadline, table.version_as_stored(as_stored)).await;
        let stored = stored.map_err(|_| self.too_slow())?.map_err(|error| history_error(&error))?;
        Ok(StoredCommit { commit: stored.version, committed_at_us: stored.committed_at_us })
    }
}

fn stored_row(read: offline::EntityRead) -> StoredRow {
    let failed = read.error.is_some();
    let values = if failed { Vec::new() } else { encode_values(&read.values) };
    StoredRow { order: read.order, values: values.into(), failed }
}

impl Stores {
    /// A stored view as the offline store computes it, with its component ready for batches.
    ///
    /// # Errors
    /// One whose rows nobody can read from a source any more.
    pub(crate) async fn view_spec(&self, view: &ViewVersion) -> anyhow::Result<offline::ViewSpec> {
        let stored = stored_part(view).map_err(anyhow::Error::msg)?;
        let source = source_spec(&self.project, &stored.source).map_err(anyhow::Error::msg)?;
        self.spec_of(view, source).await
    }

    /// A stored view as far as its table needs it: also one whose source has moved to another kind of place.
    pub(crate) async fn table_spec(&self, view: &ViewVersion) -> anyhow::Result<offline::ViewSpec> {
        let stored = stored_part(view).map_err(anyhow::Error::msg)?;
        self.spec_of(view, unread_source_spec(&self.project, &stored.source)).await
    }

    async fn spec_of(&self, view: &ViewVersion, source: offline::SourceSpec) -> anyhow::Result<offline::ViewSpec> {
        let transform = self.transforms.get(&view.transform, CallClass::Batch).await?;
        spec_of(view, source, transform).map_err(anyhow::Error::msg)
    }
}

/// The ledger of backfills, in the registry, as one worker sees it. A backfill's job is named `<job>/<view>`: one job of
/// the registry may compute several views.
pub(crate) struct RegistryLedger {
    registry: Registry,
    clock: Arc<dyn eadem_api::Clock>,
    /// The worker that claims. It has joined the job.
    worker: String,
    lease_us: i64,
}

const PLAN: &str = "plan";
const CHUNK: &str = "chunk-";
const COMMITTED: &str = "committed";

fn part_name(view: &str, part: Part) -> String {
    match part {
        Part::Plan => format!("{view}/{PLAN}"),
        Part::Chunk(chunk) => format!("{view}/{CHUNK}{chunk:08}"),
    }
}

fn ledger_error(error: impl std::fmt::Display) -> LedgerError {
    LedgerError(error.to_string())
}

impl RegistryLedger {
    pub(crate) fn new(registry: Registry, clock: Arc<dyn eadem_api::Clock>, worker: String, lease_us: i64) -> Self {
        Self { registry, clock, worker, lease_us }
    }

    async fn record(
        &self,
        job: &str,
        part: &str,
        value: &impl serde::Serialize,
        work: Option<&ChunkWork>,
    ) -> Result<bool, LedgerError> {
        let (id, view) = split_job(job)?;
        let json = serde_json::to_value(value).map_err(ledger_error)?;
        let name = format!("{view}/{part}");
        self.registry.record_chunk(id, &name, &json, work, self.clock.now_us()).await.map_err(ledger_error)
    }
}

fn split_job(job: &str) -> Result<(&str, &str), LedgerError> {
    job.split_once('/').ok_or_else(|| LedgerError(format!("`{job}` is not <job>/<view>")))
}

#[async_trait]
impl JobLedger for RegistryLedger {
    async fn plan(&self, job: &str) -> Result<Option<JobPlan>, LedgerError> {
        let (id, view) = split_job(job)?;
        let plan = self.registry.chunk(id, &part_name(view, Part::Plan)).await.map_err(ledger_error)?;
        plan.map(|plan| serde_json::from_value(plan.result).map_err(ledger_error)).transpose()
    }

    async fn save_plan(&self, job: &str, plan: JobPlan) -> Result<JobPlan, LedgerError> {
        self.record(job, PLAN, &plan, None).await?;
        let saved = self.plan(job).await?;
        saved.ok_or_else(|| LedgerError(format!("the plan of {job} was not kept")))
    }

    async fn claim(&self, job: &str, parts: &[Part]) -> Result<Claim, LedgerError> {
        let (id, view) = split_job(job)?;
        let names: Vec<String> = parts.iter().map(|part| part_name(view, *part)).collect();
        let now_us = self.clock.now_us();
        let claimed = self.registry.claim_part(id, &self.worker, &names, now_us, self.lease_us).await;
        let claimed = claimed.map_err(ledger_error)?;
        let part = |name: &String| names.iter().position(|known| known == name).map(|place| parts[place]);
        Ok(Claim { part: claimed.part.as_ref().and_then(part), done: claimed.done.iter().filter_map(part).collect() })
    }

    async fn release(&self, job: &str, part: Part) -> Result<(), LedgerError> {
        let (id, view) = split_job(job)?;
        self.registry.release_part(id, &self.worker, &part_name(view, part)).await.map_err(ledger_error)
    }

    async fn chunks_done(&self, job: &str) -> Result<BTreeSet<usize>, LedgerError> {
        let (id, view) = split_job(job)?;
        let prefix = format!("{view}/{CHUNK}");
        let names = self.registry.chunk_names(id, &prefix).await.map_err(ledger_error)?;
        let number = |name: &String| name[prefix.len()..].parse().map_err(ledger_error);
        names.iter().map(number).collect()
    }

    async fn outcomes(&self, job: &str) -> Result<Vec<ChunkOutcome>, LedgerError> {
        let (id, view) = split_job(job)?;
        let prefix = format!("{view}/{CHUNK}");
        let chunks = self.registry.list_chunks(id).await.map_err(ledger_error)?;
        let of_view = chunks.into_iter().filter(|chunk| chunk.chunk.starts_with(&prefix));
        of_view.map(|chunk| serde_json::from_value(chunk.result).map_err(ledger_error)).collect()
    }

    async fn save_outcome(&self, job: &str, outcome: ChunkOutcome) -> Result<bool, LedgerError> {
        let work =
            ChunkWork { worker: self.worker.clone(), rows: outcome.rows_read, refused: outcome.refused.values().sum() };
        self.record(job, &format!("{CHUNK}{:08}", outcome.chunk), &outcome, Some(&work)).await
    }

    async fn begin_commit(&self, job: &str) -> Result<bool, LedgerError> {
        let (id, _) = split_job(job)?;
        self.registry.begin_commit(id, self.clock.now_us()).await.map_err(ledger_error)
    }

    async fn committed(&self, job: &str, version: u64) -> Result<(), LedgerError> {
        self.record(job, COMMITTED, &version, None).await?;
        let (id, _) = split_job(job)?;
        self.registry.end_commit(id, self.clock.now_us()).await.map_err(ledger_error)
    }
}

/// A constant of a stored view as the offline store takes it.
fn literal(value: &Value) -> Result<Literal, String> {
    match value {
        Value::Boolean(value) => Ok(Literal::Boolean(*value)),
        Value::Int64(value) | Value::Timestamp(value) => Ok(Literal::Int64(*value)),
        Value::Float64(value) => Ok(Literal::Float64(*value)),
        Value::Float32(value) => Ok(Literal::Float64(f64::from(*value))),
        Value::Utf8(value) => Ok(Literal::Utf8(value.clone())),
        other => Err(format!("a literal of type {} cannot be bound in a stored view", other.type_name())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_call_that_nobody_waits_for_keeps_its_place_until_it_ends() {
        const LONG: Duration = Duration::from_secs(60);
        let calls = BlockingCalls::new(1);
        let (end, ended) = mpsc::channel::<()>();
        let first = calls.run(LONG, move || ended.recv());
        assert!(tokio::time::timeout(Duration::from_millis(20), first).await.is_err(), "it does not end by itself");
        assert!(calls.run(Duration::from_millis(20), || ()).await.is_err(), "two have run at once");
        end.send(()).unwrap();
        calls.run(LONG, || ()).await.unwrap().unwrap();
    }

    #[test]
    fn a_call_counts_as_long_as_it_ran_and_not_as_long_as_it_waited() {
        let (_, of_nothing) = timed_in_brief(|| ());
        assert!(of_nothing <= BRIEF, "{of_nothing:?}");
        let worked = Duration::from_millis(5);
        let (ran, of_work) = timed_in_brief(|| {
            let before = thread_cpu_time();
            while thread_cpu_time() - before < worked {
                std::hint::spin_loop();
            }
            thread_cpu_time() - before
        });
        assert!(of_work >= worked && of_work <= ran + Duration::from_millis(2), "{of_work:?} of {ran:?}");
        let waited = Duration::from_millis(50);
        let (_, of_waiting) = timed_in_brief(|| std::thread::sleep(waited));
        assert!(of_waiting < waited / 5, "{of_waiting:?}");
    }
}
