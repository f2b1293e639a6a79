//! The loop of the demonstration, and what a model may ask of it. One project for all: its year is loaded once.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::{Arc, OnceLock};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, TimestampMicrosecondArray, UInt64Array};
use arrow::compute::{concat_batches, take};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use arrow::ipc::reader::StreamReader;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value as Json, json};

use super::project::{Project, Server, texts};

struct Loaded {
    project: Project,
    server: Server,
}

const SERVICE: &str = "departure_delay@1";

/// The demonstration's project, loaded and served until the tests end.
fn loaded() -> &'static Loaded {
    static LOADED: OnceLock<Loaded> = OnceLock::new();
    LOADED.get_or_init(|| {
        let project = Project::of_flights();
        // One entity, no role: what GET can serve by the service's name.
        let facts = "[service.plane_facts]\nfeatures = [\"plane_profile:seats\", \"plane_profile:maker\"]\n";
        project.write("features/plane_facts.toml", facts);
        project.succeed(&["apply"]);
        let job = project.json(&["backfill"]);
        assert_eq!(job["backfill"]["state"], "succeeded");
        project.succeed(&["materialize", "--as-of", "2014-01-01T00:00:00Z"]);
        let server = project.serve_until_exit();
        Loaded { project, server }
    })
}

fn get(path: &str) -> Json {
    let (status, reply) = loaded().server.get(path);
    assert_eq!(status, 200, "{path}: {reply}");
    reply
}

fn problem(path: &str) -> (u16, String, String) {
    let (status, reply) = loaded().server.get(path);
    (
        status,
        reply["code"].as_str().unwrap_or_default().to_owned(),
        reply["detail"].as_str().unwrap_or_default().to_owned(),
    )
}

#[test]
fn one_entity_by_path_and_by_query_gets_the_same_answer() {
    let by_path = get("/features/N14228?features=seats,maker");
    assert_eq!(by_path["entity_id"], "N14228");
    assert_eq!(by_path["features"], json!({ "seats": 149, "maker": "boeing" }));
    assert!(by_path.get("status").is_none(), "{by_path}");
    let by_query = get("/features?entity_id=N14228&features=seats,maker");
    assert_eq!(by_path["features"], by_query["features"]);
}

#[test]
fn a_past_instant_sees_only_what_was_known_then() {
    // The report of 06:00 is out at 06:15.
    let before = get("/features/EWR?features=temperature_c&timestamp=2013-01-01T06:14:59Z&include=metadata");
    let after = get("/features/EWR?features=temperature_c&timestamp=2013-01-01T06:15:00Z&include=metadata");
    assert_eq!(before["status"]["temperature_c"], "missing");
    assert_eq!(after["metadata"]["temperature_c"]["event_time"], "2013-01-01T06:00:00Z");
    assert_eq!(after["metadata"]["temperature_c"]["store"], "online");
    assert_eq!(after["timestamp"], "2013-01-01T06:15:00Z");
}

/// A microsecond before an instant of a whole minute, which is not the first one of its day.
fn microsecond_before(instant: &str) -> String {
    let (day, time) = instant.split_once('T').unwrap();
    let minutes = minutes_of_day(time) - 1;
    format!("{day}T{:02}:{:02}:59.999999Z", minutes / 60, minutes % 60)
}

fn minutes_of_day(time: &str) -> u32 {
    let [hour, minute, second] = time.split(':').collect::<Vec<_>>()[..] else { panic!("{time} is no time") };
    assert_eq!(second, "00Z", "{time} is no whole minute");
    hour.parse::<u32>().unwrap() * 60 + minute.parse::<u32>().unwrap()
}

#[test]
fn a_flight_is_known_from_its_landing_on_and_not_when_it_is_due_to_leave() {
    let last_leg = |at: &str| {
        let reply = get(&format!("/features/N725MQ?features=landed_at,block_minutes&timestamp={at}&include=metadata"));
        assert_eq!(reply["metadata"]["landed_at"]["event_time"], reply["features"]["landed_at"], "{reply}");
        let landed_at = reply["features"]["landed_at"].as_str().unwrap_or_else(|| panic!("{reply}")).to_owned();
        (landed_at, reply["features"]["block_minutes"].as_f64().unwrap() as u32)
    };
    let (landing, block_minutes) = last_leg("2013-06-11T23:59:00Z");
    assert!(landing.starts_with("2013-06-11T"), "{landing}");
    let landing_minutes = minutes_of_day(&landing[11..]);
    let due = landing_minutes.checked_sub(block_minutes).unwrap_or_else(|| panic!("{landing} - {block_minutes} min"));
    let due = format!("2013-06-11T{:02}:{:02}:00Z", due / 60, due % 60);

    assert_eq!(last_leg(&landing).0, landing);
    for earlier in [microsecond_before(&landing), due] {
        let (seen, _) = last_leg(&earlier);
        assert!(seen < earlier, "at {earlier} the landing at {seen} is known");
    }
}

