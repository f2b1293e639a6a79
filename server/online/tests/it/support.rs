//! What several tests need: a table, rows in it, and chance that can be repeated.

use eadem_online::{KeyBytes, Row, RowBody, TableId};
use eadem_semantics::RowOrder;
use eadem_values::{Digest, EntityKey, KeyValue, TieDigest};

pub(crate) fn table(epoch: u64) -> TableId {
    TableId { view: Digest::of(b"view"), epoch }
}

pub(crate) fn key(name: &str) -> KeyBytes {
    KeyBytes::from(&EntityKey(vec![KeyValue::Utf8(name.to_owned())]))
}

/// A row that is known when it happens.
pub(crate) fn row(name: &str, time_us: i64) -> Row {
    row_known(name, time_us, time_us)
}

pub(crate) fn row_known(name: &str, event_time_us: i64, known_at_us: i64) -> Row {
    Row {
        key: key(name),
        order: RowOrder { event_time_us, known_at_us, tie: TieDigest::default() },
        body: RowBody::of_values(format!("{name} at {event_time_us}").into_bytes()),
    }
}

/// Read from `EADEM_SEED`, so that a failure can be repeated.
pub(crate) fn seed() -> u64 {
    std::env::var("EADEM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_130_101)
}

/// Whether the full counts are wanted.
pub(crate) fn is_soak() -> bool {
    std::env::var("EADEM_SOAK").is_ok_and(|soak| soak == "1")
}

/// SplitMix64.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 to `bound` - 1.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}
