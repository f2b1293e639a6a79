//! Runs a plan over the rows of a request.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef};
use eadem_query::{
    OnDemandInput, QueryError, ReadRows, apply_default, compute_on_read, evaluate_on_demand, project_feature,
};
use eadem_registry::model::ViewVersion;
use eadem_semantics::{ReadAt, Status};
use eadem_values::{DataType, EntityKey, KeyValue, Value, array_from_values, decode_row, null_array};

use super::meaning::validation;
use super::plan::{Node, OnDemandNode, OnDemandSource, ServingPlan, StoredNode};
use super::rows::{ReadRow, RowSource, RowSourceError, Store, TransformUnavailable, Transforms};

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

/// One answered feature, one entry per row.
#[derive(Debug, Clone)]
pub struct AnswerColumn {
    /// The values; the default, or null, where the status is not present.
    pub values: ArrayRef,
    /// The statuses.
    pub statuses: Arc<[Status]>,
    /// The event time of the row that was chosen; `None` for on-demand views and where no row was found.
    pub event_time_us: Vec<Option<i64>>,
    /// Which store proved the value; an on-demand value is online when all its inputs were.
    pub stores: Vec<Store>,
}

/// The answer to a request: a column per output of the plan, in its order.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The time of each row.
    pub at_us: Vec<i64>,
    /// One per output.
    pub columns: Vec<AnswerColumn>,
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
}

struct NodeAnswer {
    /// Per feature: values without defaults, and statuses.
    features: Vec<(ArrayRef, Arc<[Status]>)>,
    event_time_us: Vec<Option<i64>>,
    stores: Vec<Store>,
}

/// Answers a request. Rows of all views are read concurrently. A view whose rows cannot be read, or whose transform cannot
/// run, gives its own features status `error` and leaves the others alone.
///
/// # Errors
/// Rows of the past that are not there, or more reads of history than one request may cause; a default that does not fit its
/// column, which is a fault of ours.
pub async fn serve(
    plan: &ServingPlan,
    rows: &EntityRows,
    source: &dyn RowSource,
    transforms: &dyn Transforms,
) -> Result<Answer, ServeError> {
    let reads = plan.nodes.iter().map(|node| async move {
        match node {
            Node::Stored(stored) => read_rows(stored, rows, source).await,
            Node::OnDemand(_) => Ok(Vec::new()),
        }
    });
    let reads = futures::future::join_all(reads).await;

    let mut answers: Vec<NodeAnswer> = Vec::with_capacity(plan.nodes.len());
    for (node, read) in plan.nodes.iter().zip(reads) {
        let stores = stores_asked(node, &read, &answers, rows.at_us.len());
        if let Err(error) = &read
            && error.is_of_request()
        {
            return Err(error.clone().into());
        }
        let answer = match (node, read) {
            (Node::Stored(stored), Ok(read)) => stored_answer(stored, rows, &read, transforms).await,
            (Node::Stored(_), Err(error)) => Err(error.into()),
            (Node::OnDemand(on_demand), _) => on_demand_answer(on_demand, rows, &answers, &stores, transforms).await,
        };
        // One failing view fails alone.
        let answer = answer.unwrap_or_else(|error| {
            tracing::warn!(view = %node.view().id, %error, "a view could not be answered; its features have status error");
            error_answer(node.view(), stores)
        });
        answers.push(answer);
    }

    let mut columns = Vec::with_capacity(plan.outputs.len());
    for output in &plan.outputs {
        let answer = &answers[output.node];
        let (values, statuses) = &answer.features[output.feature];
        let values = match &output.default {
            Some(default) => apply_default(values, statuses, default)?,
            None => Arc::clone(values),
        };
        columns.push(AnswerColumn {
            values,
            statuses: Arc::clone(statuses),
            event_time_us: answer.event_time_us.clone(),
            stores: answer.stores.clone(),
        });
    }
    Ok(Answer { at_us: rows.at_us.clone(), columns })
}

async fn read_rows(
    node: &StoredNode,
    rows: &EntityRows,
    source: &dyn RowSource,
) -> Result<Vec<ReadRow>, RowSourceError> {
    let row_key = |row: usize| EntityKey(node.keys.iter().map(|key| rows.keys[*key][row].clone()).collect());
    let keys: Vec<EntityKey> = (0..rows.at_us.len()).map(row_key).collect();
    let reads: Vec<ReadAt> = rows.at_us.iter().map(|at_us| ReadAt::as_known_then(*at_us)).collect();
    source.read(&node.view, &keys, &reads).await
}

