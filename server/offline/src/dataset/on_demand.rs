//! The features of an on-demand view, computed after the join.

use std::sync::Arc;

use arrow_array::ArrayRef;
use eadem_query::{OnDemandInput, evaluate_on_demand};
use eadem_values::array_from_values;

use super::ViewColumns;
use super::spec::{DatasetSpec, OnDemandBinding, OnDemandView};
use crate::error::OfflineError;
use crate::spine::reader::SpineBlock;

/// Rows of the spine on which a view failed, with the reason.
pub(super) type FailedRows = Vec<(usize, String)>;

pub(super) fn compute_view(
    spec: &DatasetSpec,
    view: &OnDemandView,
    spine: &SpineBlock,
    times: &ArrayRef,
    made: &[ViewColumns],
) -> Result<(ViewColumns, FailedRows), OfflineError> {
    let description = view.transform.description();
    let rows = times.len();
    let wrong = |input: &str, reason: String| OfflineError::View {
        view: view.id.clone(),
        field: format!("bind.{input}"),
        reason,
    };
    if description.inputs.len() != view.bindings.len() {
        let reason =
            format!("the transform has {} inputs, {} are bound", description.inputs.len(), view.bindings.len());
        return Err(OfflineError::View { view: view.id.clone(), field: "bind".to_owned(), reason });
    }
    let mut inputs = Vec::with_capacity(view.bindings.len());
    for (field, binding) in description.inputs.iter().zip(&view.bindings) {
        let input = match binding {
            OnDemandBinding::Request(name) => {
                OnDemandInput { values: spine.column(spec.columns.column(name), field.data_type)?, statuses: None }
            }
            OnDemandBinding::RequestTimestamp => OnDemandInput { values: times.clone(), statuses: None },
            OnDemandBinding::Literal(value) => {
                let value = value.clone().canonical();
                let values = array_from_values(field.data_type, std::iter::repeat_n(&value, rows))?;
                OnDemandInput { values, statuses: None }
            }
            OnDemandBinding::Feature { view: upstream, feature } => {
                let found = made.get(*upstream).and_then(|made| made.position(feature).map(|at| (made, at)));
                let (upstream, at) =
                    found.ok_or_else(|| wrong(&field.name, format!("no earlier view has the feature `{feature}`")))?;
                OnDemandInput {
                    values: upstream.values[at].clone(),
                    statuses: Some(Arc::clone(&upstream.statuses[at])),
                }
            }
        };
        if input.values.data_type() != &field.data_type.to_arrow() {
            let reason = format!("is {}, the transform takes {}", input.values.data_type(), field.data_type);
            return Err(wrong(&field.name, reason));
        }
        inputs.push(input);
    }
    let output = evaluate_on_demand(view.transform.as_ref(), &view.validation, rows, &inputs)?;
    let columns = ViewColumns {
        names: description.outputs.iter().map(|field| field.name.clone()).collect(),
        values: output.columns,
        statuses: output.statuses,
    };
    let failed = output.errors.into_iter().map(|(row, reason)| (spine.first_row + row, reason));
    Ok((columns, failed.collect()))
}
