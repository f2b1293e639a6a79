//! The job ledger: what a job has planned and done, kept where a crash does not reach it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use arrow_schema::Schema;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::lanes::LaneName;
use crate::quarantine::RefusalCounts;
use crate::source::CursorValue;

/// A ledger that could not answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("job ledger: {0}")]
pub struct LedgerError(pub String);

/// What a job is going to do. Made once; a resumed job follows the plan it finds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobPlan {
    /// `name@version` of the view.
    pub view: String,
    /// The digest of the view version: a plan is only followed for the very version it was made for.
    pub view_digest: String,
    /// The job's creation, in microseconds: the arrival of all its rows.
    pub created_at_us: i64,
    /// Only rows with an event time in `[from, to)`, in microseconds.
    pub range_us: Option<(i64, i64)>,
    /// The columns of the source over all of its files, as they were when the job was planned.
    pub schema: Schema,
    /// The files to read.
    pub files: Vec<PlannedFile>,
    /// The work, in order.
    pub chunks: Vec<PlannedChunk>,
    /// Files that an earlier job has loaded, by path.
    pub already_loaded: Vec<String>,
    /// Files that were loaded once and are no longer there, by path. Their rows stay.
    pub vanished: Vec<String>,
    /// Files that were loaded and have changed since, or have another name: those rows go when this job is committed, or are
    /// those of the other name.
    #[serde(default)]
    pub replaced: Vec<ReplacedFile>,
    /// Whether the rows of the range that the table holds of files that are there are computed anew.
    #[serde(default)]
    pub recompute: bool,
    /// Whether these files are all that the source holds, whatever was loaded before: the rows of others go.
    #[serde(default)]
    pub is_whole_source: bool,
    /// How far an event time may lie after the job's creation, in microseconds; `None`: as the view's source says now.
    #[serde(default)]
    pub max_ahead_us: Option<i64>,
}

/// A file that was loaded and has changed since, or is gone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ReplacedFile {
    /// Relative to the source's location.
    pub path: String,
    /// The digest that it was loaded with.
    pub digest: String,
    /// Another file that has that content now: the rows stay, as its.
    pub kept_as: Option<String>,
}

impl ReplacedFile {
    pub(crate) fn name(&self) -> LaneName {
        LaneName { path: self.path.clone(), digest: self.digest.clone() }
    }
}

impl JobPlan {
    /// Whether there is anything to commit: rows that come or go, or files that have another name.
    pub(crate) fn changes_table(&self) -> bool {
        !self.files.is_empty() || !self.replaced.is_empty()
    }

    /// The files that have changed since they were loaded and whose old content no other file has, by path.
    pub(crate) fn files_replaced(&self) -> Vec<String> {
        let changed = self.replaced.iter().filter(|replaced| replaced.kept_as.is_none());
        let mut paths: Vec<String> = changed.map(|replaced| replaced.path.clone()).collect();
        paths.dedup();
        paths
    }

    /// The paths under which contents were loaded, and those that have them now.
    pub(crate) fn files_renamed(&self) -> Vec<(String, String)> {
        let renamed = |replaced: &ReplacedFile| Some((replaced.path.clone(), replaced.kept_as.clone()?));
        self.replaced.iter().filter_map(renamed).collect()
    }
}

/// A file that a job reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedFile {
    /// Absolute URL.
    pub url: String,
    /// The path that names it in the table: relative to the source's location.
    pub path: String,
    /// Digest of its bytes, and of what its folders say; it names the lane.
    pub digest: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Last change in milliseconds, as the store reports it.
    pub modified_ms: i64,
    /// Rows.
    pub rows: u64,
    /// Columns that hold one value for the whole file, and that value, as its folders say it.
    #[serde(default)]
    pub partition: Vec<(String, Option<String>)>,
    /// What the lane remembers of its source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<LaneOrigin>,
    /// Event time ranges, in microseconds, that earlier jobs have loaded from this very file.
    pub loaded_us: Vec<(i64, i64)>,
}

