//! How large the tables of the online store are, for whoever scrapes metrics: a database has to count them, which may take long.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use eadem_api::{Problem, StoredTable};

/// What was counted, and when.
type Counted = (Instant, Vec<StoredTable>);

/// What was last counted, and who counts. One counts at a time, and goes on when those who asked for it are gone.
pub(crate) struct Sizes {
    /// For so long nobody counts again.
    last_for: Duration,
    /// For so long a caller waits for a count before it takes the last one.
    wait_max: Duration,
    known: Arc<Mutex<Option<Counted>>>,
    counting: Arc<tokio::sync::Mutex<Option<Problem>>>,
}

impl Sizes {
    /// Counted again after `last_for`, at the earliest. A caller waits for so long at most, if there are figures already.
    pub(crate) fn new(last_for: Duration, wait_max: Duration) -> Self {
        Self { last_for, wait_max, known: Arc::default(), counting: Arc::default() }
    }

    fn known(&self) -> Option<Counted> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What `count` finds if that takes no longer than a caller can wait; else what was last found. Waits for the first count.
    ///
    /// # Errors
    /// Nothing was ever counted, and this count failed.
    pub(crate) async fn get<F>(&self, count: impl FnOnce() -> F) -> Result<Vec<StoredTable>, Problem>
    where
        F: Future<Output = Result<Vec<StoredTable>, Problem>> + Send + 'static,
    {
        let known = self.known();
        if let Some((counted_at, tables)) = &known
            && counted_at.elapsed() < self.last_for
        {
            return Ok(tables.clone());
        }
        if let Ok(mut failure) = Arc::clone(&self.counting).try_lock_owned() {
            let (count, known) = (count(), Arc::clone(&self.known));
            tokio::spawn(async move {
                *failure = match count.await {
                    Ok(tables) => {
                        *known.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), tables));
                        None
                    }
                    Err(problem) => Some(problem),
                };
            });
        }
        let failure = match known {
            Some(_) => {
                tokio::time::timeout(self.wait_max, self.counting.lock()).await.ok().and_then(|found| found.clone())
            }
            None => self.counting.lock().await.clone(),
        };
        match (self.known(), failure) {
            (Some((_, tables)), _) => Ok(tables),
            (None, Some(problem)) => Err(problem),
            // The count broke off.
            (None, None) => Ok(Vec::new()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn tables(rows: u64) -> Vec<StoredTable> {
        vec![StoredTable { view: "v@1".to_owned(), epoch: 1, is_current: true, rows, bytes: 1 }]
    }

    fn rows(found: Result<Vec<StoredTable>, Problem>) -> u64 {
        found.unwrap()[0].rows
    }

    /// A count that lasts until it is told what it found.
    fn slow() -> (oneshot::Sender<u64>, impl Future<Output = Result<Vec<StoredTable>, Problem>> + Send + 'static) {
        let (tell, told) = oneshot::channel();
        (tell, async move { Ok(tables(told.await.unwrap())) })
    }

    async fn never() -> Result<Vec<StoredTable>, Problem> {
        unreachable!("two counted at once")
    }

    #[tokio::test]
    async fn a_count_that_nobody_waited_for_goes_on_and_is_found_by_the_next() {
        let sizes = Sizes::new(Duration::from_secs(60), Duration::ZERO);
        let (tell, count) = slow();
        {
            let mut first = Box::pin(sizes.get(|| count));
            assert!(futures::poll!(first.as_mut()).is_pending());
        }
        // The first caller is gone. The second waits for the same count.
        let mut second = Box::pin(sizes.get(never));
        assert!(futures::poll!(second.as_mut()).is_pending());
        tell.send(7).unwrap();
        assert_eq!(rows(second.await), 7);
        assert_eq!(rows(sizes.get(never).await), 7, "it is counted again too soon");
    }

    #[tokio::test]
    async fn while_it_is_counted_again_the_last_figures_are_given() {
        let sizes = Sizes::new(Duration::ZERO, Duration::ZERO);
        assert_eq!(rows(sizes.get(|| async { Ok(tables(1)) }).await), 1);
        let (tell, count) = slow();
        assert_eq!(rows(sizes.get(|| count).await), 1);
        assert_eq!(rows(sizes.get(never).await), 1);
        tell.send(2).unwrap();
        // The next count begins when this one has ended, and finds nothing: the last figures stay.
        drop(sizes.counting.lock().await);
        let failed = || async { Err(Problem::internal("no answer", "gone")) };
        assert_eq!(rows(sizes.get(failed).await), 2);
    }

    #[tokio::test]
    async fn a_first_count_that_fails_says_so() {
        let sizes = Sizes::new(Duration::ZERO, Duration::ZERO);
        let failed = || async { Err(Problem::internal("no answer", "gone")) };
        assert!(sizes.get(failed).await.is_err());
        assert_eq!(rows(sizes.get(|| async { Ok(tables(3)) }).await), 3);
    }
}
