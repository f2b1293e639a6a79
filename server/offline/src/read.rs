//! Reading a view's table: whole, or by time range.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray};
use arrow_schema::DataType as ArrowType;
use deltalake_core::DeltaTable;
use eadem_semantics::{Lifetime, RowOrder};
use eadem_values::{DataType, EntityKey, KeyType, KeyValue, TieDigest};
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store::path::Path;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowPredicateFn, RowFilter};
use parquet::arrow::async_reader::ParquetRecordBatchStreamBuilder;
use parquet::errors::ParquetError;

use crate::commit::{LiveFile, live_files};
use crate::erasure::ErasedRows;
use crate::error::OfflineError;
use crate::lanes::withdrawn_at;
use crate::object_file::ObjectFile;
use crate::schema::{
    COLUMN_ERROR, COLUMN_EVENT_TIME, COLUMN_KNOWN_AT, COLUMN_LANE, COLUMN_SEQUENCE, COLUMN_TIE, from_storage,
    key_arrow_type,
};
use crate::table::{DataFile, ReadVersion, TableState, ViewTable, table_error};

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
    pub(crate) fn with(self, other: Self) -> Self {
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
    error: StringArray,
    /// Lane and sequence.
    origins: Option<(StringArray, Int64Array)>,
}

/// All rows of a view's table in some version, to be read by several threads at once.
pub struct TableScan {
    /// The version.
    pub version: u64,
    /// How many files there are to read.
    pub files: usize,
    /// How many rows these are, as far as their files say so.
    pub rows: Option<u64>,
    /// The files, in no order. A part takes the next one whenever it is done with one.
    pub parts: Vec<BoxStream<'static, Result<FileScan, OfflineError>>>,
}

/// The rows of one data file.
pub struct FileScan {
    /// Relative to the table.
    pub path: String,
    /// The rows, in no order.
    pub rows: BoxStream<'static, Result<HistoryBatch, OfflineError>>,
}

impl HistoryBatch {
    /// How many rows these are.
    pub fn len(&self) -> usize {
        self.tie.len()
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

    /// The ordered input that a row came from, and its position in it; `None` of a scan that does not read them.
    pub fn origin(&self, row: usize) -> Option<(&str, i64)> {
        self.origins.as_ref().map(|(lanes, sequences)| (lanes.value(row), sequences.value(row)))
    }

    /// Why the transform failed on a row, if it did.
    pub fn error(&self, row: usize) -> Option<&str> {
        self.error.is_valid(row).then(|| self.error.value(row))
    }
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
        let files = files.into_iter().filter(|file| range.meets(file)).collect();
        let erased = self.erased().await?;
        Ok(Some((version, self.read_files(Arc::new(Mutex::new(files)), range, true, erased))))
    }

    /// All rows of the current version, in so many parts, without where they came from; nothing if nothing was ever loaded.
    ///
    /// # Errors
    /// A table that cannot be read.
    pub async fn scan_in_parts(&self, parts: usize) -> Result<Option<TableScan>, OfflineError> {
        let Some(table) = self.load_with_rows().await? else { return Ok(None) };
        let version = table.version().unwrap_or_default();
        let live = live_files(&table, &self.location)?;
        self.read_in_parts(version, live, parts).await.map(Some)
    }

    /// What is left of a scan of this version, of which these files have been read, in so many parts; nothing if rows have been
    /// taken out since, for then what was read may hold them.
    ///
    /// # Errors
    /// A table or commit that cannot be read.
    pub async fn scan_rest_in_parts(
        &self,
        version: u64,
        read: &HashSet<String>,
        parts: usize,
    ) -> Result<Option<TableScan>, OfflineError> {
        let Some((mut table, _)) = self.unless_withdrawn_since(version).await? else { return Ok(None) };
        table.load_version(version).await.map_err(|error| table_error(&self.location, error))?;
        let mut live = live_files(&table, &self.location)?;
        live.retain(|live| !read.contains(&live.file.path));
        self.read_in_parts(version, live, parts).await.map(Some)
    }

    /// The table and its current version, unless this one is not there yet, or rows have been taken out since.
    async fn unless_withdrawn_since(&self, commit: u64) -> Result<Option<(DeltaTable, u64)>, OfflineError> {
        let Some(table) = self.load_with_rows().await? else { return Ok(None) };
        let version = table.version().unwrap_or_default();
        let withdrawn_at = withdrawn_at(&self.location, &self.log_store, version).await?;
        let is_usable = commit <= version && withdrawn_at <= Some(commit);
        Ok(is_usable.then_some((table, version)))
    }

