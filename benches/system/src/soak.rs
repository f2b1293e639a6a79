//! Bars that tests count: H8, training sets against an oracle; H9, whatever is killed, refused or answered by nobody; S8, the
//! embedded store when it is killed or its power is cut; S7, reads and writes while nodes of the database are lost; S10,
//! online stores and the interface against what they promise; R5, every operation by every credential.

use std::process::Command;

use anyhow::Result;
use eadem_benches::bars::Measured;
use eadem_benches::results::{Figure, load_average};

use crate::process::{output, root};

/// With the features of `make test`: fewer packages would have their dependencies compiled a second time.
const ARGUMENTS: [&str; 4] = ["test", "--locked", "--workspace", "--no-fail-fast"];

/// Tests that say in lines of their own how many cases they tried and how many went wrong.
struct Soak {
    bar: &'static str,
    /// The test targets that they are in.
    targets: &'static [&'static str],
    /// Modules and names that pick them.
    tests: &'static [&'static str],
    /// What a line begins with, up to the number of cases. With several threads the harness may have something else in front
    /// of it on the line.
    report: &'static str,
    /// What stands between the two numbers.
    between: &'static str,
    /// Fewer prove nothing.
    cases_min: u64,
    name: &'static str,
}

const H8: Soak = Soak {
    bar: "H8",
    targets: &["query", "offline"],
    tests: &["point_in_time::", "a_training_set_is_what_the_oracle_finds"],
    report: "H8: cases=",
    between: " differences=",
    cases_min: 10_000,
    name: "cases in which a join differs from a naive oracle, or from itself in other parts and order; runs: cases",
};

const H9: Soak = Soak {
    bar: "H9",
    targets: &["system", "offline"],
    tests: &[
        "scenario::kills::",
        "online_database::loads_that_are_killed",
        "kill::",
        "faults::",
        "every_request::",
        "s3::a_lost",
        "a_full_disk",
    ],
    report: "H9: kills=",
    between: " faults=",
    cases_min: 200,
    name: "kills and faults after which a table differs or a reader saw a part; runs: kills and faults",
};

const S8: Soak = Soak {
    bar: "S8",
    targets: &["online"],
    tests: &["kill::killed", "power_cut::"],
    report: "S8: kills=",
    between: " faults=",
    cases_min: 400,
    name: "kills and power cuts under writes after which the embedded store has lost or made up something; runs: both",
};

const S7: Soak = Soak {
    bar: "S7",
    targets: &["online"],
    tests: &["a_node_that_is_lost"],
    report: "S7: cases=",
    between: " faults=",
    cases_min: 2_000,
    name: "reads that failed, beyond those of the bare driver, and acknowledged rows that were lost, while one of three nodes is \
           killed and comes back, hangs, and all are killed at once; runs: reads and writes",
};

const R2: Soak = Soak {
    bar: "R2",
    targets: &["registry"],
    tests: &["race::", "the_suite_on_postgres"],
    report: "R2: cases=",
    between: " faults=",
    cases_min: 128,
    name: "applies of several processes, some of them killed, that were acknowledged and lost, or break the line of \
           revisions, on SQLite and on PostgreSQL; runs: applies",
};

const R7: Soak = Soak {
    bar: "R7",
    targets: &["system"],
    tests: &["scenario::erasure::nothing_of"],
    report: "R7: cases=",
    between: " faults=",
    cases_min: 1_000_000,
    name: "rows and values that came back or went missing after 1,000 entities among 1 M rows were erased by a job that was \
           killed, with late rows, replays and loads; runs: rows and values",
};

const S10: Soak = Soak {
    bar: "S10",
    targets: &["online", "system"],
    tests: &["conforms", "in_the_whole_suite", "scenario::interface::"],
    report: "S10: cases=",
    between: " faults=",
    cases_min: 20_000,
    name: "cases of the online stores' suite, and requests made up from the interface's document, that went otherwise than \
           declared; runs: cases and requests",
};

const R5: Soak = Soak {
    bar: "R5",
    targets: &["system"],
    tests: &["scenario::access::every_cell"],
    report: "R5: cases=",
    between: " faults=",
    cases_min: 500,
    name: "operations by role and credential that are answered otherwise than the golden matrix says; runs: cells",
};

/// The point-in-time join against its oracle.
pub(crate) fn h8() -> Result<Measured> {
    H8.run()
}

/// Applies that race.
pub(crate) fn r2() -> Result<Measured> {
    R2.run()
}

/// Erasures that are killed.
pub(crate) fn r7() -> Result<Measured> {
    R7.run()
}

/// Kills and faults.
pub(crate) fn h9() -> Result<Measured> {
    H9.run()
}

/// Nodes of the database that are lost.
pub(crate) fn s7() -> Result<Measured> {
    S7.run()
}

/// The embedded store when it is killed, or its power is cut.
pub(crate) fn s8() -> Result<Measured> {
    S8.run()
}

/// Every operation by every credential.
pub(crate) fn r5() -> Result<Measured> {
    R5.run()
}

/// Online stores against their suite, and the interface against its document.
pub(crate) fn s10() -> Result<Measured> {
    S10.run()
}

impl Soak {
    /// Runs the tests with their full counts. A test that fails before it has counted is one case gone wrong.
    fn run(&self) -> Result<Measured> {
        let load = load_average();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.current_dir(root()).args(ARGUMENTS);
        for target in self.targets {
            command.args(["--test", target]);
        }
        command.arg("--").args(self.tests).arg("--nocapture").env("EADEM_SOAK", "1");
        let (text, status) = output(&mut command)?;
        let (cases, wrong) = self.counted(&text);
        let has_failed = !status.success() || cases < self.cases_min;
        let value = wrong.max(u64::from(has_failed));
        let figure = Figure::alone(self.bar, self.name, "cases", value as f64, cases, load);
        let failure = (value > 0).then(|| {
            let wanted = self.cases_min;
            format!("{wrong} of {cases} cases went wrong (at least {wanted} are wanted); cargo test: {status}")
        });
        Ok(Measured { figures: vec![figure], failure })
    }

    /// The sums over all lines of tests: cases, and those gone wrong.
    fn counted(&self, text: &str) -> (u64, u64) {
        text.match_indices(self.report)
            .filter_map(|(at, _)| self.numbers(&text[at + self.report.len()..]))
            .fold((0, 0), |sum, line| (sum.0 + line.0, sum.1 + line.1))
    }

    /// The two numbers of a line, of which what comes before the first is cut off.
    fn numbers(&self, rest: &str) -> Option<(u64, u64)> {
        let line = rest.lines().next()?;
        let (cases, wrong) = line.split_once(self.between)?;
        let digits = wrong.split(|character: char| !character.is_ascii_digit()).next()?;
        Some((cases.parse().ok()?, digits.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_all_tests_are_added_up() {
        let text = "seed 1\nH9: kills=40 faults=0\ntest a ... H9: kills=12 faults=3 and more\nH9: kills=x faults=1\nH9: kills=5";
        assert_eq!(H9.counted(text), (52, 3));
        assert_eq!(H9.counted(""), (0, 0));
        assert_eq!(H8.counted("H8: cases=7 differences=0\nH9: kills=1 faults=1\nH8: cases=5 differences=2"), (12, 2));
    }
}
