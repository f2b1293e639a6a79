//! The tables of `docs/encoding.md`, which other languages are checked against. Encodings and digests there were computed by
//! a program that shares no code with this crate.

use eadem_values::{
    DataType, EntityKey, KeyType, KeyValue, TieDigest, Value, decode_row, encode_values, value_from_json, value_to_json,
};

const DOCUMENT: &str = include_str!("../../../../docs/encoding.md");

struct Example {
    data_type: DataType,
    json: String,
    encoding: String,
    tie: String,
}

fn examples() -> Vec<Example> {
    let section = DOCUMENT.split("## Examples").nth(1).expect("the page has a section of examples");
    let rows = section.lines().filter(|line| line.starts_with("| ") && line.contains('`'));
    rows.map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let code = |at: usize| cells[at].trim_matches('`').to_owned();
        Example { data_type: cells[0].parse().unwrap(), json: code(1), encoding: code(2), tie: code(3) }
    })
    .collect()
}

fn tie_hex(encoded: &[u8]) -> String {
    hex(TieDigest::of(encoded).as_bytes())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_example_of_the_document_holds() {
    let examples = examples();
    assert_eq!(examples.len(), 36, "the table of examples was not read as it stands");
    for Example { data_type, json, encoding, tie } in examples {
        let value = value_from_json(data_type, &serde_json::from_str(&json).unwrap()).unwrap();
        let encoded = encode_values(std::slice::from_ref(&value));
        assert_eq!(hex(&encoded), encoding, "encoding of {data_type} {json}");
        assert_eq!(tie_hex(&encoded), tie, "tie digest of {data_type} {json}");
        assert_eq!(serde_json::to_string(&value_to_json(&value)).unwrap(), json, "JSON of {data_type}");
        let decoded = decode_row(&[data_type], &encoded).unwrap();
        assert!(decoded[0].bits_eq(&value), "{decoded:?} for {data_type} {json}");
    }
}

#[test]
fn every_type_has_an_example() {
    let documented: Vec<DataType> = examples().iter().map(|example| example.data_type).collect();
    for data_type in crate::strategies::ALL_TYPES {
        let same_kind = |other: &DataType| std::mem::discriminant(other) == std::mem::discriminant(&data_type);
        assert!(documented.iter().any(same_kind), "{data_type} has no example");
    }
}

#[test]
fn the_row_of_twelve_columns_holds() {
    let row = [
        Value::Boolean(true),
        Value::Int64(149),
        Value::Float32(0.1),
        Value::Float64(-0.0),
        Value::Utf8("N14228".into()),
        Value::Binary(vec![0x00, 0xff]),
        Value::Timestamp(1_357_016_400_000_000),
        Value::Vector(vec![1.0, 2.5]),
        Value::ListInt64(vec![1, -1]),
        Value::ListFloat64(vec![0.1]),
        Value::ListUtf8(vec!["EWR".into(), "LGA".into()]),
        Value::Null,
    ];
    let block = DOCUMENT.split("```").nth(1).expect("the page has a block with the row");
    let documented: String = block.split_whitespace().collect();
    let encoded = encode_values(&row);
    assert_eq!(hex(&encoded), documented);
    assert_eq!(encoded.len(), 122);
    assert_eq!(tie_hex(&encoded), "a568be9ec6eeea85081d64e0104336a4");
}

/// XXH3 works differently for inputs up to 16, 128, 240 bytes and beyond; the examples are short.
#[test]
fn tie_digests_of_longer_rows_hold() {
    let integers = |count: i64| encode_values(&(0..count).map(Value::Int64).collect::<Vec<_>>());
    for (encoded, expected) in [
        (vec![], "99aa06d3014798d86001c324468d497f"),
        (integers(20), "8cff728b106051464976276698b0d027"),
        (integers(100), "72b79da96e277ad2a12c914db8ff6b77"),
    ] {
        assert_eq!(tie_hex(&encoded), expected);
        assert!(DOCUMENT.contains(expected), "{expected} is not documented");
    }
}

#[test]
fn documented_entity_keys_hold() {
    let text = |text: &str| KeyValue::Utf8(text.to_owned());
    for (key, encoding) in [
        (vec![text("N14228")], "05060000004e3134323238"),
        (vec![text("EWR"), KeyValue::Int64(-7)], "050300000045575202f9ffffffffffffff"),
    ] {
        assert_eq!(hex(&EntityKey(key).encode()), encoding);
        assert!(DOCUMENT.contains(encoding), "{encoding} is not documented");
    }
    for (key, path) in [
        (vec![text("N14228")], "N14228"),
        (vec![text("a,b/c ü%")], "a%2Cb%2Fc%20%C3%BC%25"),
        (vec![text("EWR"), KeyValue::Int64(-7)], "EWR,-7"),
    ] {
        let keys: Vec<(String, KeyType)> = key.iter().map(|value| ("key".to_owned(), value.key_type())).collect();
        assert_eq!(EntityKey(key.clone()).to_path(), path);
        assert_eq!(EntityKey::parse_path(&keys, path), Ok(EntityKey(key)));
        assert!(DOCUMENT.contains(&format!("`{path}`")), "{path} is not documented");
    }
}
