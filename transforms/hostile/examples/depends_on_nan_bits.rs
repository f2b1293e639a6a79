//! Answers with the bits of a NaN that the processor made: machines differ in its sign.

use eadem::contract::{Column, Description, Output};
use std::hint::black_box;

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::description("depends_on_nan_bits")
    }

    fn apply(_rows: u32, inputs: Vec<Column>) -> Result<Output, String> {
        let bits = |x: &i64| {
            let zero = black_box((*x as f64) * 0.0);
            (zero / zero).to_bits() as i64
        };
        Ok(hostile::answer(hostile::numbers(&inputs).iter().map(bits).collect()))
    }
}

hostile::component!(Component);
