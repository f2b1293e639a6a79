//! The one suite, on one real node.

use std::sync::Arc;

use async_trait::async_trait;
use eadem_online::conformance::{Subject, Violation};
use eadem_online::{OnlineStore, ScyllaConfig, ScyllaStore};

use super::server::{Server, session, shared};
use crate::conformance::conforms;

pub(super) struct Keyspace {
    config: ScyllaConfig,
    store: Option<Arc<ScyllaStore>>,
}

impl Keyspace {
    /// The keyspace as if it had just been made: nothing that is left of a table without a record is ever looked at.
    pub(super) async fn emptied(config: &ScyllaConfig) -> Result<Self, Violation> {
        let session = session(config).await;
        let keyspace = &config.keyspace;
        let listed = session.query_unpaged(format!("SELECT view, epoch FROM {keyspace}.epochs"), ()).await.unwrap();
        let listed = listed.into_rows_result().unwrap();
        let delete = format!("DELETE FROM {keyspace}.epochs WHERE view = ? AND epoch = ? IF EXISTS");
        for row in listed.rows::<(Vec<u8>, Option<i64>)>().unwrap() {
            let (view, epoch) = row.unwrap();
            if epoch.is_some() {
                session.query_unpaged(delete.as_str(), (view, epoch)).await.unwrap();
            }
        }
        session.query_unpaged(format!("TRUNCATE {keyspace}.erasures"), ()).await.unwrap();
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

/// The suite in a keyspace of this server.
pub(super) async fn conforms_on(server: &Server, copies: u32) {
    let config = server.keyspace(copies).await;
    conforms(async || Keyspace::emptied(&config).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_on_one_node_conforms() {
    conforms_on(shared(), 1).await;
}
