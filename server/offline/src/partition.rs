//! Writing data files: each of one partition, named by the digest of its bytes and its job, so that writing a chunk again
//! writes the same files again.
//!
//! Whoever writes rows of a table, a backfill or a compaction, writes them here, and so all files are laid out alike: by key,
//! then event time, in row groups and pages that are small enough for a reader that wants one entity.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, DictionaryArray, RecordBatch, new_null_array};
use arrow_buffer::ScalarBuffer;
use arrow_schema::{DataType as ArrowType, SchemaRef};
use bytes::Bytes;
use chrono::DateTime;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use sha2::{Digest as _, Sha256};

use crate::backfill::Held;
use crate::error::OfflineError;
use crate::pieces::Pieces;
use crate::quarantine;
use crate::schema::{COLUMN_EVENT_DATE, COLUMN_EVENT_TIME, COLUMN_KNOWN_AT, COLUMN_SEQUENCE, COLUMN_TIE};
use crate::shrink::store_as_they_are;
use crate::sort::sort_by_key;
use crate::waiting_rows::{DAY_US, DayRows, WaitingRows};

/// The tag of a data file that a compaction wrote.
pub(crate) const TAG_COMPACTED: &str = "eadem.compacted";

/// The tag of a data file whose rows are all of one lane: that lane.
pub(crate) const TAG_LANE: &str = "eadem.lane";

/// The tag of a data file in which every row was known at its event time: the name of that column.
pub(crate) const TAG_KNOWN_AT: &str = "eadem.known_at";

/// 64 bits tell the jobs that ever write to one table apart.
const JOB_MARK_DIGITS: usize = 16;

/// Rows of one row group. A scan holds the chunks of one row group in memory, and a bloom filter speaks of one.
const ROW_GROUP_ROWS: usize = 131_072;

/// Rows of a backfill's data file: one row group. A job holds the rows of a file while it sorts and encodes them, so that what it
/// takes in memory goes with this and not with the size of the source's files. Larger files are a compaction's to make.
pub(crate) const BACKFILLED_ROWS_MAX: usize = ROW_GROUP_ROWS;

/// Rows that are put into their order and encoded before the next are, as many as stay in the processor's cache.
const GATHERED_ROWS_MAX: usize = 16_384;
const GATHERED_BYTES_MAX: usize = 2 << 20;

/// Of the memory for rows that wait, the part that is for gathered ones.
const WAITING_PER_GATHERED: usize = 8;

/// Rows of one page, in every column: what a read for one entity decodes of each column that it needs.
const PAGE_ROWS: usize = 4_096;

/// Bytes of a column's dictionary in a row group. It has to be read whole for a single value, and with a larger one the
/// numbers of a row group, all of them different, would just fit in.
const DICTIONARY_BYTES_MAX: usize = 128 << 10;

/// How often a bloom filter takes an entity that a row group does not have for one that it may have.
const BLOOM_FALSE_POSITIVES: f64 = 0.01;

/// Collects the rows of a chunk and writes them by date.
#[derive(Debug)]
pub(crate) struct PartitionWriter {
    store: Arc<dyn ObjectStore>,
    schema: SchemaRef,
    /// The join keys in declared order, for a table of a view.
    keys: Option<Vec<String>>,
    waiting: WaitingRows,
    waiting_bytes_max: usize,
    file_rows_max: usize,
    adds: Vec<serde_json::Value>,
    mark: String,
    lane: Option<String>,
    is_compaction: bool,
    /// Tells what the rows take in memory, where somebody counts.
    held: Option<Held>,
}

impl PartitionWriter {
    /// A writer into the table that `store` is rooted at. Batches have `schema`. With the join `keys` of a view, rows are
    /// partitioned by the date of their event times and lie by key in their files; without, they stay as they come.
    pub(crate) fn new(
        store: Arc<dyn ObjectStore>,
        schema: SchemaRef,
        keys: Option<Vec<String>>,
        waiting_bytes_max: usize,
    ) -> Self {
        Self {
            store,
            schema,
            keys,
            waiting: WaitingRows::default(),
            waiting_bytes_max,
            file_rows_max: usize::MAX,
            adds: Vec::new(),
            mark: String::new(),
            lane: None,
            is_compaction: false,
            held: None,
        }
    }

