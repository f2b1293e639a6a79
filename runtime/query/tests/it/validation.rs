//! What every policy does with every constraint of every type, and with bounds.

use std::collections::BTreeMap;

use eadem_query::{OutlierBound, QueryError, RefusedValue, Validation, ValidationPolicy, validate_outputs};
use eadem_values::{Constraint, DataType, ElementType, Field, Literal, Value, array_from_values, value_at};

const NAN: Value = Value::Float64(f64::NAN);

fn text(text: &str) -> Value {
    Value::Utf8(text.to_owned())
}

fn field(data_type: DataType, nullable: bool, constraints: Vec<Constraint>) -> Field {
    let mut field = Field::new("x", data_type, nullable);
    field.constraints = constraints;
    field
}

fn under(
    field: &Field,
    values: &[Value],
    validation: &Validation,
) -> Result<(Vec<Value>, Vec<RefusedValue>), QueryError> {
    let column = array_from_values(field.data_type, values).unwrap();
    let (columns, refused) = validate_outputs(std::slice::from_ref(field), vec![column], validation, &|_| false)?;
    Ok(((0..values.len()).map(|row| value_at(columns[0].as_ref(), row).unwrap()).collect(), refused))
}

fn same(left: &[Value], right: &[Value]) -> bool {
    left.len() == right.len() && left.iter().zip(right).all(|(left, right)| left.bits_eq(right))
}

/// `clamped` is what clamping makes of the values: the value itself where nothing is broken, a limit, or null where there is
/// none and the field may be null. Everything else follows from the policies' definitions.
fn check(
    data_type: DataType,
    validation: &Validation,
    constraints: Vec<Constraint>,
    values: &[Value],
    clamped: &[Value],
) {
    let is_broken: Vec<bool> = values.iter().zip(clamped).map(|(value, kept)| !value.bits_eq(kept)).collect();
    assert!(is_broken.contains(&true) && is_broken.contains(&false), "{constraints:?} breaks all or nothing");
    let refused_rows = |refused: &[RefusedValue]| refused.iter().map(|value| value.row).collect::<Vec<_>>();
    let with = |policy: ValidationPolicy| Validation { policy, ..validation.clone() };
    let not_null = constraints.contains(&Constraint::NotNull);
    let what = |policy: &str, found: &[Value]| format!("{data_type}, {constraints:?}, {policy}: {found:?}");
    for nullable in [true, false] {
        if not_null && !nullable {
            continue;
        }
        let field = field(data_type, nullable, constraints.clone());
        let accepts_null = field.accepts_null();
        let broken: Vec<usize> = (0..values.len()).filter(|row| is_broken[*row]).collect();
        // Where there is no null to put, a value that cannot be mended refuses its row.
        let kept_by = |repaired: &dyn Fn(usize) -> Value| -> (Vec<Value>, Vec<usize>) {
            let refused = |row: usize| is_broken[row] && repaired(row).is_null() && !accepts_null;
            let value = |row: usize| match (is_broken[row], refused(row)) {
                (false, _) => values[row].clone(),
                (true, true) => Value::Null,
                (true, false) => repaired(row),
            };
            let rows = 0..values.len();
            (rows.clone().map(value).collect(), rows.filter(|row| refused(*row)).collect())
        };

        let (found, refused) = under(&field, values, &with(ValidationPolicy::RefuseRow)).unwrap();
        let expected: Vec<Value> =
            (0..values.len()).map(|row| if is_broken[row] { Value::Null } else { values[row].clone() }).collect();
        assert!(same(&found, &expected), "{}", what("refuse_row", &found));
        assert_eq!(refused_rows(&refused), broken);
        assert!(refused.iter().all(|value| value.policy == ValidationPolicy::RefuseRow));

        let (found, refused) = under(&field, values, &with(ValidationPolicy::NullValue)).unwrap();
        let (expected, rows) = kept_by(&|_| Value::Null);
        assert!(same(&found, &expected), "{}", what("null_value", &found));
        assert_eq!(refused_rows(&refused), rows);

        let (found, refused) = under(&field, values, &with(ValidationPolicy::Clamp)).unwrap();
        let (expected, rows) = kept_by(&|row| clamped[row].clone());
        assert!(same(&found, &expected), "{}", what("clamp", &found));
        assert_eq!(refused_rows(&refused), rows);

        let stopped = under(&field, values, &with(ValidationPolicy::StopJob)).unwrap_err();
        assert!(matches!(stopped, QueryError::Stopped { row, .. } if row == broken[0]), "{stopped}");
    }
}

