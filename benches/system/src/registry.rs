//! R1: a registry of a million features in twenty thousand views, on SQLite and on PostgreSQL: how long it takes to apply one
//! changed view, to look up the plan of a service that nobody has asked for, and to search.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Result, ensure};
use async_trait::async_trait;
use eadem_benches::bars::Measured;
use eadem_benches::results::{Figure, load_average};
use eadem_registry::definitions::{DefinitionFile, Definitions, TransformReference};
use eadem_registry::model::{ColumnType, Source, SourceColumn};
use eadem_registry::{Acceptance, InspectError, PostgresAddress, Registry, RegistryAddress, Search, SourceInspector};
use eadem_values::{DataType, Description, Digest, Field};

use crate::process::median;
use crate::project;
use crate::service::Service;

const FEATURES_OF_A_VIEW: usize = 50;
/// Each transform stands behind so many views.
const VIEWS_OF_A_TRANSFORM: usize = 10;
const VIEWS: usize = 20_000;
/// Ten thousand features.
const VIEWS_AT_FIRST: usize = 200;
/// Each reads the features of one view of that number.
const VIEWS_PER_SERVICE: usize = 10;
const VIEWS_PER_APPLY: usize = 200;
const RUNS: usize = 15;
const NOW_US: i64 = 1_767_225_600_000_000;

/// What features are about: each has some of these words.
const WORDS: [&str; 24] = [
    "amount", "card", "country", "count", "day", "device", "distance", "failed", "hour", "login", "merchant", "minute",
    "night", "order", "payment", "price", "refund", "session", "share", "shop", "spend", "ticket", "user", "week",
];

struct Columns;

#[async_trait]
impl SourceInspector for Columns {
    async fn columns(&self, _: &Source) -> Result<Vec<SourceColumn>, InspectError> {
        let column =
            |name: &str, data_type| SourceColumn { name: name.to_owned(), column_type: ColumnType::Known(data_type) };
        Ok(vec![
            column("user_id", DataType::Utf8),
            column("at", DataType::Timestamp),
            column("amount", DataType::Float64),
            column("code", DataType::Int64),
        ])
    }
}

fn word(number: usize) -> &'static str {
    WORDS[number % WORDS.len()]
}

fn description(transform: usize) -> Description {
    let output = |number: usize| {
        let (first, second) = (word(transform + number), word(transform / WORDS.len() + 7 * number));
        let mut field = Field::new(format!("{first}_{second}_{number}"), DataType::Float64, true);
        field.doc = format!("The {first} of each {second}, as seen by team {}.", transform % 40);
        field
    };
    Description {
        name: format!("transform_{transform}"),
        doc: format!("What is known of {} and {}.", word(transform), word(transform + 5)),
        owner: format!("team_{}", transform % 40),
        total: true,
        inputs: vec![Field::new("amount", DataType::Float64, true), Field::new("code", DataType::Int64, true)],
        outputs: (0..FEATURES_OF_A_VIEW).map(output).collect(),
    }
}

const BASE: &str = r#"[entity.user]
keys = { user_id = "utf8" }

[source.payments]
parquet = "data/"
event_time = "at"
"#;

fn view(number: usize, ttl_d: usize) -> String {
    let transform = number / VIEWS_OF_A_TRANSFORM;
    format!(
        "\n[view.view_{number}]\nentity = \"user\"\nsource = \"payments\"\ntransform = \"transforms/{transform}\"\n\
         ttl = \"{ttl_d}d\"\ndoc = \"{} per {}, number {number}\"\nowner = \"team_{}\"\ntags = [\"{}\"]\n",
        word(number),
        word(number / 3),
        transform % 40,
        word(number / 11),
    )
}

fn service(number: usize) -> String {
    format!("\n[service.service_{number}]\nfeatures = [\"view_{}:*\"]\n", number * VIEWS_PER_SERVICE)
}

/// A registry and the components that it was given.
struct Company {
    registry: Registry,
    transforms: BTreeMap<TransformReference, Digest>,
    views: usize,
}

impl Company {
    async fn at(address: &RegistryAddress) -> Result<Self> {
        Ok(Self { registry: Registry::connect(address).await?, transforms: BTreeMap::new(), views: 0 })
    }

    /// Something must change.
    async fn apply(&self, text: &str) -> Result<()> {
        let files = [DefinitionFile { path: "eadem.toml".into(), text: format!("{BASE}{text}") }];
        let definitions = Definitions::parse(&files, &[])?;
        let plan = self.registry.plan(&definitions, &self.transforms, &Columns).await?;
        let applied = self.registry.apply(&plan, NOW_US).await?;
        ensure!(applied.changed, "nothing was applied");
        Ok(())
    }

    /// Applies views, each a team's own, until there are so many.
    async fn grow(&mut self, views: usize) -> Result<()> {
        while self.views < views {
            let next = self.views..views.min(self.views + VIEWS_PER_APPLY);
            for transform in next.clone().step_by(VIEWS_OF_A_TRANSFORM).map(|view| view / VIEWS_OF_A_TRANSFORM) {
                let description = description(transform);
                let component = serde_json::to_vec(&description)?;
                let put = self.registry.put_transform(&component, &description, &Acceptance::default(), NOW_US).await?;
                self.transforms.insert(TransformReference::Folder(format!("transforms/{transform}")), put.0);
            }
            let services = (next.start / VIEWS_PER_SERVICE)..(next.end / VIEWS_PER_SERVICE);
            let text: String = next.clone().map(|number| view(number, 1)).chain(services.map(service)).collect();
            self.apply(&text).await?;
            self.views = next.end;
        }
        Ok(())
    }

