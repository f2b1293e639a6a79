//! What a job is going to do: its files and chunks, settled once.

use std::collections::{BTreeMap, BTreeSet};

use super::Backfill;
use crate::bind::BindPlan;
use crate::error::OfflineError;
use crate::lanes::{Lanes, by_digest, covers};
use crate::ledger::{JobPlan, PlannedChunk, PlannedFile, ReplacedFile};
use crate::source::{SourceFile, file_digest, file_error, inspect_schema, list_files, open_file};
use crate::table::ViewTable;

pub(super) async fn plan_job(backfill: &Backfill, table: &ViewTable) -> Result<JobPlan, OfflineError> {
    let view = &backfill.view;
    let lanes = table.lanes().await?;
    let files = list_files(&view.source).await?;
    let mut plan = JobPlan {
        view: view.id(),
        view_digest: view.digest.clone(),
        created_at_us: backfill.options.created_at_us,
        range_us: backfill.options.range_us,
        files: Vec::new(),
        chunks: Vec::new(),
        already_loaded: Vec::new(),
        vanished: Vec::new(),
        replaced: Vec::new(),
        recompute: backfill.options.recompute,
    };
    if files.is_empty() && lanes.is_empty() {
        let reason = format!("no Parquet file at {}", view.source.locations.join(", "));
        return Err(crate::source::source_error(&view.source, "parquet", reason));
    }
    let there: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    plan.vanished = lanes.keys().filter(|path| !there.contains(path.as_str())).cloned().collect();
    let mut found: Vec<(SourceFile, String)> = Vec::with_capacity(files.len());
    for file in files {
        if backfill.cancel.is_cancelled() {
            return Err(OfflineError::Cancelled);
        }
        let digest = file_digest(&file).await?;
        found.push((file, digest));
    }
    plan.replaced = replaced_files(&lanes, &found, &plan)?;
    let of_digest = by_digest(&lanes);
    let mut planned: BTreeSet<String> = BTreeSet::new();
    for (file, digest) in found {
        let same_bytes = of_digest.get(digest.as_str()).into_iter().flatten();
        let loaded: Vec<Option<(i64, i64)>> = same_bytes.map(|lane| lane.range_us).collect();
        let is_loaded = !plan.recompute && covers(&loaded, plan.range_us);
        // Two files of the same bytes are the same place: their rows are the same rows.
        if is_loaded || !planned.insert(digest.clone()) {
            plan.already_loaded.push(file.path.clone());
            continue;
        }
        let loaded_us = if plan.recompute { Vec::new() } else { loaded.into_iter().flatten().collect() };
        plan_file(backfill, &mut plan, &file, digest, loaded_us).await?;
    }
    Ok(plan)
}

/// The files that were loaded with another content than they have now.
fn replaced_files(
    lanes: &Lanes,
    found: &[(SourceFile, String)],
    plan: &JobPlan,
) -> Result<Vec<ReplacedFile>, OfflineError> {
    let mut replaced: BTreeSet<ReplacedFile> = BTreeSet::new();
    let path_of: BTreeMap<&str, &str> =
        found.iter().rev().map(|(file, digest)| (digest.as_str(), file.path.as_str())).collect();
    for (file, digest) in found {
        let loaded = lanes.get(&file.path).into_iter().flatten();
        for lane in loaded.filter(|lane| lane.digest != *digest) {
            let kept_as = path_of.get(lane.digest.as_str()).map(|path| (*path).to_owned());
            // All rows of the old content go. Outside the job's range nothing would come in their place.
            if !plan.recompute && kept_as.is_none() && !covers(&[plan.range_us], lane.range_us) {
                let reason = format!(
                    "has changed since it was loaded (then {}, now {digest}), and was loaded for times outside this \
                     job's range, whose rows would be lost. Run the backfill without a range to replace the whole file, \
                     or recompute the range",
                    lane.digest
                );
                return Err(file_error(file, reason));
            }
            replaced.insert(ReplacedFile { path: file.path.clone(), digest: lane.digest.clone(), kept_as });
        }
    }
    Ok(replaced.into_iter().collect())
}

async fn plan_file(
    backfill: &Backfill,
    plan: &mut JobPlan,
    file: &SourceFile,
    digest: String,
    loaded_us: Vec<(i64, i64)>,
) -> Result<(), OfflineError> {
    let metadata = open_file(file).await?;
    // Everything that can be wrong with the definitions shows here, before a single row is read.
    inspect_schema(&backfill.view.source, metadata.schema())
        .and_then(|inspected| BindPlan::try_new(&backfill.view, &inspected))
        .map_err(|error| error.in_file(&file.url))?;
    let groups = metadata.metadata().row_groups();
    let number = plan.files.len();
    let mut first_row = 0;
    let mut chunk: Option<PlannedChunk> = None;
    for (group, row_group) in groups.iter().enumerate() {
        let rows = u64::try_from(row_group.num_rows()).unwrap_or_default();
        let open = chunk.get_or_insert(PlannedChunk {
            file: number,
            first_row_group: group,
            row_groups: 0,
            first_row,
            rows: 0,
        });
        open.row_groups += 1;
        open.rows += rows;
        first_row += rows;
        if open.rows >= backfill.options.chunk_rows {
            plan.chunks.extend(chunk.take());
        }
    }
    plan.chunks.extend(chunk);
    plan.files.push(PlannedFile {
        url: file.url.clone(),
        path: file.path.clone(),
        digest,
        bytes: file.bytes,
        modified_ms: file.modified_ms,
        rows: first_row,
        loaded_us,
    });
    Ok(())
}
