//! Delta tables of others: their data files are lanes, their log says which ones are new.
//!
//! A first job loads what the table holds at its version. Later ones follow the log from there: files that were added with
//! new rows are loaded, files that only hold rows once more (compaction, `dataChange = false`) are not. What removes rows
//! that were loaded is refused: only computing the view anew takes them back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, StringArray};
use arrow_cast::CastOptions;
use arrow_schema::{DataType as ArrowType, Field as ArrowField, Schema, SchemaRef};
use deltalake_core::DeltaTable;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use serde_json::Value as Json;

use super::columns::source_error;
use super::files::{SourceFile, file_error};
use super::unite::wider_type;
use super::{Listing, Lookup};
use crate::error::OfflineError;
use crate::ledger::LaneOrigin;
use crate::location::Location;
use crate::spec::SourceSpec;
use crate::table::{open_log, read_commit};

const STATEMENT: &str = "delta";
/// Files whose heads are read at the same time.
const HEADS_AT_ONCE: usize = 16;
/// Column names inside files differ from those of the table.
const PROPERTY_COLUMN_MAPPING: &str = "delta.columnMapping.mode";

/// The table, at its latest version.
struct Opened {
    location: Location,
    table: DeltaTable,
    id: String,
    version: u64,
    schema: SchemaRef,
}

/// A data file as the log has it: its path in the table's folder, and its partition.
struct LoggedFile {
    path: String,
    partition: Vec<(String, Option<String>)>,
    has_deletions: bool,
}

/// The table's columns.
pub(super) async fn schema(source: &SourceSpec, location: &str) -> Result<SchemaRef, OfflineError> {
    Ok(open(source, location).await?.schema)
}

/// The files that a job has to look at.
pub(super) async fn list(source: &SourceSpec, location: &str, lookup: &Lookup<'_>) -> Result<Listing, OfflineError> {
    let opened = open(source, location).await?;
    let loaded = loaded_version(source, &opened, lookup)?;
    let (files, already_loaded): (_, Vec<String>) = match loaded {
        Some(loaded) => {
            let paths = lookup.lanes.iter().filter(|(_, lanes)| lanes.iter().any(|lane| lookup.is_covered(lane)));
            (added_since(source, &opened, loaded, lookup).await?, paths.map(|(path, _)| path.clone()).collect())
        }
        None => {
            let active = active_files(source, &opened)?;
            check_still_there(source, &opened, &active, lookup)?;
            (active, Vec::new())
        }
    };
    listing(source, opened, files, already_loaded).await
}

/// All files of the table.
pub(super) async fn list_all(source: &SourceSpec, location: &str) -> Result<Listing, OfflineError> {
    let opened = open(source, location).await?;
    let files = active_files(source, &opened)?;
    listing(source, opened, files, Vec::new()).await
}

async fn listing(
    source: &SourceSpec,
    opened: Opened,
    files: Vec<LoggedFile>,
    already_loaded: Vec<String>,
) -> Result<Listing, OfflineError> {
    if let Some(file) = files.iter().find(|file| file.has_deletions) {
        let reason = format!(
            "{} marks rows of {} as deleted (a deletion vector), and such marks are not read. Have the table's writer \
             purge them (`REORG TABLE … APPLY (PURGE)`), then compute the view anew: `eadem backfill --recompute`",
            at_version(&opened),
            file.path
        );
        return Err(source_error(source, STATEMENT, reason));
    }
    let origin = LaneOrigin::Delta { table: opened.id.clone(), version: opened.version };
    let heads: Vec<_> = files.into_iter().map(|file| source_file(&opened, file)).collect();
    let files: Vec<SourceFile> = futures::stream::iter(heads).buffered(HEADS_AT_ONCE).try_collect().await?;
    Ok(Listing { files, schema: Some(opened.schema), origin: Some(origin), already_loaded, ..Listing::default() })
}

async fn open(source: &SourceSpec, text: &str) -> Result<Opened, OfflineError> {
    let location = Location::parse(text)?;
    let refuse = |reason: String| source_error(source, STATEMENT, format!("{}: {reason}", location.url));
    let (_, log_store) = open_log(&location);
    let mut table = DeltaTable::new(log_store);
    if !table.verify_deltatable_existence().await.map_err(|error| refuse(error.to_string()))? {
        return Err(refuse("there is no Delta table (no folder `_delta_log`)".to_owned()));
    }
    table.load().await.map_err(|error| refuse(error.to_string()))?;
    let snapshot = table.snapshot().map_err(|error| refuse(error.to_string()))?;
    let metadata = snapshot.metadata();
    let mapping = metadata.configuration().get(PROPERTY_COLUMN_MAPPING).map(String::as_str);
    if mapping.is_some_and(|mode| mode != "none") {
        let reason = "its columns are mapped (delta.columnMapping.mode): the files do not name them as the table does, and \
                      that is not read. Write the table without column mapping";
        return Err(refuse(reason.to_owned()));
    }
    let (id, version) = (metadata.id().to_owned(), snapshot.version());
    let fields = snapshot.snapshot().arrow_schema();
    let fields = fields.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<ArrowField>>()));
    Ok(Opened { location, table, id, version, schema })
}

