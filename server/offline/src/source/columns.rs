//! The columns of a source in the types of the contract.

use std::borrow::Cow;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::timezone::Tz;
use arrow_array::types::{
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
};
use arrow_array::{Array, ArrayRef, TimestampMicrosecondArray};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{DataType as ArrowType, Field as ArrowField, Schema, SchemaRef, TimeUnit};
use eadem_values::{DataType, ElementType};

use crate::error::OfflineError;
use crate::expression::{Expression, Planner};
use crate::spec::{EventTime, KnownAt, SourceSpec};

/// A column that bindings may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InspectedColumn {
    /// Its name.
    pub name: String,
    /// Its type as the source, or the expression, has it.
    pub arrow_type: ArrowType,
    /// The type in which it reaches a transform; `None` if it cannot reach one.
    pub data_type: Option<DataType>,
    /// What to do about a column without a type.
    pub hint: Option<String>,
}

/// The columns that bindings may name, of a source with the columns `file`; see [`inspect`](super::inspect).
pub(crate) fn inspect_schema(source: &SourceSpec, file: &SchemaRef) -> Result<Vec<InspectedColumn>, OfflineError> {
    let source = in_its_zone(source, file)?;
    let source = source.as_ref();
    let planner = Planner::new();
    let mut columns: Vec<InspectedColumn> =
        file.fields().iter().map(|field| inspected(field.name(), field.data_type(), true)).collect();
    for (name, text) in &source.columns {
        let expression =
            planner.plan(text, file).map_err(|reason| source_error(source, &format!("columns.{name}"), reason))?;
        let column = inspected(name, &expression.data_type, reads_naive_time(&expression, file));
        match columns.iter_mut().find(|known| known.name == *name) {
            Some(known) => *known = column,
            None => columns.push(column),
        }
    }
    let extended = extended_schema(source, file, &columns);
    if let Some(filter) = &source.filter {
        let expression = planner.plan(filter, &extended).map_err(|reason| source_error(source, "where", reason))?;
        if expression.data_type != ArrowType::Boolean {
            let reason = format!("is {}, not true or false", expression.data_type);
            return Err(source_error(source, "where", reason));
        }
    }
    let known = |field: &str, name: &str, must_be_time: bool| {
        let column = columns.iter().find(|column| column.name == name);
        let Some(column) = column else {
            let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
            let reason = format!("there is no column `{name}`; the columns are {}", names.join(", "));
            return Err(source_error(source, field, reason));
        };
        if must_be_time && column.data_type != Some(DataType::Timestamp) {
            let hint = column.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
            let reason = format!("column `{name}` is {}, not a timestamp{hint}", column.arrow_type);
            return Err(source_error(source, field, reason));
        }
        Ok(())
    };
    if let EventTime::Column(name) = &source.event_time {
        known("event_time", name, true)?;
    }
    if let KnownAt::Column(name) = &source.known_at {
        known("known_at", name, true)?;
    }
    if let Some(name) = &source.event_id {
        known("event_id", name, false)?;
    }
    Ok(columns)
}

/// The source with its time zone written out: each timestamp of the file that has no zone, and that no computed column
/// replaces, is read where the source's clock stood.
pub(super) fn in_its_zone<'a>(source: &'a SourceSpec, file: &Schema) -> Result<Cow<'a, SourceSpec>, OfflineError> {
    let Some(zone) = &source.time_zone else { return Ok(Cow::Borrowed(source)) };
    if zone.parse::<Tz>().is_err() {
        let reason = format!("there is no time zone `{zone}`; give an IANA name, such as America/New_York");
        return Err(source_error(source, "time_zone", reason));
    }
    let mut zoned = source.clone();
    for field in file.fields() {
        let is_local = matches!(field.data_type(), ArrowType::Timestamp(_, None));
        let is_replaced = source.columns.iter().any(|(name, _)| name == field.name());
        if is_local && !is_replaced {
            let quoted = field.name().replace('"', "\"\"");
            zoned.columns.push((field.name().clone(), format!("\"{quoted}\" at time zone '{zone}'")));
        }
    }
    Ok(Cow::Owned(zoned))
}

pub(crate) fn source_error(source: &SourceSpec, field: &str, reason: String) -> OfflineError {
    OfflineError::Source { source_name: source.name.clone(), field: field.to_owned(), reason }
}

