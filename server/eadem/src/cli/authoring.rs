//! `new`, `build`, `test`, `inspect`, `push`: from a function to an accepted component.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use arrow_array::ArrayRef;
use clap::Args;
use eadem_build::{BuildOptions, SdkLocation};
use eadem_engine::{Accepted, CallClass, Engine, UploadOptions, generate_rows, random_seed};
use eadem_values::{
    Constraint, Field, Literal, Value, array_from_values, canonicalize, value_at, value_from_json, value_to_json,
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Map, Value as Json, json};

use super::Context;
use crate::client::Client;
use crate::home::engine_config;
use crate::output::table;

/// Make a transform crate that builds and tests at once.
#[derive(Debug, Args)]
pub(crate) struct New {
    /// Name of the transform: lower case, digits and underscores. The crate is made in a folder of this name.
    name: String,
    /// Where to make it; default: `transforms/` of the project, else here.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// The folder that holds the SDK for Rust (`sdk/rust` of an eadem checkout).
    #[arg(long, env = "EADEM_SDK")]
    sdk: Option<PathBuf>,
}

/// Compile a transform crate to a component.
#[derive(Debug, Args)]
pub(crate) struct Build {
    /// The crate's folder.
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// Folder for the component; default: the crate's target folder.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Run a component in the production engine.
#[derive(Debug, Args)]
pub(crate) struct Test {
    /// A component, or a crate's folder to build.
    component: PathBuf,
    /// Rows: Parquet, or JSON lines with one object per row, by input name.
    #[arg(long)]
    rows: Option<PathBuf>,
    /// Number of generated rows where no file is given.
    #[arg(long, default_value_t = 1_000)]
    generate: u32,
    /// Seed of generated rows and of the laws; default: a random one, which is shown.
    #[arg(long)]
    seed: Option<u64>,
    /// Rows to show.
    #[arg(long, default_value_t = 10)]
    show: usize,
}

/// Show what a component says of itself.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// The component.
    component: PathBuf,
}

/// Upload components.
#[derive(Debug, Args)]
pub(crate) struct Push {
    /// Components, or crates' folders to build.
    #[arg(required = true)]
    components: Vec<PathBuf>,
    /// Compile them so that there is only one NaN, whatever the check finds. Slower.
    #[arg(long)]
    strict_nan: bool,
    /// Seed of the rows that the laws are checked on, to see a refusal again; default: a random one.
    #[arg(long)]
    seed: Option<u64>,
}

/// A component that the registry has.
pub(crate) struct Uploaded {
    name: String,
    pub(crate) digest: String,
    pub(crate) was_known: bool,
    reply: Json,
}

impl New {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        let sdk = self.sdk.map(Ok).unwrap_or_else(find_sdk)?;
        let parent = match (self.folder, context.project()) {
            (Some(folder), _) => folder,
            (None, Ok(project)) => project.join("transforms"),
            (None, Err(_)) => PathBuf::from("."),
        };
        let folder = eadem_build::new_crate(&parent, &self.name, &SdkLocation::Path(std::path::absolute(sdk)?))?;
        context.printer.result(&json!({ "folder": folder }), |_| {
            let folder = folder.display();
            format!("made {folder}\nnext: (cd {folder} && cargo test), then eadem test {folder}")
        })
    }
}

/// The SDK of the checkout that this binary was built in or stands in.
fn find_sdk() -> anyhow::Result<PathBuf> {
    let binary = std::env::current_exe()?;
    let here = std::env::current_dir()?;
    let candidates = binary.ancestors().chain(here.ancestors()).map(|folder| folder.join("sdk/rust"));
    let found = candidates.into_iter().find(|folder| folder.join("Cargo.toml").is_file());
    found.context("the SDK was not found; --sdk (or EADEM_SDK) names `sdk/rust` of an eadem checkout")
}

