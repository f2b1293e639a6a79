//! Rows from the online store, and from history what it cannot prove.

use std::sync::Arc;

use async_trait::async_trait;
use eadem_online::{CacheRule, CachedStore, Found, KeyBytes, OnlineStore, PointRead, StoreError, TableId};
use eadem_registry::Registry;
use eadem_registry::model::{Placement, ViewRef, ViewVersion};
use eadem_semantics::{ReadAt, erased};
use eadem_values::EntityKey;

use super::rows::{
    EntityKeys, History, HistoryState, ReadOptions, ReadRow, RowSource, RowSourceError, Store, StoredRow,
};
use crate::followed::{Followed, Unread};

/// Reads the current epoch of the online store; where it cannot prove an answer, the answer is the maximum, in the order
/// of rows, of what it found and what history has. Both speak of one state of the table: where rows were taken out of it
/// since the epoch was loaded, history is read as it was then, until a new epoch takes over.
pub struct OnlineThenHistory {
    registry: Registry,
    online: Arc<CachedStore>,
    history: Arc<dyn History>,
    history_reads_max: usize,
    /// The current epochs, each with what its rows are.
    epochs: Followed<ViewRef, Option<(u64, Placement)>, RowSourceError>,
}

/// Views whose epochs are kept; more, and all are asked for again.
const EPOCHS_MAX: usize = 100_000;

impl OnlineThenHistory {
    /// Over these stores. History is asked for at most `history_reads_max` entities of one view at once.
    pub fn new(
        registry: Registry,
        online: Arc<CachedStore>,
        history: Arc<dyn History>,
        history_reads_max: usize,
    ) -> Self {
        Self { registry, online, history, history_reads_max, epochs: Followed::new(EPOCHS_MAX) }
    }

    /// The epoch to read; never `gone` from memory, which turned out to be dropped.
    async fn current_epoch(&self, view: &ViewVersion, gone: Option<u64>) -> Result<Option<u64>, RowSourceError> {
        if gone.is_some() {
            self.epochs.forget(&view.id, |known| known.map(|(epoch, _)| epoch) == gone);
        }
        let read = |_| {
            let (registry, id) = (self.registry.clone(), view.id.clone());
            async move {
                let epoch = registry.current_epoch(&id).await.map_err(|error| Unread::Failed(online_error(&error)))?;
                Ok(epoch.map(|epoch| (u64::from(epoch.epoch), epoch.placement)))
            }
        };
        let epoch = self.epochs.get(&view.id, self.registry.known_revision(), read).await?;
        // An epoch of the other placement holds other columns: it proves nothing until a new one is loaded.
        let placement = view.stored.as_ref().map(|stored| stored.deployment.placement);
        Ok(epoch.filter(|(_, of_epoch)| Some(*of_epoch) == placement).map(|(epoch, _)| epoch))
    }

    /// The answers, and where one is not proved, the offline commit that the epoch was loaded from.
    async fn read_online(
        &self,
        view: &ViewVersion,
        keys: &[KeyBytes],
        reads: &[ReadAt],
        options: ReadOptions,
    ) -> Result<(Vec<Found>, Option<u64>), RowSourceError> {
        let points: Vec<PointRead<'_>> = keys.iter().zip(reads).map(|(key, at)| PointRead { key, at: *at }).collect();
        let stale_us_max = view.stored.as_ref().and_then(|stored| stored.deployment.cache_us).unwrap_or_default();
        let rule = CacheRule { now_us: options.now_us, stale_us_max, fresh: options.fresh };
        let mut known_epoch = None;
        loop {
            let Some(epoch) = self.current_epoch(view, known_epoch).await? else {
                // Never materialized: nothing is proved.
                return Ok((vec![Found { row: None, proved: false, kept: false }; keys.len()], None));
            };
            let table = TableId { view: view.digest, epoch };
            let found = match self.online.find(table, &points, rule).await {
                Ok(found) if found.iter().any(|found| !found.proved) => {
                    self.online.status(table).await.map(|status| (found, status.coverage.offline_commit))
                }
                found => found.map(|found| (found, None)),
            };
            match found {
                // The epoch was switched and dropped between the two steps: the registry names the new one.
                Err(StoreError::UnknownTable(_)) if known_epoch != Some(epoch) => known_epoch = Some(epoch),
                Ok((found, commit)) => return Ok((found, commit.and_then(|commit| u64::try_from(commit).ok()))),
                Err(error) => return Err(online_error(&error)),
            }
        }
    }
}

