//! What an online store may forget: nothing that a read at T ≥ `complete_since` with K = T could find, and all the rest.

use eadem_semantics::{ReadAt, RowOrder, TrimNewestFirst, trim_keeps, trim_mask};
use proptest::prelude::*;

use crate::oracle;
use crate::strategies::{GRID, anywhere, cases, facts, history, on_grid, row, wild_history};

fn winner_then(rows: &[RowOrder], t: i64) -> Option<oracle::Fact> {
    oracle::winner_at(&facts(rows), t.into(), t.into())
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn reads_from_complete_since_on_find_the_same(rows in history(), complete_since_us in on_grid()) {
        let kept = trim_keeps(&rows, complete_since_us);
        for t in complete_since_us..=*GRID.end() {
            prop_assert_eq!(winner_then(&kept, t), winner_then(&rows, t), "at {}", t);
        }
    }

    #[test]
    fn the_ends_of_the_range_are_instants_like_others(rows in wild_history(), complete_since_us in anywhere(), t in anywhere()) {
        let (complete_since_us, t) = (complete_since_us.min(t), complete_since_us.max(t));
        let kept = trim_keeps(&rows, complete_since_us);
        prop_assert_eq!(winner_then(&kept, t), winner_then(&rows, t));
    }

    #[test]
    fn every_kept_row_wins_once(rows in history(), complete_since_us in on_grid()) {
        let kept = trim_keeps(&rows, complete_since_us);
        let winners: Vec<_> = (complete_since_us..=*GRID.end()).filter_map(|t| winner_then(&rows, t)).collect();
        for fact in facts(&kept) {
            prop_assert!(winners.contains(&fact), "{:?} is kept and never wins", fact);
        }
        let mut without_repetitions = facts(&kept);
        without_repetitions.sort_unstable();
        without_repetitions.dedup();
        prop_assert_eq!(without_repetitions.len(), kept.len(), "a row is kept twice");
    }

    #[test]
    fn the_mask_names_the_kept_rows(rows in history(), complete_since_us in on_grid()) {
        let mask = trim_mask(&rows, complete_since_us);
        prop_assert_eq!(mask.len(), rows.len());
        let named: Vec<_> = rows.iter().zip(mask).filter(|(_, keep)| *keep).map(|(row, _)| *row).collect();
        prop_assert_eq!(named, trim_keeps(&rows, complete_since_us));
    }

    #[test]
    fn rows_that_come_newest_first_are_judged_one_by_one(rows in wild_history(), complete_since_us in anywhere()) {
        let mut newest_first = rows.clone();
        newest_first.sort_unstable_by(|a, b| b.cmp(a));
        let mut trim = TrimNewestFirst::new(complete_since_us);
        let one_by_one: Vec<_> = newest_first.iter().map(|row| trim.keeps(row)).collect();
        prop_assert_eq!(one_by_one, trim_mask(&newest_first, complete_since_us));
    }

    #[test]
    fn what_is_kept_does_not_depend_on_the_order_of_rows(rows in history(), complete_since_us in on_grid()) {
        let sorted = |mut rows: Vec<RowOrder>| { rows.sort_unstable(); rows };
        let backwards: Vec<_> = rows.iter().rev().copied().collect();
        prop_assert_eq!(sorted(trim_keeps(&rows, complete_since_us)), sorted(trim_keeps(&backwards, complete_since_us)));
    }

    /// Trim, receive late rows, trim again: reads stay those of the whole history.
    #[test]
    fn trimming_and_late_rows_in_turn_lose_nothing(
        early in history(), late in history(), first_us in on_grid(), later_us in on_grid(),
    ) {
        let (first_us, later_us) = (first_us.min(later_us), first_us.max(later_us));
        let stored = [trim_keeps(&early, first_us), late.clone()].concat();
        let stored = trim_keeps(&stored, later_us);
        let all = [early, late].concat();
        for t in later_us..=*GRID.end() {
            prop_assert_eq!(winner_then(&stored, t), winner_then(&all, t), "at {}", t);
        }
    }

    /// An erasure after a trim must not uncover a gap: what beat a forgotten row is erased no earlier than that row.
    #[test]
    fn trimming_and_erasing_agree(rows in history(), complete_since_us in on_grid(), up_to_us in on_grid()) {
        let erase = |rows: &[RowOrder]| oracle::left_by_erasure(&facts(rows), Some(up_to_us.into()));
        let trimmed_first = erase(&trim_keeps(&rows, complete_since_us));
        let never_trimmed = erase(&rows);
        for t in complete_since_us..=*GRID.end() {
            let at = |facts: &[oracle::Fact]| oracle::winner_at(facts, t.into(), t.into());
            prop_assert_eq!(at(&trimmed_first), at(&never_trimmed), "at {}", t);
        }
    }
}

#[test]
fn the_row_current_at_complete_since_stays() {
    let current = row(10, 10, 0);
    assert_eq!(trim_keeps(&[row(5, 5, 0), current], 100), [current]);
}

#[test]
fn rows_not_yet_visible_stay_beside_the_current_one() {
    let rows = [row(10, 10, 0), row(20, 500, 0), row(600, 0, 0)];
    assert_eq!(trim_mask(&rows, 100), [true, true, true]);
}

#[test]
fn a_row_that_is_beaten_before_it_is_seen_goes() {
    let beaten = row(20, 500, 0);
    let rows = [beaten, row(30, 400, 0)];
    assert_eq!(trim_mask(&rows, 0), [false, true]);
    assert_eq!(trim_mask(&[beaten], 0), [true]);
}

#[test]
fn one_of_equal_rows_stays() {
    let twice = row(1, 1, 1);
    assert_eq!(trim_keeps(&[twice, twice], 0), [twice]);
    assert!(trim_mask(&[], 0).is_empty());
}

#[test]
fn only_reads_that_know_what_was_known_then_are_complete() {
    // At K = 10 an earlier read about T = 100 saw the first version; once the correction wins at every T that trimming
    // promises, the first version is gone, and such a read is no longer answered from what is kept.
    let first = row(5, 5, 0);
    let correction = row(5, 50, 0);
    let kept = trim_keeps(&[first, correction], 60);
    assert_eq!(kept, [correction]);
    let earlier_knowledge = ReadAt { at_us: 100, known_by_us: 10 };
    assert_eq!(eadem_semantics::winner(kept, earlier_knowledge), None);
    assert_eq!(eadem_semantics::winner([first, correction], earlier_knowledge), Some(first));
}
