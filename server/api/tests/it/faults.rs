//! What goes wrong on the way to an answer stays with the entity or the view that it belongs to, and says which store was
//! asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow_array::{ArrayRef, Int64Array};
use async_trait::async_trait;
use eadem_api::serving::{
    EntityKeys, EntityRows, ReadOptions, ReadRow, RowSource, RowSourceError, ServeOptions, ServingPlan, Store,
    StoredRow, TransformUnavailable, Transforms, serve,
};
use eadem_query::{AppliedRows, RowTransform, TransformFailure};
use eadem_registry::model::{
    About, Binding, BoundTo, Deployment, Entity, EventTime, JoinKey, KnownAt, Placement, RequiredKey, ResolvedService,
    ServiceEntry, Source, StoredView, UpstreamFeature, ValidationPolicy, ViewRef, ViewVersion,
};
use eadem_semantics::{ReadAt, RowOrder, Status};
use eadem_values::{
    DataType, Description, Digest, EntityKey, Field, KeyType, KeyValue, TieDigest, Value, encode_values,
};

/// The stored rows of some keys; key 1 has bytes that are no row.
struct Rows;

#[async_trait]
impl RowSource for Rows {
    async fn read(
        &self,
        _: &ViewVersion,
        keys: &EntityKeys,
        _: &[ReadAt],
        _: ReadOptions,
    ) -> Result<Vec<ReadRow>, RowSourceError> {
        let row = |key: &EntityKey| {
            let order = RowOrder { event_time_us: 1, known_at_us: 1, tie: TieDigest::default() };
            let values = match key.0.as_slice() {
                [KeyValue::Int64(1)] => vec![0xff],
                _ => encode_values(&[Value::Int64(7)]),
            };
            let row = Some(StoredRow { order, values: values.into(), failed: false });
            ReadRow { row, store: Store::Online, cached: false, unavailable: false }
        };
        Ok(keys.keys().iter().map(row).collect())
    }
}

/// Without a deadline.
const OPTIONS: ServeOptions = ServeOptions { read: ReadOptions { now_us: 2, fresh: false }, deadline: None };

struct NoTransforms;

#[async_trait]
impl Transforms for NoTransforms {
    async fn load(&self, digest: &Digest) -> Result<Arc<dyn RowTransform>, TransformUnavailable> {
        Err(TransformUnavailable { digest: *digest, message: "there is none".to_owned() })
    }
}

fn view(name: &str, bindings: Vec<Binding>, stored: Option<StoredView>) -> ViewVersion {
    let description = Description {
        name: name.to_owned(),
        doc: String::new(),
        owner: String::new(),
        total: true,
        inputs: bindings.iter().map(|binding| binding.input.clone()).collect(),
        outputs: vec![Field::new("value", DataType::Int64, true)],
    };
    ViewVersion {
        id: ViewRef { name: name.to_owned(), version: 1 },
        digest: Digest::of(name.as_bytes()),
        transform: Digest::of(b"component"),
        description: Arc::new(description),
        bindings,
        stored,
        defaults: BTreeMap::new(),
        validation: ValidationPolicy::NullValue,
        bounds: BTreeMap::new(),
        about: About::default(),
        created_at_us: 0,
        mark: None,
    }
}

