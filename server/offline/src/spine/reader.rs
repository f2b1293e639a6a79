//! A spine that is gone through again and again, a block of rows at a time: in memory if it is small, else from its copy in
//! the store.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::TimestampMicrosecondType;
use arrow_array::{Array, ArrayRef, RecordBatch, new_empty_array};
use arrow_schema::SchemaRef;
use eadem_values::DataType;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::async_reader::ParquetRecordBatchStreamBuilder;

use super::{KeptSpine, Spine, SpineFormat, check_kept, column_of, no_column};
use crate::error::OfflineError;
use crate::location::OfflineStore;
use crate::object_file::ObjectFile;

/// A spine may take this part of a job's memory before it is read from its copy, again for each use.
const MEMORY_SHARE: usize = 8;

/// Rows of one read of a file.
const READ_ROWS: usize = 65_536;

/// Columns of a spine that are decoded at once.
const COLUMNS_AT_ONCE: usize = 2;

/// The rows of a spine, in the order of its file.
#[derive(Debug)]
pub(crate) struct SpineReader {
    /// Its bytes: their digest, and how they are read.
    pub(crate) kept: KeptSpine,
    /// As the job named it, for messages.
    location: String,
    rows: Rows,
}

#[derive(Debug)]
enum Rows {
    Memory(RecordBatch),
    Parquet { file: ObjectFile, metadata: ArrowReaderMetadata },
}

/// Consecutive rows of a spine.
#[derive(Debug, Clone)]
pub(crate) struct SpineBlock {
    /// Number of the first row.
    pub(crate) first_row: usize,
    /// With columns in the types of the file.
    pub(crate) rows: RecordBatch,
}

impl SpineBlock {
    /// A column as `data_type`, in canonical form, one entry per row.
    ///
    /// # Errors
    /// No such column, or one that cannot be read as `data_type`; the message names it.
    pub(crate) fn column(&self, name: &str, data_type: DataType) -> Result<ArrayRef, OfflineError> {
        column_of(&self.rows, self.first_row, name, data_type)
    }

    /// The rows' times.
    ///
    /// # Errors
    /// No such column, another type, a row without time.
    pub(crate) fn times(&self, name: &str) -> Result<ArrayRef, OfflineError> {
        let times = self.column(name, DataType::Timestamp)?;
        match (0..times.len()).find(|row| times.is_null(*row)) {
            None => Ok(times),
            Some(row) => Err(OfflineError::Dataset(format!(
                "row {} of the spine has no time in column `{name}`",
                self.first_row + row
            ))),
        }
    }
}

impl SpineReader {
    /// Opens the copy of a spine that the store keeps, making one of the file at `location` first if there is none yet.
    /// Messages name the latter. `wanted` gives the types of columns that a file cannot give by itself.
    ///
    /// # Errors
    /// A file that cannot be read; a copy that is not what it was; a spine that only fits into memory whole and is too large
    /// for `memory_bytes_max`.
    pub(crate) async fn open(
        store: &OfflineStore,
        location: &str,
        kept: Option<&KeptSpine>,
        wanted: &BTreeMap<String, DataType>,
        memory_bytes_max: usize,
    ) -> Result<Self, OfflineError> {
        let kept = match kept {
            Some(kept) => {
                check_kept(store, kept, location).await?;
                kept.clone()
            }
            None => store.keep_spine(location).await?,
        };
        let place = store.kept_spine_location(&kept)?;
        let failed = |reason: String| OfflineError::File { file: location.to_owned(), reason };
        let memory_bytes = memory_bytes_max / MEMORY_SHARE;
        let bytes = place.store.head(&place.path).await.map_err(|error| failed(error.to_string()))?.size;
        if kept.format == SpineFormat::Parquet {
            let damaged = |reason: String| failed(format!("cannot be read as parquet: {reason}"));
            let mut file = ObjectFile { store: place.store.clone(), path: place.path.clone(), bytes };
            let metadata = ArrowReaderMetadata::load_async(&mut file, ArrowReaderOptions::new()).await;
            let metadata = metadata.map_err(|error| damaged(error.to_string()))?;
            let groups = metadata.metadata().row_groups();
            let decoded_bytes: i64 = groups.iter().map(|group| group.total_byte_size()).sum();
            let is_small = usize::try_from(decoded_bytes).is_ok_and(|decoded_bytes| decoded_bytes <= memory_bytes);
            let rows = if is_small {
                let decoded = decode_parquet(&file, &metadata).await;
                Rows::Memory(decoded.map_err(|error| damaged(error.to_string()))?)
            } else {
                Rows::Parquet { file, metadata }
            };
            return Ok(Self { kept, location: location.to_owned(), rows });
        }
        if bytes as usize > memory_bytes {
            return Err(failed(format!(
                "a spine of {bytes} bytes in the format {} does not fit into the {memory_bytes} bytes that a spine may \
                 take in memory; write it as Parquet, which is read piece by piece, or raise the job's memory",
                kept.format
            )));
        }
        let spine = Spine::read_copy(&place, &kept, wanted, location).await?;
        Ok(Self { kept, location: location.to_owned(), rows: Rows::Memory(spine.rows) })
    }

