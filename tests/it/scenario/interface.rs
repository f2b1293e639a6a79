//! S10: requests that are made up from the document of the interface, and what is answered to them.
//!
//! Schemathesis reads `/openapi.json`, sends what it allows and what it does not, and looks whether status, content type, headers
//! and body are as declared; what it looks at and what it leaves is told in `tests/services/schemathesis.sh`.

use std::process::{Command, Stdio};

use serde_json::Value as Json;

use super::project::{Project, root};
use super::support::make_admin;
use crate::dice::{is_soak, seed};

/// Requests for each operation. Few operations take so many different ones.
const EXAMPLES: u32 = 15;
const EXAMPLES_OF_SOAK: u32 = 1_500;
const REQUESTS_OF_SOAK: u64 = 20_000;

/// A training set, so that there is one to ask for.
const SPINE: &str = "tailnum,origin,dest,timestamp,scheduled_at,distance
N14228,EWR,IAH,2013-07-01T12:00:00Z,2013-07-01T13:00:00Z,1400
";

#[test]
fn what_is_answered_is_what_is_declared() {
    let soak = is_soak();
    let examples = if soak { EXAMPLES_OF_SOAK } else { EXAMPLES };
    let seed = seed();
    let mut project = Project::of_flights();
    let admin = make_admin(&project);
    project.variables.push(("EADEM_TOKEN", admin.clone()));
    project.write("spine.csv", SPINE);
    for verb in ["apply", "backfill", "materialize"] {
        project.succeed(&[verb]);
    }
    project.succeed(&[
        "dataset",
        "create",
        "--service",
        "departure_delay",
        "--spine",
        "spine.csv",
        "--out",
        "set.parquet",
    ]);
    let server = project.serve();

    let out = project.path("found");
    let url = format!("http://{}", server.address);
    let status = Command::new(root().join("tests/services/schemathesis.sh"))
        .arg("run")
        .arg(url)
        .arg(&out)
        .args([seed.to_string(), examples.to_string()])
        .current_dir(project.path(""))
        .env("EADEM_TOKEN", &admin)
        .stdin(Stdio::null())
        .status()
        .unwrap();
    let log = std::fs::read_to_string(out.join("log")).unwrap_or_default();
    assert!(status.success(), "{log}");
    let report = std::fs::read(out.join("report.json")).unwrap();
    let report: Json = serde_json::from_slice(&report).unwrap();
    let requests = report["test_cases"]["generated"].as_u64().unwrap();
    // Several requests may meet one fault; requests that could not be sent at all are errors.
    let faults = report["test_cases"]["with_failures"]
        .as_u64()
        .unwrap()
        .max(report["failures"].as_array().unwrap().len() as u64)
        + report["errors"].as_array().unwrap().len() as u64;
    println!("S10: cases={requests} faults={faults}");
    assert_eq!(faults, 0, "EADEM_SEED={seed}\n{log}");
    assert!(requests >= if soak { REQUESTS_OF_SOAK } else { 100 }, "{requests} requests\n{log}");
    // Every operation but the stream of events has been answered, and not only refused.
    assert_eq!(report["operations"]["tested"], report["operations"]["selected"], "{log}");
    assert_eq!(server.get("/readyz").0, 200);
}
