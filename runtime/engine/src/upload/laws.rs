//! The laws a transform must keep, checked on generated rows. "Accepted" means: no violation was found in them.

use std::cell::Cell;
use std::fmt;
use std::time::Duration;

use arrow_array::{Array, ArrayRef, UInt32Array};
use eadem_values::{BatchEncoder, CANONICAL_NAN_F64, Description, Digest};

use super::Refusal;
use super::corpus::{Random, Rows};
use crate::bindings::exports::eadem::transform::types::Output;
use crate::call::{CallError, Linked};
use crate::cpu_time::thread_cpu_time;
use crate::engine::Engine;
use crate::error::{EngineError, Fault};
use crate::input::{Inputs, Nans};
use crate::measure::{repeat, rows_in_budget};
use crate::output::CheckedOutput;
use crate::transform::{Applied, Class, FailedRow, FailureKind, Transform};

/// What every transform must keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Law {
    /// Every call ends.
    Terminates,
    /// Lengths, types, offsets, nulls and row lists are those of the contract and the description.
    Contract,
    /// A total transform has a result for every row.
    Total,
    /// A row's result does not depend on the rows that are computed with it, nor on how many they are.
    RowByRow,
    /// A row's result does not depend on its place.
    Order,
    /// The same call gives the same result.
    Repeatable,
    /// A call does not depend on an earlier one.
    Memoryless,
}

impl Law {
    /// A short stable word.
    pub fn code(self) -> &'static str {
        match self {
            Self::Terminates => "law_terminates",
            Self::Contract => "law_contract",
            Self::Total => "law_total",
            Self::RowByRow => "law_row_by_row",
            Self::Order => "law_order",
            Self::Repeatable => "law_repeatable",
            Self::Memoryless => "law_memoryless",
        }
    }

    fn sentence(self) -> &'static str {
        match self {
            Self::Terminates => "every call ends",
            Self::Contract => "the answer is what the contract and the description say",
            Self::Total => "a total transform has a result for every row",
            Self::RowByRow => "a row's result does not depend on the rows computed with it",
            Self::Order => "a row's result does not depend on its place among others",
            Self::Repeatable => "the same call gives the same result",
            Self::Memoryless => "a call does not depend on an earlier one",
        }
    }
}

/// A law was broken, and how to see it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which law.
    pub law: Law,
    /// Seed of the random rows.
    pub seed: u64,
    /// The first row where it shows, counted over the fixed corpus and the random rows.
    pub row: Option<u32>,
    /// The first output that is at fault, where one is.
    pub field: Option<String>,
    /// What was seen.
    pub what: String,
    /// The inputs of that row.
    pub inputs: String,
    /// Names of the first functions, innermost first, one a line; empty unless it trapped.
    pub backtrace: String,
}

impl std::error::Error for Violation {}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it breaks the law that {} ({}; seed {}", self.law.sentence(), self.law.code(), self.seed)?;
        if let Some(row) = self.row {
            write!(f, ", row {row}")?;
        }
        write!(f, "): {}", self.what)?;
        if !self.inputs.is_empty() {
            write!(f, "; inputs: {}", self.inputs)?;
        }
        if !self.backtrace.is_empty() {
            write!(f, "; in {}", self.backtrace.replace('\n', ", called from "))?;
        }
        Ok(())
    }
}

/// A component on trial.
pub(super) struct Subject {
    pub(super) transform: Transform,
}

/// What the laws found out beside that they hold.
pub(super) struct Finding {
    pub(super) faulty_rows: u32,
    pub(super) first_fault: Option<String>,
    /// Generated rows that have a result: what cost is measured on.
    pub(super) sound_rows: Vec<ArrayRef>,
}

impl Subject {
    pub(super) fn new(
        engine: &Engine,
        digest: Digest,
        description: &Description,
        strict_nan: bool,
        linked: Linked,
    ) -> Self {
        let transform = Transform::new(engine.clone(), digest, description.clone(), strict_nan, None, linked);
        Self { transform }
    }
}

/// A row that trapped or hit a limit, and what happened.
type FaultyRow = (u32, String);