#[test]
fn every_constraint_of_every_type_under_every_policy() {
    use Value::{Binary, Boolean, Float32, Float64, Int64, ListFloat64, ListInt64, ListUtf8, Null, Timestamp};
    let plain = Validation::default();
    let check = |data_type, constraint: Constraint, values: &[Value], clamped: &[Value]| {
        check(data_type, &plain, vec![constraint], values, clamped);
    };
    let (low, high) = (|| Constraint::Min(Literal::Int64(0)), || Constraint::Max(Literal::Int64(9)));
    check(DataType::Int64, low(), &[Int64(0), Int64(-1), Int64(i64::MIN)], &[Int64(0), Int64(0), Int64(0)]);
    check(DataType::Int64, high(), &[Int64(9), Int64(10), Int64(i64::MAX)], &[Int64(9), Int64(9), Int64(9)]);
    check(DataType::Timestamp, low(), &[Timestamp(0), Timestamp(-1)], &[Timestamp(0), Timestamp(0)]);
    check(DataType::Timestamp, high(), &[Timestamp(9), Timestamp(10)], &[Timestamp(9), Timestamp(9)]);
    let infinite = Float64(f64::NEG_INFINITY);
    check(
        DataType::Float64,
        low(),
        &[Float64(-0.0), Float64(-1e-300), infinite, Float64(f64::INFINITY), NAN],
        &[Float64(-0.0), Float64(0.0), Float64(0.0), Float64(f64::INFINITY), Null],
    );
    check(
        DataType::Float64,
        high(),
        &[Float64(9.0), Float64(9.000_000_1), Float64(f64::INFINITY), NAN],
        &[Float64(9.0), Float64(9.0), Float64(9.0), Null],
    );
    let tenth = Constraint::Max(Literal::Float64(0.1));
    check(
        DataType::Float32,
        tenth,
        &[Float32(0.1), Float32(0.2), Float32(f32::NAN)],
        &[Float32(0.1), Float32(0.1), Null],
    );
    check(DataType::Float32, low(), &[Float32(0.0), Float32(-1.0)], &[Float32(0.0), Float32(0.0)]);

    let allowed = |values: Vec<Literal>| Constraint::Allowed(values);
    check(
        DataType::Boolean,
        allowed(vec![Literal::Boolean(true)]),
        &[Boolean(true), Boolean(false)],
        &[Boolean(true), Null],
    );
    check(
        DataType::Int64,
        allowed(vec![Literal::Int64(1), Literal::Int64(3)]),
        &[Int64(3), Int64(2)],
        &[Int64(3), Null],
    );
    check(DataType::Float64, allowed(vec![Literal::Float64(0.5)]), &[Float64(0.5), NAN], &[Float64(0.5), Null]);
    check(
        DataType::Utf8,
        allowed(vec![Literal::Utf8("a".into())]),
        &[text("a"), text("A"), text("")],
        &[text("a"), Null, Null],
    );

    let length = || Constraint::Length { min: 1, max: 2 };
    // Bytes, not characters.
    check(DataType::Utf8, length(), &[text("é"), text(""), text("éa")], &[text("é"), Null, Null]);
    check(DataType::Binary, length(), &[Binary(vec![0]), Binary(vec![0; 3])], &[Binary(vec![0]), Null]);
    let integers = DataType::List(ElementType::Int64);
    check(integers, length(), &[ListInt64(vec![1, 2]), ListInt64(vec![])], &[ListInt64(vec![1, 2]), Null]);
    let floats = DataType::List(ElementType::Float64);
    check(floats, length(), &[ListFloat64(vec![0.0]), ListFloat64(vec![0.0; 3])], &[ListFloat64(vec![0.0]), Null]);
    let texts = DataType::List(ElementType::Utf8);
    check(texts, length(), &[ListUtf8(vec!["a".into()]), ListUtf8(vec![])], &[ListUtf8(vec!["a".into()]), Null]);
}

/// There is nothing to put in the place of a null that may not be: the row is refused, whatever the policy would like.
#[test]
fn a_null_that_may_not_be_refuses_its_row() {
    for data_type in [DataType::Int64, DataType::Utf8, DataType::Vector(2), DataType::List(ElementType::Int64)] {
        let field = field(data_type, true, vec![Constraint::NotNull]);
        for policy in [ValidationPolicy::RefuseRow, ValidationPolicy::NullValue, ValidationPolicy::Clamp] {
            let (_, refused) = under(&field, &[Value::Null], &policy.into()).unwrap();
            assert_eq!((refused.len(), refused[0].row, refused[0].rule.as_str()), (1, 0, "not_null"), "{data_type}");
        }
        assert!(under(&field, &[Value::Null], &ValidationPolicy::StopJob.into()).is_err());
    }
    // A value that another constraint makes null does not get past it either.
    let limited = field(DataType::Int64, true, vec![Constraint::Max(Literal::Int64(9)), Constraint::NotNull]);
    let (_, refused) = under(&limited, &[Value::Int64(10)], &ValidationPolicy::NullValue.into()).unwrap();
    assert_eq!(refused[0].reason, "`x` = 10 breaks max = 9");
}

fn bounded(bound: OutlierBound) -> Validation {
    Validation { policy: ValidationPolicy::RefuseRow, bounds: BTreeMap::from([("x".to_owned(), bound)]) }
}

