//! Which tables there are, and what each process may believe about them.
//!
//! What decides about a table (that it exists, its state, what it covers) is one record, changed by lightweight
//! transactions. A process keeps what it has read of it for the time of the **lease**, and one rule makes that safe: whatever
//! is done under a record that was asked for at some instant is good if it ended before that instant plus the lease;
//! otherwise the record is read again. In return, whoever takes something away (trimming, dropping) changes the record
//! first, and then waits for longer than the lease before it deletes anything. Only lengths of time are compared, never
//! the clocks of two machines.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use eadem_values::Digest;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use super::session::Db;
use crate::{Coverage, LoadState, StoreError, TableId};

/// For how long a change of a record is tried while others change it too, or its outcome stays unknown.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);
const BACKOFF_FIRST_MS: u64 = 2;
const BACKOFF_LAST_MS: u64 = 200;

/// What stands in the table of tables, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) state: State,
    pub(super) claims: Coverage,
    pub(super) trimmed_to_us: Option<i64>,
}

/// How far a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// The erasures of its view are being copied: whoever erases sees it already, and nobody else does.
    Creating,
    /// See [`LoadState::Loading`].
    Loading,
    /// See [`LoadState::Ready`].
    Ready,
}

/// A table as its record stood.
#[derive(Debug, Clone)]
pub(super) struct Meta {
    pub(super) table: TableId,
    /// One life of a table: made anew, it has another, so that nothing of the former can come back.
    pub(super) incarnation: Uuid,
    pub(super) buckets: u32,
    revision: i64,
    pub(super) record: Record,
    /// What follows from the record's claims and trims.
    pub(super) coverage: Coverage,
    pub(super) has_erasures: bool,
    /// When it was asked for.
    asked_at: Instant,
}

impl Meta {
    pub(super) fn load_state(&self) -> LoadState {
        if self.record.state == State::Ready { LoadState::Ready } else { LoadState::Loading }
    }
}

#[derive(Debug)]
struct Slot {
    known: Option<Arc<Meta>>,
    /// What was asked for before this says nothing any more.
    not_before: Instant,
    /// One asks for all, when the record has become too old.
    asking: Arc<tokio::sync::Mutex<()>>,
}

impl Slot {
    fn new(not_before: Instant) -> Self {
        Self { known: None, not_before, asking: Arc::default() }
    }
}

#[derive(Debug)]
struct Slots {
    by_table: HashMap<TableId, Slot>,
    /// When anything was last forgotten: for tables that have no slot yet.
    forgotten_at: Instant,
}

/// The tables as this process knows them.
#[derive(Debug)]
pub(super) struct Epochs {
    lease: Duration,
    slots: Mutex<Slots>,
}

type EpochColumns = (Option<Uuid>, Option<i32>, Option<i64>, Option<String>, Option<bool>);

/// As the database keeps it: the same 64 bits.
pub(super) fn epoch_column(table: TableId) -> i64 {
    table.epoch as i64
}

impl Epochs {
    pub(super) fn new(lease: Duration) -> Self {
        let slots = Slots { by_table: HashMap::new(), forgotten_at: Instant::now() };
        Self { lease, slots: Mutex::new(slots) }
    }

