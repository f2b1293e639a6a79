//! Training sets against a naive oracle that shares no code with the join.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int8Type;
use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow_schema::DataType as ArrowType;
use eadem_offline::{
    DatasetFeature, DatasetOptions, DatasetSpec, DatasetWatch, KnownAt, MemoryLedger, OfflineStore, OnDemandBinding,
    OnDemandView, Placement, ReadVersion, SpineColumns, StoredView, ViewOfService, ViewSpec, create_dataset,
    rebuild_dataset, run_backfill,
};
use eadem_query::{RowTransform, ValidationPolicy};
use eadem_semantics::{KnownAtCut, Lifetime, ReadAt};
use eadem_values::{DataType, Digest, ElementType, EntityKey, Field, KeyValue, Value, value_at};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::support::{NativeTransform, Outcome, Row, at, backfill, source, stored_rows, view, write_parquet};

pub const SECOND_US: i64 = 1_000_000;

/// `value` doubled; null for nulls; fails on 7.
pub fn doubler() -> Arc<dyn RowTransform> {
    NativeTransform::shared(
        "doubler",
        true,
        vec![Field::new("value", DataType::Float64, true)],
        vec![Field::new("doubled", DataType::Float64, true), Field::new("text", DataType::Utf8, true)],
        |input| match &input[0] {
            Value::Float64(value) if *value == 7.0 => Outcome::Fail("seven".to_owned()),
            Value::Float64(value) => Outcome::Row(vec![Value::Float64(value * 2.0), Value::Utf8(format!("<{value}>"))]),
            _ => Outcome::Row(vec![Value::Null, Value::Null]),
        },
    )
}

pub fn keys(entities: &[u8]) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(entities.iter().map(|entity| format!("card{entity}"))))
}

pub fn times(times_us: &[i64]) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from(times_us.to_vec()).with_timezone("UTC"))
}

/// History from `start` on with many ties, late knowledge, corrections, nulls, NaNs and repeated rows.
pub fn history(random: &mut StdRng, start: i64, rows: usize) -> RecordBatch {
    let mut columns: (Vec<u8>, Vec<i64>, Vec<i64>, Vec<Option<f64>>) = Default::default();
    for _ in 0..rows {
        let event_us = start + random.random_range(0..40) * SECOND_US;
        columns.0.push(random.random_range(0..5));
        columns.1.push(event_us);
        columns.2.push(event_us + random.random_range(-3..6) * SECOND_US);
        columns.3.push(match random.random_range(0..24) {
            0..4 => None,
            4 => Some(-f64::NAN),
            5 => Some(-0.0),
            _ => Some(f64::from(random.random_range(0..9_i32))),
        });
    }
    RecordBatch::try_from_iter_with_nullable([
        ("card", keys(&columns.0), true),
        ("at", times(&columns.1), true),
        ("known", times(&columns.2), true),
        ("value", Arc::new(Float64Array::from(columns.3)) as ArrayRef, true),
    ])
    .unwrap()
}

/// Moments that a history from `start` on is asked about.
pub fn spine(random: &mut StdRng, start: i64, rows: usize) -> RecordBatch {
    let mut entities = || (0..rows).map(|_| random.random_range(0..7)).collect::<Vec<u8>>();
    let (cards, others) = (entities(), entities());
    // On the second, and a microsecond to either side: where candidates and TTLs begin and end.
    let at_us: Vec<i64> =
        (0..rows).map(|_| start + random.random_range(-2..70) * SECOND_US + random.random_range(-1..2)).collect();
    RecordBatch::try_from_iter([
        ("card", keys(&cards)),
        ("other", keys(&others)),
        ("seen_at", times(&at_us)),
        ("label", Arc::new(Int64Array::from_iter_values(0..rows as i64)) as ArrayRef),
    ])
    .unwrap()
}

/// The winner of a spine row, by looking at every row of the history.
fn oracle<'a>(rows: &'a [Row], card: &str, at_us: i64, cut: KnownAtCut) -> Option<&'a Row> {
    let mut best: Option<&Row> = None;
    for row in rows {
        let known_by_us = match cut {
            KnownAtCut::Spine => at_us,
            KnownAtCut::Fixed(known_by_us) => known_by_us,
            KnownAtCut::None => i64::MAX,
        };
        if row.key != card || row.order.event_time_us > at_us || row.order.known_at_us > known_by_us {
            continue;
        }
        let place = |row: &Row| (row.order.event_time_us, row.order.known_at_us, *row.order.tie.as_bytes());
        if best.is_none_or(|best| place(row) > place(best)) {
            best = Some(row);
        }
    }
    best
}

