//! The whole check of a component in child processes, one after the other and behind everything else on this machine.
//!
//! One child tries the component. It can compile nothing and has no key: when it needs machine code it asks, and gets what another
//! child, which never runs a component, has compiled. So what this process stores and will run once comes from the compiler alone,
//! whatever the component has made of the child that it was tried in; all that child has to give is its word about the component.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use eadem_values::Digest;
use serde::{Deserialize, Serialize};

use super::{Accepted, CORPUS_VERSION, Refusal, UploadOptions, description};
use crate::child::{EXIT_REFUSED, Input, MemoryLimit, Request, Running, Stop, Task, complains_of_memory, wait_for};
use crate::compiler::{self, CompileError, Manner};
use crate::config::EngineConfig;
use crate::engine::Engine;
use crate::flavour::{Flavour, as_usize};
use crate::state::cut_to;

/// A refusal as plain data, for those who are not in this process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalReport {
    /// [`Refusal::code`].
    pub code: String,
    /// In words, with all that follows.
    pub message: String,
    /// The law that is broken, if one is: [`crate::Law::code`] without its `law_`.
    pub law: Option<String>,
    /// Seed of the rows that it was broken on.
    pub seed: Option<u64>,
    /// The first row where it shows, counted over the fixed corpus and the random rows.
    pub row: Option<u32>,
    /// The input or output that is at fault, where one is.
    pub field: Option<String>,
    /// [`Refusal::blames_component`].
    pub blames_component: bool,
}

impl Refusal {
    /// The refusal as plain data.
    pub fn report(&self) -> RefusalReport {
        let violation = match self {
            Self::Law(violation) => Some(violation),
            _ => None,
        };
        let field = match self {
            Self::Law(violation) => violation.field.clone(),
            Self::Description(problems) => problems.iter().find_map(|problem| problem.field.clone()),
            Self::Describe(fault) | Self::Start(fault) => fault.field().map(str::to_owned),
            _ => None,
        };
        RefusalReport {
            code: self.code().to_owned(),
            message: self.to_string(),
            law: violation.map(|violation| violation.law.code().trim_start_matches("law_").to_owned()),
            seed: violation.map(|violation| violation.seed),
            row: violation.and_then(|violation| violation.row),
            field,
            blames_component: self.blames_component(),
        }
    }
}

/// Why a check gave no acceptance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The component is refused.
    #[error("{}", .0.message)]
    Refused(Box<RefusalReport>),
    /// The child needed more memory than it may have.
    #[error("checking took more memory than {bytes} bytes (check_memory_bytes_max)")]
    Memory {
        /// `check_memory_bytes_max`.
        bytes: u64,
    },
    /// The child died over the component, or gave no verdict that can be one.
    #[error("the checking process died ({0})")]
    Died(String),
    /// Somebody else killed the child: nothing is known of the component.
    #[error("the checking process was killed")]
    Killed,
    /// There was no verdict in time: nothing is known of the component.
    #[error("checking was not done within {ms} ms (check_ms_max)")]
    Time {
        /// `check_ms_max`.
        ms: u64,
    },
    /// It was called off.
    #[error("the check was called off")]
    Stopped,
    /// A child could not be started or talked to, or the engine failed in it.
    #[error("the checking process could not run: {0}")]
    Process(String),
}

impl CheckError {
    /// A short stable word, for those that blame the component.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused(report) => Some(&report.code),
            Self::Memory { .. } => Some("check_memory"),
            Self::Died(_) => Some("check_died"),
            Self::Killed | Self::Time { .. } | Self::Stopped | Self::Process(_) => None,
        }
    }

    /// Texts go into logs and answers, and may be the child's.
    fn cut(self) -> Self {
        match self {
            Self::Refused(report) => Self::Refused(Box::new(report.cut())),
            Self::Died(text) => Self::Died(cut_text(text)),
            Self::Process(text) => Self::Process(cut_text(text)),
            short => short,
        }
    }
}

impl RefusalReport {
    fn cut(self) -> Self {
        let is_code = |code: &str| code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        Self {
            code: if is_code(&self.code) { cut_text(self.code) } else { "check_died".to_owned() },
            message: cut_text(self.message),
            law: self.law.map(cut_text),
            field: self.field.map(cut_text),
            ..self
        }
    }
}

