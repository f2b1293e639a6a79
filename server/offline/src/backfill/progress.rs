//! How far a job is.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// How far a job is, counted since this run of it began, except for the chunks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    /// Chunks that are done, those of earlier runs included.
    pub chunks_done: usize,
    /// Chunks that this run has done.
    pub chunks_done_now: usize,
    /// All chunks of the job.
    pub chunks: usize,
    /// Rows read by this run.
    pub rows_read: u64,
    /// Rows of all chunks that were open when this run began.
    pub rows_to_read: u64,
    /// Rows stored by this run.
    pub rows_stored: u64,
    /// Rows refused by this run.
    pub rows_refused: u64,
    /// How long this run has taken.
    pub elapsed: Duration,
}

impl Progress {
    /// Rows read per second since this run began.
    pub fn rows_per_second(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.rows_read as f64 / seconds } else { 0.0 }
    }
}

/// Is told how far a job is, a few times a second. It must not block.
pub trait ProgressSink: Send + Sync {
    /// How far the job is now.
    fn report(&self, progress: &Progress);
}

impl<F: Fn(&Progress) + Send + Sync> ProgressSink for F {
    fn report(&self, progress: &Progress) {
        self(progress);
    }
}

/// Counts what all threads of a run do.
pub(super) struct Meter {
    sink: Option<Arc<dyn ProgressSink>>,
    began: Instant,
    state: Mutex<(Progress, Option<Instant>)>,
}

impl Meter {
    /// Begins to count from `progress` on.
    pub(super) fn new(sink: Option<Arc<dyn ProgressSink>>, progress: Progress) -> Self {
        Self { sink, began: Instant::now(), state: Mutex::new((progress, None)) }
    }

    /// Counts chunks that others have done meanwhile.
    pub(super) fn chunks_elsewhere(&self, chunks: usize) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.0.chunks_done += chunks;
    }

    pub(super) fn add(&self, chunk_done: bool, rows_read: u64, rows_stored: u64, rows_refused: u64) {
        let Some(sink) = &self.sink else { return };
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (progress, reported) = &mut *state;
        progress.chunks_done += usize::from(chunk_done);
        progress.chunks_done_now += usize::from(chunk_done);
        progress.rows_read += rows_read;
        progress.rows_stored += rows_stored;
        progress.rows_refused += rows_refused;
        progress.elapsed = self.began.elapsed();
        if chunk_done || reported.is_none_or(|reported| reported.elapsed() >= PROGRESS_EVERY) {
            *reported = Some(Instant::now());
            sink.report(progress);
        }
    }
}
