//! Comparing definitions with the registry.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use eadem_values::Digest;

use super::report::{PlanReport, PlannedAction, PlannedChange};
use super::schema_change::{SchemaChange, SchemaChangeKind, service_changes};
use super::view_planner::bound_as_defined;
use super::{InspectError, Plan, ServiceWrite, SourceInspector, VersionPair, Writes};
use crate::definitions::{
    BindingDefinition, BindingName, Definitions, ErrorList, LiteralText, Location, Places, SPINE_TIMESTAMP,
    ServiceDefinition, TransformReference, ViewDefinition, check_column_name, did_you_mean, parse_binding_name,
};
use crate::digest::{entity_digest, service_text, source_digest, source_format, source_times};
use crate::error::{ObjectKind, RegistryError};
use crate::model::{
    BoundTo, ColumnType, Entity, EventTime, KnownAt, RequestField, RequiredKey, ServiceEntry, Source, SourceColumn,
    ViewRef, ViewVersion,
};
use crate::resolve::{ViewVersions, load_with_upstreams, required};
use crate::store::{Mark, Registry, Snapshot, WrittenEntry, read};

/// Where definitions that are only in the registry "stand".
const REGISTRY_FILE: &str = "the registry";

pub(super) async fn plan(
    registry: &Registry,
    definitions: &Definitions,
    transforms: &BTreeMap<TransformReference, Digest>,
    inspector: &dyn SourceInspector,
) -> Result<Plan, RegistryError> {
    // Files may be far away, and nothing of the registry is needed to look at them.
    let mut inspected = BTreeMap::new();
    for (name, definition) in &definitions.sources {
        inspected.insert(name.as_str(), inspector.columns(&definition.source).await);
    }
    let mut snapshot = registry.snapshot().await?;
    let transform_marks = read::load_transform_marks(&mut snapshot).await?;
    let service_marks = read::load_service_marks(&mut snapshot).await?;
    let mut planner = Planner {
        report: PlanReport { definitions_revision: snapshot.definitions_revision, ..PlanReport::default() },
        snapshot,
        transforms,
        errors: ErrorList::default(),
        writes: Writes::default(),
        pairs: Vec::new(),
        transform_marks,
        service_marks,
        entities: BTreeMap::new(),
        sources: BTreeMap::new(),
        view_definitions: definitions.views.clone(),
        service_definitions: definitions.services.clone(),
        newest: BTreeMap::new(),
        failed_views: BTreeSet::new(),
        depths: BTreeMap::new(),
        readers: BTreeMap::new(),
        versions: ViewVersions::new(),
    };
    planner.plan_entities(definitions).await?;
    planner.plan_sources(definitions, inspected).await?;
    planner.add_followers().await?;
    planner.note_readers();
    for view in planner.view_order().await? {
        planner.plan_view(&view).await?;
    }
    planner.report.changes.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    planner.plan_services().await?;
    planner.finish()
}

pub(super) struct Planner<'a> {
    pub(super) snapshot: Snapshot,
    pub(super) transforms: &'a BTreeMap<TransformReference, Digest>,
    pub(super) errors: ErrorList,
    pub(super) report: PlanReport,
    pub(super) writes: Writes,
    /// The versions that other ones take the place of.
    pub(super) pairs: Vec<VersionPair>,
    /// What is deprecated or retired of components.
    pub(super) transform_marks: HashMap<Digest, Mark>,
    /// The same of service versions, by their rows.
    service_marks: HashMap<i64, Mark>,
    /// Entities as they will be.
    pub(super) entities: BTreeMap<String, Entity>,
    /// Sources as they will be.
    pub(super) sources: BTreeMap<String, KnownSource>,
    /// Views to plan: those defined, and those in the registry that follow them.
    pub(super) view_definitions: BTreeMap<String, ViewDefinition>,
    service_definitions: BTreeMap<String, ServiceDefinition>,
    /// The newest version of each view, as it will be.
    pub(super) newest: BTreeMap<String, Arc<ViewVersion>>,
    /// Views in the files that have mistakes. What reads them is not looked at: it could only repeat them. A view of the
    /// registry that cannot follow is not among them; it stays as it is, and can be read as it is.
    pub(super) failed_views: BTreeSet<String>,
    /// How many on-demand views stand in a row at this version, itself included.
    depths: BTreeMap<ViewRef, usize>,
    /// View → what reads it by name, for people.
    readers: BTreeMap<String, BTreeSet<String>>,
    /// Every version that was looked at, upstreams included.
    pub(super) versions: ViewVersions,
}

#[derive(Clone)]
pub(super) struct KnownSource {
    pub(super) source: Source,
    /// `None` where they could not be found out, which is an error already.
    pub(super) columns: Option<Vec<SourceColumn>>,
}

impl KnownSource {
    pub(super) fn column(&self, name: &str) -> Option<&SourceColumn> {
        self.columns.iter().flatten().find(|column| column.name == name)
    }

    pub(super) fn column_names(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().flatten().map(|column| column.name.as_str())
    }
}

