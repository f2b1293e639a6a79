//! What the registry knows, resolved: the read model of serving, batch and the HTTP interface.
//!
//! Nothing here carries positions in files; that is [`crate::definitions`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use eadem_values::{DataType, Description, Digest, Field, KeyType, Value};
use serde::{Deserialize, Serialize, Serializer};

use crate::store::Mark;

/// One join key of an entity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinKey {
    /// Its name, also the column of the source and of the offline table.
    pub name: String,
    /// Its type.
    pub key_type: KeyType,
}

/// What features describe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entity {
    /// Unique among entities.
    pub name: String,
    /// In declared order, at least one.
    pub keys: Vec<JoinKey>,
    /// For people.
    #[serde(default)]
    pub about: About,
}

/// What people say about an object. Never part of a version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// What it is.
    #[serde(default)]
    pub doc: String,
    /// Who answers for it.
    #[serde(default)]
    pub owner: String,
    /// Words to find it by, sorted.
    #[serde(default)]
    pub tags: Vec<String>,
}

/// How the rows of a source are written, as far as it decides what they say: meaning, not deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RowFormat {
    /// Apache Parquet files.
    Parquet,
    /// Files of CSV.
    Csv {
        /// What stands between two values, one ASCII character.
        delimiter: char,
        /// What stands, without quotes, for null.
        null: String,
        /// The columns' names where files have no line of names.
        names: Option<Vec<String>>,
    },
    /// Files of JSON lines.
    Json,
    /// A Delta table that somebody else writes.
    Delta,
    /// What a query of a PostgreSQL database gives.
    Postgres {
        /// A `select`.
        query: String,
    },
}

impl RowFormat {
    /// As written in definitions.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Csv { .. } => "csv",
            Self::Json => "json",
            Self::Delta => "delta",
            Self::Postgres { .. } => "postgres",
        }
    }
}

/// Where the rows of a source lie. Deployment, not meaning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// A file, a folder, or an object store URL, as written: a relative path is relative to the project's folder.
    Path(String),
    /// A database.
    Database {
        /// The environment variable that holds its URL. The URL itself, with its credentials, is kept nowhere.
        url_env: String,
        /// The column by which later jobs read only what is new.
        cursor: Option<String>,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(path),
            Self::Database { url_env, cursor: None } => write!(f, "the database of {url_env}"),
            Self::Database { url_env, cursor: Some(cursor) } => {
                write!(f, "the database of {url_env}, beyond the last `{cursor}`")
            }
        }
    }
}

/// What a source reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// How it is written.
    pub format: RowFormat,
    /// Where it lies.
    pub place: Place,
}

impl Origin {
    /// Both together, if they belong together.
    pub fn try_new(format: RowFormat, place: Place) -> Option<Self> {
        let is_query = matches!(format, RowFormat::Postgres { .. });
        let is_database = matches!(place, Place::Database { .. });
        (is_query == is_database).then_some(Self { format, place })
    }
}

/// A column that a source declares because no file says it: rows pushed over HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceField {
    /// Its name.
    pub name: String,
    /// Its type.
    pub data_type: DataType,
}

/// Which instant a row is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventTime {
    /// The timestamp in this column.
    Column(String),
    /// The same for every row, in µs since the epoch: data that does not change.
    Literal(i64),
}

/// From when a row could be known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KnownAt {
    /// From the event time.
    EventTime,
    /// From the timestamp in this column.
    Column(String),
    /// This long after the event time, in µs.
    AfterUs(i64),
}

/// Where rows come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Unique among sources.
    pub name: String,
    /// What it reads; `None` for a source that is only pushed to, and for the meaning of an earlier time whose rows the
    /// source now has in another kind of place.
    pub origin: Option<Origin>,
    /// Types of columns that are written as text: in CSV, in JSON and in the names of folders.
    #[serde(default)]
    pub types: BTreeMap<String, DataType>,
    /// Whether rows may be pushed over HTTP.
    pub push: bool,
    /// The columns of pushed rows, in declared order; empty where the files say it.
    pub fields: Vec<SourceField>,
    /// Column name → DataFusion expression. They add to the file's (or pushed) columns; the same name replaces.
    pub columns: BTreeMap<String, String>,
    /// DataFusion expression that a row must satisfy.
    #[serde(rename = "where")]
    pub filter: Option<String>,
    /// IANA name of the zone in which the files' timestamps without a zone are read; `None`: they are no instants.
    pub time_zone: Option<String>,
    /// Which instant a row is about.
    pub event_time: EventTime,
    /// From when a row could be known.
    pub known_at: KnownAt,
    /// Column that says which rows are the same event.
    pub event_id: Option<String>,
    /// How far ahead of its arrival an event time may lie, in µs.
    pub max_ahead_us: i64,
    /// For people.
    #[serde(default)]
    pub about: About,
}

