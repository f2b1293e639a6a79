//! Refused rows: how many stop a job, how they are listed, and what a replay makes of them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use arrow_array::{ArrayRef, RecordBatch};
use eadem_offline::{
    BackfillOptions, BackfillReport, Cancel, EntryState, JobLedger, MemoryLedger, OfflineError, OfflineStore,
    Placement, QuarantineCursor, QuarantineEntry, QuarantineFilter, QuarantineSummary, Replay, ReplayOptions,
    ReplayReport, ScanRange, StopThreshold, ViewSpec, run_backfill, run_replay,
};
use eadem_query::{OutlierBound, RowTransform, Validation, ValidationPolicy};
use eadem_values::{DataType, ElementType, Field, Value, array_from_values, encode_values};
use object_store::local::LocalFileSystem;

use crate::backfill::{CalledOffLedger, DyingLedger, payments};
use crate::faulty_store::FaultyStore;
use crate::support::{
    FullDisk, NOW, NativeTransform, Outcome, Row, at, backfill, double_amount, source, store_in, stored_rows, view,
    write_parquet,
};

/// Event times of the rows that a job of [`crate::support::NOW`] finds too far ahead lie before this.
const LATER: &str = "2024-06-01T00:00:00Z";

/// `rows` payments of May 2023, of which those in `ahead` are of March 2024.
fn payments_with(rows: usize, ahead: impl Fn(usize) -> bool) -> RecordBatch {
    let texts: Vec<(String, String)> = (0..rows)
        .map(|row| {
            let month = if ahead(row) { "2024-03" } else { "2023-05" };
            (format!("card{}", row % 7), format!("{month}-{:02}T10:00:{:02}Z", 1 + row % 9, row % 60))
        })
        .collect();
    let rows: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(row, (card, time))| (Some(card.as_str()), time.as_str(), Some(row as f64), None))
        .collect();
    payments(&rows)
}

async fn entries(store: &OfflineStore, view: &ViewSpec, filter: QuarantineFilter) -> Vec<QuarantineEntry> {
    let quarantine = store.quarantine(&view.name, view.version).unwrap();
    quarantine.page(&store.table(view).unwrap(), &filter, None, 10_000).await.unwrap().entries
}

async fn summary(store: &OfflineStore, view: &ViewSpec) -> QuarantineSummary {
    let quarantine = store.quarantine(&view.name, view.version).unwrap();
    quarantine.summary(&store.table(view).unwrap()).await.unwrap()
}

fn settled() -> QuarantineFilter {
    QuarantineFilter { settled: true, ..QuarantineFilter::default() }
}

