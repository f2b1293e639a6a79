//! The digest of a training set's content: over names, types by names of our own, and the canonical encoding of every row.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType as ArrowType, Schema, TimeUnit};
use eadem_values::{BatchEncoder, DataType, Digest};
use sha2::{Digest as _, Sha256};

use crate::error::OfflineError;
use crate::source::to_canonical;

/// Rows that are hashed at a time.
const DIGEST_ROWS: usize = 8_192;

/// SHA-256 over the names and types of the columns, then for each 131,072 rows in turn the BLAKE3 digest of every column:
/// over the canonical encoding of its values. (One digest over row after row would be plainer, but the type of each value
/// would be looked up anew, and statuses that features share would be digested for each of them. SHA-256 over all of it
/// takes four times as long.)
pub(super) struct ContentDigest {
    hasher: Sha256,
    encoded: Vec<u8>,
}

impl ContentDigest {
    pub(super) fn new(schema: &Schema) -> Self {
        let mut hasher = Sha256::new();
        for field in schema.fields() {
            hasher.update(format!("{}\u{0}{}\u{0}", field.name(), type_name(field.data_type())));
        }
        Self { hasher, encoded: Vec::new() }
    }

    /// The next 131,072 rows, or all that are left. Their columns are those of the schema.
    pub(super) fn update(&mut self, rows: &RecordBatch) -> Result<(), OfflineError> {
        let mut digested: Vec<(&ArrayRef, [u8; 32])> = Vec::with_capacity(rows.num_columns());
        for column in rows.columns() {
            let known = digested.iter().find(|(known, _)| Arc::ptr_eq(known, column));
            let digest = match known {
                Some((_, digest)) => *digest,
                None => self.column_digest(column)?,
            };
            digested.push((column, digest));
            self.hasher.update(digest);
        }
        Ok(())
    }

    fn column_digest(&mut self, column: &ArrayRef) -> Result<[u8; 32], OfflineError> {
        let mut hasher = blake3::Hasher::new();
        for start in (0..column.len()).step_by(DIGEST_ROWS) {
            let part = column.slice(start, DIGEST_ROWS.min(column.len() - start));
            self.encoded.clear();
            if !encode_dictionary(&part, &mut self.encoded)? {
                let part = [encodable(&part)?];
                BatchEncoder::try_new(&part)?.encode_column(0, 0..part[0].len(), &mut self.encoded);
            }
            hasher.update(&self.encoded);
        }
        Ok(*hasher.finalize().as_bytes())
    }

    pub(super) fn finish(self) -> Digest {
        Digest::from_bytes(self.hasher.finalize().into())
    }
}

/// Encodes a column of few different values, such as a status, by encoding each of them once; false if it is no such column.
fn encode_dictionary(column: &ArrayRef, bytes: &mut Vec<u8>) -> Result<bool, OfflineError> {
    let Some(dictionary) = column.as_any_dictionary_opt() else { return Ok(false) };
    let has_nulls = dictionary.keys().null_count() > 0 || dictionary.values().null_count() > 0;
    if has_nulls || dictionary.values().len() > column.len() {
        return Ok(false);
    }
    let values = [encodable(dictionary.values())?];
    let encoder = BatchEncoder::try_new(&values)?;
    let mut encoded = Vec::new();
    let mut ends = Vec::with_capacity(values[0].len());
    for value in 0..values[0].len() {
        encoder.encode_row(value, &mut encoded);
        ends.push(encoded.len());
    }
    for key in dictionary.normalized_keys() {
        let start = if key == 0 { 0 } else { ends[key - 1] };
        bytes.extend_from_slice(&encoded[start..ends[key]]);
    }
    Ok(true)
}

/// The name of a type in the content digest. Not as the columnar library prints it: that may change with its version, and
/// how a column is laid out is not its content.
pub(super) fn type_name(data_type: &ArrowType) -> String {
    if let Some(of_the_contract) = DataType::from_arrow(data_type) {
        return of_the_contract.to_string();
    }
    let unit = |unit: &TimeUnit| match unit {
        TimeUnit::Second => "s",
        TimeUnit::Millisecond => "ms",
        TimeUnit::Microsecond => "us",
        TimeUnit::Nanosecond => "ns",
    };
    let simple = match data_type {
        ArrowType::Null => "null",
        ArrowType::Int8 => "int8",
        ArrowType::Int16 => "int16",
        ArrowType::Int32 => "int32",
        ArrowType::UInt8 => "uint8",
        ArrowType::UInt16 => "uint16",
        ArrowType::UInt32 => "uint32",
        ArrowType::UInt64 => "uint64",
        ArrowType::Float16 => "float16",
        ArrowType::LargeUtf8 | ArrowType::Utf8View => "utf8",
        ArrowType::LargeBinary | ArrowType::BinaryView | ArrowType::FixedSizeBinary(_) => "binary",
        ArrowType::Date32 | ArrowType::Date64 => "date",
        ArrowType::Interval(_) => "interval",
        ArrowType::Timestamp(time_unit, zone) => {
            return format!("timestamp({}, {})", unit(time_unit), zone.as_deref().unwrap_or("local"));
        }
        ArrowType::Time32(time_unit) | ArrowType::Time64(time_unit) => return format!("time({})", unit(time_unit)),
        ArrowType::Duration(time_unit) => return format!("duration({})", unit(time_unit)),
        ArrowType::Decimal32(digits, scale)
        | ArrowType::Decimal64(digits, scale)
        | ArrowType::Decimal128(digits, scale)
        | ArrowType::Decimal256(digits, scale) => return format!("decimal({digits}, {scale})"),
        ArrowType::Dictionary(_, values) => return type_name(values),
        ArrowType::List(item)
        | ArrowType::LargeList(item)
        | ArrowType::ListView(item)
        | ArrowType::LargeListView(item)
        | ArrowType::FixedSizeList(item, _) => return format!("list({})", type_name(item.data_type())),
        _ => "nested",
    };
    simple.to_owned()
}

/// A column as it can be encoded. Columns of the spine that no feature could have (dates, decimals) count by their text.
pub(super) fn encodable(column: &ArrayRef) -> Result<ArrayRef, OfflineError> {
    if DataType::from_arrow(column.data_type()).is_some() {
        return Ok(Arc::clone(column));
    }
    if matches!(column.data_type(), ArrowType::Timestamp(_, None)) {
        return Ok(eadem_values::canonicalize(&arrow_cast::cast(column, &ArrowType::Int64)?)?);
    }
    match to_canonical(column) {
        Ok(canonical) => Ok(canonical),
        Err(_) => Ok(eadem_values::canonicalize(&arrow_cast::cast(column, &ArrowType::Utf8)?)?),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use eadem_query::status_dictionary;
    use eadem_semantics::Status::{Missing, Null, Present};

    use super::*;

    #[test]
    fn a_column_that_stands_there_twice_counts_like_two_that_are_equal() {
        let statuses = || status_dictionary(&[Present, Missing, Present, Null]);
        let digest = |columns: [ArrayRef; 3]| {
            let named = ["a", "b", "c"].into_iter().zip(columns);
            let rows = RecordBatch::try_from_iter(named).unwrap();
            let mut content = ContentDigest::new(&rows.schema());
            content.update(&rows).unwrap();
            content.finish()
        };
        let (shared, other) = (statuses(), status_dictionary(&[Missing, Missing, Present, Null]));
        let of_one = digest([shared.clone(), other.clone(), shared.clone()]);
        assert_eq!(of_one, digest([statuses(), other.clone(), statuses()]));
        assert_ne!(of_one, digest([shared.clone(), shared, other]));
    }
}
