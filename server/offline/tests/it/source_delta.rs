//! Delta tables that others write: what is loaded of them, and what is refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use eadem_offline::{
    BackfillReport, EventTime, MemoryLedger, OfflineError, Origin, SourceSpec, ViewSpec, inspect, run_backfill,
};
use eadem_values::{DataType, Value};
use serde_json::{Value as Json, json};

use crate::support::{at, backfill, echo, source, store_in, stored_rows, write_parquet};

/// A table of somebody else, commit by commit.
struct Theirs {
    folder: PathBuf,
    version: u64,
}

impl Theirs {
    fn make(folder: &Path, columns: &[(&str, &str)], partitions: &[&str], properties: Json) -> Self {
        let fields: Vec<Json> = columns
            .iter()
            .map(|(name, kind)| json!({ "name": name, "type": kind, "nullable": true, "metadata": {} }))
            .collect();
        let schema = json!({ "type": "struct", "fields": fields }).to_string();
        let mut table = Self { folder: folder.join("theirs"), version: 0 };
        let metadata = json!({
            "id": "0a0a0a0a-0000-4000-8000-000000000001", "format": { "provider": "parquet", "options": {} },
            "schemaString": schema, "partitionColumns": partitions, "configuration": properties, "createdTime": 0,
        });
        table.commit(
            "CREATE TABLE",
            &[json!({ "protocol": { "minReaderVersion": 1, "minWriterVersion": 2 } }), json!({ "metaData": metadata })],
        );
        table
    }

    fn commit(&mut self, operation: &str, actions: &[Json]) {
        let log = self.folder.join("_delta_log");
        std::fs::create_dir_all(&log).unwrap();
        let info = json!({ "commitInfo": { "timestamp": 0, "operation": operation } });
        let lines: Vec<String> = std::iter::once(&info).chain(actions).map(Json::to_string).collect();
        std::fs::write(log.join(format!("{:020}.json", self.version)), lines.join("\n") + "\n").unwrap();
        self.version += 1;
    }

    /// Writes a file and gives the action that adds it.
    fn file(&self, path: &str, partition: Json, changes: bool, columns: Vec<(&str, ArrayRef)>) -> Json {
        let batch =
            RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)));
        // The log's paths are URLs.
        let file = self.folder.join(path.replace("%20", " ").replace("%3A", ":"));
        write_parquet(&file, &batch.unwrap(), 100);
        let size = std::fs::metadata(file).unwrap().len();
        json!({ "add": {
            "path": path, "partitionValues": partition, "size": size, "modificationTime": 0, "dataChange": changes,
        } })
    }

    fn cards(&self, path: &str, changes: bool, cards: &[&str]) -> Json {
        self.file(path, json!({}), changes, vec![("card", Arc::new(StringArray::from(cards.to_vec())))])
    }
}

fn removed(path: &str, changes: bool) -> Json {
    json!({ "remove": { "path": path, "dataChange": changes, "deletionTimestamp": 0 } })
}

fn spec(folder: &Path) -> SourceSpec {
    let mut spec = source("theirs", folder);
    spec.origin = Origin::Delta { location: folder.join("theirs").to_str().unwrap().to_owned() };
    spec.event_time = EventTime::Literal(at("2000-01-01T00:00:00Z"));
    spec
}

async fn load(job: &str, folder: &Path, view: &ViewSpec) -> Result<BackfillReport, OfflineError> {
    run_backfill(backfill(job, view, &store_in(folder), Arc::new(MemoryLedger::default()))).await
}

async fn keys(folder: &Path, view: &ViewSpec) -> Vec<String> {
    let mut keys: Vec<String> = stored_rows(&store_in(folder), view).await.into_iter().map(|row| row.key).collect();
    keys.sort();
    keys
}

