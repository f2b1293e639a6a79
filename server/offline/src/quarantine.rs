//! Refused rows: counted by reason, kept with their inputs, replayable.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow_schema::{DataType as ArrowType, Field, Schema, SchemaRef};
use deltalake_core::kernel::{DataType as DeltaType, PrimitiveType, StructField};
use eadem_values::DataType;
use serde::{Deserialize, Serialize};

use crate::error::OfflineError;

/// How many rows were refused, by reason. Values in reasons are left out, so that equal faults count together.
pub type RefusalCounts = BTreeMap<String, u64>;

/// One refused row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuarantinedRow {
    /// Why, with the value at fault.
    pub reason: String,
    /// The file it came from.
    pub file: String,
    /// The file's digest.
    pub lane: String,
    /// Its number in the file, from 0.
    pub row: i64,
    /// Join keys, times and bound inputs, as a JSON object.
    pub inputs: String,
    /// When it arrived, in microseconds: the job's creation.
    pub arrival_us: i64,
    /// The job that refused it.
    pub job: String,
}

pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("reason", ArrowType::Utf8, false),
        Field::new("file", ArrowType::Utf8, false),
        Field::new("lane", ArrowType::Utf8, false),
        Field::new("row", ArrowType::Int64, false),
        Field::new("inputs", ArrowType::Utf8, false),
        Field::new("arrival", DataType::Timestamp.to_arrow(), false),
        Field::new("job", ArrowType::Utf8, false),
    ]))
}

pub(crate) fn delta_fields() -> Vec<StructField> {
    let field = |name: &str, primitive| StructField::new(name, DeltaType::Primitive(primitive), false);
    vec![
        field("reason", PrimitiveType::String),
        field("file", PrimitiveType::String),
        field("lane", PrimitiveType::String),
        field("row", PrimitiveType::Long),
        field("inputs", PrimitiveType::String),
        field("arrival", PrimitiveType::Timestamp),
        field("job", PrimitiveType::String),
    ]
}

pub(crate) fn batch(rows: &[QuarantinedRow]) -> Result<RecordBatch, OfflineError> {
    let text = |read: fn(&QuarantinedRow) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(read)))
    };
    let arrival = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.arrival_us));
    let columns: Vec<ArrayRef> = vec![
        text(|row| &row.reason),
        text(|row| &row.file),
        text(|row| &row.lane),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.row))),
        text(|row| &row.inputs),
        Arc::new(arrival.with_timezone("UTC")),
        text(|row| &row.job),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}
