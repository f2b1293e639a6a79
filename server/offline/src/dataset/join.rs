//! The features of a view with a table, point in time, a block of spine rows at a time. A view that a service has in several
//! roles is joined once: the blocks of the spine stand there once for each role.
//!
//! A join holds what goes with the spine: its keys and times, the winners, their values. What fits into the job's memory
//! is handed on from there. A spine that does not fit is split by entity; its parts are joined one after the other, each
//! goes to a temporary file in the order of the spine, and the blocks are put together from all of them.

use std::collections::BTreeSet;
use std::io::{BufReader, BufWriter, Seek};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::TimestampMicrosecondType;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::SchemaRef;
use datafusion::arrow::ipc::reader::StreamReader;
use datafusion::arrow::ipc::writer::StreamWriter;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::{ExecutionPlan, displayable};
use eadem_query::{PointInTimeJoin, PointInTimeJoinExec, ReadRows, compute_on_read, project_feature};
use eadem_semantics::Lifetime;
use eadem_values::DataType;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};

use super::ViewColumns;
use super::output::ROW_GROUP_ROWS;
use super::recipe::{RecipeView, recipe_file};
use super::spec::{DatasetSpec, StoredView, features_asked};
use crate::error::OfflineError;
use crate::fetch_exec::FetchExec;
use crate::history_exec::{History, history_columns};
use crate::leaf_exec::LeafExec;
use crate::read::ScanRange;
use crate::schema::ValueColumn;
use crate::spec::Placement;
use crate::spine::exec::{SpineKeys, SpineParts, partitions_of};
use crate::spine::reader::{SpineBlock, SpineReader};
use crate::table::{TableState, ViewTable};

/// Rows of one batch of a temporary file. Small, because one batch of every part is in memory at once.
const SPILLED_ROWS: usize = 8_192;

/// What a spine row costs in a join besides its keys and the winner's values: its time and number while they are sorted
/// (16), its slot (12), the winner (24), the winner's place and time twice (32), what is fetched for it (40).
const ROW_BYTES: u64 = 124;

/// Least bytes that are reckoned for a text, a binary or a list, whose lengths are known only when they are read.
const VARIABLE_BYTES: u64 = 32;

/// A view with a table, ready to be joined.
pub(super) struct PlannedJoin<'a> {
    table: ViewTable,
    state: TableState,
    range: ScanRange,
    lifetime: Lifetime,
    roles: Vec<Role<'a>>,
}

/// A view as a service has it: with these columns of the spine as its keys.
struct Role<'a> {
    /// Its number among the service's views.
    view: usize,
    stored: &'a StoredView,
    keys: SpineKeys,
    asked: BTreeSet<&'a str>,
    fetched: Vec<ValueColumn>,
}

impl<'a> PlannedJoin<'a> {
    /// Plans the join of the view of this number to a spine whose times lie in `span`; also gives what the dataset's recipe
    /// says of the view.
    ///
    /// # Errors
    /// Another number of keys than the view has; a key that the spine does not have, or of another type; a data file whose
    /// digest cannot be told.
    pub(super) async fn plan(
        table: ViewTable,
        state: Option<TableState>,
        spec: &'a DatasetSpec,
        number: usize,
        stored: &'a StoredView,
        spine: &SpineReader,
        span: Option<(i64, i64)>,
    ) -> Result<(Self, RecipeView), OfflineError> {
        let view = &stored.view;
        if stored.keys.len() != view.keys.len() {
            return Err(OfflineError::View {
                view: view.id(),
                field: "keys".to_owned(),
                reason: format!("it has {} join keys, {} columns were named", view.keys.len(), stored.keys.len()),
            });
        }
        let columns: Vec<String> = stored.keys.iter().map(|name| spec.columns.column(name).to_owned()).collect();
        let keys = SpineKeys::try_new(&view.keys, &columns, &spec.columns.timestamp)?;
        keys.of(&spine.no_rows())?;
        let range = span.map_or(ScanRange::ALL, |(from, to)| ScanRange::readable(view.lifetime, from, to));
        let mut recipe = RecipeView {
            view: view.id(),
            digest: view.digest.clone(),
            component: *view.transform.digest(),
            placement: Some(view.placement),
            table_version: state.as_ref().map(|state| state.version),
            files: Vec::new(),
        };
        let state = state.unwrap_or(TableState { version: 0, files: Vec::new() });
        for file in state.files.iter().filter(|file| range.meets(file)) {
            recipe.files.push(recipe_file(&table.store, file).await?);
        }
        let asked = features_asked(spec, number);
        let fetched = match view.placement {
            Placement::OnWrite => {
                table.schema.values.iter().filter(|value| asked.contains(value.column.as_str())).cloned().collect()
            }
            // Any output may depend on any input.
            Placement::OnRead => table.schema.values.clone(),
        };
        let role = Role { view: number, stored, keys, asked, fetched };
        Ok((Self { table, state, range, lifetime: view.lifetime, roles: vec![role] }, recipe))
    }

