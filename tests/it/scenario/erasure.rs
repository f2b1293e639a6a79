//! R7: entities are erased from every store, by a job that is killed at random instants; late rows, replays and loads of all kinds
//! bring nothing back, and everything else stays as it was.
//!
//! The test prints `R7: cases=… faults=…`: rows and values that were looked at, and those that came back or went missing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::compute::kernels::cast_utils::string_to_timestamp_nanos;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use serde_json::{Value as Json, json};

use super::erasure_copies::files_below;
use super::kills::{rows_of_file, rows_of_table};
use super::project::{Project, Server};
use crate::dice::{Dice, is_soak, seed};

const VIEW: &str = "views/events/v1";
const QUARANTINE: &str = "quarantine/events/v1";

/// 2024-01-01T00:00:00Z.
const BEGIN_US: i64 = 1_704_067_200_000_000;
const MINUTE_US: i64 = 60_000_000;

const DEFINITIONS: &str = r#"
[entity.user]
keys = { user = "utf8" }

[source.events]
parquet = "data/events/"
event_time = "at"

[view.events]
entity = "user"
source = "events"
transform = "transforms/partial_filter.wasm"
online_history = "36500d"

[service.events]
features = ["events:doubled", "events:label"]
"#;

/// What there is, and what is erased of it.
struct Case {
    rows: usize,
    users: usize,
    erased: usize,
    /// Rows of erased users up to this one go.
    up_to_us: i64,
    kills: u64,
}

impl Case {
    fn new() -> Self {
        let (rows, users, erased, kills) = if is_soak() { (1_000_000, 20_000, 1_000, 20) } else { (6_000, 200, 20, 4) };
        // At the middle row, to the microsecond.
        Self { rows, users, erased, up_to_us: BEGIN_US + (rows as i64 / 2) * MINUTE_US, kills }
    }

    fn user(&self, row: usize) -> String {
        format!("user_{:06}", row * 7_919 / 11 % self.users)
    }

    fn is_erased(&self, user: &str) -> bool {
        let number: usize = user["user_".len()..].parse().unwrap();
        number.is_multiple_of(self.users / self.erased)
    }

    fn erased_users(&self) -> Vec<String> {
        (0..self.users).map(|number| format!("user_{number:06}")).filter(|user| self.is_erased(user)).collect()
    }

    /// Rows of these numbers and times, as the source has them. Of ten numbers two are refused and three dropped.
    fn write_rows(&self, file: &Path, rows: impl Iterator<Item = (usize, i64)>) {
        let rows: Vec<(usize, i64)> = rows.collect();
        let users: StringArray = rows.iter().map(|(row, _)| Some(self.user(*row))).collect();
        let xs: Int64Array = rows.iter().map(|(row, _)| Some(*row as i64)).collect();
        let labels: StringArray = rows.iter().map(|(row, _)| Some(format!("row {row}"))).collect();
        let times: TimestampMicrosecondArray = rows.iter().map(|(_, at_us)| Some(*at_us)).collect();
        let columns: [(&str, ArrayRef); 4] = [
            ("user", Arc::new(users)),
            ("x", Arc::new(xs)),
            ("label", Arc::new(labels)),
            ("at", Arc::new(times.with_timezone("UTC"))),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let properties =
            WriterProperties::builder().set_max_row_group_row_count(Some(batch.num_rows() / 4 + 1)).build();
        let mut writer = ArrowWriter::try_new(File::create(file).unwrap(), batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }

    /// Whether a row of a table, as text, has to be gone.
    fn goes(&self, row: &str) -> bool {
        let cell = |name: &str| {
            let cells = row.split('|').filter_map(|cell| cell.split_once('='));
            cells.into_iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_owned()).unwrap()
        };
        self.is_erased(&cell("user")) && instant_us(&cell("event_time")) <= self.up_to_us
    }
}

/// Instants as the tables' rows and RFC 3339 write them.
fn instant_us(text: &str) -> i64 {
    string_to_timestamp_nanos(text).unwrap_or_else(|error| panic!("no instant: {text}: {error}")) / 1_000
}

fn rfc_3339(us: i64) -> String {
    let times = TimestampMicrosecondArray::from(vec![us]).with_timezone("+00:00");
    ArrayFormatter::try_new(&times, &FormatOptions::new()).unwrap().value(0).to_string()
}

#[test]
fn instants_are_read_as_they_are_written() {
    for us in [BEGIN_US, BEGIN_US + 59 * 86_400_000_000 + 1, 0, 951_782_400_000_000] {
        assert_eq!(instant_us(&rfc_3339(us)), us);
    }
    assert_eq!(rfc_3339(BEGIN_US + 1), "2024-01-01T00:00:00.000001Z");
}

/// What was looked at, and what was wrong.
#[derive(Default)]
struct Tally {
    cases: u64,
    faults: Vec<String>,
}

impl Tally {
    /// Compares two lists of rows, both sorted: each row that is in one only is a fault.
    fn compare(&mut self, what: &str, expected: &[String], found: &[String]) {
        self.cases += expected.len() as u64;
        let (expected, found): (BTreeSet<&String>, BTreeSet<&String>) =
            (expected.iter().collect(), found.iter().collect());
        let missing = expected.difference(&found).map(|row| format!("{what}: missing: {row}"));
        let back = found.difference(&expected).map(|row| format!("{what}: came back: {row}"));
        self.faults.extend(missing.chain(back));
    }