fn cut_text(text: String) -> String {
    const TEXT_BYTES_MAX: usize = 16 * 1024;
    cut_to(&text, TEXT_BYTES_MAX).to_owned()
}

/// How much a check may get in the way of everything else on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckPriority {
    /// As much as the process that wants it.
    Normal,
    /// Not at all: its children run where nothing else wants to. On a machine that is busy all the time they hardly ever do.
    Lowest,
}

/// A component that was accepted, with the machine code that goes with it.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The verdict.
    pub accepted: Accepted,
    code: Vec<u8>,
}

impl Engine {
    /// Examines a component as [`Engine::accept`] does, in child processes, and stores nothing: that is [`Engine::keep`]'s. This
    /// process looks at none of the component's bytes.
    ///
    /// Blocks until the verdict is there. `stop` ends it from another thread; whatever happens, no child is left.
    ///
    /// # Errors
    /// [`CheckError`], which tells a component that is refused from a check that could not be done.
    pub fn check(
        &self,
        component: &[u8],
        options: &UploadOptions,
        priority: CheckPriority,
        stop: &Stop,
    ) -> Result<Checked, CheckError> {
        let config = self.config();
        let component_bytes = component.len() as u64;
        if component_bytes > config.component_bytes_max {
            let allowed_bytes = config.component_bytes_max;
            return Err(refused(&Refusal::TooLarge { bytes: component_bytes, allowed_bytes }));
        }
        let until = Instant::now() + Duration::from_millis(config.check_ms_max);
        let mut check = Check { config, component, options, priority, until, stop, compiled: Vec::new() };
        let accepted = check.run().map_err(CheckError::cut)?;
        let production = Flavour::production(accepted.strict_nan);
        let code = check.compiled.into_iter().find(|(flavour, _)| *flavour == production);
        let (_, code) = code.ok_or_else(|| CheckError::Died("it accepts what it has not seen run".to_owned()))?;
        Ok(Checked { accepted, code })
    }

    /// Stores the artefact of a component that was accepted, so that a following [`Engine::load`] compiles nothing.
    pub fn keep(&self, checked: &Checked) {
        self.store(&checked.accepted.digest, Flavour::production(checked.accepted.strict_nan), &checked.code);
    }
}

fn refused(refusal: &Refusal) -> CheckError {
    match refusal.blames_component() {
        true => CheckError::Refused(Box::new(refusal.report())),
        false => CheckError::Process(refusal.to_string()),
    }
}

/// One check, seen from the parent.
struct Check<'a> {
    config: &'a EngineConfig,
    component: &'a [u8],
    options: &'a UploadOptions,
    priority: CheckPriority,
    until: Instant,
    stop: &'a Stop,
    /// What the child has asked for.
    compiled: Vec<(Flavour, Vec<u8>)>,
}

