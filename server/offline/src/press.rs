//! From bound rows to rows of a view's table: transform, validate, refuse. Backfills and replays share it.

use std::sync::Arc;

use arrow_array::types::Int32Type;
use arrow_array::{Array, ArrayRef, BooleanArray, DictionaryArray, Int32Array, RecordBatch, StringArray};
use arrow_schema::SchemaRef;
use eadem_query::{QueryError, TransformFailure, TransformedRows, run_transform};

use crate::bind::{BindPlan, BoundRows, RefusedRow};
use crate::error::OfflineError;
use crate::schema::{COLUMN_ERROR, TableSchema, to_storage};
use crate::spec::{Placement, ViewSpec};

/// Makes rows of a view's table.
#[derive(Debug)]
pub(crate) struct Press {
    view: ViewSpec,
    key_names: Vec<String>,
    schema: TableSchema,
    writer_schema: SchemaRef,
}

/// What became of bound rows.
#[derive(Debug)]
pub(crate) struct Pressed {
    /// The rows to store, as the table's writer takes them.
    pub(crate) batch: RecordBatch,
    /// Rows that the transform left out.
    pub(crate) rows_dropped: u64,
    /// Rows refused by the binding, the transform or the validation.
    pub(crate) refused: Vec<RefusedRow>,
}

impl Pressed {
    /// Rows to store whose status is `error`.
    pub(crate) fn rows_failed(&self) -> u64 {
        let errors = self.batch.column_by_name(COLUMN_ERROR);
        errors.map_or(0, |errors| (errors.len() - errors.null_count()) as u64)
    }
}

impl Press {
    pub(crate) fn new(view: &ViewSpec, schema: &TableSchema) -> Self {
        Self {
            view: view.clone(),
            key_names: view.keys.iter().map(|key| key.name.clone()).collect(),
            schema: schema.clone(),
            writer_schema: schema.writer_schema(),
        }
    }

    /// The names of the join keys, in declared order.
    pub(crate) fn key_names(&self) -> &[String] {
        &self.key_names
    }

    /// Batches of [`Pressed`] have this schema.
    pub(crate) fn writer_schema(&self) -> &SchemaRef {
        &self.writer_schema
    }

    /// Makes rows of the table out of bound rows of one lane. `file` names, for messages, where they come from.
    ///
    /// # Errors
    /// A row that stops the job; a transform that cannot be run.
    pub(crate) fn rows(
        &self,
        bind: &BindPlan,
        mut bound: BoundRows,
        file: &str,
        lane: &ArrayRef,
    ) -> Result<Pressed, OfflineError> {
        let refused = std::mem::take(&mut bound.refused);
        let mut pressed = match self.view.placement {
            Placement::OnRead => Pressed {
                batch: self.batch(&bound, bound.inputs.clone(), None, lane)?,
                rows_dropped: 0,
                refused: Vec::new(),
            },
            Placement::OnWrite => {
                let transformed = self.transform(&bound, file)?;
                self.batch_of_results(bind, bound, transformed, lane)?
            }
        };
        pressed.refused.splice(0..0, refused);
        Ok(pressed)
    }

    fn transform(&self, bound: &BoundRows, file: &str) -> Result<TransformedRows, OfflineError> {
        let at = |row: usize, reason: String| OfflineError::Row {
            file: file.to_owned(),
            row: bound.sequence.value(row.min(bound.len().saturating_sub(1))),
            reason,
        };
        run_transform(self.view.transform.as_ref(), &self.view.validation, bound.len(), &bound.inputs).map_err(
            |error| {
                match error {
                    QueryError::Stopped { row, reason } => {
                        at(row, format!("{reason}; {} stops the job over that (`stop_job`)", self.view.id()))
                    }
                    QueryError::Transform(failure) => match failure.row {
                        // One number: the row's in the file, not the one in the batch.
                        Some(row) => at(row as usize, TransformFailure { row: None, ..failure }.to_string()),
                        None => QueryError::Transform(failure).into(),
                    },
                    other => other.into(),
                }
            },
        )
    }

    fn batch_of_results(
        &self,
        bind: &BindPlan,
        mut bound: BoundRows,
        transformed: TransformedRows,
        lane: &ArrayRef,
    ) -> Result<Pressed, OfflineError> {
        let total = self.view.description().total;
        let mut refused: Vec<RefusedRow> = Vec::new();
        let mut refuse = |row: usize, kind: String, reason: String| {
            refused.push(RefusedRow {
                sequence: bound.sequence.value(row),
                kind,
                reason,
                inputs: bind.bound_row_as_json(&self.key_names, &bound, row),
            });
        };
        for value in &transformed.refused {
            refuse(value.row, format!("feature `{}` breaks {}", value.field, value.rule), value.reason.clone());
        }
        if !total {
            for failure in &transformed.failed {
                refuse(failure.row as usize, "the transform refused the row".to_owned(), failure.message.clone());
            }
        }
        refused.sort_by_key(|row| row.sequence);
        let errors: Option<Vec<Option<&str>>> = (total && !transformed.failed.is_empty()).then(|| {
            let mut errors = vec![None; bound.len()];
            for failure in &transformed.failed {
                errors[failure.row as usize] = Some(failure.message.as_str());
            }
            errors
        });
        let mut errors: Option<ArrayRef> = errors.map(|errors| Arc::new(StringArray::from(errors)) as ArrayRef);

        let mut values = transformed.columns;
        if !transformed.dropped.is_empty() || !refused.is_empty() {
            let mut keep = vec![true; bound.len()];
            let gone = transformed.dropped.iter().map(|row| *row as usize);
            let gone = gone.chain(transformed.refused.iter().map(|value| value.row));
            let failed = transformed.failed.iter().filter(|_| !total).map(|failure| failure.row as usize);
            for row in gone.chain(failed) {
                keep[row] = false;
            }
            let mask = BooleanArray::from(keep);
            bound.retain(&mask)?;
            for column in &mut values {
                *column = eadem_values::canonicalize(&arrow_select::filter::filter(column.as_ref(), &mask)?)?;
            }
            if let Some(column) = &mut errors {
                *column = arrow_select::filter::filter(column.as_ref(), &mask)?;
            }
        }
        Ok(Pressed {
            batch: self.batch(&bound, values, errors, lane)?,
            rows_dropped: transformed.dropped.len() as u64,
            refused,
        })
    }

    /// Rows as the table's writer takes them.
    fn batch(
        &self,
        bound: &BoundRows,
        values: Vec<ArrayRef>,
        errors: Option<ArrayRef>,
        lane: &ArrayRef,
    ) -> Result<RecordBatch, OfflineError> {
        let rows = bound.len();
        let mut columns = bound.keys.clone();
        for (value, column) in self.schema.values.iter().zip(&values) {
            columns.push(to_storage(column, value.data_type)?);
        }
        columns.push(bound.event_time.clone());
        columns.push(bound.known_at.clone());
        columns.push(bound.tie.clone());
        let lanes = DictionaryArray::<Int32Type>::try_new(Int32Array::from(vec![0; rows]), lane.clone())?;
        columns.push(Arc::new(lanes));
        columns.push(Arc::new(bound.sequence.clone()));
        columns.push(errors.unwrap_or_else(|| Arc::new(StringArray::new_null(rows))));
        Ok(RecordBatch::try_new(self.writer_schema.clone(), columns)?)
    }
}