#[test]
fn bounds_of_every_type_under_every_policy() {
    use Value::{Float32, Float64, Int64, Null, Timestamp};
    let between = |min: Value, max: Value| OutlierBound { min: Some(min), max: Some(max), ..OutlierBound::default() };
    let check = |data_type, bound: OutlierBound, values: &[Value], clamped: &[Value]| {
        check(data_type, &bounded(bound), vec![], values, clamped);
    };
    check(
        DataType::Int64,
        between(Int64(-1), Int64(1)),
        &[Int64(0), Int64(-2), Int64(2), Null],
        &[Int64(0), Int64(-1), Int64(1), Null],
    );
    check(
        DataType::Timestamp,
        between(Timestamp(-1), Timestamp(1)),
        &[Timestamp(1), Timestamp(2)],
        &[Timestamp(1), Timestamp(1)],
    );
    check(
        DataType::Float32,
        between(Float32(0.0), Float32(1.0)),
        &[Float32(1.0), Float32(1.000_001), Float32(f32::NEG_INFINITY), Float32(f32::NAN)],
        &[Float32(1.0), Float32(1.0), Float32(0.0), Null],
    );
    let (most, least) = (Float64(f64::INFINITY), Float64(f64::NEG_INFINITY));
    let from_zero = OutlierBound { min: Some(Float64(0.0)), ..OutlierBound::default() };
    // An infinity has no limit on its side to go to.
    check(
        DataType::Float64,
        from_zero.clone(),
        &[Float64(1e300), least.clone(), most.clone(), NAN],
        &[Float64(1e300), Float64(0.0), Null, Null],
    );
    let lenient = OutlierBound { allow_nan: true, allow_infinite: true, ..from_zero };
    check(DataType::Float64, lenient, &[most.clone(), NAN, least.clone()], &[most.clone(), NAN, Float64(0.0)]);
    let finite = OutlierBound::default();
    check(DataType::Float64, finite, &[Float64(f64::MAX), most, least, NAN], &[Float64(f64::MAX), Null, Null, Null]);
}

#[test]
fn bounds_come_before_constraints_and_a_kept_value_satisfies_both() {
    use Value::{Int64, Null};
    let clamp = |bound: OutlierBound| {
        let mut validation = bounded(bound);
        validation.policy = ValidationPolicy::Clamp;
        validation
    };
    let at_most = |max: i64| OutlierBound { max: Some(Int64(max)), ..OutlierBound::default() };
    let odd = field(DataType::Int64, true, vec![Constraint::Allowed(vec![Literal::Int64(1), Literal::Int64(5)])]);
    let (kept, _) = under(&odd, &[Int64(1), Int64(5)], &clamp(at_most(3))).unwrap();
    assert_eq!(kept, [Int64(1), Null], "the limit itself is not allowed");
    let overlapping = field(DataType::Int64, true, vec![Constraint::Min(Literal::Int64(5))]);
    let (kept, _) = under(&overlapping, &[Int64(-7), Int64(50)], &clamp(at_most(10))).unwrap();
    assert_eq!(kept, [Int64(5), Int64(10)]);

    // A policy of its own, beside that of the view.
    let own = bounded(OutlierBound { policy: Some(ValidationPolicy::Clamp), ..at_most(10) });
    let (kept, refused) = under(&overlapping, &[Int64(50), Int64(1)], &own).unwrap();
    assert_eq!((kept, refused.len(), refused[0].row), (vec![Int64(10), Null], 1, 1));
    assert_eq!(refused[0].reason, "`x` = 1 breaks min = 5");
}

/// A row is named once, by a rule that refuses rows if there is one: with it goes what a lenient rule would have kept.
#[test]
fn a_row_with_several_refused_values_is_refused_once() {
    let fields = [Field::new("a", DataType::Int64, false), Field::new("b", DataType::Int64, true)];
    let column = |value: i64| array_from_values(DataType::Int64, &[Value::Int64(value)]).unwrap();
    let zero = |policy| OutlierBound { max: Some(Value::Int64(0)), policy: Some(policy), ..OutlierBound::default() };
    let bounds = BTreeMap::from([
        ("a".to_owned(), zero(ValidationPolicy::NullValue)),
        ("b".to_owned(), zero(ValidationPolicy::RefuseRow)),
    ]);
    let validation = Validation { policy: ValidationPolicy::Clamp, bounds };
    let (_, refused) = validate_outputs(&fields, vec![column(1), column(1)], &validation, &|_| false).unwrap();
    assert_eq!((refused.len(), refused[0].field.as_str(), refused[0].rule.as_str()), (1, "b", "bounds max = 0"));
    let (_, refused) = validate_outputs(&fields, vec![column(1), column(0)], &validation, &|_| false).unwrap();
    assert_eq!((refused.len(), refused[0].policy), (1, ValidationPolicy::NullValue), "nothing mends it");
    let (_, refused) = validate_outputs(&fields, vec![column(1), column(1)], &validation, &|_| true).unwrap();
    assert!(refused.is_empty(), "a row without a result is not looked at");
}

#[test]
fn a_bound_that_does_not_fit_its_type_is_an_error_and_no_verdict() {
    let bound = OutlierBound { max: Some(Value::Int64(1)), ..OutlierBound::default() };
    for data_type in [DataType::Float64, DataType::Utf8] {
        let error = under(&field(data_type, true, vec![]), &[Value::Null], &bounded(bound.clone())).unwrap_err();
        assert!(matches!(error, QueryError::Shape(_)), "{error}");
    }
}
