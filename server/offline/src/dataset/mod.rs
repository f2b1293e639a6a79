//! Training sets: for each spine row, each feature as it stood at that row's time, with its status beside it.

mod assemble;
mod content;
mod diff;
mod join;
mod observe;
mod on_demand;
mod output;
mod parquet_file;
mod recipe;
mod rows;
mod sink;
mod spec;
mod split;
mod statistics;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::ArrayRef;
use eadem_semantics::Status;
use eadem_values::Digest;
use futures::stream::{StreamExt, TryStreamExt};

use self::assemble::{StatusCounts, assemble};
use self::join::{PlannedJoin, StartedJoin};
use self::on_demand::compute_view;
use self::output::{ROW_GROUP_ROWS, WrittenOutput};
use self::recipe::{RECIPE_FORMAT, keep_recipe};
use self::sink::{DatasetSink, FinishedRows};
use self::spec::wanted_types;
use crate::cancel::unless_cancelled;
use crate::error::OfflineError;
use crate::location::{Location, OfflineStore};
use crate::spine::reader::{SpineBlock, SpineReader};
use crate::spine::spine_gone;
use crate::table::{ReadVersion, TableState, ViewTable};

pub use self::diff::{ChangedValue, ColumnChanges, DatasetDiff, DiffSide, MatchedBy, Pair, diff_datasets};
pub use self::observe::SpineReport;
pub use self::output::OutputFormat;
pub use self::recipe::{Recipe, RecipeFile, RecipeView, file_digest_of, rebuild_dataset};
pub use self::rows::{DatasetRows, open_rows};
pub use self::spec::{
    DatasetFeature, DatasetOptions, DatasetSpec, DatasetWatch, OnDemandBinding, OnDemandView, ProtectedPlace,
    SpineColumns, SpineOrigin, StoredView, ViewOfService,
};
pub use self::split::{Split, SplitBy, SplitRule, SplitShare, TimeRange};
pub use self::statistics::{
    DatasetStatistics, FeatureStatistics, LengthStatistics, SAMPLE_ROWS_MAX, StatisticsBuilder, TopValue,
};

const ERRORS_REPORTED_MAX: usize = 100;

/// Parts that a spine is split into at most: each has a temporary file that is open until the end.
const PARTITIONS_MAX: u64 = 512;

/// What was made.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetReport {
    /// Rows, as many as the spine has.
    pub rows: usize,
    /// Digest over the canonical encoding of all rows.
    pub content_digest: Digest,
    /// For each feature, how often each status occurs.
    pub statuses: BTreeMap<String, BTreeMap<String, u64>>,
    /// What the features look like, unless that was not asked for.
    pub statistics: Option<DatasetStatistics>,
    /// What is worth knowing of the spine, and of what was found for it.
    pub spine: SpineReport,
    /// How it was made.
    pub recipe: Recipe,
    /// The plans of the joins, as `EXPLAIN` shows them.
    pub plans: Vec<String>,
    /// Rows on which an on-demand view failed, as (view, row, reason); the first hundred.
    pub errors: Vec<(String, usize, String)>,
    /// What is worth knowing of a dataset that was made again: another engine, other bytes of the same content.
    pub notes: Vec<String>,
}

/// The features of one view at every spine row.
struct ViewColumns {
    names: Vec<String>,
    values: Vec<ArrayRef>,
    /// Those of features without a null are one and the same.
    statuses: Vec<Arc<[Status]>>,
}

impl ViewColumns {
    fn position(&self, feature: &str) -> Option<usize> {
        self.names.iter().position(|name| name == feature)
    }
}

/// Makes a training set and writes it to `out` (a Parquet or Arrow file, as a local path or URL). The file appears whole or not at
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
    let made = make(store, spec, place).await?;
    keep_recipe(store, &made.report.recipe, made.report.statistics.as_ref()).await?;
    made.output.publish().await?;
    Ok(made.report)
}

