//! Every request of a job fails once, in every way: what a reader then sees is whole, and the job run again ends in what an
//! undisturbed one leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path as FilePath;
use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use eadem_offline::{
    Cancel, CompactOptions, Compaction, DatasetSpec, MemoryLedger, OfflineError, OfflineStore, SpineColumns, ViewSpec,
    compact, create_dataset, run_backfill,
};
use object_store::ObjectStore;
use object_store::memory::InMemory;

use crate::dataset::{dataset, stored};
use crate::delta_log;
use crate::dice::is_soak;
use crate::faulty_store::{FAULTS, FaultyStore};
use crate::support::{Row, at, backfill, double_amount, source, stored_rows, view, write_parquet};

/// Of `make test`; with EADEM_SOAK=1 every request is tried.
const REQUESTS_TRIED: usize = 12;

fn open(store: Arc<dyn ObjectStore>) -> OfflineStore {
    OfflineStore::with_object_store("memory:///lake", store).unwrap()
}

/// The numbers of the requests that fail, of so many: all of them in a soak, else some, the first and the last among them.
fn numbers(requests: usize) -> Vec<usize> {
    let tried = if is_soak() { requests } else { REQUESTS_TRIED.min(requests) };
    (0..tried).map(|n| 1 + n * (requests - 1) / (tried - 1).max(1)).collect()
}

/// What is left of a job: the rows of its view's table, the data files of both tables, and which job made which version.
#[derive(Debug, PartialEq)]
struct Left {
    rows: Vec<Row>,
    files: BTreeSet<String>,
    jobs: Vec<(usize, String)>,
    quarantine: BTreeSet<String>,
}

async fn left(store: &Arc<InMemory>, view: &ViewSpec) -> Left {
    let table = delta_log::versions(store, "lake/views/payments/v1").await;
    let quarantine = delta_log::versions(store, "lake/quarantine/payments/v1").await;
    Left {
        rows: stored_rows(&open(store.clone()), view).await,
        files: delta_log::live_files(&table),
        jobs: delta_log::jobs(&table),
        quarantine: delta_log::live_files(&quarantine),
    }
}

/// Rows on three days, one of them refused.
fn payments(amount: f64) -> RecordBatch {
    let times = [
        at("2023-05-01T10:00:00Z"),
        at("2023-05-02T10:00:00Z"),
        at("2023-05-02T11:00:00Z"),
        at("2023-05-03T09:00:00Z"),
    ];
    RecordBatch::try_from_iter_with_nullable([
        ("card", Arc::new(StringArray::from(vec![Some("a"), Some("b"), None, Some("a")])) as ArrayRef, true),
        ("at", Arc::new(TimestampMicrosecondArray::from(times.to_vec()).with_timezone("UTC")) as ArrayRef, true),
        ("amount", Arc::new(Float64Array::from(vec![amount, 2.0, 3.0, amount + 1.0])) as ArrayRef, true),
        ("note", Arc::new(StringArray::from(vec![Some("x"), None, None, Some("y")])) as ArrayRef, true),
    ])
    .unwrap()
}

/// What is done to a table.
#[derive(Debug, Clone, Copy)]
enum Deed {
    Backfill,
    Compact,
}

/// A view over two files, and a store to which the first was loaded before.
struct Scene {
    folder: tempfile::TempDir,
    view: ViewSpec,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_parquet(&folder.path().join("in/a.parquet"), &payments(1.0), 2);
        let view = view("payments", source("payments", &folder.path().join("in")), double_amount());
        Self { folder, view }
    }

    /// Loads what is there, and then adds a second file that is not loaded yet.
    async fn loaded_once(&self) -> InMemory {
        let store = Arc::new(InMemory::new());
        self.run("first", &open(store.clone()), &Arc::default()).await.unwrap();
        self.add_file();
        store.fork()
    }

    fn add_file(&self) {
        write_parquet(&self.folder.path().join("in/b.parquet"), &payments(20.0), 2);
    }

    async fn act(&self, deed: Deed, store: &OfflineStore, ledger: &Arc<MemoryLedger>) -> Result<(), OfflineError> {
        match deed {
            Deed::Backfill => self.run("job", store, ledger).await,
            Deed::Compact => {
                let compaction = Compaction {
                    job: "compaction".to_owned(),
                    table: store.table(&self.view)?,
                    options: CompactOptions::default(),
                    progress: None,
                    cancel: Cancel::default(),
                };
                compact(compaction).await.map(|_| ())
            }
        }
    }

    async fn run(&self, job: &str, store: &OfflineStore, ledger: &Arc<MemoryLedger>) -> Result<(), OfflineError> {
        let mut job = backfill(job, &self.view, store, ledger.clone());
        // Several chunks, one after the other: requests come in the same order whenever the job runs.
        job.options.chunk_rows = 2;
        job.options.workers = 1;
        run_backfill(job).await.map(|_| ())
    }
}

