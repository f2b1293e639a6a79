//! Refused rows, as the routes see them. The binary knows where they are.

use async_trait::async_trait;
use serde_json::Value as Json;

use crate::problem::Problem;

/// Which refused rows a list is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QuarantineQuery {
    /// Those that this job has refused.
    pub job: Option<String>,
    /// Those whose reason has this text in it.
    pub reason: Option<String>,
    /// Also those that a replay has settled, or that another job has refused again or loaded since.
    pub all: bool,
    /// At most this many.
    pub limit: usize,
    /// Where the page before ended.
    pub cursor: Option<String>,
}

/// Shows refused rows.
#[async_trait]
pub trait Quarantine: Send + Sync {
    /// For every view version that has refused a row: how many, by reason, and what replays have settled.
    ///
    /// # Errors
    /// A table that cannot be read.
    async fn summary(&self) -> Result<Json, Problem>;

    /// The refused rows of a view (`name` or `name@version`), newest jobs first.
    ///
    /// # Errors
    /// 404 for an unknown view, 400 for an on-demand view or a cursor that is none.
    async fn list(&self, view: &str, query: QuarantineQuery) -> Result<Json, Problem>;

    /// One refused row, with all that has become of it, and whether it can be replayed.
    ///
    /// # Errors
    /// 404 for an unknown view or row, 400 for an id that is none.
    async fn row(&self, view: &str, id: &str) -> Result<Json, Problem>;
}