fn oracle_value(row: Option<&Row>, feature: usize, at_us: i64, lifetime: Lifetime) -> (Value, &'static str) {
    let Some(row) = row else { return (Value::Null, "missing") };
    let age_us = at_us - row.order.event_time_us;
    if let Some(ttl_us) = lifetime.ttl_us {
        if age_us >= ttl_us + lifetime.horizon_us.unwrap_or(ttl_us) {
            return (Value::Null, "missing");
        }
        if age_us >= ttl_us {
            return (Value::Null, "expired");
        }
    }
    if row.error.is_some() {
        return (Value::Null, "error");
    }
    match &row.values[feature] {
        Value::Null => (Value::Null, "null"),
        value => (value.clone(), "present"),
    }
}

pub fn dataset(spine: &Path, views: Vec<ViewOfService>, features: &[(&str, usize, &str)]) -> DatasetSpec {
    DatasetSpec {
        service: "service@1".into(),
        service_digest: "digest of the service".into(),
        spine: spine.to_str().unwrap().into(),
        kept_spine: None,
        columns: SpineColumns { timestamp: "seen_at".into(), renamed: BTreeMap::new() },
        views,
        features: features
            .iter()
            .map(|(name, view, feature)| DatasetFeature {
                name: (*name).into(),
                view: *view,
                feature: (*feature).into(),
                default: None,
            })
            .collect(),
        cut: KnownAtCut::Spine,
        with_status: true,
        engine_fingerprint: "native".into(),
        workers: 2,
        options: DatasetOptions::default(),
        memory_bytes_max: 1 << 30,
        protected: Vec::new(),
        watch: DatasetWatch::default(),
    }
}

pub fn stored(view: &ViewSpec, key: &str) -> ViewOfService {
    ViewOfService::Stored(Box::new(StoredView {
        view: view.clone(),
        keys: vec![key.into()],
        version: ReadVersion::Current,
    }))
}

pub fn read_back(path: &Path) -> RecordBatch {
    let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path).unwrap()).unwrap();
    let schema = reader.schema().clone();
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    arrow_select::concat::concat_batches(&schema, &batches).unwrap()
}

pub fn value(rows: &RecordBatch, column: &str, row: usize) -> Value {
    value_at(rows.column_by_name(column).unwrap().as_ref(), row).unwrap()
}

pub fn status(rows: &RecordBatch, column: &str, row: usize) -> String {
    let column = rows.column_by_name(&format!("{column}__status")).unwrap();
    let statuses = column.as_dictionary::<Int8Type>();
    let names = statuses.values().as_string::<i32>();
    names.value(statuses.keys().value(row) as usize).to_owned()
}

pub async fn loaded(folder: &Path, mut view: ViewSpec, batch: &RecordBatch) -> (OfflineStore, ViewSpec) {
    write_parquet(&folder.join(format!("in-{}/h.parquet", view.name)), batch, 64);
    let location = folder.join(format!("in-{}", view.name)).to_str().unwrap().into();
    view.source.origin = eadem_offline::Origin::Parquet { locations: vec![location] };
    view.source.known_at = KnownAt::Column("known".into());
    let store = OfflineStore::open(folder.join("out").to_str().unwrap()).unwrap();
    run_backfill(backfill(&format!("job-{}", view.name), &view, &store, Arc::new(MemoryLedger::default())))
        .await
        .unwrap();
    (store, view)
}

