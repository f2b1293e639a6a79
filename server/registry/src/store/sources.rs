//! Sources: a name and a location, and the immutable meaning that it has now.

use std::collections::BTreeMap;

use eadem_values::DataType;
use sqlx::Row;

use super::{Registry, Session, load_tags, read_flag, read_name, save_tags};
use crate::digest::source_digest;
use crate::error::{ObjectKind, RegistryError};
use crate::model::{
    About, ColumnType, EventTime, KnownAt, Origin, Place, RowFormat, Source, SourceColumn, SourceField,
};

impl Registry {
    /// All sources, by name.
    ///
    /// # Errors
    /// The database failed.
    pub async fn sources(&self) -> Result<Vec<Source>, RegistryError> {
        let mut snapshot = self.snapshot().await?;
        let names: Vec<String> =
            sqlx::query_scalar("SELECT name FROM source ORDER BY name").fetch_all(snapshot.sql()).await?;
        let mut sources = Vec::with_capacity(names.len());
        for name in names {
            sources.extend(load_source(&mut snapshot, &name).await?);
        }
        Ok(sources)
    }

    /// A source, as it stands now.
    ///
    /// # Errors
    /// No source of this name.
    pub async fn source(&self, name: &str) -> Result<Source, RegistryError> {
        let mut snapshot = self.snapshot().await?;
        let source = load_source(&mut snapshot, name).await?;
        match source {
            Some(source) => Ok(source),
            None => Err(unknown_source(&mut snapshot, name).await?),
        }
    }

    /// The columns of a source as `plan` last saw them.
    ///
    /// # Errors
    /// The database failed.
    pub async fn source_columns(&self, name: &str) -> Result<Vec<SourceColumn>, RegistryError> {
        let mut snapshot = self.snapshot().await?;
        load_columns(&mut snapshot, name).await
    }
}

pub(crate) async fn load_columns(connection: &mut Session, source: &str) -> Result<Vec<SourceColumn>, RegistryError> {
    let rows = sqlx::query(
        "SELECT source_column.name, data_type, other_type FROM source_column JOIN source USING (source_id)
         WHERE source.name = $1 ORDER BY position",
    )
    .bind(source)
    .fetch_all(connection.sql())
    .await?;
    let mut columns = Vec::with_capacity(rows.len());
    for row in rows {
        let data_type: Option<String> = row.try_get("data_type")?;
        let column_type = match data_type {
            Some(name) => ColumnType::Known(read_name(&name, |name| name.parse().ok())?),
            None => ColumnType::Other(row.try_get("other_type")?),
        };
        columns.push(SourceColumn { name: row.try_get("name")?, column_type });
    }
    Ok(columns)
}

pub(crate) async fn unknown_source(connection: &mut Session, name: &str) -> Result<RegistryError, RegistryError> {
    let names: Vec<String> = sqlx::query_scalar("SELECT name FROM source").fetch_all(connection.sql()).await?;
    let hint = crate::definitions::did_you_mean(name, names.iter().map(String::as_str));
    Ok(RegistryError::not_found(ObjectKind::Source, name, hint))
}

pub(crate) async fn load_source(connection: &mut Session, name: &str) -> Result<Option<Source>, RegistryError> {
    let row = sqlx::query("SELECT meaning_id, doc, owner FROM source WHERE name = $1")
        .bind(name)
        .fetch_optional(connection.sql())
        .await?;
    let Some(row) = row else { return Ok(None) };
    let mut source = load_meaning(connection, row.try_get("meaning_id")?).await?;
    source.about = About {
        doc: row.try_get("doc")?,
        owner: row.try_get("owner")?,
        tags: load_tags(connection, "source", name).await?,
    };
    Ok(Some(source))
}

