//! Rows as a store sees them: keys, order and bytes.

use std::cmp::Ordering;
use std::fmt;

use bytes::{BufMut, Bytes};
use eadem_semantics::RowOrder;
use eadem_values::EntityKey;

use crate::StoreError;

/// The longest encoded entity key that a store takes.
pub const KEY_BYTES_MAX: usize = 16 * 1024;

/// The largest packed row that a store takes: room for a value of 1 MiB and what stands beside it.
pub const VALUE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How much of a key stands in a message.
const SHOWN_CHARS_MAX: usize = 80;

/// An entity's join keys in their canonical encoding. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyBytes(Bytes);

impl KeyBytes {
    /// Key bytes that were encoded elsewhere.
    pub fn new(encoded: impl Into<Bytes>) -> Self {
        Self(encoded.into())
    }

    /// The encoding.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// The keys themselves.
    ///
    /// # Errors
    /// Bytes that are no encoded key.
    pub fn decode(&self) -> Result<EntityKey, eadem_values::KeyError> {
        EntityKey::decode(&self.0)
    }

    /// The keys as a message names them: their beginning is enough to find the row.
    pub(crate) fn shown(&self) -> String {
        let whole = format!("{self:?}");
        match whole.char_indices().nth(SHOWN_CHARS_MAX) {
            Some((end, _)) => format!("{}…", &whole[..end]),
            None => whole,
        }
    }
}

impl From<&EntityKey> for KeyBytes {
    fn from(key: &EntityKey) -> Self {
        Self(key.encode().into())
    }
}

impl fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.decode() {
            Ok(key) => write!(f, "{key}"),
            Err(_) => write!(f, "{:?}", self.0),
        }
    }
}

/// One stored row of a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Whose it is.
    pub key: KeyBytes,
    /// Where it stands among the rows of its entity.
    pub order: RowOrder,
    /// What it says.
    pub body: RowBody,
}

/// What a row says, as bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowBody {
    /// The packed values in the canonical row encoding; opaque here. Empty for a failed row.
    pub values: Bytes,
    /// Why the transform failed on this row; `None` unless the row's status is `error`.
    pub error: Option<String>,
    /// Where the row came from, if the writer wants it kept.
    pub origin: Option<Origin>,
}

/// The lane that a row came through and its place there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The lane's name.
    pub lane: String,
    /// Offset, log position or row number.
    pub sequence: i64,
}

impl RowBody {
    /// A row of values, with no origin kept.
    pub fn of_values(values: impl Into<Bytes>) -> Self {
        Self { values: values.into(), error: None, origin: None }
    }

    /// A row on which the transform failed.
    pub fn of_error(message: impl Into<String>) -> Self {
        Self { values: Bytes::new(), error: Some(message.into()), origin: None }
    }

    /// Which of two bodies stays when two rows agree in key and order. Equal inputs give equal outputs, so they should
    /// differ at most in origin; the rule only has to be the same for every arrival order. Values beat errors.
    pub fn merge_order(&self, other: &Self) -> Ordering {
        other
            .error
            .is_some()
            .cmp(&self.error.is_some())
            .then_with(|| self.values.cmp(&other.values))
            .then_with(|| self.error.cmp(&other.error))
            .then_with(|| self.origin.cmp(&other.origin))
    }
}

impl Row {
    /// Refuses what no store can hold, before anything of a batch is written.
    pub(crate) fn check_limits(&self) -> Result<(), StoreError> {
        let key_bytes = self.key.as_slice().len();
        if key_bytes > KEY_BYTES_MAX {
            return Err(StoreError::KeyTooLong { entity: self.key.shown(), bytes: key_bytes });
        }
        let bytes = self.body.encoded_bytes();
        if bytes > VALUE_BYTES_MAX {
            return Err(StoreError::ValueTooLarge { entity: self.key.shown(), bytes });
        }
        Ok(())
    }
}

const HAS_ERROR: u8 = 1;
const HAS_ORIGIN: u8 = 2;

impl RowBody {
    pub(crate) fn encoded_bytes(&self) -> usize {
        let error = self.error.as_ref().map_or(0, |message| 4 + message.len());
        let origin = self.origin.as_ref().map_or(0, |origin| 4 + origin.lane.len() + 8);
        1 + error + origin + self.values.len()
    }

    /// Flags; error and origin where there are any, each length first, little-endian; then the values.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.encoded_bytes());
        self.encode_into(&mut bytes);
        bytes
    }

    /// Appends [`RowBody::encode`].
    pub(crate) fn encode_into(&self, bytes: &mut Vec<u8>) {
        let error_flag = if self.error.is_some() { HAS_ERROR } else { 0 };
        let origin_flag = if self.origin.is_some() { HAS_ORIGIN } else { 0 };
        bytes.put_u8(error_flag | origin_flag);
        if let Some(message) = &self.error {
            put_text(bytes, message);
        }
        if let Some(origin) = &self.origin {
            put_text(bytes, &origin.lane);
            bytes.put_i64_le(origin.sequence);
        }
        bytes.put_slice(&self.values);
    }

    /// What [`RowBody::encode`] wrote; `None` if it did not write these bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (flags, mut rest) = bytes.split_first()?;
        if flags & !(HAS_ERROR | HAS_ORIGIN) != 0 {
            return None;
        }
        let error = if flags & HAS_ERROR != 0 { Some(take_text(&mut rest)?) } else { None };
        let origin = if flags & HAS_ORIGIN != 0 {
            let lane = take_text(&mut rest)?;
            let (sequence, after) = rest.split_first_chunk::<8>()?;
            rest = after;
            Some(Origin { lane, sequence: i64::from_le_bytes(*sequence) })
        } else {
            None
        };
        Some(Self { values: Bytes::copy_from_slice(rest), error, origin })
    }
}

// Lengths fit: `Row::check_limits` bounds the whole body far below 4 GiB before anything is encoded.
fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.put_u32_le(text.len() as u32);
    bytes.put_slice(text.as_bytes());
}

fn take_text(rest: &mut &[u8]) -> Option<String> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let (text, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *rest = after;
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn bodies() -> Vec<RowBody> {
        let origin = Some(Origin { lane: "topic/3".to_owned(), sequence: -7 });
        vec![
            RowBody::of_values(&b""[..]),
            RowBody::of_values(&b"\x00\xffvalues"[..]),
            RowBody::of_error(""),
            RowBody::of_error("row 3: wind ≥ limit"),
            RowBody { values: Bytes::from_static(b"v"), error: None, origin: origin.clone() },
            RowBody { values: Bytes::new(), error: Some("trap".to_owned()), origin },
        ]
    }

    #[test]
    fn bodies_come_back_as_they_were() {
        for body in bodies() {
            let encoded = body.encode();
            assert_eq!(encoded.len(), body.encoded_bytes());
            assert_eq!(RowBody::decode(&encoded).unwrap(), body);
        }
    }

    #[test]
    fn damaged_bodies_are_refused() {
        assert_eq!(RowBody::decode(b""), None);
        assert_eq!(RowBody::decode(b"\x04"), None);
        let encoded = bodies()[5].encode();
        // Cut anywhere before its last field ends.
        for cut in 1..encoded.len() {
            assert_eq!(RowBody::decode(&encoded[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn the_merge_order_is_total_and_prefers_values() {
        let bodies = bodies();
        for a in &bodies {
            for b in &bodies {
                assert_eq!(a.merge_order(b), b.merge_order(a).reverse());
                assert_eq!(a.merge_order(b).is_eq(), a == b);
            }
        }
        assert!(bodies[0].merge_order(&bodies[3]).is_gt());
    }
}
