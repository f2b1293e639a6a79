//! A process's place at a job: its lease, which it renews while it works, and what it and the others have done.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use eadem_api::{Job, JobProgress};
use eadem_offline::Cancel;
use eadem_registry::{JobActivity, NewWorker, WorkerReport};
use tokio::sync::watch;
use uuid::Uuid;

use crate::home::Stores;

/// How often a lease is renewed, progress kept and a wish to stop looked for, at the longest.
const RENEW_EVERY_MAX: Duration = Duration::from_secs(1);

/// A lease is renewed so many times before it would expire.
const RENEWALS_PER_LEASE: u32 = 4;

/// Shorter leases would expire between two looks at the clock.
const LEASE_MIN: Duration = Duration::from_millis(100);

/// How long a worker is believed to live without a sign of life.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lease(Duration);

impl Lease {
    pub(crate) fn of_ms(ms: u64) -> Self {
        Self(Duration::from_millis(ms).max(LEASE_MIN))
    }

    pub(crate) fn us(self) -> i64 {
        i64::try_from(self.0.as_micros()).unwrap_or(i64::MAX)
    }

    fn renew_every(self) -> Duration {
        (self.0 / RENEWALS_PER_LEASE).min(RENEW_EVERY_MAX)
    }
}

/// A running job, as its own steps see it.
pub(crate) struct Handle {
    pub(crate) changes: watch::Sender<Job>,
    pub(crate) cancel: Cancel,
    /// This process's run of the job.
    pub(crate) worker: NewWorker,
    began: Instant,
    state: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    own: OwnWork,
    others: OtherWork,
    planned: Option<Planned>,
    /// This process stops, and the job goes on without it.
    is_leaving: bool,
}

/// What a job comes to, once it is planned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Planned {
    pub(crate) rows: u64,
    pub(crate) chunks: u64,
    pub(crate) memory_bytes_max: u64,
}

/// What this process has done of the job.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OwnWork {
    pub(crate) rows: u64,
    pub(crate) refused: u64,
    pub(crate) chunks: u64,
}

/// What all others have done, and do.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct OtherWork {
    rows: u64,
    refused: u64,
    chunks: u64,
    rows_per_s: f64,
    workers: u64,
}

impl OtherWork {
    /// What those do who are not `me`. A worker that is gone counts with what it has recorded.
    fn of(activity: &JobActivity, me: &str) -> Self {
        let mut sum = Self::default();
        let mut recorded = HashMap::new();
        for work in activity.recorded.iter().filter(|work| work.worker != me) {
            sum.rows += work.rows;
            sum.refused += work.refused;
            sum.chunks += work.chunks;
            recorded.insert(work.worker.as_str(), (work.rows, work.refused));
        }
        for worker in activity.workers.iter().filter(|worker| worker.id != me) {
            let (rows, refused) = recorded.get(worker.id.as_str()).copied().unwrap_or_default();
            // It tells of itself now and then; what it has recorded meanwhile may be more.
            sum.rows += worker.report.rows.saturating_sub(rows);
            sum.refused += worker.report.refused.saturating_sub(refused);
            sum.rows_per_s += worker.report.rows_per_s;
            sum.workers += 1;
        }
        sum
    }
}

impl Handle {
    pub(crate) fn new(job: Job, home: Option<String>) -> Self {
        let id = Uuid::now_v7().simple().to_string();
        let label = format!("process {}", std::process::id());
        Self {
            changes: watch::channel(job).0,
            cancel: Cancel::default(),
            worker: NewWorker { id, label, home },
            began: Instant::now(),
            state: Mutex::default(),
        }
    }

    pub(crate) fn progress(&self) -> JobProgress {
        self.changes.borrow().progress.clone()
    }

    /// Tells whoever follows the job how far it is.
    pub(crate) fn report(&self, progress: JobProgress) {
        self.changes.send_modify(|job| job.progress = JobProgress { workers: 1, ..progress });
    }

    pub(crate) fn steps(&self, done: u64, total: u64, rows: u64, message: String) {
        let seconds = self.began.elapsed().as_secs_f64().max(1e-9);
        self.report(JobProgress {
            done,
            total,
            rows,
            rows_per_s: rows as f64 / seconds,
            message,
            ..Default::default()
        });
    }

    /// Tells how many rows of all are done, which took so long: also at which rate, and how long the rest takes if it goes on
    /// like this.
    pub(crate) fn rows(&self, done: u64, total: u64, took: Duration, message: String) {
        let rows_per_s = done as f64 / took.as_secs_f64().max(1e-9);
        let seconds_left = (done > 0).then(|| total.saturating_sub(done) as f64 / rows_per_s);
        self.report(JobProgress { done, total, rows: done, rows_per_s, seconds_left, message, ..Default::default() });
    }

