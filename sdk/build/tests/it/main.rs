//! Crates become components, by every kind of toolchain that this machine has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod build;
mod new_crate;
