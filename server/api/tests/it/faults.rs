//! What goes wrong on the way to an answer stays with the entity or the view that it belongs to, and says which store was
//! asked.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use eadem_api::serving::{
    EntityRows, ReadRow, RowSource, RowSourceError, ServingPlan, Store, StoredRow, TransformUnavailable, Transforms,
    serve,
};
use eadem_query::RowTransform;
use eadem_registry::model::{
    About, Binding, BoundTo, Deployment, Entity, EventTime, JoinKey, KnownAt, RequiredKey, ResolvedService,
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
    async fn read(&self, _: &ViewVersion, keys: &[EntityKey], _: &[ReadAt]) -> Result<Vec<ReadRow>, RowSourceError> {
        let row = |key: &EntityKey| {
            let order = RowOrder { event_time_us: 1, known_at_us: 1, tie: TieDigest::default() };
            let values = match key.0.as_slice() {
                [KeyValue::Int64(1)] => vec![0xff],
                _ => encode_values(&[Value::Int64(7)]),
            };
            let row = Some(StoredRow { order, values, failed: false });
            ReadRow { row, store: Store::Online, unavailable: false }
        };
        Ok(keys.iter().map(row).collect())
    }
}

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
    }
}

fn stored_view() -> ViewVersion {
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
    view("stored", vec![column], Some(stored))
}

/// A service of a stored view and of an on-demand view that reads it.
fn plan() -> ServingPlan {
    let stored = stored_view();
    let upstream = UpstreamFeature { view: stored.id.clone(), feature: "value".to_owned(), role: None };
    let input = Binding { input: Field::new("value", DataType::Int64, true), from: BoundTo::Feature(upstream) };
    let on_demand = view("on_demand", vec![input], None);
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
        entries: vec![entry(&stored), entry(&on_demand)],
        keys: vec![key],
        request_fields: Vec::new(),
        views: BTreeMap::from([stored, on_demand].map(|view| (view.id.clone(), Arc::new(view)))),
        about: About::default(),
    };
    ServingPlan::compile(Arc::new(service)).unwrap()
}

#[tokio::test]
async fn a_fault_stays_with_its_entity_and_view_and_names_the_store_that_was_asked() {
    let asked =
        EntityRows { at_us: vec![2; 3], keys: vec![(0..3).map(KeyValue::Int64).collect()], request: Vec::new() };
    let answer = serve(&plan(), &asked, &Rows, &NoTransforms).await.unwrap();
    let [stored, on_demand] = answer.columns.as_slice() else { panic!("two features were asked for") };
    assert_eq!(*stored.statuses, [Status::Present, Status::Error, Status::Present]);
    assert_eq!(*on_demand.statuses, [Status::Error; 3]);
    // Its inputs all came from the online store, whatever became of it.
    assert_eq!([&stored.stores, &on_demand.stores], [&[Store::Online; 3]; 2]);
}
