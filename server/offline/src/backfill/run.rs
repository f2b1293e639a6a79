//! The work on chunks: read, bind, transform, validate, write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arrow_array::{ArrayRef, StringArray};
use arrow_schema::SchemaRef;
use futures::TryStreamExt;
use object_store::ObjectStore;
use tokio::runtime::Handle;

use super::progress::Meter;
use super::{Backfill, Cancel, Progress};
use crate::bind::{Acceptance, BindPlan, BoundRows, RefusedRow};
use crate::error::OfflineError;
use crate::ledger::{ChunkOutcome, JobLedger, JobPlan, PlannedFile};
use crate::partition::PartitionWriter;
use crate::press::Press;
use crate::quarantine::{self, QuarantinedRow, RowOutcome};
use crate::source::{self, Footers, SourceReader, UnreadableRow, inspect_schema};
use crate::spec::ViewSpec;
use crate::stop::StopWatch;
use crate::table::{ViewTable, open_log};

/// Refused rows of a chunk that are held in memory before they are written.
const QUARANTINE_ROWS_MAX: usize = 65_536;

/// What all workers of a job share.
struct Workshop {
    job: String,
    view: ViewSpec,
    plan: JobPlan,
    ledger: Arc<dyn JobLedger>,
    footers: Arc<Footers>,
    bind: BindPlan,
    reader: SourceReader,
    batch_rows: usize,
    buffered_bytes_max: usize,
    table_store: Arc<dyn ObjectStore>,
    quarantine_store: Arc<dyn ObjectStore>,
    press: Press,
    cancel: Cancel,
    failed: AtomicBool,
    watch: Arc<StopWatch>,
    open: Vec<usize>,
    next: AtomicUsize,
    meter: Meter,
}