/// A training set that nobody can see yet.
struct Made {
    report: DatasetReport,
    output: WrittenOutput,
}

async fn make(store: &OfflineStore, spec: &DatasetSpec, place: Location) -> Result<Made, OfflineError> {
    spec.check_columns()?;
    let cancel = &spec.watch.cancel;
    let (spine, recipe_views, mut joins) = unless_cancelled(cancel, begin_joins(store, spec)).await?;
    let plans = joins.iter().map(|join| join.shown.clone()).collect();

    let mut statuses = StatusCounts::new();
    let mut errors = Vec::new();
    let mut sink: Option<DatasetSink> = None;
    let mut blocks = spine.blocks(None, ROW_GROUP_ROWS)?;
    if spine.rows() == 0 {
        // A training set without rows still has columns.
        blocks = futures::stream::iter([Ok(spine.no_rows())]).boxed();
    }
    while let Some(block) = blocks.try_next().await? {
        let times = block.times(&spec.columns.timestamp)?;
        // What a join is at is dropped, and stops at its next batch.
        let made = unless_cancelled(cancel, features_at(spec, &mut joins, &block, &times, &mut errors)).await;
        if matches!(made, Err(OfflineError::Cancelled))
            && let Some(sink) = sink.take()
        {
            sink.discard().await?;
        }
        let rows = assemble(spec, &block, &made?, &mut statuses)?;
        if sink.is_none() {
            sink = Some(DatasetSink::begin(place.clone(), &rows.schema(), spec).await?);
        }
        if let Some(sink) = &mut sink {
            sink.write(&rows).await?;
        }
        if let Some(progress) = &spec.watch.progress {
            progress((block.first_row + rows.num_rows()) as u64, spine.rows() as u64);
        }
    }
    let sink = sink.ok_or_else(|| OfflineError::Dataset("the spine gave no rows".to_owned()))?;
    let FinishedRows { output, statistics, spine: spine_report } = sink.finish(spec, &statuses).await?;
    if !store.keeps_spine(&spine.kept).await? {
        // An erasure came meanwhile: what was made of it could not be made again.
        output.discard().await?;
        return Err(spine_gone(&spec.spine));
    }
    let recipe = Recipe {
        format: RECIPE_FORMAT,
        service: spec.service.clone(),
        service_digest: spec.service_digest.clone(),
        spine_digest: spine.kept.digest,
        spine_format: spine.kept.format,
        columns: spec.columns.clone(),
        keys: spec.key_columns(),
        options: spec.options.clone(),
        cut: spec.cut,
        with_status: spec.with_status,
        views: recipe_views,
        features: spec.features.iter().map(|feature| feature.name.clone()).collect(),
        writer: spec.options.format.writer_settings().to_owned(),
        engine_fingerprint: spec.engine_fingerprint.clone(),
        rows: output.rows as u64,
        content_digest: output.content_digest,
        file_digest: output.file_digest,
    };
    let (rows, content_digest) = (output.rows, output.content_digest);
    let report = DatasetReport {
        rows,
        content_digest,
        statuses,
        statistics,
        spine: spine_report,
        recipe,
        plans,
        errors,
        notes: Vec::new(),
    };
    Ok(Made { report, output })
}

/// Opens the spine, and starts the joins to it; also gives what the recipe says of the views.
async fn begin_joins<'a>(
    store: &OfflineStore,
    spec: &'a DatasetSpec,
) -> Result<(Arc<SpineReader>, Vec<RecipeView>, Vec<StartedJoin<'a>>), OfflineError> {
    let kept = spec.kept_spine.as_ref();
    let spine = SpineReader::open(store, &spec.spine, kept, &wanted_types(spec), spec.memory_bytes_max).await?;
    let spine = Arc::new(spine);
    let span = spine.time_span(&spec.columns.timestamp).await?;
    let (planned, recipe_views) = plan_views(store, spec, &spine, span).await?;
    let joins = start_joins(spec, &spine, planned).await?;
    Ok((spine, recipe_views, joins))
}

