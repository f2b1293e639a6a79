//! What can go wrong offline.

use eadem_query::QueryError;
use eadem_values::ValueError;

use crate::ledger::LedgerError;
use crate::quarantine::RefusalCounts;
use crate::stop::StopThreshold;

/// Why an offline operation did not succeed. Whatever the error, nothing half-done is visible in a table.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OfflineError {
    /// A location that cannot be understood or reached.
    #[error("{location}: {reason}")]
    Location {
        /// As it was given.
        location: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that cannot be read: missing, cut short, not Parquet, changed during the job.
    #[error("{file}: {reason}")]
    File {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A column that is no input of the type that is asked for.
    #[error("{reason}")]
    Column {
        /// What it is, what is wanted and what to do.
        reason: String,
    },
    /// A source whose definition does not fit its files.
    #[error("source `{source_name}`, {field}: {reason}")]
    Source {
        /// The source.
        source_name: String,
        /// The field of the definition, such as `columns.landed_at`, `where` or `event_time`.
        field: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A view whose definition does not fit its source or its transform.
    #[error("view `{view}`, {field}: {reason}")]
    View {
        /// The view, with its version.
        view: String,
        /// The field of the definition, such as `bind.seats`.
        field: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A spine, or a dataset's definition, that cannot be used.
    #[error("{0}")]
    Dataset(String),
    /// A row stopped the job: a transform that cannot be run on it, or a constraint under `stop_job`.
    #[error("{file}, row {row}: {reason}")]
    Row {
        /// The file.
        file: String,
        /// The row's number in it, from 0.
        row: i64,
        /// Why.
        reason: String,
    },
    /// More rows were refused than the job may refuse. Nothing is visible but the refused rows, in quarantine.
    #[error(
        "{refused} of {rows} rows were refused, and more than a share of {share} stops the job: {counts}. Nothing was \
         committed; the refused rows are in quarantine: `eadem quarantine list {view} --job {job}`. Correct the source, or \
         start a new job with a greater share",
        share = .threshold.share(),
        counts = crate::quarantine::counts_text(.counts)
    )]
    TooManyRefused {
        /// The view, with its version.
        view: String,
        /// The job.
        job: String,
        /// Rows that were refused until the job stopped.
        refused: u64,
        /// Rows that were looked at until then.
        rows: u64,
        /// What the job may refuse.
        threshold: StopThreshold,
        /// The refused rows by reason.
        counts: RefusalCounts,
    },
    /// Two versions of a view that no rows can be run through, side by side.
    #[error("{0}")]
    NotComparable(String),
    /// A quarantine table that cannot be read as asked, or a replay that cannot go on.
    #[error("{0}")]
    Quarantine(String),
    /// The job was cancelled. Its chunks stay in the ledger; it can be resumed.
    #[error("cancelled; nothing was committed, and the job can be resumed")]
    Cancelled,
    /// A recipe that no longer yields what it did.
    #[error("the recipe cannot be followed: {0}")]
    Recipe(String),
    /// The job ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A step over columns.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// What is in use cannot be told, so nothing may be deleted.
    #[error("nothing was deleted, because it cannot be told what is in use: {0}")]
    InUse(String),
    /// A value.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// The object store.
    #[error("object store: {0}")]
    Store(#[from] object_store::Error),
    /// The table format.
    #[error("table {table}: {reason}")]
    Table {
        /// Location of the table.
        table: String,
        /// What the table library reports.
        reason: String,
    },
    /// A time or a commit at which a view's table held nothing, or that it does not know.
    #[error("{view}: {reason}")]
    NotStored {
        /// The view, with its version.
        view: String,
        /// Why, and what there is instead.
        reason: String,
    },
    /// A data file that a version of a table lists is gone.
    #[error("{view}: data file {file} is gone; it was vacuumed, or removed by hand: read a later commit")]
    Vacuumed {
        /// The view, with its version.
        view: String,
        /// The file, relative to the table.
        file: String,
    },
    /// The query engine.
    #[error("query: {0}")]
    DataFusion(#[source] datafusion::error::DataFusionError),
    /// The columnar library.
    #[error("columns: {0}")]
    Arrow(#[from] arrow_schema::ArrowError),
    /// The file format, while writing.
    #[error("parquet: {0}")]
    Parquet(#[from] parquet::errors::ParquetError),
    /// JSON of this crate's own making that cannot be read.
    #[error("{what}: {source}")]
    Json {
        /// What was read.
        what: &'static str,
        /// The parser's complaint.
        source: serde_json::Error,
    },
    /// A local file.
    #[error("{path}: {source}")]
    Io {
        /// The path.
        path: String,
        /// What the system reports.
        source: std::io::Error,
    },
    /// A task of the job broke off.
    #[error("a worker broke off: {0}")]
    Worker(String),
}

impl From<datafusion::error::DataFusionError> for OfflineError {
    /// An error of ours that went through the query engine comes out as it was.
    fn from(error: datafusion::error::DataFusionError) -> Self {
        match error {
            datafusion::error::DataFusionError::External(inner) => match inner.downcast::<Self>() {
                Ok(ours) => *ours,
                Err(inner) => Self::DataFusion(datafusion::error::DataFusionError::External(inner)),
            },
            error => Self::DataFusion(error),
        }
    }
}
