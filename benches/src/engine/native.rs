//! The same crates without the engine: a loop over Arrow arrays, as one would write it in a native pipeline.

use std::sync::Arc;

use ::bench_numeric::{Payment, bench_numeric};
use ::bench_string::{Merchant, bench_string};
use anyhow::Result;
use arrow_array::builder::{Float64Builder, Int64Builder, StringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, PrimitiveArray, RecordBatch};
use arrow_schema::SchemaRef;
use eadem::Timestamp;

fn value<T: ArrowPrimitiveType>(column: &PrimitiveArray<T>, row: usize) -> Option<T::Native> {
    column.is_valid(row).then(|| column.value(row))
}

/// `bench_numeric` over a batch of payments.
pub(super) fn numeric(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let rows = batch.num_rows();
    let amounts = batch.column(0).as_primitive::<Float64Type>();
    let numerators = batch.column(1).as_primitive::<Float64Type>();
    let denominators = batch.column(2).as_primitive::<Int64Type>();
    let instants = batch.column(3).as_primitive::<TimestampMicrosecondType>();
    let mut log_amount = Float64Builder::with_capacity(rows);
    let mut ratio = Float64Builder::with_capacity(rows);
    let mut hour_sin = Float64Builder::with_capacity(rows);
    let mut hour_cos = Float64Builder::with_capacity(rows);
    for row in 0..rows {
        let features = bench_numeric(Payment {
            amount: value(amounts, row),
            a: value(numerators, row),
            b: value(denominators, row),
            ts: value(instants, row).map(Timestamp::from_micros),
        });
        log_amount.append_option(features.log_amount);
        ratio.append_option(features.ratio);
        hour_sin.append_option(features.hour_sin);
        hour_cos.append_option(features.hour_cos);
    }
    let columns: Vec<Arc<dyn Array>> = vec![
        Arc::new(log_amount.finish()),
        Arc::new(ratio.finish()),
        Arc::new(hour_sin.finish()),
        Arc::new(hour_cos.finish()),
    ];
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

/// `bench_string` over a batch of merchants.
pub(super) fn string(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let rows = batch.num_rows();
    let names = batch.column(0).as_string::<i32>();
    let mut lower = StringBuilder::with_capacity(rows, names.value_data().len());
    let mut bucket = Int64Builder::with_capacity(rows);
    for row in 0..rows {
        let features = bench_string(Merchant { s: names.is_valid(row).then(|| names.value(row)) });
        lower.append_option(features.lower);
        bucket.append_option(features.bucket);
    }
    let columns: Vec<Arc<dyn Array>> = vec![Arc::new(lower.finish()), Arc::new(bucket.finish())];
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}