/// What became of one row. Messages of traps are for people and may differ.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Values(Vec<u8>),
    /// Values too long to be kept for every row.
    LongValues {
        bytes: usize,
        hash: blake3::Hash,
    },
    Dropped,
    RowError(String),
    Failed(FailureKind),
}

/// Checks all laws, the telling ones first.
pub(super) fn check(subject: &Subject, rows: &Rows) -> Result<Finding, Refusal> {
    let allowed = Duration::from_millis(subject.transform.engine().config().upload_cpu_ms_max);
    let trial = Trial { transform: &subject.transform, rows, over_at_cpu: thread_cpu_time() + allowed };
    let (single, faults) = trial.row_by_row()?;
    let all: Vec<u32> = (0..rows.count()).collect();
    let whole = trial.outcomes(&all)?;
    trial.compare(Law::RowByRow, &all, &single, &whole, "alone and with all others")?;
    let again = trial.outcomes(&all)?;
    trial.compare(Law::Repeatable, &all, &whole, &again, "in two calls")?;
    let answered: Vec<u32> =
        all.iter().copied().filter(|row| !matches!(single[*row as usize], Outcome::Failed(_))).collect();
    trial.unsplit(&answered, &trial.take(&answered), &single)?;
    trial.memoryless(&answered, &single)?;
    trial.order(&single)?;
    trial.splits(&single)?;
    trial.full_call(&answered, &single)?;
    let is_sound = |row: &u32| matches!(single[*row as usize], Outcome::Values(_) | Outcome::LongValues { .. });
    let sound: Vec<u32> = all.iter().copied().filter(is_sound).collect();
    if sound.is_empty()
        && let Some((row, message)) = faults.first()
    {
        // A partial transform may fail rows, but not by trapping on all of them.
        return Err(trial
            .violation(Law::Total, Some(*row), format!("no generated row has a result: {message}"))
            .into());
    }
    Ok(Finding {
        faulty_rows: u32::try_from(faults.len()).unwrap_or(u32::MAX),
        first_fault: faults.first().map(|(row, message)| format!("row {row}: {message}")),
        sound_rows: trial.take(&sound),
    })
}

struct Trial<'a> {
    transform: &'a Transform,
    rows: &'a Rows,
    over_at_cpu: Duration,
}

