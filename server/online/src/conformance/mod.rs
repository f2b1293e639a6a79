//! What every online store must do, as tests that run against any store.
//!
//! A store's own crate gives a [`Subject`] per case and calls [`run_all`]:
//!
//! ```
//! # use std::sync::Arc;
//! # use eadem_online::{MemoryStore, OnlineStore};
//! use eadem_online::conformance::{Subject, Violation, run_all};
//!
//! struct InMemory(Arc<MemoryStore>);
//!
//! #[async_trait::async_trait]
//! impl Subject for InMemory {
//!     fn store(&self) -> Arc<dyn OnlineStore> {
//!         self.0.clone()
//!     }
//!     async fn restart(&mut self) -> Result<(), Violation> {
//!         Ok(()) // it does not claim to survive one
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let violations = run_all(42, async || Ok(InMemory(Arc::default()))).await;
//! assert!(violations.is_empty(), "{violations:#?}");
//! # });
//! ```
//!
//! The suite talks to a store through [`OnlineStore`] only, and judges by an oracle that shares no code with any store or
//! with `eadem-semantics`.

mod basics;
mod erasure;
mod loading;
mod oracle;
mod random;
mod retention;
mod time;
mod values;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use eadem_semantics::{ReadAt, RowOrder};
use eadem_values::{Digest, EntityKey, KeyValue, TieDigest};

use crate::{Answer, Coverage, KeyBytes, OnlineStore, PointRead, Row, RowBody, StoreError, TableId, scan_all};

/// A store to be judged.
#[async_trait]
pub trait Subject: Send {
    /// The store.
    fn store(&self) -> Arc<dyn OnlineStore>;

    /// Closes the store and opens it again, as after a restart of the process. The suite holds no handle meanwhile. A
    /// store that does not claim to outlive its process does nothing.
    async fn restart(&mut self) -> Result<(), Violation>;
}

/// What a store did wrong.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{case}: {what}")]
pub struct Violation {
    case: &'static str,
    what: String,
}

impl Violation {
    /// A violation, in words.
    pub fn new(what: impl Into<String>) -> Self {
        Self { case: "", what: what.into() }
    }
}

impl From<StoreError> for Violation {
    fn from(error: StoreError) -> Self {
        Self::new(format!("unexpected error: {error}"))
    }
}

type Outcome = Result<(), Violation>;
type CaseFuture<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// One property of a store.
pub struct Case {
    /// Its name.
    pub name: &'static str,
    run: for<'a> fn(&'a mut dyn Subject, u64) -> CaseFuture<'a>,
}

impl Case {
    /// Tries a fresh, empty store. `seed` decides what is random.
    ///
    /// # Errors
    /// What the store did wrong.
    pub async fn run(&self, subject: &mut dyn Subject, seed: u64) -> Result<(), Violation> {
        (self.run)(subject, seed).await.map_err(|violation| Violation { case: self.name, ..violation })
    }
}

macro_rules! cases {
    ($($module:ident :: $name:ident),* $(,)?) => {
        &[$(Case { name: stringify!($name), run: |subject, seed| Box::pin($module::$name(subject, seed)) }),*]
    };
}

/// Every case.
pub const CASES: &[Case] = cases![
    basics::an_empty_table_answers_without_proof,
    basics::an_unknown_table_is_an_error_everywhere,
    basics::a_loading_table_takes_rows_and_answers_no_reads,
    basics::creating_twice_changes_nothing,
    basics::reads_answer_in_order_with_missing_and_repeated_keys,
    basics::reading_at_once_agrees_with_reading,
    basics::concurrent_writers_lose_nothing,
    basics::readers_see_calls_whole,
    basics::a_restart_loses_nothing,
    time::the_newest_row_up_to_t_wins,
    time::arrival_order_does_not_matter,
    time::ties_go_to_the_greatest_digest,
    time::corrections_win_from_when_they_are_known,
    time::rows_ahead_become_visible_in_their_time,
    time::many_unknown_rows_are_skipped,
    time::the_knowledge_cut_may_differ_from_t,
    time::ttl_and_horizon_are_decided_on_read,
    time::extreme_times_are_times,
    values::the_same_row_twice_is_one_row,
    values::bodies_that_differ_settle_the_same_way,
    values::rows_come_back_bit_for_bit,
    values::large_values_fit_and_larger_are_refused,
    values::strange_keys_are_kept_apart,
    values::long_keys_are_refused_whole,
    erasure::an_erasure_removes_present_rows,
    erasure::an_erasure_keeps_out_late_rows,
    erasure::erasures_merge_by_maximum,
    erasure::an_erasure_covers_every_epoch_and_no_other_view,
    erasure::an_erasure_reaches_rows_that_are_loaded,
    erasure::erasures_and_writers_may_race,
    retention::claims_merge_in_any_order,
    retention::proofs_follow_complete_since,
    retention::trimming_spares_every_proved_answer,
    retention::trimming_never_lowers_the_claim,
    retention::trimming_spares_rows_ahead,
    retention::what_is_too_old_goes_and_what_never_ages_stays,
    loading::an_epoch_loads_beside_another,
    loading::a_load_equals_a_merge,
    loading::loads_and_writers_may_meet,
    loading::an_unfinished_load_goes_on_after_a_restart,
    loading::a_trim_that_is_announced_changes_nothing_else,
    loading::dropping_an_epoch_leaves_the_others,
    loading::a_dropped_epoch_starts_empty_again,
    loading::a_scan_finds_every_row_once,
    loading::a_scan_goes_on_beside_writers,
    random::random_histories_agree_with_the_oracle,
];

