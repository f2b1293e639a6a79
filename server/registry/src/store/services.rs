//! Services and their versions.

use eadem_values::Digest;
use serde::Serialize;
use sqlx::Row;

use super::lifecycle::{Mark, load_service_mark};
use super::views::{load_view_version, view_version_id};
use super::{Registry, Session, Snapshot, load_tags, read_digest, save_tags, unsigned};
use crate::definitions::{ServiceEntryName, did_you_mean};
use crate::error::{ObjectKind, RegistryError};
use crate::model::{About, ServiceEntry};

/// A service with its newest version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServiceSummary {
    /// The service.
    pub name: String,
    /// What the name without `@` stands for.
    pub newest: u32,
    /// The numbers of all versions, ascending.
    pub versions: Vec<u32>,
    /// The entries of the newest definition, as written.
    pub features: Vec<String>,
    /// For people.
    pub about: About,
    /// Whether the newest version is on its way out.
    pub mark: Option<Mark>,
}

/// An entry of the newest definition of a service, as written.
pub(crate) type WrittenEntry = ServiceEntryName;

/// The newest version of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceHead {
    pub(crate) service_version_id: i64,
    pub(crate) version: u32,
    pub(crate) digest: Digest,
    pub(crate) about: About,
}

impl Registry {
    /// All services, by name.
    ///
    /// # Errors
    /// The database failed.
    pub async fn services(&self) -> Result<Vec<ServiceSummary>, RegistryError> {
        let mut snapshot = self.snapshot().await?;
        let names: Vec<String> =
            sqlx::query_scalar("SELECT name FROM service WHERE head_version_id IS NOT NULL ORDER BY name")
                .fetch_all(snapshot.sql())
                .await?;
        let mut services = Vec::with_capacity(names.len());
        for name in names {
            let Some(head) = load_service_head(&mut snapshot, &name).await? else { continue };
            let written = load_written_entries(&mut snapshot, &name).await?;
            services.push(ServiceSummary {
                newest: head.version,
                versions: load_service_versions(&mut snapshot, &name).await?.into_iter().map(|row| row.1).collect(),
                features: written.iter().map(ToString::to_string).collect(),
                mark: load_service_mark(&mut snapshot, head.service_version_id).await?,
                about: head.about,
                name,
            });
        }
        Ok(services)
    }
}

pub(crate) async fn unknown_service(connection: &mut Session, name: &str) -> Result<RegistryError, RegistryError> {
    let names: Vec<String> = sqlx::query_scalar("SELECT name FROM service").fetch_all(connection.sql()).await?;
    let hint = did_you_mean(name, names.iter().map(String::as_str));
    Ok(RegistryError::not_found(ObjectKind::Service, name, hint))
}

/// Row, number and digest of a service version; without number the newest.
pub(crate) async fn require_service_version(
    connection: &mut Session,
    name: &str,
    version: Option<u32>,
) -> Result<(i64, u32, Digest), RegistryError> {
    let Some(version) = version else {
        let head = load_service_head(connection, name).await?;
        return match head {
            Some(head) => Ok((head.service_version_id, head.version, head.digest)),
            None => Err(unknown_service(connection, name).await?),
        };
    };
    let versions = load_service_versions(connection, name).await?;
    if versions.is_empty() {
        return Err(unknown_service(connection, name).await?);
    }
    let found = versions.iter().find(|(_, number, _)| *number == version);
    found.copied().ok_or_else(|| {
        let known: Vec<String> = versions.iter().map(|(_, number, _)| number.to_string()).collect();
        RegistryError::not_found(
            ObjectKind::Service,
            format!("{name}@{version}"),
            format!("; versions are {}", known.join(", ")),
        )
    })
}

pub(crate) async fn load_service_head(
    connection: &mut Session,
    name: &str,
) -> Result<Option<ServiceHead>, RegistryError> {
    let row = sqlx::query(
        "SELECT service_version_id, version, digest, doc, owner
         FROM service JOIN service_version ON service_version_id = head_version_id WHERE name = $1",
    )
    .bind(name)
    .fetch_optional(connection.sql())
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(ServiceHead {
        service_version_id: row.try_get("service_version_id")?,
        version: unsigned(row.try_get("version")?)?,
        digest: read_digest(row.try_get("digest")?)?,
        about: About {
            doc: row.try_get("doc")?,
            owner: row.try_get("owner")?,
            tags: load_tags(connection, "service", name).await?,
        },
    }))
}

/// Row, number and digest of every version, ascending; none for an unknown service.
pub(crate) async fn load_service_versions(
    connection: &mut Session,
    name: &str,
) -> Result<Vec<(i64, u32, Digest)>, RegistryError> {
    let rows = sqlx::query(
        "SELECT service_version_id, version, digest FROM service_version JOIN service USING (service_id)
         WHERE name = $1 ORDER BY version",
    )
    .bind(name)
    .fetch_all(connection.sql())
    .await?;
    rows.into_iter()
        .map(|row| {
            let digest = read_digest(row.try_get("digest")?)?;
            Ok((row.try_get("service_version_id")?, unsigned(row.try_get("version")?)?, digest))
        })
        .collect()
}

