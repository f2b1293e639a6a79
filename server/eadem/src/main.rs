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
mod materialize;
mod online_backup;
mod output;
mod placement;
mod projects;
mod quarantine;
mod tls;
mod upkeep;
mod workers;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use mimalloc::MiMalloc;
use tracing_subscriber::EnvFilter;

/// The system's allocator costs requests a tenth of their time and training sets more.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Files and connections that a process may have open, where the system allows so many.
const OPEN_FILES_MAX: u64 = 1 << 20;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    if cli.is_compile_child() {
        return eadem_engine::compiler::child_main();
    }
    let filter = EnvFilter::try_from_env("EADEM_LOG").unwrap_or_else(|_| EnvFilter::new("warn,eadem=info"));
    let is_terminal = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(is_terminal);
    log.compact().init();
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
