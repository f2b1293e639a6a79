//! F7: batch, row by row, every split and serving give the same bits.

use std::process::Command;

use anyhow::Result;
use eadem_benches::bars::Measured;
use eadem_benches::results::{Figure, load_average};

use crate::process::{numbers_after, output, root};

/// With the features of `make test`: fewer packages would have their dependencies compiled a second time.
const ARGUMENTS: [&str; 9] = [
    "test",
    "--locked",
    "--workspace",
    "--test",
    "api",
    "--",
    "identity::batch_rows_splits_and_serving_give_the_same_bits",
    "--exact",
    "--nocapture",
];

/// Runs the identity test with all its cases. A test that fails before it has counted is one fault.
pub(crate) fn f7() -> Result<Measured> {
    let load = load_average();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let (text, status) = output(Command::new(cargo).current_dir(root()).args(ARGUMENTS).env("EADEM_SOAK", "1"))?;
    let (cases, differing_bits) = counted(&text).unwrap_or_default();
    let has_failed = !status.success() || cases == 0;
    let faults = differing_bits.max(u64::from(has_failed));
    let name = "differing bits between batch, single rows, splits, on_write and on_read serving; runs: cases";
    let figure = Figure::alone("F7", name, "bits", faults as f64, cases, load);
    let failure = (faults > 0).then(|| format!("{differing_bits} bits differ in {cases} cases; cargo test: {status}"));
    Ok(Measured { figures: vec![figure], failure })
}

/// Of `F7: cases=10000 differing_bits=0 first_seed=…`, the cases and the bits. With one thread the harness has the test's
/// name in front of it on the line.
fn counted(text: &str) -> Option<(u64, u64)> {
    let report = &text[text.find("F7:")?..];
    match numbers_after(report, "F7:").ok()?[..] {
        [cases, differing_bits, _first_seed] => Some((cases, differing_bits)),
        _ => None,
    }
}