#[test]
fn an_old_value_is_expired_then_missing_and_a_default_keeps_its_status() {
    let features = "/features/EWR?features=temperature_c,gusty";
    let live = get(features);
    assert_eq!(live["status"], json!({ "temperature_c": "missing", "gusty": "missing" }));
    assert_eq!(live["features"], json!({ "temperature_c": null, "gusty": false }));
    // The year's last report is of 2013-12-30T23:00Z; TTL 3 h, horizon 3 h.
    let reports = get(&format!("{features}&timestamp=2013-12-30T23:20:00Z&include=metadata"));
    let last = reports["metadata"]["gusty"]["event_time"].as_str().unwrap().to_owned();
    assert_eq!(last, "2013-12-30T23:00:00Z");
    let expired = get(&format!("{features}&timestamp=2013-12-31T02:00:00Z"));
    assert_eq!(expired["status"]["gusty"], "expired");
    let missing = get(&format!("{features}&timestamp=2013-12-31T05:00:00Z"));
    assert_eq!(missing["status"]["gusty"], "missing");
}

#[test]
fn an_unknown_entity_id_is_missing_and_not_an_error() {
    let reply = get("/features/NOBODY?features=seats");
    assert_eq!(reply["features"], json!({ "seats": null }));
    assert_eq!(reply["status"], json!({ "seats": "missing" }));
}

#[test]
fn unknown_names_are_404_and_say_what_is_near() {
    let (status, code, detail) = problem("/features/N14228?features=seets");
    assert_eq!((status, code.as_str()), (404, "unknown_feature"));
    assert!(detail.contains("seats"), "{detail}");
    assert_eq!(problem("/features/N14228?service=nothing").0, 404);
    assert_eq!(problem("/features/N14228?features=seats&entity=ship").0, 404);
    assert_eq!(problem("/features/N14228?features=plane_profile@9:seats").0, 404);
    assert_eq!(problem("/nowhere").1, "unknown_route");
}

#[test]
fn malformed_requests_are_400_with_a_code() {
    for (path, code) in [
        ("/features/N14228?features=seats&timestamp=yesterday", "malformed_timestamp"),
        ("/features/N14228?features=seats&timestamp=2013-01-01", "malformed_timestamp"),
        ("/features/N14228?features=seats&colour=red", "unknown_parameter"),
        ("/features/N14228?features=seats&features=maker", "repeated_parameter"),
        ("/features/N14228?features=seats,,maker", "malformed_request"),
        ("/features/N14228?features=seats&service=departure_delay", "malformed_request"),
        ("/features/%FF?features=seats", "malformed_key"),
        ("/features?features=seats", "missing_key"),
        ("/features/N14228?service=departure_delay", "needs_batch"),
        ("/features/N14228", "ambiguous_entity"),
    ] {
        let (status, found, detail) = problem(path);
        assert_eq!((status, found.as_str()), (400, code), "{path}: {detail}");
    }
    for (path, code) in [
        ("/features/N14228?features=hour_utc&request.scheduled_at=noon", "malformed_request_field"),
        ("/features/N14228?features=hour_utc&request.distance=1", "missing_request_field"),
        ("/features/N14228?features=hour_utc&request.colour=red", "unknown_request_field"),
        ("/features/EWR?features=route", "malformed_key"),
        ("/features/EWR%2CIAH?features=route", "malformed_key"),
    ] {
        let (status, found, detail) = problem(path);
        assert_eq!((status, found.as_str()), (400, code), "{path}: {detail}");
    }
    let long = "N".repeat(2_000);
    assert_eq!(problem(&format!("/features/{long}?features=seats")).0, 414);
}