/// A unit of work: consecutive rows of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedChunk {
    /// Position in [`JobPlan::files`].
    pub file: usize,
    /// Where they stand in it.
    pub part: ChunkPart,
    /// Number of the first row in the file.
    pub first_row: u64,
    /// Rows, before `where`.
    pub rows: u64,
}

/// A part of a file that can be read by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChunkPart {
    /// Consecutive row groups of a Parquet file.
    RowGroups {
        /// The first.
        first: usize,
        /// How many.
        count: usize,
    },
    /// Bytes of a file of text, from the beginning of a row to the end of one.
    Bytes {
        /// The first.
        from: u64,
        /// The one behind the last.
        to: u64,
    },
    /// All of a file that can only be read from its beginning.
    Whole,
}

/// What a lane remembers of where it came from, besides its path and digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LaneOrigin {
    /// A data file of a Delta table.
    Delta {
        /// The table's id.
        table: String,
        /// The version at which it was looked at: all that the table held then is loaded.
        version: u64,
    },
    /// An extract of a query.
    Extract {
        /// The greatest value of the cursor column in it.
        cursor: Option<CursorValue>,
    },
}

/// What a finished chunk has left behind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ChunkOutcome {
    /// Position in [`JobPlan::chunks`].
    pub chunk: usize,
    /// Rows read, before `where`.
    pub rows_read: u64,
    /// Rows written.
    pub rows_stored: u64,
    /// Rows that `where` left out.
    pub rows_left_out: u64,
    /// Rows outside the job's time range, or inside one that an earlier job has loaded.
    pub rows_out_of_range: u64,
    /// Rows that the transform dropped.
    pub rows_dropped: u64,
    /// Rows left out because an erasure covers them, refused ones too.
    #[serde(default)]
    pub rows_erased: u64,
    /// Stored rows whose status is `error`.
    pub rows_failed: u64,
    /// Refused rows, by reason.
    pub refused: RefusalCounts,
    /// Of a replay: rows that no replay can store, by what stands in its way.
    #[serde(default)]
    pub hindered: RefusalCounts,
    /// Add actions of the table's new data files, as JSON.
    pub adds: Vec<serde_json::Value>,
    /// Add actions of the quarantine table's new data files, as JSON.
    pub quarantine_adds: Vec<serde_json::Value>,
}

/// A part of a job that one worker does while others leave it alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Making the plan.
    Plan,
    /// A chunk, by its position in [`JobPlan::chunks`].
    Chunk(usize),
}

/// What came of asking for a part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claim {
    /// The part that is now ours.
    pub part: Option<Part>,
    /// Of those before it, the ones that are done already.
    pub done: Vec<Part>,
}

/// Where jobs keep their plans and outcomes. Owned here, implemented by whoever has a database.
///
/// Several workers, threads of one process or of many, may be at one job, each with a ledger of its own on the same
/// database. A claim keeps two of them from the same part; it ends with the outcome, when it is released, or when its
/// holder is known to be gone, which is the ledger's affair. Claims only save work: of every part the first outcome
/// counts, whoever saves it.
///
/// Every method may be called again with the same arguments after a crash and must then have the same effect once.
#[async_trait]
pub trait JobLedger: Send + Sync {
    /// The plan of `job`, if it has one.
    async fn plan(&self, job: &str) -> Result<Option<JobPlan>, LedgerError>;

    /// Saves a plan unless `job` has one already; returns the one that counts.
    async fn save_plan(&self, job: &str, plan: JobPlan) -> Result<JobPlan, LedgerError>;

    /// Claims the first of `parts` that is neither done nor claimed, by anybody.
    async fn claim(&self, job: &str, parts: &[Part]) -> Result<Claim, LedgerError>;

    /// Gives a claimed part up without an outcome.
    async fn release(&self, job: &str, part: Part) -> Result<(), LedgerError>;

    /// The chunks that are done, by position.
    async fn chunks_done(&self, job: &str) -> Result<BTreeSet<usize>, LedgerError>;

    /// The outcomes of the chunks that are done.
    async fn outcomes(&self, job: &str) -> Result<Vec<ChunkOutcome>, LedgerError>;