/// Plans the joins of all views with a table, each table at one commit once, and lists for the recipe what each view reads.
async fn plan_views<'a>(
    store: &OfflineStore,
    spec: &'a DatasetSpec,
    spine: &SpineReader,
    span: Option<(i64, i64)>,
) -> Result<(Vec<PlannedJoin<'a>>, Vec<RecipeView>), OfflineError> {
    let mut commits = Commits::default();
    let mut planned: Vec<PlannedJoin<'a>> = Vec::new();
    let mut recipes = Vec::new();
    for (number, view) in spec.views.iter().enumerate() {
        match view {
            ViewOfService::Stored(stored) => {
                let table = store.table(&stored.view)?;
                let state = commits.state(&table, stored.version).await?;
                let (join, recipe) = PlannedJoin::plan(table, state, spec, number, stored, spine, span).await?;
                recipes.push(recipe);
                match planned.iter_mut().find(|known| known.reads_the_same(&join)) {
                    Some(known) => known.join_with(join),
                    None => planned.push(join),
                }
            }
            ViewOfService::OnDemand(on_demand) => {
                recipes.push(RecipeView {
                    view: on_demand.id.clone(),
                    digest: on_demand.digest.clone(),
                    component: *on_demand.transform.digest(),
                    placement: None,
                    table_version: None,
                    files: Vec::new(),
                });
            }
        }
    }
    Ok((planned, recipes))
}

/// Starts the joins so that they stay within half of the job's memory: together if they fit, else one after the other
/// through temporary files, each in as many parts as it takes. The other half is for what is read and written meanwhile.
async fn start_joins<'a>(
    spec: &'a DatasetSpec,
    spine: &Arc<SpineReader>,
    planned: Vec<PlannedJoin<'a>>,
) -> Result<Vec<StartedJoin<'a>>, OfflineError> {
    let memory_bytes = (spec.memory_bytes_max / 2).max(1) as u64;
    let mut needed_bytes = Vec::with_capacity(planned.len());
    for join in &planned {
        needed_bytes.push(join.row_bytes().await?.saturating_mul(spine.rows() as u64));
    }
    let must_spill = needed_bytes.iter().sum::<u64>() > memory_bytes;
    let mut started = Vec::with_capacity(planned.len());
    for (join, needed_bytes) in planned.into_iter().zip(needed_bytes) {
        let partitions = needed_bytes.div_ceil(memory_bytes).clamp(1, PARTITIONS_MAX) as usize;
        started.push(join.start(spec, spine, partitions, must_spill).await?);
    }
    Ok(started)
}

/// The features of all views at a block of the spine, those that others depend on first.
async fn features_at(
    spec: &DatasetSpec,
    joins: &mut [StartedJoin<'_>],
    block: &SpineBlock,
    times: &ArrayRef,
    errors: &mut Vec<(String, usize, String)>,
) -> Result<Vec<ViewColumns>, OfflineError> {
    let mut made: Vec<ViewColumns> = Vec::with_capacity(spec.views.len());
    for (number, view) in spec.views.iter().enumerate() {
        match view {
            ViewOfService::OnDemand(on_demand) => {
                let (columns, failed) = compute_view(spec, on_demand, block, times, &made)?;
                made.push(columns);
                let reported = ERRORS_REPORTED_MAX.saturating_sub(errors.len());
                errors
                    .extend(failed.into_iter().take(reported).map(|(row, reason)| (on_demand.id.clone(), row, reason)));
            }
            ViewOfService::Stored(stored) => {
                let join = joins.iter_mut().find(|join| join.has(number));
                let join = join.ok_or_else(|| OfflineError::Dataset(format!("{} was not joined", stored.view.id())))?;
                made.push(join.features_at(number, block, times).await?);
            }
        }
    }
    Ok(made)
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
