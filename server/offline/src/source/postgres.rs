//! A query of a PostgreSQL database: its result, kept as a Parquet file in the offline store.
//!
//! The query runs once in a transaction that only reads and sees one state of the database. What it gives streams into an
//! extract: a file named by its digest, which from then on is a lane like any other. A job that is resumed reads its extract
//! and does not ask the database again.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::parquet::arrow::AsyncArrowWriter;
use ::parquet::basic::{Compression, ZstdLevel};
use ::parquet::file::properties::WriterProperties;
use arrow_array::builder::{
    BinaryBuilder, BooleanBuilder, Date32Builder, Float32Builder, Float64Builder, Int16Builder, Int32Builder,
    Int64Builder, ListBuilder, StringBuilder, TimestampMicrosecondBuilder,
};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType as ArrowType, Field as ArrowField, Schema, SchemaRef, TimeUnit};
use chrono::{DateTime, NaiveDate};
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use object_store::buffered::BufWriter;
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow, PgValueFormat, PgValueRef};
use sqlx::{
    AssertSqlSafe, Column as _, ConnectOptions, Connection, Executor, Row as _, SqlSafeStr, Statement as _,
    TypeInfo as _, ValueRef as _,
};

use super::columns::source_error;
use super::files::{SourceFile, lane_digest};
use super::{Listing, Lookup};
use crate::cancel::unless_cancelled;
use crate::error::OfflineError;
use crate::ledger::LaneOrigin;
use crate::spec::{PostgresQuery, SourceSpec};
use crate::table::delete_if_there;

const STATEMENT: &str = "postgres";
const CONNECT_SECONDS_MAX: u64 = 30;
// The same rows give the same extract, whatever memory there is: these do not depend on it.
const BATCH_ROWS: usize = 8_192;
/// Bytes of a batch of rows, and of the row group that is being encoded.
const BATCH_BYTES_MAX: usize = 1 << 20;
const ROW_GROUP_BYTES_MAX: usize = 8 << 20;
/// Bytes of a part of the extract on its way to the store, and how many there are at once. No store takes smaller ones.
const PART_BYTES: usize = 5 << 20;
const PARTS_HELD: usize = 4;
/// What it takes to write an extract of rows that are not wide: a batch as it comes and as columns, a row group as it is
/// encoded and as it is written, and parts on their way.
const EXTRACT_BYTES: usize = 4 * BATCH_BYTES_MAX + 2 * ROW_GROUP_BYTES_MAX + PARTS_HELD * PART_BYTES;
/// What is left of the memory beyond that has room for so many copies of one row.
const COPIES_OF_A_ROW: usize = 8;
const ROW_GROUP_ROWS_MAX: usize = 1 << 20;
/// PostgreSQL counts from 2000-01-01.
const EPOCH_US: i64 = 946_684_800_000_000;
const EPOCH_DAYS: i32 = 10_957;

/// The greatest value of the cursor column that an extract holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CursorValue {
    /// The column.
    pub column: String,
    /// What the number counts.
    pub kind: CursorKind,
    /// The value: an integer, microseconds or days since 1970.
    pub value: i64,
}

/// What can be a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum CursorKind {
    Integer,
    Timestamptz,
    Timestamp,
    Date,
}

impl CursorValue {
    /// As SQL writes it.
    fn literal(&self) -> Option<String> {
        let local = |us: i64| Some(DateTime::from_timestamp_micros(us)?.format("%Y-%m-%dT%H:%M:%S%.6f").to_string());
        Some(match self.kind {
            CursorKind::Integer => format!("{}::bigint", self.value),
            CursorKind::Timestamptz => format!("timestamptz '{}Z'", local(self.value)?),
            CursorKind::Timestamp => format!("timestamp '{}'", local(self.value)?),
            CursorKind::Date => {
                let days = i32::try_from(self.value).ok()?.checked_add(UNIX_EPOCH_DAYS_CE)?;
                format!("date '{}'", NaiveDate::from_num_days_from_ce_opt(days)?.format("%Y-%m-%d"))
            }
        })
    }
}

/// Days from the beginning of year 1 to 1970-01-01, as chrono counts.
const UNIX_EPOCH_DAYS_CE: i32 = 719_163;

