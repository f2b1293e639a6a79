//! Arrow columns as the contract's columns: borrowed where they are canonical already, copied where they are not.

use std::borrow::Cow;

use arrow_array::cast::AsArray;
use arrow_array::types::{ByteArrayType, Float32Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, GenericByteArray};
use arrow_buffer::NullBuffer;
use eadem_values::{DataType, ElementType, Field, null_element_rows};

use crate::bindings::exports::eadem::transform::types::{
    ColumnParam, ElementsParam, ListValuesParam, ValuesParam, VariableBytesParam,
};
use crate::bits::{self, CanonicalBits};
use crate::error::EngineError;

/// Whether NaNs are made canonical on the way in. Only the NaN law passes them as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nans {
    Canonical,
    AsTheyAre,
}

/// The columns of one call, checked against the description.
pub(crate) struct Inputs<'a>(Vec<InputColumn<'a>>);

struct InputColumn<'a> {
    /// Empty where nothing is null.
    validity: Cow<'a, [u8]>,
    values: InputValues<'a>,
}

enum InputValues<'a> {
    Boolean(Cow<'a, [u8]>),
    Int64(Cow<'a, [i64]>),
    Float32(Cow<'a, [f32]>),
    Float64(Cow<'a, [f64]>),
    Utf8(InputBytes<'a>),
    Binary(InputBytes<'a>),
    Timestamp(Cow<'a, [i64]>),
    Vector(Cow<'a, [f32]>),
    List { offsets: Cow<'a, [u32]>, elements: InputElements<'a> },
}

enum InputElements<'a> {
    Int64(Cow<'a, [i64]>),
    Float64(Cow<'a, [f64]>),
    Utf8(InputBytes<'a>),
}

struct InputBytes<'a> {
    offsets: Cow<'a, [u32]>,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Inputs<'a> {
    /// Takes columns of `rows` rows each, in declared order.
    ///
    /// # Errors
    /// [`EngineError::Input`]: another number of columns or rows, another type, a null where none may be.
    pub(crate) fn new(fields: &[Field], rows: usize, columns: &'a [ArrayRef], nans: Nans) -> Result<Self, EngineError> {
        if fields.len() != columns.len() {
            return Err(EngineError::Input {
                input: format!("number {}", fields.len().min(columns.len())),
                what: format!("the transform has {} inputs, {} columns were passed", fields.len(), columns.len()),
            });
        }
        let inputs = fields.iter().zip(columns).map(|(field, column)| InputColumn::new(field, rows, column, nans));
        inputs.collect::<Result<_, _>>().map(Self)
    }

    /// The same columns as the contract has them.
    pub(crate) fn params(&self) -> Vec<ColumnParam<'_>> {
        self.0.iter().map(InputColumn::param).collect()
    }
}

impl<'a> InputColumn<'a> {
    fn new(field: &Field, rows: usize, column: &'a ArrayRef, nans: Nans) -> Result<Self, EngineError> {
        let refuse = |what: String| Err(EngineError::Input { input: field.name.clone(), what });
        if column.len() != rows {
            return refuse(format!("{} rows were passed, the call has {rows}", column.len()));
        }
        if DataType::from_arrow(column.data_type()) != Some(field.data_type) {
            return refuse(format!("it is declared {}, the column is {}", field.data_type, column.data_type()));
        }
        let nulls = column.nulls().filter(|nulls| nulls.null_count() > 0);
        if nulls.is_some() && !field.nullable {
            return refuse("it is declared not nullable, the column has nulls".to_owned());
        }
        if !null_element_rows(column).is_empty() {
            return refuse("an element of a list or vector is null; elements are never null".to_owned());
        }
        let validity = nulls.map_or(Cow::Borrowed([].as_slice()), |nulls| bits::aligned_bitmap(nulls.inner()));
        let values = InputValues::new(field.data_type, column, &validity, nulls, nans);
        Ok(Self { validity, values })
    }

    fn param(&self) -> ColumnParam<'_> {
        ColumnParam { validity: &self.validity, values: self.values.param() }
    }
}

impl<'a> InputValues<'a> {
    fn new(data_type: DataType, column: &'a ArrayRef, validity: &[u8], nulls: Option<&NullBuffer>, nans: Nans) -> Self {
        match data_type {
            DataType::Boolean => Self::Boolean(booleans(column, validity)),
            DataType::Int64 => {
                Self::Int64(numbers(column.as_primitive::<Int64Type>().values(), 1, validity, column.len(), nans))
            }
            DataType::Timestamp => {
                let instants = column.as_primitive::<TimestampMicrosecondType>().values();
                Self::Timestamp(numbers(instants, 1, validity, column.len(), nans))
            }
            DataType::Float32 => {
                Self::Float32(numbers(column.as_primitive::<Float32Type>().values(), 1, validity, column.len(), nans))
            }
            DataType::Float64 => {
                Self::Float64(numbers(column.as_primitive::<Float64Type>().values(), 1, validity, column.len(), nans))
            }
            DataType::Utf8 => Self::Utf8(InputBytes::new(column.as_string::<i32>(), nulls)),
            DataType::Binary => Self::Binary(InputBytes::new(column.as_binary::<i32>(), nulls)),
            DataType::Vector(dimensions) => {
                let array = column.as_fixed_size_list();
                let elements: &'a [f32] = array.values().as_primitive::<Float32Type>().values();
                Self::Vector(numbers(elements, dimensions as usize, validity, column.len(), nans))
            }
            DataType::List(element) => list(column, element, nulls, nans),
        }
    }

    fn param(&self) -> ValuesParam<'_> {
        match self {
            Self::Boolean(bits) => ValuesParam::Boolean(bits),
            Self::Int64(values) => ValuesParam::Int64(values),
            Self::Float32(values) => ValuesParam::Float32(values),
            Self::Float64(values) => ValuesParam::Float64(values),
            Self::Utf8(texts) => ValuesParam::Utf8(texts.param()),
            Self::Binary(blobs) => ValuesParam::Binary(blobs.param()),
            Self::Timestamp(instants) => ValuesParam::Timestamp(instants),
            Self::Vector(elements) => ValuesParam::Vector(elements),
            Self::List { offsets, elements } => {
                ValuesParam::List(ListValuesParam { offsets, elements: elements.param() })
            }
        }
    }
}

impl InputElements<'_> {
    fn param(&self) -> ElementsParam<'_> {
        match self {
            Self::Int64(values) => ElementsParam::Int64(values),
            Self::Float64(values) => ElementsParam::Float64(values),
            Self::Utf8(texts) => ElementsParam::Utf8(texts.param()),
        }
    }
}

fn booleans<'a>(column: &'a ArrayRef, validity: &[u8]) -> Cow<'a, [u8]> {
    let values = bits::aligned_bitmap(column.as_boolean().values());
    let set_under_null = values.iter().zip(validity).any(|(value, valid)| value & !valid != 0);
    if !set_under_null {
        return values;
    }
    let mut values = values.into_owned();
    for (value, valid) in values.iter_mut().zip(validity) {
        *value &= valid;
    }
    Cow::Owned(values)
}

fn numbers<'a, T: CanonicalBits>(
    values: &'a [T],
    width: usize,
    validity: &[u8],
    rows: usize,
    nans: Nans,
) -> Cow<'a, [T]> {
    let has_nulls = !validity.is_empty();
    let dirty_nans = nans == Nans::Canonical && bits::any_foreign_nan(values);
    let dirty_nulls = has_nulls && bits::any_under_null(values, width, validity, rows);
    if !dirty_nans && !dirty_nulls {
        return Cow::Borrowed(values);
    }
    let mut values = values.to_vec();
    if dirty_nans {
        bits::canonicalize_nans(&mut values);
    }
    if dirty_nulls {
        bits::zero_under_null(&mut values, width, validity, rows);
    }
    Cow::Owned(values)
}

