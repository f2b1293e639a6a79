//! Views and their versions.

use std::collections::BTreeMap;
use std::sync::Arc;

use eadem_values::{Digest, Value, value_from_json, value_to_json};
use serde::Serialize;
use sqlx::Row;

use super::entities::{load_shape, save_shape};
use super::lifecycle::read_mark;
use super::sources::{load_meaning, save_meaning};
use super::transforms::{load_description, transform_id};
use super::{Registry, Session, Snapshot, load_tags, read_digest, read_flag, read_name, unsigned};
use crate::definitions::did_you_mean;
use crate::error::{ObjectKind, RegistryError};
use crate::model::{
    About, Binding, BoundTo, Deployment, EarlierPlacement, OutlierBound, Partition, Placement, StopThreshold,
    StoredView, UpstreamFeature, ValidationPolicy, ViewRef, ViewVersion,
};

/// A view with its newest version.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ViewSummary {
    /// The newest version: what names without `@` stand for.
    pub newest: Arc<ViewVersion>,
    /// The numbers of all versions, ascending.
    pub versions: Vec<u32>,
}

/// A version of a view, by the row that it is stored in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VersionRow {
    pub(crate) view_version_id: i64,
    pub(crate) version: u32,
    pub(crate) digest: Digest,
}

impl Registry {
    /// All views, by name.
    ///
    /// # Errors
    /// The database failed.
    pub async fn views(&self) -> Result<Vec<ViewSummary>, RegistryError> {
        let mut snapshot = self.snapshot().await?;
        let rows: Vec<(String, i64)> =
            sqlx::query_as("SELECT name, head_version_id FROM view WHERE head_version_id IS NOT NULL ORDER BY name")
                .fetch_all(snapshot.sql())
                .await?;
        let mut summaries = Vec::with_capacity(rows.len());
        for (name, head) in rows {
            let newest = load_view_version(&mut snapshot, head).await?;
            let versions = load_versions(&mut snapshot, &name).await?.into_iter().map(|row| row.version).collect();
            summaries.push(ViewSummary { newest, versions });
        }
        Ok(summaries)
    }

    /// A view version; without number the newest.
    ///
    /// # Errors
    /// No such view or version.
    pub async fn view(&self, name: &str, version: Option<u32>) -> Result<Arc<ViewVersion>, RegistryError> {
        let mut snapshot = self.snapshot().await?;
        let id = require_view_version(&mut snapshot, name, version).await?;
        load_view_version(&mut snapshot, id).await
    }
}

pub(crate) async fn unknown_view(connection: &mut Session, name: &str) -> Result<RegistryError, RegistryError> {
    let names: Vec<String> = sqlx::query_scalar("SELECT name FROM view").fetch_all(connection.sql()).await?;
    let hint = did_you_mean(name, names.iter().map(String::as_str));
    Ok(RegistryError::not_found(ObjectKind::View, name, hint))
}

/// The newest version's row; `None` for an unknown view.
pub(crate) async fn head_version_id(connection: &mut Session, name: &str) -> Result<Option<i64>, RegistryError> {
    let id: Option<Option<i64>> = sqlx::query_scalar("SELECT head_version_id FROM view WHERE name = $1")
        .bind(name)
        .fetch_optional(connection.sql())
        .await?;
    Ok(id.flatten())
}

/// The row of a version, or an error that names what is missing.
pub(crate) async fn require_view_version(
    connection: &mut Session,
    name: &str,
    version: Option<u32>,
) -> Result<i64, RegistryError> {
    let id = match version {
        None => head_version_id(connection, name).await?,
        Some(version) => view_version_id(connection, &ViewRef { name: name.to_owned(), version }).await?,
    };
    if let Some(id) = id {
        return Ok(id);
    }
    let known: Vec<String> = load_versions(connection, name).await?.iter().map(|row| row.version.to_string()).collect();
    match version {
        Some(version) if !known.is_empty() => Err(RegistryError::not_found(
            ObjectKind::View,
            format!("{name}@{version}"),
            format!("; versions are {}", known.join(", ")),
        )),
        _ => Err(unknown_view(connection, name).await?),
    }
}

