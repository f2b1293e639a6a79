//! The order of rows within a data file: by key, then by event time.
//!
//! It decides nothing: a reader finds the same rows in files of any order. It makes the rows of one entity neighbours, so
//! that a reader that wants one entity needs few pages, and it costs a backfill less than encoding the rows does.

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampMicrosecondType};
use hashbrown::HashMap;

use crate::schema::COLUMN_EVENT_TIME;

/// What a row is sorted by: ranks of its keys, its event time, and its place among `picks`, packed from the top.
const SORT_BITS: u32 = u128::BITS;

/// One part of what rows are sorted by: a number for each row, and how many bits the greatest has.
struct Part {
    ranks: Vec<u64>,
    bits: u32,
}

impl Part {
    fn of(ranks: Vec<u64>) -> Self {
        let greatest = ranks.iter().copied().max().unwrap_or(0);
        Self { ranks, bits: u64::BITS - greatest.leading_zeros() }
    }

    /// Numbers with these differences and order, from zero on.
    fn of_numbers(numbers: &[i64]) -> Self {
        let least = numbers.iter().copied().min().unwrap_or(0);
        // Wraps to the true difference, which always fits into 64 bits without sign.
        Self::of(numbers.iter().map(|number| number.wrapping_sub(least) as u64).collect())
    }
}

/// Sorts `picks`, (batch, row) pairs, by the columns `keys` and then by event time; rows that agree in all of them stay in
/// their order. Where there are so many keys that their ranks do not fit, rows are sorted by the first of them.
pub(crate) fn sort_by_key(batches: &[RecordBatch], keys: &[String], picks: &mut Vec<(usize, usize)>) {
    let place_bits = usize::BITS - picks.len().leading_zeros();
    let mut left = SORT_BITS - place_bits;
    let mut parts: Vec<Part> = Vec::with_capacity(keys.len() + 1);
    for name in keys.iter().map(String::as_str).chain([COLUMN_EVENT_TIME]) {
        let Some(part) = part(batches, name, picks) else { break };
        if part.bits > left {
            break;
        }
        left -= part.bits;
        parts.push(part);
    }
    let is_in_order = parts.last().is_some_and(|times| times.ranks.is_sorted());
    if is_in_order && parts.len() > keys.len() {
        // Rows of a source mostly come in order of time: then their places say as much.
        left += parts.pop().map_or(0, |times| times.bits);
    }
    let order = if SORT_BITS - left <= u64::BITS {
        sorted::<u64>(&parts, picks.len(), place_bits)
    } else {
        sorted::<u128>(&parts, picks.len(), place_bits)
    };
    *picks = order.into_iter().map(|place| picks[place]).collect();
}

/// The places of rows, in the order of their parts.
fn sorted<N>(parts: &[Part], rows: usize, place_bits: u32) -> Vec<usize>
where
    N: Copy + Ord + From<u64> + TryInto<u64>,
    N: std::ops::Shl<u32, Output = N> + std::ops::BitOr<Output = N> + std::ops::BitAnd<Output = N>,
{
    let of_row = |row: usize| {
        let ranks = parts.iter().fold(N::from(0), |number, part| (number << part.bits) | N::from(part.ranks[row]));
        (ranks << place_bits) | N::from(row as u64)
    };
    let mut numbers: Vec<N> = (0..rows).map(of_row).collect();
    numbers.sort_unstable();
    let places = N::from(u64::MAX >> (u64::BITS - place_bits.clamp(1, u64::BITS - 1)));
    let place = |number: N| (number & places).try_into().unwrap_or_default() as usize;
    numbers.into_iter().map(place).collect()
}

/// The picked rows' ranks by one column; `None` for a type that is neither a key's nor a time's.
fn part(batches: &[RecordBatch], name: &str, picks: &[(usize, usize)]) -> Option<Part> {
    let columns: Vec<_> = batches.iter().map(|batch| batch.column_by_name(name)).collect::<Option<_>>()?;
    if let Some(texts) = columns.iter().map(|column| column.as_string_opt::<i32>()).collect::<Option<Vec<_>>>() {
        return Some(text_ranks(picks.iter().map(|(batch, row)| texts[*batch].value(*row))));
    }
    if let Some(numbers) = columns.iter().map(|column| column.as_primitive_opt::<Int64Type>()).collect() {
        let numbers: Vec<&arrow_array::Int64Array> = numbers;
        let picked: Vec<i64> = picks.iter().map(|(batch, row)| numbers[*batch].value(*row)).collect();
        return Some(Part::of_numbers(&picked));
    }
    let times: Vec<_> =
        columns.iter().map(|column| column.as_primitive_opt::<TimestampMicrosecondType>()).collect::<Option<_>>()?;
    let picked: Vec<i64> = picks.iter().map(|(batch, row)| times[*batch].value(*row)).collect();
    Some(Part::of_numbers(&picked))
}

