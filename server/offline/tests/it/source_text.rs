//! CSV and JSON lines: declared types, exact values, rows that are none.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use eadem_offline::{
    BackfillReport, CsvFormat, EventTime, MemoryLedger, OfflineError, OfflineStore, Origin, SourceSpec, ViewSpec,
    inspect, run_backfill,
};
use eadem_values::{DataType, ElementType, Value};
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::support::{at, backfill, echo, source, stored_rows};

fn write(path: &Path, text: impl AsRef<[u8]>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn zipped(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut encoder = GzEncoder::new(std::fs::File::create(path).unwrap(), Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap();
}

fn types(types: &[(&str, DataType)]) -> BTreeMap<String, DataType> {
    types.iter().map(|(name, data_type)| ((*name).to_owned(), *data_type)).collect()
}

fn csv(folder: &Path, format: CsvFormat, declared: &[(&str, DataType)]) -> SourceSpec {
    let mut spec = source("rows", folder);
    spec.origin = Origin::Csv { locations: vec![folder.join("in").to_str().unwrap().to_owned()], format };
    spec.types = types(declared);
    spec.event_time = EventTime::Literal(at("2000-01-01T00:00:00Z"));
    spec
}

fn json(folder: &Path, declared: &[(&str, DataType)]) -> SourceSpec {
    let mut spec = csv(folder, CsvFormat::default(), declared);
    spec.origin = Origin::Json { locations: vec![folder.join("in").to_str().unwrap().to_owned()] };
    spec
}

async fn load(
    folder: &Path,
    view: &ViewSpec,
    chunk_rows: u64,
) -> Result<(BackfillReport, Vec<(i64, Vec<Value>)>), OfflineError> {
    let store = OfflineStore::open(folder.join("out").to_str().unwrap()).unwrap();
    let mut job = backfill(&format!("job-{}", view.name), view, &store, Arc::new(MemoryLedger::default()));
    job.options.chunk_rows = chunk_rows;
    let report = run_backfill(job).await?;
    let rows = stored_rows(&store, view).await;
    Ok((report, rows.into_iter().map(|row| (row.sequence, row.values)).collect()))
}

/// The quarantine of a view, as (row, reason, inputs).
async fn quarantined(folder: &Path, view: &str) -> Vec<(i64, String, String)> {
    let root = folder.join(format!("out/quarantine/{view}/v1"));
    let mut rows = Vec::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "parquet") {
            continue;
        }
        let file = std::fs::File::open(path).unwrap();
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        for batch in reader.build().unwrap() {
            let batch = batch.unwrap();
            let text = |name: &str, row: usize| {
                let column = arrow_cast::cast(batch.column_by_name(name).unwrap(), &arrow_schema::DataType::Utf8);
                column.unwrap().as_string::<i32>().value(row).to_owned()
            };
            let numbers = batch.column_by_name("row").unwrap().as_primitive::<Int64Type>();
            rows.extend(
                (0..batch.num_rows()).map(|row| (numbers.value(row), text("reason", row), text("inputs", row))),
            );
        }
    }
    rows.sort();
    rows
}

const PAYMENTS: &str = "card,amount,count,seen,ok,note\r\n\
    a,0.1,9007199254740993,2024-01-01T00:00:00.000001Z,true,plain\r\n\
    b,,,,,\r\n\
    \r\n\
    c,1e308,-9223372036854775808,2024-01-01T02:00:00+02:00,F,\"\"\r\n\
    d,5e-324,0,2024-01-01T00:00:00Z,0,\"two\nlines, \"\"quoted\"\"\"\r\n";

const PAYMENT_TYPES: [(&str, DataType); 5] = [
    ("amount", DataType::Float64),
    ("count", DataType::Int64),
    ("seen", DataType::Timestamp),
    ("ok", DataType::Boolean),
    ("note", DataType::Utf8),
];

fn payment_rows() -> Vec<(i64, Vec<Value>)> {
    let text = |text: &str| Value::Utf8(text.to_owned());
    let time = |text: &str| Value::Timestamp(at(text));
    let (exact, least) = (Value::Int64(9_007_199_254_740_993), Value::Int64(i64::MIN));
    let seen = time("2024-01-01T00:00:00.000001Z");
    vec![
        (0, vec![Value::Float64(0.1), exact, seen, Value::Boolean(true), text("plain")]),
        (1, vec![Value::Null; 5]),
        (2, vec![Value::Float64(1e308), least, time("2024-01-01T00:00:00Z"), Value::Boolean(false), text("")]),
        (
            3,
            vec![
                Value::Float64(5e-324),
                Value::Int64(0),
                time("2024-01-01T00:00:00Z"),
                Value::Boolean(false),
                text("two\nlines, \"quoted\""),
            ],
        ),
    ]
}

