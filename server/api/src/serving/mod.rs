//! From a request to values: a service compiled once into a plan, and the plan run over the rows of a request.
//!
//! Everything that decides a value is called here and lives elsewhere: the as-of choice and the status in
//! `eadem-semantics`, the transforms in the engine, on-demand views and projection in `eadem-query`. A training set calls
//! the same functions.

mod as_stored;
mod meaning;
mod online;
mod plan;
pub(crate) mod reply;
pub(crate) mod request;
mod rows;
mod run;

pub use as_stored::StoredThen;
pub use meaning::{lifetime, validation};
pub use online::OnlineThenHistory;
pub(crate) use plan::Node;
pub use plan::{PlanError, ServingPlan};
pub use rows::{
    EntityKeys, History, HistoryState, ReadOptions, ReadRow, RowSource, RowSourceError, Store, StoredCommit, StoredRow,
    TransformUnavailable, Transforms,
};
pub use run::{Answer, AnswerColumn, EntityRows, ServeError, ServeOptions, ViewRows, serve};
pub(crate) use run::{NodeRead, ReadOutcome};
