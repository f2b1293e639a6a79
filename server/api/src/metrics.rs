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
use eadem_registry::model::ViewRef;
use eadem_semantics::Status;
use eadem_values::{Description, Digest};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder, proto::MetricFamily,
};

use crate::access::ProjectUsage;
use crate::serving::{
    Answer, Node, NodeRead, ReadOutcome, ServingPlan, Store, TransformUnavailable, Transforms, ViewRows,
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
    /// Reading the rows of one view where all of them were in memory.
    Cache,
    /// Reading the rows of one view where a store was asked.
    Store,
    /// Computing the features of one view by its transform.
    Transform,
    /// Writing the answer.
    Encode,
}

const STAGES: [&str; 5] = ["parse", "cache", "store", "transform", "encode"];

/// A route of features.
#[derive(Debug, Clone, Copy)]
pub(crate) enum FeatureRoute {
    ByPath,
    ByQuery,
    Batch,
}

const FEATURE_ROUTES: [&str; 3] = ["/features/{entity_id}", "/features", "/features/batch"];

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
    /// By route, then by stage.
    stages: [[Histogram; STAGES.len()]; FEATURE_ROUTES.len()],
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
    counters_of: RwLock<HashMap<ViewRef, Arc<ViewCounters>>>,
    calls_of: RwLock<HashMap<Digest, Arc<CallCounters>>>,
}

/// What is counted of the views of a plan, one for each of its nodes. Looked up when the plan is compiled: to find each by its labels
/// costs more than to count.
#[derive(Debug)]
pub(crate) struct PlanCounters(Vec<Arc<ViewCounters>>);

