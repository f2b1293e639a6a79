//! One schema for all files of a source, and the columns of each file in it.
//!
//! Files grow: a column is added, another comes first, a third is widened. The source has every column that one of its
//! files has, in the order in which they appear, each in the narrowest type that holds what all files hold, exactly. What
//! a file lacks is null in its rows.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array};
use arrow_schema::{DataType as ArrowType, Field as ArrowField, Schema, SchemaRef, TimeUnit};

use super::columns::to_utc_micros;
use super::reader::{Fault, Faults, column_with_faults};
use crate::error::OfflineError;

/// Digits that the decimals of a source may have.
const DECIMAL_DIGITS_MAX: u8 = 38;

/// Gathers the schema of a source from those of its files.
#[derive(Debug, Default)]
pub(super) struct Union {
    fields: Vec<ArrowField>,
    /// For each field the file that gave it the type that it has.
    given_by: Vec<String>,
}

impl Union {
    /// Takes in the columns of a file.
    ///
    /// # Errors
    /// A column that is of a type here that does not go together with its type in an earlier file.
    pub(super) fn add<'a>(
        &mut self,
        url: &str,
        fields: impl Iterator<Item = (&'a str, &'a ArrowType)>,
    ) -> Result<(), OfflineError> {
        let mut names: BTreeSet<&str> = BTreeSet::new();
        for (name, data_type) in fields {
            if !names.insert(name) {
                return Err(disagreement(url, format!("has two columns `{name}`")));
            }
            let Some(at) = self.fields.iter().position(|field| field.name() == name) else {
                self.fields.push(ArrowField::new(name, data_type.clone(), true));
                self.given_by.push(url.to_owned());
                continue;
            };
            let known = self.fields[at].data_type();
            let Some(wider) = wider_type(known, data_type) else {
                return Err(disagreement(
                    url,
                    format!(
                        "column `{name}` is {data_type}, but {known} in {}; no type holds both exactly. Write the column \
                         in one type, or make a source of its own of these files",
                        self.given_by[at]
                    ),
                ));
            };
            if wider != *known {
                self.fields[at] = ArrowField::new(name, wider, true);
                url.clone_into(&mut self.given_by[at]);
            }
        }
        Ok(())
    }

    pub(super) fn schema(self) -> SchemaRef {
        Arc::new(Schema::new(self.fields))
    }
}

fn disagreement(url: &str, reason: String) -> OfflineError {
    OfflineError::File { file: url.to_owned(), reason }
}

/// The narrowest type that holds every value of both, exactly, apart from what is finer than a microsecond.
pub(super) fn wider_type(a: &ArrowType, b: &ArrowType) -> Option<ArrowType> {
    use ArrowType as T;
    if a == b {
        return Some(a.clone());
    }
    Some(match (a, b) {
        (T::Null, other) | (other, T::Null) => other.clone(),
        (T::Dictionary(_, a), T::Dictionary(_, b)) => wider_type(a, b)?,
        (T::Dictionary(_, values), other) | (other, T::Dictionary(_, values)) => wider_type(values, other)?,
        (a, b) if is_text(a) && is_text(b) => T::LargeUtf8,
        (a, b) if is_binary(a) && is_binary(b) => T::LargeBinary,
        (T::Timestamp(a_unit, a_zone), T::Timestamp(b_unit, b_zone)) if a_zone.is_some() == b_zone.is_some() => {
            let unit = if a_unit == b_unit { *a_unit } else { TimeUnit::Microsecond };
            T::Timestamp(unit, a_zone.as_ref().map(|_| "UTC".into()))
        }
        (T::Date32 | T::Date64, T::Date32 | T::Date64) => T::Date64,
        (T::Decimal128(a_digits, a_scale), T::Decimal128(b_digits, b_scale)) => {
            let whole = (i16::from(*a_digits) - i16::from(*a_scale)).max(i16::from(*b_digits) - i16::from(*b_scale));
            let scale = *a_scale.max(b_scale);
            let digits = u8::try_from(whole + i16::from(scale)).ok()?;
            if digits > DECIMAL_DIGITS_MAX {
                return None;
            }
            T::Decimal128(digits, scale)
        }
        (T::List(a), T::List(b)) => list_of(wider_type(a.data_type(), b.data_type())?),
        (T::LargeList(a), T::LargeList(b) | T::List(b)) | (T::List(a), T::LargeList(b)) => {
            T::LargeList(Arc::new(item(wider_type(a.data_type(), b.data_type())?)))
        }
        (T::FixedSizeList(a, a_width), T::FixedSizeList(b, b_width)) if a_width == b_width => {
            T::FixedSizeList(Arc::new(item(wider_type(a.data_type(), b.data_type())?)), *a_width)
        }
        (a, b) => wider_number(Number::of(a)?, Number::of(b)?)?,
    })
}

fn item(data_type: ArrowType) -> ArrowField {
    ArrowField::new("item", data_type, true)
}

fn list_of(data_type: ArrowType) -> ArrowType {
    ArrowType::List(Arc::new(item(data_type)))
}

fn is_text(data_type: &ArrowType) -> bool {
    matches!(data_type, ArrowType::Utf8 | ArrowType::LargeUtf8 | ArrowType::Utf8View)
}

fn is_binary(data_type: &ArrowType) -> bool {
    let is_fixed = matches!(data_type, ArrowType::FixedSizeBinary(_));
    is_fixed || matches!(data_type, ArrowType::Binary | ArrowType::LargeBinary | ArrowType::BinaryView)
}

#[derive(Clone, Copy)]
enum Number {
    Signed(u8),
    Unsigned(u8),
    Float(u8),
}