    /// Seconds of applying one changed view, from the text on.
    async fn apply_s(&self, round: usize) -> Result<Vec<f64>> {
        let mut took_s = Vec::new();
        for run in 0..RUNS {
            let text = view((run * 7 + 3) % self.views, 2 + round);
            let began = Instant::now();
            self.apply(&text).await?;
            took_s.push(began.elapsed().as_secs_f64());
        }
        Ok(took_s)
    }
}

/// Milliseconds of resolving services that no process has resolved before, each in a registry just opened.
async fn plan_ms(address: &RegistryAddress) -> Result<Vec<f64>> {
    let mut took_ms = Vec::new();
    for run in 0..RUNS {
        let registry = Registry::connect(address).await?;
        let name = format!("service_{}", (run * 131 + 17) % (VIEWS / VIEWS_PER_SERVICE));
        let began = Instant::now();
        let service = registry.resolve_service(&name).await?;
        took_ms.push(began.elapsed().as_secs_f64() * 1e3);
        ensure!(service.entries.len() == FEATURES_OF_A_VIEW, "{name} has {} features", service.entries.len());
        registry.close().await;
    }
    Ok(took_ms)
}

/// Milliseconds of searches: for rare and for common words, beginnings, several words, and words that never meet.
async fn search_ms(registry: &Registry) -> Result<Vec<f64>> {
    let mut searches: Vec<String> = WORDS.iter().map(|word| (*word).to_owned()).collect();
    for number in 0..WORDS.len() {
        searches.push(format!("{} {}", word(number), word(number + 9)));
        searches.push(format!("{} per {} number {}", word(number), word(number + 3), number * 37));
        searches.push(format!("view {}", number * 411));
        searches.push(format!("tag:{} owner:team", word(number)));
        searches.push(word(number).chars().take(2).collect());
    }
    let mut took_ms = Vec::new();
    let mut hits = 0;
    for text in &searches {
        let began = Instant::now();
        hits += registry.search(&Search { text, kinds: &[], limit: 20 }).await?.hits.len();
        took_ms.push(began.elapsed().as_secs_f64() * 1e3);
    }
    ensure!(hits > 10 * searches.len() / 2, "{} searches found {hits} objects", searches.len());
    Ok(took_ms)
}

fn percentile(mut numbers: Vec<f64>, share: f64) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let at = ((numbers.len() as f64 * share).ceil() as usize).clamp(1, numbers.len());
    numbers[at - 1]
}

/// What was measured on one database.
struct Measurement {
    apply_s: f64,
    growth: f64,
    plan_ms: f64,
    search_ms: f64,
}

async fn measure(name: &str, address: &RegistryAddress) -> Result<Measurement> {
    let mut company = Company::at(address).await?;
    company.grow(VIEWS_AT_FIRST).await?;
    let small_s = median(company.apply_s(0).await?);
    let began = Instant::now();
    company.grow(VIEWS).await?;
    println!("{name}: {VIEWS} views of {FEATURES_OF_A_VIEW} features in {:.0} s", began.elapsed().as_secs_f64());
    let large_s = median(company.apply_s(1).await?);
    let measurement = Measurement {
        apply_s: large_s,
        growth: large_s / small_s,
        plan_ms: median(plan_ms(address).await?),
        search_ms: percentile(search_ms(&company.registry).await?, 0.95),
    };
    company.registry.close().await;
    Ok(measurement)
}

/// R1 with its parts.
pub(crate) fn r1() -> Result<Measured> {
    let load = load_average();
    let folder = project::folder("registry");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    let server = Service::postgres()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let file = RegistryAddress::File(folder.join("registry.sqlite"));
    let database = RegistryAddress::Postgres(PostgresAddress::parse(&server.postgres_url())?);
    let sqlite = runtime.block_on(measure("sqlite", &file))?;
    let postgres = runtime.block_on(measure("postgres", &database))?;
    drop(server);
    std::fs::remove_dir_all(&folder)?;

    type Part = (&'static str, &'static str, &'static str, fn(&Measurement) -> f64);
    let parts: [Part; 4] = [
        ("R1", "apply of one changed view among 1,000,000 features; median", "s", |measured| measured.apply_s),
        ("R1.growth", "apply at 1,000,000 features over apply at 10,000", "times", |measured| measured.growth),
        ("R1.plan", "a service's plan in a registry just opened; median", "ms", |measured| measured.plan_ms),
        ("R1.search", "searches for rare, common and several words; p95", "ms", |measured| measured.search_ms),
    ];
    let mut figures = Vec::new();
    for (bar, name, unit, part) in parts {
        let (on_sqlite, on_postgres) = (part(&sqlite), part(&postgres));
        let runs = RUNS as u64;
        let slower = format!("{name}; the slower database");
        figures.push(Figure::alone(bar, &slower, unit, on_sqlite.max(on_postgres), runs, load));
        figures.push(Figure::alone(&format!("{bar}.sqlite"), name, unit, on_sqlite, runs, load));
        figures.push(Figure::alone(&format!("{bar}.postgres"), name, unit, on_postgres, runs, load));
    }
    Ok(figures.into())
}
