//! One call: a fresh instance under its limits, the answer or the fault.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wasmtime::component::{Component, ComponentExportIndex, Instance, InstancePre, Linker, TypedFunc};
use wasmtime::{Store, UpdateDeadline};

use crate::bindings::exports::eadem::transform::types::{ColumnParam, Description as DescribedResult, Output};
use crate::config::EngineConfig;
use crate::cpu_time::thread_cpu_time;
use crate::error::{EngineError, Fault, LimitHit, Trap};
use crate::flavour::as_usize;
use crate::output::Breach;
use crate::state::{CallState, Refused, cut_to};

/// The contract's version that this engine speaks; every later 0.1.x is compatible with it.
pub(crate) const CONTRACT_VERSION: &str = "0.1.0";
pub(crate) const TRANSFORM_INTERFACE: &str = "eadem:transform/transform@0.1.0";

type ApplyFunc<'a> = TypedFunc<(u32, &'a [ColumnParam<'a>]), (Result<Output, String>,)>;
type DescribeFunc = TypedFunc<(), (DescribedResult,)>;

/// A component that is linked and ready to be instantiated.
pub(crate) struct Linked {
    pre: InstancePre<CallState>,
    describe: ComponentExportIndex,
    apply: ComponentExportIndex,
    apply_has_the_contracts_type: AtomicBool,
}

/// How one call ended when it gave nothing: a fault of the component, or something that concerns the whole request.
#[derive(Debug)]
pub(crate) enum CallError {
    Fault(Fault),
    Engine(EngineError),
}

impl From<Fault> for CallError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// What a call under the measuring flavour cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Metered {
    pub(crate) fuel: u64,
    pub(crate) memory_bytes: u64,
}

/// One instance, alive.
pub(crate) struct Live {
    store: Store<CallState>,
    instance: Instance,
    deadline: Duration,
}

impl Linked {
    /// Links a component against the contract.
    ///
    /// # Errors
    /// In words: an import that the contract does not have, an export that is missing.
    pub(crate) fn new(linker: &Linker<CallState>, component: &Component) -> Result<Self, String> {
        let pre = linker.instantiate_pre(component).map_err(|error| format!("{error:#}"))?;
        let missing = |what: &str| format!("it does not export {what} of {TRANSFORM_INTERFACE}");
        let interface =
            component.get_export_index(None, TRANSFORM_INTERFACE).ok_or_else(|| missing("the interface"))?;
        let export = |name: &str| component.get_export_index(Some(&interface), name).ok_or_else(|| missing(name));
        Ok(Self {
            describe: export("describe")?,
            apply: export("apply")?,
            pre,
            apply_has_the_contracts_type: AtomicBool::new(false),
        })
    }

    /// A fresh instance whose calls end `deadline` from now.
    pub(crate) fn instantiate(&self, config: &EngineConfig, deadline: Duration) -> Result<Live, CallError> {
        self.instantiate_with(config, deadline, None)
    }

    /// As [`Linked::instantiate`], in an engine that counts fuel.
    pub(crate) fn instantiate_with(
        &self,
        config: &EngineConfig,
        deadline: Duration,
        fuel: Option<u64>,
    ) -> Result<Live, CallError> {
        let mut store = Store::new(self.pre.engine(), CallState::new(config));
        store.limiter(|state| state);
        store.set_hostcall_fuel(as_usize(config.output_bytes_max));
        if let Some(fuel) = fuel {
            store.set_fuel(fuel).map_err(|error| CallError::Engine(EngineError::Host(error.to_string())))?;
        }
        set_deadline(&mut store, deadline, config.tick_us);
        match self.pre.instantiate(&mut store) {
            Ok(instance) => Ok(Live { store, instance, deadline }),
            Err(error) => Err(explain(error, &mut store, config, deadline)),
        }
    }

    /// Applies a fresh instance to one batch.
    pub(crate) fn apply(
        &self,
        config: &EngineConfig,
        deadline: Duration,
        rows: u32,
        columns: &[ColumnParam<'_>],
    ) -> Result<Output, CallError> {
        self.instantiate(config, deadline)?.apply(self, config, rows, columns)
    }
}

impl Live {
    pub(crate) fn describe(&mut self, linked: &Linked, config: &EngineConfig) -> Result<DescribedResult, CallError> {
        let typed: wasmtime::Result<DescribeFunc> = self.instance.get_typed_func(&mut self.store, linked.describe);
        let describe = typed.map_err(other_world)?;
        let called = describe.call(&mut self.store, ());
        called.map(|(description,)| description).map_err(|error| self.explain(error, config))
    }

