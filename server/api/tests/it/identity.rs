//! Transform identity: for generated rows of real components, a batch, any split of it in any order, single rows, and
//! what is served from the online store with the transform before storing or in the request, are the same bits.
//!
//! Bar F7 counts the cases of this test and the bits that differ.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use arrow_array::{Array, ArrayRef};
use async_trait::async_trait;
use eadem_api::serving::{
    EntityRows, ReadRow, RowSource, RowSourceError, ServingPlan, Store, StoredRow, TransformUnavailable, Transforms,
    serve,
};
use eadem_engine::{Accepted, CallClass, CompilerCommand, Engine, EngineConfig, UploadOptions, generate_rows};
use eadem_online::{Coverage, KeyBytes, MemoryStore, OnlineStore, PointRead, Row, RowBody, TableId};
use eadem_query::{AppliedRows, FailedRow, RowTransform, TransformFailure, TransformedRows, run_transform};
use eadem_registry::model::{
    About, Binding, BoundTo, Deployment, Entity, EventTime, JoinKey, KnownAt, Placement, RequiredKey, ResolvedService,
    ServiceEntry, Source, StoredView, ValidationPolicy, ViewRef, ViewVersion,
};
use eadem_semantics::{ReadAt, RowOrder, Status};
use eadem_values::{
    BatchEncoder, Description, Digest, EntityKey, KeyType, KeyValue, TieDigest, Value, canonicalize, encode_values,
    value_at, value_from_json, value_to_json,
};

const COMPONENTS: [&str; 10] = [
    "identity_all_types",
    "plane_profile",
    "airport_weather",
    "aircraft_legs",
    "airport_shape",
    "nearest_hubs",
    "completed_flights",
    "tail_number",
    "partial_filter",
    "departure_context",
];
const ROWS_MAX: usize = 16;
const SAMPLE_CASES: u64 = 400;
const SOAK_CASES: u64 = 10_000;

#[derive(Debug)]
struct Component {
    transform: eadem_engine::Transform,
}

impl RowTransform for Component {
    fn description(&self) -> &Description {
        self.transform.description()
    }

    fn digest(&self) -> &Digest {
        self.transform.digest()
    }

    fn apply(&self, rows: usize, inputs: &[ArrayRef]) -> Result<AppliedRows, TransformFailure> {
        let applied = self.transform.apply(rows, inputs, CallClass::Batch).unwrap();
        let failed = applied.rows.failed.into_iter();
        Ok(AppliedRows {
            columns: applied.columns,
            dropped: applied.rows.dropped,
            failed: failed.map(|failed| FailedRow { row: failed.row, message: failed.message }).collect(),
        })
    }
}

struct Loaded(Mutex<HashMap<Digest, Arc<Component>>>);

#[async_trait]
impl Transforms for Loaded {
    async fn load(&self, digest: &Digest) -> Result<Arc<dyn RowTransform>, TransformUnavailable> {
        Ok(self.0.lock().unwrap()[digest].clone())
    }
}

/// One table of an online store.
struct Table {
    store: MemoryStore,
    id: TableId,
}

#[async_trait]
impl RowSource for Table {
    async fn read(
        &self,
        _: &ViewVersion,
        keys: &[EntityKey],
        reads: &[ReadAt],
    ) -> Result<Vec<ReadRow>, RowSourceError> {
        let keys: Vec<KeyBytes> = keys.iter().map(KeyBytes::from).collect();
        let points: Vec<PointRead<'_>> = keys.iter().zip(reads).map(|(key, at)| PointRead { key, at: *at }).collect();
        let answers = self.store.read(self.id, &points).await.unwrap();
        let row = |answer: eadem_online::Answer| {
            assert!(answer.proved);
            let row = answer.winner.map(|winner| StoredRow {
                order: winner.order,
                failed: winner.body.error.is_some(),
                values: winner.body.values.to_vec(),
            });
            ReadRow { row, store: Store::Online, unavailable: false }
        };
        Ok(answers.into_iter().map(row).collect())
    }
}

