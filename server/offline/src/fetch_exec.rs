//! The other half of a join over a table: the values of the rows that won, read by place.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{Array, ArrayRef, RecordBatch, UInt32Array, new_null_array};
use arrow_schema::{DataType as ArrowType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning,
    PlanProperties, ReplaceChildrenOptions,
};
use eadem_query::PLACE_COLUMN;
use futures::{StreamExt, TryStreamExt};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{RowSelection, RowSelector};
use parquet::arrow::async_reader::ParquetRecordBatchStreamBuilder;

use crate::error::OfflineError;
use crate::history_exec::Place;
use crate::read::typed_column;
use crate::schema::{COLUMN_ERROR, ValueColumn, from_storage};
use crate::table::{DataFile, ViewTable};

/// Rows of one batch of a read.
const BATCH_ROWS: usize = 65_536;

/// Rows that are decoded together: runs so long that leaving some out costs less than decoding them.
const BLOCK_ROWS: u32 = 64;

/// Puts `_error` and some stored values of a place's row where its input has [`PLACE_COLUMN`]; null where that is null. Each
/// file is read once, and of it only the rows asked for, whatever order they are asked in.
#[derive(Debug, Clone)]
pub(crate) struct FetchExec {
    input: Arc<dyn ExecutionPlan>,
    table: ViewTable,
    files: Arc<[DataFile]>,
    /// `_error` and the values, as they come out.
    fetched: SchemaRef,
    values: Vec<ValueColumn>,
    readers: usize,
    output_rows: usize,
    place: usize,
    properties: Arc<PlanProperties>,
}

impl FetchExec {
    /// Fetches these `values` of `table` from `files`, in the order that places count them, with as many `readers` at once.
    /// The output comes in batches of `output_rows`.
    pub(crate) fn try_new(
        input: Arc<dyn ExecutionPlan>,
        table: ViewTable,
        files: Arc<[DataFile]>,
        values: Vec<ValueColumn>,
        readers: usize,
        output_rows: usize,
    ) -> Result<Self> {
        let fetched = fetched_schema(&values);
        let place = input.schema().index_of(PLACE_COLUMN)?;
        let mut fields: Vec<Arc<Field>> = input.schema().fields().iter().cloned().collect();
        fields.remove(place);
        fields.extend(fetched.fields().iter().cloned());
        let partitions = input.output_partitioning().partition_count();
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::new(Schema::new(fields))),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Ok(Self {
            input,
            table,
            files,
            fetched,
            values,
            readers: readers.max(1),
            output_rows: output_rows.max(1),
            place,
            properties: Arc::new(properties),
        })
    }

    async fn fetch_all(&self, partition: usize, context: Arc<TaskContext>) -> Result<Fetched> {
        let input_schema = self.input.schema();
        let batches: Vec<RecordBatch> = self.input.execute(partition, context)?.try_collect().await?;
        let mut input = arrow_select::concat::concat_batches(&input_schema, &batches)?;
        drop(batches);
        let places = input.remove_column(self.place);
        let places = places
            .as_primitive_opt::<UInt64Type>()
            .ok_or_else(|| DataFusionError::Internal(format!("{PLACE_COLUMN} is {}", places.data_type())))?;
        let Wanted { reads, picks } = Wanted::of(places, self.files.len())?;
        let fetched = self.fetch(reads).await.map_err(|error| DataFusionError::External(Box::new(error)))?;
        Ok(Fetched { input, fetched, picks })
    }

    /// One batch for each read, in their order.
    async fn fetch(&self, reads: Vec<FileRead>) -> std::result::Result<Vec<RecordBatch>, OfflineError> {
        let runtime = tokio::runtime::Handle::current();
        let read = |read: FileRead| {
            let (node, runtime) = (self.clone(), runtime.clone());
            // Decoding takes far longer than waiting for bytes: not on the runtime's own threads.
            let work = move || runtime.block_on(node.read_rows(&node.files[read.file], &read.rows));
            async move {
                let read = tokio::task::spawn_blocking(work).await;
                read.unwrap_or_else(|error| Err(OfflineError::Worker(error.to_string())))
            }
        };
        futures::stream::iter(reads.into_iter().map(read)).buffered(self.readers).try_collect().await
    }

    /// `_error` and the values of these rows of a file, ascending, in canonical form.
    async fn read_rows(&self, file: &DataFile, rows: &[u32]) -> std::result::Result<RecordBatch, OfflineError> {
        let (reader, damaged) = self.table.open_file::<String>(file);
        let index = self.table.file_index(file).await?;
        let builder = ParquetRecordBatchStreamBuilder::new_with_metadata(reader, index.reader.clone());
        let schema = self.fetched.clone();
        let roots: Vec<usize> = schema
            .fields()
            .iter()
            .map(|field| Ok(builder.schema().index_of(field.name())?))
            .collect::<std::result::Result<_, OfflineError>>()?;
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        let Blocks { selection, positions } = Blocks::of(rows, index.rows());
        let mut batches = builder
            .with_projection(mask)
            .with_row_selection(selection)
            .with_batch_size(BATCH_ROWS)
            .build()
            .map_err(|error| damaged(error.to_string()))?;
        let mut taken = Vec::new();
        let mut positions = positions.as_slice();
        let mut first = 0_u32;
        while let Some(batch) = batches.try_next().await.map_err(|error| damaged(error.to_string()))? {
            let end = first + batch.num_rows() as u32;
            let (here, later) = positions.split_at(positions.partition_point(|position| *position < end));
            let picks = UInt32Array::from_iter_values(here.iter().map(|position| position - first));
            taken.push(self.canonical(&arrow_select::take::take_record_batch(&batch, &picks)?)?);
            (first, positions) = (end, later);
        }
        let whole = arrow_select::concat::concat_batches(&schema, &taken)?;
        if whole.num_rows() != rows.len() {
            return Err(damaged(format!("{} rows were asked for, {} found", rows.len(), whole.num_rows())));
        }
        Ok(whole)
    }

    fn canonical(&self, stored: &RecordBatch) -> std::result::Result<RecordBatch, OfflineError> {
        let mut columns: Vec<ArrayRef> = vec![typed_column(stored, COLUMN_ERROR, &ArrowType::Utf8)?];
        for value in &self.values {
            let column = stored.column(stored.schema().index_of(&value.column)?);
            columns.push(from_storage(column, value.data_type)?);
        }
        Ok(RecordBatch::try_new(self.fetched.clone(), columns)?)
    }
}

