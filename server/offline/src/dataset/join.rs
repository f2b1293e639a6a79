//! The features of a view with a table, point in time.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::TimestampMicrosecondType;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{Field, Schema};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::{ExecutionPlan, displayable};
use eadem_query::{PointInTimeJoin, PointInTimeJoinExec, ReadRows, compute_on_read, project_feature};
use eadem_semantics::RowOrder;
use eadem_values::{DataType, TieDigest};
use futures::TryStreamExt;

use super::ViewColumns;
use super::recipe::{RecipeView, recipe_file};
use super::spec::{DatasetSpec, StoredView, features_asked};
use crate::error::OfflineError;
use crate::fetch_exec::FetchExec;
use crate::history_exec::{HistoryExec, history_columns};
use crate::read::ScanRange;
use crate::schema::key_arrow_type;
use crate::spec::Placement;
use crate::spine::Spine;
use crate::table::{TableState, ViewTable};

pub(super) async fn join_view(
    table: &ViewTable,
    state: Option<TableState>,
    spec: &DatasetSpec,
    number: usize,
    stored: &StoredView,
    spine: &Spine,
    times: &ArrayRef,
) -> Result<(ViewColumns, RecipeView, Option<String>), OfflineError> {
    let view = &stored.view;
    if stored.keys.len() != view.keys.len() {
        return Err(OfflineError::View {
            view: view.id(),
            field: "keys".to_owned(),
            reason: format!("it has {} join keys, {} columns were named", view.keys.len(), stored.keys.len()),
        });
    }
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for (key, name) in view.keys.iter().zip(&stored.keys) {
        let arrow_type = key_arrow_type(key.key_type);
        let data_type = DataType::from_arrow(&arrow_type)
            .ok_or_else(|| OfflineError::Dataset(format!("join key `{}` has no type", key.name)))?;
        columns.push(spine.column(spec.columns.column(name), data_type)?);
        fields.push(Field::new(&key.name, arrow_type, true));
    }
    columns.push(times.clone());
    // Two columns of one name would be refused, and a key may be called anything.
    fields.push(Field::new("_at", times.data_type().clone(), false));
    let spine_schema = Arc::new(Schema::new(fields));
    let spine_rows = RecordBatch::try_new(spine_schema.clone(), columns)?;

    let times_us = times.as_primitive::<TimestampMicrosecondType>().values();
    let range = match (times_us.iter().min(), times_us.iter().max()) {
        (Some(earliest), Some(latest)) => ScanRange::readable(view.lifetime, *earliest, *latest),
        _ => ScanRange::ALL,
    };
    let mut recipe_view = RecipeView {
        view: view.id(),
        digest: view.digest.clone(),
        component: *view.transform.digest(),
        table_version: state.as_ref().map(|state| state.version),
        files: Vec::new(),
    };
    let state = state.unwrap_or(TableState { version: 0, files: Vec::new() });
    for file in state.files.iter().filter(|file| range.meets(file)) {
        recipe_view.files.push(recipe_file(&table.store, file).await?);
    }
    let history = HistoryExec::new(table.clone(), &state, range, spec.workers);
    let spine_plan = MemorySourceConfig::try_new_exec(&[vec![spine_rows]], spine_schema, None)?;
    let join = PointInTimeJoin {
        spine_keys: (0..view.keys.len()).collect(),
        spine_time: view.keys.len(),
        history: history_columns(&table.schema),
        cut: spec.cut,
        lifetime: view.lifetime,
    };
    let files = history.files();
    let winners = Arc::new(PointInTimeJoinExec::try_new(spine_plan, Arc::new(history), join)?);
    let asked = features_asked(spec, number);
    let outputs: Vec<&eadem_values::Field> =
        view.description().outputs.iter().filter(|field| asked.contains(field.name.as_str())).collect();
    let fetched = match view.placement {
        Placement::OnWrite => {
            table.schema.values.iter().filter(|value| asked.contains(value.column.as_str())).cloned().collect()
        }
        // Any output may depend on any input.
        Placement::OnRead => table.schema.values.clone(),
    };
    let fetch = FetchExec::try_new(winners, table.clone(), files, fetched, spec.workers)?;
    let plan: Arc<dyn ExecutionPlan> = Arc::new(fetch);
    let shown = displayable(plan.as_ref()).indent(false).to_string();
    let schema = plan.schema();
    let batches: Vec<RecordBatch> = plan.execute(0, Arc::new(TaskContext::default()))?.try_collect().await?;
    let joined = arrow_select::concat::concat_batches(&schema, &batches)?;

    let first = view.keys.len() + 1;
    let mut reads = read_rows(&joined, first, times_us)?;
    let values: Vec<ArrayRef> = joined.columns()[first + 4..].to_vec();
    let values = match view.placement {
        Placement::OnWrite => values,
        Placement::OnRead => {
            let all = compute_on_read(view.transform.as_ref(), &view.validation, &values, &mut reads, view.lifetime)?;
            let named = view.description().outputs.iter().zip(all);
            named.filter(|(field, _)| asked.contains(field.name.as_str())).map(|(_, values)| values).collect()
        }
    };
    let mut columns = ViewColumns { names: Vec::new(), values: Vec::new(), statuses: Vec::new() };
    for (field, value) in outputs.into_iter().zip(&values) {
        let (value, statuses) = project_feature(value, &reads, view.lifetime)?;
        columns.names.push(field.name.clone());
        columns.values.push(value);
        columns.statuses.push(statuses);
    }
    Ok((columns, recipe_view, Some(shown)))
}

/// The winners of a join whose payload begins at column `first` with event time, known-at, tie digest and error.
fn read_rows(joined: &RecordBatch, first: usize, times_us: &[i64]) -> Result<ReadRows, OfflineError> {
    let event_times = joined.column(first).as_primitive::<TimestampMicrosecondType>();
    let known_ats = joined.column(first + 1).as_primitive::<TimestampMicrosecondType>();
    let ties = joined.column(first + 2).as_binary::<i32>();
    let errors = joined.column(first + 3);
    let order = |row: usize| {
        let tie = <[u8; 16]>::try_from(ties.value(row)).unwrap_or_default();
        RowOrder {
            event_time_us: event_times.value(row),
            known_at_us: known_ats.value(row),
            tie: TieDigest::from_bytes(tie),
        }
    };
    Ok(ReadRows {
        orders: (0..joined.num_rows()).map(|row| event_times.is_valid(row).then(|| order(row))).collect(),
        failed: (0..joined.num_rows()).map(|row| errors.is_valid(row)).collect(),
        at_us: times_us.to_vec(),
    })
}
