//! The status of one served value.

use std::fmt;
use std::str::FromStr;

use eadem_values::Value;
use serde::{Deserialize, Serialize};

use crate::{Age, Lifetime, RowOrder};

/// Why a value is what it is. Never confused with one another, offline or online.
///
/// The order is the order of severity in which the inputs of an on-demand view pass their status on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// There is a value.
    Present,
    /// The row that counts says null.
    Null,
    /// No row counts.
    Missing,
    /// The row that counts is older than the view's TTL.
    Expired,
    /// The transform failed on the row that counts, or a store did not answer in time.
    Error,
}

/// Text that names no status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown status `{0}`; statuses are present, missing, expired, null, error")]
pub struct UnknownStatus(pub String);

impl Status {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Present, Self::Null, Self::Missing, Self::Expired, Self::Error];

    /// The status that several inputs give an output which needs them all: error before expired before missing before
    /// null; present if there are none.
    pub fn worst(statuses: impl IntoIterator<Item = Self>) -> Self {
        statuses.into_iter().max().unwrap_or(Self::Present)
    }

    /// The status of a value, given that of its row: a row that counts may say null.
    pub const fn of_value(self, value_is_null: bool) -> Self {
        match self {
            Self::Present if value_is_null => Self::Null,
            of_row => of_row,
        }
    }

    /// As in JSON and datasets.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Present => "present",
            Self::Missing => "missing",
            Self::Expired => "expired",
            Self::Null => "null",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Status {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|status| status.name() == text).ok_or_else(|| UnknownStatus(text.to_owned()))
    }
}

/// The status of one feature, given the winner of the as-of choice.
///
/// Age comes first: what a row too old says, failed or null, is not reported.
pub fn resolve_status(
    winner: Option<&RowOrder>,
    row_failed: bool,
    value_is_null: bool,
    lifetime: Lifetime,
    at_us: i64,
) -> Status {
    row_status(winner.map(|row| row.event_time_us), row_failed, lifetime, at_us).of_value(value_is_null)
}

/// The status of the winner itself, that of all its values which are not null. Of the winner its event time is enough: it
/// alone decides the age.
pub fn row_status(winner_us: Option<i64>, row_failed: bool, lifetime: Lifetime, at_us: i64) -> Status {
    let Some(event_time_us) = winner_us else { return Status::Missing };
    match lifetime.age(event_time_us, at_us) {
        Age::Gone => Status::Missing,
        Age::Expired => Status::Expired,
        Age::Fresh if row_failed => Status::Error,
        Age::Fresh => Status::Present,
    }
}

/// A value as it leaves the store.
#[derive(Debug, Clone, PartialEq)]
pub struct Served {
    /// The value; the view's default, or null, unless the status is present.
    pub value: Value,
    /// What the as-of choice found, whatever the default.
    pub status: Status,
}

/// What is served for a status: the value itself when present, else the view's default, else null. The status is kept.
pub fn serve(status: Status, value: Value, default: Option<&Value>) -> Served {
    let value = match status {
        Status::Present => value,
        _ => default.cloned().unwrap_or(Value::Null),
    };
    Served { value, status }
}