async fn replay(job: &str, view: &ViewSpec, store: &OfflineStore, now: &str) -> Replay {
    let version = store.quarantine(&view.name, view.version).unwrap().version().await.unwrap();
    Replay {
        job: job.to_owned(),
        view: view.clone(),
        store: store.clone(),
        ledger: Arc::new(MemoryLedger::default()),
        options: ReplayOptions {
            created_at_us: at(now),
            version: version.unwrap(),
            filter: QuarantineFilter::default(),
            rows_max: 1_000,
            memory_bytes_max: 64 << 20,
        },
        progress: None,
        cancel: Cancel::default(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_refused_rows_stop_a_job_whatever_its_chunks_and_workers() {
    let folder = tempfile::tempdir().unwrap();
    // 10 of 100, half of them in the last chunk.
    write_parquet(&folder.path().join("in/a.parquet"), &payments_with(100, |row| row % 20 == 19 || row > 94), 10);
    let refused = (0..100).filter(|row| row % 20 == 19 || *row > 94).count() as u64;
    let view = view("payments", source("payments", &folder.path().join("in")), double_amount());
    for (number, (chunk_rows, workers)) in [(1_000, 1), (10, 1), (10, 3), (30, 2)].into_iter().enumerate() {
        let store = store_in(&folder.path().join(number.to_string()));
        let run = async |share_ppm: u32, rows_min: u64| {
            let mut job =
                backfill(&format!("job-{share_ppm}-{rows_min}"), &view, &store, Arc::new(MemoryLedger::default()));
            job.options.chunk_rows = chunk_rows;
            job.options.workers = workers;
            job.options.stop = Some(StopThreshold { share_ppm, rows_min });
            run_backfill(job).await
        };
        let share_ppm = (refused * 10_000) as u32;
        let error = run(share_ppm - 1, 100).await.unwrap_err();
        let OfflineError::TooManyRefused { refused: found, counts, .. } = &error else { panic!("{error}") };
        assert_eq!((*found, counts.values().sum::<u64>()), (refused, refused), "{error}");
        let said = error.to_string();
        for part in ["9 × event time too far ahead of its arrival", "eadem quarantine list payments@1 --job job-"] {
            assert!(said.contains(part), "{said}");
        }
        assert_eq!(store.table(&view).unwrap().version().await.unwrap(), None, "something is visible");
        // What was refused can be looked at, and cannot be replayed: its file is not loaded.
        let kept = entries(&store, &view, QuarantineFilter::default()).await;
        assert_eq!(kept.len() as u64, refused);
        let report = run_replay(replay("replay", &view, &store, LATER).await).await.unwrap();
        assert_eq!((report.rows_tried, report.hindered.values().sum::<u64>()), (0, refused));

        // One row more than there are is too few for a share; and the share itself is not too much.
        assert_eq!(run(0, 101).await.unwrap().rows_refused(), refused);
        let other = store_in(&folder.path().join(format!("{number}-other")));
        let mut job = backfill("job", &view, &other, Arc::new(MemoryLedger::default()));
        job.options.stop = Some(StopThreshold { share_ppm, rows_min: 1 });
        assert_eq!(run_backfill(job).await.unwrap().rows_refused(), refused);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_stops_early_once_it_cannot_succeed_and_stops_again_when_resumed() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(&folder.path().join("in/a.parquet"), &payments_with(1_000, |row| row < 200), 100);
    let view = view("payments", source("payments", &folder.path().join("in")), double_amount());
    let store = store_in(folder.path());
    let ledger: Arc<dyn JobLedger> = Arc::new(MemoryLedger::default());
    let run = async || {
        let mut job = backfill("job", &view, &store, ledger.clone());
        job.options.chunk_rows = 100;
        job.options.batch_rows = 50;
        job.options.workers = 1;
        job.options.stop = Some(StopThreshold { share_ppm: 100_000, rows_min: 10 });
        run_backfill(job).await.unwrap_err()
    };
    // 101 of 1000 are more than a tenth whatever comes: the third batch of 50 settles it.
    let error = run().await;
    let OfflineError::TooManyRefused { refused, rows, .. } = error else { panic!("{error}") };
    assert_eq!((refused, rows), (150, 150), "all was read");
    assert_eq!(entries(&store, &view, QuarantineFilter::default()).await.len(), 150);
    assert!(matches!(run().await, OfflineError::TooManyRefused { .. }));
    assert_eq!(entries(&store, &view, QuarantineFilter::default()).await.len(), 150, "refused rows are kept once");
    assert!(stored_rows(&store, &view).await.is_empty());
}

/// A job of another time: whatever it refuses or stores arrives then.
async fn run_at(
    now: &str,
    job: &str,
    (store, view): (&OfflineStore, &ViewSpec),
    change: impl FnOnce(&mut BackfillOptions),
) -> Result<BackfillReport, OfflineError> {
    let mut job = backfill(job, view, store, Arc::new(MemoryLedger::default()));
    job.options.created_at_us = at(now);
    change(&mut job.options);
    run_backfill(job).await
}

/// A row that several jobs have refused is one refused row; one that a later job has stored is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_latest_job_that_has_looked_at_a_row_says_whether_it_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(&folder.path().join("in/a.parquet"), &payments_with(16, |row| row > 5), 100);
    let view = view("payments", source("payments", &folder.path().join("in")), double_amount());
    let store = store_in(folder.path());
    let place = (&store, &view);
    assert_eq!(run_at(NOW, "first", place, |_| {}).await.unwrap().rows_refused(), 10);
    let stopped = run_at("2024-01-02T00:00:00Z", "second", place, |options| {
        options.recompute = true;
        options.stop = Some(StopThreshold { share_ppm: 0, rows_min: 1 });
    });
    assert!(matches!(stopped.await, Err(OfflineError::TooManyRefused { .. })));
    let refused = entries(&store, &view, QuarantineFilter::default()).await;
    assert_eq!(refused.len(), 10, "{refused:?}");
    assert!(refused.iter().all(|entry| entry.row.job == "second"));
    assert_eq!(summary(&store, &view).await.refused.values().sum::<u64>(), 10);
    let states = async |job: &str| {
        let all = entries(&store, &view, settled()).await;
        let of_job = all.into_iter().filter(|entry| entry.row.job == job);
        let states: BTreeSet<_> = of_job.map(|entry| (format!("{:?}", entry.state), entry.settled_by)).collect();
        states.into_iter().collect::<Vec<_>>()
    };
    let by = |state: EntryState, job: &str| vec![(format!("{state:?}"), Some(job.to_owned()))];
    assert_eq!(states("first").await, by(EntryState::RefusedAgain, "second"));

    // By then no row is ahead of its time.
    let later = run_at(LATER, "third", place, |options| options.recompute = true).await.unwrap();
    assert_eq!((later.rows_stored, later.rows_refused()), (16, 0));
    assert!(entries(&store, &view, QuarantineFilter::default()).await.is_empty());
    assert!(summary(&store, &view).await.refused.is_empty());
    assert_eq!(states("second").await, by(EntryState::LoadedSince, "third"));
}

/// A job has looked at the rows of its range only, and not at those that others had loaded before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_a_later_job_has_not_looked_at_stay_refused() {
    let folder = tempfile::tempdir().unwrap();
    let batch = payments(&[
        (Some("a"), "2023-05-01T10:00:00Z", Some(1.0), None),
        (Some("a"), "2024-03-01T10:00:00Z", Some(2.0), None),
        (Some("a"), "2024-04-01T10:00:00Z", Some(3.0), None),
        (Some("a"), "", Some(4.0), None),
    ]);
    write_parquet(&folder.path().join("in/a.parquet"), &batch, 100);
    let view = view("payments", source("payments", &folder.path().join("in")), double_amount());
    let march = Some((at("2024-03-01T00:00:00Z"), at("2024-04-01T00:00:00Z")));
    let refused = async |store: &OfflineStore| {
        let mut rows: Vec<(i64, String)> = entries(store, &view, QuarantineFilter::default())
            .await
            .into_iter()
            .map(|entry| (entry.row.row, entry.row.job))
            .collect();
        rows.sort();
        assert_eq!(summary(store, &view).await.refused.values().sum::<u64>(), rows.len() as u64);
        rows
    };
    let row = |row: i64, job: &str| (row, job.to_owned());

    let store = store_in(&folder.path().join("recomputed"));
    run_at(NOW, "whole", (&store, &view), |_| {}).await.unwrap();
    assert_eq!(refused(&store).await, [row(1, "whole"), row(2, "whole"), row(3, "whole")]);
    run_at(LATER, "march", (&store, &view), |options| (options.range_us, options.recompute) = (march, true))
        .await
        .unwrap();
    // The row without a time is no range's: every job refuses it.
    assert_eq!(refused(&store).await, [row(2, "whole"), row(3, "march")]);

    let store = store_in(&folder.path().join("completed"));
    run_at(NOW, "march", (&store, &view), |options| options.range_us = march).await.unwrap();
    run_at(LATER, "rest", (&store, &view), |_| {}).await.unwrap();
    assert_eq!(refused(&store).await, [row(1, "march"), row(3, "rest")]);
}

/// Whoever dies between the commits of a job, or in either of them, leaves no row that is neither stored nor refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_rows_are_kept_before_their_file_counts_as_loaded() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(&folder.path().join("in/a.parquet"), &payments_with(16, |row| row > 5), 100);
    let view = view("payments", source("payments", &folder.path().join("in")), double_amount());
    for table in ["quarantine", "views"] {
        for is_resumed in [true, false] {
            let root = folder.path().join(format!("{table}-{is_resumed}"));
            let commit = format!("{table}/payments/v1/_delta_log/{:020}.json", 1);
            let broken = FaultyStore::refusing(Arc::new(LocalFileSystem::new()), commit);
            let broken = OfflineStore::with_object_store(root.to_str().unwrap(), Arc::new(broken)).unwrap();
            let ledger = Arc::new(MemoryLedger::default());
            run_backfill(backfill("job", &view, &broken, ledger.clone())).await.unwrap_err();
            let store = OfflineStore::open(root.to_str().unwrap()).unwrap();
            let context = format!("dead in the commit of {table}, resumed: {is_resumed}");
            assert!(stored_rows(&store, &view).await.is_empty(), "{context}");
            let kept = entries(&store, &view, QuarantineFilter::default()).await;
            assert_eq!(kept.len(), if table == "views" { 10 } else { 0 }, "{context}");
            // What is not loaded cannot be replayed.
            if table == "views" {
                let report = run_replay(replay("replay", &view, &store, LATER).await).await.unwrap();
                assert_eq!((report.rows_tried, report.hindered.values().sum::<u64>()), (0, 10), "{context}");
            }
            let report = match is_resumed {
                true => run_backfill(backfill("job", &view, &store, ledger)).await,
                false => run_at("2024-01-02T00:00:00Z", "another", (&store, &view), |_| {}).await,
            };
            assert_eq!(report.unwrap().rows_refused(), 10, "{context}");
            assert_eq!(stored_rows(&store, &view).await.len(), 6, "{context}");
            assert_eq!(entries(&store, &view, QuarantineFilter::default()).await.len(), 10, "{context}");
            let lines = entries(&store, &view, settled()).await.len();
            assert_eq!(lines, if table == "views" && !is_resumed { 20 } else { 10 }, "{context}");
        }
    }
}

/// Called off by another process at the last moment: the ledger says so, and nothing becomes visible.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_was_called_off_elsewhere_does_not_commit() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(&folder.path().join("in/a.parquet"), &payments_with(16, |_| true), 100);
    let view = view("payments", source("payments", &folder.path().join("in")), double_amount());
    let store = store_in(folder.path());
    run_backfill(backfill("job", &view, &store, Arc::new(MemoryLedger::default()))).await.unwrap();
    let inner = Arc::new(MemoryLedger::default());
    let mut job = replay("replay", &view, &store, LATER).await;
    job.ledger = Arc::new(CalledOffLedger(DyingLedger { inner: inner.clone(), calls_left: AtomicI64::new(i64::MAX) }));
    assert!(matches!(run_replay(job.clone()).await, Err(OfflineError::Cancelled)));
    assert!(stored_rows(&store, &view).await.is_empty());
    assert_eq!(entries(&store, &view, QuarantineFilter::default()).await.len(), 16);
    job.ledger = inner;
    assert_eq!(run_replay(job).await.unwrap().rows_stored, 16);
    assert!(entries(&store, &view, QuarantineFilter::default()).await.is_empty());
}

