//! A store that forgets everything when the process ends. For tests, and to keep the conformance suite neutral.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use bytes::{BufMut, Bytes};
use eadem_semantics::{ReadAt, RowOrder, erased, is_candidate, trim_mask};
use eadem_values::{Digest, TieDigest};

use crate::{
    Answer, Coverage, KeyBytes, LoadState, Merged, OnlineStore, PointRead, Row, RowBody, ScanCursor, ScanPage,
    StoreError, TableId, TableStatus, Trim, Winner,
};

/// Rows of one entity, newest first.
type History = BTreeMap<Reverse<RowOrder>, RowBody>;

/// A store in the memory of one process.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    tables: BTreeMap<TableId, Table>,
    erasures: HashMap<(Digest, KeyBytes), i64>,
}

#[derive(Debug)]
struct Table {
    state: LoadState,
    claims: Coverage,
    trimmed_to_us: Option<i64>,
    histories: BTreeMap<KeyBytes, History>,
}

impl Table {
    fn new() -> Self {
        Self { state: LoadState::Loading, claims: Coverage::default(), trimmed_to_us: None, histories: BTreeMap::new() }
    }

    fn coverage(&self) -> Coverage {
        self.claims.after_trim(self.trimmed_to_us)
    }

    fn status(&self, table: TableId) -> TableStatus {
        let row_bytes = |history: &History| history.values().map(RowBody::encoded_bytes).sum::<usize>();
        TableStatus {
            table,
            state: self.state,
            coverage: self.coverage(),
            rows: self.histories.values().map(|history| history.len() as u64).sum(),
            bytes: self.histories.iter().map(|(key, rows)| (key.as_slice().len() + row_bytes(rows)) as u64).sum(),
        }
    }

    fn insert(&mut self, row: Row) {
        let history = self.histories.entry(row.key).or_default();
        let stored = history.entry(Reverse(row.order)).or_insert_with(|| row.body.clone());
        if row.body.merge_order(stored).is_gt() {
            *stored = row.body;
        }
    }

    fn winner(&self, key: &KeyBytes, at: ReadAt) -> Option<Winner> {
        let history = self.histories.get(key)?;
        let (order, body) = history.iter().find(|(order, _)| is_candidate(&order.0, at))?;
        Some(Winner { order: order.0, body: body.clone() })
    }

    /// Keeps the rows of which `keep` says so, and says how many went.
    fn retain(&mut self, key: &KeyBytes, mut keep: impl FnMut(&RowOrder) -> bool) -> u64 {
        let Some(history) = self.histories.get_mut(key) else { return 0 };
        let before = history.len();
        history.retain(|order, _| keep(&order.0));
        let removed = before - history.len();
        if history.is_empty() {
            self.histories.remove(key);
        }
        removed as u64
    }
}

impl State {
    fn table(&self, table: TableId) -> Result<&Table, StoreError> {
        self.tables.get(&table).ok_or(StoreError::UnknownTable(table))
    }

    fn table_mut(&mut self, table: TableId) -> Result<&mut Table, StoreError> {
        self.tables.get_mut(&table).ok_or(StoreError::UnknownTable(table))
    }

