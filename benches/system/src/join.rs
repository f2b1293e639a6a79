//! H1 to H4: training sets. H1 and H2 against the joins that one would write by hand, process against process, Parquet to
//! Parquet; H3 and H4 against a shorter history and a limit of memory.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use arrow_array::{Array, ArrayRef};
use eadem_benches::bars::Measured;
use eadem_benches::results::{Figure, load_average};
use eadem_offline::{
    DatasetFeature, DatasetOptions, DatasetSpec, DatasetWatch, OfflineStore, ReadVersion, SpineColumns, StoredView,
    ViewOfService, ViewSpec, create_dataset,
};
use eadem_query::{AppliedRows, RowTransform, TransformFailure};
use eadem_semantics::KnownAtCut;
use eadem_values::{DataType, Description, Digest, Field};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::backfill::{self, THREADS};
use crate::process::{Cost, measured, median, root};

const RUNS: u64 = 5;

/// Runs of what takes long.
const LONG_RUNS: u64 = 3;

const LARGE_SPINE_ROWS: usize = 20_000_000;

/// As a job has it that is not told otherwise.
const MEMORY_BYTES_MAX: usize = 1 << 30;

const FEATURES: [(&str, DataType); 10] = [
    ("amount", DataType::Float64),
    ("merchant_category", DataType::Utf8),
    ("is_foreign", DataType::Boolean),
    ("lat", DataType::Float64),
    ("lon", DataType::Float64),
    ("f0", DataType::Float64),
    ("f1", DataType::Float64),
    ("f2", DataType::Float64),
    ("f3", DataType::Float64),
    ("f4", DataType::Float64),
];

/// Hands its inputs on. What is measured is the join; the table that it reads has to be filled somehow.
#[derive(Debug)]
struct Echo(Description);

impl RowTransform for Echo {
    fn description(&self) -> &Description {
        &self.0
    }

    fn digest(&self) -> &Digest {
        static DIGEST: std::sync::OnceLock<Digest> = std::sync::OnceLock::new();
        DIGEST.get_or_init(|| Digest::of(b"hands its inputs on"))
    }

    fn apply(&self, _: usize, inputs: &[ArrayRef]) -> Result<AppliedRows, TransformFailure> {
        Ok(AppliedRows { columns: inputs.to_vec(), ..AppliedRows::default() })
    }
}

fn view(events: &str) -> ViewSpec {
    let fields: Vec<Field> = FEATURES.iter().map(|(name, data_type)| Field::new(*name, *data_type, true)).collect();
    let description = Description {
        name: "payments".to_owned(),
        doc: String::new(),
        owner: String::new(),
        total: true,
        inputs: fields.clone(),
        outputs: fields,
    };
    backfill::view(events, Arc::new(Echo(description)))
}

/// Fills the view's table in `store` from the events.
pub(crate) fn fill(events: &str, store: &str) -> Result<()> {
    backfill::fill(view(events), store)
}

/// Makes the training set of a spine.
pub(crate) fn join(store: &str, spine: &str, out: &str, memory_bytes_max: usize) -> Result<()> {
    let features = FEATURES.iter().map(|(name, _)| DatasetFeature {
        name: (*name).to_owned(),
        view: 0,
        feature: (*name).to_owned(),
        default: None,
    });
    let spec = DatasetSpec {
        service: "fraud@1".to_owned(),
        service_digest: "sha256:fraud".to_owned(),
        spine: spine.to_owned(),
        kept_spine: None,
        columns: SpineColumns { timestamp: "event_timestamp".to_owned(), ..SpineColumns::default() },
        views: vec![ViewOfService::Stored(Box::new(StoredView {
            view: view("unused"),
            keys: vec!["entity_id".to_owned()],
            version: ReadVersion::Current,
        }))],
        features: features.collect(),
        cut: KnownAtCut::Spine,
        with_status: true,
        engine_fingerprint: "none".to_owned(),
        workers: THREADS,
        options: DatasetOptions { statistics: false, ..DatasetOptions::default() },
        memory_bytes_max,
        protected: Vec::new(),
        watch: DatasetWatch::default(),
    };
    let report = backfill::runtime()?.block_on(create_dataset(&OfflineStore::open(store)?, &spec, out))?;
    println!("{} rows, {}", report.rows, report.content_digest);
    Ok(())
}

/// The sides of a race over one data set.
struct Race {
    this: PathBuf,
    python: PathBuf,
    data: PathBuf,
    store: PathBuf,
    spine: PathBuf,
    out: PathBuf,
}

const PEERS: [&str; 2] = ["duckdb", "polars"];

