//! Asks the host for random numbers.

use eadem::contract::{Column, Description, Output};

#[cfg(target_arch = "wasm32")]
mod import {
    #[link(wasm_import_module = "wasi:random/random@0.2.0")]
    unsafe extern "C" {
        #[link_name = "get-random-u64"]
        pub(super) fn get_random_u64() -> i64;
    }

    /// The type of the import, as a generator of bindings would leave it for
    /// `interface random { get-random-u64: func() -> u64; } world imports { import random; }`.
    #[unsafe(link_section = "component-type:wasi:random@0.2.0:imports:encoded world")]
    #[used]
    static TYPE: [u8; 281] = *b"\
\0asm\x0d\0\x01\0\0\x19\x16wit-component-encoding\x04\0\x07|\x01A\x02\x01A\x02\x01\
B\x02\x01@\0\0w\x04\0\x0eget-random-u64\x01\0\x03\0\x18wasi:random/random@0.2.0\x05\
\0\x04\09wasi:random/imports-with-all-of-its-exports-removed@0.2.0\x04\0\x0b-\x01\
\0'imports-with-all-of-its-exports-removed\x03\0\0\0G\x09producers\x01\x0cproces\
sed-by\x02\x0dwit-component\x070.258.3\x10wit-bindgen-rust\x060.61.1";
}

fn random() -> i64 {
    #[cfg(target_arch = "wasm32")]
    // SAFETY: the function takes nothing and gives a number.
    return unsafe { import::get_random_u64() };
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
