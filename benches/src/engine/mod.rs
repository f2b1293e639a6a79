//! The engine's bars, F2 to F5.

mod data;
mod native;

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::SchemaRef;
use eadem_engine::{Accepted, CallClass, Engine, EngineConfig, FailureKind, Transform, UploadOptions};
use eadem_values::{DataType, Description, Digest, Field, arrow_schema};
use tempfile::TempDir;

use crate::bars::Measured;
use crate::results::{Figure, load_average};
use crate::timer::{self, RUNS, alternate};

const BATCH_ROWS: usize = 8_192;

/// An engine with production settings.
struct Bench {
    engine: Engine,
    _directory: TempDir,
}

/// A transform as the rest of the store calls it: a batch in, a batch out.
struct Loaded {
    transform: Transform,
    schema: SchemaRef,
}

impl Bench {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let config = EngineConfig::with_artifacts_dir(directory.path().join("artifacts"));
        // The compiling child is this executable, called with a word that `main` knows.
        let config = EngineConfig {
            compiler: eadem_engine::CompilerCommand { program: PathBuf::new(), args: vec![COMPILER_VERB.to_owned()] },
            ..config
        };
        Ok(Self { engine: Engine::new(config)?, _directory: directory })
    }

    fn accept(&self, name: &str) -> Result<(Vec<u8>, Accepted)> {
        let bytes = component(name)?;
        let accepted = self.engine.accept(&bytes, &UploadOptions::default()).with_context(|| name.to_owned())?;
        Ok((bytes, accepted))
    }

    fn load(&self, name: &str) -> Result<Loaded> {
        let (_, accepted) = self.accept(name)?;
        ensure!(!accepted.strict_nan, "{name} is to run without NaN canonicalisation");
        let schema = arrow_schema(&accepted.description.outputs);
        let stored = || Err("upload stored the artefact".to_owned());
        let transform = self.engine.load(accepted.digest, stored, accepted.description, false, Some(accepted.cost))?;
        Ok(Loaded { transform, schema })
    }

    /// A component that no upload would accept.
    fn smuggle(&self, name: &str) -> Result<Transform> {
        let bytes = component(name)?;
        let description = Description {
            name: name.to_owned(),
            doc: String::new(),
            owner: String::new(),
            total: true,
            inputs: vec![Field::new("x", DataType::Int64, false)],
            outputs: vec![Field::new("y", DataType::Int64, false)],
        };
        Ok(self.engine.load(Digest::of(&bytes), || Ok(bytes), description, false, None)?)
    }
}

impl Loaded {
    fn apply(&self, batch: &RecordBatch, class: CallClass) -> Result<RecordBatch> {
        let applied = self.transform.apply(batch.num_rows(), batch.columns(), class)?;
        ensure!(applied.rows.failed.is_empty(), "an honest transform failed rows");
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), applied.columns)?)
    }
}

/// The argument with which this executable compiles and does nothing else.
pub const COMPILER_VERB: &str = "compile-component";

fn component(name: &str) -> Result<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/components").join(format!("{name}.wasm"));
    std::fs::read(&path).with_context(|| format!("{}: run `make components` first", path.display()))
}

/// F2: 8,192 rows through the numeric and the string transform, against the same crates compiled natively.
pub fn f2() -> Result<Measured> {
    let load = load_average();
    let bench = Bench::new()?;
    let numeric = bench.load("bench_numeric")?;
    let string = bench.load("bench_string")?;
    let payments = data::payments(BATCH_ROWS)?;
    let merchants = data::merchants(BATCH_ROWS)?;
    same_bits(&numeric.apply(&payments, CallClass::Batch)?, &native::numeric(&payments, &numeric.schema)?)?;
    same_bits(&string.apply(&merchants, CallClass::Batch)?, &native::string(&merchants, &string.schema)?)?;

    let numeric_pair =
        pair(|| numeric.apply(&payments, CallClass::Batch), || native::numeric(&payments, &numeric.schema))?;
    let string_pair =
        pair(|| string.apply(&merchants, CallClass::Batch), || native::string(&merchants, &string.schema))?;
    let figure = |bar: &str, name: &str, pair: timer::Pair| {
        Figure::against(bar, name, "us", pair.ours_us, pair.theirs_us, RUNS, load)
    };
    Ok(vec![
        figure("F2", "numeric transform, 8,192 rows, against native", numeric_pair),
        figure("F2.string", "string transform, 8,192 rows, against native", string_pair),
    ]
    .into())
}

fn pair(ours: impl Fn() -> Result<RecordBatch>, theirs: impl Fn() -> Result<RecordBatch>) -> Result<timer::Pair> {
    let calls = Calls::default();
    let pair = alternate(Duration::from_millis(30), || calls.note(ours()), || calls.note(theirs()));
    calls.all_succeeded()?;
    Ok(pair)
}

/// Calls that are measured: one that failed would measure nothing, so the first failure is kept.
#[derive(Default)]
struct Calls(Mutex<Option<anyhow::Error>>);

impl Calls {
    fn note<T, E: Into<anyhow::Error>>(&self, outcome: Result<T, E>) {
        if let Err(error) = black_box(outcome) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error.into());
        }
    }

    fn all_succeeded(self) -> Result<()> {
        match self.0.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error.context("a measured call failed")),
            None => Ok(()),
        }
    }
}

/// Nothing is compared that does not compute the same.
fn same_bits(ours: &RecordBatch, theirs: &RecordBatch) -> Result<()> {
    for (ours, theirs) in ours.columns().iter().zip(theirs.columns()) {
        for row in 0..ours.len() {
            let (ours, theirs) = (eadem_values::value_at(ours, row)?, eadem_values::value_at(theirs, row)?);
            ensure!(ours.bits_eq(&theirs), "row {row}: {ours:?} in the engine, {theirs:?} natively");
        }
    }
    Ok(())
}

