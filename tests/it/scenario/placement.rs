//! A view's placement is switched, and no answer changes by a bit: before, on the way, while it happens, and afterwards.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value as Json, json};

use super::erasure_copies::files_below;
use super::kills::rows_of_file;
use super::project::{Project, Server};
use super::support::wait_until;

const PLANES: &str = "tailnum,year,type,manufacturer,model,engines,seats,engine\n\
    N1,1999,Fixed wing multi engine,BOEING,737-800,2,160,Turbo-fan\n\
    N2,1850,Fixed wing single engine,CESSNA,172,1,4,Reciprocating\n\
    N3,,,,,,,\n\
    N4,2001,Fixed wing multi engine,AIRBUS INDUSTRIE,A320-214,two,180,Turbo-fan\n";

const PLANE: &str = "tailnum,year,type,manufacturer,model,engines,seats,engine\n\
    N5,2010,Rotorcraft,BELL,206,1,5,Turbo-shaft\n";

fn definitions(placement: &str) -> String {
    format!(
        r#"
[entity.aircraft]
keys = {{ tailnum = "utf8" }}

[entity.airport]
keys = {{ airport = "utf8" }}

[source.planes]
csv = "planes/"
types = {{ year = "int64", engines = "int64", seats = "int64" }}
event_time = 2000-01-01T00:00:00Z

[source.weather]
parquet = "data/weather.parquet"
columns = {{ airport = "origin" }}
event_time = "time_hour"
known_at = {{ after = "15m" }}

[view.plane_profile]
entity = "aircraft"
source = "planes"
transform = "transforms/plane_profile.wasm"
validation = "null_value"
placement = "{placement}"

[view.airport_weather]
entity = "airport"
source = "weather"
transform = "transforms/airport_weather.wasm"
ttl = "2h"
horizon = "1h"
online_history = "366d"
validation = "clamp"
placement = "{placement}"
defaults = {{ gusty = false }}

[view.airport_weather.bounds]
temperature_c = {{ max = 20.0 }}

[service.both]
features = ["plane_profile:*", "airport_weather:*"]
"#
    )
}

const VIEWS: [&str; 2] = ["plane_profile", "airport_weather"];

fn project() -> Project {
    let project = Project::of_flights();
    std::fs::remove_dir_all(project.path("features")).unwrap();
    project.write("features/all.toml", definitions("on_write"));
    project.write("planes/1.csv", PLANES);
    let mut spine = "tailnum,airport,timestamp\n".to_owned();
    for (number, time) in TIMES.iter().enumerate() {
        for airport in ["EWR", "JFK", "LGA", "XXX"] {
            spine.push_str(&format!("N{},{airport},{time}\n", number % 6));
        }
    }
    project.write("spine.csv", spine);
    project
}

const TIMES: [&str; 7] = [
    "1999-12-31T23:59:59Z",
    "2013-01-01T11:30:00Z",
    "2013-01-10T00:14:59.999999Z",
    "2013-02-11T18:15:00Z",
    "2013-07-04T12:40:00Z",
    "2013-12-30T23:59:59Z",
    "2013-12-31T01:30:00Z",
];

/// Every entity at every time, with metadata: as it is answered now, or as it was stored then.
fn answers(server: &Server, as_stored: &str) -> String {
    let (mut entities, mut times) = (Vec::new(), Vec::new());
    for time in TIMES {
        for (plane, airport) in [("N1", "EWR"), ("N2", "JFK"), ("N3", "LGA"), ("N4", "XXX"), ("N5", "EWR")] {
            entities.push(json!({ "tailnum": plane, "airport": airport }));
            times.push(time);
        }
    }
    let body = json!({ "service": "both", "entities": entities, "timestamps": times });
    let (status, reply) = server.post(&format!("/features/batch?include=metadata{as_stored}"), &body);
    assert_eq!(status, 200, "{reply}");
    reply.to_string()
}

/// What is served of each view now, as values and statuses.
fn newest(server: &Server) -> String {
    ["N1", "N2", "N3", "N4", "N5"]
        .map(|plane| {
            let (status, mut reply) = server.get(&format!(
                "/features/{plane}?features=maker,family,built_year,engines,seats,is_jet,completeness&include=metadata"
            ));
            assert_eq!(status, 200, "{reply}");
            reply["timestamp"].take();
            reply.to_string()
        })
        .join("\n")
}

/// For each view its placements: that of the epoch that is served, and that of the version.
fn placements(project: &Project) -> Vec<(Json, Json)> {
    let online = project.json(&["online", "status"]);
    let of = |view: &str| {
        let name = format!("{view}@1");
        let epochs = online["views"].as_array().unwrap().iter();
        let current = epochs.filter(|epoch| epoch["view"] == name.as_str() && epoch["state"] == "current");
        let served = current.map(|epoch| epoch["placement"].clone()).next().unwrap_or_default();
        let described = project.json(&["describe", "view", &name]);
        (served, described["stored"]["deployment"]["placement"].clone())
    };
    VIEWS.map(of).into()
}

