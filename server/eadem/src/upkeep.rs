//! Looking after tables: compaction, vacuum, and whether the online store still serves rows that were taken out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Context as _;
use async_trait::async_trait;
use eadem_offline::{
    CompactOptions, CompactProgress, CompactReport, Compaction, FilesInUse, InUse, VacuumOptions, VacuumProgress,
    VacuumReport, compact,
};
use eadem_online::{StoreError, TableId};
use eadem_registry::JobState;
use eadem_registry::model::ViewVersion;
use eadem_values::{format_timestamp, parse_duration};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use crate::home::Stores;
use crate::load_record::LoadRecord;
use crate::placement::table_names;
use crate::workers::Handle;

/// What `POST /jobs/compact` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CompactRequest {
    #[serde(default)]
    pub(crate) views: Vec<String>,
    /// Files are put together up to about this many bytes.
    target_bytes: Option<u64>,
}

/// What `POST /jobs/vacuum` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VacuumRequest {
    /// How long versions of tables can be read after others have taken their place, such as `7d`.
    retain: Option<String>,
    /// Only say what would be deleted.
    #[serde(default)]
    dry_run: bool,
}

/// Smaller files than this are not worth a file's own costs; larger ones do not fit a reader's memory.
const TARGET_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 30;

impl CompactRequest {
    pub(crate) fn options(&self) -> anyhow::Result<CompactOptions> {
        let options = CompactOptions::default();
        let target_bytes = self.target_bytes.unwrap_or(options.target_bytes);
        if !TARGET_BYTES.contains(&target_bytes) {
            anyhow::bail!(
                "target_bytes: {target_bytes} is not between {} and {}",
                TARGET_BYTES.start(),
                TARGET_BYTES.end()
            );
        }
        Ok(CompactOptions { target_bytes, ..options })
    }
}

impl VacuumRequest {
    pub(crate) fn options(&self, now_us: i64) -> anyhow::Result<VacuumOptions> {
        let options = VacuumOptions { dry_run: self.dry_run, ..VacuumOptions::at(now_us) };
        match self.retain.as_deref() {
            None => Ok(options),
            Some(retain) => Ok(VacuumOptions { retain_us: parse_duration(retain).context("retain")?, ..options }),
        }
    }
}

/// Runs a compaction: one commit for each view's table.
pub(crate) async fn run_compaction(
    stores: &Stores,
    id: &str,
    views: &[Arc<ViewVersion>],
    options: CompactOptions,
    handle: &Arc<Handle>,
) -> anyhow::Result<Json> {
    let mut lines = Vec::new();
    let mut reports = Vec::new();
    let mut rows_before = 0;
    for (done, view) in views.iter().enumerate() {
        let (follower, name, total) = (Arc::clone(handle), view.id.to_string(), views.len() as u64);
        let progress = move |progress: CompactProgress| {
            // Every view counts the same: what there is to do is known only when its turn comes.
            const STEPS_PER_VIEW: u64 = 1_000;
            let within =
                (progress.groups_done as u64 * STEPS_PER_VIEW).checked_div(progress.groups as u64).unwrap_or(0);
            follower.steps(
                done as u64 * STEPS_PER_VIEW + within,
                total * STEPS_PER_VIEW,
                rows_before + progress.rows,
                format!("{name}: group {} of {}", progress.groups_done, progress.groups),
            );
        };
        let compaction = Compaction {
            job: format!("{id}/{}", view.id),
            table: stores.offline.table(&stores.table_spec(view).await?)?,
            options: CompactOptions { memory_bytes_max: stores.job_memory_bytes_max, ..options },
            progress: Some(Arc::new(progress)),
            cancel: handle.cancel.clone(),
        };
        let report = compact(compaction).await.with_context(|| view.id.to_string())?;
        rows_before += report.rows;
        lines.push(compaction_line(view, &report));
        let mut described = serde_json::to_value(&report)?;
        described["view"] = json!(view.id.to_string());
        reports.push(described);
    }
    Ok(json!({ "lines": lines, "views": reports }))
}

