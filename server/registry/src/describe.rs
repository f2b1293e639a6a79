//! One object with all that is known of it: its versions, what happened to it, and what depends on it.

use serde::{Deserialize, Serialize};
use sqlx::Row;

use crate::definitions::{feature_as_asked, split_version};
use crate::error::{ObjectKind, RegistryError};
use crate::model::ViewVersion;
use crate::resolve::view_of_feature;
use crate::store::{Mark, Registry, Snapshot, read, read_digest, read_mark, unsigned};

/// Changes that a description lists, the newest first.
const HISTORY_MAX: i64 = 100;

/// What is known of an object besides its definition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Described {
    /// Whether what was asked for is on its way out; `None` for what has no versions.
    pub state: Option<Mark>,
    /// All its versions, ascending; none for entities and sources.
    pub versions: Vec<DescribedVersion>,
    /// What happened to it, the newest first.
    pub history: Vec<HistoryEntry>,
    /// What depends on what was asked for, each with its kind: view and service versions, and jobs that are not over.
    pub used_by: Vec<String>,
    /// Training sets that were made of it.
    pub training_sets: Vec<String>,
}

/// A version in a description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribedVersion {
    /// Its number; of a transform, its digest.
    pub version: String,
    /// Whether the name without version stands for it.
    pub is_newest: bool,
    /// When it was made, µs since the epoch.
    pub created_at_us: i64,
    /// Whether it is on its way out.
    pub state: Option<Mark>,
}

/// Something that happened to an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The definitions' revision that it made.
    pub definitions_revision: u64,
    /// When, µs since the epoch.
    pub at_us: i64,
    /// What happened.
    pub action: String,
    /// Who did it: the name of the token, or what stands in its place; `None` for what was done before that was kept.
    pub by: Option<String>,
    /// Why it was applied although its effect was beyond what the policy tolerated.
    pub accepted: Option<String>,
}

impl Registry {
    /// What is known of an object besides its definition. `name` is, by kind: an entity; a source; `view` or `view@2`;
    /// `service` or `service@2`; the name of a transform, `name@sha256:…` or a digest; `view:feature`, `view@2:feature` or a
    /// bare feature.
    ///
    /// # Errors
    /// No such object; a kind that is not described; the database failed.
    pub async fn describe(&self, kind: ObjectKind, name: &str) -> Result<Described, RegistryError> {
        let mut snapshot = self.snapshot().await?;
        match kind {
            ObjectKind::View => describe_view(&mut snapshot, name).await,
            ObjectKind::Service => describe_service(&mut snapshot, name).await,
            ObjectKind::Transform => describe_transform(&mut snapshot, name).await,
            ObjectKind::Entity | ObjectKind::Source => describe_ground(&mut snapshot, kind, name).await,
            ObjectKind::Feature => describe_feature(&mut snapshot, name).await,
            other => Err(RegistryError::Invalid(format!("a {other} cannot be described here"))),
        }
    }
}

async fn describe_view(snapshot: &mut Snapshot, name: &str) -> Result<Described, RegistryError> {
    let (bare, version) = split_version(name)?;
    let id = read::require_view_version(snapshot, bare, version).await?;
    let version = read::load_view_version(snapshot, id).await?;
    Ok(Described {
        used_by: read::dependants_of(snapshot, ObjectKind::View, &[(id, &version.id.to_string())]).await?,
        training_sets: read::datasets_of(snapshot, ObjectKind::View, id).await?,
        ..described_version(snapshot, &version).await?
    })
}

/// Whether a view version is on its way out, and the versions and the history of its view.
async fn described_version(snapshot: &mut Snapshot, version: &ViewVersion) -> Result<Described, RegistryError> {
    let view = &version.id.name;
    Ok(Described {
        state: version.mark.clone(),
        versions: numbered_versions(snapshot, ObjectKind::View, view).await?,
        history: history_of(snapshot, ObjectKind::View, view).await?,
        ..Described::default()
    })
}

async fn describe_service(snapshot: &mut Snapshot, name: &str) -> Result<Described, RegistryError> {
    let (bare, version) = split_version(name)?;
    let (id, version, _) = read::require_service_version(snapshot, bare, version).await?;
    let reference = format!("{bare}@{version}");
    Ok(Described {
        state: read::load_service_mark(snapshot, id).await?,
        versions: numbered_versions(snapshot, ObjectKind::Service, bare).await?,
        history: history_of(snapshot, ObjectKind::Service, bare).await?,
        used_by: read::dependants_of(snapshot, ObjectKind::Service, &[(id, &reference)]).await?,
        training_sets: read::datasets_of(snapshot, ObjectKind::Service, id).await?,
    })
}

async fn numbered_versions(
    snapshot: &mut Snapshot,
    kind: ObjectKind,
    name: &str,
) -> Result<Vec<DescribedVersion>, RegistryError> {
    let versions = read::marked_versions(snapshot, kind, name).await?.into_iter();
    let described = versions.map(|version| DescribedVersion {
        version: version.version.to_string(),
        is_newest: version.is_head,
        created_at_us: version.created_at_us,
        state: version.mark,
    });
    Ok(described.collect())
}

