//! Definitions and files that are wrong: a sentence with its place, an exit code, and nothing half-done.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, UInt64Array};
use arrow::compute::take;
use arrow::datatypes::FieldRef;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sha2::{Digest as _, Sha256};

use super::project::{Project, component};
use super::support::sample;

const GOOD: &str = r#"
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

fn project(definitions: &str) -> Project {
    let project = Project::new();
    project.add_component("plane_profile");
    project.add_component("departure_context");
    project.write("features/planes.toml", definitions);
    let planes = super::project::root().join("demo/data/planes.parquet");
    project.write("data/planes.parquet", std::fs::read(planes).unwrap());
    project
}

/// What `plan` says of these definitions; the registry must stay empty.
fn refused(definitions: &str) -> String {
    let project = project(definitions);
    let said = project.fail(&["plan"]);
    project.fail(&["apply"]);
    let said_later = project.fail(&["backfill"]);
    assert!(said_later.contains("there is no stored view"), "something was applied: {said_later}");
    said
}

#[test]
fn good_definitions_pass() {
    let project = project(GOOD);
    let text = project.succeed(&["plan"]);
    assert!(text.contains("plane_profile"), "{text}");
    let applied = project.succeed(&["apply"]);
    assert!(applied.trim_end().ends_with("applied; the registry is at revision 1"), "{applied}");
    let again = project.json(&["apply"]);
    assert_eq!(again["definitions_revision"], 1, "nothing was left to apply: {again}");
    let again = project.json(&["plan"]);
    let changes = again["changes"].as_array().unwrap();
    assert!(changes.iter().all(|change| change["action"] == "unchanged"), "{again}");
}

#[test]
fn an_unknown_column_is_named_with_its_place() {
    let said = refused(&format!("{GOOD}bind = {{ seats = \"sets\" }}\n"));
    assert!(said.contains("features/planes.toml:13") && said.contains("`sets`"), "{said}");
}

#[test]
fn a_column_of_another_type_is_named_with_both_types() {
    let said = refused(&format!("{GOOD}bind = {{ seats = \"model\" }}\n"));
    assert!(said.contains("features/planes.toml:13") && said.contains("int64") && said.contains("utf8"), "{said}");
}

#[test]
fn a_second_definition_of_one_name_is_refused() {
    let project = project(GOOD);
    project.write("features/zebra.toml", "\n[entity.aircraft]\nkeys = { tailnum = \"utf8\" }\n");
    let said = project.fail(&["plan"]);
    assert!(
        said.contains("features/zebra.toml:2") && said.contains("already defined at features/planes.toml:2"),
        "{said}"
    );
    let twice_in_one_file = refused(&format!("{GOOD}\n[entity.aircraft]\nkeys = {{ tailnum = \"utf8\" }}\n"));
    assert!(
        twice_in_one_file.contains("features/planes.toml:14") && twice_in_one_file.contains("duplicate"),
        "{twice_in_one_file}"
    );
}

#[test]
fn views_that_need_each_other_are_refused() {
    let cycle = r#"
[view.first]
transform = "transforms/departure_context.wasm"
bind = { scheduled_at = "request.scheduled_at", distance = "request.distance", last_landed_at = "second.scheduled_hour", last_arr_delay = "second.hour_utc", max_gap_h = 12 }

[view.second]
transform = "transforms/departure_context.wasm"
bind = { scheduled_at = "request.scheduled_at", distance = "request.distance", last_landed_at = "first.scheduled_hour", last_arr_delay = "first.hour_utc", max_gap_h = 12 }
"#;
    let said = refused(cycle);
    assert!(said.contains("features/planes.toml:") && (said.contains("cycle") || said.contains("itself")), "{said}");
}

#[test]
fn a_time_zone_that_does_not_exist_is_named_with_its_place() {
    let said = refused(&GOOD.replace("event_time", "time_zone = \"America/New_Yrok\"\nevent_time"));
    assert!(said.contains("features/planes.toml:7") && said.contains("no time zone `America/New_Yrok`"), "{said}");
}

#[test]
fn a_misspelt_key_gets_a_suggestion() {
    let said = refused(&GOOD.replace("source = ", "soruce = "));
    assert!(said.contains("did you mean `source`?") && said.contains("features/planes.toml:"), "{said}");
}

