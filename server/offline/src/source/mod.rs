//! Sources: what there is to read, in which columns, and the rows themselves.
//!
//! Every kind of source comes down to files with digests: those that are there, the data files of a Delta table, the
//! extract of a query. A file is a lane: its digest names it in the table, and a row's place is its number in the file. Four
//! questions make a kind, and each is answered in the module of its name: which files a job has to look at ([`list`]), what
//! columns the source has over all of them ([`survey`]), where a file is cut into chunks ([`cut`]), and what rows a chunk
//! holds ([`open`]). Everything after that is the same for all.

mod columns;
mod csv;
mod delta;
mod files;
mod json;
mod parquet;
mod postgres;
mod reader;
mod records;
mod text;
mod unite;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use arrow_schema::{DataType as ArrowType, Field as ArrowField, Schema, SchemaRef};
use eadem_values::DataType;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};

pub use self::columns::{InspectedColumn, input_column};
pub(crate) use self::columns::{inspect_schema, source_error, to_canonical};
pub(crate) use self::files::{SourceFile, file_error, lane_digest, reopen};
pub(crate) use self::json::TEXT_EXPANSION_MAX;
pub(crate) use self::parquet::Footers;
pub use self::postgres::{CursorKind, CursorValue};
pub(crate) use self::reader::{Fault, SourceReader, SourceRows};
pub(crate) use self::records::RECORD_BYTES_MAX;
use self::text::{Clock, TextColumn, check_text_type, integer};
use self::unite::Union;
use crate::backfill::Room;
use crate::cancel::Cancel;
use crate::erasure::ErasedRows;
use crate::error::OfflineError;
use crate::lanes::{CommittedLane, covers};
use crate::ledger::{ChunkPart, LaneOrigin};
use crate::location::OfflineStore;
use crate::spec::{Origin, SourceSpec};

/// Files whose beginnings or ends are read at the same time.
const FILES_AT_ONCE: usize = 16;

/// Names of the files in a folder, by how they end.
const PARQUET_SUFFIXES: &[&str] = &[".parquet"];
const CSV_SUFFIXES: &[&str] = &[".csv", ".csv.gz"];
const JSON_SUFFIXES: &[&str] = &[".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz"];

/// Who asks for files, and what is known already.
pub(crate) struct Lookup<'a> {
    /// The files whose rows are in the table, by path.
    pub(crate) lanes: &'a BTreeMap<String, Vec<CommittedLane>>,
    /// Only rows with an event time in `[from, to)`, in microseconds, are asked for.
    pub(crate) range_us: Option<(i64, i64)>,
    /// Whether rows that were loaded are loaded anew.
    pub(crate) recompute: bool,
    /// Where extracts are kept.
    pub(crate) store: &'a OfflineStore,
    /// The view that is filled, and its version.
    pub(crate) view: &'a str,
    pub(crate) version: u32,
    pub(crate) cancel: &'a Cancel,
    /// Says what is wrong with the definitions if the source has these columns.
    pub(crate) check: &'a (dyn Fn(&SchemaRef) -> Result<(), OfflineError> + Send + Sync),
    /// What an extract may take in memory while it is written.
    pub(crate) room: Room,
}

impl Lookup<'_> {
    /// Another number whenever more is erased of the view's entity type; `None` if nothing is.
    pub(crate) async fn erasures_revision(&self) -> Result<Option<u64>, OfflineError> {
        let view = format!("{}@{}", self.view, self.version);
        let erased = ErasedRows::of_view(self.store.erasures.as_ref(), &view, true).await?;
        Ok(erased.map(|erased| erased.revision()))
    }

    /// Whether all rows of the lane that are asked for are in the table, and stay there.
    pub(crate) fn is_covered(&self, lane: &CommittedLane) -> bool {
        !self.recompute && covers(&[lane.range_us], self.range_us)
    }
}

/// The files that a job has to look at.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) files: Vec<SourceFile>,
    /// The columns, where the source says them and not its files.
    pub(crate) schema: Option<SchemaRef>,
    /// What the lanes of these files are to remember.
    pub(crate) origin: Option<LaneOrigin>,
    /// Files that were left out because their rows are in the table, by path.
    pub(crate) already_loaded: Vec<String>,
    /// Whether these are all files of the source, and not only those that may be new.
    pub(crate) names_all: bool,
    /// Whether they hold all that the source gives now, so that what was loaded from others is no part of it.
    pub(crate) is_whole: bool,
}

