//! Answers once in each instance, and traps after that.

use eadem::contract::{Column, Description, Output};

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::description("traps_in_second_call")
    }

    fn apply(_rows: u32, inputs: Vec<Column>) -> Result<Output, String> {
        if hostile::calls_so_far() > 0 {
            hostile::trap();
        }
        Ok(hostile::echo(&inputs))
    }
}

hostile::component!(Component);
