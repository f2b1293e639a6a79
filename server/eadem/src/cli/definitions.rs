//! `init`, `plan`, `apply`: definitions between files and the registry.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use eadem_api::Problem;
use eadem_registry::definitions::{DefinitionFile, Definitions, TransformReference};
use futures::StreamExt as _;
use serde_json::{Value as Json, json};

use super::{Context, PROJECT_FILE};
use crate::client::{Client, Refused};
use crate::config::CONFIGURATION_TABLES;
use crate::output::Progress;

/// Make a project.
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// The folder; made if it is not there.
    #[arg(default_value = ".")]
    folder: PathBuf,
}

/// Show what apply would do. Transforms that the registry does not have are built and uploaded, which changes nothing
/// that is served.
#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// Run up to so many rows of history through the old and the new version of each view that gets one, and show what
    /// changes (without a number: 1000000; default: policy.effect_rows).
    #[arg(long, value_name = "ROWS", num_args = 0..=1, require_equals = true, default_missing_value = "1000000")]
    effect: Option<u64>,
    /// Do not look at history.
    #[arg(long, conflicts_with = "effect")]
    no_effect: bool,
}

/// Make the registry say what the files say.
#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// Apply the plan only if the registry is still at this revision, as `plan` showed it.
    #[arg(long)]
    revision: Option<i64>,
    /// Show what changes in up to so many rows of history, as `plan` does (without a number: 1000000).
    #[arg(long, value_name = "ROWS", num_args = 0..=1, require_equals = true, default_missing_value = "1000000")]
    effect: Option<u64>,
    /// Apply although the effect is beyond what `policy` tolerates, for this reason, which is kept.
    #[arg(long, value_name = "REASON")]
    accept: Option<String>,
}

const PROJECT_TEMPLATE: &str = r#"# A feature store project. Definitions may stand here and in features/*.toml; settings only here.
# `eadem config` shows every setting, its value and where it came from.

[server]
listen = "127.0.0.1:7878"
"#;

const FEATURES_TEMPLATE: &str = r#"# An entity is what features describe; a source is where rows come from; a view is a transform over a source.
#
# [entity.aircraft]
# keys = { tailnum = "utf8" }
#
# [source.planes]
# parquet = "data/planes.parquet"
# event_time = 2000-01-01T00:00:00Z          # data that does not change
#
# [view.plane_profile]
# entity = "aircraft"
# source = "planes"
# transform = "transforms/plane_profile"     # a folder to build (see `eadem new`), a .wasm, or name@sha256:…
#
# [service.my_model]
# features = ["plane_profile:*"]
"#;

impl Init {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        let project_file = self.folder.join(PROJECT_FILE);
        if project_file.exists() {
            bail!("{} is there already; nothing was changed", project_file.display());
        }
        std::fs::create_dir_all(self.folder.join("features"))
            .with_context(|| format!("cannot make {}", self.folder.display()))?;
        let files = [
            (project_file, PROJECT_TEMPLATE),
            (self.folder.join("features/example.toml"), FEATURES_TEMPLATE),
            (self.folder.join(".gitignore"), ".eadem/\ntarget/\n"),
        ];
        let mut written = Vec::new();
        for (path, text) in files {
            if !path.exists() {
                std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
                written.push(path);
            }
        }
        context.printer.result(&json!({ "written": written }), |_| {
            let files: Vec<String> = written.iter().map(|path| format!("wrote {}", path.display())).collect();
            format!("{}\nnext: eadem new my_transform, then describe it in features/", files.join("\n"))
        })
    }
}

impl Plan {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let project = context.project()?;
        let files = read_definitions(&project)?;
        let transforms = read_transforms(context, &project, &files)?;
        let client = context.client().await?;
        let transforms = upload_transforms(context, &client, transforms).await?;
        let mut request = json!({ "files": files, "transforms": transforms });
        if !self.no_effect {
            request["effect"] = self.effect.map_or_else(|| json!({}), |rows| json!({ "rows": rows }));
        }
        let plan = plan_with_progress(context, &client, &request).await?;
        context.printer.result(&plan, plan_text)
    }
}

