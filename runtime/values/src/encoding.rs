//! The canonical row encoding, version 1: the same bytes for the same bits, specified in `docs/encoding.md`.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{
    Array, ArrayRef, ArrowPrimitiveType, BinaryArray, BooleanArray, FixedSizeListArray, Float32Array, Float64Array,
    Int64Array, ListArray, PrimitiveArray, StringArray, TimestampMicrosecondArray,
};
use arrow_buffer::{BooleanBufferBuilder, NullBufferBuilder, OffsetBuffer};
use arrow_schema::{DataType as ArrowType, Field as ArrowField};

use crate::canonical::refuse_null_elements;
use crate::{CANONICAL_NAN_F32, CANONICAL_NAN_F64, DataType, ElementType, Value, ValueError, array_from_values};

/// The version of the encoding. Stored rows and tie digests depend on it.
pub const ENCODING_VERSION: u32 = 1;

const TAG_NULL: u8 = 0x00;
const TAG_BOOLEAN: u8 = 0x01;
pub(crate) const TAG_INT64: u8 = 0x02;
const TAG_FLOAT32: u8 = 0x03;
const TAG_FLOAT64: u8 = 0x04;
pub(crate) const TAG_UTF8: u8 = 0x05;
const TAG_BINARY: u8 = 0x06;
const TAG_TIMESTAMP: u8 = 0x07;
const TAG_VECTOR: u8 = 0x08;
const TAG_LIST: u8 = 0x09;

