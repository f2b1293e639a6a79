//! Where the joined rows go: they are looked at, counted, split, digested and written, batch by batch.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow_schema::{DataType as ArrowType, Field, Schema, SchemaRef};
use eadem_values::DataType;

use super::observe::{SpineObserver, SpineReport};
use super::output::{OutputFormat, OutputWriter, WrittenOutput};
use super::spec::DatasetSpec;
use super::split::Splitter;
use super::statistics::{DatasetStatistics, StatisticsBuilder};
use crate::error::OfflineError;
use crate::location::Location;

/// Takes the rows of a training set in the order of the spine.
pub(super) struct DatasetSink {
    observer: SpineObserver,
    statistics: Option<StatisticsBuilder>,
    /// Where the features stand among the columns that come.
    features: Vec<usize>,
    /// The columns that are written.
    written: Vec<usize>,
    splitter: Option<Splitter>,
    schema: SchemaRef,
    output: OutputWriter,
}

/// All rows were taken; nobody can see them yet.
pub(super) struct FinishedRows {
    pub(super) output: WrittenOutput,
    pub(super) statistics: Option<DatasetStatistics>,
    pub(super) spine: SpineReport,
}

impl DatasetSink {
    /// For rows of this schema: the spine's columns, then each feature with its status.
    pub(super) async fn begin(place: Location, schema: &Schema, spec: &DatasetSpec) -> Result<Self, OfflineError> {
        let features: Vec<usize> =
            spec.features.iter().map(|feature| schema.index_of(&feature.name)).collect::<Result<_, _>>()?;
        let typed = |at: &usize| {
            let field = schema.field(*at);
            let data_type = DataType::from_arrow(field.data_type());
            let data_type =
                data_type.ok_or_else(|| OfflineError::Dataset(format!("feature `{}` has no type", field.name())));
            data_type.map(|data_type| (field.name().clone(), data_type))
        };
        let statistics = match spec.options.statistics {
            true => Some(StatisticsBuilder::new(&features.iter().map(typed).collect::<Result<Vec<_>, _>>()?, 0)),
            false => None,
        };
        let left_out = &spec.options.left_out;
        for name in left_out {
            if features.iter().any(|at| schema.field(*at).name() == name) || schema.index_of(name).is_err() {
                let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
                let first_feature = features.iter().min().copied().unwrap_or(names.len());
                return Err(OfflineError::Dataset(format!(
                    "the spine has no column `{name}` to leave out; its columns are {}",
                    names[..first_feature].join(", ")
                )));
            }
        }
        let written: Vec<usize> =
            (0..schema.fields().len()).filter(|at| !left_out.contains(schema.field(*at).name())).collect();
        let format = spec.options.format;
        let mut fields: Vec<Field> = written.iter().map(|at| written_field(schema.field(*at), format, spec)).collect();
        let splitter = match &spec.options.split {
            None => None,
            Some(split) => {
                if fields.iter().any(|field| *field.name() == split.column) {
                    return Err(OfflineError::Dataset(format!(
                        "column `{}` would occur twice; give the split's column another name",
                        split.column
                    )));
                }
                let names = ArrowType::Dictionary(Box::new(ArrowType::Int8), Box::new(ArrowType::Utf8));
                fields.push(Field::new(&split.column, names, true));
                Some(Splitter::try_new(split, spec)?)
            }
        };
        let schema = Arc::new(Schema::new(fields));
        let output = OutputWriter::begin(place, schema.clone(), format).await?;
        Ok(Self { observer: SpineObserver::new(spec), statistics, features, written, splitter, schema, output })
    }

    /// The next rows.
    pub(super) async fn write(&mut self, rows: &RecordBatch) -> Result<(), OfflineError> {
        self.observer.update(rows)?;
        if let Some(statistics) = &mut self.statistics {
            let columns: Vec<ArrayRef> = self.features.iter().map(|at| rows.column(*at).clone()).collect();
            statistics.update(rows.num_rows(), &columns)?;
        }
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        for (at, field) in self.written.iter().zip(self.schema.fields()) {
            let column = rows.column(*at);
            columns.push(match column.data_type() == field.data_type() {
                true => column.clone(),
                false => arrow_cast::cast(column, field.data_type())?,
            });
        }
        if let Some(splitter) = &mut self.splitter {
            columns.push(splitter.column(rows)?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        let rows = RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)?;
        self.output.write(&rows).await
    }

    /// Takes back what was written.
    pub(super) async fn discard(self) -> Result<(), OfflineError> {
        self.output.discard().await
    }

    /// `statuses` are, for each feature, the rows by status.
    pub(super) async fn finish(
        self,
        spec: &DatasetSpec,
        statuses: &BTreeMap<String, BTreeMap<String, u64>>,
    ) -> Result<FinishedRows, OfflineError> {
        let mut spine = self.observer.finish(spec, statuses);
        if let Some(splitter) = self.splitter {
            (spine.splits, spine.rows_in_no_split) = splitter.counts();
        }
        Ok(FinishedRows {
            output: self.output.finish().await?,
            statistics: self.statistics.map(|statistics| statistics.finish(statuses)),
            spine,
        })
    }
}

/// A column as it is written. An Arrow file has one dictionary for all its batches, which a column of the spine may not have.
fn written_field(field: &Field, format: OutputFormat, spec: &DatasetSpec) -> Field {
    let is_status = |name: &str| {
        name.strip_suffix("__status").is_some_and(|name| spec.features.iter().any(|feature| feature.name == name))
    };
    match field.data_type() {
        ArrowType::Dictionary(_, values) if format == OutputFormat::Arrow && !is_status(field.name()) => {
            field.clone().with_data_type(values.as_ref().clone())
        }
        _ => field.clone(),
    }
}
