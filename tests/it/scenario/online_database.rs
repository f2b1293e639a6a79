//! The loop with the online store in a database: every answer is as with the embedded store.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use serde_json::{Value as Json, json};

use super::kills::{
    DEFINITIONS, Tally, VIEW, applied_project, dice, kill_after, newest_job, random_part, resume, settings_of_jobs,
    spawn, spine,
};
use super::project::{Project, Server, texts};
use super::support::{sample, wait_until};
use crate::cassandra::Cassandra;
use crate::dice::is_soak;

const SERVICE: &str = "[service.weather]\nfeatures = [\"airport_weather:*\", \"airport_shape:*\"]\n";
const SPINE: &str = "airport,timestamp\nEWR,2013-01-01T12:20:00Z\nJFK,2013-06-11T23:59:00Z\nXXX,2013-05-05T05:05:05Z\n";
const ASKED: [(&str, &str); 3] =
    [("EWR", "2013-01-01T12:20:00Z"), ("JFK", "2013-06-11T23:59:00Z"), ("XXX", "2013-05-05T05:05:05Z")];
const AS_OF: &str = "2014-01-01T00:00:00Z";

/// One node for all tests of this file, one test after the other: some of them stop it. It ends with the process.
fn database() -> MutexGuard<'static, Cassandra> {
    static DATABASE: OnceLock<Mutex<Cassandra>> = OnceLock::new();
    let database = DATABASE.get_or_init(|| Mutex::new(Cassandra::start(1, false)));
    database.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The setting that names a keyspace.
fn online(database: &Cassandra, keyspace: &str, timeout_ms: u32) -> String {
    format!("[store]\nonline = \"scylla://127.0.0.1:{}/{keyspace}?timeout_ms={timeout_ms}\"\n", database.port)
}

/// A request may take so long on a machine that is busy with everything at once.
const PATIENT_MS: u32 = 20_000;

const INIT: [&str; 7] = ["online", "init", "--replication", "1", "--lease-ms", "60", "--apply"];

/// A project with the embedded store.
fn project_of_weather() -> Project {
    let project = Project::of_flights();
    project.write("features/weather.toml", SERVICE);
    project.write("spine.csv", SPINE);
    project
}

/// A project whose keyspace is made, and both of whose stores are loaded.
fn loaded_project(cassandra: &Cassandra, keyspace: &str) -> Project {
    let project = project_of_weather();
    project.write("eadem.toml", online(cassandra, keyspace, PATIENT_MS));
    project.succeed(&INIT);
    load(&project);
    project
}

/// Applies, and loads both stores.
fn load(project: &Project) {
    project.succeed(&["apply"]);
    project.succeed(&["backfill", "airport_weather", "airport_shape"]);
    project.succeed(&["materialize", "airport_weather", "airport_shape", "--as-of", AS_OF]);
}

fn path_of(airport: &str, at: &str, include: &str) -> String {
    format!("/features/{airport}?service=weather@1&timestamp={at}&include={include}")
}

/// What is known of each airport at each time, all of it by the online store alone.
fn answers(server: &Server) -> Vec<Json> {
    let ask = |(airport, at)| {
        let (status, reply) = server.get(&path_of(airport, at, "metadata"));
        assert_eq!(status, 200, "{reply}");
        let metadata = reply["metadata"].as_object().unwrap();
        assert!(metadata.len() > 3, "{reply}");
        for (feature, told) in metadata {
            assert_eq!(told["store"], "online", "{feature} of {airport} at {at}: {reply}");
        }
        json!([reply["features"], reply["status"]])
    };
    ASKED.into_iter().map(ask).collect()
}

