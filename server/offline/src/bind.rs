//! From a source's rows to what a view stores: join keys, times, bound inputs and their tie digest.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, BinaryArray, BooleanArray, Int64Array, TimestampMicrosecondArray};
use arrow_buffer::{BooleanBufferBuilder, OffsetBuffer, ScalarBuffer};
use eadem_semantics::{RefusedTime, accept_event_time};
use eadem_values::{
    BatchEncoder, DataType, TIME_MAX_US, TIME_MIN_US, TieDigest, Value, array_from_values, value_at, value_to_json,
};

use crate::error::OfflineError;
use crate::schema::key_arrow_type;
use crate::source::{InspectedColumn, SourceRows};
use crate::spec::{Binding, EventTime, KnownAt, ViewSpec};

/// How a view's keys, times and inputs are found among the columns of its source.
#[derive(Debug, Clone)]
pub(crate) struct BindPlan {
    /// The columns that the source has to deliver, in order.
    pub(crate) columns: Vec<String>,
    keys: Vec<usize>,
    event_time: BoundTime,
    known_at: BoundKnownAt,
    inputs: Vec<BoundInput>,
    /// How far an event time may lie after its arrival.
    pub(crate) max_ahead_us: i64,
}

#[derive(Debug, Clone)]
enum BoundTime {
    Column(usize),
    Literal(i64),
}

#[derive(Debug, Clone)]
enum BoundKnownAt {
    EventTime,
    Column(usize),
    After(i64),
}

#[derive(Debug, Clone)]
struct BoundInput {
    name: String,
    data_type: DataType,
    accepts_null: bool,
    from: InputSource,
}

#[derive(Debug, Clone)]
enum InputSource {
    Column(usize),
    Literal(Value),
}

/// Which rows of a job count, besides those that its source leaves out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Acceptance {
    /// The arrival of all rows, in microseconds.
    pub(crate) arrival_us: i64,
    /// Only event times in `[from, to)`.
    pub(crate) range_us: Option<(i64, i64)>,
    /// Event times in these ranges have been loaded before.
    pub(crate) loaded_us: Vec<(i64, i64)>,
}

impl Acceptance {
    /// Whether rows of this event time are for this job to store or refuse. A row without a time that can be stored is in
    /// no range, so it is refused wherever it is met.
    fn asks_for(&self, event_us: Option<i64>) -> bool {
        let Some(event_us) = event_us.filter(|event_us| (TIME_MIN_US..TIME_MAX_US).contains(event_us)) else {
            return true;
        };
        let within = |(from_us, to_us): &(i64, i64)| (*from_us..*to_us).contains(&event_us);
        self.range_us.as_ref().is_none_or(within) && !self.loaded_us.iter().any(within)
    }
}

/// Rows that are ready for the transform, in canonical form.
#[derive(Debug)]
pub(crate) struct BoundRows {
    pub(crate) keys: Vec<ArrayRef>,
    pub(crate) inputs: Vec<ArrayRef>,
    pub(crate) event_time: ArrayRef,
    pub(crate) known_at: ArrayRef,
    pub(crate) tie: ArrayRef,
    pub(crate) sequence: Int64Array,
    /// Rows outside the job's time range, or inside one that was loaded before.
    pub(crate) out_of_range: u64,
    pub(crate) refused: Vec<RefusedRow>,
}

/// A row refused before or after its transform.
#[derive(Debug, Clone)]
pub(crate) struct RefusedRow {
    pub(crate) sequence: i64,
    /// For counting: without the values.
    pub(crate) kind: String,
    /// For people: with them.
    pub(crate) reason: String,
    /// The row's keys, times and inputs, as a JSON object.
    pub(crate) inputs: String,
}

impl BoundRows {
    pub(crate) fn len(&self) -> usize {
        self.sequence.len()
    }

    pub(crate) fn event_times_us(&self) -> &[i64] {
        self.event_time.as_primitive::<TimestampMicrosecondType>().values()
    }
}