/// Every type, and the values that are lost elsewhere.
fn all_types() -> Vec<(&'static str, DataType, Vec<Value>)> {
    let texts = ["", "\0", "\"\\\u{feff}\n", "e\u{301}", "NaN", "ü".repeat(40).leak()];
    vec![
        ("boolean", DataType::Boolean, vec![Value::Boolean(true), Value::Boolean(false)]),
        ("int64", DataType::Int64, [i64::MIN, i64::MAX, (1 << 53) + 1, 0].map(Value::Int64).to_vec()),
        (
            "float32",
            DataType::Float32,
            [f32::NAN, f32::NEG_INFINITY, -0.0, f32::MIN_POSITIVE / 2.0, 0.1, f32::MAX].map(Value::Float32).to_vec(),
        ),
        (
            "float64",
            DataType::Float64,
            [f64::NAN, f64::INFINITY, -0.0, 5e-324, 0.1, 1.0 / 3.0, f64::MAX, 1e23].map(Value::Float64).to_vec(),
        ),
        ("utf8", DataType::Utf8, texts.map(|text| Value::Utf8(text.to_owned())).to_vec()),
        ("binary", DataType::Binary, vec![Value::Binary(vec![]), Value::Binary(vec![0, 255, 10])]),
        ("timestamp", DataType::Timestamp, [i64::MIN, -1, 0, i64::MAX].map(Value::Timestamp).to_vec()),
        ("vector", DataType::Vector(2), vec![Value::Vector(vec![-0.0, f32::NAN]), Value::Vector(vec![0.1, 1e-45])]),
        (
            "int64s",
            DataType::List(ElementType::Int64),
            vec![Value::ListInt64(vec![]), Value::ListInt64(vec![i64::MIN, 1])],
        ),
        (
            "float64s",
            DataType::List(ElementType::Float64),
            vec![Value::ListFloat64(vec![f64::NAN, -0.0]), Value::ListFloat64(vec![])],
        ),
        (
            "utf8s",
            DataType::List(ElementType::Utf8),
            vec![Value::ListUtf8(vec![]), Value::ListUtf8(vec![String::new(), "\u{0}\"".to_owned()])],
        ),
    ]
}

