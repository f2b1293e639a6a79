//! What happens to versions once they are there: `deprecate`, `retire`, and the description of an object.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::Uri;
use eadem_registry::definitions::split_version;
use eadem_registry::{Described, LifecycleChange, LifecycleState, Mark, ObjectKind};
use eadem_values::{Digest, format_timestamp};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::body::{body_of, parse_json};
use super::query::RawQuery;
use super::registry::not_found_code;
use super::transforms::transform_json;
use crate::access::By;
use crate::problem::Problem;
use crate::state::ApiState;

/// The body of `POST /registry/{kind}/{name}/{deprecate|retire}`; it may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MarkBody {
    /// What to do instead, for those who still use it.
    message: String,
    /// Take the mark away.
    undo: bool,
}

/// `POST /registry/{kind}/{name}/{deprecate|retire}`
pub(super) async fn mark(
    State(state): State<Arc<ApiState>>,
    by: By,
    Path((kind, name, action)): Path<(String, String, String)>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let bytes = body_of(request).await?;
    let body: MarkBody = match bytes.is_empty() {
        true => MarkBody::default(),
        false => parse_json(&bytes)?,
    };
    let kind = match kind.as_str() {
        "transforms" => ObjectKind::Transform,
        "views" => ObjectKind::View,
        "services" => ObjectKind::Service,
        _ => {
            let detail = format!("no kind `{kind}` has versions; kinds are transforms, views, services");
            return Err(Problem::not_found("unknown_kind", detail));
        }
    };
    let mark_as = match action.as_str() {
        "deprecate" => LifecycleState::Deprecated,
        "retire" => LifecycleState::Retired,
        _ => {
            let detail = format!("nothing at …/{action}; a version can be sent to `deprecate` or `retire`");
            return Err(Problem::not_found("unknown_route", detail));
        }
    };
    let message = body.message.trim().to_owned();
    let change = match body.undo {
        false => LifecycleChange::Mark(mark_as, message),
        true if message.is_empty() => LifecycleChange::Undo(mark_as),
        true => {
            let detail = "`undo` takes a mark away, message and all; leave the message out";
            return Err(Problem::bad_request("malformed_request", detail));
        }
    };
    let marked = state.registry_of(&by.actor).mark(kind, &name, &change, state.clock.now_us()).await?;
    let mut text = String::new();
    for version in &marked.versions {
        let now = match (&marked.mark, mark_as) {
            (Some(mark), _) => mark.text(),
            (None, state) => format!("no longer {state}"),
        };
        let _infallible = writeln!(text, "{kind} {version}: {now}");
    }
    if mark_as == LifecycleState::Retired && !body.undo && kind == ObjectKind::View {
        text.push_str("its offline and online tables are kept; `--undo` brings it back\n");
    }
    for warning in &marked.warnings {
        let _infallible = writeln!(text, "! {warning}");
    }
    let mut json = as_json(&marked)?;
    json["text"] = Value::from(text);
    Ok(Json(json))
}

fn as_json(value: &impl serde::Serialize) -> Result<Value, Problem> {
    serde_json::to_value(value).map_err(|error| Problem::internal("the reply could not be written", error))
}

/// `GET /registry/{kind}/{name}`: the object, and all that is known of it.
pub(super) async fn get(
    State(state): State<Arc<ApiState>>,
    Path((kind, name)): Path<(String, String)>,
    uri: Uri,
) -> Result<Json<Value>, Problem> {
    let query = RawQuery::parse(uri.query())?;
    query.check(&["include"], None)?;
    let with_tables = match query.get("include")?.as_deref() {
        None => false,
        Some("tables") => true,
        Some(other) => {
            let detail = format!("include={other}: only `tables` can be included");
            return Err(Problem::bad_request("unknown_parameter", detail));
        }
    };
    let registry = &state.registry;
    let (object_kind, object) = match kind.as_str() {
        "entities" => (ObjectKind::Entity, as_json(&registry.entity(&name).await?)?),
        "sources" => {
            let mut source = as_json(&registry.source(&name).await?)?;
            source["schema"] = as_json(&registry.source_columns(&name).await?)?;
            (ObjectKind::Source, source)
        }
        "views" => (ObjectKind::View, view_json(&state, &name, with_tables).await?),
        "services" => (ObjectKind::Service, as_json(&registry.resolve_service(&name).await?)?),
        "transforms" => (ObjectKind::Transform, uploads_json(&state, &name).await?),
        "features" => (ObjectKind::Feature, feature_json(&state, &name).await?),
        _ => {
            let detail =
                format!("no kind `{kind}`; kinds are entities, sources, transforms, views, features, services");
            return Err(Problem::not_found("unknown_kind", detail));
        }
    };
    if with_tables && object_kind != ObjectKind::View {
        let detail = "include=tables: only views have tables";
        return Err(Problem::bad_request("unknown_parameter", detail));
    }
    let described = registry.describe(object_kind, &name).await?;
    let text = description_text(object_kind, &object, &described);
    let mut json = object;
    if let (Some(fields), Value::Object(known)) = (json.as_object_mut(), as_json(&described)?) {
        fields.extend(known);
        fields.insert("text".to_owned(), Value::from(text));
    }
    Ok(Json(json))
}

