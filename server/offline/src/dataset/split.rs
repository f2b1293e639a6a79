//! Splits: which rows of a training set are for training, which for testing.
//!
//! A split is a column of the training set, not files of their own: the file still appears whole or not at all, no row is
//! lost, and what reads a training set (an audit, a comparison) reads one with a split.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::TimestampMicrosecondType;
use arrow_array::{Array, ArrayRef, DictionaryArray, Int8Array, RecordBatch, StringArray};
use eadem_values::{BatchEncoder, DataType, TieDigest, format_timestamp};
use serde::{Deserialize, Serialize};

use super::content::encodable;
use super::spec::{DatasetSpec, ViewOfService};
use crate::error::OfflineError;
use crate::spine::{column_of, named};

/// Splits that a training set can have.
const SPLITS_MAX: usize = 64;

/// What shares are counted in: they have nine decimals.
const WHOLE: u64 = 1_000_000_000;

/// How rows are split, and the column that says which split a row is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// The column's name.
    pub column: String,
    /// Which row goes where.
    pub rule: SplitRule,
}

/// Which row goes into which split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitRule {
    /// By its time. A row in no range is in no split: null.
    Time(Vec<TimeRange>),
    /// By a digest: the splits get about these shares, and rows that agree in what is digested stay together.
    Shares {
        /// What is digested.
        by: SplitBy,
        /// Digested with it: another salt gives another split.
        salt: String,
        /// The splits in order; together they are the whole.
        shares: Vec<SplitShare>,
    },
}

/// A split of rows by their time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeRange {
    /// The split's name.
    pub name: String,
    /// From this instant on, in microseconds; `None`: from the beginning.
    pub from_us: Option<i64>,
    /// Up to this instant, not included.
    pub to_us: Option<i64>,
}

/// A split that gets a share of the rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitShare {
    /// The split's name.
    pub name: String,
    /// The share, in billionths.
    pub billionths: u64,
}

/// What keeps rows together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitBy {
    /// The keys of the service's entity: all rows of an entity are in one split.
    Entity,
    /// Keys and time: only rows of one entity at one time stay together.
    Row,
    /// These columns of the spine.
    Columns(Vec<String>),
}

impl Split {
    /// Checks what can be checked without a spine.
    ///
    /// # Errors
    /// No split, too many, one without name or of a name that is there already; ranges that are empty or overlap; shares
    /// that are not the whole; an entity where the service has several.
    pub fn check(&self, spec: &DatasetSpec) -> Result<(), OfflineError> {
        let wrong = |reason: String| Err(OfflineError::Dataset(format!("split: {reason}")));
        let names: Vec<&str> = match &self.rule {
            SplitRule::Time(ranges) => ranges.iter().map(|range| range.name.as_str()).collect(),
            SplitRule::Shares { shares, .. } => shares.iter().map(|share| share.name.as_str()).collect(),
        };
        if self.column.is_empty() || names.iter().any(|name| name.is_empty()) {
            return wrong("the column and every split need a name".to_owned());
        }
        if names.is_empty() || names.len() > SPLITS_MAX {
            return wrong(format!("there are {} splits; 1 to {SPLITS_MAX} can be made", names.len()));
        }
        if let Some(twice) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
            return wrong(format!("`{}` is there twice", twice.1));
        }
        match &self.rule {
            SplitRule::Time(ranges) => check_ranges(ranges).or_else(wrong),
            SplitRule::Shares { by, shares, .. } => {
                let whole: u64 = shares.iter().map(|share| share.billionths).sum();
                if whole != WHOLE {
                    let sum = whole as f64 / WHOLE as f64;
                    return wrong(format!("the shares add up to {sum}, not to 1"));
                }
                if *by == SplitBy::Entity {
                    entity_columns(spec)?;
                }
                Ok(())
            }
        }
    }
}

impl SplitShare {
    /// A share of the whole.
    ///
    /// # Errors
    /// A number that is not above 0 and at most 1.
    pub fn new(name: &str, share: f64) -> Result<Self, OfflineError> {
        if !(share > 0.0 && share <= 1.0) {
            let message = format!("split `{name}`: its share is {share}; a share is above 0 and at most 1");
            return Err(OfflineError::Dataset(message));
        }
        Ok(Self { name: name.to_owned(), billionths: (share * WHOLE as f64).round() as u64 })
    }
}

fn check_ranges(ranges: &[TimeRange]) -> Result<(), String> {
    let ends = |range: &TimeRange| (range.from_us.unwrap_or(i64::MIN), range.to_us.unwrap_or(i64::MAX));
    let mut ordered: Vec<&TimeRange> = ranges.iter().collect();
    ordered.sort_by_key(|range| ends(range));
    for range in &ordered {
        let (from_us, to_us) = ends(range);
        if from_us >= to_us {
            return Err(format!("`{}` ends before it begins", range.name));
        }
    }
    for pair in ordered.windows(2) {
        if ends(pair[1]).0 < ends(pair[0]).1 {
            let at = format_timestamp(ends(pair[1]).0);
            return Err(format!("`{}` and `{}` overlap from {at} on", pair[0].name, pair[1].name));
        }
    }
    Ok(())
}

