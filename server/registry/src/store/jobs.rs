//! The ledger of jobs. What a job's documents say is its own business; the registry keeps them whole.

use eadem_values::Digest;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::trail::TrailEvent;
use super::workers::release_all;
use super::{Registry, Session, read_flag, read_name, signed};
use crate::error::{ObjectKind, RegistryError};

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Running, or to be resumed.
    Open,
    /// Its result is committed.
    Done,
    /// It stopped with an error.
    Failed,
    /// It was given up on request.
    Cancelled,
}

impl JobState {
    /// As it stands in the database and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Open, Self::Done, Self::Failed, Self::Cancelled].into_iter().find(|state| state.as_str() == name)
    }
}

/// A job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Chosen by whoever creates it.
    pub id: String,
    /// `backfill`, `materialize`, `dataset`, …
    pub kind: String,
    /// How far it is.
    pub state: JobState,
    /// Somebody asked for it to stop.
    pub cancel_asked: bool,
    /// Its rows may be visible already, or any moment: it is too late to call it off.
    pub committing: bool,
    /// What it shall do.
    pub spec: Json,
    /// The last progress it told; null before the first.
    pub progress: Json,
    /// Its result or error; null while it is open.
    pub outcome: Json,
    /// µs since the epoch; also the arrival of the rows that it writes.
    pub created_at_us: i64,
    /// µs since the epoch.
    pub changed_at_us: i64,
}

/// A part of a job that is done and need not be done again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobChunk {
    /// Its name within the job.
    pub chunk: String,
    /// What it made.
    pub result: Json,
    /// µs since the epoch.
    pub recorded_at_us: i64,
}

/// Who did a chunk and how much that was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkWork {
    /// The worker's id.
    pub worker: String,
    /// Rows read.
    pub rows: u64,
    /// Rows refused.
    pub refused: u64,
}

impl Registry {
    /// Enters a new job.
    ///
    /// # Errors
    /// A job of this id exists.
    pub async fn create_job(&self, id: &str, kind: &str, spec: &Json, now_us: i64) -> Result<(), RegistryError> {
        let mut change = self.change().await?;
        change.check_jobs(id, now_us).await?;
        insert_job(&mut change, id, kind, spec, now_us).await?;
        let spec = Digest::of(spec.to_string().as_bytes());
        let event = TrailEvent::done("start job", format!("job {id}"), kind);
        change.record(event.with_digests(None, Some(spec)), now_us).await?;
        change.commit_quietly().await
    }

    /// Records that a chunk is done; its claim, if any, ends. The first record of a chunk stays: `false` if there was one.
    /// `work` says who did it; without, it counts as no work.
    ///
    /// # Errors
    /// No such job, or one that is no longer open.
    pub async fn record_chunk(
        &self,
        id: &str,
        chunk: &str,
        result: &Json,
        work: Option<&ChunkWork>,
        now_us: i64,
    ) -> Result<bool, RegistryError> {
        let mut change = self.change().await?;
        require_open(&mut change, id).await?;
        let recorded = sqlx::query(
            "INSERT INTO job_chunk (job_id, chunk, result, recorded_at_us, worker, rows, refused)
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (job_id, chunk) DO NOTHING",
        )
        .bind(id)
        .bind(chunk)
        .bind(result.to_string())
        .bind(now_us)
        .bind(work.map(|work| work.worker.as_str()))
        .bind(signed(work.map_or(0, |work| work.rows))?)
        .bind(signed(work.map_or(0, |work| work.refused))?)
        .execute(change.sql())
        .await?;
        sqlx::query("DELETE FROM job_claim WHERE job_id = $1 AND part = $2")
            .bind(id)
            .bind(chunk)
            .execute(change.sql())
            .await?;
        change.commit_quietly().await?;
        Ok(recorded.rows_affected() > 0)
    }

