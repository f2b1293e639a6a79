//! Rows that change after their first commit: changed files, and ranges computed anew.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use eadem_offline::{
    BackfillReport, Compaction, FileScan, JobLedger, MemoryLedger, OfflineError, OfflineStore, ReadVersion, ViewSpec,
    compact, run_backfill,
};
use futures::TryStreamExt;

use crate::backfill::{DyingLedger, many, payments};
use crate::support::{Row, at, backfill, double_amount, source, stored_rows, view, write_parquet};

/// A source's folder, and the table that its view is loaded into.
pub struct Place {
    folder: tempfile::TempDir,
    pub store: OfflineStore,
    pub view: ViewSpec,
}

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
        let view = view("payments", source("payments", &folder.path().join("in")), double_amount());
        Self { folder, store, view }
    }

    pub fn root(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    pub fn input(&self, name: &str) -> PathBuf {
        self.folder.path().join("in").join(name)
    }

    pub fn write(&self, name: &str, rows: usize, first: usize) {
        write_parquet(&self.input(name), &many(rows, first), 10);
    }

    pub async fn run(&self, job: &str) -> Result<BackfillReport, OfflineError> {
        self.run_with(job, None, false, Arc::new(MemoryLedger::default())).await
    }

    pub async fn recompute(&self, job: &str, range_us: Option<(i64, i64)>) -> Result<BackfillReport, OfflineError> {
        self.run_with(job, range_us, true, Arc::new(MemoryLedger::default())).await
    }

    pub async fn run_with(
        &self,
        job: &str,
        range_us: Option<(i64, i64)>,
        recompute: bool,
        ledger: Arc<dyn JobLedger>,
    ) -> Result<BackfillReport, OfflineError> {
        let mut job = backfill(job, &self.view, &self.store, ledger);
        job.options.range_us = range_us;
        job.options.recompute = recompute;
        job.options.chunk_rows = 20;
        run_backfill(job).await
    }

    pub async fn rows(&self) -> Vec<Row> {
        stored_rows(&self.store, &self.view).await
    }

    /// What a table that was never anything else holds of the files as they are now.
    pub async fn rows_of_a_new_table(&self) -> Vec<Row> {
        let folder = tempfile::tempdir().unwrap();
        let store = OfflineStore::open(folder.path().to_str().unwrap()).unwrap();
        run_backfill(backfill("new", &self.view, &store, Arc::new(MemoryLedger::default()))).await.unwrap();
        stored_rows(&store, &self.view).await
    }

    pub fn compaction(&self, job: &str) -> Compaction {
        Compaction {
            job: job.to_owned(),
            table: self.store.table(&self.view).unwrap(),
            options: eadem_offline::CompactOptions::default(),
            progress: None,
            cancel: eadem_offline::Cancel::default(),
        }
    }
}

