//! `token`, `trail`, `project`: people, and what they did.

use std::io::Write as _;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use eadem_values::parse_duration;
use serde_json::{Map, Value as Json, json};

use super::Context;
use crate::client::encoded;
use crate::output::table;

/// Entries that are asked for at once.
const PAGE_ENTRIES: u32 = 1_000;

/// Tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenVerb {
    /// Make a token. It is shown once, and can never be shown again.
    Create(TokenCreate),
    /// All tokens, without their secrets.
    List,
    /// One token.
    Show {
        /// Its id: the part between `eadem_` and the secret.
        id: String,
    },
    /// End a token. Every server refuses it within a second.
    Revoke {
        /// Its id.
        id: String,
    },
}

/// What the token shall be.
#[derive(Debug, Args)]
pub(crate) struct TokenCreate {
    /// What people call it: who or what will use it.
    #[arg(long)]
    name: String,
    /// What it may do: reader, writer, author or admin; each may do what those before it may.
    #[arg(long)]
    role: String,
    /// The only project that it is for; default: all.
    #[arg(long, value_name = "NAME")]
    for_project: Option<String>,
    /// How long it is taken: 12h, 30d; default: until it is revoked.
    #[arg(long, value_name = "DURATION")]
    expires: Option<String>,
}

/// The trail.
#[derive(Debug, Subcommand)]
pub(crate) enum TrailVerb {
    /// The newest entries.
    List {
        /// At most so many.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
        /// Only those at or after this instant (RFC 3339).
        #[arg(long)]
        since: Option<String>,
    },
    /// Check every entry: whether one was altered, removed, exchanged or cut off. Shows where the trail ends; keep that
    /// elsewhere, and check with it later.
    Verify {
        /// An end that was shown before: number, colon, hash.
        #[arg(long, value_name = "NUMBER:HASH")]
        head: Option<String>,
    },
    /// Write all entries as JSON, one a line, the oldest first.
    Export {
        /// Only those at or after this instant (RFC 3339).
        #[arg(long)]
        since: Option<String>,
        /// The file to write; default: standard output.
        #[arg(long)]
        out: Option<std::path::PathBuf>,
    },
}

/// Projects.
#[derive(Debug, Subcommand)]
pub(crate) enum ProjectVerb {
    /// Make a project.
    Create {
        /// Its name: a lower-case letter, then lower-case letters, digits and `_`, 32 at most.
        name: String,
    },
    /// All projects, and how much each may have.
    List,
    /// Say how much a project may have; what is not named stays as it is, and `none` lifts a limit.
    Quota(Quota),
}

/// How much a project may have.
#[derive(Debug, Args)]
pub(crate) struct Quota {
    /// The project.
    name: String,
    /// Components that are uploaded.
    #[arg(long, value_name = "NUMBER|none")]
    components: Option<String>,
    /// Bytes of all components together.
    #[arg(long, value_name = "NUMBER|none")]
    component_bytes: Option<String>,
    /// Jobs that are at work at once.
    #[arg(long, value_name = "NUMBER|none")]
    jobs: Option<String>,
    /// Requests in a second.
    #[arg(long, value_name = "NUMBER|none")]
    requests_per_s: Option<String>,
    /// Processor time of transforms in requests, in microseconds for each second: 500000 is half a core.
    #[arg(long, value_name = "NUMBER|none")]
    transform_us_per_s: Option<String>,
}

impl TokenVerb {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let path_of = |id: &str| format!("/tokens/{}", encoded(id));
        match self {
            Self::Create(create) => create.run(context).await,
            Self::List => {
                let tokens: Json = context.client_of_owner().await?.get("/tokens").await?;
                context.printer.result(&tokens, tokens_text)
            }
            Self::Show { id } => {
                let token: Json = context.client_of_owner().await?.get(&path_of(&id)).await?;
                context.printer.result(&token, token_text)
            }
            Self::Revoke { id } => {
                let token: Json = context.client_of_owner().await?.delete(&path_of(&id)).await?;
                context.printer.result(&token, token_text)
            }
        }
    }
}

