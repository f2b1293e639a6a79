//! From names in requests and services to view versions, keys and request fields.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use eadem_values::DataType;

use crate::definitions::{FeatureName, did_you_mean, feature_as_asked, split_version};
use crate::error::{ObjectKind, RegistryError};
use crate::model::{
    About, RequestField, RequiredKey, ResolvedService, ServiceEntry, ViewRef, ViewVersion, required_key_name,
};
use crate::store::{Registry, Snapshot, read};

/// View versions by reference, upstreams included.
pub(crate) type ViewVersions = BTreeMap<ViewRef, Arc<ViewVersion>>;

/// Keys and request fields that a list of entries needs.
#[derive(Debug, Default)]
pub(crate) struct Required {
    pub(crate) keys: Vec<RequiredKey>,
    pub(crate) request_fields: Vec<RequestField>,
}

/// The union of what the entries and their upstreams need. `views` holds them all.
///
/// # Errors
/// One name that would have to have two types.
pub(crate) fn required(entries: &[ServiceEntry], views: &ViewVersions) -> Result<Required, String> {
    let mut collector = Collector { views, seen: BTreeSet::new(), keys: BTreeSet::new(), fields: BTreeMap::new() };
    for entry in entries {
        collector.add_view(&entry.view, entry.role.as_deref())?;
    }
    collector.finish()
}

struct Collector<'a> {
    views: &'a ViewVersions,
    /// On-demand views share upstreams: each is looked at once.
    seen: BTreeSet<(ViewRef, Option<String>)>,
    keys: BTreeSet<RequiredKey>,
    fields: BTreeMap<String, RequestField>,
}

impl Collector<'_> {
    fn add_view(&mut self, view: &ViewRef, role: Option<&str>) -> Result<(), String> {
        if !self.seen.insert((view.clone(), role.map(str::to_owned))) {
            return Ok(());
        }
        let Some(version) = self.views.get(view).cloned() else {
            return Err(format!("view {view} is not known"));
        };
        if let Some(stored) = &version.stored {
            for key in &stored.entity.keys {
                self.keys.insert(RequiredKey {
                    name: required_key_name(&stored.entity, &key.name, role),
                    entity: stored.entity.name.clone(),
                    join_key: key.name.clone(),
                    role: role.map(str::to_owned),
                    key_type: key.key_type,
                });
            }
            return Ok(());
        }
        for (name, input) in version.request_inputs() {
            let field = self.fields.entry(name.to_owned()).or_insert_with(|| RequestField {
                name: name.to_owned(),
                data_type: input.data_type,
                nullable: true,
            });
            if field.data_type != input.data_type {
                return Err(format!(
                    "request field `{name}` would have to be {} and {} (for input `{}` of {view}); bind one of the \
                     inputs to another field",
                    field.data_type, input.data_type, input.name
                ));
            }
            field.nullable &= input.accepts_null();
        }
        for upstream in version.upstream_features() {
            self.add_view(&upstream.view, upstream.role.as_deref())?;
        }
        Ok(())
    }

    fn finish(self) -> Result<Required, String> {
        let keys: Vec<RequiredKey> = self.keys.into_iter().collect();
        for (key, next) in keys.iter().zip(keys.iter().skip(1)) {
            if key.name == next.name && key.key_type != next.key_type {
                return Err(format!(
                    "key `{}` would have to be {} (entity {}) and {} (entity {}); give one of them a role",
                    key.name, key.key_type, key.entity, next.key_type, next.entity
                ));
            }
        }
        for key in &keys {
            let key_type: DataType = key_data_type(key.key_type);
            if let Some(field) = self.fields.get(&key.name).filter(|field| field.data_type != key_type) {
                return Err(format!(
                    "`{}` would have to be a key of entity {} ({key_type}) and a request field ({}); rename the field",
                    key.name, key.entity, field.data_type
                ));
            }
        }
        Ok(Required { keys, request_fields: self.fields.into_values().collect() })
    }
}

/// The column type of a join key.
pub(crate) fn key_data_type(key_type: eadem_values::KeyType) -> DataType {
    match key_type {
        eadem_values::KeyType::Utf8 => DataType::Utf8,
        eadem_values::KeyType::Int64 => DataType::Int64,
    }
}

