//! Asks the host for random numbers.

use eadem::contract::{Column, Description, Output};

#[cfg(target_arch = "wasm32")]
mod import {
    wit_bindgen::generate!({
        inline: "
            package wasi:random@0.2.0;
            interface random { get-random-u64: func() -> u64; }
            world imports { import random; }
        ",
    });
}

fn random() -> i64 {
    #[cfg(target_arch = "wasm32")]
    return import::wasi::random::random::get_random_u64() as i64;
    #[cfg(not(target_arch = "wasm32"))]
    4
}

struct Component;

impl hostile::Guest for Component {
    fn describe() -> Description {
        hostile::description("imports_random")
    }

    fn apply(rows: u32, _inputs: Vec<Column>) -> Result<Output, String> {
        Ok(hostile::answer(vec![random(); rows as usize]))
    }
}

hostile::component!(Component);
