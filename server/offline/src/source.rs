//! Reading sources: files, their schemas, their columns in the types of the contract.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::timezone::Tz;
use arrow_array::types::{
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
};
use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{DataType as ArrowType, Field as ArrowField, Schema, SchemaRef, TimeUnit};
use eadem_values::{DataType, ElementType};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use parquet::arrow::async_reader::{ParquetRecordBatchStream, ParquetRecordBatchStreamBuilder};
use sha2::{Digest as _, Sha256};

use crate::error::OfflineError;
use crate::expression::{Expression, Planner};
use crate::location::Location;
use crate::object_file::ObjectFile;
use crate::spec::{EventTime, KnownAt, SourceSpec};

/// A column that bindings may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InspectedColumn {
    /// Its name.
    pub name: String,
    /// Its type as the file, or the expression, has it.
    pub arrow_type: ArrowType,
    /// The type in which it reaches a transform; `None` if it cannot reach one.
    pub data_type: Option<DataType>,
    /// What to do about a column without a type.
    pub hint: Option<String>,
}

/// A file of a source.
#[derive(Debug, Clone)]
pub(crate) struct SourceFile {
    /// Absolute URL.
    pub(crate) url: String,
    /// Relative to the location that it was found in; a single file's own name.
    pub(crate) path: String,
    pub(crate) location: Location,
    pub(crate) bytes: u64,
    pub(crate) modified_ms: i64,
}

/// The columns that bindings of `source` may name: those of its files and the computed ones.
///
/// Integers up to 32 bits become int64, and timestamps with a zone UTC microseconds (nanoseconds are floored). Everything
/// else keeps its type or needs a cast in `columns`: a float32 is not widened, because a request's JSON number would not
/// have the same bits; a decimal and a timestamp without a zone say nothing about which number or instant is meant.
///
/// # Errors
/// No file, an unreadable one, or a definition that does not fit: the error names the field and says what to do.
pub async fn inspect(source: &SourceSpec) -> Result<Vec<InspectedColumn>, OfflineError> {
    let files = list_files(source).await?;
    let Some(first) = files.first() else { return Err(no_files(source)) };
    let metadata = open_file(first).await?;
    inspect_schema(source, metadata.schema())
}

pub(crate) fn inspect_schema(source: &SourceSpec, file: &SchemaRef) -> Result<Vec<InspectedColumn>, OfflineError> {
    let source = in_its_zone(source, file)?;
    let source = source.as_ref();
    let planner = Planner::new();
    let mut columns: Vec<InspectedColumn> =
        file.fields().iter().map(|field| inspected(field.name(), field.data_type(), true)).collect();
    for (name, text) in &source.columns {
        let expression =
            planner.plan(text, file).map_err(|reason| source_error(source, &format!("columns.{name}"), reason))?;
        let column = inspected(name, &expression.data_type, reads_naive_time(&expression, file));
        match columns.iter_mut().find(|known| known.name == *name) {
            Some(known) => *known = column,
            None => columns.push(column),
        }
    }
    let extended = extended_schema(source, file, &columns);
    if let Some(filter) = &source.filter {
        let expression = planner.plan(filter, &extended).map_err(|reason| source_error(source, "where", reason))?;
        if expression.data_type != ArrowType::Boolean {
            let reason = format!("is {}, not true or false", expression.data_type);
            return Err(source_error(source, "where", reason));
        }
    }
    let known = |field: &str, name: &str, must_be_time: bool| {
        let column = columns.iter().find(|column| column.name == name);
        let Some(column) = column else {
            let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
            let reason = format!("there is no column `{name}`; the columns are {}", names.join(", "));
            return Err(source_error(source, field, reason));
        };
        if must_be_time && column.data_type != Some(DataType::Timestamp) {
            let hint = column.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
            let reason = format!("column `{name}` is {}, not a timestamp{hint}", column.arrow_type);
            return Err(source_error(source, field, reason));
        }
        Ok(())
    };
    if let EventTime::Column(name) = &source.event_time {
        known("event_time", name, true)?;
    }
    if let KnownAt::Column(name) = &source.known_at {
        known("known_at", name, true)?;
    }
    if let Some(name) = &source.event_id {
        known("event_id", name, false)?;
    }
    Ok(columns)
}

