//! What is worth knowing of a spine and of what the join found for it: nothing is left out in silence.

use std::collections::{BTreeMap, BTreeSet};

use arrow_array::{Array, ArrayRef, RecordBatch};
use datafusion::common::hash_utils::{RandomState, create_hashes};
use serde::{Deserialize, Serialize};

use super::spec::{DatasetSpec, OnDemandView, ViewOfService};
use super::split::{identity_column, identity_columns};
use crate::error::OfflineError;
use crate::spine::named;

/// Hashes of rows that are kept to find equal rows; eight bytes each. Beyond that, equal rows are counted in a part of the
/// spine that a hash picks.
const HASHES_MAX: usize = 8 << 20;

/// What is worth knowing of a spine, and of what was found for its rows.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SpineReport {
    /// Rows of the spine. All of them are in the training set.
    pub rows: u64,
    /// Key → rows where it is null: no history belongs to them.
    pub null_keys: BTreeMap<String, u64>,
    /// Request field → rows where it is null.
    pub null_request_fields: BTreeMap<String, u64>,
    /// Rows with the keys and the time of an earlier row.
    pub duplicate_rows: u64,
    /// Whether that was counted, and not estimated from a part of the rows.
    pub duplicates_are_exact: bool,
    /// View, with its role or keys where it occurs several times → rows for which it had nothing to say.
    pub not_found: BTreeMap<String, u64>,
    /// Split → its rows.
    pub splits: BTreeMap<String, u64>,
    /// Rows that are in no split.
    pub rows_in_no_split: u64,
}

/// Counts on the way of the rows.
pub(super) struct SpineObserver {
    timestamp: String,
    /// (name in the service, column of the spine)
    keys: Vec<(String, String)>,
    request_fields: Vec<(String, String)>,
    identity: Vec<String>,
    hashes: RowHashes,
    report: SpineReport,
}

impl SpineObserver {
    pub(super) fn new(spec: &DatasetSpec) -> Self {
        let on_demand = spec.views.iter().filter_map(|view| match view {
            ViewOfService::OnDemand(on_demand) => Some(on_demand),
            ViewOfService::Stored(_) => None,
        });
        let fields: BTreeSet<&str> = on_demand.flat_map(OnDemandView::request_fields).collect();
        let named = |name: &str| (name.to_owned(), spec.columns.column(name).to_owned());
        Self {
            timestamp: spec.columns.timestamp.clone(),
            keys: spec.key_columns().into_iter().collect(),
            request_fields: fields.into_iter().map(named).collect(),
            identity: identity_columns(spec),
            hashes: RowHashes::new(HASHES_MAX),
            report: SpineReport::default(),
        }
    }

    /// The next rows, with at least the columns of the spine.
    pub(super) fn update(&mut self, rows: &RecordBatch) -> Result<(), OfflineError> {
        self.report.rows += rows.num_rows() as u64;
        count_nulls(&self.keys, rows, &mut self.report.null_keys)?;
        count_nulls(&self.request_fields, rows, &mut self.report.null_request_fields)?;
        let columns = self.identity.iter().map(|name| identity_column(rows, name, &self.timestamp));
        let columns: Vec<ArrayRef> = columns.collect::<Result<_, _>>()?;
        hashes_of(&columns)?.into_iter().for_each(|hash| self.hashes.add(hash));
        Ok(())
    }

    /// `statuses` are, for each feature, the rows by status.
    pub(super) fn finish(self, spec: &DatasetSpec, statuses: &BTreeMap<String, BTreeMap<String, u64>>) -> SpineReport {
        let (duplicate_rows, duplicates_are_exact) = self.hashes.duplicates();
        let mut report = self.report;
        (report.duplicate_rows, report.duplicates_are_exact) = (duplicate_rows, duplicates_are_exact);
        for feature in &spec.features {
            let Some(ViewOfService::Stored(stored)) = spec.views.get(feature.view) else { continue };
            let missing = statuses.get(&feature.name).and_then(|counts| counts.get("missing")).copied();
            let Some(missing) = missing.filter(|missing| *missing > 0) else { continue };
            // All features of a view are missing together.
            let name = match stored.keys.iter().eq(stored.view.keys.iter().map(|key| &key.name)) {
                true => stored.view.id(),
                false => format!("{} for {}", stored.view.id(), stored.keys.join(", ")),
            };
            report.not_found.insert(name, missing);
        }
        report
    }
}

