//! JSON lines: an object each, of which the declared members are read.

use arrow_array::{ArrayRef, Int64Array, RecordBatch, RecordBatchOptions};
use arrow_schema::SchemaRef;
use eadem_values::{DataType, Value, array_from_values, value_from_json};
use futures::StreamExt;
use serde_json::Value as Json;

use super::files::SourceFile;
use super::reader::Fault;
use super::records::{self, Records, Splitter};
use super::text::{Clock, repeated};
use super::{Cut, PartitionValues, Portions, ReadBatch, RowStream, UnreadableRow, bytes_of_fault};
use crate::backfill::bytes_of_value;
use crate::error::OfflineError;
use crate::ledger::ChunkPart;

const UNREADABLE: &str = "the line is no JSON object";

/// Bytes that one of text becomes at most while it is read.
pub(crate) const TEXT_EXPANSION_MAX: usize = 256;

/// Bytes of what a comma parts from the one before, in a list or an object that has grown.
const TREE_MEMBER_BYTES: usize = 2 * (size_of::<(String, Json)>() + 16);
/// Bytes of a list of one value: it takes room for several.
const TREE_LIST_BYTES: usize = 4 * size_of::<Json>();
/// Bytes of an object of one member, with what it finds members by.
const TREE_OBJECT_BYTES: usize = 2 * TREE_LIST_BYTES;

pub(super) async fn cut(file: &SourceFile, chunk_rows: u64, record_bytes_max: usize) -> Result<Vec<Cut>, OfflineError> {
    records::cut(file, Splitter::Lines, 0, chunk_rows, record_bytes_max).await
}

struct Reader {
    records: Records,
    wanted: SchemaRef,
    columns: Vec<Source>,
    clock: Clock,
    next_row: i64,
    portions: Portions,
}

/// Where a wanted column comes from.
enum Source {
    Member(DataType, Vec<Value>),
    Partition(ArrayRef),
}

pub(super) async fn open(
    file: &SourceFile,
    (part, first_row): (&ChunkPart, i64),
    wanted: SchemaRef,
    partition: &PartitionValues,
    clock: Clock,
    portions: Portions,
) -> Result<RowStream, OfflineError> {
    let columns = wanted.fields().iter().map(|field| match partition.get(field.name()) {
        Some(value) => Source::Partition(value.clone()),
        None => Source::Member(DataType::from_arrow(field.data_type()).unwrap_or(DataType::Utf8), Vec::new()),
    });
    let columns = columns.collect();
    let records = Records::open(file, part, Splitter::Lines, portions.record_bytes).await?;
    let reader = Reader { records, wanted, columns, clock, next_row: first_row, portions };
    Ok(futures::stream::try_unfold(reader, next).boxed())
}

async fn next(mut reader: Reader) -> Result<Option<(ReadBatch, Reader)>, OfflineError> {
    Ok(reader.batch().await?.map(|batch| (batch, reader)))
}

impl Reader {
    async fn batch(&mut self) -> Result<Option<ReadBatch>, OfflineError> {
        let (mut rows, mut faults, mut unreadable) = (Vec::new(), Vec::new(), Vec::new());
        let mut bytes = 0;
        while rows.len() + unreadable.len() < self.portions.rows && bytes < self.portions.bytes {
            let Some(record) = self.records.next().await? else { break };
            let line = record.field(0).0;
            let is_short = line.len() <= self.portions.tree_bytes / TEXT_EXPANSION_MAX;
            let tree_bytes = if is_short { 0 } else { tree_bytes(line) };
            if tree_bytes > self.portions.tree_bytes {
                let what = format!("row {} takes {tree_bytes} bytes while it is read.", self.next_row);
                return Err(self.records.no_room(&what, self.portions.tree_bytes));
            }
            let row = self.next_row;
            self.next_row += 1;
            let members = match serde_json::from_slice::<Json>(line) {
                Ok(Json::Object(members)) => members,
                other => {
                    let reason = other.map_or_else(|error| error.to_string(), |_| "it is another value".to_owned());
                    let fault = Fault { kind: UNREADABLE.to_owned(), reason: format!("{UNREADABLE}: {reason}") };
                    let text = record.text(&Splitter::Lines);
                    bytes += bytes_of_fault(&fault) + text.len();
                    unreadable.push(UnreadableRow { sequence: row, fault, text });
                    continue;
                }
            };
            rows.push(row);
            for (field, column) in self.wanted.fields().iter().zip(&mut self.columns) {
                let Source::Member(data_type, values) = column else { continue };
                let member = members.get(field.name()).unwrap_or(&Json::Null);
                let value = value_of(*data_type, member, self.clock).unwrap_or_else(|reason| {
                    let kind = super::unreadable_value(field);
                    let fault = Fault { reason: format!("{kind}: {reason}"), kind };
                    bytes += bytes_of_fault(&fault);
                    faults.push((row, field.name().clone(), fault));
                    Value::Null
                });
                bytes += bytes_of_value(&value);
                values.push(value);
            }
        }
        if rows.is_empty() && unreadable.is_empty() {
            return Ok(None);
        }
        let count = rows.len();
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.columns.len());
        for column in &mut self.columns {
            columns.push(match column {
                Source::Member(data_type, values) => array_from_values(*data_type, std::mem::take(values).iter())?,
                Source::Partition(value) => repeated(value, count)?,
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        let batch = RecordBatch::try_new_with_options(self.wanted.clone(), columns, &options)?;
        Ok(Some(ReadBatch { rows: batch, sequence: Int64Array::from(rows), faults, unreadable }))
    }
}

/// About the most that the values of this text take once they are read.
fn tree_bytes(text: &[u8]) -> usize {
    let (mut bytes, mut in_text, mut is_escaped) = (text.len(), false, false);
    for byte in text {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = in_text,
            b'"' => in_text = !in_text,
            b'{' if !in_text => bytes += TREE_OBJECT_BYTES,
            b'[' if !in_text => bytes += TREE_LIST_BYTES,
            b',' if !in_text => bytes += TREE_MEMBER_BYTES,
            _ => {}
        }
    }
    bytes
}

/// As a request reads it, and besides times without a zone where the source says where its clock stood.
fn value_of(data_type: DataType, member: &Json, clock: Clock) -> Result<Value, String> {
    match (data_type, member) {
        (DataType::Timestamp, Json::String(text)) => clock.instant_us(text).map(Value::Timestamp),
        _ => value_from_json(data_type, member).map_err(|error| error.to_string()),
    }
}
