//! Entities by their join keys: each distinct key of a spine gets a number, and every row of the history asks for its own.
//!
//! A history is far longer than a spine, so what counts is the look-up: a key of up to twelve bytes (most are) is compared
//! as one 128-bit number that lies in the hash table itself, so that a look-up costs one cache miss and no pointer.
//!
//! Histories mostly lie by key, so entities are numbered by key as well: then the entity of the next row is one of the next
//! few, which costs no look-up at all, and all that is kept for entities is walked through from one end to the other. Only
//! speed depends on it.

use std::hash::BuildHasher;

use arrow_array::builder::make_view;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, Int64Array, StringArray, StringViewArray, UInt32Array};
use arrow_ord::sort::{SortColumn, lexsort_to_indices};
use arrow_schema::DataType as ArrowType;
use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};

use crate::QueryError;

/// In place of a number: the key is not known, or a part of it is null.
pub(crate) const NO_ENTITY: u32 = u32::MAX;

/// Keys of at most this many bytes are kept as one number.
const INLINE_BYTES_MAX: usize = 12;

/// In place of a key that is longer. No inline key is this number: its lowest bytes are its length.
const NOT_INLINE: u128 = u128::MAX;

/// How many of the next entities are tried before a key is looked up.
const NEXT_ENTITIES: usize = 4;

/// Numbers of entities: in the order in which their keys were first seen, until they are numbered by key.
#[derive(Debug, Default)]
pub(crate) struct Entities {
    inline: HashTable<(u128, u32)>,
    /// The inline keys by number, once entities are numbered by key.
    ordered: Vec<u128>,
    /// Whether these ascend by [`rank`], and none is missing.
    is_ranked: bool,
    long: HashTable<LongKey>,
    long_bytes: Vec<u8>,
    hasher: DefaultHashBuilder,
}

/// What the entities nearby say of a key.
enum Near {
    Entity(u32),
    /// It would stand in this gap.
    Nobody(Gap),
    Unknown,
}

/// Two neighbours by their ranks, or what lies before the first or behind the last: between them there is nobody.
#[derive(Debug, Clone, Copy)]
struct Gap {
    behind: u128,
    before: u128,
}

impl Gap {
    const NONE: Self = Self { behind: 0, before: 0 };

    fn has(self, rank: u128) -> bool {
        self.behind < rank && rank < self.before
    }
}

/// Orders inline keys as their bytes do.
fn rank(key: u128) -> u128 {
    let length = key & u128::from(u32::MAX);
    (key >> 32).swap_bytes() | length
}

#[derive(Debug, Clone, Copy)]
struct LongKey {
    from: usize,
    bytes: u32,
    entity: u32,
}

