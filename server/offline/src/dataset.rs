//! Training sets: for each spine row, each feature as it stood at that row's time, with its status beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::TimestampMicrosecondType;
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow_schema::{DataType as ArrowType, Field, Schema, SchemaRef, TimeUnit};
use bytes::Bytes;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::{ExecutionPlan, displayable};
use eadem_query::{
    OnDemandInput, PointInTimeJoin, PointInTimeJoinExec, ReadRows, RowTransform, ValidationPolicy, apply_default,
    compute_on_read, evaluate_on_demand, project_feature, status_dictionary,
};
use eadem_semantics::{KnownAtCut, RowOrder, Status};
use eadem_values::{BatchEncoder, DataType, Digest, TieDigest, Value, array_from_values};
use futures::TryStreamExt;
use object_store::{ObjectStoreExt, PutPayload};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::OfflineError;
use crate::fetch_exec::FetchExec;
use crate::history_exec::{HistoryExec, history_columns};
use crate::location::{Location, OfflineStore};
use crate::read::ScanRange;
use crate::schema::key_arrow_type;
use crate::source::to_canonical;
use crate::spec::{Placement, ViewSpec};
use crate::spine::{KeptSpine, Spine, SpineFormat};
use crate::table::{DataFile, ReadVersion, TableState, ViewTable};

/// Rows of one row group of a dataset file. Fixed, so that the same rows give the same bytes.
const ROW_GROUP_ROWS: usize = 131_072;

/// Rows that are hashed at a time.
const DIGEST_ROWS: usize = 8_192;

const RECIPE_FORMAT: u32 = 1;

/// Settings of the writer, as a recipe keeps them.
const WRITER_SETTINGS: &str = "parquet 59, zstd 1, row groups of 131072 rows, no dictionaries of floats and times";

/// A training set to make.
#[derive(Debug, Clone)]
pub struct DatasetSpec {
    /// `name@version` of the service.
    pub service: String,
    /// The digest of the service version, as text.
    pub service_digest: String,
    /// The spine: a Parquet or CSV file, as a local path or URL.
    pub spine: String,
    /// The copy of it to read, where one was kept before; `None`: the file is read, and kept.
    pub kept_spine: Option<KeptSpine>,
    /// Which of its columns mean what.
    pub columns: SpineColumns,
    /// The views that the features come from, those that others depend on first.
    pub views: Vec<ViewOfService>,
    /// The features, in the order of their columns.
    pub features: Vec<DatasetFeature>,
    /// Which knowledge counts.
    pub cut: KnownAtCut,
    /// Whether `<name>__status` stands beside each feature.
    pub with_status: bool,
    /// The engine's fingerprint, for the recipe.
    pub engine_fingerprint: String,
    /// Threads that read each view's history.
    pub workers: usize,
}

/// The spine's columns.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SpineColumns {
    /// The column that holds each row's time.
    pub timestamp: String,
    /// For key columns (a key's own name, or with a role `origin` or `origin.<key>`) and request fields whose column in
    /// the spine has another name: the name the service knows, and the spine's.
    pub renamed: BTreeMap<String, String>,
}

impl SpineColumns {
    /// The spine's column for a key or request field.
    pub fn column<'a>(&'a self, name: &'a str) -> &'a str {
        self.renamed.get(name).map_or(name, String::as_str)
    }
}

/// One view of a service, once for each role.
#[derive(Debug, Clone)]
pub enum ViewOfService {
    /// Rows of a table, joined point in time.
    Stored(Box<StoredView>),
    /// Computed after the join.
    OnDemand(OnDemandView),
}

/// A view with a table, in one role.
#[derive(Debug, Clone)]
pub struct StoredView {
    /// The view.
    pub view: ViewSpec,
    /// For each join key, in declared order, the name under which the spine knows it (before
    /// [`SpineColumns::renamed`]): the key's own name; with a role the role, or `role.<key>` for composite keys.
    pub keys: Vec<String>,
    /// The table's version to read.
    pub version: ReadVersion,
}

/// An on-demand view.
#[derive(Debug, Clone)]
pub struct OnDemandView {
    /// `name@version`.
    pub id: String,
    /// The digest of the view version, as text.
    pub digest: String,
    /// The component.
    pub transform: Arc<dyn RowTransform>,
    /// What happens to values that break a constraint.
    pub policy: ValidationPolicy,
    /// One binding per input of the transform, in declared order.
    pub bindings: Vec<OnDemandBinding>,
}

