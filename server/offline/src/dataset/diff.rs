//! What has changed between two training sets: columns, versions, commits, statistics, and the rows themselves.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow_array::{Array, ArrayRef, RecordBatch};
use eadem_values::{BatchEncoder, TieDigest, value_at, value_to_json};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::content::{encodable, type_name};
use super::recipe::Recipe;
use super::rows::open_rows;
use super::spec::DatasetWatch;
use super::statistics::{DatasetStatistics, FeatureStatistics};
use crate::cancel::unless_cancelled;
use crate::error::OfflineError;

/// Rows of the first training set that can be looked up by keys and time; they are held in memory.
pub(super) const MATCHED_ROWS_MAX: usize = 5_000_000;

/// Changed values that are shown of a column.
const EXAMPLES_MAX: usize = 5;

/// One of the two.
#[derive(Debug, Clone)]
pub struct DiffSide {
    /// The file: a local path or URL.
    pub file: String,
    /// How it was made.
    pub recipe: Recipe,
    /// What its features look like, if that was kept.
    pub statistics: Option<DatasetStatistics>,
}

/// What has changed from `a` to `b`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatasetDiff {
    /// Whether both have the same content, bit for bit.
    pub same_content: bool,
    /// What differs in how they were made, by what it is.
    pub recipe: BTreeMap<String, Pair<Json>>,
    /// View → its version, component and commit, where these differ. `null`: not there.
    pub views: BTreeMap<String, Pair<Json>>,
    /// Column → its type, where that differs. `null`: not there.
    pub columns: BTreeMap<String, Pair<Option<String>>>,
    /// How rows were compared.
    pub matched_by: MatchedBy,
    /// Rows of each.
    pub rows: Pair<u64>,
    /// Rows of each that the other does not have; 0 where rows could not be matched.
    pub rows_only_in: Pair<u64>,
    /// Rows of both in which something has changed.
    pub rows_changed: u64,
    /// Column of both → what has changed in it, where something has.
    pub changes: BTreeMap<String, ColumnChanges>,
    /// Feature of both → what differs in its statistics, where something does.
    pub statistics: BTreeMap<String, BTreeMap<String, Pair<Json>>>,
}

/// Something in both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair<T> {
    /// In the first.
    pub a: T,
    /// In the second.
    pub b: T,
}

/// How the rows of two training sets were brought together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MatchedBy {
    /// They are the same, and nothing was compared.
    Content,
    /// Both were made of one spine: row by row.
    Position,
    /// By keys and time; among rows that agree in both, by their order.
    KeysAndTime,
    /// Not at all, because of this.
    Nothing(String),
}

/// What has changed in a column, among rows of both.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ColumnChanges {
    /// Rows with other bits, or another status.
    pub rows: u64,
    /// Those with another status.
    pub statuses: u64,
    /// The first of them.
    pub first: Vec<ChangedValue>,
}

/// A value that has changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChangedValue {
    /// The row's number in each, from 0.
    pub row: Pair<u64>,
    /// Its keys and time, by the spine's names.
    pub identity: Map<String, Json>,
    /// The value in each.
    pub value: Pair<Json>,
    /// The status in each, where both have statuses.
    pub status: Option<Pair<String>>,
}

/// Compares two training sets. `watch` is told rows read and rows in all, of both.
///
/// # Errors
/// A file that cannot be read; rows that can only be matched by keys and time where the first set has too many; cancellation.
pub async fn diff_datasets(a: &DiffSide, b: &DiffSide, watch: &DatasetWatch) -> Result<DatasetDiff, OfflineError> {
    unless_cancelled(&watch.cancel, compare(a, b, watch)).await
}

