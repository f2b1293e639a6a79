//! The ceiling of jobs: text, replays, compactions and rows that are taken out stay below it, and their results do not
//! depend on it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use eadem_offline::{
    BackfillReport, Cancel, CompactOptions, CompactReport, Compaction, CsvFormat, EventTime, MemoryLedger,
    OfflineError, OfflineStore, Origin, QuarantineFilter, Replay, ReplayOptions, ReplayReport, SourceSpec, ViewSpec,
    compact, run_backfill, run_replay,
};
use eadem_values::{DataType, ElementType};
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::backfill::payments;
use crate::support::{Row, at, backfill, double_amount, echo, source, store_in, stored_rows, view, write_parquet};

const MIB: usize = 1 << 20;
const TIGHT: usize = 8 * MIB;
const AMPLE: usize = 1 << 30;

/// Text of so many bytes that does not shrink when it is compressed, without a character that CSV or JSON must escape.
pub fn noise(seed: usize, bytes: usize) -> String {
    let mut state = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'a' + (state >> 33) as u8 % 26)
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

fn write(path: &Path, text: &str, is_zipped: bool) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    if !is_zipped {
        return std::fs::write(path, text).unwrap();
    }
    let mut encoder = GzEncoder::new(std::fs::File::create(path).unwrap(), Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap();
}

fn text_source(folder: &Path, is_csv: bool) -> SourceSpec {
    let locations = vec![folder.to_str().unwrap().to_owned()];
    let mut spec = source("rows", folder);
    spec.origin = match is_csv {
        true => Origin::Csv { locations, format: CsvFormat::default() },
        false => Origin::Json { locations },
    };
    let text = [("card", DataType::Utf8), ("note", DataType::Utf8), ("amount", DataType::Float64)];
    spec.types = BTreeMap::from(text.map(|(name, data_type)| (name.to_owned(), data_type)));
    if !is_csv {
        spec.types.insert("counts".to_owned(), DataType::List(ElementType::Int64));
    }
    spec.event_time = EventTime::Literal(at("2000-01-01T00:00:00Z"));
    spec
}

fn text_view(folder: &Path, is_csv: bool) -> ViewSpec {
    let mut columns = vec![("amount", DataType::Float64), ("note", DataType::Utf8)];
    if !is_csv {
        columns.push(("counts", DataType::List(ElementType::Int64)));
    }
    echo("rows", &text_source(folder, is_csv), &columns)
}

fn line(is_csv: bool, row: usize, note: &str, counts: usize) -> String {
    match is_csv {
        true => format!("card{},{row}.5,{note}\n", row % 7),
        false => {
            let counts = vec!["1"; counts].join(",");
            format!("{{\"card\":\"card{}\",\"amount\":{row}.5,\"note\":\"{note}\",\"counts\":[{counts}]}}\n", row % 7)
        }
    }
}

async fn load(
    out: &Path,
    view: &ViewSpec,
    memory_bytes_max: usize,
) -> Result<(BackfillReport, Vec<Row>), OfflineError> {
    let store = store_in(out);
    let mut job = backfill("job", view, &store, Arc::new(MemoryLedger::default()));
    job.options.memory_bytes_max = memory_bytes_max;
    job.options.chunk_rows = 600;
    let report = run_backfill(job).await?;
    Ok((report, stored_rows(&store, view).await))
}

