//! The engine: one per process, shared by every transform.

use std::collections::HashMap;
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use eadem_values::{Description, Digest};
use wasmtime::component::{Component, HasSelf, Linker};

use crate::artifact::{ArtifactStore, Authentic, Rejected};
use crate::bindings::eadem::transform::diagnostics;
use crate::call::Linked;
use crate::compiler::{self, Manner};
use crate::config::EngineConfig;
use crate::cpu_pool::CpuPool;
use crate::error::EngineError;
use crate::flavour::{self, Flavour};
use crate::measure::Cost;
use crate::state::CallState;
use crate::transform::Transform;
use crate::{fingerprint, ticker};

/// Runs components. Cheap to clone; all clones are one engine.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    config: EngineConfig,
    running: wasmtime::Engine,
    /// The clock of its deadlines, started with the first component: a server without any is not woken a thousand times a
    /// second.
    ticker: OnceLock<Result<(), String>>,
    linker: Linker<CallState>,
    measuring: OnceLock<Result<Measuring, String>>,
    /// `None`: this engine is for one trial, and keeps nothing.
    artifacts: Option<ArtifactStore>,
    compiling: Compiling,
    fingerprint: String,
    cpu_pool: CpuPool,
}

/// Artefacts that are being made, so that no two threads make the same one.
#[derive(Default)]
struct Compiling(Mutex<Turns>);

/// By artefact: whose turn it is to make it.
type Turns = HashMap<(Digest, Flavour), Arc<Mutex<()>>>;

