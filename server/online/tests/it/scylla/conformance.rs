//! The one suite, on one real node.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use eadem_online::conformance::{CASES, Subject, Violation};
use eadem_online::{OnlineStore, ScyllaConfig, ScyllaStore};

use scylla::client::session::Session;
use tokio::task::JoinSet;

use super::server::{Server, rows, session, shared};
use crate::support::seed;

struct Keyspace {
    config: ScyllaConfig,
    store: Option<Arc<ScyllaStore>>,
}

impl Keyspace {
    /// The keyspace as if it had just been made: what is left of a table without a record is never looked at.
    async fn emptied(session: &Session, config: &ScyllaConfig) -> Result<Self, Violation> {
        let keyspace = &config.keyspace;
        let delete = format!("DELETE FROM {keyspace}.epochs WHERE view_digest = ? AND epoch = ? IF EXISTS");
        let listed = format!("SELECT view_digest, epoch FROM {keyspace}.epochs");
        for (view, epoch) in rows::<(Vec<u8>, Option<i64>)>(session, &listed).await {
            if epoch.is_some() {
                session.query_unpaged(delete.as_str(), (view, epoch)).await.unwrap();
            }
        }
        let delete = format!("DELETE FROM {keyspace}.erasures WHERE view_digest = ? AND bucket = ?");
        let listed = format!("SELECT DISTINCT view_digest, bucket FROM {keyspace}.erasures");
        for partition in rows::<(Vec<u8>, i32)>(session, &listed).await {
            session.query_unpaged(delete.as_str(), partition).await.unwrap();
        }
        let store = Some(Arc::new(ScyllaStore::open(config.clone()).await?));
        Ok(Self { config: config.clone(), store })
    }
}

#[async_trait]
impl Subject for Keyspace {
    fn store(&self) -> Arc<dyn OnlineStore> {
        self.store.clone().unwrap()
    }

    async fn restart(&mut self) -> Result<(), Violation> {
        let store = Arc::into_inner(self.store.take().unwrap());
        drop(store.ok_or_else(|| Violation::new("the suite still holds the store"))?);
        self.store = Some(Arc::new(ScyllaStore::open(self.config.clone()).await?));
        Ok(())
    }
}

/// How many cases run at once, each in a keyspace of its own: they mostly wait for the server.
const CASES_AT_ONCE: usize = 4;

/// The suite on this server.
pub(super) async fn conforms_on(server: &Server, copies: u32) {
    let next_case = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..CASES_AT_ONCE {
        let config = server.keyspace(copies).await;
        let next_case = Arc::clone(&next_case);
        workers.spawn(async move {
            let session = session(&config).await;
            let mut violations = Vec::new();
            while let Some(case) = CASES.get(next_case.fetch_add(1, Ordering::Relaxed)) {
                let mut subject = Keyspace::emptied(&session, &config).await.unwrap();
                violations.extend(case.run(&mut subject, seed()).await.err());
            }
            violations
        });
    }
    let violations: Vec<String> = workers.join_all().await.into_iter().flatten().map(|v| v.to_string()).collect();
    println!("S10: cases={} faults={}", CASES.len(), violations.len());
    assert!(violations.is_empty(), "{} violations, seed {}:\n{}", violations.len(), seed(), violations.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_on_one_node_conforms() {
    conforms_on(shared(), 1).await;
}
