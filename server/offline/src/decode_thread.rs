//! Where files are decoded.

use std::future::Future;

use tokio::runtime::Handle;

use crate::error::OfflineError;

/// Runs what reads and decodes files on a thread of its own: decoding takes far longer than waiting for bytes, and the runtime's
/// own threads do not have that time.
///
/// # Errors
/// Those of `work`, and [`OfflineError::Worker`] where it panics.
pub(crate) async fn on_own_thread<T: Send + 'static>(
    work: impl Future<Output = Result<T, OfflineError>> + Send + 'static,
) -> Result<T, OfflineError> {
    let runtime = Handle::current();
    let ended = tokio::task::spawn_blocking(move || runtime.block_on(work)).await;
    ended.unwrap_or_else(|error| Err(OfflineError::Worker(error.to_string())))
}
