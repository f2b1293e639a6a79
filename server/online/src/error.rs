//! What can go wrong in a store.

use std::path::PathBuf;
use std::sync::Arc;

use crate::{KEY_BYTES_MAX, TableId, VALUE_BYTES_MAX};

/// Why a store did not do what was asked. After any of these, except [`StoreError::Failed`] on a write, nothing of the
/// call has happened.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No such epoch: never created, or dropped.
    #[error("online table {0} does not exist; materialize the view, or switch to an epoch that does")]
    UnknownTable(TableId),
    /// The epoch is still being loaded, so it answers no reads.
    #[error("online table {0} is still being loaded; read the epoch before it until the load has finished")]
    StillLoading(TableId),
    /// An entity key longer than a store can hold.
    #[error(
        "the encoded key of entity `{entity}` has {bytes} bytes, more than the limit of {KEY_BYTES_MAX}; shorten the join keys"
    )]
    KeyTooLong {
        /// The beginning of the key.
        entity: String,
        /// Its length.
        bytes: usize,
    },
    /// A packed row larger than a store can hold.
    #[error(
        "a packed row of entity `{entity}` has {bytes} bytes, more than the limit of {VALUE_BYTES_MAX}; split the view or \
         shorten its values"
    )]
    ValueTooLarge {
        /// The beginning of its key.
        entity: String,
        /// Its size.
        bytes: usize,
    },
    /// Another process owns the store's directory.
    #[error("{}", in_use_message(.path, *.pid, .address.as_deref()))]
    InUse {
        /// The store's directory.
        path: PathBuf,
        /// The process that holds it, where its lock file says so.
        pid: Option<u32>,
        /// Where its server listens, once it does.
        address: Option<String>,
    },
    /// The directory was written by a newer release.
    #[error(
        "{} has on-disk format {found}, and this release reads up to {supported}; use a newer release, or load a new directory",
        .path.display()
    )]
    FormatTooNew {
        /// The store's directory.
        path: PathBuf,
        /// The format found.
        found: u32,
        /// The newest format that this release reads.
        supported: u32,
    },
    /// The directory holds something else, or its files are damaged.
    #[error("{} is no online store: {what}", .path.display())]
    NotAStore {
        /// The file or directory.
        path: PathBuf,
        /// What was wrong with it.
        what: String,
    },
    /// A URL or option that cannot be used.
    #[error("the online store cannot be opened: {what}")]
    BadConfig {
        /// What is wrong with it. Never a password.
        what: String,
    },
    /// The keyspace is not there, or was not made for this store.
    #[error("{store} is no online store yet: {what}; `eadem online init` shows and applies the schema")]
    NoSchema {
        /// The store's address, without password.
        store: String,
        /// What is missing.
        what: String,
    },
    /// The keyspace was made by a newer release.
    #[error(
        "{store} has layout {found}, and this release reads up to {supported}; use a newer release, or load a new keyspace"
    )]
    LayoutTooNew {
        /// The store's address, without password.
        store: String,
        /// The layout found.
        found: u32,
        /// The newest layout that this release reads.
        supported: u32,
    },
    /// The store's disk or database failed. A write may or may not have happened; writing the same rows again is safe.
    #[error("{doing}: {source}")]
    Failed {
        /// What the store was doing, and where.
        doing: String,
        /// What it was told.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The store was closed while the call waited.
    #[error("the online store is closed")]
    Closed,
}

impl StoreError {
    /// A failure of disk or database, with what was being done.
    pub fn failed(doing: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Failed { doing: doing.into(), source: Arc::from(source.into()) }
    }
}

fn in_use_message(path: &std::path::Path, pid: Option<u32>, address: Option<&str>) -> String {
    let path = path.display();
    let owner = pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
    match address {
        Some(address) => format!("{path} is in use by {owner}, which serves at {address}; ask it there, or stop it"),
        None => format!("{path} is in use by {owner}; wait for it, or stop it"),
    }
}
