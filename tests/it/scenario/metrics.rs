//! What `/metrics` says after a few requests: what was asked, what was served, from where.

use serde_json::json;

use super::project::Project;
use super::support::{define_slow_score, sample};

#[test]
fn metrics_count_what_was_asked_and_what_was_served() {
    let project = Project::of_flights();
    project.succeed(&["apply"]);
    for verb in ["backfill", "materialize"] {
        project.succeed(&[verb, "plane_profile", "airport_weather"]);
    }
    let server = project.serve();
    let metrics = || {
        let (status, text) = server.raw("GET", "/metrics", "Host: localhost\r\n", b"");
        assert_eq!(status, 200, "{text}");
        text
    };
    let before = metrics();
    assert!(!before.contains("eadem_values_total{"), "nothing was served yet:\n{before}");
    assert!(sample(&before, "eadem_online_rows", &[("view", "plane_profile@1"), ("current", "true")]) > 3_000.0);
    assert!(sample(&before, "eadem_online_bytes", &[("view", "airport_weather@1"), ("current", "true")]) > 0.0);

    assert_eq!(server.get("/features/N14228?features=seats,maker&entity=aircraft").0, 200);
    let batch = json!({
        "features": ["seats"],
        "entities": [{ "tailnum": "N14228" }, { "tailnum": "nobody" }, { "tailnum": "N24211" }],
    });
    assert_eq!(server.post("/features/batch", &batch).0, 200);
    // As it stood a day into the data: the online store keeps no history and cannot prove it.
    assert_eq!(server.get("/features/EWR?features=temperature_c&timestamp=2013-01-02T00:00:00Z").0, 200);
    assert_eq!(server.get("/nothing/of/the/sort").0, 404);
    assert_eq!(server.get("/features/N14228?features=nothing&entity=aircraft").0, 404);

    let after = metrics();
    let requests = |route: &str, status: &str| {
        sample(&after, "eadem_http_requests_total", &[("route", route), ("status", status)])
    };
    assert_eq!(requests("/features/{entity_id}", "200"), 2.0);
    assert_eq!(requests("/features/{entity_id}", "404"), 1.0);
    assert_eq!(requests("/features/batch", "200"), 1.0);
    assert_eq!(requests("none", "404"), 1.0, "paths that are no routes are not told apart");
    assert_eq!(sample(&after, "eadem_http_request_seconds_count", &[("route", "/features/batch")]), 1.0);
    assert_eq!(sample(&after, "eadem_http_requests_in_flight", &[]), 1.0, "the one that asks");
    assert_eq!(sample(&after, "eadem_http_requests_shed_total", &[]), 0.0);

    let planes = ("view", "plane_profile@1");
    assert_eq!(sample(&after, "eadem_values_total", &[planes, ("status", "present")]), 4.0);
    assert_eq!(sample(&after, "eadem_values_total", &[planes, ("status", "missing")]), 1.0);
    assert_eq!(sample(&after, "eadem_rows_read_total", &[planes, ("store", "online"), ("found", "true")]), 3.0);
    assert_eq!(sample(&after, "eadem_rows_read_total", &[planes, ("store", "online"), ("found", "false")]), 1.0);
    assert_eq!(sample(&after, "eadem_row_age_seconds_count", &[planes]), 3.0);
    let weather = ("view", "airport_weather@1");
    assert_eq!(sample(&after, "eadem_rows_read_total", &[weather, ("store", "offline"), ("found", "true")]), 1.0);
    let stages = |text: &str, route: &str, stage: &str| {
        sample(text, "eadem_stage_seconds_count", &[("route", route), ("stage", stage)])
    };
    for (route, count) in [("/features/{entity_id}", 2.0), ("/features/batch", 1.0)] {
        for stage in ["parse", "store", "encode"] {
            assert_eq!(stages(&after, route, stage), count, "{route} {stage}");
        }
        assert_eq!([stages(&after, route, "cache"), stages(&after, route, "transform")], [0.0; 2]);
    }
    // What is in memory is another stage.
    assert_eq!(server.get("/features/N14228?features=seats,maker&entity=aircraft").0, 200);
    let again = metrics();
    assert_eq!(stages(&again, "/features/{entity_id}", "cache"), 1.0);
    assert_eq!(stages(&again, "/features/{entity_id}", "store"), 2.0);
    // And a read that is cut off takes as long as it was waited for: so many are not read within a millisecond.
    let times: Vec<String> =
        (0..720).map(|hour| format!("2013-01-{:02}T{:02}:30:00Z", 2 + hour / 24, hour % 24)).collect();
    let entities = vec![json!({ "airport": "EWR" }); times.len()];
    let late = json!({ "features": ["temperature_c"], "entities": entities, "timestamps": times });
    let (status, reply) = server.post("/features/batch?deadline_ms=1", &late);
    assert_eq!((status, &reply["results"][0]["status"]["temperature_c"]), (200, &json!("error")));
    let cut = metrics();
    assert_eq!(stages(&cut, "/features/batch", "store"), 2.0);
    assert_eq!(sample(&cut, "eadem_deadline_exceeded_total", &[weather]), 1.0);
    assert_eq!(sample(&cut, "eadem_rows_read_total", &[weather, ("store", "offline"), ("found", "false")]), 0.0);
    assert!(sample(&after, "eadem_registry_revision", &[]) >= 1.0);
}

#[test]
fn metrics_tell_components_of_one_name_apart_and_what_they_cost() {
    let project = Project::new();
    define_slow_score(&project, &["score"]);
    project.succeed(&["apply"]);
    let server = project.serve();
    let ask = json!({ "service": "score@1", "entities": [{}, {}], "request": [{ "seed": 4 }, { "seed": 5 }] });
    assert_eq!(server.post("/features/batch", &ask).0, 200);
    let (_, text) = server.raw("GET", "/metrics", "Host: localhost\r\n", b"");
    let record = &server.get("/transforms/slow_score").1["transforms"][0];
    let digest = record["digest"].as_str().unwrap().trim_start_matches("sha256:")[..12].to_owned();
    let fuel = record["acceptance"]["fuel_per_row"].to_string();
    let labels = [("transform", "slow_score"), ("digest", digest.as_str()), ("cost", fuel.as_str())];
    assert_eq!(sample(&text, "eadem_transform_rows_total", &labels), 2.0);
    assert_eq!(sample(&text, "eadem_transform_seconds_count", &labels), 1.0);
    let stage = [("route", "/features/batch"), ("stage", "transform")];
    assert_eq!(sample(&text, "eadem_stage_seconds_count", &stage), 1.0);
}
