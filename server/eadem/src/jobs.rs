//! Long work: backfill, materialize and dataset jobs, kept in the registry and run in this process.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use async_trait::async_trait;
use eadem_api::serving::lifetime;
use eadem_api::{Job, JobFilter, JobKind, JobProgress, JobState, Jobs, Problem, check_not_retired};
use eadem_offline::{
    Backfill, BackfillOptions, BackfillReport, FileScan, OfflineError, Progress, StopThreshold, TableScan,
    plan_backfill, run_backfill,
};
use eadem_online::{Coverage, Retention, TableId};
use eadem_registry::definitions::split_version;
use eadem_registry::model::{self as registry_model, Placement, StoredView, ViewVersion};
use eadem_registry::{Actor, EpochState, JobRecord, ObjectKind, RegistryError};
use eadem_values::{format_timestamp, parse_timestamp};
use futures::stream::BoxStream;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use uuid::Uuid;

use crate::adapters::RegistryLedger;
use crate::config::JobsConfig;
use crate::dataset_request::place_spine;
use crate::datasets::{self, DatasetRequest};
use crate::erasure;
use crate::home::Stores;
use crate::load_record::{Begun, Earlier, Ended, LoadRecord};
use crate::materialize::{self, Load};
use crate::online_backup::{self, BackupRequest, RestoreRequest};
use crate::pace::Pace;
use crate::placement::{self, FilledTable};
use crate::quarantine::{self, ReplayRequest};
use crate::upkeep::{self, CompactRequest, VacuumRequest};
use crate::workers::{Handle, Lease, OwnWork, Planned};

/// Against clocks that differ and work that runs late: rows stay this much longer than needed.
const RETENTION_SLACK_US: i64 = 3_600_000_000;

/// What `POST /jobs/backfill` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BackfillRequest {
    #[serde(default)]
    views: Vec<String>,
    /// Only rows with an event time in `[from, to)`, RFC 3339.
    from: Option<String>,
    to: Option<String>,
    /// Rows of the range that are stored are computed anew from the files that are there.
    #[serde(default)]
    recompute: bool,
    /// The greatest share of refused rows that is committed, from 0 to 1, in place of the views' own.
    stop_share: Option<f64>,
    /// Of fewer rows no share is taken, in place of the views' own.
    stop_rows_min: Option<u64>,
    /// By view, as it was when the job began; what a request says of it is replaced.
    #[serde(default)]
    stop: BTreeMap<String, StopThreshold>,
}

/// What `POST /jobs/materialize` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MaterializeRequest {
    #[serde(default)]
    views: Vec<String>,
    /// The instant that online history is counted back from, RFC 3339; default: now.
    as_of: Option<String>,
    /// Where it can be done, only rows that came since the last time are loaded.
    #[serde(default)]
    incremental: bool,
    /// Rows a second, at most; 0: as fast as it goes. Default: as the configuration says.
    rows_per_s_max: Option<u64>,
}

/// Rows of which a share is taken where neither the view nor the job says.
const STOP_ROWS_MIN_DEFAULT: u64 = 100;

impl BackfillRequest {
    /// When the job stops over this view's refused rows.
    fn stop_for(&self, view: &ViewVersion) -> anyhow::Result<Option<StopThreshold>> {
        let of_view = view.stored.as_ref().and_then(|stored| stored.deployment.stop);
        if self.stop_rows_min == Some(0) {
            bail!("stop_rows_min: a number of rows, 1 at least");
        }
        let rows_min = self.stop_rows_min.or(of_view.map(|stop| stop.rows_min)).unwrap_or(STOP_ROWS_MIN_DEFAULT);
        let share_ppm =
            match (self.stop_share, of_view) {
                // All of them are no greater share than all of them.
                (Some(1.0), _) => Some(1_000_000),
                (Some(share), _) => Some(registry_model::StopThreshold::share_ppm_of(share).with_context(|| {
                    format!("stop_share: {share} is no share from 0 to 1 with at most six decimals")
                })?),
                (None, of_view) => of_view.map(|stop| stop.share_ppm),
            };
        if share_ppm.is_none() && self.stop_rows_min.is_some() {
            bail!("stop_rows_min: {} has no stop_share; give one", view.id);
        }
        Ok(share_ppm.map(|share_ppm| StopThreshold { share_ppm, rows_min }))
    }

    fn range_us(&self) -> anyhow::Result<Option<(i64, i64)>> {
        if self.from.is_none() && self.to.is_none() {
            return Ok(None);
        }
        let instant = |text: &Option<String>, default_us| text.as_deref().map_or(Ok(default_us), parse_timestamp);
        let from_us = instant(&self.from, eadem_values::TIME_MIN_US).context("from")?;
        let to_us = instant(&self.to, eadem_values::TIME_MAX_US).context("to")?;
        if from_us >= to_us {
            bail!("`from` must be before `to`");
        }
        Ok(Some((from_us, to_us)))
    }
}

/// Runs jobs.
#[derive(Clone)]
pub(crate) struct JobRunner {
    shared: Arc<Shared>,
}

struct Shared {
    stores: Stores,
    workers: usize,
    chunk_rows: u64,
    /// Rows a second of a load whose job does not say; 0: as fast as it goes.
    materialize_rows_per_s_max: u64,
    lease: Lease,
    running: Mutex<HashMap<String, Arc<Handle>>>,
    /// One job writes to the stores at a time in a process: it gets all threads and all memory that jobs may have, and two
    /// that load the same files would each load them.
    writers: Semaphore,
    /// Training sets that are made at once: each may take all the memory of a job.
    datasets: Semaphore,
}

/// How often a job that another process is at is looked at.
const ELSEWHERE_POLL: Duration = Duration::from_millis(250);

/// How long the registry may not answer before those who follow such a job are told so, and nothing more.
const SILENCE_MAX: Duration = Duration::from_secs(30);

impl JobRunner {
    /// A runner of a process that holds the online store, or of one beside it.
    pub(crate) fn new(stores: Stores, config: &JobsConfig) -> Self {
        let shared = Shared {
            stores,
            workers: config.workers.max(1),
            chunk_rows: config.chunk_rows.max(1) as u64,
            materialize_rows_per_s_max: config.materialize_rows_per_s_max,
            lease: Lease::of_ms(config.lease_ms),
            running: Mutex::default(),
            writers: Semaphore::new(1),
            datasets: Semaphore::new(1),
        };
        Self { shared: Arc::new(shared) }
    }

