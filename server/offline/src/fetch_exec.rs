//! The other half of a join over a table: the values of the rows that won, read by place.

use std::fmt;
use std::ops::Range;
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
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning,
    PlanProperties, ReplaceChildrenOptions,
};
use eadem_query::PLACE_COLUMN;
use eadem_values::DataType;
use futures::{StreamExt, TryStreamExt};

use crate::error::OfflineError;
use crate::packed_rows::{PACKED_COLUMNS_MAX, PackedRows, can_be_packed, gather};
use crate::placed_files::{PlacedFiles, PlacedRows};
use crate::read::typed_column;
use crate::schema::{COLUMN_ERROR, ValueColumn, from_storage};

/// Puts `_error` and some stored values of a place's row where its input has [`PLACE_COLUMN`]; null where that is null.
#[derive(Debug, Clone)]
pub(crate) struct FetchExec {
    input: Arc<dyn ExecutionPlan>,
    placed: PlacedFiles,
    /// `_error` and the values, as they come out.
    fetched: SchemaRef,
    values: Vec<ValueColumn>,
    output_rows: usize,
    place: usize,
    properties: Arc<PlanProperties>,
}

impl FetchExec {
    /// Fetches these `values` from the files. The output comes in batches of `output_rows`.
    pub(crate) fn try_new(
        input: Arc<dyn ExecutionPlan>,
        placed: PlacedFiles,
        values: Vec<ValueColumn>,
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
            placed,
            fetched,
            values,
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
        let layout = Layout::of(&self.values);
        let (values, of_batches) = (self.values.clone(), layout.clone());
        let convert = move |stored: &RecordBatch| of_batches.split(&values, stored);
        let fetched = self.placed.read(places.iter(), &self.fetched, Arc::new(convert)).await?;
        Ok(Fetched { input, layout, fetched })
    }
}

/// Which of the fetched columns, `_error` and the values, are packed by rows, each with its type.
#[derive(Debug, Clone)]
struct Layout(Vec<Option<DataType>>);

impl Layout {
    fn of(values: &[ValueColumn]) -> Self {
        let mut packed = 0;
        let of_values = values.iter().map(|value| {
            let is_packed = can_be_packed(value.data_type) && packed < PACKED_COLUMNS_MAX;
            packed += usize::from(is_packed);
            is_packed.then_some(value.data_type)
        });
        Self(std::iter::once(None).chain(of_values).collect())
    }

    /// `_error` and these values as they are stored, in canonical form.
    fn split(&self, values: &[ValueColumn], stored: &RecordBatch) -> std::result::Result<FetchedRows, OfflineError> {
        let mut columns: Vec<ArrayRef> = vec![typed_column(stored, COLUMN_ERROR, &ArrowType::Utf8)?];
        for value in values {
            let column = stored.column(stored.schema().index_of(&value.column)?);
            columns.push(from_storage(column, value.data_type)?);
        }
        let (mut packed, mut others) = (Vec::new(), Vec::new());
        for (column, of_layout) in columns.into_iter().zip(&self.0) {
            match of_layout {
                Some(data_type) => packed.push((column, *data_type)),
                None => others.push(column),
            }
        }
        Ok(FetchedRows { packed: PackedRows::of(&packed, stored.num_rows()), others })
    }
}

/// The values of some rows.
#[derive(Debug)]
struct FetchedRows {
    packed: PackedRows,
    /// Those that are not packed, in their order.
    others: Vec<ArrayRef>,
}

/// The values of all winners, each once, and where they belong.
struct Fetched {
    /// Without places.
    input: RecordBatch,
    layout: Layout,
    fetched: PlacedRows<FetchedRows>,
}

impl Fetched {
    fn batch(&self, rows: Range<usize>, schema: &SchemaRef) -> Result<RecordBatch> {
        let PlacedRows { batches, picks } = &self.fetched;
        let picks: Vec<(usize, usize)> =
            picks[rows.clone()].iter().map(|pick| (pick.batch as usize, pick.row as usize)).collect();
        let mut columns = self.input.slice(rows.start, rows.len()).columns().to_vec();
        let first = columns.len();
        let packed: Vec<&PackedRows> = batches.iter().map(|batch| &batch.packed).collect();
        let types: Vec<DataType> = self.layout.0.iter().copied().flatten().collect();
        let mut packed = gather(&packed, &types, &picks).into_iter();
        let mut next_other = 0;
        for (of_layout, field) in self.layout.0.iter().zip(&schema.fields()[first..]) {
            if of_layout.is_some() {
                columns.extend(packed.next());
                continue;
            }
            columns.push(interleaved(batches, next_other, field, &picks)?);
            next_other += 1;
        }
        Ok(RecordBatch::try_new(schema.clone(), columns)?)
    }
}

/// A column that is not packed, at these picks.
fn interleaved(batches: &[FetchedRows], other: usize, field: &Field, picks: &[(usize, usize)]) -> Result<ArrayRef> {
    let mut sources: Vec<&dyn Array> = batches.iter().map(|batch| batch.others[other].as_ref()).collect();
    // `_error` of most views, and what a source never had.
    if sources.iter().all(|column| column.null_count() == column.len()) {
        return Ok(new_null_array(field.data_type(), picks.len()));
    }
    let nothing = new_null_array(field.data_type(), 1);
    sources.push(nothing.as_ref());
    Ok(arrow_select::interleave::interleave(&sources, picks)?)
}

fn fetched_schema(values: &[ValueColumn]) -> SchemaRef {
    let mut fields = vec![Field::new(COLUMN_ERROR, ArrowType::Utf8, true)];
    fields.extend(values.iter().map(|value| Field::new(&value.column, value.data_type.to_arrow(), true)));
    Arc::new(Schema::new(fields))
}

impl DisplayAs for FetchExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.values.iter().map(|value| value.column.as_str()).collect();
        write!(f, "FetchExec: table={}, columns=[{}]", self.placed.table.location.url, names.join(", "))
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
        Ok(Arc::new(Self::try_new(input, self.placed.clone(), self.values.clone(), self.output_rows)?))
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
            .map_ok(move |joined| {
                let schema = output_schema.clone();
                let rows = joined.fetched.picks.len();
                futures::stream::iter((0..rows).step_by(output_rows))
                    .map(move |start| joined.batch(start..rows.min(start + output_rows), &schema))
            })
            .try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }
}