/// What is decoded for some rows of a file: whole blocks, of which the rows are then taken.
///
/// Decoding a run of values costs less than the bookkeeping of single rows: every fifth of 5 M rows × 10 columns took 0.6 s
/// of processor time as a selection of its own, and 0.32 s so; every five-hundredth 0.17 s either way.
struct Blocks {
    selection: RowSelection,
    /// Where each row stands among the decoded ones.
    positions: Vec<u32>,
}

impl Blocks {
    /// Of `rows`, ascending and distinct, in a file of `rows_in_file`. Rows behind its end have no position.
    fn of(rows: &[u32], rows_in_file: u64) -> Self {
        let rows_in_file = u32::try_from(rows_in_file).unwrap_or(u32::MAX);
        let mut selectors: Vec<RowSelector> = Vec::new();
        let mut positions = Vec::with_capacity(rows.len());
        // Rows of the file that the selectors speak of, and those among them that are not decoded.
        let (mut covered, mut skipped) = (0_u32, 0_u32);
        for row in rows.iter().copied().take_while(|row| *row < rows_in_file) {
            if row >= covered {
                let from = row - row % BLOCK_ROWS;
                let to = from.saturating_add(BLOCK_ROWS).min(rows_in_file);
                if from > covered {
                    selectors.push(RowSelector::skip((from - covered) as usize));
                    skipped += from - covered;
                }
                selectors.push(RowSelector::select((to - from) as usize));
                covered = to;
            }
            positions.push(row - skipped);
        }
        // Neighbouring blocks become one run.
        Self { selection: selectors.into(), positions }
    }
}

/// The values of all winners, each once, and where they belong.
struct Fetched {
    /// Without places.
    input: RecordBatch,
    fetched: Vec<RecordBatch>,
    picks: Vec<Pick>,
}