/// A connection, and what must not be said of it.
struct Database<'a> {
    source: &'a SourceSpec,
    connection: PgConnection,
    secrets: Secrets,
}

/// Texts that no message may hold.
struct Secrets(Vec<String>);

impl Secrets {
    fn of(url: &str) -> Self {
        let mut secrets = vec![url.to_owned()];
        if let Some(password) = url::Url::parse(url).ok().and_then(|url| url.password().map(str::to_owned)) {
            let decoded = percent_encoding::percent_decode_str(&password).decode_utf8_lossy().into_owned();
            secrets.extend([decoded, password]);
        }
        // A password may also stand among the parameters.
        let parameters = url::Url::parse(url).ok();
        let parameters = parameters.iter().flat_map(|url| url.query_pairs());
        secrets.extend(parameters.filter(|(name, _)| name == "password").map(|(_, value)| value.into_owned()));
        secrets.retain(|secret| !secret.is_empty());
        Self(secrets)
    }

    fn redact(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "***"))
    }
}

/// The columns of the query's result.
pub(super) async fn schema(source: &SourceSpec, query: &PostgresQuery) -> Result<SchemaRef, OfflineError> {
    let mut database = Database::open(source, query).await?;
    let columns = database.columns(query).await?;
    database.close().await;
    schema_of(source, &columns)
}

/// Extracts what the query gives, beyond what was extracted before if it has a cursor. An erasure that comes meanwhile may have
/// looked for extracts before this one was there: then it is taken back, and the query is asked anew.
pub(super) async fn list(
    source: &SourceSpec,
    query: &PostgresQuery,
    lookup: &Lookup<'_>,
) -> Result<Listing, OfflineError> {
    loop {
        let erased_before = lookup.erasures_revision().await?;
        let listing = list_once(source, query, lookup).await;
        let is_over = matches!(listing, Err(OfflineError::Cancelled));
        if is_over || lookup.erasures_revision().await? == erased_before {
            return listing;
        }
        for file in listing.iter().flat_map(|listing| &listing.files) {
            delete_if_there(file.location.store.as_ref(), &file.location.path).await?;
        }
    }
}

async fn list_once(source: &SourceSpec, query: &PostgresQuery, lookup: &Lookup<'_>) -> Result<Listing, OfflineError> {
    // Where there is no room for any row, nothing is asked.
    row_bytes_max(source, lookup)?;
    let begin = async {
        let mut database = Database::open(source, query).await?;
        database.notice_that_we_went().await;
        database.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let columns = database.columns(query).await?;
        Ok::<_, OfflineError>((database, columns))
    };
    let (mut database, columns) = unless_cancelled(lookup.cancel, begin).await?;
    let schema = schema_of(source, &columns)?;
    (lookup.check)(&schema)?;
    let after = last_cursor(source, query, &columns, lookup)?;
    let is_whole = after.is_none();
    let extracted = database.extract(query, &columns, &schema, after, lookup).await?;
    database.close().await;
    let (files, cursor) = extracted.map_or((Vec::new(), None), |(file, cursor)| (vec![file], cursor));
    let origin = LaneOrigin::Extract { cursor };
    Ok(Listing { files, schema: Some(schema), origin: Some(origin), is_whole, ..Listing::default() })
}

/// Bytes of the widest row that there is room for.
fn row_bytes_max(source: &SourceSpec, lookup: &Lookup<'_>) -> Result<usize, OfflineError> {
    let memory_bytes_max = lookup.room.memory_bytes_max;
    let left = memory_bytes_max.saturating_sub(EXTRACT_BYTES) / COPIES_OF_A_ROW;
    if left > 0 {
        return Ok(left);
    }
    let reason = format!(
        "keeping the rows of a query takes {EXTRACT_BYTES} bytes of memory, and jobs have {memory_bytes_max} (setting \
         jobs.memory_bytes_max): raise it"
    );
    Err(source_error(source, STATEMENT, reason))
}

/// A column of the result: its name, how it is read, and what the database calls its type.
struct Column {
    name: String,
    read: ReadAs,
}

