//! Who works on a job: leases that expire, and claims on parts that last as long as the lease of whoever holds them.
//!
//! A worker is one process's run of one job. It renews its lease while it lives; nobody asks it whether it does. Time is
//! what the callers say, by the clock that they are given. A lease that has expired too early costs work that is done
//! twice, and never a wrong result: of every part the first record stays.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sqlx::Row;

use super::jobs::{require_open, write_progress};
use super::{Registry, Session, signed, unsigned};
use crate::error::RegistryError;

/// A worker that enters a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewWorker {
    /// Unique, also among the runs of one process.
    pub id: String,
    /// For people: which process it is.
    pub label: String,
    /// The project's directory, if it runs in the process that holds it: when another holds it, this one is gone.
    pub home: Option<String>,
}

/// What a worker has done, by its own count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerReport {
    /// Rows read, also those of parts that are not done yet.
    pub rows: u64,
    /// Rows refused, likewise.
    pub refused: u64,
    /// Rows read per second.
    pub rows_per_s: f64,
}

/// A worker whose lease has not expired.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobWorker {
    /// Unique.
    pub id: String,
    /// For people: which process it is.
    pub label: String,
    /// When its lease ends unless it is renewed, µs since the epoch.
    pub expires_at_us: i64,
    /// What it last told.
    pub report: WorkerReport,
}

/// What a worker has recorded as done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedWork {
    /// The worker's id; it may be gone.
    pub worker: String,
    /// Chunks.
    pub chunks: u64,
    /// Rows read.
    pub rows: u64,
    /// Rows refused.
    pub refused: u64,
}

/// Who is at work on a job and what has been done.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JobActivity {
    /// Workers whose leases last, by id.
    pub workers: Vec<JobWorker>,
    /// What is recorded, by worker.
    pub recorded: Vec<RecordedWork>,
}

/// What came of asking for a part of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartClaim {
    /// The part that is now the worker's.
    pub part: Option<String>,
    /// Parts before it that are done already.
    pub done: Vec<String>,
}

impl Registry {
    /// Enters an open job with a lease until `now_us + lease_us`.
    ///
    /// # Errors
    /// No such job, or one that is no longer open.
    pub async fn join_job(
        &self,
        id: &str,
        worker: &NewWorker,
        now_us: i64,
        lease_us: i64,
    ) -> Result<(), RegistryError> {
        let mut change = self.change().await?;
        require_open(&mut change, id).await?;
        sqlx::query(
            "INSERT INTO job_worker (job_id, worker, label, home, expires_at_us) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (job_id, worker) DO UPDATE SET expires_at_us = excluded.expires_at_us",
        )
        .bind(id)
        .bind(&worker.id)
        .bind(&worker.label)
        .bind(&worker.home)
        .bind(now_us.saturating_add(lease_us))
        .execute(change.sql())
        .await?;
        change.commit_quietly().await
    }

    /// Renews a worker's lease; keeps what it tells of itself, and how far it sees the whole job.
    ///
    /// # Errors
    /// No such job, or one that is no longer open: then there is nothing to work on.
    pub async fn renew_lease(
        &self,
        id: &str,
        worker: &str,
        report: &WorkerReport,
        progress: &Json,
        now_us: i64,
        lease_us: i64,
    ) -> Result<(), RegistryError> {
        let mut change = self.change().await?;
        require_open(&mut change, id).await?;
        write_progress(&mut change, id, progress, now_us).await?;
        sqlx::query(
            "UPDATE job_worker SET expires_at_us = $1, rows = $2, refused = $3, rows_per_s = $4
             WHERE job_id = $5 AND worker = $6",
        )
        .bind(now_us.saturating_add(lease_us))
        .bind(signed(report.rows)?)
        .bind(signed(report.refused)?)
        .bind(report.rows_per_s)
        .bind(id)
        .bind(worker)
        .execute(change.sql())
        .await?;
        change.commit_quietly().await
    }

    /// Leaves a job: what the worker had claimed and not recorded is free.
    ///
    /// # Errors
    /// The database failed.
    pub async fn leave_job(&self, id: &str, worker: &str) -> Result<(), RegistryError> {
        let mut change = self.change().await?;
        for statement in [
            "DELETE FROM job_claim WHERE job_id = $1 AND worker = $2",
            "DELETE FROM job_worker WHERE job_id = $1 AND worker = $2",
        ] {
            sqlx::query(statement).bind(id).bind(worker).execute(change.sql()).await?;
        }
        change.commit_quietly().await
    }

    /// Ends the leases of all workers in processes that held this directory. Only for who holds it now.
    ///
    /// # Errors
    /// The database failed.
    pub async fn forget_workers_of(&self, home: &str) -> Result<(), RegistryError> {
        let mut change = self.change().await?;
        sqlx::query("DELETE FROM job_worker WHERE home = $1").bind(home).execute(change.sql()).await?;
        change.commit_quietly().await
    }