#[test]
fn the_loop_on_a_database_gives_what_the_embedded_store_gives() {
    let embedded = project_of_weather();
    let refused = embedded.fail(&["online", "init"]);
    assert!(refused.contains("the online store is the embedded one, which needs no schema"), "{refused}");

    let cassandra = database();
    let on_database = project_of_weather();
    on_database.write("eadem.toml", online(&cassandra, "eadem_test", PATIENT_MS));
    let refused = on_database.fail(&["apply"]);
    assert!(
        refused.contains("there is no keyspace `eadem_test`") && refused.contains("eadem online init"),
        "{refused}"
    );

    let shown = on_database.succeed(&["online", "init", "--replication", "1"]);
    assert!(
        shown.contains("CREATE KEYSPACE IF NOT EXISTS eadem_test") && shown.contains("Nothing was changed"),
        "{shown}"
    );
    on_database.fail(&["apply"]);
    for _ in 0..2 {
        let made = on_database.json(&INIT);
        assert_eq!((&made["applied"], &made["differences"]), (&json!(true), &json!([])), "{made}");
    }
    // What a keyspace was made with stays, and whoever asks for something else is told so.
    let output = on_database.run(&["online", "init", "--replication", "3", "--apply"]);
    let (shown, refused) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    assert!(
        shown.contains("ALTER KEYSPACE eadem_test WITH replication") && shown.contains("'datacenter1': '1'"),
        "{shown}"
    );
    assert!(shown.contains("lease_ms: 60, and not 1000"), "{shown}");
    assert!(refused.contains("is not as asked for: replication, lease_ms"), "{refused}");

    load(&on_database);
    load(&embedded);
    let server = on_database.serve();
    let loaded = answers(&server);
    assert_eq!(loaded, answers(&embedded.serve()));
    assert_ne!(loaded[0][0], loaded[2][0], "nothing is known of EWR");
    // Sizes are counted, and shown without a second count.
    let metrics = || server.raw("GET", "/metrics", "Host: localhost\r\n", b"").1;
    wait_until("the tables are counted", || metrics().contains("eadem_online_rows{"));
    for view in ["airport_weather@1", "airport_shape@1"] {
        assert!(sample(&metrics(), "eadem_online_rows", &[("view", view), ("current", "true")]) > 0.0, "{view}");
    }
    drop(server);
    assert!(!on_database.path(".eadem/online/catalogue.redb").exists(), "no embedded store is made beside");
    let status = on_database.json(&["online", "status"]);
    assert_eq!(status["store"], "scylla", "{status}");
    assert_eq!(status["views"].as_array().map(Vec::len), Some(2), "{status}");
    let audit = on_database.succeed(&["audit", "--service", "weather@1", "--spine", "spine.csv"]);
    assert!(audit.contains(" 0 differing bits") && audit.contains("offline: 0"), "{audit}");

    // Another project has a keyspace of its own.
    on_database.succeed(&["project", "create", "other"]);
    let in_other = ["--in-project", "other"];
    let refused = on_database.fail(&["apply", in_other[0], in_other[1]]);
    assert!(refused.contains("there is no keyspace `eadem_test__other`"), "{refused}");
    on_database.succeed(&[INIT.as_slice(), &in_other].concat());
    let folder = on_database.path("projects/other");
    std::fs::create_dir_all(&folder).unwrap();
    std::os::unix::fs::symlink(on_database.path("data"), folder.join("data")).unwrap();
    on_database.succeed(&["apply", in_other[0], in_other[1]]);
    let there =
        ["get", "EWR", "--service", "weather@1", "--timestamp", "2013-01-01T12:20:00Z", "--in-project", "other"];
    let empty = on_database.json(&there);
    assert_ne!(empty["features"], loaded[0][0], "nothing was loaded there: {empty}");

    // A password in a file of the project is refused, and not repeated.
    let secret = online(&cassandra, "eadem_test", PATIENT_MS).replace("scylla://", "scylla://me:hunter2@");
    on_database.write("eadem.toml", secret);
    let refused = on_database.fail(&["online", "status"]);
    assert!(refused.contains("store.online holds a password") && !refused.contains("hunter2"), "{refused}");
}

/// The views' definitions, with a time for which rows of one of them may be served from memory.
fn define_cache(project: &Project, cache: &str) {
    let views = std::fs::read_to_string(super::project::root().join("demo/features/views.toml")).unwrap();
    let view = "[view.airport_weather]\n";
    assert!(views.contains(view), "{views}");
    project.write("features/views.toml", views.replace(view, &format!("{view}cache = \"{cache}\"\n")));
    project.succeed(&["apply"]);
}

