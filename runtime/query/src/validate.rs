//! Constraints of a transform's outputs, a view's bounds of its own, and what it does about values that break them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
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
    /// A number beyond `min` or `max` becomes that limit. What has no nearest allowed value (NaN, `allowed`, `length`,
    /// `not_null`) is treated as under `null_value`.
    Clamp,
    /// The job ends with an error that names the row.
    StopJob,
}

/// What a view does about the values of its transform: bounds of its own, then the constraints of the component.
///
/// Bounds come first and constraints see what they have left, so that a stored value satisfies both.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Validation {
    /// For the component's constraints, and for bounds that have no policy of their own.
    pub policy: ValidationPolicy,
    /// By feature: beyond which values are outliers. Without bounds, none is.
    pub bounds: BTreeMap<String, OutlierBound>,
}

/// Beyond what the values of a feature are outliers. Only int64, float32, float64 and timestamp have bounds.
///
/// A NaN and an infinity are outside of every bound, also of one without limits, unless it allows them. An infinity that is
/// allowed is compared with the limits like any number.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OutlierBound {
    /// The smallest value that is none, of the feature's type.
    pub min: Option<Value>,
    /// The greatest.
    pub max: Option<Value>,
    /// NaN is no outlier.
    pub allow_nan: bool,
    /// An infinity within the limits is no outlier.
    pub allow_infinite: bool,
    /// What happens to an outlier; `None`: what the view's policy says.
    pub policy: Option<ValidationPolicy>,
}

impl From<ValidationPolicy> for Validation {
    fn from(policy: ValidationPolicy) -> Self {
        Self { policy, bounds: BTreeMap::new() }
    }
}

impl Validation {
    /// The same where no job can be stopped and no row left out: a row is refused in place of the job.
    pub fn without_job(&self) -> Cow<'_, Self> {
        let row_policy = |policy: ValidationPolicy| match policy {
            ValidationPolicy::StopJob => ValidationPolicy::RefuseRow,
            other => other,
        };
        let stops = |policy: &ValidationPolicy| *policy == ValidationPolicy::StopJob;
        let stops_anywhere =
            stops(&self.policy) || self.bounds.values().any(|bound| bound.policy.as_ref().is_some_and(stops));
        if !stops_anywhere {
            return Cow::Borrowed(self);
        }
        let mut validation = self.clone();
        validation.policy = row_policy(validation.policy);
        for bound in validation.bounds.values_mut() {
            bound.policy = bound.policy.map(row_policy);
        }
        Cow::Owned(validation)
    }
}

impl fmt::Display for OutlierBound {
    /// `bounds min = 0.0, max = 10000.0`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bounds")?;
        let limits = [("min", &self.min), ("max", &self.max)];
        let mut separator = " ";
        for (name, limit) in limits {
            let Some(limit) = limit else { continue };
            write!(f, "{separator}{name} = {}", eadem_values::value_to_json(limit))?;
            separator = ", ";
        }
        if separator == " " { f.write_str(" finite") } else { Ok(()) }
    }
}

/// A value that a bound or constraint refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedValue {
    /// Position in the batch.
    pub row: usize,
    /// Name of the field.
    pub field: String,
    /// Which bound or constraint: the same text for all values that it refuses.
    pub rule: String,
    /// The rule, and the value where it is short.
    pub reason: String,
    /// The policy that refused it. Under `null_value` and `clamp` it is a value that neither can mend.
    pub policy: ValidationPolicy,
}

