//! Executes an unreachable instruction.

use eadem::contract::{Column, Description, Output};

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::description("traps")
    }

    fn apply(_rows: u32, _inputs: Vec<Column>) -> Result<Output, String> {
        hostile::trap()
    }
}

hostile::component!(Component);
