//! An erasure reaches what is kept beside tables and training sets: spines, statistics, extracts of databases.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use parquet::arrow::ArrowWriter;
use serde_json::{Value as Json, json};

use super::kills::rows_of_file;
use super::project::Project;
use crate::postgres::Postgres;

const DEFINITIONS: &str = r#"
[entity.user]
keys = { user = "utf8" }

[source.events]
parquet = "data/events.parquet"
event_time = "at"

[source.orders]
csv = "data/orders.csv"
types = { buyer = "utf8", ordered_at = "timestamp" }
event_time = "ordered_at"

[view.events]
entity = "user"
source = "events"
transform = "transforms/partial_filter.wasm"

[view.checked]
transform = "transforms/partial_filter.wasm"
bind = { x = "request.x", label = "request.label" }

[service.events]
features = ["events:doubled", "events:label"]

[service.checked]
features = ["events:doubled", "checked:doubled as checked"]

[service.pairs]
features = ["events:doubled for payer", "events:label for payee"]
"#;

/// Rows that the transform stores: five and three divide none of their numbers.
const EVENTS: [(&str, i64); 3] = [("ada", 1), ("bob", 2), ("eve", 4)];

/// 2024-01-01T00:00:00Z.
const BEGIN_US: i64 = 1_704_067_200_000_000;

const UP_TO: &str = "2024-06-01T00:00:00Z";

/// The one who is erased: she stands in spines, and in no table.
const GHOST: &str = "ghost";

/// What she has instead of a time: a query over the source leaves that row out, and says why.
const NO_TIME: &str = "full moon";