fn inspected(name: &str, arrow_type: &ArrowType, naive_is_local: bool) -> InspectedColumn {
    let found = canonical_type(arrow_type, naive_is_local);
    InspectedColumn {
        name: name.to_owned(),
        arrow_type: arrow_type.clone(),
        data_type: found.as_ref().ok().copied(),
        hint: found.err(),
    }
}

/// A computed timestamp without a zone is in UTC, as the functions that make one say, unless it comes from a column that
/// has none, or is the reading of a local clock: then nobody has said where that clock stood.
fn reads_naive_time(expression: &Expression, file: &Schema) -> bool {
    expression.tells_local_time
        || expression.columns.iter().any(|name| {
            file.field_with_name(name).is_ok_and(|field| matches!(field.data_type(), ArrowType::Timestamp(_, None)))
        })
}

/// The type in which a column reaches a transform, or what to do instead.
pub(super) fn canonical_type(arrow_type: &ArrowType, naive_is_local: bool) -> Result<DataType, String> {
    Ok(match arrow_type {
        ArrowType::Int8 | ArrowType::Int16 | ArrowType::Int32 | ArrowType::Int64 => DataType::Int64,
        ArrowType::UInt8 | ArrowType::UInt16 | ArrowType::UInt32 => DataType::Int64,
        ArrowType::UInt64 => return Err("uint64 does not fit into int64: cast it, `cast(… as bigint)`".to_owned()),
        ArrowType::Utf8 | ArrowType::LargeUtf8 | ArrowType::Utf8View => DataType::Utf8,
        ArrowType::Binary | ArrowType::LargeBinary | ArrowType::BinaryView | ArrowType::FixedSizeBinary(_) => {
            DataType::Binary
        }
        ArrowType::Dictionary(_, values) => return canonical_type(values, naive_is_local),
        ArrowType::Timestamp(_, Some(_)) => DataType::Timestamp,
        ArrowType::Timestamp(_, None) if !naive_is_local => DataType::Timestamp,
        ArrowType::Timestamp(_, None) => {
            return Err("it has no time zone: say where its clock stood, `… at time zone 'UTC'`".to_owned());
        }
        ArrowType::Date32 | ArrowType::Date64 => {
            return Err("a date is no instant: `to_timestamp(…)` is its midnight in UTC".to_owned());
        }
        ArrowType::Decimal32(..) | ArrowType::Decimal64(..) | ArrowType::Decimal128(..) | ArrowType::Decimal256(..) => {
            return Err(
                "there is no decimal: `cast(… as double)`, or `cast(… * 100 as bigint)` for hundredths".to_owned()
            );
        }
        ArrowType::FixedSizeList(item, width) if item.data_type() == &ArrowType::Float32 => {
            DataType::Vector(u32::try_from(*width).unwrap_or_default())
        }
        ArrowType::List(item) | ArrowType::LargeList(item) => match canonical_type(item.data_type(), true)? {
            DataType::Int64 => DataType::List(ElementType::Int64),
            DataType::Float64 => DataType::List(ElementType::Float64),
            DataType::Utf8 => DataType::List(ElementType::Utf8),
            other => return Err(format!("lists hold int64, float64 or utf8, not {other}: cast it")),
        },
        other => {
            return DataType::from_arrow(other).ok_or_else(|| format!("{other} has no counterpart: cast it"));
        }
    })
}

/// A column of a file as the canonical column of an input, exactly as a backfill would hand it to a transform: the
/// conversions are those of [`inspect`], and what needs a cast there is refused here.
///
/// # Errors
/// [`OfflineError::Column`] says what the column is and what to write in a source's `columns`, or which value cannot be
/// converted.
pub fn input_column(column: &ArrayRef, wanted: DataType) -> Result<ArrayRef, OfflineError> {
    let refuse = |reason: String| OfflineError::Column { reason };
    let found = canonical_type(column.data_type(), true)
        .map_err(|hint| refuse(format!("it is {}, the input is {wanted}; {hint}", column.data_type())))?;
    if found != wanted {
        return Err(refuse(format!("it is {found}, the input is {wanted}; nothing is cast unless a source says so")));
    }
    to_canonical(column).map_err(refuse)
}

