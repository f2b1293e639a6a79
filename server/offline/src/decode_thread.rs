//! Threads on which files are decoded and encoded: that takes far longer than waiting for bytes, and the runtime's own threads do
//! not have the time.
//!
//! Of those that wait, the one that was at work last is the next: what it has freed it uses again. The runtime's threads for
//! blocking work take turns, and every one of them comes to hold memory of its own: a training set of 1 M rows touched a third
//! more of it.

use std::any::Any;
use std::collections::HashMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use tokio::runtime::{Handle, Id};
use tokio::sync::oneshot;

use crate::error::OfflineError;

/// How long a thread waits for more work before it ends.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// Does what has to be done, and gives what tells of it.
type Work = Box<dyn FnOnce() -> Tell + Send>;

type Tell = Box<dyn FnOnce()>;

/// A thread that waits for work.
struct Waiting {
    thread: ThreadId,
    next: Sender<Work>,
}

/// Those that wait, by the runtime that they work for: the jobs of a server have one, whose threads step back behind others, and
/// a thread is started by one that does.
fn waiting() -> MutexGuard<'static, HashMap<Id, Vec<Waiting>>> {
    static WAITING: LazyLock<Mutex<HashMap<Id, Vec<Waiting>>>> = LazyLock::new(Mutex::default);
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs what reads and decodes files on a thread of its own.
///
/// # Errors
/// Those of `work`, and [`OfflineError::Worker`] where it panics.
pub(crate) async fn on_own_thread<T: Send + 'static>(
    work: impl Future<Output = Result<T, OfflineError>> + Send + 'static,
) -> Result<T, OfflineError> {
    let runtime = Handle::current();
    Beside::start(&runtime.clone(), move || runtime.block_on(work))?.result().await?
}

/// Work on another thread.
pub(crate) struct Beside<T>(oneshot::Receiver<std::thread::Result<T>>);

impl<T: Send + 'static> Beside<T> {
    /// Starts it, on a thread of this runtime's.
    ///
    /// # Errors
    /// [`OfflineError::Worker`] where no thread can be started.
    pub(crate) fn start(runtime: &Handle, work: impl FnOnce() -> T + Send + 'static) -> Result<Self, OfflineError> {
        let (done, result) = oneshot::channel();
        let work = move || -> Tell {
            let result = catch_unwind(AssertUnwindSafe(work));
            // Nobody may wait for it any more.
            Box::new(move || drop(done.send(result)))
        };
        give(runtime.id(), Box::new(work))?;
        Ok(Self(result))
    }

    /// What came of it.
    ///
    /// # Errors
    /// [`OfflineError::Worker`] where it panicked.
    pub(crate) async fn result(self) -> Result<T, OfflineError> {
        let ended = self.0.await.map_err(|error| OfflineError::Worker(error.to_string()))?;
        ended.map_err(|panic| OfflineError::Worker(told(panic.as_ref())))
    }
}

fn told(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("a thread that decodes or encodes files panicked: {}", text.unwrap_or_default())
}

/// Gives work to the thread that has ended its own last, or to a new one.
fn give(runtime: Id, mut work: Work) -> Result<(), OfflineError> {
    loop {
        let last = waiting().get_mut(&runtime).and_then(Vec::pop);
        let Some(last) = last else { break };
        match last.next.send(work) {
            Ok(()) => return Ok(()),
            Err(unsent) => work = unsent.0,
        }
    }
    let started = std::thread::Builder::new().name("decode".to_owned()).spawn(move || live(runtime, work));
    started.map(|_| ()).map_err(|error| OfflineError::Worker(format!("no thread to decode files with: {error}")))
}

fn live(runtime: Id, first: Work) {
    let (next, works) = channel();
    let thread = std::thread::current().id();
    let mut work = Some(first);
    while let Some(begun) = work {
        let tell = begun();
        // Whoever waits for it may have more work at once.
        waiting().entry(runtime).or_default().push(Waiting { thread, next: next.clone() });
        tell();
        work = next_work(runtime, thread, &works);
    }
}

fn next_work(runtime: Id, thread: ThreadId, works: &Receiver<Work>) -> Option<Work> {
    if let Ok(work) = works.recv_timeout(IDLE_MAX) {
        return Some(work);
    }
    let mut waiting = waiting();
    let of_runtime = waiting.entry(runtime).or_default();
    let place = of_runtime.iter().position(|other| other.thread == thread);
    if let Some(place) = place {
        of_runtime.remove(place);
        if of_runtime.is_empty() {
            waiting.remove(&runtime);
        }
        return None;
    }
    drop(waiting);
    // Someone has chosen this thread at the last moment.
    works.recv().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;

    #[tokio::test]
    async fn the_thread_that_was_at_work_last_is_the_next() {
        let here = async || on_own_thread(async { Ok(std::thread::current().id()) }).await.unwrap();
        let first = here().await;
        for _ in 0..20 {
            assert_eq!(here().await, first);
        }
        let (begin, begun) = oneshot::channel::<()>();
        let held = tokio::spawn(on_own_thread(async move {
            begun.await.unwrap();
            Ok(std::thread::current().id())
        }));
        tokio::task::yield_now().await;
        let other = here().await;
        assert_ne!(other, first);
        begin.send(()).unwrap();
        assert_eq!(held.await.unwrap().unwrap(), first);
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_thread_works_on() {
        let failed = on_own_thread::<()>(async { panic!("of this: {}", 7) }).await.unwrap_err().to_string();
        assert!(failed.contains("panicked: of this: 7"), "{failed}");
        assert_eq!(on_own_thread(async { Ok(5) }).await.unwrap(), 5);
        let failed = on_own_thread::<()>(async { Err(OfflineError::Cancelled) }).await;
        assert!(matches!(failed, Err(OfflineError::Cancelled)));
    }

    #[test]
    fn every_runtime_has_threads_of_its_own() {
        let on_new = || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(on_own_thread(async { Ok(std::thread::current().id()) })).unwrap()
        };
        assert_ne!(on_new(), on_new());
    }
}