    /// How many rows there are.
    pub(crate) fn rows(&self) -> usize {
        match &self.rows {
            Rows::Memory(rows) => rows.num_rows(),
            Rows::Parquet { metadata, .. } => {
                usize::try_from(metadata.metadata().file_metadata().num_rows()).unwrap_or_default()
            }
        }
    }

    /// The columns, in the types of the file.
    pub(crate) fn schema(&self) -> SchemaRef {
        match &self.rows {
            Rows::Memory(rows) => rows.schema(),
            Rows::Parquet { metadata, .. } => metadata.schema().clone(),
        }
    }

    /// A block without rows, to see what the columns are.
    pub(crate) fn no_rows(&self) -> SpineBlock {
        SpineBlock { first_row: 0, rows: RecordBatch::new_empty(self.schema()) }
    }

    /// All rows in blocks of `block_rows`, the last one smaller; `columns` leaves only those of these names.
    ///
    /// # Errors
    /// No such column; a copy that cannot be read.
    pub(crate) fn blocks(
        &self,
        columns: Option<&[&str]>,
        block_rows: usize,
    ) -> Result<BoxStream<'static, Result<SpineBlock, OfflineError>>, OfflineError> {
        let schema = self.schema();
        let position = |name: &&str| schema.index_of(name).map_err(|_| no_column(&schema, name));
        let columns: Option<Vec<usize>> =
            columns.map(|columns| columns.iter().map(position).collect::<Result<_, _>>()).transpose()?;
        match &self.rows {
            Rows::Memory(rows) => {
                let rows = match columns {
                    Some(mut columns) => {
                        columns.sort_unstable();
                        columns.dedup();
                        rows.project(&columns)?
                    }
                    None => rows.clone(),
                };
                let blocks = (0..rows.num_rows()).step_by(block_rows).map(move |first_row| {
                    let length = block_rows.min(rows.num_rows() - first_row);
                    Ok(SpineBlock { first_row, rows: rows.slice(first_row, length) })
                });
                Ok(futures::stream::iter(blocks.collect::<Vec<_>>()).boxed())
            }
            Rows::Parquet { file, metadata } => {
                let location = self.location.clone();
                let failed = move |error: parquet::errors::ParquetError| OfflineError::File {
                    file: location.clone(),
                    reason: format!("cannot be read as parquet: {error}"),
                };
                let builder = ParquetRecordBatchStreamBuilder::new_with_metadata(file.clone(), metadata.clone());
                let mask = match columns {
                    Some(columns) => ProjectionMask::roots(builder.parquet_schema(), columns),
                    None => ProjectionMask::all(),
                };
                let batches = builder
                    .with_projection(mask)
                    .with_batch_size(READ_ROWS.min(block_rows))
                    .build()
                    .map_err(failed.clone())?
                    .map_err(failed);
                Ok(in_blocks(batches.boxed(), block_rows))
            }
        }
    }

    /// The earliest and the latest time; `None` of a spine without rows.
    ///
    /// # Errors
    /// No such column, another type, a row without time.
    pub(crate) async fn time_span(&self, column: &str) -> Result<Option<(i64, i64)>, OfflineError> {
        let mut blocks = self.blocks(Some(&[column]), READ_ROWS)?;
        let mut span: Option<(i64, i64)> = None;
        while let Some(block) = blocks.try_next().await? {
            let times = block.times(column)?;
            let times = times.as_primitive::<TimestampMicrosecondType>().values();
            let (Some(earliest), Some(latest)) = (times.iter().min(), times.iter().max()) else { continue };
            span = Some(span.map_or((*earliest, *latest), |(from, to)| (from.min(*earliest), to.max(*latest))));
        }
        if span.is_none() {
            // A definition that does not fit is one whether the spine has rows or not.
            self.no_rows().times(column)?;
        }
        Ok(span)
    }
}