/// A column in canonical form. The type must be one that [`canonical_type`] has accepted.
pub(crate) fn to_canonical(column: &ArrayRef) -> Result<ArrayRef, String> {
    let canonical = |column: &ArrayRef| eadem_values::canonicalize(column).map_err(|error| error.to_string());
    let cast = |column: &ArrayRef, data_type: &ArrowType| {
        arrow_cast::cast(column, data_type).map_err(|error| error.to_string())
    };
    match column.data_type() {
        ArrowType::Timestamp(unit, _) => canonical(&to_utc_micros(column, *unit)?),
        ArrowType::Dictionary(_, values) => to_canonical(&cast(column, values)?),
        ArrowType::List(item) | ArrowType::LargeList(item) => {
            let data_type = canonical_type(item.data_type(), true)?.to_arrow();
            let list = ArrowType::List(Arc::new(ArrowField::new("item", data_type, true)));
            let list = cast(column, &list)?;
            canonical(&without_null_elements(list.as_list::<i32>())?)
        }
        other => {
            let data_type = canonical_type(other, false)?.to_arrow();
            if *other == data_type { canonical(column) } else { canonical(&cast(column, &data_type)?) }
        }
    }
}

/// The lists with elements that cannot be null. Only the elements of these rows count: a part of a column shares those of
/// the whole.
fn without_null_elements(lists: &arrow_array::ListArray) -> Result<ArrayRef, String> {
    let (_, offsets, values, nulls) = lists.clone().into_parts();
    let (first, last) = (offsets[0], offsets[offsets.len() - 1]);
    let values = values.slice(first as usize, (last - first) as usize);
    if values.null_count() > 0 {
        return Err("an element of a list is null; elements never are".to_owned());
    }
    let offsets = OffsetBuffer::new(offsets.iter().map(|offset| offset - first).collect());
    let item = Arc::new(ArrowField::new("item", values.data_type().clone(), false));
    let lists = arrow_array::ListArray::try_new(item, offsets, values, nulls).map_err(|error| error.to_string())?;
    Ok(Arc::new(lists))
}

/// Timestamps of any unit as UTC microseconds; nanoseconds are floored, also before 1970.
pub(super) fn to_utc_micros(column: &ArrayRef, unit: TimeUnit) -> Result<ArrayRef, String> {
    let scaled = |values: &[i64], factor: i64, valid: &dyn Fn(usize) -> bool| {
        values
            .iter()
            .enumerate()
            .map(|(row, value)| match value.checked_mul(factor) {
                Some(micros) => Ok(micros),
                None if valid(row) => Err(format!("{value} {unit:?}s is beyond 64-bit microseconds")),
                None => Ok(0),
            })
            .collect::<Result<Vec<i64>, String>>()
    };
    let valid = |row: usize| column.is_valid(row);
    let micros: Vec<i64> = match unit {
        TimeUnit::Second => scaled(column.as_primitive::<TimestampSecondType>().values(), 1_000_000, &valid)?,
        TimeUnit::Millisecond => scaled(column.as_primitive::<TimestampMillisecondType>().values(), 1_000, &valid)?,
        TimeUnit::Microsecond => {
            let values = column.as_primitive::<TimestampMicrosecondType>().values().clone();
            let utc = TimestampMicrosecondArray::new(values, column.nulls().cloned()).with_timezone("UTC");
            return Ok(Arc::new(utc));
        }
        TimeUnit::Nanosecond => {
            let values = column.as_primitive::<TimestampNanosecondType>().values();
            values.iter().map(|nanos| nanos.div_euclid(1_000)).collect()
        }
    };
    Ok(Arc::new(TimestampMicrosecondArray::new(micros.into(), column.nulls().cloned()).with_timezone("UTC")))
}

pub(super) fn extended_schema(source: &SourceSpec, file: &SchemaRef, columns: &[InspectedColumn]) -> Schema {
    let mut fields: Vec<ArrowField> = file.fields().iter().map(|field| field.as_ref().clone()).collect();
    for (name, _) in &source.columns {
        let Some(column) = columns.iter().find(|column| column.name == *name) else { continue };
        let computed = ArrowField::new(name, column.arrow_type.clone(), true);
        match fields.iter_mut().find(|field| field.name() == name) {
            Some(field) => *field = computed,
            None => fields.push(computed),
        }
    }
    Schema::new(fields)
}
