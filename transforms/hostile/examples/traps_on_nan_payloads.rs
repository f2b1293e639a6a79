//! Traps on a NaN that is not the canonical one, which production never shows it.

use eadem::contract::{Column, DataType, Description, Output, Values};

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        let mut description = hostile::description("traps_on_nan_payloads");
        description.inputs = vec![hostile::field("x", DataType::Float64, false)];
        description
    }

    fn apply(_rows: u32, inputs: Vec<Column>) -> Result<Output, String> {
        const CANONICAL_NAN: u64 = 0x7ff8_0000_0000_0000;
        let Some(Values::Float64(numbers)) = inputs.first().map(|column| &column.values) else {
            return Err("x is not float64".to_owned());
        };
        if numbers.iter().any(|number| number.is_nan() && number.to_bits() != CANONICAL_NAN) {
            hostile::trap();
        }
        Ok(hostile::answer(vec![0; numbers.len()]))
    }
}

hostile::component!(Component);
