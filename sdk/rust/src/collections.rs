use std::hash::{BuildHasherDefault, Hasher};

/// A hash map that iterates in the same order for the same insertions, in every row and on every machine.
/// Make one with `HashMap::default()`. Where the order reaches a feature's value, prefer a `BTreeMap`.
pub type HashMap<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<FixedHasher>>;

/// A hash set like [`HashMap`]. Make one with `HashSet::default()`.
pub type HashSet<T> = std::collections::HashSet<T, BuildHasherDefault<FixedHasher>>;

/// A hasher without a seed: multiply and rotate, eight bytes at a time, mixed once at the end. Fast and fixed; it
/// does not defend against keys chosen to collide, which cannot outlive one call anyway.
#[derive(Debug, Default, Clone, Copy)]
pub struct FixedHasher(u64);

const MULTIPLIER: u64 = 0xf135_7aea_2e62_a9c5;

impl FixedHasher {
    #[inline]
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(MULTIPLIER);
    }
}

impl Hasher for FixedHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.add(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            for (to, from) in last.iter_mut().zip(rest) {
                *to = *from;
            }
            self.add(u64::from_le_bytes(last));
        }
    }

    // Fixed widths and byte order: a pointer-sized number hashes alike in a 32-bit component and in a 64-bit test.
    #[inline]
    fn write_u8(&mut self, value: u8) {
        self.add(u64::from(value));
    }

    #[inline]
    fn write_u16(&mut self, value: u16) {
        self.add(u64::from(value));
    }

    #[inline]
    fn write_u32(&mut self, value: u32) {
        self.add(u64::from(value));
    }

    #[inline]
    fn write_u64(&mut self, value: u64) {
        self.add(value);
    }

    #[inline]
    fn write_usize(&mut self, value: usize) {
        self.add(value as u64);
    }

    #[inline]
    fn finish(&self) -> u64 {
        let mixed = (self.0 ^ (self.0 >> 32)).wrapping_mul(MULTIPLIER);
        mixed ^ (mixed >> 29)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(keys: &[&str]) -> Vec<String> {
        let map: HashMap<&str, ()> = keys.iter().map(|key| (*key, ())).collect();
        map.keys().map(|key| (*key).to_owned()).collect()
    }

    #[test]
    fn two_maps_with_the_same_insertions_iterate_alike() {
        let keys = ["EWR", "LGA", "JFK", "IAH", "MIA", "BQN", "ATL", "ORD", "FLL"];
        assert_eq!(order(&keys), order(&keys));
    }

    #[test]
    fn close_keys_spread_over_the_low_bits() {
        let mut low_bits: HashSet<u64> = HashSet::default();
        for key in 0_u64..256 {
            let mut hasher = FixedHasher::default();
            hasher.write_u64(key << 20);
            low_bits.insert(hasher.finish() & 0xff);
        }
        assert!(low_bits.len() > 100, "{} of 256 distinct", low_bits.len());
    }
}