fn keeps_all_types() -> Arc<dyn RowTransform> {
    let inputs: Vec<Field> =
        all_types().into_iter().map(|(name, data_type, _)| Field::new(name, data_type, true)).collect();
    let outputs = inputs.iter().map(|input| Field::new(format!("{}_out", input.name), input.data_type, true)).collect();
    NativeTransform::shared("keeps", true, inputs, outputs, |row| Outcome::Row(row.to_vec()))
}

/// Rows of all types, all too far ahead of a job of now, the values of each type in turn with a null among them.
fn rows_of_all_types(rows: usize) -> RecordBatch {
    let cards: Vec<Value> = (0..rows).map(|row| Value::Utf8(format!("card{row}"))).collect();
    let times: Vec<Value> = (0..rows).map(|row| Value::Timestamp(at("2024-03-01T00:00:00Z") + row as i64)).collect();
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("card", array_from_values(DataType::Utf8, &cards).unwrap()),
        ("at", array_from_values(DataType::Timestamp, &times).unwrap()),
    ];
    for (name, data_type, mut values) in all_types() {
        values.push(Value::Null);
        let values: Vec<&Value> = (0..rows).map(|row| &values[row % values.len()]).collect();
        columns.push((name, array_from_values(data_type, values).unwrap()));
    }
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true))).unwrap()
}