    /// Saves the outcome of a chunk. The data files it names exist by now and are protected from now on. Saving a chunk
    /// that is already saved keeps the first outcome: `false`, and files that only the other names are nobody's.
    async fn save_outcome(&self, job: &str, outcome: ChunkOutcome) -> Result<bool, LedgerError>;

    /// Asks whether the job's rows may be made visible now. `false`: it was called off. After `true` it can no longer be,
    /// until [`JobLedger::committed`].
    async fn begin_commit(&self, job: &str) -> Result<bool, LedgerError>;

    /// Notes that the job's rows are visible as `version` of the table.
    async fn committed(&self, job: &str, version: u64) -> Result<(), LedgerError>;
}

/// A ledger in memory, for tests and for one-off use of this crate as a library. It forgets with the process.
#[derive(Debug, Default)]
pub struct MemoryLedger {
    jobs: Mutex<BTreeMap<String, MemoryJob>>,
}

#[derive(Debug, Default)]
struct MemoryJob {
    plan: Option<JobPlan>,
    outcomes: BTreeMap<usize, ChunkOutcome>,
    claims: BTreeSet<Part>,
    version: Option<u64>,
}

impl MemoryLedger {
    /// The version that a job has committed.
    pub fn committed_version(&self, job: &str) -> Option<u64> {
        self.with(job, |job| job.version)
    }

    /// Ends all claims, as if whoever holds them were gone.
    pub fn expire_claims(&self, job: &str) {
        self.with(job, |job| job.claims.clear());
    }

    fn with<T>(&self, job: &str, read: impl FnOnce(&mut MemoryJob) -> T) -> T {
        // A poisoned lock means another thread panicked between two plain assignments; the data is whole.
        let mut jobs = self.jobs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        read(jobs.entry(job.to_owned()).or_default())
    }
}

impl MemoryJob {
    fn is_done(&self, part: Part) -> bool {
        match part {
            Part::Plan => self.plan.is_some(),
            Part::Chunk(chunk) => self.outcomes.contains_key(&chunk),
        }
    }
}

#[async_trait]
impl JobLedger for MemoryLedger {
    async fn plan(&self, job: &str) -> Result<Option<JobPlan>, LedgerError> {
        Ok(self.with(job, |job| job.plan.clone()))
    }

    async fn save_plan(&self, job: &str, plan: JobPlan) -> Result<JobPlan, LedgerError> {
        Ok(self.with(job, |job| {
            job.claims.remove(&Part::Plan);
            job.plan.get_or_insert(plan).clone()
        }))
    }

    async fn claim(&self, job: &str, parts: &[Part]) -> Result<Claim, LedgerError> {
        Ok(self.with(job, |job| {
            let mut claim = Claim::default();
            for part in parts {
                if job.is_done(*part) {
                    claim.done.push(*part);
                } else if job.claims.insert(*part) {
                    claim.part = Some(*part);
                    break;
                }
            }
            claim
        }))
    }

    async fn release(&self, job: &str, part: Part) -> Result<(), LedgerError> {
        self.with(job, |job| job.claims.remove(&part));
        Ok(())
    }

    async fn chunks_done(&self, job: &str) -> Result<BTreeSet<usize>, LedgerError> {
        Ok(self.with(job, |job| job.outcomes.keys().copied().collect()))
    }

    async fn outcomes(&self, job: &str) -> Result<Vec<ChunkOutcome>, LedgerError> {
        Ok(self.with(job, |job| job.outcomes.values().cloned().collect()))
    }

    async fn save_outcome(&self, job: &str, outcome: ChunkOutcome) -> Result<bool, LedgerError> {
        Ok(self.with(job, |job| {
            job.claims.remove(&Part::Chunk(outcome.chunk));
            let is_first = !job.outcomes.contains_key(&outcome.chunk);
            job.outcomes.entry(outcome.chunk).or_insert(outcome);
            is_first
        }))
    }

    async fn begin_commit(&self, _job: &str) -> Result<bool, LedgerError> {
        Ok(true)
    }

    async fn committed(&self, job: &str, version: u64) -> Result<(), LedgerError> {
        self.with(job, |job| job.version = Some(version));
        Ok(())
    }
}
