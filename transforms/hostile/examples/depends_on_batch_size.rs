//! Answers each row with the number of rows in the call.

use eadem::contract::{Column, Description, Output};

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::description("depends_on_batch_size")
    }

    fn apply(rows: u32, _inputs: Vec<Column>) -> Result<Output, String> {
        Ok(hostile::answer(vec![i64::from(rows); rows as usize]))
    }
}

hostile::component!(Component);
