//! Training sets: for each spine row, each feature as it stood at that row's time, with its status beside it.

mod assemble;
mod content;
mod diff;
mod join;
mod observe;
mod on_demand;
mod output;
mod recipe;
mod rows;
mod sink;
mod spec;
mod split;
mod statistics;

use std::collections::BTreeMap;

use arrow_array::{Array, ArrayRef};
use eadem_semantics::Status;
use eadem_values::{DataType, Digest};

use self::assemble::assemble;
use self::join::join_view;
use self::on_demand::compute_view;
use self::output::WrittenOutput;
use self::recipe::{RECIPE_FORMAT, keep_recipe};
use self::sink::{DatasetSink, FinishedRows};
use self::spec::wanted_types;
use crate::error::OfflineError;
use crate::location::{Location, OfflineStore};
use crate::spine::Spine;
use crate::table::{ReadVersion, TableState, ViewTable};

pub use self::diff::{ChangedValue, ColumnChanges, DatasetDiff, DiffSide, MatchedBy, Pair, diff_datasets};
pub use self::observe::SpineReport;
pub use self::output::OutputFormat;
pub use self::recipe::{Recipe, RecipeFile, RecipeView, file_digest_of, rebuild_dataset};
pub use self::rows::{DatasetRows, open_rows};
pub use self::spec::{
    DatasetFeature, DatasetOptions, DatasetSpec, OnDemandBinding, OnDemandView, SpineColumns, SpineOrigin, StoredView,
    ViewOfService,
};
pub use self::split::{Split, SplitBy, SplitRule, SplitShare, TimeRange};
pub use self::statistics::{
    DatasetStatistics, FeatureStatistics, LengthStatistics, SAMPLE_ROWS_MAX, StatisticsBuilder, TopValue,
};

const ERRORS_REPORTED_MAX: usize = 100;

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
    statuses: Vec<Vec<Status>>,
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
    let mut sink = DatasetSink::begin(place, &rows.schema(), spec).await?;
    sink.write(&rows).await?;
    let FinishedRows { output, statistics, spine: spine_report } = sink.finish(spec, &statuses).await?;
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
