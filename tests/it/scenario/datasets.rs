//! Training sets from outside: what they never take the place of, how they are called off, and what is told of them.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray};
use parquet::arrow::ArrowWriter;
use serde_json::{Value as Json, json};

use super::erasure_copies::files_below;
use super::project::{Project, Server, root};
use super::support::wait_until;

const DEFINITIONS: &str = r#"
[entity.aircraft]
keys = { tailnum = "utf8" }

[source.planes]
csv = "data/planes.csv"
types = { year = "int64", engines = "int64", seats = "int64" }
event_time = 2000-01-01T00:00:00Z

[source.weather]
parquet = "data/weather.parquet"
event_time = "time_hour"

[view.plane_profile]
entity = "aircraft"
source = "planes"
transform = "transforms/plane_profile.wasm"

[view.checked]
transform = "transforms/partial_filter.wasm"
bind = { x = "request.x", label = "request.label" }

[service.planes]
features = ["plane_profile:seats"]

[service.checked]
features = ["plane_profile:seats", "checked:doubled"]
"#;

const PLANES: &str = "tailnum,year,type,manufacturer,model,engines,seats,engine\n\
    N1,1999,Fixed wing multi engine,BOEING,737-800,2,160,Turbo-fan\n\
    N2,2001,Fixed wing multi engine,AIRBUS,A320,2,180,Turbo-fan\n";

/// Joins all reports of a year with each other, and gives nothing: it computes for longer than any test waits.
pub(super) const ENDLESS: &str = "select a.origin as tailnum, a.time_hour as timestamp from weather a, weather b where \
                                  repeat(a.origin || b.origin, 400) = 'nowhere'";

/// What a job says that asks sources for its spine.
pub(super) const ASKING: &str = "asking the sources for the spine";

/// Defines what these tests ask for in a project, which need not be applied.
pub(super) fn define(project: &Project) {
    for name in ["plane_profile", "partial_filter"] {
        project.add_component(name);
    }
    project.write("features/planes.toml", DEFINITIONS);
    project.write("data/planes.csv", PLANES);
    project.write("data/weather.parquet", std::fs::read(root().join("demo/data/weather.parquet")).unwrap());
}

fn loaded_project() -> Project {
    let project = Project::new();
    define(&project);
    for verb in ["apply", "backfill"] {
        project.succeed(&[verb]);
    }
    project
}

/// A spine of these planes as a Parquet file.
fn write_spine(file: &Path, planes: &[&str]) {
    let tailnums: ArrayRef = Arc::new(StringArray::from(planes.to_vec()));
    let times = TimestampMicrosecondArray::from(vec![1_400_000_000_000_000; planes.len()]).with_timezone("UTC");
    let spine =
        RecordBatch::try_from_iter([("tailnum", tailnums), ("timestamp", Arc::new(times) as ArrayRef)]).unwrap();
    let mut writer = ArrowWriter::try_new(std::fs::File::create(file).unwrap(), spine.schema(), None).unwrap();
    writer.write(&spine).unwrap();
    writer.close().unwrap();
}

#[test]
fn no_training_set_takes_the_place_of_a_source_or_of_the_spine_that_it_was_made_of() {
    let project = loaded_project();
    write_spine(&project.path("spine.parquet"), &["N1", "N2", "N3"]);
    let bytes = |name: &str| std::fs::read(project.path(name)).unwrap();
    let (weather, spine) = (bytes("data/weather.parquet"), bytes("spine.parquet"));
    let create = ["dataset", "create", "--service", "planes"];
    let of_weather = "select origin as tailnum, time_hour as timestamp from weather limit 3";
    for rows in [["--spine-sql", of_weather], ["--spine", "spine.parquet"], ["--at", "2014-01-01"]] {
        for out in ["data/weather.parquet", "data/../data/weather.parquet"] {
            let said = project.fail(&[&create[..], &rows, &["--out", out]].concat());
            assert!(said.contains("what source `weather` reads") && said.contains("name another"), "{rows:?}: {said}");
        }
    }
    let made = project.json(&[&create[..], &["--spine", "spine.parquet", "--out", "set.parquet"]].concat());
    let id = made["id"].as_str().unwrap();
    for (out, why) in [
        ("spine.parquet", format!("the spine that dataset {id} was made of")),
        ("data/weather.parquet", "what source `weather` reads".to_owned()),
    ] {
        let said = project.fail(&["dataset", "rebuild", id, "--out", out]);
        assert!(said.contains(&why), "{out}: {said}");
    }
    assert!(bytes("data/weather.parquet") == weather && bytes("spine.parquet") == spine);
    let jobs = project.json(&["jobs", "list", "--kind", "dataset"]);
    assert_eq!(jobs["jobs"].as_array().map(Vec::len), Some(1), "what cannot be is refused before it is a job: {jobs}");
    // A dataset that was made of a query or of all entities has no spine of its own to lose.
    let queried = project.json(&[&create[..], &["--spine-sql", of_weather, "--out", "queried.parquet"]].concat());
    project.succeed(&["dataset", "rebuild", queried["id"].as_str().unwrap(), "--out", "again.parquet"]);
    assert_eq!(bytes("queried.parquet"), bytes("again.parquet"));
}

/// Starts a dataset job; gives the path of its route.
fn start(server: &Server, spec: &Json) -> String {
    let (status, job) = server.post("/jobs/dataset", spec);
    assert_eq!(status, 202, "{job}");
    format!("/jobs/{}", job["id"].as_str().unwrap())
}

