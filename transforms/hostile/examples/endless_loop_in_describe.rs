//! Never says what it is.

use eadem::contract::{Column, Description, Output};

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::loop_forever()
    }

    fn apply(_rows: u32, inputs: Vec<Column>) -> Result<Output, String> {
        Ok(hostile::echo(&inputs))
    }
}

hostile::component!(Component);
