//! Taking rows out of a table: whole data files where all of their rows go, else files written again without them.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::TimestampMicrosecondType;
use arrow_array::{BooleanArray, RecordBatch};
use arrow_schema::DataType as ArrowType;
use chrono::Utc;
use deltalake_core::kernel::{Add, Remove};
use eadem_values::format_timestamp;
use futures::TryStreamExt;
use parquet::arrow::ProjectionMask;
use parquet::arrow::async_reader::ParquetRecordBatchStreamBuilder;

use crate::backfill::{Room, counted, reading_within};
use crate::commit::{Effect, LiveFile, adds_of, paths_of};
use crate::erase_files::Batches;
use crate::error::OfflineError;
use crate::lanes::Withdrawn;
use crate::partition::PartitionWriter;
use crate::read::typed_column;
use crate::schema::{COLUMN_EVENT_TIME, COLUMN_LANE};
use crate::table::{DataFile, ViewTable};

/// Rows that are read of a file at once.
const BATCH_ROWS: usize = 8_192;

/// Bytes of kept rows that are held before they are written.
const BUFFERED_BYTES_MAX: usize = 256 << 20;

/// Lanes that are named in the log where their rows are taken out.
const LANES_NAMED_MAX: usize = 32;

impl Withdrawn {
    fn asks_for(&self, lane: &str, event_us: i64) -> bool {
        let is_in_range = self.range_us.is_none_or(|(from, to)| (from..to).contains(&event_us));
        is_in_range && self.digests.contains(lane)
    }

    /// Whether the file can hold a row that goes.
    fn meets(&self, file: &LiveFile) -> bool {
        let may_be_lane = file.lane.as_ref().is_none_or(|lane| self.digests.contains(lane));
        let may_be_time = match (self.range_us, file.file.event_time_us) {
            (Some((from, to)), Some((earliest, latest))) => earliest < to && from <= latest,
            _ => true,
        };
        may_be_lane && may_be_time
    }

    /// Whether every row of the file goes, as far as can be told without reading it.
    fn takes_all_of(&self, file: &LiveFile) -> bool {
        let is_lane = file.lane.as_ref().is_some_and(|lane| self.digests.contains(lane));
        let is_time = match (self.range_us, file.file.event_time_us) {
            (None, _) => true,
            (Some((from, to)), Some((earliest, latest))) => from <= earliest && latest < to,
            (Some(_), None) => false,
        };
        is_lane && is_time
    }
}

impl Withdrawn {
    /// As an expression over the table's columns, for readers of the log; `None` where it would be endless.
    pub(crate) fn expression(&self) -> Option<String> {
        if self.digests.len() > LANES_NAMED_MAX {
            return None;
        }
        let lanes: Vec<String> = self.digests.iter().map(|digest| format!("'{digest}'")).collect();
        let mut text = format!("{COLUMN_LANE} IN ({})", lanes.join(", "));
        if let Some((from, to)) = self.range_us {
            let (from, to) = (format_timestamp(from), format_timestamp(to));
            text.push_str(&format!(" AND {COLUMN_EVENT_TIME} >= '{from}' AND {COLUMN_EVENT_TIME} < '{to}'"));
        }
        Some(text)
    }
}

/// What a commit needs so that rows are gone.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Outgoing {
    pub(crate) removes: Vec<Remove>,
    /// Files without the rows, in the place of removed ones.
    pub(crate) adds: Vec<Add>,
    pub(crate) rows: u64,
}

/// Finds out how rows go. It remembers the files that it has written again, for the next attempt at a commit.
pub(crate) struct Withdrawal<'a> {
    table: &'a ViewTable,
    job: &'a str,
    room: &'a Room,
    known: BTreeMap<String, (Withdrawn, Effect)>,
    written: Vec<String>,
}

impl<'a> Withdrawal<'a> {
    pub(crate) fn new(table: &'a ViewTable, job: &'a str, room: &'a Room) -> Self {
        Self { table, job, room, known: BTreeMap::new(), written: Vec::new() }
    }

    /// The files that were written for any attempt.
    pub(crate) fn into_written(self) -> Vec<String> {
        self.written
    }

    /// What a commit on top of `files` has to say.
    ///
    /// # Errors
    /// A file that cannot be read, or written again.
    pub(crate) async fn of(&mut self, withdrawn: &Withdrawn, files: &[LiveFile]) -> Result<Outgoing, OfflineError> {
        let mut outgoing = Outgoing::default();
        if withdrawn.digests.is_empty() {
            return Ok(outgoing);
        }
        let now_ms = Utc::now().timestamp_millis();
        for file in files.iter().filter(|file| withdrawn.meets(file)) {
            if let Effect::Goes { rows, kept } = self.effect(withdrawn, file).await? {
                outgoing.removes.push(file.remove(true, now_ms));
                outgoing.adds.extend(kept);
                outgoing.rows += rows;
            }
        }
        Ok(outgoing)
    }

    async fn effect(&mut self, withdrawn: &Withdrawn, file: &LiveFile) -> Result<Effect, OfflineError> {
        if let (true, Some(rows)) = (withdrawn.takes_all_of(file), file.rows) {
            return Ok(Effect::Goes { rows, kept: Vec::new() });
        }
        if let Some((asked, effect)) = self.known.get(&file.file.path)
            && asked == withdrawn
        {
            return Ok(effect.clone());
        }
        let effect = self.look_into(withdrawn, file).await?;
        self.written.extend(paths_of(effect.kept()));
        self.known.insert(file.file.path.clone(), (withdrawn.clone(), effect.clone()));
        Ok(effect)
    }

