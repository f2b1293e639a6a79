//! `get`, `dataset`, `lineage`: asking for features.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::{Map, Value as Json, json};

use super::operate::run_job;
use super::{Context, name_and_value};
use crate::client::encoded;
use crate::output::table;

/// Ask for the features of an entity.
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// The entity's id; composite keys in declared order, joined by commas.
    entity_id: Option<String>,
    /// A key by name, where a service needs several or has roles: --key origin=JFK. What is JSON is sent as such: text that
    /// looks like a number is quoted, --key 'flight="4711"'
    #[arg(long = "key", value_name = "NAME=VALUE", value_parser = name_and_value, conflicts_with = "entity_id")]
    keys: Vec<(String, String)>,
    /// Features: `name`, `view:name` or `view@version:name`.
    #[arg(long, value_delimiter = ',')]
    features: Vec<String>,
    /// A service: `name` or `name@version`.
    #[arg(long, conflicts_with = "features")]
    service: Option<String>,
    /// The entity type, where there are several.
    #[arg(long)]
    entity: Option<String>,
    /// A past instant (RFC 3339); default: now.
    #[arg(long)]
    timestamp: Option<String>,
    /// A field sent with the request, read like a key: --request scheduled_at=2013-01-01T05:00:00Z
    #[arg(long = "request", value_name = "FIELD=VALUE", value_parser = name_and_value)]
    request: Vec<(String, String)>,
    /// Show status, event time, version, digest and store of every value.
    #[arg(long)]
    explain: bool,
}

/// Make, list, show and rebuild training sets.
#[derive(Debug, Subcommand)]
pub(crate) enum Dataset {
    /// Make a training set for the rows of a spine.
    Create(DatasetCreate),
    /// All training sets.
    List,
    /// One training set with its recipe.
    Show {
        /// Its id.
        id: String,
    },
    /// Make a training set again from its recipe and check that it is the same.
    Rebuild {
        /// Its id.
        id: String,
        /// Where the rebuilt file goes.
        #[arg(long)]
        out: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DatasetCreate {
    /// A service: `name` or `name@version`.
    #[arg(long)]
    service: String,
    /// The spine: Parquet or CSV with keys, request fields, a timestamp and labels.
    #[arg(long)]
    spine: PathBuf,
    /// The Parquet file to write.
    #[arg(long)]
    out: PathBuf,
    /// The spine's column of timestamps.
    #[arg(long, default_value = "timestamp")]
    timestamp_column: String,
    /// A key or request field that has another name in the spine: --column origin=from_airport
    #[arg(long = "column", value_name = "NAME=COLUMN", value_parser = name_and_value)]
    columns: Vec<(String, String)>,
    /// What the rows may know: `spine` (what was known at their own time), `none`, or an instant.
    #[arg(long, default_value = "spine")]
    known_at_cut: String,
    /// Leave the `<feature>__status` columns out.
    #[arg(long)]
    no_status: bool,
}

/// Show where an object comes from and what depends on it.
#[derive(Debug, Args)]
pub(crate) struct Lineage {
    /// source, entity, transform, view, feature, service or dataset.
    kind: String,
    /// Its name: planes, planes.seats, plane_profile@1, plane_profile@1:seats, my_model@1.
    name: String,
    /// Print Graphviz instead.
    #[arg(long)]
    dot: bool,
}

impl Get {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = context.client().await?;
        let reply: Json = match &self.entity_id {
            Some(entity_id) => client.get(&self.path(entity_id)).await?,
            None if self.keys.is_empty() => bail!("say which entity: its id, or --key NAME=VALUE for each key"),
            None => {
                let mut reply: Json = client.post(self.batch_path(), &self.batch_body()).await?;
                reply["results"][0].take()
            }
        };
        context.printer.result(&reply, |reply| reply_text(reply, self.explain))
    }

    fn path(&self, entity_id: &str) -> String {
        // In the query, where also the ids `batch` and `..` mean nothing else. Commas stay: they separate the keys of a
        // composite id.
        let keys: Vec<String> = entity_id.split(',').map(|key| encoded(key).to_string()).collect();
        let mut parameters = vec![format!("entity_id={}", keys.join(","))];
        if !self.features.is_empty() {
            parameters.push(format!("features={}", encoded(&self.features.join(","))));
        }
        let optional = [("service", &self.service), ("entity", &self.entity), ("timestamp", &self.timestamp)];
        for (name, value) in optional {
            if let Some(value) = value {
                parameters.push(format!("{name}={}", encoded(value)));
            }
        }
        for (name, value) in &self.request {
            parameters.push(format!("request.{}={}", encoded(name), encoded(value)));
        }
        if self.explain {
            parameters.push("include=metadata".to_owned());
        }
        format!("/features?{}", parameters.join("&"))
    }

    fn batch_path(&self) -> &'static str {
        if self.explain { "/features/batch?include=metadata" } else { "/features/batch" }
    }

