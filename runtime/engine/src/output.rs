//! What a component hands back. It is hostile until every length, offset, character and row count has been checked, and
//! [`CheckedOutput`] can only be made by checking.

use std::fmt;
use std::sync::Arc;

use arrow_array::types::{
    BinaryType, ByteArrayType, Float32Type, Float64Type, Int64Type, TimestampMicrosecondType, Utf8Type,
};
use arrow_array::{ArrayRef, BooleanArray, FixedSizeListArray, GenericByteArray, ListArray, PrimitiveArray};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::DataType as ArrowType;
use eadem_values::{DataType, Description, ElementType, Field};

use crate::bindings::exports::eadem::transform::types::{
    ColumnResult, ElementsResult, ListValuesResult, Output, RowError, ValuesResult, VariableBytesResult,
};
use crate::bits::{self, CanonicalBits};
use crate::config::EngineConfig;
use crate::state::cut_to;

/// How an answer breaks the contract. Columns are counted from 0, as are rows of the call.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Breach {
    ColumnCount {
        described: usize,
        found: usize,
    },
    Type {
        column: String,
        described: DataType,
        found: String,
    },
    RowCount {
        column: String,
        rows: usize,
        found: usize,
    },
    BitmapLength {
        column: String,
        bytes: usize,
        found: usize,
    },
    OffsetCount {
        column: String,
        entries: usize,
        found: usize,
    },
    OffsetStart {
        column: String,
        found: u32,
    },
    OffsetFalls {
        column: String,
        at: usize,
    },
    OffsetEnd {
        column: String,
        end: u32,
        length: usize,
    },
    NotUtf8 {
        column: String,
        row: usize,
    },
    Null {
        column: String,
        row: usize,
    },
    TooLong {
        column: String,
        row: usize,
        length: usize,
        allowed: usize,
    },
    RowOutOfRange {
        list: &'static str,
        row: u32,
        rows: usize,
    },
    RowOrder {
        list: &'static str,
        row: u32,
    },
    DroppedAndFailed {
        row: u32,
    },
    TotalDrops {
        row: u32,
    },
    TotalFails {
        row: u32,
        message: String,
    },
    /// What was handed over is not even of the type: a pointer out of bounds, text that is no text.
    Abi {
        what: String,
    },
}

impl Breach {
    /// The output that is at fault, where one is.
    pub(crate) fn column(&self) -> Option<&str> {
        match self {
            Self::Type { column, .. }
            | Self::RowCount { column, .. }
            | Self::BitmapLength { column, .. }
            | Self::OffsetCount { column, .. }
            | Self::OffsetStart { column, .. }
            | Self::OffsetFalls { column, .. }
            | Self::OffsetEnd { column, .. }
            | Self::NotUtf8 { column, .. }
            | Self::Null { column, .. }
            | Self::TooLong { column, .. } => Some(column),
            _ => None,
        }
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ColumnCount { described, found } => write!(f, "{found} output columns, {described} are described"),
            Self::Type { column, described, found } => {
                write!(f, "output {column} is {found}, {described} is described")
            }
            Self::RowCount { column, rows, found } => {
                write!(f, "output {column} has {found} values for {rows} rows")
            }
            Self::BitmapLength { column, bytes, found } => {
                write!(f, "the validity bitmap of output {column} has {found} bytes instead of {bytes} or 0")
            }
            Self::OffsetCount { column, entries, found } => {
                write!(f, "output {column} has {found} offsets instead of {entries}")
            }
            Self::OffsetStart { column, found } => {
                write!(f, "the offsets of output {column} start at {found} instead of 0")
            }
            Self::OffsetFalls { column, at } => write!(f, "the offsets of output {column} fall at entry {at}"),
            Self::OffsetEnd { column, end, length } => {
                write!(f, "the offsets of output {column} end at {end}, its values at {length}")
            }
            Self::NotUtf8 { column, row } => write!(f, "output {column} is not UTF-8 in row {row}"),
            Self::Null { column, row } => {
                write!(f, "output {column} is null in row {row}, it is described as not nullable")
            }
            Self::TooLong { column, row, length, allowed } => {
                write!(f, "output {column} has length {length} in row {row}, the limit is {allowed}")
            }
            Self::RowOutOfRange { list, row, rows } => write!(f, "`{list}` names row {row} of {rows} rows"),
            Self::RowOrder { list, row } => write!(f, "`{list}` is not strictly ascending at row {row}"),
            Self::DroppedAndFailed { row } => write!(f, "row {row} is both dropped and failed"),
            Self::TotalDrops { row } => write!(f, "a total transform dropped row {row}"),
            Self::Abi { what } => f.write_str(what),
            Self::TotalFails { row, message } => write!(f, "a total transform failed row {row}: {message}"),
        }
    }
}

