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
use super::{Cut, PartitionValues, ReadBatch, RowStream, UnreadableRow};
use crate::error::OfflineError;
use crate::ledger::ChunkPart;

const UNREADABLE: &str = "the line is no JSON object";

pub(super) async fn cut(file: &SourceFile, chunk_rows: u64) -> Result<Vec<Cut>, OfflineError> {
    records::cut(file, Splitter::Lines, 0, chunk_rows).await
}

struct Reader {
    records: Records,
    wanted: SchemaRef,
    columns: Vec<Source>,
    clock: Clock,
    next_row: i64,
    batch_rows: usize,
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
    batch_rows: usize,
) -> Result<RowStream, OfflineError> {
    let columns = wanted.fields().iter().map(|field| match partition.get(field.name()) {
        Some(value) => Source::Partition(value.clone()),
        None => Source::Member(DataType::from_arrow(field.data_type()).unwrap_or(DataType::Utf8), Vec::new()),
    });
    let columns = columns.collect();
    let records = Records::open(file, part, Splitter::Lines).await?;
    let reader = Reader { records, wanted, columns, clock, next_row: first_row, batch_rows };
    Ok(futures::stream::try_unfold(reader, next).boxed())
}

async fn next(mut reader: Reader) -> Result<Option<(ReadBatch, Reader)>, OfflineError> {
    Ok(reader.batch().await?.map(|batch| (batch, reader)))
}

impl Reader {
    async fn batch(&mut self) -> Result<Option<ReadBatch>, OfflineError> {
        let (mut rows, mut faults, mut unreadable) = (Vec::new(), Vec::new(), Vec::new());
        while rows.len() + unreadable.len() < self.batch_rows {
            let Some(record) = self.records.next().await? else { break };
            let row = self.next_row;
            self.next_row += 1;
            let members = match serde_json::from_slice::<Json>(record.field(0).0) {
                Ok(Json::Object(members)) => members,
                other => {
                    let reason = other.map_or_else(|error| error.to_string(), |_| "it is another value".to_owned());
                    let fault = Fault { kind: UNREADABLE.to_owned(), reason: format!("{UNREADABLE}: {reason}") };
                    unreadable.push(UnreadableRow { sequence: row, fault, text: record.text(&Splitter::Lines) });
                    continue;
                }
            };
            rows.push(row);
            for (field, column) in self.wanted.fields().iter().zip(&mut self.columns) {
                let Source::Member(data_type, values) = column else { continue };
                let member = members.get(field.name()).unwrap_or(&Json::Null);
                let value = value_of(*data_type, member, self.clock).unwrap_or_else(|reason| {
                    let kind = super::unreadable_value(field);
                    let reason = format!("{kind}: {reason}");
                    faults.push((row, field.name().clone(), Fault { kind, reason }));
                    Value::Null
                });
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

/// As a request reads it, and besides times without a zone where the source says where its clock stood.
fn value_of(data_type: DataType, member: &Json, clock: Clock) -> Result<Value, String> {
    match (data_type, member) {
        (DataType::Timestamp, Json::String(text)) => clock.instant_us(text).map(Value::Timestamp),
        _ => value_from_json(data_type, member).map_err(|error| error.to_string()),
    }
}
