//! `eadem-benches-system [--bar] [ID…]`: measures the bars of whole processes, F1, F6, F7, H1 to H9, R1 to R7 and S1 to S10, all of them or those named,
//! and replaces their figures in `target/bench/results.json`.
//!
//! Verbs besides are processes that are measured or prepare for it: `accept`, `backfill` and `baseline` of F6, `fill` and
//! `join` of H1, `mirror` of S1, `bare` of S4; and `COMPILER_VERB` is the engine's compiling child.

mod backfill;
mod bare;
mod baseline;
mod database;
mod demo;
mod effect;
mod feast;
mod identity;
mod join;
mod load;
mod mirror;
mod overload;
mod planes;
mod process;
mod project;
mod quotas;
mod race;
mod registry;
mod scale;
mod service;
mod serving;
mod soak;
mod table;
mod travel;
mod uploads;

use std::process::ExitCode;

use anyhow::Context as _;
use eadem_benches::bars::{self, Bar};
use mimalloc::MiMalloc;

/// As in the product's own binary: jobs run in this one too, and what serving is compared with shall lack nothing.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const BARS: &[Bar] = &[
    ("F1", demo::f1),
    ("F6", race::f6),
    ("F7", identity::f7),
    ("H1", join::h1),
    ("H2", join::h2),
    ("H3", join::h3),
    ("H4", join::h4),
    ("H5", join::h5),
    ("H6", travel::h6),
    ("H7", race::h7),
    ("H8", soak::h8),
    ("H9", soak::h9),
    ("R1", registry::r1),
    ("R2", soak::r2),
    ("R3", uploads::r3),
    ("R4", effect::r4),
    ("R5", soak::r5),
    ("R6", quotas::r6),
    ("R7", soak::r7),
    ("S1", serving::s1),
    ("S2", serving::s2),
    ("S3", serving::s3),
    ("S4", database::s4),
    ("S5", feast::s5),
    ("S6", scale::s6),
    ("S7", soak::s7),
    ("S8", soak::s8),
    ("S9", overload::s9),
    ("S10", soak::s10),
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
        ["bare", url] => bare::run(url),
        ["baseline", events, out] => baseline::run(events, out),
        ["fill", events, store] => join::fill(events, store),
        ["mirror", known] => mirror::run(known.as_ref()),
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
