//! Upload: everything that is found out about a component before it may compute anything.

mod check;
mod corpus;
mod description;
mod inspect;
mod laws;

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use eadem_values::{Description, Digest};
use serde::{Deserialize, Serialize};

use crate::call::{CallError, Linked};
use crate::compiler::{self, CompileError, Manner};
use crate::engine::Engine;
use crate::error::{EngineError, Fault};
use crate::flavour::Flavour;
use crate::measure::{self, Cost};
use crate::state::cut_to;

pub(crate) use check::try_here;
pub use check::{CheckError, CheckPriority, Checked, RefusalReport};
pub(crate) use corpus::CORPUS_BYTES_MAX;
pub use corpus::{CORPUS_VERSION, generate_rows};
pub use description::DescriptionProblem;
pub use inspect::{Inspection, inspect};
pub use laws::{Law, Violation};

/// What an uploader may choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadOptions {
    /// Seed of the random rows. The fixed corpus comes first, whatever the seed.
    pub seed: u64,
    /// Random rows, after those of the fixed corpus.
    pub rows: u32,
    /// Compile so that arithmetic knows only one NaN, whatever the NaN law finds. Slower.
    pub strict_nan: bool,
}

impl Default for UploadOptions {
    fn default() -> Self {
        Self { seed: 0, rows: 256, strict_nan: false }
    }
}

/// A seed for rows that no upload has seen before, at most 2⁶³ − 1, so that every store and every JSON reader keeps it.
pub fn random_seed() -> u64 {
    // The standard library's hashers have random keys.
    RandomState::new().hash_one(std::process::id()) >> 1
}

/// A component that no law was seen to be broken by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Accepted {
    /// SHA-256 of the component's bytes.
    pub digest: Digest,
    /// Size of the component.
    pub component_bytes: u64,
    /// What it says of itself.
    pub description: Description,
    /// What it imports.
    pub imports: Vec<String>,
    /// The version of the contract that it was built for.
    pub contract_version: String,
    /// The NaN verdict, made here once: whether it is compiled so that arithmetic knows only one NaN.
    pub strict_nan: bool,
    /// What was checked.
    pub evidence: Evidence,
    /// What it costs.
    pub cost: Cost,
}

/// What "accepted" rests on: no violation was found in these rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Version of the generator of rows.
    pub corpus_version: u32,
    /// Seed of the random rows.
    pub seed: u64,
    /// All rows, those of the fixed corpus and the random ones.
    pub rows: u32,
    /// Rows of a partial transform that trapped or hit a limit instead of failing as they should.
    pub faulty_rows: u32,
    /// The first of them, and what happened.
    pub first_fault: Option<String>,
}

