//! A file that is written part by part and appears whole.

use bytes::Bytes;
use eadem_values::Digest;
use object_store::{ObjectStoreExt, WriteMultipart};
use sha2::{Digest as _, Sha256};

use crate::error::OfflineError;
use crate::location::Location;

/// Parts of a file that are on their way to the store at once.
const PARTS_IN_FLIGHT_MAX: usize = 2;

/// A file that nobody sees before it is published. Dropped, it leaves nothing on a local disk; an object store forgets its
/// parts when it is discarded.
pub(crate) struct Upload {
    place: Location,
    parts: WriteMultipart,
    hasher: Sha256,
}

impl Upload {
    pub(crate) async fn begin(place: Location) -> Result<Self, OfflineError> {
        // The store would find it out when everything is written.
        if place.local_path().is_some_and(|path| path.is_dir()) {
            let reason = "cannot be written: it is a folder".to_owned();
            return Err(OfflineError::File { file: place.url.to_string(), reason });
        }
        let parts = place.store.put_multipart(&place.path).await.map_err(|error| cannot_write(&place, &error))?;
        Ok(Self { place, parts: WriteMultipart::new(parts), hasher: Sha256::new() })
    }

    /// The next bytes.
    pub(crate) async fn send(&mut self, bytes: impl Into<Bytes>) -> Result<(), OfflineError> {
        let bytes = bytes.into();
        self.hasher.update(&bytes);
        self.parts.put(bytes);
        let sent = self.parts.wait_for_capacity(PARTS_IN_FLIGHT_MAX).await;
        sent.map_err(|error| cannot_write(&self.place, &error))
    }

    /// As [`Upload::send`], one after the other.
    pub(crate) async fn send_all(&mut self, pieces: Vec<Bytes>) -> Result<(), OfflineError> {
        for piece in pieces {
            self.send(piece).await?;
        }
        Ok(())
    }

    /// Of the bytes so far.
    pub(crate) fn digest(&self) -> Digest {
        Digest::from_bytes(self.hasher.clone().finalize().into())
    }

    /// Puts the file in its place, whole.
    pub(crate) async fn publish(self) -> Result<(), OfflineError> {
        self.parts.finish().await.map(|_| ()).map_err(|error| cannot_write(&self.place, &error))
    }

    /// Takes back what was written.
    pub(crate) async fn discard(self) -> Result<(), OfflineError> {
        self.parts.abort().await.map_err(|error| cannot_write(&self.place, &error))
    }
}

fn cannot_write(place: &Location, error: &object_store::Error) -> OfflineError {
    OfflineError::File { file: place.url.to_string(), reason: format!("cannot be written: {error}") }
}
