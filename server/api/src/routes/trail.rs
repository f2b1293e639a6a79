//! `/trail`

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use eadem_registry::{TrailEntry, TrailFilter, TrailHead};
use eadem_values::{format_timestamp, parse_timestamp};
use serde_json::{Value, json};

use super::query::RawQuery;
use crate::access::{By, Principal};
use crate::problem::Problem;
use crate::state::ApiState;

/// Entries of a page where the request does not say, and at most.
const LIMIT_DEFAULT: u32 = 100;
const LIMIT_MAX: u32 = 1_000;

/// `GET /trail`: the newest first; after a number, those that follow it, the oldest first.
pub(super) async fn list(State(state): State<Arc<ApiState>>, by: By, uri: Uri) -> Result<Json<Value>, Problem> {
    let filter = read_filter(uri.query())?;
    check_right(&state, &by.principal)?;
    let entries = state.registry.trail(&filter).await?;
    let head = state.registry.trail_head().await?;
    let entries = entries.iter().map(entry_json).collect::<Result<Vec<Value>, Problem>>()?;
    Ok(Json(json!({ "entries": entries, "head": head })))
}

/// `GET /trail/verification`
pub(super) async fn verify(State(state): State<Arc<ApiState>>, by: By, uri: Uri) -> Result<Json<Value>, Problem> {
    let query = RawQuery::parse(uri.query())?;
    query.check(&["head"], None)?;
    let known = query.get("head")?.map(|text| read_head(&text)).transpose()?;
    check_right(&state, &by.principal)?;
    let verdict = state.registry.verify_trail(known).await?;
    Ok(Json(json!(verdict)))
}

/// Each project has a trail of its own. That of the first one also tells what concerns all of them, so that nobody sees any of it
/// who may not see everything.
fn check_right(state: &ApiState, principal: &Principal) -> Result<(), Problem> {
    match state.is_main() {
        true => principal.require_all_projects("read the trail of all projects"),
        false => Ok(()),
    }
}

fn entry_json(entry: &TrailEntry) -> Result<Value, Problem> {
    let shown = serde_json::to_value(entry);
    let mut json = shown.map_err(|error| Problem::internal("the entry could not be shown", error))?;
    json["at"] = Value::from(format_timestamp(entry.at_us));
    Ok(json)
}

fn read_filter(query: Option<&str>) -> Result<TrailFilter, Problem> {
    let query = RawQuery::parse(query)?;
    query.check(&["since", "after", "limit"], None)?;
    let limit = query.number("limit", 1..=LIMIT_MAX)?.unwrap_or(LIMIT_DEFAULT);
    let after = query.number("after", 0..=i64::MAX.unsigned_abs())?;
    let since_us = match query.get("since")? {
        None => None,
        Some(text) => {
            let instant = parse_timestamp(&text);
            Some(instant.map_err(|error| Problem::bad_request("malformed_timestamp", format!("since: {error}")))?)
        }
    };
    Ok(TrailFilter { after: after.unwrap_or_default(), since_us, limit, newest_first: after.is_none() })
}

fn read_head(text: &str) -> Result<TrailHead, Problem> {
    let parts = text.split_once(':').and_then(|(sequence, hash)| Some((sequence.parse().ok()?, hash.parse().ok()?)));
    let detail = || format!("head is `{text}`; it is the number of an entry, a colon, and its hash (sha256:…)");
    let (sequence, hash) = parts.ok_or_else(|| Problem::bad_request("malformed_query", detail()))?;
    Ok(TrailHead { sequence, hash })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_with_its_limits() {
        let newest = TrailFilter { after: 0, since_us: None, limit: LIMIT_DEFAULT, newest_first: true };
        assert_eq!(read_filter(None).unwrap(), newest);
        let read = read_filter(Some("after=0&limit=1000&since=1970-01-01T00:00:01Z")).unwrap();
        assert_eq!(read, TrailFilter { after: 0, since_us: Some(1_000_000), limit: 1_000, newest_first: false });
        for (query, code) in [
            ("limit=0", "malformed_query"),
            ("limit=1001", "malformed_query"),
            ("after=-1", "malformed_query"),
            ("since=yesterday", "malformed_timestamp"),
            ("until=x", "unknown_parameter"),
        ] {
            assert_eq!(read_filter(Some(query)).unwrap_err().code, code, "{query}");
        }
    }

    #[test]
    fn an_end_is_a_number_and_a_hash() {
        let hash = format!("sha256:{}", "0".repeat(64));
        assert_eq!(read_head(&format!("7:{hash}")).unwrap().sequence, 7);
        for text in ["", "7", "7:", "x:sha256:00", &hash] {
            assert_eq!(read_head(text).unwrap_err().code, "malformed_query", "{text}");
        }
    }
}
