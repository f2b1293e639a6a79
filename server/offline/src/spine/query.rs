//! A spine from a query over registered sources.
//!
//! The query sees each source as its definition reads it: its columns in the types of the contract, computed ones included,
//! and the rows that `where` lets through. What it finds is kept as the spine, so a training set is made again without it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::{DataType as ArrowType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::{DataFusionError, Result as QueryResult};
use datafusion::execution::context::SQLOptions;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan, TableType, Volatility};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::KeptSpine;
use super::writer::SpineWriter;
use crate::cancel::{Cancel, unless_cancelled};
use crate::decode_thread::on_own_thread;
use crate::error::OfflineError;
use crate::location::OfflineStore;
use crate::source::{InspectedColumn, inspect, source_rows};
use crate::spec::SourceSpec;

/// Memory that a query may take; what needs more (sorting, grouping) is spilled to the disk.
const MEMORY_BYTES_MAX: usize = 512 << 20;

/// Rows that a query hands on at once.
const BATCH_ROWS: usize = 8_192;

/// What became of a query.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueriedSpine {
    /// Its rows, kept.
    pub kept: KeptSpine,
    /// How many there are.
    pub rows: u64,
    /// What was left out: rows of sources with a value that could not be read.
    pub notes: Vec<String>,
}

/// A query over sources, planned.
pub struct SpineQuery {
    frame: DataFrame,
    tables: Vec<Arc<SourceTable>>,
    /// Nobody waits for its rows any more.
    given_up: Cancel,
}

impl fmt::Debug for SpineQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpineQuery").field("tables", &self.tables).finish_non_exhaustive()
    }
}

