//! Answers with offsets that lead beyond the bytes.

use eadem::contract::{Column, Description, Output};
use hostile::Breach;

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::full_description("bad_offsets")
    }

    fn apply(rows: u32, inputs: Vec<Column>) -> Result<Output, String> {
        Ok(Breach::OffsetBeyondTheEnd.output(rows, &inputs))
    }
}

hostile::component!(Component);