/// What feeds an input of an on-demand view.
#[derive(Debug, Clone, PartialEq)]
pub enum OnDemandBinding {
    /// A request field; in training, a spine column of its name (or what [`SpineColumns::renamed`] says).
    Request(String),
    /// The time of the request; in training, the spine row's time.
    RequestTimestamp,
    /// The same value for every row, of the input's type.
    Literal(Value),
    /// A feature of another view.
    Feature {
        /// Position in [`DatasetSpec::views`]; before this view's own.
        view: usize,
        /// The feature's name in its view.
        feature: String,
    },
}

/// One feature of a dataset.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetFeature {
    /// The column's name: an alias, or the feature's name, with a role `<role>_<feature>`.
    pub name: String,
    /// Position in [`DatasetSpec::views`].
    pub view: usize,
    /// The feature's name in its view.
    pub feature: String,
    /// What stands where the status is not `present`; `None`: null.
    pub default: Option<Value>,
}

/// What was made.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetReport {
    /// Rows, as many as the spine has.
    pub rows: usize,
    /// Digest over the canonical encoding of all rows.
    pub content_digest: Digest,
    /// For each feature, how often each status occurs.
    pub statuses: BTreeMap<String, BTreeMap<String, u64>>,
    /// How it was made.
    pub recipe: Recipe,
    /// The plans of the joins, as `EXPLAIN` shows them.
    pub plans: Vec<String>,
    /// Rows on which an on-demand view failed, as (view, row, reason); the first hundred.
    pub errors: Vec<(String, usize, String)>,
    /// What is worth knowing of a dataset that was made again: another engine, other bytes of the same content.
    pub notes: Vec<String>,
}

/// How a dataset was made: enough to make it again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Version of this format.
    pub format: u32,
    /// `name@version` of the service.
    pub service: String,
    /// The digest of the service version.
    pub service_digest: String,
    /// Digest of the spine's bytes, which are kept in the offline store under it.
    pub spine_digest: Digest,
    /// How they are read.
    pub spine_format: SpineFormat,
    /// Which of its columns mean what.
    pub columns: SpineColumns,
    /// Which knowledge counts.
    pub cut: KnownAtCut,
    /// Whether statuses stand beside features.
    pub with_status: bool,
    /// The views, in the order of the dataset's definition.
    pub views: Vec<RecipeView>,
    /// Names of the features, in the order of their columns.
    pub features: Vec<String>,
    /// Settings of the writer.
    pub writer: String,
    /// The engine and its flags.
    pub engine_fingerprint: String,
    /// Rows.
    pub rows: u64,
    /// Digest over the canonical encoding of all rows.
    pub content_digest: Digest,
    /// Digest of the file's bytes.
    pub file_digest: Digest,
}

/// One view of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecipeView {
    /// `name@version`.
    pub view: String,
    /// The digest of the view version.
    pub digest: String,
    /// The component.
    pub component: Digest,
    /// The version of the table that was read; `None` for an on-demand view, or a table that did not exist.
    pub table_version: Option<u64>,
    /// The data files that were read, with digests of their bytes. Vacuum spares them.
    pub files: Vec<RecipeFile>,
}

/// A data file that a dataset was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipeFile {
    /// Relative to the table.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Digest of its bytes.
    pub digest: Digest,
}

/// The features of one view at every spine row.
struct ViewColumns {
    names: Vec<String>,
    values: Vec<ArrayRef>,
    statuses: Vec<Vec<Status>>,
}

impl ViewColumns {
    fn position(&self, feature: &str) -> Option<usize> {
        self.names.iter().position(|name| name == feature)
    }
}

impl DatasetSpec {
    /// Checks that every renamed column is one that the service asks for.
    ///
    /// # Errors
    /// The first that is not, with those that could be meant.
    pub fn check_columns(&self) -> Result<(), OfflineError> {
        let names: BTreeMap<&str, DataType> = self.needs().into_iter().collect();
        match self.columns.renamed.keys().find(|name| !names.contains_key(name.as_str())) {
            None => Ok(()),
            Some(unknown) => {
                let names: Vec<&str> = names.into_keys().collect();
                Err(OfflineError::Dataset(format!(
                    "`{unknown}` is no key or request field of {}; those are {}",
                    self.service,
                    names.join(", ")
                )))
            }
        }
    }

