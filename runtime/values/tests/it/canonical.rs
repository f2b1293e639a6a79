//! One bit pattern per value, whatever the column looked like.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, BooleanArray, FixedSizeListArray, Float64Array, Int64Array, ListArray};
use arrow_array::{StringArray, TimestampMicrosecondArray};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer};
use arrow_schema::{DataType as ArrowType, Field as ArrowField};
use eadem_values::{
    BatchEncoder, CANONICAL_NAN_F32, CANONICAL_NAN_F64, DataType, ElementType, ValueError, array_from_values,
    canonicalize, null_element_rows, value_at,
};
use proptest::prelude::*;

use crate::strategies::{ALL_TYPES, cases, foreign_array, wild_column, with_nulls};

/// Everything a guest could see of a column: whole bytes of bitmaps, offsets, values under nulls.
#[derive(Debug, PartialEq)]
struct Seen {
    arrow_type: ArrowType,
    validity: Option<Vec<u8>>,
    offsets: Vec<i32>,
    bytes: Vec<u8>,
    child: Option<Box<Seen>>,
}

fn seen(array: &ArrayRef) -> Seen {
    let validity = array.nulls().map(|nulls| bitmap(nulls.inner()));
    let flat = |bytes: Vec<u8>| (Vec::new(), bytes, None);
    let (offsets, bytes, child) = match DataType::from_arrow(array.data_type()).unwrap() {
        DataType::Boolean => flat(bitmap(array.as_boolean().values())),
        DataType::Int64 => flat(array.as_primitive::<Int64Type>().values().inner().to_vec()),
        DataType::Float32 => flat(array.as_primitive::<Float32Type>().values().inner().to_vec()),
        DataType::Float64 => flat(array.as_primitive::<Float64Type>().values().inner().to_vec()),
        DataType::Timestamp => flat(array.as_primitive::<TimestampMicrosecondType>().values().inner().to_vec()),
        DataType::Utf8 => {
            let text = array.as_string::<i32>();
            (text.offsets().to_vec(), text.value_data().to_vec(), None)
        }
        DataType::Binary => {
            let binary = array.as_binary::<i32>();
            (binary.offsets().to_vec(), binary.value_data().to_vec(), None)
        }
        DataType::Vector(_) => (vec![], vec![], Some(Box::new(seen(array.as_fixed_size_list().values())))),
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            (list.offsets().to_vec(), vec![], Some(Box::new(seen(list.values()))))
        }
    };
    Seen { arrow_type: array.data_type().clone(), validity, offsets, bytes, child }
}

/// The whole bytes; they must begin at bit 0 and be no more than needed.
fn bitmap(bits: &BooleanBuffer) -> Vec<u8> {
    assert_eq!(bits.offset(), 0, "a canonical bitmap begins at bit 0");
    assert_eq!(bits.inner().len(), bits.len().div_ceil(8), "a canonical bitmap has no bytes to spare");
    bits.inner().to_vec()
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn the_representation_depends_on_nothing_but_the_values(column in wild_column()) {
        let canonical = canonicalize(&column.array).unwrap();
        let values: Vec<_> = column.values.iter().cloned().map(eadem_values::Value::canonical).collect();
        let built_afresh = canonicalize(&array_from_values(column.data_type, &values).unwrap()).unwrap();
        prop_assert_eq!(seen(&canonical), seen(&built_afresh));
        prop_assert_eq!(canonical.data_type(), &column.data_type.to_arrow());
    }

    #[test]
    fn values_stay_what_they_are(column in wild_column()) {
        let canonical = canonicalize(&column.array).unwrap();
        prop_assert_eq!(canonical.len(), column.values.len());
        for (row, value) in column.values.iter().enumerate() {
            let kept = value_at(&canonical, row).unwrap();
            prop_assert!(kept.bits_eq(&value.clone().canonical()), "row {}: {:?} became {:?}", row, value, kept);
        }
    }

    #[test]
    fn canonical_columns_are_left_alone(column in wild_column()) {
        let once = canonicalize(&column.array).unwrap();
        let twice = canonicalize(&once).unwrap();
        prop_assert_eq!(seen(&once), seen(&twice));
        let values_begin_at = |array: &ArrayRef| {
            array.to_data().buffers().iter().filter(|buffer| !buffer.is_empty()).map(Buffer::as_ptr).collect::<Vec<_>>()
        };
        let is_copied_when_null = matches!(column.data_type, DataType::Boolean) && once.null_count() > 0;
        let offsets_are_rebuilt = matches!(column.data_type, DataType::List(_));
        if !is_copied_when_null && !offsets_are_rebuilt {
            prop_assert_eq!(values_begin_at(&once), values_begin_at(&twice), "a canonical column was copied");
        }
    }

    #[test]
    fn encodings_of_a_column_and_of_its_canonical_form_agree(column in wild_column()) {
        let wild = [Arc::clone(&column.array)];
        let canonical = [canonicalize(&column.array).unwrap()];
        let (of_wild, of_canonical) = (BatchEncoder::try_new(&wild).unwrap(), BatchEncoder::try_new(&canonical).unwrap());
        for row in 0..column.values.len() {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            of_wild.encode_row(row, &mut a);
            of_canonical.encode_row(row, &mut b);
            prop_assert_eq!(a, b);
        }
    }
}

