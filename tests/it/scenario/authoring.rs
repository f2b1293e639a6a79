//! From a function to an accepted component, from outside: what `new`, `build`, `test`, `inspect` and `push` say. The
//! components are those that `make components` left, so that nothing is compiled here.

use serde_json::{Value as Json, json};

use super::project::{Project, component, root, texts};

fn path_of(name: &str) -> String {
    component(name).to_str().unwrap().to_owned()
}

#[test]
fn test_shows_every_fate_of_the_rows_in_a_file_and_what_they_cost() {
    let project = Project::new();
    // The empty line is no row, but counts as a line.
    project.write(
        "rows.jsonl",
        "{\"x\": 1, \"label\": \"a\"}\n{\"x\": 5, \"label\": \"b\"}\n\n{\"x\": 3, \"label\": \"c\"}\n{\"x\": 10, \"label\": \"d\"}\n\
         {\"label\": \"e\"}\n",
    );
    let component = path_of("partial_filter");
    let report = project.json(&["test", &component, "--rows", "rows.jsonl"]);
    assert_eq!((&report["rows"], &report["dropped"], &report["failed"]), (&json!(5), &json!(1), &json!(2)), "{report}");
    let outputs: Vec<&Json> = report["sample"].as_array().unwrap().iter().map(|row| &row["outputs"]).collect();
    let failed = |x: i64| json!({ "failed": format!("{x} is a multiple of five") });
    let expected = [
        json!({ "doubled": 2, "label": "a" }),
        failed(5),
        json!("dropped"),
        failed(10),
        json!({ "doubled": null, "label": "e" }),
    ];
    assert_eq!(outputs, expected.iter().collect::<Vec<_>>());

    let first = json!({
        "row": 1,
        "at": "rows.jsonl:2",
        "kind": "row_error",
        "message": "5 is a multiple of five",
        "inputs": { "x": 5, "label": "b" },
    });
    assert_eq!(report["failures"][0], first);
    assert_eq!(report["failures"][1]["at"], "rows.jsonl:5");

    // A row that fails as it should costs like any other.
    assert_eq!(report["measured"], json!({ "rows": 5, "from": "rows.jsonl" }));
    assert!(report["cost"]["fuel_per_row"].as_f64().unwrap() > 0.0, "{report}");

    let text = project.succeed(&["test", &component, "--rows", "rows.jsonl", "--show", "1"]);
    assert!(text.contains("failed (row_error) rows.jsonl:2: 5 is a multiple of five"), "{text}");
    assert!(!text.contains("10 is a multiple of five"), "one of each was asked for: {text}");
    assert!(text.contains("5 rows: 1 dropped, 2 failed"), "{text}");
    assert!(text.contains("measured: 5 of 5 rows (rows.jsonl)"), "{text}");
}

