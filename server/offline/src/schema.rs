//! The columns of a view's table.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, FixedSizeListArray, ListArray};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{DataType as ArrowType, Field as ArrowField, Schema, SchemaRef, TimeUnit};
use deltalake_core::kernel::{ArrayType, DataType as DeltaType, PrimitiveType, StructField};
use eadem_values::{DataType, Field, KeyType};

use crate::error::OfflineError;
use crate::spec::{Placement, ViewSpec};

/// When the fact happened.
pub const COLUMN_EVENT_TIME: &str = "event_time";
/// When it could be known.
pub const COLUMN_KNOWN_AT: &str = "known_at";
/// The partition: the UTC date of the event time.
pub const COLUMN_EVENT_DATE: &str = "event_date";
/// Tie digest of the bound inputs, 16 bytes.
pub const COLUMN_TIE: &str = "_tie";
/// The ordered input the row came from; for files their digest.
pub const COLUMN_LANE: &str = "_lane";
/// Position in the lane; for files the row's number before `where`.
pub const COLUMN_SEQUENCE: &str = "_seq";
/// Why the transform failed on the row; null for every other row.
pub const COLUMN_ERROR: &str = "_error";

const RESERVED: [&str; 3] = [COLUMN_EVENT_TIME, COLUMN_KNOWN_AT, COLUMN_EVENT_DATE];

/// One stored value: a feature, or a bound input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ValueColumn {
    /// Its column in the table. It differs from the field's name only for a bound input called like a key or a reserved
    /// column.
    pub(crate) column: String,
    pub(crate) data_type: DataType,
}

/// The columns of one view's table, apart from the partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSchema {
    pub(crate) keys: Vec<(String, KeyType)>,
    pub(crate) values: Vec<ValueColumn>,
}

impl TableSchema {
    /// The schema for a view version.
    ///
    /// # Errors
    /// A feature with a reserved name, or named like a join key.
    pub fn try_new(view: &ViewSpec) -> Result<Self, OfflineError> {
        let keys: Vec<(String, KeyType)> = view.keys.iter().map(|key| (key.name.clone(), key.key_type)).collect();
        let mut values = Vec::new();
        for field in view.stored_fields() {
            values.push(value_column(view, field, &keys)?);
        }
        Ok(Self { keys, values })
    }

    /// As the data files hold it: keys, values, times, `_tie`, `_lane`, `_seq`, `_error`. Vectors are lists, since the
    /// table format has no fixed-size list.
    pub(crate) fn file_schema(&self) -> SchemaRef {
        let timestamp = DataType::Timestamp.to_arrow();
        let mut fields: Vec<ArrowField> =
            self.keys.iter().map(|(name, key_type)| ArrowField::new(name, key_arrow_type(*key_type), false)).collect();
        fields.extend(
            self.values.iter().map(|value| ArrowField::new(&value.column, storage_type(value.data_type), true)),
        );
        fields.push(ArrowField::new(COLUMN_EVENT_TIME, timestamp.clone(), false));
        fields.push(ArrowField::new(COLUMN_KNOWN_AT, timestamp, false));
        fields.push(ArrowField::new(COLUMN_TIE, ArrowType::Binary, false));
        fields.push(ArrowField::new(COLUMN_LANE, ArrowType::Utf8, false));
        fields.push(ArrowField::new(COLUMN_SEQUENCE, ArrowType::Int64, false));
        fields.push(ArrowField::new(COLUMN_ERROR, ArrowType::Utf8, true));
        Arc::new(Schema::new(fields))
    }

    /// As batches carry it to the writer: the lane is one dictionary entry instead of a text per row.
    pub(crate) fn writer_schema(&self) -> SchemaRef {
        let fields: Vec<ArrowField> = self
            .file_schema()
            .fields()
            .iter()
            .map(|field| if field.name() == COLUMN_LANE { lane_field() } else { field.as_ref().clone() })
            .collect();
        Arc::new(Schema::new(fields))
    }

    /// The table's columns for the log, the partition last.
    pub(crate) fn delta_fields(&self) -> Vec<StructField> {
        let mut fields: Vec<StructField> = self
            .file_schema()
            .fields()
            .iter()
            .map(|field| StructField::new(field.name(), delta_type(field.data_type()), field.is_nullable()))
            .collect();
        fields.push(StructField::new(COLUMN_EVENT_DATE, DeltaType::Primitive(PrimitiveType::Date), true));
        fields
    }
}

fn lane_field() -> ArrowField {
    let dictionary = ArrowType::Dictionary(Box::new(ArrowType::Int32), Box::new(ArrowType::Utf8));
    ArrowField::new(COLUMN_LANE, dictionary, false)
}

fn value_column(view: &ViewSpec, field: &Field, keys: &[(String, KeyType)]) -> Result<ValueColumn, OfflineError> {
    let taken = field.name.starts_with('_')
        || RESERVED.contains(&field.name.as_str())
        || keys.iter().any(|(name, _)| *name == field.name);
    let column = match view.placement {
        _ if !taken => field.name.clone(),
        // Inputs are named by whoever wrote the transform and may well be called like a key; readers of features never
        // see these columns.
        Placement::OnRead => format!("_input_{}", field.name),
        Placement::OnWrite => {
            return Err(OfflineError::View {
                view: view.id(),
                field: format!("feature `{}`", field.name),
                reason: "has the name of a join key or a reserved column; rename the output in the transform"
                    .to_owned(),
            });
        }
    };
    Ok(ValueColumn { column, data_type: field.data_type })
}

