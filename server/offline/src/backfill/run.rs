//! The work on chunks: read, bind, transform, validate, write.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::{Array, ArrayRef, StringArray};
use arrow_schema::SchemaRef;
use futures::TryStreamExt;
use parquet::arrow::ProjectionMask;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::memory::{Allowance, Gauge, Held};
use super::progress::Meter;
use super::{Backfill, OTHERS_POLL, Progress};
use crate::bind::{Acceptance, BindPlan, BoundRows, RefusedRow};
use crate::cancel::Cancel;
use crate::erase_files::settle_outcome;
use crate::erasure::ErasedRows;
use crate::error::OfflineError;
use crate::ledger::{ChunkOutcome, ChunkPart, JobLedger, JobPlan, Part, PlannedChunk, PlannedFile};
use crate::partition::{BACKFILLED_ROWS_MAX, PartitionWriter};
use crate::press::Press;
use crate::quarantine::{self, Quarantine, QuarantinedRow, RowOutcome};
use crate::source::{
    self, Footers, Portions, SourceFile, SourceReader, TEXT_EXPANSION_MAX, UnreadableRow, file_error, inspect_schema,
};
use crate::spec::ViewSpec;
use crate::stop::StopWatch;
use crate::table::ViewTable;

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
    allowance: Allowance,
    /// Room for row groups in memory.
    reading: Semaphore,
    gauge: Gauge,
    table: ViewTable,
    quarantine: Quarantine,
    press: Press,
    keeps_refusals: bool,
    cancel: Cancel,
    failed: AtomicBool,
    watch: Arc<StopWatch>,
    /// Chunks that are not known to be done, and that none of our threads is at.
    open: Mutex<BTreeSet<usize>>,
    chunks_done: AtomicUsize,
    meter: Meter,
}

/// Chunks that are offered at once when one is claimed. More than all threads of all processes are ever at.
const CHUNKS_OFFERED: usize = 1_024;

