//! What a table holds: every type there and back, and the schema that other readers see.

use std::sync::Arc;

use arrow_array::builder::{
    FixedSizeListBuilder, Float32Builder, Float64Builder, Int64Builder, ListBuilder, StringBuilder,
};
use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Float32Array, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow_schema::{DataType as ArrowType, Field as ArrowField};
use eadem_offline::{EventTime, JoinKey, MemoryLedger, OfflineStore, ViewSpec, run_backfill};
use eadem_values::{DataType, ElementType, Field, KeyType, Value};

use crate::support::{NativeTransform, Outcome, at, backfill, source, stored_rows, view, write_parquet};

fn all_types() -> Vec<(&'static str, DataType)> {
    vec![
        ("flag", DataType::Boolean),
        ("count", DataType::Int64),
        ("single", DataType::Float32),
        ("double", DataType::Float64),
        ("text", DataType::Utf8),
        ("bytes", DataType::Binary),
        ("seen", DataType::Timestamp),
        ("shape", DataType::Vector(3)),
        ("counts", DataType::List(ElementType::Int64)),
        ("weights", DataType::List(ElementType::Float64)),
        ("words", DataType::List(ElementType::Utf8)),
    ]
}

fn item(data_type: ArrowType) -> ArrowField {
    ArrowField::new("item", data_type, false)
}

/// Three rows: usual values, nulls everywhere, and values at the edge of their types.
fn source_rows() -> RecordBatch {
    let mut shape = FixedSizeListBuilder::new(Float32Builder::new(), 3).with_field(item(ArrowType::Float32));
    for (numbers, valid) in [([1.5, -2.0, 0.25], true), ([0.0; 3], false), ([f32::MIN, -0.0, f32::MAX], true)] {
        shape.values().append_slice(&numbers);
        shape.append(valid);
    }
    let mut counts = ListBuilder::new(Int64Builder::new()).with_field(item(ArrowType::Int64));
    let mut weights = ListBuilder::new(Float64Builder::new()).with_field(item(ArrowType::Float64));
    let mut words = ListBuilder::new(StringBuilder::new()).with_field(item(ArrowType::Utf8));
    counts.append_value([Some(1), Some(2)]);
    weights.append_value([Some(0.5)]);
    words.append_value([Some("a"), Some(""), Some("ü")]);
    counts.append_null();
    weights.append_null();
    words.append_null();
    counts.append_value([Some(i64::MIN); 1]);
    weights.append_value([None; 0]);
    words.append_value([None::<&str>; 0]);
    let columns: Vec<(&str, ArrayRef, bool)> = vec![
        ("number", Arc::new(Int64Array::from(vec![-7, 0, i64::MAX])), false),
        ("card", Arc::new(StringArray::from(vec!["a", "", "a,b"])), false),
        ("flag", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)])), true),
        ("count", Arc::new(Int64Array::from(vec![Some(5), None, Some(i64::MIN)])), true),
        ("single", Arc::new(Float32Array::from(vec![Some(0.1), None, Some(f32::MIN_POSITIVE)])), true),
        ("double", Arc::new(Float64Array::from(vec![Some(0.1), None, Some(-0.0)])), true),
        ("text", Arc::new(StringArray::from(vec![Some("x"), None, Some("")])), true),
        ("bytes", Arc::new(BinaryArray::from(vec![Some(&[0_u8, 255][..]), None, Some(&[])])), true),
        ("seen", Arc::new(TimestampMicrosecondArray::from(vec![Some(-1), None, Some(1)]).with_timezone("UTC")), true),
        ("shape", Arc::new(shape.finish()), true),
        ("counts", Arc::new(counts.finish()), true),
        ("weights", Arc::new(weights.finish()), true),
        ("words", Arc::new(words.finish()), true),
    ];
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

fn echo(folder: &std::path::Path) -> ViewSpec {
    let inputs = all_types().into_iter().map(|(name, data_type)| Field::new(name, data_type, true)).collect();
    let outputs =
        all_types().into_iter().map(|(name, data_type)| Field::new(format!("{name}_out"), data_type, true)).collect();
    let transform = NativeTransform::shared("echo", true, inputs, outputs, |input| Outcome::Row(input.to_vec()));
    let mut spec = source("everything", folder);
    spec.event_time = EventTime::Literal(at("2023-05-01T00:00:00Z"));
    let mut view = view("everything", spec, transform);
    view.keys.insert(0, JoinKey { name: "number".into(), key_type: KeyType::Int64, column: "number".into() });
    view
}

