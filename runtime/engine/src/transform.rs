//! A component applied to columns, row by row in meaning, in batches for speed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::{Array, ArrayRef, BooleanArray};
use arrow_buffer::BooleanBufferBuilder;
use eadem_values::{DataType, Description, Digest, Field, null_array};

use crate::call::{CallError, Linked};
use crate::config::EngineConfig;
use crate::cpu_time::thread_cpu_time;
use crate::engine::Engine;
use crate::error::{EngineError, Fault, LimitKind};
use crate::input::{Inputs, Nans};
use crate::measure::Cost;
use crate::output::CheckedOutput;
use crate::state::cut_to;

/// An accepted component, ready to run. Cheap to clone, safe to share between threads.
#[derive(Clone)]
pub struct Transform(Arc<Inner>);

struct Inner {
    engine: Engine,
    digest: Digest,
    description: Description,
    strict_nan: bool,
    cost: Option<Cost>,
    linked: Linked,
}

/// For whom a call is made. It decides deadlines and nothing else; values never depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallClass {
    /// A request waits: rows that are undecided at the deadline fail with [`FailureKind::Deadline`].
    Serving,
    /// A job runs: deadlines grow, and a row that never answers stops the job with [`EngineError::Deadline`].
    Batch,
}

/// As [`CallClass`], and the trials of an upload, where a missed deadline ends everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Serving,
    Batch,
    Upload {
        /// When this thread's processor time says that the trials are over.
        over_at_cpu: Duration,
    },
}

impl From<CallClass> for Class {
    fn from(class: CallClass) -> Self {
        match class {
            CallClass::Serving => Self::Serving,
            CallClass::Batch => Self::Batch,
        }
    }
}

/// What became of the rows passed to [`Transform::apply`].
#[derive(Debug, Clone)]
pub struct Applied {
    /// One column per output, in described order, of the described type, with an entry for every row passed. At dropped
    /// and failed rows the entry is null, also where the output is described as not nullable.
    pub columns: Vec<ArrayRef>,
    /// The rows that have no result.
    pub rows: RowOutcomes,
}

/// The rows without a result; both lists are ascending, and no row is in both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowOutcomes {
    /// Rows that the transform dropped. Empty for a total transform.
    pub dropped: Vec<u32>,
    /// Rows that failed, and why.
    pub failed: Vec<FailedRow>,
}

/// A row that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedRow {
    /// Counted from the start of the columns passed.
    pub row: u32,
    /// What kind of failure it is.
    pub kind: FailureKind,
    /// For people: the transform's own message, or what the engine saw.
    pub message: String,
    /// The output that is at fault, where one is.
    pub field: Option<String>,
    /// Names of the first functions, innermost first, one a line; empty unless it trapped.
    pub backtrace: String,
}

/// Why a row failed. Everything but `RowError` and `Deadline` is a breach of a total transform's promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureKind {
    /// The transform itself said so. Only partial transforms can.
    RowError,
    /// The whole call answered `err`.
    Declined,
    /// It trapped; a panic is one.
    Trap,
    /// It ran into this limit.
    Limit(LimitKind),
    /// Its answer was not what the contract or its description says.
    Breach,
    /// It did not answer in time. Serving only; says nothing about the row's value.
    Deadline,
}

impl FailureKind {
    /// A stable word for logs and stored reasons.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RowError => "row_error",
            Self::Declined => "declined",
            Self::Trap => "trap",
            Self::Limit(_) => "limit",
            Self::Breach => "breach",
            Self::Deadline => "deadline",
        }
    }
}

impl From<&Fault> for FailureKind {
    fn from(fault: &Fault) -> Self {
        match fault {
            Fault::Limit(limit) => Self::Limit(limit.kind()),
            Fault::Trap(_) => Self::Trap,
            Fault::Breach(_) | Fault::Contract(_) => Self::Breach,
            Fault::Declined(_) => Self::Declined,
            Fault::Deadline { .. } => Self::Deadline,
        }
    }
}

impl std::fmt::Debug for Transform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transform")
            .field("name", &self.0.description.name)
            .field("digest", &self.0.digest)
            .finish_non_exhaustive()
    }
}

impl Applied {
    /// One call's answer, with nulls where there is no result.
    ///
    /// # Errors
    /// [`EngineError::Host`]: nulls could not be put in.
    pub(crate) fn from_one_call(output: CheckedOutput) -> Result<Self, EngineError> {
        let (mut columns, dropped, failed) = output.into_parts();
        if !dropped.is_empty() || !failed.is_empty() {
            let without_result = dropped.iter().copied().chain(failed.iter().map(|(row, _)| *row));
            columns = null_at(columns, without_result)?;
        }
        let kind = FailureKind::RowError;
        let failed = failed.into_iter().map(|(row, message)| FailedRow {
            row,
            kind,
            message,
            field: None,
            backtrace: String::new(),
        });
        let failed = failed.collect();
        Ok(Self { columns, rows: RowOutcomes { dropped, failed } })
    }
}

