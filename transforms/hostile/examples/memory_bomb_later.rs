//! Asks for memory until it is refused.

use eadem::contract::{Column, Description, Output};

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::description("memory_bomb_later")
    }

    fn apply(_rows: u32, _inputs: Vec<Column>) -> Result<Output, String> {
        hostile::take_all_memory()
    }
}

hostile::component!(Component);
