//! Replaying refused rows: from what is kept of them, through the view version that refused them, as new arrivals.
//!
//! A replay first notes which rows it takes, then reads what is kept of as many as fit into memory, tries them, and reads the
//! next.
//!
//! A replay is a job of one commit. Its rows keep lane and row number, so that they count as the rows they are: one that
//! the table holds already is not stored again, whoever stored it. What became of each row is noted in quarantine after
//! that commit; a replay that was killed in between finds its rows in the table when it, or another one, comes again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array as _, ArrayRef, Int64Array, StringArray};
use async_trait::async_trait;
use deltalake_core::kernel::Action;
use eadem_query::BATCH_ROWS;
use eadem_values::{DataType, KeyType, TIME_MAX_US, TIME_MIN_US, Value, array_from_values, value_from_json};
use futures::TryStreamExt;
use parquet::arrow::ProjectionMask;
use parquet::arrow::async_reader::ParquetRecordBatchStreamBuilder;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::statistics::Statistics;
use serde::Deserialize;
use serde_json::Value as Json;

use super::read::{LastWords, Line, Quarantine, QuarantineFilter, State};
use super::{ARRIVAL, ATTEMPT, FILE, INPUTS, JOB, KIND, LANE, OUTCOME, REASON, ROW, RefusalCounts};
use super::{QuarantinedRow, RowOutcome, batch, schema};
use crate::backfill::{Gauge, Held, Progress, ProgressSink, Room, bytes_of_value};
use crate::bind::{Acceptance, BindPlan};
use crate::cancel::Cancel;
use crate::commit::{Base, Change, LiveFile, NewFiles, Proposal, adds_of, append, commit_once};
use crate::erase_files::settle_outcome;
use crate::erasure::ErasedRows;
use crate::error::OfflineError;
use crate::lanes::{CommittedLane, LoadedBy, by_digest, read_lane_log};
use crate::ledger::{ChunkOutcome, JobLedger};
use crate::location::OfflineStore;
use crate::partition::{BACKFILLED_ROWS_MAX, PartitionWriter};
use crate::press::Press;
use crate::read::ScanRange;
use crate::schema::{COLUMN_LANE, COLUMN_SEQUENCE};
use crate::source::SourceRows;
use crate::spec::ViewSpec;
use crate::table::{DataFile, ReadVersion, ViewTable};

/// A replay to run, or to go on with.
#[derive(Clone)]
pub struct Replay {
    /// The job's id. The same id again resumes the job.
    pub job: String,
    /// The view version: what it refused goes through it again.
    pub view: ViewSpec,
    /// Where its tables are.
    pub store: OfflineStore,
    /// Where the job's outcome is kept.
    pub ledger: Arc<dyn JobLedger>,
    /// Which rows, and how.
    pub options: ReplayOptions,
    /// Told how far the job is.
    pub progress: Option<Arc<dyn ProgressSink>>,
    /// Stops the job between batches.
    pub cancel: Cancel,
}

/// Which rows are replayed. A resumed job is given what it was first given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayOptions {
    /// The job's creation, in microseconds: the new arrival of its rows.
    pub created_at_us: i64,
    /// The version of the quarantine table that is replayed.
    pub version: u64,
    /// Which of its rows; settled ones never.
    pub filter: QuarantineFilter,
    /// No more rows than this. Those that were replayed least often come first.
    pub rows_max: usize,
    /// Memory that rows may take. Which rows are taken has to be known of all of them: if there is no room for `rows_max`,
    /// there are fewer.
    pub memory_bytes_max: usize,
}

/// What a replay did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReplayReport {
    /// The view's table's version that holds the rows; `None`: none was stored.
    pub version: Option<u64>,
    /// Rows that were tried.
    pub rows_tried: u64,
    /// Rows stored.
    pub rows_stored: u64,
    /// Stored rows whose status is `error`.
    pub rows_failed: u64,
    /// Rows that the transform dropped.
    pub rows_dropped: u64,
    /// Rows that the table held already.
    pub rows_stored_before: u64,
    /// Rows that were refused again, by reason; each is in quarantine with it.
    pub refused: RefusalCounts,
    /// Rows that no replay can store, by what stands in its way.
    pub hindered: RefusalCounts,
    /// Rows beyond `rows_max`.
    pub rows_left: u64,
    /// The most memory that rows took in this run at once, in bytes, as far as it is counted.
    pub memory_bytes_peak: usize,
}

impl ReplayReport {
    /// All rows that were refused again.
    pub fn rows_refused(&self) -> u64 {
        self.refused.values().sum()
    }
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay")
            .field("job", &self.job)
            .field("view", &self.view.id())
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// What a replay may hold.
struct ReplayRoom {
    /// Which rows are taken, and which of them the table holds.
    notes_bytes_max: usize,
    /// What is kept of the rows that are tried now.
    kept_bytes_max: usize,
    /// What is kept of one of them, which is copied on its way.
    row_bytes_max: usize,
    /// For reading them, and for what is made of them.
    work: Room,
}

/// What is noted of a row until it is done, about.
const NOTE_BYTES: usize = 192;

impl ReplayRoom {
    /// An eighth of the ceiling for notes, a quarter for kept rows, half for the work, and the rest for a row that is wider
    /// than a batch.
    fn of(memory_bytes_max: usize, gauge: &Gauge) -> Self {
        Self {
            notes_bytes_max: memory_bytes_max / 8,
            kept_bytes_max: memory_bytes_max / 4,
            row_bytes_max: memory_bytes_max / 32,
            work: Room::of(memory_bytes_max / 2, gauge),
        }
    }