fn both(placement: &str) -> Vec<(Json, Json)> {
    vec![(json!(placement), json!(placement)); VIEWS.len()]
}

fn training_set(project: &Project, more: &[&str]) -> (String, Vec<u8>) {
    let out = project.path("set.parquet");
    let create = ["dataset", "create", "--service", "both", "--spine", "spine.csv", "--out", out.to_str().unwrap()];
    let made = project.json(&[&create, more].concat());
    (made["id"].as_str().unwrap().to_owned(), std::fs::read(out).unwrap())
}

fn rebuilt(project: &Project, id: &str) -> Vec<u8> {
    let out = project.path("again.parquet");
    project.succeed(&["dataset", "rebuild", id, "--out", out.to_str().unwrap()]);
    std::fs::read(out).unwrap()
}

fn table(project: &Project, view: &str, folder: &str) -> PathBuf {
    project.path(".eadem/offline/views").join(view).join(folder)
}

fn data_files(folder: &Path) -> BTreeSet<PathBuf> {
    let mut files = files_below(folder);
    files.retain(|file| file.extension().is_some_and(|its| its == "parquet"));
    files
}

fn refused(project: &Project) -> Json {
    project.json(&["quarantine", "list", "plane_profile", "--all"])["rows"].clone()
}

#[test]
fn no_answer_changes_by_a_bit() {
    const MATERIALIZE: [&str; 3] = ["materialize", "--as-of", "2014-01-01T00:00:00Z"];
    let project = project();
    project.succeed(&["apply"]);
    project.succeed(&["backfill"]);
    project.succeed(&MATERIALIZE);
    let server = project.serve();
    let commit = |reply: Json| reply["as_stored"]["plane_profile@1"]["committed_at"].as_str().unwrap().to_owned();
    let (_, reply) = server.get("/features/N1?features=seats&as_stored=1");
    let then = format!("&as_stored={}", commit(reply));
    let (expected, expected_now) = (answers(&server, ""), newest(&server));
    // All of it is there: rows from both stores, and every status.
    for found in ["\"online\"", "\"offline\"", "\"missing\"", "\"expired\"", "\"null\"", "20.0", "737"] {
        assert!(expected.contains(found), "{found}");
    }
    let (first, bytes) = training_set(&project, &[]);
    let quarantined = refused(&project);
    assert_eq!(quarantined.as_array().map(Vec::len), Some(1), "{quarantined}");
    // What was stored is told with the commits, which belong to one table.
    let stored_then = answers(&server, &then);

    let same = |when: &str| {
        assert!(answers(&server, "") == expected, "{when}");
        assert!(newest(&server) == expected_now, "{when}");
        assert!(answers(&server, &then) == stored_then, "{when}");
    };
    project.write("features/all.toml", definitions("on_read"));
    let plan = project.json(&["plan"]);
    let text = plan.to_string();
    assert!(text.contains("placement: on_write → on_read") && !text.contains("new_version"), "{plan}");
    assert!(text.contains("`eadem backfill plane_profile@1`, then `eadem materialize plane_profile@1`"), "{plan}");
    project.succeed(&["apply"]);
    same("asked for");
    assert_eq!(placements(&project), both("on_write"));
    let shown = project.succeed(&["describe", "view", "plane_profile"]);
    assert!(shown.contains("on_write, until it is switched to on_read"), "{shown}");

    let told = project.succeed(&["backfill"]);
    assert!(told.contains("`eadem materialize airport_weather@1` switches to it"), "{told}");
    same("filled");
    assert_eq!(placements(&project), both("on_write"));
    assert_eq!(refused(&project), quarantined, "a row is refused once");

    // It is switched while it is asked all the time.
    let (is_over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    assert!(answers(&server, "") == expected && newest(&server) == expected_now);
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        wait_until("answers", || asked.load(Ordering::Relaxed) > 2);
        let told = project.succeed(&MATERIALIZE);
        let asked_before = asked.load(Ordering::Relaxed);
        wait_until("answers", || asked.load(Ordering::Relaxed) > asked_before + 4);
        is_over.store(true, Ordering::Relaxed);
        assert!(told.contains("plane_profile@1: switched from on_write to on_read"), "{told}");
    });
    same("switched");
    assert_eq!(placements(&project), both("on_read"));
    for view in VIEWS {
        assert!(!data_files(&table(&project, view, "v1-on_read")).is_empty(), "{view}");
    }
    assert!(rebuilt(&project, &first) == bytes, "a set of the other table");
    let (second, of_new) = training_set(&project, &[]);
    let (_, of_then) = training_set(&project, &["--as-stored", &then["&as_stored=".len()..]]);
    assert!(of_new == bytes && of_then == bytes);
    // A number is one of two tables now: it is refused rather than read in the wrong one.
    let (status, problem) = server.get("/features/N1?features=seats&as_stored=1");
    assert_eq!((status, problem["code"].as_str()), (404, Some("not_stored")), "{problem}");
    let said = project.fail(&["get", "N1", "--features", "seats", "--as-stored", "1"]);
    assert!(said.contains("give a time"), "{said}");
    for verb in [&["offline", "compact"][..], &["offline", "vacuum"], &["materialize", "--incremental"]] {
        project.succeed(verb);
    }
    project.succeed(&MATERIALIZE);
    same("compacted");

    // More rows, and back: the first table only takes what has come since.
    project.write("planes/2.csv", PLANE);
    project.succeed(&["backfill", "plane_profile"]);
    project.write("features/all.toml", definitions("on_write"));
    project.succeed(&["apply"]);
    let told = project.json(&["backfill"]);
    let tables = told["backfill"]["result"]["views"].as_array().unwrap();
    let of_first = tables.iter().find(|table| table["table"] == "plane_profile@1").unwrap();
    assert_eq!((of_first["files"].as_u64(), &of_first["rows_stored"]), (Some(1), &json!(1)), "{told}");
    let (more, more_now) = (answers(&server, ""), newest(&server));
    assert!(more != expected, "N5 is there");
    project.succeed(&MATERIALIZE);
    assert_eq!(placements(&project), both("on_write"));
    assert!(answers(&server, "") == more);
    assert!(answers(&server, &then) == stored_then);
    let seats = |now: &str| now.matches("\"seats\":5").count();
    assert_eq!((seats(&more_now), seats(&newest(&server))), (0, 1), "materialize loads what was backfilled");
    assert!(rebuilt(&project, &first) == bytes && rebuilt(&project, &second) == bytes);
    assert_eq!(refused(&project), quarantined);

    // Who is erased is in neither table.
    let holds = |folder: &str| {
        let files = data_files(&table(&project, "plane_profile", folder));
        files.iter().any(|file| rows_of_file(file).iter().any(|row| row.contains("tailnum=N1|")))
    };
    assert!(holds("v1") && holds("v1-on_read"));
    project.succeed(&["erase", "--entity", "aircraft", "--key", "tailnum=N1"]);
    assert!(!holds("v1") && !holds("v1-on_read"));
    let (_, gone) = server.get("/features/N1?features=seats");
    assert_eq!(gone["status"]["seats"], "missing", "{gone}");
    let said = project.fail(&["dataset", "rebuild", &second, "--out", project.path("x.parquet").to_str().unwrap()]);
    assert!(said.contains("cannot be made again"), "{said}");
}