/// An answer that keeps the contract: canonical columns of the described types with an entry for every row.
#[derive(Debug)]
pub(crate) struct CheckedOutput {
    columns: Vec<ArrayRef>,
    dropped: Vec<u32>,
    failed: Vec<(u32, String)>,
}

impl CheckedOutput {
    /// Checks every part of an answer for `rows` rows.
    pub(crate) fn check(
        output: Output,
        rows: usize,
        description: &Description,
        config: &EngineConfig,
    ) -> Result<Self, Breach> {
        let dropped = output.dropped;
        check_row_list("dropped", dropped.iter().copied(), rows)?;
        check_row_list("errors", output.errors.iter().map(|error| error.row), rows)?;
        check_disjoint(&dropped, &output.errors)?;
        if description.total {
            check_total(&dropped, &output.errors, config.message_bytes_max as usize)?;
        }
        let described = description.outputs.len();
        if output.columns.len() != described {
            return Err(Breach::ColumnCount { described, found: output.columns.len() });
        }
        let without_result = WithoutResult { dropped: &dropped, errors: &output.errors };
        let columns = description.outputs.iter().zip(output.columns).map(|(field, column)| {
            let check = ColumnCheck { field, rows, config, without_result: &without_result };
            check.column(column)
        });
        let columns = columns.collect::<Result<_, _>>()?;
        let message_bytes_max = config.message_bytes_max as usize;
        let failed = output.errors.into_iter().map(|error| {
            let message = cut_to(&error.message, message_bytes_max).to_owned();
            (error.row, message)
        });
        Ok(Self { columns, failed: failed.collect(), dropped })
    }

    /// Columns in described order, rows the component dropped, rows it failed and why. What stands in a column at a
    /// dropped or failed row means nothing.
    pub(crate) fn into_parts(self) -> (Vec<ArrayRef>, Vec<u32>, Vec<(u32, String)>) {
        (self.columns, self.dropped, self.failed)
    }
}

fn check_row_list(list: &'static str, row_list: impl Iterator<Item = u32>, rows: usize) -> Result<(), Breach> {
    let mut lowest_allowed = 0;
    for row in row_list {
        if row as usize >= rows {
            return Err(Breach::RowOutOfRange { list, row, rows });
        }
        if row < lowest_allowed {
            return Err(Breach::RowOrder { list, row });
        }
        lowest_allowed = row + 1;
    }
    Ok(())
}

fn check_disjoint(dropped: &[u32], errors: &[RowError]) -> Result<(), Breach> {
    let in_both = errors.iter().find(|error| dropped.binary_search(&error.row).is_ok());
    in_both.map_or(Ok(()), |error| Err(Breach::DroppedAndFailed { row: error.row }))
}

fn check_total(dropped: &[u32], errors: &[RowError], message_bytes_max: usize) -> Result<(), Breach> {
    if let Some(row) = dropped.first() {
        return Err(Breach::TotalDrops { row: *row });
    }
    if let Some(error) = errors.first() {
        let message = cut_to(&error.message, message_bytes_max).to_owned();
        return Err(Breach::TotalFails { row: error.row, message });
    }
    Ok(())
}

struct WithoutResult<'a> {
    dropped: &'a [u32],
    errors: &'a [RowError],
}

impl WithoutResult<'_> {
    fn rows(&self) -> impl Iterator<Item = usize> {
        self.dropped.iter().copied().chain(self.errors.iter().map(|error| error.row)).map(|row| row as usize)
    }

    fn contains(&self, row: usize) -> bool {
        let row = row as u32;
        self.dropped.binary_search(&row).is_ok() || self.errors.binary_search_by_key(&row, |error| error.row).is_ok()
    }
}

