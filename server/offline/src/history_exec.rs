//! The deciding half of a view's table as a leaf of a DataFusion plan: keys, times, and where each row is.

use std::fmt;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, UInt64Array};
use arrow_schema::{DataType as ArrowType, Field, Schema, SchemaRef};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use eadem_query::{HistoryColumns, PLACE_COLUMN};
use eadem_values::{DataType, KeyType};
use futures::{StreamExt, TryStreamExt};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};

use crate::erasure::ErasedRows;
use crate::error::OfflineError;
use crate::leaf_exec::Leaf;
use crate::object_file::Scan;
use crate::placed_files::{Place, PlacedFiles};
use crate::read::{ScanRange, typed_column};
use crate::schema::{COLUMN_EVENT_TIME, COLUMN_KNOWN_AT, TableSchema};
use crate::table::{DataFile, TableState, ViewTable};

/// Rows of one batch: many, so that the join looks many entities up in one go, and no more than leaves its columns in the
/// processor's cache. With 65,536 a training set of 10 k rows from 5 M took 0.55 s of processor time, so 0.51 s.
const BATCH_ROWS: usize = 16_384;

/// Reads what decides of some files of one version of a table.
#[derive(Debug, Clone)]
pub(crate) struct History {
    table: ViewTable,
    version: u64,
    files: Arc<[DataFile]>,
    partitions: usize,
    erased: Option<ErasedRows>,
}

impl History {
    /// Reads the files that `range` may find in the table's `state`, in `partitions` parts. Rows of such a file that lie
    /// outside the range are given too: the join passes them over more cheaply than a filter would.
    ///
    /// # Errors
    /// What is erased cannot be told.
    pub(crate) async fn new(
        table: ViewTable,
        state: &TableState,
        range: ScanRange,
        partitions: usize,
    ) -> std::result::Result<Self, OfflineError> {
        let files: Arc<[DataFile]> = state.files.iter().filter(|file| range.meets(file)).cloned().collect();
        let erased = table.erased().await?;
        Ok(Self { table, version: state.version, files, partitions: partitions.max(1), erased })
    }

    /// The files as places count them.
    pub(crate) fn placed_files(&self) -> PlacedFiles {
        PlacedFiles { table: self.table.clone(), files: self.files.clone(), readers: self.partitions }
    }
}

/// The columns that come out. Texts are views: they are compared, not kept.
fn schema(table: &TableSchema) -> SchemaRef {
    let time = DataType::Timestamp.to_arrow();
    let key_type = |key_type: &KeyType| match key_type {
        KeyType::Utf8 => ArrowType::Utf8View,
        KeyType::Int64 => ArrowType::Int64,
    };
    let mut fields: Vec<Field> = table.keys.iter().map(|(name, key)| Field::new(name, key_type(key), false)).collect();
    fields.push(Field::new(COLUMN_EVENT_TIME, time.clone(), false));
    fields.push(Field::new(COLUMN_KNOWN_AT, time, false));
    fields.push(Field::new(PLACE_COLUMN, ArrowType::UInt64, false));
    Arc::new(Schema::new(fields))
}

/// Which of those columns mean what.
pub(crate) fn history_columns(table: &TableSchema) -> HistoryColumns {
    let keys = table.keys.len();
    HistoryColumns { keys: (0..keys).collect(), event_time: keys, known_at: keys + 1, place: keys + 2 }
}

/// The file's columns of `schema`, as batches.
async fn read_file(
    table: ViewTable,
    file: DataFile,
    number: usize,
    schema: SchemaRef,
    erased: Option<ErasedRows>,
) -> std::result::Result<impl futures::Stream<Item = std::result::Result<RecordBatch, OfflineError>>, OfflineError> {
    let erased = erased.filter(|erased| erased.may_be_in(&file));
    let (reader, damaged) = table.open_file(&file);
    let index = table.file_index(&file).await?;
    let is_left_out = |name: &String| name == COLUMN_KNOWN_AT && file.is_known_at_event_time;
    let names: Vec<String> = schema
        .fields()
        .iter()
        .map(|field| field.name().clone())
        .filter(|name| name != PLACE_COLUMN && !is_left_out(name))
        .collect();
    let as_views: Vec<Field> = index
        .reader
        .schema()
        .fields()
        .iter()
        .map(|field| {
            let field = field.as_ref().clone();
            match field.data_type() {
                ArrowType::Utf8 if names.contains(field.name()) => field.with_data_type(ArrowType::Utf8View),
                _ => field,
            }
        })
        .collect();
    let options = ArrowReaderOptions::new().with_schema(Arc::new(Schema::new(as_views)));
    let metadata = ArrowReaderMetadata::try_new(index.metadata().clone(), options).map_err(&damaged)?;
    let roots: Vec<usize> = names
        .iter()
        .map(|name| Ok(metadata.schema().index_of(name)?))
        .collect::<std::result::Result<_, OfflineError>>()?;
    let columns = ProjectionMask::roots(metadata.parquet_schema(), roots);
    let batches = reader.scan(Scan::of_columns(metadata, columns, BATCH_ROWS)).map_err(&damaged)?;
    let mut next_place = Place::first_of(number);
    Ok(batches.map_err(damaged).map(move |batch| {
        let batch = batch?;
        let rows = batch.num_rows() as u64;
        let places = next_place..next_place + rows;
        next_place += rows;
        let rows = ordered(&batch, &schema, places)?;
        match &erased {
            None => Ok(rows),
            Some(erased) => erased.without(rows).map(|(rows, _)| rows),
        }
    }))
}

/// The batch's columns in the order and types of `schema`, with places.
fn ordered(
    batch: &RecordBatch,
    schema: &SchemaRef,
    places: std::ops::Range<u64>,
) -> std::result::Result<RecordBatch, OfflineError> {
    let columns = schema
        .fields()
        .iter()
        .map(|field| {
            if field.name() == PLACE_COLUMN {
                return Ok(Arc::new(UInt64Array::from_iter_values(places.clone())) as ArrayRef);
            }
            let name = match field.name().as_str() {
                // It is left out where the other says the same.
                COLUMN_KNOWN_AT if batch.column_by_name(COLUMN_KNOWN_AT).is_none() => COLUMN_EVENT_TIME,
                own => own,
            };
            typed_column(batch, name, field.data_type())
        })
        .collect::<std::result::Result<Vec<_>, OfflineError>>()?;
    Ok(RecordBatch::try_new(schema.clone(), columns)?)
}

impl Leaf for History {
    const NAME: &'static str = "HistoryExec";

    fn schema(&self) -> SchemaRef {
        schema(&self.table.schema)
    }

    fn partitions(&self) -> usize {
        self.partitions
    }

    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table={}, version={}, files={}", self.table.location.url, self.version, self.files.len())
    }

    fn read(&self, partition: usize) -> Result<SendableRecordBatchStream> {
        let own_files: Vec<(usize, DataFile)> =
            self.files.iter().cloned().enumerate().skip(partition).step_by(self.partitions).collect();
        let schema = self.schema();
        let file_schema = schema.clone();
        let (table, erased) = (self.table.clone(), self.erased.clone());
        let batches = futures::stream::iter(own_files)
            .then(move |(number, file)| read_file(table.clone(), file, number, file_schema.clone(), erased.clone()))
            .try_flatten()
            .map_err(|error| DataFusionError::External(Box::new(error)));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }
}
