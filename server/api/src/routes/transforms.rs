//! `/transforms`: uploading and showing components.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use eadem_engine::Accepted;
use eadem_registry::{Acceptance, TransformRecord};
use eadem_values::Digest;
use serde_json::{Value, json};

use super::query::RawQuery;
use super::versions::mark_json;
use crate::access::By;
use crate::problem::Problem;
use crate::state::ApiState;
use crate::uploads::Wish;

/// What an uploader may ask for in the query string.
#[derive(Debug, PartialEq, Eq)]
struct UploadQuery {
    wish: Wish,
    /// Everything but storing.
    dry_run: bool,
}

impl UploadQuery {
    fn parse(query: Option<&str>) -> Result<Self, Problem> {
        let query = RawQuery::parse(query)?;
        query.check(&["strict_nan", "seed", "dry_run"], None)?;
        let wish = Wish { strict_nan: query.flag("strict_nan")?, seed: query.number("seed", 0..=u64::MAX)? };
        Ok(Self { wish, dry_run: query.flag("dry_run")? })
    }

    /// A verdict is made once for a digest: what has been computed with it must not change.
    fn check_known(&self, known: &TransformRecord) -> Result<(), Problem> {
        if !self.wish.strict_nan || known.acceptance.strict_nan {
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
    let (received, _place) = state.uploads.receive(request).await?;
    let digest = received.digest;
    if let Ok(known) = state.registry.transform(&digest).await {
        query.check_known(&known)?;
        return Ok((StatusCode::OK, Json(reply_json(&known, false, &query))));
    }
    let registry = state.registry_of(&by.actor);
    registry.check_upload(received.bytes as u64).await?;
    let checked = state.uploads.check(&received, query.wish, &state.metrics).await?;
    let accepted = &checked.accepted;
    let now_us = state.clock.now_us();
    if query.dry_run {
        let would_be = TransformRecord {
            digest,
            description: Arc::new(accepted.description.clone()),
            acceptance: acceptance(accepted),
            component_bytes: accepted.component_bytes,
            uploaded_at_us: now_us,
            mark: None,
        };
        return Ok((StatusCode::OK, Json(reply_json(&would_be, true, &query))));
    }
    state.uploads.keep(Arc::clone(&checked)).await?;
    let component = received.read().await?;
    let stored = registry.put_transform(&component, &accepted.description, &acceptance(accepted), now_us).await;
    let (_, is_new) = stored?;
    let record = state.registry.transform(&digest).await?;
    // Another upload of these bytes may have been faster, and its verdict is the one that stays.
    query.check_known(&record)?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(reply_json(&record, is_new, &query))))
}

/// What the uploader gets; after a dry run it says so.
fn reply_json(record: &TransformRecord, is_new: bool, query: &UploadQuery) -> Value {
    let mut reply = transform_json(record, is_new);
    if query.dry_run {
        reply["dry_run"] = json!(true);
        // Nothing was uploaded.
        if is_new && let Some(reply) = reply.as_object_mut() {
            reply.remove("uploaded_at");
        }
    }
    reply
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
    let transforms = state.registry.transforms(None).await?;
    let transforms: Vec<Value> = transforms.iter().map(|record| transform_json(record, false)).collect();
    Ok(Json(json!({ "transforms": transforms })))
}

/// `GET /transforms/{name}`
pub(super) async fn by_name(
    State(state): State<Arc<ApiState>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    let transforms = state.registry.transforms(Some(&name)).await?;
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
    let record = state.registry.transform(&digest).await?;
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
        let nothing = UploadQuery { wish: Wish { strict_nan: false, seed: None }, dry_run: false };
        assert_eq!(UploadQuery::parse(None).unwrap(), nothing);
        let all = UploadQuery { wish: Wish { strict_nan: true, seed: Some(u64::MAX) }, dry_run: true };
        assert_eq!(parse("strict_nan=true&seed=18446744073709551615&dry_run=true").unwrap(), all);
        for (query, code) in [
            ("strict_nan=yes", "malformed_query"),
            ("dry_run=1", "malformed_query"),
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
        let query = |strict_nan: bool| UploadQuery { wish: Wish { strict_nan, seed: None }, dry_run: false };
        assert_eq!(query(false).check_known(&known(false)), Ok(()));
        // Who does not ask leaves it to the check.
        assert_eq!(query(false).check_known(&known(true)), Ok(()));
        assert_eq!(query(true).check_known(&known(true)), Ok(()));
        let problem = query(true).check_known(&known(false)).unwrap_err();
        assert_eq!((problem.status, problem.code.as_str()), (409, "conflict"));
    }
}