impl Compiling {
    /// Runs `make` while no other thread makes this artefact.
    fn alone<T>(&self, digest: Digest, flavour: Flavour, make: impl FnOnce() -> T) -> T {
        let artifact = (digest, flavour);
        let turn = Arc::clone(self.turns().entry(artifact).or_default());
        let made = {
            let _mine = turn.lock().unwrap_or_else(PoisonError::into_inner);
            make()
        };
        let mut turns = self.turns();
        // This one and the map's: nobody waits.
        if Arc::strong_count(&turn) == 2 {
            turns.remove(&artifact);
        }
        made
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The engine that counts fuel, made when it is first needed.
struct Measuring {
    engine: wasmtime::Engine,
    linker: Linker<CallState>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("fingerprint", &self.0.fingerprint).finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts an engine: reserves the address space of its pool, opens (or makes) the directory of artefacts and its key.
    ///
    /// # Errors
    /// [`EngineError::Start`]: the pool does not fit into the address space, the directory or the key cannot be used.
    pub fn new(config: EngineConfig) -> Result<Self, EngineError> {
        fs::create_dir_all(&config.artifacts_dir).map_err(|error| {
            EngineError::Start(format!("artifacts_dir {}: {error}", config.artifacts_dir.display()))
        })?;
        Self::start(config, |config, fingerprint| ArtifactStore::open(config, fingerprint).map(Some))
    }

    /// An engine that has no artefacts and no key, for a child that tries a component.
    pub(crate) fn for_trial(config: EngineConfig) -> Result<Self, EngineError> {
        Self::start(config, |_, _| Ok(None))
    }

    fn start(
        config: EngineConfig,
        artifacts: impl FnOnce(&EngineConfig, String) -> Result<Option<ArtifactStore>, String>,
    ) -> Result<Self, EngineError> {
        let start = |what: String| EngineError::Start(what);
        config.check().map_err(start)?;
        let running = wasmtime::Engine::new(&flavour::running_config(&config))
            .map_err(|error| start(format!("{error:#} (instances_max is {})", config.instances_max)))?;
        let linker = linker(&running).map_err(start)?;
        let fingerprint = fingerprint::of(&running);
        let artifacts = artifacts(&config, fingerprint.clone()).map_err(start)?;
        let cpu_pool = CpuPool::new(&config).map_err(start)?;
        let (ticker, measuring) = (OnceLock::new(), OnceLock::new());
        let compiling = Compiling::default();
        let inner = Inner { config, running, ticker, linker, measuring, artifacts, compiling, fingerprint, cpu_pool };
        Ok(Self(Arc::new(inner)))
    }

    /// The configuration that the engine was started with.
    pub fn config(&self) -> &EngineConfig {
        &self.0.config
    }

    /// Version, flags, processor features and contract version, in one line. Stored with every dataset.
    pub fn fingerprint(&self) -> &str {
        &self.0.fingerprint
    }

    /// The bounded threads for calls that are too long for the thread that asks.
    pub fn cpu_pool(&self) -> &CpuPool {
        &self.0.cpu_pool
    }

    /// Makes an accepted component ready to run: takes its artefact, or has the child compile it again.
    ///
    /// `component_bytes` is asked only if there is no valid artefact; `description` and `strict_nan` are what
    /// [`Engine::accept`] found, and `cost` what it measured. Of several threads that want the same artefact one
    /// compiles. An artefact that cannot be stored is made again next time; the log says so.
    ///
    /// # Errors
    /// [`EngineError::Artifact`]: the bytes cannot be had, are not those of `digest`, or cannot be compiled.
    pub fn load<F>(
        &self,
        digest: Digest,
        component_bytes: F,
        description: Description,
        strict_nan: bool,
        cost: Option<Cost>,
    ) -> Result<Transform, EngineError>
    where
        F: FnOnce() -> Result<Vec<u8>, String>,
    {
        let flavour = Flavour::production(strict_nan);
        let linked = self.0.compiling.alone(digest, flavour, || match self.link_stored(&digest, flavour) {
            Some(linked) => Ok(linked),
            None => self.compile_anew(digest, flavour, component_bytes),
        });
        let linked = linked.map_err(|what| EngineError::Artifact { digest, what })?;
        Ok(Transform::new(self.clone(), digest, description, strict_nan, cost, linked))
    }

    fn compile_anew(
        &self,
        digest: Digest,
        flavour: Flavour,
        component_bytes: impl FnOnce() -> Result<Vec<u8>, String>,
    ) -> Result<Linked, String> {
        let bytes = component_bytes()?;
        if Digest::of(&bytes) != digest {
            return Err(format!("the bytes that were provided are {}", Digest::of(&bytes)));
        }
        let code =
            compiler::compile(&self.0.config, flavour, Manner::Prompt, &bytes).map_err(|error| error.to_string())?;
        let linked = self.link_compiled(flavour, &code)?;
        self.store(&digest, flavour, &code);
        Ok(linked)
    }

    /// The stored artefact, if it is authentic and runs here.
    pub(crate) fn link_stored(&self, digest: &Digest, flavour: Flavour) -> Option<Linked> {
        let artifacts = self.0.artifacts.as_ref()?;
        let authentic = match artifacts.read(digest, flavour) {
            Ok(authentic) => authentic,
            Err(Rejected::Forged) => {
                let path = artifacts.path(digest, flavour);
                tracing::warn!(%digest, path = %path.display(), "a forged artefact; it is made anew");
                return None;
            }
            Err(reason) => {
                tracing::debug!(%digest, ?reason, "no artefact, the component is compiled");
                return None;
            }
        };
        let component = self.trust(&authentic);
        let linked = component.and_then(|component| self.link(&component));
        linked.inspect_err(|error| tracing::warn!(%digest, error, "an authentic artefact cannot be used")).ok()
    }

    /// Links what the child has just compiled.
    pub(crate) fn link_compiled(&self, flavour: Flavour, code: &[u8]) -> Result<Linked, String> {
        if flavour == Flavour::Measuring {
            let measuring = self.measuring()?;
            let component = deserialize(&measuring.engine, code)?;
            return Linked::new(&measuring.linker, &component);
        }
        let component = deserialize(&self.0.running, code)?;
        self.link(&component)
    }

    /// Links a component that can be called from then on.
    fn link(&self, component: &Component) -> Result<Linked, String> {
        let ticker = self.0.ticker.get_or_init(|| ticker::start(&self.0.running, tick(&self.0.config)));
        ticker.clone()?;
        Linked::new(&self.0.linker, component)
    }

    /// Keeps an artefact for the next time. Without it everything works, only later: a full disk stops no request.
    pub(crate) fn store(&self, digest: &Digest, flavour: Flavour, code: &[u8]) {
        let Some(artifacts) = &self.0.artifacts else { return };
        if let Err(error) = artifacts.write(digest, flavour, code) {
            tracing::warn!(%digest, %error, "the artefact cannot be stored; the component is compiled again next time");
        }
    }

    /// Where the artefact of a component stands, for tools that show or remove it.
    pub fn artifact_path(&self, digest: &Digest, strict_nan: bool) -> std::path::PathBuf {
        let flavour = Flavour::production(strict_nan);
        self.0.artifacts.as_ref().map_or_else(std::path::PathBuf::new, |artifacts| artifacts.path(digest, flavour))
    }

    fn trust(&self, authentic: &Authentic) -> Result<Component, String> {
        deserialize(&self.0.running, authentic.code())
    }

    fn measuring(&self) -> Result<&Measuring, String> {
        let made = self.0.measuring.get_or_init(|| Measuring::new(&self.0.config));
        made.as_ref().map_err(Clone::clone)
    }
}

impl Measuring {
    fn new(config: &EngineConfig) -> Result<Self, String> {
        let engine = wasmtime::Engine::new(&flavour::measuring_config(config)).map_err(|error| format!("{error:#}"))?;
        ticker::start(&engine, tick(config))?;
        let linker = linker(&engine)?;
        Ok(Self { engine, linker })
    }
}

fn tick(config: &EngineConfig) -> Duration {
    Duration::from_micros(config.tick_us.max(1))
}

/// Everything that a component can reach: `diagnostics`. There is no clock, random, file, network or environment here,
/// and nothing else adds to it.
fn linker(engine: &wasmtime::Engine) -> Result<Linker<CallState>, String> {
    let mut linker = Linker::new(engine);
    diagnostics::add_to_linker::<CallState, HasSelf<CallState>>(&mut linker, |state| state)
        .map_err(|error| format!("{error:#}"))?;
    Ok(linker)
}

/// Turns an artefact into code that runs: the one place where bytes become machine code.
#[allow(unsafe_code)]
fn deserialize(engine: &wasmtime::Engine, code: &[u8]) -> Result<Component, String> {
    // SAFETY: the bytes come from the compiler, unchanged: either straight from the pipe of the child that this process
    // started, or from a file whose keyed hash over component, engine and code has just matched, held in memory since.
    // An artefact of another engine that still slipped through is refused by wasmtime's own check of version and flags.
    let component = unsafe { Component::deserialize(engine, code) };
    component.map_err(|error| format!("{error:#}"))
}
