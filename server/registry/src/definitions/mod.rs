//! Definitions: the files in a team's repository, `eadem.toml` and `features/*.toml`.
//!
//! [`Definitions::parse`] turns texts into checked structures and reports every mistake with file and line. What only
//! the registry can know (does the column exist, do the types agree) is checked by [`crate::plan`], which finds the
//! position of each statement in the [`Places`] kept here.

mod errors;
mod grammar;
mod parse;
mod toml_reader;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use eadem_values::{Digest, Value};
use serde::{Deserialize, Serialize};

use crate::model::{About, Deployment, Entity, Source, ValidationPolicy};

pub(crate) use errors::ErrorList;
pub use errors::{DefinitionError, DefinitionErrors, did_you_mean};
pub(crate) use grammar::{
    BindingName, FeatureName, SPINE_TIMESTAMP, feature_as_asked, names_the_request, parse_binding_name,
};
pub use grammar::{ServiceEntryName, check_name, split_version};
pub use parse::DEFINITION_KINDS;
pub(crate) use parse::check_column_name;

/// One file of definitions: what `plan` and `apply` receive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefinitionFile {
    /// As it shall stand in messages, relative to the project's folder.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// A position in a definition file, from 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Location {
    /// The file's path as given.
    pub file: Arc<str>,
    /// The line, from 1; 0 for a definition that is only in the registry.
    pub line: u32,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            return f.write_str(&self.file);
        }
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Where the statements of one definition stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    header: Location,
    statements: BTreeMap<String, Location>,
}

impl Places {
    /// Places of a definition whose header stands here.
    pub fn new(header: Location) -> Self {
        Self { header, statements: BTreeMap::new() }
    }

    /// Where the definition begins.
    pub fn header(&self) -> &Location {
        &self.header
    }

    /// Where the statement stands, such as `ttl` or `bind.wind_gust`; the header if it is not written.
    pub fn of(&self, statement: &str) -> &Location {
        self.statements.get(statement).unwrap_or(&self.header)
    }

    /// Whether the definition stands in a file, and not only in the registry.
    pub(crate) fn are_written(&self) -> bool {
        self.header.line > 0
    }

    pub(crate) fn record(&mut self, statement: impl Into<String>, at: Location) {
        self.statements.insert(statement.into(), at);
    }
}

/// `[entity.<name>]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntityDefinition {
    /// What it defines.
    pub entity: Entity,
    /// Where it says so.
    pub places: Places,
}

/// `[source.<name>]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceDefinition {
    /// What it defines.
    pub source: Source,
    /// Where it says so: `columns.<name>`, `where`, `event_time`, …
    pub places: Places,
}

/// How a view names its component.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransformReference {
    /// A folder to build, relative to the project's folder.
    Folder(String),
    /// A component file, relative to the project's folder.
    File(String),
    /// A component in the registry.
    Uploaded {
        /// The name that it describes itself by.
        name: String,
        /// Of its bytes.
        digest: Digest,
    },
}

impl fmt::Display for TransformReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) | Self::File(path) => f.write_str(path),
            Self::Uploaded { name, digest } => write!(f, "{name}@{digest}"),
        }
    }
}

/// What a view binds to an input, before names are resolved.
#[derive(Debug, Clone, PartialEq)]
pub enum BindingDefinition {
    /// Text: a column, `request.<field>`, `request.timestamp` or `view.feature [for role]`.
    Name(String),
    /// A constant.
    Literal(LiteralText),
}

/// A constant in a definition. Its type is decided by what it feeds.
#[derive(Debug, Clone, PartialEq)]
pub enum LiteralText {
    /// `true`, `false`
    Boolean(bool),
    /// `12`
    Integer(i64),
    /// `0.5`, `nan`, `inf`
    Float(f64),
    /// `{ literal = "…" }` in `bind`, a plain string in `defaults`; also a timestamp as text.
    Text(String),
    /// A TOML date and time with offset, in µs since the epoch.
    Timestamp(i64),
    /// A list of constants.
    List(Vec<LiteralText>),
    /// As the registry keeps it.
    Json(serde_json::Value),
}