/// One column, seen as its type once and not again for every row.
pub(crate) enum Column<'a> {
    Boolean(&'a BooleanArray),
    Int64(&'a Int64Array),
    Float32(&'a Float32Array),
    Float64(&'a Float64Array),
    Utf8(&'a StringArray),
    Binary(&'a BinaryArray),
    Timestamp(&'a TimestampMicrosecondArray),
    Vector(&'a FixedSizeListArray, &'a [f32], usize),
    List(&'a ListArray, Elements<'a>),
}

pub(crate) enum Elements<'a> {
    Int64(&'a [i64]),
    Float64(&'a [f64]),
    Utf8(&'a StringArray),
}

/// Encodes rows of a batch.
pub struct BatchEncoder<'a> {
    columns: Vec<Column<'a>>,
}

impl<'a> BatchEncoder<'a> {
    /// For these columns, in this order. They need not be canonical: NaNs are made canonical on the way.
    ///
    /// # Errors
    /// A column whose Arrow type the contract does not have; a null element inside a vector or list.
    pub fn try_new(columns: &'a [ArrayRef]) -> Result<Self, ValueError> {
        columns.iter().try_for_each(|column| refuse_null_elements(column.as_ref()))?;
        columns.iter().map(Column::of).collect::<Result<_, _>>().map(|columns| Self { columns })
    }

    /// Appends the canonical encoding of one row to `bytes`.
    ///
    /// # Panics
    /// If `row` is not below the columns' length, as every Arrow accessor.
    pub fn encode_row(&self, row: usize, bytes: &mut Vec<u8>) {
        for column in &self.columns {
            column.encode(row, bytes);
        }
    }

    /// Appends the canonical encodings of one column's values in these rows to `bytes`, one after the other.
    ///
    /// # Panics
    /// If there is no such column or row, as every Arrow accessor.
    pub fn encode_column(&self, column: usize, rows: Range<usize>, bytes: &mut Vec<u8>) {
        match &self.columns[column] {
            Column::Float64(values) => put_each(values, rows, TAG_FLOAT64, float64_bytes, bytes),
            Column::Int64(values) => put_each(values, rows, TAG_INT64, i64::to_le_bytes, bytes),
            Column::Timestamp(values) => put_each(values, rows, TAG_TIMESTAMP, i64::to_le_bytes, bytes),
            column => rows.for_each(|row| column.encode(row, bytes)),
        }
    }
}

/// The values of these rows, each a tag and 8 bytes, or the tag of null. Without a branch for each: the bytes under a null
/// are written and written over.
fn put_each<T: ArrowPrimitiveType>(
    values: &PrimitiveArray<T>,
    rows: Range<usize>,
    tag: u8,
    bytes_of: impl Fn(T::Native) -> [u8; 8],
    bytes: &mut Vec<u8>,
) {
    const ENCODED_BYTES: usize = 9;
    let mut end = bytes.len();
    bytes.resize(end + rows.len() * ENCODED_BYTES, 0);
    let nulls = values.nulls().filter(|nulls| nulls.null_count() > 0);
    for row in rows {
        let is_null = nulls.is_some_and(|nulls| nulls.is_null(row));
        let place = &mut bytes[end..end + ENCODED_BYTES];
        place[0] = if is_null { TAG_NULL } else { tag };
        place[1..].copy_from_slice(&bytes_of(values.values()[row]));
        end += if is_null { 1 } else { ENCODED_BYTES };
    }
    bytes.truncate(end);
}

impl<'a> Column<'a> {
    pub(crate) fn of(array: &'a ArrayRef) -> Result<Self, ValueError> {
        let data_type = DataType::from_arrow(array.data_type())
            .ok_or_else(|| ValueError::UnsupportedArrowType(array.data_type().to_string()))?;
        Ok(match data_type {
            DataType::Boolean => Self::Boolean(array.as_boolean()),
            DataType::Int64 => Self::Int64(array.as_primitive::<Int64Type>()),
            DataType::Float32 => Self::Float32(array.as_primitive::<Float32Type>()),
            DataType::Float64 => Self::Float64(array.as_primitive::<Float64Type>()),
            DataType::Utf8 => Self::Utf8(array.as_string::<i32>()),
            DataType::Binary => Self::Binary(array.as_binary::<i32>()),
            DataType::Timestamp => Self::Timestamp(array.as_primitive::<TimestampMicrosecondType>()),
            DataType::Vector(dimensions) => {
                let list = array.as_fixed_size_list();
                Self::Vector(list, list.values().as_primitive::<Float32Type>().values(), dimensions as usize)
            }
            DataType::List(element) => {
                let list = array.as_list::<i32>();
                let elements = match element {
                    ElementType::Int64 => Elements::Int64(list.values().as_primitive::<Int64Type>().values()),
                    ElementType::Float64 => Elements::Float64(list.values().as_primitive::<Float64Type>().values()),
                    ElementType::Utf8 => Elements::Utf8(list.values().as_string::<i32>()),
                };
                Self::List(list, elements)
            }
        })
    }

    pub(crate) fn is_null(&self, row: usize) -> bool {
        match self {
            Self::Boolean(array) => array.is_null(row),
            Self::Int64(array) => array.is_null(row),
            Self::Float32(array) => array.is_null(row),
            Self::Float64(array) => array.is_null(row),
            Self::Utf8(array) => array.is_null(row),
            Self::Binary(array) => array.is_null(row),
            Self::Timestamp(array) => array.is_null(row),
            Self::Vector(array, ..) => array.is_null(row),
            Self::List(array, _) => array.is_null(row),
        }
    }

    fn encode(&self, row: usize, bytes: &mut Vec<u8>) {
        if self.is_null(row) {
            bytes.push(TAG_NULL);
            return;
        }
        match self {
            Self::Boolean(array) => put_boolean(array.value(row), bytes),
            Self::Int64(array) => put_int64(array.value(row), bytes),
            Self::Float32(array) => put_float32(array.value(row), bytes),
            Self::Float64(array) => put_float64(array.value(row), bytes),
            Self::Utf8(array) => put_bytes(TAG_UTF8, array.value(row).as_bytes(), bytes),
            Self::Binary(array) => put_bytes(TAG_BINARY, array.value(row), bytes),
            Self::Timestamp(array) => put_timestamp(array.value(row), bytes),
            Self::Vector(_, elements, dimensions) => {
                put_vector(&elements[row * dimensions..(row + 1) * dimensions], bytes);
            }
            Self::List(list, elements) => {
                let range = list.offsets()[row] as usize..list.offsets()[row + 1] as usize;
                match elements {
                    Elements::Int64(elements) => put_list_int64(&elements[range], bytes),
                    Elements::Float64(elements) => put_list_float64(&elements[range], bytes),
                    Elements::Utf8(elements) => {
                        put_list_header(TAG_UTF8, range.len(), bytes);
                        for at in range {
                            put_length_and_bytes(elements.value(at).as_bytes(), bytes);
                        }
                    }
                }
            }
        }
    }
}

fn put_boolean(value: bool, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&[TAG_BOOLEAN, u8::from(value)]);
}

fn put_int64(value: i64, bytes: &mut Vec<u8>) {
    bytes.push(TAG_INT64);
    bytes.extend_from_slice(&value.to_le_bytes());
}

fn put_timestamp(value: i64, bytes: &mut Vec<u8>) {
    bytes.push(TAG_TIMESTAMP);
    bytes.extend_from_slice(&value.to_le_bytes());
}

fn put_float32(value: f32, bytes: &mut Vec<u8>) {
    bytes.push(TAG_FLOAT32);
    bytes.extend_from_slice(&float32_bytes(value));
}

fn put_float64(value: f64, bytes: &mut Vec<u8>) {
    bytes.push(TAG_FLOAT64);
    bytes.extend_from_slice(&float64_bytes(value));
}

fn float32_bytes(value: f32) -> [u8; 4] {
    (if value.is_nan() { CANONICAL_NAN_F32 } else { value }).to_le_bytes()
}

fn float64_bytes(value: f64) -> [u8; 8] {
    (if value.is_nan() { CANONICAL_NAN_F64 } else { value }).to_le_bytes()
}

fn put_length_and_bytes(value: &[u8], bytes: &mut Vec<u8>) {
    // Arrow's 32-bit offsets keep every single value below 2 GiB.
    bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
    bytes.extend_from_slice(value);
}

fn put_bytes(tag: u8, value: &[u8], bytes: &mut Vec<u8>) {
    bytes.push(tag);
    put_length_and_bytes(value, bytes);
}

fn put_vector(elements: &[f32], bytes: &mut Vec<u8>) {
    bytes.push(TAG_VECTOR);
    bytes.extend_from_slice(&(elements.len() as u32).to_le_bytes());
    for element in elements {
        bytes.extend_from_slice(&float32_bytes(*element));
    }
}

fn put_list_header(element_tag: u8, count: usize, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&[TAG_LIST, element_tag]);
    bytes.extend_from_slice(&(count as u32).to_le_bytes());
}

fn put_list_int64(elements: &[i64], bytes: &mut Vec<u8>) {
    put_list_header(TAG_INT64, elements.len(), bytes);
    for element in elements {
        bytes.extend_from_slice(&element.to_le_bytes());
    }
}

fn put_list_float64(elements: &[f64], bytes: &mut Vec<u8>) {
    put_list_header(TAG_FLOAT64, elements.len(), bytes);
    for element in elements {
        bytes.extend_from_slice(&float64_bytes(*element));
    }
}

/// Appends the canonical encoding of one value.
pub fn encode_value(value: &Value, bytes: &mut Vec<u8>) {
    match value {
        Value::Null => bytes.push(TAG_NULL),
        Value::Boolean(value) => put_boolean(*value, bytes),
        Value::Int64(value) => put_int64(*value, bytes),
        Value::Float32(value) => put_float32(*value, bytes),
        Value::Float64(value) => put_float64(*value, bytes),
        Value::Utf8(value) => put_bytes(TAG_UTF8, value.as_bytes(), bytes),
        Value::Binary(value) => put_bytes(TAG_BINARY, value, bytes),
        Value::Timestamp(value) => put_timestamp(*value, bytes),
        Value::Vector(elements) => put_vector(elements, bytes),
        Value::ListInt64(elements) => put_list_int64(elements, bytes),
        Value::ListFloat64(elements) => put_list_float64(elements, bytes),
        Value::ListUtf8(elements) => {
            put_list_header(TAG_UTF8, elements.len(), bytes);
            for element in elements {
                put_length_and_bytes(element.as_bytes(), bytes);
            }
        }
    }
}

/// The canonical encoding of a row of values.
pub fn encode_values(values: &[Value]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.len() * 9);
    for value in values {
        encode_value(value, &mut bytes);
    }
    bytes
}

/// Reads encoded rows, checking every length.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn damaged(&self, what: &'static str) -> ValueError {
        ValueError::Damaged { at: self.at, what }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], ValueError> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| self.damaged("it ends too early"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ValueError> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| self.damaged("it ends too early"))
    }

    fn byte(&mut self) -> Result<u8, ValueError> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// A count of elements that take at least `bytes_each` each, so that a damaged count cannot ask for memory.
    fn count(&mut self, bytes_each: usize) -> Result<usize, ValueError> {
        let count = u32::from_le_bytes(self.array()?) as usize;
        let fits = count.checked_mul(bytes_each).is_some_and(|total| total <= self.bytes.len() - self.at);
        if fits { Ok(count) } else { Err(self.damaged("a count exceeds the row")) }
    }

    fn float32(&mut self) -> Result<f32, ValueError> {
        let value = f32::from_le_bytes(self.array()?);
        let is_foreign_nan = value.is_nan() && value.to_bits() != CANONICAL_NAN_F32.to_bits();
        if is_foreign_nan { Err(self.damaged("a NaN is not canonical")) } else { Ok(value) }
    }

    fn float64(&mut self) -> Result<f64, ValueError> {
        let value = f64::from_le_bytes(self.array()?);
        let is_foreign_nan = value.is_nan() && value.to_bits() != CANONICAL_NAN_F64.to_bits();
        if is_foreign_nan { Err(self.damaged("a NaN is not canonical")) } else { Ok(value) }
    }

    fn boolean(&mut self) -> Result<bool, ValueError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.damaged("a boolean is neither 0 nor 1")),
        }
    }

    fn int64(&mut self) -> Result<i64, ValueError> {
        self.array().map(i64::from_le_bytes)
    }

    fn length_and_bytes(&mut self) -> Result<&'a [u8], ValueError> {
        let length = self.count(1)?;
        self.take(length)
    }

    fn dimensions(&mut self, expected: usize) -> Result<usize, ValueError> {
        let count = self.count(4)?;
        if count == expected {
            return Ok(count);
        }
        Err(self.damaged("a vector has another number of dimensions than its column"))
    }

    /// Reads a value's tag, which has to be null's or that of its column's type.
    fn is_null(&mut self, data_type: DataType) -> Result<bool, ValueError> {
        let tag = self.byte()?;
        if tag != TAG_NULL && tag != tag_of(data_type) {
            return Err(self.damaged("a value has another type than its column"));
        }
        Ok(tag == TAG_NULL)
    }

    /// Nothing may follow a row's last value.
    fn end(&self) -> Result<(), ValueError> {
        if self.at == self.bytes.len() { Ok(()) } else { Err(self.damaged("bytes follow the last value")) }
    }

    fn text(&mut self) -> Result<String, ValueError> {
        let bytes = self.length_and_bytes()?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| self.damaged("text is not UTF-8"))
    }

    fn value(&mut self, data_type: DataType) -> Result<Value, ValueError> {
        if self.is_null(data_type)? {
            return Ok(Value::Null);
        }
        Ok(match data_type {
            DataType::Boolean => Value::Boolean(self.boolean()?),
            DataType::Int64 => Value::Int64(self.int64()?),
            DataType::Float32 => Value::Float32(self.float32()?),
            DataType::Float64 => Value::Float64(self.float64()?),
            DataType::Utf8 => Value::Utf8(self.text()?),
            DataType::Binary => Value::Binary(self.length_and_bytes()?.to_vec()),
            DataType::Timestamp => Value::Timestamp(self.int64()?),
            DataType::Vector(dimensions) => {
                let count = self.dimensions(dimensions as usize)?;
                Value::Vector((0..count).map(|_| self.float32()).collect::<Result<_, _>>()?)
            }
            DataType::List(element) => self.list(element)?,
        })
    }

    fn list(&mut self, element: ElementType) -> Result<Value, ValueError> {
        let element_tag = self.byte()?;
        let (expected_tag, bytes_each) = match element {
            ElementType::Int64 => (TAG_INT64, 8),
            ElementType::Float64 => (TAG_FLOAT64, 8),
            ElementType::Utf8 => (TAG_UTF8, 4),
        };
        if element_tag != expected_tag {
            return Err(self.damaged("a list has other elements than its column"));
        }
        let count = self.count(bytes_each)?;
        Ok(match element {
            ElementType::Int64 => Value::ListInt64((0..count).map(|_| self.int64()).collect::<Result<_, _>>()?),
            ElementType::Float64 => Value::ListFloat64((0..count).map(|_| self.float64()).collect::<Result<_, _>>()?),
            ElementType::Utf8 => Value::ListUtf8((0..count).map(|_| self.text()).collect::<Result<_, _>>()?),
        })
    }
}