    /// Checks where the training set is to be written, and gives the place.
    ///
    /// # Errors
    /// A place that is forgotten with the process, or that would take the place of what the dataset is made from: the
    /// spine, a file of a source, the offline store.
    pub fn check_output(&self, store: &OfflineStore, out: &str) -> Result<Location, OfflineError> {
        let place = Location::parse(out)?;
        let refuse = |reason: String| {
            Err(OfflineError::Location { location: out.to_owned(), reason: reason + "; name another" })
        };
        if !place.is_persistent() {
            return refuse("is the memory of this process".to_owned());
        }
        if place.is_within(&store.root) {
            return refuse("lies in the offline store itself".to_owned());
        }
        if place.is_within(&Location::parse(&self.spine)?) {
            return refuse("is the spine".to_owned());
        }
        for view in &self.views {
            let ViewOfService::Stored(stored) = view else { continue };
            let source = &stored.view.source;
            for location in &source.locations {
                if place.is_within(&Location::parse(location)?) {
                    return refuse(format!("is, or lies in, what source `{}` reads ({location})", source.name));
                }
            }
        }
        Ok(place)
    }

    /// The names under which the service knows spine columns, apart from the timestamp, with the types that it needs.
    fn needs(&self) -> Vec<(&str, DataType)> {
        let mut needs = Vec::new();
        for view in &self.views {
            match view {
                ViewOfService::Stored(stored) => {
                    for (key, name) in stored.view.keys.iter().zip(&stored.keys) {
                        let data_type = DataType::from_arrow(&key_arrow_type(key.key_type));
                        needs.extend(data_type.map(|data_type| (name.as_str(), data_type)));
                    }
                }
                ViewOfService::OnDemand(on_demand) => {
                    for (field, binding) in on_demand.transform.description().inputs.iter().zip(&on_demand.bindings) {
                        if let OnDemandBinding::Request(name) = binding {
                            needs.push((name, field.data_type));
                        }
                    }
                }
            }
        }
        needs
    }
}

/// Makes a training set and writes it to `out` (a Parquet file, as a local path or URL). The file appears whole or not at
/// all. The recipe and the spine are kept in the offline store. Doing it again with the same pinned versions and kept spine
/// gives the same bytes.
///
/// # Errors
/// A spine that lacks a column or has a row without time; a definition that does not fit its views; an unreadable table;
/// a file that cannot be written, or must not ([`DatasetSpec::check_output`]).
pub async fn create_dataset(
    store: &OfflineStore,
    spec: &DatasetSpec,
    out: &str,
) -> Result<DatasetReport, OfflineError> {
    let place = spec.check_output(store, out)?;
    let made = make(store, spec).await?;
    keep_recipe(store, &made.report.recipe).await?;
    write_file(&place, made.bytes).await?;
    Ok(made.report)
}

/// A training set that nobody can see yet.
struct Made {
    report: DatasetReport,
    bytes: Bytes,
}

async fn make(store: &OfflineStore, spec: &DatasetSpec) -> Result<Made, OfflineError> {
    spec.check_columns()?;
    let spine = Spine::read_kept(store, &spec.spine, spec.kept_spine.as_ref(), &wanted_types(spec)).await?;
    let times = spine_times(&spine, spec)?;
    let mut commits = Commits::default();
    let mut made: Vec<ViewColumns> = Vec::with_capacity(spec.views.len());
    let mut recipe_views = Vec::with_capacity(spec.views.len());
    let mut plans = Vec::new();
    let mut errors = Vec::new();
    for (number, view) in spec.views.iter().enumerate() {
        match view {
            ViewOfService::Stored(stored) => {
                let table = store.table(&stored.view)?;
                let state = commits.state(&table, stored.version).await?;
                let (columns, recipe_view, plan) =
                    join_view(&table, state, spec, number, stored, &spine, &times).await?;
                made.push(columns);
                recipe_views.push(recipe_view);
                plans.extend(plan);
            }
            ViewOfService::OnDemand(on_demand) => {
                let (columns, failed) = compute_view(spec, on_demand, &spine, &times, &made)?;
                made.push(columns);
                errors.extend(failed.into_iter().map(|(row, reason)| (on_demand.id.clone(), row, reason)));
                errors.truncate(ERRORS_REPORTED_MAX);
                recipe_views.push(RecipeView {
                    view: on_demand.id.clone(),
                    digest: on_demand.digest.clone(),
                    component: *on_demand.transform.digest(),
                    table_version: None,
                    files: Vec::new(),
                });
            }
        }
    }
    let (rows, statuses) = assemble(spec, &spine, &made)?;
    let content_digest = content_digest(&rows)?;
    let bytes = encode(&rows)?;
    let recipe = Recipe {
        format: RECIPE_FORMAT,
        service: spec.service.clone(),
        service_digest: spec.service_digest.clone(),
        spine_digest: spine.kept.digest,
        spine_format: spine.kept.format,
        columns: spec.columns.clone(),
        cut: spec.cut,
        with_status: spec.with_status,
        views: recipe_views,
        features: spec.features.iter().map(|feature| feature.name.clone()).collect(),
        writer: WRITER_SETTINGS.to_owned(),
        engine_fingerprint: spec.engine_fingerprint.clone(),
        rows: rows.num_rows() as u64,
        content_digest,
        file_digest: Digest::of(&bytes),
    };
    let rows = rows.num_rows();
    let report = DatasetReport { rows, content_digest, statuses, recipe, plans, errors, notes: Vec::new() };
    Ok(Made { report, bytes })
}