/// However a file is cut and whether it is compressed, the rows and their numbers are the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn csv_is_read_in_its_declared_types_and_in_any_cut() {
    for (name, is_zipped, chunk_rows) in [("one", false, 100), ("each", false, 1), ("two", false, 2), ("zip", true, 1)]
    {
        let folder = tempfile::tempdir().unwrap();
        match is_zipped {
            true => zipped(&folder.path().join("in/p.csv.gz"), &format!("\u{feff}{PAYMENTS}")),
            false => write(&folder.path().join("in/p.csv"), format!("\u{feff}{PAYMENTS}")),
        }
        let spec = csv(folder.path(), CsvFormat::default(), &PAYMENT_TYPES[..4]);
        let view = echo(name, &spec, &PAYMENT_TYPES);
        let (report, rows) = load(folder.path(), &view, chunk_rows).await.unwrap();
        assert_eq!(rows, payment_rows(), "{name}");
        let chunks = match (is_zipped, chunk_rows) {
            (false, 1) => 4,
            (false, 2) => 2,
            _ => 1,
        };
        assert_eq!((report.rows_read, report.chunks_done_now), (4, chunks), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn csv_may_have_another_delimiter_another_null_and_no_names() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("in/day=1/p.csv"), "a;NA;0.5\nb;\"NA\";NA\n");
    let names = ["card", "note", "amount"].map(str::to_owned).to_vec();
    let format = CsvFormat { delimiter: b';', null: "NA".into(), names: Some(names) };
    let spec = csv(folder.path(), format, &[("amount", DataType::Float64)]);
    let columns = [("amount", DataType::Float64), ("note", DataType::Utf8), ("day", DataType::Int64)];
    let (_, rows) = load(folder.path(), &echo("v", &spec, &columns), 100).await.unwrap();
    let expected = [
        (0, vec![Value::Float64(0.5), Value::Null, Value::Int64(1)]),
        (1, vec![Value::Null, Value::Utf8("NA".into()), Value::Int64(1)]),
    ];
    assert_eq!(rows, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_csv_that_cannot_be_read_are_refused_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    write(
        &folder.path().join("in/p.csv"),
        b"card,amount,other\na,1,x\nb,2\nc,three,x\nd,4,\"x\"y\ne,5,\xff\nf,1e999,x\ng,7,x,y\nh,8,\"never closed\n",
    );
    let spec = csv(folder.path(), CsvFormat::default(), &[("amount", DataType::Float64)]);
    let view = echo("needed", &spec, &[("amount", DataType::Float64)]);
    let (report, rows) = load(folder.path(), &view, 2).await.unwrap();
    let kept: Vec<(i64, Value)> = rows.into_iter().map(|(row, values)| (row, values[0].clone())).collect();
    // A value that nobody asks for harms nobody.
    assert_eq!(kept, [(0, Value::Float64(1.0)), (4, Value::Float64(5.0))]);
    let refused: Vec<(&str, u64)> = report.refused.iter().map(|(kind, rows)| (kind.as_str(), *rows)).collect();
    assert_eq!(refused, [("column `amount` cannot be read as float64", 2), ("the row cannot be read", 4)]);
    assert_eq!(report.rows_read, 8);
    let quarantine = quarantined(folder.path(), "needed").await;
    let reasons: Vec<(i64, &str)> = quarantine.iter().map(|(row, reason, _)| (*row, reason.as_str())).collect();
    assert_eq!(
        reasons,
        [
            (1, "the row cannot be read: it has 2 fields, the columns are 3"),
            (2, "column `amount` cannot be read as float64: `three` is not a number"),
            (3, "the row cannot be read: text follows a closing quote"),
            (5, "column `amount` cannot be read as float64: `1e999` is beyond float64"),
            (6, "the row cannot be read: it has 4 fields, the columns are 3"),
            (7, "the row cannot be read: a quote is never closed"),
        ]
    );
    assert!(quarantine[0].2.ends_with(r#""incomplete":true,"text":"b,2"}"#), "{}", quarantine[0].2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_where_asks_for_and_cannot_be_read_refuses_its_row() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("in/p.csv"), "card,amount,count\na,1,1\nb,x,1\nc,3,x\nd,4,0\ne,5,1\n");
    let mut spec =
        csv(folder.path(), CsvFormat::default(), &[("amount", DataType::Float64), ("count", DataType::Int64)]);
    spec.columns = vec![("some".into(), "count > 0".into())];
    spec.filter = Some("some and card <> 'e'".into());
    let (report, rows) = load(folder.path(), &echo("v", &spec, &[("amount", DataType::Float64)]), 100).await.unwrap();
    assert_eq!(rows, [(0, vec![Value::Float64(1.0)])]);
    assert_eq!((report.rows_left_out, report.rows_refused()), (2, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_is_read_exactly_and_what_is_not_declared_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let lines = [
        r#"{"card":"a","amount":0.1,"count":9007199254740993,"seen":"2024-01-01T00:00:00Z","list":[1,2],"extra":{"x":[]}}"#,
        r#"  {"amount": 123456789012345678, "card": "b", "count": null}  "#,
        "",
        r#"{"card":"c","amount":5e-324,"seen":"2024-07-01T12:00:00"}"#,
        r#"{"card":"d","amount":"12","list":[1]}"#,
        r#"{"card":"e","count":1.5}"#,
        r#"{"card":"f""#,
        r#"["g"]"#,
        r#"{"card":"h","seen":"2024-03-10T02:30:00"}"#,
    ]
    .join("\n");
    for (name, is_zipped) in [("plain", false), ("zip", true)] {
        match is_zipped {
            true => zipped(&folder.path().join(name).join("in/p.jsonl.gz"), &lines),
            false => write(&folder.path().join(name).join("in/p.jsonl"), &lines),
        }
        let declared = [
            ("amount", DataType::Float64),
            ("count", DataType::Int64),
            ("seen", DataType::Timestamp),
            ("list", DataType::List(ElementType::Int64)),
        ];
        let folder = folder.path().join(name);
        let mut spec = json(&folder, &declared);
        spec.types.insert("card".into(), DataType::Utf8);
        spec.time_zone = Some("America/New_York".into());
        let columns = inspect(&spec).await.unwrap();
        let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["amount", "card", "count", "list", "seen"]);
        let (report, rows) = load(&folder, &echo(name, &spec, &declared), 2).await.unwrap();
        let time = |text: &str| Value::Timestamp(at(text));
        let exact = Value::Int64(9_007_199_254_740_993);
        let expected = [
            (0, vec![Value::Float64(0.1), exact, time("2024-01-01T00:00:00Z"), Value::ListInt64(vec![1, 2])]),
            (1, vec![Value::Float64(123_456_789_012_345_678.0), Value::Null, Value::Null, Value::Null]),
            (2, vec![Value::Float64(5e-324), Value::Null, time("2024-07-01T16:00:00Z"), Value::Null]),
        ];
        assert_eq!(rows, expected, "{name}");
        let reasons: Vec<(i64, String)> =
            quarantined(&folder, name).await.into_iter().map(|(row, reason, _)| (row, reason)).collect();
        let starts = [
            (3, "column `amount` cannot be read as float64: "),
            (4, "column `count` cannot be read as int64: "),
            (5, "the line is no JSON object: EOF"),
            (6, "the line is no JSON object: it is another value"),
            (7, "column `seen` cannot be read as timestamp: `2024-03-10T02:30:00` names no single instant"),
        ];
        assert_eq!(reasons.len(), starts.len(), "{reasons:?}");
        for ((row, reason), (expected_row, start)) in reasons.iter().zip(starts) {
            assert!(*row == expected_row && reason.starts_with(start), "{row}: {reason}");
        }
        assert_eq!(report.rows_read, 8);
    }
}

#[tokio::test]
async fn text_without_declarations_or_with_wrong_ones_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("in/a.csv"), "card,amount\na,1\n");
    write(&folder.path().join("in/a.jsonl"), "{}\n");
    let error = async |spec: SourceSpec| inspect(&spec).await.unwrap_err().to_string();
    let undeclared = error(json(folder.path(), &[])).await;
    assert!(undeclared.contains("types: JSON says no types: declare every member"), "{undeclared}");
    let vector = error(csv(folder.path(), CsvFormat::default(), &[("amount", DataType::Vector(3))])).await;
    assert!(vector.contains("types.amount: is declared vector(3), which text does not hold"), "{vector}");
    let unknown = error(csv(folder.path(), CsvFormat::default(), &[("amuont", DataType::Int64)])).await;
    assert!(unknown.contains("no file has a column `amuont`; the columns are card, amount"), "{unknown}");
    write(&folder.path().join("in/b.csv"), "card,card\na,1\n");
    let twice = error(csv(folder.path(), CsvFormat::default(), &[])).await;
    assert!(twice.contains("b.csv: has two columns `card`"), "{twice}");
    write(&folder.path().join("in/b.csv"), "");
    let empty = error(csv(folder.path(), CsvFormat::default(), &[])).await;
    assert!(empty.contains("b.csv: is empty: its first line must name the columns"), "{empty}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compressed_file_cut_short_is_named_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in/p.csv.gz");
    zipped(&path, PAYMENTS);
    let bytes = std::fs::read(&path).unwrap();
    let view = echo("v", &csv(folder.path(), CsvFormat::default(), &[]), &[("note", DataType::Utf8)]);
    for length in [bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let error = load(folder.path(), &view, 100).await.unwrap_err().to_string();
        assert!(error.contains("p.csv.gz: not a whole gzip file"), "{length}: {error}");
    }
    assert!(!folder.path().join("out/views/v/v1").exists());
}

/// Columns of CSV files are united by name, like those of Parquet files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_of_csv_may_be_added_and_moved_from_file_to_file() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("in/1.csv"), "card,amount\na,1\n");
    write(&folder.path().join("in/2.csv"), "note,amount,card\nnew,2,b\n");
    let spec = csv(folder.path(), CsvFormat::default(), &[("amount", DataType::Int64)]);
    let view = echo("v", &spec, &[("amount", DataType::Int64), ("note", DataType::Utf8)]);
    let (_, rows) = load(folder.path(), &view, 100).await.unwrap();
    let mut values: Vec<Vec<Value>> = rows.into_iter().map(|(_, values)| values).collect();
    values.sort_by_key(|values| format!("{values:?}"));
    assert_eq!(values, [vec![Value::Int64(1), Value::Null], vec![Value::Int64(2), Value::Utf8("new".into())]]);
}