/// How a type of the database is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadAs {
    Boolean,
    Int16,
    Int32,
    Int64,
    Float32,
    Float64,
    Text,
    Bytes,
    Timestamptz,
    Timestamp,
    Date,
    Int64List,
    Float64List,
    TextList,
}

impl ReadAs {
    fn of(type_name: &str) -> Option<Self> {
        Some(match type_name {
            "BOOL" => Self::Boolean,
            "INT2" => Self::Int16,
            "INT4" => Self::Int32,
            "INT8" => Self::Int64,
            "FLOAT4" => Self::Float32,
            "FLOAT8" => Self::Float64,
            "TEXT" | "VARCHAR" | "CHAR" | "NAME" => Self::Text,
            "BYTEA" => Self::Bytes,
            "TIMESTAMPTZ" => Self::Timestamptz,
            "TIMESTAMP" => Self::Timestamp,
            "DATE" => Self::Date,
            "INT8[]" => Self::Int64List,
            "FLOAT8[]" => Self::Float64List,
            "TEXT[]" | "VARCHAR[]" => Self::TextList,
            _ => return None,
        })
    }

    fn arrow_type(self) -> ArrowType {
        let list = |item: ArrowType| ArrowType::List(Arc::new(ArrowField::new("item", item, true)));
        match self {
            Self::Boolean => ArrowType::Boolean,
            Self::Int16 => ArrowType::Int16,
            Self::Int32 => ArrowType::Int32,
            Self::Int64 => ArrowType::Int64,
            Self::Float32 => ArrowType::Float32,
            Self::Float64 => ArrowType::Float64,
            Self::Text => ArrowType::Utf8,
            Self::Bytes => ArrowType::Binary,
            Self::Timestamptz => ArrowType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Self::Timestamp => ArrowType::Timestamp(TimeUnit::Microsecond, None),
            Self::Date => ArrowType::Date32,
            Self::Int64List => list(ArrowType::Int64),
            Self::Float64List => list(ArrowType::Float64),
            Self::TextList => list(ArrowType::Utf8),
        }
    }

    fn cursor(self) -> Option<CursorKind> {
        Some(match self {
            Self::Int16 | Self::Int32 | Self::Int64 => CursorKind::Integer,
            Self::Timestamptz => CursorKind::Timestamptz,
            Self::Timestamp => CursorKind::Timestamp,
            Self::Date => CursorKind::Date,
            _ => return None,
        })
    }
}

/// What to write instead of a column of this type.
fn cast_advice(name: &str, type_name: &str) -> String {
    match type_name {
        "NUMERIC" | "MONEY" => {
            format!("there is no decimal: write `{name}::float8`, or `({name} * 100)::bigint` for hundredths")
        }
        "INT2[]" | "INT4[]" => format!("write `{name}::bigint[]`"),
        "FLOAT4[]" | "NUMERIC[]" => format!("write `{name}::float8[]`"),
        "TIME" | "TIMETZ" | "INTERVAL" => format!("write `extract(epoch from {name})::float8`"),
        _ => format!("write `{name}::text`, or leave it out"),
    }
}

fn schema_of(source: &SourceSpec, columns: &[Column]) -> Result<SchemaRef, OfflineError> {
    let mut fields: Vec<ArrowField> = Vec::new();
    for column in columns {
        if fields.iter().any(|field| *field.name() == column.name) {
            let reason = format!("the query gives two columns `{}`; name one otherwise with `as`", column.name);
            return Err(source_error(source, STATEMENT, reason));
        }
        fields.push(ArrowField::new(&column.name, column.read.arrow_type(), true));
    }
    Ok(Arc::new(Schema::new(fields)))
}