impl Check<'_> {
    fn run(&mut self) -> Result<Accepted, CheckError> {
        let process = |what: &str, error: io::Error| CheckError::Process(format!("{what}: {error}"));
        let mut child = Running::start(self.config).map_err(CheckError::Process)?;
        let message_bytes_max = message_bytes_max(self.config);
        let messages = child.read_with(move |stdout, sender| {
            let mut stdout = io::BufReader::new(stdout);
            loop {
                let message = read_message(&mut stdout, message_bytes_max);
                let is_last = !matches!(message, Ok(Message::Compile(_)));
                if sender.send(message).is_err() || is_last {
                    return;
                }
            }
        });
        let messages = messages.map_err(|error| process("reading its messages", error))?;
        let complaint = child.read_complaint().map_err(|error| process("reading its complaint", error))?;
        let input = child.input().map_err(|error| process("sending the component", error))?;
        input.send_request(&self.request()).map_err(|error| process("sending the request", error))?;
        input.send(self.component.to_vec());

        match self.converse(&messages, &input)? {
            Ok(Verdict::Accepted(accepted)) => self.believed(*accepted),
            Ok(Verdict::Refused(report)) if !report.blames_component => Err(CheckError::Process(report.message)),
            Ok(Verdict::Refused(report)) => Err(CheckError::Refused(Box::new(report))),
            Err(NoMessage { what, has_ended: false }) => {
                child.kill();
                Err(CheckError::Died(what))
            }
            Err(NoMessage { what, has_ended: true }) => {
                let until = self.until.min(Instant::now() + WAIT_FOR_THE_END);
                let status = child.wait_until(until).map_err(|error| process("waiting for it", error))?;
                let Some(status) = status else {
                    child.kill();
                    return Err(CheckError::Died("it has closed its output, and goes on".to_owned()));
                };
                // It has ended, and so has its complaint.
                let complaint = complaint.join().unwrap_or_default();
                Err(self.explain(status, complaint.trim(), &what))
            }
        }
    }

    fn request(&self) -> Request {
        let mut config = self.config.clone();
        // It is none of the child's business.
        config.artifact_key_hex = None;
        config.artifacts_dir = std::path::PathBuf::new();
        config.instances_max = INSTANCES_OF_A_TRIAL;
        config.cpu_threads = 1;
        Request {
            task: Task::Try { config: Box::new(config), options: *self.options },
            cpu_seconds_max: Duration::from_millis(self.config.check_ms_max).as_secs() + 1,
            memory: MemoryLimit::Data(self.config.check_memory_bytes_max),
            is_background: self.priority == CheckPriority::Lowest,
            component_bytes: self.component.len() as u64,
        }
    }

    /// Compiles what the child asks for, until it has its verdict or has nothing more to say.
    fn converse(
        &mut self,
        messages: &Receiver<Result<Message, NoMessage>>,
        input: &Input,
    ) -> Result<Result<Verdict, NoMessage>, CheckError> {
        loop {
            let Ok(message) = wait_for(messages, self.until, Some(self.stop)) else { return Err(self.too_late()) };
            match message {
                Ok(Message::Verdict(verdict)) => return Ok(Ok(verdict)),
                Ok(Message::Compile(flavour)) if self.compiled.iter().any(|(known, _)| *known == flavour) => {
                    return Err(CheckError::Died("it asked for the same machine code twice".to_owned()));
                }
                Ok(Message::Compile(flavour)) => {
                    let code = self.compile(flavour)?;
                    input.send((code.len() as u64).to_le_bytes().to_vec());
                    input.send(code.clone());
                    self.compiled.push((flavour, code));
                }
                Err(no_message) => return Ok(Err(no_message)),
            }
        }
    }

    fn compile(&self, flavour: Flavour) -> Result<Vec<u8>, CheckError> {
        let manner = Manner::OfCheck { priority: self.priority, until: self.until, stop: self.stop };
        compiler::compile(self.config, flavour, manner, self.component).map_err(|error| match error {
            CompileError::Unfinished => self.too_late(),
            error => refused(&Refusal::Compile(error)),
        })
    }

    fn too_late(&self) -> CheckError {
        match self.stop.is_called() {
            true => CheckError::Stopped,
            false => CheckError::Time { ms: self.config.check_ms_max },
        }
    }

    /// What a child says that has run the component is believed as far as it can be true.
    fn believed(&self, accepted: Accepted) -> Result<Accepted, CheckError> {
        let lie = |what: &str| CheckError::Died(format!("its verdict is on something else: {what}"));
        if accepted.digest != Digest::of(self.component) || accepted.component_bytes != self.component.len() as u64 {
            return Err(lie("another component"));
        }
        let evidence = &accepted.evidence;
        if evidence.seed != self.options.seed || evidence.corpus_version != CORPUS_VERSION {
            return Err(lie("other rows"));
        }
        if self.options.strict_nan && !accepted.strict_nan {
            return Err(lie("one that knows several NaNs"));
        }
        description::check(&accepted.description, self.config)
            .map_err(|problems| refused(&Refusal::Description(problems)))?;
        Ok(accepted)
    }

    fn explain(&self, status: ExitStatus, complaint: &str, what: &str) -> CheckError {
        if complains_of_memory(complaint) {
            return CheckError::Memory { bytes: self.config.check_memory_bytes_max };
        }
        if status.signal() == Some(libc::SIGXCPU) {
            return CheckError::Died(format!("after {} ms of processor time", self.config.check_ms_max));
        }
        if status.signal() == Some(libc::SIGKILL) {
            return CheckError::Killed;
        }
        let first_line = complaint.lines().next().unwrap_or_default();
        let first_line = cut_to(first_line, self.config.message_bytes_max as usize);
        if status.code() == Some(i32::from(EXIT_REFUSED)) {
            return CheckError::Process(first_line.to_owned());
        }
        CheckError::Died(format!("{status}; {what}; {first_line}"))
    }
}

