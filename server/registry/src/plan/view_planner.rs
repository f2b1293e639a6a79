//! Planning one view: resolving its names, checking its types, finding its version.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use eadem_values::{Constraint, DataType, Description, Digest, Field, Value, value_from_json};

use super::planner::{
    CHAIN_MAX, KnownSource, Planner, TOO_LONG_A_CHAIN, differences, differing_names, digest_among, named_views,
};
use super::report::{PlannedAction, PlannedChange};
use super::schema_change::view_changes;
use super::{VersionPair, ViewWrite};
use crate::definitions::{
    BindingDefinition, BindingName, BoundDefinition, LiteralText, TransformReference, ViewDefinition,
    check_column_name, did_you_mean, names_the_request, parse_binding_name,
};
use crate::digest::{explained, view_text};
use crate::error::{ObjectKind, RegistryError};
use crate::model::{
    Binding, BoundTo, ColumnType, Entity, OutlierBound, Placement, ServiceEntry, StoredView, UpstreamFeature,
    ValidationPolicy, ViewRef, ViewVersion,
};
use crate::resolve::{key_data_type, required};
use crate::store::read;

impl Planner<'_> {
    pub(super) async fn plan_view(&mut self, name: &str) -> Result<(), RegistryError> {
        let Some(definition) = self.view_definitions.get(name).cloned() else { return Ok(()) };
        let reads_a_failed_view = named_views(&definition).iter().any(|(view, _, _)| self.failed_views.contains(view));
        if reads_a_failed_view {
            self.mark_failed(name);
            return Ok(());
        }
        let errors_before = self.errors.len();
        let draft = self.draft_view(&definition).await?;
        let Some(mut draft) = draft.filter(|_| self.errors.len() == errors_before) else {
            self.mark_failed(name);
            return Ok(());
        };
        let text = view_text(&draft, |view| digest_among(&self.versions, view))?;
        draft.digest = Digest::of(text.as_bytes());
        let rows = read::load_versions(&mut self.snapshot, name).await?;
        let existing = rows.iter().find(|row| row.digest == draft.digest);
        let next = rows.iter().map(|row| row.version + 1).max().unwrap_or(1);
        draft.id.version = existing.map_or(next, |row| row.version);
        if let Some(row) = existing {
            let stands = read::load_view_version(&mut self.snapshot, row.view_version_id).await?;
            if let Some(retired) = RegistryError::if_retired(ObjectKind::View, &stands.id, stands.mark.as_ref()) {
                let message = format!(
                    "what it says is a version that is not served any more: {retired}; or take it out of the files"
                );
                self.view_error(&definition, "", message);
                self.mark_failed(name);
                return Ok(());
            }
            follow_placement(&mut draft, &stands);
            draft.mark = stands.mark.clone();
        }
        if !self.can_be_asked_for(&definition, &draft) {
            self.mark_failed(name);
            return Ok(());
        }
        let before = match read::head_version_id(&mut self.snapshot, name).await? {
            Some(id) => Some(read::load_view_version(&mut self.snapshot, id).await?),
            None => None,
        };
        let pins_before = read::load_upstream_pins(&mut self.snapshot, name).await?;
        let upstreams = written_upstreams(&definition);
        let pins: BTreeMap<String, Option<u32>> =
            upstreams.iter().map(|(input, (_, version))| (input.clone(), *version)).collect();

        let mut details = Vec::new();
        let mut schema = Vec::new();
        let action = match &before {
            None => {
                details.extend(new_view_details(&draft));
                PlannedAction::Create
            }
            Some(before) if before.digest == draft.digest => {
                details.extend(settings_differences(before, &draft));
                if wanted_placement(before) != wanted_placement(&draft) {
                    details.extend(self.what_switches(&draft).await?);
                }
                if pins_before != pins {
                    details.push("versions of upstream views written differently, the same versions".to_owned());
                }
                if details.is_empty() { PlannedAction::Unchanged } else { PlannedAction::Settings }
            }
            Some(before) => {
                let (old, new) = (explained(before), explained(&draft));
                details.extend(differences(&old, &new));
                details.extend(output_differences(&before.description, &draft.description));
                let meaning = differing_names(&old, &new);
                schema.extend(view_changes(&before.description, &draft.description, &meaning));
                details.extend(settings_differences(before, &draft));
                details.extend(self.what_switches(&draft).await?);
                if existing.is_some() { PlannedAction::EarlierVersion } else { PlannedAction::NewVersion }
            }
        };
        if !matches!(action, PlannedAction::Unchanged | PlannedAction::Settings) {
            self.warn_of_what_it_uses(before.as_deref(), &draft);
        }
        let change = PlannedChange {
            version: Some(draft.id.version),
            version_before: before.as_ref().map(|before| before.id.version),
            details,
            used_by: self.readers_of(name),
            ..PlannedChange::of(ObjectKind::View, name, action)
        };
        self.report.changes.push(change.with_schema(schema));
        let existing = existing.map(|row| row.view_version_id);
        if action != PlannedAction::Unchanged {
            self.writes.views.push(ViewWrite { version: draft.clone(), existing, upstreams });
        }
        let planned = Arc::new(draft);
        if let Some(before) = before.filter(|before| before.digest != planned.digest) {
            self.pairs.push(VersionPair { before, after: Arc::clone(&planned) });
        }
        self.versions.insert(planned.id.clone(), Arc::clone(&planned));
        self.newest.insert(name.to_owned(), planned);
        Ok(())
    }

    /// Warns of what is deprecated, and was not used by the version before.
    fn warn_of_what_it_uses(&mut self, before: Option<&ViewVersion>, draft: &ViewVersion) {
        let reads = |version: &ViewVersion| version.upstream_features().map(|upstream| upstream.view.clone()).collect();
        let read_before: BTreeSet<ViewRef> = before.map(reads).unwrap_or_default();
        self.warn_of_deprecated(&format!("view {}", draft.id), &read_before, &reads(draft));
        if let Some(mark) = &draft.mark {
            self.report.warnings.push(format!("view {} is {}", draft.id, mark.text()));
        }
        if before.is_some_and(|before| before.transform == draft.transform) {
            return;
        }
        if let Some(mark) = self.transform_marks.get(&draft.transform) {
            let (name, digest) = (&draft.description.name, draft.transform.short());
            self.report.warnings.push(format!(
                "view {} uses transform {name} ({digest}), which is {}",
                draft.id,
                mark.text()
            ));
        }
    }

    /// The version that a definition describes, without number and digest. `None` only after an error.
    async fn draft_view(&mut self, definition: &ViewDefinition) -> Result<Option<ViewVersion>, RegistryError> {
        let Some((transform, description)) = self.find_transform(definition).await? else { return Ok(None) };
        let entity = match &definition.entity {
            Some(name) => self.find_entity(definition, name).await?,
            None => None,
        };
        let source = match &definition.source {
            Some(name) => self.find_source(definition, name).await?,
            None => None,
        };
        let is_on_demand = definition.source.is_none();
        if !is_on_demand && (entity.is_none() || source.is_none()) {
            return Ok(None);
        }
        self.check_outputs(definition, &description, entity.as_ref());
        if let (Some(entity), Some(source)) = (&entity, &source) {
            self.check_keys(definition, entity, source);
        }
        self.check_placement(definition, &description);
        let bounds = self.read_bounds(definition, &description);
        let bindings = self.bind_inputs(definition, &description, source.as_ref()).await?;
        self.check_request_fields(definition, &bindings);
        let defaults = self.read_defaults(definition, &description);
        let stored = match (entity, source) {
            (Some(entity), Some(known)) => Some(StoredView {
                entity,
                source: known.source,
                ttl_us: definition.ttl_us,
                horizon_us: definition.ttl_us.map(|ttl_us| definition.horizon_us.unwrap_or(ttl_us)),
                deployment: definition.deployment.clone(),
            }),
            _ => None,
        };
        Ok(Some(ViewVersion {
            id: ViewRef { name: definition.name.clone(), version: 0 },
            digest: transform,
            transform,
            description,
            bindings,
            stored,
            defaults,
            validation: definition.validation,
            bounds,
            about: definition.about.clone(),
            created_at_us: 0,
            mark: None,
        }))
    }

    fn view_error(&mut self, definition: &ViewDefinition, statement: &str, message: impl AsRef<str>) {
        let message = format!("view {}: {}", definition.name, message.as_ref());
        self.errors.push(definition.places.of(statement), message);
    }

    async fn find_transform(
        &mut self,
        definition: &ViewDefinition,
    ) -> Result<Option<(Digest, Arc<Description>)>, RegistryError> {
        let reference = &definition.transform;
        let digest = match (reference, self.transforms.get(reference)) {
            (_, Some(digest)) => *digest,
            (TransformReference::Uploaded { digest, .. }, None) => *digest,
            (_, None) => {
                let message =
                    format!("transform `{reference}` was not uploaded; upload it with `eadem push {reference}`");
                self.view_error(definition, "transform", message);
                return Ok(None);
            }
        };
        let Some(id) = read::transform_id(&mut self.snapshot, &digest).await? else {
            let message =
                format!("transform `{reference}` ({digest}) is not in the registry; upload it with `eadem push`");
            self.view_error(definition, "transform", message);
            return Ok(None);
        };
        let (digest, description) = read::load_description(&mut self.snapshot, id).await?;
        let mark = self.transform_marks.get(&digest);
        let named = format!("{}@{digest}", description.name);
        if let Some(retired) = RegistryError::if_retired(ObjectKind::Transform, named, mark) {
            self.view_error(definition, "transform", retired.to_string());
            return Ok(None);
        }
        if let TransformReference::Uploaded { name, .. } = reference
            && *name != description.name
        {
            let message = format!("transform {digest} calls itself `{}`, not `{name}`", description.name);
            self.view_error(definition, "transform", message);
            return Ok(None);
        }
        Ok(Some((digest, description)))
    }

    async fn find_entity(&mut self, definition: &ViewDefinition, name: &str) -> Result<Option<Entity>, RegistryError> {
        if let Some(entity) = self.entities.get(name) {
            return Ok(Some(entity.clone()));
        }
        if let Some(entity) = read::load_entity(&mut self.snapshot, name).await? {
            self.entities.insert(name.to_owned(), entity.clone());
            return Ok(Some(entity));
        }
        let mut known: Vec<String> =
            sqlx::query_scalar("SELECT name FROM entity").fetch_all(self.snapshot.sql()).await?;
        known.extend(self.entities.keys().cloned());
        let nearest = did_you_mean(name, known.iter().map(String::as_str));
        self.view_error(definition, "entity", format!("unknown entity `{name}`{nearest}"));
        Ok(None)
    }

    async fn find_source(
        &mut self,
        definition: &ViewDefinition,
        name: &str,
    ) -> Result<Option<KnownSource>, RegistryError> {
        if let Some(known) = self.sources.get(name) {
            return Ok(Some(known.clone()));
        }
        if let Some(source) = read::load_source(&mut self.snapshot, name).await? {
            let columns = Some(read::load_columns(&mut self.snapshot, name).await?);
            let known = KnownSource { source, columns };
            self.sources.insert(name.to_owned(), known.clone());
            return Ok(Some(known));
        }
        let mut names: Vec<String> =
            sqlx::query_scalar("SELECT name FROM source").fetch_all(self.snapshot.sql()).await?;
        names.extend(self.sources.keys().cloned());
        let nearest = did_you_mean(name, names.iter().map(String::as_str));
        self.view_error(definition, "source", format!("unknown source `{name}`{nearest}"));
        Ok(None)
    }

    /// Features become columns beside the join keys and the store's own.
    fn check_outputs(&mut self, definition: &ViewDefinition, description: &Description, entity: Option<&Entity>) {
        let mut seen: BTreeMap<String, &str> = BTreeMap::new();
        for output in &description.outputs {
            if let Err(message) = check_column_name(&output.name) {
                self.view_error(definition, "transform", format!("output of {}: {message}", description.name));
            }
            let is_key = entity.is_some_and(|entity| entity.keys.iter().any(|key| key.name == output.name));
            if is_key {
                let message = format!("output `{}` of {} has the name of a join key", output.name, description.name);
                self.view_error(definition, "transform", message);
            }
            if let Some(first) = seen.insert(output.name.to_lowercase(), &output.name) {
                let message = format!(
                    "outputs `{first}` and `{}` of {} differ only in upper and lower case",
                    output.name, description.name
                );
                self.view_error(definition, "transform", message);
            }
        }
    }

    fn check_keys(&mut self, definition: &ViewDefinition, entity: &Entity, source: &KnownSource) {
        if source.columns.is_none() {
            return;
        }
        let source_name = &source.source.name;
        for key in &entity.keys {
            let Some(column) = source.column(&key.name) else {
                let nearest = did_you_mean(&key.name, source.column_names());
                let message = format!(
                    "source {source_name} has no column `{}`, the join key of entity {}{nearest}; add it to the \
                     source's `columns`",
                    key.name, entity.name
                );
                self.view_error(definition, "source", message);
                continue;
            };
            let expected = key_data_type(key.key_type);
            if column.column_type != ColumnType::Known(expected) {
                let message = format!(
                    "join key `{}` of entity {} is {expected}, but column `{}` of source {source_name} is {}; cast it \
                     in the source's `columns`",
                    key.name, entity.name, key.name, column.column_type
                );
                self.view_error(definition, "source", message);
            }
        }
    }

    fn check_placement(&mut self, definition: &ViewDefinition, description: &Description) {
        if definition.deployment.placement != Placement::OnRead {
            return;
        }
        if !description.total {
            let message = format!(
                "cannot be placed on_read: transform {} may drop or fail rows, and such a row must be known before it \
                 is stored",
                description.name
            );
            self.view_error(definition, "placement", message);
        }
        let repairs = |policy| matches!(policy, ValidationPolicy::NullValue | ValidationPolicy::Clamp);
        for (feature, bound) in &definition.bounds {
            if let Some(policy) = bound.validation.filter(|policy| !repairs(*policy)) {
                let message = format!(
                    "cannot be placed on_read with bounds of `{feature}` under `{policy}`: a refused row must be known \
                     before it is stored; use null_value or clamp"
                );
                self.view_error(definition, "placement", message);
            }
        }
        if !repairs(definition.validation) {
            let message = format!(
                "cannot be placed on_read with validation `{}`: a refused row must be known before it is stored; use \
                 null_value or clamp",
                definition.validation
            );
            self.view_error(definition, "placement", message);
        }
    }

    /// What makes the placement of a version that is there the one that is asked for.
    async fn what_switches(&mut self, draft: &ViewVersion) -> Result<Option<String>, RegistryError> {
        let deployment = draft.stored.as_ref().map(|stored| &stored.deployment);
        let Some((now, next)) = deployment.and_then(|placed| Some((placed.placement, placed.next_placement?))) else {
            return Ok(None);
        };
        let is_online = read::is_online(&mut self.snapshot, &draft.id).await?;
        let verbs = match is_online {
            true => format!("`eadem backfill {0}`, then `eadem materialize {0}`", draft.id),
            false => format!("`eadem backfill {}`", draft.id),
        };
        Ok(Some(format!("{} stays {now} until {verbs} switches it to {next}; no value changes", draft.id)))
    }

    /// A request field has one type, so inputs that read it agree.
    fn check_request_fields(&mut self, definition: &ViewDefinition, bindings: &[Binding]) {
        let mut seen: BTreeMap<&str, &Field> = BTreeMap::new();
        for binding in bindings {
            let (BoundTo::Request(field), input) = (&binding.from, &binding.input) else { continue };
            let first = *seen.entry(field).or_insert(input);
            if first.data_type != input.data_type {
                let message = format!(
                    "input `{}` is {}, but request field `{field}` is {} for input `{}`; bind one of them to another \
                     field",
                    input.name, input.data_type, first.data_type, first.name
                );
                self.view_error(definition, &format!("bind.{}", input.name), message);
            }
        }
    }

    /// Whether a request can carry everything that an on-demand view and its upstreams need: no name may have to be two
    /// things at once.
    fn can_be_asked_for(&mut self, definition: &ViewDefinition, draft: &ViewVersion) -> bool {
        let Some(output) = draft.description.outputs.first().filter(|_| draft.is_on_demand()) else { return true };
        let entry = ServiceEntry {
            output_name: output.name.clone(),
            view: draft.id.clone(),
            feature: output.name.clone(),
            data_type: output.data_type,
            role: None,
        };
        self.versions.insert(draft.id.clone(), Arc::new(draft.clone()));
        let Err(message) = required(&[entry], &self.versions) else { return true };
        self.view_error(definition, "bind", message);
        false
    }

    async fn bind_inputs(
        &mut self,
        definition: &ViewDefinition,
        description: &Description,
        source: Option<&KnownSource>,
    ) -> Result<Vec<Binding>, RegistryError> {
        let inputs: Vec<&str> = description.inputs.iter().map(|input| input.name.as_str()).collect();
        for name in definition.bind.keys().filter(|name| !inputs.contains(&name.as_str())) {
            let nearest = did_you_mean(name, inputs.iter().copied());
            let message =
                format!("transform {} has no input `{name}`{nearest} (it has {})", description.name, inputs.join(", "));
            self.view_error(definition, &format!("bind.{name}"), message);
        }
        let mut bindings = Vec::with_capacity(description.inputs.len());
        for input in &description.inputs {
            if let Some(from) = self.bind_input(definition, input, source).await? {
                bindings.push(Binding { input: input.clone(), from });
            }
        }
        Ok(bindings)
    }

    async fn bind_input(
        &mut self,
        definition: &ViewDefinition,
        input: &Field,
        source: Option<&KnownSource>,
    ) -> Result<Option<BoundTo>, RegistryError> {
        let statement = format!("bind.{}", input.name);
        match (definition.bind.get(&input.name), source) {
            (Some(BindingDefinition::Literal(literal)), _) => {
                let is_stored = source.is_some();
                Ok(self.bind_literal(definition, &statement, input, literal, is_stored).map(BoundTo::Literal))
            }
            (Some(BindingDefinition::Name(name)), Some(source)) => {
                Ok(self.bind_column(definition, &statement, input, name, source))
            }
            (None, Some(source)) => Ok(self.bind_column(definition, &statement, input, &input.name, source)),
            (Some(BindingDefinition::Name(name)), None) => {
                self.bind_on_demand(definition, &statement, input, name).await
            }
            (None, None) => {
                let message = format!(
                    "input `{}` ({}) is not bound; bind it to `request.{}`, to another view's feature, or to a constant",
                    input.name, input.data_type, input.name
                );
                self.view_error(definition, "bind", message);
                Ok(None)
            }
        }
    }

    fn bind_literal(
        &mut self,
        definition: &ViewDefinition,
        statement: &str,
        input: &Field,
        literal: &LiteralText,
        is_stored: bool,
    ) -> Option<Value> {
        if is_stored && !is_bindable_constant(input.data_type) {
            let message = format!(
                "input `{}` is {}: a constant of that type in a stored view is not supported yet; bind a column, or put \
                 the constant into the transform",
                input.name, input.data_type
            );
            self.view_error(definition, statement, message);
            return None;
        }
        match value_from_json(input.data_type, &literal.to_json()) {
            Ok(value) => Some(value.canonical()),
            Err(error) => {
                self.view_error(definition, statement, format!("constant for input `{}`: {error}", input.name));
                None
            }
        }
    }

    fn bind_column(
        &mut self,
        definition: &ViewDefinition,
        statement: &str,
        input: &Field,
        column: &str,
        source: &KnownSource,
    ) -> Option<BoundTo> {
        source.columns.as_ref()?;
        let source_name = &source.source.name;
        let Some(found) = source.column(column) else {
            let message = if names_the_request(column) {
                format!(
                    "input `{}` is bound to `{column}`, but a view with a source is computed before any request; \
                     leave out `entity` and `source` to make it an on-demand view",
                    input.name
                )
            } else {
                let nearest = did_you_mean(column, source.column_names());
                let origin = if definition.bind.contains_key(&input.name) { "" } else { " (bound by its name)" };
                format!("input `{}`{origin}: source {source_name} has no column `{column}`{nearest}", input.name)
            };
            self.view_error(definition, statement, message);
            return None;
        };
        if found.column_type != ColumnType::Known(input.data_type) {
            let message = format!(
                "input `{}` is {}, but column `{column}` of source {source_name} is {}; cast it in the source's \
                 `columns`{}",
                input.name,
                input.data_type,
                found.column_type,
                cast_example(column, input.data_type)
            );
            self.view_error(definition, statement, message);
            return None;
        }
        Some(BoundTo::Column(column.to_owned()))
    }

    async fn bind_on_demand(
        &mut self,
        definition: &ViewDefinition,
        statement: &str,
        input: &Field,
        name: &str,
    ) -> Result<Option<BoundTo>, RegistryError> {
        let parsed = match parse_binding_name(name) {
            Ok(parsed) => parsed,
            Err(message) => {
                self.view_error(definition, statement, format!("input `{}`: {message}", input.name));
                return Ok(None);
            }
        };
        match parsed {
            BindingName::Request(field) => Ok(Some(BoundTo::Request(field))),
            BindingName::RequestTimestamp if input.data_type == DataType::Timestamp => {
                Ok(Some(BoundTo::RequestTimestamp))
            }
            BindingName::RequestTimestamp => {
                let message =
                    format!("input `{}` is {}, but request.timestamp is timestamp", input.name, input.data_type);
                self.view_error(definition, statement, message);
                Ok(None)
            }
            BindingName::Plain(name) => {
                let message = format!(
                    "input `{}`: `{name}` is a column, but an on-demand view has no source; write `request.{name}`, \
                     `view.feature`, or `{{ literal = \"{name}\" }}`",
                    input.name
                );
                self.view_error(definition, statement, message);
                Ok(None)
            }
            BindingName::Feature { view, version, feature, role } => {
                let upstream = self.version_named(&view, version).await?;
                let Some(upstream) = upstream else {
                    let why = self.missing_version(&view, version).await?;
                    self.view_error(definition, statement, format!("input `{}`: {why}", input.name));
                    return Ok(None);
                };
                Ok(self.bind_feature(definition, statement, input, &upstream, feature, role))
            }
        }
    }

    fn bind_feature(
        &mut self,
        definition: &ViewDefinition,
        statement: &str,
        input: &Field,
        upstream: &ViewVersion,
        feature: String,
        role: Option<String>,
    ) -> Option<BoundTo> {
        let Some(output) = upstream.feature(&feature) else {
            let features: Vec<&str> = upstream.description.outputs.iter().map(|output| output.name.as_str()).collect();
            let nearest = did_you_mean(&feature, features.iter().copied());
            let message = format!(
                "input `{}`: {} has no feature `{feature}`{nearest} (it has {})",
                input.name,
                upstream.id,
                features.join(", ")
            );
            self.view_error(definition, statement, message);
            return None;
        };
        if output.data_type != input.data_type {
            let message = format!(
                "input `{}` is {}, but feature `{feature}` of {} is {}",
                input.name, input.data_type, upstream.id, output.data_type
            );
            self.view_error(definition, statement, message);
            return None;
        }
        if role.is_some() && upstream.is_on_demand() {
            let message = format!(
                "input `{}`: {} is computed on demand and has no entity, so it takes no role; give the role in its own \
                 bindings",
                input.name, upstream.id
            );
            self.view_error(definition, statement, message);
            return None;
        }
        let in_a_row = self.depth(&upstream.id);
        if in_a_row >= CHAIN_MAX {
            let message = format!(
                "input `{}`: {TOO_LONG_A_CHAIN}: {in_a_row} stand behind {} already, itself included, and at most \
                 {CHAIN_MAX} on-demand views may; compute some of it in one transform",
                input.name, upstream.id
            );
            self.view_error(definition, statement, message);
            return None;
        }
        Some(BoundTo::Feature(UpstreamFeature { view: upstream.id.clone(), feature, role }))
    }

    fn read_defaults(&mut self, definition: &ViewDefinition, description: &Description) -> BTreeMap<String, Value> {
        let mut defaults = BTreeMap::new();
        for (feature, literal) in &definition.defaults {
            let statement = format!("defaults.{feature}");
            let Some(field) = description.outputs.iter().find(|output| output.name == *feature) else {
                let features: Vec<&str> = description.outputs.iter().map(|output| output.name.as_str()).collect();
                let nearest = did_you_mean(feature, features.iter().copied());
                let message = format!("a default is given for no feature: `{feature}`{nearest}");
                self.view_error(definition, &statement, message);
                continue;
            };
            match value_from_json(field.data_type, &literal.to_json()) {
                Ok(value) => {
                    defaults.insert(feature.clone(), value.canonical());
                }
                Err(error) => self.view_error(definition, &statement, format!("default of `{feature}`: {error}")),
            }
        }
        defaults
    }
}