impl<'a> InputBytes<'a> {
    fn new<T: ByteArrayType<Offset = i32>>(array: &'a GenericByteArray<T>, nulls: Option<&NullBuffer>) -> Self {
        let offsets: &'a [i32] = array.value_offsets();
        let bytes: &'a [u8] = array.value_data();
        if is_anything_under_null(offsets, nulls) {
            return Self::without_nulls(offsets, bytes, nulls);
        }
        let (offsets, range) = from_zero(offsets);
        Self { offsets, bytes: Cow::Borrowed(&bytes[range]) }
    }

    fn without_nulls(offsets: &[i32], bytes: &[u8], nulls: Option<&NullBuffer>) -> Self {
        let mut kept_offsets = Vec::with_capacity(offsets.len());
        let mut kept = Vec::new();
        kept_offsets.push(0);
        for (row, bounds) in offsets.windows(2).enumerate() {
            if nulls.is_none_or(|nulls| nulls.is_valid(row)) {
                kept.extend_from_slice(&bytes[bounds[0] as usize..bounds[1] as usize]);
            }
            kept_offsets.push(kept.len() as u32);
        }
        Self { offsets: Cow::Owned(kept_offsets), bytes: Cow::Owned(kept) }
    }

    fn param(&self) -> VariableBytesParam<'_> {
        VariableBytesParam { offsets: &self.offsets, bytes: &self.bytes }
    }
}

