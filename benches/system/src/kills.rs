//! H9: whatever is killed, refused or answered by nobody, the tables end as if nothing had happened.

use std::process::Command;

use anyhow::Result;
use eadem_benches::bars::Measured;
use eadem_benches::results::{Figure, load_average};

use crate::process::{output, root};

/// With the features of `make test`: fewer packages would have their dependencies compiled a second time.
const ARGUMENTS: [&str; 8] =
    ["test", "--locked", "--workspace", "--no-fail-fast", "--test", "system", "--test", "offline"];

/// The tests that print a line `H9: kills=… faults=…`, by the modules that they are in.
const TESTS: [&str; 4] = ["scenario::kills::", "kill::", "every_request::", "s3::a_lost"];

/// What a test's line begins with. With several threads the harness may have something else in front of it on the line.
const REPORT: &str = "H9: kills=";

const KILLS_MIN: u64 = 200;

/// Runs all tests of kills and faults with their full counts. A test that fails before it has counted is one fault.
pub(crate) fn h9() -> Result<Measured> {
    let load = load_average();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root()).args(ARGUMENTS).arg("--").args(TESTS).arg("--nocapture").env("EADEM_SOAK", "1");
    let (text, status) = output(&mut command)?;
    let (kills, faults) = counted(&text);
    let has_failed = !status.success() || kills < KILLS_MIN;
    let value = faults.max(u64::from(has_failed));
    let name = "kills and faults after which a table differs or a reader saw a part; runs: kills and faults";
    let figure = Figure::alone("H9", name, "cases", value as f64, kills, load);
    let failure = (value > 0).then(|| {
        format!(
            "{faults} of {kills} kills left a difference (at least {KILLS_MIN} kills are wanted); cargo test: {status}"
        )
    });
    Ok(Measured { figures: vec![figure], failure })
}

/// The sums over all lines of tests: kills and faults.
fn counted(text: &str) -> (u64, u64) {
    text.match_indices(REPORT)
        .filter_map(|(at, _)| line_of(&text[at + REPORT.len()..]))
        .fold((0, 0), |sum, line| (sum.0 + line.0, sum.1 + line.1))
}

/// Of `40 faults=0` and whatever follows, the two numbers.
fn line_of(rest: &str) -> Option<(u64, u64)> {
    let line = rest.lines().next()?;
    let (kills, faults) = line.split_once(" faults=")?;
    let digits = faults.split(|character: char| !character.is_ascii_digit()).next()?;
    Some((kills.parse().ok()?, digits.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_all_tests_are_added_up() {
        let text = "seed 1\nH9: kills=40 faults=0\ntest a ... H9: kills=12 faults=3 and more\nH9: kills=x faults=1\nH9: kills=5";
        assert_eq!(counted(text), (52, 3));
        assert_eq!(counted(""), (0, 0));
    }
}
