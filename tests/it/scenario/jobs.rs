//! Jobs that are killed, and jobs that run twice.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::properties::WriterProperties;
use serde_json::{Value as Json, json};

use super::project::{Project, Server, texts};
#[cfg(target_os = "linux")]
use super::support::wait_until;

/// Rows of one row group of the source, and so of one chunk of the job: enough chunks to do something between.
const CHUNK_ROWS: usize = 200;
/// Attempts at meeting a job at work, on a machine that is busy with other things.
const ROUNDS_MAX: usize = 10;

/// The same rows in many small row groups; gives their number.
fn split_into_row_groups(file: &Path) -> u64 {
    let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(file).unwrap()).unwrap();
    let schema = reader.schema().clone();
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(CHUNK_ROWS)).build();
    let mut writer = ArrowWriter::try_new(std::fs::File::create(file).unwrap(), schema, Some(properties)).unwrap();
    for batch in &batches {
        writer.write(batch).unwrap();
    }
    writer.close().unwrap();
    batches.iter().map(|batch| batch.num_rows() as u64).sum()
}

/// Starts the backfill of a project, or goes on with it where it is not done.
fn start_or_resume(server: &Server) -> Json {
    let (_, jobs) = server.get("/jobs");
    let Some(job) = jobs["jobs"].as_array().unwrap().first() else {
        let (status, job) = server.post("/jobs/backfill", &json!({ "views": ["airport_weather"] }));
        assert_eq!(status, 202, "{job}");
        return job;
    };
    if job["state"] == "succeeded" {
        return job.clone();
    }
    assert_eq!(job["state"], "interrupted", "{job}");
    let id = job["id"].as_str().unwrap();
    let (status, job) = server.post(&format!("/jobs/{id}/resume"), &json!({}));
    assert_eq!(status, 202, "{job}");
    job
}

/// The demonstration's project with its weather in many chunks; gives also how many rows that has.
fn project_of_many_chunks() -> (Project, u64) {
    let project = Project::of_flights();
    let rows = split_into_row_groups(&project.path("data/weather.parquet"));
    project.write("eadem.toml", format!("[jobs]\nchunk_rows = {CHUNK_ROWS}\nworkers = 1\n"));
    project.succeed(&["apply"]);
    (project, rows)
}

/// For each version of a Delta table that adds files, the rows that these say to have.
fn rows_added_by_version(table: &Path) -> Vec<u64> {
    let log = std::fs::read_dir(table.join("_delta_log")).unwrap().map(|entry| entry.unwrap().path());
    let mut versions: Vec<_> = log.filter(|path| path.extension().is_some_and(|its| its == "json")).collect();
    versions.sort();
    assert!(!versions.is_empty(), "{} has no version", table.display());
    let rows_of = |version: &std::path::PathBuf| {
        let text = std::fs::read_to_string(version).unwrap();
        let actions: Vec<Json> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let adds: Vec<&Json> = actions.iter().filter_map(|action| action.get("add")).collect();
        let rows = |add: &&Json| {
            let stats: Json = serde_json::from_str(add["stats"].as_str().unwrap()).unwrap();
            stats["numRecords"].as_u64().unwrap()
        };
        (!adds.is_empty()).then(|| adds.iter().map(rows).sum())
    };
    versions.iter().filter_map(rows_of).collect()
}

