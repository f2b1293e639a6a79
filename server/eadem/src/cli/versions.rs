//! `describe`, `deprecate`, `retire`: versions once they are there.

use anyhow::bail;
use clap::Args;
use serde_json::{Value as Json, json};

use super::Context;
use crate::client::encoded;

/// Show one object with all that is known of it.
#[derive(Debug, Args)]
pub(crate) struct Describe {
    /// entity, source, transform, view, feature, service or dataset.
    kind: String,
    /// Its name: aircraft, plane_profile@1, plane_profile:seats, my_model@1, plane_profile@sha256:…, a training set's id.
    name: String,
}

/// Say that versions should not be used any more. They work as before; whoever names them anew is warned, and replies
/// that rest on them carry the headers `Deprecation` and `Warning`.
#[derive(Debug, Args)]
pub(crate) struct Deprecate {
    #[command(flatten)]
    what: Versions,
}

/// Stop serving versions. Refused while anything depends on them; their tables are kept.
#[derive(Debug, Args)]
pub(crate) struct Retire {
    #[command(flatten)]
    what: Versions,
}

#[derive(Debug, Args)]
struct Versions {
    /// transform, view or service.
    kind: String,
    /// `name@version`, of a transform `name@sha256:…`; without version, all versions that there are.
    name: String,
    /// What to do instead, for those who still use it.
    #[arg(long, value_name = "TEXT")]
    message: Option<String>,
    /// Take the mark away.
    #[arg(long, conflicts_with = "message")]
    undo: bool,
}

/// The kinds as people name one, and as routes name all.
const KINDS: &[(&str, &str)] = &[
    ("entity", "entities"),
    ("source", "sources"),
    ("transform", "transforms"),
    ("view", "views"),
    ("feature", "features"),
    ("service", "services"),
    ("dataset", "datasets"),
];

fn route_of(kind: &str) -> anyhow::Result<&'static str> {
    let found = KINDS.iter().find(|(one, all)| *one == kind || *all == kind);
    match found {
        Some((_, all)) => Ok(all),
        None => {
            let known: Vec<&str> = KINDS.iter().map(|(one, _)| *one).collect();
            bail!("no kind `{kind}`; kinds are {}", known.join(", "))
        }
    }
}

impl Describe {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let kind = route_of(&self.kind)?;
        let client = context.client().await?;
        if kind == "datasets" {
            let dataset: Json = client.get(&format!("/datasets/{}", encoded(&self.name))).await?;
            return context.printer.result(&dataset, dataset_text);
        }
        let include = if kind == "views" { "?include=tables" } else { "" };
        let object: Json = client.get(&format!("/registry/{kind}/{}{include}", encoded(&self.name))).await?;
        context.printer.result(&object, text_of)
    }
}

impl Deprecate {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        self.what.mark(context, "deprecate").await
    }
}

impl Retire {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        self.what.mark(context, "retire").await
    }
}

impl Versions {
    async fn mark(self, context: &Context, action: &str) -> anyhow::Result<()> {
        let kind = route_of(&self.kind)?;
        let client = context.client().await?;
        let path = format!("/registry/{kind}/{}/{action}", encoded(&self.name));
        let request = json!({ "message": self.message.unwrap_or_default(), "undo": self.undo });
        let marked: Json = client.post(&path, &request).await?;
        context.printer.result(&marked, text_of)
    }
}

/// A training set: what it was made of, and where it is. What its values look like `eadem dataset show` says.
fn dataset_text(dataset: &Json) -> String {
    let plain = |value: &Json| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let service = dataset["service"].as_array().map(Vec::as_slice).unwrap_or_default();
    let service = match service {
        [name, version] => format!("{}@{version}", plain(name)),
        _ => "a list of features".to_owned(),
    };
    let mut lines = vec![
        format!("dataset       {} ({})", plain(&dataset["name"]), plain(&dataset["id"])),
        format!("made          {}", plain(&dataset["created_at"])),
        format!("service       {service}"),
        format!("rows          {}", dataset["rows"]),
        format!("content       {}", plain(&dataset["content_digest"])),
        format!("output        {}", plain(&dataset["output"])),
    ];
    for column in dataset["columns"].as_array().into_iter().flatten() {
        let view = &column["view"];
        let role = column["role"].as_str().map(|role| format!(" for {role}")).unwrap_or_default();
        let from = format!("{}@{}:{}{role}", plain(&view["name"]), view["version"], plain(&column["feature"]));
        lines.push(format!("column        {} from {from}", plain(&column["name"])));
    }
    lines.join("\n")
}

fn text_of(reply: &Json) -> String {
    reply["text"].as_str().unwrap_or_default().to_owned()
}
