//! What a request may say about how it is answered: from memory or not, by when, with an explanation, under a name.

use serde_json::{Value as Json, json};

use super::project::{Project, Server};
use super::support::{define_slow_score, sample, wait_until};

const HOST: &str = "Host: localhost\r\n";

/// Loaded as of the end of the data, so that rows of that year are not too old.
const MATERIALIZE: &[&str] = &["materialize", "plane_profile", "aircraft_legs", "--as-of", "2014-01-01T00:00:00Z"];
const AT: &str = "timestamp=2013-12-30T12:00:00Z";

fn flights_online() -> Project {
    let project = Project::of_flights();
    project.succeed(&["apply"]);
    project.succeed(&["backfill", "plane_profile", "aircraft_legs"]);
    project.succeed(MATERIALIZE);
    project
}

fn asked(server: &Server, path: &str, headers: &str) -> Json {
    let reply = server.send("GET", path, &format!("{HOST}{headers}"), b"");
    assert_eq!(reply.status, 200, "{}", reply.text());
    serde_json::from_slice(&reply.body).unwrap()
}

#[test]
fn an_explanation_shows_every_row_where_it_was_and_where_the_time_went() {
    let project = flights_online();
    let server = project.serve();
    let path = format!("/features/N14228?features=seats,landed_at&entity=aircraft&include=explain&{AT}");
    let first = asked(&server, &path, "");
    let second = asked(&server, &path, "");
    let without_cache = asked(&server, &path, "Cache-Control: max-age=0, No-Cache\r\n");
    let from = |reply: &Json| -> Vec<String> {
        let rows = reply["rows"].as_array().unwrap().iter();
        rows.map(|row| format!("{} {}", row["view"].as_str().unwrap(), row["from"].as_str().unwrap())).collect()
    };
    assert_eq!(from(&first), ["plane_profile@1 store", "aircraft_legs@1 store"]);
    assert_eq!(from(&second), ["plane_profile@1 cache", "aircraft_legs@1 cache"]);
    assert_eq!(from(&without_cache), from(&first));
    for reply in [&second, &without_cache] {
        assert_eq!(reply["features"], first["features"]);
        for (row, same) in reply["rows"].as_array().unwrap().iter().zip(first["rows"].as_array().unwrap()) {
            for member in ["event_time", "known_at", "tie", "store", "view_digest", "keys"] {
                assert_eq!(row[member], same[member], "{member}");
            }
        }
    }
    let landed = &first["rows"][1];
    assert_eq!(landed["event_time"], first["metadata"]["landed_at"]["event_time"]);
    assert_eq!((&landed["keys"], &landed["store"]), (&json!(["tailnum"]), &json!("online")));
    assert_eq!(landed["tie"].as_str().unwrap().len(), 32);
    assert!(landed["view_digest"].as_str().unwrap().starts_with("sha256:"), "{landed}");
    let timing = &first["timing"];
    let views = timing["views"].as_array().unwrap();
    assert_eq!(views.iter().map(|view| &view["late"]).collect::<Vec<_>>(), [&json!(false); 2]);
    let longest = views.iter().map(|view| view["read_us"].as_u64().unwrap()).max().unwrap();
    assert!(timing["serve_us"].as_u64().unwrap() >= longest, "{timing}");

    // Also for many, and on the command line.
    let body = json!({ "features": ["seats"], "entities": [{ "tailnum": "N14228" }, { "tailnum": "nobody" }] });
    let (status, many) = server.post("/features/batch?include=explain", &body);
    assert_eq!(status, 200, "{many}");
    assert_eq!(many["results"][0]["rows"][0]["from"], "cache");
    assert_eq!(
        (&many["results"][1]["rows"][0]["from"], &many["results"][1]["rows"][0]["event_time"]),
        (&json!("store"), &Json::Null)
    );
    assert_eq!(many["timing"]["views"][0]["view"], "plane_profile@1");
    let shown = project.succeed(&["get", "N14228", "--features", "seats", "--entity", "aircraft", "--explain"]);
    assert!(
        shown.contains("cache") && shown.contains("plane_profile@1") && shown.contains("µs to answer it"),
        "{shown}"
    );
    let shown = project.succeed(&["get", "--key", "tailnum=N14228", "--features", "seats", "--explain", "--no-cache"]);
    assert!(!shown.contains("cache"), "{shown}");
}