impl Planner<'_> {
    fn read_bounds(
        &mut self,
        definition: &ViewDefinition,
        description: &Description,
    ) -> BTreeMap<String, OutlierBound> {
        let mut bounds = BTreeMap::new();
        for (feature, written) in &definition.bounds {
            let statement = format!("bounds.{feature}");
            let Some(field) = description.outputs.iter().find(|output| output.name == *feature) else {
                let features: Vec<&str> = description.outputs.iter().map(|output| output.name.as_str()).collect();
                let nearest = did_you_mean(feature, features.iter().copied());
                let message = format!("bounds are given for no feature: `{feature}`{nearest}");
                self.view_error(definition, &statement, message);
                continue;
            };
            match typed_bound(field, written) {
                Ok(bound) => {
                    bounds.insert(feature.clone(), bound);
                }
                Err(message) => self.view_error(definition, &statement, format!("bounds of `{feature}`: {message}")),
            }
        }
        bounds
    }
}

/// The bound with limits of the field's type.
fn typed_bound(field: &Field, written: &BoundDefinition) -> Result<OutlierBound, String> {
    let data_type = field.data_type;
    let is_float = matches!(data_type, DataType::Float32 | DataType::Float64);
    if !is_float && !matches!(data_type, DataType::Int64 | DataType::Timestamp) {
        return Err(format!(
            "it is {data_type}, and only int64, float32, float64 and timestamp have bounds; check it in the transform"
        ));
    }
    if !is_float && (written.nan || written.infinite) {
        return Err(format!("`nan` and `infinite` are for floats; it is {data_type}"));
    }
    let limit = |name: &str, limit: &Option<LiteralText>| {
        let Some(limit) = limit else { return Ok(None) };
        let value = value_from_json(data_type, &limit.to_json()).map_err(|error| format!("`{name}`: {error}"))?;
        let is_finite = match value {
            Value::Float32(value) => value.is_finite(),
            Value::Float64(value) => value.is_finite(),
            Value::Null => false,
            _ => true,
        };
        if !is_finite {
            return Err(format!("`{name}` must be finite; leave it out where there is no limit"));
        }
        Ok(Some(value.canonical()))
    };
    let bound = OutlierBound {
        min: limit("min", &written.min)?,
        max: limit("max", &written.max)?,
        allow_nan: written.nan,
        allow_infinite: written.infinite,
        validation: written.validation,
    };
    let says_nothing = bound.min.is_none() && bound.max.is_none() && (!is_float || (written.nan && written.infinite));
    if says_nothing {
        return Err("they keep every value; give `min` or `max`".to_owned());
    }
    let of_component = |upper: bool| {
        field.constraints.iter().filter_map(move |constraint| match constraint {
            Constraint::Min(limit) if !upper => limit.to_value(data_type),
            Constraint::Max(limit) if upper => limit.to_value(data_type),
            _ => None,
        })
    };
    if let (Some(min), Some(max)) = (&bound.min, &bound.max)
        && min.is_greater_than(max)
    {
        return Err("`min` is greater than `max`".to_owned());
    }
    let above = bound
        .min
        .iter()
        .find_map(|min| of_component(true).find(|max| min.is_greater_than(max)).map(|max| ("max", max)));
    let below = bound
        .max
        .iter()
        .find_map(|max| of_component(false).find(|min| min.is_greater_than(max)).map(|min| ("min", min)));
    if let Some((name, limit)) = above.or(below) {
        let limit = eadem_values::value_to_json(&limit);
        return Err(format!("no value is within them and within the component's own {name} = {limit}"));
    }
    Ok(bound)
}