fn expected() -> Vec<(&'static str, Vec<Value>)> {
    let usual = vec![
        Value::Boolean(true),
        Value::Int64(5),
        Value::Float32(0.1),
        Value::Float64(0.1),
        Value::Utf8("x".into()),
        Value::Binary(vec![0, 255]),
        Value::Timestamp(-1),
        Value::Vector(vec![1.5, -2.0, 0.25]),
        Value::ListInt64(vec![1, 2]),
        Value::ListFloat64(vec![0.5]),
        Value::ListUtf8(vec!["a".into(), String::new(), "ü".into()]),
    ];
    let edges = vec![
        Value::Boolean(false),
        Value::Int64(i64::MIN),
        Value::Float32(f32::MIN_POSITIVE),
        Value::Float64(-0.0),
        Value::Utf8(String::new()),
        Value::Binary(vec![]),
        Value::Timestamp(1),
        Value::Vector(vec![f32::MIN, -0.0, f32::MAX]),
        Value::ListInt64(vec![i64::MIN]),
        Value::ListFloat64(vec![]),
        Value::ListUtf8(vec![]),
    ];
    vec![("-7,a", usual), ("0,", vec![Value::Null; 11]), ("9223372036854775807,a%2Cb", edges)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_comes_back_from_a_table_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(&folder.path().join("in/e.parquet"), &source_rows(), 2);
    let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
    let view = echo(&folder.path().join("in"));
    run_backfill(backfill("job", &view, &store, Arc::new(MemoryLedger::default()))).await.unwrap();
    let rows = stored_rows(&store, &view).await;
    let expected = expected();
    assert_eq!(rows.len(), expected.len());
    for (row, (key, values)) in rows.iter().zip(&expected) {
        assert_eq!(&row.key, key);
        for ((found, wanted), (name, _)) in row.values.iter().zip(values).zip(all_types()) {
            assert!(found.bits_eq(wanted), "{key}, {name}: {found:?}, not {wanted:?}");
        }
    }
}

/// Tables are read by others, and by later versions of this program: their schema does not change by accident.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_schema_of_a_table_is_the_one_that_was_agreed() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(&folder.path().join("in/e.parquet"), &source_rows(), 2);
    let store = OfflineStore::open(folder.path().join("out").to_str().unwrap()).unwrap();
    let view = echo(&folder.path().join("in"));
    run_backfill(backfill("job", &view, &store, Arc::new(MemoryLedger::default()))).await.unwrap();
    let log = folder.path().join("out/views/everything/v1/_delta_log/00000000000000000000.json");
    let log = std::fs::read_to_string(log).unwrap();
    let actions: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let metadata = actions.iter().map(|action| &action["metaData"]).find(|metadata| !metadata.is_null()).unwrap();
    let schema: serde_json::Value = serde_json::from_str(metadata["schemaString"].as_str().unwrap()).unwrap();
    let show = |data_type: &serde_json::Value| match data_type["elementType"].as_str() {
        Some(element) => format!("array<{element}>, null elements: {}", data_type["containsNull"]),
        None => data_type.as_str().unwrap().to_owned(),
    };
    let fields: Vec<String> = schema["fields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|field| format!("{} {} {}", field["name"].as_str().unwrap(), show(&field["type"]), field["nullable"]))
        .collect();
    assert_eq!(
        fields,
        [
            "number long false",
            "card string false",
            "flag_out boolean true",
            "count_out long true",
            "single_out float true",
            "double_out double true",
            "text_out string true",
            "bytes_out binary true",
            "seen_out timestamp true",
            "shape_out array<float>, null elements: false true",
            "counts_out array<long>, null elements: false true",
            "weights_out array<double>, null elements: false true",
            "words_out array<string>, null elements: false true",
            "event_time timestamp false",
            "known_at timestamp false",
            "_tie binary false",
            "_lane string false",
            "_seq long false",
            "_error string true",
            "event_date date true",
        ]
    );
    assert_eq!(metadata["partitionColumns"], serde_json::json!(["event_date"]));
    assert_eq!(metadata["configuration"]["eadem.view"], "everything@1");
    assert_eq!(metadata["configuration"]["eadem.viewDigest"], "digest of everything");
}
