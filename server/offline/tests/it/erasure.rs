//! Erasures against a naive oracle: whatever was loaded when, readers give exactly the rows that no erasure covers, before and after
//! the files are written again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use async_trait::async_trait;
use eadem_offline::{
    BackfillReport, Cancel, CompactOptions, CompactProgress, Compaction, ErasedEntities, ErasedTable, Erasure,
    ErasureLedger, JoinKey, LedgerError, LookedInto, MemoryLedger, OfflineError, OfflineStore, Progress,
    QuarantineFilter, ReadVersion, ScanRange, ViewSpec, compact, doomed_files, erase_rows, run_backfill,
};
use eadem_semantics::{Lifetime, ReadAt, winner};
use eadem_values::{DataType, EntityKey, Field, KeyType, KeyValue, Value};
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng};

use crate::support::{
    NativeTransform, Outcome, Row, at, backfill, cases, echo, rows_of, seed, source, store_in, stored_rows, view,
    write_parquet,
};

/// Done once, by whoever asks next.
type Interruption = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

/// What is erased, by entity; from the moment on at which so many questions were asked.
#[derive(Default)]
struct Ledger {
    up_to_us: Mutex<HashMap<EntityKey, i64>>,
    asked: AtomicUsize,
    hidden_for: AtomicUsize,
    /// Only who asks for what is erased by now gets an answer.
    is_stale: AtomicBool,
    erased: AtomicU64,
    interruption: Mutex<Option<Interruption>>,
    /// Entities that were asked for.
    looked_up: Arc<AtomicUsize>,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ledger")
    }
}

impl Ledger {
    fn erase(&self, key: &EntityKey, up_to_us: i64) {
        let mut erased = self.up_to_us.lock().unwrap();
        let known = erased.entry(key.clone()).or_insert(up_to_us);
        *known = up_to_us.max(*known);
        self.erased.fetch_add(1, Ordering::SeqCst);
    }

    /// The first so many that ask find nothing erased.
    fn hide_for(&self, questions: usize) {
        self.asked.store(0, Ordering::SeqCst);
        self.hidden_for.store(questions, Ordering::SeqCst);
    }

    fn takes(&self, key: &EntityKey, event_time_us: i64) -> bool {
        self.up_to_us.lock().unwrap().get(key).is_some_and(|up_to_us| event_time_us <= *up_to_us)
    }
}

#[derive(Debug)]
struct Known {
    up_to_us: HashMap<EntityKey, i64>,
    keys: Vec<(String, KeyType)>,
    revision: u64,
    looked_up: Arc<AtomicUsize>,
}

impl ErasedEntities for Known {
    fn up_to_us(&self, key: &EntityKey) -> Option<i64> {
        self.looked_up.fetch_add(1, Ordering::SeqCst);
        self.up_to_us.get(key).copied()
    }

    fn latest_us(&self) -> i64 {
        self.up_to_us.values().copied().max().unwrap_or(i64::MIN)
    }

    fn keys(&self) -> &[(String, KeyType)] {
        &self.keys
    }

    fn revision(&self) -> u64 {
        self.revision
    }
}

#[async_trait]
impl ErasureLedger for Ledger {
    async fn of_view(&self, view: &str, now: bool) -> Result<Option<Arc<dyn ErasedEntities>>, LedgerError> {
        assert_eq!(view, "payments@1");
        let is_hidden = self.asked.fetch_add(1, Ordering::SeqCst) < self.hidden_for.load(Ordering::SeqCst)
            || (!now && self.is_stale.load(Ordering::SeqCst));
        let up_to_us = self.up_to_us.lock().unwrap().clone();
        if is_hidden || up_to_us.is_empty() {
            return Ok(None);
        }
        let interruption = self.interruption.lock().unwrap().take();
        if let Some(interruption) = interruption {
            interruption().await;
        }
        let keys = vec![("card".to_owned(), KeyType::Utf8), ("shop".to_owned(), KeyType::Int64)];
        let (revision, looked_up) = (self.erased.load(Ordering::SeqCst), self.looked_up.clone());
        Ok(Some(Arc::new(Known { up_to_us, keys, revision, looked_up })))
    }
}

