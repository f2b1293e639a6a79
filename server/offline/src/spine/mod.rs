//! The spine of a training set: reading it, and its columns in the types of the contract.

mod entities;
mod erase;
pub(crate) mod exec;
mod query;
pub(crate) mod reader;
mod writer;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;

use arrow::ipc::reader::FileReader;
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch, TimestampMicrosecondArray};
use arrow_csv::ReaderBuilder;
use arrow_csv::reader::Format;
use arrow_schema::{DataType as ArrowType, Field, Schema};
use bytes::Bytes;
use eadem_values::{DataType, Digest, parse_timestamp};
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::{Deserialize, Serialize};

pub use self::entities::{ENTITIES_MAX, SPINE_ROWS_MAX, TIMES_MAX, keep_entities_spine};
pub use self::erase::{ErasedInSpine, SpineFile, SpineUse};
pub use self::query::{QueriedSpine, SpineQuery, tables_of_query};
use crate::error::OfflineError;
use crate::file_bytes;
use crate::location::{Location, OfflineStore};
use crate::source::to_canonical;
use crate::upload::Upload;

/// A spine in memory, in the order of its file.
#[derive(Debug)]
pub struct Spine {
    /// The rows, with columns in the types of the file.
    pub rows: RecordBatch,
}

/// The copy of a spine that the offline store keeps: whatever becomes of the file, a training set can be made of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptSpine {
    /// Digest of its bytes.
    pub digest: Digest,
    /// How they are read.
    pub format: SpineFormat,
}

/// What kind of file a spine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum SpineFormat {
    Parquet,
    Csv,
    Arrow,
}

impl std::fmt::Display for SpineFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl SpineFormat {
    fn of(place: &Location) -> Result<Self, OfflineError> {
        match place.path.extension() {
            Some("parquet") => Ok(Self::Parquet),
            Some("csv") => Ok(Self::Csv),
            Some("arrow" | "feather") => Ok(Self::Arrow),
            _ => Err(file_failed(place, "a spine is a .parquet, a .csv or an .arrow file")),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Csv => "csv",
            Self::Arrow => "arrow",
        }
    }
}

fn file_failed(place: &Location, reason: impl std::fmt::Display) -> OfflineError {
    OfflineError::File { file: place.url.to_string(), reason: reason.to_string() }
}

async fn read_bytes(place: &Location) -> Result<Bytes, OfflineError> {
    let object = place.store.get(&place.path).await.map_err(|error| file_failed(place, error))?;
    object.bytes().await.map_err(|error| file_failed(place, error))
}

/// What is said of a spine whose copy is gone.
pub(crate) fn spine_gone(location: &str) -> OfflineError {
    OfflineError::File {
        file: location.to_owned(),
        reason: "the copy of the spine that the store kept is gone, as an erasure takes away those that hold what it erases; \
                 make a new training set from a spine without it"
            .to_owned(),
    }
}

/// Refuses a kept copy that is not what it was. Messages name the spine's own `location`.
pub(crate) async fn check_kept(store: &OfflineStore, kept: &KeptSpine, location: &str) -> Result<(), OfflineError> {
    let copy = store.kept_spine_location(kept)?;
    let found = file_bytes::digest_of(copy.store.as_ref(), &copy.path).await;
    if matches!(found, Err(object_store::Error::NotFound { .. })) {
        return Err(spine_gone(location));
    }
    if found.map_err(|error| file_failed(&copy, error))? != kept.digest {
        let reason = format!("the copy that the store keeps is not {} any more", kept.digest);
        return Err(OfflineError::File { file: location.to_owned(), reason });
    }
    Ok(())
}

