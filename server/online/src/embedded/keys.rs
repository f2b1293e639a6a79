//! The keys of stored rows: one entity's rows stand together, newest first.
//!
//! `length of the entity key (u16) · entity key · ¬event time · ¬known-at · ¬tie digest`, all big-endian, times with their
//! sign bit flipped, so that ascending bytes are descending [`RowOrder`]. The length makes the entity key's end certain
//! whatever its bytes, so distinct rows are distinct keys and one entity's range holds no other's.

use eadem_semantics::RowOrder;
use eadem_values::TieDigest;

use crate::KeyBytes;

const LENGTH_BYTES: usize = 2;
const ORDER_BYTES: usize = 8 + 8 + 16;

/// The key of one row.
pub(super) fn row_key(key: &KeyBytes, order: &RowOrder) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_row_key(&mut bytes, key, order);
    bytes
}

/// Replaces `bytes` by the key of one row.
pub(super) fn put_row_key(bytes: &mut Vec<u8>, key: &KeyBytes, order: &RowOrder) {
    bytes.clear();
    append_row_key(bytes, key, order);
}

/// Appends the key of one row.
pub(super) fn append_row_key(bytes: &mut Vec<u8>, key: &KeyBytes, order: &RowOrder) {
    bytes.reserve(LENGTH_BYTES + key.as_slice().len() + ORDER_BYTES);
    // `Row::check_limits` keeps keys below `KEY_BYTES_MAX`, and a longer one asked for finds nothing.
    bytes.extend_from_slice(&u16::try_from(key.as_slice().len()).unwrap_or(u16::MAX).to_be_bytes());
    bytes.extend_from_slice(key.as_slice());
    bytes.extend_from_slice(&descending(order.event_time_us));
    bytes.extend_from_slice(&descending(order.known_at_us));
    bytes.extend_from_slice(&(!u128::from_be_bytes(*order.tie.as_bytes())).to_be_bytes());
}

/// The first place in an entity's range where a row with event time ≤ `event_time_us` may stand.
pub(super) fn put_newest_at(bytes: &mut Vec<u8>, key: &KeyBytes, event_time_us: i64) {
    let tie = TieDigest::from_bytes([0xff; 16]);
    put_row_key(bytes, key, &RowOrder { event_time_us, known_at_us: i64::MAX, tie });
}

/// The last place in an entity's range.
pub(super) fn put_oldest(bytes: &mut Vec<u8>, key: &KeyBytes) {
    let tie = TieDigest::from_bytes([0; 16]);
    put_row_key(bytes, key, &RowOrder { event_time_us: i64::MIN, known_at_us: i64::MIN, tie });
}

/// The entity key's bytes and the order in a row key; `None` if it is none.
pub(super) fn parse_row_key(bytes: &[u8]) -> Option<(&[u8], RowOrder)> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>()?;
    let (key, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
    let (event_time, rest) = rest.split_first_chunk::<8>()?;
    let (known_at, tie) = rest.split_first_chunk::<8>()?;
    let tie: [u8; 16] = tie.try_into().ok()?;
    let order = RowOrder {
        event_time_us: ascending(*event_time),
        known_at_us: ascending(*known_at),
        tie: TieDigest::from_bytes((!u128::from_be_bytes(tie)).to_be_bytes()),
    };
    Some((key, order))
}

fn descending(time_us: i64) -> [u8; 8] {
    (!(time_us as u64 ^ (1 << 63))).to_be_bytes()
}

fn ascending(bytes: [u8; 8]) -> i64 {
    (!u64::from_be_bytes(bytes) ^ (1 << 63)) as i64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn orders() -> Vec<RowOrder> {
        let times = [i64::MIN, -1, 0, 1, 1_700_000_000_000_000, i64::MAX];
        let ties = [TieDigest::default(), TieDigest::from_bytes([7; 16]), TieDigest::from_bytes([0xff; 16])];
        let mut orders = Vec::new();
        for event_time_us in times {
            for known_at_us in times {
                orders.extend(ties.map(|tie| RowOrder { event_time_us, known_at_us, tie }));
            }
        }
        orders
    }

    #[test]
    fn keys_parse_back_and_sort_newest_first() {
        let key = KeyBytes::new(&b"\x01card"[..]);
        for a in orders() {
            let bytes = row_key(&key, &a);
            assert_eq!(parse_row_key(&bytes).unwrap(), (key.as_slice(), a));
            for b in orders() {
                assert_eq!(bytes.cmp(&row_key(&key, &b)), b.cmp(&a));
            }
        }
    }

    #[test]
    fn no_entity_reaches_into_the_range_of_another() {
        // Prefixes of one another, order bytes as keys, the empty key.
        let keys: Vec<KeyBytes> = [&b""[..], b"a", b"a\0", b"ab", b"a\xff", &[0xff; 40], &[0; 40], b"\0"]
            .into_iter()
            .map(|bytes| KeyBytes::new(bytes.to_vec()))
            .collect();
        for owner in &keys {
            let (mut first, mut last) = (Vec::new(), Vec::new());
            put_newest_at(&mut first, owner, i64::MAX);
            put_oldest(&mut last, owner);
            for key in &keys {
                for order in orders() {
                    let inside = (first.as_slice()..=last.as_slice()).contains(&row_key(key, &order).as_slice());
                    assert_eq!(inside, key == owner);
                }
            }
        }
    }

    #[test]
    fn damaged_keys_are_refused() {
        let bytes = row_key(&KeyBytes::new(&b"key"[..]), &orders()[0]);
        for cut in 0..bytes.len() {
            assert_eq!(parse_row_key(&bytes[..cut]), None);
        }
        assert_eq!(parse_row_key(&[bytes.as_slice(), &[0]].concat()), None);
    }
}
