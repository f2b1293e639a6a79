//! Names of types, Arrow's counterparts, literals.

use std::sync::Arc;

use arrow_schema::{DataType as ArrowType, Field as ArrowField, TimeUnit};
use eadem_values::{Constraint, DataType, ElementType, Field, Literal, Value, arrow_schema};

use crate::strategies::ALL_TYPES;

#[test]
fn names_are_read_back() {
    for data_type in ALL_TYPES {
        assert_eq!(data_type.to_string().parse(), Ok(data_type));
        let json = serde_json::to_string(&data_type).unwrap();
        assert_eq!(json, format!("\"{data_type}\""));
        assert_eq!(serde_json::from_str::<DataType>(&json).unwrap(), data_type);
    }
}

#[test]
fn a_type_has_one_name() {
    for text in [
        "",
        "Boolean",
        "int32",
        "float",
        "string",
        "vector",
        "vector()",
        "vector(0)",
        "vector(03)",
        "vector(+3)",
        "vector(-1)",
        "vector(2147483648)",
        "vector(3",
        "list",
        "list(boolean)",
        "list(float32)",
        " int64",
    ] {
        let error = text.parse::<DataType>().unwrap_err();
        assert!(error.to_string().contains(&format!("unknown type `{text}`")), "{error}");
    }
    assert_eq!("vector(2147483647)".parse(), Ok(DataType::Vector(i32::MAX as u32)));
}

#[test]
fn every_type_has_one_arrow_type() {
    for data_type in ALL_TYPES {
        assert_eq!(DataType::from_arrow(&data_type.to_arrow()), Some(data_type));
    }
}

#[test]
fn arrow_types_that_need_a_cast_are_none() {
    let float = |name: &str| Arc::new(ArrowField::new(name, ArrowType::Float32, true));
    for arrow in [
        ArrowType::Int32,
        ArrowType::UInt64,
        ArrowType::LargeUtf8,
        ArrowType::Utf8View,
        ArrowType::Date32,
        ArrowType::Null,
        ArrowType::Timestamp(TimeUnit::Microsecond, None),
        ArrowType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())),
        ArrowType::Timestamp(TimeUnit::Microsecond, Some("America/New_York".into())),
        ArrowType::FixedSizeList(float("item"), 0),
        ArrowType::FixedSizeList(float("item"), -1),
        ArrowType::List(float("item")),
        ArrowType::Decimal128(10, 2),
    ] {
        assert_eq!(DataType::from_arrow(&arrow), None, "{arrow}");
    }
}

#[test]
fn names_of_nested_fields_do_not_matter() {
    let element = |nullable| Arc::new(ArrowField::new("element", ArrowType::Float32, nullable));
    assert_eq!(DataType::from_arrow(&ArrowType::FixedSizeList(element(true), 3)), Some(DataType::Vector(3)));
    assert_eq!(DataType::from_arrow(&ArrowType::FixedSizeList(element(false), 3)), Some(DataType::Vector(3)));
}

#[test]
fn fields_become_a_schema_in_their_order() {
    let fields = [Field::new("b", DataType::Utf8, true), Field::new("a", DataType::Vector(2), false)];
    let schema = arrow_schema(&fields);
    let described: Vec<_> = schema.fields().iter().map(|field| (field.name().as_str(), field.is_nullable())).collect();
    assert_eq!(described, [("b", true), ("a", false)]);
    assert_eq!(schema.field(1).data_type(), &DataType::Vector(2).to_arrow());
}

#[test]
fn not_null_is_a_constraint_as_well_as_a_type() {
    let mut field = Field::new("f", DataType::Int64, true);
    assert!(field.accepts_null());
    field.constraints.push(Constraint::NotNull);
    assert!(!field.accepts_null());
    assert!(!Field::new("f", DataType::Int64, false).accepts_null());
}

#[test]
fn fields_survive_json() {
    let mut field = Field::new("f", DataType::List(ElementType::Utf8), true);
    field.doc = "What it is.".into();
    field.constraints = vec![
        Constraint::Min(Literal::Int64(i64::MIN)),
        Constraint::Max(Literal::Float64(0.1)),
        Constraint::Allowed(vec![Literal::Utf8("a".into()), Literal::Boolean(true)]),
        Constraint::NotNull,
        Constraint::Length { min: 0, max: u32::MAX },
        Constraint::Unit("km".into()),
    ];
    let json = serde_json::to_string(&field).unwrap();
    assert_eq!(serde_json::from_str::<Field>(&json).unwrap(), field);
}

#[test]
fn literals_take_the_type_of_their_field_or_none() {
    use DataType as T;
    let f32_max_and_more = 3.5e38;
    let cases = [
        (Literal::Boolean(true), T::Boolean, Some(Value::Boolean(true))),
        (Literal::Int64(7), T::Int64, Some(Value::Int64(7))),
        (Literal::Int64(7), T::Timestamp, Some(Value::Timestamp(7))),
        (Literal::Int64(1 << 53), T::Float64, Some(Value::Float64(9_007_199_254_740_992.0))),
        (Literal::Int64((1 << 53) + 1), T::Float64, None),
        (Literal::Int64(1 << 24), T::Float32, Some(Value::Float32(16_777_216.0))),
        (Literal::Int64((1 << 24) + 1), T::Float32, None),
        (Literal::Int64(i64::MIN), T::Float64, None),
        (Literal::Float64(0.1), T::Float64, Some(Value::Float64(0.1))),
        (Literal::Float64(0.1), T::Float32, Some(Value::Float32(0.1))),
        (Literal::Float64(f32_max_and_more), T::Float32, None),
        (Literal::Float64(f64::INFINITY), T::Float32, Some(Value::Float32(f32::INFINITY))),
        (Literal::Float64(1.0), T::Int64, None),
        (Literal::Utf8("a".into()), T::Utf8, Some(Value::Utf8("a".into()))),
        (Literal::Utf8("a".into()), T::Binary, None),
        (Literal::Boolean(true), T::Int64, None),
    ];
    for (literal, data_type, expected) in cases {
        assert_eq!(literal.to_value(data_type), expected, "{literal:?} as {data_type}");
    }
    let foreign_nan = Literal::Float64(f64::from_bits(0xfff0_0000_0000_0001));
    for data_type in [T::Float32, T::Float64] {
        let value = foreign_nan.to_value(data_type).unwrap();
        assert!(value.bits_eq(&value.clone().canonical()), "{value:?}");
    }
}
