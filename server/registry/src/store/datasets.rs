//! Datasets: training sets that were saved, with the recipe to make them again.

use eadem_values::Digest;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sqlx::Row;

use super::services::require_service_version;
use super::views::view_version_id;
use super::{Registry, Session, read_digest, signed, unsigned};
use crate::error::{ObjectKind, RegistryError};
use crate::model::ViewRef;

/// A feature column of a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetColumn {
    /// The column's name.
    pub name: String,
    /// The view version it came from.
    pub view: ViewRef,
    /// The feature.
    pub feature: String,
    /// Its role, if any.
    pub role: Option<String>,
}

/// A saved dataset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatasetRecord {
    /// Unique; chosen by whoever saves it.
    pub id: String,
    /// For people; not unique.
    pub name: String,
    /// The service version it was built for; `None` for a list of features.
    pub service: Option<(String, u32)>,
    /// Number of rows.
    pub rows: u64,
    /// Of its content in canonical encoding.
    pub content_digest: Digest,
    /// The file that was written, as a path or URL.
    pub output: String,
    /// How to make it again: a document of the builder's own.
    pub recipe: Json,
    /// What its values look like, what was found and what not: likewise.
    pub report: Json,
    /// Its feature columns, in order.
    pub columns: Vec<DatasetColumn>,
    /// µs since the epoch.
    pub created_at_us: i64,
}

impl Registry {
    /// Saves a dataset's recipe. Saving the same id with the same content again changes nothing.
    ///
    /// # Errors
    /// An unknown view or service version; another dataset of this id.
    pub async fn record_dataset(&self, dataset: &DatasetRecord) -> Result<(), RegistryError> {
        let mut change = self.change().await?;
        let saved: Option<Vec<u8>> = sqlx::query_scalar("SELECT content_digest FROM dataset WHERE dataset_id = $1")
            .bind(&dataset.id)
            .fetch_optional(change.sql())
            .await?;
        if let Some(saved) = saved {
            if read_digest(saved)? == dataset.content_digest {
                return Ok(());
            }
            let message = format!("dataset `{}` exists already with another content", dataset.id);
            return Err(RegistryError::Conflict(message));
        }
        let mut service_version_id = None;
        if let Some((service, version)) = &dataset.service {
            service_version_id = Some(require_service_version(&mut change, service, Some(*version)).await?.0);
        }
        sqlx::query(
            "INSERT INTO dataset
             (dataset_id, name, service_version_id, rows, content_digest, output, recipe, report, created_at_us)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(&dataset.id)
        .bind(&dataset.name)
        .bind(service_version_id)
        .bind(signed(dataset.rows)?)
        .bind(dataset.content_digest.as_bytes().as_slice())
        .bind(&dataset.output)
        .bind(dataset.recipe.to_string())
        .bind(dataset.report.to_string())
        .bind(dataset.created_at_us)
        .execute(change.sql())
        .await?;
        for (position, column) in (0_i64..).zip(&dataset.columns) {
            let unknown = || RegistryError::not_found(ObjectKind::View, column.view.to_string(), "");
            let view = view_version_id(&mut change, &column.view).await?.ok_or_else(unknown)?;
            sqlx::query(
                "INSERT INTO dataset_column (dataset_id, position, name, view_version_id, feature, role)
                 VALUES ($1, $2, $3, $4, $5, $6)",
            )
            .bind(&dataset.id)
            .bind(position)
            .bind(&column.name)
            .bind(view)
            .bind(&column.feature)
            .bind(&column.role)
            .execute(change.sql())
            .await?;
        }
        // No request for features rests on it.
        change.commit_quietly().await
    }

    /// Puts another report into the place of a dataset's: an erasure takes values out of it.
    ///
    /// # Errors
    /// The database failed.
    pub async fn replace_dataset_report(&self, dataset: &str, report: &Json) -> Result<(), RegistryError> {
        let mut change = self.change().await?;
        sqlx::query("UPDATE dataset SET report = $1 WHERE dataset_id = $2")
            .bind(report.to_string())
            .bind(dataset)
            .execute(change.sql())
            .await?;
        change.commit_quietly().await
    }

    /// All datasets, newest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn datasets(&self) -> Result<Vec<DatasetRecord>, RegistryError> {
        let mut snapshot = self.snapshot().await?;
        let ids: Vec<String> =
            sqlx::query_scalar("SELECT dataset_id FROM dataset ORDER BY created_at_us DESC, dataset_id")
                .fetch_all(snapshot.sql())
                .await?;
        let mut datasets = Vec::with_capacity(ids.len());
        for id in ids {
            datasets.extend(load_dataset(&mut snapshot, &id).await?);
        }
        Ok(datasets)
    }