async fn view_json(state: &ApiState, name: &str, with_tables: bool) -> Result<Value, Problem> {
    let (bare, version) = split_version(name)?;
    let view = state.registry.view(bare, version).await?;
    let mut json = as_json(view.as_ref())?;
    let transform = state.registry.transform(&view.transform).await?;
    json["cost"] = cost_json(&transform.acceptance);
    if with_tables {
        json["tables"] = state.status.view_tables(&view).await?;
    }
    Ok(json)
}

/// A feature of the view version that the name stands for.
async fn feature_json(state: &ApiState, name: &str) -> Result<Value, Problem> {
    let resolved = state.registry.resolve_features(&[name.to_owned()], None).await?;
    let found = resolved.entries.first().and_then(|entry| Some((entry, resolved.views.get(&entry.view)?)));
    let (entry, view) = found.ok_or_else(|| Problem::internal("the feature could not be shown", name))?;
    Ok(json!({
        "name": format!("{}:{}", view.id, entry.feature),
        "view": view.id,
        "field": view.feature(&entry.feature),
        "transform": view.transform,
        "default": view.defaults.get(&entry.feature).map(eadem_values::value_to_json),
        "bounds": view.bounds.get(&entry.feature),
        "about": view.about,
    }))
}

/// What a row costs, as it was measured when the component was uploaded.
fn cost_json(acceptance: &eadem_registry::Acceptance) -> Value {
    json!({
        "fuel_per_row": acceptance.fuel_per_row,
        "cpu_us_per_row": acceptance.nanoseconds_per_row.map(|nanoseconds| nanoseconds as f64 / 1e3),
        "cpu_us_per_call": acceptance.nanoseconds_per_call.map(|nanoseconds| nanoseconds as f64 / 1e3),
        "memory_bytes": acceptance.memory_bytes,
    })
}

/// The components that a name stands for: all of it, or the one of a digest.
async fn uploads_json(state: &ApiState, name: &str) -> Result<Value, Problem> {
    let (bare, digest) = match name.split_once('@') {
        Some((bare, digest)) => (Some(bare), Some(digest)),
        None if name.parse::<Digest>().is_ok() => (None, Some(name)),
        None => (Some(name), None),
    };
    let unknown = || Problem::not_found(&not_found_code(ObjectKind::Transform), format!("unknown transform `{name}`"));
    let mut records = match digest {
        None => state.registry.transforms(bare).await?,
        Some(digest) => {
            let digest: Digest =
                digest.parse().map_err(|error| Problem::bad_request("malformed_digest", format!("{error}")))?;
            vec![state.registry.transform(&digest).await?]
        }
    };
    records.retain(|record| bare.is_none_or(|bare| bare == record.description.name));
    let newest = records.first().ok_or_else(unknown)?;
    let name = newest.description.name.clone();
    let uploads: Vec<Value> = records.iter().map(|record| transform_json(record, false)).collect();
    Ok(json!({ "name": name, "uploads": uploads }))
}

fn time(at_us: i64) -> String {
    format_timestamp(at_us)
}

fn mark_text(mark: &Mark) -> String {
    format!("{} (since {})", mark.text(), time(mark.at_us))
}