impl BindPlan {
    /// Checks the view's bindings against its source's columns.
    pub(crate) fn try_new(view: &ViewSpec, inspected: &[InspectedColumn]) -> Result<Self, OfflineError> {
        let mut columns: Vec<String> = Vec::new();
        let mut place = |name: &str, field: &str, wanted: &[DataType]| -> Result<usize, OfflineError> {
            let column = inspected.iter().find(|column| column.name == name).ok_or_else(|| {
                let names: Vec<&str> = inspected.iter().map(|column| column.name.as_str()).collect();
                let reason = format!(
                    "source `{}` has no column `{name}`; its columns are {}",
                    view.source.name,
                    names.join(", ")
                );
                view_error(view, field, reason)
            })?;
            let fits = column.data_type.is_some_and(|data_type| wanted.contains(&data_type));
            if !fits {
                let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
                let found = column.data_type.map_or_else(|| column.arrow_type.to_string(), |found| found.to_string());
                let hint = column.hint.clone().unwrap_or_else(|| "cast it in the source's `columns`".to_owned());
                let reason = format!("column `{name}` is {found}, expected {}; {hint}", wanted.join(" or "));
                return Err(view_error(view, field, reason));
            }
            Ok(columns.iter().position(|known| known == name).unwrap_or_else(|| {
                columns.push(name.to_owned());
                columns.len() - 1
            }))
        };
        let keys = view
            .keys
            .iter()
            .map(|key| {
                let wanted = DataType::from_arrow(&key_arrow_type(key.key_type)).into_iter().collect::<Vec<_>>();
                place(&key.column, &format!("join key `{}`", key.name), &wanted)
            })
            .collect::<Result<_, _>>()?;
        let event_time = match &view.source.event_time {
            EventTime::Column(name) => BoundTime::Column(place(name, "event_time", &[DataType::Timestamp])?),
            EventTime::Literal(at_us) => BoundTime::Literal(*at_us),
        };
        let known_at = match &view.source.known_at {
            KnownAt::EventTime => BoundKnownAt::EventTime,
            KnownAt::Column(name) => BoundKnownAt::Column(place(name, "known_at", &[DataType::Timestamp])?),
            KnownAt::After(delay_us) => BoundKnownAt::After(*delay_us),
        };
        let description = view.description();
        if description.inputs.len() != view.bindings.len() {
            let reason =
                format!("the transform has {} inputs, {} are bound", description.inputs.len(), view.bindings.len());
            return Err(view_error(view, "bind", reason));
        }
        let mut inputs = Vec::with_capacity(view.bindings.len());
        for (field, binding) in description.inputs.iter().zip(&view.bindings) {
            let at = format!("bind.{}", field.name);
            let from = match binding {
                Binding::Column(name) => InputSource::Column(place(name, &at, &[field.data_type])?),
                Binding::Literal(literal) => {
                    let value = literal
                        .to_value(field.data_type)
                        .ok_or_else(|| view_error(view, &at, format!("the literal cannot be {}", field.data_type)))?;
                    InputSource::Literal(value.canonical())
                }
            };
            inputs.push(BoundInput {
                name: field.name.clone(),
                data_type: field.data_type,
                accepts_null: field.accepts_null(),
                from,
            });
        }
        Ok(Self { columns, keys, event_time, known_at, inputs, max_ahead_us: view.source.max_ahead_us })
    }

    /// For rows as quarantine keeps them: the keys, the inputs, the event time and the known-at, in this order.
    pub(crate) fn of_kept_rows(view: &ViewSpec) -> Self {
        let keys = view.keys.len();
        let fields = &view.description().inputs;
        let input = |(number, field): (usize, &eadem_values::Field)| BoundInput {
            name: field.name.clone(),
            data_type: field.data_type,
            accepts_null: field.accepts_null(),
            from: InputSource::Column(keys + number),
        };
        Self {
            columns: Vec::new(),
            keys: (0..keys).collect(),
            event_time: BoundTime::Column(keys + fields.len()),
            known_at: BoundKnownAt::Column(keys + fields.len() + 1),
            inputs: fields.iter().enumerate().map(input).collect(),
            max_ahead_us: view.source.max_ahead_us,
        }
    }

