//! Projects, and how much each may have.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use eadem_values::Digest;
use serde::{Deserialize, Serialize};
use sqlx::Row;

use super::trail::TrailEvent;
use super::{Change, OfProject, Registry, Session, SqlRow, read_name, signed, unsigned};
use crate::error::{ObjectKind, RegistryError};

/// The project of whatever names none.
pub const DEFAULT_PROJECT: &str = "default";

/// Schemas and keyspaces are named after projects, with something before.
const NAME_BYTES_MAX: usize = 32;

/// What a project may have at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quota {
    /// Components that are uploaded.
    Components,
    /// Bytes of all components together.
    ComponentBytes,
    /// Jobs that are at work at once.
    Jobs,
    /// Requests in a second.
    RequestsPerS,
    /// Processor time of transforms in requests, in microseconds for each second.
    TransformUsPerS,
}

impl Quota {
    /// All quotas.
    pub const ALL: [Self; 5] =
        [Self::Components, Self::ComponentBytes, Self::Jobs, Self::RequestsPerS, Self::TransformUsPerS];

    /// As in JSON, on the command line and in the database.
    pub fn name(self) -> &'static str {
        match self {
            Self::Components => "components",
            Self::ComponentBytes => "component_bytes",
            Self::Jobs => "jobs",
            Self::RequestsPerS => "requests_per_s",
            Self::TransformUsPerS => "transform_us_per_s",
        }
    }

    /// What it counts, for people.
    pub fn what(self) -> &'static str {
        match self {
            Self::Components => "components",
            Self::ComponentBytes => "bytes of components",
            Self::Jobs => "jobs at work at once",
            Self::RequestsPerS => "requests in a second",
            Self::TransformUsPerS => "microseconds of transforms in a second",
        }
    }

    /// What to do where it is used up.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Components | Self::ComponentBytes => "an admin can raise that: `eadem project quota`",
            Self::Jobs => "wait for one to end, or call one off",
            Self::RequestsPerS | Self::TransformUsPerS => "ask more slowly",
        }
    }

    /// The quota of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|quota| quota.name() == name)
    }
}

/// A project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectRecord {
    /// Its name.
    pub name: String,
    /// µs since the epoch; 0 for the first one.
    pub created_at_us: i64,
    /// What it may have at most; what is not in it is not limited.
    pub quotas: BTreeMap<Quota, u64>,
}

