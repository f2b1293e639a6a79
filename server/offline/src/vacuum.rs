//! Vacuum: deletes what no version of a table that is kept, no recipe and no job needs any more.
//!
//! The order of its steps is what makes it safe. First it lists what is there; then it asks what is in use; last it reads
//! each table's log, and deletes. A file that was written after the listing is not looked at. One that was written before is
//! young, or named by an open job, or committed by the time the log is read. No two jobs write files of one name.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path as FilePath;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use object_store::{ObjectMeta, ObjectStoreExt};
use serde_json::Value as Json;

use crate::cancel::Cancel;
use crate::commit::{live_files, object_path};
use crate::error::OfflineError;
use crate::extracts::EXTRACTS_FOLDER;
use crate::location::{Location, OfflineStore};
use crate::table::{
    DATA_EXTENSION, LOG_FOLDER, delete_if_there, load, meta_if_there, open_log, read_commit, table_error,
};

/// What is in use outside the offline store. Asked once, after the files were listed.
#[async_trait]
pub trait InUse: Send + Sync {
    /// What jobs and records need.
    ///
    /// # Errors
    /// The message says why it cannot be told; then nothing is deleted.
    async fn in_use(&self) -> Result<FilesInUse, String>;
}

/// What jobs and records need of the offline store.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FilesInUse {
    /// Everything that may name a file: recipes of training sets, and of jobs that have not ended or may be resumed their
    /// specifications, plans and outcomes. A data file is spared if any text in them is its path, a spine if any contains
    /// its digest.
    pub documents: Vec<Json>,
    /// For a table, as `view@version`, commits that are read as they were: those that open jobs have pinned, and those that
    /// the online store was loaded from.
    pub versions: BTreeMap<String, BTreeSet<u64>>,
}

/// What is deleted and what stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VacuumOptions {
    /// Now, in microseconds.
    pub now_us: i64,
    /// Every version of a table that was current within this time can be read afterwards.
    pub retain_us: i64,
    /// What was never committed stays for this long: a job may be about to name it, or to commit it.
    pub grace_us: i64,
    /// Nothing is deleted, only reported.
    pub dry_run: bool,
}

impl VacuumOptions {
    /// Seven days of versions, a day for what was not committed.
    pub const fn at(now_us: i64) -> Self {
        Self { now_us, retain_us: 7 * DAY_US, grace_us: DAY_US, dry_run: false }
    }
}

const DAY_US: i64 = 86_400_000_000;

/// How far a vacuum is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VacuumProgress {
    /// Places that are done.
    pub places_done: usize,
    /// All places: tables, quarantine tables, folders of extracts, the folder of spines, what is half written.
    pub places: usize,
    /// The one that comes next.
    pub place: String,
}

/// What a vacuum did, or with `dry_run` would do, at one place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlaceReport {
    /// Such as `views/payments/v1`.
    pub place: String,
    /// Files that are deleted.
    pub files_deleted: usize,
    /// Their bytes.
    pub bytes_deleted: u64,
    /// Files that stay.
    pub files_kept: usize,
    /// Their bytes.
    pub bytes_kept: u64,
    /// Of the files that stay, those that only a recipe or a job needs.
    pub files_spared: usize,
    /// The oldest version of the table that can be read as a whole afterwards; `None` for what is no table.
    pub oldest_version: Option<u64>,
}

/// What a vacuum did everywhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VacuumReport {
    /// By place, in their order; those without any file are left out.
    pub places: Vec<PlaceReport>,
}

impl VacuumReport {
    /// Files deleted everywhere.
    pub fn files_deleted(&self) -> usize {
        self.places.iter().map(|place| place.files_deleted).sum()
    }

    /// Bytes deleted everywhere.
    pub fn bytes_deleted(&self) -> u64 {
        self.places.iter().map(|place| place.bytes_deleted).sum()
    }

    /// Bytes that stay everywhere.
    pub fn bytes_kept(&self) -> u64 {
        self.places.iter().map(|place| place.bytes_kept).sum()
    }
}

/// Every text in the documents.
#[derive(Debug, Default)]
struct Texts(BTreeSet<String>);

