//! What can go wrong in a call, as an enum that callers match.

use std::fmt;

use crate::output::Breach;

/// Why one call of a component gave nothing.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// It ran into a limit.
    Limit(LimitHit),
    /// It trapped.
    Trap(Trap),
    /// It answered, but not as the contract says.
    Breach(Breach),
    /// It answered `err`.
    Declined(String),
    /// Its exports have other types than the contract's.
    Contract(String),
    /// It did not answer in time. Never a verdict on a row: wall time decides no data.
    Deadline {
        /// The deadline that passed.
        after_ms: u64,
    },
}

/// A limit of the engine's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitHit {
    /// Linear memory: a growth that was refused.
    Memory {
        /// Size of all memories together that the component asked for.
        asked_bytes: u64,
        /// `memory_bytes_max`.
        allowed_bytes: u64,
    },
    /// A table that was to grow beyond `table_elements_max`.
    Table {
        /// Elements asked for.
        asked_elements: u64,
        /// `table_elements_max`.
        allowed_elements: u64,
    },
    /// More output than `output_bytes_max`.
    Output {
        /// `output_bytes_max`.
        allowed_bytes: u64,
    },
    /// The call stack: `stack_bytes_max`, or the smaller one that the component has of its own.
    Stack,
}

/// A trap, with all that is known of its cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trap {
    /// What the machine saw: `wasm unreachable instruction executed`.
    pub what: String,
    /// The panic's message, if the component reported one before it trapped.
    pub panic: Option<String>,
    /// Function names, innermost first, one a line.
    pub backtrace: String,
}

/// Which limit a call ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LimitKind {
    /// `memory_bytes_max`.
    Memory,
    /// `table_elements_max`.
    Table,
    /// `output_bytes_max`.
    Output,
    /// `stack_bytes_max`, or the component's own.
    Stack,
}

impl LimitKind {
    /// A short stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Table => "table",
            Self::Output => "output",
            Self::Stack => "stack",
        }
    }
}

impl LimitHit {
    /// Which one, without the numbers.
    pub fn kind(&self) -> LimitKind {
        match self {
            Self::Memory { .. } => LimitKind::Memory,
            Self::Table { .. } => LimitKind::Table,
            Self::Output { .. } => LimitKind::Output,
            Self::Stack => LimitKind::Stack,
        }
    }
}

impl Trap {
    /// The functions that an author looks for, innermost first: without those of the language that only carry a panic.
    pub fn first_frames(&self) -> impl Iterator<Item = &str> {
        const FRAMES_MAX: usize = 5;
        const CARRIERS: &[&str] = &["std::", "core::", "alloc::", "rust_", "__rust", "<std::", "<core::", "<alloc::"];
        let carries_a_panic = |frame: &&str| CARRIERS.iter().any(|carrier| frame.starts_with(carrier));
        self.backtrace.lines().skip_while(carries_a_panic).take(FRAMES_MAX)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit(limit) => limit.fmt(f),
            Self::Trap(trap) => trap.fmt(f),
            Self::Breach(breach) => write!(f, "the component breaks the contract: {breach}"),
            Self::Declined(message) => write!(f, "the component failed the call: {message}"),
            Self::Contract(what) => write!(f, "the component is of another world: {what}"),
            Self::Deadline { after_ms } => write!(f, "no answer within {after_ms} ms"),
        }
    }
}

impl fmt::Display for LimitHit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory { asked_bytes, allowed_bytes } => write!(
                f,
                "the component asked for {asked_bytes} bytes of memory, the limit is {allowed_bytes} (memory_bytes_max)"
            ),
            Self::Table { asked_elements, allowed_elements } => write!(
                f,
                "the component asked for a table of {asked_elements} elements, the limit is {allowed_elements} \
                 (table_elements_max)"
            ),
            Self::Output { allowed_bytes } => {
                write!(f, "the output is larger than {allowed_bytes} bytes (output_bytes_max)")
            }
            Self::Stack => f.write_str("the call stack is exhausted: the recursion is too deep, or endless"),
        }
    }
}

impl fmt::Display for Trap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.panic {
            Some(message) => write!(f, "panic: {message}"),
            None => write!(f, "trap: {}", self.what),
        }
    }
}

impl Fault {
    /// The output that is at fault, where one is.
    pub(crate) fn field(&self) -> Option<&str> {
        match self {
            Self::Breach(breach) => breach.column(),
            _ => None,
        }
    }

    /// A short stable word: `memory`, `table`, `output`, `stack`, `trap`, `breach`, `declined`, `contract`, `deadline`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Limit(limit) => limit.kind().as_str(),
            Self::Trap(_) => "trap",
            Self::Breach(_) => "breach",
            Self::Declined(_) => "declined",
            Self::Contract(_) => "contract",
            Self::Deadline { .. } => "deadline",
        }
    }
}

/// Why a transform could not be started, loaded or applied as a whole. What goes wrong with single rows is not here but
/// in [`crate::RowOutcomes`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The engine cannot start with this configuration on this machine.
    #[error("the engine cannot start: {0}")]
    Start(String),
    /// The caller passed columns that the transform does not declare. A bug of the caller, never of a component.
    #[error("input {input}: {what}")]
    Input {
        /// Name of the input, or its number where there is none of that name.
        input: String,
        /// What is wrong with it.
        what: String,
    },
    /// A batch waited for this row as long as it may. Nothing was decided about the row.
    #[error(
        "row {row} of transform {transform} gave no answer within {after_ms} ms; the row is not at fault by that: raise \
         batch_deadline_row_ms_max, or look for an endless loop"
    )]
    Deadline {
        /// The transform's name.
        transform: String,
        /// The row, counted from the start of the columns passed.
        row: u32,
        /// The longest deadline that was tried.
        after_ms: u64,
    },
    /// The outputs of the rows passed are too large to be held at once. Nothing was decided about any row.
    #[error(
        "transform {transform} gives more than {allowed_bytes} bytes for {rows} rows (applied_bytes_max); pass fewer \
         rows at once, or raise the limit"
    )]
    Applied {
        /// The transform's name.
        transform: String,
        /// Rows passed.
        rows: usize,
        /// `applied_bytes_max`.
        allowed_bytes: u64,
    },
    /// All pooled instances are in use.
    #[error("all {instances_max} instances are in use; try again, or raise instances_max")]
    Busy {
        /// `instances_max`.
        instances_max: u32,
    },
    /// An artefact could not be compiled, stored or read.
    #[error("artefact of {digest}: {what}")]
    Artifact {
        /// The component.
        digest: eadem_values::Digest,
        /// What went wrong.
        what: String,
    },
    /// Something of the host failed, not of the component.
    #[error("the engine failed: {0}")]
    Host(String),
}
