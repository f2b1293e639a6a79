//! A view's table as a leaf of a DataFusion plan.

use std::fmt;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{Field, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, ReplaceChildrenOptions,
};
use eadem_query::{HistoryColumns, WinnerColumns};
use eadem_values::DataType;
use futures::{StreamExt, TryStreamExt};

use crate::read::{HistoryBatch, ScanRange};
use crate::schema::{COLUMN_ERROR, COLUMN_EVENT_TIME, COLUMN_KNOWN_AT, COLUMN_TIE, TableSchema, key_arrow_type};
use crate::table::{DataFile, TableState, ViewTable};

/// Reads some files of one version of a table: keys, times, tie digest, error, values.
#[derive(Debug, Clone)]
pub(crate) struct HistoryExec {
    table: ViewTable,
    version: u64,
    range: ScanRange,
    partitions: Vec<Vec<DataFile>>,
    files: usize,
    properties: Arc<PlanProperties>,
}

impl HistoryExec {
    /// Reads what `range` may find in the table's `state`, in `partitions` parts.
    pub(crate) fn new(table: ViewTable, state: &TableState, range: ScanRange, partitions: usize) -> Self {
        let mut parts: Vec<Vec<DataFile>> = vec![Vec::new(); partitions.max(1)];
        let files: Vec<&DataFile> = state.files.iter().filter(|file| range.meets(file)).collect();
        let count = files.len();
        for (number, file) in files.into_iter().enumerate() {
            let part = number % parts.len();
            parts[part].push(file.clone());
        }
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema(&table.schema)),
            Partitioning::UnknownPartitioning(parts.len()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { table, version: state.version, range, partitions: parts, files: count, properties: Arc::new(properties) }
    }
}

/// The columns that come out.
fn schema(table: &TableSchema) -> SchemaRef {
    let time = DataType::Timestamp.to_arrow();
    let mut fields: Vec<Field> =
        table.keys.iter().map(|(name, key_type)| Field::new(name, key_arrow_type(*key_type), false)).collect();
    fields.push(Field::new(COLUMN_EVENT_TIME, time.clone(), false));
    fields.push(Field::new(COLUMN_KNOWN_AT, time, false));
    fields.push(Field::new(COLUMN_TIE, arrow_schema::DataType::Binary, false));
    fields.push(Field::new(COLUMN_ERROR, arrow_schema::DataType::Utf8, true));
    fields.extend(table.values.iter().map(|value| Field::new(&value.column, value.data_type.to_arrow(), true)));
    Arc::new(Schema::new(fields))
}

/// Which of those columns mean what; all but the keys are handed on, the values last.
pub(crate) fn history_columns(table: &TableSchema) -> HistoryColumns {
    let keys = table.keys.len();
    let schema = schema(table);
    HistoryColumns {
        keys: (0..keys).collect(),
        event_time: keys,
        known_at: keys + 1,
        tie: keys + 2,
        winner: WinnerColumns::Copied(
            (keys..schema.fields().len()).map(|column| (column, schema.field(column).name().clone())).collect(),
        ),
    }
}

impl HistoryBatch {
    fn to_record_batch(&self, schema: &SchemaRef) -> Result<RecordBatch> {
        let mut columns = self.keys().to_vec();
        columns.extend(self.order_columns());
        columns.extend_from_slice(self.values());
        Ok(RecordBatch::try_new(schema.clone(), columns)?)
    }
}

impl DisplayAs for HistoryExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HistoryExec: table={}, version={}, files={}", self.table.location.url, self.version, self.files)
    }
}

impl ExecutionPlan for HistoryExec {
    fn name(&self) -> &str {
        "HistoryExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let files = self
            .partitions
            .get(partition)
            .cloned()
            .ok_or_else(|| DataFusionError::Internal(format!("the history has no partition {partition}")))?;
        let schema = self.schema();
        let batch_schema = schema.clone();
        let table = self.table.clone();
        let range = self.range;
        let batches = futures::stream::iter(files)
            .then(move |file| {
                let table = table.clone();
                async move { table.read_file(file, range, None).await }
            })
            .try_flatten()
            .map(move |batch| match batch {
                Ok(batch) => batch.to_record_batch(&batch_schema),
                Err(error) => Err(DataFusionError::External(Box::new(error))),
            });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }
}