impl Apply {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let project = context.project()?;
        let files = read_definitions(&project)?;
        let transforms = read_transforms(context, &project, &files)?;
        let client = context.client().await?;
        let transforms = upload_transforms(context, &client, transforms).await?;
        let mut request = json!({ "files": files, "transforms": transforms, "revision": self.revision });
        if let Some(rows) = self.effect {
            request["effect"] = json!({ "rows": rows });
        }
        if let Some(reason) = &self.accept {
            request["accept"] = json!(reason);
        }
        let plan: Json = client.post("/registry/apply", &request).await?;
        context.printer.result(&plan, plan_text)
    }
}

/// Plans, and shows how far the comparison of history is.
async fn plan_with_progress(context: &Context, client: &Client, request: &Json) -> anyhow::Result<Json> {
    let mut progress: Option<Progress> = None;
    let mut events = std::pin::pin!(client.post_events("/registry/plan", request).await?);
    let mut outcome = None;
    while let Some(event) = events.next().await {
        let mut event = event?;
        let told = &event["progress"];
        if told.is_object() {
            let (done, rows) =
                (told["rows_done"].as_u64().unwrap_or_default(), told["rows"].as_u64().unwrap_or_default());
            let view = told["view"].as_str().unwrap_or_default();
            let bar = progress.get_or_insert_with(|| Progress::new("effect on history", context.printer.format));
            bar.update(done, rows, view);
        } else {
            outcome = Some((event["plan"].take(), event["problem"].take()));
        }
    }
    if let Some(progress) = progress {
        progress.finish();
    }
    match outcome {
        Some((plan, Json::Null)) => Ok(plan),
        Some((_, problem)) => {
            let problem: Problem = serde_json::from_value(problem).context("the reply is not what was expected")?;
            Err(Refused(problem).into())
        }
        None => bail!("the server broke off before the plan was made; try again"),
    }
}

fn plan_text(plan: &Json) -> String {
    plan["text"].as_str().unwrap_or_default().to_owned()
}

/// `eadem.toml` and `features/*.toml`, sorted by name.
fn read_definitions(project: &Path) -> anyhow::Result<Vec<DefinitionFile>> {
    let mut paths = vec![project.join(PROJECT_FILE)];
    let folder = project.join("features");
    if folder.is_dir() {
        let entries = std::fs::read_dir(&folder)?.collect::<Result<Vec<_>, _>>()?;
        let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
        files.sort();
        paths.extend(files);
    }
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let relative = path.strip_prefix(project).unwrap_or(&path).display().to_string();
        Ok(DefinitionFile { path: relative, text })
    };
    paths.into_iter().map(read).collect()
}

/// A transform that the definitions name.
struct NamedTransform {
    /// As the definitions write it.
    reference: String,
    /// Where they do.
    place: String,
    component: Component,
}

enum Component {
    /// One that the registry should have.
    Uploaded(String),
    Bytes(Vec<u8>),
}

/// Reads the components that the definitions name, and builds those that are crates. Comes before the store is opened:
/// building may take minutes, and an open store is locked.
fn read_transforms(context: &Context, project: &Path, files: &[DefinitionFile]) -> anyhow::Result<Vec<NamedTransform>> {
    let definitions = Definitions::parse(files, CONFIGURATION_TABLES)?;
    let mut transforms = Vec::new();
    for (reference, place) in definitions.transform_references() {
        let component = match reference {
            TransformReference::Uploaded { digest, .. } => Component::Uploaded(digest.to_string()),
            TransformReference::Folder(folder) | TransformReference::File(folder) => {
                let path = project.join(folder);
                let bytes = super::authoring::component_bytes(context, &path)
                    .with_context(|| format!("{place}: transform `{folder}`"))?;
                Component::Bytes(bytes)
            }
        };
        transforms.push(NamedTransform { reference: reference.to_string(), place: place.to_string(), component });
    }
    Ok(transforms)
}

/// Makes sure that the registry has every transform the definitions name, and says which digest each is.
async fn upload_transforms(
    context: &Context,
    client: &Client,
    transforms: Vec<NamedTransform>,
) -> anyhow::Result<BTreeMap<String, String>> {
    let mut digests = BTreeMap::new();
    for NamedTransform { reference, place, component } in transforms {
        let digest = match component {
            Component::Uploaded(digest) => digest,
            Component::Bytes(bytes) => {
                let accepted = super::authoring::upload(client, bytes)
                    .await
                    .with_context(|| format!("{place}: transform `{reference}` was refused"))?;
                if !accepted.was_known {
                    context.printer.note(&accepted.line());
                }
                accepted.digest
            }
        };
        digests.insert(reference, digest);
    }
    Ok(digests)
}