fn is_anything_under_null(offsets: &[i32], nulls: Option<&NullBuffer>) -> bool {
    let Some(nulls) = nulls else {
        return false;
    };
    let validity = bits::aligned_bitmap(nulls.inner());
    bits::unset_rows(&validity, nulls.len()).any(|row| offsets[row] != offsets[row + 1])
}

/// Offsets that start at zero, and the range of what they count.
fn from_zero(offsets: &[i32]) -> (Cow<'_, [u32]>, std::ops::Range<usize>) {
    let first = offsets.first().copied().unwrap_or(0);
    let last = offsets.last().copied().unwrap_or(0);
    let range = first as usize..last as usize;
    if first == 0 {
        // Arrow's offsets are never negative, so their bits are those of unsigned numbers.
        return (Cow::Borrowed(bytemuck::cast_slice(offsets)), range);
    }
    (Cow::Owned(offsets.iter().map(|offset| (offset - first) as u32).collect()), range)
}

fn list<'a>(column: &'a ArrayRef, element: ElementType, nulls: Option<&NullBuffer>, nans: Nans) -> InputValues<'a> {
    let array = column.as_list::<i32>();
    if is_anything_under_null(array.value_offsets(), nulls) {
        return list_without_nulls(column, element, nulls, nans);
    }
    let (offsets, range) = from_zero(array.value_offsets());
    let elements = match element {
        ElementType::Int64 => {
            let values: &'a [i64] = array.values().as_primitive::<Int64Type>().values();
            InputElements::Int64(Cow::Borrowed(&values[range]))
        }
        ElementType::Float64 => {
            let values: &'a [f64] = array.values().as_primitive::<Float64Type>().values();
            InputElements::Float64(numbers(&values[range], 1, &[], 0, nans))
        }
        ElementType::Utf8 => {
            let texts = array.values().as_string::<i32>();
            let text_offsets: &'a [i32] = &texts.value_offsets()[range.start..=range.end];
            let (offsets, bytes) = from_zero(text_offsets);
            InputElements::Utf8(InputBytes { offsets, bytes: Cow::Borrowed(&texts.value_data()[bytes]) })
        }
    };
    InputValues::List { offsets, elements }
}

/// The rare list column that has elements under nulls, without them.
fn list_without_nulls(
    column: &ArrayRef,
    element: ElementType,
    nulls: Option<&NullBuffer>,
    nans: Nans,
) -> InputValues<'static> {
    let array = column.as_list::<i32>();
    let offsets = array.value_offsets();
    let mut kept_offsets = vec![0u32];
    let mut kept_elements = Vec::new();
    for (row, bounds) in offsets.windows(2).enumerate() {
        if nulls.is_none_or(|nulls| nulls.is_valid(row)) {
            kept_elements.extend(bounds[0] as usize..bounds[1] as usize);
        }
        kept_offsets.push(kept_elements.len() as u32);
    }
    let elements = match element {
        ElementType::Int64 => {
            let values = array.values().as_primitive::<Int64Type>().values();
            InputElements::Int64(kept_elements.iter().map(|at| values[*at]).collect())
        }
        ElementType::Float64 => {
            let values = array.values().as_primitive::<Float64Type>().values();
            let mut kept: Vec<f64> = kept_elements.iter().map(|at| values[*at]).collect();
            if nans == Nans::Canonical {
                bits::canonicalize_nans(&mut kept);
            }
            InputElements::Float64(Cow::Owned(kept))
        }
        ElementType::Utf8 => {
            let texts = array.values().as_string::<i32>();
            let mut text_offsets = vec![0u32];
            let mut bytes = Vec::new();
            for at in kept_elements {
                bytes.extend_from_slice(texts.value(at).as_bytes());
                text_offsets.push(bytes.len() as u32);
            }
            InputElements::Utf8(InputBytes { offsets: Cow::Owned(text_offsets), bytes: Cow::Owned(bytes) })
        }
    };
    InputValues::List { offsets: Cow::Owned(kept_offsets), elements }
}