pub(crate) async fn view_version_id(connection: &mut Session, view: &ViewRef) -> Result<Option<i64>, RegistryError> {
    let id = sqlx::query_scalar(
        "SELECT view_version_id FROM view_version JOIN view USING (view_id) WHERE name = $1 AND version = $2",
    )
    .bind(&view.name)
    .bind(i64::from(view.version))
    .fetch_optional(connection.sql())
    .await?;
    Ok(id)
}

/// The versions of a view, ascending; none for an unknown one.
pub(crate) async fn load_versions(connection: &mut Session, name: &str) -> Result<Vec<VersionRow>, RegistryError> {
    let rows = sqlx::query(
        "SELECT view_version_id, version, digest FROM view_version JOIN view USING (view_id)
         WHERE name = $1 ORDER BY version",
    )
    .bind(name)
    .fetch_all(connection.sql())
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(VersionRow {
                view_version_id: row.try_get("view_version_id")?,
                version: unsigned(row.try_get("version")?)?,
                digest: read_digest(row.try_get("digest")?)?,
            })
        })
        .collect()
}

pub(crate) async fn load_view_version(snapshot: &mut Snapshot, id: i64) -> Result<Arc<ViewVersion>, RegistryError> {
    let shared = Arc::clone(&snapshot.shared);
    let revision = snapshot.revision;
    if let Some(Some(cached)) = shared.with_cache(revision, |cache| cache.view_versions.get(&id).cloned()) {
        return Ok(cached);
    }
    let row = sqlx::query(
        "SELECT name, version, digest, transform_id, shape_id, meaning_id, ttl_us, horizon_us, validation,
                created_at_us, doc, owner, state, message, at_us
         FROM view_version JOIN view USING (view_id) LEFT JOIN view_mark USING (view_version_id)
         WHERE view_version_id = $1",
    )
    .bind(id)
    .fetch_one(snapshot.sql())
    .await?;
    let name: String = row.try_get("name")?;
    let (transform, description) = load_description(snapshot, row.try_get("transform_id")?).await?;
    let stored = match (row.try_get("shape_id")?, row.try_get("meaning_id")?) {
        (Some(shape_id), Some(meaning_id)) => Some(StoredView {
            entity: load_shape(snapshot, shape_id).await?,
            source: load_meaning(snapshot, meaning_id).await?,
            ttl_us: row.try_get("ttl_us")?,
            horizon_us: row.try_get("horizon_us")?,
            deployment: load_deployment(snapshot, id).await?,
        }),
        _ => None,
    };
    let validation: String = row.try_get("validation")?;
    let mut version = ViewVersion {
        id: ViewRef { name: name.clone(), version: unsigned(row.try_get("version")?)? },
        digest: read_digest(row.try_get("digest")?)?,
        transform,
        bindings: Vec::new(),
        description,
        stored,
        defaults: BTreeMap::new(),
        validation: read_name(&validation, ValidationPolicy::from_name)?,
        bounds: BTreeMap::new(),
        about: About {
            doc: row.try_get("doc")?,
            owner: row.try_get("owner")?,
            tags: load_tags(snapshot, "view", &name).await?,
        },
        created_at_us: row.try_get("created_at_us")?,
        mark: read_mark(&row)?,
    };
    version.bindings = load_bindings(snapshot, id, &version).await?;
    version.defaults = load_defaults(snapshot, id, &version).await?;
    version.bounds = load_bounds(snapshot, id, &version).await?;
    let version = Arc::new(version);
    shared.with_cache(revision, |cache| cache.view_versions.insert(id, Arc::clone(&version)));
    Ok(version)
}

async fn load_deployment(connection: &mut Session, id: i64) -> Result<Deployment, RegistryError> {
    let row = sqlx::query(
        "SELECT placement, next_placement, online_history_us, cache_us, partition_by, stop_share_ppm, stop_rows_min
         FROM view_deployment WHERE view_version_id = $1",
    )
    .bind(id)
    .fetch_one(connection.sql())
    .await?;
    let share_ppm: Option<i64> = row.try_get("stop_share_ppm")?;
    let rows_min: Option<i64> = row.try_get("stop_rows_min")?;
    let stop = match (share_ppm, rows_min) {
        (Some(share_ppm), Some(rows_min)) => {
            Some(StopThreshold { share_ppm: unsigned(share_ppm)?, rows_min: rows_min.unsigned_abs() })
        }
        _ => None,
    };
    let placement: String = row.try_get("placement")?;
    let next: Option<String> = row.try_get("next_placement")?;
    let partition: String = row.try_get("partition_by")?;
    Ok(Deployment {
        placement: read_name(&placement, Placement::from_name)?,
        next_placement: next.map(|next| read_name(&next, Placement::from_name)).transpose()?,
        earlier_placements: load_earlier_placements(connection, id).await?,
        online_history_us: row.try_get("online_history_us")?,
        cache_us: row.try_get("cache_us")?,
        partition: read_name(&partition, Partition::from_name)?,
        stop,
    })
}

