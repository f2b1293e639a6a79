//! One bit pattern per value: canonical NaNs, and zero (empty) under every null.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{ByteArrayType, Float32Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{
    Array, ArrayRef, ArrowPrimitiveType, BooleanArray, FixedSizeListArray, GenericByteArray, ListArray, PrimitiveArray,
};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer, ToByteSlice};
use arrow_schema::DataType as ArrowType;

use crate::{DataType, ElementType, ValueError};

/// The one NaN of float64: quiet, positive, no payload.
pub const CANONICAL_NAN_F64: f64 = f64::from_bits(0x7ff8_0000_0000_0000);
/// The one NaN of float32.
pub const CANONICAL_NAN_F32: f32 = f32::from_bits(0x7fc0_0000);

/// The same column with one bit pattern per value: NaNs canonical, zero (empty) under nulls, bitmaps and offsets that
/// start at the first row and are zero after the last, no validity bitmap where nothing is null, and exactly the Arrow
/// type of [`DataType::to_arrow`]. All other bits stay, `-0.0` included. A column that is canonical already is not copied.
///
/// # Errors
/// A column whose Arrow type the contract does not have; a null element in a vector or list that is not null itself
/// (see [`null_element_rows`]).
pub fn canonicalize(column: &ArrayRef) -> Result<ArrayRef, ValueError> {
    let data_type = DataType::from_arrow(column.data_type())
        .ok_or_else(|| ValueError::UnsupportedArrowType(column.data_type().to_string()))?;
    refuse_null_elements(column)?;
    let nulls = canonical_nulls(column.nulls());
    Ok(match data_type {
        DataType::Boolean => boolean(column, nulls),
        DataType::Int64 => Arc::new(primitive::<Int64Type>(column, nulls, |_| false, 0)),
        DataType::Timestamp => {
            // Other names of the same zone become the one.
            let instants = primitive::<TimestampMicrosecondType>(column, nulls, |_| false, 0);
            Arc::new(instants.with_data_type(data_type.to_arrow()))
        }
        DataType::Float32 => Arc::new(primitive::<Float32Type>(column, nulls, is_foreign_nan_f32, CANONICAL_NAN_F32)),
        DataType::Float64 => Arc::new(primitive::<Float64Type>(column, nulls, is_foreign_nan_f64, CANONICAL_NAN_F64)),
        DataType::Utf8 => bytes(column.as_string::<i32>(), nulls),
        DataType::Binary => bytes(column.as_binary::<i32>(), nulls),
        DataType::Vector(dimensions) => vector(column, dimensions as usize, nulls),
        DataType::List(element) => list(column, element, nulls)?,
    })
}

/// The rows of a vector or list column that are not null but hold a null element, in ascending order; none for every other
/// type. The contract has no null elements, so whoever binds such a column refuses these rows: read as a number, the null
/// would become whatever bits stand under it.
pub fn null_element_rows(column: &dyn Array) -> Vec<usize> {
    let elements = match column.data_type() {
        ArrowType::FixedSizeList(..) => column.as_fixed_size_list().values(),
        ArrowType::List(_) => column.as_list::<i32>().values(),
        _ => return Vec::new(),
    };
    let Some(element_nulls) = elements.nulls().filter(|nulls| nulls.null_count() > 0) else { return Vec::new() };
    let range_of_row = |row: usize| match column.data_type() {
        ArrowType::FixedSizeList(_, dimensions) => {
            let dimensions = usize::try_from(*dimensions).unwrap_or(0);
            row * dimensions..(row + 1) * dimensions
        }
        _ => {
            let offsets = column.as_list::<i32>().offsets();
            offsets[row] as usize..offsets[row + 1] as usize
        }
    };
    let holds_null = |row: &usize| column.is_valid(*row) && range_of_row(*row).any(|at| element_nulls.is_null(at));
    (0..column.len()).filter(holds_null).collect()
}

/// An error that names the first row of [`null_element_rows`], if there is one.
pub(crate) fn refuse_null_elements(column: &dyn Array) -> Result<(), ValueError> {
    match null_element_rows(column).first() {
        Some(row) => Err(ValueError::NullElement { row: *row }),
        None => Ok(()),
    }
}

