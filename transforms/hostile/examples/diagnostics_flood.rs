//! Reports panics without end, never panics, and answers honestly.

use eadem::contract::{Column, Description, Output};

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::description("diagnostics_flood")
    }

    fn apply(_rows: u32, inputs: Vec<Column>) -> Result<Output, String> {
        hostile::flood_diagnostics();
        Ok(hostile::echo(&inputs))
    }
}

hostile::component!(Component);