fn target_dir() -> PathBuf {
    std::env::current_exe().unwrap().ancestors().nth(3).unwrap().to_owned()
}

fn component_bytes(name: &str) -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    let places = [target_dir(), root].map(|place| place.join(format!("components/{name}.wasm")));
    let file = places.iter().find(|file| file.is_file());
    let file = file.unwrap_or_else(|| panic!("component {name} is missing: run `make components`"));
    std::fs::read(file).unwrap()
}

fn load_components(engine: &Engine) -> Vec<(Accepted, Arc<Component>)> {
    let load = |name: &str| {
        let bytes = component_bytes(name);
        let accepted =
            engine.accept(&bytes, &UploadOptions::default()).unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
        let description = accepted.description.clone();
        let transform =
            engine.load(accepted.digest, || Ok(bytes), description, accepted.strict_nan, Some(accepted.cost));
        (accepted, Arc::new(Component { transform: transform.unwrap() }))
    };
    COMPONENTS.into_iter().map(load).collect()
}

/// Small and good enough to choose cases; the rows themselves come from the engine's generator.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// What became of one row: its values, or why it has none.
#[derive(Debug, Clone)]
enum Outcome {
    Values(Vec<Value>),
    Dropped,
    Failed,
}

fn outcomes(result: &TransformedRows, rows: usize) -> Vec<Outcome> {
    let outcome = |row: usize| {
        let number = row as u32;
        if result.dropped.contains(&number) {
            Outcome::Dropped
        } else if result.failed.iter().any(|failed| failed.row == number)
            || result.refused.iter().any(|refused| refused.row == row)
        {
            Outcome::Failed
        } else {
            Outcome::Values(result.columns.iter().map(|column| value_at(column.as_ref(), row).unwrap()).collect())
        }
    };
    (0..rows).map(outcome).collect()
}

fn differing_bits(a: &[Value], b: &[Value]) -> u64 {
    let (a, b) = (encode_values(a), encode_values(b));
    let common: u32 = a.iter().zip(&b).map(|(a, b)| (a ^ b).count_ones()).sum();
    u64::from(common) + 8 * a.len().abs_diff(b.len()) as u64
}

fn difference(expected: &Outcome, found: &Outcome) -> u64 {
    match (expected, found) {
        (Outcome::Values(expected), Outcome::Values(found)) => differing_bits(expected, found),
        (Outcome::Dropped, Outcome::Dropped) | (Outcome::Failed, Outcome::Failed) => 0,
        _ => 1,
    }
}

fn slice(inputs: &[ArrayRef], start: usize, length: usize) -> Vec<ArrayRef> {
    inputs.iter().map(|input| input.slice(start, length)).collect()
}

fn run(component: &Component, inputs: &[ArrayRef], rows: usize) -> Vec<Outcome> {
    let policy = eadem_query::ValidationPolicy::NullValue;
    outcomes(&run_transform(component, policy, rows, inputs).unwrap(), rows)
}

fn view(accepted: &Accepted, placement: Placement) -> ViewVersion {
    let description = Arc::new(accepted.description.clone());
    let entity = Entity {
        name: "row".to_owned(),
        keys: vec![JoinKey { name: "id".to_owned(), key_type: KeyType::Int64 }],
        about: About::default(),
    };
    let source = Source {
        name: "rows".to_owned(),
        files: None,
        push: true,
        fields: Vec::new(),
        columns: BTreeMap::new(),
        filter: None,
        time_zone: None,
        event_time: EventTime::Literal(0),
        known_at: KnownAt::EventTime,
        event_id: None,
        max_ahead_us: 0,
        about: About::default(),
    };
    let bind =
        |input: &eadem_values::Field| Binding { input: input.clone(), from: BoundTo::Column(input.name.clone()) };
    ViewVersion {
        id: ViewRef { name: description.name.clone(), version: 1 },
        digest: Digest::of(format!("{}{placement}", description.name).as_bytes()),
        transform: accepted.digest,
        bindings: description.inputs.iter().map(bind).collect(),
        description,
        stored: Some(StoredView {
            entity,
            source,
            ttl_us: None,
            horizon_us: None,
            deployment: Deployment { placement, ..Deployment::default() },
        }),
        defaults: BTreeMap::new(),
        validation: ValidationPolicy::NullValue,
        about: About::default(),
        created_at_us: 0,
    }
}

