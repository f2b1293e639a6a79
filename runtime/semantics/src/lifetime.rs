//! How long a row can be served.

use serde::{Deserialize, Serialize};

/// A view's time to live and the horizon after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Lifetime {
    /// A row is served while its age is below this. `None`: for ever.
    pub ttl_us: Option<i64>,
    /// For how long after its TTL a row is reported as expired before its entity counts as missing. `None`: as long as
    /// the TTL.
    pub horizon_us: Option<i64>,
}

/// What a row's age means for a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Age {
    /// age < TTL.
    Fresh,
    /// TTL ≤ age < TTL + horizon.
    Expired,
    /// TTL + horizon ≤ age: as if the row had never been.
    Gone,
}

impl Lifetime {
    /// No TTL: rows stay fresh.
    pub const FOREVER: Self = Self { ttl_us: None, horizon_us: None };

    /// A TTL with the default horizon.
    pub const fn with_ttl(ttl_us: i64) -> Self {
        Self { ttl_us: Some(ttl_us), horizon_us: None }
    }

    /// What the age of a row of this event time means at `at_us`. A row that lies ahead of `at_us` is fresh.
    pub fn age(&self, event_time_us: i64, at_us: i64) -> Age {
        let Some(ttl_us) = self.ttl_us else { return Age::Fresh };
        // Wider than i64, because the two instants may lie at its opposite ends.
        let age_us = i128::from(at_us) - i128::from(event_time_us);
        let horizon_us = self.horizon_us.unwrap_or(ttl_us);
        if age_us < i128::from(ttl_us) {
            Age::Fresh
        } else if age_us < i128::from(ttl_us) + i128::from(horizon_us) {
            Age::Expired
        } else {
            Age::Gone
        }
    }

    /// TTL + horizon: the age from which no read can tell a row from none. `None`: never.
    pub fn readable_for_us(&self) -> Option<i64> {
        let ttl_us = self.ttl_us?;
        Some(ttl_us.saturating_add(self.horizon_us.unwrap_or(ttl_us)))
    }

    /// The earliest event time that a read at `at_us` can still tell from none; for pruning files.
    pub fn oldest_readable_us(&self, at_us: i64) -> i64 {
        let Some(ttl_us) = self.ttl_us else { return i64::MIN };
        let readable_us = i128::from(ttl_us) + i128::from(self.horizon_us.unwrap_or(ttl_us));
        let oldest_us = i128::from(at_us) - readable_us + 1;
        // Above i64's range only for a lifetime of nothing, whose rows no read can tell from none: then all may be pruned.
        i64::try_from(oldest_us).unwrap_or(if oldest_us < 0 { i64::MIN } else { i64::MAX })
    }
}
