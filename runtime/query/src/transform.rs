//! Running a transform over columns, and what becomes of each row.

use std::fmt::Debug;
use std::time::Duration;

use arrow_array::{Array, ArrayRef};
use eadem_values::{Description, Digest};

use crate::validate::{RefusedValue, Validation, ValidationPolicy, validate_outputs};
use crate::{QueryError, gather};

/// Rows in one call of a transform outside of serving.
pub const BATCH_ROWS: usize = 8_192;

/// One component, ready to run. The engine implements it; tests use native stand-ins.
pub trait RowTransform: Debug + Send + Sync {
    /// What the component says of itself.
    fn description(&self) -> &Description;

    /// The digest of the component's bytes.
    fn digest(&self) -> &Digest;

    /// What a row costs on every machine, in units of the engine; `None`: nobody has measured it.
    fn fuel_per_row(&self) -> Option<u64> {
        None
    }

    /// Runs the component over `rows` rows. `inputs` are the declared inputs, in declared order, in canonical form
    /// (see `eadem_values::canonicalize`); an input declared not nullable has no null.
    ///
    /// # Errors
    /// Only what cannot be blamed on rows: no instance, a deadline that single rows exceed in a batch job. A row that
    /// traps or breaks the contract is in [`AppliedRows::failed`].
    fn apply(&self, rows: usize, inputs: &[ArrayRef]) -> Result<AppliedRows, TransformFailure>;
}

/// What a call returned: one entry per row in every column; entries at dropped and failed rows mean nothing.
#[derive(Debug, Clone, Default)]
pub struct AppliedRows {
    /// The declared outputs, in declared order.
    pub columns: Vec<ArrayRef>,
    /// Rows that the transform left out, strictly ascending.
    pub dropped: Vec<u32>,
    /// Rows without a result, strictly ascending and disjoint from `dropped`.
    pub failed: Vec<FailedRow>,
    /// Processor time of the call, where it is known.
    pub cpu: Duration,
}

/// A row that a transform could not, or would not, compute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedRow {
    /// Position in the batch.
    pub row: u32,
    /// What the component or the engine said.
    pub message: String,
}

/// A transform that could not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("transform {transform}{}: {message}", .row.map(|row| format!(", row {row}")).unwrap_or_default())]
pub struct TransformFailure {
    /// Name of the transform.
    pub transform: String,
    /// What went wrong and what to do.
    pub message: String,
    /// The row at which it went wrong, where one is to blame: its position in the columns passed. The message does not
    /// number it, since whoever passed them may know it by another number.
    pub row: Option<u32>,
    /// Nothing is wrong with the call: too many others wait, and the same one may be made later.
    pub is_busy: bool,
}

/// Rows after the transform and its view's validation policy.
#[derive(Debug, Clone, Default)]
pub struct TransformedRows {
    /// The declared outputs, in declared order and canonical form; null at every row without a result.
    pub columns: Vec<ArrayRef>,
    /// Rows that the transform left out, strictly ascending.
    pub dropped: Vec<u32>,
    /// Rows without a result, strictly ascending.
    pub failed: Vec<FailedRow>,
    /// Rows refused by a bound or constraint, ascending: under [`ValidationPolicy::RefuseRow`], and those of a partial
    /// transform whose values no policy can mend. Such rows of a total transform are in `failed`.
    pub refused: Vec<RefusedValue>,
}

/// Runs `transform` over `rows` rows in batches of [`BATCH_ROWS`] and applies `validation` to what comes back.
///
/// # Errors
/// A transform that could not run; under [`ValidationPolicy::StopJob`] the first value that a constraint refuses.
pub fn run_transform(
    transform: &dyn RowTransform,
    validation: &Validation,
    rows: usize,
    inputs: &[ArrayRef],
) -> Result<TransformedRows, QueryError> {
    check_inputs(transform.description(), rows, inputs)?;
    if rows <= BATCH_ROWS {
        return run_batch(transform, validation, rows, inputs);
    }
    let mut parts = Vec::with_capacity(rows.div_ceil(BATCH_ROWS));
    let mut start = 0;
    while start < rows {
        let length = BATCH_ROWS.min(rows - start);
        let slice: Vec<ArrayRef> = inputs.iter().map(|input| input.slice(start, length)).collect();
        let part =
            run_batch(transform, validation, length, &slice).map_err(|error| error.renumbered(|row| start + row))?;
        parts.push((start, part));
        start += length;
    }
    concat_parts(&parts)
}