/// How many rows another reader of Delta sees at a version, and at the current one.
async fn count_at(root: &Path, version: u64) -> usize {
    let location = url::Url::from_directory_path(root.join("views/payments/v1")).unwrap();
    let mut table = deltalake_core::open_table(location).await.unwrap();
    table.load_version(version).await.unwrap();
    let context = datafusion::prelude::SessionContext::new();
    context.register_table("t", table.table_provider().await.unwrap()).unwrap();
    context.sql("select * from t").await.unwrap().count().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_file_takes_the_place_of_its_old_rows_in_one_commit() {
    let place = Place::new();
    place.write("a.parquet", 30, 0);
    place.write("b.parquet", 20, 500);
    place.run("first").await.unwrap();
    let before = place.rows().await;

    place.write("a.parquet", 41, 7);
    let replaced = place.run("second").await.unwrap();
    assert_eq!(replaced.files_replaced, ["a.parquet"]);
    assert_eq!((replaced.version, replaced.files, replaced.rows_removed), (Some(2), 1, 27));
    assert_eq!(place.rows().await, place.rows_of_a_new_table().await);
    // The commit before stays as it was, for other readers too.
    assert_eq!(count_at(&place.root(), 1).await, before.len());
    assert_eq!(count_at(&place.root(), 2).await, replaced.rows_stored as usize + 18);

    // Nothing has changed: nothing is loaded, nothing is replaced.
    let again = place.run("third").await.unwrap();
    assert_eq!((again.version, again.files, again.rows_removed), (Some(2), 0, 0));
    assert!(again.files_replaced.is_empty());

    // Back to its first content: that was taken out, so it is loaded again.
    place.write("a.parquet", 30, 0);
    let back = place.run("fourth").await.unwrap();
    assert_eq!((back.files, back.version), (1, Some(3)));
    assert_eq!(place.rows().await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_job_again_reports_the_same_replacement() {
    let place = Place::new();
    place.write("a.parquet", 30, 0);
    place.run("first").await.unwrap();
    place.write("a.parquet", 41, 7);
    let ledger = Arc::new(MemoryLedger::default());
    let one = place.run_with("second", None, false, ledger.clone()).await.unwrap();
    let again = place.run_with("second", None, false, ledger).await.unwrap();
    assert_eq!((again.version, again.rows_removed, &again.files_replaced), (Some(2), 27, &one.files_replaced));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_that_moves_to_another_file_is_neither_loaded_twice_nor_lost() {
    let place = Place::new();
    place.write("a.parquet", 30, 0);
    place.run("first").await.unwrap();
    let first = place.rows().await;

    // It was renamed, and its old name has another content.
    std::fs::rename(place.input("a.parquet"), place.input("b.parquet")).unwrap();
    place.write("a.parquet", 20, 500);
    let moved = place.run("second").await.unwrap();
    assert_eq!((moved.files, moved.rows_removed), (1, 0));
    assert_eq!(place.rows().await, place.rows_of_a_new_table().await);

    // Now the one that has it changes: its rows go.
    place.write("b.parquet", 10, 900);
    let gone = place.run("third").await.unwrap();
    assert_eq!((gone.files_replaced.as_slice(), gone.rows_removed), (&["b.parquet".to_owned()][..], 27));
    let rows = place.rows().await;
    assert!(rows.iter().all(|row| row.lane != first[0].lane));
    assert_eq!(rows, place.rows_of_a_new_table().await);

    // A file becomes a copy of another: nothing is to be loaded, its own rows go.
    std::fs::copy(place.input("a.parquet"), place.input("b.parquet")).unwrap();
    let copied = place.run("fourth").await.unwrap();
    assert_eq!((copied.files, copied.files_replaced.as_slice()), (0, &["b.parquet".to_owned()][..]));
    assert_eq!(place.rows().await, place.rows_of_a_new_table().await);
}

/// A file that has another name is the file that it was, whatever the job does that meets it under the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_was_renamed_is_replaced_when_it_changes_later() {
    let (march, june) = (at("2023-03-01T00:00:00Z"), at("2023-06-01T00:00:00Z"));
    for (range_us, recompute) in
        [(None, false), (Some((march, june)), false), (None, true), (Some((march, june)), true)]
    {
        let context = format!("{range_us:?}, recompute: {recompute}");
        let place = Place::new();
        place.write("may.parquet", 30, 0);
        place.write("other.parquet", 20, 500);
        place.run("first").await.unwrap();
        let before = place.rows().await;

        std::fs::rename(place.input("may.parquet"), place.input("2024-05.parquet")).unwrap();
        let renamed = place.run_with("second", range_us, recompute, Arc::new(MemoryLedger::default())).await.unwrap();
        let names = ("may.parquet".to_owned(), "2024-05.parquet".to_owned());
        assert_eq!((renamed.version, renamed.files_renamed), (Some(2), vec![names]), "{context}");
        assert!(renamed.files_vanished.is_empty() && renamed.files_replaced.is_empty(), "{context}");
        assert_eq!(place.rows().await, before, "{context}");
        if !recompute {
            let changed =
                actions(&place, 2).iter().any(|action| !action["add"].is_null() || !action["remove"].is_null());
            assert!(!changed, "{context}: the commit does more than it has to");
        }
        let again = place.run("again").await.unwrap();
        assert_eq!((again.version, again.files_renamed.len(), again.files), (Some(2), 0, 0), "{context}");

        place.write("2024-05.parquet", 41, 7);
        let replaced = place.run("third").await.unwrap();
        assert_eq!(
            (replaced.files_replaced.as_slice(), replaced.rows_removed),
            (&["2024-05.parquet".to_owned()][..], 27),
            "{context}"
        );
        assert_eq!(place.rows().await, place.rows_of_a_new_table().await, "{context}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_compaction_files_hold_several_lanes_and_are_written_again_without_one() {
    let place = Place::new();
    place.write("a.parquet", 30, 0);
    place.write("b.parquet", 20, 500);
    place.run("first").await.unwrap();
    let compacted = compact(place.compaction("compact")).await.unwrap();
    assert_eq!(compacted.version, Some(2));
    assert!(compacted.files_after < compacted.files_before, "{compacted:?}");
    place.write("a.parquet", 41, 7);
    let replaced = place.run("second").await.unwrap();
    assert_eq!((replaced.version, replaced.rows_removed), (Some(3), 27));
    assert_eq!(place.rows().await, place.rows_of_a_new_table().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_with_a_range_does_not_replace_what_was_loaded_outside_of_it() {
    let place = Place::new();
    let (march, june) = (at("2023-03-01T00:00:00Z"), at("2023-06-01T00:00:00Z"));
    place.write("a.parquet", 90, 0);
    let spring = Some((march, june));
    place.run_with("spring", spring, false, Arc::new(MemoryLedger::default())).await.unwrap();
    place.write("a.parquet", 80, 3);
    // What was loaded lies within the job's range.
    let replaced = place.run_with("again", spring, false, Arc::new(MemoryLedger::default())).await.unwrap();
    assert!(replaced.rows_removed > 0);
    let expected: Vec<Row> = place.rows_of_a_new_table().await;
    let in_spring = |row: &&Row| (march..june).contains(&row.order.event_time_us);
    assert_eq!(place.rows().await, expected.iter().filter(in_spring).cloned().collect::<Vec<_>>());

    place.run("all").await.unwrap();
    assert_eq!(place.rows().await, expected);
    place.write("a.parquet", 70, 5);
    let refused =
        place.run_with("part", spring, false, Arc::new(MemoryLedger::default())).await.unwrap_err().to_string();
    assert!(refused.contains("a.parquet") && refused.contains("outside this job's range"), "{refused}");
    assert_eq!(place.rows().await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_is_computed_anew_from_the_files_that_are_there() {
    for is_compacted in [false, true] {
        let place = Place::new();
        let range = (at("2023-03-11T00:00:00Z"), at("2023-06-11T12:00:00Z"));
        let within = |row: &Row| (range.0..range.1).contains(&row.order.event_time_us);
        place.write("a.parquet", 90, 0);
        place.write("b.parquet", 40, 500);
        place.write("gone.parquet", 30, 900);
        place.run("first").await.unwrap();
        let before = place.rows().await;
        if is_compacted {
            compact(place.compaction("compact")).await.unwrap();
        }
        let version = place.store.table(&place.view).unwrap().version().await.unwrap().unwrap();
        let b_lane = before.iter().find(|row| row.values[0] == eadem_values::Value::Float64(2.0)).unwrap().lane.clone();
        std::fs::remove_file(place.input("gone.parquet")).unwrap();
        place.write("b.parquet", 35, 555);
        place.write("late.parquet", 25, 300);

        let report = place.recompute("recompute", Some(range)).await.unwrap();
        assert_eq!(report.version, Some(version + 1), "compacted: {is_compacted}");
        assert_eq!(report.files_vanished, ["gone.parquet"]);
        assert_eq!((report.files, report.files_replaced.as_slice()), (3, &["b.parquet".to_owned()][..]));
        assert!(report.rows_removed > 0);

        // In the range: what the files give now, and the rows of the file that is gone. Outside: what was there.
        let rows = place.rows().await;
        let new = place.rows_of_a_new_table().await;
        let is_of_a_file = |row: &&Row| new.iter().any(|other| other.lane == row.lane);
        let in_range = |rows: &[Row]| rows.iter().filter(|row| within(row)).cloned().collect::<Vec<_>>();
        let outside = |rows: &[Row]| rows.iter().filter(|row| !within(row)).cloned().collect::<Vec<_>>();
        assert_eq!(outside(&rows), outside(&before), "compacted: {is_compacted}, lane {b_lane}");
        let (of_files, of_gone): (Vec<Row>, Vec<Row>) = in_range(&rows).into_iter().partition(|row| is_of_a_file(&row));
        assert_eq!(of_files, in_range(&new), "compacted: {is_compacted}");
        let gone_before = in_range(&before).into_iter().filter(|row| of_gone.iter().any(|gone| gone.lane == row.lane));
        assert!(!of_gone.is_empty());
        assert_eq!(of_gone, gone_before.collect::<Vec<_>>());
        assert_eq!(count_at(&place.root(), version).await, before.len());

        // What the range left open is loaded by the next job: the new file's other rows, and the changed file's.
        place.run("rest").await.unwrap();
        let rest: Vec<Row> = place.rows().await.into_iter().filter(|row| is_of_a_file(&row)).collect();
        assert_eq!(rest, new, "compacted: {is_compacted}");
        // And then there is nothing more to do.
        assert_eq!(place.run("nothing").await.unwrap().files, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn computing_everything_anew_leaves_the_same_rows() {
    let place = Place::new();
    place.write("a.parquet", 90, 0);
    place.run("first").await.unwrap();
    let before = place.rows().await;
    let report = place.recompute("again", None).await.unwrap();
    assert_eq!((report.rows_removed, report.rows_stored), (before.len() as u64, before.len() as u64));
    assert_eq!(place.rows().await, before);
    assert_eq!(place.run("nothing").await.unwrap().files, 0);
    assert_eq!(place.store.table(&place.view).unwrap().withdrawn_at().await.unwrap(), Some(2));
}

/// A content that comes back after a part of it was recomputed from another one is loaded again where it is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_content_that_was_taken_out_in_part_is_loaded_again_in_part() {
    let place = Place::new();
    let range = (at("2023-03-01T00:00:00Z"), at("2023-06-01T00:00:00Z"));
    place.write("a.parquet", 90, 0);
    place.run("first").await.unwrap();
    let before = place.rows().await;
    place.write("a.parquet", 80, 5);
    place.recompute("spring", Some(range)).await.unwrap();
    assert_ne!(place.rows().await, before);
    place.write("a.parquet", 90, 0);
    let back = place.run("back").await.unwrap();
    assert!(back.rows_out_of_range > 0 && back.rows_removed > 0, "{back:?}");
    assert_eq!(place.rows().await, before);
}

/// A job that dies with its chunks done is resumed after another has replaced the same file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replacement_that_others_have_overtaken_is_refused() {
    for recompute in [false, true] {
        let place = Place::new();
        place.write("a.parquet", 15, 0);
        place.run("first").await.unwrap();
        place.write("a.parquet", 16, 3);
        let ledger = Arc::new(MemoryLedger::default());
        let dying = DyingLedger { inner: ledger.clone(), calls_left: AtomicI64::new(8) };
        place.run_with("late", None, recompute, Arc::new(dying)).await.unwrap_err();
        place.write("a.parquet", 17, 5);
        place.run("other").await.unwrap();
        let rows = place.rows().await;
        let refused = place.run_with("late", None, recompute, ledger).await.unwrap_err().to_string();
        assert!(refused.contains("a.parquet") && refused.contains("by another job"), "{refused}");
        assert_eq!(place.rows().await, rows);
    }
}

/// Jobs that add, replace and compact at once: all of them arrive, in whatever order.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_replacement_an_append_and_a_compaction_at_once_all_arrive() {
    for round in 0..4 {
        let place = Place::new();
        place.write("a.parquet", 60, 0);
        place.write("b.parquet", 40, 500);
        place.run("first").await.unwrap();
        place.write("a.parquet", 50, 7 + round);
        let elsewhere = tempfile::tempdir().unwrap();
        write_parquet(&elsewhere.path().join("c.parquet"), &many(30, 900), 10);
        let other = view("payments", source("payments", elsewhere.path()), double_amount());
        let append = run_backfill(backfill("append", &other, &place.store, Arc::new(MemoryLedger::default())));
        let (replaced, appended, compacted) =
            tokio::join!(place.run("replace"), append, compact(place.compaction("compact")));
        let versions = [replaced.unwrap().version, appended.unwrap().version, compacted.unwrap().version];
        let latest = versions.iter().flatten().max().copied();
        assert_eq!(place.store.table(&place.view).unwrap().version().await.unwrap(), latest, "round {round}");
        std::fs::copy(elsewhere.path().join("c.parquet"), place.input("c.parquet")).unwrap();
        assert_eq!(place.rows().await, place.rows_of_a_new_table().await, "round {round}");
    }
}

/// Two lanes with the same rows are two rows each: taking one lane out leaves the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_rows_of_another_file_stay() {
    let place = Place::new();
    let row = (Some("a"), "2023-05-01T10:00:00Z", Some(1.0), None);
    let other = (Some("b"), "2023-05-01T11:00:00Z", Some(2.0), None);
    write_parquet(&place.input("a.parquet"), &payments(&[row]), 10);
    write_parquet(&place.input("b.parquet"), &payments(&[row, other]), 10);
    place.run("first").await.unwrap();
    compact(place.compaction("compact")).await.unwrap();
    write_parquet(&place.input("a.parquet"), &payments(&[other]), 10);
    assert_eq!(place.run("second").await.unwrap().rows_removed, 1);
    assert_eq!(place.rows().await, place.rows_of_a_new_table().await);
}

/// Rows that were loaded elsewhere from an older version may be rows that are gone: beside them that version is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_rows_of_an_older_version_a_table_is_read_as_it_was_if_rows_went_since() {
    let place = Place::new();
    let beside = |version: u64| {
        let table = place.store.table(&place.view).unwrap();
        async move { table.version_beside(version).await.unwrap() }
    };
    assert_eq!(beside(1).await, ReadVersion::NoTable);
    place.write("a.parquet", 30, 0);
    place.run("first").await.unwrap();
    place.write("b.parquet", 20, 500);
    place.run("append").await.unwrap();
    assert_eq!(beside(1).await, ReadVersion::At(2));
    place.write("a.parquet", 31, 7);
    place.run("replace").await.unwrap();
    compact(place.compaction("compact")).await.unwrap();
    let expected = [(1, 1), (2, 2), (3, 4), (4, 4)];
    for (version, read) in expected {
        assert_eq!(beside(version).await, ReadVersion::At(read), "beside {version}");
    }
}

fn actions(place: &Place, version: u64) -> Vec<serde_json::Value> {
    let log = place.root().join(format!("views/payments/v1/_delta_log/{version:020}.json"));
    std::fs::read_to_string(log).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A lane goes by whole files: none of the table's other data is read or written again, also where the log was put together
/// in a checkpoint.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_of_its_own_files_goes_without_writing_others_again() {
    let place = Place::new();
    place.write("a.parquet", 60, 0);
    place.write("b.parquet", 40, 500);
    place.run("first").await.unwrap();
    let location = url::Url::from_directory_path(place.root().join("views/payments/v1")).unwrap();
    let table = deltalake_core::open_table(location).await.unwrap();
    deltalake_core::checkpoints::create_checkpoint(&table, None).await.unwrap();
    place.write("a.parquet", 60, 7);
    let report = place.run("second").await.unwrap();
    let actions = actions(&place, 2);
    let rows = |add: &serde_json::Value| {
        let stats: serde_json::Value = serde_json::from_str(add["stats"].as_str().unwrap()).unwrap();
        stats["numRecords"].as_u64().unwrap()
    };
    let added: u64 = actions.iter().filter(|action| !action["add"].is_null()).map(|action| rows(&action["add"])).sum();
    assert_eq!(added, report.rows_stored);
    assert!(actions.iter().any(|action| action["remove"]["dataChange"] == true));
    assert_eq!(place.rows().await, place.rows_of_a_new_table().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_since_a_commit_is_told_only_where_nothing_else_has_happened() {
    let place = Place::new();
    let table = place.store.table(&place.view).unwrap();
    let rows_since = async |commit: u64| {
        let added = table.scan_added_in_parts(commit, 2).await.unwrap()?;
        let mut rows = 0;
        for part in added.parts {
            let batches: Vec<_> = part.map_ok(|file| file.rows).try_flatten().try_collect().await.unwrap();
            rows += batches.iter().map(|batch| batch.len()).sum::<usize>();
        }
        Some((added.version, rows))
    };
    assert_eq!(rows_since(0).await, None, "there is no table");
    place.write("a.parquet", 30, 0);
    let first = place.run("first").await.unwrap().rows_stored as usize;
    place.write("b.parquet", 20, 500);
    let second = place.run("second").await.unwrap().rows_stored as usize;
    assert_eq!(rows_since(0).await, Some((2, first + second)));
    assert_eq!(rows_since(1).await, Some((2, second)));
    assert_eq!(rows_since(2).await, Some((2, 0)));
    assert_eq!(rows_since(3).await, None, "a commit that is not there yet");

    // Files are put together: no row goes, and those of before may be among what came.
    compact(place.compaction("compact")).await.unwrap();
    assert_eq!(rows_since(3).await, Some((3, 0)));
    assert!(rows_since(1).await.is_some_and(|(version, rows)| version == 3 && rows >= second));

    // Rows are taken out in version 4: whoever holds an earlier state cannot be brought to the new one by rows that came.
    place.write("a.parquet", 41, 7);
    place.run("third").await.unwrap();
    for commit in 0..=3 {
        assert_eq!(rows_since(commit).await, None, "since {commit}");
    }
    assert_eq!(rows_since(4).await, Some((4, 0)));
    place.write("c.parquet", 10, 900);
    let last = place.run("fourth").await.unwrap().rows_stored as usize;
    assert_eq!(rows_since(4).await, Some((5, last)));
    assert_eq!(rows_since(3).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_of_a_scan_is_the_files_of_its_version_that_were_not_read() {
    let place = Place::new();
    let table = place.store.table(&place.view).unwrap();
    let rest = async |version: u64, read: &HashSet<String>| {
        let rest = table.scan_rest_in_parts(version, read, 2).await.unwrap()?;
        let (mut files, mut rows) = (Vec::new(), 0);
        for part in rest.parts {
            let scans: Vec<FileScan> = part.try_collect().await.unwrap();
            for scan in scans {
                let batches: Vec<_> = scan.rows.try_collect().await.unwrap();
                rows += batches.iter().map(|batch| batch.len()).sum::<usize>();
                files.push(scan.path);
            }
        }
        assert_eq!((rest.version, rest.files), (version, files.len()));
        Some((files, rows))
    };
    place.write("a.parquet", 30, 0);
    let first = place.run("first").await.unwrap().rows_stored as usize;
    let (of_first, rows) = rest(1, &HashSet::new()).await.unwrap();
    assert_eq!(rows, first);
    place.write("b.parquet", 20, 500);
    let second = place.run("second").await.unwrap().rows_stored as usize;
    // Files that came later are none of its version's.
    assert_eq!(rest(1, &HashSet::new()).await.unwrap().1, first);
    let read: HashSet<String> = of_first.into_iter().collect();
    assert_eq!(rest(1, &read).await.unwrap(), (Vec::new(), 0));
    let (of_second, rows) = rest(2, &read).await.unwrap();
    assert_eq!(rows, second);
    // A file that is gone is told from one that cannot be read: then another version may do.
    let file = table.location().url.to_file_path().unwrap().join(&of_second[0]);
    let bytes = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let gone = table.scan_rest_in_parts(2, &read, 1).await.unwrap().unwrap().parts.remove(0).try_next().await;
    assert!(matches!(gone.map(drop), Err(OfflineError::Vacuumed { .. })), "a file that is gone");
    std::fs::write(&file, bytes).unwrap();
    assert_eq!(rest(3, &read).await, None, "a version that is not there yet");
    // Rows are taken out in version 3.
    place.write("a.parquet", 41, 7);
    place.run("third").await.unwrap();
    assert_eq!(rest(2, &read).await, None);
}