#[test]
fn rows_of_a_database_are_served_from_memory_for_as_long_as_the_view_says() {
    let cassandra = database();
    let project = loaded_project(&cassandra, "cached");
    let server = project.serve();
    let (airport, at) = ASKED[0];
    let asked = |headers: &str| -> (String, Json) {
        let reply = server.send("GET", &path_of(airport, at, "explain"), &format!("Host: localhost\r\n{headers}"), b"");
        assert_eq!(reply.status, 200, "{}", reply.text());
        let reply: Json = serde_json::from_slice(&reply.body).unwrap();
        let row = reply["rows"].as_array().unwrap().iter().find(|row| row["view"] == "airport_weather@1").unwrap();
        (row["from"].as_str().unwrap().to_owned(), reply["features"].clone())
    };
    let (from, features) = asked("");
    assert_eq!(from, "store");
    assert_eq!(asked("").0, "store", "nothing says that it may be served from memory");
    define_cache(&project, "1h");
    wait_until("it may be kept", || asked("").0 == "cache");
    assert_eq!(asked(""), ("cache".to_owned(), features.clone()));
    assert_eq!(asked("Cache-Control: no-cache\r\n"), ("store".to_owned(), features.clone()));
    // What was kept is older than it may be, sooner or later.
    define_cache(&project, "500ms");
    wait_until("it has become too old", || asked("").0 == "store");
    assert_eq!(asked("").1, features);
}

/// A node that goes on when this is dropped, however a test ends.
struct Stopped<'a>(&'a Cassandra);

impl<'a> Stopped<'a> {
    fn stop(cassandra: &'a Cassandra) -> Self {
        cassandra.signal_node(1, "STOP");
        Self(cassandra)
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.signal_node(1, "CONT");
    }
}

#[test]
fn a_server_is_ready_only_while_its_database_answers() {
    let cassandra = database();
    let project = loaded_project(&cassandra, "stopped");
    project.write("eadem.toml", online(&cassandra, "stopped", 1_500));
    let server = project.serve();
    wait_until("it is ready", || server.get("/readyz") == (200, json!({ "status": "ready", "access": "open" })));
    let (airport, at) = ASKED[0];
    let before = server.get(&path_of(airport, at, "metadata"));
    {
        let _stopped = Stopped::stop(&cassandra);
        wait_until("it is not ready", || server.get("/readyz").0 == 503);
        let (_, reply) = server.get("/readyz");
        assert!(reply["detail"].as_str().unwrap().starts_with("online store: "), "{reply}");
        let (status, reply) = server.get(&path_of(airport, at, "metadata"));
        assert_eq!(status, 200, "{reply}");
        let failed = reply["status"].as_object().unwrap();
        assert_eq!(failed.len(), reply["features"].as_object().unwrap().len(), "{reply}");
        assert!(failed.values().all(|status| status == "error"), "{reply}");
    }
    wait_until("it is ready again", || server.get("/readyz").0 == 200);
    wait_until("it answers as before", || server.get(&path_of(airport, at, "metadata")) == before);
}

/// A library that sets the clock of a process ten seconds ahead.
fn library_of_a_fast_clock(project: &Project) -> PathBuf {
    const SOURCE: &str = "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <time.h>\n\
        int clock_gettime(clockid_t clock, struct timespec *now) {\n\
          int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, \"clock_gettime\");\n\
          int outcome = real(clock, now);\n\
          if (clock == CLOCK_REALTIME) now->tv_sec += 10;\n\
          return outcome;\n\
        }\n";
    project.write("clock.c", SOURCE);
    let (source, library) = (project.path("clock.c"), project.path("clock.so"));
    // Rust needs a C compiler to link: there is one.
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).arg("-ldl").status();
    assert!(compiled.unwrap().success(), "cc");
    library
}

#[test]
fn a_server_whose_clock_is_not_that_of_the_database_is_not_ready() {
    let cassandra = database();
    let mut project = Project::new();
    project.write("eadem.toml", online(&cassandra, "skewed", PATIENT_MS));
    project.succeed(&INIT);
    let server = project.serve();
    wait_until("it is ready", || server.get("/readyz").0 == 200);
    drop(server);
    let library = library_of_a_fast_clock(&project);
    project.variables.push(("LD_PRELOAD", library.display().to_string()));
    let server = project.serve();
    let (status, reply) = server.get("/readyz");
    assert_eq!(status, 503, "{reply}");
    let detail = reply["detail"].as_str().unwrap();
    assert!(detail.contains("ms behind this machine's, more than 1000 ms (limits.clock_skew_ms_max)"), "{reply}");
}

