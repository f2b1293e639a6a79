//! Five features of a payment: its amount on a logarithmic scale, its category in the model's spelling, whether it was made
//! at home, and its place on a Mercator map.

use std::f64::consts::FRAC_PI_4;

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
}

/// What a model sees of it.
#[derive(Output, Debug, Clone, PartialEq)]
pub struct Features {
    /// log(1 + amount).
    pub log_amount: Option<f64>,
    /// The category in upper case.
    pub category: String,
    /// Whether it was made at home.
    pub at_home: bool,
    /// Distance from the equator on a Mercator map of a globe with radius 1.
    pub map_north: f64,
    /// Distance from the prime meridian on that map.
    pub map_east: f64,
}

/// Features of a payment.
#[transform(owner = "eadem")]
pub fn payments(payment: Payment) -> Features {
    Features {
        log_amount: payment.amount.map(math::log1p),
        category: payment.merchant_category.to_ascii_uppercase(),
        at_home: !payment.is_foreign,
        map_north: math::log(math::tan(FRAC_PI_4 + payment.lat.to_radians() / 2.0)),
        map_east: payment.lon.to_radians(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_feature_follows_from_its_inputs() {
        let features = payments(Payment {
            amount: Some(0.0),
            merchant_category: "cat_07",
            is_foreign: true,
            lat: 0.0,
            lon: 180.0,
        });
        assert_eq!(features.log_amount, Some(0.0));
        assert_eq!(features.category, "CAT_07");
        assert!(!features.at_home);
        assert!(features.map_north.abs() < 1e-15);
        assert_eq!(features.map_east, std::f64::consts::PI);
    }

    #[test]
    fn no_amount_no_logarithm() {
        let payment = Payment { amount: None, merchant_category: "", is_foreign: false, lat: 60.0, lon: 0.0 };
        assert_eq!(payments(payment).log_amount, None);
    }
}
