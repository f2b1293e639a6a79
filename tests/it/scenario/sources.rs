//! Every kind of source that needs no server, from its definition to what a backfill says of it.

use super::project::Project;
use crate::postgres::Postgres;

const CSV: &str = "tailnum;year;type;manufacturer;model;engines;seats;engine\n\
    N1;1999;Fixed wing multi engine;BOEING;737-800;2;160;Turbo-fan\n\
    N2;NA;Fixed wing multi engine;BOEING;737-800;two;160;Turbo-fan\n\
    N3;2001;Fixed wing multi engine\n";

const JSON: &str = r#"{"tailnum":"N1","year":1999,"type":"Fixed wing multi engine","manufacturer":"BOEING","model":"737-800","engines":2,"seats":160,"engine":"Turbo-fan"}
{"tailnum":"N4","seats":160.5}
"#;

fn project(source: &str) -> Project {
    let project = Project::new();
    project.add_component("plane_profile");
    project.write("data/planes.csv", CSV);
    project.write("data/planes.jsonl", JSON);
    project.write(
        "features/planes.toml",
        format!(
            "[entity.aircraft]\nkeys = {{ tailnum = \"utf8\" }}\n\n[source.planes]\n{source}\n\
             event_time = 2000-01-01T00:00:00Z\n\n[view.plane_profile]\nentity = \"aircraft\"\nsource = \"planes\"\n\
             transform = \"transforms/plane_profile.wasm\"\n"
        ),
    );
    project
}

#[test]
fn text_is_planned_loaded_and_its_bad_rows_are_counted() {
    let numbers = "year = \"int64\", engines = \"int64\", seats = \"int64\"";
    let csv = format!("csv = {{ path = \"data\", delimiter = \";\", null = \"NA\" }}\ntypes = {{ {numbers} }}");
    let texts = ["tailnum", "type", "manufacturer", "model", "engine"].map(|name| format!("{name} = \"utf8\""));
    let json = format!("json = \"data/planes.jsonl\"\ntypes = {{ {numbers}, {} }}", texts.join(", "));
    for (source, read, refused) in [(csv, 3, 2), (json, 2, 1)] {
        let project = project(&source);
        project.succeed(&["apply"]);
        let told = project.succeed(&["backfill"]);
        let counts = format!("{refused} refused");
        assert!(told.contains(&counts) && told.contains(&format!("1 rows stored of {read} read")), "{told}");
        let reply = project.json(&["get", "N1", "--features", "seats"]);
        assert_eq!(reply["features"]["seats"], 160, "{reply}");
    }
}

#[test]
fn a_row_that_cannot_be_read_is_shown_as_it_stands_in_its_file() {
    let project = project(
        "csv = { path = \"data\", delimiter = \";\", null = \"NA\" }\n\
         types = { year = \"int64\", engines = \"int64\", seats = \"int64\" }",
    );
    for verb in ["apply", "backfill"] {
        project.succeed(&[verb]);
    }
    const TORN: &str = "N3;2001;Fixed wing multi engine";
    let page = project.json(&["quarantine", "list", "plane_profile"]);
    let rows = page["rows"].as_array().unwrap();
    let torn: Vec<&str> =
        rows.iter().filter(|row| row["text"] == TORN).map(|row| row["id"].as_str().unwrap()).collect();
    assert!(rows.len() == 2 && torn.len() == 1, "{page}");
    let shown = project.succeed(&["quarantine", "show", "plane_profile", torn[0]]);
    assert!(shown.contains(TORN) && shown.contains("cannot be replayed"), "{shown}");
}

#[test]
fn a_query_without_its_environment_is_named_with_its_place() {
    let project = project("postgres = { url_env = \"EADEM_TEST_NOWHERE\", query = \"select 1\" }");
    let said = project.fail(&["plan"]);
    assert!(
        said.contains("features/planes.toml:5: source planes: the environment variable EADEM_TEST_NOWHERE"),
        "{said}"
    );
}