    /// The rows that came since `commit`, in so many parts; nothing if rows have been taken out since, for then more has
    /// changed than rows that came. Rows from before the commit may be among them, if files were put together since.
    ///
    /// # Errors
    /// A table or commit that cannot be read.
    pub async fn scan_added_in_parts(&self, commit: u64, parts: usize) -> Result<Option<TableScan>, OfflineError> {
        let Some((mut table, version)) = self.unless_withdrawn_since(commit).await? else { return Ok(None) };
        let mut live = live_files(&table, &self.location)?;
        table.load_version(commit).await.map_err(|error| table_error(&self.location, error))?;
        let before: HashSet<String> =
            live_files(&table, &self.location)?.into_iter().map(|live| live.file.path).collect();
        live.retain(|live| !before.contains(&live.file.path));
        self.read_in_parts(version, live, parts).await.map(Some)
    }

    async fn read_in_parts(&self, version: u64, live: Vec<LiveFile>, parts: usize) -> Result<TableScan, OfflineError> {
        let (files_to_read, rows) = (live.len(), live.iter().map(|live| live.rows).sum());
        let files: Arc<Mutex<VecDeque<DataFile>>> =
            Arc::new(Mutex::new(live.into_iter().map(|live| live.file).collect()));
        let erased = self.erased().await?;
        let part = |_| self.files_one_by_one(Arc::clone(&files), ScanRange::ALL, false, erased.clone());
        let parts = (0..parts.max(1)).map(part).collect();
        Ok(TableScan { version, files: files_to_read, rows, parts })
    }

    /// The rows of the files that this stream takes out of `files`.
    fn read_files(
        &self,
        files: Arc<Mutex<VecDeque<DataFile>>>,
        range: ScanRange,
        with_origins: bool,
        erased: Option<ErasedRows>,
    ) -> BoxStream<'static, Result<HistoryBatch, OfflineError>> {
        self.files_one_by_one(files, range, with_origins, erased).map_ok(|file| file.rows).try_flatten().boxed()
    }

    /// The files that this stream takes out of `files`.
    fn files_one_by_one(
        &self,
        files: Arc<Mutex<VecDeque<DataFile>>>,
        range: ScanRange,
        with_origins: bool,
        erased: Option<ErasedRows>,
    ) -> BoxStream<'static, Result<FileScan, OfflineError>> {
        let table = self.clone();
        let next = move || files.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        futures::stream::iter(std::iter::from_fn(next))
            .then(move |file| {
                let (table, erased, path) = (table.clone(), erased.clone(), file.path.clone());
                async move {
                    let rows = table.read_file(file, range, with_origins, erased).await?;
                    Ok(FileScan { path, rows })
                }
            })
            .boxed()
    }

    /// A data file as the Parquet reader wants it, and what makes an error of the file out of what is wrong with it.
    pub(crate) fn open_file<E: std::fmt::Display>(
        &self,
        file: &DataFile,
    ) -> (ObjectFile, impl Fn(E) -> OfflineError + use<E>) {
        let url = self.file_url(file);
        let damaged = move |error: E| OfflineError::File {
            file: url.clone(),
            reason: format!("a data file of the table cannot be read: {error}"),
        };
        let local = self.location.below(&file.path).ok().and_then(|file| file.local_path());
        (ObjectFile { local, ..self.object_file(file) }, damaged)
    }

    pub(crate) fn file_url(&self, file: &DataFile) -> String {
        format!("{}/{}", self.location.url, file.path)
    }

    /// A data file of which single pages are read, wherever it lies.
    pub(crate) fn object_file(&self, file: &DataFile) -> ObjectFile {
        ObjectFile { store: self.store.clone(), path: Path::from(file.path.as_str()), bytes: file.bytes, local: None }
    }

    /// What is wrong with a file.
    pub(crate) fn file_error(&self, file: &DataFile, error: ParquetError) -> OfflineError {
        if let ParquetError::External(cause) = &error
            && let Some(object_store::Error::NotFound { .. }) = cause.downcast_ref::<object_store::Error>()
        {
            return OfflineError::Vacuumed { view: self.view_id().to_owned(), file: file.path.clone() };
        }
        let reason = format!("a data file of the table cannot be read: {error}");
        OfflineError::File { file: self.file_url(file), reason }
    }

    /// For each column of texts, binaries or lists of a data file, how many bytes a row has on average, as far as the file
    /// says.
    pub(crate) async fn mean_bytes(&self, file: &DataFile) -> Result<HashMap<String, u64>, OfflineError> {
        let index = self.file_index(file).await?;
        let groups = index.reader.metadata().row_groups();
        let rows: u64 = groups.iter().map(|group| u64::try_from(group.num_rows()).unwrap_or_default()).sum();
        let mut bytes: HashMap<String, u64> = HashMap::new();
        for column in groups.iter().flat_map(|group| group.columns()) {
            let Some(name) = column.column_path().parts().first() else { continue };
            // Of encoded bytes there are fewer than of values where a dictionary holds them.
            let encoded = u64::try_from(column.uncompressed_size()).unwrap_or_default();
            let unencoded = column.unencoded_byte_array_data_bytes().and_then(|bytes| u64::try_from(bytes).ok());
            *bytes.entry(name.clone()).or_default() += unencoded.unwrap_or_default().max(encoded);
        }
        Ok(bytes.into_iter().map(|(name, bytes)| (name, bytes / rows.max(1))).collect())
    }

    async fn read_file(
        &self,
        file: DataFile,
        range: ScanRange,
        with_origins: bool,
        erased: Option<ErasedRows>,
    ) -> Result<BoxStream<'static, Result<HistoryBatch, OfflineError>>, OfflineError> {
        let erased = erased.filter(|erased| erased.may_be_in(&file));
        let (reader, damaged) = self.open_file(&file);
        let opened = ParquetRecordBatchStreamBuilder::new(reader).await;
        let mut builder = opened.map_err(|error| self.file_error(&file, error))?;
        let within = file.event_time_us.is_some_and(|(from, to)| range.from_us <= from && to <= range.to_us);
        if !within && range != ScanRange::ALL {
            let roots = roots(builder.schema(), &[COLUMN_EVENT_TIME.to_owned()])?;
            let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
            let is_in_range = ArrowPredicateFn::new(mask, move |batch| {
                let times = batch.column(0).as_primitive::<TimestampMicrosecondType>();
                Ok(times.values().iter().map(|time| Some((range.from_us..=range.to_us).contains(time))).collect())
            });
            builder = builder.with_row_filter(RowFilter::new(vec![Box::new(is_in_range)]));
        }
        let columns = roots(builder.schema(), &column_names(&self.schema, with_origins))?;
        let mask = ProjectionMask::roots(builder.parquet_schema(), columns);
        let stream = builder.with_projection(mask).with_batch_size(SCAN_BATCH_ROWS).build().map_err(&damaged)?;
        let schema = self.schema.clone();
        Ok(stream
            .map_err(damaged)
            .and_then(move |batch| {
                let decoded =
                    without_erased(batch, erased.as_ref()).and_then(|batch| decode(&schema, &batch, with_origins));
                async move { decoded }
            })
            .boxed())
    }
}