/// A bound of the registry as a definition would write it.
pub(super) fn bound_as_defined(bound: &OutlierBound) -> BoundDefinition {
    let limit =
        |limit: &Option<Value>| limit.as_ref().map(|limit| LiteralText::Json(eadem_values::value_to_json(limit)));
    BoundDefinition {
        min: limit(&bound.min),
        max: limit(&bound.max),
        nan: bound.allow_nan,
        infinite: bound.allow_infinite,
        validation: bound.validation,
    }
}

/// Tables and epochs hold features or bound inputs, by their placement. So a version that is there keeps its placement until
/// there are some of the other one.
fn follow_placement(draft: &mut ViewVersion, stands: &ViewVersion) {
    let (Some(draft), Some(stands)) = (&mut draft.stored, &stands.stored) else { return };
    let wanted = draft.deployment.placement;
    draft.deployment.placement = stands.deployment.placement;
    draft.deployment.next_placement = Some(wanted).filter(|wanted| *wanted != stands.deployment.placement);
    draft.deployment.earlier_placements.clone_from(&stands.deployment.earlier_placements);
}

fn wanted_placement(version: &ViewVersion) -> Option<Placement> {
    version.stored.as_ref().map(|stored| stored.deployment.wanted_placement())
}

/// Input → (view, version if written), for the inputs that read other views.
fn written_upstreams(definition: &ViewDefinition) -> BTreeMap<String, (String, Option<u32>)> {
    let mut upstreams = BTreeMap::new();
    if definition.source.is_some() {
        return upstreams;
    }
    for (input, binding) in &definition.bind {
        let BindingDefinition::Name(text) = binding else { continue };
        if let Ok(BindingName::Feature { view, version, .. }) = parse_binding_name(text) {
            upstreams.insert(input.clone(), (view, version));
        }
    }
    upstreams
}