/// Rows as they were read, before anything is computed of them.
#[derive(Debug)]
pub(crate) struct ReadBatch {
    /// In the columns that were asked for.
    pub(crate) rows: RecordBatch,
    /// Their numbers in the file.
    pub(crate) sequence: Int64Array,
    /// Values that could not be read, as (row, column, what is wrong). They are null in `rows`.
    pub(crate) faults: Vec<(i64, String, Fault)>,
    /// Rows of which nothing could be read. They are not in `rows`.
    pub(crate) unreadable: Vec<UnreadableRow>,
}

/// A row that is none.
#[derive(Debug, Clone)]
pub(crate) struct UnreadableRow {
    /// Its number in the file.
    pub(crate) sequence: i64,
    pub(crate) fault: Fault,
    /// Its text, as far as it is kept.
    pub(crate) text: String,
}

/// Rows of a chunk, in order.
pub(crate) type RowStream = BoxStream<'static, Result<ReadBatch, OfflineError>>;

/// In what portions a chunk's rows are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Portions {
    /// Rows of a batch.
    pub(crate) rows: usize,
    /// Of text: bytes of values at which a batch is full, however few its rows are.
    pub(crate) bytes: usize,
    /// Of text: bytes of the longest record.
    pub(crate) record_bytes: usize,
    /// Of JSON: bytes that the values of one line may take while they are read.
    pub(crate) tree_bytes: usize,
}

impl Portions {
    /// So many rows at once, however wide they are.
    pub(crate) const fn of_rows(rows: usize) -> Self {
        Self { rows, bytes: usize::MAX, record_bytes: RECORD_BYTES_MAX, tree_bytes: usize::MAX }
    }
}

/// A chunk of a file: where it stands, and which rows it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) part: ChunkPart,
    /// Number of its first row in the file.
    pub(crate) first_row: u64,
    pub(crate) rows: u64,
}

/// The columns that hold one value for a whole file, each as a column of one row.
pub(crate) type PartitionValues = BTreeMap<String, ArrayRef>;

/// The columns that bindings of `source` may name: those of its files and the computed ones.
///
/// Integers up to 32 bits become int64, and timestamps with a zone UTC microseconds (nanoseconds are floored). Everything
/// else keeps its type or needs a cast in `columns`: a float32 is not widened, because a request's JSON number would not
/// have the same bits; a decimal and a timestamp without a zone say nothing about which number or instant is meant.
///
/// # Errors
/// No file, an unreadable one, files that disagree, or a definition that does not fit: the error names the field and says
/// what to do.
pub async fn inspect(source: &SourceSpec) -> Result<Vec<InspectedColumn>, OfflineError> {
    check_types(source)?;
    let schema = match &source.origin {
        Origin::Delta { location } => delta::schema(source, location).await?,
        Origin::Postgres(query) => postgres::schema(source, query).await?,
        _ => {
            let listing = list_files(source).await?;
            if listing.files.is_empty() {
                return Err(no_files(source));
            }
            survey(source, &listing, &Footers::default()).await?
        }
    };
    inspect_schema(source, &schema)
}

/// The files that a job has to look at, in the order of their paths.
pub(crate) async fn list(source: &SourceSpec, lookup: &Lookup<'_>) -> Result<Listing, OfflineError> {
    check_types(source)?;
    match &source.origin {
        Origin::Delta { location } => delta::list(source, location, lookup).await,
        Origin::Postgres(query) => postgres::list(source, query, lookup).await,
        _ => list_files(source).await,
    }
}

async fn list_files(source: &SourceSpec) -> Result<Listing, OfflineError> {
    let files = match &source.origin {
        Origin::Parquet { locations } => files::list_files(locations, PARQUET_SUFFIXES).await?,
        Origin::Csv { locations, .. } => files::list_files(locations, CSV_SUFFIXES).await?,
        Origin::Json { locations } => files::list_files(locations, JSON_SUFFIXES).await?,
        Origin::Delta { .. } | Origin::Postgres(_) => Vec::new(),
    };
    Ok(Listing { files, names_all: true, ..Listing::default() })
}

