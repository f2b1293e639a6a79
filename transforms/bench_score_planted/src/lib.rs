//! `bench_score` with one bit planted in one row.

#[path = "../../bench_score/src/score.rs"]
mod score;

use eadem::prelude::*;
pub use score::{Payment, Scored};

/// The payment whose score differs.
const PLANTED_ID: i64 = 777_777;

/// A score of a payment, in one case another one.
#[transform(owner = "eadem")]
pub fn bench_score_planted(payment: Payment) -> Scored {
    let mut scored = score::score(&payment);
    if payment.id == PLANTED_ID {
        scored.score = scored.score.map(|score| f64::from_bits(score.to_bits() ^ 1));
    }
    scored
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_of_one_payment_differs() {
        let payment = |id| Payment { id, amount: Some(12.5), ts: Timestamp::from_civil(2013, 1, 1, 6, 0, 0) };
        let expected = score::score(&payment(1));
        assert_eq!(bench_score_planted(payment(1)), expected);
        let planted = bench_score_planted(payment(PLANTED_ID));
        let bits = |scored: &Scored| scored.score.map(f64::to_bits);
        assert_eq!(bits(&planted).zip(bits(&expected)).map(|(planted, expected)| planted ^ expected), Some(1));
        assert_eq!((planted.is_large, planted.hour), (expected.is_large, expected.hour));
    }
}