#[test]
fn a_path_that_is_no_text_is_a_problem_document() {
    let paths = [
        "/jobs/%FF",
        "/jobs/%FF/events",
        "/datasets/%FF",
        "/transforms/%FF",
        "/registry/views/%FF",
        "/lineage/view/%FF",
    ];
    for path in paths {
        let reply = loaded().server.send("GET", path, "Host: localhost\r\n", b"");
        assert!(reply.head.contains("content-type: application/problem+json"), "{path}: {}", reply.head);
        let problem: Json = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!((reply.status, problem["code"].as_str()), (400, Some("malformed_path")), "{path}: {problem}");
    }
}

#[test]
fn one_entity_takes_request_fields_in_the_query() {
    let reply = get("/features/N14228?features=hour_utc,log_distance,seats&timestamp=2013-07-01T12:00:00Z\
                     &request.scheduled_at=2013-07-01T15:00:00%2B02:00&request.distance=1400");
    assert_eq!(reply["features"]["hour_utc"], 13, "{reply}");
    assert!(reply["features"]["log_distance"].as_f64().unwrap() > 0.0, "{reply}");
    assert_eq!(reply["features"]["seats"], 149);
}

#[test]
fn one_entity_can_be_asked_for_by_a_service() {
    let reply = get("/features/N14228?service=plane_facts");
    let pinned = get("/features?entity_id=N14228&service=plane_facts@1");
    assert_eq!(reply["features"], json!({ "seats": 149, "maker": "boeing" }));
    assert_eq!(reply["features"], pinned["features"]);
}

#[test]
fn keys_are_taken_apart_at_commas_and_decoded_after() {
    let path = "features=route&timestamp=2013-06-01T00:00:00Z";
    let by_path = get(&format!("/features/EWR,IAH?{path}"));
    assert_eq!(by_path["features"], json!({ "route": "EWR-IAH" }), "{by_path}");
    assert_eq!(by_path["entity_id"], "EWR,IAH");
    assert_eq!(get(&format!("/features?entity_id=EWR,IAH&{path}"))["features"], by_path["features"]);
    for (written, meant) in [
        ("Z%C3%BCrich%20%F0%9F%9B%AB", "Zürich 🛫"),
        ("N%2F1", "N/1"),
        ("N%2C1", "N,1"),
        ("N%251", "N%1"),
        ("batch%3F", "batch?"),
    ] {
        for path in
            [format!("/features/{written}?features=seats"), format!("/features?entity_id={written}&features=seats")]
        {
            let reply = get(&path);
            assert_eq!(reply["entity_id"], meant, "{path}");
            assert_eq!(reply["status"], json!({ "seats": "missing" }), "{path}");
        }
    }
}

#[test]
fn each_row_of_a_batch_can_have_its_own_time() {
    let body = json!({
        "features": ["temperature_c"],
        "entities": [{ "airport": "EWR" }, { "airport": "EWR" }, { "airport": "JFK" }],
        "timestamps": ["2013-01-01T06:14:59Z", "2013-01-01T06:15:00Z", "2013-01-01T08:15:00+02:00"],
    });
    let (status, reply) = loaded().server.post("/features/batch", &body);
    assert_eq!(status, 200, "{reply}");
    let results = reply["results"].as_array().unwrap();
    assert_eq!(results[0]["status"], json!({ "temperature_c": "missing" }));
    for (row, instant) in [(1, "2013-01-01T06:15:00Z"), (2, "2013-01-01T06:15:00Z")] {
        assert_eq!(results[row]["timestamp"], instant);
        assert!(results[row]["features"]["temperature_c"].is_number(), "{reply}");
    }
    for timestamps in [json!(["2013-01-01T06:15:00Z"]), json!(["2013-01-01T06:15:00Z", "now", "now"])] {
        let mut malformed = body.clone();
        malformed["timestamps"] = timestamps;
        let (status, reply) = loaded().server.post("/features/batch", &malformed);
        assert_eq!((status, reply["code"].as_str()), (400, Some("malformed_timestamp")), "{reply}");
    }
}

