//! What has changed between two recorded training sets.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use eadem_offline::{
    ColumnChanges, DatasetDiff, DatasetStatistics, DiffSide, MatchedBy, OfflineError, diff_datasets, file_digest_of,
    unless_cancelled,
};
use eadem_registry::DatasetRecord;
use serde_json::{Value as Json, json};

use crate::dataset_request::DiffRequest;
use crate::datasets::{rebuild_to, recipe_of, watch};
use crate::home::Stores;
use crate::workers::Handle;

/// A file of the comparison, and the folder to remove afterwards if it was made for it.
struct Side {
    diff: DiffSide,
    note: Option<String>,
}

/// Compares two datasets: their files where they still are what was written, else what their recipes make again.
pub(crate) async fn run(
    stores: &Stores,
    id: &str,
    request: &DiffRequest,
    handle: &Arc<Handle>,
    step: &dyn Fn(&str),
) -> anyhow::Result<Json> {
    let scratch = Scratch::open(&stores.data_dir.join(SCRATCH).join(id))?;
    let (a, b) = (&request.diff.0, &request.diff.1);
    let a = side(stores, &stores.registry.dataset(a).await?, &scratch.file("a"), handle, step).await?;
    let b = side(stores, &stores.registry.dataset(b).await?, &scratch.file("b"), handle, step).await?;
    step(COMPARING);
    let diff = diff_datasets(&a.diff, &b.diff, &watch(handle, COMPARING)).await?;
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
    handle: &Arc<Handle>,
    step: &dyn Fn(&str),
) -> anyhow::Result<Side> {
    let recipe = recipe_of(record)?;
    let statistics: Option<DatasetStatistics> = serde_json::from_value(record.report["statistics"].clone())
        .with_context(|| format!("the statistics of dataset {} cannot be read", record.id))?;
    let digest = async { Ok::<_, OfflineError>(file_digest_of(&record.output).await) };
    let digest = unless_cancelled(&handle.cancel, digest).await?;
    if digest.is_ok_and(|digest| digest == recipe.file_digest) {
        return Ok(Side { diff: DiffSide { file: record.output.clone(), recipe, statistics }, note: None });
    }
    let making = format!("making dataset {} again", record.id);
    step(&making);
    let ending = record.output.rsplit_once('.').map_or("parquet", |(_, ending)| ending);
    let file = scratch.with_extension(ending).display().to_string();
    rebuild_to(stores, record, &file, Vec::new(), watch(handle, &making))
        .await
        .with_context(|| format!("dataset {} cannot be made again", record.id))?;
    let note = format!("{} is gone or has changed: dataset {} was made again to compare it", record.output, record.id);
    Ok(Side { diff: DiffSide { file, recipe, statistics }, note: Some(note) })
}

/// What a job does that compares, once rows of both are read.
const COMPARING: &str = "comparing";

/// The folder of the data directory with a folder for every comparison that is at work.
const SCRATCH: &str = "scratch";

/// Removes what comparisons have left whose processes were killed. Nobody is at them, and one that is resumed begins anew.
///
/// # Errors
/// A folder that cannot be read or removed, a registry that does not answer.
pub(crate) async fn remove_left_scratch(stores: &Stores) -> anyhow::Result<()> {
    let folder = stores.data_dir.join(SCRATCH);
    let failed = || format!("what comparisons have left in {} could not be removed", folder.display());
    let entries = match std::fs::read_dir(&folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.and_then(|entries| entries.collect::<Result<Vec<_>, _>>()).with_context(failed)?,
    };
    if entries.is_empty() {
        return Ok(());
    }
    // First what is there, then who is at work: what is made in between is nobody's that is gone.
    let at_work = stores.registry.jobs_at_work(stores.clock.now_us()).await?;
    for entry in entries {
        if !entry.file_name().to_str().is_some_and(|job| at_work.contains(job)) {
            std::fs::remove_dir_all(entry.path()).with_context(failed)?;
        }
    }
    Ok(())
}

/// A folder that is gone when the work is done, whatever came of it.
struct Scratch(PathBuf);

impl Scratch {
    fn open(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self(folder.to_owned()))
    }

    /// A file in it, which still needs an ending.
    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
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
