//! What `inspect` and a backfill say about sources.

use std::path::Path;
use std::sync::Arc;

use arrow_array::types::Int64Type;
use arrow_array::{
    ArrayRef, Date32Array, Decimal128Array, Float32Array, Int32Array, Int64Array, ListArray, RecordBatch, StringArray,
    TimestampMillisecondArray, TimestampNanosecondArray, TimestampSecondArray, UInt64Array,
};
use eadem_offline::{KnownAt, MemoryLedger, OfflineStore, SourceSpec, input_column, inspect, run_backfill};
use eadem_query::RowTransform;
use eadem_values::{DataType, ElementType, Field, Value, value_at};

use crate::backfill::payments;
use crate::support::{NativeTransform, Outcome, at, backfill, double_amount, source, stored_rows, view, write_parquet};

fn plain() -> RecordBatch {
    payments(&[
        (Some("a"), "2023-05-01T10:00:00Z", Some(1.0), Some("x")),
        (Some("b"), "2023-05-02T10:00:00Z", Some(2.0), None),
        (Some("c"), "2023-05-03T10:00:00Z", Some(3.0), Some("zz")),
    ])
}

fn odd_types() -> RecordBatch {
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("small", Arc::new(Int32Array::from(vec![7]))),
        ("unsigned", Arc::new(UInt64Array::from(vec![7]))),
        ("single", Arc::new(Float32Array::from(vec![0.1]))),
        ("day", Arc::new(Date32Array::from(vec![15_000]))),
        ("price", Arc::new(Decimal128Array::from(vec![1234]).with_precision_and_scale(10, 2).unwrap())),
        ("nanos", Arc::new(TimestampNanosecondArray::from(vec![-1]).with_timezone("UTC"))),
        ("millis", Arc::new(TimestampMillisecondArray::from(vec![1_500]).with_timezone("America/New_York"))),
        ("naive", Arc::new(TimestampMillisecondArray::from(vec![1_500]))),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

#[tokio::test]
async fn inspect_gives_each_column_its_type_or_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(&folder.path().join("in/odd.parquet"), &odd_types(), 10);
    let mut spec = source("odd", &folder.path().join("in"));
    spec.event_time = eadem_offline::EventTime::Literal(0);
    spec.columns = vec![
        ("from_naive".into(), "naive at time zone 'America/New_York'".into()),
        ("renamed_naive".into(), "naive".into()),
        ("local".into(), "to_local_time(millis at time zone 'America/New_York')".into()),
        ("made".into(), "to_timestamp_micros(small)".into()),
        ("small".into(), "cast(small as double)".into()),
    ];
    let columns = inspect(&spec).await.unwrap();
    let types: Vec<(&str, Option<DataType>)> =
        columns.iter().map(|column| (column.name.as_str(), column.data_type)).collect();
    assert_eq!(
        types,
        [
            ("small", Some(DataType::Float64)),
            ("unsigned", None),
            ("single", Some(DataType::Float32)),
            ("day", None),
            ("price", None),
            ("nanos", Some(DataType::Timestamp)),
            ("millis", Some(DataType::Timestamp)),
            ("naive", None),
            ("from_naive", Some(DataType::Timestamp)),
            ("renamed_naive", None),
            ("local", None),
            ("made", Some(DataType::Timestamp)),
        ]
    );
    let hint = |name: &str| columns.iter().find(|column| column.name == name).unwrap().hint.clone().unwrap();
    assert!(hint("unsigned").contains("cast(… as bigint)"), "{}", hint("unsigned"));
    assert!(hint("price").contains("no decimal"), "{}", hint("price"));
    assert!(hint("naive").contains("at time zone"), "{}", hint("naive"));
    assert!(hint("day").contains("to_timestamp"), "{}", hint("day"));
}

