//! Features of the past: at an old timestamp, and as the tables were.

use std::path::Path;

use arrow::array::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value as Json, json};

use super::project::Project;

/// A register of planes that comes in two files, for a view of planes; and the weather.
const DEFINITIONS: &str = r#"
[entity.aircraft]
keys = { tailnum = "utf8" }

[entity.airport]
keys = { airport = "utf8" }

[source.planes]
parquet = "planes/"
event_time = 2000-01-01T00:00:00Z

[source.weather]
parquet = "data/weather.parquet"
columns = { airport = "origin" }
event_time = "time_hour"
known_at = { after = "15m" }

[view.plane_profile]
entity = "aircraft"
source = "planes"
transform = "transforms/plane_profile.wasm"

[view.airport_weather]
entity = "airport"
source = "weather"
transform = "transforms/airport_weather.wasm"
ttl = "2h"

[service.planes]
features = ["plane_profile:seats"]

[service.both]
features = ["plane_profile:seats", "airport_weather:temperature_c"]
"#;

fn write(file: &Path, batch: &RecordBatch) {
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let mut writer = ArrowWriter::try_new(std::fs::File::create(file).unwrap(), batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

/// The register's first rows, and some after them.
fn halves(project: &Project) -> (RecordBatch, RecordBatch) {
    let file = std::fs::File::open(project.path("data/planes.parquet")).unwrap();
    let mut reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().with_batch_size(200).build().unwrap();
    (reader.next().unwrap().unwrap(), reader.next().unwrap().unwrap())
}

fn tailnum(batch: &RecordBatch) -> String {
    let column = batch.column_by_name("tailnum").unwrap();
    arrow::util::display::array_value_to_string(column, 0).unwrap()
}

/// A project with two commits of planes and one of weather; gives a plane of each commit.
fn project() -> (Project, String, String) {
    let project = Project::of_flights();
    std::fs::remove_dir_all(project.path("features")).unwrap();
    project.write("features/all.toml", DEFINITIONS);
    let (first, second) = halves(&project);
    write(&project.path("planes/1.parquet"), &first);
    project.succeed(&["apply"]);
    project.succeed(&["backfill"]);
    write(&project.path("planes/2.parquet"), &second);
    project.succeed(&["backfill", "plane_profile"]);
    (project, tailnum(&first), tailnum(&second))
}

#[test]
fn features_are_served_as_they_were_stored() {
    let (project, old, new) = project();
    let server = project.serve();
    let get = |plane: &str, more: &str| server.get(&format!("/features/{plane}?features=seats{more}"));
    let seats_missing = |reply: &Json| reply["status"]["seats"] == "missing";

    let (status, reply) = get(&new, "&include=metadata");
    assert!(status == 200 && reply["metadata"]["seats"]["store"] == "offline" && !seats_missing(&reply), "{reply}");
    assert!(reply.get("as_stored").is_none(), "{reply}");
    let (status, reply) = get(&new, "&as_stored=1");
    assert!(status == 200 && seats_missing(&reply), "{reply}");
    assert_eq!(reply["as_stored"]["plane_profile@1"]["commit"], 1, "{reply}");
    let first = reply["as_stored"]["plane_profile@1"]["committed_at"].as_str().unwrap().to_owned();
    let (_, reply) = get(&old, "&as_stored=1&timestamp=2013-01-01T00:00:00Z&include=metadata");
    assert!(!seats_missing(&reply) && reply["metadata"]["seats"]["store"] == "offline", "{reply}");
    let (_, reply) = get(&new, "&as_stored=2");
    assert!(!seats_missing(&reply), "{reply}");

    // A time, for both routes; the text forms agree.
    let (_, reply) = get(&new, &format!("&as_stored={first}"));
    assert!(seats_missing(&reply), "{reply}");
    let body = json!({ "features": ["seats"], "entities": [{ "tailnum": old }, { "tailnum": new }] });
    let (status, reply) = server.post(&format!("/features/batch?as_stored={first}"), &body);
    let results = &reply["results"];
    assert!(status == 200 && !seats_missing(&results[0]) && seats_missing(&results[1]), "{reply}");
    assert_eq!(reply["as_stored"]["plane_profile@1"]["commit"], 1, "{reply}");
    let service = json!({ "service": "both", "entities": [{ "tailnum": new, "airport": "JFK" }] });
    let (status, reply) = server.post("/features/batch?as_stored=2100-01-01T00:00:00Z", &service);
    let commits =
        (&reply["as_stored"]["plane_profile@1"]["commit"], &reply["as_stored"]["airport_weather@1"]["commit"]);
    assert_eq!((status, commits), (200, (&json!(2), &json!(1))), "{reply}");

    let problem = |reply: (u16, Json)| (reply.0, reply.1["code"].as_str().unwrap_or_default().to_owned());
    assert_eq!(problem(get(&old, "&as_stored=7")), (404, "not_stored".to_owned()));
    assert_eq!(problem(get(&old, "&as_stored=1999-01-01T00:00:00Z")), (404, "not_stored".to_owned()));
    assert_eq!(problem(get(&old, "&as_stored=tomorrow")), (400, "malformed_as_stored".to_owned()));
    // A number means nothing for two tables.
    assert_eq!(problem(server.post("/features/batch?as_stored=1", &service)), (404, "not_stored".to_owned()));
    drop(server);

    // The command line says which commit it was.
    let text = project.succeed(&["get", &new, "--features", "seats", "--as-stored", "1"]);
    assert!(text.contains("missing") && text.contains("plane_profile@1 as stored by commit 1 of "), "{text}");
    let keyed = format!("tailnum={new}");
    let reply = project.json(&["get", "--key", &keyed, "--features", "seats", "--as-stored", &first]);
    assert!(seats_missing(&reply) && reply["as_stored"]["plane_profile@1"]["commit"] == 1, "{reply}");
    // A training set of what was stored then.
    project.write("spine.csv", format!("tailnum,timestamp\n{old},2013-01-01T00:00:00Z\n{new},2013-01-01T00:00:00Z\n"));
    let missing = |as_stored: &[&str]| {
        let create = ["dataset", "create", "--service", "planes", "--spine", "spine.csv", "--out", "set.parquet"];
        project.succeed(&create.iter().chain(as_stored).copied().collect::<Vec<_>>());
        let file = std::fs::File::open(project.path("set.parquet")).unwrap();
        let mut reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
        let set = reader.next().unwrap().unwrap();
        let statuses = set.column_by_name("seats__status").unwrap();
        let status = |row: usize| arrow::util::display::array_value_to_string(statuses, row).unwrap() == "missing";
        (status(0), status(1))
    };
    assert_eq!(missing(&[]), (false, false));
    assert_eq!(missing(&["--as-stored", "1"]), (false, true));
    assert_eq!(missing(&["--as-stored", &first]), (false, true));
    let late = ["dataset", "create", "--service", "planes", "--spine", "spine.csv", "--out", "set.parquet"];
    let error = project.fail(&late.iter().chain(&["--as-stored", "9"]).copied().collect::<Vec<_>>());
    assert!(error.contains("[not_stored]"), "{error}");
    let error = project.fail(&["get", &old, "--features", "seats", "--as-stored", "9"]);
    assert!(error.contains("the newest is 2") && error.contains("[not_stored]"), "{error}");
}

#[test]
fn reads_of_history_are_limited_and_a_commit_without_files_says_so() {
    let (project, old, new) = project();
    project.write("eadem.toml", "[limits]\nhistory_reads_max = 2\n");
    let body = |planes: &[&str]| {
        let entities: Vec<Json> = planes.iter().map(|plane| json!({ "tailnum": plane })).collect();
        json!({ "features": ["seats"], "entities": entities })
    };
    let timestamps = |mut body: Json, times: &[&str]| {
        body["timestamps"] = json!(times);
        body
    };
    {
        let server = project.serve();
        let times = ["1999-01-01T00:00:00Z", "2013-01-01T00:00:00Z"];
        let (status, reply) = server.post("/features/batch?include=metadata", &timestamps(body(&[&old, &old]), &times));
        assert_eq!(status, 200, "{reply}");
        let results = &reply["results"];
        assert_eq!(results[0]["status"]["seats"], "missing", "{reply}");
        assert!(results[1].get("status").is_none() && results[1]["metadata"]["seats"]["store"] == "offline", "{reply}");
        for path in ["/features/batch", "/features/batch?as_stored=1"] {
            let (status, problem) = server.post(path, &body(&[&old, &new, "nobody"]));
            assert_eq!((status, problem["code"].as_str()), (413, Some("too_many_history_reads")), "{problem}");
            assert!(problem["detail"].as_str().unwrap().contains("send several requests"), "{problem}");
        }
    }
    // Once it is loaded, the online store proves the present, and the limit does not concern it.
    project.succeed(&["materialize", "plane_profile"]);
    let server = project.serve();
    let (status, reply) = server.post("/features/batch", &body(&[&old, &new, "nobody"]));
    assert_eq!(status, 200, "{reply}");
    // Somebody deletes what the first commit wrote.
    let partition = project.path(".eadem/offline/views/plane_profile/v1/event_date=2000-01-01");
    for entry in std::fs::read_dir(partition).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let (status, problem) = server.get(&format!("/features/{old}?features=seats&as_stored=1"));
    assert_eq!((status, problem["code"].as_str()), (410, Some("vacuumed")), "{problem}");
    // The newest state is not as the log says either: that is a fault of the store, and of these features only.
    let (status, reply) = server.get(&format!("/features/{old}?features=seats&timestamp=2001-01-01T00:00:00Z"));
    assert_eq!((status, &reply["status"]["seats"]), (200, &json!("error")), "{reply}");
}