/// A child that has closed its output has nothing more to do.
const WAIT_FOR_THE_END: Duration = Duration::from_secs(10);

/// The trials have one instance at a time, and not a moment's hurry in giving one back.
const INSTANCES_OF_A_TRIAL: u32 = 4;

/// A message holds a description at most, and that is limited as an output is.
fn message_bytes_max(config: &EngineConfig) -> u64 {
    config.output_bytes_max.saturating_mul(2).saturating_add(1 << 20)
}

/// What the child says.
#[derive(Serialize, Deserialize)]
enum Message {
    /// It wants the machine code of this flavour.
    Compile(Flavour),
    /// It is done.
    Verdict(Verdict),
}

#[derive(Serialize, Deserialize)]
enum Verdict {
    Accepted(Box<Accepted>),
    Refused(RefusalReport),
}

/// In place of a message.
struct NoMessage {
    what: String,
    /// Whether there can be no more, because the output has ended.
    has_ended: bool,
}

/// A message is its length and so many bytes of JSON. Whoever writes may be hostile.
fn read_message(output: &mut impl Read, bytes_max: u64) -> Result<Message, NoMessage> {
    let ended = |error: io::Error| NoMessage { what: format!("its messages break off: {error}"), has_ended: true };
    let nonsense = |what: String| NoMessage { what, has_ended: false };
    let mut length = [0; 8];
    output.read_exact(&mut length).map_err(ended)?;
    let length = u64::from_le_bytes(length);
    if length > bytes_max {
        return Err(nonsense(format!("a message of {length} bytes")));
    }
    let mut json = Vec::new();
    output.take(length).read_to_end(&mut json).map_err(ended)?;
    if json.len() as u64 != length {
        return Err(ended(io::ErrorKind::UnexpectedEof.into()));
    }
    serde_json::from_slice(&json).map_err(|error| nonsense(format!("a message that is none: {error}")))
}

fn write_message(message: &Message) -> io::Result<()> {
    let json = serde_json::to_vec(message)?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(&(json.len() as u64).to_le_bytes())?;
    stdout.write_all(&json)?;
    stdout.flush()
}

/// In the child: examines the component, and writes the verdict.
pub(crate) fn try_here(
    config: EngineConfig,
    options: &UploadOptions,
    component: &[u8],
    stdin: impl Read,
) -> Result<(), String> {
    let engine = Engine::for_trial(config).map_err(|error| error.to_string())?;
    let stdin = RefCell::new(stdin);
    let compile = |flavour: Flavour| {
        let code = ask_for_code(flavour, &mut *stdin.borrow_mut());
        // The parent has ended, or is about to end this process.
        code.map_err(|error| CompileError::Process(error.to_string()))
    };
    let verdict = match engine.examine(component, options, &compile) {
        Ok((accepted, _)) => Verdict::Accepted(Box::new(accepted)),
        Err(refusal) => Verdict::Refused(refusal.report()),
    };
    write_message(&Message::Verdict(verdict)).map_err(|error| format!("writing the verdict: {error}"))
}

fn ask_for_code(flavour: Flavour, stdin: &mut impl Read) -> io::Result<Vec<u8>> {
    write_message(&Message::Compile(flavour))?;
    let mut length = [0; 8];
    stdin.read_exact(&mut length)?;
    let mut code = vec![0; as_usize(u64::from_le_bytes(length))];
    stdin.read_exact(&mut code)?;
    Ok(code)
}