pub(crate) async fn load_service_entries(
    snapshot: &mut Snapshot,
    service_version_id: i64,
) -> Result<Vec<ServiceEntry>, RegistryError> {
    let rows = sqlx::query(
        "SELECT output_name, view_version_id, feature, role FROM service_entry
         WHERE service_version_id = $1 ORDER BY position",
    )
    .bind(service_version_id)
    .fetch_all(snapshot.sql())
    .await?;
    let mut entries = Vec::with_capacity(rows.len());
    for row in rows {
        let view = load_view_version(snapshot, row.try_get("view_version_id")?).await?;
        let feature: String = row.try_get("feature")?;
        let vanished = || RegistryError::damaged(format!("{} has no feature {feature}", view.id));
        let data_type = view.feature(&feature).ok_or_else(vanished)?.data_type;
        entries.push(ServiceEntry {
            output_name: row.try_get("output_name")?,
            view: view.id.clone(),
            data_type,
            role: row.try_get("role")?,
            feature,
        });
    }
    Ok(entries)
}

pub(crate) async fn load_written_entries(
    connection: &mut Session,
    service: &str,
) -> Result<Vec<WrittenEntry>, RegistryError> {
    let rows = sqlx::query(
        "SELECT view.name AS view_name, pinned_version, feature, role, alias
         FROM service_written_entry AS entry JOIN service USING (service_id)
             JOIN view ON view.view_id = entry.view_id
         WHERE service.name = $1 ORDER BY position",
    )
    .bind(service)
    .fetch_all(connection.sql())
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(WrittenEntry {
                view: row.try_get("view_name")?,
                version: row.try_get::<Option<i64>, _>("pinned_version")?.map(unsigned).transpose()?,
                feature: row.try_get("feature")?,
                role: row.try_get("role")?,
                alias: row.try_get("alias")?,
            })
        })
        .collect()
}

pub(crate) async fn save_service(
    connection: &mut Session,
    name: &str,
    about: &About,
    written: &[WrittenEntry],
) -> Result<i64, RegistryError> {
    let service_id: i64 = sqlx::query_scalar(
        "INSERT INTO service (name, doc, owner) VALUES ($1, $2, $3)
         ON CONFLICT (name) DO UPDATE SET doc = excluded.doc, owner = excluded.owner RETURNING service_id",
    )
    .bind(name)
    .bind(&about.doc)
    .bind(&about.owner)
    .fetch_one(connection.sql())
    .await?;
    save_tags(connection, "service", name, about).await?;
    sqlx::query("DELETE FROM service_written_entry WHERE service_id = $1")
        .bind(service_id)
        .execute(connection.sql())
        .await?;
    for (position, entry) in (0_i64..).zip(written) {
        sqlx::query(
            "INSERT INTO service_written_entry (service_id, position, view_id, pinned_version, feature, role, alias)
             SELECT $1, $2, view_id, $3, $4, $5, $6 FROM view WHERE name = $7",
        )
        .bind(service_id)
        .bind(position)
        .bind(entry.version.map(i64::from))
        .bind(&entry.feature)
        .bind(&entry.role)
        .bind(&entry.alias)
        .bind(&entry.view)
        .execute(connection.sql())
        .await?;
    }
    Ok(service_id)
}

/// Writes a version that is new.
pub(crate) async fn insert_service_version(
    connection: &mut Session,
    service_id: i64,
    version: u32,
    digest: &Digest,
    entries: &[ServiceEntry],
    now_us: i64,
) -> Result<i64, RegistryError> {
    let id: i64 =
        sqlx::query_scalar("INSERT INTO service_version (service_id, version, digest, created_at_us) VALUES ($1, $2, $3, $4) RETURNING service_version_id")
            .bind(service_id)
            .bind(i64::from(version))
            .bind(digest.as_bytes().as_slice())
            .bind(now_us)
            .fetch_one(connection.sql())
            .await?;
    for (position, entry) in (0_i64..).zip(entries) {
        let vanished = || RegistryError::damaged(format!("view {} vanished", entry.view));
        let view = view_version_id(connection, &entry.view).await?.ok_or_else(vanished)?;
        sqlx::query(
            "INSERT INTO service_entry (service_version_id, position, output_name, view_version_id, feature, role)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(id)
        .bind(position)
        .bind(&entry.output_name)
        .bind(view)
        .bind(&entry.feature)
        .bind(&entry.role)
        .execute(connection.sql())
        .await?;
    }
    Ok(id)
}

pub(crate) async fn set_service_head(
    connection: &mut Session,
    service_id: i64,
    service_version_id: i64,
) -> Result<(), RegistryError> {
    sqlx::query("UPDATE service SET head_version_id = $1 WHERE service_id = $2")
        .bind(service_version_id)
        .bind(service_id)
        .execute(connection.sql())
        .await?;
    Ok(())
}
