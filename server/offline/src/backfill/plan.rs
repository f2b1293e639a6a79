//! What a job is going to do: its files and chunks, settled once.

use std::collections::{BTreeMap, BTreeSet};

use arrow_schema::{Schema, SchemaRef};
use futures::future::try_join_all;

use super::Backfill;
use super::memory::{Allowance, Gauge, Room};
use crate::bind::BindPlan;
use crate::error::OfflineError;
use crate::lanes::{CommittedLane, Lanes, by_digest, covers, is_whole, meet};
use crate::ledger::{JobPlan, PlannedChunk, PlannedFile, ReplacedFile};
use crate::source::{self, Footers, Listing, Lookup, SourceFile, file_error, inspect_schema, lane_digest};
use crate::table::ViewTable;

pub(super) async fn plan_job(
    backfill: &Backfill,
    table: &ViewTable,
    footers: &Footers,
    gauge: &Gauge,
) -> Result<JobPlan, OfflineError> {
    let view = &backfill.view;
    let lanes = table.lanes().await?;
    // Everything that can be wrong with the definitions shows here, before a single row is read.
    let check = |schema: &SchemaRef| {
        let inspected = inspect_schema(&view.source, schema)?;
        BindPlan::try_new(view, &inspected).map(|_| ())
    };
    let lookup = Lookup {
        lanes: &lanes,
        range_us: backfill.options.range_us,
        recompute: backfill.options.recompute,
        store: &backfill.store,
        view: &view.name,
        version: view.version,
        cancel: &backfill.cancel,
        check: &check,
        room: Room::of(backfill.options.memory_bytes_max, gauge),
    };
    let listing = source::list(&view.source, &lookup).await?;
    let is_asked_anew = backfill.options.recompute;
    let mut plan = JobPlan {
        view: view.id(),
        view_digest: view.digest.clone(),
        created_at_us: backfill.options.created_at_us,
        range_us: backfill.options.range_us,
        schema: Schema::empty(),
        files: Vec::new(),
        chunks: Vec::new(),
        already_loaded: listing.already_loaded.clone(),
        vanished: Vec::new(),
        replaced: Vec::new(),
        // Of all that a source holds, a range takes the place of what was loaded of that range.
        recompute: is_asked_anew || (listing.is_whole && !is_whole(backfill.options.range_us)),
        is_whole_source: listing.is_whole,
        max_ahead_us: Some(view.source.max_ahead_us),
    };
    if listing.files.is_empty() && listing.names_all && lanes.is_empty() {
        return Err(source::no_files(&view.source));
    }
    let mut found: Vec<(&SourceFile, String)> = Vec::with_capacity(listing.files.len());
    for files in listing.files.chunks(backfill.options.workers.max(1)) {
        backfill.cancel.check()?;
        let digests = try_join_all(files.iter().map(lane_digest)).await?;
        found.extend(files.iter().zip(digests));
    }
    let path_of: BTreeMap<&str, &str> =
        found.iter().rev().map(|(file, digest)| (digest.as_str(), file.path.as_str())).collect();
    plan.replaced = replaced_files(&lanes, &found, &path_of, &plan)?;
    let there: BTreeSet<&str> = listing.files.iter().map(|file| file.path.as_str()).collect();
    let gone = lanes.values().flatten().filter(|lane| !there.contains(lane.path.as_str()));
    if listing.names_all {
        let (renamed, vanished): (Vec<_>, Vec<_>) = gone.partition(|lane| path_of.contains_key(lane.digest.as_str()));
        plan.replaced.extend(replacements(renamed, &path_of));
        plan.vanished = vanished.into_iter().map(|lane| lane.path.clone()).collect();
        plan.vanished.dedup();
    } else if plan.recompute || plan.is_whole_source {
        // Rows of a table or query that are no part of it now go, whichever way it has lost them.
        plan.replaced.extend(replacements(gone.filter(|lane| meet(lane.range_us, plan.range_us)), &path_of));
    }
    let of_digest = by_digest(&lanes);
    let mut planned: BTreeSet<String> = BTreeSet::new();
    /// A file, its digest, and the ranges of time in which its bytes are loaded.
    type NewFile<'a> = (&'a SourceFile, String, Vec<(i64, i64)>);
    let mut new_files: Vec<NewFile<'_>> = Vec::new();
    for (file, digest) in found {
        let same_bytes = of_digest.get(digest.as_str()).into_iter().flatten();
        let loaded: Vec<Option<(i64, i64)>> = same_bytes.map(|lane| lane.range_us).collect();
        let is_loaded = !is_asked_anew && covers(&loaded, plan.range_us);
        // Two files of the same bytes are the same place: their rows are the same rows.
        if is_loaded || !planned.insert(digest.clone()) {
            plan.already_loaded.push(file.path.clone());
            continue;
        }
        let loaded_us = if plan.recompute { Vec::new() } else { loaded.into_iter().flatten().collect() };
        new_files.push((file, digest, loaded_us));
    }
    if new_files.is_empty() {
        return Ok(plan);
    }
    // The columns are those of all files, whatever this job reads of them: which ones are new must not decide a type.
    let schema = source::survey(&view.source, &listing, footers).await?;
    check(&schema)?;
    plan.schema = schema.as_ref().clone();
    for (file, digest, loaded_us) in new_files {
        backfill.cancel.check()?;
        plan_file(backfill, &mut plan, (&listing, footers), file, digest, loaded_us).await?;
    }
    Ok(plan)
}

