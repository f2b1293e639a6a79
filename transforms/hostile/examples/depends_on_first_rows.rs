//! Honest where a batch begins as the fixed rows of an upload do, and for single rows; else its first row is wrong.

use eadem::contract::{Column, Description, Output};

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::description("depends_on_first_rows")
    }

    fn apply(_rows: u32, inputs: Vec<Column>) -> Result<Output, String> {
        let mut y = hostile::numbers(&inputs).to_vec();
        if y.len() > 2 && y[..3] != [0, 1, -1] {
            y[0] ^= 1;
        }
        Ok(hostile::answer(y))
    }
}

hostile::component!(Component);
