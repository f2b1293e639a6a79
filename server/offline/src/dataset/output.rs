//! The file of a training set: written batch by batch, seen by nobody before it is whole.

use arrow::ipc::writer::FileWriter;
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use bytes::Bytes;
use eadem_values::Digest;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::content::ContentDigest;
use super::parquet_file::ParquetFile;
use crate::error::OfflineError;
use crate::location::Location;
use crate::upload::Upload;

/// Rows of one row group of a dataset file. Fixed, so that the same rows give the same bytes.
pub(super) const ROW_GROUP_ROWS: usize = 131_072;

/// What kind of file a training set is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputFormat {
    /// Compressed columns: small.
    #[default]
    Parquet,
    /// An Arrow IPC file, which readers map into memory as it is: fast to read, several times as large.
    Arrow,
}

impl OutputFormat {
    /// By the ending of a file's name: `.parquet`, `.arrow` or `.feather`.
    pub fn of_name(file: &str) -> Option<Self> {
        match file.rsplit('/').next()?.rsplit_once('.')?.1 {
            "parquet" => Some(Self::Parquet),
            "arrow" | "feather" => Some(Self::Arrow),
            _ => None,
        }
    }

    /// Settings of the writer, as a recipe keeps them.
    pub(super) fn writer_settings(self) -> &'static str {
        match self {
            Self::Parquet => {
                "parquet 59, zstd 1, row groups of 131072 rows, no dictionaries of floats, times and texts that mostly differ, \
                 times that mostly differ as packed differences, floats that do not shrink as they are"
            }
            Self::Arrow => "arrow ipc 59, batches of 131072 rows",
        }
    }
}

/// Writes the rows of a training set, in order, and digests them on the way. Row groups are encoded and digested on two
/// threads, beside the making of the next ones.
pub(super) struct OutputWriter {
    schema: SchemaRef,
    /// Rows of the next row group.
    pending: Vec<RecordBatch>,
    pending_rows: usize,
    rows: usize,
    digest: Stage<ContentDigest>,
    file: Stage<EncodedFile>,
}

/// Work on row groups in their order, on a thread of its own.
struct Stage<T> {
    row_groups: mpsc::Sender<RecordBatch>,
    work: JoinHandle<Result<T, OfflineError>>,
}

/// Row groups that wait for a stage: enough that none waits for the other, few enough for memory.
const ROW_GROUPS_WAITING_MAX: usize = 1;

impl<T: Send + 'static> Stage<T> {
    fn start(mut state: T, step: fn(&mut T, &RecordBatch) -> Result<(), OfflineError>) -> Self {
        let (row_groups, mut next) = mpsc::channel::<RecordBatch>(ROW_GROUPS_WAITING_MAX);
        let work = tokio::task::spawn_blocking(move || {
            while let Some(rows) = next.blocking_recv() {
                step(&mut state, &rows)?;
            }
            Ok(state)
        });
        Self { row_groups, work }
    }

    /// Hands a row group on; false if the work has ended before its time.
    async fn give(&self, rows: RecordBatch) -> bool {
        self.row_groups.send(rows).await.is_ok()
    }

    async fn finish(self) -> Result<T, OfflineError> {
        drop(self.row_groups);
        self.work.await.unwrap_or_else(|error| Err(OfflineError::Worker(error.to_string())))
    }

    /// Why the work has ended before its time.
    async fn error(&mut self) -> OfflineError {
        match (&mut self.work).await {
            Ok(Err(error)) => error,
            Ok(Ok(_)) => OfflineError::Worker("the writer of a training set has stopped".to_owned()),
            Err(error) => OfflineError::Worker(error.to_string()),
        }
    }
}

/// A file as far as it is encoded.
struct EncodedFile {
    format: OutputFormat,
    /// From the first row group on, which says how the columns are best written.
    encoder: Option<Encoder>,
    upload: Upload,
    runtime: Handle,
}

impl EncodedFile {
    fn write(&mut self, rows: &RecordBatch) -> Result<(), OfflineError> {
        let mut encoder = match self.encoder.take() {
            Some(encoder) => encoder,
            None => Encoder::new(rows, self.format)?,
        };
        encoder.write(rows, &self.runtime)?;
        let pieces = encoder.take();
        self.encoder = Some(encoder);
        self.runtime.block_on(self.upload.send_all(pieces))
    }
}

enum Encoder {
    Parquet(Box<ParquetFile>),
    Arrow(Box<FileWriter<Vec<u8>>>),
}