    /// How many rows can be noted beside what earlier replays have said.
    fn rows_max(&self, replayed: &LastWords) -> Result<usize, OfflineError> {
        let left = self.notes_bytes_max.saturating_sub(replayed.bytes()) / NOTE_BYTES;
        if left > 0 {
            return Ok(left);
        }
        Err(OfflineError::Quarantine(format!(
            "what earlier replays have made of rows takes {} bytes, and of the memory for jobs (setting \
             jobs.memory_bytes_max) {} are for that and for the rows to replay: raise it",
            replayed.bytes(),
            self.notes_bytes_max
        )))
    }

    fn check(&self, row: &Noted) -> Result<(), OfflineError> {
        if row.bytes <= self.row_bytes_max {
            return Ok(());
        }
        Err(OfflineError::Quarantine(format!(
            "row {} of {} takes {} bytes, and of the memory for jobs (setting jobs.memory_bytes_max) {} are for one: raise \
             it, or choose the rows to replay so that it is none of them",
            row.row, row.lane, row.bytes, self.row_bytes_max
        )))
    }
}

/// A refused row that is taken.
#[derive(Debug)]
struct Noted {
    lane: Arc<str>,
    row: i64,
    arrival_us: i64,
    attempt: i64,
    event_us: Option<i64>,
    /// What is kept of it takes so much.
    bytes: usize,
}

impl Noted {
    fn place(&self) -> Place {
        (self.attempt, self.lane.clone(), self.row)
    }
}

/// A refused row that can be tried again.
#[derive(Debug, Clone)]
struct Candidate {
    row: i64,
    file: String,
    arrival_us: i64,
    attempt: i64,
    kept: KeptRow,
}

/// What quarantine keeps of a row, as values.
#[derive(Debug, Clone)]
struct KeptRow {
    keys: Vec<Value>,
    inputs: Vec<Value>,
    event_time: Value,
    known_at: Value,
}

/// The order in which rows are taken up: replayed least often, then by lane and number.
type Place = (i64, Arc<str>, i64);

/// The rows to try, and why others cannot be.
#[derive(Debug, Default)]
struct Selection {
    taken: BTreeMap<Place, Noted>,
    /// The attempt of each row that is taken, and its arrival: several jobs may have refused one row.
    attempts: HashMap<(Arc<str>, i64), (i64, i64)>,
    lanes: HashSet<Arc<str>>,
    left: u64,
    hindered: RefusalCounts,
}

/// Runs or resumes a replay: every row that can be tried goes through the view again, and all that it stores is made visible
/// in one commit. A row that is refused again stays in quarantine, with the new reason and the new arrival.
///
/// # Errors
/// A table that cannot be read or written; a row that stops the job; cancellation. In every case none of its rows is visible,
/// and the same job can be run again.
pub async fn run_replay(replay: Replay) -> Result<ReplayReport, OfflineError> {
    let table = replay.store.table(&replay.view)?;
    let gauge = Gauge::default();
    let outcome = match replay.ledger.outcomes(&replay.job).await?.pop() {
        Some(outcome) => outcome,
        None => {
            replay.ledger.save_outcome(&replay.job, try_rows(&replay, &table, &gauge).await?).await?;
            let kept = replay.ledger.outcomes(&replay.job).await?.pop();
            kept.ok_or_else(|| OfflineError::Quarantine(format!("the outcome of {} was not kept", replay.job)))?
        }
    };
    replay.cancel.check()?;
    let mut version = None;
    if !outcome.adds.is_empty() {
        if !replay.ledger.begin_commit(&replay.job).await? {
            return Err(OfflineError::Cancelled);
        }
        version = Some(table.commit_replay(&replay.job, &outcome.adds).await?);
    }
    if !outcome.quarantine_adds.is_empty() {
        let quarantine = replay.store.quarantine(&replay.view.name, replay.view.version)?;
        quarantine.commit(&replay.job, &outcome.quarantine_adds).await?;
    }
    if let Some(version) = version {
        replay.ledger.committed(&replay.job, version).await?;
    }
    Ok(ReplayReport {
        version,
        rows_tried: outcome.rows_read,
        rows_stored: outcome.rows_stored,
        rows_failed: outcome.rows_failed,
        rows_dropped: outcome.rows_dropped,
        rows_stored_before: outcome.rows_out_of_range,
        refused: outcome.refused,
        hindered: outcome.hindered,
        rows_left: outcome.rows_left_out,
        memory_bytes_peak: gauge.peak_bytes(),
    })
}

async fn try_rows(replay: &Replay, table: &ViewTable, gauge: &Gauge) -> Result<ChunkOutcome, OfflineError> {
    let erased = table.erased_now().await?;
    let room = ReplayRoom::of(replay.options.memory_bytes_max, gauge);
    let quarantine = replay.store.quarantine(&replay.view.name, replay.view.version)?;
    let kept = KeptRows::of(replay, table, &quarantine, erased.as_ref()).await?;
    let mut notes = gauge.hold();
    let mut selection = kept.select(&room, &mut notes).await?;
    let mut outcome = ChunkOutcome {
        rows_left_out: selection.left,
        hindered: std::mem::take(&mut selection.hindered),
        ..ChunkOutcome::default()
    };
    let rows = selection.into_rows();
    let stored = stored_rows(table, &rows).await?;
    let is_stored = |lane: &str, row: i64| stored.contains(&(lane, row));
    let mut bench = Bench::new(replay, table, &quarantine, &room.work, rows.len());
    for round in rounds(&rows, room.kept_bytes_max) {
        round.iter().filter(|noted| !is_stored(&noted.lane, noted.row)).try_for_each(|noted| room.check(noted))?;
        let mut held = gauge.hold();
        held.set(round.iter().map(|noted| noted.bytes).sum());
        for (lane, candidates) in kept.read(round, &room.work).await? {
            let (known, open): (Vec<Candidate>, Vec<Candidate>) =
                candidates.into_iter().partition(|candidate| is_stored(&lane, candidate.row));
            outcome.rows_out_of_range += known.len() as u64;
            for rows in batches(&known, room.work.allowance.batch_bytes_max) {
                rows.iter().for_each(|candidate| bench.settle(&lane, candidate, RowOutcome::Replayed));
                bench.put_lines().await?;
            }
            for rows in batches(&open, room.work.allowance.batch_bytes_max) {
                replay.cancel.check()?;
                bench.try_batch(&lane, rows, &mut outcome).await?;
            }
        }
    }
    bench.put_lines().await?;
    outcome.adds = bench.writer.finish().await?;
    outcome.quarantine_adds = bench.quarantine.finish().await?;
    settle_outcome((table, &quarantine), &replay.job, &mut outcome, erased.as_ref()).await?;
    Ok(outcome)
}

/// Rows in their order, as many at a time as have room together.
fn rounds(rows: &[Noted], bytes_max: usize) -> Vec<&[Noted]> {
    portions(rows, usize::MAX, bytes_max, |noted| noted.bytes)
}

/// Rows of one lane, as many at a time as go through the view at once.
fn batches(rows: &[Candidate], bytes_max: usize) -> Vec<&[Candidate]> {
    portions(rows, BATCH_ROWS, bytes_max, Candidate::bytes)
}

fn portions<T>(items: &[T], count_max: usize, bytes_max: usize, bytes_of: fn(&T) -> usize) -> Vec<&[T]> {
    let (mut portions, mut first, mut bytes) = (Vec::new(), 0, 0);
    for (at, item) in items.iter().enumerate() {
        let is_full = at - first >= count_max || bytes + bytes_of(item) > bytes_max;
        if is_full && at > first {
            portions.push(&items[first..at]);
            (first, bytes) = (at, 0);
        }
        bytes += bytes_of(item);
    }
    if first < items.len() {
        portions.push(&items[first..]);
    }
    portions
}

/// The work on rows of one lane after the other.
struct Bench<'a> {
    replay: &'a Replay,
    bind: BindPlan,
    press: Press,
    writer: PartitionWriter,
    quarantine: PartitionWriter,
    lines: Vec<QuarantinedRow>,
    /// What the batch at work takes, in all its forms.
    held: Held,
    total: usize,
    began: Instant,
}