impl OfflineStore {
    /// Keeps a copy of a spine, named by its digest, in the store. The file may be larger than memory.
    ///
    /// # Errors
    /// A file that is neither Parquet, CSV nor Arrow by its name, cannot be read, or changes meanwhile; a store that cannot be
    /// written.
    pub async fn keep_spine(&self, location: &str) -> Result<KeptSpine, OfflineError> {
        let place = Location::parse(location)?;
        let format = SpineFormat::of(&place)?;
        let failed = |error: object_store::Error| file_failed(&place, error);
        let digest = file_bytes::digest_of(place.store.as_ref(), &place.path).await.map_err(failed)?;
        let kept = KeptSpine { digest, format };
        let copy = self.kept_spine_location(&kept)?;
        if file_bytes::digest_of(copy.store.as_ref(), &copy.path).await.is_ok_and(|known| known == digest) {
            return Ok(kept);
        }
        let mut pieces = file_bytes::pieces(place.store.as_ref(), &place.path).await.map_err(failed)?;
        let mut upload = Upload::begin(copy).await?;
        while let Some(piece) = pieces.try_next().await.map_err(failed)? {
            upload.send(piece).await?;
        }
        if upload.digest() != digest {
            upload.discard().await?;
            return Err(file_failed(&place, "it changed while it was copied; run this again"));
        }
        upload.publish().await?;
        Ok(kept)
    }

    pub(crate) fn kept_spine_location(&self, kept: &KeptSpine) -> Result<Location, OfflineError> {
        self.spine_location(&format!("{}.{}", kept.digest.hex(), kept.format.name()))
    }
}

impl Spine {
    /// Reads a Parquet, CSV or Arrow file, a local path or URL. `wanted` gives the types of columns that a CSV file cannot give by
    /// itself.
    ///
    /// # Errors
    /// A file that is missing, unreadable, or of another kind.
    pub async fn read(location: &str, wanted: &BTreeMap<String, DataType>) -> Result<Self, OfflineError> {
        let place = Location::parse(location)?;
        let format = SpineFormat::of(&place)?;
        let bytes = read_bytes(&place).await?;
        Self::decode(format, bytes, wanted, location)
    }

    /// Reads the copy that the store keeps at `place`. Messages name `location`.
    pub(crate) async fn read_copy(
        place: &Location,
        kept: &KeptSpine,
        wanted: &BTreeMap<String, DataType>,
        location: &str,
    ) -> Result<Self, OfflineError> {
        Self::decode(kept.format, read_bytes(place).await?, wanted, location)
    }

    fn decode(
        format: SpineFormat,
        bytes: Bytes,
        wanted: &BTreeMap<String, DataType>,
        location: &str,
    ) -> Result<Self, OfflineError> {
        let rows = match format {
            SpineFormat::Parquet => read_parquet(bytes),
            SpineFormat::Csv => read_csv(&bytes, wanted),
            SpineFormat::Arrow => read_arrow(bytes),
        }
        .map_err(|reason| OfflineError::File {
            file: location.to_owned(),
            reason: format!("cannot be read as {format}: {reason}"),
        })?;
        Ok(Self { rows })
    }

    /// A column as `data_type`, in canonical form, one entry per row.
    ///
    /// # Errors
    /// No such column, or one that cannot be read as `data_type`; the message names it.
    pub fn column(&self, name: &str, data_type: DataType) -> Result<ArrayRef, OfflineError> {
        column_of(&self.rows, 0, name, data_type)
    }
}

pub(crate) fn no_column(schema: &Schema, name: &str) -> OfflineError {
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    OfflineError::Dataset(format!("the spine has no column `{name}`; its columns are {}", names.join(", ")))
}

/// A column of spine rows, as it is in the file.
pub(crate) fn named<'a>(rows: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, OfflineError> {
    rows.column_by_name(name).ok_or_else(|| no_column(&rows.schema(), name))
}

