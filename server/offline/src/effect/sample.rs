//! Which rows of a source are looked at.

use arrow_schema::Schema;

use crate::error::OfflineError;
use crate::ledger::ChunkPart;
use crate::source::{self, Cut, Footers, Listing, SourceFile};
use crate::spec::SourceSpec;

/// Files are cut into pieces of about this many rows at most: small enough to be shared out among threads.
const PIECE_ROWS_MAX: u64 = 65_536;
/// And at least: smaller ones cost more to open than to read.
const PIECE_ROWS_MIN: u64 = 1_024;
/// A sample is taken of at least this many pieces, if there are so many, so that it is of all times.
const PIECES_MIN: usize = 16;
/// Files that are opened, at most.
const FILES_MAX: usize = 256;

/// The beginning of a piece of a file.
#[derive(Debug)]
pub(super) struct Portion {
    /// Position among the files of the sample.
    pub(super) file: usize,
    pub(super) part: ChunkPart,
    pub(super) first_row: u64,
    /// So many of its rows, at most.
    pub(super) rows_max: u64,
}

/// Rows of a source.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) files: Vec<SourceFile>,
    pub(super) portions: Vec<Portion>,
    /// About as many as are going to be read.
    pub(super) rows_planned: u64,
    /// Whether that is all there is.
    pub(super) is_all: bool,
}

impl Sample {
    /// At most about `rows_max` rows, spread evenly over what there is.
    pub(super) async fn of(
        source: &SourceSpec,
        listing: Listing,
        footers: &Footers,
        schema: &Schema,
        rows_max: u64,
    ) -> Result<Self, OfflineError> {
        let files_of_source = listing.files.len();
        let picked = evenly(files_of_source, FILES_MAX);
        let files: Vec<SourceFile> = picked.iter().filter_map(|number| listing.files.get(*number).cloned()).collect();
        let piece_rows = (rows_max / PIECES_MIN as u64).clamp(PIECE_ROWS_MIN, PIECE_ROWS_MAX);
        let mut pieces: Vec<(usize, Cut)> = Vec::new();
        for (number, file) in files.iter().enumerate() {
            let cuts = source::cut(source, file, footers, schema, piece_rows, source::RECORD_BYTES_MAX).await?;
            pieces.extend(cuts.into_iter().map(|cut| (number, cut)));
        }
        let rows: u64 = pieces.iter().map(|(_, cut)| cut.rows).sum();
        if rows <= rows_max {
            let portions = pieces.into_iter().map(|(file, cut)| portion(file, cut, u64::MAX)).collect();
            let is_all = files.len() == files_of_source;
            return Ok(Self { files, portions, rows_planned: rows, is_all });
        }
        let rows_of_piece = (rows / pieces.len().max(1) as u64).max(1);
        let wanted = usize::try_from(rows_max.div_ceil(rows_of_piece)).unwrap_or(usize::MAX).max(PIECES_MIN);
        let chosen: Vec<(usize, Cut)> =
            evenly(pieces.len(), wanted).into_iter().filter_map(|number| pieces.get(number).cloned()).collect();
        let rows_chosen: u64 = chosen.iter().map(|(_, cut)| cut.rows).sum();
        let mut portions = Vec::with_capacity(chosen.len());
        let (mut seen, mut given) = (0_u64, 0_u64);
        for (file, cut) in chosen {
            seen += cut.rows;
            // Shares are rounded so that their sum is right.
            let due = u64::try_from(u128::from(rows_max) * u128::from(seen) / u128::from(rows_chosen.max(1)))
                .unwrap_or(u64::MAX)
                .min(seen);
            let share = due.saturating_sub(given).min(cut.rows);
            given += share;
            if share > 0 {
                portions.push(portion(file, cut, share));
            }
        }
        Ok(Self { files, portions, rows_planned: given, is_all: false })
    }
}

fn portion(file: usize, cut: Cut, rows_max: u64) -> Portion {
    Portion { file, part: cut.part, first_row: cut.first_row, rows_max }
}

/// At most `wanted` of the numbers below `count`, evenly spread, the first and the last among them.
fn evenly(count: usize, wanted: usize) -> Vec<usize> {
    if count <= wanted {
        return (0..count).collect();
    }
    if wanted <= 1 {
        return (0..wanted).collect();
    }
    (0..wanted).map(|number| number * (count - 1) / (wanted - 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::evenly;

    #[test]
    fn numbers_are_spread_evenly_over_all_there_are() {
        assert_eq!(evenly(3, 5), [0, 1, 2]);
        assert_eq!(evenly(10, 4), [0, 3, 6, 9]);
        assert_eq!(evenly(10, 1), [0]);
        assert_eq!(evenly(0, 4), [0_usize; 0]);
        let many = evenly(1_000, 256);
        assert!(many.is_sorted_by(|a, b| a < b) && many.len() == 256 && many.last() == Some(&999));
    }
}