impl<'a> Bench<'a> {
    fn new(replay: &'a Replay, table: &ViewTable, quarantine: &Quarantine, room: &Room, total: usize) -> Self {
        let press = Press::new(&replay.view, &table.schema);
        let bytes_max = room.allowance.buffered_bytes_max;
        let (rows, keys) = (press.writer_schema().clone(), Some(table.key_names()));
        let writer = PartitionWriter::new(table.store.clone(), rows, keys, bytes_max);
        let bytes_max = room.allowance.quarantine_bytes_max;
        let lines = PartitionWriter::new(quarantine.store.clone(), schema(), None, bytes_max);
        Self {
            replay,
            bind: BindPlan::of_kept_rows(&replay.view),
            press,
            writer: writer.of_job(&replay.job).in_files_of(BACKFILLED_ROWS_MAX).counted_by(room.gauge.hold()),
            quarantine: lines.of_job(&replay.job).counted_by(room.gauge.hold()),
            lines: Vec::new(),
            held: room.gauge.hold(),
            total,
            began: Instant::now(),
        }
    }

    async fn try_batch(
        &mut self,
        lane: &str,
        rows: &[Candidate],
        outcome: &mut ChunkOutcome,
    ) -> Result<(), OfflineError> {
        let source_rows = self.source_rows(rows)?;
        let acceptance = Acceptance { arrival_us: self.replay.options.created_at_us, ..Acceptance::default() };
        let bound = self.bind.bind(self.press.key_names(), &source_rows, &acceptance)?;
        let lane_column: ArrayRef = Arc::new(StringArray::from(vec![lane]));
        let file = rows.first().map_or("", |candidate| candidate.file.as_str());
        let columns = source_rows.columns.iter().chain(&bound.inputs).chain(&bound.keys);
        let bytes: usize = columns.map(|column| column.get_array_memory_size()).sum();
        let mut pressed = self.press.rows(&self.bind, bound, file, &lane_column)?;
        self.held.set(bytes + pressed.batch.get_array_memory_size());

        let by_number: HashMap<i64, &Candidate> = rows.iter().map(|candidate| (candidate.row, candidate)).collect();
        let mut open: HashSet<i64> = by_number.keys().copied().collect();
        for refused in std::mem::take(&mut pressed.refused) {
            open.remove(&refused.sequence);
            let Some(candidate) = by_number.get(&refused.sequence) else { continue };
            *outcome.refused.entry(refused.kind.clone()).or_default() += 1;
            let line = self.line(lane, candidate, RowOutcome::Refused);
            self.lines.push(QuarantinedRow {
                kind: refused.kind,
                reason: refused.reason,
                inputs: refused.inputs,
                ..line
            });
        }
        let sequence = pressed.batch.column_by_name(COLUMN_SEQUENCE).map(|column| column.as_primitive::<Int64Type>());
        for row in sequence.map_or(&[][..], |sequence| sequence.values()) {
            open.remove(row);
            if let Some(candidate) = by_number.get(row) {
                self.settle(lane, candidate, RowOutcome::Replayed);
            }
        }
        // Neither refused nor stored.
        let mut dropped: Vec<i64> = open.into_iter().collect();
        dropped.sort_unstable();
        for row in dropped {
            if let Some(candidate) = by_number.get(&row) {
                self.settle(lane, candidate, RowOutcome::Dropped);
            }
        }
        outcome.rows_read += rows.len() as u64;
        outcome.rows_stored += pressed.batch.num_rows() as u64;
        outcome.rows_dropped += pressed.rows_dropped;
        outcome.rows_failed += pressed.rows_failed();
        self.writer.write(pressed.batch).await?;
        self.put_lines().await?;
        self.held.set(0);
        self.report(outcome);
        Ok(())
    }

