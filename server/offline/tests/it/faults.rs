//! What is done to a table after its first commit, disturbed at every write: before it, after it without an answer, once or
//! for good. The table is then as it was or as it shall be, and the same job ends in what an undisturbed one does.

use std::fmt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use eadem_offline::{
    Cancel, CompactOptions, Compaction, FilesInUse, InUse, MemoryLedger, OfflineError, OfflineStore, QuarantineFilter,
    Replay, ReplayOptions, VacuumOptions, ViewSpec, compact, run_backfill, run_replay,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

use crate::backfill::payments;
use crate::support::{Row, at, backfill, double_amount, source, stored_rows, view, write_parquet};

/// How the n-th write goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It is not made, and from then on there is no answer to anything: the process died before it.
    DiesBefore,
    /// It is made, and from then on there is no answer to anything: the process died after it.
    DiesAfter,
    /// It is not made; the next one is.
    Fails,
    /// It is made, but reported as failed; the next one is answered.
    AnswerLost,
}

const FAULTS: [Fault; 4] = [Fault::DiesBefore, Fault::DiesAfter, Fault::Fails, Fault::AnswerLost];

#[derive(Debug, Clone)]
struct Faulty {
    inner: Arc<LocalFileSystem>,
    fault: Fault,
    writes_left: Arc<AtomicI64>,
    is_dead: Arc<AtomicBool>,
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a store that fails")
    }
}

fn gone(what: &str) -> object_store::Error {
    object_store::Error::Generic { store: "faulty", source: what.to_owned().into() }
}

impl Faulty {
    fn after(writes: i64, fault: Fault) -> Self {
        Self {
            inner: Arc::new(LocalFileSystem::new()),
            fault,
            writes_left: Arc::new(AtomicI64::new(writes)),
            is_dead: Arc::default(),
        }
    }

    fn check_alive(&self) -> object_store::Result<()> {
        if self.is_dead.load(Ordering::SeqCst) { Err(gone("dead")) } else { Ok(()) }
    }

    async fn write<T>(&self, made: impl Future<Output = object_store::Result<T>>) -> object_store::Result<T> {
        self.check_alive()?;
        if self.writes_left.fetch_sub(1, Ordering::SeqCst) != 0 {
            return made.await;
        }
        if matches!(self.fault, Fault::DiesAfter | Fault::AnswerLost) {
            made.await?;
        }
        if matches!(self.fault, Fault::DiesBefore | Fault::DiesAfter) {
            self.is_dead.store(true, Ordering::SeqCst);
        }
        Err(gone("the n-th write"))
    }

    fn has_struck(&self) -> bool {
        self.writes_left.load(Ordering::SeqCst) < 0
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, at: &Path, bytes: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        self.write(self.inner.put_opts(at, bytes, options)).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.write(self.inner.put_multipart_opts(at, options)).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.check_alive()?;
        self.inner.get_opts(at, options).await
    }

    fn delete_stream(
        &self,
        at: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        let store = self.clone();
        let deleted = at.then(move |at| {
            let store = store.clone();
            async move {
                let at = at?;
                store.write(store.inner.delete(&at)).await?;
                Ok(at)
            }
        });
        deleted.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        match self.check_alive() {
            Ok(()) => self.inner.list(prefix),
            Err(error) => futures::stream::iter([Err(error)]).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.check_alive()?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.write(self.inner.copy_opts(from, to, options)).await
    }
}

/// What is done to the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    Replace,
    Recompute,
    Compact,
    Vacuum,
    Replay,
}

pub const DEEDS: [Deed; 5] = [Deed::Replace, Deed::Recompute, Deed::Compact, Deed::Vacuum, Deed::Replay];

/// A source and a table to which a deed is to be done.
pub struct Scene {
    folder: PathBuf,
    view: ViewSpec,
}

struct Nothing;

#[async_trait]
impl InUse for Nothing {
    async fn in_use(&self) -> Result<FilesInUse, String> {
        Ok(FilesInUse::default())
    }
}

