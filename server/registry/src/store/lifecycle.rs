//! What is deprecated and what is retired: marks on transforms, view versions and service versions.
//!
//! A deprecated version works as before and says so. A retired one is not served and cannot be named any more; nothing
//! depends on it at that moment. Neither changes the version, and its number is never given again.

use std::collections::HashMap;
use std::fmt;

use eadem_values::Digest;
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, Row};

use super::services::require_service_version;
use super::views::require_view_version;
use super::{Registry, Session, SqlRow, TrailEvent, read_digest, read_name, unsigned};
use crate::definitions::split_version;
use crate::error::{ObjectKind, RegistryError};

/// How far a version is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LifecycleState {
    /// It works, and whoever uses it should turn to something else.
    Deprecated,
    /// It is not served and cannot be named.
    Retired,
}

impl LifecycleState {
    /// As it stands in messages and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deprecated => "deprecated",
            Self::Retired => "retired",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        [Self::Deprecated, Self::Retired].into_iter().find(|state| state.as_str() == name)
    }
}

impl fmt::Display for LifecycleState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// That a version is deprecated or retired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Which of both.
    pub state: LifecycleState,
    /// What to do instead; may be empty.
    pub message: String,
    /// Since when, µs since the epoch.
    pub at_us: i64,
}

impl Mark {
    /// Whether the version is not served any more.
    pub fn is_retired(&self) -> bool {
        self.state == LifecycleState::Retired
    }

    /// `deprecated: use weather@2`
    pub fn text(&self) -> String {
        if self.message.is_empty() { self.state.to_string() } else { format!("{}: {}", self.state, self.message) }
    }
}

/// What to do with a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LifecycleChange {
    /// Mark it with this message.
    Mark(LifecycleState, String),
    /// Take away the mark of this state.
    Undo(LifecycleState),
}

impl LifecycleChange {
    /// As the trail says it.
    fn verb(&self) -> &'static str {
        match self {
            Self::Mark(LifecycleState::Deprecated, _) => "deprecate",
            Self::Mark(LifecycleState::Retired, _) => "retire",
            Self::Undo(LifecycleState::Deprecated) => "undo deprecate",
            Self::Undo(LifecycleState::Retired) => "undo retire",
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::Mark(_, message) => message.clone(),
            Self::Undo(_) => String::new(),
        }
    }
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marked {
    /// Transform, view or service.
    pub kind: ObjectKind,
    /// The versions, as people write them: `weather@2`, `weather@sha256:…`.
    pub versions: Vec<String>,
    /// How they are marked now; `None` if not at all.
    pub mark: Option<Mark>,
    /// What to know.
    pub warnings: Vec<String>,
    /// The definitions' revision now.
    pub definitions_revision: u64,
}

/// A version that is to be marked.
pub(crate) struct Target {
    pub(crate) id: i64,
    /// Of the object, without version.
    pub(crate) name: String,
    /// `weather@2`
    pub(crate) reference: String,
    pub(crate) mark: Option<Mark>,
    /// Whether the name without version stands for it.
    is_head: bool,
}

/// Training sets that a warning names.
const NAMED_MAX: usize = 20;
const MESSAGE_CHARS_MAX: usize = 500;

