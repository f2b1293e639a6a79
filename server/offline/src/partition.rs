//! Writing data files: one per partition, named by the digest of its bytes and its job, so that writing a chunk again
//! writes the same files again.
//!
//! Whoever writes rows of a table, a backfill or a compaction, writes them here, and so all files are laid out alike: by key,
//! then event time, in row groups and pages that are small enough for a reader that wants one entity.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType as ArrowType, SchemaRef};
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
use crate::quarantine;
use crate::schema::{COLUMN_EVENT_DATE, COLUMN_EVENT_TIME, COLUMN_KNOWN_AT, COLUMN_SEQUENCE, COLUMN_TIE};
use crate::shrink::store_as_they_are;
use crate::sort::sort_by_key;

/// The tag of a data file that a compaction wrote.
pub(crate) const TAG_COMPACTED: &str = "eadem.compacted";

/// The tag of a data file whose rows are all of one lane: that lane.
pub(crate) const TAG_LANE: &str = "eadem.lane";

/// The tag of a data file in which every row was known at its event time: the name of that column.
pub(crate) const TAG_KNOWN_AT: &str = "eadem.known_at";

/// 64 bits tell the jobs that ever write to one table apart.
const JOB_MARK_DIGITS: usize = 16;

const DAY_US: i64 = 86_400_000_000;

/// Rows of one row group. A scan holds the chunks of one row group in memory, and a bloom filter speaks of one.
const ROW_GROUP_ROWS: usize = 131_072;

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
    buffered: Vec<RecordBatch>,
    buffered_bytes: usize,
    buffered_bytes_max: usize,
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
        buffered_bytes_max: usize,
    ) -> Self {
        Self {
            store,
            schema,
            keys,
            buffered: Vec::new(),
            buffered_bytes: 0,
            buffered_bytes_max,
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
        self.buffered_bytes += batch.get_array_memory_size();
        self.buffered.push(batch);
        self.hold(self.buffered_bytes);
        if self.buffered_bytes >= self.buffered_bytes_max { self.flush().await } else { Ok(()) }
    }

    /// Writes what is left; gives the add actions of all files.
    pub(crate) async fn finish(mut self) -> Result<Vec<serde_json::Value>, OfflineError> {
        self.flush().await?;
        Ok(self.adds)
    }

    async fn flush(&mut self) -> Result<(), OfflineError> {
        let batches = std::mem::take(&mut self.buffered);
        let buffered_bytes = std::mem::take(&mut self.buffered_bytes);
        if batches.is_empty() {
            return Ok(());
        }
        let Some(keys) = self.keys.clone() else {
            let whole = arrow_select::concat::concat_batches(&self.schema, &batches)?;
            self.put(whole, None, buffered_bytes).await?;
            self.hold(0);
            return Ok(());
        };
        for (day, mut picks) in rows_by_day(&batches) {
            sort_by_key(&batches, &keys, &mut picks);
            let rows = gather(&self.schema, &batches, &picks)?;
            self.put(rows, Some(date_text(day)), buffered_bytes).await?;
        }
        self.hold(0);
        Ok(())
    }

    /// Writes one file, while `buffered_bytes` of rows wait for theirs or are written already.
    async fn put(
        &mut self,
        rows: RecordBatch,
        date: Option<String>,
        buffered_bytes: usize,
    ) -> Result<(), OfflineError> {
        let gathered_bytes = rows.get_array_memory_size();
        self.hold(buffered_bytes + gathered_bytes);
        let bytes = encode(&rows, self.keys.as_deref().unwrap_or_default())?;
        self.hold(buffered_bytes + gathered_bytes + bytes.capacity());
        let name = format!("{}{}.zstd.parquet", hex::encode(Sha256::digest(&bytes)), self.mark);
        let path = match &date {
            Some(date) => format!("{COLUMN_EVENT_DATE}={date}/{name}"),
            None => name,
        };
        let size = bytes.len();
        self.store.put(&Path::from(path.as_str()), PutPayload::from(bytes)).await?;
        let partition_values = match &date {
            Some(date) => serde_json::json!({ COLUMN_EVENT_DATE: date }),
            None => serde_json::json!({}),
        };
        let mut tags = serde_json::Map::new();
        if let Some(lane) = &self.lane {
            tags.insert(TAG_LANE.to_owned(), lane.as_str().into());
        }
        if is_known_at_event_time(&rows) {
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
            "stats": stats(&rows).to_string(),
            "tags": tags,
        }));
        Ok(())
    }
}

fn is_known_at_event_time(rows: &RecordBatch) -> bool {
    let column = |name: &str| rows.column_by_name(name)?.as_primitive_opt::<TimestampMicrosecondType>();
    let both = column(COLUMN_EVENT_TIME).zip(column(COLUMN_KNOWN_AT));
    both.is_some_and(|(event_times, known_at)| event_times.values() == known_at.values())
}

