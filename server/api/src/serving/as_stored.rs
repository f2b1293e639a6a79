//! Rows as they were stored once: from one commit of each view's offline table, whatever came later.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use eadem_registry::model::{ViewRef, ViewVersion};
use eadem_semantics::{AsStored, ReadAt};
use futures::{StreamExt, TryStreamExt};

use super::plan::{Node, ServingPlan};
use super::rows::{EntityKeys, History, HistoryState, ReadOptions, ReadRow, RowSource, RowSourceError, StoredCommit};

/// Tables whose logs are looked into at once.
const TABLES_AT_ONCE: usize = 8;

/// Reads one commit of each stored view of a plan.
pub struct StoredThen {
    history: Arc<dyn History>,
    commits: BTreeMap<ViewRef, StoredCommit>,
    reads_max: usize,
}

impl StoredThen {
    /// Finds the commit of every stored view of the plan. The online store holds the present: it is not asked.
    ///
    /// # Errors
    /// A commit's number where there are several tables, or none; nothing was stored then; a log that cannot be read.
    pub async fn open(
        history: Arc<dyn History>,
        plan: &ServingPlan,
        as_stored: AsStored,
        reads_max: usize,
    ) -> Result<Self, RowSourceError> {
        let mut views: BTreeMap<ViewRef, Arc<ViewVersion>> = BTreeMap::new();
        for node in &plan.nodes {
            if let Node::Stored(stored) = node {
                views.insert(stored.view.id.clone(), Arc::clone(&stored.view));
            }
        }
        if matches!(as_stored, AsStored::Commit(_)) && views.len() != 1 {
            let names: Vec<String> = views.keys().map(ToString::to_string).collect();
            let has = if names.is_empty() { "no table".to_owned() } else { names.join(", ") };
            return Err(RowSourceError::NotStored(format!(
                "the number of a commit names one state of one table; what was asked for reads {has}: give a time"
            )));
        }
        let commits = futures::stream::iter(views)
            .map(|(id, view)| {
                let history = Arc::clone(&history);
                async move { Ok::<_, RowSourceError>((id, history.commit(&view, as_stored).await?)) }
            })
            .buffered(TABLES_AT_ONCE)
            .try_collect()
            .await?;
        Ok(Self { history, commits, reads_max })
    }

    /// The commit of each view.
    pub fn commits(&self) -> &BTreeMap<ViewRef, StoredCommit> {
        &self.commits
    }
}

#[async_trait]
impl RowSource for StoredThen {
    async fn read(
        &self,
        view: &ViewVersion,
        keys: &EntityKeys,
        reads: &[ReadAt],
        _: ReadOptions,
    ) -> Result<Vec<ReadRow>, RowSourceError> {
        if reads.len() > self.reads_max {
            return Err(RowSourceError::TooManyReads {
                view: view.id.to_string(),
                reads: reads.len(),
                reads_max: self.reads_max,
                why: "which alone knows what was stored",
            });
        }
        let stored = self.commits.get(&view.id);
        let state = stored.map_or(HistoryState::Newest, |stored| HistoryState::Commit(stored.commit));
        let rows = self.history.winners(view, keys.keys(), reads, state).await?;
        Ok(rows.into_iter().map(ReadRow::historic).collect())
    }
}