    fn batch_body(&self) -> Json {
        let is_scalar = |json: &Json| !json.is_array() && !json.is_object();
        let as_json = |text: &String| serde_json::from_str::<Json>(text).ok().filter(is_scalar);
        let object = |pairs: &[(String, String)]| -> Map<String, Json> {
            let entry = |(name, text): &(String, String)| {
                (name.clone(), as_json(text).unwrap_or_else(|| Json::from(text.as_str())))
            };
            pairs.iter().map(entry).collect()
        };
        let mut body = json!({ "entities": [object(&self.keys)] });
        if !self.request.is_empty() {
            body["request"] = json!([object(&self.request)]);
        }
        if let Some(service) = &self.service {
            body["service"] = json!(service);
        } else {
            body["features"] = json!(self.features);
        }
        if let Some(timestamp) = &self.timestamp {
            body["timestamp"] = json!(timestamp);
        }
        body
    }
}

fn reply_text(reply: &Json, explain: bool) -> String {
    let text = |value: &Json| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut headings = vec!["feature", "value", "status"];
    if explain {
        headings.extend(["event time", "view", "transform", "store"]);
    }
    let row = |(name, value): (&String, &Json)| {
        let status = reply["status"][name].as_str().unwrap_or("present");
        let mut cells = vec![name.clone(), text(value), status.to_owned()];
        if explain {
            let metadata = &reply["metadata"][name];
            let transform: String = text(&metadata["transform"]).chars().take("sha256:".len() + 12).collect();
            cells.extend([text(&metadata["event_time"]), text(&metadata["view"]), transform, text(&metadata["store"])]);
        }
        cells
    };
    let rows: Vec<Vec<String>> = reply["features"].as_object().into_iter().flatten().map(row).collect();
    let mut out = table(&headings, &rows);
    let _ = write!(out, "as of {}", text(&reply["timestamp"]));
    out
}

impl Dataset {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = context.client().await?;
        match self {
            Self::Create(create) => {
                let job = run_job(context, &client, "dataset", &create.spec()?).await?;
                let result = job.result.unwrap_or_default();
                context.printer.result(&result, lines_text)
            }
            Self::List => {
                let datasets: Json = client.get("/datasets").await?;
                context.printer.result(&datasets, |datasets| {
                    let cell = |dataset: &Json, name: &str| match &dataset[name] {
                        Json::String(text) => text.clone(),
                        other => other.to_string(),
                    };
                    let row = |dataset: &Json| {
                        ["id", "name", "rows", "created_at", "content_digest"].map(|name| cell(dataset, name)).to_vec()
                    };
                    let rows: Vec<Vec<String>> =
                        datasets["datasets"].as_array().into_iter().flatten().map(row).collect();
                    table(&["id", "service", "rows", "created", "content"], &rows)
                })
            }
            Self::Show { id } => {
                let dataset: Json = client.get(&format!("/datasets/{}", encoded(&id))).await?;
                context.printer.result(&dataset, |dataset| serde_json::to_string_pretty(dataset).unwrap_or_default())
            }
            Self::Rebuild { id, out } => {
                let spec = json!({ "rebuild": id, "output": absolute_file(&out)? });
                let job = run_job(context, &client, "dataset", &spec).await?;
                let result = job.result.unwrap_or_default();
                context.printer.result(&result, lines_text)
            }
        }
    }
}

/// The path as a server elsewhere in the file system finds it; the file itself need not exist yet.
pub(crate) fn absolute_file(path: &Path) -> anyhow::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    let (Some(folder), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        bail!("{} is no file", path.display());
    };
    let folder = folder.canonicalize().with_context(|| format!("no folder {}", folder.display()))?;
    Ok(folder.join(name))
}

fn lines_text(result: &Json) -> String {
    let lines = result["lines"].as_array().into_iter().flatten().filter_map(Json::as_str);
    lines.collect::<Vec<_>>().join("\n")
}

impl DatasetCreate {
    fn spec(&self) -> anyhow::Result<Json> {
        let columns: Map<String, Json> =
            self.columns.iter().map(|(name, column)| (name.clone(), Json::from(column.as_str()))).collect();
        Ok(json!({
            "service": self.service,
            "spine": absolute_file(&self.spine)?,
            "output": absolute_file(&self.out)?,
            "timestamp_column": self.timestamp_column,
            "columns": columns,
            "known_at_cut": self.known_at_cut,
            "no_status": self.no_status,
        }))
    }
}

impl Lineage {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = context.client().await?;
        let path = format!("/lineage/{}/{}", encoded(&self.kind), encoded(&self.name));
        let lineage: Json = client.get(&path).await?;
        let part = if self.dot { "dot" } else { "text" };
        context.printer.result(&lineage, |lineage| lineage[part].as_str().unwrap_or_default().to_owned())
    }
}
