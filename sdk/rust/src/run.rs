//! From columns to rows and back.

use crate::contract::{self, Column, Description, RowError};
use crate::{Input, Output};

/// What `#[transform]` makes of a function: a type of the function's name that the store can call.
pub trait Transform {
    /// Name, documentation, inputs and outputs.
    fn describe() -> Description;

    /// Runs the function once for each row of a batch. Natively this serves tests and benchmarks.
    ///
    /// # Errors
    /// A message where the columns are not the declared ones, in declared order, each with that many rows.
    fn apply(rows: u32, inputs: &[Column]) -> Result<contract::Output, String>;
}

/// What a function returned for one row.
pub enum Outcome<T> {
    /// A result.
    Row(T),
    /// No result: the row is dropped.
    Drop,
    /// No result, and why.
    Fail(String),
}

/// Calls the function for each row, in order.
///
/// # Errors
/// As [`Transform::apply`].
#[doc(hidden)]
#[inline(always)]
pub fn apply<'a, I: Input<'a>, O: Output>(
    rows: u32,
    inputs: &'a [Column],
    function: impl Fn(I) -> Outcome<O>,
) -> Result<contract::Output, String> {
    let row_count = rows as usize;
    let views = I::views(inputs, row_count)?;
    let mut builders = O::builders(row_count);
    let mut dropped = Vec::new();
    let mut errors = Vec::new();
    for row in 0..row_count {
        match function(I::read(&views, row)) {
            Outcome::Row(result) => result.put(&mut builders, row),
            Outcome::Drop => {
                O::skip(&mut builders, row);
                dropped.push(row as u32);
            }
            Outcome::Fail(message) => {
                O::skip(&mut builders, row);
                errors.push(RowError { row: row as u32, message });
            }
        }
    }
    Ok(contract::Output { columns: O::finish(builders), dropped, errors })
}

/// The store called with another number of columns.
#[cold]
pub fn wrong_columns(wanted: usize, given: usize) -> String {
    ["the transform has ", &wanted.to_string(), " inputs, the call ", &given.to_string()].concat()
}

/// The store called with a column of another type or length.
#[cold]
pub fn wrong_type(name: &str) -> String {
    ["input `", name, "`: the column has another type or another number of rows"].concat()
}

/// Sends the message of a panic to the store, which would otherwise see a trap without words.
pub fn report_panics() {
    #[cfg(target_arch = "wasm32")]
    std::panic::set_hook(Box::new(|panic| {
        crate::bindings::eadem::transform::diagnostics::panicked(&panic.to_string());
    }));
}