    /// Marks the files' names as this job's, so that no two jobs ever write the same file: what one of them has left behind
    /// can be deleted without a look at the others.
    #[must_use]
    pub(crate) fn of_job(mut self, job: &str) -> Self {
        let digest = hex::encode(Sha256::digest(job.as_bytes()));
        self.mark = format!(".{}", &digest[..JOB_MARK_DIGITS]);
        self
    }

    /// Says in the log that all rows are of one lane, if they are.
    #[must_use]
    pub(crate) fn of_lane(mut self, lane: Option<&str>) -> Self {
        self.lane = lane.map(str::to_owned);
        self
    }

    /// The rows are those of other files, which go.
    #[must_use]
    pub(crate) fn compacting(mut self) -> Self {
        self.is_compaction = true;
        self
    }

    /// Writes a file as soon as there are so many rows of its day.
    #[must_use]
    pub(crate) fn in_files_of(mut self, rows_max: usize) -> Self {
        self.file_rows_max = rows_max.max(1);
        self
    }

    /// Tells `held` what the rows take in memory.
    pub(crate) fn counted_by(mut self, held: Held) -> Self {
        self.held = Some(held);
        self
    }

    fn hold(&mut self, bytes: usize) {
        if let Some(held) = &mut self.held {
            held.set(bytes);
        }
    }

