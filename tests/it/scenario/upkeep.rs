//! Tables after their first commit, through the verbs: files that change, ranges computed anew, compaction, vacuum.

use std::path::Path;
use std::time::Instant;

use arrow::array::{RecordBatch, StringArray};
use arrow::datatypes::DataType;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value as Json, json};

use super::project::Project;

const SERVICE: &str = "[service.seats]\nfeatures = [\"plane_profile:seats\"]\n";
const SPINE: &str = "tailnum,timestamp\nN14228,2013-07-01T12:00:00Z\nN24211,2013-07-02T12:00:00Z\n";
const AS_OF: &str = "2014-01-01T00:00:00Z";

/// Registers a plane anew under another name; gives the number of all planes.
fn rename_plane(file: &Path, from: &str, to: &str) -> u64 {
    let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(file).unwrap()).unwrap();
    let schema = reader.schema().clone();
    let column = schema.index_of("tailnum").unwrap();
    let renamed = |batch: RecordBatch| {
        let names = arrow::compute::cast(batch.column(column), &DataType::Utf8).unwrap();
        let names = names.as_any().downcast_ref::<StringArray>().unwrap().iter();
        let names: StringArray = names.map(|name| if name == Some(from) { Some(to) } else { name }).collect();
        let mut columns = batch.columns().to_vec();
        columns[column] = arrow::compute::cast(&names, schema.field(column).data_type()).unwrap();
        RecordBatch::try_new(schema.clone(), columns).unwrap()
    };
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(|batch| renamed(batch.unwrap())).collect();
    let mut writer = ArrowWriter::try_new(std::fs::File::create(file).unwrap(), schema.clone(), None).unwrap();
    for batch in &batches {
        writer.write(batch).unwrap();
    }
    writer.close().unwrap();
    batches.iter().map(|batch| batch.num_rows() as u64).sum()
}

fn seats(project: &Project) -> Json {
    let reply = project.json(&["get", "N14228", "--service", "seats@1", "--timestamp", "2013-07-01T12:00:00Z"]);
    reply["features"]["seats"].clone()
}

fn current_epoch(project: &Project) -> Json {
    let status = project.json(&["online", "status"]);
    let views = status["views"].as_array().unwrap();
    views.iter().find(|view| view["state"] == "current").cloned().unwrap_or_default()
}