fn without_erased(batch: RecordBatch, erased: Option<&ErasedRows>) -> Result<RecordBatch, OfflineError> {
    match erased {
        None => Ok(batch),
        Some(erased) => erased.without(batch).map(|(batch, _)| batch),
    }
}

fn roots(schema: &arrow_schema::Schema, names: &[String]) -> Result<Vec<usize>, OfflineError> {
    names.iter().map(|name| Ok(schema.index_of(name)?)).collect()
}

/// A column of a data file by its name, in the type in which readers take it.
pub(crate) fn typed_column(batch: &RecordBatch, name: &str, data_type: &ArrowType) -> Result<ArrayRef, OfflineError> {
    let column = batch.column(batch.schema().index_of(name)?);
    if column.data_type() == data_type { Ok(column.clone()) } else { Ok(arrow_cast::cast(column, data_type)?) }
}

/// The columns that a [`HistoryBatch`] is made of.
fn column_names(schema: &crate::schema::TableSchema, with_origins: bool) -> Vec<String> {
    let keys = schema.keys.iter().map(|(name, _)| name.clone());
    let values = schema.values.iter().map(|value| value.column.clone());
    let own = [COLUMN_EVENT_TIME, COLUMN_KNOWN_AT, COLUMN_TIE, COLUMN_ERROR].map(str::to_owned);
    let origins = [COLUMN_LANE, COLUMN_SEQUENCE].map(str::to_owned).into_iter().filter(|_| with_origins);
    keys.chain(values).chain(own).chain(origins).collect()
}

fn decode(
    schema: &crate::schema::TableSchema,
    batch: &RecordBatch,
    with_origins: bool,
) -> Result<HistoryBatch, OfflineError> {
    let column = |name: &str| Ok::<_, OfflineError>(batch.column(batch.schema().index_of(name)?).clone());
    let typed = |name: &str, data_type: ArrowType| typed_column(batch, name, &data_type);
    let key = |(name, key_type): &(String, KeyType)| typed(name, key_arrow_type(*key_type));
    let origins = match with_origins {
        true => Some((
            typed(COLUMN_LANE, ArrowType::Utf8)?.as_string::<i32>().clone(),
            typed(COLUMN_SEQUENCE, ArrowType::Int64)?.as_primitive::<Int64Type>().clone(),
        )),
        false => None,
    };
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
        error: typed(COLUMN_ERROR, ArrowType::Utf8)?.as_string::<i32>().clone(),
        origins,
    })
}

pub(crate) fn tie_column(column: &ArrayRef) -> Result<BinaryArray, OfflineError> {
    let ties = column.as_binary::<i32>();
    let whole = (0..ties.len()).all(|row| ties.value(row).len() == 16);
    if !whole {
        return Err(OfflineError::Arrow(arrow_schema::ArrowError::SchemaError(
            "a tie digest has 16 bytes; the table was written by something else".to_owned(),
        )));
    }
    Ok(ties.clone())
}