#[test]
fn a_query_that_computes_for_long_is_called_off_at_once() {
    let project = loaded_project();
    let out = project.path("set.parquet");
    let server = project.serve();
    let job = start(&server, &json!({ "service": "planes", "spine_sql": ENDLESS, "output": out.to_str().unwrap() }));
    wait_until("the query is at work", || server.get(&job).1["progress"]["message"] == ASKING);
    let (status, ended) = server.delete(&job);
    assert_eq!((status, &ended["state"]), (200, &json!("cancelled")), "{ended}");
    assert!(files_below(&project.path(".eadem/offline/spines")).is_empty() && !out.exists());
    // The next one has its turn, also while what was computed comes to its end.
    let create = ["dataset", "create", "--service", "planes", "--at", "2014-01-01", "--out", "set.parquet"];
    assert_eq!(project.json(&create)["rows"], 2);
}

/// In the place of a training set's file is a pipe that nobody writes to: reading it never ends.
#[cfg(unix)]
#[test]
fn a_comparison_leaves_nothing_when_it_is_called_off_or_killed() {
    let project = loaded_project();
    let mut ids = Vec::new();
    for (name, at) in [("a.parquet", "2014-01-01"), ("b.parquet", "2014-01-02")] {
        let made = project.json(&["dataset", "create", "--service", "planes", "--at", at, "--out", name]);
        ids.push(made["id"].clone());
    }
    std::fs::remove_file(project.path("a.parquet")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(project.path("a.parquet")).status().unwrap();
    assert!(made.success());
    let scratch = |job: &str| project.path(".eadem/scratch").join(job.trim_start_matches("/jobs/"));
    let begin = |server: &Server| {
        let job = start(server, &json!({ "diff": ids }));
        wait_until("the comparison is at work", || scratch(&job).is_dir());
        job
    };
    let server = project.serve();
    let called_off = begin(&server);
    let (status, ended) = server.delete(&called_off);
    assert_eq!((status, &ended["state"]), (200, &json!("cancelled")), "{ended}");
    assert!(!scratch(&called_off).exists());

    let killed = begin(&server);
    std::fs::write(scratch(&killed).join("a.parquet"), "half of it").unwrap();
    drop(server);
    assert!(scratch(&killed).is_dir(), "it was killed, and could not tidy up");
    let server = project.serve();
    assert!(!scratch(&killed).exists());
    // Without the pipe it is gone on with from the beginning.
    std::fs::remove_file(project.path("a.parquet")).unwrap();
    let (status, resumed) = server.post(&format!("{killed}/resume"), &json!({}));
    assert_eq!(status, 202, "{resumed}");
    let last = last_event(&server, &killed);
    assert_eq!((&last["state"], &last["result"]["rows_only_in"]["a"]), (&json!("succeeded"), &json!(2)), "{last}");
    assert!(!scratch(&killed).exists());
}

/// The job as the last event of its stream tells it.
fn last_event(server: &Server, job: &str) -> Json {
    let (_, events) = server.raw("GET", &format!("{job}/events"), "Host: localhost\r\n", b"");
    assert!(events.contains("event: end"), "{events}");
    let last = events.lines().filter_map(|line| line.strip_prefix("data:")).next_back().unwrap();
    serde_json::from_str(last).unwrap()
}

#[test]
fn events_say_how_fast_the_rows_of_a_training_set_are_made() {
    let project = loaded_project();
    let server = project.serve();
    let mut ids = Vec::new();
    for (name, at) in [("a.parquet", "2014-01-01"), ("b.parquet", "2014-01-02")] {
        let out = project.path(name);
        let job = start(&server, &json!({ "service": "planes", "times": [at], "output": out.to_str().unwrap() }));
        let last = last_event(&server, &job);
        assert_eq!((&last["state"], &last["progress"]["rows"]), (&json!("succeeded"), &json!(2)), "{last}");
        assert!(last["progress"]["rows_per_s"].as_f64() > Some(0.0), "{last}");
        ids.push(last["id"].clone());
    }
    let compared = start(&server, &json!({ "diff": ids }));
    let last = last_event(&server, &compared);
    assert!(last["progress"]["rows_per_s"].as_f64() > Some(0.0), "{last}");
}

#[test]
fn failed_rows_and_plans_are_told_when_a_training_set_is_made_and_when_it_is_shown() {
    let project = loaded_project();
    let rows =
        (0..10).map(|row| format!("N{},2014-01-01T00:00:00Z,{},a\n", row % 3, if row < 7 { 5 * row } else { 1 }));
    project.write("spine.csv", format!("tailnum,timestamp,x,label\n{}", rows.collect::<String>()));
    let create = ["dataset", "create", "--service", "checked", "--spine", "spine.csv", "--out", "set.parquet"];
    let made = project.json(&create);
    let id = made["id"].as_str().unwrap();
    let shown = project.json(&["dataset", "show", id]);
    for told in [&made, &shown["report"]] {
        let errors = told["errors"].as_array().unwrap();
        assert_eq!(errors.len(), 7, "{told}");
        assert_eq!(errors[2], json!({ "view": "checked@1", "row": 2, "reason": "10 is a multiple of five" }));
        let plans = told["plans"].as_array().unwrap();
        assert!(plans.len() == 1 && plans[0].as_str().unwrap().contains("PointInTimeJoinExec"), "{told}");
    }
    let show = ["dataset", "show", id, "--explain"];
    for (verb, explains) in [
        (&create[..], false),
        (&[&create[..], &["--explain"]].concat()[..], true),
        (&show[..3], false),
        (&show[..], true),
    ] {
        let text = project.succeed(verb);
        for part in [
            "checked@1 failed on row 4: 20 is a multiple of five",
            "failed on more rows: the first 7 are in `--output json`",
        ] {
            assert!(text.contains(part), "`{part}` is missing: {text}");
        }
        assert!(!text.contains("failed on row 5"), "{text}");
        assert_eq!(text.contains("PointInTimeJoinExec"), explains, "{verb:?}: {text}");
    }
}