impl Transform {
    pub(crate) fn new(
        engine: Engine,
        digest: Digest,
        description: Description,
        strict_nan: bool,
        cost: Option<Cost>,
        linked: Linked,
    ) -> Self {
        Self(Arc::new(Inner { engine, digest, description, strict_nan, cost, linked }))
    }

    /// SHA-256 of the component's bytes.
    pub fn digest(&self) -> &Digest {
        &self.0.digest
    }

    /// What the component says of itself.
    pub fn description(&self) -> &Description {
        &self.0.description
    }

    /// Whether it was compiled so that its arithmetic knows only one NaN.
    pub fn strict_nan(&self) -> bool {
        self.0.strict_nan
    }

    /// What was measured at upload.
    pub fn cost(&self) -> Option<&Cost> {
        self.0.cost.as_ref()
    }

    /// Processor time that so many rows will probably take, in microseconds; `None` if it was never measured, or could
    /// not be.
    pub fn expected_cpu_us(&self, rows: usize) -> Option<u64> {
        let cost = self.0.cost.as_ref().filter(|cost| cost.batch_rows > 0)?;
        Some((cost.cpu_us_per_call + cost.cpu_us_per_row * rows as f64).ceil() as u64)
    }

    /// Whether so many rows are cheap enough for the thread that asks; otherwise use [`Engine::cpu_pool`]. Unmeasured
    /// transforms are never taken for cheap.
    pub fn runs_inline(&self, rows: usize) -> bool {
        self.expected_cpu_us(rows).is_some_and(|cpu_us| cpu_us <= self.0.engine.config().inline_cpu_us_max)
    }

    /// The engine that this runs in.
    pub fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// Computes the outputs of these rows. Blocks the thread for as long as it computes.
    ///
    /// `columns` are the declared inputs in declared order, each of the declared type, `rows` long. They may be slices
    /// and may hold any NaN and anything under nulls: what enters the component is canonical, and so is what leaves it.
    ///
    /// A call that traps, exceeds a limit or breaks the contract is split in halves until single rows fail; the others
    /// are not touched by that. Rows and columns are counted from 0.
    ///
    /// # Errors
    /// - [`EngineError::Input`]: the columns are not the declared ones, or one that must not be null is.
    /// - [`EngineError::Deadline`]: in a batch, a row that never answers. Nothing was computed.
    /// - [`EngineError::Applied`]: the outputs together are larger than `applied_bytes_max`.
    /// - [`EngineError::Busy`]: all pooled instances are in use.
    pub fn apply(&self, rows: usize, columns: &[ArrayRef], class: CallClass) -> Result<Applied, EngineError> {
        self.apply_as(rows, columns, class.into())
    }

    pub(crate) fn linked(&self) -> &Linked {
        &self.0.linked
    }

    pub(crate) fn apply_as(&self, rows: usize, columns: &[ArrayRef], class: Class) -> Result<Applied, EngineError> {
        let mut splitter = Splitter::new(&self.0, class, rows)?;
        let rows_per_call = (self.0.engine.config().call_rows_max as usize).max(1);
        if rows <= rows_per_call {
            splitter.decide(columns, 0, rows)?;
            return splitter.finish();
        }
        for first_row in (0..rows).step_by(rows_per_call) {
            let in_call = rows_per_call.min(rows - first_row);
            // Checked against all rows here, because a slice of a shorter column would panic.
            check_lengths(&self.0.description, columns, rows)?;
            splitter.decide(&slice(columns, first_row, in_call), first_row, in_call)?;
        }
        splitter.finish()
    }
}

fn check_lengths(description: &Description, columns: &[ArrayRef], rows: usize) -> Result<(), EngineError> {
    let wrong = description.inputs.iter().zip(columns).find(|(_, column)| column.len() != rows);
    let Some((field, column)) = wrong else {
        return Ok(());
    };
    let what = format!("{} rows were passed, the call has {rows}", column.len());
    Err(EngineError::Input { input: field.name.clone(), what })
}

fn slice(columns: &[ArrayRef], first_row: usize, rows: usize) -> Vec<ArrayRef> {
    columns.iter().map(|column| column.slice(first_row, rows)).collect()
}

/// Decides rows one call at a time and keeps what was decided, in row order.
struct Splitter<'a> {
    transform: &'a Inner,
    config: &'a EngineConfig,
    class: Class,
    rows: usize,
    pieces: Vec<Piece>,
    /// Bytes of all pieces.
    bytes: u64,
    outcomes: RowOutcomes,
    /// Set when a serving call first fails: when the request gives up on undecided rows.
    gives_up_at: Option<Instant>,
}