#[test]
fn a_changed_file_a_recomputed_range_a_compaction_and_a_vacuum_leave_training_sets_and_serving_right() {
    let project = Project::of_flights();
    project.write("features/seats.toml", SERVICE);
    project.write("spine.csv", SPINE);
    project.succeed(&["apply"]);
    project.succeed(&["backfill", "plane_profile", "airport_weather"]);
    project.succeed(&["materialize", "plane_profile", "--as-of", AS_OF]);
    let made =
        project.json(&["dataset", "create", "--service", "seats@1", "--spine", "spine.csv", "--out", "one.parquet"]);
    let dataset = made["id"].as_str().unwrap().to_owned();
    let before = seats(&project);
    assert!(before.is_number(), "{before}");
    let first = current_epoch(&project);

    // A plane has another name: nobody is served the old one any more.
    let planes = rename_plane(&project.path("data/planes.parquet"), "N14228", "N00000");
    let replaced = project.json(&["backfill", "plane_profile"]);
    let view = &replaced["backfill"]["result"]["views"][0];
    assert_eq!(view["files_replaced"][0], "planes.parquet", "{view}");
    assert_eq!((view["rows_removed"].as_u64(), view["rows_stored"].as_u64()), (Some(planes), Some(planes)), "{view}");
    assert_eq!(seats(&project), Json::Null);
    let second = current_epoch(&project);
    assert_eq!(second["epoch"], view["online"]["epoch"], "{replaced}");
    assert_ne!(second["epoch"], first["epoch"]);
    assert_eq!(
        (&second["complete_since"], &second["withdrawn_in"]),
        (&first["complete_since"], &Json::Null),
        "{second}"
    );

    // A range anew: as many rows come as go, and a view that is not served needs no epoch.
    let anew = [
        "backfill",
        "airport_weather",
        "--recompute",
        "--from",
        "2013-03-01T00:00:00Z",
        "--to",
        "2013-04-01T00:00:00Z",
    ];
    let anew = project.json(&anew);
    let view = &anew["backfill"]["result"]["views"][0];
    assert!(view["rows_stored"].as_u64().unwrap() > 0, "{view}");
    assert_eq!((&view["rows_removed"], &view["online"]), (&view["rows_stored"], &Json::Null), "{view}");
    let wrong = project.fail(&["backfill", "airport_weather", "--recompute", "--from", AS_OF, "--to", AS_OF]);
    assert!(wrong.contains("`from` must be before `to`"), "{wrong}");

    // Nothing to put together in one day of planes; two files of a day of weather become one.
    let compacted = project.json(&["offline", "compact"]);
    assert_eq!(compacted["state"], "succeeded", "{compacted}");
    let wrong = project.fail(&["offline", "compact", "nothing"]);
    assert!(wrong.contains("nothing"), "{wrong}");

    // What nobody needs goes at once; what the training set was made of stays.
    let dry = project.json(&["offline", "vacuum", "--retain", "0s", "--dry-run"]);
    let deleted = project.json(&["offline", "vacuum", "--retain", "0s"]);
    assert_eq!(dry["result"]["bytes_deleted"], deleted["result"]["bytes_deleted"], "{dry} {deleted}");
    assert!(deleted["result"]["files_deleted"].as_u64().unwrap() > 0, "{deleted}");
    let places = deleted["result"]["places"].as_array().unwrap();
    let planes = places.iter().find(|place| place["place"] == "views/plane_profile/v1").unwrap();
    assert!(planes["files_spared"].as_u64().unwrap() > 0, "{planes}");
    let again = project.json(&["offline", "vacuum", "--retain", "0s"]);
    assert_eq!(again["result"]["files_deleted"], 0, "{again}");
    let wrong = project.fail(&["offline", "vacuum", "--retain", "soon"]);
    assert!(wrong.contains("retain"), "{wrong}");
    let rebuilt = project.json(&["dataset", "rebuild", &dataset, "--out", "again.parquet"]);
    assert_eq!(rebuilt["content_digest"], made["content_digest"]);
    let read = |name: &str| std::fs::read(project.path(name)).unwrap();
    assert_eq!(read("one.parquet"), read("again.parquet"));
    assert_eq!(seats(&project), Json::Null);
}

/// Between the commit that takes rows out and the epoch without them, all answers are of the old state: those that the online
/// store proves, and those that history gives.
#[test]
fn readers_see_one_state_until_a_new_epoch_takes_over() {
    let project = Project::of_flights();
    project.write("features/seats.toml", SERVICE);
    project.succeed(&["apply"]);
    project.succeed(&["backfill", "plane_profile"]);
    project.succeed(&["materialize", "plane_profile", "--as-of", AS_OF]);
    let server = project.serve();
    // Of each plane at an instant that lies before what the online store proves, and at one that does not.
    let seats = || {
        let reads = ["N14228", "N00000"].map(|plane| {
            ["2005-01-01T00:00:00Z", "2013-07-01T00:00:00Z"].map(|at| {
                let path = format!("/features/{plane}?service=seats@1&timestamp={at}&include=metadata");
                let (status, reply) = server.get(&path);
                assert_eq!(status, 200, "{reply}");
                (reply["features"]["seats"].is_number(), reply["metadata"]["seats"]["store"].clone())
            })
        });
        let stores = reads.iter().all(|[before, since]| (&before.1, &since.1) == (&json!("offline"), &json!("online")));
        assert!(stores, "one answer of each is proved online, the other is not: {reads:?}");
        reads.map(|reads| reads.map(|(is_there, _)| is_there))
    };
    assert_eq!(seats(), [[true, true], [false, false]]);

    // No new epoch can be made: its file's place is taken.
    rename_plane(&project.path("data/planes.parquet"), "N14228", "N00000");
    let obstacles = (0..20).map(|number| project.path(&format!(".eadem/online/tables/{number}.redb")));
    let obstacles: Vec<_> = obstacles.filter(|obstacle| std::fs::create_dir(obstacle).is_ok()).collect();
    let (status, job) = server.post("/jobs/backfill", &json!({ "views": ["plane_profile"] }));
    assert_eq!(status, 202, "{job}");
    let path = format!("/jobs/{}", job["id"].as_str().unwrap());
    let end = || {
        let (_, events) = server.raw("GET", &format!("{path}/events"), "Host: localhost\r\n", b"");
        assert!(events.contains("event: end"), "{events}");
        server.get(&path).1
    };
    let failed = end();
    assert_eq!(failed["state"], "failed", "{failed}");
    assert!(failed["error"].as_str().unwrap().contains("still serves rows that it took out"), "{failed}");
    let (_, online) = server.get("/online");
    assert_eq!((&online["views"][0]["offline_commit"], &online["views"][0]["withdrawn_in"]), (&json!(1), &json!(2)));
    assert_eq!(seats(), [[true, true], [false, false]], "answers are of two states");

    obstacles.iter().for_each(|obstacle| std::fs::remove_dir(obstacle).unwrap());
    let (status, resumed) = server.post(&format!("{path}/resume"), &json!({}));
    assert_eq!(status, 202, "{resumed}");
    let done = end();
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_eq!(seats(), [[false, false], [true, true]]);
    let (_, online) = server.get("/online");
    let current = online["views"].as_array().unwrap().iter().find(|view| view["state"] == "current").unwrap();
    assert_eq!((&current["offline_commit"], &current["withdrawn_in"]), (&json!(2), &Json::Null), "{online}");
}

