//! Values of eight bytes row by row. To gather scattered rows from columns misses the processor's cache once for each value; the
//! values of a row lie side by side here and come with one or two misses. For a training set of 1 M rows of ten features
//! gathering took a tenth of the processor time from columns.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, PrimitiveArray};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer, ScalarBuffer};
use eadem_values::DataType;

/// Columns whose values have eight bytes.
#[derive(Debug)]
pub(crate) struct PackedRows {
    /// Row after row: the values of its columns, then, where something is null, which of them are not.
    words: Vec<u64>,
    columns: usize,
    has_nulls: bool,
}

/// So many columns one word says of which are null.
pub(crate) const PACKED_COLUMNS_MAX: usize = 64;

/// Whether columns of this type can be packed.
pub(crate) fn can_be_packed(data_type: DataType) -> bool {
    matches!(data_type, DataType::Int64 | DataType::Float64 | DataType::Timestamp)
}

/// The bits of a column that [`can_be_packed`].
fn words_of(column: &ArrayRef, data_type: DataType) -> Buffer {
    match data_type {
        DataType::Int64 => column.as_primitive::<Int64Type>().values().inner().clone(),
        DataType::Timestamp => column.as_primitive::<TimestampMicrosecondType>().values().inner().clone(),
        _ => column.as_primitive::<Float64Type>().values().inner().clone(),
    }
}

impl PackedRows {
    /// Packs these columns, all of as many rows.
    pub(crate) fn of(columns: &[(ArrayRef, DataType)], rows: usize) -> Self {
        let has_nulls = columns.iter().any(|(column, _)| column.null_count() > 0);
        let width = columns.len() + usize::from(has_nulls);
        let mut words = vec![0_u64; width * rows];
        for (number, (column, data_type)) in columns.iter().enumerate() {
            let values = ScalarBuffer::<u64>::new(words_of(column, *data_type), 0, rows);
            for (row, value) in words.chunks_exact_mut(width).zip(values.iter()) {
                row[number] = *value;
            }
            if !has_nulls {
                continue;
            }
            for (at, row) in words.chunks_exact_mut(width).enumerate() {
                row[width - 1] |= u64::from(column.is_valid(at)) << number;
            }
        }
        Self { words, columns: columns.len(), has_nulls }
    }

    /// The values of a row, and which of them are there.
    fn row(&self, row: usize) -> (&[u64], u64) {
        let width = self.columns + usize::from(self.has_nulls);
        let words = &self.words[row * width..(row + 1) * width];
        let present = if self.has_nulls { words[width - 1] } else { u64::MAX };
        (&words[..self.columns], present)
    }
}

/// Columns of these types from rows of several batches: of each pick the batch and its row. A batch that is not there stands for
/// nulls.
pub(crate) fn gather(batches: &[&PackedRows], types: &[DataType], picks: &[(usize, usize)]) -> Vec<ArrayRef> {
    if types.is_empty() {
        return Vec::new();
    }
    let rows = picks.len();
    let mut columns = vec![vec![0_u64; rows]; types.len()];
    let mut present = vec![0_u64; rows];
    for (at, (batch, row)) in picks.iter().enumerate() {
        let Some(batch) = batches.get(*batch) else { continue };
        let (values, those_present) = batch.row(*row);
        for (column, value) in columns.iter_mut().zip(values) {
            column[at] = *value;
        }
        present[at] = those_present;
    }
    let typed = columns.into_iter().zip(types).enumerate().map(|(number, (words, data_type))| {
        let is_valid = |at: usize| present[at] >> number & 1 == 1;
        let nulls = NullBuffer::new(BooleanBuffer::collect_bool(rows, is_valid));
        as_column(words, *data_type, Some(nulls).filter(|nulls| nulls.null_count() > 0))
    });
    typed.collect()
}

fn as_column(words: Vec<u64>, data_type: DataType, nulls: Option<NullBuffer>) -> ArrayRef {
    let (rows, bits) = (words.len(), Buffer::from_vec(words));
    match data_type {
        DataType::Int64 => Arc::new(PrimitiveArray::<Int64Type>::new(ScalarBuffer::new(bits, 0, rows), nulls)),
        DataType::Timestamp => {
            let times = PrimitiveArray::<TimestampMicrosecondType>::new(ScalarBuffer::new(bits, 0, rows), nulls);
            Arc::new(times.with_data_type(data_type.to_arrow()))
        }
        _ => Arc::new(PrimitiveArray::<Float64Type>::new(ScalarBuffer::new(bits, 0, rows), nulls)),
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::{Float64Array, Int64Array, TimestampMicrosecondArray};

    use super::*;

    fn batch(seed: i64, rows: i64, has_nulls: bool) -> Vec<(ArrayRef, DataType)> {
        let value =
            |row: i64, column: i64| (!has_nulls || (row + column + seed) % 3 > 0).then_some(row * 31 + column + seed);
        let numbers: Int64Array = (0..rows).map(|row| value(row, 0)).collect();
        let floats: Float64Array = (0..rows).map(|row| value(row, 1).map(|value| value as f64 / 7.0)).collect();
        let times: TimestampMicrosecondArray = (0..rows).map(|row| value(row, 2).map(|value| -value)).collect();
        let times = times.with_data_type(DataType::Timestamp.to_arrow());
        vec![
            (Arc::new(numbers) as ArrayRef, DataType::Int64),
            (Arc::new(floats) as ArrayRef, DataType::Float64),
            (Arc::new(times) as ArrayRef, DataType::Timestamp),
        ]
    }

    #[test]
    fn rows_are_gathered_as_from_columns() -> Result<(), arrow_schema::ArrowError> {
        for nulls in [[false, false], [true, false], [true, true]] {
            let batches = [batch(1, 100, nulls[0]), batch(5, 70, nulls[1])];
            let packed: Vec<PackedRows> =
                batches.iter().map(|columns| PackedRows::of(columns, columns[0].0.len())).collect();
            // Also what is nowhere.
            let picks: Vec<(usize, usize)> = (0..500).map(|at| (at % 3, at * 37 % 70)).collect();
            let types: Vec<DataType> = batches[0].iter().map(|(_, data_type)| *data_type).collect();
            let gathered = gather(&packed.iter().collect::<Vec<_>>(), &types, &picks);
            for (column, found) in gathered.iter().enumerate() {
                let nothing = arrow_array::new_null_array(found.data_type(), 70);
                let mut sources: Vec<&dyn Array> = batches.iter().map(|batch| batch[column].0.as_ref()).collect();
                sources.push(nothing.as_ref());
                assert_eq!(found, &arrow_select::interleave::interleave(&sources, &picks)?, "column {column}");
            }
        }
        Ok(())
    }
}
