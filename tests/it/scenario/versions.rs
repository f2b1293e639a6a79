//! Versions from the command line and over HTTP: what a change does, what a policy refuses, how versions leave.

use std::fmt::Write as _;

use serde_json::{Value as Json, json};

use super::project::{Project, Server, texts};

const ROWS: i64 = 2_000;
/// The payment whose score `bench_score_planted` changes.
const PLANTED_ID: i64 = 777_777;

fn definitions(component: &str) -> String {
    format!(
        r#"
[entity.card]
keys = {{ card = "utf8" }}

[source.payments]
csv = "data/payments.csv"
types = {{ id = "int64", amount = "float64", ts = "timestamp" }}
event_time = "ts"

[view.card_score]
entity = "card"
source = "payments"
transform = "transforms/{component}.wasm"
doc = "How unusual a payment is."
owner = "risk"

[service.fraud]
features = ["card_score:*"]
"#
    )
}

/// A project with one view over payments, applied.
fn project() -> Project {
    let project = Project::new();
    for component in ["bench_score", "bench_score_planted", "slow_score"] {
        project.add_component(component);
    }
    let mut payments = String::from("card,id,amount,ts\n");
    for row in 0..ROWS {
        let id = if row == 1_234 { PLANTED_ID } else { row };
        let _ =
            writeln!(payments, "c{},{id},{}.5,2024-01-01T{:02}:{:02}:00Z", row % 7, row % 1_000, row % 24, row % 60);
    }
    project.write("data/payments.csv", payments);
    project.write("features/all.toml", definitions("bench_score"));
    project.succeed(&["apply"]);
    project
}

fn only_effect(plan: &Json) -> Json {
    let effects = plan["effects"].as_array().unwrap_or_else(|| panic!("{plan}"));
    assert_eq!(effects.len(), 1, "{plan}");
    effects[0].clone()
}

#[test]
fn a_plan_shows_the_one_bit_that_another_component_changes() {
    let project = project();
    let unchanged = project.json(&["plan"]);
    assert_eq!(unchanged["effects"], json!([]), "{unchanged}");
    project.write("features/all.toml", definitions("bench_score_planted"));
    let plan = project.json(&["plan"]);
    let effect = only_effect(&plan);
    assert_eq!((&effect["rows_compared"], &effect["rows_changed"]), (&json!(ROWS), &json!(1)), "{effect}");
    assert_eq!((&effect["not_compared"], &effect["is_whole_history"]), (&Json::Null, &json!(true)));
    let changed: Vec<(&str, u64)> = effect["features"]
        .as_array()
        .unwrap()
        .iter()
        .map(|feature| (feature["name"].as_str().unwrap(), feature["rows_changed"].as_u64().unwrap()))
        .collect();
    assert_eq!(changed, [("score", 1), ("is_large", 0), ("hour", 0)]);
    let example = &effect["features"][0]["examples"][0];
    assert_eq!((&example["key"]["card"], &example["row"]), (&json!("c2"), &json!(1_234)), "{example}");
    let bits = |value: &Json| value.as_f64().unwrap().to_bits();
    assert_eq!(bits(&example["before"]) ^ bits(&example["after"]), 1);
    assert!(effect["cpu_us_per_row"]["before"].as_f64().is_some_and(|cost_us| cost_us > 0.0), "{effect}");
    let view = &plan["changes"].as_array().unwrap().iter().find(|change| change["kind"] == "view").unwrap().clone();
    assert_eq!((&view["class"], &view["schema"][0]["kind"]), (&json!("breaking"), &json!("meaning_changed")));
    let text = project.succeed(&["plan", "--effect"]);
    assert!(
        text.contains("effect on view card_score, @1 → @2: 1 of 2,000 rows change (all rows of history)"),
        "{text}"
    );
    assert!(text.contains("score: 1 value changes") && text.contains("hour: no value changes"), "{text}");

    let sampled = only_effect(&project.json(&["plan", "--effect=100"]));
    let compared = sampled["rows_compared"].as_u64().unwrap();
    assert!(compared > 0 && compared < ROWS as u64 && sampled["is_whole_history"] == false, "{sampled}");
    let without = project.json(&["plan", "--no-effect"]);
    assert!(without.get("effects").is_none(), "{without}");
    assert!(project.fail(&["plan", "--effect=2000000"]).contains("[malformed_request]"));
    assert_eq!(project.json(&["describe", "view", "card_score"])["version"], 1, "a plan changes nothing");
}

