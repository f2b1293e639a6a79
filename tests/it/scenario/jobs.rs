//! Jobs that are killed, and jobs that run twice.

use std::process::Stdio;

use serde_json::json;

use super::project::Project;

/// Kills a backfill of the flights at several points of its work, runs it again, and finds every row exactly once.
#[test]
fn a_backfill_that_is_killed_and_resumed_ends_in_the_same_rows() {
    let project = Project::of_flights();
    project.write("eadem.toml", "[jobs]\nchunk_rows = 20000\nworkers = 1\n");
    project.succeed(&["apply"]);
    let mut killed = 0;
    // The ledger says how far the job is; the moment of the kill is a number of chunks, not a time.
    for chunks_before_the_kill in [1_u64, 3] {
        let mut process = project.command(&["serve", "--listen", "127.0.0.1:0"]);
        let mut process = process.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(process.stdout.take().unwrap()), &mut line).unwrap();
        let address = line.trim().strip_prefix("serving on http://").unwrap().to_owned();
        let server = super::project::Server { process, address };
        let job = match killed {
            0 => server.post("/jobs/backfill", &json!({ "views": ["airport_weather"] })).1,
            _ => {
                let (_, jobs) = server.get("/jobs");
                let id = jobs["jobs"][0]["id"].as_str().unwrap().to_owned();
                assert_eq!(jobs["jobs"][0]["state"], "interrupted", "{jobs}");
                server.post(&format!("/jobs/{id}/resume"), &json!({})).1
            }
        };
        let id = job["id"].as_str().unwrap_or_else(|| panic!("{job}")).to_owned();
        loop {
            let (_, job) = server.get(&format!("/jobs/{id}"));
            if job["state"] != "running" || job["progress"]["rows"].as_u64().unwrap_or(0) >= chunks_before_the_kill {
                break;
            }
            std::thread::yield_now();
        }
        drop(server);
        killed += 1;
    }
    let jobs = project.json(&["jobs", "list"]);
    let job = &jobs["jobs"][0];
    let id = job["id"].as_str().unwrap();
    if job["state"] != "succeeded" {
        project.succeed(&["jobs", "resume", id]);
    }
    let job = project.json(&["jobs", "show", id]);
    assert_eq!(job["state"], "succeeded", "{job}");
    let view = &job["result"]["views"][0];
    assert_eq!(view["rows_read"], 26_115, "{view}");
    let commits: Vec<_> =
        std::fs::read_dir(project.path(".eadem/offline")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!commits.is_empty());
    // The same again loads nothing twice.
    let again = project.json(&["backfill", "airport_weather"]);
    let view = &again["backfill"]["result"]["views"][0];
    assert_eq!(view["rows_stored"], 0, "{again}");
    assert_eq!(view["files_already_loaded"].as_array().map(Vec::len), Some(1), "{again}");
    project.succeed(&["materialize", "airport_weather", "--as-of", "2014-01-01T00:00:00Z"]);
    let status = project.json(&["online", "status"]);
    assert_eq!(status["views"][0]["rows"].as_u64(), Some(expected_rows(view)), "{status}");
}

/// The weather file names a few hours twice (the hour when clocks change); equal rows of one hour are one online row.
fn expected_rows(_view: &serde_json::Value) -> u64 {
    26_115
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
        ("spine", json!(path("eadem.toml")), "a spine is a .parquet or a .csv file"),
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
