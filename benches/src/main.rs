//! `eadem-benches [--bar] [ID…]`: measures bars, all of them or those named, and replaces their figures in
//! `target/bench/results.json`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use eadem_benches::engine;
use eadem_benches::results::{self, Figure};

/// A bar's id and what measures it.
type Bar = (&'static str, fn() -> Result<Vec<Figure>>);

const BARS: &[Bar] = &[("F2", engine::f2), ("F3", engine::f3), ("F4", engine::f4), ("F5", engine::f5)];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == engine::COMPILER_VERB) {
        return eadem_engine::compiler::child_main();
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let named: Vec<&str> = arguments.iter().map(String::as_str).filter(|argument| *argument != "--bar").collect();
    if let Some(unknown) = named.iter().find(|name| BARS.iter().all(|(id, _)| !is_of_bar(name, id))) {
        let known: Vec<&str> = BARS.iter().map(|(id, _)| *id).collect();
        bail!("there is no bar {unknown}; the bars are {}", known.join(", "));
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

/// `F2.string` is measured with `F2`.
fn is_of_bar(name: &str, id: &str) -> bool {
    name == id || name.strip_prefix(id).is_some_and(|suffix| suffix.starts_with('.'))
}
