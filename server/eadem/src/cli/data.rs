//! `get`, `dataset`, `lineage`, `search`: asking for features, and about them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use eadem_offline::Location;
use eadem_semantics::AsStored;
use serde_json::{Map, Value as Json, json};

use super::jobs::run_job;
use super::{Context, name_and_value};
use crate::client::encoded;
use crate::datasets::failure_lines;
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
    /// What the offline store held then, late rows and corrections since left out: the number of a commit of the one view that
    /// is read, or an instant (RFC 3339).
    #[arg(long, value_name = "COMMIT|TIME")]
    as_stored: Option<AsStored>,
    /// A field sent with the request, read like a key: --request scheduled_at=2013-01-01T05:00:00Z
    #[arg(long = "request", value_name = "FIELD=VALUE", value_parser = name_and_value)]
    request: Vec<(String, String)>,
    /// Show status, event time, version, digest and store of every value, every row that was read, and where the time went.
    #[arg(long)]
    explain: bool,
    /// Ask the stores, and not what is kept of them in memory.
    #[arg(long)]
    no_cache: bool,
    /// Milliseconds after which what is not there has status `error`.
    #[arg(long, value_name = "MS")]
    deadline_ms: Option<u64>,
}

/// Make, list, show, rebuild and compare training sets.
#[derive(Debug, Subcommand)]
pub(crate) enum Dataset {
    /// Make a training set: for the rows of a spine, of a query, or for all entities at given times.
    Create(Box<DatasetCreate>),
    /// All training sets.
    List,
    /// One training set: how it was made, what was found and what not, and what its features look like.
    Show {
        /// Its id.
        id: String,
        /// Also how its rows were joined, as a plan of operators.
        #[arg(long)]
        explain: bool,
    },
    /// Make a training set again from its recipe and check that it is the same.
    Rebuild {
        /// Its id.
        id: String,
        /// Where the rebuilt file goes: a file, or an s3:// URL.
        #[arg(long)]
        out: PathBuf,
    },
    /// Say what has changed from one training set to another: columns, versions, commits, values, statistics.
    Diff {
        /// The id of the first.
        a: String,
        /// The id of the second.
        b: String,
    },
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("rows").required(true).args(["spine", "spine_sql", "at", "every"]))]
pub(crate) struct DatasetCreate {
    /// A service: `name` or `name@version`.
    #[arg(long)]
    service: String,
    /// The spine: Parquet, CSV or Arrow with keys, request fields, a timestamp and labels. A file, or an s3:// URL.
    #[arg(long)]
    spine: Option<PathBuf>,
    /// Instead of a file: a query over registered sources, each a table of its name.
    #[arg(long, value_name = "SQL")]
    spine_sql: Option<String>,
    /// Instead of a spine: all entities at these instants or days.
    #[arg(long, value_name = "TIME", value_delimiter = ',')]
    at: Vec<String>,
    /// Instead of a spine: all entities in steps of this duration, from --from on and before --to.
    #[arg(long, value_name = "DURATION", requires = "from", requires = "to")]
    every: Option<String>,
    /// The first instant or day of --every.
    #[arg(long, value_name = "TIME", requires = "every")]
    from: Option<String>,
    /// The instant or day that --every ends before.
    #[arg(long, value_name = "TIME", requires = "every")]
    to: Option<String>,
    /// The entity whose rows --at and --every mean, as a check.
    #[arg(long)]
    entity: Option<String>,
    /// The file to write, or an s3:// URL; its ending says the format: .parquet or .arrow.
    #[arg(long)]
    out: PathBuf,
    /// The spine's column of timestamps.
    #[arg(long, default_value = "timestamp")]
    timestamp_column: String,
    /// A key or request field that has another name in the spine: --column origin=from_airport
    #[arg(long = "column", alias = "key", value_name = "NAME=COLUMN", value_parser = name_and_value)]
    columns: Vec<(String, String)>,
    /// Columns of the spine that are not written.
    #[arg(long, value_name = "COLUMN", value_delimiter = ',')]
    drop: Vec<String>,
    /// Splits with their shares, in a column `split`: --split train=0.8,test=0.2
    #[arg(long, value_name = "NAME=SHARE", value_delimiter = ',', value_parser = name_and_value)]
    split: Vec<(String, String)>,
    /// What stays together: `entity` (default), `row`, or columns of the spine.
    #[arg(long, value_name = "WHAT", value_delimiter = ',', requires = "split")]
    split_by: Vec<String>,
    /// Another salt gives another split.
    #[arg(long, requires = "split", default_value = "", hide_default_value = true)]
    split_salt: String,
    /// Splits by time: --split-time train:..2024-01-01,test:2024-01-01..
    #[arg(long, value_name = "NAME:FROM..TO", value_delimiter = ',', conflicts_with = "split")]
    split_time: Vec<String>,
    /// The column that says which split a row is in.
    #[arg(long, value_name = "COLUMN", default_value = "split")]
    split_column: String,
    /// What the rows may know: `spine` (what was known at their own time), `none`, or an instant.
    #[arg(long, default_value = "spine")]
    known_at_cut: String,
    /// What the offline tables held then, late rows and corrections since left out: the number of a commit of the one table
    /// that is read, or an instant (RFC 3339).
    #[arg(long, value_name = "COMMIT|TIME")]
    as_stored: Option<AsStored>,
    /// Leave the `<feature>__status` columns out.
    #[arg(long)]
    no_status: bool,
    /// Keep no statistics of the features.
    #[arg(long)]
    no_statistics: bool,
    /// Also show how its rows were joined, as a plan of operators.
    #[arg(long)]
    explain: bool,
}