async fn compare(a: &DiffSide, b: &DiffSide, watch: &DatasetWatch) -> Result<DatasetDiff, OfflineError> {
    let (a_rows, b_rows) = (open_rows(&a.file).await?, open_rows(&b.file).await?);
    let a_types: BTreeMap<String, String> = types(&a_rows.schema);
    let b_types: BTreeMap<String, String> = types(&b_rows.schema);
    let same_content = a.recipe.content_digest == b.recipe.content_digest;
    let mut diff = DatasetDiff {
        same_content,
        recipe: recipe_differences(&a.recipe, &b.recipe),
        views: view_differences(&a.recipe, &b.recipe),
        columns: differences(&a_types, &b_types),
        matched_by: MatchedBy::Content,
        rows: Pair { a: a.recipe.rows, b: b.recipe.rows },
        rows_only_in: Pair { a: 0, b: 0 },
        rows_changed: 0,
        changes: BTreeMap::new(),
        statistics: statistics_differences(a.statistics.as_ref(), b.statistics.as_ref()),
    };
    if same_content {
        return Ok(diff);
    }
    let of_both = |name: &&String| a_types.get(*name) == b_types.get(*name) && a_types.contains_key(*name);
    let names: Vec<String> = a_types.keys().filter(of_both).cloned().collect();
    let is_aligned = a.recipe.spine_digest == b.recipe.spine_digest && a.recipe.rows == b.recipe.rows;
    let identity = match shared_identity(&a.recipe, &b.recipe, &names) {
        Ok(identity) => identity,
        Err(reason) if !is_aligned => {
            diff.matched_by = MatchedBy::Nothing(reason);
            return Ok(diff);
        }
        Err(_) => Vec::new(),
    };
    let mut comparison = Comparison::new(&names, &identity);
    let counter = Arc::new(AtomicU64::new(0));
    let [mut a_batches, mut b_batches] = [a_rows.batches, b_rows.batches]
        .map(|batches| watched(batches, watch, &counter, a.recipe.rows + b.recipe.rows));
    if is_aligned {
        diff.matched_by = MatchedBy::Position;
        comparison.by_position(&mut a_batches, &mut b_batches).await?;
    } else {
        diff.matched_by = MatchedBy::KeysAndTime;
        diff.rows_only_in = comparison.by_identity(&mut a_batches, &mut b_batches, &identity).await?;
    }
    diff.rows_changed = comparison.rows_changed;
    diff.changes = comparison.changes.into_iter().filter(|(_, changes)| changes.rows > 0).collect();
    Ok(diff)
}

fn types(schema: &arrow_schema::Schema) -> BTreeMap<String, String> {
    schema.fields().iter().map(|field| (field.name().clone(), type_name(field.data_type()))).collect()
}

/// What differs between two maps. `None`: not there.
fn differences<T: Clone + PartialEq>(
    a: &BTreeMap<String, T>,
    b: &BTreeMap<String, T>,
) -> BTreeMap<String, Pair<Option<T>>> {
    let names = a.keys().chain(b.keys());
    let pairs = names.map(|name| (name.clone(), Pair { a: a.get(name).cloned(), b: b.get(name).cloned() }));
    pairs.filter(|(_, pair)| pair.a != pair.b).collect()
}

/// The same, where not being there is `null`.
fn json_differences(a: &BTreeMap<String, Json>, b: &BTreeMap<String, Json>) -> BTreeMap<String, Pair<Json>> {
    let plain = |pair: Pair<Option<Json>>| Pair { a: pair.a.unwrap_or_default(), b: pair.b.unwrap_or_default() };
    differences(a, b).into_iter().map(|(name, pair)| (name, plain(pair))).collect()
}

fn recipe_differences(a: &Recipe, b: &Recipe) -> BTreeMap<String, Pair<Json>> {
    let facts = |recipe: &Recipe| -> BTreeMap<String, Json> {
        BTreeMap::from([
            ("service".to_owned(), Json::from(recipe.service.as_str())),
            ("service_digest".to_owned(), Json::from(recipe.service_digest.as_str())),
            ("spine".to_owned(), json(&recipe.spine_digest)),
            ("columns".to_owned(), json(&recipe.columns)),
            ("known_at_cut".to_owned(), Json::from(recipe.cut.to_string())),
            ("with_status".to_owned(), Json::from(recipe.with_status)),
            ("split".to_owned(), json(&recipe.options.split)),
            ("left_out".to_owned(), json(&recipe.options.left_out)),
            ("format".to_owned(), json(&recipe.options.format)),
            ("engine".to_owned(), Json::from(recipe.engine_fingerprint.as_str())),
        ])
    };
    json_differences(&facts(a), &facts(b))
}

fn json(value: &impl Serialize) -> Json {
    serde_json::to_value(value).unwrap_or_default()
}

fn view_differences(a: &Recipe, b: &Recipe) -> BTreeMap<String, Pair<Json>> {
    let views = |recipe: &Recipe| -> BTreeMap<String, Json> {
        let shown = |view: &super::recipe::RecipeView| {
            let name = view.view.split('@').next().unwrap_or_default().to_owned();
            let facts = serde_json::json!({
                "view": view.view,
                "digest": view.digest,
                "component": view.component,
                "commit": view.table_version,
                "files": view.files.len(),
            });
            (name, facts)
        };
        recipe.views.iter().map(shown).collect()
    };
    json_differences(&views(a), &views(b))
}