impl Entities {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.inline.len() + self.long.len()
    }

    /// The entity of every row, new ones added. A row with a null in its key has [`NO_ENTITY`].
    ///
    /// # Errors
    /// More rows than 32 bits count.
    pub(crate) fn add(&mut self, keys: &JoinKeys<'_>, rows: usize) -> Result<Vec<u32>, QueryError> {
        if rows >= NO_ENTITY as usize {
            return Err(QueryError::Shape(format!("a spine of {rows} rows is too large for one join; split it")));
        }
        let mut entities = Vec::with_capacity(rows);
        keys.each(rows, |key| {
            entities.push(match key {
                Key::Null => NO_ENTITY,
                Key::Inline(key) => self.add_inline(key),
                Key::Long(bytes) => self.add_long(bytes),
            });
        });
        Ok(entities)
    }

    /// The entity of every row, or [`NO_ENTITY`], into `entities`.
    pub(crate) fn look_up(&self, keys: &JoinKeys<'_>, rows: usize, entities: &mut Vec<u32>) {
        entities.clear();
        entities.reserve(rows);
        let mut previous = (NOT_INLINE, NO_ENTITY);
        let mut next = 0;
        // Of a history in the order of its keys and a spine of few entities most keys lie in one gap with those before.
        let mut gap = Gap::NONE;
        keys.each(rows, |key| {
            entities.push(match key {
                Key::Null => NO_ENTITY,
                Key::Inline(key) if key == previous.0 => previous.1,
                Key::Inline(key) if gap.has(rank(key)) => NO_ENTITY,
                Key::Inline(key) => {
                    let entity = match self.find_near(key, next) {
                        Near::Entity(entity) => entity,
                        Near::Nobody(found) => {
                            gap = found;
                            NO_ENTITY
                        }
                        Near::Unknown => self.find_inline(key),
                    };
                    if entity != NO_ENTITY {
                        next = entity as usize + 1;
                    }
                    previous = (key, entity);
                    entity
                }
                Key::Long(bytes) => self.find_long(bytes),
            });
        });
    }

    /// Looks for the key among the entities from `next` on. Between two neighbours there is nobody.
    fn find_near(&self, key: u128, next: usize) -> Near {
        let near = self.ordered.get(next..).unwrap_or_default();
        let rank_of_key = rank(key);
        let last = next.checked_sub(1).and_then(|last| self.ordered.get(last));
        let mut behind = last.map_or(0, |last| rank(*last));
        let mut is_behind = self.is_ranked && (next == 0 || behind < rank_of_key);
        for (known, number) in near.iter().take(NEXT_ENTITIES).zip(next..) {
            if *known == key {
                return Near::Entity(number as u32);
            }
            let of_known = rank(*known);
            let is_before = rank_of_key < of_known;
            if is_before && is_behind {
                return Near::Nobody(Gap { behind, before: of_known });
            }
            is_behind &= !is_before;
            behind = of_known;
        }
        let is_behind_all = is_behind && near.len() <= NEXT_ENTITIES;
        if is_behind_all { Near::Nobody(Gap { behind, before: u128::MAX }) } else { Near::Unknown }
    }

    /// Numbers the entities anew, by key: texts by their bytes, numbers by their size. `keys` are those of the rows that have
    /// been added, `entity_of_row` what [`Entities::add`] gave for them, which is changed likewise.
    ///
    /// # Errors
    /// Keys that cannot be sorted.
    pub(crate) fn number_by_key(&mut self, keys: &[ArrayRef], entity_of_row: &mut [u32]) -> Result<(), QueryError> {
        let mut first_rows = vec![u32::MAX; self.len()];
        for (row, entity) in entity_of_row.iter().enumerate().rev().filter(|(_, entity)| **entity != NO_ENTITY) {
            first_rows[*entity as usize] = row as u32;
        }
        let first_rows = UInt32Array::from(first_rows);
        let columns = keys
            .iter()
            .map(|key| {
                let values = arrow_select::take::take(key.as_ref(), &first_rows, None)?;
                Ok(SortColumn { values, options: None })
            })
            .collect::<Result<Vec<_>, QueryError>>()?;
        let by_key = lexsort_to_indices(&columns, None)?;
        let mut number_of = vec![NO_ENTITY; self.len()];
        for (number, entity) in by_key.values().iter().enumerate() {
            number_of[*entity as usize] = number as u32;
        }
        self.ordered = vec![NOT_INLINE; self.len()];
        for (key, entity) in self.inline.iter_mut() {
            *entity = number_of[*entity as usize];
            self.ordered[*entity as usize] = *key;
        }
        self.is_ranked = self.long.is_empty() && self.ordered.is_sorted_by_key(|key| rank(*key));
        for key in self.long.iter_mut() {
            key.entity = number_of[key.entity as usize];
        }
        for entity in entity_of_row.iter_mut().filter(|entity| **entity != NO_ENTITY) {
            *entity = number_of[*entity as usize];
        }
        Ok(())
    }

    fn find_inline(&self, key: u128) -> u32 {
        let found = self.inline.find(self.hasher.hash_one(key), |(known, _)| *known == key);
        found.map_or(NO_ENTITY, |(_, entity)| *entity)
    }

    fn find_long(&self, key: &[u8]) -> u32 {
        let found = self.long.find(self.hasher.hash_one(key), |known| known.of(&self.long_bytes) == key);
        found.map_or(NO_ENTITY, |known| known.entity)
    }

    fn add_inline(&mut self, key: u128) -> u32 {
        let next = self.len() as u32;
        let hash = self.hasher.hash_one(key);
        let entry = self.inline.entry(hash, |(known, _)| *known == key, |(known, _)| self.hasher.hash_one(known));
        match entry {
            Entry::Occupied(known) => known.get().1,
            Entry::Vacant(place) => {
                place.insert((key, next));
                next
            }
        }
    }

    fn add_long(&mut self, key: &[u8]) -> u32 {
        let next = self.len() as u32;
        let hash = self.hasher.hash_one(key);
        let entry = self.long.entry(
            hash,
            |known| known.of(&self.long_bytes) == key,
            |known| self.hasher.hash_one(known.of(&self.long_bytes)),
        );
        match entry {
            Entry::Occupied(known) => known.get().entity,
            Entry::Vacant(place) => {
                place.insert(LongKey { from: self.long_bytes.len(), bytes: key.len() as u32, entity: next });
                self.long_bytes.extend_from_slice(key);
                next
            }
        }
    }
}

