//! Entities, sources, transforms, views, services, versions and lineage.
//!
//! Three layers: [`definitions`] reads the files of a team's repository; [`plan`] compares them with what the registry
//! holds and says what would change; [`Registry`] stores it and answers everybody else with the read model in
//! [`model`]. The crate knows neither engine nor query engine: descriptions of components are rows of its own, and
//! schemas of sources come through [`SourceInspector`].

mod access;
pub mod definitions;
mod describe;
mod digest;
mod error;
mod lineage;
pub mod model;
pub mod plan;
mod resolve;
mod store;

pub use access::{Actor, Role};
pub use describe::{Described, DescribedVersion, HistoryEntry};
pub use error::{AppliedChange, ObjectKind, RegistryError};
pub use lineage::{LINEAGE_NODES_MAX, Lineage, LineageDirection, LineageEdge, LineageKind, LineageNode};
pub use plan::{
    Applied, ChangeClass, InspectError, Plan, PlanReport, PlannedAction, PlannedChange, SchemaChange, SchemaChangeKind,
    SourceInspector, VersionPair,
};
pub use store::{
    Acceptance, ChunkWork, DEFAULT_PROJECT, DatasetColumn, DatasetRecord, EntityErasures, Epoch, EpochState,
    ErasedEntity, Erasures, JobActivity, JobChunk, JobRecord, JobState, JobWorker, LifecycleChange, LifecycleState,
    Mark, Marked, NewErasure, NewToken, NewWorker, PartClaim, PostgresAddress, ProjectRecord, Quota, RecordedWork,
    Registry, RegistryAddress, SEARCH_KINDS, SEARCH_LIMIT_MAX, Search, SearchHit, SearchHitState, SearchResult,
    ServiceSummary, TokenRecord, TrailEntry, TrailEvent, TrailFault, TrailFilter, TrailHead, TrailOutcome,
    TrailVerdict, TransformRecord, ViewSummary, WorkerReport,
};
