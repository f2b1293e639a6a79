//! Long work, as the routes see it. The binary owns the jobs themselves.

use async_trait::async_trait;
use eadem_registry::Actor;
use eadem_values::format_timestamp;
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
    /// Copy the online store into a file.
    Backup,
    /// Load the online store from such a file.
    Restore,
    /// Take entities out of all stores, for good.
    Erase,
}

/// How a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// At work, in whichever process, or waiting for its turn.
    Running,
    /// Done.
    Succeeded,
    /// Broke off. Views that it had finished are visible, of the others nothing. It can be resumed.
    Failed,
    /// Called off, with the same in view as after a failure.
    Cancelled,
    /// Every process that was at it ended, or was not heard of for too long, before it did. It can be resumed.
    Interrupted,
}

impl JobState {
    /// All states.
    pub const ALL: [Self; 5] = [Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled, Self::Interrupted];

    /// Whether nothing more will happen by itself.
    pub fn is_final(self) -> bool {
        self != Self::Running
    }

    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        }
    }

    /// The state of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// Which jobs are listed.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// Only those in this state.
    pub state: Option<JobState>,
    /// Only those of this kind.
    pub kind: Option<JobKind>,
    /// At most so many, the newest.
    pub limit: Option<usize>,
}

impl JobKind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::Backfill,
        Self::Materialize,
        Self::Dataset,
        Self::Compact,
        Self::Vacuum,
        Self::Replay,
        Self::Backup,
        Self::Restore,
        Self::Erase,
    ];

    /// As in paths.
    pub fn name(self) -> &'static str {
        match self {
            Self::Backfill => "backfill",
            Self::Materialize => "materialize",
            Self::Dataset => "dataset",
            Self::Compact => "compact",
            Self::Vacuum => "vacuum",
            Self::Replay => "replay",
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::Erase => "erase",
        }
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// How far a job has come, by all processes that are at it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobProgress {
    /// Steps done: rows of a backfill, views of a materialize.
    pub done: u64,
    /// Steps in all; 0 until known.
    pub total: u64,
    /// Rows read so far.
    pub rows: u64,
    /// Rows refused so far.
    pub refused: u64,
    /// Rows per second, of all who are at work, each since it began.
    pub rows_per_s: f64,
    /// Seconds until it is done if it goes on like this; none where that cannot be known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<f64>,
    /// Chunks done.
    pub chunks_done: u64,
    /// Chunks in all; 0 until known, and for a job that is not cut up.
    pub chunks: u64,
    /// Processes that are at work.
    pub workers: u64,
    /// Memory that rows may take in each of them, in bytes; none for a job without a ceiling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes_max: Option<u64>,
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

impl Job {
    /// A job that begins now.
    pub fn begun(id: String, kind: JobKind, spec: Json, now_us: i64) -> Self {
        Self {
            id,
            kind,
            state: JobState::Running,
            spec,
            created_at: format_timestamp(now_us),
            finished_at: None,
            progress: JobProgress::default(),
            result: None,
            error: None,
        }
    }
}

/// Starts, shows and ends jobs.
#[async_trait]
pub trait Jobs: Send + Sync {
    /// Checks the specification and starts; the trail says who asked for it.
    ///
    /// # Errors
    /// 4xx for a specification that is malformed or names what does not exist.
    async fn start(&self, kind: JobKind, spec: Json, by: &Actor) -> Result<Job, Problem>;

    /// Jobs, newest first.
    ///
    /// # Errors
    /// A registry that cannot be read.
    async fn list(&self, filter: &JobFilter) -> Result<Vec<Job>, Problem>;

    /// One job.
    ///
    /// # Errors
    /// 404 if there is none of this id.
    async fn get(&self, id: &str) -> Result<Job, Problem>;

    /// Calls a job off, in whichever process it runs, and waits until it has ended. A job that has ended stays as it is.
    ///
    /// # Errors
    /// 404 if there is none of this id; 409 if its process ended while it made rows visible: whether they are, nobody knows
    /// until it is resumed.
    async fn cancel(&self, id: &str, by: &Actor) -> Result<Job, Problem>;

    /// Starts a job that failed, was interrupted or cancelled again where it stopped.
    ///
    /// # Errors
    /// 404 if there is none of this id, 409 if it is running or done.
    async fn resume(&self, id: &str, by: &Actor) -> Result<Job, Problem>;

    /// Follows a job, in whichever process it runs.
    ///
    /// # Errors
    /// 404 if there is none of this id.
    async fn watch(&self, id: &str) -> Result<watch::Receiver<Job>, Problem>;
}
