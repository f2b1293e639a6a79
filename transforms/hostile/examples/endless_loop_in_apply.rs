//! Never answers a call.

use eadem::contract::{Column, Description, Output};

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::description("endless_loop_in_apply")
    }

    fn apply(_rows: u32, _inputs: Vec<Column>) -> Result<Output, String> {
        hostile::loop_forever()
    }
}

hostile::component!(Component);