const CARD: [(&str, DataType); 1] = [("card", DataType::Utf8)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn later_jobs_load_what_was_added_and_not_what_was_compacted() {
    let folder = tempfile::tempdir().unwrap();
    let mut theirs = Theirs::make(folder.path(), &[("card", "string")], &[], json!({}));
    theirs.commit("WRITE", &[theirs.cards("1.parquet", true, &["a"]), theirs.cards("2.parquet", true, &["b"])]);
    let view = echo("v", &spec(folder.path()), &CARD);
    assert_eq!(load("first", folder.path(), &view).await.unwrap().rows_stored, 2);
    let added = theirs.cards("3.parquet", true, &["c"]);
    theirs.commit("WRITE", &[added]);
    let compacted = theirs.cards("all.parquet", false, &["a", "b", "c"]);
    theirs.commit(
        "OPTIMIZE",
        &[removed("1.parquet", false), removed("2.parquet", false), removed("3.parquet", false), compacted],
    );
    let later = load("later", folder.path(), &view).await.unwrap();
    assert_eq!((later.files, later.rows_stored, later.files_vanished.len()), (1, 1, 0));
    assert_eq!(keys(folder.path(), &view).await, ["a", "b", "c"]);
    let again = load("again", folder.path(), &view).await.unwrap();
    assert_eq!((again.files, again.files_already_loaded.len()), (0, 3));
    // Another view comes to the table as it is now.
    let mut other = view.clone();
    other.name = "other".into();
    assert_eq!(load("other", folder.path(), &other).await.unwrap().rows_stored, 3);
    assert_eq!(keys(folder.path(), &other).await, ["a", "b", "c"]);
}

/// A row that was never loaded may be deleted or updated; one that was may not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletions_of_loaded_rows_are_refused_and_others_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let mut theirs = Theirs::make(folder.path(), &[("card", "string")], &[], json!({}));
    theirs.commit("WRITE", &[theirs.cards("1.parquet", true, &["a"])]);
    let view = echo("v", &spec(folder.path()), &CARD);
    load("first", folder.path(), &view).await.unwrap();
    let new = theirs.cards("2.parquet", true, &["wrong"]);
    theirs.commit("WRITE", &[new]);
    let right = theirs.cards("3.parquet", true, &["right"]);
    theirs.commit("UPDATE", &[removed("2.parquet", true), right]);
    load("later", folder.path(), &view).await.unwrap();
    assert_eq!(keys(folder.path(), &view).await, ["a", "right"]);
    theirs.commit("DELETE", &[removed("1.parquet", true)]);
    let error = load("deleted", folder.path(), &view).await.unwrap_err().to_string();
    assert!(error.contains("version 4 of the table") && error.contains("(DELETE) took away rows"), "{error}");
    assert!(error.contains("those of 1.parquet") && error.contains("--recompute"), "{error}");
    assert_eq!(keys(folder.path(), &view).await, ["a", "right"]);
    // Computed anew, the view has what the table has; later jobs go on from there.
    let mut anew = backfill("anew", &view, &store_in(folder.path()), Arc::new(MemoryLedger::default()));
    anew.options.recompute = true;
    let report = run_backfill(anew).await.unwrap();
    assert_eq!((report.rows_stored, report.rows_removed), (1, 2));
    assert_eq!(keys(folder.path(), &view).await, ["right"]);
    let last = theirs.cards("4.parquet", true, &["z"]);
    theirs.commit("WRITE", &[last]);
    assert_eq!(load("last", folder.path(), &view).await.unwrap().rows_stored, 1);
    assert_eq!(keys(folder.path(), &view).await, ["right", "z"]);
}

async fn load_range(
    job: &str,
    folder: &Path,
    view: &ViewSpec,
    range_us: Option<(i64, i64)>,
    recompute: bool,
) -> Result<BackfillReport, OfflineError> {
    let mut job = backfill(job, view, &store_in(folder), Arc::new(MemoryLedger::default()));
    (job.options.range_us, job.options.recompute) = (range_us, recompute);
    run_backfill(job).await
}