    /// The names of the chunks that are done and begin with `prefix`.
    ///
    /// # Errors
    /// The database failed.
    pub async fn chunk_names(&self, id: &str, prefix: &str) -> Result<Vec<String>, RegistryError> {
        let names = sqlx::query_scalar(
            "SELECT chunk FROM job_chunk WHERE job_id = $1 AND substr(chunk, 1, length($2)) = $3 ORDER BY chunk",
        );
        Ok(names.bind(id).bind(prefix).bind(prefix).fetch_all(self.readers()).await?)
    }

    /// One chunk, if it is done.
    ///
    /// # Errors
    /// The database failed.
    pub async fn chunk(&self, id: &str, chunk: &str) -> Result<Option<JobChunk>, RegistryError> {
        let row = sqlx::query("SELECT chunk, result, recorded_at_us FROM job_chunk WHERE job_id = $1 AND chunk = $2")
            .bind(id)
            .bind(chunk)
            .fetch_optional(self.readers())
            .await?;
        row.as_ref().map(read_chunk).transpose()
    }

    /// The chunks that are done, by name.
    ///
    /// # Errors
    /// The database failed.
    pub async fn list_chunks(&self, id: &str) -> Result<Vec<JobChunk>, RegistryError> {
        let rows = sqlx::query("SELECT chunk, result, recorded_at_us FROM job_chunk WHERE job_id = $1 ORDER BY chunk")
            .bind(id)
            .fetch_all(self.readers())
            .await?;
        rows.iter().map(read_chunk).collect()
    }

    /// Notes how far an open job is.
    ///
    /// # Errors
    /// No such job, or one that is no longer open.
    pub async fn set_job_progress(&self, id: &str, progress: &Json, now_us: i64) -> Result<(), RegistryError> {
        let mut change = self.change().await?;
        require_open(&mut change, id).await?;
        write_progress(&mut change, id, progress, now_us).await?;
        change.commit_quietly().await
    }

    /// Closes an open job; nobody works on it any more. Closing it again in the same state changes nothing.
    ///
    /// # Errors
    /// No such job, one that was closed in another state, or `Open` as the state; and one that is to be cancelled while it
    /// commits.
    pub async fn finish_job(
        &self,
        id: &str,
        state: JobState,
        outcome: &Json,
        now_us: i64,
    ) -> Result<(), RegistryError> {
        if state == JobState::Open {
            return Err(RegistryError::Invalid(format!("job `{id}` cannot be finished as open")));
        }
        let mut change = self.change().await?;
        let before = job_state(&mut change, id).await?;
        if before == state {
            return Ok(());
        }
        if before != JobState::Open {
            return Err(closed(id, before));
        }
        if state == JobState::Cancelled && is_committing(&mut change, id).await? {
            return Err(RegistryError::Conflict(format!("job `{id}` is committing: it is too late to cancel it")));
        }
        release_all(&mut change, id).await?;
        sqlx::query("UPDATE job SET state = $1, outcome = $2, changed_at_us = $3 WHERE job_id = $4")
            .bind(state.as_str())
            .bind(outcome.to_string())
            .bind(now_us)
            .bind(id)
            .execute(change.sql())
            .await?;
        change.commit_quietly().await
    }

    /// Puts another outcome into the place of that of a job that is done: an erasure takes values out of it.
    ///
    /// # Errors
    /// The database failed.
    pub async fn replace_job_outcome(&self, id: &str, outcome: &Json) -> Result<(), RegistryError> {
        let mut change = self.change().await?;
        sqlx::query("UPDATE job SET outcome = $1 WHERE job_id = $2 AND state = 'done'")
            .bind(outcome.to_string())
            .bind(id)
            .execute(change.sql())
            .await?;
        change.commit_quietly().await
    }

