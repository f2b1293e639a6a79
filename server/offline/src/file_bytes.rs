//! The bytes of a whole file, in order, and their digest: nothing is held but the piece at hand.

use std::io::Read as _;

use bytes::{Bytes, BytesMut};
use eadem_values::Digest;
use futures::stream::{BoxStream, Stream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetResultPayload, ObjectStore, ObjectStoreExt};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt;

/// Bytes of a local file that are read at a time. The object store's own stream of one comes in pieces of a few kilobytes,
/// each from another thread.
const PIECE_BYTES: usize = 1 << 20;

/// Bytes of a local file that are digested at a time: they are still in the processor's cache when they have been read.
const DIGESTED_BYTES: usize = 128 << 10;

/// The file piece by piece, by one request.
pub(crate) async fn pieces(
    store: &dyn ObjectStore,
    path: &Path,
) -> object_store::Result<BoxStream<'static, object_store::Result<Bytes>>> {
    let file = match store.get(path).await?.payload {
        GetResultPayload::Stream(pieces) => return Ok(pieces),
        GetResultPayload::File(file, _) => tokio::fs::File::from_std(file),
    };
    let read = move |mut file: tokio::fs::File| async move {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        let length = file.read_buf(&mut piece).await.map_err(failed_locally)?;
        Ok((length > 0).then(|| (piece.freeze(), file)))
    };
    Ok(futures::stream::try_unfold(file, read).boxed())
}

/// The digest of all pieces together.
pub(crate) async fn digest<E>(mut pieces: impl Stream<Item = Result<Bytes, E>> + Unpin) -> Result<Digest, E> {
    let mut hasher = Sha256::new();
    while let Some(piece) = pieces.try_next().await? {
        hasher.update(&piece);
    }
    Ok(Digest::from_bytes(hasher.finalize().into()))
}

/// The digest of a file.
pub(crate) async fn digest_of(store: &dyn ObjectStore, path: &Path) -> object_store::Result<Digest> {
    match store.get(path).await?.payload {
        GetResultPayload::Stream(pieces) => digest(pieces).await,
        GetResultPayload::File(file, _) => {
            let digested = tokio::task::spawn_blocking(move || digest_of_local(&file)).await;
            digested.map_err(std::io::Error::other).flatten().map_err(failed_locally)
        }
    }
}

/// Piece by piece through the same memory.
fn digest_of_local(mut file: &std::fs::File) -> std::io::Result<Digest> {
    let (mut hasher, mut piece) = (Sha256::new(), vec![0; DIGESTED_BYTES]);
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(Digest::from_bytes(hasher.finalize().into())),
            Ok(length) => hasher.update(&piece[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn failed_locally(error: std::io::Error) -> object_store::Error {
    object_store::Error::Generic { store: "local file", source: error.into() }
}