impl Registry {
    /// Deprecates or retires versions, or takes the mark away again. `name` is `view`, `view@2`, `service`, `service@2`, the
    /// name of a transform, `name@sha256:…` or a digest; without version it is all versions that there are.
    ///
    /// # Errors
    /// No such object; a version that something depends on ([`RegistryError::InUse`]); a mark that it has already, or has not;
    /// a message that is too long; the database failed.
    pub async fn mark(
        &self,
        kind: ObjectKind,
        name: &str,
        change: &LifecycleChange,
        now_us: i64,
    ) -> Result<Marked, RegistryError> {
        if let LifecycleChange::Mark(_, message) = change
            && message.chars().count() > MESSAGE_CHARS_MAX
        {
            let reason = format!("the message is longer than {MESSAGE_CHARS_MAX} characters; say it in fewer words");
            return Err(RegistryError::Invalid(reason));
        }
        let mut transaction = self.change().await?;
        let targets = find_targets(&mut transaction, kind, name).await?;
        let affected: Vec<&Target> = targets.iter().filter(|target| is_affected(target, change)).collect();
        let Some(first) = affected.first() else {
            return Err(RegistryError::Conflict(nothing_to_do(&targets, change)));
        };
        let mut warnings = Vec::new();
        match change {
            LifecycleChange::Mark(LifecycleState::Retired, _) => {
                check_unused(&mut transaction, kind, &affected).await?;
                warnings = rebuild_warnings(&mut transaction, kind, &affected).await?;
            }
            LifecycleChange::Undo(LifecycleState::Retired) => check_ground(&mut transaction, kind, &affected).await?,
            LifecycleChange::Mark(LifecycleState::Deprecated, _)
            | LifecycleChange::Undo(LifecycleState::Deprecated) => {}
        }
        let mark = match change {
            LifecycleChange::Mark(state, message) => {
                Some(Mark { state: *state, message: message.clone(), at_us: now_us })
            }
            LifecycleChange::Undo(_) => None,
        };
        for target in &affected {
            save_mark(&mut transaction, kind, target.id, mark.as_ref()).await?;
        }
        let references: Vec<String> = affected.iter().map(|target| target.reference.clone()).collect();
        let action = action_text(&references, change);
        // Plans made before are stale, and history shows it.
        let definitions_revision = transaction.note_definitions(&[(kind, first.name.as_str(), action)], now_us).await?;
        let told = affected
            .iter()
            .map(|target| TrailEvent::done(change.verb(), format!("{kind} {}", target.reference), change.detail()));
        transaction.record_all(told.collect(), now_us).await?;
        transaction.commit_and_announce().await?;
        Ok(Marked { kind, versions: references, mark, warnings, definitions_revision })
    }
}

fn is_affected(target: &Target, change: &LifecycleChange) -> bool {
    let state = target.mark.as_ref().map(|mark| mark.state);
    match change {
        LifecycleChange::Mark(LifecycleState::Deprecated, message) => {
            let says_so = target.mark.as_ref().is_some_and(|mark| mark.message == *message);
            state.is_none() || (state == Some(LifecycleState::Deprecated) && !says_so)
        }
        LifecycleChange::Mark(LifecycleState::Retired, _) => state != Some(LifecycleState::Retired),
        LifecycleChange::Undo(undone) => state == Some(*undone),
    }
}

fn nothing_to_do(targets: &[Target], change: &LifecycleChange) -> String {
    let references: Vec<&str> = targets.iter().map(|target| target.reference.as_str()).collect();
    let are_retired = targets.iter().all(|target| target.mark.as_ref().is_some_and(Mark::is_retired));
    let verb = if targets.len() == 1 { "is" } else { "are" };
    let what = match change {
        LifecycleChange::Mark(LifecycleState::Deprecated, _) if are_retired => "retired already".to_owned(),
        LifecycleChange::Mark(state, _) => format!("{state} already"),
        LifecycleChange::Undo(state) => format!("not {state}"),
    };
    format!("{} {verb} {what}; nothing was changed", references.join(", "))
}

fn action_text(references: &[String], change: &LifecycleChange) -> String {
    let versions: Vec<&str> =
        references.iter().map(|reference| reference.split_once('@').map_or("", |(_, version)| version)).collect();
    let versions = versions.join(", ");
    match change {
        LifecycleChange::Mark(state, message) if message.is_empty() => format!("version {versions} {state}"),
        LifecycleChange::Mark(state, message) => format!("version {versions} {state}: {message}"),
        LifecycleChange::Undo(state) => format!("version {versions} no longer {state}"),
    }
}

/// The versions that a name stands for.
async fn find_targets(connection: &mut Session, kind: ObjectKind, name: &str) -> Result<Vec<Target>, RegistryError> {
    match kind {
        ObjectKind::Transform => return transforms_named(connection, name).await,
        ObjectKind::View | ObjectKind::Service => {}
        other => {
            return Err(RegistryError::Invalid(format!(
                "a {other} has no versions to deprecate or retire; transforms, views and services have"
            )));
        }
    }
    let (bare, wanted) = split_version(name)?;
    if kind == ObjectKind::View {
        require_view_version(connection, bare, wanted).await?;
    } else {
        require_service_version(connection, bare, wanted).await?;
    }
    let versions = marked_versions(connection, kind, bare).await?;
    let wanted = versions.into_iter().filter(|version| wanted.is_none_or(|wanted| wanted == version.version));
    let target = |version: MarkedVersion| Target {
        id: version.id,
        name: bare.to_owned(),
        reference: format!("{bare}@{}", version.version),
        mark: version.mark,
        is_head: version.is_head,
    };
    Ok(wanted.map(target).collect())
}

