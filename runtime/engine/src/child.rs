//! Child processes, in which components are compiled and tried.
//!
//! A child gets one request through standard input and answers through standard output. It limits its own memory and processor
//! time before it looks at the component, has an empty environment, and is killed when its time is over, when nobody wants its
//! answer any more, or when this process ends.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::compiler;
use crate::config::EngineConfig;
use crate::flavour::{Flavour, as_usize};
use crate::priority::step_back_as_process;
use crate::upload::{UploadOptions, try_here};

/// What a child is to do.
#[derive(Serialize, Deserialize)]
pub(crate) enum Task {
    /// Compile, and answer with the artefact.
    Compile { flavour: Flavour },
    /// Run the laws, and answer in messages.
    Try { config: Box<EngineConfig>, options: UploadOptions },
}

/// How the memory of a child is limited.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum MemoryLimit {
    /// All of its address space.
    AddressSpace(u64),
    /// What it can write to. For a child that reserves far more addresses than it uses.
    Data(u64),
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) task: Task,
    pub(crate) cpu_seconds_max: u64,
    pub(crate) memory: MemoryLimit,
    /// Whether it shall run only where nothing else wants to.
    pub(crate) is_background: bool,
    pub(crate) component_bytes: u64,
}

const REQUEST_BYTES_MAX: u64 = 64 * 1024;
const STDERR_BYTES_MAX: u64 = 64 * 1024;
/// How often somebody who waits looks whether he still has to.
const POLL: Duration = Duration::from_millis(20);
pub(crate) const EXIT_REFUSED: u8 = 3;

/// Calls something off that runs in the background, from another thread. All clones call off the same.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Calls it off, for good.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_called(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Nothing came: the time is over, it was called off, or nobody is there to send anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NothingCame;

/// Waits for a message until then, or until it is called off.
pub(crate) fn wait_for<T>(messages: &Receiver<T>, until: Instant, stop: Option<&Stop>) -> Result<T, NothingCame> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || stop.is_some_and(Stop::is_called) {
            return Err(NothingCame);
        }
        let wait = if stop.is_some() { left.min(POLL) } else { left };
        match messages.recv_timeout(wait) {
            Ok(message) => return Ok(message),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(NothingCame),
        }
    }
}

/// Whether a process that has ended says that it got no memory.
pub(crate) fn complains_of_memory(complaint: &str) -> bool {
    ["memory allocation of", "out of memory", "Cannot allocate memory"].iter().any(|text| complaint.contains(text))
}

/// A child that is killed and reaped at the latest when this goes out of scope.
pub(crate) struct Running(Child);

/// What a child reads. It is sent from a thread, because a child that reads nothing would keep the sender for ever; killed, it
/// lets it go.
pub(crate) struct Input(Sender<Vec<u8>>);

impl Input {
    pub(crate) fn send_request(&self, request: &Request) -> io::Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.send(line);
        Ok(())
    }

    /// A child that dies early closes the pipe; its exit status tells why it died.
    pub(crate) fn send(&self, bytes: Vec<u8>) {
        let _ = self.0.send(bytes);
    }
}

impl Running {
    pub(crate) fn start(config: &EngineConfig) -> Result<Self, String> {
        let program = program(config)?;
        let child = Command::new(&program)
            .args(&config.compiler.args)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn();
        child.map(Self).map_err(|error| format!("{}: {error}", program.display()))
    }

    /// The child's standard input; it ends when this is dropped.
    pub(crate) fn input(&mut self) -> io::Result<Input> {
        let mut stdin: ChildStdin = self.0.stdin.take().ok_or_else(|| io::Error::other("it has no standard input"))?;
        let (sender, pieces) = mpsc::channel::<Vec<u8>>();
        std::thread::Builder::new().name("child-input".to_owned()).spawn(move || {
            for piece in pieces {
                if stdin.write_all(&piece).is_err() {
                    return;
                }
            }
        })?;
        Ok(Input(sender))
    }

    /// Everything that the child writes, and one byte more where it is more than `bytes_max`.
    pub(crate) fn read_output(&mut self, bytes_max: u64) -> io::Result<Receiver<Vec<u8>>> {
        self.read_with(move |stdout, sender| {
            let mut answer = Vec::new();
            // What cannot be read counts as not written; the exit status tells.
            let _ = stdout.take(bytes_max.saturating_add(1)).read_to_end(&mut answer);
            let _ = sender.send(answer);
        })
    }

    /// Has a thread read what the child writes.
    pub(crate) fn read_with<T: Send + 'static>(
        &mut self,
        read: impl FnOnce(std::process::ChildStdout, Sender<T>) + Send + 'static,
    ) -> io::Result<Receiver<T>> {
        let stdout = self.0.stdout.take().ok_or_else(|| io::Error::other("it has no standard output"))?;
        let (sender, messages) = mpsc::channel();
        std::thread::Builder::new().name("child-output".to_owned()).spawn(move || read(stdout, sender))?;
        Ok(messages)
    }

    pub(crate) fn read_complaint(&mut self) -> io::Result<JoinHandle<String>> {
        let stderr = self.0.stderr.take().ok_or_else(|| io::Error::other("it has no standard error"))?;
        std::thread::Builder::new().name("child-complaint".to_owned()).spawn(move || {
            let mut complaint = Vec::new();
            let _ = stderr.take(STDERR_BYTES_MAX).read_to_end(&mut complaint);
            String::from_utf8_lossy(&complaint).into_owned()
        })
    }

    /// How it ended; `None` if it still runs at the deadline, though it has closed its output.
    pub(crate) fn wait_until(&mut self, deadline: Instant) -> io::Result<Option<ExitStatus>> {
        const POLL: Duration = Duration::from_millis(1);
        loop {
            let status = self.0.try_wait()?;
            if status.is_some() || Instant::now() >= deadline {
                return Ok(status);
            }
            std::thread::sleep(POLL);
        }
    }

    pub(crate) fn kill(&mut self) {
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

fn program(config: &EngineConfig) -> Result<PathBuf, String> {
    if !config.compiler.program.as_os_str().is_empty() {
        return Ok(config.compiler.program.clone());
    }
    this_executable().map_err(|error| format!("this executable: {error}"))
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

/// In the child: does what the one request asks for.
///
/// # Errors
/// What to complain of.
pub(crate) fn serve_one() -> Result<(), String> {
    let mut stdin = io::stdin().lock();
    let request = read_request(&mut stdin)?;
    limit_this_process(&request)?;
    let mut component = vec![0; as_usize(request.component_bytes)];
    stdin.read_exact(&mut component).map_err(|error| format!("reading the component: {error}"))?;
    match request.task {
        Task::Compile { flavour } => compiler::compile_here(flavour, &component),
        Task::Try { config, options } => try_here(*config, &options, &component, stdin),
    }
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
    match request.memory {
        MemoryLimit::AddressSpace(bytes) => set_limit(libc::RLIMIT_AS, bytes)?,
        MemoryLimit::Data(bytes) => set_limit(libc::RLIMIT_DATA, bytes)?,
    }
    // At the lower limit comes SIGXCPU; at the upper one SIGKILL, which would look like a lack of memory.
    set_limits(libc::RLIMIT_CPU, request.cpu_seconds_max, request.cpu_seconds_max + 1)?;
    set_limit(libc::RLIMIT_CORE, 0)?;
    if request.is_background {
        step_back_as_process();
    }
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
