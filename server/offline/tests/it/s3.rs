//! A real S3 server, and processes that write to it.
//!
//! How to reach it stands in a process's environment, so whatever uses it runs in processes of its own: this very test
//! program, which does one task. The tests look at what these leave with a client of their own.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path as FilePath, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use bytes::Bytes;
use eadem_offline::{
    Cancel, CompactOptions, Compaction, Location, MemoryLedger, OfflineStore, Origin, StoreLimits, ViewSpec, compact,
    create_dataset, limit_object_stores, run_backfill,
};
use futures::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use serde::{Deserialize, Serialize};

use crate::delta_log;
use crate::dice::is_soak;
use crate::every_request::dataset_of;
use crate::fault_proxy::{FaultProxy, LOSSES, Loss};
use crate::s3_server::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
use crate::support::{at, backfill, double_amount, source, stored_rows, view, write_parquet};
use crate::vacuum::{in_days, nothing};

const TASK: &str = "EADEM_TEST_TASK";

/// What a process is to do.
#[derive(Debug, Serialize, Deserialize)]
enum Task {
    /// So many writers at once, each with so many jobs, one after the other. Says `<job> <version>` of each that is done.
    Write { root: String, sources: PathBuf, name: String, writers: usize, jobs: usize },
    /// For each prefix that is read: a backfill and a training set there. Says `done`, or how it failed at first.
    Make { source: String },
    /// For each prefix that is read: two backfills, a compaction and a vacuum in a week there. Says `done`, or what is wrong.
    Tidy { sources: PathBuf },
    /// For each location that is read: 40 MiB are put there, or only begun. Says `done` or `failed`.
    Put { only_begin: bool },
}

#[test]
#[ignore = "a process of the other tests"]
fn a_process_of_its_own() {
    let Ok(task) = std::env::var(TASK) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match serde_json::from_str(&task).unwrap() {
        Task::Write { root, sources, name, writers, jobs } => {
            runtime.block_on(write(&root, &sources, &name, writers, jobs));
        }
        Task::Make { source } => for_each_line(|prefix| runtime.block_on(make(&source, prefix))),
        Task::Tidy { sources } => for_each_line(|prefix| runtime.block_on(tidy(&sources, prefix))),
        Task::Put { only_begin } => {
            limit_object_stores(StoreLimits { retries_max: 1, ..StoreLimits::default() });
            for_each_line(|location| runtime.block_on(put(location, only_begin)));
        }
    }
}

fn for_each_line(mut answer: impl FnMut(&str) -> String) {
    for line in std::io::stdin().lines() {
        say(&answer(&line.unwrap()));
    }
}

/// Lines for the test that started this process begin with a sign: the test program says things too.
fn say(text: &str) {
    println!("> {}", text.replace('\n', " "));
}