impl LiteralText {
    /// The constant as the JSON mapping of values writes it, to be read with the type of what it feeds.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Boolean(flag) => (*flag).into(),
            Self::Integer(number) => (*number).into(),
            Self::Float(number) => eadem_values::value_to_json(&Value::Float64(*number)),
            Self::Text(text) => text.as_str().into(),
            Self::Timestamp(us) => eadem_values::value_to_json(&Value::Timestamp(*us)),
            Self::List(items) => items.iter().map(Self::to_json).collect(),
            Self::Json(json) => json.clone(),
        }
    }
}

/// An entry of a view's `bounds`, before the feature's type is known.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BoundDefinition {
    /// The smallest value that is no outlier.
    pub min: Option<LiteralText>,
    /// The greatest.
    pub max: Option<LiteralText>,
    /// NaN is no outlier.
    pub nan: bool,
    /// An infinity within the limits is no outlier.
    pub infinite: bool,
    /// What happens to an outlier; `None`: what the view's `validation` says.
    pub validation: Option<ValidationPolicy>,
}

/// `[view.<name>]`
#[derive(Debug, Clone, PartialEq)]
pub struct ViewDefinition {
    /// Unique among views.
    pub name: String,
    /// The entity; `None` for an on-demand view.
    pub entity: Option<String>,
    /// The source; `None` for an on-demand view.
    pub source: Option<String>,
    /// The component.
    pub transform: TransformReference,
    /// Age in µs at which a value expires; `None` is never.
    pub ttl_us: Option<i64>,
    /// How long an expired value is called `expired`, in µs; default = TTL.
    pub horizon_us: Option<i64>,
    /// Input → what feeds it.
    pub bind: BTreeMap<String, BindingDefinition>,
    /// Feature → the value served when it is not present.
    pub defaults: BTreeMap<String, LiteralText>,
    /// What happens to a value that breaks a constraint.
    pub validation: ValidationPolicy,
    /// Feature → beyond what its values are outliers.
    pub bounds: BTreeMap<String, BoundDefinition>,
    /// Settings that make no version.
    pub deployment: Deployment,
    /// For people.
    pub about: About,
    /// Where the statements stand: `bind.<input>`, `ttl`, …
    pub places: Places,
}

/// `[service.<name>]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceDefinition {
    /// Unique among services.
    pub name: String,
    /// As written, in order, each with its place.
    pub features: Vec<(ServiceEntryName, Location)>,
    /// For people.
    pub about: About,
    /// Where the statements stand.
    pub places: Places,
}

/// Everything that a set of files defines, by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Definitions {
    /// `[entity.*]`
    pub entities: BTreeMap<String, EntityDefinition>,
    /// `[source.*]`
    pub sources: BTreeMap<String, SourceDefinition>,
    /// `[view.*]`
    pub views: BTreeMap<String, ViewDefinition>,
    /// `[service.*]`
    pub services: BTreeMap<String, ServiceDefinition>,
}

impl Definitions {
    /// Reads files of definitions. `configuration_tables` are top-level tables that belong to someone else (`server`,
    /// `store`, …) and are skipped.
    ///
    /// # Errors
    /// Every mistake found, with file and line: TOML syntax, unknown tables and keys (with the nearest known one),
    /// values of the wrong type, malformed durations, names and feature references, two definitions of one name.
    pub fn parse(files: &[DefinitionFile], configuration_tables: &[&str]) -> Result<Self, DefinitionErrors> {
        parse::parse_files(files, configuration_tables)
    }

    /// The components that the views name, each once: what must be built or pushed before planning.
    pub fn transform_references(&self) -> Vec<(&TransformReference, &Location)> {
        let mut first_use: BTreeMap<&TransformReference, &Location> = BTreeMap::new();
        for view in self.views.values() {
            first_use.entry(&view.transform).or_insert_with(|| view.places.of("transform"));
        }
        first_use.into_iter().collect()
    }
}
