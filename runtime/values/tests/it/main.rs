//! What a value is, asserted from outside.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod canonical;
mod digests;
mod encoding;
mod golden;
mod json;
mod keys;
mod strategies;
mod time;
mod types;
mod views;