/// A version of a view or service, and how it is marked.
pub(crate) struct MarkedVersion {
    id: i64,
    pub(crate) version: u32,
    pub(crate) created_at_us: i64,
    pub(crate) mark: Option<Mark>,
    /// Whether the name without version stands for it.
    pub(crate) is_head: bool,
}

/// All versions of a view, or of a service, ascending; none for a name that nothing has.
pub(crate) async fn marked_versions(
    connection: &mut Session,
    kind: ObjectKind,
    name: &str,
) -> Result<Vec<MarkedVersion>, RegistryError> {
    let statement = match kind {
        ObjectKind::View => {
            "SELECT view_version.view_version_id AS id, version, created_at_us, state, message, at_us, head_version_id
             FROM view_version JOIN view USING (view_id) LEFT JOIN view_mark USING (view_version_id)
             WHERE name = $1 ORDER BY version"
        }
        _ => {
            "SELECT service_version.service_version_id AS id, version, created_at_us, state, message, at_us, head_version_id
             FROM service_version JOIN service USING (service_id) LEFT JOIN service_mark USING (service_version_id)
             WHERE name = $1 ORDER BY version"
        }
    };
    let rows = sqlx::query(statement).bind(name).fetch_all(connection.sql()).await?;
    let read = |row: &SqlRow| {
        let (id, head): (i64, Option<i64>) = (row.try_get("id")?, row.try_get("head_version_id")?);
        Ok(MarkedVersion {
            id,
            version: unsigned(row.try_get("version")?)?,
            created_at_us: row.try_get("created_at_us")?,
            mark: read_mark(row)?,
            is_head: head == Some(id),
        })
    };
    rows.iter().map(read).collect()
}

/// The transforms of a name, or the one of a digest: `name`, `name@sha256:…`, `sha256:…`.
pub(crate) async fn transforms_named(connection: &mut Session, name: &str) -> Result<Vec<Target>, RegistryError> {
    let (bare, digest) = match name.split_once('@') {
        Some((bare, digest)) => (Some(bare), digest.parse::<Digest>().ok()),
        None => (Some(name).filter(|name| name.parse::<Digest>().is_err()), name.parse::<Digest>().ok()),
    };
    let is_malformed = name.contains('@') && digest.is_none();
    let rows = match digest {
        Some(digest) => {
            sqlx::query(
                "SELECT transform.transform_id AS id, name, digest, state, message, at_us
                 FROM transform LEFT JOIN transform_mark USING (transform_id) WHERE digest = $1",
            )
            .bind(digest.as_bytes().to_vec())
            .fetch_all(connection.sql())
            .await?
        }
        None => {
            sqlx::query(
                "SELECT transform.transform_id AS id, name, digest, state, message, at_us
                 FROM transform LEFT JOIN transform_mark USING (transform_id)
                 WHERE name = $1 ORDER BY transform.transform_id",
            )
            .bind(bare)
            .fetch_all(connection.sql())
            .await?
        }
    };
    let mut targets = Vec::with_capacity(rows.len());
    for row in rows {
        let found: String = row.try_get("name")?;
        let digest = read_digest(row.try_get("digest")?)?;
        if bare.is_none_or(|bare| bare == found) && !is_malformed {
            let reference = format!("{found}@{digest}");
            let (id, mark) = (row.try_get("id")?, read_mark(&row)?);
            targets.push(Target { id, name: found, reference, mark, is_head: false });
        }
    }
    if targets.is_empty() {
        return Err(RegistryError::not_found(ObjectKind::Transform, name, "; `GET /transforms` lists all"));
    }
    Ok(targets)
}

/// The mark in a row that was joined with a table of marks.
pub(crate) fn read_mark(row: &SqlRow) -> Result<Option<Mark>, RegistryError> {
    let Some(state) = row.try_get::<Option<String>, _>("state")? else { return Ok(None) };
    Ok(Some(Mark {
        state: read_name(&state, LifecycleState::from_name)?,
        message: row.try_get("message")?,
        at_us: row.try_get("at_us")?,
    }))
}