/// A row of the source: card, shop, event time, number.
type SourceRow = (String, i64, i64, i64);

fn key_of(row: &SourceRow) -> EntityKey {
    EntityKey(vec![KeyValue::Utf8(row.0.clone()), KeyValue::Int64(row.1)])
}

fn write(folder: &Path, name: &str, rows: &[SourceRow]) {
    let columns: [(&str, ArrayRef); 4] = [
        ("card", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.0.as_str())))),
        ("shop", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1)))),
        (
            "at",
            Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.2)).with_timezone("UTC")),
        ),
        ("number", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.3)))),
    ];
    write_parquet(&folder.join("in").join(name), &RecordBatch::try_from_iter(columns).unwrap(), 64);
}

/// The same with rows that have no time, which are refused.
fn write_with_refused(folder: &Path, name: &str, rows: &[(&str, Option<i64>, i64)]) {
    let columns: [(&str, ArrayRef, bool); 4] = [
        ("card", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.0))), false),
        ("shop", Arc::new(Int64Array::from_iter_values(rows.iter().map(|_| 1))), false),
        ("at", Arc::new(TimestampMicrosecondArray::from_iter(rows.iter().map(|row| row.1)).with_timezone("UTC")), true),
        ("number", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.2))), false),
    ];
    let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    write_parquet(&folder.join("in").join(name), &batch, 64);
}

fn payments(folder: &Path) -> ViewSpec {
    let mut view = echo("payments", &source("payments", &folder.join("in")), &[("number", DataType::Int64)]);
    let key = |name: &str, key_type| JoinKey { name: name.to_owned(), key_type, column: name.to_owned() };
    view.keys = vec![key("card", KeyType::Utf8), key("shop", KeyType::Int64)];
    view
}

fn some_rows(random: &mut StdRng, first_number: i64) -> Vec<SourceRow> {
    let begin_us = at("2023-01-01T00:00:00Z");
    (0..random.random_range(50..200))
        .map(|row| {
            let card = format!("card {}", random.random_range(0..6));
            (card, random.random_range(0..3), begin_us + random.random_range(0..5_000) * 60_000_000, first_number + row)
        })
        .collect()
}

/// The numbers of rows, which tell them apart.
fn numbers(rows: &[Row]) -> Vec<i64> {
    let mut numbers: Vec<i64> = rows
        .iter()
        .map(|row| match row.values[0] {
            Value::Int64(number) => number,
            _ => panic!("no number: {row:?}"),
        })
        .collect();
    numbers.sort_unstable();
    numbers
}

fn data_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            data_files(&path, found);
        } else if path.extension().is_some_and(|its| its == "parquet") {
            found.push(path);
        }
    }
}

/// The numbers of all rows in all files, in whichever version or in none.
fn numbers_in_files(folder: &Path) -> Vec<i64> {
    let (mut files, mut numbers) = (Vec::new(), Vec::new());
    data_files(&folder.join("out/views"), &mut files);
    for file in files {
        let open = std::fs::File::open(file).unwrap();
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(open).unwrap();
        for batch in reader.build().unwrap() {
            let batch = batch.unwrap();
            let column = batch.column_by_name("number_out").unwrap();
            let column = column.as_any().downcast_ref::<Int64Array>().unwrap();
            numbers.extend(column.values().iter().copied());
        }
    }
    numbers
}

fn erasure(job: &str, table: impl Into<ErasedTable>) -> Erasure {
    let (cancel, looked_into) = (Cancel::default(), LookedInto::default());
    Erasure { job: job.to_owned(), table: table.into(), cancel, looked_into }
}

