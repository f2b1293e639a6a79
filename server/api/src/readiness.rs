//! Whether the stores answer. Anybody may ask for it as often as he likes, so the stores are not asked each time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::state::StoreStatus;

/// For so long an answer is everybody's.
const LASTS: Duration = Duration::from_secs(1);

/// Something that keeps a server from being ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hindrance {
    /// What is not ready: `registry`.
    pub part: &'static str,
    /// Why, for whoever is let in: an error may name hosts and files.
    pub reason: String,
}

/// What was last found out.
#[derive(Debug, Default)]
pub struct Readiness {
    last: Mutex<Option<(Instant, Arc<[Hindrance]>)>>,
}

impl Readiness {
    /// What does not work at the moment, or did not a moment ago. Of those who ask at once one asks the stores, and the others
    /// wait for that.
    pub(crate) async fn hindrances(&self, status: &dyn StoreStatus) -> Arc<[Hindrance]> {
        let mut last = self.last.lock().await;
        if let Some((asked_at, found)) = &*last
            && asked_at.elapsed() < LASTS
        {
            return Arc::clone(found);
        }
        let found: Arc<[Hindrance]> = status.not_ready().await.into();
        *last = Some((Instant::now(), Arc::clone(&found)));
        found
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use eadem_online::CacheUsage;
    use eadem_registry::model::ViewVersion;
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::metrics::StoredTable;
    use crate::problem::Problem;

    /// Counts how often it is asked.
    #[derive(Default)]
    struct Asked(AtomicUsize);

    #[async_trait]
    impl StoreStatus for Asked {
        async fn online(&self) -> Result<Json, Problem> {
            Ok(json!({}))
        }

        async fn tables(&self) -> Result<Vec<StoredTable>, Problem> {
            Ok(Vec::new())
        }

        async fn view_tables(&self, _: &ViewVersion) -> Result<Json, Problem> {
            Ok(json!({}))
        }

        async fn not_ready(&self) -> Vec<Hindrance> {
            self.0.fetch_add(1, Ordering::Relaxed);
            // Others come in while it is asked.
            tokio::task::yield_now().await;
            vec![Hindrance { part: "registry", reason: "gone".to_owned() }]
        }

        fn cache(&self) -> Option<CacheUsage> {
            None
        }
    }

    #[tokio::test]
    async fn the_stores_are_asked_once_for_all_who_ask_at_once() {
        let (readiness, status) = (Readiness::default(), Asked::default());
        let answers = futures::future::join_all((0..50).map(|_| readiness.hindrances(&status))).await;
        assert!(answers.iter().all(|found| found.len() == 1 && found[0].part == "registry"));
        assert_eq!(status.0.load(Ordering::Relaxed), 1);
        // An answer that has become old is asked for again.
        let old = Instant::now().checked_sub(LASTS).unwrap();
        *readiness.last.lock().await = Some((old, Arc::default()));
        assert_eq!(readiness.hindrances(&status).await.len(), 1);
        assert_eq!(status.0.load(Ordering::Relaxed), 2);
    }
}
