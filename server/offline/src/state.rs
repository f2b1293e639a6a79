//! What a table holds, as readers know it: the newest state is kept and followed by looking for the next commit, states of the
//! past are kept as they were.

use std::sync::{Arc, Mutex, PoisonError};

use deltalake_core::DeltaTable;
use eadem_semantics::AsStored;
use eadem_values::format_timestamp;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::path::Path;

use crate::error::OfflineError;
use crate::lanes::withdrawn_at;
use crate::table::{DataFile, ReadVersion, TableState, ViewTable, read_commit, table_error};

/// Commits that are read at once.
const COMMIT_READS_AT_ONCE: usize = 16;

/// One version of a table, for readers of entities.
#[derive(Debug)]
pub(crate) struct TableFiles {
    pub(crate) version: u64,
    /// The files that end latest come first.
    pub(crate) newest_first: Vec<DataFile>,
}

impl TableFiles {
    fn of(state: TableState) -> Self {
        let TableState { version, files: mut newest_first } = state;
        let latest = |file: &DataFile| file.event_time_us.map_or(i64::MAX, |(_, latest)| latest);
        newest_first.sort_by(|a, b| latest(b).cmp(&latest(a)).then_with(|| a.path.cmp(&b.path)));
        Self { version, newest_first }
    }
}

/// A table whose newest state is kept.
#[derive(Debug)]
pub(crate) struct KnownTable {
    newest: Mutex<Arc<TableFiles>>,
    log: tokio::sync::Mutex<DeltaTable>,
    /// The newest version, and where rows were last taken out as of it.
    withdrawn: tokio::sync::Mutex<Option<(u64, Option<u64>)>>,
    /// When each version was committed, from version 0 on, in milliseconds as the commits say.
    committed_ms: tokio::sync::Mutex<Vec<i64>>,
}

impl KnownTable {
    fn newest(&self) -> Arc<TableFiles> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A version of a table, and when it came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredVersion {
    /// The commit's number.
    pub version: u64,
    /// When it was committed, in microseconds: by the clock of whoever committed it, and never before an earlier commit.
    pub committed_at_us: i64,
}

impl ViewTable {
    fn cache_key(&self) -> String {
        self.location.url.to_string()
    }

    /// What a version holds; `None` if there is no table, or no job was committed to it by then.
    pub(crate) async fn files(&self, version: ReadVersion) -> Result<Option<Arc<TableFiles>>, OfflineError> {
        match version {
            ReadVersion::NoTable | ReadVersion::At(0) => Ok(None),
            ReadVersion::Current => Ok(self.known().await?.map(|known| known.newest())),
            ReadVersion::At(version) => self.past_files(version).await,
        }
    }

    /// Forgets what was known of the newest state: it turned out not to be there.
    pub(crate) fn forget(&self) {
        self.caches.tables.remove(&self.cache_key());
    }

    async fn past_files(&self, version: u64) -> Result<Option<Arc<TableFiles>>, OfflineError> {
        let identity = (self.cache_key(), version);
        if let Some(known) = self.caches.tables.get(&identity.0) {
            let newest = known.newest();
            self.check(&*known.log.lock().await)?;
            if newest.version == version {
                return Ok(Some(newest));
            }
            if let Some(files) = self.caches.past.get(&identity) {
                return Ok(Some(files));
            }
        }
        let Some(state) = self.state(ReadVersion::At(version)).await? else { return Ok(None) };
        let files = TableFiles::of(state);
        let weight = files.newest_first.len().max(1);
        Ok(Some(self.caches.past.insert(identity, files, weight)))
    }

    /// The table in its newest state. A commit is never changed, so what is known of the log stays true, and all that a reader
    /// has to ask is whether there is one more.
    async fn known(&self) -> Result<Option<Arc<KnownTable>>, OfflineError> {
        let key = self.cache_key();
        let Some(known) = self.caches.tables.get(&key) else {
            let Some(table) = self.load_with_rows().await? else { return Ok(None) };
            let files = TableFiles::of(self.state_of(&table)?);
            let known = KnownTable {
                newest: Mutex::new(Arc::new(files)),
                log: tokio::sync::Mutex::new(table),
                withdrawn: tokio::sync::Mutex::default(),
                committed_ms: tokio::sync::Mutex::default(),
            };
            return Ok(Some(self.caches.tables.insert(key, known, 1)));
        };
        let next = known.newest().version + 1;
        let commit = Path::from(format!("_delta_log/{next:020}.json"));
        match self.store.head(&commit).await {
            Ok(_) => self.follow(&known, next).await?,
            Err(object_store::Error::NotFound { .. }) => self.check(&*known.log.lock().await)?,
            Err(error) => return Err(table_error(&self.location, error)),
        }
        Ok(Some(known))
    }