fn tag_of(data_type: DataType) -> u8 {
    match data_type {
        DataType::Boolean => TAG_BOOLEAN,
        DataType::Int64 => TAG_INT64,
        DataType::Float32 => TAG_FLOAT32,
        DataType::Float64 => TAG_FLOAT64,
        DataType::Utf8 => TAG_UTF8,
        DataType::Binary => TAG_BINARY,
        DataType::Timestamp => TAG_TIMESTAMP,
        DataType::Vector(_) => TAG_VECTOR,
        DataType::List(_) => TAG_LIST,
    }
}

/// The values of an encoded row whose columns have these types.
///
/// # Errors
/// Bytes that no encoder wrote for these types.
pub fn decode_row(data_types: &[DataType], bytes: &[u8]) -> Result<Vec<Value>, ValueError> {
    let mut reader = Reader { bytes, at: 0 };
    let values = data_types.iter().map(|data_type| reader.value(*data_type)).collect::<Result<_, _>>()?;
    reader.end()?;
    Ok(values)
}

/// The columns of many encoded rows; a row that is `None` is null in every column.
///
/// # Errors
/// Bytes that no encoder wrote for these types.
pub fn decode_rows<'a>(
    data_types: &[DataType],
    rows: impl ExactSizeIterator<Item = Option<&'a [u8]>>,
) -> Result<Vec<ArrayRef>, ValueError> {
    let mut columns: Vec<Decoded> = data_types.iter().map(|data_type| Decoded::new(*data_type, rows.len())).collect();
    for row in rows {
        let Some(bytes) = row else {
            columns.iter_mut().for_each(Decoded::push_null);
            continue;
        };
        let mut reader = Reader { bytes, at: 0 };
        for column in &mut columns {
            column.push(&mut reader)?;
        }
        reader.end()?;
    }
    columns.into_iter().map(Decoded::finish).collect()
}

