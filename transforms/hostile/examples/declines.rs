//! Answers every call with an error of its own.

use eadem::contract::{Column, Description, Output};

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::description("declines")
    }

    fn apply(rows: u32, inputs: Vec<Column>) -> Result<Output, String> {
        Err(format!("not in the mood for {} columns and {rows} rows", inputs.len()))
    }
}

hostile::component!(Component);
