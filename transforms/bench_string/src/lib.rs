//! Two text features from one nullable input: lower case, and a hash bucket of it.

use eadem::prelude::*;

/// Number of buckets.
const BUCKETS: u64 = 1_000;

/// One merchant.
#[derive(Input)]
pub struct Merchant<'a> {
    /// Name as written.
    pub s: Option<&'a str>,
}

/// What a model sees of it.
#[derive(Output, Debug, Clone, PartialEq)]
pub struct Features {
    /// The name in lower case.
    pub lower: Option<String>,
    /// Which of 1,000 buckets the lower-case name falls into.
    #[field(min = 0, max = 999)]
    pub bucket: Option<i64>,
}

/// Text features of a merchant.
#[transform(owner = "eadem")]
#[inline]
pub fn bench_string(merchant: Merchant) -> Features {
    let lower = merchant.s.map(str::to_lowercase);
    let bucket = lower.as_ref().map(|lower| (fnv1a(lower.as_bytes()) % BUCKETS) as i64);
    Features { lower, bucket }
}

/// The Fowler–Noll–Vo hash, 64 bits, variant 1a.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_does_not_matter_to_the_bucket() {
        assert_eq!(bench_string(Merchant { s: Some("CaFÉ") }), bench_string(Merchant { s: Some("café") }));
        assert_eq!(bench_string(Merchant { s: Some("CaFÉ") }).lower.as_deref(), Some("café"));
    }

    #[test]
    fn null_stays_null() {
        assert_eq!(bench_string(Merchant { s: None }), Features { lower: None, bucket: None });
    }

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
