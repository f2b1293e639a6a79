//! Reads for single entities: the same winners as from the whole table, from a fraction of its bytes; and the table as it was.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow_select::concat::concat_batches;
use arrow_select::take::take_record_batch;
use eadem_offline::{
    EntityRead, HistoryBatch, JoinKey, KnownAt, MemoryLedger, OfflineError, OfflineStore, ReadVersion, ScanRange,
    ViewSpec, run_backfill,
};
use eadem_query::{AppliedRows, RowTransform, TransformFailure};
use eadem_semantics::{AsStored, Lifetime, ReadAt, RowOrder, winner};
use eadem_values::{DataType, Description, Digest, EntityKey, Field, KeyType, KeyValue, Value};
use futures::TryStreamExt;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetRange, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng};

use crate::support::{at, backfill, rows_of, source, view, write_parquet};

const DAY_US: i64 = 86_400_000_000;

/// Hands its inputs on, column by column.
#[derive(Debug)]
struct Echo(Description, Digest);

impl RowTransform for Echo {
    fn description(&self) -> &Description {
        &self.0
    }

    fn digest(&self) -> &Digest {
        &self.1
    }

    fn apply(&self, _: usize, inputs: &[ArrayRef]) -> Result<AppliedRows, TransformFailure> {
        Ok(AppliedRows { columns: inputs.to_vec(), ..AppliedRows::default() })
    }
}

fn echo() -> Arc<dyn RowTransform> {
    let fields = vec![Field::new("amount", DataType::Float64, true), Field::new("note", DataType::Utf8, true)];
    let description = Description {
        name: "echo".to_owned(),
        doc: String::new(),
        owner: String::new(),
        total: true,
        inputs: fields.clone(),
        outputs: fields,
    };
    Arc::new(Echo(description, Digest::of(b"echo")))
}

/// One row of a source: card, shop, event time, known-at, amount.
type SourceRow = (String, i64, i64, i64, Option<f64>);

fn source_batch(rows: &[SourceRow]) -> RecordBatch {
    let times = |pick: fn(&SourceRow) -> i64| -> ArrayRef {
        Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(pick)).with_timezone("UTC"))
    };
    let notes = rows.iter().map(|row| row.4.map(|amount| format!("of {amount}")));
    let columns: Vec<(&str, ArrayRef, bool)> = vec![
        ("card", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.0.as_str()))), false),
        ("shop", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1))), false),
        ("at", times(|row| row.2), false),
        ("known", times(|row| row.3), false),
        ("amount", Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.4))), true),
        ("note", Arc::new(StringArray::from_iter(notes)), true),
    ];
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

fn payments(folder: &FilePath, keys: &[(&str, KeyType)], lifetime: Lifetime) -> ViewSpec {
    let mut spec = source("payments", folder);
    spec.known_at = KnownAt::Column("known".to_owned());
    let mut view = view("payments", spec, echo());
    let key = |(name, key_type): &(&str, KeyType)| JoinKey {
        name: (*name).to_owned(),
        key_type: *key_type,
        column: (*name).to_owned(),
    };
    view.keys = keys.iter().map(key).collect();
    view.lifetime = lifetime;
    view
}

async fn load(view: &ViewSpec, store: &OfflineStore, job: &str) {
    run_backfill(backfill(job, view, store, Arc::new(MemoryLedger::default()))).await.unwrap();
}

/// All rows of a table, by entity.
async fn whole(store: &OfflineStore, view: &ViewSpec) -> HashMap<EntityKey, Vec<(RowOrder, Vec<Value>)>> {
    let (_, batches) = store.table(view).unwrap().scan(ScanRange::ALL).await.unwrap().unwrap();
    let batches: Vec<HistoryBatch> = batches.try_collect().await.unwrap();
    let mut rows: HashMap<EntityKey, Vec<(RowOrder, Vec<Value>)>> = HashMap::new();
    for batch in &batches {
        for (row, stored) in rows_of(batch).into_iter().enumerate() {
            rows.entry(batch.key(row)).or_default().push((stored.order, stored.values));
        }
    }
    rows
}

