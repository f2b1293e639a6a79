//! F1: the demonstration ends well, and its training set is what the online store serves.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};
use eadem_benches::results::{Figure, load_average};

use crate::process::{numbers_after, output, root};

/// Runs `eadem demo` into a fresh folder. The table's line for F1 names `make test` as well; that is run by itself.
pub(crate) fn f1() -> Result<Vec<Figure>> {
    let load = load_average();
    let scratch = tempfile::tempdir()?;
    let text =
        output(Command::new(eadem()).current_dir(root()).arg("demo").arg("--dir").arg(scratch.path().join("demo")))?;
    let identity = numbers_after(&text, "identity:")?;
    let served_by = numbers_after(&text, "online:")?;
    let ([values, differing_bits], [online, offline]) = (identity.as_slice(), served_by.as_slice()) else {
        anyhow::bail!("`identity:` has {identity:?}, `online:` has {served_by:?}; two numbers each were expected");
    };
    ensure!(*differing_bits == 0, "{differing_bits} bits differ");
    ensure!(online + offline == *values, "online {online} and offline {offline} are not {values} values");
    let name = "values compared between training set and service in `eadem demo`; ratio: served online";
    let mut figure = Figure::alone("F1", name, "values", *values as f64, 1, load);
    figure.ratio = Some(*online as f64 / *values as f64);
    Ok(vec![figure])
}

/// As `make demo` builds it.
fn eadem() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join("debug/eadem")
}
