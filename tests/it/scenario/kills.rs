//! H9: processes that are killed at random instants, while somebody reads.
//!
//! A killed job is resumed until it ends, and then the table or file must be what an undisturbed run makes, row for row.
//! All the while a reader looks at what is visible, by its own reading of the table's log, and must never see a part. Each
//! test prints `H9: kills=… faults=…`; the bar adds the lines up.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::properties::WriterProperties;
use serde_json::Value as Json;

use super::project::{Project, root};
use crate::dice::{Dice, is_soak, seed};

/// Rows of one row group of the source, and so of one chunk of the job.
const CHUNK_ROWS: usize = 250;
/// Rows of the source, of which there are more.
const ROWS: usize = 26 * CHUNK_ROWS;
/// One row in so many has no key, and is refused.
const REFUSED_EVERY: usize = 197;
pub(super) const VIEW: &str = "airport_weather";
/// Leases end soon, so that a test need not wait long for the chunks of the dead.
const LEASE_MS: u64 = 500;
/// Kills after which one must have met a job half done.
const KILLS_MAX: u64 = 100;
/// Nothing here takes as long.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) fn dice(salt: u64) -> Dice {
    Dice(seed().wrapping_add(salt))
}

/// A Parquet file again, in many row groups; in the column `blank`, if it has one, now and then without a value.
fn rewrite(file: &Path, blank: &str) {
    let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(file).unwrap()).unwrap();
    let schema = reader.schema().clone();
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(CHUNK_ROWS)).build();
    let mut writer =
        ArrowWriter::try_new(std::fs::File::create(file).unwrap(), schema.clone(), Some(properties)).unwrap();
    let mut rows = 0;
    for batch in &batches {
        let batch = batch.slice(0, batch.num_rows().min(ROWS - rows));
        let columns = schema.fields().iter().zip(batch.columns()).map(|(field, column)| match field.name() == blank {
            false => column.clone(),
            true => {
                let texts = arrow::compute::cast(column, &arrow::datatypes::DataType::Utf8).unwrap();
                let texts = texts.as_any().downcast_ref::<StringArray>().unwrap();
                let kept = |row: usize| (rows + row).is_multiple_of(REFUSED_EVERY).then_some(()).is_none();
                let blanked: StringArray = (0..texts.len()).map(|row| kept(row).then(|| texts.value(row))).collect();
                arrow::compute::cast(&(Arc::new(blanked) as ArrayRef), field.data_type()).unwrap()
            }
        });
        writer.write(&RecordBatch::try_new(schema.clone(), columns.collect()).unwrap()).unwrap();
        rows += batch.num_rows();
    }
    writer.close().unwrap();
    assert_eq!(rows, ROWS);
}

pub(super) const DEFINITIONS: &str = r#"
[entity.airport]
keys = { airport = "utf8" }

[source.weather]
parquet = "data/weather.parquet"
columns = { airport = "origin" }
event_time = "time_hour"
known_at = { after = "15m" }

[view.airport_weather]
entity = "airport"
source = "weather"
transform = "transforms/airport_weather.wasm"

[service.weather]
features = ["airport_weather:*"]
"#;

/// A project with one source in many chunks, applied; nothing is loaded yet.
pub(super) fn applied_project() -> Project {
    let project = Project::new();
    project.write("features/weather.toml", DEFINITIONS);
    project.write("data/weather.parquet", std::fs::read(root().join("demo/data/weather.parquet")).unwrap());
    project.add_component(VIEW);
    rewrite(&project.path("data/weather.parquet"), "origin");
    project.write("eadem.toml", settings_of_jobs());
    project.succeed(&["apply"]);
    project
}

/// Small chunks, one after the other, and short leases.
pub(super) fn settings_of_jobs() -> String {
    format!("[jobs]\nchunk_rows = {CHUNK_ROWS}\nworkers = 1\nlease_ms = {LEASE_MS}\n")
}

/// The files of the newest version of a Delta table; `None` where no version has rows.
pub(super) fn files_of_table(table: &Path) -> Option<Vec<PathBuf>> {
    let log = std::fs::read_dir(table.join("_delta_log")).ok()?;
    let mut versions: Vec<PathBuf> = log
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|its| its == "json"))
        .collect();
    versions.sort();
    let mut files = BTreeSet::new();
    let mut has_rows = false;
    for version in versions {
        let text = std::fs::read_to_string(&version).unwrap();
        for line in text.lines() {
            let action: Json =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{}: {error}", version.display()));
            let path = |kind: &str| action[kind]["path"].as_str().map(|path| table.join(path.replace("%3D", "=")));
            files.extend(path("add"));
            has_rows |= path("add").is_some();
            if let Some(gone) = path("remove") {
                files.remove(&gone);
            }
        }
    }
    has_rows.then(|| files.into_iter().collect())
}

