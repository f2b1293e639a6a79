//! Rows on their way into data files: they wait until those of their day are enough for one.

use std::collections::BTreeMap;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::TimestampMicrosecondType;

use crate::schema::COLUMN_EVENT_TIME;

pub(crate) const DAY_US: i64 = 86_400_000_000;

/// Rows that wait.
#[derive(Debug, Default)]
pub(crate) struct WaitingRows {
    /// By the number of the batch.
    batches: BTreeMap<usize, WaitingBatch>,
    next_batch: usize,
    /// The places of each day's rows, (batch, row), as they came.
    days: BTreeMap<Day, Vec<(usize, usize)>>,
    bytes: usize,
}

/// UTC days since 1970; `None` for rows that are not parted by days.
pub(crate) type Day = Option<i64>;

#[derive(Debug)]
struct WaitingBatch {
    rows: RecordBatch,
    /// Of its rows, those that still wait.
    waiting: usize,
    bytes: usize,
}

/// Rows of one day, which wait no longer.
#[derive(Debug)]
pub(crate) struct DayRows {
    pub(crate) day: Day,
    pub(crate) batches: Vec<RecordBatch>,
    /// The rows among those of the batches: (batch, row), as they came.
    pub(crate) picks: Vec<(usize, usize)>,
    /// About as many bytes as they take.
    pub(crate) bytes: usize,
}

impl WaitingRows {
    /// Takes all rows of a batch that has some; with `by_day`, each to those of the day of its event time.
    pub(crate) fn add(&mut self, rows: RecordBatch, by_day: bool) {
        let number = self.next_batch;
        self.next_batch += 1;
        let times = rows.column_by_name(COLUMN_EVENT_TIME).filter(|_| by_day);
        match times.map(|times| times.as_primitive::<TimestampMicrosecondType>().values()) {
            None => self.days.entry(None).or_default().extend((0..rows.num_rows()).map(|row| (number, row))),
            Some(times) => {
                // Rows often come in order of time, so runs of one day are long.
                let mut start = 0;
                for run in times.chunk_by(|one, next| day_of(*one) == day_of(*next)) {
                    let of_day = self.days.entry(Some(day_of(run[0]))).or_default();
                    let end = start + run.len();
                    of_day.extend((start..end).map(|row| (number, row)));
                    start = end;
                }
            }
        }
        let bytes = rows.get_array_memory_size() + rows.num_rows() * size_of::<(usize, usize)>();
        self.bytes += bytes;
        self.batches.insert(number, WaitingBatch { waiting: rows.num_rows(), rows, bytes });
    }

    /// Bytes that they take.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The first `rows` rows of a day that has as many.
    pub(crate) fn take_full(&mut self, rows: usize) -> Option<DayRows> {
        let (day, waiting) = self.days.iter_mut().find(|(_, waiting)| waiting.len() >= rows)?;
        let day = *day;
        let later = waiting.split_off(rows);
        let taken = std::mem::replace(waiting, later);
        if waiting.is_empty() {
            self.days.remove(&day);
        }
        Some(self.taken(day, taken))
    }

    /// All rows of the first day.
    pub(crate) fn take_day(&mut self) -> Option<DayRows> {
        let (day, taken) = self.days.pop_first()?;
        Some(self.taken(day, taken))
    }

    /// Rows of which no place is kept any more. What they alone have held in memory is theirs now.
    fn taken(&mut self, day: Day, places: Vec<(usize, usize)>) -> DayRows {
        let mut rows = DayRows { day, batches: Vec::new(), picks: places, bytes: 0 };
        for same_batch in rows.picks.chunk_by_mut(|one, next| one.0 == next.0) {
            let number = same_batch[0].0;
            let Some(batch) = self.batches.get_mut(&number) else { continue };
            for place in same_batch.iter_mut() {
                place.0 = rows.batches.len();
            }
            rows.batches.push(batch.rows.clone());
            rows.bytes += batch.bytes / batch.rows.num_rows().max(1) * same_batch.len();
            batch.waiting -= same_batch.len();
            if batch.waiting == 0 {
                self.bytes -= batch.bytes;
                self.batches.remove(&number);
            }
        }
        rows
    }
}

fn day_of(time_us: i64) -> i64 {
    time_us.div_euclid(DAY_US)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use arrow_array::{Int64Array, TimestampMicrosecondArray};

    use super::*;

    /// Rows with these numbers, each with the day that it is of.
    fn batch(rows: &[(i64, i64)]) -> RecordBatch {
        let times = rows.iter().map(|(day, number)| day * DAY_US + number);
        RecordBatch::try_from_iter([
            (COLUMN_EVENT_TIME, Arc::new(TimestampMicrosecondArray::from_iter_values(times)) as _),
            ("number", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1))) as _),
        ])
        .unwrap()
    }

    fn numbers(rows: &DayRows) -> (Day, Vec<i64>) {
        let of_batch = |batch: usize| rows.batches[batch].column(1).as_primitive::<arrow_array::types::Int64Type>();
        (rows.day, rows.picks.iter().map(|(batch, row)| of_batch(*batch).value(*row)).collect())
    }

    #[test]
    fn rows_wait_by_day_in_the_order_in_which_they_came() {
        let mut waiting = WaitingRows::default();
        waiting.add(batch(&[(1, 0), (-1, 1), (1, 2)]), true);
        waiting.add(batch(&[(1, 3)]), true);
        waiting.add(batch(&[(-1, 4), (-1, 5), (1, 6), (1, 7)]), true);
        assert!(waiting.take_full(6).is_none());
        let full = waiting.take_full(4).unwrap();
        assert_eq!(numbers(&full), (Some(1), vec![0, 2, 3, 6]));
        assert!(waiting.take_full(4).is_none());
        let rest = [waiting.take_day().unwrap(), waiting.take_day().unwrap()];
        assert_eq!(numbers(&rest[0]), (Some(-1), vec![1, 4, 5]));
        assert_eq!(numbers(&rest[1]), (Some(1), vec![7]));
        assert!(waiting.take_day().is_none());
    }

    #[test]
    fn rows_that_are_not_parted_are_one_day() {
        let mut waiting = WaitingRows::default();
        waiting.add(batch(&[(1, 0), (2, 1)]), false);
        waiting.add(batch(&[(1, 2)]), false);
        assert_eq!(numbers(&waiting.take_day().unwrap()), (None, vec![0, 1, 2]));
    }

    #[test]
    fn a_batch_is_held_as_long_as_one_of_its_rows_waits() {
        let mut waiting = WaitingRows::default();
        waiting.add(batch(&[(1, 0), (1, 1), (2, 2)]), true);
        let of_first = waiting.bytes();
        waiting.add(batch(&[(2, 3)]), true);
        let of_second = waiting.bytes() - of_first;
        assert!(of_first > 0 && of_second > 0);
        let day = waiting.take_day().unwrap();
        assert_eq!(waiting.bytes(), of_first + of_second);
        assert!((of_first / 2..of_first).contains(&day.bytes), "{} of {of_first}", day.bytes);
        assert_eq!(numbers(&waiting.take_day().unwrap()), (Some(2), vec![2, 3]));
        assert_eq!((waiting.bytes(), waiting.batches.len()), (0, 0));
    }
}
