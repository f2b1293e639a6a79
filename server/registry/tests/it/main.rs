//! What callers of the registry see.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod definitions;
mod fuzz;
mod lineage;
mod plan;
#[path = "../../../../tests/services/ports.rs"]
mod ports;
mod postgres;
#[path = "../../../../tests/services/postgres.rs"]
mod postgres_server;
mod race;
mod resolve;
mod search;
mod store;
mod support;
mod upgrade;
mod versions;
