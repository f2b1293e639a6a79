//! Native stand-ins for components, and small sources.

use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch};
use eadem_offline::{
    Backfill, BackfillOptions, Binding, Cancel, EventTime, HistoryBatch, JobLedger, JoinKey, KnownAt, OfflineStore,
    Placement, ScanRange, SourceSpec, ViewSpec,
};
use eadem_query::{AppliedRows, FailedRow, RowTransform, TransformFailure, ValidationPolicy};
use eadem_semantics::{Lifetime, RowOrder};
use eadem_values::{
    DataType, Description, Digest, Field, KeyType, Value, array_from_values, parse_timestamp, value_at,
};
use futures::TryStreamExt;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

pub type RowFunction = dyn Fn(&[Value]) -> Outcome + Send + Sync;

pub enum Outcome {
    Row(Vec<Value>),
    Drop,
    Fail(String),
}

/// A function over single rows in the place of a component.
pub struct NativeTransform {
    description: Description,
    digest: Digest,
    function: Box<RowFunction>,
}

impl fmt::Debug for NativeTransform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "native {}", self.description.name)
    }
}

impl NativeTransform {
    pub fn new(
        name: &str,
        total: bool,
        inputs: Vec<Field>,
        outputs: Vec<Field>,
        function: impl Fn(&[Value]) -> Outcome + Send + Sync + 'static,
    ) -> Arc<dyn RowTransform> {
        let description =
            Description { name: name.to_owned(), doc: String::new(), owner: String::new(), total, inputs, outputs };
        Arc::new(Self { description, digest: Digest::of(name.as_bytes()), function: Box::new(function) })
    }
}

impl RowTransform for NativeTransform {
    fn description(&self) -> &Description {
        &self.description
    }

    fn digest(&self) -> &Digest {
        &self.digest
    }

    fn apply(&self, rows: usize, inputs: &[ArrayRef]) -> Result<AppliedRows, TransformFailure> {
        let mut applied = AppliedRows::default();
        let mut results: Vec<Vec<Value>> = vec![Vec::new(); self.description.outputs.len()];
        for row in 0..rows {
            let input: Vec<Value> = inputs.iter().map(|column| value_at(column.as_ref(), row).unwrap()).collect();
            let output = match (self.function)(&input) {
                Outcome::Row(values) => values,
                Outcome::Drop => {
                    applied.dropped.push(row as u32);
                    vec![Value::Null; results.len()]
                }
                Outcome::Fail(message) => {
                    applied.failed.push(FailedRow { row: row as u32, message });
                    vec![Value::Null; results.len()]
                }
            };
            for (column, value) in results.iter_mut().zip(output) {
                column.push(value);
            }
        }
        for (field, values) in self.description.outputs.iter().zip(&results) {
            applied.columns.push(array_from_values(field.data_type, values).unwrap());
        }
        Ok(applied)
    }
}

/// Doubles `amount`, keeps `note`: total, nothing dropped.
pub fn double_amount() -> Arc<dyn RowTransform> {
    NativeTransform::new(
        "double_amount",
        true,
        vec![Field::new("amount", DataType::Float64, false), Field::new("note", DataType::Utf8, true)],
        vec![Field::new("doubled", DataType::Float64, false), Field::new("note_out", DataType::Utf8, true)],
        |input| {
            let Value::Float64(amount) = input[0] else { panic!("a null reached the transform") };
            if amount == 666.0 {
                return Outcome::Fail("trapped".to_owned());
            }
            Outcome::Row(vec![Value::Float64(amount * 2.0), input[1].clone()])
        },
    )
}

pub fn write_parquet(path: &Path, batch: &RecordBatch, row_group_rows: usize) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(row_group_rows)).build();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

pub fn at(text: &str) -> i64 {
    parse_timestamp(text).unwrap()
}

pub const NOW: &str = "2024-01-01T00:00:00Z";

pub fn source(name: &str, location: &Path) -> SourceSpec {
    SourceSpec {
        name: name.to_owned(),
        locations: vec![location.to_str().unwrap().to_owned()],
        columns: vec![],
        filter: None,
        event_time: EventTime::Column("at".to_owned()),
        known_at: KnownAt::EventTime,
        event_id: None,
        max_ahead_us: 3_600_000_000,
    }
}

pub fn view(name: &str, source: SourceSpec, transform: Arc<dyn RowTransform>) -> ViewSpec {
    let bindings = transform.description().inputs.iter().map(|field| Binding::Column(field.name.clone())).collect();
    ViewSpec {
        name: name.to_owned(),
        version: 1,
        digest: format!("digest of {name}"),
        source,
        keys: vec![JoinKey { name: "card".to_owned(), key_type: KeyType::Utf8, column: "card".to_owned() }],
        transform,
        bindings,
        lifetime: Lifetime::FOREVER,
        placement: Placement::OnWrite,
        policy: ValidationPolicy::RefuseRow,
    }
}

pub fn backfill(job: &str, view: &ViewSpec, store: &OfflineStore, ledger: Arc<dyn JobLedger>) -> Backfill {
    Backfill {
        job: job.to_owned(),
        view: view.clone(),
        store: store.clone(),
        ledger,
        options: BackfillOptions::created_at(at(NOW)),
        progress: None,
        cancel: Cancel::default(),
    }
}

/// A stored row, for comparing.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub key: String,
    pub order: RowOrder,
    pub values: Vec<Value>,
    pub lane: String,
    pub sequence: i64,
    pub error: Option<String>,
}

pub fn rows_of(batch: &HistoryBatch) -> Vec<Row> {
    (0..batch.len())
        .map(|row| Row {
            key: batch.key(row).to_path(),
            order: batch.order(row),
            values: batch.values().iter().map(|column| value_at(column.as_ref(), row).unwrap()).collect(),
            lane: batch.lane(row).to_owned(),
            sequence: batch.sequence(row),
            error: batch.error(row).map(str::to_owned),
        })
        .collect()
}

/// All rows of the view's table, by lane and sequence; none if there is no table.
pub async fn stored_rows(store: &OfflineStore, view: &ViewSpec) -> Vec<Row> {
    let Some((_, batches)) = store.table(view).unwrap().scan(None, ScanRange::ALL).await.unwrap() else {
        return Vec::new();
    };
    let batches: Vec<HistoryBatch> = batches.try_collect().await.unwrap();
    let mut rows: Vec<Row> = batches.iter().flat_map(rows_of).collect();
    rows.sort_by(|a, b| (&a.lane, a.sequence).cmp(&(&b.lane, b.sequence)));
    rows
}
