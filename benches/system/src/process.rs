//! Whole processes: what they cost and what they say.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

/// What a process cost from its start to its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// Processor time, its own and the kernel's for it, in seconds.
    pub(crate) cpu_s: f64,
    /// Time on the clock, in seconds.
    pub(crate) wall_s: f64,
    /// Most memory that was resident at a time, in MiB.
    pub(crate) memory_mib: f64,
}

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Runs a process to its end; its standard output is dropped.
///
/// # Errors
/// It cannot be started, or does not end with 0.
pub(crate) fn measured(command: &mut Command) -> Result<Cost> {
    let began = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("cannot start")?;
    let (status, usage) = wait(child.id())?;
    let wall_s = began.elapsed().as_secs_f64();
    ensure!(status == 0, "{command:?} ended with wait status {status}");
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Ok(Cost {
        cpu_s: seconds(usage.ru_utime) + seconds(usage.ru_stime),
        wall_s,
        // Linux counts it in KiB.
        memory_mib: usage.ru_maxrss as f64 / 1024.0,
    })
}

/// Waits for one child, and gives its wait status and what it used. The standard library waits too, but does not tell what the child used.
pub(crate) fn wait(pid: u32) -> Result<(libc::c_int, libc::rusage)> {
    let pid = libc::pid_t::try_from(pid)?;
    let mut status = 0;
    // SAFETY: `rusage` is plain numbers, for which zero is a value.
    #[allow(unsafe_code)]
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to locals that outlive the call, and `pid` is a child that nobody else waits for.
        #[allow(unsafe_code)]
        let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
        if waited == pid {
            return Ok((status, usage));
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            bail!("cannot wait for process {pid}: {error}");
        }
    }
}

/// Runs a process to its end and gives its standard output, which is shown as it comes, and how it ended.
///
/// # Errors
/// It cannot be started.
pub(crate) fn output(command: &mut Command) -> Result<(String, ExitStatus)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start")?;
    let stdout = child.stdout.take().context("no standard output")?;
    let mut text = String::new();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        text.push_str(&line);
        text.push('\n');
    }
    Ok((text, child.wait()?))
}

/// The one line of `text` that starts with `prefix`, as the numbers in it.
///
/// # Errors
/// No such line, or several.
pub(crate) fn numbers_after(text: &str, prefix: &str) -> Result<Vec<u64>> {
    let mut lines = text.lines().filter_map(|line| line.trim().strip_prefix(prefix));
    let line = lines.next().with_context(|| format!("no line starts with `{prefix}`"))?;
    ensure!(lines.next().is_none(), "several lines start with `{prefix}`");
    let numbers = line.split(|character: char| !character.is_ascii_digit()).filter(|digits| !digits.is_empty());
    numbers.map(|digits| digits.parse().with_context(|| format!("in `{prefix}{line}`"))).collect()
}

/// The middle one.
pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    match numbers.len() % 2 {
        _ if numbers.is_empty() => f64::NAN,
        0 => (numbers[middle - 1] + numbers[middle]) / 2.0,
        _ => numbers[middle],
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn numbers_are_found_in_the_one_line() {
        let text = "statuses: ok 3\nidentity: 7012 values compared, 0 differing bits\nonline: 6900, offline: 112\n";
        assert_eq!(numbers_after(text, "identity:").unwrap(), [7012, 0]);
        assert_eq!(numbers_after(text, "online:").unwrap(), [6900, 112]);
        assert!(numbers_after(text, "F7:").is_err());
        assert!(numbers_after("online: 1\nonline: 2", "online:").is_err());
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn a_process_costs_something_and_its_failure_is_seen() {
        let cost = measured(Command::new("sh").args(["-c", "exit 0"])).unwrap();
        assert!(cost.wall_s > 0.0 && cost.memory_mib > 0.0);
        assert!(measured(Command::new("sh").args(["-c", "exit 3"])).is_err());
        let (text, status) = output(Command::new("sh").args(["-c", "echo a; echo b; exit 3"])).unwrap();
        assert_eq!((text.as_str(), status.code()), ("a\nb\n", Some(3)));
    }
}
