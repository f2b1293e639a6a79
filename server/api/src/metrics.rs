//! What the server counts, in the format of Prometheus.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::ArrayRef;
use async_trait::async_trait;
use axum::http::StatusCode;
use eadem_query::{AppliedRows, RowTransform, TransformFailure};
use eadem_registry::model::ViewVersion;
use eadem_semantics::{ReadAt, Status};
use eadem_values::{Description, Digest, EntityKey};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::problem::Problem;
use crate::serving::{
    Answer, ReadRow, RowSource, RowSourceError, ServingPlan, Store, TransformUnavailable, Transforms,
};

/// From 50 µs, less than which no request takes, to 10 s.
const LATENCY_BUCKETS_S: [f64; 16] =
    [5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Stages of a request lie between a microsecond and a second.
const STAGE_BUCKETS_S: [f64; 14] =
    [1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 0.01, 0.1, 1.0];

/// From a second to a month.
const AGE_BUCKETS_S: [f64; 10] = [1.0, 10.0, 60.0, 300.0, 1_800.0, 3_600.0, 21_600.0, 86_400.0, 604_800.0, 2_592_000.0];

/// A part of the work for one request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stage {
    /// Reading and checking what is asked.
    Parse,
    /// Reading the rows of one view.
    Store,
    /// One call of a transform.
    Transform,
    /// Writing the answer.
    Encode,
}

/// A view's table in the online store.
#[derive(Debug, Clone)]
pub struct StoredTable {
    /// `name@version`.
    pub view: String,
    /// The epoch.
    pub epoch: u64,
    /// Whether requests read it.
    pub is_current: bool,
    /// Rows that it holds.
    pub rows: u64,
    /// Bytes that it takes.
    pub bytes: u64,
}

/// Counters, gauges and histograms of one server. All of them start at zero with it.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    in_flight: IntGauge,
    shed: IntCounter,
    stages: [Histogram; 4],
    rows: IntCounterVec,
    row_age_seconds: HistogramVec,
    values: IntCounterVec,
    store_errors: IntCounterVec,
    transform_seconds: HistogramVec,
    transform_rows: IntCounterVec,
    transform_failures: IntCounterVec,
}

impl Metrics {
    /// # Errors
    /// Two metrics of one name, which is a fault of ours.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| -> Result<IntCounterVec, prometheus::Error> {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok(counters)
        };
        let histograms =
            |name: &str, help: &str, labels: &[&str], buckets: &[f64]| -> Result<HistogramVec, prometheus::Error> {
                let histograms = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)?;
                registry.register(Box::new(histograms.clone()))?;
                Ok(histograms)
            };
        let shed =
            IntCounter::new("eadem_http_requests_shed_total", "Requests refused because too many were in flight")?;
        registry.register(Box::new(shed.clone()))?;
        let in_flight = IntGauge::new("eadem_http_requests_in_flight", "Requests being served")?;
        registry.register(Box::new(in_flight.clone()))?;
        let stages =
            histograms("eadem_stage_seconds", "Time of the stages of feature requests", &["stage"], &STAGE_BUCKETS_S)?;
        Ok(Self {
            requests: counters(
                "eadem_http_requests_total",
                "Requests answered, by route",
                &["method", "route", "status"],
            )?,
            request_seconds: histograms(
                "eadem_http_request_seconds",
                "Time from a request's head to its answer, by route",
                &["method", "route"],
                &LATENCY_BUCKETS_S,
            )?,
            in_flight,
            shed,
            stages: ["parse", "store", "transform", "encode"].map(|stage| stages.with_label_values(&[stage])),
            rows: counters(
                "eadem_rows_read_total",
                "Reads of stored rows, by the store that proved them and whether there was a row",
                &["view", "store", "found"],
            )?,
            row_age_seconds: histograms(
                "eadem_row_age_seconds",
                "How old rows were when they were served: request time less event time",
                &["view"],
                &AGE_BUCKETS_S,
            )?,
            values: counters("eadem_values_total", "Values served, by status", &["view", "status"])?,
            store_errors: counters("eadem_store_errors_total", "Reads that a store failed", &["store", "view"])?,
            transform_seconds: histograms(
                "eadem_transform_seconds",
                "Time of calls of a transform in requests",
                &["transform"],
                &STAGE_BUCKETS_S,
            )?,
            transform_rows: counters(
                "eadem_transform_rows_total",
                "Rows that a transform was called with in requests",
                &["transform"],
            )?,
            transform_failures: counters(
                "eadem_transform_failures_total",
                "Rows that a transform failed in requests, and calls that could not be made",
                &["transform"],
            )?,
            registry,
        })
    }

    /// A request begins; it is in flight until what this gives is dropped.
    pub(crate) fn begin(&self) -> InFlight<'_> {
        self.in_flight.inc();
        InFlight(&self.in_flight)
    }

    /// A request was answered.
    pub(crate) fn answered(&self, method: &str, route: &str, status: StatusCode, took: Duration) {
        self.requests.with_label_values(&[method, route, status.as_str()]).inc();
        self.request_seconds.with_label_values(&[method, route]).observe(took.as_secs_f64());
    }

    /// A request was refused before memory grows.
    pub(crate) fn shed(&self) {
        self.shed.inc();
    }

    /// A stage has ended.
    pub(crate) fn stage(&self, stage: Stage, began: Instant) {
        self.stages[stage as usize].observe(began.elapsed().as_secs_f64());
    }

    /// What was served.
    pub(crate) fn served(&self, plan: &ServingPlan, answer: &Answer) {
        let mut of_nodes = vec![[0_u64; Status::ALL.len()]; plan.nodes.len()];
        for (output, column) in plan.outputs.iter().zip(&answer.columns) {
            for status in column.statuses.iter() {
                of_nodes[output.node][*status as usize] += 1;
            }
        }
        for (node, counts) in plan.nodes.iter().zip(of_nodes) {
            let view = node.view().id.to_string();
            for status in Status::ALL {
                let count = counts[status as usize];
                if count > 0 {
                    self.values.with_label_values(&[view.as_str(), status.name()]).inc_by(count);
                }
            }
        }
    }

    /// Everything, as Prometheus reads it.
    ///
    /// # Errors
    /// Metrics that cannot be written, which is a fault of ours.
    pub(crate) fn text(&self, revision: u64, tables: &[StoredTable]) -> Result<String, Problem> {
        let failed = |error| Problem::internal("the metrics could not be written", error);
        let at_the_moment = gauges_of(revision, tables).map_err(failed)?;
        let families = [self.registry.gather(), at_the_moment.gather()].concat();
        TextEncoder::new().encode_to_string(&families).map_err(failed)
    }
}