#[test]
fn what_is_kept_gives_way_to_what_is_loaded() {
    let project = Project::of_flights();
    project.succeed(&["apply"]);
    project.succeed(&["backfill", "plane_profile", "aircraft_legs", "--to", "2013-07-01T00:00:00Z"]);
    project.succeed(MATERIALIZE);
    let server = project.serve();
    let path = format!("/features/N14228?features=aircraft_legs:landed_at&entity=aircraft&include=explain&{AT}");
    let landed = |reply: &Json| reply["rows"][0]["event_time"].as_str().map(str::to_owned);
    let before = landed(&asked(&server, &path, ""));
    let kept = asked(&server, &path, "");
    assert_eq!((landed(&kept), kept["rows"][0]["from"].as_str()), (before.clone(), Some("cache")));
    assert!(before.is_some_and(|before| before.starts_with("2013-06")), "{kept}");

    project.succeed(&["backfill", "aircraft_legs"]);
    project.succeed(MATERIALIZE);
    let after = landed(&asked(&server, &path, ""));
    assert!(after.as_ref().is_some_and(|after| after.starts_with("2013-12")), "{after:?}");
}

#[test]
fn a_request_says_how_long_it_waits_and_cannot_wait_longer_than_the_server_allows() {
    let mut project = flights_online();
    project.variables.push(("EADEM_LIMITS_REQUEST_MS_MAX", "0".to_owned()));
    let unlimited = project.serve();
    let path = "/features/N14228?features=seats&entity=aircraft";
    asked(&unlimited, &format!("{path}&deadline_ms={}", u64::MAX), "");
    drop(unlimited);
    project.variables.clear();
    let server = project.serve();
    assert_eq!(
        asked(&server, &format!("{path}&deadline_ms=5000"), "")["features"],
        asked(&server, path, "")["features"]
    );
    // Longer than any clock shows.
    let for_ever = format!("{path}&deadline_ms={}", u64::MAX);
    assert_eq!(asked(&server, &for_ever, "")["features"], asked(&server, path, "")["features"]);
    for wrong in ["0", "-1", "soon", "1.5", ""] {
        let (status, problem) = server.get(&format!("{path}&deadline_ms={wrong}"));
        assert_eq!((status, problem["code"].as_str()), (400, Some("malformed_request")), "{wrong}: {problem}");
    }
    let shown = project.fail(&["get", "N14228", "--features", "seats", "--entity", "aircraft", "--deadline-ms", "0"]);
    assert!(shown.contains("deadline_ms=0"), "{shown}");
}

#[test]
fn requests_have_names_and_a_share_of_them_is_logged() {
    let mut project = flights_online();
    project.variables.push(("EADEM_SERVER_REQUEST_LOG_SHARE", "1".to_owned()));
    let mut server = project.serve_with_log();
    let named = |id: &str| {
        server.send(
            "GET",
            "/features/N14228?features=seats&entity=aircraft",
            &format!("{HOST}X-Request-Id: {id}\r\n"),
            b"",
        )
    };
    assert!(named("order-4711").head.contains("x-request-id: order-4711"));
    let refused = server.send("GET", "/no/such", &format!("{HOST}X-Request-Id: lost\r\n"), b"");
    assert!(refused.status == 404 && refused.head.contains("x-request-id: lost"));
    let unnamed = server.send("GET", "/healthz", HOST, b"").head;
    let own = unnamed.lines().find_map(|line| line.strip_prefix("x-request-id: ")).unwrap();
    assert_eq!(own.len(), 32, "{own}");
    server.process.kill().unwrap();
    server.process.wait().unwrap();
    let log = std::fs::read_to_string(project.path("server.log")).unwrap();
    let line = log.lines().find(|line| line.contains("eadem::requests")).unwrap_or_else(|| panic!("{log}"));
    for part in ["order-4711", "plane_profile@1", "present", "took_us"] {
        assert!(line.contains(part), "{part} is missing: {line}");
    }
    assert!(!line.contains("N14228"), "{line}");
}