/// Rows with a local clock in `stood`, in milliseconds without a zone.
fn local_clocks(readings: &[Option<&str>]) -> RecordBatch {
    let millis = |reading: &&str| at(&format!("{reading}Z")) / 1_000;
    let clock = TimestampMillisecondArray::from(readings.iter().map(|r| r.as_ref().map(millis)).collect::<Vec<_>>());
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("card", Arc::new(StringArray::from(vec!["c"; readings.len()]))),
        ("stood \"here\"", Arc::new(clock.clone())),
        ("in_utc", Arc::new(clock)),
        ("small", Arc::new(Int32Array::from_iter_values(0..readings.len() as i32))),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

fn in_new_york(folder: &Path) -> eadem_offline::SourceSpec {
    let mut spec = source("clocks", folder);
    spec.time_zone = Some("America/New_York".into());
    spec.columns = vec![
        ("in_utc".into(), "in_utc at time zone 'UTC'".into()),
        ("seen".into(), "\"stood \"\"here\"\"\" at time zone 'America/New_York'".into()),
    ];
    spec.event_time = eadem_offline::EventTime::Literal(at("2000-01-01T00:00:00Z"));
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_zone_of_a_source_says_where_the_clocks_of_its_files_stood() {
    let folder = tempfile::tempdir().unwrap();
    let readings = [
        (Some("2013-01-01T12:00:00"), Some("2013-01-01T17:00:00Z")),
        (Some("2013-07-01T12:00:00"), Some("2013-07-01T16:00:00Z")),
        // The clocks go forward from 2 to 3, and back from 2 to 1.
        (Some("2013-03-10T01:59:59"), Some("2013-03-10T06:59:59Z")),
        (Some("2013-03-10T03:00:00"), Some("2013-03-10T07:00:00Z")),
        (Some("2013-11-03T00:59:59"), Some("2013-11-03T04:59:59Z")),
        (Some("2013-11-03T02:00:00"), Some("2013-11-03T07:00:00Z")),
        (None, None),
    ];
    write_parquet(&folder.path().join("in/c.parquet"), &local_clocks(&readings.map(|(clock, _)| clock)), 10);
    let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
    let spec = in_new_york(&folder.path().join("in"));
    for (name, column) in [("zoned", "stood \"here\""), ("written_out", "seen"), ("replaced", "in_utc")] {
        let mut view = view(name, spec.clone(), echo_time());
        view.bindings[0] = eadem_offline::Binding::Column(column.into());
        run_backfill(backfill("job", &view, &store, Arc::new(MemoryLedger::default()))).await.unwrap();
        let found: Vec<Value> = stored_rows(&store, &view).await.into_iter().map(|row| row.values[0].clone()).collect();
        let expected = readings.map(|(clock, instant)| match clock.zip(instant) {
            None => Value::Null,
            Some((clock, _)) if column == "in_utc" => Value::Timestamp(at(&format!("{clock}Z"))),
            Some((_, instant)) => Value::Timestamp(at(instant)),
        });
        assert_eq!(found, expected, "{name}");
    }
    let mut filtered = spec.clone();
    filtered.filter = Some("\"stood \"\"here\"\"\" >= '2013-07-01T16:00:00Z'".into());
    let mut view = view("filtered", filtered, echo_time());
    view.bindings[0] = eadem_offline::Binding::Column("in_utc".into());
    let report = run_backfill(backfill("job", &view, &store, Arc::new(MemoryLedger::default()))).await.unwrap();
    assert_eq!(report.rows_stored, 3, "`where` sees instants");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_time_that_names_no_single_instant_is_refused() {
    for reading in ["2013-03-10T02:30:00", "2013-11-03T01:30:00"] {
        let folder = tempfile::tempdir().unwrap();
        write_parquet(&folder.path().join("in/c.parquet"), &local_clocks(&[Some(reading)]), 10);
        let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
        let mut spec = in_new_york(&folder.path().join("in"));
        spec.columns.retain(|(name, _)| name != "seen");
        let mut view = view("clocks", spec, echo_time());
        view.bindings[0] = eadem_offline::Binding::Column("stood \"here\"".into());
        let ledger = Arc::new(MemoryLedger::default());
        let report = run_backfill(backfill("job", &view, &store, ledger)).await.unwrap();
        let refused: Vec<_> = report.refused.into_iter().collect();
        assert_eq!(refused, [("column `stood \"here\"` cannot be computed".to_owned(), 1)], "{reading}");
        assert!(stored_rows(&store, &view).await.is_empty());
    }
}

#[tokio::test]
async fn a_time_zone_that_does_not_exist_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(&folder.path().join("p.parquet"), &plain(), 10);
    for zone in ["America/New_Yrok", "", "UTC' or 'x", "EST5EDT4"] {
        let mut spec = source("payments", folder.path());
        spec.time_zone = Some(zone.into());
        let error = inspect(&spec).await.unwrap_err().to_string();
        assert!(error.starts_with("source `payments`, time_zone: there is no time zone"), "{zone}: {error}");
    }
}

#[test]
fn a_column_becomes_an_input_as_in_a_backfill_or_not_at_all() {
    let rows = odd_types();
    let converted = |name: &str, wanted| input_column(rows.column_by_name(name).unwrap(), wanted);
    let value = |name: &str, wanted| value_at(converted(name, wanted).unwrap().as_ref(), 0).unwrap();
    assert!(value("small", DataType::Int64).bits_eq(&Value::Int64(7)));
    assert!(value("single", DataType::Float32).bits_eq(&Value::Float32(0.1)));
    // Floored, also before 1970.
    assert!(value("nanos", DataType::Timestamp).bits_eq(&Value::Timestamp(-1)));
    assert!(value("millis", DataType::Timestamp).bits_eq(&Value::Timestamp(1_500_000)));

    let refused = |name: &str, wanted, hint: &str| {
        let error = converted(name, wanted).unwrap_err().to_string();
        assert!(error.contains(hint) && error.contains(&wanted.to_string()), "{name}: {error}");
    };
    refused("unsigned", DataType::Int64, "cast(… as bigint)");
    refused("single", DataType::Float64, "it is float32");
    refused("small", DataType::Float64, "it is int64");
    refused("price", DataType::Float64, "no decimal");
    refused("day", DataType::Timestamp, "to_timestamp");
    refused("naive", DataType::Timestamp, "at time zone");
}

async fn error_of(folder: &Path, columns: &[(&str, &str)], filter: Option<&str>) -> String {
    let mut spec = source("payments", folder);
    spec.columns = columns.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    spec.filter = filter.map(str::to_owned);
    inspect(&spec).await.unwrap_err().to_string()
}

#[tokio::test]
async fn expressions_beyond_the_list_are_refused_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(&folder.path().join("p.parquet"), &plain(), 10);
    let folder = folder.path();
    for text in ["sin(amount)", "ln(amount)", "power(amount, 2)", "sqrt(amount)", "round(amount)"] {
        let error = error_of(folder, &[("x", text)], None).await;
        assert!(error.starts_with("source `payments`, columns.x:"), "{error}");
        assert!(error.contains("put it into a transform"), "{text}: {error}");
    }
    for text in ["now()", "random()", "uuid()", "current_date()"] {
        let error = error_of(folder, &[("x", text)], None).await;
        assert!(error.contains("put it into a transform"), "{text}: {error}");
    }
    let error = error_of(folder, &[("x", "amuont * 2")], None).await;
    assert!(error.contains("no column `amuont`") && error.contains("card, at, amount, note"), "{error}");
    let error = error_of(folder, &[], Some("amount")).await;
    assert!(error.contains("where: is Float64, not true or false"), "{error}");
    let error = error_of(folder, &[("x", "amount +")], None).await;
    assert!(error.contains("columns.x"), "{error}");
    for text in ["sum(amount)", "(select 1)", "row_number() over ()"] {
        let error = error_of(folder, &[("x", text)], None).await;
        assert!(error.contains("columns.x"), "{text}: {error}");
    }
}

#[tokio::test]
async fn definitions_that_name_wrong_columns_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(&folder.path().join("p.parquet"), &plain(), 10);
    let mut spec = source("payments", folder.path());
    spec.known_at = KnownAt::Column("amount".into());
    let error = inspect(&spec).await.unwrap_err().to_string();
    assert_eq!(error, "source `payments`, known_at: column `amount` is Float64, not a timestamp");
    spec.known_at = KnownAt::Column("nowhere".into());
    assert!(inspect(&spec).await.unwrap_err().to_string().contains("there is no column `nowhere`"));
    spec.known_at = KnownAt::EventTime;
    spec.event_id = Some("nowhere".into());
    assert!(inspect(&spec).await.unwrap_err().to_string().contains("event_id: there is no column `nowhere`"));
    let missing = source("gone", &folder.path().join("nothing"));
    assert!(inspect(&missing).await.unwrap_err().to_string().contains("does not exist"));
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    let empty = source("empty", &folder.path().join("empty"));
    assert!(inspect(&empty).await.unwrap_err().to_string().contains("no Parquet file"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_binding_of_the_wrong_type_is_refused_before_a_row_is_read() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(&folder.path().join("in/p.parquet"), &plain(), 10);
    let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
    let mut view = view("payments", source("payments", &folder.path().join("in")), double_amount());
    view.bindings[0] = eadem_offline::Binding::Column("note".into());
    let error = run_backfill(backfill("job", &view, &store, Arc::new(MemoryLedger::default()))).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "view `payments@1`, bind.amount: column `note` is utf8, expected float64; cast it in the source's `columns`"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_cut_short_is_named_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("in/b.parquet");
    write_parquet(&folder.path().join("in/a.parquet"), &plain(), 10);
    write_parquet(&file, &plain().slice(0, 2), 10);
    let bytes = std::fs::read(&file).unwrap();
    let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
    let view = view("payments", source("payments", &folder.path().join("in")), double_amount());
    for length in [0, 3, 11, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&file, &bytes[..length]).unwrap();
        let ledger = Arc::new(MemoryLedger::default());
        let error = run_backfill(backfill("job", &view, &store, ledger)).await.unwrap_err().to_string();
        assert!(error.contains("b.parquet") && error.contains("not a complete Parquet file"), "{length}: {error}");
    }
    assert!(stored_rows(&store, &view).await.is_empty());
}

fn echo_time() -> Arc<dyn RowTransform> {
    NativeTransform::shared(
        "echo_time",
        true,
        vec![Field::new("seen", DataType::Timestamp, true), Field::new("small", DataType::Int64, true)],
        vec![Field::new("seen_out", DataType::Timestamp, true), Field::new("small_out", DataType::Int64, true)],
        |input| Outcome::Row(input.to_vec()),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_reach_the_transform_in_utc_microseconds_floored_before_1970_too() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(&folder.path().join("in/odd.parquet"), &odd_types(), 10);
    let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
    let mut spec = source("odd", &folder.path().join("in"));
    spec.event_time = eadem_offline::EventTime::Literal(at("2000-01-01T00:00:00Z"));
    spec.known_at = KnownAt::After(60_000_000);
    spec.columns = vec![("seen".into(), "nanos".into()), ("card".into(), "concat('c', small)".into())];
    let view = view("odd", spec, echo_time());
    run_backfill(backfill("job", &view, &store, Arc::new(MemoryLedger::default()))).await.unwrap();
    let rows = stored_rows(&store, &view).await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].key, "c7");
    assert_eq!(rows[0].values, [Value::Timestamp(-1), Value::Int64(7)]);
    assert_eq!(rows[0].order.known_at_us, at("2000-01-01T00:01:00Z"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_leaves_rows_out_and_row_numbers_count_before_it() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(&folder.path().join("in/p.parquet"), &plain(), 2);
    let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
    for (name, filter) in [("on_file", "note is not null"), ("on_computed", "half > 0.4 and note is not null")] {
        let mut spec = source("payments", &folder.path().join("in"));
        spec.columns = vec![("half".into(), "amount / 2".into())];
        spec.filter = Some(filter.into());
        let view = view(name, spec, double_amount());
        let report = run_backfill(backfill("job", &view, &store, Arc::new(MemoryLedger::default()))).await.unwrap();
        assert_eq!((report.rows_read, report.rows_stored, report.rows_left_out), (3, 2, 1));
        let sequence: Vec<i64> = stored_rows(&store, &view).await.iter().map(|row| row.sequence).collect();
        assert_eq!(sequence, [0, 2]);
    }
}

/// The recipe of the demonstration's `landed_at`: local `arr_time` (hhmm at the destination) as an instant.
#[tokio::test]
async fn local_times_of_real_flights_become_instants() {
    let flights = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/data/flights.parquet");
    let mut spec = source("landings", &flights);
    let departed = "(time_hour + arrow_cast(60000000 * (minute + dep_delay), 'Duration(Microsecond)'))";
    spec.columns = vec![
        ("departed_at".into(), departed.into()),
        ("left_at_hour".into(), format!("date_part('hour', {departed} at time zone 'America/Chicago')")),
    ];
    spec.event_time = eadem_offline::EventTime::Column("departed_at".into());
    let columns = inspect(&spec).await.unwrap();
    let of = |name: &str| columns.iter().find(|column| column.name == name).unwrap().data_type;
    assert_eq!(of("departed_at"), Some(DataType::Timestamp));
    assert_eq!(of("left_at_hour"), Some(DataType::Int64));
}

/// One bad value is one refused row, whatever made it bad and wherever it stands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_cannot_be_had_refuses_its_row_and_no_other() {
    let rows: Vec<(Option<&str>, &str, Option<f64>, Option<&str>)> =
        [Some("12"), Some("twelve"), None, Some("0"), Some("-3"), Some("9999999999999999999"), Some("7")]
            .into_iter()
            .map(|note| (Some("a"), "2023-05-01T10:00:00Z", Some(1.0), note))
            .collect();
    let (seconds, lists): (ArrayRef, ArrayRef) = (
        Arc::new(TimestampSecondArray::from(vec![1, 1, 1, 1, i64::MAX, 1, 1]).with_timezone("UTC")),
        Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>([
            Some(vec![Some(1)]),
            Some(vec![Some(1)]),
            Some(vec![]),
            None,
            Some(vec![Some(1)]),
            Some(vec![Some(1)]),
            Some(vec![Some(1), None]),
        ])),
    );
    let plain = payments(&rows);
    let schema = plain.schema();
    let columns = schema.fields().iter().map(|field| field.name().clone()).zip(plain.columns().to_vec());
    let columns = columns.chain([("seconds".to_owned(), seconds), ("lists".to_owned(), lists)]);
    let batch = RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap();
    let transform = NativeTransform::shared(
        "echo",
        true,
        vec![
            Field::new("number", DataType::Int64, true),
            Field::new("seconds", DataType::Timestamp, true),
            Field::new("lists", DataType::List(ElementType::Int64), true),
        ],
        vec![Field::new("number_out", DataType::Int64, true)],
        |input| Outcome::Row(vec![input[0].clone()]),
    );
    for (name, filter) in [("all", None), ("some", Some("number is null or number <> 0"))] {
        let folder = tempfile::tempdir().unwrap();
        write_parquet(&folder.path().join("in/p.parquet"), &batch, 10);
        let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
        let mut spec = source("payments", &folder.path().join("in"));
        spec.columns = vec![("number".into(), "cast(note as bigint)".into())];
        spec.filter = filter.map(str::to_owned);
        let view = view(name, spec, transform.clone());
        let report = run_backfill(backfill("job", &view, &store, Arc::new(MemoryLedger::default()))).await.unwrap();
        let stored = stored_rows(&store, &view).await;
        let seen: Vec<(i64, &Value)> = stored.iter().map(|row| (row.sequence, &row.values[0])).collect();
        let zero = (3, &Value::Int64(0));
        let kept = [(0, &Value::Int64(12)), (2, &Value::Null)];
        let expected: Vec<_> = kept.into_iter().chain(filter.is_none().then_some(zero)).collect();
        assert_eq!(seen, expected);
        let refused: Vec<(&str, u64)> = report.refused.iter().map(|(kind, rows)| (kind.as_str(), *rows)).collect();
        assert_eq!(
            refused,
            [
                ("column `lists` cannot be converted to list(int64)", 1),
                ("column `number` cannot be computed", 2),
                ("column `seconds` cannot be converted to timestamp", 1),
            ]
        );
        assert_eq!(report.rows_left_out, u64::from(filter.is_some()));
    }
}

