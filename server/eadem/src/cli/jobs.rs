//! `jobs`, and how every verb follows a job that it has started.

use std::collections::BTreeSet;

use anyhow::bail;
use clap::Subcommand;
use eadem_api::{Job, JobProgress, JobState};
use futures::StreamExt as _;
use indicatif::{HumanBytes, HumanCount, HumanDuration};
use serde_json::{Value as Json, json};
use tokio::sync::watch;

use super::Context;
use crate::client::{Client, Refused, encoded};
use crate::home::{Beside, end_signal};
use crate::jobs::{JobRunner, Worked};
use crate::output::{Format, Progress, table};

/// How often a waiting worker looks for a job.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

/// List, show, resume, cancel and share jobs.
#[derive(Debug, Subcommand)]
pub(crate) enum JobsVerb {
    /// Jobs, newest first.
    List {
        /// Only those in this state: running, succeeded, failed, cancelled or interrupted.
        #[arg(long)]
        state: Option<String>,
        /// Only those of this kind: backfill, materialize, dataset, …
        #[arg(long)]
        kind: Option<String>,
        /// At most so many, the newest.
        #[arg(long)]
        limit: Option<usize>,
    },
    /// One job: how it stands, how far it is, what came of it.
    Show {
        /// Its id.
        id: String,
    },
    /// Go on with a job that failed, was cancelled or interrupted.
    Resume {
        /// Its id.
        id: String,
    },
    /// Call a job off, in whichever process it runs.
    Cancel {
        /// Its id.
        id: String,
    },
    /// Work on open backfills together with the processes that are at them, until there are none.
    ///
    /// Takes chunks that nobody is at, also those of a process that is gone, and makes the rows visible if nobody else
    /// does. Ctrl-C leaves the job to others.
    Work {
        /// Only these jobs.
        ids: Vec<String>,
        /// Stay, and wait for more.
        #[arg(long)]
        wait: bool,
    },
}

impl JobsVerb {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::List { state, kind, limit } => {
                let limit = limit.map(|limit| limit.to_string());
                let filters = [("state", state), ("kind", kind), ("limit", limit)];
                let filters =
                    filters.iter().filter_map(|(name, text)| Some(format!("{name}={}", encoded(text.as_ref()?))));
                let filters: Vec<String> = filters.collect();
                let client = context.client_of_jobs().await?;
                let jobs: Json = client.get(&format!("/jobs?{}", filters.join("&"))).await?;
                context.printer.result(&jobs, |jobs| jobs_table(&jobs["jobs"]))
            }
            Self::Show { id } => {
                let client = context.client_of_jobs().await?;
                let job: Job = client.get(&format!("/jobs/{}", encoded(&id))).await?;
                context.printer.result(&job, job_text)
            }
            Self::Resume { id } => {
                let client = context.client_of_jobs().await?;
                let job: Job = client.post(&format!("/jobs/{}/resume", encoded(&id)), &json!({})).await?;
                let job = follow(context, &client, job).await?;
                context.printer.result(&job, job_text)
            }
            Self::Cancel { id } => {
                let client = context.client_of_jobs().await?;
                let job: Job = client.delete(&format!("/jobs/{}", encoded(&id))).await?;
                context.printer.result(&job, job_text)
            }
            Self::Work { ids, wait } => work(context, &ids, wait).await,
        }
    }
}

