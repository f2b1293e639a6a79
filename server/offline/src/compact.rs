//! Compaction: the many small files of a date become few, and no row changes.
//!
//! New files are written first and nobody sees them; one commit per table puts them in the place of the old ones. Rows that
//! others have added meanwhile stay as they are. Files that others have taken out meanwhile are not brought back: what was
//! made of them is left out of the commit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use chrono::Utc;
use deltalake_core::kernel::{Action, Add};
use deltalake_core::protocol::DeltaOperation;
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::backfill::{Gauge, Room};
use crate::cancel::Cancel;
use crate::commit::{
    Base, Change, LiveFile, Proposal, adds_of, commit_once, discard_uncommitted, is_committed, live_files, paths_of,
};
use crate::error::OfflineError;
use crate::lanes::{LaneChange, describe, read_lane_log};
use crate::partition::TAG_COMPACTED;
use crate::schema::COLUMN_EVENT_DATE;
use crate::table::ViewTable;

const INFO_COMPACTION: &str = "eadem.compaction";

/// A compaction to run. The same job again resumes it, and never commits twice.
#[derive(Clone)]
pub struct Compaction {
    /// The job's id.
    pub job: String,
    /// The table.
    pub table: ViewTable,
    /// How it is laid out.
    pub options: CompactOptions,
    /// Told what is done, before each group of files.
    pub progress: Option<Arc<dyn Fn(CompactProgress) + Send + Sync>>,
    /// Stops the job between batches of rows.
    pub cancel: Cancel,
}

/// What is written how large. Nothing here changes a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactOptions {
    /// Files of one date are put together up to about this many bytes. Those that have three quarters of it stay as they are.
    pub target_bytes: u64,
    /// Memory that rows may take. As many as fit are put together.
    pub memory_bytes_max: usize,
}

impl Default for CompactOptions {
    /// Files of 64 MiB, 1 GiB of rows in memory.
    fn default() -> Self {
        Self { target_bytes: 64 << 20, memory_bytes_max: 1 << 30 }
    }
}

/// How far a compaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactProgress {
    /// Groups of files that are written.
    pub groups_done: usize,
    /// All groups.
    pub groups: usize,
    /// Rows written.
    pub rows: u64,
}

/// What a compaction did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompactReport {
    /// The version of the table that it made; `None`: there was nothing to put together.
    pub version: Option<u64>,
    /// Dates whose files were put together.
    pub dates: usize,
    /// Their files before.
    pub files_before: usize,
    /// Their files now.
    pub files_after: usize,
    /// Bytes of the files before.
    pub bytes_before: u64,
    /// Bytes of the files now.
    pub bytes_after: u64,
    /// Rows that were written again.
    pub rows: u64,
    /// Groups of files that were left as they are, because another job has taken out or put together some of them
    /// meanwhile.
    pub groups_given_up: usize,
    /// The most memory that rows took in this run at once, in bytes, as far as it is counted. It is nothing of the table.
    #[serde(default, skip_serializing_if = "is_none_held")]
    pub memory_bytes_peak: usize,
}

fn is_none_held(bytes: &usize) -> bool {
    *bytes == 0
}

/// Files that are put together, and what came of it.
struct Group {
    date: String,
    inputs: Vec<LiveFile>,
    outputs: Vec<Add>,
    rows: u64,
}

impl Group {
    fn is_fewer_files(&self) -> bool {
        self.outputs.len() < self.inputs.len()
    }
}

/// Puts the small files of a table together.
///
/// # Errors
/// A table that does not exist or cannot be read, a full disk, cancellation. The table is then as it was.
pub async fn compact(compaction: Compaction) -> Result<CompactReport, OfflineError> {
    let table = &compaction.table;
    let Some(loaded) = table.load_with_rows().await? else { return Ok(CompactReport::default()) };
    let is_done = is_committed(&table.location, &table.log_store, &loaded, &compaction.job).await?;
    let mut groups = match is_done {
        true => Vec::new(),
        false => groups_of(live_files(&loaded, &table.location)?, compaction.options),
    };
    if groups.is_empty() && !is_done {
        return Ok(CompactReport::default());
    }
    let (mut rows, count) = (0, groups.len());
    let gauge = Gauge::default();
    let room = Room::of(compaction.options.memory_bytes_max, &gauge);
    for (number, group) in groups.iter_mut().enumerate() {
        compaction.report(CompactProgress { groups_done: number, groups: count, rows });
        compaction.write(group, &room).await?;
        rows += group.rows;
    }
    compaction.report(CompactProgress { groups_done: count, groups: count, rows });
    // More rows than memory has room for make as many files again: then the old ones are as good.
    let (groups, vain): (Vec<Group>, Vec<Group>) = groups.into_iter().partition(Group::is_fewer_files);
    discard_uncommitted(table.store.as_ref(), vain.iter().flat_map(|group| paths_of(&group.outputs)), None).await?;
    let memory_bytes_peak = gauge.peak_bytes();
    if groups.is_empty() && !is_done {
        return Ok(CompactReport { memory_bytes_peak, ..CompactReport::default() });
    }
    let count = groups.len();
    let mut proposal = Compacted { table, groups, target_bytes: compaction.options.target_bytes };
    let committed = commit_once(&table.location, &table.log_store, loaded, &compaction.job, &mut proposal).await?;
    // What was made of files that another job has taken out meanwhile may hold rows that were to go with them.
    let written = proposal.groups.iter().flat_map(|group| paths_of(&group.outputs));
    discard_uncommitted(table.store.as_ref(), written, committed.as_ref()).await?;
    let Some(committed) = committed else {
        return Ok(CompactReport { groups_given_up: count, memory_bytes_peak, ..CompactReport::default() });
    };
    let report: CompactReport = serde_json::from_value(committed.info[INFO_COMPACTION].clone())
        .map_err(|source| OfflineError::Json { what: "the compaction of a commit", source })?;
    Ok(CompactReport { version: Some(committed.version), memory_bytes_peak, ..report })
}

