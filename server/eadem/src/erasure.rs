//! Erasures: recorded at once, when rows are hidden from every reader and writer, and then carried out as a job in all stores.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use async_trait::async_trait;
use eadem_api::{Job, JobKind, Problem, registry_problem};
use eadem_offline::{
    DoomedFiles, ErasedEntities, ErasedTable, Erasure, ErasureLedger, ErasureReport, LedgerError, LookedInto,
    doomed_files, erase_rows,
};
use eadem_online::{KeyBytes, StoreError};
use eadem_registry::definitions::split_version;
use eadem_registry::model::{Entity, Placement, ViewVersion};
use eadem_registry::{Actor, ErasedEntity, JobChunk, NewErasure, Registry};
use eadem_values::{EntityKey, KeyType, KeyValue, format_timestamp, parse_timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

use crate::erased_spines::{KeptSpines, SpinesReport};
use crate::home::Stores;
use crate::workers::Handle;

/// Entities of one erasure.
const ENTITIES_MAX: usize = 100_000;

/// Another pass over a table is needed only where a job commits to it meanwhile.
const PASSES_MAX: usize = 16;

/// What `POST /erasures` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ErasureRequest {
    /// The entity type.
    entity: String,
    /// The entities: of each an object with all join keys.
    keys: Vec<Map<String, Json>>,
    /// Rows with an event time up to this instant are erased, RFC 3339; default: now.
    up_to: Option<String>,
}

/// What is kept of it: the keys are not.
#[derive(Debug, Serialize, Deserialize)]
struct ErasureSpec {
    entity: String,
    entities: usize,
    up_to: String,
}

/// Checks what is asked for, records it, and creates its job.
///
/// # Errors
/// 4xx for a request that is malformed or names what does not exist.
pub(crate) async fn begin(stores: &Stores, id: &str, request: Json, by: &Actor) -> Result<Job, Problem> {
    let malformed = |message: String| Problem::bad_request("malformed_job", format!("erase: {message}"));
    let request: ErasureRequest = serde_json::from_value(request).map_err(|error| malformed(error.to_string()))?;
    if request.keys.is_empty() || request.keys.len() > ENTITIES_MAX {
        return Err(malformed(format!("`keys` has 1 to {ENTITIES_MAX} entities; it has {}", request.keys.len())));
    }
    let now_us = stores.clock.now_us();
    let up_to_us = match &request.up_to {
        None => now_us,
        Some(text) => parse_timestamp(text).map_err(|error| malformed(format!("up_to: {error}")))?,
    };
    let entity = stores.registry.entity(&request.entity).await.map_err(|error| registry_problem(&error))?;
    let keys = request.keys.iter().enumerate().map(|(number, key)| {
        let named = read_key(&entity, key).map_err(|message| malformed(format!("keys[{number}]: {message}")))?;
        Ok(ErasedEntity { key: named, up_to_us })
    });
    let entities = keys.collect::<Result<Vec<_>, Problem>>()?;
    let spec = ErasureSpec { entity: entity.name.clone(), entities: entities.len(), up_to: format_timestamp(up_to_us) };
    let spec = serde_json::to_value(spec).map_err(|error| Problem::internal("the erasure could not be kept", error))?;
    let kind = JobKind::Erase;
    let erasure = NewErasure { id, kind: kind.name(), spec: &spec, entity: &entity.name, entities: &entities };
    let begun = stores.registry.acting(by.clone()).begin_erasure(&erasure, now_us).await;
    begun.map_err(|error| registry_problem(&error))?;
    Ok(Job::begun(id.to_owned(), kind, spec, now_us))
}

fn read_key(entity: &Entity, key: &Map<String, Json>) -> Result<EntityKey, String> {
    let names: Vec<&str> = entity.keys.iter().map(|key| key.name.as_str()).collect();
    if let Some(unknown) = key.keys().find(|name| !names.contains(&name.as_str())) {
        return Err(format!("`{unknown}` is no key of `{}`; its keys are {}", entity.name, names.join(", ")));
    }
    let part = |declared: &eadem_registry::model::JoinKey| {
        let value = key.get(&declared.name).ok_or_else(|| format!("key `{}` is missing", declared.name))?;
        KeyValue::from_json(&declared.name, declared.key_type, value).map_err(|error| error.to_string())
    };
    entity.keys.iter().map(part).collect::<Result<_, _>>().map(EntityKey)
}