fn write_events(file: &Path, events: &[(&str, i64)]) {
    let users: StringArray = events.iter().map(|(user, _)| Some(*user)).collect();
    let xs: Int64Array = events.iter().map(|(_, x)| Some(*x)).collect();
    let labels: StringArray = events.iter().map(|(user, x)| Some(format!("{user} {x}"))).collect();
    let times: TimestampMicrosecondArray = events.iter().map(|(_, x)| Some(BEGIN_US + *x)).collect();
    let columns: [(&str, ArrayRef); 4] = [
        ("user", Arc::new(users)),
        ("x", Arc::new(xs)),
        ("label", Arc::new(labels)),
        ("at", Arc::new(times.with_timezone("UTC"))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let mut writer = ArrowWriter::try_new(std::fs::File::create(file).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn project_with_events() -> Project {
    let project = Project::new();
    project.write("features/events.toml", DEFINITIONS);
    project.add_component("partial_filter");
    write_events(&project.path("data/events.parquet"), &EVENTS);
    let orders = [("ada", "2024-02-01T00:00:00Z"), (GHOST, "2024-03-01T00:00:00Z"), (GHOST, NO_TIME)];
    let orders: String = orders.iter().map(|(buyer, ordered_at)| format!("{buyer},{ordered_at}\n")).collect();
    project.write("data/orders.csv", format!("buyer,ordered_at\n{orders}"));
    for verb in ["apply", "backfill"] {
        project.succeed(&[verb]);
    }
    project
}

/// Makes a training set; gives its id.
fn dataset(project: &Project, name: &str, arguments: &[&str]) -> String {
    let out = project.path(&format!("{name}.parquet"));
    let fixed = ["dataset", "create", "--out", out.to_str().unwrap()];
    let job = project.json(&[&fixed[..], arguments].concat());
    job["id"].as_str().unwrap().to_owned()
}

/// Every file below a folder.
pub(super) fn files_below(folder: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.append(&mut files_below(&path));
        } else {
            files.insert(path);
        }
    }
    files
}

/// Whether the spine of a training set is still kept.
fn keeps_spine(project: &Project, dataset: &str) -> bool {
    let recipe = &project.json(&["dataset", "show", dataset])["recipe"];
    let digest = recipe["spine_digest"].as_str().unwrap().trim_start_matches("sha256:");
    let spines = files_below(&project.path(".eadem/offline/spines"));
    spines.iter().any(|file| file.file_stem().is_some_and(|name| name == digest))
}

fn erase_ghost(project: &Project) -> Json {
    project.json(&["erase", "--entity", "user", "--key", &format!("user={GHOST}"), "--up-to", UP_TO])
}

#[test]
fn kept_spines_lose_whoever_is_erased_and_their_training_sets_say_so() {
    let project = project_with_events();
    let row = |user: &str, month: u32| format!("{user},2024-{month:02}-01T00:00:00Z,secret of {user}\n");
    let header = "user,timestamp,note\n";
    project.write("plain.csv", [header, &row("ada", 2), &row(GHOST, 6), &row(GHOST, 7)].concat());
    project.write("later.csv", [header, &row("ada", 2), &row(GHOST, 7), ",2024-02-01T00:00:00Z,\n"].concat());
    project.write("pairs.csv", "payer,to,when\nada,bob,2024-02-01T00:00:00Z\nada,ghost,2024-02-01T00:00:00Z\n");
    project.write("others.csv", "payer,to,when\nada,bob,2024-02-01T00:00:00Z\nghost,bob,2024-06-02T00:00:00Z\n");
    let asked = format!("user,timestamp,x,label\nada,2024-02-01T00:00:00Z,1,a\n{GHOST},2024-02-01T00:00:00Z,40,b\n");
    project.write("asked.csv", asked);
    let pairs = ["--service", "pairs", "--timestamp-column", "when", "--column", "payee=to", "--spine"];
    let sql = "select buyer as \"user\", ordered_at as timestamp from orders";
    let made = BTreeMap::from([
        ("plain", dataset(&project, "plain", &["--service", "events", "--spine", "plain.csv"])),
        ("later", dataset(&project, "later", &["--service", "events", "--spine", "later.csv"])),
        ("pairs", dataset(&project, "pairs", &[&pairs[..], &["pairs.csv"]].concat())),
        ("others", dataset(&project, "others", &[&pairs[..], &["others.csv"]].concat())),
        ("checked", dataset(&project, "checked", &["--service", "checked", "--spine", "asked.csv"])),
        ("queried", dataset(&project, "queried", &["--service", "events", "--spine-sql", sql])),
        ("all", dataset(&project, "all", &["--service", "events", "--at", "2024-02-01T00:00:00Z"])),
    ]);
    let touched = ["plain", "pairs", "checked", "queried"];
    const REASON: &str = "40 is a multiple of five";
    assert!(project.succeed(&["dataset", "show", &made["checked"]]).contains(REASON));
    assert!(project.json(&["dataset", "show", &made["queried"]])["report"]["notes"].to_string().contains(NO_TIME));
    project.write(".eadem/offline/spines/left-over.csv", "user\nghost\n");
    project.succeed(&["dataset", "diff", &made["plain"], &made["later"]]);
    let shown_before = project.json(&["dataset", "show", &made["later"]]);
    let statistics_before = shown_before["report"]["statistics"].clone();
    assert!(!statistics_before["features"][1]["top"].as_array().unwrap().is_empty(), "{statistics_before}");

    let job = erase_ghost(&project);
    let (result, spines) = (&job["result"], &job["result"]["spines"]);
    let expected: BTreeSet<&str> = touched.iter().map(|name| made[name].as_str()).collect();
    let named = |names: &Json| -> BTreeSet<String> {
        names.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    assert!(named(&result["datasets"]).iter().map(String::as_str).eq(expected.iter().copied()), "{result}");
    assert!(named(&spines["datasets"]).iter().map(String::as_str).eq(expected.iter().copied()), "{result}");
    assert_eq!((&spines["rows"], &spines["files_deleted"]), (&json!(4), &json!(5)), "{result}");
    assert!(spines["bytes_deleted"].as_u64().unwrap() > 0, "{result}");
    assert!(result["lines"].to_string().contains("kept spines: 5 deleted"), "{result}");
    assert!(!project.path(".eadem/offline/spines/left-over.csv").exists());

    for (name, id) in &made {
        let is_touched = touched.contains(name);
        assert_eq!(keeps_spine(&project, id), !is_touched, "the spine of {name}");
        let shown = project.json(&["dataset", "show", id]);
        assert_eq!(shown["erased"]["job"] == job["id"], is_touched, "{name}: {shown}");
        let again = project.path(&format!("{name}-again.parquet"));
        let rebuild = ["dataset", "rebuild", id, "--out", again.to_str().unwrap()];
        if !is_touched {
            project.succeed(&rebuild);
            continue;
        }
        let said = project.fail(&rebuild);
        assert!(said.contains("cannot be made again: the erasure"), "{name}: {said}");
        // Values of single rows are gone wherever statistics stand; what is of all rows together stays.
        let recipes = project.json(&["jobs", "show", id]);
        assert_eq!(recipes["result"]["statistics"], Json::Null, "{recipes}");
        for said in [REASON, NO_TIME] {
            assert!(!shown.to_string().contains(said) && !recipes.to_string().contains(said), "{shown} {recipes}");
        }
        for feature in shown["report"]["statistics"]["features"].as_array().unwrap() {
            assert_eq!((&feature["min"], &feature["max"], &feature["top"]), (&Json::Null, &Json::Null, &json!([])));
            assert_eq!(feature["quantiles"], json!({}));
            assert!(feature["statuses"].is_object() && feature["values"].is_u64(), "{feature}");
        }
        assert!(project.succeed(&["dataset", "show", id]).contains("cannot be made again: the erasure"));
    }
    assert_eq!(project.json(&["dataset", "show", &made["later"]])["report"]["statistics"], statistics_before);
    let with_values = files_below(&project.path(".eadem/offline/statistics")).into_iter().filter(|file| {
        let kept: Json = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        kept["features"].as_array().unwrap().iter().any(|feature| !feature["min"].is_null())
    });
    assert_eq!(with_values.count(), 3, "statistics with values");
    // What was compared with one of them said what stood in its rows.
    let jobs = project.json(&["jobs", "list", "--kind", "dataset"]);
    let compared = jobs["jobs"].as_array().unwrap().iter().find(|job| job["spec"]["diff"].is_array()).unwrap();
    let compared = project.json(&["jobs", "show", compared["id"].as_str().unwrap()]);
    assert!(compared["result"]["lines"][0].as_str().unwrap().contains("erased"), "{compared}");
    assert!(compared["result"]["changes"].is_null(), "{compared}");

    // Whatever reads training sets copes; again is no mistake, and finds nothing.
    project.succeed(&["dataset", "list"]);
    project.succeed(&["dataset", "diff", &made["plain"], &made["later"]]);
    project.succeed(&["offline", "vacuum"]);
    let again = erase_ghost(&project);
    assert_eq!((&again["result"]["spines"]["files_deleted"], &again["result"]["datasets"]), (&json!(0), &json!([])));
}

#[test]
fn a_training_set_that_had_not_been_made_says_that_its_spine_was_erased() {
    let project = project_with_events();
    project.write("spine.csv", format!("user,timestamp\n{GHOST},2024-02-01T00:00:00Z\n"));
    // Where a folder should be is a file: the job fails, and may be resumed.
    project.write("blocked", "");
    let out = project.path("blocked/out.parquet");
    project.fail(&["dataset", "create", "--service", "events", "--spine", "spine.csv", "--out", out.to_str().unwrap()]);
    let jobs = project.json(&["jobs", "list", "--kind", "dataset"]);
    let id = jobs["jobs"][0]["id"].as_str().unwrap();
    std::fs::remove_file(project.path("blocked")).unwrap();
    let job = erase_ghost(&project);
    assert_eq!(job["result"]["spines"]["rows"], 1, "{job}");
    assert!(files_below(&project.path(".eadem/offline/spines")).is_empty());
    let said = project.fail(&["jobs", "resume", id]);
    assert!(said.contains("the copy of the spine that the store kept is gone"), "{said}");
    assert!(!out.exists());
}

#[test]
fn extracts_go_and_jobs_that_need_one_say_so() {
    let postgres = Postgres::start();
    let mut project = Project::new();
    project.variables = vec![("EVENTS_DATABASE_URL", postgres.url())];
    let rows = "values ('ada', 1, 'a', timestamptz '2024-01-01 00:00Z'), ('ghost', 2, 'g', timestamptz '2024-01-02 00:00Z'), \
                ('bob', 5, 'b', timestamptz '2024-01-03 00:00Z')";
    let source = format!(
        "postgres = {{ url_env = \"EVENTS_DATABASE_URL\", query = '''select t.user, t.x::bigint, t.label, t.at from ({rows}) as \
         t(\"user\", x, label, at)''' }}"
    );
    project.write("features/events.toml", DEFINITIONS.replace("parquet = \"data/events.parquet\"", &source));
    project.add_component("partial_filter");
    project.write("data/orders.csv", "buyer,ordered_at\n");
    project.succeed(&["apply"]);
    let extracts = project.path(".eadem/offline/extracts/events/v1");
    let holds_ghost = |file: &PathBuf| rows_of_file(file).iter().any(|row| row.contains(GHOST));
    // Where quarantine has its folder is a file: the job fails when it has its extract.
    project.write(".eadem/offline/quarantine", "");
    project.fail(&["backfill"]);
    std::fs::remove_file(project.path(".eadem/offline/quarantine")).unwrap();
    let kept = files_below(&extracts);
    assert!(kept.len() == 1 && kept.iter().all(holds_ghost), "{kept:?}");
    std::fs::write(extracts.join("_writing-1-2-3"), b"what a job that was killed had written").unwrap();

    let job = erase_ghost(&project);
    let view = &job["result"]["views"][0];
    assert_eq!(view["extracts_deleted"], 2, "{job}");
    assert!(view["extract_bytes_deleted"].as_u64().unwrap() > 0, "{job}");
    assert!(job["result"]["lines"].to_string().contains("2 extracts deleted"), "{job}");
    assert!(files_below(&extracts).is_empty());

    let jobs = project.json(&["jobs", "list", "--kind", "backfill"]);
    let said = project.fail(&["jobs", "resume", jobs["jobs"][0]["id"].as_str().unwrap()]);
    assert!(said.contains("what the job had extracted is gone") && said.contains("start a new one"), "{said}");
    // A new one reads the source anew, which has the rows still: they stay out of the table.
    let loaded = project.json(&["backfill"]);
    assert_eq!(loaded["backfill"]["result"]["views"][0]["rows_erased"], 1, "{loaded}");
    let stored = files_below(&project.path(".eadem/offline/views/events/v1"));
    let stored: Vec<&PathBuf> =
        stored.iter().filter(|file| file.extension().is_some_and(|its| its == "parquet")).collect();
    assert!(!stored.is_empty() && !stored.into_iter().any(holds_ghost));
}