#[test]
fn an_arrow_reply_has_each_key_once_and_the_values_of_the_json() {
    // `origin` is the role of an airport, and a join key of the route.
    let body = json!({
        "service": SERVICE,
        "entities": [
            { "tailnum": "N14228", "origin": "EWR", "dest": "IAH" },
            { "tailnum": "nobody", "origin": "JFK", "dest": "LAX" },
        ],
        "request": [{ "scheduled_at": "2013-07-01T13:00:00Z" }, { "scheduled_at": "2013-07-01T14:00:00Z" }],
        "timestamp": "2013-07-01T12:00:00Z",
    });
    let headers = "Host: localhost\r\nAccept: application/vnd.apache.arrow.stream\r\n";
    let reply = loaded().server.send("POST", "/features/batch", headers, body.to_string().as_bytes());
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(reply.head.contains("content-type: application/vnd.apache.arrow.stream"), "{}", reply.head);
    let batches: Vec<RecordBatch> =
        StreamReader::try_new(reply.body.as_slice(), None).unwrap().map(Result::unwrap).collect();
    let [batch] = batches.as_slice() else { panic!("{} batches", batches.len()) };
    let schema = batch.schema();
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let mut different = names.clone();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), names.len(), "a name stands twice: {names:?}");
    let text = |name: &str, row: usize| batch.column_by_name(name).unwrap().as_string::<i32>().value(row).to_owned();
    assert_eq!([text("tailnum", 0), text("origin", 0), text("dest", 1)], ["N14228", "EWR", "LAX"]);

    let (_, as_json) = loaded().server.post("/features/batch", &body);
    let entries = get("/registry/services/departure_delay@1")["entries"].as_array().unwrap().len();
    assert_eq!(names.len(), 3 + 1 + 2 * entries, "{names:?}");
    let results = as_json["results"].as_array().unwrap();
    assert_eq!(batch.num_rows(), results.len());
    let seats = batch.column_by_name("seats").unwrap().as_primitive::<Int64Type>();
    assert_eq!((seats.value(0), seats.is_null(1)), (149, true));
    assert_eq!(results[0]["features"]["seats"], 149);
    let statuses =
        arrow::compute::cast(batch.column_by_name("seats__status").unwrap(), &arrow::datatypes::DataType::Utf8);
    let statuses = statuses.unwrap();
    assert_eq!([statuses.as_string::<i32>().value(0), statuses.as_string::<i32>().value(1)], ["present", "missing"]);
}

#[test]
fn a_batch_answers_in_request_order_with_roles_and_request_fields() {
    let body = json!({
        "features": ["plane_profile:seats", "plane_profile:size_class"],
        "entities": [{ "tailnum": "N14228" }, { "tailnum": "nobody" }, { "tailnum": "N14228" }],
    });
    let (status, reply) = loaded().server.post("/features/batch", &body);
    assert_eq!(status, 200, "{reply}");
    let results = reply["results"].as_array().unwrap();
    assert_eq!(results.len(), 3);
    assert_eq!(results[0]["features"]["plane_profile:seats"], 149);
    assert_eq!(results[1]["status"]["plane_profile:seats"], "missing");
    assert_eq!(results[0]["features"], results[2]["features"]);

    let one = json!({ "tailnum": "N14228", "origin": "EWR", "dest": "IAH" });
    let body = json!({
        "service": "departure_delay@1",
        "entities": [one],
        "request": [{ "scheduled_at": "2013-07-01T13:00:00Z", "distance": null }],
        "timestamp": "2013-07-01T12:00:00Z",
    });
    let (status, reply) = loaded().server.post("/features/batch", &body);
    assert_eq!(status, 200, "{reply}");
    let features = &reply["results"][0]["features"];
    assert_eq!(features["hour_utc"], 13);
    assert_eq!(features["dest_altitude_m"].as_f64().map(|metres| metres.round()), Some(30.0));
    assert_eq!(features["origin_place"].as_array().unwrap().len(), 8);
    assert_eq!(reply["results"][0]["status"]["log_distance"], "null");
}

#[test]
fn malformed_batches_are_4xx_and_name_row_and_field() {
    let cases = [
        (json!({ "entities": [] }), 400, "malformed_request"),
        (json!({ "features": ["seats"], "entities": [{ "tail": "N1" }] }), 400, "unknown_key"),
        (json!({ "features": ["seats"], "entities": [{}] }), 400, "missing_key"),
        (json!({ "features": ["seats"], "entities": [{ "tailnum": null }] }), 400, "malformed_key"),
        (json!({ "features": ["seats"], "entities": [{ "tailnum": 7 }] }), 400, "malformed_key"),
        (json!({ "features": ["seats"], "entities": [{ "tailnum": "N".repeat(9_000) }] }), 422, "key_too_long"),
        (
            json!({ "features": ["seats"], "entities": [{ "tailnum": "N1" }], "timestamps": [] }),
            400,
            "malformed_timestamp",
        ),
        (
            json!({ "features": ["seats"], "entities": [{ "tailnum": "N1" }], "request": [{ "a": 1 }] }),
            400,
            "unknown_request_field",
        ),
        (
            json!({ "features": ["hour_utc"], "entities": [{ "tailnum": "N1" }], "request": [{}] }),
            400,
            "missing_request_field",
        ),
        (json!({ "features": ["seats"], "entities": "all" }), 400, "malformed_json"),
        (
            json!({ "features": ["seats"], "entities": vec![json!({ "tailnum": "N1" }); 10_001] }),
            413,
            "too_many_entities",
        ),
    ];
    for (body, status, code) in cases {
        let (found, reply) = loaded().server.post("/features/batch", &body);
        let text: String = body.to_string().chars().take(100).collect();
        assert_eq!((found, reply["code"].as_str().unwrap_or_default()), (status, code), "{text}: {reply}");
    }
    let (status, _) = loaded().server.raw("POST", "/features/batch", "Host: localhost\r\n", b"{\"features\":");
    assert_eq!(status, 400);
}

