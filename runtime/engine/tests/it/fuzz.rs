//! Components with damaged bytes: accepted or refused for a reason of their own, never a panic, and never a fault of the
//! engine.

use eadem_engine::{Refusal, UploadOptions, inspect};

use crate::dice::{Dice, is_soak, seed};
use crate::support::{assert_engine_is_well, component, shared};

fn damaged(dice: &mut Dice, honest: &[u8]) -> Vec<u8> {
    let mut bytes = honest.to_vec();
    for _ in 0..=dice.below(3) {
        let at = dice.below(bytes.len());
        let length = dice.below(16);
        match dice.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..(at + length).min(bytes.len()))),
            2 => {
                let piece: Vec<u8> = bytes[at..].iter().take(length).copied().collect();
                let to = dice.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            3 if !bytes.is_empty() => bytes[at] = dice.next() as u8,
            _ if !bytes.is_empty() => bytes[at] ^= 1 << dice.below(8),
            _ => {}
        }
    }
    bytes
}

#[test]
fn damaged_components_are_accepted_or_refused() {
    let (looks, uploads) = if is_soak() { (50_000, 1_000) } else { (1_000, 60) };
    let seed = seed();
    let mut dice = Dice(seed);
    let honest = component("poison_row");
    for _ in 0..looks {
        // What it says does not matter here, only that it says something.
        let _ = inspect(&damaged(&mut dice, &honest));
    }
    for upload in 0..uploads {
        let bytes = damaged(&mut dice, &honest);
        let options = UploadOptions { rows: 8, ..UploadOptions::default() };
        if let Err(refusal @ Refusal::Engine(_)) = shared().accept(&bytes, &options) {
            panic!("seed {seed}, upload {upload}: {refusal}");
        }
    }
    assert_engine_is_well(shared());
}