/// Lets a job fail at its requests, one after the other; gives how many cases were tried and how many went wrong.
async fn with_faults(scene: &Scene, base: &InMemory, deed: Deed) -> (usize, usize) {
    let before = left(&Arc::new(base.fork()), &scene.view).await;
    let undisturbed = Arc::new(base.fork());
    let counting = FaultyStore::counting(undisturbed.clone());
    scene.act(deed, &open(Arc::new(counting.clone())), &Arc::default()).await.unwrap();
    let after = left(&undisturbed, &scene.view).await;
    assert_ne!(before.files, after.files);

    let (mut cases, mut differences) = (0, 0);
    for number in numbers(counting.requests()) {
        for fault in FAULTS {
            let store = Arc::new(base.fork());
            let ledger = Arc::new(MemoryLedger::default());
            let faulty = FaultyStore::failing(store.clone(), number, fault);
            let first = scene.act(deed, &open(Arc::new(faulty)), &ledger).await;
            let seen = stored_rows(&open(store.clone()), &scene.view).await;
            let again = scene.act(deed, &open(store.clone()), &ledger).await;
            let ended = left(&store, &scene.view).await;
            cases += 1;
            let is_whole = seen == before.rows || seen == after.rows;
            let is_honest = first.is_err() || seen == after.rows;
            if !(is_whole && is_honest && again.is_ok() && ended == after) {
                differences += 1;
                println!(
                    "{deed:?}, request {number} {fault:?}: {first:?}, then {again:?}; a reader saw {} rows",
                    seen.len()
                );
            }
        }
    }
    (cases, differences)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_survives_a_fault_at_any_request() {
    let scene = Scene::new();
    let mut totals = with_faults(&scene, &InMemory::new(), Deed::Backfill).await;
    let once = scene.loaded_once().await;
    let twice = Arc::new(once.fork());
    scene.act(Deed::Backfill, &open(twice.clone()), &Arc::default()).await.unwrap();
    for (base, deed) in [(&once, Deed::Backfill), (twice.as_ref(), Deed::Compact)] {
        let (cases, differences) = with_faults(&scene, base, deed).await;
        totals = (totals.0 + cases, totals.1 + differences);
    }
    println!("H9: kills={} faults={}", totals.0, totals.1);
    assert_eq!(totals.1, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_training_set_survives_a_fault_at_any_request() {
    let scene = Scene::new();
    let base = scene.loaded_once().await;
    let spine = scene.folder.path().join("spine.csv");
    std::fs::write(&spine, "card,at\na,2023-05-02T00:00:00Z\nb,2023-05-01T00:00:00Z\na,2023-05-04T00:00:00Z\n")
        .unwrap();
    let spec = dataset_of(&scene.view, &spine);
    let out = |name: &str| scene.folder.path().join(name).to_str().unwrap().to_owned();

    let undisturbed = Arc::new(base.fork());
    let counting = FaultyStore::counting(undisturbed.clone());
    let expected = create_dataset(&open(Arc::new(counting.clone())), &spec, &out("whole.parquet")).await.unwrap();
    let expected_bytes = std::fs::read(out("whole.parquet")).unwrap();

    let (mut cases, mut differences) = (0, 0);
    for number in numbers(counting.requests()) {
        for fault in FAULTS {
            let store = Arc::new(base.fork());
            let file = out(&format!("{number}-{fault:?}.parquet"));
            let faulty = FaultyStore::failing(store.clone(), number, fault);
            let first = create_dataset(&open(Arc::new(faulty)), &spec, &file).await;
            let seen = std::fs::read(&file).ok();
            let again = create_dataset(&open(store.clone()), &spec, &file).await;
            let ended = std::fs::read(&file).ok();
            let recipe = open(store).recipe(&expected.recipe.digest().unwrap()).await.unwrap();
            cases += 1;
            let is_whole = seen.as_ref().is_none_or(|seen| *seen == expected_bytes);
            let is_honest = first.is_err() || seen.is_some();
            let is_same = again.as_ref().is_ok_and(|report| report.content_digest == expected.content_digest);
            let is_kept = recipe.is_some_and(|recipe| recipe.file_digest == expected.recipe.file_digest);
            let is_kept = is_kept && ended.as_ref() == Some(&expected_bytes);
            if !(is_whole && is_honest && is_same && is_kept) {
                differences += 1;
                println!("request {number} {fault:?}: {first:?}, then {again:?}");
            }
        }
    }
    println!("H9: kills={cases} faults={differences}");
    assert_eq!(differences, 0);
}

pub fn dataset_of(view: &ViewSpec, spine: &FilePath) -> DatasetSpec {
    DatasetSpec {
        columns: SpineColumns { timestamp: "at".to_owned(), renamed: BTreeMap::new() },
        workers: 1,
        ..dataset(spine, vec![stored(view, "card")], &[("doubled", 0, "doubled"), ("note_out", 0, "note_out")])
    }
}
