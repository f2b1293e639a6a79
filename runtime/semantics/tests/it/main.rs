//! The semantics of time against a naive oracle, and every edge by name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod arrival;
mod choice;
mod cuts;
mod erasure;
mod lifetimes;
mod oracle;
mod statuses;
mod strategies;
mod trimming;
