//! Every knob of the engine, one documented field each.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How the engine runs components. Every limit is configurable; units stand last in the names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// Where ahead-of-time artefacts live, one file per component, engine fingerprint and NaN verdict. The directory
    /// belongs to this host: artefacts are machine code and are never copied between hosts.
    pub artifacts_dir: PathBuf,
    /// The 32-byte key that authenticates artefacts, as 64 hexadecimal digits. `None`: `EADEM_AOT_KEY` if that is set,
    /// else a key file beside the artefacts, made at first start with mode 0600.
    pub artifact_key_hex: Option<String>,
    /// The program that compiles. Compilation happens in a child process only.
    pub compiler: CompilerCommand,

    /// Largest component that is looked at.
    pub component_bytes_max: u64,
    /// Wall time that one compilation may take before the child is killed.
    pub compile_ms_max: u64,
    /// Address space that the compiling child may use.
    pub compile_memory_bytes_max: u64,
    /// Largest artefact that the compiling child may write.
    pub artifact_bytes_max: u64,
    /// Wall time that the whole check of an upload may take before its children are killed, and processor time of the one that runs
    /// the component. They run when nothing else wants to, so on a busy machine it takes long.
    pub check_ms_max: u64,
    /// Memory that the child which runs the component for a check may write to.
    pub check_memory_bytes_max: u64,

    /// Calls that may run at the same moment: the size of the instance pool. Each slot reserves 4 GiB of address space
    /// (not memory); a pool that the address space cannot hold fails when the engine starts.
    pub instances_max: u32,
    /// Linear memory of one instance, all its memories together. Asked for more, a component is refused before it is
    /// instantiated; a later growth beyond it traps.
    pub memory_bytes_max: u64,
    /// Memory that a pooled slot keeps between calls, so that a call need not fault its pages in again. It is cleared
    /// before the next call.
    pub memory_resident_bytes: u64,
    /// Elements of all tables of one instance.
    pub table_elements_max: u32,
    /// Stack that compiled code may use; deeper recursion traps. At most 1 MiB, because it lies on the stack of the
    /// thread that calls.
    pub stack_bytes_max: u64,

    /// Rows that one call into a component carries at most; longer columns are cut.
    pub call_rows_max: u32,
    /// Period of the clock that deadlines are counted in: a call may go on for two of them more. Each wakes a thread, however
    /// little there is to do.
    pub tick_us: u64,
    /// Deadline of a serving call, whatever its rows.
    pub serving_deadline_base_ms: u64,
    /// What each row adds to a serving call's deadline.
    pub serving_deadline_per_row_us: u64,
    /// What one serving request may go on for once a call in it has failed, in whatever way: what is undecided by then
    /// fails.
    pub serving_deadline_total_ms: u64,
    /// Deadline of a batch call, whatever its rows.
    pub batch_deadline_base_ms: u64,
    /// What each row adds to a batch call's deadline.
    pub batch_deadline_per_row_us: u64,
    /// How long a batch waits for a single row in the end before it stops and names the row. Shorter deadlines come
    /// first; none of them ever drops a row.
    pub batch_deadline_row_ms_max: u64,
    /// Deadline of each call at upload: `describe`, and the laws.
    pub upload_deadline_ms: u64,
    /// Processor time that the laws may take in all.
    pub upload_cpu_ms_max: u64,

    /// Bytes that one call may hand back in all; also the cap on every copy from a component.
    pub output_bytes_max: u64,
    /// Bytes that the outputs of all rows passed to [`crate::Transform::apply`] may have, over all the calls that they
    /// take. More ends the application with [`crate::EngineError::Applied`]: pass fewer rows at once.
    pub applied_bytes_max: u64,
    /// Longest utf8 or binary value in an output.
    pub value_bytes_max: u32,
    /// Longest list in an output, in elements.
    pub list_elements_max: u32,
    /// Messages of row errors and panics are cut to this length.
    pub message_bytes_max: u32,
    /// Calls of `diagnostics` that are listened to within one call of a transform; the rest does nothing.
    pub diagnostics_calls_max: u32,
    /// Bytes that `diagnostics` keeps within one call of a transform.
    pub diagnostics_bytes_max: u32,

    /// Inputs, and outputs, that a component may describe.
    pub fields_max: u32,
    /// Bytes of one name.
    pub name_bytes_max: u32,
    /// Bytes of one documentation text, owner, unit or allowed value.
    pub doc_bytes_max: u32,
    /// Constraints of one field, and values of one `allowed`.
    pub constraints_max: u32,
    /// Dimensions of a vector.
    pub vector_dimensions_max: u32,
    /// Bytes that a row takes at least by its description: vectors, and the shortest texts, blobs and lists. For the
    /// inputs and for the outputs each.
    pub row_bytes_max: u64,

    /// Calls expected to cost less run on the thread that asks; others go to the CPU pool.
    pub inline_cpu_us_max: u64,
    /// Threads of the CPU pool; 0 means one per core.
    pub cpu_threads: u32,
    /// Jobs that may wait for the CPU pool; more are turned away.
    pub cpu_queue_jobs_max: u32,
    /// Milliseconds of processor time for each of its threads that waiting jobs may probably take; more are turned away.
    pub cpu_queue_ms_max: u64,
}

