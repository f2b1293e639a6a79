//! Comparing what two versions made of the same rows, bit by bit.

use std::collections::BTreeMap;

use arrow_array::cast::AsArray;
use arrow_array::types::TimestampMicrosecondType;
use arrow_array::{Array, ArrayRef};
use eadem_values::{BatchEncoder, DataType, Description, Value, format_timestamp, value_at, value_to_json};
use serde_json::Value as Json;

use super::judge::Judged;
use super::report::{ChangedRow, EffectOutcome, EffectReport, FeatureChange, FeatureEffect, OutcomeCount};
use super::sample::Sample;
use crate::dataset::StatisticsBuilder;
use crate::error::OfflineError;

/// Characters of a value that are shown.
const SHOWN_MAX: usize = 200;

const OUTCOMES: usize = EffectOutcome::ALL.len();

/// Where a batch comes from.
pub(super) struct Where<'a> {
    pub(super) portion: usize,
    pub(super) file: &'a str,
    /// Names of the join keys afterwards.
    pub(super) keys: &'a [String],
    pub(super) examples_max: usize,
}

/// What was found so far. Parts may be merged in any order.
#[derive(Debug)]
pub(super) struct Comparison {
    rows: u64,
    rows_changed: u64,
    rows_moved: u64,
    rows_of_other_key: u64,
    /// By outcome before, then after.
    outcomes: [[u64; OUTCOMES]; OUTCOMES],
    outcome_examples: Vec<ChangedRow>,
    features: Vec<FeatureTally>,
    before: StatisticsBuilder,
    after: StatisticsBuilder,
}

/// A feature that both versions have, with the same type.
#[derive(Debug)]
struct FeatureTally {
    name: String,
    /// Its column before, and after.
    columns: (usize, usize),
    rows_changed: u64,
    examples: Vec<ChangedRow>,
}

/// A row that both versions have computed: its position in the batch, and in the columns of each.
type Pair = (usize, usize, usize);

impl Comparison {
    pub(super) fn new(before: &Description, after: &Description, first_row: u64) -> Self {
        let features = before.outputs.iter().enumerate().filter_map(|(old, field)| {
            let same = |other: &eadem_values::Field| other.name == field.name && other.data_type == field.data_type;
            let new = after.outputs.iter().position(same)?;
            Some(FeatureTally { name: field.name.clone(), columns: (old, new), rows_changed: 0, examples: Vec::new() })
        });
        Self {
            rows: 0,
            rows_changed: 0,
            rows_moved: 0,
            rows_of_other_key: 0,
            outcomes: [[0; OUTCOMES]; OUTCOMES],
            outcome_examples: Vec::new(),
            features: features.collect(),
            before: StatisticsBuilder::new(&typed(before), first_row),
            after: StatisticsBuilder::new(&typed(after), first_row),
        }
    }

    pub(super) fn add(&mut self, place: &Where<'_>, before: &Judged, after: &Judged) -> Result<(), OfflineError> {
        let rows = before.sequence.len();
        let mut is_changed = vec![false; rows];
        let mut pairs: Vec<Pair> = Vec::with_capacity(rows);
        for (row, is_changed) in is_changed.iter_mut().enumerate() {
            let (old, new) = (before.outcomes[row], after.outcomes[row]);
            self.outcomes[old as usize][new as usize] += 1;
            if old == new {
                if old == EffectOutcome::Computed {
                    pairs.push((row, before.places[row] as usize, after.places[row] as usize));
                }
                continue;
            }
            *is_changed = true;
            if self.outcome_examples.len() < place.examples_max {
                let told = |judged: &Judged, outcome: EffectOutcome| match judged.reasons.get(&row) {
                    Some(reason) => Json::from(format!("{}: {}", outcome.as_str(), shortened(reason))),
                    None => Json::from(outcome.as_str()),
                };
                // The row has a key and a time where one of the versions has computed it.
                let known = if new == EffectOutcome::Computed { after } else { before };
                let at = (known.outcomes[row] == EffectOutcome::Computed).then(|| known.places[row] as usize);
                let example = changed_row(place, known, row, at, told(before, old), told(after, new));
                self.outcome_examples.push(example);
            }
        }
        self.compare_places(&pairs, before, after, &mut is_changed)?;
        for feature in &mut self.features {
            let (old, new) = (&before.features[feature.columns.0], &after.features[feature.columns.1]);
            let found = differing(old, new, &pairs)?;
            feature.rows_changed += found.len() as u64;
            for (row, old_at, new_at) in found {
                is_changed[row] = true;
                if feature.examples.len() < place.examples_max {
                    let (old, new) = (shown(old, old_at), shown(new, new_at));
                    feature.examples.push(changed_row(place, after, row, Some(new_at), old, new));
                }
            }
        }
        self.rows += rows as u64;
        self.rows_changed += is_changed.iter().filter(|changed| **changed).count() as u64;
        for (judged, statistics) in [(before, &mut self.before), (after, &mut self.after)] {
            let (count, columns) = judged.computed()?;
            statistics.update(count, &columns)?;
        }
        Ok(())
    }