/// All marks of components. There are few: most versions have none.
pub(crate) async fn load_transform_marks(connection: &mut Session) -> Result<HashMap<Digest, Mark>, RegistryError> {
    let rows =
        sqlx::query("SELECT digest, state, message, at_us FROM transform_mark JOIN transform USING (transform_id)");
    let rows = rows.fetch_all(connection.sql()).await?;
    let mut marks = HashMap::with_capacity(rows.len());
    for row in &rows {
        if let Some(mark) = read_mark(row)? {
            marks.insert(read_digest(row.try_get("digest")?)?, mark);
        }
    }
    Ok(marks)
}

/// All marks of service versions, by their rows.
pub(crate) async fn load_service_marks(connection: &mut Session) -> Result<HashMap<i64, Mark>, RegistryError> {
    let rows = sqlx::query("SELECT service_version_id, state, message, at_us FROM service_mark");
    let rows = rows.fetch_all(connection.sql()).await?;
    let mut marks = HashMap::with_capacity(rows.len());
    for row in &rows {
        if let Some(mark) = read_mark(row)? {
            marks.insert(row.try_get("service_version_id")?, mark);
        }
    }
    Ok(marks)
}

/// The mark of a service version.
pub(crate) async fn load_service_mark(
    connection: &mut Session,
    service_version_id: i64,
) -> Result<Option<Mark>, RegistryError> {
    let row = sqlx::query("SELECT state, message, at_us FROM service_mark WHERE service_version_id = $1")
        .bind(service_version_id)
        .fetch_optional(connection.sql())
        .await?;
    row.as_ref().map_or(Ok(None), read_mark)
}

async fn save_mark(
    connection: &mut Session,
    kind: ObjectKind,
    id: i64,
    mark: Option<&Mark>,
) -> Result<(), RegistryError> {
    let (table, row) = match kind {
        ObjectKind::View => ("view_mark", "view_version_id"),
        ObjectKind::Service => ("service_mark", "service_version_id"),
        _ => ("transform_mark", "transform_id"),
    };
    let Some(mark) = mark else {
        let delete = format!("DELETE FROM {table} WHERE {row} = $1");
        sqlx::query(AssertSqlSafe(delete)).bind(id).execute(connection.sql()).await?;
        return Ok(());
    };
    let save = format!(
        "INSERT INTO {table} ({row}, state, message, at_us) VALUES ($1, $2, $3, $4)
         ON CONFLICT ({row}) DO UPDATE
             SET state = excluded.state, message = excluded.message, at_us = excluded.at_us"
    );
    sqlx::query(AssertSqlSafe(save))
        .bind(id)
        .bind(mark.state.as_str())
        .bind(&mark.message)
        .bind(mark.at_us)
        .execute(connection.sql())
        .await?;
    Ok(())
}

/// Refuses to retire what something depends on.
async fn check_unused(connection: &mut Session, kind: ObjectKind, targets: &[&Target]) -> Result<(), RegistryError> {
    let versions: Vec<(i64, &str)> = targets.iter().map(|target| (target.id, target.reference.as_str())).collect();
    let mut dependants = dependants_of(connection, kind, &versions).await?;
    dependants.sort();
    dependants.dedup();
    if let Some(head) = targets.iter().find(|target| target.is_head) {
        let others = unretired_beside(connection, kind, targets).await?;
        if !others.is_empty() {
            dependants.push(format!(
                "the name `{}`, which stands for {}: apply another definition first, or retire the {kind} as a whole \
                 (without a version); {} would be left",
                head.name,
                head.reference,
                others.join(", ")
            ));
        }
    }
    if dependants.is_empty() {
        return Ok(());
    }
    let references: Vec<&str> = targets.iter().map(|target| target.reference.as_str()).collect();
    Err(RegistryError::InUse { what: format!("{kind} {}", references.join(", ")), dependants })
}

/// Other versions of the same name that are not retired.
async fn unretired_beside(
    connection: &mut Session,
    kind: ObjectKind,
    targets: &[&Target],
) -> Result<Vec<String>, RegistryError> {
    let Some(first) = targets.first() else { return Ok(Vec::new()) };
    let all = find_targets(connection, kind, &first.name).await?;
    let is_other = |target: &&Target| !targets.iter().any(|known| known.id == target.id);
    let is_live = |target: &&Target| !target.mark.as_ref().is_some_and(Mark::is_retired);
    Ok(all.iter().filter(is_other).filter(is_live).map(|target| target.reference.clone()).collect())
}

