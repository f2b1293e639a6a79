//! The loop of the demonstration, and what a model may ask of it. One project for all: its year is loaded once.

use std::sync::OnceLock;

use serde_json::{Value as Json, json};

use super::project::{Project, Server, texts};

struct Loaded {
    project: Project,
    server: Server,
}

/// The demonstration's project, loaded and served.
fn loaded() -> &'static Loaded {
    static LOADED: OnceLock<Loaded> = OnceLock::new();
    LOADED.get_or_init(|| {
        let project = Project::of_flights();
        project.succeed(&["apply"]);
        // January is enough here; the demonstration itself loads the year.
        let job = project.json(&[
            "backfill",
            "airport_weather",
            "airport_shape",
            "nearest_hubs",
            "plane_profile",
            "tail_number",
        ]);
        assert_eq!(job["backfill"]["state"], "succeeded");
        project.succeed(&[
            "materialize",
            "airport_weather",
            "airport_shape",
            "nearest_hubs",
            "plane_profile",
            "tail_number",
            "--as-of",
            "2014-01-01T00:00:00Z",
        ]);
        let server = project.serve();
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
    let long = "N".repeat(2_000);
    assert_eq!(problem(&format!("/features/{long}?features=seats")).0, 414);
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
fn every_route_of_the_document_exists_and_refuses_a_wrong_method() {
    let (_, document) = loaded().server.get("/openapi.json");
    for (path, operations) in document["paths"].as_object().unwrap() {
        let concrete = path.replace("{entity_id}", "x").replace("{kind}", "views").replace(['{', '}'], "");
        let (status, body) = loaded().server.raw("PATCH", &concrete, "Host: localhost\r\n", b"");
        assert_eq!(status, 405, "{path}: {body}");
        assert!(!operations.as_object().unwrap().is_empty());
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
fn a_training_set_can_be_rebuilt_to_the_same_bytes_and_audited() {
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
