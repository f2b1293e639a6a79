//! The row encoding: reading gives back what was written, columns and values write the same bytes, damage is refused.

use arrow_array::{Array as _, ArrayRef, make_array};
use eadem_values::{
    BatchEncoder, DataType, ElementType, Value, ValueError, array_from_values, canonicalize, decode_row, decode_rows,
    encode_value, encode_values, value_at,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::strategies::{any_row, any_type, any_value, cases, foreign_array, wild_column};

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_decoded_row_is_the_encoded_one((types, row) in any_row()) {
        let decoded = decode_row(&types, &encode_values(&row)).unwrap();
        prop_assert_eq!(decoded.len(), row.len());
        for (decoded, value) in decoded.iter().zip(&row) {
            prop_assert!(decoded.bits_eq(&value.clone().canonical()), "{:?} became {:?}", value, decoded);
        }
    }

    #[test]
    fn equal_bytes_mean_equal_values(
        (a, b) in any_type().prop_flat_map(|data_type| (any_value(data_type), any_value(data_type))),
    ) {
        let same_value = a.clone().canonical().bits_eq(&b.clone().canonical());
        prop_assert_eq!(encode_values(&[a]) == encode_values(&[b]), same_value);
    }

    #[test]
    fn a_batch_encodes_each_row_as_its_values_do(columns in vec(wild_column(), 0..4)) {
        let rows = columns.iter().map(|column| column.values.len()).min().unwrap_or(0);
        let arrays: Vec<_> = columns.iter().map(|column| column.array.clone()).collect();
        let encoder = BatchEncoder::try_new(&arrays).unwrap();
        for row in 0..rows {
            let mut of_batch = b"before".to_vec();
            encoder.encode_row(row, &mut of_batch);
            let meant: Vec<Value> = columns.iter().map(|column| column.values[row].clone()).collect();
            let read: Vec<Value> = arrays.iter().map(|array| value_at(array, row).unwrap()).collect();
            prop_assert_eq!(&of_batch[6..], encode_values(&meant));
            prop_assert_eq!(&of_batch[6..], encode_values(&read));
        }
        for (at, column) in columns.iter().enumerate() {
            let mut of_column = Vec::new();
            encoder.encode_column(at, 0..rows, &mut of_column);
            prop_assert_eq!(of_column, encode_values(&column.values[..rows]));
        }
    }

    #[test]
    fn decoded_columns_hold_the_encoded_rows(
        (types, rows) in vec(any_type(), 1..4).prop_flat_map(|types| {
            let row: Vec<_> = types.iter().map(|data_type| any_value(*data_type)).collect();
            (Just(types), vec(proptest::option::weighted(0.8, row), 0..20))
        }),
    ) {
        let encoded: Vec<Option<Vec<u8>>> = rows.iter().map(|row| Some(encode_values(row.as_ref()?))).collect();
        let slices: Vec<Option<&[u8]>> = encoded.iter().map(Option::as_deref).collect();
        let columns = decode_rows(&types, slices.iter().copied()).unwrap();
        prop_assert_eq!(columns.len(), types.len());
        for (at, (column, data_type)) in columns.iter().zip(&types).enumerate() {
            prop_assert_eq!(column.data_type(), &data_type.to_arrow());
            prop_assert_eq!(column.len(), rows.len());
            for (row, values) in rows.iter().enumerate() {
                let expected = values.as_ref().map_or(Value::Null, |values| values[at].clone().canonical());
                prop_assert!(value_at(column, row).unwrap().bits_eq(&expected));
            }
            // One form of the same values, whoever made the column.
            let expected: Vec<Value> = (0..rows.len()).map(|row| value_at(column, row).unwrap()).collect();
            let built = canonicalize(&array_from_values(*data_type, &expected).unwrap()).unwrap();
            prop_assert!(same_bytes(column, &built), "{:?} and {:?}", column, built);
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_are_an_encoding(types in vec(any_type(), 0..4), bytes in vec(any::<u8>(), 0..40)) {
        assert_reads_only_encodings(&types, &bytes)?;
    }

    #[test]
    fn damaged_rows_are_refused_or_are_an_encoding(
        (types, row) in any_row(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>(),
    ) {
        let mut bytes = encode_values(&row);
        prop_assume!(!bytes.is_empty());
        let at = at.index(bytes.len());
        if cut {
            bytes.truncate(at);
            prop_assert!(decode_row(&types, &bytes).is_err(), "a row cut short was read");
        } else {
            bytes[at] = byte;
            assert_reads_only_encodings(&types, &bytes)?;
        }
    }
}

/// Also under nulls, which arrays of equal values may differ in.
fn same_bytes(a: &ArrayRef, b: &ArrayRef) -> bool {
    let (a, b) = (a.to_data(), b.to_data());
    let mut parts = a.child_data().iter().zip(b.child_data());
    let is_same = |(a, b): (_, _)| same_bytes(&make_array(Clone::clone(a)), &make_array(Clone::clone(b)));
    a == b && a.buffers() == b.buffers() && parts.all(is_same)
}

fn assert_reads_only_encodings(types: &[DataType], bytes: &[u8]) -> Result<(), TestCaseError> {
    let columns = decode_rows(types, std::iter::once(Some(bytes)));
    prop_assert_eq!(columns.is_ok(), decode_row(types, bytes).is_ok(), "rows and columns judge differently");
    if let Ok(values) = decode_row(types, bytes) {
        prop_assert_eq!(encode_values(&values), bytes, "read what no encoder writes");
    }
    Ok(())
}

/// Type, bytes, and what the error must say.
#[test]
fn every_kind_of_damage_has_its_message() {
    let cases: [(DataType, &[u8], &str); 14] = [
        (DataType::Int64, &[], "ends too early"),
        (DataType::Int64, &[2, 0, 0], "ends too early"),
        (DataType::Int64, &[7, 0, 0, 0, 0, 0, 0, 0, 0], "another type"),
        (DataType::Int64, &[0, 0], "bytes follow"),
        (DataType::Boolean, &[1, 2], "neither 0 nor 1"),
        (DataType::Float32, &[3, 0, 0, 0xc0, 0xff], "NaN is not canonical"),
        (DataType::Float64, &[4, 1, 0, 0, 0, 0, 0, 0xf8, 0x7f], "NaN is not canonical"),
        (DataType::Utf8, &[5, 1, 0, 0, 0, 0xff], "not UTF-8"),
        (DataType::Utf8, &[5, 0xff, 0xff, 0xff, 0xff, 0x61], "exceeds the row"),
        (DataType::Vector(2), &[8, 1, 0, 0, 0, 0, 0, 0, 0], "another number of dimensions"),
        (DataType::Vector(1), &[8, 1, 0, 0, 0, 1, 0, 0x80, 0x7f], "NaN is not canonical"),
        (DataType::List(ElementType::Int64), &[9, 4, 0, 0, 0, 0], "other elements"),
        (DataType::List(ElementType::Int64), &[9, 2, 0xff, 0xff, 0xff, 0xff], "exceeds the row"),
        (DataType::List(ElementType::Utf8), &[9, 5, 1, 0, 0, 0, 9, 0, 0, 0], "exceeds the row"),
    ];
    for (data_type, bytes, expected) in cases {
        let message = decode_row(&[data_type], bytes).unwrap_err().to_string();
        assert!(message.contains(expected), "{data_type} {bytes:?}: {message}");
        assert!(decode_rows(&[data_type], std::iter::once(Some(bytes))).is_err(), "{data_type} {bytes:?}");
    }
}

#[test]
fn encoding_appends() {
    let mut bytes = vec![0xaa];
    encode_value(&Value::Boolean(true), &mut bytes);
    encode_value(&Value::Null, &mut bytes);
    assert_eq!(bytes, [0xaa, 1, 1, 0]);
}

#[test]
fn no_columns_are_an_empty_row() {
    assert_eq!(encode_values(&[]), [0_u8; 0]);
    assert_eq!(decode_row(&[], &[]), Ok(vec![]));
    assert_eq!(decode_rows(&[], [None, Some(&[][..])].into_iter()).unwrap().len(), 0);
    let int = array_from_values(DataType::Int64, &[]).unwrap();
    assert!(BatchEncoder::try_new(&[int]).is_ok());
}

#[test]
fn foreign_arrow_types_are_refused_by_name() {
    let Err(error) = BatchEncoder::try_new(&[foreign_array()]) else { panic!("a list of bytes was accepted") };
    assert!(matches!(&error, ValueError::UnsupportedArrowType(_)), "{error:?}");
    assert!(error.to_string().contains("cast it in the source's `columns`"), "{error}");
}
