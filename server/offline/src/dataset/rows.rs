//! Reading a training set again, whatever kind of file it is.

use std::io::{Read, Seek};

use arrow::ipc::reader::FileReader;
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use parquet::arrow::async_reader::ParquetRecordBatchStreamBuilder;

use super::output::OutputFormat;
use crate::error::OfflineError;
use crate::location::Location;
use crate::object_file::ObjectFile;

/// The rows of a training set, in order.
pub struct DatasetRows {
    /// Its columns.
    pub schema: SchemaRef,
    /// Its rows.
    pub batches: BoxStream<'static, Result<RecordBatch, OfflineError>>,
}

/// Opens a training set: a Parquet or Arrow file, by the ending of its name, as a local path or URL.
///
/// # Errors
/// A file that is missing, unreadable, or neither.
pub async fn open_rows(file: &str) -> Result<DatasetRows, OfflineError> {
    let failed = |reason: String| OfflineError::File { file: file.to_owned(), reason };
    let place = Location::parse(file)?;
    match OutputFormat::of_name(file) {
        None => Err(failed("a training set is a .parquet or an .arrow file".to_owned())),
        Some(OutputFormat::Parquet) => {
            let head = place.store.head(&place.path).await.map_err(|error| failed(error.to_string()))?;
            let reader = ObjectFile::at(&place, head.size);
            let name = file.to_owned();
            let damaged = move |error: parquet::errors::ParquetError| OfflineError::File {
                file: name.clone(),
                reason: format!("cannot be read as parquet: {error}"),
            };
            let builder = ParquetRecordBatchStreamBuilder::new(reader).await.map_err(&damaged)?;
            let schema = builder.schema().clone();
            let batches = builder.build().map_err(&damaged)?.map_err(damaged).boxed();
            Ok(DatasetRows { schema, batches })
        }
        Some(OutputFormat::Arrow) => match place.local_path() {
            // Batch by batch, where the file can be opened; else it comes whole.
            Some(path) => {
                let opened = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
                arrow_rows(std::io::BufReader::new(opened), file)
            }
            None => {
                let object = place.store.get(&place.path).await.map_err(|error| failed(error.to_string()))?;
                let bytes = object.bytes().await.map_err(|error| failed(error.to_string()))?;
                arrow_rows(std::io::Cursor::new(bytes), file)
            }
        },
    }
}

fn arrow_rows(reader: impl Read + Seek + Send + 'static, file: &str) -> Result<DatasetRows, OfflineError> {
    let name = file.to_owned();
    let damaged = move |error: arrow_schema::ArrowError| OfflineError::File {
        file: name.clone(),
        reason: format!("cannot be read as arrow: {error}"),
    };
    let reader = FileReader::try_new(reader, None).map_err(&damaged)?;
    let schema = reader.schema();
    Ok(DatasetRows { schema, batches: futures::stream::iter(reader).map_err(damaged).boxed() })
}
