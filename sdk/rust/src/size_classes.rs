//! Which list a block of memory waits in once it is freed: by its size.

use core::alloc::Layout;

/// Every block is a multiple of this long and begins at one.
pub(crate) const GRAIN_BYTES: usize = 16;
/// Up to here each size has a list of its own; beyond, each power of two.
const SMALL_BYTES_MAX: usize = 512;
const SMALL_CLASSES: usize = SMALL_BYTES_MAX / GRAIN_BYTES;
const LARGE_CLASSES: usize = 32;
/// Number of lists.
pub(crate) const CLASSES: usize = SMALL_CLASSES + LARGE_CLASSES;

/// Length of the block that such a value gets.
#[inline(always)]
pub(crate) fn block_bytes(layout: Layout) -> usize {
    layout.size().max(1).next_multiple_of(GRAIN_BYTES)
}

/// Whether all blocks of this one's list have its size.
#[inline(always)]
pub(crate) fn is_small(block_bytes: usize) -> bool {
    block_bytes <= SMALL_BYTES_MAX
}

/// The list in which a block of that size waits; every block in it has at least half that size, in the list of a small
/// one exactly it.
#[inline(always)]
pub(crate) fn class_of_freed(block_bytes: usize) -> usize {
    if is_small(block_bytes) {
        return block_bytes / GRAIN_BYTES - 1;
    }
    SMALL_CLASSES + block_bytes.ilog2() as usize
}

/// The list whose blocks are all long enough.
#[inline(always)]
pub(crate) fn class_for(block_bytes: usize) -> usize {
    if is_small(block_bytes) {
        return block_bytes / GRAIN_BYTES - 1;
    }
    SMALL_CLASSES + (block_bytes - 1).ilog2() as usize + 1
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// All sizes of blocks up to some, and those around each power of two that a 32-bit memory can hold.
    fn sizes() -> impl Iterator<Item = usize> {
        let around_powers = (10..=31).flat_map(|power| {
            let power = 1_usize << power;
            [power - GRAIN_BYTES, power, (power + GRAIN_BYTES).min(1 << 31)]
        });
        (1..=1_024).map(|grains| grains * GRAIN_BYTES).chain(around_powers)
    }

    #[test]
    fn a_block_is_whole_grains_and_at_least_as_long_as_its_value() {
        for (asked, expected) in [(0, 16), (1, 16), (16, 16), (17, 32), (512, 512), (513, 528)] {
            let layout = Layout::from_size_align(asked, 8).unwrap();
            assert_eq!(block_bytes(layout), expected, "{asked} bytes");
        }
    }

    #[test]
    fn every_class_has_a_list() {
        for size in sizes() {
            assert!(class_of_freed(size) < CLASSES && class_for(size) < CLASSES, "{size}");
        }
    }

    #[test]
    fn small_sizes_have_lists_of_their_own() {
        let classes: Vec<usize> = sizes().filter(|size| is_small(*size)).map(class_of_freed).collect();
        assert_eq!(classes, (0..classes.len()).collect::<Vec<_>>());
        assert!(sizes().filter(|size| !is_small(*size)).all(|size| class_of_freed(size) >= classes.len()));
    }

    #[test]
    fn what_waits_in_the_class_for_a_size_is_long_enough() {
        for asked in sizes() {
            let shortest = sizes().filter(|freed| class_of_freed(*freed) == class_for(asked)).min();
            assert!(shortest.is_none_or(|shortest| shortest >= asked), "{asked}: {shortest:?}");
        }
    }

    /// A block of the same size waits there or in the list before it, where its head is asked for its size.
    #[test]
    fn a_block_of_the_same_size_is_at_most_one_list_away() {
        for size in sizes() {
            let away = class_for(size) - class_of_freed(size);
            let is_exact = is_small(size) || size.is_power_of_two();
            assert_eq!(away, usize::from(!is_exact), "{size}");
        }
    }
}