/// Applies `validation` to `columns`, one for each of `fields`; rows for which `absent` holds have no result and are not
/// looked at. Rows with a refused value are null in the answer, and named once: by a rule that refuses rows, if there is one.
///
/// # Errors
/// The first value that is refused under [`ValidationPolicy::StopJob`]. A bound or constraint that does not fit its field's
/// type.
pub fn validate_outputs(
    fields: &[Field],
    columns: Vec<ArrayRef>,
    validation: &Validation,
    absent: &dyn Fn(usize) -> bool,
) -> Result<(Vec<ArrayRef>, Vec<RefusedValue>), QueryError> {
    let mut checked = Vec::with_capacity(columns.len());
    let mut refused: Vec<RefusedValue> = Vec::new();
    for (field, column) in fields.iter().zip(columns) {
        let column = match validation.bounds.get(&field.name) {
            Some(bound) => {
                apply_bound(field, column, bound, bound.policy.unwrap_or(validation.policy), absent, &mut refused)?
            }
            None => column,
        };
        checked.push(apply_constraints(field, column, validation.policy, absent, &mut refused)?);
    }
    if refused.is_empty() {
        return Ok((checked, refused));
    }
    // Among the values of a row, one whose policy refuses the row decides; else the first.
    refused.sort_by_key(|value| (value.row, value.policy != ValidationPolicy::RefuseRow));
    let stopping = refused.iter().find(|value| value.policy == ValidationPolicy::StopJob);
    if let Some(first) = stopping {
        return Err(QueryError::Stopped { row: first.row, reason: first.reason.clone() });
    }
    refused.dedup_by_key(|value| value.row);
    let keep = gather::all_but(checked.first().map_or(0, |column| column.len()), refused.iter().map(|r| r.row as u32));
    let checked = checked.iter().map(|column| gather::null_rows(column, &keep)).collect::<Result<_, _>>()?;
    Ok((checked, refused))
}

fn apply_constraints(
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
        let rule = Rule { field, text: describe(constraint), policy };
        let mut left = broken;
        if policy == ValidationPolicy::Clamp {
            let limits = match constraint {
                Constraint::Min(limit) => Some((Some(limit_value(field, limit, false)?), None)),
                Constraint::Max(limit) => Some((None, Some(limit_value(field, limit, true)?))),
                _ => None,
            };
            if let Some((min, max)) = limits {
                (column, left) = clamp(field, &column, &left, min.as_ref(), max.as_ref())?;
            }
        }
        column = rule.null_or_refuse(column, &left, refused)?;
    }
    Ok(column)
}

fn apply_bound(
    field: &Field,
    column: ArrayRef,
    bound: &OutlierBound,
    policy: ValidationPolicy,
    absent: &dyn Fn(usize) -> bool,
    refused: &mut Vec<RefusedValue>,
) -> Result<ArrayRef, QueryError> {
    let mut outliers = outliers(field, &column, bound)?;
    outliers.retain(|row| column.is_valid(*row) && !absent(*row));
    if outliers.is_empty() {
        return Ok(column);
    }
    let (column, left) = match policy {
        ValidationPolicy::Clamp => clamp(field, &column, &outliers, bound.min.as_ref(), bound.max.as_ref())?,
        _ => (column, outliers),
    };
    Rule { field, text: bound.to_string(), policy }.null_or_refuse(column, &left, refused)
}

/// A bound or constraint that was broken, and what is done about it.
struct Rule<'a> {
    field: &'a Field,
    text: String,
    policy: ValidationPolicy,
}

impl Rule<'_> {
    /// Makes the values at `rows` null where the policy wants that and the field can be null; refuses them elsewhere.
    fn null_or_refuse(
        &self,
        column: ArrayRef,
        rows: &[usize],
        refused: &mut Vec<RefusedValue>,
    ) -> Result<ArrayRef, QueryError> {
        let nulls = matches!(self.policy, ValidationPolicy::NullValue | ValidationPolicy::Clamp);
        if rows.is_empty() {
            return Ok(column);
        }
        if nulls && self.field.accepts_null() {
            return null_at(&column, rows);
        }
        for row in rows {
            let shown = eadem_values::value_at(column.as_ref(), *row).map(|value| show(&value)).unwrap_or_default();
            refused.push(RefusedValue {
                row: *row,
                field: self.field.name.clone(),
                rule: self.text.clone(),
                reason: format!("`{}` = {shown} breaks {}", self.field.name, self.text),
                policy: self.policy,
            });
        }
        Ok(column)
    }
}

