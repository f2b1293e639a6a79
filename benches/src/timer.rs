//! Paired timing.

use std::time::Duration;

use eadem_engine::thread_cpu_time;

/// Runs on each side.
pub const RUNS: u64 = 21;

/// The least time of one turn on each side, in microseconds.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    /// Ours.
    pub ours_us: f64,
    /// The other's.
    pub theirs_us: f64,
}

/// Measures two sides in alternation, each run at least `run_length` long, and keeps the least of each.
pub fn alternate(run_length: Duration, mut ours: impl FnMut(), mut theirs: impl FnMut()) -> Pair {
    let our_turns = turns_in(run_length, &mut ours);
    let their_turns = turns_in(run_length, &mut theirs);
    let mut least = Pair { ours_us: f64::INFINITY, theirs_us: f64::INFINITY };
    for _ in 0..RUNS {
        least.ours_us = least.ours_us.min(us_per_turn(our_turns, &mut ours));
        least.theirs_us = least.theirs_us.min(us_per_turn(their_turns, &mut theirs));
    }
    least
}

/// Measures one side on its own, and keeps the least.
pub fn least_us_per_turn(run_length: Duration, turn: &mut impl FnMut()) -> f64 {
    let turns = turns_in(run_length, turn);
    (0..RUNS).map(|_| us_per_turn(turns, turn)).fold(f64::INFINITY, f64::min)
}

/// How many turns fill the time, found by doubling; warms everything up on the way.
pub fn turns_in(run_length: Duration, turn: &mut impl FnMut()) -> u64 {
    let mut turns = 1;
    loop {
        let us = us_per_turn(turns, turn) * turns as f64;
        if us >= run_length.as_micros() as f64 {
            return turns;
        }
        turns *= 2;
    }
}

/// Thread processor time of one of so many turns.
pub fn us_per_turn(turns: u64, turn: &mut impl FnMut()) -> f64 {
    let before = thread_cpu_time();
    for _ in 0..turns {
        turn();
    }
    let spent = thread_cpu_time() - before;
    spent.as_nanos() as f64 / 1_000.0 / turns as f64
}
