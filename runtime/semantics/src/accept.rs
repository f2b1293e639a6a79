//! Which times a row may come with.

use eadem_values::{TIME_MAX_US, TIME_MIN_US, format_duration, format_timestamp};

/// How far ahead of its arrival an event may lie, unless its source says otherwise: one hour.
pub const MAX_AHEAD_DEFAULT_US: i64 = 3_600_000_000;

/// Why a row's times are refused. A refusal is kept with its arrival and can be replayed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedTime {
    /// Outside the years that are accepted.
    #[error("{what} {} lies outside 1900 to 2200", format_timestamp(*.time_us))]
    OutOfRange {
        /// `event time` or `known-at`.
        what: &'static str,
        /// The time.
        time_us: i64,
    },
    /// The event lies too far in the future.
    #[error(
        "event time {} is more than {} after its arrival at {}",
        format_timestamp(*.event_time_us), format_duration(*.max_ahead_us), format_timestamp(*.arrival_us)
    )]
    TooFarAhead {
        /// The event time.
        event_time_us: i64,
        /// When the row arrived.
        arrival_us: i64,
        /// The source's limit.
        max_ahead_us: i64,
    },
}

/// Checks a row's times at its arrival. Known-at may lie ahead without limit: the row is stored and becomes visible when
/// its time comes.
///
/// # Errors
/// A time outside 1900–2200, or an event more than `max_ahead_us` after `arrival_us`.
pub fn accept_event_time(
    event_time_us: i64,
    known_at_us: i64,
    arrival_us: i64,
    max_ahead_us: i64,
) -> Result<(), RefusedTime> {
    for (what, time_us) in [("event time", event_time_us), ("known-at", known_at_us)] {
        if !(TIME_MIN_US..TIME_MAX_US).contains(&time_us) {
            return Err(RefusedTime::OutOfRange { what, time_us });
        }
    }
    if event_time_us > arrival_us.saturating_add(max_ahead_us) {
        return Err(RefusedTime::TooFarAhead { event_time_us, arrival_us, max_ahead_us });
    }
    Ok(())
}
