//! A bounded number of threads with a bounded queue, for calls that would hold up the thread that asks. It knows
//! nothing of any async runtime: a job is a future that is ready when a thread has run it.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;

use crate::config::EngineConfig;
use crate::priority::{Background, step_back};

/// A job, and the microseconds of processor time that it will probably take.
type Job = (Box<dyn FnOnce() + Send>, u64);

/// What a job of unknown cost counts as.
const UNKNOWN_COST_US: u64 = 10_000;

/// Threads that run jobs in the order in which they came. Dropping it finishes what was accepted.
pub struct CpuPool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    has_changed: Condvar,
    queue_jobs_max: usize,
    /// The most that those who wait may take together, however many threads there are.
    queue_us_max: u64,
}

struct Queue {
    jobs: VecDeque<Job>,
    /// What they will probably take together.
    expected_us: u64,
    is_closed: bool,
}

/// Too much waits: whoever asks should be told to come back later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{waiting} jobs of about {} ms wait for the CPU pool already (cpu_queue_jobs_max, cpu_queue_ms_max)",
    .expected_us.div_ceil(1_000)
)]
pub struct PoolFull {
    /// How many wait.
    pub waiting: usize,
    /// The microseconds of processor time that they will probably take.
    pub expected_us: u64,
}

/// The job panicked, or its pool is gone. A bug of the host; a component cannot cause it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a job of the CPU pool was lost")]
pub struct JobLost;

impl CpuPool {
    /// Starts the threads.
    pub(crate) fn new(config: &EngineConfig) -> Result<Self, String> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let count = if config.cpu_threads == 0 { cores() } else { config.cpu_threads as usize };
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue { jobs: VecDeque::new(), expected_us: 0, is_closed: false }),
            has_changed: Condvar::new(),
            queue_jobs_max: config.cpu_queue_jobs_max as usize,
            queue_us_max: config.cpu_queue_ms_max.saturating_mul(1_000).saturating_mul(count as u64),
        });
        let mut pool = Self { shared, threads: Vec::with_capacity(count) };
        for number in 0..count {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name(format!("engine-cpu-{number}")).spawn(move || shared.work());
            pool.threads.push(thread.map_err(|error| format!("a thread of the CPU pool: {error}"))?);
        }
        Ok(pool)
    }

    /// Queues a job that will probably take so many microseconds of processor time (`None`: nobody knows); the future gives its
    /// result. A future that is dropped leaves its job to run for nothing.
    ///
    /// # Errors
    /// [`PoolFull`] at once, without waiting. A queue in which nothing waits takes any job.
    pub fn submit<T, F>(&self, expected_cpu_us: Option<u64>, job: F) -> Result<Pending<T>, PoolFull>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let slot = Arc::new(Slot(Mutex::new(SlotState { result: None, waker: None })));
        let filled = Filler(Arc::clone(&slot));
        let run = move || {
            let result = catch_unwind(AssertUnwindSafe(job));
            filled.0.fill(result.map_err(|_| JobLost));
        };
        let mut queue = self.shared.lock();
        let (waiting, expected_us) = (queue.jobs.len(), queue.expected_us);
        let cost_us = expected_cpu_us.unwrap_or(UNKNOWN_COST_US);
        let is_too_long = waiting > 0 && expected_us.saturating_add(cost_us) > self.shared.queue_us_max;
        if waiting >= self.shared.queue_jobs_max || is_too_long {
            return Err(PoolFull { waiting, expected_us });
        }
        queue.expected_us = expected_us.saturating_add(cost_us);
        queue.jobs.push_back((Box::new(run), cost_us));
        drop(queue);
        self.shared.has_changed.notify_one();
        Ok(Pending(slot))
    }

    /// Jobs that wait now.
    pub fn waiting(&self) -> usize {
        self.shared.lock().jobs.len()
    }
}

impl Drop for CpuPool {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.has_changed.notify_all();
        let this_thread = std::thread::current().id();
        for thread in self.threads.drain(..) {
            // The last handle to an engine may be dropped by a job of its own pool.
            if thread.thread().id() != this_thread {
                // A thread that panicked has nothing more to finish.
                let _ = thread.join();
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // No code runs under this lock that could leave the queue half changed.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        step_back(Background::LongCall);
        while let Some(job) = self.next() {
            job();
        }
    }

    fn next(&self) -> Option<Box<dyn FnOnce() + Send>> {
        let mut queue = self.lock();
        loop {
            if let Some((job, cost_us)) = queue.jobs.pop_front() {
                queue.expected_us = queue.expected_us.saturating_sub(cost_us);
                return Some(job);
            }
            if queue.is_closed {
                return None;
            }
            queue = self.has_changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

struct Slot<T>(Mutex<SlotState<T>>);

struct SlotState<T> {
    result: Option<Result<T, JobLost>>,
    waker: Option<Waker>,
}

/// Fills the slot at the latest when the job is dropped unrun.
struct Filler<T>(Arc<Slot<T>>);

impl<T> Drop for Filler<T> {
    fn drop(&mut self) {
        self.0.fill(Err(JobLost));
    }
}

impl<T> Slot<T> {
    /// The first to come fills it.
    fn fill(&self, result: Result<T, JobLost>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.result.is_none() {
            state.result = Some(result);
        }
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A job's result to be.
pub struct Pending<T>(Arc<Slot<T>>);

impl<T> Future for Pending<T> {
    type Output = Result<T, JobLost>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