#[test]
fn a_malformed_request_field_is_refused_and_a_null_for_a_required_one_gives_status_null() {
    let body = |scheduled_at: Json| {
        json!({
            "features": ["hour_utc"],
            "entities": [{ "tailnum": "N14228" }],
            "request": [{ "scheduled_at": scheduled_at }],
        })
    };
    let (status, reply) = loaded().server.post("/features/batch", &body(json!("noon")));
    assert_eq!((status, reply["code"].as_str()), (400, Some("malformed_request_field")), "{reply}");
    let (status, reply) = loaded().server.post("/features/batch", &body(Json::Null));
    assert_eq!(status, 200, "{reply}");
    assert_eq!(reply["results"][0]["status"], json!({ "hour_utc": "null" }));
}

#[test]
fn other_hosts_and_origins_are_turned_away() {
    let path = "/features/N14228?features=seats";
    assert_eq!(loaded().server.raw("GET", path, "Host: evil.example\r\n", b"").0, 421);
    assert_eq!(loaded().server.raw("GET", path, "Host: localhost\r\nOrigin: https://evil.example\r\n", b"").0, 403);
    assert_eq!(loaded().server.raw("GET", path, "Host: 127.0.0.1\r\nOrigin: http://localhost:3000\r\n", b"").0, 200);
}

#[test]
fn every_route_of_the_document_exists_and_refuses_a_wrong_method_and_other_hosts() {
    let (_, document) = loaded().server.get("/openapi.json");
    for (path, operations) in document["paths"].as_object().unwrap() {
        let concrete = path.replace("{entity_id}", "x").replace("{kind}", "views").replace(['{', '}'], "");
        let (status, body) = loaded().server.raw("PATCH", &concrete, "Host: localhost\r\n", b"");
        assert_eq!(status, 405, "{path}: {body}");
        assert!(!operations.as_object().unwrap().is_empty());
        for method in operations.as_object().unwrap().keys() {
            let method = method.to_uppercase();
            let (status, body) = loaded().server.raw(&method, &concrete, "Host: evil.example\r\n", b"");
            assert_eq!(status, 421, "{method} {path}: {body}");
        }
    }
}

#[test]
fn verbs_go_through_the_server_while_it_runs() {
    let loaded = loaded();
    let reply = loaded.project.json(&["get", "N14228", "--features", "seats"]);
    assert_eq!(reply["features"]["seats"], 149);
    let status = loaded.project.json(&["online", "status"]);
    let rows = status["views"].as_array().unwrap().iter().find(|view| view["view"] == "plane_profile@1").unwrap();
    assert_eq!((rows["rows"].as_u64(), rows["state"].as_str()), (Some(3322), Some("current")));
}

#[test]
fn a_second_server_on_the_same_directory_is_refused() {
    let loaded = loaded();
    let said = loaded.project.fail(&["serve", "--listen", "127.0.0.1:0"]);
    assert!(said.contains(&loaded.server.address), "{said}");
}