impl Planner<'_> {
    async fn plan_entities(&mut self, definitions: &Definitions) -> Result<(), RegistryError> {
        for (name, definition) in &definitions.entities {
            let entity = &definition.entity;
            let before = read::load_entity(&mut self.snapshot, name).await?;
            let keys = key_list(entity);
            let (action, details) = match &before {
                None => (PlannedAction::Create, vec![format!("keys: {keys}")]),
                Some(before) if entity_digest(before) != entity_digest(entity) => {
                    (PlannedAction::Change, vec![format!("keys: {} → {keys}", key_list(before))])
                }
                Some(before) if before.about != entity.about => {
                    (PlannedAction::Settings, vec!["documentation, owner or tags".to_owned()])
                }
                Some(_) => (PlannedAction::Unchanged, Vec::new()),
            };
            if action != PlannedAction::Unchanged {
                self.writes.entities.push(entity.clone());
            }
            self.entities.insert(name.clone(), entity.clone());
            let ground = SchemaChangeKind::RequestChanged;
            self.report.changes.push(unversioned(ObjectKind::Entity, name, action, details, ground));
        }
        Ok(())
    }

    async fn plan_sources(
        &mut self,
        definitions: &Definitions,
        mut inspected: BTreeMap<&str, Result<Vec<SourceColumn>, InspectError>>,
    ) -> Result<(), RegistryError> {
        for (name, definition) in &definitions.sources {
            let source = &definition.source;
            let columns = match inspected.remove(name.as_str()) {
                Some(Ok(columns)) => Some(columns),
                None => None,
                Some(Err(error)) => {
                    let at = definition.places.of(&error.statement);
                    self.errors.push(at, format!("source {name}: {}", error.message));
                    None
                }
            };
            let known = KnownSource { source: source.clone(), columns };
            self.check_source(&known, &definition.places);
            let before = read::load_source(&mut self.snapshot, name).await?;
            let columns_before = read::load_columns(&mut self.snapshot, name).await?;
            let (action, mut details) = source_difference(before.as_ref(), source);
            let mut action = action;
            if let Some(columns) = known.columns.as_ref().filter(|columns| **columns != columns_before) {
                if before.is_some() {
                    details.extend(column_differences(&columns_before, columns));
                }
                if action == PlannedAction::Unchanged {
                    action = PlannedAction::Settings;
                }
            }
            if action != PlannedAction::Unchanged {
                self.writes.sources.push((source.clone(), known.columns.clone().unwrap_or_default()));
            }
            self.sources.insert(name.clone(), known);
            let ground = SchemaChangeKind::MeaningChanged;
            self.report.changes.push(unversioned(ObjectKind::Source, name, action, details, ground));
        }
        Ok(())
    }

    /// The columns that say when a row happened, when it was known, and which event it is.
    fn check_source(&mut self, known: &KnownSource, places: &Places) {
        if known.columns.is_none() {
            return;
        }
        let source = &known.source;
        if let EventTime::Column(column) = &source.event_time {
            self.check_time_column(known, "event_time", column, places);
        }
        if let KnownAt::Column(column) = &source.known_at {
            self.check_time_column(known, "known_at", column, places);
        }
        let Some(event_id) = &source.event_id else { return };
        let at = places.of("event_id");
        let Some(column) = known.column(event_id) else {
            let nearest = did_you_mean(event_id, known.column_names());
            self.errors.push(at, format!("source {}: `event_id` names no column: `{event_id}`{nearest}", source.name));
            return;
        };
        let names_events = matches!(
            column.column_type,
            ColumnType::Known(
                eadem_values::DataType::Utf8 | eadem_values::DataType::Int64 | eadem_values::DataType::Binary
            )
        );
        if !names_events {
            self.errors.push(
                at,
                format!(
                    "source {}: `event_id` must be utf8, int64 or binary; column `{event_id}` is {}",
                    source.name, column.column_type
                ),
            );
        }
    }

    fn check_time_column(&mut self, known: &KnownSource, statement: &str, column: &str, places: &Places) {
        let at = places.of(statement);
        let source = &known.source.name;
        let Some(found) = known.column(column) else {
            let nearest = did_you_mean(column, known.column_names());
            self.errors.push(at, format!("source {source}: `{statement}` names no column: `{column}`{nearest}"));
            return;
        };
        if found.column_type != ColumnType::Known(eadem_values::DataType::Timestamp) {
            self.errors.push(
                at,
                format!(
                    "source {source}: `{statement}` must be a timestamp; column `{column}` is {}: convert it in \
                     `columns`",
                    found.column_type
                ),
            );
        }
    }

    /// Adds views and services of the registry that are not defined here but follow what is.
    async fn add_followers(&mut self) -> Result<(), RegistryError> {
        let mut open: Vec<String> = self.view_definitions.keys().cloned().collect();
        for kind in [ObjectKind::Entity, ObjectKind::Source] {
            let changed: Vec<String> = self
                .report
                .changes
                .iter()
                .filter(|change| change.kind == kind && change.action == PlannedAction::Change)
                .map(|change| change.name.clone())
                .collect();
            for name in changed {
                let readers = self.views_reading(kind, &name).await?;
                self.follow(readers, &mut open).await?;
            }
        }
        while let Some(view) = open.pop() {
            let readers: Vec<String> = sqlx::query_scalar(
                "SELECT DISTINCT reader.name FROM view_upstream
                     JOIN view AS reader USING (view_id)
                     JOIN view AS upstream ON upstream.view_id = upstream_view_id
                 WHERE upstream.name = $1 AND pinned_version IS NULL ORDER BY reader.name",
            )
            .bind(&view)
            .fetch_all(self.snapshot.sql())
            .await?;
            self.follow(readers, &mut open).await?;
            let services: Vec<String> = sqlx::query_scalar(
                "SELECT DISTINCT service.name FROM service_written_entry
                     JOIN service USING (service_id) JOIN view USING (view_id)
                 WHERE view.name = $1 AND pinned_version IS NULL ORDER BY service.name",
            )
            .bind(&view)
            .fetch_all(self.snapshot.sql())
            .await?;
            for service in services {
                if self.service_definitions.contains_key(&service) {
                    continue;
                }
                if let Some(definition) = self.service_as_defined(&service).await? {
                    self.service_definitions.insert(service, definition);
                }
            }
        }
        Ok(())
    }

    async fn follow(&mut self, views: Vec<String>, open: &mut Vec<String>) -> Result<(), RegistryError> {
        for view in views {
            if self.view_definitions.contains_key(&view) {
                continue;
            }
            let Some(definition) = self.view_as_defined(&view).await? else { continue };
            self.view_definitions.insert(view.clone(), definition);
            open.push(view);
        }
        Ok(())
    }

    async fn views_reading(&mut self, kind: ObjectKind, name: &str) -> Result<Vec<String>, RegistryError> {
        let query = match kind {
            ObjectKind::Entity => {
                "SELECT view.name FROM view JOIN view_version ON view_version_id = head_version_id
                     JOIN entity_shape USING (shape_id) WHERE entity_shape.name = $1 ORDER BY view.name"
            }
            _ => {
                "SELECT view.name FROM view JOIN view_version ON view_version_id = head_version_id
                     JOIN source_meaning USING (meaning_id) WHERE source_meaning.name = $1 ORDER BY view.name"
            }
        };
        Ok(sqlx::query_scalar(query).bind(name).fetch_all(self.snapshot.sql()).await?)
    }

    /// The newest definition of a view that is only in the registry.
    async fn view_as_defined(&mut self, name: &str) -> Result<Option<ViewDefinition>, RegistryError> {
        let Some(id) = read::head_version_id(&mut self.snapshot, name).await? else { return Ok(None) };
        let version = read::load_view_version(&mut self.snapshot, id).await?;
        if version.is_retired() {
            return Ok(None);
        }
        let pins = read::load_upstream_pins(&mut self.snapshot, name).await?;
        let mut bind = BTreeMap::new();
        for binding in &version.bindings {
            let input = &binding.input.name;
            let definition = match &binding.from {
                BoundTo::Column(column) => BindingDefinition::Name(column.clone()),
                BoundTo::Request(field) => BindingDefinition::Name(format!("request.{field}")),
                BoundTo::RequestTimestamp => BindingDefinition::Name("request.timestamp".to_owned()),
                BoundTo::Literal(value) => {
                    BindingDefinition::Literal(LiteralText::Json(eadem_values::value_to_json(value)))
                }
                BoundTo::Feature(upstream) => {
                    let pin = pins.get(input).copied().flatten().map(|pin| format!("@{pin}")).unwrap_or_default();
                    let role = upstream.role.as_ref().map(|role| format!(" for {role}")).unwrap_or_default();
                    BindingDefinition::Name(format!("{}{pin}.{}{role}", upstream.view.name, upstream.feature))
                }
            };
            bind.insert(input.clone(), definition);
        }
        let defaults = version
            .defaults
            .iter()
            .map(|(feature, value)| (feature.clone(), LiteralText::Json(eadem_values::value_to_json(value))))
            .collect();
        let stored = version.stored.as_ref();
        Ok(Some(ViewDefinition {
            name: name.to_owned(),
            entity: stored.map(|stored| stored.entity.name.clone()),
            source: stored.map(|stored| stored.source.name.clone()),
            transform: TransformReference::Uploaded {
                name: version.description.name.clone(),
                digest: version.transform,
            },
            ttl_us: stored.and_then(|stored| stored.ttl_us),
            horizon_us: stored.and_then(|stored| stored.horizon_us),
            bind,
            defaults,
            validation: version.validation,
            bounds: version.bounds.iter().map(|(feature, bound)| (feature.clone(), bound_as_defined(bound))).collect(),
            deployment: stored.map(|stored| stored.deployment.as_defined()).unwrap_or_default(),
            about: version.about.clone(),
            places: Places::new(registry_location()),
        }))
    }

    /// The newest definition of a service that is only in the registry; `None` if what its name stands for is retired.
    async fn service_as_defined(&mut self, name: &str) -> Result<Option<ServiceDefinition>, RegistryError> {
        let head = read::load_service_head(&mut self.snapshot, name).await?;
        let mark = head.as_ref().and_then(|head| self.service_marks.get(&head.service_version_id));
        if mark.is_some_and(Mark::is_retired) {
            return Ok(None);
        }
        let written = read::load_written_entries(&mut self.snapshot, name).await?;
        Ok(Some(ServiceDefinition {
            name: name.to_owned(),
            features: written.into_iter().map(|entry| (entry, registry_location())).collect(),
            about: head.map(|head| head.about).unwrap_or_default(),
            places: Places::new(registry_location()),
        }))
    }

    /// The views to plan, upstreams first. Cycles and long chains are errors; their views are left out.
    async fn view_order(&mut self) -> Result<Vec<String>, RegistryError> {
        let mut upstreams: BTreeMap<String, Vec<(String, Location)>> = BTreeMap::new();
        for (name, definition) in self.view_definitions.clone() {
            let mut names = Vec::new();
            for (view, version, at) in named_views(&definition) {
                if !self.view_definitions.contains_key(&view) {
                    continue;
                }
                let exists_already = match version {
                    Some(version) => {
                        let versions = read::load_versions(&mut self.snapshot, &view).await?;
                        versions.iter().any(|row| row.version == version)
                    }
                    None => false,
                };
                if !exists_already {
                    names.push((view, at));
                }
            }
            upstreams.insert(name, names);
        }
        let mut search = OrderSearch {
            upstreams: &upstreams,
            path: Vec::new(),
            done: BTreeSet::new(),
            order: Vec::new(),
            faults: Vec::new(),
        };
        for name in upstreams.keys() {
            search.visit(name, None);
        }
        let OrderSearch { order, faults, .. } = search;
        let mut left_out: BTreeSet<String> = BTreeSet::new();
        for OrderFault { views, at, message } in faults {
            let view = views.first().cloned().unwrap_or_default();
            self.errors.push(&at, format!("view {view}: {message}: {}", views.join(" → ")));
            for view in views {
                self.mark_failed(&view);
                left_out.insert(view);
            }
        }
        Ok(order.into_iter().filter(|name| !left_out.contains(name)).collect())
    }

    /// Notes that a view has a mistake, if it stands in the files.
    pub(super) fn mark_failed(&mut self, view: &str) {
        let is_written = self.view_definitions.get(view).is_some_and(|definition| definition.places.are_written());
        if is_written {
            self.failed_views.insert(view.to_owned());
        }
    }

    /// How many on-demand views stand in a row at this version, itself included. 0 for a stored view.
    pub(super) fn depth(&mut self, view: &ViewRef) -> usize {
        if let Some(depth) = self.depths.get(view) {
            return *depth;
        }
        let Some(version) = self.versions.get(view).cloned() else { return 0 };
        if !version.is_on_demand() {
            return 0;
        }
        let below = version.upstream_features().map(|upstream| self.depth(&upstream.view)).max();
        let depth = 1 + below.unwrap_or_default();
        self.depths.insert(view.clone(), depth);
        depth
    }

    /// The version that a name stands for after this plan; `None` if there is none or its definition has an error.
    pub(super) async fn version_named(
        &mut self,
        view: &str,
        version: Option<u32>,
    ) -> Result<Option<Arc<ViewVersion>>, RegistryError> {
        if let Some(planned) = self.newest.get(view)
            && version.is_none_or(|version| version == planned.id.version)
        {
            return Ok(Some(Arc::clone(planned)));
        }
        match read::require_view_version(&mut self.snapshot, view, version).await {
            Ok(id) => {
                let found = load_with_upstreams(&mut self.snapshot, id, &mut self.versions).await?;
                Ok(Some(found).filter(|found| !found.is_retired()))
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Why a version that is named cannot be found.
    pub(super) async fn missing_version(&mut self, view: &str, version: Option<u32>) -> Result<String, RegistryError> {
        let mut versions: BTreeSet<u32> =
            read::load_versions(&mut self.snapshot, view).await?.iter().map(|row| row.version).collect();
        versions.extend(self.newest.get(view).map(|planned| planned.id.version));
        if let Ok(id) = read::require_view_version(&mut self.snapshot, view, version).await {
            let found = read::load_view_version(&mut self.snapshot, id).await?;
            if let Some(retired) = RegistryError::if_retired(ObjectKind::View, &found.id, found.mark.as_ref()) {
                return Ok(retired.to_string());
            }
        }
        if let Some(version) = version.filter(|_| !versions.is_empty()) {
            let known: Vec<String> = versions.iter().map(u32::to_string).collect();
            return Ok(format!("view {view} has no version {version}; it has {}", known.join(", ")));
        }
        let mut names: BTreeSet<String> = self.view_definitions.keys().cloned().collect();
        let stored: Vec<String> = sqlx::query_scalar("SELECT name FROM view").fetch_all(self.snapshot.sql()).await?;
        names.extend(stored);
        Ok(format!("unknown view `{view}`{}", did_you_mean(view, names.iter().map(String::as_str))))
    }

    /// Notes what reads each view by name, for people.
    fn note_readers(&mut self) {
        let mut readers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for definition in self.service_definitions.values() {
            for (entry, _) in &definition.features {
                let text = reader("service", &definition.name, entry.version);
                readers.entry(entry.view.clone()).or_default().insert(text);
            }
        }
        for definition in self.view_definitions.values() {
            for (view, version, _) in named_views(definition) {
                readers.entry(view).or_default().insert(reader("view", &definition.name, version));
            }
        }
        self.readers = readers;
    }

    pub(super) fn readers_of(&self, view: &str) -> Vec<String> {
        self.readers.get(view).into_iter().flatten().cloned().collect()
    }

    async fn plan_services(&mut self) -> Result<(), RegistryError> {
        for (name, definition) in self.service_definitions.clone() {
            self.plan_service(&name, &definition).await?;
        }
        Ok(())
    }

    async fn plan_service(&mut self, name: &str, definition: &ServiceDefinition) -> Result<(), RegistryError> {
        let errors_before = self.errors.len();
        let mut entries: Vec<ServiceEntry> = Vec::new();
        let mut places: Vec<Location> = Vec::new();
        let mut is_complete = true;
        for (written, at) in &definition.features {
            match self.expand_entry(name, written, at).await? {
                Some(expanded) => {
                    places.extend(expanded.iter().map(|_| at.clone()));
                    entries.extend(expanded);
                }
                None => is_complete = false,
            }
        }
        self.check_output_names(name, &entries, &places);
        if self.errors.len() > errors_before || !is_complete {
            return Ok(());
        }
        let needed = match required(&entries, &self.versions) {
            Ok(needed) => needed,
            Err(message) => {
                self.errors.push(definition.places.of("features"), format!("service {name}: {message}"));
                return Ok(());
            }
        };
        self.check_against_spine(name, &entries, &places, &needed.keys, &needed.request_fields);
        if self.errors.len() > errors_before {
            return Ok(());
        }
        let digest = Digest::of(service_text(name, &entries, |view| digest_among(&self.versions, view))?.as_bytes());
        let versions = read::load_service_versions(&mut self.snapshot, name).await?;
        let head = read::load_service_head(&mut self.snapshot, name).await?;
        let existing = versions.iter().find(|(_, _, known)| *known == digest).map(|(id, version, _)| (*id, *version));
        let next = versions.iter().map(|(_, version, _)| version + 1).max().unwrap_or(1);
        let version = existing.map_or(next, |(_, version)| version);
        let mark = existing.and_then(|(id, _)| self.service_marks.get(&id).cloned());
        let named = format!("{name}@{version}");
        if let Some(retired) = RegistryError::if_retired(ObjectKind::Service, named, mark.as_ref()) {
            self.errors.push(definition.places.header(), format!("service {name}: what it says is a version that is not served any more: {retired}; or take it out of the files"));
            return Ok(());
        }

        let written: Vec<WrittenEntry> = definition.features.iter().map(|(entry, _)| entry.clone()).collect();
        let mut details = Vec::new();
        let mut schema = Vec::new();
        let mut read_before: BTreeSet<ViewRef> = BTreeSet::new();
        let action = match &head {
            None => {
                details.push(format!("features: {}", output_names(&entries)));
                details.push(format!("keys: {}", join_or_none(needed.keys.iter().map(|key| key.name.as_str()))));
                if !needed.request_fields.is_empty() {
                    let fields: Vec<String> = needed
                        .request_fields
                        .iter()
                        .map(|field| format!("{} {}", field.name, field.data_type))
                        .collect();
                    details.push(format!("request: {}", fields.join(", ")));
                }
                PlannedAction::Create
            }
            Some(head) if head.digest == digest => {
                let written_before = read::load_written_entries(&mut self.snapshot, name).await?;
                if head.about != definition.about {
                    details.push("documentation, owner or tags".to_owned());
                }
                if written_before != written {
                    details.push("written differently, the same features".to_owned());
                }
                if details.is_empty() { PlannedAction::Unchanged } else { PlannedAction::Settings }
            }
            Some(head) => {
                let entries_before = read::load_service_entries(&mut self.snapshot, head.service_version_id).await?;
                for entry in &entries_before {
                    let id = read::require_view_version(&mut self.snapshot, &entry.view.name, Some(entry.view.version))
                        .await?;
                    load_with_upstreams(&mut self.snapshot, id, &mut self.versions).await?;
                }
                let needed_before = required(&entries_before, &self.versions).unwrap_or_default();
                details.extend(entry_differences(&entries_before, &entries));
                read_before.extend(entries_before.iter().map(|entry| entry.view.clone()));
                schema.extend(service_changes(
                    &entries_before,
                    &entries,
                    (&needed_before.keys, &needed.keys),
                    (&needed_before.request_fields, &needed.request_fields),
                    &self.versions,
                ));
                if existing.is_some() { PlannedAction::EarlierVersion } else { PlannedAction::NewVersion }
            }
        };
        if !matches!(action, PlannedAction::Unchanged | PlannedAction::Settings) {
            let read_now = entries.iter().map(|entry| entry.view.clone()).collect();
            self.warn_of_deprecated(&format!("service {name}"), &read_before, &read_now);
            if let Some(mark) = &mark {
                self.report.warnings.push(format!("service {name}@{version} is {}", mark.text()));
            }
        }
        let change = PlannedChange {
            version: Some(version),
            version_before: head.map(|head| head.version),
            details,
            ..PlannedChange::of(ObjectKind::Service, name, action)
        };
        self.report.changes.push(change.with_schema(schema));
        if action != PlannedAction::Unchanged {
            self.writes.services.push(ServiceWrite {
                name: name.to_owned(),
                version,
                digest,
                existing: existing.map(|(id, _)| id),
                entries,
                written,
                about: definition.about.clone(),
            });
        }
        Ok(())
    }

    /// Warns of view versions that are deprecated and were not read before.
    pub(super) fn warn_of_deprecated(&mut self, reader: &str, before: &BTreeSet<ViewRef>, now: &BTreeSet<ViewRef>) {
        for view in now.difference(before) {
            let mark = self.versions.get(view).and_then(|version| version.mark.as_ref());
            if let Some(mark) = mark {
                self.report.warnings.push(format!("{reader} reads view {view}, which is {}", mark.text()));
            }
        }
    }

    /// The features that an entry stands for; `None` after an error, also one of the view itself.
    async fn expand_entry(
        &mut self,
        service: &str,
        written: &WrittenEntry,
        at: &Location,
    ) -> Result<Option<Vec<ServiceEntry>>, RegistryError> {
        if self.failed_views.contains(&written.view) {
            return Ok(None);
        }
        let Some(view) = self.version_named(&written.view, written.version).await? else {
            let message = self.missing_version(&written.view, written.version).await?;
            self.errors.push(at, format!("service {service}: `{written}`: {message}"));
            return Ok(None);
        };
        if written.role.is_some() && view.is_on_demand() {
            self.errors.push(
                at,
                format!(
                    "service {service}: `{written}`: {} is computed on demand and has no entity; give the role in its \
                     bindings",
                    written.view
                ),
            );
            return Ok(None);
        }
        let fields: Vec<_> = match &written.feature {
            None => view.description.outputs.iter().collect(),
            Some(feature) => match view.feature(feature) {
                Some(field) => vec![field],
                None => {
                    let features: Vec<&str> =
                        view.description.outputs.iter().map(|output| output.name.as_str()).collect();
                    let nearest = did_you_mean(feature, features.iter().copied());
                    self.errors.push(
                        at,
                        format!(
                            "service {service}: `{written}`: {} has no feature `{feature}`{nearest} (it has {})",
                            view.id,
                            features.join(", ")
                        ),
                    );
                    return Ok(None);
                }
            },
        };
        let entries = fields.into_iter().map(|field| ServiceEntry {
            output_name: output_name(written, &field.name),
            view: view.id.clone(),
            feature: field.name.clone(),
            data_type: field.data_type,
            role: written.role.clone(),
        });
        Ok(Some(entries.collect()))
    }

    fn check_output_names(&mut self, service: &str, entries: &[ServiceEntry], places: &[Location]) {
        let mut seen: BTreeMap<&str, &ServiceEntry> = BTreeMap::new();
        for (entry, at) in entries.iter().zip(places) {
            if let Err(message) = check_column_name(&entry.output_name) {
                self.errors.push(at, format!("service {service}: {message} (rename it with `as <alias>`)"));
            }
            if let Some(first) = seen.insert(&entry.output_name, entry) {
                self.errors.push(
                    at,
                    format!(
                        "service {service}: two features are called `{}`: {}:{} and {}:{}; rename one with `as <alias>`",
                        entry.output_name, first.view.name, first.feature, entry.view.name, entry.feature
                    ),
                );
            }
        }
    }

    /// A dataset has the spine's columns and the features side by side, so no name may stand for both.
    fn check_against_spine(
        &mut self,
        service: &str,
        entries: &[ServiceEntry],
        places: &[Location],
        keys: &[RequiredKey],
        fields: &[RequestField],
    ) {
        for (entry, at) in entries.iter().zip(places) {
            let name = &entry.output_name;
            let taken_by = if keys.iter().any(|key| &key.name == name) {
                "a key"
            } else if fields.iter().any(|field| &field.name == name) {
                "a request field"
            } else if name == SPINE_TIMESTAMP {
                "the timestamp"
            } else {
                continue;
            };
            self.errors.push(
                at,
                format!(
                    "service {service}: feature `{name}` has the name of {taken_by} that the service needs; rename it \
                     with `as <alias>`"
                ),
            );
        }
    }

    fn finish(mut self) -> Result<Plan, RegistryError> {
        let of_followers = self.errors.take_if(|error| error.at.line == 0);
        self.report.left_behind = of_followers.into_iter().map(|error| error.message).collect();
        let plan = Plan { report: self.report, writes: self.writes, pairs: self.pairs, acceptance: None };
        Ok(self.errors.into_result(plan)?)
    }
}

fn registry_location() -> Location {
    Location { file: REGISTRY_FILE.into(), line: 0 }
}

/// `ground` is what another meaning of it changes for those who read it.
fn unversioned(
    kind: ObjectKind,
    name: &str,
    action: PlannedAction,
    details: Vec<String>,
    ground: SchemaChangeKind,
) -> PlannedChange {
    let schema = match action {
        PlannedAction::Change => vec![SchemaChange::of_ground(ground, &details)],
        _ => Vec::new(),
    };
    PlannedChange { details, ..PlannedChange::of(kind, name, action) }.with_schema(schema)
}

fn reader(kind: &str, name: &str, pinned: Option<u32>) -> String {
    match pinned {
        Some(version) => format!("{kind} {name} (stays at @{version})"),
        None => format!("{kind} {name}"),
    }
}

/// The views that a definition's bindings name: view, version if written, place.
pub(super) fn named_views(definition: &ViewDefinition) -> Vec<(String, Option<u32>, Location)> {
    if definition.source.is_some() {
        return Vec::new();
    }
    let mut named = Vec::new();
    for (input, binding) in &definition.bind {
        let BindingDefinition::Name(text) = binding else { continue };
        if let Ok(BindingName::Feature { view, version, .. }) = parse_binding_name(text) {
            named.push((view, version, definition.places.of(&format!("bind.{input}")).clone()));
        }
    }
    named
}

/// The digest of a version that planning has looked at.
pub(super) fn digest_among(versions: &ViewVersions, view: &ViewRef) -> Result<Digest, RegistryError> {
    let unknown = || RegistryError::damaged(format!("{view} is read, but it is not there"));
    versions.get(view).map(|version| version.digest).ok_or_else(unknown)
}

/// How many on-demand views may stand in a row, each reading the next. It bounds the work of a request.
pub(super) const CHAIN_MAX: usize = 32;
/// What is wrong with a longer one.
pub(super) const TOO_LONG_A_CHAIN: &str = "reads through too many views in a row";

/// Views that cannot be ordered.
struct OrderFault {
    /// Each reads the next. The first holds the statement at fault.
    views: Vec<String>,
    at: Location,
    message: &'static str,
}

/// A view on the way of the search, and where the view before it names it; the first is named by nobody.
#[derive(Clone)]
struct Step {
    view: String,
    named_at: Option<Location>,
}

/// Depth-first search for an order in which upstreams come first.
struct OrderSearch<'a> {
    upstreams: &'a BTreeMap<String, Vec<(String, Location)>>,
    path: Vec<Step>,
    done: BTreeSet<String>,
    order: Vec<String>,
    faults: Vec<OrderFault>,
}

impl OrderSearch<'_> {
    fn visit(&mut self, name: &str, named_at: Option<&Location>) {
        let step = Step { view: name.to_owned(), named_at: named_at.cloned() };
        if let Some(start) = self.path.iter().position(|open| open.view == name) {
            let cycle = self.path.get(start..).unwrap_or_default().iter().skip(1).cloned();
            self.faults.extend(cycle_fault(cycle.chain([step]).collect()));
            return;
        }
        if self.done.contains(name) {
            return;
        }
        // Bounds the search itself. Chains that it does not meet as a whole are measured when they are planned.
        if self.path.len() > CHAIN_MAX {
            self.faults.extend(chain_fault(&self.path));
            return;
        }
        self.path.push(step);
        let upstreams = self.upstreams;
        for (upstream, at) in upstreams.get(name).into_iter().flatten() {
            self.visit(upstream, Some(at));
        }
        self.path.pop();
        self.done.insert(name.to_owned());
        self.order.push(name.to_owned());
    }
}