    pub(crate) async fn write(&mut self, batch: RecordBatch) -> Result<(), OfflineError> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        self.waiting.add(batch, self.keys.is_some());
        self.hold(self.waiting.bytes());
        let mut bytes_before = self.waiting.bytes();
        while let Some(rows) = self.waiting.take_full(self.file_rows_max) {
            self.put(rows, bytes_before).await?;
            bytes_before = self.waiting.bytes();
        }
        if self.waiting.bytes() >= self.waiting_bytes_max { self.flush().await } else { Ok(()) }
    }

    /// Writes what is left; gives the add actions of all files.
    pub(crate) async fn finish(mut self) -> Result<Vec<serde_json::Value>, OfflineError> {
        self.flush().await?;
        Ok(self.adds)
    }

    async fn flush(&mut self) -> Result<(), OfflineError> {
        let mut bytes_before = self.waiting.bytes();
        while let Some(rows) = self.waiting.take_day() {
            self.put(rows, bytes_before).await?;
            bytes_before = self.waiting.bytes();
        }
        Ok(())
    }

    /// Writes one file. All rows that waited, these among them, take `waiting_bytes`.
    async fn put(&mut self, mut rows: DayRows, waiting_bytes: usize) -> Result<(), OfflineError> {
        if let Some(keys) = &self.keys {
            sort_by_key(&rows.batches, keys, &mut rows.picks);
        }
        let date = rows.day.map(date_text);
        let (pieces, facts) = self.encode(&rows, waiting_bytes)?;
        drop(rows);
        let mut hasher = Sha256::new();
        pieces.iter().for_each(|piece| hasher.update(piece));
        let size: usize = pieces.iter().map(Bytes::len).sum();
        self.hold(self.waiting.bytes() + size);
        let name = format!("{}{}.zstd.parquet", hex::encode(hasher.finalize()), self.mark);
        let path = match &date {
            Some(date) => format!("{COLUMN_EVENT_DATE}={date}/{name}"),
            None => name,
        };
        self.store.put(&Path::from(path.as_str()), PutPayload::from_iter(pieces)).await?;
        self.hold(self.waiting.bytes());
        let partition_values = match &date {
            Some(date) => serde_json::json!({ COLUMN_EVENT_DATE: date }),
            None => serde_json::json!({}),
        };
        let mut tags = serde_json::Map::new();
        if let Some(lane) = &self.lane {
            tags.insert(TAG_LANE.to_owned(), lane.as_str().into());
        }
        if facts.is_known_at_event_time {
            tags.insert(TAG_KNOWN_AT.to_owned(), COLUMN_EVENT_TIME.into());
        }
        if self.is_compaction {
            tags.insert(TAG_COMPACTED.to_owned(), "true".into());
        }
        self.adds.push(serde_json::json!({
            "path": path,
            "partitionValues": partition_values,
            "size": size,
            // Not the clock: a chunk written twice must leave the same action behind.
            "modificationTime": 0,
            "dataChange": !self.is_compaction,
            "stats": facts.stats().to_string(),
            "tags": tags,
        }));
        Ok(())
    }

    /// The file of these rows, and what the log says of it. Its rows are gathered little by little: all at once they would take
    /// their memory twice, and be out of the processor's cache when they are encoded.
    fn encode(&mut self, rows: &DayRows, waiting_bytes: usize) -> Result<(Vec<Bytes>, FileFacts), OfflineError> {
        let mut facts = FileFacts::of_no_rows();
        let mut file: Option<ArrowWriter<Pieces>> = None;
        let gathered_bytes = GATHERED_BYTES_MAX.min(self.waiting_bytes_max / WAITING_PER_GATHERED);
        let bytes_of_a_row = (rows.bytes / rows.picks.len().max(1)).max(1);
        for picks in rows.picks.chunks((gathered_bytes / bytes_of_a_row).clamp(1, GATHERED_ROWS_MAX)) {
            let gathered = gather(&self.schema, &rows.batches, picks)?;
            let writer = match &mut file {
                Some(writer) => writer,
                None => {
                    let properties = properties(&gathered, rows.picks.len(), self.keys.as_deref().unwrap_or_default())?;
                    let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
                    file.insert(ArrowWriter::try_new_with_options(Pieces::default(), gathered.schema(), options)?)
                }
            };
            facts.add(&gathered);
            writer.write(&gathered)?;
            let encoded_bytes = writer.in_progress_size() + writer.bytes_written();
            self.hold(waiting_bytes + gathered.get_array_memory_size() + encoded_bytes);
        }
        let Some(mut writer) = file else { return Ok((Vec::new(), facts)) };
        writer.finish()?;
        Ok((writer.inner_mut().take(), facts))
    }
}

/// The picked rows. Their order only matters to columns that do not say the same everywhere, and of columns that are one and the
/// same it matters once.
fn gather(schema: &SchemaRef, batches: &[RecordBatch], picks: &[(usize, usize)]) -> Result<RecordBatch, OfflineError> {
    let mut gathered: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    for (number, field) in schema.fields().iter().enumerate() {
        let sources: Vec<&ArrayRef> = batches.iter().map(|batch| batch.column(number)).collect();
        let is_twin = |other: &usize| {
            batches.iter().zip(&sources).all(|(batch, column)| Arc::ptr_eq(batch.column(*other), column))
        };
        let column = match (0..number).find(is_twin) {
            Some(twin) => gathered[twin].clone(),
            None if sources.iter().all(|column| column.null_count() == column.len()) => {
                new_null_array(field.data_type(), picks.len())
            }
            None => match only_value(&sources) {
                Some(value) => Arc::new(DictionaryArray::<Int32Type>::try_new(vec![0; picks.len()].into(), value)?),
                None => {
                    let sources: Vec<&dyn Array> = sources.iter().map(|column| column.as_ref()).collect();
                    arrow_select::interleave::interleave(&sources, picks)?
                }
            },
        };
        gathered.push(column);
    }
    Ok(RecordBatch::try_new(schema.clone(), gathered)?)
}

