//! Single values, and the way between them and Arrow columns.

use std::sync::Arc;

use arrow_array::builder::{
    ArrayBuilder, BinaryBuilder, BooleanBuilder, FixedSizeListBuilder, Float32Builder, Float64Builder, Int64Builder,
    ListBuilder, StringBuilder,
};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, TimestampMicrosecondArray, new_null_array};
use arrow_schema::{DataType as ArrowType, Field as ArrowField};

use crate::{CANONICAL_NAN_F32, CANONICAL_NAN_F64, DataType, ElementType, ValueError};

/// One value of any type, or null.
///
/// `==` compares floats by IEEE rules; use [`Value::bits_eq`] where "the same" is meant.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    Null,
    Boolean(bool),
    Int64(i64),
    Float32(f32),
    Float64(f64),
    Utf8(String),
    Binary(Vec<u8>),
    /// Microseconds since the Unix epoch, UTC.
    Timestamp(i64),
    Vector(Vec<f32>),
    ListInt64(Vec<i64>),
    ListFloat64(Vec<f64>),
    ListUtf8(Vec<String>),
}

impl Value {
    /// The type, or `None` for null.
    pub fn data_type(&self) -> Option<DataType> {
        match self {
            Self::Null => None,
            Self::Boolean(_) => Some(DataType::Boolean),
            Self::Int64(_) => Some(DataType::Int64),
            Self::Float32(_) => Some(DataType::Float32),
            Self::Float64(_) => Some(DataType::Float64),
            Self::Utf8(_) => Some(DataType::Utf8),
            Self::Binary(_) => Some(DataType::Binary),
            Self::Timestamp(_) => Some(DataType::Timestamp),
            Self::Vector(values) => Some(DataType::Vector(u32::try_from(values.len()).unwrap_or(u32::MAX))),
            Self::ListInt64(_) => Some(DataType::List(ElementType::Int64)),
            Self::ListFloat64(_) => Some(DataType::List(ElementType::Float64)),
            Self::ListUtf8(_) => Some(DataType::List(ElementType::Utf8)),
        }
    }

    /// Whether this is null.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// Whether this is the greater of two numbers or two times of one type; false of all else, NaN included.
    pub fn is_greater_than(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Int64(a), Self::Int64(b)) | (Self::Timestamp(a), Self::Timestamp(b)) => a > b,
            (Self::Float32(a), Self::Float32(b)) => a > b,
            (Self::Float64(a), Self::Float64(b)) => a > b,
            _ => false,
        }
    }

    /// Whether both are the same bits: `0.0` and `-0.0` differ, a NaN equals itself.
    pub fn bits_eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Float32(a), Self::Float32(b)) => a.to_bits() == b.to_bits(),
            (Self::Float64(a), Self::Float64(b)) => a.to_bits() == b.to_bits(),
            (Self::Vector(a), Self::Vector(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
            }
            (Self::ListFloat64(a), Self::ListFloat64(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
            }
            _ => self == other,
        }
    }

    /// The same value with every NaN made canonical.
    pub fn canonical(self) -> Self {
        match self {
            Self::Float32(value) if value.is_nan() => Self::Float32(CANONICAL_NAN_F32),
            Self::Float64(value) if value.is_nan() => Self::Float64(CANONICAL_NAN_F64),
            Self::Vector(values) => Self::Vector(values.into_iter().map(canonical_f32).collect()),
            Self::ListFloat64(values) => Self::ListFloat64(values.into_iter().map(canonical_f64).collect()),
            other => other,
        }
    }

    /// For messages: the type's name, or `null`.
    pub fn type_name(&self) -> String {
        self.data_type().map_or_else(|| "null".to_owned(), |data_type| data_type.to_string())
    }
}

fn canonical_f32(value: f32) -> f32 {
    if value.is_nan() { CANONICAL_NAN_F32 } else { value }
}

fn canonical_f64(value: f64) -> f64 {
    if value.is_nan() { CANONICAL_NAN_F64 } else { value }
}