fn plan(view: ViewVersion) -> ServingPlan {
    let entry = |output: &eadem_values::Field| ServiceEntry {
        output_name: output.name.clone(),
        view: view.id.clone(),
        feature: output.name.clone(),
        data_type: output.data_type,
        role: None,
    };
    let key = RequiredKey {
        name: "id".to_owned(),
        entity: "row".to_owned(),
        join_key: "id".to_owned(),
        role: None,
        key_type: KeyType::Int64,
    };
    let service = ResolvedService {
        name: None,
        version: None,
        digest: None,
        entries: view.description.outputs.iter().map(entry).collect(),
        keys: vec![key],
        request_fields: Vec::new(),
        views: BTreeMap::from([(view.id.clone(), Arc::new(view))]),
        about: About::default(),
    };
    ServingPlan::compile(Arc::new(service)).unwrap()
}

/// Stores these columns, one row per entity, and asks for all of them at once.
async fn served(
    plan: &ServingPlan,
    view: &ViewVersion,
    stored: &[ArrayRef],
    expected: &[Outcome],
    loaded: &Loaded,
    reverse: bool,
) -> Vec<Outcome> {
    let table = Table { store: MemoryStore::new(), id: TableId { view: view.digest, epoch: 1 } };
    table.store.create_epoch(table.id).await.unwrap();
    let encoder = BatchEncoder::try_new(stored).unwrap();
    let mut rows = Vec::new();
    for (row, outcome) in expected.iter().enumerate() {
        let body = match outcome {
            // A row that a partial transform dropped or failed is not stored.
            Outcome::Dropped | Outcome::Failed if !view.description.total => continue,
            Outcome::Failed => RowBody::of_error("failed"),
            Outcome::Dropped | Outcome::Values(_) => {
                let mut values = Vec::new();
                encoder.encode_row(row, &mut values);
                RowBody::of_values(values)
            }
        };
        let key = EntityKey(vec![KeyValue::Int64(row as i64)]);
        let order = RowOrder { event_time_us: 1_000, known_at_us: 1_000, tie: TieDigest::default() };
        rows.push(Row { key: KeyBytes::from(&key), order, body });
    }
    if reverse {
        rows.reverse();
    }
    table.store.merge(table.id, rows).await.unwrap();
    table.store.finish_load(table.id, Coverage::whole()).await.unwrap();
    let asked = EntityRows {
        at_us: vec![2_000; expected.len()],
        keys: vec![(0..expected.len()).map(|row| KeyValue::Int64(row as i64)).collect()],
        request: Vec::new(),
    };
    let answer = serve(plan, &asked, &table, loaded).await.unwrap();
    let outcome = |row: usize| {
        let statuses: Vec<Status> = answer.columns.iter().map(|column| column.statuses[row]).collect();
        if statuses.contains(&Status::Missing) {
            return match expected[row] {
                Outcome::Dropped => Outcome::Dropped,
                _ => Outcome::Failed,
            };
        }
        if statuses.contains(&Status::Error) {
            return Outcome::Failed;
        }
        let outputs = view.description.outputs.iter();
        let value =
            |(column, (output, status)): (&eadem_api::serving::AnswerColumn, (&eadem_values::Field, Status))| {
                let value = value_at(column.values.as_ref(), row).unwrap();
                assert_eq!(status == Status::Null, value.is_null(), "{} is {status} and {value:?}", output.name);
                // What leaves the server is JSON: it must carry the very bits.
                let json = serde_json::to_string(&value_to_json(&value)).unwrap();
                value_from_json(output.data_type, &serde_json::from_str(&json).unwrap()).unwrap()
            };
        Outcome::Values(answer.columns.iter().zip(outputs.zip(statuses)).map(value).collect())
    };
    (0..expected.len()).map(outcome).collect()
}

