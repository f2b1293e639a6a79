//! From JSON and query strings to the rows of a request, checked against what the service needs.

use std::borrow::Cow;

use arrow_array::ArrayRef;
use axum::http::StatusCode;
use eadem_registry::model::{RequestField, RequiredKey, ResolvedService};
use eadem_values::{
    DataType, EntityKey, KeyType, KeyValue, Value, array_from_values, canonicalize, parse_timestamp, value_from_json,
};
use serde_json::Value as Json;

use super::run::EntityRows;
use crate::limits::Limits;
use crate::problem::Problem;

/// The members of an object of a request, as they were sent. Of two with one name the last one counts.
#[derive(Debug, Default)]
pub(crate) struct Members<'a>(Vec<(Cow<'a, str>, Json)>);

impl<'a> Members<'a> {
    pub(crate) fn put(&mut self, name: Cow<'a, str>, value: Json) {
        self.0.push((name, value));
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Json> {
        self.0.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| &**name)
    }
}

/// Reads the entities of a batch request: one object per row, with exactly the keys that the service needs.
///
/// # Errors
/// 400 for a missing, unknown, null or mistyped key, 422 for one that is too long; the message names row and key.
pub(crate) fn entity_keys(
    service: &ResolvedService,
    entities: &[Members<'_>],
    limits: &Limits,
) -> Result<Vec<Vec<KeyValue>>, Problem> {
    for (row, entity) in entities.iter().enumerate() {
        let unknown = entity.names().find(|name| !service.keys.iter().any(|key| key.name == *name));
        if let Some(name) = unknown {
            let detail = format!(
                "entities[{row}] has the key `{name}`, which nothing asked for needs; {}",
                needs(&service.keys)
            );
            return Err(Problem::bad_request("unknown_key", detail));
        }
    }
    service.keys.iter().map(|key| key_column(key, service, entities, limits)).collect()
}

fn key_column(
    key: &RequiredKey,
    service: &ResolvedService,
    entities: &[Members<'_>],
    limits: &Limits,
) -> Result<Vec<KeyValue>, Problem> {
    let mut column = Vec::with_capacity(entities.len());
    for (row, entity) in entities.iter().enumerate() {
        let Some(json) = entity.get(&key.name) else {
            let detail = format!("entities[{row}] lacks the key `{}`; {}", key.name, needs(&service.keys));
            return Err(Problem::bad_request("missing_key", detail));
        };
        let value = KeyValue::from_json(&key.name, key.key_type, json)
            .map_err(|error| Problem::bad_request("malformed_key", format!("entities[{row}]: {error}")))?;
        check_key_length(&key.name, &value, limits.key_bytes_max_in_body)?;
        column.push(value);
    }
    Ok(column)
}

fn needs(keys: &[RequiredKey]) -> String {
    if keys.is_empty() {
        return "it needs no key: send {}".to_owned();
    }
    let names = keys.iter().map(|key| format!("`{}` ({})", key.name, key.key_type)).collect::<Vec<_>>();
    format!("it needs {}", names.join(", "))
}

pub(crate) fn check_key_length(name: &str, value: &KeyValue, bytes_max: usize) -> Result<(), Problem> {
    match value {
        KeyValue::Utf8(text) if text.len() > bytes_max => Err(Problem::refused(
            "key_too_long",
            format!("key `{name}` has {} bytes; at most {bytes_max} are taken here", text.len()),
        )),
        _ => Ok(()),
    }
}

/// The keys of a GET request, in the entity's order.
///
/// # Errors
/// 400 for another number of keys or text that is no key, 422 for one that is too long.
pub(crate) fn path_key(keys: &[(String, KeyType)], segment: &str, limits: &Limits) -> Result<EntityKey, Problem> {
    if segment.len() > limits.key_bytes_max_in_path {
        let detail = format!(
            "the entity id has {} bytes; at most {} are taken in a path: use POST /features/batch",
            segment.len(),
            limits.key_bytes_max_in_path
        );
        return Err(Problem::new(StatusCode::URI_TOO_LONG, "key_too_long", detail));
    }
    EntityKey::parse_path(keys, segment).map_err(|error| Problem::bad_request("malformed_key", error.to_string()))
}

/// The request fields of a batch as columns in canonical form.
///
/// # Errors
/// 400 for an unknown field, a missing one that may not be null, a value of another type; the message names row and field.
pub(crate) fn request_columns(
    service: &ResolvedService,
    request: &[Members<'_>],
    rows: usize,
) -> Result<Vec<ArrayRef>, Problem> {
    for (row, fields) in request.iter().enumerate() {
        let unknown = fields.names().find(|name| !service.request_fields.iter().any(|field| field.name == *name));
        if let Some(name) = unknown {
            let known: Vec<&str> = service.request_fields.iter().map(|field| field.name.as_str()).collect();
            let detail = if known.is_empty() {
                format!("request[{row}] has the field `{name}`, but nothing asked for reads the request")
            } else {
                format!("request[{row}] has the unknown field `{name}`; known are {}", known.join(", "))
            };
            return Err(Problem::bad_request("unknown_request_field", detail));
        }
    }
    service.request_fields.iter().map(|field| request_column(field, request, rows)).collect()
}

fn request_column(field: &RequestField, request: &[Members<'_>], rows: usize) -> Result<ArrayRef, Problem> {
    let mut values = Vec::with_capacity(rows);
    for row in 0..rows {
        let json = request.get(row).and_then(|fields| fields.get(&field.name));
        let value = match json {
            None if field.nullable => Value::Null,
            None => {
                let detail = format!(
                    "request[{row}] lacks the field `{}` ({}); send it, or null if it is not known",
                    field.name, field.data_type
                );
                return Err(Problem::bad_request("missing_request_field", detail));
            }
            Some(json) => value_from_json(field.data_type, json).map_err(|error| {
                Problem::bad_request("malformed_request_field", format!("request[{row}].{}: {error}", field.name))
            })?,
        };
        values.push(value);
    }
    let column = array_from_values(field.data_type, &values).and_then(|column| canonicalize(&column));
    column.map_err(|error| Problem::bad_request("malformed_request_field", format!("request.{}: {error}", field.name)))
}

/// A request field as text in a query string: JSON where it is JSON of the right type, else the text itself.
pub(crate) fn request_field_from_text(field: &RequestField, text: &str) -> Result<Json, Problem> {
    if field.data_type == DataType::Utf8 {
        return Ok(Json::from(text));
    }
    let as_json = serde_json::from_str::<Json>(text).ok().filter(|json| value_from_json(field.data_type, json).is_ok());
    let as_text = || Some(Json::from(text)).filter(|json| value_from_json(field.data_type, json).is_ok());
    as_json.or_else(as_text).ok_or_else(|| {
        let detail = format!("request.{} must be {}, found `{text}`", field.name, field.data_type);
        Problem::bad_request("malformed_request_field", detail)
    })
}

/// The times of the rows: `timestamps` one each, `timestamp` for all, else now.
///
/// # Errors
/// 400 for both at once, another number of them, or text that is no RFC 3339.
pub(crate) fn row_times(
    timestamp: Option<&str>,
    timestamps: Option<&[Cow<'_, str>]>,
    rows: usize,
    now_us: i64,
) -> Result<Vec<i64>, Problem> {
    let parse = |text: &str| {
        parse_timestamp(text).map_err(|error| Problem::bad_request("malformed_timestamp", error.to_string()))
    };
    match (timestamp, timestamps) {
        (Some(_), Some(_)) => {
            Err(Problem::bad_request("malformed_timestamp", "send either `timestamp` or `timestamps`, not both"))
        }
        (Some(text), None) => Ok(vec![parse(text)?; rows]),
        (None, Some(texts)) if texts.len() == rows => texts.iter().map(|text| parse(text)).collect(),
        (None, Some(texts)) => Err(Problem::bad_request(
            "malformed_timestamp",
            format!("`timestamps` has {} entries for {rows} entities; send one for each", texts.len()),
        )),
        (None, None) => Ok(vec![now_us; rows]),
    }
}

/// 413 for more entities than the limit.
pub(crate) fn too_many_entities(entities: usize, limits: &Limits) -> Problem {
    let detail =
        format!("{entities} entities in one request; at most {} are taken: send several requests", limits.entities_max);
    Problem::too_large("too_many_entities", detail)
}

/// Puts the parts of a batch request together.
///
/// # Errors
/// As its parts, and 400 where `request` has another number of entries.
pub(crate) fn entity_rows(
    service: &ResolvedService,
    entities: &[Members<'_>],
    request: &[Members<'_>],
    at_us: Vec<i64>,
    limits: &Limits,
) -> Result<EntityRows, Problem> {
    if !request.is_empty() && request.len() != entities.len() {
        let detail =
            format!("`request` has {} entries for {} entities; send one for each", request.len(), entities.len());
        return Err(Problem::bad_request("malformed_request", detail));
    }
    Ok(EntityRows {
        keys: entity_keys(service, entities, limits)?,
        request: request_columns(service, request, entities.len())?,
        at_us,
    })
}
