//! Four numeric features from four nullable inputs: a logarithm, a ratio, and the hour of the day as a point on a circle.

use std::f64::consts::TAU;

use eadem::prelude::*;

/// One payment.
#[derive(Input)]
pub struct Payment {
    /// Amount paid.
    pub amount: Option<f64>,
    /// Numerator of the ratio.
    pub a: Option<f64>,
    /// Denominator of the ratio.
    pub b: Option<i64>,
    /// When it was paid.
    pub ts: Option<Timestamp>,
}

/// What a model sees of it.
#[derive(Output, Debug, Clone, PartialEq)]
pub struct Features {
    /// log(1 + amount).
    pub log_amount: Option<f64>,
    /// a / b; null where b is zero.
    pub ratio: Option<f64>,
    /// Sine of the hour's angle on a 24-hour dial.
    pub hour_sin: Option<f64>,
    /// Cosine of the hour's angle on a 24-hour dial.
    pub hour_cos: Option<f64>,
}

/// Numeric features of a payment.
#[transform(owner = "eadem")]
#[inline]
pub fn bench_numeric(payment: Payment) -> Features {
    let ratio = match (payment.a, payment.b) {
        (Some(a), Some(b)) if b != 0 => Some(a / b as f64),
        _ => None,
    };
    let hour_angle = payment.ts.map(|paid_at| paid_at.hour() as f64 * (TAU / 24.0));
    Features {
        log_amount: payment.amount.map(math::log1p),
        ratio,
        hour_sin: hour_angle.map(math::sin),
        hour_cos: hour_angle.map(math::cos),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_feature_follows_from_its_inputs() {
        let features = bench_numeric(Payment {
            amount: Some(0.0),
            a: Some(3.0),
            b: Some(2),
            ts: Some(Timestamp::from_civil(2013, 1, 1, 6, 59, 59)),
        });
        assert_eq!(features.log_amount, Some(0.0));
        assert_eq!(features.ratio, Some(1.5));
        assert_eq!(features.hour_sin, Some(1.0));
        assert!(features.hour_cos.is_some_and(|cosine| cosine.abs() < 1e-15));
    }

    #[test]
    fn nulls_and_a_zero_denominator_give_null() {
        let features = bench_numeric(Payment { amount: None, a: Some(3.0), b: Some(0), ts: None });
        assert_eq!(features, Features { log_amount: None, ratio: None, hour_sin: None, hour_cos: None });
    }
}