/// The source that a meaning describes, with the location that the source has now.
pub(crate) async fn load_meaning(connection: &mut Session, meaning_id: i64) -> Result<Source, RegistryError> {
    let row = sqlx::query(
        "SELECT meaning.name, filter, time_zone, event_time_column, event_time_us, known_at_column, known_after_us,
                event_id, format, place, push, max_ahead_us
         FROM source_meaning AS meaning JOIN source ON source.name = meaning.name
         WHERE meaning.meaning_id = $1",
    )
    .bind(meaning_id)
    .fetch_one(connection.sql())
    .await?;
    let event_time = match (row.try_get("event_time_column")?, row.try_get("event_time_us")?) {
        (Some(column), _) => EventTime::Column(column),
        (None, Some(us)) => EventTime::Literal(us),
        (None, None) => return Err(RegistryError::damaged("a source has no event time")),
    };
    let known_at = match (row.try_get("known_at_column")?, row.try_get("known_after_us")?) {
        (Some(column), _) => KnownAt::Column(column),
        (None, Some(us)) => KnownAt::AfterUs(us),
        (None, None) => KnownAt::EventTime,
    };
    let format: Option<RowFormat> = read_json(row.try_get("format")?)?;
    let place: Option<Place> = read_json(row.try_get("place")?)?;
    Ok(Source {
        name: row.try_get("name")?,
        origin: format.zip(place).and_then(|(format, place)| Origin::try_new(format, place)),
        types: load_types(connection, meaning_id).await?,
        push: read_flag(row.try_get("push")?),
        fields: load_fields(connection, meaning_id).await?,
        columns: load_expressions(connection, meaning_id).await?,
        filter: row.try_get("filter")?,
        time_zone: row.try_get("time_zone")?,
        event_time,
        known_at,
        event_id: row.try_get("event_id")?,
        max_ahead_us: row.try_get("max_ahead_us")?,
        about: About::default(),
    })
}

fn read_json<T: serde::de::DeserializeOwned>(text: Option<String>) -> Result<Option<T>, RegistryError> {
    let read = text.map(|text| serde_json::from_str(&text)).transpose();
    read.map_err(|error| RegistryError::damaged(format!("what a source reads: {error}")))
}

fn written_json(value: Option<&impl serde::Serialize>) -> Option<String> {
    value.and_then(|value| serde_json::to_string(value).ok())
}

async fn load_types(connection: &mut Session, meaning_id: i64) -> Result<BTreeMap<String, DataType>, RegistryError> {
    let rows: Vec<(String, String)> = sqlx::query_as("SELECT name, data_type FROM source_type WHERE meaning_id = $1")
        .bind(meaning_id)
        .fetch_all(connection.sql())
        .await?;
    let read = |(name, data_type): (String, String)| {
        let data_type: DataType = read_name(&data_type, |name| name.parse().ok())?;
        Ok((name, data_type))
    };
    rows.into_iter().map(read).collect()
}

async fn load_fields(connection: &mut Session, meaning_id: i64) -> Result<Vec<SourceField>, RegistryError> {
    let rows = sqlx::query("SELECT name, data_type FROM source_field WHERE meaning_id = $1 ORDER BY position")
        .bind(meaning_id)
        .fetch_all(connection.sql())
        .await?;
    let mut fields = Vec::with_capacity(rows.len());
    for row in rows {
        let data_type: String = row.try_get("data_type")?;
        let data_type: DataType = read_name(&data_type, |name| name.parse().ok())?;
        fields.push(SourceField { name: row.try_get("name")?, data_type });
    }
    Ok(fields)
}

async fn load_expressions(
    connection: &mut Session,
    meaning_id: i64,
) -> Result<BTreeMap<String, String>, RegistryError> {
    let rows: Vec<(String, String)> =
        sqlx::query_as("SELECT name, expression FROM source_expression WHERE meaning_id = $1")
            .bind(meaning_id)
            .fetch_all(connection.sql())
            .await?;
    Ok(rows.into_iter().collect())
}