#[test]
fn rows_that_end_their_call_are_shown_with_what_the_engine_saw() {
    let project = Project::new();
    // One panics, one asks for all memory, one declines the whole batch.
    project.write("rows.jsonl", "{\"x\": 1}\n{\"x\": 6660002}\n{\"x\": 6660004}\n{\"x\": 6660006}\n{\"x\": 2}\n");
    let report = project.json(&["test", &path_of("poison_row"), "--rows", "rows.jsonl"]);
    let failures = report["failures"].as_array().unwrap();
    let member = |name: &str| -> Vec<String> {
        failures.iter().map(|failure| failure[name].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(member("at"), ["rows.jsonl:2", "rows.jsonl:3", "rows.jsonl:4"]);
    assert_eq!(member("kind"), ["trap", "limit", "declined"]);
    let messages = member("message");
    assert!(messages[0].contains("poisoned by 6660002"), "{messages:?}");
    assert!(messages[1].contains("memory_bytes_max"), "{messages:?}");
    assert!(messages[2].contains("no answer for this batch"), "{messages:?}");
    // A call with one of them has no cost; the two others are measured.
    assert_eq!(report["measured"]["rows"], 2, "{report}");
}

#[test]
fn the_cost_is_that_of_the_rows_given() {
    let project = Project::new();
    let row = |label: &str| format!("{}\n", json!({ "x": 1, "label": label }));
    project.write("short.jsonl", row("a"));
    project.write("long.jsonl", row(&"a".repeat(20_000)));
    let fuel_and_memory = |rows: &str| {
        let report = project.json(&["test", &path_of("partial_filter"), "--rows", rows, "--show", "0"]);
        let cost = &report["cost"];
        (cost["fuel_per_row"].as_f64().unwrap(), cost["memory_bytes"].as_u64().unwrap())
    };
    let (short, long) = (fuel_and_memory("short.jsonl"), fuel_and_memory("long.jsonl"));
    // A batch of 1,024 such labels is 20 MB, which the component has to hold.
    assert!(long.1 > short.1 + 20_000_000, "{short:?}, {long:?}");
    assert_eq!(short, fuel_and_memory("short.jsonl"), "fuel and memory are the same every time");
}

#[test]
fn rows_that_break_a_constraint_of_an_output_are_shown() {
    let project = Project::new();
    let rows = [json!({ "manufacturer": "BOEING" }), json!({ "manufacturer": "X".repeat(41) })];
    project.write("rows.jsonl", rows.map(|row| row.to_string()).join("\n"));
    let report = project.json(&["test", &path_of("plane_profile"), "--rows", "rows.jsonl"]);
    assert_eq!((&report["failed"], &report["broken"]), (&json!(0), &json!(1)), "{report}");
    let broken = &report["breaks"][0];
    assert_eq!((&broken["at"], &broken["output"]), (&json!("rows.jsonl:2"), &json!("maker")), "{broken}");
    assert!(broken["message"].as_str().unwrap().contains("length"), "{broken}");
}

#[test]
fn parquet_and_json_lines_are_the_same_rows() {
    let project = Project::new();
    let planes = root().join("demo/data/planes.parquet");
    let component = path_of("plane_profile");
    let of_parquet = project.json(&["test", &component, "--rows", planes.to_str().unwrap(), "--show", "50"]);
    assert_eq!(of_parquet["rows"], 3_322, "{of_parquet}");
    let lines: Vec<String> =
        of_parquet["sample"].as_array().unwrap().iter().map(|row| row["inputs"].to_string()).collect();
    assert_eq!(lines.len(), 50);

    project.write("rows.jsonl", lines.join("\n"));
    let of_lines = project.json(&["test", &component, "--rows", "rows.jsonl", "--show", "50"]);
    for (row, (parquet, line)) in
        of_parquet["sample"].as_array().unwrap().iter().zip(of_lines["sample"].as_array().unwrap()).enumerate()
    {
        // As text, so that −0.0 is not 0.0.
        assert_eq!(parquet["outputs"].to_string(), line["outputs"].to_string(), "row {row}");
    }
    // More than a batch: the first rows of the file are measured.
    assert_eq!(of_parquet["measured"]["rows"], 1_024);
    assert_eq!(of_lines["measured"]["rows"], 50);
}

#[test]
fn rows_that_are_not_the_inputs_are_refused_with_their_place() {
    let project = Project::new();
    let said = |rows: &str| {
        project.write("rows.jsonl", rows);
        project.fail(&["test", &path_of("partial_filter"), "--rows", "rows.jsonl"])
    };
    let unknown = said("{\"x\": 1, \"label\": \"a\"}\n\n{\"x\": 1, \"labl\": \"b\"}\n");
    assert!(unknown.contains("rows.jsonl:3") && unknown.contains("`labl`") && unknown.contains("`label`"), "{unknown}");
    let null = said("{\"x\": 1, \"label\": null}\n");
    assert!(null.contains("rows.jsonl:1") && null.contains("`label`") && null.contains("not nullable"), "{null}");
    let left_out = said("{\"x\": 1}\n");
    assert!(left_out.contains("rows.jsonl:1") && left_out.contains("`label`"), "{left_out}");
    let wrong_type = said("{\"x\": 1, \"label\": \"a\"}\n{\"x\": \"one\", \"label\": \"b\"}\n");
    assert!(wrong_type.contains("rows.jsonl:2") && wrong_type.contains("`x`"), "{wrong_type}");

    let planes = root().join("demo/data/planes.parquet");
    let no_column = project.fail(&["test", &path_of("partial_filter"), "--rows", planes.to_str().unwrap()]);
    assert!(no_column.contains("planes.parquet") && no_column.contains("no column `x`"), "{no_column}");
}

#[test]
fn a_component_that_is_refused_is_not_run() {
    let project = Project::new();
    let said = project.fail(&["test", &path_of("depends_on_row_order")]);
    assert!(said.contains("depends_on_row_order.wasm is refused"), "{said}");
}

#[test]
fn inspect_shows_an_accepted_component() {
    let project = Project::new();
    let component = path_of("partial_filter");
    let shown = project.json(&["inspect", &component]);
    assert_eq!(shown["bytes"], std::fs::metadata(&component).unwrap().len());
    assert_eq!(shown["digest"], shown["accepted"]["digest"]);
    assert_eq!(shown["description"]["name"], "partial_filter");
    assert_eq!(shown["refused"], Json::Null);
    let imports = shown["imports"].as_array().unwrap();
    assert!(imports.iter().any(|import| import.as_str().unwrap().contains("diagnostics")), "{shown}");

    let text = project.succeed(&["inspect", &component]);
    for part in ["sha256:", "accepted partial_filter", "may drop or fail rows", "owner eadem", "doubled"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn inspect_shows_what_can_be_known_of_a_refused_file() {
    let project = Project::new();
    // The code, and whether it can still be asked what it is.
    let refused = [("depends_on_row_order", "law_row_by_row", true), ("imports_random", "import", false)];
    for (name, code, describes) in refused {
        let shown = project.json(&["inspect", &path_of(name)]);
        assert_eq!(shown["refused"]["code"], code, "{shown}");
        assert!(!shown["refused"]["message"].as_str().unwrap().is_empty());
        assert!(shown["digest"].as_str().unwrap().starts_with("sha256:"), "{shown}");
        assert!(shown["inspection"]["exports"][0].as_str().unwrap().starts_with("eadem:transform/"), "{shown}");
        assert_eq!(shown["description"].is_object(), describes, "{shown}");
        assert_eq!(shown["accepted"], Json::Null);
    }

    let imports = project.json(&["inspect", &path_of("imports_random")])["imports"].to_string();
    assert!(imports.contains("random"), "{imports}");

    let module = project.json(&["inspect", &path_of("core_module")]);
    assert_eq!(module["refused"]["code"], "core_module");
    assert_eq!(module["bytes"], std::fs::metadata(component("core_module")).unwrap().len());
    assert!(module["digest"].as_str().unwrap().starts_with("sha256:"), "{module}");

    project.write("notes.wasm", "no component at all");
    let text = project.succeed(&["inspect", "notes.wasm"]);
    assert!(text.contains("19 bytes") && text.contains("refused [malformed]"), "{text}");
    assert!(project.fail(&["inspect", "nowhere.wasm"]).contains("nowhere.wasm"));
}

#[test]
fn new_makes_a_crate_once() {
    let project = Project::new();
    let sdk = root().join("sdk/rust").to_str().unwrap().to_owned();
    let made = project.json(&["new", "weather", "--sdk", &sdk]);
    assert!(made["folder"].as_str().unwrap().ends_with("transforms/weather"), "{made}");
    for file in ["Cargo.toml", "src/lib.rs", "clippy.toml", "README.md", ".gitignore"] {
        assert!(project.path("transforms/weather").join(file).is_file(), "{file}");
    }
    let manifest = std::fs::read_to_string(project.path("transforms/weather/Cargo.toml")).unwrap();
    assert!(manifest.contains(&format!("path = \"{sdk}\"")), "{manifest}");
    let source = std::fs::read_to_string(project.path("transforms/weather/src/lib.rs")).unwrap();
    assert!(source.contains("pub fn weather("), "{source}");

    let again = project.fail(&["new", "weather", "--sdk", &sdk]);
    assert!(again.contains("transforms/weather"), "{again}");
    let badly_named = project.fail(&["new", "Weather", "--sdk", &sdk]);
    assert!(badly_named.contains("lower-case"), "{badly_named}");
    let no_sdk = project.fail(&["new", "other", "--sdk", "features"]);
    assert!(no_sdk.contains("features is not the SDK"), "{no_sdk}");
    assert!(!project.path("transforms/other").exists());
}

#[test]
fn new_takes_the_sdk_from_a_repository() {
    let project = Project::new();
    let url = "https://example.org/eadem.git";
    project.succeed(&["new", "weather", "--folder", "crates", "--sdk-git", url, "--rev", "abc"]);
    let manifest = std::fs::read_to_string(project.path("crates/weather/Cargo.toml")).unwrap();
    assert!(manifest.contains(&format!("{{ git = \"{url}\", rev = \"abc\" }}")), "{manifest}");
    assert!(project.fail(&["new", "other", "--rev", "abc"]).contains("--sdk-git"));
}

#[test]
fn build_says_what_a_folder_lacks() {
    let project = Project::new();
    let said = project.fail(&["build", "features"]);
    assert!(said.contains("features is not a crate") && said.contains("Cargo.toml"), "{said}");

    project.write("plain/Cargo.toml", "[package]\nname = \"plain\"\nedition = \"2024\"\n[workspace]\n");
    project.write("plain/src/lib.rs", "");
    let said = project.fail(&["build", "plain", "--offline"]);
    assert!(said.contains("crate-type = [\"cdylib\", \"rlib\"]"), "{said}");
}

#[test]
fn push_goes_on_after_a_refusal() {
    let project = Project::new();
    project.write("empty/README.md", "no crate");
    let components =
        [path_of("partial_filter"), "empty".to_owned(), path_of("imports_random"), path_of("plane_profile")];
    let mut arguments = vec!["push", "--output", "json"];
    arguments.extend(components.iter().map(String::as_str));

    let output = project.run(&arguments);
    let (out, err) = texts(&output);
    assert!(!output.status.success() && err.contains("2 of 4 components were refused"), "{out}\n{err}");
    let replies: Json = serde_json::from_str(&out).unwrap();
    assert_eq!((&replies[0]["name"], &replies[0]["is_new"]), (&json!("partial_filter"), &json!(true)), "{replies}");
    assert!(replies[1]["refused"].as_str().unwrap().contains("no Cargo.toml"), "{replies}");
    assert_eq!(replies[2]["code"], "import", "{replies}");
    assert_eq!(replies[3]["name"], "plane_profile", "{replies}");

    // The others were taken, and are known from then on.
    let again = project.json(&["push", &components[0], &components[3]]);
    assert_eq!((&again[0]["is_new"], &again[1]["is_new"]), (&json!(false), &json!(false)), "{again}");
}