/// How another writer, or an earlier layout, might have left a data file: in another order, and without indexes of pages,
/// statistics or bloom filters. The log says its new size.
fn rewrite_data_files(table: &FilePath, random: &mut StdRng) {
    let log = table.join("_delta_log");
    for entry in std::fs::read_dir(&log).unwrap() {
        let commit = entry.unwrap().path();
        let Ok(text) = std::fs::read_to_string(&commit) else { continue };
        let mut lines = Vec::new();
        for line in text.lines() {
            let mut action: serde_json::Value = serde_json::from_str(line).unwrap();
            if let Some(path) = action["add"]["path"].as_str().map(str::to_owned)
                && random.random_bool(0.7)
            {
                let file = table.join(&path);
                rewrite(&file, random);
                action["add"]["size"] = std::fs::metadata(&file).unwrap().len().into();
            }
            lines.push(action.to_string());
        }
        std::fs::write(&commit, lines.join("\n")).unwrap();
    }
}

fn rewrite(file: &FilePath, random: &mut StdRng) {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(file).unwrap()).unwrap();
    let schema = reader.schema().clone();
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    let rows = concat_batches(&schema, &batches).unwrap();
    let mut order: Vec<u32> = (0..rows.num_rows() as u32).collect();
    for last in (1..order.len()).rev() {
        order.swap(last, random.random_range(0..=last));
    }
    let rows = take_record_batch(&rows, &arrow_array::UInt32Array::from(order)).unwrap();
    let statistics = match random.random_range(0..3) {
        0 => EnabledStatistics::None,
        1 => EnabledStatistics::Chunk,
        _ => EnabledStatistics::Page,
    };
    let properties = WriterProperties::builder()
        .set_statistics_enabled(statistics)
        .set_offset_index_disabled(statistics != EnabledStatistics::Page)
        .set_max_row_group_row_count(Some(random.random_range(1..200)))
        .set_data_page_row_count_limit(random.random_range(1..50))
        .set_write_batch_size(8)
        .build();
    let mut writer = ArrowWriter::try_new(File::create(file).unwrap(), schema, Some(properties)).unwrap();
    writer.write(&rows).unwrap();
    writer.close().unwrap();
}

/// What the reads must find, from all rows.
fn expected(
    rows: &HashMap<EntityKey, Vec<(RowOrder, Vec<Value>)>>,
    key: &EntityKey,
    read: ReadAt,
    lifetime: Lifetime,
) -> Option<(RowOrder, Vec<Value>)> {
    let rows = rows.get(key)?;
    let order = winner(rows.iter().map(|row| row.0), read)?;
    let is_readable = order.event_time_us >= lifetime.oldest_readable_us(read.at_us);
    is_readable.then(|| rows.iter().find(|row| row.0 == order).unwrap().clone())
}

fn check(found: &[Option<EntityRead>], expected: &[Option<(RowOrder, Vec<Value>)>], what: &str) {
    assert_eq!(found.len(), expected.len());
    for (number, (found, expected)) in found.iter().zip(expected).enumerate() {
        let orders = (found.as_ref().map(|row| row.order), expected.as_ref().map(|row| row.0));
        assert_eq!(orders.0, orders.1, "{what}, read {number}");
        let (Some(found), Some((_, values))) = (found, expected) else { continue };
        assert!(found.values.iter().zip(values).all(|(a, b)| a.bits_eq(b)), "{what}, read {number}: {found:?}");
        assert_eq!(found.error, None, "{what}, read {number}");
    }
}