/// The value in one row of a column of one of the contract's types.
///
/// # Errors
/// A column of another Arrow type; a null element inside a vector or list.
///
/// # Panics
/// If `row` is not below the column's length, as every Arrow accessor.
pub fn value_at(column: &dyn Array, row: usize) -> Result<Value, ValueError> {
    let data_type = DataType::from_arrow(column.data_type())
        .ok_or_else(|| ValueError::UnsupportedArrowType(column.data_type().to_string()))?;
    if column.is_null(row) {
        return Ok(Value::Null);
    }
    Ok(match data_type {
        DataType::Boolean => Value::Boolean(column.as_boolean().value(row)),
        DataType::Int64 => Value::Int64(column.as_primitive::<Int64Type>().value(row)),
        DataType::Float32 => Value::Float32(column.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => Value::Float64(column.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8 => Value::Utf8(column.as_string::<i32>().value(row).to_owned()),
        DataType::Binary => Value::Binary(column.as_binary::<i32>().value(row).to_vec()),
        DataType::Timestamp => Value::Timestamp(column.as_primitive::<TimestampMicrosecondType>().value(row)),
        DataType::Vector(_) => {
            let elements = column.as_fixed_size_list().value(row);
            refuse_nulls_among(&elements, row)?;
            Value::Vector(elements.as_primitive::<Float32Type>().values().to_vec())
        }
        DataType::List(element) => {
            let elements = column.as_list::<i32>().value(row);
            refuse_nulls_among(&elements, row)?;
            match element {
                ElementType::Int64 => Value::ListInt64(elements.as_primitive::<Int64Type>().values().to_vec()),
                ElementType::Float64 => Value::ListFloat64(elements.as_primitive::<Float64Type>().values().to_vec()),
                ElementType::Utf8 => {
                    let texts = elements.as_string::<i32>();
                    Value::ListUtf8((0..texts.len()).map(|i| texts.value(i).to_owned()).collect())
                }
            }
        }
    })
}

fn refuse_nulls_among(elements: &dyn Array, row: usize) -> Result<(), ValueError> {
    if elements.null_count() == 0 { Ok(()) } else { Err(ValueError::NullElement { row }) }
}

/// A column of `length` nulls.
pub fn null_array(data_type: DataType, length: usize) -> ArrayRef {
    let nulls = new_null_array(&data_type.to_arrow(), length);
    // Arrow also makes the elements of a null vector null, which the contract does not have.
    crate::canonicalize(&nulls).unwrap_or(nulls)
}

fn wrong_type(data_type: DataType, value: &Value) -> ValueError {
    ValueError::WrongType { expected: data_type.to_string(), found: value.type_name() }
}

/// Appends what one row adds, or says why it cannot.
type Append<B, V> = fn(&mut B, &V) -> Result<(), ValueError>;

macro_rules! build_simple {
    ($data_type:expr, $values:expr, $builder:expr, $variant:ident, $append:expr) => {{
        let mut builder = $builder;
        let append: Append<_, _> = $append;
        for value in $values {
            match value {
                Value::Null => builder.append_null(),
                Value::$variant(value) => append(&mut builder, value)?,
                other => return Err(wrong_type($data_type, other)),
            }
        }
        Ok(Arc::new(builder.finish()) as ArrayRef)
    }};
}

macro_rules! build_list {
    ($data_type:expr, $values:expr, $element:expr, $builder:expr, $variant:ident, $append:expr) => {{
        let item = Arc::new(ArrowField::new("item", $element.to_arrow(), false));
        let mut builder = ListBuilder::new($builder).with_field(item);
        let append: Append<_, _> = $append;
        for value in $values {
            match value {
                Value::Null => builder.append(false),
                Value::$variant(elements) => {
                    require_room(builder.values().len(), elements.len(), $data_type)?;
                    for element in elements {
                        append(builder.values(), element)?;
                    }
                    builder.append(true);
                }
                other => return Err(wrong_type($data_type, other)),
            }
        }
        Ok(Arc::new(builder.finish()) as ArrayRef)
    }};
}

macro_rules! append_number {
    ($builder:ty) => {
        |builder: &mut $builder, value| {
            builder.append_value(*value);
            Ok(())
        }
    };
}

/// Arrow's offsets are 32 bits wide: a column holds fewer than 2 GiB of text or bytes, and fewer than 2³¹ elements.
fn require_room(used: usize, more: usize, data_type: DataType) -> Result<(), ValueError> {
    let total = used.saturating_add(more);
    if i32::try_from(total).is_ok() {
        return Ok(());
    }
    Err(ValueError::OutOfRange {
        value: format!("{total} bytes or elements"),
        data_type: format!("one column of {data_type}"),
    })
}

fn append_text(builder: &mut StringBuilder, text: &String) -> Result<(), ValueError> {
    require_room(builder.values_slice().len(), text.len(), DataType::Utf8)?;
    builder.append_value(text);
    Ok(())
}

fn append_bytes(builder: &mut BinaryBuilder, bytes: &Vec<u8>) -> Result<(), ValueError> {
    require_room(builder.values_slice().len(), bytes.len(), DataType::Binary)?;
    builder.append_value(bytes);
    Ok(())
}

/// A column of these values.
///
/// # Errors
/// A value of another type, a vector of another number of dimensions, more than one column holds.
pub fn array_from_values<'a>(
    data_type: DataType,
    values: impl IntoIterator<Item = &'a Value>,
) -> Result<ArrayRef, ValueError> {
    let values = values.into_iter();
    // By themselves builders make room for a thousand values, and a request mostly has one.
    let room = values.size_hint().0;
    match data_type {
        DataType::Boolean => {
            build_simple!(
                data_type,
                values,
                BooleanBuilder::with_capacity(room),
                Boolean,
                append_number!(BooleanBuilder)
            )
        }
        DataType::Int64 => {
            build_simple!(data_type, values, Int64Builder::with_capacity(room), Int64, append_number!(Int64Builder))
        }
        DataType::Float32 => {
            build_simple!(
                data_type,
                values,
                Float32Builder::with_capacity(room),
                Float32,
                append_number!(Float32Builder)
            )
        }
        DataType::Float64 => {
            build_simple!(
                data_type,
                values,
                Float64Builder::with_capacity(room),
                Float64,
                append_number!(Float64Builder)
            )
        }
        DataType::Utf8 => build_simple!(data_type, values, StringBuilder::with_capacity(room, 0), Utf8, append_text),
        DataType::Binary => {
            build_simple!(data_type, values, BinaryBuilder::with_capacity(room, 0), Binary, append_bytes)
        }
        DataType::Timestamp => {
            let instants = values.map(|value| match value {
                Value::Null => Ok(None),
                Value::Timestamp(us) => Ok(Some(*us)),
                other => Err(wrong_type(data_type, other)),
            });
            let array: TimestampMicrosecondArray = instants.collect::<Result<_, _>>()?;
            Ok(Arc::new(array.with_timezone("UTC")))
        }
        DataType::Vector(dimensions) => vector_array(data_type, dimensions, values),
        DataType::List(element @ ElementType::Int64) => {
            build_list!(
                data_type,
                values,
                element,
                Int64Builder::with_capacity(room),
                ListInt64,
                append_number!(Int64Builder)
            )
        }
        DataType::List(element @ ElementType::Float64) => {
            build_list!(
                data_type,
                values,
                element,
                Float64Builder::with_capacity(room),
                ListFloat64,
                append_number!(Float64Builder)
            )
        }
        DataType::List(element @ ElementType::Utf8) => {
            build_list!(data_type, values, element, StringBuilder::with_capacity(room, 0), ListUtf8, append_text)
        }
    }
}

fn vector_array<'a>(
    data_type: DataType,
    dimensions: u32,
    values: impl IntoIterator<Item = &'a Value>,
) -> Result<ArrayRef, ValueError> {
    let length = i32::try_from(dimensions).map_err(|_| ValueError::OutOfRange {
        value: dimensions.to_string(),
        data_type: "the number of dimensions".to_owned(),
    })?;
    let item = Arc::new(ArrowField::new("item", ArrowType::Float32, false));
    let values = values.into_iter();
    let room = values.size_hint().0;
    let elements = Float32Builder::with_capacity(room * dimensions as usize);
    let mut builder = FixedSizeListBuilder::with_capacity(elements, length, room).with_field(item);
    for value in values {
        match value {
            Value::Null => {
                builder.values().append_value_n(0.0, dimensions as usize);
                builder.append(false);
            }
            Value::Vector(elements) if elements.len() == dimensions as usize => {
                builder.values().append_slice(elements);
                builder.append(true);
            }
            other => return Err(wrong_type(data_type, other)),
        }
    }
    Ok(Arc::new(builder.finish()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn offsets_of_32_bits_set_the_limit() {
        let most = i32::MAX as usize;
        assert_eq!(require_room(0, most, DataType::Utf8), Ok(()));
        assert_eq!(require_room(most, 0, DataType::Utf8), Ok(()));
        let message = require_room(most, 1, DataType::Utf8).unwrap_err().to_string();
        assert_eq!(message, "2147483648 bytes or elements does not fit into one column of utf8");
        assert!(require_room(1, usize::MAX, DataType::Binary).is_err());
    }
}