#[test]
fn floating_point_mathematics_belongs_into_a_transform() {
    let said = refused(&GOOD.replace("event_time", "columns = { seats = \"sin(seats)\" }\nevent_time"));
    assert!(said.contains("put it into a transform") && said.contains("features/planes.toml:"), "{said}");
}

#[test]
fn a_missing_component_is_named_with_its_place() {
    let said = refused(&GOOD.replace("plane_profile.wasm", "no_such.wasm"));
    assert!(said.contains("features/planes.toml:") && said.contains("no_such.wasm"), "{said}");
}

#[test]
fn a_parquet_file_cut_short_stops_the_backfill_and_leaves_nothing() {
    let project = project(GOOD);
    project.succeed(&["apply"]);
    let whole = std::fs::read(project.path("data/planes.parquet")).unwrap();
    project.write("data/planes.parquet", &whole[..whole.len() / 2]);
    let said = project.fail(&["backfill"]);
    assert!(said.contains("planes.parquet"), "{said}");
    let said = project.fail(&["materialize"]);
    assert!(said.contains("backfill it first"), "{said}");
    // The whole file is loaded as if nothing had been.
    project.write("data/planes.parquet", &whole);
    let report = project.json(&["backfill"]);
    assert_eq!(report["backfill"]["result"]["views"][0]["rows_stored"], 3322, "{report}");
}

#[test]
fn hostile_components_are_refused_at_the_door_with_a_reason() {
    let project = project(GOOD);
    for (name, word) in [("core_module", "core module"), ("imports_random", "import"), ("two_memories", "memor")] {
        let said = project.run(&["push", component(name).to_str().unwrap()]);
        let (out, err) = super::project::texts(&said);
        assert!(!said.status.success(), "{name} was accepted: {out}");
        assert!(out.contains("refused") && out.contains(word), "{name}: {out}\n{err}");
    }
    // And the store goes on.
    project.succeed(&["push", "transforms/plane_profile.wasm"]);
}

#[test]
fn rows_that_are_refused_are_counted_and_kept_and_the_others_stored() {
    // One aircraft loses its registration on the way in.
    let without_key = "columns = { tailnum = \"case when tailnum = 'N14228' then null else tailnum end\" }";
    let definitions = GOOD.replace("event_time", &format!("{without_key}\nevent_time"));
    let project = project(&definitions);
    project.succeed(&["apply"]);
    let report = project.json(&["backfill"]);
    let view = &report["backfill"]["result"]["views"][0];
    assert_eq!((view["rows_read"].as_u64(), view["rows_stored"].as_u64()), (Some(3322), Some(3321)), "{view}");
    let refused = view["refused"].as_object().unwrap();
    let (reason, rows) = refused.iter().next().unwrap_or_else(|| panic!("no row was refused: {view}"));
    assert_eq!((refused.len(), rows.as_u64()), (1, Some(1)), "{view}");
    assert!(reason.contains("tailnum"), "{reason}");
    let said = project.succeed(&["jobs", "show", report["backfill"]["id"].as_str().unwrap()]);
    assert!(said.contains("1 refused"), "{said}");
    let quarantine = project.path(".eadem/offline/quarantine/plane_profile/v1");
    assert!(quarantine.join("_delta_log").is_dir() && !parquet_files(&quarantine).is_empty(), "the row is not kept");
    project.succeed(&["materialize"]);
    assert_eq!(project.json(&["get", "N14228", "--features", "seats"])["status"]["seats"], "missing");
    assert_eq!(project.json(&["get", "N10156", "--features", "seats"])["features"]["seats"], 55);
}

