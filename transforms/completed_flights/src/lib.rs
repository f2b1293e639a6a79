//! Delays of flights that took place. A cancelled or diverted flight has none, so its row is dropped.

use eadem::prelude::*;

/// One scheduled flight.
#[derive(Input)]
pub struct Flight<'a> {
    /// Airline.
    pub carrier: &'a str,
    /// Where from.
    pub origin: &'a str,
    /// Where to.
    pub dest: &'a str,
    /// Late at departure; null where it was cancelled.
    #[field(unit = "min")]
    pub dep_delay: Option<i64>,
    /// Late at arrival; null where it was cancelled or diverted.
    #[field(unit = "min")]
    pub arr_delay: Option<i64>,
}

/// What a model sees of it.
#[derive(Output, Debug, Clone, PartialEq)]
pub struct CompletedFlight {
    /// The route: `EWR-IAH`.
    #[field(length = 3..)]
    pub route: String,
    /// Airline in lower case.
    pub carrier: String,
    /// Late at departure; negative when early.
    #[field(unit = "min")]
    pub dep_delay: i64,
    /// Late at arrival; negative when early.
    #[field(unit = "min")]
    pub arr_delay: i64,
    /// Late at arrival by more than 15 minutes.
    pub late: bool,
}

/// A flight that took place.
#[transform(owner = "ops")]
pub fn completed_flights(flight: Flight) -> Option<CompletedFlight> {
    let dep_delay = flight.dep_delay?;
    let arr_delay = flight.arr_delay?;
    Some(CompletedFlight {
        route: [flight.origin, "-", flight.dest].concat(),
        carrier: flight.carrier.to_ascii_lowercase(),
        dep_delay,
        arr_delay,
        late: arr_delay > 15,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flight(dep_delay: Option<i64>, arr_delay: Option<i64>) -> Flight<'static> {
        Flight { carrier: "UA", origin: "EWR", dest: "IAH", dep_delay, arr_delay }
    }

    #[test]
    fn a_completed_flight_stays() {
        let completed = completed_flights(flight(Some(2), Some(20)));
        let Some(completed) = completed else { unreachable!("it took place") };
        assert_eq!((completed.route.as_str(), completed.late), ("EWR-IAH", true));
    }

    #[test]
    fn cancelled_and_diverted_flights_are_dropped() {
        assert_eq!(completed_flights(flight(None, None)), None);
        assert_eq!(completed_flights(flight(Some(2), None)), None);
    }
}