#[test]
fn nans_of_every_kind_become_the_one() {
    let patterns = [0x7ff8_0000_0000_0000_u64, 0xfff8_0000_0000_0000, 0x7ff0_0000_0000_0001, 0xffff_ffff_ffff_ffff];
    let doubles: ArrayRef = Arc::new(Float64Array::from_iter_values(patterns.map(f64::from_bits)));
    for value in canonicalize(&doubles).unwrap().as_primitive::<Float64Type>().values() {
        assert_eq!(value.to_bits(), 0x7ff8_0000_0000_0000);
    }
    assert_eq!(CANONICAL_NAN_F64.to_bits(), 0x7ff8_0000_0000_0000);
    assert_eq!(CANONICAL_NAN_F32.to_bits(), 0x7fc0_0000);
}

#[test]
fn bits_beside_the_rows_are_zero() {
    let bits = BooleanBuffer::new(Buffer::from_vec(vec![0xff_u8; 4]), 3, 5);
    let validity = NullBuffer::new(BooleanBuffer::new(Buffer::from_vec(vec![0b1010_1101_u8, 0xff]), 0, 5));
    let column: ArrayRef = Arc::new(BooleanArray::new(bits.clone(), Some(validity)));
    let seen_with_nulls = seen(&canonicalize(&column).unwrap());
    assert_eq!(seen_with_nulls.validity, Some(vec![0b0000_1101]));
    assert_eq!(seen_with_nulls.bytes, [0b0000_1101]);
    let column: ArrayRef = Arc::new(BooleanArray::new(bits, None));
    assert_eq!(seen(&canonicalize(&column).unwrap()).bytes, [0b0001_1111]);
}

#[test]
fn a_bitmap_without_nulls_is_dropped() {
    let column: ArrayRef = Arc::new(Int64Array::new(vec![1, 2].into(), Some(NullBuffer::new_valid(2))));
    assert!(canonicalize(&column).unwrap().nulls().is_none());
}

#[test]
fn other_names_of_utc_become_utc() {
    for zone in ["UTC", "+00:00", "Z", "Etc/UTC"] {
        let column: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![1, -1]).with_timezone(zone));
        assert_eq!(canonicalize(&column).unwrap().data_type(), &DataType::Timestamp.to_arrow(), "{zone}");
    }
}

#[test]
fn foreign_types_are_refused() {
    assert!(matches!(canonicalize(&foreign_array()), Err(ValueError::UnsupportedArrowType(_))));
}

#[test]
fn empty_columns_are_canonical() {
    for data_type in ALL_TYPES {
        let empty = array_from_values(data_type, &[]).unwrap();
        assert_eq!(canonicalize(&empty).unwrap().len(), 0);
        let sliced_to_nothing = array_from_values(data_type, &[eadem_values::Value::Null]).unwrap().slice(1, 0);
        assert_eq!(canonicalize(&sliced_to_nothing).unwrap().len(), 0);
    }
}

/// Columns from files may declare nullable elements, and then hold null ones.
fn list_with_null_element(nulls: Option<NullBuffer>) -> ArrayRef {
    let texts = StringArray::from(vec![Some("a"), None, Some("c")]);
    let item = Arc::new(ArrowField::new("element", ArrowType::Utf8, true));
    Arc::new(ListArray::new(item, OffsetBuffer::from_lengths([1, 2]), Arc::new(texts), nulls))
}

fn vector_with_null_element(nulls: Option<NullBuffer>) -> ArrayRef {
    let elements = arrow_array::Float32Array::from(vec![Some(1.0), Some(2.0), None, Some(4.0)]);
    let item = Arc::new(ArrowField::new("element", ArrowType::Float32, true));
    Arc::new(FixedSizeListArray::new(item, 2, Arc::new(elements), nulls))
}

#[test]
fn null_elements_are_refused_and_named() {
    for column in [list_with_null_element(None), vector_with_null_element(None)] {
        assert_eq!(null_element_rows(&column), [1]);
        assert_eq!(canonicalize(&column), Err(ValueError::NullElement { row: 1 }));
        assert_eq!(value_at(&column, 1), Err(ValueError::NullElement { row: 1 }));
        assert!(value_at(&column, 0).is_ok());
        assert!(BatchEncoder::try_new(&[Arc::clone(&column)]).is_err());
        assert_eq!(null_element_rows(&column.slice(1, 1)), [0]);
        assert!(canonicalize(&column.slice(0, 1)).is_ok());
    }
}

#[test]
fn null_elements_under_a_null_do_not_count() {
    let second_is_null = || Some(NullBuffer::from(vec![true, false]));
    for column in [list_with_null_element(second_is_null()), vector_with_null_element(second_is_null())] {
        assert!(null_element_rows(&column).is_empty());
        let canonical = canonicalize(&column).unwrap();
        assert!(canonical.is_null(1));
        assert_eq!(value_at(&canonical, 0), value_at(&column, 0));
        assert!(BatchEncoder::try_new(&[column]).is_ok());
    }
}

#[test]
fn nullable_elements_without_nulls_are_accepted() {
    let element = ElementType::Int64;
    let item = Arc::new(ArrowField::new("element", element.to_arrow(), true));
    let elements = Int64Array::new(vec![1, 2].into(), Some(NullBuffer::new_valid(2)));
    let column: ArrayRef = Arc::new(ListArray::new(item, OffsetBuffer::from_lengths([2]), Arc::new(elements), None));
    assert_eq!(canonicalize(&column).unwrap().data_type(), &DataType::List(element).to_arrow());
}

#[test]
fn garbage_under_a_null_is_wiped() {
    let secret = array_from_values(DataType::Utf8, &[eadem_values::Value::Utf8("secret".into())]).unwrap();
    let hidden = with_nulls(&secret, Some(NullBuffer::new_null(1)));
    let wiped = seen(&canonicalize(&hidden).unwrap());
    assert_eq!((wiped.offsets, wiped.bytes), (vec![0, 0], vec![]));
}