/// All rows of a Parquet file. Most spines are one row group, so what is decoded at once are columns.
async fn decode_parquet(file: &ObjectFile, metadata: &ArrowReaderMetadata) -> Result<RecordBatch, OfflineError> {
    let schema = metadata.schema();
    let runtime = tokio::runtime::Handle::current();
    let decode = |column: usize| {
        let (runtime, file, metadata) = (runtime.clone(), file.clone(), metadata.clone());
        async move {
            let work = move || runtime.block_on(decode_column(file, metadata, column));
            let decoded = tokio::task::spawn_blocking(work).await;
            decoded.unwrap_or_else(|error| Err(OfflineError::Worker(error.to_string())))
        }
    };
    let columns = futures::stream::iter((0..schema.fields().len()).map(decode)).buffered(COLUMNS_AT_ONCE);
    Ok(RecordBatch::try_new(schema.clone(), columns.try_collect().await?)?)
}

async fn decode_column(
    file: ObjectFile,
    metadata: ArrowReaderMetadata,
    column: usize,
) -> Result<ArrayRef, OfflineError> {
    let rows = usize::try_from(metadata.metadata().file_metadata().num_rows()).unwrap_or_default();
    let data_type = metadata.schema().field(column).data_type().clone();
    let builder = ParquetRecordBatchStreamBuilder::new_with_metadata(file, metadata);
    let mask = ProjectionMask::roots(builder.parquet_schema(), [column]);
    // A row group in one piece: none of it is copied to put pieces together.
    let batches = builder.with_projection(mask).with_batch_size(rows.max(1)).build()?;
    let batches: Vec<RecordBatch> = batches.try_collect().await?;
    let parts: Vec<&dyn Array> = batches.iter().map(|batch| batch.column(0).as_ref()).collect();
    match batches.as_slice() {
        [] => Ok(new_empty_array(&data_type)),
        [whole] => Ok(Arc::clone(whole.column(0))),
        _ => Ok(arrow_select::concat::concat(&parts)?),
    }
}

/// The same rows in batches of exactly this many, but for the last.
fn in_blocks(
    batches: BoxStream<'static, Result<RecordBatch, OfflineError>>,
    block_rows: usize,
) -> BoxStream<'static, Result<SpineBlock, OfflineError>> {
    let gathered = Gathered { batches, pending: Vec::new(), pending_rows: 0, next_row: 0, block_rows };
    futures::stream::try_unfold(gathered, |mut gathered| async move {
        Ok(gathered.next().await?.map(|block| (block, gathered)))
    })
    .boxed()
}

struct Gathered {
    batches: BoxStream<'static, Result<RecordBatch, OfflineError>>,
    pending: Vec<RecordBatch>,
    pending_rows: usize,
    next_row: usize,
    block_rows: usize,
}

impl Gathered {
    async fn next(&mut self) -> Result<Option<SpineBlock>, OfflineError> {
        while self.pending_rows < self.block_rows {
            let Some(batch) = self.batches.try_next().await? else { break };
            self.pending_rows += batch.num_rows();
            self.pending.push(batch);
        }
        let Some(first) = self.pending.first() else { return Ok(None) };
        let schema = first.schema();
        let whole = arrow_select::concat::concat_batches(&schema, &self.pending)?;
        let taken: Range<usize> = 0..self.block_rows.min(whole.num_rows());
        let rest = whole.num_rows() - taken.end;
        self.pending.clear();
        self.pending_rows = rest;
        if rest > 0 {
            self.pending.push(whole.slice(taken.end, rest));
        }
        let block = SpineBlock { first_row: self.next_row, rows: whole.slice(0, taken.end) };
        self.next_row += taken.end;
        Ok(Some(block))
    }
}
