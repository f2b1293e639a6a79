//! Runs a plan over the rows of a request.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::{Array, ArrayRef};
use eadem_query::{
    OnDemandInput, QueryError, ReadRows, apply_default, compute_on_read, evaluate_on_demand, project_feature,
};
use eadem_registry::model::ViewVersion;
use eadem_semantics::{ReadAt, RowOrder, Status};
use eadem_values::{DataType, EntityKey, KeyValue, Value, array_from_values, decode_row, decode_rows, null_array};

use super::plan::{KeySet, Node, OnDemandNode, OnDemandSource, ServingPlan, StoredNode, ViewRead};
use super::rows::{
    EntityKeys, ReadOptions, ReadRow, RowSource, RowSourceError, Store, TransformUnavailable, Transforms,
};

/// What a request asks for, decoded: one entry per row in everything.
#[derive(Debug, Clone)]
pub struct EntityRows {
    /// The time of each row.
    pub at_us: Vec<i64>,
    /// For each key of the service, in its order, the value of every row.
    pub keys: Vec<Vec<KeyValue>>,
    /// For each request field of the service, in its order, the values in canonical form.
    pub request: Vec<ArrayRef>,
}

/// How a request is answered.
#[derive(Debug, Clone, Copy)]
pub struct ServeOptions {
    /// How its rows are read.
    pub read: ReadOptions,
    /// What is not there by then has status `error`; `None`: it is waited for.
    pub deadline: Option<Instant>,
}

/// The rows that the answers of a view rest on, one entry per row of the request.
#[derive(Debug, Clone, Default)]
pub struct ViewRows {
    /// The place of the row that was chosen among those of its entity; `None` for on-demand views and where no row was found.
    pub orders: Vec<Option<RowOrder>>,
    /// Which store proved the answer; an on-demand value is online when all its inputs were.
    pub stores: Vec<Store>,
    /// Whether the row was in memory.
    pub cached: Vec<bool>,
}

impl ViewRows {
    /// The event time of the row that was chosen, if there is one.
    pub fn event_time_us(&self, row: usize) -> Option<i64> {
        self.orders[row].map(|order| order.event_time_us)
    }

    fn of(read: &[ReadRow]) -> Self {
        Self {
            orders: read.iter().map(|read| read.row.as_ref().map(|row| row.order)).collect(),
            stores: read.iter().map(|read| read.store).collect(),
            cached: read.iter().map(|read| read.cached).collect(),
        }
    }

    fn without_rows(stores: Vec<Store>) -> Self {
        Self { orders: vec![None; stores.len()], cached: vec![false; stores.len()], stores }
    }
}

/// One answered feature, one entry per row.
#[derive(Debug, Clone)]
pub struct AnswerColumn {
    /// The values; the default, or null, where the status is not present.
    pub values: ArrayRef,
    /// The statuses.
    pub statuses: Arc<[Status]>,
    /// The rows that it rests on.
    pub rows: Arc<ViewRows>,
}

/// What one view, for one role, has cost and found.
#[derive(Debug, Clone)]
pub(crate) struct AnsweredNode {
    pub(crate) rows: Arc<ViewRows>,
    pub(crate) read: NodeRead,
    /// Of everything else: decoding, transforms, statuses.
    pub(crate) computed_in: Duration,
    /// Whether its transform had its turn.
    pub(crate) ran: bool,
    pub(crate) is_late: bool,
}

/// What came of reading the rows of a node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NodeRead {
    /// From the beginning of the request's reads until its rows were there, or nobody waited for them any more.
    pub(crate) took: Duration,
    pub(crate) outcome: ReadOutcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadOutcome {
    /// It has no rows of its own.
    Nothing,
    /// They were read, but for those of so many entities, of which no store could say anything.
    Rows { unavailable: usize },
    /// They were not there by the deadline.
    Late,
    /// This store failed.
    Failed(&'static str),
}

impl NodeRead {
    const NONE: Self = Self { took: Duration::ZERO, outcome: ReadOutcome::Nothing };
}

/// The answer to a request: a column per output of the plan, in its order.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The time of each row.
    pub at_us: Vec<i64>,
    /// One per output.
    pub columns: Vec<AnswerColumn>,
    /// One per node of the plan.
    pub(crate) nodes: Vec<AnsweredNode>,
}