/// The backfill of a project, once a process of its own is at it and has done something; gives the process and the job.
#[allow(clippy::zombie_processes)] // Whoever gets it waits for it.
fn backfill_at_work(project: &Project) -> (Child, Json) {
    let start = || {
        let mut verb = project.command(&["backfill", "airport_weather"]);
        verb.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut verb = start();
    loop {
        let has_ended = verb.try_wait().unwrap().is_some();
        // Beside the process that holds the directory, where there is something to look at by now.
        let output = project.run(&["jobs", "list", "--output", "json"]);
        let jobs: Json = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if jobs["jobs"][0]["progress"]["chunks_done"].as_u64().unwrap_or(0) > 0 {
            return (verb, jobs["jobs"][0].clone());
        }
        if has_ended {
            // Whoever looks may have been faster, and held the directory for that moment.
            let (_, error) = super::project::texts(&verb.wait_with_output().unwrap());
            assert!(error.contains("is in use by"), "the backfill has ended and did nothing: {jobs}\n{error}");
            verb = start();
        }
    }
}

/// A verb is at a job; other verbs show it and call it off, though it runs in no process of theirs.
#[test]
fn a_job_of_another_process_is_shown_and_called_off() {
    let met_at_work = || {
        let (project, rows) = project_of_many_chunks();
        let (verb, job) = backfill_at_work(&project);
        let id = job["id"].as_str().unwrap().to_owned();
        if job["state"] == "running" {
            let progress = &job["progress"];
            assert_eq!((progress["total"].as_u64(), progress["workers"].as_u64()), (Some(rows), Some(1)), "{job}");
            assert!(progress["rows"].as_u64() < Some(rows) && progress["memory_bytes_max"].is_u64(), "{job}");
        }
        let cancelled = project.json(&["jobs", "cancel", &id]);
        let output = verb.wait_with_output().unwrap();
        (cancelled["state"] == "cancelled").then_some((project, rows, id, output))
    };
    let met = (0..ROUNDS_MAX).find_map(|_| met_at_work());
    let (project, rows, id, output) = met.expect("no cancellation met a job at work");
    let (_, error) = super::project::texts(&output);
    assert!(!output.status.success() && error.contains("was cancelled"), "{error}");
    assert!(error.contains("rows take at most 1.00 GiB of memory"), "{error}");
    let table = project.path(".eadem/offline/views/airport_weather/v1");
    assert!(!table.join("_delta_log").exists(), "nothing of it is there");

    let listed = |filter: &[&str]| {
        let arguments: Vec<&str> = ["jobs", "list"].iter().chain(filter).copied().collect();
        project.json(&arguments)["jobs"].as_array().unwrap().len()
    };
    assert_eq!(listed(&["--state", "cancelled", "--kind", "backfill"]), 1);
    assert_eq!((listed(&["--state", "running"]), listed(&["--kind", "dataset"]), listed(&["--limit", "0"])), (0, 0, 0));
    let error = project.fail(&["jobs", "list", "--state", "asleep"]);
    assert!(error.contains("running, succeeded, failed, cancelled, interrupted"), "{error}");
    assert!(project.succeed(&["jobs", "work"]).contains("no open backfill"));

    project.succeed(&["jobs", "resume", &id]);
    let job = project.json(&["jobs", "show", &id]);
    let view = &job["result"]["views"][0];
    assert!(view["chunks_done_before"].as_u64() > Some(0), "{view}");
    assert_eq!(rows_added_by_version(&table), [rows]);
    // The same again loads nothing twice.
    let again = project.json(&["backfill", "airport_weather"]);
    let view = &again["backfill"]["result"]["views"][0];
    assert_eq!(view["files_already_loaded"].as_array().map(Vec::len), Some(1), "{again}");
    assert_eq!(rows_added_by_version(&table), [rows]);
}

/// A worker takes up an interrupted job on its own; the server beside it tells how far it is.
#[test]
fn a_worker_ends_an_interrupted_job_and_a_server_beside_it_tells_of_it() {
    let (project, rows) = project_of_many_chunks();
    let server = project.serve();
    let job = start_or_resume(&server);
    let path = format!("/jobs/{}", job["id"].as_str().unwrap());
    drop(server);
    let server = project.serve();
    let mut worker = project.command(&["jobs", "work", "--output", "json"]);
    let worker = worker.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    while server.get(&path).1["state"] == "interrupted" {}
    let (_, events) = server.raw("GET", &format!("{path}/events"), "Host: localhost\r\n", b"");
    let events: Vec<Json> = events
        .lines()
        .filter_map(|line| line.strip_prefix("data:"))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    let last = events.last().unwrap();
    assert_eq!((last["state"].as_str(), last["progress"]["rows"].as_u64()), (Some("succeeded"), Some(rows)), "{last}");
    let output = worker.wait_with_output().unwrap();
    let report: Json = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["jobs"][0]["state"], "succeeded", "{report}");
    assert_eq!(rows_added_by_version(&project.path(".eadem/offline/views/airport_weather/v1")), [rows]);
    let (status, problem) = server.post(&format!("{path}/resume"), &json!({}));
    assert_eq!((status, problem["code"].as_str()), (409, Some("job_done")), "{problem}");
}

