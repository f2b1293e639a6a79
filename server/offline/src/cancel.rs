//! How a job is called off, and work that ends then, whatever it waits for.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::error::OfflineError;

/// A switch that stops a job. Clones switch together.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<Switch>);

#[derive(Debug, Default)]
struct Switch {
    thrown: AtomicBool,
    waiting: Notify,
}

impl Cancel {
    /// Asks the job to stop at the next batch.
    pub fn cancel(&self) {
        self.0.thrown.store(true, Ordering::SeqCst);
        self.0.waiting.notify_waiters();
    }

    /// Whether it was asked to.
    pub fn is_cancelled(&self) -> bool {
        self.0.thrown.load(Ordering::SeqCst)
    }

    /// For work that computes without ever waiting: a place at which it ends when its job is called off.
    ///
    /// # Errors
    /// [`OfflineError::Cancelled`].
    pub(crate) fn check(&self) -> Result<(), OfflineError> {
        if self.is_cancelled() { Err(OfflineError::Cancelled) } else { Ok(()) }
    }

    /// Waits until it is asked to.
    pub async fn cancelled(&self) {
        // The order matters: a call between the look and the wait wakes what was made before the look.
        let woken = self.0.waiting.notified();
        if !self.is_cancelled() {
            woken.await;
        }
    }

    /// Waits until it is asked to, but not longer than this.
    pub(crate) async fn cancelled_within(&self, wait: Duration) {
        let _ = tokio::time::timeout(wait, self.cancelled()).await;
    }
}

/// What this work comes to, unless its job is called off first: then the work is dropped where it waits.
///
/// # Errors
/// Those of `work`, and [`OfflineError::Cancelled`].
pub async fn unless_cancelled<T, E: From<OfflineError>>(
    cancel: &Cancel,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(OfflineError::Cancelled.into()),
        done = work => done,
    }
}
