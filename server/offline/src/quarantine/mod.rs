//! Refused rows: counted by reason, kept with their inputs, replayable.

mod erase;
mod read;
mod replay;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow_schema::{DataType as ArrowType, Field, Schema, SchemaRef};
use deltalake_core::kernel::{DataType as DeltaType, PrimitiveType, StructField};
use eadem_values::DataType;
use serde::{Deserialize, Serialize};

use crate::error::OfflineError;

pub use read::{
    EntryState, Quarantine, QuarantineCursor, QuarantineEntry, QuarantineFilter, QuarantinePage, QuarantineSummary,
};
pub use replay::{Replay, ReplayOptions, ReplayReport, run_replay};

/// How many rows were refused, by reason. Values in reasons are left out, so that equal faults count together.
pub type RefusalCounts = BTreeMap<String, u64>;

/// `7 × join key `card` is null; 2 × …`, the most frequent first.
pub(crate) fn counts_text(counts: &RefusalCounts) -> String {
    const REASONS_SHOWN_MAX: usize = 8;
    let mut counts: Vec<(&String, &u64)> = counts.iter().collect();
    counts.sort_by_key(|(reason, rows)| (std::cmp::Reverse(**rows), reason.as_str()));
    let mut parts: Vec<String> =
        counts.iter().take(REASONS_SHOWN_MAX).map(|(reason, rows)| format!("{rows} × {reason}")).collect();
    if counts.len() > REASONS_SHOWN_MAX {
        parts.push(format!("and {} other reasons", counts.len() - REASONS_SHOWN_MAX));
    }
    parts.join("; ")
}

/// What became of a row when it was last looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowOutcome {
    /// It was refused.
    Refused,
    /// A replay has stored it.
    Replayed,
    /// A replay's transform has dropped it.
    Dropped,
}

impl RowOutcome {
    /// As in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Replayed => "replayed",
            Self::Dropped => "dropped",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Refused, Self::Replayed, Self::Dropped].into_iter().find(|outcome| outcome.as_str() == name)
    }
}

/// One line of a quarantine table: a refusal, or what a replay made of one.
///
/// The table only grows. Of the lines of one row, which share lane and row number, that with the greatest arrival and
/// then attempt counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuarantinedRow {
    /// Why, without values, for counting; empty unless it is a refusal.
    pub kind: String,
    /// Why, with the value at fault; empty unless it is a refusal.
    pub reason: String,
    /// The file it came from.
    pub file: String,
    /// The file's digest.
    pub lane: String,
    /// Its number in the file, from 0.
    pub row: i64,
    /// Join keys, times and bound inputs, as a JSON object; empty unless it is a refusal.
    pub inputs: String,
    /// When it arrived, in microseconds: the job's creation.
    pub arrival_us: i64,
    /// The job that says so.
    pub job: String,
    /// What the job made of it.
    pub outcome: RowOutcome,
    /// How many replays lie behind it: 0 for what a backfill refused.
    pub attempt: i64,
}

pub(crate) const KIND: &str = "kind";
pub(crate) const REASON: &str = "reason";
pub(crate) const FILE: &str = "file";
pub(crate) const LANE: &str = "lane";
pub(crate) const ROW: &str = "row";
pub(crate) const INPUTS: &str = "inputs";
pub(crate) const ARRIVAL: &str = "arrival";
pub(crate) const JOB: &str = "job";
pub(crate) const OUTCOME: &str = "outcome";
pub(crate) const ATTEMPT: &str = "attempt";

/// The columns of a quarantine table, in their order.
const COLUMNS: [(&str, PrimitiveType); 10] = [
    (KIND, PrimitiveType::String),
    (REASON, PrimitiveType::String),
    (FILE, PrimitiveType::String),
    (LANE, PrimitiveType::String),
    (ROW, PrimitiveType::Long),
    (INPUTS, PrimitiveType::String),
    (ARRIVAL, PrimitiveType::Timestamp),
    (JOB, PrimitiveType::String),
    (OUTCOME, PrimitiveType::String),
    (ATTEMPT, PrimitiveType::Long),
];

pub(crate) fn schema() -> SchemaRef {
    let field = |(name, primitive): &(&str, PrimitiveType)| {
        let data_type = match primitive {
            PrimitiveType::Long => ArrowType::Int64,
            PrimitiveType::Timestamp => DataType::Timestamp.to_arrow(),
            _ => ArrowType::Utf8,
        };
        Field::new(*name, data_type, false)
    };
    Arc::new(Schema::new(COLUMNS.iter().map(field).collect::<Vec<_>>()))
}

pub(crate) fn delta_fields() -> Vec<StructField> {
    let field = |(name, primitive): &(&str, PrimitiveType)| {
        StructField::new(*name, DeltaType::Primitive(primitive.clone()), false)
    };
    COLUMNS.iter().map(field).collect()
}

pub(crate) fn batch(rows: &[QuarantinedRow]) -> Result<RecordBatch, OfflineError> {
    let text = |read: fn(&QuarantinedRow) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(read)))
    };
    let arrival = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.arrival_us));
    let columns: Vec<ArrayRef> = vec![
        text(|row| &row.kind),
        text(|row| &row.reason),
        text(|row| &row.file),
        text(|row| &row.lane),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.row))),
        text(|row| &row.inputs),
        Arc::new(arrival.with_timezone("UTC")),
        text(|row| &row.job),
        text(|row| row.outcome.as_str()),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.attempt))),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}
