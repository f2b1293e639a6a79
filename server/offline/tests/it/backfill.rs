//! Backfills over real files into real tables, disturbed in every way that a job can be.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use eadem_offline::{
    BackfillReport, ChunkOutcome, Claim, JobLedger, JobPlan, LedgerError, MemoryLedger, OfflineError, OfflineStore,
    Part, Progress, ScanRange, ViewSpec, plan_backfill, run_backfill,
};
use eadem_query::{RowTransform, ValidationPolicy};
use eadem_values::{Constraint, DataType, Field, Literal, Value};
use object_store::local::LocalFileSystem;

use crate::support::{
    FullDisk, NativeTransform, Outcome, at, backfill, double_amount, source, stored_rows, view, write_parquet,
};

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

async fn backfill_of(folder: &Path) -> (OfflineStore, ViewSpec, BackfillReport) {
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

/// A ledger whose n-th call fails, as if the process had died there.
pub(crate) struct DyingLedger {
    pub(crate) inner: Arc<MemoryLedger>,
    pub(crate) calls_left: AtomicI64,
}

impl DyingLedger {
    fn step(&self) -> Result<(), LedgerError> {
        if self.calls_left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            return Err(LedgerError("killed".to_owned()));
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl JobLedger for DyingLedger {
    async fn plan(&self, job: &str) -> Result<Option<JobPlan>, LedgerError> {
        self.step()?;
        self.inner.plan(job).await
    }

    async fn save_plan(&self, job: &str, plan: JobPlan) -> Result<JobPlan, LedgerError> {
        self.step()?;
        let saved = self.inner.save_plan(job, plan).await?;
        self.step()?;
        Ok(saved)
    }

    async fn claim(&self, job: &str, parts: &[Part]) -> Result<Claim, LedgerError> {
        self.step()?;
        self.inner.claim(job, parts).await
    }

    async fn release(&self, job: &str, part: Part) -> Result<(), LedgerError> {
        self.step()?;
        self.inner.release(job, part).await
    }

    async fn chunks_done(&self, job: &str) -> Result<BTreeSet<usize>, LedgerError> {
        self.step()?;
        self.inner.chunks_done(job).await
    }

    async fn outcomes(&self, job: &str) -> Result<Vec<ChunkOutcome>, LedgerError> {
        self.step()?;
        self.inner.outcomes(job).await
    }

    async fn save_outcome(&self, job: &str, outcome: ChunkOutcome) -> Result<bool, LedgerError> {
        self.step()?;
        let is_first = self.inner.save_outcome(job, outcome).await?;
        self.step()?;
        Ok(is_first)
    }

    async fn begin_commit(&self, job: &str) -> Result<bool, LedgerError> {
        self.step()?;
        self.inner.begin_commit(job).await
    }

    async fn committed(&self, job: &str, version: u64) -> Result<(), LedgerError> {
        self.step()?;
        self.inner.committed(job, version).await
    }
}

pub(crate) fn many(rows: usize, first: usize) -> RecordBatch {
    let texts: Vec<(String, String)> = (first..first + rows)
        .map(|row| (format!("card{}", row % 7), format!("2023-0{}-1{}T10:00:00Z", 1 + row % 9, row % 3)))
        .collect();
    let rows: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(row, (card, time))| {
            (
                Some(card.as_str()),
                time.as_str(),
                (row % 11 != 0).then_some(row as f64),
                Some("n").filter(|_| row % 2 == 0),
            )
        })
        .collect();
    payments(&rows)
}

async fn log_versions(store: &OfflineStore, view: &ViewSpec) -> u64 {
    store.table(view).unwrap().version().await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_killed_anywhere_and_run_again_ends_in_the_same_rows_and_one_commit() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    write_parquet(&input.join("a.parquet"), &many(100, 0), 10);
    write_parquet(&input.join("b.parquet"), &many(50, 500), 10);
    let view = view("payments", source("payments", &input), double_amount());
    let job_in = |store: &OfflineStore, ledger: Arc<dyn JobLedger>| {
        let mut job = backfill("job-1", &view, store, ledger);
        job.options.chunk_rows = 20;
        job
    };
    let open = |name: &str| OfflineStore::open(folder.path().join(name).to_str().unwrap()).unwrap();
    let undisturbed = open("undisturbed");
    run_backfill(job_in(&undisturbed, Arc::new(MemoryLedger::default()))).await.unwrap();
    let expected = stored_rows(&undisturbed, &view).await;
    assert_eq!(expected.len(), 150 - 10 - 5);

    let mut died_after = 0;
    loop {
        let store = open(&format!("killed-{died_after}"));
        let ledger = Arc::new(MemoryLedger::default());
        let dying = DyingLedger { inner: ledger.clone(), calls_left: AtomicI64::new(died_after) };
        let killed = run_backfill(job_in(&store, Arc::new(dying))).await;
        let visible = stored_rows(&store, &view).await;
        assert!(visible.is_empty() || visible == expected, "died after {died_after}: part of a job was visible");
        // Whoever is gone holds nothing.
        ledger.expire_claims("job-1");
        // Later than planned or not, the job's creation is the arrival of its rows.
        let mut again = job_in(&store, ledger.clone());
        again.options.created_at_us += 1_000_000;
        let report = run_backfill(again).await.unwrap();
        assert_eq!(stored_rows(&store, &view).await, expected, "died after {died_after}");
        assert_eq!(report.version, Some(1));
        assert_eq!(ledger.committed_version("job-1"), Some(1));
        assert_eq!(log_versions(&store, &view).await, 1, "died after {died_after}: more than one commit");
        assert_eq!(report.rows_stored, 135);
        if killed.is_ok() {
            break;
        }
        died_after += 1;
    }
    // Plan and its claim, chunks with theirs, and the commit: each was died in.
    assert!(died_after > 3 + 8 * 3 + 2, "only {died_after} steps were died after");
}

/// Runs a job by several workers, as processes would: each with a run of its own over one ledger.
async fn run_by(
    workers: usize,
    job: impl Fn(usize) -> eadem_offline::Backfill,
) -> Vec<Result<BackfillReport, OfflineError>> {
    let mut runs = tokio::task::JoinSet::new();
    for worker in 0..workers {
        runs.spawn(run_backfill(job(worker)));
    }
    runs.join_all().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn workers_share_a_job_and_commit_it_once() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    write_parquet(&input.join("a.parquet"), &many(300, 0), 10);
    let view = view("payments", source("payments", &input), double_amount());
    for round in 0..4 {
        let store = OfflineStore::open(folder.path().join(format!("out-{round}")).to_str().unwrap()).unwrap();
        let ledger = Arc::new(MemoryLedger::default());
        let reports = run_by(3, |_| {
            let mut job = backfill("job", &view, &store, ledger.clone());
            job.options.chunk_rows = 10;
            job
        });
        let reports: Vec<BackfillReport> = reports.await.into_iter().map(Result::unwrap).collect();
        // 10 rows without an amount are refused in each 110.
        for report in &reports {
            assert_eq!((report.version, report.rows_read, report.rows_stored), (Some(1), 300, 272), "{report:?}");
            let chunks = report.chunks_done_now + report.chunks_done_before + report.chunks_done_elsewhere;
            assert_eq!(chunks, 30, "{report:?}");
        }
        let done: usize = reports.iter().map(|report| report.chunks_done_now).sum();
        assert_eq!(done, 30, "a chunk counts for one worker");
        assert_eq!(log_versions(&store, &view).await, 1);
        let rows = stored_rows(&store, &view).await;
        let mut places: Vec<i64> = rows.iter().map(|row| row.sequence).collect();
        places.dedup();
        assert_eq!((rows.len(), places.len()), (272, 272));
    }
}

/// A worker that is gone holds its chunk until that is known; then another does it, and the job is whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_of_a_worker_that_is_gone_is_waited_for_and_then_done_by_another() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    write_parquet(&input.join("a.parquet"), &many(60, 0), 10);
    let view = view("payments", source("payments", &input), double_amount());
    let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
    let ledger = Arc::new(MemoryLedger::default());
    let mut job = backfill("job", &view, &store, ledger.clone());
    job.options.chunk_rows = 10;
    let plan = plan_backfill(&job).await.unwrap();
    assert_eq!(plan.chunks.len(), 6);
    let claimed = ledger.claim("job", &[Part::Chunk(2)]).await.unwrap();
    assert_eq!(claimed.part, Some(Part::Chunk(2)));

    let all_others_done = Arc::new(tokio::sync::Notify::new());
    let told = all_others_done.clone();
    job.progress = Some(Arc::new(move |progress: &Progress| {
        if progress.chunks_done == 5 {
            told.notify_one();
        }
    }));
    let run = tokio::spawn(run_backfill(job));
    all_others_done.notified().await;
    assert_eq!(ledger.chunks_done("job").await.unwrap(), BTreeSet::from([0, 1, 3, 4, 5]));
    assert!(stored_rows(&store, &view).await.is_empty() && !run.is_finished());
    ledger.expire_claims("job");
    let report = run.await.unwrap().unwrap();
    assert_eq!((report.version, report.chunks_done_now, report.rows_read), (Some(1), 6, 60));
}

/// How far ahead is too far may be changed at any time; a job that is resumed decides as it began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_resumed_takes_as_too_far_ahead_what_it_took_when_it_was_planned() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(&folder.path().join("in/p.parquet"), &three_days(), 3);
    let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
    let mut view = view("payments", source("payments", &folder.path().join("in")), double_amount());
    let ledger = Arc::new(MemoryLedger::default());
    plan_backfill(&backfill("job", &view, &store, ledger.clone())).await.unwrap();
    view.source.max_ahead_us = 20 * 366 * 86_400_000_000;
    let report = run_backfill(backfill("job", &view, &store, ledger)).await.unwrap();
    assert_eq!(report.refused.get("event time too far ahead of its arrival"), Some(&1), "{report:?}");
    let mut anew = backfill("anew", &view, &store, Arc::new(MemoryLedger::default()));
    anew.options.recompute = true;
    let report = run_backfill(anew).await.unwrap();
    assert_eq!(report.refused.get("event time too far ahead of its arrival"), None, "{report:?}");
}