/// The fault of views that read each other: each step says where the view of the step before names its own, and the
/// first is named by the last. It stands where the files first say it: what is only in the registry has no line.
fn cycle_fault(mut steps: Vec<Step>) -> Option<OrderFault> {
    let is_written = |step: &Step| step.named_at.as_ref().is_some_and(|at| at.line > 0);
    let first_written = steps.iter().position(is_written).unwrap_or_default();
    let at = steps.get(first_written)?.named_at.clone()?;
    // The view that holds the statement is the one before.
    steps.rotate_left(first_written);
    let holder = steps.last()?.view.clone();
    let views = [holder].into_iter().chain(steps.into_iter().map(|step| step.view)).collect();
    Some(OrderFault { views, at, message: "reads itself" })
}

fn chain_fault(path: &[Step]) -> Option<OrderFault> {
    let named = || path.iter().filter_map(|step| step.named_at.as_ref());
    let at = named().find(|at| at.line > 0).or_else(|| named().next())?.clone();
    let views = path.iter().map(|step| step.view.clone()).collect();
    Some(OrderFault { views, at, message: TOO_LONG_A_CHAIN })
}

fn key_list(entity: &Entity) -> String {
    let keys: Vec<String> = entity.keys.iter().map(|key| format!("{} {}", key.name, key.key_type)).collect();
    keys.join(", ")
}

