//! Constraints of a transform's outputs, and what a view does about values that break them.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Float32Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, PrimitiveArray};
use eadem_values::{Constraint, DataType, Field, Literal, Value};
use serde::{Deserialize, Serialize};

use crate::{QueryError, gather};

/// What a view does with a value that breaks a constraint of its field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ValidationPolicy {
    /// The row is not stored; it goes to quarantine with the reason.
    #[default]
    RefuseRow,
    /// The value becomes null. A field that may not be null refuses the row.
    NullValue,
    /// A number beyond `min` or `max` becomes that limit; what cannot be clamped (NaN, `allowed`, `length`) becomes null.
    Clamp,
    /// The job ends with an error that names the row.
    StopJob,
}

/// A value that a constraint refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedValue {
    /// Position in the batch.
    pub row: usize,
    /// Name of the field.
    pub field: String,
    /// Which constraint, and the value where it is short.
    pub reason: String,
}

/// Applies `policy` to the constraints of `fields` over `columns`; rows for which `absent` holds have no result and are
/// not looked at.
///
/// # Errors
/// Under [`ValidationPolicy::StopJob`], the first refused value. A constraint that does not fit its field's type.
pub fn validate_outputs(
    fields: &[Field],
    columns: Vec<ArrayRef>,
    policy: ValidationPolicy,
    absent: &dyn Fn(usize) -> bool,
) -> Result<(Vec<ArrayRef>, Vec<RefusedValue>), QueryError> {
    let mut checked = Vec::with_capacity(columns.len());
    let mut refused: Vec<RefusedValue> = Vec::new();
    for (field, column) in fields.iter().zip(columns) {
        checked.push(validate_field(field, column, policy, absent, &mut refused)?);
    }
    if refused.is_empty() {
        return Ok((checked, refused));
    }
    refused.sort_by_key(|value| value.row);
    if policy == ValidationPolicy::StopJob {
        let first = &refused[0];
        return Err(QueryError::Stopped { row: first.row, reason: first.reason.clone() });
    }
    refused.dedup_by_key(|value| value.row);
    let keep = gather::all_but(checked.first().map_or(0, |column| column.len()), refused.iter().map(|r| r.row as u32));
    let checked = checked.iter().map(|column| gather::null_rows(column, &keep)).collect::<Result<_, _>>()?;
    Ok((checked, refused))
}

fn validate_field(
    field: &Field,
    column: ArrayRef,
    policy: ValidationPolicy,
    absent: &dyn Fn(usize) -> bool,
    refused: &mut Vec<RefusedValue>,
) -> Result<ArrayRef, QueryError> {
    let mut column = column;
    for constraint in &field.constraints {
        let broken = broken_rows(field, constraint, &column, absent)?;
        if broken.is_empty() {
            continue;
        }
        let can_be_null = field.accepts_null() && *constraint != Constraint::NotNull;
        match policy {
            ValidationPolicy::Clamp if matches!(constraint, Constraint::Min(_) | Constraint::Max(_)) => {
                let (clamped, left) = clamp(field, constraint, &column, &broken)?;
                column = clamped;
                if left.is_empty() {
                    continue;
                }
                if can_be_null {
                    column = null_at(&column, &left)?;
                } else {
                    refuse(field, constraint, &column, &left, refused);
                }
            }
            ValidationPolicy::NullValue | ValidationPolicy::Clamp if can_be_null => column = null_at(&column, &broken)?,
            _ => refuse(field, constraint, &column, &broken, refused),
        }
    }
    Ok(column)
}

fn null_at(column: &ArrayRef, rows: &[usize]) -> Result<ArrayRef, QueryError> {
    gather::null_rows(column, &gather::all_but(column.len(), rows.iter().map(|row| *row as u32)))
}

fn refuse(field: &Field, constraint: &Constraint, column: &ArrayRef, rows: &[usize], refused: &mut Vec<RefusedValue>) {
    for row in rows {
        let shown = eadem_values::value_at(column.as_ref(), *row).map(|value| show(&value)).unwrap_or_default();
        let reason = format!("`{}` = {shown} breaks {}", field.name, describe(constraint));
        refused.push(RefusedValue { row: *row, field: field.name.clone(), reason });
    }
}

fn show(value: &Value) -> String {
    const SHOWN_CHARS_MAX: usize = 60;
    let text = eadem_values::value_to_json(value).to_string();
    if text.chars().count() <= SHOWN_CHARS_MAX {
        return text;
    }
    text.chars().take(SHOWN_CHARS_MAX).chain(['…']).collect()
}

fn describe(constraint: &Constraint) -> String {
    let literal = |literal: &Literal| match literal {
        Literal::Boolean(value) => value.to_string(),
        Literal::Int64(value) => value.to_string(),
        Literal::Float64(value) => value.to_string(),
        Literal::Utf8(value) => format!("{value:?}"),
    };
    match constraint {
        Constraint::Min(limit) => format!("min = {}", literal(limit)),
        Constraint::Max(limit) => format!("max = {}", literal(limit)),
        Constraint::Allowed(values) => {
            format!("allowed = [{}]", values.iter().map(literal).collect::<Vec<_>>().join(", "))
        }
        Constraint::NotNull => "not_null".to_owned(),
        Constraint::Length { min, max } => format!("length = {min}..={max}"),
        Constraint::Unit(unit) => format!("unit = {unit}"),
    }
}

