//! Where stored rows come from: the online store, and history for what it cannot prove.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use eadem_online::KeyBytes;
use eadem_query::RowTransform;
use eadem_registry::model::ViewVersion;
use eadem_semantics::{AsStored, ReadAt, RowOrder};
use eadem_values::{Digest, EntityKey};
use serde::{Deserialize, Serialize};

/// Which store proved an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    /// The online store alone.
    Online,
    /// The online store could not prove it; history was asked too.
    Offline,
}

impl Store {
    /// Online only if both are.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        if self == Self::Online { other } else { self }
    }
}

/// One stored row of a view, as a read finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRow {
    /// Its place among the rows of its entity.
    pub order: RowOrder,
    /// The canonical encoding of its features, or of its bound inputs for an `on_read` view.
    pub values: Bytes,
    /// Whether its transform failed on it: its values mean nothing.
    pub failed: bool,
}

/// What one read found.
#[derive(Debug, Clone)]
pub struct ReadRow {
    /// The winner.
    pub row: Option<StoredRow>,
    /// Which store proved it.
    pub store: Store,
    /// Whether it was in memory, and no store was asked.
    pub cached: bool,
    /// No store could say: the features have status `error`.
    pub unavailable: bool,
}

impl ReadRow {
    /// What the offline store found.
    pub const fn historic(row: Option<StoredRow>) -> Self {
        Self { row, store: Store::Offline, cached: false, unavailable: false }
    }
}

/// How rows are read for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadOptions {
    /// The time of the request, in microseconds.
    pub now_us: i64,
    /// From the stores, and not from what was kept of them in memory.
    pub fresh: bool,
}

/// Rows that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowSourceError {
    /// A store that does not answer, or not in time. The view fails alone.
    #[error("{store} store: {message}")]
    Unavailable {
        /// `online` or `offline`.
        store: &'static str,
        /// What went wrong.
        message: String,
    },
    /// They were not there by the deadline of the request. The view fails alone.
    #[error("its rows were not read before the deadline of the request (limits.request_ms_max, deadline_ms)")]
    Late,
    /// Nothing was stored at the time or commit that was asked for. The request fails.
    #[error("{0}")]
    NotStored(String),
    /// What was stored then is no longer there. The request fails.
    #[error("{0}")]
    Vacuumed(String),
    /// More reads of history than one request may cause. The request fails.
    #[error(
        "{reads} entities of {view} have to be looked up in the offline store, {why}; at most {reads_max} are, for one \
         request: send several requests, or make a training set of them"
    )]
    TooManyReads {
        /// `name@version`.
        view: String,
        /// How many.
        reads: usize,
        /// The limit.
        reads_max: usize,
        /// Why the online store does not answer.
        why: &'static str,
    },
}

impl RowSourceError {
    /// Whether the request is at fault, and fails as a whole.
    pub fn is_of_request(&self) -> bool {
        !matches!(self, Self::Unavailable { .. } | Self::Late)
    }
}

/// The entities of a request, as readers of rows need them.
#[derive(Debug, Clone, Default)]
pub struct EntityKeys {
    keys: Vec<EntityKey>,
    encoded: Vec<KeyBytes>,
}

impl EntityKeys {
    /// The keys themselves.
    pub fn keys(&self) -> &[EntityKey] {
        &self.keys
    }

    /// The same, encoded.
    pub fn encoded(&self) -> &[KeyBytes] {
        &self.encoded
    }

    /// Those at these positions.
    pub(crate) fn pick(&self, positions: &[usize]) -> Self {
        let keys = positions.iter().map(|at| self.keys[*at].clone()).collect();
        Self { keys, encoded: positions.iter().map(|at| self.encoded[*at].clone()).collect() }
    }
}

impl FromIterator<EntityKey> for EntityKeys {
    fn from_iter<I: IntoIterator<Item = EntityKey>>(keys: I) -> Self {
        let keys: Vec<EntityKey> = keys.into_iter().collect();
        let encoded = keys.iter().map(KeyBytes::from).collect();
        Self { keys, encoded }
    }
}

/// Finds the winner of each read.
#[async_trait]
pub trait RowSource: Send + Sync {
    /// One answer per key, in order; `reads` has one entry per key.
    ///
    /// # Errors
    /// A store that could not be read.
    async fn read(
        &self,
        view: &ViewVersion,
        keys: &EntityKeys,
        reads: &[ReadAt],
        options: ReadOptions,
    ) -> Result<Vec<ReadRow>, RowSourceError>;
}

/// Which state of an offline table is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryState {
    /// The newest.
    Newest,
    /// The answers are compared with online rows that were loaded from this commit: the newest, unless rows have been taken
    /// out of the table since. Then as this commit left it, because those rows may be among the online ones.
    Beside(u64),
    /// As this commit left it.
    Commit(u64),
}

/// The offline store, as far as a request needs it.
#[async_trait]
pub trait History: Send + Sync {
    /// The winner of each read in one state of the offline table of `view`, one answer per key.
    ///
    /// # Errors
    /// A table that could not be read, or not in time; a commit whose files are gone.
    async fn winners(
        &self,
        view: &ViewVersion,
        keys: &[EntityKey],
        reads: &[ReadAt],
        state: HistoryState,
    ) -> Result<Vec<Option<StoredRow>>, RowSourceError>;

    /// The commit of `view`'s offline table that was current then.
    ///
    /// # Errors
    /// Nothing was stored then; a table that could not be read.
    async fn commit(&self, view: &ViewVersion, as_stored: AsStored) -> Result<StoredCommit, RowSourceError>;
}

/// A commit of a view's offline table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredCommit {
    /// Its number.
    pub commit: u64,
    /// When it was made, in microseconds.
    pub committed_at_us: i64,
}

/// A transform that cannot be run on this host.
#[derive(Debug, Clone, thiserror::Error)]
#[error("transform {digest}: {message}")]
pub struct TransformUnavailable {
    /// Which.
    pub digest: Digest,
    /// Why.
    pub message: String,
}

/// Transforms by digest, ready to run in a request.
#[async_trait]
pub trait Transforms: Send + Sync {
    /// The transform.
    ///
    /// # Errors
    /// A component that the registry does not have, or that does not load.
    async fn load(&self, digest: &Digest) -> Result<Arc<dyn RowTransform>, TransformUnavailable>;
}