/// Which half of a batch an expression meets first must not decide whether its row is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_division_by_zero_that_is_ruled_out_refuses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("card", Arc::new(StringArray::from(vec!["a", "b", "c", "d"]))),
        ("amount", Arc::new(Int64Array::from(vec![4, 0, 2, 0]))),
    ];
    write_parquet(&folder.path().join("in/p.parquet"), &RecordBatch::try_from_iter(columns).unwrap(), 10);
    let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
    let mut spec = source("payments", &folder.path().join("in"));
    spec.event_time = eadem_offline::EventTime::Literal(at("2000-01-01T00:00:00Z"));
    spec.columns = vec![
        ("guarded".into(), "case when amount = 0 then -1 else 8 / amount end".into()),
        ("plain".into(), "8 / amount".into()),
    ];
    let transform = |name: &'static str| {
        let input = Field::new(name, DataType::Int64, true);
        let output = Field::new("out", DataType::Int64, true);
        NativeTransform::shared(name, true, vec![input], vec![output], |input| Outcome::Row(input.to_vec()))
    };
    let run = async |name: &str, input: &'static str, filter: Option<&str>| {
        let spec = SourceSpec { filter: filter.map(str::to_owned), ..spec.clone() };
        let view = view(name, spec, transform(input));
        run_backfill(backfill("job", &view, &store, Arc::new(MemoryLedger::default()))).await.unwrap()
    };
    assert_eq!(run("guarded", "guarded", None).await.rows_refused(), 0);
    let plain = run("plain", "plain", None).await;
    assert_eq!((plain.rows_stored, plain.refused["column `plain` cannot be computed"]), (2, 2));
    // A value of a row that is left out is nobody's concern; one that `where` itself asks for leaves open what it says.
    let filtered = run("filtered", "plain", Some("guarded > 0")).await;
    assert_eq!((filtered.rows_stored, filtered.rows_left_out, filtered.rows_refused()), (2, 2, 0));
    let asked = run("asked", "guarded", Some("plain > 2")).await;
    assert_eq!((asked.rows_stored, asked.rows_left_out, asked.rows_refused()), (1, 1, 2));
}
