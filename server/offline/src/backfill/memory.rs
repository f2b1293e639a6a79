//! How much memory a job's rows may take, and how much they do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow_array::RecordBatch;
use eadem_values::Value;
use futures::{Stream, TryStreamExt};
use parquet::arrow::ProjectionMask;
use parquet::file::metadata::RowGroupMetaData;

use crate::source::{Portions, RECORD_BYTES_MAX};

/// Copies of a batch that exist at once on its way: as read, as bound, as the transform gives it, as it is stored.
const COPIES_OF_A_BATCH: usize = 4;

/// What the threads of a run may hold, cut up by what they hold it for. All of it together is the ceiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowance {
    /// Columns of row groups as they stand in their files, which the reader holds until it is through with them: those of
    /// all threads together, so that a large row group is read while the others wait.
    pub(crate) row_groups_bytes_max: usize,
    /// Of each thread, from the same part: a record of text at work, and what is made of it beyond a batch of its kind.
    pub(crate) text_bytes_max: usize,
    /// Of each thread: one batch as it comes from the file; it is copied on its way.
    pub(crate) batch_bytes_max: usize,
    /// Of each thread: finished rows before they are written. While they are, they exist once more, encoded, and a part of them
    /// in its order.
    pub(crate) buffered_bytes_max: usize,
    /// Of each thread: refused rows. They exist as they were met, as a batch, and encoded.
    pub(crate) quarantine_bytes_max: usize,
}

/// What it takes to read some row groups one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    /// Bytes of the largest, in the columns that are read.
    pub(crate) largest_bytes: usize,
    /// Rows of a batch.
    pub(crate) batch_rows: usize,
}

/// A record may have this part of what there is for text. It stands in a buffer of up to twice its length, in a column of
/// up to twice, and in three copies of that.
const TEXT_PER_RECORD: usize = 8;

impl Allowance {
    /// How so many threads share a ceiling: 1/4 to row groups, 3 × 1/5 to finished rows, 4 × 1/40 to batches and 3 × 1/80
    /// to refused rows.
    pub(crate) fn of(memory_bytes_max: usize, threads: usize) -> Self {
        let share = memory_bytes_max / threads.max(1);
        Self {
            row_groups_bytes_max: memory_bytes_max / 4,
            text_bytes_max: share / 4,
            batch_bytes_max: share / (10 * COPIES_OF_A_BATCH),
            buffered_bytes_max: share / 5,
            quarantine_bytes_max: share / 80,
        }
    }

    /// Rows of a batch that are about as many bytes as one may have, by what the row groups say of themselves.
    fn batch_rows(&self, bytes: usize, rows: usize, batch_rows_max: usize) -> usize {
        let bytes_of_a_row = (bytes / rows.max(1)).max(1);
        (self.batch_bytes_max / bytes_of_a_row).clamp(1, batch_rows_max.max(1))
    }

    /// How these row groups are read, one after the other.
    ///
    /// # Errors
    /// One that does not fit: why, and what to do.
    pub(crate) fn reading<'a>(
        &self,
        groups: impl IntoIterator<Item = &'a RowGroupMetaData>,
        mask: &ProjectionMask,
        batch_rows_max: usize,
    ) -> Result<Reading, String> {
        let mut reading = Reading { largest_bytes: 0, batch_rows: batch_rows_max };
        for group in groups {
            let (bytes_in_file, bytes) = bytes_of_columns(group, mask);
            reading.largest_bytes = reading.largest_bytes.max(bytes_in_file);
            let rows = usize::try_from(group.num_rows()).unwrap_or_default();
            reading.batch_rows = reading.batch_rows.min(self.batch_rows(bytes, rows, batch_rows_max));
        }
        let (largest_bytes, bytes_max) = (reading.largest_bytes, self.row_groups_bytes_max);
        if largest_bytes <= bytes_max {
            return Ok(reading);
        }
        Err(format!(
            "a row group has {largest_bytes} bytes in the columns that are read, and of the memory for jobs (setting \
             jobs.memory_bytes_max) {bytes_max} are for that: raise it"
        ))
    }

    /// In what portions text is read. It does not say beforehand how wide its rows are.
    pub(crate) fn portions(&self, batch_rows_max: usize) -> Portions {
        Portions {
            rows: batch_rows_max.max(1),
            // Columns that grow take up to twice what is in them.
            bytes: self.batch_bytes_max / 2,
            record_bytes: (self.text_bytes_max / TEXT_PER_RECORD).min(RECORD_BYTES_MAX),
            tree_bytes: self.text_bytes_max / 2,
        }
    }
}

/// Bytes that the columns of a row group take: as they stand in the file, and decompressed.
fn bytes_of_columns(group: &RowGroupMetaData, mask: &ProjectionMask) -> (usize, usize) {
    let read = group.columns().iter().enumerate().filter(|(leaf, _)| mask.leaf_included(*leaf));
    let bytes = |bytes: i64| usize::try_from(bytes).unwrap_or_default();
    read.fold((0, 0), |sum, (_, column)| {
        (sum.0 + bytes(column.compressed_size()), sum.1 + bytes(column.uncompressed_size()))
    })
}

