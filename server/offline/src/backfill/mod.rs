//! Backfill: a view computed over its source's history, made visible in one commit.
//!
//! A job plans once: files with their digests, and the chunks that they are cut into. Every chunk reads, binds, transforms, validates and
//! writes data files that nobody can see yet, and notes them in the ledger. The last step commits all of them in one
//! version that carries the job's id. A job that was killed anywhere is run again with the same id: it follows its plan,
//! does the chunks that the ledger lacks, and finds out from the table itself whether it had committed.
//!
//! Several processes may run the same job: each claims chunks in the ledger, does them, and waits for those that others are
//! at. Every one of them then commits; the table takes the first.

mod memory;
mod plan;
mod progress;
mod run;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use eadem_query::BATCH_ROWS;

use crate::cancel::Cancel;
use crate::commit::Committed;
use crate::error::OfflineError;
use crate::ledger::{ChunkOutcome, JobLedger, JobPlan, Part};
use crate::location::OfflineStore;
use crate::quarantine::RefusalCounts;
use crate::source::Footers;
use crate::spec::ViewSpec;
use crate::stop::{RefusedShare, StopThreshold, StopWatch};
use crate::table::ViewTable;

pub(crate) use memory::{Gauge, Held, Room, bytes_of_value, counted, reading_within};
pub use progress::{Progress, ProgressSink};

use plan::plan_job;
use run::run_chunks;

/// A job to run, or to go on with.
#[derive(Clone)]
pub struct Backfill {
    /// The job's id. The same id again resumes the job, and never loads its rows twice.
    pub job: String,
    /// What is computed.
    pub view: ViewSpec,
    /// Where its table is.
    pub store: OfflineStore,
    /// Where the job's plan and outcomes are kept.
    pub ledger: Arc<dyn JobLedger>,
    /// How it runs.
    pub options: BackfillOptions,
    /// Told how far the job is.
    pub progress: Option<Arc<dyn ProgressSink>>,
    /// Stops the job between batches.
    pub cancel: Cancel,
}

/// How a backfill runs. Nothing here changes a row, except the range and the creation time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackfillOptions {
    /// The job's creation, in microseconds: the arrival of its rows. A resumed job keeps its first one.
    pub created_at_us: i64,
    /// Only rows with an event time in `[from, to)`, in microseconds.
    pub range_us: Option<(i64, i64)>,
    /// Rows of the range that are in the table are replaced by what the files that are there give now. Otherwise files
    /// that were loaded are left out, and the rows of one that has changed are replaced as a whole.
    pub recompute: bool,
    /// Chunks that are worked on at once, one thread each.
    pub workers: usize,
    /// Files are cut into chunks of about this many rows.
    pub chunk_rows: u64,
    /// Rows in one call of the transform.
    pub batch_rows: usize,
    /// Memory that the job's rows may take in this process, all workers together.
    pub memory_bytes_max: usize,
    /// Beyond which share of refused rows nothing is committed; `None`: refused rows never stop the job.
    pub stop: Option<StopThreshold>,
    /// Whether refused rows go into quarantine; else they are only counted: for a second table of rows whose refusals are
    /// there already.
    pub keeps_refusals: bool,
}

impl BackfillOptions {
    /// Two workers, a million rows a chunk, 1 GiB of rows in memory.
    pub const fn created_at(created_at_us: i64) -> Self {
        Self {
            created_at_us,
            range_us: None,
            recompute: false,
            workers: 2,
            chunk_rows: 1_000_000,
            batch_rows: BATCH_ROWS,
            memory_bytes_max: 1 << 30,
            stop: None,
            keeps_refusals: true,
        }
    }
}