    /// A row that has another key, or stands at another time, is another row to whoever reads it.
    fn compare_places(
        &mut self,
        pairs: &[Pair],
        before: &Judged,
        after: &Judged,
        is_changed: &mut [bool],
    ) -> Result<(), OfflineError> {
        let times = |judged: &Judged| {
            let of = |column: &ArrayRef| column.as_primitive::<TimestampMicrosecondType>().values().clone();
            (of(&judged.event_time), of(&judged.known_at))
        };
        let (old, new) = (times(before), times(after));
        for (row, old_at, new_at) in pairs {
            if (old.0[*old_at], old.1[*old_at]) != (new.0[*new_at], new.1[*new_at]) {
                is_changed[*row] = true;
                self.rows_moved += 1;
            }
        }
        let types = |judged: &Judged| judged.keys.iter().map(|key| key.data_type().clone()).collect::<Vec<_>>();
        if types(before) != types(after) {
            self.rows_of_other_key += pairs.len() as u64;
            pairs.iter().for_each(|(row, _, _)| is_changed[*row] = true);
            return Ok(());
        }
        let mut other_key = vec![false; is_changed.len()];
        for (old, new) in before.keys.iter().zip(&after.keys) {
            for (row, _, _) in differing(old, new, pairs)? {
                other_key[row] = true;
            }
        }
        for (row, differs) in other_key.into_iter().enumerate().filter(|(_, differs)| *differs) {
            is_changed[row] |= differs;
            self.rows_of_other_key += 1;
        }
        Ok(())
    }

    pub(super) fn merge(&mut self, other: Self, examples_max: usize) {
        self.rows += other.rows;
        self.rows_changed += other.rows_changed;
        self.rows_moved += other.rows_moved;
        self.rows_of_other_key += other.rows_of_other_key;
        for (sums, others) in self.outcomes.iter_mut().zip(other.outcomes) {
            for (sum, other) in sums.iter_mut().zip(others) {
                *sum += other;
            }
        }
        merge_examples(&mut self.outcome_examples, other.outcome_examples, examples_max);
        for (feature, other) in self.features.iter_mut().zip(other.features) {
            feature.rows_changed += other.rows_changed;
            merge_examples(&mut feature.examples, other.examples, examples_max);
        }
        self.before.merge(other.before);
        self.after.merge(other.after);
    }

