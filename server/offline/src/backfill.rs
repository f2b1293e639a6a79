//! Backfill: a view computed over its source's history, made visible in one commit.
//!
//! A job plans once: files with their digests, chunks of row groups. Every chunk reads, binds, transforms, validates and
//! writes data files that nobody can see yet, and notes them in the ledger. The last step commits all of them in one
//! version that carries the job's id. A job that was killed anywhere is run again with the same id: it follows its plan,
//! does the chunks that the ledger lacks, and finds out from the table itself whether it had committed.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, BooleanArray, DictionaryArray, Int32Array, RecordBatch, StringArray};
use arrow_schema::SchemaRef;
use eadem_query::{BATCH_ROWS, QueryError, TransformFailure, TransformedRows, run_transform};
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::bind::{Acceptance, BindPlan, BoundRows, RefusedRow};
use crate::error::OfflineError;
use crate::ledger::{ChunkOutcome, JobLedger, JobPlan, PlannedChunk, PlannedFile};
use crate::location::{Location, OfflineStore};
use crate::partition::PartitionWriter;
use crate::quarantine::{self, QuarantinedRow, RefusalCounts};
use crate::schema::to_storage;
use crate::source::{SourceFile, SourceReader, file_digest, file_error, inspect_schema, list_files, open_file};
use crate::spec::{Placement, ViewSpec};
use crate::table::{CommittedLane, ViewTable, commit_quarantine, open_log};

const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Refused rows of a chunk that are held in memory before they are written.
const QUARANTINE_ROWS_MAX: usize = 65_536;

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
    /// Chunks that are worked on at once, one thread each.
    pub workers: usize,
    /// Row groups are put together into chunks of about this many rows.
    pub chunk_rows: u64,
    /// Rows in one call of the transform.
    pub batch_rows: usize,
    /// Bytes of finished rows that a worker holds before it writes files.
    pub buffered_bytes_max: usize,
}

impl BackfillOptions {
    /// Two workers, a million rows a chunk, 256 MiB of rows in flight per worker.
    pub const fn created_at(created_at_us: i64) -> Self {
        Self {
            created_at_us,
            range_us: None,
            workers: 2,
            chunk_rows: 1_000_000,
            batch_rows: BATCH_ROWS,
            buffered_bytes_max: 256 << 20,
        }
    }
}

/// A switch that stops a job. Clones switch together.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<Switch>);

#[derive(Debug, Default)]
struct Switch {
    thrown: AtomicBool,
    waiting: Notify,
}

impl Cancel {
    /// Asks the job to stop at the next batch.
    pub fn cancel(&self) {
        self.0.thrown.store(true, Ordering::SeqCst);
        self.0.waiting.notify_waiters();
    }

    /// Whether it was asked to.
    pub fn is_cancelled(&self) -> bool {
        self.0.thrown.load(Ordering::SeqCst)
    }

    /// Waits until it is asked to.
    pub async fn cancelled(&self) {
        // The order matters: a call between the look and the wait wakes what was made before the look.
        let woken = self.0.waiting.notified();
        if !self.is_cancelled() {
            woken.await;
        }
    }
}

/// How far a job is, counted since this run of it began, except for the chunks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    /// Chunks that are done, those of earlier runs included.
    pub chunks_done: usize,
    /// All chunks of the job.
    pub chunks: usize,
    /// Rows read by this run.
    pub rows_read: u64,
    /// Rows of all chunks that were open when this run began.
    pub rows_to_read: u64,
    /// Rows stored by this run.
    pub rows_stored: u64,
    /// Rows refused by this run.
    pub rows_refused: u64,
    /// How long this run has taken.
    pub elapsed: Duration,
}

impl Progress {
    /// Rows read per second since this run began.
    pub fn rows_per_second(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.rows_read as f64 / seconds } else { 0.0 }
    }
}

/// Is told how far a job is, a few times a second. It must not block.
pub trait ProgressSink: Send + Sync {
    /// How far the job is now.
    fn report(&self, progress: &Progress);
}

