//! Random choices of tests, the same ones everywhere unless `EADEM_SEED` gives another seed, and how many they make.
// This file is part of several crates of tests, and not each of them uses all of it.
#![allow(dead_code)]

/// SplitMix64: small, and good enough to choose cases.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 to `bound` - 1.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// From 0 to 1.
    pub(crate) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Read from `EADEM_SEED`, so that a failure can be repeated.
pub(crate) fn seed() -> u64 {
    let seed = std::env::var("EADEM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_130_101);
    println!("EADEM_SEED={seed}");
    seed
}

/// Whether the full counts are wanted.
pub(crate) fn is_soak() -> bool {
    std::env::var("EADEM_SOAK").is_ok_and(|soak| soak == "1")
}
