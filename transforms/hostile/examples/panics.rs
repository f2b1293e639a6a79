//! Panics with a message that names a row.

use eadem::contract::{Column, Description, Output};

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::description("panics")
    }

    fn apply(rows: u32, _inputs: Vec<Column>) -> Result<Output, String> {
        hostile::report_panics();
        panic!("no rule for carrier ZZ in row {}", rows - 1)
    }
}

hostile::component!(Component);
