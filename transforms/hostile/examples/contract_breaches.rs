//! Honest, but where a row has the number of a `hostile::Breach`, the whole answer has that flaw.

use eadem::contract::{Column, Description, Output};
use hostile::Breach;

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::full_description("contract_breaches")
    }

    fn apply(rows: u32, inputs: Vec<Column>) -> Result<Output, String> {
        let breach = hostile::numbers(&inputs).iter().find_map(|x| Breach::of(*x));
        Ok(match breach {
            Some(breach) => breach.output(rows, &inputs),
            None => hostile::full_echo(&inputs),
        })
    }
}

hostile::component!(Component);
