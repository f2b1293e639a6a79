//! Random values of every type, with the bit patterns that go wrong elsewhere far more often than chance would have it.

use std::sync::Arc;

use arrow_array::builder::{BinaryBuilder, ListBuilder};
use arrow_array::{ArrayRef, make_array};
use arrow_buffer::{BooleanBuffer, NullBuffer};
use eadem_values::{DataType, ElementType, Value, array_from_values};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::RngSeed;

/// 2,000 cases, or 50,000 with `EADEM_SOAK=1`; always the same ones, or others with another `EADEM_SEED`.
pub(crate) fn cases() -> ProptestConfig {
    let soak = std::env::var("EADEM_SOAK").is_ok_and(|value| value == "1");
    let cases = if soak { 50_000 } else { 2_000 };
    ProptestConfig { cases, max_global_rejects: cases, rng_seed: seed(), ..ProptestConfig::default() }
}

fn seed() -> RngSeed {
    let seed: u64 = std::env::var("EADEM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_130_101);
    println!("EADEM_SEED={seed}");
    RngSeed::Fixed(seed)
}

pub(crate) const ALL_TYPES: [DataType; 13] = [
    DataType::Boolean,
    DataType::Int64,
    DataType::Float32,
    DataType::Float64,
    DataType::Utf8,
    DataType::Binary,
    DataType::Timestamp,
    DataType::Vector(1),
    DataType::Vector(2),
    DataType::Vector(5),
    DataType::List(ElementType::Int64),
    DataType::List(ElementType::Float64),
    DataType::List(ElementType::Utf8),
];

pub(crate) fn any_type() -> impl Strategy<Value = DataType> {
    select(ALL_TYPES.to_vec())
}

pub(crate) const F64_CORNERS: [u64; 16] = [
    0x0000_0000_0000_0000, // 0.0
    0x8000_0000_0000_0000, // -0.0
    0x0000_0000_0000_0001, // the smallest subnormal
    0x800f_ffff_ffff_ffff, // the greatest negative subnormal
    0x0010_0000_0000_0000, // the smallest normal
    0x7fef_ffff_ffff_ffff, // the greatest
    0xffef_ffff_ffff_ffff,
    0x7ff0_0000_0000_0000, // infinities
    0xfff0_0000_0000_0000,
    0x7ff8_0000_0000_0000, // NaN: canonical, negative, signalling, with payloads
    0xfff8_0000_0000_0000,
    0x7ff0_0000_0000_0001,
    0xfff4_0000_dead_beef,
    0x7fff_ffff_ffff_ffff,
    0x3fb9_9999_9999_999a, // 0.1
    0x4340_0000_0000_0001, // 2^53 + 2
];

pub(crate) const F32_CORNERS: [u32; 14] = [
    0x0000_0000,
    0x8000_0000,
    0x0000_0001,
    0x807f_ffff,
    0x0080_0000,
    0x7f7f_ffff,
    0xff7f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffc0_0000,
    0x7f80_0001,
    0xffad_beef,
    0x3dcc_cccd,
];

fn any_i64() -> impl Strategy<Value = i64> {
    prop_oneof![
        any::<i64>(),
        -3_i64..3,
        select(vec![i64::MIN, i64::MIN + 1, i64::MAX, i64::MAX - 1, (1 << 53) + 1, -(1 << 53) - 1]),
    ]
}

pub(crate) fn any_f32() -> impl Strategy<Value = f32> {
    let ordinary = (-100_000_i32..100_000).prop_map(|hundredths| hundredths as f32 / 100.0);
    prop_oneof![any::<u32>().prop_map(f32::from_bits), select(F32_CORNERS.to_vec()).prop_map(f32::from_bits), ordinary]
}

pub(crate) fn any_f64() -> impl Strategy<Value = f64> {
    let ordinary = (-100_000_i32..100_000).prop_map(|hundredths| f64::from(hundredths) / 100.0);
    prop_oneof![any::<u64>().prop_map(f64::from_bits), select(F64_CORNERS.to_vec()).prop_map(f64::from_bits), ordinary]
}

fn any_timestamp() -> impl Strategy<Value = i64> {
    // Most of the range of i64 lies outside the years that RFC 3339 can write, so both sides are drawn on purpose.
    prop_oneof![any_i64(), -70_000_000_000_000_000_i64..260_000_000_000_000_000, -5_000_000_i64..5_000_000]
}

pub(crate) fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        "[a-zA-Z0-9]{1,8}",
        vec(any::<char>(), 0..6).prop_map(|chars| chars.into_iter().collect()),
        select(vec!["\0", "a\u{301}", "á", "✈", "🛩\u{fe0f}", "\u{feff}", "\"\\\n", "NaN", "null"])
            .prop_map(str::to_owned),
    ]
}