fn statistics_differences(
    a: Option<&DatasetStatistics>,
    b: Option<&DatasetStatistics>,
) -> BTreeMap<String, BTreeMap<String, Pair<Json>>> {
    let (Some(a), Some(b)) = (a, b) else { return BTreeMap::new() };
    let facts = |feature: &FeatureStatistics| -> BTreeMap<String, Json> {
        let statuses = feature.statuses.iter().map(|(status, rows)| (format!("status {status}"), Json::from(*rows)));
        let quantiles = feature.quantiles.iter().map(|(share, value)| (format!("quantile {share}"), value.clone()));
        let simple = [
            ("values", Json::from(feature.values)),
            ("nan", Json::from(feature.nan)),
            ("min", feature.min.clone()),
            ("max", feature.max.clone()),
            ("mean", feature.mean.clone()),
            ("distinct in the sample", Json::from(feature.distinct)),
        ];
        let simple = simple.into_iter().map(|(name, value)| (name.to_owned(), value));
        simple.chain(statuses).chain(quantiles).collect()
    };
    let of_b: HashMap<&str, &FeatureStatistics> =
        b.features.iter().map(|feature| (feature.name.as_str(), feature)).collect();
    let pairs = a.features.iter().filter_map(|feature| Some((feature, of_b.get(feature.name.as_str())?)));
    pairs
        .map(|(a, b)| (a.name.clone(), json_differences(&facts(a), &facts(b))))
        .filter(|(_, differences)| !differences.is_empty())
        .collect()
}

/// The columns that name a row in both.
fn shared_identity(a: &Recipe, b: &Recipe, names: &[String]) -> Result<Vec<String>, String> {
    if a.keys != b.keys || a.columns.timestamp != b.columns.timestamp {
        return Err("the two have other keys, or their columns have other names".to_owned());
    }
    let mut identity: Vec<String> = a.keys.values().cloned().collect();
    identity.push(a.columns.timestamp.clone());
    match identity.iter().find(|name| !names.contains(name)) {
        Some(missing) => Err(format!("column `{missing}`, which names a row, is not in both, or of another type")),
        None => Ok(identity),
    }
}

type Batches = BoxStream<'static, Result<RecordBatch, OfflineError>>;

/// The same batches, until the comparison is called off: files on this machine are read, and their rows compared, without waiting
/// for anything in between. Whoever watches is told the rows of all that count in `counter`.
fn watched(batches: Batches, watch: &DatasetWatch, counter: &Arc<AtomicU64>, total: u64) -> Batches {
    let (watch, counter) = (watch.clone(), Arc::clone(counter));
    let look = move |batch: RecordBatch| {
        watch.cancel.check()?;
        let rows = batch.num_rows() as u64;
        let read = counter.fetch_add(rows, Ordering::Relaxed) + rows;
        if let Some(progress) = &watch.progress {
            progress(read, total);
        }
        Ok(batch)
    };
    batches.map(move |batch| batch.and_then(&look)).boxed()
}

/// Rows of both, brought together.
struct Comparison {
    /// The columns to compare, without statuses.
    names: Vec<String>,
    identity: Vec<String>,
    rows_changed: u64,
    changes: BTreeMap<String, ColumnChanges>,
}

impl Comparison {
    fn new(names: &[String], identity: &[String]) -> Self {
        let is_status = |name: &String| {
            name.strip_suffix("__status").is_some_and(|feature| names.iter().any(|name| name == feature))
        };
        let names: Vec<String> =
            names.iter().filter(|name| !is_status(name) && !identity.contains(name)).cloned().collect();
        Self { names, identity: identity.to_vec(), rows_changed: 0, changes: BTreeMap::new() }
    }