impl<F: Fn(&Progress) + Send + Sync> ProgressSink for F {
    fn report(&self, progress: &Progress) {
        self(progress);
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
    /// Stored rows whose status is `error`.
    pub rows_failed: u64,
    /// Refused rows by reason; each is in the quarantine table.
    pub refused: RefusalCounts,
    /// Chunks that this run did.
    pub chunks_done_now: usize,
    /// Chunks that earlier runs had done.
    pub chunks_done_before: usize,
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

/// Runs or resumes a job.
///
/// # Errors
/// A definition that does not fit its files, an unreadable or changed file, a full disk, a row that stops the job,
/// cancellation. In every case no row of the job is visible, and the same job can be run again.
pub async fn run_backfill(backfill: Backfill) -> Result<BackfillReport, OfflineError> {
    let table = backfill.store.table(&backfill.view)?;
    let plan = match backfill.ledger.plan(&backfill.job).await? {
        Some(plan) => plan,
        None => backfill.ledger.save_plan(&backfill.job, plan_job(&backfill, &table).await?).await?,
    };
    if plan.view_digest != backfill.view.digest {
        return Err(OfflineError::View {
            view: backfill.view.id(),
            field: "job".to_owned(),
            reason: format!("job {} was planned for {}; start a new job", backfill.job, plan.view_digest),
        });
    }
    let done: BTreeSet<usize> =
        backfill.ledger.outcomes(&backfill.job).await?.iter().map(|outcome| outcome.chunk).collect();
    let open: Vec<usize> = (0..plan.chunks.len()).filter(|chunk| !done.contains(chunk)).collect();
    let open_count = open.len();
    run_chunks(&backfill, &table, &plan, open, done.len()).await?;

    let outcomes = backfill.ledger.outcomes(&backfill.job).await?;
    if backfill.cancel.is_cancelled() {
        return Err(OfflineError::Cancelled);
    }
    let version = if plan.files.is_empty() {
        table.version().await?
    } else {
        Some(commit_job(&backfill, &table, &plan, &outcomes).await?)
    };
    let mut report = BackfillReport {
        version,
        files: plan.files.len(),
        files_already_loaded: plan.already_loaded,
        files_vanished: plan.vanished,
        chunks_done_now: open_count,
        chunks_done_before: done.len(),
        ..BackfillReport::default()
    };
    for outcome in outcomes {
        report.rows_read += outcome.rows_read;
        report.rows_stored += outcome.rows_stored;
        report.rows_left_out += outcome.rows_left_out;
        report.rows_out_of_range += outcome.rows_out_of_range;
        report.rows_dropped += outcome.rows_dropped;
        report.rows_failed += outcome.rows_failed;
        for (reason, rows) in outcome.refused {
            *report.refused.entry(reason).or_default() += rows;
        }
    }
    Ok(report)
}

async fn commit_job(
    backfill: &Backfill,
    table: &ViewTable,
    plan: &JobPlan,
    outcomes: &[ChunkOutcome],
) -> Result<u64, OfflineError> {
    let adds: Vec<serde_json::Value> = outcomes.iter().flat_map(|outcome| outcome.adds.iter().cloned()).collect();
    let version = table.commit(&backfill.job, &adds, plan).await?;
    let quarantined: Vec<serde_json::Value> =
        outcomes.iter().flat_map(|outcome| outcome.quarantine_adds.iter().cloned()).collect();
    if !quarantined.is_empty() {
        let location = backfill.store.quarantine_location(&backfill.view.name, backfill.view.version)?;
        commit_quarantine(&location, &backfill.job, &quarantined).await?;
    }
    backfill.ledger.committed(&backfill.job, version).await?;
    Ok(version)
}

async fn plan_job(backfill: &Backfill, table: &ViewTable) -> Result<JobPlan, OfflineError> {
    let view = &backfill.view;
    let lanes = table.lanes().await?;
    let files = list_files(&view.source).await?;
    let mut plan = JobPlan {
        view: view.id(),
        view_digest: view.digest.clone(),
        created_at_us: backfill.options.created_at_us,
        range_us: backfill.options.range_us,
        files: Vec::new(),
        chunks: Vec::new(),
        already_loaded: Vec::new(),
        vanished: lanes.keys().filter(|path| !files.iter().any(|file| file.path == **path)).cloned().collect(),
    };
    if files.is_empty() && lanes.is_empty() {
        let reason = format!("no Parquet file at {}", view.source.locations.join(", "));
        return Err(crate::source::source_error(&view.source, "parquet", reason));
    }
    let mut planned: BTreeSet<String> = BTreeSet::new();
    for file in files {
        if backfill.cancel.is_cancelled() {
            return Err(OfflineError::Cancelled);
        }
        let digest = file_digest(&file).await?;
        if let Some(loaded) = lanes.get(&file.path).and_then(|loaded| loaded.iter().find(|lane| lane.digest != digest))
        {
            let reason = format!(
                "has changed since it was loaded (then {}, now {digest}). Loaded rows never change: bring the new rows in \
                 a file of another name, or make a new version of {}",
                loaded.digest,
                view.id()
            );
            return Err(file_error(&file, reason));
        }
        let loaded: Vec<&CommittedLane> = lanes.values().flatten().filter(|lane| lane.digest == digest).collect();
        let covers = |lane: &&CommittedLane| match (lane.range_us, plan.range_us) {
            (None, _) => true,
            (Some(loaded), Some(asked)) => loaded.0 <= asked.0 && asked.1 <= loaded.1,
            (Some(_), None) => false,
        };
        // Two files of the same bytes are the same place: their rows are the same rows.
        if loaded.iter().any(covers) || !planned.insert(digest.clone()) {
            plan.already_loaded.push(file.path.clone());
            continue;
        }
        let loaded_us = loaded.iter().filter_map(|lane| lane.range_us).collect();
        plan_file(backfill, &mut plan, &file, digest, loaded_us).await?;
    }
    Ok(plan)
}

async fn plan_file(
    backfill: &Backfill,
    plan: &mut JobPlan,
    file: &SourceFile,
    digest: String,
    loaded_us: Vec<(i64, i64)>,
) -> Result<(), OfflineError> {
    let metadata = open_file(file).await?;
    // Everything that can be wrong with the definitions shows here, before a single row is read.
    inspect_schema(&backfill.view.source, metadata.schema())
        .and_then(|inspected| BindPlan::try_new(&backfill.view, &inspected))
        .map_err(|error| error.in_file(&file.url))?;
    let groups = metadata.metadata().row_groups();
    let number = plan.files.len();
    let mut first_row = 0;
    let mut chunk: Option<PlannedChunk> = None;
    for (group, row_group) in groups.iter().enumerate() {
        let rows = u64::try_from(row_group.num_rows()).unwrap_or_default();
        let open = chunk.get_or_insert(PlannedChunk {
            file: number,
            first_row_group: group,
            row_groups: 0,
            first_row,
            rows: 0,
        });
        open.row_groups += 1;
        open.rows += rows;
        first_row += rows;
        if open.rows >= backfill.options.chunk_rows {
            plan.chunks.extend(chunk.take());
        }
    }
    plan.chunks.extend(chunk);
    plan.files.push(PlannedFile {
        url: file.url.clone(),
        path: file.path.clone(),
        digest,
        bytes: file.bytes,
        modified_ms: file.modified_ms,
        rows: first_row,
        loaded_us,
    });
    Ok(())
}

/// What all workers of a job share.
struct Workshop {
    job: String,
    view: ViewSpec,
    plan: JobPlan,
    ledger: Arc<dyn JobLedger>,
    batch_rows: usize,
    buffered_bytes_max: usize,
    table_store: Arc<dyn ObjectStore>,
    table: ViewTable,
    quarantine_store: Arc<dyn ObjectStore>,
    key_names: Vec<String>,
    writer_schema: SchemaRef,
    cancel: Cancel,
    failed: AtomicBool,
    open: Vec<usize>,
    next: AtomicUsize,
    meter: Meter,
}

struct Meter {
    sink: Option<Arc<dyn ProgressSink>>,
    began: Instant,
    state: Mutex<(Progress, Option<Instant>)>,
}

impl Meter {
    fn add(&self, chunk_done: bool, rows_read: u64, rows_stored: u64, rows_refused: u64) {
        let Some(sink) = &self.sink else { return };
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (progress, reported) = &mut *state;
        progress.chunks_done += usize::from(chunk_done);
        progress.rows_read += rows_read;
        progress.rows_stored += rows_stored;
        progress.rows_refused += rows_refused;
        progress.elapsed = self.began.elapsed();
        if chunk_done || reported.is_none_or(|reported| reported.elapsed() >= PROGRESS_EVERY) {
            *reported = Some(Instant::now());
            sink.report(progress);
        }
    }
}

async fn run_chunks(
    backfill: &Backfill,
    table: &ViewTable,
    plan: &JobPlan,
    open: Vec<usize>,
    chunks_done: usize,
) -> Result<(), OfflineError> {
    if open.is_empty() {
        return Ok(());
    }
    let quarantine_location = backfill.store.quarantine_location(&backfill.view.name, backfill.view.version)?;
    let progress = Progress {
        chunks_done,
        chunks: plan.chunks.len(),
        rows_to_read: open.iter().map(|chunk| plan.chunks[*chunk].rows).sum(),
        ..Progress::default()
    };
    let workers = backfill.options.workers.clamp(1, open.len());
    let workshop = Arc::new(Workshop {
        job: backfill.job.clone(),
        view: backfill.view.clone(),
        plan: plan.clone(),
        ledger: backfill.ledger.clone(),
        batch_rows: backfill.options.batch_rows.max(1),
        buffered_bytes_max: backfill.options.buffered_bytes_max,
        table_store: table.store.clone(),
        table: table.clone(),
        quarantine_store: open_log(&quarantine_location).0,
        key_names: backfill.view.keys.iter().map(|key| key.name.clone()).collect(),
        writer_schema: table.schema.writer_schema(),
        cancel: backfill.cancel.clone(),
        failed: AtomicBool::new(false),
        open,
        next: AtomicUsize::new(0),
        meter: Meter { sink: backfill.progress.clone(), began: Instant::now(), state: Mutex::new((progress, None)) },
    });
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..workers {
        let workshop = workshop.clone();
        let runtime = Handle::current();
        // Chunks compute far longer than they wait, so each has a thread and leaves the runtime's own to others.
        tasks.spawn_blocking(move || runtime.block_on(workshop.work()));
    }
    let mut first_error = None;
    while let Some(ended) = tasks.join_next().await {
        let ended = ended.unwrap_or_else(|error| Err(OfflineError::Worker(error.to_string())));
        if let Err(error) = ended {
            workshop.failed.store(true, Ordering::Relaxed);
            // Workers that stop because another has failed may well end before it does: they are not the cause.
            if matches!(first_error, None | Some(OfflineError::Cancelled)) {
                first_error = Some(error);
            }
        }
    }
    first_error.map_or(Ok(()), Err)
}

impl Workshop {
    async fn work(&self) -> Result<(), OfflineError> {
        while !self.failed.load(Ordering::Relaxed) {
            let Some(chunk) = self.open.get(self.next.fetch_add(1, Ordering::Relaxed)) else { break };
            let outcome = match self.run_chunk(*chunk).await {
                Ok(outcome) => outcome,
                Err(error) => {
                    self.failed.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            };
            self.ledger.save_outcome(&self.job, outcome).await?;
            self.meter.add(true, 0, 0, 0);
        }
        Ok(())
    }

    async fn run_chunk(&self, number: usize) -> Result<ChunkOutcome, OfflineError> {
        let chunk = &self.plan.chunks[number];
        let planned = &self.plan.files[chunk.file];
        let file = reopen(planned).await?;
        let metadata = open_file(&file).await?;
        let in_file = |error: OfflineError| error.in_file(&file.url);
        let bind = inspect_schema(&self.view.source, metadata.schema())
            .and_then(|inspected| BindPlan::try_new(&self.view, &inspected))
            .map_err(in_file)?;
        let reader = SourceReader::try_new(&self.view.source, metadata.schema(), &bind.columns).map_err(in_file)?;
        let acceptance = Acceptance {
            arrival_us: self.plan.created_at_us,
            range_us: self.plan.range_us,
            loaded_us: planned.loaded_us.clone(),
        };
        let groups = (chunk.first_row_group..chunk.first_row_group + chunk.row_groups).collect();
        let mut stream = reader.open(&file, metadata, groups, self.batch_rows)?;
        let lane: ArrayRef = Arc::new(StringArray::from(vec![planned.digest.as_str()]));
        let mut desk = Desk {
            outcome: ChunkOutcome { chunk: number, ..ChunkOutcome::default() },
            writer: PartitionWriter::new(
                self.table_store.clone(),
                self.writer_schema.clone(),
                true,
                self.buffered_bytes_max,
            ),
            quarantine: PartitionWriter::new(
                self.quarantine_store.clone(),
                quarantine::schema(),
                false,
                self.buffered_bytes_max,
            ),
            quarantined: Vec::new(),
        };
        let mut next_row = i64::try_from(chunk.first_row).unwrap_or(i64::MAX);
        while let Some(batch) = stream.try_next().await.map_err(|error| file_error(&file, error))? {
            if self.cancel.is_cancelled() || self.failed.load(Ordering::Relaxed) {
                return Err(OfflineError::Cancelled);
            }
            let before = (desk.outcome.rows_stored, desk.outcome.refused.values().sum::<u64>());
            let read = batch.num_rows() as u64;
            let rows = reader.rows(&batch, next_row).map_err(in_file)?;
            next_row += batch.num_rows() as i64;
            let bound = bind.bind(&self.key_names, &rows, &acceptance)?;
            desk.outcome.rows_read += read;
            desk.outcome.rows_left_out += read - rows.sequence.len() as u64;
            desk.outcome.rows_out_of_range += bound.out_of_range;
            self.store_rows(&bind, bound, &lane, planned, &mut desk).await?;
            let refused = desk.outcome.refused.values().sum::<u64>() - before.1;
            self.meter.add(false, read, desk.outcome.rows_stored - before.0, refused);
        }
        desk.put_quarantine().await?;
        let mut outcome = desk.outcome;
        outcome.adds = desk.writer.finish().await?;
        outcome.quarantine_adds = desk.quarantine.finish().await?;
        // Row groups were read one by one: only a file that is still the planned one vouches for all of them.
        reopen(planned).await?;
        Ok(outcome)
    }

    async fn store_rows(
        &self,
        bind: &BindPlan,
        mut bound: BoundRows,
        lane: &ArrayRef,
        planned: &PlannedFile,
        desk: &mut Desk,
    ) -> Result<(), OfflineError> {
        let refused = std::mem::take(&mut bound.refused);
        self.refuse(refused, planned, desk);
        let batch = match self.view.placement {
            Placement::OnRead => self.batch(&bound, bound.inputs.clone(), None, lane)?,
            Placement::OnWrite => {
                let transformed = self.transform(&bound, planned)?;
                self.batch_of_results(bind, bound, transformed, lane, planned, desk)?
            }
        };
        desk.outcome.rows_stored += batch.num_rows() as u64;
        desk.writer.write(batch).await?;
        if desk.quarantined.len() >= QUARANTINE_ROWS_MAX {
            desk.put_quarantine().await?;
        }
        Ok(())
    }

    fn transform(&self, bound: &BoundRows, planned: &PlannedFile) -> Result<TransformedRows, OfflineError> {
        let at = |row: usize, reason: String| OfflineError::Row {
            file: planned.url.clone(),
            row: bound.sequence.value(row.min(bound.len().saturating_sub(1))),
            reason,
        };
        run_transform(self.view.transform.as_ref(), self.view.policy, bound.len(), &bound.inputs).map_err(|error| {
            match error {
                QueryError::Stopped { row, reason } => {
                    at(row, format!("{reason}; the validation policy of {} is `stop_job`", self.view.id()))
                }
                QueryError::Transform(failure) => match failure.row {
                    // One number: the row's in the file, not the one in the batch.
                    Some(row) => at(row as usize, TransformFailure { row: None, ..failure }.to_string()),
                    None => QueryError::Transform(failure).into(),
                },
                other => other.into(),
            }
        })
    }

    fn batch_of_results(
        &self,
        bind: &BindPlan,
        mut bound: BoundRows,
        transformed: TransformedRows,
        lane: &ArrayRef,
        planned: &PlannedFile,
        desk: &mut Desk,
    ) -> Result<RecordBatch, OfflineError> {
        let total = self.view.description().total;
        desk.outcome.rows_dropped += transformed.dropped.len() as u64;
        let mut refused: Vec<RefusedRow> = Vec::new();
        let mut refuse = |row: usize, kind: String, reason: String| {
            refused.push(RefusedRow {
                sequence: bound.sequence.value(row),
                kind,
                reason,
                inputs: bind.bound_row_as_json(&self.key_names, &bound, row),
            });
        };
        for value in &transformed.refused {
            refuse(value.row, format!("feature `{}` breaks a constraint", value.field), value.reason.clone());
        }
        if !total {
            for failure in &transformed.failed {
                refuse(failure.row as usize, "the transform refused the row".to_owned(), failure.message.clone());
            }
        }
        refused.sort_by_key(|row| row.sequence);
        let errors: Option<Vec<Option<&str>>> = (total && !transformed.failed.is_empty()).then(|| {
            let mut errors = vec![None; bound.len()];
            for failure in &transformed.failed {
                errors[failure.row as usize] = Some(failure.message.as_str());
            }
            errors
        });
        desk.outcome.rows_failed += errors.as_ref().map_or(0, |_| transformed.failed.len() as u64);
        let mut errors: Option<ArrayRef> = errors.map(|errors| Arc::new(StringArray::from(errors)) as ArrayRef);

        let mut values = transformed.columns;
        if !transformed.dropped.is_empty() || !refused.is_empty() {
            let mut keep = vec![true; bound.len()];
            let gone = transformed.dropped.iter().map(|row| *row as usize);
            let gone = gone.chain(transformed.refused.iter().map(|value| value.row));
            let failed = transformed.failed.iter().filter(|_| !total).map(|failure| failure.row as usize);
            for row in gone.chain(failed) {
                keep[row] = false;
            }
            let mask = BooleanArray::from(keep);
            bound.retain(&mask)?;
            for column in &mut values {
                *column = eadem_values::canonicalize(&arrow_select::filter::filter(column.as_ref(), &mask)?)?;
            }
            if let Some(column) = &mut errors {
                *column = arrow_select::filter::filter(column.as_ref(), &mask)?;
            }
        }
        self.refuse(refused, planned, desk);
        self.batch(&bound, values, errors, lane)
    }

    /// Rows as the table's writer takes them.
    fn batch(
        &self,
        bound: &BoundRows,
        values: Vec<ArrayRef>,
        errors: Option<ArrayRef>,
        lane: &ArrayRef,
    ) -> Result<RecordBatch, OfflineError> {
        let rows = bound.len();
        let mut columns = bound.keys.clone();
        for (value, column) in self.table.schema.values.iter().zip(&values) {
            columns.push(to_storage(column, value.data_type)?);
        }
        columns.push(bound.event_time.clone());
        columns.push(bound.known_at.clone());
        columns.push(bound.tie.clone());
        let lanes = DictionaryArray::<Int32Type>::try_new(Int32Array::from(vec![0; rows]), lane.clone())?;
        columns.push(Arc::new(lanes));
        columns.push(Arc::new(bound.sequence.clone()));
        columns.push(errors.unwrap_or_else(|| Arc::new(StringArray::new_null(rows))));
        Ok(RecordBatch::try_new(self.writer_schema.clone(), columns)?)
    }

    fn refuse(&self, rows: Vec<RefusedRow>, planned: &PlannedFile, desk: &mut Desk) {
        for row in rows {
            *desk.outcome.refused.entry(row.kind).or_default() += 1;
            desk.quarantined.push(QuarantinedRow {
                reason: row.reason,
                file: planned.url.clone(),
                lane: planned.digest.clone(),
                row: row.sequence,
                inputs: row.inputs,
                arrival_us: self.plan.created_at_us,
                job: self.job.clone(),
            });
        }
    }
}

/// What one chunk gathers.
struct Desk {
    outcome: ChunkOutcome,
    writer: PartitionWriter,
    quarantine: PartitionWriter,
    quarantined: Vec<QuarantinedRow>,
}

impl Desk {
    async fn put_quarantine(&mut self) -> Result<(), OfflineError> {
        if self.quarantined.is_empty() {
            return Ok(());
        }
        let batch = quarantine::batch(&self.quarantined)?;
        self.quarantined.clear();
        self.quarantine.write(batch).await
    }
}

/// The planned file as it is now, if it is still the same.
async fn reopen(planned: &PlannedFile) -> Result<SourceFile, OfflineError> {
    let location = Location::parse(&planned.url)?;
    let gone = |error: object_store::Error| OfflineError::File { file: planned.url.clone(), reason: error.to_string() };
    let meta = location.store.head(&location.path).await.map_err(gone)?;
    let file = SourceFile {
        url: planned.url.clone(),
        path: planned.path.clone(),
        location,
        bytes: meta.size,
        modified_ms: meta.last_modified.timestamp_millis(),
    };
    let untouched = file.bytes == planned.bytes && file.modified_ms == planned.modified_ms;
    if !untouched && file_digest(&file).await? != planned.digest {
        let reason = "has changed while the job was reading it; cancel this job and start a new one";
        return Err(file_error(&file, reason));
    }
    Ok(file)
}