/// What would not work any more without these versions, each with its row and as people write it: versions that are not
/// retired themselves, and open jobs.
pub(crate) async fn dependants_of(
    connection: &mut Session,
    kind: ObjectKind,
    versions: &[(i64, &str)],
) -> Result<Vec<String>, RegistryError> {
    let mut dependants: Vec<String> = Vec::new();
    for (id, _) in versions {
        match kind {
            ObjectKind::Transform => dependants.extend(users_of(connection, *id).await?),
            ObjectKind::View => dependants.extend(readers_of(connection, *id, None).await?),
            _ => {}
        }
    }
    dependants.extend(open_jobs_of(connection, kind, versions).await?);
    Ok(dependants)
}

/// Views of which a component is the transform; without retired ones.
async fn users_of(connection: &mut Session, transform_id: i64) -> Result<Vec<String>, RegistryError> {
    let views = sqlx::query_scalar(
        "SELECT 'view ' || view.name || '@' || CAST(version AS TEXT)
         FROM view_version JOIN view USING (view_id) LEFT JOIN view_mark USING (view_version_id)
         WHERE transform_id = $1 AND (state IS NULL OR state <> 'retired') ORDER BY view.name, version",
    );
    Ok(views.bind(transform_id).fetch_all(connection.sql()).await?)
}

/// Views and services that read a view version, or only one of its features; without retired ones.
pub(crate) async fn readers_of(
    connection: &mut Session,
    view_version_id: i64,
    feature: Option<&str>,
) -> Result<Vec<String>, RegistryError> {
    let mut readers = Vec::new();
    for statement in [
        "SELECT DISTINCT 'view ' || view.name || '@' || CAST(version AS TEXT)
         FROM view_binding AS binding JOIN view_version USING (view_version_id) JOIN view USING (view_id)
             LEFT JOIN view_mark USING (view_version_id)
         WHERE upstream_version_id = $1 AND binding.name = coalesce($2, binding.name)
             AND (state IS NULL OR state <> 'retired') ORDER BY 1",
        "SELECT DISTINCT 'service ' || service.name || '@' || CAST(version AS TEXT)
         FROM service_entry JOIN service_version USING (service_version_id) JOIN service USING (service_id)
             LEFT JOIN service_mark USING (service_version_id)
         WHERE view_version_id = $1 AND feature = coalesce($2, feature)
             AND (state IS NULL OR state <> 'retired') ORDER BY 1",
    ] {
        let found = sqlx::query_scalar::<_, String>(statement).bind(view_version_id).bind(feature);
        readers.extend(found.fetch_all(connection.sql()).await?);
    }
    Ok(readers)
}

/// Training sets that were made of a view version, or of one of its features, as `name (id)`.
pub(crate) async fn datasets_of_view(
    connection: &mut Session,
    view_version_id: i64,
    feature: Option<&str>,
) -> Result<Vec<String>, RegistryError> {
    let datasets = sqlx::query_scalar(
        "SELECT DISTINCT dataset.name || ' (' || dataset_id || ')' FROM dataset JOIN dataset_column USING (dataset_id)
         WHERE view_version_id = $1 AND feature = coalesce($2, feature) ORDER BY 1",
    );
    Ok(datasets.bind(view_version_id).bind(feature).fetch_all(connection.sql()).await?)
}

