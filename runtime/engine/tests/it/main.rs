//! The engine at its boundary: columns in, columns or errors out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod artifacts;
mod breaches;
mod check;
mod concurrency;
#[path = "../../../../tests/support/dice.rs"]
mod dice;
mod fuzz;
mod golden;
mod hostile;
mod identity;
mod support;
mod upload;
