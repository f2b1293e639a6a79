//! Sums of floats without rounding, so that a mean is the same in whatever order the rows come.

/// The exponents that a finite float64 can have, as its bits give them.
const EXPONENTS: usize = 2_047;

/// Digits of 32 bits: room for the largest float times 2^64, counted in units of 2^-1074.
const DIGITS: usize = 68;

/// The exact sum of finite floats. It is the same whatever their order, and merging two gives that of both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExactSum {
    /// For each exponent the sum of the signed mantissas. 53 bits of 128, so more floats than there can be rows.
    mantissas: Vec<i128>,
}

impl ExactSum {
    pub(super) fn new() -> Self {
        Self { mantissas: vec![0; EXPONENTS] }
    }

    /// Adds a float. One that is not finite counts as zero.
    pub(super) fn add(&mut self, value: f64) {
        let bits = value.to_bits();
        let exponent = (bits >> 52) as usize & 0x7ff;
        let fraction = bits & ((1 << 52) - 1);
        let Some(sum) = self.mantissas.get_mut(exponent) else { return };
        let mantissa = i128::from(if exponent == 0 { fraction } else { fraction | 1 << 52 });
        *sum += if value.is_sign_negative() { -mantissa } else { mantissa };
    }

    /// Adds a sum of whole numbers, exactly.
    pub(super) fn add_integers(&mut self, mut sum: i128) {
        // Each part of 32 bits, the highest with its sign, is a float without rounding.
        let mut unit = 1.0;
        while sum != 0 && sum != -1 {
            self.add((sum & 0xffff_ffff) as f64 * unit);
            sum >>= 32;
            unit *= 4_294_967_296.0;
        }
        self.add(sum as f64 * unit);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (sum, other) in self.mantissas.iter_mut().zip(&other.mantissas) {
            *sum += other;
        }
    }

    /// The sum divided by `count`, rounded once, to the nearest float and to even between two. `None` of nothing.
    pub(super) fn mean(&self, count: u64) -> Option<f64> {
        if count == 0 {
            return None;
        }
        let (is_negative, digits) = self.digits();
        let (quotient, remainder) = divide(&digits, count);
        let magnitude = nearest(&quotient, remainder, count);
        Some(if is_negative { -magnitude } else { magnitude })
    }

    /// The sign and the magnitude in units of 2^-1074, as digits of 32 bits, the lowest first.
    fn digits(&self) -> (bool, [u32; DIGITS]) {
        let mut digits = [0_i128; DIGITS];
        for (exponent, sum) in self.mantissas.iter().enumerate() {
            // A subnormal float has the unit of the smallest normal ones.
            let shift = exponent.saturating_sub(1);
            let (first, bits) = (shift / 32, shift % 32);
            let magnitude = sum.unsigned_abs();
            // 128 bits shifted by less than 32 are five digits.
            let low = (magnitude & u128::from(u64::MAX)) << bits;
            let high = ((magnitude >> 64) << bits) + (low >> 64);
            let parts = [low, low >> 32, high, high >> 32, high >> 64];
            for (digit, part) in digits[first..].iter_mut().zip(parts) {
                let part = (part & 0xffff_ffff) as i128;
                *digit += if *sum < 0 { -part } else { part };
            }
        }
        let is_negative = carry(&mut digits) < 0;
        if is_negative {
            for digit in &mut digits {
                *digit = -*digit;
            }
            carry(&mut digits);
        }
        (is_negative, digits.map(|digit| digit as u32))
    }
}

/// Brings every digit into 32 bits; what is carried out of the last one is the sign.
fn carry(digits: &mut [i128; DIGITS]) -> i128 {
    let mut carried = 0;
    for digit in digits {
        let whole = *digit + carried;
        carried = whole >> 32;
        *digit = whole & 0xffff_ffff;
    }
    carried
}

fn divide(digits: &[u32; DIGITS], by: u64) -> ([u32; DIGITS], u64) {
    let mut quotient = [0; DIGITS];
    let mut remainder = 0_u128;
    for (place, digit) in digits.iter().enumerate().rev() {
        let part = remainder << 32 | u128::from(*digit);
        quotient[place] = (part / u128::from(by)) as u32;
        remainder = part % u128::from(by);
    }
    (quotient, remainder as u64)
}