fn compaction_line(view: &ViewVersion, report: &CompactReport) -> String {
    let given_up = match report.groups_given_up {
        0 => String::new(),
        groups => format!("; {groups} groups of files were left alone, because another job changed them meanwhile"),
    };
    let Some(version) = report.version else { return format!("{}: nothing to put together{given_up}", view.id) };
    format!(
        "{}: {} files of {} dates are now {} ({} bytes before, {} now; {} rows); offline commit {version}{given_up}",
        view.id,
        report.files_before,
        report.dates,
        report.files_after,
        report.bytes_before,
        report.bytes_after,
        report.rows
    )
}

/// Runs a vacuum over the whole offline store.
pub(crate) async fn run_vacuum(stores: &Stores, options: VacuumOptions, handle: &Arc<Handle>) -> anyhow::Result<Json> {
    let follower = Arc::clone(handle);
    let progress = move |progress: VacuumProgress| {
        follower.steps(progress.places_done as u64, progress.places as u64, 0, progress.place);
    };
    let in_use = InUseByRegistry { stores: stores.clone(), options };
    let report = stores.offline.vacuum(&in_use, options, Some(Arc::new(progress)), &handle.cancel).await?;
    Ok(vacuum_json(&report, options))
}

fn vacuum_json(report: &VacuumReport, options: VacuumOptions) -> Json {
    let verb = if options.dry_run { "would delete" } else { "deleted" };
    let mut lines = vec![format!(
        "{verb} {} files, {} bytes; {} bytes stay",
        report.files_deleted(),
        report.bytes_deleted(),
        report.bytes_kept()
    )];
    let places: Vec<Json> = report
        .places
        .iter()
        .map(|place| {
            let mut line = format!(
                "{}: {verb} {} of {} files, {} bytes",
                place.place,
                place.files_deleted,
                place.files_deleted + place.files_kept,
                place.bytes_deleted
            );
            if place.files_spared > 0 {
                line.push_str(&format!("; {} stay for a training set or a job", place.files_spared));
            }
            if let Some(version) = place.oldest_version {
                line.push_str(&format!("; readable from commit {version} on"));
            }
            lines.push(line);
            json!({
                "place": place.place,
                "files_deleted": place.files_deleted,
                "bytes_deleted": place.bytes_deleted,
                "files_kept": place.files_kept,
                "bytes_kept": place.bytes_kept,
                "files_spared": place.files_spared,
                "oldest_version": place.oldest_version,
            })
        })
        .collect();
    json!({
        "lines": lines,
        "dry_run": options.dry_run,
        "files_deleted": report.files_deleted(),
        "bytes_deleted": report.bytes_deleted(),
        "bytes_kept": report.bytes_kept(),
        "places": places,
    })
}

/// What the registry knows to be in use: recipes of training sets, jobs that may go on, commits that are served.
struct InUseByRegistry {
    stores: Stores,
    options: VacuumOptions,
}

#[async_trait]
impl InUse for InUseByRegistry {
    async fn in_use(&self) -> Result<FilesInUse, String> {
        self.gather().await.map_err(|error| format!("{error:#}"))
    }
}

