//! Between values and Arrow columns.

use arrow_array::Array;
use eadem_values::{DataType, Value, ValueError, array_from_values, null_array, value_at};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::strategies::{ALL_TYPES, any_type, any_value, cases, foreign_array, wild_column};

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_column_holds_the_values_it_was_built_from(
        (data_type, values) in any_type().prop_flat_map(|data_type| (Just(data_type), vec(any_value(data_type), 0..20))),
    ) {
        let column = array_from_values(data_type, &values).unwrap();
        prop_assert_eq!(column.data_type(), &data_type.to_arrow());
        prop_assert_eq!(column.len(), values.len());
        for (row, value) in values.iter().enumerate() {
            // Not even a NaN changes here: making canonical is another step.
            prop_assert!(value_at(&column, row).unwrap().bits_eq(value));
        }
    }

    #[test]
    fn slices_and_nulls_are_respected(column in wild_column()) {
        for (row, value) in column.values.iter().enumerate() {
            prop_assert!(value_at(&column.array, row).unwrap().bits_eq(value));
        }
    }

    #[test]
    fn values_know_their_type(
        (data_type, value) in any_type().prop_flat_map(|data_type| (Just(data_type), any_value(data_type))),
    ) {
        prop_assert_eq!(value.is_null(), value.data_type().is_none());
        if let Some(found) = value.data_type() {
            prop_assert_eq!(found, data_type);
        }
    }

    #[test]
    fn only_values_of_the_type_are_taken(
        (declared, found, value) in (any_type(), any_type())
            .prop_flat_map(|(declared, found)| (Just(declared), Just(found), any_value(found))),
    ) {
        let is_taken = array_from_values(declared, [&value]).is_ok();
        prop_assert_eq!(is_taken, declared == found || value.is_null());
    }
}

#[test]
fn null_columns_are_null() {
    for data_type in ALL_TYPES {
        let column = null_array(data_type, 3);
        assert_eq!((column.len(), column.null_count()), (3, 3));
        assert_eq!(column.data_type(), &data_type.to_arrow());
        assert_eq!(value_at(&column, 2), Ok(Value::Null));
        // As a canonical column has them: elements are zero, never null themselves.
        let elements_are_null = column.to_data().child_data().iter().any(|elements| elements.null_count() > 0);
        assert!(!elements_are_null, "{data_type}");
    }
}

#[test]
fn the_same_bits_are_the_same_and_no_others() {
    let canonical = Value::Float64(eadem_values::CANONICAL_NAN_F64);
    let payload = Value::Float64(f64::from_bits(0x7ff8_0000_0000_0001));
    assert!(canonical.bits_eq(&canonical.clone()));
    assert!(!canonical.bits_eq(&payload));
    assert!(canonical.bits_eq(&payload.canonical()));
    assert!(!Value::Float64(0.0).bits_eq(&Value::Float64(-0.0)));
    assert!(!Value::Vector(vec![0.0]).bits_eq(&Value::Vector(vec![-0.0])));
    assert!(!Value::ListFloat64(vec![0.0]).bits_eq(&Value::ListFloat64(vec![0.0, 0.0])));
    assert!(!Value::Int64(1).bits_eq(&Value::Timestamp(1)));
    assert!(!Value::Null.bits_eq(&Value::Boolean(false)));
    assert!(Value::Null.bits_eq(&Value::Null));
}

#[test]
fn errors_name_both_types() {
    let wrong = array_from_values(DataType::Vector(3), [&Value::Vector(vec![1.0])]).unwrap_err();
    assert_eq!(wrong, ValueError::WrongType { expected: "vector(3)".into(), found: "vector(1)".into() });
    assert_eq!(wrong.to_string(), "expected vector(3), found vector(1)");
    assert!(matches!(value_at(&foreign_array(), 0), Err(ValueError::UnsupportedArrowType(_))));
}
