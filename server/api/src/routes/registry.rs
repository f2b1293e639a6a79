//! `/registry`, `/lineage` and `/search`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::Uri;
use eadem_registry::definitions::{DefinitionFile, Definitions, split_version};
use eadem_registry::{
    Applied, DatasetRecord, LineageDirection, ObjectKind, Plan, RegistryError, SEARCH_LIMIT_MAX, Search,
};
use eadem_values::Digest;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::JsonBody;
use super::query::RawQuery;
use super::registry_problem;
use crate::access::By;
use crate::problem::Problem;
use crate::state::ApiState;

/// The body of `/registry/plan` and `/registry/apply`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DefinitionsBody {
    /// Every file of definitions; together they are the whole.
    files: Vec<DefinitionFile>,
    /// Transform as the definitions name it → digest in the registry.
    #[serde(default)]
    transforms: BTreeMap<String, Digest>,
    /// Apply only if the definitions are still at this revision.
    revision: Option<u64>,
}

pub(super) async fn plan(
    State(state): State<Arc<ApiState>>,
    JsonBody(body): JsonBody<DefinitionsBody>,
) -> Result<Json<Value>, Problem> {
    let plan = make_plan(&state, &body).await?;
    Ok(Json(plan_json(&plan)))
}

pub(super) async fn apply(
    State(state): State<Arc<ApiState>>,
    by: By,
    JsonBody(body): JsonBody<DefinitionsBody>,
) -> Result<Json<Value>, Problem> {
    let (plan, applied) = apply_plan(&state, &body, &by).await?;
    let revision = applied.definitions_revision;
    let mut json = plan_json(&plan);
    json["definitions_revision"] = Value::from(revision);
    json["text"] = Value::from(format!("{}\napplied; the registry is at revision {revision}", plan.report().summary()));
    Ok(Json(json))
}

/// Plans and applies. Who has named a revision has seen a plan, and gets that one or none; for others the plan is made
/// again where somebody was faster.
async fn apply_plan(state: &ApiState, body: &DefinitionsBody, by: &By) -> Result<(Plan, Applied), Problem> {
    const ATTEMPTS_MAX: u32 = 100;
    let registry = state.registry_of(&by.actor);
    let mut attempt = 1;
    loop {
        let plan = make_plan(state, body).await?;
        match registry.apply(&plan, state.clock.now_us()).await {
            Ok(applied) => return Ok((plan, applied)),
            Err(RegistryError::Stale { .. }) if body.revision.is_none() && attempt < ATTEMPTS_MAX => attempt += 1,
            Err(error) => return Err(registry_problem(&error)),
        }
    }
}

async fn make_plan(state: &ApiState, body: &DefinitionsBody) -> Result<Plan, Problem> {
    let definitions = Definitions::parse(&body.files, state.configuration_tables)
        .map_err(|errors| registry_problem(&errors.into()))?;
    let mut transforms = BTreeMap::new();
    for (reference, _) in definitions.transform_references() {
        if let Some(digest) = body.transforms.get(&reference.to_string()) {
            transforms.insert(reference.clone(), *digest);
        }
    }
    let plan = state.registry.plan(&definitions, &transforms, state.inspector.as_ref()).await;
    let plan = plan.map_err(|error| registry_problem(&error))?;
    if let Some(expected) = body.revision
        && expected != plan.definitions_revision()
    {
        let stale = state.registry.stale(expected, plan.definitions_revision()).await;
        return Err(registry_problem(&stale.unwrap_or_else(|error| error)));
    }
    Ok(plan)
}

fn plan_json(plan: &Plan) -> Value {
    let mut json = serde_json::to_value(plan.report()).unwrap_or_default();
    json["text"] = Value::from(plan.report().to_string());
    json
}

pub(super) async fn list(State(state): State<Arc<ApiState>>, Path(kind): Path<String>) -> Result<Json<Value>, Problem> {
    let registry = &state.registry;
    let listed = match kind.as_str() {
        "entities" => registry.entities().await.map(|objects| json!({ "entities": objects })),
        "sources" => registry.sources().await.map(|objects| json!({ "sources": objects })),
        "views" => registry.views().await.map(|objects| json!({ "views": objects })),
        "services" => registry.services().await.map(|objects| json!({ "services": objects })),
        _ => return Err(unknown_kind(&kind)),
    };
    listed.map(Json).map_err(|error| registry_problem(&error))
}

pub(super) async fn get(
    State(state): State<Arc<ApiState>>,
    Path((kind, name)): Path<(String, String)>,
) -> Result<Json<Value>, Problem> {
    let registry = &state.registry;
    let (bare, version) = split_version(&name).map_err(|error| registry_problem(&error))?;
    let object = match kind.as_str() {
        "entities" => registry.entity(&name).await.map(serde_json::to_value),
        "sources" => registry.source(&name).await.map(serde_json::to_value),
        "views" => registry.view(bare, version).await.map(|object| serde_json::to_value(object.as_ref())),
        "services" => registry.resolve_service(&name).await.map(serde_json::to_value),
        _ => return Err(unknown_kind(&kind)),
    };
    let object = object.map_err(|error| registry_problem(&error))?;
    object.map(Json).map_err(|error| Problem::internal("the object could not be shown", error))
}