/// The query as a part of another. A line comment at its end must not swallow what follows.
fn wrapped(query: &PostgresQuery, condition: Option<&str>) -> String {
    let query = query.query.trim().trim_end_matches(';');
    let condition = condition.map(|condition| format!(" WHERE {condition}")).unwrap_or_default();
    format!("SELECT * FROM (\n{query}\n) AS rows_of_source{condition}")
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Where the last extract ended whose rows this job needs no more.
fn last_cursor(
    source: &SourceSpec,
    query: &PostgresQuery,
    columns: &[Column],
    lookup: &Lookup<'_>,
) -> Result<Option<CursorValue>, OfflineError> {
    let Some(name) = &query.cursor else { return Ok(None) };
    let refuse = |reason: String| Err(source_error(source, "postgres.cursor", reason));
    let Some(column) = columns.iter().find(|column| column.name == *name) else {
        let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        return refuse(format!("the query gives no column `{name}`; its columns are {}", names.join(", ")));
    };
    let Some(kind) = column.read.cursor() else {
        return refuse(format!(
            "column `{name}` is no cursor: one is an integer, a timestamp or a date that only grows"
        ));
    };
    let covered = lookup.lanes.values().flatten().filter(|lane| lookup.is_covered(lane));
    let cursors = covered.filter_map(|lane| match &lane.origin {
        Some(LaneOrigin::Extract { cursor }) => cursor.clone(),
        _ => None,
    });
    // Extracts by another column say nothing about this one.
    let last = cursors.filter(|cursor| cursor.column == *name).max_by_key(|cursor| cursor.value);
    match last {
        Some(last) if last.kind != kind => {
            refuse(format!("column `{name}` was {:?} in earlier extracts and is {kind:?} now", last.kind))
        }
        last => Ok(last),
    }
}

impl<'a> Database<'a> {
    async fn open(source: &'a SourceSpec, query: &PostgresQuery) -> Result<Self, OfflineError> {
        let refuse = |reason: String| source_error(source, "postgres.url_env", reason);
        let variable = &query.url_env;
        let url = std::env::var(variable).ok().filter(|url| !url.trim().is_empty()).ok_or_else(|| {
            refuse(format!(
                "the environment variable {variable} is not set where eadem runs; it holds the database's URL, \
                 postgres://user:password@host/database"
            ))
        })?;
        let secrets = Secrets::of(url.trim());
        let options = PgConnectOptions::from_str(url.trim()).map_err(|error| {
            refuse(format!("{variable} holds no URL of a database: {}", secrets.redact(&error.to_string())))
        })?;
        let place = format!("{}:{}", options.get_host(), options.get_port());
        let options = options.application_name("eadem");
        let limit = Duration::from_secs(CONNECT_SECONDS_MAX);
        let connection = match tokio::time::timeout(limit, options.connect()).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                let reason = secrets.redact(&error.to_string());
                return Err(refuse(format!("cannot connect to {place}, which {variable} names: {reason}")));
            }
            Err(_) => {
                let reason = format!("{place}, which {variable} names, does not answer within {CONNECT_SECONDS_MAX} s");
                return Err(refuse(reason));
            }
        };
        Ok(Self { source, connection, secrets })
    }

    fn error(&self, error: &sqlx::Error) -> OfflineError {
        failed(self.source, &self.secrets, error)
    }

    async fn run(&mut self, statement: &'static str) -> Result<(), OfflineError> {
        let ran = self.connection.execute(statement).await;
        ran.map(|_| ()).map_err(|error| self.error(&error))
    }

    /// Has the server look every second whether we are still there: a query that computes for long ends soon after a job that was
    /// called off. Versions before 14 do not know the setting, and some systems do not have it: there it ends with its next row.
    async fn notice_that_we_went(&mut self) {
        const SETTING: &str =
            "SELECT set_config(name, '1s', false) FROM pg_settings WHERE name = 'client_connection_check_interval'";
        let _set = self.connection.execute(SETTING).await;
    }

    /// Says goodbye. The transaction has changed nothing, so that it does not matter how it ends.
    async fn close(self) {
        let _closed = self.connection.close().await;
    }

    async fn columns(&mut self, query: &PostgresQuery) -> Result<Vec<Column>, OfflineError> {
        let sql = wrapped(query, None);
        let prepared = (&mut self.connection).prepare(AssertSqlSafe(sql).into_sql_str()).await;
        let prepared = prepared.map_err(|error| failed(self.source, &self.secrets, &error))?;
        let mut columns = Vec::new();
        let mut refused = Vec::new();
        for column in prepared.columns() {
            let (name, type_name) = (column.name(), column.type_info().name());
            match ReadAs::of(type_name) {
                Some(read) => columns.push(Column { name: name.to_owned(), read }),
                None => refused.push(format!(
                    "column `{name}` is {}, which is not read; {}",
                    type_name.to_lowercase(),
                    cast_advice(name, type_name)
                )),
            }
        }
        if refused.is_empty() { Ok(columns) } else { Err(source_error(self.source, STATEMENT, refused.join("; "))) }
    }

    /// Writes the rows that the query gives into an extract; `None` if there are none.
    async fn extract(
        &mut self,
        query: &PostgresQuery,
        columns: &[Column],
        schema: &SchemaRef,
        after: Option<CursorValue>,
        lookup: &Lookup<'_>,
    ) -> Result<Option<(SourceFile, Option<CursorValue>)>, OfflineError> {
        let condition = match &after {
            None => None,
            Some(after) => {
                let literal = after.literal().ok_or_else(|| {
                    source_error(self.source, "postgres.cursor", "the last value is beyond the calendar".to_owned())
                })?;
                Some(format!("{} > {literal}", quoted(&after.column)))
            }
        };
        let folder = lookup.store.extracts_location(lookup.view, lookup.version)?;
        let being_written = folder.below(&temporary_name())?;
        let (store, path) = (being_written.store.clone(), being_written.path.clone());
        let mut file = BufWriter::with_capacity(store.clone(), path.clone(), PART_BYTES).with_max_concurrency(1);
        let mut is_closing = false;
        let sql = wrapped(query, condition.as_deref());
        let written = self.write((&mut file, &mut is_closing), query, sql, columns, schema, lookup).await;
        let (rows, cursor) = match written {
            Ok(written) => written,
            Err(error) => {
                // Nothing of it was ever visible; this only frees what the store may hold for it.
                if !is_closing {
                    let _aborted = file.abort().await;
                }
                return Err(error);
            }
        };
        if rows == 0 {
            store.delete(&path).await?;
            return Ok(None);
        }
        let source = self.source;
        let taken = |error: object_store::Error| match error {
            object_store::Error::NotFound { .. } => {
                let reason = "what was extracted is gone, as an erasure takes away the extracts of its entity type; run this job \
                              again";
                source_error(source, STATEMENT, reason.to_owned())
            }
            other => other.into(),
        };
        let meta = store.head(&path).await.map_err(taken)?;
        let unnamed = SourceFile {
            url: being_written.url.to_string(),
            path: path.to_string(),
            location: being_written,
            bytes: meta.size,
            modified_ms: 0,
            partition: Vec::new(),
        };
        let digest = lane_digest(&unnamed).await?;
        let name = format!("{}.parquet", digest.trim_start_matches("sha256:"));
        let location = folder.below(&name)?;
        store.rename(&path, &location.path).await.map_err(taken)?;
        let meta = store.head(&location.path).await.map_err(taken)?;
        let file = SourceFile {
            url: location.url.to_string(),
            path: name,
            location,
            bytes: meta.size,
            modified_ms: meta.last_modified.timestamp_millis(),
            partition: Vec::new(),
        };
        Ok(Some((file, cursor)))
    }

    async fn write(
        &mut self,
        (file, is_closing): (&mut BufWriter, &mut bool),
        query: &PostgresQuery,
        sql: String,
        columns: &[Column],
        schema: &SchemaRef,
        lookup: &Lookup<'_>,
    ) -> Result<(u64, Option<CursorValue>), OfflineError> {
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS_MAX))
            .set_created_by("eadem".to_owned());
        let mut writer = AsyncArrowWriter::try_new(file, schema.clone(), Some(properties.build()))?;
        let (source, secrets) = (self.source, &self.secrets);
        let mut stream = sqlx::query(AssertSqlSafe(sql)).fetch(&mut self.connection);
        let mut cursor = Cursor::new(query, columns);
        let mut builders: Vec<Builder> = columns.iter().map(|column| Builder::new(column.read)).collect();
        let (mut rows, mut waiting, mut bytes) = (0_u64, 0_usize, 0_usize);
        let mut held = lookup.room.gauge.hold();
        let row_bytes_max = row_bytes_max(source, lookup)?;
        let mut called_off = std::pin::pin!(lookup.cancel.cancelled());
        loop {
            let row = tokio::select! {
                // Rows that are there cost no look at anything else.
                biased;
                row = stream.try_next() => row.map_err(|error| failed(source, secrets, &error))?,
                () = &mut called_off => return Err(OfflineError::Cancelled),
            };
            let is_over = row.is_none();
            if let Some(row) = row {
                let row_bytes = read_row(source, &row, columns, &mut builders, rows, &mut cursor)?;
                if row_bytes > row_bytes_max {
                    return Err(too_wide(source, rows, row_bytes, row_bytes_max));
                }
                bytes += row_bytes;
                (rows, waiting) = (rows + 1, waiting + 1);
            }
            let is_full = waiting >= BATCH_ROWS || bytes >= BATCH_BYTES_MAX;
            if waiting > 0 && (is_over || is_full) {
                lookup.cancel.check()?;
                let arrays: Vec<ArrayRef> = builders.iter_mut().map(Builder::finish).collect();
                let batch = RecordBatch::try_new(schema.clone(), arrays)?;
                writer.write(&batch).await?;
                let batch_bytes = bytes + batch.get_array_memory_size();
                // What is encoded is written out of another buffer.
                held.set(batch_bytes + writer.memory_size() + writer.in_progress_size() + PARTS_HELD * PART_BYTES);
                if writer.in_progress_size() >= ROW_GROUP_BYTES_MAX {
                    writer.flush().await?;
                }
                (waiting, bytes) = (0, 0);
            }
            if is_over {
                break;
            }
        }
        *is_closing = true;
        writer.close().await?;
        Ok((rows, cursor.value()))
    }
}