/// What happened in the stores of one view.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct ViewReport {
    view: String,
    /// Rows taken out of the offline table.
    offline_rows: u64,
    /// Its files that were written again, and those that were deleted.
    files_rewritten: u64,
    bytes_rewritten: u64,
    files_deleted: u64,
    bytes_deleted: u64,
    /// Refused rows that are not kept any more.
    quarantine_rows: u64,
    /// Rows of all epochs of the online store.
    online_rows: u64,
    /// What was extracted from databases for it.
    #[serde(default)]
    extracts_deleted: u64,
    #[serde(default)]
    extract_bytes_deleted: u64,
    /// Training sets that can no longer be made again.
    datasets: BTreeSet<String>,
}

/// Carries an erasure out. What is done of it is kept, view by view.
pub(crate) async fn run(stores: &Stores, id: &str, spec: &Json, handle: &Arc<Handle>) -> anyhow::Result<Json> {
    let spec: ErasureSpec = serde_json::from_value(spec.clone())?;
    let registry = &stores.registry;
    let entities = registry.erased_entities(id).await?;
    let views = views_of(registry, &spec.entity).await?;
    let mut reports = Vec::with_capacity(views.len());
    let done_before = registry.list_chunks(id).await?;
    let steps = views.len() as u64 + 1;
    for (done, view) in views.iter().enumerate() {
        let name = view.id.to_string();
        handle.steps(done as u64, steps, rows_of(&reports), name.clone());
        if handle.cancel.is_cancelled() {
            bail!("cancelled: the rows stay hidden, and `eadem jobs resume {id}` goes on");
        }
        let kept = done_before.iter().find(|chunk| chunk.chunk == name);
        let report = match kept {
            Some(chunk) => serde_json::from_value(chunk.result.clone())?,
            None => {
                let work = OneView { stores, id, view, entities: &entities, done_before: &done_before, handle };
                let report = work.erase().await.with_context(|| name.clone())?;
                let now_us = stores.clock.now_us();
                registry.record_chunk(id, &name, &serde_json::to_value(&report)?, None, now_us).await?;
                report
            }
        };
        reports.push(report);
    }
    handle.steps(views.len() as u64, steps, rows_of(&reports), SPINES_CHUNK.to_owned());
    let spines = spines_once(stores, id, &spec.entity, &views, &done_before, handle).await.context("kept spines")?;
    handle.steps(steps, steps, rows_of(&reports), String::new());
    // Those that this job has noted in runs that were killed are among them.
    let mut datasets = registry.datasets_erased_by(id).await?;
    datasets.extend(reports.iter().flat_map(|report| &report.datasets).chain(&spines.datasets).cloned());
    // Nothing needs the keys themselves any more.
    registry.forget_erased_entities(id).await?;
    Ok(result_json(&spec, &reports, &spines, &datasets))
}

/// The name under which it is kept that the spines were gone through.
const SPINES_CHUNK: &str = "spines";

/// What happened to kept spines, also where another run of the job did it.
async fn spines_once(
    stores: &Stores,
    id: &str,
    entity: &str,
    views: &[Arc<ViewVersion>],
    done_before: &[JobChunk],
    handle: &Handle,
) -> anyhow::Result<SpinesReport> {
    if let Some(done) = done_before.iter().find(|done| done.chunk == SPINES_CHUNK) {
        return Ok(serde_json::from_value(done.result.clone())?);
    }
    // Without a view no service asks for the type.
    let Some(view) = views.first().map(|view| view.id.to_string()) else { return Ok(SpinesReport::default()) };
    let report = KeptSpines { stores, id, entity, view: &view, handle }.erase().await?;
    let kept = serde_json::to_value(&report)?;
    stores.registry.record_chunk(id, SPINES_CHUNK, &kept, None, stores.clock.now_us()).await?;
    Ok(report)
}

fn rows_of(reports: &[ViewReport]) -> u64 {
    reports.iter().map(|report| report.offline_rows + report.online_rows + report.quarantine_rows).sum()
}

/// All versions of the stored views of an entity type.
async fn views_of(registry: &Registry, entity: &str) -> anyhow::Result<Vec<Arc<ViewVersion>>> {
    let mut views = Vec::new();
    for summary in registry.views().await? {
        for version in summary.versions {
            let view = registry.view(&summary.newest.id.name, Some(version)).await?;
            if view.stored.as_ref().is_some_and(|stored| stored.entity.name == entity) {
                views.push(view);
            }
        }
    }
    Ok(views)
}

