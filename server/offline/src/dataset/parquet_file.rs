//! A training set as a Parquet file, encoded a row group at a time into memory.
//!
//! Statuses that features share are one and the same column under several names. Such a column is encoded once for each row
//! group, and its bytes stand in the file under each of the names: encoding 1 M statuses of ten features one by one took as
//! long as encoding the features.

use std::collections::{HashSet, VecDeque};
use std::hash::Hash;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType as ArrowType, Field, FieldRef, Schema, SchemaRef};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{
    ArrowColumnChunk, ArrowColumnWriter, ArrowLeafColumn, ArrowRowGroupWriterFactory, compute_leaves,
};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::{ColumnDescPtr, ColumnPath};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::output::ROW_GROUP_ROWS;
use crate::error::OfflineError;
use crate::pieces::Pieces;
use crate::shrink::store_as_they_are;

/// Rows by which it is told whether the texts or times of a column mostly differ.
const DISTINCT_SAMPLE_ROWS: usize = 8_192;

/// Writes one file.
pub(super) struct ParquetFile {
    writer: SerializedFileWriter<Pieces>,
    columns: ArrowRowGroupWriterFactory,
    schema: SchemaRef,
    row_groups: usize,
}

/// What stands at a place of a row group.
enum Place<'a> {
    /// A column that stands there more than once.
    Shared(&'a ArrayRef, ColumnDescPtr),
    /// The next of those that stand there once.
    Own,
}

/// Columns on their way into a row group, in their order. While one is encoded here, another thread encodes the next: of what a
/// training set is made by, this takes longest.
struct Encoded<'a> {
    columns: VecDeque<OwnColumn>,
    ahead: Option<JoinHandle<Result<Vec<ArrowColumnChunk>, ParquetError>>>,
    runtime: &'a Handle,
}

impl Encoded<'_> {
    /// The leaves of the next column.
    fn next(&mut self) -> Result<Vec<ArrowColumnChunk>, OfflineError> {
        if let Some(ahead) = self.ahead.take() {
            let encoded = self.runtime.block_on(ahead);
            return Ok(encoded.map_err(|error| OfflineError::Worker(error.to_string()))??);
        }
        let here = self.columns.pop_front().ok_or_else(|| lost("a column"))?;
        self.ahead = self.columns.pop_front().map(|next| self.runtime.spawn_blocking(move || next.encode()));
        Ok(here.encode()?)
    }
}

/// A column that stands in a row group once, and what each of its leaves is written with.
struct OwnColumn {
    field: FieldRef,
    values: ArrayRef,
    writers: Vec<ArrowColumnWriter>,
}

impl OwnColumn {
    fn encode(self) -> Result<Vec<ArrowColumnChunk>, ParquetError> {
        let leaves = compute_leaves(&self.field, &self.values)?;
        let encode = |(leaf, mut writer): (ArrowLeafColumn, ArrowColumnWriter)| {
            writer.write(&leaf)?;
            writer.close()
        };
        leaves.into_iter().zip(self.writers).map(encode).collect()
    }
}

/// A column that stands in a row group more than once, encoded.
struct SharedColumn {
    column: ArrayRef,
    bytes: Bytes,
    metadata: ParquetMetaData,
}

impl ParquetFile {
    /// A file that begins with these rows, which are not written yet.
    ///
    /// # Errors
    /// Columns of a type that Parquet does not have.
    pub(super) fn new(first: &RecordBatch) -> Result<Self, OfflineError> {
        let schema = first.schema();
        let writer = ArrowWriter::try_new(Pieces::default(), schema.clone(), Some(properties(first)?))?;
        let (writer, columns) = writer.into_serialized_writer()?;
        Ok(Self { writer, columns, schema, row_groups: 0 })
    }