    /// The rows as a source would give them to [`BindPlan::of_kept_rows`].
    fn source_rows(&self, rows: &[Candidate]) -> Result<SourceRows, OfflineError> {
        let view = &self.replay.view;
        let mut columns = Vec::new();
        for (number, key) in view.keys.iter().enumerate() {
            let values = rows.iter().map(|candidate| &candidate.kept.keys[number]);
            columns.push(array_from_values(key_data_type(key.key_type), values)?);
        }
        for (number, field) in view.description().inputs.iter().enumerate() {
            let values = rows.iter().map(|candidate| &candidate.kept.inputs[number]);
            columns.push(array_from_values(field.data_type, values)?);
        }
        columns.push(array_from_values(DataType::Timestamp, rows.iter().map(|row| &row.kept.event_time))?);
        columns.push(array_from_values(DataType::Timestamp, rows.iter().map(|row| &row.kept.known_at))?);
        let columns = columns.iter().map(eadem_values::canonicalize).collect::<Result<_, _>>()?;
        let sequence = Int64Array::from_iter_values(rows.iter().map(|candidate| candidate.row));
        Ok(SourceRows { columns, sequence, faults: BTreeMap::new() })
    }

    fn line(&self, lane: &str, of: &Candidate, outcome: RowOutcome) -> QuarantinedRow {
        QuarantinedRow {
            kind: String::new(),
            reason: String::new(),
            file: of.file.clone(),
            lane: lane.to_owned(),
            row: of.row,
            inputs: String::new(),
            // Whatever clocks say, this line comes after the one that it is about.
            arrival_us: self.replay.options.created_at_us.max(of.arrival_us),
            job: self.replay.job.clone(),
            outcome,
            attempt: of.attempt + 1,
        }
    }

    fn settle(&mut self, lane: &str, of: &Candidate, outcome: RowOutcome) {
        let line = self.line(lane, of, outcome);
        self.lines.push(line);
    }

    async fn put_lines(&mut self) -> Result<(), OfflineError> {
        if self.lines.is_empty() {
            return Ok(());
        }
        let lines = batch(&self.lines)?;
        self.lines.clear();
        self.quarantine.write(lines).await
    }

    fn report(&self, outcome: &ChunkOutcome) {
        let Some(sink) = &self.replay.progress else { return };
        sink.report(&Progress {
            chunks_done: 0,
            chunks_done_now: 0,
            chunks: 1,
            rows_read: outcome.rows_read,
            rows_to_read: self.total as u64,
            rows_stored: outcome.rows_stored,
            rows_refused: outcome.refused.values().sum(),
            elapsed: self.began.elapsed(),
        });
    }
}

/// What is kept of the rows that a replay may try. It is read once to choose them, and again for each part of them.
struct KeptRows<'a> {
    replay: &'a Replay,
    quarantine: &'a Quarantine,
    state: Option<State>,
    replayed: LastWords,
    loaded: Loaded,
    erased: Option<&'a ErasedRows>,
}

