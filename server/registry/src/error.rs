//! Why the registry refused or failed.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::definitions::DefinitionErrors;
use crate::store::{Mark, Quota};

/// What kind of object a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum ObjectKind {
    Entity,
    Source,
    Transform,
    View,
    Feature,
    Service,
    Dataset,
    Job,
    Project,
    Token,
}

impl ObjectKind {
    /// As it stands in messages, routes and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Entity => "entity",
            Self::Source => "source",
            Self::Transform => "transform",
            Self::View => "view",
            Self::Feature => "feature",
            Self::Service => "service",
            Self::Dataset => "dataset",
            Self::Job => "job",
            Self::Project => "project",
            Self::Token => "token",
        }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A change that some `apply` made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedChange {
    /// The definitions' revision that it made.
    pub definitions_revision: u64,
    /// When, µs since the epoch.
    pub at_us: i64,
    /// `entity`, `source`, `view` or `service`.
    pub object_kind: String,
    /// Its name.
    pub object_name: String,
    /// What happened, such as `new version 2`.
    pub action: String,
}

/// Why the registry refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The entity type, feature, version, … is not known. Over HTTP: 404.
    #[error("unknown {kind} `{name}`{hint}")]
    NotFound {
        /// What was looked for.
        kind: ObjectKind,
        /// Its name as asked for.
        name: String,
        /// What to do, beginning with a separator, or empty.
        hint: String,
    },
    /// A bare feature name that several views have. Over HTTP: 400.
    #[error("feature `{feature}` is ambiguous: write one of {}", .candidates.join(", "))]
    Ambiguous {
        /// The bare name.
        feature: String,
        /// `view:feature`, each.
        candidates: Vec<String>,
    },
    /// What follows `@` in a request is no version. Over HTTP: 400.
    #[error("{0}")]
    MalformedVersion(String),
    /// A request that cannot be understood or fulfilled as it is. Over HTTP: 400.
    #[error("{0}")]
    Invalid(String),
    /// Definitions that cannot be applied. Over HTTP: 422.
    #[error("{0}")]
    Definitions(#[from] DefinitionErrors),
    /// The definitions in the registry have moved since the plan was made. Over HTTP: 409.
    #[error("the plan is stale: it was made at revision {planned}, and the registry is at {current}{}; plan again",
        stale_changes(.changes))]
    Stale {
        /// The definitions' revision that the plan was made against.
        planned: u64,
        /// The definitions' revision now.
        current: u64,
        /// What happened since.
        changes: Vec<AppliedChange>,
    },
    /// Something that is retired. Over HTTP: 410.
    #[error("{kind} {name} is {text}; `eadem retire {kind} {name} --undo` brings it back")]
    Retired {
        /// What it is.
        kind: ObjectKind,
        /// Its name, with its version.
        name: String,
        /// The mark's text.
        text: String,
    },
    /// Something cannot be retired while others depend on it. Over HTTP: 409.
    #[error("{what} cannot be retired: {} {} on it", .dependants.join(", "), if .dependants.len() == 1 { "depends" } else { "depend" })]
    InUse {
        /// What was to be retired.
        what: String,
        /// What depends on it, one by one.
        dependants: Vec<String>,
    },
    /// A state that the operation does not start from. Over HTTP: 409.
    #[error("{0}")]
    Conflict(String),
    /// The project has as much as it may have. Over HTTP: 413, or 429 for what passes.
    #[error("the project `{project}` may have {most} {}; {}", .quota.what(), .quota.advice())]
    OverQuota {
        /// The project.
        project: String,
        /// Of what.
        quota: Quota,
        /// How much.
        most: u64,
    },
    /// The database was written by a newer version of this program.
    #[error(
        "the registry was written by a newer version (its migration {migration} is unknown here); run that version"
    )]
    NewerSchema {
        /// The first unknown migration.
        migration: i64,
    },
    /// The database failed.
    #[error("the registry's database failed")]
    Database(#[from] sqlx::Error),
    /// A migration failed; it is tried again at the next start.
    #[error("the registry's schema could not be brought up to date")]
    Migration(#[source] sqlx::migrate::MigrateError),
    /// The database holds what this program never writes.
    #[error("the registry's database is damaged: {0}")]
    Damaged(String),
}

fn stale_changes(changes: &[AppliedChange]) -> String {
    if changes.is_empty() {
        return String::new();
    }
    let listed: Vec<String> = changes
        .iter()
        .map(|change| format!("{} {} ({})", change.object_kind, change.object_name, change.action))
        .collect();
    format!("; since then: {}", listed.join(", "))
}

impl RegistryError {
    /// Something unknown, and what is near it.
    pub(crate) fn not_found(kind: ObjectKind, name: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::NotFound { kind, name: name.into(), hint: hint.into() }
    }

    /// Something that cannot be used any more, if its mark says so.
    pub fn if_retired(kind: ObjectKind, name: impl fmt::Display, mark: Option<&Mark>) -> Option<Self> {
        let mark = mark.filter(|mark| mark.is_retired())?;
        Some(Self::Retired { kind, name: name.to_string(), text: mark.text() })
    }

    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }

    /// Whether the caller named something that does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether the caller, not the store, is at fault.
    pub fn is_callers_fault(&self) -> bool {
        !matches!(self, Self::Database(_) | Self::Migration(_) | Self::Damaged(_) | Self::NewerSchema { .. })
    }
}