/// However wide its rows are, and whether they can be read at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_is_read_in_portions_that_fit() {
    let folder = tempfile::tempdir().unwrap();
    for (case, is_csv, is_zipped) in [("csv", true, false), ("csv.gz", true, true), ("json", false, false)] {
        let input = folder.path().join(case);
        for file in 0..3_usize {
            let mut text = if is_csv { "card,amount,note\n".to_owned() } else { String::new() };
            for row in 0..1_200 {
                let (width, counts) = if row % 3 == 0 { (12_000, 900) } else { (20, 2) };
                text.push_str(&line(is_csv, row, &noise(file * 10_000 + row, width), counts));
                if row % 100 == 0 {
                    text.push_str("neither a row nor an object\n");
                }
            }
            write(&input.join(format!("{file}.{case}")), &text, is_zipped);
        }
        let view = text_view(&input, is_csv);
        let (tight, rows) = load(&input.join("tight"), &view, TIGHT).await.unwrap();
        let (ample, expected) = load(&input.join("ample"), &view, AMPLE).await.unwrap();
        assert!(rows == expected && rows.len() == 3_600, "{case}: {} of {}", rows.len(), expected.len());
        assert_eq!((tight.rows_read, &tight.refused), (ample.rows_read, &ample.refused), "{case}");
        assert_eq!(tight.rows_refused(), 36, "{case}");
        let peak = tight.memory_bytes_peak;
        assert!(peak > 0 && peak <= TIGHT, "{case}: {peak} of {TIGHT}");
        // There is more than would fit.
        assert!(ample.memory_bytes_peak > TIGHT, "{case}: {}", ample.memory_bytes_peak);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_the_ceiling_has_no_room_for_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let long = noise(1, 300_000);
    let fields = ",".repeat(20_000);
    let cases = [
        ("long.csv", true, line(true, 0, &long, 0), "262144 bytes"),
        ("fields.csv", true, line(true, 0, &fields, 0), "262144 bytes"),
        ("long.jsonl", false, line(false, 0, &long, 2), "262144 bytes"),
        // Twenty bytes of text, and a hundred of what is made of it.
        ("list.jsonl", false, line(false, 0, "", 40_000), "1048576 bytes"),
    ];
    for (name, is_csv, text, limit) in cases {
        let input = folder.path().join(name.replace('.', "-"));
        let header = if is_csv { "card,amount,note\n" } else { "" };
        write(&input.join(name), &format!("{header}{text}"), false);
        let view = text_view(&input, is_csv);
        let error = load(&input.join("tight"), &view, TIGHT).await.unwrap_err().to_string();
        for part in [name, "jobs.memory_bytes_max", limit, "raise it"] {
            assert!(error.contains(part), "{name}: {error}");
        }
        assert!(store_in(&input.join("tight")).table(&view).unwrap().version().await.unwrap().is_none(), "{name}");
        let (report, _) = load(&input.join("ample"), &view, AMPLE).await.unwrap();
        assert_eq!(report.rows_read, 1, "{name}");
    }
}

/// Payments of one day, with notes of this width; every `ahead`th, if any, is too far ahead of its arrival.
fn write_payments(path: &Path, rows: usize, first: usize, width: usize, ahead: Option<usize>) {
    let texts: Vec<(String, String, String)> = (first..first + rows)
        .map(|row| {
            let is_ahead = ahead.is_some_and(|ahead| row % ahead == 0);
            let time = if is_ahead { "2024-03-01T10:00" } else { "2023-05-01T10:00" };
            (format!("card{}", row % 50), format!("{time}:{:02}Z", row % 60), noise(row, width))
        })
        .collect();
    let rows: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(row, (card, time, note))| (Some(card.as_str()), time.as_str(), Some(row as f64), Some(note.as_str())))
        .collect();
    write_parquet(path, &payments(&rows), 50);
}

/// A table of payments, loaded under this ceiling.
async fn loaded(folder: &Path, view: &ViewSpec, job: &str, memory_bytes_max: usize) -> (OfflineStore, BackfillReport) {
    let store = store_in(folder);
    let mut job = backfill(job, view, &store, Arc::new(MemoryLedger::default()));
    job.options.memory_bytes_max = memory_bytes_max;
    let report = run_backfill(job).await.unwrap();
    (store, report)
}

fn payments_view(folder: &Path) -> ViewSpec {
    view("payments", source("payments", &folder.join("in")), double_amount())
}

