//! A source's expressions over what its files hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch};
use arrow_schema::{DataType as ArrowType, Field as ArrowField, Schema, SchemaRef};

use super::ReadBatch;
use super::columns::{canonical_type, extended_schema, in_its_zone, inspect_schema, source_error, to_canonical};
use crate::error::OfflineError;
use crate::expression::{Expression, Planner};
use crate::spec::SourceSpec;

/// A source's expressions, planned for its columns and cut down to the columns that a view needs.
#[derive(Debug)]
pub(crate) struct SourceReader {
    source_name: String,
    /// The source's columns to read.
    pub(crate) read: SchemaRef,
    computed: Vec<Computed>,
    filter: Option<Expression>,
    /// The source's columns that decide what the filter says, directly or through computed ones.
    filter_reads: BTreeSet<String>,
    /// Whether the filter reads no computed column and so can run first.
    filter_first: bool,
    /// The columns that come out, in order.
    needed: Vec<String>,
}

/// A computed column.
#[derive(Debug)]
struct Computed {
    name: String,
    expression: Expression,
}

/// Rows that passed `where`, in canonical form.
#[derive(Debug)]
pub(crate) struct SourceRows {
    /// The needed columns, in the order asked for.
    pub(crate) columns: Vec<ArrayRef>,
    /// Row numbers in the file, before `where`.
    pub(crate) sequence: Int64Array,
    /// Rows with a value that could not be computed or converted, by their numbers. The value is null.
    pub(crate) faults: Faults,
}

/// What is wrong with single rows, by their numbers in the file.
pub(crate) type Faults = BTreeMap<i64, Fault>;

/// A value that could not be had of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// For counting: without the value.
    pub(crate) kind: String,
    /// For people: with it.
    pub(crate) reason: String,
}

/// A column made row by row where it cannot be made at once: `part` gives it for a range of rows, as (start, length). One
/// bad value must not stop all others; its row gets a null and a fault.
pub(super) fn column_with_faults(
    data_type: &ArrowType,
    sequence: &Int64Array,
    kind: &str,
    faults: &mut Faults,
    part: &dyn Fn(usize, usize) -> Result<ArrayRef, String>,
) -> Result<ArrayRef, OfflineError> {
    let mut parts: Vec<ArrayRef> = Vec::new();
    let mut open = vec![(0, sequence.len())];
    while let Some((start, length)) = open.pop() {
        match part(start, length) {
            Ok(column) => parts.push(column),
            Err(reason) if length == 1 => {
                let fault = || Fault { kind: kind.to_owned(), reason: format!("{kind}: {reason}") };
                faults.entry(sequence.value(start)).or_insert_with(fault);
                parts.push(arrow_array::new_null_array(data_type, 1));
            }
            Err(reason) if length == 0 => return Err(arrow_schema::ArrowError::ComputeError(reason).into()),
            Err(_) => {
                let half = length / 2;
                // The first half is taken up first.
                open.push((start + half, length - half));
                open.push((start, half));
            }
        }
    }
    if let [whole] = parts.as_slice() {
        return Ok(whole.clone());
    }
    let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
    Ok(arrow_select::concat::concat(&parts)?)
}

impl SourceReader {
    /// Plans the source with the columns `file`. `needed` are the columns to come out.
    pub(crate) fn try_new(source: &SourceSpec, file: &SchemaRef, needed: &[String]) -> Result<Self, OfflineError> {
        let inspected = inspect_schema(source, file)?;
        let written = source;
        let source = in_its_zone(written, file)?;
        let source = source.as_ref();
        let planner = Planner::new();
        let extended = extended_schema(source, file, &inspected);
        let filter = match &source.filter {
            Some(text) => Some(planner.plan(text, &extended).map_err(|reason| source_error(source, "where", reason))?),
            None => None,
        };
        let filter_columns = filter.as_ref().map_or(&[][..], |filter| filter.columns.as_slice());
        let is_computed = |name: &String| source.columns.iter().any(|(computed, _)| computed == name);
        let filter_first = !filter_columns.iter().any(is_computed);
        let mut filter_reads = BTreeSet::new();

        let mut wanted: Vec<&String> = needed.iter().chain(filter_columns).collect();
        wanted.sort();
        wanted.dedup();
        let mut read: Vec<String> = Vec::new();
        let mut computed = Vec::new();
        for name in wanted {
            let Some((_, text)) = source.columns.iter().find(|(computed, _)| computed == name) else {
                if filter_columns.contains(name) {
                    filter_reads.insert(name.clone());
                }
                read.push(name.clone());
                continue;
            };
            let expression =
                planner.plan(text, file).map_err(|reason| source_error(source, &format!("columns.{name}"), reason))?;
            if filter_columns.contains(name) {
                filter_reads.extend(expression.columns.iter().cloned());
            }
            read.extend(expression.columns.iter().cloned());
            computed.push((name.clone(), expression));
        }
        read.sort();
        read.dedup();
        for name in needed {
            let column = inspected.iter().find(|column| column.name == *name);
            if let Some(hint) = column.and_then(|column| column.hint.as_ref()) {
                return Err(source_error(source, &format!("column `{name}`"), hint.clone()));
            }
        }
        let fields: Vec<ArrowField> = file
            .fields()
            .iter()
            .filter(|field| read.contains(field.name()))
            .map(|field| field.as_ref().clone())
            .collect();
        let read = Arc::new(Schema::new(fields));
        // Positions in the file differ from positions in what is read, so everything is planned again over the latter.
        let replan = |name: &str, text: &str, schema: &Schema| {
            planner.plan(text, schema).map_err(|reason| source_error(source, name, reason))
        };
        let mut narrow_computed = Vec::new();
        for (name, _) in computed {
            let Some((_, text)) = source.columns.iter().find(|(computed, _)| *computed == name) else { continue };
            let is_written = written.columns.iter().any(|(computed, _)| *computed == name);
            let statement = if is_written { format!("columns.{name}") } else { format!("time_zone, column `{name}`") };
            let expression = replan(&statement, text, &read)?;
            narrow_computed.push(Computed { name, expression });
        }
        let mut narrow_fields: Vec<ArrowField> = read.fields().iter().map(|field| field.as_ref().clone()).collect();
        if !filter_first {
            for Computed { name, expression, .. } in &narrow_computed {
                narrow_fields.retain(|field| field.name() != name);
                narrow_fields.push(ArrowField::new(name, expression.data_type.clone(), true));
            }
        }
        let filter = match &source.filter {
            Some(text) => Some(replan("where", text, &Schema::new(narrow_fields))?),
            None => None,
        };
        Ok(Self {
            source_name: source.name.clone(),
            read,
            computed: narrow_computed,
            filter,
            filter_reads,
            filter_first,
            needed: needed.to_vec(),
        })
    }