    /// Binds rows: refuses those that cannot be stored, leaves out those that are not asked for.
    pub(crate) fn bind(
        &self,
        key_names: &[String],
        rows: &SourceRows,
        acceptance: &Acceptance,
    ) -> Result<BoundRows, OfflineError> {
        let count = rows.sequence.len();
        let keys: Vec<ArrayRef> = self.keys.iter().map(|key| rows.columns[*key].clone()).collect();
        let inputs = self
            .inputs
            .iter()
            .map(|input| match &input.from {
                InputSource::Column(column) => Ok(rows.columns[*column].clone()),
                InputSource::Literal(value) => array_from_values(input.data_type, std::iter::repeat_n(value, count)),
            })
            .collect::<Result<Vec<ArrayRef>, _>>()?;
        let times = self.times(rows);

        let mut keep = BooleanBufferBuilder::new(count);
        let mut refused: BTreeMap<usize, (String, String)> = BTreeMap::new();
        let mut out_of_range = 0;
        let nullable_faults = self.may_have_nulls(&keys, &inputs);
        for row in 0..count {
            // A row that this job is not about is no concern of its quarantine either.
            if !acceptance.asks_for(times.at(row).0) {
                keep.append(false);
                out_of_range += 1;
                continue;
            }
            let fault = if nullable_faults { self.null_fault(key_names, &keys, &inputs, row) } else { None };
            let verdict = match (rows.faults.get(&rows.sequence.value(row)), fault) {
                (Some(fault), _) => Verdict::Refused(fault.kind.clone(), fault.reason.clone()),
                (None, Some(reason)) => Verdict::Refused(reason.clone(), reason),
                (None, None) => self.time_verdict(&times, row, acceptance),
            };
            keep.append(matches!(verdict, Verdict::Kept));
            if let Verdict::Refused(kind, reason) = verdict {
                refused.insert(row, (kind, reason));
            }
        }
        let refused = refused
            .into_iter()
            .map(|(row, (kind, reason))| RefusedRow {
                sequence: rows.sequence.value(row),
                kind,
                reason,
                inputs: self.row_as_json(
                    (key_names, &keys, &inputs),
                    times.at(row),
                    row,
                    rows.faults.contains_key(&rows.sequence.value(row)),
                ),
            })
            .collect();
        let event_time = timestamps(times.event_us);
        let known_at = match self.known_at {
            // One and the same column is gathered once when it is written.
            BoundKnownAt::EventTime => event_time.clone(),
            BoundKnownAt::Column(_) | BoundKnownAt::After(_) => timestamps(times.known_us),
        };
        let mut bound = BoundRows {
            keys,
            inputs,
            event_time,
            known_at,
            tie: Arc::new(BinaryArray::new_null(0)),
            sequence: rows.sequence.clone(),
            out_of_range,
            refused,
        };
        let mask = BooleanArray::new(keep.finish(), None);
        if mask.true_count() < count {
            bound.retain(&mask)?;
        }
        bound.tie = tie_digests(&bound.inputs, bound.len())?;
        Ok(bound)
    }

    /// The JSON object that quarantine keeps of a row.
    pub(crate) fn bound_row_as_json(&self, key_names: &[String], rows: &BoundRows, row: usize) -> String {
        let event_us = rows.event_times_us()[row];
        let known_us = rows.known_at.as_primitive::<TimestampMicrosecondType>().value(row);
        self.row_as_json((key_names, &rows.keys, &rows.inputs), (Some(event_us), Some(known_us)), row, false)
    }

    fn times<'a>(&self, rows: &'a SourceRows) -> Times<'a> {
        let count = rows.sequence.len();
        let column = |at: usize| rows.columns[at].as_primitive::<TimestampMicrosecondType>();
        let (event_us, event_nulls) = match self.event_time {
            BoundTime::Literal(at_us) => (vec![at_us; count], None),
            BoundTime::Column(at) => (column(at).values().to_vec(), column(at).nulls()),
        };
        let (known_us, known_nulls) = match self.known_at {
            BoundKnownAt::EventTime => (event_us.clone(), None),
            BoundKnownAt::After(delay_us) => {
                (event_us.iter().map(|event_us| event_us.saturating_add(delay_us)).collect(), None)
            }
            BoundKnownAt::Column(at) => (column(at).values().to_vec(), column(at).nulls()),
        };
        Times { event_us, event_nulls, known_us, known_nulls }
    }

    fn may_have_nulls(&self, keys: &[ArrayRef], inputs: &[ArrayRef]) -> bool {
        keys.iter().any(|key| key.null_count() > 0)
            || self.inputs.iter().zip(inputs).any(|(input, column)| !input.accepts_null && column.null_count() > 0)
    }

    fn null_fault(&self, key_names: &[String], keys: &[ArrayRef], inputs: &[ArrayRef], row: usize) -> Option<String> {
        if let Some(key) = keys.iter().position(|key| key.is_null(row)) {
            return Some(format!("join key `{}` is null", key_names[key]));
        }
        let mut declared = self.inputs.iter().zip(inputs);
        let (input, _) = declared.find(|(input, column)| !input.accepts_null && column.is_null(row))?;
        Some(format!("input `{}` is null, and the transform does not accept that", input.name))
    }

    fn time_verdict(&self, times: &Times<'_>, row: usize, acceptance: &Acceptance) -> Verdict {
        let (event_us, known_us) = match times.at(row) {
            (None, _) => return Verdict::refused("event time is null"),
            (_, None) => return Verdict::refused("known-at is null"),
            (Some(event_us), Some(known_us)) => (event_us, known_us),
        };
        if let Err(refusal) = accept_event_time(event_us, known_us, acceptance.arrival_us, self.max_ahead_us) {
            let kind = match &refusal {
                RefusedTime::OutOfRange { what, .. } => format!("{what} outside 1900 to 2200"),
                RefusedTime::TooFarAhead { .. } => "event time too far ahead of its arrival".to_owned(),
            };
            return Verdict::Refused(kind, refusal.to_string());
        }
        Verdict::Kept
    }

    /// A row as quarantine keeps it. Of an incomplete one, a value could not be had and stands as null.
    fn row_as_json(
        &self,
        (key_names, keys, inputs): (&[String], &[ArrayRef], &[ArrayRef]),
        (event_us, known_us): (Option<i64>, Option<i64>),
        row: usize,
        is_incomplete: bool,
    ) -> String {
        let json = |column: &ArrayRef| {
            value_at(column.as_ref(), row).map_or(serde_json::Value::Null, |value| value_to_json(&value))
        };
        let time = |time: Option<i64>| {
            time.map_or(serde_json::Value::Null, |time_us| value_to_json(&Value::Timestamp(time_us)))
        };
        let keys: serde_json::Map<_, _> = key_names.iter().cloned().zip(keys.iter().map(json)).collect();
        let inputs: serde_json::Map<_, _> =
            self.inputs.iter().map(|input| input.name.clone()).zip(inputs.iter().map(json)).collect();
        let mut kept = serde_json::json!({
            "keys": keys, "event_time": time(event_us), "known_at": time(known_us), "inputs": inputs,
        });
        if is_incomplete {
            kept["incomplete"] = true.into();
        }
        kept.to_string()
    }
}

