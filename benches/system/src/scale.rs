//! S6: ten million entities of twenty features in the embedded store: how fast they are loaded, what they take, and what a
//! read of one of them costs against a read of one of a hundred thousand.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow_schema::{DataType as ArrowType, Field, Schema, TimeUnit};
use eadem_benches::bars::Measured;
use eadem_benches::results::{Figure, load_average};
use parquet::arrow::ArrowWriter;
use serde_json::{Value as Json, json};

use crate::load::Pace;
use crate::project::{self, Contents};
use crate::serving::{Loaded, PATH, RUNS, Server, loaded, median_of, results};

const MANY: u64 = 10_000_000;
const FEW: u64 = 100_000;

/// Of each type.
const FEATURES_OF_A_TYPE: u64 = 10;
const FEATURES: u64 = 2 * FEATURES_OF_A_TYPE;

/// Far from what the server can do, so that requests seldom wait for each other.
const REQUESTS_PER_S: f64 = 2_000.0;
/// More than are sent in a run: nobody is asked for twice but by chance.
const REQUESTS: usize = 24_000;

const ROWS_PER_FILE: u64 = 1_000_000;
const ROWS_PER_BATCH: u64 = 65_536;
/// 2026-01-01.
const FIRST_EVENT_US: i64 = 1_767_225_600_000_000;

const DEFINITIONS: &str = r#"[entity.user]
keys = { entity_id = "utf8" }

[source.wide]
parquet = "data/"
event_time = "event_timestamp"

[view.wide_row]
entity = "user"
source = "wide"
transform = "transforms/wide_row.wasm"

[service.wide]
features = ["wide_row:*"]
"#;

/// A project whose online store is loaded.
struct Project {
    folder: PathBuf,
    entities: u64,
    load: Load,
}

/// What a load says of itself.
struct Load {
    rows_per_s: f64,
    bytes_per_value: f64,
}

impl Project {
    /// Rows of so many entities are made, and computed into the offline store, once; they are loaded every time.
    fn with(entities: u64) -> Result<Self> {
        let name = format!("scale-{entities}");
        let ready = project::folder(&name).join("ready");
        if !ready.exists() {
            let began = Instant::now();
            prepare(&name, entities)?;
            println!("{entities} entities were made and backfilled in {:.0} s", began.elapsed().as_secs_f64());
            std::fs::write(ready, "")?;
        }
        let folder = project::folder(&name).canonicalize()?;
        let load = load_online(&folder, entities)?;
        Ok(Self { folder, entities, load })
    }

    /// Requests for entities drawn from all of them.
    fn requests(&self, seed: u64) -> Vec<Json> {
        let request = |number: u64| {
            let entity = entity_id(random(seed, number) % self.entities);
            json!({ "service": "wide@1", "entities": [{ "entity_id": entity }] })
        };
        (0..REQUESTS as u64).map(request).collect()
    }
}

fn prepare(name: &str, entities: u64) -> Result<()> {
    let contents = Contents { components: &["wide_row"], settings: "", definitions: DEFINITIONS };
    let folder = project::make(name, &contents)?;
    let data = folder.join("data");
    std::fs::create_dir(&data)?;
    for (number, first) in (0..entities).step_by(ROWS_PER_FILE as usize).enumerate() {
        let rows = first..entities.min(first + ROWS_PER_FILE);
        write_file(&data.join(format!("part-{number:03}.parquet")), rows)?;
    }
    project::run(&folder, &["apply"])?;
    project::run(&folder, &["backfill"])?;
    // The offline table has them now.
    std::fs::remove_dir_all(data)?;
    Ok(())
}

/// One row of each entity. Half of the features are random fractions, which do not shrink; the others are small numbers.
fn write_file(path: &Path, entities: std::ops::Range<u64>) -> Result<()> {
    let time = ArrowType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let mut fields = vec![Field::new("entity_id", ArrowType::Utf8, false), Field::new("event_timestamp", time, false)];
    let numbered = |prefix: &str, data_type: ArrowType| -> Vec<Field> {
        (0..FEATURES_OF_A_TYPE).map(|at| Field::new(format!("{prefix}{at}"), data_type.clone(), false)).collect()
    };
    fields.extend(numbered("f", ArrowType::Float64));
    fields.extend(numbered("n", ArrowType::Int64));
    let schema = Arc::new(Schema::new(fields));
    let mut writer = ArrowWriter::try_new(File::create(path)?, Arc::clone(&schema), None)?;
    for first in entities.clone().step_by(ROWS_PER_BATCH as usize) {
        let rows = first..entities.end.min(first + ROWS_PER_BATCH);
        let times = rows.clone().map(|row| FIRST_EVENT_US + row as i64);
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(rows.clone().map(entity_id))),
            Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
        ];
        for at in 0..FEATURES_OF_A_TYPE {
            // 53 bits make a fraction below 1.
            let fraction = |row| (random(at, row) >> 11) as f64 / (1u64 << 53) as f64;
            columns.push(Arc::new(Float64Array::from_iter_values(rows.clone().map(fraction))));
        }
        for at in FEATURES_OF_A_TYPE..FEATURES {
            let number = |row| (random(at, row) % 1_000) as i64;
            columns.push(Arc::new(Int64Array::from_iter_values(rows.clone().map(number))));
        }
        writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns)?)?;
    }
    writer.close()?;
    Ok(())
}

