//! Reading columns.

use crate::Timestamp;
use crate::contract::{Column, DataType, ElementType, Elements, Values, VariableBytes};

/// A type that a field of an input may have.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a type that an input can have",
    label = "not a feature type",
    note = "inputs are bool, i64, f32, f64, String or &str, Vec<u8> or &[u8], Timestamp, [f32; N], Vec<i64> or &[i64], \
            Vec<f64> or &[f64], Vec<String> or Vec<&str>, and Option of each"
)]
pub trait InputValue<'a>: Sized {
    /// Whether a null can be read.
    const NULLABLE: bool = false;
    /// The column, checked: indexing it by row is safe and cheap.
    #[doc(hidden)]
    type View;
    /// The type in the contract.
    fn data_type() -> DataType;
    /// None if the column has another type or another number of rows.
    #[doc(hidden)]
    fn view(column: &'a Column, rows: usize) -> Option<Self::View>;
    /// The value in one row, `row < rows`.
    #[doc(hidden)]
    fn get(view: &Self::View, row: usize) -> Self;
}

/// One bit per row, least significant first; no bytes at all mean that every bit is set.
#[derive(Clone, Copy)]
pub struct Bits<'a>(&'a [u8]);

impl<'a> Bits<'a> {
    fn validity(column: &'a Column, rows: usize) -> Option<Self> {
        let bytes = column.validity.as_slice();
        (bytes.is_empty() || bytes.len() == rows.div_ceil(8)).then_some(Self(bytes))
    }

    #[inline(always)]
    fn is_set(self, row: usize) -> bool {
        match self.0.get(row >> 3) {
            Some(byte) => byte >> (row & 7) & 1 == 1,
            None => true,
        }
    }
}

macro_rules! numbers {
    ($($rust:ty, $element:ty => $case:ident, $as_rust:expr;)*) => {$(
        impl<'a> InputValue<'a> for $rust {
            type View = &'a [$element];

            fn data_type() -> DataType {
                DataType::$case
            }

            fn view(column: &'a Column, rows: usize) -> Option<Self::View> {
                let Values::$case(values) = &column.values else { return None };
                values.get(..rows).filter(|_| values.len() == rows)
            }

            #[inline(always)]
            fn get(view: &Self::View, row: usize) -> Self {
                $as_rust(view[row])
            }
        }
    )*};
}

numbers! {
    i64, i64 => Int64, |value| value;
    f32, f32 => Float32, |value| value;
    f64, f64 => Float64, |value| value;
    Timestamp, i64 => Timestamp, Timestamp::from_micros;
}

impl<'a> InputValue<'a> for bool {
    type View = Bits<'a>;

    fn data_type() -> DataType {
        DataType::Boolean
    }

    fn view(column: &'a Column, rows: usize) -> Option<Self::View> {
        let Values::Boolean(bits) = &column.values else { return None };
        (bits.len() == rows.div_ceil(8)).then_some(Bits(bits))
    }

    #[inline(always)]
    fn get(view: &Self::View, row: usize) -> Self {
        view.is_set(row)
    }
}

/// Values of varying length, end to end.
#[derive(Clone, Copy)]
pub struct Slices<'a, T> {
    offsets: &'a [u32],
    elements: &'a [T],
}

impl<'a, T> Slices<'a, T> {
    fn new(offsets: &'a [u32], elements: &'a [T], rows: usize) -> Option<Self> {
        let offsets = offsets.get(..rows + 1).filter(|_| offsets.len() == rows + 1)?;
        Some(Self { offsets, elements })
    }

    /// Panics if the store broke the contract and the offsets fall or lead outside.
    #[inline(always)]
    fn get(&self, row: usize) -> &'a [T] {
        &self.elements[self.offsets[row] as usize..self.offsets[row + 1] as usize]
    }
}

impl<'a> Slices<'a, u8> {
    fn of(values: &'a VariableBytes, rows: usize) -> Option<Self> {
        Self::new(&values.offsets, &values.bytes, rows)
    }

    #[inline(always)]
    fn text(&self, row: usize) -> &'a str {
        text(self.get(row))
    }
}