fn unknown_kind(kind: &str) -> Problem {
    Problem::not_found("unknown_kind", format!("no kind `{kind}`; kinds are entities, sources, views, services"))
}

pub(super) async fn lineage(
    State(state): State<Arc<ApiState>>,
    Path((kind, name)): Path<(String, String)>,
    uri: Uri,
) -> Result<Json<Value>, Problem> {
    let query = RawQuery::parse(uri.query())?;
    query.check(&["direction"], None)?;
    let direction = query.get("direction")?.unwrap_or_else(|| "both".to_owned());
    let direction: LineageDirection = serde_json::from_value(Value::from(direction.as_str())).map_err(|_| {
        Problem::bad_request("unknown_parameter", format!("direction={direction}: it is upstream, downstream or both"))
    })?;
    let object_kind: ObjectKind = serde_json::from_value(Value::from(kind.as_str())).map_err(|_| {
        let kinds = "source, entity, transform, view, feature, service, dataset";
        Problem::not_found("unknown_kind", format!("no kind `{kind}`; kinds are {kinds}"))
    })?;
    let lineage = state.registry.lineage(object_kind, &name, direction).await;
    let lineage = lineage.map_err(|error| registry_problem(&error))?;
    let mut json =
        serde_json::to_value(&lineage).map_err(|error| Problem::internal("lineage could not be shown", error))?;
    json["text"] = Value::from(lineage.to_text());
    json["dot"] = Value::from(lineage.to_dot());
    Ok(Json(json))
}

pub(super) async fn search(State(state): State<Arc<ApiState>>, uri: Uri) -> Result<Json<Value>, Problem> {
    /// Hits of a search that does not say how many it wants.
    const LIMIT: usize = 20;
    let query = RawQuery::parse(uri.query())?;
    query.check(&["q", "kind", "limit"], None)?;
    let text = query.get("q")?.unwrap_or_default();
    let kinds = query.get("kind")?.unwrap_or_default();
    let kinds: Vec<String> = kinds.split(',').filter(|kind| !kind.is_empty()).map(str::to_owned).collect();
    let limit = match query.get("limit")? {
        None => LIMIT,
        Some(limit) => limit.parse().map_err(|_| {
            Problem::bad_request("malformed_query", format!("limit is `{limit}`; it is 1 to {SEARCH_LIMIT_MAX}"))
        })?,
    };
    let found = state.registry.search(&Search { text: &text, kinds: &kinds, limit }).await;
    let found = found.map_err(|error| registry_problem(&error))?;
    Ok(Json(json!({ "hits": found.hits, "is_cut": found.is_cut })))
}

pub(super) async fn datasets(State(state): State<Arc<ApiState>>) -> Result<Json<Value>, Problem> {
    let datasets = state.registry.datasets().await.map_err(|error| registry_problem(&error))?;
    let shortened = |dataset: &DatasetRecord| {
        let mut json = dataset_json(dataset)?;
        // Of each file and feature: `GET /datasets/{id}` has them.
        if let Some(fields) = json.as_object_mut() {
            fields.retain(|name, _| !matches!(name.as_str(), "recipe" | "report"));
        }
        Ok(json)
    };
    let datasets = datasets.iter().map(shortened).collect::<Result<Vec<_>, Problem>>()?;
    Ok(Json(json!({ "datasets": datasets })))
}

pub(super) async fn dataset(
    State(state): State<Arc<ApiState>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let dataset = state.registry.dataset(&id).await.map_err(|error| registry_problem(&error))?;
    let mut json = dataset_json(&dataset)?;
    let erased = state.registry.dataset_erased_by(&dataset.id).await.map_err(|error| registry_problem(&error))?;
    // Files that it was made of are gone: it cannot be made again.
    json["erased"] = match erased {
        Some((job, at_us)) => json!({ "job": job, "at": eadem_values::format_timestamp(at_us) }),
        None => Value::Null,
    };
    Ok(Json(json))
}

fn dataset_json(dataset: &DatasetRecord) -> Result<Value, Problem> {
    let shown = serde_json::to_value(dataset);
    let mut json = shown.map_err(|error| Problem::internal("the dataset could not be shown", error))?;
    json["created_at"] = Value::from(eadem_values::format_timestamp(dataset.created_at_us));
    Ok(json)
}

/// The code of a name that nothing has, by what was looked for.
pub(super) fn not_found_code(kind: ObjectKind) -> String {
    format!("unknown_{}", kind.as_str())
}