fn stored_features(component: &Component, expected: &[Outcome]) -> Vec<ArrayRef> {
    let outputs = &component.description().outputs;
    let column = |(at, output): (usize, &eadem_values::Field)| {
        let value = |outcome: &Outcome| match outcome {
            Outcome::Values(values) => values[at].clone(),
            _ => Value::Null,
        };
        let values: Vec<Value> = expected.iter().map(value).collect();
        eadem_values::array_from_values(output.data_type, &values).unwrap()
    };
    outputs.iter().enumerate().map(column).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_rows_splits_and_serving_give_the_same_bits() {
    let soak = std::env::var_os("EADEM_SOAK").is_some();
    let cases = if soak { SOAK_CASES } else { SAMPLE_CASES };
    let first_seed: u64 = std::env::var("EADEM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_130_101);
    let scratch = tempfile::tempdir().unwrap();
    let mut config = EngineConfig::with_artifacts_dir(scratch.path());
    config.compiler =
        CompilerCommand { program: target_dir().join("debug/eadem"), args: vec!["compile-child".to_owned()] };
    let engine = Engine::new(config).unwrap();
    let components = load_components(&engine);
    let by_digest = components.iter().map(|(accepted, component)| (accepted.digest, Arc::clone(component)));
    let loaded = Loaded(Mutex::new(by_digest.collect()));

    let mut differing = 0;
    for case in 0..cases {
        let seed = first_seed.wrapping_add(case);
        let mut chance = Chance(seed);
        let (accepted, component) = &components[case as usize % components.len()];
        let rows = 1 + chance.below(ROWS_MAX);
        let inputs = generate_rows(&accepted.description.inputs, rows as u32, seed);
        let inputs: Vec<ArrayRef> = inputs.iter().map(|input| canonicalize(input).unwrap()).collect();
        let expected: Vec<Outcome> =
            (0..rows).map(|row| run(component, &slice(&inputs, row, 1), 1).remove(0)).collect();
        let mut compare = |what: &str, found: &[Outcome]| {
            let bits: u64 = expected.iter().zip(found).map(|(expected, found)| difference(expected, found)).sum();
            if bits > 0 {
                eprintln!("seed {seed}, {}, {rows} rows: {what} differs in {bits} bits", accepted.description.name);
            }
            differing += bits;
        };

        compare("the batch", &run(component, &inputs, rows));
        for at in 1..rows {
            let mut parts = run(component, &slice(&inputs, 0, at), at);
            parts.extend(run(component, &slice(&inputs, at, rows - at), rows - at));
            compare(&format!("a split at {at}"), &parts);
        }
        let mut order: Vec<u32> = (0..rows as u32).collect();
        for at in (1..rows).rev() {
            order.swap(at, chance.below(at + 1));
        }
        let indices = arrow_array::UInt32Array::from(order.clone());
        let shuffled: Vec<ArrayRef> = inputs
            .iter()
            .map(|input| canonicalize(&arrow_select::take::take(input.as_ref(), &indices, None).unwrap()).unwrap())
            .collect();
        let mut restored = vec![Outcome::Dropped; rows];
        for (row, outcome) in order.iter().zip(run(component, &shuffled, rows)) {
            restored[*row as usize] = outcome;
        }
        compare("another order", &restored);

        let on_write = view(accepted, Placement::OnWrite);
        let features = stored_features(component, &expected);
        let answer =
            served(&plan(on_write.clone()), &on_write, &features, &expected, &loaded, chance.below(2) == 0).await;
        compare("serving with on_write", &answer);
        if accepted.description.total {
            let on_read = view(accepted, Placement::OnRead);
            let as_stored = vec![Outcome::Values(Vec::new()); rows];
            let answer =
                served(&plan(on_read.clone()), &on_read, &inputs, &as_stored, &loaded, chance.below(2) == 0).await;
            compare("serving with on_read", &answer);
        }
    }
    println!("F7: cases={cases} differing_bits={differing} first_seed={first_seed}");
    assert_eq!(differing, 0);
}
