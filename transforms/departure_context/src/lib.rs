//! What is known of a departure at the moment a model asks: fields of the request and the last leg of the aircraft
//! together.

use eadem::prelude::*;

/// A departure that is asked for.
#[derive(Input)]
pub struct Departure {
    /// When it is to depart; from the request.
    pub scheduled_at: Timestamp,
    /// Distance to fly; from the request.
    #[field(unit = "miles")]
    pub distance: Option<i64>,
    /// When the aircraft landed last; null where it has no leg behind it.
    pub last_landed_at: Option<Timestamp>,
    /// How late it was then.
    #[field(unit = "min")]
    pub last_arr_delay: Option<i64>,
    /// A longer stay than that on the ground is no turnaround; a literal.
    #[field(min = 0, unit = "h")]
    pub max_gap_h: i64,
}

/// What a model sees of it.
#[derive(Output, Debug, Clone, PartialEq)]
pub struct DepartureContext {
    /// From the last landing to this departure; negative where the aircraft lands after it should have left. Null
    /// without a last leg, or where it stood longer than the limit.
    #[field(unit = "min")]
    pub turnaround_minutes: Option<f64>,
    /// Less than 40 minutes to turn around.
    pub tight: bool,
    /// The last leg's delay that the turnaround cannot absorb.
    #[field(min = 0.0, unit = "min")]
    pub inherited_delay_minutes: Option<f64>,
    /// Hour of the scheduled departure, UTC.
    #[field(min = 0, max = 23)]
    pub hour_utc: i64,
    /// Day of the week, 1 for Monday to 7 for Sunday, UTC.
    #[field(min = 1, max = 7)]
    pub weekday: i64,
    /// The start of the scheduled hour: the key of hourly data.
    pub scheduled_hour: Timestamp,
    /// Kilometres on a logarithmic scale.
    pub log_distance: Option<f64>,
}

const TIGHT_MINUTES: f64 = 40.0;
const KM_PER_MILE: f64 = 1.609_344;

/// A departure and the turnaround before it.
#[transform(owner = "ops")]
pub fn departure_context(departure: Departure) -> DepartureContext {
    let turnaround_minutes = turnaround_minutes(&departure);
    let inherited_delay_minutes = match (departure.last_arr_delay, turnaround_minutes) {
        (Some(delay), Some(turnaround)) => Some((delay as f64 - (turnaround - TIGHT_MINUTES).max(0.0)).max(0.0)),
        _ => None,
    };
    DepartureContext {
        turnaround_minutes,
        tight: turnaround_minutes.is_some_and(|minutes| minutes < TIGHT_MINUTES),
        inherited_delay_minutes,
        hour_utc: departure.scheduled_at.hour(),
        weekday: departure.scheduled_at.weekday(),
        scheduled_hour: departure.scheduled_at.floor_to_hour(),
        log_distance: departure
            .distance
            .filter(|miles| *miles >= 0)
            .map(|miles| math::log1p(miles as f64 * KM_PER_MILE)),
    }
}

fn turnaround_minutes(departure: &Departure) -> Option<f64> {
    let gap = departure.scheduled_at.minutes_since(departure.last_landed_at?);
    (gap <= departure.max_gap_h as f64 * 60.0).then_some(gap)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn departure(last_landed_at: Option<Timestamp>, last_arr_delay: Option<i64>) -> DepartureContext {
        departure_context(Departure {
            scheduled_at: Timestamp::from_civil(2013, 1, 1, 17, 45, 0),
            distance: Some(1400),
            last_landed_at,
            last_arr_delay,
            max_gap_h: 12,
        })
    }

    #[test]
    fn a_tight_turnaround_inherits_the_delay() {
        let context = departure(Some(Timestamp::from_civil(2013, 1, 1, 17, 15, 0)), Some(25));
        assert_eq!(context.turnaround_minutes, Some(30.0));
        assert!(context.tight);
        assert_eq!(context.inherited_delay_minutes, Some(25.0));
    }

    #[test]
    fn a_long_turnaround_absorbs_it() {
        let context = departure(Some(Timestamp::from_civil(2013, 1, 1, 16, 0, 0)), Some(25));
        assert_eq!(context.turnaround_minutes, Some(105.0));
        assert_eq!(context.inherited_delay_minutes, Some(0.0));
        assert!(!context.tight);
    }

    #[test]
    fn without_a_leg_or_after_a_night_there_is_no_turnaround() {
        assert_eq!(departure(None, None).turnaround_minutes, None);
        let the_day_before = Timestamp::from_civil(2012, 12, 31, 17, 0, 0);
        assert_eq!(departure(Some(the_day_before), Some(5)).turnaround_minutes, None);
        assert!(!departure(None, None).tight);
    }

    #[test]
    fn the_calendar_is_utc() {
        let context = departure(None, None);
        assert_eq!((context.hour_utc, context.weekday), (17, 2));
        assert_eq!(context.scheduled_hour, Timestamp::from_civil(2013, 1, 1, 17, 0, 0));
    }
}
