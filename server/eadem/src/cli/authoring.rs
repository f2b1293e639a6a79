//! `new`, `build`, `test`, `inspect`, `push`: from a function to an accepted component.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use arrow_array::{ArrayRef, BooleanArray};
use clap::Args;
use eadem_build::{BuildOptions, BuiltComponent, SdkLocation};
use eadem_engine::{
    Accepted, Applied, CallClass, Cost, Engine, FailureKind, Inspection, Refusal, Transform, UploadOptions, random_seed,
};
use eadem_query::{RefusedValue, ValidationPolicy, validate_outputs};
use eadem_values::{Constraint, Description, Digest, Field, Literal, value_at, value_to_json};
use serde_json::{Map, Value as Json, json};

use super::Context;
use super::input_rows::InputRows;
use crate::client::{Client, Refused};
use crate::home::engine_config;
use crate::output::{Format, table};

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
    /// A git repository that holds the SDK, instead of a folder.
    #[arg(long, value_name = "URL")]
    sdk_git: Option<String>,
    /// The commit of that repository; default: the newest.
    #[arg(long, requires = "sdk_git")]
    rev: Option<String>,
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
    /// Fail where the crate's Cargo.lock would change.
    #[arg(long)]
    locked: bool,
    /// Use only what is on this machine already.
    #[arg(long)]
    offline: bool,
    /// The component's own stack, a multiple of 16. More costs memory in every call.
    #[arg(long, default_value_t = eadem_build::DEFAULT_STACK_BYTES)]
    stack_bytes: u32,
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
    /// Rows to show; as many failed ones, and as many that break a constraint, are shown besides.
    #[arg(long, default_value_t = 10)]
    show: usize,
}

/// Show what a component says of itself.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// The component, or a crate's folder to build.
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
    /// Have them checked by the server as at an upload, and store nothing.
    #[arg(long)]
    dry_run: bool,
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
        let parent = match (self.folder, context.project()) {
            (Some(folder), _) => folder,
            (None, Ok(project)) => project.join("transforms"),
            (None, Err(_)) => PathBuf::from("."),
        };
        let sdk = match self.sdk_git {
            Some(url) => SdkLocation::Git { url, rev: self.rev },
            None => SdkLocation::folder(&self.sdk.map(Ok).unwrap_or_else(find_sdk)?, &parent)?,
        };
        let folder = eadem_build::new_crate(&parent, &self.name, &sdk)?;
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
    found.context(
        "the SDK was not found; --sdk (or EADEM_SDK) names `sdk/rust` of an eadem checkout, --sdk-git a repository",
    )
}

impl Build {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        let flags = [("--locked", self.locked), ("--offline", self.offline)];
        let options = BuildOptions {
            out_dir: self.out,
            stack_bytes: self.stack_bytes,
            cargo_args: flags.iter().filter(|(_, is_set)| *is_set).map(|(flag, _)| (*flag).to_owned()).collect(),
            show_progress: true,
            ..BuildOptions::default()
        };
        let built = eadem_build::build_components(&[&self.folder], &options)?;
        for component in &built {
            for import in &component.foreign_imports {
                let warning = format!("warning: {} imports `{import}`; the engine will refuse it", component.name);
                context.printer.note(&warning);
            }
        }
        let toolchain = built.first().map(|component| component.what_it_chose.clone()).unwrap_or_default();
        let components: Vec<Json> = built.iter().map(built_json).collect();
        context.printer.result(&json!({ "components": components, "toolchain": toolchain }), |_| {
            let lines: Vec<String> = built.iter().map(built_text).collect();
            format!("{}\ntoolchain: {toolchain}", lines.join("\n"))
        })
    }
}

fn built_json(component: &BuiltComponent) -> Json {
    json!({
        "name": component.name,
        "path": component.path,
        "bytes": component.bytes.len(),
        "digest": Digest::of(&component.bytes),
    })
}

fn built_text(component: &BuiltComponent) -> String {
    let digest = Digest::of(&component.bytes);
    format!("{} ({} bytes)\n{digest}", component.path.display(), component.bytes.len())
}

/// The component of a file, or of a crate's folder after building it.
pub(crate) fn component_bytes(context: &Context, path: &Path) -> anyhow::Result<Vec<u8>> {
    if path.is_dir() {
        let show_progress = context.printer.format == Format::Text;
        let options = BuildOptions { show_progress, ..BuildOptions::default() };
        return Ok(eadem_build::build_component(path, &options)?.bytes);
    }
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

impl Test {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        let bytes = component_bytes(context, &self.component)?;
        let scratch = tempfile::tempdir()?;
        let config = context.layered_without_project()?.config;
        let engine = Engine::new(engine_config(&config.engine, scratch.path())?)?;
        let seed = self.seed.unwrap_or_else(random_seed);
        let options = UploadOptions { seed, ..UploadOptions::default() };
        let accepted =
            engine.accept(&bytes, &options).with_context(|| format!("{} is refused", self.component.display()))?;
        let inputs = match &self.rows {
            Some(path) => InputRows::read(path, &accepted.description.inputs)?,
            None => InputRows::generated(&accepted.description.inputs, self.generate, seed),
        };
        let trial = Trial::run(&engine, &bytes, accepted, inputs)?;
        let report = trial.report(self.show)?;
        context.printer.result(&report, |report| trial.text(report))
    }
}