async fn load_earlier_placements(connection: &mut Session, id: i64) -> Result<Vec<EarlierPlacement>, RegistryError> {
    let rows: Vec<(String, i64)> =
        sqlx::query_as("SELECT placement, until_us FROM view_placement WHERE view_version_id = $1 ORDER BY position")
            .bind(id)
            .fetch_all(connection.sql())
            .await?;
    let earlier = |(placement, until_us): (String, i64)| {
        Ok(EarlierPlacement { placement: read_name(&placement, Placement::from_name)?, until_us })
    };
    rows.into_iter().map(earlier).collect()
}

async fn load_bindings(
    connection: &mut Session,
    id: i64,
    version: &ViewVersion,
) -> Result<Vec<Binding>, RegistryError> {
    let rows = sqlx::query(
        "SELECT kind, binding.name, role, literal, upstream_view.name AS upstream_name, upstream.version AS upstream_version
         FROM view_binding AS binding
             LEFT JOIN view_version AS upstream ON upstream.view_version_id = upstream_version_id
             LEFT JOIN view AS upstream_view ON upstream_view.view_id = upstream.view_id
         WHERE binding.view_version_id = $1 ORDER BY position",
    )
    .bind(id)
    .fetch_all(connection.sql())
    .await?;
    if rows.len() != version.description.inputs.len() {
        return Err(RegistryError::damaged(format!("{} has not one binding for each input", version.id)));
    }
    let mut bindings = Vec::with_capacity(rows.len());
    for (row, input) in rows.iter().zip(&version.description.inputs) {
        let kind: String = row.try_get("kind")?;
        let name = || row.try_get::<String, _>("name");
        let from = match kind.as_str() {
            "column" => BoundTo::Column(name()?),
            "request" => BoundTo::Request(name()?),
            "request_timestamp" => BoundTo::RequestTimestamp,
            "literal" => BoundTo::Literal(read_value(input, row.try_get("literal")?)?),
            "feature" => BoundTo::Feature(UpstreamFeature {
                view: ViewRef {
                    name: row.try_get("upstream_name")?,
                    version: unsigned(row.try_get("upstream_version")?)?,
                },
                feature: name()?,
                role: row.try_get("role")?,
            }),
            other => return Err(RegistryError::damaged(format!("unknown kind of binding `{other}`"))),
        };
        bindings.push(Binding { input: input.clone(), from });
    }
    Ok(bindings)
}

fn read_value(field: &eadem_values::Field, json: String) -> Result<Value, RegistryError> {
    let damaged = |why: String| RegistryError::damaged(format!("the constant for `{}`: {why}", field.name));
    let json: serde_json::Value = serde_json::from_str(&json).map_err(|error| damaged(error.to_string()))?;
    value_from_json(field.data_type, &json).map_err(|error| damaged(error.to_string()))
}

async fn load_defaults(
    connection: &mut Session,
    id: i64,
    version: &ViewVersion,
) -> Result<BTreeMap<String, Value>, RegistryError> {
    let rows: Vec<(String, String)> =
        sqlx::query_as("SELECT feature, value FROM view_default WHERE view_version_id = $1")
            .bind(id)
            .fetch_all(connection.sql())
            .await?;
    let mut defaults = BTreeMap::new();
    for (feature, json) in rows {
        let field = version
            .feature(&feature)
            .ok_or_else(|| RegistryError::damaged(format!("{} has a default for no feature", version.id)))?;
        let value = read_value(field, json)?;
        defaults.insert(feature, value);
    }
    Ok(defaults)
}