/// A source moves from files into a database: what it means is a new version of the view. The old one has nothing to read any
/// more, and all that was made of it stays readable.
#[test]
fn a_version_whose_source_has_moved_into_a_database_stays_readable() {
    const FILES: &str = "csv = \"data/events.csv\"\n\
        types = { user = \"utf8\", x = \"int64\", label = \"utf8\", at = \"timestamp\" }";
    let postgres = Postgres::start();
    let mut project = Project::new();
    project.variables = vec![("EVENTS_DATABASE_URL", postgres.url())];
    project.add_component("partial_filter");
    project.write(
        "data/events.csv",
        "user,x,label,at\nada,1,a,2024-01-01T00:00:00Z\nada,2,b,2024-01-03T00:00:00Z\nbob,seven,c,2024-01-02T00:00:00Z\n",
    );
    project.write("spine.csv", "user,timestamp\nada,2024-01-02T00:00:00Z\nada,2024-01-04T00:00:00Z\n");
    let define = |source: &str| {
        project.write(
            "features/events.toml",
            format!(
                "[entity.user]\nkeys = {{ user = \"utf8\" }}\n\n[source.events]\n{source}\nevent_time = \"at\"\n\n\
                 [view.events]\nentity = \"user\"\nsource = \"events\"\n\
                 transform = \"transforms/partial_filter.wasm\"\n\n[service.events]\nfeatures = [\"events:doubled\"]\n"
            ),
        );
        project.succeed(&["apply"]);
    };
    let create = |service: &str, file: &str| {
        let out = project.path(file);
        let make = ["dataset", "create", "--service", service, "--spine", "spine.csv", "--out", out.to_str().unwrap()];
        let made = project.json(&make);
        (made["id"].as_str().unwrap().to_owned(), std::fs::read(out).unwrap())
    };
    define(FILES);
    project.succeed(&["backfill"]);
    let (first, bytes) = create("events", "first.parquet");

    define(
        "postgres = { url_env = \"EVENTS_DATABASE_URL\", query = \"\"\"select 'ada' as \"user\", 4::bigint as x, 'd' as \
         label, timestamptz '2024-01-05 00:00Z' as at\"\"\" }",
    );
    let said = project.fail(&["backfill", "events@1"]);
    assert!(said.contains("source `events` has nothing to read"), "{said}");
    let again = project.path("again.parquet");
    project.succeed(&["dataset", "rebuild", &first, "--out", again.to_str().unwrap()]);
    assert!(std::fs::read(&again).unwrap() == bytes);
    let (second, made_anew) = create("events@1", "second.parquet");
    assert!(made_anew == bytes);
    project.succeed(&["dataset", "diff", &first, &second]);
    let doubled = |more: &[&str]| {
        let ask = ["get", "ada", "--features", "events@1:doubled"];
        project.json(&[&ask, more].concat())["features"].as_object().unwrap().values().next().unwrap().clone()
    };
    assert_eq!(doubled(&["--timestamp", "2024-01-02T00:00:00Z"]), 2);
    assert_eq!(doubled(&["--as-stored", "1"]), 4);
    let refused = project.json(&["quarantine", "list", "events@1"]);
    let id = refused["rows"][0]["id"].as_str().unwrap();
    project.succeed(&["quarantine", "show", "events@1", id]);
    for verb in [
        &["quarantine", "replay", "events@1"][..],
        &["offline", "compact", "events@1"],
        &["materialize", "events@1"],
        &["describe", "view", "events@1"],
        &["online", "status"],
    ] {
        project.succeed(verb);
    }
    assert_eq!(doubled(&[]), 4, "also from the online store");
    project.succeed(&["backfill", "events"]);
    let of_new = project.json(&["get", "ada", "--features", "events:doubled"]);
    assert_eq!(of_new["features"]["events:doubled"], 8, "{of_new}");
}
