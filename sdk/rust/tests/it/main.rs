//! The SDK as authors use it: what their functions describe and compute, and what they read when something is wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod compile_errors;
mod description;
mod rows;
