//! Loading: a view's offline rows into a table of the online store, by several threads; and switching to what was loaded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::bail;
use arrow_array::ArrayRef;
use bytes::Bytes;
use eadem_offline::{Cancel, FileScan, HistoryBatch, OfflineError};
use eadem_online::{KeyBytes, OnlineStore, Row, RowBody, TableId};
use eadem_registry::EpochState;
use eadem_registry::model::ViewVersion;
use eadem_values::BatchEncoder;
use futures::TryStreamExt as _;
use futures::stream::BoxStream;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::home::Stores;
use crate::load_record::LoadRecord;
use crate::pace::Pace;

/// Files on their way, as the offline store gives them.
type Files = BoxStream<'static, Result<FileScan, OfflineError>>;

/// Where rows go, and how.
pub(crate) struct Load {
    pub(crate) store: Arc<dyn OnlineStore>,
    pub(crate) table: TableId,
    pub(crate) pace: Arc<Pace>,
    pub(crate) cancel: Cancel,
    /// Told after every batch how many rows it were so far.
    pub(crate) report: Arc<dyn Fn(u64) + Send + Sync>,
    /// Where it is noted which files are loaded; `None`: whoever starts over starts from the beginning.
    pub(crate) record: Option<LoadRecord>,
}

impl Load {
    /// Hands the rows of all parts to the store, each part from a thread of its own: reading and decoding takes most of the time,
    /// and is nothing for the threads of requests. Says how many rows it were.
    ///
    /// # Errors
    /// What went wrong first, once all threads have ended; or that the job was called off.
    pub(crate) async fn run(self, parts: Vec<Files>) -> anyhow::Result<u64> {
        let shared = Arc::new(Loading { load: self, has_failed: AtomicBool::new(false), rows: AtomicU64::new(0) });
        let mut threads = JoinSet::new();
        for part in parts {
            let (shared, runtime) = (Arc::clone(&shared), Handle::current());
            threads.spawn_blocking(move || runtime.block_on(shared.load_part(part)));
        }
        let mut outcome = Ok(());
        while let Some(ended) = threads.join_next().await {
            let ended = ended.unwrap_or_else(|panic| Err(anyhow::anyhow!("a thread of the load broke off: {panic}")));
            if ended.is_err() {
                shared.has_failed.store(true, Ordering::Relaxed);
            }
            outcome = outcome.and(ended);
        }
        outcome.map(|()| shared.rows.load(Ordering::Relaxed))
    }
}

/// What the threads of a load share.
struct Loading {
    load: Load,
    has_failed: AtomicBool,
    rows: AtomicU64,
}

impl Loading {
    async fn load_part(&self, mut files: Files) -> anyhow::Result<()> {
        while let Some(file) = files.try_next().await? {
            let Some(rows) = self.load_file(file.rows).await? else { return Ok(()) };
            if let Some(record) = &self.load.record {
                record.file_done(&file.path, rows).await?;
            }
        }
        Ok(())
    }

    /// Says how many rows it were; `None` if the load has failed elsewhere.
    async fn load_file(
        &self,
        mut batches: BoxStream<'static, Result<HistoryBatch, OfflineError>>,
    ) -> anyhow::Result<Option<u64>> {
        let mut rows_of_file = 0;
        while let Some(batch) = batches.try_next().await? {
            let mut rows = online_rows(&batch)?.into_iter();
            while rows.len() > 0 {
                let piece: Vec<Row> = rows.by_ref().take(self.load.pace.rows_at_once()).collect();
                self.load.pace.wait_for(piece.len(), &self.load.cancel).await;
                if self.load.cancel.is_cancelled() {
                    bail!("cancelled");
                }
                if self.has_failed.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                let rows_of_piece = piece.len() as u64;
                self.load.store.bulk_load(self.load.table, piece).await?;
                let rows_before = self.rows.fetch_add(rows_of_piece, Ordering::Relaxed);
                (self.load.report)(rows_before + rows_of_piece);
            }
            rows_of_file += batch.len() as u64;
        }
        Ok(Some(rows_of_file))
    }
}

