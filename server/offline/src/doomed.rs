//! Files that hold erased rows and that nothing current needs: they are deleted.

use std::collections::BTreeSet;

use futures::TryStreamExt;
use object_store::ObjectMeta;

use crate::commit::live_files;
use crate::erase_files::Rewriting;
use crate::error::OfflineError;
use crate::location::Location;
use crate::table::{DATA_EXTENSION, DataFile, LOG_FOLDER, delete_if_there, is_there, load, open_log};

/// Files that hold erased rows and are in no current version.
#[derive(Debug, Clone)]
pub struct DoomedFiles {
    location: Location,
    files: Vec<ObjectMeta>,
    /// Relative to the table, as recipes name them.
    pub paths: BTreeSet<String>,
}

impl DoomedFiles {
    /// The data files of a table that hold erased rows, without those that are in the current version.
    pub(crate) async fn find(rewriting: &Rewriting<'_>) -> Result<Self, OfflineError> {
        let location = rewriting.table.place();
        // First what is there, then what is needed: what is committed in between is needed.
        let listed: Vec<ObjectMeta> = location.store.list(Some(&location.path)).try_collect().await?;
        let current = current_paths(location).await?;
        let mut doomed = Self { location: location.clone(), files: Vec::new(), paths: BTreeSet::new() };
        for meta in listed {
            let Some(path) = location.relative(&meta.location) else { continue };
            let is_data = path.ends_with(DATA_EXTENSION) && !path.starts_with(LOG_FOLDER);
            if !is_data || current.contains(&path) {
                continue;
            }
            rewriting.cancel.check()?;
            let file =
                DataFile { path: path.clone(), bytes: meta.size, event_time_us: None, is_known_at_event_time: false };
            let holds = match rewriting.finds_in(&file).await {
                Ok(holds) => holds,
                // Somebody has cleared it away.
                Err(_) if !is_there(location.store.as_ref(), &meta.location).await? => false,
                Err(error) => return Err(error),
            };
            if holds {
                doomed.paths.insert(path);
                doomed.files.push(meta);
            }
        }
        Ok(doomed)
    }

    /// How many files these are.
    pub fn count(&self) -> usize {
        self.files.len()
    }

    /// All of their bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// Deletes them. One that is gone already is as good, and one that a job has committed meanwhile stays: it takes another
    /// pass.
    ///
    /// # Errors
    /// A store that refuses, a log that cannot be read.
    pub async fn delete(&self) -> Result<(), OfflineError> {
        let location = &self.location;
        let current = current_paths(location).await?;
        for file in &self.files {
            let is_current = location.relative(&file.location).is_some_and(|path| current.contains(&path));
            if !is_current {
                delete_if_there(location.store.as_ref(), &file.location).await?;
            }
        }
        Ok(())
    }
}

/// The files of the current version of the table at a location.
async fn current_paths(location: &Location) -> Result<BTreeSet<String>, OfflineError> {
    let (_, log_store) = open_log(location);
    let Some(table) = load(location, &log_store).await? else { return Ok(BTreeSet::new()) };
    Ok(live_files(&table, location)?.into_iter().map(|live| live.file.path).collect())
}