impl Registry {
    /// Makes a project.
    ///
    /// # Errors
    /// A name that is none, or that exists.
    pub async fn create_project(&self, name: &str, now_us: i64) -> Result<ProjectRecord, RegistryError> {
        check_name(name)?;
        let mut change = self.change().await?;
        let created = sqlx::query("INSERT INTO project (name, created_at_us) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(name.to_owned())
            .bind(now_us)
            .execute(change.sql())
            .await?;
        if created.rows_affected() == 0 {
            return Err(RegistryError::Conflict(format!("project `{name}` exists already")));
        }
        let record = load_project(&mut change, name).await?;
        let event = TrailEvent::done("create project", object(name), "");
        change.record(event.with_digests(None, Some(digest(&record))), now_us).await?;
        change.commit_access().await?;
        Ok(record)
    }

    /// Says what a project may have: `None` lifts a limit, and what is not named stays.
    ///
    /// # Errors
    /// No such project.
    pub async fn set_quotas(
        &self,
        project: &str,
        quotas: &BTreeMap<Quota, Option<u64>>,
        now_us: i64,
    ) -> Result<ProjectRecord, RegistryError> {
        let mut change = self.change().await?;
        let before = load_project(&mut change, project).await?;
        let id = project_id(&mut change, project).await?;
        for (quota, most) in quotas {
            sqlx::query("DELETE FROM project_quota WHERE project_id = $1 AND name = $2")
                .bind(id)
                .bind(quota.name())
                .execute(change.sql())
                .await?;
            let Some(most) = most else { continue };
            sqlx::query("INSERT INTO project_quota (project_id, name, most) VALUES ($1, $2, $3)")
                .bind(id)
                .bind(quota.name())
                .bind(signed(*most)?)
                .execute(change.sql())
                .await?;
        }
        let after = load_project(&mut change, project).await?;
        if after == before {
            return Ok(after);
        }
        let said: Vec<String> = after.quotas.iter().map(|(quota, most)| format!("{} {most}", quota.name())).collect();
        let event = TrailEvent::done("set quotas", object(project), said.join(", "));
        change.record(event.with_digests(Some(digest(&before)), Some(digest(&after))), now_us).await?;
        change.commit_access().await?;
        Ok(after)
    }

    /// Whether one more component of this many bytes may be stored: asked before it is checked, which takes long. What has been
    /// stored meanwhile counts once more when it is.
    ///
    /// # Errors
    /// It may not, or the database failed.
    pub async fn check_upload(&self, bytes: u64) -> Result<(), RegistryError> {
        check_components(&mut *self.snapshot().await?, &self.project, bytes).await
    }

    /// All projects, by name.
    ///
    /// # Errors
    /// The database failed.
    pub async fn projects(&self) -> Result<Vec<ProjectRecord>, RegistryError> {
        let mut snapshot = self.snapshot().await?;
        let rows = sqlx::query("SELECT project_id, name, created_at_us FROM project ORDER BY name");
        let rows = rows.fetch_all(snapshot.sql()).await?;
        let quotas = sqlx::query_as("SELECT project_id, name, most FROM project_quota");
        let quotas: Vec<(i64, String, i64)> = quotas.fetch_all(snapshot.sql()).await?;
        let mut by_project: HashMap<i64, BTreeMap<Quota, u64>> = HashMap::new();
        for (project, quota, most) in quotas {
            by_project.entry(project).or_default().insert(read_name(&quota, Quota::from_name)?, unsigned(most)?);
        }
        let read = |row: &SqlRow| {
            let id: i64 = row.try_get("project_id")?;
            Ok(ProjectRecord {
                name: row.try_get("name")?,
                created_at_us: row.try_get("created_at_us")?,
                quotas: by_project.get(&id).cloned().unwrap_or_default(),
            })
        };
        rows.iter().map(read).collect()
    }

    /// A project.
    ///
    /// # Errors
    /// No such project.
    pub async fn project(&self, name: &str) -> Result<ProjectRecord, RegistryError> {
        load_project(&mut *self.snapshot().await?, name).await
    }
}

impl Change {
    /// Whether one more component of this many bytes may be stored.
    pub(crate) async fn check_components(&mut self, bytes: u64) -> Result<(), RegistryError> {
        let project = Arc::clone(&self.project);
        check_components(self, &project, bytes).await
    }

    /// Whether one more job may be at work. One that nobody is at does not count, or it would keep others from their turn for
    /// ever; one that has just been made is somebody's in a moment.
    pub(crate) async fn check_jobs(&mut self, id: &str, now_us: i64) -> Result<(), RegistryError> {
        const JUST_MADE_US: i64 = 15_000_000;
        let project = Arc::clone(&self.project);
        let quotas = quotas_of(&project, self).await?;
        if !quotas.contains_key(&Quota::Jobs) {
            return Ok(());
        }
        let at_work: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM job WHERE state = 'open' AND job_id <> $1 AND (changed_at_us > $2 OR EXISTS (
                 SELECT 1 FROM job_worker WHERE job_worker.job_id = job.job_id AND job_worker.expires_at_us > $3))",
        )
        .bind(id.to_owned())
        .bind(now_us.saturating_sub(JUST_MADE_US))
        .bind(now_us)
        .fetch_one(self.sql())
        .await?;
        check(&project.name, &quotas, Quota::Jobs, unsigned::<u64>(at_work)?.saturating_add(1))
    }
}

