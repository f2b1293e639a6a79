//! The order of rows within a data file: by key, then by event time.
//!
//! It decides nothing: a reader finds the same rows in files of any order. It makes the rows of one entity neighbours, so
//! that a reader that wants one entity needs few pages, and it costs a backfill less than encoding the rows does.

use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Int64Type, TimestampMicrosecondType};
use arrow_array::{ArrayRef, RecordBatch};
use hashbrown::HashMap;

use crate::schema::COLUMN_EVENT_TIME;

/// Bytes of a text that fit into a number, together with how many there are.
const TEXT_BYTES_MAX: usize = 7;

/// Fewer rows are sorted by comparing them: counting takes its time for each of the 256 values of a byte.
const COUNTED_ROWS_MIN: usize = 512;

/// A row, by the batch that it is in and its place there, and the number that it is being sorted by.
type Numbered = (u64, (usize, usize));

/// Sorts `picks`, (batch, row) pairs, by the columns `keys` and then by event time; rows that agree in all of them stay in
/// their order.
pub(crate) fn sort_by_key(batches: &[RecordBatch], keys: &[String], picks: &mut Vec<(usize, usize)>) {
    let mut rows: Vec<Numbered> = std::mem::take(picks).into_iter().map(|pick| (0, pick)).collect();
    // Every sort keeps what the one before has made, as long as its own column does not say otherwise.
    for name in std::iter::once(COLUMN_EVENT_TIME).chain(keys.iter().rev().map(String::as_str)) {
        if number(batches, name, &mut rows) {
            sort_by_number(&mut rows);
        }
    }
    *picks = rows.into_iter().map(|(_, pick)| pick).collect();
}

/// Sorts rows by their numbers; equal ones stay in their order. Byte by byte, from the last to the first, and only by bytes in
/// which the numbers differ (radix sort: Knuth, The Art of Computer Programming, volume 3, 5.2.5). Comparing the rows of a
/// backfill with each other took three times as long.
fn sort_by_number(rows: &mut Vec<Numbered>) {
    let Some((first, _)) = rows.first().copied() else { return };
    // Rows of a source mostly come in order of time.
    if rows.is_sorted_by_key(|(number, _)| *number) {
        return;
    }
    if rows.len() < COUNTED_ROWS_MIN {
        return rows.sort_by_key(|(number, _)| *number);
    }
    let differing = rows.iter().fold(0, |bits, (number, _)| bits | (number ^ first));
    let mut sorted: Vec<Numbered> = vec![(0, (0, 0)); rows.len()];
    for shift in (0..u64::BITS).step_by(8) {
        let byte_of = |number: u64| usize::from((number >> shift) as u8);
        if byte_of(differing) == 0 {
            continue;
        }
        let mut counts = [0; 256];
        for (number, _) in rows.iter() {
            counts[byte_of(*number)] += 1;
        }
        let mut places = [0; 256];
        for byte in 1..places.len() {
            places[byte] = places[byte - 1] + counts[byte - 1];
        }
        for row in rows.iter() {
            let place = &mut places[byte_of(row.0)];
            sorted[*place] = *row;
            *place += 1;
        }
        std::mem::swap(rows, &mut sorted);
    }
}

/// Gives each row a number that orders it as its value in this column does; false for a type that is neither a key's nor a
/// time's.
fn number(batches: &[RecordBatch], name: &str, rows: &mut [Numbered]) -> bool {
    let Some(columns) = batches.iter().map(|batch| batch.column_by_name(name)).collect::<Option<Vec<_>>>() else {
        return false;
    };
    if let Some(texts) = columns.iter().map(|column| column.as_string_opt::<i32>()).collect::<Option<Vec<_>>>() {
        let picked: Vec<&str> = rows.iter().map(|(_, (batch, row))| texts[*batch].value(*row)).collect();
        number_texts(&picked, rows);
        return true;
    }
    number_integers::<Int64Type>(&columns, rows) || number_integers::<TimestampMicrosecondType>(&columns, rows)
}

/// Numbers rows in the order of their integers; false where these columns are none of this type.
fn number_integers<T: ArrowPrimitiveType<Native = i64>>(columns: &[&ArrayRef], rows: &mut [Numbered]) -> bool {
    let Some(integers) = columns.iter().map(|column| column.as_primitive_opt::<T>()).collect::<Option<Vec<_>>>() else {
        return false;
    };
    rows.iter_mut().for_each(|(number, (batch, row))| *number = in_order(integers[*batch].value(*row)));
    true
}

