//! Sources of several files: what their folders say, and columns that were added, moved or widened.

use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, Float32Array, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray};
use eadem_offline::{EventTime, MemoryLedger, OfflineStore, SourceSpec, ViewSpec, inspect, run_backfill};
use eadem_values::{DataType, Value};

use crate::support::{at, backfill, echo, source, store_in, stored_rows, write_parquet};

/// A source of these files of columns, with one event time for all rows.
fn files(folder: &Path, files: &[(&str, Vec<(&str, ArrayRef)>)]) -> SourceSpec {
    for (path, columns) in files {
        let batch = RecordBatch::try_from_iter_with_nullable(
            columns.iter().map(|(name, column)| (*name, column.clone(), true)),
        );
        write_parquet(&folder.join("in").join(path), &batch.unwrap(), 2);
    }
    let mut spec = source("files", &folder.join("in"));
    spec.event_time = EventTime::Literal(at("2000-01-01T00:00:00Z"));
    spec
}

/// (key, values) of all rows, in the order of keys.
async fn stored(store: &OfflineStore, view: &ViewSpec) -> Vec<(String, Vec<Value>)> {
    let mut rows: Vec<_> = stored_rows(store, view).await.into_iter().map(|row| (row.key, row.values)).collect();
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    rows
}

fn text(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_may_be_added_moved_and_widened_from_file_to_file() {
    let folder = tempfile::tempdir().unwrap();
    let first: Vec<(&str, ArrayRef)> = vec![
        ("card", text(&["a", "b"])),
        ("count", Arc::new(Int32Array::from(vec![1, 2]))),
        ("amount", Arc::new(Float32Array::from(vec![0.1, 0.5]))),
    ];
    let second: Vec<(&str, ArrayRef)> = vec![
        ("note", text(&["new"])),
        ("amount", Arc::new(Float64Array::from(vec![0.1]))),
        ("count", Arc::new(Int64Array::from(vec![1 << 40]))),
        ("card", text(&["c"])),
    ];
    let spec = files(folder.path(), &[("1.parquet", first), ("2.parquet", second)]);
    let columns = inspect(&spec).await.unwrap();
    let found: Vec<(&str, DataType)> = columns.iter().map(|c| (c.name.as_str(), c.data_type.unwrap())).collect();
    let expected =
        [("card", DataType::Utf8), ("count", DataType::Int64), ("amount", DataType::Float64), ("note", DataType::Utf8)];
    assert_eq!(found, expected);
    let mut filtered = spec.clone();
    filtered.columns = vec![("noted".into(), "coalesce(note, 'none')".into())];
    filtered.filter = Some("count <> 2".into());
    let view =
        echo("v", &filtered, &[("count", DataType::Int64), ("amount", DataType::Float64), ("noted", DataType::Utf8)]);
    let store = store_in(folder.path());
    let report = run_backfill(backfill("job", &view, &store, Arc::new(MemoryLedger::default()))).await.unwrap();
    assert_eq!((report.rows_read, report.rows_stored, report.rows_left_out), (3, 2, 1));
    let row =
        |count, amount, noted: &str| vec![Value::Int64(count), Value::Float64(amount), Value::Utf8(noted.to_owned())];
    let expected = [("a".to_owned(), row(1, f64::from(0.1_f32), "none")), ("c".to_owned(), row(1 << 40, 0.1, "new"))];
    assert_eq!(stored(&store, &view).await, expected);
}

#[tokio::test]
async fn files_that_cannot_be_united_are_named_with_both_types() {
    let folder = tempfile::tempdir().unwrap();
    let card = |value: ArrayRef| vec![("card", text(&["a"])), ("amount", value)];
    let spec = files(
        folder.path(),
        &[
            ("1.parquet", card(Arc::new(Int32Array::from(vec![1])))),
            ("2.parquet", card(Arc::new(Int64Array::from(vec![1])))),
            ("3.parquet", card(Arc::new(Float64Array::from(vec![1.0])))),
        ],
    );
    let error = inspect(&spec).await.unwrap_err().to_string();
    assert!(error.contains("3.parquet: column `amount` is Float64, but Int64 in "), "{error}");
    assert!(error.contains("2.parquet; no type holds both exactly"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_folders_say_are_columns_with_types() {
    let folder = tempfile::tempdir().unwrap();
    let rows = |card: &str| vec![("card", text(&[card]))];
    let spec = files(
        folder.path(),
        &[
            ("day=2024-01-01/region=1/part.parquet", rows("a")),
            // The same bytes elsewhere are other rows.
            ("day=2024-01-02/region=07/part.parquet", rows("a")),
            ("day=2024-01-03/region=__HIVE_DEFAULT_PARTITION__/part.parquet", rows("c")),
            ("day=a%20b/part.parquet", rows("d")),
        ],
    );
    let types = |columns: Vec<eadem_offline::InspectedColumn>| -> Vec<(String, DataType)> {
        columns.into_iter().map(|column| (column.name, column.data_type.unwrap())).collect()
    };
    let named = |name: &str, data_type| (name.to_owned(), data_type);
    let found = types(inspect(&spec).await.unwrap());
    assert_eq!(found, [named("card", DataType::Utf8), named("day", DataType::Utf8), named("region", DataType::Int64)]);
    let mut declared = spec.clone();
    declared.types.insert("region".into(), DataType::Utf8);
    declared.columns = vec![("card".into(), "concat(card, day)".into())];
    for (name, spec, data_type) in [("found", &spec, DataType::Int64), ("declared", &declared, DataType::Utf8)] {
        let view = echo(name, spec, &[("day", DataType::Utf8), ("region", data_type)]);
        let store = store_in(folder.path());
        let report = run_backfill(backfill("job", &view, &store, Arc::new(MemoryLedger::default()))).await.unwrap();
        assert_eq!((report.files, report.rows_stored), (4, 4), "{name}");
        let mut found: Vec<Vec<Value>> = stored_rows(&store, &view).await.into_iter().map(|row| row.values).collect();
        found.sort_by_key(|values| format!("{values:?}"));
        let region = |number: i64, text: &str| match data_type {
            DataType::Int64 => Value::Int64(number),
            _ => Value::Utf8(text.to_owned()),
        };
        let day = |text: &str| Value::Utf8(text.to_owned());
        let expected = [
            vec![day("2024-01-01"), region(1, "1")],
            vec![day("2024-01-02"), region(7, "07")],
            vec![day("2024-01-03"), Value::Null],
            vec![day("a b"), Value::Null],
        ];
        assert_eq!(found, expected, "{name}");
        let again = run_backfill(backfill("again", &view, &store, Arc::new(MemoryLedger::default()))).await.unwrap();
        assert_eq!((again.files, again.files_already_loaded.len()), (0, 4), "{name}");
    }
}

#[tokio::test]
async fn a_folder_that_is_not_what_it_is_declared_to_be_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut spec = files(folder.path(), &[("hour=x/part.parquet", vec![("card", text(&["a"]))])]);
    spec.types.insert("hour".into(), DataType::Int64);
    let error = inspect(&spec).await.unwrap_err().to_string();
    assert!(error.contains("hour=x/part.parquet: its partition hour=…: `x` is not an integer"), "{error}");
    spec.types.insert("hour".into(), DataType::Binary);
    let error = inspect(&spec).await.unwrap_err().to_string();
    assert!(error.contains("types.hour: is declared binary, which text does not hold"), "{error}");
    spec.types = [("card".to_owned(), DataType::Int64)].into();
    let error = inspect(&spec).await.unwrap_err().to_string();
    assert!(error.contains("types.card: no folder of the files gives a column `card`"), "{error}");
}