impl Scene {
    /// One that was prepared.
    pub fn at(folder: &FilePath) -> Self {
        let view = view("payments", source("payments", &folder.join("in")), double_amount());
        Self { folder: folder.to_owned(), view }
    }

    /// Rows of three dates, and for a deed what it needs to have something to do.
    pub async fn prepare(folder: &FilePath, deed: Deed, rows: usize) -> Self {
        let scene = Self::at(folder);
        scene.write("a.parquet", rows, 0);
        scene.write("b.parquet", rows / 2, 10_000);
        if deed == Deed::Replay {
            // Too far ahead of the first job, not of the replay.
            scene.write_of("2024-05", "ahead.parquet", rows, 50_000);
        }
        let store = scene.open("prepared");
        scene.backfill(&store, "first", None, Arc::new(MemoryLedger::default())).await.unwrap();
        match deed {
            Deed::Compact | Deed::Replay => {}
            Deed::Replace | Deed::Vacuum => scene.write("a.parquet", rows - 3, 20_000),
            Deed::Recompute => {
                scene.write("b.parquet", rows / 2 + 2, 30_000);
                scene.write("late.parquet", 7, 40_000);
            }
        }
        if deed == Deed::Vacuum {
            scene.backfill(&store, "second", None, Arc::new(MemoryLedger::default())).await.unwrap();
            scene.compact(&store, "third").await.unwrap();
        }
        scene
    }

    fn write(&self, name: &str, rows: usize, first: usize) {
        self.write_of("2023-05", name, rows, first);
    }

    fn write_of(&self, month: &str, name: &str, rows: usize, first: usize) {
        let texts: Vec<(String, String)> = (first..first + rows)
            .map(|row| {
                let time =
                    format!("{month}-0{}T{:02}:{:02}:{:02}Z", 1 + row % 3, row % 24, row / 24 % 60, row / 1_440 % 60);
                (format!("card{}", row % 5), time)
            })
            .collect();
        let rows: Vec<_> = texts
            .iter()
            .enumerate()
            .map(|(row, (card, time))| (Some(card.as_str()), time.as_str(), Some(row as f64), Some("note")))
            .collect();
        write_parquet(&self.folder.join("in").join(name), &payments(&rows), rows.len());
    }

    pub fn root(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn open(&self, name: &str) -> OfflineStore {
        OfflineStore::open(self.root(name).to_str().unwrap()).unwrap()
    }

    /// A store of this name as the prepared one is.
    pub fn copy(&self, name: &str) -> OfflineStore {
        copy_folder(&self.root("prepared"), &self.root(name));
        self.open(name)
    }

    async fn backfill(
        &self,
        store: &OfflineStore,
        job: &str,
        range_us: Option<(i64, i64)>,
        ledger: Arc<MemoryLedger>,
    ) -> Result<(), OfflineError> {
        let mut job = backfill(job, &self.view, store, ledger);
        job.options.range_us = range_us;
        job.options.recompute = range_us.is_some();
        run_backfill(job).await.map(|_| ())
    }

    async fn compact(&self, store: &OfflineStore, job: &str) -> Result<(), OfflineError> {
        let compaction = Compaction {
            job: job.to_owned(),
            table: store.table(&self.view)?,
            options: CompactOptions::default(),
            progress: None,
            cancel: Cancel::default(),
        };
        compact(compaction).await.map(|_| ())
    }

    /// Does the deed, or goes on with it.
    pub async fn act(&self, deed: Deed, store: &OfflineStore, ledger: Arc<MemoryLedger>) -> Result<(), OfflineError> {
        match deed {
            Deed::Replace => self.backfill(store, "deed", None, ledger).await,
            Deed::Recompute => {
                let range = (at("2023-05-01T12:00:00Z"), at("2023-05-03T12:00:00Z"));
                self.backfill(store, "deed", Some(range), ledger).await
            }
            Deed::Compact => self.compact(store, "deed").await,
            Deed::Replay => {
                let refused = self.open("prepared").quarantine(&self.view.name, self.view.version)?.version().await?;
                let replay = Replay {
                    job: "deed".to_owned(),
                    view: self.view.clone(),
                    store: store.clone(),
                    ledger,
                    options: ReplayOptions {
                        created_at_us: at("2024-06-01T00:00:00Z"),
                        version: refused.unwrap(),
                        filter: QuarantineFilter::default(),
                        rows_max: 10_000,
                        memory_bytes_max: 1 << 30,
                    },
                    progress: None,
                    cancel: Cancel::default(),
                };
                run_replay(replay).await.map(|_| ())
            }
            Deed::Vacuum => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
                let options = VacuumOptions::at(i64::try_from(now).unwrap() + 30 * 86_400_000_000);
                store.vacuum(&Nothing, options, None, &Cancel::default()).await.map(|_| ())
            }
        }
    }

