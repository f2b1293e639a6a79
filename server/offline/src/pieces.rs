//! Where a file is encoded before it goes to a store.

use std::io::Write;

use bytes::Bytes;

/// What is handed on at once.
const PIECE_BYTES: usize = 1 << 20;

/// Bytes that were written, in pieces: one buffer for a whole row group would be copied whenever it grows.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    full: Vec<Bytes>,
    next: Vec<u8>,
}

impl Pieces {
    /// What was written since the last call.
    pub(crate) fn take(&mut self) -> Vec<Bytes> {
        if !self.next.is_empty() {
            self.full.push(std::mem::take(&mut self.next).into());
        }
        std::mem::take(&mut self.full)
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.next.capacity() == 0 {
            self.next.reserve_exact(PIECE_BYTES);
        }
        let room = self.next.capacity() - self.next.len();
        let taken = bytes.len().min(room);
        self.next.extend_from_slice(&bytes[..taken]);
        if taken == room {
            self.full.push(std::mem::take(&mut self.next).into());
        }
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