fn too_wide(source: &SourceSpec, number: u64, bytes: usize, bytes_max: usize) -> OfflineError {
    let reason = format!(
        "row {number} has {bytes} bytes, and of the memory for jobs (setting jobs.memory_bytes_max) {bytes_max} are for one: \
         raise it, or leave the row or a column out"
    );
    source_error(source, STATEMENT, reason)
}

fn failed(source: &SourceSpec, secrets: &Secrets, error: &sqlx::Error) -> OfflineError {
    let reason = match error {
        sqlx::Error::Database(database) => match database.code() {
            Some(code) => format!("the database refuses the query: {} (SQLSTATE {code})", database.message()),
            None => format!("the database refuses the query: {}", database.message()),
        },
        other => format!("the connection to the database failed: {other}"),
    };
    source_error(source, STATEMENT, secrets.redact(&reason))
}

/// A name that no other writer uses, of a file that nobody looks for.
fn temporary_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("_writing-{}-{now}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Follows the greatest value of the cursor column.
struct Cursor {
    at: Option<(usize, String, CursorKind)>,
    greatest: Option<i64>,
}

impl Cursor {
    fn new(query: &PostgresQuery, columns: &[Column]) -> Self {
        let at = query.cursor.as_ref().and_then(|name| {
            let at = columns.iter().position(|column| column.name == *name)?;
            Some((at, name.clone(), columns[at].read.cursor()?))
        });
        Self { at, greatest: None }
    }

    fn value(self) -> Option<CursorValue> {
        let ((_, column, kind), value) = self.at.zip(self.greatest)?;
        Some(CursorValue { column, kind, value })
    }
}

/// Takes up one row; gives about how many bytes it holds.
fn read_row(
    source: &SourceSpec,
    row: &PgRow,
    columns: &[Column],
    builders: &mut [Builder],
    number: u64,
    cursor: &mut Cursor,
) -> Result<usize, OfflineError> {
    let mut bytes = 0;
    for (at, (column, builder)) in columns.iter().zip(builders).enumerate() {
        let refuse = |reason: String| {
            source_error(source, STATEMENT, format!("row {number}, column `{}`: {reason}", column.name))
        };
        let value = row.try_get_raw(at).map_err(|error| refuse(error.to_string()))?;
        let number = match raw_bytes(&value).map_err(refuse)? {
            None => {
                builder.push_null();
                None
            }
            Some(raw) => {
                bytes += raw.len();
                builder.push(raw).map_err(refuse)?
            }
        };
        if cursor.at.as_ref().is_some_and(|(cursor_at, ..)| *cursor_at == at) {
            let Some(value) = number else {
                let reason = "a cursor is never null: such a row would be read by no later job. Leave these rows out with \
                              `where`, or do without the cursor";
                return Err(refuse(reason.to_owned()));
            };
            let is_time = builder_is_time(builder);
            if is_time && matches!(value, i64::MIN | i64::MAX) {
                return Err(refuse("a cursor is never infinite: no later row would lie beyond it".to_owned()));
            }
            cursor.greatest = cursor.greatest.max(Some(value));
        }
    }
    Ok(bytes)
}

fn builder_is_time(builder: &Builder) -> bool {
    matches!(builder, Builder::Timestamp(_))
}

fn raw_bytes<'r>(value: &PgValueRef<'r>) -> Result<Option<&'r [u8]>, String> {
    if value.is_null() {
        return Ok(None);
    }
    if value.format() != PgValueFormat::Binary {
        return Err("the database sent text where values were asked for".to_owned());
    }
    value.as_bytes().map(Some).map_err(|error| error.to_string())
}