#[test]
fn a_job_that_has_ended_stays_as_it_is() {
    let project = Project::of_flights();
    project.succeed(&["apply"]);
    let done = project.json(&["backfill", "plane_profile"])["backfill"].clone();
    let id = done["id"].as_str().unwrap();
    let server = project.serve();
    let (status, cancelled) = server.delete(&format!("/jobs/{id}"));
    assert_eq!((status, cancelled["state"].as_str()), (200, Some("succeeded")), "{cancelled}");
    assert_eq!(cancelled["result"], done["result"]);
    let (status, problem) = server.post(&format!("/jobs/{id}/resume"), &json!({}));
    assert_eq!((status, problem["code"].as_str()), (409, Some("job_done")), "{problem}");
    for (status, problem) in [server.delete("/jobs/none"), server.post("/jobs/none/resume", &json!({}))] {
        assert_eq!((status, problem["code"].as_str()), (404, Some("unknown_job")), "{problem}");
    }
}

/// A job that was killed can be called off, and what was called off can still be gone on with.
#[test]
fn an_interrupted_job_can_be_cancelled_and_resumed() {
    let killed_at_once = || {
        let (project, _) = project_of_many_chunks();
        let server = project.serve();
        let path = format!("/jobs/{}", start_or_resume(&server)["id"].as_str().unwrap());
        drop(server);
        let server = project.serve();
        (server.get(&path).1["state"] == "interrupted").then_some((project, server, path))
    };
    // A kill can come late on a machine that is busy with other things.
    let interrupted = (0..ROUNDS_MAX).find_map(|_| killed_at_once());
    let (_project, server, path) = interrupted.expect("no kill met a job at work");
    let (status, cancelled) = server.delete(&path);
    assert_eq!((status, cancelled["state"].as_str()), (200, Some("cancelled")), "{cancelled}");
    let (status, resumed) = server.post(&format!("{path}/resume"), &json!({}));
    assert_eq!((status, resumed["state"].as_str()), (202, Some("running")), "{resumed}");
    let (_, events) = server.raw("GET", &format!("{path}/events"), "Host: localhost\r\n", b"");
    assert!(events.contains("event: end"), "{events}");
    assert_eq!(server.get(&path).1["state"], "succeeded");
}

const SPINE: &str = "tailnum,origin,dest,scheduled_at,distance,timestamp,label\n\
                     N14228,EWR,IAH,2013-07-01T13:00:00Z,1400,2013-07-01T12:00:00Z,1\n\
                     nobody,JFK,LAX,2013-02-09T10:00:00Z,,2013-02-09T09:00:00Z,0\n";

