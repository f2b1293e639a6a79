//! Honest with up to eight rows; with more, its validity bitmap is a byte too short.

use eadem::contract::{Column, Description, Output};

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::description("breaches_in_batches")
    }

    fn apply(rows: u32, inputs: Vec<Column>) -> Result<Output, String> {
        let mut output = hostile::echo(&inputs);
        if rows > 8 {
            output.columns[0].validity = vec![0xff; (rows as usize).div_ceil(8) - 1];
        }
        Ok(output)
    }
}

hostile::component!(Component);