    pub async fn rows(&self, store: &OfflineStore) -> Vec<Row> {
        stored_rows(store, &self.view).await
    }

    pub async fn version(&self, store: &OfflineStore) -> u64 {
        store.table(&self.view).unwrap().version().await.unwrap().unwrap()
    }
}

fn copy_folder(from: &FilePath, to: &FilePath) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy_folder(&source, &target);
        } else {
            std::fs::copy(&source, &target).unwrap();
        }
    }
}

async fn disturbed_at_every_write(deed: Deed) {
    let folder = tempfile::tempdir().unwrap();
    let scene = Scene::prepare(folder.path(), deed, 30).await;
    let before = scene.rows(&scene.open("prepared")).await;
    let undisturbed = scene.copy("undisturbed");
    scene.act(deed, &undisturbed, Arc::new(MemoryLedger::default())).await.unwrap();
    let after = scene.rows(&undisturbed).await;
    let version = scene.version(&undisturbed).await;
    match deed {
        Deed::Replace | Deed::Recompute | Deed::Replay => assert_ne!(before, after),
        Deed::Compact | Deed::Vacuum => assert_eq!(before, after),
    }
    for fault in FAULTS {
        let mut writes = 0;
        loop {
            let name = format!("{fault:?}-{writes}");
            let store = scene.copy(&name);
            let faulty = Faulty::after(writes, fault);
            let root = scene.root(&name);
            let disturbed = OfflineStore::with_object_store(root.to_str().unwrap(), Arc::new(faulty.clone())).unwrap();
            let ledger = Arc::new(MemoryLedger::default());
            let outcome = scene.act(deed, &disturbed, ledger.clone()).await;
            let context = format!("{deed:?}, {fault:?} at write {writes}: {outcome:?}");
            let visible = scene.rows(&store).await;
            assert!(visible == before || visible == after, "{context}: a part is visible");
            if outcome.is_ok() {
                assert_eq!(visible, after, "{context}: it was done and is not visible");
            }
            scene.act(deed, &store, ledger).await.unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!(scene.rows(&store).await, after, "{context}");
            assert_eq!(scene.version(&store).await, version, "{context}: not exactly one commit");
            std::fs::remove_dir_all(&root).unwrap();
            if !faulty.has_struck() {
                break;
            }
            writes += 1;
            assert!(writes < 200, "{deed:?} never comes to an end");
        }
        assert!(writes > 3, "{deed:?}: only {writes} writes were disturbed");
        // For the bar, which adds such lines up; whatever differed would have ended the test.
        println!("H9: kills={writes} faults=0");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replacement_disturbed_at_any_write_is_whole_or_not_there() {
    disturbed_at_every_write(Deed::Replace).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recomputation_disturbed_at_any_write_is_whole_or_not_there() {
    disturbed_at_every_write(Deed::Recompute).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compaction_disturbed_at_any_write_is_whole_or_not_there() {
    disturbed_at_every_write(Deed::Compact).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_disturbed_at_any_write_is_whole_or_not_there() {
    disturbed_at_every_write(Deed::Replay).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vacuum_disturbed_at_any_deletion_harms_nothing() {
    disturbed_at_every_write(Deed::Vacuum).await;
}