/// Jobs that are not over and name one of the versions in their specification.
async fn open_jobs_of(
    connection: &mut Session,
    kind: ObjectKind,
    versions: &[(i64, &str)],
) -> Result<Vec<String>, RegistryError> {
    if !matches!(kind, ObjectKind::View | ObjectKind::Service) {
        return Ok(Vec::new());
    }
    let rows: Vec<(String, String, String)> =
        sqlx::query_as("SELECT job_id, kind, spec FROM job WHERE state = 'open' ORDER BY created_at_us, job_id")
            .fetch_all(connection.sql())
            .await?;
    let is_one = |name: &str| versions.iter().any(|(_, reference)| *reference == name);
    let names_one = |spec: &str| {
        let spec: serde_json::Value = serde_json::from_str(spec).unwrap_or_default();
        if kind == ObjectKind::Service {
            return spec["service"].as_str().is_some_and(is_one);
        }
        let views = spec["views"].as_array().into_iter().flatten().chain([&spec["view"]]);
        let pinned = spec["pinned"].to_string();
        views.filter_map(serde_json::Value::as_str).any(is_one)
            || versions.iter().any(|(_, reference)| pinned.contains(&format!("\"{reference}\"")))
    };
    let open = rows.into_iter().filter(|(_, _, spec)| names_one(spec));
    Ok(open.map(|(id, job_kind, _)| format!("{job_kind} job {id}, which is not over")).collect())
}

/// Training sets that need the tables of what is retired.
async fn rebuild_warnings(
    connection: &mut Session,
    kind: ObjectKind,
    targets: &[&Target],
) -> Result<Vec<String>, RegistryError> {
    let mut datasets: Vec<String> = Vec::new();
    for target in targets {
        datasets.extend(datasets_of(connection, kind, target.id).await?);
    }
    datasets.sort();
    datasets.dedup();
    if datasets.is_empty() {
        return Ok(Vec::new());
    }
    let mut listed: Vec<String> = datasets.iter().take(NAMED_MAX).cloned().collect();
    if datasets.len() > NAMED_MAX {
        listed.push(format!("and {} more", datasets.len() - NAMED_MAX));
    }
    Ok(vec![format!("could not be rebuilt once its tables are deleted: training set {}", listed.join(", "))])
}

/// Training sets that were made of a version, as `name (id)`.
pub(crate) async fn datasets_of(
    connection: &mut Session,
    kind: ObjectKind,
    id: i64,
) -> Result<Vec<String>, RegistryError> {
    let statement = match kind {
        ObjectKind::View => return datasets_of_view(connection, id, None).await,
        ObjectKind::Service => {
            "SELECT name || ' (' || dataset_id || ')' FROM dataset WHERE service_version_id = $1 ORDER BY 1"
        }
        _ => {
            "SELECT DISTINCT dataset.name || ' (' || dataset_id || ')'
             FROM dataset JOIN dataset_column USING (dataset_id) JOIN view_version USING (view_version_id)
             WHERE transform_id = $1 ORDER BY 1"
        }
    };
    Ok(sqlx::query_scalar(statement).bind(id).fetch_all(connection.sql()).await?)
}

/// What is to come back must have what it stands on.
async fn check_ground(connection: &mut Session, kind: ObjectKind, targets: &[&Target]) -> Result<(), RegistryError> {
    let mut missing: Vec<String> = Vec::new();
    for target in targets {
        let retired: Vec<String> = match kind {
            ObjectKind::View => {
                sqlx::query_scalar(
                    "SELECT 'transform ' || transform.name FROM view_version JOIN transform USING (transform_id)
                         JOIN transform_mark USING (transform_id)
                     WHERE view_version_id = $1 AND state = 'retired'
                     UNION
                     SELECT 'view ' || upstream_view.name || '@' || CAST(upstream.version AS TEXT) FROM view_binding
                         JOIN view_version AS upstream ON upstream.view_version_id = upstream_version_id
                         JOIN view AS upstream_view ON upstream_view.view_id = upstream.view_id
                         JOIN view_mark ON view_mark.view_version_id = upstream_version_id
                     WHERE view_binding.view_version_id = $1 AND state = 'retired'",
                )
                .bind(target.id)
                .fetch_all(connection.sql())
                .await?
            }
            ObjectKind::Service => {
                sqlx::query_scalar(
                    "SELECT DISTINCT 'view ' || view.name || '@' || CAST(version AS TEXT) FROM service_entry
                         JOIN view_version USING (view_version_id) JOIN view USING (view_id)
                         JOIN view_mark USING (view_version_id)
                     WHERE service_version_id = $1 AND state = 'retired'",
                )
                .bind(target.id)
                .fetch_all(connection.sql())
                .await?
            }
            _ => Vec::new(),
        };
        missing.extend(retired.into_iter().map(|what| format!("{} needs {what}", target.reference)));
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(RegistryError::Conflict(format!("{}, which is retired; bring that back first", missing.join(", "))))
}