async fn load_bounds(
    connection: &mut Session,
    id: i64,
    version: &ViewVersion,
) -> Result<BTreeMap<String, OutlierBound>, RegistryError> {
    let rows = sqlx::query(
        "SELECT feature, minimum, maximum, allow_nan, allow_infinite, validation FROM view_bound
         WHERE view_version_id = $1",
    )
    .bind(id)
    .fetch_all(connection.sql())
    .await?;
    let mut bounds = BTreeMap::new();
    for row in rows {
        let feature: String = row.try_get("feature")?;
        let field = version
            .feature(&feature)
            .ok_or_else(|| RegistryError::damaged(format!("{} has bounds for no feature", version.id)))?;
        let limit = |json: Option<String>| json.map(|json| read_value(field, json)).transpose();
        let validation: Option<String> = row.try_get("validation")?;
        let bound = OutlierBound {
            min: limit(row.try_get("minimum")?)?,
            max: limit(row.try_get("maximum")?)?,
            allow_nan: read_flag(row.try_get("allow_nan")?),
            allow_infinite: read_flag(row.try_get("allow_infinite")?),
            validation: validation.map(|name| read_name(&name, ValidationPolicy::from_name)).transpose()?,
        };
        bounds.insert(feature, bound);
    }
    Ok(bounds)
}

/// The row of a view, made if it is new; its documentation becomes that of the definition.
pub(crate) async fn save_view(connection: &mut Session, name: &str, about: &About) -> Result<i64, RegistryError> {
    let view_id = sqlx::query_scalar(
        "INSERT INTO view (name, doc, owner) VALUES ($1, $2, $3)
         ON CONFLICT (name) DO UPDATE SET doc = excluded.doc, owner = excluded.owner RETURNING view_id",
    )
    .bind(name)
    .bind(&about.doc)
    .bind(&about.owner)
    .fetch_one(connection.sql())
    .await?;
    super::save_tags(connection, "view", name, about).await?;
    Ok(view_id)
}

pub(crate) async fn set_head(
    connection: &mut Session,
    view_id: i64,
    view_version_id: i64,
) -> Result<(), RegistryError> {
    sqlx::query("UPDATE view SET head_version_id = $1 WHERE view_id = $2")
        .bind(view_version_id)
        .bind(view_id)
        .execute(connection.sql())
        .await?;
    Ok(())
}

/// Writes what a definition says. The placement of a version that is there stays as it is: another one is what it shall be
/// switched to.
pub(crate) async fn save_deployment(
    connection: &mut Session,
    view_version_id: i64,
    deployment: &Deployment,
) -> Result<(), RegistryError> {
    sqlx::query(
        "INSERT INTO view_deployment (view_version_id, placement, online_history_us, cache_us, partition_by,
                                      stop_share_ppm, stop_rows_min)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (view_version_id) DO UPDATE SET
             next_placement = CASE WHEN excluded.placement = view_deployment.placement THEN NULL ELSE excluded.placement END,
             online_history_us = excluded.online_history_us,
             cache_us = excluded.cache_us, partition_by = excluded.partition_by, stop_share_ppm = excluded.stop_share_ppm,
             stop_rows_min = excluded.stop_rows_min",
    )
    .bind(view_version_id)
    .bind(deployment.wanted_placement().as_str())
    .bind(deployment.online_history_us)
    .bind(deployment.cache_us)
    .bind(deployment.partition.as_str())
    .bind(deployment.stop.map(|stop| i64::from(stop.share_ppm)))
    .bind(deployment.stop.map(|stop| i64::try_from(stop.rows_min).unwrap_or(i64::MAX)))
    .execute(connection.sql())
    .await?;
    Ok(())
}

