//! What the store knows beside rows: its tables, and who is erased.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use eadem_values::Digest;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::directory::failed;
use crate::{KeyBytes, StoreError, TableId};

/// View digest and epoch (big-endian) → number of the table's file.
const TABLES: TableDefinition<&[u8], u64> = TableDefinition::new("tables");
/// View digest and entity key → up to when the entity is erased.
const ERASURES: TableDefinition<&[u8], i64> = TableDefinition::new("erasures");
/// The number that the next table's file gets. Numbers are never used twice.
const COUNTERS: TableDefinition<&str, u64> = TableDefinition::new("counters");
const NEXT_FILE_ID: &str = "next_file_id";

const DIGEST_BYTES: usize = 32;
const CACHE_BYTES: usize = 16 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Catalogue {
    /// `None` after the disk failed, until the next use opens the file again: redb refuses everything on a database that
    /// met one failure, so a disk that was full for a moment would be full for ever.
    db: RwLock<Option<Database>>,
    path: PathBuf,
    /// Views with an erasure. Nearly always empty, so that reads and writes need not look.
    views_with_erasures: RwLock<HashSet<Digest>>,
}

impl Catalogue {
    /// Makes an empty catalogue.
    pub(super) fn create(path: &Path) -> Result<Self, StoreError> {
        let create = || -> Result<Database, redb::Error> {
            let db = Database::builder().set_cache_size(CACHE_BYTES).create(path)?;
            let txn = db.begin_write()?;
            txn.open_table(TABLES)?;
            txn.open_table(ERASURES)?;
            txn.open_table(COUNTERS)?;
            txn.commit()?;
            Ok(db)
        };
        let db = create().map_err(|error| failed("creating", path, error))?;
        Ok(Self { db: RwLock::new(Some(db)), path: path.to_owned(), views_with_erasures: RwLock::default() })
    }