/// The commits that a dataset reads, one for each table: two roles of one view see the same rows.
#[derive(Default)]
struct Commits {
    states: BTreeMap<(String, ReadVersion), Option<TableState>>,
}

impl Commits {
    async fn state(&mut self, table: &ViewTable, version: ReadVersion) -> Result<Option<TableState>, OfflineError> {
        let identity = (table.location().url.to_string(), version);
        if let Some(state) = self.states.get(&identity) {
            return Ok(state.clone());
        }
        let state = table.state(version).await?;
        self.states.insert(identity, state.clone());
        Ok(state)
    }
}

const ERRORS_REPORTED_MAX: usize = 100;

/// Makes a dataset again from its recipe. `spec` is the same service as the registry knows it; its spine and table
/// versions are taken from the recipe. Another engine or writer may have made it: what counts is the content.
///
/// # Errors
/// Anything that is not as the recipe says: another service, view or component, a data file that is gone or has changed,
/// and last of all another content digest. Then nothing is written.
pub async fn rebuild_dataset(
    store: &OfflineStore,
    recipe: &Recipe,
    spec: &DatasetSpec,
    out: &str,
) -> Result<DatasetReport, OfflineError> {
    let broken = |reason: String| Err(OfflineError::Recipe(reason));
    if recipe.format != RECIPE_FORMAT {
        return broken(format!("it has format {}, this build reads {RECIPE_FORMAT}", recipe.format));
    }
    if recipe.service_digest != spec.service_digest || recipe.views.len() != spec.views.len() {
        return broken(format!("{} is not the service it was made with", spec.service));
    }
    let kept = KeptSpine { digest: recipe.spine_digest, format: recipe.spine_format };
    let mut pinned = DatasetSpec {
        spine: store.kept_spine_location(&kept)?.url.to_string(),
        kept_spine: Some(kept),
        columns: recipe.columns.clone(),
        cut: recipe.cut,
        with_status: recipe.with_status,
        ..spec.clone()
    };
    let place = pinned.check_output(store, out)?;
    for (known, view) in recipe.views.iter().zip(&mut pinned.views) {
        let (digest, component) = match view {
            ViewOfService::Stored(stored) => (&stored.view.digest, stored.view.transform.digest()),
            ViewOfService::OnDemand(on_demand) => (&on_demand.digest, on_demand.transform.digest()),
        };
        if *digest != known.digest || *component != known.component {
            return broken(format!("{} is not the version it was made with", known.view));
        }
        if let ViewOfService::Stored(stored) = view {
            check_files(store, stored, known).await?;
            stored.version = ReadVersion::pinned(known.table_version);
        }
    }
    let Made { mut report, bytes } = make(store, &pinned).await?;
    let engines = format!("it was made by engine {}, this is {}", recipe.engine_fingerprint, spec.engine_fingerprint);
    let same_engine = recipe.engine_fingerprint == spec.engine_fingerprint;
    if report.content_digest != recipe.content_digest {
        let advice = if same_engine { String::new() } else { format!("; {engines}; use that build") };
        return broken(format!("it gave {}, now {}{advice}", recipe.content_digest, report.content_digest));
    }
    if !same_engine {
        report.notes.push(format!("{engines}; the content is the same"));
    }
    if report.recipe.file_digest != recipe.file_digest {
        report.notes.push("the content is the same, the bytes of the file are not: it has another writer".to_owned());
    }
    write_file(&place, bytes).await?;
    Ok(report)
}

async fn write_file(place: &Location, bytes: Bytes) -> Result<(), OfflineError> {
    let failed = |error: object_store::Error| OfflineError::File {
        file: place.url.to_string(),
        reason: format!("cannot be written: {error}"),
    };
    place.store.put(&place.path, PutPayload::from(bytes)).await.map(|_| ()).map_err(failed)
}

async fn check_files(store: &OfflineStore, stored: &StoredView, known: &RecipeView) -> Result<(), OfflineError> {
    let table = store.table(&stored.view)?;
    for file in &known.files {
        let path = object_store::path::Path::from(file.path.as_str());
        let object = table.store.get(&path).await.map_err(|error| {
            OfflineError::Recipe(format!("data file {} of {} is gone: {error}", file.path, known.view))
        })?;
        let mut hasher = Sha256::new();
        let mut stream = object.into_stream();
        while let Some(bytes) = stream.try_next().await? {
            hasher.update(&bytes);
        }
        if hex::encode(hasher.finalize()) != file.digest.hex() {
            return Err(OfflineError::Recipe(format!("data file {} of {} has changed", file.path, known.view)));
        }
    }
    Ok(())
}

