//! What a comparison has found, for programs and for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::dataset::FeatureStatistics;

/// Features without a change that people read of by name.
const UNCHANGED_NAMED_MAX: usize = 3;

/// What becomes of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EffectOutcome {
    /// Its features are computed.
    Computed,
    /// The source's `where` leaves it out, or its entity is erased.
    LeftOut,
    /// It cannot be stored, or a value breaks a constraint or bound: quarantine.
    Refused,
    /// The transform drops it.
    Dropped,
    /// The transform fails on it.
    Failed,
}

impl EffectOutcome {
    pub(super) const ALL: [Self; 5] = [Self::Computed, Self::LeftOut, Self::Refused, Self::Dropped, Self::Failed];

    /// As it stands in JSON, for people with a space.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Computed => "computed",
            Self::LeftOut => "left out",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
            Self::Failed => "failed",
        }
    }
}

/// What a new version does to the rows of history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EffectReport {
    /// Rows that were run through both versions.
    pub rows_compared: u64,
    /// Rows of which anything differs: a value, by its bits; what becomes of the row; its times; its key.
    pub rows_changed: u64,
    /// Rows that stand at another event time or known-at.
    pub rows_moved: u64,
    /// Rows that belong to another entity.
    pub rows_of_other_key: u64,
    /// Whether these were all rows that there are.
    pub is_whole_history: bool,
    /// Whether the time ran out before all rows of the sample were compared.
    pub out_of_time: bool,
    /// Rows by what became of them before and after.
    pub outcomes: Vec<OutcomeCount>,
    /// The first rows of which something else becomes.
    pub outcome_examples: Vec<ChangedRow>,
    /// The features, in the order of the new version; those that are gone come last.
    pub features: Vec<FeatureEffect>,
}

/// How many rows had one outcome before and one after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutcomeCount {
    /// Under the old version.
    pub before: EffectOutcome,
    /// Under the new one.
    pub after: EffectOutcome,
    /// So many rows.
    pub rows: u64,
}

/// What happens to a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeatureChange {
    /// Both versions have it, with the same type.
    Kept,
    /// Only the new one has it.
    Added,
    /// Only the old one has it.
    Removed,
    /// It has another type, so that every value is another one.
    Retyped,
}

/// A feature before and after.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FeatureEffect {
    /// Its name.
    pub name: String,
    /// What happens to it.
    pub change: FeatureChange,
    /// Rows computed by both versions whose values differ in any bit; `None` unless it is kept.
    pub rows_changed: Option<u64>,
    /// What its values look like under the old version.
    pub before: Option<FeatureStatistics>,
    /// What they look like under the new one.
    pub after: Option<FeatureStatistics>,
    /// The first rows that differ.
    pub examples: Vec<ChangedRow>,
}

/// A row that differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChangedRow {
    /// Which part of the sample it stands in.
    #[serde(skip)]
    pub(super) portion: usize,
    /// The file.
    pub file: String,
    /// The row's number in it, from 0.
    pub row: i64,
    /// Its join keys; empty where neither version has bound it.
    pub key: BTreeMap<String, Json>,
    /// Its event time.
    pub event_time: Option<String>,
    /// The value, or what became of the row, under the old version.
    pub before: Json,
    /// The same under the new one.
    pub after: Json,
}

impl EffectReport {
    /// The share of rows of which anything differs.
    pub fn rows_changed_share(&self) -> f64 {
        if self.rows_compared == 0 {
            return 0.0;
        }
        self.rows_changed as f64 / self.rows_compared as f64
    }

