use std::fmt;
use std::ops::{Add, Sub};

const SECOND_US: i64 = 1_000_000;
const MINUTE_US: i64 = 60 * SECOND_US;
const HOUR_US: i64 = 60 * MINUTE_US;
const DAY_US: i64 = 24 * HOUR_US;

/// An instant: microseconds since 1970-01-01T00:00:00Z. There is no local time in a transform; a source that has it
/// says how to convert.
///
/// ```
/// use eadem::prelude::*;
///
/// let landed_at = Timestamp::from_civil(2013, 1, 1, 13, 30, 0);
/// assert_eq!(landed_at.hour(), 13);
/// assert_eq!(landed_at.floor_to_day(), Timestamp::from_civil(2013, 1, 1, 0, 0, 0));
/// assert_eq!(landed_at.minutes_since(Timestamp::from_civil(2013, 1, 1, 12, 0, 0)), 90.0);
/// assert_eq!(landed_at.to_string(), "2013-01-01T13:30:00Z");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Timestamp(i64);

/// A day of the Gregorian calendar, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CivilDate {
    /// Astronomical year: 2013, or 0 for 1 BC.
    pub year: i64,
    /// 1 to 12.
    pub month: i64,
    /// 1 to 31.
    pub day: i64,
}

impl Timestamp {
    /// From microseconds since the Unix epoch.
    #[inline]
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// From seconds since the Unix epoch; saturates at the ends of the range.
    #[inline]
    #[must_use]
    pub const fn from_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(SECOND_US))
    }

    /// From a date and a time of day, UTC. Parts beyond their range carry over: hour 25 is one o'clock of the next day,
    /// month 13 is January of the next year.
    #[must_use]
    pub const fn from_civil(year: i64, month: i64, day: i64, hour: i64, minute: i64, second: i64) -> Self {
        let months = month - 1;
        let days = days_from_civil(year + months.div_euclid(12), months.rem_euclid(12) + 1, 1) + day - 1;
        Self(days * DAY_US + hour * HOUR_US + minute * MINUTE_US + second * SECOND_US)
    }

    /// Microseconds since the Unix epoch.
    #[inline]
    #[must_use]
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// The start of the step this instant lies in, steps counted from the Unix epoch; before 1970 too.
    /// A step of zero or less leaves the instant as it is.
    #[inline]
    #[must_use]
    pub const fn floor_to_micros(self, step_us: i64) -> Self {
        if step_us <= 0 {
            return self;
        }
        Self(self.0.saturating_sub(self.0.rem_euclid(step_us)))
    }

    /// The start of the hour.
    #[inline]
    #[must_use]
    pub const fn floor_to_hour(self) -> Self {
        self.floor_to_micros(HOUR_US)
    }

    /// The start of the day, UTC.
    #[inline]
    #[must_use]
    pub const fn floor_to_day(self) -> Self {
        self.floor_to_micros(DAY_US)
    }

    /// Microseconds since midnight, UTC.
    #[inline]
    #[must_use]
    pub const fn micros_of_day(self) -> i64 {
        self.0.rem_euclid(DAY_US)
    }

    /// 0 to 23, UTC.
    #[inline]
    #[must_use]
    pub const fn hour(self) -> i64 {
        self.micros_of_day() / HOUR_US
    }

    /// 0 to 59.
    #[inline]
    #[must_use]
    pub const fn minute(self) -> i64 {
        self.micros_of_day() / MINUTE_US % 60
    }

    /// 0 to 59.
    #[inline]
    #[must_use]
    pub const fn second(self) -> i64 {
        self.micros_of_day() / SECOND_US % 60
    }

    /// Days since 1970-01-01; negative before.
    #[inline]
    #[must_use]
    pub const fn days_since_epoch(self) -> i64 {
        self.0.div_euclid(DAY_US)
    }

    /// 1 for Monday to 7 for Sunday (ISO 8601), UTC.
    #[inline]
    #[must_use]
    pub const fn weekday(self) -> i64 {
        (self.days_since_epoch() + 3).rem_euclid(7) + 1
    }

    /// 1 to 366, UTC.
    #[must_use]
    pub const fn day_of_year(self) -> i64 {
        self.days_since_epoch() - days_from_civil(self.date().year, 1, 1) + 1
    }

    /// Year, month and day, UTC.
    #[must_use]
    pub const fn date(self) -> CivilDate {
        civil_from_days(self.days_since_epoch())
    }

    /// Microseconds from `earlier` to this instant; negative if `earlier` is later, saturated at the ends.
    #[inline]
    #[must_use]
    pub const fn micros_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Seconds from `earlier` to this instant.
    #[inline]
    #[must_use]
    pub fn seconds_since(self, earlier: Self) -> f64 {
        self.micros_since(earlier) as f64 / SECOND_US as f64
    }

    /// Minutes from `earlier` to this instant.
    #[inline]
    #[must_use]
    pub fn minutes_since(self, earlier: Self) -> f64 {
        self.micros_since(earlier) as f64 / MINUTE_US as f64
    }

    /// Hours from `earlier` to this instant.
    #[inline]
    #[must_use]
    pub fn hours_since(self, earlier: Self) -> f64 {
        self.micros_since(earlier) as f64 / HOUR_US as f64
    }

    /// Days from `earlier` to this instant.
    #[inline]
    #[must_use]
    pub fn days_since(self, earlier: Self) -> f64 {
        self.micros_since(earlier) as f64 / DAY_US as f64
    }

    /// That many minutes later; saturates at the ends of the range.
    #[inline]
    #[must_use]
    pub const fn plus_minutes(self, minutes: i64) -> Self {
        Self(self.0.saturating_add(minutes.saturating_mul(MINUTE_US)))
    }

    /// That many hours later; saturates at the ends of the range.
    #[inline]
    #[must_use]
    pub const fn plus_hours(self, hours: i64) -> Self {
        Self(self.0.saturating_add(hours.saturating_mul(HOUR_US)))
    }

    /// That many days of 24 hours later; saturates at the ends of the range.
    #[inline]
    #[must_use]
    pub const fn plus_days(self, days: i64) -> Self {
        Self(self.0.saturating_add(days.saturating_mul(DAY_US)))
    }
}