impl Trial<'_> {
    fn violation(&self, law: Law, row: Option<u32>, what: String) -> Violation {
        let inputs = row.map_or(String::new(), |row| self.inputs(row));
        Violation { law, seed: self.rows.seed, row, field: None, what, inputs, backtrace: String::new() }
    }

    /// The inputs of one row, as an author would write them down.
    fn inputs(&self, row: u32) -> String {
        const TEXT_BYTES_MAX: usize = 400;
        let fields = &self.transform.description().inputs;
        let values = fields.iter().zip(&self.rows.columns).map(|(field, column)| {
            let value = eadem_values::value_at(column, row as usize);
            let value = value.map_or_else(|error| error.to_string(), |value| format!("{value:?}"));
            format!("{} = {}", field.name, crate::state::cut_to(&value, TEXT_BYTES_MAX))
        });
        values.collect::<Vec<_>>().join(", ")
    }

    fn take(&self, rows: &[u32]) -> Vec<ArrayRef> {
        let indices = UInt32Array::from(rows.to_vec());
        let columns =
            self.rows.columns.iter().map(|column| {
                arrow_select::take::take(column, &indices, None).unwrap_or_else(|_| ArrayRef::clone(column))
            });
        columns.collect()
    }

    fn apply(&self, rows: &[u32]) -> Result<Applied, Refusal> {
        let in_row_order = rows.windows(2).all(|pair| pair[0] + 1 == pair[1]);
        let columns = match rows.first() {
            Some(first) if in_row_order => {
                self.rows.columns.iter().map(|column| column.slice(*first as usize, rows.len())).collect()
            }
            _ => self.take(rows),
        };
        match self.transform.apply_as(rows.len(), &columns, Class::Upload { over_at_cpu: self.over_at_cpu }) {
            Ok(applied) => Ok(applied),
            Err(EngineError::Deadline { .. }) if thread_cpu_time() > self.over_at_cpu => {
                let allowed_ms = self.transform.engine().config().upload_cpu_ms_max;
                let what = format!("the trials took more than {allowed_ms} ms of processor time (upload_cpu_ms_max)");
                Err(self.violation(Law::Terminates, None, what).into())
            }
            Err(EngineError::Deadline { row, after_ms, .. }) => {
                let row = rows.get(row as usize).copied();
                let what = format!("no answer to a call with {} rows within {after_ms} ms", rows.len());
                Err(self.violation(Law::Terminates, row, what).into())
            }
            Err(EngineError::Applied { rows, allowed_bytes, .. }) => {
                let what =
                    format!("the outputs of {rows} rows are larger than {allowed_bytes} bytes (applied_bytes_max)");
                Err(self.violation(Law::Total, None, what).into())
            }
            Err(error) => Err(Refusal::Engine(error)),
        }
    }

    fn outcomes(&self, rows: &[u32]) -> Result<Vec<Outcome>, Refusal> {
        outcomes_of(&self.apply(rows)?, rows.len()).map_err(Refusal::Engine)
    }

    /// The meaning of the transform: its result on each row alone. Also the rows that failed as none may.
    fn row_by_row(&self) -> Result<(Vec<Outcome>, Vec<FaultyRow>), Refusal> {
        let mut outcomes = Vec::new();
        let mut faults = Vec::new();
        for row in 0..self.rows.count() {
            let applied = self.apply(&[row])?;
            if let Some(failed) = applied.rows.failed.first()
                && failed.kind != FailureKind::RowError
            {
                self.judge(row, failed)?;
                faults.push((row, failed.message.clone()));
            }
            outcomes.extend(outcomes_of(&applied, 1).map_err(Refusal::Engine)?);
        }
        Ok((outcomes, faults))
    }

    /// No transform may break the contract, and a total one may not trap.
    fn judge(&self, row: u32, failed: &FailedRow) -> Result<(), Violation> {
        let law = match failed.kind {
            FailureKind::Breach => Law::Contract,
            _ if self.transform.description().total => Law::Total,
            _ => return Ok(()),
        };
        let violation = self.violation(law, Some(row), failed.message.clone());
        Err(Violation { backtrace: failed.backtrace.clone(), field: failed.field.clone(), ..violation })
    }

    /// What a fault says of rows that have an answer each alone.
    fn judge_batch(&self, rows: usize, fault: &Fault) -> Result<(), Violation> {
        let (law, what) = match fault {
            // Many rows may take more memory, output and time than there is: that is what splitting is for.
            Fault::Limit(_) | Fault::Deadline { .. } => return Ok(()),
            Fault::Breach(_) | Fault::Contract(_) => (Law::Contract, format!("in a call with {rows} rows: {fault}")),
            Fault::Trap(_) | Fault::Declined(_) => {
                (Law::RowByRow, format!("each of {rows} rows has an answer alone, in one call they have none: {fault}"))
            }
        };
        let field = fault.field().map(str::to_owned);
        Err(Violation { backtrace: first_frames(fault), field, ..self.violation(law, None, what) })
    }

    fn compare(
        &self,
        law: Law,
        rows: &[u32],
        expected: &[Outcome],
        found: &[Outcome],
        between: &str,
    ) -> Result<(), Violation> {
        let differing = expected.iter().zip(found).position(|(expected, found)| expected != found);
        let Some(at) = differing else {
            return Ok(());
        };
        let what = format!("{between} it is {} and {}", self.text(&expected[at]), self.text(&found[at]));
        let field = self.differing_field(&expected[at], &found[at]);
        Err(Violation { field, ..self.violation(law, rows.get(at).copied(), what) })
    }

    /// As [`Trial::compare`], with what each row is alone.
    fn compare_with_single(
        &self,
        law: Law,
        rows: &[u32],
        single: &[Outcome],
        found: &[Outcome],
        between: &str,
    ) -> Result<(), Violation> {
        let differing = rows.iter().zip(found).find(|(row, found)| single[**row as usize] != **found);
        let Some((row, found)) = differing else {
            return Ok(());
        };
        let expected = &single[*row as usize];
        let what = format!("{between} it is {} and {}", self.text(expected), self.text(found));
        let field = self.differing_field(expected, found);
        Err(Violation { field, ..self.violation(law, Some(*row), what) })
    }

    /// The first output whose value differs, where both are values.
    fn differing_field(&self, expected: &Outcome, found: &Outcome) -> Option<String> {
        let (Outcome::Values(expected), Outcome::Values(found)) = (expected, found) else { return None };
        let outputs = &self.transform.description().outputs;
        let types: Vec<_> = outputs.iter().map(|field| field.data_type).collect();
        let expected = eadem_values::decode_row(&types, expected).ok()?;
        let found = eadem_values::decode_row(&types, found).ok()?;
        let mut pairs = outputs.iter().zip(expected.iter().zip(&found));
        let (field, _) = pairs.find(|(_, (expected, found))| !expected.bits_eq(found))?;
        Some(field.name.clone())
    }

    fn text(&self, outcome: &Outcome) -> String {
        match outcome {
            Outcome::Dropped => "dropped".to_owned(),
            Outcome::RowError(message) => format!("the error `{message}`"),
            Outcome::Failed(kind) => format!("a failure ({})", kind.as_str()),
            Outcome::LongValues { bytes, hash } => format!("{bytes} bytes with hash {}", &hash.to_hex()[..16]),
            Outcome::Values(encoded) => {
                let types: Vec<_> = self.transform.description().outputs.iter().map(|field| field.data_type).collect();
                let values = eadem_values::decode_row(&types, encoded);
                values.map_or_else(
                    |error| error.to_string(),
                    |values| crate::state::cut_to(&format!("{values:?}"), 400).to_owned(),
                )
            }
        }
    }

    /// Wherever a call fails, splitting falls back to single rows, so what only a batch does wrong is hidden by it.
    /// Here the rows, in these columns, are one call and nothing is split.
    fn unsplit(&self, rows: &[u32], columns: &[ArrayRef], single: &[Outcome]) -> Result<(), Refusal> {
        if rows.is_empty() {
            return Ok(());
        }
        match call_once(self.transform, self.transform.linked(), columns, rows.len(), Nans::Canonical)? {
            Ok(found) => {
                self.compare_with_single(Law::RowByRow, rows, single, &found, "alone and in one call with others")?;
            }
            Err(fault) => self.judge_batch(rows.len(), &fault)?,
        }
        Ok(())
    }

    /// As [`Trial::unsplit`], with as many rows as production puts into one call, where there is time for it.
    fn full_call(&self, rows: &[u32], single: &[Outcome]) -> Result<(), Refusal> {
        let config = self.transform.engine().config();
        let takes_at_most = Duration::from_millis(config.upload_deadline_ms);
        if rows.is_empty() || thread_cpu_time() + takes_at_most > self.over_at_cpu {
            return Ok(());
        }
        let columns = self.take(rows);
        let count = rows_in_budget(&columns, rows.len(), config.call_rows_max as usize);
        let repeated: Vec<u32> = rows.iter().copied().cycle().take(count).collect();
        self.unsplit(&repeated, &repeat(&columns, rows.len(), count)?, single)
    }

    /// Calls one instance twice, which production never does, and looks whether the first call is seen in the second.
    fn memoryless(&self, rows: &[u32], single: &[Outcome]) -> Result<(), Refusal> {
        let first_row = &rows[..rows.len().min(1)];
        // All rows twice may be too much for one instance; one row is not.
        for rows in [rows, first_row] {
            match self.second_call(rows)? {
                None => {}
                Some(Ok(second)) => {
                    let between = "in a first and a second call of one instance";
                    self.compare_with_single(Law::Memoryless, rows, single, &second, between)?;
                    return Ok(());
                }
                Some(Err(fault)) => {
                    let what = format!("a second call of one instance fails, the first did not: {fault}");
                    let violation = self.violation(Law::Memoryless, None, what);
                    return Err(Violation { backtrace: first_frames(&fault), ..violation }.into());
                }
            }
        }
        Ok(())
    }

    /// What the second of two equal calls gives; `None` where a limit, or the first call, leaves nothing to see.
    fn second_call(&self, rows: &[u32]) -> Result<Option<Result<Vec<Outcome>, Fault>>, Refusal> {
        let config = self.transform.engine().config();
        let description = self.transform.description();
        let columns = self.take(rows);
        let count = rows.len();
        let inputs = Inputs::new(&description.inputs, count, &columns, Nans::Canonical)?;
        let linked = self.transform.linked();
        let deadline = Duration::from_millis(config.upload_deadline_ms);
        let after_first = linked.instantiate(config, deadline).and_then(|mut instance| {
            instance.apply(linked, config, count as u32, &inputs.params())?;
            Ok(instance)
        });
        let mut instance = match after_first {
            Ok(instance) => instance,
            Err(CallError::Fault(_)) => return Ok(None),
            Err(CallError::Engine(error)) => return Err(Refusal::Engine(error)),
        };
        match instance.apply(linked, config, count as u32, &inputs.params()) {
            Ok(output) => Ok(Some(checked_outcomes(output, count, self.transform)?)),
            Err(CallError::Fault(Fault::Limit(_) | Fault::Deadline { .. })) => Ok(None),
            Err(CallError::Fault(fault)) => Ok(Some(Err(fault))),
            Err(CallError::Engine(error)) => Err(Refusal::Engine(error)),
        }
    }

    fn order(&self, single: &[Outcome]) -> Result<(), Refusal> {
        let mut random = Random::new(self.rows.seed ^ 0x6f72_6465_7221);
        let mut shuffled: Vec<u32> = (0..self.rows.count()).collect();
        for last in (1..shuffled.len()).rev() {
            shuffled.swap(last, random.below(last as u64 + 1) as usize);
        }
        self.expect(Law::Order, &shuffled, single, "alone and in a shuffled batch")
    }

    /// Cuts the rows at random places.
    fn splits(&self, single: &[Outcome]) -> Result<(), Refusal> {
        const SPLITS: usize = 8;
        let mut random = Random::new(self.rows.seed ^ 0x0073_706c_6974);
        for _ in 0..SPLITS {
            let cut = random.below(u64::from(self.rows.count()) + 1) as u32;
            let before: Vec<u32> = (0..cut).collect();
            let after: Vec<u32> = (cut..self.rows.count()).collect();
            self.expect(Law::RowByRow, &before, single, "alone and in a part of the batch")?;
            self.expect(Law::RowByRow, &after, single, "alone and in a part of the batch")?;
        }
        Ok(())
    }

    fn expect(&self, law: Law, rows: &[u32], single: &[Outcome], between: &str) -> Result<(), Refusal> {
        let found = self.outcomes(rows)?;
        self.compare_with_single(law, rows, single, &found, between)?;
        Ok(())
    }
}