    /// Whether the other one is the same view at the same commit, in another role.
    pub(super) fn reads_the_same(&self, other: &Self) -> bool {
        self.table.location().url == other.table.location().url && self.state.version == other.state.version
    }

    /// Takes the roles of another one in that reads the same.
    pub(super) fn join_with(&mut self, other: Self) {
        self.roles.extend(other.roles);
    }

    /// The values of winners that some role needs.
    fn fetched(&self) -> Vec<ValueColumn> {
        let needed = |value: &&ValueColumn| self.roles.iter().any(|role| role.fetches(value));
        self.table.schema.values.iter().filter(needed).cloned().collect()
    }

    /// About how many bytes of memory the join of one spine row takes, by a sample of the table's files.
    ///
    /// # Errors
    /// A data file that cannot be read.
    pub(super) async fn row_bytes(&self) -> Result<u64, OfflineError> {
        let mut bytes = ROW_BYTES + self.table.schema.keys.len() as u64 * VARIABLE_BYTES;
        let sampled = self.state.files.iter().find(|file| self.range.meets(file));
        let lengths = match sampled {
            Some(file) => self.table.mean_bytes(file).await?,
            None => Default::default(),
        };
        for value in self.fetched() {
            bytes += match value.data_type {
                DataType::Boolean => 1,
                DataType::Int64 | DataType::Float64 | DataType::Timestamp => 8,
                DataType::Float32 => 4,
                DataType::Vector(dimensions) => 4 * u64::from(dimensions),
                DataType::Utf8 | DataType::Binary | DataType::List(_) => {
                    lengths.get(&value.column).map_or(0, |mean| mean + 8).max(VARIABLE_BYTES)
                }
            };
        }
        Ok(bytes * self.roles.len() as u64)
    }

    /// Makes the plan, for a spine in this many parts. With more than one part, or if it `must_spill`, the join runs now.
    ///
    /// # Errors
    /// Columns that do not fit; a table that cannot be read; a temporary file that cannot be written.
    pub(super) async fn start(
        self,
        spec: &DatasetSpec,
        spine: &Arc<SpineReader>,
        partitions: usize,
        must_spill: bool,
    ) -> Result<StartedJoin<'a>, OfflineError> {
        let keys: Vec<SpineKeys> = self.roles.iter().map(|role| role.keys.clone()).collect();
        let columns = self.table.schema.keys.len();
        // Several roles take turns block by block, as they are asked for; of one the rows stand in the spine's order anyway.
        let block_rows = if keys.len() == 1 { spine.block_rows_max(ROW_GROUP_ROWS) } else { ROW_GROUP_ROWS };
        let spine_parts = SpineParts::try_new(spine.clone(), keys, block_rows, partitions)?;
        let history = History::new(self.table.clone(), &self.state, self.range, spec.workers).await?;
        let join = PointInTimeJoin {
            spine_keys: (0..columns).collect(),
            spine_time: columns,
            spine_kept: Vec::new(),
            history: history_columns(&self.table.schema),
            cut: spec.cut,
            lifetime: self.lifetime,
        };
        let placed = history.placed_files();
        let (spine, history) = (LeafExec::new(spine_parts), LeafExec::new(history));
        let ties = Arc::new(placed.clone());
        let winners = Arc::new(PointInTimeJoinExec::try_new(Arc::new(spine), Arc::new(history), ties, join)?);
        let is_spilled = must_spill || partitions > 1;
        let batch_rows = if is_spilled { SPILLED_ROWS } else { ROW_GROUP_ROWS };
        let fetch = FetchExec::try_new(winners, placed, self.fetched(), batch_rows)?;
        let plan: Arc<dyn ExecutionPlan> = Arc::new(fetch);
        let shown = displayable(plan.as_ref()).indent(false).to_string();
        let context = Arc::new(TaskContext::default());
        let parts = match is_spilled {
            true => spill(&plan, partitions, &context).await?,
            false => vec![RowQueue::of(plan.execute(0, context)?.map_err(OfflineError::from).boxed())],
        };
        Ok(StartedJoin { roles: self.roles, schema: plan.schema(), parts, shown })
    }
}