fn is_foreign_nan_f32(value: f32) -> bool {
    value.is_nan() && value.to_bits() != CANONICAL_NAN_F32.to_bits()
}

fn is_foreign_nan_f64(value: f64) -> bool {
    value.is_nan() && value.to_bits() != CANONICAL_NAN_F64.to_bits()
}

fn canonical_nulls(nulls: Option<&NullBuffer>) -> Option<NullBuffer> {
    let nulls = nulls.filter(|nulls| nulls.null_count() > 0)?;
    Some(NullBuffer::new(canonical_bits(nulls.inner())))
}

/// The same bits from bit 0 of the first byte on, in exactly as many bytes as they need, with zeros after the last:
/// whoever sees whole bytes must not see what happened to stand beside the rows.
fn canonical_bits(bits: &BooleanBuffer) -> BooleanBuffer {
    let bytes = bits.sliced();
    let used_bits_of_last_byte = bits.len() % 8;
    let padding_is_zero =
        used_bits_of_last_byte == 0 || bytes.last().is_none_or(|last| last >> used_bits_of_last_byte == 0);
    if padding_is_zero {
        return BooleanBuffer::new(bytes, 0, bits.len());
    }
    let mut bytes = bytes.to_vec();
    if let Some(last) = bytes.last_mut() {
        *last &= (1 << used_bits_of_last_byte) - 1;
    }
    BooleanBuffer::new(Buffer::from_vec(bytes), 0, bits.len())
}

fn boolean(column: &ArrayRef, nulls: Option<NullBuffer>) -> ArrayRef {
    let values = column.as_boolean().values();
    let values = match &nulls {
        None => canonical_bits(values),
        Some(nulls) => canonical_bits(&(values & nulls.inner())),
    };
    Arc::new(BooleanArray::new(values, nulls))
}

fn primitive<T: ArrowPrimitiveType>(
    column: &ArrayRef,
    nulls: Option<NullBuffer>,
    is_foreign: impl Fn(T::Native) -> bool,
    canonical: T::Native,
) -> PrimitiveArray<T> {
    let array = column.as_primitive::<T>();
    let values = array.values();
    // Without a branch per value, so that the common case, nothing foreign, is one vectorised pass.
    let any_foreign = values.iter().fold(false, |any, value| any | is_foreign(*value));
    let zero = T::Native::default();
    let dirty_under_null = nulls.as_ref().is_some_and(|nulls| {
        let is_zero = |value: T::Native| bits_are_zero(value);
        (0..values.len()).any(|row| nulls.is_null(row) && !is_zero(values[row]))
    });
    let values = if any_foreign || dirty_under_null {
        let cleaned = values.iter().enumerate().map(|(row, value)| match &nulls {
            Some(nulls) if nulls.is_null(row) => zero,
            _ if is_foreign(*value) => canonical,
            _ => *value,
        });
        cleaned.collect::<ScalarBuffer<T::Native>>()
    } else {
        values.clone()
    };
    PrimitiveArray::<T>::new(values, nulls)
}

fn bits_are_zero<N: arrow_buffer::ArrowNativeType>(value: N) -> bool {
    std::slice::from_ref(&value).to_byte_slice().iter().all(|byte| *byte == 0)
}

fn bytes<T: ByteArrayType<Offset = i32>>(array: &GenericByteArray<T>, nulls: Option<NullBuffer>) -> ArrayRef {
    let offsets = array.offsets();
    let starts_at_zero = offsets.first() == Some(&0);
    let holds_only_its_rows = offsets.last().is_some_and(|last| *last as usize == array.value_data().len());
    let dirty_under_null = nulls
        .as_ref()
        .is_some_and(|nulls| (0..array.len()).any(|row| nulls.is_null(row) && offsets[row] != offsets[row + 1]));
    if starts_at_zero && holds_only_its_rows && !dirty_under_null {
        let parts = (array.offsets().clone(), array.values().clone());
        return Arc::new(byte_array_of_valid_parts::<T>(parts.0, parts.1, nulls));
    }
    let mut new_offsets = Vec::with_capacity(offsets.len());
    let mut data = Vec::new();
    new_offsets.push(0);
    for row in 0..array.len() {
        if nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row)) {
            data.extend_from_slice(&array.value_data()[offsets[row] as usize..offsets[row + 1] as usize]);
        }
        // Never more than the array held, whose offsets fit.
        new_offsets.push(data.len() as i32);
    }
    Arc::new(byte_array_of_valid_parts::<T>(OffsetBuffer::new(new_offsets.into()), Buffer::from_vec(data), nulls))
}