fn result_json(spec: &ErasureSpec, reports: &[ViewReport], spines: &SpinesReport, datasets: &BTreeSet<String>) -> Json {
    let mut lines = vec![format!("{} of `{}`: erased up to {}", spec.entities, spec.entity, spec.up_to)];
    for report in reports {
        lines.push(format!(
            "{}: {} rows offline ({} files written again, {} deleted, {} bytes), {} online, {} in quarantine; {} extracts \
             deleted, {} bytes",
            report.view,
            report.offline_rows,
            report.files_rewritten,
            report.files_deleted,
            report.bytes_deleted,
            report.online_rows,
            report.quarantine_rows,
            report.extracts_deleted,
            report.extract_bytes_deleted
        ));
    }
    lines.push(format!(
        "kept spines: {} deleted, {} bytes, with {} rows of what was erased",
        spines.files_deleted, spines.bytes_deleted, spines.rows
    ));
    if !datasets.is_empty() {
        let names: Vec<&str> = datasets.iter().map(|name| name.as_str()).collect();
        lines.push(format!(
            "training sets that cannot be made again: {}; their files still hold what was erased: docs/erasure.md",
            names.join(", ")
        ));
    }
    json!({
        "lines": lines,
        "entity": spec.entity,
        "entities": spec.entities,
        "up_to": spec.up_to,
        "views": reports,
        "spines": spines,
        "datasets": datasets,
        "request_log": "holds hashes of keys only; nothing is erased there",
    })
}

/// The work on one view.
struct OneView<'a> {
    stores: &'a Stores,
    id: &'a str,
    view: &'a ViewVersion,
    entities: &'a [ErasedEntity],
    /// What earlier runs of the job have done.
    done_before: &'a [JobChunk],
    handle: &'a Arc<Handle>,
}

impl OneView<'_> {
    async fn erase(&self) -> anyhow::Result<ViewReport> {
        let mut report = ViewReport { view: self.view.id.to_string(), ..ViewReport::default() };
        // First where requests read.
        report.online_rows = self.online_once().await?;
        self.offline(&mut report).await?;
        self.quarantine(&mut report).await?;
        let view = &self.view.id;
        let extracts = self.stores.offline.delete_extracts(&view.name, view.version, &self.handle.cancel).await?;
        (report.extracts_deleted, report.extract_bytes_deleted) = (extracts.files, extracts.bytes);
        Ok(report)
    }

    /// Rows that went from the online store, also where another run of the job took them out.
    async fn online_once(&self) -> anyhow::Result<u64> {
        let (registry, chunk) = (&self.stores.registry, format!("{}/online", self.view.id));
        if let Some(done) = self.done_before.iter().find(|done| done.chunk == chunk) {
            return Ok(done.result["rows"].as_u64().unwrap_or_default());
        }
        let online = self.stores.online()?;
        let mut rows = 0;
        for entity in self.entities {
            if self.handle.cancel.is_cancelled() {
                bail!("cancelled");
            }
            let key = KeyBytes::from(&entity.key);
            rows += match online.erase(self.view.digest, &key, entity.up_to_us).await {
                // The store cannot hold such a row.
                Err(StoreError::KeyTooLong { .. }) => 0,
                erased => erased?,
            };
        }
        registry.record_chunk(self.id, &chunk, &json!({ "rows": rows }), None, self.stores.clock.now_us()).await?;
        Ok(rows)
    }

    async fn offline(&self, report: &mut ViewReport) -> anyhow::Result<()> {
        // One that is not read now may be again.
        for placement in [Placement::OnWrite, Placement::OnRead] {
            let spec = self.stores.table_spec(&self.view.placed(placement)).await?;
            let table = self.stores.offline.table(&spec)?;
            report.offline_rows += self.take_out(&table.into(), "table", report).await?;
        }
        Ok(())
    }

    async fn quarantine(&self, report: &mut ViewReport) -> anyhow::Result<()> {
        let quarantine = self.stores.offline.quarantine(&self.view.id.name, self.view.id.version)?;
        report.quarantine_rows = self.take_out(&quarantine.into(), "quarantine", report).await?;
        Ok(())
    }

    /// Takes the rows out of all files of a table; how many these were.
    async fn take_out(&self, table: &ErasedTable, what: &str, report: &mut ViewReport) -> anyhow::Result<u64> {
        let (mut rows, looked_into) = (0, LookedInto::default());
        for pass in 0..PASSES_MAX {
            let erasure = self.pass_over(table, pass, &looked_into);
            let erased = erase_rows(&erasure).await?;
            rows += erased.rows;
            let doomed = doomed_files(&erasure).await?;
            if let Some(doomed) = &doomed {
                report.datasets.append(&mut self.note_datasets(doomed).await?);
            }
            if self.is_clean_after(&erased, doomed, report).await? {
                return Ok(rows);
            }
        }
        bail!("jobs commit to its {what} all the time; resume this job when they have ended")
    }

    fn pass_over(&self, table: &ErasedTable, pass: usize, looked_into: &LookedInto) -> Erasure {
        Erasure {
            job: self.job_of(pass),
            table: table.clone(),
            cancel: self.handle.cancel.clone(),
            looked_into: looked_into.clone(),
        }
    }

    /// Deletes what a pass has found; whether it has found nothing.
    async fn is_clean_after(
        &self,
        pass: &ErasureReport,
        doomed: Option<DoomedFiles>,
        report: &mut ViewReport,
    ) -> anyhow::Result<bool> {
        report.files_rewritten += pass.files_rewritten;
        report.bytes_rewritten += pass.bytes_rewritten;
        let Some(doomed) = doomed.filter(|doomed| doomed.count() > 0) else { return Ok(pass.version.is_none()) };
        doomed.delete().await?;
        report.files_deleted += doomed.count() as u64;
        report.bytes_deleted += doomed.bytes();
        Ok(false)
    }

    /// The name of a pass over a table: each commits once.
    fn job_of(&self, pass: usize) -> String {
        format!("{}/{}/{pass}", self.id, self.view.id)
    }

    /// Notes of the training sets whose recipes name these files, before the files go.
    async fn note_datasets(&self, doomed: &DoomedFiles) -> anyhow::Result<BTreeSet<String>> {
        if doomed.count() == 0 {
            return Ok(BTreeSet::new());
        }
        let registry = &self.stores.registry;
        let records = registry.datasets().await?;
        let names = records.into_iter().filter(|record| names_any(&record.recipe, &doomed.paths));
        let datasets: BTreeSet<String> = names.map(|record| record.id).collect();
        if !datasets.is_empty() {
            registry.note_datasets_erased(&datasets, self.id, self.stores.clock.now_us()).await?;
        }
        Ok(datasets)
    }
}

