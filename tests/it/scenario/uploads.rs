//! Uploads from outside: hostile ones, large and slow ones, many at once, and children that die.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::project::{Project, Reply, Server, component, root};
use super::support::wait_until;

/// Every component that an upload refuses.
const REFUSED: [&str; 30] = [
    "bad_offsets",
    "bad_pointer",
    "bad_utf8",
    "breaches_in_batches",
    "core_module",
    "declines",
    "deep_recursion",
    "depends_on_batch_size",
    "depends_on_first_rows",
    "depends_on_hash_order",
    "depends_on_row_order",
    "describe_changes",
    "describes_nothing",
    "endless_loop_in_apply",
    "endless_loop_in_describe",
    "giant_output",
    "giant_strings",
    "imports_random",
    "memory_bomb_at_start",
    "memory_bomb_later",
    "needs_giant_values",
    "panics",
    "remembers_earlier_call",
    "start_loops",
    "table_bomb_at_start",
    "traps",
    "traps_in_batches",
    "traps_in_second_call",
    "wide_rows",
    "wrong_type",
];

fn path_of(name: &str) -> String {
    component(name).to_str().unwrap().to_owned()
}

fn upload(server: &Server, query: &str, bytes: &[u8]) -> Reply {
    let headers = "Host: localhost\r\nContent-Type: application/wasm\r\n";
    server.send("POST", &format!("/transforms{query}"), headers, bytes)
}

fn json_of(reply: &Reply) -> Json {
    serde_json::from_str(&reply.text()).unwrap_or_else(|_| panic!("{}", reply.text()))
}

