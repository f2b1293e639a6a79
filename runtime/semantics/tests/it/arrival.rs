//! Which times a row may come with.

use eadem_semantics::{MAX_AHEAD_DEFAULT_US, RefusedTime, accept_event_time};
use proptest::prelude::*;

use crate::strategies::cases;

const FIRST_OF_1900_US: i64 = -2_208_988_800_000_000;
const FIRST_OF_2200_US: i64 = 7_258_118_400_000_000;

fn near(instant: i64) -> impl Strategy<Value = i64> {
    (-2_i64..=2).prop_map(move |step| instant + step)
}

fn any_instant() -> impl Strategy<Value = i64> {
    prop_oneof![
        near(FIRST_OF_1900_US),
        near(FIRST_OF_2200_US),
        near(0),
        near(3_600_000_000),
        Just(i64::MIN),
        Just(i64::MAX),
        any::<i64>(),
    ]
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn acceptance_follows_the_text(
        event_us in any_instant(), known_us in any_instant(), arrival_us in any_instant(),
        max_ahead_us in prop_oneof![Just(MAX_AHEAD_DEFAULT_US), 0_i64..4, Just(i64::MAX)],
    ) {
        let in_range = |us: i64| (FIRST_OF_1900_US..FIRST_OF_2200_US).contains(&us);
        let too_far = i128::from(event_us) - i128::from(arrival_us) > i128::from(max_ahead_us);
        let expected = in_range(event_us) && in_range(known_us) && !too_far;
        prop_assert_eq!(accept_event_time(event_us, known_us, arrival_us, max_ahead_us).is_ok(), expected);
    }
}

#[test]
fn an_event_may_lie_an_hour_ahead_of_its_arrival_and_no_more() {
    let arrival_us = 1_357_016_400_000_000;
    let ahead = |ahead_us| accept_event_time(arrival_us + ahead_us, arrival_us, arrival_us, MAX_AHEAD_DEFAULT_US);
    assert_eq!(ahead(3_600_000_000), Ok(()));
    let refused = ahead(3_600_000_001).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "event time 2013-01-01T06:00:00.000001Z is more than 1h after its arrival at 2013-01-01T05:00:00Z"
    );
}

#[test]
fn known_at_may_lie_ahead_without_limit_but_within_the_years() {
    assert_eq!(accept_event_time(0, FIRST_OF_2200_US - 1, 0, 0), Ok(()));
    let refused = accept_event_time(0, FIRST_OF_2200_US, 0, 0).unwrap_err();
    assert_eq!(refused, RefusedTime::OutOfRange { what: "known-at", time_us: FIRST_OF_2200_US });
    assert_eq!(refused.to_string(), "known-at 2200-01-01T00:00:00Z lies outside 1900 to 2200");
}

#[test]
fn the_years_are_1900_to_2199() {
    assert_eq!(accept_event_time(FIRST_OF_1900_US, 0, 0, 0), Ok(()));
    assert!(accept_event_time(FIRST_OF_1900_US - 1, 0, 0, 0).is_err());
    assert_eq!(accept_event_time(FIRST_OF_2200_US - 1, 0, i64::MAX, 0), Ok(()));
    assert!(accept_event_time(FIRST_OF_2200_US, 0, i64::MAX, 0).is_err());
}
