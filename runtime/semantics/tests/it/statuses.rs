//! What is served, and why.

use eadem_semantics::{Lifetime, ReadAt, Served, Status, resolve_status, serve, winner};
use eadem_values::Value;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::oracle::{self, Verdict};
use crate::strategies::{anywhere, cases, facts, row, wild_history};

fn named(verdict: Verdict) -> Status {
    match verdict {
        Verdict::Present => Status::Present,
        Verdict::Null => Status::Null,
        Verdict::Missing => Status::Missing,
        Verdict::Expired => Status::Expired,
        Verdict::Error => Status::Error,
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn the_status_is_the_oracles(
        rows in wild_history(), at_us in anywhere(), known_by_us in anywhere(), failed in any::<bool>(), null in any::<bool>(),
        ttl_us in prop::option::of(0_i64..12), horizon_us in prop::option::of(0_i64..12),
    ) {
        let lifetime = Lifetime { ttl_us, horizon_us };
        let found = winner(rows.iter().copied(), ReadAt { at_us, known_by_us });
        let status = resolve_status(found.as_ref(), failed, null, lifetime, at_us);

        let best = oracle::winner_at(&facts(&rows), at_us.into(), known_by_us.into());
        let wide = |us: Option<i64>| us.map(i128::from);
        let expected = oracle::verdict_at(best, failed, null, wide(ttl_us), wide(horizon_us), at_us.into());
        prop_assert_eq!(status, named(expected));
    }

    #[test]
    fn the_worst_of_several_does_not_depend_on_their_order(statuses in vec(select(Status::ALL.to_vec()), 0..6)) {
        let severity = |status: Status| ["present", "null", "missing", "expired", "error"]
            .iter().position(|name| *name == status.name()).unwrap();
        let mut expected = Status::Present;
        for status in &statuses {
            if severity(*status) > severity(expected) {
                expected = *status;
            }
        }
        prop_assert_eq!(Status::worst(statuses.iter().copied()), expected);
        prop_assert_eq!(Status::worst(statuses.iter().rev().copied()), expected);
    }
}

#[test]
fn an_older_row_never_stands_in_for_an_expired_one() {
    let lifetime = Lifetime { ttl_us: Some(10), horizon_us: None };
    let fresh_but_beaten = row(95, 95, 0);
    let newest = row(96, 96, 0);
    let found = winner([fresh_but_beaten, newest], ReadAt::as_known_then(106));
    assert_eq!(found, Some(newest));
    assert_eq!(resolve_status(found.as_ref(), false, false, lifetime, 106), Status::Expired);
}

#[test]
fn age_comes_before_what_the_row_says() {
    let lifetime = Lifetime::with_ttl(10);
    let stored = row(0, 0, 0);
    let status = |failed, null, at_us| resolve_status(Some(&stored), failed, null, lifetime, at_us);
    assert_eq!(status(true, true, 9), Status::Error);
    assert_eq!(status(false, true, 9), Status::Null);
    assert_eq!(status(false, false, 9), Status::Present);
    assert_eq!(status(true, true, 10), Status::Expired);
    assert_eq!(status(true, true, 20), Status::Missing);
    assert_eq!(resolve_status(None, true, true, lifetime, 9), Status::Missing);
}

#[test]
fn defaults_fill_in_and_the_status_stays() {
    let default = Value::Int64(7);
    for status in Status::ALL {
        let expected = if status == Status::Present { Value::Int64(1) } else { Value::Int64(7) };
        assert_eq!(serve(status, Value::Int64(1), Some(&default)), Served { value: expected, status });
    }
}

#[test]
fn without_default_only_a_present_value_is_served() {
    for status in Status::ALL {
        let expected = if status == Status::Present { Value::Int64(1) } else { Value::Null };
        assert_eq!(serve(status, Value::Int64(1), None), Served { value: expected, status });
    }
}

#[test]
fn statuses_have_the_names_of_the_interface() {
    let names = Status::ALL.map(Status::name);
    assert_eq!(names, ["present", "null", "missing", "expired", "error"]);
    for status in Status::ALL {
        assert_eq!(status.to_string().parse(), Ok(status));
        assert_eq!(status.to_string(), status.name());
    }
    let message = "stale".parse::<Status>().unwrap_err().to_string();
    assert_eq!(message, "unknown status `stale`; statuses are present, missing, expired, null, error");
}