/// A column of a source as the source's expressions leave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceColumn {
    /// Its name.
    pub name: String,
    /// Its type.
    pub column_type: ColumnType,
}

/// The type of a source's column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnType {
    /// A type of the contract.
    Known(DataType),
    /// Any other Arrow type, by name. It must be cast before it can be bound.
    Other(String),
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(data_type) => data_type.fmt(f),
            Self::Other(arrow) => f.write_str(arrow),
        }
    }
}

/// Where a view's transform runs. It never changes a value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// Before storing.
    #[default]
    OnWrite,
    /// In the request; bound inputs are stored.
    OnRead,
}

/// What happens to a value that breaks a constraint of its field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ValidationPolicy {
    /// The row is quarantined and not stored; for an on-demand view the row has status `error`.
    #[default]
    RefuseRow,
    /// The value becomes null.
    NullValue,
    /// The value becomes the nearest allowed one; null where there is none.
    Clamp,
    /// The job stops and names the row.
    StopJob,
}

/// Beyond what the values of a feature are outliers. NaN and infinities are, unless it says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct OutlierBound {
    /// The smallest value that is none, of the feature's type.
    #[serde(serialize_with = "limit_as_json")]
    pub min: Option<Value>,
    /// The greatest.
    #[serde(serialize_with = "limit_as_json")]
    pub max: Option<Value>,
    /// NaN is no outlier.
    pub allow_nan: bool,
    /// An infinity within the limits is no outlier.
    pub allow_infinite: bool,
    /// What happens to an outlier; `None`: what the view's `validation` says.
    pub validation: Option<ValidationPolicy>,
}

/// When a backfill is stopped over the rows that it refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopThreshold {
    /// The greatest share of refused rows that is committed, in millionths.
    pub share_ppm: u32,
    /// Of fewer rows than this no share is taken.
    pub rows_min: u64,
}

impl StopThreshold {
    /// A share from 0 to below 1 in millionths; `None` if it is none, or has more than six decimals.
    pub fn share_ppm_of(share: f64) -> Option<u32> {
        const MILLIONTHS: f64 = 1e6;
        if !(0.0..1.0).contains(&share) {
            return None;
        }
        let ppm = (share * MILLIONTHS).round();
        // What people write as a decimal number is the nearest float64 to it.
        (ppm < MILLIONTHS && (ppm / MILLIONTHS - share).abs() <= f64::EPSILON).then_some(ppm as u32)
    }
}

impl fmt::Display for StopThreshold {
    /// `0.05 of 100 rows or more`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} rows or more", f64::from(self.share_ppm) / 1e6, self.rows_min)
    }
}

/// How finely an offline table is partitioned by event time (UTC).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Partition {
    /// `event_date`.
    #[default]
    Day,
    /// `event_date` and hour.
    Hour,
}

macro_rules! text_enum {
    ($name:ident { $($variant:ident = $text:literal),+ $(,)? }) => {
        impl $name {
            /// Every case, as written in definitions.
            pub const NAMES: &'static [&'static str] = &[$($text),+];

            /// As written in definitions.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// The case of this name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some(Self::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

text_enum!(Placement { OnWrite = "on_write", OnRead = "on_read" });
text_enum!(ValidationPolicy {
    RefuseRow = "refuse_row",
    NullValue = "null_value",
    Clamp = "clamp",
    StopJob = "stop_job",
});
text_enum!(Partition { Day = "day", Hour = "hour" });

/// A view version by name and number: `flight_delay@2`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ViewRef {
    /// The view.
    pub name: String,
    /// Its version, from 1.
    pub version: u32,
}

impl fmt::Display for ViewRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

/// What feeds one input of a transform.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Binding {
    /// The input, as the component declares it.
    pub input: Field,
    /// What feeds it.
    pub from: BoundTo,
}

/// What feeds an input. Types are equal on both sides.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BoundTo {
    /// A column of the view's source.
    Column(String),
    /// A field sent with the request, or a column of the spine.
    Request(String),
    /// The instant that the request is about.
    RequestTimestamp,
    /// A feature of another view.
    Feature(UpstreamFeature),
    /// The same value for every row.
    Literal(#[serde(serialize_with = "value_as_json")] Value),
}

/// A feature that an on-demand view reads.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UpstreamFeature {
    /// The view version it is pinned to.
    pub view: ViewRef,
    /// The feature.
    pub feature: String,
    /// Names the key, where the same view is read for several entities.
    pub role: Option<String>,
}

/// What only a view with an entity and a source has.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StoredView {
    /// The entity, as it stood when the version was made.
    pub entity: Entity,
    /// The source's meaning as it stood when the version was made; its location, `push` and `max_ahead_us` as they stand now.
    pub source: Source,
    /// Age in µs at which a value expires; `None` is never.
    pub ttl_us: Option<i64>,
    /// How long after that it is `expired` rather than `missing`, in µs; `None` without a TTL.
    pub horizon_us: Option<i64>,
    /// Settings that make no version.
    pub deployment: Deployment,
}

