//! Entity keys in paths, in JSON and as bytes.

use eadem_values::{EntityKey, KeyError, KeyType, KeyValue};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;

use crate::strategies::{any_text, cases};

fn any_key() -> impl Strategy<Value = KeyValue> {
    let awkward =
        prop::sample::select(vec!["", ",", "/", "a/b", "%2F", "%", "a b", "+", "?#&=", "..", "É", "\0", "日本"]);
    prop_oneof![
        any_text().prop_map(KeyValue::Utf8),
        awkward.prop_map(|text| KeyValue::Utf8(text.to_owned())),
        any::<i64>().prop_map(KeyValue::Int64),
    ]
}

fn declared(key: &EntityKey) -> Vec<(String, KeyType)> {
    key.0.iter().enumerate().map(|(at, value)| (format!("key_{at}"), value.key_type())).collect()
}

fn one(key_type: KeyType) -> Vec<(String, KeyType)> {
    vec![("id".to_owned(), key_type)]
}

fn text(text: &str) -> KeyValue {
    KeyValue::Utf8(text.to_owned())
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_path_names_the_key_it_was_made_of(keys in vec(any_key(), 1..4)) {
        let key = EntityKey(keys);
        prop_assert_eq!(EntityKey::parse_path(&declared(&key), &key.to_path()), Ok(key));
    }

    #[test]
    fn a_path_is_one_segment(keys in vec(any_key(), 1..4)) {
        let path = EntityKey(keys).to_path();
        prop_assert!(path.chars().all(|c| c.is_ascii_graphic() && !"/?#\"<>&+= ".contains(c)), "{}", path);
    }

    #[test]
    fn bytes_name_the_key_they_were_made_of(keys in vec(any_key(), 0..4)) {
        let key = EntityKey(keys);
        prop_assert_eq!(EntityKey::decode(&key.encode()), Ok(key));
    }

    #[test]
    fn no_key_is_a_prefix_of_another_of_its_entity(
        (a, b) in vec(any::<bool>(), 1..4).prop_flat_map(|is_text| {
            let key = |is_text: &bool| if *is_text {
                any_text().prop_map(KeyValue::Utf8).boxed()
            } else {
                any::<i64>().prop_map(KeyValue::Int64).boxed()
            };
            let of_types: Vec<_> = is_text.iter().map(key).collect();
            (of_types.clone(), of_types)
        }),
    ) {
        let (a, b) = (EntityKey(a), EntityKey(b));
        prop_assert_eq!(a.encode().starts_with(&b.encode()), a == b);
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_are_a_key(bytes in vec(prop_oneof![Just(2_u8), Just(5_u8), 0_u8..4, any::<u8>()], 0..24)) {
        if let Ok(key) = EntityKey::decode(&bytes) {
            prop_assert_eq!(key.encode(), bytes);
        }
    }

    #[test]
    fn arbitrary_paths_never_panic(path in ".{0,24}") {
        for keys in [one(KeyType::Utf8), one(KeyType::Int64), [one(KeyType::Utf8), one(KeyType::Int64)].concat()] {
            if let Ok(key) = EntityKey::parse_path(&keys, &path) {
                prop_assert_eq!(key.0.len(), keys.len());
            }
        }
    }

    #[test]
    fn json_names_the_key_it_was_made_of(key in any_key()) {
        prop_assert_eq!(KeyValue::from_json("id", key.key_type(), &key.to_json()), Ok(key));
    }
}

#[test]
fn a_single_key_may_leave_its_commas() {
    assert_eq!(EntityKey::parse_path(&one(KeyType::Utf8), "a,b"), Ok(EntityKey(vec![text("a,b")])));
}

#[test]
fn composite_keys_are_separated_by_commas() {
    let keys = [("origin".to_owned(), KeyType::Utf8), ("flight".to_owned(), KeyType::Int64)];
    let key = EntityKey(vec![text("E,R/1"), KeyValue::Int64(-12)]);
    assert_eq!(key.to_path(), "E%2CR%2F1,-12");
    assert_eq!(key.to_string(), key.to_path());
    assert_eq!(EntityKey::parse_path(&keys, "E%2cR%2f1,-12"), Ok(key));
}

#[test]
fn errors_name_the_key_and_what_was_given() {
    let pair = [("origin".to_owned(), KeyType::Utf8), ("flight".to_owned(), KeyType::Int64)];
    for (keys, path, expected) in [
        (&pair[..], "EWR", "expected 2 (origin, flight), found 1"),
        (&pair[..], "EWR,1,2", "expected 2 (origin, flight), found 3"),
        (&pair[..], "EWR,one", "key `flight` must be an int64, found `one`"),
        (&pair[..], "EWR,", "key `flight` must be an int64, found ``"),
        (&pair[..], "EWR,9223372036854775808", "must be an int64"),
        (&pair[..], "%ff,1", "key `origin` is not UTF-8 after percent-decoding"),
    ] {
        let message = EntityKey::parse_path(keys, path).unwrap_err().to_string();
        assert!(message.contains(expected), "{path}: {message}");
    }
}

#[test]
fn json_of_another_type_is_refused() {
    for (key_type, json) in [
        (KeyType::Utf8, json!(1)),
        (KeyType::Utf8, json!(null)),
        (KeyType::Int64, json!("1")),
        (KeyType::Int64, json!(1.0)),
        (KeyType::Int64, json!(null)),
        (KeyType::Int64, json!(u64::MAX)),
    ] {
        let error = KeyValue::from_json("id", key_type, &json).unwrap_err();
        assert!(matches!(error, KeyError::WrongJson { .. }), "{error:?}");
        assert!(error.to_string().starts_with(&format!("key `id` must be {key_type}")), "{error}");
    }
}

#[test]
fn damaged_bytes_are_refused() {
    for bytes in [&[2_u8, 0][..], &[5, 1, 0, 0, 0], &[5, 1, 0, 0, 0, 0xff], &[5, 0, 0], &[1, 1], &[0]] {
        assert_eq!(EntityKey::decode(bytes), Err(KeyError::Damaged), "{bytes:?}");
    }
}

#[test]
fn key_types_have_names() {
    for key_type in [KeyType::Utf8, KeyType::Int64] {
        assert_eq!(key_type.to_string().parse(), Ok(key_type));
    }
    assert!("float64".parse::<KeyType>().is_err());
}
