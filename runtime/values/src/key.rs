//! Entity keys: one or more join keys, in declared order.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use crate::encoding::{TAG_INT64, TAG_UTF8};

/// The type of a join key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum KeyType {
    Utf8,
    Int64,
}

/// The value of one join key. Never null.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum KeyValue {
    Utf8(String),
    Int64(i64),
}

/// The join keys of one entity, in declared order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntityKey(pub Vec<KeyValue>);

/// Why a key could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Another number of keys than declared.
    #[error("expected {expected} ({names}), found {found}; separate composite keys by commas, in that order")]
    Count {
        /// How many keys are declared.
        expected: usize,
        /// Their names.
        names: String,
        /// How many were given.
        found: usize,
    },
    /// Not an integer.
    #[error("key `{name}` must be an int64, found `{found}`")]
    NotAnInteger {
        /// The key's name.
        name: String,
        /// What was given.
        found: String,
    },
    /// Of another JSON type, or null.
    #[error("key `{name}` must be {expected}, found {found}")]
    WrongJson {
        /// The key's name.
        name: String,
        /// The declared type.
        expected: KeyType,
        /// The JSON given.
        found: String,
    },
    /// Percent-encoded bytes that are not UTF-8.
    #[error("key `{name}` is not UTF-8 after percent-decoding")]
    NotUtf8 {
        /// The key's name.
        name: String,
    },
    /// Encoded bytes that are no key.
    #[error("encoded entity key is damaged")]
    Damaged,
}

/// What a path segment may not carry unencoded, and the comma, which separates keys.
const PATH_RESERVED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b',')
    .add(b'/')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}')
    .add(b'&')
    .add(b'+')
    .add(b'=');

impl KeyValue {
    /// A key of this type from JSON: a string for utf8, an integer for int64.
    ///
    /// # Errors
    /// Any other JSON, null included.
    pub fn from_json(name: &str, key_type: KeyType, json: &serde_json::Value) -> Result<Self, KeyError> {
        let wrong = || KeyError::WrongJson { name: name.to_owned(), expected: key_type, found: json.to_string() };
        match key_type {
            KeyType::Utf8 => json.as_str().map(|text| Self::Utf8(text.to_owned())).ok_or_else(wrong),
            KeyType::Int64 => json.as_i64().map(Self::Int64).ok_or_else(wrong),
        }
    }

    /// The key as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Utf8(text) => text.as_str().into(),
            Self::Int64(number) => (*number).into(),
        }
    }

    /// A key of this type from text.
    ///
    /// # Errors
    /// Text that is no int64 where one is declared.
    pub fn from_text(name: &str, key_type: KeyType, text: &str) -> Result<Self, KeyError> {
        match key_type {
            KeyType::Utf8 => Ok(Self::Utf8(text.to_owned())),
            KeyType::Int64 => text
                .parse()
                .map(Self::Int64)
                .map_err(|_| KeyError::NotAnInteger { name: name.to_owned(), found: text.to_owned() }),
        }
    }

    /// Its type.
    pub fn key_type(&self) -> KeyType {
        match self {
            Self::Utf8(_) => KeyType::Utf8,
            Self::Int64(_) => KeyType::Int64,
        }
    }
}

impl EntityKey {
    /// The canonical encoding: per key its tag and value, as in the row encoding. Among keys of one entity (equal numbers
    /// and types of join keys) no encoding is a prefix of another, so it can be followed by anything.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len() * 16);
        self.encode_into(&mut bytes);
        bytes
    }

    /// Appends [`EntityKey::encode`].
    pub fn encode_into(&self, bytes: &mut Vec<u8>) {
        for key in &self.0 {
            match key {
                KeyValue::Utf8(text) => encode_utf8_key(text, bytes),
                KeyValue::Int64(number) => encode_int64_key(*number, bytes),
            }
        }
    }

    /// The key that [`EntityKey::encode`] wrote.
    ///
    /// # Errors
    /// Bytes that it did not write.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, KeyError> {
        let mut keys = Vec::new();
        while let Some((tag, rest)) = bytes.split_first() {
            match *tag {
                TAG_UTF8 => {
                    let (length, rest) = rest.split_first_chunk::<4>().ok_or(KeyError::Damaged)?;
                    let length = u32::from_le_bytes(*length) as usize;
                    let (text, rest) = rest.split_at_checked(length).ok_or(KeyError::Damaged)?;
                    let text = std::str::from_utf8(text).map_err(|_| KeyError::Damaged)?;
                    keys.push(KeyValue::Utf8(text.to_owned()));
                    bytes = rest;
                }
                TAG_INT64 => {
                    let (number, rest) = rest.split_first_chunk::<8>().ok_or(KeyError::Damaged)?;
                    keys.push(KeyValue::Int64(i64::from_le_bytes(*number)));
                    bytes = rest;
                }
                _ => return Err(KeyError::Damaged),
            }
        }
        Ok(Self(keys))
    }

    /// The key that a path segment names: keys in declared order, percent-encoded, joined by commas.
    ///
    /// # Errors
    /// Another number of keys, text that is no int64, bytes that are not UTF-8.
    pub fn parse_path(keys: &[(String, KeyType)], text: &str) -> Result<Self, KeyError> {
        let parts: Vec<&str> = if keys.len() == 1 { vec![text] } else { text.split(',').collect() };
        if parts.len() != keys.len() {
            let names = keys.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(KeyError::Count { expected: keys.len(), names, found: parts.len() });
        }
        let decode = |((name, key_type), part): (&(String, KeyType), &str)| {
            let text = percent_decode_str(part).decode_utf8().map_err(|_| KeyError::NotUtf8 { name: name.clone() })?;
            KeyValue::from_text(name, *key_type, &text)
        };
        keys.iter().zip(parts).map(decode).collect::<Result<_, _>>().map(Self)
    }

    /// The path segment that [`EntityKey::parse_path`] reads.
    pub fn to_path(&self) -> String {
        let encode = |key: &KeyValue| match key {
            KeyValue::Utf8(text) => utf8_percent_encode(text, PATH_RESERVED).to_string(),
            KeyValue::Int64(number) => number.to_string(),
        };
        self.0.iter().map(encode).collect::<Vec<_>>().join(",")
    }
}

/// Appends one utf8 join key in the canonical encoding.
pub(crate) fn encode_utf8_key(text: &str, bytes: &mut Vec<u8>) {
    bytes.push(TAG_UTF8);
    // A key longer than 4 GiB cannot come in through any limit; the length is exact below that.
    bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

/// Appends one int64 join key in the canonical encoding.
pub(crate) fn encode_int64_key(number: i64, bytes: &mut Vec<u8>) {
    bytes.push(TAG_INT64);
    bytes.extend_from_slice(&number.to_le_bytes());
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Utf8 => "utf8",
            Self::Int64 => "int64",
        })
    }
}

impl FromStr for KeyType {
    type Err = crate::UnknownDataType;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "utf8" => Ok(Self::Utf8),
            "int64" => Ok(Self::Int64),
            _ => Err(crate::UnknownDataType(text.to_owned())),
        }
    }
}

impl fmt::Display for EntityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_path())
    }
}