fn source_difference(before: Option<&Source>, after: &Source) -> (PlannedAction, Vec<String>) {
    let Some(before) = before else {
        let details = source_times(after).into_iter().map(|(what, value)| format!("{what}: {value}"));
        return (PlannedAction::Create, details.collect());
    };
    let mut details = differences(&source_parts(before), &source_parts(after));
    let is_same_meaning = source_digest(before) == source_digest(after);
    let place = |source: &Source| source.origin.as_ref().map_or("none".to_owned(), |origin| origin.place.to_string());
    if place(before) != place(after) {
        details.push(format!("files: {} → {}", place(before), place(after)));
    }
    if before.push != after.push {
        details.push(format!("push: {} → {}", before.push, after.push));
    }
    if before.max_ahead_us != after.max_ahead_us {
        let text = eadem_values::format_duration;
        details.push(format!("max_ahead: {} → {}", text(before.max_ahead_us), text(after.max_ahead_us)));
    }
    if before.about != after.about {
        details.push("documentation, owner or tags".to_owned());
    }
    let action = match (is_same_meaning, before == after) {
        (false, _) => PlannedAction::Change,
        (true, false) => PlannedAction::Settings,
        (true, true) => PlannedAction::Unchanged,
    };
    (action, details)
}

fn source_parts(source: &Source) -> Vec<(String, String)> {
    let fields = source.fields.iter().map(|field| (format!("field {}", field.name), field.data_type.to_string()));
    let columns = source.columns.iter().map(|(name, expression)| (format!("column {name}"), expression.clone()));
    let types = source.types.iter().map(|(name, data_type)| (format!("type {name}"), data_type.to_string()));
    let times = source_times(source).into_iter().map(|(what, value)| (what.to_owned(), value));
    let format = source_format(source).map(|(what, value)| (what.to_owned(), value));
    format.into_iter().chain(fields).chain(types).chain(columns).chain(times).collect()
}