/// The dictionary of columns that have one, if it is the same and of one value that stands in all rows.
fn only_value(columns: &[&ArrayRef]) -> Option<ArrayRef> {
    let of_column = |column: &&ArrayRef| {
        let column = column.as_dictionary_opt::<Int32Type>()?;
        (column.null_count() == 0 && column.values().len() == 1).then(|| column.values().clone())
    };
    let first = columns.first().and_then(of_column)?;
    let is_same = |column| of_column(column).is_some_and(|value| Arc::ptr_eq(&value, &first));
    (first.null_count() == 0 && columns.iter().all(is_same)).then_some(first)
}

fn date_text(day: i64) -> String {
    let date = DateTime::from_timestamp_micros(day.saturating_mul(DAY_US)).unwrap_or_default();
    date.format("%Y-%m-%d").to_string()
}

/// How a file of so many rows is written, of which these are the first; by whoever writes one.
fn properties(first: &RecordBatch, rows: usize, keys: &[String]) -> Result<WriterProperties, OfflineError> {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_dictionary_page_size_limit(DICTIONARY_BYTES_MAX)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_created_by("eadem".to_owned());
    for name in [COLUMN_TIE, COLUMN_SEQUENCE, COLUMN_EVENT_TIME, COLUMN_KNOWN_AT] {
        // Most values differ: a dictionary would be built only to be thrown away.
        properties = properties.set_column_dictionary_enabled(ColumnPath::from(name), false);
    }
    for name in [COLUMN_SEQUENCE, COLUMN_EVENT_TIME, COLUMN_KNOWN_AT] {
        // Neighbours are near each other.
        properties = properties.set_column_encoding(ColumnPath::from(name), Encoding::DELTA_BINARY_PACKED);
    }
    // Every training set reads all keys and times of the history: they must be cheap to decode.
    for name in keys.iter().map(String::as_str).chain([COLUMN_EVENT_TIME, COLUMN_KNOWN_AT]) {
        properties = properties.set_column_compression(ColumnPath::from(name), Compression::LZ4_RAW);
    }
    properties = properties
        .set_column_statistics_enabled(ColumnPath::from(COLUMN_TIE), EnabledStatistics::None)
        // Digests do not shrink.
        .set_column_compression(ColumnPath::from(COLUMN_TIE), Compression::UNCOMPRESSED);
    properties = store_as_they_are(properties, first);
    if keys.is_empty() {
        return Ok(properties.build());
    }
    // A read for one entity finds its pages by these.
    for name in keys.iter().map(String::as_str).chain([COLUMN_EVENT_TIME]) {
        properties = properties.set_column_statistics_enabled(ColumnPath::from(name), EnabledStatistics::Page);
    }
    for name in keys {
        let column = ColumnPath::from(name.as_str());
        let is_text = first.column_by_name(name).is_some_and(|column| column.data_type() == &ArrowType::Utf8);
        // Equal keys lie together. A dictionary would have to be read whole for a single page.
        let encoding = if is_text { Encoding::PLAIN } else { Encoding::DELTA_BINARY_PACKED };
        properties = properties
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_encoding(column.clone(), encoding)
            // The writer makes room for the worst case and folds the filter to the number of keys that came.
            .set_column_bloom_filter_max_ndv(column.clone(), rows.min(ROW_GROUP_ROWS) as u64)
            .set_column_bloom_filter_fpp(column, BLOOM_FALSE_POSITIVES);
    }
    Ok(properties.build())
}

/// What the log says of a file's rows.
#[derive(Debug)]
struct FileFacts {
    rows: usize,
    is_known_at_event_time: bool,
    /// The least and the greatest of each column that is told of.
    ranges: BTreeMap<&'static str, (i64, i64)>,
}

/// Columns of times of which the log has the range.
const RANGED_TIMES: [&str; 3] = [COLUMN_EVENT_TIME, COLUMN_KNOWN_AT, quarantine::ARRIVAL];

impl FileFacts {
    fn of_no_rows() -> Self {
        Self { rows: 0, is_known_at_event_time: true, ranges: BTreeMap::new() }
    }

