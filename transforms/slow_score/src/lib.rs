//! A score that takes about a millisecond to compute: what a server is overloaded with.

use eadem::prelude::*;

/// What is scored.
#[derive(Input)]
pub struct Case {
    /// Whatever tells cases apart; from the request.
    pub seed: i64,
}

/// What a model sees of it.
#[derive(Output, Debug, Clone, PartialEq)]
pub struct Features {
    /// From 0 to 1, as even as a hash.
    #[field(min = 0.0, max = 1.0)]
    pub score: f64,
}

/// About a millisecond on a processor of 3 GHz. No round can begin before the one before it has ended.
const ROUNDS: u32 = 300_000;

/// A hash of a hash of a hash.
#[transform(owner = "eadem")]
pub fn slow_score(case: Case) -> Features {
    let mut mixed = case.seed.cast_unsigned();
    for _ in 0..ROUNDS {
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9).wrapping_add(1);
    }
    // The upper 53 bits, which a float64 holds exactly.
    Features { score: (mixed >> 11) as f64 / (1_u64 << 53) as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_tells_cases_apart_and_is_the_same_again() {
        let score = |seed| slow_score(Case { seed }).score;
        assert_eq!(score(7).to_bits(), score(7).to_bits());
        assert_ne!(score(7).to_bits(), score(8).to_bits());
        assert!((0.0..1.0).contains(&score(-1)));
    }
}