/// The description for people.
fn description_text(kind: ObjectKind, object: &Value, described: &Described) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        if !value.is_empty() {
            let _infallible = writeln!(text, "{label:<14}{value}");
        }
    };
    let name = object["name"].as_str().unwrap_or_default();
    let version = object["version"].as_u64().map(|version| format!("@{version}")).unwrap_or_default();
    line(kind.as_str(), &format!("{name}{version}"));
    let about = &object["about"];
    line("doc", about["doc"].as_str().unwrap_or_default());
    line("owner", about["owner"].as_str().unwrap_or_default());
    line("tags", &texts(&about["tags"]).join(", "));
    if let Some(mark) = &described.state {
        line("state", &mark_text(mark));
    }
    match kind {
        ObjectKind::Entity => line("keys", &named(&object["keys"], "name", "key_type").join(", ")),
        ObjectKind::Source => {
            let columns = named(&object["schema"], "name", "column_type");
            line("columns", &columns.join(", "));
        }
        ObjectKind::View => view_lines(object, &mut line),
        ObjectKind::Feature => {
            let field = &object["field"];
            let null = if field["nullable"] == true { "" } else { " not null" };
            line("type", &format!("{}{null}", plain(&field["data_type"])));
            line("means", field["doc"].as_str().unwrap_or_default());
            line("transform", &plain(&object["transform"]));
            if !object["default"].is_null() {
                line("default", &object["default"].to_string());
            }
        }
        ObjectKind::Service => {
            line("digest", object["digest"].as_str().unwrap_or_default());
            for entry in object["entries"].as_array().into_iter().flatten() {
                let role = entry["role"].as_str().map(|role| format!(" for {role}")).unwrap_or_default();
                let view = &entry["view"];
                let (output, feature) = (plain(&entry["output_name"]), plain(&entry["feature"]));
                let from = format!("{}@{}:{feature}{role}", plain(&view["name"]), view["version"]);
                line("feature", &format!("{output} {}  from {from}", plain(&entry["data_type"])));
            }
            line("keys", &named(&object["keys"], "name", "key_type").join(", "));
            line("request", &named(&object["request_fields"], "name", "data_type").join(", "));
        }
        ObjectKind::Transform => {
            for upload in object["uploads"].as_array().into_iter().flatten() {
                let (digest, at) = (plain(&upload["digest"]), plain(&upload["uploaded_at"]));
                line("upload", &format!("{digest}, {at}, {} bytes", upload["bytes"]));
            }
        }
        _ => {}
    }
    if kind != ObjectKind::Transform {
        for version in &described.versions {
            let newest = if version.is_newest { ", the newest" } else { "" };
            let mark = version.state.as_ref().map(|mark| format!(", {}", mark.text())).unwrap_or_default();
            line("version", &format!("{}, made {}{newest}{mark}", version.version, time(version.created_at_us)));
        }
    }
    for user in &described.used_by {
        line("used by", user);
    }
    for training_set in &described.training_sets {
        line("training set", training_set);
    }
    for entry in &described.history {
        let accepted = entry.accepted.as_ref().map(|reason| format!("; effect accepted: {reason}")).unwrap_or_default();
        let (at, revision) = (time(entry.at_us), entry.definitions_revision);
        let by = entry.by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
        line("history", &format!("{at}, revision {revision}{by}: {}{accepted}", entry.action));
    }
    text
}

fn view_lines(object: &Value, line: &mut impl FnMut(&str, &str)) {
    line("digest", &plain(&object["digest"]));
    let description = &object["description"];
    line("transform", &format!("{} {}", plain(&description["name"]), plain(&object["transform"])));
    let stored = &object["stored"];
    match stored.is_null() {
        true => line("computed", "on demand"),
        false => {
            line("entity", &plain(&stored["entity"]["name"]));
            line("source", &plain(&stored["source"]["name"]));
            let ttl = stored["ttl_us"].as_i64().map_or_else(|| "none".to_owned(), eadem_values::format_duration);
            line("ttl", &ttl);
            let deployment = &stored["deployment"];
            let next = deployment["next_placement"].as_str();
            let next = next.map(|next| format!(", until it is switched to {next}")).unwrap_or_default();
            line("placement", &format!("{}{next}", plain(&deployment["placement"])));
        }
    }
    for output in description["outputs"].as_array().into_iter().flatten() {
        let null = if output["nullable"] == true { "" } else { " not null" };
        let doc =
            output["doc"].as_str().filter(|doc| !doc.is_empty()).map(|doc| format!("  {doc}")).unwrap_or_default();
        line("feature", &format!("{} {}{null}{doc}", plain(&output["name"]), plain(&output["data_type"])));
    }
    let cost = &object["cost"];
    if let (Some(fuel), Some(cpu_us)) = (cost["fuel_per_row"].as_u64(), cost["cpu_us_per_row"].as_f64()) {
        line("cost", &format!("{fuel} fuel and {cpu_us} µs of CPU per row when it was uploaded"));
    }
    let tables = &object["tables"];
    if tables.is_null() {
        return;
    }
    match tables["offline"].as_object() {
        Some(offline) => line(
            "offline",
            &format!(
                "commit {}, {} rows in {} files, {} bytes",
                offline["commit"], offline["rows"], offline["files"], offline["bytes"]
            ),
        ),
        None => line("offline", "nothing was backfilled"),
    }
    for table in tables["online"].as_array().into_iter().flatten() {
        let rows = &table["rows"];
        line("online", &format!("epoch {}, {}, {rows} rows", table["epoch"], plain(&table["state"])));
    }
}

/// A text as it is, everything else as JSON.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().map(plain).collect()
}

/// `name type` of each.
fn named(list: &Value, name: &str, data_type: &str) -> Vec<String> {
    let type_of = |value: &Value| match value {
        Value::Object(fields) => fields.values().next().map(plain).unwrap_or_default(),
        other => plain(other),
    };
    let text = |item: &Value| format!("{} {}", plain(&item[name]), type_of(&item[data_type]));
    list.as_array().into_iter().flatten().map(text).collect()
}

/// A mark as lists show it.
pub(super) fn mark_json(mark: Option<&Mark>) -> Value {
    let Some(mark) = mark else { return Value::Null };
    let mut fields = Map::new();
    fields.insert("state".to_owned(), Value::from(mark.state.as_str()));
    fields.insert("message".to_owned(), Value::from(mark.message.as_str()));
    fields.insert("at".to_owned(), Value::from(time(mark.at_us)));
    Value::Object(fields)
}