/// A value of this type that is not null.
pub(crate) fn present(data_type: DataType) -> BoxedStrategy<Value> {
    match data_type {
        DataType::Boolean => any::<bool>().prop_map(Value::Boolean).boxed(),
        DataType::Int64 => any_i64().prop_map(Value::Int64).boxed(),
        DataType::Float32 => any_f32().prop_map(Value::Float32).boxed(),
        DataType::Float64 => any_f64().prop_map(Value::Float64).boxed(),
        DataType::Utf8 => any_text().prop_map(Value::Utf8).boxed(),
        DataType::Binary => vec(any::<u8>(), 0..6).prop_map(Value::Binary).boxed(),
        DataType::Timestamp => any_timestamp().prop_map(Value::Timestamp).boxed(),
        DataType::Vector(dimensions) => vec(any_f32(), dimensions as usize).prop_map(Value::Vector).boxed(),
        DataType::List(ElementType::Int64) => vec(any_i64(), 0..4).prop_map(Value::ListInt64).boxed(),
        DataType::List(ElementType::Float64) => vec(any_f64(), 0..4).prop_map(Value::ListFloat64).boxed(),
        DataType::List(ElementType::Utf8) => vec(any_text(), 0..4).prop_map(Value::ListUtf8).boxed(),
    }
}

/// A value of this type, or null.
pub(crate) fn any_value(data_type: DataType) -> BoxedStrategy<Value> {
    prop_oneof![4 => present(data_type), 1 => Just(Value::Null)].boxed()
}

/// Types and one row of them.
pub(crate) fn any_row() -> impl Strategy<Value = (Vec<DataType>, Vec<Value>)> {
    vec(any_type(), 0..6).prop_flat_map(|types| {
        let values: Vec<_> = types.iter().map(|data_type| any_value(*data_type)).collect();
        (Just(types), values)
    })
}

/// A column whose physical representation is as unfriendly as Arrow allows, and the values that it means.
#[derive(Debug, Clone)]
pub(crate) struct WildColumn {
    pub(crate) data_type: DataType,
    pub(crate) array: ArrayRef,
    pub(crate) values: Vec<Value>,
}

/// Garbage under nulls, validity bitmaps at odd bit offsets, and a slice out of the middle.
pub(crate) fn wild_column() -> impl Strategy<Value = WildColumn> {
    let rows = 0_usize..40;
    (any_type(), rows).prop_flat_map(|(data_type, rows)| {
        (
            Just(data_type),
            vec(present(data_type), rows),
            prop::option::of(vec(any::<bool>(), rows)),
            0_usize..11,
            0..=rows,
            0..=rows,
        )
            .prop_map(|(data_type, stored, validity, bit_offset, from, length)| {
                let array = array_from_values(data_type, &stored).unwrap();
                let nulls = validity.as_ref().map(|validity| nulls_at(validity, bit_offset));
                let array = with_nulls(&array, nulls);
                let length = length.min(array.len() - from);
                let is_valid = |row: usize| validity.as_ref().is_none_or(|validity| validity[row]);
                let meant = |row: usize| if is_valid(row) { stored[row].clone() } else { Value::Null };
                WildColumn {
                    data_type,
                    array: array.slice(from, length),
                    values: (from..from + length).map(meant).collect(),
                }
            })
    })
}

/// A validity bitmap that does not begin at bit 0 and has ones around it.
fn nulls_at(validity: &[bool], bit_offset: usize) -> NullBuffer {
    let ones_before = std::iter::repeat_n(true, bit_offset);
    let ones_after = std::iter::repeat_n(true, 5);
    let bits: BooleanBuffer = ones_before.chain(validity.iter().copied()).chain(ones_after).collect();
    NullBuffer::new(bits.slice(bit_offset, validity.len()))
}

/// The same column with another validity bitmap: what stood there now stands under the nulls.
pub(crate) fn with_nulls(array: &ArrayRef, nulls: Option<NullBuffer>) -> ArrayRef {
    make_array(array.to_data().into_builder().nulls(nulls).build().unwrap())
}

/// A list of bytes: an Arrow type that the contract does not have.
pub(crate) fn foreign_array() -> ArrayRef {
    let mut builder = ListBuilder::new(BinaryBuilder::new());
    builder.values().append_value(b"x");
    builder.append(true);
    Arc::new(builder.finish())
}
