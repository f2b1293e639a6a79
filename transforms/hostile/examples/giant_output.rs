//! Answers with 72 MiB.

use eadem::contract::{Column, Description, Output};
use hostile::Breach;

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::full_description("giant_output")
    }

    fn apply(rows: u32, inputs: Vec<Column>) -> Result<Output, String> {
        Ok(Breach::GiantOutput.output(rows, &inputs))
    }
}

hostile::component!(Component);
