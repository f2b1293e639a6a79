//! What must hold for the whole: the direction of dependencies, licences, the contract's version, and what no file may say.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod architecture;
#[path = "../services/cassandra.rs"]
mod cassandra;
mod contract;
mod dependencies;
#[path = "../support/dice.rs"]
mod dice;
mod docs;
#[path = "../services/ports.rs"]
mod ports;
#[path = "../services/postgres.rs"]
mod postgres;
#[path = "../services/s3.rs"]
mod s3_server;
mod scenario;
mod spdx;
mod text;
mod workspace;
