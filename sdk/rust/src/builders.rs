//! Writing columns.

use crate::Timestamp;
use crate::contract::{Column, DataType, ElementType, Elements, ListValues, Values, VariableBytes};
use crate::views::vector_type;

/// A type that a field of an output may have.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a type that an output can have",
    label = "not a feature type",
    note = "outputs are bool, i64, f32, f64, String or &str, Vec<u8> or &[u8], Timestamp, [f32; N], Vec<i64> or &[i64], \
            Vec<f64> or &[f64], Vec<String> or Vec<&str>, and Option of each"
)]
pub trait OutputValue: Sized {
    /// Whether a null can be written.
    const NULLABLE: bool = false;
    /// The column in the making.
    #[doc(hidden)]
    type Builder;
    /// The type in the contract.
    fn data_type() -> DataType;
    /// An empty column with room for that many rows.
    #[doc(hidden)]
    fn builder(rows: usize) -> Self::Builder;
    /// Writes one row; rows come in ascending order, each put or skipped once.
    #[doc(hidden)]
    fn put(self, builder: &mut Self::Builder, row: usize);
    /// Leaves one row at zero (empty).
    #[doc(hidden)]
    fn skip(builder: &mut Self::Builder, row: usize);
    /// The finished column.
    #[doc(hidden)]
    fn finish(builder: Self::Builder) -> Column;
}

fn all_valid(values: Values) -> Column {
    Column { validity: Vec::new(), values }
}

macro_rules! numbers {
    ($($rust:ty, $element:ty, $zero:expr => $case:ident, $as_element:expr;)*) => {$(
        impl OutputValue for $rust {
            // Zeroed at once and then written by index: no growth check per row, and nothing to do where skipped.
            type Builder = Vec<$element>;

            fn data_type() -> DataType {
                DataType::$case
            }

            fn builder(rows: usize) -> Self::Builder {
                vec![$zero; rows]
            }

            #[inline(always)]
            fn put(self, builder: &mut Self::Builder, row: usize) {
                builder[row] = $as_element(self);
            }

            #[inline(always)]
            fn skip(_builder: &mut Self::Builder, _row: usize) {}

            fn finish(builder: Self::Builder) -> Column {
                all_valid(Values::$case(builder))
            }
        }
    )*};
}

numbers! {
    i64, i64, 0 => Int64, |value| value;
    f32, f32, 0.0 => Float32, |value| value;
    f64, f64, 0.0 => Float64, |value| value;
    Timestamp, i64, 0 => Timestamp, Timestamp::micros;
}

impl OutputValue for bool {
    type Builder = Vec<u8>;

    fn data_type() -> DataType {
        DataType::Boolean
    }

    fn builder(rows: usize) -> Self::Builder {
        vec![0; rows.div_ceil(8)]
    }

    #[inline(always)]
    fn put(self, builder: &mut Self::Builder, row: usize) {
        builder[row >> 3] |= u8::from(self) << (row & 7);
    }

    #[inline(always)]
    fn skip(_builder: &mut Self::Builder, _row: usize) {}

    fn finish(builder: Self::Builder) -> Column {
        all_valid(Values::Boolean(builder))
    }
}

impl<const N: usize> OutputValue for [f32; N] {
    type Builder = Vec<f32>;

    fn data_type() -> DataType {
        vector_type::<N>()
    }

    fn builder(rows: usize) -> Self::Builder {
        vec![0.0; rows * N]
    }

    #[inline(always)]
    fn put(self, builder: &mut Self::Builder, row: usize) {
        builder[row * N..][..N].copy_from_slice(&self);
    }

    #[inline(always)]
    fn skip(_builder: &mut Self::Builder, _row: usize) {}

    fn finish(builder: Self::Builder) -> Column {
        all_valid(Values::Vector(builder))
    }
}

/// Values of varying length, end to end.
pub struct Joined<T> {
    offsets: Vec<u32>,
    elements: Vec<T>,
}

/// Room that is set aside for a value of varying length: enough for most names and codes.
const EXPECTED_BYTES: usize = 16;

impl<T: Copy> Joined<T> {
    fn new(rows: usize, expected: usize) -> Self {
        let mut offsets = Vec::with_capacity(rows + 1);
        offsets.push(0);
        Self { offsets, elements: Vec::with_capacity(rows * expected) }
    }

    #[inline(always)]
    fn put(&mut self, value: &[T]) {
        self.elements.extend_from_slice(value);
        self.end_value();
    }

    /// Memory ends long before 32 bits do in a component; a native test that gets there is told by the offsets.
    #[inline(always)]
    fn end_value(&mut self) {
        self.offsets.push(self.elements.len() as u32);
    }
}

impl Joined<u8> {
    fn finish(self) -> VariableBytes {
        VariableBytes { offsets: self.offsets, bytes: self.elements }
    }
}

