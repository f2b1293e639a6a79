//! What the server counts, in the format of Prometheus.

use std::borrow::Borrow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use arrow_array::ArrayRef;
use async_trait::async_trait;
use axum::http::StatusCode;
use eadem_online::CacheUsage;
use eadem_query::{AppliedRows, RowTransform, TransformFailure};
use eadem_registry::model::{ViewRef, ViewVersion};
use eadem_semantics::{ReadAt, Status};
use eadem_values::{Description, Digest};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder, proto::MetricFamily,
};

use crate::access::ProjectUsage;
use crate::serving::{
    Answer, EntityKeys, ReadOptions, ReadRow, RowSource, RowSourceError, ServingPlan, Store, TransformUnavailable,
    Transforms,
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

/// Counters, gauges and histograms of one project on one server, all with its name as a label. They start at zero with the server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    project: String,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    in_flight: IntGauge,
    shed: IntCounter,
    stages: [Histogram; 4],
    rows: IntCounterVec,
    row_age_seconds: HistogramVec,
    values: IntCounterVec,
    store_errors: IntCounterVec,
    cache_reads: IntCounterVec,
    late: IntCounterVec,
    transform_seconds: HistogramVec,
    transform_rows: IntCounterVec,
    transform_failures: IntCounterVec,
    upload_checks: IntCounterVec,
    usage: UsageCounters,
    served_of: RwLock<HashMap<ViewRef, Arc<ServedCounters>>>,
    read_of: RwLock<HashMap<ViewRef, Arc<ReadCounters>>>,
    calls_of: RwLock<HashMap<String, Arc<CallCounters>>>,
}

/// What is counted of the answers of one view. Looked up once for a request: to find each by its labels costs more than to count.
#[derive(Debug)]
struct ServedCounters {
    /// By status.
    values: [IntCounter; Status::ALL.len()],
    late: IntCounter,
}

/// What is counted of the reads of one view.
#[derive(Debug)]
struct ReadCounters {
    /// By store, then by whether there was a row.
    rows: [[IntCounter; 2]; 2],
    /// By whether the row was in memory.
    cached: [IntCounter; 2],
    /// By store.
    errors: [IntCounter; 2],
    ages_seconds: Histogram,
}

/// What is counted of the calls of one transform.
#[derive(Debug)]
struct CallCounters {
    seconds: Histogram,
    rows: IntCounter,
    failures: IntCounter,
}

/// What is counted of the requests of one project.
#[derive(Debug, Clone)]
pub(crate) struct UsageCounters {
    pub(crate) requests: IntCounter,
    pub(crate) rows: IntCounter,
    /// Processor time in requests, in microseconds.
    pub(crate) transform_us: IntCounter,
    /// Rows of calls in jobs.
    pub(crate) job_rows: IntCounter,
    /// Processor time in jobs, in microseconds.
    pub(crate) job_transform_us: IntCounter,
}

/// In the order of [`ReadCounters::rows`].
const STORES: [&str; 2] = ["online", "offline"];
const FALSE_AND_TRUE: [&str; 2] = ["false", "true"];

/// What is counted under this name; made when it is first asked for.
fn counters_of<K: Clone + Eq + Hash + Borrow<Q>, Q: Eq + Hash + ToOwned<Owned = K> + ?Sized, V>(
    known: &RwLock<HashMap<K, Arc<V>>>,
    name: &Q,
    make: impl FnOnce() -> V,
) -> Arc<V> {
    if let Some(counters) = known.read().unwrap_or_else(PoisonError::into_inner).get(name) {
        return Arc::clone(counters);
    }
    let mut known = known.write().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(known.entry(name.to_owned()).or_insert_with(|| Arc::new(make())))
}