    pub(crate) fn apply(
        &mut self,
        linked: &Linked,
        config: &EngineConfig,
        rows: u32,
        columns: &[ColumnParam<'_>],
    ) -> Result<Output, CallError> {
        let apply = self.apply_func(linked).map_err(other_world)?;
        let called = apply.call(&mut self.store, (rows, columns));
        match called {
            Ok((Ok(output),)) => Ok(output),
            Ok((Err(message),)) => {
                let message = cut_to(&message, config.message_bytes_max as usize).to_owned();
                Err(Fault::Declined(message).into())
            }
            Err(error) => Err(self.explain(error, config)),
        }
    }

    /// Fuel left and memory used so far, in an engine that counts fuel.
    pub(crate) fn metered(&mut self, fuel_given: u64) -> Metered {
        let left = self.store.get_fuel().unwrap_or(fuel_given);
        Metered { fuel: fuel_given.saturating_sub(left), memory_bytes: self.store.data().memory_bytes() }
    }

    fn explain(&mut self, error: wasmtime::Error, config: &EngineConfig) -> CallError {
        explain(error, &mut self.store, config, self.deadline)
    }

    #[allow(unsafe_code)]
    fn apply_func<'a>(&mut self, linked: &Linked) -> wasmtime::Result<ApplyFunc<'a>> {
        if !linked.apply_has_the_contracts_type.load(Ordering::Relaxed) {
            let apply = self.instance.get_typed_func(&mut self.store, linked.apply)?;
            linked.apply_has_the_contracts_type.store(true, Ordering::Relaxed);
            return Ok(apply);
        }
        let missing = || wasmtime::Error::msg("the export `apply` has vanished");
        let apply = self.instance.get_func(&mut self.store, linked.apply).ok_or_else(missing)?;
        // SAFETY: an instance of the same component has passed the check of this very export's type, and the type of an
        // export belongs to the component, not to its instances. The check costs more than the rest of a small call.
        Ok(unsafe { ApplyFunc::new_unchecked(apply) })
    }
}

fn other_world(error: wasmtime::Error) -> CallError {
    Fault::Contract(format!("{error:#}")).into()
}

/// Ends the store's calls after `deadline`.
///
/// The first half is wall time, which costs nothing to watch. From then on only time counts in which this thread ran, so
/// that a busy machine does not end honest calls.
fn set_deadline(store: &mut Store<CallState>, deadline: Duration, tick_us: u64) {
    let tick = Duration::from_micros(tick_us.max(1));
    let half = deadline / 2;
    store.set_epoch_deadline(ticks_in(half, tick));
    let mut half_reached_at: Option<Duration> = None;
    let mut wall_ticks_left = ticks_in(deadline, tick).saturating_mul(50);
    store.epoch_deadline_callback(move |_| {
        let now = thread_cpu_time();
        let reached_at = *half_reached_at.get_or_insert(now);
        let left = half.saturating_sub(now.saturating_sub(reached_at));
        if left.is_zero() || wall_ticks_left == 0 {
            return Err(DeadlinePassed.into());
        }
        let ticks = ticks_in(left, tick);
        wall_ticks_left = wall_ticks_left.saturating_sub(ticks);
        Ok(UpdateDeadline::Continue(ticks))
    });
}

fn ticks_in(duration: Duration, tick: Duration) -> u64 {
    let ticks = duration.as_nanos().div_ceil(tick.as_nanos());
    u64::try_from(ticks).unwrap_or(u64::MAX / 2).clamp(1, u64::MAX / 2)
}

#[derive(Debug)]
struct DeadlinePassed;

impl std::fmt::Display for DeadlinePassed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the deadline has passed")
    }
}

impl std::error::Error for DeadlinePassed {}

/// Finds out what an error of the runtime means.
fn explain(
    error: wasmtime::Error,
    store: &mut Store<CallState>,
    config: &EngineConfig,
    deadline: Duration,
) -> CallError {
    if let Some(Refused(limit)) = error.downcast_ref::<Refused>() {
        return Fault::Limit(limit.clone()).into();
    }
    if error.downcast_ref::<DeadlinePassed>().is_some() {
        return Fault::Deadline { after_ms: as_ms(deadline) }.into();
    }
    if error.downcast_ref::<wasmtime::PoolConcurrencyLimitError>().is_some() {
        return CallError::Engine(EngineError::Busy { instances_max: config.instances_max });
    }
    let backtrace = Backtrace::of(&error);
    let Some(trap) = error.downcast_ref::<wasmtime::Trap>() else {
        return explain_without_trap(&error, config).into();
    };
    match trap {
        wasmtime::Trap::StackOverflow => Fault::Limit(LimitHit::Stack),
        // A guest's own stack lies at the bottom of its memory: below it begins the forbidden.
        wasmtime::Trap::MemoryOutOfBounds if backtrace.is_recursion() => Fault::Limit(LimitHit::Stack),
        other => Fault::Trap(Trap {
            what: other.to_string(),
            panic: store.data_mut().take_panic_message(),
            backtrace: backtrace.text(),
        }),
    }
    .into()
}

/// Errors that are no traps come from the canonical ABI: what the component handed over was not what its type says.
fn explain_without_trap(error: &wasmtime::Error, config: &EngineConfig) -> Fault {
    let text = format!("{:#}", error.root_cause());
    if text.contains("fuel allocated for hostcalls has been exhausted") {
        return Fault::Limit(LimitHit::Output { allowed_bytes: config.output_bytes_max });
    }
    Fault::Breach(Breach::Abi { what: cut_to(&text, config.message_bytes_max as usize).to_owned() })
}

fn as_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

struct Backtrace(Vec<String>);

impl Backtrace {
    fn of(error: &wasmtime::Error) -> Self {
        // Names are the component's.
        const NAME_BYTES_MAX: usize = 200;
        let frames = error.downcast_ref::<wasmtime::WasmBacktrace>().map_or(&[][..], |trace| trace.frames());
        let names = frames.iter().map(|frame| match frame.func_name() {
            Some(name) => cut_to(&demangle(name), NAME_BYTES_MAX).to_owned(),
            None => format!("function {}", frame.func_index()),
        });
        Self(names.collect())
    }

    /// Whether one function is on most of a deep stack.
    fn is_recursion(&self) -> bool {
        const DEEP: usize = 16;
        let most_frequent = |name: &String| self.0.iter().filter(|other| *other == name).count();
        self.0.len() >= DEEP && self.0.iter().any(|name| most_frequent(name) * 3 >= self.0.len())
    }

    fn text(&self) -> String {
        self.0.join("\n")
    }
}

/// `_ZN5plane7profile17h0123456789abcdefE` and the newer mangling, as people write them.
fn demangle(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}