fn at_version(opened: &Opened) -> String {
    format!("version {} of the table {}", opened.version, opened.location.url)
}

fn deletions(source: &SourceSpec, what: &str) -> OfflineError {
    let reason = format!(
        "{what}. Deletions and updates of rows in a source are not carried over. Append corrections as rows with a later \
         known-at, or compute the view anew from the table as it is now: `eadem backfill --recompute`"
    );
    source_error(source, STATEMENT, reason)
}

/// The version up to which the rows that this job asks for were loaded before.
fn loaded_version(source: &SourceSpec, opened: &Opened, lookup: &Lookup<'_>) -> Result<Option<u64>, OfflineError> {
    let mut loaded: Option<u64> = None;
    for lane in lookup.lanes.values().flatten() {
        let Some(LaneOrigin::Delta { table, version }) = &lane.origin else { continue };
        if lookup.recompute {
            continue;
        }
        if *table != opened.id {
            let reason = format!(
                "{} is another table than the one whose rows were loaded (its id is {}, not {table}): compute \
                 the view anew from it: `eadem backfill --recompute`",
                opened.location.url, opened.id
            );
            return Err(source_error(source, STATEMENT, reason));
        }
        if lookup.is_covered(lane) {
            loaded = loaded.max(Some(*version));
        }
    }
    Ok(loaded)
}

/// The latest version of the table in which a job has found a file of which it has loaded rows.
fn version_of(lookup: &Lookup<'_>, path: &str) -> Option<u64> {
    let lanes = lookup.lanes.get(path).into_iter().flatten();
    let versions = lanes.filter_map(|lane| match &lane.origin {
        Some(LaneOrigin::Delta { version, .. }) => Some(*version),
        _ => None,
    });
    versions.max()
}

/// Where no job has loaded all of the asked range, the files themselves say what of them is loaded. Of one that is gone nobody
/// can tell: its rows were deleted, or they stand in another file by now and would be loaded once more.
fn check_still_there(
    source: &SourceSpec,
    opened: &Opened,
    active: &[LoggedFile],
    lookup: &Lookup<'_>,
) -> Result<(), OfflineError> {
    if lookup.recompute {
        return Ok(());
    }
    let active: BTreeSet<&str> = active.iter().map(|file| file.path.as_str()).collect();
    let Some(gone) = lookup.lanes.keys().find(|path| !active.contains(path.as_str())) else { return Ok(()) };
    let reason = format!(
        "{} has no file {gone} any more, of which rows of another time range were loaded: they were deleted or updated, or \
         the file was put together with others, and which of the rows that are there are loaded cannot be told. Compute what \
         you ask for anew from the table as it is now: the same `eadem backfill` with `--recompute`",
        at_version(opened)
    );
    Err(source_error(source, STATEMENT, reason))
}

