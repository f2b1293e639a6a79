//! Runs history through two versions of a view: definitions from the registry, rows from the sources, transforms from the
//! engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow_array::ArrayRef;
use async_trait::async_trait;
use eadem_api::{EffectOptions, Effects, ViewEffect};
use eadem_offline::{self as offline, Cancel, Effect};
use eadem_query::{AppliedRows, RowTransform, TransformFailure};
use eadem_registry::VersionPair;
use eadem_registry::model::{BoundTo, ViewVersion};
use eadem_values::{Description, Digest};
use serde_json::{Map, Value as Json, json};
use tokio::sync::Mutex;

use crate::home::Stores;

/// Compares versions over the history that the project's sources hold.
pub(crate) struct HistoryEffects {
    stores: Stores,
    /// One comparison at a time: each takes all threads that serving leaves.
    turn: Mutex<()>,
}

impl HistoryEffects {
    pub(crate) fn new(stores: Stores) -> Self {
        Self { stores, turn: Mutex::default() }
    }
}

/// Stops the work when whoever waits for it goes away.
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

#[async_trait]
impl Effects for HistoryEffects {
    async fn compare(&self, pairs: &[VersionPair], options: &EffectOptions) -> Vec<ViewEffect> {
        let _turn = self.turn.lock().await;
        let mut effects = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let effect = match on_demand_reason(pair) {
                Some(reason) => ViewEffect::not_compared(pair, reason),
                None => {
                    let compare = compare_pair(self.stores.clone(), pair.clone(), options.clone());
                    let compared = self.stores.job_threads.run(compare).await;
                    match compared.unwrap_or_else(|error| Err(error.into())) {
                        Ok(effect) => effect,
                        Err(error) => ViewEffect::not_compared(pair, format!("{error:#}")),
                    }
                }
            };
            effects.push(effect);
        }
        effects
    }
}

async fn compare_pair(stores: Stores, pair: VersionPair, options: EffectOptions) -> anyhow::Result<ViewEffect> {
    let (before, before_cost) = metered(&stores, &pair.before).await?;
    let (after, after_cost) = metered(&stores, &pair.after).await?;
    let cancel = CancelOnDrop(Cancel::default());
    let name = pair.after.id.name.clone();
    let progress = options.progress.map(|progress| {
        let told: offline::EffectProgress = Arc::new(move |done, total| progress(&name, done, total));
        told
    });
    let arrival_us = stores.clock.now_us();
    let effect = Effect {
        before,
        after,
        erasures: stores.offline.erasures(),
        options: offline::EffectOptions {
            duration_max: options.duration_max,
            ..offline::EffectOptions::of_rows(options.rows_max, arrival_us)
        },
        progress,
        cancel: cancel.0.clone(),
    };
    let report = offline::compare_versions(&effect).await?;
    let (before_us, after_us) = (before_cost.cpu_us_per_row(), after_cost.cpu_us_per_row());
    let mut fields = match serde_json::to_value(&report)? {
        Json::Object(fields) => fields,
        _ => Map::new(),
    };
    // They stand beside the report already.
    fields.remove("rows_compared");
    fields.remove("rows_changed");
    fields.insert("cpu_us_per_row".to_owned(), json!({ "before": before_us, "after": after_us }));
    let mut text = report.to_text();
    if let (Some(before_us), Some(after_us)) = (before_us, after_us) {
        text.push_str(&format!("cost per row: {before_us:.2} → {after_us:.2} µs of CPU\n"));
    }
    Ok(ViewEffect {
        view: pair.after.id.name.clone(),
        version_before: pair.before.id.version,
        version: pair.after.id.version,
        not_compared: None,
        rows_compared: report.rows_compared,
        rows_changed: report.rows_changed,
        notes: notes(&pair),
        report: fields,
        text,
    })
}

/// A version as the offline store computes it, with a transform that notes what it costs.
async fn metered(stores: &Stores, view: &ViewVersion) -> anyhow::Result<(offline::ViewSpec, Arc<MeteredTransform>)> {
    let mut spec = stores.view_spec(view).await?;
    let metered = Arc::new(MeteredTransform::new(Arc::clone(&spec.transform)));
    spec.transform = Arc::clone(&metered) as Arc<dyn RowTransform>;
    Ok((spec, metered))
}

/// Why a pair cannot be compared at all, whatever history there is.
fn on_demand_reason(pair: &VersionPair) -> Option<String> {
    const NAMED_MAX: usize = 6;
    if !pair.after.is_on_demand() {
        return pair.before.is_on_demand().then(|| {
            "the version before was computed on demand, from what a request sends, and no history holds that".to_owned()
        });
    }
    let mut inputs: Vec<String> = Vec::new();
    for binding in &pair.after.bindings {
        match &binding.from {
            BoundTo::Request(field) => inputs.push(format!("request.{field}")),
            BoundTo::RequestTimestamp => inputs.push("request.timestamp".to_owned()),
            BoundTo::Feature(upstream) => inputs.push(format!("{}:{}", upstream.view, upstream.feature)),
            BoundTo::Column(_) | BoundTo::Literal(_) => {}
        }
    }
    if inputs.len() > NAMED_MAX {
        let more = inputs.len() - NAMED_MAX;
        inputs.truncate(NAMED_MAX);
        inputs.push(format!("{more} more"));
    }
    let follows = pair.before.transform == pair.after.transform;
    let hint = if follows { "; its transform stays the same" } else { "" };
    Some(format!(
        "it is computed on demand, from {}, and no source holds these together{hint}",
        if inputs.is_empty() { "constants".to_owned() } else { inputs.join(", ") }
    ))
}

/// What differs between two versions and is no part of the comparison.
fn notes(pair: &VersionPair) -> Vec<String> {
    let lifetime = |view: &ViewVersion| view.stored.as_ref().map(|stored| (stored.ttl_us, stored.horizon_us));
    let mut notes = Vec::new();
    if lifetime(&pair.before) != lifetime(&pair.after) {
        notes.push("ttl and horizon act when rows are read, and are no part of this comparison".to_owned());
    }
    if pair.before.defaults != pair.after.defaults {
        notes.push(
            "defaults stand in for values that are not there when rows are read, and are no part of this comparison"
                .to_owned(),
        );
    }
    notes
}

/// A transform that adds up what its calls cost.
#[derive(Debug)]
struct MeteredTransform {
    transform: Arc<dyn RowTransform>,
    cpu_ns: AtomicU64,
    rows: AtomicU64,
}

impl MeteredTransform {
    fn new(transform: Arc<dyn RowTransform>) -> Self {
        Self { transform, cpu_ns: AtomicU64::new(0), rows: AtomicU64::new(0) }
    }

    fn cpu_us_per_row(&self) -> Option<f64> {
        let rows = self.rows.load(Ordering::Relaxed);
        (rows > 0).then(|| self.cpu_ns.load(Ordering::Relaxed) as f64 / 1e3 / rows as f64)
    }
}

impl RowTransform for MeteredTransform {
    fn description(&self) -> &Description {
        self.transform.description()
    }

    fn digest(&self) -> &Digest {
        self.transform.digest()
    }

    fn apply(&self, rows: usize, inputs: &[ArrayRef]) -> Result<AppliedRows, TransformFailure> {
        let applied = self.transform.apply(rows, inputs)?;
        self.cpu_ns.fetch_add(u64::try_from(applied.cpu.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.rows.fetch_add(rows as u64, Ordering::Relaxed);
        Ok(applied)
    }
}
