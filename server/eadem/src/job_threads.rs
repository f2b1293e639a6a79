//! The threads that the work of jobs takes.

use std::io;
use std::sync::OnceLock;

use eadem_engine::{Background, step_back};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::{JoinError, JoinHandle};

/// Where the work of jobs runs: on the threads of the process, whose only work it is; or on threads of its own, that step back
/// behind those of requests.
#[derive(Default)]
pub(crate) struct JobThreads {
    /// A priority belongs to a thread and is never raised again, so all threads that work of jobs can get to are its own: those
    /// that poll, those that block, and whatever either starts.
    own: OnceLock<Runtime>,
}

impl JobThreads {
    /// From now on jobs give way: requests are served beside them.
    pub(crate) fn step_back(&self) -> io::Result<()> {
        let mut builder = Builder::new_multi_thread();
        let lowered = builder.enable_all().thread_name("eadem-jobs").on_thread_start(|| step_back(Background::Job));
        if let Err(second) = self.own.set(lowered.build()?) {
            second.shutdown_background();
        }
        Ok(())
    }

    /// Does this work and gives what it comes to. When nobody waits for it any more it ends.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, JoinError> {
        let mut work = EndOnDrop(match self.own.get() {
            Some(own) => own.spawn(work),
            None => Handle::current().spawn(work),
        });
        (&mut work.0).await
    }
}

impl Drop for JobThreads {
    fn drop(&mut self) {
        if let Some(own) = self.own.take() {
            // The last handle may be dropped by a job, and a thread cannot wait for itself.
            own.shutdown_background();
        }
    }
}

struct EndOnDrop<T>(JoinHandle<T>);

impl<T> Drop for EndOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The niceness of the thread that asks, as the kernel tells it.
    fn niceness() -> i32 {
        let told = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        // The name of the thread stands in brackets and may hold anything; niceness is the 19th field, the 17th after it.
        let (_, after_name) = told.rsplit_once(") ").unwrap();
        after_name.split(' ').nth(16).unwrap().parse().unwrap()
    }

    /// Of the thread that polls, of one that blocks, and of one that this one starts.
    async fn niceness_at_work() -> [i32; 3] {
        let blocking = tokio::task::spawn_blocking(|| {
            let started = std::thread::spawn(niceness).join().unwrap();
            [niceness(), started]
        });
        let [blocked, started] = blocking.await.unwrap();
        [niceness(), blocked, started]
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn beside_requests_all_work_of_jobs_steps_back_and_nothing_else_does() {
        let threads = JobThreads::default();
        let own = niceness();
        assert_eq!(threads.run(niceness_at_work()).await.unwrap(), [own; 3], "it has the process to itself");
        threads.step_back().unwrap();
        assert_eq!(threads.run(niceness_at_work()).await.unwrap(), [own.max(Background::Job as i32); 3]);
        let requests = tokio::spawn(niceness_at_work());
        assert_eq!(requests.await.unwrap(), [own; 3]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn work_that_nobody_waits_for_ends() {
        let threads = JobThreads::default();
        threads.step_back().unwrap();
        let (held, dropped) = tokio::sync::oneshot::channel::<()>();
        let mut work = Box::pin(threads.run(async move {
            let _held = held;
            std::future::pending::<()>().await;
        }));
        assert!(futures::poll!(work.as_mut()).is_pending());
        drop(work);
        assert!(dropped.await.is_err(), "what it held is dropped");
    }
}
