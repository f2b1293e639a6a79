//! F6 and H7: a backfill against DataFusion, process against process.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use eadem_benches::bars::Measured;
use eadem_benches::results::{Figure, load_average};

use crate::process::{Cost, measured, median, root};
use crate::table::{Written, written};

const ROWS: i64 = 5_000_000;
const RUNS: u64 = 5;

const LONG_ROWS: i64 = 50_000_000;
const LONG_RUNS: u64 = 3;

/// What a backfill of the payments costs, and what a copy of them by DataFusion costs.
struct Costs {
    ours: Vec<Cost>,
    theirs: Vec<Cost>,
    our_table: Written,
    their_table: Written,
}

/// Measures both sides in turn.
fn costs(data: &str, rows: i64, runs: u64) -> Result<Costs> {
    let events = root().join("target/bench").join(data).join("events");
    let events = events.canonicalize().with_context(|| format!("scripts/bench.sh makes {}", events.display()))?;
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
    same_work(&our_table, &their_table, rows)?;
    let mut costs = Costs { ours: Vec::new(), theirs: Vec::new(), our_table, their_table };
    for _ in 0..runs {
        costs.ours.push(run_into(&ours, &mut backfill())?);
        costs.theirs.push(run_into(&theirs, &mut baseline())?);
    }
    Ok(costs)
}

fn median_of(costs: &[Cost], part: fn(&Cost) -> f64) -> f64 {
    median(costs.iter().map(part).collect())
}

/// Takes the median of each side.
pub(crate) fn f6() -> Result<Measured> {
    let load = load_average();
    let costs = costs("payments", ROWS, RUNS)?;
    let figure = |bar: &str, name: &str, unit: &str, part: fn(&Cost) -> f64| {
        Figure::against(bar, name, unit, median_of(&costs.ours, part), median_of(&costs.theirs, part), RUNS, load)
    };
    let name = "backfill of 5 M rows, ledger in memory (MemoryLedger), against a copy by DataFusion, processor time";
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let (ours, theirs) = (mib(costs.our_table.bytes), mib(costs.their_table.bytes));
    Ok(vec![
        figure("F6", name, "s", |cost| cost.cpu_s),
        figure("F6.wall", "the same on the clock", "s", |cost| cost.wall_s),
        figure("F6.memory", "the same, most resident memory", "MiB", |cost| cost.memory_mib),
        Figure::against("F6.bytes", "data files", "MiB", ours, theirs, 1, load),
    ]
    .into())
}

/// The rate of a backfill of 50 M rows against DataFusion's, and its memory against that of 5 M.
pub(crate) fn h7() -> Result<Measured> {
    let load = load_average();
    let short = costs("payments", ROWS, LONG_RUNS)?;
    let long = costs("payments-50m", LONG_ROWS, LONG_RUNS)?;
    let rate = |costs: &[Cost]| LONG_ROWS as f64 / median_of(costs, |cost| cost.wall_s);
    let memory = |costs: &Costs| median_of(&costs.ours, |cost| cost.memory_mib);
    let name = "backfill of 50 M rows through a component, against a copy by DataFusion, rate";
    let (ours, theirs) = (rate(&long.ours), rate(&long.theirs));
    Ok(vec![
        Figure::against("H7", name, "rows/s", ours, theirs, LONG_RUNS, load),
        Figure::against(
            "H7.memory",
            "most resident memory of 50 M rows, against that of 5 M",
            "MiB",
            memory(&long),
            memory(&short),
            LONG_RUNS,
            load,
        ),
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
    println!("{side}: {:.2} s of processor, {:.2} s, {:.0} MiB", cost.cpu_s, cost.wall_s, cost.memory_mib);
    Ok(cost)
}

fn same_work(ours: &Written, theirs: &Written, rows: i64) -> Result<()> {
    for side in [ours, theirs] {
        ensure!(side.rows == rows, "{} rows were written, {rows} were expected", side.rows);
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