fn entity_id(number: u64) -> String {
    format!("user_{number:08}")
}

/// The same for the same arguments, and else like chance (SplitMix64).
fn random(stream: u64, number: u64) -> u64 {
    let start = (stream << 40).wrapping_add(number).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (start ^ (start >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Loads the online store anew, beside nothing: what an earlier run has loaded would only take room.
fn load_online(folder: &Path, entities: u64) -> Result<Load> {
    let before = folder.join(".eadem/online");
    if before.exists() {
        std::fs::remove_dir_all(before)?;
    }
    let job = project::answer(folder, &["materialize"])?;
    let rows_per_s = job["progress"]["rows_per_s"].as_f64().context("the job does not say how fast it was")?;
    let status = project::answer(folder, &["online", "status"])?;
    let views = status["views"].as_array().context("no views")?;
    let view = views.iter().find(|view| view["state"] == "current").context("no view is served")?;
    ensure!(view["rows"] == entities, "{} rows were loaded of {entities}", view["rows"]);
    let bytes = view["bytes"].as_f64().context("no bytes")?;
    let bytes_per_value = bytes / (entities * FEATURES) as f64;
    println!("{entities} entities were loaded with {rows_per_s:.0} rows/s, {bytes_per_value:.2} bytes a value");
    Ok(Load { rows_per_s, bytes_per_value })
}

fn checked_server(project: &Project) -> Result<Server> {
    let server = Server::eadem(&project.folder)?;
    for body in project.requests(0).iter().step_by(997) {
        let found = results(&server.address, body)?;
        let features = found.first().and_then(|result| result["features"].as_object()).context("no features")?;
        let present = features.values().filter(|value| value.is_number()).count() as u64;
        ensure!(present == FEATURES, "{present} of {FEATURES} features came: {}", found[0]);
    }
    Ok(server)
}

/// The load, the bytes, and reads of many entities against reads of few.
pub(crate) fn s6() -> Result<Measured> {
    let load = load_average();
    let (few, many) = (Project::with(FEW)?, Project::with(MANY)?);
    let (server_of_few, server_of_many) = (checked_server(&few)?, checked_server(&many)?);
    let (mut of_few, mut of_many) = (Vec::new(), Vec::new());
    for run in 1..=RUNS {
        of_few.push(loaded(&server_of_few, PATH, &few.requests(run), Pace::Rate(REQUESTS_PER_S))?);
        of_many.push(loaded(&server_of_many, PATH, &many.requests(run), Pace::Rate(REQUESTS_PER_S))?);
    }
    let p95 = |run: &Loaded| run.answered.percentile_ms(0.95);
    let (p95_of_few, p95_of_many) = (median_of(&of_few, p95), median_of(&of_many, p95));
    let figure =
        |bar: &str, name: &str, unit: &str, value: f64, runs: u64| Figure::alone(bar, name, unit, value, runs, load);
    Ok(vec![
        Figure::against(
            "S6",
            "read of one of 10 M entities against one of 100 k, 20 features, 2,000 requests/s, 95th percentile",
            "ms",
            p95_of_many,
            p95_of_few,
            RUNS,
            load,
        ),
        figure("S6.load", "10 M entities of 20 features loaded online", "rows/s", many.load.rows_per_s, 1),
        figure(
            "S6.bytes",
            "online bytes for a value of 10 M entities of 20 features",
            "bytes",
            many.load.bytes_per_value,
            1,
        ),
    ]
    .into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn draws_repeat_and_differ() {
        assert_eq!(random(3, 4), random(3, 4));
        let draws: std::collections::BTreeSet<u64> = (0..50).flat_map(|s| (0..50).map(move |n| random(s, n))).collect();
        assert_eq!(draws.len(), 2_500);
    }

    #[test]
    fn every_row_of_a_file_has_all_features() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part.parquet");
        write_file(&path, 5..70_005).unwrap();
        let file = File::open(path).unwrap();
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        assert_eq!(reader.metadata().file_metadata().num_rows(), 70_000);
        assert_eq!(reader.schema().fields().len() as u64, 2 + FEATURES);
    }
}
