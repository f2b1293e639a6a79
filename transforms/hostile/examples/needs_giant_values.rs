//! Says that its texts have a billion bytes and its lists a billion elements at least.

use eadem::contract::{Column, Constraint, DataType, Description, ElementType, LengthRange, Output};

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        let at_least_a_billion = || vec![Constraint::Length(LengthRange { min: 1_000_000_000, max: u32::MAX })];
        let mut text = hostile::field("text", DataType::Utf8, false);
        text.constraints = at_least_a_billion();
        let mut list = hostile::field("list", DataType::List(ElementType::Float64), false);
        list.constraints = at_least_a_billion();
        let mut description = hostile::description("needs_giant_values");
        description.inputs.extend([text, list]);
        description
    }

    fn apply(_rows: u32, inputs: Vec<Column>) -> Result<Output, String> {
        Ok(hostile::echo(&inputs))
    }
}

hostile::component!(Component);