/// The rows of a table as text, sorted, without the columns that say which job wrote them; none without a table.
pub(super) fn rows_of_table(table: &Path) -> Vec<String> {
    let mut rows = Vec::new();
    for file in files_of_table(table).unwrap_or_default() {
        rows.extend(rows_of_file(&file));
    }
    rows.sort_unstable();
    rows
}

pub(super) fn rows_of_file(file: &Path) -> Vec<String> {
    let open = std::fs::File::open(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut rows = Vec::new();
    for batch in ParquetRecordBatchReaderBuilder::try_new(open).unwrap().build().unwrap() {
        let batch = batch.unwrap();
        let schema = batch.schema();
        let compared = schema.fields().iter().zip(batch.columns());
        let compared: Vec<_> = compared
            .filter(|(field, _)| !["job", "arrival", "file"].contains(&field.name().as_str()))
            .map(|(field, column)| {
                let options = FormatOptions::new().with_null("∅");
                (field.name(), ArrayFormatter::try_new(column.as_ref(), &options).unwrap())
            })
            .collect();
        for row in 0..batch.num_rows() {
            let cells = compared.iter().map(|(name, column)| format!("{name}={}", column.value(row)));
            rows.push(cells.collect::<Vec<_>>().join("|"));
        }
    }
    rows
}

/// Rows that a table's files say to have, for a reader that looks often.
fn count_of_table(table: &Path) -> usize {
    let rows = |file: PathBuf| {
        let open = std::fs::File::open(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let reader = ParquetRecordBatchReaderBuilder::try_new(open).unwrap();
        usize::try_from(reader.metadata().file_metadata().num_rows()).unwrap()
    };
    files_of_table(table).unwrap_or_default().into_iter().map(rows).sum()
}

/// Somebody who reads all the while. `look` says what is wrong with what it sees.
struct Reader {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<(u64, Vec<String>)>,
}

impl Reader {
    fn start(look: impl Fn() -> Option<String> + Send + 'static) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            let (mut looks, mut faults) = (0, Vec::new());
            while !over.load(Ordering::Relaxed) {
                faults.extend(look());
                looks += 1;
                // It shall not keep the writers from their work.
                std::thread::sleep(Duration::from_millis(5));
            }
            (looks, faults)
        });
        Self { is_over, thread }
    }

    /// What it has seen that nobody should see.
    fn end(self) -> Vec<String> {
        self.is_over.store(true, Ordering::Relaxed);
        let (looks, faults) = self.thread.join().unwrap();
        assert!(looks > 0, "the reader has never looked");
        faults
    }
}

