//! Boundary tests of eadem-query: the join against an oracle that shares no code with it, in plans and outside of them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    clippy::type_complexity
)]

mod on_demand;
mod point_in_time;
mod support;
mod transform_node;
mod validation;