/// `eadem search`.
#[derive(Debug, Args)]
pub(crate) struct Search {
    /// Words that all occur in names, tags, owners or documentation, or begin words that do; owner:WORD and tag:WORD say
    /// where.
    #[arg(required = true)]
    words: Vec<String>,
    /// Only objects of this kind; repeatable: service, view, feature, transform, source, entity.
    #[arg(long)]
    kind: Vec<String>,
    /// At most so many, the best.
    #[arg(long, default_value_t = 20)]
    limit: usize,
}

/// Show where an object comes from and what depends on it.
#[derive(Debug, Args)]
pub(crate) struct Lineage {
    /// source, entity, transform, view, feature, service or dataset.
    kind: String,
    /// Its name: planes, planes.seats, plane_profile@1, plane_profile@1:seats, my_model@1.
    name: String,
    /// Which way to go from it: upstream, downstream or both.
    #[arg(long, default_value = "both")]
    direction: String,
    /// At most so many nodes, the nearest (1 to 10000; default: 10000).
    #[arg(long, value_name = "NODES")]
    nodes_max: Option<usize>,
    /// Print Graphviz instead.
    #[arg(long)]
    dot: bool,
}

impl Get {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = context.client().await?;
        let reply: Json = match &self.entity_id {
            Some(entity_id) => client.with_cache(!self.no_cache).get(&self.path(entity_id)).await?,
            None if self.keys.is_empty() => bail!("say which entity: its id, or --key NAME=VALUE for each key"),
            None => {
                let client = client.with_cache(!self.no_cache);
                let mut replies: Json = client.post(&self.batch_path(), &self.batch_body()).await?;
                let mut reply = replies["results"][0].take();
                for about_all in ["as_stored", "timing"] {
                    if let Some(value) = replies.get_mut(about_all) {
                        reply[about_all] = value.take();
                    }
                }
                reply
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
        parameters.extend(self.common_parameters());
        for (name, value) in &self.request {
            parameters.push(format!("request.{}={}", encoded(name), encoded(value)));
        }
        format!("/features?{}", parameters.join("&"))
    }

    /// What both routes take.
    fn common_parameters(&self) -> Vec<String> {
        let as_stored = self.as_stored.map(|as_stored| format!("as_stored={}", encoded(&as_stored.to_string())));
        let explain = self.explain.then(|| "include=explain".to_owned());
        let deadline = self.deadline_ms.map(|ms| format!("deadline_ms={ms}"));
        as_stored.into_iter().chain(explain).chain(deadline).collect()
    }

    fn batch_path(&self) -> String {
        let parameters = self.common_parameters();
        match parameters.is_empty() {
            true => "/features/batch".to_owned(),
            false => format!("/features/batch?{}", parameters.join("&")),
        }
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
    if explain {
        out += &explanation_text(reply);
    }
    let _ = write!(out, "as of {}", text(&reply["timestamp"]));
    for (view, stored) in reply["as_stored"].as_object().into_iter().flatten() {
        let _ = write!(out, "\n{view} as stored by commit {} of {}", stored["commit"], text(&stored["committed_at"]));
    }
    out
}

/// The rows that were read, and where the time went.
fn explanation_text(reply: &Json) -> String {
    let text = |value: &Json| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let row = |read: &Json| {
        let keys: Vec<String> = read["keys"].as_array().into_iter().flatten().map(text).collect();
        let found = ["event_time", "known_at", "tie"].map(|name| match &read[name] {
            Json::Null => "-".to_owned(),
            value => text(value),
        });
        let place = ["store", "from"].map(|name| text(&read[name]));
        [text(&read["view"]), keys.join(", ")].into_iter().chain(found).chain(place).collect()
    };
    let rows: Vec<Vec<String>> = reply["rows"].as_array().into_iter().flatten().map(row).collect();
    let headings = ["row of", "by", "event time", "known at", "tie digest", "proved by", "from"];
    let mut out = format!("\n{}\n", table(&headings, &rows));
    let timing = &reply["timing"];
    let view = |view: &Json| {
        let read = if view["read_us"].is_null() { "-".to_owned() } else { view["read_us"].to_string() };
        let late = if view["late"] == json!(true) { "after the deadline" } else { "" };
        vec![text(&view["view"]), read, view["compute_us"].to_string(), late.to_owned()]
    };
    let views: Vec<Vec<String>> = timing["views"].as_array().into_iter().flatten().map(view).collect();
    out += &table(&["view", "read, µs", "computed, µs", ""], &views);
    let _ = writeln!(out, "\n{} µs to read the request, {} µs to answer it\n", timing["parse_us"], timing["serve_us"]);
    out
}

impl Dataset {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = context.client().await?;
        match self {
            Self::Create(create) => {
                let job = run_job(context, &client, "dataset", &create.spec()?).await?;
                let result = job.result.unwrap_or_default();
                context.printer.result(&result, |result| {
                    let plans = if create.explain { plans_text(&result["plans"]) } else { String::new() };
                    lines_text(result) + &plans
                })
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
            Self::Show { id, explain } => {
                let dataset: Json = client.get(&format!("/datasets/{}", encoded(&id))).await?;
                context.printer.result(&dataset, |dataset| {
                    let plans = if explain { plans_text(&dataset["report"]["plans"]) } else { String::new() };
                    dataset_text(dataset) + &plans
                })
            }
            Self::Diff { a, b } => {
                let job = run_job(context, &client, "dataset", &json!({ "diff": [a, b] })).await?;
                let result = job.result.unwrap_or_default();
                context.printer.result(&result, lines_text)
            }
            Self::Rebuild { id, out } => {
                let spec = json!({ "rebuild": id, "output": file_or_url(&out)? });
                let job = run_job(context, &client, "dataset", &spec).await?;
                let result = job.result.unwrap_or_default();
                context.printer.result(&result, lines_text)
            }
        }
    }
}

/// A file as the server finds it: a URL as it is, once it is clear that it holds no credentials, or else an absolute path.
pub(crate) fn file_or_url(file: &Path) -> anyhow::Result<String> {
    match file.to_str() {
        Some(url) if url.contains("://") => {
            Location::check(url)?;
            Ok(url.to_owned())
        }
        _ => {
            let absolute = absolute_file(file)?;
            Ok(absolute.to_str().with_context(|| format!("{} is not UTF-8", absolute.display()))?.to_owned())
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

/// The plans of a dataset's joins, below what else is said of it.
fn plans_text(plans: &Json) -> String {
    let Some(plans) = plans.as_array() else { return "\n\nhow its rows were joined was not kept".to_owned() };
    if plans.is_empty() {
        return "\n\nno view of it has a table: nothing was joined".to_owned();
    }
    plans.iter().filter_map(Json::as_str).map(|plan| format!("\n\n{}", plan.trim_end())).collect()
}

/// A dataset as people read it.
fn dataset_text(dataset: &Json) -> String {
    let text = |value: &Json| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let recipe = &dataset["recipe"];
    let mut out = format!(
        "dataset {}: {} rows for {}, in {}\nmade {}, known-at cut {}, {}\ncontent {}\n",
        text(&dataset["id"]),
        dataset["rows"],
        text(&recipe["service"]),
        text(&dataset["output"]),
        text(&dataset["created_at"]),
        text(&recipe["cut"]),
        text(&recipe["writer"]),
        text(&dataset["content_digest"]),
    );
    if let Some(job) = dataset["erased"]["job"].as_str() {
        let at = text(&dataset["erased"]["at"]);
        let _ = writeln!(out, "cannot be made again: the erasure {job} has deleted files that it was made of ({at})");
    }
    let _ = writeln!(out, "spine {} ({})", text(&recipe["spine_digest"]), spine_text(&recipe["options"]["spine"]));
    for view in recipe["views"].as_array().into_iter().flatten() {
        let commit = match &view["table_version"] {
            Json::Null => "no table".to_owned(),
            version => format!("commit {version}, {} files", view["files"].as_array().map_or(0, Vec::len)),
        };
        let _ = writeln!(out, "view {}: {commit}", text(&view["view"]));
    }
    let report: Option<eadem_offline::SpineReport> = serde_json::from_value(dataset["report"]["spine"].clone()).ok();
    for line in report.iter().flat_map(eadem_offline::SpineReport::lines) {
        let _ = writeln!(out, "{line}");
    }
    for line in failure_lines(&dataset["report"]["errors"]) {
        let _ = writeln!(out, "{line}");
    }
    for note in dataset["report"]["notes"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "{}", text(note));
    }
    let statistics = &dataset["report"]["statistics"];
    let Some(features) = statistics["features"].as_array() else { return out + "no statistics were kept" };
    let row = |feature: &Json| {
        let statuses = feature["statuses"].as_object().into_iter().flatten();
        let statuses: Vec<String> = statuses.map(|(status, rows)| format!("{status} {rows}")).collect();
        let top = &feature["top"][0];
        let top = if top.is_null() { String::new() } else { format!("{} × {}", top["count"], text(&top["value"])) };
        let shown = |value: &Json| if value.is_null() { "-".to_owned() } else { text(value) };
        vec![
            text(&feature["name"]),
            text(&feature["data_type"]),
            statuses.join(", "),
            shown(&feature["min"]),
            shown(&feature["quantiles"]["0.5"]),
            shown(&feature["mean"]),
            shown(&feature["max"]),
            feature["distinct"].to_string(),
            top,
        ]
    };
    let rows: Vec<Vec<String>> = features.iter().map(row).collect();
    out += &table(&["feature", "type", "statuses", "min", "median", "mean", "max", "distinct", "most frequent"], &rows);
    if statistics["rows"] != statistics["sampled_rows"] {
        let _ = write!(out, "median, distinct and most frequent: of a sample of {} rows", statistics["sampled_rows"]);
    }
    out
}

fn spine_text(origin: &Json) -> String {
    match (&origin["query"], &origin["entities"]) {
        (Json::String(sql), _) => format!("query: {sql}"),
        (_, Json::String(times)) => format!("all entities at {times}"),
        _ => "a file".to_owned(),
    }
}

impl DatasetCreate {
    fn spec(&self) -> anyhow::Result<Json> {
        let columns: Map<String, Json> =
            self.columns.iter().map(|(name, column)| (name.clone(), Json::from(column.as_str()))).collect();
        let mut spec = json!({
            "service": self.service,
            "output": file_or_url(&self.out)?,
            "timestamp_column": self.timestamp_column,
            "columns": columns,
            "leave_out": self.drop,
            "known_at_cut": self.known_at_cut,
            "no_status": self.no_status,
            "no_statistics": self.no_statistics,
        });
        if let Some(as_stored) = &self.as_stored {
            spec["as_stored"] = json!(as_stored.to_string());
        }
        if let Some(spine) = &self.spine {
            spec["spine"] = json!(file_or_url(spine)?);
        }
        if let Some(sql) = &self.spine_sql {
            spec["spine_sql"] = json!(sql);
        }
        if !self.at.is_empty() {
            spec["times"] = json!(self.at);
        }
        if let Some(every) = &self.every {
            spec["times"] = json!({ "every": every, "from": self.from, "to": self.to });
        }
        if let Some(entity) = &self.entity {
            spec["entity"] = json!(entity);
        }
        if let Some(split) = self.split()? {
            spec["split"] = split;
        }
        Ok(spec)
    }

    fn split(&self) -> anyhow::Result<Option<Json>> {
        if !self.split_time.is_empty() {
            let ranges = self.split_time.iter().map(|text| split_range(text)).collect::<anyhow::Result<Vec<Json>>>()?;
            return Ok(Some(json!({ "column": self.split_column, "time": ranges })));
        }
        if self.split.is_empty() {
            return Ok(None);
        }
        let share = |(name, share): &(String, String)| {
            let share: f64 = share.parse().with_context(|| format!("--split {name}={share}: a share is a number"))?;
            Ok(json!({ "name": name, "share": share }))
        };
        let shares = self.split.iter().map(share).collect::<anyhow::Result<Vec<Json>>>()?;
        let by = match self.split_by.as_slice() {
            [] => json!("entity"),
            [word] => json!(word),
            columns => json!(columns),
        };
        Ok(Some(json!({ "column": self.split_column, "shares": shares, "by": by, "salt": self.split_salt })))
    }
}

/// `name:from..to`, where either end may be missing.
fn split_range(text: &str) -> anyhow::Result<Json> {
    let parts = text.split_once(':').and_then(|(name, range)| Some((name, range.split_once("..")?)));
    let Some((name, (from, to))) = parts else {
        bail!("--split-time {text}: expected NAME:FROM..TO, such as train:..2024-01-01");
    };
    let end = |text: &str| if text.is_empty() { Json::Null } else { Json::from(text) };
    Ok(json!({ "name": name, "from": end(from), "to": end(to) }))
}

impl Lineage {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = context.client().await?;
        let direction = encoded(&self.direction);
        let mut path = format!("/lineage/{}/{}?direction={direction}", encoded(&self.kind), encoded(&self.name));
        if let Some(nodes_max) = self.nodes_max {
            path.push_str(&format!("&nodes_max={nodes_max}"));
        }
        let lineage: Json = client.get(&path).await?;
        let part = if self.dot { "dot" } else { "text" };
        context.printer.result(&lineage, |lineage| lineage[part].as_str().unwrap_or_default().to_owned())
    }
}

impl Search {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = context.client().await?;
        let (words, kinds) = (self.words.join(" "), self.kind.join(","));
        let path = format!("/search?q={}&kind={}&limit={}", encoded(&words), encoded(&kinds), self.limit);
        let found: Json = client.get(&path).await?;
        context.printer.result(&found, |found| search_text(found, &words))
    }
}

fn search_text(found: &Json, words: &str) -> String {
    let hits = found["hits"].as_array().map(Vec::as_slice).unwrap_or_default();
    if hits.is_empty() {
        return format!("nothing has all of: {words}");
    }
    let part = |hit: &Json, name: &str| hit[name].as_str().unwrap_or_default().to_owned();
    let width = hits.iter().map(|hit| part(hit, "name").chars().count()).max().unwrap_or_default();
    let line = |hit: &Json| {
        let (kind, name, summary, owner) =
            (part(hit, "kind"), part(hit, "name"), part(hit, "summary"), part(hit, "owner"));
        let owner = if owner.is_empty() { owner } else { format!("  [{owner}]") };
        let state = match hit["state"].as_str() {
            Some(leaving) if leaving != "live" => format!("  ({leaving})"),
            _ => String::new(),
        };
        format!("{kind:<9} {name:<width$}  {summary}{owner}{state}").trim_end().to_owned()
    };
    let mut lines: Vec<String> = hits.iter().map(line).collect();
    if found["is_cut"] == true {
        lines.push("… there may be more: add a word, or --limit".to_owned());
    }
    lines.join("\n")
}