/// What others know at the moment. Nothing of it is kept: epochs come and go.
fn gauges_of(revision: u64, tables: &[StoredTable]) -> Result<Registry, prometheus::Error> {
    let gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let seen = IntGauge::new("eadem_registry_revision", "Changes of the registry that this server has seen")?;
    seen.set(gauge(revision));
    let labels = ["view", "epoch", "current"];
    let rows = IntGaugeVec::new(Opts::new("eadem_online_rows", "Rows in the online store"), &labels)?;
    let bytes = IntGaugeVec::new(Opts::new("eadem_online_bytes", "Bytes in the online store"), &labels)?;
    for table in tables {
        let labels = [table.view.clone(), table.epoch.to_string(), table.is_current.to_string()];
        rows.with_label_values(&labels).set(gauge(table.rows));
        bytes.with_label_values(&labels).set(gauge(table.bytes));
    }
    let registry = Registry::new();
    registry.register(Box::new(seen))?;
    registry.register(Box::new(rows))?;
    registry.register(Box::new(bytes))?;
    Ok(registry)
}

/// A request that is being served.
pub(crate) struct InFlight<'a>(&'a IntGauge);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Rows of another source, counted and timed.
pub(crate) struct MeteredRows<'a> {
    pub(crate) source: &'a dyn RowSource,
    pub(crate) metrics: &'a Metrics,
}

#[async_trait]
impl RowSource for MeteredRows<'_> {
    async fn read(
        &self,
        view: &ViewVersion,
        keys: &[EntityKey],
        reads: &[ReadAt],
    ) -> Result<Vec<ReadRow>, RowSourceError> {
        let began = Instant::now();
        let found = self.source.read(view, keys, reads).await;
        self.metrics.stage(Stage::Store, began);
        let name = view.id.to_string();
        match &found {
            Ok(rows) => self.count(&name, rows, reads),
            Err(RowSourceError::Unavailable { store, .. }) => {
                self.metrics.store_errors.with_label_values(&[store, name.as_str()]).inc();
            }
            // The request is at fault.
            Err(_) => {}
        }
        found
    }
}

impl MeteredRows<'_> {
    fn count(&self, view: &str, rows: &[ReadRow], reads: &[ReadAt]) {
        let ages = self.metrics.row_age_seconds.with_label_values(&[view]);
        // By store, then by whether there is a row.
        let mut counts = [[0_u64; 2]; 2];
        let mut unavailable = 0;
        for (row, read) in rows.iter().zip(reads) {
            unavailable += u64::from(row.unavailable);
            counts[usize::from(row.store == Store::Offline)][usize::from(row.row.is_some())] += 1;
            if let Some(row) = &row.row {
                ages.observe(read.at_us.saturating_sub(row.order.event_time_us) as f64 / 1e6);
            }
        }
        for (store, counts) in ["online", "offline"].into_iter().zip(counts) {
            for (found, count) in ["false", "true"].into_iter().zip(counts) {
                if count > 0 {
                    self.metrics.rows.with_label_values(&[view, store, found]).inc_by(count);
                }
            }
        }
        if unavailable > 0 {
            self.metrics.store_errors.with_label_values(&["offline", view]).inc_by(unavailable);
        }
    }
}

/// Transforms whose calls are counted and timed.
pub(crate) struct MeteredTransforms<'a> {
    pub(crate) transforms: &'a dyn Transforms,
    pub(crate) metrics: &'a Arc<Metrics>,
}

#[async_trait]
impl Transforms for MeteredTransforms<'_> {
    async fn load(&self, digest: &Digest) -> Result<Arc<dyn RowTransform>, TransformUnavailable> {
        let transform = self.transforms.load(digest).await?;
        Ok(Arc::new(MeteredTransform { transform, metrics: Arc::clone(self.metrics) }))
    }
}

#[derive(Debug)]
struct MeteredTransform {
    transform: Arc<dyn RowTransform>,
    metrics: Arc<Metrics>,
}

impl RowTransform for MeteredTransform {
    fn description(&self) -> &Description {
        self.transform.description()
    }

    fn digest(&self) -> &Digest {
        self.transform.digest()
    }

    fn apply(&self, rows: usize, inputs: &[ArrayRef]) -> Result<AppliedRows, TransformFailure> {
        let began = Instant::now();
        let applied = self.transform.apply(rows, inputs);
        self.metrics.stage(Stage::Transform, began);
        let name = [self.description().name.as_str()];
        self.metrics.transform_seconds.with_label_values(&name).observe(began.elapsed().as_secs_f64());
        self.metrics.transform_rows.with_label_values(&name).inc_by(rows as u64);
        let failures = applied.as_ref().map_or(1, |applied| applied.failed.len() as u64);
        if failures > 0 {
            self.metrics.transform_failures.with_label_values(&name).inc_by(failures);
        }
        applied
    }
}