    /// One row group, whole. Not on a thread of the runtime's own, which it waits for.
    ///
    /// # Errors
    /// Rows of another schema.
    pub(super) fn write(&mut self, rows: &RecordBatch, runtime: &Handle) -> Result<(), OfflineError> {
        let writers = self.columns.create_column_writers(self.row_groups)?;
        let leaves = self.writer.schema_descr();
        let mut writers_of_columns: Vec<Vec<ArrowColumnWriter>> = self.schema.fields().iter().map(|_| vec![]).collect();
        for (leaf, writer) in writers.into_iter().enumerate() {
            writers_of_columns[leaves.get_column_root_idx(leaf)].push(writer);
        }
        let mut places: Vec<Place> = Vec::new();
        let mut columns = VecDeque::new();
        let mut leaf = 0;
        for ((field, values), writers) in self.schema.fields().iter().zip(rows.columns()).zip(writers_of_columns) {
            let first_leaf = leaf;
            leaf += writers.len();
            if is_shared(values, rows) {
                places.push(Place::Shared(values, leaves.column(first_leaf)));
                continue;
            }
            places.push(Place::Own);
            columns.push_back(OwnColumn { field: field.clone(), values: values.clone(), writers });
        }
        let mut encoded = Encoded { columns, ahead: None, runtime };
        let mut shared: Vec<SharedColumn> = Vec::new();
        let mut row_group = self.writer.next_row_group()?;
        for place in places {
            let Place::Shared(column, descriptor) = place else {
                for leaf in encoded.next()? {
                    leaf.append_to_row_group(&mut row_group)?;
                }
                continue;
            };
            let known = shared.iter().position(|known| Arc::ptr_eq(&known.column, column));
            if known.is_none() {
                shared.push(SharedColumn::encode(column)?);
            }
            let column = &shared[known.unwrap_or(shared.len() - 1)];
            row_group.append_column(&column.bytes, column.as_column_of(descriptor)?)?;
        }
        row_group.close()?;
        self.row_groups += 1;
        Ok(())
    }

    /// Writes what stands at the end of a file.
    ///
    /// # Errors
    /// A fault of the writer.
    pub(super) fn finish(&mut self) -> Result<(), OfflineError> {
        self.writer.finish()?;
        Ok(())
    }

    /// The bytes since the last call.
    pub(super) fn take(&mut self) -> Vec<Bytes> {
        self.writer.inner_mut().take()
    }
}

fn lost(what: &str) -> OfflineError {
    ParquetError::General(format!("{what} is lost")).into()
}

/// Whether these statuses are those of several features.
fn is_shared(column: &ArrayRef, rows: &RecordBatch) -> bool {
    let is_status = matches!(column.data_type(), ArrowType::Dictionary(..));
    is_status && rows.columns().iter().filter(|other| Arc::ptr_eq(other, column)).count() > 1
}

impl SharedColumn {
    /// In a file of its own.
    fn encode(column: &ArrayRef) -> Result<Self, OfflineError> {
        let schema = Arc::new(Schema::new(vec![Field::new("status", column.data_type().clone(), false)]));
        let rows = RecordBatch::try_new(schema.clone(), vec![Arc::clone(column)])?;
        let mut writer = ArrowWriter::try_new(Vec::new(), schema, Some(properties(&rows)?))?;
        writer.write(&rows)?;
        let metadata = writer.finish()?;
        let bytes = Bytes::from(std::mem::take(writer.inner_mut()));
        Ok(Self { column: Arc::clone(column), bytes, metadata })
    }

    /// What a writer of this column would have said of it.
    fn as_column_of(&self, descriptor: ColumnDescPtr) -> Result<ColumnCloseResult, OfflineError> {
        let row_group = self.metadata.row_groups().first().ok_or_else(|| lost("an encoded row group"))?;
        let own = row_group.column(0);
        let metadata = ColumnChunkMetaData::builder(descriptor)
            .set_compression_codec(own.compression_codec())
            .set_encodings_mask(*own.encodings_mask())
            .set_total_compressed_size(own.compressed_size())
            .set_total_uncompressed_size(own.uncompressed_size())
            .set_num_values(own.num_values())
            .set_data_page_offset(own.data_page_offset())
            .set_dictionary_page_offset(own.dictionary_page_offset())
            .set_unencoded_byte_array_data_bytes(own.unencoded_byte_array_data_bytes())
            .build()?;
        Ok(ColumnCloseResult {
            bytes_written: u64::try_from(own.compressed_size()).unwrap_or_default(),
            rows_written: self.column.len() as u64,
            metadata,
            bloom_filter: None,
            column_index: None,
            offset_index: None,
        })
    }
}