/// Where histories begin, so that what they hold lies to both sides of a day, of an hour that a clock skips or repeats, of
/// the epoch, or at an end of the accepted years.
const STARTS: [&str; 7] = [
    "2022-12-31T23:59:40Z",
    "1900-01-01T00:00:03Z",
    "1969-12-31T23:59:45Z",
    "2013-03-10T06:59:40Z",
    "2013-11-03T05:59:40Z",
    "2199-12-31T23:58:40Z",
    "2023-01-01T00:00:00Z",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_training_set_is_what_the_oracle_finds() {
    let seed = crate::support::seed();
    let mut random = StdRng::seed_from_u64(seed);
    let lifetime = |ttl_us, horizon_us| Lifetime { ttl_us, horizon_us };
    let lifetimes = [
        Lifetime::FOREVER,
        lifetime(Some(5 * SECOND_US), None),
        lifetime(Some(1), None),
        lifetime(Some(5 * SECOND_US), Some(0)),
        lifetime(Some(3 * SECOND_US), Some(12 * SECOND_US)),
    ];
    let rounds = crate::support::cases(STARTS.len(), 60);
    let mut compared = 0;
    for round in 0..rounds {
        let (lifetime, start) = (lifetimes[round % lifetimes.len()], at(STARTS[round % STARTS.len()]));
        let cuts = [KnownAtCut::Spine, KnownAtCut::None, KnownAtCut::Fixed(start + 20 * SECOND_US)];
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let mut plain = view("plain", source("h", folder), doubler());
        plain.lifetime = lifetime;
        // Some histories begin in a far future.
        plain.source.max_ahead_us = 400 * 366 * 86_400 * SECOND_US;
        let history = history(&mut random, start, 150);
        let (store, plain) = loaded(folder, plain, &history).await;
        let on_read = ViewSpec {
            name: "on_read".into(),
            digest: "digest of on_read".into(),
            placement: Placement::OnRead,
            validation: ValidationPolicy::NullValue.into(),
            ..plain.clone()
        };
        let (_, on_read) = loaded(folder, on_read, &history).await;
        let rows = stored_rows(&store, &plain).await;
        assert_eq!(rows.len(), 150);
        let spine = spine(&mut random, start, 120);
        let spine_path = folder.join("spine.parquet");
        write_parquet(&spine_path, &spine, 50);

        for cut in cuts {
            let features = [
                ("doubled", 0, "doubled"),
                ("text", 0, "text"),
                ("r_doubled", 1, "doubled"),
                ("r_text", 1, "text"),
                ("other_doubled", 2, "doubled"),
                ("other_text", 2, "text"),
            ];
            // One view in two roles, and the same function once more, computed on read.
            let views = vec![stored(&plain, "card"), stored(&on_read, "card"), stored(&plain, "other")];
            let spec = DatasetSpec { cut, ..dataset(&spine_path, views, &features) };
            let out = folder.join(format!("set-{round}.parquet"));
            let report = create_dataset(&store, &spec, out.to_str().unwrap()).await.unwrap();
            assert!(report.plans[0].contains("PointInTimeJoinExec"), "{}", report.plans[0]);
            let set = read_back(&out);
            // With memory for a few rows the spine is split by entity and its parts go through files: not a bit differs.
            let tight = DatasetSpec { memory_bytes_max: 16 << 10, ..spec.clone() };
            let split = create_dataset(&store, &tight, out.to_str().unwrap()).await.unwrap();
            assert!(!split.plans[0].contains("partitions=1"), "{}", split.plans[0]);
            assert_eq!(split.recipe, report.recipe);
            assert_eq!(split.statuses, report.statuses);
            assert_eq!(set.num_rows(), spine.num_rows());
            let (mut keys, mut reads, mut winners) = (Vec::new(), Vec::new(), Vec::new());
            for row in 0..set.num_rows() {
                assert_eq!(value(&set, "label", row), Value::Int64(row as i64), "the spine's order is kept");
                let (Value::Utf8(card), Value::Utf8(other), Value::Timestamp(at_us)) =
                    (value(&set, "card", row), value(&set, "other", row), value(&set, "seen_at", row))
                else {
                    panic!("the spine's columns have changed")
                };
                let winner = oracle(&rows, &card, at_us, cut);
                let winner_of_other = oracle(&rows, &other, at_us, cut);
                compared += 1;
                for (feature, name) in ["doubled", "text"].into_iter().enumerate() {
                    for (column, winner) in [
                        (name.to_owned(), winner),
                        (format!("r_{name}"), winner),
                        (format!("other_{name}"), winner_of_other),
                    ] {
                        let (expected, expected_status) = oracle_value(winner, feature, at_us, lifetime);
                        let at_row = format!("row {row}, {column}, cut {cut}, {lifetime:?}");
                        assert!(value(&set, &column, row).bits_eq(&expected), "{at_row}");
                        assert_eq!(status(&set, &column, row), expected_status, "{at_row}");
                    }
                }
                if cut == KnownAtCut::Spine {
                    keys.push(EntityKey(vec![KeyValue::Utf8(card)]));
                    reads.push(ReadAt::as_known_then(at_us));
                    winners.push((winner, oracle_value(winner, 0, at_us, lifetime).1));
                }
            }
            // Requests look into the same table, for many entities at once.
            let table = store.table(&plain).unwrap();
            let found = table.read_entities(&keys, &reads, plain.lifetime, ReadVersion::Current).await.unwrap();
            assert_eq!(found.len(), winners.len());
            for (read, (found, (winner, served_status))) in found.iter().zip(&winners).enumerate() {
                match found {
                    Some(found) => {
                        let winner = winner.unwrap_or_else(|| panic!("read {read}: {found:?} is no candidate"));
                        assert_eq!((found.order, &found.error), (winner.order, &winner.error), "read {read}");
                        assert!(found.values.iter().zip(&winner.values).all(|(a, b)| a.bits_eq(b)), "read {read}");
                    }
                    None => assert_eq!(*served_status, "missing", "read {read}: a readable row was not found"),
                }
            }
        }
    }
    println!("H8: cases={compared} differences=0");
}

/// How long after `last_seen` the request comes, in seconds, plus the request's own `extra`.
fn gap() -> Arc<dyn RowTransform> {
    NativeTransform::shared(
        "gap",
        false,
        vec![
            Field::new("doubled", DataType::Float64, false),
            Field::new("note", DataType::Utf8, true),
            Field::new("extra", DataType::Int64, false),
            Field::new("now", DataType::Timestamp, false),
            Field::new("factor", DataType::Float64, false),
            Field::new("carriers", DataType::List(ElementType::Utf8), false),
            Field::new("weights", DataType::Vector(2), false),
            Field::new("salt", DataType::Binary, false),
        ],
        vec![Field::new("gap", DataType::Float64, true), Field::new("noted", DataType::Boolean, false)],
        |input| {
            let (Value::Float64(doubled), Value::Int64(extra)) = (&input[0], &input[2]) else {
                panic!("a null reached an input that does not accept one")
            };
            assert_eq!(input[4], Value::Float64(10.0));
            assert_eq!(input[5], Value::ListUtf8(vec!["UA".into(), String::new()]));
            assert!(input[6].bits_eq(&Value::Vector(vec![0.5, -0.0])));
            assert_eq!(input[7], Value::Binary(vec![0, 255]));
            assert!(matches!(input[3], Value::Timestamp(_)));
            match extra {
                3 => Outcome::Drop,
                4 => Outcome::Fail("four".to_owned()),
                _ => Outcome::Row(vec![
                    Value::Float64(doubled * 10.0 + *extra as f64),
                    Value::Boolean(!input[1].is_null()),
                ]),
            }
        },
    )
}

pub async fn roles_example(folder: &Path) -> (OfflineStore, DatasetSpec) {
    let start = at("2023-01-01T00:00:00Z");
    let history = RecordBatch::try_from_iter_with_nullable([
        ("card", keys(&[0, 1, 2]), true),
        ("at", times(&[start, start, start]), true),
        ("known", times(&[start, start, start]), true),
        ("value", Arc::new(Float64Array::from(vec![Some(1.5), None, Some(7.0)])) as ArrayRef, true),
    ])
    .unwrap();
    let plain = view("plain", source("h", folder), doubler());
    let (store, plain) = loaded(folder, plain, &history).await;
    let at_us = start + 10 * SECOND_US;
    let spine = RecordBatch::try_from_iter_with_nullable([
        ("seen_at", times(&[at_us; 8]), false),
        ("payer", keys(&[0, 1, 2, 3, 0, 0, 0, 0]), true),
        ("payee", keys(&[1, 0, 0, 0, 2, 3, 0, 0]), true),
        (
            "more",
            Arc::new(Int64Array::from(vec![Some(1), Some(1), Some(1), Some(1), Some(3), Some(4), None, Some(2)])),
            true,
        ),
    ])
    .unwrap();
    write_parquet(&folder.join("spine.parquet"), &spine, 50);
    let on_demand = OnDemandView {
        id: "gap@1".into(),
        digest: "digest of gap".into(),
        transform: gap(),
        validation: ValidationPolicy::NullValue.into(),
        bindings: vec![
            OnDemandBinding::Feature { view: 0, feature: "doubled".into() },
            OnDemandBinding::Feature { view: 1, feature: "text".into() },
            OnDemandBinding::Request("extra".into()),
            OnDemandBinding::RequestTimestamp,
            OnDemandBinding::Literal(Value::Float64(10.0)),
            OnDemandBinding::Literal(Value::ListUtf8(vec!["UA".into(), String::new()])),
            OnDemandBinding::Literal(Value::Vector(vec![0.5, -0.0])),
            OnDemandBinding::Literal(Value::Binary(vec![0, 255])),
        ],
    };
    let views = vec![stored(&plain, "payer"), stored(&plain, "to"), ViewOfService::OnDemand(on_demand)];
    let features =
        [("payer_doubled", 0, "doubled"), ("payee_doubled", 1, "doubled"), ("gap", 2, "gap"), ("noted", 2, "noted")];
    let mut spec = dataset(&folder.join("spine.parquet"), views, &features);
    spec.columns.renamed = BTreeMap::from([("to".into(), "payee".into()), ("extra".into(), "more".into())]);
    spec.features[0].default = Some(Value::Float64(-1.0));
    (store, spec)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_demand_views_follow_the_join_and_pass_the_worst_status_on() {
    let folder = tempfile::tempdir().unwrap();
    let (store, spec) = roles_example(folder.path()).await;
    let out = folder.path().join("set.parquet");
    let report = create_dataset(&store, &spec, out.to_str().unwrap()).await.unwrap();
    let set = read_back(&out);
    let column = |name: &str| -> Vec<(Value, String)> {
        (0..set.num_rows()).map(|row| (value(&set, name, row), status(&set, name, row))).collect()
    };
    let of = |value: Value, status: &str| (value, status.to_owned());
    let float = Value::Float64;
    assert_eq!(
        column("payer_doubled"),
        [
            of(float(3.0), "present"),
            of(float(-1.0), "null"),
            of(float(-1.0), "error"),
            of(float(-1.0), "missing"),
            of(float(3.0), "present"),
            of(float(3.0), "present"),
            of(float(3.0), "present"),
            of(float(3.0), "present"),
        ]
    );
    // The default is for readers of the feature; on-demand views see the status.
    assert_eq!(
        column("gap"),
        [
            of(float(31.0), "present"),
            of(Value::Null, "null"),
            of(Value::Null, "error"),
            of(Value::Null, "missing"),
            of(Value::Null, "null"),
            of(Value::Null, "error"),
            of(Value::Null, "null"),
            of(float(32.0), "present"),
        ]
    );
    assert_eq!(column("noted")[0], of(Value::Boolean(false), "present"));
    assert_eq!(column("noted")[7], of(Value::Boolean(true), "present"));
    assert_eq!(
        report.statuses["gap"],
        BTreeMap::from([("present".into(), 2), ("null".into(), 3), ("error".into(), 2), ("missing".into(), 1)])
    );
    assert_eq!(report.errors, [("gap@1".to_owned(), 5, "four".to_owned())]);
}

/// Training sets need not read both times then; that they are right is what the other tests show, of tables of either kind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_file_says_whether_all_was_known_at_its_event_time() {
    let start = at("2023-01-01T00:00:00Z");
    for late_us in [0, 1] {
        let folder = tempfile::tempdir().unwrap();
        let history = RecordBatch::try_from_iter_with_nullable([
            ("card", keys(&[0, 1]), true),
            ("at", times(&[start, start]), true),
            ("known", times(&[start, start + late_us]), true),
            ("value", Arc::new(Float64Array::from(vec![1.5, 2.5])) as ArrayRef, true),
        ])
        .unwrap();
        loaded(folder.path(), view("plain", source("h", folder.path()), doubler()), &history).await;
        let log = folder.path().join("out/views/plain/v1/_delta_log");
        let texts = std::fs::read_dir(log).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap());
        let says = texts.map(|text| String::from_utf8_lossy(&text).contains(r#""eadem.known_at":"event_time""#));
        assert_eq!(says.filter(|says| *says).count(), usize::from(late_us == 0), "late by {late_us}");
    }
}

/// Also where the spine is longer than a block, so that the last blocks of the roles are shorter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_history_of_a_view_in_several_roles_is_read_once() {
    let folder = tempfile::tempdir().unwrap();
    let (store, example) = roles_example(folder.path()).await;
    let rows = 140_000_usize;
    let payers: Vec<u8> = (0..4).cycle().take(rows).collect();
    let payees: Vec<u8> = [0, 0, 1, 2, 0].into_iter().cycle().take(rows).collect();
    let at_us = at("2023-01-01T00:00:10Z");
    let spine = RecordBatch::try_from_iter_with_nullable([
        ("seen_at", times(&vec![at_us; rows]), false),
        ("payer", keys(&payers), true),
        ("payee", keys(&payees), true),
    ])
    .unwrap();
    let path = folder.path().join("long.parquet");
    write_parquet(&path, &spine, 50_000);
    let features = [("payer_doubled", 0, "doubled"), ("payee_doubled", 1, "doubled"), ("payee_text", 1, "text")];
    let views = example.views[..2].to_vec();
    let mut spec = dataset(&path, views, &features);
    spec.columns.renamed = BTreeMap::from([("to".into(), "payee".into())]);
    let out = folder.path().join("long-set.parquet");
    let report = create_dataset(&store, &spec, out.to_str().unwrap()).await.unwrap();
    assert_eq!(report.plans.len(), 1, "{:?}", report.plans);
    assert!(report.plans[0].contains("SpineExec: rows=140000, roles=2, partitions=1"), "{}", report.plans[0]);
    let set = read_back(&out);
    let doubled_of = |key: u8| match key {
        0 => (Value::Float64(3.0), "present"),
        1 => (Value::Null, "null"),
        2 => (Value::Null, "error"),
        _ => (Value::Null, "missing"),
    };
    for (name, of_row) in [("payer_doubled", &payers), ("payee_doubled", &payees)] {
        for (row, key) in of_row.iter().enumerate() {
            let (expected, expected_status) = doubled_of(*key);
            assert_eq!(value(&set, name, row), expected, "row {row}, {name}");
            assert_eq!(status(&set, name, row), expected_status, "row {row}, {name}");
        }
    }
    let split = DatasetSpec { memory_bytes_max: 32 << 20, ..spec.clone() };
    let split = create_dataset(&store, &split, out.to_str().unwrap()).await.unwrap();
    assert!(!split.plans[0].contains("roles=2, partitions=1\n"), "{}", split.plans[0]);
    assert_eq!(split.recipe, report.recipe);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recipe_makes_the_same_bytes_again_or_says_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let (store, spec) = roles_example(folder.path()).await;
    let (first, second) = (folder.path().join("first.parquet"), folder.path().join("second.parquet"));
    let report = create_dataset(&store, &spec, first.to_str().unwrap()).await.unwrap();
    let recipe = store.recipe(&report.recipe.digest().unwrap()).await.unwrap().unwrap();
    assert_eq!(recipe, report.recipe);

    // New rows and a new spine at the old place change nothing: the recipe names a version and keeps the spine.
    let ViewOfService::Stored(plain) = &spec.views[0] else { panic!("the first view is stored") };
    let start = at("2023-01-01T00:00:05Z");
    let later = RecordBatch::try_from_iter_with_nullable([
        ("card", keys(&[0]), true),
        ("at", times(&[start]), true),
        ("known", times(&[start]), true),
        ("value", Arc::new(Float64Array::from(vec![Some(99.0)])) as ArrayRef, true),
    ])
    .unwrap();
    write_parquet(&folder.path().join("in-plain/later.parquet"), &later, 10);
    run_backfill(backfill("later", &plain.view, &store, Arc::new(MemoryLedger::default()))).await.unwrap();
    std::fs::remove_file(folder.path().join("spine.parquet")).unwrap();
    let again = rebuild_dataset(&store, &recipe, &spec, second.to_str().unwrap()).await.unwrap();
    assert_eq!(again.content_digest, report.content_digest);
    assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());

    assert_eq!(again.notes, Vec::<String>::new());

    // Another engine is welcome if it gives the same content, and that decides.
    let other_engine = DatasetSpec { engine_fingerprint: "another".into(), ..spec.clone() };
    let again = rebuild_dataset(&store, &recipe, &other_engine, second.to_str().unwrap()).await.unwrap();
    assert_eq!(again.content_digest, report.content_digest);
    assert!(again.notes[0].contains("made by engine native, this is another"), "{:?}", again.notes);
    std::fs::remove_file(&second).unwrap();
    let mut wrong = recipe.clone();
    wrong.content_digest = Digest::of(b"something else");
    let error = rebuild_dataset(&store, &wrong, &other_engine, second.to_str().unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("use that build"), "{error}");
    assert!(!second.exists(), "a dataset of another content has been written");
    let kept = std::fs::read_dir(folder.path().join("out/recipes")).unwrap().count();
    assert_eq!(kept, 1, "rebuilding has left another recipe");

    let table = folder.path().join("out/views/plain/v1").join(&recipe.views[0].files[0].path);
    let mut bytes = std::fs::read(&table).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&table, bytes).unwrap();
    let error = rebuild_dataset(&store, &recipe, &spec, second.to_str().unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("has changed"), "{error}");
    std::fs::remove_file(&table).unwrap();
    let error = rebuild_dataset(&store, &recipe, &spec, second.to_str().unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("is gone"), "{error}");
}

