//! Answers single rows, and traps on every batch.

use eadem::contract::{Column, Description, Output};

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::description("traps_in_batches")
    }

    fn apply(rows: u32, inputs: Vec<Column>) -> Result<Output, String> {
        if rows > 1 {
            hostile::trap();
        }
        Ok(hostile::echo(&inputs))
    }
}

hostile::component!(Component);