fn online_error(error: &dyn std::fmt::Display) -> RowSourceError {
    RowSourceError::Unavailable { store: "online", message: error.to_string() }
}

#[async_trait]
impl RowSource for OnlineThenHistory {
    async fn read(
        &self,
        view: &ViewVersion,
        keys: &EntityKeys,
        reads: &[ReadAt],
        options: ReadOptions,
    ) -> Result<Vec<ReadRow>, RowSourceError> {
        let mut rows = self.read_stores(view, keys, reads, options).await?;
        self.leave_out_erased(view, keys, &mut rows).await?;
        Ok(rows)
    }
}

impl OnlineThenHistory {
    /// Hides rows that are erased, from the moment on at which the registry says so: the stores may hold them for a while.
    async fn leave_out_erased(
        &self,
        view: &ViewVersion,
        keys: &EntityKeys,
        rows: &mut [ReadRow],
    ) -> Result<(), RowSourceError> {
        let Some(stored) = &view.stored else { return Ok(()) };
        let erasures = self.registry.erasures().await.map_err(|error| online_error(&error))?;
        let Some(erasures) = erasures.of(&stored.entity.name) else { return Ok(()) };
        let latest_us = erasures.latest_us();
        for (key, read) in keys.keys().iter().zip(rows) {
            // Whatever it beat lies before it, and is erased as well.
            let is_erased = |row: &StoredRow| {
                let at_us = row.order.event_time_us;
                // Most rows are later than any erasure: their keys need not be hashed.
                at_us <= latest_us && erased(at_us, erasures.up_to_us(key))
            };
            if read.row.as_ref().is_some_and(is_erased) {
                read.row = None;
            }
        }
        Ok(())
    }

    async fn read_stores(
        &self,
        view: &ViewVersion,
        keys: &EntityKeys,
        reads: &[ReadAt],
        options: ReadOptions,
    ) -> Result<Vec<ReadRow>, RowSourceError> {
        let (found, loaded_from) = self.read_online(view, keys.encoded(), reads, options).await?;
        let unproved: Vec<usize> = (0..found.len()).filter(|at| !found[*at].proved).collect();
        let mut rows: Vec<ReadRow> = found.into_iter().map(online_row).collect();
        if unproved.is_empty() {
            return Ok(rows);
        }
        if unproved.len() > self.history_reads_max {
            return Err(RowSourceError::TooManyReads {
                view: view.id.to_string(),
                reads: unproved.len(),
                reads_max: self.history_reads_max,
                why: "because the online store does not reach back so far (online_history), or was not filled (materialize)",
            });
        }
        let keys: Vec<EntityKey> = unproved.iter().map(|at| keys.keys()[*at].clone()).collect();
        let reads: Vec<ReadAt> = unproved.iter().map(|at| reads[*at]).collect();
        let state = loaded_from.map_or(HistoryState::Newest, HistoryState::Beside);
        let historic = match self.history.winners(view, &keys, &reads, state).await {
            Ok(historic) => historic,
            Err(error) => {
                // What the online store proved stands; the others have status error.
                tracing::warn!(view = %view.id, %error, "history could not be read");
                for at in unproved {
                    rows[at] = ReadRow { unavailable: true, ..ReadRow::historic(None) };
                }
                return Ok(rows);
            }
        };
        for (at, historic) in unproved.into_iter().zip(historic) {
            rows[at].store = Store::Offline;
            let online_order = rows[at].row.as_ref().map(|row| row.order);
            if historic.as_ref().map(|row| row.order) > online_order {
                rows[at].row = historic;
            }
        }
        Ok(rows)
    }
}

fn online_row(found: Found) -> ReadRow {
    let row = found.row.map(|row| StoredRow { order: row.order, values: row.values, failed: row.failed });
    ReadRow { row, store: Store::Online, cached: found.kept, unavailable: false }
}