    fn expect(&mut self, what: &str, is_so: bool) {
        self.cases += 1;
        if !is_so {
            self.faults.push(what.to_owned());
        }
    }
}

fn table(project: &Project, table: &str) -> PathBuf {
    project.path(".eadem/offline").join(table)
}

/// Every data file below a folder, in whichever version or in none.
fn data_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            data_files(&path, found);
        } else if path.extension().is_some_and(|its| its == "parquet") {
            found.push(path);
        }
    }
}

/// Users that are erased and stand in a file of these folders of the offline store, which lose every file that holds one. What is
/// compressed is read as rows too.
fn users_left(case: &Case, project: &Project, folders: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for folder in folders {
        for file in files_below(&table(project, folder)) {
            let mut text = String::from_utf8_lossy(&std::fs::read(&file).unwrap()).into_owned();
            if file.extension().is_some_and(|its| its == "parquet") {
                text.extend(rows_of_file(&file));
            }
            let users = case.erased_users().into_iter().filter(|user| text.contains(user));
            found.extend(users.map(|user| format!("{user} in {}", file.display())));
        }
    }
    found
}

/// Rows that have to be gone and stand in any file of the view's table or quarantine.
fn leftovers(case: &Case, project: &Project) -> Vec<String> {
    let (mut rows, mut files) = (Vec::new(), Vec::new());
    data_files(&table(project, VIEW), &mut files);
    for file in &files {
        rows.extend(rows_of_file(file).into_iter().filter(|row| case.goes(row)));
    }
    files.clear();
    data_files(&table(project, QUARANTINE), &mut files);
    for file in &files {
        rows.extend(rows_of_file(file).into_iter().filter(|row| quarantine_row_goes(case, row)));
    }
    rows
}

fn quarantine_row_goes(case: &Case, row: &str) -> bool {
    let inputs = row.split('|').find_map(|cell| cell.strip_prefix("inputs=")).unwrap();
    let Ok(kept) = serde_json::from_str::<Json>(inputs) else { return false };
    let Some(user) = kept["keys"]["user"].as_str() else { return false };
    case.is_erased(user) && instant_us(kept["event_time"].as_str().unwrap()) <= case.up_to_us
}