fn stored_view(name: &str) -> ViewVersion {
    let entity = Entity {
        name: "thing".to_owned(),
        keys: vec![JoinKey { name: "id".to_owned(), key_type: KeyType::Int64 }],
        about: About::default(),
    };
    let source = Source {
        name: "things".to_owned(),
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
    let stored = StoredView { entity, source, ttl_us: None, horizon_us: None, deployment: Deployment::default() };
    let column =
        Binding { input: Field::new("value", DataType::Int64, true), from: BoundTo::Column("value".to_owned()) };
    view(name, vec![column], Some(stored))
}

/// A view of what `upstream` stores.
fn on_demand_view(upstream: &str) -> ViewVersion {
    let upstream = ViewRef { name: upstream.to_owned(), version: 1 };
    let upstream = UpstreamFeature { view: upstream, feature: "value".to_owned(), role: None };
    let input = Binding { input: Field::new("value", DataType::Int64, true), from: BoundTo::Feature(upstream) };
    view("on_demand", vec![input], None)
}

/// A service of these views.
fn service_of(views: &[ViewVersion]) -> ServingPlan {
    let entry = |view: &ViewVersion| ServiceEntry {
        output_name: view.id.name.clone(),
        view: view.id.clone(),
        feature: "value".to_owned(),
        data_type: DataType::Int64,
        role: None,
    };
    let key = RequiredKey {
        name: "id".to_owned(),
        entity: "thing".to_owned(),
        join_key: "id".to_owned(),
        role: None,
        key_type: KeyType::Int64,
    };
    let service = ResolvedService {
        name: None,
        version: None,
        digest: None,
        entries: views.iter().map(entry).collect(),
        keys: vec![key],
        request_fields: Vec::new(),
        views: views.iter().map(|view| (view.id.clone(), Arc::new(view.clone()))).collect(),
        about: About::default(),
        mark: None,
    };
    ServingPlan::compile(Arc::new(service)).unwrap()
}

#[tokio::test]
async fn a_fault_stays_with_its_entity_and_view_and_names_the_store_that_was_asked() {
    let asked =
        EntityRows { at_us: vec![2; 3], keys: vec![(0..3).map(KeyValue::Int64).collect()], request: Vec::new() };
    let answer =
        serve(&service_of(&[stored_view("stored"), on_demand_view("stored")]), &asked, &Rows, &NoTransforms, OPTIONS)
            .await
            .unwrap();
    let [stored, on_demand] = answer.columns.as_slice() else { panic!("two features were asked for") };
    assert_eq!(*stored.statuses, [Status::Present, Status::Error, Status::Present]);
    assert_eq!(*on_demand.statuses, [Status::Error; 3]);
    // Its inputs all came from the online store, whatever became of it.
    assert_eq!([&stored.rows.stores, &on_demand.rows.stores], [&[Store::Online; 3]; 2]);
}

/// Rows of a store that does not answer in time, but for one view.
struct OneIsLate;

#[async_trait]
impl RowSource for OneIsLate {
    async fn read(
        &self,
        view: &ViewVersion,
        keys: &EntityKeys,
        reads: &[ReadAt],
        options: ReadOptions,
    ) -> Result<Vec<ReadRow>, RowSourceError> {
        if view.id.name == "late" {
            std::future::pending::<()>().await;
        }
        Rows.read(view, keys, reads, options).await
    }
}

#[tokio::test]
async fn a_deadline_cuts_the_view_that_is_late_and_what_needs_it_and_nothing_else() {
    let asked = EntityRows { at_us: vec![2], keys: vec![vec![KeyValue::Int64(0)]], request: Vec::new() };
    let deadline = Some(Instant::now() + Duration::from_millis(50));
    let options = ServeOptions { deadline, ..OPTIONS };
    let service = service_of(&[stored_view("in_time"), stored_view("late"), on_demand_view("late")]);
    let answer = serve(&service, &asked, &OneIsLate, &NoTransforms, options).await.unwrap();
    let statuses: Vec<Status> = answer.columns.iter().map(|column| column.statuses[0]).collect();
    assert_eq!(statuses, [Status::Present, Status::Error, Status::Error]);
    let stores: Vec<Store> = answer.columns.iter().map(|column| column.rows.stores[0]).collect();
    assert_eq!(
        stores,
        [Store::Online, Store::Offline, Store::Offline],
        "the online store proved nothing of what is late"
    );
}

#[tokio::test]
async fn a_transform_whose_turn_comes_after_the_deadline_does_not_run() {
    let asked = EntityRows { at_us: vec![2], keys: vec![vec![KeyValue::Int64(0)]], request: Vec::new() };
    let options = ServeOptions { deadline: Some(Instant::now()), ..OPTIONS };
    let service = service_of(&[stored_view("in_time"), on_demand_view("in_time")]);
    let answer = serve(&service, &asked, &OneIsLate, &MustNotRun, options).await.unwrap();
    assert_eq!(answer.columns[1].statuses[0], Status::Error);
}

struct MustNotRun;

#[async_trait]
impl Transforms for MustNotRun {
    async fn load(&self, _: &Digest) -> Result<Arc<dyn RowTransform>, TransformUnavailable> {
        panic!("it was loaded after the deadline")
    }
}

struct NeverLoaded;

#[async_trait]
impl Transforms for NeverLoaded {
    async fn load(&self, _: &Digest) -> Result<Arc<dyn RowTransform>, TransformUnavailable> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn a_component_that_is_not_there_by_the_deadline_fails_its_views_and_no_others() {
    let asked = EntityRows { at_us: vec![2], keys: vec![vec![KeyValue::Int64(0)]], request: Vec::new() };
    let options = ServeOptions { deadline: Some(Instant::now() + Duration::from_millis(50)), ..OPTIONS };
    let mut on_read = stored_view("on_read");
    on_read.stored.as_mut().unwrap().deployment.placement = Placement::OnRead;
    let service = service_of(&[on_read, stored_view("in_time"), on_demand_view("in_time")]);
    let answer = serve(&service, &asked, &Rows, &NeverLoaded, options).await.unwrap();
    let statuses: Vec<Status> = answer.columns.iter().map(|column| column.statuses[0]).collect();
    assert_eq!(statuses, [Status::Error, Status::Present, Status::Error]);
}

/// Counts what it is asked for, and answers with the entity and the time.
#[derive(Default)]
struct Counted(Mutex<Vec<usize>>);

#[async_trait]
impl RowSource for Counted {
    async fn read(
        &self,
        _: &ViewVersion,
        keys: &EntityKeys,
        reads: &[ReadAt],
        _: ReadOptions,
    ) -> Result<Vec<ReadRow>, RowSourceError> {
        self.0.lock().unwrap().push(reads.len());
        let row = |(key, read): (&EntityKey, &ReadAt)| {
            let [KeyValue::Int64(key)] = key.0.as_slice() else { panic!("keys are numbers") };
            let order = RowOrder { event_time_us: 1, known_at_us: 1, tie: TieDigest::default() };
            let values = encode_values(&[Value::Int64(100 * key + read.at_us)]);
            let row = Some(StoredRow { order, values: values.into(), failed: false });
            ReadRow { row, store: Store::Online, cached: false, unavailable: false }
        };
        Ok(keys.keys().iter().zip(reads).map(row).collect())
    }
}

#[tokio::test]
async fn identical_rows_are_read_once_and_answer_all_who_asked_for_them() {
    let ask = async |keys: &[i64], at_us: &[i64]| {
        let keys: Vec<KeyValue> = keys.iter().copied().map(KeyValue::Int64).collect();
        let asked = EntityRows { at_us: at_us.to_vec(), keys: vec![keys], request: Vec::new() };
        let source = Counted::default();
        let views = [stored_view("one"), stored_view("other")];
        let answer = serve(&service_of(&views), &asked, &source, &NoTransforms, OPTIONS).await.unwrap();
        let values = answer.columns.iter().map(|column| {
            let column = column.values.as_any().downcast_ref::<Int64Array>().unwrap();
            column.values().to_vec()
        });
        let values: Vec<Vec<i64>> = values.collect();
        assert_eq!(values[0], values[1]);
        (source.0.into_inner().unwrap(), values[0].clone())
    };
    // By key and time, once for each view.
    assert_eq!(ask(&[5, 6, 5, 5], &[2, 2, 2, 3]).await, (vec![3, 3], vec![502, 602, 502, 503]));
    assert_eq!(ask(&[7; 1_000], &[4; 1_000]).await, (vec![1, 1], vec![704; 1_000]));
    assert_eq!(ask(&[1, 2], &[2, 2]).await, (vec![2, 2], vec![102, 202]));
    assert_eq!(ask(&[1], &[2]).await, (vec![1, 1], vec![102]));
}

/// A transform for which too many others wait.
#[derive(Debug)]
struct Busy(Description);

impl RowTransform for Busy {
    fn description(&self) -> &Description {
        &self.0
    }

    fn digest(&self) -> &Digest {
        panic!("nobody asks")
    }

    fn apply(&self, _: usize, _: &[ArrayRef]) -> Result<AppliedRows, TransformFailure> {
        Err(TransformFailure {
            transform: "busy".to_owned(),
            message: "too many wait".to_owned(),
            row: None,
            is_busy: true,
        })
    }
}

#[async_trait]
impl Transforms for Busy {
    async fn load(&self, _: &Digest) -> Result<Arc<dyn RowTransform>, TransformUnavailable> {
        Ok(Arc::new(Self(self.0.clone())))
    }
}

#[tokio::test]
async fn a_request_whose_transform_would_have_to_wait_too_long_is_refused_as_a_whole() {
    let asked = EntityRows { at_us: vec![2], keys: vec![vec![KeyValue::Int64(0)]], request: Vec::new() };
    let on_read = |mut view: ViewVersion| {
        view.stored.as_mut().unwrap().deployment.placement = Placement::OnRead;
        view
    };
    for views in [vec![stored_view("stored"), on_demand_view("stored")], vec![on_read(stored_view("stored"))]] {
        let busy = Busy(views.last().unwrap().description.as_ref().clone());
        let refused = serve(&service_of(&views), &asked, &Rows, &busy, OPTIONS).await.unwrap_err();
        assert!(refused.is_overload(), "{refused}");
    }
    // What is missing is no overload.
    let answer =
        serve(&service_of(&[stored_view("stored"), on_demand_view("stored")]), &asked, &Rows, &NoTransforms, OPTIONS)
            .await;
    assert_eq!(answer.unwrap().columns[1].statuses[0], Status::Error);
}
