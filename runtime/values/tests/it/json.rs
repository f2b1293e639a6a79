//! JSON: writing to text and reading back keeps the bits; what is not the declared type is refused.

use eadem_values::{
    DataType, ElementType, JsonColumn, Value, ValueError, array_from_values, value_from_json, value_to_json,
};
use proptest::prelude::*;
use serde_json::json;

use crate::strategies::{any_f32, any_f64, any_type, any_value, cases};

fn through_text(data_type: DataType, value: &Value) -> Value {
    let text = serde_json::to_string(&value_to_json(value)).unwrap();
    let column = array_from_values(data_type, [value, &Value::Null]).unwrap();
    let mut written = Vec::new();
    for row in 0..2 {
        JsonColumn::try_new(&column).unwrap().write(row, &mut written).unwrap();
    }
    assert_eq!(String::from_utf8(written).unwrap(), format!("{text}null"), "the same text without a value in between");
    value_from_json(data_type, &serde_json::from_str(&text).unwrap()).unwrap()
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn text_keeps_the_bits(
        (data_type, value) in any_type().prop_flat_map(|data_type| (Just(data_type), any_value(data_type))),
    ) {
        let back = through_text(data_type, &value);
        prop_assert!(back.bits_eq(&value.clone().canonical()), "{:?} became {:?}", value, back);
    }

    #[test]
    fn every_float_keeps_its_bits(double in any_f64(), single in any_f32()) {
        let double = Value::Float64(double);
        prop_assert!(through_text(DataType::Float64, &double).bits_eq(&double.canonical()));
        let single = Value::Float32(single);
        prop_assert!(through_text(DataType::Float32, &single).bits_eq(&single.canonical()));
    }

    /// Nine significant digits always suffice for a float32; printed by way of float64 it would have up to seventeen.
    #[test]
    fn float32_prints_as_float32(value in any_f32()) {
        prop_assume!(value.is_finite());
        let text = serde_json::to_string(&value_to_json(&Value::Float32(value))).unwrap();
        let mantissa = text.split('e').next().unwrap();
        let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
        let significant = digits.trim_start_matches('0').trim_end_matches('0').len();
        prop_assert!(significant <= 9, "{} has {} digits", text, significant);
        prop_assert_eq!(text.parse::<f32>().unwrap().to_bits(), value.to_bits());
    }

    #[test]
    fn any_instant_survives(us in any::<i64>()) {
        let value = Value::Timestamp(us);
        prop_assert_eq!(through_text(DataType::Timestamp, &value), value);
    }
}

#[test]
fn instants_are_text_while_rfc_3339_can_write_them() {
    let last_of_9999 = 253_402_300_799_999_999;
    let first_of_0 = -62_167_219_200_000_000;
    let cases = [
        (0, json!("1970-01-01T00:00:00Z")),
        (1, json!("1970-01-01T00:00:00.000001Z")),
        (100_000, json!("1970-01-01T00:00:00.100000Z")),
        (-1, json!("1969-12-31T23:59:59.999999Z")),
        (last_of_9999, json!("9999-12-31T23:59:59.999999Z")),
        (last_of_9999 + 1, json!(last_of_9999 + 1)),
        (first_of_0, json!("0000-01-01T00:00:00Z")),
        (first_of_0 - 1, json!(first_of_0 - 1)),
        (i64::MIN, json!(i64::MIN)),
        (i64::MAX, json!(i64::MAX)),
    ];
    for (us, expected) in cases {
        let value = Value::Timestamp(us);
        assert_eq!(value_to_json(&value), expected);
        assert_eq!(through_text(DataType::Timestamp, &value), value);
    }
}

#[test]
fn readers_take_what_people_write() {
    let cases = [
        (DataType::Float64, json!(3), Value::Float64(3.0)),
        (DataType::Float32, json!(3), Value::Float32(3.0)),
        (DataType::Float32, json!(16_777_217), Value::Float32(16_777_216.0)),
        (DataType::Float32, json!(0.1), Value::Float32(0.1)),
        (DataType::Timestamp, json!("2013-01-01T00:00:00-05:00"), Value::Timestamp(1_357_016_400_000_000)),
        (DataType::Timestamp, json!(-5), Value::Timestamp(-5)),
        (DataType::List(ElementType::Float64), json!([1, 2.5]), Value::ListFloat64(vec![1.0, 2.5])),
    ];
    for (data_type, json, expected) in cases {
        assert_eq!(value_from_json(data_type, &json), Ok(expected), "{data_type} from {json}");
    }
}

#[test]
fn null_is_null_in_every_type() {
    for data_type in crate::strategies::ALL_TYPES {
        assert_eq!(value_from_json(data_type, &json!(null)), Ok(Value::Null));
    }
    assert_eq!(value_to_json(&Value::Null), json!(null));
}

#[test]
fn other_json_is_refused_with_what_was_found() {
    use DataType as T;
    let list = T::List(ElementType::Int64);
    let cases = [
        (T::Boolean, json!(1), "expected boolean, found a number (1)"),
        (T::Boolean, json!("true"), "expected boolean, found a string (\"true\")"),
        (T::Int64, json!(1.0), "expected int64, found a number (1.0)"),
        (T::Int64, json!("1"), "expected int64, found a string (\"1\")"),
        (T::Int64, json!(9_223_372_036_854_775_808_u64), "expected int64"),
        (T::Int64, json!(true), "expected int64, found a boolean (true)"),
        (T::Float64, json!("nan"), "expected float64, found a string (\"nan\")"),
        (T::Float64, json!(true), "expected float64, found a boolean (true)"),
        (T::Float32, json!("1.5"), "expected float32, found a string (\"1.5\")"),
        (T::Float32, json!(3.5e38), "3.5e+38 does not fit into float32"),
        (T::Utf8, json!(1), "expected utf8, found a number (1)"),
        (T::Binary, json!("not base64!"), "not base64"),
        (T::Binary, json!([1]), "expected binary, found an array"),
        (T::Timestamp, json!("2013-01-01T00:00:00"), "RFC 3339 with a zone"),
        (T::Timestamp, json!("yesterday"), "`yesterday` is not a timestamp"),
        (T::Timestamp, json!(1.5), "expected timestamp, found a number (1.5)"),
        (T::Vector(2), json!([1.0]), "expected vector(2), found an array"),
        (T::Vector(1), json!([null]), "expected float32, found null"),
        (T::Vector(1), json!(1.0), "expected vector(1), found a number"),
        (list, json!([1, null]), "expected list(int64)"),
        (list, json!([1.5]), "expected list(int64)"),
        (list, json!({"a": 1}), "found an object"),
        (T::List(ElementType::Utf8), json!(["a", 1]), "expected list(utf8)"),
        (T::List(ElementType::Float64), json!([null]), "expected float64, found null"),
    ];
    for (data_type, json, expected) in cases {
        let message = value_from_json(data_type, &json).unwrap_err().to_string();
        assert!(message.contains(expected), "{data_type} from {json}: {message}");
    }
}

#[test]
fn long_json_is_not_repeated_in_messages() {
    let long = json!("x".repeat(10_000));
    let error = value_from_json(DataType::Int64, &long).unwrap_err();
    assert_eq!(error, ValueError::WrongType { expected: "int64".into(), found: "a string".into() });
}