/// Why a component is not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It is too large to be looked at.
    #[error("the component has {bytes} bytes, {allowed_bytes} are allowed (component_bytes_max)")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// `component_bytes_max`.
        allowed_bytes: u64,
    },
    /// It is not WebAssembly, or uses a feature that is switched off.
    #[error("it is not a valid component: {0}")]
    Malformed(String),
    /// It is a module, of which `eadem build` would have made a component.
    #[error("it is a core module, not a component; build it with `eadem build`{}", culprit_text(.culprit))]
    CoreModule {
        /// What it imports.
        imports: Vec<String>,
        /// The crate that probably wants these imports.
        culprit: Option<String>,
    },
    /// It imports more than the contract has.
    #[error("it imports `{import}`; a transform has no clock, random, file, network or environment{}", culprit_text(.culprit))]
    Import {
        /// The import.
        import: String,
        /// The crate, or part of a standard library, that probably wants it.
        culprit: Option<String>,
    },
    /// It is a component of another world, or of a version of the contract that this build does not know.
    #[error("it does not keep the contract eadem:transform@{}: {what}", crate::call::CONTRACT_VERSION)]
    Contract {
        /// What is missing or different.
        what: String,
    },
    /// It starts with more memory than an instance may have.
    #[error("it starts with {asked_bytes} bytes of memory, {allowed_bytes} are allowed (memory_bytes_max)")]
    Memory {
        /// All its memories together.
        asked_bytes: u64,
        /// `memory_bytes_max`.
        allowed_bytes: u64,
    },
    /// It starts with a larger table than an instance may have.
    #[error("it starts with a table of {asked_elements} elements, {allowed_elements} are allowed (table_elements_max)")]
    Table {
        /// All its tables together.
        asked_elements: u64,
        /// `table_elements_max`.
        allowed_elements: u64,
    },
    /// It has more than one memory.
    #[error("it has {0} memories; a transform has one")]
    Memories(u32),
    /// It could not be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// It could not be instantiated.
    #[error("it does not start: {0}")]
    Start(Fault),
    /// It could not say what it is.
    #[error("describe failed: {0}")]
    Describe(Fault),
    /// It says something else every time.
    #[error("describe gives different answers: {what}")]
    DescribeChanges {
        /// Where the answers differ.
        what: String,
    },
    /// What it says of itself is not acceptable. All problems, not only the first.
    #[error("the description is not acceptable: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Description(Vec<DescriptionProblem>),
    /// It breaks a law.
    #[error(transparent)]
    Law(#[from] Violation),
    /// The engine failed, not the component.
    #[error("the engine could not examine it: {0}")]
    Engine(#[from] EngineError),
}

fn culprit_text(culprit: &Option<String>) -> String {
    culprit.as_ref().map_or(String::new(), |culprit| format!(" (probably from {culprit})"))
}

impl Refusal {
    /// A short stable word.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::Malformed(_) => "malformed",
            Self::CoreModule { .. } => "core_module",
            Self::Import { .. } => "import",
            Self::Contract { .. } => "contract",
            Self::Memory { .. } => "memory",
            Self::Table { .. } => "table",
            Self::Memories(_) => "memories",
            Self::Compile(CompileError::Time { .. }) => "compile_time",
            Self::Compile(CompileError::Memory { .. }) => "compile_memory",
            Self::Compile(CompileError::Size { .. }) => "compile_size",
            Self::Compile(_) => "compile",
            Self::Start(_) => "start",
            Self::Describe(_) => "describe",
            Self::DescribeChanges { .. } => "describe_changes",
            Self::Description(_) => "description",
            Self::Law(violation) => violation.law.code(),
            Self::Engine(_) => "engine",
        }
    }

    /// Whether the component is at fault, rather than this host.
    pub fn blames_component(&self) -> bool {
        let is_ours = |error: &CompileError| matches!(error, CompileError::Process(_) | CompileError::Unfinished);
        match self {
            Self::Engine(_) => false,
            Self::Compile(error) => !is_ours(error),
            _ => true,
        }
    }
}

impl Engine {
    /// Examines a component: size, validity, imports, contract, compilation in a child, `describe`, the laws, its cost.
    /// Stores the artefact of what it accepts, so that a following [`Engine::load`] compiles nothing.
    ///
    /// Blocks for as long as compiling and the laws take: a second or so for a component written in Rust.
    ///
    /// # Errors
    /// [`Refusal`], which says what to do about it; a violated law names its seed and row.
    pub fn accept(&self, component: &[u8], options: &UploadOptions) -> Result<Accepted, Refusal> {
        let compile = |flavour| compiler::compile(self.config(), flavour, Manner::Prompt, component);
        let (accepted, code) = self.examine(component, options, &compile)?;
        self.store(&accepted.digest, Flavour::production(accepted.strict_nan), &code);
        Ok(accepted)
    }