/// Writes rows of a Parquet file, from one number to another, into a file of their own.
fn write_rows(from: &Path, rows: std::ops::Range<usize>, to: &Path) {
    let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(from).unwrap()).unwrap();
    let schema = reader.schema().clone();
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    let whole = arrow::compute::concat_batches(&schema, &batches).unwrap();
    let end = rows.end.min(whole.num_rows());
    let mut writer = ArrowWriter::try_new(std::fs::File::create(to).unwrap(), schema, None).unwrap();
    writer.write(&whole.slice(rows.start, end - rows.start)).unwrap();
    writer.close().unwrap();
}

#[test]
fn what_came_since_is_merged_into_what_is_served_and_answers_as_a_whole_load_does() {
    const ROWS: usize = 26_115;
    let project = Project::of_flights();
    let sources = std::fs::read_to_string(project.path("features/sources.toml")).unwrap();
    project.write("features/sources.toml", sources.replace("data/weather.parquet", "data/weather/"));
    project.write("features/weather.toml", "[service.weather]\nfeatures = [\"airport_weather:*\"]\n");
    std::fs::create_dir_all(project.path("data/weather")).unwrap();
    let part = |number: usize| project.path(&format!("data/weather/part-{number}.parquet"));
    let rows = [0..ROWS / 2, ROWS / 2..ROWS - 500, ROWS - 500..ROWS];
    write_rows(&project.path("data/weather.parquet"), rows[0].clone(), &part(0));
    project.succeed(&["apply"]);
    let backfill = || project.succeed(&["backfill", "airport_weather"]);
    let load = |how: &[&str]| {
        let verb: Vec<&str> = ["materialize", "airport_weather", "--as-of", AS_OF].iter().chain(how).copied().collect();
        let job = project.json(&verb);
        job["result"]["views"][0].clone()
    };
    let answers = || -> Vec<Json> {
        let ask = |(airport, at): (&str, &str)| {
            let reply = project.json(&["get", airport, "--service", "weather@1", "--timestamp", at]);
            json!([reply["features"], reply["status"]])
        };
        let times = ["2013-03-01T12:20:00Z", "2013-08-11T23:59:00Z", "2013-12-30T17:00:00Z"];
        times.iter().flat_map(|at| ["EWR", "JFK", "LGA"].map(|airport| ask((airport, at)))).collect()
    };
    backfill();
    let first = load(&["--incremental"]);
    assert_eq!(first["incremental"], false, "there was no epoch yet: {first}");

    write_rows(&project.path("data/weather.parquet"), rows[1].clone(), &part(1));
    backfill();
    let second = load(&["--incremental"]);
    assert_eq!((&second["incremental"], &second["epoch"]), (&json!(true), &first["epoch"]), "{second}");
    assert_eq!(second["rows"], json!(rows[1].len()), "{second}");
    assert!(second["offline_commit"].as_u64() > first["offline_commit"].as_u64(), "{second}");
    let nothing_new = load(&["--incremental"]);
    assert_eq!((&nothing_new["incremental"], &nothing_new["rows"]), (&json!(true), &json!(0)), "{nothing_new}");

    // Also after files were put together.
    write_rows(&project.path("data/weather.parquet"), rows[2].clone(), &part(2));
    backfill();
    project.succeed(&["offline", "compact", "airport_weather"]);
    assert_eq!(load(&["--incremental"])["incremental"], true);
    let merged = answers();
    assert!(merged.iter().any(|answer| answer[0]["visibility_km"].is_number()), "{merged:?}");
    let whole = load(&[]);
    assert_eq!((&whole["incremental"], whole["epoch"].as_u64() > first["epoch"].as_u64()), (&json!(false), true));
    assert_eq!(answers(), merged);

    // More history than the epoch has, and rows that were taken out, need a new one.
    let earlier = ["materialize", "airport_weather", "--incremental", "--as-of", "2013-12-01T00:00:00Z"];
    assert_eq!(project.json(&earlier)["result"]["views"][0]["incremental"], false);
    write_rows(&project.path("data/weather.parquet"), rows[2].start..ROWS - 100, &part(2));
    backfill();
    let renewed = load(&["--incremental"]);
    assert_eq!(renewed["offline_commit"], current_epoch(&project)["offline_commit"], "{renewed}");
    assert_eq!(current_epoch(&project)["withdrawn_in"], Json::Null);
}

