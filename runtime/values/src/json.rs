//! Values as JSON: numbers shortest round-trip (float32 as float32), NaN and infinities as the strings of proto3 JSON,
//! binary as base64, timestamps as RFC 3339 in UTC.

use arrow_array::ArrayRef;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Number, Value as Json};

use crate::encoding::Column;
use crate::time::rfc3339;
use crate::{CANONICAL_NAN_F32, CANONICAL_NAN_F64, DataType, ElementType, Value, ValueError, parse_timestamp};

const NAN: &str = "NaN";
const INFINITY: &str = "Infinity";
const NEGATIVE_INFINITY: &str = "-Infinity";

/// The value as JSON. [`value_from_json`] with the value's type reads back the same bits (a NaN becomes canonical).
pub fn value_to_json(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Boolean(value) => Json::Bool(*value),
        Value::Int64(value) => Json::from(*value),
        Value::Float32(value) => f32_to_json(*value),
        Value::Float64(value) => f64_to_json(*value),
        Value::Utf8(value) => Json::from(value.as_str()),
        Value::Binary(value) => Json::from(STANDARD.encode(value)),
        Value::Timestamp(us) => rfc3339(*us).map_or_else(|| Json::from(*us), Json::from),
        Value::Vector(values) => values.iter().map(|value| f32_to_json(*value)).collect(),
        Value::ListInt64(values) => values.iter().copied().map(Json::from).collect(),
        Value::ListFloat64(values) => values.iter().map(|value| f64_to_json(*value)).collect(),
        Value::ListUtf8(values) => values.iter().map(|value| Json::from(value.as_str())).collect(),
    }
}

/// A column whose values are written as JSON text: what [`value_to_json`] gives, without a value and a tree of JSON in
/// between.
pub struct JsonColumn<'a> {
    array: &'a ArrayRef,
    column: Column<'a>,
}

impl<'a> JsonColumn<'a> {
    /// # Errors
    /// A column of no type of the contract.
    pub fn try_new(array: &'a ArrayRef) -> Result<Self, ValueError> {
        Column::of(array).map(|column| Self { array, column })
    }

    /// Appends the value of a row.
    ///
    /// # Errors
    /// A null inside a vector or list.
    ///
    /// # Panics
    /// If `row` is not below the column's length, as every Arrow accessor.
    pub fn write(&self, row: usize, text: &mut Vec<u8>) -> Result<(), ValueError> {
        if self.column.is_null(row) {
            text.extend_from_slice(b"null");
            return Ok(());
        }
        match &self.column {
            Column::Boolean(values) => write_text(text, &values.value(row)),
            Column::Int64(values) => write_text(text, &values.value(row)),
            Column::Utf8(values) => write_text(text, values.value(row)),
            Column::Float64(values) if values.value(row).is_finite() => write_text(text, &values.value(row)),
            _ => write_text(text, &value_to_json(&crate::value_at(self.array, row)?)),
        }
    }
}

/// Appends what JSON makes of it.
fn write_text<T: serde::Serialize + ?Sized>(text: &mut Vec<u8>, value: &T) -> Result<(), ValueError> {
    serde_json::to_writer(text, value).map_err(|error| ValueError::Malformed(error.to_string()))
}

fn f64_to_json(value: f64) -> Json {
    Number::from_f64(value).map_or_else(|| Json::from(not_finite_name(value)), Json::Number)
}

fn f32_to_json(value: f32) -> Json {
    if !value.is_finite() {
        return Json::from(not_finite_name(f64::from(value)));
    }
    // The shortest text of the float32, carried by the float64 that prints as the same text.
    let shortest = value.to_string().parse::<f64>().unwrap_or(f64::from(value));
    f64_to_json(shortest)
}

fn not_finite_name(value: f64) -> &'static str {
    if value.is_nan() {
        NAN
    } else if value > 0.0 {
        INFINITY
    } else {
        NEGATIVE_INFINITY
    }
}