/// Planes of the year 2100 are too far ahead, until somebody says how far is not.
#[test]
fn refused_rows_stop_a_job_are_shown_and_are_replayed_once() {
    let ahead = GOOD.replace("2000-01-01", "2100-01-01");
    let project = project(&ahead);
    project.succeed(&["apply"]);
    let said = project.fail(&["backfill", "--stop-share", "0.5"]);
    for part in
        ["3322 of 3322 rows were refused", "3322 × event time too far ahead", "eadem quarantine list plane_profile@1"]
    {
        assert!(said.contains(part), "{said}");
    }
    let stopped = project.json(&["quarantine", "list", "plane_profile", "--limit", "2"]);
    let id = stopped["rows"][0]["id"].as_str().unwrap();
    let shown = project.json(&["quarantine", "show", "plane_profile", id]);
    assert!(shown["hindrance"].as_str().unwrap().contains("not in the table"), "{shown}");
    assert_eq!(shown["rows"][0]["event_time"], "2100-01-01T00:00:00Z", "{shown}");

    let text = project.succeed(&["backfill"]);
    assert!(text.contains("3322 × event time") && text.contains("look at them: eadem quarantine list"), "{text}");
    // Two jobs have refused them, and each is one row.
    assert!(project.succeed(&["quarantine", "list"]).contains("plane_profile@1: 3322 refused"));
    let page = project.json(&["quarantine", "list", "plane_profile", "--reason", "ahead", "--limit", "1000"]);
    assert_eq!(page["rows"].as_array().unwrap().len(), 1000);
    let next = page["next"].as_str().unwrap();
    let text = project.succeed(&["quarantine", "list", "plane_profile", "--limit", "1", "--cursor", next]);
    assert!(text.contains("--cursor"), "{text}");

    // How far ahead is too far makes no version of the view.
    project.write("features/planes.toml", ahead.replace("event_time", "max_ahead = \"40000d\"\nevent_time"));
    project.succeed(&["apply"]);
    let report = project.json(&["quarantine", "replay", "plane_profile", "--limit", "3000"]);
    let replay = &report["replay"]["result"]["replay"];
    assert_eq!((replay["rows_stored"].as_u64(), replay["view"].as_str()), (Some(3000), Some("plane_profile@1")));
    let report = project.json(&["quarantine", "replay", "plane_profile", "--online"]);
    let replay = &report["replay"]["result"]["replay"];
    assert_eq!((replay["rows_stored"].as_u64(), replay["rows_left"].as_u64()), (Some(322), Some(0)), "{replay}");
    let report = project.json(&["quarantine", "replay", "plane_profile"]);
    assert_eq!(report["replay"]["result"]["replay"]["rows_tried"], 0, "a second replay loads nothing: {report}");
    let at = ["get", "N14228", "--features", "seats", "--timestamp", "2100-06-01T00:00:00Z"];
    assert_eq!(project.json(&at)["features"]["seats"], 149);
    let said = project.fail(&["quarantine", "show", "plane_profile", "abcd:1"]);
    assert!(said.contains("unknown_row"), "{said}");
    let said = project.fail(&["quarantine", "list", "plane_profile", "--cursor", "9.9"]);
    assert!(said.contains("malformed_query"), "{said}");
}

#[test]
fn without_a_project_a_verb_says_how_to_make_one() {
    let project = Project::new();
    std::fs::remove_file(project.path("eadem.toml")).unwrap();
    let said = project.fail(&["plan"]);
    assert!(said.contains("eadem init"), "{said}");
    project.succeed(&["init"]);
    assert!(project.fail(&["init"]).contains("nothing was changed"));
    project.succeed(&["plan"]);
}

#[test]
fn unknown_settings_are_refused_with_their_origin() {
    let project = Project::new();
    project.write("eadem.toml", "[server]\nlissten = \"127.0.0.1:1\"\n");
    let said = project.fail(&["config"]);
    assert!(said.contains("did you mean `server.listen`?"), "{said}");
    project.write("eadem.toml", "[server]\n\n[srever]\nlisten = \"127.0.0.1:1\"\n");
    let said = project.fail(&["config"]);
    assert!(said.contains("eadem.toml:3: unknown table `srever`; did you mean `server`?"), "{said}");
    let said = project.fail(&["config", "--project", "no_such_folder"]);
    assert!(said.contains("no_such_folder"), "a project that is named must be there: {said}");
    let project = Project::new();
    let settings = project.json(&["config", "--set", "jobs.workers=7"]);
    let workers = settings.as_array().unwrap().iter().find(|setting| setting["key"] == "jobs.workers").unwrap();
    assert_eq!((workers["value"].as_u64(), workers["origin"].as_str()), (Some(7), Some("--set")));
}