/// The names of the tables that a query reads, as far as they can be told from its text.
///
/// # Errors
/// Text that is no query.
pub fn tables_of_query(sql: &str) -> Result<Vec<String>, OfflineError> {
    let state = context()?.state();
    let statement = state.sql_to_statement(sql, &state.config_options().sql_parser.dialect).map_err(refused)?;
    let references = state.resolve_table_references(&statement).map_err(refused)?;
    let mut names: Vec<String> = references.iter().map(|reference| reference.table().to_owned()).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

impl SpineQuery {
    /// Plans `sql` over these sources; each is a table of its name. Column names are taken as written.
    ///
    /// # Errors
    /// Text that is no single query over these sources and their columns; a function whose value is another one each time
    /// (the time of day, random numbers); a source that cannot be read.
    pub async fn plan(sql: &str, sources: Vec<SourceSpec>) -> Result<Self, OfflineError> {
        let context = context()?;
        let mut tables = Vec::new();
        let given_up = Cancel::default();
        for source in sources {
            let table = Arc::new(SourceTable::open(source, &given_up).await?);
            context.register_table(table.source.name.as_str(), table.clone()).map_err(refused)?;
            tables.push(table);
        }
        let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        let frame = context.sql_with_options(sql, options).await.map_err(|error| explain(&error, &tables))?;
        if let Some(function) = changing_function(frame.logical_plan()) {
            return Err(OfflineError::Dataset(format!(
                "the spine's query calls `{function}`, which has another value each time; write the value itself"
            )));
        }
        for (at, field) in frame.schema().fields().iter().enumerate() {
            if frame.schema().fields().iter().take(at).any(|known| known.name() == field.name()) {
                let message = format!("the spine's query gives two columns `{}`; rename one with `as`", field.name());
                return Err(OfflineError::Dataset(message));
            }
        }
        Ok(Self { frame, tables, given_up })
    }

    /// The columns that it gives.
    pub fn columns(&self) -> Vec<String> {
        self.frame.schema().fields().iter().map(|field| field.name().clone()).collect()
    }

    /// Runs it, and keeps its rows as a spine. `name` tells spines from each other that are made at the same time.
    ///
    /// # Errors
    /// A file that cannot be read, a value that cannot be computed, memory that does not suffice, cancellation.
    pub async fn keep(self, store: &OfflineStore, name: &str, cancel: &Cancel) -> Result<QueriedSpine, OfflineError> {
        let fields = self.frame.schema().as_arrow().fields().iter().map(|field| plain(field)).collect::<Vec<_>>();
        let schema = Arc::new(Schema::new(fields));
        let mut writer = SpineWriter::begin(store, name, schema.clone()).await?;
        if let Err(error) = unless_cancelled(cancel, write_rows(self.frame, &schema, &mut writer)).await {
            self.given_up.cancel();
            return Err(writer.discard_after(error).await);
        }
        let rows = writer.rows();
        let kept = writer.finish(store).await?;
        let notes = self.tables.iter().filter_map(|table| table.left_out.note(&table.source.name)).collect();
        Ok(QueriedSpine { kept, rows, notes })
    }
}

/// Writes what a query gives. It is computed on a thread of its own: a join of a few rows that it gives may take minutes, in which
/// the computing waits for nothing and could not be called off.
async fn write_rows(frame: DataFrame, schema: &SchemaRef, writer: &mut SpineWriter) -> Result<(), OfflineError> {
    let (give, mut batches) = mpsc::channel::<RecordBatch>(1);
    let compute = on_own_thread(async move {
        let mut rows = frame.execute_stream().await.map_err(refused)?;
        while let Some(batch) = rows.try_next().await.map_err(refused)? {
            if give.send(batch).await.is_err() {
                break;
            }
        }
        Ok(())
    });
    let write = async {
        while let Some(batch) = batches.recv().await {
            let columns = batch.columns().iter().zip(schema.fields());
            let columns = columns.map(|(column, field)| arrow_cast::cast(column, field.data_type()));
            let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
            let columns = columns.collect::<Result<_, _>>()?;
            writer.write(&RecordBatch::try_new_with_options(schema.clone(), columns, &options)?).await?;
        }
        Ok::<(), OfflineError>(())
    };
    tokio::try_join!(compute, write).map(|_| ())
}

fn context() -> Result<SessionContext, OfflineError> {
    let mut config = SessionConfig::new().with_batch_size(BATCH_ROWS).with_target_partitions(1);
    // As in the definitions of sources: names are taken as written.
    config.options_mut().sql_parser.enable_ident_normalization = false;
    let pool = Arc::new(FairSpillPool::new(MEMORY_BYTES_MAX));
    let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc().map_err(refused)?;
    Ok(SessionContext::new_with_config_rt(config, runtime))
}

/// The field without layouts that only a query engine likes.
fn plain(field: &Field) -> Field {
    let data_type = match field.data_type() {
        ArrowType::Utf8View | ArrowType::LargeUtf8 => ArrowType::Utf8,
        ArrowType::BinaryView | ArrowType::LargeBinary => ArrowType::Binary,
        ArrowType::Dictionary(_, values) => values.as_ref().clone(),
        other => other.clone(),
    };
    Field::new(field.name(), data_type, true)
}

fn refused(error: DataFusionError) -> OfflineError {
    OfflineError::Dataset(format!("the spine's query: {}", sentence(&error)))
}

fn sentence(error: &DataFusionError) -> String {
    match error {
        DataFusionError::External(cause) => cause.to_string(),
        other => crate::expression::sentence(other),
    }
}

/// The error, and for a column that a table has and cannot give, what to do about it.
fn explain(error: &DataFusionError, tables: &[Arc<SourceTable>]) -> OfflineError {
    let text = sentence(error);
    let mut message = format!("the spine's query: {text}");
    if text.contains("No field named") || text.contains("not found") {
        for table in tables {
            for (column, hint) in &table.hints {
                if text.contains(column.as_str()) {
                    message.push_str(&format!("; source {} has a column `{column}`, but {hint}", table.source.name));
                }
            }
        }
        if text.contains("table") {
            let names: Vec<&str> = tables.iter().map(|table| table.source.name.as_str()).collect();
            message.push_str(&format!("; the tables are the sources: {}", names.join(", ")));
        }
    }
    OfflineError::Dataset(message)
}

/// A function of the plan whose value is not decided by its arguments.
fn changing_function(plan: &LogicalPlan) -> Option<String> {
    let mut found = None;
    // The walks cannot fail: the closures never return an error.
    let _ = plan.apply_with_subqueries(|node| {
        let _ = node.apply_expressions(|expression| {
            expression.apply(|part| {
                if let Expr::ScalarFunction(call) = part
                    && call.func.signature().volatility != Volatility::Immutable
                {
                    found = Some(call.func.name().to_owned());
                }
                Ok(if found.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
            })
        });
        Ok(if found.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    found
}

/// A source as a table.
struct SourceTable {
    source: SourceSpec,
    schema: SchemaRef,
    /// Columns that it has and cannot give, with what to do about them.
    hints: BTreeMap<String, String>,
    left_out: Arc<LeftOut>,
    given_up: Cancel,
}

impl fmt::Debug for SourceTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "source {}", self.source.name)
    }
}

/// Rows of a source that a query could not see.
#[derive(Debug, Default)]
struct LeftOut {
    rows: AtomicU64,
    first: Mutex<Option<String>>,
}

impl LeftOut {
    fn add(&self, rows: u64, reason: impl FnOnce() -> String) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(reason);
    }

    fn note(&self, source: &str) -> Option<String> {
        let rows = self.rows.load(Ordering::Relaxed);
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let first = first.unwrap_or_default();
        (rows > 0).then(|| {
            format!("{rows} rows of source {source} were left out, because a value of them cannot be had; {first}")
        })
    }
}

impl SourceTable {
    async fn open(source: SourceSpec, given_up: &Cancel) -> Result<Self, OfflineError> {
        let mut fields = Vec::new();
        let mut hints = BTreeMap::new();
        for InspectedColumn { name, data_type, hint, .. } in inspect(&source).await? {
            match data_type {
                Some(data_type) => fields.push(Field::new(name, data_type.to_arrow(), true)),
                None => {
                    hints.insert(name, hint.unwrap_or_else(|| "it has no type of the contract".to_owned()));
                }
            }
        }
        let schema = Arc::new(Schema::new(fields));
        Ok(Self { source, schema, hints, left_out: Arc::default(), given_up: given_up.clone() })
    }
}

#[async_trait]
impl TableProvider for SourceTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        limit: Option<usize>,
    ) -> QueryResult<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(columns) => Arc::new(self.schema.project(columns)?),
            None => self.schema.clone(),
        };
        let rows = SourceRowsStream {
            source: self.source.clone(),
            schema: schema.clone(),
            left_out: self.left_out.clone(),
            given_up: self.given_up.clone(),
        };
        let exec = StreamingTableExec::try_new(schema, vec![Arc::new(rows)], None, [], false, limit)?;
        Ok(Arc::new(exec))
    }
}

