//! `eadem-benches-system [--bar] [ID…]`: measures the bars of whole processes, F1, F6, F7, H1 to H4, H6, H7 and H9, all of them or those named, and
//! replaces their figures in `target/bench/results.json`.
//!
//! Verbs besides are processes that are measured or prepare for it: `accept`, `backfill` and `baseline` of F6, `fill` and
//! `join` of H1; and `COMPILER_VERB`
//! is the engine's compiling child.

mod backfill;
mod baseline;
mod demo;
mod identity;
mod join;
mod kills;
mod process;
mod race;
mod table;
mod travel;

use std::process::ExitCode;

use anyhow::Context as _;
use eadem_benches::bars::{self, Bar};

const BARS: &[Bar] = &[
    ("F1", demo::f1),
    ("F6", race::f6),
    ("F7", identity::f7),
    ("H1", join::h1),
    ("H2", join::h2),
    ("H3", join::h3),
    ("H4", join::h4),
    ("H6", travel::h6),
    ("H7", race::h7),
    ("H9", kills::h9),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ended = match words.as_slice() {
        [backfill::COMPILER_VERB, ..] => return eadem_engine::compiler::child_main(),
        ["accept", component, home] => backfill::accept(component.as_ref(), home.as_ref()),
        ["backfill", events, component, home, out] => {
            backfill::run(events, component.as_ref(), home.as_ref(), out.as_ref())
        }
        ["baseline", events, out] => baseline::run(events, out),
        ["fill", events, store] => join::fill(events, store),
        ["join", store, spine, out, memory_bytes_max] => memory_bytes_max
            .parse()
            .context("bytes of memory")
            .and_then(|memory_bytes_max| join::join(store, spine, out, memory_bytes_max)),
        named => bars::measure(BARS, named),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
