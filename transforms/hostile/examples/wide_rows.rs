//! Describes a thousand inputs, and a thousand outputs, of 65,536 dimensions each.

use eadem::contract::{Column, DataType, Description, Output};

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        let wide = |at: usize| hostile::field(&format!("f{at}"), DataType::Vector(65_536), true);
        let mut description = hostile::description("wide_rows");
        description.inputs = (0..1_000).map(wide).collect();
        description.outputs = (0..1_000).map(wide).collect();
        description
    }

    fn apply(_rows: u32, _inputs: Vec<Column>) -> Result<Output, String> {
        hostile::trap()
    }
}

hostile::component!(Component);