impl LongKey {
    fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.from..self.from + self.bytes as usize]
    }
}

/// The join key columns of some rows.
pub(crate) struct JoinKeys<'a> {
    columns: Vec<KeyColumn<'a>>,
}

enum KeyColumn<'a> {
    Text(&'a StringArray),
    TextView(&'a StringViewArray),
    Number(&'a Int64Array),
}

/// The key of one row: injective within one list of key types.
enum Key<'a> {
    /// A part is null.
    Null,
    /// Length and bytes, as Arrow's views of short texts have them.
    Inline(u128),
    /// More than [`INLINE_BYTES_MAX`] bytes.
    Long(&'a [u8]),
}

impl<'a> Key<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        if bytes.len() <= INLINE_BYTES_MAX { Self::Inline(make_view(bytes, 0, 0)) } else { Self::Long(bytes) }
    }
}

impl<'a> JoinKeys<'a> {
    /// # Errors
    /// Columns of other lengths, or that are neither utf8 nor int64.
    pub(crate) fn try_new(keys: &'a [ArrayRef], rows: usize) -> Result<Self, QueryError> {
        let columns = keys
            .iter()
            .map(|key| match key.data_type() {
                _ if key.len() != rows => {
                    Err(QueryError::Shape(format!("a key column has {} rows, not {rows}", key.len())))
                }
                ArrowType::Utf8 => Ok(KeyColumn::Text(key.as_string::<i32>())),
                ArrowType::Utf8View => Ok(KeyColumn::TextView(key.as_string_view())),
                ArrowType::Int64 => Ok(KeyColumn::Number(key.as_primitive::<Int64Type>())),
                other => Err(QueryError::Shape(format!("a join key is utf8 or int64, not {other}"))),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { columns })
    }

    /// Tells `see` the key of each row, in order. A single column is the common case and is read without copies.
    fn each(&self, rows: usize, mut see: impl FnMut(Key<'_>)) {
        match self.columns.as_slice() {
            [KeyColumn::Text(texts)] => {
                for row in 0..rows {
                    see(if texts.is_null(row) { Key::Null } else { Key::of(texts.value(row).as_bytes()) });
                }
            }
            [KeyColumn::TextView(texts)] => {
                for (row, view) in texts.views().iter().enumerate() {
                    see(if texts.is_null(row) {
                        Key::Null
                    } else if *view as u32 as usize <= INLINE_BYTES_MAX {
                        Key::Inline(*view)
                    } else {
                        Key::Long(texts.value(row).as_bytes())
                    });
                }
            }
            [KeyColumn::Number(numbers)] => {
                for row in 0..rows {
                    // So that the order of the bytes is that of the numbers.
                    let key = |number: i64| Key::Inline(make_view(&(number ^ i64::MIN).to_be_bytes(), 0, 0));
                    see(if numbers.is_null(row) { Key::Null } else { key(numbers.value(row)) });
                }
            }
            several => {
                let mut bytes = Vec::new();
                for row in 0..rows {
                    let is_whole = joined(several, row, &mut bytes);
                    see(if is_whole { Key::of(&bytes) } else { Key::Null });
                }
            }
        }
    }
}

/// The parts of a key as bytes; false if one is null. Texts carry their length, so that no two keys look alike.
fn joined(columns: &[KeyColumn<'_>], row: usize, bytes: &mut Vec<u8>) -> bool {
    bytes.clear();
    for column in columns {
        let text = match column {
            KeyColumn::Text(texts) if texts.is_valid(row) => texts.value(row),
            KeyColumn::TextView(texts) if texts.is_valid(row) => texts.value(row),
            KeyColumn::Number(numbers) if numbers.is_valid(row) => {
                bytes.extend_from_slice(&numbers.value(row).to_le_bytes());
                continue;
            }
            _ => return false,
        };
        bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    true
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use super::*;

    fn numbers(entities: &Entities, keys: &[ArrayRef], rows: usize) -> Vec<u32> {
        let mut found = Vec::new();
        entities.look_up(&JoinKeys::try_new(keys, rows).unwrap(), rows, &mut found);
        found
    }

    /// The entities of these rows, numbered by key, and the entity of every row.
    fn numbered(keys: &[ArrayRef]) -> (Entities, Vec<u32>) {
        let rows = keys[0].len();
        let mut entities = Entities::default();
        let mut added = entities.add(&JoinKeys::try_new(keys, rows).unwrap(), rows).unwrap();
        entities.number_by_key(keys, &mut added).unwrap();
        (entities, added)
    }

    /// These rows of each column.
    fn taken(keys: &[ArrayRef], rows: &[u32]) -> Vec<ArrayRef> {
        let rows = UInt32Array::from(rows.to_vec());
        keys.iter().map(|key| arrow_select::take::take(key.as_ref(), &rows, None).unwrap()).collect()
    }

    #[test]
    fn short_long_and_null_texts_keep_apart_in_both_layouts() {
        let texts = ["", "a", "twelve bytes", "thirteen byte", "thirteen bytf", "a", "thirteen byte"];
        let spine: ArrayRef = Arc::new(StringArray::from(texts.to_vec()));
        let mut entities = Entities::default();
        let keys = [spine.clone()];
        let added = entities.add(&JoinKeys::try_new(&keys, texts.len()).unwrap(), texts.len()).unwrap();
        assert_eq!(added, [0, 1, 2, 3, 4, 1, 3]);
        assert_eq!(entities.len(), 5);

        let asked = [Some("thirteen bytf"), None, Some("a"), Some("A"), Some(""), Some("thirteen bytes")];
        let expected = [4, NO_ENTITY, 1, NO_ENTITY, 0, NO_ENTITY];
        assert_eq!(numbers(&entities, &[Arc::new(StringArray::from(asked.to_vec()))], 6), expected);
        assert_eq!(numbers(&entities, &[Arc::new(StringViewArray::from(asked.to_vec()))], 6), expected);
    }

    #[test]
    fn numbered_by_key_they_are_found_whatever_the_order() {
        let names = ["m", "thirteen bytes and more", "", "c", "zz", "a", "c", "another long one, too"];
        let counts = [7_i64, -1, 7, 3, i64::MIN, 0, 3, 9];
        let texts: ArrayRef = Arc::new(StringArray::from(names.to_vec()));
        let numbers_of: ArrayRef = Arc::new(Int64Array::from(counts.to_vec()));
        for keys in [vec![texts.clone()], vec![numbers_of.clone()], vec![texts, numbers_of]] {
            let (entities, added) = numbered(&keys);
            // In the order of the spine, by key, and the other way round.
            let mut by_key: Vec<u32> = (0..8).collect();
            by_key.sort_by_key(|row| added[*row as usize]);
            let backwards: Vec<u32> = by_key.iter().rev().copied().collect();
            for order in [(0..8).collect(), by_key, backwards] {
                let expected: Vec<u32> = order.iter().map(|row| added[*row as usize]).collect();
                assert_eq!(numbers(&entities, &taken(&keys, &order), 8), expected);
            }
        }
        let keys: [ArrayRef; 1] = [Arc::new(Int64Array::from(vec![Some(5), None, Some(-5)]))];
        let (_, added) = numbered(&keys);
        assert_eq!(added, [1, NO_ENTITY, 0], "numbers by their size; a null is nobody");
    }

    #[test]
    fn between_neighbours_there_is_nobody_whatever_the_order() {
        fn positions<T: PartialEq>(known: &[T], asked: &[T]) -> Vec<Option<usize>> {
            asked.iter().map(|key| known.iter().position(|known| known == key)).collect()
        }
        let texts = ["", "b", "b\u{0}", "bb", "d", "twelve bytes"];
        let texts_asked =
            ["", "\u{0}", "a", "b", "b\u{0}", "b\u{1}", "ba", "bb", "bba", "c", "d", "e", "twelve bytes", "z"];
        let numbers_known = [i64::MIN, -300, -1, 0, 255, 256, i64::MAX];
        let numbers_asked = [i64::MIN, i64::MIN + 1, -300, -299, -2, -1, 0, 1, 254, 255, 256, 257, 70_000, i64::MAX];
        let text = |texts: &[&str]| -> ArrayRef { Arc::new(StringArray::from(texts.to_vec())) };
        let number = |numbers: &[i64]| -> ArrayRef { Arc::new(Int64Array::from(numbers.to_vec())) };
        let sides = [
            (text(&texts), text(&texts_asked), positions(&texts, &texts_asked)),
            (number(&numbers_known), number(&numbers_asked), positions(&numbers_known, &numbers_asked)),
        ];
        for (known, asked, positions) in sides {
            let (entities, added) = numbered(&[known]);
            assert!(entities.is_ranked);
            let forward: Vec<u32> = (0..asked.len() as u32).collect();
            let strides: Vec<u32> = forward.iter().map(|row| row * 5 % asked.len() as u32).collect();
            for order in [forward.clone(), forward.into_iter().rev().collect(), strides] {
                let turned = taken(std::slice::from_ref(&asked), &order);
                let entity_at = |row: &u32| positions[*row as usize].map_or(NO_ENTITY, |known| added[known]);
                let expected: Vec<u32> = order.iter().map(entity_at).collect();
                assert_eq!(numbers(&entities, &turned, order.len()), expected);
            }
        }
    }

    #[test]
    fn several_parts_never_run_together() {
        let names: ArrayRef = Arc::new(StringArray::from(vec!["ab", "a", "", "a"]));
        let rest: ArrayRef = Arc::new(StringArray::from(vec!["c", "bc", "abc", "bc"]));
        let counts: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), Some(1), Some(1), None]));
        let keys = [names, rest, counts];
        let mut entities = Entities::default();
        let added = entities.add(&JoinKeys::try_new(&keys, 4).unwrap(), 4).unwrap();
        assert_eq!(added, [0, 1, 2, NO_ENTITY]);
        assert_eq!(numbers(&entities, &keys, 4), added);
    }

    #[test]
    fn numbers_are_keys_too() {
        let keys: [ArrayRef; 1] = [Arc::new(Int64Array::from(vec![Some(i64::MIN), Some(-1), None, Some(0), Some(-1)]))];
        let mut entities = Entities::default();
        let added = entities.add(&JoinKeys::try_new(&keys, 5).unwrap(), 5).unwrap();
        assert_eq!(added, [0, 1, NO_ENTITY, 2, 1]);
    }
}
