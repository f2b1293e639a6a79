//! Answers with text of 2 MiB.

use eadem::contract::{Column, Description, Output};
use hostile::Breach;

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::full_description("giant_strings")
    }

    fn apply(rows: u32, inputs: Vec<Column>) -> Result<Output, String> {
        Ok(Breach::GiantString.output(rows, &inputs))
    }
}

hostile::component!(Component);