/// For every UTC day, the (batch, row) pairs of its rows, in their order.
fn rows_by_day(batches: &[RecordBatch]) -> BTreeMap<i64, Vec<(usize, usize)>> {
    let mut days: BTreeMap<i64, Vec<(usize, usize)>> = BTreeMap::new();
    for (number, batch) in batches.iter().enumerate() {
        let Some(times) = batch.column_by_name(COLUMN_EVENT_TIME) else { continue };
        let times = times.as_primitive::<TimestampMicrosecondType>().values();
        let mut row = 0;
        while row < times.len() {
            // Rows often come in order of time, so runs of one day are long.
            let day = times[row].div_euclid(DAY_US);
            let end = row + times[row..].iter().take_while(|time| time.div_euclid(DAY_US) == day).count();
            days.entry(day).or_default().extend((row..end).map(|row| (number, row)));
            row = end;
        }
    }
    days
}

fn gather(schema: &SchemaRef, batches: &[RecordBatch], picks: &[(usize, usize)]) -> Result<RecordBatch, OfflineError> {
    let columns = (0..schema.fields().len())
        .map(|column| {
            let sources: Vec<&dyn Array> = batches.iter().map(|batch| batch.column(column).as_ref()).collect();
            arrow_select::interleave::interleave(&sources, picks)
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(RecordBatch::try_new(schema.clone(), columns)?)
}

fn date_text(day: i64) -> String {
    let date = DateTime::from_timestamp_micros(day.saturating_mul(DAY_US)).unwrap_or_default();
    date.format("%Y-%m-%d").to_string()
}

fn encode(rows: &RecordBatch, keys: &[String]) -> Result<Vec<u8>, OfflineError> {
    let options = ArrowWriterOptions::new().with_properties(properties(rows, keys)?).with_skip_arrow_metadata(true);
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new_with_options(&mut bytes, rows.schema(), options)?;
    writer.write(rows)?;
    writer.close()?;
    Ok(bytes)
}

/// How a file of these rows is written, by whoever writes one.
fn properties(rows: &RecordBatch, keys: &[String]) -> Result<WriterProperties, OfflineError> {
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
    properties = store_as_they_are(properties, rows);
    if keys.is_empty() {
        return Ok(properties.build());
    }
    // A read for one entity finds its pages by these.
    for name in keys.iter().map(String::as_str).chain([COLUMN_EVENT_TIME]) {
        properties = properties.set_column_statistics_enabled(ColumnPath::from(name), EnabledStatistics::Page);
    }
    for name in keys {
        let column = ColumnPath::from(name.as_str());
        let is_text = rows.column_by_name(name).is_some_and(|column| column.data_type() == &ArrowType::Utf8);
        // Equal keys lie together. A dictionary would have to be read whole for a single page.
        let encoding = if is_text { Encoding::PLAIN } else { Encoding::DELTA_BINARY_PACKED };
        properties = properties
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_encoding(column.clone(), encoding)
            // The writer makes room for the worst case and folds the filter to the number of keys that came.
            .set_column_bloom_filter_max_ndv(column.clone(), rows.num_rows().min(ROW_GROUP_ROWS) as u64)
            .set_column_bloom_filter_fpp(column, BLOOM_FALSE_POSITIVES);
    }
    Ok(properties.build())
}

/// Row count and time range; of a quarantine table's rows also whether replays wrote them. The log keeps milliseconds: the
/// range is widened, never narrowed.
fn stats(rows: &RecordBatch) -> serde_json::Value {
    let mut min = serde_json::Map::new();
    let mut max = serde_json::Map::new();
    let mut null_count = serde_json::Map::new();
    for name in [COLUMN_EVENT_TIME, COLUMN_KNOWN_AT, quarantine::ARRIVAL] {
        let Some(column) = rows.column_by_name(name) else { continue };
        let times = column.as_primitive::<TimestampMicrosecondType>().values();
        let (Some(earliest), Some(latest)) = (times.iter().min(), times.iter().max()) else { continue };
        min.insert(name.to_owned(), millis_text(earliest.div_euclid(1_000)).into());
        max.insert(name.to_owned(), millis_text(-(-latest).div_euclid(1_000)).into());
        null_count.insert(name.to_owned(), 0.into());
    }
    if let Some(attempts) =
        rows.column_by_name(quarantine::ATTEMPT).and_then(|column| column.as_primitive_opt::<Int64Type>())
    {
        min.insert(quarantine::ATTEMPT.to_owned(), attempts.values().iter().min().copied().into());
        max.insert(quarantine::ATTEMPT.to_owned(), attempts.values().iter().max().copied().into());
        null_count.insert(quarantine::ATTEMPT.to_owned(), 0.into());
    }
    serde_json::json!({
        "numRecords": rows.num_rows(), "minValues": min, "maxValues": max, "nullCount": null_count,
    })
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