/// Whether a backfill can feed the same value of this type to every row.
fn is_bindable_constant(data_type: DataType) -> bool {
    match data_type {
        DataType::Boolean
        | DataType::Int64
        | DataType::Float32
        | DataType::Float64
        | DataType::Utf8
        | DataType::Timestamp => true,
        DataType::Binary | DataType::Vector(_) | DataType::List(_) => false,
    }
}

/// How the cast is written, for types that SQL can name.
fn cast_example(column: &str, data_type: DataType) -> String {
    let sql_type = match data_type {
        DataType::Boolean => "boolean",
        DataType::Int64 => "bigint",
        DataType::Float32 => "real",
        DataType::Float64 => "double",
        DataType::Utf8 => "varchar",
        _ => return String::new(),
    };
    format!(": `{column} = \"cast({column} as {sql_type})\"`")
}

fn new_view_details(draft: &ViewVersion) -> Vec<String> {
    let outputs: Vec<String> =
        draft.description.outputs.iter().map(|output| format!("{} {}", output.name, output.data_type)).collect();
    let mut details = vec![format!("transform: {} ({})", draft.description.name, draft.transform.short())];
    match &draft.stored {
        Some(stored) => {
            details.push(format!("entity {}, source {}", stored.entity.name, stored.source.name));
            let ttl = stored.ttl_us.map_or_else(|| "none".to_owned(), eadem_values::format_duration);
            details.push(format!("ttl: {ttl}, placement: {}", stored.deployment.placement));
        }
        None => details.push("on demand".to_owned()),
    }
    details.push(format!("features: {}", outputs.join(", ")));
    let bounds = explained(draft).into_iter().filter(|(what, _)| what.starts_with("bounds of "));
    details.extend(bounds.map(|(what, value)| format!("{what}: {value}")));
    if let Some(stop) = draft.stored.as_ref().and_then(|stored| stored.deployment.stop) {
        details.push(format!("stop_share: {stop}"));
    }
    details
}

