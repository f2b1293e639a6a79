//! Erasures.

use eadem_semantics::erased;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::oracle;
use crate::strategies::{anywhere, cases, fact, facts, wild_history};

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn erasures_remove_what_the_oracle_removes(rows in wild_history(), up_to_us in prop::option::of(anywhere())) {
        let left: Vec<_> = rows.iter().filter(|row| !erased(row.event_time_us, up_to_us)).map(fact).collect();
        prop_assert_eq!(left, oracle::left_by_erasure(&facts(&rows), up_to_us.map(i128::from)));
    }

    #[test]
    fn several_erasures_are_their_maximum(event_time_us in anywhere(), ups_to_us in vec(anywhere(), 0..4)) {
        let by_any = ups_to_us.iter().any(|up_to_us| erased(event_time_us, Some(*up_to_us)));
        prop_assert_eq!(erased(event_time_us, ups_to_us.iter().copied().max()), by_any);
    }
}

#[test]
fn the_last_erased_instant_is_erased() {
    assert!(erased(9, Some(10)));
    assert!(erased(10, Some(10)));
    assert!(!erased(11, Some(10)));
    assert!(!erased(i64::MIN, None));
}
