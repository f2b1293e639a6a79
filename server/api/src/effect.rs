//! What a plan would do to values: a sample of history through the old and the new version of each view. The binary knows
//! where history is.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use eadem_registry::VersionPair;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// Told how far the comparison of a view is: its name, rows compared, rows to compare.
pub type EffectProgress = Arc<dyn Fn(&str, u64, u64) + Send + Sync>;

/// Rows of a view that are compared at most.
pub const EFFECT_ROWS_MAX: u64 = 1_000_000;

/// How versions are compared.
#[derive(Clone)]
pub struct EffectOptions {
    /// At most about this many rows of each view.
    pub rows_max: u64,
    /// Each view's report tells of what was compared until then.
    pub duration_max: Duration,
    /// Told how far it is.
    pub progress: Option<EffectProgress>,
}

/// Compares versions of views.
#[async_trait]
pub trait Effects: Send + Sync {
    /// One answer for each pair, in their order. What cannot be compared says why. Dropping the call ends the work.
    async fn compare(&self, pairs: &[VersionPair], options: &EffectOptions) -> Vec<ViewEffect>;
}

/// What the new version of a view does to the rows of history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ViewEffect {
    /// The view.
    pub view: String,
    /// The version that there is.
    pub version_before: u32,
    /// The one that takes its place.
    pub version: u32,
    /// Why the two could not be compared; `None` if they were.
    pub not_compared: Option<String>,
    /// Rows that were run through both.
    pub rows_compared: u64,
    /// Rows of which anything differs.
    pub rows_changed: u64,
    /// What is to be known besides.
    pub notes: Vec<String>,
    /// All that was found: outcomes, features, examples, costs.
    #[serde(flatten)]
    pub report: Map<String, Json>,
    /// The same for people.
    #[serde(skip)]
    pub text: String,
}

impl ViewEffect {
    /// Two versions that were not compared.
    pub fn not_compared(pair: &VersionPair, reason: impl Into<String>) -> Self {
        Self {
            view: pair.after.id.name.clone(),
            version_before: pair.before.id.version,
            version: pair.after.id.version,
            not_compared: Some(reason.into()),
            rows_compared: 0,
            rows_changed: 0,
            notes: Vec::new(),
            report: Map::new(),
            text: String::new(),
        }
    }

    /// The share of compared rows of which anything differs.
    pub fn rows_changed_share(&self) -> f64 {
        if self.rows_compared == 0 { 0.0 } else { self.rows_changed as f64 / self.rows_compared as f64 }
    }

    /// A few lines for people.
    pub fn to_text(&self) -> String {
        let mut text = format!("effect on view {}, @{} → @{}: ", self.view, self.version_before, self.version);
        match &self.not_compared {
            Some(reason) => {
                text.push_str("not compared: ");
                text.push_str(reason);
            }
            None => text.push_str(&self.text.trim_end().replace('\n', "\n    ")),
        }
        for note in &self.notes {
            text.push_str("\n    ");
            text.push_str(note);
        }
        text
    }
}

/// What a plan may do without being asked about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// The greatest share of compared rows that may change in one view; over it `apply` refuses. 1: any.
    pub effect_rows_changed_share_max: f64,
    /// Rows of each view that `apply` compares where a share is set.
    pub effect_rows: u64,
    /// Whether `apply` refuses a new version of a stored view that cannot be compared, where a share is set.
    pub effect_refuse_uncompared: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self { effect_rows_changed_share_max: 1.0, effect_rows: 100_000, effect_refuse_uncompared: false }
    }
}

impl Policy {
    /// Whether any effect could be refused.
    pub fn is_set(&self) -> bool {
        self.effect_rows_changed_share_max < 1.0
    }

    /// What is beyond what is tolerated, a line for each view.
    pub fn refusals(&self, pairs: &[VersionPair], effects: &[ViewEffect]) -> Vec<String> {
        if !self.is_set() {
            return Vec::new();
        }
        let share_max = self.effect_rows_changed_share_max;
        let judge = |(pair, effect): (&VersionPair, &ViewEffect)| {
            let name = format!("view {}, @{} → @{}", effect.view, effect.version_before, effect.version);
            match &effect.not_compared {
                Some(reason) if self.effect_refuse_uncompared && !pair.after.is_on_demand() => {
                    Some(format!("{name}: not compared: {reason} (policy.effect_refuse_uncompared)"))
                }
                Some(_) => None,
                None if effect.rows_changed_share() > share_max => Some(format!(
                    "{name}: {} of {} rows change, a share of {:.6}; at most {share_max} may \
                     (policy.effect_rows_changed_share_max)",
                    effect.rows_changed,
                    effect.rows_compared,
                    effect.rows_changed_share()
                )),
                None => None,
            }
        };
        pairs.iter().zip(effects).filter_map(judge).collect()
    }
}
