//! Many rows in one piece of memory, as a load holds them: keys and bodies back to back, and where each row stands.

use std::cmp::Ordering;

use super::keys;
use crate::Row;

/// What a row takes beside its bytes while it is sorted, about.
const ROW_OVERHEAD_BYTES: usize = 48;

/// Encoded rows. An allocation for each of them would cost more than encoding it does.
#[derive(Debug, Default)]
pub(super) struct PackedRows {
    bytes: Vec<u8>,
    places: Vec<Place>,
}

/// Where a row's key begins, its body behind it.
#[derive(Debug, Clone, Copy)]
struct Place {
    start: usize,
    // Both are bounded when rows come in.
    key_bytes: u32,
    body_bytes: u32,
}

impl PackedRows {
    /// Encodes a row behind the others.
    pub(super) fn push_row(&mut self, row: &Row) {
        let start = self.bytes.len();
        keys::append_row_key(&mut self.bytes, &row.key, &row.order);
        let key_end = self.bytes.len();
        row.body.encode_into(&mut self.bytes);
        self.places.push(Place {
            start,
            key_bytes: (key_end - start) as u32,
            body_bytes: (self.bytes.len() - key_end) as u32,
        });
    }

    /// Puts an encoded row behind the others.
    pub(super) fn push(&mut self, key: &[u8], body: &[u8]) {
        let place = Place { start: self.bytes.len(), key_bytes: key.len() as u32, body_bytes: body.len() as u32 };
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(body);
        self.places.push(place);
    }

    /// Puts all rows of another behind its own.
    pub(super) fn append(&mut self, others: Self) {
        if self.is_empty() {
            *self = others;
            return;
        }
        others.iter().for_each(|(key, body)| self.push(key, body));
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The rows' own bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The memory that they take, that of sorting them included.
    pub(super) fn memory_bytes(&self) -> usize {
        self.bytes.len() + self.places.len() * ROW_OVERHEAD_BYTES
    }

    /// Leaves only these rows, by their numbers, without moving a byte.
    pub(super) fn select(&mut self, rows: &[usize]) {
        self.places = rows.iter().map(|row| self.places[*row]).collect();
    }

    /// The memory that the rows would take alone.
    pub(super) fn selected_bytes(&self) -> usize {
        let bytes = |place: &Place| place.key_bytes as usize + place.body_bytes as usize + ROW_OVERHEAD_BYTES;
        self.places.iter().map(bytes).sum()
    }

    /// The rows without what was left out between them.
    pub(super) fn compacted(&self) -> Self {
        let mut rows = Self::default();
        self.iter().for_each(|(key, body)| rows.push(key, body));
        rows
    }

    /// One row's key and body.
    pub(super) fn get(&self, row: usize) -> (&[u8], &[u8]) {
        let place = &self.places[row];
        (self.key(place), self.body(place))
    }

    /// Keys and bodies, in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        (0..self.places.len()).map(|row| self.get(row))
    }

    fn key(&self, place: &Place) -> &[u8] {
        &self.bytes[place.start..place.start + place.key_bytes as usize]
    }

    fn body(&self, place: &Place) -> &[u8] {
        let start = place.start + place.key_bytes as usize;
        &self.bytes[start..start + place.body_bytes as usize]
    }

    /// Puts the rows into the order of their keys; equal ones in any order.
    ///
    /// Keys mostly begin alike. Comparing the eight bytes behind what all have in common decides nearly always, and stays in
    /// the processor's cache, where the keys themselves do not.
    pub(super) fn sort(&mut self) {
        let in_common = self.bytes_in_common();
        let mut order: Vec<(u64, Place)> =
            self.places.iter().map(|place| (telling_bytes(self.key(place), in_common), *place)).collect();
        let compare = |a: &(u64, Place), b: &(u64, Place)| match a.0.cmp(&b.0) {
            Ordering::Equal => self.key(&a.1).cmp(self.key(&b.1)),
            decided => decided,
        };
        order.sort_unstable_by(compare);
        self.places = order.into_iter().map(|(_, place)| place).collect();
    }

    /// How many bytes all keys begin with.
    fn bytes_in_common(&self) -> usize {
        let Some(first) = self.places.first().map(|place| self.key(place)) else { return 0 };
        let mut in_common = first.len();
        for place in &self.places {
            let key = self.key(place);
            let alike = first[..in_common].iter().zip(key).take_while(|(a, b)| a == b).count();
            in_common = in_common.min(alike);
        }
        in_common
    }
}

/// The eight bytes of a key behind its first `skipped`, zeros behind its end.
fn telling_bytes(key: &[u8], skipped: usize) -> u64 {
    let rest = key.get(skipped..).unwrap_or_default();
    let mut bytes = [0; 8];
    let there = rest.len().min(bytes.len());
    bytes[..there].copy_from_slice(&rest[..there]);
    u64::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn packed(keys: &[&[u8]]) -> PackedRows {
        let mut rows = PackedRows::default();
        for (number, key) in keys.iter().enumerate() {
            rows.push(key, &[number as u8]);
        }
        rows
    }

    #[test]
    fn rows_are_sorted_by_all_bytes_of_their_keys() {
        // Alike up to and beyond the eight bytes that are compared first, of several lengths, with and without zeros.
        let keys: Vec<&[u8]> = vec![
            b"common 12345678 b",
            b"common 12345678 a",
            b"common",
            b"common ",
            b"common 1\0",
            b"common 1",
            b"common 1\0\0",
            b"common 9",
            b"common 12345678",
            b"common 0",
        ];
        let mut expected: Vec<&[u8]> = keys.clone();
        expected.sort_unstable();
        for turns in 0..keys.len() {
            let mut turned = keys.clone();
            turned.rotate_left(turns);
            let mut rows = packed(&turned);
            rows.sort();
            let sorted: Vec<&[u8]> = rows.iter().map(|(key, _)| key).collect();
            assert_eq!(sorted, expected);
            // Each kept its body.
            assert!(rows.iter().all(|(key, body)| turned[usize::from(body[0])] == key));
        }
    }

    #[test]
    fn rows_that_are_selected_are_all_that_is_left() {
        let mut rows = packed(&[b"a", b"b", b"c", b"d"]);
        let whole = rows.selected_bytes();
        rows.select(&[1, 3]);
        assert_eq!(rows.selected_bytes() * 2, whole);
        let compacted = rows.compacted();
        assert_eq!(compacted.bytes(), 4);
        assert!(rows.iter().eq(compacted.iter()) && rows.iter().eq([(&b"b"[..], &[1][..]), (b"d", &[3])]));
    }

    #[test]
    fn nothing_in_common_and_nothing_at_all_are_sorted_too() {
        let mut rows = packed(&[b"b", b"", b"a", b"\xff"]);
        rows.sort();
        assert_eq!(rows.iter().map(|(key, _)| key).collect::<Vec<_>>(), [&b""[..], b"a", b"b", b"\xff"]);
        let mut none = PackedRows::default();
        none.sort();
        assert!(none.is_empty());
    }
}
