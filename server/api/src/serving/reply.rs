//! Answers as JSON and as Arrow.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{Field, Schema};
use eadem_query::status_dictionary;
use eadem_registry::model::{ResolvedService, ViewRef};
use eadem_semantics::Status;
use eadem_values::{DataType, KeyType, KeyValue, Value, array_from_values, format_timestamp, write_json};
use serde_json::{Map, Value as Json, json};

use super::as_stored::StoredThen;
use super::plan::ServingPlan;
use super::rows::StoredCommit;
use super::run::{Answer, EntityRows};
use crate::problem::Problem;

/// The media type of the Arrow IPC stream format.
pub(crate) const ARROW_STREAM: &str = "application/vnd.apache.arrow.stream";

/// Appends `features`, `timestamp`, and where there is something to say `status` and `metadata`, of one row: members of an
/// object of JSON that others have begun, without a comma before the first.
///
/// Text is written at once. Of a request for many features, trees of JSON would take most of the time.
pub(crate) fn write_row(
    text: &mut Vec<u8>,
    plan: &ServingPlan,
    answer: &Answer,
    row: usize,
    with_metadata: bool,
) -> Result<(), Problem> {
    text.extend_from_slice(b"\"features\":{");
    let mut is_all_present = true;
    for (number, (output, column)) in plan.outputs.iter().zip(&answer.columns).enumerate() {
        if number > 0 {
            text.push(b',');
        }
        text.extend_from_slice(&output.json_name);
        write_json(column.values.as_ref(), row, text)
            .map_err(|error| Problem::internal("a served value could not be read", error))?;
        is_all_present &= column.statuses[row] == Status::Present;
    }
    text.extend_from_slice(b"},\"timestamp\":\"");
    text.extend_from_slice(format_timestamp(answer.at_us[row]).as_bytes());
    text.push(b'"');
    if !is_all_present {
        text.extend_from_slice(b",\"status\":");
        write_value(text, &not_present(plan, answer, row))?;
    }
    if with_metadata {
        text.extend_from_slice(b",\"metadata\":");
        write_value(text, &row_metadata(plan, answer, row))?;
    }
    Ok(())
}

/// Appends a value as JSON.
pub(crate) fn write_value(text: &mut Vec<u8>, value: &Json) -> Result<(), Problem> {
    serde_json::to_writer(text, value).map_err(|error| Problem::internal("the answer could not be written", error))
}

/// The status of every feature that is not present.
fn not_present(plan: &ServingPlan, answer: &Answer, row: usize) -> Json {
    let statuses = plan.outputs.iter().zip(&answer.columns).map(|(output, column)| (output, column.statuses[row]));
    let absent = statuses.filter(|(_, status)| *status != Status::Present);
    Json::Object(absent.map(|(output, status)| (output.name.clone(), Json::from(status.name()))).collect())
}

/// The commit of each view that was read.
pub(crate) fn commits(stored: &StoredThen) -> Json {
    let commit = |(view, stored): (&ViewRef, &StoredCommit)| {
        let committed_at = format_timestamp(stored.committed_at_us);
        (view.to_string(), json!({ "commit": stored.commit, "committed_at": committed_at }))
    };
    Json::Object(stored.commits().iter().map(commit).collect())
}

fn row_metadata(plan: &ServingPlan, answer: &Answer, row: usize) -> Json {
    let mut metadata = Map::with_capacity(answer.columns.len());
    for (output, column) in plan.outputs.iter().zip(&answer.columns) {
        let view = plan.nodes[output.node].view();
        metadata.insert(
            output.name.clone(),
            json!({
                "status": column.statuses[row],
                "event_time": column.event_time_us[row].map(format_timestamp),
                "view": view.id.to_string(),
                "transform": view.transform,
                "store": column.stores[row],
            }),
        );
    }
    Json::Object(metadata)
}

/// The whole answer as one Arrow IPC stream: the keys by the service's names, `timestamp`, then each feature and its
/// `<feature>__status`.
pub(crate) fn arrow_stream(plan: &ServingPlan, rows: &EntityRows, answer: &Answer) -> Result<Vec<u8>, Problem> {
    let internal =
        |error: arrow_schema::ArrowError| Problem::internal("the answer could not be written as Arrow", error);
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    let mut add = |name: &str, column: ArrayRef| {
        fields.push(Field::new(name, column.data_type().clone(), true));
        columns.push(column);
    };
    for (name, column) in key_columns(&plan.service, rows)? {
        add(&name, column);
    }
    let instants: Vec<Value> = answer.at_us.iter().map(|at_us| Value::Timestamp(*at_us)).collect();
    let instants = array_from_values(DataType::Timestamp, &instants)
        .map_err(|error| Problem::internal("the answer could not be written as Arrow", error))?;
    add("timestamp", instants);
    for (output, column) in plan.outputs.iter().zip(&answer.columns) {
        add(&output.name, Arc::clone(&column.values));
        add(&format!("{}__status", output.name), status_dictionary(&column.statuses));
    }
    let schema = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns).map_err(internal)?;
    let mut writer = arrow_ipc::writer::StreamWriter::try_new(Vec::new(), &schema).map_err(internal)?;
    writer.write(&batch).map_err(internal)?;
    writer.into_inner().map_err(internal)
}

/// Each key once: a role and another entity's join key may share a name, and then a request gives both with one value.
fn key_columns(service: &ResolvedService, rows: &EntityRows) -> Result<Vec<(String, ArrayRef)>, Problem> {
    let column = |(key, values): (&eadem_registry::model::RequiredKey, &Vec<KeyValue>)| {
        let as_value = |value: &KeyValue| match value {
            KeyValue::Utf8(text) => Value::Utf8(text.clone()),
            KeyValue::Int64(number) => Value::Int64(*number),
        };
        let data_type = match key.key_type {
            KeyType::Utf8 => DataType::Utf8,
            KeyType::Int64 => DataType::Int64,
        };
        let values: Vec<Value> = values.iter().map(as_value).collect();
        array_from_values(data_type, &values)
            .map(|column| (key.name.clone(), column))
            .map_err(|error| Problem::internal("keys could not be written as Arrow", error))
    };
    let is_first = |at: usize| !service.keys[..at].iter().any(|earlier| earlier.name == service.keys[at].name);
    let keys = service.keys.iter().zip(&rows.keys).enumerate();
    keys.filter(|(at, _)| is_first(*at)).map(|(_, key)| column(key)).collect()
}

/// Whether a client that sends this `Accept` header wants Arrow.
pub(crate) fn accepts_arrow(accept: Option<&str>) -> bool {
    accept.is_some_and(|accept| {
        accept.split(',').any(|part| part.split(';').next().is_some_and(|media| media.trim() == ARROW_STREAM))
    })
}

/// The entity of a row as the caller named it.
pub(crate) fn entity_json(service: &ResolvedService, rows: &EntityRows, row: usize) -> Json {
    let entry = |(key, values): (&eadem_registry::model::RequiredKey, &Vec<KeyValue>)| {
        (key.name.clone(), values[row].to_json())
    };
    Json::Object(service.keys.iter().zip(&rows.keys).map(entry).collect())
}