    /// From when on nobody believes what was true before now: the lease, and a tenth for clocks that run at different rates.
    pub(super) fn believed_until(&self) -> Instant {
        Instant::now() + self.lease + self.lease / 10 + Duration::from_millis(1)
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, Slots> {
        // What is in it is replaced whole, so a panic elsewhere has left nothing half-done.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something that ends now was done under a record that could be believed all the time.
    pub(super) fn is_good(&self, meta: &Meta) -> bool {
        meta.asked_at.elapsed() < self.lease
    }

    fn known(&self, table: TableId) -> Option<Arc<Meta>> {
        let slots = self.slots();
        let known = slots.by_table.get(&table)?.known.as_ref()?;
        self.is_good(known).then(|| Arc::clone(known))
    }

    fn asking(&self, table: TableId) -> Arc<tokio::sync::Mutex<()>> {
        let mut slots = self.slots();
        let not_before = slots.forgotten_at;
        Arc::clone(&slots.by_table.entry(table).or_insert_with(|| Slot::new(not_before)).asking)
    }

    fn learn(&self, table: TableId, meta: Option<Meta>) -> Option<Arc<Meta>> {
        let mut slots = self.slots();
        let Some(meta) = meta else {
            slots.by_table.remove(&table);
            return None;
        };
        let meta = Arc::new(meta);
        let not_before = slots.forgotten_at;
        let slot = slots.by_table.entry(table).or_insert_with(|| Slot::new(not_before));
        let is_newer = slot.known.as_ref().is_none_or(|known| known.asked_at < meta.asked_at);
        if is_newer && meta.asked_at >= slot.not_before {
            slot.known = Some(Arc::clone(&meta));
        }
        Some(meta)
    }

    /// What this process has just changed it must read again.
    pub(super) fn forget(&self, is_changed: impl Fn(TableId) -> bool) {
        let now = Instant::now();
        let mut slots = self.slots();
        slots.forgotten_at = now;
        for (table, slot) in &mut slots.by_table {
            if is_changed(*table) {
                slot.known = None;
                slot.not_before = now;
            }
        }
    }

    /// A table that takes rows; read from the database if what is known is too old.
    pub(super) async fn existing(&self, db: &Db, table: TableId) -> Result<Arc<Meta>, StoreError> {
        if let Some(known) = self.known(table) {
            return Ok(known);
        }
        let asking = self.asking(table);
        let _asking = asking.lock().await;
        match self.known(table) {
            Some(known) => Ok(known),
            None => self.fresh(db, table).await,
        }
    }

    /// The same, read now.
    pub(super) async fn fresh(&self, db: &Db, table: TableId) -> Result<Arc<Meta>, StoreError> {
        let meta = read_meta(db, &db.statements.epoch, table).await?;
        let usable = meta.filter(|meta| meta.record.state != State::Creating);
        self.learn(table, usable).ok_or(StoreError::UnknownTable(table))
    }

    /// A table that answers reads. That one is not ready yet is not believed without asking.
    pub(super) async fn readable(&self, db: &Db, table: TableId) -> Result<Arc<Meta>, StoreError> {
        let mut meta = self.existing(db, table).await?;
        if meta.record.state != State::Ready {
            meta = self.fresh(db, table).await?;
        }
        if meta.record.state != State::Ready {
            return Err(StoreError::StillLoading(table));
        }
        Ok(meta)
    }

    /// Changes a table's record, once more if another process changed it meanwhile. `change` says what becomes of what is
    /// there and may be asked several times.
    pub(super) async fn change(
        &self,
        db: &Db,
        table: TableId,
        from: &[State],
        change: impl Fn(&mut Record) + Send,
    ) -> Result<Meta, StoreError> {
        let doing = format!("changing the record of {table}");
        let deadline = Instant::now() + CHANGE_TIMEOUT;
        let mut backoff_ms = BACKOFF_FIRST_MS;
        loop {
            let found = read_meta(db, &db.statements.epoch_for_change, table).await;
            let failure = match found {
                Ok(None) => return Err(StoreError::UnknownTable(table)),
                Ok(Some(meta)) if !from.contains(&meta.record.state) => return Err(StoreError::UnknownTable(table)),
                Ok(Some(mut meta)) => match try_change(db, &doing, &mut meta, &change).await {
                    Ok(true) => {
                        self.forget(|changed| changed == table);
                        return Ok(meta);
                    }
                    // Somebody was faster: look again.
                    Ok(false) => None,
                    // Applied or not: the next look tells.
                    Err(error) => Some(error),
                },
                Err(error) => Some(error),
            };
            if Instant::now() >= deadline {
                let contended = || db.failed(&doing, std::io::Error::other("others changed it all the time"));
                return Err(failure.unwrap_or_else(contended));
            }
            pause(backoff_ms).await;
            backoff_ms = (backoff_ms * 2).min(BACKOFF_LAST_MS);
        }
    }

    /// Registers a table that is not there. `true`: it was or is now being created, and its erasures are to be copied.
    pub(super) async fn register(&self, db: &Db, table: TableId) -> Result<(Meta, bool), StoreError> {
        let doing = format!("creating {table}");
        let deadline = Instant::now() + CHANGE_TIMEOUT;
        let mut backoff_ms = BACKOFF_FIRST_MS;
        loop {
            let outcome = match read_meta(db, &db.statements.epoch_for_change, table).await {
                Ok(Some(meta)) => {
                    let is_new = meta.record.state == State::Creating;
                    return Ok((meta, is_new));
                }
                Ok(None) => insert_new(db, &doing, table).await,
                Err(error) => Err(error),
            };
            let Err(error) = outcome else { continue };
            if Instant::now() >= deadline {
                return Err(error);
            }
            pause(backoff_ms).await;
            backoff_ms = (backoff_ms * 2).min(BACKOFF_LAST_MS);
        }
    }

    /// Takes a table out of the register. `None`: it was not there.
    pub(super) async fn unregister(&self, db: &Db, table: TableId) -> Result<Option<Meta>, StoreError> {
        let doing = format!("dropping {table}");
        let deadline = Instant::now() + CHANGE_TIMEOUT;
        let mut backoff_ms = BACKOFF_FIRST_MS;
        let mut dropped: Option<Meta> = None;
        loop {
            let failure = match read_meta(db, &db.statements.epoch_for_change, table).await {
                Ok(None) => break,
                // Another process has dropped it and made it anew.
                Ok(Some(meta)) if dropped.as_ref().is_some_and(|ours| ours.incarnation != meta.incarnation) => break,
                Ok(Some(meta)) => {
                    mark_dropped(db, &meta).await?;
                    let key = (table.view.as_bytes().as_slice(), epoch_column(table), meta.incarnation);
                    let done = db.transact(&doing, &db.statements.delete_epoch, key).await;
                    dropped = Some(meta);
                    match done {
                        Ok(_) => continue,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            if Instant::now() >= deadline {
                return Err(failure);
            }
            pause(backoff_ms).await;
            backoff_ms = (backoff_ms * 2).min(BACKOFF_LAST_MS);
        }
        self.forget(|changed| changed == table);
        Ok(dropped)
    }
}

/// Leaves a note that a table's rows are to be deleted, before it is dropped: whoever drops one next goes on with it.
pub(super) async fn mark_dropped(db: &Db, meta: &Meta) -> Result<(), StoreError> {
    let TableId { view, .. } = meta.table;
    let values = (meta.incarnation, view.as_bytes().as_slice(), epoch_column(meta.table), meta.buckets as i32);
    db.execute(&format!("dropping {}", meta.table), &db.statements.insert_dropped, values, 0).await
}

/// A table as its record stands, in whatever state it is.
pub(super) async fn read_meta(
    db: &Db,
    statement: &scylla::statement::prepared::PreparedStatement,
    table: TableId,
) -> Result<Option<Meta>, StoreError> {
    let doing = format!("reading the record of {table}");
    let asked_at = Instant::now();
    let key = (table.view.as_bytes().as_slice(), epoch_column(table));
    let mut rows: Vec<EpochColumns> = db.all(&doing, statement, key).await?;
    let Some((incarnation, buckets, revision, record, has_erasures)) = rows.pop() else { return Ok(None) };
    let (Some(incarnation), Some(buckets), Some(revision), Some(record)) = (incarnation, buckets, revision, record)
    else {
        return Ok(None);
    };
    let damaged = |what: String| db.failed(&doing, std::io::Error::other(what));
    let record: Record =
        serde_json::from_str(&record).map_err(|error| damaged(format!("its record is unreadable: {error}")))?;
    let buckets = u32::try_from(buckets).ok().filter(|buckets| *buckets > 0);
    let buckets = buckets.ok_or_else(|| damaged("its number of buckets is none".to_owned()))?;
    let has_erasures = has_erasures.unwrap_or(false);
    let coverage = record.claims.after_trim(record.trimmed_to_us);
    Ok(Some(Meta { table, incarnation, buckets, revision, record, coverage, has_erasures, asked_at }))
}

async fn try_change(
    db: &Db,
    doing: &str,
    meta: &mut Meta,
    change: &(impl Fn(&mut Record) + Send),
) -> Result<bool, StoreError> {
    let mut record = meta.record.clone();
    change(&mut record);
    if record == meta.record {
        return Ok(true);
    }
    let text = to_json(db, doing, &record)?;
    let (table, revision) = (meta.table, meta.revision.wrapping_add(1));
    let key = (table.view.as_bytes().as_slice(), epoch_column(table));
    let values = (text.as_str(), revision, key.0, key.1, meta.incarnation, meta.revision);
    let applied = db.transact(doing, &db.statements.change_epoch, values).await?;
    if applied {
        meta.coverage = record.claims.after_trim(record.trimmed_to_us);
        meta.record = record;
        meta.revision = revision;
    }
    Ok(applied)
}

async fn insert_new(db: &Db, doing: &str, table: TableId) -> Result<(), StoreError> {
    let record = Record { state: State::Creating, claims: Coverage::default(), trimmed_to_us: None };
    let text = to_json(db, doing, &record)?;
    let buckets = db.layout.buckets as i32;
    let key = (table.view.as_bytes().as_slice(), epoch_column(table));
    let values = (key.0, key.1, Uuid::new_v4(), buckets, 0_i64, text.as_str());
    // Whether it was this one or another that was registered, the next look finds it.
    db.transact(doing, &db.statements.insert_epoch, values).await.map(drop)
}

fn to_json(db: &Db, doing: &str, record: &Record) -> Result<String, StoreError> {
    serde_json::to_string(record).map_err(|error| db.failed(doing, error))
}

/// All tables, by id.
pub(super) async fn all_tables(db: &Db) -> Result<Vec<TableId>, StoreError> {
    let rows: Vec<(Vec<u8>, Option<i64>)> = db.all("listing the tables", &db.statements.all_epochs, ()).await?;
    let table = |(view, epoch): (Vec<u8>, Option<i64>)| {
        let view = Digest::from_bytes(view.try_into().ok()?);
        Some(TableId { view, epoch: epoch? as u64 })
    };
    let mut tables: Vec<TableId> = rows.into_iter().filter_map(table).collect();
    tables.sort_unstable();
    Ok(tables)
}

/// Waits for about so long, so that those who got into each other's way do not do so again.
async fn pause(about_ms: u64) {
    let random = Uuid::new_v4().as_u128() as u64;
    tokio::time::sleep(Duration::from_millis(about_ms / 2 + random % about_ms.max(1))).await;
}
