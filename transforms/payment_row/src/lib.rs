//! The ten columns of a payment as a model takes them, unchanged.

use eadem::prelude::*;

/// One payment.
#[derive(Input)]
pub struct Payment<'a> {
    /// Amount paid.
    pub amount: Option<f64>,
    /// Category of the merchant.
    pub merchant_category: &'a str,
    /// Whether it was made abroad.
    pub is_foreign: bool,
    /// Latitude in degrees.
    pub lat: f64,
    /// Longitude in degrees.
    pub lon: f64,
    /// Made up, as the next four.
    pub f0: f64,
    pub f1: f64,
    pub f2: f64,
    pub f3: f64,
    pub f4: f64,
}

/// What a model sees of it.
#[derive(Output, Debug, Clone, PartialEq)]
pub struct Features {
    /// Amount paid.
    pub amount: Option<f64>,
    /// Category of the merchant.
    pub merchant_category: String,
    /// Whether it was made abroad.
    pub is_foreign: bool,
    /// Latitude in degrees.
    pub lat: f64,
    /// Longitude in degrees.
    pub lon: f64,
    /// Made up, as the next four.
    pub f0: f64,
    pub f1: f64,
    pub f2: f64,
    pub f3: f64,
    pub f4: f64,
}

/// A payment as it is.
#[transform(owner = "eadem")]
pub fn payment_row(payment: Payment) -> Features {
    Features {
        amount: payment.amount,
        merchant_category: payment.merchant_category.to_owned(),
        is_foreign: payment.is_foreign,
        lat: payment.lat,
        lon: payment.lon,
        f0: payment.f0,
        f1: payment.f1,
        f2: payment.f2,
        f3: payment.f3,
        f4: payment.f4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_changes() {
        let features = payment_row(Payment {
            amount: None,
            merchant_category: "cat_07",
            is_foreign: true,
            lat: 1.5,
            lon: -0.0,
            f0: 0.0,
            f1: 1.0,
            f2: 2.0,
            f3: 3.0,
            f4: 4.0,
        });
        assert_eq!((features.amount, features.merchant_category.as_str(), features.is_foreign), (None, "cat_07", true));
        assert_eq!(
            [features.lat, features.f0, features.f1, features.f2, features.f3, features.f4],
            [1.5, 0.0, 1.0, 2.0, 3.0, 4.0]
        );
        assert!(features.lon == 0.0 && features.lon.is_sign_negative());
    }
}