/// Processes of the server's that compile or check; those that have ended and were not reaped too.
fn children(server: &Server) -> Vec<u32> {
    let mut all = Vec::new();
    let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", server.process.id())) else { return all };
    for task in tasks.flatten() {
        let listed = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        all.extend(listed.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
    }
    all
}

/// The files of the engine's folder; those that wait have no name.
fn files_of_engine(project: &Project) -> BTreeSet<String> {
    let entries = fs::read_dir(project.path(".eadem/artifacts")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

fn assert_nothing_is_left(project: &Project, server: &Server) {
    wait_until("children are reaped", || children(server).is_empty());
    for name in files_of_engine(project) {
        assert!(name == "artifact.key" || name.ends_with(".aot"), "{name} was left");
    }
}

/// A component that takes forever to describe itself, where the engine lets it.
fn patient_project(limits: &str) -> Project {
    let project = Project::new();
    project.write("eadem.toml", format!("[engine]\nupload_deadline_ms = 600000\n[limits]\n{limits}\n"));
    project
}

fn endless() -> Vec<u8> {
    fs::read(component("endless_loop_in_describe")).unwrap()
}

fn honest(name: &str) -> Vec<u8> {
    fs::read(component(name)).unwrap()
}

/// What is counted of checks, by outcome.
fn checks(server: &Server, outcome: &str) -> u64 {
    let (_, text) = server.raw("GET", "/metrics", "Host: localhost\r\n", b"");
    let prefix = format!("eadem_upload_checks_total{{outcome=\"{outcome}\",project=\"default\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&prefix)).map_or(0, |count| count.parse().unwrap())
}

#[test]
fn every_kind_of_refusal_says_the_same_in_http_and_on_the_command_line() {
    let project = Project::new();
    project.write("eadem.toml", "[engine]\nupload_deadline_ms = 500\n");
    let server = project.serve();
    let mut arguments = vec!["push".to_owned(), "--seed".to_owned(), "7".to_owned(), "--output".to_owned()];
    arguments.push("json".to_owned());
    arguments.extend(REFUSED.iter().map(|name| path_of(name)));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = project.run(&arguments);
    assert!(!output.status.success());
    let told: Vec<Json> = serde_json::from_slice(&output.stdout).unwrap();
    let mut found = json!({});
    for (name, told) in REFUSED.iter().zip(&told) {
        let member = |member: &str| told[member].clone();
        found[*name] = json!({
            "code": member("code"), "law": member("law"), "seed": member("seed"), "row": member("row"),
            "field": member("field"),
        });
        let message = told["refused"].as_str().unwrap();
        assert!(message.starts_with("the component is refused: "), "{name}: {message}");
    }
    let golden = root().join("tests/it/scenario/refusals.json");
    let current = format!("{}\n", serde_json::to_string_pretty(&found).unwrap());
    if std::env::var_os("EADEM_WRITE_GOLDEN").is_some() {
        fs::write(&golden, &current).unwrap();
    }
    let written = fs::read_to_string(&golden).unwrap_or_default();
    assert!(written == current, "tests/it/scenario/refusals.json is not what was found: {current}");

    // The problem document has the same members.
    for name in ["depends_on_row_order", "wrong_type", "imports_random"] {
        let reply = upload(&server, "?seed=7", &honest(name));
        assert_eq!(reply.status, 422, "{}", reply.text());
        assert!(reply.head.contains("application/problem+json"), "{}", reply.head);
        let problem = json_of(&reply);
        for member in ["code", "law", "seed", "row", "field"] {
            assert_eq!(problem[member], found[name][member], "{name}: {member}");
        }
    }
    assert_eq!(server.get("/transforms").1, json!({ "transforms": [] }), "nothing was stored");
    assert_nothing_is_left(&project, &server);
}

#[test]
fn requests_are_answered_while_hostile_components_are_checked() {
    let project = Project::new();
    project.add_component("plane_profile");
    project.write("eadem.toml", "[limits]\nuploads_at_once = 2\nuploads_waiting_max = 64\n");
    project.write(
        "features/planes.toml",
        "[entity.aircraft]\nkeys = { tailnum = \"utf8\" }\n\n[source.planes]\nparquet = \"data/planes.parquet\"\n\
         event_time = 2000-01-01T00:00:00Z\n\n[view.plane_profile]\nentity = \"aircraft\"\nsource = \"planes\"\n\
         transform = \"transforms/plane_profile.wasm\"\n",
    );
    project.write("data/planes.parquet", fs::read(root().join("demo/data/planes.parquet")).unwrap());
    for verb in [&["apply"][..], &["backfill"], &["materialize"]] {
        project.succeed(verb);
    }
    let server = project.serve();
    let hostile = ["depends_on_hash_order", "panics", "memory_bomb_later", "giant_output", "deep_recursion", "traps"];
    let answers = std::thread::scope(|scope| {
        let uploads: Vec<_> = hostile
            .iter()
            .map(|name| {
                let server = &server;
                scope.spawn(move || upload(server, "", &honest(name)))
            })
            .collect();
        let mut answers = 0;
        while !uploads.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            let (status, reply) = server.get("/features/N14228?entity=aircraft");
            assert_eq!(status, 200, "{reply}");
            assert!(reply["features"]["seats"].is_number(), "{reply}");
            answers += 1;
            // The check gets what serving leaves.
            std::thread::sleep(Duration::from_millis(2));
        }
        for (name, upload) in hostile.iter().zip(uploads) {
            let reply = upload.join().unwrap();
            assert_eq!(reply.status, 422, "{name}: {}", reply.text());
        }
        answers
    });
    assert!(answers > 0);
    assert_eq!(checks(&server, "refused"), hostile.len() as u64);
    assert_nothing_is_left(&project, &server);
}

#[test]
fn a_dry_run_does_everything_but_storing() {
    let project = Project::new();
    let server = project.serve();
    let bytes = honest("bench_numeric");
    let reply = upload(&server, "?dry_run=true&seed=3", &bytes);
    assert_eq!(reply.status, 200, "{}", reply.text());
    let reply = json_of(&reply);
    assert_eq!(
        (&reply["dry_run"], &reply["is_new"], &reply["name"]),
        (&json!(true), &json!(true), &json!("bench_numeric"))
    );
    assert_eq!(reply["acceptance"]["laws_seed"], 3, "{reply}");
    assert!(reply.get("uploaded_at").is_none(), "{reply}");
    assert_eq!(server.get("/transforms").1, json!({ "transforms": [] }));
    assert_eq!(files_of_engine(&project), BTreeSet::from(["artifact.key".to_owned()]), "no artefact");
    let said = project.run(&["push", "--dry-run", &path_of("bench_numeric")]);
    let (out, err) = super::project::texts(&said);
    let notes = out + &err;
    assert!(said.status.success() && notes.contains("would be accepted bench_numeric"), "{notes}");
    let refused = project.run(&["push", "--dry-run", &path_of("traps")]);
    let (out, err) = super::project::texts(&refused);
    assert!(!refused.status.success() && (out + &err).contains("[law_total]"));

    let stored = upload(&server, "", &bytes);
    assert_eq!(stored.status, 201, "{}", stored.text());
    assert!(json_of(&stored).get("dry_run").is_none());
    let known = json_of(&upload(&server, "?dry_run=true", &bytes));
    assert_eq!((&known["dry_run"], &known["is_new"]), (&json!(true), &json!(false)), "{known}");
    let wrong = upload(&server, "?dry_run=yes", &bytes);
    assert_eq!((wrong.status, &json_of(&wrong)["code"]), (400, &json!("malformed_query")));
}

#[test]
fn a_child_that_is_killed_is_no_verdict_and_the_next_upload_works() {
    let project = patient_project("");
    let server = project.serve();
    let reply = std::thread::scope(|scope| {
        let server = &server;
        let uploading = scope.spawn(move || upload(server, "", &endless()));
        // The one that runs the component stays the only one, when the other has compiled.
        let (mut seen, mut times) = (Vec::new(), 0);
        wait_until("a child", || {
            let now = children(server);
            times = if now.len() == 1 && now == seen { times + 1 } else { 0 };
            seen = now;
            times > 40
        });
        let killed = std::process::Command::new("kill").args(["-9", &seen[0].to_string()]).status().unwrap();
        assert!(killed.success());
        uploading.join().unwrap()
    });
    assert_eq!(reply.status, 503, "{}", reply.text());
    assert!(reply.head.contains("retry-after: 5"), "{}", reply.head);
    assert_eq!(json_of(&reply)["code"], "check_unfinished");
    assert_nothing_is_left(&project, &server);
    assert_eq!(upload(&server, "", &honest("bench_string")).status, 201);
    assert_nothing_is_left(&project, &server);
}

#[test]
fn a_check_ends_with_its_client_and_with_the_server() {
    let project = patient_project("");
    let mut server = project.serve();
    let begin = |server: &Server| {
        let mut stream = server.connect();
        let bytes = endless();
        let head = format!("POST /transforms HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", bytes.len());
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&bytes).unwrap();
        wait_until("a child", || !children(server).is_empty());
        stream
    };
    let client = begin(&server);
    drop(client);
    assert_nothing_is_left(&project, &server);
    // Its place is free again.
    assert_eq!(upload(&server, "", &honest("bench_string")).status, 201);

    let _client = begin(&server);
    let child = children(&server)[0];
    server.process.kill().unwrap();
    server.process.wait().unwrap();
    let status = format!("/proc/{child}/status");
    let has_ended = || fs::read_to_string(&status).map_or(true, |status| status.contains("\nState:\tZ"));
    wait_until("the child ends with its server", has_ended);
    let left: Vec<String> = files_of_engine(&project).into_iter().filter(|name| !name.ends_with(".aot")).collect();
    assert_eq!(left, ["artifact.key"], "an unnamed file leaves nothing");
}

#[test]
fn more_uploads_than_may_wait_are_told_to_come_back() {
    let project = patient_project("uploads_at_once = 1\nuploads_waiting_max = 0");
    let server = project.serve();
    let bytes = endless();
    let mut checked = server.connect();
    let head = format!("POST /transforms HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", bytes.len());
    checked.write_all(head.as_bytes()).unwrap();
    checked.write_all(&bytes).unwrap();
    wait_until("a child", || !children(&server).is_empty());
    let reply = upload(&server, "?dry_run=true", &honest("bench_string"));
    assert_eq!((reply.status, &json_of(&reply)["code"]), (503, &json!("uploads_full")));
    assert!(reply.head.contains("retry-after: 5"), "{}", reply.head);
    assert_eq!(server.get("/healthz").0, 200);
    drop(checked);
    wait_until("there is room again", || upload(&server, "", &honest("bench_string")).status != 503);
    assert_nothing_is_left(&project, &server);
}

#[test]
fn what_does_not_arrive_in_time_or_is_too_large_is_turned_away() {
    let project = Project::new();
    project
        .write("eadem.toml", "[limits]\nupload_ms_max = 400\nuploads_waiting_max = 0\ncomponent_bytes_max = 4000000\n");
    let server = project.serve();
    let mut stream = server.connect();
    stream.write_all(b"POST /transforms HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\nbegun").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 408") && reply.contains("\"upload_too_slow\""), "{reply}");

    let large = upload(&server, "", &vec![0; 4_000_001]);
    assert_eq!((large.status, &json_of(&large)["code"]), (413, &json!("body_too_large")));
    // Nor where the size is not said beforehand.
    let mut stream = server.connect();
    stream
        .write_all(
            b"POST /transforms HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
        .unwrap();
    let chunk = vec![7; 1_000_000];
    for _ in 0..5 {
        if write!(stream, "f4240\r\n")
            .and_then(|()| stream.write_all(&chunk))
            .and_then(|()| stream.write_all(b"\r\n"))
            .is_err()
        {
            break;
        }
    }
    let _ = stream.write_all(b"0\r\n\r\n");
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    let reply = String::from_utf8_lossy(&reply);
    assert!(reply.starts_with("HTTP/1.1 413") && reply.contains("component_bytes_max"), "{reply}");

    // Both places are free again.
    assert_eq!(upload(&server, "", &honest("bench_string")).status, 201);
    assert_nothing_is_left(&project, &server);
}

#[test]
fn equal_uploads_at_once_are_checked_once() {
    let project = Project::new();
    let server = project.serve();
    let bytes = honest("bench_numeric");
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let uploads: Vec<_> = (0..4).map(|_| scope.spawn(|| upload(&server, "", &bytes).status)).collect();
        uploads.into_iter().map(|upload| upload.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 3, "{statuses:?}");
    assert_eq!(checks(&server, "accepted"), 1);
    assert_eq!(server.get("/transforms").1["transforms"].as_array().unwrap().len(), 1);
}

#[test]
fn a_file_that_is_no_component_costs_no_memory_and_no_process_that_stays() {
    let project = Project::new();
    let server = project.serve();
    for bytes in [&b""[..], b"\0asm", b"not a component", &[0; 100_000]] {
        let reply = upload(&server, "", bytes);
        assert_eq!((reply.status, &json_of(&reply)["code"]), (422, &json!("malformed")), "{}", reply.text());
    }
    assert!(Path::new(&project.path(".eadem/artifacts")).is_dir());
    assert_nothing_is_left(&project, &server);
}
