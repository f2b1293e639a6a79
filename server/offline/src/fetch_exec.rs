//! The other half of a join over a table: the values of the rows that won, read by place.

use std::fmt;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{Array, ArrayRef, RecordBatch, new_null_array};
use arrow_schema::{DataType as ArrowType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
    ReplaceChildrenOptions,
};
use eadem_query::PLACE_COLUMN;
use futures::{StreamExt, TryStreamExt};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{RowSelection, RowSelector};
use parquet::arrow::async_reader::ParquetRecordBatchStreamBuilder;

use crate::error::OfflineError;
use crate::history_exec::Place;
use crate::schema::{COLUMN_ERROR, ValueColumn, from_storage};
use crate::table::{DataFile, ViewTable};

/// Rows of one batch of the output, and of a read.
const BATCH_ROWS: usize = 65_536;

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
    place: usize,
    properties: Arc<PlanProperties>,
}

impl FetchExec {
    /// Fetches these `values` of `table` from `files`, in the order that places count them, with as many `readers` at once.
    pub(crate) fn try_new(
        input: Arc<dyn ExecutionPlan>,
        table: ViewTable,
        files: Arc<[DataFile]>,
        values: Vec<ValueColumn>,
        readers: usize,
    ) -> Result<Self> {
        let fetched = fetched_schema(&values);
        let place = input.schema().index_of(PLACE_COLUMN)?;
        let mut fields: Vec<Arc<Field>> = input.schema().fields().iter().cloned().collect();
        fields.remove(place);
        fields.extend(fetched.fields().iter().cloned());
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::new(Schema::new(fields))),
            Partitioning::UnknownPartitioning(1),
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
            place,
            properties: Arc::new(properties),
        })
    }

    async fn fetch_all(&self, context: Arc<TaskContext>) -> Result<RecordBatch> {
        let input_schema = self.input.schema();
        let batches: Vec<RecordBatch> = self.input.execute(0, context)?.try_collect().await?;
        let input = arrow_select::concat::concat_batches(&input_schema, &batches)?;
        drop(batches);
        let places = input.column(self.place).as_primitive_opt::<UInt64Type>().ok_or_else(|| {
            DataFusionError::Internal(format!("{PLACE_COLUMN} is {}", input.column(self.place).data_type()))
        })?;
        let wanted = Wanted::of(places, self.files.len())?;
        let fetched = self.fetch(wanted.reads).await.map_err(|error| DataFusionError::External(Box::new(error)))?;

        let mut columns = input.columns().to_vec();
        columns.remove(self.place);
        for (column, field) in self.fetched.fields().iter().enumerate() {
            let nothing = new_null_array(field.data_type(), 1);
            let mut sources: Vec<&dyn Array> = fetched.iter().map(|batch| batch.column(column).as_ref()).collect();
            sources.push(nothing.as_ref());
            columns.push(arrow_select::interleave::interleave(&sources, &wanted.picks)?);
        }
        Ok(RecordBatch::try_new(self.schema(), columns)?)
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

    /// `_error` and the values of these rows of a file, in canonical form.
    async fn read_rows(&self, file: &DataFile, rows: &[u32]) -> std::result::Result<RecordBatch, OfflineError> {
        let (reader, damaged) = self.table.open_file::<String>(file);
        let builder = ParquetRecordBatchStreamBuilder::new(reader).await.map_err(|error| damaged(error.to_string()))?;
        let schema = self.fetched.clone();
        let roots: Vec<usize> = schema
            .fields()
            .iter()
            .map(|field| Ok(builder.schema().index_of(field.name())?))
            .collect::<std::result::Result<_, OfflineError>>()?;
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        let stream = builder
            .with_projection(mask)
            .with_row_selection(selection(rows))
            .with_batch_size(BATCH_ROWS)
            .build()
            .map_err(|error| damaged(error.to_string()))?;
        let batches: Vec<RecordBatch> = stream.try_collect().await.map_err(|error| damaged(error.to_string()))?;
        let Some(file_schema) = batches.first().map(RecordBatch::schema) else {
            return Err(damaged(format!("it has none of {} rows", rows.len())));
        };
        let whole = arrow_select::concat::concat_batches(&file_schema, &batches)?;
        if whole.num_rows() != rows.len() {
            return Err(damaged(format!("{} rows were asked for, {} found", rows.len(), whole.num_rows())));
        }
        let column = |name: &str| -> std::result::Result<ArrayRef, OfflineError> {
            Ok(whole.column(file_schema.index_of(name)?).clone())
        };
        let mut columns: Vec<ArrayRef> = vec![arrow_cast::cast(&column(COLUMN_ERROR)?, &ArrowType::Utf8)?];
        for value in &self.values {
            columns.push(from_storage(&column(&value.column)?, value.data_type)?);
        }
        Ok(RecordBatch::try_new(schema, columns)?)
    }
}

/// Rows of one file, ascending.
struct FileRead {
    file: usize,
    rows: Vec<u32>,
}

/// Which rows are read, and which of them stands where.
struct Wanted {
    reads: Vec<FileRead>,
    /// For each row of the output its (read, row of that read); the row after all reads is null.
    picks: Vec<(usize, usize)>,
}

impl Wanted {
    fn of(places: &arrow_array::UInt64Array, files: usize) -> Result<Self> {
        let mut by_place: Vec<(u64, u32)> =
            (0..places.len()).filter(|row| places.is_valid(*row)).map(|row| (places.value(row), row as u32)).collect();
        by_place.sort_unstable();
        let mut reads: Vec<FileRead> = Vec::new();
        let mut found: Vec<(u32, usize, usize)> = Vec::with_capacity(by_place.len());
        for (number, output_row) in by_place {
            let place = Place::from_number(number);
            if place.file >= files {
                return Err(DataFusionError::Internal(format!("there is no file {}", place.file)));
            }
            if reads.last().is_none_or(|read| read.file != place.file) {
                reads.push(FileRead { file: place.file, rows: Vec::new() });
            }
            let number_of_read = reads.len() - 1;
            let rows = &mut reads[number_of_read].rows;
            if rows.last() != Some(&place.row) {
                rows.push(place.row);
            }
            found.push((output_row, number_of_read, rows.len() - 1));
        }
        let mut picks = vec![(reads.len(), 0); places.len()];
        for (output_row, read, row) in found {
            picks[output_row as usize] = (read, row);
        }
        Ok(Self { reads, picks })
    }
}

fn fetched_schema(values: &[ValueColumn]) -> SchemaRef {
    let mut fields = vec![Field::new(COLUMN_ERROR, ArrowType::Utf8, true)];
    fields.extend(values.iter().map(|value| Field::new(&value.column, value.data_type.to_arrow(), true)));
    Arc::new(Schema::new(fields))
}

/// These rows, ascending and distinct, and no other.
fn selection(rows: &[u32]) -> RowSelection {
    let mut selectors = Vec::new();
    let mut next = 0_u32;
    let mut rows = rows.iter().copied().peekable();
    while let Some(first) = rows.next() {
        let mut end = first + 1;
        while rows.next_if_eq(&end).is_some() {
            end += 1;
        }
        if first > next {
            selectors.push(RowSelector::skip((first - next) as usize));
        }
        selectors.push(RowSelector::select((end - first) as usize));
        next = end;
    }
    selectors.into()
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
        Ok(Arc::new(Self::try_new(input, table, files, values, self.readers)?))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition != 0 {
            return Err(DataFusionError::Internal(format!("a fetch has no partition {partition}")));
        }
        let node = self.clone();
        let batch = futures::stream::once(async move { node.fetch_all(context).await });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), batch)))
    }
}
