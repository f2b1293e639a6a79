//! What becomes of rows under one version, as a backfill of it would decide.

use std::collections::BTreeMap;

use arrow_array::{Array, ArrayRef};
use arrow_schema::SchemaRef;
use eadem_query::{Validation, run_transform};

use super::report::EffectOutcome;
use crate::bind::{Acceptance, BindPlan};
use crate::erasure::ErasedRows;
use crate::error::OfflineError;
use crate::source::{ReadBatch, SourceReader, inspect_schema};
use crate::spec::ViewSpec;

/// A version, ready to judge rows.
pub(super) struct Side {
    pub(super) spec: ViewSpec,
    pub(super) reader: SourceReader,
    pub(super) key_names: Vec<String>,
    bind: BindPlan,
    /// A row is refused in place of the job.
    validation: Validation,
}

/// The rows of a batch under one version.
#[derive(Debug)]
pub(super) struct Judged {
    /// Numbers of all rows that were read, ascending.
    pub(super) sequence: Vec<i64>,
    /// What became of each.
    pub(super) outcomes: Vec<EffectOutcome>,
    /// Whether the row was bound, so that it stands in the columns below.
    is_bound: Vec<bool>,
    /// Where a row that was bound stands in them.
    pub(super) places: Vec<u32>,
    pub(super) keys: Vec<ArrayRef>,
    pub(super) event_time: ArrayRef,
    pub(super) known_at: ArrayRef,
    pub(super) features: Vec<ArrayRef>,
    /// Why rows were refused or failed, by their position in the batch.
    pub(super) reasons: BTreeMap<usize, String>,
}

impl Side {
    pub(super) fn try_new(spec: ViewSpec, schema: &SchemaRef) -> Result<Self, OfflineError> {
        let bind = BindPlan::try_new(&spec, &inspect_schema(&spec.source, schema)?)?;
        let reader = SourceReader::try_new(&spec.source, schema, &bind.columns)?;
        let key_names = spec.keys.iter().map(|key| key.name.clone()).collect();
        let validation = spec.validation.without_job().into_owned();
        Ok(Self { spec, reader, key_names, bind, validation })
    }

    pub(super) fn judge(&self, mut batch: ReadBatch, acceptance: &Acceptance) -> Result<Judged, OfflineError> {
        let unreadable = std::mem::take(&mut batch.unreadable);
        let mut sequence: Vec<i64> = batch.sequence.values().to_vec();
        sequence.extend(unreadable.iter().map(|row| row.sequence));
        sequence.sort_unstable();
        let rows = self.reader.rows(batch)?;
        let bound = self.bind.bind(&self.key_names, &rows, acceptance)?;
        let transformed = run_transform(self.spec.transform.as_ref(), &self.validation, bound.len(), &bound.inputs)?;

        let mut verdict = Verdicts::of(&sequence);
        for row in unreadable {
            verdict.set(row.sequence, EffectOutcome::Refused, Some(row.fault.reason));
        }
        for row in bound.refused {
            verdict.set(row.sequence, EffectOutcome::Refused, Some(row.reason));
        }
        let number_of = |row: usize| bound.sequence.value(row);
        let mut places = vec![0_u32; sequence.len()];
        let mut is_bound = vec![false; sequence.len()];
        for (place, number) in (0_u32..).zip(bound.sequence.values()) {
            if let Some(position) = verdict.set(*number, EffectOutcome::Computed, None) {
                places[position] = place;
                is_bound[position] = true;
            }
        }
        for row in transformed.dropped {
            verdict.set(number_of(row as usize), EffectOutcome::Dropped, None);
        }
        for row in transformed.failed {
            verdict.set(number_of(row.row as usize), EffectOutcome::Failed, Some(row.message));
        }
        for row in transformed.refused {
            verdict.set(number_of(row.row), EffectOutcome::Refused, Some(row.reason));
        }
        let Verdicts { outcomes, reasons, .. } = verdict;
        Ok(Judged {
            outcomes,
            reasons,
            sequence,
            is_bound,
            places,
            keys: bound.keys,
            event_time: bound.event_time,
            known_at: bound.known_at,
            features: transformed.columns,
        })
    }
}

struct Verdicts<'a> {
    sequence: &'a [i64],
    outcomes: Vec<EffectOutcome>,
    reasons: BTreeMap<usize, String>,
}

impl<'a> Verdicts<'a> {
    /// A row that nothing is said of was left out by `where`.
    fn of(sequence: &'a [i64]) -> Self {
        Self { sequence, outcomes: vec![EffectOutcome::LeftOut; sequence.len()], reasons: BTreeMap::new() }
    }

    fn set(&mut self, number: i64, outcome: EffectOutcome, reason: Option<String>) -> Option<usize> {
        let position = self.position(number)?;
        self.outcomes[position] = outcome;
        if let Some(reason) = reason {
            self.reasons.insert(position, reason);
        }
        Some(position)
    }

    /// Rows mostly stand without gaps.
    fn position(&self, number: i64) -> Option<usize> {
        let first = *self.sequence.first()?;
        let guess = usize::try_from(number.checked_sub(first)?).ok()?;
        if self.sequence.get(guess) == Some(&number) {
            return Some(guess);
        }
        self.sequence.binary_search(&number).ok()
    }
}

impl Judged {
    /// The computed, dropped and failed rows whose entity is erased, by their position in the batch.
    pub(super) fn erased(&self, erased: &ErasedRows) -> Result<Vec<usize>, OfflineError> {
        let Some(stays) = erased.staying(&self.keys, &self.event_time)? else { return Ok(Vec::new()) };
        let is_bound = |row: &usize| self.is_bound[*row];
        Ok((0..self.outcomes.len()).filter(is_bound).filter(|row| !stays.value(self.places[*row] as usize)).collect())
    }

    /// Makes nothing of a row.
    pub(super) fn leave_out(&mut self, row: usize) {
        self.outcomes[row] = EffectOutcome::LeftOut;
        self.reasons.remove(&row);
    }

    /// The columns of computed rows alone.
    pub(super) fn computed(&self) -> Result<(usize, Vec<ArrayRef>), OfflineError> {
        let is_computed = |outcome: &EffectOutcome| *outcome == EffectOutcome::Computed;
        let count = self.outcomes.iter().filter(|outcome| is_computed(outcome)).count();
        if count == self.event_time.len() {
            return Ok((count, self.features.clone()));
        }
        let rows = self.outcomes.iter().zip(&self.places).filter(|(outcome, _)| is_computed(outcome));
        let indices: arrow_array::UInt32Array = rows.map(|(_, place)| *place).collect();
        let take = |column: &ArrayRef| {
            let taken = arrow_select::take::take(column.as_ref(), &indices, None)?;
            Ok(eadem_values::canonicalize(&taken)?)
        };
        Ok((count, self.features.iter().map(take).collect::<Result<_, OfflineError>>()?))
    }
}