    /// Opens the catalogue that is there.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let open = || -> Result<(Database, HashSet<Digest>), redb::Error> {
            let db = open_database(path)?;
            let erasures = db.begin_read()?.open_table(ERASURES)?;
            let mut views = HashSet::new();
            for entry in erasures.iter()? {
                let (key, _) = entry?;
                views.extend(key.value().first_chunk::<DIGEST_BYTES>().map(|view| Digest::from_bytes(*view)));
            }
            drop(erasures);
            Ok((db, views))
        };
        let (db, views) = open().map_err(|error| failed("opening", path, error))?;
        Ok(Self { db: RwLock::new(Some(db)), path: path.to_owned(), views_with_erasures: RwLock::new(views) })
    }

    /// Runs `work` on the database, which is opened again if the disk has failed before.
    fn with_database<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, redb::Error> {
        let result = match self.open_again_if_closed()?.as_ref() {
            Some(db) => work(db),
            // Another user closed it in between; the caller's next try opens it.
            None => Err(redb::Error::DatabaseClosed),
        };
        if let Err(redb::Error::Io(_) | redb::Error::PreviousIo) = &result {
            // Closing leaves the file as a crash would: the next opening goes back to the last commit.
            self.db.write().unwrap_or_else(PoisonError::into_inner).take();
        }
        result
    }

    fn open_again_if_closed(&self) -> Result<RwLockReadGuard<'_, Option<Database>>, redb::Error> {
        let open = self.db.read().unwrap_or_else(PoisonError::into_inner);
        if open.is_some() {
            return Ok(open);
        }
        drop(open);
        let mut closed = self.db.write().unwrap_or_else(PoisonError::into_inner);
        if closed.is_none() {
            *closed = Some(open_database(&self.path)?);
            tracing::info!(path = %self.path.display(), "opened again after the disk had failed");
        }
        drop(closed);
        Ok(self.db.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// All tables with the numbers of their files.
    pub(super) fn tables(&self) -> Result<Vec<(TableId, u64)>, StoreError> {
        let list = |db: &Database| -> Result<Vec<(TableId, u64)>, redb::Error> {
            let tables = db.begin_read()?.open_table(TABLES)?;
            let mut found = Vec::new();
            for entry in tables.iter()? {
                let (key, file_id) = entry?;
                found.extend(parse_table_key(key.value()).map(|table| (table, file_id.value())));
            }
            Ok(found)
        };
        self.with_database(list).map_err(|error| failed("reading", &self.path, error))
    }

    /// A number for a new table's file. Only this process owns the catalogue, so a crash before
    /// [`Catalogue::add_table`] leaves a file of a number that may be given again; it is cleared away first.
    pub(super) fn next_file_id(&self) -> Result<u64, StoreError> {
        let read = |db: &Database| -> Result<u64, redb::Error> {
            let counters = db.begin_read()?.open_table(COUNTERS)?;
            Ok(counters.get(NEXT_FILE_ID)?.map_or(1, |next| next.value()))
        };
        self.with_database(read).map_err(|error| failed("reading", &self.path, error))
    }

    /// Enters a table, durably.
    pub(super) fn add_table(&self, table: TableId, file_id: u64) -> Result<(), StoreError> {
        self.write(|txn| {
            txn.open_table(TABLES)?.insert(table_key(table).as_slice(), file_id)?;
            txn.open_table(COUNTERS)?.insert(NEXT_FILE_ID, file_id + 1)?;
            Ok(())
        })
    }

    /// Strikes a table out, durably.
    pub(super) fn remove_table(&self, table: TableId) -> Result<(), StoreError> {
        self.write(|txn| {
            txn.open_table(TABLES)?.remove(table_key(table).as_slice())?;
            Ok(())
        })
    }

    /// Enters an erasure, durably; the greatest stays.
    pub(super) fn add_erasure(&self, view: Digest, key: &KeyBytes, up_to_us: i64) -> Result<(), StoreError> {
        let erasure_key = erasure_key(view, key.as_slice());
        self.write(|txn| {
            let mut erasures = txn.open_table(ERASURES)?;
            let known_us = erasures.get(erasure_key.as_slice())?.map(|known| known.value());
            erasures.insert(erasure_key.as_slice(), known_us.map_or(up_to_us, |known_us| known_us.max(up_to_us)))?;
            Ok(())
        })?;
        self.views_with_erasures.write().unwrap_or_else(PoisonError::into_inner).insert(view);
        Ok(())
    }

    /// All erasures of a view.
    pub(super) fn list_erasures(&self, view: Digest) -> Result<Vec<(KeyBytes, i64)>, StoreError> {
        let list = |db: &Database| -> Result<Vec<(KeyBytes, i64)>, redb::Error> {
            let erasures = db.begin_read()?.open_table(ERASURES)?;
            let mut found = Vec::new();
            for entry in erasures.range(view.as_bytes().as_slice()..)? {
                let (key, up_to) = entry?;
                let Some(entity) = key.value().strip_prefix(view.as_bytes().as_slice()) else { break };
                found.push((KeyBytes::new(entity.to_vec()), up_to.value()));
            }
            Ok(found)
        };
        self.with_database(list).map_err(|error| failed("reading", &self.path, error))
    }

    /// The erasures of a view to look into, if it has any at all.
    pub(super) fn erasures_of(&self, view: Digest) -> Option<ViewErasures<'_>> {
        let has_any = self.views_with_erasures.read().unwrap_or_else(PoisonError::into_inner).contains(&view);
        has_any.then_some(ViewErasures { catalogue: self, view })
    }

    fn write(&self, change: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>) -> Result<(), StoreError> {
        let commit = |db: &Database| -> Result<(), redb::Error> {
            let txn = db.begin_write()?;
            change(&txn)?;
            txn.commit()?;
            Ok(())
        };
        self.with_database(commit).map_err(|error| failed("writing", &self.path, error))
    }
}

fn open_database(path: &Path) -> Result<Database, redb::DatabaseError> {
    Database::builder().set_cache_size(CACHE_BYTES).open(path)
}

/// The erasures of one view.
#[derive(Clone, Copy)]
pub(super) struct ViewErasures<'a> {
    catalogue: &'a Catalogue,
    view: Digest,
}

impl ViewErasures<'_> {
    /// Up to when an entity is erased.
    pub(super) fn up_to_us(&self, key: &[u8]) -> Result<Option<i64>, StoreError> {
        let read = |db: &Database| -> Result<Option<i64>, redb::Error> {
            let erasures = db.begin_read()?.open_table(ERASURES)?;
            let found = erasures.get(erasure_key(self.view, key).as_slice())?;
            Ok(found.map(|up_to| up_to.value()))
        };
        self.catalogue.with_database(read).map_err(|error| failed("reading", &self.catalogue.path, error))
    }
}

fn table_key(table: TableId) -> Vec<u8> {
    [table.view.as_bytes().as_slice(), &table.epoch.to_be_bytes()].concat()
}

fn parse_table_key(bytes: &[u8]) -> Option<TableId> {
    let (view, epoch) = bytes.split_first_chunk::<DIGEST_BYTES>()?;
    Some(TableId { view: Digest::from_bytes(*view), epoch: u64::from_be_bytes(epoch.try_into().ok()?) })
}

fn erasure_key(view: Digest, key: &[u8]) -> Vec<u8> {
    [view.as_bytes().as_slice(), key].concat()
}
