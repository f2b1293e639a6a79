//! The whole system from outside: the binary, its files, its server.

mod authoring;
mod bad_input;
mod flights;
mod fuzz;
mod jobs;
mod kills;
mod object_store;
mod project;
mod sources;
mod travel;
mod upkeep;