/// What becomes of lanes whose path is gone, or has another content: they are those of the path that has theirs now, or go.
fn replacements<'a>(
    lanes: impl IntoIterator<Item = &'a CommittedLane>,
    path_of: &BTreeMap<&str, &str>,
) -> BTreeSet<ReplacedFile> {
    let replaced = |lane: &CommittedLane| ReplacedFile {
        path: lane.path.clone(),
        digest: lane.digest.clone(),
        kept_as: path_of.get(lane.digest.as_str()).map(|path| (*path).to_owned()),
    };
    lanes.into_iter().map(replaced).collect()
}

/// The files that were loaded with another content than they have now.
fn replaced_files(
    lanes: &Lanes,
    found: &[(&SourceFile, String)],
    path_of: &BTreeMap<&str, &str>,
    plan: &JobPlan,
) -> Result<Vec<ReplacedFile>, OfflineError> {
    let mut replaced: Vec<&CommittedLane> = Vec::new();
    for (file, digest) in found {
        let loaded = lanes.get(&file.path).into_iter().flatten();
        for lane in loaded.filter(|lane| lane.digest != *digest) {
            let is_kept = path_of.contains_key(lane.digest.as_str());
            // All rows of the old content go. Outside the job's range nothing would come in their place.
            if !plan.recompute && !is_kept && !covers(&[plan.range_us], lane.range_us) {
                let reason = format!(
                    "has changed since it was loaded (then {}, now {digest}), and was loaded for times outside this \
                     job's range, whose rows would be lost. Run the backfill without a range to replace the whole file, \
                     or recompute the range",
                    lane.digest
                );
                return Err(file_error(file, reason));
            }
            replaced.push(lane);
        }
    }
    Ok(replacements(replaced, path_of).into_iter().collect())
}

async fn plan_file(
    backfill: &Backfill,
    plan: &mut JobPlan,
    (listing, footers): (&Listing, &Footers),
    file: &SourceFile,
    digest: String,
    loaded_us: Vec<(i64, i64)>,
) -> Result<(), OfflineError> {
    // Where all of the memory were one thread's: who runs the job may have as few.
    let record_bytes_max = Allowance::of(backfill.options.memory_bytes_max, 1).portions(1).record_bytes;
    let (source, chunk_rows) = (&backfill.view.source, backfill.options.chunk_rows);
    let cuts = source::cut(source, file, footers, &plan.schema, chunk_rows, record_bytes_max).await?;
    let number = plan.files.len();
    plan.files.push(PlannedFile {
        url: file.url.clone(),
        path: file.path.clone(),
        digest,
        bytes: file.bytes,
        modified_ms: file.modified_ms,
        rows: cuts.iter().map(|cut| cut.rows).sum(),
        partition: file.partition.clone(),
        origin: listing.origin.clone(),
        loaded_us,
    });
    plan.chunks.extend(cuts.into_iter().map(|cut| PlannedChunk {
        file: number,
        part: cut.part,
        first_row: cut.first_row,
        rows: cut.rows,
    }));
    Ok(())
}
