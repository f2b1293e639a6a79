//! CSV: a line of names, then rows of text in declared types.

use arrow_array::{ArrayRef, Int64Array, RecordBatch, RecordBatchOptions, new_null_array};
use arrow_schema::SchemaRef;
use eadem_values::DataType;
use futures::StreamExt;

use super::files::{SourceFile, file_error};
use super::reader::Fault;
use super::records::{self, RECORD_BYTES_MAX, Record, Records, Splitter};
use super::text::{Clock, TextColumn, repeated};
use super::{Cut, PartitionValues, Portions, ReadBatch, RowStream, UnreadableRow, bytes_of_fault};
use crate::error::OfflineError;
use crate::ledger::ChunkPart;
use crate::spec::CsvFormat;

/// Bytes of a value in its column beside its text: a number, or an end and whether it is null.
const VALUE_BYTES: usize = 9;

const UNREADABLE: &str = "the row cannot be read";

fn splitter(format: &CsvFormat) -> Splitter {
    Splitter::Csv { delimiter: format.delimiter }
}

fn headers(format: &CsvFormat) -> u64 {
    u64::from(format.names.is_none())
}

/// The names of a file's columns.
pub(super) async fn names(file: &SourceFile, format: &CsvFormat) -> Result<Vec<String>, OfflineError> {
    if let Some(names) = &format.names {
        return Ok(names.clone());
    }
    let mut records = Records::open(file, &ChunkPart::Whole, splitter(format), RECORD_BYTES_MAX).await?;
    let Some(header) = records.next().await? else {
        return Err(file_error(file, "is empty: its first line must name the columns"));
    };
    if let Some(fault) = header.fault {
        return Err(file_error(file, format!("its first line, which names the columns, cannot be read: {fault}")));
    }
    (0..header.len())
        .map(|at| match std::str::from_utf8(header.field(at).0) {
            Ok("") => Err(file_error(file, format!("column {} has no name in the first line", at + 1))),
            Ok(name) => Ok(name.to_owned()),
            Err(_) => Err(file_error(file, "its first line, which names the columns, is not UTF-8")),
        })
        .collect()
}

pub(super) async fn cut(
    file: &SourceFile,
    format: &CsvFormat,
    chunk_rows: u64,
    record_bytes_max: usize,
) -> Result<Vec<Cut>, OfflineError> {
    records::cut(file, splitter(format), headers(format), chunk_rows, record_bytes_max).await
}

/// Rows of CSV on their way into columns.
struct Reader {
    records: Records,
    null: String,
    fields: usize,
    wanted: SchemaRef,
    columns: Vec<Source>,
    next_row: i64,
    portions: Portions,
}

/// Where a wanted column comes from.
enum Source {
    Field(usize, TextColumn),
    Partition(ArrayRef),
    Nowhere,
}

pub(super) async fn open(
    file: &SourceFile,
    format: &CsvFormat,
    (part, first_row): (&ChunkPart, i64),
    wanted: SchemaRef,
    partition: &PartitionValues,
    clock: Clock,
    portions: Portions,
) -> Result<RowStream, OfflineError> {
    let names = names(file, format).await?;
    let columns = wanted.fields().iter().map(|field| {
        match (names.iter().position(|name| name == field.name()), partition.get(field.name())) {
            (Some(at), _) => {
                let data_type = DataType::from_arrow(field.data_type()).unwrap_or(DataType::Utf8);
                Source::Field(at, TextColumn::new(data_type, clock))
            }
            (None, Some(value)) => Source::Partition(value.clone()),
            (None, None) => Source::Nowhere,
        }
    });
    let mut reader = Reader {
        records: Records::open(file, part, splitter(format), portions.record_bytes).await?,
        null: format.null.clone(),
        fields: names.len(),
        columns: columns.collect(),
        wanted,
        next_row: first_row,
        portions,
    };
    if matches!(part, ChunkPart::Whole) && headers(format) > 0 {
        reader.records.next().await?;
    }
    Ok(futures::stream::try_unfold(reader, next).boxed())
}

async fn next(mut reader: Reader) -> Result<Option<(ReadBatch, Reader)>, OfflineError> {
    Ok(reader.batch().await?.map(|batch| (batch, reader)))
}

impl Reader {
    async fn batch(&mut self) -> Result<Option<ReadBatch>, OfflineError> {
        let (mut rows, mut faults, mut unreadable) = (Vec::new(), Vec::new(), Vec::new());
        let splitter = self.records.splitter().clone();
        let mut bytes = 0;
        while rows.len() + unreadable.len() < self.portions.rows && bytes < self.portions.bytes {
            let Some(record) = self.records.next().await? else { break };
            let row = self.next_row;
            self.next_row += 1;
            if let Some(reason) = what_is_wrong(record, self.fields) {
                let fault = Fault { kind: UNREADABLE.to_owned(), reason: format!("{UNREADABLE}: {reason}") };
                let text = record.text(&splitter);
                bytes += bytes_of_fault(&fault) + text.len();
                unreadable.push(UnreadableRow { sequence: row, fault, text });
                continue;
            }
            rows.push(row);
            bytes += VALUE_BYTES * self.columns.len();
            for (field, column) in self.wanted.fields().iter().zip(&mut self.columns) {
                let Source::Field(at, column) = column else { continue };
                let (text, quoted) = record.field(*at);
                bytes += text.len();
                let pushed = match std::str::from_utf8(text) {
                    Ok(text) if !quoted && text == self.null => {
                        column.push_null();
                        Ok(())
                    }
                    Ok(text) => column.push(text),
                    Err(_) => {
                        column.push_null();
                        Err("is not UTF-8".to_owned())
                    }
                };
                if let Err(reason) = pushed {
                    let kind = super::unreadable_value(field);
                    let fault = Fault { reason: format!("{kind}: {reason}"), kind };
                    bytes += bytes_of_fault(&fault);
                    faults.push((row, field.name().clone(), fault));
                }
            }
        }
        if rows.is_empty() && unreadable.is_empty() {
            return Ok(None);
        }
        let count = rows.len();
        let columns = self.wanted.fields().iter().zip(&mut self.columns).map(|(field, column)| match column {
            Source::Field(_, column) => Ok(column.finish()),
            Source::Partition(value) => repeated(value, count),
            Source::Nowhere => Ok(new_null_array(field.data_type(), count)),
        });
        let columns = columns.collect::<Result<Vec<ArrayRef>, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        let batch = RecordBatch::try_new_with_options(self.wanted.clone(), columns, &options)?;
        Ok(Some(ReadBatch { rows: batch, sequence: Int64Array::from(rows), faults, unreadable }))
    }
}

fn what_is_wrong(record: &Record, fields: usize) -> Option<String> {
    if let Some(fault) = record.fault {
        return Some(fault.to_owned());
    }
    (record.len() != fields).then(|| format!("it has {} fields, the columns are {fields}", record.len()))
}
