//! `/transforms`: uploading and showing components.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use eadem_registry::Acceptance;
use eadem_values::Digest;
use serde_json::{Value, json};

use super::body::read_body;
use super::registry_problem;
use crate::problem::Problem;
use crate::state::ApiState;

/// `POST /transforms`: a component's bytes. Idempotent by digest.
pub(super) async fn upload(
    State(state): State<Arc<ApiState>>,
    request: Request,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let component = read_body(request, &state).await?;
    let digest = Digest::of(&component);
    if let Ok(known) = state.registry.transform(&digest).await {
        return Ok((StatusCode::OK, Json(transform_json(&known, false))));
    }
    let place = Arc::clone(&state.uploads).acquire_owned().await;
    let place = place.map_err(|error| Problem::internal("uploads are closed", error))?;
    let engine = state.engine.clone();
    let bytes = component.clone();
    let check = move || {
        // Held until the check is over, also when the client has gone.
        let _place = place;
        engine.accept(&bytes, &eadem_engine::UploadOptions::default())
    };
    let accepted = tokio::task::spawn_blocking(check)
        .await
        .map_err(|error| Problem::internal("the upload could not be checked", error))?;
    let accepted = accepted.map_err(|refusal| match refusal.blames_component() {
        true => Problem::refused(refusal.code(), format!("the component is refused: {refusal}")),
        false => Problem::internal("the component could not be checked", refusal),
    })?;
    let acceptance = Acceptance {
        strict_nan: accepted.strict_nan,
        laws_seed: accepted.evidence.seed,
        laws_rows: u64::from(accepted.evidence.rows),
        fuel_per_row: Some(accepted.cost.fuel_per_row.round() as u64),
        nanoseconds_per_row: Some((accepted.cost.cpu_us_per_row * 1e3).round() as u64),
        memory_bytes: Some(accepted.cost.memory_bytes),
    };
    let now_us = state.clock.now_us();
    let stored = state.registry.put_transform(&component, &accepted.description, &acceptance, now_us).await;
    stored.map_err(|error| registry_problem(&error))?;
    let record = state.registry.transform(&digest).await.map_err(|error| registry_problem(&error))?;
    Ok((StatusCode::CREATED, Json(transform_json(&record, true))))
}

fn transform_json(record: &eadem_registry::TransformRecord, is_new: bool) -> Value {
    json!({
        "name": record.description.name,
        "digest": record.digest,
        "is_new": is_new,
        "bytes": record.component_bytes,
        "uploaded_at": eadem_values::format_timestamp(record.uploaded_at_us),
        "acceptance": record.acceptance,
        "description": record.description,
    })
}

/// `GET /transforms`
pub(super) async fn list(State(state): State<Arc<ApiState>>) -> Result<Json<Value>, Problem> {
    let transforms = state.registry.transforms(None).await.map_err(|error| registry_problem(&error))?;
    let transforms: Vec<Value> = transforms.iter().map(|record| transform_json(record, false)).collect();
    Ok(Json(json!({ "transforms": transforms })))
}

/// `GET /transforms/{name}`
pub(super) async fn by_name(
    State(state): State<Arc<ApiState>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    let transforms = state.registry.transforms(Some(&name)).await.map_err(|error| registry_problem(&error))?;
    if transforms.is_empty() {
        return Err(Problem::not_found("unknown_transform", format!("no transform is called `{name}`")));
    }
    let transforms: Vec<Value> = transforms.iter().map(|record| transform_json(record, false)).collect();
    Ok(Json(json!({ "transforms": transforms })))
}

/// `GET /transforms/{name}/{digest}`
pub(super) async fn by_digest(
    State(state): State<Arc<ApiState>>,
    Path((name, digest)): Path<(String, String)>,
) -> Result<Json<Value>, Problem> {
    let digest: Digest =
        digest.parse().map_err(|error| Problem::bad_request("malformed_digest", format!("{error}")))?;
    let record = state.registry.transform(&digest).await.map_err(|error| registry_problem(&error))?;
    if record.description.name != name {
        let detail = format!("{digest} is called `{}`, not `{name}`", record.description.name);
        return Err(Problem::not_found("unknown_transform", detail));
    }
    Ok(Json(transform_json(&record, false)))
}
