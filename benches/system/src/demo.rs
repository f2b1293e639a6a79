//! F1: the demonstration ends well, and its training set is what the online store serves.

use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use anyhow::{Result, bail, ensure};
use eadem_benches::bars::Measured;
use eadem_benches::results::{Figure, load_average};

use crate::process::{numbers_after, output, root};

/// Runs `eadem demo` into a fresh folder. The table's line for F1 names `make test` as well; that is run by itself.
/// Where the demonstration fails, F1 compared no value.
pub(crate) fn f1() -> Result<Measured> {
    let load = load_average();
    let scratch = tempfile::tempdir()?;
    let mut demo = Command::new(eadem());
    let (text, status) = output(demo.current_dir(root()).arg("demo").arg("--dir").arg(scratch.path().join("demo")))?;
    let ended = ended_well(&text, status);
    let (values, online, faults) = match &ended {
        Ok(Compared { values, online }) => (*values, *online, 0),
        Err(_) => (0, 0, differing_bits(&text).unwrap_or_default().max(1)),
    };
    let name = "values compared between training set and service in `eadem demo`; ratio: served online";
    let mut figure = Figure::alone("F1", name, "values", values as f64, 1, load);
    figure.ratio = Some(online as f64 / values.max(1) as f64);
    let faults = Figure::alone("F1.faults", "differing bits; 1 for another failure", "faults", faults as f64, 1, load);
    let failure = ended.err().map(|error| format!("{error:#}"));
    Ok(Measured { figures: vec![figure, faults], failure })
}

struct Compared {
    values: u64,
    online: u64,
}

fn ended_well(text: &str, status: ExitStatus) -> Result<Compared> {
    let identity = numbers_after(text, "identity:")?;
    let served_by = numbers_after(text, "online:")?;
    let ([values, differing_bits], [online, offline]) = (identity.as_slice(), served_by.as_slice()) else {
        bail!("`identity:` has {identity:?}, `online:` has {served_by:?}; two numbers each were expected");
    };
    ensure!(*differing_bits == 0, "{differing_bits} bits differ");
    ensure!(online + offline == *values, "online {online} and offline {offline} are not {values} values");
    ensure!(status.success(), "the demonstration ended with {status}");
    Ok(Compared { values: *values, online: *online })
}

fn differing_bits(text: &str) -> Option<u64> {
    numbers_after(text, "identity:").ok()?.get(1).copied()
}

/// As `make demo` builds it.
fn eadem() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join("debug/eadem")
}
