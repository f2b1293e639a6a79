//! What the values of each feature look like: kept with a training set, so that others can be held against it later.
//!
//! Counts, extremes and means are of all rows. Quantiles and top values are of a sample of rows: all of them up to
//! [`SAMPLE_ROWS_MAX`], beyond that those that a fixed function of the row's number picks. Nothing depends on the order or the
//! batches in which rows are looked at, so the same rows give the same statistics, and parts can be merged.

mod exact_sum;

use std::collections::BTreeMap;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType as ArrowType;
use eadem_values::{DataType, Value, value_to_json};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use self::exact_sum::ExactSum;
use crate::error::OfflineError;

/// Rows that quantiles and top values are taken of, at most; at least half of it where there are more.
pub const SAMPLE_ROWS_MAX: usize = 65_536;

/// Values that [`FeatureStatistics::top`] lists, at most.
const TOP_VALUES_MAX: usize = 10;

/// Bytes of a text or of binary data that are looked at and shown.
const SHOWN_BYTES_MAX: usize = 128;

/// The quantiles that are kept, in thousandths.
const QUANTILES: [u32; 15] = [10, 50, 100, 200, 250, 300, 400, 500, 600, 700, 750, 800, 900, 950, 990];

/// What the features of a training set look like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatasetStatistics {
    /// Rows of the training set.
    pub rows: u64,
    /// Rows that quantiles, distinct and top values were taken of; all of them: these are exact.
    pub sampled_rows: u64,
    /// The features, in the order of their columns.
    pub features: Vec<FeatureStatistics>,
}

impl DatasetStatistics {
    /// The same without what is the value of single rows: extremes, quantiles and top values. Counts and means are of all rows
    /// together, and stay.
    #[must_use]
    pub fn without_values(&self) -> Self {
        let without = |feature: &FeatureStatistics| FeatureStatistics {
            min: Json::Null,
            max: Json::Null,
            quantiles: BTreeMap::new(),
            top: Vec::new(),
            ..feature.clone()
        };
        Self { features: self.features.iter().map(without).collect(), ..self.clone() }
    }
}

/// What the values of one feature look like, as they stand in the training set: defaults count as values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FeatureStatistics {
    /// The column's name.
    pub name: String,
    /// Its type.
    pub data_type: DataType,
    /// Rows by status, of those that occur.
    pub statuses: BTreeMap<String, u64>,
    /// Rows that have a value.
    pub values: u64,
    /// Rows that have none.
    pub nulls: u64,
    /// Values that are not a number; they are left out of everything below.
    pub nan: u64,
    /// The least value; of texts and binary data the first bytes. `null` for vectors and lists, and where there is none.
    pub min: Json,
    /// The greatest one.
    pub max: Json,
    /// The mean of numbers and times, exact and rounded once; of booleans the share of true.
    pub mean: Json,
    /// Share of the sampled values → the least value that at least this share of them does not exceed.
    pub quantiles: BTreeMap<String, Json>,
    /// Values in the sample.
    pub sampled: u64,
    /// How many of those differ from each other.
    pub distinct: u64,
    /// The most frequent ones, the most frequent first.
    pub top: Vec<TopValue>,
    /// How long texts and binary data are, in bytes, and lists, in elements.
    pub length: Option<LengthStatistics>,
}

/// A value that occurs often.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TopValue {
    /// The value; of texts and binary data the first bytes.
    pub value: Json,
    /// How often it is in the sample.
    pub count: u64,
}

/// How long values are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LengthStatistics {
    /// The shortest.
    pub min: u64,
    /// The longest.
    pub max: u64,
    /// On average.
    pub mean: f64,
}

/// Collects the statistics of rows that come batch by batch, or of a part of them that is merged into others.
#[derive(Debug, Clone)]
pub struct StatisticsBuilder {
    /// The number of the next row.
    next_row: u64,
    rows: u64,
    sample: RowSample,
    features: Vec<FeatureBuilder>,
}

/// Which rows belong to the sample.
#[derive(Debug, Clone)]
struct RowSample {
    rows_max: usize,
    /// Rows are sampled whose mixed number ends in so many zeros.
    level: u32,
    /// Their numbers.
    rows: Vec<u64>,
}

#[derive(Debug, Clone)]
struct FeatureBuilder {
    name: String,
    data_type: DataType,
    values: u64,
    nulls: u64,
    nan: u64,
    found: Found,
    length: Option<LengthSums>,
}

