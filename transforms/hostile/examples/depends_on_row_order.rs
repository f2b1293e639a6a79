//! Answers each row with the row before it.

use eadem::contract::{Column, Description, Output};

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::description("depends_on_row_order")
    }

    fn apply(rows: u32, inputs: Vec<Column>) -> Result<Output, String> {
        let before = std::iter::once(0).chain(hostile::numbers(&inputs).iter().copied());
        Ok(hostile::answer(before.take(rows as usize).collect()))
    }
}

hostile::component!(Component);