/// Whether any text in a document is one of these.
fn names_any(document: &Json, texts: &BTreeSet<String>) -> bool {
    match document {
        Json::String(text) => texts.contains(text),
        Json::Array(items) => items.iter().any(|item| names_any(item, texts)),
        Json::Object(entries) => entries.values().any(|value| names_any(value, texts)),
        _ => false,
    }
}

/// Why a training set cannot be made again, if an erasure is the reason.
pub(crate) async fn hindrance_of_dataset(registry: &Registry, dataset: &str) -> anyhow::Result<Option<String>> {
    let erased = registry.dataset_erased_by(dataset).await?;
    Ok(erased.map(|(job, erased_at_us)| {
        format!(
            "training set {dataset} cannot be made again: the erasure {job} has deleted files that it was made of ({})",
            format_timestamp(erased_at_us)
        )
    }))
}

/// The registry's erasures, as the offline store asks for them.
#[derive(Clone)]
pub(crate) struct RegistryErasures(pub(crate) Registry);

impl std::fmt::Debug for RegistryErasures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RegistryErasures")
    }
}

#[async_trait]
impl ErasureLedger for RegistryErasures {
    async fn of_view(&self, view: &str, now: bool) -> Result<Option<Arc<dyn ErasedEntities>>, LedgerError> {
        let failed = |error: &dyn std::fmt::Display| LedgerError(error.to_string());
        let erasures = match now {
            true => self.0.erasures_now().await,
            false => self.0.erasures().await,
        };
        let erasures = erasures.map_err(|error| failed(&error))?;
        if erasures.is_empty() {
            return Ok(None);
        }
        let (name, version) = split_version(view).map_err(|error| failed(&error))?;
        let version = self.0.view(name, version).await.map_err(|error| failed(&error))?;
        let Some(stored) = &version.stored else { return Ok(None) };
        let Some(of_entity) = erasures.of(&stored.entity.name) else { return Ok(None) };
        let keys = stored.entity.keys.iter().map(|key| (key.name.clone(), key.key_type)).collect();
        let revision = erasures.revision();
        Ok(Some(Arc::new(OfEntity { erasures: Arc::clone(of_entity), keys, revision })))
    }
}

#[derive(Debug)]
struct OfEntity {
    erasures: Arc<eadem_registry::EntityErasures>,
    keys: Vec<(String, KeyType)>,
    revision: u64,
}

impl ErasedEntities for OfEntity {
    fn up_to_us(&self, key: &EntityKey) -> Option<i64> {
        self.erasures.up_to_us(key)
    }

    fn latest_us(&self) -> i64 {
        self.erasures.latest_us()
    }

    fn keys(&self) -> &[(String, KeyType)] {
        &self.keys
    }

    fn revision(&self) -> u64 {
        self.revision
    }
}