/// Texts by their rank among all of them. Only different ones are compared: keys come again and again.
fn text_ranks<'a>(texts: impl Iterator<Item = &'a str>) -> Part {
    let mut numbers: HashMap<&str, u64> = HashMap::new();
    let mut distinct: Vec<&str> = Vec::new();
    let mut ranks: Vec<u64> = texts
        .map(|text| {
            *numbers.entry(text).or_insert_with(|| {
                distinct.push(text);
                distinct.len() as u64 - 1
            })
        })
        .collect();
    let mut by_text: Vec<usize> = (0..distinct.len()).collect();
    by_text.sort_unstable_by_key(|number| distinct[*number]);
    let mut rank_of = vec![0; distinct.len()];
    for (rank, number) in by_text.into_iter().enumerate() {
        rank_of[number] = rank as u64;
    }
    for rank in &mut ranks {
        *rank = rank_of[*rank as usize];
    }
    Part::of(ranks)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use arrow_array::{ArrayRef, Int64Array, StringArray, TimestampMicrosecondArray};

    use super::*;

    fn batch(rows: &[(&str, i64, i64)]) -> RecordBatch {
        let cards: ArrayRef = Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.0)));
        let shops: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1)));
        let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.2)));
        RecordBatch::try_from_iter([("card", cards), ("shop", shops), (COLUMN_EVENT_TIME, times)]).unwrap()
    }

    fn sorted_rows(keys: &[&str], batches: &[Vec<(&'static str, i64, i64)>]) -> Vec<(&'static str, i64, i64)> {
        let arrays: Vec<RecordBatch> = batches.iter().map(|rows| batch(rows)).collect();
        let mut picks: Vec<(usize, usize)> = Vec::new();
        for (number, rows) in batches.iter().enumerate() {
            picks.extend((0..rows.len()).map(|row| (number, row)));
        }
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        sort_by_key(&arrays, &keys, &mut picks);
        picks.into_iter().map(|(batch, row)| batches[batch][row]).collect()
    }

    #[test]
    fn rows_lie_by_key_then_time() {
        let rows = [vec![("b", 2, 5), ("a", -1, 9), ("b", -7, 4)], vec![("", 2, 1), ("b", 2, -5), ("a", -1, 8)]];
        let by_both = [("", 2, 1), ("a", -1, 8), ("a", -1, 9), ("b", -7, 4), ("b", 2, -5), ("b", 2, 5)];
        assert_eq!(sorted_rows(&["card", "shop"], &rows), by_both);
        let by_shop = [("b", -7, 4), ("a", -1, 8), ("a", -1, 9), ("b", 2, -5), ("", 2, 1), ("b", 2, 5)];
        assert_eq!(sorted_rows(&["shop"], &rows), by_shop);
    }

    #[test]
    fn equal_rows_stay_in_their_order_and_the_ends_of_the_numbers_are_no_trap() {
        let rows = [vec![("a", i64::MAX, 3), ("b", 0, 3), ("a", i64::MIN, 3)], vec![("b", 0, 3), ("c", i64::MIN, 3)]];
        let by_shop = [("a", i64::MIN, 3), ("c", i64::MIN, 3), ("b", 0, 3), ("b", 0, 3), ("a", i64::MAX, 3)];
        assert_eq!(sorted_rows(&["shop"], &rows), by_shop);
        // Ranks of three such keys do not fit: the first of them still do.
        let by_first = sorted_rows(&["card", "shop", "shop", "shop"], &rows);
        let cards: Vec<&str> = by_first.iter().map(|row| row.0).collect();
        assert_eq!(cards, ["a", "a", "b", "b", "c"]);
        assert_eq!(by_first[0].1, i64::MIN);
    }

    #[test]
    fn nothing_and_one_row_are_sorted_too() {
        assert_eq!(sorted_rows(&["card"], &[]), []);
        assert_eq!(sorted_rows(&["card"], &[vec![("a", 1, 1)]]), [("a", 1, 1)]);
    }
}
