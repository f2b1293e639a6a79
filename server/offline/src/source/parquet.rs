//! Parquet files: their footers, their row groups, their rows in the columns of the source.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use ::parquet::arrow::ProjectionMask;
use ::parquet::arrow::arrow_reader::ArrowReaderMetadata;
use arrow_array::{ArrayRef, Int64Array, RecordBatch, RecordBatchOptions, new_null_array};
use arrow_schema::SchemaRef;
use futures::TryStreamExt;

use super::files::{SourceFile, file_error};
use super::text::repeated;
use super::unite::in_type;
use super::{Cut, PartitionValues, ReadBatch, RowStream};
use crate::error::OfflineError;
use crate::ledger::ChunkPart;
use crate::object_file::{ObjectFile, Scan};

/// Bytes of footers that are kept between planning and reading. Those beyond are read again.
const FOOTER_BYTES_MAX: usize = 64 << 20;

/// Footers that were read, so that planning and reading a file open it once.
#[derive(Debug, Default)]
pub(crate) struct Footers {
    kept: Mutex<(usize, HashMap<String, ArrowReaderMetadata>)>,
}

impl Footers {
    pub(crate) async fn get(&self, file: &SourceFile) -> Result<ArrowReaderMetadata, OfflineError> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).1.get(&file.url).cloned();
        if let Some(footer) = kept {
            return Ok(footer);
        }
        let mut reader = reader_of(file);
        let footer = ArrowReaderMetadata::load_async(&mut reader, Default::default())
            .await
            .map_err(|error| file_error(file, format!("not a complete Parquet file: {error}")))?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = footer.metadata().memory_size();
        if kept.0.saturating_add(bytes) <= FOOTER_BYTES_MAX {
            kept.0 += bytes;
            kept.1.insert(file.url.clone(), footer.clone());
        }
        Ok(footer)
    }
}

fn reader_of(file: &SourceFile) -> ObjectFile {
    ObjectFile::at(&file.location, file.bytes)
}

/// Consecutive row groups, put together up to about `chunk_rows` rows.
pub(super) fn cut(footer: &ArrowReaderMetadata, chunk_rows: u64) -> Vec<Cut> {
    let mut cuts = Vec::new();
    let mut open: Option<(usize, Cut)> = None;
    let mut first_row = 0;
    for (group, row_group) in footer.metadata().row_groups().iter().enumerate() {
        let fresh = Cut { part: ChunkPart::RowGroups { first: group, count: 0 }, first_row, rows: 0 };
        let (first, cut) = open.get_or_insert((group, fresh));
        cut.part = ChunkPart::RowGroups { first: *first, count: group + 1 - *first };
        let rows = u64::try_from(row_group.num_rows()).unwrap_or_default();
        cut.rows += rows;
        first_row += rows;
        if cut.rows >= chunk_rows {
            cuts.extend(open.take().map(|(_, cut)| cut));
        }
    }
    cuts.extend(open.map(|(_, cut)| cut));
    cuts
}

/// The rows of some row groups, in the columns `wanted`.
pub(super) fn open(
    file: &SourceFile,
    footer: ArrowReaderMetadata,
    row_groups: std::ops::Range<usize>,
    first_row: i64,
    wanted: SchemaRef,
    partition: PartitionValues,
    batch_rows: usize,
) -> Result<RowStream, OfflineError> {
    let file_schema = footer.schema().clone();
    let roots: Vec<usize> = (0..file_schema.fields().len())
        .filter(|column| wanted.field_with_name(file_schema.field(*column).name()).is_ok())
        .collect();
    let columns = ProjectionMask::roots(footer.parquet_schema(), roots);
    let row_groups = Some(row_groups.collect());
    let scan = Scan { metadata: footer, columns, row_groups, rows: None, batch_rows };
    let batches = reader_of(file).scan(scan).map_err(|error| file_error(file, error))?;
    let failed = file.clone();
    let mut next_row = first_row;
    let batches = batches.map_err(move |error| file_error(&failed, error)).and_then(move |batch| {
        let first_row = next_row;
        next_row += batch.num_rows() as i64;
        futures::future::ready(in_schema(&batch, first_row, &wanted, &partition))
    });
    Ok(Box::pin(batches))
}

/// What was read of a file, in the columns of the source.
fn in_schema(
    batch: &RecordBatch,
    first_row: i64,
    wanted: &SchemaRef,
    partition: &PartitionValues,
) -> Result<ReadBatch, OfflineError> {
    let rows = batch.num_rows();
    let sequence = Int64Array::from_iter_values(first_row..first_row + rows as i64);
    let mut faults = Vec::new();
    let columns = wanted
        .fields()
        .iter()
        .map(|field| {
            let read = match (batch.column_by_name(field.name()), partition.get(field.name())) {
                (Some(column), _) => column.clone(),
                (None, Some(value)) => repeated(value, rows)?,
                (None, None) => return Ok(new_null_array(field.data_type(), rows)),
            };
            in_type(&read, field, &sequence, &mut faults)
        })
        .collect::<Result<Vec<ArrayRef>, OfflineError>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    let rows = RecordBatch::try_new_with_options(wanted.clone(), columns, &options)?;
    Ok(ReadBatch { rows, sequence, faults, unreadable: Vec::new() })
}