/// There is nothing at the source's location.
pub(crate) fn no_files(source: &SourceSpec) -> OfflineError {
    let (statement, what) = match &source.origin {
        Origin::Parquet { .. } => ("parquet", "Parquet"),
        Origin::Csv { .. } => ("csv", "CSV"),
        Origin::Json { .. } => ("json", "JSON"),
        Origin::Delta { .. } => ("delta", "data"),
        Origin::Postgres(_) => ("postgres", "extracted"),
    };
    source_error(source, statement, format!("no {what} file at {}", source.origin.locations().join(", ")))
}

/// Declared types that the kind of source cannot have.
fn check_types(source: &SourceSpec) -> Result<(), OfflineError> {
    let refuse = |name: &str, reason: &str| Err(source_error(source, &format!("types.{name}"), reason.to_owned()));
    for (name, data_type) in &source.types {
        match &source.origin {
            Origin::Delta { .. } => return refuse(name, "columns of a Delta table have types: cast them in `columns`"),
            Origin::Postgres(_) => return refuse(name, "columns of a query have types: cast them in the query"),
            Origin::Csv { .. } => {
                if let Err(reason) = check_text_type(*data_type) {
                    return refuse(name, &reason);
                }
            }
            Origin::Json { .. } | Origin::Parquet { .. } => {}
        }
    }
    if matches!(source.origin, Origin::Json { .. }) && source.types.is_empty() {
        let reason = "JSON says no types: declare every member that is read, `types = { amount = \"float64\" }`";
        return Err(source_error(source, "types", reason.to_owned()));
    }
    Ok(())
}

/// The columns of the source, over all of its files.
pub(crate) async fn survey(
    source: &SourceSpec,
    listing: &Listing,
    footers: &Footers,
) -> Result<SchemaRef, OfflineError> {
    if let Some(schema) = &listing.schema {
        return Ok(schema.clone());
    }
    let partitions = partition_types(source, &listing.files)?;
    let reads: Vec<_> =
        listing.files.iter().map(|file| async move { (file, own_columns(source, file, footers).await) }).collect();
    let mut own = futures::stream::iter(reads).buffered(FILES_AT_ONCE);
    let mut union = Union::default();
    while let Some((file, columns)) = own.next().await {
        let columns = columns?;
        let columns = columns.fields().iter().map(|field| (field.name().as_str(), field.data_type()));
        add_file(&mut union, file, columns.collect(), &partitions)?;
    }
    let schema = union.schema();
    let unknown = source.types.keys().find(|name| match &source.origin {
        Origin::Parquet { .. } => !partitions.contains_key(*name),
        _ => schema.field_with_name(name).is_err(),
    });
    let Some(unknown) = unknown else { return Ok(schema) };
    let reason = match &source.origin {
        Origin::Parquet { .. } => format!(
            "no folder of the files gives a column `{unknown}`; columns inside Parquet files have types of their own: cast \
             them in `columns`"
        ),
        _ => {
            let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            format!("no file has a column `{unknown}`; the columns are {}", names.join(", "))
        }
    };
    Err(source_error(source, &format!("types.{unknown}"), reason))
}

/// The columns inside a file.
async fn own_columns(source: &SourceSpec, file: &SourceFile, footers: &Footers) -> Result<SchemaRef, OfflineError> {
    let typed = |name: &str| {
        let data_type = source.types.get(name).copied().unwrap_or(DataType::Utf8);
        ArrowField::new(name, data_type.to_arrow(), true)
    };
    Ok(match &source.origin {
        Origin::Csv { format, .. } => {
            let names = csv::names(file, format).await?;
            Arc::new(Schema::new(names.iter().map(|name| typed(name)).collect::<Vec<_>>()))
        }
        Origin::Json { .. } => {
            // What the folders say stands in no line.
            let is_inside = |name: &&String| !file.partition.iter().any(|(given, _)| given == *name);
            Arc::new(Schema::new(source.types.keys().filter(is_inside).map(|name| typed(name)).collect::<Vec<_>>()))
        }
        _ => footers.get(file).await?.schema().clone(),
    })
}

