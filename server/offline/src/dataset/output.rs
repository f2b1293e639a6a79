//! The file of a training set: written batch by batch, seen by nobody before it is whole.

use arrow_array::RecordBatch;
use arrow_schema::{DataType as ArrowType, SchemaRef};
use eadem_values::Digest;
use object_store::{ObjectStoreExt, WriteMultipart};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;
use sha2::{Digest as _, Sha256};

use super::content::ContentDigest;
use crate::error::OfflineError;
use crate::location::Location;

/// Rows of one row group of a dataset file. Fixed, so that the same rows give the same bytes.
pub(super) const ROW_GROUP_ROWS: usize = 131_072;

/// Settings of the writer, as a recipe keeps them.
pub(super) const WRITER_SETTINGS: &str =
    "parquet 59, zstd 1, row groups of 131072 rows, no dictionaries of floats and times";

/// Parts of a file that are on their way to the store at once.
const PARTS_IN_FLIGHT_MAX: usize = 2;

/// Writes the rows of a training set, in order, and digests them on the way.
pub(super) struct OutputWriter {
    place: Location,
    schema: SchemaRef,
    upload: WriteMultipart,
    encoder: ArrowWriter<Vec<u8>>,
    /// Rows of the next row group.
    pending: Vec<RecordBatch>,
    pending_rows: usize,
    rows: usize,
    content: ContentDigest,
    file: Sha256,
}

/// A file that is written and not yet to be seen. Dropped, it leaves nothing.
pub(super) struct WrittenOutput {
    place: Location,
    upload: WriteMultipart,
    /// Its rows.
    pub(super) rows: usize,
    /// Of the rows.
    pub(super) content_digest: Digest,
    /// Of the file's bytes.
    pub(super) file_digest: Digest,
}

impl OutputWriter {
    /// Begins a file of rows with this schema.
    pub(super) async fn begin(place: Location, schema: SchemaRef) -> Result<Self, OfflineError> {
        let upload = place.store.put_multipart(&place.path).await.map_err(|error| cannot_write(&place, &error))?;
        let encoder = ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties(&schema)?))?;
        let content = ContentDigest::new(&schema);
        Ok(Self {
            place,
            schema,
            upload: WriteMultipart::new(upload),
            encoder,
            pending: Vec::new(),
            pending_rows: 0,
            rows: 0,
            content,
            file: Sha256::new(),
        })
    }

    /// The next rows. In batches of [`ROW_GROUP_ROWS`] none is copied; the file is the same whatever the batches are.
    pub(super) async fn write(&mut self, rows: &RecordBatch) -> Result<(), OfflineError> {
        self.content.update(rows)?;
        self.rows += rows.num_rows();
        let mut start = 0;
        while start < rows.num_rows() {
            let taken = (ROW_GROUP_ROWS - self.pending_rows).min(rows.num_rows() - start);
            self.pending.push(rows.slice(start, taken));
            self.pending_rows += taken;
            start += taken;
            if self.pending_rows == ROW_GROUP_ROWS {
                self.write_row_group().await?;
            }
        }
        Ok(())
    }

    async fn write_row_group(&mut self) -> Result<(), OfflineError> {
        let pending = std::mem::take(&mut self.pending);
        self.pending_rows = 0;
        match pending.as_slice() {
            [] => return Ok(()),
            [whole] => self.encoder.write(whole)?,
            parts => self.encoder.write(&arrow_select::concat::concat_batches(&self.schema, parts)?)?,
        }
        self.encoder.flush()?;
        let bytes = std::mem::take(self.encoder.inner_mut());
        self.send(bytes).await
    }

    async fn send(&mut self, bytes: Vec<u8>) -> Result<(), OfflineError> {
        self.file.update(&bytes);
        self.upload.put(bytes.into());
        let sent = self.upload.wait_for_capacity(PARTS_IN_FLIGHT_MAX).await;
        sent.map_err(|error| cannot_write(&self.place, &error))
    }

    /// Writes what is left. The file cannot be seen yet.
    pub(super) async fn finish(mut self) -> Result<WrittenOutput, OfflineError> {
        self.write_row_group().await?;
        self.encoder.finish()?;
        let bytes = std::mem::take(self.encoder.inner_mut());
        self.send(bytes).await?;
        Ok(WrittenOutput {
            place: self.place,
            upload: self.upload,
            rows: self.rows,
            content_digest: self.content.finish(),
            file_digest: Digest::from_bytes(self.file.finalize().into()),
        })
    }
}

impl WrittenOutput {
    /// Puts the file in its place, whole.
    pub(super) async fn publish(self) -> Result<(), OfflineError> {
        self.upload.finish().await.map(|_| ()).map_err(|error| cannot_write(&self.place, &error))
    }

    /// Takes back what was written.
    pub(super) async fn discard(self) -> Result<(), OfflineError> {
        self.upload.abort().await.map_err(|error| cannot_write(&self.place, &error))
    }
}

fn cannot_write(place: &Location, error: &object_store::Error) -> OfflineError {
    OfflineError::File { file: place.url.to_string(), reason: format!("cannot be written: {error}") }
}

fn properties(schema: &SchemaRef) -> Result<WriterProperties, OfflineError> {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_created_by("eadem".to_owned());
    for field in schema.fields() {
        // Most of them differ: a dictionary would be built only to be thrown away, which takes half of the writer's time.
        if matches!(field.data_type(), ArrowType::Float32 | ArrowType::Float64 | ArrowType::Timestamp(..)) {
            properties = properties.set_column_dictionary_enabled(ColumnPath::from(field.name().as_str()), false);
        }
    }
    Ok(properties.build())
}
