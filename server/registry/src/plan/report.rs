//! A plan for people and programs.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::schema_change::{ChangeClass, SchemaChange, SchemaChangeKind};
use crate::error::ObjectKind;

/// What happens to one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlannedAction {
    /// It is new.
    Create,
    /// Its meaning changes: entities and sources have no versions of their own.
    Change,
    /// It gets a new version; the old ones keep serving.
    NewVersion,
    /// Its definition is that of an earlier version, which becomes the newest again.
    EarlierVersion,
    /// Only what makes no version changes: location, online history, documentation, …
    Settings,
    /// Nothing.
    Unchanged,
}

/// What happens to one object, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedChange {
    /// Entity, source, view or service.
    pub kind: ObjectKind,
    /// Its name.
    pub name: String,
    /// What happens.
    pub action: PlannedAction,
    /// Its version afterwards; `None` for entities and sources.
    pub version: Option<u32>,
    /// Its version before; `None` for entities, sources and what is new.
    pub version_before: Option<u32>,
    /// What differs, a line each.
    pub details: Vec<String>,
    /// What reads it, each with its kind.
    pub used_by: Vec<String>,
    /// Whether it can break those who follow the newest version; `None` for what is new or unchanged.
    pub class: Option<ChangeClass>,
    /// What changes for them, one by one.
    pub schema: Vec<SchemaChange>,
    /// The texts of what can break them.
    pub breaks: Vec<String>,
}

/// What `apply` would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanReport {
    /// The definitions' revision that the plan was made against; `apply` refuses when it has moved.
    pub definitions_revision: u64,
    /// One for each object that is defined, or that follows one that is; entities, sources, views, services, each by
    /// name.
    pub changes: Vec<PlannedChange>,
    /// Objects that are not in these definitions and cannot follow the change: they stay as they are.
    pub left_behind: Vec<String>,
    /// What is deprecated and named by something that did not name it before.
    #[serde(default)]
    pub warnings: Vec<String>,
}

impl PlanReport {
    /// Whether `apply` would change nothing.
    pub fn is_empty(&self) -> bool {
        self.changes.iter().all(|change| change.action == PlannedAction::Unchanged)
    }

    /// What callers that follow newest versions lose, over all objects.
    pub fn breaks(&self) -> impl Iterator<Item = &str> {
        self.changes.iter().flat_map(|change| change.breaks.iter().map(String::as_str))
    }

    fn count(&self, actions: &[PlannedAction]) -> usize {
        self.changes.iter().filter(|change| actions.contains(&change.action)).count()
    }
}

impl PlannedChange {
    /// A change that nothing is said of yet.
    pub(super) fn of(kind: ObjectKind, name: &str, action: PlannedAction) -> Self {
        Self {
            kind,
            name: name.to_owned(),
            action,
            version: None,
            version_before: None,
            details: Vec::new(),
            used_by: Vec::new(),
            class: None,
            schema: Vec::new(),
            breaks: Vec::new(),
        }
    }

    /// The same with what changes for readers.
    pub(super) fn with_schema(mut self, mut schema: Vec<SchemaChange>) -> Self {
        if self.action == PlannedAction::Settings {
            schema.push(SchemaChange::settings(&self.details));
        }
        self.class = schema.iter().map(|change| change.class).max();
        let breaking = schema.iter().filter(|change| change.class == ChangeClass::Breaking);
        self.breaks = breaking.map(|change| change.text.clone()).collect();
        self.schema = schema;
        self
    }

    fn mark(&self) -> char {
        match self.action {
            PlannedAction::Create => '+',
            PlannedAction::Unchanged => '=',
            _ => '~',
        }
    }

    /// What happens, in a few words.
    pub fn summary(&self) -> String {
        let version = self.version.unwrap_or_default();
        match (self.action, self.version_before) {
            (PlannedAction::Create, _) => match self.version {
                Some(version) => format!("new, version {version}"),
                None => "new".to_owned(),
            },
            (PlannedAction::Change, _) => "changed".to_owned(),
            (PlannedAction::NewVersion, Some(before)) => format!("new version {version}; {before} keeps serving"),
            (PlannedAction::NewVersion, None) => format!("new version {version}"),
            (PlannedAction::EarlierVersion, _) => format!("back to version {version}"),
            (PlannedAction::Settings, _) => "settings changed, no new version".to_owned(),
            (PlannedAction::Unchanged, _) => "unchanged".to_owned(),
        }
    }
}

impl PlanReport {
    /// What changes, for people, without what it was planned against.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        let _infallible = self.write_summary(&mut text);
        text
    }

    fn write_summary(&self, f: &mut impl fmt::Write) -> fmt::Result {
        for change in self.changes.iter().filter(|change| change.action != PlannedAction::Unchanged) {
            let class = change.class.map(|class| format!(" [{class}]")).unwrap_or_default();
            writeln!(f, "{} {} {}: {}{class}", change.mark(), change.kind, change.name, change.summary())?;
            for detail in &change.details {
                writeln!(f, "    {detail}")?;
            }
            if !change.used_by.is_empty() {
                writeln!(f, "    used by {}", change.used_by.join(", "))?;
            }
            for broken in &change.breaks {
                writeln!(f, "    ! {broken}")?;
            }
            // Settings stand among the details already.
            let is_news = |schema: &&SchemaChange| {
                schema.class == ChangeClass::Compatible && schema.kind != SchemaChangeKind::SettingsChanged
            };
            for compatible in change.schema.iter().filter(is_news) {
                writeln!(f, "    compatible: {}", compatible.text)?;
            }
        }
        for warning in &self.warnings {
            writeln!(f, "! {warning}")?;
        }
        for left in &self.left_behind {
            writeln!(f, "! left as it is: {left}")?;
        }
        let created = self.count(&[PlannedAction::Create]);
        let changed = self.count(&[
            PlannedAction::Change,
            PlannedAction::NewVersion,
            PlannedAction::EarlierVersion,
            PlannedAction::Settings,
        ]);
        let unchanged = self.count(&[PlannedAction::Unchanged]);
        let breaking = self.breaks().count();
        write!(f, "{created} new, {changed} changed, {unchanged} unchanged, {breaking} breaking")
    }
}

impl fmt::Display for PlanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_summary(f)?;
        let revision = self.definitions_revision;
        write!(f, "\nplanned against revision {revision} (apply --revision {revision} refuses any other)")
    }
}