#[derive(Debug, Clone)]
struct LengthSums {
    min: u64,
    max: u64,
    sum: u64,
}

/// What was found of values, by how they are compared.
#[derive(Debug, Clone)]
enum Found {
    /// As whole numbers of the same order.
    Numbers { range: Option<(i64, i64)>, sum: Box<ExactSum>, infinite: (bool, bool), sampled: Vec<(u64, i64)> },
    /// By their bytes.
    Texts { range: Option<(Vec<u8>, Vec<u8>)>, sampled: Vec<(u64, Vec<u8>)> },
    /// Not at all.
    Nothing,
}

impl StatisticsBuilder {
    /// For features of these names and types, of which the first row to come has this number.
    pub fn new(features: &[(String, DataType)], first_row: u64) -> Self {
        Self::with_sample(features, first_row, SAMPLE_ROWS_MAX)
    }

    fn with_sample(features: &[(String, DataType)], first_row: u64, rows_max: usize) -> Self {
        let features = features.iter().map(|(name, data_type)| FeatureBuilder::new(name, *data_type)).collect();
        let sample = RowSample { rows_max, level: 0, rows: Vec::new() };
        Self { next_row: first_row, rows: 0, sample, features }
    }

    /// The next rows: one column per feature, in canonical form.
    ///
    /// # Errors
    /// Another number of columns, or one of another type.
    pub fn update(&mut self, rows: usize, columns: &[ArrayRef]) -> Result<(), OfflineError> {
        let fits = |(feature, column): (&FeatureBuilder, &ArrayRef)| {
            column.data_type() == &feature.data_type.to_arrow() && column.len() == rows
        };
        if columns.len() != self.features.len() || !self.features.iter().zip(columns).all(fits) {
            return Err(eadem_query::QueryError::Shape("statistics of other columns".to_owned()).into());
        }
        let first_row = self.next_row;
        let sampled: Vec<usize> = (0..rows).filter(|row| self.sample.has(first_row + *row as u64)).collect();
        for (feature, column) in self.features.iter_mut().zip(columns) {
            feature.update(column, first_row, &sampled);
        }
        self.sample.rows.extend(sampled.iter().map(|row| first_row + *row as u64));
        self.next_row += rows as u64;
        self.rows += rows as u64;
        self.thin_out();
        Ok(())
    }

    /// Adds what was found of other rows of the same features.
    pub fn merge(&mut self, other: Self) {
        self.rows += other.rows;
        self.next_row = self.next_row.max(other.next_row);
        self.sample.level = self.sample.level.max(other.sample.level);
        self.sample.rows.extend(other.sample.rows);
        for (feature, other) in self.features.iter_mut().zip(other.features) {
            feature.merge(other);
        }
        self.drop_what_is_not_sampled();
        self.thin_out();
    }

    fn thin_out(&mut self) {
        while self.sample.rows.len() > self.sample.rows_max {
            self.sample.level += 1;
            self.drop_what_is_not_sampled();
        }
    }

    fn drop_what_is_not_sampled(&mut self) {
        let level = self.sample.level;
        self.sample.rows.retain(|row| is_sampled(*row, level));
        for feature in &mut self.features {
            match &mut feature.found {
                Found::Numbers { sampled, .. } => sampled.retain(|(row, _)| is_sampled(*row, level)),
                Found::Texts { sampled, .. } => sampled.retain(|(row, _)| is_sampled(*row, level)),
                Found::Nothing => {}
            }
        }
    }

    /// What was found. `statuses` are, for each feature, the rows by status.
    pub fn finish(self, statuses: &BTreeMap<String, BTreeMap<String, u64>>) -> DatasetStatistics {
        let finished = self.features.into_iter().map(|feature| {
            let statuses = statuses.get(&feature.name).cloned().unwrap_or_default();
            feature.finish(statuses)
        });
        DatasetStatistics { rows: self.rows, sampled_rows: self.sample.rows.len() as u64, features: finished.collect() }
    }
}

impl RowSample {
    fn has(&self, row: u64) -> bool {
        is_sampled(row, self.level)
    }
}

/// Whether a row is in the sample of this level: half as many with each. The number is mixed (splitmix64), so that a spine
/// whose rows follow a rhythm is not sampled to its beat.
fn is_sampled(row: u64, level: u32) -> bool {
    let mut mixed = row.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    mixed.trailing_zeros() >= level
}