/// A view whose features can be asked for, a block of the spine after the other.
pub(super) struct StartedJoin<'a> {
    roles: Vec<Role<'a>>,
    schema: SchemaRef,
    /// The joined rows of each part of the spine.
    parts: Vec<RowQueue>,
    /// The plan, as `EXPLAIN` shows it.
    pub(super) shown: String,
}

impl StartedJoin<'_> {
    /// Whether the view of this number is joined here.
    pub(super) fn has(&self, view: usize) -> bool {
        self.roles.iter().any(|role| role.view == view)
    }

    /// The features of the view of this number at the next block of the spine: blocks are asked for in order, in
    /// [`ROW_GROUP_ROWS`] each, and of each block the views in their order.
    ///
    /// # Errors
    /// A table or a temporary file that cannot be read; a transform that could not run.
    pub(super) async fn features_at(
        &mut self,
        view: usize,
        block: &SpineBlock,
        times: &ArrayRef,
    ) -> Result<ViewColumns, OfflineError> {
        let role = self.roles.iter().find(|role| role.view == view);
        let role = role.ok_or_else(|| OfflineError::Dataset(format!("view {view} was not joined")))?;
        let rows = block.rows.num_rows();
        let joined = match self.parts.as_mut_slice() {
            _ if rows == 0 => RecordBatch::new_empty(self.schema.clone()),
            [whole] => match whole.take(rows).await?.as_slice() {
                [rows] => rows.clone(),
                several => arrow_select::concat::concat_batches(&self.schema, several)?,
            },
            parts => {
                let of_row = partitions_of(&role.keys.of(block)?, parts.len())?;
                put_together(parts, &of_row, &self.schema).await?
            }
        };
        if joined.num_rows() != rows {
            return Err(lost_rows(rows, joined.num_rows()));
        }
        role.features(&joined, times)
    }
}

impl Role<'_> {
    fn fetches(&self, value: &ValueColumn) -> bool {
        self.fetched.iter().any(|fetched| fetched.column == value.column)
    }

    fn features(&self, joined: &RecordBatch, times: &ArrayRef) -> Result<ViewColumns, OfflineError> {
        let view = &self.stored.view;
        let mut reads = read_rows(joined, times);
        let column = |value: &ValueColumn| Ok(joined.column(joined.schema().index_of(&value.column)?).clone());
        let values = self.fetched.iter().map(column).collect::<Result<Vec<ArrayRef>, OfflineError>>()?;
        let values = match view.placement {
            Placement::OnWrite => values,
            Placement::OnRead => {
                let all =
                    compute_on_read(view.transform.as_ref(), &view.validation, &values, &mut reads, view.lifetime)?;
                let named = view.description().outputs.iter().zip(all);
                named.filter(|(field, _)| self.asked.contains(field.name.as_str())).map(|(_, values)| values).collect()
            }
        };
        let mut columns = ViewColumns { names: Vec::new(), values: Vec::new(), statuses: Vec::new() };
        let outputs = view.description().outputs.iter().filter(|field| self.asked.contains(field.name.as_str()));
        let of_rows = reads.statuses(view.lifetime).into();
        for (field, value) in outputs.zip(&values) {
            let (value, statuses) = project_feature(value, &of_rows)?;
            columns.names.push(field.name.clone());
            columns.values.push(value);
            columns.statuses.push(statuses);
        }
        Ok(columns)
    }
}

fn lost_rows(expected: usize, found: usize) -> OfflineError {
    OfflineError::Dataset(format!("a join has {found} rows for a block of {expected}; the spine or its copy changed"))
}