/// The outputs of some rows in a row.
enum Piece {
    Columns(Vec<ArrayRef>),
    /// So many rows without a result.
    Nulls(usize),
}

impl<'a> Splitter<'a> {
    fn new(transform: &'a Inner, class: Class, rows: usize) -> Result<Self, EngineError> {
        if u32::try_from(rows).is_err() {
            return Err(EngineError::Host(format!("{rows} rows are more than one call to apply can number")));
        }
        let config = transform.engine.config();
        let outcomes = RowOutcomes::default();
        Ok(Self { transform, config, class, rows, pieces: Vec::new(), bytes: 0, outcomes, gives_up_at: None })
    }

    /// Decides rows `first_row..first_row + rows`, which `columns` hold.
    fn decide(&mut self, columns: &[ArrayRef], first_row: usize, rows: usize) -> Result<(), EngineError> {
        let inputs = Inputs::new(&self.transform.description.inputs, rows, columns, Nans::Canonical)?;
        if rows == 0 {
            return Ok(());
        }
        if self.trials_are_over() {
            return Err(self.never_answers(first_row, self.config.upload_deadline_ms));
        }
        if let Some(fault) = self.given_up() {
            return self.fail(first_row, rows, &fault);
        }
        match self.call(&inputs, rows, self.deadline(rows)) {
            Ok(output) => self.keep(output, first_row),
            Err(CallError::Engine(error)) => Err(error),
            Err(CallError::Fault(Fault::Deadline { after_ms })) if self.is_upload() => {
                Err(self.never_answers(first_row, after_ms))
            }
            Err(CallError::Fault(fault)) if rows == 1 => self.fail_single(&inputs, first_row, fault),
            Err(CallError::Fault(_)) => {
                self.note_fault();
                drop(inputs);
                let half = rows / 2;
                self.decide(&slice(columns, 0, half), first_row, half)?;
                self.decide(&slice(columns, half, rows - half), first_row + half, rows - half)
            }
        }
    }

    fn call(&self, inputs: &Inputs<'_>, rows: usize, deadline: Duration) -> Result<CheckedOutput, CallError> {
        let output = self.transform.linked.apply(self.config, deadline, rows as u32, &inputs.params())?;
        let checked = CheckedOutput::check(output, rows, &self.transform.description, self.config);
        checked.map_err(|breach| Fault::Breach(breach).into())
    }

    /// The deadline of a first try with so many rows.
    fn deadline(&self, rows: usize) -> Duration {
        let (base_ms, per_row_us) = match self.class {
            Class::Upload { .. } => (self.config.upload_deadline_ms, 0),
            Class::Serving => (self.config.serving_deadline_base_ms, self.config.serving_deadline_per_row_us),
            Class::Batch => (self.config.batch_deadline_base_ms, self.config.batch_deadline_per_row_us),
        };
        Duration::from_millis(base_ms) + Duration::from_micros(per_row_us.saturating_mul(rows as u64))
    }