impl Texts {
    fn gather(&mut self, document: &Json) {
        match document {
            Json::String(text) => {
                self.0.insert(text.clone());
                // A digest is written with or without its kind.
                if let Some((_, digest)) = text.rsplit_once(':') {
                    self.0.insert(digest.to_owned());
                }
            }
            Json::Array(items) => items.iter().for_each(|item| self.gather(item)),
            Json::Object(entries) => entries.values().for_each(|value| self.gather(value)),
            _ => {}
        }
    }

    fn name(&self, text: &str) -> bool {
        self.0.contains(text)
    }
}

/// A table, by its folder.
struct TablePlace {
    /// Such as `views/payments/v1`.
    place: String,
    /// `view@version`.
    id: String,
    location: Location,
    files: Vec<ObjectMeta>,
}

/// What the log of a table says is needed.
#[derive(Debug, Default)]
struct Needed {
    paths: BTreeSet<String>,
    /// All files that were ever committed: those that are not needed now will never be again.
    ever: BTreeSet<String>,
    oldest_version: Option<u64>,
}

impl OfflineStore {
    /// Deletes data files that nothing needs, in all tables, quarantine tables, among the extracts of databases and the
    /// spines, and on a local disk what processes that were killed had half written. The logs of the tables and the recipes
    /// stay.
    ///
    /// # Errors
    /// A store that cannot be read, a recipe or log that cannot be understood, cancellation. What was deleted until then
    /// was needed by nothing.
    pub async fn vacuum(
        &self,
        in_use: &dyn InUse,
        options: VacuumOptions,
        progress: Option<Arc<dyn Fn(VacuumProgress) + Send + Sync>>,
        cancel: &Cancel,
    ) -> Result<VacuumReport, OfflineError> {
        let mut tables = self.list_tables("views").await?;
        tables.extend(self.list_tables("quarantine").await?);
        // What was read of a database stands there until its job is committed. No log speaks of it.
        tables.extend(self.list_tables(EXTRACTS_FOLDER).await?);
        let spines = self.list_below("spines").await?;
        let used = in_use.in_use().await.map_err(OfflineError::InUse)?;
        let mut texts = Texts::default();
        used.documents.iter().for_each(|document| texts.gather(document));
        self.gather_recipes(&mut texts).await?;

        let mut report = VacuumReport::default();
        let places = tables.len() + 2;
        for (places_done, table) in tables.iter().enumerate() {
            tell(progress.as_ref(), places_done, places, &table.place);
            let pinned = used.versions.get(&table.id).filter(|_| table.place.starts_with("views/"));
            report.places.extend(vacuum_table(table, pinned, &texts, options, cancel).await?);
        }
        tell(progress.as_ref(), tables.len(), places, "spines");
        report.places.extend(self.vacuum_spines(&spines, &texts, options, cancel).await?);
        tell(progress.as_ref(), tables.len() + 1, places, HALF_WRITTEN);
        report.places.extend(self.vacuum_half_written(options, cancel).await?);
        Ok(report)
    }

    pub(crate) async fn list_below(&self, folder: &str) -> Result<Vec<ObjectMeta>, OfflineError> {
        let place = self.root.below(folder)?;
        Ok(place.store.list(Some(&place.path)).try_collect().await?)
    }

    /// The tables below a folder, by view and version, with their data files.
    async fn list_tables(&self, folder: &str) -> Result<Vec<TablePlace>, OfflineError> {
        let root = self.root.below(folder)?;
        let mut tables: BTreeMap<(String, String), Vec<ObjectMeta>> = BTreeMap::new();
        for object in self.list_below(folder).await? {
            let Some(parts) = object.location.prefix_match(&root.path) else { continue };
            let parts: Vec<String> = parts.map(|part| part.as_ref().to_owned()).collect();
            let [view, version, rest @ ..] = parts.as_slice() else { continue };
            // Among extracts also what was written and never got its name.
            let is_named = |name: &String| name.ends_with(DATA_EXTENSION) || folder == EXTRACTS_FOLDER;
            let is_data = rest.first().is_some_and(|first| first != LOG_FOLDER) && rest.last().is_some_and(is_named);
            let files = tables.entry((view.clone(), version.clone())).or_default();
            if is_data {
                files.push(object);
            }
        }
        let table = |((view, version), files): ((String, String), Vec<ObjectMeta>)| {
            let place = format!("{folder}/{view}/{version}");
            let id = format!("{view}@{}", version.trim_start_matches('v'));
            Ok(TablePlace { location: self.root.below(&place)?, place, id, files })
        };
        tables.into_iter().map(table).collect()
    }

