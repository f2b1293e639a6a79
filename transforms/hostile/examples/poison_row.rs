//! Honest, but for rows with the numbers of `hostile::Poison`.

use eadem::contract::{Column, Description, Output};
use hostile::Poison;

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::description("poison_row")
    }

    fn apply(_rows: u32, inputs: Vec<Column>) -> Result<Output, String> {
        for x in hostile::numbers(&inputs) {
            if let Some(poison) = Poison::of(*x) {
                return poison.act();
            }
        }
        Ok(hostile::echo(&inputs))
    }
}

hostile::component!(Component);