    async fn look_into(&self, withdrawn: &Withdrawn, file: &LiveFile) -> Result<Effect, OfflineError> {
        let (mut going, mut staying) = (0, 0);
        let room = Some(self.room);
        let mut batches = self.table.batches_within(&file.file, &[COLUMN_LANE, COLUMN_EVENT_TIME], room).await?;
        while let Some(batch) = batches.try_next().await? {
            let goes = rows_that_go(withdrawn, &batch)?.true_count();
            going += goes as u64;
            staying += (batch.num_rows() - goes) as u64;
        }
        if going == 0 {
            return Ok(Effect::Stays);
        }
        if staying == 0 {
            return Ok(Effect::Goes { rows: going, kept: Vec::new() });
        }
        let mut writer = self.table.writer_within(self.job, file.lane.as_deref(), self.room);
        let mut batches = self.table.batches_within(&file.file, &[], room).await?;
        while let Some(batch) = batches.try_next().await? {
            let stays = arrow_not(&rows_that_go(withdrawn, &batch)?);
            writer.write(arrow_select::filter::filter_record_batch(&batch, &stays)?).await?;
        }
        Ok(Effect::Goes { rows: going, kept: adds_of(&writer.finish().await?)? })
    }
}

fn arrow_not(mask: &BooleanArray) -> BooleanArray {
    BooleanArray::new(!mask.values(), None)
}

fn rows_that_go(withdrawn: &Withdrawn, batch: &RecordBatch) -> Result<BooleanArray, OfflineError> {
    let column = |name: &str| {
        batch.column_by_name(name).ok_or_else(|| {
            OfflineError::Arrow(arrow_schema::ArrowError::SchemaError(format!("a data file has no column `{name}`")))
        })
    };
    let lanes = arrow_cast::cast(column(COLUMN_LANE)?, &ArrowType::Utf8)?;
    let lanes = lanes.as_string::<i32>();
    let times = column(COLUMN_EVENT_TIME)?.as_primitive::<TimestampMicrosecondType>();
    Ok((0..batch.num_rows()).map(|row| Some(withdrawn.asks_for(lanes.value(row), times.value(row)))).collect())
}

impl ViewTable {
    /// Writes rows again that a file of this lane, or of several, holds.
    pub(crate) fn writer_in_place_of(&self, job: &str, lane: Option<&str>) -> PartitionWriter {
        self.writer_of(job, lane, BUFFERED_BYTES_MAX)
    }

    /// The same, for a job that has so much room.
    pub(crate) fn writer_within(&self, job: &str, lane: Option<&str>, room: &Room) -> PartitionWriter {
        self.writer_of(job, lane, room.allowance.buffered_bytes_max).counted_by(room.gauge.hold())
    }

    fn writer_of(&self, job: &str, lane: Option<&str>, buffered_bytes_max: usize) -> PartitionWriter {
        let schema = self.schema.file_schema();
        PartitionWriter::new(self.store.clone(), schema, Some(self.key_names()), buffered_bytes_max)
            .of_job(job)
            .of_lane(lane)
    }

    /// The rows of a data file, whether it is in any version or not, as they stand in it, with the columns of
    /// [`crate::schema::TableSchema::file_schema`], or only those of these names.
    pub(crate) async fn raw_batches(&self, file: &DataFile, names: &[&str]) -> Result<Batches, OfflineError> {
        self.batches_within(file, names, None).await
    }

    /// The same, for a job that has so much room.
    pub(crate) async fn batches_within(
        &self,
        file: &DataFile,
        names: &[&str],
        room: Option<&Room>,
    ) -> Result<Batches, OfflineError> {
        let (reader, damaged) = self.open_file(file);
        let builder = ParquetRecordBatchStreamBuilder::new(reader).await.map_err(&damaged)?;
        let wanted = self.schema.file_schema();
        let wanted = match names {
            [] => wanted,
            names => {
                let fields = wanted.fields().iter().filter(|field| names.contains(&field.name().as_str())).cloned();
                Arc::new(arrow_schema::Schema::new(fields.collect::<Vec<_>>()))
            }
        };
        let roots: Vec<usize> =
            wanted.fields().iter().map(|field| builder.schema().index_of(field.name())).collect::<Result<_, _>>()?;
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        let reading = reading_within(room, builder.metadata().row_groups(), &mask, BATCH_ROWS);
        let no_room = |reason: String| OfflineError::File { file: self.file_url(file), reason };
        let (reading, held) = reading.map_err(no_room)?;
        let stream = builder.with_projection(mask).with_batch_size(reading.batch_rows).build().map_err(&damaged)?;
        let in_order = counted(held, reading.largest_bytes, stream).map_err(damaged).and_then(move |batch| {
            let ordered = as_written(&wanted, &batch);
            async move { ordered }
        });
        Ok(Box::pin(in_order))
    }
}

/// The batch with exactly these columns and types. Another writer, or an older version of this one, may have stored them in
/// another order.
pub(crate) fn as_written(wanted: &arrow_schema::SchemaRef, batch: &RecordBatch) -> Result<RecordBatch, OfflineError> {
    let column = |field: &Arc<arrow_schema::Field>| typed_column(batch, field.name(), field.data_type());
    let columns = wanted.fields().iter().map(column).collect::<Result<Vec<_>, _>>()?;
    Ok(RecordBatch::try_new(wanted.clone(), columns)?)
}