async fn check_readers(store: &OfflineStore, view: &ViewSpec, expected: &[SourceRow], random: &mut StdRng, what: &str) {
    let rows = stored_rows(store, view).await;
    let mut wanted: Vec<i64> = expected.iter().map(|row| row.3).collect();
    wanted.sort_unstable();
    assert_eq!(numbers(&rows), wanted, "{what}: scan");

    let table = store.table(view).unwrap();
    let mut in_parts = Vec::new();
    for part in table.scan_in_parts(3).await.unwrap().unwrap().parts {
        let batches: Vec<_> = part.map_ok(|file| file.rows).try_flatten().try_collect().await.unwrap();
        in_parts.extend(
            batches
                .iter()
                .flat_map(|batch| (0..batch.len()).map(|row| batch.order(row).event_time_us).collect::<Vec<i64>>()),
        );
    }
    let mut times: Vec<i64> = expected.iter().map(|row| row.2).collect();
    in_parts.sort_unstable();
    times.sort_unstable();
    assert_eq!(in_parts, times, "{what}: scan in parts");

    // Reads of entities, against the whole scan without any index.
    let (_, batches) = table.scan(ScanRange::ALL).await.unwrap().unwrap();
    let batches: Vec<_> = batches.try_collect().await.unwrap();
    let mut by_key: HashMap<EntityKey, Vec<_>> = HashMap::new();
    for batch in &batches {
        for (number, row) in rows_of(batch).into_iter().enumerate() {
            by_key.entry(batch.key(number)).or_default().push(row);
        }
    }
    let (mut keys, mut reads) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        let card = format!("card {}", random.random_range(0..7));
        keys.push(EntityKey(vec![KeyValue::Utf8(card), KeyValue::Int64(random.random_range(0..3))]));
        let at_us = at("2023-01-01T00:00:00Z") + random.random_range(0..5_500) * 60_000_000;
        reads.push(ReadAt { at_us, known_by_us: at_us });
    }
    let found = table.read_entities(&keys, &reads, Lifetime::FOREVER, ReadVersion::Current).await.unwrap();
    for ((key, read), found) in keys.iter().zip(&reads).zip(&found) {
        let none = Vec::new();
        let rows = by_key.get(key).unwrap_or(&none);
        let expected = winner(rows.iter().map(|row| row.order), *read);
        assert_eq!(found.as_ref().map(|found| found.order), expected, "{what}: {key} at {}", read.at_us);
    }
}

#[tokio::test]
async fn readers_and_writers_leave_out_exactly_what_is_erased() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    for case in 0..cases(5, 200) {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let ledger = Arc::new(Ledger::default());
        let store = store_in(folder).with_erasures(ledger.clone());
        let view = payments(folder);
        let mut all: Vec<SourceRow> = Vec::new();
        for step in 0..4 {
            let what = format!("seed {seed}, case {case}, step {step}");
            let rows = some_rows(&mut random, all.len() as i64);
            write(folder, &format!("{step}.parquet"), &rows);
            all.extend(rows);
            // Now and then an erasure comes while the job is at work: after its chunks are begun, before it commits.
            for _ in 0..random.random_range(0..3) {
                let row = &all[random.random_range(0..all.len())];
                ledger.erase(&key_of(row), row.2 + random.random_range(-1..=1) * random.random_range(0..60_000_000));
            }
            ledger.hide_for(random.random_range(0..2));
            let job = backfill(&format!("job {step}"), &view, &store, Arc::new(MemoryLedger::default()));
            run_backfill(job).await.unwrap();
            ledger.hide_for(0);
            let stays = |row: &&SourceRow| !ledger.takes(&key_of(row), row.2);
            let expected: Vec<SourceRow> = all.iter().filter(stays).cloned().collect();
            check_readers(&store, &view, &expected, &mut random, &what).await;

            // Hidden at once, also of what is stored already.
            let row = &all[random.random_range(0..all.len())];
            ledger.erase(&key_of(row), row.2);
            let expected: Vec<SourceRow> =
                all.iter().filter(|row| !ledger.takes(&key_of(row), row.2)).cloned().collect();
            check_readers(&store, &view, &expected, &mut random, &format!("{what}, erased")).await;

            if random.random_bool(0.3) {
                let compaction = Compaction {
                    job: format!("compact {step}"),
                    table: store.table(&view).unwrap(),
                    options: CompactOptions::default(),
                    progress: None,
                    cancel: Cancel::default(),
                };
                compact(compaction).await.unwrap();
            }
            if random.random_bool(0.7) {
                let table = store.table(&view).unwrap();
                let erasure = erasure(&format!("erase {step}"), table);
                let before = stored_rows(&store, &view).await;
                let report = erase_rows(&erasure).await.unwrap();
                let again = erase_rows(&erasure).await.unwrap();
                assert_eq!(again, report, "{what}: the same job again commits nothing");
                doomed_files(&erasure).await.unwrap().unwrap().delete().await.unwrap();
                assert_eq!(stored_rows(&store, &view).await, before, "{what}: lanes, numbers and values stay");
                let mut in_files = numbers_in_files(folder);
                in_files.sort_unstable();
                in_files.dedup();
                assert_eq!(in_files, numbers(&before), "{what}: no file has what is erased");
                assert_eq!(doomed_files(&erasure).await.unwrap().unwrap().count(), 0, "{what}");
                check_readers(&store, &view, &expected, &mut random, &format!("{what}, removed")).await;
            }
        }
    }
}