struct ColumnCheck<'a> {
    field: &'a Field,
    rows: usize,
    config: &'a EngineConfig,
    without_result: &'a WithoutResult<'a>,
}

impl ColumnCheck<'_> {
    fn column(&self, column: ColumnResult) -> Result<ArrayRef, Breach> {
        let validity = self.validity(column.validity)?;
        let data_type = self.field.data_type;
        Ok(match (data_type, column.values) {
            (DataType::Boolean, ValuesResult::Boolean(bits)) => self.booleans(bits, validity)?,
            (DataType::Int64, ValuesResult::Int64(values)) => {
                let values = self.numbers(values, 1, validity.as_deref())?;
                Arc::new(PrimitiveArray::<Int64Type>::new(values, self.nulls(validity)))
            }
            (DataType::Float32, ValuesResult::Float32(values)) => {
                let values = self.numbers(values, 1, validity.as_deref())?;
                Arc::new(PrimitiveArray::<Float32Type>::new(values, self.nulls(validity)))
            }
            (DataType::Float64, ValuesResult::Float64(values)) => {
                let values = self.numbers(values, 1, validity.as_deref())?;
                Arc::new(PrimitiveArray::<Float64Type>::new(values, self.nulls(validity)))
            }
            (DataType::Timestamp, ValuesResult::Timestamp(values)) => {
                let values = self.numbers(values, 1, validity.as_deref())?;
                let instants = PrimitiveArray::<TimestampMicrosecondType>::new(values, self.nulls(validity));
                Arc::new(instants.with_data_type(data_type.to_arrow()))
            }
            (DataType::Utf8, ValuesResult::Utf8(texts)) => self.bytes::<Utf8Type>(texts, validity)?,
            (DataType::Binary, ValuesResult::Binary(blobs)) => self.bytes::<BinaryType>(blobs, validity)?,
            (DataType::Vector(dimensions), ValuesResult::Vector(elements)) => {
                self.vectors(elements, dimensions as usize, validity)?
            }
            (DataType::List(element), ValuesResult::List(lists)) => self.lists(lists, element, validity)?,
            (described, found) => {
                return Err(Breach::Type { column: self.name(), described, found: type_name(&found).to_owned() });
            }
        })
    }

    fn name(&self) -> String {
        self.field.name.clone()
    }

    /// The bitmap, checked, and `None` where nothing is null.
    fn validity(&self, mut bitmap: Vec<u8>) -> Result<Option<Vec<u8>>, Breach> {
        if bitmap.is_empty() {
            return Ok(None);
        }
        let bytes = bits::bitmap_bytes(self.rows);
        if bitmap.len() != bytes {
            return Err(Breach::BitmapLength { column: self.name(), bytes, found: bitmap.len() });
        }
        if bits::all_set(&bitmap, self.rows) {
            return Ok(None);
        }
        if !self.field.nullable {
            let null = bits::unset_rows(&bitmap, self.rows).find(|row| !self.without_result.contains(*row));
            if let Some(row) = null {
                return Err(Breach::Null { column: self.name(), row });
            }
        }
        bits::clear_behind_last(&mut bitmap, self.rows);
        Ok(Some(bitmap))
    }

    /// The rows whose value means something: those that are neither null nor without a result. `None` where all do.
    fn meaningful(&self, validity: Option<&[u8]>) -> Option<Vec<u8>> {
        let mut without_result = self.without_result.rows().peekable();
        if without_result.peek().is_none() {
            return validity.map(<[u8]>::to_vec);
        }
        let mut meaningful = validity.map_or_else(|| vec![0xff; bits::bitmap_bytes(self.rows)], <[u8]>::to_vec);
        for row in without_result {
            meaningful[row / 8] &= !(1 << (row % 8));
        }
        bits::clear_behind_last(&mut meaningful, self.rows);
        Some(meaningful)
    }

    fn nulls(&self, validity: Option<Vec<u8>>) -> Option<NullBuffer> {
        let bitmap = validity?;
        Some(NullBuffer::new(BooleanBuffer::new(Buffer::from_vec(bitmap), 0, self.rows)))
    }

    fn check_count(&self, found: usize, expected: usize) -> Result<(), Breach> {
        if found == expected {
            return Ok(());
        }
        Err(Breach::RowCount { column: self.name(), rows: self.rows, found })
    }

    fn booleans(&self, mut bitmap: Vec<u8>, validity: Option<Vec<u8>>) -> Result<ArrayRef, Breach> {
        let bytes = bits::bitmap_bytes(self.rows);
        if bitmap.len() != bytes {
            return Err(Breach::RowCount { column: self.name(), rows: self.rows, found: bitmap.len() * 8 });
        }
        bits::clear_behind_last(&mut bitmap, self.rows);
        for (value, valid) in bitmap.iter_mut().zip(validity.iter().flatten()) {
            *value &= valid;
        }
        let values = BooleanBuffer::new(Buffer::from_vec(bitmap), 0, self.rows);
        Ok(Arc::new(BooleanArray::new(values, self.nulls(validity))))
    }

    fn numbers<T>(&self, mut values: Vec<T>, width: usize, validity: Option<&[u8]>) -> Result<ScalarBuffer<T>, Breach>
    where
        T: CanonicalBits + arrow_buffer::ArrowNativeType,
    {
        self.check_count(values.len(), self.rows.saturating_mul(width))?;
        if bits::any_foreign_nan(&values) {
            bits::canonicalize_nans(&mut values);
        }
        if let Some(validity) = validity {
            bits::zero_under_null(&mut values, width, validity, self.rows);
        }
        Ok(ScalarBuffer::from(values))
    }

    fn vectors(&self, elements: Vec<f32>, dimensions: usize, validity: Option<Vec<u8>>) -> Result<ArrayRef, Breach> {
        let elements = self.numbers(elements, dimensions, validity.as_deref())?;
        let child: ArrayRef = Arc::new(PrimitiveArray::<Float32Type>::new(elements, None));
        let ArrowType::FixedSizeList(item, length) = self.field.data_type.to_arrow() else {
            return Ok(child);
        };
        let nulls = self.nulls(validity);
        // The length is checked above; this constructor also knows the rows of a column without dimensions.
        FixedSizeListArray::try_new(item, length, child, nulls)
            .map(|array| Arc::new(array) as ArrayRef)
            .map_err(|_| Breach::RowCount { column: self.name(), rows: self.rows, found: 0 })
    }

    /// Offsets of `entries` spans over `length` things, each meaningful span at most `allowed` long.
    fn offsets(
        &self,
        offsets: Vec<u32>,
        entries: usize,
        length: usize,
        allowed: usize,
        meaningful: Option<&[u8]>,
    ) -> Result<OffsetBuffer<i32>, Breach> {
        if offsets.len() != entries + 1 {
            return Err(Breach::OffsetCount { column: self.name(), entries: entries + 1, found: offsets.len() });
        }
        if offsets[0] != 0 {
            return Err(Breach::OffsetStart { column: self.name(), found: offsets[0] });
        }
        let (mut falls, mut too_long) = (false, false);
        for (from, to) in offsets.iter().zip(&offsets[1..]) {
            falls |= to < from;
            too_long |= to.wrapping_sub(*from) as usize > allowed;
        }
        if falls {
            let at = offsets.windows(2).position(|pair| pair[1] < pair[0]).map_or(0, |before| before + 1);
            return Err(Breach::OffsetFalls { column: self.name(), at });
        }
        let end = offsets[entries];
        if end as usize != length || i32::try_from(end).is_err() {
            return Err(Breach::OffsetEnd { column: self.name(), end, length });
        }
        if too_long {
            let length_of = |row: usize| (offsets[row + 1] - offsets[row]) as usize;
            let is_too_long = |row: &usize| length_of(*row) > allowed && is_set(meaningful, *row);
            if let Some(row) = (0..entries).find(is_too_long) {
                return Err(Breach::TooLong { column: self.name(), row, length: length_of(row), allowed });
            }
        }
        let offsets: Vec<i32> = bytemuck::allocation::cast_vec(offsets);
        Ok(checked_offsets(offsets))
    }

    fn bytes<T>(&self, values: VariableBytesResult, validity: Option<Vec<u8>>) -> Result<ArrayRef, Breach>
    where
        T: ByteArrayType<Offset = i32> + Text,
    {
        let meaningful = self.meaningful(validity.as_deref());
        let (offsets, bytes) = self.spans::<T>(values, self.rows, meaningful.as_deref())?;
        Ok(Arc::new(checked_bytes::<T>(offsets, bytes, self.nulls(validity))))
    }

    /// Well-formed spans; those that mean nothing are empty, whatever they were.
    fn spans<T>(
        &self,
        values: VariableBytesResult,
        count: usize,
        meaningful: Option<&[u8]>,
    ) -> Result<(OffsetBuffer<i32>, Buffer), Breach>
    where
        T: ByteArrayType<Offset = i32> + Text,
    {
        let allowed = self.config.value_bytes_max as usize;
        let offsets = self.offsets(values.offsets, count, values.bytes.len(), allowed, meaningful)?;
        let bytes = Buffer::from_vec(values.bytes);
        let (offsets, bytes) = match meaningful {
            Some(meaningful) => empty_where_unset(offsets, bytes, meaningful, count),
            None => (offsets, bytes),
        };
        if let Some(row) = T::first_malformed(&offsets, &bytes) {
            return Err(Breach::NotUtf8 { column: self.name(), row });
        }
        Ok((offsets, bytes))
    }

    fn lists(
        &self,
        lists: ListValuesResult,
        element: ElementType,
        validity: Option<Vec<u8>>,
    ) -> Result<ArrayRef, Breach> {
        let length = match &lists.elements {
            ElementsResult::Int64(values) => values.len(),
            ElementsResult::Float64(values) => values.len(),
            ElementsResult::Utf8(texts) => texts.offsets.len().saturating_sub(1),
        };
        let allowed = self.config.list_elements_max as usize;
        let meaningful = self.meaningful(validity.as_deref());
        let offsets = self.offsets(lists.offsets, self.rows, length, allowed, meaningful.as_deref())?;
        let child: ArrayRef = match (element, lists.elements) {
            (ElementType::Int64, ElementsResult::Int64(values)) => {
                Arc::new(PrimitiveArray::<Int64Type>::new(values.into(), None))
            }
            (ElementType::Float64, ElementsResult::Float64(mut values)) => {
                bits::canonicalize_nans(&mut values);
                Arc::new(PrimitiveArray::<Float64Type>::new(values.into(), None))
            }
            (ElementType::Utf8, ElementsResult::Utf8(texts)) => {
                let in_meaningful_row = meaningful.map(|rows| elements_of(&rows, self.rows, &offsets, length));
                let (text_offsets, bytes) = self.spans::<Utf8Type>(texts, length, in_meaningful_row.as_deref())?;
                Arc::new(checked_bytes::<Utf8Type>(text_offsets, bytes, None))
            }
            (_, found) => {
                let found = element_type_name(&found).to_owned();
                return Err(Breach::Type { column: self.name(), described: self.field.data_type, found });
            }
        };
        let ArrowType::List(item) = self.field.data_type.to_arrow() else {
            return Ok(child);
        };
        let nulls = self.nulls(validity);
        let array = ListArray::try_new(item, offsets, child, nulls).map_err(|_| Breach::RowCount {
            column: self.name(),
            rows: self.rows,
            found: length,
        })?;
        let array: ArrayRef = Arc::new(array);
        // Elements under nulls are rare enough to be dropped by the general function.
        eadem_values::canonicalize(&array).map_err(|_| Breach::RowCount {
            column: self.name(),
            rows: self.rows,
            found: length,
        })
    }
}