    /// A few lines for people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let of_what = match (self.is_whole_history, self.out_of_time) {
            (true, _) => "all rows of history",
            (false, true) => "a part of history, the time ran out",
            (false, false) => "a sample of history",
        };
        let (changed, compared) = (count(self.rows_changed), count(self.rows_compared));
        let _infallible = write!(text, "{changed} of {compared} rows change ({of_what})");
        for (rows, what) in [(self.rows_moved, "have other times"), (self.rows_of_other_key, "have another key")] {
            if rows > 0 {
                let _infallible = write!(text, "; {} {what}", count(rows));
            }
        }
        text.push('\n');
        for outcome in self.outcomes.iter().filter(|outcome| outcome.before != outcome.after) {
            let (before, after) = (outcome.before.as_str(), outcome.after.as_str());
            let _infallible = writeln!(text, "{} rows: {before} → {after}", count(outcome.rows));
        }
        for example in &self.outcome_examples {
            let _infallible = writeln!(text, "  {}", example.to_text());
        }
        let unchanged = self.features.iter().filter(|feature| feature.is_unchanged()).count();
        let is_told = |feature: &&FeatureEffect| unchanged <= UNCHANGED_NAMED_MAX || !feature.is_unchanged();
        for feature in self.features.iter().filter(is_told) {
            feature.write_text(&mut text);
        }
        if unchanged > UNCHANGED_NAMED_MAX {
            let _infallible = writeln!(text, "no value changes in {unchanged} other features");
        }
        text
    }
}

impl FeatureEffect {
    fn is_unchanged(&self) -> bool {
        self.change == FeatureChange::Kept && self.rows_changed.unwrap_or_default() == 0
    }

    fn write_text(&self, text: &mut String) {
        let name = &self.name;
        match (self.change, self.rows_changed) {
            (FeatureChange::Added, _) => {
                let _infallible = writeln!(text, "{name}: new{}", self.after.as_ref().map(look).unwrap_or_default());
            }
            (FeatureChange::Removed, _) => {
                let _infallible = writeln!(text, "{name}: gone{}", self.before.as_ref().map(look).unwrap_or_default());
            }
            (FeatureChange::Retyped, _) => {
                let types = |side: &Option<FeatureStatistics>| {
                    side.as_ref().map(|side| side.data_type.to_string()).unwrap_or_default()
                };
                let _infallible = writeln!(text, "{name}: {} → {}", types(&self.before), types(&self.after));
            }
            (FeatureChange::Kept, None | Some(0)) => {
                let _infallible = writeln!(text, "{name}: no value changes");
            }
            (FeatureChange::Kept, Some(rows)) => {
                let verb = if rows == 1 { "value changes" } else { "values change" };
                let _infallible = writeln!(text, "{name}: {} {verb}{}", count(rows), self.shift());
            }
        }
        for example in &self.examples {
            let _infallible = writeln!(text, "  {}", example.to_text());
        }
    }

    /// What differs between the two sides as a whole.
    fn shift(&self) -> String {
        let (Some(before), Some(after)) = (&self.before, &self.after) else { return String::new() };
        let mut parts = Vec::new();
        let mut add = |what: &str, before: String, after: String| {
            if before != after {
                parts.push(format!("{what} {before} → {after}"));
            }
        };
        add("null", count(before.nulls), count(after.nulls));
        add("NaN", count(before.nan), count(after.nan));
        for (what, before, after) in
            [("mean", &before.mean, &after.mean), ("min", &before.min, &after.min), ("max", &before.max, &after.max)]
        {
            add(what, before.to_string(), after.to_string());
        }
        for quantile in ["0.05", "0.5", "0.95"] {
            let of = |side: &FeatureStatistics| side.quantiles.get(quantile).cloned().unwrap_or_default().to_string();
            add(&format!("q{quantile}"), of(before), of(after));
        }
        if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
    }
}

/// ` (mean 0.5, 3 null)`
fn look(statistics: &FeatureStatistics) -> String {
    let mut parts = Vec::new();
    if !statistics.mean.is_null() {
        parts.push(format!("mean {}", statistics.mean));
    }
    parts.push(format!("{} null", count(statistics.nulls)));
    if statistics.nan > 0 {
        parts.push(format!("{} NaN", count(statistics.nan)));
    }
    format!(" ({})", parts.join(", "))
}

impl ChangedRow {
    fn to_text(&self) -> String {
        let key: Vec<String> = self.key.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let place = match (&self.event_time, key.is_empty()) {
            (Some(event_time), false) => format!("{} at {event_time}", key.join(", ")),
            _ => format!("{}, row {}", self.file, self.row),
        };
        format!("{place}: {} → {}", self.before, self.after)
    }
}

/// `1,000,000`
fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