enum Builder {
    Boolean(BooleanBuilder),
    Int16(Int16Builder),
    Int32(Int32Builder),
    Int64(Int64Builder),
    Float32(Float32Builder),
    Float64(Float64Builder),
    Text(StringBuilder),
    Bytes(BinaryBuilder),
    Timestamp(TimestampMicrosecondBuilder),
    Date(Date32Builder),
    Int64List(ListBuilder<Int64Builder>),
    Float64List(ListBuilder<Float64Builder>),
    TextList(ListBuilder<StringBuilder>),
}

impl Builder {
    fn new(read: ReadAs) -> Self {
        match read {
            ReadAs::Boolean => Self::Boolean(BooleanBuilder::new()),
            ReadAs::Int16 => Self::Int16(Int16Builder::new()),
            ReadAs::Int32 => Self::Int32(Int32Builder::new()),
            ReadAs::Int64 => Self::Int64(Int64Builder::new()),
            ReadAs::Float32 => Self::Float32(Float32Builder::new()),
            ReadAs::Float64 => Self::Float64(Float64Builder::new()),
            ReadAs::Text => Self::Text(StringBuilder::new()),
            ReadAs::Bytes => Self::Bytes(BinaryBuilder::new()),
            ReadAs::Timestamptz => Self::Timestamp(TimestampMicrosecondBuilder::new().with_timezone("UTC")),
            ReadAs::Timestamp => Self::Timestamp(TimestampMicrosecondBuilder::new()),
            ReadAs::Date => Self::Date(Date32Builder::new()),
            ReadAs::Int64List => Self::Int64List(ListBuilder::new(Int64Builder::new())),
            ReadAs::Float64List => Self::Float64List(ListBuilder::new(Float64Builder::new())),
            ReadAs::TextList => Self::TextList(ListBuilder::new(StringBuilder::new())),
        }
    }

