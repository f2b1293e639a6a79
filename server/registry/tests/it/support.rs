//! A small company: aircraft, airports, and one model that reads about both.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use eadem_registry::definitions::{DefinitionErrors, DefinitionFile, Definitions, TransformReference};
use eadem_registry::model::{ColumnType, Source, SourceColumn};
use eadem_registry::{
    Acceptance, Applied, InspectError, Plan, PostgresAddress, Registry, RegistryAddress, RegistryError, SourceInspector,
};
use eadem_values::{Constraint, DataType, Description, Digest, ElementType, Field, Literal};
use sqlx::Connection as _;
use tempfile::TempDir;

/// The server that registries are kept on; without one they are files.
pub(crate) const POSTGRES: &str = "EADEM_TEST_REGISTRY";

/// The address of a registry that does not exist yet.
pub(crate) fn a_new_registry(folder: &Path) -> RegistryAddress {
    a_new_place(folder).0
}

/// The same, and the name of its schema on a server.
pub(crate) fn a_new_place(folder: &Path) -> (RegistryAddress, String) {
    static SCHEMAS: AtomicU32 = AtomicU32::new(0);
    let Ok(url) = std::env::var(POSTGRES) else {
        return (RegistryAddress::File(folder.join("registry.db")), String::new());
    };
    let schema = format!("company_{}", SCHEMAS.fetch_add(1, Ordering::Relaxed));
    (postgres_address(&url, &schema), schema)
}

/// The registry at the address that [`Company::address_text`] has given.
pub(crate) fn a_registry_at(text: &str) -> RegistryAddress {
    match std::env::var(POSTGRES) {
        Ok(url) => postgres_address(&url, text),
        Err(_) => RegistryAddress::File(text.into()),
    }
}

/// A connection of its own to the tables of a registry, past everything that the program does.
pub(crate) async fn a_connection_to(address: &RegistryAddress, schema: &str) -> sqlx::AnyConnection {
    sqlx::any::install_default_drivers();
    let url = match address {
        RegistryAddress::File(file) => format!("sqlite://{}", file.display()),
        RegistryAddress::Postgres(_) => {
            format!("{}?options[search_path]={schema}", std::env::var(POSTGRES).unwrap())
        }
    };
    sqlx::AnyConnection::connect(&url).await.unwrap()
}

fn postgres_address(url: &str, schema: &str) -> RegistryAddress {
    RegistryAddress::Postgres(PostgresAddress::parse(url).unwrap().in_schema(schema).unwrap())
}

pub(crate) const NOW_US: i64 = 1_700_000_000_000_000;

/// Answers with fixed columns; sources that it does not know cannot be read.
#[derive(Clone)]
pub(crate) struct FixedColumns(pub(crate) BTreeMap<String, Vec<SourceColumn>>);

#[async_trait]
impl SourceInspector for FixedColumns {
    async fn columns(&self, source: &Source) -> Result<Vec<SourceColumn>, InspectError> {
        self.0
            .get(&source.name)
            .cloned()
            .ok_or_else(|| InspectError { statement: "parquet".into(), message: "no such folder".into() })
    }
}

pub(crate) fn column(name: &str, data_type: DataType) -> SourceColumn {
    SourceColumn { name: name.into(), column_type: ColumnType::Known(data_type) }
}

pub(crate) fn inspector() -> FixedColumns {
    let landings = vec![
        column("tailnum", DataType::Utf8),
        column("landed_at", DataType::Timestamp),
        column("arr_delay", DataType::Float64),
        column("distance", DataType::Int64),
        SourceColumn { name: "minute".into(), column_type: ColumnType::Other("Decimal128(4, 2)".into()) },
    ];
    let observations = vec![
        column("airport", DataType::Utf8),
        column("observed_at", DataType::Timestamp),
        column("published_at", DataType::Timestamp),
        column("visib", DataType::Float64),
        column("wind_gust", DataType::Float64),
    ];
    FixedColumns([("landings".to_owned(), landings), ("observations".to_owned(), observations)].into())
}

pub(crate) fn legs_transform() -> Description {
    Description {
        name: "aircraft_legs".into(),
        doc: "Previous legs of an aircraft.".into(),
        owner: "ops".into(),
        total: true,
        inputs: vec![
            Field::new("landed_at", DataType::Timestamp, false),
            Field::new("arr_delay", DataType::Float64, true),
            Field::new("distance", DataType::Int64, true),
        ],
        outputs: vec![
            Field::new("last_landed_at", DataType::Timestamp, false),
            Field::new("last_delay", DataType::Float64, true),
        ],
    }
}

pub(crate) fn weather_transform() -> Description {
    let mut visibility = Field::new("visibility_km", DataType::Float64, true);
    visibility.doc = "Null where the station did not report.".into();
    visibility.constraints = vec![
        Constraint::Min(Literal::Float64(-0.0)),
        Constraint::Unit("km".into()),
        Constraint::NotNull,
        Constraint::Allowed(vec![]),
        Constraint::Allowed(vec![Literal::Utf8("a".into()), Literal::Boolean(true), Literal::Int64(i64::MIN)]),
        Constraint::Length { min: 0, max: u32::MAX },
        Constraint::Max(Literal::Float64(f64::INFINITY)),
    ];
    Description {
        name: "airport_weather".into(),
        doc: String::new(),
        owner: "ops".into(),
        total: false,
        inputs: vec![
            Field::new("visib", DataType::Float64, true),
            Field::new("wind_gust", DataType::Float64, true),
            Field::new("gust_limit", DataType::Float64, false),
        ],
        outputs: vec![
            visibility,
            Field::new("gusty", DataType::Boolean, false),
            Field::new("codes", DataType::List(ElementType::Utf8), true),
        ],
    }
}

