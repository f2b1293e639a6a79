//! `eadem`: the one binary.
//!
//! Every verb that touches the store goes through the routes of `eadem-api`: over HTTP where a server runs on the
//! project's directory, else through the same router in this process. There is no second way in.

mod access;
mod adapters;
mod cli;
mod client;
mod config;
mod dataset_diff;
mod dataset_request;
mod datasets;
mod effects;
mod erased_spines;
mod erasure;
mod home;
mod job_threads;
mod jobs;
mod load_record;
mod materialize;
mod online_backup;
mod output;
mod pace;
mod placement;
mod projects;
mod quarantine;
mod sizes;
mod tls;
mod upkeep;
mod workers;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use mimalloc::MiMalloc;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// The system's allocator costs requests a tenth of their time and training sets more.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Files and connections that a process may have open, where the system allows so many.
const OPEN_FILES_MAX: u64 = 1 << 20;

/// What is logged, as `EADEM_LOG` says.
///
/// A filter that knows targets and levels only costs a request nothing. The other one, which knows spans and fields, takes locks
/// whenever a request is entered or left.
fn log_filter() -> Box<dyn Layer<Registry> + Send + Sync> {
    let asked = std::env::var("EADEM_LOG").unwrap_or_default();
    if !asked.is_empty() {
        if let Ok(targets) = asked.parse::<Targets>() {
            return Box::new(targets);
        }
        if let Ok(filter) = EnvFilter::try_new(&asked) {
            return Box::new(filter);
        }
    }
    Box::new(Targets::new().with_default(LevelFilter::WARN).with_target("eadem", LevelFilter::INFO))
}

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    if cli.is_compile_child() {
        return eadem_engine::compiler::child_main();
    }
    let is_terminal = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(is_terminal).compact();
    tracing_subscriber::registry().with(log_filter()).with(log).init();
    // Each connection, data file and table takes one, and the usual limit of 1,024 is from other days.
    if let Err(error) = rlimit::increase_nofile_limit(OPEN_FILES_MAX) {
        tracing::debug!(%error, "the limit of open files stays as it was");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(cli::run(cli));
    // Threads of a job that is still at work are not waited for: what they have not committed nobody sees.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