/// A column that grows by one encoded value after the other, without a [`Value`] in between where that saves something.
struct Decoded {
    data_type: DataType,
    values: DecodedValues,
    nulls: NullBufferBuilder,
}

enum DecodedValues {
    Boolean(BooleanBufferBuilder),
    Int64(Vec<i64>),
    Float32(Vec<f32>),
    Float64(Vec<f64>),
    Bytes { ends: Vec<i32>, bytes: Vec<u8> },
    Vector { elements: Vec<f32>, dimensions: usize },
    Others(Vec<Value>),
}

impl Decoded {
    fn new(data_type: DataType, rows: usize) -> Self {
        let values = match data_type {
            DataType::Boolean => DecodedValues::Boolean(BooleanBufferBuilder::new(rows)),
            DataType::Int64 | DataType::Timestamp => DecodedValues::Int64(Vec::with_capacity(rows)),
            DataType::Float32 => DecodedValues::Float32(Vec::with_capacity(rows)),
            DataType::Float64 => DecodedValues::Float64(Vec::with_capacity(rows)),
            DataType::Utf8 | DataType::Binary => {
                let mut ends = Vec::with_capacity(rows + 1);
                ends.push(0);
                DecodedValues::Bytes { ends, bytes: Vec::new() }
            }
            DataType::Vector(dimensions) => {
                let dimensions = dimensions as usize;
                DecodedValues::Vector { elements: Vec::with_capacity(rows * dimensions), dimensions }
            }
            DataType::List(_) => DecodedValues::Others(Vec::with_capacity(rows)),
        };
        Self { data_type, values, nulls: NullBufferBuilder::new(rows) }
    }