/// The source with its time zone written out: each timestamp of the file that has no zone, and that no computed column
/// replaces, is read where the source's clock stood.
fn in_its_zone<'a>(source: &'a SourceSpec, file: &Schema) -> Result<Cow<'a, SourceSpec>, OfflineError> {
    let Some(zone) = &source.time_zone else { return Ok(Cow::Borrowed(source)) };
    if zone.parse::<Tz>().is_err() {
        let reason = format!("there is no time zone `{zone}`; give an IANA name, such as America/New_York");
        return Err(source_error(source, "time_zone", reason));
    }
    let mut zoned = source.clone();
    for field in file.fields() {
        let is_local = matches!(field.data_type(), ArrowType::Timestamp(_, None));
        let is_replaced = source.columns.iter().any(|(name, _)| name == field.name());
        if is_local && !is_replaced {
            let quoted = field.name().replace('"', "\"\"");
            zoned.columns.push((field.name().clone(), format!("\"{quoted}\" at time zone '{zone}'")));
        }
    }
    Ok(Cow::Owned(zoned))
}

pub(crate) fn source_error(source: &SourceSpec, field: &str, reason: String) -> OfflineError {
    OfflineError::Source { source_name: source.name.clone(), field: field.to_owned(), reason }
}

fn no_files(source: &SourceSpec) -> OfflineError {
    source_error(source, "parquet", format!("no Parquet file at {}", source.locations.join(", ")))
}

fn inspected(name: &str, arrow_type: &ArrowType, naive_is_local: bool) -> InspectedColumn {
    let found = canonical_type(arrow_type, naive_is_local);
    InspectedColumn {
        name: name.to_owned(),
        arrow_type: arrow_type.clone(),
        data_type: found.as_ref().ok().copied(),
        hint: found.err(),
    }
}

/// A computed timestamp without a zone is in UTC, as the functions that make one say, unless it comes from a column that
/// has none, or is the reading of a local clock: then nobody has said where that clock stood.
fn reads_naive_time(expression: &Expression, file: &Schema) -> bool {
    expression.tells_local_time
        || expression.columns.iter().any(|name| {
            file.field_with_name(name).is_ok_and(|field| matches!(field.data_type(), ArrowType::Timestamp(_, None)))
        })
}

/// The type in which a column reaches a transform, or what to do instead.
fn canonical_type(arrow_type: &ArrowType, naive_is_local: bool) -> Result<DataType, String> {
    Ok(match arrow_type {
        ArrowType::Int8 | ArrowType::Int16 | ArrowType::Int32 | ArrowType::Int64 => DataType::Int64,
        ArrowType::UInt8 | ArrowType::UInt16 | ArrowType::UInt32 => DataType::Int64,
        ArrowType::UInt64 => return Err("uint64 does not fit into int64: cast it, `cast(… as bigint)`".to_owned()),
        ArrowType::Utf8 | ArrowType::LargeUtf8 | ArrowType::Utf8View => DataType::Utf8,
        ArrowType::Binary | ArrowType::LargeBinary | ArrowType::BinaryView | ArrowType::FixedSizeBinary(_) => {
            DataType::Binary
        }
        ArrowType::Dictionary(_, values) => return canonical_type(values, naive_is_local),
        ArrowType::Timestamp(_, Some(_)) => DataType::Timestamp,
        ArrowType::Timestamp(_, None) if !naive_is_local => DataType::Timestamp,
        ArrowType::Timestamp(_, None) => {
            return Err("it has no time zone: say where its clock stood, `… at time zone 'UTC'`".to_owned());
        }
        ArrowType::Date32 | ArrowType::Date64 => {
            return Err("a date is no instant: `to_timestamp(…)` is its midnight in UTC".to_owned());
        }
        ArrowType::Decimal32(..) | ArrowType::Decimal64(..) | ArrowType::Decimal128(..) | ArrowType::Decimal256(..) => {
            return Err(
                "there is no decimal: `cast(… as double)`, or `cast(… * 100 as bigint)` for hundredths".to_owned()
            );
        }
        ArrowType::FixedSizeList(item, width) if item.data_type() == &ArrowType::Float32 => {
            DataType::Vector(u32::try_from(*width).unwrap_or_default())
        }
        ArrowType::List(item) | ArrowType::LargeList(item) => match canonical_type(item.data_type(), true)? {
            DataType::Int64 => DataType::List(ElementType::Int64),
            DataType::Float64 => DataType::List(ElementType::Float64),
            DataType::Utf8 => DataType::List(ElementType::Utf8),
            other => return Err(format!("lists hold int64, float64 or utf8, not {other}: cast it")),
        },
        other => {
            return DataType::from_arrow(other).ok_or_else(|| format!("{other} has no counterpart: cast it"));
        }
    })
}

