use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use eadem_query::{
    OnDemandInput, QueryError, ReadRows, ValidationPolicy, apply_default, compute_on_read, evaluate_on_demand,
    project_feature, run_transform, status_dictionary,
};
use eadem_semantics::{Lifetime, Status};
use eadem_values::{Constraint, Literal, Value};

use crate::support::{adder, adder_with, int64};

use Status::{Error, Expired, Missing, Null, Present};

fn evaluate(
    a: &[(Option<i64>, Status)],
    b: &[Option<i64>],
) -> Result<(Vec<Option<i64>>, Vec<Status>, Vec<(usize, String)>), QueryError> {
    let values: Vec<Option<i64>> = a.iter().map(|(value, _)| *value).collect();
    let statuses = a.iter().map(|(_, status)| *status).collect();
    let inputs = [
        OnDemandInput { values: int64(&values), statuses: Some(statuses) },
        OnDemandInput { values: int64(b), statuses: None },
    ];
    let output = evaluate_on_demand(adder().as_ref(), &ValidationPolicy::RefuseRow.into(), a.len(), &inputs)?;
    let sums = output.columns[0].as_primitive::<Int64Type>().iter().collect();
    Ok((sums, output.statuses[0].to_vec(), output.errors))
}

#[test]
fn a_null_that_the_transform_does_not_accept_passes_its_status_on() {
    let a = [
        (Some(1), Present),
        (None, Missing),
        (None, Expired),
        (None, Error),
        (None, Null),
        (Some(5), Present),
        (Some(6), Present),
        (Some(7), Present),
    ];
    let b = [Some(1), Some(1), Some(1), Some(1), Some(1), None, Some(7), Some(7)];
    let (sums, statuses, errors) = evaluate(&a, &b).unwrap();
    assert_eq!(sums, [Some(2), None, None, None, None, None, None, None]);
    assert_eq!(statuses, [Present, Missing, Expired, Error, Null, Null, Null, Error]);
    assert_eq!(errors, [(7, "fourteen".to_owned())]);
}

#[test]
fn no_row_and_no_computed_row_are_fine() {
    assert_eq!(evaluate(&[], &[]).unwrap(), (vec![], vec![], vec![]));
    let (sums, statuses, _) = evaluate(&[(None, Missing)], &[None]).unwrap();
    assert_eq!((sums, statuses), (vec![None], vec![Missing]));
}

#[test]
fn a_transform_that_cannot_run_is_an_error_not_a_status() {
    assert!(matches!(evaluate(&[(Some(90), Present)], &[Some(9)]), Err(QueryError::Transform(_))));
}

#[test]
fn one_row_alone_is_the_same_as_in_a_batch() {
    let a: Vec<_> = (0..40).map(|row| if row % 5 == 0 { (None, Missing) } else { (Some(row), Present) }).collect();
    let b: Vec<_> = (0..40).map(|row| (row % 7 != 0).then_some(row % 3)).collect();
    let (sums, statuses, _) = evaluate(&a, &b).unwrap();
    for row in 0..a.len() {
        let (sum, status, _) = evaluate(&a[row..=row], &b[row..=row]).unwrap();
        assert_eq!((sum[0], status[0]), (sums[row], statuses[row]), "row {row}");
    }
}

fn reads() -> ReadRows {
    ReadRows {
        event_times_us: vec![Some(0), Some(0), None, Some(0), Some(0), Some(0)],
        failed: vec![false, false, false, true, false, false],
        at_us: vec![9, 9, 9, 9, 10, 20],
    }
}

#[test]
fn values_that_are_not_present_are_null_and_defaults_come_last() {
    let values = int64(&[Some(1), None, Some(3), Some(4), Some(5), Some(6)]);
    let (projected, statuses) = project_feature(&values, &reads().statuses(Lifetime::with_ttl(10)).into()).unwrap();
    assert_eq!(*statuses, [Present, Null, Missing, Error, Expired, Missing]);
    let seen: Vec<_> = projected.as_primitive::<Int64Type>().iter().collect();
    assert_eq!(seen, [Some(1), None, None, None, None, None]);
    let served = apply_default(&projected, &statuses, &Value::Int64(-1)).unwrap();
    let seen: Vec<_> = served.as_primitive::<Int64Type>().iter().collect();
    assert_eq!(seen, [Some(1), Some(-1), Some(-1), Some(-1), Some(-1), Some(-1)]);
    let names: Vec<String> = (0..statuses.len())
        .map(|row| {
            let column = status_dictionary(&statuses);
            let column = column.as_dictionary::<arrow_array::types::Int8Type>();
            column.values().as_string::<i32>().value(column.keys().value(row) as usize).to_owned()
        })
        .collect();
    assert_eq!(names, ["present", "null", "missing", "error", "expired", "missing"]);
}