/// A column of spine rows as `data_type`, in canonical form, one entry per row. `first_row` is the number of the first.
///
/// # Errors
/// No such column, or one that cannot be read as `data_type`; the message names it.
pub(crate) fn column_of(
    rows: &RecordBatch,
    first_row: usize,
    name: &str,
    data_type: DataType,
) -> Result<ArrayRef, OfflineError> {
    let column = named(rows, name)?;
    let wrong = |reason: String| OfflineError::Dataset(format!("the spine's column `{name}`: {reason}"));
    if data_type == DataType::Timestamp && is_text(column.data_type()) {
        return timestamps(column, first_row).map_err(wrong);
    }
    if matches!(column.data_type(), ArrowType::Timestamp(_, None)) {
        return Err(wrong("has no time zone; write it in UTC".to_owned()));
    }
    let canonical = to_canonical(column).map_err(wrong)?;
    if canonical.data_type() != &data_type.to_arrow() {
        return Err(wrong(format!("is {}, expected {data_type}", column.data_type())));
    }
    Ok(canonical)
}

fn is_text(data_type: &ArrowType) -> bool {
    matches!(data_type, ArrowType::Utf8 | ArrowType::LargeUtf8 | ArrowType::Utf8View)
}

fn timestamps(column: &ArrayRef, first_row: usize) -> Result<ArrayRef, String> {
    let texts = arrow_cast::cast(column, &ArrowType::Utf8).map_err(|error| error.to_string())?;
    let texts = texts.as_string::<i32>();
    let times = (0..texts.len())
        .map(|row| {
            if texts.is_null(row) || texts.value(row).is_empty() {
                return Ok(None);
            }
            parse_timestamp(texts.value(row)).map(Some).map_err(|error| format!("row {}: {error}", first_row + row))
        })
        .collect::<Result<Vec<Option<i64>>, String>>()?;
    Ok(Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC")))
}

fn read_parquet(bytes: Bytes) -> Result<RecordBatch, String> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|error| error.to_string())?;
    let schema = builder.schema().clone();
    let reader = builder.build().map_err(|error| error.to_string())?;
    let batches: Vec<RecordBatch> = reader.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    arrow_select::concat::concat_batches(&schema, &batches).map_err(|error| error.to_string())
}

fn read_arrow(bytes: Bytes) -> Result<RecordBatch, String> {
    let reader = FileReader::try_new(Cursor::new(bytes), None).map_err(|error| error.to_string())?;
    let schema = reader.schema();
    let batches: Vec<RecordBatch> = reader.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    arrow_select::concat::concat_batches(&schema, &batches).map_err(|error| error.to_string())
}

fn read_csv(bytes: &Bytes, wanted: &BTreeMap<String, DataType>) -> Result<RecordBatch, String> {
    let format = Format::default().with_header(true);
    let (inferred, _) = format.infer_schema(Cursor::new(bytes), None).map_err(|error| error.to_string())?;
    let fields: Vec<Field> = inferred
        .fields()
        .iter()
        .map(|field| Field::new(field.name(), csv_type(wanted.get(field.name()), field.data_type()), true))
        .collect();
    let schema = Arc::new(Schema::new(fields));
    let reader = ReaderBuilder::new(schema.clone())
        .with_format(format)
        .build(Cursor::new(bytes))
        .map_err(|error| error.to_string())?;
    let batches: Vec<RecordBatch> = reader.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    arrow_select::concat::concat_batches(&schema, &batches).map_err(|error| error.to_string())
}

/// The type in which a CSV column is read: the one that is needed of it; else what its values look like. Times stay text,
/// because only RFC 3339 says which instant is meant.
fn csv_type(wanted: Option<&DataType>, inferred: &ArrowType) -> ArrowType {
    match (wanted, inferred) {
        (Some(DataType::Int64), _) => ArrowType::Int64,
        (Some(DataType::Float64), _) => ArrowType::Float64,
        (Some(DataType::Float32), _) => ArrowType::Float32,
        (Some(DataType::Boolean), _) => ArrowType::Boolean,
        (Some(_), _) => ArrowType::Utf8,
        (None, ArrowType::Int64 | ArrowType::Float64 | ArrowType::Boolean) => inferred.clone(),
        (None, _) => ArrowType::Utf8,
    }
}
