//! What callers of the registry see.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod definitions;
mod fuzz;
mod lineage;
mod plan;
mod resolve;
mod store;
mod support;
