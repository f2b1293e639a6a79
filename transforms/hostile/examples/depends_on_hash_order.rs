//! Answers each row with what a map of the standard library happens to give first.

use eadem::contract::{Column, Description, Output};
use std::collections::HashMap;

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::description("depends_on_hash_order")
    }

    fn apply(_rows: u32, inputs: Vec<Column>) -> Result<Output, String> {
        let first = |x: &i64| {
            let map: HashMap<i64, ()> = (0..64).map(|step| (x.wrapping_add(step), ())).collect();
            map.keys().next().copied().unwrap_or(*x)
        };
        Ok(hostile::answer(hostile::numbers(&inputs).iter().map(first).collect()))
    }
}

hostile::component!(Component);