/// The spine's columns that name the service's entity.
fn entity_columns(spec: &DatasetSpec) -> Result<Vec<String>, OfflineError> {
    let mut entities: BTreeSet<Vec<&str>> = BTreeSet::new();
    for view in &spec.views {
        if let ViewOfService::Stored(stored) = view {
            entities.insert(stored.keys.iter().map(|name| spec.columns.column(name)).collect());
        }
    }
    let one = entities.iter().next().filter(|_| entities.len() == 1);
    one.map(|columns| columns.iter().map(|column| (*column).to_owned()).collect()).ok_or_else(|| {
        let entities: Vec<String> = entities.iter().map(|columns| columns.join(", ")).collect();
        OfflineError::Dataset(format!(
            "split: {} has {} entities ({}); say by which columns of the spine rows stay together",
            spec.service,
            entities.len(),
            entities.join("; ")
        ))
    })
}

/// The names of the keys, and the time: what tells rows of a spine from each other.
pub(super) fn identity_columns(spec: &DatasetSpec) -> Vec<String> {
    let mut columns: Vec<String> = spec.key_columns().into_values().collect();
    columns.sort();
    columns.dedup();
    columns.push(spec.columns.timestamp.clone());
    columns
}

/// Puts rows into splits.
#[derive(Debug)]
pub(super) struct Splitter {
    rule: SplitRule,
    timestamp: String,
    /// The columns that are digested.
    columns: Vec<String>,
    names: Vec<String>,
    /// Rows in each split, and in none.
    rows: Vec<u64>,
    rows_in_none: u64,
}

impl Splitter {
    pub(super) fn try_new(split: &Split, spec: &DatasetSpec) -> Result<Self, OfflineError> {
        split.check(spec)?;
        let (names, columns): (Vec<String>, Vec<String>) = match &split.rule {
            SplitRule::Time(ranges) => (ranges.iter().map(|range| range.name.clone()).collect(), Vec::new()),
            SplitRule::Shares { by, shares, .. } => {
                let columns = match by {
                    SplitBy::Entity => entity_columns(spec)?,
                    SplitBy::Row => identity_columns(spec),
                    SplitBy::Columns(columns) => columns.clone(),
                };
                (shares.iter().map(|share| share.name.clone()).collect(), columns)
            }
        };
        Ok(Self {
            rule: split.rule.clone(),
            timestamp: spec.columns.timestamp.clone(),
            columns,
            rows: vec![0; names.len()],
            names,
            rows_in_none: 0,
        })
    }

    /// The split of each row of a spine, as a dictionary column; null: none. The dictionary always lists all splits.
    pub(super) fn column(&mut self, spine: &RecordBatch) -> Result<ArrayRef, OfflineError> {
        let split_of: Vec<Option<i8>> = match &self.rule {
            SplitRule::Time(ranges) => self.by_time(ranges, spine)?,
            SplitRule::Shares { salt, shares, .. } => self.by_digest(salt, shares, spine)?,
        };
        for split in &split_of {
            match split {
                Some(split) => self.rows[*split as usize] += 1,
                None => self.rows_in_none += 1,
            }
        }
        let names = Arc::new(StringArray::from_iter_values(&self.names));
        Ok(Arc::new(DictionaryArray::try_new(Int8Array::from(split_of), names)?))
    }

    /// The rows of each split, and those in none.
    pub(super) fn counts(self) -> (BTreeMap<String, u64>, u64) {
        (self.names.into_iter().zip(self.rows).collect(), self.rows_in_none)
    }

    fn by_time(&self, ranges: &[TimeRange], spine: &RecordBatch) -> Result<Vec<Option<i8>>, OfflineError> {
        let times = column_of(spine, 0, &self.timestamp, DataType::Timestamp)?;
        let times = times.as_primitive::<TimestampMicrosecondType>();
        let holds = |range: &TimeRange, at_us: i64| {
            range.from_us.is_none_or(|from_us| from_us <= at_us) && range.to_us.is_none_or(|to_us| at_us < to_us)
        };
        let split_of = |row: usize| {
            let at_us = times.is_valid(row).then(|| times.value(row))?;
            ranges.iter().position(|range| holds(range, at_us)).map(|split| split as i8)
        };
        Ok((0..times.len()).map(split_of).collect())
    }

    fn by_digest(
        &self,
        salt: &str,
        shares: &[SplitShare],
        spine: &RecordBatch,
    ) -> Result<Vec<Option<i8>>, OfflineError> {
        let columns = self.columns.iter().map(|name| identity_column(spine, name, &self.timestamp));
        let columns: Vec<ArrayRef> = columns.collect::<Result<_, _>>()?;
        let encoder = BatchEncoder::try_new(&columns)?;
        let mut ends = Vec::with_capacity(shares.len());
        let mut sum = 0_u64;
        for share in shares {
            sum += share.billionths;
            ends.push((u128::from(sum) << 64) / u128::from(WHOLE));
        }
        let mut encoded = Vec::new();
        let split_of = |row: usize| {
            encoded.clear();
            encoded.extend_from_slice(salt.as_bytes());
            encoded.push(0);
            encoder.encode_row(row, &mut encoded);
            let place = TieDigest::of(&encoded);
            let place = u64::from_be_bytes(first_half(place.as_bytes()));
            ends.iter().position(|end| u128::from(place) < *end).map(|split| split as i8)
        };
        Ok((0..spine.num_rows()).map(split_of).collect())
    }
}

/// A column of the spine as it is read: a time is an instant, whether the file has it as text or not.
pub(super) fn identity_column(spine: &RecordBatch, name: &str, timestamp: &str) -> Result<ArrayRef, OfflineError> {
    match name == timestamp {
        true => column_of(spine, 0, name, DataType::Timestamp),
        false => encodable(named(spine, name)?),
    }
}

fn first_half(bytes: &[u8; 16]) -> [u8; 8] {
    let mut half = [0; 8];
    half.copy_from_slice(&bytes[..8]);
    half
}