    async fn by_position(&mut self, a: &mut Batches, b: &mut Batches) -> Result<(), OfflineError> {
        let (mut a_rest, mut b_rest): (Option<RecordBatch>, Option<RecordBatch>) = (None, None);
        let mut first_row = 0;
        loop {
            for (rest, batches) in [(&mut a_rest, &mut *a), (&mut b_rest, &mut *b)] {
                while rest.as_ref().is_none_or(|rest| rest.num_rows() == 0) {
                    match batches.try_next().await? {
                        Some(batch) => *rest = Some(batch),
                        None => return Ok(()),
                    }
                }
            }
            let (Some(a_rows), Some(b_rows)) = (a_rest.take(), b_rest.take()) else { return Ok(()) };
            let rows = a_rows.num_rows().min(b_rows.num_rows());
            let numbers: Vec<u64> = (first_row..first_row + rows as u64).collect();
            self.compare(&a_rows.slice(0, rows), &b_rows.slice(0, rows), &numbers, &numbers)?;
            first_row += rows as u64;
            a_rest = Some(a_rows.slice(rows, a_rows.num_rows() - rows));
            b_rest = Some(b_rows.slice(rows, b_rows.num_rows() - rows));
        }
    }

    /// Gives the rows that only one of them has.
    async fn by_identity(
        &mut self,
        a: &mut Batches,
        b: &mut Batches,
        identity: &[String],
    ) -> Result<Pair<u64>, OfflineError> {
        let mut known = KnownRows::default();
        while let Some(batch) = a.try_next().await? {
            known.add(batch, identity)?;
        }
        let (mut found, mut only_in_b, mut b_row) = (0, 0, 0);
        let mut occurrences = Occurrences::default();
        while let Some(batch) = b.try_next().await? {
            let mut places = Vec::new();
            let mut rows = Vec::new();
            for (row, id) in row_ids(&batch, identity)?.into_iter().enumerate() {
                match known.places.get(&occurrences.next(id)) {
                    Some(place) => {
                        places.push(*place as u64);
                        rows.push(row as u32);
                    }
                    None => only_in_b += 1,
                }
            }
            found += places.len() as u64;
            let of_a = known.take(&places, batch.schema_ref())?;
            let rows_of_b = arrow_array::UInt32Array::from(rows.clone());
            let of_b = arrow_select::take::take_record_batch(&batch, &rows_of_b)?;
            let numbers: Vec<u64> = rows.iter().map(|row| b_row + u64::from(*row)).collect();
            if let Some(of_a) = of_a {
                self.compare(&of_a, &of_b, &places, &numbers)?;
            }
            b_row += batch.num_rows() as u64;
        }
        Ok(Pair { a: known.rows - found, b: only_in_b })
    }

    /// Compares as many rows of each, one by one.
    fn compare(
        &mut self,
        a: &RecordBatch,
        b: &RecordBatch,
        a_numbers: &[u64],
        b_numbers: &[u64],
    ) -> Result<(), OfflineError> {
        let mut has_changed = vec![false; a.num_rows()];
        for name in &self.names {
            let (Some(a_column), Some(b_column)) = (a.column_by_name(name), b.column_by_name(name)) else { continue };
            let status = format!("{name}__status");
            let statuses = match (a.column_by_name(&status), b.column_by_name(&status)) {
                (Some(a), Some(b)) => Some((text(a)?, text(b)?)),
                _ => None,
            };
            let (a_column, b_column) = (encodable(a_column)?, encodable(b_column)?);
            let other_values = differing_rows(&a_column, &b_column)?;
            let other_statuses = match &statuses {
                Some((a, b)) => differing_rows(a, b)?,
                None => Vec::new(),
            };
            if other_values.is_empty() && other_statuses.is_empty() {
                continue;
            }
            let mut rows: Vec<usize> = other_values.iter().chain(&other_statuses).copied().collect();
            rows.sort_unstable();
            rows.dedup();
            let changes = self.changes.entry(name.clone()).or_default();
            changes.rows += rows.len() as u64;
            changes.statuses += other_statuses.len() as u64;
            for row in &rows {
                has_changed[*row] = true;
            }
            for row in rows.into_iter().take(EXAMPLES_MAX.saturating_sub(changes.first.len())) {
                let value = |column: &ArrayRef| value_at(column.as_ref(), row).map(|value| value_to_json(&value));
                let status = match &statuses {
                    Some((a, b)) => {
                        let text =
                            |column: &ArrayRef| value(column).map(|json| json.as_str().unwrap_or_default().to_owned());
                        Some(Pair { a: text(a)?, b: text(b)? })
                    }
                    None => None,
                };
                let mut identity = Map::new();
                for name in &self.identity {
                    if let Some(column) = b.column_by_name(name) {
                        identity.insert(name.clone(), value(&encodable(column)?)?);
                    }
                }
                changes.first.push(ChangedValue {
                    row: Pair { a: a_numbers[row], b: b_numbers[row] },
                    identity,
                    value: Pair { a: value(&a_column)?, b: value(&b_column)? },
                    status,
                });
            }
        }
        self.rows_changed += has_changed.iter().filter(|changed| **changed).count() as u64;
        Ok(())
    }
}

