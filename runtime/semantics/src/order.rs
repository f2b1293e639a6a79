//! Which rows a read may see, and which of them wins.

use eadem_values::TieDigest;

/// Where a stored row stands among the rows of its entity. The order is the order of victory: greater event time, then
/// greater known-at, then greater tie digest. Rows that agree in all three have equal bound inputs, so it never matters
/// which of them wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowOrder {
    /// When the fact happened.
    pub event_time_us: i64,
    /// When the fact could be known.
    pub known_at_us: i64,
    /// The last word between equal times.
    pub tie: TieDigest,
}

/// A read: what was true at `at_us` according to what was known by `known_by_us`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReadAt {
    /// The time T read for.
    pub at_us: i64,
    /// The knowledge cut K.
    pub known_by_us: i64,
}

impl ReadAt {
    /// The default cut, K = T: what a model could have known when it asked.
    pub const fn as_known_then(at_us: i64) -> Self {
        Self { at_us, known_by_us: at_us }
    }

    /// No cut: what is known by now about T.
    pub const fn with_hindsight(at_us: i64) -> Self {
        Self { at_us, known_by_us: i64::MAX }
    }
}

/// Whether a read may see a row: event time ≤ T and known-at ≤ K.
pub fn is_candidate(row: &RowOrder, read: ReadAt) -> bool {
    row.event_time_us <= read.at_us && row.known_at_us <= read.known_by_us
}

/// The first T whose read as known then sees the row; every later one does too.
pub const fn visible_from_us(row: &RowOrder) -> i64 {
    if row.event_time_us > row.known_at_us { row.event_time_us } else { row.known_at_us }
}

/// The row that a read finds among the rows of one entity, in any order and with repetitions.
pub fn winner(rows: impl IntoIterator<Item = RowOrder>, read: ReadAt) -> Option<RowOrder> {
    rows.into_iter().filter(|row| is_candidate(row, read)).max()
}

/// Whether an erasure up to (and with) `erased_up_to_us` removes a row of that event time. Erasures of one entity merge by
/// maximum.
pub fn erased(event_time_us: i64, erased_up_to_us: Option<i64>) -> bool {
    erased_up_to_us.is_some_and(|up_to_us| event_time_us <= up_to_us)
}
