//! Compilation, in a child process: the compiler is outside the runtime's promise to survive hostile input.

use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use crate::child::{self, EXIT_REFUSED, MemoryLimit, Request, Running, Stop, Task, wait_for};
use crate::config::EngineConfig;
use crate::flavour::Flavour;
use crate::state::cut_to;
use crate::upload::CheckPriority;

/// Why a component was not compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// It took too long.
    #[error("compiling took longer than {ms} ms (compile_ms_max)")]
    Time {
        /// `compile_ms_max`.
        ms: u64,
    },
    /// It took too much memory.
    #[error("compiling took more memory than {bytes} bytes (compile_memory_bytes_max), or than this machine has")]
    Memory {
        /// `compile_memory_bytes_max`.
        bytes: u64,
    },
    /// The machine code is larger than allowed.
    #[error("the machine code is larger than {bytes} bytes (artifact_bytes_max)")]
    Size {
        /// `artifact_bytes_max`.
        bytes: u64,
    },
    /// The compiler refused it, and said why.
    #[error("the compiler refused it: {0}")]
    Refused(String),
    /// The compiler died over it.
    #[error("the compiler died ({0})")]
    Died(String),
    /// Whoever wanted it has called it off, or its turn did not come in time. Of a check only.
    #[error("compiling was not finished")]
    Unfinished,
    /// The child could not be started or talked to.
    #[error("the compiling process could not run: {0}")]
    Process(String),
}

/// For whom a child works.
#[derive(Clone, Copy)]
pub(crate) enum Manner<'a> {
    /// Somebody waits: it runs like this process, and wall time is limited.
    Prompt,
    /// For a check, which knows how long it may take: only its processor time is limited as a compilation's.
    OfCheck {
        /// How it runs.
        priority: CheckPriority,
        /// From then on it is not waited for.
        until: Instant,
        /// Ends it at once.
        stop: &'a Stop,
    },
}

/// Compiles a component in a child process.
///
/// # Errors
/// See [`CompileError`]; none of them says anything about a later component.
pub(crate) fn compile(
    config: &EngineConfig,
    flavour: Flavour,
    manner: Manner<'_>,
    component: &[u8],
) -> Result<Vec<u8>, CompileError> {
    let process = |what: &str, error: io::Error| CompileError::Process(format!("{what}: {error}"));
    let time_allowed = Duration::from_millis(config.compile_ms_max);
    let request = Request {
        task: Task::Compile { flavour },
        cpu_seconds_max: time_allowed.as_secs() + 1,
        memory: MemoryLimit::AddressSpace(config.compile_memory_bytes_max),
        is_background: matches!(manner, Manner::OfCheck { priority: CheckPriority::Lowest, .. }),
        component_bytes: component.len() as u64,
    };
    let (deadline, stop, late) = match manner {
        Manner::Prompt => (Instant::now() + time_allowed, None, CompileError::Time { ms: config.compile_ms_max }),
        Manner::OfCheck { until, stop, .. } => (until, Some(stop), CompileError::Unfinished),
    };
    let mut child = Running::start(config).map_err(CompileError::Process)?;
    let answer_bytes_max = config.artifact_bytes_max;
    let answer = child.read_output(answer_bytes_max).map_err(|error| process("reading its answer", error))?;
    let complaint = child.read_complaint().map_err(|error| process("reading its complaint", error))?;
    let input = child.input().map_err(|error| process("sending the component", error))?;
    input.send_request(&request).map_err(|error| process("sending the request", error))?;
    input.send(component.to_vec());
    // Closed: there is no more.
    drop(input);

    let Ok(answer) = wait_for(&answer, deadline, stop) else {
        child.kill();
        return Err(late);
    };
    if answer.len() as u64 > answer_bytes_max {
        child.kill();
        return Err(CompileError::Size { bytes: answer_bytes_max });
    }
    let Some(status) = child.wait_until(deadline).map_err(|error| process("waiting for it", error))? else {
        child.kill();
        return Err(late);
    };
    if status.success() {
        return Ok(answer);
    }
    let complaint = complaint.join().unwrap_or_default();
    Err(explain(status, complaint.trim(), config))
}

fn explain(status: ExitStatus, complaint: &str, config: &EngineConfig) -> CompileError {
    if status.signal() == Some(libc::SIGXCPU) {
        return CompileError::Time { ms: config.compile_ms_max };
    }
    // A child that this process kills is not explained, and for its processor time it gets another signal: what kills
    // it like this is the machine, for its memory.
    let was_killed = status.signal() == Some(libc::SIGKILL);
    let complains_of_memory = child::complains_of_memory(complaint);
    let was_refused = status.code() == Some(i32::from(EXIT_REFUSED));
    if was_killed || complains_of_memory {
        return CompileError::Memory { bytes: config.compile_memory_bytes_max };
    }
    if was_refused {
        return CompileError::Refused(cut_to(complaint, config.message_bytes_max as usize).to_owned());
    }
    let first_line = complaint.lines().next().unwrap_or_default();
    CompileError::Died(format!("{status}; {first_line}"))
}

/// The whole life of the child: reads one request, compiles or checks, and answers or complains. A program that may be named
/// in [`crate::CompilerCommand`] does nothing but this when it is called with its arguments.
pub fn child_main() -> ExitCode {
    match child::serve_one() {
        Ok(()) => ExitCode::SUCCESS,
        Err(complaint) => {
            eprintln!("{complaint}");
            ExitCode::from(EXIT_REFUSED)
        }
    }
}

/// In the child: compiles, and writes the artefact.
pub(crate) fn compile_here(flavour: Flavour, component: &[u8]) -> Result<(), String> {
    let engine = wasmtime::Engine::new(&flavour.compile_config()).map_err(|error| format!("{error:#}"))?;
    let code = engine.precompile_component(component).map_err(|error| format!("{error:#}"))?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(&code).and_then(|()| stdout.flush()).map_err(|error| format!("writing the artefact: {error}"))
}
