//! Which columns of a Parquet file are worth compressing.
//!
//! Measurements and coordinates mostly differ in all their bits: zstd takes a tenth off them at best, and every reader pays
//! for that with its decoder. Of 5 M rows with eight such columns, reading took 0.75 s of processor time compressed, and
//! 0.25 s as they are.

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::DataType as ArrowType;
use parquet::basic::Compression;
use parquet::file::properties::WriterPropertiesBuilder;
use parquet::schema::types::ColumnPath;

/// Values that are looked at: neighbours, as a codec sees them.
const SAMPLE_ROWS: usize = 4_096;

/// A sample that keeps more than this share of its bytes is not worth a decoder.
const KEPT_MAX: (usize, usize) = (4, 5);

const ZSTD_LEVEL: i32 = 1;

/// Leaves floats that do not shrink without dictionary and compression. The same rows give the same answer.
pub(crate) fn store_as_they_are(properties: WriterPropertiesBuilder, rows: &RecordBatch) -> WriterPropertiesBuilder {
    let schema = rows.schema();
    let incompressible = schema.fields().iter().zip(rows.columns()).filter(|(_, column)| !shrinks(column));
    incompressible.fold(properties, |properties, (field, _)| {
        let column = ColumnPath::from(field.name().as_str());
        properties
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_compression(column, Compression::UNCOMPRESSED)
    })
}

/// Whether a sample of the column's values shrinks; true of all that are no floats.
fn shrinks(column: &ArrayRef) -> bool {
    let sample = column.slice(0, column.len().min(SAMPLE_ROWS));
    let bytes: Vec<u8> = match sample.data_type() {
        ArrowType::Float64 => {
            sample.as_primitive::<Float64Type>().iter().flatten().flat_map(f64::to_le_bytes).collect()
        }
        ArrowType::Float32 => {
            sample.as_primitive::<Float32Type>().iter().flatten().flat_map(f32::to_le_bytes).collect()
        }
        _ => return true,
    };
    let Ok(compressed) = zstd::bulk::compress(&bytes, ZSTD_LEVEL) else { return true };
    // Nothing at all shrinks best.
    bytes.is_empty() || compressed.len() * KEPT_MAX.1 <= bytes.len() * KEPT_MAX.0
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{Float32Array, Float64Array, Int64Array};

    use super::*;

    /// Numbers of which no two are alike.
    fn noise() -> impl Iterator<Item = f64> {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1_u64 << 53) as f64
        })
    }

    #[test]
    fn noise_does_not_shrink_and_prices_do() {
        let column = |values: Float64Array| -> ArrayRef { Arc::new(values) };
        assert!(!shrinks(&column(noise().take(10_000).map(Some).collect())));
        assert!(!shrinks(&column(
            noise().take(10_000).enumerate().map(|(row, value)| (row % 3 > 0).then_some(value)).collect()
        )));
        let prices = noise().take(10_000).map(|value| Some((value * 5_000.0).round() / 100.0));
        assert!(shrinks(&column(prices.collect())));
        assert!(shrinks(&column(Float64Array::from(vec![Some(1.5); 5_000]))));
        assert!(shrinks(&column(Float64Array::new_null(5_000))));
        assert!(shrinks(&column(Float64Array::from(Vec::<f64>::new()))));
        let halves: ArrayRef = Arc::new(Float32Array::from_iter_values(noise().take(10_000).map(|value| value as f32)));
        assert!(!shrinks(&halves));
        let numbers: ArrayRef =
            Arc::new(Int64Array::from_iter_values(noise().take(100).map(|value| value.to_bits() as i64)));
        assert!(shrinks(&numbers), "only floats are looked at");
    }
}