impl Build {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        let options = BuildOptions { out_dir: self.out, show_progress: true, ..BuildOptions::default() };
        let built = eadem_build::build_component(&self.folder, &options)?;
        for import in &built.foreign_imports {
            context.printer.note(&format!("warning: it imports `{import}`; the engine will refuse it"));
        }
        let report = json!({
            "name": built.name,
            "path": built.path,
            "bytes": built.bytes.len(),
            "digest": eadem_values::Digest::of(&built.bytes),
            "toolchain": built.what_it_chose,
        });
        context.printer.result(&report, |report| {
            let digest = report["digest"].as_str().unwrap_or_default();
            format!(
                "{} ({} bytes)\n{digest}\ntoolchain: {}",
                built.path.display(),
                built.bytes.len(),
                built.what_it_chose
            )
        })
    }
}

/// The component of a file, or of a crate's folder after building it.
fn component_bytes(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path.is_dir() {
        return Ok(eadem_build::build_component(path, &BuildOptions::default())?.bytes);
    }
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

impl Test {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        let bytes = component_bytes(&self.component)?;
        let scratch = tempfile::tempdir()?;
        let config = context.layered_without_project()?.config;
        let engine = Engine::new(engine_config(&config.engine, scratch.path())?)?;
        let seed = self.seed.unwrap_or_else(random_seed);
        let options = UploadOptions { seed, ..UploadOptions::default() };
        let accepted =
            engine.accept(&bytes, &options).with_context(|| format!("{} is refused", self.component.display()))?;
        let inputs = match &self.rows {
            Some(path) => read_inputs(path, &accepted.description.inputs)?,
            None => generate_rows(&accepted.description.inputs, self.generate, seed),
        };
        let rows = inputs.first().map_or(0, |column| column.len());
        let description = accepted.description.clone();
        let transform =
            engine.load(accepted.digest, || Ok(bytes), description, accepted.strict_nan, Some(accepted.cost))?;
        let applied = transform.apply(rows, &inputs, CallClass::Batch)?;
        let shown = rows.min(self.show);
        let row_json = |row: usize| -> anyhow::Result<Json> {
            let outcome = match applied.rows.failed.iter().find(|failed| failed.row as usize == row) {
                Some(failed) if failed.backtrace.is_empty() => json!({ "failed": failed.message }),
                Some(failed) => json!({ "failed": failed.message, "in": failed.backtrace.lines().collect::<Vec<_>>() }),
                None if applied.rows.dropped.contains(&(row as u32)) => json!("dropped"),
                None => object(&accepted.description.outputs, &applied.columns, row)?,
            };
            Ok(json!({ "row": row, "inputs": object(&accepted.description.inputs, &inputs, row)?, "outputs": outcome }))
        };
        let sample = (0..shown).map(row_json).collect::<anyhow::Result<Vec<_>>>()?;
        let report = json!({
            "accepted": accepted,
            "rows": rows,
            "dropped": applied.rows.dropped.len(),
            "failed": applied.rows.failed.len(),
            "sample": sample,
        });
        context.printer.result(&report, |_| test_text(&accepted, rows, &applied.rows, &sample))
    }
}

fn object(fields: &[Field], columns: &[ArrayRef], row: usize) -> anyhow::Result<Json> {
    let entry = |(field, column): (&Field, &ArrayRef)| {
        Ok((field.name.clone(), value_to_json(&value_at(column.as_ref(), row)?)))
    };
    Ok(Json::Object(fields.iter().zip(columns).map(entry).collect::<anyhow::Result<Map<_, _>>>()?))
}

fn test_text(accepted: &Accepted, rows: usize, outcomes: &eadem_engine::RowOutcomes, sample: &[Json]) -> String {
    let mut text = format!("{}\n", accepted_line(accepted));
    for row in sample {
        let _ = writeln!(text, "row {}: {} → {}", row["row"], row["inputs"], row["outputs"]);
    }
    let _ = writeln!(text, "{rows} rows: {} dropped, {} failed", outcomes.dropped.len(), outcomes.failed.len());
    let cost = &accepted.cost;
    if cost.batch_rows == 0 {
        text.push_str("cost: unknown; no row has a result, or a batch takes too long to be measured");
        return text;
    }
    let _ = write!(
        text,
        "cost: {:.0} fuel/row, {:.3} µs CPU/row, {:.1} µs CPU/call, {} KiB memory for {} rows",
        cost.fuel_per_row,
        cost.cpu_us_per_row,
        cost.cpu_us_per_call,
        cost.memory_bytes / 1024,
        cost.batch_rows
    );
    text
}

