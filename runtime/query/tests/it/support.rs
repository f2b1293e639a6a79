//! Native stand-ins for components.

use std::sync::Arc;

use arrow_array::ArrayRef;
use eadem_query::{AppliedRows, FailedRow, RowTransform, TransformFailure};
use eadem_values::{Constraint, DataType, Description, Digest, Field, Value, array_from_values, value_at};
use proptest::test_runner::{Config, RngSeed};

/// `sum = a + b`, of int64. `a` may not be null, `b` may; a sum of 13 is dropped, one of 14 fails.
#[derive(Debug)]
pub struct Adder {
    description: Description,
    digest: Digest,
}

pub fn adder() -> Arc<Adder> {
    adder_with(vec![])
}

/// An adder whose sum has constraints.
pub fn adder_with(constraints: Vec<Constraint>) -> Arc<Adder> {
    let mut sum = Field::new("sum", DataType::Int64, true);
    sum.constraints = constraints;
    let description = Description {
        name: "adder".into(),
        doc: String::new(),
        owner: String::new(),
        total: false,
        inputs: vec![Field::new("a", DataType::Int64, false), Field::new("b", DataType::Int64, true)],
        outputs: vec![sum],
    };
    Arc::new(Adder { description, digest: Digest::of(b"adder") })
}

impl RowTransform for Adder {
    fn description(&self) -> &Description {
        &self.description
    }

    fn digest(&self) -> &Digest {
        &self.digest
    }

    fn apply(&self, rows: usize, inputs: &[ArrayRef]) -> Result<AppliedRows, TransformFailure> {
        assert!(rows > 0 && rows <= eadem_query::BATCH_ROWS, "a call of {rows} rows");
        let mut applied = AppliedRows::default();
        let mut sums = Vec::with_capacity(rows);
        for row in 0..rows {
            let Value::Int64(a) = value_at(inputs[0].as_ref(), row).unwrap() else { panic!("a null reached `a`") };
            let sum = match value_at(inputs[1].as_ref(), row).unwrap() {
                Value::Int64(b) => Value::Int64(a + b),
                _ => Value::Null,
            };
            match sum {
                Value::Int64(13) => applied.dropped.push(row as u32),
                Value::Int64(14) => applied.failed.push(FailedRow { row: row as u32, message: "fourteen".into() }),
                Value::Int64(99) => {
                    let message = "broke off".to_owned();
                    return Err(TransformFailure {
                        transform: "adder".into(),
                        message,
                        row: Some(row as u32),
                        is_busy: false,
                    });
                }
                _ => {}
            }
            sums.push(sum);
        }
        applied.columns.push(array_from_values(DataType::Int64, &sums).unwrap());
        Ok(applied)
    }
}

/// So many cases of a fixed seed, which `EADEM_SEED` replaces; twenty times as many with `EADEM_SOAK=1`.
pub fn cases(cases: u32) -> Config {
    let seed = std::env::var("EADEM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_130_101);
    let soak = std::env::var("EADEM_SOAK").is_ok_and(|value| value == "1");
    Config { cases: if soak { 20 * cases } else { cases }, rng_seed: RngSeed::Fixed(seed), ..Config::default() }
}

pub fn int64(values: &[Option<i64>]) -> ArrayRef {
    Arc::new(arrow_array::Int64Array::from(values.to_vec()))
}
