//! Compilation, in a child process: the compiler is outside the runtime's promise to survive hostile input.
//!
//! The child gets the request through standard input and answers through standard output. It limits its own memory and
//! processor time before it looks at the component, has an empty environment, and is killed when its time is over.

use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::config::EngineConfig;
use crate::flavour::{Flavour, as_usize};
use crate::state::cut_to;

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
    /// The child could not be started or talked to.
    #[error("the compiling process could not run: {0}")]
    Process(String),
}

#[derive(Serialize, Deserialize)]
struct Request {
    flavour: Flavour,
    cpu_seconds_max: u64,
    memory_bytes_max: u64,
    component_bytes: u64,
}

const REQUEST_BYTES_MAX: u64 = 4096;
const STDERR_BYTES_MAX: u64 = 64 * 1024;
const EXIT_REFUSED: u8 = 3;

/// Compiles a component in a child process.
///
/// # Errors
/// See [`CompileError`]; none of them says anything about a later component.
pub(crate) fn compile(config: &EngineConfig, flavour: Flavour, component: &[u8]) -> Result<Vec<u8>, CompileError> {
    let process = |what: &str, error: io::Error| CompileError::Process(format!("{what}: {error}"));
    let time_allowed = Duration::from_millis(config.compile_ms_max);
    let request = Request {
        flavour,
        cpu_seconds_max: time_allowed.as_secs() + 1,
        memory_bytes_max: config.compile_memory_bytes_max,
        component_bytes: component.len() as u64,
    };
    let deadline = Instant::now() + time_allowed;
    let mut child = Running::start(config)?;
    let (sender, answer) = mpsc::channel();
    let answer_bytes_max = config.artifact_bytes_max;
    child.read_output(answer_bytes_max, sender).map_err(|error| process("reading its answer", error))?;
    let complaint = child.read_complaint().map_err(|error| process("reading its complaint", error))?;
    child.send(&request, component.to_vec()).map_err(|error| process("sending the component", error))?;

    let answer = match answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(answer) => answer,
        Err(_) => {
            child.kill();
            return Err(CompileError::Time { ms: config.compile_ms_max });
        }
    };
    if answer.len() as u64 > answer_bytes_max {
        child.kill();
        return Err(CompileError::Size { bytes: answer_bytes_max });
    }
    let Some(status) = child.wait_until(deadline).map_err(|error| process("waiting for it", error))? else {
        child.kill();
        return Err(CompileError::Time { ms: config.compile_ms_max });
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
    let complains_of_memory =
        ["memory allocation of", "out of memory", "Cannot allocate memory"].iter().any(|text| complaint.contains(text));
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

/// A child that is killed and reaped at the latest when this goes out of scope.
struct Running(Child);

impl Running {
    fn start(config: &EngineConfig) -> Result<Self, CompileError> {
        let program = program(config)?;
        let child = Command::new(&program)
            .args(&config.compiler.args)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn();
        child.map(Self).map_err(|error| CompileError::Process(format!("{}: {error}", program.display())))
    }

    /// Sends from a thread, because a child that reads nothing would keep the sender for ever; killed, it lets it go.
    fn send(&mut self, request: &Request, component: Vec<u8>) -> io::Result<()> {
        let mut stdin = self.0.stdin.take().ok_or_else(|| io::Error::other("it has no standard input"))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        std::thread::Builder::new().name("compiler-input".to_owned()).spawn(move || {
            // A child that dies early closes the pipe; its exit status tells why it died.
            let _ = stdin.write_all(&line).and_then(|()| stdin.write_all(&component));
        })?;
        Ok(())
    }

    fn read_output(&mut self, bytes_max: u64, sender: mpsc::Sender<Vec<u8>>) -> io::Result<()> {
        let stdout = self.0.stdout.take().ok_or_else(|| io::Error::other("it has no standard output"))?;
        std::thread::Builder::new().name("compiler-output".to_owned()).spawn(move || {
            let mut answer = Vec::new();
            // What cannot be read counts as not written; the exit status tells.
            let _ = stdout.take(bytes_max.saturating_add(1)).read_to_end(&mut answer);
            let _ = sender.send(answer);
        })?;
        Ok(())
    }

    fn read_complaint(&mut self) -> io::Result<std::thread::JoinHandle<String>> {
        let stderr = self.0.stderr.take().ok_or_else(|| io::Error::other("it has no standard error"))?;
        std::thread::Builder::new().name("compiler-complaint".to_owned()).spawn(move || {
            let mut complaint = Vec::new();
            let _ = stderr.take(STDERR_BYTES_MAX).read_to_end(&mut complaint);
            String::from_utf8_lossy(&complaint).into_owned()
        })
    }

    /// How it ended; `None` if it still runs at the deadline, though it has closed its output.
    fn wait_until(&mut self, deadline: Instant) -> io::Result<Option<ExitStatus>> {
        const POLL: Duration = Duration::from_millis(1);
        loop {
            let status = self.0.try_wait()?;
            if status.is_some() || Instant::now() >= deadline {
                return Ok(status);
            }
            std::thread::sleep(POLL);
        }
    }

    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            self.kill();
        }
    }
}

