//! Boundary tests of eadem-offline: real Parquet files in, real Delta tables out.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    clippy::type_complexity
)]

mod backfill;
mod dataset;
mod dataset_files;
mod dataset_spines;
mod delta_log;
#[path = "../../../../tests/support/dice.rs"]
mod dice;
mod effect;
mod entities;
mod erasure;
mod every_request;
mod fault_proxy;
mod faults;
mod faulty_store;
mod kill;
mod memory;
#[path = "../../../../tests/services/ports.rs"]
mod ports;
#[path = "../../../../tests/services/postgres.rs"]
mod postgres_server;
mod quarantine;
mod replace;
mod s3;
#[path = "../../../../tests/services/s3.rs"]
mod s3_server;
mod source_delta;
mod source_files;
mod source_postgres;
mod source_text;
mod sources;
mod support;
mod tables;
mod vacuum;