    fn push(&mut self, reader: &mut Reader<'_>) -> Result<(), ValueError> {
        if let DecodedValues::Others(values) = &mut self.values {
            values.push(reader.value(self.data_type)?);
            return Ok(());
        }
        if reader.is_null(self.data_type)? {
            self.push_null();
            return Ok(());
        }
        match &mut self.values {
            DecodedValues::Boolean(values) => values.append(reader.boolean()?),
            DecodedValues::Int64(values) => values.push(reader.int64()?),
            DecodedValues::Float32(values) => values.push(reader.float32()?),
            DecodedValues::Float64(values) => values.push(reader.float64()?),
            DecodedValues::Bytes { ends, bytes } => {
                let value = reader.length_and_bytes()?;
                let end = bytes.len().saturating_add(value.len());
                ends.push(i32::try_from(end).map_err(|_| ValueError::OutOfRange {
                    value: format!("{end} bytes"),
                    data_type: format!("one column of {}", self.data_type),
                })?);
                bytes.extend_from_slice(value);
            }
            DecodedValues::Vector { elements, dimensions } => {
                for _ in 0..reader.dimensions(*dimensions)? {
                    elements.push(reader.float32()?);
                }
            }
            DecodedValues::Others(_) => {}
        }
        self.nulls.append_non_null();
        Ok(())
    }

