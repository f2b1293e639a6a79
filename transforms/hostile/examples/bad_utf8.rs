//! Answers with text that is no UTF-8.

use eadem::contract::{Column, Description, Output};
use hostile::Breach;

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::full_description("bad_utf8")
    }

    fn apply(rows: u32, inputs: Vec<Column>) -> Result<Output, String> {
        Ok(Breach::NotUtf8.output(rows, &inputs))
    }
}

hostile::component!(Component);