    pub(super) fn finish(self, sample: &Sample, out_of_time: bool, examples_max: usize) -> EffectReport {
        let none = BTreeMap::new();
        let (before, after) = (self.before.finish(&none).features, self.after.finish(&none).features);
        let mut tallies: BTreeMap<String, FeatureTally> =
            self.features.into_iter().map(|feature| (feature.name.clone(), feature)).collect();
        let mut features = Vec::new();
        for new in &after {
            let old = before.iter().find(|old| old.name == new.name).cloned();
            let tally = tallies.remove(&new.name);
            let change = match (&old, &tally) {
                (None, _) => FeatureChange::Added,
                (Some(_), None) => FeatureChange::Retyped,
                (Some(_), Some(_)) => FeatureChange::Kept,
            };
            features.push(FeatureEffect {
                name: new.name.clone(),
                change,
                rows_changed: tally.as_ref().map(|tally| tally.rows_changed),
                before: old,
                after: Some(new.clone()),
                examples: tally.map(|tally| tally.examples).unwrap_or_default(),
            });
        }
        let is_gone = |old: &&_| !after.iter().any(|new: &crate::dataset::FeatureStatistics| new.name == name_of(old));
        features.extend(before.iter().filter(is_gone).map(|old| FeatureEffect {
            name: old.name.clone(),
            change: FeatureChange::Removed,
            rows_changed: None,
            before: Some(old.clone()),
            after: None,
            examples: Vec::new(),
        }));
        let mut outcomes = Vec::new();
        for before in EffectOutcome::ALL {
            for after in EffectOutcome::ALL {
                let rows = self.outcomes[before as usize][after as usize];
                if rows > 0 {
                    outcomes.push(OutcomeCount { before, after, rows });
                }
            }
        }
        let mut outcome_examples = self.outcome_examples;
        outcome_examples.truncate(examples_max);
        EffectReport {
            rows_compared: self.rows,
            rows_changed: self.rows_changed,
            rows_moved: self.rows_moved,
            rows_of_other_key: self.rows_of_other_key,
            is_whole_history: sample.is_all && !out_of_time,
            out_of_time,
            outcomes,
            outcome_examples,
            features,
        }
    }
}

fn name_of(statistics: &crate::dataset::FeatureStatistics) -> &str {
    &statistics.name
}

fn typed(description: &Description) -> Vec<(String, DataType)> {
    description.outputs.iter().map(|output| (output.name.clone(), output.data_type)).collect()
}

fn merge_examples(examples: &mut Vec<ChangedRow>, others: Vec<ChangedRow>, examples_max: usize) {
    examples.extend(others);
    examples.sort_by_key(|example| (example.portion, example.row));
    examples.truncate(examples_max);
}

/// The pairs whose values in these columns differ in any bit of their canonical encoding.
fn differing(before: &ArrayRef, after: &ArrayRef, pairs: &[Pair]) -> Result<Vec<Pair>, OfflineError> {
    let old = BatchEncoder::try_new(std::slice::from_ref(before))?;
    let new = BatchEncoder::try_new(std::slice::from_ref(after))?;
    let (mut old_bytes, mut new_bytes) = (Vec::new(), Vec::new());
    let is_whole = pairs.len() == before.len() && pairs.len() == after.len();
    if is_whole && pairs.iter().all(|(_, old_at, new_at)| old_at == new_at) {
        // Mostly nothing differs, and then one look at all rows together is enough.
        old.encode_column(0, 0..before.len(), &mut old_bytes);
        new.encode_column(0, 0..after.len(), &mut new_bytes);
        if old_bytes == new_bytes {
            return Ok(Vec::new());
        }
    }
    let mut found = Vec::new();
    for pair in pairs {
        old_bytes.clear();
        new_bytes.clear();
        old.encode_row(pair.1, &mut old_bytes);
        new.encode_row(pair.2, &mut new_bytes);
        if old_bytes != new_bytes {
            found.push(*pair);
        }
    }
    Ok(found)
}

fn changed_row(
    place: &Where<'_>,
    judged: &Judged,
    row: usize,
    at: Option<usize>,
    before: Json,
    after: Json,
) -> ChangedRow {
    let mut key = BTreeMap::new();
    let mut event_time = None;
    if let Some(at) = at {
        key.extend(place.keys.iter().zip(&judged.keys).map(|(name, column)| (name.clone(), shown(column, at))));
        let times = judged.event_time.as_primitive::<TimestampMicrosecondType>();
        event_time = Some(format_timestamp(times.value(at)));
    }
    ChangedRow {
        portion: place.portion,
        file: place.file.to_owned(),
        row: judged.sequence[row],
        key,
        event_time,
        before,
        after,
    }
}

fn shown(column: &ArrayRef, row: usize) -> Json {
    let value = value_at(column.as_ref(), row).unwrap_or(Value::Null);
    let json = value_to_json(&value);
    let is_short = match &json {
        Json::String(text) => text.chars().count() <= SHOWN_MAX,
        Json::Array(_) => json.to_string().len() <= SHOWN_MAX,
        _ => true,
    };
    match json {
        json if is_short => json,
        Json::String(text) => Json::from(shortened(&text)),
        other => Json::from(shortened(&other.to_string())),
    }
}

fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(SHOWN_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