/// A range of which a job has loaded rows is known as well as the whole table is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_away_rows_that_were_loaded_of_a_range_is_refused() {
    let range = Some((at("1999-01-01T00:00:00Z"), at("2001-01-01T00:00:00Z")));
    let another = Some((at("2001-01-01T00:00:00Z"), at("2002-01-01T00:00:00Z")));
    for (operation, is_deletion) in [("DELETE", true), ("OPTIMIZE", false)] {
        let folder = tempfile::tempdir().unwrap();
        let mut theirs = Theirs::make(folder.path(), &[("card", "string")], &[], json!({}));
        theirs.commit("WRITE", &[theirs.cards("1.parquet", true, &["a"]), theirs.cards("2.parquet", true, &["b"])]);
        let view = echo("v", &spec(folder.path()), &CARD);
        assert_eq!(load_range("range", folder.path(), &view, range, false).await.unwrap().rows_stored, 2);
        let added = theirs.cards("3.parquet", true, &["c"]);
        theirs.commit("WRITE", &[added]);
        assert_eq!(load_range("more", folder.path(), &view, range, false).await.unwrap().rows_stored, 1);
        let rest: &[&str] = if is_deletion { &["b"] } else { &["a", "b"] };
        let rewritten = theirs.cards("4.parquet", is_deletion, rest);
        let gone = [removed("1.parquet", is_deletion), removed("2.parquet", is_deletion), rewritten];
        theirs.commit(operation, &gone);
        for asked in [None, another] {
            let error = load_range("later", folder.path(), &view, asked, false).await.unwrap_err().to_string();
            assert!(error.contains("has no file 1.parquet any more") && error.contains("--recompute"), "{error}");
        }
        assert_eq!(load_range("same", folder.path(), &view, range, false).await.is_err(), is_deletion, "{operation}");
        assert_eq!(keys(folder.path(), &view).await, ["a", "b", "c"], "{operation}");

        load_range("anew", folder.path(), &view, None, true).await.unwrap();
        let expected: &[&str] = if is_deletion { &["b", "c"] } else { &["a", "b", "c"] };
        assert_eq!(keys(folder.path(), &view).await, expected, "{operation}");
        assert_eq!(load("last", folder.path(), &view).await.unwrap().files, 0, "{operation}");
    }
}