    /// Opens a job again that failed or was cancelled, so that it can go on where it stopped. Its chunks stay. One that is
    /// open forgets that it was asked to stop.
    ///
    /// # Errors
    /// No such job, or one that is done.
    pub async fn reopen_job(&self, id: &str, now_us: i64) -> Result<(), RegistryError> {
        let mut change = self.change().await?;
        change.check_jobs(id, now_us).await?;
        match job_state(&mut change, id).await? {
            JobState::Done => return Err(closed(id, JobState::Done)),
            JobState::Open | JobState::Failed | JobState::Cancelled => {}
        }
        sqlx::query(
            "UPDATE job SET state = 'open', cancel_asked = 0, outcome = NULL, changed_at_us = $1 WHERE job_id = $2",
        )
        .bind(now_us)
        .bind(id)
        .execute(change.sql())
        .await?;
        change.record(TrailEvent::done("resume job", format!("job {id}"), ""), now_us).await?;
        change.commit_quietly().await
    }

    /// Notes that an open job is about to make rows visible: from now on it cannot be cancelled, until
    /// [`Registry::end_commit`]. `false`: it must not, because it was asked to stop.
    ///
    /// # Errors
    /// No such job, or one that is no longer open.
    pub async fn begin_commit(&self, id: &str, now_us: i64) -> Result<bool, RegistryError> {
        let mut change = self.change().await?;
        require_open(&mut change, id).await?;
        let begun = sqlx::query(
            "UPDATE job SET committing = 1, changed_at_us = $1 WHERE job_id = $2 AND (cancel_asked = 0 OR committing = 1)",
        )
        .bind(now_us)
        .bind(id)
        .execute(change.sql())
        .await?;
        change.commit_quietly().await?;
        Ok(begun.rows_affected() > 0)
    }

    /// Notes that what an open job was making visible is visible.
    ///
    /// # Errors
    /// No such job, or one that is no longer open.
    pub async fn end_commit(&self, id: &str, now_us: i64) -> Result<(), RegistryError> {
        let mut change = self.change().await?;
        require_open(&mut change, id).await?;
        sqlx::query("UPDATE job SET committing = 0, changed_at_us = $1 WHERE job_id = $2")
            .bind(now_us)
            .bind(id)
            .execute(change.sql())
            .await?;
        change.commit_quietly().await
    }

    /// Asks an open job to stop. It stops, or has done its work, at its next step.
    ///
    /// # Errors
    /// No such job, or one that is no longer open.
    pub async fn ask_job_to_cancel(&self, id: &str, now_us: i64) -> Result<(), RegistryError> {
        let mut change = self.change().await?;
        require_open(&mut change, id).await?;
        sqlx::query("UPDATE job SET cancel_asked = 1, changed_at_us = $1 WHERE job_id = $2")
            .bind(now_us)
            .bind(id)
            .execute(change.sql())
            .await?;
        change.record(TrailEvent::done("cancel job", format!("job {id}"), ""), now_us).await?;
        change.commit_quietly().await
    }

    /// A job by id.
    ///
    /// # Errors
    /// No such job.
    pub async fn job(&self, id: &str) -> Result<JobRecord, RegistryError> {
        let row = sqlx::query(
            "SELECT job_id, kind, state, cancel_asked, committing, spec, progress, outcome, created_at_us, changed_at_us
             FROM job WHERE job_id = $1",
        )
        .bind(id)
        .fetch_optional(self.readers())
        .await?;
        read_job(&row.ok_or_else(|| unknown_job(id))?)
    }

    /// Jobs, newest first; all, or those in one state.
    ///
    /// # Errors
    /// The database failed.
    pub async fn jobs(&self, state: Option<JobState>) -> Result<Vec<JobRecord>, RegistryError> {
        let rows = sqlx::query(
            "SELECT job_id, kind, state, cancel_asked, committing, spec, progress, outcome, created_at_us, changed_at_us
             FROM job WHERE state = coalesce($1, state) ORDER BY created_at_us DESC, job_id DESC",
        )
        .bind(state.map(JobState::as_str))
        .fetch_all(self.readers())
        .await?;
        rows.iter().map(read_job).collect()
    }