/// The types that the service needs of spine columns, for files that do not say.
fn wanted_types(spec: &DatasetSpec) -> BTreeMap<String, DataType> {
    let needs = spec.needs().into_iter().map(|(name, data_type)| (spec.columns.column(name).to_owned(), data_type));
    [(spec.columns.timestamp.clone(), DataType::Timestamp)].into_iter().chain(needs).collect()
}

fn spine_times(spine: &Spine, spec: &DatasetSpec) -> Result<ArrayRef, OfflineError> {
    let times = spine.column(&spec.columns.timestamp, DataType::Timestamp)?;
    if let Some(row) = (0..times.len()).find(|row| times.is_null(*row)) {
        return Err(OfflineError::Dataset(format!(
            "row {row} of the spine has no time in column `{}`",
            spec.columns.timestamp
        )));
    }
    Ok(times)
}

async fn join_view(
    table: &ViewTable,
    state: Option<TableState>,
    spec: &DatasetSpec,
    number: usize,
    stored: &StoredView,
    spine: &Spine,
    times: &ArrayRef,
) -> Result<(ViewColumns, RecipeView, Option<String>), OfflineError> {
    let view = &stored.view;
    if stored.keys.len() != view.keys.len() {
        return Err(OfflineError::View {
            view: view.id(),
            field: "keys".to_owned(),
            reason: format!("it has {} join keys, {} columns were named", view.keys.len(), stored.keys.len()),
        });
    }
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for (key, name) in view.keys.iter().zip(&stored.keys) {
        let arrow_type = key_arrow_type(key.key_type);
        let data_type = DataType::from_arrow(&arrow_type)
            .ok_or_else(|| OfflineError::Dataset(format!("join key `{}` has no type", key.name)))?;
        columns.push(spine.column(spec.columns.column(name), data_type)?);
        fields.push(Field::new(&key.name, arrow_type, true));
    }
    columns.push(times.clone());
    // Two columns of one name would be refused, and a key may be called anything.
    fields.push(Field::new("_at", times.data_type().clone(), false));
    let spine_schema = Arc::new(Schema::new(fields));
    let spine_rows = RecordBatch::try_new(spine_schema.clone(), columns)?;

    let times_us = times.as_primitive::<TimestampMicrosecondType>().values();
    let range = match (times_us.iter().min(), times_us.iter().max()) {
        (Some(earliest), Some(latest)) => ScanRange::readable(view.lifetime, *earliest, *latest),
        _ => ScanRange::ALL,
    };
    let mut recipe_view = RecipeView {
        view: view.id(),
        digest: view.digest.clone(),
        component: *view.transform.digest(),
        table_version: state.as_ref().map(|state| state.version),
        files: Vec::new(),
    };
    let state = state.unwrap_or(TableState { version: 0, files: Vec::new() });
    for file in state.files.iter().filter(|file| range.meets(file)) {
        recipe_view.files.push(recipe_file(&table.store, file).await?);
    }
    let history = HistoryExec::new(table.clone(), &state, range, spec.workers);
    let spine_plan = MemorySourceConfig::try_new_exec(&[vec![spine_rows]], spine_schema, None)?;
    let join = PointInTimeJoin {
        spine_keys: (0..view.keys.len()).collect(),
        spine_time: view.keys.len(),
        history: history_columns(&table.schema),
        cut: spec.cut,
        lifetime: view.lifetime,
    };
    let files = history.files();
    let winners = Arc::new(PointInTimeJoinExec::try_new(spine_plan, Arc::new(history), join)?);
    let asked = features_asked(spec, number);
    let outputs: Vec<&eadem_values::Field> =
        view.description().outputs.iter().filter(|field| asked.contains(field.name.as_str())).collect();
    let fetched = match view.placement {
        Placement::OnWrite => {
            table.schema.values.iter().filter(|value| asked.contains(value.column.as_str())).cloned().collect()
        }
        // Any output may depend on any input.
        Placement::OnRead => table.schema.values.clone(),
    };
    let fetch = FetchExec::try_new(winners, table.clone(), files, fetched, spec.workers)?;
    let plan: Arc<dyn ExecutionPlan> = Arc::new(fetch);
    let shown = displayable(plan.as_ref()).indent(false).to_string();
    let schema = plan.schema();
    let batches: Vec<RecordBatch> = plan.execute(0, Arc::new(TaskContext::default()))?.try_collect().await?;
    let joined = arrow_select::concat::concat_batches(&schema, &batches)?;

    let first = view.keys.len() + 1;
    let mut reads = read_rows(&joined, first, times_us)?;
    let values: Vec<ArrayRef> = joined.columns()[first + 4..].to_vec();
    let values = match view.placement {
        Placement::OnWrite => values,
        Placement::OnRead => {
            let all = compute_on_read(view.transform.as_ref(), view.policy, &values, &mut reads, view.lifetime)?;
            let named = view.description().outputs.iter().zip(all);
            named.filter(|(field, _)| asked.contains(field.name.as_str())).map(|(_, values)| values).collect()
        }
    };
    let mut columns = ViewColumns { names: Vec::new(), values: Vec::new(), statuses: Vec::new() };
    for (field, value) in outputs.into_iter().zip(&values) {
        let (value, statuses) = project_feature(value, &reads, view.lifetime)?;
        columns.names.push(field.name.clone());
        columns.values.push(value);
        columns.statuses.push(statuses);
    }
    Ok((columns, recipe_view, Some(shown)))
}