/// A number without sign: those of negative numbers are less than those of the others.
fn in_order(number: i64) -> u64 {
    number.cast_unsigned() ^ (1 << 63)
}

/// Numbers rows in the order of their texts. Where what follows the texts' common beginning is short, as with numbered keys,
/// it is the number; else a text's number is its rank among those that differ.
fn number_texts(texts: &[&str], rows: &mut [Numbered]) {
    let Some(first) = texts.first() else { return };
    let common = |one: &str| one.bytes().zip(first.bytes()).take_while(|(one, other)| one == other).count();
    let mut shared_bytes = first.len();
    let mut bytes_max = 0;
    for text in texts {
        if !text.as_bytes().starts_with(&first.as_bytes()[..shared_bytes]) {
            shared_bytes = common(text);
        }
        bytes_max = bytes_max.max(text.len());
    }
    if bytes_max - shared_bytes > TEXT_BYTES_MAX {
        return rank_texts(texts, rows);
    }
    for (text, (number, _)) in texts.iter().zip(rows) {
        let rest = &text.as_bytes()[shared_bytes..];
        let mut bytes = [0; 8];
        bytes[..rest.len()].copy_from_slice(rest);
        // Of two texts of which one goes on with zeros, the shorter is the lesser.
        bytes[TEXT_BYTES_MAX] = rest.len() as u8;
        *number = u64::from_be_bytes(bytes);
    }
}

/// Numbers rows by the rank of their texts among all of them. Only different ones are compared: keys come again and again.
fn rank_texts(texts: &[&str], rows: &mut [Numbered]) {
    let mut numbers: HashMap<&str, usize> = HashMap::new();
    let mut distinct: Vec<&str> = Vec::new();
    for (text, (number, _)) in texts.iter().zip(rows.iter_mut()) {
        let met = numbers.entry(text).or_insert_with(|| {
            distinct.push(text);
            distinct.len() - 1
        });
        *number = *met as u64;
    }
    let mut by_text: Vec<usize> = (0..distinct.len()).collect();
    by_text.sort_unstable_by_key(|number| distinct[*number]);
    let mut rank_of = vec![0; distinct.len()];
    for (rank, number) in by_text.into_iter().enumerate() {
        rank_of[number] = rank as u64;
    }
    rows.iter_mut().for_each(|(number, _)| *number = rank_of[*number as usize]);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use arrow_array::{Int64Array, StringArray, TimestampMicrosecondArray};

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
        let by_all = [("a", i64::MIN, 3), ("a", i64::MAX, 3), ("b", 0, 3), ("b", 0, 3), ("c", i64::MIN, 3)];
        assert_eq!(sorted_rows(&["card", "shop", "shop", "shop"], &rows), by_all);
    }

    #[test]
    fn many_rows_are_in_the_order_that_comparing_gives() {
        const ROWS: usize = 3 * COUNTED_ROWS_MIN;
        let numbers = |text: &dyn Fn(u64) -> String| {
            let mut state = 0x9E37_79B9_7F4A_7C15_u64;
            let mut rows = Vec::new();
            for _ in 0..ROWS {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let text: &'static str = Box::leak(text(state >> 48).into_boxed_str());
                rows.push((text, (state >> 20) as i64 % 7 - 3, (state >> 33) as i64 - (1 << 30)));
            }
            rows
        };
        let texts: [&dyn Fn(u64) -> String; 6] = [
            &|number| format!("card-{number:08}"),
            &|number| format!("{}", number % 900),
            &|number| format!("é{}", "\0".repeat(number as usize % 5)),
            &|number| format!("{number:x}-{number:040}"),
            &|number| if number % 3 == 0 { String::new() } else { "ab".repeat(number as usize % 4) },
            &|_| "always".to_owned(),
        ];
        for text in texts {
            let rows = numbers(text);
            let mut wanted = rows.clone();
            wanted.sort();
            let (one, other) = rows.split_at(ROWS / 3);
            assert_eq!(sorted_rows(&["card", "shop"], &[one.to_vec(), other.to_vec()]), wanted);
        }
    }

    #[test]
    fn nothing_and_one_row_are_sorted_too() {
        assert_eq!(sorted_rows(&["card"], &[]), []);
        assert_eq!(sorted_rows(&["card"], &[vec![("a", 1, 1)]]), [("a", 1, 1)]);
    }
}
