//! The rows of a training set: the spine's columns, then each feature with its status.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow_schema::{Field, Schema};
use eadem_query::{apply_default, status_dictionary};
use eadem_semantics::Status;

use super::ViewColumns;
use super::spec::DatasetSpec;
use crate::error::OfflineError;
use crate::spine::reader::SpineBlock;

/// For each feature, how often each status occurs.
pub(super) type StatusCounts = BTreeMap<String, BTreeMap<String, u64>>;

/// The spine's columns, then each feature with its status, for a block of the spine. Statuses are added to `counts`.
pub(super) fn assemble(
    spec: &DatasetSpec,
    spine: &SpineBlock,
    made: &[ViewColumns],
    counts: &mut StatusCounts,
) -> Result<RecordBatch, OfflineError> {
    let mut seen: Vec<SeenStatuses> = Vec::new();
    let mut fields: Vec<Field> = spine.rows.schema().fields().iter().map(|field| field.as_ref().clone()).collect();
    let mut columns: Vec<ArrayRef> = spine.rows.columns().to_vec();
    for feature in &spec.features {
        let found = made.get(feature.view).and_then(|made| made.position(&feature.feature).map(|at| (made, at)));
        let (view, at) = found.ok_or_else(|| {
            OfflineError::Dataset(format!("feature `{}`: its view has no feature `{}`", feature.name, feature.feature))
        })?;
        let statuses = &view.statuses[at];
        let values = match &feature.default {
            Some(default) => apply_default(&view.values[at], statuses, default)?,
            None => view.values[at].clone(),
        };
        let status_name = format!("{}__status", feature.name);
        for name in [&feature.name, &status_name] {
            if fields.iter().any(|field| field.name() == name) {
                return Err(OfflineError::Dataset(format!(
                    "column `{name}` would occur twice; give the feature an alias, or leave the column out of the spine"
                )));
            }
        }
        fields.push(Field::new(&feature.name, values.data_type().clone(), true));
        columns.push(values);
        let known = seen.iter().position(|known| Arc::ptr_eq(&known.statuses, statuses));
        let known = known.unwrap_or_else(|| {
            seen.push(SeenStatuses::of(statuses));
            seen.len() - 1
        });
        let of_feature = &seen[known];
        if spec.with_status {
            fields.push(Field::new(status_name, of_feature.column.data_type().clone(), false));
            columns.push(Arc::clone(&of_feature.column));
        }
        let counts = counts.entry(feature.name.clone()).or_default();
        for (status, count) in &of_feature.counts {
            *counts.entry(status.to_string()).or_default() += count;
        }
    }
    let options = RecordBatchOptions::new().with_row_count(Some(spine.rows.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?)
}

/// Statuses that several features of a view may share: counted and laid out once.
struct SeenStatuses {
    statuses: Arc<[Status]>,
    column: ArrayRef,
    /// How often each occurs, of those that do.
    counts: Vec<(Status, u64)>,
}

impl SeenStatuses {
    fn of(statuses: &Arc<[Status]>) -> Self {
        let count = |wanted| statuses.iter().filter(|status| **status == wanted).count() as u64;
        let counts = Status::ALL.into_iter().map(|status| (status, count(status))).filter(|(_, count)| *count > 0);
        Self { statuses: Arc::clone(statuses), column: status_dictionary(statuses), counts: counts.collect() }
    }
}