#[test]
fn what_cannot_be_compared_says_why() {
    let project = project();
    let on_demand = |field: &str| {
        let view =
            format!("[view.slow]\ntransform = \"transforms/slow_score.wasm\"\nbind.seed = \"request.{field}\"\n");
        format!("{}\n{view}", definitions("bench_score"))
    };
    project.write("features/all.toml", on_demand("seed"));
    project.succeed(&["apply"]);
    project.write("features/all.toml", on_demand("number"));
    let effect = only_effect(&project.json(&["plan"]));
    let reason = effect["not_compared"].as_str().unwrap();
    assert!(reason.contains("computed on demand, from request.number"), "{reason}");

    let moved =
        definitions("bench_score_planted").replace("csv = \"data/payments.csv\"", "json = \"data/payments.jsonl\"");
    let moved = moved.replace("types = {", "types = { card = \"utf8\",");
    project.write(
        "data/payments.jsonl",
        "{\"card\": \"c1\", \"id\": 1, \"amount\": 2.5, \"ts\": \"2024-01-01T00:00:00Z\"}\n",
    );
    project.write("features/all.toml", moved);
    let effect = only_effect(&project.json(&["plan"]));
    let reason = effect["not_compared"].as_str().unwrap();
    assert!(reason.contains("different kinds of files"), "{reason}");
    // Under a policy that wants to know, that is not enough.
    let strict = ["--set", "policy.effect_rows_changed_share_max=0.5", "--set", "policy.effect_refuse_uncompared=true"];
    let refused = project.fail(&[&["apply"], &strict[..]].concat());
    assert!(refused.contains("[effect_beyond_tolerance]") && refused.contains("not compared"), "{refused}");
}