    /// Under a null stands zero, or nothing: the canonical form.
    fn push_null(&mut self) {
        match &mut self.values {
            DecodedValues::Boolean(values) => values.append(false),
            DecodedValues::Int64(values) => values.push(0),
            DecodedValues::Float32(values) => values.push(0.0),
            DecodedValues::Float64(values) => values.push(0.0),
            DecodedValues::Bytes { ends, .. } => ends.push(ends.last().copied().unwrap_or_default()),
            DecodedValues::Vector { elements, dimensions } => elements.resize(elements.len() + *dimensions, 0.0),
            DecodedValues::Others(values) => {
                values.push(Value::Null);
                return;
            }
        }
        self.nulls.append_null();
    }

    fn finish(mut self) -> Result<ArrayRef, ValueError> {
        let nulls = self.nulls.finish();
        let malformed = |error: arrow_schema::ArrowError| ValueError::Malformed(error.to_string());
        Ok(match self.values {
            DecodedValues::Boolean(mut values) => Arc::new(BooleanArray::new(values.finish(), nulls)),
            DecodedValues::Int64(values) if self.data_type == DataType::Timestamp => {
                let instants = TimestampMicrosecondArray::new(values.into(), nulls);
                Arc::new(instants.with_data_type(self.data_type.to_arrow()))
            }
            DecodedValues::Int64(values) => Arc::new(Int64Array::new(values.into(), nulls)),
            DecodedValues::Float32(values) => Arc::new(Float32Array::new(values.into(), nulls)),
            DecodedValues::Float64(values) => Arc::new(Float64Array::new(values.into(), nulls)),
            DecodedValues::Bytes { ends, bytes } => {
                // Ends of what was appended never descend.
                let offsets = OffsetBuffer::new(ends.into());
                match self.data_type {
                    DataType::Utf8 => Arc::new(StringArray::try_new(offsets, bytes.into(), nulls).map_err(malformed)?),
                    _ => Arc::new(BinaryArray::try_new(offsets, bytes.into(), nulls).map_err(malformed)?),
                }
            }
            DecodedValues::Vector { elements, dimensions } => {
                let item = Arc::new(ArrowField::new("item", ArrowType::Float32, false));
                let size = i32::try_from(dimensions).map_err(|error| ValueError::Malformed(error.to_string()))?;
                let elements = Arc::new(Float32Array::new(elements.into(), None));
                Arc::new(FixedSizeListArray::try_new(item, size, elements, nulls).map_err(malformed)?)
            }
            DecodedValues::Others(values) => array_from_values(self.data_type, &values)?,
        })
    }
}