/// A column of a file as the canonical column of an input, exactly as a backfill would hand it to a transform: the
/// conversions are those of [`inspect`], and what needs a cast there is refused here.
///
/// # Errors
/// [`OfflineError::Column`] says what the column is and what to write in a source's `columns`, or which value cannot be
/// converted.
pub fn input_column(column: &ArrayRef, wanted: DataType) -> Result<ArrayRef, OfflineError> {
    let refuse = |reason: String| OfflineError::Column { reason };
    let found = canonical_type(column.data_type(), true)
        .map_err(|hint| refuse(format!("it is {}, the input is {wanted}; {hint}", column.data_type())))?;
    if found != wanted {
        return Err(refuse(format!("it is {found}, the input is {wanted}; nothing is cast unless a source says so")));
    }
    to_canonical(column).map_err(refuse)
}

/// A column in canonical form. The type must be one that [`canonical_type`] has accepted.
pub(crate) fn to_canonical(column: &ArrayRef) -> Result<ArrayRef, String> {
    let canonical = |column: &ArrayRef| eadem_values::canonicalize(column).map_err(|error| error.to_string());
    let cast = |column: &ArrayRef, data_type: &ArrowType| {
        arrow_cast::cast(column, data_type).map_err(|error| error.to_string())
    };
    match column.data_type() {
        ArrowType::Timestamp(unit, _) => canonical(&to_utc_micros(column, *unit)?),
        ArrowType::Dictionary(_, values) => to_canonical(&cast(column, values)?),
        ArrowType::List(item) | ArrowType::LargeList(item) => {
            let data_type = canonical_type(item.data_type(), true)?.to_arrow();
            let list = ArrowType::List(Arc::new(ArrowField::new("item", data_type, true)));
            let list = cast(column, &list)?;
            canonical(&without_null_elements(list.as_list::<i32>())?)
        }
        other => {
            let data_type = canonical_type(other, false)?.to_arrow();
            if *other == data_type { canonical(column) } else { canonical(&cast(column, &data_type)?) }
        }
    }
}

/// The lists with elements that cannot be null. Only the elements of these rows count: a part of a column shares those of
/// the whole.
fn without_null_elements(lists: &arrow_array::ListArray) -> Result<ArrayRef, String> {
    let (_, offsets, values, nulls) = lists.clone().into_parts();
    let (first, last) = (offsets[0], offsets[offsets.len() - 1]);
    let values = values.slice(first as usize, (last - first) as usize);
    if values.null_count() > 0 {
        return Err("an element of a list is null; elements never are".to_owned());
    }
    let offsets = OffsetBuffer::new(offsets.iter().map(|offset| offset - first).collect());
    let item = Arc::new(ArrowField::new("item", values.data_type().clone(), false));
    let lists = arrow_array::ListArray::try_new(item, offsets, values, nulls).map_err(|error| error.to_string())?;
    Ok(Arc::new(lists))
}

/// Timestamps of any unit as UTC microseconds; nanoseconds are floored, also before 1970.
fn to_utc_micros(column: &ArrayRef, unit: TimeUnit) -> Result<ArrayRef, String> {
    let scaled = |values: &[i64], factor: i64, valid: &dyn Fn(usize) -> bool| {
        values
            .iter()
            .enumerate()
            .map(|(row, value)| match value.checked_mul(factor) {
                Some(micros) => Ok(micros),
                None if valid(row) => Err(format!("{value} {unit:?}s is beyond 64-bit microseconds")),
                None => Ok(0),
            })
            .collect::<Result<Vec<i64>, String>>()
    };
    let valid = |row: usize| column.is_valid(row);
    let micros: Vec<i64> = match unit {
        TimeUnit::Second => scaled(column.as_primitive::<TimestampSecondType>().values(), 1_000_000, &valid)?,
        TimeUnit::Millisecond => scaled(column.as_primitive::<TimestampMillisecondType>().values(), 1_000, &valid)?,
        TimeUnit::Microsecond => {
            let values = column.as_primitive::<TimestampMicrosecondType>().values().clone();
            let utc = TimestampMicrosecondArray::new(values, column.nulls().cloned()).with_timezone("UTC");
            return Ok(Arc::new(utc));
        }
        TimeUnit::Nanosecond => {
            let values = column.as_primitive::<TimestampNanosecondType>().values();
            values.iter().map(|nanos| nanos.div_euclid(1_000)).collect()
        }
    };
    Ok(Arc::new(TimestampMicrosecondArray::new(micros.into(), column.nulls().cloned()).with_timezone("UTC")))
}