/// What is counted of one view.
#[derive(Debug)]
struct ViewCounters {
    /// By status.
    values: [IntCounter; Status::ALL.len()],
    late: IntCounter,
    /// `None`: it has no rows.
    reads: Option<ReadCounters>,
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

/// What is counted of the calls of one component.
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

/// The component, by name and by the beginning of its digest, and what it costs on every machine: fuel for a row.
const CALL_LABELS: [&str; 3] = ["transform", "digest", "cost"];

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
        let stages = histograms(
            "eadem_stage_seconds",
            "Time of the stages of feature requests",
            &["route", "stage"],
            &STAGE_BUCKETS_S,
        )?;
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
            stages: FEATURE_ROUTES.map(|route| STAGES.map(|stage| stages.with_label_values(&[route, stage]))),
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
                &CALL_LABELS,
                &STAGE_BUCKETS_S,
            )?,
            transform_rows: counters(
                "eadem_transform_rows_total",
                "Rows that a transform was called with in requests",
                &CALL_LABELS,
            )?,
            transform_failures: counters(
                "eadem_transform_failures_total",
                "Rows that a transform failed in requests, and calls that could not be made",
                &CALL_LABELS,
            )?,
            upload_checks: counters(
                "eadem_upload_checks_total",
                "Components that were checked, by what came of it: accepted, refused or unfinished",
                &["outcome"],
            )?,
            usage,
            project: project.to_owned(),
            registry,
            counters_of: RwLock::default(),
            calls_of: RwLock::default(),
        })
    }

    /// Where what is served by a plan is counted.
    pub(crate) fn of_plan(&self, plan: &ServingPlan) -> PlanCounters {
        let of_node = |node: &Node| {
            let view = node.view();
            counters_of(&self.counters_of, &view.id, || self.view_counters(&view.id, !view.is_on_demand()))
        };
        PlanCounters(plan.nodes.iter().map(of_node).collect())
    }

    fn view_counters(&self, view: &ViewRef, has_rows: bool) -> ViewCounters {
        let name = view.to_string();
        let name = name.as_str();
        let reads = || ReadCounters {
            rows: STORES.map(|store| FALSE_AND_TRUE.map(|found| self.rows.with_label_values(&[name, store, found]))),
            cached: FALSE_AND_TRUE.map(|hit| self.cache_reads.with_label_values(&[name, hit])),
            errors: STORES.map(|store| self.store_errors.with_label_values(&[store, name])),
            ages_seconds: self.row_age_seconds.with_label_values(&[name]),
        };
        ViewCounters {
            values: Status::ALL.map(|status| self.values.with_label_values(&[name, status.name()])),
            late: self.late.with_label_values(&[name]),
            reads: has_rows.then(reads),
        }
    }

    /// What is counted of the project's use of the server.
    pub(crate) fn usage(&self) -> UsageCounters {
        self.usage.clone()
    }

    /// Components of one name are told apart by their digests.
    fn calls_of(&self, transform: &dyn RowTransform) -> Arc<CallCounters> {
        counters_of(&self.calls_of, transform.digest(), || {
            let digest = transform.digest().short();
            let cost = transform.fuel_per_row().map_or_else(|| "unknown".to_owned(), |fuel| fuel.to_string());
            let labels = [transform.description().name.as_str(), digest.as_str(), cost.as_str()];
            CallCounters {
                seconds: self.transform_seconds.with_label_values(&labels),
                rows: self.transform_rows.with_label_values(&labels),
                failures: self.transform_failures.with_label_values(&labels),
            }
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

    /// A stage of a request has ended.
    pub(crate) fn stage(&self, route: FeatureRoute, stage: Stage, took: Duration) {
        self.stages[route as usize][stage as usize].observe(took.as_secs_f64());
    }

    /// What was read and served for a request.
    pub(crate) fn served(
        &self,
        route: FeatureRoute,
        plan: &ServingPlan,
        PlanCounters(counters): &PlanCounters,
        answer: &Answer,
    ) {
        let mut of_nodes = vec![[0_u64; Status::ALL.len()]; plan.nodes.len()];
        for (output, column) in plan.outputs.iter().zip(&answer.columns) {
            for status in column.statuses.iter() {
                of_nodes[output.node][*status as usize] += 1;
            }
        }
        for ((answered, counters), counts) in answer.nodes.iter().zip(counters).zip(of_nodes) {
            counters.late.inc_by(u64::from(answered.is_late));
            for status in Status::ALL {
                counters.values[status as usize].inc_by(counts[status as usize]);
            }
            if let (Some(reads), ReadOutcome::Rows { unavailable }) = (&counters.reads, answered.read.outcome) {
                reads.count(&answered.rows, unavailable as u64, &answer.at_us);
            }
            if answered.ran {
                self.stage(route, Stage::Transform, answered.computed_in);
            }
        }
        for read in &plan.reads {
            let nodes = || read.nodes.iter().map(|node| &answer.nodes[*node]);
            let NodeRead { took, outcome } = answer.nodes[read.nodes[0]].read;
            let was_in_memory = matches!(outcome, ReadOutcome::Rows { .. })
                && nodes().all(|node| node.rows.cached.iter().all(|cached| *cached));
            self.stage(route, if was_in_memory { Stage::Cache } else { Stage::Store }, took);
            if let (ReadOutcome::Failed(store), Some(reads)) = (outcome, &counters[read.nodes[0]].reads) {
                reads.errors[usize::from(store != STORES[0])].inc();
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

impl ReadCounters {
    /// Counts the rows of a node, of which so many could not be read by any store.
    fn count(&self, rows: &ViewRows, unavailable: u64, at_us: &[i64]) {
        let mut counts = [[0_u64; 2]; 2];
        let mut cached = [0; 2];
        for (row, at_us) in at_us.iter().enumerate() {
            let event_time_us = rows.event_time_us(row);
            cached[usize::from(rows.cached[row])] += 1;
            counts[usize::from(rows.stores[row] == Store::Offline)][usize::from(event_time_us.is_some())] += 1;
            if let Some(event_time_us) = event_time_us {
                self.ages_seconds.observe(at_us.saturating_sub(event_time_us) as f64 / 1e6);
            }
        }
        // Nobody knows whether these have rows.
        counts[1][0] -= unavailable.min(counts[1][0]);
        cached[0] -= unavailable.min(cached[0]);
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
    pub(crate) metrics: &'a Metrics,
    pub(crate) usage: &'a Arc<ProjectUsage>,
}

#[async_trait]
impl Transforms for MeteredTransforms<'_> {
    async fn load(&self, digest: &Digest) -> Result<Arc<dyn RowTransform>, TransformUnavailable> {
        let transform = self.transforms.load(digest).await?;
        let counters = self.metrics.calls_of(transform.as_ref());
        Ok(Arc::new(MeteredTransform { transform, usage: Arc::clone(self.usage), counters }))
    }
}

#[derive(Debug)]
struct MeteredTransform {
    transform: Arc<dyn RowTransform>,
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
        let took = began.elapsed();
        // Of a call that failed there is no measure but the time that it took.
        self.usage.took(applied.as_ref().map_or(took, |applied| applied.cpu));
        self.counters.seconds.observe(took.as_secs_f64());
        self.counters.rows.inc_by(rows as u64);
        self.counters.failures.inc_by(applied.as_ref().map_or(1, |applied| applied.failed.len() as u64));
        applied
    }
}