    /// Claims the first of `parts` that is neither done nor claimed under a lease that lasts, and renews the worker's own
    /// lease, so that no claim is without one.
    ///
    /// # Errors
    /// No such job, one that is no longer open, or a worker that has not joined it.
    pub async fn claim_part(
        &self,
        id: &str,
        worker: &str,
        parts: &[String],
        now_us: i64,
        lease_us: i64,
    ) -> Result<PartClaim, RegistryError> {
        let mut change = self.change().await?;
        require_open(&mut change, id).await?;
        let renewed =
            sqlx::query("UPDATE job_worker SET expires_at_us = CASE WHEN expires_at_us > $1 THEN expires_at_us ELSE $1 END WHERE job_id = $2 AND worker = $3")
                .bind(now_us.saturating_add(lease_us))
                .bind(id)
                .bind(worker)
                .execute(change.sql())
                .await?;
        if renewed.rows_affected() == 0 {
            return Err(RegistryError::Conflict(format!("worker `{worker}` has not joined job `{id}`")));
        }
        let mut claim = PartClaim::default();
        for part in parts {
            if is_done(&mut change, id, part).await? {
                claim.done.push(part.clone());
                continue;
            }
            if is_claimed(&mut change, id, part, now_us).await? {
                continue;
            }
            sqlx::query(
                "INSERT INTO job_claim (job_id, part, worker) VALUES ($1, $2, $3)
                 ON CONFLICT (job_id, part) DO UPDATE SET worker = excluded.worker",
            )
            .bind(id)
            .bind(part)
            .bind(worker)
            .execute(change.sql())
            .await?;
            claim.part = Some(part.clone());
            break;
        }
        change.commit_quietly().await?;
        Ok(claim)
    }

    /// Gives a claimed part up. What another has claimed since stays its.
    ///
    /// # Errors
    /// The database failed.
    pub async fn release_part(&self, id: &str, worker: &str, part: &str) -> Result<(), RegistryError> {
        let mut change = self.change().await?;
        sqlx::query("DELETE FROM job_claim WHERE job_id = $1 AND part = $2 AND worker = $3")
            .bind(id)
            .bind(part)
            .bind(worker)
            .execute(change.sql())
            .await?;
        change.commit_quietly().await
    }

    /// Who is at work on a job, and what has been done.
    ///
    /// # Errors
    /// The database failed.
    pub async fn job_activity(&self, id: &str, now_us: i64) -> Result<JobActivity, RegistryError> {
        let workers = sqlx::query(
            "SELECT worker, label, expires_at_us, rows, refused, rows_per_s FROM job_worker
             WHERE job_id = $1 AND expires_at_us > $2 ORDER BY worker",
        )
        .bind(id)
        .bind(now_us)
        .fetch_all(self.readers())
        .await?;
        let recorded = sqlx::query(
            "SELECT worker, count(*) AS chunks, CAST(sum(rows) AS BIGINT) AS rows,
                 CAST(sum(refused) AS BIGINT) AS refused FROM job_chunk
             WHERE job_id = $1 AND worker IS NOT NULL GROUP BY worker ORDER BY worker",
        )
        .bind(id)
        .fetch_all(self.readers())
        .await?;
        let worker = |row: &sqlx::any::AnyRow| {
            Ok::<_, RegistryError>(JobWorker {
                id: row.try_get("worker")?,
                label: row.try_get("label")?,
                expires_at_us: row.try_get("expires_at_us")?,
                report: WorkerReport {
                    rows: unsigned(row.try_get("rows")?)?,
                    refused: unsigned(row.try_get("refused")?)?,
                    rows_per_s: row.try_get("rows_per_s")?,
                },
            })
        };
        let work = |row: &sqlx::any::AnyRow| {
            Ok::<_, RegistryError>(RecordedWork {
                worker: row.try_get("worker")?,
                chunks: unsigned(row.try_get("chunks")?)?,
                rows: unsigned(row.try_get("rows")?)?,
                refused: unsigned(row.try_get("refused")?)?,
            })
        };
        Ok(JobActivity {
            workers: workers.iter().map(worker).collect::<Result<_, _>>()?,
            recorded: recorded.iter().map(work).collect::<Result<_, _>>()?,
        })
    }

    /// The jobs that somebody works on.
    ///
    /// # Errors
    /// The database failed.
    pub async fn jobs_at_work(&self, now_us: i64) -> Result<BTreeSet<String>, RegistryError> {
        let ids: Vec<String> = sqlx::query_scalar("SELECT DISTINCT job_id FROM job_worker WHERE expires_at_us > $1")
            .bind(now_us)
            .fetch_all(self.readers())
            .await?;
        Ok(ids.into_iter().collect())
    }
}

/// Ends all leases and claims of a job.
pub(super) async fn release_all(connection: &mut Session, id: &str) -> Result<(), RegistryError> {
    for statement in ["DELETE FROM job_claim WHERE job_id = $1", "DELETE FROM job_worker WHERE job_id = $1"] {
        sqlx::query(statement).bind(id).execute(connection.sql()).await?;
    }
    Ok(())
}

async fn is_done(connection: &mut Session, id: &str, part: &str) -> Result<bool, RegistryError> {
    let done: Option<i64> = sqlx::query_scalar("SELECT 1 FROM job_chunk WHERE job_id = $1 AND chunk = $2")
        .bind(id)
        .bind(part)
        .fetch_optional(connection.sql())
        .await?;
    Ok(done.is_some())
}

async fn is_claimed(connection: &mut Session, id: &str, part: &str, now_us: i64) -> Result<bool, RegistryError> {
    let claimed: Option<i64> = sqlx::query_scalar(
        "SELECT 1 FROM job_claim JOIN job_worker USING (job_id, worker)
         WHERE job_id = $1 AND part = $2 AND expires_at_us > $3",
    )
    .bind(id)
    .bind(part)
    .bind(now_us)
    .fetch_optional(connection.sql())
    .await?;
    Ok(claimed.is_some())
}