#[test]
fn a_policy_refuses_and_a_reason_overrides_it() {
    let project = project();
    project.write("features/all.toml", definitions("bench_score_planted"));
    project.write("eadem.toml", "[policy]\neffect_rows_changed_share_max = 0.0001\n");
    let plan = project.json(&["plan"]);
    let beyond = plan["beyond_tolerance"][0].as_str().unwrap();
    assert!(beyond.contains("1 of 2000 rows change") && beyond.contains("at most 0.0001 may"), "{beyond}");
    let output = project.run(&["apply"]);
    let (_, refused) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{refused}");
    assert!(refused.contains("[effect_beyond_tolerance]") && refused.contains("nothing was changed"), "{refused}");
    assert_eq!(project.json(&["describe", "view", "card_score"])["versions"].as_array().map(Vec::len), Some(1));
    assert!(project.fail(&["apply", "--accept", " "]).contains("[malformed_request]"));
    let tolerated = project.json(&["plan", "--set", "policy.effect_rows_changed_share_max=0.0005"]);
    assert_eq!(tolerated["beyond_tolerance"], json!([]), "one row of two thousand");
    let applied = project.json(&["apply", "--accept", "the scale was corrected"]);
    assert_eq!(applied["accepted"], "the scale was corrected", "{applied}");
    let described = project.json(&["describe", "view", "card_score"]);
    let latest = &described["history"][0];
    assert_eq!((&described["version"], &latest["accepted"]), (&json!(2), &json!("the scale was corrected")));
    let text = project.succeed(&["describe", "view", "card_score@1"]);
    for expected in [
        "view          card_score@1",
        "owner         risk",
        "used by       service fraud@1",
        "effect accepted: the scale",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let feature = project.json(&["describe", "feature", "card_score@1:score"]);
    assert_eq!((&feature["field"]["data_type"], &feature["used_by"]), (&json!("float64"), &json!(["service fraud@1"])));
    assert!(
        project.succeed(&["describe", "service", "fraud"]).contains("feature       hour int64  from card_score@2:hour")
    );
    assert!(project.succeed(&["describe", "transform", "bench_score"]).contains("used by       view card_score@1"));
    assert!(project.succeed(&["describe", "source", "payments"]).contains("columns       card utf8"));
    assert!(project.fail(&["describe", "job", "x"]).contains("no kind `job`"));
    let wrong = project.fail(&["plan", "--set", "policy.effect_rows_changed_share_max=1.5"]);
    assert!(wrong.contains("a share lies between 0 and 1"), "{wrong}");
}

fn head_of(server: &Server, path: &str) -> (u16, String, Json) {
    let reply = server.send("GET", path, "Host: localhost\r\n", b"");
    (reply.status, reply.head.clone(), serde_json::from_slice(&reply.body).unwrap())
}

#[test]
fn versions_leave_one_after_the_other_and_come_back() {
    let project = project();
    project.succeed(&["backfill"]);
    project.write("features/all.toml", definitions("bench_score_planted"));
    project.succeed(&["apply"]);
    let server = project.serve();
    let asked = "/features/c1?service=fraud@1";
    let (status, head, _) = head_of(&server, asked);
    assert!(status == 200 && !head.contains("deprecation"), "{head}");

    let mark = |kind: &str, name: &str, action: &str, body: &Json| {
        server.post(&format!("/registry/{kind}/{name}/{action}"), body)
    };
    let (status, marked) =
        mark("services", "fraud@1", "deprecate", &json!({ "message": "use \"fraud@2\" – it is right" }));
    assert_eq!((status, &marked["versions"]), (200, &json!(["fraud@1"])), "{marked}");
    let (status, head, _) = head_of(&server, asked);
    assert_eq!(status, 200);
    let warning = "warning: 299 eadem \"service fraud@1 is deprecated: use 'fraud@2' ? it is right\"";
    assert!(head.contains("deprecation: @") && head.contains(warning), "{head}");
    let (_, head, _) = head_of(&server, "/features/c1?service=fraud@2");
    assert!(!head.contains("deprecation"), "{head}");

    let refused = project.fail(&["retire", "view", "card_score@1"]);
    assert!(refused.contains("[in_use]") && refused.contains("service fraud@1"), "{refused}");
    let text = project.succeed(&["retire", "service", "fraud@1", "--message", "gone"]);
    assert!(text.contains("service fraud@1: retired: gone"), "{text}");
    project.succeed(&["retire", "view", "card_score@1"]);
    for path in [asked, "/features/c1?features=card_score@1:score"] {
        let (status, _, problem) = head_of(&server, path);
        assert_eq!((status, &problem["code"]), (410, &json!("retired")), "{path}: {problem}");
    }
    let (status, job) = server.post("/jobs/backfill", &json!({ "views": ["card_score@1"] }));
    assert_eq!((status, &job["code"]), (410, &json!("retired")), "{job}");
    let described = project.json(&["describe", "view", "card_score@1"]);
    assert_eq!(described["state"]["state"], "retired");
    assert_eq!(described["tables"]["offline"]["rows"], ROWS, "nothing is deleted: {described}");
    let used = project.fail(&["retire", "transform", "bench_score_planted"]);
    assert!(used.contains("view card_score@2"), "{used}");
    project.succeed(&["retire", "transform", "bench_score"]);
    let back = project.fail(&["retire", "view", "card_score@1", "--undo"]);
    assert!(back.contains("needs transform bench_score") && back.contains("[conflict]"), "{back}");
    project.write("features/all.toml", definitions("bench_score"));
    let plan = project.fail(&["plan"]);
    assert!(plan.contains("transform bench_score@sha256:") && plan.contains("is retired"), "{plan}");
    for arguments in [["transform", "bench_score"], ["view", "card_score@1"], ["service", "fraud@1"]] {
        project.succeed(&[&["retire"], &arguments[..], &["--undo"]].concat());
    }
    let (status, _, _) = head_of(&server, asked);
    assert_eq!(status, 200);
    let text = project.succeed(&["plan", "--no-effect"]);
    assert!(text.contains("~ view card_score: back to version 1"), "{text}");

    for (path, body, expected) in [
        ("/registry/views/card_score@9/retire", json!({}), (404, "unknown_view")),
        ("/registry/entities/card/retire", json!({}), (404, "unknown_kind")),
        ("/registry/views/card_score@1/remove", json!({}), (404, "unknown_route")),
        ("/registry/views/card_score@1/deprecate", json!({ "undo": true }), (409, "conflict")),
        ("/registry/views/card_score@1/deprecate", json!({ "undo": true, "message": "x" }), (400, "malformed_request")),
        ("/registry/views/card_score@1/deprecate", json!({ "why": "x" }), (400, "malformed_json")),
    ] {
        let (status, problem) = server.post(path, &body);
        assert_eq!((status, problem["code"].as_str().unwrap()), expected, "{path}: {problem}");
    }
    let reply =
        server.send("GET", "/lineage/service/fraud@2?format=dot&direction=upstream", "Host: localhost\r\n", b"");
    assert!(reply.status == 200 && reply.head.contains("text/vnd.graphviz"), "{}", reply.head);
    assert!(reply.text().starts_with("digraph lineage {") && reply.text().contains("source column\\npayments.amount"));
    let cut = project.json(&["lineage", "service", "fraud@2", "--nodes-max", "3"]);
    assert_eq!((&cut["is_cut"], cut["nodes"].as_array().map(Vec::len)), (&json!(true), Some(3)), "{cut}");
}

#[test]
fn a_plan_as_events_ends_with_the_plan_or_the_problem() {
    let project = project();
    let server = project.serve();
    let headers = "Host: localhost\r\nContent-Type: application/json\r\nAccept: text/event-stream\r\n";
    let events = |text: &str| {
        let files = [json!({ "path": "features/all.toml", "text": text })];
        let digest = project.json(&["inspect", "transforms/bench_score_planted.wasm"])["digest"].clone();
        let transforms = json!({ "transforms/bench_score_planted.wasm": digest });
        let body = json!({ "files": files, "transforms": transforms, "effect": { "rows": 1_000_000 } });
        let (status, reply) = server.raw("POST", "/registry/plan", headers, body.to_string().as_bytes());
        assert_eq!(status, 200, "{reply}");
        let data = reply.lines().filter_map(|line| line.strip_prefix("data:"));
        data.map(|data| serde_json::from_str(data.trim()).unwrap()).collect::<Vec<Json>>()
    };
    project.succeed(&["push", "transforms/bench_score_planted.wasm"]);
    let told = events(&definitions("bench_score_planted"));
    let (last, before) = told.split_last().unwrap();
    assert_eq!(only_effect(&last["plan"])["rows_changed"], 1, "{last}");
    assert!(!before.is_empty() && before.iter().all(|event| event["progress"]["view"] == "card_score"), "{before:?}");
    let told = events("[view.x]\n");
    assert_eq!(told.last().unwrap()["problem"]["code"], "invalid_definitions", "{told:?}");
}