    fn running(&self, id: &str) -> Option<Arc<Handle>> {
        self.shared.running.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Starts a job's work in this process.
    ///
    /// # Errors
    /// 409 if it is at work here already, or was closed meanwhile.
    async fn spawn(&self, job: Job) -> Result<Job, Problem> {
        let handle = Arc::new(Handle::new(job.clone(), self.shared.stores.home()));
        match self.shared.running.lock().unwrap_or_else(PoisonError::into_inner).entry(job.id.clone()) {
            Entry::Occupied(_) => return Err(Problem::conflict("job_running", format!("job {} is running", job.id))),
            Entry::Vacant(place) => place.insert(Arc::clone(&handle)),
        };
        let shared = Arc::clone(&self.shared);
        let id = job.id.clone();
        let (kind, spec) = (job.kind, job.spec.clone());
        let (stores, lease) = (&shared.stores, shared.lease);
        if let Err(error) = stores.registry.join_job(&id, &handle.worker, stores.clock.now_us(), lease.us()).await {
            shared.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            return Err(error.into());
        }
        tokio::spawn(async move {
            let beats = {
                let (shared, id, handle) = (Arc::clone(&shared), id.clone(), Arc::clone(&handle));
                tokio::spawn(async move { handle.keep_lease(&shared.stores, &id, shared.lease).await })
            };
            let work = {
                let (shared, id, handle) = (Arc::clone(&shared), id.clone(), Arc::clone(&handle));
                async move { shared.run(&id, kind, &spec, &handle).await }
            };
            let worked = shared.stores.job_threads.run(work).await;
            // A panic ends the job, not the server's knowledge of it.
            let outcome =
                worked.unwrap_or_else(|error| Err(anyhow::anyhow!("the job broke off by a fault of ours: {error}")));
            beats.abort();
            shared.finish(&id, &handle, outcome).await;
        });
        Ok(job)
    }
}

/// A job's turn among those that cannot be at work together. A job that is called off does not wait for it.
async fn turn<'a>(places: &'a Semaphore, handle: &Handle) -> anyhow::Result<SemaphorePermit<'a>> {
    if handle.cancel.is_cancelled() {
        bail!("cancelled before it began");
    }
    if let Ok(place) = places.try_acquire() {
        return Ok(place);
    }
    let message = "queued: it begins when the job before it has ended".to_owned();
    handle.report(JobProgress { message, ..JobProgress::default() });
    tokio::select! {
        // Called off and its turn at once: called off.
        biased;
        () = handle.cancel.cancelled() => bail!("cancelled before it began"),
        place = places.acquire() => {
            handle.report(JobProgress::default());
            Ok(place?)
        }
    }
}

impl Shared {
    async fn run(self: &Arc<Self>, id: &str, kind: JobKind, spec: &Json, handle: &Arc<Handle>) -> anyhow::Result<Json> {
        let places = match kind {
            JobKind::Dataset => Some(&self.datasets),
            // It changes nothing, and takes next to no memory.
            JobKind::Backup => None,
            _ => Some(&self.writers),
        };
        let _place = match places {
            Some(places) => Some(turn(places, handle).await?),
            None => None,
        };
        if kind == JobKind::Backfill {
            return self.backfill(id, serde_json::from_value(spec.clone())?, handle).await;
        }
        // Decoding, joining, hashing and encoding take whole seconds of processor time: not on the threads of requests.
        // (A backfill takes threads of its own.)
        let runtime = tokio::runtime::Handle::current();
        let (shared, id, spec, handle) = (Arc::clone(self), id.to_owned(), spec.clone(), Arc::clone(handle));
        let work = move || {
            runtime.block_on(async {
                match kind {
                    JobKind::Dataset => datasets::run(&shared.stores, &id, DatasetRequest::read(&spec)?, &handle).await,
                    JobKind::Compact => {
                        let request: CompactRequest = serde_json::from_value(spec)?;
                        let views = shared.stored_views(&request.views).await?;
                        upkeep::run_compaction(&shared.stores, &id, &views, request.options()?, &handle).await
                    }
                    JobKind::Vacuum => {
                        let request: VacuumRequest = serde_json::from_value(spec)?;
                        let options = request.options(shared.stores.clock.now_us())?;
                        upkeep::run_vacuum(&shared.stores, options, &handle).await
                    }
                    JobKind::Replay => {
                        let request: ReplayRequest = serde_json::from_value(spec)?;
                        let progress = progress_of_replay(&handle, &request.view);
                        let (ledger, cancel) = (shared.ledger(&handle), handle.cancel.clone());
                        quarantine::run(&shared.stores, &id, request, ledger, cancel, progress).await
                    }
                    JobKind::Backup => {
                        let request: BackupRequest = serde_json::from_value(spec)?;
                        let views = shared.named_views(&request.views).await?;
                        online_backup::run_backup(&shared.stores, &id, &views, &request, &handle).await
                    }
                    JobKind::Erase => erasure::run(&shared.stores, &id, &spec, &handle).await,
                    JobKind::Restore => {
                        let request: RestoreRequest = serde_json::from_value(spec)?;
                        let views = shared.named_views(&request.views).await?;
                        online_backup::run_restore(&shared.stores, &views, &request, &handle).await
                    }
                    JobKind::Backfill | JobKind::Materialize => {
                        shared.materialize(&id, serde_json::from_value(spec)?, &handle).await
                    }
                }
            })
        };
        tokio::task::spawn_blocking(work).await?
    }

    /// The ledger as this process's run of a job sees it.
    fn ledger(&self, handle: &Handle) -> Arc<RegistryLedger> {
        let (registry, clock) = (self.stores.registry.clone(), Arc::clone(&self.stores.clock));
        Arc::new(RegistryLedger::new(registry, clock, handle.worker.id.clone(), self.lease.us()))
    }

    /// Ends this process's part in a job: closes the job, or finds out how others have closed it.
    async fn finish(&self, id: &str, handle: &Handle, outcome: anyhow::Result<Json>) {
        let ended = match handle.is_leaving() && outcome.is_err() {
            true => self.leave(id, handle).await,
            false => self.close(id, handle, outcome).await,
        };
        // Before anybody can see that it has ended: whoever sees it may resume it.
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        handle.changes.send_modify(|job| *job = ended);
    }

    async fn close(&self, id: &str, handle: &Handle, outcome: anyhow::Result<Json>) -> Job {
        let registry = &self.stores.registry;
        let now_us = self.stores.clock.now_us();
        let mut job = handle.changes.borrow().clone();
        job.finished_at = Some(format_timestamp(now_us));
        job.progress.seconds_left = None;
        job.progress.workers = 0;
        let (state, recorded) = match &outcome {
            Ok(result) => {
                job.state = JobState::Succeeded;
                job.result = Some(result.clone());
                (eadem_registry::JobState::Done, result.clone())
            }
            Err(error) => {
                let text = format!("{error:#}");
                job.error = Some(text.clone());
                let (state, closed) = match handle.cancel.is_cancelled() {
                    true => (JobState::Cancelled, eadem_registry::JobState::Cancelled),
                    false => (JobState::Failed, eadem_registry::JobState::Failed),
                };
                job.state = state;
                (closed, json!({ "error": text }))
            }
        };
        // Refused where another has closed the job, which the next line finds out.
        let progress = serde_json::to_value(&job.progress).unwrap_or_default();
        let _ = registry.set_job_progress(id, &progress, now_us).await;
        match registry.finish_job(id, state, &recorded, now_us).await {
            // The first of those who end with the same has said what came of it.
            Ok(()) => match registry.job(id).await.map(|record| job_of_record(record, false)) {
                Ok(Ok(closed)) => closed,
                _ => job,
            },
            // Closed by another process, or about to be by one that commits.
            Err(error) if error.is_callers_fault() => {
                let _ = registry.leave_job(id, &handle.worker.id).await;
                self.ended_elsewhere(id).await.unwrap_or(job)
            }
            Err(error) => {
                tracing::error!(job = id, %error, "the end of a job could not be recorded; it counts as interrupted");
                job
            }
        }
    }

    /// Leaves a job to others.
    async fn leave(&self, id: &str, handle: &Handle) -> Job {
        if let Err(error) = self.stores.registry.leave_job(id, &handle.worker.id).await {
            tracing::warn!(job = id, %error, "the job could not be left; its lease will expire");
        }
        let mut job = handle.changes.borrow().clone();
        job.state = JobState::Interrupted;
        job
    }