#[test]
fn a_key_that_the_online_store_cannot_hold_is_named() {
    let long_key =
        "columns = { tailnum = \"case when tailnum = 'N14228' then lpad(tailnum, 20000, tailnum) else tailnum end\" }";
    let project = project(&GOOD.replace("event_time", &format!("{long_key}\nevent_time")));
    project.succeed(&["apply"]);
    project.succeed(&["backfill"]);
    let said = project.fail(&["materialize"]);
    assert!(said.contains("plane_profile@1") && said.contains("`N14228N14228"), "{said}");
    assert!(said.len() < 2_000, "{} bytes", said.len());
}

/// Planes whose rows make a data file of several MiB: their registrations do not compress.
fn write_many_planes(project: &Project, rows: u64) {
    let planes = project.path("data/planes.parquet");
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&planes).unwrap()).unwrap().build().unwrap();
    let known: RecordBatch = reader.map(Result::unwrap).next().unwrap();
    let picked = UInt64Array::from_iter_values((0..rows).map(|row| row % known.num_rows() as u64));
    let registration = |row: u64| hex::encode(Sha256::digest(row.to_le_bytes()));
    let column = |(field, column): (&FieldRef, &ArrayRef)| match field.name().as_str() {
        "tailnum" => Arc::new(StringArray::from_iter_values((0..rows).map(registration))) as ArrayRef,
        _ => take(column, &picked, None).unwrap(),
    };
    let columns = known.schema_ref().fields().iter().zip(known.columns()).map(column).collect();
    let many = RecordBatch::try_new(known.schema(), columns).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(&planes).unwrap(), many.schema(), None).unwrap();
    writer.write(&many).unwrap();
    writer.close().unwrap();
}

/// The limit on file size stands for a full disk: a verb meets it in the same place and in the same way.
#[test]
fn a_full_disk_stops_a_backfill_with_a_clear_message_and_nothing_half_written() {
    const ROWS: u64 = 100_000;
    let project = project(GOOD);
    write_many_planes(&project, ROWS);
    project.succeed(&["apply"]);
    // In blocks of 512 bytes: at first not even the job can be entered, then the rows do not fit.
    for (blocks, words) in
        [(1, ["the registry's database failed", "error"]), (4_096, ["plane_profile@1", "File too large"])]
    {
        let output = project.run_after(&format!("trap '' XFSZ; ulimit -f {blocks}"), &["backfill"]);
        let (out, said) = super::project::texts(&output);
        assert_eq!(output.status.code(), Some(1), "{blocks} blocks: {out}{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{blocks} blocks: {said}");
        let kept = parquet_files(&project.path(".eadem/offline"));
        assert!(kept.is_empty(), "{blocks} blocks left {kept:?}");
        assert!(project.fail(&["materialize"]).contains("backfill it first"));
    }
    // With room again the job goes on, and every row is there once.
    let jobs = project.json(&["jobs", "list"]);
    let jobs: Vec<_> = jobs["jobs"].as_array().unwrap().iter().filter(|job| job["kind"] == "backfill").collect();
    let [job] = jobs.as_slice() else { panic!("one backfill was entered: {jobs:?}") };
    assert_eq!(job["state"], "failed");
    let job = project.json(&["jobs", "resume", job["id"].as_str().unwrap()]);
    assert_eq!(job["result"]["views"][0]["rows_stored"], ROWS, "{job}");
    let loaded = project.json(&["materialize"]);
    assert_eq!(loaded["result"]["views"][0]["rows"], ROWS, "{loaded}");
}

/// The data files below a folder.
fn parquet_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let files_of = |path: PathBuf| match path.is_dir() {
        true => parquet_files(&path),
        false if path.extension().is_some_and(|its| its == "parquet") => vec![path],
        false => Vec::new(),
    };
    entries.flat_map(|entry| files_of(entry.unwrap().path())).collect()
}