/// The features of some users at some instants, as the server answers.
fn served(server: &Server, users: &[String], at_us: i64) -> BTreeMap<String, Json> {
    let mut answers = BTreeMap::new();
    for users in users.chunks(1_000) {
        let entities: Vec<Json> = users.iter().map(|user| json!({ "user": user })).collect();
        let body = json!({ "service": "events@1", "entities": entities, "timestamp": rfc_3339(at_us) });
        let (status, reply) = server.post("/features/batch", &body);
        assert_eq!(status, 200, "{reply}");
        for (user, result) in users.iter().zip(reply["results"].as_array().unwrap()) {
            answers.insert(user.clone(), json!([result["features"], result["status"]]));
        }
    }
    answers
}

fn missing() -> Json {
    json!([{ "doubled": null, "label": null }, { "doubled": "missing", "label": "missing" }])
}

fn killed_and_served_again(mut server: Server, project: &Project) -> Server {
    server.process.kill().unwrap();
    server.process.wait().unwrap();
    drop(server);
    project.serve()
}

/// The bytes of the registry's files.
fn files_of_database(project: &Project) -> Vec<Vec<u8>> {
    let folder = std::fs::read_dir(project.path(".eadem")).unwrap().map(|entry| entry.unwrap().path());
    let is_database = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("registry.sqlite");
    let files: Vec<Vec<u8>> = folder.filter(is_database).map(|path| std::fs::read(path).unwrap()).collect();
    assert!(files.iter().any(|file| !file.is_empty()));
    files
}

/// Starts the erasure, and kills its server again and again until it is done.
fn erase(case: &Case, project: &Project, dice: &mut Dice, tally: &mut Tally) -> Json {
    let mut server = project.serve();
    let keys: Vec<Json> = case.erased_users().iter().map(|user| json!({ "user": user })).collect();
    let request = json!({ "entity": "user", "keys": keys, "up_to": rfc_3339(case.up_to_us) });
    let (status, job) = server.post("/erasures", &request);
    assert_eq!(status, 202, "{job}");
    assert_eq!(job["spec"]["entities"], case.erased as u64, "{job}");
    assert!(job["spec"].get("keys").is_none(), "{job}");
    let path = format!("/jobs/{}", job["id"].as_str().unwrap());
    // The first kill comes at once: it meets the job at work, unless that is very quick.
    let mut kills = 0;
    if case.kills > 0 {
        server = killed_and_served_again(server, project);
        kills += 1;
    }
    // It is hidden at once, whatever the job has done by now.
    for (user, answer) in served(&server, &case.erased_users(), case.up_to_us) {
        tally.expect(&format!("{user} is served after its erasure: {answer}"), answer == missing());
    }
    loop {
        let mut waited = Duration::ZERO;
        let until = Duration::from_millis(if is_soak() { 8_000 } else { 400 }).mul_f64(dice.share());
        let job = loop {
            let (_, job) = server.get(&path);
            if job["state"] != "running" || (kills < case.kills && waited >= until) {
                break job;
            }
            std::thread::sleep(Duration::from_millis(5));
            waited += Duration::from_millis(5);
        };
        match job["state"].as_str().unwrap() {
            "succeeded" => return job,
            "running" => {
                server = killed_and_served_again(server, project);
                kills += 1;
            }
            "interrupted" => {
                let (status, resumed) = server.post(&format!("{path}/resume"), &json!({}));
                assert_eq!(status, 202, "{resumed}");
            }
            _ => panic!("{job}"),
        }
    }
}