/// The features of the view of this number that the training set or one of its on-demand views asks for.
fn features_asked(spec: &DatasetSpec, number: usize) -> BTreeSet<&str> {
    let own = spec.features.iter().filter(|feature| feature.view == number).map(|feature| feature.feature.as_str());
    let bound = spec.views.iter().flat_map(|view| match view {
        ViewOfService::OnDemand(on_demand) => on_demand.bindings.as_slice(),
        ViewOfService::Stored(_) => &[],
    });
    let bound = bound.filter_map(|binding| match binding {
        OnDemandBinding::Feature { view, feature } if *view == number => Some(feature.as_str()),
        _ => None,
    });
    own.chain(bound).collect()
}

/// The winners of a join whose payload begins at column `first` with event time, known-at, tie digest and error.
fn read_rows(joined: &RecordBatch, first: usize, times_us: &[i64]) -> Result<ReadRows, OfflineError> {
    let event_times = joined.column(first).as_primitive::<TimestampMicrosecondType>();
    let known_ats = joined.column(first + 1).as_primitive::<TimestampMicrosecondType>();
    let ties = joined.column(first + 2).as_binary::<i32>();
    let errors = joined.column(first + 3);
    let order = |row: usize| {
        let tie = <[u8; 16]>::try_from(ties.value(row)).unwrap_or_default();
        RowOrder {
            event_time_us: event_times.value(row),
            known_at_us: known_ats.value(row),
            tie: TieDigest::from_bytes(tie),
        }
    };
    Ok(ReadRows {
        orders: (0..joined.num_rows()).map(|row| event_times.is_valid(row).then(|| order(row))).collect(),
        failed: (0..joined.num_rows()).map(|row| errors.is_valid(row)).collect(),
        at_us: times_us.to_vec(),
    })
}

async fn recipe_file(store: &Arc<dyn object_store::ObjectStore>, file: &DataFile) -> Result<RecipeFile, OfflineError> {
    let name = file.path.rsplit('/').next().unwrap_or_default();
    let digest = name.split('.').next().and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
    let digest = match digest {
        Some(digest) => digest,
        // Not named by us: it was made by another writer of the table.
        None => {
            let object = store.get(&object_store::path::Path::from(file.path.as_str())).await?;
            Digest::of(&object.bytes().await?)
        }
    };
    Ok(RecipeFile { path: file.path.clone(), bytes: file.bytes, digest })
}

type FailedRows = Vec<(usize, String)>;