/// One more row of card 0, which beats the others.
pub async fn load_later(folder: &Path, store: &OfflineStore, view: &ViewSpec) {
    let start = at("2023-01-01T00:00:05Z");
    let later = RecordBatch::try_from_iter_with_nullable([
        ("card", keys(&[0]), true),
        ("at", times(&[start]), true),
        ("known", times(&[start]), true),
        ("value", Arc::new(Float64Array::from(vec![Some(99.0)])) as ArrayRef, true),
    ])
    .unwrap();
    write_parquet(&folder.join("in-plain/later.parquet"), &later, 10);
    run_backfill(backfill("later", view, store, Arc::new(MemoryLedger::default()))).await.unwrap();
}

pub fn plain_of(spec: &DatasetSpec) -> ViewSpec {
    let ViewOfService::Stored(plain) = &spec.views[0] else { panic!("the first view is stored") };
    plain.view.clone()
}

fn pinned_at(spec: &DatasetSpec, version: ReadVersion) -> DatasetSpec {
    let mut spec = spec.clone();
    for view in &mut spec.views {
        if let ViewOfService::Stored(stored) = view {
            stored.version = version;
        }
    }
    spec
}

/// A job that is resumed finds new rows and another spine: it makes what it would have made then, once or twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pinned_inputs_give_the_same_bytes_whatever_has_come_since() {
    let folder = tempfile::tempdir().unwrap();
    let (store, spec) = roles_example(folder.path()).await;
    let plain = plain_of(&spec);
    let commit = store.table(&plain).unwrap().version().await.unwrap();
    let kept = store.keep_spine(&spec.spine).await.unwrap();
    let (first, second) = (folder.path().join("first.parquet"), folder.path().join("second.parquet"));
    create_dataset(&store, &spec, first.to_str().unwrap()).await.unwrap();

    load_later(folder.path(), &store, &plain).await;
    std::fs::write(&spec.spine, "not a spine any more").unwrap();
    let pinned = DatasetSpec { kept_spine: Some(kept), ..pinned_at(&spec, ReadVersion::pinned(commit)) };
    for _ in 0..2 {
        create_dataset(&store, &pinned, second.to_str().unwrap()).await.unwrap();
        assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
    }
    let now = DatasetSpec { kept_spine: pinned.kept_spine.clone(), ..spec.clone() };
    create_dataset(&store, &now, second.to_str().unwrap()).await.unwrap();
    assert_ne!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap(), "the later row should win now");
}

