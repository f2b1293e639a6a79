//! F6, the other side: DataFusion reads the same columns and writes the same columns to the same partitions with the same
//! codec and encodings, and computes no feature.
//!
//! In place of a feature it writes the input that the feature is made of one to one, so that both sides have columns of the
//! same types with the same number of distinct values to compress. The store's own columns are made as cheaply as they can
//! be: the tie digest is sixteen scrambled bytes instead of a hash, the row's number a counter, the lane one dictionary entry.
//! The date is taken from the folder's name, since making it from the time would cost a text for every row.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use anyhow::Result;
use arrow_array::cast::AsArray;
use arrow_array::types::Float64Type;
use arrow_array::{Array, ArrayRef, BinaryArray, Int64Array};
use arrow_schema::DataType;
use datafusion::arrow::buffer::OffsetBuffer;
use datafusion::common::config::{ParquetColumnOptions, TableParquetOptions};
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};

use crate::backfill::THREADS;

const QUERY: &str = "
    SELECT
        entity_id,
        amount AS log_amount,
        merchant_category AS category,
        is_foreign AS at_home,
        lat AS map_north,
        lon AS map_east,
        event_timestamp AS event_time,
        event_timestamp AS known_at,
        scrambled(lat, lon) AS _tie,
        arrow_cast('sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef',
            'Dictionary(Int32, Utf8)') AS _lane,
        counted(lat) AS _seq,
        arrow_cast(NULL, 'Utf8') AS _error,
        day AS event_date
    FROM events";

/// Copies all events into `out`.
pub(crate) fn run(events: &str, out: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    runtime.block_on(copy(events, out))
}

async fn copy(events: &str, out: &str) -> Result<()> {
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(THREADS));
    context.register_udf(scrambled());
    context.register_udf(counted());
    let by_day = vec![("day".to_owned(), DataType::Utf8)];
    let options = ParquetReadOptions::default().table_partition_cols(by_day);
    context.register_parquet("events", events, options).await?;
    let by_date = DataFrameWriteOptions::new().with_partition_by(vec!["event_date".to_owned()]);
    context.sql(QUERY).await?.write_parquet(out, by_date, Some(writer_options())).await?;
    Ok(())
}

/// As the store writes its data files.
fn writer_options() -> TableParquetOptions {
    let mut options = TableParquetOptions::default().with_skip_arrow_metadata(true);
    options.global.compression = Some("zstd(1)".to_owned());
    options.global.statistics_enabled = Some("chunk".to_owned());
    // What does not shrink is stored as it is.
    let plain = ParquetColumnOptions {
        dictionary_enabled: Some(false),
        compression: Some("uncompressed".to_owned()),
        ..ParquetColumnOptions::default()
    };
    let digests = ParquetColumnOptions { statistics_enabled: Some("none".to_owned()), ..plain.clone() };
    let plain = ["log_amount", "map_north", "map_east"].map(|name| (name.to_owned(), plain.clone()));
    let ascending = ParquetColumnOptions {
        dictionary_enabled: Some(false),
        encoding: Some("delta_binary_packed".to_owned()),
        ..ParquetColumnOptions::default()
    };
    // What every training set decodes is cheap to decode.
    let cheap = Some("lz4_raw".to_owned());
    let times = ParquetColumnOptions { compression: cheap.clone(), ..ascending.clone() };
    let keys = ParquetColumnOptions { compression: cheap, ..ParquetColumnOptions::default() };
    let named = |(name, options): (&str, &ParquetColumnOptions)| (name.to_owned(), options.clone());
    let others =
        [("_seq", &ascending), ("event_time", &times), ("known_at", &times), ("entity_id", &keys), ("_tie", &digests)];
    let specific = others.into_iter().map(named).chain(plain);
    options.column_specific_options = specific.collect();
    options
}

/// Sixteen bytes that do not compress, from two numbers.
fn scrambled() -> ScalarUDF {
    const WIDTH: usize = 16;
    let inputs = vec![DataType::Float64, DataType::Float64];
    create_udf(
        "scrambled",
        inputs,
        DataType::Binary,
        Volatility::Immutable,
        Arc::new(|arguments| {
            let columns = ColumnarValue::values_to_arrays(arguments)?;
            let (left, right) = (columns[0].as_primitive::<Float64Type>(), columns[1].as_primitive::<Float64Type>());
            let mut bytes = Vec::with_capacity(left.len() * WIDTH);
            for (left, right) in left.values().iter().zip(right.values()) {
                bytes.extend_from_slice(&scramble(left.to_bits()).to_le_bytes());
                bytes.extend_from_slice(&scramble(right.to_bits()).to_le_bytes());
            }
            let offsets = OffsetBuffer::from_repeated_length(WIDTH, left.len());
            let digests: ArrayRef = Arc::new(BinaryArray::try_new(offsets, bytes.into(), None)?);
            Ok(ColumnarValue::Array(digests))
        }),
    )
}

/// The finaliser of SplitMix64: two multiplications.
fn scramble(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// Ascending numbers; the argument only says how many.
fn counted() -> ScalarUDF {
    let next = AtomicI64::new(0);
    create_udf(
        "counted",
        vec![DataType::Float64],
        DataType::Int64,
        Volatility::Volatile,
        Arc::new(move |arguments| {
            let rows = match &arguments[0] {
                ColumnarValue::Array(column) => column.len() as i64,
                ColumnarValue::Scalar(_) => 1,
            };
            let first = next.fetch_add(rows, Ordering::Relaxed);
            let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(first..first + rows));
            Ok(ColumnarValue::Array(numbers))
        }),
    )
}
