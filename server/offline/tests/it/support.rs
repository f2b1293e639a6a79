//! Native stand-ins for components, and small sources.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use arrow_array::{ArrayRef, RecordBatch};
use eadem_offline::{
    Backfill, BackfillOptions, Binding, Cancel, EventTime, HistoryBatch, JobLedger, JoinKey, KnownAt, OfflineStore,
    Origin, Placement, ScanRange, SourceSpec, ViewSpec,
};
use eadem_query::{AppliedRows, FailedRow, RowTransform, TransformFailure, ValidationPolicy};
use eadem_semantics::{Lifetime, RowOrder};
use eadem_values::{
    DataType, Description, Digest, Field, KeyType, Value, array_from_values, parse_timestamp, value_at,
};
use futures::TryStreamExt;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

use crate::dice::is_soak;
pub(crate) use crate::dice::seed;

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
    pub fn shared(
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
    NativeTransform::shared(
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

pub fn write_parquet(path: &FilePath, batch: &RecordBatch, row_group_rows: usize) {
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

pub fn source(name: &str, location: &FilePath) -> SourceSpec {
    SourceSpec {
        name: name.to_owned(),
        origin: Origin::Parquet { locations: vec![location.to_str().unwrap().to_owned()] },
        types: BTreeMap::new(),
        columns: vec![],
        filter: None,
        time_zone: None,
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
        first_placement: Placement::OnWrite,
        validation: ValidationPolicy::RefuseRow.into(),
    }
}

/// A view that stores columns as they are.
pub fn echo(name: &str, spec: &SourceSpec, columns: &[(&str, DataType)]) -> ViewSpec {
    let inputs = columns.iter().map(|(name, data_type)| Field::new(*name, *data_type, true)).collect();
    let outputs = columns.iter().map(|(name, data_type)| Field::new(format!("{name}_out"), *data_type, true)).collect();
    view(name, spec.clone(), NativeTransform::shared(name, true, inputs, outputs, |input| Outcome::Row(input.to_vec())))
}

pub fn store_in(folder: &FilePath) -> OfflineStore {
    OfflineStore::open(folder.join("out").to_str().unwrap()).unwrap()
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
            lane: batch.origin(row).unwrap().0.to_owned(),
            sequence: batch.origin(row).unwrap().1,
            error: batch.error(row).map(str::to_owned),
        })
        .collect()
}

/// All rows of the view's table, by lane and sequence; none if there is no table.
pub async fn stored_rows(store: &OfflineStore, view: &ViewSpec) -> Vec<Row> {
    let Some((_, batches)) = store.table(view).unwrap().scan(ScanRange::ALL).await.unwrap() else {
        return Vec::new();
    };
    let batches: Vec<HistoryBatch> = batches.try_collect().await.unwrap();
    let mut rows: Vec<Row> = batches.iter().flat_map(rows_of).collect();
    rows.sort_by(|a, b| (&a.lane, a.sequence).cmp(&(&b.lane, b.sequence)));
    rows
}

/// A local disk that has room for so many writes.
#[derive(Debug)]
pub struct FullDisk {
    pub inner: LocalFileSystem,
    pub writes_left: AtomicI64,
}

impl fmt::Display for FullDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a disk that fills up")
    }
}

impl FullDisk {
    fn take_room(&self) -> object_store::Result<()> {
        if self.writes_left.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Ok(());
        }
        let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
        Err(object_store::Error::Generic { store: "disk", source: format!("No space left on device: {source}").into() })
    }
}

#[async_trait::async_trait]
impl ObjectStore for FullDisk {
    async fn put_opts(&self, at: &Path, bytes: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        self.take_room()?;
        self.inner.put_opts(at, bytes, options).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.take_room()?;
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.inner.get_opts(at, options).await
    }

    fn delete_stream(
        &self,
        at: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(at)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.take_room()?;
        self.inner.copy_opts(from, to, options).await
    }
}

/// How many cases are tried: `EADEM_SOAK=1` tries those of a soak.
pub fn cases(usual: usize, of_a_soak: usize) -> usize {
    if is_soak() { of_a_soak } else { usual }
}