/// A float as a whole number of the same order: of two zeros the negative one is less.
fn ordered(value: f64) -> i64 {
    let bits = value.to_bits() as i64;
    bits ^ ((bits >> 63) as u64 >> 1) as i64
}

fn from_ordered(number: i64) -> f64 {
    f64::from_bits((number ^ ((number >> 63) as u64 >> 1) as i64) as u64)
}

impl FeatureBuilder {
    fn new(name: &str, data_type: DataType) -> Self {
        let numbers = || Found::Numbers {
            range: None,
            sum: Box::new(ExactSum::new()),
            infinite: (false, false),
            sampled: Vec::new(),
        };
        let found = match data_type {
            DataType::Boolean | DataType::Int64 | DataType::Float32 | DataType::Float64 | DataType::Timestamp => {
                numbers()
            }
            DataType::Utf8 | DataType::Binary => Found::Texts { range: None, sampled: Vec::new() },
            DataType::Vector(_) | DataType::List(_) => Found::Nothing,
        };
        let has_length = matches!(data_type, DataType::Utf8 | DataType::Binary | DataType::List(_));
        let length = has_length.then_some(LengthSums { min: u64::MAX, max: 0, sum: 0 });
        Self { name: name.to_owned(), data_type, values: 0, nulls: 0, nan: 0, found, length }
    }

    fn update(&mut self, column: &ArrayRef, first_row: u64, sampled: &[usize]) {
        self.nulls += column.null_count() as u64;
        self.values += (column.len() - column.null_count()) as u64;
        match column.data_type() {
            ArrowType::Boolean => {
                let column = column.as_boolean();
                self.whole_numbers(column, first_row, sampled, |row| i64::from(column.value(row)));
            }
            ArrowType::Int64 => {
                let values = column.as_primitive::<Int64Type>().values();
                self.whole_numbers(column.as_ref(), first_row, sampled, |row| values[row]);
            }
            ArrowType::Timestamp(..) => {
                let values = column.as_primitive::<TimestampMicrosecondType>().values();
                self.whole_numbers(column.as_ref(), first_row, sampled, |row| values[row]);
            }
            ArrowType::Float64 => {
                let values = column.as_primitive::<Float64Type>().values();
                self.floats(column.as_ref(), first_row, sampled, |row| values[row]);
            }
            ArrowType::Float32 => {
                let values = column.as_primitive::<Float32Type>().values();
                self.floats(column.as_ref(), first_row, sampled, |row| f64::from(values[row]));
            }
            ArrowType::Utf8 => {
                let column = column.as_string::<i32>();
                self.texts(column, first_row, sampled, |row| column.value(row).as_bytes());
            }
            ArrowType::Binary => {
                let column = column.as_binary::<i32>();
                self.texts(column, first_row, sampled, |row| column.value(row));
            }
            ArrowType::List(_) => {
                let column = column.as_list::<i32>();
                self.lengths(column, |row| column.value_length(row) as u64);
            }
            _ => {}
        }
    }

    fn whole_numbers(&mut self, column: &dyn Array, first_row: u64, picks: &[usize], value: impl Fn(usize) -> i64) {
        let Found::Numbers { range, sum, sampled, .. } = &mut self.found else { return };
        let (mut least, mut greatest) = range.unwrap_or((i64::MAX, i64::MIN));
        let mut total = 0_i128;
        each_value(column, |row| {
            let value = value(row);
            (least, greatest) = (least.min(value), greatest.max(value));
            total += i128::from(value);
        });
        sum.add_integers(total);
        *range = (least <= greatest).then_some((least, greatest));
        let picked = picks.iter().filter(|row| column.is_valid(**row));
        sampled.extend(picked.map(|row| (first_row + *row as u64, value(*row))));
    }

    fn floats(&mut self, column: &dyn Array, first_row: u64, picks: &[usize], value: impl Fn(usize) -> f64) {
        let Found::Numbers { range, sum, infinite, sampled } = &mut self.found else { return };
        let (mut least, mut greatest) = range.unwrap_or((i64::MAX, i64::MIN));
        let mut nan = 0;
        each_value(column, |row| {
            let value = value(row);
            if value.is_nan() {
                nan += 1;
                return;
            }
            let number = ordered(value);
            (least, greatest) = (least.min(number), greatest.max(number));
            sum.add(value);
        });
        self.nan += nan;
        *range = (least <= greatest).then_some((least, greatest));
        let (least, greatest) =
            range.map_or((0.0, 0.0), |(least, greatest)| (from_ordered(least), from_ordered(greatest)));
        *infinite = (infinite.0 || least == f64::NEG_INFINITY, infinite.1 || greatest == f64::INFINITY);
        let picked = picks.iter().filter(|row| column.is_valid(**row) && !value(**row).is_nan());
        sampled.extend(picked.map(|row| (first_row + *row as u64, ordered(value(*row)))));
    }