    async fn gather_recipes(&self, texts: &mut Texts) -> Result<(), OfflineError> {
        let place = self.root.below("recipes")?;
        for recipe in self.list_below("recipes").await? {
            let bytes = place.store.get(&recipe.location).await?.bytes().await?;
            let document = serde_json::from_slice(&bytes)
                .map_err(|source| OfflineError::Json { what: "a recipe, without which nothing is deleted", source })?;
            texts.gather(&document);
        }
        Ok(())
    }

    /// Spines are named by their content alone: one that was old when it was listed may have been kept anew since.
    async fn is_young_by_now(&self, spine: &ObjectMeta, options: VacuumOptions) -> Result<bool, OfflineError> {
        if is_young(spine, options.grace_us, options) {
            return Ok(true);
        }
        let now = meta_if_there(self.root.store.as_ref(), &spine.location).await?;
        Ok(now.is_some_and(|now| is_young(&now, options.grace_us, options)))
    }

    async fn vacuum_spines(
        &self,
        spines: &[ObjectMeta],
        texts: &Texts,
        options: VacuumOptions,
        cancel: &Cancel,
    ) -> Result<Option<PlaceReport>, OfflineError> {
        let mut report = PlaceReport { place: "spines".to_owned(), ..PlaceReport::default() };
        for spine in spines {
            let name = spine.location.filename().unwrap_or_default();
            let is_named = texts.name(name.split('.').next().unwrap_or_default());
            let is_kept = is_named || self.is_young_by_now(spine, options).await?;
            report.files_spared += usize::from(is_named);
            delete_unless(is_kept, spine, &self.root, &mut report, options, cancel).await?;
        }
        Ok(Some(report).filter(PlaceReport::saw_files))
    }
}

/// What a local disk keeps of files that were being written when their process was killed: a file gets its name when it is
/// whole, and has another one until then, which listings leave out.
const HALF_WRITTEN: &str = "half written files";

/// The folders of the store.
const FOLDERS: [&str; 6] = ["views", "quarantine", EXTRACTS_FOLDER, "spines", "recipes", "statistics"];

impl OfflineStore {
    async fn vacuum_half_written(
        &self,
        options: VacuumOptions,
        cancel: &Cancel,
    ) -> Result<Option<PlaceReport>, OfflineError> {
        let Some(root) = self.root.local_path() else { return Ok(None) };
        let cancel = cancel.clone();
        let swept = tokio::task::spawn_blocking(move || {
            let mut report = PlaceReport { place: HALF_WRITTEN.to_owned(), ..PlaceReport::default() };
            for folder in FOLDERS {
                sweep(&root.join(folder), options, &cancel, &mut report)?;
            }
            Ok::<_, OfflineError>(report)
        });
        let report = swept.await.map_err(|error| OfflineError::Worker(error.to_string()))??;
        Ok(Some(report).filter(PlaceReport::saw_files))
    }
}

/// Deletes half written files below a folder that nobody has touched for the time of grace.
fn sweep(
    folder: &FilePath,
    options: VacuumOptions,
    cancel: &Cancel,
    report: &mut PlaceReport,
) -> Result<(), OfflineError> {
    let failed = |path: &FilePath, source| OfflineError::Io { path: path.display().to_string(), source };
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|error| failed(folder, error))?,
    };
    for entry in entries {
        cancel.check()?;
        let entry = entry.map_err(|error| failed(folder, error))?;
        let path = entry.path();
        if entry.file_type().map_err(|error| failed(&path, error))?.is_dir() {
            sweep(&path, options, cancel, report)?;
            continue;
        }
        if !is_half_written(&path) {
            continue;
        }
        let metadata = match entry.metadata() {
            // It is whole, or somebody has cleared it away.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            metadata => metadata.map_err(|error| failed(&path, error))?,
        };
        let touched: DateTime<Utc> = metadata.modified().map_err(|error| failed(&path, error))?.into();
        if touched.timestamp_micros() > options.now_us.saturating_sub(options.grace_us) {
            report.files_kept += 1;
            report.bytes_kept += metadata.len();
            continue;
        }
        if !options.dry_run {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(&path, error)),
                _ => {}
            }
        }
        report.files_deleted += 1;
        report.bytes_deleted += metadata.len();
    }
    Ok(())
}