    /// Jobs to be resumed, oldest first. Their files are protected from vacuum.
    ///
    /// # Errors
    /// The database failed.
    pub async fn open_jobs(&self) -> Result<Vec<JobRecord>, RegistryError> {
        let mut jobs = self.jobs(Some(JobState::Open)).await?;
        jobs.reverse();
        Ok(jobs)
    }
}

fn unknown_job(id: &str) -> RegistryError {
    RegistryError::not_found(ObjectKind::Job, id, "")
}

fn closed(id: &str, state: JobState) -> RegistryError {
    RegistryError::Conflict(format!("job `{id}` is {} already", state.as_str()))
}

async fn job_state(connection: &mut Session, id: &str) -> Result<JobState, RegistryError> {
    let state: Option<String> =
        sqlx::query_scalar("SELECT state FROM job WHERE job_id = $1").bind(id).fetch_optional(connection.sql()).await?;
    read_name(&state.ok_or_else(|| unknown_job(id))?, JobState::from_name)
}

async fn is_committing(connection: &mut Session, id: &str) -> Result<bool, RegistryError> {
    let committing: i64 =
        sqlx::query_scalar("SELECT committing FROM job WHERE job_id = $1").bind(id).fetch_one(connection.sql()).await?;
    Ok(read_flag(committing))
}

pub(super) async fn require_open(connection: &mut Session, id: &str) -> Result<(), RegistryError> {
    match job_state(connection, id).await? {
        JobState::Open => Ok(()),
        state => Err(closed(id, state)),
    }
}

/// How far a job is, as whoever works on it sees it.
pub(super) async fn write_progress(
    connection: &mut Session,
    id: &str,
    progress: &Json,
    now_us: i64,
) -> Result<(), RegistryError> {
    sqlx::query("UPDATE job SET progress = $1, changed_at_us = $2 WHERE job_id = $3")
        .bind(progress.to_string())
        .bind(now_us)
        .bind(id)
        .execute(connection.sql())
        .await?;
    Ok(())
}

fn read_json(row: &AnyRow, column: &str) -> Result<Json, RegistryError> {
    let text: Option<String> = row.try_get(column)?;
    let Some(text) = text else { return Ok(Json::Null) };
    serde_json::from_str(&text).map_err(|error| RegistryError::damaged(format!("{column} of a job: {error}")))
}

fn read_chunk(row: &AnyRow) -> Result<JobChunk, RegistryError> {
    Ok(JobChunk {
        chunk: row.try_get("chunk")?,
        result: read_json(row, "result")?,
        recorded_at_us: row.try_get("recorded_at_us")?,
    })
}

fn read_job(row: &AnyRow) -> Result<JobRecord, RegistryError> {
    let state: String = row.try_get("state")?;
    Ok(JobRecord {
        id: row.try_get("job_id")?,
        kind: row.try_get("kind")?,
        state: read_name(&state, JobState::from_name)?,
        cancel_asked: read_flag(row.try_get("cancel_asked")?),
        committing: read_flag(row.try_get("committing")?),
        spec: read_json(row, "spec")?,
        progress: read_json(row, "progress")?,
        outcome: read_json(row, "outcome")?,
        created_at_us: row.try_get("created_at_us")?,
        changed_at_us: row.try_get("changed_at_us")?,
    })
}

pub(super) async fn insert_job(
    session: &mut Session,
    id: &str,
    kind: &str,
    spec: &Json,
    now_us: i64,
) -> Result<(), RegistryError> {
    let created = sqlx::query(
        "INSERT INTO job (job_id, kind, state, spec, created_at_us, changed_at_us) VALUES ($1, $2, 'open', $3, $4, $5)
         ON CONFLICT (job_id) DO NOTHING",
    )
    .bind(id)
    .bind(kind)
    .bind(spec.to_string())
    .bind(now_us)
    .bind(now_us)
    .execute(session.sql())
    .await?;
    match created.rows_affected() {
        0 => Err(RegistryError::Conflict(format!("job `{id}` exists already"))),
        _ => Ok(()),
    }
}