    /// Reads the log on, at least to version `next`.
    async fn follow(&self, known: &KnownTable, next: u64) -> Result<(), OfflineError> {
        let mut table = known.log.lock().await;
        self.check(&table)?;
        if known.newest().version >= next {
            return Ok(());
        }
        table.update_state().await.map_err(|error| table_error(&self.location, error))?;
        let files = Arc::new(TableFiles::of(self.state_of(&table)?));
        *known.newest.lock().unwrap_or_else(PoisonError::into_inner) = files;
        Ok(())
    }

    /// The version to read where the answers are compared with rows that were loaded from version `beside`: the current one,
    /// unless rows have been taken out since. Then that very version, because those rows may be among the others.
    ///
    /// # Errors
    /// A log that cannot be read.
    pub async fn version_beside(&self, beside: u64) -> Result<ReadVersion, OfflineError> {
        let Some(known) = self.known().await? else { return Ok(ReadVersion::NoTable) };
        let newest = known.newest().version;
        let mut withdrawn = known.withdrawn.lock().await;
        let withdrawn_at = match *withdrawn {
            Some((version, withdrawn_at)) if version == newest => withdrawn_at,
            _ => {
                let withdrawn_at = withdrawn_at(&self.location, &self.log_store, newest).await?;
                *withdrawn = Some((newest, withdrawn_at));
                withdrawn_at
            }
        };
        Ok(ReadVersion::At(if withdrawn_at > Some(beside) { beside } else { newest }))
    }

    /// The version that was current at a commit or at a time.
    ///
    /// Commits carry the time of whoever made them; one that claims to be older than a commit before it counts as made at the
    /// same moment, so that versions and times go the same way.
    ///
    /// # Errors
    /// Nothing was stored by then; a commit that is not there yet; a log that cannot be read.
    pub async fn version_as_stored(&self, wanted: AsStored) -> Result<StoredVersion, OfflineError> {
        let refuse = |reason: String| OfflineError::NotStored { view: self.view_id().to_owned(), reason };
        let Some(known) = self.known().await? else {
            return Err(refuse("nothing was ever stored; run a backfill first".to_owned()));
        };
        let newest = known.newest().version;
        let committed_us = self.commit_times(&known, newest).await?;
        let stored = |version: u64| StoredVersion {
            version,
            committed_at_us: committed_us.get(version as usize).copied().unwrap_or_default(),
        };
        // Version 0 makes the table and holds nothing.
        let first = stored(1);
        match wanted {
            AsStored::Commit(0) => Err(refuse("commit 0 holds no rows; the first that does is 1".to_owned())),
            AsStored::Commit(version) if version > newest => {
                Err(refuse(format!("there is no commit {version}; the newest is {newest}")))
            }
            AsStored::Commit(version) => Ok(stored(version)),
            AsStored::Time(at_us) => {
                let by_then = committed_us.iter().rposition(|committed_us| *committed_us <= at_us).unwrap_or(0);
                if by_then == 0 {
                    return Err(refuse(format!(
                        "nothing was stored at {}; the first commit is of {}",
                        format_timestamp(at_us),
                        format_timestamp(first.committed_at_us)
                    )));
                }
                Ok(stored(by_then as u64))
            }
        }
    }

    /// When each version up to `newest` was committed, never descending, in microseconds.
    async fn commit_times(&self, known: &KnownTable, newest: u64) -> Result<Vec<i64>, OfflineError> {
        let mut committed_ms = known.committed_ms.lock().await;
        let unread = committed_ms.len() as u64..=newest;
        let read: Vec<i64> = futures::stream::iter(unread)
            .map(|version| self.commit_time_ms(version))
            .buffered(COMMIT_READS_AT_ONCE)
            .try_collect()
            .await?;
        committed_ms.extend(read);
        let mut latest_us = i64::MIN;
        let ascending = committed_ms.iter().map(|committed_ms| {
            latest_us = latest_us.max(committed_ms.saturating_mul(1_000));
            latest_us
        });
        Ok(ascending.collect())
    }

    async fn commit_time_ms(&self, version: u64) -> Result<i64, OfflineError> {
        let actions = read_commit(&self.location, &self.log_store, version).await?;
        let info = actions.iter().map(|action| &action["commitInfo"]).find(|info| !info.is_null());
        let said = info.and_then(|info| info["inCommitTimestamp"].as_i64().or_else(|| info["timestamp"].as_i64()));
        if let Some(committed_ms) = said {
            return Ok(committed_ms);
        }
        // Another writer's, or a commit that is gone because only its checkpoint was kept.
        let commit = Path::from(format!("_delta_log/{version:020}.json"));
        match self.store.head(&commit).await {
            Ok(meta) => Ok(meta.last_modified.timestamp_millis()),
            Err(object_store::Error::NotFound { .. }) => Ok(i64::MIN / 1_000),
            Err(error) => Err(table_error(&self.location, error)),
        }
    }
}
