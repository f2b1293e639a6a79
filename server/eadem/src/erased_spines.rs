//! The part of an erasure that is about training sets: kept spines in which an erased entity stands go, and with them what is
//! kept of the values of the sets that were made of them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, bail};
use eadem_offline::{DeletedFiles, ErasedInSpine, KeptSpine, SpineColumns, SpineUse};
use eadem_registry::model::{BoundTo, ResolvedService, ViewRef, required_key_name};
use eadem_registry::{DatasetRecord, JobRecord, JobState};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::dataset_request::{CreateRequest, DatasetRequest};
use crate::datasets::{is_failure_line, recipe_of, spine_made_by};
use crate::home::Stores;
use crate::workers::Handle;

/// What happened to the kept spines.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct SpinesReport {
    pub(crate) files_deleted: u64,
    pub(crate) bytes_deleted: u64,
    /// Rows in which erased entities stood; of spines that cannot be read, and of those that nothing names, they are not counted.
    pub(crate) rows: u64,
    /// Training sets that were made of these spines, and cannot be made again.
    pub(crate) datasets: BTreeSet<String>,
}

/// The work on kept spines, for one entity type.
pub(crate) struct KeptSpines<'a> {
    pub(crate) stores: &'a Stores,
    /// The erasure's job.
    pub(crate) id: &'a str,
    pub(crate) entity: &'a str,
    /// A stored view of the type.
    pub(crate) view: &'a str,
    pub(crate) handle: &'a Handle,
}