impl<'a> KeptRows<'a> {
    async fn of(
        replay: &'a Replay,
        table: &ViewTable,
        quarantine: &'a Quarantine,
        erased: Option<&'a ErasedRows>,
    ) -> Result<Self, OfflineError> {
        let state = quarantine.state(Some(replay.options.version)).await?;
        let replayed = match &state {
            Some(state) => quarantine.replayed(state).await?,
            None => LastWords::default(),
        };
        Ok(Self { replay, quarantine, state, replayed, loaded: Loaded::of(table).await?, erased })
    }

    /// Shows the rows that are asked for and still refused.
    async fn visit(&self, room: &Room, show: &mut (dyn FnMut(&Line<'_>, &str) + Send)) -> Result<(), OfflineError> {
        let Some(state) = &self.state else { return Ok(()) };
        let filter = &self.replay.options.filter;
        let columns = [KIND, REASON, FILE, LANE, ROW, INPUTS, ARRIVAL, JOB, OUTCOME, ATTEMPT];
        let mut visit = |line: &Line<'_>, inputs: &str| {
            self.replay.cancel.check()?;
            let is_erased = || self.erased.is_some_and(|erased| erased.takes_kept(inputs));
            if self.replayed.leaves(line) && filter.takes(line) && !is_erased() {
                show(line, inputs);
            }
            Ok(())
        };
        self.quarantine.visit(state, &columns, Some(room), &mut visit).await
    }

    /// What is kept of a row, or why no replay can try it.
    fn candidate(&self, line: &Line<'_>, inputs: &str) -> Result<Candidate, String> {
        if let Some(hindrance) = self.loaded.hindrance(line.lane()) {
            return Err(hindrance);
        }
        let kept = KeptRow::read(&self.replay.view, inputs)?;
        if let Some(hindrance) = self.loaded.hindrance_of_time(line.lane(), &kept) {
            return Err(hindrance);
        }
        Ok(Candidate {
            row: line.row_number(),
            file: line.file().to_owned(),
            arrival_us: line.arrival_us(),
            attempt: line.attempt(),
            kept,
        })
    }

    /// Chooses the rows to try.
    async fn select(&self, room: &ReplayRoom, notes: &mut Held) -> Result<Selection, OfflineError> {
        let rows_max = room.rows_max(&self.replayed)?.min(self.replay.options.rows_max);
        let mut selection = Selection::default();
        let mut show = |line: &Line<'_>, inputs: &str| {
            match self.candidate(line, inputs) {
                Ok(candidate) => selection.add(line.lane(), &candidate, rows_max),
                Err(hindrance) => *selection.hindered.entry(hindrance).or_default() += 1,
            }
            notes.set(self.replayed.bytes() + selection.taken.len() * NOTE_BYTES);
        };
        self.visit(&room.work, &mut show).await?;
        Ok(selection)
    }

    /// What is kept of these rows, by lane and number.
    async fn read(&self, rows: &[Noted], room: &Room) -> Result<BTreeMap<Arc<str>, Vec<Candidate>>, OfflineError> {
        let mut wanted: HashMap<(&str, i64), &Noted> =
            rows.iter().map(|noted| ((noted.lane.as_ref(), noted.row), noted)).collect();
        let mut found: BTreeMap<Arc<str>, Vec<Candidate>> = BTreeMap::new();
        let mut show = |line: &Line<'_>, inputs: &str| {
            let place = (line.lane(), line.row_number());
            let is_word = |noted: &&&Noted| (noted.arrival_us, noted.attempt) == (line.arrival_us(), line.attempt());
            let Some(noted) = wanted.get(&place).filter(is_word).copied() else { return };
            if let Ok(candidate) = self.candidate(line, inputs) {
                wanted.remove(&(noted.lane.as_ref(), noted.row));
                found.entry(noted.lane.clone()).or_default().push(candidate);
            }
        };
        self.visit(room, &mut show).await?;
        for candidates in found.values_mut() {
            candidates.sort_by_key(|candidate| candidate.row);
        }
        Ok(found)
    }
}

impl Selection {
    fn add(&mut self, lane: &str, candidate: &Candidate, rows_max: usize) {
        let lane = match self.lanes.get(lane) {
            Some(lane) => lane.clone(),
            None => {
                let lane: Arc<str> = Arc::from(lane);
                self.lanes.insert(lane.clone());
                lane
            }
        };
        let (arrival_us, attempt) = (candidate.arrival_us, candidate.attempt);
        let row = (lane.clone(), candidate.row);
        if let Some((known_attempt, known_arrival_us)) = self.attempts.get(&row).copied() {
            // Another job has refused the same row. The later word counts.
            if (known_arrival_us, known_attempt) >= (arrival_us, attempt) {
                return;
            }
            self.taken.remove(&(known_attempt, lane.clone(), candidate.row));
        }
        self.attempts.insert(row, (attempt, arrival_us));
        let noted = Noted {
            bytes: candidate.bytes() + lane.len(),
            lane,
            row: candidate.row,
            arrival_us,
            attempt,
            event_us: candidate.kept.event_us(),
        };
        self.taken.insert(noted.place(), noted);
        if self.taken.len() > rows_max
            && let Some((_, noted)) = self.taken.pop_last()
        {
            self.attempts.remove(&(noted.lane, noted.row));
            self.left += 1;
        }
    }

