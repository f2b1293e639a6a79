//! The store on a real Cassandra, which the tests start themselves (`tests/services/cassandra.sh`).

mod cluster;
mod conformance;
mod keyspace;
mod server;
