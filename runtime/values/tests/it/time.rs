//! Instants and durations.

use eadem_values::{
    InvalidTime, TIME_MAX_US, TIME_MIN_US, format_duration, format_timestamp, parse_duration, parse_timestamp,
};
use proptest::prelude::*;

use crate::strategies::cases;

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn printed_instants_are_read_back(us in TIME_MIN_US..TIME_MAX_US) {
        prop_assert_eq!(parse_timestamp(&format_timestamp(us)), Ok(us));
    }

    /// Days from the civil calendar by counting, not by the library that parses.
    #[test]
    fn instants_agree_with_the_calendar(
        year in 1900_i64..2200, month in 1_usize..=12, day in 1_i64..=28, second in 0_i64..86_400, nanos in 0_i64..1_000_000_000,
    ) {
        let is_leap = |year: i64| (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        let days_before_year: i64 = if year >= 1970 {
            (1970..year).map(|year| 365 + i64::from(is_leap(year))).sum()
        } else {
            -(year..1970).map(|year| 365 + i64::from(is_leap(year))).sum::<i64>()
        };
        let february = 28 + i64::from(is_leap(year));
        let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let days = days_before_year + lengths[..month - 1].iter().sum::<i64>() + day - 1;
        let expected_us = (days * 86_400 + second) * 1_000_000 + nanos / 1_000;

        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        let text = format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z");
        prop_assert_eq!(parse_timestamp(&text), Ok(expected_us), "{}", text);
    }

    #[test]
    fn printed_durations_are_read_back(us in prop_oneof![0_i64..10_000_000, 0..i64::MAX, (0_i64..5_000).prop_map(|hours| hours * 3_600_000_000)]) {
        prop_assert_eq!(parse_duration(&format_duration(us)), Ok(us));
    }

    #[test]
    fn arbitrary_text_never_panics(text in ".{0,24}") {
        if let Ok(us) = parse_duration(&text) {
            prop_assert!(us >= 0);
        }
        let _ = parse_timestamp(&text).map(format_timestamp);
    }
}

#[test]
fn finer_digits_are_floored_also_before_1970() {
    for (text, us) in [
        ("1970-01-01T00:00:00.0000019Z", 1),
        ("1969-12-31T23:59:59.9999999Z", -1),
        ("1969-12-31T23:59:59.9999990Z", -1),
        ("1969-12-31T23:59:59.9999989Z", -2),
        ("1969-12-31T23:59:58.0000001Z", -2_000_000),
    ] {
        assert_eq!(parse_timestamp(text), Ok(us), "{text}");
    }
}

#[test]
fn the_accepted_range_is_1900_to_2200() {
    assert_eq!(format_timestamp(TIME_MIN_US), "1900-01-01T00:00:00Z");
    assert_eq!(format_timestamp(TIME_MAX_US), "2200-01-01T00:00:00Z");
}

#[test]
fn instants_need_a_zone() {
    for text in ["2013-01-01T05:00:00", "2013-01-01", "now", "", "2013-02-29T00:00:00Z", "2013-01-01T25:00:00Z"] {
        let error = parse_timestamp(text).unwrap_err();
        assert_eq!(error, InvalidTime::Timestamp(text.to_owned()));
        assert!(error.to_string().contains("2024-01-01T00:00:00Z"), "the message shows how: {error}");
    }
}

#[test]
fn instants_outside_rfc_3339_print_as_numbers() {
    assert_eq!(format_timestamp(i64::MAX), i64::MAX.to_string());
    assert_eq!(format_timestamp(i64::MIN), i64::MIN.to_string());
}

#[test]
fn durations_have_units() {
    for (text, us) in [
        ("0s", 0),
        ("7us", 7),
        ("500ms", 500_000),
        ("30s", 30_000_000),
        ("5m", 300_000_000),
        ("36h", 129_600_000_000),
        ("2d", 172_800_000_000),
        ("1w", 604_800_000_000),
    ] {
        assert_eq!(parse_duration(text), Ok(us), "{text}");
    }
    for text in ["", "5", "h", "-1h", "1.5h", "1y", "1 fortnight", "1h30m", "9223372036854775808us", "106751992d"] {
        assert_eq!(parse_duration(text), Err(InvalidTime::Duration(text.to_owned())), "{text}");
    }
}

#[test]
fn durations_print_in_the_largest_whole_unit_up_to_days() {
    for (us, text) in [
        (0, "0us"),
        (1, "1us"),
        (1_000, "1ms"),
        (90_000_000, "90s"),
        (129_600_000_000, "36h"),
        (172_800_000_000, "2d"),
        (1_209_600_000_000, "14d"),
    ] {
        assert_eq!(format_duration(us), text);
    }
}
