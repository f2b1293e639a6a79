//! Work that ends when its job is called off, whatever it waits for.

use std::future::Future;

use crate::backfill::Cancel;
use crate::error::OfflineError;

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

/// For work that computes without ever waiting: a place at which it ends when its job is called off.
///
/// # Errors
/// [`OfflineError::Cancelled`].
pub(crate) fn check_cancelled(cancel: &Cancel) -> Result<(), OfflineError> {
    if cancel.is_cancelled() { Err(OfflineError::Cancelled) } else { Ok(()) }
}
