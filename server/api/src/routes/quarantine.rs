//! `/quarantine`

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::Uri;
use serde_json::Value;

use super::query::RawQuery;
use crate::problem::Problem;
use crate::quarantine::QuarantineQuery;
use crate::state::ApiState;

/// Rows of a page where the request does not say, and at most.
const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 1_000;

pub(super) async fn summary(State(state): State<Arc<ApiState>>) -> Result<Json<Value>, Problem> {
    state.quarantine.summary().await.map(Json)
}

pub(super) async fn list(
    State(state): State<Arc<ApiState>>,
    Path(view): Path<String>,
    uri: Uri,
) -> Result<Json<Value>, Problem> {
    let query = read_query(uri.query())?;
    state.quarantine.list(&view, query).await.map(Json)
}

pub(super) async fn row(
    State(state): State<Arc<ApiState>>,
    Path((view, id)): Path<(String, String)>,
) -> Result<Json<Value>, Problem> {
    state.quarantine.row(&view, &id).await.map(Json)
}

fn read_query(query: Option<&str>) -> Result<QuarantineQuery, Problem> {
    let query = RawQuery::parse(query)?;
    query.check(&["job", "reason", "all", "limit", "cursor"], None)?;
    let limit = query.number("limit", 1..=LIMIT_MAX)?.unwrap_or(LIMIT_DEFAULT);
    let all = query.flag("all")?;
    let not_empty = |text: Option<String>| text.filter(|text| !text.is_empty());
    Ok(QuarantineQuery {
        job: not_empty(query.get("job")?),
        reason: not_empty(query.get("reason")?),
        all,
        limit,
        cursor: not_empty(query.get("cursor")?),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_with_its_limits() {
        let read = |query: &str| read_query(Some(query));
        assert_eq!(read("").unwrap(), QuarantineQuery { limit: LIMIT_DEFAULT, ..QuarantineQuery::default() });
        let query = read("job=j&reason=is+null&all=true&limit=1000&cursor=1.2.3").unwrap();
        assert_eq!((query.job.as_deref(), query.reason.as_deref()), (Some("j"), Some("is null")));
        assert_eq!((query.all, query.limit, query.cursor.as_deref()), (true, 1_000, Some("1.2.3")));
        for (query, code) in [
            ("limit=0", "malformed_query"),
            ("limit=1001", "malformed_query"),
            ("all=yes", "malformed_query"),
            ("jobs=x", "unknown_parameter"),
            ("job=x&job=y", "repeated_parameter"),
        ] {
            assert_eq!(read(query).unwrap_err().code, code, "{query}");
        }
    }
}
