//! Twenty numbers of an entity as a model takes them, unchanged.

use eadem::prelude::*;

/// What is known of an entity.
#[derive(Input)]
pub struct Wide {
    /// Fractions, as the next nine.
    pub f0: f64,
    pub f1: f64,
    pub f2: f64,
    pub f3: f64,
    pub f4: f64,
    pub f5: f64,
    pub f6: f64,
    pub f7: f64,
    pub f8: f64,
    pub f9: f64,
    /// Whole numbers, as the next nine.
    pub n0: i64,
    pub n1: i64,
    pub n2: i64,
    pub n3: i64,
    pub n4: i64,
    pub n5: i64,
    pub n6: i64,
    pub n7: i64,
    pub n8: i64,
    pub n9: i64,
}

/// What a model sees of it.
#[derive(Output, Debug, Clone, PartialEq)]
pub struct Features {
    /// Fractions, as the next nine.
    pub f0: f64,
    pub f1: f64,
    pub f2: f64,
    pub f3: f64,
    pub f4: f64,
    pub f5: f64,
    pub f6: f64,
    pub f7: f64,
    pub f8: f64,
    pub f9: f64,
    /// Whole numbers, as the next nine.
    pub n0: i64,
    pub n1: i64,
    pub n2: i64,
    pub n3: i64,
    pub n4: i64,
    pub n5: i64,
    pub n6: i64,
    pub n7: i64,
    pub n8: i64,
    pub n9: i64,
}

/// A row of twenty numbers as it is.
#[transform(owner = "eadem")]
pub fn wide_row(wide: Wide) -> Features {
    Features {
        f0: wide.f0,
        f1: wide.f1,
        f2: wide.f2,
        f3: wide.f3,
        f4: wide.f4,
        f5: wide.f5,
        f6: wide.f6,
        f7: wide.f7,
        f8: wide.f8,
        f9: wide.f9,
        n0: wide.n0,
        n1: wide.n1,
        n2: wide.n2,
        n3: wide.n3,
        n4: wide.n4,
        n5: wide.n5,
        n6: wide.n6,
        n7: wide.n7,
        n8: wide.n8,
        n9: wide.n9,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_changes() {
        let wide = Wide {
            f0: 0.5,
            f1: 1.5,
            f2: 2.5,
            f3: 3.5,
            f4: 4.5,
            f5: 5.5,
            f6: 6.5,
            f7: 7.5,
            f8: 8.5,
            f9: 9.5,
            n0: 0,
            n1: 1,
            n2: 2,
            n3: 3,
            n4: 4,
            n5: 5,
            n6: 6,
            n7: 7,
            n8: 8,
            n9: 9,
        };
        let features = wide_row(wide);
        assert_eq!((features.f0, features.f9, features.n0, features.n9), (0.5, 9.5, 0, 9));
    }
}
