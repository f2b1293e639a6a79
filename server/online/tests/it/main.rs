//! The conformance suite on every store, and what only one of them promises.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod backup;
mod cached;
#[path = "../../../../tests/services/cassandra.rs"]
mod cassandra;
mod conformance;
#[path = "../../../../tests/support/dice.rs"]
mod dice;
mod directory;
mod full_disk;
mod kill;
#[path = "../../../../tests/services/ports.rs"]
mod ports;
#[cfg(target_os = "linux")]
mod power_cut;
mod scylla;
mod support;
