//! F6: a backfill against DataFusion, process against process.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use eadem_benches::bars::Measured;
use eadem_benches::results::{Figure, load_average};

use crate::process::{Cost, measured, median, root};
use crate::table::{Written, written};

const ROWS: i64 = 5_000_000;
const RUNS: u64 = 5;

/// Measures both sides in turn, and takes the median of each.
pub(crate) fn f6() -> Result<Measured> {
    let events =
        root().join("target/bench/payments/events").canonicalize().context("scripts/bench.sh makes the payments")?;
    let component = root().join("target/components/payments.wasm");
    let scratch = Scratch::new()?;
    let ours = scratch.0.join("ours");
    let theirs = scratch.0.join("theirs");
    let this = std::env::current_exe()?;
    measured(Command::new(&this).arg("accept").arg(&component).arg(&scratch.0))?;
    let backfill = || {
        let mut command = Command::new(&this);
        command.arg("backfill").arg(&events).arg(&component).arg(&scratch.0).arg(&ours);
        command
    };
    let baseline = || {
        let mut command = Command::new(&this);
        command.arg("baseline").arg(&events).arg(&theirs);
        command
    };

    // The first run of each fills the file cache, and shows that they do the same work.
    run_into(&ours, &mut backfill())?;
    run_into(&theirs, &mut baseline())?;
    let (our_table, their_table) = (written(&ours)?, written(&theirs)?);
    same_work(&our_table, &their_table)?;

    let load = load_average();
    let (mut our_costs, mut their_costs) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        our_costs.push(run_into(&ours, &mut backfill())?);
        their_costs.push(run_into(&theirs, &mut baseline())?);
    }
    let figure = |bar: &str, name: &str, unit: &str, part: fn(&Cost) -> f64| {
        let ours = median(our_costs.iter().map(part).collect());
        let theirs = median(their_costs.iter().map(part).collect());
        Figure::against(bar, name, unit, ours, theirs, RUNS, load)
    };
    let name = "backfill of 5 M rows, ledger in memory (MemoryLedger), against a copy by DataFusion, processor time";
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Ok(vec![
        figure("F6", name, "s", |cost| cost.cpu_s),
        figure("F6.wall", "the same on the clock", "s", |cost| cost.wall_s),
        figure("F6.memory", "the same, most resident memory", "MiB", |cost| cost.memory_mib),
        Figure::against("F6.bytes", "data files", "MiB", mib(our_table.bytes), mib(their_table.bytes), 1, load),
    ]
    .into())
}

/// Runs a process that writes to `out`, which is removed first.
fn run_into(out: &Path, command: &mut Command) -> Result<Cost> {
    if out.exists() {
        std::fs::remove_dir_all(out)?;
    }
    let cost = measured(command)?;
    let side = out.file_name().unwrap_or_default().to_string_lossy();
    println!("F6 {side}: {:.2} s of processor, {:.2} s, {:.0} MiB", cost.cpu_s, cost.wall_s, cost.memory_mib);
    Ok(cost)
}

fn same_work(ours: &Written, theirs: &Written) -> Result<()> {
    for side in [ours, theirs] {
        ensure!(side.rows == ROWS, "{} rows were written, {ROWS} were expected", side.rows);
    }
    ensure!(ours.partitions == theirs.partitions, "partitions differ: {:?}, {:?}", ours.partitions, theirs.partitions);
    ensure!(ours.columns == theirs.columns, "columns differ: {:?}, {:?}", ours.columns, theirs.columns);
    Ok(())
}

/// A folder beside the payments, on the same disk; removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let folder = root().join("target/bench/backfill");
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir_all(&folder)?;
        Ok(Self(folder.canonicalize()?))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left in target/ does no harm, and the next run removes it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