/// What a project may have, which another registry than that of its definitions may say.
async fn quotas_of(project: &OfProject, session: &mut Session) -> Result<BTreeMap<Quota, u64>, RegistryError> {
    let record = match &project.main {
        None => load_project(session, &project.name).await?,
        Some(main) => main.project(&project.name).await?,
    };
    Ok(record.quotas)
}

/// Whether the project may store one more component of this many bytes.
async fn check_components(session: &mut Session, project: &OfProject, bytes: u64) -> Result<(), RegistryError> {
    let quotas = quotas_of(project, session).await?;
    if !quotas.contains_key(&Quota::Components) && !quotas.contains_key(&Quota::ComponentBytes) {
        return Ok(());
    }
    let row = sqlx::query(
        "SELECT count(*) AS components, CAST(coalesce(sum(component_bytes), 0) AS BIGINT) AS bytes FROM transform",
    )
    .fetch_one(session.sql())
    .await?;
    let stored: [u64; 2] = [unsigned(row.try_get("components")?)?, unsigned(row.try_get("bytes")?)?];
    for (quota, after) in
        [(Quota::Components, stored[0].saturating_add(1)), (Quota::ComponentBytes, stored[1].saturating_add(bytes))]
    {
        check(&project.name, &quotas, quota, after)?;
    }
    Ok(())
}

/// Whether the project may have as much.
fn check(project: &str, quotas: &BTreeMap<Quota, u64>, quota: Quota, after: u64) -> Result<(), RegistryError> {
    match quotas.get(&quota) {
        Some(most) if after > *most => {
            Err(RegistryError::OverQuota { project: project.to_owned(), quota, most: *most })
        }
        _ => Ok(()),
    }
}

fn object(name: &str) -> String {
    format!("project {name}")
}

fn digest(project: &ProjectRecord) -> Digest {
    Digest::of(&serde_json::to_vec(project).unwrap_or_default())
}

/// Names of projects stand in paths, on command lines and in metrics, and databases have their rules for what is named after
/// them.
fn check_name(name: &str) -> Result<(), RegistryError> {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let begins_well = name.bytes().next().is_some_and(|first| first.is_ascii_lowercase());
    if begins_well && name.len() <= NAME_BYTES_MAX && name.bytes().all(is_word) {
        return Ok(());
    }
    Err(RegistryError::Invalid(format!(
        "`{name}` is no name of a project: a lower-case letter, then at most {} lower-case letters, digits and `_`",
        NAME_BYTES_MAX - 1
    )))
}

async fn project_id(session: &mut Session, name: &str) -> Result<i64, RegistryError> {
    let id: Option<i64> = sqlx::query_scalar("SELECT project_id FROM project WHERE name = $1")
        .bind(name.to_owned())
        .fetch_optional(session.sql())
        .await?;
    id.ok_or_else(|| unknown(name))
}

/// That there is such a project.
pub(super) async fn require_project(session: &mut Session, name: &str) -> Result<(), RegistryError> {
    project_id(session, name).await.map(|_| ())
}

fn unknown(name: &str) -> RegistryError {
    RegistryError::not_found(ObjectKind::Project, name, "; `eadem project list` shows all")
}

async fn load_project(session: &mut Session, name: &str) -> Result<ProjectRecord, RegistryError> {
    let row = sqlx::query("SELECT project_id, created_at_us FROM project WHERE name = $1")
        .bind(name.to_owned())
        .fetch_optional(session.sql())
        .await?
        .ok_or_else(|| unknown(name))?;
    let id: i64 = row.try_get("project_id")?;
    let rows = sqlx::query("SELECT name, most FROM project_quota WHERE project_id = $1 ORDER BY name")
        .bind(id)
        .fetch_all(session.sql())
        .await?;
    let mut quotas = BTreeMap::new();
    for row in &rows {
        let quota: String = row.try_get("name")?;
        quotas.insert(read_name(&quota, Quota::from_name)?, unsigned(row.try_get("most")?)?);
    }
    Ok(ProjectRecord { name: name.to_owned(), created_at_us: row.try_get("created_at_us")?, quotas })
}
