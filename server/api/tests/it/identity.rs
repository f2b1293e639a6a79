//! Transform identity: a batch, any split of it in any order, single rows, what is served from the online store with the
//! transform before storing or in the request, and what is computed on demand, are the same bits, also under bounds.
//!
//! Three cases of four have a generated schema and a component that is assembled for it, whose results are known without
//! the engine; the others are of the example transforms. Rows hold what goes wrong elsewhere far more often than chance
//! would have it, and every path gets them as they are: slices, foreign NaNs, garbage under nulls. Bar F7 counts the cases
//! of this test and the bits that differ. `EADEM_SEED` repeats a run.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use arrow_array::{Array, ArrayRef, BooleanArray, make_array};
use async_trait::async_trait;
use eadem_api::serving::{
    EntityKeys, EntityRows, ReadOptions, ReadRow, RowSource, RowSourceError, ServeOptions, ServingPlan, Store,
    StoredRow, TransformUnavailable, Transforms, serve, validation,
};
use eadem_engine::{Accepted, CallClass, CompilerCommand, Engine, EngineConfig, UploadOptions, generate_rows};
use eadem_online::{
    CacheRule, CachedStore, Coverage, EmbeddedOptions, EmbeddedStore, Found, KeyBytes, OnlineStore, PointRead, Row,
    RowBody, TableId,
};
use eadem_query::{AppliedRows, FailedRow, RowTransform, TransformFailure, TransformedRows, Validation, run_transform};
use eadem_registry::model::{
    About, Binding, BoundTo, Deployment, Entity, EventTime, JoinKey, KnownAt, OutlierBound, Placement, RequestField,
    RequiredKey, ResolvedService, ServiceEntry, Source, StoredView, ValidationPolicy, ViewRef, ViewVersion,
};
use eadem_semantics::{ReadAt, RowOrder, Status};
use eadem_values::{
    BatchEncoder, CANONICAL_NAN_F64, DataType, Description, Digest, ElementType, EntityKey, Field, KeyType, KeyValue,
    TieDigest, Value, array_from_values, encode_values, value_at, value_from_json, value_to_json,
};

use crate::generated::{Became, Made};