/// The row of this meaning, made if it is new.
pub(crate) async fn save_meaning(connection: &mut Session, source: &Source) -> Result<i64, RegistryError> {
    let digest = source_digest(source);
    let known: Option<i64> = sqlx::query_scalar("SELECT meaning_id FROM source_meaning WHERE digest = $1")
        .bind(digest.as_bytes().as_slice())
        .fetch_optional(connection.sql())
        .await?;
    if let Some(meaning_id) = known {
        return Ok(meaning_id);
    }
    let (event_time_column, event_time_us) = match &source.event_time {
        EventTime::Column(name) => (Some(name), None),
        EventTime::Literal(us) => (None, Some(*us)),
    };
    let (known_at_column, known_after_us) = match &source.known_at {
        KnownAt::EventTime => (None, None),
        KnownAt::Column(name) => (Some(name), None),
        KnownAt::AfterUs(us) => (None, Some(*us)),
    };
    let meaning_id: i64 = sqlx::query_scalar(
        "INSERT INTO source_meaning (name, digest, format, filter, time_zone, event_time_column, event_time_us,
                                     known_at_column, known_after_us, event_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING meaning_id",
    )
    .bind(&source.name)
    .bind(digest.as_bytes().as_slice())
    .bind(written_json(source.origin.as_ref().map(|origin| &origin.format)))
    .bind(&source.filter)
    .bind(&source.time_zone)
    .bind(event_time_column)
    .bind(event_time_us)
    .bind(known_at_column)
    .bind(known_after_us)
    .bind(&source.event_id)
    .fetch_one(connection.sql())
    .await?;
    for (position, field) in (0_i64..).zip(&source.fields) {
        sqlx::query("INSERT INTO source_field (meaning_id, position, name, data_type) VALUES ($1, $2, $3, $4)")
            .bind(meaning_id)
            .bind(position)
            .bind(&field.name)
            .bind(field.data_type.to_string())
            .execute(connection.sql())
            .await?;
    }
    for (name, data_type) in &source.types {
        sqlx::query("INSERT INTO source_type (meaning_id, name, data_type) VALUES ($1, $2, $3)")
            .bind(meaning_id)
            .bind(name)
            .bind(data_type.to_string())
            .execute(connection.sql())
            .await?;
    }
    for (name, expression) in &source.columns {
        sqlx::query("INSERT INTO source_expression (meaning_id, name, expression) VALUES ($1, $2, $3)")
            .bind(meaning_id)
            .bind(name)
            .bind(expression)
            .execute(connection.sql())
            .await?;
    }
    Ok(meaning_id)
}

pub(crate) async fn save_source(
    connection: &mut Session,
    source: &Source,
    columns: &[SourceColumn],
) -> Result<(), RegistryError> {
    let meaning_id = save_meaning(connection, source).await?;
    let source_id: i64 = sqlx::query_scalar(
        "INSERT INTO source (name, meaning_id, place, push, max_ahead_us, doc, owner)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (name) DO UPDATE SET
             meaning_id = excluded.meaning_id, place = excluded.place,
             push = excluded.push, max_ahead_us = excluded.max_ahead_us, doc = excluded.doc, owner = excluded.owner
         RETURNING source_id",
    )
    .bind(&source.name)
    .bind(meaning_id)
    .bind(written_json(source.origin.as_ref().map(|origin| &origin.place)))
    .bind(i64::from(source.push))
    .bind(source.max_ahead_us)
    .bind(&source.about.doc)
    .bind(&source.about.owner)
    .fetch_one(connection.sql())
    .await?;
    sqlx::query("DELETE FROM source_column WHERE source_id = $1").bind(source_id).execute(connection.sql()).await?;
    for (position, column) in (0_i64..).zip(columns) {
        let (data_type, other_type) = match &column.column_type {
            ColumnType::Known(data_type) => (Some(data_type.to_string()), None),
            ColumnType::Other(name) => (None, Some(name.clone())),
        };
        sqlx::query(
            "INSERT INTO source_column (source_id, position, name, data_type, other_type) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(source_id)
        .bind(position)
        .bind(&column.name)
        .bind(data_type)
        .bind(other_type)
        .execute(connection.sql())
        .await?;
    }
    save_tags(connection, "source", &source.name, &source.about).await
}