impl Race {
    fn new(data: &str, spine: &str) -> Result<Self> {
        let data = root().join("target/bench").join(data);
        let data = data.canonicalize().with_context(|| format!("scripts/bench.sh makes {}", data.display()))?;
        let race = Self {
            this: std::env::current_exe()?,
            python: root().join("target/bench/venv/bin/python"),
            store: data.join("store"),
            spine: data.join(spine),
            out: data.join("out.parquet"),
            data,
        };
        if !race.store.join("views").exists() {
            measured(Command::new(&race.this).arg("fill").arg(race.data.join("events")).arg(&race.store))?;
        }
        Ok(race)
    }

    fn ours(&self) -> Result<Cost> {
        let mut command = Command::new(&self.this);
        command.arg("join").arg(&self.store).arg(&self.spine).arg(&self.out).arg(MEMORY_BYTES_MAX.to_string());
        self.run("eadem", &mut command)
    }

    fn peer(&self, peer: &str) -> Result<Cost> {
        let mut command = Command::new(&self.python);
        command.arg(root().join("benches/peers/asof.py")).arg(peer).arg(&self.data).arg(&self.spine).arg(&self.out);
        self.run(peer, &mut command)
    }

    fn run(&self, side: &str, command: &mut Command) -> Result<Cost> {
        if self.out.exists() {
            std::fs::remove_file(&self.out)?;
        }
        let cost = measured(command)?;
        println!("{side}: {:.2} s of processor, {:.2} s, {:.0} MiB", cost.cpu_s, cost.wall_s, cost.memory_mib);
        Ok(cost)
    }

    /// Feast's script with one of its verbs.
    fn feast(&self, verb: &str) -> Command {
        let mut command = Command::new(root().join("target/bench/venv-feast/bin/python"));
        command.args(["-W", "ignore"]).arg(root().join("benches/peers/feast_history.py")).arg(verb).arg(&self.data);
        command
    }

    /// Costs of ours and of the best peer, each figure for itself: (ours, theirs).
    fn costs(&self) -> Result<[(f64, f64); 3]> {
        // The first run of each fills the file cache, and shows that they find the same.
        self.ours()?;
        let found = matches(&self.out)?;
        for peer in PEERS {
            self.peer(peer)?;
            let theirs = matches(&self.out)?;
            ensure!(theirs == found, "{peer} finds {theirs:?}, we find {found:?}");
        }
        let mut ours = Vec::new();
        let mut theirs = vec![Vec::new(); PEERS.len()];
        for _ in 0..RUNS {
            ours.push(self.ours()?);
            for (costs, peer) in theirs.iter_mut().zip(PEERS) {
                costs.push(self.peer(peer)?);
            }
        }
        let figure = |part: fn(&Cost) -> f64| {
            let median_of = |costs: &[Cost]| median(costs.iter().map(part).collect());
            (median_of(&ours), theirs.iter().map(|costs| median_of(costs)).fold(f64::INFINITY, f64::min))
        };
        Ok([figure(|cost| cost.cpu_s), figure(|cost| cost.wall_s), figure(|cost| cost.memory_mib)])
    }
}

/// Rows, rows with a match, and the sum over one feature, rounded: what both sides must agree in.
fn matches(out: &Path) -> Result<(usize, usize, i64)> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(out)?)?.build()?;
    let (mut rows, mut found, mut sum) = (0, 0, 0.0);
    for batch in reader {
        let batch = batch?;
        let column = |name: &str| batch.column_by_name(name).cloned().with_context(|| format!("no column {name}"));
        rows += batch.num_rows();
        found += batch.num_rows() - column("lat")?.null_count();
        let lat = column("f0")?;
        let lat = lat.as_any().downcast_ref::<arrow_array::Float64Array>().context("f0 is no float64")?;
        sum += lat.iter().flatten().sum::<f64>();
    }
    Ok((rows, found, (sum * 1e3).round() as i64))
}

/// 5 M rows of history, a spine of 1 M.
pub(crate) fn h1() -> Result<Measured> {
    let load = load_average();
    let [cpu, wall, memory] = Race::new("payments", "spine_1m.parquet")?.costs()?;
    let figure = |bar: &str, name: &str, unit: &str, (ours, theirs): (f64, f64)| {
        Figure::against(bar, name, unit, ours, theirs, RUNS, load)
    };
    let mut figures = vec![
        figure(
            "H1",
            "training set of 1 M rows over 5 M, against the better of DuckDB and polars, processor time",
            "s",
            cpu,
        ),
        figure("H1.wall", "the same on the clock", "s", wall),
        figure("H1.memory", "the same, most resident memory", "MiB", memory),
    ];
    for (bar, data) in [("H1.skew", "payments-skew"), ("H1.seed", "payments-seed")] {
        let [cpu, ..] = Race::new(data, "spine_1m.parquet")?.costs()?;
        figures.push(figure(bar, "the same over other data, processor time", "s", cpu));
    }
    Ok(figures.into())
}