#[test]
fn more_than_can_be_computed_is_refused_and_what_is_answered_is_whole() {
    const ROWS: usize = 40;
    let mut project = Project::new();
    define_slow_score(&project, &["score"]);
    project.succeed(&["apply"]);
    // One runs, one waits. On a busy machine nothing shall be late: that is another kind of error.
    project.variables = vec![
        ("EADEM_ENGINE_CPU_THREADS", "1".to_owned()),
        ("EADEM_ENGINE_CPU_QUEUE_JOBS_MAX", "1".to_owned()),
        ("EADEM_ENGINE_SERVING_DEADLINE_BASE_MS", "100000".to_owned()),
        ("EADEM_ENGINE_SERVING_DEADLINE_TOTAL_MS", "100000".to_owned()),
        ("EADEM_LIMITS_REQUEST_MS_MAX", "100000".to_owned()),
    ];
    let server = project.serve();
    let body = |client: usize| {
        let fields: Vec<Json> = (0..ROWS).map(|row| json!({ "seed": client * ROWS + row })).collect();
        json!({ "service": "score@1", "entities": vec![json!({}); ROWS], "request": fields }).to_string()
    };
    let ask = |client: usize| {
        let headers = format!("{HOST}Content-Type: application/json\r\n");
        server.send("POST", "/features/batch", &headers, body(client).as_bytes())
    };
    // The first loads the component.
    assert_eq!(ask(0).status, 200);
    let ask = &ask;
    let replies: Vec<_> = std::thread::scope(|scope| {
        let clients: Vec<_> = (1..=16).map(|client| scope.spawn(move || ask(client))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let (served, refused): (Vec<_>, Vec<_>) = replies.into_iter().partition(|reply| reply.status == 200);
    assert!(!served.is_empty() && !refused.is_empty(), "{} served, {} refused", served.len(), refused.len());
    for reply in served {
        assert!(!reply.text().contains("\"status\""), "{}", reply.text());
    }
    for reply in &refused {
        assert_eq!(reply.status, 503, "{}", reply.text());
        assert!(reply.head.contains("retry-after: 1") && reply.text().contains("\"overloaded\""), "{}", reply.text());
    }
    let (_, metrics) = server.raw("GET", "/metrics", HOST, b"");
    assert_eq!(sample(&metrics, "eadem_http_requests_shed_total", &[]), refused.len() as f64, "{metrics}");
    assert_eq!(ask(17).status, 200, "it goes on");
}

#[test]
fn a_server_whose_stores_are_gone_from_the_disk_is_not_ready_until_they_are_back() {
    let project = flights_online();
    let server = project.serve();
    let detail = || {
        let (status, reply) = server.get("/readyz");
        (status == 503).then(|| reply["detail"].as_str().unwrap().to_owned())
    };
    assert_eq!(server.get("/readyz").0, 200);
    for (place, part) in [(".eadem/offline", "offline store: "), (".eadem/online/tables", "online store: ")] {
        let (here, away) = (project.path(place), project.path("away"));
        std::fs::rename(&here, &away).unwrap();
        wait_until("it is not ready", || detail().is_some_and(|detail| detail.starts_with(part)));
        std::fs::rename(&away, &here).unwrap();
        wait_until("it is ready again", || detail().is_none());
    }
    let answered = asked(&server, &format!("/features/N14228?features=seats&entity=aircraft&{AT}"), "");
    assert!(answered["features"]["seats"].is_number(), "{answered}");
}
