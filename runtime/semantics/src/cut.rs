//! The known-at cut of a training set.

use std::fmt;
use std::str::FromStr;

use eadem_values::{InvalidTime, format_timestamp, parse_timestamp};
use serde::{Deserialize, Serialize};

use crate::{ReadAt, RowOrder};

/// Which knowledge the rows of a training set may use. In all three, the candidates of an entity only grow with the spine
/// row's time, which is what lets a join keep one winner per spine row and fill forward; a cut of its own for every spine
/// row would break that and does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KnownAtCut {
    /// K = T: what was known at the spine row's own time. The default, and what serving sees.
    #[default]
    Spine,
    /// One K for all rows: as the world was known at that instant.
    Fixed(i64),
    /// No cut: with hindsight.
    None,
}

impl KnownAtCut {
    /// The read that a spine row at `at_us` stands for.
    pub const fn read_at(self, at_us: i64) -> ReadAt {
        match self {
            Self::Spine => ReadAt::as_known_then(at_us),
            Self::Fixed(known_by_us) => ReadAt { at_us, known_by_us },
            Self::None => ReadAt::with_hindsight(at_us),
        }
    }

    /// The least T whose read may see the row; `None` if no read may.
    pub fn visible_from_us(self, row: &RowOrder) -> Option<i64> {
        self.visible_from_times_us(row.event_time_us, row.known_at_us)
    }

    /// The same by a row's times alone: its tie digest has no part in it.
    pub fn visible_from_times_us(self, event_time_us: i64, known_at_us: i64) -> Option<i64> {
        match self {
            Self::Spine => Some(event_time_us.max(known_at_us)),
            Self::Fixed(known_by_us) if known_at_us > known_by_us => None,
            Self::Fixed(_) | Self::None => Some(event_time_us),
        }
    }
}

impl fmt::Display for KnownAtCut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spine => f.write_str("spine"),
            Self::None => f.write_str("none"),
            Self::Fixed(known_by_us) => f.write_str(&format_timestamp(*known_by_us)),
        }
    }
}

impl FromStr for KnownAtCut {
    type Err = InvalidTime;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "spine" => Ok(Self::Spine),
            "none" => Ok(Self::None),
            _ => parse_timestamp(text).map(Self::Fixed),
        }
    }
}