pub(super) fn spawn(project: &Project, arguments: &[&str]) -> Child {
    let mut command = project.command(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Lets a process work for a while and kills it; whether it was still at work.
pub(super) fn kill_after(process: &mut Child, wait: Duration) -> bool {
    std::thread::sleep(wait);
    let was_at_work = process.try_wait().unwrap().is_none();
    let _ = process.kill();
    process.wait().unwrap();
    was_at_work
}

fn wait_for_end(process: &mut Child) {
    let began = Instant::now();
    while process.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < PATIENCE, "a process does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The newest job, if there is one.
pub(super) fn newest_job(project: &Project) -> Option<Json> {
    project.json(&["jobs", "list", "--limit", "1"])["jobs"].get(0).cloned()
}

/// What the tests of kills count.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) kills: u64,
    /// Kills that met a process at work.
    pub(super) met: u64,
    /// Jobs that were resumed with some of their chunks done.
    pub(super) half_done: u64,
    pub(super) faults: Vec<String>,
}

impl Tally {
    /// Prints the line that the bar reads, and fails on any fault.
    pub(super) fn end(self, what: &str) {
        println!(
            "{what}: {} of {} kills met a process at work, {} jobs half done",
            self.met, self.kills, self.half_done
        );
        println!("H9: kills={} faults={}", self.met, self.faults.len());
        assert!(self.met > 0, "{what}: every kill came too late");
        assert!(self.faults.is_empty(), "{what}: {:#?}", self.faults);
    }
}

/// What an undisturbed backfill leaves, and how long it takes.
struct Undisturbed {
    rows: Vec<String>,
    refused: Vec<String>,
    took: Duration,
}

fn table_of(project: &Project) -> PathBuf {
    project.path(&format!(".eadem/offline/views/{VIEW}/v1"))
}

fn quarantine_of(project: &Project) -> PathBuf {
    project.path(&format!(".eadem/offline/quarantine/{VIEW}/v1"))
}

fn undisturbed_backfill(base: &Project) -> Undisturbed {
    let project = base.copied();
    let began = Instant::now();
    project.succeed(&["backfill", VIEW]);
    let took = began.elapsed();
    let (rows, refused) = (rows_of_table(&table_of(&project)), rows_of_table(&quarantine_of(&project)));
    assert!(rows.len() > 20 * CHUNK_ROWS && refused.len() > 20, "{} rows, {} refused", rows.len(), refused.len());
    Undisturbed { rows, refused, took }
}

/// Part of the time that an undisturbed run takes; a little more, so that the end is met too.
pub(super) fn random_part(dice: &mut Dice, took: Duration) -> Duration {
    took.mul_f64(1.05 * dice.share())
}

fn reader_of_table(project: &Project, rows: usize) -> Reader {
    let table = table_of(project);
    Reader::start(move || {
        let seen = count_of_table(&table);
        (seen != 0 && seen != rows).then(|| format!("a reader saw {seen} of {rows} rows"))
    })
}

/// Goes on with the backfill until it has ended, and compares what it has left.
fn finish_and_compare(project: &Project, undisturbed: &Undisturbed, tally: &mut Tally) {
    match newest_job(project) {
        None => {
            project.succeed(&["backfill", VIEW]);
        }
        Some(job) if job["state"] == "succeeded" => {}
        Some(job) => {
            // Nobody is told that a dead process is at work.
            let state = job["state"].as_str().unwrap();
            assert!(state == "interrupted" || state == "running", "{job}");
            resume(project, job["id"].as_str().unwrap());
        }
    }
    let job = newest_job(project).unwrap();
    assert_eq!(job["state"], "succeeded", "{job}");
    let view = &job["result"]["views"][0];
    tally.half_done += u64::from(view["chunks_done_before"].as_u64().unwrap() > 0);
    for (what, table, expected) in
        [("rows", table_of(project), &undisturbed.rows), ("refused rows", quarantine_of(project), &undisturbed.refused)]
    {
        let found = rows_of_table(&table);
        if found != *expected {
            tally.faults.push(format!("{} {what} instead of {}, or others: {job}", found.len(), expected.len()));
        }
    }
}

/// Resumes a job. A worker that was killed is believed to live until its lease ends.
pub(super) fn resume(project: &Project, id: &str) {
    let began = Instant::now();
    loop {
        let output = project.run(&["jobs", "resume", id]);
        if output.status.success() {
            return;
        }
        let (_, error) = super::project::texts(&output);
        let may_be_over = error.contains("job_running") || error.contains("job_done");
        assert!(may_be_over && began.elapsed() < PATIENCE, "{error}");
        if error.contains("job_done") {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn backfills_that_are_killed_end_as_if_they_were_not() {
    let kills = if is_soak() { 90 } else { 5 };
    let mut dice = dice(1);
    let base = applied_project();
    let undisturbed = undisturbed_backfill(&base);
    let mut tally = Tally::default();
    // On a busy machine many kills come too early or too late; some must meet a job half done.
    while tally.kills < kills || (tally.half_done == 0 && tally.kills < KILLS_MAX) {
        let project = base.copied();
        let reader = reader_of_table(&project, undisturbed.rows.len());
        let mut process = spawn(&project, &["backfill", VIEW]);
        tally.met += u64::from(kill_after(&mut process, random_part(&mut dice, undisturbed.took)));
        tally.kills += 1;
        // Every other is killed once more, while it goes on.
        if dice.below(2) == 0
            && let Some(job) = newest_job(&project).filter(|job| job["state"] == "interrupted")
        {
            let mut process = spawn(&project, &["jobs", "resume", job["id"].as_str().unwrap()]);
            tally.met += u64::from(kill_after(&mut process, random_part(&mut dice, undisturbed.took)));
            tally.kills += 1;
        }
        finish_and_compare(&project, &undisturbed, &mut tally);
        tally.faults.extend(reader.end());
    }
    assert!(tally.half_done > 0, "no kill met a job half done");
    tally.end("backfill");
}

#[test]
fn one_of_two_workers_is_killed_and_the_other_ends_the_job() {
    let kills = if is_soak() { 60 } else { 3 };
    let mut dice = dice(2);
    let base = applied_project();
    let undisturbed = undisturbed_backfill(&base);
    let mut tally = Tally::default();
    let mut shared = 0;
    for round in 0..kills {
        let project = base.copied();
        let reader = reader_of_table(&project, undisturbed.rows.len());
        let mut helper = spawn(&project, &["jobs", "work", "--wait"]);
        let mut first = spawn(&project, &["backfill", VIEW]);
        let wait = random_part(&mut dice, undisturbed.took);
        let (victim, survivor) = if round % 2 == 0 { (&mut helper, &mut first) } else { (&mut first, &mut helper) };
        tally.met += u64::from(kill_after(victim, wait));
        tally.kills += 1;
        if round % 2 == 0 {
            wait_for_end(survivor);
        } else if newest_job(&project).is_none() {
            // Killed before it had asked for anything.
            project.succeed(&["backfill", VIEW]);
        } else {
            // The helper takes over what the dead one held, and makes the rows visible, unasked.
            let began = Instant::now();
            while newest_job(&project).unwrap()["state"] != "succeeded" {
                assert!(began.elapsed() < PATIENCE, "{}", newest_job(&project).unwrap());
            }
        }
        let _ = helper.kill();
        let _ = first.kill();
        helper.wait().unwrap();
        first.wait().unwrap();
        let job = newest_job(&project).unwrap();
        shared += u64::from(job["result"]["views"][0]["chunks_done_elsewhere"].as_u64().unwrap_or(0) > 0);
        finish_and_compare(&project, &undisturbed, &mut tally);
        tally.faults.extend(reader.end());
    }
    println!("{shared} jobs had chunks of both");
    tally.end("two workers");
}

#[test]
fn training_sets_that_are_killed_end_as_if_they_were_not() {
    let kills = if is_soak() { 60 } else { 3 };
    let mut dice = dice(3);
    let base = applied_project();
    base.succeed(&["backfill", VIEW]);
    base.write("spine.csv", spine());
    let create = ["dataset", "create", "--service", "weather", "--spine", "spine.csv", "--out", "set.parquet"];
    let (expected, took) = {
        let project = base.copied();
        let began = Instant::now();
        project.succeed(&create);
        (std::fs::read(project.path("set.parquet")).unwrap(), began.elapsed())
    };
    let mut tally = Tally::default();
    for _ in 0..kills {
        let project = base.copied();
        let (file, whole) = (project.path("set.parquet"), expected.clone());
        let reader = Reader::start(move || {
            let seen = std::fs::read(&file).ok()?;
            (seen != whole).then(|| format!("a reader saw {} bytes of a training set of {}", seen.len(), whole.len()))
        });
        let mut process = spawn(&project, &create);
        tally.met += u64::from(kill_after(&mut process, random_part(&mut dice, took)));
        tally.kills += 1;
        match newest_job(&project).filter(|job| job["kind"] == "dataset") {
            None => {
                project.succeed(&create);
            }
            Some(job) if job["state"] == "succeeded" => {}
            Some(job) => {
                assert_eq!(job["state"], "interrupted", "{job}");
                resume(&project, job["id"].as_str().unwrap());
            }
        }
        if std::fs::read(project.path("set.parquet")).unwrap() != expected {
            tally.faults.push("another training set than the undisturbed one".to_owned());
        }
        let sets = project.json(&["dataset", "list"]);
        let count = sets["datasets"].as_array().map(Vec::len);
        if count != Some(1) {
            tally.faults.push(format!("{count:?} records of one training set"));
        }
        tally.faults.extend(reader.end());
    }
    tally.end("dataset");
}

/// Airports all over the year.
pub(super) fn spine() -> String {
    let mut text = "airport,timestamp,label\n".to_owned();
    for row in 0..6_000_u32 {
        let (month, day, hour) = (1 + row % 12, 1 + row / 12 % 28, row % 24);
        let airport = ["EWR", "JFK", "LGA"][row as usize % 3];
        text.push_str(&format!("{airport},2013-{month:02}-{day:02}T{hour:02}:30:00Z,{}\n", row % 2));
    }
    text
}