/// The JSON as a value of this type; JSON null is [`Value::Null`] whatever the type.
///
/// # Errors
/// JSON of another type, a number that does not fit, text that is no base64 or no RFC 3339.
pub fn value_from_json(data_type: DataType, json: &Json) -> Result<Value, ValueError> {
    if json.is_null() {
        return Ok(Value::Null);
    }
    let wrong = || ValueError::WrongType { expected: data_type.to_string(), found: describe(json) };
    match data_type {
        DataType::Boolean => json.as_bool().map(Value::Boolean).ok_or_else(wrong),
        DataType::Int64 => integer(json).map(Value::Int64).ok_or_else(wrong),
        DataType::Float32 => float32(json).map(Value::Float32),
        DataType::Float64 => float64(json).map(Value::Float64),
        DataType::Utf8 => json.as_str().map(|text| Value::Utf8(text.to_owned())).ok_or_else(wrong),
        DataType::Binary => {
            let text = json.as_str().ok_or_else(wrong)?;
            let bytes = STANDARD.decode(text).map_err(|error| ValueError::Malformed(format!("not base64: {error}")))?;
            Ok(Value::Binary(bytes))
        }
        DataType::Timestamp => match (json.as_str(), integer(json)) {
            (Some(text), _) => {
                parse_timestamp(text).map(Value::Timestamp).map_err(|error| ValueError::Malformed(error.to_string()))
            }
            (None, Some(us)) => Ok(Value::Timestamp(us)),
            (None, None) => Err(wrong()),
        },
        DataType::Vector(dimensions) => {
            let elements = elements_of(json).ok_or_else(wrong)?;
            if elements.len() != dimensions as usize {
                return Err(wrong());
            }
            elements.iter().map(float32).collect::<Result<_, _>>().map(Value::Vector)
        }
        DataType::List(element) => {
            let elements = elements_of(json).ok_or_else(wrong)?;
            match element {
                ElementType::Int64 => elements
                    .iter()
                    .map(|json| integer(json).ok_or_else(wrong))
                    .collect::<Result<_, _>>()
                    .map(Value::ListInt64),
                ElementType::Float64 => elements.iter().map(float64).collect::<Result<_, _>>().map(Value::ListFloat64),
                ElementType::Utf8 => elements
                    .iter()
                    .map(|json| json.as_str().map(str::to_owned).ok_or_else(wrong))
                    .collect::<Result<_, _>>()
                    .map(Value::ListUtf8),
            }
        }
    }
}

fn elements_of(json: &Json) -> Option<&Vec<Json>> {
    json.as_array()
}

fn integer(json: &Json) -> Option<i64> {
    json.as_i64()
}

fn float64(json: &Json) -> Result<f64, ValueError> {
    match json {
        Json::Number(number) => number.as_f64().ok_or_else(|| out_of_range(number, DataType::Float64)),
        Json::String(text) => not_finite(text)
            .ok_or_else(|| ValueError::WrongType { expected: "float64".to_owned(), found: describe(json) }),
        other => Err(ValueError::WrongType { expected: "float64".to_owned(), found: describe(other) }),
    }
}

fn float32(json: &Json) -> Result<f32, ValueError> {
    let Json::Number(number) = json else {
        // The strings of the three values that are not finite.
        return float64(json)
            .map(not_finite_f32)
            .map_err(|_| ValueError::WrongType { expected: "float32".to_owned(), found: describe(json) });
    };
    // From the shortest text, not from the float64 that carries it: rounding twice can end on the neighbour.
    let value: f32 = number.to_string().parse().map_err(|_| out_of_range(number, DataType::Float32))?;
    if value.is_finite() { Ok(value) } else { Err(out_of_range(number, DataType::Float32)) }
}

fn not_finite_f32(value: f64) -> f32 {
    if value.is_nan() { CANONICAL_NAN_F32 } else { value as f32 }
}

fn out_of_range(number: &Number, data_type: DataType) -> ValueError {
    ValueError::OutOfRange { value: number.to_string(), data_type: data_type.to_string() }
}

fn not_finite(text: &str) -> Option<f64> {
    match text {
        NAN => Some(CANONICAL_NAN_F64),
        INFINITY => Some(f64::INFINITY),
        NEGATIVE_INFINITY => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

fn describe(json: &Json) -> String {
    let text = json.to_string();
    let kind = match json {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    };
    if text.len() <= 40 { format!("{kind} ({text})") } else { kind.to_owned() }
}
