//! R4: what `eadem plan` says of a new version over a million rows of history, of which it changes one bit in one row.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use eadem_benches::bars::Measured;
use eadem_benches::results::{Figure, load_average};
use parquet::arrow::ArrowWriter;
use serde_json::Value as Json;

use crate::process::median;
use crate::project::{self, Contents};

const ROWS: i64 = 1_000_000;
const FILES: i64 = 4;
/// The payment whose score `bench_score_planted` changes.
const PLANTED_ID: i64 = 777_777;
const RUNS: usize = 5;
/// What the bar allows.
const SECONDS_MAX: f64 = 5.0;

fn definitions(component: &str) -> String {
    format!(
        r#"
[entity.card]
keys = {{ card = "utf8" }}

[source.payments]
parquet = "data/payments"
event_time = "ts"

[view.card_score]
entity = "card"
source = "payments"
transform = "transforms/{component}.wasm"
"#
    )
}

/// Payments in several files, some without an amount.
fn write_payments(folder: &Path) -> Result<()> {
    const START_US: i64 = 1_357_000_000_000_000;
    const STEP_US: i64 = 31_000_000;
    std::fs::create_dir_all(folder)?;
    let rows_of_file = ROWS / FILES;
    for file in 0..FILES {
        let ids = file * rows_of_file..(file + 1) * rows_of_file;
        // A step of a prime number through a thousand amounts: the same rows on every machine.
        let amount = |id: i64| (id % 97 != 0).then(|| (id * 7_919 % 1_000_003) as f64 / 1_000.0);
        let times = TimestampMicrosecondArray::from_iter_values(ids.clone().map(|id| START_US + id * STEP_US));
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("card", Arc::new(StringArray::from_iter_values(ids.clone().map(|id| format!("c{}", id % 50_000))))),
            ("id", Arc::new(Int64Array::from_iter_values(ids.clone()))),
            ("amount", Arc::new(ids.clone().map(amount).collect::<Float64Array>())),
            ("ts", Arc::new(times.with_timezone("UTC"))),
        ];
        let batch = RecordBatch::try_from_iter(columns)?;
        let mut writer =
            ArrowWriter::try_new(File::create(folder.join(format!("{file}.parquet")))?, batch.schema(), None)?;
        writer.write(&batch)?;
        writer.close()?;
    }
    Ok(())
}

/// Only the planted row may be found, and all of it.
fn check(plan: &Json) -> Result<f64> {
    let effects = plan["effects"].as_array().map(Vec::as_slice).unwrap_or_default();
    let [effect] = effects else {
        anyhow::bail!("one view has another version, and {} effects are shown", effects.len())
    };
    ensure!(effect["not_compared"].is_null(), "not compared: {}", effect["not_compared"]);
    ensure!(effect["rows_compared"] == ROWS, "{} rows were compared, not {ROWS}", effect["rows_compared"]);
    ensure!(effect["rows_changed"] == 1, "{} rows are said to change, not one", effect["rows_changed"]);
    let features = effect["features"].as_array().context("features")?;
    let changed: BTreeMap<&str, u64> = features
        .iter()
        .filter_map(|feature| Some((feature["name"].as_str()?, feature["rows_changed"].as_u64()?)))
        .collect();
    let expected = BTreeMap::from([("hour", 0), ("is_large", 0), ("score", 1)]);
    ensure!(changed == expected, "rows changed by feature: {changed:?}");
    let score = features.iter().find(|feature| feature["name"] == "score").context("score")?;
    let example = &score["examples"][0];
    ensure!(example["key"]["card"] == format!("c{}", PLANTED_ID % 50_000), "another row is shown: {example}");
    let bits = |value: &Json| value.as_f64().map(f64::to_bits).context("a score");
    ensure!(bits(&example["before"])? ^ bits(&example["after"])? == 1, "another change is shown: {example}");
    effect["cpu_us_per_row"]["after"].as_f64().context("cost per row")
}

/// How long `eadem plan` takes with the effect report, as who plans waits for it.
pub(crate) fn r4() -> Result<Measured> {
    let load = load_average();
    let contents = Contents {
        components: &["bench_score", "bench_score_planted"],
        settings: "",
        definitions: &definitions("bench_score"),
    };
    let folder = project::make("effect", &contents)?;
    write_payments(&folder.join("data/payments"))?;
    project::run(&folder, &["apply"])?;
    std::fs::write(folder.join("features/definitions.toml"), definitions("bench_score_planted"))?;
    // Uploads and checks the component.
    project::run(&folder, &["plan", "--no-effect"])?;
    let mut seconds = Vec::with_capacity(RUNS);
    let mut cost_us = 0.0;
    for _ in 0..RUNS {
        let began = Instant::now();
        let effect = format!("--effect={ROWS}");
        let plan = project::answer(&folder, &["plan", &effect])?;
        seconds.push(began.elapsed().as_secs_f64());
        cost_us = check(&plan)?;
    }
    let value = median(seconds);
    println!("{ROWS} rows through two versions in {value:.2} s; {cost_us:.2} µs of CPU per row in the new one");
    let name = "plan with the effect of a new version on 1 M rows, one bit planted in one row, process start included";
    let figures = vec![Figure::alone("R4", name, "s", value, RUNS as u64, load)];
    let failure = (value > SECONDS_MAX).then(|| format!("the effect took {value:.2} s, more than {SECONDS_MAX}"));
    Ok(Measured { figures, failure })
}
