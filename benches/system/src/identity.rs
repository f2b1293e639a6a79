//! F7: batch, row by row, every split and serving give the same bits.

use std::process::Command;

use anyhow::{Result, bail};
use eadem_benches::results::{Figure, load_average};

use crate::process::{numbers_after, output, root};

/// Runs the identity test with all its cases.
pub(crate) fn f7() -> Result<Vec<Figure>> {
    let load = load_average();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["test", "--locked", "-p", "eadem-api", "--test", "it", "identity", "--", "--nocapture"];
    // The test fails where bits differ; then this bar has no figure, and its command's exit code says so.
    let text = output(Command::new(cargo).current_dir(root()).args(arguments).env("EADEM_SOAK", "1"))?;
    // `F7: cases=10000 differing_bits=0 first_seed=…`
    // With one thread the harness has the test's name in front of it on the line.
    let report = text.find("F7:").map_or("", |at| &text[at..]);
    let [cases, differing_bits, _first_seed] = numbers_after(report, "F7:")?[..] else {
        bail!("the line that starts with `F7:` does not hold three numbers");
    };
    let name = "differing bits between batch, single rows, splits, on_write and on_read serving; runs: cases";
    Ok(vec![Figure::alone("F7", name, "bits", differing_bits as f64, cases, load)])
}