    fn texts<'a>(&mut self, column: &dyn Array, first_row: u64, picks: &[usize], value: impl Fn(usize) -> &'a [u8]) {
        self.lengths(column, |row| value(row).len() as u64);
        let Found::Texts { range, sampled } = &mut self.found else { return };
        let mut ends: Option<(&[u8], &[u8])> = None;
        each_value(column, |row| {
            let value = value(row);
            ends = Some(ends.map_or((value, value), |(least, greatest)| (least.min(value), greatest.max(value))));
        });
        if let Some((least, greatest)) = ends {
            merge_range(range, (shown(least).to_vec(), shown(greatest).to_vec()));
        }
        let picked = picks.iter().filter(|row| column.is_valid(**row));
        sampled.extend(picked.map(|row| (first_row + *row as u64, shown(value(*row)).to_vec())));
    }

    fn lengths(&mut self, column: &dyn Array, length: impl Fn(usize) -> u64) {
        let Some(lengths) = &mut self.length else { return };
        each_value(column, |row| {
            let length = length(row);
            lengths.min = lengths.min.min(length);
            lengths.max = lengths.max.max(length);
            lengths.sum += length;
        });
    }

    fn merge(&mut self, other: Self) {
        self.values += other.values;
        self.nulls += other.nulls;
        self.nan += other.nan;
        if let (Some(lengths), Some(other)) = (&mut self.length, &other.length) {
            lengths.min = lengths.min.min(other.min);
            lengths.max = lengths.max.max(other.max);
            lengths.sum += other.sum;
        }
        match (&mut self.found, other.found) {
            (
                Found::Numbers { range, sum, infinite, sampled },
                Found::Numbers { range: other_range, sum: other_sum, infinite: other_infinite, sampled: others },
            ) => {
                if let Some(other) = other_range {
                    merge_range(range, other);
                }
                sum.merge(&other_sum);
                *infinite = (infinite.0 || other_infinite.0, infinite.1 || other_infinite.1);
                sampled.extend(others);
            }
            (Found::Texts { range, sampled }, Found::Texts { range: other_range, sampled: others }) => {
                if let Some(other) = other_range {
                    merge_range(range, other);
                }
                sampled.extend(others);
            }
            _ => {}
        }
    }

    fn finish(self, statuses: BTreeMap<String, u64>) -> FeatureStatistics {
        let data_type = self.data_type;
        let mut finished = FeatureStatistics {
            name: self.name,
            data_type,
            statuses,
            values: self.values,
            nulls: self.nulls,
            nan: self.nan,
            min: Json::Null,
            max: Json::Null,
            mean: Json::Null,
            quantiles: BTreeMap::new(),
            sampled: 0,
            distinct: 0,
            top: Vec::new(),
            length: self.length.filter(|_| self.values > 0).map(|lengths| LengthStatistics {
                min: lengths.min,
                max: lengths.max,
                mean: lengths.sum as f64 / self.values as f64,
            }),
        };
        match self.found {
            Found::Numbers { range, sum, infinite, sampled } => {
                let shown = |number: &i64| value_to_json(&number_value(data_type, *number));
                if let Some((least, greatest)) = range {
                    (finished.min, finished.max) = (shown(&least), shown(&greatest));
                }
                finished.mean = mean_json(data_type, &sum, infinite, self.values - self.nan);
                let sampled: Vec<i64> = sampled.into_iter().map(|(_, number)| number).collect();
                finished.take_sample(sampled, data_type != DataType::Boolean, shown);
            }
            Found::Texts { range, sampled } => {
                let shown = |bytes: &Vec<u8>| value_to_json(&text_value(data_type, bytes));
                if let Some((least, greatest)) = range {
                    (finished.min, finished.max) = (shown(&least), shown(&greatest));
                }
                let sampled: Vec<Vec<u8>> = sampled.into_iter().map(|(_, bytes)| bytes).collect();
                finished.take_sample(sampled, false, shown);
            }
            Found::Nothing => {}
        }
        finished
    }
}