#[allow(unsafe_code)]
fn byte_array_of_valid_parts<T: ByteArrayType<Offset = i32>>(
    offsets: OffsetBuffer<i32>,
    data: Buffer,
    nulls: Option<NullBuffer>,
) -> GenericByteArray<T> {
    // SAFETY: offsets and bytes come from a valid array of the same type; only whole values were left out, so every
    // offset still stands at a boundary of UTF-8.
    unsafe { GenericByteArray::<T>::new_unchecked(offsets, data, nulls) }
}

fn vector(column: &ArrayRef, dimensions: usize, nulls: Option<NullBuffer>) -> ArrayRef {
    let array = column.as_fixed_size_list();
    let elements = array.values().as_primitive::<Float32Type>().values();
    let any_foreign = elements.iter().fold(false, |any, value| any | is_foreign_nan_f32(*value));
    let is_null_row = |row: usize| nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
    let row_of = |row: usize| &elements[row * dimensions..(row + 1) * dimensions];
    let dirty_under_null = nulls.is_some()
        && (0..array.len()).any(|row| is_null_row(row) && row_of(row).iter().any(|value| value.to_bits() != 0));
    let elements: ScalarBuffer<f32> = if any_foreign || dirty_under_null {
        let clean = |(at, value): (usize, &f32)| {
            if is_null_row(at / dimensions) {
                0.0
            } else if value.is_nan() {
                CANONICAL_NAN_F32
            } else {
                *value
            }
        };
        elements.iter().enumerate().map(clean).collect()
    } else {
        elements.clone()
    };
    let child = Arc::new(PrimitiveArray::<Float32Type>::new(elements, None));
    fixed_size_list(dimensions, child, nulls)
}

fn fixed_size_list(dimensions: usize, child: ArrayRef, nulls: Option<NullBuffer>) -> ArrayRef {
    let arrow_type = DataType::Vector(dimensions as u32).to_arrow();
    let ArrowType::FixedSizeList(item, length) = arrow_type else {
        return child;
    };
    Arc::new(FixedSizeListArray::new(item, length, child, nulls))
}

fn list(column: &ArrayRef, element: ElementType, nulls: Option<NullBuffer>) -> Result<ArrayRef, ValueError> {
    let array = column.as_list::<i32>();
    let offsets = array.offsets();
    let first = offsets.first().map_or(0, |offset| *offset);
    let last = offsets.last().map_or(0, |offset| *offset);
    let dirty_under_null = nulls
        .as_ref()
        .is_some_and(|nulls| (0..array.len()).any(|row| nulls.is_null(row) && offsets[row] != offsets[row + 1]));
    let (offsets, child) = if dirty_under_null {
        without_rows_under_null(array, nulls.as_ref(), element)?
    } else {
        let from_zero: Vec<i32> = offsets.iter().map(|offset| offset - first).collect();
        let child = array.values().slice(first as usize, (last - first) as usize);
        (OffsetBuffer::new(from_zero.into()), child)
    };
    let child = canonicalize(&child)?;
    let ArrowType::List(item) = DataType::List(element).to_arrow() else {
        return Ok(child);
    };
    Ok(Arc::new(ListArray::new(item, offsets, child, nulls)))
}

fn without_rows_under_null(
    array: &ListArray,
    nulls: Option<&NullBuffer>,
    element: ElementType,
) -> Result<(OffsetBuffer<i32>, ArrayRef), ValueError> {
    let rows = (0..array.len())
        .map(|row| match nulls {
            Some(nulls) if nulls.is_null(row) => Ok(crate::Value::Null),
            _ => crate::value_at(array, row),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let rebuilt = crate::array_from_values(DataType::List(element), &rows)?;
    let rebuilt = rebuilt.as_list::<i32>();
    Ok((rebuilt.offsets().clone(), Arc::clone(rebuilt.values())))
}