/// Why nothing could be answered at all.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Rows that could not be read.
    #[error(transparent)]
    Rows(#[from] RowSourceError),
    /// A transform that cannot be loaded.
    #[error(transparent)]
    Transform(#[from] TransformUnavailable),
    /// A fault of ours: columns that do not fit.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// A value that does not fit its column.
    #[error(transparent)]
    Value(#[from] eadem_values::ValueError),
    /// Its turn came after the deadline.
    #[error("it was not computed before the deadline of the request (limits.request_ms_max, deadline_ms)")]
    Late,
    /// A fault of ours: a view whose rows nobody read.
    #[error("the rows of {0} were not read")]
    NotRead(String),
}

impl ServeError {
    /// Whether too much is computed already. The request is to be refused as a whole: served with status `error`, it would
    /// cost as much and be of no use.
    pub fn is_overload(&self) -> bool {
        matches!(self, Self::Query(QueryError::Transform(failure)) if failure.is_busy)
    }
}

/// Per feature of a node: values without defaults, and statuses.
type Features = Vec<(ArrayRef, Arc<[Status]>)>;

struct NodeAnswer {
    features: Features,
    rows: Arc<ViewRows>,
}

/// What was read for one node, and how long that took.
type Read = (Result<Vec<ReadRow>, RowSourceError>, Duration);

/// Answers a request. Rows of all views are read concurrently. A view whose rows cannot be read in time, or whose transform
/// cannot run, gives its own features status `error` and leaves the others alone.
///
/// # Errors
/// Rows of the past that are not there, or more reads of history than one request may cause; a default that does not fit its
/// column, which is a fault of ours.
pub async fn serve(
    plan: &ServingPlan,
    rows: &EntityRows,
    source: &dyn RowSource,
    transforms: &dyn Transforms,
    options: ServeOptions,
) -> Result<Answer, ServeError> {
    let began = Instant::now();
    let asked: Vec<Asked> = plan.key_sets.iter().map(|roles| Asked::of(roles, rows)).collect();
    let reads = plan.reads.iter().map(|read| read_rows(plan, read, &asked[read.key_set], source, options, began));
    let mut read_of: Vec<Option<Read>> = plan.nodes.iter().map(|_| None).collect();
    for (read, of_nodes) in plan.reads.iter().zip(futures::future::join_all(reads).await) {
        for (node, read) in read.nodes.iter().zip(of_nodes) {
            read_of[*node] = Some(read);
        }
    }

    let mut answers: Vec<NodeAnswer> = Vec::with_capacity(plan.nodes.len());
    let mut answered: Vec<AnsweredNode> = Vec::with_capacity(plan.nodes.len());
    for (node, read) in plan.nodes.iter().zip(read_of) {
        let began = Instant::now();
        if let Some((Err(error), _)) = &read
            && error.is_of_request()
        {
            return Err(error.clone().into());
        }
        let is_over = options.deadline.is_some_and(|deadline| began >= deadline);
        let computes = node.component().is_some();
        let found = read.as_ref().and_then(|(read, _)| read.as_deref().ok());
        let view_rows = Arc::new(match (node, found) {
            (Node::Stored(_), Some(found)) => ViewRows::of(found),
            _ => ViewRows::without_rows(stores_asked(node, &answers, rows.at_us.len())),
        });
        let answer = match (node, &read) {
            (_, Some((Err(error), _))) => Err(error.clone().into()),
            _ if computes && is_over => Err(ServeError::Late),
            (Node::Stored(stored), Some((Ok(read), _))) => {
                stored_answer(stored, rows, read, transforms, options.deadline).await
            }
            (Node::OnDemand(view), _) => on_demand_answer(view, rows, &answers, transforms, options.deadline).await,
            (Node::Stored(stored), None) => Err(ServeError::NotRead(stored.view.id.to_string())),
        };
        let answer = match answer {
            Err(error) if error.is_overload() => return Err(error),
            answer => answer,
        };
        let is_late = matches!(&answer, Err(ServeError::Late | ServeError::Rows(RowSourceError::Late)));
        // One failing view fails alone.
        let features = answer.unwrap_or_else(|error| {
            tracing::warn!(view = %node.view().id, %error, "a view could not be answered; its features have status error");
            all_errors(node.view(), rows.at_us.len())
        });
        answered.push(AnsweredNode {
            rows: Arc::clone(&view_rows),
            ran: computes && !is_over && read.as_ref().is_none_or(|(read, _)| read.is_ok()),
            read: read.map_or(NodeRead::NONE, |(read, took)| NodeRead { took, outcome: outcome(&read) }),
            computed_in: began.elapsed(),
            is_late,
        });
        answers.push(NodeAnswer { features, rows: view_rows });
    }

    let mut columns = Vec::with_capacity(plan.outputs.len());
    for output in &plan.outputs {
        let (values, statuses) = &answers[output.node].features[output.feature];
        let values = match &output.default {
            Some(default) => apply_default(values, statuses, default)?,
            None => Arc::clone(values),
        };
        let rows = Arc::clone(&answered[output.node].rows);
        columns.push(AnswerColumn { values, statuses: Arc::clone(statuses), rows });
    }
    Ok(Answer { at_us: rows.at_us.clone(), columns, nodes: answered })
}

fn outcome(read: &Result<Vec<ReadRow>, RowSourceError>) -> ReadOutcome {
    match read {
        Ok(rows) => ReadOutcome::Rows { unavailable: rows.iter().filter(|row| row.unavailable).count() },
        Err(RowSourceError::Late) => ReadOutcome::Late,
        Err(RowSourceError::Unavailable { store, .. }) => ReadOutcome::Failed(store),
        // The request is at fault, and was refused.
        Err(_) => ReadOutcome::Nothing,
    }
}

/// What is read for the roles of a view: each entity once at each time, however often it was asked for.
struct Asked {
    keys: EntityKeys,
    reads: Vec<ReadAt>,
    /// For each row of each role, its place among what is read; `None`: they are the same.
    places: Option<Vec<usize>>,
}

impl Asked {
    fn of(roles: &KeySet, rows: &EntityRows) -> Self {
        let keys = entity_keys(roles, rows);
        let of_role = || rows.at_us.iter().map(|at_us| ReadAt::as_known_then(*at_us));
        let reads: Vec<ReadAt> = roles.iter().flat_map(|_| of_role()).collect();
        match repeated(&keys, &reads) {
            None => Self { keys, reads, places: None },
            Some((firsts, places)) => Self {
                keys: keys.pick(&firsts),
                reads: firsts.iter().map(|first| reads[*first]).collect(),
                places: Some(places),
            },
        }
    }

    /// What was found, for each row of each role.
    fn spread(&self, found: Vec<ReadRow>) -> Vec<ReadRow> {
        match &self.places {
            None => found,
            Some(places) => places.iter().filter_map(|place| found.get(*place).cloned()).collect(),
        }
    }
}

/// Where reads are the same: the first of each, and for all of them which of those.
fn repeated(keys: &EntityKeys, reads: &[ReadAt]) -> Option<(Vec<usize>, Vec<usize>)> {
    if reads.len() < 2 {
        return None;
    }
    let (mut known, mut firsts) = (HashMap::with_capacity(reads.len()), Vec::with_capacity(reads.len()));
    let mut place_of = |(at, (key, read)): (usize, (_, &ReadAt))| match known.entry((key, read.at_us)) {
        Entry::Occupied(place) => *place.get(),
        Entry::Vacant(place) => {
            firsts.push(at);
            *place.insert(firsts.len() - 1)
        }
    };
    let places: Vec<usize> = keys.encoded().iter().zip(reads).enumerate().map(&mut place_of).collect();
    (firsts.len() < reads.len()).then_some((firsts, places))
}

/// The entities of all rows, role by role.
fn entity_keys(roles: &KeySet, rows: &EntityRows) -> EntityKeys {
    let key_of = |keys: &[usize], row: usize| EntityKey(keys.iter().map(|key| rows.keys[*key][row].clone()).collect());
    roles.iter().flat_map(|keys| (0..rows.at_us.len()).map(move |row| key_of(keys, row))).collect()
}

/// Reads the rows of one view for all nodes that want some, each with its own part of the keys.
async fn read_rows(
    plan: &ServingPlan,
    read: &ViewRead,
    asked: &Asked,
    source: &dyn RowSource,
    options: ServeOptions,
    began: Instant,
) -> Vec<Read> {
    let nodes = &read.nodes;
    let read = source.read(plan.nodes[nodes[0]].view(), &asked.keys, &asked.reads, options.read);
    let read = match options.deadline {
        Some(deadline) => tokio::time::timeout_at(deadline.into(), read).await.unwrap_or(Err(RowSourceError::Late)),
        None => read.await,
    };
    let took = began.elapsed();
    match read.map(|found| asked.spread(found)) {
        Ok(mut read) => {
            let count = read.len() / nodes.len();
            let mut parts: Vec<Read> = Vec::with_capacity(nodes.len());
            for position in (1..nodes.len()).rev() {
                parts.push((Ok(read.split_off(position * count)), took));
            }
            parts.push((Ok(read), took));
            parts.reverse();
            parts
        }
        Err(error) => nodes.iter().map(|_| (Err(error.clone()), took)).collect(),
    }
}

/// Which stores the answer of a node without rows rests on, whatever comes of it: those that its inputs came from. Where its rows
/// could not be read the online store proved nothing.
fn stores_asked(node: &Node, answers: &[NodeAnswer], count: usize) -> Vec<Store> {
    let on_demand = match node {
        Node::Stored(_) => return vec![Store::Offline; count],
        Node::OnDemand(on_demand) => on_demand,
    };
    let mut stores = vec![Store::Online; count];
    for input in &on_demand.inputs {
        let OnDemandSource::Node { node, .. } = input else { continue };
        for (store, upstream) in stores.iter_mut().zip(&answers[*node].rows.stores) {
            *store = store.and(*upstream);
        }
    }
    stores
}

async fn stored_answer(
    node: &StoredNode,
    rows: &EntityRows,
    read: &[ReadRow],
    transforms: &dyn Transforms,
    deadline: Option<Instant>,
) -> Result<Features, ServeError> {
    let mut reads = ReadRows {
        event_times_us: read.iter().map(|read| read.row.as_ref().map(|row| row.order.event_time_us)).collect(),
        failed: read.iter().map(|read| read.row.as_ref().is_some_and(|row| row.failed)).collect(),
        at_us: rows.at_us.clone(),
    };
    let stored = decode_columns(node, read, &mut reads)?;
    let columns = match node.runs_on_read {
        true => run_on_read(node, &stored, &mut reads, transforms, deadline).await?,
        false => stored,
    };
    let mut of_rows = reads.statuses(node.lifetime);
    for row in (0..read.len()).filter(|row| read[*row].unavailable) {
        of_rows[row] = Status::Error;
    }
    let of_rows = of_rows.into();
    columns.iter().map(|column| project_feature(column, &of_rows).map_err(ServeError::from)).collect()
}

/// The winners' stored columns; null where there is no winner, its transform failed, or its bytes do not decode. The last
/// counts as failed from here on, and no other entity suffers for it.
fn decode_columns<'a>(
    node: &StoredNode,
    read: &'a [ReadRow],
    reads: &mut ReadRows,
) -> Result<Vec<ArrayRef>, ServeError> {
    let types = &node.stored_types;
    let values = |found: &'a ReadRow| found.row.as_ref().filter(|row| !row.failed).map(|row| row.values.as_ref());
    let mut rows: Vec<Option<&[u8]>> = read.iter().map(values).collect();
    if let Ok(columns) = decode_rows(types, rows.iter().copied()) {
        return Ok(columns);
    }
    for (row, failed) in rows.iter_mut().zip(&mut reads.failed) {
        let Some(Err(error)) = row.map(|bytes| decode_row(types, bytes)) else { continue };
        tracing::error!(view = %node.view.id, %error, "a stored row does not decode; its features have status error");
        *failed = true;
        *row = None;
    }
    decode_rows(types, rows.iter().copied()).map_err(ServeError::from)
}

/// Runs the transform of an `on_read` view over the rows that are served, in one call, and marks those that fail.
async fn run_on_read(
    node: &StoredNode,
    inputs: &[ArrayRef],
    reads: &mut ReadRows,
    transforms: &dyn Transforms,
    deadline: Option<Instant>,
) -> Result<Vec<ArrayRef>, ServeError> {
    let component = &node.component;
    let computed = match component.transform(transforms, deadline).await {
        Ok(transform) => {
            compute_on_read(transform, &component.validation, inputs, reads, node.lifetime).map_err(ServeError::from)
        }
        Err(error) => Err(error),
    };
    computed.or_else(|error| {
        if error.is_overload() || matches!(error, ServeError::Late) {
            return Err(error);
        }
        tracing::warn!(view = %node.view.id, %error, "transform could not run; its features have status error");
        // Of the rows that would be served only: an entity without a row is still missing.
        for read in 0..reads.len() {
            reads.failed[read] = reads.event_times_us[read].is_some();
        }
        let outputs = node.view.description.outputs.iter();
        Ok(outputs.map(|output| null_array(output.data_type, reads.len())).collect())
    })
}

async fn on_demand_answer(
    node: &OnDemandNode,
    rows: &EntityRows,
    answers: &[NodeAnswer],
    transforms: &dyn Transforms,
    deadline: Option<Instant>,
) -> Result<Features, ServeError> {
    let count = rows.at_us.len();
    let mut inputs = Vec::with_capacity(node.inputs.len());
    for (source, field) in node.inputs.iter().zip(&node.view.description.inputs) {
        inputs.push(match source {
            OnDemandSource::Node { node, feature } => {
                let (values, statuses) = &answers[*node].features[*feature];
                OnDemandInput { values: Arc::clone(values), statuses: Some(Arc::clone(statuses)) }
            }
            OnDemandSource::Request(position) => {
                OnDemandInput { values: Arc::clone(&rows.request[*position]), statuses: None }
            }
            OnDemandSource::RequestTimestamp => {
                let instants: Vec<Value> = rows.at_us.iter().map(|at_us| Value::Timestamp(*at_us)).collect();
                OnDemandInput { values: array_from_values(DataType::Timestamp, &instants)?, statuses: None }
            }
            OnDemandSource::Literal(value) => {
                let repeated = std::iter::repeat_n(value, count);
                OnDemandInput { values: array_from_values(field.data_type, repeated)?, statuses: None }
            }
        });
    }
    let transform = node.component.transform(transforms, deadline).await?;
    let output = evaluate_on_demand(transform, &node.component.validation, count, &inputs)?;
    Ok(output.columns.into_iter().zip(output.statuses).collect())
}

/// Status `error` for every feature of a view.
fn all_errors(view: &ViewVersion, rows: usize) -> Features {
    let outputs = view.description.outputs.iter();
    outputs.map(|output| (null_array(output.data_type, rows), vec![Status::Error; rows].into())).collect()
}

impl Answer {
    /// How many rows were answered.
    pub fn rows(&self) -> usize {
        self.at_us.len()
    }
}

impl AnswerColumn {
    /// Whether row `row` has no value of its own.
    pub fn is_null(&self, row: usize) -> bool {
        self.values.is_null(row)
    }
}
