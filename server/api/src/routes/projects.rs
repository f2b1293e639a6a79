//! `/projects`

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use eadem_registry::{ProjectRecord, Quota};
use eadem_values::format_timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::JsonBody;
use crate::access::By;
use crate::problem::Problem;
use crate::state::ApiState;

/// Projects and what each may have are not a project's own business.
const CHANGE: &str = "change projects";

/// The body of `POST /projects`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewProjectBody {
    name: String,
}

/// `GET /projects`
pub(super) async fn list(State(state): State<Arc<ApiState>>, by: By) -> Result<Json<Value>, Problem> {
    let projects = state.main_registry.projects().await?;
    let is_visible = |project: &&ProjectRecord| by.principal.project().is_none_or(|own| own == project.name);
    let projects: Vec<Value> = projects.iter().filter(is_visible).map(project_json).collect();
    Ok(Json(json!({ "projects": projects })))
}

/// `POST /projects`
pub(super) async fn create(
    State(state): State<Arc<ApiState>>,
    by: By,
    JsonBody(body): JsonBody<NewProjectBody>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    by.principal.require_all_projects(CHANGE)?;
    let made = state.main_registry_of(&by.actor).create_project(&body.name, state.clock.now_us()).await?;
    state.credentials.refresh().await?;
    Ok((StatusCode::CREATED, Json(project_json(&made))))
}

/// `GET /projects/{name}`
pub(super) async fn get(
    State(state): State<Arc<ApiState>>,
    by: By,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    if by.principal.project().is_some_and(|own| own != name) {
        return Err(Problem::not_found("unknown_project", format!("unknown project `{name}`")));
    }
    let project = state.main_registry.project(&name).await?;
    Ok(Json(project_json(&project)))
}

/// `POST /projects/{name}/quotas`
pub(super) async fn set_quotas(
    State(state): State<Arc<ApiState>>,
    by: By,
    Path(name): Path<String>,
    JsonBody(quotas): JsonBody<BTreeMap<Quota, Option<u64>>>,
) -> Result<Json<Value>, Problem> {
    by.principal.require_all_projects(CHANGE)?;
    if let Some((quota, most)) = quotas.iter().find_map(|(quota, most)| Some((quota, (*most)?)))
        && i64::try_from(most).is_err()
    {
        let detail = format!("{} is {most}; it is a whole number up to {}", quota.name(), i64::MAX);
        return Err(Problem::bad_request("malformed_request", detail));
    }
    let now_us = state.clock.now_us();
    let project = state.main_registry_of(&by.actor).set_quotas(&name, &quotas, now_us).await?;
    state.credentials.refresh().await?;
    Ok(Json(project_json(&project)))
}

fn project_json(project: &ProjectRecord) -> Value {
    json!({
        "name": project.name,
        "created_at": format_timestamp(project.created_at_us),
        "quotas": project.quotas,
    })
}