/// Called off by another process at the last moment: the ledger says so, and nothing becomes visible.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_was_called_off_elsewhere_does_not_commit() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    write_parquet(&input.join("a.parquet"), &many(60, 0), 10);
    let view = view("payments", source("payments", &input), double_amount());
    let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
    let inner = Arc::new(MemoryLedger::default());
    let called_off = CalledOffLedger(DyingLedger { inner: inner.clone(), calls_left: AtomicI64::new(i64::MAX) });
    let error = run_backfill(backfill("job", &view, &store, Arc::new(called_off))).await.unwrap_err();
    assert!(matches!(error, OfflineError::Cancelled), "{error}");
    assert!(stored_rows(&store, &view).await.is_empty());
    let report = run_backfill(backfill("job", &view, &store, inner)).await.unwrap();
    assert_eq!((report.chunks_done_now, report.rows_stored), (0, 54));
}

/// A ledger that knows of a wish to stop.
pub(crate) struct CalledOffLedger(pub(crate) DyingLedger);

#[async_trait::async_trait]
impl JobLedger for CalledOffLedger {
    async fn plan(&self, job: &str) -> Result<Option<JobPlan>, LedgerError> {
        self.0.plan(job).await
    }

    async fn save_plan(&self, job: &str, plan: JobPlan) -> Result<JobPlan, LedgerError> {
        self.0.save_plan(job, plan).await
    }