/// A file that came after the last job without a range may have been loaded by one with a range.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_away_a_file_that_came_since_and_was_loaded_in_part_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut theirs = Theirs::make(folder.path(), &[("card", "string")], &[], json!({}));
    theirs.commit("WRITE", &[theirs.cards("1.parquet", true, &["a"])]);
    let view = echo("v", &spec(folder.path()), &CARD);
    load("whole", folder.path(), &view).await.unwrap();
    let added = theirs.cards("2.parquet", true, &["wrong"]);
    theirs.commit("WRITE", &[added]);
    let range = Some((at("1999-01-01T00:00:00Z"), at("2001-01-01T00:00:00Z")));
    assert_eq!(load_range("range", folder.path(), &view, range, false).await.unwrap().rows_stored, 1);
    let right = theirs.cards("3.parquet", true, &["right"]);
    theirs.commit("UPDATE", &[removed("2.parquet", true), right]);
    let error = load("later", folder.path(), &view).await.unwrap_err().to_string();
    assert!(error.contains("(UPDATE) took away rows") && error.contains("those of 2.parquet"), "{error}");
    load_range("anew", folder.path(), &view, range, true).await.unwrap();
    assert_eq!(keys(folder.path(), &view).await, ["a", "right"]);
    assert_eq!(load("last", folder.path(), &view).await.unwrap().rows_stored, 0);
    assert_eq!(keys(folder.path(), &view).await, ["a", "right"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletion_vectors_and_column_mapping_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut theirs = Theirs::make(folder.path(), &[("card", "string")], &[], json!({}));
    theirs.commit("WRITE", &[theirs.cards("1.parquet", true, &["a", "b"])]);
    let view = echo("v", &spec(folder.path()), &CARD);
    load("first", folder.path(), &view).await.unwrap();
    let mut marked = theirs.cards("2.parquet", true, &["c", "d"]);
    marked["add"]["deletionVector"] = json!({ "storageType": "u", "pathOrInlineDv": "vBn[lx{q8@P<9BNH/isA", "offset": 1, "sizeInBytes": 36, "cardinality": 1 });
    theirs.commit("DELETE", &[marked]);
    let error = load("marked", folder.path(), &view).await.unwrap_err().to_string();
    assert!(error.contains("marks rows of 2.parquet as deleted"), "{error}");
    std::fs::remove_file(folder.path().join("theirs/_delta_log/00000000000000000002.json")).unwrap();
    theirs.version = 2;
    let more = theirs.cards("3.parquet", true, &["e"]);
    theirs.commit("WRITE", &[more]);
    assert_eq!(load("more", folder.path(), &view).await.unwrap().rows_stored, 1);

    let mapped = tempfile::tempdir().unwrap();
    Theirs::make(mapped.path(), &[("card", "string")], &[], json!({ "delta.columnMapping.mode": "name" }));
    let error = inspect(&spec(mapped.path())).await.unwrap_err().to_string();
    assert!(error.contains("columns are mapped"), "{error}");
    let nowhere = tempfile::tempdir().unwrap();
    std::fs::create_dir(nowhere.path().join("theirs")).unwrap();
    let error = inspect(&spec(nowhere.path())).await.unwrap_err().to_string();
    assert!(error.contains("there is no Delta table"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_and_columns_have_the_types_of_the_table() {
    let folder = tempfile::tempdir().unwrap();
    let columns = [
        ("card", "string"),
        ("count", "long"),
        ("seen", "timestamp"),
        ("hour", "timestamp"),
        ("region", "integer"),
        ("late", "string"),
    ];
    let mut theirs = Theirs::make(folder.path(), &columns, &["hour", "region"], json!({}));
    let rows = |count: ArrayRef| -> Vec<(&str, ArrayRef)> {
        vec![
            ("card", Arc::new(StringArray::from(vec!["a"]))),
            ("count", count),
            // As 96-bit times are read: without a zone.
            ("seen", Arc::new(TimestampNanosecondArray::from(vec![1_500]))),
        ]
    };
    let first = theirs.file(
        "hour=2024-01-01%2010%3A00%3A00/1.parquet",
        json!({ "hour": "2024-01-01 10:00:00", "region": "7" }),
        true,
        rows(Arc::new(Int32Array::from(vec![1]))),
    );
    let second = theirs.file(
        "2.parquet",
        json!({ "hour": null, "region": "" }),
        true,
        rows(Arc::new(Int64Array::from(vec![1 << 40]))),
    );
    theirs.commit("WRITE", &[first, second]);
    let spec = spec(folder.path());
    let found: Vec<_> = inspect(&spec).await.unwrap().into_iter().map(|column| column.data_type.unwrap()).collect();
    let time = DataType::Timestamp;
    assert_eq!(found, [DataType::Utf8, DataType::Int64, time, time, DataType::Int64, DataType::Utf8]);
    let wanted = [
        ("count", DataType::Int64),
        ("seen", DataType::Timestamp),
        ("hour", DataType::Timestamp),
        ("region", DataType::Int64),
        ("late", DataType::Utf8),
    ];
    let view = echo("v", &spec, &wanted);
    load("job", folder.path(), &view).await.unwrap();
    let mut rows: Vec<Vec<Value>> =
        stored_rows(&store_in(folder.path()), &view).await.into_iter().map(|row| row.values).collect();
    rows.sort_by_key(|values| format!("{:?}", values[0]));
    let hour = Value::Timestamp(at("2024-01-01T10:00:00Z"));
    assert_eq!(
        rows,
        [
            vec![Value::Int64(1), Value::Timestamp(1), hour, Value::Int64(7), Value::Null],
            vec![Value::Int64(1 << 40), Value::Timestamp(1), Value::Null, Value::Null, Value::Null],
        ]
    );
    let wrong: Vec<(&str, ArrayRef)> =
        vec![("card", Arc::new(StringArray::from(vec!["b"]))), ("count", Arc::new(StringArray::from(vec!["x"])))];
    let wrong = theirs.file("3.parquet", json!({ "hour": null, "region": null }), true, wrong);
    theirs.commit("WRITE", &[wrong]);
    let error = load("wrong", folder.path(), &view).await.unwrap_err().to_string();
    assert!(error.contains("3.parquet: column `count` is Utf8, but Int64 in the table"), "{error}");
}
