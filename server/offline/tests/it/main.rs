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
mod entities;
mod faults;
mod kill;
mod quarantine;
mod replace;
mod source_delta;
mod source_files;
mod source_postgres;
mod source_text;
mod sources;
mod support;
mod tables;
mod vacuum;
