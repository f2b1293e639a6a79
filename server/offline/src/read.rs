//! Reading a view's table: whole, by time range, or for one entity.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray};
use arrow_schema::DataType as ArrowType;
use eadem_semantics::{Lifetime, ReadAt, RowOrder, is_candidate};
use eadem_values::{DataType, EntityKey, KeyType, KeyValue, TieDigest, Value, value_at};
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store::path::Path;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowPredicateFn, RowFilter};
use parquet::arrow::async_reader::ParquetRecordBatchStreamBuilder;

use crate::error::OfflineError;
use crate::object_file::ObjectFile;
use crate::schema::{
    COLUMN_ERROR, COLUMN_EVENT_TIME, COLUMN_KNOWN_AT, COLUMN_LANE, COLUMN_SEQUENCE, COLUMN_TIE, from_storage,
    key_arrow_type,
};
use crate::table::{DataFile, ReadVersion, TableState, ViewTable};

const SCAN_BATCH_ROWS: usize = 8_192;

/// Which event times a scan gives: ends included, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanRange {
    /// No earlier row.
    pub from_us: i64,
    /// No later row.
    pub to_us: i64,
}

impl ScanRange {
    /// All rows.
    pub const ALL: Self = Self { from_us: i64::MIN, to_us: i64::MAX };

    /// The rows that a read between these times can still tell from none.
    pub fn readable(lifetime: Lifetime, earliest_read_us: i64, latest_read_us: i64) -> Self {
        Self { from_us: lifetime.oldest_readable_us(earliest_read_us), to_us: latest_read_us }
    }

    /// The rows of both, and what lies between.
    fn with(self, other: Self) -> Self {
        Self { from_us: self.from_us.min(other.from_us), to_us: self.to_us.max(other.to_us) }
    }

    pub(crate) fn meets(&self, file: &DataFile) -> bool {
        file.event_time_us.is_none_or(|(earliest, latest)| earliest <= self.to_us && self.from_us <= latest)
    }
}

/// Rows of a view's table, in canonical form.
#[derive(Debug, Clone)]
pub struct HistoryBatch {
    keys: Vec<ArrayRef>,
    values: Vec<ArrayRef>,
    event_time: ArrayRef,
    known_at: ArrayRef,
    tie: BinaryArray,
    lane: StringArray,
    sequence: Int64Array,
    error: StringArray,
}

impl HistoryBatch {
    /// How many rows these are.
    pub fn len(&self) -> usize {
        self.sequence.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The join keys, in declared order.
    pub fn keys(&self) -> &[ArrayRef] {
        &self.keys
    }

    /// The features in declared order, or the bound inputs of a view that is computed on read.
    pub fn values(&self) -> &[ArrayRef] {
        &self.values
    }

    /// The entity of a row.
    pub fn key(&self, row: usize) -> EntityKey {
        let part = |column: &ArrayRef| match column.data_type() {
            ArrowType::Int64 => KeyValue::Int64(column.as_primitive::<Int64Type>().value(row)),
            _ => KeyValue::Utf8(column.as_string::<i32>().value(row).to_owned()),
        };
        EntityKey(self.keys.iter().map(part).collect())
    }

    /// A row's place in the order of rows.
    pub fn order(&self, row: usize) -> RowOrder {
        let mut tie = [0; 16];
        tie.copy_from_slice(self.tie.value(row));
        RowOrder {
            event_time_us: self.event_time.as_primitive::<TimestampMicrosecondType>().value(row),
            known_at_us: self.known_at.as_primitive::<TimestampMicrosecondType>().value(row),
            tie: TieDigest::from_bytes(tie),
        }
    }

    /// The ordered input that a row came from.
    pub fn lane(&self, row: usize) -> &str {
        self.lane.value(row)
    }

    /// A row's position in its lane.
    pub fn sequence(&self, row: usize) -> i64 {
        self.sequence.value(row)
    }

    /// Why the transform failed on a row, if it did.
    pub fn error(&self, row: usize) -> Option<&str> {
        self.error.is_valid(row).then(|| self.error.value(row))
    }
}

/// What a read for one entity found.
#[derive(Debug, Clone, PartialEq)]
pub struct EntityRead {
    /// The table's version that was read.
    pub version: u64,
    /// The winner's place in the order of rows.
    pub order: RowOrder,
    /// Its values, in the order of [`HistoryBatch::values`].
    pub values: Vec<Value>,
    /// Why its transform failed, if it did.
    pub error: Option<String>,
}

impl ViewTable {
    /// All rows of the current version with an event time in the range, in no order. Gives the version that is read, and
    /// nothing if nothing was ever loaded.
    ///
    /// # Errors
    /// A table that cannot be read.
    pub async fn scan(
        &self,
        range: ScanRange,
    ) -> Result<Option<(u64, BoxStream<'static, Result<HistoryBatch, OfflineError>>)>, OfflineError> {
        let Some(TableState { version, files }) = self.state(ReadVersion::Current).await? else { return Ok(None) };
        let table = self.clone();
        let batches = futures::stream::iter(files.into_iter().filter(move |file| range.meets(file)))
            .then(move |file| {
                let table = table.clone();
                async move { table.read_file(file, range, None).await }
            })
            .try_flatten()
            .boxed();
        Ok(Some((version, batches)))
    }

