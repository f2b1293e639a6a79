//! `backfill`, `materialize`, `serve`, `offline`, `online`, `config`: running the store.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use eadem_online::scylla::{self, Replication, SchemaDifference, SchemaOptions};
use serde_json::{Value as Json, json};

use super::Context;
use super::data::absolute_file;
use super::jobs::{job_text, run_job};
use crate::home::Home;
use crate::output::table;

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
    /// Merge only the rows that were backfilled since the last time into what is served; where that is not possible (rows were
    /// taken out, a longer history is wanted) everything is loaded anew.
    #[arg(long)]
    incremental: bool,
    /// Load so many rows a second at most; 0: as fast as it goes. Default: jobs.materialize_rows_per_s_max.
    #[arg(long, value_name = "ROWS")]
    rows_per_s: Option<u64>,
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

/// The online store.
#[derive(Debug, Subcommand)]
pub(crate) enum Online {
    /// Epochs, rows and bytes of every view, and from when on it is complete.
    Status,
    /// Show the schema of the database that `store.online` names, and with --apply make it.
    Init(OnlineInit),
    /// Copy what is served into one file, also while a server runs and rows are written.
    Backup(OnlineBackup),
    /// Load what such a file holds beside what is served, and switch to it.
    Restore(OnlineRestore),
}

/// Where a copy goes.
#[derive(Debug, Args)]
pub(crate) struct OnlineBackup {
    /// Views (`name` or `name@version`); default: every view that is served.
    views: Vec<String>,
    /// The file to write.
    #[arg(long)]
    out: PathBuf,
    /// Put it in the place of a file that is there.
    #[arg(long)]
    replace: bool,
}

/// Which copy is loaded.
#[derive(Debug, Args)]
pub(crate) struct OnlineRestore {
    /// The file that `online backup` wrote.
    file: PathBuf,
    /// Views (`name` or `name@version`); default: every view in the file.
    views: Vec<String>,
    /// Also where the online store holds the view already, unless it holds newer rows.
    #[arg(long)]
    replace: bool,
    /// Only check the file, and say what would be loaded.
    #[arg(long)]
    dry_run: bool,
}

impl OnlineBackup {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = context.client().await?;
        let out = absolute_file(&self.out)?;
        let spec = json!({ "views": self.views, "out": out, "replace": self.replace });
        let job = run_job(context, &client, "backup", &spec).await?;
        context.printer.result(&job, job_text)
    }
}

impl OnlineRestore {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = context.client().await?;
        let from = absolute_file(&self.file)?;
        let spec = json!({ "views": self.views, "from": from, "replace": self.replace, "dry_run": self.dry_run });
        let job = run_job(context, &client, "restore", &spec).await?;
        context.printer.result(&job, job_text)
    }
}

/// What is decided once, when the keyspace is made.
#[derive(Debug, Args)]
pub(crate) struct OnlineInit {
    /// Make it. Without, it is only shown.
    #[arg(long)]
    apply: bool,
    /// Copies of the data: a number for every data center, or `dc1=3,dc2=2`.
    #[arg(long, value_name = "COPIES", default_value = "3", value_parser = parse_replication)]
    replication: Replication,
    /// For how long a process may believe what it has read about a table, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = SchemaOptions::default().lease_ms)]
    lease_ms: u32,
    /// Into how many partitions the directory of a table's entities is divided.
    #[arg(long, value_name = "NUMBER", default_value_t = SchemaOptions::default().buckets)]
    buckets: u32,
}

fn parse_replication(text: &str) -> Result<Replication, String> {
    let copies = |text: &str| text.trim().parse::<u32>().map_err(|_| format!("`{text}` is no number of copies"));
    if !text.contains('=') {
        return copies(text).map(Replication::EveryDatacenter);
    }
    let datacenter = |part: &str| {
        let (name, number) = part.split_once('=').ok_or_else(|| format!("`{part}` is not `data center=copies`"))?;
        Ok((name.trim().to_owned(), copies(number)?))
    };
    text.split(',').map(datacenter).collect::<Result<_, String>>().map(Replication::Datacenters)
}

impl OnlineInit {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let database = context.layered()?.config.store.online_database(context.project_name())?.context(
            "the online store is the embedded one, which needs no schema; `store.online` in eadem.toml names a database",
        )?;
        let options = SchemaOptions { replication: self.replication, lease_ms: self.lease_ms, buckets: self.buckets };
        let statements = options.statements(&database.keyspace);
        let differences = if self.apply { scylla::init(&database, &options).await? } else { Vec::new() };
        let shown: Vec<Json> =
            statements.iter().map(|statement| json!({ "why": statement.why, "statement": statement.text })).collect();
        let document = json!({
            "database": database.to_string(),
            "applied": self.apply,
            "statements": shown,
            "differences": differences,
        });
        context.printer.result(&document, |_| {
            let mut text = String::new();
            for statement in &statements {
                text += &format!("-- {}\n{};\n\n", statement.why, statement.text);
            }
            if !self.apply {
                return text + &format!("Nothing was changed; with --apply, {database} gets this schema.\n");
            }
            if differences.is_empty() {
                return text + &format!("{database} has this schema.\n");
            }
            text += &format!("{database} was there before, and what it has is not changed:\n");
            for SchemaDifference { what, wanted, found, remedy } in &differences {
                text += &format!("  {what}: {found}, and not {wanted}. To change it: {remedy}\n");
            }
            text
        })?;
        match differences.is_empty() {
            true => Ok(()),
            false => bail!("{database} is not as asked for: {}", named(&differences)),
        }
    }
}

fn named(differences: &[SchemaDifference]) -> String {
    let names: Vec<&str> = differences.iter().map(|difference| difference.what.as_str()).collect();
    names.join(", ")
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
        let mut spec = json!({ "views": self.views, "as_of": self.as_of, "incremental": self.incremental });
        if let Some(rows) = self.rows_per_s {
            spec["rows_per_s_max"] = json!(rows);
        }
        let job = run_job(context, &client, "materialize", &spec).await?;
        context.printer.result(&job, job_text)
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
        match self {
            Self::Status => {}
            Self::Init(init) => return init.run(context).await,
            Self::Backup(backup) => return backup.run(context).await,
            Self::Restore(restore) => return restore.run(context).await,
        }
        let client = context.client().await?;
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