    fn push_null(&mut self) {
        match self {
            Self::Boolean(column) => column.append_null(),
            Self::Int16(column) => column.append_null(),
            Self::Int32(column) => column.append_null(),
            Self::Int64(column) => column.append_null(),
            Self::Float32(column) => column.append_null(),
            Self::Float64(column) => column.append_null(),
            Self::Text(column) => column.append_null(),
            Self::Bytes(column) => column.append_null(),
            Self::Timestamp(column) => column.append_null(),
            Self::Date(column) => column.append_null(),
            Self::Int64List(column) => column.append_null(),
            Self::Float64List(column) => column.append_null(),
            Self::TextList(column) => column.append_null(),
        }
    }

    /// Takes up a value as the database sends it. Gives the number that it stands for, if it may be a cursor's. What is
    /// infinite, or beyond what the type here counts, becomes the last instant or day, which no job accepts.
    fn push(&mut self, raw: &[u8]) -> Result<Option<i64>, String> {
        let mut number = None;
        match self {
            Self::Boolean(column) => column.append_value(fixed::<1>(raw)?[0] != 0),
            Self::Int16(column) => {
                let value = i16::from_be_bytes(fixed(raw)?);
                column.append_value(value);
                number = Some(i64::from(value));
            }
            Self::Int32(column) => {
                let value = i32::from_be_bytes(fixed(raw)?);
                column.append_value(value);
                number = Some(i64::from(value));
            }
            Self::Int64(column) => {
                let value = i64::from_be_bytes(fixed(raw)?);
                column.append_value(value);
                number = Some(value);
            }
            Self::Float32(column) => column.append_value(f32::from_be_bytes(fixed(raw)?)),
            Self::Float64(column) => column.append_value(f64::from_be_bytes(fixed(raw)?)),
            Self::Text(column) => column.append_value(text(raw)?),
            Self::Bytes(column) => column.append_value(raw),
            Self::Timestamp(column) => {
                let value = since_unix_epoch(i64::from_be_bytes(fixed(raw)?));
                column.append_value(value);
                number = Some(value);
            }
            Self::Date(column) => {
                let days = i32::from_be_bytes(fixed(raw)?);
                let is_infinite = matches!(days, i32::MIN | i32::MAX);
                let value = if is_infinite { days } else { days.saturating_add(EPOCH_DAYS) };
                column.append_value(value);
                number = Some(i64::from(value));
            }
            Self::Int64List(column) => {
                for element in elements(raw)? {
                    let value = element.map(|raw| fixed(raw).map(i64::from_be_bytes)).transpose()?;
                    column.values().append_option(value);
                }
                column.append(true);
            }
            Self::Float64List(column) => {
                for element in elements(raw)? {
                    let value = element.map(|raw| fixed(raw).map(f64::from_be_bytes)).transpose()?;
                    column.values().append_option(value);
                }
                column.append(true);
            }
            Self::TextList(column) => {
                for element in elements(raw)? {
                    column.values().append_option(element.map(text).transpose()?);
                }
                column.append(true);
            }
        }
        Ok(number)
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Boolean(column) => Arc::new(column.finish()),
            Self::Int16(column) => Arc::new(column.finish()),
            Self::Int32(column) => Arc::new(column.finish()),
            Self::Int64(column) => Arc::new(column.finish()),
            Self::Float32(column) => Arc::new(column.finish()),
            Self::Float64(column) => Arc::new(column.finish()),
            Self::Text(column) => Arc::new(column.finish()),
            Self::Bytes(column) => Arc::new(column.finish()),
            Self::Timestamp(column) => Arc::new(column.finish()),
            Self::Date(column) => Arc::new(column.finish()),
            Self::Int64List(column) => Arc::new(column.finish()),
            Self::Float64List(column) => Arc::new(column.finish()),
            Self::TextList(column) => Arc::new(column.finish()),
        }
    }
}