#[test]
fn nothing_of_an_erased_entity_comes_back_and_nothing_else_goes() {
    let case = Case::new();
    let mut dice = Dice(seed().wrapping_add(7));
    let mut tally = Tally::default();
    let project = Project::new();
    project.write("features/events.toml", DEFINITIONS);
    project.add_component("partial_filter");
    project.write("eadem.toml", "[jobs]\nlease_ms = 500\nchunk_rows = 2000\n");
    // Two jobs, a file each; then a compaction, whose inputs stay for readers of the past.
    let half = case.rows / 2;
    let at = |row: usize| BEGIN_US + row as i64 * MINUTE_US;
    case.write_rows(&project.path("data/events/1.parquet"), (0..half).map(|row| (row, at(row))));
    for verb in [&["apply"][..], &["backfill"]] {
        project.succeed(verb);
    }
    case.write_rows(&project.path("data/events/2.parquet"), (half..case.rows).map(|row| (row, at(row))));
    for verb in [&["backfill"][..], &["offline", "compact"], &["materialize"]] {
        project.succeed(verb);
    }
    let users: Vec<String> = (0..case.users).map(|number| format!("user_{number:06}")).collect();
    let mut spine = "user,timestamp\n".to_owned();
    for user in &users {
        for at_us in [case.up_to_us, at(case.rows)] {
            spine += &format!("{user},{}\n", rfc_3339(at_us));
        }
    }
    project.write("spine.csv", spine);
    let dataset = ["dataset", "create", "--service", "events", "--spine", "spine.csv"];
    let before = project.path("before.parquet");
    project.succeed(&[&dataset[..], &["--out", before.to_str().unwrap()]].concat());

    // What a job would have left that had read the rows from a database and broken off.
    let extract = table(&project, "extracts/events/v1/extract.parquet");
    std::fs::create_dir_all(extract.parent().unwrap()).unwrap();
    std::fs::copy(project.path("data/events/1.parquet"), &extract).unwrap();
    let copies = ["spines", "extracts"];
    assert!(users_left(&case, &project, &copies).len() > case.erased, "nothing would go");

    let stored_before = rows_of_table(&table(&project, VIEW));
    let refused_before = rows_of_table(&table(&project, QUARANTINE));
    let stored: Vec<String> = stored_before.iter().filter(|row| !case.goes(row)).cloned().collect();
    let refused: Vec<String> = refused_before.iter().filter(|row| !quarantine_row_goes(&case, row)).cloned().collect();
    assert!(stored.len() < stored_before.len() && refused.len() < refused_before.len(), "nothing would be erased");
    assert!(!leftovers(&case, &project).is_empty());
    let instants = [case.up_to_us, case.up_to_us + 1, at(case.rows)];
    let expected: Vec<BTreeMap<String, Json>> = {
        let server = project.serve();
        let mut answers: Vec<_> = instants.iter().map(|at_us| served(&server, &users, *at_us)).collect();
        for (answers, at_us) in answers.iter_mut().zip(instants) {
            // Whoever has no later row by then has none at all.
            let mut newest: BTreeMap<String, i64> = BTreeMap::new();
            for row in (0..case.rows).filter(|row| at(*row) <= at_us) {
                let is_stored = !row.is_multiple_of(5) && !row.is_multiple_of(3);
                if is_stored {
                    newest.insert(case.user(row), at(row));
                }
            }
            for user in case.erased_users() {
                if newest.get(&user).is_none_or(|newest| *newest <= case.up_to_us) {
                    answers.insert(user, missing());
                }
            }
        }
        answers
    };

    let job = erase(&case, &project, &mut dice, &mut tally);
    let report = &job["result"]["views"][0];
    println!("{}", job["result"]["lines"]);
    let counted = |name: &str| report[name].as_u64().unwrap();
    tally.expect(
        "the report counts the rows of the table",
        counted("offline_rows") == (stored_before.len() - stored.len()) as u64,
    );
    // Not how many files were deleted: a run that was killed has deleted some, and only the last one tells. That none is left
    // is looked for below.
    tally.compare("table", &stored, &rows_of_table(&table(&project, VIEW)));
    tally.compare("quarantine", &refused, &rows_of_table(&table(&project, QUARANTINE)));
    tally.compare("any file", &[], &leftovers(&case, &project));
    tally.compare("copies", &[], &users_left(&case, &project, &copies));

    let look = |tally: &mut Tally, when: &str| {
        let server = project.serve();
        for (expected, at_us) in expected.iter().zip(instants) {
            let found = served(&server, &users, at_us);
            for user in &users {
                let is_so = found[user] == expected[user];
                tally.expect(&format!("{when}: {user} at {}: {}", rfc_3339(at_us), found[user]), is_so);
            }
        }
    };
    look(&mut tally, "after the erasure");

    // The training set of before cannot be made again, and says why; a new one has nothing of what is gone.
    let datasets = project.json(&["dataset", "list"]);
    let id = datasets["datasets"][0]["id"].as_str().unwrap();
    let said = project.fail(&["dataset", "rebuild", id, "--out", project.path("again.parquet").to_str().unwrap()]);
    tally.expect("a rebuild says why it cannot be", said.contains("cannot be made again: the erasure"));
    let shown = project.json(&["dataset", "show", id]);
    tally.expect("a training set shows that it was touched", shown["erased"]["job"] == job["id"]);
    let text = project.succeed(&["dataset", "show", id]);
    tally.expect("a training set says so to people", text.contains("cannot be made again: the erasure"));
    let after = project.path("after.parquet");
    project.succeed(&[&dataset[..], &["--out", after.to_str().unwrap()]].concat());
    let at_the_instant = format!("timestamp={}", &rfc_3339(case.up_to_us)[..19]);
    let of_erased: Vec<String> = rows_of_file(&after)
        .into_iter()
        .filter(|row| row.contains(&at_the_instant))
        .filter(|row| row.split('|').any(|cell| cell.strip_prefix("user=").is_some_and(|user| case.is_erased(user))))
        .collect();
    tally.expect("the new training set has rows of them", of_erased.len() == case.erased);
    for row in of_erased {
        tally.expect(&format!("a training set has {row}"), row.contains("doubled__status=missing"));
    }

    // Late rows: of the erased users before and after the instant, and of others.
    let late = |row: usize| (row, if row.is_multiple_of(2) { at(row) - 1 } else { case.up_to_us + 1 + row as i64 });
    case.write_rows(&project.path("data/events/3.parquet"), (0..half / 2).map(late));
    let backfilled = project.json(&["backfill"]);
    let rows_erased = backfilled["backfill"]["result"]["views"][0]["rows_erased"].as_u64().unwrap();
    tally.expect("late rows of erased users stay out, and are counted", rows_erased > 0);
    let with_late = rows_of_table(&table(&project, VIEW));
    tally.expect("late rows of others come in", with_late.len() > stored.len());
    let known: BTreeSet<&String> = stored.iter().collect();
    let is_new = |row: &&String| !known.contains(row);
    let later = with_late.iter().filter(is_new).any(|row| case.is_erased(&row["user=".len()..][..11]));
    tally.expect("later rows of erased users come in", later);
    tally.compare("late rows", &[], &leftovers(&case, &project));
    let kept: BTreeSet<&String> = with_late.iter().collect();
    let lost: Vec<String> = stored.iter().filter(|row| !kept.contains(row)).cloned().collect();
    tally.compare("rows that were there", &[], &lost);

    // Everything is computed anew from the files, which still have the rows; refused ones are replayed; the online store is
    // loaded anew.
    project.succeed(&["quarantine", "replay", "events"]);
    project.succeed(&["backfill", "--recompute"]);
    tally.compare("recomputed", &with_late, &rows_of_table(&table(&project, VIEW)));
    tally.compare("recomputed, any file", &[], &leftovers(&case, &project));
    project.write("data/events/3.parquet", b"");
    std::fs::remove_file(project.path("data/events/3.parquet")).unwrap();
    project.succeed(&["materialize"]);
    let server = project.serve();
    let found = served(&server, &case.erased_users(), case.up_to_us);
    for (user, answer) in found {
        tally.expect(&format!("loaded anew, {user} has {answer}"), answer == missing());
    }
    drop(server);

    // Nothing keeps a key: neither what the job says, nor the database, nor what it has not yet written over.
    let job_text = project.succeed(&["jobs", "show", job["id"].as_str().unwrap(), "--output", "json"]);
    let database = files_of_database(&project);
    for user in case.erased_users() {
        tally.expect(&format!("the job names {user}"), !job_text.contains(&user));
        let is_there = database.iter().any(|file| file.windows(user.len()).any(|bytes| bytes == user.as_bytes()));
        tally.expect(&format!("the database names {user}"), !is_there);
    }

    println!("R7: cases={} faults={}", tally.cases, tally.faults.len());
    let shown: Vec<&String> = tally.faults.iter().take(10).collect();
    assert!(tally.faults.is_empty(), "{shown:#?}");
}

