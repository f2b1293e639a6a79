//! Every kind of source that needs no server, from its definition to what a backfill says of it.

use super::project::Project;

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