/// Everything that the table holds.
fn active_files(source: &SourceSpec, opened: &Opened) -> Result<Vec<LoggedFile>, OfflineError> {
    let snapshot = opened.table.snapshot().map_err(|error| source_error(source, STATEMENT, error.to_string()))?;
    let columns = snapshot.metadata().partition_columns();
    let mut files: Vec<LoggedFile> = snapshot
        .log_data()
        .iter()
        .map(|file| {
            let mut values = file.partition_values_map();
            let partition = columns.iter().map(|name| (name.clone(), values.remove(name).flatten())).collect();
            let has_deletions = file.deletion_vector_descriptor().is_some();
            LoggedFile { path: file.path().into_owned(), partition, has_deletions }
        })
        .collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// The files that the log has added since a version, with rows that were not in the table before.
async fn added_since(
    source: &SourceSpec,
    opened: &Opened,
    loaded: u64,
    lookup: &Lookup<'_>,
) -> Result<Vec<LoggedFile>, OfflineError> {
    if opened.version < loaded {
        let reason = format!("{}, but version {loaded} was loaded before: has it been put back?", at_version(opened));
        return Err(source_error(source, STATEMENT, reason));
    }
    let columns = opened.table.snapshot().map(|snapshot| snapshot.metadata().partition_columns());
    let columns = columns.map_err(|error| source_error(source, STATEMENT, error.to_string()))?;
    let log_store = opened.table.log_store();
    let mut added: BTreeMap<String, LoggedFile> = BTreeMap::new();
    // Files that only hold rows once more: what removes them removes rows that came by other files.
    let mut rewritten: BTreeSet<String> = BTreeSet::new();
    for version in loaded + 1..=opened.version {
        let actions = read_commit(&opened.location, &log_store, version).await?;
        if actions.is_empty() {
            let reason = format!(
                "version {loaded} of {} was loaded, and the log of version {version} is gone: what was added since cannot \
                 be told. Compute the view anew from the table as it is now: `eadem backfill --recompute`",
                opened.location.url
            );
            return Err(source_error(source, STATEMENT, reason));
        }
        let operation = actions.iter().find_map(|action| action["commitInfo"]["operation"].as_str());
        // A commit removes before it adds: an update of a file is both.
        for removed in actions.iter().map(|action| &action["remove"]).filter(|remove| changes_data(remove)) {
            let path = decoded_path(&removed["path"]);
            let is_new = added.remove(&path).is_some() && !rewritten.contains(&path);
            // Of a file that came since, other jobs may have loaded another range.
            if !is_new || version_of(lookup, &path).is_some_and(|loaded| loaded < version) {
                let what = format!(
                    "version {version} of the table {} ({}) took away rows that were loaded, those of {path}",
                    opened.location.url,
                    operation.unwrap_or("an operation without a name")
                );
                return Err(deletions(source, &what));
            }
        }
        for add in actions.iter().map(|action| &action["add"]).filter(|add| !add.is_null()) {
            let path = decoded_path(&add["path"]);
            if !changes_data(add) {
                rewritten.insert(path);
                continue;
            }
            let value = |name: &String| add["partitionValues"][name.as_str()].as_str().map(str::to_owned);
            let partition = columns.iter().map(|name| (name.clone(), value(name))).collect();
            let has_deletions = !add["deletionVector"].is_null();
            added.insert(path.clone(), LoggedFile { path, partition, has_deletions });
        }
    }
    Ok(added.into_values().collect())
}

fn changes_data(action: &Json) -> bool {
    !action.is_null() && action["dataChange"].as_bool().unwrap_or(true)
}

fn decoded_path(path: &Json) -> String {
    percent_encoding::percent_decode_str(path.as_str().unwrap_or_default()).decode_utf8_lossy().into_owned()
}

async fn source_file(opened: &Opened, file: LoggedFile) -> Result<SourceFile, OfflineError> {
    let is_elsewhere = file.path.contains("://") || file.path.starts_with('/');
    let failed = |reason: String| OfflineError::File { file: file.path.clone(), reason };
    if is_elsewhere {
        let reason = format!("lies outside the folder of the table {}; such files are not read", opened.location.url);
        return Err(failed(reason));
    }
    let location = opened.location.below(&file.path)?;
    let meta = location.store.head(&location.path).await.map_err(|error| {
        let advice = "if it was vacuumed after a compaction, compute the view anew: `eadem backfill --recompute`";
        failed(format!("{} names it, but it cannot be read ({error}); {advice}", at_version(opened)))
    })?;
    Ok(SourceFile {
        url: location.url.to_string(),
        path: file.path,
        location,
        bytes: meta.size,
        modified_ms: meta.last_modified.timestamp_millis(),
        partition: file.partition,
    })
}

/// Whether the columns of a data file are those of the table, or narrower.
pub(super) fn check_file(file: &SourceFile, own: &Schema, table: &Schema) -> Result<(), OfflineError> {
    for field in own.fields() {
        let Ok(wanted) = table.field_with_name(field.name()) else { continue };
        let (found, wanted) = (field.data_type(), wanted.data_type());
        // Times of 96 bits say nothing of a zone; in Delta tables they are instants.
        let is_instant = matches!((found, wanted), (ArrowType::Timestamp(..), ArrowType::Timestamp(_, Some(_))));
        let holds = is_instant || wider_type(found, wanted).is_some_and(|wider| is_same(&wider, wanted));
        if !holds {
            let reason = format!("column `{}` is {found}, but {wanted} in the table", field.name());
            return Err(file_error(file, reason));
        }
    }
    Ok(())
}

/// Whether two types differ only in the width of offsets and the names of elements.
fn is_same(a: &ArrowType, b: &ArrowType) -> bool {
    use ArrowType as T;
    match (a, b) {
        (T::LargeUtf8 | T::Utf8View, T::Utf8) | (T::LargeBinary | T::BinaryView, T::Binary) => true,
        (T::List(a) | T::LargeList(a), T::List(b)) => is_same(a.data_type(), b.data_type()),
        _ => a == b,
    }
}

/// A partition value of the log in the type of its column. An empty one is null.
pub(super) fn partition_value(value: Option<&str>, data_type: &ArrowType) -> Result<ArrayRef, String> {
    let value = value.filter(|value| !value.is_empty());
    let text = StringArray::from(vec![value]);
    let options = CastOptions { safe: false, ..CastOptions::default() };
    let column = arrow_cast::cast_with_options(&text, data_type, &options).map_err(|error| error.to_string())?;
    if column.null_count() != text.null_count() {
        return Err(format!("`{}` is not {data_type}", value.unwrap_or_default()));
    }
    Ok(column)
}