/// The uploads of a transform's name, and what uses the one that was asked for, or any of them.
async fn describe_transform(snapshot: &mut Snapshot, name: &str) -> Result<Described, RegistryError> {
    let wanted = read::transforms_named(snapshot, name).await?;
    let mut described = Described::default();
    let bare = wanted.first().map_or(name, |target| target.name.as_str());
    let versions: Vec<(i64, &str)> = wanted.iter().map(|target| (target.id, target.reference.as_str())).collect();
    described.used_by = read::dependants_of(snapshot, ObjectKind::Transform, &versions).await?;
    for target in &wanted {
        described.training_sets.extend(read::datasets_of(snapshot, ObjectKind::Transform, target.id).await?);
    }
    described.training_sets.sort();
    described.training_sets.dedup();
    if let [only] = wanted.as_slice() {
        described.state = only.mark.clone();
    }
    let rows = sqlx::query(
        "SELECT digest, uploaded_at_us, state, message, at_us
         FROM transform LEFT JOIN transform_mark USING (transform_id)
         WHERE name = $1 ORDER BY transform.transform_id",
    )
    .bind(bare)
    .fetch_all(snapshot.sql())
    .await?;
    for row in &rows {
        described.versions.push(DescribedVersion {
            version: read_digest(row.try_get("digest")?)?.to_string(),
            is_newest: false,
            created_at_us: row.try_get("uploaded_at_us")?,
            state: read_mark(row)?,
        });
    }
    if let Some(newest) = described.versions.last_mut() {
        newest.is_newest = true;
    }
    described.history = history_of(snapshot, ObjectKind::Transform, bare).await?;
    Ok(described)
}

/// A feature has the versions and the history of its view.
async fn describe_feature(snapshot: &mut Snapshot, name: &str) -> Result<Described, RegistryError> {
    let feature = feature_as_asked(name)?;
    let view = view_of_feature(snapshot, &feature).await?;
    let id = read::require_view_version(snapshot, &view.id.name, Some(view.id.version)).await?;
    let used_by = read::readers_of(snapshot, id, Some(&feature.feature)).await?;
    let training_sets = read::datasets_of_view(snapshot, id, Some(&feature.feature)).await?;
    Ok(Described { used_by, training_sets, ..described_version(snapshot, &view).await? })
}

/// Entities and sources, which have no versions of their own.
async fn describe_ground(snapshot: &mut Snapshot, kind: ObjectKind, name: &str) -> Result<Described, RegistryError> {
    let statement = match kind {
        ObjectKind::Entity => {
            if read::load_entity(snapshot, name).await?.is_none() {
                return Err(read::unknown_entity(snapshot, name).await?);
            }
            "SELECT 'view ' || view.name || '@' || CAST(version AS TEXT)
             FROM view_version JOIN view USING (view_id) JOIN entity_shape USING (shape_id)
                 LEFT JOIN view_mark USING (view_version_id)
             WHERE entity_shape.name = $1 AND (state IS NULL OR state <> 'retired') ORDER BY view.name, version"
        }
        _ => {
            if read::load_source(snapshot, name).await?.is_none() {
                return Err(read::unknown_source(snapshot, name).await?);
            }
            "SELECT 'view ' || view.name || '@' || CAST(version AS TEXT)
             FROM view_version JOIN view USING (view_id) JOIN source_meaning USING (meaning_id)
                 LEFT JOIN view_mark USING (view_version_id)
             WHERE source_meaning.name = $1 AND (state IS NULL OR state <> 'retired') ORDER BY view.name, version"
        }
    };
    let used_by = sqlx::query_scalar(statement).bind(name).fetch_all(snapshot.sql()).await?;
    let history = history_of(snapshot, kind, name).await?;
    Ok(Described { history, used_by, ..Described::default() })
}

async fn history_of(snapshot: &mut Snapshot, kind: ObjectKind, name: &str) -> Result<Vec<HistoryEntry>, RegistryError> {
    let rows = sqlx::query(
        "SELECT change.definitions_revision, change.at_us, action, actor, reason
         FROM definition_change AS change
             LEFT JOIN accepted_effect ON accepted_effect.definitions_revision = change.definitions_revision
         WHERE object_kind = $1 AND object_name = $2
         ORDER BY change.definitions_revision DESC, position DESC LIMIT $3",
    )
    .bind(kind.as_str())
    .bind(name)
    .bind(HISTORY_MAX)
    .fetch_all(snapshot.sql())
    .await?;
    rows.iter()
        .map(|row| {
            Ok(HistoryEntry {
                definitions_revision: unsigned(row.try_get("definitions_revision")?)?,
                at_us: row.try_get("at_us")?,
                action: row.try_get("action")?,
                by: row.try_get("actor")?,
                accepted: row.try_get("reason")?,
            })
        })
        .collect()
}
