//! The point-in-time join as a node of a DataFusion plan.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow_array::cast::AsArray;
use arrow_array::types::{TimestampMicrosecondType, UInt64Type};
use arrow_array::{Array, ArrayRef, RecordBatch, TimestampMicrosecondArray, UInt64Array};
use arrow_schema::{DataType as ArrowType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{Distribution, EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties,
    InputDistributionRequirements, Partitioning, PlanProperties, ReplaceChildrenOptions,
};
use eadem_semantics::{KnownAtCut, Lifetime};
use eadem_values::TieDigest;
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};

use crate::point_in_time::{HistoryRows, LevelRows, PartialWinners, Prober, SpineIndex, Winners};

/// Rows of one batch of the output.
const OUTPUT_ROWS: usize = 65_536;

/// As many rows may wait for their tie digests, 32 bytes each, whatever the history is like.
const LEVEL_ROWS_MAX: usize = 65_536;

/// Reads the tie digests of rows of the history.
pub trait TieReader: fmt::Debug + Send + Sync {
    /// Those of the rows at these places, which ascend, in their order.
    fn ties<'a>(&'a self, places: &'a [u64]) -> BoxFuture<'a, Result<Vec<TieDigest>>>;
}

/// Which columns of the history child mean what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryColumns {
    /// The join keys, in the order of the spine's.
    pub keys: Vec<usize>,
    /// Timestamps in microseconds.
    pub event_time: usize,
    /// Timestamps in microseconds.
    pub known_at: usize,
    /// The numbers (uint64, never null, below `u64::MAX`, no two alike) under which whoever made them finds the rows again.
    pub place: usize,
}

/// The winner's event time, which decides its age; null where nothing was found.
pub const EVENT_TIME_COLUMN: &str = "_event_time";
/// The winner's place (uint64); null where nothing was found.
pub const PLACE_COLUMN: &str = "_place";

/// What is joined to what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointInTimeJoin {
    /// The spine's key columns. A role is a choice of columns.
    pub spine_keys: Vec<usize>,
    /// The spine's timestamps, in microseconds.
    pub spine_time: usize,
    /// The spine's columns that come out, in this order, before the winner's.
    pub spine_kept: Vec<usize>,
    /// The history's columns.
    pub history: HistoryColumns,
    /// Which knowledge counts.
    pub cut: KnownAtCut,
    /// Rows past TTL + horizon are not looked at. What is expired is still handed on: its status needs its event time.
    pub lifetime: Lifetime,
}

/// For each spine row, in the spine's order, columns of the spine, then the event time ([`EVENT_TIME_COLUMN`]) and the place
/// ([`PLACE_COLUMN`]) of the history row that wins at its time. What else there is to know of winners is fetched for them only.
/// The history may come in any order and in any number of partitions.
///
/// There are as many partitions of the output as of the spine, and each joins its part of the spine to the whole history:
/// a spine that is too large for memory is split by entity, and its parts are joined one after the other, or elsewhere.
#[derive(Debug, Clone)]
pub struct PointInTimeJoinExec {
    spine: Arc<dyn ExecutionPlan>,
    history: Arc<dyn ExecutionPlan>,
    ties: Arc<dyn TieReader>,
    join: PointInTimeJoin,
    properties: Arc<PlanProperties>,
}

impl PointInTimeJoinExec {
    /// Joins `history`, whose tie digests `ties` reads, to `spine`.
    ///
    /// # Errors
    /// Columns that do not exist or have another type than their role asks for.
    pub fn try_new(
        spine: Arc<dyn ExecutionPlan>,
        history: Arc<dyn ExecutionPlan>,
        ties: Arc<dyn TieReader>,
        join: PointInTimeJoin,
    ) -> Result<Self> {
        check_columns(&spine.schema(), &history.schema(), &join)?;
        let spine_schema = spine.schema();
        let kept = join.spine_kept.iter().map(|column| Arc::clone(&spine_schema.fields()[*column]));
        let event_time_type = history.schema().field(join.history.event_time).data_type().clone();
        let of_winner =
            [Field::new(EVENT_TIME_COLUMN, event_time_type, true), Field::new(PLACE_COLUMN, ArrowType::UInt64, true)];
        let fields: Vec<_> = kept.chain(of_winner.into_iter().map(Arc::new)).collect();
        let partitions = spine.output_partitioning().partition_count();
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::new(Schema::new(fields))),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Ok(Self { spine, history, ties, join, properties: Arc::new(properties) })
    }
}