impl KeptSpines<'_> {
    /// Deletes the spines that hold erased rows, and those that neither a training set nor a job names: of these nobody can say
    /// what stands in them.
    pub(crate) async fn erase(&self) -> anyhow::Result<SpinesReport> {
        let offline = &self.stores.offline;
        let mut report = SpinesReport::default();
        let mut deleted = DeletedFiles::default();
        // First what is there, then who needs it: what is kept in between was given after the erasure.
        let files = offline.kept_spines().await?;
        let records = self.stores.registry.datasets().await?;
        let uses = self.uses(&records).await?;
        for file in &files {
            let of_file = uses.get(file.path()).map_or(&[][..], Vec::as_slice);
            let kept = of_file.first().map(|spine| &spine.kept);
            if let Some(kept) = kept {
                let Some(rows) = self.erased_rows(of_file).await? else { continue };
                report.rows += rows;
                // Noted before the file goes.
                report.datasets.append(&mut self.note_datasets(kept, &records).await?);
            }
            offline.delete_spine(file).await?;
            deleted.add(file.bytes());
            if let Some(kept) = kept {
                // Those too that were just being made of it.
                let records = self.stores.registry.datasets().await?;
                report.datasets.append(&mut self.note_datasets(kept, &records).await?);
            }
        }
        (report.files_deleted, report.bytes_deleted) = (deleted.files, deleted.bytes);
        Ok(report)
    }

    /// The rows of a spine that are erased, as its services read it; `None`: there are none, and it stays.
    async fn erased_rows(&self, uses: &[SpineUse]) -> anyhow::Result<Option<u64>> {
        let memory_bytes_max = self.stores.job_memory_bytes_max;
        for spine in uses {
            if self.handle.cancel.is_cancelled() {
                bail!("cancelled");
            }
            let found = self.stores.offline.erased_in_spine(self.view, spine, memory_bytes_max, &self.handle.cancel);
            match found.await? {
                ErasedInSpine::Nothing => {}
                ErasedInSpine::Rows(rows) => return Ok(Some(rows)),
                ErasedInSpine::Unreadable => return Ok(Some(0)),
            }
        }
        Ok(None)
    }

    /// Every spine that a training set was made of, or that a job may make one of, as services read it, by its file.
    async fn uses(&self, records: &[DatasetRecord]) -> anyhow::Result<BTreeMap<String, Vec<SpineUse>>> {
        let mut named: Vec<(KeptSpine, String, SpineColumns)> = Vec::new();
        for record in records {
            let recipe = recipe_of(record)?;
            let kept = KeptSpine { digest: recipe.spine_digest, format: recipe.spine_format };
            named.push((kept, recipe.service, recipe.columns));
        }
        for job in self.stores.registry.jobs(None).await? {
            if job.kind == "dataset" && job.state != JobState::Done {
                named.extend(self.spine_of_job(&job).await?);
            }
        }
        let mut keys_of_services: BTreeMap<String, Vec<Vec<String>>> = BTreeMap::new();
        let mut uses: BTreeMap<String, Vec<SpineUse>> = BTreeMap::new();
        for (kept, service, columns) in named {
            if !keys_of_services.contains_key(&service) {
                let resolved = self.stores.registry.resolve_service(&service).await;
                let resolved = resolved.with_context(|| format!("the service {service} of a kept spine"))?;
                keys_of_services.insert(service.clone(), keys_of(&resolved, self.entity));
            }
            let keys = keys_of_services.get(&service).map_or(&[][..], Vec::as_slice);
            let file = self.stores.offline.spine_path(&kept)?;
            uses.entry(file).or_default().push(SpineUse::new(kept, &columns, keys));
        }
        Ok(uses)
    }

    /// What a job that has not ended well makes its training set of, as far as it has that already.
    async fn spine_of_job(&self, job: &JobRecord) -> anyhow::Result<Option<(KeptSpine, String, SpineColumns)>> {
        let request =
            DatasetRequest::read(&job.spec).with_context(|| format!("the specification of job {}", job.id))?;
        let DatasetRequest::Create(request) = request else { return Ok(None) };
        let CreateRequest { service, timestamp_column: timestamp, columns: renamed, pinned, .. } = *request;
        let kept = match pinned.and_then(|pinned| pinned.spine) {
            Some(kept) => Some(kept),
            None => spine_made_by(&self.stores.registry, &job.id).await?,
        };
        Ok(kept.map(|kept| (kept, service, SpineColumns { timestamp, renamed })))
    }

    /// Notes of the training sets that were made of a spine that they cannot be made again, and takes the values of single rows
    /// out of what is kept of them.
    async fn note_datasets(&self, spine: &KeptSpine, records: &[DatasetRecord]) -> anyhow::Result<BTreeSet<String>> {
        let registry = &self.stores.registry;
        let mut datasets = BTreeSet::new();
        let mut names: BTreeSet<&str> = BTreeSet::new();
        for record in records {
            let recipe = recipe_of(record)?;
            if recipe.spine_digest != spine.digest || recipe.spine_format != spine.format {
                continue;
            }
            let mut report = record.report.clone();
            report["statistics"] = serde_json::to_value(self.stores.offline.forget_values(&recipe.digest()?).await?)?;
            // Why a row failed is told in the words of its transform, and why one was left out with what stood there: both may repeat
            // values.
            (report["errors"], report["notes"]) = (json!([]), json!([]));
            registry.replace_dataset_report(&record.id, &report).await?;
            names.extend([record.id.as_str(), record.name.as_str()]);
            datasets.insert(record.id.clone());
        }
        if datasets.is_empty() {
            return Ok(datasets);
        }
        registry.note_datasets_erased(&datasets, self.id, self.stores.clock.now_us()).await?;
        for job in registry.jobs(Some(JobState::Done)).await? {
            if let Some(outcome) = self.outcome_without_values(&job, &datasets, &names) {
                registry.replace_job_outcome(&job.id, &outcome).await?;
            }
        }
        Ok(datasets)
    }

    /// The outcome of a job that made one of these training sets, or compared one, without values; `None`: it stays as it is.
    fn outcome_without_values(&self, job: &JobRecord, made: &BTreeSet<String>, names: &BTreeSet<&str>) -> Option<Json> {
        if job.kind != "dataset" {
            return None;
        }
        let mut compared = job.spec["diff"].as_array().into_iter().flatten().filter_map(Json::as_str);
        if compared.any(|name| names.contains(name)) {
            let line = format!("what was found is erased, with a training set that was compared: erasure {}", self.id);
            return Some(json!({ "lines": [line] }));
        }
        let is_of_these = job.outcome["id"].as_str().is_some_and(|id| made.contains(id));
        is_of_these.then(|| {
            let mut outcome = job.outcome.clone();
            let notes = std::mem::replace(&mut outcome["notes"], json!([]));
            let is_note = |line: &Json| notes.as_array().is_some_and(|notes| notes.contains(line));
            (outcome["statistics"], outcome["errors"]) = (Json::Null, json!([]));
            if let Some(lines) = outcome["lines"].as_array_mut() {
                lines.retain(|line| !is_note(line) && !line.as_str().is_some_and(is_failure_line));
            }
            outcome
        })
    }
}

/// For each role in which a service asks for an entity type its join keys, in declared order, by the names that the service
/// knows.
fn keys_of(service: &ResolvedService, entity: &str) -> Vec<Vec<String>> {
    let mut seen: BTreeSet<(ViewRef, Option<String>)> = BTreeSet::new();
    let mut keys: BTreeSet<Vec<String>> = BTreeSet::new();
    let mut open: Vec<(ViewRef, Option<String>)> =
        service.entries.iter().map(|entry| (entry.view.clone(), entry.role.clone())).collect();
    while let Some((view, role)) = open.pop() {
        let Some(version) = service.views.get(&view) else { continue };
        if !seen.insert((view, role.clone())) {
            continue;
        }
        match &version.stored {
            Some(stored) if stored.entity.name == entity => {
                let named = |key: &eadem_registry::model::JoinKey| {
                    required_key_name(&stored.entity, &key.name, role.as_deref())
                };
                keys.insert(stored.entity.keys.iter().map(named).collect());
            }
            Some(_) => {}
            None => open.extend(version.bindings.iter().filter_map(|binding| match &binding.from {
                BoundTo::Feature(upstream) => Some((upstream.view.clone(), upstream.role.clone())),
                _ => None,
            })),
        }
    }
    keys.into_iter().collect()
}
