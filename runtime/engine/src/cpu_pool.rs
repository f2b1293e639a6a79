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

type Job = Box<dyn FnOnce() + Send>;

/// Threads that run jobs in the order in which they came. Dropping it finishes what was accepted.
pub struct CpuPool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    has_changed: Condvar,
    queue_jobs_max: usize,
}

struct Queue {
    jobs: VecDeque<Job>,
    is_closed: bool,
}

/// The queue is full: whoever asks should be told to come back later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{waiting} jobs wait for the CPU pool already (cpu_queue_jobs_max)")]
pub struct PoolFull {
    /// `cpu_queue_jobs_max`.
    pub waiting: usize,
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
            queue: Mutex::new(Queue { jobs: VecDeque::new(), is_closed: false }),
            has_changed: Condvar::new(),
            queue_jobs_max: config.cpu_queue_jobs_max as usize,
        });
        let mut pool = Self { shared, threads: Vec::with_capacity(count) };
        for number in 0..count {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name(format!("engine-cpu-{number}")).spawn(move || shared.work());
            pool.threads.push(thread.map_err(|error| format!("a thread of the CPU pool: {error}"))?);
        }
        Ok(pool)
    }

    /// Queues a job; the future gives its result. A future that is dropped leaves its job to run for nothing.
    ///
    /// # Errors
    /// [`PoolFull`] at once, without waiting.
    pub fn submit<T, F>(&self, job: F) -> Result<Pending<T>, PoolFull>
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
        let waiting = queue.jobs.len();
        if waiting >= self.shared.queue_jobs_max {
            return Err(PoolFull { waiting });
        }
        queue.jobs.push_back(Box::new(run));
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
        while let Some(job) = self.next() {
            job();
        }
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
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