    /// For each entity the row that wins at its read, looking no further back than `lifetime` allows: one answer per key,
    /// all from one version of the table. Every data file is read at most once, however many entities there are.
    ///
    /// # Errors
    /// A table that cannot be read; another number of reads than of keys.
    pub async fn read_entities(
        &self,
        keys: &[EntityKey],
        reads: &[ReadAt],
        lifetime: Lifetime,
        version: ReadVersion,
    ) -> Result<Vec<Option<EntityRead>>, OfflineError> {
        if keys.len() != reads.len() {
            let message = format!("{} keys, {} reads", keys.len(), reads.len());
            return Err(eadem_query::QueryError::Shape(message).into());
        }
        let Some(TableState { version, files }) = self.state(version).await? else {
            return Ok(vec![None; keys.len()]);
        };
        let wanted: Arc<HashSet<EntityKey>> = Arc::new(keys.iter().cloned().collect());
        let mut found = EntitySearch::new(keys, reads, lifetime);
        // The newest first: a file that ends before the best row so far cannot beat it.
        let latest = |file: &DataFile| file.event_time_us.map_or(i64::MAX, |(_, latest)| latest);
        let mut files = files;
        files.sort_by_key(|file| std::cmp::Reverse(latest(file)));
        for file in files {
            let Some(range) = found.range_in(&file) else { continue };
            let mut batches = self.read_file(file, range, Some(wanted.clone())).await?;
            while let Some(batch) = batches.try_next().await? {
                found.take(&batch);
            }
        }
        found.best.into_iter().map(|best| best.map(|best| best.into_read(version)).transpose()).collect()
    }

    /// A data file as the Parquet reader wants it, and what makes an error of the file out of what is wrong with it.
    pub(crate) fn open_file<E: std::fmt::Display>(
        &self,
        file: &DataFile,
    ) -> (ObjectFile, impl Fn(E) -> OfflineError + use<E>) {
        let url = format!("{}/{}", self.location.url, file.path);
        let damaged = move |error: E| OfflineError::File {
            file: url.clone(),
            reason: format!("a data file of the table cannot be read: {error}"),
        };
        let path = Path::from(file.path.as_str());
        (ObjectFile { store: self.store.clone(), path, bytes: file.bytes }, damaged)
    }

