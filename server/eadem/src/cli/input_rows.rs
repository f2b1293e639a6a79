//! Rows for a transform without a store: from a Parquet file, from JSON lines, or generated.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use arrow_array::{ArrayRef, RecordBatch, RecordBatchReader as _};
use eadem_engine::generate_rows;
use eadem_values::{Field, Value, array_from_values, canonicalize, value_from_json};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Map, Value as Json};

/// The declared inputs, row by row.
pub(crate) struct InputRows {
    /// One column for each input, in declared order, canonical.
    pub(crate) columns: Vec<ArrayRef>,
    /// Rows in each of them.
    pub(crate) count: usize,
    origin: Origin,
}

enum Origin {
    Generated { seed: u64 },
    Parquet(PathBuf),
    JsonLines { path: PathBuf, line_of_row: Vec<usize> },
}

impl InputRows {
    /// Nasty rows of the declared types.
    pub(crate) fn generated(fields: &[Field], count: u32, seed: u64) -> Self {
        Self { columns: generate_rows(fields, count, seed), count: count as usize, origin: Origin::Generated { seed } }
    }

    /// The rows of a file: Parquet by its extension, else JSON lines.
    pub(crate) fn read(path: &Path, fields: &[Field]) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        if path.extension().is_some_and(|extension| extension == "parquet") {
            return read_parquet(path, file, fields);
        }
        read_json_lines(path, file, fields)
    }

    /// Where the rows come from.
    pub(crate) fn origin(&self) -> String {
        match &self.origin {
            Origin::Generated { seed } => format!("generated from seed {seed}"),
            Origin::Parquet(path) | Origin::JsonLines { path, .. } => path.display().to_string(),
        }
    }

    /// Where a row stands, if it stands in a file: `rows.jsonl:7`, or `rows.parquet, row 6`.
    pub(crate) fn place_of(&self, row: usize) -> Option<String> {
        match &self.origin {
            Origin::Generated { .. } => None,
            Origin::Parquet(path) => Some(format!("{}, row {row}", path.display())),
            Origin::JsonLines { path, line_of_row } => {
                line_of_row.get(row).map(|line| format!("{}:{line}", path.display()))
            }
        }
    }
}

/// One object for each line, by input name. What is left out is null.
fn read_json_lines(path: &Path, file: File, fields: &[Field]) -> anyhow::Result<InputRows> {
    let mut values: Vec<Vec<Value>> = vec![Vec::new(); fields.len()];
    let mut line_of_row = Vec::new();
    for (number, line) in (1..).zip(BufReader::new(file).lines()) {
        let place = || format!("{}:{number}", path.display());
        let line = line.with_context(place)?;
        if line.trim().is_empty() {
            continue;
        }
        let row: Map<String, Json> = serde_json::from_str(&line).with_context(place)?;
        if let Some(unknown) = row.keys().find(|name| !fields.iter().any(|field| &field.name == *name)) {
            let names = fields.iter().map(|field| field.name.as_str());
            bail!("{}: no input `{unknown}`{}", place(), eadem_registry::definitions::did_you_mean(unknown, names));
        }
        for (column, field) in values.iter_mut().zip(fields) {
            let json = row.get(&field.name).unwrap_or(&Json::Null);
            let value = value_from_json(field.data_type, json)
                .with_context(|| format!("{}: input `{}`", place(), field.name))?;
            if value.is_null() && !field.accepts_null() {
                bail!("{}: input `{}` is null or left out, and it is not nullable", place(), field.name);
            }
            column.push(value);
        }
        line_of_row.push(number);
    }
    let column =
        |(field, values): (&Field, &Vec<Value>)| Ok(canonicalize(&array_from_values(field.data_type, values)?)?);
    let columns = fields.iter().zip(&values).map(column).collect::<anyhow::Result<_>>()?;
    Ok(InputRows {
        columns,
        count: line_of_row.len(),
        origin: Origin::JsonLines { path: path.to_owned(), line_of_row },
    })
}

/// The columns that are called like the inputs, converted as a source without expressions would. Others are not read.
fn read_parquet(path: &Path, file: File, fields: &[Field]) -> anyhow::Result<InputRows> {
    let unreadable = || format!("{} is not a readable Parquet file", path.display());
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).with_context(unreadable)?;
    let is_input = |name: &String| fields.iter().any(|field| field.name == *name);
    let wanted: Vec<usize> =
        (0..).zip(builder.schema().fields()).filter(|(_, field)| is_input(field.name())).map(|(at, _)| at).collect();
    let mask = ProjectionMask::roots(builder.parquet_schema(), wanted);
    let reader = builder.with_projection(mask).build().with_context(unreadable)?;
    let schema = reader.schema();
    let batches = reader.collect::<Result<Vec<RecordBatch>, _>>().with_context(unreadable)?;
    let rows = arrow::compute::concat_batches(&schema, &batches)?;
    let column = |field: &Field| {
        let column = rows
            .column_by_name(&field.name)
            .with_context(|| format!("{} has no column `{}`, which the transform needs", path.display(), field.name))?;
        let column = eadem_offline::input_column(column, field.data_type)
            .with_context(|| format!("{}: column `{}`", path.display(), field.name))?;
        if !field.accepts_null()
            && let Some(row) = (0..column.len()).find(|row| column.is_null(*row))
        {
            bail!("{}, row {row}: column `{}` is null, and the input is not nullable", path.display(), field.name);
        }
        Ok(column)
    };
    let columns = fields.iter().map(column).collect::<anyhow::Result<_>>()?;
    Ok(InputRows { columns, count: rows.num_rows(), origin: Origin::Parquet(path.to_owned()) })
}