/// The rows of a source, with some of its columns.
#[derive(Debug)]
struct SourceRowsStream {
    source: SourceSpec,
    schema: SchemaRef,
    left_out: Arc<LeftOut>,
    given_up: Cancel,
}

impl PartitionStream for SourceRowsStream {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let names: Vec<String> = self.schema.fields().iter().map(|field| field.name().clone()).collect();
        let (schema, left_out) = (self.schema.clone(), self.left_out.clone());
        let (source, given_up) = (self.source.clone(), self.given_up.clone());
        let external = |error: OfflineError| DataFusionError::External(Box::new(error));
        let rows = futures::stream::once(async move { source_rows(&source, names, BATCH_ROWS).await })
            .try_flatten()
            .map_err(external)
            .map(move |rows| {
                given_up.check().map_err(external)?;
                let rows = rows?;
                let columns = rows.columns.clone();
                let options = RecordBatchOptions::new().with_row_count(Some(rows.sequence.len()));
                let batch = RecordBatch::try_new_with_options(schema.clone(), columns, &options)?;
                if rows.faults.is_empty() {
                    return Ok(batch);
                }
                left_out.add(rows.faults.len() as u64, || {
                    rows.faults.values().next().map(|fault| fault.reason.clone()).unwrap_or_default()
                });
                let sound = |row: &i64| Some(!rows.faults.contains_key(row));
                let sound: arrow_array::BooleanArray = rows.sequence.values().iter().map(sound).collect();
                Ok(arrow_select::filter::filter_record_batch(&batch, &sound)?)
            });
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), rows))
    }
}