    /// Waits until nobody is at a job any more.
    async fn ended_elsewhere(&self, id: &str) -> Result<Job, Problem> {
        loop {
            let job = self.recorded(id).await?;
            if job.state.is_final() {
                return Ok(job);
            }
            tokio::time::sleep(ELSEWHERE_POLL).await;
        }
    }

    /// The jobs that some process is at.
    async fn at_work(&self) -> Result<BTreeSet<String>, Problem> {
        Ok(self.stores.registry.jobs_at_work(self.stores.clock.now_us()).await?)
    }

    /// A job as the registry knows it.
    async fn recorded(&self, id: &str) -> Result<Job, Problem> {
        // Who is at it, the record, and who is at it: a job that begins or ends in between is not found interrupted.
        let before = self.at_work().await?;
        let record = self.stores.registry.job(id).await?;
        let is_at_work = before.contains(id) || self.at_work().await?.contains(id);
        job_of_record(record, is_at_work)
    }

    /// The stored views of these names; all newest ones where no name is given.
    async fn stored_views(&self, names: &[String]) -> anyhow::Result<Vec<Arc<ViewVersion>>> {
        if names.is_empty() {
            let views = self.stores.registry.views().await?;
            let newest = views.into_iter().map(|view| view.newest);
            let stored: Vec<_> = newest.filter(|view| !view.is_on_demand() && !view.is_retired()).collect();
            if stored.is_empty() {
                bail!("there is no stored view; apply definitions first");
            }
            return Ok(stored);
        }
        let mut views = Vec::with_capacity(names.len());
        for name in names {
            let (bare, version) = split_version(name)?;
            let view = self.stores.registry.view(bare, version).await?;
            if view.is_on_demand() {
                bail!("{} is computed on demand: there is nothing to store", view.id);
            }
            views.push(view);
        }
        Ok(views)
    }

    /// The stored views of these names; none where no name is given.
    async fn named_views(&self, names: &[String]) -> anyhow::Result<Vec<Arc<ViewVersion>>> {
        if names.is_empty() { Ok(Vec::new()) } else { self.stored_views(names).await }
    }

    async fn backfill(
        self: &Arc<Self>,
        id: &str,
        request: BackfillRequest,
        handle: &Arc<Handle>,
    ) -> anyhow::Result<Json> {
        let range_us = request.range_us()?;
        let created_at_us = self.stores.registry.job(id).await?.created_at_us;
        let views = self.stored_views(&request.views).await?;
        let tables = placement::tables_to_fill(&views);
        let ledger = self.ledger(handle);
        let mut backfills = Vec::with_capacity(tables.len());
        for table in &tables {
            let FilledTable { view, is_next } = table;
            let options = BackfillOptions {
                range_us,
                recompute: request.recompute,
                workers: self.workers,
                chunk_rows: self.chunk_rows,
                stop: request.stop.get(&view.id.to_string()).copied().filter(|_| !is_next),
                keeps_refusals: !is_next,
                memory_bytes_max: self.stores.job_memory_bytes_max,
                ..BackfillOptions::created_at(created_at_us)
            };
            backfills.push(Backfill {
                job: format!("{id}/{}", table.name()),
                view: self.stores.view_spec(view).await?,
                store: self.stores.offline.as_ref().clone(),
                ledger: ledger.clone(),
                options,
                progress: None,
                cancel: handle.cancel.clone(),
            });
        }
        // All are planned before the first is computed: a mistake in any of them shows now, and how much there is to do.
        let mut planned = Planned { rows: 0, chunks: 0, memory_bytes_max: self.stores.job_memory_bytes_max as u64 };
        for (table, backfill) in tables.iter().zip(&backfills) {
            let name = table.name();
            handle.report(JobProgress { message: format!("{name}: planning"), ..handle.progress() });
            let plan = plan_backfill(backfill).await.with_context(|| name)?;
            planned.rows += plan.chunks.iter().map(|chunk| chunk.rows).sum::<u64>();
            planned.chunks += plan.chunks.len() as u64;
        }
        // What others have done by now counts from the first word on.
        handle.renew(&self.stores, id, self.lease).await?;
        handle.planned(planned);
        let mut lines = Vec::new();
        let mut reports = Vec::new();
        let before = Arc::new(Mutex::new(OwnWork::default()));
        for (done, (table, mut backfill)) in tables.iter().zip(backfills).enumerate() {
            let (name, view) = (table.name(), &table.view);
            backfill.progress = Some(progress_of(handle, &name, &before));
            let report = run_backfill(backfill).await.with_context(|| name.clone())?;
            lines.push(backfill_line(&name, &report));
            let mut described = backfill_json(view, &report);
            if table.is_next {
                let switched = placement::switch_unless_online(&self.stores, view, &handle.cancel).await;
                lines.extend(switched.with_context(|| format!("{}: all is loaded, but", view.id))?);
                described["table"] = json!(name);
                reports.push(described);
                continue;
            }
            lines.extend(quarantine::refusal_lines(&view.id.to_string(), id, &report.refused));
            if self.stores.online.is_none() {
                self.leave_online_to_others(id, view, report.version, handle).await?;
            } else if let Some((line, renewed)) = self.renew_online(id, view, handle, (done, tables.len())).await? {
                lines.push(line);
                described["online"] = renewed;
            }
            reports.push(described);
        }
        Ok(json!({ "lines": lines, "views": reports }))
    }

    /// Leaves a job whose view needs a new online epoch, because only the process that holds the online store can make it:
    /// that one ends the job, or it is to be resumed there.
    async fn leave_online_to_others(
        &self,
        id: &str,
        view: &ViewVersion,
        commit: Option<u64>,
        handle: &Handle,
    ) -> anyhow::Result<()> {
        if !upkeep::may_serve_withdrawn(&self.stores, view, commit).await? {
            return Ok(());
        }
        handle.leave();
        bail!(
            "{}: its offline rows are visible, and its online rows are for the process that holds the online store; where \
             none is at it, `eadem jobs resume {id}` goes on",
            view.id
        )
    }

    /// Loads a new epoch of a view that is served, if the current one holds rows that were taken out of the offline table
    /// since. It is complete from the same instant on as the current one.
    async fn renew_online(
        self: &Arc<Self>,
        id: &str,
        view: &Arc<ViewVersion>,
        handle: &Arc<Handle>,
        place: (usize, usize),
    ) -> anyhow::Result<Option<(String, Json)>> {
        let Some(withdrawn) = upkeep::withdrawn_online(&self.stores, view).await? else { return Ok(None) };
        let stored = view.stored.as_ref().context("an on-demand view stores nothing")?;
        let history_us = stored.deployment.online_history_us.unwrap_or(0);
        let as_of_us = match withdrawn.complete_since_us {
            Some(since_us) => since_us.saturating_add(history_us),
            None => self.stores.clock.now_us(),
        };
        let loading = ViewLoad {
            job: id.to_owned(),
            as_of_us,
            pace: Arc::new(Pace::new(self.materialize_rows_per_s_max)),
            handle: Arc::clone(handle),
            place,
            rows_before: handle.progress().rows,
        };
        // Encoding rows takes whole seconds of processor time: not on the threads of requests.
        let runtime = tokio::runtime::Handle::current();
        let (shared, loaded_view) = (Arc::clone(self), Arc::clone(view));
        let load = move || runtime.block_on(shared.load_view(&loaded_view, &loading));
        let loaded = tokio::task::spawn_blocking(load).await?;
        let loaded = loaded.with_context(|| {
            format!(
                "{}: offline commit {} stands, but the online store still serves rows that it took out; resume this job, \
                 or materialize the view",
                view.id, withdrawn.commit
            )
        })?;
        let line = upkeep::renewed_line(view, withdrawn, loaded.epoch, loaded.complete_since_us);
        let renewed = json!({
            "epoch": loaded.epoch,
            "rows": loaded.rows,
            "offline_commit": loaded.offline_commit,
            "complete_since": format_timestamp(loaded.complete_since_us),
        });
        Ok(Some((line, renewed)))
    }

