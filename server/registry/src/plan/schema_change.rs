//! What a change means to those who read an object: whether it can break them.

use std::collections::BTreeMap;
use std::fmt;

use eadem_values::{Constraint, Description, Field};
use serde::{Deserialize, Serialize};

use crate::model::{RequestField, RequiredKey, ServiceEntry, ViewVersion};
use crate::resolve::ViewVersions;

/// Whether a change can break those who follow the newest version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeClass {
    /// Whoever read the old version can read the new one and finds all he knew, as it was.
    Compatible,
    /// Something is gone, or is not what it was.
    Breaking,
}

/// What changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchemaChangeKind {
    /// A feature is new.
    FeatureAdded,
    /// A feature is gone.
    FeatureRemoved,
    /// A feature has another type.
    TypeChanged,
    /// A feature may be null and could not before, or the other way round.
    NullabilityChanged,
    /// A feature is measured in another unit.
    UnitChanged,
    /// A feature of the same name and type is made in another way, of other rows, or lives for another time.
    MeaningChanged,
    /// A caller must, may or must not send something.
    RequestChanged,
    /// Documentation, owner, tags, deployment: nothing that a reader sees.
    SettingsChanged,
}

/// One change, and whom it concerns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaChange {
    /// Whether it can break anybody.
    pub class: ChangeClass,
    /// What changes.
    pub kind: SchemaChangeKind,
    /// The features that it concerns, by the name that a reader uses; none where it concerns none in particular.
    pub features: Vec<String>,
    /// For people.
    pub text: String,
}

impl fmt::Display for ChangeClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Compatible => "compatible",
            Self::Breaking => "breaking",
        })
    }
}

impl SchemaChange {
    fn of(class: ChangeClass, kind: SchemaChangeKind, features: &[&str], text: String) -> Self {
        Self { class, kind, features: features.iter().map(|name| (*name).to_owned()).collect(), text }
    }

    fn breaking(kind: SchemaChangeKind, features: &[&str], text: String) -> Self {
        Self::of(ChangeClass::Breaking, kind, features, text)
    }

    fn compatible(kind: SchemaChangeKind, features: &[&str], text: String) -> Self {
        Self::of(ChangeClass::Compatible, kind, features, text)
    }

    /// Only what makes no version changes.
    pub(super) fn settings(details: &[String]) -> Self {
        Self::compatible(SchemaChangeKind::SettingsChanged, &[], format!("settings: {}", details.join("; ")))
    }

    /// The join keys of an entity, or the meaning of a source, is another one.
    pub(super) fn of_ground(kind: SchemaChangeKind, details: &[String]) -> Self {
        Self::breaking(kind, &[], format!("views that use what differs get new versions: {}", details.join("; ")))
    }
}

/// From one view version to the next. `meaning` are the names of the parts of its meaning that differ.
pub(super) fn view_changes(before: &Description, after: &Description, meaning: &[String]) -> Vec<SchemaChange> {
    let mut changes = Vec::new();
    let mut kept: Vec<&str> = Vec::new();
    for output in &before.outputs {
        match after.outputs.iter().find(|candidate| candidate.name == output.name) {
            None => changes.push(removed(&output.name)),
            Some(now) => {
                let differences = field_changes(&output.name, output, now);
                if !differences.iter().any(|change| change.kind == SchemaChangeKind::TypeChanged) {
                    kept.push(&output.name);
                }
                changes.extend(differences);
            }
        }
    }
    if !kept.is_empty() && !meaning.is_empty() {
        changes.push(SchemaChange::breaking(
            SchemaChangeKind::MeaningChanged,
            &kept,
            format!("{} may mean something else: {}", named(&kept), meaning.join(", ")),
        ));
    }
    let is_new = |output: &&Field| !before.outputs.iter().any(|known| known.name == output.name);
    changes.extend(after.outputs.iter().filter(is_new).map(|output| added(&output.name, output)));
    changes
}

/// From one service version to the next, as its callers see it.
pub(super) fn service_changes(
    before: &[ServiceEntry],
    after: &[ServiceEntry],
    keys: (&[RequiredKey], &[RequiredKey]),
    fields: (&[RequestField], &[RequestField]),
    views: &ViewVersions,
) -> Vec<SchemaChange> {
    let mut changes = Vec::new();
    // Features that come from elsewhere now, by what they came from and where they come from now.
    let mut moved: BTreeMap<(String, String), Vec<&str>> = BTreeMap::new();
    for entry in before {
        let name = entry.output_name.as_str();
        let Some(now) = after.iter().find(|candidate| candidate.output_name == entry.output_name) else {
            changes.push(removed(name));
            continue;
        };
        let mut is_retyped = false;
        if let (Some(old), Some(new)) = (field_of(entry, views), field_of(now, views)) {
            let differences = field_changes(name, old, new);
            is_retyped = differences.iter().any(|change| change.kind == SchemaChangeKind::TypeChanged);
            changes.extend(differences);
        }
        let (old, new) = (origin_of(entry, now), origin_of(now, entry));
        if old != new && !is_retyped {
            moved.entry((old, new)).or_default().push(name);
        }
    }
    changes.extend(moved.into_iter().map(|((old, new), names)| {
        let text = format!("{} may mean something else: {old} → {new}", named(&names));
        SchemaChange::breaking(SchemaChangeKind::MeaningChanged, &names, text)
    }));
    for entry in after.iter().filter(|entry| !before.iter().any(|known| known.output_name == entry.output_name)) {
        if let Some(field) = field_of(entry, views) {
            changes.push(added(&entry.output_name, field));
        }
    }
    changes.extend(key_changes(keys.0, keys.1));
    changes.extend(request_field_changes(fields.0, fields.1));
    changes
}

