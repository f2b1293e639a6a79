//! A transform as a node of a DataFusion plan.

use std::fmt;
use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, RecordBatch, StringArray};
use arrow_buffer::BooleanBufferBuilder;
use arrow_schema::{DataType as ArrowType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
    ReplaceChildrenOptions,
};
use eadem_values::DataType;
use futures::StreamExt;

use crate::{RowTransform, Validation, run_transform};

/// A boolean column after the outputs: the transform left the row out.
pub const DROPPED_COLUMN: &str = "_dropped";

/// A utf8 column after the outputs: why the row has no result (the transform failed, or a constraint refused a value).
pub const FAILURE_COLUMN: &str = "_failure";

/// Runs a transform over its child's rows, one for one: the child's columns pass through, then come the outputs, then
/// [`DROPPED_COLUMN`] and [`FAILURE_COLUMN`]. What becomes of a dropped or failed row is the reader's decision, since it
/// differs between a backfill, a training set and a query.
#[derive(Debug, Clone)]
pub struct TransformExec {
    child: Arc<dyn ExecutionPlan>,
    transform: Arc<dyn RowTransform>,
    validation: Validation,
    inputs: Vec<usize>,
    properties: Arc<PlanProperties>,
}

impl TransformExec {
    /// Binds the child's columns `inputs` to the transform's inputs, in declared order.
    ///
    /// # Errors
    /// A column that does not exist, or has another type than the input it is bound to.
    pub fn try_new(
        child: Arc<dyn ExecutionPlan>,
        transform: Arc<dyn RowTransform>,
        validation: Validation,
        inputs: Vec<usize>,
    ) -> Result<Self> {
        let schema = child.schema();
        let description = transform.description();
        if description.inputs.len() != inputs.len() {
            return Err(DataFusionError::Plan(format!(
                "transform {} has {} inputs, {} columns were bound",
                description.name,
                description.inputs.len(),
                inputs.len()
            )));
        }
        for (field, column) in description.inputs.iter().zip(&inputs) {
            let found = schema.fields().get(*column).and_then(|column| DataType::from_arrow(column.data_type()));
            if found != Some(field.data_type) {
                return Err(DataFusionError::Plan(format!(
                    "input `{}` of transform {} is {}; the bound column is not",
                    field.name, description.name, field.data_type
                )));
            }
        }
        // A row without a result has nulls, whatever the declaration says.
        let outputs = description.outputs.iter().map(|field| Field::new(&field.name, field.data_type.to_arrow(), true));
        let outcome =
            [Field::new(DROPPED_COLUMN, ArrowType::Boolean, false), Field::new(FAILURE_COLUMN, ArrowType::Utf8, true)];
        let passed = schema.fields().iter().map(|field| field.as_ref().clone());
        let output_schema = Arc::new(Schema::new(passed.chain(outputs).chain(outcome).collect::<Vec<_>>()));
        let properties = PlanProperties::new(
            EquivalenceProperties::new(output_schema),
            child.output_partitioning().clone(),
            child.pipeline_behavior(),
            child.boundedness(),
        );
        Ok(Self { child, transform, validation, inputs, properties: Arc::new(properties) })
    }
}

impl DisplayAs for TransformExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let schema = self.child.schema();
        let inputs: Vec<&str> = self.inputs.iter().map(|input| schema.field(*input).name().as_str()).collect();
        let description = self.transform.description();
        let outputs: Vec<&str> = description.outputs.iter().map(|field| field.name.as_str()).collect();
        write!(
            f,
            "TransformExec: {}@{}, inputs=[{}], outputs=[{}]",
            description.name,
            self.transform.digest(),
            inputs.join(", "),
            outputs.join(", ")
        )
    }
}

impl ExecutionPlan for TransformExec {
    fn name(&self) -> &str {
        "TransformExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.child]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let child = children.pop().filter(|_| children.is_empty());
        let child = child.ok_or_else(|| DataFusionError::Plan("a transform has one child".to_owned()))?;
        Ok(Arc::new(Self::try_new(child, self.transform.clone(), self.validation.clone(), self.inputs.clone())?))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let schema = self.schema();
        let node = self.clone();
        let batches = self
            .child
            .execute(partition, context)?
            .map(move |batch| node.transform_batch(&batch?, &node.properties.eq_properties.schema().clone()));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }
}

impl TransformExec {
    fn transform_batch(&self, batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
        let rows = batch.num_rows();
        let inputs: Vec<ArrayRef> = self
            .inputs
            .iter()
            .map(|input| eadem_values::canonicalize(batch.column(*input)))
            .collect::<Result<_, _>>()
            .map_err(|error| DataFusionError::External(Box::new(error)))?;
        let result = run_transform(self.transform.as_ref(), &self.validation, rows, &inputs)
            .map_err(|error| DataFusionError::External(Box::new(error)))?;
        let mut dropped = BooleanBufferBuilder::new(rows);
        dropped.append_n(rows, false);
        for row in &result.dropped {
            dropped.set_bit(*row as usize, true);
        }
        let mut failures: Vec<Option<&str>> = vec![None; rows];
        for failure in &result.failed {
            failures[failure.row as usize] = Some(&failure.message);
        }
        for refused in &result.refused {
            failures[refused.row] = Some(&refused.reason);
        }
        let mut columns: Vec<ArrayRef> = batch.columns().to_vec();
        columns.extend(result.columns);
        columns.push(Arc::new(BooleanArray::new(dropped.finish(), None)));
        columns.push(Arc::new(StringArray::from(failures)));
        Ok(RecordBatch::try_new(schema.clone(), columns)?)
    }
}