/// Of every row of these columns.
fn hashes_of(columns: &[ArrayRef]) -> Result<Vec<u64>, OfflineError> {
    let mut hashes = vec![0; columns.first().map_or(0, |column| column.len())];
    // The seed is arbitrary, but not drawn: what is estimated is the same every time.
    create_hashes(columns, &RandomState::with_seed(0), &mut hashes)?;
    Ok(hashes)
}

fn count_nulls(
    columns: &[(String, String)],
    rows: &RecordBatch,
    counts: &mut BTreeMap<String, u64>,
) -> Result<(), OfflineError> {
    for (name, column) in columns {
        let nulls = named(rows, column)?.logical_null_count() as u64;
        if nulls > 0 {
            *counts.entry(name.clone()).or_default() += nulls;
        }
    }
    Ok(())
}

impl SpineReport {
    /// What there is to say, in sentences.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (key, rows) in &self.null_keys {
            lines.push(format!("key `{key}` is null in {rows} of {} spine rows: nothing is found for them", self.rows));
        }
        for (field, rows) in &self.null_request_fields {
            lines.push(format!("request field `{field}` is null in {rows} of {} spine rows", self.rows));
        }
        if self.duplicate_rows > 0 {
            let about = if self.duplicates_are_exact { "" } else { "about " };
            lines.push(format!(
                "{about}{} spine rows have the keys and the time of an earlier row",
                self.duplicate_rows
            ));
        }
        for (view, rows) in &self.not_found {
            lines.push(format!("{view} has nothing for {rows} of {} rows", self.rows));
        }
        for (split, rows) in &self.splits {
            lines.push(format!("split {split}: {rows} rows"));
        }
        if self.rows_in_no_split > 0 {
            lines.push(format!("{} rows are in no split", self.rows_in_no_split));
        }
        lines
    }
}

/// Counts rows that are equal to an earlier one, whatever their order, in bounded memory.
struct RowHashes {
    hashes_max: usize,
    /// Rows are looked at whose hash ends in so many zeros.
    level: u32,
    hashes: Vec<u64>,
    /// Equal rows found among hashes that were thrown together.
    duplicates: u64,
}

impl RowHashes {
    fn new(hashes_max: usize) -> Self {
        Self { hashes_max, level: 0, hashes: Vec::new(), duplicates: 0 }
    }

    fn add(&mut self, hash: u64) {
        if hash.trailing_zeros() < self.level {
            return;
        }
        self.hashes.push(hash);
        if self.hashes.len() > self.hashes_max {
            self.thin_out();
        }
    }

    fn thin_out(&mut self) {
        self.duplicates += drop_equal(&mut self.hashes);
        // Little would be won by dropping a few now and looking again soon.
        while self.hashes.len() > self.hashes_max / 2 {
            self.level += 1;
            let before = self.hashes.len();
            let level = self.level;
            self.hashes.retain(|hash| hash.trailing_zeros() >= level);
            // What was found among the others is no longer known apart: its part is taken to be as large as theirs.
            self.duplicates = self.duplicates * self.hashes.len() as u64 / before.max(1) as u64;
        }
    }

    fn duplicates(mut self) -> (u64, bool) {
        self.duplicates += drop_equal(&mut self.hashes);
        (self.duplicates << self.level, self.level == 0)
    }
}

/// Leaves each hash once, and says how many that dropped.
fn drop_equal(hashes: &mut Vec<u64>) -> u64 {
    let before = hashes.len();
    hashes.sort_unstable();
    hashes.dedup();
    (before - hashes.len()) as u64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use arrow_array::Int64Array;

    use super::*;

    fn duplicates(hashes_max: usize, rows: impl Iterator<Item = i64>) -> (u64, bool) {
        let keys: [ArrayRef; 1] = [Arc::new(Int64Array::from_iter_values(rows))];
        let mut counted = RowHashes::new(hashes_max);
        hashes_of(&keys).unwrap().into_iter().for_each(|hash| counted.add(hash));
        counted.duplicates()
    }

    #[test]
    fn equal_rows_are_counted_and_estimated_when_there_are_too_many() {
        assert_eq!(duplicates(1_000, 0..900), (0, true));
        assert_eq!(duplicates(1_000, (0..900).chain(0..50)), (50, true));
        // Many equal rows, few different ones: still counted.
        assert_eq!(duplicates(1_000, (0..5_000).map(|row| row % 10)), (4_990, true));
        let (estimated, exact) = duplicates(1_000, (0..20_000).chain(0..20_000));
        assert!(!exact && (16_000..24_000).contains(&estimated), "{estimated}");
        assert_eq!(duplicates(1_000, 0..20_000), (0, false));
    }
}