#[test]
fn the_command_line_takes_any_id_and_any_value() {
    let project = &loaded().project;
    for id in ["batch", "..", "N/1", "a b", "Zürich"] {
        let reply = project.json(&["get", id, "--features", "seats"]);
        assert_eq!((reply["entity_id"].as_str(), reply["status"]["seats"].as_str()), (Some(id), Some("missing")));
    }
    let get = |key: &str, distance: &str| {
        let (key, distance) = (format!("tailnum={key}"), format!("distance={distance}"));
        let request = ["--request", "scheduled_at=2013-07-01T13:00:00Z", "--request", distance.as_str()];
        let mut verb = vec!["get", "--key", key.as_str(), "--features", "log_distance"];
        verb.extend(request);
        project.run(&[&verb[..], &["--output", "json"]].concat())
    };
    let reply: Json = serde_json::from_slice(&get("\"4711\"", "null").stdout).unwrap();
    assert_eq!((&reply["entity"]["tailnum"], &reply["status"]["log_distance"]), (&json!("4711"), &json!("null")));
    for (key, distance, code) in [("4711", "1", "malformed_key"), ("N1", "true", "malformed_request_field")] {
        let (_, err) = texts(&get(key, distance));
        assert!(err.contains(code), "{key}, {distance}: {err}");
    }
}

/// Every so many departures of the year, each as it stood an hour before schedule.
fn write_spine(project: &Project, name: &str) -> usize {
    const EVERY: usize = 1_683;
    const MINUTE_US: i64 = 60_000_000;
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(project.path("data/flights.parquet")).unwrap());
    let reader = reader.unwrap();
    let schema = reader.schema().clone();
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    let flights = concat_batches(&schema, &batches).unwrap();
    let tailnums = flights.column_by_name("tailnum").unwrap();
    let picked = (0..flights.num_rows()).step_by(EVERY).filter(|row| tailnums.is_valid(*row));
    let picked = UInt64Array::from_iter_values(picked.map(|row| row as u64));
    let column = |name: &str| take(flights.column_by_name(name).unwrap(), &picked, None).unwrap();
    let (hours, minutes) = (column("time_hour"), column("minute"));
    let hours = hours.as_primitive::<TimestampMicrosecondType>();
    let minutes = minutes.as_primitive::<Int64Type>();
    let instants = |before_us: i64| {
        let instant = |row: usize| hours.value(row) + minutes.value(row) * MINUTE_US - before_us;
        let instants = TimestampMicrosecondArray::from_iter_values((0..hours.len()).map(instant));
        Arc::new(instants.with_timezone("UTC")) as ArrayRef
    };
    let spine = RecordBatch::try_from_iter([
        ("tailnum", column("tailnum")),
        ("origin", column("origin")),
        ("dest", column("dest")),
        ("distance", column("distance")),
        ("scheduled_at", instants(0)),
        ("timestamp", instants(60 * MINUTE_US)),
    ])
    .unwrap();
    let mut writer = ArrowWriter::try_new(File::create(project.path(name)).unwrap(), spine.schema(), None).unwrap();
    writer.write(&spine).unwrap();
    writer.close().unwrap();
    spine.num_rows()
}

#[test]
fn what_is_served_is_what_was_trained_and_a_planted_bit_is_found() {
    let project = &loaded().project;
    let rows = write_spine(project, "departures.parquet");
    let audit = ["audit", "--service", SERVICE, "--spine", "departures.parquet"];
    let report = project.json(&audit);
    let service = get("/registry/services/departure_delay@1");
    let features = service["entries"].as_array().unwrap();
    let number = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("{name}: {report}"));
    assert_eq!(number("compared"), (rows * features.len()) as u64);
    assert_eq!(number("online") + number("offline"), number("compared"));
    assert_eq!((number("differing"), number("differing_bits")), (0, 0), "{report}");
    assert!(number("online") * 10 >= number("compared") * 9, "{report}");
    assert!(number("online") > 0 && report["statuses"]["present"].as_u64() > Some(number("compared") / 2), "{report}");

    let audited = features.iter().map(|feature| feature["data_type"].as_str().unwrap());
    let audited: BTreeSet<&str> =
        audited.map(|name| if name.starts_with("vector") { "vector" } else { name }).collect();
    let of_the_contract = [
        "boolean",
        "int64",
        "float32",
        "float64",
        "utf8",
        "binary",
        "timestamp",
        "vector",
        "list(int64)",
        "list(float64)",
        "list(utf8)",
    ];
    assert_eq!(audited, BTreeSet::from(of_the_contract));

    let planted = project.run(&[&audit[..], &["--plant", "--output", "json"]].concat());
    let (out, err) = texts(&planted);
    assert!(!planted.status.success() && err.contains("the planted bit was found"), "{err}");
    let report: Json = serde_json::from_str(&out).unwrap();
    let number = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("{name}: {report}"));
    assert_eq!((number("differing"), number("differing_bits")), (1, 1), "{report}");
    assert_eq!((number("transform_identity"), number("input_identity")), (1, 0), "{report}");
}