fn first_frames(fault: &Fault) -> String {
    match fault {
        Fault::Trap(trap) => trap.first_frames().collect::<Vec<_>>().join("\n"),
        _ => String::new(),
    }
}

/// One call with these rows: what became of each, or the fault of the call.
fn call_once(
    transform: &Transform,
    linked: &Linked,
    columns: &[ArrayRef],
    rows: usize,
    nans: Nans,
) -> Result<Result<Vec<Outcome>, Fault>, Refusal> {
    let config = transform.engine().config();
    let inputs = Inputs::new(&transform.description().inputs, rows, columns, nans)?;
    let deadline = Duration::from_millis(config.upload_deadline_ms);
    match linked.apply(config, deadline, rows as u32, &inputs.params()) {
        Ok(output) => Ok(checked_outcomes(output, rows, transform)?),
        Err(CallError::Fault(fault)) => Ok(Err(fault)),
        Err(CallError::Engine(error)) => Err(Refusal::Engine(error)),
    }
}

fn checked_outcomes(
    output: Output,
    rows: usize,
    transform: &Transform,
) -> Result<Result<Vec<Outcome>, Fault>, EngineError> {
    match CheckedOutput::check(output, rows, transform.description(), transform.engine().config()) {
        Ok(checked) => outcomes_of(&Applied::from_one_call(checked)?, rows).map(Ok),
        Err(breach) => Ok(Err(Fault::Breach(breach))),
    }
}