/// What a backfill did, all runs of the job together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BackfillReport {
    /// The table's version that holds the job's rows; `None` if there was nothing new to load and no table.
    pub version: Option<u64>,
    /// Files that were read.
    pub files: usize,
    /// Files left out because an earlier job has loaded them.
    pub files_already_loaded: Vec<String>,
    /// Files that were loaded once and are no longer there. Their rows stay.
    pub files_vanished: Vec<String>,
    /// Files that have changed since they were loaded. Their old rows are out of the table; of a recomputed range, those
    /// of the range.
    pub files_replaced: Vec<String>,
    /// Whether the replaced files are what was extracted of the source before.
    pub replaces_extracts: bool,
    /// Files that were loaded and have another path now: the one of then, and that of now. Their rows stay.
    pub files_renamed: Vec<(String, String)>,
    /// Rows of earlier jobs that this one has taken out of the table.
    pub rows_removed: u64,
    /// Rows read, before `where`.
    pub rows_read: u64,
    /// Rows stored.
    pub rows_stored: u64,
    /// Rows that `where` left out.
    pub rows_left_out: u64,
    /// Rows outside the job's time range, or inside one that an earlier job has loaded.
    pub rows_out_of_range: u64,
    /// Rows that the transform dropped.
    pub rows_dropped: u64,
    /// Rows left out because an erasure covers them.
    pub rows_erased: u64,
    /// Stored rows whose status is `error`.
    pub rows_failed: u64,
    /// Refused rows by reason; each is in the quarantine table.
    pub refused: RefusalCounts,
    /// Chunks that this run did.
    pub chunks_done_now: usize,
    /// Chunks that were done when this run began.
    pub chunks_done_before: usize,
    /// Chunks that other processes have done meanwhile.
    pub chunks_done_elsewhere: usize,
    /// The most memory that rows took in this run at once, in bytes, as far as it is counted: what was read, bound,
    /// computed, refused and about to be written.
    pub memory_bytes_peak: usize,
}

impl BackfillReport {
    /// All refused rows.
    pub fn rows_refused(&self) -> u64 {
        self.refused.values().sum()
    }
}

impl fmt::Debug for Backfill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backfill")
            .field("job", &self.job)
            .field("view", &self.view.id())
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// How long a worker waits before it looks again at what others are at.
const OTHERS_POLL: Duration = Duration::from_millis(100);

/// Plans a job, unless it is planned: settles what it reads. [`run_backfill`] does so too; a caller that has several jobs
/// to run may want to know first what all of them come to.
///
/// # Errors
/// A definition that does not fit its files, an unreadable file, cancellation.
pub async fn plan_backfill(backfill: &Backfill) -> Result<JobPlan, OfflineError> {
    plan_with(backfill, &Arc::new(Footers::default()), &Gauge::default()).await
}

async fn plan_with(backfill: &Backfill, footers: &Arc<Footers>, gauge: &Gauge) -> Result<JobPlan, OfflineError> {
    let ledger = &backfill.ledger;
    loop {
        if let Some(plan) = ledger.plan(&backfill.job).await? {
            check_version(backfill, &plan)?;
            return Ok(plan);
        }
        backfill.cancel.check()?;
        if ledger.claim(&backfill.job, &[Part::Plan]).await?.part.is_some() {
            let table = backfill.store.table(&backfill.view)?;
            let planned = match plan_job(backfill, &table, footers, gauge).await {
                Ok(plan) => ledger.save_plan(&backfill.job, plan).await?,
                Err(error) => {
                    // Whatever comes of it, the first error is the one to tell.
                    let _ = ledger.release(&backfill.job, Part::Plan).await;
                    return Err(error);
                }
            };
            check_version(backfill, &planned)?;
            return Ok(planned);
        }
        // Another process is at it.
        backfill.cancel.cancelled_within(OTHERS_POLL).await;
    }
}

fn check_version(backfill: &Backfill, plan: &JobPlan) -> Result<(), OfflineError> {
    if plan.view_digest == backfill.view.digest {
        return Ok(());
    }
    Err(OfflineError::View {
        view: backfill.view.id(),
        field: "job".to_owned(),
        reason: format!("job {} was planned for {}; start a new job", backfill.job, plan.view_digest),
    })
}