impl Number {
    fn of(data_type: &ArrowType) -> Option<Self> {
        Some(match data_type {
            ArrowType::Int8 => Self::Signed(8),
            ArrowType::Int16 => Self::Signed(16),
            ArrowType::Int32 => Self::Signed(32),
            ArrowType::Int64 => Self::Signed(64),
            ArrowType::UInt8 => Self::Unsigned(8),
            ArrowType::UInt16 => Self::Unsigned(16),
            ArrowType::UInt32 => Self::Unsigned(32),
            ArrowType::UInt64 => Self::Unsigned(64),
            ArrowType::Float16 => Self::Float(16),
            ArrowType::Float32 => Self::Float(32),
            ArrowType::Float64 => Self::Float(64),
            _ => return None,
        })
    }
}

fn wider_number(a: Number, b: Number) -> Option<ArrowType> {
    use Number::{Float, Signed, Unsigned};
    Some(match (a, b) {
        (Signed(a), Signed(b)) => signed(a.max(b))?,
        (Unsigned(a), Unsigned(b)) => match a.max(b) {
            8 => ArrowType::UInt8,
            16 => ArrowType::UInt16,
            32 => ArrowType::UInt32,
            _ => ArrowType::UInt64,
        },
        (Signed(signed_bits), Unsigned(bits)) | (Unsigned(bits), Signed(signed_bits)) => {
            signed(signed_bits.max(bits.checked_mul(2)?))?
        }
        (Float(a), Float(b)) => float(a.max(b)),
        // Every integer of half the width has an exact float.
        (Float(float_bits), Signed(bits) | Unsigned(bits)) | (Signed(bits) | Unsigned(bits), Float(float_bits)) => {
            if bits > 32 {
                return None;
            }
            float(float_bits.max(bits * 2))
        }
    })
}

fn signed(bits: u8) -> Option<ArrowType> {
    Some(match bits {
        8 => ArrowType::Int8,
        16 => ArrowType::Int16,
        32 => ArrowType::Int32,
        64 => ArrowType::Int64,
        _ => return None,
    })
}

fn float(bits: u8) -> ArrowType {
    match bits {
        16 => ArrowType::Float16,
        32 => ArrowType::Float32,
        _ => ArrowType::Float64,
    }
}

/// A column of a file in the type that the source has for it. A value that is lost on the way (seconds beyond what
/// microseconds hold) is a fault of its row.
pub(super) fn in_type(
    column: &ArrayRef,
    field: &ArrowField,
    sequence: &Int64Array,
    faults: &mut Vec<(i64, String, Fault)>,
) -> Result<ArrayRef, OfflineError> {
    let wanted = field.data_type();
    if column.data_type() == wanted {
        return Ok(column.clone());
    }
    let part = |start: usize, length: usize| {
        let column = column.slice(start, length);
        let column = match (column.data_type(), wanted) {
            (ArrowType::Timestamp(from, _), ArrowType::Timestamp(to, _)) if from != to => {
                to_utc_micros(&column, *from)?
            }
            _ => column,
        };
        let options = arrow_cast::CastOptions { safe: false, ..Default::default() };
        arrow_cast::cast_with_options(&column, wanted, &options).map_err(|error| error.to_string())
    };
    let kind = format!("column `{}` cannot be read as {wanted}", field.name());
    let mut found = Faults::new();
    let column = column_with_faults(wanted, sequence, &kind, &mut found, &part)?;
    faults.extend(found.into_iter().map(|(row, fault)| (row, field.name().clone(), fault)));
    Ok(column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wider_type_holds_both_exactly_and_does_not_depend_on_the_order() {
        use ArrowType as T;
        let zoned = |unit, zone: &str| T::Timestamp(unit, Some(zone.into()));
        let cases = [
            (T::Int32, T::Int64, Some(T::Int64)),
            (T::UInt8, T::Int8, Some(T::Int16)),
            (T::UInt32, T::Int8, Some(T::Int64)),
            (T::UInt64, T::Int64, None),
            (T::UInt64, T::Int8, None),
            (T::Float32, T::Float64, Some(T::Float64)),
            (T::Int16, T::Float32, Some(T::Float32)),
            (T::Int32, T::Float32, Some(T::Float64)),
            (T::UInt32, T::Float32, Some(T::Float64)),
            (T::Int64, T::Float64, None),
            (T::Int64, T::Utf8, None),
            (T::Boolean, T::Int8, None),
            (T::Utf8, T::LargeUtf8, Some(T::LargeUtf8)),
            (T::Dictionary(Box::new(T::Int32), Box::new(T::Utf8)), T::Utf8, Some(T::Utf8)),
            (T::Null, T::Boolean, Some(T::Boolean)),
            (
                zoned(TimeUnit::Millisecond, "UTC"),
                zoned(TimeUnit::Nanosecond, "Asia/Tokyo"),
                Some(zoned(TimeUnit::Microsecond, "UTC")),
            ),
            (T::Timestamp(TimeUnit::Second, None), zoned(TimeUnit::Second, "UTC"), None),
            (T::Decimal128(10, 2), T::Decimal128(12, 4), Some(T::Decimal128(12, 4))),
            (T::Decimal128(38, 0), T::Decimal128(38, 10), None),
            (list_of(T::Int32), list_of(T::Int64), Some(list_of(T::Int64))),
            (list_of(T::Int32), list_of(T::Utf8), None),
        ];
        for (a, b, expected) in cases {
            assert_eq!(wider_type(&a, &b), expected, "{a} and {b}");
            assert_eq!(wider_type(&b, &a), expected, "{b} and {a}");
        }
    }
}
