//! The conformance suite on both stores, and what only the embedded store promises.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod conformance;
mod directory;
mod full_disk;
mod kill;