fn text(column: &ArrayRef) -> Result<ArrayRef, OfflineError> {
    Ok(arrow_cast::cast(column, &arrow_schema::DataType::Utf8)?)
}

/// The rows in which two columns of one type have other bits.
fn differing_rows(a: &ArrayRef, b: &ArrayRef) -> Result<Vec<usize>, OfflineError> {
    if a == b {
        return Ok(Vec::new());
    }
    let a_encoder = BatchEncoder::try_new(std::slice::from_ref(a))?;
    let b_encoder = BatchEncoder::try_new(std::slice::from_ref(b))?;
    let (mut a_bytes, mut b_bytes) = (Vec::new(), Vec::new());
    let differs = |row: &usize| {
        a_bytes.clear();
        b_bytes.clear();
        a_encoder.encode_row(*row, &mut a_bytes);
        b_encoder.encode_row(*row, &mut b_bytes);
        a_bytes != b_bytes
    };
    Ok((0..a.len()).filter(differs).collect())
}

/// A digest of the columns that name a row, for each row.
fn row_ids(rows: &RecordBatch, identity: &[String]) -> Result<Vec<u128>, OfflineError> {
    let columns = identity.iter().filter_map(|name| rows.column_by_name(name)).map(encodable);
    let columns: Vec<ArrayRef> = columns.collect::<Result<_, _>>()?;
    let encoder = BatchEncoder::try_new(&columns)?;
    let mut encoded = Vec::new();
    let id = |row: usize| {
        encoded.clear();
        encoder.encode_row(row, &mut encoded);
        u128::from_be_bytes(*TieDigest::of(&encoded).as_bytes())
    };
    Ok((0..rows.num_rows()).map(id).collect())
}

/// Tells rows with one identity from each other by their order.
#[derive(Default)]
struct Occurrences {
    seen: HashMap<u128, u32>,
}

impl Occurrences {
    fn next(&mut self, id: u128) -> (u128, u32) {
        let seen = self.seen.entry(id).or_default();
        *seen += 1;
        (id, *seen)
    }
}

/// The rows of the first training set, to be looked up.
#[derive(Default)]
struct KnownRows {
    batches: Vec<RecordBatch>,
    /// The number of each batch's first row.
    starts: Vec<u64>,
    rows: u64,
    occurrences: Occurrences,
    places: HashMap<(u128, u32), u32>,
}

impl KnownRows {
    fn add(&mut self, batch: RecordBatch, identity: &[String]) -> Result<(), OfflineError> {
        if self.rows as usize + batch.num_rows() > MATCHED_ROWS_MAX {
            return Err(OfflineError::Dataset(format!(
                "the two were made of different spines, and the first has more than {MATCHED_ROWS_MAX} rows: too many to \
                 look each other's up"
            )));
        }
        for (row, id) in row_ids(&batch, identity)?.into_iter().enumerate() {
            self.places.insert(self.occurrences.next(id), (self.rows + row as u64) as u32);
        }
        self.starts.push(self.rows);
        self.rows += batch.num_rows() as u64;
        self.batches.push(batch);
        Ok(())
    }

    /// These rows, in this order, with the columns that `like` has too.
    fn take(&self, places: &[u64], like: &arrow_schema::SchemaRef) -> Result<Option<RecordBatch>, OfflineError> {
        let Some(first) = self.batches.first() else { return Ok(None) };
        let picks: Vec<(usize, usize)> = places
            .iter()
            .map(|place| {
                let batch = self.starts.partition_point(|start| start <= place) - 1;
                (batch, (place - self.starts[batch]) as usize)
            })
            .collect();
        let mut columns = Vec::new();
        for (at, field) in first.schema_ref().fields().iter().enumerate() {
            if like.index_of(field.name()).is_err() {
                continue;
            }
            let parts: Vec<&dyn Array> = self.batches.iter().map(|batch| batch.column(at).as_ref()).collect();
            columns.push((field.name().clone(), arrow_select::interleave::interleave(&parts, &picks)?, true));
        }
        Ok(Some(RecordBatch::try_from_iter_with_nullable(columns)?))
    }
}