fn key(card: &str) -> EntityKey {
    EntityKey(vec![KeyValue::Utf8(card.to_owned()), KeyValue::Int64(1)])
}

/// Two cards with a stored and a refused row each.
fn stored_and_refused(folder: &Path) -> ViewSpec {
    let time = Some(at("2023-01-01T00:00:00Z"));
    write_with_refused(
        folder,
        "a.parquet",
        &[("gone", time, 1), ("kept", time, 2), ("gone", None, 3), ("kept", None, 4)],
    );
    payments(folder)
}

/// How many rows of a card all files below a folder keep, in whichever version or in none.
fn rows_of_card(folder: &Path, column: &str, card: &str) -> usize {
    let mut files = Vec::new();
    data_files(folder, &mut files);
    let mut rows = 0;
    for file in files {
        let open = std::fs::File::open(file).unwrap();
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(open).unwrap();
        for batch in reader.build().unwrap() {
            let column = batch.unwrap().column_by_name(column).unwrap().clone();
            let texts = arrow::compute::cast(&column, &arrow::datatypes::DataType::Utf8).unwrap();
            let texts = texts.as_any().downcast_ref::<StringArray>().unwrap();
            rows += texts.iter().flatten().filter(|text| text.contains(card)).count();
        }
    }
    rows
}

fn kept_of(folder: &Path, card: &str) -> (usize, usize) {
    let (views, quarantine) = (folder.join("out/views"), folder.join("out/quarantine"));
    (rows_of_card(&views, "card", card), rows_of_card(&quarantine, "inputs", card))
}

async fn load(store: &OfflineStore, view: &ViewSpec, ledger: &Arc<MemoryLedger>) -> BackfillReport {
    run_backfill(backfill("load", view, store, ledger.clone())).await.unwrap()
}

#[tokio::test]
async fn whenever_an_erasure_comes_a_job_leaves_no_file_with_what_is_erased() {
    let questions = {
        let folder = tempfile::tempdir().unwrap();
        let erasures = Arc::new(Ledger::default());
        let store = store_in(folder.path()).with_erasures(erasures.clone());
        load(&store, &stored_and_refused(folder.path()), &Arc::default()).await;
        assert_eq!(kept_of(folder.path(), "gone"), (1, 1));
        erasures.asked.load(Ordering::SeqCst)
    };
    // The last two who ask are the commits of the table and of the quarantine.
    assert!(questions > 2, "{questions}");
    for unseen in 0..=questions - 2 {
        let folder = tempfile::tempdir().unwrap();
        let erasures = Arc::new(Ledger::default());
        erasures.erase(&key("gone"), at("2024-01-01T00:00:00Z"));
        erasures.hide_for(unseen);
        let store = store_in(folder.path()).with_erasures(erasures);
        let (view, ledger) = (stored_and_refused(folder.path()), Arc::default());
        let report = load(&store, &view, &ledger).await;
        assert_eq!(kept_of(folder.path(), "gone"), (0, 0), "after {unseen} questions");
        assert_eq!(kept_of(folder.path(), "kept"), (1, 1), "after {unseen} questions");
        // Files that its ledger names are gone, and the job knows that it is done.
        let again = load(&store, &view, &ledger).await;
        assert_eq!(again.version, report.version, "after {unseen} questions");
        assert_eq!(kept_of(folder.path(), "kept"), (1, 1), "after {unseen} questions");
    }
}

