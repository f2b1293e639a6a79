//! Whether two tables of a view version, one for each placement, hold the same rows.

use eadem_values::{BatchEncoder, Digest};
use futures::{StreamExt as _, TryStreamExt as _};

use crate::cancel::Cancel;
use crate::error::OfflineError;
use crate::read::HistoryBatch;
use crate::table::ViewTable;

/// The rows of a table, in no order: two that are equal stand for the same rows, and so for the same answers, because the
/// stored values of a row follow from its bound inputs, of which it has the digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowsDigest {
    /// How many there are.
    pub rows: u64,
    /// The sum of digests of keys, times and tie digests.
    sum: u128,
}

impl RowsDigest {
    fn add(&mut self, batch: &HistoryBatch) -> Result<(), OfflineError> {
        let encoder = BatchEncoder::try_new(batch.keys())?;
        let mut bytes = Vec::new();
        for row in 0..batch.len() {
            bytes.clear();
            encoder.encode_row(row, &mut bytes);
            let order = batch.order(row);
            bytes.extend_from_slice(&order.event_time_us.to_le_bytes());
            bytes.extend_from_slice(&order.known_at_us.to_le_bytes());
            bytes.extend_from_slice(order.tie.as_bytes());
            let mut digest = [0; 16];
            digest.copy_from_slice(&Digest::of(&bytes).as_bytes()[..16]);
            self.sum = self.sum.wrapping_add(u128::from_le_bytes(digest));
        }
        self.rows += batch.len() as u64;
        Ok(())
    }
}

impl ViewTable {
    /// The digest of all rows of the current version; erased ones are none.
    ///
    /// # Errors
    /// A table that cannot be read, cancellation.
    pub async fn rows_digest(&self, cancel: &Cancel) -> Result<RowsDigest, OfflineError> {
        let mut digest = RowsDigest { rows: 0, sum: 0 };
        // Stored values need not be read.
        let mut table = self.clone();
        table.schema.values.clear();
        let Some(scan) = table.scan_in_parts(1).await? else { return Ok(digest) };
        let files = futures::stream::iter(scan.parts).flatten();
        let mut batches = files.map_ok(|file| file.rows).try_flatten();
        while let Some(batch) = batches.try_next().await? {
            cancel.check()?;
            digest.add(&batch)?;
        }
        Ok(digest)
    }
}