impl TokenCreate {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let roles = eadem_registry::Role::ALL.map(eadem_registry::Role::name);
        if !roles.contains(&self.role.as_str()) {
            bail!("--role is `{}`; it is one of {}", self.role, roles.join(", "));
        }
        let expires_in_s = match &self.expires {
            None => None,
            Some(text) => {
                let us = parse_duration(text).with_context(|| format!("--expires {text}"))?;
                if us < 1_000_000 {
                    bail!("--expires {text}: a token is taken for a second at least");
                }
                Some(us / 1_000_000)
            }
        };
        let client = context.client_of_owner().await?;
        let body =
            json!({ "name": self.name, "role": self.role, "project": self.for_project, "expires_in_s": expires_in_s });
        let made: Json = client.post("/tokens", &body).await?;
        context.printer.result(&made, |made| {
            let token = made["token"].as_str().unwrap_or_default();
            format!(
                "{}\n{token}\n\nThis is shown once. Clients send it as `Authorization: Bearer …`; verbs read it from \
                     EADEM_TOKEN or --token-file.",
                token_text(made)
            )
        })
    }
}

const TOKEN_COLUMNS: [&str; 9] =
    ["id", "name", "role", "project", "state", "created_at", "created_by", "expires_at", "last_used_at"];

fn text_of(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        Json::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn cell(token: &Json, column: &str) -> String {
    match (column, &token[column]) {
        ("project", Json::Null) => "all".to_owned(),
        ("expires_at" | "last_used_at", Json::Null) => "never".to_owned(),
        (_, value) => text_of(value),
    }
}

fn tokens_text(tokens: &Json) -> String {
    let row = |token: &Json| TOKEN_COLUMNS.map(|column| cell(token, column)).to_vec();
    let rows: Vec<Vec<String>> = tokens["tokens"].as_array().into_iter().flatten().map(row).collect();
    if rows.is_empty() {
        return "there is no token: whoever reaches the server on this machine may do everything".to_owned();
    }
    table(&TOKEN_COLUMNS.map(|column| column.trim_end_matches("_at")), &rows)
}

fn token_text(token: &Json) -> String {
    let line = |column: &str| format!("{:<13} {}", column.replace('_', " "), cell(token, column));
    let mut lines: Vec<String> = TOKEN_COLUMNS.iter().map(|column| line(column)).collect();
    if !token["revoked_at"].is_null() {
        lines.extend([line("revoked_at"), line("revoked_by")]);
    }
    lines.join("\n")
}

impl TrailVerb {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = context.client_of_owner().await?;
        match self {
            Self::List { limit, since } => {
                let since = since.map_or(String::new(), |since| format!("&since={}", encoded(&since)));
                let page: Json = client.get(&format!("/trail?limit={limit}{since}")).await?;
                context.printer.result(&page, entries_text)
            }
            Self::Verify { head } => {
                let head = head.map_or(String::new(), |head| format!("?head={}", encoded(&head)));
                let verdict: Json = client.get(&format!("/trail/verification{head}")).await?;
                context.printer.result(&verdict, verdict_text)?;
                let faults = verdict["faults"].as_array().map_or(0, Vec::len);
                if faults > 0 {
                    bail!("the trail is not as it was written: {faults} faults");
                }
                Ok(())
            }
            Self::Export { since, out } => {
                let mut writer: Box<dyn std::io::Write> = match &out {
                    None => Box::new(std::io::stdout()),
                    Some(file) => {
                        let made = std::fs::File::create(file);
                        Box::new(made.with_context(|| format!("cannot write {}", file.display()))?)
                    }
                };
                let since = since.map_or(String::new(), |since| format!("&since={}", encoded(&since)));
                let mut after = 0;
                loop {
                    let path = format!("/trail?after={after}&limit={PAGE_ENTRIES}{since}");
                    let page: Json = client.get(&path).await?;
                    let entries = page["entries"].as_array().map(Vec::as_slice).unwrap_or_default();
                    for entry in entries {
                        writeln!(writer, "{entry}").context("cannot write the trail")?;
                    }
                    let Some(last) = entries.last().and_then(|entry| entry["sequence"].as_u64()) else { break };
                    after = last;
                }
                writer.flush().context("cannot write the trail")
            }
        }
    }
}