    async fn materialize(&self, id: &str, request: MaterializeRequest, handle: &Arc<Handle>) -> anyhow::Result<Json> {
        let now_us = self.stores.clock.now_us();
        let as_of_us = request.as_of.as_deref().map(parse_timestamp).transpose()?.unwrap_or(now_us);
        let mut views = self.stored_views(&request.views).await?;
        // Nobody else waits for what may stand in the way of a switch.
        views.sort_by_key(|view| placement::is_being_switched(view));
        // One for all views: the threads of each share it, and a short view saves nothing up for the next.
        let pace = Arc::new(Pace::new(request.rows_per_s_max.unwrap_or(self.materialize_rows_per_s_max)));
        let mut lines = Vec::new();
        let mut loaded_views = Vec::new();
        let mut rows_before = 0;
        for (done, before) in views.iter().enumerate() {
            let view = &placement::to_serve(&self.stores, before, &handle.cancel)
                .await
                .with_context(|| before.id.to_string())?;
            let loading = ViewLoad {
                job: id.to_owned(),
                as_of_us,
                pace: Arc::clone(&pace),
                handle: Arc::clone(handle),
                place: (done, views.len()),
                rows_before,
            };
            let added = match request.incremental {
                true => self.load_added(view, &loading).await,
                false => Ok(None),
            };
            let mut loaded = match added.with_context(|| view.id.to_string())? {
                Some(loaded) => loaded,
                None => self.load_view(view, &loading).await.with_context(|| view.id.to_string())?,
            };
            // Another process may have taken rows out of the table while they were loaded from it.
            while upkeep::withdrawn_online(&self.stores, view).await?.is_some() {
                loaded = self.load_view(view, &loading).await.with_context(|| view.id.to_string())?;
            }
            rows_before += loaded.rows_now();
            let (done, total) = (done as u64 + 1, views.len() as u64);
            handle.steps(done, total, rows_before, format!("{}: {} rows", view.id, loaded.rows));
            lines.push(loaded.line(view));
            lines.extend(placement::switched_line(before, view));
            loaded_views.push(json!({
                "view": view.id.to_string(),
                "epoch": loaded.epoch,
                "incremental": loaded.is_incremental,
                "rows": loaded.rows,
                "rows_loaded_before": loaded.rows_before,
                "files": loaded.files,
                "files_loaded_before": loaded.files_before,
                "trimmed": loaded.trimmed,
                "offline_commit": loaded.offline_commit,
                "complete_since": format_timestamp(loaded.complete_since_us),
            }));
        }
        Ok(json!({ "lines": lines, "views": loaded_views }))
    }

    /// Merges the rows that came since the current epoch was loaded into it, and trims it; `None` where only a new epoch will
    /// do: there is none yet, rows were taken out of the table since, the epoch holds other columns, or it was trimmed to a
    /// later time than is asked for. Rows are merged by maximum, so readers meanwhile see what they would see of a stream, and
    /// who was killed on the way begins again.
    async fn load_added(&self, view: &ViewVersion, loading: &ViewLoad) -> anyhow::Result<Option<Loaded>> {
        let stored = view.stored.as_ref().context("an on-demand view stores nothing")?;
        let (registry, store) = (&self.stores.registry, self.stores.online()?);
        let Some(epoch) = registry.current_epoch(&view.id).await? else { return Ok(None) };
        let online = TableId { view: view.digest, epoch: u64::from(epoch.epoch) };
        let coverage = store.coverage(online).await?;
        let trim = retention(stored).trim_at(loading.as_of_us);
        let reaches_back = coverage.complete_since_us.is_some_and(|since_us| since_us <= trim.complete_since_us);
        let commit = coverage.offline_commit.and_then(|commit| u64::try_from(commit).ok());
        let Some(commit) = commit.filter(|_| reaches_back && epoch.placement == stored.deployment.placement) else {
            return Ok(None);
        };
        let table = self.stores.offline.table(&self.stores.table_spec(view).await?)?;
        let Some(added) = table.scan_added_in_parts(commit, self.workers).await? else { return Ok(None) };
        let files = added.files;
        let rows = self.load_rows(view, loading, (online, None), added.rows, added.parts).await?;
        let covered = Coverage { offline_commit: Some(i64::try_from(added.version)?), ..coverage };
        store.finish_load(online, covered).await?;
        let trimmed = store.trim(online, trim).await?;
        // Whoever loaded a new epoch meanwhile may have begun before these rows came.
        let is_current = registry.current_epoch(&view.id).await?.is_some_and(|current| current.epoch == epoch.epoch);
        Ok(is_current.then_some(Loaded {
            epoch: epoch.epoch,
            is_incremental: true,
            rows,
            rows_before: 0,
            files,
            files_before: 0,
            trimmed,
            offline_commit: added.version,
            complete_since_us: trim.complete_since_us,
            placement: stored.deployment.placement,
        }))
    }

    /// Hands the rows of these files to the online store, and says how many rows it were.
    async fn load_rows(
        &self,
        view: &ViewVersion,
        loading: &ViewLoad,
        (table, record): (TableId, Option<LoadRecord>),
        rows: Option<u64>,
        parts: Vec<BoxStream<'static, Result<FileScan, OfflineError>>>,
    ) -> anyhow::Result<u64> {
        let (follower, name) = (Arc::clone(&loading.handle), view.id.to_string());
        let ((done, total), rows_before) = (loading.place, loading.rows_before);
        let of_all = rows.map(|rows| format!(" of {rows}")).unwrap_or_default();
        let report = move |rows: u64| {
            follower.steps(done as u64, total as u64, rows_before + rows, format!("{name}: {rows}{of_all} rows"));
        };
        let load = Load {
            store: self.stores.online()?,
            table,
            pace: Arc::clone(&loading.pace),
            cancel: loading.handle.cancel.clone(),
            report: Arc::new(report),
            record,
        };
        load.run(parts).await
    }

    /// Loads a new epoch beside the current one and switches when it is whole: readers never see a part. A load that this job
    /// has begun before goes on where it broke off, if the store has kept it and it is still of use.
    async fn load_view(&self, view: &ViewVersion, loading: &ViewLoad) -> anyhow::Result<Loaded> {
        if let Some(earlier) = LoadRecord::latest(&self.stores, &loading.job, &view.id).await? {
            match self.go_on_with(view, earlier).await? {
                GoingOn::Done(loaded) => return Ok(loaded),
                GoingOn::Load(begun) => match self.load_begun(view, loading, *begun).await {
                    // The files of its commit are gone: what the table holds now is loaded instead.
                    Err(error) if is_vacuumed(&error) => {}
                    outcome => return outcome,
                },
                GoingOn::No => {}
            }
        }
        let begun = self.begin_load(view, loading).await?;
        self.load_begun(view, loading, begun).await
    }

