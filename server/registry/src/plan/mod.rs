//! What applying definitions would do: new versions, what depends on them, what breaks.

mod apply;
mod planner;
mod report;
mod schema_change;
mod view_planner;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use eadem_values::Digest;

use crate::definitions::{Definitions, TransformReference};
use crate::error::{AppliedChange, RegistryError};
use crate::model::{About, Entity, ServiceEntry, Source, SourceColumn, ViewVersion};
use crate::store::{Registry, WrittenEntry, changes_since};

pub use report::{PlanReport, PlannedAction, PlannedChange};
pub use schema_change::{ChangeClass, SchemaChange, SchemaChangeKind};

/// Says which columns a source has once its expressions and filter are in place. Implemented by whoever can read sources.
#[async_trait]
pub trait SourceInspector: Send + Sync {
    /// The columns of the source, in order: those of its files or declared fields, then its expressions.
    ///
    /// # Errors
    /// The files cannot be read, or an expression is not allowed, does not parse, or names what is not there.
    async fn columns(&self, source: &Source) -> Result<Vec<SourceColumn>, InspectError>;
}

/// Why a source could not be inspected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{statement}: {message}")]
pub struct InspectError {
    /// The statement of the definition at fault: `parquet`, `columns.<name>`, `where`, `time_zone`, …
    pub statement: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// What `apply` would do, and against which state of the registry that was found.
#[derive(Debug, Clone)]
pub struct Plan {
    report: PlanReport,
    writes: Writes,
    pairs: Vec<VersionPair>,
    acceptance: Option<AcceptedEffect>,
}

/// A view version, and the one that takes its place as the newest.
#[derive(Debug, Clone)]
pub struct VersionPair {
    /// What is the newest now.
    pub before: Arc<ViewVersion>,
    /// What it will be.
    pub after: Arc<ViewVersion>,
}

/// Why a plan is applied whose effect is beyond what the policy tolerates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AcceptedEffect {
    pub(crate) reason: String,
    /// What was found.
    pub(crate) effect: String,
}

/// The rows that `apply` writes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Writes {
    pub(crate) entities: Vec<Entity>,
    pub(crate) sources: Vec<(Source, Vec<SourceColumn>)>,
    /// Upstreams stand before those that read them.
    pub(crate) views: Vec<ViewWrite>,
    pub(crate) services: Vec<ServiceWrite>,
}

#[derive(Debug, Clone)]
pub(crate) struct ViewWrite {
    pub(crate) version: ViewVersion,
    /// The row, where the version exists already.
    pub(crate) existing: Option<i64>,
    /// Input → (view, version if one is written).
    pub(crate) upstreams: BTreeMap<String, (String, Option<u32>)>,
}

#[derive(Debug, Clone)]
pub(crate) struct ServiceWrite {
    pub(crate) name: String,
    pub(crate) version: u32,
    pub(crate) digest: Digest,
    /// The row, where the version exists already.
    pub(crate) existing: Option<i64>,
    pub(crate) entries: Vec<ServiceEntry>,
    pub(crate) written: Vec<WrittenEntry>,
    pub(crate) about: About,
}

/// What `apply` did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Applied {
    /// The definitions' revision now.
    pub definitions_revision: u64,
    /// Whether anything changed.
    pub changed: bool,
}

impl Plan {
    /// What would change, for people and programs.
    pub fn report(&self) -> &PlanReport {
        &self.report
    }

    /// The definitions' revision that the plan was made against.
    pub fn definitions_revision(&self) -> u64 {
        self.report.definitions_revision
    }

    /// Whether `apply` would change nothing.
    pub fn is_empty(&self) -> bool {
        self.report.is_empty()
    }

    /// The view versions that others take the place of, upstreams before those that read them.
    pub fn version_pairs(&self) -> &[VersionPair] {
        &self.pairs
    }

    /// Notes that the effect is accepted although it is beyond what the policy tolerates. `apply` records it.
    pub fn accept_effect(&mut self, reason: &str, effect: &str) {
        self.acceptance = Some(AcceptedEffect { reason: reason.to_owned(), effect: effect.to_owned() });
    }
}

impl Registry {
    /// Compares definitions with the registry. `transforms` says which uploaded component each reference stands for;
    /// references by digest need not be in it.
    ///
    /// # Errors
    /// Everything that is wrong with the definitions, with file and line; the database failed.
    pub async fn plan(
        &self,
        definitions: &Definitions,
        transforms: &BTreeMap<TransformReference, Digest>,
        inspector: &dyn SourceInspector,
    ) -> Result<Plan, RegistryError> {
        planner::plan(self, definitions, transforms, inspector).await
    }

    /// Does what the plan says, whole or not at all.
    ///
    /// # Errors
    /// [`RegistryError::Stale`] if definitions were applied since the plan was made; the database failed.
    pub async fn apply(&self, plan: &Plan, now_us: i64) -> Result<Applied, RegistryError> {
        apply::apply(self, plan, now_us).await
    }

    /// What to tell whoever has planned against another revision than the one that the registry is at: what happened since.
    ///
    /// # Errors
    /// The database failed.
    pub async fn stale(&self, planned: u64, current: u64) -> Result<RegistryError, RegistryError> {
        let mut snapshot = self.snapshot().await?;
        let changes = changes_since(&mut snapshot, planned).await?;
        Ok(RegistryError::Stale { planned, current, changes })
    }

    /// What every `apply` did whose revision is greater than this one, oldest first; at most 50 changes.
    ///
    /// # Errors
    /// The database failed.
    pub async fn definition_changes(&self, since_revision: u64) -> Result<Vec<AppliedChange>, RegistryError> {
        changes_since(&mut *self.snapshot().await?, since_revision).await
    }
}
