//! How much each project asks for, and whether it may ask for more.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use eadem_registry::{ProjectRecord, Quota};

use crate::metrics::{Metrics, UsageCounters};
use crate::problem::Problem;

const SECOND_NS: u64 = 1_000_000_000;

/// What projects may use of this server, and what those that are open use.
#[derive(Default)]
pub struct Usage {
    projects: RwLock<Projects>,
}

#[derive(Default)]
struct Projects {
    quotas: HashMap<String, BTreeMap<Quota, u64>>,
    used: HashMap<String, Arc<ProjectUsage>>,
}

/// What one project uses of a server.
#[derive(Debug)]
pub struct ProjectUsage {
    name: String,
    counters: UsageCounters,
    requests: Pace,
    transform_us: Pace,
    began: Instant,
}

impl Usage {
    /// What a project uses, which is counted by these metrics and limited by the project's quotas as they change.
    pub fn of(&self, project: &str, metrics: &Metrics) -> Arc<ProjectUsage> {
        let usage = Arc::new(ProjectUsage {
            name: project.to_owned(),
            counters: metrics.usage(),
            requests: Pace::default(),
            transform_us: Pace::default(),
            began: Instant::now(),
        });
        let mut projects = self.projects.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(quotas) = projects.quotas.get(project) {
            usage.limit(quotas);
        }
        projects.used.insert(project.to_owned(), Arc::clone(&usage));
        usage
    }

    /// From now on these quotas hold.
    pub fn limit(&self, records: &[ProjectRecord]) {
        let mut projects = self.projects.write().unwrap_or_else(PoisonError::into_inner);
        for record in records {
            if let Some(usage) = projects.used.get(&record.name) {
                usage.limit(&record.quotas);
            }
        }
        projects.quotas = records.iter().map(|record| (record.name.clone(), record.quotas.clone())).collect();
    }
}

impl ProjectUsage {
    fn limit(&self, quotas: &BTreeMap<Quota, u64>) {
        self.requests.limit(quotas.get(&Quota::RequestsPerS).copied());
        self.transform_us.limit(quotas.get(&Quota::TransformUsPerS).copied());
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// One more request, if there may be one.
    pub(crate) fn take_request(&self) -> Result<(), Problem> {
        self.counters.requests.inc();
        self.requests.take(1, || self.now_ns()).map_err(|wait| {
            let detail = self.over("requests in a second", &self.requests);
            Problem::too_many("quota_requests", detail, wait)
        })
    }

    /// Whether transforms may run for it. What they take is known only afterwards, so the one that goes over the limit is
    /// answered, and those after it wait.
    pub(crate) fn check_transforms(&self) -> Result<(), Problem> {
        self.transform_us.check(|| self.now_ns()).map_err(|wait| {
            let detail = self.over("microseconds of transforms in a second", &self.transform_us);
            Problem::too_many("quota_transforms", detail, wait)
        })
    }

    /// Transforms took this long.
    pub(crate) fn took(&self, cpu: Duration) {
        let us = u64::try_from(cpu.as_micros()).unwrap_or(u64::MAX);
        self.counters.transform_us.inc_by(us);
        self.transform_us.charge(us, || self.now_ns());
    }

    /// A transform was called with so many rows by a job, and took this long. It is counted, and limited by nothing: the quota is
    /// what requests may take.
    pub fn job_took(&self, rows: usize, cpu: Duration) {
        self.counters.job_rows.inc_by(rows as u64);
        self.counters.job_transform_us.inc_by(u64::try_from(cpu.as_micros()).unwrap_or(u64::MAX));
    }

    /// So many rows were served.
    pub(crate) fn served(&self, rows: usize) {
        self.counters.rows.inc_by(rows as u64);
    }

    fn over(&self, what: &str, pace: &Pace) -> String {
        let most = pace.most_per_s.load(Ordering::Relaxed);
        format!("the project `{}` may have {most} {what}, and asks for more; ask more slowly", self.name)
    }
}

/// So much in a second, and at most a second's worth at once. What was taken is a time up to which the allowance is used, so
/// that no clock has to tick; and where there is no limit, as mostly, none is asked.
#[derive(Debug)]
struct Pace {
    /// `u64::MAX`: as much as anybody wants.
    most_per_s: AtomicU64,
    used_up_to_ns: AtomicU64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { most_per_s: AtomicU64::new(u64::MAX), used_up_to_ns: AtomicU64::new(0) }
    }
}