/// What the bytes of a column must be, beyond bytes.
pub(crate) trait Text {
    /// The first span that is not well formed.
    fn first_malformed(offsets: &[i32], bytes: &[u8]) -> Option<usize>;
}

impl Text for BinaryType {
    fn first_malformed(_offsets: &[i32], _bytes: &[u8]) -> Option<usize> {
        None
    }
}

impl Text for Utf8Type {
    fn first_malformed(offsets: &[i32], bytes: &[u8]) -> Option<usize> {
        // Spans of ASCII begin and end at characters wherever they begin and end.
        if bytes.is_ascii() {
            return None;
        }
        let all_together = std::str::from_utf8(bytes);
        let cuts_no_character =
            all_together.is_ok_and(|text| offsets.iter().all(|offset| text.is_char_boundary(*offset as usize)));
        if cuts_no_character {
            return None;
        }
        let is_malformed = |span: &[i32]| std::str::from_utf8(&bytes[span[0] as usize..span[1] as usize]).is_err();
        offsets.windows(2).position(is_malformed)
    }
}

fn is_set(bitmap: Option<&[u8]>, row: usize) -> bool {
    bitmap.is_none_or(|bitmap| bitmap[row / 8] >> (row % 8) & 1 == 1)
}

/// A bitmap of the elements of lists, set where the row is.
fn elements_of(rows_bitmap: &[u8], rows: usize, offsets: &OffsetBuffer<i32>, elements: usize) -> Vec<u8> {
    let mut bitmap = vec![0xff; bits::bitmap_bytes(elements)];
    for row in bits::unset_rows(rows_bitmap, rows) {
        for element in offsets[row] as usize..offsets[row + 1] as usize {
            bitmap[element / 8] &= !(1 << (element % 8));
        }
    }
    bits::clear_behind_last(&mut bitmap, elements);
    bitmap
}

