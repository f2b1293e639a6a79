//! When a backfill is stopped over the rows that it refuses.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::ledger::{ChunkOutcome, JobPlan};

const MILLIONTHS: u128 = 1_000_000;

/// The greatest share of refused rows that a backfill commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopThreshold {
    /// In millionths of the rows that `where` and the job's range left to it.
    pub share_ppm: u32,
    /// Of fewer rows than this no share is taken.
    pub rows_min: u64,
}

/// How many rows a job has looked at, and how many of them it has refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RefusedShare {
    pub(crate) rows: u64,
    pub(crate) refused: u64,
}

impl StopThreshold {
    /// The share, as people write it.
    pub fn share(self) -> f64 {
        f64::from(self.share_ppm) / 1e6
    }

    /// Whether these rows are too many refused ones, as a whole.
    pub(crate) fn is_exceeded(self, of: RefusedShare) -> bool {
        of.rows >= self.rows_min && self.is_beyond(of.refused, of.rows)
    }

    /// Whether the threshold will be exceeded whatever else the job meets, of `rows_max` rows in all.
    fn is_certain(self, so_far: RefusedShare, rows_max: u64) -> bool {
        so_far.rows >= self.rows_min && self.is_beyond(so_far.refused, rows_max)
    }

    fn is_beyond(self, refused: u64, rows: u64) -> bool {
        u128::from(refused) * MILLIONTHS > u128::from(self.share_ppm) * u128::from(rows)
    }
}

impl RefusedShare {
    /// Of what finished chunks have left behind.
    pub(crate) fn of(outcomes: &[ChunkOutcome]) -> Self {
        let refused = outcomes.iter().flat_map(|outcome| outcome.refused.values()).sum();
        let others = outcomes.iter().map(|outcome| outcome.rows_stored + outcome.rows_dropped).sum::<u64>();
        Self { rows: others + refused, refused }
    }
}

/// Counts while chunks are at work, so that a job that cannot succeed any more ends before it has read everything.
///
/// What it decides is what the counts of the whole job would decide: it only ever says what is certain.
#[derive(Debug)]
pub(crate) struct StopWatch {
    threshold: Option<StopThreshold>,
    /// More rows than this the job does not have.
    rows_max: u64,
    rows: AtomicU64,
    refused: AtomicU64,
    has_stopped: AtomicBool,
    /// What chunks that were stopped half way had refused until then.
    parts: Mutex<Vec<ChunkOutcome>>,
}

impl StopWatch {
    /// For a job with these chunks behind it.
    pub(crate) fn new(threshold: Option<StopThreshold>, plan: &JobPlan, done: &[ChunkOutcome]) -> Self {
        let so_far = RefusedShare::of(done);
        Self {
            threshold,
            rows_max: plan.chunks.iter().map(|chunk| chunk.rows).sum(),
            rows: AtomicU64::new(so_far.rows),
            refused: AtomicU64::new(so_far.refused),
            has_stopped: AtomicBool::new(false),
            parts: Mutex::default(),
        }
    }

    /// Counts a batch, and stops the job if the threshold is certain to be exceeded.
    pub(crate) fn add(&self, rows: u64, refused: u64) {
        let Some(threshold) = self.threshold else { return };
        let rows = self.rows.fetch_add(rows, Ordering::SeqCst) + rows;
        let refused = self.refused.fetch_add(refused, Ordering::SeqCst) + refused;
        let so_far = RefusedShare { rows, refused };
        if threshold.is_certain(so_far, self.rows_max.max(rows)) {
            self.has_stopped.store(true, Ordering::SeqCst);
        }
    }

    /// Whether the job is to stop.
    pub(crate) fn has_stopped(&self) -> bool {
        self.has_stopped.load(Ordering::SeqCst)
    }

    /// Keeps what a chunk has refused until it was stopped.
    pub(crate) fn keep(&self, part: ChunkOutcome) {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).push(part);
    }

    /// What was kept.
    pub(crate) fn parts(&self) -> Vec<ChunkOutcome> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_exceeded_by_more_than_it_says_and_only_of_enough_rows() {
        let threshold = StopThreshold { share_ppm: 50_000, rows_min: 100 };
        let exceeded = |refused, rows| threshold.is_exceeded(RefusedShare { rows, refused });
        assert!(!exceeded(5, 100) && exceeded(6, 100) && exceeded(6, 119) && !exceeded(6, 120));
        assert!(!exceeded(99, 99) && !exceeded(0, 100));
        assert!(exceeded(u64::MAX, u64::MAX));
        let none = StopThreshold { share_ppm: 0, rows_min: 1 };
        assert!(none.is_exceeded(RefusedShare { rows: u64::MAX, refused: 1 }));
        assert!(!none.is_exceeded(RefusedShare { rows: 0, refused: 0 }));
        let never = StopThreshold { share_ppm: 1_000_000, rows_min: 1 };
        assert!(!never.is_exceeded(RefusedShare { rows: 7, refused: 7 }));
    }

    #[test]
    fn what_is_certain_early_is_decided_the_same_at_the_end() {
        let threshold = StopThreshold { share_ppm: 100_000, rows_min: 10 };
        for rows_max in 10..60_u64 {
            for rows in 10..=rows_max {
                for refused in 0..=rows {
                    let so_far = RefusedShare { rows, refused };
                    if threshold.is_certain(so_far, rows_max) {
                        // Even if all others are sound.
                        assert!((rows..=rows_max).all(|rows| threshold.is_exceeded(RefusedShare { rows, refused })));
                    }
                }
            }
        }
    }
}
