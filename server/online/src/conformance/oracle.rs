//! The naive answer: every row ever merged, looked through one by one.
//!
//! Nothing here comes from a store or from `eadem-semantics`, on purpose.

use std::collections::HashMap;

use eadem_semantics::ReadAt;

use crate::{KeyBytes, Row, RowBody};

#[derive(Default, Clone)]
pub(super) struct Oracle {
    rows: Vec<Row>,
    erased_up_to_us: HashMap<KeyBytes, i64>,
}

/// What decides between rows, greatest first.
fn rank(row: &Row) -> (i64, i64, u128) {
    (row.order.event_time_us, row.order.known_at_us, u128::from_be_bytes(*row.order.tie.as_bytes()))
}

impl Oracle {
    pub(super) fn merge(&mut self, rows: &[Row]) {
        self.rows.extend_from_slice(rows);
    }

    pub(super) fn erase(&mut self, key: &KeyBytes, up_to_us: i64) {
        let known_us = self.erased_up_to_us.get(key).copied().unwrap_or(i64::MIN);
        self.erased_up_to_us.insert(key.clone(), if known_us > up_to_us { known_us } else { up_to_us });
    }

    fn is_there(&self, row: &Row) -> bool {
        match self.erased_up_to_us.get(&row.key) {
            Some(up_to_us) => row.order.event_time_us > *up_to_us,
            None => true,
        }
    }

    pub(super) fn winner(&self, key: &KeyBytes, at: ReadAt) -> Option<&Row> {
        let mut best: Option<&Row> = None;
        for row in &self.rows {
            let visible = row.order.event_time_us <= at.at_us && row.order.known_at_us <= at.known_by_us;
            if row.key != *key || !visible || !self.is_there(row) {
                continue;
            }
            if best.is_none_or(|best| rank(row) > rank(best)) {
                best = Some(row);
            }
        }
        best
    }

    /// Each row once, sorted by key and order.
    pub(super) fn all_rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self.rows.iter().filter(|row| self.is_there(row)).cloned().collect();
        rows.sort_by(|a, b| (&a.key, rank(a)).cmp(&(&b.key, rank(b))));
        rows.dedup_by(|a, b| a.key == b.key && rank(a) == rank(b));
        rows
    }
}

/// What a store should answer, as the pair that can be compared.
pub(super) fn as_winner(row: Option<&Row>) -> Option<((i64, i64, u128), RowBody)> {
    row.map(|row| (rank(row), row.body.clone()))
}