fn extended_schema(source: &SourceSpec, file: &SchemaRef, columns: &[InspectedColumn]) -> Schema {
    let mut fields: Vec<ArrowField> = file.fields().iter().map(|field| field.as_ref().clone()).collect();
    for (name, _) in &source.columns {
        let Some(column) = columns.iter().find(|column| column.name == *name) else { continue };
        let computed = ArrowField::new(name, column.arrow_type.clone(), true);
        match fields.iter_mut().find(|field| field.name() == name) {
            Some(field) => *field = computed,
            None => fields.push(computed),
        }
    }
    Schema::new(fields)
}

/// The source's files, in the order of their paths. Names that start with `_` or `.` are not looked at.
pub(crate) async fn list_files(source: &SourceSpec) -> Result<Vec<SourceFile>, OfflineError> {
    let mut files: BTreeMap<String, SourceFile> = BTreeMap::new();
    for text in &source.locations {
        let location = Location::parse(text)?;
        for file in list_location(&location).await? {
            files.entry(file.url.clone()).or_insert(file);
        }
    }
    Ok(files.into_values().collect())
}

async fn list_location(location: &Location) -> Result<Vec<SourceFile>, OfflineError> {
    // A folder has no head on the local file system either: object stores know only objects.
    if let Ok(meta) = location.store.head(&location.path).await {
        let name = location.path.filename().unwrap_or_default().to_owned();
        return Ok(vec![SourceFile {
            url: location.url.to_string(),
            path: name,
            location: location.clone(),
            bytes: meta.size,
            modified_ms: meta.last_modified.timestamp_millis(),
        }]);
    }
    if location.local_path().is_some_and(|path| !path.exists()) {
        return Err(OfflineError::Location { location: location.url.to_string(), reason: "does not exist".to_owned() });
    }
    let objects: Vec<_> = location.store.list(Some(&location.path)).try_collect().await?;
    let mut files = Vec::new();
    for meta in objects {
        let parts: Vec<String> = match meta.location.prefix_match(&location.path) {
            Some(parts) => parts.map(|part| part.as_ref().to_owned()).collect(),
            None => continue,
        };
        let hidden = parts.iter().any(|part| part.starts_with(['_', '.']));
        if hidden || !meta.location.as_ref().ends_with(".parquet") {
            continue;
        }
        let path = parts.join("/");
        let file = location.below(&path)?;
        files.push(SourceFile {
            url: file.url.to_string(),
            path,
            location: Location { path: meta.location.clone(), ..file },
            bytes: meta.size,
            modified_ms: meta.last_modified.timestamp_millis(),
        });
    }
    Ok(files)
}

pub(crate) fn file_error(file: &SourceFile, reason: impl std::fmt::Display) -> OfflineError {
    OfflineError::File { file: file.url.clone(), reason: reason.to_string() }
}

/// SHA-256 of the file's bytes.
pub(crate) async fn file_digest(file: &SourceFile) -> Result<String, OfflineError> {
    let object = file.location.store.get(&file.location.path).await.map_err(|error| file_error(file, error))?;
    let mut stream = object.into_stream();
    let mut hasher = Sha256::new();
    while let Some(bytes) = stream.try_next().await.map_err(|error| file_error(file, error))? {
        hasher.update(&bytes);
    }
    Ok(format!("sha256:{}", hex::encode(hasher.finalize())))
}

/// Reads the file's footer.
pub(crate) async fn open_file(file: &SourceFile) -> Result<ArrowReaderMetadata, OfflineError> {
    let mut reader = reader_of(file);
    ArrowReaderMetadata::load_async(&mut reader, Default::default())
        .await
        .map_err(|error| file_error(file, format!("not a complete Parquet file: {error}")))
}