#[test]
fn a_training_set_that_cannot_be_is_refused_before_it_starts() {
    let project = Project::of_flights();
    project.succeed(&["apply"]);
    project.write("spine.csv", SPINE);
    let server = project.serve();
    let path = |relative: &str| project.path(relative).to_str().unwrap().to_owned();
    let good = json!({ "service": "departure_delay", "spine": path("spine.csv"), "output": path("set.parquet") });
    for (field, value, why) in [
        ("output", json!("set.parquet"), "absolute path"),
        ("output", json!("memory:///set.parquet"), "the memory of this process"),
        ("output", json!(path("data/planes.parquet")), "what source `planes` reads"),
        ("output", json!(path("data/../data/planes.parquet")), "what source `planes` reads"),
        ("output", json!(path(".eadem/set.parquet")), "outside the store's own directory"),
        ("output", json!(format!("file://{}", path(".eadem/set.parquet"))), "outside the store's own directory"),
        ("columns", json!({ "tail": "tailnum" }), "`tail` is no key or request field of departure_delay@1"),
        ("spine", json!(path("nothing.csv")), "nothing.csv"),
        ("spine", json!(path("eadem.toml")), "a spine is a .parquet, a .csv or an .arrow file"),
        (
            "pinned",
            json!({ "spine": { "digest": format!("sha256:{:064}", 0), "format": "csv" }, "tables": {} }),
            "pinned",
        ),
    ] {
        let mut spec = good.clone();
        spec[field] = value;
        let (status, reply) = server.post("/jobs/dataset", &spec);
        assert_eq!((status, reply["code"].as_str()), (400, Some("malformed_job")), "{spec}: {reply}");
        assert!(reply["detail"].as_str().unwrap().contains(why), "{why}: {reply}");
    }
    assert_eq!(server.get("/jobs").1["jobs"].as_array().map(Vec::len), Some(0));
}

/// Between the start of a job and its resumption rows are loaded and the spine is replaced: neither counts.
#[test]
fn a_training_set_that_is_resumed_is_made_of_what_there_was_when_it_was_started() {
    let project = Project::of_flights();
    project.succeed(&["apply"]);
    project.write("spine.csv", SPINE);
    let run = |out: &str| {
        project.run(&["dataset", "create", "--service", "departure_delay", "--spine", "spine.csv", "--out", out])
    };
    assert!(run("before.parquet").status.success());
    // A folder where the file should go: the job fails at its very end.
    std::fs::create_dir(project.path("set.parquet")).unwrap();
    assert!(!run("set.parquet").status.success());
    let jobs = project.json(&["jobs", "list"]);
    let job = &jobs["jobs"][0];
    assert_eq!((&job["kind"], &job["state"]), (&json!("dataset"), &json!("failed")), "{job}");

    project.succeed(&["backfill", "plane_profile"]);
    project.write("spine.csv", "timestamp\n");
    std::fs::remove_dir(project.path("set.parquet")).unwrap();
    project.succeed(&["jobs", "resume", job["id"].as_str().unwrap()]);
    let bytes = |name: &str| std::fs::read(project.path(name)).unwrap();
    assert_eq!(bytes("before.parquet"), bytes("set.parquet"));

    // Started now, it is made of the rows that were loaded since.
    project.write("spine.csv", SPINE);
    assert!(run("after.parquet").status.success());
    assert_ne!(bytes("before.parquet"), bytes("after.parquet"));
}

/// Answers requests, each as this says by its first line, until a verb has ended.
fn answers(answer: impl Fn(&str) -> (u16, &'static str, String) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut request = BufReader::new(stream.unwrap());
            let (mut first, mut length) = (String::new(), 0);
            request.read_line(&mut first).unwrap();
            loop {
                let mut line = String::new();
                request.read_line(&mut line).unwrap();
                if line.trim().is_empty() {
                    break;
                }
                let (name, value) = line.split_once(':').unwrap();
                if name.eq_ignore_ascii_case("content-length") {
                    length = value.trim().parse().unwrap();
                }
            }
            request.read_exact(&mut vec![0; length]).unwrap();
            let (status, content_type, body) = answer(first.trim());
            let head = format!(
                "HTTP/1.1 {status} so\r\nContent-Type: {content_type}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            // A verb that has ended does not listen.
            let _told = request.into_inner().write_all([head, body].concat().as_bytes());
        }
    });
    url
}