fn properties(first: &RecordBatch) -> Result<WriterProperties, OfflineError> {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_offset_index_disabled(true)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_created_by("eadem".to_owned());
    for (field, values) in first.schema().fields().iter().zip(first.columns()) {
        let column = ColumnPath::from(field.name().as_str());
        match field.data_type() {
            // Most of them differ: a dictionary would be built only to be thrown away, which takes half of the writer's time.
            ArrowType::Float32 | ArrowType::Float64 => {
                properties = properties.set_column_dictionary_enabled(column, false);
            }
            // Packed, their differences take a fifth less than zstd leaves of them. Times of which there are few, such as days, are
            // what zstd is better at.
            ArrowType::Timestamp(..) if mostly_differ(values) => {
                properties = properties
                    .set_column_dictionary_enabled(column.clone(), false)
                    .set_column_encoding(column.clone(), Encoding::DELTA_BINARY_PACKED)
                    .set_column_compression(column, Compression::UNCOMPRESSED);
            }
            ArrowType::Timestamp(..) => properties = properties.set_column_dictionary_enabled(column, false),
            ArrowType::Utf8 | ArrowType::Utf8View if mostly_differ(values) => {
                properties = properties.set_column_dictionary_enabled(column, false);
            }
            // The first and the last status by the alphabet tell a reader nothing.
            ArrowType::Dictionary(..) => {
                properties = properties.set_column_statistics_enabled(column, EnabledStatistics::None);
            }
            _ => {}
        }
    }
    Ok(store_as_they_are(properties, first).build())
}

/// Whether nearly all texts or times of a sample are different ones, as keys of entities are.
fn mostly_differ(column: &ArrayRef) -> bool {
    let sample = column.slice(0, column.len().min(DISTINCT_SAMPLE_ROWS));
    let distinct = match sample.data_type() {
        ArrowType::Utf8 => distinct(sample.as_string::<i32>().iter()),
        ArrowType::Utf8View => distinct(sample.as_string_view().iter()),
        // Whatever its unit, a time is so many of them.
        _ => match arrow_cast::cast(&sample, &ArrowType::Int64) {
            Ok(times) => distinct(times.as_primitive::<Int64Type>().iter()),
            Err(_) => 0,
        },
    };
    8 * distinct > 7 * sample.len()
}

