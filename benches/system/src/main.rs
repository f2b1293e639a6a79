//! `eadem-benches-system [--bar] [ID…]`: measures the bars of whole processes, F1, F6, F7, H1 and H2, all of them or those named, and
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
mod process;
mod race;
mod table;

use std::process::ExitCode;

use anyhow::{Result, bail};
use eadem_benches::results::{self, Figure};

/// A bar's id and what measures it.
type Bar = (&'static str, fn() -> Result<Vec<Figure>>);

const BARS: &[Bar] = &[("F1", demo::f1), ("F6", race::f6), ("F7", identity::f7), ("H1", join::h1), ("H2", join::h2)];

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
        ["join", store, spine, out] => join::join(store, spine, out),
        named => measure(named),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(words: &[&str]) -> Result<()> {
    let named: Vec<&str> = words.iter().copied().filter(|word| *word != "--bar").collect();
    if let Some(unknown) = named.iter().find(|name| BARS.iter().all(|(id, _)| !is_of_bar(name, id))) {
        let known: Vec<&str> = BARS.iter().map(|(id, _)| *id).collect();
        bail!("there is no bar {unknown}; the bars of whole processes are {}", known.join(", "));
    }
    let path = results::path();
    for (id, measure) in BARS {
        let is_wanted = named.is_empty() || named.iter().any(|name| is_of_bar(name, id));
        if !is_wanted {
            continue;
        }
        let figures = measure()?;
        for figure in &figures {
            println!("{figure}");
        }
        results::replace(&path, id, figures)?;
    }
    println!("written to {}", path.display());
    Ok(())
}

/// `F6.wall` is measured with `F6`.
fn is_of_bar(name: &str, id: &str) -> bool {
    name == id || name.strip_prefix(id).is_some_and(|suffix| suffix.starts_with('.'))
}
