//! Errors as RFC 9457 problem documents: a stable code, what was wrong, and what to do.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

/// Where a component that is refused breaks what it has to keep.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Finding {
    /// The law: `row_by_row`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub law: Option<String>,
    /// The seed with which it is seen again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// The first row where it shows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row: Option<u32>,
    /// The input or output that is at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

/// A problem document. `docs/errors.md` has a paragraph for every code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    /// `urn:eadem:problem:<code>`.
    #[serde(rename = "type")]
    pub type_uri: Box<str>,
    /// The status's own text.
    pub title: Box<str>,
    /// The HTTP status.
    pub status: u16,
    /// Stable, for programs: `unknown_feature`.
    pub code: String,
    /// For people: what was wrong, where, and what to do.
    pub detail: String,
    /// Several mistakes, where one answer names them all.
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    pub errors: Box<[String]>,
    /// Seconds after which to try again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u32>,
    /// Of a refused component.
    #[serde(flatten)]
    pub finding: Box<Finding>,
    /// Whether the detail is for whoever asked alone.
    #[serde(skip)]
    is_untold: bool,
}

impl Problem {
    /// A problem of this status and code.
    pub fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        Self {
            type_uri: format!("urn:eadem:problem:{code}").into(),
            title: status.canonical_reason().unwrap_or("Error").into(),
            status: status.as_u16(),
            code: code.to_owned(),
            detail: detail.into(),
            errors: Box::default(),
            retry_after_s: None,
            finding: Box::default(),
            is_untold: false,
        }
    }

    /// 400: the request is not what the route takes.
    pub fn bad_request(code: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// 401: nobody knows who asks.
    pub fn unauthorized(code: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, code, detail)
    }

    /// 404: a name that nothing has.
    pub fn not_found(code: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    /// 409: the request meets another state than it expects.
    pub fn conflict(code: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, detail)
    }

    /// 422: well-formed, and refused.
    pub fn refused(code: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail)
    }

    /// 413: over a limit.
    pub fn too_large(code: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, code, detail)
    }

    /// 429 with `Retry-After`: somebody asks for more than is theirs.
    pub fn too_many(code: &str, detail: impl Into<String>, wait: Duration) -> Self {
        let seconds = u32::try_from(wait.as_secs() + 1).unwrap_or(u32::MAX);
        Self { retry_after_s: Some(seconds), ..Self::new(StatusCode::TOO_MANY_REQUESTS, code, detail) }
    }

    /// 503 with `Retry-After`: more is asked than can be done.
    pub fn overloaded(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail).retry_after(1)
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// Keeps the detail, which repeats what must not be kept, out of the trail: that has the code alone.
    #[must_use]
    pub(crate) fn untold(mut self) -> Self {
        self.is_untold = true;
        self
    }

    /// Says where a component breaks what it has to keep.
    #[must_use]
    pub fn with_finding(mut self, finding: Finding) -> Self {
        self.finding = Box::new(finding);
        self
    }

    /// 500: ours. The cause goes to the log too.
    pub fn internal(what: &str, cause: impl std::fmt::Display) -> Self {
        tracing::error!(%cause, "{what}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", format!("{what}: {cause}"))
    }

    /// Adds the single mistakes.
    #[must_use]
    pub fn with_errors(mut self, errors: impl IntoIterator<Item = String>) -> Self {
        self.errors = errors.into_iter().collect();
        self
    }
}

/// What was refused, for those that see only the answer. The detail is empty where it is not for them.
#[derive(Debug, Clone, Default)]
pub(crate) struct ProblemNote {
    pub(crate) code: String,
    pub(crate) detail: String,
}

/// What a 401 must say: how to ask. Details stand in the document.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"eadem\"");

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let retry_after = self.retry_after_s.map(HeaderValue::from);
        let content_type = (header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        let mut response = (status, [content_type], body).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(HeaderName::from_static("retry-after"), seconds);
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, CHALLENGE);
        }
        let detail = if self.is_untold { String::new() } else { self.detail };
        response.extensions_mut().insert(ProblemNote { code: self.code, detail });
        response
    }
}
