//! The store's directory: who owns it, and which format it has.
//!
//! ```text
//! LOCK            held by the owning process; says {"pid", "address"} as JSON
//! FORMAT          the on-disk format; written last, so its absence means that the directory was never finished
//! catalogue.redb  tables and erasures
//! tables/N.redb   one online table
//! tables/*.run    sorted rows of a bulk load; worthless after a crash
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::StoreError;

/// The on-disk format that this release writes, and the newest that it reads.
pub(super) const FORMAT_VERSION: u32 = 1;

const FORMAT_NAME: &str = "eadem online store";
const LOCK_FILE: &str = "LOCK";
const FORMAT_FILE: &str = "FORMAT";
const FORMAT_FILE_UNFINISHED: &str = "FORMAT.new";
const CATALOGUE_FILE: &str = "catalogue.redb";
const TABLES_FOLDER: &str = "tables";

/// Another process may hold the lock for an instant only: to ask who owns the store, or because it was started while the
/// lock was held and has not yet let go of what it inherited.
const LOCK_TRIES: u32 = 5;
const LOCK_RETRY_AFTER: Duration = Duration::from_millis(20);

/// The process that owns a store's directory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LockInfo {
    /// Its process id, if it could be read.
    pub pid: Option<u32>,
    /// Where its server listens, such as `127.0.0.1:7410`; `None` if it is no server, or not yet.
    pub address: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Format {
    format: String,
    version: u32,
}

/// A directory that this process owns until this is dropped.
#[derive(Debug)]
pub(super) struct OwnedDirectory {
    path: PathBuf,
    lock: File,
}

impl OwnedDirectory {
    /// Takes a directory into possession, and makes it if needed.
    pub(super) fn acquire(path: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(path).map_err(|error| failed("creating", path, error))?;
        let lock_path = path.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(|error| failed("opening", &lock_path, error))?;
        lock_or_say_who_owns(path, &lock)?;
        let directory = Self { path: path.to_owned(), lock };
        directory.announce(None)?;
        Ok(directory)
    }

    /// Says in the lock file where this process listens.
    pub(super) fn announce(&self, address: Option<&str>) -> Result<(), StoreError> {
        let info = LockInfo { pid: Some(std::process::id()), address: address.map(str::to_owned) };
        self.write_lock_info(&info).map_err(|error| failed("writing", &self.path.join(LOCK_FILE), error))
    }

    fn write_lock_info(&self, info: &LockInfo) -> std::io::Result<()> {
        let mut text = serde_json::to_vec(info)?;
        text.push(b'\n');
        self.lock.set_len(0)?;
        let mut file = &self.lock;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&text)
    }

    /// Whether the directory was finished, in a format that this release reads.
    pub(super) fn is_formatted(&self) -> Result<bool, StoreError> {
        let path = self.path.join(FORMAT_FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed("reading", &path, error)),
        };
        let format: Format = serde_json::from_str(&text).map_err(|error| StoreError::NotAStore {
            path: path.clone(),
            what: format!("unreadable format file: {error}"),
        })?;
        if format.format != FORMAT_NAME {
            let what = format!("it holds `{}`", format.format);
            return Err(StoreError::NotAStore { path: self.path.clone(), what });
        }
        if format.version > FORMAT_VERSION {
            let (found, supported) = (format.version, FORMAT_VERSION);
            return Err(StoreError::FormatTooNew { path: self.path.clone(), found, supported });
        }
        Ok(true)
    }

    /// Removes what an interrupted first start left; refuses a directory in which somebody else keeps things.
    pub(super) fn clear_unfinished(&self) -> Result<(), StoreError> {
        let ours = [LOCK_FILE, FORMAT_FILE_UNFINISHED, CATALOGUE_FILE, TABLES_FOLDER];
        for name in file_names(&self.path)? {
            if !ours.contains(&name.as_str()) {
                let what = format!("it has no {FORMAT_FILE} file but holds `{name}`; choose an empty directory");
                return Err(StoreError::NotAStore { path: self.path.clone(), what });
            }
        }
        let remove = |path: PathBuf| match fs::metadata(&path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(&path).map_err(|error| failed("removing", &path, error)),
            Ok(_) => fs::remove_file(&path).map_err(|error| failed("removing", &path, error)),
            Err(_) => Ok(()),
        };
        remove(self.catalogue_path())?;
        remove(self.tables_path())?;
        fs::create_dir_all(self.tables_path()).map_err(|error| failed("creating", &self.tables_path(), error))
    }

    /// Declares the directory finished. Durable when it returns.
    pub(super) fn write_format(&self) -> Result<(), StoreError> {
        let unfinished = self.path.join(FORMAT_FILE_UNFINISHED);
        let format = Format { format: FORMAT_NAME.to_owned(), version: FORMAT_VERSION };
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&unfinished)?;
            file.write_all(&serde_json::to_vec(&format)?)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            sync_folder(&self.tables_path())?;
            // Names may get to the disk in any order: no format before the names of what it stands for.
            sync_folder(&self.path)?;
            fs::rename(&unfinished, self.path.join(FORMAT_FILE))?;
            sync_folder(&self.path)
        };
        write().map_err(|error| failed("writing", &unfinished, error))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn catalogue_path(&self) -> PathBuf {
        self.path.join(CATALOGUE_FILE)
    }

    pub(super) fn tables_path(&self) -> PathBuf {
        self.path.join(TABLES_FOLDER)
    }

    pub(super) fn table_path(&self, file_id: u64) -> PathBuf {
        self.tables_path().join(format!("{file_id}.redb"))
    }

    /// Removes every file in `tables/` that is not among these: epochs half made or half dropped, runs of broken loads.
    pub(super) fn remove_strays(&self, file_ids: &[u64]) -> Result<(), StoreError> {
        let known: Vec<String> = file_ids.iter().map(|file_id| format!("{file_id}.redb")).collect();
        for name in file_names(&self.tables_path())? {
            if !known.contains(&name) {
                let path = self.tables_path().join(name);
                tracing::info!(path = %path.display(), "removing a file that no online table owns");
                fs::remove_file(&path).map_err(|error| failed("removing", &path, error))?;
            }
        }
        Ok(())
    }
}

