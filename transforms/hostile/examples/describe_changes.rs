//! Has another name each time it is asked in one instance.

use eadem::contract::{Column, Description, Output};

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        Description {
            name: format!("describe_changes_{}", hostile::calls_so_far()),
            ..hostile::description("describe_changes")
        }
    }

    fn apply(_rows: u32, inputs: Vec<Column>) -> Result<Output, String> {
        Ok(hostile::echo(&inputs))
    }
}

hostile::component!(Component);
