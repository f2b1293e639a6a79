//! Bitmaps (LSB-first, one bit per row) and floats, a word at a time.

use std::borrow::Cow;

use arrow_buffer::BooleanBuffer;
use eadem_values::{CANONICAL_NAN_F32, CANONICAL_NAN_F64};

/// Bytes of a bitmap of so many rows.
pub(crate) fn bitmap_bytes(rows: usize) -> usize {
    rows.div_ceil(8)
}

/// Sets the bits behind the last row to zero, so that equal columns are equal bytes.
pub(crate) fn clear_behind_last(bitmap: &mut [u8], rows: usize) {
    if let Some(mask) = last_byte_mask(rows)
        && let Some(last) = bitmap.get_mut(rows / 8)
    {
        *last &= mask;
    }
}

fn last_byte_mask(rows: usize) -> Option<u8> {
    let used = rows % 8;
    (used != 0).then(|| (1u8 << used) - 1)
}

/// The rows whose bit is zero, ascending.
pub(crate) fn unset_rows(bitmap: &[u8], rows: usize) -> impl Iterator<Item = usize> + '_ {
    bitmap.chunks(8).enumerate().flat_map(move |(word_index, bytes)| {
        let mut word = [0xff; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        let first_row = word_index * 64;
        let in_word = rows.saturating_sub(first_row).min(64);
        let in_rows = if in_word == 64 { u64::MAX } else { (1u64 << in_word) - 1 };
        UnsetBits { unset: !u64::from_le_bytes(word) & in_rows, first_row }
    })
}

struct UnsetBits {
    unset: u64,
    first_row: usize,
}

impl Iterator for UnsetBits {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.unset == 0 {
            return None;
        }
        let bit = self.unset.trailing_zeros() as usize;
        self.unset &= self.unset - 1;
        Some(self.first_row + bit)
    }
}

/// Whether the bit of every row is set.
pub(crate) fn all_set(bitmap: &[u8], rows: usize) -> bool {
    let whole = rows / 8;
    let whole_are_set = bitmap[..whole].iter().fold(0xff, |all, byte| all & byte) == 0xff;
    let rest_is_set = last_byte_mask(rows).is_none_or(|mask| bitmap[whole] & mask == mask);
    whole_are_set && rest_is_set
}

/// A bitmap that starts at a byte and has zeros behind its last row; copied only where it must be.
pub(crate) fn aligned_bitmap(bits: &BooleanBuffer) -> Cow<'_, [u8]> {
    let rows = bits.len();
    if !bits.offset().is_multiple_of(8) {
        let mut copy = bits.sliced().as_slice()[..bitmap_bytes(rows)].to_vec();
        clear_behind_last(&mut copy, rows);
        return Cow::Owned(copy);
    }
    let first_byte = bits.offset() / 8;
    let bytes = &bits.values()[first_byte..first_byte + bitmap_bytes(rows)];
    let is_clean = last_byte_mask(rows).is_none_or(|mask| bytes[rows / 8] & !mask == 0);
    if is_clean {
        return Cow::Borrowed(bytes);
    }
    let mut copy = bytes.to_vec();
    clear_behind_last(&mut copy, rows);
    Cow::Owned(copy)
}

/// A number whose one bit pattern for "not a number", and for zero, is known.
pub(crate) trait CanonicalBits: Copy + 'static {
    const ZERO: Self;
    /// Whether this is a NaN other than the canonical one.
    fn is_foreign_nan(self) -> bool;
    fn canonical_nan() -> Self;
    fn is_zero_bits(self) -> bool;
}

impl CanonicalBits for f64 {
    const ZERO: Self = 0.0;

    fn is_foreign_nan(self) -> bool {
        self.is_nan() & (self.to_bits() != CANONICAL_NAN_F64.to_bits())
    }

    fn canonical_nan() -> Self {
        CANONICAL_NAN_F64
    }

    fn is_zero_bits(self) -> bool {
        self.to_bits() == 0
    }
}