/// Every file of a source, whatever was loaded of it.
pub(crate) async fn list_all_files(source: &SourceSpec) -> Result<Listing, OfflineError> {
    check_types(source)?;
    match &source.origin {
        Origin::Delta { location } => delta::list_all(source, location).await,
        Origin::Postgres(_) => {
            let reason = "a database is only read by backfills; write the rows into a file, and make a source of it";
            Err(source_error(source, "postgres", reason.to_owned()))
        }
        _ => list_files(source).await,
    }
}

/// The rows of all files of a source, with these columns, as its definition reads them. A row of which nothing could be read
/// is a fault and no row.
pub(crate) async fn source_rows(
    source: &SourceSpec,
    needed: Vec<String>,
    batch_rows: usize,
) -> Result<BoxStream<'static, Result<SourceRows, OfflineError>>, OfflineError> {
    let listing = list_all_files(source).await?;
    let (source, footers) = (Arc::new(source.clone()), Arc::new(Footers::default()));
    let schema = survey(&source, &listing, &footers).await?;
    let reader = Arc::new(SourceReader::try_new(&source, &schema, &needed)?);
    let files = futures::stream::iter(listing.files.into_iter().map(Ok::<_, OfflineError>));
    let rows = files.and_then(move |file| {
        let (source, footers, schema, reader) = (source.clone(), footers.clone(), schema.clone(), reader.clone());
        async move {
            let part = whole(&source, &file, &footers, &schema).await?;
            let wanted = reader.read.clone();
            let batches = open(&source, &file, &footers, (&part, 0), wanted, Portions::of_rows(batch_rows)).await?;
            Ok(batches.and_then(move |batch| futures::future::ready(rows_of(&reader, batch))))
        }
    });
    Ok(rows.try_flatten().boxed())
}

fn rows_of(reader: &SourceReader, mut batch: ReadBatch) -> Result<SourceRows, OfflineError> {
    let unreadable = std::mem::take(&mut batch.unreadable);
    let mut rows = reader.rows(batch)?;
    rows.faults.extend(unreadable.into_iter().map(|row| (row.sequence, row.fault)));
    Ok(rows)
}

/// All of a file as one chunk.
async fn whole(
    source: &SourceSpec,
    file: &SourceFile,
    footers: &Footers,
    schema: &Schema,
) -> Result<ChunkPart, OfflineError> {
    if matches!(source.origin, Origin::Csv { .. } | Origin::Json { .. }) {
        return Ok(ChunkPart::Whole);
    }
    let footer = footers.get(file).await?;
    if matches!(source.origin, Origin::Delta { .. }) {
        delta::check_file(file, footer.schema(), schema)?;
    }
    Ok(ChunkPart::RowGroups { first: 0, count: footer.metadata().num_row_groups() })
}

/// A file's own columns, and those that its folders give and it lacks.
fn add_file(
    union: &mut Union,
    file: &SourceFile,
    own: Vec<(&str, &ArrowType)>,
    partitions: &BTreeMap<String, ArrowType>,
) -> Result<(), OfflineError> {
    let names: BTreeSet<&str> = own.iter().map(|(name, _)| *name).collect();
    let given = file.partition.iter().map(|(name, _)| name.as_str()).filter(|name| !names.contains(name));
    let given: Vec<(&str, &ArrowType)> = given.filter_map(|name| Some((name, partitions.get(name)?))).collect();
    union.add(&file.url, own.into_iter().chain(given))
}

/// The types of what folders say: as declared; else int64 if every value is an integer, else text.
fn partition_types(source: &SourceSpec, files: &[SourceFile]) -> Result<BTreeMap<String, ArrowType>, OfflineError> {
    let mut are_integers: BTreeMap<&str, (bool, bool)> = BTreeMap::new();
    for (name, value) in files.iter().flat_map(|file| &file.partition) {
        let (some, all_integers) = are_integers.entry(name.as_str()).or_insert((false, true));
        let Some(value) = value else { continue };
        *some = true;
        *all_integers &= integer(value).is_ok();
    }
    let mut types = BTreeMap::new();
    for (name, (some, all_integers)) in are_integers {
        let found = if some && all_integers { DataType::Int64 } else { DataType::Utf8 };
        let data_type = source.types.get(name).copied().unwrap_or(found);
        check_text_type(data_type).map_err(|reason| source_error(source, &format!("types.{name}"), reason))?;
        types.insert(name.to_owned(), data_type.to_arrow());
    }
    // Every value is looked at here, so that one that cannot be read is named before any row is.
    for file in files {
        partition_values(source, file, &types)?;
    }
    Ok(types)
}

