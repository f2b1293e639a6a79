//! The whole system from outside: the binary, its files, its server.

mod access;
mod authoring;
mod backup;
mod bad_input;
mod erasure;
mod flights;
mod fuzz;
mod interface;
mod jobs;
mod kills;
mod metrics;
mod object_store;
mod online_database;
mod project;
mod projects;
mod serving;
mod shared_registry;
mod sources;
mod travel;
mod upkeep;
mod uploads;
mod versions;

/// Whether the full counts are wanted.
fn is_soak() -> bool {
    std::env::var("EADEM_SOAK").is_ok_and(|soak| soak == "1")
}

/// Read from `EADEM_SEED`, so that a failure can be repeated.
fn seed() -> u64 {
    let seed = std::env::var("EADEM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_130_101);
    println!("EADEM_SEED={seed}");
    seed
}
