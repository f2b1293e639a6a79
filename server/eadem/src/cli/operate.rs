//! `backfill`, `materialize`, `serve`, `jobs`, `offline`, `online`, `config`: running the store.

use anyhow::bail;
use clap::{Args, Subcommand};
use eadem_api::{Job, JobState};
use futures::StreamExt as _;
use serde_json::{Value as Json, json};

use super::Context;
use crate::client::{Client, encoded};
use crate::home::Home;
use crate::output::{Progress, table};

/// Compute views over history into the offline store.
#[derive(Debug, Args)]
pub(crate) struct Backfill {
    /// Views (`name` or `name@version`); default: every stored view's newest version.
    views: Vec<String>,
    /// Only rows with an event time at or after this instant (RFC 3339).
    #[arg(long)]
    from: Option<String>,
    /// Only rows with an event time before this instant (RFC 3339).
    #[arg(long)]
    to: Option<String>,
    /// Compute rows that are stored anew, from the files that are there now; with --from and --to, those of that range.
    #[arg(long)]
    recompute: bool,
    /// Materialize the views afterwards.
    #[arg(long)]
    online: bool,
    /// Commit nothing of a view if a greater share of its rows is refused: 0.05; overrides the views' own, 1 stops nothing.
    #[arg(long)]
    stop_share: Option<f64>,
    /// Take no share of fewer rows than this.
    #[arg(long)]
    stop_rows_min: Option<u64>,
}

/// Load the online store from the offline store.
#[derive(Debug, Args)]
pub(crate) struct Materialize {
    /// Views (`name` or `name@version`); default: every stored view's newest version.
    views: Vec<String>,
    /// The instant (RFC 3339) that a view's online_history is counted back from; default: now.
    #[arg(long)]
    as_of: Option<String>,
}

/// Serve features over HTTP.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Address and port; overrides server.listen. Port 0 takes a free one.
    #[arg(long)]
    listen: Option<String>,
}

/// The offline store.
#[derive(Debug, Subcommand)]
pub(crate) enum Offline {
    /// Put the small files of tables together; no row changes.
    Compact {
        /// Views (`name` or `name@version`); default: every stored view's newest version.
        views: Vec<String>,
        /// Files are put together up to about this many MiB (1 to 1024; default: 64).
        #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1024))]
        target_mib: Option<u64>,
    },
    /// Delete files that no version to be kept, no training set and no job needs.
    Vacuum {
        /// How long versions of tables can be read after others have taken their place, such as 12h or 30d.
        #[arg(long, value_name = "DURATION", default_value = "7d")]
        retain: String,
        /// Only show what would be deleted.
        #[arg(long)]
        dry_run: bool,
    },
}

/// List, show, resume and cancel jobs.
#[derive(Debug, Subcommand)]
pub(crate) enum JobsVerb {
    /// All jobs, newest first.
    List,
    /// One job.
    Show {
        /// Its id.
        id: String,
    },
    /// Go on with a job that failed or was interrupted.
    Resume {
        /// Its id.
        id: String,
    },
    /// Call a job off.
    Cancel {
        /// Its id.
        id: String,
    },
}

/// The online store.
#[derive(Debug, Subcommand)]
pub(crate) enum Online {
    /// Epochs, rows and bytes of every view, and from when on it is complete.
    Status,
}

impl Backfill {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = context.client().await?;
        let mut spec = json!({ "views": self.views, "from": self.from, "to": self.to, "recompute": self.recompute });
        if let Some(share) = self.stop_share {
            spec["stop_share"] = json!(share);
        }
        if let Some(rows) = self.stop_rows_min {
            spec["stop_rows_min"] = json!(rows);
        }
        let job = run_job(context, &client, "backfill", &spec).await?;
        let online = match self.online {
            true => Some(run_job(context, &client, "materialize", &json!({ "views": self.views })).await?),
            false => None,
        };
        context.printer.result(&json!({ "backfill": job, "materialize": online }), |_| {
            let mut text = job_text(&job);
            if let Some(online) = &online {
                text.push_str(&job_text(online));
            }
            text
        })
    }
}

impl Materialize {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = context.client().await?;
        let spec = json!({ "views": self.views, "as_of": self.as_of });
        let job = run_job(context, &client, "materialize", &spec).await?;
        context.printer.result(&job, job_text)
    }
}

impl JobsVerb {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = context.client().await?;
        match self {
            Self::List => {
                let jobs: Json = client.get("/jobs").await?;
                context.printer.result(&jobs, |jobs| jobs_table(&jobs["jobs"]))
            }
            Self::Show { id } => {
                let job: Job = client.get(&format!("/jobs/{}", encoded(&id))).await?;
                context.printer.result(&job, job_text)
            }
            Self::Resume { id } => {
                let job: Job = client.post(&format!("/jobs/{}/resume", encoded(&id)), &json!({})).await?;
                let job = follow(context, &client, job).await?;
                context.printer.result(&job, job_text)
            }
            Self::Cancel { id } => {
                let job: Job = client.delete(&format!("/jobs/{}", encoded(&id))).await?;
                context.printer.result(&job, job_text)
            }
        }
    }
}

