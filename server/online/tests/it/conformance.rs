//! Every store passes the one suite.

use std::sync::Arc;

use async_trait::async_trait;
use eadem_online::conformance::{CASES, Subject, Violation, run_all};
use eadem_online::{EmbeddedOptions, EmbeddedStore, MemoryStore, OnlineStore};
use tempfile::TempDir;

use crate::support::{is_soak, seed};

const RANDOM_CASE: &str = "random_histories_agree_with_the_oracle";

/// Further seeds for random histories: a dozen each, with `EADEM_SOAK=1`.
fn seeds_of_soak() -> std::ops::Range<u64> {
    seed() + 1..seed() + 1 + if is_soak() { 50 } else { 0 }
}

struct Memory(Arc<MemoryStore>);

#[async_trait]
impl Subject for Memory {
    fn store(&self) -> Arc<dyn OnlineStore> {
        self.0.clone()
    }

    async fn restart(&mut self) -> Result<(), Violation> {
        Ok(())
    }
}

struct Embedded {
    folder: TempDir,
    store: Option<Arc<EmbeddedStore>>,
    options: EmbeddedOptions,
}

impl Embedded {
    fn new(options: EmbeddedOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Some(Arc::new(EmbeddedStore::open(folder.path(), options).unwrap()));
        Self { folder, store, options }
    }
}

#[async_trait]
impl Subject for Embedded {
    fn store(&self) -> Arc<dyn OnlineStore> {
        self.store.clone().unwrap()
    }

    async fn restart(&mut self) -> Result<(), Violation> {
        let store = Arc::into_inner(self.store.take().unwrap());
        drop(store.ok_or_else(|| Violation::new("the suite still holds the store"))?);
        self.store = Some(Arc::new(EmbeddedStore::open(self.folder.path(), self.options)?));
        Ok(())
    }
}

async fn conforms<S: Subject>(mut fresh: impl AsyncFnMut() -> Result<S, Violation>) {
    let mut violations = run_all(seed(), &mut fresh).await;
    let mut cases = CASES.len();
    let random = CASES.iter().find(|case| case.name == RANDOM_CASE).unwrap();
    for seed in seeds_of_soak() {
        let mut subject = fresh().await.unwrap();
        violations.extend(random.run(&mut subject, seed).await.err());
        cases += 1;
    }
    println!("S10: cases={cases} faults={}", violations.len());
    let lines: Vec<String> = violations.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "{} violations, seed {}:\n{}", lines.len(), seed(), lines.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_in_memory_conforms() {
    conforms(async || Ok(Memory(Arc::default()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_conforms() {
    conforms(async || Ok(Embedded::new(EmbeddedOptions::default()))).await;
}

/// With so little memory that every load spills, and nearly every read misses the cache.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_conforms_with_little_memory() {
    let options = EmbeddedOptions { table_cache_bytes: 64 * 1024, load_memory_bytes: 2_000 };
    conforms(async || Ok(Embedded::new(options))).await;
}