    fn with<T>(&self, change: impl FnOnce(&mut Counts) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Stops this process's work and leaves the job to others.
    pub(crate) fn leave(&self) {
        self.with(|counts| counts.is_leaving = true);
        self.cancel.cancel();
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.with(|counts| counts.is_leaving)
    }

    /// What the job comes to is known.
    pub(crate) fn planned(&self, planned: Planned) {
        self.with(|counts| counts.planned = Some(planned));
        self.tell(None);
    }

    /// What this process has done is more now.
    pub(crate) fn worked(&self, own: OwnWork, message: String) {
        self.with(|counts| counts.own = own);
        self.tell(Some(message));
    }

    fn own_report(&self) -> WorkerReport {
        let own = self.with(|counts| counts.own);
        WorkerReport { rows: own.rows, refused: own.refused, rows_per_s: self.rows_per_s(own) }
    }

    fn rows_per_s(&self, own: OwnWork) -> f64 {
        own.rows as f64 / self.began.elapsed().as_secs_f64().max(1e-9)
    }

    /// Adds up what all have done. Only for jobs that are cut up.
    fn tell(&self, message: Option<String>) {
        let (own, others, planned) = self.with(|counts| (counts.own, counts.others, counts.planned));
        let Some(planned) = planned else { return };
        let rows = own.rows + others.rows;
        let rows_per_s = self.rows_per_s(own) + others.rows_per_s;
        let rows_left = planned.rows.checked_sub(rows).filter(|_| planned.rows > 0 && rows > 0);
        let seconds_left = rows_left.filter(|_| rows_per_s > 0.0).map(|rows| rows as f64 / rows_per_s);
        self.changes.send_modify(|job| {
            let message = message.unwrap_or_else(|| std::mem::take(&mut job.progress.message));
            job.progress = JobProgress {
                done: rows.min(planned.rows),
                total: planned.rows,
                rows,
                refused: own.refused + others.refused,
                rows_per_s,
                seconds_left,
                chunks_done: own.chunks + others.chunks,
                chunks: planned.chunks,
                workers: 1 + others.workers,
                memory_bytes_max: Some(planned.memory_bytes_max),
                message,
            };
        });
    }

    /// Renews the lease, keeps the progress, and looks whether somebody wants the job to stop, until the job is closed.
    pub(crate) async fn keep_lease(&self, stores: &Stores, id: &str, lease: Lease) {
        let mut beats = tokio::time::interval(lease.renew_every());
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            beats.tick().await;
            if let Err(error) = self.renew(stores, id, lease).await {
                if error.is_callers_fault() {
                    // Closed by another process: there is nothing left to do here.
                    self.cancel.cancel();
                    return;
                }
                tracing::warn!(job = id, %error, "the lease could not be renewed; another process may take the work over");
            }
        }
    }

    /// One sign of life.
    pub(crate) async fn renew(
        &self,
        stores: &Stores,
        id: &str,
        lease: Lease,
    ) -> Result<(), eadem_registry::RegistryError> {
        let (registry, now_us) = (&stores.registry, stores.clock.now_us());
        let progress = serde_json::to_value(self.progress()).unwrap_or_default();
        let report = self.own_report();
        registry.renew_lease(id, &self.worker.id, &report, &progress, now_us, lease.us()).await?;
        if registry.job(id).await?.cancel_asked {
            self.cancel.cancel();
        }
        let others = OtherWork::of(&registry.job_activity(id, now_us).await?, &self.worker.id);
        let is_news = self.with(|counts| std::mem::replace(&mut counts.others, others) != others);
        if is_news {
            self.tell(None);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use eadem_api::JobKind;
    use eadem_registry::{JobWorker, RecordedWork};
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_have_a_rate_and_leave_some_time() {
        let handle = Handle::new(Job::begun("job".to_owned(), JobKind::Dataset, json!({}), 0), None);
        handle.rows(250, 1_000, Duration::from_secs(5), "joining".to_owned());
        let progress = handle.progress();
        assert_eq!((progress.done, progress.total, progress.rows, progress.workers), (250, 1_000, 250, 1));
        assert_eq!((progress.rows_per_s, progress.seconds_left), (50.0, Some(15.0)));
        handle.rows(0, 1_000, Duration::ZERO, "joining".to_owned());
        assert_eq!((handle.progress().rows_per_s, handle.progress().seconds_left), (0.0, None));
    }

    #[test]
    fn what_others_do_is_counted_once() {
        let recorded = |worker: &str, chunks: u64, rows: u64| RecordedWork {
            worker: worker.to_owned(),
            chunks,
            rows,
            refused: chunks,
        };
        let worker = |id: &str, rows: u64| JobWorker {
            id: id.to_owned(),
            label: String::new(),
            expires_at_us: 0,
            report: WorkerReport { rows, refused: 0, rows_per_s: 10.0 },
        };
        let activity = JobActivity {
            workers: vec![worker("me", 999), worker("ahead", 130), worker("behind", 50)],
            recorded: vec![
                recorded("me", 1, 100),
                recorded("gone", 2, 200),
                recorded("ahead", 1, 100),
                recorded("behind", 1, 100),
            ],
        };
        let others = OtherWork::of(&activity, "me");
        let expected = OtherWork { rows: 200 + 130 + 100, refused: 4, chunks: 4, rows_per_s: 20.0, workers: 2 };
        assert_eq!(others, expected);
    }
}