/// F3: one row, a fresh instance per call, batch in to batch out.
pub fn f3() -> Result<Measured> {
    const CALLS: u64 = 10_000;
    let load = load_average();
    let bench = Bench::new()?;
    // Loaded a second time, from the stored artefact and through its hash.
    bench.load("bench_numeric")?;
    let numeric = bench.load("bench_numeric")?;
    let one_row = data::payments(1)?;
    let call = || numeric.apply(&one_row, CallClass::Serving);
    let native_call = || native::numeric(&one_row, &numeric.schema);
    same_bits(&call()?, &native_call()?)?;
    let calls = Calls::default();
    let mut ours = || calls.note(call());
    let mut theirs = || calls.note(native_call());
    timer::us_per_turn(CALLS, &mut ours);
    let (mut ours_us, mut theirs_us) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..RUNS {
        ours_us = ours_us.min(timer::us_per_turn(CALLS, &mut ours));
        theirs_us = theirs_us.min(timer::us_per_turn(CALLS, &mut theirs));
    }
    let no_rows: Vec<ArrayRef> = one_row.columns().iter().map(|column| column.slice(0, 0)).collect();
    let mut without_call = || calls.note(numeric.transform.apply(0, &no_rows, CallClass::Serving));
    let without_call_us = timer::least_us_per_turn(Duration::from_millis(10), &mut without_call);
    calls.all_succeeded()?;
    let name = "one row, fresh instance, batch in to batch out, against a native call";
    Ok(vec![
        Figure::against("F3", name, "us", ours_us, theirs_us, RUNS, load),
        Figure::alone(
            "F3.checks",
            "the same without any row, so without an instance",
            "us",
            without_call_us,
            RUNS,
            load,
        ),
    ]
    .into())
}

/// F4: from opening an artefact's file to an instance that can be made.
pub fn f4() -> Result<Measured> {
    let load = load_average();
    let bench = Bench::new()?;
    let (bytes, accepted) = bench.accept("bench_numeric")?;
    let path = bench.engine.artifact_path(&accepted.digest, accepted.strict_nan);
    let open = || {
        let stored = || Err("upload stored the artefact".to_owned());
        bench.engine.load(accepted.digest, stored, accepted.description.clone(), accepted.strict_nan, None)
    };
    open()?;
    let read = || std::fs::read(&path);
    read()?;
    let calls = Calls::default();
    let times = alternate(Duration::from_millis(20), || calls.note(open()), || calls.note(read()));
    calls.all_succeeded()?;
    let name = "from the artefact's file to an instance that can be made, against reading the file";
    let artifact_bytes = std::fs::metadata(&path)?.len();
    Ok(vec![
        Figure::against("F4", name, "ms", times.ours_us / 1_000.0, times.theirs_us / 1_000.0, RUNS, load),
        Figure::against(
            "F4.size",
            "artefact, against its component",
            "bytes",
            artifact_bytes as f64,
            bytes.len() as f64,
            1,
            load,
        ),
    ]
    .into())
}

/// F5: honest calls on one thread while another thread runs endless loops back to back.
pub fn f5() -> Result<Measured> {
    const CALLS: u64 = 2_000;
    const ENDLESS: i64 = 6_660_003;
    let load = load_average();
    let bench = Bench::new()?;
    let numeric = bench.load("bench_numeric")?;
    let poison = bench.smuggle("poison_row")?;
    let endless: ArrayRef = Arc::new(arrow_array::Int64Array::from(vec![ENDLESS]));
    let one_row = data::payments(1)?;
    let calls = Calls::default();
    let mut honest = || calls.note(numeric.apply(&one_row, CallClass::Serving));
    let loop_in_component = || calls.note(ends_at_deadline(&poison, &endless));
    let loop_natively = || {
        for turn in 0..1_000_000_u64 {
            black_box(turn);
        }
    };
    let (mut ours_us, mut theirs_us) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..RUNS {
        ours_us = ours_us.min(beside(&loop_in_component, || timer::us_per_turn(CALLS, &mut honest)));
        theirs_us = theirs_us.min(beside(&loop_natively, || timer::us_per_turn(CALLS, &mut honest)));
    }
    calls.all_succeeded()?;
    let (ours, theirs) = (1e6 / ours_us, 1e6 / theirs_us);
    let name = "honest calls beside endless loops in a component, against beside a native loop";
    Ok(vec![Figure::against("F5", name, "calls/s", ours, theirs, RUNS, load)].into())
}

/// Runs a row that never answers: anything but its deadline would mean that nothing looped.
fn ends_at_deadline(poison: &Transform, endless: &ArrayRef) -> Result<()> {
    let applied = poison.apply(1, std::slice::from_ref(endless), CallClass::Serving)?;
    let kinds: Vec<FailureKind> = applied.rows.failed.iter().map(|failed| failed.kind).collect();
    ensure!(kinds == [FailureKind::Deadline], "an endless loop ended with {kinds:?}");
    Ok(())
}

/// Measures while another thread repeats something without pause.
fn beside<T>(repeated: &(impl Fn() + Sync), measure: impl FnOnce() -> T) -> T {
    let is_over = AtomicBool::new(false);
    let has_begun = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            has_begun.wait();
            while !is_over.load(Ordering::Relaxed) {
                repeated();
            }
        });
        has_begun.wait();
        let measured = measure();
        is_over.store(true, Ordering::Relaxed);
        measured
    })
}