/// That nothing was loaded is as much a fact as what was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dataset_of_no_table_is_made_again_of_no_table() {
    let folder = tempfile::tempdir().unwrap();
    let (store, spec) = roles_example(folder.path()).await;
    let empty = OfflineStore::open(folder.path().join("empty").to_str().unwrap()).unwrap();
    let (first, second) = (folder.path().join("first.parquet"), folder.path().join("second.parquet"));
    let report = create_dataset(&empty, &spec, first.to_str().unwrap()).await.unwrap();
    assert_eq!(report.statuses["payer_doubled"], BTreeMap::from([("missing".to_owned(), 8)]));
    assert_eq!(report.recipe.views[0].table_version, None);

    let plain = plain_of(&spec);
    run_backfill(backfill("late", &plain, &empty, Arc::new(MemoryLedger::default()))).await.unwrap();
    let again = rebuild_dataset(&empty, &report.recipe, &spec, second.to_str().unwrap()).await.unwrap();
    assert_eq!(again.content_digest, report.content_digest);
    assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
    let with_rows = create_dataset(&empty, &spec, second.to_str().unwrap()).await.unwrap();
    assert_eq!(
        with_rows.content_digest,
        create_dataset(&store, &spec, second.to_str().unwrap()).await.unwrap().content_digest
    );
    assert_ne!(with_rows.content_digest, report.content_digest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dataset_never_takes_the_place_of_what_it_is_made_from() {
    let folder = tempfile::tempdir().unwrap();
    let (store, spec) = roles_example(folder.path()).await;
    let before = std::fs::read(&spec.spine).unwrap();
    let text = |relative: &str| folder.path().join(relative).to_str().unwrap().to_owned();
    let mut refused = vec![
        (spec.spine.clone(), "is the spine"),
        (text("in-plain/../spine.parquet"), "is the spine"),
        (text("in-plain/h.parquet"), "what source `h` reads"),
        (text("in-plain/new.parquet"), "what source `h` reads"),
        (text("out/set.parquet"), "in the offline store"),
        ("memory:///set.parquet".to_owned(), "the memory of this process"),
    ];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(folder.path().join("in-plain"), folder.path().join("link")).unwrap();
        refused.push((text("link/new.parquet"), "what source `h` reads"));
    }
    for (out, why) in refused {
        let error = create_dataset(&store, &spec, &out).await.unwrap_err().to_string();
        assert!(error.contains(why), "{out}: {error}");
    }
    assert_eq!(std::fs::read(&spec.spine).unwrap(), before);
    assert!(!folder.path().join("in-plain/new.parquet").exists());
    // A name that only begins like a source's folder is another place.
    create_dataset(&store, &spec, &text("in-plain.parquet")).await.unwrap();
}