    /// A lane after the other: rows of a batch share theirs.
    fn into_rows(self) -> Vec<Noted> {
        let Self { taken, attempts, .. } = self;
        drop(attempts);
        let mut rows: Vec<Noted> = taken.into_values().collect();
        rows.sort_by(|one, other| (&one.lane, one.row).cmp(&(&other.lane, other.row)));
        rows
    }
}

impl Candidate {
    /// What it takes in memory, with the line that says what has become of it.
    fn bytes(&self) -> usize {
        let kept = &self.kept;
        let values = kept.keys.iter().chain(&kept.inputs).chain([&kept.event_time, &kept.known_at]);
        let values: usize = values.map(bytes_of_value).sum();
        size_of::<Self>() + size_of::<QuarantinedRow>() + 2 * self.file.len() + values
    }
}

/// What is loaded of each lane: a row of a file that is not is loaded with its file, or was taken out with it.
#[derive(Debug, Default)]
pub(super) struct Loaded(HashMap<String, Vec<CommittedLane>>);

impl Loaded {
    pub(super) async fn of(table: &ViewTable) -> Result<Self, OfflineError> {
        let mut loaded: HashMap<String, Vec<CommittedLane>> = HashMap::new();
        for lane in table.lanes().await?.into_values().flatten() {
            loaded.entry(lane.digest.clone()).or_default().push(lane);
        }
        Ok(Self(loaded))
    }

    /// The job that has loaded a refused row's file since that arrival and has looked at the row again.
    pub(super) fn since(&self, lane: &str, arrival_us: i64, inputs: &str) -> Option<&LoadedBy> {
        let mut later = self.0.get(lane)?.iter().filter(|lane| lane.arrival_us() > arrival_us).peekable();
        later.peek()?;
        let event_us = event_time_of(inputs);
        later.find_map(|lane| lane.looked_at(event_us))
    }

    /// Whether it depends on the event times of rows which job has looked at them.
    pub(super) fn needs_times(&self) -> bool {
        let is_part = |lane: &CommittedLane| {
            lane.loaded_by.as_ref().is_some_and(|loaded| lane.range_us.is_some() || !loaded.left_us.is_empty())
        };
        self.0.values().flatten().any(is_part)
    }

    fn hindrance(&self, lane: &str) -> Option<String> {
        let is_loaded = self.0.contains_key(lane);
        (!is_loaded).then(|| {
            "the rows of its file are not in the table: the job was stopped, or the file has changed since; what is in \
             the file now is a backfill's affair"
                .to_owned()
        })
    }

    fn hindrance_of_time(&self, lane: &str, kept: &KeptRow) -> Option<String> {
        // A row without a time that can be stored is in no range: it was refused wherever it was met.
        let Value::Timestamp(event_us) = kept.event_time else { return None };
        if !(TIME_MIN_US..TIME_MAX_US).contains(&event_us) {
            return None;
        }
        let mut lanes = self.0.get(lane).into_iter().flatten();
        let covers = |lane: &CommittedLane| lane.range_us.is_none_or(|(from, to)| (from..to).contains(&event_us));
        (!lanes.any(covers)).then(|| {
            "its event time lies outside what is loaded of its file; the backfill of that range meets it again"
                .to_owned()
        })
    }
}

fn key_data_type(key_type: KeyType) -> DataType {
    match key_type {
        KeyType::Utf8 => DataType::Utf8,
        KeyType::Int64 => DataType::Int64,
    }
}

/// The JSON that [`BindPlan`] makes of a refused row.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptJson {
    keys: serde_json::Map<String, Json>,
    event_time: Json,
    known_at: Json,
    inputs: serde_json::Map<String, Json>,
    #[serde(default)]
    incomplete: bool,
    /// All that is kept of a row of which nothing could be read.
    #[serde(default, rename = "text")]
    _text: Option<String>,
}

/// The event time of what is kept of a row, if it has one.
fn event_time_of(inputs: &str) -> Option<i64> {
    #[derive(Deserialize)]
    struct KeptTime {
        event_time: Json,
    }
    let kept: KeptTime = serde_json::from_str(inputs).ok()?;
    match value_from_json(DataType::Timestamp, &kept.event_time) {
        Ok(Value::Timestamp(event_us)) => Some(event_us),
        _ => None,
    }
}

impl KeptRow {
    fn event_us(&self) -> Option<i64> {
        match self.event_time {
            Value::Timestamp(event_us) => Some(event_us),
            _ => None,
        }
    }