    /// Loads an epoch, and gives it up if the load breaks off and cannot go on later.
    async fn load_begun(&self, view: &ViewVersion, loading: &ViewLoad, begun: BegunLoad) -> anyhow::Result<Loaded> {
        let (epoch, table) = (begun.record.epoch, begun.table);
        let loaded = self.load_epoch(view, loading, begun).await;
        if let Err(error) = &loaded {
            let is_called_off = loading.handle.cancel.is_cancelled() && !loading.handle.is_leaving();
            let keeps = self.stores.online()?.keeps_unfinished_loads();
            if !keeps || is_called_off || is_vacuumed(error) {
                materialize::give_epoch_up(&self.stores, view, epoch, table).await;
            }
        }
        loaded
    }

    /// Begins a load of what the offline table holds now, in a new epoch.
    async fn begin_load(&self, view: &ViewVersion, loading: &ViewLoad) -> anyhow::Result<BegunLoad> {
        let stored = view.stored.as_ref().context("an on-demand view stores nothing")?;
        let table = self.stores.offline.table(&self.stores.table_spec(view).await?)?;
        let scan = table.scan_in_parts(self.workers).await?.context("it has no rows offline; backfill it first")?;
        let (registry, now_us) = (&self.stores.registry, self.stores.clock.now_us());
        let epoch = registry.create_epoch(&view.id, stored.deployment.placement, now_us).await?.epoch;
        let table = TableId { view: view.digest, epoch: u64::from(epoch) };
        let begun = Begun { commit: scan.version, as_of_us: loading.as_of_us };
        let record = LoadRecord::begin(&self.stores, &loading.job, &view.id, epoch, begun).await?;
        Ok(BegunLoad { record, begun, table, scan, rows_before: 0, files_before: 0 })
    }

    /// What becomes of a load that this job has begun before.
    async fn go_on_with(&self, view: &ViewVersion, earlier: Earlier) -> anyhow::Result<GoingOn> {
        let stored = view.stored.as_ref().context("an on-demand view stores nothing")?;
        let Earlier { record, begun, ended, files, rows } = earlier;
        let epochs = self.stores.registry.epochs(Some(&view.id)).await?;
        let current = epochs.iter().find(|epoch| epoch.state == EpochState::Current).map(|epoch| epoch.epoch);
        let own = epochs.iter().find(|epoch| epoch.epoch == record.epoch);
        let is_loading = own.is_some_and(|own| own.state == EpochState::Loading);
        let store = self.stores.online()?;
        let table = TableId { view: view.digest, epoch: u64::from(record.epoch) };
        // Nobody puts an older epoch into the place of a newer one.
        let is_of_use = is_loading
            && current < Some(record.epoch)
            && own.is_some_and(|own| own.placement == stored.deployment.placement);
        if let Some(ended) = ended {
            if is_of_use {
                materialize::switch(&self.stores, view, record.epoch).await?;
            }
            // What is served now is this load, or a later one; unless rows have been taken out since, it is done. A load from before
            // the placement was switched is not what shall be served.
            let is_placed_so = own.is_none_or(|own| own.placement == stored.deployment.placement);
            let is_done = is_of_use || (!is_loading && is_placed_so);
            if is_done && upkeep::withdrawn_online(&self.stores, view).await?.is_none() {
                return Ok(GoingOn::Done(Loaded {
                    epoch: record.epoch,
                    is_incremental: false,
                    rows: ended.rows,
                    rows_before: ended.rows,
                    files: files.len(),
                    files_before: files.len(),
                    trimmed: ended.trimmed,
                    offline_commit: begun.commit,
                    complete_since_us: ended.complete_since_us,
                    placement: stored.deployment.placement,
                }));
            }
            return Ok(GoingOn::No);
        }
        if !is_loading {
            return Ok(GoingOn::No);
        }
        if is_of_use && store.keeps_unfinished_loads() {
            let offline = self.stores.offline.table(&self.stores.table_spec(view).await?)?;
            if let Some(scan) = offline.scan_rest_in_parts(begun.commit, &files, self.workers).await? {
                let (rows_before, files_before) = (rows, files.len());
                let begun = BegunLoad { record, begun, table, scan, rows_before, files_before };
                return Ok(GoingOn::Load(Box::new(begun)));
            }
        }
        materialize::give_epoch_up(&self.stores, view, record.epoch, table).await;
        Ok(GoingOn::No)
    }

    async fn load_epoch(&self, view: &ViewVersion, loading: &ViewLoad, load: BegunLoad) -> anyhow::Result<Loaded> {
        let stored = view.stored.as_ref().context("an on-demand view stores nothing")?;
        let BegunLoad { record, begun, table, scan, rows_before, files_before } = load;
        let store = self.stores.online()?;
        store.create_epoch(table).await?;
        let trim = retention(stored).trim_at(begun.as_of_us);
        store.announce_trim(table, trim).await?;
        let files = files_before + scan.files;
        let noted = store.keeps_unfinished_loads().then(|| record.clone());
        let rows_now = self.load_rows(view, loading, (table, noted), scan.rows, scan.parts).await?;
        let coverage = Coverage { offline_commit: Some(i64::try_from(begun.commit)?), ..Coverage::whole() };
        let trimmed = store.finish_load_trimmed(table, coverage, trim).await?;
        let rows = rows_before + rows_now;
        let complete_since_us = trim.complete_since_us;
        record.end(Ended { rows, trimmed, complete_since_us }).await?;
        materialize::switch(&self.stores, view, record.epoch).await?;
        Ok(Loaded {
            epoch: record.epoch,
            is_incremental: false,
            rows,
            rows_before,
            files,
            files_before,
            trimmed,
            offline_commit: begun.commit,
            complete_since_us,
            placement: stored.deployment.placement,
        })
    }

    /// Takes the epochs back that a job had begun to load when it was called off.
    async fn give_loads_up(&self, id: &str) -> anyhow::Result<()> {
        if self.stores.online.is_none() {
            return Ok(());
        }
        for view in LoadRecord::views(&self.stores.registry, id).await? {
            let Some(earlier) = LoadRecord::latest(&self.stores, id, &view).await? else { continue };
            let epoch = earlier.record.epoch;
            let epochs = self.stores.registry.epochs(Some(&view)).await?;
            if !epochs.iter().any(|found| found.epoch == epoch && found.state == EpochState::Loading) {
                continue;
            }
            let view = self.stores.registry.view(&view.name, Some(view.version)).await?;
            let table = TableId { view: view.digest, epoch: u64::from(epoch) };
            materialize::give_epoch_up(&self.stores, &view, epoch, table).await;
        }
        Ok(())
    }
}

/// Whether files of the version that was read are gone.
fn is_vacuumed(error: &anyhow::Error) -> bool {
    let is_gone = |cause: &(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref::<OfflineError>(), Some(OfflineError::Vacuumed { .. }))
    };
    error.chain().any(is_gone)
}

/// How a view is loaded.
struct ViewLoad {
    job: String,
    /// The instant that online history is counted back from.
    as_of_us: i64,
    pace: Arc<Pace>,
    handle: Arc<Handle>,
    /// Views done, and views in all.
    place: (usize, usize),
    /// Rows of the views before it.
    rows_before: u64,
}

