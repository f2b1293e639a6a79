//! What a call costs.

use serde::{Deserialize, Serialize};

/// The cost of a transform, measured at upload and by `eadem test` over generated rows.
///
/// Fuel and memory are the same on every machine; processor time is this machine's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Fuel of each further row of a batch.
    pub fuel_per_row: f64,
    /// Processor time of a call, whatever its rows, in microseconds.
    pub cpu_us_per_call: f64,
    /// Processor time of each row of a batch, in microseconds.
    pub cpu_us_per_row: f64,
    /// Linear memory after a batch of [`Cost::batch_rows`], in bytes.
    pub memory_bytes: u64,
    /// Rows of the batch that was measured.
    pub batch_rows: u32,
}
