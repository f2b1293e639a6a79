//! Long work, as the routes see it. The binary owns the jobs themselves.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use tokio::sync::watch;

use crate::problem::Problem;

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobKind {
    /// Compute views over history into the offline store.
    Backfill,
    /// Load the online store from the offline store.
    Materialize,
    /// Make a training set.
    Dataset,
    /// Put the small files of offline tables together.
    Compact,
    /// Delete files of the offline store that nothing needs.
    Vacuum,
    /// Try refused rows again.
    Replay,
}

/// How a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// At work.
    Running,
    /// Done.
    Succeeded,
    /// Broke off. Views that it had finished are visible, of the others nothing. It can be resumed.
    Failed,
    /// Called off, with the same in view as after a failure.
    Cancelled,
    /// Its process ended before it did. It can be resumed.
    Interrupted,
}

impl JobState {
    /// Whether nothing more will happen by itself.
    pub fn is_final(self) -> bool {
        self != Self::Running
    }
}

impl JobKind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Backfill, Self::Materialize, Self::Dataset, Self::Compact, Self::Vacuum, Self::Replay];

    /// As in paths.
    pub fn name(self) -> &'static str {
        match self {
            Self::Backfill => "backfill",
            Self::Materialize => "materialize",
            Self::Dataset => "dataset",
            Self::Compact => "compact",
            Self::Vacuum => "vacuum",
            Self::Replay => "replay",
        }
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// How far a job has come.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct JobProgress {
    /// Steps done.
    pub done: u64,
    /// Steps in all; 0 until known.
    pub total: u64,
    /// Rows read so far.
    pub rows: u64,
    /// Rows refused so far.
    pub refused: u64,
    /// Rows per second since the start.
    pub rows_per_s: f64,
    /// Which part is at work.
    pub message: String,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Unique.
    pub id: String,
    /// What it does.
    pub kind: JobKind,
    /// How it stands.
    pub state: JobState,
    /// What it was asked to do.
    pub spec: Json,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// How far it has come.
    pub progress: JobProgress,
    /// What came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Json>,
    /// Why it broke off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Starts, shows and ends jobs.
#[async_trait]
pub trait Jobs: Send + Sync {
    /// Checks the specification and starts.
    ///
    /// # Errors
    /// 4xx for a specification that is malformed or names what does not exist.
    async fn start(&self, kind: JobKind, spec: Json) -> Result<Job, Problem>;

    /// All jobs, newest first.
    ///
    /// # Errors
    /// A registry that cannot be read.
    async fn list(&self) -> Result<Vec<Job>, Problem>;

    /// One job.
    ///
    /// # Errors
    /// 404 if there is none of this id.
    async fn get(&self, id: &str) -> Result<Job, Problem>;

    /// Calls a job off. A job that has ended stays as it is.
    ///
    /// # Errors
    /// 404 if there is none of this id.
    async fn cancel(&self, id: &str) -> Result<Job, Problem>;

    /// Starts a job that failed, was interrupted or cancelled again where it stopped.
    ///
    /// # Errors
    /// 404 if there is none of this id, 409 if it is running or done.
    async fn resume(&self, id: &str) -> Result<Job, Problem>;

    /// Follows a job of this process.
    ///
    /// # Errors
    /// 404 if there is none of this id.
    async fn watch(&self, id: &str) -> Result<watch::Receiver<Job>, Problem>;
}