#[test]
fn on_read_runs_only_on_rows_that_are_served() {
    let mut reads = reads();
    // `a` is null wherever nothing is served: reaching the transform would panic there.
    let inputs = [
        int64(&[Some(1), Some(7), None, None, None, None]),
        int64(&[Some(2), Some(7), Some(1), Some(1), Some(1), Some(1)]),
    ];
    let lifetime = Lifetime::with_ttl(10);
    let columns =
        compute_on_read(adder().as_ref(), &ValidationPolicy::NullValue.into(), &inputs, &mut reads, lifetime).unwrap();
    let (values, statuses) = project_feature(&columns[0], &reads.statuses(lifetime).into()).unwrap();
    assert_eq!(*statuses, [Present, Error, Missing, Error, Expired, Missing]);
    assert_eq!(values.as_primitive::<Int64Type>().iter().collect::<Vec<_>>(), [Some(3), None, None, None, None, None]);
}

#[test]
fn long_columns_run_in_batches_and_keep_their_row_numbers() {
    let rows = 2 * eadem_query::BATCH_ROWS + 5;
    let a: Vec<Option<i64>> = (0..rows as i64).map(|row| Some(if row % 1000 == 0 { 14 } else { row + 1000 })).collect();
    let b = vec![Some(0); rows];
    let result =
        run_transform(adder().as_ref(), &ValidationPolicy::RefuseRow.into(), rows, &[int64(&a), int64(&b)]).unwrap();
    let failed: Vec<u32> = result.failed.iter().map(|failure| failure.row).collect();
    assert_eq!(failed, (0..rows as u32).step_by(1000).collect::<Vec<_>>());
    assert_eq!(result.columns[0].len(), rows);
    let sums = result.columns[0].as_primitive::<Int64Type>();
    assert!((0..rows).all(|row| sums.is_null(row) == (row % 1000 == 0)));
    assert_eq!(sums.value(rows - 1), rows as i64 - 1 + 1000);
}

/// Row numbers of errors count in the columns passed, not in the batch that happened to be at work.
#[test]
fn an_error_in_a_later_batch_names_the_row_of_the_whole() {
    let rows = 2 * eadem_query::BATCH_ROWS;
    let at_fault = eadem_query::BATCH_ROWS + 7;
    let b = int64(&vec![Some(0); rows]);
    let with_fault = |fault: i64| -> Vec<Option<i64>> {
        (0..rows).map(|row| Some(if row == at_fault { fault } else { 1 })).collect()
    };
    let broken = run_transform(
        adder().as_ref(),
        &ValidationPolicy::RefuseRow.into(),
        rows,
        &[int64(&with_fault(99)), b.clone()],
    );
    let Err(QueryError::Transform(failure)) = broken else { panic!("the transform should have broken off") };
    assert_eq!(failure.row, Some(at_fault as u32));
    assert_eq!(failure.to_string(), format!("transform adder, row {at_fault}: broke off"));

    let limited = adder_with(vec![Constraint::Max(Literal::Int64(50))]);
    let stopped =
        run_transform(limited.as_ref(), &ValidationPolicy::StopJob.into(), rows, &[int64(&with_fault(70)), b])
            .unwrap_err();
    assert!(matches!(stopped, QueryError::Stopped { row, .. } if row == at_fault), "{stopped}");
}

/// Where only some rows are computed, the others are counted too.
#[test]
fn an_error_on_a_computed_row_names_the_row_of_the_request() {
    let broken = evaluate(&[(None, Missing), (Some(1), Present), (Some(90), Present)], &[Some(1), Some(1), Some(9)]);
    let Err(QueryError::Transform(failure)) = broken else { panic!("the transform should have broken off") };
    assert_eq!(failure.row, Some(2));
}
