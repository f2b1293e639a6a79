//! Answers with the number of calls that its instance has seen.

use eadem::contract::{Column, Description, Output};

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::description("remembers_earlier_call")
    }

    fn apply(rows: u32, _inputs: Vec<Column>) -> Result<Output, String> {
        Ok(hostile::answer(vec![hostile::calls_so_far(); rows as usize]))
    }
}

hostile::component!(Component);
