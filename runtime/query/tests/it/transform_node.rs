use std::sync::Arc;

use arrow_array::RecordBatch;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::{ExecutionPlan, displayable};
use eadem_query::{TransformExec, ValidationPolicy};
use futures::TryStreamExt;

use crate::support::{adder, int64};

fn child(rows: &RecordBatch) -> Arc<dyn ExecutionPlan> {
    MemorySourceConfig::try_new_exec(&[vec![rows.clone()]], rows.schema(), None).unwrap()
}

fn rows() -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable([
        ("b", int64(&[Some(1), Some(12), Some(13), None]), true),
        ("a", int64(&[Some(1), Some(1), Some(1), Some(1)]), true),
    ])
    .unwrap()
}

#[tokio::test]
async fn a_transform_in_a_plan_keeps_its_rows_and_says_what_became_of_them() {
    let plan = TransformExec::try_new(child(&rows()), adder(), ValidationPolicy::RefuseRow.into(), vec![1, 0]).unwrap();
    let plan: Arc<dyn ExecutionPlan> = Arc::new(plan);
    let shown = displayable(plan.as_ref()).indent(false).to_string();
    assert!(shown.starts_with("TransformExec: adder@sha256:"), "{shown}");
    assert!(shown.contains("inputs=[a, b], outputs=[sum]"), "{shown}");
    let batches: Vec<RecordBatch> =
        plan.execute(0, Arc::new(TaskContext::default())).unwrap().try_collect().await.unwrap();
    let shown = datafusion::arrow::util::pretty::pretty_format_batches(&batches).unwrap().to_string();
    assert_eq!(
        shown,
        "\
+----+---+-----+----------+----------+
| b  | a | sum | _dropped | _failure |
+----+---+-----+----------+----------+
| 1  | 1 | 2   | false    |          |
| 12 | 1 |     | true     |          |
| 13 | 1 |     | false    | fourteen |
|    | 1 |     | false    |          |
+----+---+-----+----------+----------+"
    );
}

#[test]
fn columns_of_the_wrong_type_are_refused_when_the_plan_is_made() {
    let text = RecordBatch::try_from_iter([("t", Arc::new(arrow_array::StringArray::from(vec!["x"])) as _)]).unwrap();
    let error =
        TransformExec::try_new(child(&text), adder(), ValidationPolicy::RefuseRow.into(), vec![0, 0]).unwrap_err();
    assert!(error.to_string().contains("input `a` of transform adder is int64"), "{error}");
    let error =
        TransformExec::try_new(child(&rows()), adder(), ValidationPolicy::RefuseRow.into(), vec![0]).unwrap_err();
    assert!(error.to_string().contains("2 inputs, 1 columns"), "{error}");
}
