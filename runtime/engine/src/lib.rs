//! Runs a component over a batch: compile, limits, instances, errors.
//!
//! The engine knows columns and components. It knows no network, no database and no async runtime. Everything in here
//! keeps four promises of the architecture:
//!
//! - **Pure.** The linker holds `diagnostics` and nothing else.
//! - **One call, one instance.** [`Transform::apply`] makes an instance per call and drops it.
//! - **Row by row.** A call that fails is split until single rows fail, so that batching is never seen in a result.
//! - **Contained.** Memory, stack, time and output are limited, and what comes out is hostile until it was checked.
//!
//! ```no_run
//! use eadem_engine::{CallClass, Engine, EngineConfig};
//! # fn demo(wasm: Vec<u8>, columns: Vec<arrow_array::ArrayRef>) -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = EngineConfig::with_artifacts_dir("data/artifacts");
//! config.compiler.args = vec!["compile".to_owned()]; // with it, `main` calls `compiler::child_main`
//! let engine = Engine::new(config)?;
//! let accepted = engine.accept(&wasm, &Default::default())?;
//! let transform = engine.load(
//!     accepted.digest,
//!     || Ok(wasm),
//!     accepted.description,
//!     accepted.strict_nan,
//!     Some(accepted.cost),
//! )?;
//! let applied = transform.apply(columns[0].len(), &columns, CallClass::Batch)?;
//! # let _ = applied; Ok(()) }
//! ```

mod artifact;
mod bindings;
mod bits;
mod call;
mod child;
pub mod compiler;
mod config;
mod cpu_pool;
mod cpu_time;
mod engine;
mod error;
mod fingerprint;
mod flavour;
mod input;
mod measure;
mod output;
mod priority;
mod small_pages;
mod state;
mod ticker;
mod transform;
mod upload;

pub use child::Stop;
pub use compiler::CompileError;
pub use config::{CompilerCommand, EngineConfig};
pub use cpu_pool::{CpuPool, JobLost, Pending, PoolFull};
pub use cpu_time::thread_cpu_time;
pub use engine::Engine;
pub use error::{EngineError, Fault, LimitHit, LimitKind, Trap};
pub use measure::Cost;
pub use output::Breach;
pub use priority::{Background, step_back};
pub use small_pages::use_small_pages;
pub use transform::{Applied, CallClass, FailedRow, FailureKind, RowOutcomes, Transform};
pub use upload::{
    Accepted, CORPUS_VERSION, CheckError, CheckPriority, Checked, DescriptionProblem, Evidence, Inspection, Law,
    Refusal, RefusalReport, UploadOptions, Violation, generate_rows, inspect, random_seed,
};
