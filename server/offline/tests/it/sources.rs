//! What `inspect` and a backfill say about sources.

use std::path::Path;
use std::sync::Arc;

use arrow_array::{
    ArrayRef, Date32Array, Decimal128Array, Float32Array, Int32Array, RecordBatch, TimestampMillisecondArray,
    TimestampNanosecondArray, UInt64Array,
};
use eadem_offline::{KnownAt, MemoryLedger, OfflineStore, input_column, inspect, run_backfill};
use eadem_query::RowTransform;
use eadem_values::{DataType, Field, Value, value_at};

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
    NativeTransform::new(
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
