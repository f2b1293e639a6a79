//! Instants as microseconds since the Unix epoch, UTC, and durations as people write them.

use chrono::{DateTime, Datelike, SecondsFormat};

/// 1900-01-01T00:00:00Z: earlier event times are refused.
pub const TIME_MIN_US: i64 = -2_208_988_800_000_000;
/// 2200-01-01T00:00:00Z: event times from here on are refused.
pub const TIME_MAX_US: i64 = 7_258_118_400_000_000;

/// Text that is no instant or no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTime {
    /// Not RFC 3339.
    #[error("`{0}` is not a timestamp; write RFC 3339 with a zone, such as 2024-01-01T00:00:00Z")]
    Timestamp(String),
    /// Not a duration.
    #[error("`{0}` is not a duration; write a whole number and a unit: us, ms, s, m, h, d or w, such as 36h")]
    Duration(String),
}

/// Microseconds of an RFC 3339 instant; finer digits are floored, also before 1970.
///
/// # Errors
/// Text that is not RFC 3339 with a zone.
pub fn parse_timestamp(text: &str) -> Result<i64, InvalidTime> {
    let instant = DateTime::parse_from_rfc3339(text).map_err(|_| InvalidTime::Timestamp(text.to_owned()))?;
    let whole_seconds_us = instant.timestamp().checked_mul(1_000_000);
    let within_second_us = i64::from(instant.timestamp_subsec_nanos() / 1_000);
    whole_seconds_us
        .and_then(|us| us.checked_add(within_second_us))
        .ok_or_else(|| InvalidTime::Timestamp(text.to_owned()))
}

/// RFC 3339 in UTC, with six digits of a second where they are not all zero. `None` outside the years 0 to 9999, which
/// RFC 3339 cannot write.
pub(crate) fn rfc3339(us: i64) -> Option<String> {
    let instant = DateTime::from_timestamp_micros(us)?;
    if !(0..=9999).contains(&instant.year()) {
        return None;
    }
    let has_fraction = us.rem_euclid(1_000_000) != 0;
    let digits = if has_fraction { SecondsFormat::Micros } else { SecondsFormat::Secs };
    Some(instant.to_rfc3339_opts(digits, true))
}

/// RFC 3339 in UTC; outside the years 0 to 9999 the microseconds as a number.
pub fn format_timestamp(us: i64) -> String {
    rfc3339(us).unwrap_or_else(|| us.to_string())
}

const UNITS_US: [(&str, i64); 7] = [
    ("us", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("m", 60_000_000),
    ("h", 3_600_000_000),
    ("d", 86_400_000_000),
    ("w", 604_800_000_000),
];

/// Microseconds of a duration such as `2d`, `36h` or `500ms`.
///
/// # Errors
/// Anything but a whole number that is not negative followed by a unit, or more than an `i64` holds.
pub fn parse_duration(text: &str) -> Result<i64, InvalidTime> {
    let invalid = || InvalidTime::Duration(text.to_owned());
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
    let (count, unit) = text.split_at(unit_at);
    let count: i64 = count.parse().map_err(|_| invalid())?;
    let (_, unit_us) = UNITS_US.iter().find(|(name, _)| *name == unit.trim()).ok_or_else(invalid)?;
    count.checked_mul(*unit_us).ok_or_else(invalid)
}

/// Text that [`parse_duration`] reads back, in the largest unit up to days that leaves a whole number: `172800000000` is
/// `2d`.
pub fn format_duration(us: i64) -> String {
    let largest_whole = UNITS_US.iter().rev().skip(1).find(|(_, unit_us)| us % unit_us == 0);
    match largest_whole {
        Some((name, unit_us)) if us != 0 => format!("{}{name}", us / unit_us),
        _ => format!("{us}us"),
    }
}