impl Fetched {
    fn batch(&self, rows: Range<usize>, schema: &SchemaRef) -> Result<RecordBatch> {
        let picks: Vec<(usize, usize)> =
            self.picks[rows.clone()].iter().map(|pick| (pick.read as usize, pick.row as usize)).collect();
        let mut columns = self.input.slice(rows.start, rows.len()).columns().to_vec();
        let first = columns.len();
        for (column, field) in schema.fields()[first..].iter().enumerate() {
            let nothing = new_null_array(field.data_type(), 1);
            let mut sources: Vec<&dyn Array> = self.fetched.iter().map(|batch| batch.column(column).as_ref()).collect();
            sources.push(nothing.as_ref());
            columns.push(arrow_select::interleave::interleave(&sources, &picks)?);
        }
        Ok(RecordBatch::try_new(schema.clone(), columns)?)
    }
}

/// Rows of one file, ascending.
struct FileRead {
    file: usize,
    rows: Vec<u32>,
}

/// A row of a read.
#[derive(Debug, Clone, Copy)]
struct Pick {
    read: u32,
    row: u32,
}

/// Which rows are read, and which of them stands where.
struct Wanted {
    reads: Vec<FileRead>,
    /// For each row of the output; the row after all reads is null.
    picks: Vec<Pick>,
}

impl Wanted {
    fn of(places: &arrow_array::UInt64Array, files: usize) -> Result<Self> {
        // For each file its rows, each before the number of the output row that asks for it.
        let mut by_file: Vec<Vec<u64>> = vec![Vec::new(); files];
        for (output_row, number) in places.iter().enumerate() {
            let Some(place) = number.map(Place::from_number) else { continue };
            let Some(rows) = by_file.get_mut(place.file) else {
                return Err(DataFusionError::Internal(format!("there is no file {}", place.file)));
            };
            rows.push((u64::from(place.row) << 32) | output_row as u64);
        }
        let mut reads: Vec<FileRead> = Vec::new();
        // Until the number of reads is known, what finds nothing points nowhere.
        let mut picks = vec![Pick { read: u32::MAX, row: 0 }; places.len()];
        for (file, mut asked) in by_file.into_iter().enumerate().filter(|(_, asked)| !asked.is_empty()) {
            asked.sort_unstable();
            let mut rows: Vec<u32> = Vec::with_capacity(asked.len());
            for row_and_output in asked {
                let (row, output_row) = ((row_and_output >> 32) as u32, row_and_output as u32);
                if rows.last() != Some(&row) {
                    rows.push(row);
                }
                picks[output_row as usize] = Pick { read: reads.len() as u32, row: rows.len() as u32 - 1 };
            }
            reads.push(FileRead { file, rows });
        }
        let nothing = Pick { read: reads.len() as u32, row: 0 };
        picks.iter_mut().filter(|pick| pick.read == u32::MAX).for_each(|pick| *pick = nothing);
        Ok(Self { reads, picks })
    }
}

fn fetched_schema(values: &[ValueColumn]) -> SchemaRef {
    let mut fields = vec![Field::new(COLUMN_ERROR, ArrowType::Utf8, true)];
    fields.extend(values.iter().map(|value| Field::new(&value.column, value.data_type.to_arrow(), true)));
    Arc::new(Schema::new(fields))
}

impl DisplayAs for FetchExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.values.iter().map(|value| value.column.as_str()).collect();
        write!(f, "FetchExec: table={}, columns=[{}]", self.table.location.url, names.join(", "))
    }
}

impl ExecutionPlan for FetchExec {
    fn name(&self) -> &str {
        "FetchExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let [input] = <[Arc<dyn ExecutionPlan>; 1]>::try_from(children)
            .map_err(|_| DataFusionError::Plan("a fetch has one child".to_owned()))?;
        let (table, files, values) = (self.table.clone(), self.files.clone(), self.values.clone());
        Ok(Arc::new(Self::try_new(input, table, files, values, self.readers, self.output_rows)?))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition >= self.properties.output_partitioning().partition_count() {
            return Err(DataFusionError::Internal(format!("a fetch has no partition {partition}")));
        }
        let node = self.clone();
        let (schema, output_rows) = (self.schema(), self.output_rows);
        let output_schema = schema.clone();
        let batches = futures::stream::once(async move { node.fetch_all(partition, context).await })
            .map_ok(move |fetched| {
                let schema = output_schema.clone();
                let rows = fetched.picks.len();
                futures::stream::iter((0..rows).step_by(output_rows))
                    .map(move |start| fetched.batch(start..rows.min(start + output_rows), &schema))
            })
            .try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }
}