#[tokio::test]
async fn a_job_that_another_process_commits_meanwhile_is_committed() {
    let folder = tempfile::tempdir().unwrap();
    let view = stored_and_refused(folder.path());
    let ledger = Arc::new(MemoryLedger::default());
    let erased = || {
        let erasures = Arc::new(Ledger::default());
        erasures.erase(&key("gone"), at("2024-01-01T00:00:00Z"));
        erasures
    };
    // Its chunk is written before the erasure. When it is about to commit, the other does, and clears away what was written.
    let (ours, theirs) = (erased(), store_in(folder.path()).with_erasures(erased()));
    ours.hide_for(3);
    let (their_view, their_ledger) = (view.clone(), ledger.clone());
    *ours.interruption.lock().unwrap() = Some(Box::new(move || {
        async move {
            let report = load(&theirs, &their_view, &their_ledger).await;
            assert_eq!((report.chunks_done_now, report.chunks_done_before), (0, 1));
        }
        .boxed()
    }));
    let store = store_in(folder.path()).with_erasures(ours.clone());
    let report = load(&store, &view, &ledger).await;
    assert!(ours.interruption.lock().unwrap().is_none());
    assert_eq!((report.version, report.chunks_done_now), (Some(1), 1));
    assert_eq!(kept_of(folder.path(), "gone"), (0, 0));
    assert_eq!(kept_of(folder.path(), "kept"), (1, 1));
}

#[tokio::test]
async fn an_erasure_of_another_process_is_taken_out_of_quarantine() {
    let folder = tempfile::tempdir().unwrap();
    let erasures = Arc::new(Ledger::default());
    let store = store_in(folder.path()).with_erasures(erasures.clone());
    load(&store, &stored_and_refused(folder.path()), &Arc::default()).await;
    erasures.erase(&key("gone"), at("2024-01-01T00:00:00Z"));
    erasures.is_stale.store(true, Ordering::SeqCst);
    let quarantine = store.quarantine("payments", 1).unwrap();
    let erasure = erasure("erase", quarantine.clone());
    assert_eq!(erase_rows(&erasure).await.unwrap().rows, 1);
    doomed_files(&erasure).await.unwrap().unwrap().delete().await.unwrap();
    assert_eq!(kept_of(folder.path(), "gone").1, 0);
    let table = store.table(&stored_and_refused(folder.path())).unwrap();
    let page = quarantine.page(&table, &QuarantineFilter::default(), None, 10).await.unwrap();
    assert_eq!(page.entries.len(), 1);
}

