//! The whole system from outside: the binary, its files, its server.

mod authoring;
mod backup;
mod bad_input;
mod flights;
mod fuzz;
mod interface;
mod jobs;
mod kills;
mod metrics;
mod object_store;
mod online_database;
mod project;
mod serving;
mod sources;
mod travel;
mod upkeep;
