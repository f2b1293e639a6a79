//! A payment that is being made, against the one before it: how far away, how much more.

use eadem::prelude::*;

/// The payment at hand, and the last one.
#[derive(Input)]
pub struct Context {
    /// Amount of the last payment.
    pub amount: Option<f64>,
    /// Where it was made: latitude in degrees.
    pub lat: f64,
    /// And longitude.
    pub lon: f64,
    /// Where this one is made: latitude in degrees; from the request.
    pub txn_lat: f64,
    /// And longitude.
    pub txn_lon: f64,
    /// Its amount; from the request.
    pub txn_amount: f64,
}

/// What a model sees of both.
#[derive(Output, Debug, Clone, PartialEq)]
pub struct Features {
    /// log(1 + the last amount).
    pub log_amount: Option<f64>,
    /// This amount for each unit of the last.
    pub amount_ratio: Option<f64>,
    /// How far apart they are, on a globe.
    #[field(min = 0.0, unit = "km")]
    pub distance_km: f64,
}

const EARTH_RADIUS_KM: f64 = 6371.0088;

/// A payment against the last one.
#[transform(owner = "eadem")]
pub fn payment_context(context: Context) -> Features {
    Features {
        log_amount: context.amount.map(math::log1p),
        amount_ratio: context.amount.map(|amount| context.txn_amount / (amount + 1.0)),
        distance_km: distance_km((context.lat, context.lon), (context.txn_lat, context.txn_lon)),
    }
}

/// By the haversine formula.
fn distance_km(from: (f64, f64), to: (f64, f64)) -> f64 {
    let (from_lat, to_lat) = (from.0.to_radians(), to.0.to_radians());
    let half_sine_squared = |angle: f64| {
        let sine = math::sin(angle / 2.0);
        sine * sine
    };
    let east = half_sine_squared((to.1 - from.1).to_radians());
    let chord = half_sine_squared(to_lat - from_lat) + math::cos(from_lat) * math::cos(to_lat) * east;
    // Rounding may take the chord of opposite points past 1, where there is no angle.
    2.0 * EARTH_RADIUS_KM * math::asin(chord.min(1.0).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_of_the_globe_is_ten_thousand_kilometres() {
        let features = payment_context(Context {
            amount: Some(1.0),
            lat: 0.0,
            lon: 0.0,
            txn_lat: 90.0,
            txn_lon: 0.0,
            txn_amount: 5.0,
        });
        assert!((features.distance_km - 10_007.557).abs() < 0.01, "{}", features.distance_km);
        assert_eq!(features.amount_ratio, Some(2.5));
    }
}