fn field_of<'a>(entry: &ServiceEntry, views: &'a ViewVersions) -> Option<&'a Field> {
    views.get(&entry.view).and_then(|view: &std::sync::Arc<ViewVersion>| view.feature(&entry.feature))
}

/// Where an entry's values come from; the feature and the role only where they differ from the other's.
fn origin_of(entry: &ServiceEntry, other: &ServiceEntry) -> String {
    let mut text = entry.view.to_string();
    if entry.feature != other.feature || entry.role != other.role {
        text.push(':');
        text.push_str(&entry.feature);
    }
    if entry.role != other.role {
        let role = entry.role.as_ref().map_or_else(|| " without role".to_owned(), |role| format!(" for {role}"));
        text.push_str(&role);
    }
    text
}

fn removed(name: &str) -> SchemaChange {
    SchemaChange::breaking(SchemaChangeKind::FeatureRemoved, &[name], format!("feature `{name}` is gone"))
}

fn added(name: &str, field: &Field) -> SchemaChange {
    let null = if field.accepts_null() { ", may be null" } else { "" };
    let text = format!("feature `{name}` is added ({}{null})", field.data_type);
    SchemaChange::compatible(SchemaChangeKind::FeatureAdded, &[name], text)
}

/// What differs in a feature that stays.
fn field_changes(name: &str, before: &Field, after: &Field) -> Vec<SchemaChange> {
    if before.data_type != after.data_type {
        let text = format!("feature `{name}` changes from {} to {}", before.data_type, after.data_type);
        return vec![SchemaChange::breaking(SchemaChangeKind::TypeChanged, &[name], text)];
    }
    let mut changes = Vec::new();
    if before.accepts_null() != after.accepts_null() {
        let now = if after.accepts_null() { "may now be null" } else { "is never null any more" };
        let text = format!("feature `{name}` {now}");
        changes.push(SchemaChange::breaking(SchemaChangeKind::NullabilityChanged, &[name], text));
    }
    if unit(before) != unit(after) {
        let shown = |field| unit(field).unwrap_or("none").to_owned();
        let text = format!("feature `{name}` changes its unit from {} to {}", shown(before), shown(after));
        changes.push(SchemaChange::breaking(SchemaChangeKind::UnitChanged, &[name], text));
    }
    changes
}

fn unit(field: &Field) -> Option<&str> {
    field.constraints.iter().find_map(|constraint| match constraint {
        Constraint::Unit(unit) => Some(unit.as_str()),
        _ => None,
    })
}

/// `feature `a`` or `features `a`, `b``
fn named(names: &[&str]) -> String {
    const LISTED_MAX: usize = 12;
    let noun = if names.len() == 1 { "feature" } else { "features" };
    let mut listed: Vec<String> = names.iter().take(LISTED_MAX).map(|name| format!("`{name}`")).collect();
    if names.len() > LISTED_MAX {
        listed.push(format!("and {} more", names.len() - LISTED_MAX));
    }
    format!("{noun} {}", listed.join(", "))
}

fn request_break(text: String) -> SchemaChange {
    SchemaChange::breaking(SchemaChangeKind::RequestChanged, &[], text)
}

fn key_changes(before: &[RequiredKey], after: &[RequiredKey]) -> Vec<SchemaChange> {
    let mut changes = Vec::new();
    for key in after {
        match before.iter().find(|candidate| candidate.name == key.name) {
            None => changes.push(request_break(format!("callers must send key `{}`", key.name))),
            Some(known) if known.key_type != key.key_type => {
                let text = format!("key `{}` changes from {} to {}", key.name, known.key_type, key.key_type);
                changes.push(request_break(text));
            }
            Some(_) => {}
        }
    }
    let is_gone = |key: &&RequiredKey| !after.iter().any(|candidate| candidate.name == key.name);
    let gone = before.iter().filter(is_gone);
    changes.extend(gone.map(|key| request_break(format!("callers must not send key `{}` any more", key.name))));
    changes
}

fn request_field_changes(before: &[RequestField], after: &[RequestField]) -> Vec<SchemaChange> {
    let mut changes = Vec::new();
    for field in after {
        match before.iter().find(|candidate| candidate.name == field.name) {
            None if !field.nullable => {
                changes.push(request_break(format!("callers must send request field `{}`", field.name)));
            }
            None => {
                let text = format!("callers may send request field `{}`", field.name);
                changes.push(SchemaChange::compatible(SchemaChangeKind::RequestChanged, &[], text));
            }
            Some(known) if known.data_type != field.data_type => changes.push(request_break(format!(
                "request field `{}` changes from {} to {}",
                field.name, known.data_type, field.data_type
            ))),
            Some(known) if known.nullable && !field.nullable => {
                let text = format!("request field `{}` may not be left out or null any more", field.name);
                changes.push(request_break(text));
            }
            Some(_) => {}
        }
    }
    let is_gone = |field: &&RequestField| !after.iter().any(|candidate| candidate.name == field.name);
    let gone = before.iter().filter(is_gone);
    changes.extend(
        gone.map(|field| request_break(format!("callers must not send request field `{}` any more", field.name))),
    );
    changes
}
