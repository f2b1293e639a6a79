//! The ways in which a component is compiled, and the features it may use.

use serde::{Deserialize, Serialize};
use wasmparser::WasmFeatures;
use wasmtime::{Config, OptLevel};

use crate::config::EngineConfig;

/// What a component is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Flavour {
    /// As it runs.
    Production,
    /// As it runs where its author, or the NaN law, asks for one NaN everywhere.
    StrictNan,
    /// For `upload` and `test`: counts fuel, a label of cost that is the same on every machine.
    Measuring,
}

impl Flavour {
    /// The flavour that runs under this verdict.
    pub(crate) fn production(strict_nan: bool) -> Self {
        if strict_nan { Self::StrictNan } else { Self::Production }
    }

    /// For file names.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Production => "plain",
            Self::StrictNan => "strict-nan",
            Self::Measuring => "measuring",
        }
    }

    /// Everything that machine code depends on. The compiling child and the engine that loads must agree on it, so
    /// nothing here comes from the configuration.
    pub(crate) fn compile_config(self) -> Config {
        let mut config = Config::new();
        config
            .cranelift_opt_level(OptLevel::Speed)
            .cranelift_nan_canonicalization(self == Self::StrictNan)
            .consume_fuel(self == Self::Measuring)
            .epoch_interruption(true)
            .concurrency_support(false)
            .memory_reservation(1 << 32)
            .memory_guard_size(32 << 20)
            .memory_init_cow(true)
            .generate_address_map(true)
            .wasm_backtrace_details(wasmtime::WasmBacktraceDetails::Disable);
        deliberate_features(&mut config);
        config
    }
}

/// What a component may use: WebAssembly as every toolchain emits it today, and nothing whose result may differ between
/// machines (relaxed SIMD), between runs (threads), or that the engine's limits do not see.
fn deliberate_features(config: &mut Config) {
    config
        .wasm_component_model(true)
        .wasm_bulk_memory(true)
        .wasm_multi_value(true)
        .wasm_simd(true)
        .wasm_tail_call(true)
        .wasm_extended_const(true)
        .wasm_relaxed_simd(false)
        .wasm_multi_memory(false)
        .wasm_memory64(false)
        .wasm_wide_arithmetic(false)
        .wasm_custom_page_sizes(false);
}

/// The same list for the validator that runs before any compiler sees the bytes.
pub(crate) fn validator_features() -> WasmFeatures {
    WasmFeatures::MUTABLE_GLOBAL
        | WasmFeatures::SATURATING_FLOAT_TO_INT
        | WasmFeatures::SIGN_EXTENSION
        | WasmFeatures::REFERENCE_TYPES
        | WasmFeatures::MULTI_VALUE
        | WasmFeatures::BULK_MEMORY
        | WasmFeatures::SIMD
        | WasmFeatures::FLOATS
        | WasmFeatures::TAIL_CALL
        | WasmFeatures::EXTENDED_CONST
        | WasmFeatures::COMPONENT_MODEL
}

/// A component holds the author's module, the libraries that it may be linked with, and up to three small modules that
/// the canonical ABI needs.
const CORE_INSTANCES_PER_COMPONENT_MAX: u32 = 16;

/// The configuration of the engine that runs production artefacts: pooled instances, cleared between calls.
pub(crate) fn running_config(config: &EngineConfig) -> Config {
    let mut pool = wasmtime::PoolingAllocationConfig::new();
    // Enough for every component in every slot, so that none of them can take the instances of the others.
    let core_instances = config.instances_max.saturating_mul(CORE_INSTANCES_PER_COMPONENT_MAX);
    pool.total_component_instances(config.instances_max)
        .total_core_instances(core_instances)
        .max_core_instances_per_component(CORE_INSTANCES_PER_COMPONENT_MAX)
        .total_memories(config.instances_max)
        .total_tables(config.instances_max.saturating_mul(2))
        .max_memories_per_component(1)
        .max_tables_per_component(2)
        .max_memories_per_module(1)
        .max_tables_per_module(2)
        .table_elements(config.table_elements_max as usize)
        .max_memory_size(as_usize(config.memory_bytes_max_in_pages()))
        .linear_memory_keep_resident(as_usize(config.memory_resident_bytes))
        .table_keep_resident(64 * 1024)
        .pagemap_scan(pagemap_scan());
    let mut running = Flavour::Production.compile_config();
    running
        .allocation_strategy(wasmtime::InstanceAllocationStrategy::Pooling(pool))
        .max_wasm_stack(as_usize(config.stack_bytes_max))
        .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(32));
    running
}

/// Lets the kernel say which pages a call has touched, where it can (Linux 6.7); elsewhere the whole resident set is
/// cleared.
fn pagemap_scan() -> wasmtime::Enabled {
    wasmtime::Enabled::Auto
}

/// The configuration of the engine that counts fuel. It runs rarely, so it allocates on demand.
pub(crate) fn measuring_config(config: &EngineConfig) -> Config {
    let mut measuring = Flavour::Measuring.compile_config();
    measuring.max_wasm_stack(as_usize(config.stack_bytes_max));
    measuring
}

pub(crate) fn as_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