    fn merge(&mut self, id: TableId, rows: Vec<Row>) -> Result<Merged, StoreError> {
        rows.iter().try_for_each(Row::check_limits)?;
        let table = self.tables.get_mut(&id).ok_or(StoreError::UnknownTable(id))?;
        let mut merged = Merged::default();
        for row in rows {
            let erased_up_to_us = self.erasures.get(&(id.view, row.key.clone())).copied();
            if erased(row.order.event_time_us, erased_up_to_us) {
                merged.erased += 1;
            } else {
                table.insert(row);
                merged.kept += 1;
            }
        }
        Ok(merged)
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    // A panic elsewhere cannot leave half a change behind, because no call changes the state in more than one step that
    // could fail; so a poisoned lock is still good.
    fn reading(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl OnlineStore for MemoryStore {
    fn kind(&self) -> &'static str {
        "memory"
    }

    async fn create_epoch(&self, table: TableId) -> Result<(), StoreError> {
        self.writing().tables.entry(table).or_insert_with(Table::new);
        Ok(())
    }

    async fn drop_epoch(&self, table: TableId) -> Result<(), StoreError> {
        self.writing().tables.remove(&table);
        Ok(())
    }

    async fn tables(&self) -> Result<Vec<TableStatus>, StoreError> {
        Ok(self.reading().tables.iter().map(|(id, table)| table.status(*id)).collect())
    }

    async fn status(&self, table: TableId) -> Result<TableStatus, StoreError> {
        Ok(self.reading().table(table)?.status(table))
    }

    async fn coverage(&self, table: TableId) -> Result<Coverage, StoreError> {
        Ok(self.reading().table(table)?.coverage())
    }

    async fn merge(&self, table: TableId, rows: Vec<Row>) -> Result<Merged, StoreError> {
        self.writing().merge(table, rows)
    }

    async fn bulk_load(&self, table: TableId, rows: Vec<Row>) -> Result<(), StoreError> {
        self.writing().merge(table, rows).map(|_| ())
    }

    async fn finish_load(&self, table: TableId, coverage: Coverage) -> Result<(), StoreError> {
        let mut state = self.writing();
        let table = state.table_mut(table)?;
        table.claims.merge(&coverage);
        table.state = LoadState::Ready;
        Ok(())
    }

    async fn cover(&self, table: TableId, coverage: Coverage) -> Result<(), StoreError> {
        self.writing().table_mut(table)?.claims.merge(&coverage);
        Ok(())
    }

    async fn read(&self, table: TableId, reads: &[PointRead<'_>]) -> Result<Vec<Answer>, StoreError> {
        let state = self.reading();
        let rows = state.table(table)?;
        if rows.state == LoadState::Loading {
            return Err(StoreError::StillLoading(table));
        }
        let coverage = rows.coverage();
        let answer =
            |read: &PointRead<'_>| Answer { winner: rows.winner(read.key, read.at), proved: coverage.proves(read.at) };
        Ok(reads.iter().map(answer).collect())
    }

    async fn ping(&self) -> Result<Option<i64>, StoreError> {
        Ok(None)
    }

    async fn scan(
        &self,
        table: TableId,
        cursor: Option<ScanCursor>,
        page_bytes_max: usize,
    ) -> Result<ScanPage, StoreError> {
        let state = self.reading();
        let histories = &state.table(table)?.histories;
        let after = cursor.and_then(|cursor| decode_cursor(&cursor.0));
        let first_key = after.as_ref().map_or(Bound::Unbounded, |(_, key)| Bound::Included(key.clone()));
        let is_later = |key: &KeyBytes, order: &Reverse<RowOrder>| {
            after.as_ref().is_none_or(|(last_order, last_key)| (key, order) > (last_key, &Reverse(*last_order)))
        };
        let mut page = ScanPage { rows: Vec::new(), next: None };
        let mut page_bytes = 0;
        for (key, history) in histories.range((first_key, Bound::Unbounded)) {
            for (order, body) in history.iter().filter(|(order, _)| is_later(key, order)) {
                if page_bytes >= page_bytes_max.max(1) {
                    page.next = page.rows.last().map(|row| ScanCursor(encode_cursor(row)));
                    return Ok(page);
                }
                page_bytes += key.as_slice().len() + body.encoded_bytes();
                page.rows.push(Row { key: key.clone(), order: order.0, body: body.clone() });
            }
        }
        Ok(page)
    }

    async fn trim(&self, table: TableId, trim: Trim) -> Result<u64, StoreError> {
        let mut state = self.writing();
        let table = state.table_mut(table)?;
        let trimmed_to_us = table.trimmed_to_us.max(Some(trim.complete_since_us));
        table.trimmed_to_us = trimmed_to_us;
        let keys: Vec<KeyBytes> = table.histories.keys().cloned().collect();
        let mut removed = 0;
        for key in keys {
            let orders: Vec<RowOrder> = table.histories[&key].keys().map(|order| order.0).collect();
            let mask = trim_mask(&orders, trim.complete_since_us);
            let mut wins = mask.into_iter();
            removed += table.retain(&key, |order| wins.next().unwrap_or(true) && !trim.forgets(order));
        }
        Ok(removed)
    }

    async fn erase(&self, view: Digest, key: &KeyBytes, up_to_us: i64) -> Result<u64, StoreError> {
        if key.as_slice().len() > crate::KEY_BYTES_MAX {
            return Err(StoreError::KeyTooLong { entity: key.shown(), bytes: key.as_slice().len() });
        }
        let mut state = self.writing();
        let erased_up_to_us = state.erasures.entry((view, key.clone())).or_insert(up_to_us);
        *erased_up_to_us = (*erased_up_to_us).max(up_to_us);
        let epochs = state.tables.iter_mut().filter(|(table, _)| table.view == view);
        Ok(epochs.map(|(_, table)| table.retain(key, |order| !erased(order.event_time_us, Some(up_to_us)))).sum())
    }

    async fn erased_up_to(&self, view: Digest, key: &KeyBytes) -> Result<Option<i64>, StoreError> {
        Ok(self.reading().erasures.get(&(view, key.clone())).copied())
    }
}

/// The last row of a page: its order, then its key.
fn encode_cursor(row: &Row) -> Bytes {
    let mut bytes = Vec::with_capacity(32 + row.key.as_slice().len());
    bytes.put_i64(row.order.event_time_us);
    bytes.put_i64(row.order.known_at_us);
    bytes.put_slice(row.order.tie.as_bytes());
    bytes.put_slice(row.key.as_slice());
    bytes.into()
}

fn decode_cursor(bytes: &[u8]) -> Option<(RowOrder, KeyBytes)> {
    let (event_time, rest) = bytes.split_first_chunk::<8>()?;
    let (known_at, rest) = rest.split_first_chunk::<8>()?;
    let (tie, key) = rest.split_first_chunk::<16>()?;
    let order = RowOrder {
        event_time_us: i64::from_be_bytes(*event_time),
        known_at_us: i64::from_be_bytes(*known_at),
        tie: TieDigest::from_bytes(*tie),
    };
    Some((order, KeyBytes::new(key.to_vec())))
}
