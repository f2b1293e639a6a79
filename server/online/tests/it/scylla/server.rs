//! The real server: one node for all tests of the binary, or several for one test.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use eadem_online::ScyllaConfig;
use eadem_online::scylla::{Credentials, Replication, SchemaOptions, init};
use scylla::client::session::Session;
use scylla::deserialize::row::DeserializeRow;

use crate::cassandra::Cassandra;

pub(super) struct Server {
    pub(super) nodes: Cassandra,
    is_secured: bool,
}

impl Server {
    pub(super) fn start(nodes: u32, is_secured: bool) -> Self {
        Self { nodes: Cassandra::start(nodes, is_secured), is_secured }
    }

    pub(super) fn config(&self, keyspace: &str) -> ScyllaConfig {
        let mut config = ScyllaConfig::new(vec![format!("127.0.0.1:{}", self.nodes.port)], keyspace);
        // A machine that is busy with everything at once, the server included, may stall for seconds.
        config.timeout = Duration::from_secs(20);
        if self.is_secured {
            config.credentials = Some(Credentials { user: "cassandra".to_owned(), password: "cassandra".to_owned() });
        }
        config
    }

    /// An empty store in a keyspace of its own.
    pub(super) async fn keyspace(&self, copies: u32) -> ScyllaConfig {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let config = self.config(&format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        init(&config, &schema(copies)).await.unwrap();
        config
    }
}

/// A short lease, because trims and drops wait for it.
pub(super) fn schema(copies: u32) -> SchemaOptions {
    SchemaOptions { replication: Replication::EveryDatacenter(copies), lease_ms: 60, buckets: 8 }
}

/// The one node that all tests share. It ends with the process.
pub(super) fn shared() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start(1, true))
}

/// A session of the driver's own.
pub(super) async fn session(config: &ScyllaConfig) -> Session {
    config.session_builder().unwrap().build().await.unwrap()
}

/// The rows of a statement that the store has nothing to do with.
pub(super) async fn rows<T>(session: &Session, text: &str) -> Vec<T>
where
    T: for<'f, 'm> DeserializeRow<'f, 'm>,
{
    let result = session.query_unpaged(text, ()).await.unwrap().into_rows_result().unwrap();
    result.rows::<T>().unwrap().map(Result::unwrap).collect()
}
