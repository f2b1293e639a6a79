//! The verbs.

mod access;
mod audit;
mod authoring;
mod data;
mod definitions;
mod demo;
mod erase;
mod input_rows;
mod jobs;
mod operate;
mod quarantine;
mod versions;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use axum::Router;
use clap::{Args, Parser, Subcommand};
use eadem_registry::DEFAULT_PROJECT;

use crate::client::Client;
use crate::config::{self, Config, Layered};
use crate::home::{Beside, Home, OpenError};
use crate::output::{Format, Printer};
use crate::tls::Trust;

/// A feature store whose feature logic is WebAssembly: what trained the model is what serves it, bit for bit.
#[derive(Debug, Parser)]
#[command(name = "eadem", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Folder of the project; default: the nearest one upwards that has an eadem.toml.
    #[arg(long, global = true, env = "EADEM_HOME")]
    project: Option<PathBuf>,
    /// The project on the server, or in this folder, that the verb is about; default: the one that the token is for.
    #[arg(long, global = true, value_name = "NAME", env = "EADEM_PROJECT")]
    in_project: Option<String>,
    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value_t)]
    output: Format,
    /// Overrides a setting: --set server.listen=127.0.0.1:9000. `eadem config` lists them.
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// A server to work with, instead of the project's own: https://features.example.com.
    #[arg(long, global = true, value_name = "URL", env = "EADEM_SERVER")]
    server: Option<String>,
    /// A PEM file with the authorities that vouch for the server, beside those that everybody trusts.
    #[arg(long, global = true, value_name = "FILE", env = "EADEM_SERVER_CA")]
    server_ca: Option<PathBuf>,
    /// A file with the token to send, which only its owner may read; or set EADEM_TOKEN.
    #[arg(long, global = true, value_name = "FILE", env = "EADEM_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a project: eadem.toml, features/ and what belongs beside them.
    Init(definitions::Init),
    /// Make a transform crate that builds and tests at once.
    New(authoring::New),
    /// Compile a transform crate to a component.
    Build(authoring::Build),
    /// Run a component in the production engine over rows of a file or generated ones, with a cost report.
    Test(authoring::Test),
    /// Show what a component says of itself, its digest, size and imports.
    Inspect(authoring::Inspect),
    /// Upload components; each acceptance or refusal is shown.
    Push(authoring::Push),
    /// Show what apply would do.
    Plan(definitions::Plan),
    /// Make the registry say what the files say, in one transaction.
    Apply(definitions::Apply),
    /// Compute views over history into the offline store.
    Backfill(operate::Backfill),
    /// Load the online store from the offline store.
    Materialize(operate::Materialize),
    /// Serve features over HTTP.
    Serve(operate::Serve),
    /// Ask for the features of an entity, now or at a past instant.
    Get(data::Get),
    /// Make, list, show and rebuild training sets.
    #[command(subcommand)]
    Dataset(data::Dataset),
    /// Compare served values with training values, bit for bit.
    Audit(audit::Audit),
    /// Show where an object comes from and what depends on it.
    Lineage(data::Lineage),
    /// Find entities, sources, transforms, views, features and services by words.
    Search(data::Search),
    /// Show one object with its versions, its history, its tables and what depends on it.
    Describe(versions::Describe),
    /// Say that versions work as before and should not be used any more.
    Deprecate(versions::Deprecate),
    /// Stop serving versions that nothing depends on.
    Retire(versions::Retire),
    /// List, show, resume, cancel and share jobs.
    #[command(subcommand)]
    Jobs(jobs::JobsVerb),
    /// Erase entities everywhere, up to an instant, for good.
    Erase(erase::Erase),
    /// List, show and replay refused rows.
    #[command(subcommand)]
    Quarantine(quarantine::QuarantineVerb),
    /// Show every setting, its value and where it came from.
    Config,
    /// Look after the offline tables: put small files together, delete what is not needed any more.
    #[command(subcommand)]
    Offline(operate::Offline),
    /// Show what the online store holds.
    #[command(subcommand)]
    Online(operate::Online),
    /// Make, list and end tokens, by which people and programs are let in.
    #[command(subcommand)]
    Token(access::TokenVerb),
    /// Who did what, when and from where: list, check and export it.
    #[command(subcommand)]
    Trail(access::TrailVerb),
    /// Make and list projects, and say how much each may have.
    #[command(name = "project", subcommand)]
    Projects(access::ProjectVerb),
    /// Run the whole loop on real flights: build, apply, backfill, materialize, train, serve, audit.
    Demo(demo::Demo),
    /// The compiler of components, in a process of its own.
    #[command(hide = true)]
    CompileChild,
}

