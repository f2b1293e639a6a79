//! Small moves of rows that several steps share.

use crate::QueryError;
use arrow_array::{Array, ArrayRef, BooleanArray, UInt32Array};
use arrow_buffer::{BooleanBuffer, BooleanBufferBuilder, NullBuffer};

/// A mask that is true everywhere except at `rows_out`.
pub(crate) fn all_but(rows: usize, rows_out: impl Iterator<Item = u32>) -> BooleanBuffer {
    let mut mask = BooleanBufferBuilder::new(rows);
    mask.append_n(rows, true);
    for row in rows_out {
        if (row as usize) < rows {
            mask.set_bit(row as usize, false);
        }
    }
    mask.finish()
}

/// The column, which is in canonical form, with a null wherever `keep` is false.
///
/// # Errors
/// `keep` of another length than the column.
pub(crate) fn null_rows(column: &ArrayRef, keep: &BooleanBuffer) -> Result<ArrayRef, QueryError> {
    let away = !keep;
    let loses = match column.nulls() {
        Some(nulls) => (&away & nulls.inner()).count_set_bits(),
        None => away.count_set_bits(),
    };
    if loses == 0 {
        return Ok(column.clone());
    }
    let away = BooleanArray::new(away, None);
    let nulled = arrow_select::nullif::nullif(column, &away)?;
    Ok(eadem_values::canonicalize(&nulled)?)
}

/// Spreads a column of results back over the rows they belong to: row `i` of the answer is `column[position of i in
/// rows_in]`, null for rows not in `rows_in`.
///
/// # Errors
/// More positions than the column has rows.
pub(crate) fn scatter_rows(column: &ArrayRef, rows_in: &[u32], rows: usize) -> Result<ArrayRef, QueryError> {
    let mut positions = vec![0_u32; rows];
    let mut present = BooleanBufferBuilder::new(rows);
    present.append_n(rows, false);
    for (position, row) in rows_in.iter().enumerate() {
        positions[*row as usize] = position as u32;
        present.set_bit(*row as usize, true);
    }
    let indices = UInt32Array::new(positions.into(), Some(NullBuffer::new(present.finish())));
    if column.is_empty() {
        return Ok(arrow_array::new_null_array(column.data_type(), rows));
    }
    let spread = arrow_select::take::take(column.as_ref(), &indices, None)?;
    Ok(eadem_values::canonicalize(&spread)?)
}