#[test]
fn an_audit_reads_what_a_training_set_reads_and_leaves_out_rows_without_a_key() {
    let project = &loaded().project;
    let spine = "plane,when\nN14228,2013-07-01T12:00:00Z\n,2013-07-01T12:00:00Z\nnobody,2013-07-01T12:00:00Z\n";
    project.write("planes.csv", spine);
    let renamed = ["--column", "tailnum=plane", "--timestamp-column", "when"];
    let audit = [&["audit", "--service", "plane_facts", "--spine", "planes.csv"], &renamed[..]].concat();
    let text = project.succeed(&audit);
    let lines: Vec<&str> = text.lines().collect();
    for line in [
        "identity: 4 values compared, 0 differing bits",
        "online: 4, offline: 0",
        "transform identity: 0 values differ",
        "input identity: 0 values differ",
        "rows left out for a null key: 1",
    ] {
        assert!(lines.contains(&line), "`{line}` is missing: {text}");
    }

    // A training set of other rows: its differences are counted by cause, and hide no planted bit.
    project.write("others.csv", spine.replace("N14228", "no one").replace("nobody", "N14228"));
    let others = ["dataset", "create", "--service", "plane_facts", "--spine", "others.csv", "--out", "others.parquet"];
    project.succeed(&[&others, &renamed[..]].concat());
    let differing = [&audit[..], &["--dataset", "others.parquet"]].concat();
    let report: Json =
        serde_json::from_slice(&project.run(&[&differing[..], &["--output", "json"]].concat()).stdout).unwrap();
    assert_eq!((report["differing"].as_u64(), report["input_identity"].as_u64()), (Some(4), Some(4)), "{report}");
    let causes: u64 = report["causes"].as_object().unwrap().values().filter_map(Json::as_u64).sum();
    assert_eq!(causes, 4, "{report}");
    let said = project.fail(&[&differing[..], &["--plant"]].concat());
    assert!(said.contains("not only the planted one"), "{said}");
}

#[test]
fn a_training_set_can_be_rebuilt_to_the_same_bytes() {
    let project = &loaded().project;
    let spine = "tailnum,origin,dest,scheduled_at,distance,timestamp,label\n\
                 N14228,EWR,IAH,2013-07-01T13:00:00Z,1400,2013-07-01T12:00:00Z,1\n\
                 nobody,JFK,LAX,2013-02-09T10:00:00Z,,2013-02-09T09:00:00Z,0\n";
    project.write("spine.csv", spine);
    let service = "departure_delay@1";
    let made =
        project.json(&["dataset", "create", "--service", service, "--spine", "spine.csv", "--out", "training.parquet"]);
    assert_eq!(made["rows"], 2);
    let id = made["id"].as_str().unwrap();
    let again = project.json(&["dataset", "rebuild", id, "--out", "again.parquet"]);
    assert_eq!(made["content_digest"], again["content_digest"]);
    let bytes = |name: &str| std::fs::read(project.path(name)).unwrap();
    assert_eq!(bytes("training.parquet"), bytes("again.parquet"));
    let listed = project.json(&["dataset", "list"]);
    assert!(listed["datasets"].as_array().unwrap().iter().any(|dataset| dataset["id"] == id));
}

