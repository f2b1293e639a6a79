//! Values written as text, in declared types.

use std::sync::Arc;

use arrow_array::builder::{
    BooleanBuilder, Float32Builder, Float64Builder, Int64Builder, StringBuilder, TimestampMicrosecondBuilder,
};
use arrow_array::timezone::Tz;
use arrow_array::{ArrayRef, UInt32Array};
use chrono::{NaiveDateTime, TimeZone};
use eadem_values::DataType;

/// Types that text can hold: what a partition of a path or a column of CSV may be declared to be.
pub(super) fn check_text_type(data_type: DataType) -> Result<(), String> {
    match data_type {
        DataType::Boolean | DataType::Int64 | DataType::Float32 | DataType::Float64 => Ok(()),
        DataType::Utf8 | DataType::Timestamp => Ok(()),
        other => Err(format!(
            "is declared {other}, which text does not hold; boolean, int64, float32, float64, timestamp and utf8 are read"
        )),
    }
}

/// Reads timestamps: RFC 3339, or without a zone where the source says where its clock stood.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Clock {
    zone: Option<Tz>,
}

impl Clock {
    /// The zone must be one that [`inspect_schema`](super::columns::inspect_schema) accepts.
    pub(super) fn new(time_zone: Option<&str>) -> Self {
        Self { zone: time_zone.and_then(|zone| zone.parse().ok()) }
    }

    /// Microseconds since 1970 in UTC.
    pub(super) fn instant_us(self, text: &str) -> Result<i64, String> {
        let text = text.trim();
        if let Ok(us) = eadem_values::parse_timestamp(text) {
            return Ok(us);
        }
        let local = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"]
            .iter()
            .find_map(|format| NaiveDateTime::parse_from_str(text, format).ok());
        let Some(local) = local else {
            return Err(format!("`{}` is no instant such as 2013-01-01T00:00:00Z", shortened(text)));
        };
        let Some(zone) = self.zone else {
            return Err(format!("`{text}` has no time zone: give the source a `time_zone`, or write it as …Z"));
        };
        let instant = zone.from_local_datetime(&local).single();
        let instant =
            instant.ok_or_else(|| format!("`{text}` names no single instant where the source's clock stood"))?;
        Ok(instant.timestamp_micros())
    }
}

/// At most 80 characters of a value, for messages.
pub(super) fn shortened(text: &str) -> String {
    const CHARS_MAX: usize = 80;
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Builds a column from text.
#[derive(Debug)]
pub(super) enum TextColumn {
    Boolean(BooleanBuilder),
    Int64(Int64Builder),
    Float32(Float32Builder),
    Float64(Float64Builder),
    Utf8(StringBuilder),
    Timestamp(TimestampMicrosecondBuilder, Clock),
}

impl TextColumn {
    /// The type must be one that [`check_text_type`] accepts; others are read as text.
    pub(super) fn new(data_type: DataType, clock: Clock) -> Self {
        match data_type {
            DataType::Boolean => Self::Boolean(BooleanBuilder::new()),
            DataType::Int64 => Self::Int64(Int64Builder::new()),
            DataType::Float32 => Self::Float32(Float32Builder::new()),
            DataType::Float64 => Self::Float64(Float64Builder::new()),
            DataType::Timestamp => Self::Timestamp(TimestampMicrosecondBuilder::new().with_timezone("UTC"), clock),
            _ => Self::Utf8(StringBuilder::new()),
        }
    }

    pub(super) fn push_null(&mut self) {
        match self {
            Self::Boolean(column) => column.append_null(),
            Self::Int64(column) => column.append_null(),
            Self::Float32(column) => column.append_null(),
            Self::Float64(column) => column.append_null(),
            Self::Utf8(column) => column.append_null(),
            Self::Timestamp(column, _) => column.append_null(),
        }
    }

    /// Adds the value that the text says. Where it says none, a null is added, and the reason given.
    pub(super) fn push(&mut self, text: &str) -> Result<(), String> {
        let pushed = match self {
            Self::Boolean(column) => boolean(text).map(|value| column.append_value(value)),
            Self::Int64(column) => integer(text).map(|value| column.append_value(value)),
            Self::Float32(column) => float32(text).map(|value| column.append_value(value)),
            Self::Float64(column) => float64(text).map(|value| column.append_value(value)),
            Self::Timestamp(column, clock) => clock.instant_us(text).map(|value| column.append_value(value)),
            Self::Utf8(column) => {
                column.append_value(text);
                Ok(())
            }
        };
        if pushed.is_err() {
            self.push_null();
        }
        pushed
    }

    pub(super) fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Boolean(column) => Arc::new(column.finish()),
            Self::Int64(column) => Arc::new(column.finish()),
            Self::Float32(column) => Arc::new(column.finish()),
            Self::Float64(column) => Arc::new(column.finish()),
            Self::Utf8(column) => Arc::new(column.finish()),
            Self::Timestamp(column, _) => Arc::new(column.finish()),
        }
    }
}

fn boolean(text: &str) -> Result<bool, String> {
    let text = text.trim();
    let is_one_of = |names: [&str; 3]| names.iter().any(|name| text.eq_ignore_ascii_case(name));
    match (is_one_of(["true", "t", "1"]), is_one_of(["false", "f", "0"])) {
        (true, _) => Ok(true),
        (_, true) => Ok(false),
        _ => Err(format!("`{}` is not true or false", shortened(text))),
    }
}

pub(super) fn integer(text: &str) -> Result<i64, String> {
    let text = text.trim();
    text.parse().map_err(|_| format!("`{}` is not an integer of 64 bits", shortened(text)))
}

fn float64(text: &str) -> Result<f64, String> {
    let text = text.trim();
    let value: f64 = text.parse().map_err(|_| format!("`{}` is not a number", shortened(text)))?;
    if value.is_infinite() && names_no_infinity(text) {
        return Err(format!("`{}` is beyond float64", shortened(text)));
    }
    Ok(value)
}

/// Read from the text itself: by way of a float64 it would be rounded twice.
fn float32(text: &str) -> Result<f32, String> {
    let text = text.trim();
    let value: f32 = text.parse().map_err(|_| format!("`{}` is not a number", shortened(text)))?;
    if value.is_infinite() && names_no_infinity(text) {
        return Err(format!("`{}` is beyond float32", shortened(text)));
    }
    Ok(value)
}

fn names_no_infinity(text: &str) -> bool {
    text.contains(|c: char| c.is_ascii_digit())
}

/// The same value for every row.
pub(super) fn repeated(one: &ArrayRef, rows: usize) -> Result<ArrayRef, arrow_schema::ArrowError> {
    arrow_select::take::take(one.as_ref(), &UInt32Array::from(vec![0; rows]), None)
}
