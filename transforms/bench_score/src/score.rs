//! The score, for both components.

use eadem::prelude::*;

/// One payment.
#[derive(Input)]
pub struct Payment {
    /// Its number.
    pub id: i64,
    /// Amount paid.
    pub amount: Option<f64>,
    /// When it was paid.
    pub ts: Timestamp,
}

/// What a model sees of it.
#[derive(Output, Debug, Clone, PartialEq)]
pub struct Scored {
    /// The logarithm of the amount, turned by the hour.
    pub score: Option<f64>,
    /// Whether the amount is large.
    pub is_large: bool,
    /// The hour of the day.
    pub hour: i64,
}

/// The score of a payment.
pub fn score(payment: &Payment) -> Scored {
    const LARGE: f64 = 900.0;
    let hour = payment.ts.hour();
    let turned = |amount: f64| math::log1p(amount) * math::cos(hour as f64);
    Scored {
        score: payment.amount.map(turned),
        is_large: payment.amount.is_some_and(|amount| amount > LARGE),
        hour: hour as i64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_follows_from_amount_and_hour() {
        let paid_at = |hour| Timestamp::from_civil(2013, 1, 1, hour, 0, 0);
        let scored = score(&Payment { id: 1, amount: Some(1_000.0), ts: paid_at(0) });
        assert_eq!((scored.is_large, scored.hour), (true, 0));
        assert!(scored.score.is_some_and(|score| (score - 1_001_f64.ln()).abs() < 1e-12));
        let unknown = score(&Payment { id: 2, amount: None, ts: paid_at(3) });
        assert_eq!(unknown, Scored { score: None, is_large: false, hour: 3 });
    }
}