impl FeatureStatistics {
    fn take_sample<T: Ord>(&mut self, mut sample: Vec<T>, has_quantiles: bool, shown: impl Fn(&T) -> Json) {
        self.sampled = sample.len() as u64;
        sample.sort_unstable();
        let quantiles = QUANTILES.iter().filter(|_| has_quantiles && !sample.is_empty());
        self.quantiles = quantiles
            .map(|thousandths| {
                let rank = (sample.len() as u64 * u64::from(*thousandths)).div_ceil(1_000).max(1);
                (share_text(*thousandths), shown(&sample[rank as usize - 1]))
            })
            .collect();
        let mut runs: Vec<(u64, &T)> = Vec::new();
        for value in &sample {
            match runs.last_mut() {
                Some((count, known)) if *known == value => *count += 1,
                _ => runs.push((1, value)),
            }
        }
        self.distinct = runs.len() as u64;
        // Stable: of values that are equally frequent the least comes first.
        runs.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        let top = runs.into_iter().take(TOP_VALUES_MAX);
        self.top = top.map(|(count, value)| TopValue { value: shown(value), count }).collect();
    }
}

fn each_value(column: &dyn Array, mut look_at: impl FnMut(usize)) {
    match column.nulls() {
        None => (0..column.len()).for_each(look_at),
        Some(nulls) => nulls.valid_indices().for_each(&mut look_at),
    }
}

fn merge_range<T: Ord>(range: &mut Option<(T, T)>, other: (T, T)) {
    *range = Some(match range.take() {
        None => other,
        Some((least, greatest)) => (least.min(other.0), greatest.max(other.1)),
    });
}

/// The first bytes of a text or of binary data; of a text only whole characters.
fn shown(bytes: &[u8]) -> &[u8] {
    let Some(first) = bytes.get(..SHOWN_BYTES_MAX) else { return bytes };
    match std::str::from_utf8(first) {
        Err(error) if error.error_len().is_none() => &first[..error.valid_up_to()],
        _ => first,
    }
}

fn number_value(data_type: DataType, number: i64) -> Value {
    match data_type {
        DataType::Boolean => Value::Boolean(number != 0),
        DataType::Timestamp => Value::Timestamp(number),
        DataType::Float64 => Value::Float64(from_ordered(number)),
        DataType::Float32 => Value::Float32(from_ordered(number) as f32),
        _ => Value::Int64(number),
    }
}

fn text_value(data_type: DataType, bytes: &[u8]) -> Value {
    match data_type {
        DataType::Binary => Value::Binary(bytes.to_vec()),
        _ => Value::Utf8(String::from_utf8_lossy(bytes).into_owned()),
    }
}

fn mean_json(data_type: DataType, sum: &ExactSum, infinite: (bool, bool), count: u64) -> Json {
    let mean = match infinite {
        (true, true) => Some(f64::NAN),
        (true, false) => Some(f64::NEG_INFINITY),
        (false, true) => Some(f64::INFINITY),
        (false, false) => sum.mean(count),
    };
    match (data_type, mean) {
        (_, None) => Json::Null,
        (DataType::Timestamp, Some(mean)) => value_to_json(&Value::Timestamp(mean.floor() as i64)),
        (_, Some(mean)) => value_to_json(&Value::Float64(mean)),
    }
}