fn entries_text(page: &Json) -> String {
    let row = |entry: &Json| {
        let count = entry["count"].as_u64().unwrap_or(1);
        let times = if count > 1 { format!("{count} × ") } else { String::new() };
        let what = format!("{times}{} {}", text_of(&entry["outcome"]), text_of(&entry["verb"]));
        let who = match entry["address"].as_str() {
            Some(address) => format!("{} from {address}", text_of(&entry["name"])),
            None => text_of(&entry["name"]),
        };
        vec![
            text_of(&entry["sequence"]),
            text_of(&entry["at"]),
            who,
            what,
            text_of(&entry["object"]),
            text_of(&entry["detail"]),
        ]
    };
    let rows: Vec<Vec<String>> = page["entries"].as_array().into_iter().flatten().map(row).collect();
    if rows.is_empty() {
        return "nothing was done yet".to_owned();
    }
    table(&["number", "at", "who", "what", "object", "detail"], &rows)
}

fn verdict_text(verdict: &Json) -> String {
    let (entries, head) = (&verdict["entries"], &verdict["head"]);
    let mut text = String::new();
    for fault in verdict["faults"].as_array().into_iter().flatten() {
        text += &format!("entry {}: {}\n", fault["sequence"], text_of(&fault["what"]));
    }
    if text.is_empty() {
        text = format!("{entries} entries, each as it was written\n");
    }
    text + &format!("the trail ends at {}:{}\n", head["sequence"], text_of(&head["hash"]))
}

impl ProjectVerb {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = context.client_of_owner().await?;
        let project: Json = match self {
            Self::Create { name } => client.post("/projects", &json!({ "name": name })).await?,
            Self::List => {
                let projects: Json = client.get("/projects").await?;
                return context.printer.result(&projects, |projects| {
                    projects["projects"].as_array().into_iter().flatten().map(project_text).collect()
                });
            }
            Self::Quota(quota) => {
                let path = format!("/projects/{}/quotas", encoded(&quota.name));
                client.post(&path, &quota.body()?).await?
            }
        };
        context.printer.result(&project, project_text)
    }
}

impl Quota {
    fn body(&self) -> anyhow::Result<Json> {
        let limits = [
            ("components", &self.components),
            ("component_bytes", &self.component_bytes),
            ("jobs", &self.jobs),
            ("requests_per_s", &self.requests_per_s),
            ("transform_us_per_s", &self.transform_us_per_s),
        ];
        let mut body = Map::new();
        for (name, text) in limits {
            let Some(text) = text else { continue };
            let most = match text.as_str() {
                "none" => Json::Null,
                number => {
                    let flag = name.replace('_', "-");
                    let number: u64 = number
                        .parse()
                        .with_context(|| format!("--{flag} is `{number}`; it is a whole number, or `none`"))?;
                    Json::from(number)
                }
            };
            body.insert(name.to_owned(), most);
        }
        if body.is_empty() {
            bail!("nothing is said; `eadem project quota --help` lists what can be limited");
        }
        Ok(Json::Object(body))
    }
}

fn project_text(project: &Json) -> String {
    let mut text = format!("{}\n", text_of(&project["name"]));
    for (name, most) in project["quotas"].as_object().into_iter().flatten() {
        text += &format!("  {:<20} {most}\n", name.replace('_', " "));
    }
    text
}