#[test]
fn the_command_line_erases_one_entity_or_many_and_says_what_is_wrong() {
    let case = Case { rows: 600, users: 20, erased: 2, up_to_us: BEGIN_US + 300 * MINUTE_US, kills: 0 };
    let project = Project::new();
    project.write("features/events.toml", DEFINITIONS);
    project.add_component("partial_filter");
    case.write_rows(
        &project.path("data/events/1.parquet"),
        (0..case.rows).map(|row| (row, BEGIN_US + row as i64 * MINUTE_US)),
    );
    for verb in [&["apply"][..], &["backfill"], &["materialize"]] {
        project.succeed(verb);
    }
    let said = project.fail(&["erase", "--entity", "usr", "--key", "user=user_000000"]);
    assert!(said.contains("[unknown_entity]"), "{said}");
    let said = project.fail(&["erase", "--entity", "user", "--key", "usr=user_000000"]);
    assert!(said.contains("its keys are user"), "{said}");
    let said = project.fail(&["erase", "--entity", "user"]);
    assert!(said.contains("--key"), "{said}");
    let said = project.fail(&["erase", "--entity", "user", "--key", "user=user_000000", "--up-to", "yesterday"]);
    assert!(said.contains("[malformed_job]") && said.contains("up_to"), "{said}");
    project.write("keys.csv", "user\nuser_000000\n\"user_000010\"\n");
    project.write("bad.csv", "user\na,b\n");
    let said = project.fail(&["erase", "--entity", "user", "--file", "bad.csv"]);
    assert!(said.contains("bad.csv:2: 2 values for 1 keys"), "{said}");
    let before = rows_of_table(&table(&project, VIEW));

    let up_to = rfc_3339(case.up_to_us);
    let job = project.json(&["erase", "--entity", "user", "--file", "keys.csv", "--up-to", &up_to]);
    assert_eq!(job["state"], "succeeded", "{job}");
    assert_eq!(job["kind"], "erase");
    let expected: Vec<String> = before.iter().filter(|row| !case.goes(row)).cloned().collect();
    assert!(expected.len() < before.len());
    assert_eq!(rows_of_table(&table(&project, VIEW)), expected);
    assert_eq!(job["result"]["views"][0]["offline_rows"], (before.len() - expected.len()) as u64);
    assert!(job["result"]["views"][0]["online_rows"].as_u64().unwrap() > 0, "{job}");
    assert!(leftovers(&case, &project).is_empty());

    // One more, all of it.
    let text = project.succeed(&["erase", "--entity", "user", "--key", "user=user_000001"]);
    assert!(text.contains("1 of `user`: erased up to") && text.contains("events@1:"), "{text}");
    let left = rows_of_table(&table(&project, VIEW));
    assert!(!left.iter().any(|row| row.starts_with("user=user_000001")), "it is still there");
    let reply = project.json(&["get", "user_000001", "--features", "doubled"]);
    assert_eq!(reply["status"]["doubled"], "missing", "{reply}");
    // Again is no mistake, and finds nothing.
    let again = project.json(&["erase", "--entity", "user", "--key", "user=user_000001"]);
    assert_eq!(again["result"]["views"][0]["offline_rows"], 0, "{again}");
}