/// So slow that a load lasts for seconds, in which it can be killed.
const ROWS_PER_S: &str = "2000";

/// The view's one epoch that is not on its way out, and whether any is being loaded.
fn epochs_of(project: &Project) -> (Json, bool) {
    let status = project.json(&["online", "status"]);
    let views = status["views"].as_array().unwrap();
    let current: Vec<&Json> = views.iter().filter(|view| view["state"] == "current").collect();
    let is_loading = views.iter().any(|view| view["state"] == "loading");
    assert!(current.len() <= 1, "{status}");
    (current.first().map(|current| (*current).clone()).unwrap_or_default(), is_loading)
}

#[test]
fn loads_that_are_killed_go_on_where_they_stopped() {
    let kills = if is_soak() { 40 } else { 4 };
    let mut dice = dice(6);
    let cassandra = database();
    let project = applied_project();
    let definitions = DEFINITIONS.replace("transform = ", "online_history = \"366d\"\ntransform = ");
    project.write("features/weather.toml", definitions);
    project.write("eadem.toml", format!("{}{}", settings_of_jobs(), online(&cassandra, "killed", PATIENT_MS)));
    project.write("spine.csv", spine());
    project.succeed(&INIT);
    project.succeed(&["apply"]);
    project.succeed(&["backfill", VIEW]);
    let materialize = ["materialize", VIEW, "--as-of", AS_OF, "--rows-per-s", ROWS_PER_S];
    let began = Instant::now();
    let undisturbed = project.json(&materialize)["result"]["views"][0].clone();
    let took = began.elapsed();
    assert_eq!(undisturbed["files_loaded_before"], 0, "{undisturbed}");
    let rows_served = epochs_of(&project).0["rows"].clone();
    let mut tally = Tally::default();
    let mut called_off = 0;
    while tally.kills < kills || tally.half_done == 0 {
        let mut process = spawn(&project, &materialize);
        tally.met += u64::from(kill_after(&mut process, random_part(&mut dice, took)));
        tally.kills += 1;
        let job = newest_job(&project).unwrap();
        if job["kind"] != "materialize" || job["state"] == "succeeded" {
            continue;
        }
        let id = job["id"].as_str().unwrap();
        // Every other is killed once more, while it goes on.
        if dice.below(2) == 0 {
            let mut process = spawn(&project, &["jobs", "resume", id]);
            tally.met += u64::from(kill_after(&mut process, random_part(&mut dice, took)));
            tally.kills += 1;
        }
        // One is called off first: what it had loaded goes, and it starts over.
        let is_called_off = called_off == 0 && epochs_of(&project).1;
        if is_called_off {
            called_off += 1;
            wait_until("it is called off", || project.run(&["jobs", "cancel", id]).status.success());
            assert!(!epochs_of(&project).1, "a load that was called off is still there");
        }
        resume(&project, id);
        let job = newest_job(&project).unwrap();
        assert_eq!(job["state"], "succeeded", "{job}");
        let loaded = &job["result"]["views"][0];
        for same in ["rows", "files", "complete_since", "offline_commit"] {
            assert_eq!(loaded[same], undisturbed[same], "{same}: {job}");
        }
        let before = loaded["rows_loaded_before"].as_u64().unwrap();
        tally.half_done += u64::from(before > 0);
        assert!(!is_called_off || before == 0, "{job}");
        // What was loaded before it was killed was not loaded again.
        if job["progress"]["rows"].as_u64().unwrap() + before != loaded["rows"].as_u64().unwrap() {
            tally.faults.push(format!("rows were loaded again, or left out: {job}"));
        }
        let (current, is_loading) = epochs_of(&project);
        if current["rows"] != rows_served || is_loading {
            tally.faults.push(format!("{current} is served instead of {rows_served} rows"));
        }
        let audit = project.succeed(&["audit", "--service", "weather@1", "--spine", "spine.csv"]);
        if !audit.contains(" 0 differing bits") || !audit.contains("offline: 0") {
            tally.faults.push(audit);
        }
    }
    assert!(tally.half_done > 0, "no kill met a load half done");
    tally.end("loads of a database");
}
