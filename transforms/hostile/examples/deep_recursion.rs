//! Calls itself until the stack ends.

use eadem::contract::{Column, Description, Output};

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::description("deep_recursion")
    }

    fn apply(_rows: u32, _inputs: Vec<Column>) -> Result<Output, String> {
        hostile::recurse()
    }
}

hostile::component!(Component);