fn compute_view(
    spec: &DatasetSpec,
    view: &OnDemandView,
    spine: &Spine,
    times: &ArrayRef,
    made: &[ViewColumns],
) -> Result<(ViewColumns, FailedRows), OfflineError> {
    let description = view.transform.description();
    let rows = times.len();
    let wrong = |input: &str, reason: String| OfflineError::View {
        view: view.id.clone(),
        field: format!("bind.{input}"),
        reason,
    };
    if description.inputs.len() != view.bindings.len() {
        let reason =
            format!("the transform has {} inputs, {} are bound", description.inputs.len(), view.bindings.len());
        return Err(OfflineError::View { view: view.id.clone(), field: "bind".to_owned(), reason });
    }
    let mut inputs = Vec::with_capacity(view.bindings.len());
    for (field, binding) in description.inputs.iter().zip(&view.bindings) {
        let input = match binding {
            OnDemandBinding::Request(name) => {
                OnDemandInput { values: spine.column(spec.columns.column(name), field.data_type)?, statuses: None }
            }
            OnDemandBinding::RequestTimestamp => OnDemandInput { values: times.clone(), statuses: None },
            OnDemandBinding::Literal(value) => {
                let value = value.clone().canonical();
                let values = array_from_values(field.data_type, std::iter::repeat_n(&value, rows))?;
                OnDemandInput { values, statuses: None }
            }
            OnDemandBinding::Feature { view: upstream, feature } => {
                let found = made.get(*upstream).and_then(|made| made.position(feature).map(|at| (made, at)));
                let (upstream, at) =
                    found.ok_or_else(|| wrong(&field.name, format!("no earlier view has the feature `{feature}`")))?;
                OnDemandInput { values: upstream.values[at].clone(), statuses: Some(upstream.statuses[at].clone()) }
            }
        };
        if input.values.data_type() != &field.data_type.to_arrow() {
            let reason = format!("is {}, the transform takes {}", input.values.data_type(), field.data_type);
            return Err(wrong(&field.name, reason));
        }
        inputs.push(input);
    }
    let output = evaluate_on_demand(view.transform.as_ref(), view.policy, rows, &inputs)?;
    let columns = ViewColumns {
        names: description.outputs.iter().map(|field| field.name.clone()).collect(),
        values: output.columns,
        statuses: output.statuses,
    };
    Ok((columns, output.errors))
}

type StatusCounts = BTreeMap<String, BTreeMap<String, u64>>;

/// The spine's columns, then each feature with its status.
fn assemble(
    spec: &DatasetSpec,
    spine: &Spine,
    made: &[ViewColumns],
) -> Result<(RecordBatch, StatusCounts), OfflineError> {
    let mut fields: Vec<Field> = spine.rows.schema().fields().iter().map(|field| field.as_ref().clone()).collect();
    let mut columns: Vec<ArrayRef> = spine.rows.columns().to_vec();
    let mut counts = StatusCounts::new();
    for feature in &spec.features {
        let found = made.get(feature.view).and_then(|made| made.position(&feature.feature).map(|at| (made, at)));
        let (view, at) = found.ok_or_else(|| {
            OfflineError::Dataset(format!("feature `{}`: its view has no feature `{}`", feature.name, feature.feature))
        })?;
        let statuses = &view.statuses[at];
        let values = match &feature.default {
            Some(default) => apply_default(&view.values[at], statuses, default)?,
            None => view.values[at].clone(),
        };
        let status_name = format!("{}__status", feature.name);
        for name in [&feature.name, &status_name] {
            if fields.iter().any(|field| field.name() == name) {
                return Err(OfflineError::Dataset(format!(
                    "column `{name}` would occur twice; give the feature an alias, or leave the column out of the spine"
                )));
            }
        }
        fields.push(Field::new(&feature.name, values.data_type().clone(), true));
        columns.push(values);
        if spec.with_status {
            let column = status_dictionary(statuses);
            fields.push(Field::new(status_name, column.data_type().clone(), false));
            columns.push(column);
        }
        counts.insert(feature.name.clone(), count_statuses(statuses));
    }
    let options = RecordBatchOptions::new().with_row_count(Some(spine.rows.num_rows()));
    Ok((RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?, counts))
}

/// How often each status occurs, of those that do.
fn count_statuses(statuses: &[Status]) -> BTreeMap<String, u64> {
    let all = [Status::Present, Status::Missing, Status::Expired, Status::Null, Status::Error];
    let count = |wanted: Status| statuses.iter().filter(|status| **status == wanted).count() as u64;
    let counts = all.into_iter().map(|status| (status.to_string(), count(status)));
    counts.filter(|(_, count)| *count > 0).collect()
}

/// SHA-256 over the names and types of the columns and the canonical encoding of every row, in order.
fn content_digest(rows: &RecordBatch) -> Result<Digest, OfflineError> {
    let schema: SchemaRef = rows.schema();
    let mut hasher = Sha256::new();
    for field in schema.fields() {
        hasher.update(format!("{}\u{0}{}\u{0}", field.name(), type_name(field.data_type())));
    }
    let mut encoded = Vec::new();
    let mut start = 0;
    while start < rows.num_rows() {
        let slice = rows.slice(start, DIGEST_ROWS.min(rows.num_rows() - start));
        let columns: Vec<ArrayRef> = slice.columns().iter().map(encodable).collect::<Result<_, _>>()?;
        let encoder = BatchEncoder::try_new(&columns)?;
        encoded.clear();
        for row in 0..slice.num_rows() {
            encoder.encode_row(row, &mut encoded);
        }
        hasher.update(&encoded);
        start += slice.num_rows();
    }
    Ok(Digest::from_bytes(hasher.finalize().into()))
}

