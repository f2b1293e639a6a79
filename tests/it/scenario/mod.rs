//! The whole system from outside: the binary, its files, its server.

mod access;
mod authoring;
mod backup;
mod bad_input;
mod bodies;
mod erasure;
mod erasure_copies;
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
mod support;
mod travel;
mod upkeep;
mod uploads;
mod versions;