#[test]
fn lineage_leads_from_a_column_to_the_service() {
    let text = loaded().project.succeed(&["lineage", "service", "departure_delay@1"]);
    for part in ["plane_profile", "planes", "seats"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn text_and_json_output_exist_for_every_listing() {
    let project = &loaded().project;
    for verb in [&["jobs", "list"][..], &["dataset", "list"], &["online", "status"], &["config"], &["plan"]] {
        assert!(!project.succeed(verb).is_empty(), "{verb:?}");
        project.json(verb);
    }
    let output = project.run(&["get", "N14228", "--features", "nothing"]);
    let (_, err) = texts(&output);
    assert!(err.contains("unknown_feature"), "{err}");
}

#[test]
fn a_training_set_of_a_query_is_split_shown_and_made_again() {
    let project = &loaded().project;
    let create = ["dataset", "create", "--service", "plane_facts"];
    let sql = "select tailnum as plane, landed_at as timestamp, arr_delay as label from landings where arr_delay > 400";
    let query = ["--spine-sql", sql, "--key", "tailnum=plane", "--split", "train=0.5,test=0.5", "--out", "late.arrow"];
    let made = project.json(&[&create[..], &query].concat());
    let (rows, id) = (made["rows"].as_u64().unwrap(), made["id"].as_str().unwrap());
    let split = |name: &str| made["spine"]["splits"][name].as_u64().unwrap();
    assert!(rows > 10 && split("train") > 0 && split("test") > 0, "{made}");
    assert_eq!(split("train") + split("test"), rows);
    let shown = project.succeed(&["dataset", "show", id]);
    for part in ["(query: select tailnum", "split train:", "arrow ipc", "seats", "maker", "most frequent"] {
        assert!(shown.contains(part), "`{part}` is missing: {shown}");
    }
    let statistics = &project.json(&["dataset", "show", id])["report"]["statistics"];
    assert_eq!((&statistics["rows"], &statistics["sampled_rows"]), (&json!(rows), &json!(rows)));
    let seats = &statistics["features"][0];
    assert!(seats["min"].as_i64() < seats["max"].as_i64() && !seats["top"][0]["value"].is_null(), "{seats}");
    project.succeed(&["dataset", "rebuild", id, "--out", "late-again.arrow"]);
    let bytes = |name: &str| std::fs::read(project.path(name)).unwrap();
    assert_eq!(bytes("late.arrow"), bytes("late-again.arrow"));

    for (more, why) in [
        (&["--spine-sql", "select tailnum from landings"][..], "gives no column `timestamp`"),
        (&["--spine-sql", "select tailnum, at as timestamp from nowhere"], "reads `nowhere`"),
        (&["--spine-sql", "select tailnum, now() as timestamp from planes"], "calls `now`"),
        (&["--spine-sql", "drop table planes"], "the spine's query"),
        (&["--every", "1d", "--from", "2013-01-02", "--to", "2013-01-01"], "`from` before `to`"),
        (&["--at", "2013-01-01", "--entity", "airport"], "entity `airport` does not have all keys"),
        (&["--at", "2013-01-01", "--split", "train=0.5"], "add up to 0.5"),
        (&["--at", "2013-01-01", "--split-time", "train"], "expected NAME:FROM..TO"),
        (&["--at", "2013-01-01", "--spine", "late.arrow"], "cannot be used with"),
        (&[], "required"),
    ] {
        let said = project.fail(&[&create[..], more, &["--out", "never.parquet"]].concat());
        assert!(said.contains(why), "{more:?}: {said}");
    }
    let roles = ["dataset", "create", "--service", SERVICE, "--at", "2013-01-01", "--out", "never.parquet"];
    assert!(project.fail(&roles).contains("needs fields of a request"));
    assert!(!project.path("never.parquet").exists());
}

#[test]
fn all_entities_at_given_times_are_compared_with_some_of_them() {
    let project = &loaded().project;
    let create = ["dataset", "create", "--service", "plane_facts", "--entity", "aircraft"];
    let both =
        project.json(&[&create[..], &["--at", "2013-07-01,1999-01-01,2013-01-01", "--out", "both.parquet"]].concat());
    let steps = ["--every", "1d", "--from", "2013-01-01", "--to", "2013-01-02", "--out", "one.parquet"];
    let one = project.json(&[&create[..], &steps].concat());
    let rows = one["rows"].as_u64().unwrap();
    assert!(rows > 3_000, "{rows} of more than three thousand planes");
    // In 1999 no plane was known.
    assert_eq!(both["rows"], json!(2 * rows));
    assert_eq!((&both["spine"]["not_found"], &both["spine"]["duplicate_rows"]), (&json!({}), &json!(0)));
    // A file that is gone is made again.
    std::fs::remove_file(project.path("both.parquet")).unwrap();
    let diff = ["dataset", "diff", both["id"].as_str().unwrap(), one["id"].as_str().unwrap()];
    let found = project.json(&diff);
    assert_eq!(found["matched_by"], "keys_and_time", "{found}");
    assert_eq!(found["rows_only_in"], json!({ "a": rows, "b": 0 }));
    assert_eq!((&found["rows_changed"], &found["changes"], &found["views"]), (&json!(0), &json!({}), &json!({})));
    let said = project.succeed(&diff);
    assert!(said.contains("was made again to compare it") && said.contains("only in the first"), "{said}");
    assert!(!project.path("both.parquet").exists() && !project.path(".eadem/scratch").join("a.parquet").exists());
    let unknown = project.fail(&["dataset", "diff", "nothing", one["id"].as_str().unwrap()]);
    assert!(unknown.contains("unknown_dataset"), "{unknown}");
}