/// The name of a type in the content digest. Not as the columnar library prints it: that may change with its version, and
/// how a column is laid out is not its content.
fn type_name(data_type: &ArrowType) -> String {
    if let Some(of_the_contract) = DataType::from_arrow(data_type) {
        return of_the_contract.to_string();
    }
    let unit = |unit: &TimeUnit| match unit {
        TimeUnit::Second => "s",
        TimeUnit::Millisecond => "ms",
        TimeUnit::Microsecond => "us",
        TimeUnit::Nanosecond => "ns",
    };
    let simple = match data_type {
        ArrowType::Null => "null",
        ArrowType::Int8 => "int8",
        ArrowType::Int16 => "int16",
        ArrowType::Int32 => "int32",
        ArrowType::UInt8 => "uint8",
        ArrowType::UInt16 => "uint16",
        ArrowType::UInt32 => "uint32",
        ArrowType::UInt64 => "uint64",
        ArrowType::Float16 => "float16",
        ArrowType::LargeUtf8 | ArrowType::Utf8View => "utf8",
        ArrowType::LargeBinary | ArrowType::BinaryView | ArrowType::FixedSizeBinary(_) => "binary",
        ArrowType::Date32 | ArrowType::Date64 => "date",
        ArrowType::Interval(_) => "interval",
        ArrowType::Timestamp(time_unit, zone) => {
            return format!("timestamp({}, {})", unit(time_unit), zone.as_deref().unwrap_or("local"));
        }
        ArrowType::Time32(time_unit) | ArrowType::Time64(time_unit) => return format!("time({})", unit(time_unit)),
        ArrowType::Duration(time_unit) => return format!("duration({})", unit(time_unit)),
        ArrowType::Decimal32(digits, scale)
        | ArrowType::Decimal64(digits, scale)
        | ArrowType::Decimal128(digits, scale)
        | ArrowType::Decimal256(digits, scale) => return format!("decimal({digits}, {scale})"),
        ArrowType::Dictionary(_, values) => return type_name(values),
        ArrowType::List(item)
        | ArrowType::LargeList(item)
        | ArrowType::ListView(item)
        | ArrowType::LargeListView(item)
        | ArrowType::FixedSizeList(item, _) => return format!("list({})", type_name(item.data_type())),
        _ => "nested",
    };
    simple.to_owned()
}

/// Columns of the spine that no feature could have (dates, decimals) count by their text.
fn encodable(column: &ArrayRef) -> Result<ArrayRef, OfflineError> {
    if matches!(column.data_type(), ArrowType::Timestamp(_, None)) {
        return Ok(eadem_values::canonicalize(&arrow_cast::cast(column, &ArrowType::Int64)?)?);
    }
    match to_canonical(column) {
        Ok(canonical) => Ok(canonical),
        Err(_) => Ok(eadem_values::canonicalize(&arrow_cast::cast(column, &ArrowType::Utf8)?)?),
    }
}

fn encode(rows: &RecordBatch) -> Result<Bytes, OfflineError> {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_created_by("eadem".to_owned());
    for field in rows.schema().fields() {
        // Most of them differ: a dictionary would be built only to be thrown away, which takes half of the writer's time.
        if matches!(field.data_type(), ArrowType::Float32 | ArrowType::Float64 | ArrowType::Timestamp(..)) {
            properties = properties.set_column_dictionary_enabled(ColumnPath::from(field.name().as_str()), false);
        }
    }
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, rows.schema(), Some(properties.build()))?;
    writer.write(rows)?;
    writer.close()?;
    Ok(bytes.into())
}

async fn keep_recipe(store: &OfflineStore, recipe: &Recipe) -> Result<(), OfflineError> {
    let place = store.recipe_location(&recipe.content_digest.hex())?;
    let text = serde_json::to_vec_pretty(recipe).map_err(|source| OfflineError::Json { what: "a recipe", source })?;
    place.store.put(&place.path, PutPayload::from(text)).await?;
    Ok(())
}

impl OfflineStore {
    /// The recipe of a dataset, by its content digest; `None` if the store has no such dataset.
    ///
    /// # Errors
    /// A recipe that cannot be read.
    pub async fn recipe(&self, content_digest: &Digest) -> Result<Option<Recipe>, OfflineError> {
        let place = self.recipe_location(&content_digest.hex())?;
        let object = match place.store.get(&place.path).await {
            Ok(object) => object,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let bytes = object.bytes().await?;
        serde_json::from_slice(&bytes).map(Some).map_err(|source| OfflineError::Json { what: "a recipe", source })
    }
}
