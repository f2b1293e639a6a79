//! Erasures against a naive oracle: whatever was loaded when, readers give exactly the rows that no erasure covers, before and after
//! the files are written again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use async_trait::async_trait;
use eadem_offline::{
    Cancel, CompactOptions, Compaction, ErasedEntities, Erasure, ErasureLedger, JoinKey, LedgerError, MemoryLedger,
    OfflineStore, ReadVersion, ScanRange, ViewSpec, compact, doomed_files, erase_rows, run_backfill,
};
use eadem_semantics::{Lifetime, ReadAt, winner};
use eadem_values::{DataType, EntityKey, KeyType, KeyValue, Value};
use futures::TryStreamExt;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng};

use crate::support::{Row, at, backfill, echo, rows_of, source, store_in, stored_rows, write_parquet};

/// What is erased, by entity; from the moment on at which so many questions were asked.
#[derive(Debug, Default)]
struct Ledger {
    up_to_us: Mutex<HashMap<EntityKey, i64>>,
    asked: AtomicUsize,
    hidden_for: AtomicUsize,
}

impl Ledger {
    fn erase(&self, key: &EntityKey, up_to_us: i64) {
        let mut erased = self.up_to_us.lock().unwrap();
        let known = erased.entry(key.clone()).or_insert(up_to_us);
        *known = up_to_us.max(*known);
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
struct Known(HashMap<EntityKey, i64>, Vec<(String, KeyType)>);

impl ErasedEntities for Known {
    fn up_to_us(&self, key: &EntityKey) -> Option<i64> {
        self.0.get(key).copied()
    }

    fn latest_us(&self) -> i64 {
        self.0.values().copied().max().unwrap_or(i64::MIN)
    }

    fn keys(&self) -> &[(String, KeyType)] {
        &self.1
    }
}

#[async_trait]
impl ErasureLedger for Ledger {
    async fn of_view(&self, view: &str, _: bool) -> Result<Option<Arc<dyn ErasedEntities>>, LedgerError> {
        assert_eq!(view, "payments@1");
        let is_hidden = self.asked.fetch_add(1, Ordering::SeqCst) < self.hidden_for.load(Ordering::SeqCst);
        let erased = self.up_to_us.lock().unwrap().clone();
        if is_hidden || erased.is_empty() {
            return Ok(None);
        }
        let keys = vec![("card".to_owned(), KeyType::Utf8), ("shop".to_owned(), KeyType::Int64)];
        Ok(Some(Arc::new(Known(erased, keys))))
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

async fn check_readers(store: &OfflineStore, view: &ViewSpec, expected: &[SourceRow], random: &mut StdRng, what: &str) {
    let rows = stored_rows(store, view).await;
    let mut wanted: Vec<i64> = expected.iter().map(|row| row.3).collect();
    wanted.sort_unstable();
    assert_eq!(numbers(&rows), wanted, "{what}: scan");

    let table = store.table(view).unwrap();
    let mut in_parts = Vec::new();
    for part in table.scan_in_parts(3).await.unwrap().unwrap().parts {
        let batches: Vec<_> = part.try_collect().await.unwrap();
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
    let seed = std::env::var("EADEM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_240_101);
    println!("EADEM_SEED={seed}");
    let is_soak = std::env::var("EADEM_SOAK").is_ok_and(|soak| soak == "1");
    let mut random = StdRng::seed_from_u64(seed);
    for case in 0..if is_soak { 200 } else { 5 } {
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
                let erasure = Erasure { job: format!("erase {step}"), table, cancel: Cancel::default() };
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
