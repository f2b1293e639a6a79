//! Components with damaged bytes: accepted or refused for a reason of their own, never a panic, and never a fault of the
//! engine.

use eadem_engine::{Refusal, UploadOptions, inspect};

use crate::support::{assert_engine_is_well, component, shared};

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn damaged(&mut self, honest: &[u8]) -> Vec<u8> {
        let mut bytes = honest.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            let length = self.below(16);
            match self.below(8) {
                0 => bytes.truncate(at),
                1 => drop(bytes.drain(at..(at + length).min(bytes.len()))),
                2 => {
                    let piece: Vec<u8> = bytes[at..].iter().take(length).copied().collect();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, piece);
                }
                3 if !bytes.is_empty() => bytes[at] = self.next() as u8,
                _ if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                _ => {}
            }
        }
        bytes
    }
}

#[test]
fn damaged_components_are_accepted_or_refused() {
    let soak = std::env::var("EADEM_SOAK").is_ok_and(|soak| soak == "1");
    let (looks, uploads) = if soak { (50_000, 1_000) } else { (1_000, 60) };
    let seed: u64 = std::env::var("EADEM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_130_101);
    println!("EADEM_SEED={seed}");
    let mut dice = Dice(seed);
    let honest = component("poison_row");
    for _ in 0..looks {
        // What it says does not matter here, only that it says something.
        let _ = inspect(&dice.damaged(&honest));
    }
    for upload in 0..uploads {
        let bytes = dice.damaged(&honest);
        let options = UploadOptions { rows: 8, ..UploadOptions::default() };
        if let Err(refusal @ Refusal::Engine(_)) = shared().accept(&bytes, &options) {
            panic!("seed {seed}, upload {upload}: {refusal}");
        }
    }
    assert_engine_is_well(shared());
}