/// Not through the routes: like a server, a worker is a process that the store runs in, not one that asks it something.
async fn work(context: &Context, ids: &[String], wait: bool) -> anyhow::Result<()> {
    let beside = Beside::open(&context.project()?, &context.layered()?.config).await?;
    let runner = beside.jobs(context.project_name()).await?;
    let mut tried = BTreeSet::new();
    let mut worked_on: Vec<Job> = Vec::new();
    let (told, told_to_leave) = watch::channel(false);
    tokio::spawn(async move {
        end_signal().await;
        let _ = told.send(true);
    });
    let is_told = || *told_to_leave.borrow();
    while !is_told() {
        let Some(job) = work_once(context, &runner, ids, &tried, told_to_leave.clone()).await? else {
            if !wait {
                break;
            }
            let mut told_to_leave = told_to_leave.clone();
            tokio::select! {
                _ = told_to_leave.wait_for(|told| *told) => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            continue;
        };
        // What is still open was left, or could not be entered: it would come up again and again.
        if matches!(job.state, JobState::Running | JobState::Interrupted) {
            tried.insert(job.id.clone());
        }
        if context.printer.format == Format::Text {
            context.printer.note(job_text(&job).trim_end());
        }
        worked_on.push(job);
    }
    if context.printer.format == Format::Json || worked_on.is_empty() {
        context.printer.result(&json!({ "jobs": worked_on }), |_| "no open backfill to work on".to_owned())?;
    }
    match worked_on.iter().find(|job| job.state == JobState::Failed) {
        Some(job) => bail!("job {} failed: {}", job.id, job.error.as_deref().unwrap_or("it does not say why")),
        None => Ok(()),
    }
}

async fn work_once(
    context: &Context,
    runner: &JobRunner,
    ids: &[String],
    tried: &BTreeSet<String>,
    mut told_to_leave: watch::Receiver<bool>,
) -> anyhow::Result<Option<Job>> {
    let follow = async |job: &Job, mut changes: watch::Receiver<Job>| {
        let mut shown = ShownProgress::new(context, job);
        loop {
            let latest = changes.borrow_and_update().clone();
            shown.show(&latest.progress);
            if latest.state.is_final() || changes.changed().await.is_err() {
                break;
            }
        }
        shown.finish();
    };
    let leave = async {
        let _ = told_to_leave.wait_for(|told| *told).await;
    };
    let worked = runner.work(ids, tried, follow, leave).await;
    match worked.map_err(Refused)? {
        Worked::Nothing => Ok(None),
        Worked::On(job) => Ok(Some(*job)),
    }
}

/// Starts a job and follows it to its end.
///
/// # Errors
/// A job that is refused, fails or is called off.
pub(crate) async fn run_job(context: &Context, client: &Client, kind: &str, spec: &Json) -> anyhow::Result<Job> {
    let job: Job = client.post(&format!("/jobs/{kind}"), spec).await?;
    follow(context, client, job).await
}

/// A job's progress where people see it.
struct ShownProgress {
    progress: Progress,
    ceiling_is_told: bool,
    id: String,
}

impl ShownProgress {
    fn new(context: &Context, job: &Job) -> Self {
        let progress = Progress::new(job.kind.name(), context.printer.format);
        Self { progress, ceiling_is_told: false, id: job.id.clone() }
    }

    fn show(&mut self, at: &JobProgress) {
        if let Some(bytes) = at.memory_bytes_max.filter(|_| !self.ceiling_is_told) {
            self.ceiling_is_told = true;
            self.progress.note(&format!(
                "job {}: {} rows in {} chunks; rows take at most {} of memory (jobs.memory_bytes_max)",
                self.id,
                HumanCount(at.total),
                at.chunks,
                HumanBytes(bytes)
            ));
        }
        self.progress.update(at.done, at.total, &progress_text(at));
    }

    fn finish(self) {
        self.progress.finish();
    }
}

/// How far a job is, in one line.
fn progress_text(at: &JobProgress) -> String {
    let mut text = format!("{} rows", HumanCount(at.rows));
    if at.rows > 0 {
        text.push_str(&format!(", {}/s", HumanCount(at.rows_per_s as u64)));
    }
    if at.refused > 0 {
        text.push_str(&format!(", {} refused", HumanCount(at.refused)));
    }
    if at.chunks > 0 {
        text.push_str(&format!(", {} of {} chunks", at.chunks_done, at.chunks));
    }
    if at.workers > 1 {
        text.push_str(&format!(", {} processes", at.workers));
    }
    if let Some(left) = at.seconds_left.and_then(|left| std::time::Duration::try_from_secs_f64(left).ok()) {
        text.push_str(&format!(", {} left", HumanDuration(left)));
    }
    if !at.message.is_empty() {
        text.push_str(&format!("  {}", at.message));
    }
    text
}

pub(crate) async fn follow(context: &Context, client: &Client, job: Job) -> anyhow::Result<Job> {
    let mut shown = ShownProgress::new(context, &job);
    let id = job.id.clone();
    let ended = tokio::select! {
        ended = follow_to_end(client, job, &mut shown) => Some(ended),
        _ = tokio::signal::ctrl_c() => None,
    };
    shown.finish();
    let ended = match ended {
        Some(ended) => ended?,
        None => call_off(client, &id).await?,
    };
    match ended.state {
        JobState::Succeeded => Ok(ended),
        JobState::Cancelled => {
            bail!(
                "job {id} was cancelled; only views that it had finished are visible; `eadem jobs resume {id}` goes on"
            )
        }
        JobState::Running => bail!("job {id} is still at work; `eadem jobs show {id}` says what comes of it"),
        JobState::Failed | JobState::Interrupted => {
            let why = ended.error.unwrap_or_else(|| "its process ended, or was not heard of for too long".to_owned());
            bail!(
                "job {id} failed: {why}\nonly views that it had finished are visible; `eadem jobs resume {id}` goes on where it \
                 stopped"
            )
        }
    }
}

/// Follows a job until it has ended. A stream of events that breaks off says nothing about the job: then it is asked for, and
/// followed again where it is at work.
async fn follow_to_end(client: &Client, mut latest: Job, shown: &mut ShownProgress) -> anyhow::Result<Job> {
    loop {
        let broke_off = follow_events(client, &mut latest, shown).await.err();
        if latest.state.is_final() {
            return Ok(latest);
        }
        latest = ask(client, &latest.id, broke_off).await?;
        if latest.state.is_final() {
            return Ok(latest);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn follow_events(client: &Client, latest: &mut Job, shown: &mut ShownProgress) -> anyhow::Result<()> {
    let events = client.events(&format!("/jobs/{}/events", encoded(&latest.id))).await?;
    let mut events = Box::pin(events);
    while let Some(event) = events.next().await {
        *latest = serde_json::from_value(event?)?;
        shown.show(&latest.progress);
    }
    Ok(())
}

/// How often a server is asked for a job before it counts as gone: as long as it takes to start another one.
const ASKED_MAX: u32 = 10;

/// A job whose events broke off, because of this where there was an error.
async fn ask(client: &Client, id: &str, broke_off: Option<anyhow::Error>) -> anyhow::Result<Job> {
    let mut why = broke_off;
    for _ in 0..ASKED_MAX {
        match client.get(&format!("/jobs/{}", encoded(id))).await {
            Ok(job) => return Ok(job),
            Err(error) if error.downcast_ref::<Refused>().is_some_and(|refused| refused.0.status < 500) => {
                return Err(error);
            }
            Err(error) => why = Some(error),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let why = why.map(|error| format!(": {error:#}")).unwrap_or_default();
    bail!("nobody can be asked for job {id}, which may still be at work{why}\n`eadem jobs show {id}` asks again")
}

/// Calls a job off and waits until it has ended, or for another Ctrl-C.
async fn call_off(client: &Client, id: &str) -> anyhow::Result<Job> {
    eprintln!("calling job {id} off; Ctrl-C again does not wait until it has ended");
    let path = format!("/jobs/{id}");
    tokio::select! {
        ended = client.delete(&path) => ended,
        _ = tokio::signal::ctrl_c() => bail!("job {id} may still be at work; `eadem jobs show {id}` says what came of it"),
    }
}

fn jobs_table(jobs: &Json) -> String {
    let cell = |job: &Json, name: &str| job[name].as_str().unwrap_or("-").to_owned();
    let percent = |job: &Json| match (job["progress"]["done"].as_u64(), job["progress"]["total"].as_u64()) {
        (Some(done), Some(total)) if total > 0 => format!("{}%", done.saturating_mul(100) / total),
        _ => "-".to_owned(),
    };
    let row = |job: &Json| {
        let mut row: Vec<String> = ["id", "kind", "state"].iter().map(|name| cell(job, name)).collect();
        row.extend([percent(job), cell(job, "created_at"), cell(job, "finished_at")]);
        row
    };
    let rows: Vec<Vec<String>> = jobs.as_array().into_iter().flatten().map(row).collect();
    table(&["id", "kind", "state", "done", "created", "finished"], &rows)
}

pub(crate) fn job_text(job: &Job) -> String {
    let mut text = format!("{} {}: {}\n", job.kind.name(), job.id, job.state.name());
    let has_come_somewhere = job.progress.rows > 0 || !job.progress.message.is_empty();
    if job.state != JobState::Succeeded && has_come_somewhere {
        text.push_str(&format!("  {}\n", progress_text(&job.progress)));
    }
    if let Some(error) = &job.error {
        text.push_str(&format!("  {error}\n"));
    }
    let Some(result) = &job.result else { return text };
    for line in result["lines"].as_array().into_iter().flatten().filter_map(Json::as_str) {
        text.push_str(&format!("  {line}\n"));
    }
    text
}
