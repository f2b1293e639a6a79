//! Honest components: what goes in comes out, whatever the layout of the columns and the size of the batch.

use std::sync::Arc;

use arrow_array::builder::{Int64Builder, ListBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::Float64Type;
use arrow_array::{Array, ArrayRef, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray, new_null_array};
use arrow_buffer::{BooleanBuffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use eadem_engine::{CallClass, EngineError, Transform, generate_rows};
use eadem_values::{CANONICAL_NAN_F64, canonicalize};

use crate::support::{accepted, assert_same_bits, engine_with, shared, smuggled, x_to_y};

fn identity() -> Transform {
    accepted(shared(), "identity_all_types")
}

#[test]
fn every_type_comes_back_as_it_went_in() {
    let identity = identity();
    for seed in 0..5 {
        let columns = generate_rows(&identity.description().inputs, 700, seed);
        let applied = identity.apply(700, &columns, CallClass::Batch).unwrap();
        assert!(applied.rows.failed.is_empty() && applied.rows.dropped.is_empty());
        for ((field, before), after) in identity.description().outputs.iter().zip(&columns).zip(&applied.columns) {
            let what = format!("{} (seed {seed})", field.name);
            assert_same_bits(&canonicalize(before).unwrap(), after, &what);
            assert_eq!(after.data_type(), &field.data_type.to_arrow(), "{what}");
            after.to_data().validate_full().unwrap();
        }
    }
}

#[test]
fn slices_of_columns_are_the_rows_they_show() {
    let identity = identity();
    let columns = generate_rows(&identity.description().inputs, 200, 11);
    for (first_row, rows) in [(0, 200), (1, 7), (3, 8), (8, 64), (13, 100), (199, 1), (64, 64), (65, 130)] {
        let slices: Vec<ArrayRef> = columns.iter().map(|column| column.slice(first_row, rows)).collect();
        let applied = identity.apply(rows, &slices, CallClass::Serving).unwrap();
        for ((field, before), after) in identity.description().outputs.iter().zip(&slices).zip(&applied.columns) {
            let what = format!("{} rows {first_row}+{rows}", field.name);
            assert_same_bits(&canonicalize(before).unwrap(), after, &what);
        }
    }
}

#[test]
fn nulls_as_arrow_makes_them_are_nulls() {
    let identity = identity();
    let mut columns = generate_rows(&identity.description().inputs, 3, 5);
    for (field, column) in identity.description().inputs.iter().zip(&mut columns) {
        if field.nullable {
            // Its null vectors have null elements, which mean nothing.
            *column = new_null_array(&field.data_type.to_arrow(), 3);
        }
    }
    let applied = identity.apply(3, &columns, CallClass::Batch).unwrap();
    assert_eq!(applied.rows, Default::default());
    for (before, after) in columns.iter().zip(&applied.columns) {
        assert_eq!(before.null_count(), after.null_count());
    }
}

#[test]
fn one_row_at_a_time_is_the_same_as_all_at_once() {
    let identity = identity();
    let columns = generate_rows(&identity.description().inputs, 40, 5);
    let whole = identity.apply(40, &columns, CallClass::Batch).unwrap();
    for row in 0..40 {
        let one: Vec<ArrayRef> = columns.iter().map(|column| column.slice(row, 1)).collect();
        let alone = identity.apply(1, &one, CallClass::Serving).unwrap();
        for (whole, alone) in whole.columns.iter().zip(&alone.columns) {
            assert_same_bits(&whole.slice(row, 1), alone, &format!("row {row}"));
        }
    }
}

#[test]
fn more_rows_than_one_call_carries_are_cut_and_joined() {
    let test = engine_with(|config| config.call_rows_max = 16);
    let identity = accepted(&test.engine, "identity_all_types");
    let columns = generate_rows(&identity.description().inputs, 100, 3);
    let applied = identity.apply(100, &columns, CallClass::Batch).unwrap();
    for (before, after) in columns.iter().zip(&applied.columns) {
        assert_same_bits(&canonicalize(before).unwrap(), after, "cut in calls of 16 rows");
    }
}

#[test]
fn no_rows_give_columns_without_rows() {
    let identity = identity();
    let columns: Vec<ArrayRef> =
        generate_rows(&identity.description().inputs, 3, 1).iter().map(|column| column.slice(1, 0)).collect();
    let applied = identity.apply(0, &columns, CallClass::Batch).unwrap();
    assert_eq!(applied.columns.len(), identity.description().outputs.len());
    for (field, column) in identity.description().outputs.iter().zip(&applied.columns) {
        assert_eq!(column.len(), 0);
        assert_eq!(column.data_type(), &field.data_type.to_arrow());
    }
}

#[test]
fn nans_and_what_lies_under_nulls_never_matter() {
    let numeric = accepted(shared(), "bench_numeric");
    let nans = [0x7ff8_0000_0000_0000, 0xfff8_0000_0000_0001, 0x7ff0_0000_0000_0001, 0xffff_ffff_ffff_ffff];
    let amounts = |under_null: f64| {
        let values: Vec<f64> = nans.iter().map(|bits| f64::from_bits(*bits)).chain([under_null, 2.0]).collect();
        let valid = BooleanBuffer::from(vec![true, true, true, true, false, true]);
        Arc::new(Float64Array::new(ScalarBuffer::from(values), Some(NullBuffer::new(valid)))) as ArrayRef
    };
    let others: Vec<ArrayRef> = vec![
        Arc::new(Float64Array::from(vec![1.0; 6])),
        Arc::new(Int64Array::from(vec![4; 6])),
        Arc::new(TimestampMicrosecondArray::from(vec![0; 6]).with_timezone("UTC")),
    ];
    let apply = |amounts: ArrayRef| {
        let columns: Vec<ArrayRef> = std::iter::once(amounts).chain(others.iter().cloned()).collect();
        numeric.apply(6, &columns, CallClass::Serving).unwrap()
    };
    let clean = apply(amounts(0.0));
    let dirty = apply(amounts(f64::from_bits(0xfff8_dead_beef_0000)));
    for (clean, dirty) in clean.columns.iter().zip(&dirty.columns) {
        assert_same_bits(clean, dirty, "under a null");
    }
    let logarithms = clean.columns[0].as_primitive::<Float64Type>();
    for row in 0..4 {
        assert_eq!(logarithms.value(row).to_bits(), CANONICAL_NAN_F64.to_bits(), "row {row}");
    }
    assert!(logarithms.is_null(4));
    assert_eq!(logarithms.values()[4].to_bits(), 0, "a value under a null is zero when it leaves");
}

#[test]
fn elements_and_bytes_under_nulls_never_enter() {
    let identity = identity();
    let mut columns = generate_rows(&identity.description().inputs, 3, 21);
    let place = |name: &str| identity.description().inputs.iter().position(|field| field.name == name).unwrap();
    let middle_is_null = || NullBuffer::from(vec![true, false, true]);
    let offsets = || OffsetBuffer::new(ScalarBuffer::from(vec![0, 1, 3, 4]));
    let text = StringArray::new(offsets(), "a??b".as_bytes().into(), Some(middle_is_null()));
    columns[place("utf8_or_null")] = Arc::new(text);
    let mut builder = ListBuilder::new(Int64Builder::new());
    builder.append_value([Some(1)]);
    builder.append_value([Some(2), Some(3)]);
    builder.append_value([Some(4)]);
    let (_, offsets, elements, _) = builder.finish().into_parts();
    let item = Arc::new(arrow_schema::Field::new("item", arrow_schema::DataType::Int64, false));
    let lists = arrow_array::ListArray::new(item, offsets, elements, Some(middle_is_null()));
    columns[place("list_int64_or_null")] = Arc::new(lists);

    let applied = identity.apply(3, &columns, CallClass::Batch).unwrap();
    let texts = applied.columns[place("utf8_or_null")].as_string::<i32>();
    assert_eq!(texts.iter().collect::<Vec<_>>(), [Some("a"), None, Some("b")]);
    assert_eq!(texts.value_offsets(), [0, 1, 1, 2]);
    let lists = applied.columns[place("list_int64_or_null")].as_list::<i32>();
    assert_eq!(lists.value_offsets(), [0, 1, 1, 2]);
    assert!(lists.is_null(1));
}

#[test]
fn columns_that_are_not_the_declared_ones_are_the_callers_mistake() {
    let transform = smuggled(shared(), "poison_row", x_to_y("poison_row"));
    let input_error =
        |columns: &[ArrayRef], rows: usize| match transform.apply(rows, columns, CallClass::Batch).unwrap_err() {
            EngineError::Input { input, what } => format!("{input}: {what}"),
            other => panic!("{other}"),
        };
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
    let with_null: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None]));
    let floats: ArrayRef = Arc::new(Float64Array::from(vec![1.0, 2.0]));
    assert_eq!(input_error(&[], 2), "number 0: the transform has 1 inputs, 0 columns were passed");
    assert_eq!(
        input_error(&[numbers.clone(), numbers.clone()], 2),
        "number 1: the transform has 1 inputs, 2 columns were passed"
    );
    assert_eq!(input_error(std::slice::from_ref(&numbers), 3), "x: 2 rows were passed, the call has 3");
    assert_eq!(input_error(&[floats], 2), "x: it is declared int64, the column is Float64");
    assert_eq!(input_error(&[with_null], 2), "x: it is declared not nullable, the column has nulls");
    // A null outside of the slice that is passed is none.
    let with_null: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), Some(2), None]));
    assert!(transform.apply(2, &[with_null.slice(0, 2)], CallClass::Batch).is_ok());
}