pub(crate) fn context_transform() -> Description {
    Description {
        name: "departure_context".into(),
        doc: String::new(),
        owner: "ml".into(),
        total: true,
        inputs: vec![
            Field::new("scheduled_at", DataType::Timestamp, false),
            Field::new("asked_at", DataType::Timestamp, false),
            Field::new("last_landed_at", DataType::Timestamp, true),
            Field::new("visibility", DataType::Float64, true),
            Field::new("max_gap_h", DataType::Int64, false),
        ],
        outputs: vec![Field::new("turnaround_minutes", DataType::Float64, true)],
    }
}

pub(crate) const PROJECT: &str = r#"
[server]
listen = "127.0.0.1:7171"

[entity.aircraft]
keys = { tailnum = "utf8" }
doc = "An aircraft by its tail number."

[entity.airport]
keys = { airport = "utf8" }

[source.landings]
parquet = "data/flights/"
columns = { landed_at = "to_timestamp_micros(arrived)", unused = "hour + 1" }
where = "arr_time is not null"
event_time = "landed_at"
known_at = "landed_at"

[source.observations]
parquet = "data/weather/"
event_time = "observed_at"
known_at = { after = "6h" }
event_id = "airport"
max_ahead = "2h"
"#;

pub(crate) const FEATURES: &str = r#"
[view.aircraft_legs]
entity = "aircraft"
source = "landings"
transform = "transforms/aircraft_legs"
ttl = "2d"
tags = ["delay", "aircraft"]

[view.airport_weather]
entity = "airport"
source = "observations"
transform = "transforms/airport_weather"
bind = { gust_limit = 25 }
ttl = "3h"
horizon = "1d"
defaults = { gusty = false, codes = ["none"] }
validation = "null_value"

[view.departure_context]
transform = "transforms/departure_context"
bind.scheduled_at = "request.scheduled_at"
bind.asked_at = "request.timestamp"
bind.last_landed_at = "aircraft_legs.last_landed_at"
bind.visibility = "airport_weather.visibility_km for origin"
bind.max_gap_h = 12

[service.departure_delay]
features = [
    "aircraft_legs:*",
    "airport_weather:visibility_km for origin",
    "airport_weather:visibility_km for dest as dest_visibility",
    "departure_context:turnaround_minutes",
]
"#;

pub(crate) fn files(texts: &[(&str, &str)]) -> Vec<DefinitionFile> {
    texts.iter().map(|(path, text)| DefinitionFile { path: (*path).into(), text: (*text).into() }).collect()
}

pub(crate) fn parse(texts: &[(&str, &str)]) -> Result<Definitions, DefinitionErrors> {
    Definitions::parse(&files(texts), &["server", "store"])
}

pub(crate) fn company() -> Definitions {
    company_with(FEATURES)
}

pub(crate) fn company_with(features: &str) -> Definitions {
    parse(&[("eadem.toml", PROJECT), ("features/all.toml", features)]).unwrap()
}

pub(crate) struct Company {
    pub(crate) registry: Registry,
    pub(crate) transforms: BTreeMap<TransformReference, Digest>,
    pub(crate) inspector: FixedColumns,
    /// The same registry as another process sees it.
    pub(crate) second: Option<Registry>,
    address: RegistryAddress,
    schema: String,
    _folder: TempDir,
}

impl Company {
    /// A registry with the three transforms uploaded and nothing applied.
    pub(crate) async fn found() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (address, schema) = a_new_place(folder.path());
        let mut company = Self {
            registry: Registry::connect(&address).await.unwrap(),
            transforms: BTreeMap::new(),
            inspector: inspector(),
            second: None,
            address,
            schema,
            _folder: folder,
        };
        for description in [legs_transform(), weather_transform(), context_transform()] {
            company.upload(&description).await;
        }
        company
    }

    pub(crate) async fn second_process(&mut self) {
        self.second = Some(self.another_process().await);
    }

    /// The address, for [`a_registry_at`] in another process.
    pub(crate) fn address_text(&self) -> String {
        match &self.address {
            RegistryAddress::File(file) => file.display().to_string(),
            RegistryAddress::Postgres(_) => self.schema.clone(),
        }
    }

    /// A connection of its own to the tables.
    pub(crate) async fn tables(&self) -> sqlx::AnyConnection {
        a_connection_to(&self.address, &self.schema).await
    }

    /// The registry as yet another process sees it.
    pub(crate) async fn another_process(&self) -> Registry {
        Registry::connect(&self.address).await.unwrap()
    }

    /// Uploads a component whose bytes are those of its description, and points its folder at it.
    pub(crate) async fn upload(&mut self, description: &Description) -> Digest {
        let component = serde_json::to_vec(description).unwrap();
        let (digest, _) =
            self.registry.put_transform(&component, description, &Acceptance::default(), NOW_US).await.unwrap();
        let folder = TransformReference::Folder(format!("transforms/{}", description.name));
        self.transforms.insert(folder, digest);
        digest
    }

    pub(crate) async fn plan(&self, definitions: &Definitions) -> Result<Plan, RegistryError> {
        self.registry.plan(definitions, &self.transforms, &self.inspector).await
    }

    pub(crate) async fn apply(&self, definitions: &Definitions) -> Applied {
        let plan = self.plan(definitions).await.unwrap();
        self.registry.apply(&plan, NOW_US).await.unwrap()
    }

    pub(crate) async fn plan_errors(&self, definitions: &Definitions) -> String {
        match self.plan(definitions).await {
            Err(RegistryError::Definitions(errors)) => errors.to_string(),
            Err(other) => panic!("not an error of definitions: {other:?}"),
            Ok(plan) => panic!("no error; the plan is\n{}", plan.report()),
        }
    }
}
