//! Answers as JSON and as Arrow.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{Field, Schema};
use eadem_query::status_dictionary;
use eadem_registry::model::{ResolvedService, ViewRef};
use eadem_semantics::Status;
use eadem_values::{DataType, JsonColumn, KeyType, KeyValue, Value, array_from_values, format_timestamp};
use serde_json::{Map, Value as Json, json};

use super::as_stored::StoredThen;
use super::plan::{Node, ServingPlan};
use super::rows::StoredCommit;
use super::run::{Answer, AnsweredNode, EntityRows};
use crate::clock::as_us;
use crate::problem::Problem;

/// The media type of the Arrow IPC stream format.
pub(crate) const ARROW_STREAM: &str = "application/vnd.apache.arrow.stream";

/// What a reply says beside values and statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Include {
    /// Nothing.
    Values,
    /// Where every value comes from.
    Metadata,
    /// That, every row that was read, and the time that it took.
    Explanation,
}

/// Writes the rows of an answer as JSON.
///
/// Text is written at once. Of a request for many features, trees of JSON would take most of the time.
pub(crate) struct RowWriter<'a> {
    plan: &'a ServingPlan,
    answer: &'a Answer,
    columns: Vec<JsonColumn<'a>>,
    include: Include,
    /// The time that was written last: mostly all rows have the same.
    timestamp: (i64, String),
}

impl<'a> RowWriter<'a> {
    pub(crate) fn new(plan: &'a ServingPlan, answer: &'a Answer, include: Include) -> Result<Self, Problem> {
        let columns = answer.columns.iter().map(|column| JsonColumn::try_new(&column.values)).collect::<Result<_, _>>();
        let columns = columns.map_err(|error| Problem::internal("a served column could not be read", error))?;
        let at_us = answer.at_us.first().copied().unwrap_or_default();
        Ok(Self { plan, answer, columns, include, timestamp: (at_us, format_timestamp(at_us)) })
    }

    /// Appends `features`, `timestamp`, and where there is something to say `status`, `metadata` and `explanation`, of one
    /// row: members of an object of JSON that others have begun, without a comma before the first.
    pub(crate) fn write(&mut self, text: &mut Vec<u8>, row: usize) -> Result<(), Problem> {
        text.extend_from_slice(b"\"features\":{");
        let mut is_all_present = true;
        let answered = self.answer.columns.iter().zip(&self.columns);
        for (number, (output, (column, json))) in self.plan.outputs.iter().zip(answered).enumerate() {
            if number > 0 {
                text.push(b',');
            }
            text.extend_from_slice(&output.json_name);
            json.write(row, text).map_err(|error| Problem::internal("a served value could not be read", error))?;
            is_all_present &= column.statuses[row] == Status::Present;
        }
        let at_us = self.answer.at_us[row];
        if self.timestamp.0 != at_us {
            self.timestamp = (at_us, format_timestamp(at_us));
        }
        text.extend_from_slice(b"},\"timestamp\":\"");
        text.extend_from_slice(self.timestamp.1.as_bytes());
        text.push(b'"');
        if !is_all_present {
            text.extend_from_slice(b",\"status\":");
            write_value(text, &not_present(self.plan, self.answer, row))?;
        }
        if self.include != Include::Values {
            text.extend_from_slice(b",\"metadata\":");
            write_value(text, &row_metadata(self.plan, self.answer, row))?;
        }
        if self.include == Include::Explanation {
            text.extend_from_slice(b",\"rows\":");
            write_value(text, &rows_read(self.plan, self.answer, row))?;
        }
        Ok(())
    }
}

/// Appends a value as JSON.
pub(crate) fn write_value(text: &mut Vec<u8>, value: &impl serde::Serialize) -> Result<(), Problem> {
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
                "event_time": column.rows.event_time_us(row).map(format_timestamp),
                "view": view.id.to_string(),
                "transform": view.transform,
                "store": column.rows.stores[row],
            }),
        );
    }
    Json::Object(metadata)
}

/// Every row that one row of the request was answered from, view by view, and where it was.
fn rows_read(plan: &ServingPlan, answer: &Answer, row: usize) -> Json {
    let read = |(node, answered): (&Node, &AnsweredNode)| {
        let Node::Stored(stored) = node else { return None };
        let keys = stored.keys.iter().map(|key| plan.service.keys[*key].name.as_str()).collect::<Vec<_>>();
        let order = answered.rows.orders[row];
        Some(json!({
            "view": stored.view.id.to_string(),
            "view_digest": stored.view.digest,
            "keys": keys,
            "event_time": order.map(|order| format_timestamp(order.event_time_us)),
            "known_at": order.map(|order| format_timestamp(order.known_at_us)),
            "tie": order.map(|order| order.tie.hex()),
            "store": answered.rows.stores[row],
            "from": if answered.rows.cached[row] { "cache" } else { "store" },
        }))
    };
    plan.nodes.iter().zip(&answer.nodes).filter_map(read).collect()
}

/// How long the parts of a request took, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Took {
    pub(crate) parse_us: u64,
    pub(crate) serve_us: u64,
}

/// Where the time of a request went.
pub(crate) fn timing(plan: &ServingPlan, answer: &Answer, took: Took) -> Json {
    let view = |(node, answered): (&Node, &AnsweredNode)| {
        let read_us = matches!(node, Node::Stored(_)).then_some(as_us(answered.read.took));
        json!({
            "view": node.view().id.to_string(),
            "read_us": read_us,
            "compute_us": as_us(answered.computed_in),
            "late": answered.is_late,
        })
    };
    let views: Vec<Json> = plan.nodes.iter().zip(&answer.nodes).map(view).collect();
    json!({ "parse_us": took.parse_us, "serve_us": took.serve_us, "views": views })
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

/// Appends the entity of a row as the caller named it.
pub(crate) fn write_entity(
    text: &mut Vec<u8>,
    service: &ResolvedService,
    rows: &EntityRows,
    row: usize,
) -> Result<(), Problem> {
    // Two keys of one name have one value.
    let is_first = |at: &usize| !service.keys[..*at].iter().any(|earlier| earlier.name == service.keys[*at].name);
    text.push(b'{');
    for (number, at) in (0..service.keys.len()).filter(is_first).enumerate() {
        if number > 0 {
            text.push(b',');
        }
        write_value(text, &service.keys[at].name)?;
        text.push(b':');
        match &rows.keys[at][row] {
            KeyValue::Utf8(key) => write_value(text, key)?,
            KeyValue::Int64(key) => write_value(text, key)?,
        }
    }
    text.push(b'}');
    Ok(())
}