fn random_row(random: &mut StdRng, earliest_us: i64) -> SourceRow {
    // Few entities have most rows, and some names are longer than statistics keep.
    let entity = (40.0 * random.random::<f64>().powi(3)) as i64;
    let card = if entity % 7 == 3 { format!("card {}{entity}", "x".repeat(80)) } else { format!("card {entity}") };
    let event_time_us = earliest_us + random.random_range(0..3 * DAY_US / 100) * 100;
    let known_us = event_time_us + [0, 0, DAY_US, 100][random.random_range(0..4)];
    let amount = random.random_bool(0.9).then(|| f64::from(random.random_range(0..5)) / 2.0);
    (card, random.random_range(-3..3), event_time_us, known_us, amount)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_of_entities_find_what_the_whole_table_has() {
    let seed = crate::support::seed();
    let mut random = StdRng::seed_from_u64(seed);
    let shapes: [&[(&str, KeyType)]; 4] = [
        &[("card", KeyType::Utf8)],
        &[("shop", KeyType::Int64)],
        &[("card", KeyType::Utf8), ("shop", KeyType::Int64)],
        &[("shop", KeyType::Int64), ("card", KeyType::Utf8)],
    ];
    let lifetimes = [Lifetime::FOREVER, Lifetime::with_ttl(DAY_US / 2), Lifetime::with_ttl(1_000)];
    for case in 0..crate::support::cases(24, 600) {
        let keys = shapes[case % shapes.len()];
        let lifetime = lifetimes[random.random_range(0..lifetimes.len())];
        let folder = tempfile::tempdir().unwrap();
        let view = payments(&folder.path().join("in"), keys, lifetime);
        let out = folder.path().join("out");
        let earliest_us = at("2023-05-01T00:00:00Z");
        for commit in 0..random.random_range(1..4) {
            for file in 0..random.random_range(1..3) {
                let count = random.random_range(1..400);
                let rows: Vec<SourceRow> = (0..count).map(|_| random_row(&mut random, earliest_us)).collect();
                let name = format!("in/{commit}-{file}.parquet");
                write_parquet(&folder.path().join(name), &source_batch(&rows), random.random_range(50..300));
            }
            let store = OfflineStore::open(out.to_str().unwrap()).unwrap();
            load(&view, &store, &format!("job {commit}")).await;
        }
        if random.random_bool(0.5) {
            rewrite_data_files(&out.join("views/payments/v1"), &mut random);
        }
        let store = OfflineStore::open(out.to_str().unwrap()).unwrap();
        let rows = whole(&store, &view).await;
        let known: Vec<&EntityKey> = rows.keys().collect();
        let table = store.table(&view).unwrap();
        // Twice: with and without what was kept of the first time.
        for count in [1, 1, 3, 1, 200, 3] {
            let mut asked: Vec<EntityKey> = Vec::new();
            let mut reads = Vec::new();
            for _ in 0..count {
                let mut key = known[random.random_range(0..known.len())].clone();
                if random.random_bool(0.2) {
                    // Nobody's, though other entities have such parts.
                    key.0[0] = match &key.0[0] {
                        KeyValue::Utf8(text) => KeyValue::Utf8(format!("{text}!")),
                        KeyValue::Int64(number) => KeyValue::Int64(number + 1_000),
                    };
                }
                asked.push(key);
                let at_us = earliest_us + random.random_range(-DAY_US..5 * DAY_US) / 100 * 100;
                let known_by_us = if random.random_bool(0.2) { i64::MAX } else { at_us };
                reads.push(ReadAt { at_us, known_by_us });
            }
            let found = table.read_entities(&asked, &reads, lifetime, ReadVersion::Current).await.unwrap();
            let expected: Vec<_> =
                asked.iter().zip(&reads).map(|(key, read)| expected(&rows, key, *read, lifetime)).collect();
            check(&found, &expected, &format!("seed {seed}, case {case}, {count} reads"));
        }
    }
}

/// Counts what is read.
#[derive(Debug)]
struct Counting {
    inner: LocalFileSystem,
    bytes: AtomicU64,
    requests: AtomicU64,
}

impl std::fmt::Display for Counting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a disk that counts")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Counting {
    async fn put_opts(&self, at: &Path, bytes: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        self.inner.put_opts(at, bytes, options).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        let is_head = options.head;
        let result = self.inner.get_opts(at, options).await?;
        if !is_head {
            self.bytes.fetch_add(result.range.end - result.range.start, Ordering::Relaxed);
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        Ok(result)
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> object_store::Result<Vec<bytes::Bytes>> {
        let mut read = Vec::new();
        for range in ranges {
            let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
            read.push(self.get_opts(at, options).await?.bytes().await?);
        }
        Ok(read)
    }

    fn delete_stream(
        &self,
        at: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(at)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn size_of(folder: &FilePath) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { size_of(&path) } else { std::fs::metadata(&path).unwrap().len() }).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_of_one_entity_reads_a_small_part_of_the_table() {
    const ENTITIES: i64 = 20_000;
    const DAYS: i64 = 4;
    let folder = tempfile::tempdir().unwrap();
    let earliest_us = at("2023-05-01T00:00:00Z");
    let mut random = StdRng::seed_from_u64(7);
    for day in 0..DAYS {
        let mut rows: Vec<SourceRow> = (0..60_000)
            .map(|_| {
                let event_time_us = earliest_us + day * DAY_US + random.random_range(0..DAY_US);
                let card = format!("card_{:06}", random.random_range(0..ENTITIES));
                (card, 1, event_time_us, event_time_us, Some(random.random()))
            })
            .collect();
        rows.sort_by_key(|row| row.2);
        // Its last row is of the first day.
        rows.retain(|row| day == 0 || row.0 != "card_000777");
        write_parquet(&folder.path().join(format!("in/{day}.parquet")), &source_batch(&rows), 60_000);
    }
    let view = payments(&folder.path().join("in"), &[("card", KeyType::Utf8)], Lifetime::FOREVER);
    let out = folder.path().join("out");
    load(&view, &OfflineStore::open(out.to_str().unwrap()).unwrap(), "job").await;
    let size = size_of(&out.join("views"));

    let disk = Counting { inner: LocalFileSystem::new(), bytes: AtomicU64::new(0), requests: AtomicU64::new(0) };
    let disk = Arc::new(disk);
    let store = OfflineStore::with_object_store(out.to_str().unwrap(), disk.clone()).unwrap();
    let table = store.table(&view).unwrap();
    let read = async |card: &str| {
        let before = (disk.bytes.load(Ordering::Relaxed), disk.requests.load(Ordering::Relaxed));
        let key = [EntityKey(vec![KeyValue::Utf8(card.to_owned())])];
        let reads = [ReadAt::as_known_then(earliest_us + DAYS * DAY_US)];
        let found = table.read_entities(&key, &reads, Lifetime::FOREVER, ReadVersion::Current).await.unwrap();
        let after = (disk.bytes.load(Ordering::Relaxed), disk.requests.load(Ordering::Relaxed));
        (found[0].clone(), after.0 - before.0, after.1 - before.1)
    };
    // The first read also fetches the log, the footers and the filters.
    assert!(read("card_000777").await.0.is_some());
    assert!(read("nobody").await.0.is_none());
    let (found, bytes, _) = read("card_000777").await;
    assert!(found.is_some_and(|found| found.order.event_time_us < earliest_us + DAY_US));
    assert!(bytes * 20 < size, "{bytes} of {size} bytes were read for an entity of the oldest file");
    let (found, bytes, requests) = read("nobody_else").await;
    assert!(found.is_none());
    // One look for a new commit; an unlucky bloom filter lets a page of keys be read.
    assert!(bytes * 50 < size && requests <= 3, "{bytes} of {size} bytes and {requests} requests for nobody");
}

/// A table of two commits, the second with a late row and a new entity.
async fn two_commits(folder: &FilePath) -> (ViewSpec, OfflineStore) {
    let first_us = at("2023-05-01T10:00:00Z");
    let row =
        |card: &str, event_time_us: i64, amount: f64| (card.to_owned(), 1, event_time_us, event_time_us, Some(amount));
    write_parquet(&folder.join("in/1.parquet"), &source_batch(&[row("a", first_us, 1.0)]), 10);
    let view = payments(&folder.join("in"), &[("card", KeyType::Utf8)], Lifetime::FOREVER);
    let store = OfflineStore::open(folder.join("out").to_str().unwrap()).unwrap();
    load(&view, &store, "first").await;
    let rows = [row("a", first_us + 5, 2.0), row("b", first_us, 3.0)];
    write_parquet(&folder.join("in/2.parquet"), &source_batch(&rows), 10);
    (view, store)
}

async fn amounts(store: &OfflineStore, view: &ViewSpec, version: ReadVersion) -> Vec<Option<Value>> {
    let keys = ["a", "b"].map(|card| EntityKey(vec![KeyValue::Utf8(card.to_owned())]));
    let reads = [ReadAt::as_known_then(at("2023-06-01T00:00:00Z")); 2];
    let found = store.table(view).unwrap().read_entities(&keys, &reads, view.lifetime, version).await.unwrap();
    found.into_iter().map(|row| row.map(|row| row.values[0].clone())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_is_read_as_it_was_stored_by_commit_and_by_time() {
    let folder = tempfile::tempdir().unwrap();
    let (view, store) = two_commits(folder.path()).await;
    // The store that reads has seen the first commit, and has to notice the second.
    let one = Some(Value::Float64(1.0));
    assert_eq!(amounts(&store, &view, ReadVersion::Current).await, [one.clone(), None]);
    load(&view, &OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap(), "second").await;
    let both = [Some(Value::Float64(2.0)), Some(Value::Float64(3.0))];
    assert_eq!(amounts(&store, &view, ReadVersion::Current).await, both);
    assert_eq!(amounts(&store, &view, ReadVersion::At(1)).await, [one.clone(), None]);
    assert_eq!(amounts(&store, &view, ReadVersion::At(2)).await, both);

    let table = store.table(&view).unwrap();
    let first = table.version_as_stored(AsStored::Commit(1)).await.unwrap();
    let second = table.version_as_stored(AsStored::Commit(2)).await.unwrap();
    assert_eq!((first.version, second.version), (1, 2));
    assert!(first.committed_at_us <= second.committed_at_us);
    let by_time = async |at_us: i64| table.version_as_stored(AsStored::Time(at_us)).await;
    assert_eq!(by_time(second.committed_at_us).await.unwrap(), second);
    assert_eq!(by_time(i64::MAX).await.unwrap(), second);
    if first.committed_at_us < second.committed_at_us {
        assert_eq!(by_time(second.committed_at_us - 1).await.unwrap(), first);
    }
    let refusal =
        |error: Result<_, OfflineError>| error.map(|_: eadem_offline::StoredVersion| ()).unwrap_err().to_string();
    assert!(refusal(by_time(0).await).contains("nothing was stored at 1970-01-01T00:00:00Z"));
    assert!(
        refusal(table.version_as_stored(AsStored::Commit(9)).await).contains("there is no commit 9; the newest is 2")
    );
    assert!(refusal(table.version_as_stored(AsStored::Commit(0)).await).contains("the first that does is 1"));
    let empty = OfflineStore::open(folder.path().join("elsewhere").to_str().unwrap()).unwrap();
    let nothing = empty.table(&view).unwrap().version_as_stored(AsStored::Time(i64::MAX)).await;
    assert!(refusal(nothing).contains("run a backfill first"));
}

/// Two machines' clocks differ: the second commit claims to be older than the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_and_times_go_the_same_way_whatever_clocks_say() {
    let folder = tempfile::tempdir().unwrap();
    let (view, store) = two_commits(folder.path()).await;
    load(&view, &store, "second").await;
    let log = folder.path().join("out/views/payments/v1/_delta_log");
    for (version, committed_ms) in [(0, 10), (1, 5_000), (2, 1_000)] {
        let commit = log.join(format!("{version:020}.json"));
        let text = std::fs::read_to_string(&commit).unwrap();
        let lines: Vec<String> = text
            .lines()
            .map(|line| {
                let mut action: serde_json::Value = serde_json::from_str(line).unwrap();
                if action.get("commitInfo").is_some() {
                    action["commitInfo"]["timestamp"] = committed_ms.into();
                }
                action.to_string()
            })
            .collect();
        std::fs::write(&commit, lines.join("\n")).unwrap();
    }
    let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
    let table = store.table(&view).unwrap();
    let version = async |at_us| table.version_as_stored(AsStored::Time(at_us)).await.map(|stored| stored.version).ok();
    assert_eq!(version(4_999_999).await, None);
    assert_eq!(version(5_000_000).await, Some(2));
    let second = table.version_as_stored(AsStored::Commit(2)).await.unwrap();
    assert_eq!(second.committed_at_us, 5_000_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_whose_files_are_gone_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (view, store) = two_commits(folder.path()).await;
    load(&view, &store, "second").await;
    let day = folder.path().join("out/views/payments/v1/event_date=2023-05-01");
    for entry in std::fs::read_dir(&day).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let keys = [EntityKey(vec![KeyValue::Utf8("a".to_owned())])];
    let reads = [ReadAt::as_known_then(at("2023-06-01T00:00:00Z"))];
    for version in [ReadVersion::At(1), ReadVersion::Current] {
        let read = store.table(&view).unwrap().read_entities(&keys, &reads, view.lifetime, version).await;
        let error = read.unwrap_err();
        assert!(matches!(error, OfflineError::Vacuumed { .. }), "{error}");
        assert!(error.to_string().contains("is gone; it was vacuumed"), "{error}");
    }
}
