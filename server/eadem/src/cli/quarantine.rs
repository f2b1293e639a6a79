//! `quarantine`: refused rows.

use std::fmt::Write as _;

use clap::{Args, Subcommand};
use serde_json::{Map, Value as Json, json};

use super::Context;
use super::jobs::{job_text, run_job};
use crate::client::encoded;
use crate::output::table;
use crate::quarantine::short_id;

/// Refused rows: what they are, why, and another try.
#[derive(Debug, Subcommand)]
pub(crate) enum QuarantineVerb {
    /// The refused rows of a view, newest jobs first; without a view, how many each view has, by reason.
    List(List),
    /// One refused row with its values, what has become of it, and whether it can be replayed.
    Show {
        /// The view: `name` or `name@version`.
        view: String,
        /// The row's id, as in the list.
        id: String,
    },
    /// Put refused rows through their view again, as new arrivals.
    Replay(Replay),
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// The view: `name` or `name@version`.
    view: Option<String>,
    /// Only rows that this job has refused.
    #[arg(long, requires = "view")]
    job: Option<String>,
    /// Only rows whose reason has this text in it.
    #[arg(long, requires = "view")]
    reason: Option<String>,
    /// Also rows that a replay has settled, or that another job has refused again or loaded since.
    #[arg(long, requires = "view")]
    all: bool,
    /// Rows of a page, 1 to 1000.
    #[arg(long, requires = "view")]
    limit: Option<u32>,
    /// Where the page before ended.
    #[arg(long, requires = "view")]
    cursor: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// The view: `name` or `name@version`.
    view: String,
    /// Only rows that this job has refused.
    #[arg(long)]
    job: Option<String>,
    /// Only rows whose reason has this text in it.
    #[arg(long)]
    reason: Option<String>,
    /// Only the row of this id.
    #[arg(long)]
    row: Option<String>,
    /// At most so many rows, those that were replayed least often first; default: 100000.
    #[arg(long)]
    limit: Option<u32>,
    /// Materialize the view afterwards.
    #[arg(long)]
    online: bool,
}

impl QuarantineVerb {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::List(list) => list.run(context).await,
            Self::Show { view, id } => show(context, &view, &id).await,
            Self::Replay(replay) => replay.run(context).await,
        }
    }
}

impl List {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = context.client().await?;
        let Some(view) = &self.view else {
            let summary: Json = client.get("/quarantine").await?;
            return context.printer.result(&summary, summary_text);
        };
        let mut parameters: Vec<String> = Vec::new();
        let texts = [("job", &self.job), ("reason", &self.reason), ("cursor", &self.cursor)];
        parameters
            .extend(texts.iter().filter_map(|(name, value)| Some(format!("{name}={}", encoded(value.as_deref()?)))));
        parameters.extend(self.limit.map(|limit| format!("limit={limit}")));
        if self.all {
            parameters.push("all=true".to_owned());
        }
        let page: Json = client.get(&format!("/quarantine/{}?{}", encoded(view), parameters.join("&"))).await?;
        context.printer.result(&page, |page| page_text(page, self.all))
    }
}

fn summary_text(summary: &Json) -> String {
    let mut text = String::new();
    for view in summary["views"].as_array().into_iter().flatten() {
        let _ = write!(text, "{}: {} refused", view["view"].as_str().unwrap_or_default(), view["refused"]);
        for (what, name) in [("stored by replays", "replayed"), ("dropped in replays", "dropped")] {
            if view[name].as_u64().unwrap_or_default() > 0 {
                let _ = write!(text, ", {} {what}", view[name]);
            }
        }
        text.push('\n');
        let mut reasons: Vec<(&String, u64)> = view["reasons"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(reason, rows)| (reason, rows.as_u64().unwrap_or_default()))
            .collect();
        reasons.sort_by_key(|(reason, rows)| (std::cmp::Reverse(*rows), reason.as_str()));
        for (reason, rows) in reasons {
            let _ = writeln!(text, "  {rows} × {reason}");
        }
    }
    if text.is_empty() { "no row was refused".to_owned() } else { text }
}

fn text_of(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        Json::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn page_text(page: &Json, with_state: bool) -> String {
    let rows = page["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    if rows.is_empty() {
        return "no refused row".to_owned();
    }
    let mut headings = vec!["id", "event time", "job", "reason"];
    if with_state {
        headings.insert(1, "state");
    }
    let cells = |row: &Json| {
        let id = short_id(row["id"].as_str().unwrap_or_default());
        let mut cells = vec![id, text_of(&row["event_time"]), text_of(&row["job"]), text_of(&row["reason"])];
        if with_state {
            cells.insert(1, text_of(&row["state"]));
        }
        cells
    };
    let cells: Vec<Vec<String>> = rows.iter().map(cells).collect();
    let mut text = table(&headings, &cells);
    if let Some(next) = page["next"].as_str() {
        let _ = writeln!(text, "there are more: --cursor {next}");
    }
    text
}

async fn show(context: &Context, view: &str, id: &str) -> anyhow::Result<()> {
    let client = context.client().await?;
    let found: Json = client.get(&format!("/quarantine/{}/{}", encoded(view), encoded(id))).await?;
    context.printer.result(&found, row_text)
}

fn row_text(found: &Json) -> String {
    let mut text = String::new();
    for (number, row) in found["rows"].as_array().into_iter().flatten().enumerate() {
        if number == 0 {
            let _ = writeln!(text, "{}, row {} of {}", text_of(&found["view"]), row["row"], text_of(&row["file"]));
            for part in ["keys", "inputs"] {
                for (name, value) in row[part].as_object().unwrap_or(&Map::new()) {
                    let _ = writeln!(text, "  {name} = {value}");
                }
            }
            if let Some(kept) = row["text"].as_str() {
                let _ = writeln!(text, "  what stands there: {kept}");
            }
            let times = (text_of(&row["event_time"]), text_of(&row["known_at"]));
            let _ = writeln!(text, "  event time {}, known at {}", times.0, times.1);
        }
        let _ = writeln!(
            text,
            "refused by job {} (arrival {}): {}",
            text_of(&row["job"]),
            text_of(&row["arrival"]),
            text_of(&row["reason"])
        );
        if let Some(job) = row["settled_by"].as_str() {
            let what = match row["state"].as_str().unwrap_or_default() {
                "replayed" => "stored by the replay",
                "dropped" => "dropped in the replay",
                "loaded_since" => "loaded again and not refused by",
                _ => "refused again by",
            };
            let _ = writeln!(text, "  since then {what} {job}");
        }
    }
    match found["hindrance"].as_str() {
        Some(hindrance) => {
            let _ = writeln!(text, "it cannot be replayed: {hindrance}");
        }
        None if found["rows"][0]["state"] == "refused" => text.push_str("it can be replayed\n"),
        None => {}
    }
    text
}

impl Replay {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = context.client().await?;
        let mut spec = json!({ "view": self.view });
        let texts = [("job", &self.job), ("reason", &self.reason), ("row", &self.row)];
        for (name, value) in texts {
            if let Some(value) = value {
                spec[name] = json!(value);
            }
        }
        if let Some(limit) = self.limit {
            spec["limit"] = json!(limit);
        }
        let job = run_job(context, &client, "replay", &spec).await?;
        let view = &job.spec["view"];
        let online = match self.online {
            true => Some(run_job(context, &client, "materialize", &json!({ "views": [view] })).await?),
            false => None,
        };
        context.printer.result(&json!({ "replay": job, "materialize": online }), |_| {
            let mut text = job_text(&job);
            if let Some(online) = &online {
                text.push_str(&job_text(online));
            }
            text
        })
    }
}