    /// The values of a kept row, bit for bit; or what is missing.
    fn read(view: &ViewSpec, inputs: &str) -> Result<Self, String> {
        let unreadable = |what: &str| format!("what is kept of it cannot be read: {what}");
        let kept: KeptJson = serde_json::from_str(inputs).map_err(|error| unreadable(&error.to_string()))?;
        if kept.incomplete {
            return Err(
                "one of its values could not be had from the source, so it was not kept; correct the source, and \
                        bring the row in a file"
                    .to_owned(),
            );
        }
        let value = |values: &serde_json::Map<String, Json>, name: &str, data_type: DataType| {
            let json = values.get(name).ok_or_else(|| unreadable(&format!("there is no `{name}`")))?;
            let value = value_from_json(data_type, json).map_err(|error| unreadable(&format!("`{name}`: {error}")))?;
            Ok::<_, String>(value.canonical())
        };
        let time = |name: &str, json: &Json| {
            value_from_json(DataType::Timestamp, json).map_err(|error| unreadable(&format!("`{name}`: {error}")))
        };
        let keys = view.keys.iter().map(|key| value(&kept.keys, &key.name, key_data_type(key.key_type)));
        let fields = view.description().inputs.iter();
        let inputs = fields.map(|field| value(&kept.inputs, &field.name, field.data_type));
        Ok(Self {
            keys: keys.collect::<Result<_, _>>()?,
            inputs: inputs.collect::<Result<_, _>>()?,
            event_time: time("event_time", &kept.event_time)?,
            known_at: time("known_at", &kept.known_at)?,
        })
    }
}

/// Why a replay cannot try this row; `None`: it can.
pub(super) fn hindrance(view: &ViewSpec, loaded: &Loaded, row: &QuarantinedRow) -> Option<String> {
    match loaded.hindrance(&row.lane).map_or_else(|| KeptRow::read(view, &row.inputs), Err) {
        Ok(kept) => loaded.hindrance_of_time(&row.lane, &kept),
        Err(hindrance) => Some(hindrance),
    }
}

/// What a replay commits: its rows, if the table holds none of them yet and still has their lanes.
struct Replayed<'a> {
    table: &'a ViewTable,
    ours: OwnRows,
    new: NewFiles<'a>,
}

#[async_trait]
impl Proposal for Replayed<'_> {
    async fn on(&mut self, base: &Base) -> Result<Option<Change>, OfflineError> {
        self.ours.check_new(self.table, base).await?;
        let adds = self.new.ready().await?.iter().cloned();
        Ok(Some(Change { actions: adds.map(Action::Add).collect(), info: Vec::new(), operation: append() }))
    }
}

impl ViewTable {
    /// Makes rows of lanes that the table has visible, all at once and only once.
    async fn commit_replay(&self, job: &str, adds: &[Json]) -> Result<u64, OfflineError> {
        let table = self.ensure().await?;
        let new = NewFiles::of(self, job, adds)?;
        let mut proposal = Replayed { table: self, ours: OwnRows::of(adds)?, new };
        let committed = commit_once(&self.location, &self.log_store, table, job, &mut proposal).await?;
        let committed =
            committed.ok_or_else(|| OfflineError::Quarantine("a replay has nothing to commit".to_owned()))?;
        proposal.new.discard_uncommitted(&committed).await?;
        Ok(committed.version)
    }
}

impl Quarantine {
    /// Why a replay cannot try each of these refused rows of `view`; `None`: it can.
    ///
    /// # Errors
    /// A table that cannot be read.
    pub async fn hindrances(
        &self,
        view: &ViewSpec,
        table: &ViewTable,
        rows: &[&QuarantinedRow],
    ) -> Result<Vec<Option<String>>, OfflineError> {
        let loaded = Loaded::of(table).await?;
        Ok(rows.iter().map(|row| hindrance(view, &loaded, row)).collect())
    }
}

/// Which of the rows the table's current version holds.
async fn stored_rows<'a>(table: &ViewTable, rows: &'a [Noted]) -> Result<HashSet<(&'a str, i64)>, OfflineError> {
    let mut wanted: Wanted<'a> = BTreeMap::new();
    let mut range: Option<ScanRange> = None;
    for noted in rows {
        let Some(event_us) = noted.event_us else { continue };
        wanted.entry(&noted.lane).or_default().insert(noted.row);
        let (from_us, to_us) = range.map_or((event_us, event_us), |range| (range.from_us, range.to_us));
        range = Some(ScanRange { from_us: from_us.min(event_us), to_us: to_us.max(event_us) });
    }
    let mut found = HashSet::new();
    let (Some(range), Some(state)) = (range, table.state(ReadVersion::Current).await?) else { return Ok(found) };
    for file in state.files.into_iter().filter(|file| range.meets(file)) {
        find_rows(table, &file, &wanted, &mut found).await?;
    }
    Ok(found)
}

/// Rows by lane.
type Wanted<'a> = BTreeMap<&'a str, HashSet<i64>>;

async fn find_rows<'a>(
    table: &ViewTable,
    file: &DataFile,
    wanted: &Wanted<'a>,
    found: &mut HashSet<(&'a str, i64)>,
) -> Result<(), OfflineError> {
    let is_needed = |group: &RowGroupMetaData| may_hold_lanes(group, wanted);
    for_each_row(table, file, is_needed, |lane, row| {
        if let Some((lane, rows)) = wanted.get_key_value(lane)
            && rows.contains(&row)
        {
            found.insert((*lane, row));
        }
    })
    .await
}