fn null_at(column: &ArrayRef, rows: &[usize]) -> Result<ArrayRef, QueryError> {
    gather::null_rows(column, &gather::all_but(column.len(), rows.iter().map(|row| *row as u32)))
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

/// Rows whose value is an outlier. What lies under a null may be among them.
fn outliers(field: &Field, column: &ArrayRef, bound: &OutlierBound) -> Result<Vec<usize>, QueryError> {
    fn scan<T: ArrowPrimitiveType>(column: &ArrayRef, is_within: impl Fn(T::Native) -> bool) -> Vec<usize> {
        let values = column.as_primitive::<T>().values();
        values.iter().enumerate().filter(|(_, value)| !is_within(**value)).map(|(row, _)| row).collect()
    }
    macro_rules! limit {
        ($limit:expr, $variant:ident) => {
            match &$limit {
                None => None,
                Some(Value::$variant(limit)) => Some(*limit),
                Some(_) => return Err(misfit(field, "bounds")),
            }
        };
    }
    macro_rules! integers {
        ($type:ty, $variant:ident) => {{
            let min = limit!(bound.min, $variant);
            let max = limit!(bound.max, $variant);
            scan::<$type>(column, |value| min.is_none_or(|min| min <= value) && max.is_none_or(|max| value <= max))
        }};
    }
    macro_rules! floats {
        ($type:ty, $variant:ident) => {{
            let min = limit!(bound.min, $variant);
            let max = limit!(bound.max, $variant);
            scan::<$type>(column, |value| {
                if value.is_nan() {
                    return bound.allow_nan;
                }
                (bound.allow_infinite || value.is_finite())
                    && min.is_none_or(|min| min <= value)
                    && max.is_none_or(|max| value <= max)
            })
        }};
    }
    Ok(match field.data_type {
        DataType::Int64 => integers!(Int64Type, Int64),
        DataType::Timestamp => integers!(TimestampMicrosecondType, Timestamp),
        DataType::Float32 => floats!(Float32Type, Float32),
        DataType::Float64 => floats!(Float64Type, Float64),
        _ => return Err(misfit(field, "bounds")),
    })
}

/// Moves the values at `rows` to the limit that they lie beyond; gives back the rows that have no place to move to: NaN, and
/// an infinity on a side without limit.
fn clamp(
    field: &Field,
    column: &ArrayRef,
    rows: &[usize],
    min: Option<&Value>,
    max: Option<&Value>,
) -> Result<(ArrayRef, Vec<usize>), QueryError> {
    fn set<T: ArrowPrimitiveType>(
        column: &ArrayRef,
        rows: &[usize],
        (min, max): (Option<T::Native>, Option<T::Native>),
    ) -> (ArrayRef, Vec<usize>)
    where
        T::Native: PartialOrd,
    {
        let column = column.as_primitive::<T>();
        let mut values = column.values().to_vec();
        let mut left = Vec::new();
        for row in rows {
            let value = values[*row];
            // A NaN is beyond no limit.
            match (min.filter(|min| value < *min), max.filter(|max| value > *max)) {
                (Some(limit), _) | (None, Some(limit)) => values[*row] = limit,
                (None, None) => left.push(*row),
            }
        }
        let clamped =
            PrimitiveArray::<T>::new(values.into(), column.nulls().cloned()).with_data_type(column.data_type().clone());
        (Arc::new(clamped), left)
    }
    macro_rules! limits {
        ($variant:ident) => {{
            let limit = |limit: Option<&Value>| match limit {
                None => Ok(None),
                Some(Value::$variant(limit)) => Ok(Some(*limit)),
                Some(_) => Err(misfit(field, "min or max")),
            };
            (limit(min)?, limit(max)?)
        }};
    }
    Ok(match field.data_type {
        DataType::Int64 => set::<Int64Type>(column, rows, limits!(Int64)),
        DataType::Timestamp => set::<TimestampMicrosecondType>(column, rows, limits!(Timestamp)),
        DataType::Float32 => set::<Float32Type>(column, rows, limits!(Float32)),
        DataType::Float64 => set::<Float64Type>(column, rows, limits!(Float64)),
        _ => return Err(misfit(field, "min or max")),
    })
}