/// A process that works on a task.
struct Worker {
    process: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Worker {
    fn start(task: &Task, variables: Vec<(&'static str, String)>) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "s3::a_process_of_its_own", "--ignored", "--nocapture", "--test-threads=1"])
            .env(TASK, serde_json::to_string(task).unwrap())
            .envs(variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (process.stdin.take(), BufReader::new(process.stdout.take().unwrap()));
        Self { process, to, from }
    }

    /// The next line that is meant for the test; `None` at the end.
    fn hear(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.from.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            // The name of the test may stand before it.
            if let Some((_, said)) = line.trim_end().split_once("> ") {
                return Some(said.to_owned());
            }
        }
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.to.as_mut().unwrap(), "{line}").unwrap();
        self.hear().expect("an answer")
    }

    /// Lets it end; gives what it still had to say.
    fn end(mut self) -> Vec<String> {
        self.to = None;
        let said = std::iter::from_fn(|| self.hear()).collect();
        assert!(self.process.wait().unwrap().success());
        said
    }
}

/// The tests' own client of the server.
fn client(server: &S3Server) -> Arc<dyn ObjectStore> {
    let client = AmazonS3Builder::new()
        .with_bucket_name(BUCKET)
        .with_endpoint(&server.endpoint)
        .with_allow_http(true)
        .with_access_key_id(ACCESS_KEY)
        .with_secret_access_key(SECRET_KEY);
    Arc::new(client.build().unwrap())
}

fn payments(card: &str, amount: f64) -> RecordBatch {
    let times = [at("2023-05-01T10:00:00Z"), at("2023-05-02T10:00:00Z")];
    RecordBatch::try_from_iter_with_nullable([
        ("card", Arc::new(StringArray::from(vec![card; 2])) as ArrayRef, true),
        ("at", Arc::new(TimestampMicrosecondArray::from(times.to_vec()).with_timezone("UTC")) as ArrayRef, true),
        ("amount", Arc::new(Float64Array::from(vec![amount, amount + 0.5])) as ArrayRef, true),
        ("note", Arc::new(StringArray::from(vec![Some("x"), None])) as ArrayRef, true),
    ])
    .unwrap()
}

fn payments_view(location: &FilePath) -> ViewSpec {
    view("payments", source("payments", location), double_amount())
}

// Writers that compete.

const PROCESSES: usize = 4;
const WRITERS_OF_A_PROCESS: usize = 2;
const JOBS_OF_A_WRITER: usize = 2;

async fn write(root: &str, sources: &FilePath, name: &str, writers: usize, jobs: usize) {
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..writers {
        let store = OfflineStore::open(root).unwrap();
        let (sources, name) = (sources.to_owned(), name.to_owned());
        tasks.spawn(async move {
            for number in 0..jobs {
                let job = format!("{name}-{writer}-{number}");
                let folder = sources.join(&job);
                write_parquet(&folder.join(format!("{job}.parquet")), &payments(&job, number as f64), 100);
                let view = payments_view(&folder);
                let mut run = backfill(&job, &view, &store, Arc::new(MemoryLedger::default()));
                run.options.workers = 1;
                let report = run_backfill(run).await.unwrap();
                say(&format!("{job} {}", report.version.unwrap()));
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
}

/// Eight writers in four processes fill one table at the same time, below `competing` in `store`.
async fn let_writers_compete(
    root: &str,
    variables: impl Fn() -> Vec<(&'static str, String)>,
    store: Arc<dyn ObjectStore>,
    rooted: &OfflineStore,
) {
    let sources = tempfile::tempdir().unwrap();
    let task = |process: usize| Task::Write {
        root: root.to_owned(),
        sources: sources.path().to_owned(),
        name: format!("process{process}"),
        writers: WRITERS_OF_A_PROCESS,
        jobs: JOBS_OF_A_WRITER,
    };
    let workers: Vec<Worker> = (0..PROCESSES).map(|process| Worker::start(&task(process), variables())).collect();
    let mut acknowledged: Vec<(usize, String)> = Vec::new();
    for worker in workers {
        acknowledged.extend(worker.end().iter().map(|line| {
            let (job, version) = line.split_once(' ').unwrap();
            (version.parse().unwrap(), job.to_owned())
        }));
    }
    acknowledged.sort();
    let jobs = PROCESSES * WRITERS_OF_A_PROCESS * JOBS_OF_A_WRITER;
    assert_eq!(acknowledged.len(), jobs);

    // Each job has a version of its own, the one that it was told; none is missing, and there are no others.
    let versions = delta_log::versions(store.as_ref(), "competing/views/payments/v1").await;
    assert_eq!(versions.len(), 1 + jobs, "the creation, and one version for each job");
    assert_eq!(delta_log::jobs(&versions), acknowledged);
    // Nobody's rows were lost or doubled.
    let rows = stored_rows(rooted, &payments_view(sources.path())).await;
    let mut seen: Vec<(&str, i64)> = rows.iter().map(|row| (row.key.as_str(), row.sequence)).collect();
    seen.sort();
    let mut expected: Vec<(&str, i64)> =
        acknowledged.iter().flat_map(|(_, job)| [(job.as_str(), 0), (job.as_str(), 1)]).collect();
    expected.sort();
    assert_eq!(seen, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_writers_that_compete_on_s3_each_wins_a_version_of_its_own() {
    let server = S3Server::shared();
    let root = format!("s3://{BUCKET}/competing");
    let store = client(&server);
    let rooted = OfflineStore::with_object_store("memory:///competing", store.clone()).unwrap();
    let_writers_compete(&root, || server.variables(), store, &rooted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_writers_that_compete_on_a_disk_each_wins_a_version_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("competing").to_str().unwrap().to_owned();
    let disk = object_store::local::LocalFileSystem::new_with_prefix(folder.path()).unwrap();
    let_writers_compete(&root, Vec::new, Arc::new(disk), &OfflineStore::open(&root).unwrap()).await;
}

// Files that are put together, and deleted.

async fn tidy(sources: &FilePath, prefix: &str) -> String {
    let store = OfflineStore::open(prefix).unwrap();
    let view = payments_view(sources);
    for number in 0..2 {
        write_parquet(&sources.join(format!("{number}.parquet")), &payments("a", f64::from(number)), 100);
        let job = backfill(&format!("load {number}"), &view, &store, Arc::new(MemoryLedger::default()));
        run_backfill(job).await.unwrap();
    }
    let before = stored_rows(&store, &view).await;
    let compaction = Compaction {
        job: "compact".to_owned(),
        table: store.table(&view).unwrap(),
        options: CompactOptions::default(),
        progress: None,
        cancel: Cancel::default(),
    };
    let compacted = compact(compaction.clone()).await.unwrap();
    if (compacted.version, compacted.files_before, compacted.files_after) != (Some(3), 4, 2) {
        return format!("{compacted:?}");
    }
    if compact(compaction).await.unwrap().version != compacted.version {
        return "the same job again has another commit".to_owned();
    }
    for (days, files_deleted) in [(0, 0), (8, compacted.files_before), (9, 0)] {
        let report = store.vacuum(&nothing(), in_days(days), None, &Cancel::default()).await.unwrap();
        if report.files_deleted() != files_deleted {
            return format!("in {days} days: {report:?}");
        }
    }
    match before.len() == 4 && stored_rows(&store, &view).await == before {
        true => "done".to_owned(),
        false => format!("other rows than {before:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_on_s3_are_put_together_and_those_that_nobody_needs_deleted() {
    let server = S3Server::shared();
    let sources = tempfile::tempdir().unwrap();
    let mut worker = Worker::start(&Task::Tidy { sources: sources.path().to_owned() }, server.variables());
    assert_eq!(worker.ask(&format!("s3://{BUCKET}/tidy")), "done");
    worker.end();
    // What is there is what the current version has.
    let store = client(&server);
    let versions = delta_log::versions(store.as_ref(), "tidy/views/payments/v1").await;
    let table = Path::from("tidy/views/payments/v1");
    let found: Vec<_> = store.list(Some(&table)).try_collect().await.unwrap();
    let data: BTreeSet<String> = found
        .iter()
        .filter_map(|object| object.location.prefix_match(&table))
        .map(|parts| parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/"))
        .filter(|path| path.ends_with(".parquet"))
        .collect();
    let live: BTreeSet<String> = delta_log::live_files(&versions).iter().map(|path| path.replace("%3D", "=")).collect();
    assert_eq!(data.len(), 2);
    assert_eq!(data, live);
}

// A network that loses requests and replies.

/// Besides the commits, of `make test`; with EADEM_SOAK=1 every request is tried.
const REQUESTS_TRIED: usize = 4;

async fn make(source: &str, prefix: &str) -> String {
    let store = OfflineStore::open(prefix).unwrap();
    let mut view = payments_view(FilePath::new("unused"));
    view.source.origin = Origin::Parquet { locations: vec![source.to_owned()] };
    let ledger = Arc::new(MemoryLedger::default());
    let mut spec = dataset_of(&view, FilePath::new("unused"));
    spec.spine = format!("{source}/spine.csv");
    let out = format!("{prefix}-set.parquet");
    let mut failures = Vec::new();
    for _ in 0..2 {
        let mut job = backfill("job", &view, &store, ledger.clone());
        job.options.chunk_rows = 1;
        job.options.workers = 1;
        let loaded = run_backfill(job).await.map(|_| ());
        let made = match loaded {
            Ok(()) => create_dataset(&store, &spec, &out).await.map(|_| ()),
            failed => failed,
        };
        match made {
            Ok(()) if failures.is_empty() => return "done".to_owned(),
            Ok(()) => return format!("done after {}", failures.join(", ")),
            Err(error) => failures.push(error.to_string()),
        }
    }
    format!("failed: {}", failures.join(", "))
}

/// What a case leaves behind: the jobs of the table's versions, its files, and the bytes of the training set.
async fn left(store: &dyn ObjectStore, prefix: &str) -> (Vec<(usize, String)>, Vec<String>, Bytes) {
    let versions = delta_log::versions(store, &format!("{prefix}/views/payments/v1")).await;
    let files = delta_log::live_files(&versions).into_iter().collect();
    let set = store.get(&Path::from(format!("{prefix}-set.parquet"))).await.unwrap().bytes().await.unwrap();
    (delta_log::jobs(&versions), files, set)
}

fn count(seen: &[String], method: &str) -> usize {
    seen.iter().filter(|line| line.starts_with(&format!("{method} "))).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_request_or_reply_on_the_way_to_s3_changes_nothing() {
    let server = S3Server::shared();
    let store = client(&server);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    write_parquet(&path, &payments("a", 1.0), 1);
    let bytes = std::fs::read(&path).unwrap();
    store.put(&Path::from("lossy-source/a.parquet"), bytes.into()).await.unwrap();
    let spine = "card,at\na,2023-05-02T00:00:00Z\nb,2023-05-01T00:00:00Z\na,2023-05-04T00:00:00Z\n";
    store.put(&Path::from("lossy-source/spine.csv"), spine.into()).await.unwrap();

    let proxy = FaultProxy::start(&server.endpoint);
    let mut variables = server.variables();
    variables.push(("AWS_ENDPOINT_URL_S3", proxy.endpoint.clone()));
    let mut worker = Worker::start(&Task::Make { source: format!("s3://{BUCKET}/lossy-source") }, variables);
    // A process connects, and asks for what it keeps, once.
    assert_eq!(worker.ask(&format!("s3://{BUCKET}/lossy/warm")), "done");
    proxy.lose_nothing();
    assert_eq!(worker.ask(&format!("s3://{BUCKET}/lossy/whole")), "done");
    let seen = proxy.seen();
    let expected = left(store.as_ref(), "lossy/whole").await;
    let (chunks, data_files) = (2, 2);
    let asks_for = |what: &str| seen.iter().filter(|line| line.starts_with("HEAD ") && line.contains(what)).count();
    assert!(asks_for("/lossy-source") <= 1 + 2 * chunks, "once, and before and after each chunk: {seen:#?}");
    assert!(asks_for("/views/") <= data_files, "whether what is committed is there: {seen:#?}");

    let step = if is_soak() { 1 } else { 1 + seen.len() / REQUESTS_TRIED };
    // Commits are what must not be lost or doubled: they are always tried.
    let is_commit = |line: &str| line.starts_with("PUT ") && line.contains("/_delta_log/");
    let commits: Vec<usize> = (1..).zip(&seen).filter(|(_, line)| is_commit(line)).map(|(number, _)| number).collect();
    assert_eq!(commits.len(), 2, "the table's creation, and the job's commit: {seen:#?}");
    let numbers = (1..=seen.len()).step_by(step).chain(commits);
    let (mut cases, mut differences) = (0, 0);
    for number in numbers {
        for loss in LOSSES {
            let prefix = format!("lossy/{number}-{loss:?}");
            proxy.lose(move |at, _| (at == number).then_some(loss));
            let said = worker.ask(&format!("s3://{BUCKET}/{prefix}"));
            cases += 1;
            let is_same = said.starts_with("done") && left(store.as_ref(), &prefix).await == expected;
            // What was carried out is recognised: nothing has to be done again.
            let is_recognised = loss == Loss::Request || said == "done";
            if !(is_same && is_recognised) {
                differences += 1;
                println!("request {number}, {loss:?}, {}: {said}", seen[number - 1]);
            }
        }
    }
    worker.end();
    println!("{} requests of one backfill and one training set", seen.len());
    println!("H9: kills={cases} faults={differences}");
    assert_eq!(differences, 0);
}

// Objects that are sent in parts.

async fn put(location: &str, only_begin: bool) -> String {
    let place = Location::parse(location).unwrap();
    let payload = PutPayload::from(vec![7; 40 << 20]);
    let sent = match only_begin {
        true => match place.store.put_multipart(&place.path).await {
            Ok(mut upload) => upload.put_part(PutPayload::from(vec![7; 6 << 20])).await,
            Err(error) => Err(error),
        },
        false => place.store.put(&place.path, payload).await.map(|_| ()),
    };
    match sent {
        Ok(()) => "done".to_owned(),
        Err(error) => format!("failed: {error}"),
    }
}

/// Waits until the server holds no parts of objects that never came to be.
fn wait_until_no_parts_are_left(server: &S3Server) {
    let folder = server.folder().join("data/.minio.sys/multipart");
    let deadline = Instant::now() + Duration::from_secs(20);
    while count_files(&folder) > 0 {
        assert!(Instant::now() < deadline, "parts are left in {}", folder.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn count_files(folder: &FilePath) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let entries = entries.filter_map(Result::ok).map(|entry| entry.path());
    entries.map(|path| if path.is_dir() { count_files(&path) } else { 1 }).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_object_appears_whole_or_leaves_nothing_behind() {
    let server = S3Server::shared();
    let store = client(&server);
    let proxy = FaultProxy::start(&server.endpoint);
    let mut variables = server.variables();
    variables.push(("AWS_ENDPOINT_URL_S3", proxy.endpoint.clone()));
    let url = |name: &str| format!("s3://{BUCKET}/large/{name}");
    let size = |name: &str| {
        let (store, path) = (store.clone(), Path::from(format!("large/{name}")));
        async move { store.head(&path).await.map(|found| found.size).ok() }
    };

    let mut worker = Worker::start(&Task::Put { only_begin: false }, variables.clone());
    assert_eq!(worker.ask(&url("whole")), "done");
    assert_eq!(size("whole").await, Some(40 << 20));
    assert_eq!(proxy.seen().iter().filter(|line| line.contains("partNumber=")).count(), 3, "{:?}", proxy.seen());

    proxy.lose(|_, line| line.contains("partNumber=2&").then_some(Loss::Request));
    assert!(worker.ask(&url("broken")).starts_with("failed"));
    assert_eq!(size("broken").await, None);
    wait_until_no_parts_are_left(&server);
    worker.end();

    proxy.lose_nothing();
    let mut worker = Worker::start(&Task::Put { only_begin: true }, variables);
    assert_eq!(worker.ask(&url("begun")), "done");
    wait_until_no_parts_are_left(&server);
    assert_eq!(size("begun").await, None);
    assert_eq!(count(&proxy.seen(), "DELETE"), 1, "the upload was called off: {:?}", proxy.seen());
    worker.end();
}
