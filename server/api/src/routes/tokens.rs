//! `/tokens`

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use eadem_registry::{NewToken, Role, TokenRecord};
use eadem_values::format_timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::JsonBody;
use crate::access::{By, Principal, new_secret};
use crate::problem::Problem;
use crate::state::ApiState;

/// A hundred years. Whoever wants more leaves it out.
pub(super) const EXPIRES_IN_S_MAX: u32 = 3_153_600_000;

/// The body of `POST /tokens`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewTokenBody {
    name: String,
    role: Role,
    #[serde(default)]
    project: Option<String>,
    #[serde(default)]
    expires_in_s: Option<u32>,
}

/// `POST /tokens`: the only answer that ever shows the token.
pub(super) async fn create(
    State(state): State<Arc<ApiState>>,
    by: By,
    JsonBody(body): JsonBody<NewTokenBody>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    // As long as a server is open, everybody on this machine could make the token that shuts out its owner.
    if matches!(by.principal, Principal::Open) {
        let detail = "the first token is made by whoever owns the project's directory: `eadem token create`";
        return Err(Problem::new(StatusCode::FORBIDDEN, "first_token", detail));
    }
    let project = project_of(&by.principal, body.project)?;
    let secret = new_secret()?;
    let now_us = state.clock.now_us();
    let expires_at_us = match body.expires_in_s {
        None => None,
        Some(seconds) if (1..=EXPIRES_IN_S_MAX).contains(&seconds) => Some(now_us + i64::from(seconds) * 1_000_000),
        Some(seconds) => {
            let detail = format!("expires_in_s is {seconds}; it is a whole number from 1 to {EXPIRES_IN_S_MAX}");
            return Err(Problem::bad_request("malformed_request", detail));
        }
    };
    let token = NewToken {
        id: secret.id,
        name: body.name,
        role: body.role,
        project,
        secret_hash: secret.secret_hash,
        expires_at_us,
    };
    let made = state.main_registry_of(&by.actor).create_token(&token, now_us).await?;
    state.credentials.refresh().await?;
    let mut json = token_json(&made, now_us);
    json["token"] = Value::from(secret.token);
    Ok((StatusCode::CREATED, Json(json)))
}

/// Whoever may act in one project makes tokens of that project.
fn project_of(principal: &Principal, asked: Option<String>) -> Result<Option<String>, Problem> {
    match (principal.project(), asked) {
        (None, asked) => Ok(asked),
        (Some(own), None) => Ok(Some(own.to_owned())),
        (Some(own), Some(asked)) if asked == own => Ok(Some(asked)),
        (Some(own), Some(asked)) => {
            let detail = format!("a token of the project `{own}` makes none of the project `{asked}`");
            Err(Problem::new(StatusCode::FORBIDDEN, "other_project", detail))
        }
    }
}

/// `GET /tokens`
pub(super) async fn list(State(state): State<Arc<ApiState>>, by: By) -> Result<Json<Value>, Problem> {
    let now_us = state.clock.now_us();
    let tokens = state.main_registry.tokens().await?;
    let visible = tokens.iter().filter(|token| is_visible(&by.principal, token));
    let tokens: Vec<Value> = visible.map(|token| token_json(token, now_us)).collect();
    Ok(Json(json!({ "tokens": tokens })))
}

/// `GET /tokens/{id}`
pub(super) async fn get(
    State(state): State<Arc<ApiState>>,
    by: By,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let token = visible_token(&state, &by, &id).await?;
    Ok(Json(token_json(&token, state.clock.now_us())))
}

/// `DELETE /tokens/{id}`
pub(super) async fn revoke(
    State(state): State<Arc<ApiState>>,
    by: By,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    visible_token(&state, &by, &id).await?;
    let now_us = state.clock.now_us();
    let revoked = state.main_registry_of(&by.actor).revoke_token(&id, now_us).await?;
    state.credentials.refresh().await?;
    Ok(Json(token_json(&revoked, now_us)))
}

fn is_visible(principal: &Principal, token: &TokenRecord) -> bool {
    principal.project().is_none_or(|own| token.project.as_deref() == Some(own))
}

/// A token of another project does not exist for whoever may act in one.
async fn visible_token(state: &ApiState, by: &By, id: &str) -> Result<TokenRecord, Problem> {
    let token = state.main_registry.token(id).await?;
    if is_visible(&by.principal, &token) {
        return Ok(token);
    }
    Err(Problem::not_found("unknown_token", format!("unknown token `{id}`; `eadem token list` shows all")))
}

fn token_json(token: &TokenRecord, now_us: i64) -> Value {
    let instant = |at_us: Option<i64>| at_us.map(format_timestamp);
    let state = match token.revoked_at_us {
        Some(_) => "revoked",
        None if token.is_valid_at(now_us) => "valid",
        None => "expired",
    };
    json!({
        "id": token.id,
        "name": token.name,
        "role": token.role,
        "project": token.project,
        "state": state,
        "created_at": format_timestamp(token.created_at_us),
        "created_by": token.created_by,
        "expires_at": instant(token.expires_at_us),
        "revoked_at": instant(token.revoked_at_us),
        "revoked_by": token.revoked_by,
        "last_used_at": instant(token.last_used_at_us),
    })
}