#[tokio::test]
async fn a_pass_looks_into_no_file_that_one_before_has_looked_into() {
    let folder = tempfile::tempdir().unwrap();
    let erasures = Arc::new(Ledger::default());
    let store = store_in(folder.path()).with_erasures(erasures.clone());
    let view = stored_and_refused(folder.path());
    load(&store, &view, &Arc::default()).await;
    erasures.erase(&key("gone"), at("2024-01-01T00:00:00Z"));
    let mut erasure = erasure("first", store.table(&view).unwrap());
    let look = async |erasure: &Erasure| {
        erasures.looked_up.store(0, Ordering::SeqCst);
        let rows = erase_rows(erasure).await.unwrap().rows;
        doomed_files(erasure).await.unwrap().unwrap().delete().await.unwrap();
        (rows, erasures.looked_up.load(Ordering::SeqCst) > 0)
    };
    assert_eq!(look(&erasure).await, (1, true));
    erasure.job = "second".to_owned();
    assert_eq!(look(&erasure).await, (0, false));
    // More is erased, of a file that had nothing before.
    erasures.erase(&key("kept"), at("2024-01-01T00:00:00Z"));
    erasure.job = "third".to_owned();
    assert_eq!(look(&erasure).await, (1, true));
    assert_eq!(kept_of(folder.path(), "kept").0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_put_together_of_files_that_an_erasure_took_out_is_not_left() {
    let folder = tempfile::tempdir().unwrap();
    let erasures = Arc::new(Ledger::default());
    let store = store_in(folder.path()).with_erasures(erasures.clone());
    let view = payments(folder.path());
    let day_us = at("2023-01-01T00:00:00Z");
    for number in 0..2 {
        let rows = [("gone".to_owned(), 1, day_us + number, number), ("kept".to_owned(), 1, day_us + number, number)];
        write(folder.path(), &format!("{number}.parquet"), &rows);
        let job = backfill(&format!("load {number}"), &view, &store, Arc::new(MemoryLedger::default()));
        run_backfill(job).await.unwrap();
    }
    // When all groups are written, before they are committed, the erasure is carried out from its beginning to its end.
    let (table, handle) = (store.table(&view).unwrap(), tokio::runtime::Handle::current());
    let carried_out = erasure("erase", store.table(&view).unwrap());
    let progress = move |progress: CompactProgress| {
        if progress.groups_done < progress.groups {
            return;
        }
        erasures.erase(&key("gone"), at("2024-01-01T00:00:00Z"));
        tokio::task::block_in_place(|| {
            handle.block_on(async {
                assert_eq!(erase_rows(&carried_out).await.unwrap().rows, 2);
            });
        });
    };
    let (options, cancel) = (CompactOptions::default(), Cancel::default());
    let compaction =
        Compaction { job: "compact".to_owned(), table, options, progress: Some(Arc::new(progress)), cancel };
    let report = compact(compaction).await.unwrap();
    assert_eq!((report.version, report.groups_given_up), (None, 1));
    let doomed = doomed_files(&erasure("after", store.table(&view).unwrap())).await.unwrap().unwrap();
    assert_eq!(doomed.count(), 2, "the two files that were replaced, and nothing of the compaction");
}

#[tokio::test]
async fn erased_rows_that_failed_are_not_counted_as_stored_failures() {
    let folder = tempfile::tempdir().unwrap();
    let day_us = at("2023-01-01T00:00:00Z");
    let rows = [("gone", Some(day_us), 1), ("gone", Some(day_us + 1), 2), ("kept", Some(day_us), 1)];
    write_with_refused(folder.path(), "a.parquet", &rows);
    let fails = NativeTransform::shared(
        "fails",
        true,
        vec![Field::new("number", DataType::Int64, true)],
        vec![Field::new("number_out", DataType::Int64, true)],
        |input| match input[0] {
            Value::Int64(1) => Outcome::Fail("one".to_owned()),
            _ => Outcome::Row(input.to_vec()),
        },
    );
    let spec = ViewSpec {
        keys: payments(folder.path()).keys,
        ..view("payments", source("payments", &folder.path().join("in")), fails)
    };
    let erasures = Arc::new(Ledger::default());
    erasures.erase(&key("gone"), at("2024-01-01T00:00:00Z"));
    let store = store_in(folder.path()).with_erasures(erasures);
    let report = load(&store, &spec, &Arc::default()).await;
    assert_eq!((report.rows_stored, report.rows_erased, report.rows_failed), (1, 2, 1));
}

#[tokio::test]
async fn a_job_that_is_called_off_leaves_no_file_with_what_was_erased_while_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let erasures = Arc::new(Ledger::default());
    erasures.erase(&key("gone"), at("2024-01-01T00:00:00Z"));
    // Not yet recorded when the chunk was begun.
    erasures.hide_for(1);
    let store = store_in(folder.path()).with_erasures(erasures);
    let (view, ledger) = (stored_and_refused(folder.path()), Arc::new(MemoryLedger::default()));
    let mut job = backfill("load", &view, &store, ledger.clone());
    let cancel = job.cancel.clone();
    job.progress = Some(Arc::new(move |progress: &Progress| {
        if progress.chunks_done_now > 0 {
            cancel.cancel();
        }
    }));
    assert!(matches!(run_backfill(job).await, Err(OfflineError::Cancelled)));
    assert_eq!(kept_of(folder.path(), "gone"), (0, 0));
    let report = load(&store, &view, &ledger).await;
    assert_eq!((report.chunks_done_before, report.rows_stored, report.rows_erased), (1, 1, 1));
    assert_eq!(kept_of(folder.path(), "kept"), (1, 1));
}
