//! Known-at cuts: the slot of a row, found by trying every T.

use eadem_semantics::{KnownAtCut, ReadAt, is_candidate, winner};
use proptest::prelude::*;

use crate::oracle;
use crate::strategies::{GRID, cases, fact, facts, history, on_grid, row};

fn any_cut() -> impl Strategy<Value = KnownAtCut> {
    prop_oneof![Just(KnownAtCut::Spine), on_grid().prop_map(KnownAtCut::Fixed), Just(KnownAtCut::None)]
}

/// K for a spine row at T, from the text: K = T; one K for all; no cut.
fn knowledge(cut: KnownAtCut, t: i64) -> i128 {
    match cut {
        KnownAtCut::Spine => i128::from(t),
        KnownAtCut::Fixed(k) => i128::from(k),
        KnownAtCut::None => i128::MAX,
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_row_is_visible_from_its_slot_on_and_not_before(rows in history(), cut in any_cut()) {
        for row in &rows {
            let first_seen = GRID.into_iter().find(|t| oracle::may_see(fact(row), (*t).into(), knowledge(cut, *t)));
            prop_assert_eq!(cut.visible_from_us(row), first_seen);
            for t in GRID {
                let seen = cut.visible_from_us(row).is_some_and(|from_us| from_us <= t);
                prop_assert_eq!(seen, is_candidate(row, cut.read_at(t)), "at {}", t);
            }
        }
    }

    /// What a join relies on: slot each row, keep the maximum of each slot, fill forward by maximum.
    #[test]
    fn filling_forward_finds_the_winner_of_every_spine_row(rows in history(), cut in any_cut()) {
        let mut so_far = None;
        for t in GRID {
            let new_here = rows.iter().filter(|row| cut.visible_from_us(row) == Some(t)).copied().max();
            so_far = so_far.max(new_here);
            let expected = oracle::winner_at(&facts(&rows), t.into(), knowledge(cut, t));
            prop_assert_eq!(so_far.as_ref().map(fact), expected, "at {}", t);
            prop_assert_eq!(winner(rows.iter().copied(), cut.read_at(t)), so_far);
        }
    }
}

#[test]
fn slots_by_name() {
    let known_late = row(10, 20, 0);
    let known_early = row(10, 5, 0);
    assert_eq!(KnownAtCut::Spine.visible_from_us(&known_late), Some(20));
    assert_eq!(KnownAtCut::Spine.visible_from_us(&known_early), Some(10));
    assert_eq!(KnownAtCut::Fixed(19).visible_from_us(&known_late), None);
    assert_eq!(KnownAtCut::Fixed(20).visible_from_us(&known_late), Some(10));
    assert_eq!(KnownAtCut::None.visible_from_us(&known_late), Some(10));
}

#[test]
fn reads_by_name() {
    assert_eq!(KnownAtCut::default(), KnownAtCut::Spine);
    assert_eq!(KnownAtCut::Spine.read_at(7), ReadAt { at_us: 7, known_by_us: 7 });
    assert_eq!(KnownAtCut::Fixed(3).read_at(7), ReadAt { at_us: 7, known_by_us: 3 });
    assert_eq!(KnownAtCut::None.read_at(7), ReadAt { at_us: 7, known_by_us: i64::MAX });
}

#[test]
fn cuts_are_written_as_words_or_an_instant() {
    for (text, cut) in [
        ("spine", KnownAtCut::Spine),
        ("none", KnownAtCut::None),
        ("2013-01-01T05:00:00Z", KnownAtCut::Fixed(1_357_016_400_000_000)),
    ] {
        assert_eq!(text.parse(), Ok(cut));
        assert_eq!(cut.to_string(), text);
    }
    assert!("now".parse::<KnownAtCut>().is_err());
}
