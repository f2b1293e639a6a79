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