/// Runs or resumes a job, or helps other processes that are at it.
///
/// # Errors
/// A definition that does not fit its files, an unreadable or changed file, a full disk, a row that stops the job,
/// cancellation. In every case no row of the job is visible, and the same job can be run again.
pub async fn run_backfill(backfill: Backfill) -> Result<BackfillReport, OfflineError> {
    let table = backfill.store.table(&backfill.view)?;
    let footers = Arc::new(Footers::default());
    let gauge = Gauge::default();
    let plan = plan_with(&backfill, &footers, &gauge).await?;
    let outcomes_before = backfill.ledger.outcomes(&backfill.job).await?;
    let done: BTreeSet<usize> = outcomes_before.iter().map(|outcome| outcome.chunk).collect();
    let watch = Arc::new(StopWatch::new(backfill.options.stop, &plan, &outcomes_before));
    drop(outcomes_before);
    let ran = run_chunks(&backfill, &table, &plan, footers, &done, watch.clone(), &gauge).await;
    let chunks_done_now = if watch.has_stopped() { ran.unwrap_or_default() } else { ran? };

    let outcomes = backfill.ledger.outcomes(&backfill.job).await?;
    backfill.cancel.check()?;
    check_refused(&backfill, &watch, &outcomes).await?;
    let (version, rows_removed) = if plan.changes_table() {
        let committed = commit_job(&backfill, &table, &plan, &outcomes, &gauge).await?;
        (Some(committed.version), committed.rows_removed())
    } else {
        (table.version().await?, 0)
    };
    let mut report = BackfillReport {
        version,
        files: plan.files.len(),
        files_replaced: plan.files_replaced(),
        replaces_extracts: plan.is_whole_source,
        files_renamed: plan.files_renamed(),
        rows_removed,
        files_already_loaded: plan.already_loaded,
        files_vanished: plan.vanished,
        chunks_done_now,
        chunks_done_before: done.len(),
        chunks_done_elsewhere: outcomes.len().saturating_sub(done.len() + chunks_done_now),
        memory_bytes_peak: gauge.peak_bytes(),
        ..BackfillReport::default()
    };
    for outcome in outcomes {
        report.rows_read += outcome.rows_read;
        report.rows_stored += outcome.rows_stored;
        report.rows_left_out += outcome.rows_left_out;
        report.rows_out_of_range += outcome.rows_out_of_range;
        report.rows_dropped += outcome.rows_dropped;
        report.rows_erased += outcome.rows_erased;
        report.rows_failed += outcome.rows_failed;
        for (reason, rows) in outcome.refused {
            *report.refused.entry(reason).or_default() += rows;
        }
    }
    Ok(report)
}

/// Stops the job if it has refused too many rows. What it has refused is then put into quarantine all the same: nothing else
/// would show what is wrong with the source.
async fn check_refused(backfill: &Backfill, watch: &StopWatch, outcomes: &[ChunkOutcome]) -> Result<(), OfflineError> {
    let Some(threshold) = backfill.options.stop else { return Ok(()) };
    let mut seen = outcomes.to_vec();
    seen.extend(watch.parts());
    let share = RefusedShare::of(&seen);
    if !watch.has_stopped() && !threshold.is_exceeded(share) {
        return Ok(());
    }
    put_into_quarantine(backfill, &seen).await?;
    let mut counts = RefusalCounts::new();
    for (reason, rows) in seen.iter().flat_map(|outcome| &outcome.refused) {
        *counts.entry(reason.clone()).or_default() += rows;
    }
    Err(OfflineError::TooManyRefused {
        view: backfill.view.id(),
        job: backfill.job.split('/').next().unwrap_or_default().to_owned(),
        refused: share.refused,
        rows: share.rows,
        threshold,
        counts,
    })
}

async fn put_into_quarantine(backfill: &Backfill, outcomes: &[ChunkOutcome]) -> Result<(), OfflineError> {
    let adds: Vec<serde_json::Value> =
        outcomes.iter().flat_map(|outcome| outcome.quarantine_adds.iter().cloned()).collect();
    if adds.is_empty() {
        return Ok(());
    }
    backfill.store.quarantine(&backfill.view.name, backfill.view.version)?.commit(&backfill.job, &adds).await
}

/// Makes the job's rows visible. Any number of processes may do so at once: the table takes them once. What was refused
/// comes first: once a file is loaded, no other job would refuse its rows again.
async fn commit_job(
    backfill: &Backfill,
    table: &ViewTable,
    plan: &JobPlan,
    outcomes: &[ChunkOutcome],
    gauge: &Gauge,
) -> Result<Committed, OfflineError> {
    if !backfill.ledger.begin_commit(&backfill.job).await? {
        return Err(OfflineError::Cancelled);
    }
    put_into_quarantine(backfill, outcomes).await?;
    let adds: Vec<serde_json::Value> = outcomes.iter().flat_map(|outcome| outcome.adds.iter().cloned()).collect();
    let room = Room::of(backfill.options.memory_bytes_max, gauge);
    let committed = table.commit(&backfill.job, &adds, plan, &room).await?;
    backfill.ledger.committed(&backfill.job, committed.version).await?;
    Ok(committed)
}
