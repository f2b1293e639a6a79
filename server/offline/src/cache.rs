//! What readers of tables keep between reads, within bounds.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use parquet::bloom_filter::Sbbf;

use crate::file_index::FileIndex;
use crate::state::{KnownTable, TableFiles};

/// Footers, page indexes and bloom filters together, in bytes.
const INDEX_BYTES_MAX: usize = 96 << 20;

/// Tables whose newest state is kept.
const TABLES_MAX: usize = 256;

/// Data files that the kept states of past versions list, together.
const PAST_FILES_MAX: usize = 200_000;

/// Shared by all tables of an offline store, as this process sees it.
#[derive(Debug)]
pub(crate) struct Caches {
    /// By the file's URL.
    pub(crate) indexes: Bounded<String, FileIndex>,
    /// By the file's URL, row group and column.
    pub(crate) blooms: Bounded<(String, usize, usize), Sbbf>,
    /// By the table's URL.
    pub(crate) tables: Bounded<String, KnownTable>,
    /// By the table's URL and version.
    pub(crate) past: Bounded<(String, u64), TableFiles>,
}

impl Default for Caches {
    fn default() -> Self {
        Self {
            indexes: Bounded::new(INDEX_BYTES_MAX * 2 / 3),
            blooms: Bounded::new(INDEX_BYTES_MAX / 3),
            tables: Bounded::new(TABLES_MAX),
            past: Bounded::new(PAST_FILES_MAX),
        }
    }
}

/// Values with a weight each, of which those that were not asked for the longest go when all together weigh too much.
#[derive(Debug)]
pub(crate) struct Bounded<K, V> {
    weight_max: usize,
    held: Mutex<Held<K, V>>,
}

#[derive(Debug)]
struct Held<K, V> {
    values: HashMap<K, Slot<V>>,
    /// By when they were last asked for.
    by_use: BTreeMap<u64, K>,
    weight: usize,
    uses: u64,
}

#[derive(Debug)]
struct Slot<V> {
    value: Arc<V>,
    weight: usize,
    used: u64,
}

impl<K: Clone + Eq + Hash, V> Bounded<K, V> {
    pub(crate) fn new(weight_max: usize) -> Self {
        let held = Held { values: HashMap::new(), by_use: BTreeMap::new(), weight: 0, uses: 0 };
        Self { weight_max, held: Mutex::new(held) }
    }

    pub(crate) fn get<Q>(&self, key: &Q) -> Option<Arc<V>>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let mut guard = self.lock();
        let held = &mut *guard;
        let slot = held.values.get_mut(key)?;
        held.uses += 1;
        if let Some(key) = held.by_use.remove(&slot.used) {
            held.by_use.insert(held.uses, key);
        }
        slot.used = held.uses;
        Some(slot.value.clone())
    }

    /// Keeps a value, unless it alone weighs too much. Gives it back to whoever made it.
    pub(crate) fn insert(&self, key: K, value: V, weight: usize) -> Arc<V> {
        let value = Arc::new(value);
        self.remove(&key);
        if weight > self.weight_max {
            return value;
        }
        let mut held = self.lock();
        held.uses += 1;
        let used = held.uses;
        held.weight += weight;
        held.by_use.insert(used, key.clone());
        held.values.insert(key, Slot { value: value.clone(), weight, used });
        while held.weight > self.weight_max {
            let Some((_, oldest)) = held.by_use.pop_first() else { break };
            if let Some(slot) = held.values.remove(&oldest) {
                held.weight -= slot.weight;
            }
        }
        value
    }

    pub(crate) fn remove<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let mut held = self.lock();
        if let Some(slot) = held.values.remove(key) {
            held.weight -= slot.weight;
            held.by_use.remove(&slot.used);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held<K, V>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_asked_for_the_longest_goes_first() {
        let cache: Bounded<&str, u8> = Bounded::new(10);
        cache.insert("a", 1, 4);
        cache.insert("b", 2, 4);
        assert!(cache.get("a").is_some());
        cache.insert("c", 3, 4);
        assert_eq!((cache.get("a").as_deref(), cache.get("b"), cache.get("c").as_deref()), (Some(&1), None, Some(&3)));
    }

    #[test]
    fn weights_are_those_of_what_is_held() {
        let cache: Bounded<&str, u8> = Bounded::new(10);
        assert_eq!(*cache.insert("huge", 9, 11), 9);
        assert!(cache.get("huge").is_none());
        for _ in 0..100 {
            cache.insert("a", 1, 6);
        }
        cache.insert("b", 2, 4);
        assert!(cache.get("a").is_some() && cache.get("b").is_some());
        cache.remove("a");
        cache.insert("c", 3, 6);
        assert!(cache.get("b").is_some() && cache.get("c").is_some());
    }
}
