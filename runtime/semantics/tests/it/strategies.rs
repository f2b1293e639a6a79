//! Histories that collide: few distinct instants, few distinct ties, known-at before and after the event, and now and then
//! the ends of the range.

use eadem_semantics::RowOrder;
use eadem_values::TieDigest;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::RngSeed;

use crate::oracle::Fact;

/// 4,000 cases, or 200,000 with `EADEM_SOAK=1`; always the same ones, or others with another `EADEM_SEED`.
pub(crate) fn cases() -> ProptestConfig {
    let soak = std::env::var("EADEM_SOAK").is_ok_and(|value| value == "1");
    ProptestConfig { cases: if soak { 200_000 } else { 4_000 }, rng_seed: seed(), ..ProptestConfig::default() }
}

fn seed() -> RngSeed {
    let seed: u64 = std::env::var("EADEM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_130_101);
    println!("EADEM_SEED={seed}");
    RngSeed::Fixed(seed)
}

/// All instants that [`history`] draws from lie in here, so a test can try every T.
pub(crate) const GRID: std::ops::RangeInclusive<i64> = -2..=12;

pub(crate) fn on_grid() -> impl Strategy<Value = i64> {
    0_i64..=10
}

/// Up to 12 rows on the grid, with repetitions.
pub(crate) fn history() -> impl Strategy<Value = Vec<RowOrder>> {
    vec(row_at(on_grid().boxed()), 0..12)
}

/// Up to 12 rows of anywhere.
pub(crate) fn wild_history() -> impl Strategy<Value = Vec<RowOrder>> {
    vec(row_at(anywhere().boxed()), 0..12)
}

/// The grid, real microseconds a step apart, and the ends of the range.
pub(crate) fn anywhere() -> impl Strategy<Value = i64> {
    let landing_us = 1_357_016_400_000_000_i64;
    prop_oneof![
        4 => on_grid(),
        2 => (-3_i64..3).prop_map(move |step| landing_us + step),
        1 => select(vec![i64::MIN, i64::MIN + 1, -1, i64::MAX - 1, i64::MAX]),
    ]
}

fn row_at(instant: BoxedStrategy<i64>) -> impl Strategy<Value = RowOrder> {
    (instant.clone(), instant, 0_u128..3, any::<bool>()).prop_map(|(event_time_us, known_at_us, tie, high)| {
        // Big-endian on purpose: the order must not depend on which byte differs.
        let tie = if high { tie << 120 } else { tie };
        RowOrder { event_time_us, known_at_us, tie: TieDigest::from_bytes(tie.to_be_bytes()) }
    })
}

pub(crate) fn fact(row: &RowOrder) -> Fact {
    let mut tie = 0_u128;
    for byte in row.tie.as_bytes() {
        tie = tie * 256 + u128::from(*byte);
    }
    (i128::from(row.event_time_us), i128::from(row.known_at_us), tie)
}

pub(crate) fn facts(rows: &[RowOrder]) -> Vec<Fact> {
    rows.iter().map(fact).collect()
}

pub(crate) fn row(event_time_us: i64, known_at_us: i64, tie: u128) -> RowOrder {
    RowOrder { event_time_us, known_at_us, tie: TieDigest::from_bytes(tie.to_be_bytes()) }
}