/// A placement that a view version had before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlierPlacement {
    /// Which.
    pub placement: Placement,
    /// When the other one took its place, in µs since the epoch.
    pub until_us: i64,
}

/// Settings of a stored view that make no version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// Where the transform runs: whose table and epoch are read.
    pub placement: Placement,
    /// Where it shall run, as soon as there are a table and an epoch for it; `None`: where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_placement: Option<Placement>,
    /// Where it ran before, the first placement first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier_placements: Vec<EarlierPlacement>,
    /// How much history the online store keeps, in µs.
    pub online_history_us: Option<i64>,
    /// How long rows that were read from an online store with other writers may be served from memory, in µs.
    pub cache_us: Option<i64>,
    /// How finely the offline table is partitioned.
    pub partition: Partition,
    /// When a backfill is stopped over the rows that it refuses; `None` is never.
    pub stop: Option<StopThreshold>,
}

impl Deployment {
    /// The placement that definitions ask for.
    pub fn wanted_placement(&self) -> Placement {
        self.next_placement.unwrap_or(self.placement)
    }

    /// The placement that the version was made with.
    pub fn first_placement(&self) -> Placement {
        self.earlier_placements.first().map_or(self.placement, |earlier| earlier.placement)
    }

    /// The placement at an instant, in µs since the epoch.
    pub fn placement_at(&self, at_us: i64) -> Placement {
        let then = self.earlier_placements.iter().find(|earlier| at_us < earlier.until_us);
        then.map_or(self.placement, |earlier| earlier.placement)
    }

    /// The same as a definition says it.
    pub(crate) fn as_defined(&self) -> Self {
        let placement = self.wanted_placement();
        Self { placement, next_placement: None, earlier_placements: Vec::new(), ..self.clone() }
    }
}

/// A version of a feature view. Immutable, but for what is named deployment or documentation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ViewVersion {
    /// Name and number.
    #[serde(flatten)]
    pub id: ViewRef,
    /// Of its meaning: see `DIGEST.md`.
    pub digest: Digest,
    /// Of the component's bytes.
    pub transform: Digest,
    /// What the component says of itself; its outputs are the features.
    pub description: Arc<Description>,
    /// One for each input of the component, in its order.
    pub bindings: Vec<Binding>,
    /// Entity, source and lifetime; `None` for an on-demand view.
    pub stored: Option<StoredView>,
    /// Values for features that are not present.
    #[serde(serialize_with = "values_as_json")]
    pub defaults: BTreeMap<String, Value>,
    /// What happens to a value that breaks a constraint.
    pub validation: ValidationPolicy,
    /// Feature → beyond what its values are outliers.
    pub bounds: BTreeMap<String, OutlierBound>,
    /// For people; the newest text.
    pub about: About,
    /// When the version was made, µs since the epoch.
    pub created_at_us: i64,
    /// Whether it is on its way out.
    pub mark: Option<Mark>,
}

impl ViewVersion {
    /// Whether it is not served and cannot be named any more.
    pub fn is_retired(&self) -> bool {
        self.mark.as_ref().is_some_and(Mark::is_retired)
    }

    /// The same version in this placement: what its table of that placement holds is read through it.
    #[must_use]
    pub fn placed(&self, placement: Placement) -> Self {
        let mut placed = self.clone();
        if let Some(stored) = &mut placed.stored {
            // The first placement stays the one that it is.
            if stored.deployment.placement != placement && stored.deployment.earlier_placements.is_empty() {
                let earlier = EarlierPlacement { placement: stored.deployment.placement, until_us: i64::MAX };
                stored.deployment.earlier_placements.push(earlier);
            }
            stored.deployment.placement = placement;
        }
        placed
    }

    /// Computed when asked, from request fields, other views' features and literals.
    pub fn is_on_demand(&self) -> bool {
        self.stored.is_none()
    }

    /// The output of that name.
    pub fn feature(&self, name: &str) -> Option<&Field> {
        self.description.outputs.iter().find(|output| output.name == name)
    }

    /// The features of other views that this one reads, in the order of its inputs.
    pub fn upstream_features(&self) -> impl Iterator<Item = &UpstreamFeature> {
        self.bindings.iter().filter_map(|binding| match &binding.from {
            BoundTo::Feature(upstream) => Some(upstream),
            _ => None,
        })
    }

    /// The request fields that this view itself reads, with the inputs they feed.
    pub fn request_inputs(&self) -> impl Iterator<Item = (&str, &Field)> {
        self.bindings.iter().filter_map(|binding| match &binding.from {
            BoundTo::Request(field) => Some((field.as_str(), &binding.input)),
            _ => None,
        })
    }
}