fn check_inputs(description: &Description, rows: usize, inputs: &[ArrayRef]) -> Result<(), QueryError> {
    if inputs.len() != description.inputs.len() {
        return Err(QueryError::Shape(format!(
            "transform {} declares {} inputs, {} columns were bound",
            description.name,
            description.inputs.len(),
            inputs.len()
        )));
    }
    for (field, input) in description.inputs.iter().zip(inputs) {
        if input.len() != rows {
            return Err(QueryError::Shape(format!(
                "input `{}` of transform {} has {} rows, expected {rows}",
                field.name,
                description.name,
                input.len()
            )));
        }
    }
    Ok(())
}

fn run_batch(
    transform: &dyn RowTransform,
    validation: &Validation,
    rows: usize,
    inputs: &[ArrayRef],
) -> Result<TransformedRows, QueryError> {
    if rows == 0 {
        let columns = transform
            .description()
            .outputs
            .iter()
            .map(|field| arrow_array::new_empty_array(&field.data_type.to_arrow()));
        return Ok(TransformedRows { columns: columns.collect(), ..TransformedRows::default() });
    }
    let applied = transform.apply(rows, inputs)?;
    let mut columns = applied.columns;
    if !applied.dropped.is_empty() || !applied.failed.is_empty() {
        let without_result = applied.dropped.iter().copied().chain(applied.failed.iter().map(|failure| failure.row));
        let keep = gather::all_but(rows, without_result);
        columns = columns.iter().map(|column| gather::null_rows(column, &keep)).collect::<Result<_, _>>()?;
    }
    let absent = |row: usize| {
        let row = row as u32;
        applied.dropped.binary_search(&row).is_ok()
            || applied.failed.binary_search_by_key(&row, |failure| failure.row).is_ok()
    };
    let (columns, refused) = validate_outputs(&transform.description().outputs, columns, validation, &absent)?;
    if !transform.description().total || refused.is_empty() {
        return Ok(TransformedRows { columns, dropped: applied.dropped, failed: applied.failed, refused });
    }
    // A total transform may run on read, where its row is stored before its values are known and can win. A value that the
    // policy cannot mend must therefore not unmake the row in the other placement either: the row is kept, and failed. What
    // refuses rows is never placed on read.
    let (refused, unmended): (Vec<_>, Vec<_>) =
        refused.into_iter().partition(|value| value.policy == ValidationPolicy::RefuseRow);
    let mut failed = applied.failed;
    failed.extend(unmended.into_iter().map(|value| FailedRow { row: value.row as u32, message: value.reason }));
    failed.sort_by_key(|failure| failure.row);
    Ok(TransformedRows { columns, dropped: applied.dropped, failed, refused })
}

fn concat_parts(parts: &[(usize, TransformedRows)]) -> Result<TransformedRows, QueryError> {
    let mut whole = TransformedRows::default();
    for (start, part) in parts {
        let shift = *start as u32;
        whole.dropped.extend(part.dropped.iter().map(|row| row + shift));
        whole.failed.extend(
            part.failed.iter().map(|failure| FailedRow { row: failure.row + shift, message: failure.message.clone() }),
        );
        whole
            .refused
            .extend(part.refused.iter().map(|refused| RefusedValue { row: refused.row + start, ..refused.clone() }));
    }
    let width = parts.first().map_or(0, |(_, part)| part.columns.len());
    for column in 0..width {
        let pieces: Vec<&dyn Array> = parts.iter().map(|(_, part)| part.columns[column].as_ref()).collect();
        whole.columns.push(arrow_select::concat::concat(&pieces)?);
    }
    Ok(whole)
}