pub(crate) fn key_arrow_type(key_type: KeyType) -> ArrowType {
    match key_type {
        KeyType::Utf8 => ArrowType::Utf8,
        KeyType::Int64 => ArrowType::Int64,
    }
}

/// The type of a value in a data file.
pub(crate) fn storage_type(data_type: DataType) -> ArrowType {
    match data_type {
        DataType::Vector(_) => ArrowType::List(Arc::new(ArrowField::new("element", ArrowType::Float32, false))),
        DataType::List(element) => ArrowType::List(Arc::new(ArrowField::new("element", element.to_arrow(), false))),
        other => other.to_arrow(),
    }
}

/// A canonical column as data files hold it.
pub(crate) fn to_storage(column: &ArrayRef, data_type: DataType) -> Result<ArrayRef, OfflineError> {
    match data_type {
        DataType::Vector(dimensions) => {
            let column = column.as_fixed_size_list();
            let item = Arc::new(ArrowField::new("element", ArrowType::Float32, false));
            // A null vector has as many zeros as any other; as a list it is empty.
            let valid: Vec<usize> =
                (0..column.len()).map(|row| if column.is_valid(row) { dimensions as usize } else { 0 }).collect();
            let values = if column.null_count() == 0 {
                column.values().clone()
            } else {
                let kept = arrow_array::BooleanArray::from(
                    (0..column.len())
                        .flat_map(|row| std::iter::repeat_n(column.is_valid(row), dimensions as usize))
                        .collect::<Vec<bool>>(),
                );
                arrow_select::filter::filter(column.values(), &kept)?
            };
            let offsets = OffsetBuffer::from_lengths(valid);
            Ok(Arc::new(ListArray::try_new(item, offsets, values, column.nulls().cloned())?))
        }
        DataType::List(_) => {
            let (_, offsets, values, nulls) = column.as_list::<i32>().clone().into_parts();
            let item = Arc::new(ArrowField::new("element", values.data_type().clone(), false));
            Ok(Arc::new(ListArray::try_new(item, offsets, values, nulls)?))
        }
        _ => Ok(column.clone()),
    }
}

/// A column of a data file as the canonical column of its type.
pub(crate) fn from_storage(column: &ArrayRef, data_type: DataType) -> Result<ArrayRef, OfflineError> {
    let canonical: ArrayRef = match data_type {
        DataType::Vector(dimensions) => {
            let lists = column.as_list_opt::<i32>().ok_or_else(|| wrong_column(column, data_type))?;
            vector_from_list(lists, dimensions)?
        }
        DataType::List(_) => {
            let (_, offsets, values, nulls) =
                column.as_list_opt::<i32>().ok_or_else(|| wrong_column(column, data_type))?.clone().into_parts();
            let ArrowType::List(item) = data_type.to_arrow() else { return Err(wrong_column(column, data_type)) };
            Arc::new(ListArray::try_new(item, offsets, values, nulls)?)
        }
        _ if column.data_type() == &data_type.to_arrow() => column.clone(),
        _ => return Err(wrong_column(column, data_type)),
    };
    Ok(eadem_values::canonicalize(&canonical)?)
}

fn wrong_column(column: &ArrayRef, data_type: DataType) -> OfflineError {
    eadem_values::ValueError::WrongType { expected: data_type.to_string(), found: column.data_type().to_string() }
        .into()
}

/// Lists of exactly `dimensions` numbers as one vector each.
pub(crate) fn vector_from_list(lists: &ListArray, dimensions: u32) -> Result<ArrayRef, OfflineError> {
    let width = dimensions as usize;
    let mut picks: Vec<Option<u32>> = Vec::with_capacity(lists.len() * width);
    for (row, ends) in lists.offsets().windows(2).enumerate() {
        if lists.is_null(row) {
            picks.extend(std::iter::repeat_n(None, width));
            continue;
        }
        let length = (ends[1] - ends[0]) as usize;
        if length != width {
            return Err(OfflineError::Value(eadem_values::ValueError::WrongType {
                expected: format!("vector({dimensions})"),
                found: format!("{length} elements in row {row}"),
            }));
        }
        picks.extend((ends[0]..ends[1]).map(|at| Some(at as u32)));
    }
    let taken = arrow_select::take::take(lists.values().as_ref(), &arrow_array::UInt32Array::from(picks), None)?;
    let numbers = taken.as_primitive::<arrow_array::types::Float32Type>();
    let values: ArrayRef = Arc::new(arrow_array::Float32Array::new(numbers.values().clone(), None));
    let item = Arc::new(ArrowField::new("item", ArrowType::Float32, false));
    Ok(Arc::new(FixedSizeListArray::try_new(item, width as i32, values, lists.nulls().cloned())?))
}

fn delta_type(arrow: &ArrowType) -> DeltaType {
    let primitive = |primitive| DeltaType::Primitive(primitive);
    match arrow {
        ArrowType::Boolean => primitive(PrimitiveType::Boolean),
        ArrowType::Int64 => primitive(PrimitiveType::Long),
        ArrowType::Float32 => primitive(PrimitiveType::Float),
        ArrowType::Float64 => primitive(PrimitiveType::Double),
        ArrowType::Binary => primitive(PrimitiveType::Binary),
        ArrowType::Timestamp(TimeUnit::Microsecond, _) => primitive(PrimitiveType::Timestamp),
        ArrowType::List(item) => ArrayType::new(delta_type(item.data_type()), false).into(),
        // Utf8, the only type left that a table schema produces.
        _ => primitive(PrimitiveType::String),
    }
}