    /// Computes, filters and converts one batch with the columns of `self.read`.
    pub(crate) fn rows(&self, batch: ReadBatch) -> Result<SourceRows, OfflineError> {
        // Faults that leave open what `where` would have said, and the others, which count only for rows that it keeps.
        let (mut undecided, mut faults) = (Faults::new(), Faults::new());
        for (row, column, fault) in batch.faults {
            let faults = if self.filter_reads.contains(&column) { &mut undecided } else { &mut faults };
            faults.entry(row).or_insert(fault);
        }
        let (mut batch, mut sequence) = (batch.rows, batch.sequence);
        if self.filter_first {
            (batch, sequence) = self.keep(batch, sequence, &mut undecided)?;
        }
        let mut computed = Vec::with_capacity(self.computed.len());
        for Computed { name, expression } in &self.computed {
            let part = |start: usize, length: usize| expression.evaluate(&batch.slice(start, length));
            let kind = format!("column `{name}` cannot be computed");
            let is_filtered = self.filter.as_ref().is_some_and(|filter| filter.columns.contains(name));
            let faults = if is_filtered { &mut undecided } else { &mut faults };
            let column = column_with_faults(&expression.data_type, &sequence, &kind, faults, &part)?;
            computed.push((name.clone(), column));
        }
        let mut extended = self.extend(&batch, computed)?;
        if !self.filter_first {
            (extended, sequence) = self.keep(extended, sequence, &mut undecided)?;
        }
        faults.append(&mut undecided);
        let mut columns = Vec::with_capacity(self.needed.len());
        for name in &self.needed {
            let field = format!("column `{name}`");
            let column =
                extended.column_by_name(name).ok_or_else(|| self.error(&field, "is not in the source".to_owned()))?;
            let data_type = canonical_type(column.data_type(), false).map_err(|reason| self.error(&field, reason))?;
            let part = |start: usize, length: usize| to_canonical(&column.slice(start, length));
            let kind = format!("{field} cannot be converted to {data_type}");
            let column = column_with_faults(&data_type.to_arrow(), &sequence, &kind, &mut faults, &part)?;
            columns.push(eadem_values::canonicalize(&column)?);
        }
        Ok(SourceRows { columns, sequence, faults })
    }

    fn extend(&self, batch: &RecordBatch, computed: Vec<(String, ArrayRef)>) -> Result<RecordBatch, OfflineError> {
        let mut fields: Vec<ArrowField> = Vec::new();
        let mut columns: Vec<ArrayRef> = Vec::new();
        for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
            if !computed.iter().any(|(name, _)| name == field.name()) {
                fields.push(field.as_ref().clone());
                columns.push(column.clone());
            }
        }
        for (name, column) in computed {
            fields.push(ArrowField::new(name, column.data_type().clone(), true));
            columns.push(column);
        }
        let options = arrow_array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?)
    }

    /// Leaves the rows for which `where` is true, and those with a fault: what it would have said of them nobody knows.
    fn keep(
        &self,
        batch: RecordBatch,
        sequence: Int64Array,
        faults: &mut Faults,
    ) -> Result<(RecordBatch, Int64Array), OfflineError> {
        let Some(filter) = &self.filter else { return Ok((batch, sequence)) };
        let part = |start: usize, length: usize| filter.evaluate(&batch.slice(start, length));
        let mask = column_with_faults(&ArrowType::Boolean, &sequence, "`where` cannot be computed", faults, &part)?;
        let mut mask = mask.as_boolean().clone();
        if mask.null_count() == 0 && mask.true_count() == mask.len() {
            return Ok((batch, sequence));
        }
        if !faults.is_empty() {
            let is_kept =
                |row: usize| (mask.is_valid(row) && mask.value(row)) || faults.contains_key(&sequence.value(row));
            mask = (0..mask.len()).map(|row| Some(is_kept(row))).collect();
        }
        let kept = arrow_select::filter::filter_record_batch(&batch, &mask)?;
        let sequence = arrow_select::filter::filter(&sequence, &mask)?;
        Ok((kept, sequence.as_primitive::<arrow_array::types::Int64Type>().clone()))
    }

    fn error(&self, field: &str, reason: String) -> OfflineError {
        OfflineError::Source { source_name: self.source_name.clone(), field: field.to_owned(), reason }
    }
}