impl Offline {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = context.client().await?;
        let (kind, spec) = match self {
            Self::Compact { views, target_mib } => {
                ("compact", json!({ "views": views, "target_bytes": target_mib.map(|mib| mib << 20) }))
            }
            Self::Vacuum { retain, dry_run } => ("vacuum", json!({ "retain": retain, "dry_run": dry_run })),
        };
        let job = run_job(context, &client, kind, &spec).await?;
        context.printer.result(&job, job_text)
    }
}

impl Online {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = context.client().await?;
        let Self::Status = self;
        let status: Json = client.get("/online").await?;
        context.printer.result(&status, |status| {
            let headings = ["view", "epoch", "rows", "bytes", "complete since", "offline commit", "taken out in"];
            let text = |value: &Json| match value {
                Json::String(text) => text.clone(),
                Json::Null => "-".to_owned(),
                other => other.to_string(),
            };
            let row = |view: &Json| {
                ["view", "epoch", "rows", "bytes", "complete_since", "offline_commit", "withdrawn_in"]
                    .map(|name| text(&view[name]))
                    .to_vec()
            };
            let rows: Vec<Vec<String>> = status["views"].as_array().into_iter().flatten().map(row).collect();
            table(&headings, &rows)
        })
    }
}

impl Serve {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let mut config = context.layered()?.config;
        if let Some(listen) = self.listen {
            config.server.listen = listen;
        }
        let home = Home::open(&context.project()?, &config).await?;
        home.serve(&config, context.printer).await
    }
}

pub(crate) fn show_config(context: &Context) -> anyhow::Result<()> {
    let layered = context.layered_without_project()?;
    let shown = |key: &str, value: &Json| match value {
        secret if key == SECRET_SETTING && !secret.is_null() => json!("(set, not shown)"),
        value => value.clone(),
    };
    let own = layered.values.iter().map(|(key, (value, origin))| (key.clone(), shown(key, value), origin.to_string()));
    let settings: Vec<(String, Json, String)> = own.chain(object_store_settings()).collect();
    let object =
        |(key, value, origin): &(String, Json, String)| json!({ "key": key, "value": value, "origin": origin });
    let objects: Vec<Json> = settings.iter().map(object).collect();
    context.printer.result(&objects, |_| {
        let row = |(key, value, origin): &(String, Json, String)| vec![key.clone(), value.to_string(), origin.clone()];
        let rows: Vec<Vec<String>> = settings.iter().map(row).collect();
        table(&["setting", "value", "from"], &rows)
    })
}

/// What requests to `s3://` go by. It does not stand in the project's files: only the environment and a profile say it.
fn object_store_settings() -> Vec<(String, Json, String)> {
    match eadem_offline::s3_settings() {
        Ok(settings) => {
            let row =
                |setting: eadem_offline::StoreSetting| (setting.key.to_owned(), json!(setting.value), setting.origin);
            settings.into_iter().map(row).collect()
        }
        Err(reason) => vec![("s3".to_owned(), Json::Null, format!("cannot be used: {reason}"))],
    }
}

/// The one setting that is nobody's business.
const SECRET_SETTING: &str = "engine.artifact_key_hex";

/// Starts a job and follows it to its end.
///
/// # Errors
/// A job that is refused, fails or is called off.
pub(crate) async fn run_job(context: &Context, client: &Client, kind: &str, spec: &Json) -> anyhow::Result<Job> {
    let job: Job = client.post(&format!("/jobs/{kind}"), spec).await?;
    follow(context, client, job).await
}

async fn follow(context: &Context, client: &Client, job: Job) -> anyhow::Result<Job> {
    let mut progress = Progress::new(job.kind.name(), context.printer.format);
    let mut latest = job;
    let events = client.events(&format!("/jobs/{}/events", latest.id)).await?;
    let mut events = Box::pin(events);
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let is_interrupted = loop {
        tokio::select! {
            event = events.next() => match event {
                Some(event) => {
                    latest = serde_json::from_value(event?)?;
                    let at = &latest.progress;
                    let refused = if at.refused > 0 { format!(", {} refused", at.refused) } else { String::new() };
                    let message = format!("{} rows, {:.0} rows/s{refused}  {}", at.rows, at.rows_per_s, at.message);
                    progress.update(at.done, at.total, &message);
                }
                None => break false,
            },
            _ = &mut interrupted => break true,
        }
    };
    progress.finish();
    if is_interrupted {
        latest = call_off(client, &latest.id).await?;
    }
    match latest.state {
        JobState::Succeeded => Ok(latest),
        JobState::Cancelled => bail!(
            "job {} was cancelled; only views that it had finished are visible; `eadem jobs resume {0}` goes on",
            latest.id
        ),
        _ => {
            let why = latest.error.unwrap_or_else(|| "the connection to the server ended".to_owned());
            bail!(
                "job {} failed: {why}\nonly views that it had finished are visible; `eadem jobs resume {0}` goes on where it stopped",
                latest.id
            )
        }
    }
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
    let row = |job: &Json| ["id", "kind", "state", "created_at", "finished_at"].map(|name| cell(job, name)).to_vec();
    let rows: Vec<Vec<String>> = jobs.as_array().into_iter().flatten().map(row).collect();
    table(&["id", "kind", "state", "created", "finished"], &rows)
}

pub(super) fn job_text(job: &Job) -> String {
    let mut text = format!("{} {}: {}\n", job.kind.name(), job.id, format!("{:?}", job.state).to_lowercase());
    if job.state == JobState::Running && !job.progress.message.is_empty() {
        text.push_str(&format!("  {}\n", job.progress.message));
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
