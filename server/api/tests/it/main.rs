//! The serving path against the batch path, with real components in the real engine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod faults;
mod generated;
mod identity;
mod openapi;
