//! Routes, serving plans and the OpenAPI document.
//!
//! The crate moves values between requests and stores and computes none: the as-of choice, statuses and transforms live in
//! `runtime/`. What it needs and does not have (jobs, history, the state of the stores) is a trait of its own that the
//! binary implements.

mod access;
mod clock;
mod effect;
mod followed;
mod jobs;
mod limits;
mod metrics;
mod problem;
mod projects;
mod quarantine;
mod readiness;
mod request_log;
mod routes;
mod serve;
pub mod serving;
mod state;
pub mod tls;
mod uploads;

pub use access::{Credential, Credentials, OwnerOfDirectory, ProjectFiles, ProjectUsage, Refusals, Usage};
pub use clock::{Clock, FixedClock, SystemClock};
pub use effect::{EFFECT_ROWS_MAX, EffectOptions, EffectProgress, Effects, Policy, ViewEffect};
pub use jobs::{Job, JobFilter, JobKind, JobProgress, JobState, Jobs};
pub use limits::Limits;
pub use metrics::{Metrics, StoredTable};
pub use problem::{Finding, Problem};
pub use projects::{ByProject, PROJECT, Projects};
pub use quarantine::{Quarantine, QuarantineQuery};
pub use readiness::{Hindrance, Readiness};
pub use request_log::RequestLog;
pub use routes::{check_not_retired, is_loopback_authority, openapi, registry_problem, router};
pub use serve::Server;
pub use state::{ApiState, PlanCache, StoreStatus};
pub use uploads::Uploads;