/// A component that was run over rows.
struct Trial {
    accepted: Accepted,
    inputs: InputRows,
    applied: Applied,
    /// The first broken constraint of each row that has one.
    broken: Vec<RefusedValue>,
    /// What the rows cost, and how many of them were measured.
    cost: Cost,
    measured_rows: usize,
}

impl Trial {
    fn run(engine: &Engine, component: &[u8], accepted: Accepted, inputs: InputRows) -> anyhow::Result<Self> {
        let transform = engine.load(
            accepted.digest,
            || Ok(component.to_vec()),
            accepted.description.clone(),
            accepted.strict_nan,
            Some(accepted.cost),
        )?;
        let applied = transform.apply(inputs.count, &inputs.columns, CallClass::Batch)?;
        let broken = broken_constraints(&accepted.description, &applied)?;
        let (cost, measured_rows) = measure(engine, component, &transform, &inputs, &applied)?;
        Ok(Self { accepted, inputs, applied, broken, cost, measured_rows })
    }

    /// Everything that is known of the trial, with the first `shown` rows of each kind.
    fn report(&self, shown: usize) -> anyhow::Result<Json> {
        let rows = &self.applied.rows;
        let sample =
            (0..self.inputs.count.min(shown)).map(|row| self.sample(row)).collect::<anyhow::Result<Vec<_>>>()?;
        let failures = rows.failed.iter().take(shown).map(|failed| {
            let mut entry = self.row(failed.row as usize)?;
            entry.insert("kind".to_owned(), failed.kind.as_str().into());
            entry.insert("message".to_owned(), failed.message.as_str().into());
            if !failed.backtrace.is_empty() {
                entry.insert("in".to_owned(), failed.backtrace.lines().collect::<Vec<_>>().into());
            }
            Ok(Json::Object(entry))
        });
        let breaks = self.broken.iter().take(shown).map(|value| {
            let mut entry = self.row(value.row)?;
            entry.insert("output".to_owned(), value.field.as_str().into());
            entry.insert("message".to_owned(), value.reason.as_str().into());
            Ok(Json::Object(entry))
        });
        Ok(json!({
            "accepted": self.accepted,
            "rows": self.inputs.count,
            "dropped": rows.dropped.len(),
            "failed": rows.failed.len(),
            "broken": self.broken.len(),
            "sample": sample,
            "failures": failures.collect::<anyhow::Result<Vec<_>>>()?,
            "breaks": breaks.collect::<anyhow::Result<Vec<_>>>()?,
            "cost": self.cost,
            "measured": { "rows": self.measured_rows, "from": self.inputs.origin() },
        }))
    }

    /// What names a row: its number, its place in a file, its inputs.
    fn row(&self, row: usize) -> anyhow::Result<Map<String, Json>> {
        let mut entry = Map::new();
        entry.insert("row".to_owned(), row.into());
        if let Some(place) = self.inputs.place_of(row) {
            entry.insert("at".to_owned(), place.into());
        }
        entry.insert("inputs".to_owned(), object(&self.accepted.description.inputs, &self.inputs.columns, row)?);
        Ok(entry)
    }

    fn sample(&self, row: usize) -> anyhow::Result<Json> {
        let rows = &self.applied.rows;
        let outcome = match rows.failed.iter().find(|failed| failed.row as usize == row) {
            Some(failed) => json!({ "failed": failed.message }),
            None if rows.dropped.contains(&(row as u32)) => json!("dropped"),
            None => object(&self.accepted.description.outputs, &self.applied.columns, row)?,
        };
        let mut entry = self.row(row)?;
        entry.insert("outputs".to_owned(), outcome);
        Ok(Json::Object(entry))
    }