/// Tries every case on a fresh subject and says what went wrong.
pub async fn run_all<S: Subject>(seed: u64, mut fresh: impl AsyncFnMut() -> Result<S, Violation>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for case in CASES {
        let outcome = match fresh().await {
            Ok(mut subject) => case.run(&mut subject, seed).await,
            Err(violation) => Err(Violation { case: case.name, ..violation }),
        };
        violations.extend(outcome.err());
    }
    violations
}

macro_rules! ensure {
    ($condition:expr, $($words:tt)+) => {
        if !$condition {
            return Err($crate::conformance::Violation::new(format!($($words)+)));
        }
    };
}

macro_rules! ensure_eq {
    ($found:expr, $expected:expr, $($words:tt)+) => {
        let (found, expected) = (&$found, &$expected);
        if found != expected {
            let what = format!($($words)+);
            return Err($crate::conformance::Violation::new(format!("{what}: found {found:?}, expected {expected:?}")));
        }
    };
}

use {ensure, ensure_eq};

/// A table of the suite's `number`-th view.
fn table(view: u8, epoch: u64) -> TableId {
    TableId { view: Digest::of(&[view]), epoch }
}

fn key(name: &str) -> KeyBytes {
    KeyBytes::from(&EntityKey(vec![KeyValue::Utf8(name.to_owned())]))
}

fn order(event_time_us: i64, known_at_us: i64, tie: u8) -> RowOrder {
    RowOrder { event_time_us, known_at_us, tie: TieDigest::from_bytes([tie; 16]) }
}

/// A row known when it happens, whose value says which it is.
fn row(name: &str, event_time_us: i64) -> Row {
    row_known(name, event_time_us, event_time_us, 0)
}

/// A row whose value says which it is.
fn row_known(name: &str, event_time_us: i64, known_at_us: i64, tie: u8) -> Row {
    let value = Bytes::from(format!("{name} {event_time_us} {known_at_us} {tie}"));
    Row { key: key(name), order: order(event_time_us, known_at_us, tie), body: RowBody::of_values(value) }
}

fn at(at_us: i64) -> ReadAt {
    ReadAt::as_known_then(at_us)
}

/// An empty table that answers reads and claims nothing.
async fn ready_table(store: &dyn OnlineStore, table: TableId) -> Outcome {
    store.create_epoch(table).await?;
    store.finish_load(table, Coverage::default()).await?;
    Ok(())
}

async fn read_one(store: &dyn OnlineStore, table: TableId, key: &KeyBytes, at: ReadAt) -> Result<Answer, Violation> {
    let mut answers = store.read(table, &[PointRead { key, at }]).await?;
    let answer = answers.pop().ok_or_else(|| Violation::new("one read gave no answer"))?;
    ensure!(answers.is_empty(), "one read gave {} answers", answers.len() + 1);
    Ok(answer)
}

/// The order of the row that wins; `None` if none does.
async fn winner_of(
    store: &dyn OnlineStore,
    table: TableId,
    key: &KeyBytes,
    at: ReadAt,
) -> Result<Option<RowOrder>, Violation> {
    Ok(read_one(store, table, key, at).await?.winner.map(|winner| winner.order))
}

/// A table's rows, sorted by key and order.
async fn all_rows(store: &dyn OnlineStore, table: TableId) -> Result<Vec<Row>, Violation> {
    let mut rows = Vec::new();
    scan_all(store, table, |row| {
        rows.push(row);
        std::ops::ControlFlow::Continue(())
    })
    .await?;
    rows.sort_by(|a, b| (&a.key, a.order).cmp(&(&b.key, b.order)));
    Ok(rows)
}

/// Numbers that look random and are the same for the same seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`, which is not 0.
    fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    fn between(&mut self, first: i64, last: i64) -> i64 {
        first + self.below((last - first + 1) as u64) as i64
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}