/// The stream of events breaks off, and then the server cannot say how the job stands; it goes on all the same.
#[test]
fn a_verb_asks_how_a_job_stands_before_it_judges() {
    let job = |state: &str| json!({ "id": "one", "kind": "dataset", "state": state, "spec": {}, "created_at": "2024-01-01T00:00:00Z", "progress": {} });
    let event = move |name: &str, state: &str| format!("event: {name}\ndata: {}\n\n", job(state));
    for (end, is_good) in [("succeeded", true), ("failed", false)] {
        let asked = AtomicUsize::new(0);
        let url = answers(move |request| {
            let problem = json!({ "type": "urn:eadem:problem:internal", "title": "", "status": 500, "code": "internal", "detail": "" });
            match (request, asked.load(Ordering::SeqCst)) {
                ("GET /jobs/one HTTP/1.1", times) => {
                    asked.store(times + 1, Ordering::SeqCst);
                    match times {
                        0 => (500, "application/problem+json", problem.to_string()),
                        _ => (200, "application/json", job("running").to_string()),
                    }
                }
                ("GET /jobs/one/events HTTP/1.1", 0) => (200, "text/event-stream", event("progress", "running")),
                ("GET /jobs/one/events HTTP/1.1", _) => (200, "text/event-stream", event("end", end)),
                ("POST /jobs/one/resume HTTP/1.1", _) => (202, "application/json", job("running").to_string()),
                _ => (404, "application/problem+json", problem.to_string()),
            }
        });
        let output = Project::new().run(&["jobs", "resume", "one", "--server", &url]);
        let (out, err) = texts(&output);
        assert_eq!(output.status.success(), is_good, "{out}\n{err}");
        assert!(out.contains("dataset one: succeeded") || err.contains("job one failed"), "{out}\n{err}");
    }
}

/// How far a job came is kept with it, for those who look later.
#[test]
fn a_job_keeps_its_progress_and_its_reason_when_it_has_ended() {
    let project = Project::of_flights();
    project.succeed(&["apply"]);
    let views = ["plane_profile", "airport_weather"];
    project.succeed(&["backfill", views[0], views[1]]);
    let jobs = project.json(&["jobs", "list"]);
    // The rows of all views together, in a process that did not run the job.
    assert_eq!(jobs["jobs"][0]["progress"]["rows"], 3_322 + 26_115, "{jobs}");
    project.fail(&["materialize", "aircraft_legs"]);
    let jobs = project.json(&["jobs", "list"]);
    assert!(jobs["jobs"][0]["error"].as_str().unwrap().contains("backfill it first"), "{jobs}");
    project.succeed(&["materialize", "plane_profile", "--as-of", "2014-01-01T00:00:00Z"]);
    let jobs = project.json(&["jobs", "list"]);
    let progress = &jobs["jobs"][0]["progress"];
    assert_eq!((&progress["done"], &progress["total"], &progress["rows"]), (&json!(1), &json!(1), &json!(3_322)));
}

#[test]
fn a_malformed_job_is_refused_before_it_starts() {
    let project = Project::of_flights();
    project.succeed(&["apply"]);
    let server = project.serve();
    let refused = [
        ("/jobs/backfill", json!({ "views": ["nothing"] }), 404),
        ("/jobs/backfill", json!({ "veiws": [] }), 400),
        ("/jobs/backfill", json!({ "views": ["departure_context"] }), 400),
        ("/jobs/dance", json!({}), 404),
        ("/jobs/dataset", json!({ "service": "departure_delay" }), 400),
        // The fields of a specification in their order are no specification.
        ("/jobs/backfill", json!([["airport_weather"], null, null]), 400),
        ("/jobs/materialize", json!([["airport_weather"], null]), 400),
        ("/jobs/dataset", json!(["departure_delay", "spine.csv", "out.parquet"]), 400),
        ("/jobs/backfill", json!("airport_weather"), 400),
        ("/jobs/materialize", json!(null), 400),
    ];
    for (path, body, status) in refused {
        let (found, reply) = server.post(path, &body);
        assert_eq!(found, status, "{path} {body}: {reply}");
    }
    assert_eq!(server.get("/jobs").1["jobs"].as_array().map(Vec::len), Some(0));
    assert_eq!(server.get("/jobs/none").0, 404);
    // What fails later fails as a whole and says why.
    let (_, job) = server.post("/jobs/materialize", &json!({ "views": ["plane_profile"] }));
    let id = job["id"].as_str().unwrap();
    let (_, events) = server.raw("GET", &format!("/jobs/{id}/events"), "Host: localhost\r\n", b"");
    assert!(events.contains("event: end") && events.contains("backfill it first"), "{events}");
}