    /// A single row failed. Only a deadline leaves something to try: in a batch, with more and more time.
    fn fail_single(&mut self, inputs: &Inputs<'_>, row: usize, fault: Fault) -> Result<(), EngineError> {
        let missed_deadline = matches!(fault, Fault::Deadline { .. });
        if !missed_deadline || self.class == Class::Serving {
            self.note_fault();
            return self.fail(row, 1, &fault);
        }
        let longest = Duration::from_millis(self.config.batch_deadline_row_ms_max);
        let mut deadline = self.deadline(1);
        while deadline < longest {
            deadline = (deadline * 4).min(longest);
            match self.call(inputs, 1, deadline) {
                Ok(output) => return self.keep(output, row),
                Err(CallError::Engine(error)) => return Err(error),
                Err(CallError::Fault(Fault::Deadline { .. })) => {}
                Err(CallError::Fault(fault)) => return self.fail(row, 1, &fault),
            }
        }
        Err(self.never_answers(row, u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX)))
    }

    fn never_answers(&self, row: usize, after_ms: u64) -> EngineError {
        let transform = self.transform.description.name.clone();
        EngineError::Deadline { transform, row: row as u32, after_ms }
    }

    fn is_upload(&self) -> bool {
        matches!(self.class, Class::Upload { .. })
    }

    fn trials_are_over(&self) -> bool {
        matches!(self.class, Class::Upload { over_at_cpu } if thread_cpu_time() > over_at_cpu)
    }

    /// Rows that trap slowly can hold a request up as well as rows that never answer.
    fn note_fault(&mut self) {
        if self.class == Class::Serving && self.gives_up_at.is_none() {
            let in_all = Duration::from_millis(self.config.serving_deadline_total_ms);
            self.gives_up_at = Some(Instant::now() + in_all);
        }
    }

    fn given_up(&self) -> Option<Fault> {
        let gives_up_at = self.gives_up_at?;
        let after_ms = self.config.serving_deadline_total_ms;
        (Instant::now() >= gives_up_at).then_some(Fault::Deadline { after_ms })
    }

    fn keep(&mut self, output: CheckedOutput, first_row: usize) -> Result<(), EngineError> {
        let applied = Applied::from_one_call(output)?;
        let number = |row: u32| first_row as u32 + row;
        self.outcomes.dropped.extend(applied.rows.dropped.into_iter().map(number));
        let failed = applied.rows.failed.into_iter().map(|failed| FailedRow { row: number(failed.row), ..failed });
        self.outcomes.failed.extend(failed);
        let bytes = applied.columns.iter().map(|column| column.get_buffer_memory_size() as u64).sum();
        self.pieces.push(Piece::Columns(applied.columns));
        self.count(bytes)
    }

    fn fail(&mut self, first_row: usize, rows: usize, fault: &Fault) -> Result<(), EngineError> {
        let kind = FailureKind::from(fault);
        let message = cut_to(&fault.to_string(), self.config.message_bytes_max as usize).to_owned();
        let mut backtrace = String::new();
        if let Fault::Trap(trap) = fault {
            let name = &self.transform.description.name;
            tracing::debug!(transform = %name, row = first_row, backtrace = %trap.backtrace, "{message}");
            backtrace = trap.first_frames().collect::<Vec<_>>().join("\n");
        }
        let failed = (first_row..first_row + rows).map(|row| FailedRow {
            row: row as u32,
            kind,
            message: message.clone(),
            field: fault.field().map(str::to_owned),
            backtrace: backtrace.clone(),
        });
        self.outcomes.failed.extend(failed);
        match self.pieces.last_mut() {
            Some(Piece::Nulls(earlier)) => *earlier += rows,
            _ => self.pieces.push(Piece::Nulls(rows)),
        }
        let row_bytes: u64 = self.transform.description.outputs.iter().map(bytes_of_null).sum();
        self.count(row_bytes.saturating_mul(rows as u64))
    }

    /// Calls are limited one by one; this limits all of them together.
    fn count(&mut self, bytes: u64) -> Result<(), EngineError> {
        self.bytes = self.bytes.saturating_add(bytes);
        let allowed_bytes = self.config.applied_bytes_max;
        if self.bytes > allowed_bytes {
            let transform = self.transform.description.name.clone();
            return Err(EngineError::Applied { transform, rows: self.rows, allowed_bytes });
        }
        Ok(())
    }

    fn finish(self) -> Result<Applied, EngineError> {
        let outputs = &self.transform.description.outputs;
        let columns_of = |piece: Piece| match piece {
            Piece::Columns(columns) => columns,
            Piece::Nulls(rows) => outputs.iter().map(|field| null_array(field.data_type, rows)).collect(),
        };
        let mut pieces: Vec<Vec<ArrayRef>> = self.pieces.into_iter().map(columns_of).collect();
        if pieces.is_empty() {
            pieces.push(columns_of(Piece::Nulls(self.rows)));
        }
        if pieces.len() == 1
            && let Some(columns) = pieces.pop()
        {
            return Ok(Applied { columns, rows: self.outcomes });
        }
        let columns = (0..outputs.len()).map(|at| {
            let parts: Vec<&dyn Array> = pieces.iter().map(|piece| piece[at].as_ref()).collect();
            arrow_select::concat::concat(&parts).map_err(|error| EngineError::Host(error.to_string()))
        });
        let columns = columns.collect::<Result<_, _>>()?;
        Ok(Applied { columns, rows: self.outcomes })
    }
}

/// What a null of this type takes in a column.
fn bytes_of_null(field: &Field) -> u64 {
    match field.data_type {
        DataType::Vector(dimensions) => 4 * u64::from(dimensions),
        _ => 8,
    }
}

/// The same columns with nulls, and zeros under them, at these rows.
fn null_at(columns: Vec<ArrayRef>, rows: impl Iterator<Item = u32>) -> Result<Vec<ArrayRef>, EngineError> {
    let length = columns.first().map_or(0, |column| column.len());
    let mut mask = BooleanBufferBuilder::new(length);
    mask.append_n(length, false);
    for row in rows {
        mask.set_bit(row as usize, true);
    }
    let mask = BooleanArray::new(mask.finish(), None);
    let with_null = |column: ArrayRef| {
        let nulled =
            arrow_select::nullif::nullif(&column, &mask).map_err(|error| EngineError::Host(error.to_string()))?;
        eadem_values::canonicalize(&nulled).map_err(|error| EngineError::Host(error.to_string()))
    };
    columns.into_iter().map(with_null).collect()
}