/// The same spans, empty where their bit is not set.
fn empty_where_unset(
    offsets: OffsetBuffer<i32>,
    bytes: Buffer,
    bitmap: &[u8],
    rows: usize,
) -> (OffsetBuffer<i32>, Buffer) {
    let is_clean = bits::unset_rows(bitmap, rows).all(|row| offsets[row] == offsets[row + 1]);
    if is_clean {
        return (offsets, bytes);
    }
    let mut kept_offsets = Vec::with_capacity(offsets.len());
    let mut kept = Vec::with_capacity(bytes.len());
    kept_offsets.push(0);
    for (row, span) in offsets.windows(2).enumerate() {
        if is_set(Some(bitmap), row) {
            kept.extend_from_slice(&bytes[span[0] as usize..span[1] as usize]);
        }
        kept_offsets.push(kept.len() as i32);
    }
    (checked_offsets(kept_offsets), Buffer::from_vec(kept))
}

#[allow(unsafe_code)]
fn checked_offsets(offsets: Vec<i32>) -> OffsetBuffer<i32> {
    // SAFETY: every caller has seen that the offsets are not empty, start at zero and never fall.
    unsafe { OffsetBuffer::new_unchecked(offsets.into()) }
}

#[allow(unsafe_code)]
fn checked_bytes<T: ByteArrayType<Offset = i32>>(
    offsets: OffsetBuffer<i32>,
    bytes: Buffer,
    nulls: Option<NullBuffer>,
) -> GenericByteArray<T> {
    // SAFETY: the offsets end where the bytes end, and every span is well formed: `spans` has checked both, and
    // `empty_where_unset` leaves out whole spans only. The bitmap has as many rows as there are spans.
    unsafe { GenericByteArray::<T>::new_unchecked(offsets, bytes, nulls) }
}

fn type_name(values: &ValuesResult) -> &'static str {
    match values {
        ValuesResult::Boolean(_) => "boolean",
        ValuesResult::Int64(_) => "int64",
        ValuesResult::Float32(_) => "float32",
        ValuesResult::Float64(_) => "float64",
        ValuesResult::Utf8(_) => "utf8",
        ValuesResult::Binary(_) => "binary",
        ValuesResult::Timestamp(_) => "timestamp",
        ValuesResult::Vector(_) => "vector",
        ValuesResult::List(lists) => element_type_name(&lists.elements),
    }
}

fn element_type_name(elements: &ElementsResult) -> &'static str {
    match elements {
        ElementsResult::Int64(_) => "list(int64)",
        ElementsResult::Float64(_) => "list(float64)",
        ElementsResult::Utf8(_) => "list(utf8)",
    }
}