/// Possession of a directory in which no store is: for a project whose online store is a server elsewhere, and which is still
/// one process's at a time.
#[derive(Debug)]
pub struct DirectoryLock(OwnedDirectory);

impl DirectoryLock {
    /// Takes a directory into possession until this is dropped, and makes it if needed.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::Failed`].
    pub fn acquire(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        OwnedDirectory::acquire(path.as_ref()).map(Self)
    }

    /// Says to whoever asks ([`EmbeddedStore::owner`](crate::EmbeddedStore::owner)) where this process listens.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub fn announce(&self, address: &str) -> Result<(), StoreError> {
        self.0.announce(Some(address))
    }
}

impl Drop for OwnedDirectory {
    fn drop(&mut self) {
        // So that nobody reads a stale address; the lock itself goes with the file handle.
        if let Err(error) = self.lock.set_len(0) {
            tracing::warn!(%error, path = %self.path.display(), "cannot clear the lock file");
        }
    }
}

/// Who owns a directory now, if anyone does.
pub(super) fn owner(path: &Path) -> Result<Option<LockInfo>, StoreError> {
    let lock_path = path.join(LOCK_FILE);
    let lock = match File::open(&lock_path) {
        Ok(lock) => lock,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("opening", &lock_path, error)),
    };
    for attempt in 1.. {
        match lock.try_lock_shared() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if attempt < LOCK_TRIES => thread::sleep(LOCK_RETRY_AFTER),
            Err(TryLockError::WouldBlock) => return Ok(Some(read_lock_info(&lock_path))),
            Err(TryLockError::Error(error)) => return Err(failed("locking", &lock_path, error)),
        }
    }
    Ok(None)
}

fn lock_or_say_who_owns(path: &Path, lock: &File) -> Result<(), StoreError> {
    for attempt in 1.. {
        match lock.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if attempt < LOCK_TRIES => thread::sleep(LOCK_RETRY_AFTER),
            Err(TryLockError::WouldBlock) => {
                let LockInfo { pid, address } = read_lock_info(&path.join(LOCK_FILE));
                return Err(StoreError::InUse { path: path.to_owned(), pid, address });
            }
            Err(TryLockError::Error(error)) => return Err(failed("locking", &path.join(LOCK_FILE), error)),
        }
    }
    Ok(())
}

/// What the lock file says; nothing if its owner is just rewriting it.
fn read_lock_info(path: &Path) -> LockInfo {
    let mut text = String::new();
    let read = File::open(path).and_then(|mut file| file.read_to_string(&mut text));
    read.ok().and_then(|_| serde_json::from_str(&text).ok()).unwrap_or_default()
}

fn file_names(folder: &Path) -> Result<Vec<String>, StoreError> {
    let list = || -> std::io::Result<Vec<String>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    list().map_err(|error| failed("listing", folder, error))
}

/// Makes created, renamed and removed names durable.
pub(super) fn sync_folder(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

pub(super) fn failed(
    doing: &str,
    path: &Path,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> StoreError {
    StoreError::failed(format!("{doing} {}", path.display()), error)
}
