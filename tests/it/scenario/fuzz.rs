//! Requests with damaged bodies and addresses: answered or refused, never with a fault of ours.

use super::project::Project;
use crate::dice::{Dice, is_soak, seed};

const DEFINITIONS: &str = r#"
[entity.aircraft]
keys = { tailnum = "utf8" }

[source.planes]
parquet = "data/planes.parquet"
event_time = 2000-01-01T00:00:00Z

[view.plane_profile]
entity = "aircraft"
source = "planes"
transform = "transforms/plane_profile.wasm"
"#;

const POSTS: [(&str, &str); 5] = [
    (
        "/features/batch",
        r#"{"features": ["plane_profile@1:seats", "plane_profile@1:maker"], "timestamp": "2013-07-01T12:00:00Z",
            "entities": [{"tailnum": "N14228"}, {"tailnum": "N24211"}], "request": []}"#,
    ),
    ("/features/batch", r#"{"features": ["seats"], "entities": [{"tailnum": "N14228"}], "timestamps": [null]}"#),
    ("/registry/plan", r#"{"files": [{"path": "a.toml", "text": "[entity.a]\nkeys = { b = \"utf8\" }\n"}]}"#),
    ("/registry/plan", r#"{"files": [], "transforms": {"transforms/plane_profile.wasm": ""}, "revision": 1}"#),
    ("/transforms", "\u{0}asm not a component"),
];
const GETS: [&str; 4] = [
    "/features/N14228?features=seats,maker&include=metadata&timestamp=2013-07-01T12:00:00Z",
    "/features?tailnum=N14228&features=seats",
    "/lineage/view/plane_profile?direction=up",
    "/registry/views/plane_profile",
];
const PIECES: [&str; 22] = [
    "\"",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "null",
    "true",
    "-0.0",
    "1e999",
    "18446744073709551616",
    "\\ud800",
    "@",
    "@0",
    "@99999999999999999999",
    "%00",
    "%ff",
    "%",
    "&&",
    "=",
    "9999-12-31T23:59:60Z",
];

/// Pieces put in    /// Pieces put in, taken out and written over.
fn damaged(dice: &mut Dice, text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..=dice.below(3) {
        let at = dice.below(bytes.len() + 1);
        let end = (at + dice.below(8)).min(bytes.len());
        let piece = PIECES[dice.below(PIECES.len())].bytes();
        match dice.below(3) {
            0 => drop(bytes.splice(at..at, piece)),
            1 => drop(bytes.drain(at..end)),
            _ => drop(bytes.splice(at..end, piece)),
        }
    }
    bytes
}

#[test]
fn damaged_requests_are_never_a_fault_of_the_server() {
    let cases = if is_soak() { 20_000 } else { 400 };
    let seed = seed();
    let project = Project::new();
    project.add_component("plane_profile");
    project.write("features/planes.toml", DEFINITIONS);
    let planes = super::project::root().join("demo/data/planes.parquet");
    project.write("data/planes.parquet", std::fs::read(planes).unwrap());
    for verb in ["apply", "backfill", "materialize"] {
        project.succeed(&[verb]);
    }
    let server = project.serve();

    let mut dice = Dice(seed);
    let (mut answered, mut refused) = (0, 0);
    for case in 0..cases {
        let headers = "Host: localhost\r\nContent-Type: application/json\r\n";
        let (address, body) = match dice.below(3) {
            0 => {
                let address = GETS[dice.below(GETS.len())];
                (damaged(&mut dice, address), None)
            }
            _ => {
                let (path, body) = POSTS[dice.below(POSTS.len())];
                (path.as_bytes().to_vec(), Some(damaged(&mut dice, body)))
            }
        };
        // All of it is visible ASCII, so the server reads the whole head before it can refuse.
        let address = format!("/{}", String::from_utf8(address).unwrap().trim_start_matches('/'));
        let method = if body.is_some() { "POST" } else { "GET" };
        let body = body.unwrap_or_default();
        let (status, reply) = server.raw(method, &address, headers, &body);
        let asked = || format!("seed {seed}, case {case}: {method} {address} {}", String::from_utf8_lossy(&body));
        assert!(status < 500, "{}\n{status} {reply}", asked());
        if status < 300 { answered += 1 } else { refused += 1 }
    }
    assert!(answered > 0 && refused > 0, "{answered} were answered, {refused} refused");
    assert_eq!(server.get("/readyz").0, 200);
}