fn reader_of(file: &SourceFile) -> ObjectFile {
    ObjectFile { store: file.location.store.clone(), path: file.location.path.clone(), bytes: file.bytes }
}

/// A source's expressions, planned for one file's schema and cut down to the columns that a view needs.
#[derive(Debug)]
pub(crate) struct SourceReader {
    source_name: String,
    /// The file's columns to read.
    read: SchemaRef,
    computed: Vec<Computed>,
    filter: Option<Expression>,
    /// Whether the filter reads no computed column and so can run first.
    filter_first: bool,
    /// The columns that come out, in order.
    needed: Vec<String>,
}

/// A computed column.
#[derive(Debug)]
struct Computed {
    name: String,
    expression: Expression,
}

/// Rows of one file that passed `where`, in canonical form.
#[derive(Debug)]
pub(crate) struct SourceRows {
    /// The needed columns, in the order asked for.
    pub(crate) columns: Vec<ArrayRef>,
    /// Row numbers in the file, before `where`.
    pub(crate) sequence: Int64Array,
    /// Rows with a value that could not be computed or converted, by their numbers. The value is null.
    pub(crate) faults: Faults,
}

/// What is wrong with single rows, by their numbers in the file.
pub(crate) type Faults = BTreeMap<i64, Fault>;

/// A value that could not be had of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// For counting: without the value.
    pub(crate) kind: String,
    /// For people: with it.
    pub(crate) reason: String,
}

/// A column made row by row where it cannot be made at once: `part` gives it for a range of rows, as (start, length). One
/// bad value must not stop all others; its row gets a null and a fault.
fn column_with_faults(
    data_type: &ArrowType,
    sequence: &Int64Array,
    kind: &str,
    faults: &mut Faults,
    part: &dyn Fn(usize, usize) -> Result<ArrayRef, String>,
) -> Result<ArrayRef, OfflineError> {
    let mut parts: Vec<ArrayRef> = Vec::new();
    let mut open = vec![(0, sequence.len())];
    while let Some((start, length)) = open.pop() {
        match part(start, length) {
            Ok(column) => parts.push(column),
            Err(reason) if length == 1 => {
                let fault = || Fault { kind: kind.to_owned(), reason: format!("{kind}: {reason}") };
                faults.entry(sequence.value(start)).or_insert_with(fault);
                parts.push(arrow_array::new_null_array(data_type, 1));
            }
            Err(reason) if length == 0 => return Err(arrow_schema::ArrowError::ComputeError(reason).into()),
            Err(_) => {
                let half = length / 2;
                // The first half is taken up first.
                open.push((start + half, length - half));
                open.push((start, half));
            }
        }
    }
    if let [whole] = parts.as_slice() {
        return Ok(whole.clone());
    }
    let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
    Ok(arrow_select::concat::concat(&parts)?)
}

/// The rows of all files of a source, with these columns, as its definition reads them.
pub(crate) async fn source_rows(
    source: &SourceSpec,
    needed: Vec<String>,
    batch_rows: usize,
) -> Result<BoxStream<'static, Result<SourceRows, OfflineError>>, OfflineError> {
    let source = source.clone();
    let files = list_files(&source).await?;
    let rows = futures::stream::iter(files.into_iter().map(Ok::<_, OfflineError>)).and_then(move |file| {
        let (source, needed) = (source.clone(), needed.clone());
        async move {
            let metadata = open_file(&file).await?;
            let reader = SourceReader::try_new(&source, metadata.schema(), &needed)?;
            let row_groups = (0..metadata.metadata().num_row_groups()).collect();
            let batches = reader.open(&file, metadata, row_groups, batch_rows)?;
            let mut first_row = 0;
            Ok(batches.map(move |batch| {
                let batch = batch.map_err(|error| file_error(&file, error))?;
                let rows = reader.rows(&batch, first_row);
                first_row += batch.num_rows() as i64;
                rows
            }))
        }
    });
    Ok(rows.try_flatten().boxed())
}