/// A load that is under way: what is left to read, and where it goes.
struct BegunLoad {
    record: LoadRecord,
    begun: Begun,
    table: TableId,
    scan: TableScan,
    /// Loaded before the job broke off.
    rows_before: u64,
    files_before: usize,
}

/// What becomes of a load that was begun before.
enum GoingOn {
    /// It was whole.
    Done(Loaded),
    /// It goes on.
    Load(Box<BegunLoad>),
    /// Another one begins.
    No,
}

/// How long a view's rows stay online.
fn retention(stored: &StoredView) -> Retention {
    Retention {
        lifetime: lifetime(stored),
        history_us: stored.deployment.online_history_us.unwrap_or(0),
        slack_us: RETENTION_SLACK_US,
    }
}

/// What a load of a view did.
struct Loaded {
    epoch: u32,
    /// Whether the rows were merged into an epoch that was being served.
    is_incremental: bool,
    rows: u64,
    /// Of these, loaded before the job broke off.
    rows_before: u64,
    files: usize,
    files_before: usize,
    trimmed: u64,
    offline_commit: u64,
    complete_since_us: i64,
    placement: Placement,
}

impl Loaded {
    /// Rows that were loaded since the job was started, or resumed.
    fn rows_now(&self) -> u64 {
        self.rows - self.rows_before
    }

    fn line(&self, view: &ViewVersion) -> String {
        let holds = match self.placement {
            Placement::OnWrite => "features",
            Placement::OnRead => "bound inputs",
        };
        if self.is_incremental {
            return format!(
                "{}: {} new rows of {holds} merged into epoch {}, complete since {} ({} trimmed), up to offline commit {}",
                view.id,
                self.rows,
                self.epoch,
                format_timestamp(self.complete_since_us),
                self.trimmed,
                self.offline_commit
            );
        }
        let before = match self.files_before {
            0 => String::new(),
            files => format!("; {files} of {} files were loaded before the job was resumed", self.files),
        };
        format!(
            "{}: {} rows of {holds} in epoch {}, complete since {} ({} trimmed), from offline commit {}{before}",
            view.id,
            self.rows.saturating_sub(self.trimmed),
            self.epoch,
            format_timestamp(self.complete_since_us),
            self.trimmed,
            self.offline_commit
        )
    }
}

/// Adds what a view's run does to what this process has done for the views before it.
fn progress_of(handle: &Arc<Handle>, view: &str, sum: &Arc<Mutex<OwnWork>>) -> Arc<dyn eadem_offline::ProgressSink> {
    let handle = Arc::clone(handle);
    let view = view.to_owned();
    let sum = Arc::clone(sum);
    let before = *sum.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::new(move |progress: &Progress| {
        let own = OwnWork {
            rows: before.rows + progress.rows_read,
            refused: before.refused + progress.rows_refused,
            chunks: before.chunks + progress.chunks_done_now as u64,
        };
        *sum.lock().unwrap_or_else(PoisonError::into_inner) = own;
        handle.worked(own, format!("{view}: chunk {} of {}", progress.chunks_done, progress.chunks));
    })
}

/// Rows that are replayed are no chunks of a plan: they count by themselves.
fn progress_of_replay(handle: &Arc<Handle>, view: &str) -> Arc<dyn eadem_offline::ProgressSink> {
    let handle = Arc::clone(handle);
    let view = view.to_owned();
    Arc::new(move |progress: &Progress| {
        handle.report(JobProgress {
            done: progress.rows_read,
            total: progress.rows_to_read,
            rows: progress.rows_read,
            refused: progress.rows_refused,
            rows_per_s: progress.rows_per_second(),
            message: view.clone(),
            ..JobProgress::default()
        });
    })
}

fn backfill_line(table: &str, report: &BackfillReport) -> String {
    let mut line = format!("{table}: {} rows stored of {} read", report.rows_stored, report.rows_read);
    let parts = [
        (report.rows_left_out, "left out by where"),
        (report.rows_out_of_range, "outside the time range or loaded before"),
        (report.rows_dropped, "dropped by the transform"),
        (report.rows_erased, "erased"),
        (report.rows_failed, "failed"),
        (report.rows_refused(), "refused"),
    ];
    for (rows, what) in parts {
        if rows > 0 {
            line.push_str(&format!(", {rows} {what}"));
        }
    }
    if report.replaces_extracts && !report.files_replaced.is_empty() {
        line.push_str("; what the query gives takes the place of what was extracted before");
    } else {
        for replaced in &report.files_replaced {
            line.push_str(&format!("; {replaced} has changed"));
        }
    }
    for (then, now) in &report.files_renamed {
        line.push_str(&format!("; {then} is {now} now"));
    }
    if report.rows_removed > 0 {
        line.push_str(&format!("; {} rows of earlier loads were taken out", report.rows_removed));
    }
    if !report.files_already_loaded.is_empty() {
        line.push_str(&format!(", {} files were loaded before", report.files_already_loaded.len()));
    }
    for vanished in &report.files_vanished {
        line.push_str(&format!("; {vanished} is gone, its rows stay"));
    }
    match report.version {
        Some(version) => line.push_str(&format!("; offline commit {version}")),
        None => line.push_str("; nothing to commit"),
    }
    line
}

fn backfill_json(view: &ViewVersion, report: &BackfillReport) -> Json {
    let renamed: Vec<Json> =
        report.files_renamed.iter().map(|(then, now)| json!({ "from": then, "to": now })).collect();
    json!({
        "view": view.id.to_string(),
        "offline_commit": report.version,
        "files": report.files,
        "files_already_loaded": report.files_already_loaded,
        "files_vanished": report.files_vanished,
        "files_replaced": report.files_replaced,
        "files_renamed": renamed,
        "rows_removed": report.rows_removed,
        "rows_read": report.rows_read,
        "rows_stored": report.rows_stored,
        "rows_left_out": report.rows_left_out,
        "rows_out_of_range": report.rows_out_of_range,
        "rows_dropped": report.rows_dropped,
        "rows_erased": report.rows_erased,
        "rows_failed": report.rows_failed,
        "refused": report.refused,
        "chunks_done_now": report.chunks_done_now,
        "chunks_done_before": report.chunks_done_before,
        "chunks_done_elsewhere": report.chunks_done_elsewhere,
        "memory_bytes_peak": report.memory_bytes_peak,
    })
}

/// A job as its record says, and whether somebody is at work on it.
fn job_of_record(record: JobRecord, is_at_work: bool) -> Result<Job, Problem> {
    let kind = JobKind::from_name(&record.kind)
        .ok_or_else(|| Problem::internal("the registry names a kind of job that does not exist", &record.kind))?;
    let state = match record.state {
        eadem_registry::JobState::Open if is_at_work => JobState::Running,
        eadem_registry::JobState::Open => JobState::Interrupted,
        eadem_registry::JobState::Done => JobState::Succeeded,
        eadem_registry::JobState::Failed => JobState::Failed,
        eadem_registry::JobState::Cancelled => JobState::Cancelled,
    };
    let is_open = record.state == eadem_registry::JobState::Open;
    let mut progress: JobProgress = serde_json::from_value(record.progress).unwrap_or_default();
    if !is_at_work {
        (progress.workers, progress.seconds_left) = (0, None);
    }
    Ok(Job {
        id: record.id,
        kind,
        state,
        spec: record.spec,
        created_at: format_timestamp(record.created_at_us),
        finished_at: (!is_open).then(|| format_timestamp(record.changed_at_us)),
        progress,
        error: record.outcome["error"].as_str().map(str::to_owned),
        result: (state == JobState::Succeeded).then_some(record.outcome),
    })
}

