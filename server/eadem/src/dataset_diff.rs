//! What has changed between two recorded training sets.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use eadem_offline::{
    ColumnChanges, DatasetDiff, DatasetStatistics, DatasetWatch, DiffSide, MatchedBy, diff_datasets, file_digest_of,
};
use eadem_registry::DatasetRecord;
use serde_json::{Value as Json, json};

use crate::dataset_request::DiffRequest;
use crate::datasets::{rebuild_to, recipe_of};
use crate::home::Stores;

/// A file of the comparison, and the folder to remove afterwards if it was made for it.
struct Side {
    diff: DiffSide,
    note: Option<String>,
}

/// Compares two datasets: their files where they still are what was written, else what their recipes make again.
pub(crate) async fn run(stores: &Stores, id: &str, request: &DiffRequest, step: &dyn Fn(&str)) -> anyhow::Result<Json> {
    let scratch = Scratch::open(&stores.data_dir.join("scratch").join(id))?;
    let (a, b) = (&request.diff.0, &request.diff.1);
    let a = side(stores, &stores.registry.dataset(a).await?, scratch.folder(), "a", step).await?;
    let b = side(stores, &stores.registry.dataset(b).await?, scratch.folder(), "b", step).await?;
    step("comparing");
    let diff = diff_datasets(&a.diff, &b.diff).await?;
    let notes: Vec<String> = a.note.into_iter().chain(b.note).collect();
    let mut lines = notes.clone();
    lines.extend(diff_lines(&diff));
    let mut json = serde_json::to_value(&diff)?;
    json["row_counts"] = json["rows"].take();
    json["rows"] = json!(diff.rows.b);
    json["notes"] = json!(notes);
    json["lines"] = json!(lines);
    Ok(json)
}

async fn side(
    stores: &Stores,
    record: &DatasetRecord,
    scratch: &Path,
    name: &str,
    step: &dyn Fn(&str),
) -> anyhow::Result<Side> {
    let recipe = recipe_of(record)?;
    let statistics: Option<DatasetStatistics> = serde_json::from_value(record.report["statistics"].clone())
        .with_context(|| format!("the statistics of dataset {} cannot be read", record.id))?;
    let is_as_written = match file_digest_of(&record.output).await {
        Ok(digest) => digest == recipe.file_digest,
        Err(_) => false,
    };
    if is_as_written {
        return Ok(Side { diff: DiffSide { file: record.output.clone(), recipe, statistics }, note: None });
    }
    step(&format!("making dataset {} again", record.id));
    let ending = record.output.rsplit_once('.').map_or("parquet", |(_, ending)| ending);
    let file = scratch.join(format!("{name}.{ending}")).display().to_string();
    rebuild_to(stores, record, &file, DatasetWatch::default())
        .await
        .with_context(|| format!("dataset {} cannot be made again", record.id))?;
    let note = format!("{} is gone or has changed: dataset {} was made again to compare it", record.output, record.id);
    Ok(Side { diff: DiffSide { file, recipe, statistics }, note: Some(note) })
}

/// A folder that is gone when the work is done, whatever came of it.
struct Scratch(PathBuf);

impl Scratch {
    fn open(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self(folder.to_owned()))
    }

    fn folder(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "what was made for a comparison could not be removed");
        }
    }
}

fn diff_lines(diff: &DatasetDiff) -> Vec<String> {
    let mut lines = Vec::new();
    for (what, pair) in &diff.recipe {
        lines.push(format!("{what}: {} → {}", pair.a, pair.b));
    }
    for (view, pair) in &diff.views {
        let shown = |side: &Json| match side {
            Json::Null => "not there".to_owned(),
            side => format!("{} at commit {}", side["view"].as_str().unwrap_or_default(), side["commit"]),
        };
        lines.push(format!("view {view}: {} → {}", shown(&pair.a), shown(&pair.b)));
    }
    for (column, pair) in &diff.columns {
        let shown = |side: &Option<String>| side.clone().unwrap_or_else(|| "not there".to_owned());
        lines.push(format!("column {column}: {} → {}", shown(&pair.a), shown(&pair.b)));
    }
    if diff.same_content {
        lines.push("the content is the same, bit for bit".to_owned());
        return lines;
    }
    let how = match &diff.matched_by {
        MatchedBy::Content => "as one",
        MatchedBy::Position => "row by row, of one spine",
        MatchedBy::KeysAndTime => "by keys and time",
        MatchedBy::Nothing(reason) => {
            lines.push(format!("rows were not compared: {reason}"));
            return lines;
        }
    };
    lines.push(format!("rows: {} → {}, matched {how}", diff.rows.a, diff.rows.b));
    if diff.rows_only_in.a + diff.rows_only_in.b > 0 {
        let only = &diff.rows_only_in;
        lines.push(format!("{} rows are only in the first, {} only in the second", only.a, only.b));
    }
    lines.push(format!("{} rows of both have changed", diff.rows_changed));
    for (column, changes) in &diff.changes {
        lines.push(change_line(column, changes));
    }
    for (feature, facts) in &diff.statistics {
        let shown = ["mean", "min", "max", "values", "status missing"].iter().filter_map(|fact| {
            let pair = facts.get(*fact)?;
            Some(format!("{fact} {} → {}", pair.a, pair.b))
        });
        let shown: Vec<String> = shown.collect();
        if !shown.is_empty() {
            lines.push(format!("statistics of {feature}: {}", shown.join(", ")));
        }
    }
    lines
}

fn change_line(column: &str, changes: &ColumnChanges) -> String {
    let mut line = format!("{column}: {} changed", changes.rows);
    if changes.statuses > 0 {
        line.push_str(&format!(", {} with another status", changes.statuses));
    }
    if let Some(first) = changes.first.first() {
        let identity = Json::Object(first.identity.clone());
        line.push_str(&format!("; first {identity}: {} → {}", first.value.a, first.value.b));
    }
    line
}