/// A thread of a process, as the kernel tells of it.
#[cfg(target_os = "linux")]
struct Thread {
    name: String,
    niceness: i32,
    ran_ns: u64,
}

#[cfg(target_os = "linux")]
fn threads(server: &Server) -> Vec<Thread> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.process.id())).unwrap();
    let told = |task: std::io::Result<std::fs::DirEntry>| {
        let of = |what: &str| std::fs::read_to_string(task.as_ref().unwrap().path().join(what));
        // One that has ended in between tells nothing.
        let (name, stat, times) = (of("comm").ok()?, of("stat").ok()?, of("schedstat").ok()?);
        // The name, which may hold anything, is in brackets; niceness is the 19th field, the 17th after it.
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let niceness = fields.split(' ').nth(16).unwrap().parse().unwrap();
        let ran_ns = times.split(' ').next().unwrap().parse().unwrap();
        Some(Thread { name: name.trim().to_owned(), niceness, ran_ns })
    };
    tasks.filter_map(told).collect()
}

/// Enough that the work on them is most of what a server does.
#[cfg(target_os = "linux")]
const PLANES: usize = 10_000;

#[cfg(target_os = "linux")]
const OF_PLANES: &str = r#"
[entity.aircraft]
keys = { tailnum = "utf8" }

[source.planes]
csv = { path = "data" }
types = { year = "int64", engines = "int64", seats = "int64" }
event_time = 2000-01-01T00:00:00Z

[view.plane_profile]
entity = "aircraft"
source = "planes"
transform = "transforms/plane_profile.wasm"
"#;

/// Of a server's threads those of jobs have the last priority, and do the work of jobs; no other thread has stepped back as far.
#[cfg(target_os = "linux")]
#[test]
fn jobs_of_a_server_step_back_behind_its_requests() {
    let mut project = Project::new();
    project.add_component("plane_profile");
    project.write("features/planes.toml", OF_PLANES);
    let plane = |number| format!("N{number},1999,Fixed wing multi engine,BOEING,737-800,2,160,Turbo-fan\n");
    let planes: String = (0..PLANES).map(plane).collect();
    project.write("data/planes.csv", format!("tailnum,year,type,manufacturer,model,engines,seats,engine\n{planes}"));
    project.succeed(&["apply"]);
    project.variables.push(("EADEM_JOBS_LOW_PRIORITY", "true".to_owned()));
    let server = project.serve();
    let ran_ns = |of: &str| {
        let all = threads(&server);
        all.iter().filter(|thread| thread.name == of).map(|thread| thread.ran_ns).sum::<u64>()
    };
    let (mut jobs_ns, requests_before_ns) = (0, ran_ns("tokio-rt-worker"));
    let mut verb = project.command(&["backfill", "plane_profile"]);
    let mut verb = verb.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the job ends", || {
        // A thread that has nothing to do any more ends, and what it took goes with it.
        jobs_ns = jobs_ns.max(ran_ns("eadem-jobs"));
        verb.try_wait().unwrap().is_some()
    });
    assert!(verb.wait().unwrap().success());
    let requests_ns = ran_ns("tokio-rt-worker").saturating_sub(requests_before_ns);
    assert!(jobs_ns > requests_ns, "jobs took {jobs_ns} ns on their threads, and {requests_ns} ns went by on others");

    let all = threads(&server);
    let niceness_of = |begin: &str| {
        let its: BTreeSet<i32> =
            all.iter().filter(|thread| thread.name.starts_with(begin)).map(|thread| thread.niceness).collect();
        assert_eq!(its.len(), 1, "{begin}: {its:?}");
        *its.first().unwrap()
    };
    let requests = niceness_of("tokio-rt-worker");
    assert_eq!(niceness_of("engine-cpu"), requests.max(10));
    assert_eq!(niceness_of("eadem-jobs"), requests.max(15));
    assert_eq!(niceness_of("sqlx-sqlite"), requests, "requests ask the registry too");
}
