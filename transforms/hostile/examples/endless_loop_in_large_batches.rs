//! Honest with up to 600 rows, and endless with more: what a slow component looks like to a deadline.

use eadem::contract::{Column, Description, Output};

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::description("endless_loop_in_large_batches")
    }

    fn apply(rows: u32, inputs: Vec<Column>) -> Result<Output, String> {
        if rows > 600 {
            hostile::loop_forever();
        }
        Ok(hostile::echo(&inputs))
    }
}

hostile::component!(Component);