const EXAMPLES: [&str; 10] = [
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

/// Cases, and generated schemas among which they are shared.
const SAMPLE: (u64, usize) = (400, 15);
const SOAK: (u64, usize) = (10_000, 120);

#[derive(Debug)]
struct Component {
    transform: eadem_engine::Transform,
    /// Of all its views.
    validation: Validation,
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
            ..AppliedRows::default()
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

/// One table of the online store, as requests read it.
struct Table {
    store: Arc<CachedStore>,
    id: TableId,
}

#[async_trait]
impl RowSource for Table {
    async fn read(
        &self,
        _: &ViewVersion,
        keys: &EntityKeys,
        reads: &[ReadAt],
        options: ReadOptions,
    ) -> Result<Vec<ReadRow>, RowSourceError> {
        let points: Vec<PointRead<'_>> =
            keys.encoded().iter().zip(reads).map(|(key, at)| PointRead { key, at: *at }).collect();
        let rule = CacheRule { now_us: options.now_us, stale_us_max: 0, fresh: options.fresh };
        // Once from the store and once from memory.
        self.store.find(self.id, &points, rule).await.unwrap();
        let found = self.store.find(self.id, &points, rule).await.unwrap();
        let row = |found: Found| {
            assert!(found.proved && found.kept);
            let row = found.row.map(|row| StoredRow { order: row.order, failed: row.failed, values: row.values });
            ReadRow { row, store: Store::Online, cached: found.kept, unavailable: false }
        };
        Ok(found.into_iter().map(row).collect())
    }
}

/// Room for everything that is asked for.
const CACHE_BYTES: u64 = 4 << 30;
const OPTIONS: ServeOptions = ServeOptions { read: ReadOptions { now_us: 2_000, fresh: false }, deadline: None };

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

/// A component, accepted and loaded, with its views that are served.
struct Subject {
    component: Arc<Component>,
    /// Where it was generated.
    made: Option<Made>,
    on_write: Served,
    /// Of total transforms.
    on_read: Option<Served>,
    /// The same transform and bounds over fields of the request.
    on_demand: Served,
}

/// A view, its plan and its table.
struct Served {
    view: ViewVersion,
    plan: ServingPlan,
    table: Table,
}

impl Subject {
    async fn new(engine: &Engine, store: &Arc<CachedStore>, name: &str, bytes: Vec<u8>, made: Option<Made>) -> Self {
        let accepted =
            engine.accept(&bytes, &UploadOptions::default()).unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
        let description = accepted.description.clone();
        let transform =
            engine.load(accepted.digest, || Ok(bytes), description, accepted.strict_nan, Some(accepted.cost));
        let bounds = made.as_ref().map(|made| made.bounds.clone()).unwrap_or_default();
        let on_write = view(&accepted, Placement::OnWrite, &bounds);
        let component = Component { transform: transform.unwrap(), validation: validation(&on_write) };
        let component = Arc::new(component);
        let on_write = Served::new(on_write, store).await;
        let on_read = match accepted.description.total {
            true => Some(Served::new(view(&accepted, Placement::OnRead, &bounds), store).await),
            false => None,
        };
        let mut on_demand = view(&accepted, Placement::OnRead, &bounds);
        on_demand.stored = None;
        on_demand.digest = Digest::of(format!("{} on demand", on_demand.id.name).as_bytes());
        for binding in &mut on_demand.bindings {
            binding.from = BoundTo::Request(binding.input.name.clone());
        }
        let on_demand = Served::new(on_demand, store).await;
        Self { component, made, on_write, on_read, on_demand }
    }

    fn description(&self) -> &Description {
        self.component.description()
    }
}

impl Served {
    async fn new(view: ViewVersion, store: &Arc<CachedStore>) -> Self {
        let table = Table { store: Arc::clone(store), id: TableId { view: view.digest, epoch: 1 } };
        store.create_epoch(table.id).await.unwrap();
        store.finish_load(table.id, Coverage::whole()).await.unwrap();
        Self { plan: plan(view.clone()), view, table }
    }
}

async fn subjects(engine: &Engine, store: &Arc<CachedStore>, schemas: usize, seed: u64) -> Vec<Subject> {
    let mut subjects = Vec::new();
    for number in 0..schemas {
        let mut chance = Chance(seed ^ (number as u64).wrapping_mul(0x2545_f491_4f6c_dd1d));
        let made = Made::by_chance(number, &mut chance);
        let (name, bytes) = (made.name.clone(), made.component());
        let subject = Subject::new(engine, store, &name, bytes, Some(made)).await;
        assert_eq!(subject.description().total, subject.made.as_ref().unwrap().is_total());
        subjects.push(subject);
    }
    for name in EXAMPLES {
        subjects.push(Subject::new(engine, store, name, component_bytes(name), None).await);
    }
    subjects
}

/// Small and good enough to choose cases.
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

const INT64_EDGES: [i64; 6] = [i64::MIN, i64::MAX, i64::MIN + 1, -1, 0, (1 << 53) + 1];
/// Bits: zeros, infinities, the smallest numbers, and NaNs of both signs, quiet and signalling, with payloads.
const FLOAT64_EDGES: [u64; 9] = [
    0x8000_0000_0000_0000,
    0x0000_0000_0000_0000,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x0000_0000_0000_0001,
    0xfff8_0000_0000_0000,
    0x7ff8_0000_dead_beef,
    0x7ff0_0000_0000_0001,
    0xffff_ffff_ffff_ffff,
];
const FLOAT32_EDGES: [u32; 8] =
    [0x8000_0000, 0x0000_0000, 0x7f80_0000, 0x0000_0001, 0xffc0_0000, 0x7fc0_beef, 0x7f80_0001, 0xffff_ffff];
const TEXT_EDGES: [&str; 5] = ["", "\0", "\u{feff}", "e\u{301}", "NaN"];

fn edge(data_type: DataType, chance: &mut Chance) -> Value {
    let float32 = |chance: &mut Chance| f32::from_bits(chance.pick(&FLOAT32_EDGES));
    let float64 = |chance: &mut Chance| f64::from_bits(chance.pick(&FLOAT64_EDGES));
    let elements = chance.below(4);
    match data_type {
        DataType::Boolean => Value::Boolean(chance.below(2) == 0),
        DataType::Int64 => Value::Int64(chance.pick(&INT64_EDGES)),
        DataType::Float32 => Value::Float32(float32(chance)),
        DataType::Float64 => Value::Float64(float64(chance)),
        DataType::Utf8 => Value::Utf8(chance.pick(&TEXT_EDGES).to_owned()),
        DataType::Binary => Value::Binary(vec![0; elements]),
        DataType::Timestamp => Value::Timestamp(chance.pick(&INT64_EDGES)),
        DataType::Vector(dimensions) => Value::Vector((0..dimensions).map(|_| float32(chance)).collect()),
        DataType::List(ElementType::Int64) => {
            Value::ListInt64((0..elements).map(|_| chance.pick(&INT64_EDGES)).collect())
        }
        DataType::List(ElementType::Float64) => Value::ListFloat64((0..elements).map(|_| float64(chance)).collect()),
        DataType::List(ElementType::Utf8) => {
            Value::ListUtf8((0..elements).map(|_| chance.pick(&TEXT_EDGES).to_owned()).collect())
        }
    }
}

/// The engine's rows for these fields with more edges, as unfriendly as Arrow allows: something lies under every null,
/// and a slice begins anywhere.
fn raw_inputs(fields: &[Field], rows: usize, seed: u64, chance: &mut Chance) -> Vec<ArrayRef> {
    let before = chance.below(9);
    let generated = generate_rows(fields, (before + rows) as u32, seed);
    let column = |(field, column): (&Field, &ArrayRef)| {
        let is_free = field.constraints.is_empty();
        let column = if is_free { with_edges(field, column, chance) } else { Arc::clone(column) };
        column.slice(before, rows)
    };
    fields.iter().zip(&generated).map(column).collect()
}

fn with_edges(field: &Field, column: &ArrayRef, chance: &mut Chance) -> ArrayRef {
    let (mut stored, mut valid) = (Vec::new(), Vec::new());
    for row in 0..column.len() {
        let value = value_at(column.as_ref(), row).unwrap();
        valid.push((!value.is_null()).then_some(true));
        let takes_edge = value.is_null() || chance.below(3) == 0;
        stored.push(if takes_edge { edge(field.data_type, chance) } else { value });
    }
    let nulls = BooleanArray::from(valid).nulls().cloned();
    let stored = array_from_values(field.data_type, &stored).unwrap();
    make_array(stored.to_data().into_builder().nulls(nulls).build().unwrap())
}

/// How often what goes wrong elsewhere went in.
#[derive(Debug, Default)]
struct Seen {
    foreign_nans: u64,
    negative_zeros: u64,
    nulls: u64,
    empty_texts: u64,
    extreme_int64s: u64,
}

impl Seen {
    fn note(&mut self, value: &Value) {
        match value {
            Value::Null => self.nulls += 1,
            Value::Utf8(text) if text.is_empty() => self.empty_texts += 1,
            Value::Int64(i64::MIN | i64::MAX) => self.extreme_int64s += 1,
            Value::Float64(number) if number.is_nan() && number.to_bits() != CANONICAL_NAN_F64.to_bits() => {
                self.foreign_nans += 1;
            }
            Value::Float64(number) if *number == 0.0 && number.is_sign_negative() => self.negative_zeros += 1,
            _ => {}
        }
    }

    fn has_all(&self) -> bool {
        let counts = [self.foreign_nans, self.negative_zeros, self.nulls, self.empty_texts, self.extreme_int64s];
        counts.iter().all(|count| *count > 0)
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
    outcomes(&run_transform(component, &component.validation, rows, inputs).unwrap(), rows)
}

fn view(accepted: &Accepted, placement: Placement, bounds: &BTreeMap<String, OutlierBound>) -> ViewVersion {
    let description = Arc::new(accepted.description.clone());
    let entity = Entity {
        name: "row".to_owned(),
        keys: vec![JoinKey { name: "id".to_owned(), key_type: KeyType::Int64 }],
        about: About::default(),
    };
    let source = Source {
        name: "rows".to_owned(),
        origin: None,
        types: BTreeMap::new(),
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
    let bind = |input: &Field| Binding { input: input.clone(), from: BoundTo::Column(input.name.clone()) };
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
        bounds: bounds.clone(),
        about: About::default(),
        created_at_us: 0,
        mark: None,
    }
}

fn plan(view: ViewVersion) -> ServingPlan {
    let entry = |output: &Field| ServiceEntry {
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
    let request_fields = view.request_inputs().map(|(name, input)| RequestField {
        name: name.to_owned(),
        data_type: input.data_type,
        nullable: input.nullable,
    });
    let service = ResolvedService {
        name: None,
        version: None,
        digest: None,
        entries: view.description.outputs.iter().map(entry).collect(),
        keys: if view.is_on_demand() { Vec::new() } else { vec![key] },
        request_fields: request_fields.collect(),
        views: BTreeMap::from([(view.id.clone(), Arc::new(view))]),
        about: About::default(),
        mark: None,
    };
    ServingPlan::compile(Arc::new(service)).unwrap()
}

/// Stores these columns, one row per entity from `first_id` on, and asks for all of them at once.
async fn served(
    Served { view, plan, table }: &Served,
    stored: &[ArrayRef],
    expected: &[Outcome],
    loaded: &Loaded,
    first_id: i64,
    reverse: bool,
) -> Vec<Outcome> {
    let encoder = BatchEncoder::try_new(stored).unwrap();
    let id = |row: usize| KeyValue::Int64(first_id + row as i64);
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
        let order = RowOrder { event_time_us: 1_000, known_at_us: 1_000, tie: TieDigest::default() };
        rows.push(Row { key: KeyBytes::from(&EntityKey(vec![id(row)])), order, body });
    }
    if reverse {
        rows.reverse();
    }
    table.store.merge(table.id, rows).await.unwrap();
    let asked = EntityRows {
        at_us: vec![2_000; expected.len()],
        keys: vec![(0..expected.len()).map(id).collect()],
        request: Vec::new(),
    };
    let answer = serve(plan, &asked, table, loaded, OPTIONS).await.unwrap();
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
        let value = |(column, (output, status)): (&eadem_api::serving::AnswerColumn, (&Field, Status))| {
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

/// Asks for all rows at once, with the inputs sent along.
async fn served_on_demand(
    Served { view, plan, table }: &Served,
    inputs: &[ArrayRef],
    expected: &[Outcome],
    loaded: &Loaded,
) -> Vec<Outcome> {
    let request = inputs.iter().map(|input| eadem_values::canonicalize(input).unwrap()).collect();
    let asked = EntityRows { at_us: vec![2_000; expected.len()], keys: Vec::new(), request };
    let answer = serve(plan, &asked, table, loaded, OPTIONS).await.unwrap();
    let outcome = |row: usize| {
        let statuses: Vec<Status> = answer.columns.iter().map(|column| column.statuses[row]).collect();
        if statuses.contains(&Status::Error) {
            return Outcome::Failed;
        }
        // A dropped row says null everywhere, as one of nulls does.
        if matches!(expected[row], Outcome::Dropped) && statuses.iter().all(|status| *status == Status::Null) {
            return Outcome::Dropped;
        }
        let value = |column: &eadem_api::serving::AnswerColumn| value_at(column.values.as_ref(), row).unwrap();
        Outcome::Values(answer.columns.iter().map(value).collect())
    };
    assert_eq!(answer.columns.len(), view.description.outputs.len());
    (0..expected.len()).map(outcome).collect()
}

fn stored_features(component: &Component, expected: &[Outcome]) -> Vec<ArrayRef> {
    let outputs = &component.description().outputs;
    let column = |(at, output): (usize, &Field)| {
        let value = |outcome: &Outcome| match outcome {
            Outcome::Values(values) => values[at].clone(),
            _ => Value::Null,
        };
        let values: Vec<Value> = expected.iter().map(value).collect();
        array_from_values(output.data_type, &values).unwrap()
    };
    outputs.iter().enumerate().map(column).collect()
}

/// What the rows become by the definition of a generated component and its bounds, which shares no code with the engine or
/// the validation.
fn modelled(made: &Made, inputs: &[ArrayRef], rows: usize) -> Vec<Outcome> {
    let outcome = |row: usize| {
        let values: Vec<Value> = inputs.iter().map(|input| value_at(input.as_ref(), row).unwrap()).collect();
        match made.of_row(&values) {
            Became::Values(values) => Outcome::Values(values),
            Became::Dropped => Outcome::Dropped,
            Became::Failed => Outcome::Failed,
        }
    };
    (0..rows).map(outcome).collect()
}

/// The rows in another order, and their outcomes put back into theirs.
fn shuffled(component: &Component, inputs: &[ArrayRef], rows: usize, chance: &mut Chance) -> Vec<Outcome> {
    let mut order: Vec<u32> = (0..rows as u32).collect();
    for at in (1..rows).rev() {
        order.swap(at, chance.below(at + 1));
    }
    let indices = arrow_array::UInt32Array::from(order.clone());
    let taken = |input: &ArrayRef| arrow_select::take::take(input.as_ref(), &indices, None).unwrap();
    let taken: Vec<ArrayRef> = inputs.iter().map(taken).collect();
    let mut restored = vec![Outcome::Dropped; rows];
    for (row, outcome) in order.iter().zip(run(component, &taken, rows)) {
        restored[*row as usize] = outcome;
    }
    restored
}

/// The bits in which the ways of one case differ from its rows run one by one.
async fn differing_bits_of_case(
    subject: &Subject,
    loaded: &Loaded,
    seed: u64,
    first_id: i64,
    chance: &mut Chance,
    seen: &mut Seen,
) -> u64 {
    let component = &subject.component;
    let rows = 1 + chance.below(ROWS_MAX);
    let inputs = raw_inputs(&component.description().inputs, rows, seed, chance);
    for input in &inputs {
        (0..rows).for_each(|row| seen.note(&value_at(input.as_ref(), row).unwrap()));
    }
    let expected: Vec<Outcome> = (0..rows).map(|row| run(component, &slice(&inputs, row, 1), 1).remove(0)).collect();
    let mut differing = 0;
    let mut compare = |what: &str, found: &[Outcome]| {
        assert_eq!(found.len(), rows, "{what}");
        let bits: u64 = expected.iter().zip(found).map(|(expected, found)| difference(expected, found)).sum();
        if bits > 0 {
            eprintln!("seed {seed}, {}, {rows} rows: {what} differs in {bits} bits", component.description().name);
        }
        differing += bits;
    };

    if let Some(made) = &subject.made {
        compare("the definition", &modelled(made, &inputs, rows));
    }
    let batch = run(component, &inputs, rows);
    compare("the batch", &batch);
    for at in 1..rows {
        let mut parts = run(component, &slice(&inputs, 0, at), at);
        parts.extend(run(component, &slice(&inputs, at, rows - at), rows - at));
        compare(&format!("a split at {at}"), &parts);
    }
    compare("another order", &shuffled(component, &inputs, rows, chance));

    let features = stored_features(component, &batch);
    let answer = served(&subject.on_write, &features, &batch, loaded, first_id, chance.below(2) == 0).await;
    compare("serving with on_write", &answer);
    if let Some(on_read) = &subject.on_read {
        let as_stored = vec![Outcome::Values(Vec::new()); rows];
        let answer = served(on_read, &inputs, &as_stored, loaded, first_id, chance.below(2) == 0).await;
        compare("serving with on_read", &answer);
    }
    compare("serving on demand", &served_on_demand(&subject.on_demand, &inputs, &batch, loaded).await);
    differing
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_rows_splits_and_serving_give_the_same_bits() {
    let soak = std::env::var("EADEM_SOAK").is_ok_and(|soak| soak == "1");
    let (cases, schemas) = if soak { SOAK } else { SAMPLE };
    let first_seed: u64 = std::env::var("EADEM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_130_101);
    let scratch = tempfile::tempdir().unwrap();
    let mut config = EngineConfig::with_artifacts_dir(scratch.path().join("artifacts"));
    config.compiler =
        CompilerCommand { program: target_dir().join("debug/eadem"), args: vec!["compile-child".to_owned()] };
    let engine = Engine::new(config).unwrap();
    let store = EmbeddedStore::open(scratch.path().join("online"), EmbeddedOptions::default()).unwrap();
    let store = Arc::new(CachedStore::new(Arc::new(store), CACHE_BYTES, true));
    let subjects = subjects(&engine, &store, schemas, first_seed).await;
    let by_digest = subjects.iter().map(|subject| (*subject.component.digest(), Arc::clone(&subject.component)));
    let loaded = Loaded(Mutex::new(by_digest.collect()));

    let (mut differing, mut seen) = (0, Seen::default());
    for case in 0..cases {
        let seed = first_seed.wrapping_add(case);
        let (generated, examples) = subjects.split_at(schemas);
        let turn = (case / 4) as usize;
        let subject = match case % 4 {
            0 => &examples[turn % examples.len()],
            third => &generated[(3 * turn + third as usize - 1) % generated.len()],
        };
        let first_id = case as i64 * ROWS_MAX as i64;
        differing += differing_bits_of_case(subject, &loaded, seed, first_id, &mut Chance(seed), &mut seen).await;
    }
    assert!(seen.has_all(), "{seen:?}");
    let bounded = subjects.iter().filter_map(|subject| subject.made.as_ref()).map(|made| made.bounds.len());
    assert!(bounded.sum::<usize>() > schemas, "hardly an output has bounds");
    println!("F7: cases={cases} differing_bits={differing} first_seed={first_seed}");
    assert_eq!(differing, 0);
}