/// What every verb gets.
pub(crate) struct Context {
    pub(crate) global: Global,
    pub(crate) printer: Printer,
}

/// Runs the verb of the command line.
pub(crate) async fn run(cli: Cli) -> anyhow::Result<()> {
    let context = Context { printer: Printer { format: cli.global.output }, global: cli.global };
    match cli.verb {
        Verb::Init(verb) => verb.run(&context),
        Verb::New(verb) => verb.run(&context),
        Verb::Build(verb) => verb.run(&context),
        Verb::Test(verb) => verb.run(&context),
        Verb::Inspect(verb) => verb.run(&context),
        Verb::Push(verb) => verb.run(&context).await,
        Verb::Plan(verb) => verb.run(&context).await,
        Verb::Apply(verb) => verb.run(&context).await,
        Verb::Backfill(verb) => verb.run(&context).await,
        Verb::Materialize(verb) => verb.run(&context).await,
        Verb::Serve(verb) => verb.run(&context).await,
        Verb::Get(verb) => verb.run(&context).await,
        Verb::Dataset(verb) => verb.run(&context).await,
        Verb::Audit(verb) => verb.run(&context).await,
        Verb::Lineage(verb) => verb.run(&context).await,
        Verb::Search(verb) => verb.run(&context).await,
        Verb::Describe(verb) => verb.run(&context).await,
        Verb::Deprecate(verb) => verb.run(&context).await,
        Verb::Retire(verb) => verb.run(&context).await,
        Verb::Jobs(verb) => verb.run(&context).await,
        Verb::Erase(verb) => verb.run(&context).await,
        Verb::Quarantine(verb) => verb.run(&context).await,
        Verb::Config => operate::show_config(&context),
        Verb::Offline(verb) => verb.run(&context).await,
        Verb::Online(verb) => verb.run(&context).await,
        Verb::Token(verb) => verb.run(&context).await,
        Verb::Trail(verb) => verb.run(&context).await,
        Verb::Projects(verb) => verb.run(&context).await,
        Verb::Demo(verb) => verb.run(&context).await,
        // Handled before the runtime starts.
        Verb::CompileChild => Ok(()),
    }
}

impl Cli {
    /// Whether this process is the compiler child, which starts no runtime and logs nothing.
    pub(crate) fn is_compile_child(&self) -> bool {
        matches!(self.verb, Verb::CompileChild)
    }
}

/// Beside whom a verb works on the project's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WorksBeside {
    Nobody,
    /// Other verbs; a server is asked to do it.
    Verbs,
    /// A server too.
    Everybody,
}

/// The name of the file that makes a folder a project.
pub(crate) const PROJECT_FILE: &str = "eadem.toml";

impl Context {
    /// The project's folder.
    pub(crate) fn project(&self) -> anyhow::Result<PathBuf> {
        if let Some(project) = &self.global.project {
            let folder = project.canonicalize().with_context(|| format!("no folder {}", project.display()))?;
            if !folder.join(PROJECT_FILE).is_file() {
                bail!("{} has no {PROJECT_FILE}; `eadem init` makes one", folder.display());
            }
            return Ok(folder);
        }
        let here = std::env::current_dir()?;
        let project = here.ancestors().find(|folder| folder.join(PROJECT_FILE).is_file());
        project.map(Path::to_path_buf).with_context(|| {
            format!(
                "no {PROJECT_FILE} in {} or above it; `eadem init` makes one, --project names another folder",
                here.display()
            )
        })
    }

    /// The project's configuration.
    pub(crate) fn layered(&self) -> anyhow::Result<Layered> {
        config::load(&self.project()?.join(PROJECT_FILE), &self.global.set)
    }

    /// The configuration where a project is not needed: defaults, environment and flags. One that is named must be there.
    pub(crate) fn layered_without_project(&self) -> anyhow::Result<Layered> {
        match self.project() {
            Err(error) if self.global.project.is_some() => Err(error),
            Ok(project) => config::load(&project.join(PROJECT_FILE), &self.global.set),
            Err(_) => config::load(Path::new(PROJECT_FILE), &self.global.set),
        }
    }