fn accepted_line(accepted: &Accepted) -> String {
    let evidence = &accepted.evidence;
    format!(
        "accepted {} {} (contract {}): no violation found in {} rows of seed {}{}",
        accepted.description.name,
        accepted.digest.short(),
        accepted.contract_version,
        evidence.rows,
        evidence.seed,
        if accepted.strict_nan { "; compiled with canonical NaNs" } else { "" },
    )
}

/// The declared inputs from a Parquet file or JSON lines.
fn read_inputs(path: &Path, fields: &[Field]) -> anyhow::Result<Vec<ArrayRef>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    if path.extension().is_some_and(|extension| extension == "parquet") {
        return read_parquet_inputs(path, file, fields);
    }
    let mut values: Vec<Vec<Value>> = vec![Vec::new(); fields.len()];
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let place = || format!("{}:{}", path.display(), number + 1);
        let row: Map<String, Json> = serde_json::from_str(&line).with_context(place)?;
        if let Some(unknown) = row.keys().find(|name| !fields.iter().any(|field| &field.name == *name)) {
            let names = fields.iter().map(|field| field.name.as_str());
            bail!("{}: no input `{unknown}`{}", place(), eadem_registry::definitions::did_you_mean(unknown, names));
        }
        for (column, field) in values.iter_mut().zip(fields) {
            let json = row.get(&field.name).unwrap_or(&Json::Null);
            let value = value_from_json(field.data_type, json)
                .with_context(|| format!("{}: input `{}`", place(), field.name))?;
            if value.is_null() && !field.accepts_null() {
                bail!("{}: input `{}` is not nullable", place(), field.name);
            }
            column.push(value);
        }
    }
    let column =
        |(field, values): (&Field, &Vec<Value>)| Ok(canonicalize(&array_from_values(field.data_type, values)?)?);
    fields.iter().zip(&values).map(column).collect()
}

fn read_parquet_inputs(path: &Path, file: File, fields: &[Field]) -> anyhow::Result<Vec<ArrayRef>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)
        .with_context(|| format!("{} is not a readable Parquet file", path.display()))?;
    let schema = reader.schema().clone();
    let batches = reader.build()?.collect::<Result<Vec<_>, _>>()?;
    let rows = arrow::compute::concat_batches(&schema, &batches)?;
    let column = |field: &Field| {
        let column = rows
            .column_by_name(&field.name)
            .with_context(|| format!("{} has no column `{}`, which the transform needs", path.display(), field.name))?;
        let column = arrow::compute::cast(column, &field.data_type.to_arrow())
            .with_context(|| format!("{}: column `{}`", path.display(), field.name))?;
        if column.null_count() > 0 && !field.accepts_null() {
            bail!("{}: column `{}` has nulls, the input is not nullable", path.display(), field.name);
        }
        Ok(canonicalize(&column)?)
    };
    fields.iter().map(column).collect()
}

impl Inspect {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        let bytes =
            std::fs::read(&self.component).with_context(|| format!("cannot read {}", self.component.display()))?;
        let inspection = eadem_engine::inspect(&bytes)?;
        let scratch = tempfile::tempdir()?;
        let config = context.layered_without_project()?.config;
        let engine = Engine::new(engine_config(&config.engine, scratch.path())?)?;
        let accepted = engine.accept(&bytes, &UploadOptions::default());
        let verdict = match &accepted {
            Ok(accepted) => accepted_line(accepted),
            Err(refusal) => format!("refused: {refusal}"),
        };
        let report = json!({
            "inspection": inspection,
            "description": accepted.as_ref().ok().map(|accepted| &accepted.description),
            "verdict": verdict,
        });
        context.printer.result(&report, |_| {
            let mut text = format!(
                "{}\n{}\n{} bytes, memory from {} KiB, imports: {}\n{verdict}\n",
                self.component.display(),
                inspection.digest,
                inspection.component_bytes,
                inspection.memory_bytes_min / 1024,
                if inspection.imports.is_empty() { "none".to_owned() } else { inspection.imports.join(", ") },
            );
            if let Ok(accepted) = &accepted {
                let description = &accepted.description;
                let totality = if description.total { "total" } else { "may drop or fail rows" };
                let _ = writeln!(
                    text,
                    "\n{} ({totality}; owner {})\n{}",
                    description.name, description.owner, description.doc
                );
                let _ = write!(
                    text,
                    "\ninputs\n{}\noutputs\n{}",
                    fields_table(&description.inputs),
                    fields_table(&description.outputs)
                );
            }
            text
        })
    }
}