/// Does the chunks that are not `done`, and waits for those that other processes are at; how many it has done itself.
pub(super) async fn run_chunks(
    backfill: &Backfill,
    table: &ViewTable,
    plan: &JobPlan,
    footers: Arc<Footers>,
    done: &BTreeSet<usize>,
    watch: Arc<StopWatch>,
    gauge: &Gauge,
) -> Result<usize, OfflineError> {
    let open: BTreeSet<usize> = (0..plan.chunks.len()).filter(|chunk| !done.contains(chunk)).collect();
    if open.is_empty() {
        return Ok(0);
    }
    let schema: SchemaRef = Arc::new(plan.schema.clone());
    let mut bind = BindPlan::try_new(&backfill.view, &inspect_schema(&backfill.view.source, &schema)?)?;
    if let Some(max_ahead_us) = plan.max_ahead_us {
        bind.max_ahead_us = max_ahead_us;
    }
    let reader = SourceReader::try_new(&backfill.view.source, &schema, &bind.columns)?;
    let progress = Progress {
        chunks_done: done.len(),
        chunks: plan.chunks.len(),
        rows_to_read: open.iter().map(|chunk| plan.chunks[*chunk].rows).sum(),
        ..Progress::default()
    };
    let workers = backfill.options.workers.clamp(1, open.len());
    let allowance = Allowance::of(backfill.options.memory_bytes_max, workers);
    let workshop = Arc::new(Workshop {
        job: backfill.job.clone(),
        view: backfill.view.clone(),
        plan: plan.clone(),
        ledger: backfill.ledger.clone(),
        footers,
        bind,
        reader,
        batch_rows: backfill.options.batch_rows.max(1),
        allowance,
        reading: Semaphore::new(places_of(allowance.row_groups_bytes_max) as usize),
        gauge: gauge.clone(),
        table: table.clone(),
        quarantine: backfill.store.quarantine(&backfill.view.name, backfill.view.version)?,
        press: Press::new(&backfill.view, &table.schema),
        keeps_refusals: backfill.options.keeps_refusals,
        cancel: backfill.cancel.clone(),
        failed: AtomicBool::new(false),
        watch,
        open: Mutex::new(open),
        chunks_done: AtomicUsize::new(0),
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
    let chunks_done = workshop.chunks_done.load(Ordering::Relaxed);
    first_error.map_or(Ok(chunks_done), Err)
}

impl Workshop {
    async fn work(&self) -> Result<(), OfflineError> {
        while !self.failed.load(Ordering::Relaxed) {
            self.cancel.check()?;
            let offered = self.offer();
            if offered.is_empty() {
                break;
            }
            let Some(chunk) = self.claim(&offered).await? else {
                // Others are at all that is left. They may be gone before they are done, so that is waited for.
                self.cancel.cancelled_within(OTHERS_POLL).await;
                continue;
            };
            let outcome = match self.run_chunk(chunk).await {
                Ok(outcome) => outcome,
                Err(error) => {
                    self.failed.store(true, Ordering::Relaxed);
                    let error = self.cause_of(error, chunk).await;
                    // Whatever comes of it, the first error is the one to tell.
                    let _ = self.ledger.release(&self.job, Part::Chunk(chunk)).await;
                    return Err(error);
                }
            };
            let is_ours = self.ledger.save_outcome(&self.job, outcome).await?;
            if is_ours {
                self.chunks_done.fetch_add(1, Ordering::Relaxed);
                self.meter.add(true, 0, 0, 0);
            } else {
                self.meter.chunks_elsewhere(1);
            }
        }
        Ok(())
    }

    /// A file that is gone or has changed explains whatever went wrong with it.
    async fn cause_of(&self, error: OfflineError, chunk: usize) -> OfflineError {
        if matches!(error, OfflineError::Cancelled) {
            return error;
        }
        let planned = &self.plan.files[self.plan.chunks[chunk].file];
        source::reopen(planned).await.err().unwrap_or(error)
    }

    fn offer(&self) -> Vec<Part> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.iter().take(CHUNKS_OFFERED).map(|chunk| Part::Chunk(*chunk)).collect()
    }

    /// Claims a chunk; `None` if others are at all that are offered.
    async fn claim(&self, offered: &[Part]) -> Result<Option<usize>, OfflineError> {
        let claim = self.ledger.claim(&self.job, offered).await?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let mut forget = |part: &Part| match part {
            Part::Chunk(chunk) => open.remove(chunk),
            Part::Plan => false,
        };
        // Two threads may learn of the same.
        let done_elsewhere = claim.done.iter().filter(|part| forget(part)).count();
        if let Some(part) = &claim.part {
            forget(part);
        }
        if done_elsewhere > 0 {
            self.meter.chunks_elsewhere(done_elsewhere);
        }
        Ok(match claim.part {
            Some(Part::Chunk(chunk)) => Some(chunk),
            Some(Part::Plan) | None => None,
        })
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
        let (_turn, portions) = self.make_room(&file, chunk).await?;
        let (part, wanted) = ((&chunk.part, chunk.first_row), self.reader.read.clone());
        let mut stream = source::open(&self.view.source, &file, &self.footers, part, wanted, portions).await?;
        let lane: ArrayRef = Arc::new(StringArray::from(vec![planned.digest.as_str()]));
        let mut desk = Desk {
            erased: self.table.erased_now().await?,
            outcome: ChunkOutcome { chunk: number, ..ChunkOutcome::default() },
            writer: PartitionWriter::new(
                self.table.store.clone(),
                self.press.writer_schema().clone(),
                Some(self.view.keys.iter().map(|key| key.name.clone()).collect()),
                self.allowance.buffered_bytes_max,
            )
            .of_job(&self.job)
            .of_lane(Some(&planned.digest))
            .in_files_of(BACKFILLED_ROWS_MAX)
            .counted_by(self.gauge.hold()),
            quarantine: PartitionWriter::new(
                self.quarantine.store.clone(),
                quarantine::schema(),
                None,
                self.allowance.quarantine_bytes_max,
            )
            .of_job(&self.job)
            .of_lane(Some(&planned.digest))
            .counted_by(self.gauge.hold()),
            quarantined: Vec::new(),
            quarantined_bytes: 0,
            batch_bytes: 0,
            batch: self.gauge.hold(),
            refused: self.gauge.hold(),
        };
        let tables = (&self.table, &self.quarantine);
        while let Some(batch) = stream.try_next().await? {
            if self.watch.has_stopped() {
                let begun_with = desk.erased.clone();
                let mut outcome = desk.given_up().await?;
                settle_outcome(tables, &self.job, &mut outcome, begun_with.as_ref()).await?;
                self.watch.keep(outcome);
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
            let read_bytes = batch.rows.get_array_memory_size();
            let rows = self.reader.rows(batch)?;
            let bound = self.bind.bind(self.press.key_names(), &rows, &acceptance)?;
            let bound_bytes: usize =
                bound.inputs.iter().chain(&bound.keys).map(|column| column.get_array_memory_size()).sum();
            desk.batch_bytes = read_bytes + bound_bytes;
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
        settle_outcome(tables, &self.job, &mut outcome, desk.erased.as_ref()).await?;
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
        let mut pressed = self.press.rows(&self.bind, bound, &planned.url, lane)?;
        if let Some(erased) = &desk.erased {
            let (batch, gone) = erased.without(pressed.batch)?;
            pressed.batch = batch;
            desk.outcome.rows_erased += gone;
        }
        desk.outcome.rows_dropped += pressed.rows_dropped;
        desk.outcome.rows_failed += pressed.rows_failed();
        self.refuse(pressed.refused, planned, desk);
        desk.outcome.rows_stored += pressed.batch.num_rows() as u64;
        desk.batch.set(desk.batch_bytes + pressed.batch.get_array_memory_size());
        desk.writer.write(pressed.batch).await?;
        desk.batch.set(0);
        let is_much = desk.quarantined_bytes >= self.allowance.quarantine_bytes_max;
        if is_much || desk.quarantined.len() >= QUARANTINE_ROWS_MAX {
            desk.put_quarantine().await?;
        }
        Ok(())
    }

    fn refuse(&self, rows: Vec<RefusedRow>, planned: &PlannedFile, desk: &mut Desk) {
        for row in rows {
            if desk.erased.as_ref().is_some_and(|erased| erased.takes_kept(&row.inputs)) {
                desk.outcome.rows_erased += 1;
                continue;
            }
            *desk.outcome.refused.entry(row.kind.clone()).or_default() += 1;
            if !self.keeps_refusals {
                continue;
            }
            desk.quarantined_bytes += row.reason.len() + row.inputs.len() + size_of::<QuarantinedRow>();
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
        desk.refused.set(desk.quarantined_bytes);
    }

    /// Waits until the row groups, or the text, may be in memory beside those of others; says in what portions they are read.
    async fn make_room(&self, file: &SourceFile, chunk: &PlannedChunk) -> Result<(Turn<'_>, Portions), OfflineError> {
        let (bytes, portions) = match chunk.part {
            ChunkPart::RowGroups { first, count } => {
                let footer = self.footers.get(file).await?;
                let schema = footer.schema();
                let is_read = |column: &usize| self.reader.read.field_with_name(schema.field(*column).name()).is_ok();
                let roots = (0..schema.fields().len()).filter(is_read);
                let mask = ProjectionMask::roots(footer.parquet_schema(), roots);
                let groups = footer.metadata().row_groups().iter().skip(first).take(count);
                let reading = self.allowance.reading(groups, &mask, self.batch_rows);
                let reading = reading.map_err(|reason| {
                    file_error(file, format!("{reason}, or write the file with smaller row groups"))
                })?;
                (reading.largest_bytes, Portions::of_rows(reading.batch_rows))
            }
            ChunkPart::Bytes { from, to } => {
                let bytes = usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX);
                let bytes_max = bytes.saturating_mul(TEXT_EXPANSION_MAX);
                (self.allowance.text_bytes_max.min(bytes_max), self.allowance.portions(self.batch_rows))
            }
            ChunkPart::Whole => (self.allowance.text_bytes_max, self.allowance.portions(self.batch_rows)),
        };
        let places = self.reading.acquire_many(places_of(bytes)).await;
        let places = places.map_err(|error| OfflineError::Worker(error.to_string()))?;
        let mut held = self.gauge.hold();
        held.set(bytes);
        Ok((Turn { _places: places, _held: held }, portions))
    }
}

/// A place for row groups, or for text, in memory.
struct Turn<'a> {
    _places: SemaphorePermit<'a>,
    _held: Held,
}

/// Room for row groups is given in pieces of so many bytes.
const PLACE_BYTES: usize = 1 << 10;

fn places_of(bytes: usize) -> u32 {
    u32::try_from(bytes / PLACE_BYTES).unwrap_or(u32::MAX)
}

/// What one chunk gathers.
struct Desk {
    /// What was erased when the chunk was begun. What is erased later is looked for when the job is committed.
    erased: Option<ErasedRows>,
    outcome: ChunkOutcome,
    writer: PartitionWriter,
    quarantine: PartitionWriter,
    quarantined: Vec<QuarantinedRow>,
    quarantined_bytes: usize,
    batch_bytes: usize,
    /// What the batch at work takes, in all its forms.
    batch: Held,
    /// What refused rows take that are no batch yet.
    refused: Held,
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
        self.quarantined_bytes = 0;
        self.quarantine.write(batch).await?;
        self.refused.set(0);
        Ok(())
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