#[async_trait]
impl Jobs for JobRunner {
    async fn start(&self, kind: JobKind, spec: Json, by: &Actor) -> Result<Job, Problem> {
        // Versions are pinned now, so that a job that is resumed later does what this one was asked to do.
        let malformed = |message: String| Problem::bad_request("malformed_job", format!("{}: {message}", kind.name()));
        let mut spec = spec;
        // A list would be read as the fields of a specification in their order.
        if !spec.is_object() {
            return Err(malformed("a specification is a JSON object".to_owned()));
        }
        let new_id = || Uuid::now_v7().simple().to_string();
        match kind {
            JobKind::Backfill => {
                let request: BackfillRequest =
                    serde_json::from_value(spec.clone()).map_err(|error| malformed(error.to_string()))?;
                request.range_us().map_err(|error| malformed(format!("{error:#}")))?;
                spec["views"] = json!(self.pinned_views(&request.views).await?);
                let views = self.shared.stored_views(&request.views).await;
                let mut stop = BTreeMap::new();
                for view in views.map_err(|error| malformed(format!("{error:#}")))? {
                    let of_view = request.stop_for(&view).map_err(|error| malformed(format!("{error:#}")))?;
                    stop.extend(of_view.map(|of_view| (view.id.to_string(), of_view)));
                }
                spec["stop"] = json!(stop);
            }
            JobKind::Materialize => {
                let request: MaterializeRequest =
                    serde_json::from_value(spec.clone()).map_err(|error| malformed(error.to_string()))?;
                if let Some(as_of) = &request.as_of {
                    parse_timestamp(as_of).map_err(|error| malformed(format!("as_of: {error}")))?;
                }
                spec["views"] = json!(self.pinned_views(&request.views).await?);
            }
            JobKind::Compact => {
                let request: CompactRequest =
                    serde_json::from_value(spec.clone()).map_err(|error| malformed(error.to_string()))?;
                request.options().map_err(|error| malformed(format!("{error:#}")))?;
                spec["views"] = json!(self.pinned_views(&request.views).await?);
            }
            JobKind::Vacuum => {
                let request: VacuumRequest =
                    serde_json::from_value(spec.clone()).map_err(|error| malformed(error.to_string()))?;
                request.options(0).map_err(|error| malformed(format!("{error:#}")))?;
            }
            JobKind::Backup => {
                let request: BackupRequest =
                    serde_json::from_value(spec.clone()).map_err(|error| malformed(error.to_string()))?;
                online_backup::check_file(&self.shared.stores, &request.out).map_err(malformed)?;
                spec["views"] = json!(self.pinned_named_views(&request.views).await?);
            }
            JobKind::Restore => {
                let request: RestoreRequest =
                    serde_json::from_value(spec.clone()).map_err(|error| malformed(error.to_string()))?;
                online_backup::check_file(&self.shared.stores, &request.from).map_err(malformed)?;
                spec["views"] = json!(self.pinned_named_views(&request.views).await?);
            }
            JobKind::Replay => quarantine::check_and_pin(&self.shared.stores, &mut spec).await?,
            // Its job is made in the transaction that hides what it is about.
            JobKind::Erase => {
                self.shared.stores.online().map_err(|error| malformed(format!("{error:#}")))?;
                return self.spawn(erasure::begin(&self.shared.stores, &new_id(), spec, by).await?).await;
            }
            JobKind::Dataset => {
                place_spine(&mut spec, &self.shared.stores.project);
                let request = DatasetRequest::read(&spec).map_err(|error| malformed(error.to_string()))?;
                if let Some(pins) = datasets::check_and_pin(&self.shared.stores, &request).await? {
                    spec["service"] = json!(pins.service);
                    spec["pinned"] = json!(pins.inputs);
                }
            }
        }
        let (id, now_us) = (new_id(), self.shared.stores.clock.now_us());
        let registry = self.shared.stores.registry.acting(by.clone());
        registry.create_job(&id, kind.name(), &spec, now_us).await?;
        self.spawn(Job::begun(id, kind, spec, now_us)).await
    }

    async fn list(&self, filter: &JobFilter) -> Result<Vec<Job>, Problem> {
        let registry = &self.shared.stores.registry;
        // Who runs, the records, and who runs: a job that begins or ends in between is not found interrupted.
        let running = self.shared.running.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut at_work = self.shared.at_work().await?;
        let records = registry.jobs(None).await?;
        at_work.append(&mut self.shared.at_work().await?);
        let mut jobs = Vec::new();
        for record in records {
            if jobs.len() >= filter.limit.unwrap_or(usize::MAX) {
                break;
            }
            let is_at_work = at_work.contains(&record.id);
            let job = match running.get(&record.id) {
                Some(handle) => handle.changes.borrow().clone(),
                None => job_of_record(record, is_at_work)?,
            };
            let is_wanted =
                filter.state.is_none_or(|state| state == job.state) && filter.kind.is_none_or(|kind| kind == job.kind);
            if is_wanted {
                jobs.push(job);
            }
        }
        Ok(jobs)
    }

    async fn get(&self, id: &str) -> Result<Job, Problem> {
        match self.running(id) {
            Some(handle) => Ok(handle.changes.borrow().clone()),
            None => self.shared.recorded(id).await,
        }
    }

    async fn cancel(&self, id: &str, by: &Actor) -> Result<Job, Problem> {
        let (registry, clock) = (self.shared.stores.registry.acting(by.clone()), &self.shared.stores.clock);
        let ask = async || match registry.ask_job_to_cancel(id, clock.now_us()).await {
            // It has ended: it stays as it is.
            Err(error) if error.is_callers_fault() && !error.is_not_found() => Ok(()),
            asked => asked,
        };
        if let Some(handle) = self.running(id) {
            // Also others may be at it.
            ask().await?;
            handle.cancel.cancel();
            let mut changes = handle.changes.subscribe();
            let ended = changes.wait_for(|job| job.state.is_final()).await;
            return Ok(ended.map(|job| job.clone()).unwrap_or_else(|_| handle.changes.borrow().clone()));
        }
        if self.shared.recorded(id).await?.state == JobState::Running {
            ask().await?;
        }
        let job = self.shared.ended_elsewhere(id).await?;
        if job.state != JobState::Interrupted {
            return Ok(job);
        }
        if registry.job(id).await?.committing {
            let detail = format!(
                "job {id} was making its rows visible when its process ended, and may have done so; resume it, which only \
                 takes the commit"
            );
            return Err(Problem::conflict("job_committing", detail));
        }
        let outcome = json!({ "error": "cancelled after its process had ended" });
        let cancelled = eadem_registry::JobState::Cancelled;
        registry.finish_job(id, cancelled, &outcome, clock.now_us()).await?;
        if let Err(error) = self.shared.give_loads_up(id).await {
            tracing::warn!(job = id, %error, "what it had begun to load is still there; the next load of the view drops it");
        }
        self.get(id).await
    }