/// Loads a view version and everything it reads into `views`.
pub(crate) async fn load_with_upstreams(
    snapshot: &mut Snapshot,
    id: i64,
    views: &mut ViewVersions,
) -> Result<Arc<ViewVersion>, RegistryError> {
    let root = read::load_view_version(snapshot, id).await?;
    let mut open = vec![Arc::clone(&root)];
    while let Some(version) = open.pop() {
        for upstream in version.upstream_features() {
            if views.contains_key(&upstream.view) {
                continue;
            }
            let id = read::require_view_version(snapshot, &upstream.view.name, Some(upstream.view.version)).await?;
            let loaded = read::load_view_version(snapshot, id).await?;
            views.insert(upstream.view.clone(), Arc::clone(&loaded));
            open.push(loaded);
        }
        views.insert(version.id.clone(), version);
    }
    Ok(root)
}

impl Registry {
    /// A service by `name` or `name@version`, ready to be answered.
    ///
    /// # Errors
    /// No such service or version; a malformed version.
    pub async fn resolve_service(&self, reference: &str) -> Result<ResolvedService, RegistryError> {
        let (name, version) = split_version(reference)?;
        let mut snapshot = self.snapshot().await?;
        let (id, version, digest) = read::require_service_version(&mut snapshot, name, version).await?;
        let entries = read::load_service_entries(&mut snapshot, id).await?;
        let about = read::load_service_head(&mut snapshot, name).await?.map(|head| head.about);
        let mark = read::load_service_mark(&mut snapshot, id).await?;
        let mut views = ViewVersions::new();
        for entry in &entries {
            if !views.contains_key(&entry.view) {
                let id = read::require_view_version(&mut snapshot, &entry.view.name, Some(entry.view.version)).await?;
                load_with_upstreams(&mut snapshot, id, &mut views).await?;
            }
        }
        let required = required(&entries, &views)
            .map_err(|message| RegistryError::damaged(format!("service {name}@{version}: {message}")))?;
        Ok(ResolvedService {
            name: Some(name.to_owned()),
            version: Some(version),
            digest: Some(digest),
            entries,
            keys: required.keys,
            request_fields: required.request_fields,
            views,
            about: about.unwrap_or_default(),
            mark,
        })
    }

    /// A list of features as a request names them: `view:feature`, `view@2:feature`, or a bare name where it is
    /// unambiguous. With `entity`, bare names are looked for among that entity's views and on-demand views, and every
    /// stored feature must belong to it. Output names are the names as asked.
    ///
    /// # Errors
    /// An unknown, ambiguous or repeated name; a malformed version; an unknown entity type; a feature of another entity.
    pub async fn resolve_features(
        &self,
        features: &[String],
        entity: Option<&str>,
    ) -> Result<ResolvedService, RegistryError> {
        if features.is_empty() {
            return Err(RegistryError::Invalid("no features are asked for; name at least one".into()));
        }
        if let Some(entity) = entity {
            self.entity(entity).await?;
        }
        let mut snapshot = self.snapshot().await?;
        let mut views = ViewVersions::new();
        let mut entries: Vec<ServiceEntry> = Vec::with_capacity(features.len());
        for asked in features {
            let asked = asked.trim();
            if entries.iter().any(|entry| entry.output_name == asked) {
                return Err(RegistryError::Invalid(format!("feature `{asked}` is asked for twice")));
            }
            let name = feature_as_asked(asked)?;
            let view = resolve_feature(&mut snapshot, &name, entity, &mut views).await?;
            let field = view.feature(&name.feature).ok_or_else(|| unknown_feature(&name.to_string(), &view))?;
            if let (Some(entity), Some(stored)) = (entity, &view.stored)
                && stored.entity.name != entity
            {
                return Err(RegistryError::Invalid(format!(
                    "feature `{asked}` belongs to entity {}, not {entity}; ask for it with `entity={}`",
                    stored.entity.name, stored.entity.name
                )));
            }
            entries.push(ServiceEntry {
                output_name: asked.to_owned(),
                view: view.id.clone(),
                feature: name.feature,
                data_type: field.data_type,
                role: None,
            });
        }
        let required = required(&entries, &views).map_err(RegistryError::Invalid)?;
        Ok(ResolvedService {
            name: None,
            version: None,
            digest: None,
            entries,
            keys: required.keys,
            request_fields: required.request_fields,
            views,
            about: About::default(),
            mark: None,
        })
    }
}