/// The winners of a join that begins with event time and error.
fn read_rows(joined: &RecordBatch, times: &ArrayRef) -> ReadRows {
    let event_times = joined.column(0).as_primitive::<TimestampMicrosecondType>();
    let errors = joined.column(1);
    ReadRows {
        event_times_us: event_times.iter().collect(),
        failed: (0..joined.num_rows()).map(|row| errors.is_valid(row)).collect(),
        at_us: times.as_primitive::<TimestampMicrosecondType>().values().to_vec(),
    }
}

/// Joined rows in the order of the spine, of which some are taken after the other.
struct RowQueue {
    batches: BoxStream<'static, Result<RecordBatch, OfflineError>>,
    /// What is read and not yet taken.
    pending: Option<RecordBatch>,
}

/// Joins one part after the other, so that one is in memory at a time. The files have no name: they go with the process,
/// however it ends.
async fn spill(
    plan: &Arc<dyn ExecutionPlan>,
    partitions: usize,
    context: &Arc<TaskContext>,
) -> Result<Vec<RowQueue>, OfflineError> {
    let failed = |error: std::io::Error| OfflineError::File {
        file: std::env::temp_dir().display().to_string(),
        reason: format!("no temporary file for a part of a join: {error}"),
    };
    let mut parts = Vec::with_capacity(partitions);
    for partition in 0..partitions {
        let file = tempfile::tempfile().map_err(failed)?;
        let mut reader = file.try_clone().map_err(failed)?;
        let mut writer = StreamWriter::try_new(BufWriter::new(file), &plan.schema())?;
        let mut batches = plan.execute(partition, context.clone())?;
        while let Some(batch) = batches.try_next().await? {
            writer.write(&batch)?;
        }
        writer.finish()?;
        drop(writer);
        reader.rewind().map_err(failed)?;
        let batches = StreamReader::try_new(BufReader::new(reader), None)?;
        parts.push(RowQueue::of(futures::stream::iter(batches).map_err(OfflineError::from).boxed()));
    }
    Ok(parts)
}

impl RowQueue {
    fn of(batches: BoxStream<'static, Result<RecordBatch, OfflineError>>) -> Self {
        Self { batches, pending: None }
    }

    /// The next rows, this many.
    async fn take(&mut self, mut rows: usize) -> Result<Vec<RecordBatch>, OfflineError> {
        let mut taken = Vec::new();
        while rows > 0 {
            let batch = match self.pending.take() {
                Some(batch) => batch,
                None => self.batches.try_next().await?.ok_or_else(|| lost_rows(rows, 0))?,
            };
            let length = rows.min(batch.num_rows());
            if length < batch.num_rows() {
                self.pending = Some(batch.slice(length, batch.num_rows() - length));
            }
            taken.push(batch.slice(0, length));
            rows -= length;
        }
        Ok(taken)
    }
}

/// The next rows of all parts, in the order that `of_row` gives.
async fn put_together(parts: &mut [RowQueue], of_row: &[u16], schema: &SchemaRef) -> Result<RecordBatch, OfflineError> {
    let mut counts = vec![0_usize; parts.len()];
    of_row.iter().for_each(|part| counts[usize::from(*part)] += 1);
    let mut sources: Vec<RecordBatch> = Vec::new();
    // For each part, the (source, row) of its rows in order.
    let mut rows_of: Vec<std::vec::IntoIter<(usize, usize)>> = Vec::with_capacity(parts.len());
    for (part, count) in parts.iter_mut().zip(counts) {
        let mut places = Vec::with_capacity(count);
        for batch in part.take(count).await? {
            places.extend((0..batch.num_rows()).map(|row| (sources.len(), row)));
            sources.push(batch);
        }
        rows_of.push(places.into_iter());
    }
    let picks: Vec<(usize, usize)> =
        of_row.iter().filter_map(|part| rows_of.get_mut(usize::from(*part)).and_then(Iterator::next)).collect();
    let columns = (0..schema.fields().len())
        .map(|column| {
            let sources: Vec<&dyn Array> = sources.iter().map(|batch| batch.column(column).as_ref()).collect();
            arrow_select::interleave::interleave(&sources, &picks)
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(RecordBatch::try_new(schema.clone(), columns)?)
}