/// Shows lane and number of every row of a data file, in the row groups that are needed.
async fn for_each_row(
    table: &ViewTable,
    file: &DataFile,
    is_needed: impl Fn(&RowGroupMetaData) -> bool,
    mut visit: impl FnMut(&str, i64),
) -> Result<(), OfflineError> {
    let (reader, damaged) = table.open_file(file);
    let builder = ParquetRecordBatchStreamBuilder::new(reader).await.map_err(&damaged)?;
    let groups = builder.metadata().row_groups().iter().enumerate();
    let groups: Vec<usize> = groups.filter(|(_, group)| is_needed(group)).map(|(number, _)| number).collect();
    if groups.is_empty() {
        return Ok(());
    }
    let schema = builder.schema();
    let roots = [schema.index_of(COLUMN_LANE)?, schema.index_of(COLUMN_SEQUENCE)?];
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
    let builder = builder.with_projection(mask).with_row_groups(groups).with_batch_size(BATCH_ROWS);
    let mut batches = builder.build().map_err(&damaged)?;
    while let Some(batch) = batches.try_next().await.map_err(&damaged)? {
        let (Some(lane), Some(sequence)) = (batch.column_by_name(COLUMN_LANE), batch.column_by_name(COLUMN_SEQUENCE))
        else {
            continue;
        };
        let lane = arrow_cast::cast(lane, &arrow_schema::DataType::Utf8)?;
        let (lanes, numbers) = (lane.as_string::<i32>(), sequence.as_primitive::<Int64Type>());
        for row in 0..batch.num_rows() {
            visit(lanes.value(row), numbers.value(row));
        }
    }
    Ok(())
}

/// Whether rows of these lanes may be in a row group, by its statistics. Files of one lane are most of them.
fn may_hold_lanes(group: &RowGroupMetaData, wanted: &Wanted<'_>) -> bool {
    let lane = group.columns().iter().find(|column| column.column_path().string() == COLUMN_LANE);
    let Some(Statistics::ByteArray(statistics)) = lane.and_then(|column| column.statistics()) else { return true };
    let (Some(min), Some(max)) = (statistics.min_opt(), statistics.max_opt()) else { return true };
    // A limit that was cut is below the smallest, or above the greatest.
    wanted.keys().any(|lane| min.data() <= lane.as_bytes() && lane.as_bytes() <= max.data())
}

/// The rows that a replay is about to commit.
struct OwnRows {
    files: Vec<DataFile>,
    /// By lane, once they were read.
    rows: Option<BTreeMap<String, HashSet<i64>>>,
}

impl OwnRows {
    fn of(adds: &[Json]) -> Result<Self, OfflineError> {
        let files = adds_of(adds)?.into_iter().map(|add| LiveFile::of_add(add).file);
        Ok(Self { files: files.collect(), rows: None })
    }

    /// From the earliest of their event times to the latest; `None` without any files.
    fn range(&self) -> Option<ScanRange> {
        let of_file = |file: &DataFile| file.event_time_us.unwrap_or((i64::MIN, i64::MAX));
        let from_us = self.files.iter().map(|file| of_file(file).0).min()?;
        let to_us = self.files.iter().map(|file| of_file(file).1).max()?;
        Some(ScanRange { from_us, to_us })
    }

    async fn by_lane(&mut self, table: &ViewTable) -> Result<&BTreeMap<String, HashSet<i64>>, OfflineError> {
        if let Some(ref rows) = self.rows {
            return Ok(rows);
        }
        let mut ours: BTreeMap<String, HashSet<i64>> = BTreeMap::new();
        for file in &self.files {
            let note = |lane: &str, row: i64| {
                match ours.get_mut(lane) {
                    Some(rows) => rows.insert(row),
                    None => ours.insert(lane.to_owned(), HashSet::from([row])).is_none(),
                };
            };
            for_each_row(table, file, |_| true, note).await?;
        }
        Ok(self.rows.insert(ours))
    }

    /// Refuses rows that another job has stored since they were tried, or whose file it has taken out of the table.
    async fn check_new(&mut self, table: &ViewTable, base: &Base) -> Result<(), OfflineError> {
        let Some(range) = self.range() else { return Ok(()) };
        let ours = self.by_lane(table).await?;
        let log = read_lane_log(&table.location, &table.log_store, base.version).await?;
        let loaded = by_digest(&log.lanes);
        if let Some(lane) = ours.keys().find(|lane| !loaded.contains_key(lane.as_str())) {
            return Err(OfflineError::Quarantine(format!(
                "another job has taken the rows of {lane} out of the table since this replay tried them; nothing was \
                 committed: start a new one"
            )));
        }
        let wanted: Wanted<'_> = ours.iter().map(|(lane, rows)| (lane.as_str(), rows.clone())).collect();
        let mut found = HashSet::new();
        for live in base.files.iter().filter(|live| range.meets(&live.file)) {
            find_rows(table, &live.file, &wanted, &mut found).await?;
        }
        match found.iter().next() {
            None => Ok(()),
            Some((lane, row)) => Err(OfflineError::Quarantine(format!(
                "another job has stored row {row} of {lane} since this replay tried it; nothing was committed: start a \
                 new one"
            ))),
        }
    }
}