fn program(config: &EngineConfig) -> Result<PathBuf, CompileError> {
    if !config.compiler.program.as_os_str().is_empty() {
        return Ok(config.compiler.program.clone());
    }
    this_executable().map_err(|error| CompileError::Process(format!("this executable: {error}")))
}

/// The running program itself, also when its file has been replaced by a newer one since.
#[cfg(target_os = "linux")]
fn this_executable() -> io::Result<PathBuf> {
    Ok(PathBuf::from("/proc/self/exe"))
}

#[cfg(not(target_os = "linux"))]
fn this_executable() -> io::Result<PathBuf> {
    std::env::current_exe()
}

/// The whole life of the child: reads one request, writes one artefact or complains. A program that may be named in
/// [`crate::CompilerCommand`] does nothing but this when it is called with its arguments.
pub fn child_main() -> ExitCode {
    match compile_one() {
        Ok(()) => ExitCode::SUCCESS,
        Err(complaint) => {
            eprintln!("{complaint}");
            ExitCode::from(EXIT_REFUSED)
        }
    }
}

fn compile_one() -> Result<(), String> {
    let mut stdin = io::stdin().lock();
    let request = read_request(&mut stdin)?;
    limit_this_process(&request)?;
    let mut component = Vec::with_capacity(as_usize(request.component_bytes));
    stdin.read_to_end(&mut component).map_err(|error| format!("reading the component: {error}"))?;
    if component.len() as u64 != request.component_bytes {
        return Err("the component is cut short".to_owned());
    }
    let engine = wasmtime::Engine::new(&request.flavour.compile_config()).map_err(|error| format!("{error:#}"))?;
    let code = engine.precompile_component(&component).map_err(|error| format!("{error:#}"))?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(&code).and_then(|()| stdout.flush()).map_err(|error| format!("writing the artefact: {error}"))
}

fn read_request(stdin: &mut impl Read) -> Result<Request, String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() as u64 <= REQUEST_BYTES_MAX {
        stdin.read_exact(&mut byte).map_err(|error| format!("reading the request: {error}"))?;
        if byte == *b"\n" {
            return serde_json::from_slice(&line).map_err(|error| format!("the request: {error}"));
        }
        line.push(byte[0]);
    }
    Err("the request is too long".to_owned())
}

/// From here on this process can neither grow, nor run, nor gain rights beyond what the request allows.
#[allow(unsafe_code)]
fn limit_this_process(request: &Request) -> Result<(), String> {
    set_limit(libc::RLIMIT_AS, request.memory_bytes_max)?;
    // At the lower limit comes SIGXCPU; at the upper one SIGKILL, which would look like a lack of memory.
    set_limits(libc::RLIMIT_CPU, request.cpu_seconds_max, request.cpu_seconds_max + 1)?;
    set_limit(libc::RLIMIT_CORE, 0)?;
    #[cfg(target_os = "linux")]
    {
        // SAFETY: both calls take plain numbers and change only this process.
        let outcome = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) | libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL)
        };
        if outcome != 0 {
            return Err(format!("prctl: {}", io::Error::last_os_error()));
        }
    }
    Ok(())
}

#[cfg(target_os = "linux")]
type Resource = libc::__rlimit_resource_t;
#[cfg(not(target_os = "linux"))]
type Resource = libc::c_int;

fn set_limit(resource: Resource, allowed: u64) -> Result<(), String> {
    set_limits(resource, allowed, allowed)
}

#[allow(unsafe_code)]
fn set_limits(resource: Resource, lower: u64, upper: u64) -> Result<(), String> {
    let limit = libc::rlimit { rlim_cur: lower, rlim_max: upper };
    // SAFETY: the pointer is to a structure of this frame, which the call only reads.
    let outcome = unsafe { libc::setrlimit(resource, &raw const limit) };
    if outcome != 0 {
        return Err(format!("setrlimit: {}", io::Error::last_os_error()));
    }
    Ok(())
}
