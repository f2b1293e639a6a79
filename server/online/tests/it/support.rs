//! What several tests need: a table, rows in it, and chance that can be repeated.

use eadem_online::{KeyBytes, Row, RowBody, TableId};
use eadem_semantics::RowOrder;
use eadem_values::{Digest, EntityKey, KeyValue, TieDigest};

pub(crate) use crate::dice::{Dice, is_soak, seed};

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