/// Which stores a node's answer rests on, whatever comes of it: those that its rows or its inputs came from. Where rows could
/// not be read the online store proved nothing.
fn stores_asked(
    node: &Node,
    read: &Result<Vec<ReadRow>, RowSourceError>,
    answers: &[NodeAnswer],
    count: usize,
) -> Vec<Store> {
    match (node, read) {
        (Node::Stored(_), Ok(read)) => read.iter().map(|read| read.store).collect(),
        (Node::Stored(_), Err(_)) => vec![Store::Offline; count],
        (Node::OnDemand(on_demand), _) => {
            let mut stores = vec![Store::Online; count];
            for input in &on_demand.inputs {
                let OnDemandSource::Node { node, .. } = input else { continue };
                for (store, upstream) in stores.iter_mut().zip(&answers[*node].stores) {
                    *store = store.and(*upstream);
                }
            }
            stores
        }
    }
}

async fn stored_answer(
    node: &StoredNode,
    rows: &EntityRows,
    read: &[ReadRow],
    transforms: &dyn Transforms,
) -> Result<NodeAnswer, ServeError> {
    let mut reads = ReadRows {
        event_times_us: read.iter().map(|read| read.row.as_ref().map(|row| row.order.event_time_us)).collect(),
        failed: read.iter().map(|read| read.row.as_ref().is_some_and(|row| row.failed)).collect(),
        at_us: rows.at_us.clone(),
    };
    let stored = decode_columns(node, read, &mut reads)?;
    let columns = if node.runs_on_read { run_on_read(node, &stored, &mut reads, transforms).await? } else { stored };
    let mut of_rows = reads.statuses(node.lifetime);
    for row in (0..read.len()).filter(|row| read[*row].unavailable) {
        of_rows[row] = Status::Error;
    }
    let of_rows = of_rows.into();
    let features = columns.iter().map(|column| project_feature(column, &of_rows)).collect::<Result<Vec<_>, _>>()?;
    Ok(NodeAnswer {
        features,
        event_time_us: reads.event_times_us,
        stores: read.iter().map(|read| read.store).collect(),
    })
}

/// The winners' stored columns; null where there is no winner, its transform failed, or its bytes do not decode. The last
/// counts as failed from here on, and no other entity suffers for it.
fn decode_columns(node: &StoredNode, read: &[ReadRow], reads: &mut ReadRows) -> Result<Vec<ArrayRef>, ServeError> {
    let no_values = vec![Value::Null; node.stored_types.len()];
    let mut decoded = Vec::with_capacity(read.len());
    for (found, failed) in read.iter().zip(&mut reads.failed) {
        let values = match &found.row {
            Some(row) if !row.failed => decode_row(&node.stored_types, &row.values),
            _ => Ok(no_values.clone()),
        };
        decoded.push(values.unwrap_or_else(|error| {
            tracing::error!(view = %node.view.id, %error, "a stored row does not decode; its features have status error");
            *failed = true;
            no_values.clone()
        }));
    }
    let column = |(at, data_type): (usize, &DataType)| {
        array_from_values(*data_type, decoded.iter().map(|row| &row[at])).map_err(ServeError::from)
    };
    node.stored_types.iter().enumerate().map(column).collect()
}

/// Runs the transform of an `on_read` view over the rows that are served, in one call, and marks those that fail.
async fn run_on_read(
    node: &StoredNode,
    inputs: &[ArrayRef],
    reads: &mut ReadRows,
    transforms: &dyn Transforms,
) -> Result<Vec<ArrayRef>, ServeError> {
    let validation = validation(&node.view);
    let computed = match transforms.load(&node.view.transform).await {
        Ok(transform) => {
            compute_on_read(transform.as_ref(), &validation, inputs, reads, node.lifetime).map_err(ServeError::from)
        }
        Err(error) => Err(error.into()),
    };
    computed.or_else(|error| {
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
    stores: &[Store],
    transforms: &dyn Transforms,
) -> Result<NodeAnswer, ServeError> {
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
    let validation = validation(&node.view);
    let transform = transforms.load(&node.view.transform).await?;
    let output = evaluate_on_demand(transform.as_ref(), &validation, count, &inputs)?;
    let features = output.columns.into_iter().zip(output.statuses).collect();
    Ok(NodeAnswer { features, event_time_us: vec![None; count], stores: stores.to_vec() })
}

/// Status `error` for every feature of a view.
fn error_answer(view: &ViewVersion, stores: Vec<Store>) -> NodeAnswer {
    let rows = stores.len();
    let outputs = view.description.outputs.iter();
    NodeAnswer {
        features: outputs
            .map(|output| (null_array(output.data_type, rows), vec![Status::Error; rows].into()))
            .collect(),
        event_time_us: vec![None; rows],
        stores,
    }
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
