//! From the winning row of each read to a feature's value and status. Training sets and live requests both end here.

use std::sync::Arc;

use arrow_array::types::Int8Type;
use arrow_array::{Array, ArrayRef, DictionaryArray, Int8Array, StringArray, UInt32Array};
use arrow_buffer::BooleanBuffer;
use eadem_semantics::{Lifetime, Status, row_status};
use eadem_values::{DataType, Value, array_from_values};

use crate::{QueryError, RowTransform, Validation, gather, run_transform};

/// The rows that won a set of reads, one entry per read.
#[derive(Debug, Clone, Default)]
pub struct ReadRows {
    /// The winner's event time, in microseconds; `None` where no candidate exists.
    pub event_times_us: Vec<Option<i64>>,
    /// Whether the winner is a row whose transform failed.
    pub failed: Vec<bool>,
    /// The time of each read, in microseconds.
    pub at_us: Vec<i64>,
}

impl ReadRows {
    /// How many reads these are.
    pub fn len(&self) -> usize {
        self.at_us.len()
    }

    /// Whether there is no read.
    pub fn is_empty(&self) -> bool {
        self.at_us.is_empty()
    }

    /// Whether the row of read `read` is served: it exists, is fresh, and its transform did not fail.
    pub fn is_served(&self, read: usize, lifetime: Lifetime) -> bool {
        self.status(read, lifetime) == Status::Present
    }

    /// The status of every read as far as its row decides it: that of each of its values which is not null.
    pub fn statuses(&self, lifetime: Lifetime) -> Vec<Status> {
        (0..self.len()).map(|read| self.status(read, lifetime)).collect()
    }

    fn status(&self, read: usize, lifetime: Lifetime) -> Status {
        row_status(self.event_times_us[read], self.failed[read], lifetime, self.at_us[read])
    }
}

/// The value and the status of one feature at every read. `values` holds the winners' stored values, one entry per read
/// (anything where there is no winner), `of_rows` the statuses of the winners ([`ReadRows::statuses`]); in the answer, every
/// value that is not `present` is null. Features without a null share the statuses of their rows.
///
/// # Errors
/// `values` of another length than the reads.
pub fn project_feature(values: &ArrayRef, of_rows: &Arc<[Status]>) -> Result<(ArrayRef, Arc<[Status]>), QueryError> {
    if values.len() != of_rows.len() {
        return Err(QueryError::Shape(format!("{} values for {} reads", values.len(), of_rows.len())));
    }
    // What most requests come down to; masks would be most of their cost.
    if values.null_count() == 0 && of_rows.iter().all(|status| *status == Status::Present) {
        return Ok((Arc::clone(values), Arc::clone(of_rows)));
    }
    let is_present = BooleanBuffer::collect_bool(of_rows.len(), |read| of_rows[read] == Status::Present);
    let says_null = values.nulls().is_some_and(|nulls| (&is_present & &!nulls.inner()).count_set_bits() > 0);
    let statuses = match says_null {
        false => Arc::clone(of_rows),
        true => of_rows.iter().enumerate().map(|(read, of_row)| of_row.of_value(values.is_null(read))).collect(),
    };
    Ok((gather::null_rows(values, &is_present)?, statuses))
}

/// The values with `default` wherever the status is not `present`. Statuses stay as they are.
///
/// # Errors
/// A default of another type than the column.
pub fn apply_default(values: &ArrayRef, statuses: &[Status], default: &Value) -> Result<ArrayRef, QueryError> {
    if statuses.iter().all(|status| *status == Status::Present) {
        return Ok(values.clone());
    }
    let data_type = DataType::from_arrow(values.data_type())
        .ok_or_else(|| QueryError::Shape(format!("no feature has the type {}", values.data_type())))?;
    let default = array_from_values(data_type, [default])?;
    let picks: Vec<(usize, usize)> = statuses
        .iter()
        .enumerate()
        .map(|(row, status)| if *status == Status::Present { (0, row) } else { (1, 0) })
        .collect();
    let picked = arrow_select::interleave::interleave(&[values.as_ref(), default.as_ref()], &picks)?;
    Ok(eadem_values::canonicalize(&picked)?)
}

/// Statuses as the dictionary column that training sets carry. The dictionary always lists all five, in one order.
pub fn status_dictionary(statuses: &[Status]) -> ArrayRef {
    const NAMES: [Status; 5] = [Status::Present, Status::Missing, Status::Expired, Status::Null, Status::Error];
    let position = |status: &Status| NAMES.iter().position(|name| name == status).unwrap_or_default() as i8;
    let keys: Int8Array = statuses.iter().map(position).collect::<Vec<i8>>().into();
    let names = StringArray::from_iter_values(NAMES.iter().map(|status| status.to_string()));
    // The keys are positions in `names`, so the checked constructor has nothing left to find.
    match DictionaryArray::<Int8Type>::try_new(keys, Arc::new(names)) {
        Ok(column) => Arc::new(column),
        Err(_) => arrow_array::new_empty_array(&arrow_schema::DataType::Dictionary(
            Box::new(arrow_schema::DataType::Int8),
            Box::new(arrow_schema::DataType::Utf8),
        )),
    }
}

/// The features of a view that is computed when read: runs the transform over the stored inputs of the rows that are
/// served, and marks in `reads` those on which it failed. `inputs` hold the winners' bound inputs, one entry per read; in
/// the answer, reads that serve no row are null.
///
/// # Errors
/// A transform that could not run at all.
pub fn compute_on_read(
    transform: &dyn RowTransform,
    validation: &Validation,
    inputs: &[ArrayRef],
    reads: &mut ReadRows,
    lifetime: Lifetime,
) -> Result<Vec<ArrayRef>, QueryError> {
    let rows = reads.len();
    let served: Vec<u32> = (0..rows).filter(|read| reads.is_served(*read, lifetime)).map(|read| read as u32).collect();
    let indices = UInt32Array::from(served.clone());
    let inputs = inputs
        .iter()
        .map(|input| Ok(eadem_values::canonicalize(&arrow_select::take::take(input.as_ref(), &indices, None)?)?))
        .collect::<Result<Vec<ArrayRef>, QueryError>>()?;
    let number = |row: usize| served.get(row).map_or(row, |row| *row as usize);
    let result =
        run_transform(transform, validation, served.len(), &inputs).map_err(|error| error.renumbered(number))?;
    // Only total transforms are computed on read: a row they drop, fail or cannot validate is an error of that row.
    let dropped = result.dropped.iter().copied();
    let failed = result.failed.iter().map(|failure| failure.row);
    let refused = result.refused.iter().map(|value| value.row as u32);
    for row in dropped.chain(failed).chain(refused) {
        reads.failed[served[row as usize] as usize] = true;
    }
    result.columns.iter().map(|column| gather::scatter_rows(column, &served, rows)).collect()
}