    /// The examination itself, with the machine code of what is accepted. `compile` gives machine code that can be trusted.
    fn examine(
        &self,
        component: &[u8],
        options: &UploadOptions,
        compile: &Compile<'_>,
    ) -> Result<(Accepted, Vec<u8>), Refusal> {
        let config = self.config();
        let component_bytes = component.len() as u64;
        if component_bytes > config.component_bytes_max {
            let allowed_bytes = config.component_bytes_max;
            return Err(Refusal::TooLarge { bytes: component_bytes, allowed_bytes });
        }
        let inspection = inspect(component)?;
        inspection.check(config)?;

        let digest = Digest::of(component);
        let plain = self.compile_and_link(Flavour::Production, compile)?;
        let description = described(self, &plain.linked)?;
        description::check(&description, config).map_err(Refusal::Description)?;

        let rows = corpus::Rows::new(&description.inputs, options.seed, options.rows);
        let mut code = plain.code;
        let mut subject = laws::Subject::new(self, digest, &description, false, plain.linked);
        let mut finding = laws::check(&subject, &rows)?;
        let strict = self.compile_and_link(Flavour::StrictNan, compile)?;
        let strict_nan = options.strict_nan || laws::nan_bits_matter(&subject, &strict.linked, &finding.sound_rows)?;
        if strict_nan {
            code = strict.code;
            subject = laws::Subject::new(self, digest, &description, true, strict.linked);
            finding = laws::check(&subject, &rows)?;
        }

        let measuring = self.compile_and_link(Flavour::Measuring, compile)?;
        let cost = measure::measure(&subject.transform, &measuring.linked, &finding.sound_rows);
        let accepted = Accepted {
            digest,
            component_bytes,
            imports: inspection.imports,
            contract_version: inspection.contract_version.unwrap_or_default(),
            strict_nan,
            evidence: Evidence {
                corpus_version: CORPUS_VERSION,
                seed: options.seed,
                rows: rows.count(),
                faulty_rows: finding.faulty_rows,
                first_fault: finding.first_fault.clone(),
            },
            cost: cost.map_err(Refusal::Engine)?,
            description,
        };
        Ok((accepted, code))
    }

    fn compile_and_link(&self, flavour: Flavour, compile: &Compile<'_>) -> Result<Compiled, Refusal> {
        let code = compile(flavour)?;
        let linked = self.link_compiled(flavour, &code).map_err(|what| {
            let what = cut_to(&what, self.config().message_bytes_max as usize).to_owned();
            Refusal::Contract { what }
        })?;
        Ok(Compiled { code, linked })
    }
}

impl Engine {
    /// What a component says of itself, acceptable or not: for people who look at one that is refused. Nothing is checked
    /// but what must hold for it to run at all, and nothing is stored.
    ///
    /// Blocks for as long as compiling takes.
    ///
    /// # Errors
    /// [`Refusal`] where it cannot be compiled, started or asked, and where its answers differ.
    pub fn describe(&self, component: &[u8]) -> Result<Description, Refusal> {
        inspect(component)?.check(self.config())?;
        let compile = |flavour| compiler::compile(self.config(), flavour, Manner::Prompt, component);
        let compiled = self.compile_and_link(Flavour::Production, &compile)?;
        described(self, &compiled.linked)
    }
}

/// Makes machine code of the component that is examined.
type Compile<'a> = dyn Fn(Flavour) -> Result<Vec<u8>, CompileError> + 'a;

struct Compiled {
    code: Vec<u8>,
    linked: Linked,
}

/// Asks twice in one instance and once in another.
fn described(engine: &Engine, linked: &Linked) -> Result<Description, Refusal> {
    let config = engine.config();
    let deadline = Duration::from_millis(config.upload_deadline_ms);
    let start = |error| refusal(error, Refusal::Start);
    let describe = |error| refusal(error, Refusal::Describe);
    let mut instance = linked.instantiate(config, deadline).map_err(start)?;
    let first = instance.describe(linked, config).map_err(describe)?;
    let second = instance.describe(linked, config).map_err(describe)?;
    drop(instance);
    let fresh = linked.instantiate(config, deadline).map_err(start)?.describe(linked, config).map_err(describe)?;

    let first = description::from_contract(first);
    for (other, when) in [(second, "a second call"), (fresh, "a fresh instance")] {
        let other = description::from_contract(other);
        if let Some(what) = description::difference(&first, &other) {
            return Err(Refusal::DescribeChanges { what: format!("{when} changes {what}") });
        }
    }
    Ok(first)
}

fn refusal(error: CallError, blame: impl Fn(Fault) -> Refusal) -> Refusal {
    match error {
        CallError::Fault(Fault::Contract(what)) => Refusal::Contract { what },
        CallError::Fault(fault) => blame(fault),
        CallError::Engine(error) => Refusal::Engine(error),
    }
}