/// `name#1`: so the library calls a file that is not whole yet.
fn is_half_written(path: &FilePath) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let number = name.rsplit_once('#').map(|(_, number)| number).unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

impl PlaceReport {
    fn saw_files(&self) -> bool {
        self.files_deleted + self.files_kept > 0
    }
}

fn tell(progress: Option<&Arc<dyn Fn(VacuumProgress) + Send + Sync>>, places_done: usize, places: usize, place: &str) {
    if let Some(progress) = progress {
        progress(VacuumProgress { places_done, places, place: place.to_owned() });
    }
}

fn is_young(object: &ObjectMeta, age_us: i64, options: VacuumOptions) -> bool {
    object.last_modified.timestamp_micros() > options.now_us.saturating_sub(age_us)
}

async fn delete_unless(
    is_kept: bool,
    object: &ObjectMeta,
    at: &Location,
    report: &mut PlaceReport,
    options: VacuumOptions,
    cancel: &Cancel,
) -> Result<(), OfflineError> {
    if is_kept {
        report.files_kept += 1;
        report.bytes_kept += object.size;
        return Ok(());
    }
    cancel.check()?;
    if !options.dry_run {
        delete_if_there(at.store.as_ref(), &object.location).await?;
    }
    report.files_deleted += 1;
    report.bytes_deleted += object.size;
    Ok(())
}

async fn vacuum_table(
    table: &TablePlace,
    pinned: Option<&BTreeSet<u64>>,
    texts: &Texts,
    options: VacuumOptions,
    cancel: &Cancel,
) -> Result<Option<PlaceReport>, OfflineError> {
    let needed = needed_by_log(&table.location, pinned, options).await?;
    let mut report =
        PlaceReport { place: table.place.clone(), oldest_version: needed.oldest_version, ..PlaceReport::default() };
    for file in &table.files {
        let relative = table.location.relative(&file.location).unwrap_or_default();
        let is_needed = needed.paths.contains(&relative);
        let is_named = texts.name(&relative);
        let may_be_committed = !needed.ever.contains(&relative) && is_young(file, options.grace_us, options);
        let is_kept = is_needed || is_named || may_be_committed;
        report.files_spared += usize::from(is_named && !is_needed);
        delete_unless(is_kept, file, &table.location, &mut report, options, cancel).await?;
    }
    Ok(Some(report).filter(PlaceReport::saw_files))
}

/// The files of every version that was current within the time to retain, and of those that are pinned.
async fn needed_by_log(
    location: &Location,
    pinned: Option<&BTreeSet<u64>>,
    options: VacuumOptions,
) -> Result<Needed, OfflineError> {
    let (_, log_store) = open_log(location);
    let Some(mut table) = load(location, &log_store).await? else { return Ok(Needed::default()) };
    let latest = table.version().unwrap_or_default();
    let since_ms = options.now_us.saturating_sub(options.retain_us).div_euclid(1_000);
    let mut needed = Needed::default();
    let mut oldest = None;
    for version in (0..=latest).rev() {
        let actions = read_commit(location, &log_store, version).await?;
        let added: Vec<String> =
            actions.iter().filter_map(|action| action["add"]["path"].as_str()).map(object_path).collect();
        if oldest.is_none() {
            needed.paths.extend(added.iter().cloned());
            let time_ms = actions.iter().find_map(|action| action["commitInfo"]["timestamp"].as_i64());
            // It was current at that moment, and those before it were not any more.
            oldest = time_ms.is_some_and(|time_ms| time_ms <= since_ms).then_some(version);
        }
        needed.ever.extend(added);
    }
    let oldest = oldest.unwrap_or(0);
    needed.oldest_version = Some(oldest);
    let pinned = pinned.into_iter().flatten().copied().filter(|version| *version < oldest);
    for version in std::iter::once(oldest).chain(pinned) {
        table.load_version(version).await.map_err(|error| table_error(location, error))?;
        needed.paths.extend(live_files(&table, location)?.into_iter().map(|live| live.file.path));
    }
    Ok(needed)
}