    pub(crate) async fn read_file(
        &self,
        file: DataFile,
        range: ScanRange,
        keys: Option<Arc<HashSet<EntityKey>>>,
    ) -> Result<BoxStream<'static, Result<HistoryBatch, OfflineError>>, OfflineError> {
        let (reader, damaged) = self.open_file(&file);
        let mut builder = ParquetRecordBatchStreamBuilder::new(reader).await.map_err(&damaged)?;
        let mut predicates: Vec<Box<dyn parquet::arrow::arrow_reader::ArrowPredicate>> = Vec::new();
        if let Some(keys) = keys {
            let names: Vec<String> = self.schema.keys.iter().map(|(name, _)| name.clone()).collect();
            let roots = roots(builder.schema(), &names)?;
            let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
            predicates.push(Box::new(ArrowPredicateFn::new(mask, move |batch| {
                let columns: Vec<Option<&ArrayRef>> = names.iter().map(|name| batch.column_by_name(name)).collect();
                let mut key = EntityKey(Vec::with_capacity(columns.len()));
                Ok((0..batch.num_rows())
                    .map(|row| Some(read_key(&columns, row, &mut key) && keys.contains(&key)))
                    .collect())
            })));
        }
        let within = file.event_time_us.is_some_and(|(from, to)| range.from_us <= from && to <= range.to_us);
        if !within && range != ScanRange::ALL {
            let roots = roots(builder.schema(), &[COLUMN_EVENT_TIME.to_owned()])?;
            let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
            predicates.push(Box::new(ArrowPredicateFn::new(mask, move |batch| {
                let times = batch.column(0).as_primitive::<TimestampMicrosecondType>();
                Ok(times.values().iter().map(|time| Some((range.from_us..=range.to_us).contains(time))).collect())
            })));
        }
        if !predicates.is_empty() {
            builder = builder.with_row_filter(RowFilter::new(predicates));
        }
        let stream = builder.with_batch_size(SCAN_BATCH_ROWS).build().map_err(&damaged)?;
        let schema = self.schema.clone();
        Ok(stream
            .map_err(damaged)
            .and_then(move |batch| {
                let decoded = decode(&schema, &batch);
                async move { decoded }
            })
            .boxed())
    }
}

/// Reads the key of a row, into what another row has left behind; false if a part is null or of no key type.
fn read_key(columns: &[Option<&ArrayRef>], row: usize, key: &mut EntityKey) -> bool {
    key.0.resize(columns.len(), KeyValue::Int64(0));
    columns.iter().zip(&mut key.0).all(|(column, part)| {
        let Some(column) = column.filter(|column| column.is_valid(row)) else { return false };
        if let Some(numbers) = column.as_primitive_opt::<Int64Type>() {
            *part = KeyValue::Int64(numbers.value(row));
            return true;
        }
        let Some(texts) = column.as_string_opt::<i32>() else { return false };
        match part {
            KeyValue::Utf8(text) => {
                text.clear();
                text.push_str(texts.value(row));
            }
            KeyValue::Int64(_) => *part = KeyValue::Utf8(texts.value(row).to_owned()),
        }
        true
    })
}

/// Reads of single entities, and the best row that each has met so far.
struct EntitySearch<'a> {
    reads: &'a [ReadAt],
    ranges: Vec<ScanRange>,
    /// An entity may be asked for at several instants.
    reads_of: HashMap<&'a EntityKey, Vec<usize>>,
    best: Vec<Option<BestRow>>,
}

struct BestRow {
    order: RowOrder,
    batch: HistoryBatch,
    row: usize,
}

impl BestRow {
    fn into_read(self, version: u64) -> Result<EntityRead, OfflineError> {
        let values = self.batch.values.iter().map(|column| value_at(column.as_ref(), self.row));
        Ok(EntityRead {
            version,
            order: self.order,
            values: values.collect::<Result<_, _>>()?,
            error: self.batch.error(self.row).map(str::to_owned),
        })
    }
}