async fn compacted(
    store: &OfflineStore,
    view: &ViewSpec,
    memory_bytes_max: usize,
) -> Result<CompactReport, OfflineError> {
    compact(Compaction {
        job: "compact".to_owned(),
        table: store.table(view).unwrap(),
        options: CompactOptions { memory_bytes_max, ..CompactOptions::default() },
        progress: None,
        cancel: Cancel::default(),
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compaction_puts_together_as_much_as_fits() {
    let folder = tempfile::tempdir().unwrap();
    // 30 MB of one day.
    for file in 0..30 {
        write_payments(&folder.path().join(format!("in/{file:02}.parquet")), 100, file * 100, 10_000, None);
    }
    let view = payments_view(folder.path());
    let mut found = Vec::new();
    for memory_bytes_max in [TIGHT, 32 * MIB, AMPLE] {
        let out = folder.path().join(memory_bytes_max.to_string());
        let (store, _) = loaded(&out, &view, "job", TIGHT).await;
        let before = stored_rows(&store, &view).await;
        let report = compacted(&store, &view, memory_bytes_max).await.unwrap();
        let peak = report.memory_bytes_peak;
        assert!(peak > 0 && peak <= memory_bytes_max, "{peak} of {memory_bytes_max}");
        assert!(stored_rows(&store, &view).await == before && before.len() == 3_000, "{memory_bytes_max}");
        found.push((report, before));
    }
    let [(tight, rows), (middling, rows_middling), (ample, rows_ample)] = &found[..] else { panic!() };
    assert!(rows == rows_middling && rows == rows_ample);
    assert_eq!((ample.files_after, ample.rows), (1, 3_000));
    assert!(ample.memory_bytes_peak > 32 * MIB);
    assert!(middling.files_after > 1 && middling.rows == 3_000, "{middling:?}");
    assert!(middling.files_after < tight.files_after && tight.files_after < ample.files_before, "{tight:?}");

    // Where files come out as many as they went in, they stay.
    let out = folder.path().join("vain");
    let (store, _) = loaded(&out, &view, "job", AMPLE).await;
    let version = store.table(&view).unwrap().version().await.unwrap();
    let files = || walk(&out.join("out/views"));
    let files_before = files();
    let report = compacted(&store, &view, 4 * MIB).await.unwrap();
    assert_eq!((report.version, report.files_after), (None, 0), "{report:?}");
    assert_eq!((store.table(&view).unwrap().version().await.unwrap(), files()), (version, files_before));

    let error = compacted(&store, &view, 100_000).await.unwrap_err().to_string();
    for part in [".parquet", "jobs.memory_bytes_max", "25000", "raise it"] {
        assert!(error.contains(part), "{error}");
    }
}

fn walk(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(walk(&path)),
            false => files.push(path.to_str().unwrap().to_owned()),
        }
    }
    files.sort();
    files
}

/// Rows of a file that has changed go, and what stays of the files that they are in is written again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_taken_out_within_the_ceiling() {
    let folder = tempfile::tempdir().unwrap();
    let changing = folder.path().join("in/changing.parquet");
    let tight = 52 * MIB;
    let mut found = Vec::new();
    for memory_bytes_max in [tight, AMPLE] {
        write_payments(&changing, 100, 0, 10_000, None);
        write_payments(&folder.path().join("in/staying.parquet"), 1_900, 1_000, 10_000, None);
        let view = payments_view(folder.path());
        let out = folder.path().join(memory_bytes_max.to_string());
        let (store, _) = loaded(&out, &view, "first", AMPLE).await;
        assert_eq!(compacted(&store, &view, AMPLE).await.unwrap().files_after, 1);
        write_payments(&changing, 10, 5_000, 10, None);
        let (_, report) = loaded(&out, &view, "second", memory_bytes_max).await;
        assert_eq!((report.rows_removed, report.rows_stored), (100, 10));
        let peak = report.memory_bytes_peak;
        assert!(peak <= memory_bytes_max, "{peak} of {memory_bytes_max}");
        found.push((peak, stored_rows(&store, &view).await));
    }
    assert!(found[0].1 == found[1].1 && found[0].1.len() == 1_910);
    assert!(found[1].0 > tight, "{}", found[1].0);
}