    fn text(&self, report: &Json) -> String {
        let entries = |list: &str| report[list].as_array().cloned().unwrap_or_default();
        let word = |value: &Json| value.as_str().unwrap_or_default().to_owned();
        let mut text = format!("{}\n", accepted_line(&self.accepted));
        if let Some(fault) = &self.accepted.evidence.first_fault {
            let faulty_rows = self.accepted.evidence.faulty_rows;
            let _ = writeln!(text, "{faulty_rows} of these rows trapped or hit a limit; the first: {fault}");
        }
        for entry in entries("sample") {
            let _ = writeln!(text, "row {}: {} → {}", entry["row"], entry["inputs"], entry["outputs"]);
        }
        for entry in entries("failures") {
            let (kind, message) = (word(&entry["kind"]), word(&entry["message"]));
            let _ = writeln!(text, "failed ({kind}) {}: {message}\n  inputs {}", place_text(&entry), entry["inputs"]);
            for frame in entry["in"].as_array().into_iter().flatten() {
                let _ = writeln!(text, "  in {}", word(frame));
            }
        }
        for entry in entries("breaks") {
            let message = word(&entry["message"]);
            let _ = writeln!(text, "constraint {}: {message}\n  inputs {}", place_text(&entry), entry["inputs"]);
        }
        let rows = &self.applied.rows;
        let _ = writeln!(
            text,
            "{} rows: {} dropped, {} failed, {} with a value that breaks a constraint",
            self.inputs.count,
            rows.dropped.len(),
            rows.failed.len(),
            self.broken.len()
        );
        text.push_str(&self.cost_text());
        text
    }

    fn cost_text(&self) -> String {
        let cost = &self.cost;
        if cost.batch_rows == 0 {
            return "cost: not measured: no row has a result, or a batch of such rows exceeds a limit".to_owned();
        }
        format!(
            "cost: {:.0} fuel/row, {:.3} µs CPU/row, {:.1} µs CPU/call, {} KiB memory for {} rows\nmeasured: {} of {} rows \
             ({}), over and over in batches",
            cost.fuel_per_row,
            cost.cpu_us_per_row,
            cost.cpu_us_per_call,
            cost.memory_bytes / 1024,
            cost.batch_rows,
            self.measured_rows,
            self.inputs.count,
            self.inputs.origin()
        )
    }
}

/// `rows.jsonl:7`, or the row's number where it stands in no file.
fn place_text(entry: &Json) -> String {
    entry["at"].as_str().map_or_else(|| format!("row {}", entry["row"]), str::to_owned)
}

/// Rows whose outputs a view would have to refuse, by its `validation`.
fn broken_constraints(description: &Description, applied: &Applied) -> anyhow::Result<Vec<RefusedValue>> {
    let failed = applied.rows.failed.iter().map(|failed| failed.row);
    let without_result: HashSet<u32> = applied.rows.dropped.iter().copied().chain(failed).collect();
    let absent = |row: usize| without_result.contains(&(row as u32));
    let policy = ValidationPolicy::RefuseRow.into();
    let (_, broken) = validate_outputs(&description.outputs, applied.columns.clone(), &policy, &absent)?;
    Ok(broken)
}

/// The cost of these rows, without those that end a whole call, and how many went into it.
fn measure(
    engine: &Engine,
    component: &[u8],
    transform: &Transform,
    inputs: &InputRows,
    applied: &Applied,
) -> anyhow::Result<(Cost, usize)> {
    let ends_call = |kind: FailureKind| kind != FailureKind::RowError;
    let failed = applied.rows.failed.iter();
    let faulty: HashSet<u32> = failed.filter(|failed| ends_call(failed.kind)).map(|failed| failed.row).collect();
    let is_sound: BooleanArray = (0..inputs.count).map(|row| Some(!faulty.contains(&(row as u32)))).collect();
    let sound = inputs.columns.iter().map(|column| arrow::compute::filter(column, &is_sound));
    let cost = engine.measure(component, transform, &sound.collect::<Result<Vec<_>, _>>()?)?;
    Ok((cost, is_sound.true_count().min(cost.batch_rows as usize)))
}

fn object(fields: &[Field], columns: &[ArrayRef], row: usize) -> anyhow::Result<Json> {
    let entry = |(field, column): (&Field, &ArrayRef)| {
        Ok((field.name.clone(), value_to_json(&value_at(column.as_ref(), row)?)))
    };
    Ok(Json::Object(fields.iter().zip(columns).map(entry).collect::<anyhow::Result<Map<_, _>>>()?))
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

impl Inspect {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        let bytes = component_bytes(context, &self.component)?;
        let scratch = tempfile::tempdir()?;
        let config = context.layered_without_project()?.config;
        let engine = Engine::new(engine_config(&config.engine, scratch.path())?)?;
        let examined = Examined::of(&engine, &bytes)?;
        context.printer.result(&examined.report(), |_| examined.text(&self.component))
    }
}

/// All that can be found out about a file, refused or not.
struct Examined {
    digest: Digest,
    bytes: usize,
    /// None for what is no component.
    inspection: Option<Inspection>,
    description: Option<Description>,
    verdict: Result<Accepted, Refusal>,
}