impl<'a> EntitySearch<'a> {
    fn new(keys: &'a [EntityKey], reads: &'a [ReadAt], lifetime: Lifetime) -> Self {
        let mut reads_of: HashMap<&EntityKey, Vec<usize>> = HashMap::new();
        for (read, key) in keys.iter().enumerate() {
            reads_of.entry(key).or_default().push(read);
        }
        let ranges = reads.iter().map(|read| ScanRange::readable(lifetime, read.at_us, read.at_us)).collect();
        Self { reads, ranges, reads_of, best: keys.iter().map(|_| None).collect() }
    }

    /// Whether a file may hold a better row for a read.
    fn is_open(&self, read: usize, file: &DataFile) -> bool {
        let may_beat = |best: &BestRow| file.event_time_us.is_none_or(|(_, latest)| best.order.event_time_us <= latest);
        self.ranges[read].meets(file) && self.best[read].as_ref().is_none_or(may_beat)
    }

    /// The event times that are needed of a file; `None` if no read needs it any more.
    fn range_in(&self, file: &DataFile) -> Option<ScanRange> {
        let open = (0..self.reads.len()).filter(|read| self.is_open(*read, file));
        open.map(|read| self.ranges[read]).reduce(ScanRange::with)
    }

    fn take(&mut self, batch: &HistoryBatch) {
        for row in 0..batch.len() {
            let Some(reads) = self.reads_of.get(&batch.key(row)) else { continue };
            let order = batch.order(row);
            for read in reads {
                let range = self.ranges[*read];
                let is_seen = range.from_us <= order.event_time_us && is_candidate(&order, self.reads[*read]);
                if is_seen && self.best[*read].as_ref().is_none_or(|best| order > best.order) {
                    self.best[*read] = Some(BestRow { order, batch: batch.clone(), row });
                }
            }
        }
    }
}

fn roots(schema: &arrow_schema::Schema, names: &[String]) -> Result<Vec<usize>, OfflineError> {
    names.iter().map(|name| Ok(schema.index_of(name)?)).collect()
}

fn decode(schema: &crate::schema::TableSchema, batch: &RecordBatch) -> Result<HistoryBatch, OfflineError> {
    let column = |name: &str| {
        batch
            .column_by_name(name)
            .cloned()
            .ok_or_else(|| OfflineError::Arrow(arrow_schema::ArrowError::SchemaError(format!("no column `{name}`"))))
    };
    let typed = |name: &str, data_type: ArrowType| {
        let column = column(name)?;
        if column.data_type() == &data_type { Ok(column) } else { Ok(arrow_cast::cast(&column, &data_type)?) }
    };
    let key = |(name, key_type): &(String, KeyType)| typed(name, key_arrow_type(*key_type));
    Ok(HistoryBatch {
        keys: schema.keys.iter().map(key).collect::<Result<_, OfflineError>>()?,
        values: schema
            .values
            .iter()
            .map(|value| from_storage(&column(&value.column)?, value.data_type))
            .collect::<Result<_, _>>()?,
        event_time: typed(COLUMN_EVENT_TIME, DataType::Timestamp.to_arrow())?,
        known_at: typed(COLUMN_KNOWN_AT, DataType::Timestamp.to_arrow())?,
        tie: tie_column(&typed(COLUMN_TIE, ArrowType::Binary)?)?,
        lane: typed(COLUMN_LANE, ArrowType::Utf8)?.as_string::<i32>().clone(),
        sequence: typed(COLUMN_SEQUENCE, ArrowType::Int64)?.as_primitive::<Int64Type>().clone(),
        error: typed(COLUMN_ERROR, ArrowType::Utf8)?.as_string::<i32>().clone(),
    })
}

fn tie_column(column: &ArrayRef) -> Result<BinaryArray, OfflineError> {
    let ties = column.as_binary::<i32>();
    let whole = (0..ties.len()).all(|row| ties.value(row).len() == 16);
    if !whole {
        return Err(OfflineError::Arrow(arrow_schema::ArrowError::SchemaError(
            "a tie digest has 16 bytes; the table was written by something else".to_owned(),
        )));
    }
    Ok(ties.clone())
}