fn since_unix_epoch(us: i64) -> i64 {
    // The ends stand for the infinities.
    if matches!(us, i64::MIN | i64::MAX) { us } else { us.saturating_add(EPOCH_US) }
}

fn fixed<const N: usize>(raw: &[u8]) -> Result<[u8; N], String> {
    raw.try_into().map_err(|_| format!("the database sent {} bytes where {N} were expected", raw.len()))
}

fn text(raw: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(raw).map_err(|_| "the text is not UTF-8".to_owned())
}

fn word(rest: &mut &[u8]) -> Result<i32, String> {
    let (head, tail) = rest.split_first_chunk::<4>().ok_or("the database sent an array that is cut short")?;
    *rest = tail;
    Ok(i32::from_be_bytes(*head))
}

/// The elements of an array of one dimension, as the database sends it.
fn elements(raw: &[u8]) -> Result<Vec<Option<&[u8]>>, String> {
    let mut rest = raw;
    let dimensions = word(&mut rest)?;
    let (_has_nulls, _element_type) = (word(&mut rest)?, word(&mut rest)?);
    match dimensions {
        0 => return Ok(Vec::new()),
        1 => {}
        more => return Err(format!("an array of {more} dimensions is no list")),
    }
    let (length, _first_index) = (word(&mut rest)?, word(&mut rest)?);
    let mut elements = Vec::new();
    for _ in 0..length {
        let bytes = word(&mut rest)?;
        let Ok(bytes) = usize::try_from(bytes) else {
            elements.push(None);
            continue;
        };
        let (element, tail) = rest.split_at_checked(bytes).ok_or("the database sent an array that is cut short")?;
        rest = tail;
        elements.push(Some(element));
    }
    Ok(elements)
}
