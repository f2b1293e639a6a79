//! Definitions and files that are wrong: a sentence with its place, an exit code, and nothing half-done.

use super::project::{Project, component};

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
fn rows_that_a_transform_fails_are_counted_and_the_others_stored() {
    let definitions = GOOD.replace("plane_profile", "tail_number");
    let project = project(&definitions);
    project.add_component("tail_number");
    project.succeed(&["apply"]);
    let report = project.json(&["backfill"]);
    let view = &report["backfill"]["result"]["views"][0];
    let stored = view["rows_stored"].as_u64().unwrap();
    let refused: u64 = view["refused"].as_object().unwrap().values().filter_map(serde_json::Value::as_u64).sum();
    assert_eq!(stored + refused, 3322, "{view}");
    assert!(stored > 3_000, "{view}");
}

#[test]
fn a_server_does_not_listen_beyond_this_machine() {
    let project = project(GOOD);
    let said = project.fail(&["serve", "--listen", "0.0.0.0:0"]);
    assert!(said.contains("credentials"), "{said}");
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