fn settings_differences(before: &ViewVersion, after: &ViewVersion) -> Vec<String> {
    let parts = |version: &ViewVersion| -> Vec<(String, String)> {
        let Some(stored) = &version.stored else { return Vec::new() };
        let duration = |us: Option<i64>| us.map_or_else(|| "none".to_owned(), eadem_values::format_duration);
        vec![
            ("placement".to_owned(), stored.deployment.wanted_placement().to_string()),
            ("online_history".to_owned(), duration(stored.deployment.online_history_us)),
            ("cache".to_owned(), duration(stored.deployment.cache_us)),
            ("partition".to_owned(), stored.deployment.partition.to_string()),
            (
                "stop_share".to_owned(),
                stored.deployment.stop.map_or_else(|| "none".to_owned(), |stop| stop.to_string()),
            ),
        ]
    };
    let mut lines = differences(&parts(before), &parts(after));
    if before.about != after.about {
        lines.push("documentation, owner or tags".to_owned());
    }
    lines
}

fn output_differences(before: &Description, after: &Description) -> Vec<String> {
    let shape = |field: &Field| {
        let null = if field.accepts_null() { "" } else { " not null" };
        format!("{}{null}", field.data_type)
    };
    let parts = |description: &Description| -> Vec<(String, String)> {
        description.outputs.iter().map(|output| (format!("feature {}", output.name), shape(output))).collect()
    };
    differences(&parts(before), &parts(after))
}