impl Metrics {
    /// # Errors
    /// Two metrics of one name, which is a fault of ours.
    pub fn new(project: &str) -> Result<Self, prometheus::Error> {
        let registry = registry_of(project)?;
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
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
        let shed = counter("eadem_http_requests_shed_total", "Requests refused because too many were in flight")?;
        let usage = UsageCounters {
            requests: counter("eadem_project_requests_total", "Requests of a project")?,
            rows: counter("eadem_project_rows_total", "Rows of features that a project was answered with")?,
            transform_us: counter(
                "eadem_project_transform_cpu_us_total",
                "Processor time of transforms in requests of a project, in microseconds",
            )?,
            job_rows: counter("eadem_project_job_rows_total", "Rows that jobs of a project called transforms with")?,
            job_transform_us: counter(
                "eadem_project_job_transform_cpu_us_total",
                "Processor time of transforms in jobs of a project, in microseconds",
            )?,
        };
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
            cache_reads: counters(
                "eadem_cache_reads_total",
                "Reads of stored rows, by whether the row was in memory",
                &["view", "hit"],
            )?,
            late: counters(
                "eadem_deadline_exceeded_total",
                "Requests in which a view was not ready by the deadline",
                &["view"],
            )?,
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
            upload_checks: counters(
                "eadem_upload_checks_total",
                "Components that were checked, by what came of it: accepted, refused or unfinished",
                &["outcome"],
            )?,
            usage,
            project: project.to_owned(),
            registry,
            served_of: RwLock::default(),
            read_of: RwLock::default(),
            calls_of: RwLock::default(),
        })
    }

    fn served_of(&self, view: &ViewRef) -> Arc<ServedCounters> {
        counters_of(&self.served_of, view, || {
            let name = view.to_string();
            ServedCounters {
                values: Status::ALL.map(|status| self.values.with_label_values(&[name.as_str(), status.name()])),
                late: self.late.with_label_values(&[name.as_str()]),
            }
        })
    }

    fn read_of(&self, view: &ViewRef) -> Arc<ReadCounters> {
        counters_of(&self.read_of, view, || {
            let name = view.to_string();
            let name = name.as_str();
            ReadCounters {
                rows: STORES
                    .map(|store| FALSE_AND_TRUE.map(|found| self.rows.with_label_values(&[name, store, found]))),
                cached: FALSE_AND_TRUE.map(|hit| self.cache_reads.with_label_values(&[name, hit])),
                errors: STORES.map(|store| self.store_errors.with_label_values(&[store, name])),
                ages_seconds: self.row_age_seconds.with_label_values(&[name]),
            }
        })
    }

    /// What is counted of the project's use of the server.
    pub(crate) fn usage(&self) -> UsageCounters {
        self.usage.clone()
    }

    fn calls_of(&self, transform: &str) -> Arc<CallCounters> {
        counters_of(&self.calls_of, transform, || CallCounters {
            seconds: self.transform_seconds.with_label_values(&[transform]),
            rows: self.transform_rows.with_label_values(&[transform]),
            failures: self.transform_failures.with_label_values(&[transform]),
        })
    }

    /// A request begins; it is in flight until what this gives is dropped.
    pub(crate) fn begin(&self) -> InFlight<'_> {
        self.in_flight.inc();
        InFlight(&self.in_flight)
    }

    /// A component was checked.
    pub(crate) fn upload_checked(&self, outcome: &str) {
        self.upload_checks.with_label_values(&[outcome]).inc();
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
        for ((node, answered), counts) in plan.nodes.iter().zip(&answer.nodes).zip(of_nodes) {
            let counters = self.served_of(&node.view().id);
            counters.late.inc_by(u64::from(answered.is_late));
            for status in Status::ALL {
                counters.values[status as usize].inc_by(counts[status as usize]);
            }
        }
    }

    /// Everything there is to tell.
    ///
    /// # Errors
    /// Two metrics of one name, which is a fault of ours.
    pub(crate) fn gather(
        &self,
        revision: u64,
        tables: &[StoredTable],
        cache: Option<CacheUsage>,
    ) -> Result<Vec<MetricFamily>, prometheus::Error> {
        let at_the_moment = gauges_of(&self.project, revision, tables, cache)?;
        Ok([self.registry.gather(), at_the_moment.gather()].concat())
    }
}

/// What several projects have to tell, as Prometheus reads it: all that is told of one metric stands together.
///
/// # Errors
/// Metrics that cannot be written, which is a fault of ours.
pub(crate) fn text_of(families: Vec<MetricFamily>) -> Result<String, prometheus::Error> {
    let mut by_name: BTreeMap<String, MetricFamily> = BTreeMap::new();
    for family in families {
        match by_name.entry(family.name().to_owned()) {
            Entry::Vacant(place) => {
                place.insert(family);
            }
            Entry::Occupied(mut known) => {
                let metrics = [known.get().get_metric(), family.get_metric()].concat();
                known.get_mut().set_metric(metrics);
            }
        }
    }
    let families: Vec<MetricFamily> = by_name.into_values().collect();
    TextEncoder::new().encode_to_string(&families)
}

