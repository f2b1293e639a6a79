//! Which state of the store answers: the axis of commits, beside event time and known-at.

use std::fmt;
use std::str::FromStr;

use eadem_values::{format_timestamp, parse_timestamp};

/// What was stored, rather than what is: a read with it sees no row that came into a table later, late rows and corrections
/// included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AsStored {
    /// By this commit of a table.
    Commit(u64),
    /// At this time, in microseconds: by the latest commit at or before it, of each table.
    Time(i64),
}

/// Text that is neither.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither the number of a commit nor a time such as 2024-01-31T00:00:00Z")]
pub struct InvalidAsStored(pub String);

impl fmt::Display for AsStored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Commit(commit) => write!(f, "{commit}"),
            Self::Time(at_us) => f.write_str(&format_timestamp(*at_us)),
        }
    }
}

impl FromStr for AsStored {
    type Err = InvalidAsStored;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidAsStored(text.to_owned());
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().map(Self::Commit).map_err(|_| invalid());
        }
        parse_timestamp(text).map(Self::Time).map_err(|_| invalid())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_number_is_a_commit_and_anything_else_a_time() {
        assert_eq!("17".parse(), Ok(AsStored::Commit(17)));
        assert_eq!("1970-01-01T00:00:01Z".parse(), Ok(AsStored::Time(1_000_000)));
        for text in ["17", "2024-01-31T00:00:00Z"] {
            assert_eq!(text.parse::<AsStored>().unwrap().to_string(), text);
        }
        for text in ["", "-1", "yesterday", "99999999999999999999", "1.5"] {
            assert_eq!(text.parse::<AsStored>(), Err(InvalidAsStored(text.to_owned())));
        }
    }
}