macro_rules! variable_bytes {
    ($($rust:ty => $case:ident, $as_bytes:expr;)*) => {$(
        impl OutputValue for $rust {
            type Builder = Joined<u8>;

            fn data_type() -> DataType {
                DataType::$case
            }

            fn builder(rows: usize) -> Self::Builder {
                Joined::new(rows, EXPECTED_BYTES)
            }

            #[inline(always)]
            fn put(self, builder: &mut Self::Builder, _row: usize) {
                builder.put($as_bytes(self.as_ref()));
            }

            #[inline(always)]
            fn skip(builder: &mut Self::Builder, _row: usize) {
                builder.end_value();
            }

            fn finish(builder: Self::Builder) -> Column {
                all_valid(Values::$case(builder.finish()))
            }
        }
    )*};
}

variable_bytes! {
    String => Utf8, str::as_bytes;
    &str => Utf8, str::as_bytes;
    Vec<u8> => Binary, std::convert::identity::<&[u8]>;
    &[u8] => Binary, std::convert::identity::<&[u8]>;
}

macro_rules! number_lists {
    ($($rust:ty, $element:ty => $case:ident;)*) => {$(
        impl OutputValue for $rust {
            type Builder = Joined<$element>;

            fn data_type() -> DataType {
                DataType::List(ElementType::$case)
            }

            fn builder(rows: usize) -> Self::Builder {
                Joined::new(rows, 1)
            }

            #[inline(always)]
            fn put(self, builder: &mut Self::Builder, _row: usize) {
                builder.put(&self);
            }

            #[inline(always)]
            fn skip(builder: &mut Self::Builder, _row: usize) {
                builder.end_value();
            }

            fn finish(builder: Self::Builder) -> Column {
                let elements = Elements::$case(builder.elements);
                all_valid(Values::List(ListValues { offsets: builder.offsets, elements }))
            }
        }
    )*};
}

number_lists! {
    Vec<i64>, i64 => Int64;
    &[i64], i64 => Int64;
    Vec<f64>, f64 => Float64;
    &[f64], f64 => Float64;
}

/// Lists of text: offsets that count elements, and the elements end to end.
pub struct TextLists {
    offsets: Vec<u32>,
    texts: Joined<u8>,
}

impl TextLists {
    fn new(rows: usize) -> Self {
        let mut offsets = Vec::with_capacity(rows + 1);
        offsets.push(0);
        Self { offsets, texts: Joined::new(rows, EXPECTED_BYTES) }
    }

    fn put<'t>(&mut self, list: impl Iterator<Item = &'t str>) {
        for text in list {
            self.texts.put(text.as_bytes());
        }
        self.end_list();
    }

    fn end_list(&mut self) {
        self.offsets.push((self.texts.offsets.len() - 1) as u32);
    }

    fn finish(self) -> Column {
        let elements = Elements::Utf8(self.texts.finish());
        all_valid(Values::List(ListValues { offsets: self.offsets, elements }))
    }
}

macro_rules! text_lists {
    ($($rust:ty, $as_str:expr;)*) => {$(
        impl OutputValue for $rust {
            type Builder = TextLists;

            fn data_type() -> DataType {
                DataType::List(ElementType::Utf8)
            }

            fn builder(rows: usize) -> Self::Builder {
                TextLists::new(rows)
            }

            #[inline(always)]
            fn put(self, builder: &mut Self::Builder, _row: usize) {
                builder.put(self.iter().map($as_str));
            }

            #[inline(always)]
            fn skip(builder: &mut Self::Builder, _row: usize) {
                builder.end_list();
            }

            fn finish(builder: Self::Builder) -> Column {
                builder.finish()
            }
        }
    )*};
}

text_lists! {
    Vec<String>, String::as_str;
    Vec<&str>, |text| *text;
}

/// A column with nulls.
pub struct Nullable<B> {
    values: B,
    /// Empty until the first null.
    validity: Vec<u8>,
    rows: usize,
}

impl<B> Nullable<B> {
    #[inline(always)]
    fn set_null(&mut self, row: usize) {
        if self.validity.is_empty() {
            self.validity = every_bit_set(self.rows);
        }
        self.validity[row >> 3] &= !(1 << (row & 7));
    }
}

/// Bits beyond the last row are zero.
#[cold]
fn every_bit_set(rows: usize) -> Vec<u8> {
    let mut bits = vec![u8::MAX; rows.div_ceil(8)];
    if let (Some(last), used) = (bits.last_mut(), rows & 7)
        && used != 0
    {
        *last = (1 << used) - 1;
    }
    bits
}

impl<T: OutputValue> OutputValue for Option<T> {
    const NULLABLE: bool = true;
    type Builder = Nullable<T::Builder>;

    fn data_type() -> DataType {
        const { assert!(!T::NULLABLE, "a field is nullable once: Option<Option<…>> is no feature type") };
        T::data_type()
    }

    fn builder(rows: usize) -> Self::Builder {
        Nullable { values: T::builder(rows), validity: Vec::new(), rows }
    }

    #[inline(always)]
    fn put(self, builder: &mut Self::Builder, row: usize) {
        match self {
            Some(value) => value.put(&mut builder.values, row),
            None => {
                builder.set_null(row);
                T::skip(&mut builder.values, row);
            }
        }
    }

    #[inline(always)]
    fn skip(builder: &mut Self::Builder, row: usize) {
        T::skip(&mut builder.values, row);
    }

    fn finish(builder: Self::Builder) -> Column {
        Column { validity: builder.validity, ..T::finish(builder.values) }
    }
}
