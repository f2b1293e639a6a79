//! The online store: rows by entity, read as of a time.
//!
//! [`OnlineStore`] is what the server, the materializer and the stream worker see. A store keeps rows as bytes with their
//! [`RowOrder`](eadem_semantics::RowOrder); what the bytes mean, how long a row may be served and which epoch is current
//! is other crates' business. [`EmbeddedStore`] is the default, in one directory and without a server; [`ScyllaStore`] is for
//! several servers, on ScyllaDB or Cassandra; [`MemoryStore`] forgets everything. Every store passes the one suite in [`conformance`].

mod backup;
mod cached;
pub mod conformance;
mod embedded;
mod error;
mod memory;
mod row;
pub mod scylla;
mod store;

pub use backup::{BackedUpTable, BackupError, BackupHeader, BackupPart, BackupReader, BackupWriter, Erasure};
pub use cached::{CacheRule, CacheUsage, CachedStore, Found, FoundRow};
pub use embedded::{DirectoryLock, EmbeddedOptions, EmbeddedStore, LockInfo};
pub use error::StoreError;
pub use memory::MemoryStore;
pub use row::{KEY_BYTES_MAX, KeyBytes, Origin, Row, RowBody, VALUE_BYTES_MAX};
pub use scylla::{ScyllaConfig, ScyllaStore};
pub use store::{
    Answer, Coverage, LoadState, Merged, OnlineStore, PointRead, Retention, ScanCursor, ScanPage, Span, TableId,
    TableSnapshot, TableStatus, Trim, Winner, scan_all,
};
