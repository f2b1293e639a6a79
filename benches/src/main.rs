//! `eadem-benches [--bar] [ID…]`: measures the engine's bars, all of them or those named, and replaces their figures in
//! `target/bench/results.json`.

use std::process::ExitCode;

use eadem_benches::bars::{self, Bar};
use eadem_benches::engine;

const BARS: &[Bar] = &[("F2", engine::f2), ("F3", engine::f3), ("F4", engine::f4), ("F5", engine::f5)];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if words.first() == Some(&engine::COMPILER_VERB) {
        return eadem_engine::compiler::child_main();
    }
    match bars::measure(BARS, &words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