/// `500` thousandths are `0.5`.
fn share_text(thousandths: u32) -> String {
    format!("0.{thousandths:03}").trim_end_matches('0').to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{BooleanArray, Float32Array, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
    use serde_json::json;

    use super::*;

    fn of(data_type: DataType, column: ArrayRef) -> FeatureStatistics {
        let mut builder = StatisticsBuilder::new(&[("f".to_owned(), data_type)], 0);
        builder.update(column.len(), &[column]).unwrap();
        builder.finish(&BTreeMap::new()).features.remove(0)
    }

    #[test]
    fn small_columns_are_described_exactly() {
        let floats = [Some(3.0), None, Some(f64::NAN), Some(-0.0), Some(0.0), Some(3.0), Some(1e300)];
        let found = of(DataType::Float64, Arc::new(Float64Array::from(floats.to_vec())));
        assert_eq!((found.values, found.nulls, found.nan, found.sampled, found.distinct), (6, 1, 1, 5, 4));
        assert_eq!((&found.min, &found.max), (&json!(-0.0), &json!(1e300)));
        assert!(found.min.as_f64().unwrap().is_sign_negative());
        assert_eq!(found.mean, json!((1e300 + 6.0) / 5.0));
        assert_eq!((&found.quantiles["0.5"], &found.quantiles["0.01"]), (&json!(3.0), &json!(-0.0)));
        assert_eq!(found.top[0], TopValue { value: json!(3.0), count: 2 });

        let found = of(DataType::Float64, Arc::new(Float64Array::from(vec![f64::INFINITY, 1.0])));
        assert_eq!((found.mean, found.max), (json!("Infinity"), json!("Infinity")));
        let found = of(DataType::Float32, Arc::new(Float32Array::from(vec![0.1, 0.1])));
        assert_eq!((&found.min, &found.quantiles["0.99"]), (&json!(0.1), &json!(0.1)));
        assert_eq!(found.mean, json!(f64::from(0.1_f32)));
        let found = of(DataType::Int64, Arc::new(Int64Array::from(vec![i64::MIN, i64::MAX, 0])));
        assert_eq!((&found.min, &found.max), (&json!(i64::MIN), &json!(i64::MAX)));
        assert_eq!(found.mean, json!(-1.0 / 3.0));
        let times = TimestampMicrosecondArray::from(vec![-3, 0]).with_timezone("UTC");
        let found = of(DataType::Timestamp, Arc::new(times));
        assert_eq!(found.mean, json!("1969-12-31T23:59:59.999998Z"));
        let found = of(DataType::Boolean, Arc::new(BooleanArray::from(vec![true, true, false, true])));
        assert_eq!((found.mean, found.quantiles.len()), (json!(0.75), 0));
        let long = format!("{}é", "a".repeat(SHOWN_BYTES_MAX - 1));
        let found = of(DataType::Utf8, Arc::new(StringArray::from(vec![Some(long.as_str()), None, Some("b")])));
        assert_eq!(found.min, json!("a".repeat(SHOWN_BYTES_MAX - 1)));
        assert_eq!(found.length.unwrap(), LengthStatistics { min: 1, max: 129, mean: 65.0 });
        let found = of(DataType::Utf8, Arc::new(StringArray::from(vec![None::<&str>])));
        assert_eq!((found.min, found.length, found.sampled), (Json::Null, None, 0));
    }

    /// However the rows are cut into parts, and whatever part comes first.
    #[test]
    fn batches_parts_and_their_order_do_not_matter() {
        let rows = 10_000_u64;
        let value = |row: u64| if row.is_multiple_of(7) { None } else { Some((row * 7_919 % 1_000) as f64 * 0.1) };
        let columns = |rows: std::ops::Range<u64>| -> Vec<ArrayRef> {
            let texts = rows.clone().map(|row| value(row).map(|value| format!("{value}")));
            vec![Arc::new(rows.clone().map(value).collect::<Float64Array>()), Arc::new(texts.collect::<StringArray>())]
        };
        let features = [("number".to_owned(), DataType::Float64), ("text".to_owned(), DataType::Utf8)];
        let part = |rows: std::ops::Range<u64>, batch: usize| {
            let mut builder = StatisticsBuilder::with_sample(&features, rows.start, 1_000);
            for start in rows.clone().step_by(batch) {
                let end = rows.end.min(start + batch as u64);
                builder.update((end - start) as usize, &columns(start..end)).unwrap();
            }
            builder
        };
        let whole = part(0..rows, 10_000).finish(&BTreeMap::new());
        assert!((500..=1_000).contains(&whole.sampled_rows), "{}", whole.sampled_rows);
        assert_eq!(part(0..rows, 33).finish(&BTreeMap::new()), whole);
        let mut merged = part(6_000..rows, 100);
        merged.merge(part(0..500, 7));
        merged.merge(part(500..6_000, 999));
        assert_eq!(merged.finish(&BTreeMap::new()), whole);
        let median = whole.features[0].quantiles["0.5"].as_f64().unwrap();
        assert!((45.0..55.0).contains(&median), "{median}");
    }

    #[test]
    fn other_columns_are_refused() {
        let mut builder = StatisticsBuilder::new(&[("f".to_owned(), DataType::Int64)], 0);
        let column: ArrayRef = Arc::new(Float64Array::from(vec![1.0]));
        assert!(builder.update(1, &[column]).is_err());
        assert!(builder.update(1, &[]).is_err());
    }
}