fn column_differences(before: &[SourceColumn], after: &[SourceColumn]) -> Vec<String> {
    let parts = |columns: &[SourceColumn]| -> Vec<(String, String)> {
        columns.iter().map(|column| (format!("type of {}", column.name), column.column_type.to_string())).collect()
    };
    differences(&parts(before), &parts(after))
}

/// What was added (`+`), removed (`-`) or changed (`before → after`), in the order of the new state.
pub(super) fn differences(before: &[(String, String)], after: &[(String, String)]) -> Vec<String> {
    let old: BTreeMap<&str, &str> = before.iter().map(|(what, value)| (what.as_str(), value.as_str())).collect();
    let new: BTreeMap<&str, &str> = after.iter().map(|(what, value)| (what.as_str(), value.as_str())).collect();
    let mut lines = Vec::new();
    for (what, value) in after {
        match old.get(what.as_str()) {
            None => lines.push(format!("+ {what}: {value}")),
            Some(previous) if previous != value => lines.push(format!("{what}: {previous} → {value}")),
            Some(_) => {}
        }
    }
    for (what, value) in before.iter().filter(|(what, _)| !new.contains_key(what.as_str())) {
        lines.push(format!("- {what}: {value}"));
    }
    lines
}

/// The names of what differs, in the order of the new state; what is gone comes last.
pub(super) fn differing_names(before: &[(String, String)], after: &[(String, String)]) -> Vec<String> {
    let differs = |one: &(String, String), others: &[(String, String)]| !others.contains(one);
    let mut names: Vec<String> =
        after.iter().filter(|part| differs(part, before)).map(|(name, _)| name.clone()).collect();
    let is_gone = |name: &String| !after.iter().any(|(known, _)| known == name);
    names.extend(before.iter().map(|(name, _)| name).filter(|name| is_gone(name)).cloned());
    names
}

fn output_name(written: &WrittenEntry, feature: &str) -> String {
    match (&written.alias, &written.role) {
        (Some(alias), _) => alias.clone(),
        (None, Some(role)) => format!("{role}_{feature}"),
        (None, None) => feature.to_owned(),
    }
}

fn output_names(entries: &[ServiceEntry]) -> String {
    join_or_none(entries.iter().map(|entry| entry.output_name.as_str()))
}

fn join_or_none<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn entry_differences(before: &[ServiceEntry], after: &[ServiceEntry]) -> Vec<String> {
    let parts = |entries: &[ServiceEntry]| -> Vec<(String, String)> {
        entries
            .iter()
            .map(|entry| {
                let role = entry.role.as_ref().map(|role| format!(" for {role}")).unwrap_or_default();
                (entry.output_name.clone(), format!("{}:{}{role}", entry.view, entry.feature))
            })
            .collect()
    };
    let mut lines = differences(&parts(before), &parts(after));
    if lines.is_empty() {
        lines.push("order of the features".to_owned());
    }
    lines
}