fn fields_table(fields: &[Field]) -> String {
    let row = |field: &Field| {
        let constraints: Vec<String> = field.constraints.iter().map(constraint_text).collect();
        let nullable = if field.nullable { "nullable" } else { "" };
        vec![
            format!("  {}", field.name),
            field.data_type.to_string(),
            nullable.to_owned(),
            constraints.join(", "),
            field.doc.replace('\n', " "),
        ]
    };
    table(&["  name", "type", "", "constraints", "doc"], &fields.iter().map(row).collect::<Vec<_>>())
}

fn constraint_text(constraint: &Constraint) -> String {
    let literal = |literal: &Literal| match literal {
        Literal::Boolean(value) => value.to_string(),
        Literal::Int64(value) => value.to_string(),
        Literal::Float64(value) => value.to_string(),
        Literal::Utf8(value) => format!("{value:?}"),
    };
    match constraint {
        Constraint::Min(value) => format!("≥ {}", literal(value)),
        Constraint::Max(value) => format!("≤ {}", literal(value)),
        Constraint::Allowed(values) => format!("one of {}", values.iter().map(literal).collect::<Vec<_>>().join(" ")),
        Constraint::NotNull => "not null".to_owned(),
        Constraint::Length { min, max } => format!("length {min} to {max}"),
        Constraint::Unit(unit) => format!("in {unit}"),
    }
}

impl Push {
    /// The route with what was asked for.
    fn route(&self) -> String {
        let seed = self.seed.map(|seed| format!("&seed={seed}")).unwrap_or_default();
        format!("/transforms?strict_nan={}{seed}", self.strict_nan)
    }

    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = context.client().await?;
        let route = self.route();
        let mut replies = Vec::new();
        let mut refused = 0;
        for path in &self.components {
            match upload_to(&client, &route, component_bytes(path)?).await {
                Ok(uploaded) => {
                    context.printer.note(&uploaded.line());
                    replies.push(uploaded.reply);
                }
                Err(error) => {
                    context.printer.note(&format!("refused  {}: {error:#}", path.display()));
                    replies.push(json!({ "component": path, "refused": format!("{error:#}") }));
                    refused += 1;
                }
            }
        }
        if context.printer.format == crate::output::Format::Json {
            context.printer.result(&replies, |_| String::new())?;
        }
        if refused > 0 {
            bail!("{refused} of {} components were refused", self.components.len());
        }
        Ok(())
    }
}

/// Uploads one component, with everything left to the check.
pub(crate) async fn upload(client: &Client, bytes: Vec<u8>) -> anyhow::Result<Uploaded> {
    upload_to(client, "/transforms", bytes).await
}

async fn upload_to(client: &Client, route: &str, bytes: Vec<u8>) -> anyhow::Result<Uploaded> {
    let reply: Json = client.post_bytes(route, bytes).await?;
    Ok(Uploaded {
        name: reply["name"].as_str().unwrap_or_default().to_owned(),
        digest: reply["digest"].as_str().unwrap_or_default().to_owned(),
        was_known: !reply["is_new"].as_bool().unwrap_or(true),
        reply,
    })
}

impl Uploaded {
    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let verb = if self.was_known { "known   " } else { "accepted" };
        let rows = &self.reply["acceptance"]["laws_rows"];
        let digest: String = self.digest.chars().take("sha256:".len() + 12).collect();
        format!("{verb} {:24} {digest}  {} bytes, laws held on {rows} rows", self.name, self.reply["bytes"])
    }
}