fn unknown_feature(name: &str, view: &ViewVersion) -> RegistryError {
    let wanted = name.rsplit(':').next().unwrap_or(name);
    let features: Vec<&str> = view.description.outputs.iter().map(|output| output.name.as_str()).collect();
    let hint = format!("{}; {} has {}", did_you_mean(wanted, features.iter().copied()), view.id, features.join(", "));
    RegistryError::not_found(ObjectKind::Feature, name, hint)
}

/// The view version that has this feature.
pub(crate) async fn view_of_feature(
    snapshot: &mut Snapshot,
    name: &FeatureName,
) -> Result<Arc<ViewVersion>, RegistryError> {
    let view = resolve_feature(snapshot, name, None, &mut ViewVersions::new()).await?;
    match view.feature(&name.feature) {
        Some(_) => Ok(view),
        None => Err(unknown_feature(&name.to_string(), &view)),
    }
}

async fn resolve_feature(
    snapshot: &mut Snapshot,
    name: &FeatureName,
    entity: Option<&str>,
    views: &mut ViewVersions,
) -> Result<Arc<ViewVersion>, RegistryError> {
    let id = match &name.view {
        Some(view) => read::require_view_version(snapshot, view, name.version).await?,
        None => find_bare_feature(snapshot, &name.feature, entity).await?,
    };
    let view = load_with_upstreams(snapshot, id, views).await?;
    match RegistryError::if_retired(ObjectKind::View, &view.id, view.mark.as_ref()) {
        Some(retired) => Err(retired),
        None => Ok(view),
    }
}

/// The newest version of the one view that has this feature.
async fn find_bare_feature(snapshot: &mut Snapshot, feature: &str, entity: Option<&str>) -> Result<i64, RegistryError> {
    let rows: Vec<(i64, String, Option<String>)> = sqlx::query_as(
        "SELECT view_version.view_version_id, view.name, entity_shape.name
         FROM transform_field AS field
             JOIN view_version USING (transform_id)
             JOIN view ON view.head_version_id = view_version.view_version_id
             LEFT JOIN entity_shape USING (shape_id)
             LEFT JOIN view_mark ON view_mark.view_version_id = view_version.view_version_id
         WHERE field.direction = 'output' AND field.name = $1 AND (state IS NULL OR state <> 'retired')
         ORDER BY view.name",
    )
    .bind(feature)
    .fetch_all(snapshot.sql())
    .await?;
    let belongs = |entity_of_view: &Option<String>| match (entity, entity_of_view) {
        (Some(asked), Some(found)) => asked == found,
        _ => true,
    };
    let candidates: Vec<&(i64, String, Option<String>)> =
        rows.iter().filter(|(_, _, entity_of_view)| belongs(entity_of_view)).collect();
    match candidates.as_slice() {
        [(id, _, _)] => Ok(*id),
        [] => {
            let known: Vec<String> = sqlx::query_scalar(
                "SELECT DISTINCT field.name FROM transform_field AS field
                     JOIN view_version USING (transform_id)
                     JOIN view ON head_version_id = view_version.view_version_id
                     LEFT JOIN view_mark ON view_mark.view_version_id = view_version.view_version_id
                 WHERE direction = 'output' AND (state IS NULL OR state <> 'retired')",
            )
            .fetch_all(snapshot.sql())
            .await?;
            let hint = match rows.first() {
                Some((_, view, _)) => format!("; {view}:{feature} belongs to another entity"),
                None => did_you_mean(feature, known.iter().map(String::as_str)),
            };
            Err(RegistryError::not_found(ObjectKind::Feature, feature, hint))
        }
        several => Err(RegistryError::Ambiguous {
            feature: feature.to_owned(),
            candidates: several.iter().map(|(_, view, _)| format!("{view}:{feature}")).collect(),
        }),
    }
}