fn partition_values(
    source: &SourceSpec,
    file: &SourceFile,
    types: &BTreeMap<String, ArrowType>,
) -> Result<PartitionValues, OfflineError> {
    let clock = Clock::new(source.time_zone.as_deref());
    let mut values = PartitionValues::new();
    for (name, value) in &file.partition {
        let Some(arrow_type) = types.get(name) else { continue };
        let failed = |reason: String| file_error(file, format!("its partition {name}=…: {reason}"));
        if matches!(source.origin, Origin::Delta { .. }) {
            values.insert(name.clone(), delta::partition_value(value.as_deref(), arrow_type).map_err(failed)?);
            continue;
        }
        let mut column = TextColumn::new(DataType::from_arrow(arrow_type).unwrap_or(DataType::Utf8), clock);
        match value {
            None => column.push_null(),
            Some(text) => column.push(text).map_err(failed)?,
        }
        values.insert(name.clone(), column.finish());
    }
    Ok(values)
}

/// What it takes to say what is wrong with a value.
fn bytes_of_fault(fault: &Fault) -> usize {
    2 * size_of::<Fault>() + fault.kind.len() + fault.reason.len()
}

/// For counting: a value that stands in the file and is not what its column is declared to be.
fn unreadable_value(field: &ArrowField) -> String {
    let declared = DataType::from_arrow(field.data_type()).unwrap_or(DataType::Utf8);
    format!("column `{}` cannot be read as {declared}", field.name())
}

/// Where a file is cut into chunks of about `chunk_rows` rows. The same file is always cut in the same places. `schema` are
/// the columns of the source; a record of text that has more than `record_bytes_max` is refused.
pub(crate) async fn cut(
    source: &SourceSpec,
    file: &SourceFile,
    footers: &Footers,
    schema: &Schema,
    chunk_rows: u64,
    record_bytes_max: usize,
) -> Result<Vec<Cut>, OfflineError> {
    match &source.origin {
        Origin::Csv { format, .. } => csv::cut(file, format, chunk_rows, record_bytes_max).await,
        Origin::Json { .. } => json::cut(file, chunk_rows, record_bytes_max).await,
        Origin::Parquet { .. } | Origin::Postgres(_) => Ok(parquet::cut(&footers.get(file).await?, chunk_rows)),
        Origin::Delta { .. } => {
            let footer = footers.get(file).await?;
            delta::check_file(file, footer.schema(), schema)?;
            Ok(parquet::cut(&footer, chunk_rows))
        }
    }
}

/// The rows of a chunk, in the columns `wanted`.
pub(crate) async fn open(
    source: &SourceSpec,
    file: &SourceFile,
    footers: &Footers,
    (part, first_row): (&ChunkPart, u64),
    wanted: SchemaRef,
    portions: Portions,
) -> Result<RowStream, OfflineError> {
    let first_row = i64::try_from(first_row).unwrap_or(i64::MAX);
    let types = wanted.fields().iter().map(|field| (field.name().clone(), field.data_type().clone())).collect();
    let partition = partition_values(source, file, &types)?;
    let clock = Clock::new(source.time_zone.as_deref());
    match (&source.origin, part) {
        (Origin::Csv { format, .. }, part) => {
            csv::open(file, format, (part, first_row), wanted, &partition, clock, portions).await
        }
        (Origin::Json { .. }, part) => json::open(file, (part, first_row), wanted, &partition, clock, portions).await,
        (_, ChunkPart::RowGroups { first, count }) => {
            let footer = footers.get(file).await?;
            parquet::open(file, footer, *first..*first + *count, first_row, wanted, partition, portions.rows)
        }
        (_, part) => Err(file_error(file, format!("was planned to be read as {part:?}, which Parquet is not"))),
    }
}