/// The digest is kept in registries and recipes: it follows from names, types and values alone, for ever. How a column of
/// the spine is laid out is not its content.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_content_digest_is_of_the_content() {
    let folder = tempfile::tempdir().unwrap();
    let (store, mut spec) = roles_example(folder.path()).await;
    let out = folder.path().join("set.parquet");
    let digest = async |spec: &DatasetSpec| {
        create_dataset(&store, spec, out.to_str().unwrap()).await.unwrap().content_digest.to_string()
    };
    let golden = "sha256:ab571155c754dc024a37ee13734c188964b6df0373a9250025908d271614a800";
    assert_eq!(digest(&spec).await, golden);
    let spine = read_back(Path::new(&spec.spine));
    for layout in [ArrowType::LargeUtf8, ArrowType::Dictionary(Box::new(ArrowType::Int32), Box::new(ArrowType::Utf8))] {
        let columns = spine.schema().fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>();
        let columns = columns.iter().zip(spine.columns()).map(|(name, column)| match name.as_str() {
            "payer" => (name, arrow_cast::cast(column, &layout).unwrap(), true),
            _ => (name, column.clone(), true),
        });
        let path = folder.path().join("other.parquet");
        write_parquet(&path, &RecordBatch::try_from_iter_with_nullable(columns).unwrap(), 50);
        spec.spine = path.to_str().unwrap().to_owned();
        assert_eq!(digest(&spec).await, golden, "{layout}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_csv_spine_gives_the_same_features() {
    let folder = tempfile::tempdir().unwrap();
    let (store, mut spec) = roles_example(folder.path()).await;
    let out = folder.path().join("set.parquet");
    create_dataset(&store, &spec, out.to_str().unwrap()).await.unwrap();
    let from_parquet = read_back(&out);
    let mut csv = "seen_at,payer,payee,more\n".to_owned();
    for row in 0..from_parquet.num_rows() {
        let text = |name: &str| match value(&from_parquet, name, row) {
            Value::Utf8(text) => text,
            Value::Int64(number) => number.to_string(),
            Value::Timestamp(at_us) => eadem_values::format_timestamp(at_us),
            _ => String::new(),
        };
        csv.push_str(&format!("{},{},{},{}\n", text("seen_at"), text("payer"), text("payee"), text("more")));
    }
    std::fs::write(folder.path().join("spine.csv"), csv).unwrap();
    spec.spine = folder.path().join("spine.csv").to_str().unwrap().into();
    create_dataset(&store, &spec, out.to_str().unwrap()).await.unwrap();
    let from_csv = read_back(&out);
    for name in ["payer_doubled", "payee_doubled", "gap", "noted"] {
        for row in 0..from_parquet.num_rows() {
            assert!(value(&from_csv, name, row).bits_eq(&value(&from_parquet, name, row)), "{name}, row {row}");
            assert_eq!(status(&from_csv, name, row), status(&from_parquet, name, row));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spine_that_does_not_fit_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (store, spec) = roles_example(folder.path()).await;
    let out = folder.path().join("set.parquet");
    let error_of =
        async |spec: &DatasetSpec| create_dataset(&store, spec, out.to_str().unwrap()).await.unwrap_err().to_string();
    let mut wrong = spec.clone();
    wrong.columns.timestamp = "nowhen".into();
    assert_eq!(error_of(&wrong).await, "the spine has no column `nowhen`; its columns are seen_at, payer, payee, more");
    let mut wrong = spec.clone();
    wrong.columns.renamed.insert("to".into(), "more".into());
    assert_eq!(error_of(&wrong).await, "the spine's column `more`: is Int64, expected utf8");
    let mut wrong = spec.clone();
    wrong.columns.renamed.insert("form".into(), "payer".into());
    assert_eq!(error_of(&wrong).await, "`form` is no key or request field of service@1; those are extra, payer, to");
    let mut wrong = spec.clone();
    wrong.features[1].name = "payer".into();
    assert!(error_of(&wrong).await.contains("column `payer` would occur twice"));
    let mut wrong = spec.clone();
    wrong.features[1].feature = "tripled".into();
    assert!(error_of(&wrong).await.contains("no feature `tripled`"));
    let mut wrong = spec.clone();
    wrong.spine = folder.path().join("spine.csv").to_str().unwrap().into();
    std::fs::write(&wrong.spine, "seen_at,payer,payee,more\nyesterday,a,b,1\n").unwrap();
    assert!(error_of(&wrong).await.contains("column `seen_at`: row 0:"));
    std::fs::write(&wrong.spine, "seen_at,payer,payee,more\n,a,b,1\n").unwrap();
    assert!(error_of(&wrong).await.contains("row 0 of the spine has no time"));
    assert!(!out.exists(), "a dataset that failed has left a file");
}