impl Encoder {
    /// For a file that begins with these rows, which are not written yet.
    fn new(first: &RecordBatch, format: OutputFormat) -> Result<Self, OfflineError> {
        Ok(match format {
            OutputFormat::Parquet => Self::Parquet(Box::new(ParquetFile::new(first)?)),
            OutputFormat::Arrow => Self::Arrow(Box::new(FileWriter::try_new(Vec::new(), &first.schema())?)),
        })
    }

    /// One row group, whole.
    fn write(&mut self, rows: &RecordBatch, runtime: &Handle) -> Result<(), OfflineError> {
        match self {
            Self::Parquet(file) => file.write(rows, runtime),
            Self::Arrow(writer) => Ok(writer.write(rows)?),
        }
    }

    fn finish(&mut self) -> Result<(), OfflineError> {
        match self {
            Self::Parquet(file) => file.finish(),
            Self::Arrow(writer) => Ok(writer.finish()?),
        }
    }

    /// The bytes so far.
    fn take(&mut self) -> Vec<Bytes> {
        match self {
            Self::Parquet(file) => file.take(),
            Self::Arrow(writer) => vec![std::mem::take(writer.get_mut()).into()],
        }
    }
}

/// A file that is written and not yet to be seen. Dropped, it leaves nothing.
pub(super) struct WrittenOutput {
    upload: Upload,
    /// Its rows.
    pub(super) rows: usize,
    /// Of the rows.
    pub(super) content_digest: Digest,
    /// Of the file's bytes.
    pub(super) file_digest: Digest,
}

impl OutputWriter {
    /// Begins a file of rows with this schema.
    pub(super) async fn begin(place: Location, schema: SchemaRef, format: OutputFormat) -> Result<Self, OfflineError> {
        let upload = Upload::begin(place).await?;
        let file = EncodedFile { format, encoder: None, upload, runtime: Handle::current() };
        let digest = Stage::start(ContentDigest::new(&schema), ContentDigest::update);
        let file = Stage::start(file, EncodedFile::write);
        Ok(Self { schema, pending: Vec::new(), pending_rows: 0, rows: 0, digest, file })
    }

    /// The next rows. In batches of [`ROW_GROUP_ROWS`] none is copied; the file is the same whatever the batches are.
    pub(super) async fn write(&mut self, rows: &RecordBatch) -> Result<(), OfflineError> {
        self.rows += rows.num_rows();
        let mut start = 0;
        while start < rows.num_rows() {
            let taken = (ROW_GROUP_ROWS - self.pending_rows).min(rows.num_rows() - start);
            // A whole batch is handed on as it is: columns that are one and the same stay so.
            let is_whole = taken == rows.num_rows();
            self.pending.push(if is_whole { rows.clone() } else { rows.slice(start, taken) });
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
        let rows = match pending.as_slice() {
            [] => return Ok(()),
            [whole] => whole.clone(),
            parts => arrow_select::concat::concat_batches(&self.schema, parts)?,
        };
        if !self.file.give(rows.clone()).await {
            return Err(self.file.error().await);
        }
        if !self.digest.give(rows).await {
            return Err(self.digest.error().await);
        }
        Ok(())
    }

    /// Takes back what was written.
    pub(super) async fn discard(self) -> Result<(), OfflineError> {
        drop(self.digest);
        self.file.finish().await?.upload.discard().await
    }

    /// Writes what is left. The file cannot be seen yet.
    pub(super) async fn finish(mut self) -> Result<WrittenOutput, OfflineError> {
        self.write_row_group().await?;
        let EncodedFile { encoder, mut upload, format, .. } = self.file.finish().await?;
        let mut encoder = match encoder {
            Some(encoder) => encoder,
            // A training set without rows still has columns.
            None => Encoder::new(&RecordBatch::new_empty(self.schema.clone()), format)?,
        };
        encoder.finish()?;
        upload.send_all(encoder.take()).await?;
        let content_digest = self.digest.finish().await?.finish();
        Ok(WrittenOutput { file_digest: upload.digest(), upload, rows: self.rows, content_digest })
    }
}

impl WrittenOutput {
    /// Puts the file in its place, whole.
    pub(super) async fn publish(self) -> Result<(), OfflineError> {
        self.upload.publish().await
    }

    /// Takes back what was written.
    pub(super) async fn discard(self) -> Result<(), OfflineError> {
        self.upload.discard().await
    }
}