fn check_columns(spine: &Schema, history: &Schema, join: &PointInTimeJoin) -> Result<()> {
    let is_time = |data_type: &ArrowType| matches!(data_type, ArrowType::Timestamp(TimeUnit::Microsecond, _));
    let key_type = |data_type: &ArrowType| match data_type {
        ArrowType::Utf8 | ArrowType::Utf8View => Some(ArrowType::Utf8),
        ArrowType::Int64 => Some(ArrowType::Int64),
        _ => None,
    };
    let history_columns = &join.history;
    if join.spine_keys.len() != history_columns.keys.len() || join.spine_keys.is_empty() {
        return plan_error("the spine and the history need the same number of join keys, at least one".to_owned());
    }
    let spine_columns = join.spine_keys.iter().chain([&join.spine_time]).chain(&join.spine_kept);
    let history_indices = history_columns.keys.iter().chain([
        &history_columns.event_time,
        &history_columns.known_at,
        &history_columns.place,
    ]);
    if spine_columns.into_iter().any(|column| *column >= spine.fields().len())
        || history_indices.into_iter().any(|column| *column >= history.fields().len())
    {
        return plan_error("a column of the point-in-time join does not exist".to_owned());
    }
    for (ours, theirs) in join.spine_keys.iter().zip(&history_columns.keys) {
        let (ours, theirs) = (spine.field(*ours), history.field(*theirs));
        let (our_type, their_type) = (key_type(ours.data_type()), key_type(theirs.data_type()));
        if our_type.is_none() || our_type != their_type {
            return plan_error(format!(
                "join key `{}` is {} in the spine and {} in the history; both must be utf8 or both int64",
                ours.name(),
                ours.data_type(),
                theirs.data_type()
            ));
        }
    }
    let times = [
        spine.field(join.spine_time),
        history.field(history_columns.event_time),
        history.field(history_columns.known_at),
    ];
    if let Some(field) = times.into_iter().find(|field| !is_time(field.data_type())) {
        return plan_error(format!("`{}` is {}, not a timestamp in microseconds", field.name(), field.data_type()));
    }
    let place = history.field(history_columns.place);
    if place.data_type() != &ArrowType::UInt64 {
        return plan_error(format!("`{}` is {}, a place is uint64", place.name(), place.data_type()));
    }
    Ok(())
}

fn plan_error<T>(message: String) -> Result<T> {
    Err(DataFusionError::Plan(message))
}

impl DisplayAs for PointInTimeJoinExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spine = self.spine.schema();
        let keys: Vec<&str> = self.join.spine_keys.iter().map(|key| spine.field(*key).name().as_str()).collect();
        write!(
            f,
            "PointInTimeJoinExec: keys=[{}], time={}, known_at_cut={}",
            keys.join(", "),
            spine.field(self.join.spine_time).name(),
            self.join.cut
        )
    }
}

impl ExecutionPlan for PointInTimeJoinExec {
    fn name(&self) -> &str {
        "PointInTimeJoinExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        // Rows of one entity may stand in several partitions of the spine: each row finds its own winner.
        InputDistributionRequirements::new(vec![
            Distribution::UnspecifiedDistribution,
            Distribution::UnspecifiedDistribution,
        ])
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.spine, &self.history]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let [spine, history] = <[Arc<dyn ExecutionPlan>; 2]>::try_from(children)
            .map_err(|_| DataFusionError::Plan("a point-in-time join has two children".to_owned()))?;
        Ok(Arc::new(Self::try_new(spine, history, Arc::clone(&self.ties), self.join.clone())?))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition >= self.properties.output_partitioning().partition_count() {
            return Err(DataFusionError::Internal(format!("a point-in-time join has no partition {partition}")));
        }
        let schema = self.schema();
        let node = self.clone();
        let output_schema = schema.clone();
        let batches = futures::stream::once(async move { node.join_all(partition, context).await })
            .map_ok(move |joined| {
                let schema = output_schema.clone();
                futures::stream::iter((0..joined.rows).step_by(OUTPUT_ROWS))
                    .map(move |start| joined.batch(start..joined.rows.min(start + OUTPUT_ROWS), &schema))
            })
            .try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }
}

struct Joined {
    rows: usize,
    kept: Vec<ArrayRef>,
    winners: Winners,
}

impl Joined {
    fn batch(&self, rows: Range<usize>, schema: &SchemaRef) -> Result<RecordBatch> {
        let mut columns: Vec<ArrayRef> = self.kept.iter().map(|column| column.slice(rows.start, rows.len())).collect();
        let (event_times_us, places, is_found) = self.winners.of_rows(rows);
        let event_times = TimestampMicrosecondArray::new(event_times_us.into(), Some(is_found.clone()));
        let event_time_type = schema.field(columns.len()).data_type().clone();
        columns.push(Arc::new(event_times.with_data_type(event_time_type)));
        columns.push(Arc::new(UInt64Array::new(places.into(), Some(is_found))));
        Ok(RecordBatch::try_new(schema.clone(), columns)?)
    }
}