impl Examined {
    fn of(engine: &Engine, bytes: &[u8]) -> anyhow::Result<Self> {
        let verdict = match engine.accept(bytes, &UploadOptions::default()) {
            Err(failure) if !failure.blames_component() => return Err(failure.into()),
            verdict => verdict,
        };
        let description = match &verdict {
            Ok(accepted) => Some(accepted.description.clone()),
            Err(_) => engine.describe(bytes).ok(),
        };
        let inspection = eadem_engine::inspect(bytes).ok();
        Ok(Self { digest: Digest::of(bytes), bytes: bytes.len(), inspection, description, verdict })
    }

    fn imports(&self) -> &[String] {
        match (&self.inspection, &self.verdict) {
            (Some(inspection), _) => &inspection.imports,
            (None, Err(Refusal::CoreModule { imports, .. })) => imports,
            _ => &[],
        }
    }

    fn report(&self) -> Json {
        let refused = |refusal: &Refusal| json!({ "code": refusal.code(), "message": refusal.to_string() });
        json!({
            "digest": self.digest,
            "bytes": self.bytes,
            "imports": self.imports(),
            "inspection": self.inspection,
            "description": self.description,
            "accepted": self.verdict.as_ref().ok(),
            "refused": self.verdict.as_ref().err().map(refused),
        })
    }

    fn text(&self, path: &Path) -> String {
        let verdict = match &self.verdict {
            Ok(accepted) => accepted_line(accepted),
            Err(refusal) => format!("refused [{}]: {refusal}", refusal.code()),
        };
        let memory = self.inspection.as_ref().map(|inspection| inspection.memory_bytes_min / 1024);
        let memory = memory.map_or(String::new(), |kib| format!(", memory from {kib} KiB"));
        let imports = if self.imports().is_empty() { "none".to_owned() } else { self.imports().join(", ") };
        let mut text = format!(
            "{}\n{}\n{} bytes{memory}, imports: {imports}\n{verdict}\n",
            path.display(),
            self.digest,
            self.bytes
        );
        if let Some(description) = &self.description {
            text.push_str(&description_text(description));
        }
        text
    }
}

fn description_text(description: &Description) -> String {
    let totality = if description.total { "total" } else { "may drop or fail rows" };
    format!(
        "\n{} ({totality}; owner {})\n{}\n\ninputs\n{}\noutputs\n{}",
        description.name,
        description.owner,
        description.doc,
        fields_table(&description.inputs),
        fields_table(&description.outputs)
    )
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
        format!("/transforms?strict_nan={}&dry_run={}{seed}", self.strict_nan, self.dry_run)
    }

    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        // Building may take minutes, and an open store is locked: everything is built first.
        context.project()?;
        let built: Vec<anyhow::Result<Vec<u8>>> =
            self.components.iter().map(|path| component_bytes(context, path)).collect();
        let client = context.client().await?;
        let route = self.route();
        let mut replies = Vec::new();
        let mut refused = 0;
        for (path, bytes) in self.components.iter().zip(built) {
            let uploaded = match bytes {
                Ok(bytes) => upload_to(&client, &route, bytes).await,
                Err(error) => Err(error),
            };
            match uploaded {
                Ok(uploaded) => {
                    context.printer.note(&uploaded.line());
                    replies.push(uploaded.reply);
                }
                Err(error) => {
                    context.printer.note(&format!("refused  {}: {error:#}", path.display()));
                    replies.push(refusal_json(path, &error));
                    refused += 1;
                }
            }
        }
        if context.printer.format == Format::Json {
            context.printer.result(&replies, |_| String::new())?;
        }
        if refused > 0 {
            bail!("{refused} of {} components were refused", self.components.len());
        }
        Ok(())
    }
}

/// What is known of a component that was not taken: with code, law, seed, row and field as in the problem document.
fn refusal_json(path: &Path, error: &anyhow::Error) -> Json {
    let mut reply = json!({ "component": path, "refused": format!("{error:#}"), "code": null });
    if let Some(Refused(problem)) = error.downcast_ref::<Refused>() {
        reply["code"] = json!(problem.code);
        if let Ok(Json::Object(finding)) = serde_json::to_value(problem.finding.as_ref()) {
            for (name, value) in finding {
                reply[name] = value;
            }
        }
    }
    reply
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
        let is_dry_run = self.reply["dry_run"].as_bool().unwrap_or(false);
        let verb = match (self.was_known, is_dry_run) {
            (true, _) => "known   ",
            (false, false) => "accepted",
            (false, true) => "would be accepted",
        };
        let rows = &self.reply["acceptance"]["laws_rows"];
        let digest: String = self.digest.chars().take("sha256:".len() + 12).collect();
        format!("{verb} {:24} {digest}  {} bytes, laws held on {rows} rows", self.name, self.reply["bytes"])
    }
}