/// Writes a version that is new. Its upstreams are there already.
pub(crate) async fn insert_version(
    connection: &mut Session,
    view_id: i64,
    version: &ViewVersion,
    now_us: i64,
) -> Result<i64, RegistryError> {
    let missing_transform = || RegistryError::damaged(format!("transform {} vanished", version.transform));
    let transform = transform_id(connection, &version.transform).await?.ok_or_else(missing_transform)?;
    let mut shape_id = None;
    let mut meaning_id = None;
    if let Some(stored) = &version.stored {
        shape_id = Some(save_shape(connection, &stored.entity).await?);
        meaning_id = Some(save_meaning(connection, &stored.source).await?);
    }
    let id: i64 = sqlx::query_scalar(
        "INSERT INTO view_version (view_id, version, digest, transform_id, shape_id, meaning_id, ttl_us, horizon_us,
                                   validation, created_at_us)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING view_version_id",
    )
    .bind(view_id)
    .bind(i64::from(version.id.version))
    .bind(version.digest.as_bytes().as_slice())
    .bind(transform)
    .bind(shape_id)
    .bind(meaning_id)
    .bind(version.stored.as_ref().and_then(|stored| stored.ttl_us))
    .bind(version.stored.as_ref().and_then(|stored| stored.horizon_us))
    .bind(version.validation.as_str())
    .bind(now_us)
    .fetch_one(connection.sql())
    .await?;
    for (position, binding) in (0_i64..).zip(&version.bindings) {
        insert_binding(connection, id, position, binding).await?;
    }
    for (feature, value) in &version.defaults {
        sqlx::query("INSERT INTO view_default (view_version_id, feature, value) VALUES ($1, $2, $3)")
            .bind(id)
            .bind(feature)
            .bind(value_to_json(value).to_string())
            .execute(connection.sql())
            .await?;
    }
    for (feature, bound) in &version.bounds {
        let limit = |limit: &Option<Value>| limit.as_ref().map(|limit| value_to_json(limit).to_string());
        sqlx::query(
            "INSERT INTO view_bound (view_version_id, feature, minimum, maximum, allow_nan, allow_infinite, validation)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(id)
        .bind(feature)
        .bind(limit(&bound.min))
        .bind(limit(&bound.max))
        .bind(i64::from(bound.allow_nan))
        .bind(i64::from(bound.allow_infinite))
        .bind(bound.validation.map(ValidationPolicy::as_str))
        .execute(connection.sql())
        .await?;
    }
    Ok(id)
}

async fn insert_binding(
    connection: &mut Session,
    id: i64,
    position: i64,
    binding: &Binding,
) -> Result<(), RegistryError> {
    let mut name = None;
    let mut upstream_version_id = None;
    let mut role = None;
    let mut literal = None;
    let kind = match &binding.from {
        BoundTo::Column(column) => {
            name = Some(column);
            "column"
        }
        BoundTo::Request(field) => {
            name = Some(field);
            "request"
        }
        BoundTo::RequestTimestamp => "request_timestamp",
        BoundTo::Literal(value) => {
            literal = Some(value_to_json(value).to_string());
            "literal"
        }
        BoundTo::Feature(upstream) => {
            name = Some(&upstream.feature);
            role = upstream.role.as_ref();
            let upstream_id = view_version_id(connection, &upstream.view).await?;
            let vanished = || RegistryError::damaged(format!("upstream {} vanished", upstream.view));
            upstream_version_id = Some(upstream_id.ok_or_else(vanished)?);
            "feature"
        }
    };
    sqlx::query(
        "INSERT INTO view_binding (view_version_id, position, kind, name, upstream_version_id, role, literal)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(id)
    .bind(position)
    .bind(kind)
    .bind(name)
    .bind(upstream_version_id)
    .bind(role)
    .bind(literal)
    .execute(connection.sql())
    .await?;
    Ok(())
}

/// Remembers what the newest definition of a view names, as written: input → (view, version if one is written).
pub(crate) async fn save_upstreams(
    connection: &mut Session,
    view_id: i64,
    upstreams: &BTreeMap<String, (String, Option<u32>)>,
) -> Result<(), RegistryError> {
    sqlx::query("DELETE FROM view_upstream WHERE view_id = $1").bind(view_id).execute(connection.sql()).await?;
    for (input, (view, version)) in upstreams {
        sqlx::query(
            "INSERT INTO view_upstream (view_id, input, upstream_view_id, pinned_version)
             SELECT $1, $2, view_id, $3 FROM view WHERE name = $4",
        )
        .bind(view_id)
        .bind(input)
        .bind(version.map(i64::from))
        .bind(view)
        .execute(connection.sql())
        .await?;
    }
    Ok(())
}

/// What [`save_upstreams`] remembered: input → pinned version.
pub(crate) async fn load_upstream_pins(
    connection: &mut Session,
    view: &str,
) -> Result<BTreeMap<String, Option<u32>>, RegistryError> {
    let rows: Vec<(String, Option<i64>)> = sqlx::query_as(
        "SELECT input, pinned_version FROM view_upstream JOIN view USING (view_id) WHERE view.name = $1",
    )
    .bind(view)
    .fetch_all(connection.sql())
    .await?;
    rows.into_iter().map(|(input, pinned)| Ok((input, pinned.map(unsigned).transpose()?))).collect()
}
