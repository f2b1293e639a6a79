//! A score of payments. `bench_score_planted` is the same but for one bit in one row: the effect of a new version has to
//! find it.

mod score;

use eadem::prelude::*;
pub use score::{Payment, Scored};

/// A score of a payment.
#[transform(owner = "eadem")]
pub fn bench_score(payment: Payment) -> Scored {
    score::score(&payment)
}
