//! On-demand views: a transform over request fields and other views' features, with their statuses.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, UInt32Array};
use eadem_semantics::Status;

use crate::gather::scatter_rows;
use crate::{QueryError, RowTransform, Validation, run_transform};

/// One input of an on-demand view, one entry per request row.
#[derive(Debug, Clone)]
pub struct OnDemandInput {
    /// The values, in canonical form and of the declared type. Not with a view's default: that is for readers only.
    pub values: ArrayRef,
    /// The statuses of another view's feature; `None` for request fields and literals, whose null is status `null`.
    pub statuses: Option<Arc<[Status]>>,
}

/// What an on-demand view gives, one entry per request row in every column.
#[derive(Debug, Clone)]
pub struct OnDemandOutput {
    /// The declared outputs, in declared order; null wherever the status is not `present`.
    pub columns: Vec<ArrayRef>,
    /// For each output, the status of every row.
    pub statuses: Vec<Arc<[Status]>>,
    /// Rows that failed, with the reason.
    pub errors: Vec<(usize, String)>,
}

/// Computes an on-demand view.
///
/// A row with a null in an input declared not nullable never reaches the transform: all its outputs take that input's
/// status, the worst where several are null. A dropped row gives `null`, a failed or refused one `error`. No row is ever
/// lost: row `i` of the answer belongs to row `i` of the inputs.
///
/// # Errors
/// A transform that could not run at all; inputs that do not fit its declaration.
pub fn evaluate_on_demand(
    transform: &dyn RowTransform,
    validation: &Validation,
    rows: usize,
    inputs: &[OnDemandInput],
) -> Result<OnDemandOutput, QueryError> {
    let description = transform.description();
    if inputs.len() != description.inputs.len() {
        return Err(QueryError::Shape(format!(
            "transform {} declares {} inputs, {} were bound",
            description.name,
            description.inputs.len(),
            inputs.len()
        )));
    }
    let mut row_status = vec![Status::Present; rows];
    for (field, input) in description.inputs.iter().zip(inputs) {
        if input.values.len() != rows || input.statuses.as_ref().is_some_and(|statuses| statuses.len() != rows) {
            return Err(QueryError::Shape(format!("input `{}` has not {rows} rows", field.name)));
        }
        if field.accepts_null() || input.values.null_count() == 0 {
            continue;
        }
        for row in (0..rows).filter(|row| input.values.is_null(*row)) {
            row_status[row] = Status::worst([row_status[row], status_of_null(input, row)]);
        }
    }
    let computed: Vec<u32> =
        (0..rows).filter(|row| row_status[*row] == Status::Present).map(|row| row as u32).collect();

    // A refused value of an on-demand row is an error of that row: there is no job to stop and no row to leave out.
    let validation = validation.without_job();
    let (columns, errors) = if computed.len() == rows {
        let columns: Vec<ArrayRef> = inputs.iter().map(|input| input.values.clone()).collect();
        let result = run_transform(transform, &validation, rows, &columns)?;
        mark(&result, &computed, &mut row_status);
        let errors = errors_of(&result, &computed);
        (result.columns, errors)
    } else {
        let indices = UInt32Array::from(computed.clone());
        let columns: Vec<ArrayRef> = inputs
            .iter()
            .map(|input| {
                let taken = arrow_select::take::take(input.values.as_ref(), &indices, None)?;
                Ok(eadem_values::canonicalize(&taken)?)
            })
            .collect::<Result<_, QueryError>>()?;
        let number = |row: usize| computed.get(row).map_or(row, |row| *row as usize);
        let result = run_transform(transform, &validation, computed.len(), &columns)
            .map_err(|error| error.renumbered(number))?;
        mark(&result, &computed, &mut row_status);
        let errors = errors_of(&result, &computed);
        let spread = result.columns.iter().map(|column| scatter_rows(column, &computed, rows));
        (spread.collect::<Result<Vec<_>, _>>()?, errors)
    };
    let statuses = columns.iter().map(|column| output_statuses(column, &row_status)).collect();
    Ok(OnDemandOutput { columns, statuses, errors })
}

fn status_of_null(input: &OnDemandInput, row: usize) -> Status {
    match input.statuses.as_ref().map(|statuses| statuses[row]) {
        None | Some(Status::Present) => Status::Null,
        Some(status) => status,
    }
}

fn mark(result: &crate::TransformedRows, computed: &[u32], row_status: &mut [Status]) {
    for row in &result.dropped {
        row_status[computed[*row as usize] as usize] = Status::Null;
    }
    for failure in &result.failed {
        row_status[computed[failure.row as usize] as usize] = Status::Error;
    }
    for refused in &result.refused {
        row_status[computed[refused.row] as usize] = Status::Error;
    }
}

fn errors_of(result: &crate::TransformedRows, computed: &[u32]) -> Vec<(usize, String)> {
    let failed = result.failed.iter().map(|failure| (failure.row as usize, failure.message.clone()));
    let refused = result.refused.iter().map(|refused| (refused.row, refused.reason.clone()));
    let mut errors: Vec<(usize, String)> =
        failed.chain(refused).map(|(row, message)| (computed[row] as usize, message)).collect();
    errors.sort_by_key(|(row, _)| *row);
    errors
}

fn output_statuses(column: &ArrayRef, of_rows: &[Status]) -> Arc<[Status]> {
    of_rows.iter().enumerate().map(|(row, of_row)| of_row.of_value(column.is_null(row))).collect()
}