fn external(error: crate::QueryError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

impl PointInTimeJoinExec {
    async fn join_all(&self, partition: usize, context: Arc<TaskContext>) -> Result<Joined> {
        let spine = collect_one(&self.spine, partition, &context).await?;
        let keys: Vec<ArrayRef> = self.join.spine_keys.iter().map(|key| spine.column(*key).clone()).collect();
        let times = times_us(spine.column(self.join.spine_time), "the spine's timestamp")?;
        let index = Arc::new(SpineIndex::try_new(&keys, &times).map_err(external)?);
        let kept = self.join.spine_kept.iter().map(|column| spine.column(*column).clone()).collect();
        let rows = spine.num_rows();
        // Keys and times are in the index now, and may be most of the memory of a large spine.
        drop((spine, keys, times));

        let winners = Arc::new(Mutex::new(index.start()));
        let given_up = GivenUp::default();
        let mut tasks = tokio::task::JoinSet::new();
        for partition in 0..self.history.output_partitioning().partition_count() {
            let stream = self.history.execute(partition, context.clone())?;
            let (index, winners) = (index.clone(), winners.clone());
            let part = self.clone().absorb_stream(stream, index, winners, given_up.watch());
            // Decoding and comparing take whole seconds of processor time, which the runtime's own threads do not have.
            let runtime = tokio::runtime::Handle::current();
            tasks.spawn_blocking(move || runtime.block_on(part));
        }
        while let Some(part) = tasks.join_next().await {
            part.map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))??;
        }
        let shared = || DataFusionError::Internal("a part of the join is still at work".to_owned());
        let index = Arc::into_inner(index).ok_or_else(shared)?;
        // Nobody else takes rows in now, so that once is enough.
        let level = locked(&winners).take_level();
        self.settle(level, &winners).await?;
        let winners = Arc::into_inner(winners).ok_or_else(shared)?.into_inner().unwrap_or_else(PoisonError::into_inner);
        let winners = index.finish(winners).map_err(external)?;
        Ok(Joined { rows, kept, winners })
    }

    /// Takes one partition of the history in. What costs time, decoding and finding each row's place in the index, happens
    /// beside the other partitions; only the comparison with the winners so far, a few milliseconds for a batch, takes turns.
    async fn absorb_stream(
        self,
        mut stream: SendableRecordBatchStream,
        index: Arc<SpineIndex>,
        winners: Arc<Mutex<PartialWinners>>,
        is_given_up: Arc<AtomicBool>,
    ) -> Result<()> {
        let mut prober = Prober::new(self.join.cut, self.join.lifetime);
        let columns = &self.join.history;
        while let Some(batch) = stream.next().await {
            let batch = batch?;
            if is_given_up.load(Ordering::Relaxed) {
                return Err(DataFusionError::Execution("the join was given up".to_owned()));
            }
            let keys: Vec<ArrayRef> = columns.keys.iter().map(|key| batch.column(*key).clone()).collect();
            let rows = HistoryRows {
                keys: &keys,
                event_times_us: &times_us(batch.column(columns.event_time), "an event time of the history")?,
                known_at_us: &times_us(batch.column(columns.known_at), "a known-at of the history")?,
                places: batch.column(columns.place).as_primitive::<UInt64Type>().values(),
            };
            let probes = prober.probe(&index, &rows).map_err(external)?;
            let level = {
                let mut winners = locked(&winners);
                winners.absorb(probes, &rows);
                (winners.level_rows() > LEVEL_ROWS_MAX).then(|| winners.take_level())
            };
            if let Some(level) = level {
                self.settle(level, &winners).await?;
            }
        }
        Ok(())
    }

    async fn settle(&self, level: LevelRows, winners: &Mutex<PartialWinners>) -> Result<()> {
        if level.places().is_empty() {
            return Ok(());
        }
        let ties = self.ties.ties(level.places()).await?;
        locked(winners).settle(level, &ties).map_err(external)
    }
}

/// A poisoned lock means that another partition has panicked, which ends the join anyway.
fn locked(winners: &Mutex<PartialWinners>) -> MutexGuard<'_, PartialWinners> {
    winners.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells the threads at work on a join when nobody waits for it any more: they cannot be stopped from outside.
#[derive(Default)]
struct GivenUp(Arc<AtomicBool>);

impl GivenUp {
    fn watch(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

async fn collect_one(
    plan: &Arc<dyn ExecutionPlan>,
    partition: usize,
    context: &Arc<TaskContext>,
) -> Result<RecordBatch> {
    let schema = plan.schema();
    let batches = plan.execute(partition, context.clone())?.try_collect::<Vec<_>>().await?;
    Ok(arrow_select::concat::concat_batches(&schema, &batches)?)
}

fn times_us(column: &ArrayRef, what: &str) -> Result<arrow_buffer::ScalarBuffer<i64>> {
    if column.null_count() > 0 {
        return Err(DataFusionError::Execution(format!("{what} is null")));
    }
    Ok(column.as_primitive::<TimestampMicrosecondType>().values().clone())
}