#[test]
fn a_load_keeps_to_the_pace_that_it_is_given() {
    let mut project = Project::of_flights();
    project.succeed(&["apply"]);
    project.succeed(&["backfill", "plane_profile"]);
    let materialize = |project: &Project, more: &[&str]| {
        let began = Instant::now();
        let job = project.json(&[&["materialize", "plane_profile"], more].concat());
        let rows = job["result"]["views"][0]["rows"].as_f64().unwrap();
        assert!(rows > 3_000.0, "{job}");
        (job, rows, began.elapsed().as_secs_f64())
    };
    // The first tenth of a second is not waited for.
    let (job, rows, took_s) = materialize(&project, &["--rows-per-s", "1000"]);
    assert!(took_s >= rows / 1_000.0 - 0.2, "{rows} rows in {took_s} s: {job}");
    assert_eq!(job["spec"]["rows_per_s_max"], 1_000);
    // A setting says it for all, and a job for itself.
    project.variables.push(("EADEM_JOBS_MATERIALIZE_ROWS_PER_S_MAX", "50".to_owned()));
    let (job, rows, took_s) = materialize(&project, &["--rows-per-s", "0"]);
    assert!(took_s < rows / 50.0, "{rows} rows in {took_s} s: {job}");
    project.variables[0].1 = "1500".to_owned();
    let (job, rows, took_s) = materialize(&project, &[]);
    assert!(took_s >= rows / 1_500.0 - 0.2, "{rows} rows in {took_s} s: {job}");
    // Who calls it off does not wait for the pace either.
    project.variables.clear();
    let server = project.serve();
    let spec = json!({ "views": ["plane_profile"], "rows_per_s_max": 1 });
    let (status, job) = server.post("/jobs/materialize", &spec);
    assert_eq!(status, 202, "{job}");
    let (status, ended) = server.delete(&format!("/jobs/{}", job["id"].as_str().unwrap()));
    assert_eq!((status, ended["state"].as_str()), (200, Some("cancelled")), "{ended}");
    let refused = server.post("/jobs/materialize", &json!({ "views": ["plane_profile"], "rows_per_s_max": -1 }));
    assert_eq!(refused.0, 400, "{refused:?}");
    let epochs = server.get("/online").1;
    assert_eq!(epochs["views"].as_array().map(Vec::len), Some(1), "what was called off is gone: {epochs}");
}
