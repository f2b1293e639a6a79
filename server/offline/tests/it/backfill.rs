use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use eadem_offline::{MemoryLedger, OfflineStore, run_backfill};
use eadem_values::Value;

use crate::support::{at, backfill, double_amount, source, stored_rows, view, write_parquet};

pub(crate) fn payments(rows: &[(Option<&str>, &str, Option<f64>, Option<&str>)]) -> RecordBatch {
    let card: ArrayRef = Arc::new(rows.iter().map(|row| row.0).collect::<StringArray>());
    let times: Vec<Option<i64>> = rows.iter().map(|row| (!row.1.is_empty()).then(|| at(row.1))).collect();
    let time: ArrayRef = Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC"));
    let amount: ArrayRef = Arc::new(rows.iter().map(|row| row.2).collect::<Float64Array>());
    let note: ArrayRef = Arc::new(rows.iter().map(|row| row.3).collect::<StringArray>());
    RecordBatch::try_from_iter_with_nullable([
        ("card", card, true),
        ("at", time, true),
        ("amount", amount, true),
        ("note", note, true),
    ])
    .unwrap()
}

fn three_days() -> RecordBatch {
    payments(&[
        (Some("a"), "2023-05-01T10:00:00Z", Some(1.0), Some("x")),
        (Some("b"), "2023-05-02T10:00:00Z", Some(2.0), None),
        (None, "2023-05-02T11:00:00Z", Some(3.0), None),
        (Some("a"), "", Some(4.0), None),
        (Some("a"), "2023-05-03T10:00:00Z", None, None),
        (Some("a"), "2031-05-03T10:00:00Z", Some(5.0), None),
        (Some("c"), "2023-05-03T10:00:00.000001Z", Some(666.0), Some("")),
        (Some("c"), "1899-05-03T10:00:00Z", Some(7.0), Some("")),
    ])
}

async fn backfill_of(folder: &Path) -> (OfflineStore, eadem_offline::ViewSpec, eadem_offline::BackfillReport) {
    write_parquet(&folder.join("in/p.parquet"), &three_days(), 3);
    let store = OfflineStore::open(folder.join("out").to_str().unwrap()).unwrap();
    let view = view("payments", source("payments", &folder.join("in")), double_amount());
    let report = run_backfill(backfill("job-1", &view, &store, Arc::new(MemoryLedger::default()))).await.unwrap();
    (store, view, report)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backfill_stores_what_it_accepts_and_quarantines_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let (store, view, report) = backfill_of(folder.path()).await;
    assert_eq!(report.rows_read, 8);
    assert_eq!(report.rows_stored, 3);
    assert_eq!(report.rows_failed, 1);
    assert_eq!(report.version, Some(1));
    let reasons: Vec<(&str, u64)> = report.refused.iter().map(|(reason, rows)| (reason.as_str(), *rows)).collect();
    assert_eq!(
        reasons,
        [
            ("event time is null", 1),
            ("event time outside 1900 to 2200", 1),
            ("event time too far ahead of its arrival", 1),
            ("input `amount` is null, and the transform does not accept that", 1),
            ("join key `card` is null", 1),
        ]
    );
    let rows = stored_rows(&store, &view).await;
    let seen: Vec<(&str, i64, &[Value], Option<&str>)> =
        rows.iter().map(|row| (row.key.as_str(), row.sequence, row.values.as_slice(), row.error.as_deref())).collect();
    assert_eq!(
        seen,
        [
            ("a", 0, &[Value::Float64(2.0), Value::Utf8("x".into())][..], None),
            ("b", 1, &[Value::Float64(4.0), Value::Null][..], None),
            ("c", 6, &[Value::Null, Value::Null][..], Some("trapped")),
        ]
    );
}