    fn add(&mut self, rows: &RecordBatch) {
        self.rows += rows.num_rows();
        self.is_known_at_event_time &= is_known_at_event_time(rows);
        for name in RANGED_TIMES {
            let times =
                rows.column_by_name(name).and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
            self.widen(name, times.map(|times| times.values()));
        }
        let attempts =
            rows.column_by_name(quarantine::ATTEMPT).and_then(|column| column.as_primitive_opt::<Int64Type>());
        self.widen(quarantine::ATTEMPT, attempts.map(|attempts| attempts.values()));
    }

    fn widen(&mut self, name: &'static str, numbers: Option<&ScalarBuffer<i64>>) {
        let Some(numbers) = numbers else { return };
        let (Some(least), Some(greatest)) = (numbers.iter().min(), numbers.iter().max()) else { return };
        let range = self.ranges.entry(name).or_insert((*least, *greatest));
        *range = (range.0.min(*least), range.1.max(*greatest));
    }

    /// Row count and time range; of a quarantine table's rows also whether replays wrote them. The log keeps milliseconds:
    /// the range is widened, never narrowed.
    fn stats(&self) -> serde_json::Value {
        let mut min = serde_json::Map::new();
        let mut max = serde_json::Map::new();
        let mut null_count = serde_json::Map::new();
        for (name, (least, greatest)) in &self.ranges {
            let is_time = RANGED_TIMES.contains(name);
            let told = |number: i64, millis: i64| if is_time { millis_text(millis).into() } else { number.into() };
            min.insert((*name).to_owned(), told(*least, least.div_euclid(1_000)));
            max.insert((*name).to_owned(), told(*greatest, -(-greatest).div_euclid(1_000)));
            null_count.insert((*name).to_owned(), 0.into());
        }
        serde_json::json!({
            "numRecords": self.rows, "minValues": min, "maxValues": max, "nullCount": null_count,
        })
    }
}

fn is_known_at_event_time(rows: &RecordBatch) -> bool {
    let column = |name: &str| rows.column_by_name(name)?.as_primitive_opt::<TimestampMicrosecondType>();
    let both = column(COLUMN_EVENT_TIME).zip(column(COLUMN_KNOWN_AT));
    both.is_some_and(|(event_times, known_at)| event_times.values() == known_at.values())
}