impl Pace {
    fn limit(&self, most_per_s: Option<u64>) {
        let most_per_s = most_per_s.unwrap_or(u64::MAX);
        // What was used at another pace says nothing of this one.
        if self.most_per_s.swap(most_per_s, Ordering::Relaxed) != most_per_s {
            self.used_up_to_ns.store(0, Ordering::Relaxed);
        }
    }

    /// Takes so much if there is as much, or says how long to wait.
    fn take(&self, amount: u64, now_ns: impl FnOnce() -> u64) -> Result<(), Duration> {
        let Some(cost_ns) = self.cost_ns(amount) else { return Ok(()) };
        let now_ns = now_ns();
        let mut used = self.used_up_to_ns.load(Ordering::Relaxed);
        loop {
            let after = used.max(now_ns).saturating_add(cost_ns);
            let most = now_ns.saturating_add(SECOND_NS);
            if after > most {
                return Err(Duration::from_nanos((after - most).min(60 * SECOND_NS)));
            }
            match self.used_up_to_ns.compare_exchange_weak(used, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => used = now,
            }
        }
    }

    /// Whether anything is left, or how long to wait until there is.
    fn check(&self, now_ns: impl FnOnce() -> u64) -> Result<(), Duration> {
        let most_per_s = self.most_per_s.load(Ordering::Relaxed);
        if most_per_s == u64::MAX {
            return Ok(());
        }
        if most_per_s == 0 {
            return Err(Duration::from_secs(60));
        }
        let used = self.used_up_to_ns.load(Ordering::Relaxed);
        let most = now_ns().saturating_add(SECOND_NS);
        if used >= most {
            return Err(Duration::from_nanos((used - most).clamp(1, 60 * SECOND_NS)));
        }
        Ok(())
    }

    /// Takes so much, whether it is there or not.
    fn charge(&self, amount: u64, now_ns: impl FnOnce() -> u64) {
        let Some(cost_ns) = self.cost_ns(amount) else { return };
        let now_ns = now_ns();
        let charged = |used: u64| Some(used.max(now_ns).saturating_add(cost_ns));
        let _always = self.used_up_to_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, charged);
    }

    /// For how long so much uses the allowance up; `None`: there is no limit.
    fn cost_ns(&self, amount: u64) -> Option<u64> {
        let most_per_s = self.most_per_s.load(Ordering::Relaxed);
        if most_per_s == u64::MAX {
            return None;
        }
        let cost_ns = u128::from(amount) * u128::from(SECOND_NS) / u128::from(most_per_s.max(1));
        // Where nothing is allowed, anything is too much.
        Some(if most_per_s == 0 { u64::MAX } else { u64::try_from(cost_ns).unwrap_or(u64::MAX) })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn limited(most_per_s: u64) -> Pace {
        let pace = Pace::default();
        pace.limit(Some(most_per_s));
        pace
    }

    #[test]
    fn a_seconds_worth_at_once_and_then_as_much_as_time_gives() {
        let pace = limited(10);
        let taken = (0..100).filter(|_| pace.take(1, || 0).is_ok()).count();
        assert_eq!(taken, 10);
        assert_eq!(pace.take(1, || 0).unwrap_err(), Duration::from_millis(100));
        assert!(pace.take(1, || SECOND_NS / 10).is_ok() && pace.take(1, || SECOND_NS / 10).is_err());
        // However long nobody asks, no more than a second's worth is saved up.
        let taken = (0..100).filter(|_| pace.take(1, || 3_600 * SECOND_NS).is_ok()).count();
        assert_eq!(taken, 10);
    }

    #[test]
    fn what_is_charged_is_paid_back() {
        let pace = limited(500_000);
        assert_eq!(pace.check(|| 0), Ok(()));
        pace.charge(2_000_000, || 0);
        assert_eq!(pace.check(|| 0), Err(Duration::from_secs(3)));
        assert!(pace.check(|| 3 * SECOND_NS).is_err());
        assert_eq!(pace.check(|| 3 * SECOND_NS + 1), Ok(()));
    }

    #[test]
    fn no_limit_is_none_and_zero_is_nothing() {
        let pace = Pace::default();
        assert!((0..1_000).all(|_| pace.take(1_000_000, || 0).is_ok()) && pace.check(|| 0).is_ok());
        let pace = limited(0);
        assert!(pace.take(1, || 0).is_err() && pace.check(|| u64::MAX / 2).is_err());
        pace.limit(None);
        assert!(pace.take(1, || 0).is_ok() && pace.check(|| 0).is_ok());
    }
}