impl SourceReader {
    /// Plans the source for a file. `needed` are the columns to come out.
    pub(crate) fn try_new(source: &SourceSpec, file: &SchemaRef, needed: &[String]) -> Result<Self, OfflineError> {
        let inspected = inspect_schema(source, file)?;
        let written = source;
        let source = in_its_zone(written, file)?;
        let source = source.as_ref();
        let planner = Planner::new();
        let extended = extended_schema(source, file, &inspected);
        let filter = match &source.filter {
            Some(text) => Some(planner.plan(text, &extended).map_err(|reason| source_error(source, "where", reason))?),
            None => None,
        };
        let filter_columns = filter.as_ref().map_or(&[][..], |filter| filter.columns.as_slice());
        let is_computed = |name: &String| source.columns.iter().any(|(computed, _)| computed == name);
        let filter_first = !filter_columns.iter().any(is_computed);

        let mut wanted: Vec<&String> = needed.iter().chain(filter_columns).collect();
        wanted.sort();
        wanted.dedup();
        let mut read: Vec<String> = Vec::new();
        let mut computed = Vec::new();
        for name in wanted {
            let Some((_, text)) = source.columns.iter().find(|(computed, _)| computed == name) else {
                read.push(name.clone());
                continue;
            };
            let expression =
                planner.plan(text, file).map_err(|reason| source_error(source, &format!("columns.{name}"), reason))?;
            read.extend(expression.columns.iter().cloned());
            computed.push((name.clone(), expression));
        }
        read.sort();
        read.dedup();
        for name in needed {
            let column = inspected.iter().find(|column| column.name == *name);
            if let Some(hint) = column.and_then(|column| column.hint.as_ref()) {
                return Err(source_error(source, &format!("column `{name}`"), hint.clone()));
            }
        }
        let fields: Vec<ArrowField> = file
            .fields()
            .iter()
            .filter(|field| read.contains(field.name()))
            .map(|field| field.as_ref().clone())
            .collect();
        let read = Arc::new(Schema::new(fields));
        // Positions in the file differ from positions in what is read, so everything is planned again over the latter.
        let replan = |name: &str, text: &str, schema: &Schema| {
            planner.plan(text, schema).map_err(|reason| source_error(source, name, reason))
        };
        let mut narrow_computed = Vec::new();
        for (name, _) in computed {
            let Some((_, text)) = source.columns.iter().find(|(computed, _)| *computed == name) else { continue };
            let is_written = written.columns.iter().any(|(computed, _)| *computed == name);
            let statement = if is_written { format!("columns.{name}") } else { format!("time_zone, column `{name}`") };
            let expression = replan(&statement, text, &read)?;
            narrow_computed.push(Computed { name, expression });
        }
        let mut narrow_fields: Vec<ArrowField> = read.fields().iter().map(|field| field.as_ref().clone()).collect();
        if !filter_first {
            for Computed { name, expression, .. } in &narrow_computed {
                narrow_fields.retain(|field| field.name() != name);
                narrow_fields.push(ArrowField::new(name, expression.data_type.clone(), true));
            }
        }
        let filter = match &source.filter {
            Some(text) => Some(replan("where", text, &Schema::new(narrow_fields))?),
            None => None,
        };
        Ok(Self {
            source_name: source.name.clone(),
            read,
            computed: narrow_computed,
            filter,
            filter_first,
            needed: needed.to_vec(),
        })
    }

    /// A stream of the file's rows in these row groups.
    pub(crate) fn open(
        &self,
        file: &SourceFile,
        metadata: ArrowReaderMetadata,
        row_groups: Vec<usize>,
        batch_rows: usize,
    ) -> Result<ParquetRecordBatchStream<ObjectFile>, OfflineError> {
        let names: Vec<&str> = self.read.fields().iter().map(|field| field.name().as_str()).collect();
        let schema = metadata.schema().clone();
        let roots: Vec<usize> = (0..schema.fields().len())
            .filter(|column| names.contains(&schema.field(*column).name().as_str()))
            .collect();
        let builder = ParquetRecordBatchStreamBuilder::new_with_metadata(reader_of(file), metadata);
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        builder
            .with_projection(mask)
            .with_row_groups(row_groups)
            .with_batch_size(batch_rows)
            .build()
            .map_err(|error| file_error(file, error))
    }