/// Adds microseconds; saturates at the ends of the range.
impl Add<i64> for Timestamp {
    type Output = Self;

    #[inline]
    fn add(self, micros: i64) -> Self {
        Self(self.0.saturating_add(micros))
    }
}

/// Subtracts microseconds; saturates at the ends of the range.
impl Sub<i64> for Timestamp {
    type Output = Self;

    #[inline]
    fn sub(self, micros: i64) -> Self {
        Self(self.0.saturating_sub(micros))
    }
}

/// RFC 3339 in UTC, with microseconds only where there are any.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CivilDate { year, month, day } = self.date();
        let (hour, minute, second) = (self.hour(), self.minute(), self.second());
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")?;
        match self.0.rem_euclid(SECOND_US) {
            0 => write!(f, "Z"),
            micros => write!(f, ".{micros:06}Z"),
        }
    }
}

// Days and dates: the calendar repeats every 400 years (an era of 146,097 days); years are counted from March, so that
// the leap day comes last.

const DAYS_PER_ERA: i64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH_DAY: i64 = 719_468;

const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let march_year = if month <= 2 { year - 1 } else { year };
    let era = march_year.div_euclid(400);
    let year_of_era = march_year.rem_euclid(400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * DAYS_PER_ERA + day_of_era - EPOCH_DAY
}

const fn civil_from_days(days_since_epoch: i64) -> CivilDate {
    let days = days_since_epoch + EPOCH_DAY;
    let era = days.div_euclid(DAYS_PER_ERA);
    let day_of_era = days.rem_euclid(DAYS_PER_ERA);
    let leap_days_passed = day_of_era / 1_460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leap_days_passed) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    CivilDate { year, month, day }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_from_1900_to_2200_survives_the_round_trip_and_follows_the_one_before() {
        let first = days_from_civil(1900, 1, 1);
        let last = days_from_civil(2200, 12, 31);
        assert_eq!(last - first + 1, 301 * 365 + 73);
        let mut before = civil_from_days(first - 1);
        assert_eq!(before, CivilDate { year: 1899, month: 12, day: 31 });
        for days in first..=last {
            let date = civil_from_days(days);
            assert_eq!(days_from_civil(date.year, date.month, date.day), days);
            assert!(date > before, "{date:?} does not follow {before:?}");
            before = date;
        }
    }

    #[test]
    fn known_instants() {
        assert_eq!(Timestamp::from_civil(2000, 2, 29, 12, 34, 56).micros(), 951_827_696_000_000);
        assert_eq!(Timestamp::from_civil(1969, 12, 31, 23, 59, 59).micros(), -1_000_000);
        assert_eq!(Timestamp::from_civil(2013, 13, 1, 25, 0, 0), Timestamp::from_civil(2014, 1, 2, 1, 0, 0));
    }

    #[test]
    fn before_the_epoch_floors_go_down() {
        let just_before = Timestamp::from_micros(-1);
        assert_eq!(just_before.floor_to_hour().micros(), -3_600_000_000);
        assert_eq!(just_before.hour(), 23);
        assert_eq!(just_before.date(), CivilDate { year: 1969, month: 12, day: 31 });
        assert_eq!(just_before.to_string(), "1969-12-31T23:59:59.999999Z");
    }

    #[test]
    fn weekdays_are_iso() {
        assert_eq!(Timestamp::from_micros(0).weekday(), 4);
        assert_eq!(Timestamp::from_civil(2013, 1, 6, 0, 0, 0).weekday(), 7);
        assert_eq!(Timestamp::from_civil(2013, 1, 7, 0, 0, 0).weekday(), 1);
        assert_eq!(Timestamp::from_civil(2012, 12, 31, 0, 0, 0).day_of_year(), 366);
    }

    #[test]
    fn the_ends_of_the_range_saturate() {
        assert_eq!(Timestamp::from_micros(i64::MAX).plus_days(1).micros(), i64::MAX);
        assert_eq!(Timestamp::from_micros(i64::MIN).floor_to_day().micros(), i64::MIN);
        assert_eq!(Timestamp::from_micros(i64::MIN).micros_since(Timestamp::from_micros(i64::MAX)), i64::MIN);
    }
}