    /// A dataset by id, or the newest of a name.
    ///
    /// # Errors
    /// No such dataset.
    pub async fn dataset(&self, id_or_name: &str) -> Result<DatasetRecord, RegistryError> {
        let mut snapshot = self.snapshot().await?;
        let id = require_dataset_id(&mut snapshot, id_or_name).await?;
        let dataset = load_dataset(&mut snapshot, &id).await?;
        dataset.ok_or_else(|| RegistryError::not_found(ObjectKind::Dataset, id_or_name, ""))
    }
}

pub(crate) async fn require_dataset_id(connection: &mut Session, id_or_name: &str) -> Result<String, RegistryError> {
    let id: Option<String> = sqlx::query_scalar(
        "SELECT dataset_id FROM dataset WHERE dataset_id = $1 OR name = $1
         ORDER BY dataset_id = $1 DESC, created_at_us DESC, dataset_id DESC LIMIT 1",
    )
    .bind(id_or_name)
    .fetch_optional(connection.sql())
    .await?;
    id.ok_or_else(|| RegistryError::not_found(ObjectKind::Dataset, id_or_name, ""))
}

async fn load_dataset(connection: &mut Session, id: &str) -> Result<Option<DatasetRecord>, RegistryError> {
    let row = sqlx::query(
        "SELECT dataset.name, service.name AS service, version, rows, content_digest, output, recipe, report,
                dataset.created_at_us
         FROM dataset LEFT JOIN service_version USING (service_version_id) LEFT JOIN service USING (service_id)
         WHERE dataset_id = $1",
    )
    .bind(id)
    .fetch_optional(connection.sql())
    .await?;
    let Some(row) = row else { return Ok(None) };
    let service: Option<String> = row.try_get("service")?;
    let service = match service {
        Some(name) => Some((name, unsigned(row.try_get("version")?)?)),
        None => None,
    };
    let document = |name: &str| -> Result<Json, RegistryError> {
        let text: String = row.try_get(name)?;
        serde_json::from_str(&text)
            .map_err(|error| RegistryError::damaged(format!("the {name} of dataset {id}: {error}")))
    };
    Ok(Some(DatasetRecord {
        id: id.to_owned(),
        name: row.try_get("name")?,
        service,
        rows: unsigned(row.try_get("rows")?)?,
        content_digest: read_digest(row.try_get("content_digest")?)?,
        output: row.try_get("output")?,
        recipe: document("recipe")?,
        report: document("report")?,
        columns: load_columns(connection, id).await?,
        created_at_us: row.try_get("created_at_us")?,
    }))
}

async fn load_columns(connection: &mut Session, id: &str) -> Result<Vec<DatasetColumn>, RegistryError> {
    let rows = sqlx::query(
        "SELECT dataset_column.name, view.name AS view, version, feature, role
         FROM dataset_column JOIN view_version USING (view_version_id) JOIN view USING (view_id)
         WHERE dataset_id = $1 ORDER BY position",
    )
    .bind(id)
    .fetch_all(connection.sql())
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(DatasetColumn {
                name: row.try_get("name")?,
                view: ViewRef { name: row.try_get("view")?, version: unsigned(row.try_get("version")?)? },
                feature: row.try_get("feature")?,
                role: row.try_get("role")?,
            })
        })
        .collect()
}