/// The float nearest to `digits + remainder / count` units of 2^-1074.
fn nearest(digits: &[u32; DIGITS], remainder: u64, count: u64) -> f64 {
    let bit = |at: usize| digits[at / 32] >> (at % 32) & 1 == 1;
    let length = (0..DIGITS * 32).rev().find(|at| bit(*at)).map_or(0, |highest| highest + 1);
    let dropped = length.saturating_sub(53);
    let mut mantissa: u64 = (dropped..length).rev().fold(0, |mantissa, at| mantissa << 1 | u64::from(bit(at)));
    let (is_half_or_more, is_more) = if dropped == 0 {
        let twice = 2 * u128::from(remainder);
        (twice >= u128::from(count), twice > u128::from(count))
    } else {
        (bit(dropped - 1), remainder > 0 || (0..dropped - 1).any(bit))
    };
    if is_half_or_more && (is_more || mantissa & 1 == 1) {
        mantissa += 1;
    }
    // A mantissa with its hidden bit, added to the exponent below it, gives the bits; so does one that was rounded up to
    // the next power of two, and one that is subnormal.
    f64::from_bits(mantissa + ((dropped as u64) << 52))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(values: &[f64]) -> f64 {
        let mut sum = ExactSum::new();
        values.iter().for_each(|value| sum.add(*value));
        sum.mean(values.len() as u64).unwrap_or(f64::NAN)
    }

    #[test]
    fn a_mean_is_rounded_once() {
        // Added one by one these are 0, or 1e16.
        assert_eq!(mean(&[1e16, 1.0, -1e16, 2.0]), 0.75);
        assert_eq!(mean(&[f64::MAX, f64::MAX, f64::MAX]), f64::MAX);
        assert_eq!(mean(&[f64::MIN, f64::MAX, -8.0]), -8.0 / 3.0);
        assert_eq!(mean(&[0.1]), 0.1);
        assert_eq!(mean(&[-0.1, -0.1, -0.1]), -0.1);
        assert_eq!(mean(&[f64::from_bits(1), f64::from_bits(2)]), f64::from_bits(2), "1.5 units, to even");
        assert_eq!(mean(&[f64::from_bits(1), 0.0]), 0.0, "half a unit, to even");
        assert_eq!(mean(&[-0.0, 0.0]), 0.0);
        assert_eq!(mean(&[f64::MIN_POSITIVE, -f64::from_bits(1)]), f64::MIN_POSITIVE / 2.0);
        assert_eq!(ExactSum::new().mean(0), None);
    }

    #[test]
    fn order_and_parts_do_not_matter() {
        let values: Vec<f64> = (1..2_000).map(|n| f64::from(n).powi(n % 40 - 20) * f64::from(n % 3 - 1)).collect();
        let backwards: Vec<f64> = values.iter().rev().copied().collect();
        let (first, second) = values.split_at(700);
        let (mut sum, mut rest) = (ExactSum::new(), ExactSum::new());
        first.iter().for_each(|value| sum.add(*value));
        second.iter().for_each(|value| rest.add(*value));
        sum.merge(&rest);
        assert_eq!(mean(&values).to_bits(), mean(&backwards).to_bits());
        assert_eq!(sum.mean(values.len() as u64).map(f64::to_bits), Some(mean(&values).to_bits()));
    }

    #[test]
    fn whole_numbers_are_exact() {
        let mean = |values: &[i64]| {
            let mut sum = ExactSum::new();
            sum.add_integers(values.iter().copied().map(i128::from).sum());
            sum.mean(values.len() as u64)
        };
        assert_eq!(mean(&[i64::MAX, i64::MAX, i64::MIN, i64::MIN, 7]), Some(1.0));
        assert_eq!(mean(&[(1 << 53) + 1, (1 << 53) + 3]), Some(((1_i64 << 53) + 2) as f64));
        assert_eq!(mean(&[i64::MIN; 3]), Some(i64::MIN as f64));
        assert_eq!(mean(&[-1]), Some(-1.0));
        assert_eq!(mean(&[-4_294_967_297]), Some(-4_294_967_297.0));
    }
}
