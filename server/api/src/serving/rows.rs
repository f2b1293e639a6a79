//! Where stored rows come from: the online store, and history for what it cannot prove.

use std::sync::Arc;

use async_trait::async_trait;
use eadem_query::RowTransform;
use eadem_registry::model::ViewVersion;
use eadem_semantics::{ReadAt, RowOrder};
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
    pub values: Vec<u8>,
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
    /// No store could say: the features have status `error`.
    pub unavailable: bool,
}

/// Rows that could not be read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{store} store: {message}")]
pub struct RowSourceError {
    /// `online` or `offline`.
    pub store: &'static str,
    /// What went wrong.
    pub message: String,
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
        keys: &[EntityKey],
        reads: &[ReadAt],
    ) -> Result<Vec<ReadRow>, RowSourceError>;
}

/// The offline store, as far as a request needs it.
#[async_trait]
pub trait History: Send + Sync {
    /// The winner of each read in the offline table of `view`, one answer per key. `beside` is the offline commit that the
    /// online rows were loaded from with which the answers are compared: if rows have been taken out of the table since,
    /// it is read as it was at that commit. Otherwise, and without online rows, it is read as it is now.
    ///
    /// # Errors
    /// A table that could not be read.
    async fn winners(
        &self,
        view: &ViewVersion,
        keys: &[EntityKey],
        reads: &[ReadAt],
        beside: Option<u64>,
    ) -> Result<Vec<Option<StoredRow>>, RowSourceError>;
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
