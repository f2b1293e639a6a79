//! What a call costs.

use std::time::Duration;

use arrow_array::{Array, ArrayRef, UInt32Array};
use serde::{Deserialize, Serialize};

use crate::call::{CallError, Linked, Metered};
use crate::compiler::{self, Manner};
use crate::cpu_time::thread_cpu_time;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::flavour::Flavour;
use crate::input::{Inputs, Nans};
use crate::transform::{Class, Transform};
use crate::upload::CORPUS_BYTES_MAX;

/// The cost of a transform, measured at upload and by `eadem test` over generated rows.
///
/// Fuel and memory are the same on every machine; processor time is this machine's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Fuel of each further row of a batch. Bulk copies of memory count as one instruction.
    pub fuel_per_row: f64,
    /// Processor time of a call, whatever its rows, in microseconds.
    pub cpu_us_per_call: f64,
    /// Processor time of each row of a batch, in microseconds.
    pub cpu_us_per_row: f64,
    /// Linear memory after a batch of [`Cost::batch_rows`], in bytes.
    pub memory_bytes: u64,
    /// Rows of the batch that was measured; 0 if nothing could be: no row has a result, or a batch takes too long. The
    /// other numbers mean nothing then.
    pub batch_rows: u32,
}

const BATCH_ROWS: usize = 1_024;
const RUNS: usize = 7;
/// More than any call can burn before its deadline.
const FUEL: u64 = u64::MAX / 2;

impl Engine {
    /// Measures what these rows cost: `component` are the bytes of `transform`, from which the fuel-counting artefact is
    /// compiled. Rows are repeated to a batch of the usual size.
    ///
    /// # Errors
    /// [`EngineError::Artifact`] if it does not compile, [`EngineError::Input`] if the columns are not the declared
    /// ones.
    pub fn measure(&self, component: &[u8], transform: &Transform, columns: &[ArrayRef]) -> Result<Cost, EngineError> {
        let digest = *transform.digest();
        let fail = |what: String| EngineError::Artifact { digest, what };
        let code = compiler::compile(self.config(), Flavour::Measuring, Manner::Prompt, component)
            .map_err(|error| fail(error.to_string()))?;
        let measuring = self.link_compiled(Flavour::Measuring, &code).map_err(fail)?;
        measure(transform, &measuring, columns)
    }
}

/// Measures over rows that have a result. Without any, and where a whole batch of them fails or takes too long, the
/// cost is unknown: zero rows.
pub(crate) fn measure(transform: &Transform, measuring: &Linked, columns: &[ArrayRef]) -> Result<Cost, EngineError> {
    let unknown = Cost { fuel_per_row: 0.0, cpu_us_per_call: 0.0, cpu_us_per_row: 0.0, memory_bytes: 0, batch_rows: 0 };
    let available = columns.first().map_or(BATCH_ROWS, |column| column.len());
    if available == 0 {
        return Ok(unknown);
    }
    let rows = rows_in_budget(columns, available, BATCH_ROWS);
    let batch = repeat(columns, available, rows)?;
    let one = repeat(columns, available, 1)?;
    let (Some(cpu_one), Some(cpu_batch)) = (cpu_time(transform, &one, 1)?, cpu_time(transform, &batch, rows)?) else {
        return Ok(unknown);
    };
    let (Some(metered_one), Some(metered_batch)) =
        (meter(transform, measuring, &one, 1)?, meter(transform, measuring, &batch, rows)?)
    else {
        return Ok(unknown);
    };
    let further_rows = (rows - 1) as f64;
    let us = |time: Duration| time.as_nanos() as f64 / 1_000.0;
    Ok(Cost {
        fuel_per_row: metered_batch.fuel.saturating_sub(metered_one.fuel) as f64 / further_rows,
        cpu_us_per_call: us(cpu_one),
        cpu_us_per_row: us(cpu_batch.saturating_sub(cpu_one)) / further_rows,
        memory_bytes: metered_batch.memory_bytes,
        batch_rows: rows as u32,
    })
}

/// At most `wanted` rows, fewer where they are wide, and two at least.
pub(crate) fn rows_in_budget(columns: &[ArrayRef], available: usize, wanted: usize) -> usize {
    let bytes: usize = columns.iter().map(|column| column.get_buffer_memory_size()).sum();
    let row_bytes = bytes.div_ceil(available.max(1)).max(1);
    wanted.min(CORPUS_BYTES_MAX / row_bytes).max(2)
}

/// The first `available` rows over and over.
pub(crate) fn repeat(columns: &[ArrayRef], available: usize, rows: usize) -> Result<Vec<ArrayRef>, EngineError> {
    let indices: UInt32Array = (0..rows).map(|row| (row % available) as u32).collect::<Vec<_>>().into();
    let columns = columns.iter().map(|column| arrow_select::take::take(column, &indices, None));
    columns.collect::<Result<_, _>>().map_err(|error| EngineError::Host(error.to_string()))
}

fn meter(
    transform: &Transform,
    measuring: &Linked,
    columns: &[ArrayRef],
    rows: usize,
) -> Result<Option<Metered>, EngineError> {
    let config = transform.engine().config();
    let inputs = Inputs::new(&transform.description().inputs, rows, columns, Nans::Canonical)?;
    // Counting is slow; what matters is that it ends.
    let deadline = Duration::from_millis(config.upload_deadline_ms) * 4;
    let metered = measuring.instantiate_with(config, deadline, Some(FUEL)).and_then(|mut instance| {
        instance.apply(measuring, config, rows as u32, &inputs.params())?;
        Ok(instance.metered(FUEL))
    });
    match metered {
        Ok(metered) => Ok(Some(metered)),
        Err(CallError::Fault(_)) => Ok(None),
        Err(CallError::Engine(error)) => Err(error),
    }
}

/// The least of several runs: what the others took longer was not the transform's. `None` if the rows take longer than
/// an upload waits for, which makes a component slow, not wrong.
fn cpu_time(transform: &Transform, columns: &[ArrayRef], rows: usize) -> Result<Option<Duration>, EngineError> {
    let mut least = Duration::MAX;
    for _ in 0..RUNS {
        let before = thread_cpu_time();
        match transform.apply_as(rows, columns, Class::Upload { over_at_cpu: Duration::MAX }) {
            Ok(_) => least = least.min(thread_cpu_time().saturating_sub(before)),
            Err(EngineError::Deadline { .. } | EngineError::Applied { .. }) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(least))
}
