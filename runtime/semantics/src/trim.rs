//! Which rows an online store may forget.

use crate::{RowOrder, visible_from_us};

/// For the rows of one entity, in any order: whether trimming for reads at T ≥ `complete_since_us` (with K = T) keeps each.
///
/// A row is kept if it wins at some such T, or lies ahead and will. A row loses for ever when another row that is visible
/// no later beats it; a row that is visible only from `v` on can win only at T ≥ max(`v`, `complete_since_us`).
pub fn trim_mask(rows: &[RowOrder], complete_since_us: i64) -> Vec<bool> {
    let matters_from_us = |row: &RowOrder| visible_from_us(row).max(complete_since_us);
    let mut by_visibility: Vec<usize> = (0..rows.len()).collect();
    // Among rows that become visible at the same instant the greatest comes first and beats the others at once.
    by_visibility.sort_by(|a, b| {
        matters_from_us(&rows[*a]).cmp(&matters_from_us(&rows[*b])).then_with(|| rows[*b].cmp(&rows[*a]))
    });
    let mut keeps = vec![false; rows.len()];
    let mut greatest_so_far: Option<RowOrder> = None;
    for at in by_visibility {
        let row = rows[at];
        if greatest_so_far.is_none_or(|greatest| row > greatest) {
            keeps[at] = true;
            greatest_so_far = Some(row);
        }
    }
    keeps
}

/// The rows that [`trim_mask`] keeps.
pub fn trim_keeps(rows: &[RowOrder], complete_since_us: i64) -> Vec<RowOrder> {
    let keeps = trim_mask(rows, complete_since_us);
    rows.iter().zip(keeps).filter(|(_, keep)| *keep).map(|(row, _)| *row).collect()
}

/// [`trim_mask`] for the rows of one entity that come newest first, one at a time: it remembers no row.
#[derive(Debug, Clone, Copy)]
pub struct TrimNewestFirst {
    complete_since_us: i64,
    /// From when on a greater row than those to come matters.
    beaten_from_us: Option<i64>,
}

impl TrimNewestFirst {
    /// Before the first row, for reads at T ≥ `complete_since_us`.
    pub fn new(complete_since_us: i64) -> Self {
        Self { complete_since_us, beaten_from_us: None }
    }

    /// Whether the trim keeps this row, which no row before it is less than. Of equal ones the first.
    pub fn keeps(&mut self, row: &RowOrder) -> bool {
        let matters_from_us = visible_from_us(row).max(self.complete_since_us);
        let wins = self.beaten_from_us.is_none_or(|beaten_from_us| matters_from_us < beaten_from_us);
        if wins {
            self.beaten_from_us = Some(matters_from_us);
        }
        wins
    }
}