fn distinct<T: Eq + Hash>(values: impl Iterator<Item = Option<T>>) -> usize {
    values.flatten().collect::<HashSet<T>>().len()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use arrow_array::{Float64Array, Int64Array, RecordBatchReader, StructArray, TimestampMicrosecondArray};
    use eadem_query::status_dictionary;
    use eadem_semantics::Status::{self, Expired, Missing, Null, Present};
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;

    /// Two features with the statuses of one view, two with those of another, and one with its own.
    fn rows(of_views: [&[Status]; 3]) -> RecordBatch {
        let [first, second, own] = of_views.map(status_dictionary);
        let values: ArrayRef = Arc::new(Float64Array::from_iter_values((0..own.len()).map(|row| row as f64)));
        let columns = [first.clone(), values, second.clone(), first, own, second];
        let named = columns.into_iter().enumerate().map(|(number, column)| (format!("c{number}"), column));
        RecordBatch::try_from_iter(named).unwrap()
    }

    /// A file of these rows, of which each batch is a row group.
    fn file_of(row_groups: &[RecordBatch]) -> Bytes {
        // Columns are encoded on threads of a runtime, and this thread waits for them.
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let mut file = ParquetFile::new(&row_groups[0]).unwrap();
        let mut pieces = Vec::new();
        for rows in row_groups {
            file.write(rows, runtime.handle()).unwrap();
            pieces.extend(file.take());
        }
        file.finish().unwrap();
        pieces.extend(file.take());
        pieces.concat().into()
    }

    /// All rows of a file.
    fn rows_of(reader: ParquetRecordBatchReaderBuilder<Bytes>) -> RecordBatch {
        let reader = reader.build().unwrap();
        let schema = reader.schema();
        let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
        arrow_select::concat::concat_batches(&schema, &batches).unwrap()
    }

    #[test]
    fn times_are_written_as_suits_them_and_read_as_they_were() {
        const DAY_US: i64 = 86_400_000_000;
        let scattered = |row: i64| row.wrapping_mul(0x5851_F42D_4C95_7F2D) >> 16;
        let column = |time: &dyn Fn(i64) -> i64| -> ArrayRef {
            let times: TimestampMicrosecondArray = (0..200_000).map(|row| (row % 9 > 0).then(|| time(row))).collect();
            Arc::new(times.with_timezone("UTC"))
        };
        // More columns than are encoded at once.
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..200_000));
        let columns = [
            ("differ", column(&scattered)),
            ("few", column(&|row| scattered(row).rem_euclid(30) * DAY_US)),
            ("number", numbers),
            ("differ_too", column(&|row| scattered(row + 7))),
        ];
        let rows = RecordBatch::try_from_iter(columns).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(file_of(std::slice::from_ref(&rows))).unwrap();
        let metadata = reader.metadata().row_group(0);
        let is_packed = |at: usize| metadata.column(at).encodings().any(|of| of == Encoding::DELTA_BINARY_PACKED);
        assert_eq!([is_packed(0), is_packed(1)], [true, false]);
        // Six bytes for a time at most, and two where there are few.
        assert!(metadata.column(0).compressed_size() < 6 * 200_000, "{:?}", metadata.column(0));
        assert!(metadata.column(1).compressed_size() < 2 * 200_000, "{:?}", metadata.column(1));
        assert_eq!(rows_of(reader), rows);
    }

    #[test]
    fn columns_that_stand_there_twice_are_read_as_they_were() {
        let row_groups = [
            rows([&[Present, Missing, Present], &[Expired, Expired, Null], &[Present, Null, Null]]),
            rows([&[Missing, Missing], &[Present, Present], &[Expired, Missing]]),
        ];
        let reader = ParquetRecordBatchReaderBuilder::try_new(file_of(&row_groups)).unwrap();
        assert_eq!(reader.metadata().num_row_groups(), 2);
        let read = rows_of(reader);
        for (number, column) in read.columns().iter().enumerate() {
            let written = row_groups.each_ref().map(|rows| rows.column(number).as_ref());
            let written = arrow_select::concat::concat(&written).unwrap();
            let as_texts = |column: &ArrayRef| arrow_cast::cast(column, &ArrowType::Utf8).unwrap();
            assert_eq!(&as_texts(column), &as_texts(&written), "column {number}");
        }
    }

    #[test]
    fn columns_of_several_leaves_stand_at_their_places() {
        let [shared, ..] = [[Present, Missing, Null]].map(|statuses| status_dictionary(&statuses));
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None, Some(3)]));
        let halves: ArrayRef = Arc::new(Float64Array::from(vec![0.5, 1.5, 2.5]));
        let both = StructArray::from(vec![
            (Arc::new(Field::new("number", ArrowType::Int64, true)), numbers.clone()),
            (Arc::new(Field::new("half", ArrowType::Float64, false)), halves.clone()),
        ]);
        let columns: [ArrayRef; 6] = [shared.clone(), Arc::new(both.clone()), halves, shared, Arc::new(both), numbers];
        let named = columns.into_iter().enumerate().map(|(number, column)| (format!("c{number}"), column));
        let rows = RecordBatch::try_from_iter(named).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(file_of(std::slice::from_ref(&rows))).unwrap();
        let read = rows_of(reader);
        for number in [1, 2, 4, 5] {
            assert_eq!(read.column(number), rows.column(number), "column {number}");
        }
        let as_texts = |rows: &RecordBatch| arrow_cast::cast(rows.column(3), &ArrowType::Utf8).unwrap();
        assert_eq!(&as_texts(&read), &as_texts(&rows));
    }
}
