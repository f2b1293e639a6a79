//! A spine that is gone through again and again, a block of rows at a time: in memory if it is small, else from its copy in
//! the store.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::TimestampMicrosecondType;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::SchemaRef;
use eadem_values::DataType;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};

use super::{KeptSpine, Spine, SpineFormat, check_kept, column_of, no_column};
use crate::decode_thread::on_own_thread;
use crate::error::OfflineError;
use crate::location::OfflineStore;
use crate::object_file::{ObjectFile, Scan};

/// A spine may take this part of a job's memory before it is read from its copy, again for each use.
const MEMORY_SHARE: usize = 8;

/// Rows of one read of a file.
const READ_ROWS: usize = 65_536;

/// Columns of a spine that are decoded at once.
const COLUMNS_AT_ONCE: usize = 2;

/// Rows of a column that are decoded in one piece: a row group of most writers.
const DECODED_ROWS_MAX: usize = 1 << 20;

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
            let mut file = ObjectFile::at(&place, bytes);
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

    /// How many rows one block may have that takes no more memory than the reader has anyway; `otherwise`, where blocks are read.
    pub(crate) fn block_rows_max(&self, otherwise: usize) -> usize {
        match &self.rows {
            Rows::Memory(rows) => rows.num_rows().max(1),
            Rows::Parquet { .. } => otherwise,
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
                let mask = match columns {
                    Some(columns) => ProjectionMask::roots(metadata.parquet_schema(), columns),
                    None => ProjectionMask::all(),
                };
                let scan = Scan::of_columns(metadata.clone(), mask, READ_ROWS.min(block_rows));
                let batches = file.clone().scan(scan).map_err(failed.clone())?;
                Ok(in_blocks(batches.map_err(failed).boxed(), block_rows))
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
    let decode = |column| on_own_thread(decode_column(file.clone(), metadata.clone(), column));
    let columns = futures::stream::iter((0..schema.fields().len()).map(decode)).buffered(COLUMNS_AT_ONCE);
    Ok(RecordBatch::try_new(schema.clone(), columns.try_collect().await?)?)
}

async fn decode_column(
    file: ObjectFile,
    metadata: ArrowReaderMetadata,
    column: usize,
) -> Result<ArrayRef, OfflineError> {
    let rows_of_groups = metadata.metadata().row_groups().iter().map(|group| group.num_rows());
    // A row group in one piece, so that none of it is copied to put pieces together. The reader makes room for so many rows
    // before it sees any, so that a file must not be able to say any number.
    let rows = rows_of_groups.max().and_then(|rows| usize::try_from(rows).ok()).unwrap_or_default();
    let columns = ProjectionMask::roots(metadata.parquet_schema(), [column]);
    let schema = Arc::new(metadata.schema().project(&[column])?);
    let scan = Scan::of_columns(metadata, columns, rows.clamp(1, DECODED_ROWS_MAX));
    let batches: Vec<RecordBatch> = file.scan(scan)?.try_collect().await?;
    Ok(Arc::clone(arrow_select::concat::concat_batches(&schema, &batches)?.column(0)))
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

#[cfg(test)]
mod tests {
    use arrow_array::{Int64Array, StringArray};
    use parquet::arrow::ArrowWriter;
    use parquet::file::metadata::{FileMetaData, ParquetMetaDataBuilder, ParquetMetaDataWriter};
    use parquet::file::properties::WriterProperties;

    use super::*;
    use crate::location::Location;

    type Tested = Result<RecordBatch, Box<dyn std::error::Error>>;

    /// Rows, and a file of them in groups of 400.
    fn rows_and_file() -> Result<(RecordBatch, Vec<u8>), Box<dyn std::error::Error>> {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter((0..1_000).map(|row| (row % 7 > 0).then_some(row))));
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values((0..1_000).map(|row| format!("user {row}"))));
        let rows = RecordBatch::try_from_iter([("number", numbers), ("text", texts)])?;
        let properties = WriterProperties::builder().set_max_row_group_row_count(Some(400)).build();
        let mut writer = ArrowWriter::try_new(Vec::new(), rows.schema(), Some(properties))?;
        writer.write(&rows)?;
        Ok((rows, writer.into_inner()?))
    }

    async fn decoded(bytes: &[u8]) -> Tested {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("spine.parquet");
        std::fs::write(&path, bytes)?;
        let place = Location::parse(&path.display().to_string())?;
        let mut file = ObjectFile::at(&place, bytes.len() as u64);
        let metadata = ArrowReaderMetadata::load_async(&mut file, ArrowReaderOptions::new()).await?;
        Ok(decode_parquet(&file, &metadata).await?)
    }

    /// The same file, whose end says that each of its row groups has so many rows.
    fn with_rows_said(bytes: &[u8], rows: i64) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
        let bytes = bytes::Bytes::copy_from_slice(bytes);
        let metadata = ArrowReaderMetadata::load(&bytes, ArrowReaderOptions::new())?;
        let metadata = metadata.metadata();
        let said = metadata.file_metadata();
        let of_file = FileMetaData::new(
            said.version(),
            rows * metadata.num_row_groups() as i64,
            said.created_by().map(str::to_owned),
            said.key_value_metadata().cloned(),
            said.schema_descr_ptr(),
            None,
        );
        let groups = metadata.row_groups().iter().map(|group| group.clone().into_builder().set_num_rows(rows).build());
        let groups = groups.collect::<parquet::errors::Result<Vec<_>>>()?;
        let metadata = ParquetMetaDataBuilder::new(of_file).set_row_groups(groups).build();
        // The old end stands in between, where nobody looks.
        let mut changed = bytes.to_vec();
        let mut end = Vec::new();
        ParquetMetaDataWriter::new(&mut end, &metadata).finish()?;
        changed.append(&mut end);
        Ok(changed)
    }

    #[tokio::test]
    async fn columns_are_whole_whatever_the_row_groups() -> Result<(), Box<dyn std::error::Error>> {
        let (rows, file) = rows_and_file()?;
        assert_eq!(decoded(&file).await?, rows);
        Ok(())
    }

    #[tokio::test]
    async fn a_file_that_says_more_rows_than_it_has_gets_no_room_for_them() -> Result<(), Box<dyn std::error::Error>> {
        let (rows, file) = rows_and_file()?;
        for said in [1 << 40, i64::MAX / 4] {
            assert_eq!(decoded(&with_rows_said(&file, said)?).await?, rows, "{said} rows in each row group");
        }
        Ok(())
    }
}