/// Offline rows as the online store keeps them: values in the canonical row encoding. Where a row came from stays offline.
fn online_rows(batch: &HistoryBatch) -> anyhow::Result<Vec<Row>> {
    let keys = encoded_rows(batch.keys(), batch.len(), |_| true)?;
    let values = encoded_rows(batch.values(), batch.len(), |row| batch.error(row).is_none())?;
    let rows = keys.into_iter().zip(values).enumerate().map(|(row, (key, values))| Row {
        key: KeyBytes::new(key),
        order: batch.order(row),
        body: RowBody { values, error: batch.error(row).map(str::to_owned), origin: None },
    });
    Ok(rows.collect())
}

/// The canonical encoding of each row over these columns, empty for rows that are not wanted; all in one piece of memory.
fn encoded_rows(columns: &[ArrayRef], rows: usize, is_wanted: impl Fn(usize) -> bool) -> anyhow::Result<Vec<Bytes>> {
    let encoder = BatchEncoder::try_new(columns)?;
    let mut bytes = Vec::new();
    let mut ends = Vec::with_capacity(rows);
    for row in 0..rows {
        if is_wanted(row) {
            encoder.encode_row(row, &mut bytes);
        }
        ends.push(bytes.len());
    }
    let bytes = Bytes::from(bytes);
    let starts = std::iter::once(0).chain(ends.iter().copied());
    Ok(starts.zip(&ends).map(|(start, end)| bytes.slice(start..*end)).collect())
}

/// Makes a loaded epoch the one that is read, and drops those that nobody reads any more. Where the epoch has another
/// placement than the one before, requests that began before read on in that one: the next load drops it.
///
/// # Errors
/// A registry that cannot be written.
pub(crate) async fn switch(stores: &Stores, view: &ViewVersion, epoch: u32) -> anyhow::Result<()> {
    let before = stores.registry.current_epoch(&view.id).await?;
    stores.registry.make_epoch_current(&view.id, epoch, stores.clock.now_us()).await?;
    let placement = view.stored.as_ref().map(|stored| stored.deployment.placement);
    let still_read = before.filter(|before| Some(before.placement) != placement).map(|before| before.epoch);
    if let Err(error) = drop_retired_epochs(stores, view, still_read).await {
        tracing::warn!(view = %view.id, %error, "an epoch that nobody reads is still there; the next load drops it");
    }
    Ok(())
}

/// Drops what no server reads any more: epochs before the current one, and those that a killed load left behind.
async fn drop_retired_epochs(stores: &Stores, view: &ViewVersion, still_read: Option<u32>) -> anyhow::Result<()> {
    let epochs = stores.registry.epochs(Some(&view.id)).await?;
    let current = epochs.iter().find(|epoch| epoch.state == EpochState::Current).map(|epoch| epoch.epoch);
    for epoch in &epochs {
        let is_over = epoch.state == EpochState::Retired
            || (epoch.state == EpochState::Loading && current.is_some_and(|current| epoch.epoch < current));
        if !is_over || Some(epoch.epoch) == still_read {
            continue;
        }
        if epoch.state == EpochState::Loading {
            stores.registry.retire_epoch(&view.id, epoch.epoch, stores.clock.now_us()).await?;
        }
        stores.online()?.drop_epoch(TableId { view: view.digest, epoch: u64::from(epoch.epoch) }).await?;
        stores.registry.forget_epoch(&view.id, epoch.epoch).await?;
    }
    Ok(())
}

/// Takes back an epoch whose load broke off.
pub(crate) async fn give_epoch_up(stores: &Stores, view: &ViewVersion, epoch: u32, table: TableId) {
    if let Err(error) = stores.registry.retire_epoch(&view.id, epoch, stores.clock.now_us()).await {
        tracing::warn!(view = %view.id, epoch, %error, "an epoch that was not loaded could not be retired");
    }
    let Ok(store) = stores.online() else { return };
    if let Err(error) = store.drop_epoch(table).await {
        tracing::warn!(view = %view.id, epoch, %error, "an epoch that was not loaded could not be dropped");
    }
}