pub(super) async fn run_chunks(
    backfill: &Backfill,
    table: &ViewTable,
    plan: &JobPlan,
    footers: Arc<Footers>,
    open: Vec<usize>,
    chunks_done: usize,
    watch: Arc<StopWatch>,
) -> Result<(), OfflineError> {
    if open.is_empty() {
        return Ok(());
    }
    let schema: SchemaRef = Arc::new(plan.schema.clone());
    let bind = BindPlan::try_new(&backfill.view, &inspect_schema(&backfill.view.source, &schema)?)?;
    let reader = SourceReader::try_new(&backfill.view.source, &schema, &bind.columns)?;
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
        footers,
        bind,
        reader,
        batch_rows: backfill.options.batch_rows.max(1),
        buffered_bytes_max: backfill.options.buffered_bytes_max,
        table_store: table.store.clone(),
        quarantine_store: open_log(&quarantine_location).0,
        press: Press::new(&backfill.view, &table.schema),
        cancel: backfill.cancel.clone(),
        failed: AtomicBool::new(false),
        watch,
        open,
        next: AtomicUsize::new(0),
        meter: Meter::new(backfill.progress.clone(), progress),
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
        let file = source::reopen(planned).await?;
        let acceptance = Acceptance {
            arrival_us: self.plan.created_at_us,
            range_us: self.plan.range_us,
            loaded_us: planned.loaded_us.clone(),
        };
        let (part, wanted) = ((&chunk.part, chunk.first_row), self.reader.read.clone());
        let mut stream = source::open(&self.view.source, &file, &self.footers, part, wanted, self.batch_rows).await?;
        let lane: ArrayRef = Arc::new(StringArray::from(vec![planned.digest.as_str()]));
        let mut desk = Desk {
            outcome: ChunkOutcome { chunk: number, ..ChunkOutcome::default() },
            writer: PartitionWriter::new(
                self.table_store.clone(),
                self.press.writer_schema().clone(),
                Some(self.view.keys.iter().map(|key| key.name.clone()).collect()),
                self.buffered_bytes_max,
            )
            .of_job(&self.job)
            .of_lane(Some(&planned.digest)),
            quarantine: PartitionWriter::new(
                self.quarantine_store.clone(),
                quarantine::schema(),
                None,
                self.buffered_bytes_max,
            )
            .of_job(&self.job),
            quarantined: Vec::new(),
        };
        while let Some(batch) = stream.try_next().await? {
            if self.watch.has_stopped() {
                self.watch.keep(desk.given_up().await?);
                return Err(OfflineError::Cancelled);
            }
            if self.cancel.is_cancelled() || self.failed.load(Ordering::Relaxed) {
                return Err(OfflineError::Cancelled);
            }
            let before =
                (desk.outcome.rows_stored, desk.outcome.refused.values().sum::<u64>(), desk.outcome.rows_dropped);
            let (kept, lost) = (batch.rows.num_rows() as u64, batch.unreadable.len() as u64);
            let read = kept + lost;
            self.refuse(batch.unreadable.iter().map(refused_text).collect(), planned, &mut desk);
            let rows = self.reader.rows(batch)?;
            let bound = self.bind.bind(self.press.key_names(), &rows, &acceptance)?;
            desk.outcome.rows_read += read;
            desk.outcome.rows_left_out += kept - rows.sequence.len() as u64;
            desk.outcome.rows_out_of_range += bound.out_of_range;
            self.store_rows(bound, &lane, planned, &mut desk).await?;
            let refused = desk.outcome.refused.values().sum::<u64>() - before.1;
            let stored = desk.outcome.rows_stored - before.0;
            self.watch.add(stored + refused + (desk.outcome.rows_dropped - before.2), refused);
            self.meter.add(false, read, stored, refused);
        }
        desk.put_quarantine().await?;
        let mut outcome = desk.outcome;
        outcome.adds = desk.writer.finish().await?;
        outcome.quarantine_adds = desk.quarantine.finish().await?;
        // The file was read piece by piece: only one that is still the planned one vouches for all of them.
        source::reopen(planned).await?;
        Ok(outcome)
    }

    async fn store_rows(
        &self,
        bound: BoundRows,
        lane: &ArrayRef,
        planned: &PlannedFile,
        desk: &mut Desk,
    ) -> Result<(), OfflineError> {
        let pressed = self.press.rows(&self.bind, bound, &planned.url, lane)?;
        desk.outcome.rows_dropped += pressed.rows_dropped;
        desk.outcome.rows_failed += pressed.rows_failed;
        self.refuse(pressed.refused, planned, desk);
        desk.outcome.rows_stored += pressed.batch.num_rows() as u64;
        desk.writer.write(pressed.batch).await?;
        if desk.quarantined.len() >= QUARANTINE_ROWS_MAX {
            desk.put_quarantine().await?;
        }
        Ok(())
    }

    fn refuse(&self, rows: Vec<RefusedRow>, planned: &PlannedFile, desk: &mut Desk) {
        for row in rows {
            *desk.outcome.refused.entry(row.kind.clone()).or_default() += 1;
            desk.quarantined.push(QuarantinedRow {
                kind: row.kind,
                reason: row.reason,
                file: planned.url.clone(),
                lane: planned.digest.clone(),
                row: row.sequence,
                inputs: row.inputs,
                arrival_us: self.plan.created_at_us,
                job: self.job.clone(),
                outcome: RowOutcome::Refused,
                attempt: 0,
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
    /// What the chunk has refused so far; what it has stored is left to be cleared away.
    async fn given_up(mut self) -> Result<ChunkOutcome, OfflineError> {
        self.put_quarantine().await?;
        Ok(ChunkOutcome { adds: Vec::new(), quarantine_adds: self.quarantine.finish().await?, ..self.outcome })
    }

    async fn put_quarantine(&mut self) -> Result<(), OfflineError> {
        if self.quarantined.is_empty() {
            return Ok(());
        }
        let batch = quarantine::batch(&self.quarantined)?;
        self.quarantined.clear();
        self.quarantine.write(batch).await
    }
}

/// What quarantine keeps of a row that is none: its text.
fn refused_text(row: &UnreadableRow) -> RefusedRow {
    RefusedRow {
        sequence: row.sequence,
        kind: row.fault.kind.clone(),
        reason: row.fault.reason.clone(),
        inputs: serde_json::json!({
            "keys": {}, "event_time": null, "known_at": null, "inputs": {}, "incomplete": true, "text": row.text,
        })
        .to_string(),
    }
}