/// What a job of one thread may hold, and who counts it.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    pub(crate) memory_bytes_max: usize,
    pub(crate) allowance: Allowance,
    pub(crate) gauge: Gauge,
}

impl Room {
    pub(crate) fn of(memory_bytes_max: usize, gauge: &Gauge) -> Self {
        Self { memory_bytes_max, allowance: Allowance::of(memory_bytes_max, 1), gauge: gauge.clone() }
    }
}

/// How row groups of a table are read: within a job's room, where there is one.
///
/// # Errors
/// One that does not fit: why, and what to do.
pub(crate) fn reading_within<'a>(
    room: Option<&Room>,
    groups: impl IntoIterator<Item = &'a RowGroupMetaData>,
    mask: &ProjectionMask,
    batch_rows_max: usize,
) -> Result<(Reading, Option<Held>), String> {
    let Some(room) = room else { return Ok((Reading { largest_bytes: 0, batch_rows: batch_rows_max }, None)) };
    let reading = room.allowance.reading(groups, mask, batch_rows_max)?;
    Ok((reading, Some(room.gauge.hold())))
}

/// Batches as they come, counted together with what holds `bytes` as long as they do.
pub(crate) fn counted<E>(
    mut held: Option<Held>,
    bytes: usize,
    batches: impl Stream<Item = Result<RecordBatch, E>> + Unpin,
) -> impl Stream<Item = Result<RecordBatch, E>> + Unpin {
    batches.inspect_ok(move |batch| {
        if let Some(held) = &mut held {
            held.set(bytes + batch.get_array_memory_size());
        }
    })
}

/// Bytes that a value takes.
pub(crate) fn bytes_of_value(value: &Value) -> usize {
    let on_heap = match value {
        Value::Utf8(text) => text.len(),
        Value::Binary(bytes) => bytes.len(),
        Value::Vector(values) => size_of_val(values.as_slice()),
        Value::ListInt64(values) => size_of_val(values.as_slice()),
        Value::ListFloat64(values) => size_of_val(values.as_slice()),
        Value::ListUtf8(texts) => texts.iter().map(|text| size_of::<String>() + text.len()).sum(),
        Value::Null | Value::Boolean(_) | Value::Int64(_) => 0,
        Value::Float32(_) | Value::Float64(_) | Value::Timestamp(_) => 0,
    };
    size_of::<Value>() + on_heap
}

/// What all threads of a run hold, as far as it is counted: rows in all their forms. Clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gauge(Arc<Counted>);

#[derive(Debug, Default)]
struct Counted {
    bytes: AtomicUsize,
    peak_bytes: AtomicUsize,
}

impl Gauge {
    /// Counts something that holds nothing yet.
    pub(crate) fn hold(&self) -> Held {
        Held { gauge: self.clone(), bytes: 0 }
    }

    /// The most that was ever held at once, in bytes.
    pub(crate) fn peak_bytes(&self) -> usize {
        self.0.peak_bytes.load(Ordering::Relaxed)
    }
}

/// Something that takes memory, for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Held {
    gauge: Gauge,
    bytes: usize,
}

impl Held {
    /// It takes so many bytes now.
    pub(crate) fn set(&mut self, bytes: usize) {
        let counted = &self.gauge.0;
        if bytes >= self.bytes {
            let more = bytes - self.bytes;
            let now = counted.bytes.fetch_add(more, Ordering::Relaxed) + more;
            counted.peak_bytes.fetch_max(now, Ordering::Relaxed);
        } else {
            counted.bytes.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_together_are_no_more_than_the_whole() {
        for (ceiling, threads) in [(1 << 30, 1), (1 << 30, 2), (100 << 20, 7), (1, 3), (0, 0)] {
            let each = Allowance::of(ceiling, threads);
            let of_a_thread =
                each.batch_bytes_max * COPIES_OF_A_BATCH + each.buffered_bytes_max * 3 + each.quarantine_bytes_max * 3;
            let all = each.row_groups_bytes_max + of_a_thread * threads;
            assert!(all <= ceiling, "{ceiling} over {threads}: {each:?}");
            assert!(each.text_bytes_max * threads <= each.row_groups_bytes_max, "{ceiling} over {threads}: {each:?}");
        }
    }

    #[test]
    fn wide_rows_come_in_small_batches() {
        let each = Allowance::of(400 << 20, 1);
        assert_eq!(each.batch_rows(64 * 1_000, 1_000, 8_192), 8_192);
        assert_eq!(each.batch_rows((1 << 20) * 1_000, 1_000, 8_192), 10);
        assert_eq!(each.batch_rows(100 << 20, 1, 8_192), 1);
        assert_eq!(each.batch_rows(0, 0, 8_192), 8_192);
    }

    #[test]
    fn the_peak_is_what_was_held_at_once() {
        let gauge = Gauge::default();
        let (mut one, mut other) = (gauge.hold(), gauge.hold());
        one.set(10);
        other.set(5);
        one.set(1);
        drop(other);
        gauge.hold().set(8);
        assert_eq!(gauge.peak_bytes(), 15);
        drop(one);
        assert_eq!(gauge.0.bytes.load(Ordering::Relaxed), 0);
    }
}