/// The encoded values of a row up to this size are kept as they are.
const KEPT_BYTES_MAX: usize = 4_096;

fn outcomes_of(applied: &Applied, rows: usize) -> Result<Vec<Outcome>, EngineError> {
    let encoder = BatchEncoder::try_new(&applied.columns).map_err(|error| EngineError::Host(error.to_string()))?;
    let values = (0..rows).map(|row| {
        let mut encoded = Vec::new();
        encoder.encode_row(row, &mut encoded);
        if encoded.len() > KEPT_BYTES_MAX {
            return Outcome::LongValues { bytes: encoded.len(), hash: blake3::hash(&encoded) };
        }
        Outcome::Values(encoded)
    });
    let mut outcomes: Vec<Outcome> = values.collect();
    for row in &applied.rows.dropped {
        outcomes[*row as usize] = Outcome::Dropped;
    }
    for failed in &applied.rows.failed {
        outcomes[failed.row as usize] = match failed.kind {
            FailureKind::RowError => Outcome::RowError(failed.message.clone()),
            kind => Outcome::Failed(kind),
        };
    }
    Ok(outcomes)
}

/// The NaN law: whether outputs differ between arithmetic that makes every NaN canonical and arithmetic that leaves them
/// as this processor does, over NaNs of both signs and several payloads. If so, the component looks at the bits of NaNs,
/// and has to be compiled so that there is only one.
///
/// `rows` are rows that have a result. Payloads never enter in production; here they do, because they show what a
/// component looks at.
///
/// Where nothing can be concluded the bits are taken to matter: that costs time, and never a difference between
/// machines.
pub(super) fn nan_bits_matter(plain: &Subject, strict: &Linked, rows: &[ArrayRef]) -> Result<bool, Refusal> {
    if host_makes_canonical_nans() {
        return Ok(true);
    }
    let count = rows.first().map_or(1, |column| column.len());
    for nans in [Nans::Canonical, Nans::AsTheyAre] {
        let law = NanLaw { plain: &plain.transform, strict, nans, tries_left: Cell::new(64) };
        if law.differs(rows, count)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether this processor's own NaN is the canonical one, as on aarch64. Arithmetic that leaves NaNs as they are looks
/// the same there as arithmetic that makes them canonical, though it is not on x86-64.
fn host_makes_canonical_nans() -> bool {
    let made = std::hint::black_box(0.0_f64) * f64::INFINITY;
    made.to_bits() == CANONICAL_NAN_F64.to_bits()
}

struct NanLaw<'a> {
    plain: &'a Transform,
    strict: &'a Linked,
    nans: Nans,
    tries_left: Cell<u32>,
}

impl NanLaw<'_> {
    /// Batches that fail, as they may with payloads that they never see otherwise, are halved, so that one bad row does
    /// not hide the others. Too many of them hide what is not looked at any more.
    fn differs(&self, columns: &[ArrayRef], rows: usize) -> Result<bool, Refusal> {
        if rows == 0 {
            return Ok(false);
        }
        if self.tries_left.get() == 0 {
            return Ok(true);
        }
        self.tries_left.set(self.tries_left.get() - 1);
        let plain = self.outcomes(self.plain.linked(), columns, rows)?;
        let strict = self.outcomes(self.strict, columns, rows)?;
        match (plain, strict) {
            (Ok(plain), Ok(strict)) => Ok(plain != strict),
            (plain, strict) if rows == 1 => Ok(plain.is_ok() != strict.is_ok()),
            _ => {
                let half = rows / 2;
                let part = |from: usize, rows: usize| -> Vec<ArrayRef> {
                    columns.iter().map(|column| column.slice(from, rows)).collect()
                };
                Ok(self.differs(&part(0, half), half)? || self.differs(&part(half, rows - half), rows - half)?)
            }
        }
    }

    fn outcomes(
        &self,
        linked: &Linked,
        columns: &[ArrayRef],
        rows: usize,
    ) -> Result<Result<Vec<Outcome>, Fault>, Refusal> {
        match call_once(self.plain, linked, columns, rows, self.nans)? {
            Err(Fault::Contract(what)) => Err(Refusal::Contract { what }),
            outcomes => Ok(outcomes),
        }
    }
}