/// Text that the store has checked. In a component it is not checked again; in a native test it is.
#[inline(always)]
fn text(bytes: &[u8]) -> &str {
    #[cfg(target_arch = "wasm32")]
    {
        // SAFETY: the contract says that utf8 columns hold UTF-8 with offsets between characters, and the store takes
        // them from Arrow string arrays, whose construction checks it. Nothing beyond this instance could suffer.
        #[allow(unsafe_code)]
        unsafe {
            std::str::from_utf8_unchecked(bytes)
        }
    }
    #[cfg(not(target_arch = "wasm32"))]
    {
        // A native column comes from a test; the empty string stands for the breach.
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

macro_rules! borrowed_and_owned {
    ($($borrowed:ty, $owned:ty => $case:ident, $method:ident;)*) => {$(
        impl<'a> InputValue<'a> for $borrowed {
            type View = Slices<'a, u8>;

            fn data_type() -> DataType {
                DataType::$case
            }

            fn view(column: &'a Column, rows: usize) -> Option<Self::View> {
                let Values::$case(values) = &column.values else { return None };
                Slices::of(values, rows)
            }

            #[inline(always)]
            fn get(view: &Self::View, row: usize) -> Self {
                view.$method(row)
            }
        }

        impl<'a> InputValue<'a> for $owned {
            type View = Slices<'a, u8>;

            fn data_type() -> DataType {
                DataType::$case
            }

            fn view(column: &'a Column, rows: usize) -> Option<Self::View> {
                <$borrowed>::view(column, rows)
            }

            #[inline(always)]
            fn get(view: &Self::View, row: usize) -> Self {
                view.$method(row).to_owned()
            }
        }
    )*};
}

borrowed_and_owned! {
    &'a str, String => Utf8, text;
    &'a [u8], Vec<u8> => Binary, get;
}

impl<'a, const N: usize> InputValue<'a> for [f32; N] {
    type View = &'a [[f32; N]];

    fn data_type() -> DataType {
        vector_type::<N>()
    }

    fn view(column: &'a Column, rows: usize) -> Option<Self::View> {
        let Values::Vector(values) = &column.values else { return None };
        let (vectors, rest) = values.as_chunks::<N>();
        vectors.get(..rows).filter(|_| vectors.len() == rows && rest.is_empty())
    }

    #[inline(always)]
    fn get(view: &Self::View, row: usize) -> Self {
        view[row]
    }
}

pub(crate) const fn vector_type<const N: usize>() -> DataType {
    const { assert!(N > 0 && N <= u32::MAX as usize, "a vector has at least one element") };
    DataType::Vector(N as u32)
}

macro_rules! number_lists {
    ($($element:ty => $case:ident;)*) => {$(
        impl<'a> InputValue<'a> for &'a [$element] {
            type View = Slices<'a, $element>;

            fn data_type() -> DataType {
                DataType::List(ElementType::$case)
            }

            fn view(column: &'a Column, rows: usize) -> Option<Self::View> {
                let Values::List(list) = &column.values else { return None };
                let Elements::$case(elements) = &list.elements else { return None };
                Slices::new(&list.offsets, elements, rows)
            }

            #[inline(always)]
            fn get(view: &Self::View, row: usize) -> Self {
                view.get(row)
            }
        }

        impl<'a> InputValue<'a> for Vec<$element> {
            type View = Slices<'a, $element>;

            fn data_type() -> DataType {
                DataType::List(ElementType::$case)
            }

            fn view(column: &'a Column, rows: usize) -> Option<Self::View> {
                <&'a [$element]>::view(column, rows)
            }

            #[inline(always)]
            fn get(view: &Self::View, row: usize) -> Self {
                view.get(row).to_vec()
            }
        }
    )*};
}

number_lists! {
    i64 => Int64;
    f64 => Float64;
}

/// Lists of text: offsets that count elements, and for the elements offsets that count bytes.
#[derive(Clone, Copy)]
pub struct TextLists<'a> {
    lists: Slices<'a, u32>,
    last_end: &'a [u32],
    bytes: &'a [u8],
}

impl<'a> TextLists<'a> {
    fn of(column: &'a Column, rows: usize) -> Option<Self> {
        let Values::List(list) = &column.values else { return None };
        let Elements::Utf8(texts) = &list.elements else { return None };
        // Element i begins at offset i and ends at offset i + 1.
        let (begins, ends) = (texts.offsets.get(..texts.offsets.len().checked_sub(1)?)?, texts.offsets.get(1..)?);
        Some(Self { lists: Slices::new(&list.offsets, begins, rows)?, last_end: ends, bytes: &texts.bytes })
    }

    #[inline(always)]
    fn get(&self, row: usize) -> impl ExactSizeIterator<Item = &'a str> + use<'a> {
        let begins = self.lists.get(row);
        let ends = &self.last_end[self.lists.offsets[row] as usize..][..begins.len()];
        let bytes = self.bytes;
        begins.iter().zip(ends).map(move |(begin, end)| text(&bytes[*begin as usize..*end as usize]))
    }
}

impl<'a> InputValue<'a> for Vec<&'a str> {
    type View = TextLists<'a>;

    fn data_type() -> DataType {
        DataType::List(ElementType::Utf8)
    }

    fn view(column: &'a Column, rows: usize) -> Option<Self::View> {
        TextLists::of(column, rows)
    }

    #[inline(always)]
    fn get(view: &Self::View, row: usize) -> Self {
        view.get(row).collect()
    }
}

impl<'a> InputValue<'a> for Vec<String> {
    type View = TextLists<'a>;

    fn data_type() -> DataType {
        DataType::List(ElementType::Utf8)
    }

    fn view(column: &'a Column, rows: usize) -> Option<Self::View> {
        TextLists::of(column, rows)
    }

    #[inline(always)]
    fn get(view: &Self::View, row: usize) -> Self {
        view.get(row).map(str::to_owned).collect()
    }
}

impl<'a, T: InputValue<'a>> InputValue<'a> for Option<T> {
    const NULLABLE: bool = true;
    type View = (Bits<'a>, T::View);

    fn data_type() -> DataType {
        const { assert!(!T::NULLABLE, "a field is nullable once: Option<Option<…>> is no feature type") };
        T::data_type()
    }

    fn view(column: &'a Column, rows: usize) -> Option<Self::View> {
        Some((Bits::validity(column, rows)?, T::view(column, rows)?))
    }

    #[inline(always)]
    fn get((valid, values): &Self::View, row: usize) -> Self {
        if valid.is_set(row) { Some(T::get(values, row)) } else { None }
    }
}