/// What is registered here has the project's name as a label.
fn registry_of(project: &str) -> Result<Registry, prometheus::Error> {
    Registry::new_custom(None, Some(HashMap::from([("project".to_owned(), project.to_owned())])))
}

/// What others know at the moment. Nothing of it is kept: epochs come and go.
fn gauges_of(
    project: &str,
    revision: u64,
    tables: &[StoredTable],
    cache: Option<CacheUsage>,
) -> Result<Registry, prometheus::Error> {
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
    let registry = registry_of(project)?;
    if let Some(cache) = cache {
        for (name, help, number) in [
            ("eadem_cache_entries", "Answers of the online store that are kept in memory", cache.entries),
            ("eadem_cache_bytes", "Bytes that they take", cache.bytes),
            ("eadem_cache_bytes_max", "The most that they may take", cache.bytes_max),
        ] {
            let usage = IntGauge::new(name, help)?;
            usage.set(gauge(number));
            registry.register(Box::new(usage))?;
        }
    }
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
        keys: &EntityKeys,
        reads: &[ReadAt],
        options: ReadOptions,
    ) -> Result<Vec<ReadRow>, RowSourceError> {
        let began = Instant::now();
        let found = self.source.read(view, keys, reads, options).await;
        self.metrics.stage(Stage::Store, began);
        let counters = self.metrics.read_of(&view.id);
        match &found {
            Ok(rows) => counters.count(rows, reads),
            Err(RowSourceError::Unavailable { store, .. }) => {
                counters.errors[usize::from(*store != STORES[0])].inc();
            }
            // The request is at fault, or counted as late.
            Err(_) => {}
        }
        found
    }
}

impl ReadCounters {
    fn count(&self, rows: &[ReadRow], reads: &[ReadAt]) {
        let mut counts = [[0_u64; 2]; 2];
        let (mut unavailable, mut cached) = (0, [0_u64; 2]);
        for (row, read) in rows.iter().zip(reads) {
            unavailable += u64::from(row.unavailable);
            cached[usize::from(row.cached)] += 1;
            counts[usize::from(row.store == Store::Offline)][usize::from(row.row.is_some())] += 1;
            if let Some(row) = &row.row {
                self.ages_seconds.observe(read.at_us.saturating_sub(row.order.event_time_us) as f64 / 1e6);
            }
        }
        for (counters, counts) in self.rows.iter().zip(counts) {
            for (counter, count) in counters.iter().zip(counts) {
                counter.inc_by(count);
            }
        }
        for (counter, count) in self.cached.iter().zip(cached) {
            counter.inc_by(count);
        }
        self.errors[1].inc_by(unavailable);
    }
}

/// Transforms whose calls are counted and timed.
pub(crate) struct MeteredTransforms<'a> {
    pub(crate) transforms: &'a dyn Transforms,
    pub(crate) metrics: &'a Arc<Metrics>,
    pub(crate) usage: &'a Arc<ProjectUsage>,
}

#[async_trait]
impl Transforms for MeteredTransforms<'_> {
    async fn load(&self, digest: &Digest) -> Result<Arc<dyn RowTransform>, TransformUnavailable> {
        let transform = self.transforms.load(digest).await?;
        let counters = self.metrics.calls_of(&transform.description().name);
        let (metrics, usage) = (Arc::clone(self.metrics), Arc::clone(self.usage));
        Ok(Arc::new(MeteredTransform { transform, metrics, usage, counters }))
    }
}

#[derive(Debug)]
struct MeteredTransform {
    transform: Arc<dyn RowTransform>,
    metrics: Arc<Metrics>,
    usage: Arc<ProjectUsage>,
    counters: Arc<CallCounters>,
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
        // Of a call that failed there is no measure but the time that it took.
        self.usage.took(applied.as_ref().map_or_else(|_| began.elapsed(), |applied| applied.cpu));
        self.metrics.stage(Stage::Transform, began);
        self.counters.seconds.observe(began.elapsed().as_secs_f64());
        self.counters.rows.inc_by(rows as u64);
        self.counters.failures.inc_by(applied.as_ref().map_or(1, |applied| applied.failed.len() as u64));
        applied
    }
}
