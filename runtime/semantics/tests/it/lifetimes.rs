//! TTL and horizon, to the microsecond.

use eadem_semantics::{Age, Lifetime};
use proptest::prelude::*;

use crate::strategies::{anywhere, cases};

fn any_lifetime() -> impl Strategy<Value = Lifetime> {
    let span = || prop_oneof![4 => 0_i64..8, 1 => Just(i64::MAX), 1 => 0..i64::MAX];
    (prop::option::of(span()), prop::option::of(span()))
        .prop_map(|(ttl_us, horizon_us)| Lifetime { ttl_us, horizon_us })
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_row_is_gone_exactly_before_the_oldest_readable_instant(
        lifetime in any_lifetime(), event_time_us in anywhere(), at_us in anywhere(),
    ) {
        let can_be_pruned = event_time_us < lifetime.oldest_readable_us(at_us);
        let is_gone = lifetime.age(event_time_us, at_us) == Age::Gone;
        // A lifetime of nothing is gone at once, and the instant after the last of i64 cannot be written.
        let is_unwritable = is_gone && event_time_us == i64::MAX;
        prop_assert!(can_be_pruned == is_gone || is_unwritable);
    }

    #[test]
    fn ages_only_grow(lifetime in any_lifetime(), event_time_us in anywhere(), a_us in anywhere(), b_us in anywhere()) {
        let rank = |at_us| match lifetime.age(event_time_us, at_us) {
            Age::Fresh => 0,
            Age::Expired => 1,
            Age::Gone => 2,
        };
        prop_assert!(rank(a_us.min(b_us)) <= rank(a_us.max(b_us)));
    }
}

#[test]
fn edges_hold_to_the_microsecond() {
    let two_days_us = 172_800_000_000;
    let event_us = 1_357_016_400_000_000;
    let lifetime = Lifetime { ttl_us: Some(two_days_us), horizon_us: Some(1_000) };
    for (age_us, expected) in [
        (0, Age::Fresh),
        (two_days_us - 1, Age::Fresh),
        (two_days_us, Age::Expired),
        (two_days_us + 999, Age::Expired),
        (two_days_us + 1_000, Age::Gone),
        (two_days_us + 1_001, Age::Gone),
    ] {
        assert_eq!(lifetime.age(event_us, event_us + age_us), expected, "{age_us} µs old");
    }
}

#[test]
fn the_horizon_is_the_ttl_unless_declared() {
    let lifetime = Lifetime::with_ttl(10);
    let ages = [9, 10, 19, 20].map(|at_us| lifetime.age(0, at_us));
    assert_eq!(ages, [Age::Fresh, Age::Expired, Age::Expired, Age::Gone]);
    assert_eq!(lifetime.readable_for_us(), Some(20));
    assert_eq!(lifetime.oldest_readable_us(100), 81);
}

#[test]
fn without_horizon_nothing_is_ever_expired() {
    let lifetime = Lifetime { ttl_us: Some(10), horizon_us: Some(0) };
    assert_eq!([9, 10].map(|at_us| lifetime.age(0, at_us)), [Age::Fresh, Age::Gone]);
}

#[test]
fn without_ttl_nothing_ages_whatever_the_horizon() {
    for lifetime in [Lifetime::FOREVER, Lifetime { ttl_us: None, horizon_us: Some(1) }, Lifetime::default()] {
        assert_eq!(lifetime.age(i64::MIN, i64::MAX), Age::Fresh);
        assert_eq!(lifetime.readable_for_us(), None);
        assert_eq!(lifetime.oldest_readable_us(0), i64::MIN);
    }
}

#[test]
fn the_ends_of_the_range_do_not_wrap() {
    let longest = Lifetime { ttl_us: Some(i64::MAX), horizon_us: Some(i64::MAX) };
    assert_eq!(longest.age(i64::MIN, i64::MAX), Age::Gone);
    assert_eq!(longest.age(i64::MIN + 2, i64::MAX), Age::Expired);
    assert_eq!(longest.age(0, i64::MAX), Age::Expired);
    assert_eq!(longest.age(1, i64::MAX), Age::Fresh);
    assert_eq!(longest.readable_for_us(), Some(i64::MAX));
    assert_eq!(longest.oldest_readable_us(0), i64::MIN);
    assert_eq!(Lifetime::with_ttl(1).oldest_readable_us(i64::MIN), i64::MIN);
    assert_eq!(Lifetime::with_ttl(10).age(100, 0), Age::Fresh, "a row ahead of the read is not old");
}