enum Verdict {
    Kept,
    Refused(String, String),
}

impl Verdict {
    fn refused(reason: &str) -> Self {
        Self::Refused(reason.to_owned(), reason.to_owned())
    }
}

struct Times<'a> {
    event_us: Vec<i64>,
    event_nulls: Option<&'a arrow_buffer::NullBuffer>,
    known_us: Vec<i64>,
    known_nulls: Option<&'a arrow_buffer::NullBuffer>,
}

impl Times<'_> {
    fn at(&self, row: usize) -> (Option<i64>, Option<i64>) {
        let present = |nulls: Option<&arrow_buffer::NullBuffer>| nulls.is_none_or(|nulls| nulls.is_valid(row));
        (present(self.event_nulls).then(|| self.event_us[row]), present(self.known_nulls).then(|| self.known_us[row]))
    }
}

impl BoundRows {
    /// Leaves the rows at which `mask` is true.
    pub(crate) fn retain(&mut self, mask: &BooleanArray) -> Result<(), OfflineError> {
        let filter = arrow_select::filter::FilterBuilder::new(mask).optimize().build();
        for column in self.keys.iter_mut().chain(&mut self.inputs) {
            *column = eadem_values::canonicalize(&filter.filter(column.as_ref())?)?;
        }
        let known_at_event_time = Arc::ptr_eq(&self.event_time, &self.known_at);
        self.event_time = filter.filter(self.event_time.as_ref())?;
        self.known_at =
            if known_at_event_time { self.event_time.clone() } else { filter.filter(self.known_at.as_ref())? };
        if self.tie.len() == mask.len() {
            self.tie = filter.filter(self.tie.as_ref())?;
        }
        self.sequence = filter.filter(&self.sequence)?.as_primitive::<Int64Type>().clone();
        Ok(())
    }
}

fn timestamps(times_us: Vec<i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::new(times_us.into(), None).with_timezone("UTC"))
}

fn tie_digests(inputs: &[ArrayRef], rows: usize) -> Result<ArrayRef, OfflineError> {
    const TIE_BYTES: usize = 16;
    let mut bytes = Vec::with_capacity(rows * TIE_BYTES);
    let encoder = BatchEncoder::try_new(inputs)?;
    let mut encoded = Vec::new();
    for row in 0..rows {
        encoded.clear();
        encoder.encode_row(row, &mut encoded);
        bytes.extend_from_slice(TieDigest::of(&encoded).as_bytes());
    }
    let offsets: ScalarBuffer<i32> = (0..=rows).map(|row| (row * TIE_BYTES) as i32).collect();
    Ok(Arc::new(BinaryArray::try_new(OffsetBuffer::new(offsets), bytes.into(), None)?))
}

fn view_error(view: &ViewSpec, field: &str, reason: String) -> OfflineError {
    OfflineError::View { view: view.id(), field: field.to_owned(), reason }
}
