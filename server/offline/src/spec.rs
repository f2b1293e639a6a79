//! What the offline store is told about sources and views: plain data, resolved by whoever owns the definitions.

use std::collections::BTreeMap;
use std::sync::Arc;

use eadem_query::{RowTransform, Validation};
use eadem_semantics::Lifetime;
use eadem_values::{DataType, Description, Field, KeyType, Literal};
use serde::{Deserialize, Serialize};

/// Where rows come from and what they mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceSpec {
    /// The source's name, for messages.
    pub name: String,
    /// Where they come from, and how they are written.
    pub origin: Origin,
    /// Types of columns that are written as text: in CSV, in JSON, and in the names of folders, `date=2024-01-01`.
    #[serde(default)]
    pub types: BTreeMap<String, DataType>,
    /// Computed columns, as (name, expression). They see the source's columns, and replace one of the same name.
    pub columns: Vec<(String, String)>,
    /// Rows for which this expression is not true are left out. It sees the file's and the computed columns.
    pub filter: Option<String>,
    /// IANA name of the zone in which the files' timestamps without zone are read, unless a computed column replaces them;
    /// `None`: they are no instants.
    #[serde(default)]
    pub time_zone: Option<String>,
    /// When a row's fact happened.
    pub event_time: EventTime,
    /// When it could be known.
    pub known_at: KnownAt,
    /// The column by which equal (key, event time, id) count as one row. The as-of choice settles such rows by itself
    /// (the order of rows is a maximum), so here it is only checked to exist; windows will count by it.
    pub event_id: Option<String>,
    /// How far an event time may lie ahead of the job's creation, in microseconds.
    pub max_ahead_us: i64,
}

/// The kind of a source, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Parquet files.
    Parquet {
        /// Files, or folders that hold them at any depth: local paths or URLs.
        locations: Vec<String>,
    },
    /// Files of CSV, also compressed with gzip. A column is text unless `types` says otherwise.
    Csv {
        /// Files, or folders that hold them at any depth: local paths or URLs.
        locations: Vec<String>,
        /// How they are written.
        format: CsvFormat,
    },
    /// Files of JSON lines, also compressed with gzip. Only what `types` declares is read.
    Json {
        /// Files, or folders that hold them at any depth: local paths or URLs.
        locations: Vec<String>,
    },
    /// A Delta table that others write.
    Delta {
        /// Its folder: a local path or URL.
        location: String,
    },
    /// A query of a database.
    Postgres(PostgresQuery),
}

impl Origin {
    /// The files and folders that are read: local paths or URLs. None of a database.
    pub fn locations(&self) -> &[String] {
        match self {
            Self::Parquet { locations } | Self::Csv { locations, .. } | Self::Json { locations } => locations,
            Self::Delta { location } => std::slice::from_ref(location),
            Self::Postgres(_) => &[],
        }
    }
}

/// How CSV is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CsvFormat {
    /// The byte between two fields.
    pub delimiter: u8,
    /// What stands, without quotes, for null.
    pub null: String,
    /// The columns' names where files have no line of names.
    pub names: Option<Vec<String>>,
}

impl Default for CsvFormat {
    /// Commas, an empty field for null, a line of names.
    fn default() -> Self {
        Self { delimiter: b',', null: String::new(), names: None }
    }
}

/// A query of a PostgreSQL database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresQuery {
    /// The environment variable that holds the database's URL, with its credentials.
    pub url_env: String,
    /// A `select`.
    pub query: String,
    /// A column that only grows: a later job reads only rows beyond the greatest value that was read.
    pub cursor: Option<String>,
}

/// When a fact happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventTime {
    /// This column says.
    Column(String),
    /// At this instant, in microseconds: for data that does not change.
    Literal(i64),
}

/// When a fact could be known to a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KnownAt {
    /// At its event time.
    EventTime,
    /// This column says.
    Column(String),
    /// This many microseconds after its event time.
    After(i64),
}

/// Where a view's transform runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// Before rows are stored; the table holds features.
    #[default]
    OnWrite,
    /// When rows are read; the table holds the bound inputs.
    OnRead,
}

/// What feeds an input of the transform.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    /// A column of the source.
    Column(String),
    /// The same value for every row.
    Literal(Literal),
}

/// One join key of a view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinKey {
    /// The key's name, which is also its column in the table.
    pub name: String,
    /// Its type.
    pub key_type: KeyType,
    /// The column of the source that holds it.
    pub column: String,
}

/// One version of a feature view, as the offline store needs it.
#[derive(Debug, Clone)]
pub struct ViewSpec {
    /// The view's name.
    pub name: String,
    /// Its version.
    pub version: u32,
    /// The digest of the view version, as text; it is kept in the table's properties and in recipes.
    pub digest: String,
    /// Where its rows come from.
    pub source: SourceSpec,
    /// The entity's join keys, in declared order.
    pub keys: Vec<JoinKey>,
    /// The component.
    pub transform: Arc<dyn RowTransform>,
    /// One binding per input of the transform, in declared order.
    pub bindings: Vec<Binding>,
    /// How long a row can be served.
    pub lifetime: Lifetime,
    /// Where the transform runs.
    pub placement: Placement,
    /// Where it ran when the version was made. A version has a table for each placement that it ever had.
    pub first_placement: Placement,
    /// What happens to outliers and to values that break a constraint.
    pub validation: Validation,
}

impl Placement {
    /// As in the names of folders.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OnWrite => "on_write",
            Self::OnRead => "on_read",
        }
    }
}

impl ViewSpec {
    /// `v<version>`, and for the table of another placement than the first one, that placement: the folder of its table.
    pub(crate) fn table_folder(&self) -> String {
        match self.placement == self.first_placement {
            true => format!("v{}", self.version),
            false => format!("v{}-{}", self.version, self.placement.as_str()),
        }
    }

    /// `name@version`, as people write it.
    pub fn id(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }

    /// What the component says of itself.
    pub fn description(&self) -> &Description {
        self.transform.description()
    }

    /// The values a row of the table holds: the features, or for [`Placement::OnRead`] the bound inputs.
    pub fn stored_fields(&self) -> &[Field] {
        match self.placement {
            Placement::OnWrite => &self.description().outputs,
            Placement::OnRead => &self.description().inputs,
        }
    }
}