/// A feature in a service, or as a request names it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServiceEntry {
    /// The name in replies and datasets.
    pub output_name: String,
    /// The view version.
    pub view: ViewRef,
    /// The feature of it.
    pub feature: String,
    /// Its type.
    pub data_type: DataType,
    /// Names the key; `None`: the key's own name.
    pub role: Option<String>,
}

/// A key that a caller sends, or a column that a spine has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequiredKey {
    /// The name that the caller uses: `tailnum`, `origin`, or `origin.station` for a composite key with a role.
    pub name: String,
    /// The entity.
    pub entity: String,
    /// The join key of the entity that it is.
    pub join_key: String,
    /// The role, if any.
    pub role: Option<String>,
    /// Its type.
    pub key_type: KeyType,
}

/// A field that a caller sends with the request, or a column that a spine has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestField {
    /// Its name.
    pub name: String,
    /// Its type.
    pub data_type: DataType,
    /// Whether every input it feeds accepts null.
    pub nullable: bool,
}

/// A service version, or an ad-hoc list of features, with all that is needed to answer it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ResolvedService {
    /// The service; `None` for a list of features in a request.
    pub name: Option<String>,
    /// Its version.
    pub version: Option<u32>,
    /// The digest of the service version: see `DIGEST.md`; `None` for a list of features in a request.
    pub digest: Option<Digest>,
    /// In declared order; output names are unique.
    pub entries: Vec<ServiceEntry>,
    /// The union of the keys that the entries and their upstreams need, sorted by name.
    pub keys: Vec<RequiredKey>,
    /// The union of the request fields, sorted by name.
    pub request_fields: Vec<RequestField>,
    /// Every view version that is read, upstreams included.
    #[serde(serialize_with = "views_as_list")]
    pub views: BTreeMap<ViewRef, Arc<ViewVersion>>,
    /// For people.
    pub about: About,
    /// Whether the service version is on its way out.
    pub mark: Option<Mark>,
}

impl ResolvedService {
    /// The same with the placements that its views had at an instant, in µs since the epoch; `None`: they are what they were.
    pub fn as_placed_at(&self, at_us: i64) -> Option<Self> {
        self.placed(|_, deployment| deployment.placement_at(at_us))
    }

    /// The same with its stored views in the placements that `placement_of` says; `None`: they are what they were.
    pub fn placed(&self, placement_of: impl Fn(&ViewRef, &Deployment) -> Placement) -> Option<Self> {
        let moved = self.views.values().filter_map(|view| {
            let deployment = &view.stored.as_ref()?.deployment;
            let placement = placement_of(&view.id, deployment);
            (placement != deployment.placement).then(|| (view.id.clone(), Arc::new(view.placed(placement))))
        });
        let moved: Vec<(ViewRef, Arc<ViewVersion>)> = moved.collect();
        if moved.is_empty() {
            return None;
        }
        let mut service = self.clone();
        service.views.extend(moved);
        Some(service)
    }

    /// What is deprecated of what was asked for: `service departure_delay@1 is deprecated: use @2`.
    pub fn deprecations(&self) -> Vec<String> {
        let service = self.mark.iter().map(|mark| {
            let version = self.version.map(|version| format!("@{version}")).unwrap_or_default();
            format!("service {}{version} is {}", self.name.as_deref().unwrap_or_default(), mark.text())
        });
        let views = self.views.values().filter_map(|view| Some((view, view.mark.as_ref()?)));
        service.chain(views.map(|(view, mark)| format!("view {} is {}", view.id, mark.text()))).collect()
    }
}

/// The name under which a caller sends a join key: the key's own without role, the role for a single key, `role.key`
/// for one of several.
pub fn required_key_name(entity: &Entity, join_key: &str, role: Option<&str>) -> String {
    match role {
        None => join_key.to_owned(),
        Some(role) if entity.keys.len() == 1 => role.to_owned(),
        Some(role) => format!("{role}.{join_key}"),
    }
}

fn value_as_json<S: Serializer>(value: &Value, serializer: S) -> Result<S::Ok, S::Error> {
    eadem_values::value_to_json(value).serialize(serializer)
}

fn limit_as_json<S: Serializer>(limit: &Option<Value>, serializer: S) -> Result<S::Ok, S::Error> {
    limit.as_ref().map(eadem_values::value_to_json).serialize(serializer)
}

fn values_as_json<S: Serializer>(values: &BTreeMap<String, Value>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(values.iter().map(|(name, value)| (name, eadem_values::value_to_json(value))))
}

fn views_as_list<S: Serializer>(views: &BTreeMap<ViewRef, Arc<ViewVersion>>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(views.values().map(AsRef::<ViewVersion>::as_ref))
}