#[test]
fn what_is_not_online_is_switched_by_the_backfill_that_has_all_rows() {
    let project = project();
    project.write("planes/2.csv", PLANE);
    project.succeed(&["apply"]);
    project.succeed(&["backfill", "plane_profile"]);
    let placed = || project.json(&["describe", "view", "plane_profile"])["stored"]["deployment"]["placement"].clone();
    let seats = || project.json(&["get", "N5", "--features", "seats"])["features"]["seats"].clone();
    project.write("features/all.toml", definitions("on_read"));
    let plan = project.json(&["plan"]).to_string();
    assert!(plan.contains("`eadem backfill plane_profile@1` switches it") && !plan.contains("materialize"), "{plan}");
    project.succeed(&["apply"]);

    // A file is gone, and its rows with it: nothing is switched.
    std::fs::rename(project.path("planes/2.csv"), project.path("elsewhere.csv")).unwrap();
    let said = project.fail(&["backfill", "plane_profile"]);
    assert!(said.contains("2.csv") && said.contains("its placement stays on_write"), "{said}");
    assert_eq!((placed(), seats()), (json!("on_write"), json!(5)));
    // Nor is it by a load into the online store.
    let said = project.fail(&["materialize", "plane_profile"]);
    assert!(said.contains("2.csv"), "{said}");

    std::fs::rename(project.path("elsewhere.csv"), project.path("planes/2.csv")).unwrap();
    let told = project.succeed(&["backfill", "plane_profile"]);
    assert!(told.contains("plane_profile@1: switched from on_write to on_read"), "{told}");
    assert_eq!((placed(), seats()), (json!("on_read"), json!(5)));
    project.succeed(&["materialize", "plane_profile"]);
    assert_eq!((placed(), seats()), (json!("on_read"), json!(5)));
    // Another version of the definitions does not forget where its table is.
    project.succeed(&["apply"]);
    project.succeed(&["backfill", "plane_profile"]);
    assert_eq!(data_files(&table(&project, "plane_profile", "v1-on_read")).len(), 2);
}