fn broken_rows(
    field: &Field,
    constraint: &Constraint,
    column: &ArrayRef,
    absent: &dyn Fn(usize) -> bool,
) -> Result<Vec<usize>, QueryError> {
    let rows = match constraint {
        Constraint::Unit(_) => return Ok(Vec::new()),
        Constraint::NotNull => {
            return Ok(column.nulls().map_or_else(Vec::new, |nulls| {
                (0..column.len()).filter(|row| nulls.is_null(*row) && !absent(*row)).collect()
            }));
        }
        Constraint::Min(limit) => beyond_limit(field, column, limit, false)?,
        Constraint::Max(limit) => beyond_limit(field, column, limit, true)?,
        Constraint::Allowed(values) => not_among(field, column, values)?,
        Constraint::Length { min, max } => outside_length(field, column, *min, *max)?,
    };
    let valid = |row: &usize| column.is_valid(*row) && !absent(*row);
    Ok(rows.into_iter().filter(valid).collect())
}

fn misfit(field: &Field, constraint: &str) -> QueryError {
    QueryError::Shape(format!(
        "field `{}` of type {} cannot have a constraint `{constraint}`",
        field.name, field.data_type
    ))
}

fn limit_value(field: &Field, limit: &Literal, upper: bool) -> Result<Value, QueryError> {
    limit.to_value(field.data_type).ok_or_else(|| misfit(field, if upper { "max" } else { "min" }))
}

/// Rows whose value is not within the limit. A NaN is within none.
fn beyond_limit(field: &Field, column: &ArrayRef, limit: &Literal, upper: bool) -> Result<Vec<usize>, QueryError> {
    fn scan<T: ArrowPrimitiveType>(column: &ArrayRef, within: impl Fn(T::Native) -> bool) -> Vec<usize> {
        let values = column.as_primitive::<T>().values();
        values.iter().enumerate().filter(|(_, value)| !within(**value)).map(|(row, _)| row).collect()
    }
    macro_rules! within {
        ($type:ty, $limit:expr) => {
            if upper {
                scan::<$type>(column, |value| value <= $limit)
            } else {
                scan::<$type>(column, |value| value >= $limit)
            }
        };
    }
    Ok(match limit_value(field, limit, upper)? {
        Value::Int64(limit) => within!(Int64Type, limit),
        Value::Timestamp(limit) => within!(TimestampMicrosecondType, limit),
        Value::Float32(limit) => within!(Float32Type, limit),
        Value::Float64(limit) => within!(Float64Type, limit),
        _ => return Err(misfit(field, if upper { "max" } else { "min" })),
    })
}

fn not_among(field: &Field, column: &ArrayRef, allowed: &[Literal]) -> Result<Vec<usize>, QueryError> {
    let allowed: Vec<Value> = allowed
        .iter()
        .map(|literal| literal.to_value(field.data_type).ok_or_else(|| misfit(field, "allowed")))
        .collect::<Result<_, _>>()?;
    if field.data_type == DataType::Utf8 {
        let texts = column.as_string::<i32>();
        let is_allowed =
            |text: &str| allowed.iter().any(|value| matches!(value, Value::Utf8(allowed) if allowed == text));
        return Ok((0..column.len()).filter(|row| !is_allowed(texts.value(*row))).collect());
    }
    let mut rows = Vec::new();
    for row in 0..column.len() {
        let value = eadem_values::value_at(column.as_ref(), row)?;
        if !allowed.contains(&value) {
            rows.push(row);
        }
    }
    Ok(rows)
}

fn outside_length(field: &Field, column: &ArrayRef, min: u32, max: u32) -> Result<Vec<usize>, QueryError> {
    let offsets = match field.data_type {
        DataType::Utf8 => column.as_string::<i32>().offsets(),
        DataType::Binary => column.as_binary::<i32>().offsets(),
        DataType::List(_) => column.as_list::<i32>().offsets(),
        _ => return Err(misfit(field, "length")),
    };
    let within = |length: i32| u32::try_from(length).is_ok_and(|length| (min..=max).contains(&length));
    Ok(offsets.windows(2).enumerate().filter(|(_, pair)| !within(pair[1] - pair[0])).map(|(row, _)| row).collect())
}

/// Moves the values at `rows` to the limit; gives back the rows that have no place to move to (NaN).
fn clamp(
    field: &Field,
    constraint: &Constraint,
    column: &ArrayRef,
    rows: &[usize],
) -> Result<(ArrayRef, Vec<usize>), QueryError> {
    fn set<T: ArrowPrimitiveType>(
        column: &ArrayRef,
        rows: &[usize],
        limit: T::Native,
        is_nan: impl Fn(T::Native) -> bool,
    ) -> (ArrayRef, Vec<usize>) {
        let column = column.as_primitive::<T>();
        let mut values = column.values().to_vec();
        let mut left = Vec::new();
        for row in rows {
            if is_nan(values[*row]) { left.push(*row) } else { values[*row] = limit }
        }
        let clamped =
            PrimitiveArray::<T>::new(values.into(), column.nulls().cloned()).with_data_type(column.data_type().clone());
        (Arc::new(clamped), left)
    }
    let (limit, upper) = match constraint {
        Constraint::Min(limit) => (limit, false),
        Constraint::Max(limit) => (limit, true),
        _ => return Ok((column.clone(), rows.to_vec())),
    };
    Ok(match limit_value(field, limit, upper)? {
        Value::Int64(limit) => set::<Int64Type>(column, rows, limit, |_| false),
        Value::Timestamp(limit) => set::<TimestampMicrosecondType>(column, rows, limit, |_| false),
        Value::Float32(limit) => set::<Float32Type>(column, rows, limit, f32::is_nan),
        Value::Float64(limit) => set::<Float64Type>(column, rows, limit, f64::is_nan),
        _ => return Err(misfit(field, "min or max")),
    })
}