#[test]
fn a_view_that_cannot_be_read_fails_alone() {
    let tail_number = "\n[view.tail_number]\nentity = \"aircraft\"\nsource = \"planes\"\n\
                       transform = \"transforms/tail_number.wasm\"\n";
    let project = project(&format!("{GOOD}{tail_number}"));
    project.add_component("tail_number");
    project.succeed(&["apply"]);
    project.succeed(&["backfill"]);
    // The one view is online; the other is answered from its offline table, whose files are then destroyed.
    project.succeed(&["materialize", "plane_profile"]);
    let whole = project.json(&["get", "N14228", "--features", "seats,number"]);
    assert_eq!(whole["features"], serde_json::json!({ "seats": 149, "number": 14228 }));
    for file in parquet_files(&project.path(".eadem/offline/views/tail_number/v1")) {
        std::fs::write(file, b"no Parquet").unwrap();
    }
    let server = project.serve();
    let (status, reply) = server.get("/features/N14228?features=seats,number&include=metadata");
    assert_eq!(status, 200, "{reply}");
    assert_eq!(reply["features"], serde_json::json!({ "seats": 149, "number": null }));
    assert_eq!(reply["status"], serde_json::json!({ "number": "error" }));
    assert_eq!(reply["metadata"]["seats"]["store"], "online");
    assert_eq!(reply["metadata"]["number"]["store"], "offline");
    // A row that nobody could read is an error, and not one that is not there.
    let (_, metrics) = server.raw("GET", "/metrics", "Host: localhost\r\n", b"");
    let view = ("view", "tail_number@1");
    assert_eq!(sample(&metrics, "eadem_store_errors_total", &[view, ("store", "offline")]), 1.0);
    assert_eq!(sample(&metrics, "eadem_rows_read_total", &[view, ("store", "offline"), ("found", "false")]), 0.0);
}

#[test]
fn a_request_over_a_limit_is_refused_with_its_code() {
    let project = project(GOOD);
    project.succeed(&["apply"]);
    project.succeed(&["backfill", "--online"]);
    let limits = "[limits]\nbody_bytes_max = 2000\nfeatures_max = 3\nvalues_max = 5\nrequests_in_flight_max = 1\n";
    project.write("eadem.toml", limits);
    let server = project.serve();
    let ask = |features: &[&str], entities: usize| {
        let entity = serde_json::json!({ "tailnum": "N14228" });
        let body = serde_json::json!({ "features": features, "entities": vec![entity; entities] });
        let (status, reply) = server.post("/features/batch", &body);
        (status, reply["code"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(ask(&["seats", "maker"], 2), (200, String::new()));
    assert_eq!(ask(&["seats", "maker"], 3), (413, "too_many_values".to_owned()));
    assert_eq!(ask(&["seats", "maker", "engines", "family"], 1), (413, "too_many_features".to_owned()));
    assert_eq!(ask(&["seats"], 200), (413, "body_too_large".to_owned()));
    let (status, reply) = server.get("/features/N14228");
    assert_eq!((status, reply["code"].as_str()), (413, Some("too_many_features")), "{reply}");

    // An upload that is still to come holds the only place; that the server asks for it says that it does.
    let mut held = server.connect();
    let head = "POST /transforms HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                Expect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    held.write_all(head.as_bytes()).unwrap();
    let mut answers = BufReader::new(held.try_clone().unwrap());
    let mut line = String::new();
    answers.read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 100"), "{line}");
    let refused = server.send("GET", "/features/N14228?features=seats", "Host: localhost\r\n", b"");
    assert!(refused.status == 503 && refused.text().contains("overloaded"), "{}", refused.text());
    assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
    assert_eq!(server.get("/healthz").0, 200);
    held.write_all(b"{}").unwrap();
    let mut rest = String::new();
    answers.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("422 Unprocessable"), "{rest}");
    assert_eq!(server.get("/features/N14228?features=seats").0, 200);
}

#[test]
fn the_demo_makes_anew_only_what_it_made_and_nobody_uses() {
    let project = project(GOOD);
    project.succeed(&["apply"]);
    let (dir, from) = (project.path(""), super::project::root().join("demo"));
    let demo = ["demo", "--dir", dir.to_str().unwrap(), "--from", from.to_str().unwrap()];
    let said = project.fail(&demo);
    assert!(said.contains("was not made by the demo"), "{said}");
    project.write(".eadem-demo", "");
    let server = project.serve();
    let said = project.fail(&demo);
    assert!(said.contains(&server.address), "{said}");
    assert!(project.path("features/planes.toml").is_file());
    assert_eq!(server.get("/readyz").0, 200);
}