    async fn resume(&self, id: &str, by: &Actor) -> Result<Job, Problem> {
        let mut job = self.get(id).await?;
        match job.state {
            JobState::Running => return Err(Problem::conflict("job_running", format!("job {id} is running"))),
            JobState::Succeeded => return Err(Problem::conflict("job_done", format!("job {id} is done"))),
            JobState::Failed | JobState::Cancelled | JobState::Interrupted => {
                let now_us = self.shared.stores.clock.now_us();
                let registry = self.shared.stores.registry.acting(by.clone());
                registry.reopen_job(id, now_us).await?;
            }
        }
        job.state = JobState::Running;
        job.error = None;
        job.finished_at = None;
        job.progress = JobProgress::default();
        self.spawn(job).await
    }

    async fn watch(&self, id: &str) -> Result<watch::Receiver<Job>, Problem> {
        if let Some(handle) = self.running(id) {
            return Ok(handle.changes.subscribe());
        }
        // It has ended, maybe just now, or another process is at it: what there is to say comes from the registry.
        let job = self.shared.recorded(id).await?;
        let is_final = job.state.is_final();
        let (changes, receiver) = watch::channel(job);
        if !is_final {
            let (shared, id) = (Arc::clone(&self.shared), id.to_owned());
            tokio::spawn(async move { shared.relay(&id, &changes).await });
        }
        Ok(receiver)
    }
}

impl Shared {
    /// Tells how far a job of another process is, for as long as anybody listens. A registry that does not answer for a while says
    /// nothing about the job.
    async fn relay(&self, id: &str, changes: &watch::Sender<Job>) {
        let mut silent_since: Option<Instant> = None;
        loop {
            tokio::select! {
                () = changes.closed() => return,
                () = tokio::time::sleep(ELSEWHERE_POLL) => {}
            }
            let job = match self.recorded(id).await {
                Ok(job) => job,
                Err(problem) => {
                    if silent_since.is_none() {
                        tracing::warn!(
                            job = id,
                            error = problem.detail,
                            "a job that is followed cannot be looked up; trying again"
                        );
                    }
                    if silent_since.get_or_insert_with(Instant::now).elapsed() < SILENCE_MAX {
                        continue;
                    }
                    let seconds = SILENCE_MAX.as_secs();
                    let message = format!("the registry does not answer for {seconds} s; the job may still be at work");
                    changes.send_modify(|known| known.progress.message = message);
                    return;
                }
            };
            silent_since = None;
            let is_final = job.state.is_final();
            changes.send_if_modified(|known| {
                let is_news = *known != job;
                *known = job;
                is_news
            });
            if is_final {
                return;
            }
        }
    }
}

/// How a worker's part in a job ended.
pub(crate) enum Worked {
    /// There is no job to work on.
    Nothing,
    /// It worked on this job until that ended, or until it was told to leave.
    On(Box<Job>),
}

impl JobRunner {
    /// Works on the oldest open backfill, if there is one: one that others are at, or that was interrupted. `leave` ends
    /// this process's part in it. `only`: no others than these; `tried`: no longer these.
    ///
    /// # Errors
    /// A registry that cannot be read.
    pub(crate) async fn work(
        &self,
        only: &[String],
        tried: &BTreeSet<String>,
        follow: impl AsyncFnOnce(&Job, watch::Receiver<Job>),
        leave: impl Future<Output = ()>,
    ) -> Result<Worked, Problem> {
        let Some(job) = self.next_to_work_on(only, tried).await? else { return Ok(Worked::Nothing) };
        let id = job.id.clone();
        let job = match self.spawn(job).await {
            Ok(job) => job,
            // Closed in between.
            Err(problem) if problem.status < 500 => return self.get(&id).await.map(|job| Worked::On(Box::new(job))),
            Err(problem) => return Err(problem),
        };
        let Some(handle) = self.running(&id) else {
            return self.get(&id).await.map(|job| Worked::On(Box::new(job)));
        };
        let ended = follow(&job, handle.changes.subscribe());
        let mut changes = handle.changes.subscribe();
        let left = async {
            leave.await;
            handle.leave();
            let _ = changes.wait_for(|job| job.state.is_final()).await;
        };
        tokio::select! {
            () = ended => {}
            () = left => {}
        }
        let ended = handle.changes.borrow().clone();
        Ok(Worked::On(Box::new(ended)))
    }

    async fn next_to_work_on(&self, only: &[String], tried: &BTreeSet<String>) -> Result<Option<Job>, Problem> {
        let registry = &self.shared.stores.registry;
        let at_work = self.shared.at_work().await?;
        let open = registry.open_jobs().await?;
        let views = |record: &JobRecord| -> BTreeSet<String> {
            let views = record.spec["views"].as_array().into_iter().flatten();
            views.filter_map(Json::as_str).map(str::to_owned).collect()
        };
        let mut written: BTreeSet<String> = BTreeSet::new();
        for record in open {
            if record.kind != JobKind::Backfill.name() {
                continue;
            }
            let is_at_work = at_work.contains(&record.id);
            let its_views = views(&record);
            // One that waits for its turn has planned nothing yet; another that loads the same files must not overtake it.
            let has_begun = !registry.chunk_names(&record.id, "").await?.is_empty();
            let may_begin = (has_begun || !is_at_work) && written.is_disjoint(&its_views);
            let is_wanted = (only.is_empty() || only.contains(&record.id)) && !tried.contains(&record.id);
            if may_begin && is_wanted {
                return job_of_record(record, true).map(Some);
            }
            if is_at_work {
                written.extend(its_views);
            }
        }
        Ok(None)
    }
}

impl JobRunner {
    /// The views as `name@version`; none where none is named.
    async fn pinned_named_views(&self, names: &[String]) -> Result<Vec<String>, Problem> {
        if names.is_empty() { Ok(Vec::new()) } else { self.pinned_views(names).await }
    }

    /// The views as `name@version`.
    async fn pinned_views(&self, names: &[String]) -> Result<Vec<String>, Problem> {
        let views = self.shared.stored_views(names).await;
        for view in views.iter().flatten() {
            check_not_retired(ObjectKind::View, &view.id, view.mark.as_ref())?;
        }
        let named = |views: Vec<Arc<ViewVersion>>| {
            let mut names: Vec<String> = Vec::with_capacity(views.len());
            for name in views.iter().map(|view| view.id.to_string()) {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            names
        };
        views.map(named).map_err(|error| match error.downcast::<RegistryError>() {
            Ok(error) => error.into(),
            Err(error) => Problem::bad_request("malformed_job", format!("{error:#}")),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn handle() -> Handle {
        let job = Job::begun("job".to_owned(), JobKind::Backfill, json!({}), 0);
        Handle::new(job, Some("here".to_owned()))
    }

    #[tokio::test]
    async fn a_job_that_waits_for_its_turn_says_so_and_can_be_called_off() {
        let places = Semaphore::new(1);
        let first = handle();
        let place = turn(&places, &first).await.unwrap();
        assert_eq!(first.progress().message, "");

        let queued = handle();
        let mut waiting = Box::pin(turn(&places, &queued));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        assert!(queued.progress().message.starts_with("queued"), "{:?}", queued.progress());
        queued.cancel.cancel();
        assert!(waiting.await.unwrap_err().to_string().contains("cancelled"));

        // It has left the queue: the next one gets the place.
        let next = handle();
        let mut waiting = Box::pin(turn(&places, &next));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        drop(place);
        drop(waiting.await.unwrap());
        assert_eq!(next.progress().message, "");
    }
}