    /// The routes: of the server that was named, of the one that runs on the project's directory, else of this process.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        self.client_beside(WorksBeside::Nobody).await
    }

    /// The same for verbs about jobs, which also work beside a verb that holds the directory: that one may well be at the
    /// job in question.
    pub(crate) async fn client_of_jobs(&self) -> anyhow::Result<Client> {
        self.client_beside(WorksBeside::Verbs).await
    }

    /// The same for verbs about people: whoever owns the directory needs no token, also while a server runs on it. Otherwise
    /// nobody could make the first one, or one more after the last was lost.
    pub(crate) async fn client_of_owner(&self) -> anyhow::Result<Client> {
        self.client_beside(WorksBeside::Everybody).await
    }

    async fn client_beside(&self, beside: WorksBeside) -> anyhow::Result<Client> {
        if let Some(client) = self.named_server()? {
            return Ok(client);
        }
        let (project, config) = (self.project()?, self.layered()?.config);
        match Home::open(&project, &config).await {
            Ok(home) => self.in_process(home.router()),
            Err(OpenError::Serving { address }) if beside != WorksBeside::Everybody => {
                self.local_server(&project, &config, &address)
            }
            Err(OpenError::Busy(error)) if beside == WorksBeside::Nobody => Err(error.into()),
            Err(OpenError::Serving { .. } | OpenError::Busy(_)) => {
                self.in_process(Beside::open(&project, &config).await?.router())
            }
            Err(OpenError::Other(error)) => Err(error),
        }
    }

    fn named_server(&self) -> anyhow::Result<Option<Client>> {
        let Some(url) = &self.global.server else { return Ok(None) };
        let trust = Trust::Authorities(self.global.server_ca.clone());
        self.about(Client::remote(url, self.token()?.as_deref(), &trust)?).map(Some)
    }

    /// A client of the server that runs on this project's directory.
    pub(crate) fn local_server(&self, project: &Path, config: &Config, address: &str) -> anyhow::Result<Client> {
        let files = config.server.certificate_files(project)?;
        let trust = files.map_or(Trust::Authorities(None), |(certificate, _)| Trust::Exactly(certificate));
        self.about(Client::local(address, self.token()?.as_deref(), &trust)?)
    }

    fn in_process(&self, router: Router) -> anyhow::Result<Client> {
        // What the verb starts, it waits for: this process does nothing else.
        eadem_engine::use_small_pages();
        self.about(Client::in_process(router))
    }

    /// A client whose requests are about the project that was named.
    fn about(&self, client: Client) -> anyhow::Result<Client> {
        match &self.global.in_project {
            Some(project) => client.in_project(project),
            None => Ok(client),
        }
    }

    /// The project that the verb is about where there is no token.
    pub(crate) fn project_name(&self) -> &str {
        self.global.in_project.as_deref().unwrap_or(DEFAULT_PROJECT)
    }

    /// The token to send: from the file that was named, else from the environment.
    fn token(&self) -> anyhow::Result<Option<String>> {
        if let Some(file) = &self.global.token_file {
            return read_token_file(file).map(Some);
        }
        match std::env::var(TOKEN_VARIABLE) {
            Ok(token) if token.trim().is_empty() => Ok(None),
            Ok(token) => Ok(Some(token.trim().to_owned())),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => bail!("{TOKEN_VARIABLE} is not UTF-8"),
        }
    }
}

/// The variable that holds a token.
const TOKEN_VARIABLE: &str = "EADEM_TOKEN";

/// A token in a file that nobody but its owner can read.
fn read_token_file(file: &Path) -> anyhow::Result<String> {
    let shown = file.display();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let metadata = std::fs::metadata(file).with_context(|| format!("cannot read {shown}"))?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            bail!("{shown} holds a token and has the mode {mode:04o}, so others can read it; chmod 600 {shown}");
        }
    }
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {shown}"))?;
    let token = text.trim();
    if token.is_empty() {
        bail!("{shown} is empty; it shall hold a token");
    }
    Ok(token.to_owned())
}

/// `name=value` of a repeatable flag.
pub(crate) fn name_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("expected name=value, found `{text}`")),
    }
}