/// Which files are put together: those of one date that are too small, next to each other in time, as many as make one of
/// the size that is wanted.
fn groups_of(files: Vec<LiveFile>, options: CompactOptions) -> Vec<Group> {
    let mut dates: BTreeMap<String, Vec<LiveFile>> = BTreeMap::new();
    for file in files {
        let is_small = file.file.bytes < options.target_bytes / 4 * 3;
        let date = file.add.partition_values.get(COLUMN_EVENT_DATE).cloned().flatten();
        if let (true, Some(date)) = (is_small, date) {
            dates.entry(date).or_default().push(file);
        }
    }
    let mut groups = Vec::new();
    for (date, mut files) in dates {
        files.sort_by(|one, other| {
            (one.file.event_time_us, &one.file.path).cmp(&(other.file.event_time_us, &other.file.path))
        });
        let (mut inputs, mut bytes) = (Vec::new(), 0);
        for file in files {
            if bytes + file.file.bytes > options.target_bytes && !inputs.is_empty() {
                groups.push((date.clone(), std::mem::take(&mut inputs)));
                bytes = 0;
            }
            bytes += file.file.bytes;
            inputs.push(file);
        }
        groups.push((date, inputs));
    }
    let is_worth_it = |files: &[LiveFile]| files.len() > 1 && !files.iter().all(LiveFile::is_compacted);
    let chosen = groups.into_iter().filter(|(_, files)| is_worth_it(files));
    chosen.map(|(date, inputs)| Group { date, inputs, outputs: Vec::new(), rows: 0 }).collect()
}

impl LiveFile {
    /// Whether a compaction wrote it: several such files are as few as they can be.
    fn is_compacted(&self) -> bool {
        self.add.tags.as_ref().is_some_and(|tags| tags.contains_key(TAG_COMPACTED))
    }
}

impl Compaction {
    fn report(&self, progress: CompactProgress) {
        if let Some(report) = &self.progress {
            report(progress);
        }
    }

    async fn write(&self, group: &mut Group, room: &Room) -> Result<(), OfflineError> {
        let table = &self.table;
        let lanes: BTreeSet<Option<&str>> = group.inputs.iter().map(|file| file.lane.as_deref()).collect();
        let one_lane = lanes.first().copied().flatten().filter(|_| lanes.len() == 1);
        let mut writer = table.writer_within(&self.job, one_lane, room).compacting();
        for file in &group.inputs {
            let mut batches = table.batches_within(&file.file, &[], Some(room)).await?;
            let mut rows = 0;
            while let Some(batch) = batches.try_next().await? {
                self.cancel.check()?;
                rows += batch.num_rows() as u64;
                writer.write(batch).await?;
            }
            if file.rows.is_some_and(|said| said != rows) {
                let reason = format!("holds {rows} rows, the log says {:?}", file.rows);
                return Err(OfflineError::File { file: table.file_url(&file.file), reason });
            }
            group.rows += rows;
        }
        group.outputs = adds_of(&writer.finish().await?)?;
        Ok(())
    }
}

/// What a compaction commits: its groups, as far as their files are still there.
struct Compacted<'a> {
    table: &'a ViewTable,
    groups: Vec<Group>,
    target_bytes: u64,
}

#[async_trait]
impl Proposal for Compacted<'_> {
    async fn on(&mut self, base: &Base) -> Result<Option<Change>, OfflineError> {
        let there: BTreeSet<&str> = base.files.iter().map(|file| file.file.path.as_str()).collect();
        let is_whole = |group: &&Group| group.inputs.iter().all(|file| there.contains(file.file.path.as_str()));
        let whole: Vec<&Group> = self.groups.iter().filter(is_whole).collect();
        if whole.is_empty() {
            return Ok(None);
        }
        let now_ms = Utc::now().timestamp_millis();
        let mut actions = Vec::new();
        let dates: BTreeSet<&str> = whole.iter().map(|group| group.date.as_str()).collect();
        let mut report = CompactReport {
            dates: dates.len(),
            groups_given_up: self.groups.len() - whole.len(),
            ..CompactReport::default()
        };
        for group in whole {
            report.files_before += group.inputs.len();
            report.bytes_before += group.inputs.iter().map(|file| file.file.bytes).sum::<u64>();
            report.files_after += group.outputs.len();
            report.bytes_after +=
                group.outputs.iter().map(|add| u64::try_from(add.size).unwrap_or_default()).sum::<u64>();
            report.rows += group.rows;
            actions.extend(group.inputs.iter().map(|file| Action::Remove(file.remove(false, now_ms))));
            actions.extend(group.outputs.iter().cloned().map(Action::Add));
        }
        let log = read_lane_log(&self.table.location, &self.table.log_store, base.version).await?;
        let mut info = describe(&LaneChange::default(), &log, None);
        let described: Json = serde_json::to_value(&report)
            .map_err(|source| OfflineError::Json { what: "the report of a compaction", source })?;
        info.push((INFO_COMPACTION.to_owned(), described));
        let target_size = i64::try_from(self.target_bytes).unwrap_or(i64::MAX);
        Ok(Some(Change { actions, info, operation: DeltaOperation::Optimize { predicate: None, target_size } }))
    }
}