impl InUseByRegistry {
    async fn gather(&self) -> anyhow::Result<FilesInUse> {
        let registry = &self.stores.registry;
        let mut used = FilesInUse::default();
        used.documents.extend(registry.datasets().await?.into_iter().map(|dataset| dataset.recipe));
        let ended_since_us = self.options.now_us.saturating_sub(self.options.retain_us.max(self.options.grace_us));
        for job in registry.jobs(None).await? {
            // One that failed can be resumed, for as long as versions are kept.
            let may_go_on = match job.state {
                JobState::Open => true,
                JobState::Failed | JobState::Cancelled => job.changed_at_us >= ended_since_us,
                JobState::Done => false,
            };
            if !may_go_on {
                continue;
            }
            pinned_versions(&job.spec, &mut used.versions);
            for chunk in registry.list_chunks(&job.id).await? {
                if let Some((view, commit)) = LoadRecord::commit_in(&chunk) {
                    add_version(&mut used.versions, view, commit);
                }
                used.documents.push(chunk.result);
            }
            used.documents.push(job.spec);
        }
        let online = self.stores.online()?;
        for epoch in registry.epochs(None).await? {
            let view = registry.view(&epoch.view.name, Some(epoch.view.version)).await?;
            let table = TableId { view: view.digest, epoch: u64::from(epoch.epoch) };
            let coverage = match online.coverage(table).await {
                // It was dropped, or never loaded.
                Err(StoreError::UnknownTable(_)) => continue,
                coverage => coverage?,
            };
            if let Some(commit) = coverage.offline_commit.and_then(|commit| u64::try_from(commit).ok()) {
                add_version(&mut used.versions, &view.id.to_string(), commit);
            }
        }
        Ok(used)
    }
}

/// The commits that a job's specification names, for each view.
fn pinned_versions(spec: &Json, versions: &mut BTreeMap<String, BTreeSet<u64>>) {
    for (view, commit) in spec["pinned"]["tables"].as_object().into_iter().flatten() {
        if let Some(commit) = commit.as_u64() {
            add_version(versions, view, commit);
        }
    }
}

/// Adds a commit of a view as `view@version`; whichever of its tables it is of.
fn add_version(versions: &mut BTreeMap<String, BTreeSet<u64>>, view: &str, commit: u64) {
    for table in table_names(view) {
        versions.entry(table).or_default().insert(commit);
    }
}

/// How the online rows of a view stand to its offline table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Withdrawn {
    /// The offline commit in which rows were taken out that are still served.
    pub(crate) commit: u64,
    /// From when on the epoch that is served is complete; `None`: it proves nothing.
    pub(crate) complete_since_us: Option<i64>,
}

/// Whether the epoch that is served holds rows that have been taken out of the offline table since it was loaded.
pub(crate) async fn withdrawn_online(stores: &Stores, view: &ViewVersion) -> anyhow::Result<Option<Withdrawn>> {
    let Some(epoch) = stores.registry.current_epoch(&view.id).await? else { return Ok(None) };
    let coverage = stores.online()?.coverage(TableId { view: view.digest, epoch: u64::from(epoch.epoch) }).await?;
    let loaded_from = coverage.offline_commit.and_then(|commit| u64::try_from(commit).ok());
    let table = stores.offline.table(&stores.table_spec(view).await?)?;
    let withdrawn = table.withdrawn_at().await?.filter(|commit| Some(*commit) > loaded_from);
    Ok(withdrawn.map(|commit| Withdrawn { commit, complete_since_us: coverage.complete_since_us }))
}

/// Whether this commit took rows out of the offline table while the view is served: then the online store may hold them
/// still. For a process that cannot ask the online store.
pub(crate) async fn may_serve_withdrawn(
    stores: &Stores,
    view: &ViewVersion,
    commit: Option<u64>,
) -> anyhow::Result<bool> {
    if stores.registry.current_epoch(&view.id).await?.is_none() {
        return Ok(false);
    }
    let table = stores.offline.table(&stores.table_spec(view).await?)?;
    Ok(table.withdrawn_at().await?.is_some_and(|withdrawn| Some(withdrawn) == commit))
}

/// One line about an epoch that was made anew.
pub(crate) fn renewed_line(view: &ViewVersion, withdrawn: Withdrawn, epoch: u32, complete_since_us: i64) -> String {
    format!(
        "{}: online epoch {epoch} takes the place of one that held rows taken out in offline commit {}, complete since {}",
        view.id,
        withdrawn.commit,
        format_timestamp(complete_since_us)
    )
}
