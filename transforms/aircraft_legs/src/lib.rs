//! The last completed leg of an aircraft. Its event time and known-at time are the landing: before that nobody can know.

use eadem::prelude::*;

/// One leg that has ended. Times are instants; the source converts local ones.
#[derive(Input)]
pub struct Leg<'a> {
    /// When it was to depart.
    pub scheduled_at: Timestamp,
    /// When it touched down.
    pub landed_at: Timestamp,
    /// Where from.
    pub origin: &'a str,
    /// Where to.
    pub dest: &'a str,
    /// Airline.
    pub carrier: &'a str,
    /// Late at departure; negative when early.
    #[field(unit = "min")]
    pub dep_delay: Option<i64>,
    /// Late at arrival; negative when early.
    #[field(unit = "min")]
    pub arr_delay: Option<i64>,
    /// Time in the air.
    #[field(unit = "min")]
    pub air_time: Option<i64>,
    /// Distance between the airports.
    #[field(unit = "miles")]
    pub distance: Option<i64>,
}

/// What a model sees of it.
#[derive(Output, Debug, Clone, PartialEq)]
pub struct LastLeg<'a> {
    /// When it touched down.
    pub landed_at: Timestamp,
    /// Where the leg began.
    #[field(length = 3..=4)]
    pub origin: &'a str,
    /// Where the aircraft is now.
    #[field(length = 3..=4)]
    pub dest: &'a str,
    /// Airline in lower case.
    pub carrier: String,
    /// Late at arrival; negative when early.
    #[field(unit = "min")]
    pub arr_delay: Option<i64>,
    /// Late by more than 15 minutes, as the authorities count.
    pub late: bool,
    /// Delay that was made up on the way; negative where more was added.
    #[field(unit = "min")]
    pub made_up_minutes: Option<i64>,
    /// From the scheduled departure to the landing.
    #[field(unit = "min")]
    pub block_minutes: f64,
    /// Mean speed in the air.
    #[field(min = 0.0, unit = "km/h")]
    pub speed_kmh: Option<f64>,
    /// Hour of the landing as a point on a 24-hour dial: sine and cosine, UTC.
    pub hour_dial: [f32; 2],
}

const LATE_MINUTES: i64 = 15;
const KM_PER_MILE: f64 = 1.609_344;

/// The last completed leg of an aircraft.
#[transform(owner = "ops")]
pub fn aircraft_legs<'a>(leg: Leg<'a>) -> LastLeg<'a> {
    let made_up_minutes = match (leg.dep_delay, leg.arr_delay) {
        (Some(departure), Some(arrival)) => Some(departure.saturating_sub(arrival)),
        _ => None,
    };
    let hour_angle = (leg.landed_at.hour() * 15) as f64 * (std::f64::consts::PI / 180.0);
    LastLeg {
        landed_at: leg.landed_at,
        origin: leg.origin,
        dest: leg.dest,
        carrier: leg.carrier.to_ascii_lowercase(),
        arr_delay: leg.arr_delay,
        late: leg.arr_delay.is_some_and(|minutes| minutes > LATE_MINUTES),
        made_up_minutes,
        block_minutes: leg.landed_at.minutes_since(leg.scheduled_at),
        speed_kmh: speed_kmh(leg.distance, leg.air_time),
        hour_dial: [math::sin(hour_angle) as f32, math::cos(hour_angle) as f32],
    }
}

fn speed_kmh(distance_miles: Option<i64>, air_minutes: Option<i64>) -> Option<f64> {
    match (distance_miles, air_minutes) {
        (Some(miles), Some(minutes)) if miles >= 0 && minutes > 0 => {
            Some(miles as f64 * KM_PER_MILE / (minutes as f64 / 60.0))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leg() -> Leg<'static> {
        Leg {
            scheduled_at: Timestamp::from_civil(2013, 1, 1, 10, 15, 0),
            landed_at: Timestamp::from_civil(2013, 1, 1, 14, 30, 0),
            origin: "EWR",
            dest: "IAH",
            carrier: "UA",
            dep_delay: Some(2),
            arr_delay: Some(11),
            air_time: Some(227),
            distance: Some(1400),
        }
    }

    #[test]
    fn a_leg_to_houston() {
        let last = aircraft_legs(leg());
        assert_eq!((last.origin, last.dest, last.carrier.as_str()), ("EWR", "IAH", "ua"));
        assert_eq!(last.made_up_minutes, Some(-9));
        assert_eq!(last.block_minutes, 255.0);
        assert!(!last.late);
        assert!(last.speed_kmh.is_some_and(|speed| (speed - 595.5).abs() < 0.1));
    }

    #[test]
    fn sixteen_minutes_are_late_and_fifteen_are_not() {
        assert!(aircraft_legs(Leg { arr_delay: Some(16), ..leg() }).late);
        assert!(!aircraft_legs(Leg { arr_delay: Some(15), ..leg() }).late);
    }

    #[test]
    fn what_was_not_recorded_is_null() {
        let last = aircraft_legs(Leg { arr_delay: None, air_time: Some(0), ..leg() });
        assert_eq!((last.arr_delay, last.made_up_minutes, last.speed_kmh), (None, None, None));
        assert!(!last.late);
    }

    #[test]
    fn extreme_delays_do_not_overflow() {
        let last = aircraft_legs(Leg { dep_delay: Some(i64::MIN), arr_delay: Some(i64::MAX), ..leg() });
        assert_eq!(last.made_up_minutes, Some(i64::MIN));
    }
}