/// A program and its arguments that runs [`crate::compiler::child_main`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CompilerCommand {
    /// The program; empty means this very executable, which then needs an argument that makes it compile.
    pub program: PathBuf,
    /// Arguments in front of nothing else: the request comes through standard input.
    pub args: Vec<String>,
}

/// 64 KiB, the page of WebAssembly.
pub(crate) const WASM_PAGE_BYTES: u64 = 64 * 1024;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            artifacts_dir: PathBuf::from("artifacts"),
            artifact_key_hex: None,
            compiler: CompilerCommand::default(),
            component_bytes_max: 32 * MIB,
            compile_ms_max: 120_000,
            compile_memory_bytes_max: 4096 * MIB,
            artifact_bytes_max: 512 * MIB,
            check_ms_max: 600_000,
            check_memory_bytes_max: 4096 * MIB,
            instances_max: 512,
            memory_bytes_max: 256 * MIB,
            memory_resident_bytes: 2 * MIB,
            table_elements_max: 20_000,
            stack_bytes_max: 512 * KIB,
            call_rows_max: 8_192,
            tick_us: 4_000,
            serving_deadline_base_ms: 20,
            serving_deadline_per_row_us: 100,
            serving_deadline_total_ms: 200,
            batch_deadline_base_ms: 1_000,
            batch_deadline_per_row_us: 1_000,
            batch_deadline_row_ms_max: 10_000,
            upload_deadline_ms: 2_000,
            upload_cpu_ms_max: 60_000,
            output_bytes_max: 64 * MIB,
            applied_bytes_max: 1024 * MIB,
            value_bytes_max: MIB as u32,
            list_elements_max: 65_536,
            message_bytes_max: 1_024,
            diagnostics_calls_max: 16,
            diagnostics_bytes_max: 16 * KIB as u32,
            fields_max: 1_000,
            name_bytes_max: 63,
            doc_bytes_max: 16 * KIB as u32,
            constraints_max: 1_000,
            vector_dimensions_max: 65_536,
            row_bytes_max: MIB,
            inline_cpu_us_max: 200,
            cpu_threads: 0,
            cpu_queue_jobs_max: 256,
            cpu_queue_ms_max: 100,
        }
    }
}

impl EngineConfig {
    /// The defaults with artefacts in this directory.
    pub fn with_artifacts_dir(artifacts_dir: impl Into<PathBuf>) -> Self {
        Self { artifacts_dir: artifacts_dir.into(), ..Self::default() }
    }

    /// Whether an engine can work with these numbers.
    ///
    /// # Errors
    /// The first field that makes no sense, and why.
    pub(crate) fn check(&self) -> Result<(), String> {
        let at_least = [
            ("instances_max", u64::from(self.instances_max), 1),
            ("memory_bytes_max", self.memory_bytes_max, WASM_PAGE_BYTES),
            ("table_elements_max", u64::from(self.table_elements_max), 1),
            ("stack_bytes_max", self.stack_bytes_max, 64 * KIB),
            ("call_rows_max", u64::from(self.call_rows_max), 1),
            ("tick_us", self.tick_us, 100),
            ("serving_deadline_base_ms", self.serving_deadline_base_ms, 1),
            ("batch_deadline_base_ms", self.batch_deadline_base_ms, 1),
            ("upload_deadline_ms", self.upload_deadline_ms, 1),
            ("output_bytes_max", self.output_bytes_max, KIB),
            ("cpu_queue_jobs_max", u64::from(self.cpu_queue_jobs_max), 1),
            ("cpu_queue_ms_max", self.cpu_queue_ms_max, 1),
        ];
        for (field, value, least) in at_least {
            if value < least {
                return Err(format!("{field} is {value}; it has to be at least {least}"));
            }
        }
        let at_most = [
            ("memory_bytes_max", self.memory_bytes_max, 4 * KIB * MIB),
            ("stack_bytes_max", self.stack_bytes_max, MIB),
        ];
        for (field, value, most) in at_most {
            if value > most {
                return Err(format!("{field} is {value}; it can be at most {most}"));
            }
        }
        if self.compiler == CompilerCommand::default() {
            // Without an argument this executable would do what it does now, and so would its child, and its child.
            return Err(
                "compiler names neither a program nor arguments; name a program that compiles, or the arguments \
                        that make this executable compile"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// Memory of one instance in whole pages of WebAssembly.
    pub(crate) fn memory_bytes_max_in_pages(&self) -> u64 {
        self.memory_bytes_max / WASM_PAGE_BYTES * WASM_PAGE_BYTES
    }
}