fn millis_text(millis: i64) -> String {
    let time = DateTime::from_timestamp_millis(millis).unwrap_or_default();
    time.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// The range of event times that a file's statistics admit, in microseconds; `None` without statistics.
pub(crate) fn event_time_range(stats: &str) -> Option<(i64, i64)> {
    let stats: serde_json::Value = serde_json::from_str(stats).ok()?;
    let time = |which: &str| {
        let text = stats.get(which)?.get(COLUMN_EVENT_TIME)?.as_str()?;
        eadem_values::parse_timestamp(text).ok()
    };
    // Other writers truncate the maximum to milliseconds.
    Some((time("minValues")?, time("maxValues")?.saturating_add(999)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use arrow_array::{BooleanArray, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray};
    use arrow_schema::{Field, Schema};
    use object_store::memory::InMemory;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReader;

    use super::*;

    fn lanes(value: &ArrayRef, rows: usize) -> ArrayRef {
        Arc::new(DictionaryArray::<Int32Type>::try_new(vec![0; rows].into(), value.clone()).unwrap())
    }

    /// Rows of a key, a time, the same time once more, a lane, an error, and something else.
    fn batch(rows: std::ops::Range<i64>, lane: &ArrayRef) -> RecordBatch {
        let count = rows.clone().count();
        let keys = rows.clone().map(|row| Some(format!("key-{}", row * 7 % 50)));
        let time: ArrayRef =
            Arc::new(TimestampMicrosecondArray::from_iter_values(rows.clone().map(|row| row % 3 * DAY_US + row)));
        RecordBatch::try_from_iter_with_nullable([
            ("key", Arc::new(StringArray::from_iter(keys)) as ArrayRef, false),
            (COLUMN_EVENT_TIME, time.clone(), false),
            (COLUMN_KNOWN_AT, time, false),
            ("lane", lanes(lane, count), false),
            ("error", Arc::new(StringArray::new_null(count)), true),
            ("odd", Arc::new(BooleanArray::from_iter(rows.map(|row| (row % 5 > 0).then_some(row % 2 == 1)))), true),
        ])
        .unwrap()
    }

    #[tokio::test]
    async fn files_are_of_so_many_rows_of_a_day_and_in_order() {
        const ROWS: i64 = 1_000;
        let (store, lane): (_, ArrayRef) = (Arc::new(InMemory::new()), Arc::new(StringArray::from(vec!["lane"])));
        let schema = batch(0..1, &lane).schema();
        let writer = PartitionWriter::new(store.clone(), schema, Some(vec!["key".to_owned()]), usize::MAX);
        let mut writer = writer.in_files_of(100);
        for first in (0..ROWS).step_by(64) {
            writer.write(batch(first..(first + 64).min(ROWS), &lane)).await.unwrap();
        }
        let adds = writer.finish().await.unwrap();
        let mut found: BTreeSet<(String, i64)> = BTreeSet::new();
        let mut rows_of_files: Vec<(String, usize)> = Vec::new();
        for add in &adds {
            let path = add["path"].as_str().unwrap();
            let bytes = store.get(&Path::from(path)).await.unwrap().bytes().await.unwrap();
            assert!(path.contains(&hex::encode(Sha256::digest(&bytes))), "{path}");
            let mut keys: Vec<(String, i64)> = Vec::new();
            for rows in ParquetRecordBatchReader::try_new(bytes, 1_024).unwrap() {
                let rows = rows.unwrap();
                let times = rows.column(1).as_primitive::<TimestampMicrosecondType>();
                assert_eq!(rows.column(1), rows.column(2));
                assert_eq!(rows.column(4).null_count(), rows.num_rows());
                for row in 0..rows.num_rows() {
                    let time = times.value(row);
                    keys.push((rows.column(0).as_string::<i32>().value(row).to_owned(), time));
                    let number = time % DAY_US;
                    let odd = rows.column(5).as_boolean();
                    let told = odd.is_valid(row).then(|| odd.value(row));
                    assert_eq!(told, (number % 5 > 0).then_some(number % 2 == 1));
                }
            }
            assert!(keys.is_sorted());
            let date = add["partitionValues"][COLUMN_EVENT_DATE].as_str().unwrap().to_owned();
            assert!(keys.iter().all(|(_, time)| date_text(time / DAY_US) == date));
            let stats: serde_json::Value = serde_json::from_str(add["stats"].as_str().unwrap()).unwrap();
            assert_eq!(stats["numRecords"], keys.len());
            assert_eq!(add["tags"][TAG_KNOWN_AT], COLUMN_EVENT_TIME);
            rows_of_files.push((date, keys.len()));
            found.extend(keys);
        }
        rows_of_files.sort();
        let rows: Vec<usize> = rows_of_files.iter().map(|(_, rows)| *rows).collect();
        assert_eq!(rows, [34, 100, 100, 100, 33, 100, 100, 100, 33, 100, 100, 100]);
        assert_eq!(found.len(), ROWS as usize);
    }

    #[test]
    fn what_the_log_says_of_a_file_holds_of_all_its_rows() {
        let part = |event_times: [i64; 2], known_at: [i64; 2]| {
            let times = |times: [i64; 2]| -> ArrayRef { Arc::new(TimestampMicrosecondArray::from(times.to_vec())) };
            let named = [(COLUMN_EVENT_TIME, times(event_times)), (COLUMN_KNOWN_AT, times(known_at))];
            RecordBatch::try_from_iter(named).unwrap()
        };
        let (on_time, late) = (part([5_001, 2_000], [5_001, 2_000]), part([9_001, 3_000], [9_001, 3_500]));
        for parts in [[&on_time, &late], [&late, &on_time]] {
            let mut facts = FileFacts::of_no_rows();
            parts.into_iter().for_each(|part| facts.add(part));
            assert!(!facts.is_known_at_event_time);
            let stats = facts.stats();
            assert_eq!(stats["numRecords"], 4);
            // Milliseconds, and the greatest is not less than any.
            assert_eq!(stats["minValues"][COLUMN_EVENT_TIME], "1970-01-01T00:00:00.002Z");
            assert_eq!(stats["maxValues"][COLUMN_EVENT_TIME], "1970-01-01T00:00:00.010Z");
            assert_eq!(stats["minValues"][COLUMN_KNOWN_AT], "1970-01-01T00:00:00.002Z");
        }
        let mut facts = FileFacts::of_no_rows();
        facts.add(&on_time);
        facts.add(&on_time);
        assert!(facts.is_known_at_event_time);
    }

    #[test]
    fn what_is_gathered_is_what_interleaving_gives() {
        let (lane, other): (ArrayRef, ArrayRef) =
            (Arc::new(StringArray::from(vec!["lane"])), Arc::new(StringArray::from(vec!["other"])));
        let null: ArrayRef = Arc::new(StringArray::from(vec![None::<&str>]));
        let two: ArrayRef = Arc::new(StringArray::from(vec!["lane", "other"]));
        let with_nulls = |rows: usize| -> ArrayRef {
            let keys = Int32Array::from_iter((0..rows as i32).map(|row| (row % 2 == 0).then_some(0)));
            Arc::new(DictionaryArray::<Int32Type>::try_new(keys, lane.clone()).unwrap())
        };
        let of_two: ArrayRef =
            Arc::new(DictionaryArray::<Int32Type>::try_new(vec![1, 0, 1].into(), two.clone()).unwrap());
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![3, 2, 1]));
        let columns: Vec<[ArrayRef; 2]> = vec![
            [lanes(&lane, 3), lanes(&lane, 3)],
            [lanes(&lane, 3), lanes(&other, 3)],
            [lanes(&null, 3), lanes(&null, 3)],
            [lanes(&lane, 3), with_nulls(3)],
            [of_two.clone(), of_two],
            [lanes(&two, 3), lanes(&two, 3)],
            [numbers.clone(), numbers.clone()],
            [numbers.clone(), numbers.clone()],
            // The same as another in one batch only.
            [numbers.clone(), Arc::new(Int64Array::from(vec![6, 5, 4]))],
            [Arc::new(Int64Array::new_null(3)), Arc::new(Int64Array::new_null(3))],
            [Arc::new(Int64Array::new_null(3)), Arc::new(Int64Array::from(vec![7, 8, 9]))],
        ];
        let fields = columns.iter().enumerate();
        let fields: Vec<Field> = fields
            .map(|(number, of_batches)| Field::new(number.to_string(), of_batches[0].data_type().clone(), true))
            .collect();
        let schema: SchemaRef = Arc::new(Schema::new(fields));
        let of_batch = |batch: usize| {
            let columns = columns.iter().map(|of_batches| of_batches[batch].clone()).collect();
            RecordBatch::try_new(schema.clone(), columns).unwrap()
        };
        let picks = [(1, 2), (0, 0), (1, 1), (0, 2), (1, 0)];
        let gathered = gather(&schema, &[of_batch(0), of_batch(1)], &picks).unwrap();
        for (number, of_batches) in columns.iter().enumerate() {
            let sources: Vec<&dyn Array> = of_batches.iter().map(|column| column.as_ref()).collect();
            let plain = |column: &ArrayRef| match column.data_type() {
                ArrowType::Dictionary(_, values) => arrow_cast::cast(column, values).unwrap(),
                _ => column.clone(),
            };
            let wanted = arrow_select::interleave::interleave(&sources, &picks).unwrap();
            assert_eq!(&plain(gathered.column(number)), &plain(&wanted), "{number}");
        }
    }
}