fn bits(rows: &[Row]) -> Vec<(String, String, Vec<u8>, String, i64)> {
    let bits = |row: &Row| {
        let order = format!("{:?}", row.order);
        (row.key.clone(), order, encode_values(&row.values), row.lane.clone(), row.sequence)
    };
    rows.iter().map(bits).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replayed_row_is_the_row_that_a_later_job_would_have_stored_bit_for_bit() {
    for placement in [Placement::OnWrite, Placement::OnRead] {
        let folder = tempfile::tempdir().unwrap();
        write_parquet(&folder.path().join("in/a.parquet"), &rows_of_all_types(90), 1_000);
        let mut view = view("all", source("all", &folder.path().join("in")), keeps_all_types());
        view.placement = placement;
        let store = store_in(folder.path());
        let report = run_backfill(backfill("job", &view, &store, Arc::new(MemoryLedger::default()))).await.unwrap();
        assert_eq!((report.rows_stored, report.rows_refused()), (0, 90));

        let report = run_replay(replay("replay", &view, &store, LATER).await).await.unwrap();
        assert_eq!((report.rows_tried, report.rows_stored, report.version), (90, 90, Some(2)), "{report:?}");
        let other = store_in(&folder.path().join("other"));
        let mut later = backfill("job", &view, &other, Arc::new(MemoryLedger::default()));
        later.options.created_at_us = at(LATER);
        assert_eq!(run_backfill(later).await.unwrap().rows_stored, 90);
        let expected = stored_rows(&other, &view).await;
        assert!(bits(&stored_rows(&store, &view).await) == bits(&expected), "{placement:?}");

        // A second replay finds nothing to do, and a backfill that its file is loaded.
        let report = run_replay(replay("again", &view, &store, LATER).await).await.unwrap();
        assert_eq!((report.rows_tried, report.version), (0, None));
        let report = run_backfill(backfill("job-2", &view, &store, Arc::new(MemoryLedger::default()))).await.unwrap();
        assert_eq!(report.files_already_loaded, ["a.parquet"]);
        assert_eq!(stored_rows(&store, &view).await.len(), 90);
        let kept = entries(&store, &view, settled()).await;
        assert!(kept.iter().all(|entry| entry.state == EntryState::Replayed), "{kept:?}");
        assert!(kept.iter().all(|entry| entry.settled_by.as_deref() == Some("replay")));
        assert!(entries(&store, &view, QuarantineFilter::default()).await.is_empty());
    }
}

/// Rows of 2024 are ahead of their arrival for a while. What they become then is up to the transform and the policy.
fn fussy() -> Arc<dyn RowTransform> {
    let inputs = vec![Field::new("amount", DataType::Float64, false)];
    NativeTransform::shared("fussy", false, inputs, vec![Field::new("kept", DataType::Float64, true)], |row| {
        let Value::Float64(amount) = row[0] else { panic!("a null reached the transform") };
        match amount as i64 % 4 {
            0 => Outcome::Drop,
            1 => Outcome::Fail("one too many".to_owned()),
            _ => Outcome::Row(vec![row[0].clone()]),
        }
    })
}

fn fussy_view(folder: &Path) -> ViewSpec {
    let mut view = view("fussy", source("payments", &folder.join("in")), fussy());
    let bound = OutlierBound { max: Some(Value::Float64(14.0)), ..OutlierBound::default() };
    let bounds = [("kept".to_owned(), bound)].into();
    view.validation = Validation { policy: ValidationPolicy::RefuseRow, bounds };
    view
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_stores_drops_and_refuses_again_with_the_new_reason() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(&folder.path().join("in/a.parquet"), &payments_with(16, |_| true), 100);
    let view = fussy_view(folder.path());
    let store = store_in(folder.path());
    run_backfill(backfill("job", &view, &store, Arc::new(MemoryLedger::default()))).await.unwrap();
    let report = run_replay(replay("replay", &view, &store, LATER).await).await.unwrap();
    assert_eq!((report.rows_tried, report.rows_dropped, report.rows_stored), (16, 4, 7), "{report:?}");
    let refused: Vec<(&str, u64)> = report.refused.iter().map(|(kind, rows)| (kind.as_str(), *rows)).collect();
    assert_eq!(refused, [("feature `kept` breaks bounds max = 14.0", 1), ("the transform refused the row", 4)]);
    let amounts: Vec<Value> = stored_rows(&store, &view).await.into_iter().map(|row| row.values[0].clone()).collect();
    assert_eq!(amounts, [2.0, 3.0, 6.0, 7.0, 10.0, 11.0, 14.0].map(Value::Float64));

    let kept = entries(&store, &view, QuarantineFilter::default()).await;
    let seen: Vec<(i64, &str, &str, i64)> = kept
        .iter()
        .map(|entry| (entry.row.row, entry.row.reason.as_str(), entry.row.job.as_str(), entry.row.attempt))
        .collect();
    let too_many = "one too many";
    assert_eq!(
        seen,
        [
            (1, too_many, "replay", 1),
            (5, too_many, "replay", 1),
            (9, too_many, "replay", 1),
            (13, too_many, "replay", 1),
            (15, "`kept` = 15.0 breaks bounds max = 14.0", "replay", 1),
        ]
    );
    assert!(kept.iter().all(|entry| entry.row.arrival_us == at(LATER)));
    let states = entries(&store, &view, settled()).await;
    let count = |state| states.iter().filter(|entry| entry.state == state && entry.row.job == "job").count();
    assert_eq!((count(EntryState::Replayed), count(EntryState::Dropped), count(EntryState::RefusedAgain)), (7, 4, 5));

    // The next one tries what is left, and ends where it began.
    let report = run_replay(replay("third", &view, &store, LATER).await).await.unwrap();
    assert_eq!((report.rows_tried, report.rows_refused(), report.version), (5, 5, None));
    let kept = entries(&store, &view, QuarantineFilter::default()).await;
    assert!(kept.len() == 5 && kept.iter().all(|entry| entry.row.attempt == 2 && entry.row.job == "third"));
    let summary = summary(&store, &view).await;
    assert_eq!((summary.replayed, summary.dropped, summary.refused.values().sum::<u64>()), (7, 4, 5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_takes_what_it_is_asked_for_and_the_least_tried_first() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(&folder.path().join("in/a.parquet"), &payments_with(16, |row| row > 5), 100);
    let view = fussy_view(folder.path());
    let store = store_in(folder.path());
    let report = run_backfill(backfill("job/fussy@1", &view, &store, Arc::new(MemoryLedger::default()))).await.unwrap();
    assert_eq!((report.rows_stored, report.rows_refused()), (2, 12));
    let with = async |filter: QuarantineFilter, rows_max: usize, job: &str| {
        let mut replay = replay(job, &view, &store, LATER).await;
        replay.options.filter = filter;
        replay.options.rows_max = rows_max;
        run_replay(replay).await.unwrap()
    };
    let none = QuarantineFilter { job: Some("jo".to_owned()), ..QuarantineFilter::default() };
    let nothing = with(none, 100, "r0").await;
    let memory_bytes_peak = nothing.memory_bytes_peak;
    assert_eq!(nothing, ReplayReport { memory_bytes_peak, ..ReplayReport::default() });
    let by_reason = QuarantineFilter {
        job: Some("job".to_owned()),
        reason: Some("one too many".to_owned()),
        ..QuarantineFilter::default()
    };
    let report = with(by_reason, 100, "r1").await;
    assert_eq!((report.rows_tried, report.rows_refused()), (2, 2), "rows 1 and 5");
    let report = with(QuarantineFilter::default(), 6, "r2").await;
    assert_eq!((report.rows_tried, report.rows_left), (6, 6));
    let attempts: Vec<i64> =
        entries(&store, &view, QuarantineFilter::default()).await.iter().map(|entry| entry.row.attempt).collect();
    assert_eq!(attempts.iter().filter(|attempt| **attempt == 0).count(), 4, "{attempts:?}");
    assert_eq!(attempts.iter().max(), Some(&1), "a row was tried twice before others were tried once");
    let lane = stored_rows(&store, &view).await[0].lane.clone();
    let one = QuarantineFilter { lane: Some(lane[..15].to_owned()), row: Some(14), ..QuarantineFilter::default() };
    assert_eq!(with(one, 100, "r3").await.rows_stored, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_no_replay_can_store_are_left_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let batch = payments(&[
        (Some("a"), "2023-05-01T10:00:00Z", Some(1.0), Some("7")),
        (Some("a"), "2023-05-02T10:00:00Z", Some(2.0), Some("no number")),
        (None, "2023-05-03T10:00:00Z", Some(3.0), Some("8")),
        (Some("a"), "2024-03-01T10:00:00Z", Some(4.0), Some("9")),
    ]);
    write_parquet(&folder.path().join("in/a.parquet"), &batch, 100);
    let mut view = view("payments", source("payments", &folder.path().join("in")), double_amount());
    view.source.columns = vec![("amount".to_owned(), "amount * cast(note as double)".to_owned())];
    let store = store_in(folder.path());
    let mut first = backfill("job", &view, &store, Arc::new(MemoryLedger::default()));
    first.options.range_us = Some((at("2023-05-01T00:00:00Z"), at("2023-06-01T00:00:00Z")));
    run_backfill(first).await.unwrap();
    let mut second = backfill("second", &view, &store, Arc::new(MemoryLedger::default()));
    second.options.range_us = Some((at("2024-03-01T00:00:00Z"), at("2024-04-01T00:00:00Z")));
    second.options.stop = Some(StopThreshold { share_ppm: 0, rows_min: 1 });
    assert!(matches!(run_backfill(second).await, Err(OfflineError::TooManyRefused { .. })));

    let report = run_replay(replay("replay", &view, &store, LATER).await).await.unwrap();
    assert_eq!((report.rows_tried, report.rows_refused()), (1, 1), "a null key stays one: {report:?}");
    let hindered: Vec<(&str, u64)> = report.hindered.iter().map(|(why, rows)| (why.as_str(), *rows)).collect();
    assert_eq!(hindered.len(), 2, "{hindered:?}");
    assert!(hindered[0].0.starts_with("its event time lies outside what is loaded of its file"), "{hindered:?}");
    assert!(hindered[1].0.starts_with("one of its values could not be had from the source"), "{hindered:?}");
    let kept = entries(&store, &view, QuarantineFilter::default()).await;
    let quarantine = store.quarantine(&view.name, view.version).unwrap();
    let rows: Vec<_> = kept.iter().map(|entry| &entry.row).collect();
    let hindrances = quarantine.hindrances(&view, &store.table(&view).unwrap(), &rows).await.unwrap();
    let by_row = |row: i64| &hindrances[kept.iter().position(|entry| entry.row.row == row).unwrap()];
    assert_eq!((by_row(1).as_deref(), by_row(3).as_deref()), (Some(hindered[1].0), Some(hindered[0].0)));
    assert_eq!(by_row(2), &None, "it can be tried, whatever comes of it");

    // What was left alone is met again by the backfill of its time, and is then stored once.
    let mut third = backfill("third", &view, &store, Arc::new(MemoryLedger::default()));
    third.options.created_at_us = at(LATER);
    assert_eq!(run_backfill(third).await.unwrap().rows_stored, 1);
    let report = run_replay(replay("again", &view, &store, LATER).await).await.unwrap();
    assert_eq!((report.rows_stored, report.rows_stored_before), (0, 1), "{report:?}");
    assert_eq!(stored_rows(&store, &view).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_killed_anywhere_and_run_again_loads_its_rows_once() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(&folder.path().join("in/a.parquet"), &payments_with(40, |row| row % 2 == 0), 100);
    let view = view("payments", source("payments", &folder.path().join("in")), double_amount());
    let mut ends = 0;
    for resumed in [true, false] {
        for writes in 0.. {
            let root = folder.path().join(format!("{resumed}-{writes}"));
            let store = OfflineStore::open(root.to_str().unwrap()).unwrap();
            run_backfill(backfill("job", &view, &store, Arc::new(MemoryLedger::default()))).await.unwrap();
            assert_eq!(stored_rows(&store, &view).await.len(), 20);
            let disk = FullDisk { inner: LocalFileSystem::new(), writes_left: AtomicI64::new(writes) };
            let full = OfflineStore::with_object_store(root.to_str().unwrap(), Arc::new(disk)).unwrap();
            let mut job = replay("replay", &view, &full, LATER).await;
            let ledger = job.ledger.clone();
            let has_room = run_replay(job.clone()).await.is_ok();
            let visible = stored_rows(&store, &view).await.len();
            assert!(visible == 20 || visible == 40, "{visible} rows after {writes} writes");
            // Either it goes on, or it never does and another one comes.
            job.store = store.clone();
            job.ledger = ledger;
            if !resumed {
                job = replay("other", &view, &store, LATER).await;
            }
            run_replay(job).await.unwrap();
            let rows = stored_rows(&store, &view).await;
            let mut places: Vec<i64> = rows.iter().map(|row| row.sequence).collect();
            places.dedup();
            assert_eq!((rows.len(), places.len()), (40, 40), "after {writes} writes");
            assert!(entries(&store, &view, QuarantineFilter::default()).await.is_empty(), "after {writes} writes");
            let later = run_replay(replay("later", &view, &store, LATER).await).await.unwrap();
            assert_eq!((later.rows_tried, later.version), (0, None));
            if has_room {
                break;
            }
            ends += 1;
        }
    }
    assert!(ends > 4, "only {ends} writes were tried");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_whose_ledger_dies_anywhere_ends_in_the_same_rows() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(&folder.path().join("in/a.parquet"), &payments_with(20, |_| true), 100);
    let view = view("payments", source("payments", &folder.path().join("in")), double_amount());
    for calls in 0.. {
        let store = store_in(&folder.path().join(calls.to_string()));
        run_backfill(backfill("job", &view, &store, Arc::new(MemoryLedger::default()))).await.unwrap();
        let inner = Arc::new(MemoryLedger::default());
        let mut job = replay("replay", &view, &store, LATER).await;
        job.ledger = Arc::new(DyingLedger { inner: inner.clone(), calls_left: AtomicI64::new(calls) });
        let died = run_replay(job.clone()).await.is_err();
        job.ledger = inner.clone();
        let report = run_replay(job).await.unwrap();
        assert_eq!((report.rows_stored, report.version), (20, Some(2)), "{report:?}");
        assert_eq!(inner.committed_version("replay"), Some(2));
        assert_eq!(stored_rows(&store, &view).await.len(), 20);
        if !died {
            assert!(calls > 3);
            return;
        }
    }
}

/// Another job has stored the rows between a replay's try and its commit, long after which it is resumed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_was_overtaken_commits_nothing() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(&folder.path().join("in/a.parquet"), &payments_with(20, |_| true), 100);
    let view = view("payments", source("payments", &folder.path().join("in")), double_amount());
    let store = store_in(folder.path());
    run_backfill(backfill("job", &view, &store, Arc::new(MemoryLedger::default()))).await.unwrap();
    let mut late = replay("late", &view, &store, LATER).await;
    let inner = Arc::new(MemoryLedger::default());
    // Its outcome is kept, and then it dies.
    late.ledger = Arc::new(DyingLedger { inner: inner.clone(), calls_left: AtomicI64::new(2) });
    run_replay(late.clone()).await.unwrap_err();
    assert_eq!(inner.outcomes("late").await.unwrap().len(), 1);
    assert_eq!(run_replay(replay("other", &view, &store, LATER).await).await.unwrap().rows_stored, 20);
    late.ledger = inner;
    let error = run_replay(late).await.unwrap_err().to_string();
    assert!(error.contains("another job has stored row"), "{error}");
    assert_eq!(stored_rows(&store, &view).await.len(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_follow_each_other_without_loss_while_others_write() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(&folder.path().join("in/a.parquet"), &payments_with(25, |_| true), 10);
    let view = view("payments", source("payments", &folder.path().join("in")), double_amount());
    let store = store_in(folder.path());
    let (quarantine, table) = (store.quarantine(&view.name, view.version).unwrap(), store.table(&view).unwrap());
    let nothing = quarantine.page(&table, &QuarantineFilter::default(), None, 10).await.unwrap();
    assert_eq!((nothing.version, nothing.entries.len()), (None, 0));
    let mut job = backfill("job", &view, &store, Arc::new(MemoryLedger::default()));
    job.options.chunk_rows = 10;
    run_backfill(job).await.unwrap();

    let (mut rows, mut cursor): (Vec<i64>, Option<QuarantineCursor>) = (Vec::new(), None);
    for page in 0.. {
        let found = quarantine.page(&table, &QuarantineFilter::default(), cursor, 7).await.unwrap();
        rows.extend(found.entries.iter().map(|entry| entry.row.row));
        if page == 1 {
            // The pages are of the version that the first one was of.
            run_replay(replay("replay", &view, &store, LATER).await).await.unwrap();
        }
        cursor = found.next;
        if cursor.is_none() {
            assert_eq!((page, found.entries.len()), (3, 4));
            break;
        }
        assert_eq!(found.entries.len(), 7);
    }
    rows.sort_unstable();
    assert_eq!(rows, (0..25).collect::<Vec<_>>());
    // Lines of the newest job come first.
    let newest = quarantine.page(&table, &settled(), None, 1).await.unwrap();
    assert_eq!(newest.entries[0].row.job, "job", "a replay that refuses nothing adds no refusal");
    let error = quarantine.page(&table, &settled(), Some("99.0.0".parse().unwrap()), 1).await.unwrap_err();
    assert!(error.to_string().contains("no version 99"), "{error}");
    assert_eq!(store.table(&view).unwrap().scan(ScanRange::ALL).await.unwrap().unwrap().0, 2);
}
