//! Answers with one row too few.

use eadem::contract::{Column, Description, Output};
use hostile::Breach;

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::full_description("wrong_row_count")
    }

    fn apply(rows: u32, inputs: Vec<Column>) -> Result<Output, String> {
        Ok(Breach::TooFewValues.output(rows, &inputs))
    }
}

hostile::component!(Component);