async fn replayed(
    store: &OfflineStore,
    view: &ViewSpec,
    job: &str,
    memory_bytes_max: usize,
) -> Result<ReplayReport, OfflineError> {
    let version = store.quarantine(&view.name, view.version).unwrap().version().await.unwrap();
    run_replay(Replay {
        job: job.to_owned(),
        view: view.clone(),
        store: store.clone(),
        ledger: Arc::new(MemoryLedger::default()),
        options: ReplayOptions {
            created_at_us: at("2024-06-01T00:00:00Z"),
            version: version.unwrap(),
            filter: QuarantineFilter::default(),
            rows_max: 10_000,
            memory_bytes_max,
        },
        progress: None,
        cancel: Cancel::default(),
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_reads_and_tries_as_many_rows_at_a_time_as_fit() {
    let folder = tempfile::tempdir().unwrap();
    // Every second of 3,000 rows of 10 KB is refused.
    for file in 0..3 {
        write_payments(&folder.path().join(format!("in/{file}.parquet")), 1_000, file * 1_000, 10_000, Some(2));
    }
    let view = payments_view(folder.path());
    let mut found = Vec::new();
    for memory_bytes_max in [TIGHT, AMPLE] {
        let (store, report) = loaded(&folder.path().join(memory_bytes_max.to_string()), &view, "job", TIGHT).await;
        assert_eq!(report.rows_refused(), 1_500);
        let report = replayed(&store, &view, "replay", memory_bytes_max).await.unwrap();
        let peak = report.memory_bytes_peak;
        assert!(peak > 0 && peak <= memory_bytes_max, "{peak} of {memory_bytes_max}");
        assert_eq!((report.rows_tried, report.rows_stored, report.rows_left), (1_500, 1_500, 0));
        let again = replayed(&store, &view, "again", memory_bytes_max).await.unwrap();
        assert_eq!((again.rows_tried, again.rows_stored_before), (0, 0), "every row is settled");
        found.push((peak, stored_rows(&store, &view).await));
    }
    assert!(found[0].1 == found[1].1 && found[0].1.len() == 3_000);
    assert!(found[1].0 > TIGHT, "{}", found[1].0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_takes_fewer_rows_where_there_is_no_room_to_note_them_and_refuses_one_that_does_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    write_payments(&folder.path().join("in/a.parquet"), 2_000, 0, 4, Some(1));
    let view = payments_view(folder.path());
    let (store, _) = loaded(folder.path(), &view, "job", AMPLE).await;
    // An eighth of it has room for 682 rows, and then for what is known of these and fewer others.
    let first = replayed(&store, &view, "first", MIB).await.unwrap();
    assert_eq!((first.rows_stored, first.rows_left), (682, 1_318));
    let second = replayed(&store, &view, "second", MIB).await.unwrap();
    assert_eq!((second.rows_stored, second.rows_left), (341, 977));
    let error = replayed(&store, &view, "third", MIB / 2).await.unwrap_err().to_string();
    assert!(error.contains("jobs.memory_bytes_max") && error.contains("earlier replays"), "{error}");
    let rest = replayed(&store, &view, "rest", AMPLE).await.unwrap();
    assert_eq!((rest.rows_stored, stored_rows(&store, &view).await.len()), (977, 2_000));

    let wide = tempfile::tempdir().unwrap();
    write_payments(&wide.path().join("in/wide.parquet"), 1, 0, 300_000, Some(1));
    let view = payments_view(wide.path());
    let (store, _) = loaded(wide.path(), &view, "job", AMPLE).await;
    let error = replayed(&store, &view, "replay", TIGHT).await.unwrap_err().to_string();
    for part in ["row 0 of sha256:", "jobs.memory_bytes_max", "262144", "raise it"] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(replayed(&store, &view, "replay", AMPLE).await.unwrap().rows_stored, 1);
}