impl CanonicalBits for f32 {
    const ZERO: Self = 0.0;

    fn is_foreign_nan(self) -> bool {
        self.is_nan() & (self.to_bits() != CANONICAL_NAN_F32.to_bits())
    }

    fn canonical_nan() -> Self {
        CANONICAL_NAN_F32
    }

    fn is_zero_bits(self) -> bool {
        self.to_bits() == 0
    }
}

impl CanonicalBits for i64 {
    const ZERO: Self = 0;

    fn is_foreign_nan(self) -> bool {
        false
    }

    fn canonical_nan() -> Self {
        0
    }

    fn is_zero_bits(self) -> bool {
        self == 0
    }
}

/// Whether any NaN is not the canonical one. No branch per value, so that it runs at the speed of memory.
pub(crate) fn any_foreign_nan<T: CanonicalBits>(values: &[T]) -> bool {
    // Blocks, so that the fold is vectorised and a dirty column is noticed early.
    values.chunks(1024).any(|block| block.iter().fold(false, |any, value| any | value.is_foreign_nan()))
}

/// Makes every NaN canonical.
pub(crate) fn canonicalize_nans<T: CanonicalBits>(values: &mut [T]) {
    for value in values {
        if value.is_foreign_nan() {
            *value = T::canonical_nan();
        }
    }
}

/// Sets what stands under a null to zero; `width` values belong to a row.
pub(crate) fn zero_under_null<T: CanonicalBits>(values: &mut [T], width: usize, validity: &[u8], rows: usize) {
    for row in unset_rows(validity, rows) {
        values[row * width..(row + 1) * width].fill(T::ZERO);
    }
}

/// Whether anything but zero stands under a null.
pub(crate) fn any_under_null<T: CanonicalBits>(values: &[T], width: usize, validity: &[u8], rows: usize) -> bool {
    unset_rows(validity, rows)
        .any(|row| values[row * width..(row + 1) * width].iter().any(|value| !value.is_zero_bits()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn unset_rows_are_found_across_words() {
        let rows = 131;
        let mut bitmap = vec![0xffu8; bitmap_bytes(rows)];
        for row in [0, 63, 64, 100, 130] {
            bitmap[row / 8] &= !(1 << (row % 8));
        }
        assert_eq!(unset_rows(&bitmap, rows).collect::<Vec<_>>(), [0, 63, 64, 100, 130]);
        assert!(!all_set(&bitmap, rows));
        assert!(all_set(&[0xff, 0b0000_0111], 11));
        assert!(!all_set(&[0xff, 0b0000_0011], 11));
        assert!(all_set(&[], 0));
    }

    #[test]
    fn bitmaps_are_aligned_and_end_in_zeros() {
        let bits = BooleanBuffer::from(vec![true; 20]);
        assert_eq!(aligned_bitmap(&bits.slice(3, 9)).as_ref(), [0xff, 0x01]);
        assert_eq!(aligned_bitmap(&bits.slice(8, 9)).as_ref(), [0xff, 0x01]);
        assert_eq!(aligned_bitmap(&bits.slice(0, 16)).as_ref(), [0xff, 0xff]);
        assert!(matches!(aligned_bitmap(&bits.slice(8, 8)), Cow::Borrowed(_)));
    }

    #[test]
    fn nans_become_canonical_and_nothing_else_changes() {
        let mut values = [f64::from_bits(0xfff8_0000_0000_0001), -0.0, f64::INFINITY, CANONICAL_NAN_F64];
        assert!(any_foreign_nan(&values));
        canonicalize_nans(&mut values);
        assert!(!any_foreign_nan(&values));
        let bits = values.map(f64::to_bits);
        assert_eq!(bits[0], CANONICAL_NAN_F64.to_bits());
        assert_eq!(bits[1], (-0.0f64).to_bits());
        assert_eq!(bits[2], f64::INFINITY.to_bits());
    }
}
