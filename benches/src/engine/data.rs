//! Rows for the engine's bars; 1 % of the values are null.

use std::sync::Arc;

use anyhow::Result;
use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use eadem_values::{DataType, Field, arrow_schema};

/// A generator of numbers that is the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn unless_null<T>(&mut self, value: T) -> Option<T> {
        (self.below(100) != 0).then_some(value)
    }
}

fn batch(columns: Vec<(&str, DataType, ArrayRef)>) -> Result<RecordBatch> {
    let fields: Vec<Field> = columns.iter().map(|(name, data_type, _)| Field::new(*name, *data_type, true)).collect();
    let columns = columns.into_iter().map(|(_, _, column)| column).collect();
    Ok(RecordBatch::try_new(arrow_schema(&fields), columns)?)
}

/// Inputs of `bench_numeric`.
pub(super) fn payments(rows: usize) -> Result<RecordBatch> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut amounts = Vec::new();
    let mut numerators = Vec::new();
    let mut denominators = Vec::new();
    let mut instants = Vec::new();
    for _ in 0..rows {
        let amount = random.unit() * 10_000.0;
        amounts.push(random.unless_null(amount));
        let numerator = random.unit() * 100.0 - 50.0;
        numerators.push(random.unless_null(numerator));
        let denominator = random.below(10) as i64;
        denominators.push(random.unless_null(denominator));
        let instant = 1_356_998_400_000_000 + random.below(365 * 86_400_000_000) as i64;
        instants.push(random.unless_null(instant));
    }
    let instants = TimestampMicrosecondArray::from(instants).with_timezone("UTC");
    batch(vec![
        ("amount", DataType::Float64, Arc::new(Float64Array::from(amounts))),
        ("a", DataType::Float64, Arc::new(Float64Array::from(numerators))),
        ("b", DataType::Int64, Arc::new(Int64Array::from(denominators))),
        ("ts", DataType::Timestamp, Arc::new(instants)),
    ])
}

/// Inputs of `bench_string`: names of 5 to 20 letters in mixed case.
pub(super) fn merchants(rows: usize) -> Result<RecordBatch> {
    let mut random = Random(0x0bad_cafe_dead_beef);
    let names = (0..rows).map(|_| {
        let length = 5 + random.below(16);
        let letters = (0..length).map(|_| {
            let letter = random.below(26) as u8;
            let first = if random.below(2) == 0 { b'a' } else { b'A' };
            char::from(first + letter)
        });
        let name: String = letters.collect();
        random.unless_null(name)
    });
    let names: StringArray = names.collect();
    batch(vec![("s", DataType::Utf8, Arc::new(names))])
}