/// 5 M rows of history, a spine of 10 k.
pub(crate) fn h2() -> Result<Measured> {
    let load = load_average();
    let [cpu, ..] = Race::new("payments", "spine_10k.parquet")?.costs()?;
    let name = "training set of 10 k rows over 5 M, against the better of DuckDB and polars, processor time";
    Ok(vec![Figure::against("H2", name, "s", cpu.0, cpu.1, RUNS, load)].into())
}

/// Feast: rows of the spine for a second of processor time, ours over its own.
pub(crate) fn h5() -> Result<Measured> {
    let load = load_average();
    let race = Race::new("payments", "spine_1m.parquet")?;
    measured(&mut race.feast("prepare"))?;
    let feast = || {
        let mut command = race.feast("join");
        command.arg(&race.spine).arg(&race.out);
        race.run("feast", &mut command)
    };
    // The first run of ours fills the file cache, and shows what has to be found.
    race.ours()?;
    let found = matches(&race.out)?;
    let (mut ours, mut theirs, mut of_the_call) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..LONG_RUNS {
        ours.push(race.ours()?.cpu_s);
        theirs.push(feast()?.cpu_s);
        let found_by_feast = matches(&race.out)?;
        ensure!(found_by_feast == found, "feast finds {found_by_feast:?}, we find {found:?}");
        of_the_call.push(call_cpu_s(&race.out)?);
    }
    let rate = |cpu_s: Vec<f64>| found.0 as f64 / median(cpu_s);
    let (ours, theirs, of_the_call) = (rate(ours), rate(theirs), rate(of_the_call));
    let name = "training set of 1 M rows over 5 M against Feast on DuckDB, spine rows for a second of processor time";
    Ok(vec![
        Figure::against("H5", name, "rows/CPU s", ours, theirs, LONG_RUNS, load),
        Figure::against(
            "H5.call",
            "the same without Feast's imports",
            "rows/CPU s",
            ours,
            of_the_call,
            LONG_RUNS,
            load,
        ),
    ]
    .into())
}

/// Processor seconds of the one call that matters, which Feast's script writes beside its rows.
fn call_cpu_s(out: &Path) -> Result<f64> {
    let file = out.with_extension("parquet.json");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let said: serde_json::Value = serde_json::from_str(&text)?;
    said["cpu_s"].as_f64().context("no cpu_s")
}

/// A history ten times as long, the same spine: against ourselves.
pub(crate) fn h3() -> Result<Measured> {
    let load = load_average();
    let short = Race::new("payments", "spine_1m.parquet")?;
    let long = Race { spine: short.spine.clone(), ..Race::new("payments-50m", "meta.json")? };
    // The first run of each fills the file cache.
    short.ours()?;
    long.ours()?;
    let (mut short_costs, mut long_costs) = (Vec::new(), Vec::new());
    for _ in 0..LONG_RUNS {
        short_costs.push(short.ours()?);
        long_costs.push(long.ours()?);
    }
    let figure = |bar: &str, name: &str, unit: &str, part: fn(&Cost) -> f64| {
        let median_of = |costs: &[Cost]| median(costs.iter().map(part).collect());
        Figure::against(bar, name, unit, median_of(&long_costs), median_of(&short_costs), LONG_RUNS, load)
    };
    let name = "training set of 1 M rows over 50 M, against the same over 5 M, processor time";
    Ok(vec![
        figure("H3", name, "s", |cost| cost.cpu_s),
        figure("H3.wall", "the same on the clock", "s", |cost| cost.wall_s),
        figure("H3.memory", "the same, most resident memory", "MiB", |cost| cost.memory_mib),
    ]
    .into())
}

/// A spine of 20 M rows, which does not fit into the memory that the job is given.
pub(crate) fn h4() -> Result<Measured> {
    let load = load_average();
    let race =
        Race { spine: root().join("target/bench/spine-20m/spine.parquet"), ..Race::new("payments", "meta.json")? };
    let cost = race.ours()?;
    let (rows, ..) = matches(&race.out)?;
    ensure!(rows == LARGE_SPINE_ROWS, "{rows} rows were made of a spine of {LARGE_SPINE_ROWS}");
    let mib = MEMORY_BYTES_MAX >> 20;
    let name = format!("training set of 20 M rows over 5 M with a limit of {mib} MiB, most resident memory");
    let alone = |bar: &str, name: &str, unit: &str, value: f64| Figure::alone(bar, name, unit, value, 1, load);
    Ok(vec![
        alone("H4", &name, "MiB", cost.memory_mib),
        alone("H4.cpu", "the same, processor time", "s", cost.cpu_s),
        alone("H4.wall", "the same on the clock", "s", cost.wall_s),
    ]
    .into())
}
