//! Which row wins.

use eadem_semantics::{ReadAt, RowOrder, is_candidate, winner};
use proptest::prelude::*;

use crate::oracle;
use crate::strategies::{anywhere, cases, fact, facts, history, on_grid, row, wild_history};

fn read(at_us: i64, known_by_us: i64) -> ReadAt {
    ReadAt { at_us, known_by_us }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn the_winner_is_the_oracles(rows in wild_history(), at_us in anywhere(), known_by_us in anywhere()) {
        let found = winner(rows.iter().copied(), read(at_us, known_by_us));
        let expected = oracle::winner_at(&facts(&rows), at_us.into(), known_by_us.into());
        prop_assert_eq!(found.as_ref().map(fact), expected);
    }

    #[test]
    fn candidates_are_the_oracles(rows in wild_history(), at_us in anywhere(), known_by_us in anywhere()) {
        for row in &rows {
            let expected = oracle::may_see(fact(row), at_us.into(), known_by_us.into());
            prop_assert_eq!(is_candidate(row, read(at_us, known_by_us)), expected);
        }
    }

    #[test]
    fn the_order_of_rows_is_the_order_of_their_numbers(rows in wild_history()) {
        for a in &rows {
            for b in &rows {
                prop_assert_eq!(a.cmp(b), fact(a).cmp(&fact(b)));
            }
        }
    }

    /// Replays, retries and any partitioning: merging winners of parts by maximum gives the winner of the whole.
    #[test]
    fn parts_merge_in_any_order_and_number(
        rows in history(), shuffled in Just(()).prop_perturb(|(), rng| rng), at_us in on_grid(), parts in 1_usize..4,
    ) {
        let whole = winner(rows.iter().copied(), ReadAt::as_known_then(at_us));
        let mut rng = shuffled;
        let mut of_parts = vec![Vec::<RowOrder>::new(); parts];
        for row in &rows {
            for _ in 0..rng.random_range(1..3) {
                of_parts[rng.random_range(0..parts)].push(*row);
            }
        }
        let merged = of_parts.into_iter().rev().filter_map(|part| winner(part, ReadAt::as_known_then(at_us))).max();
        prop_assert_eq!(merged, whole);
    }
}

#[test]
fn default_reads_know_what_was_known_then() {
    assert_eq!(ReadAt::as_known_then(5), read(5, 5));
    assert_eq!(ReadAt::with_hindsight(5), read(5, i64::MAX));
}

#[test]
fn a_correction_wins_once_it_is_known_and_not_before() {
    let first = row(10, 11, 9);
    let correction = row(10, 20, 1);
    for (known_by_us, expected) in [(10, None), (11, Some(first)), (19, Some(first)), (20, Some(correction))] {
        assert_eq!(winner([correction, first], read(30, known_by_us)), expected, "known by {known_by_us}");
    }
}

#[test]
fn a_later_event_wins_over_a_later_correction() {
    assert_eq!(winner([row(10, 99, 9), row(11, 11, 0)], read(100, 100)), Some(row(11, 11, 0)));
}

#[test]
fn equal_times_are_settled_by_the_tie_digest() {
    let lesser = row(1, 1, 0x00ff);
    let greater = row(1, 1, 1 << 127);
    assert_eq!(winner([greater, lesser], read(1, 1)), Some(greater));
    assert_eq!(winner([lesser, greater], read(1, 1)), Some(greater));
}

#[test]
fn rows_ahead_of_the_clock_become_visible_to_the_microsecond() {
    let ahead = row(1_000_000, 1_000_000, 0);
    let current = row(10, 10, 0);
    for (now_us, expected) in [(999_999, current), (1_000_000, ahead), (1_000_001, ahead)] {
        assert_eq!(winner([ahead, current], ReadAt::as_known_then(now_us)), Some(expected));
    }
}

#[test]
fn a_row_known_late_stays_hidden_behind_its_known_at() {
    let landed = row(100, 500, 0);
    assert_eq!(winner([landed], ReadAt::as_known_then(499)), None);
    assert_eq!(winner([landed], ReadAt::as_known_then(500)), Some(landed));
    assert_eq!(winner([landed], ReadAt::with_hindsight(100)), Some(landed));
    assert_eq!(winner([landed], ReadAt::with_hindsight(99)), None);
}

#[test]
fn a_row_known_before_it_happens_waits_for_its_event_time() {
    let announced = row(500, 100, 0);
    assert_eq!(winner([announced], ReadAt::as_known_then(499)), None);
    assert_eq!(winner([announced], ReadAt::as_known_then(500)), Some(announced));
}

#[test]
fn nobody_wins_among_none() {
    assert_eq!(winner([], ReadAt::with_hindsight(i64::MAX)), None);
}