    /// Computes, filters and converts one batch as read from the file. `first_row` is its first row's number.
    pub(crate) fn rows(&self, batch: &RecordBatch, first_row: i64) -> Result<SourceRows, OfflineError> {
        let count = batch.num_rows();
        let mut sequence = Int64Array::from_iter_values(first_row..first_row + count as i64);
        let mut batch = RecordBatch::try_new_with_options(
            self.read.clone(),
            batch.columns().to_vec(),
            &arrow_array::RecordBatchOptions::new().with_row_count(Some(count)),
        )?;
        // Faults that leave open what `where` would have said, and the others, which count only for rows that it keeps.
        let (mut undecided, mut faults) = (Faults::new(), Faults::new());
        if self.filter_first {
            (batch, sequence) = self.keep(batch, sequence, &mut undecided)?;
        }
        let mut computed = Vec::with_capacity(self.computed.len());
        for Computed { name, expression } in &self.computed {
            let part = |start: usize, length: usize| expression.evaluate(&batch.slice(start, length));
            let kind = format!("column `{name}` cannot be computed");
            let is_filtered = self.filter.as_ref().is_some_and(|filter| filter.columns.contains(name));
            let faults = if is_filtered { &mut undecided } else { &mut faults };
            let column = column_with_faults(&expression.data_type, &sequence, &kind, faults, &part)?;
            computed.push((name.clone(), column));
        }
        let mut extended = self.extend(&batch, computed)?;
        if !self.filter_first {
            (extended, sequence) = self.keep(extended, sequence, &mut undecided)?;
        }
        faults.append(&mut undecided);
        let mut columns = Vec::with_capacity(self.needed.len());
        for name in &self.needed {
            let field = format!("column `{name}`");
            let column =
                extended.column_by_name(name).ok_or_else(|| self.error(&field, "is not in the file".to_owned()))?;
            let data_type = canonical_type(column.data_type(), false).map_err(|reason| self.error(&field, reason))?;
            let part = |start: usize, length: usize| to_canonical(&column.slice(start, length));
            let kind = format!("{field} cannot be converted to {data_type}");
            let column = column_with_faults(&data_type.to_arrow(), &sequence, &kind, &mut faults, &part)?;
            columns.push(eadem_values::canonicalize(&column)?);
        }
        Ok(SourceRows { columns, sequence, faults })
    }

    fn extend(&self, batch: &RecordBatch, computed: Vec<(String, ArrayRef)>) -> Result<RecordBatch, OfflineError> {
        let mut fields: Vec<ArrowField> = Vec::new();
        let mut columns: Vec<ArrayRef> = Vec::new();
        for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
            if !computed.iter().any(|(name, _)| name == field.name()) {
                fields.push(field.as_ref().clone());
                columns.push(column.clone());
            }
        }
        for (name, column) in computed {
            fields.push(ArrowField::new(name, column.data_type().clone(), true));
            columns.push(column);
        }
        let options = arrow_array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?)
    }

    /// Leaves the rows for which `where` is true, and those with a fault: what it would have said of them nobody knows.
    fn keep(
        &self,
        batch: RecordBatch,
        sequence: Int64Array,
        faults: &mut Faults,
    ) -> Result<(RecordBatch, Int64Array), OfflineError> {
        let Some(filter) = &self.filter else { return Ok((batch, sequence)) };
        let part = |start: usize, length: usize| filter.evaluate(&batch.slice(start, length));
        let mask = column_with_faults(&ArrowType::Boolean, &sequence, "`where` cannot be computed", faults, &part)?;
        let mut mask = mask.as_boolean().clone();
        if mask.null_count() == 0 && mask.true_count() == mask.len() {
            return Ok((batch, sequence));
        }
        if !faults.is_empty() {
            let is_kept =
                |row: usize| (mask.is_valid(row) && mask.value(row)) || faults.contains_key(&sequence.value(row));
            mask = (0..mask.len()).map(|row| Some(is_kept(row))).collect();
        }
        let kept = arrow_select::filter::filter_record_batch(&batch, &mask)?;
        let sequence = arrow_select::filter::filter(&sequence, &mask)?;
        Ok((kept, sequence.as_primitive::<arrow_array::types::Int64Type>().clone()))
    }

    fn error(&self, field: &str, reason: String) -> OfflineError {
        OfflineError::Source { source_name: self.source_name.clone(), field: field.to_owned(), reason }
    }
}