    async fn claim(&self, job: &str, parts: &[Part]) -> Result<Claim, LedgerError> {
        self.0.claim(job, parts).await
    }

    async fn release(&self, job: &str, part: Part) -> Result<(), LedgerError> {
        self.0.release(job, part).await
    }

    async fn chunks_done(&self, job: &str) -> Result<BTreeSet<usize>, LedgerError> {
        self.0.chunks_done(job).await
    }

    async fn outcomes(&self, job: &str) -> Result<Vec<ChunkOutcome>, LedgerError> {
        self.0.outcomes(job).await
    }

    async fn save_outcome(&self, job: &str, outcome: ChunkOutcome) -> Result<bool, LedgerError> {
        self.0.save_outcome(job, outcome).await
    }

    async fn begin_commit(&self, _job: &str) -> Result<bool, LedgerError> {
        Ok(false)
    }

    async fn committed(&self, job: &str, version: u64) -> Result<(), LedgerError> {
        self.0.committed(job, version).await
    }
}

/// Days × files, and rows as wide as pages: what is counted stays below the ceiling, whatever the source is like.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rows_of_a_job_stay_below_its_ceiling() {
    let folder = tempfile::tempdir().unwrap();
    let wide: String = "wide ".repeat(2_000);
    let rows_of = |file: usize, note: &str| {
        let texts: Vec<(String, String)> = (0..1_000)
            .map(|row| {
                let time = at("2020-01-01T00:00:00Z") + row as i64 * 86_400_000_000 / 7;
                // Texts that do not shrink when they are compressed.
                let note = format!("{note}{:016x}", (file * 1_000 + row).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                (eadem_values::format_timestamp(time), note)
            })
            .collect();
        let rows: Vec<_> =
            texts.iter().map(|(time, note)| (Some("card"), time.as_str(), Some(1.0), Some(note.as_str()))).collect();
        payments(&rows)
    };
    for (case, note) in [("days", ""), ("wide", wide.as_str())] {
        let input = folder.path().join(case);
        for file in 0..4 {
            write_parquet(&input.join(format!("{file}.parquet")), &rows_of(file, note), 100);
        }
        let view = view("payments", source("payments", &input), double_amount());
        let mut files_written = Vec::new();
        for memory_bytes_max in [8 << 20, 64 << 20] {
            let out = folder.path().join(format!("{case}-{memory_bytes_max}"));
            let store = OfflineStore::open(out.to_str().unwrap()).unwrap();
            let mut job = backfill("job", &view, &store, Arc::new(MemoryLedger::default()));
            job.options.memory_bytes_max = memory_bytes_max;
            let report = run_backfill(job).await.unwrap();
            assert_eq!(report.rows_stored, 4_000);
            let peak = report.memory_bytes_peak;
            assert!(peak > 0 && peak <= memory_bytes_max, "{case}: {peak} of {memory_bytes_max}");
            let log = log_of(&out.join("views/payments/v1"));
            files_written.push(log.iter().filter(|action| !action["add"].is_null()).count());
        }
        // Had nothing been written before a chunk ended, the small ceiling would have been broken.
        assert_eq!(files_written[0] > files_written[1], case == "wide", "{case}: {files_written:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_group_that_the_ceiling_has_no_room_for_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    write_parquet(&input.join("a.parquet"), &many(5_000, 0), 5_000);
    let view = view("payments", source("payments", &input), double_amount());
    let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
    let mut job = backfill("job", &view, &store, Arc::new(MemoryLedger::default()));
    job.options.memory_bytes_max = 10_000;
    let error = run_backfill(job).await.unwrap_err().to_string();
    assert!(
        error.contains("a.parquet") && error.contains("jobs.memory_bytes_max") && error.contains("2500"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn later_jobs_load_only_what_is_new() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    write_parquet(&input.join("a.parquet"), &many(30, 0), 10);
    let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
    let view = view("payments", source("payments", &input), double_amount());
    let run = |job: &str| run_backfill(backfill(job, &view, &store, Arc::new(MemoryLedger::default())));
    run("first").await.unwrap();
    let first = stored_rows(&store, &view).await;

    let nothing_new = run("second").await.unwrap();
    assert_eq!((nothing_new.version, nothing_new.files), (Some(1), 0));
    assert_eq!(nothing_new.files_already_loaded, ["a.parquet"]);

    // The same bytes at another place of the folder are the same lane.
    std::fs::copy(input.join("a.parquet"), input.join("copy.parquet")).unwrap();
    write_parquet(&input.join("sub/b.parquet"), &many(20, 900), 10);
    let added = run("third").await.unwrap();
    assert_eq!((added.version, added.files, added.rows_read), (Some(2), 1, 20));
    assert_eq!(added.files_already_loaded, ["a.parquet", "copy.parquet"]);
    let both = stored_rows(&store, &view).await;
    assert_eq!(both.iter().filter(|row| row.lane == first[0].lane).count(), first.len());

    std::fs::remove_file(input.join("sub/b.parquet")).unwrap();
    let vanished = run("fourth").await.unwrap();
    assert_eq!(vanished.files_vanished, ["sub/b.parquet"]);
    assert_eq!(stored_rows(&store, &view).await, both);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_ranges_add_up_without_loading_a_row_twice() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    write_parquet(&input.join("a.parquet"), &many(90, 0), 10);
    let view = view("payments", source("payments", &input), double_amount());
    let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
    let run = |job: &str, range_us: Option<(i64, i64)>| {
        let mut job = backfill(job, &view, &store, Arc::new(MemoryLedger::default()));
        job.options.range_us = range_us;
        run_backfill(job)
    };
    let (march, june) = (at("2023-03-01T00:00:00Z"), at("2023-06-01T00:00:00Z"));
    run("spring", Some((march, june))).await.unwrap();
    let spring = stored_rows(&store, &view).await;
    assert!(!spring.is_empty());
    assert!(spring.iter().all(|row| (march..june).contains(&row.order.event_time_us)));
    let again = run("spring-again", Some((march, june))).await.unwrap();
    assert_eq!(again.files, 0);
    run("all", None).await.unwrap();

    let whole = OfflineStore::open(folder.path().join("whole").to_str().unwrap()).unwrap();
    run_backfill(backfill("whole", &view, &whole, Arc::new(MemoryLedger::default()))).await.unwrap();
    assert_eq!(stored_rows(&store, &view).await, stored_rows(&whole, &view).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_that_commit_at_once_both_arrive() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(&folder.path().join("x/a.parquet"), &many(30, 0), 10);
    write_parquet(&folder.path().join("y/b.parquet"), &many(40, 100), 10);
    let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
    let at_folder = |name: &str| view("payments", source("payments", &folder.path().join(name)), double_amount());
    let (x, y) = (at_folder("x"), at_folder("y"));
    let run = |job: &str, view: &ViewSpec| run_backfill(backfill(job, view, &store, Arc::new(MemoryLedger::default())));
    let (one, other) = tokio::join!(run("x", &x), run("y", &y));
    let mut versions = [one.unwrap().version.unwrap(), other.unwrap().version.unwrap()];
    versions.sort_unstable();
    assert_eq!(versions, [1, 2]);
    assert_eq!(stored_rows(&store, &x).await.len(), 30 - 3 + 40 - 4);
}

fn log_of(folder: &Path) -> Vec<serde_json::Value> {
    let mut files: Vec<_> =
        std::fs::read_dir(folder.join("_delta_log")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    let texts = files.iter().map(|file| std::fs::read_to_string(file).unwrap());
    texts.flat_map(|text| text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<_>>()).collect()
}

/// Jobs that all find no table and make it: it is made once, and every job arrives in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn jobs_that_come_first_at_once_make_one_table() {
    const JOBS: usize = 8;
    for round in 0..4 {
        let folder = tempfile::tempdir().unwrap();
        let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
        let mut jobs = tokio::task::JoinSet::new();
        for job in 0..JOBS {
            // Some rows of each are refused, so that the quarantine table is raced for too.
            let input = folder.path().join(format!("in-{job}"));
            write_parquet(&input.join(format!("{job}.parquet")), &many(11, 100 * job), 20);
            let view = view("payments", source("payments", &input), double_amount());
            jobs.spawn(run_backfill(backfill(&format!("job-{job}"), &view, &store, Arc::new(MemoryLedger::default()))));
        }
        let mut versions: Vec<u64> =
            jobs.join_all().await.into_iter().map(|report| report.unwrap().version.unwrap()).collect();
        versions.sort_unstable();
        assert_eq!(versions, (1..=JOBS as u64).collect::<Vec<_>>(), "round {round}");
        for table in ["views/payments/v1", "quarantine/payments/v1"] {
            let log = log_of(&folder.path().join("out").join(table));
            let count = |kind: &str| log.iter().filter(|action| !action[kind].is_null()).count();
            assert_eq!((count("metaData"), count("txn")), (1, JOBS), "round {round}, {table}");
        }
    }
}

/// Two definitions race for the place of one view version: it belongs to the first, the other is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_definitions_that_race_for_one_table_have_one_owner() {
    for round in 0..8 {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("in");
        write_parquet(&input.join("a.parquet"), &many(11, 0), 20);
        let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
        let mut jobs = tokio::task::JoinSet::new();
        for digest in ["one", "other"] {
            let mut view = view("payments", source("payments", &input), double_amount());
            view.digest = digest.to_owned();
            jobs.spawn(run_backfill(backfill(digest, &view, &store, Arc::new(MemoryLedger::default()))));
        }
        let (stored, refused): (Vec<_>, Vec<_>) = jobs.join_all().await.into_iter().partition(Result::is_ok);
        assert_eq!((stored.len(), refused.len()), (1, 1), "round {round}: {stored:?} {refused:?}");
        let error = refused[0].as_ref().unwrap_err().to_string();
        assert!(error.contains("versions never change"), "{error}");
        let log = log_of(&folder.path().join("out/views/payments/v1"));
        assert_eq!(log.iter().filter(|action| !action["metaData"].is_null()).count(), 1);
    }
}

/// A job that dies with its plan made, or with its chunks done, is resumed after another has loaded the same files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_that_others_have_overtaken_is_refused_and_loads_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    write_parquet(&input.join("a.parquet"), &many(90, 0), 10);
    let view = view("payments", source("payments", &input), double_amount());
    let (march, june) = (at("2023-03-01T00:00:00Z"), at("2023-06-01T00:00:00Z"));
    let (planned, chunks_done) = (3, 8);
    for (case, died_after, first_range, other_range, is_refused) in [
        ("all, planned", planned, None, None, true),
        ("all, done", chunks_done, None, None, true),
        ("all after a part", chunks_done, None, Some((march, june)), true),
        ("a part after all", chunks_done, Some((march, june)), None, true),
        ("parts that meet", chunks_done, Some((march, june)), Some((june - 1, i64::MAX)), true),
        ("parts that do not", chunks_done, Some((march, june)), Some((june, i64::MAX)), false),
    ] {
        let store = OfflineStore::open(folder.path().join(case).to_str().unwrap()).unwrap();
        let ledger = Arc::new(MemoryLedger::default());
        let job = |name: &str, range_us: Option<(i64, i64)>, ledger: Arc<dyn JobLedger>| {
            let mut job = backfill(name, &view, &store, ledger);
            job.options.range_us = range_us;
            job
        };
        let dying = DyingLedger { inner: ledger.clone(), calls_left: AtomicI64::new(died_after) };
        run_backfill(job("first", first_range, Arc::new(dying))).await.unwrap_err();
        assert!(ledger.plan("first").await.unwrap().is_some(), "{case}: it should have died with a plan");
        ledger.expire_claims("first");
        run_backfill(job("other", other_range, Arc::new(MemoryLedger::default()))).await.unwrap();
        let before = stored_rows(&store, &view).await;
        let resumed = run_backfill(job("first", first_range, ledger)).await;
        if is_refused {
            let error = resumed.unwrap_err().to_string();
            assert!(
                error.contains("a.parquet") && error.contains("by another job since this job was planned"),
                "{error}"
            );
            assert_eq!(stored_rows(&store, &view).await, before, "{case}");
        } else {
            assert_eq!(resumed.unwrap().version, Some(2), "{case}");
            let rows = stored_rows(&store, &view).await;
            let mut places: Vec<i64> = rows.iter().map(|row| row.sequence).collect();
            places.dedup();
            assert_eq!(places.len(), rows.len(), "{case}: a row is there twice");
            assert!(rows.len() > before.len(), "{case}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_whose_file_was_loaded_with_another_content_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    write_parquet(&input.join("a.parquet"), &many(30, 0), 10);
    let view = view("payments", source("payments", &input), double_amount());
    let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
    let ledger = Arc::new(MemoryLedger::default());
    // It dies when its one chunk is done: from then on the file is not read any more.
    let dying = DyingLedger { inner: ledger.clone(), calls_left: AtomicI64::new(8) };
    run_backfill(backfill("first", &view, &store, Arc::new(dying))).await.unwrap_err();
    assert_eq!(ledger.outcomes("first").await.unwrap().len(), 1);
    write_parquet(&input.join("a.parquet"), &many(31, 0), 10);
    run_backfill(backfill("other", &view, &store, Arc::new(MemoryLedger::default()))).await.unwrap();
    let before = stored_rows(&store, &view).await;
    let error = run_backfill(backfill("first", &view, &store, ledger)).await.unwrap_err().to_string();
    assert!(error.contains("a.parquet") && error.contains("another content"), "{error}");
    assert_eq!(stored_rows(&store, &view).await, before);
}

/// Each of several jobs over one file reports the rows that it was asked for, and no others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_outside_the_range_are_counted_apart_and_not_quarantined() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(&folder.path().join("in/p.parquet"), &three_days(), 3);
    let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
    let view = view("payments", source("payments", &folder.path().join("in")), double_amount());
    let mut job = backfill("first-day", &view, &store, Arc::new(MemoryLedger::default()));
    job.options.range_us = Some((at("2023-05-01T00:00:00Z"), at("2023-05-02T00:00:00Z")));
    let report = run_backfill(job).await.unwrap();
    assert_eq!((report.rows_stored, report.rows_out_of_range, report.rows_left_out), (1, 5, 0));
    let reasons: Vec<&str> = report.refused.keys().map(String::as_str).collect();
    assert_eq!(reasons, ["event time is null", "event time outside 1900 to 2200"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_was_called_off_reads_no_file_to_plan() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(&folder.path().join("in/p.parquet"), &three_days(), 3);
    let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
    let view = view("payments", source("payments", &folder.path().join("in")), double_amount());
    let ledger = Arc::new(MemoryLedger::default());
    let job = backfill("job", &view, &store, ledger.clone());
    job.cancel.cancel();
    job.cancel.cancelled().await;
    let error = run_backfill(job).await.unwrap_err();
    assert!(matches!(error, OfflineError::Cancelled), "{error}");
    assert_eq!(ledger.plan("job").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_a_clean_error_at_every_write() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    write_parquet(&input.join("a.parquet"), &many(60, 0), 10);
    let view = view("payments", source("payments", &input), double_amount());
    let (mut writes, mut tables_without_rows) = (0, 0);
    loop {
        let root = folder.path().join(format!("out-{writes}"));
        let disk = Arc::new(FullDisk { inner: LocalFileSystem::new(), writes_left: AtomicI64::new(writes) });
        let full = OfflineStore::with_object_store(root.to_str().unwrap(), disk).unwrap();
        let ledger = Arc::new(MemoryLedger::default());
        let mut job = backfill("job", &view, &full, ledger.clone());
        job.options.chunk_rows = 20;
        let result = run_backfill(job).await;
        let store = OfflineStore::open(root.to_str().unwrap()).unwrap();
        let Err(error) = result else {
            assert_eq!(stored_rows(&store, &view).await.len(), 54);
            break;
        };
        // Made, and not yet filled: for readers there is no table, because it would say that every row is missing.
        let log = root.join("views/payments/v1/_delta_log");
        let is_log = |version: &str| log.join(format!("{version:0>20}.json")).exists();
        if is_log("0") && !is_log("1") {
            tables_without_rows += 1;
            let table = store.table(&view).unwrap();
            assert_eq!(table.version().await.unwrap(), None);
            assert!(table.scan(ScanRange::ALL).await.unwrap().is_none());
        }
        assert!(error.to_string().contains("No space left"), "{error}");
        let visible = stored_rows(&store, &view).await.len();
        // The quarantine may have been committed and the table not yet; rows come all or none.
        assert!(visible == 0 || visible == 54, "{visible} rows after {writes} writes");
        let report = run_backfill(backfill("job", &view, &store, ledger)).await.unwrap();
        assert_eq!(report.version, Some(1));
        assert_eq!(stored_rows(&store, &view).await.len(), 54);
        writes += 1;
        assert!(writes < 200, "never enough room");
    }
    assert!(writes > 5, "only {writes} writes were tried");
    assert_eq!(tables_without_rows, 1, "no write failed between a table and its rows");
    // For the bar, which adds such lines up; whatever differed would have ended the test.
    println!("H9: kills={writes} faults=0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_job_leaves_nothing_and_can_be_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    write_parquet(&input.join("a.parquet"), &many(60, 0), 10);
    let view = view("payments", source("payments", &input), double_amount());
    let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
    let ledger = Arc::new(MemoryLedger::default());
    let mut job = backfill("job", &view, &store, ledger.clone());
    job.options.chunk_rows = 20;
    job.options.workers = 1;
    let cancel = job.cancel.clone();
    job.progress = Some(Arc::new(move |progress: &Progress| {
        if progress.chunks_done == 1 {
            cancel.cancel();
        }
    }));
    let error = run_backfill(job).await.unwrap_err();
    assert!(matches!(error, OfflineError::Cancelled), "{error}");
    assert!(stored_rows(&store, &view).await.is_empty());
    let report = run_backfill(backfill("job", &view, &store, ledger)).await.unwrap();
    assert_eq!((report.chunks_done_before, report.rows_stored), (1, 54));
}

fn choosy(total: bool) -> Arc<dyn RowTransform> {
    let mut output = Field::new("kept", DataType::Float64, true);
    output.constraints = vec![Constraint::Min(Literal::Float64(0.0)), Constraint::Max(Literal::Float64(50.0))];
    NativeTransform::shared(
        "choosy",
        total,
        vec![Field::new("amount", DataType::Float64, false)],
        vec![output],
        |input| match input[0] {
            Value::Float64(13.0) => Outcome::Drop,
            Value::Float64(14.0) => Outcome::Fail("not fourteen".to_owned()),
            Value::Float64(15.0) => Outcome::Row(vec![Value::Float64(f64::NAN)]),
            _ => Outcome::Row(vec![input[0].clone()]),
        },
    )
}

async fn kept_under(policy: ValidationPolicy, total: bool) -> Result<(Vec<Value>, BackfillReport), OfflineError> {
    let folder = tempfile::tempdir().unwrap();
    let amounts = [1.0, -1.0, 13.0, 14.0, 15.0, 51.0, 50.0];
    let rows: Vec<_> = amounts.iter().map(|amount| (Some("a"), "2023-05-01T10:00:00Z", Some(*amount), None)).collect();
    write_parquet(&folder.path().join("in/p.parquet"), &payments(&rows), 100);
    let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
    let mut view = view("choosy", source("payments", &folder.path().join("in")), choosy(total));
    view.validation = policy.into();
    let report = run_backfill(backfill("job", &view, &store, Arc::new(MemoryLedger::default()))).await?;
    let values = stored_rows(&store, &view).await.into_iter().map(|row| row.values[0].clone()).collect();
    Ok((values, report))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_validation_policy_does_what_it_says() {
    let float = Value::Float64;
    let (values, report) = kept_under(ValidationPolicy::RefuseRow, false).await.unwrap();
    assert_eq!(values, [float(1.0), float(50.0)]);
    assert_eq!((report.rows_dropped, report.rows_refused()), (1, 4));
    // A NaN is within no limit, and the first one names it.
    assert_eq!(report.refused["feature `kept` breaks min = 0"], 2);
    assert_eq!(report.refused["feature `kept` breaks max = 50"], 1);
    assert_eq!(report.refused["the transform refused the row"], 1);

    let (values, _) = kept_under(ValidationPolicy::NullValue, false).await.unwrap();
    assert_eq!(values, [float(1.0), Value::Null, Value::Null, Value::Null, float(50.0)]);

    let (values, _) = kept_under(ValidationPolicy::Clamp, false).await.unwrap();
    assert_eq!(values, [float(1.0), float(0.0), Value::Null, float(50.0), float(50.0)]);

    let error = kept_under(ValidationPolicy::StopJob, false).await.unwrap_err().to_string();
    assert!(error.contains("p.parquet, row 1:") && error.contains("`kept` = -1.0 breaks min = 0"), "{error}");
}

/// A total transform that fails a row breaks its promise: the row is stored, can win, and is an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_total_transform_that_fails_a_row_stores_it_as_an_error() {
    let (values, report) = kept_under(ValidationPolicy::Clamp, true).await.unwrap();
    assert_eq!(values.len(), 6);
    assert_eq!(report.rows_failed, 1);
    assert_eq!(values[2], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_readers_of_delta_see_the_same_rows() {
    let folder = tempfile::tempdir().unwrap();
    let (store, view, _) = backfill_of(folder.path()).await;
    let read = |location: url::Url, sql: &'static str| async move {
        let table = deltalake_core::open_table(location).await.unwrap();
        let context = datafusion::prelude::SessionContext::new();
        context.register_table("t", table.table_provider().await.unwrap()).unwrap();
        let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
        arrow_cast::pretty::pretty_format_batches(&batches).unwrap().to_string()
    };
    let table = store.table_location(&view).unwrap().url;
    let sql = "select card, doubled, note_out, event_time, event_date, _seq, _error from t order by _seq";
    let seen = read(table, sql).await;
    assert_eq!(
        seen,
        "\
+------+---------+----------+-----------------------------+------------+------+---------+
| card | doubled | note_out | event_time                  | event_date | _seq | _error  |
+------+---------+----------+-----------------------------+------------+------+---------+
| a    | 2.0     | x        | 2023-05-01T10:00:00Z        | 2023-05-01 | 0    |         |
| b    | 4.0     |          | 2023-05-02T10:00:00Z        | 2023-05-02 | 1    |         |
| c    |         |          | 2023-05-03T10:00:00.000001Z | 2023-05-03 | 6    | trapped |
+------+---------+----------+-----------------------------+------------+------+---------+"
    );
    let quarantine = url::Url::from_directory_path(folder.path().join("out/quarantine/payments/v1")).unwrap();
    let seen = read(quarantine, "select row, reason, job from t order by row").await;
    for part in ["| 2   | join key `card` is null", "| 7   | event time 1899-05-03T10:00:00Z lies outside", "| job-1 |"]
    {
        assert!(seen.contains(part), "{seen}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_never_changes_its_view_version() {
    let folder = tempfile::tempdir().unwrap();
    let (store, mut view, _) = backfill_of(folder.path()).await;
    view.digest = "another definition".to_owned();
    let error = run_backfill(backfill("other", &view, &store, Arc::new(MemoryLedger::default()))).await.unwrap_err();
    assert!(error.to_string().contains("versions never change"), "{error}");
}
