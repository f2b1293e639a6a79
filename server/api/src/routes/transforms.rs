//! `/transforms`: uploading and showing components.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use eadem_engine::{Accepted, UploadOptions, random_seed};
use eadem_registry::{Acceptance, TransformRecord};
use eadem_values::Digest;
use serde_json::{Value, json};

use super::body::read_body;
use super::query::RawQuery;
use super::registry_problem;
use super::versions::mark_json;
use crate::access::By;
use crate::problem::Problem;
use crate::state::ApiState;

/// What an uploader may ask for in the query string.
#[derive(Debug, PartialEq, Eq)]
struct UploadQuery {
    strict_nan: bool,
    seed: Option<u64>,
}

impl UploadQuery {
    fn parse(query: Option<&str>) -> Result<Self, Problem> {
        let query = RawQuery::parse(query)?;
        query.check(&["strict_nan", "seed"], None)?;
        let strict_nan = match query.get("strict_nan")?.as_deref() {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => {
                let detail = format!("strict_nan is `{other}`; it is `true` or `false`");
                return Err(Problem::bad_request("malformed_query", detail));
            }
        };
        let whole_number = |text: String| {
            let detail = format!("seed is `{text}`; it is a whole number from 0 to {}", u64::MAX);
            text.parse().map_err(|_| Problem::bad_request("malformed_query", detail))
        };
        Ok(Self { strict_nan, seed: query.get("seed")?.map(whole_number).transpose()? })
    }

    /// A verdict is made once for a digest: what has been computed with it must not change.
    fn check_known(&self, known: &TransformRecord) -> Result<(), Problem> {
        if !self.strict_nan || known.acceptance.strict_nan {
            return Ok(());
        }
        let detail = format!(
            "{} was accepted without canonical NaNs, and what was decided for a digest stays; change the component, if \
             only its documentation, and push it with strict_nan",
            known.digest
        );
        Err(Problem::conflict("conflict", detail))
    }
}

/// `POST /transforms`: a component's bytes. Idempotent by digest.
pub(super) async fn upload(
    State(state): State<Arc<ApiState>>,
    by: By,
    request: Request,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let query = UploadQuery::parse(request.uri().query())?;
    let component = read_body(request, &state).await?;
    let digest = Digest::of(&component);
    if let Ok(known) = state.registry.transform(&digest).await {
        query.check_known(&known)?;
        return Ok((StatusCode::OK, Json(transform_json(&known, false))));
    }
    let place = Arc::clone(&state.uploads).acquire_owned().await;
    let place = place.map_err(|error| Problem::internal("uploads are closed", error))?;
    let engine = state.engine.clone();
    let bytes = component.clone();
    let options = UploadOptions {
        strict_nan: query.strict_nan,
        seed: query.seed.unwrap_or_else(random_seed),
        ..UploadOptions::default()
    };
    let check = move || {
        // Held until the check is over, also when the client has gone.
        let _place = place;
        engine.accept(&bytes, &options)
    };
    let accepted = tokio::task::spawn_blocking(check)
        .await
        .map_err(|error| Problem::internal("the upload could not be checked", error))?;
    let accepted = accepted.map_err(|refusal| match refusal.blames_component() {
        true => Problem::refused(refusal.code(), format!("the component is refused: {refusal}")),
        false => Problem::internal("the component could not be checked", refusal),
    })?;
    let now_us = state.clock.now_us();
    let registry = state.registry_of(&by.actor);
    let stored = registry.put_transform(&component, &accepted.description, &acceptance(&accepted), now_us).await;
    let (_, is_new) = stored.map_err(|error| registry_problem(&error))?;
    let record = state.registry.transform(&digest).await.map_err(|error| registry_problem(&error))?;
    // Another upload of these bytes may have been faster, and its verdict is the one that stays.
    query.check_known(&record)?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(transform_json(&record, is_new))))
}

fn acceptance(accepted: &Accepted) -> Acceptance {
    let (evidence, cost) = (&accepted.evidence, &accepted.cost);
    let is_measured = cost.batch_rows > 0;
    let nanoseconds = |us: f64| is_measured.then_some((us * 1e3).round() as u64);
    Acceptance {
        strict_nan: accepted.strict_nan,
        laws_corpus: evidence.corpus_version,
        laws_seed: evidence.seed,
        laws_rows: u64::from(evidence.rows),
        fuel_per_row: is_measured.then_some(cost.fuel_per_row.round() as u64),
        nanoseconds_per_row: nanoseconds(cost.cpu_us_per_row),
        nanoseconds_per_call: nanoseconds(cost.cpu_us_per_call),
        memory_bytes: is_measured.then_some(cost.memory_bytes),
        measured_rows: is_measured.then_some(u64::from(cost.batch_rows)),
    }
}

pub(super) fn transform_json(record: &TransformRecord, is_new: bool) -> Value {
    json!({
        "name": record.description.name,
        "digest": record.digest,
        "is_new": is_new,
        "bytes": record.component_bytes,
        "uploaded_at": eadem_values::format_timestamp(record.uploaded_at_us),
        "state": mark_json(record.mark.as_ref()),
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use eadem_values::Description;

    use super::*;

    #[test]
    fn an_uploader_may_ask_for_canonical_nans_and_for_rows() {
        let parse = |query: &str| UploadQuery::parse(Some(query));
        assert_eq!(UploadQuery::parse(None).unwrap(), UploadQuery { strict_nan: false, seed: None });
        let both = UploadQuery { strict_nan: true, seed: Some(u64::MAX) };
        assert_eq!(parse("strict_nan=true&seed=18446744073709551615").unwrap(), both);
        for (query, code) in [
            ("strict_nan=yes", "malformed_query"),
            ("seed=-1", "malformed_query"),
            ("seed=", "malformed_query"),
            ("strict=true", "unknown_parameter"),
        ] {
            assert_eq!(parse(query).unwrap_err().code, code, "{query}");
        }
    }

    #[test]
    fn a_verdict_that_was_made_stays() {
        let known = |strict_nan: bool| TransformRecord {
            digest: Digest::of(b"component"),
            description: Arc::new(Description {
                name: "x".to_owned(),
                doc: String::new(),
                owner: String::new(),
                total: true,
                inputs: Vec::new(),
                outputs: Vec::new(),
            }),
            acceptance: Acceptance { strict_nan, ..Acceptance::default() },
            component_bytes: 9,
            uploaded_at_us: 0,
            mark: None,
        };
        let query = |strict_nan: bool| UploadQuery { strict_nan, seed: None };
        assert_eq!(query(false).check_known(&known(false)), Ok(()));
        // Who does not ask leaves it to the check.
        assert_eq!(query(false).check_known(&known(true)), Ok(()));
        assert_eq!(query(true).check_known(&known(true)), Ok(()));
        let problem = query(true).check_known(&known(false)).unwrap_err();
        assert_eq!((problem.status, problem.code.as_str()), (409, "conflict"));
    }
}
