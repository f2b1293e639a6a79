//! Whole processes: what they cost and what they say.

use std::collections::BTreeMap;
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

/// Processor time so far, in microseconds: of a process, of those that descend from it, and of those among them that have ended
/// and were waited for.
///
/// # Errors
/// There is no such process.
pub(crate) fn cpu_us_of_tree(root: u32) -> Result<f64> {
    let mut processes = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // One that ended just now is its parent's.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        // Behind the name, which may hold anything, the 2nd field is the parent, and the 12th to 15th are times in ticks of
        // 10 ms: user and system, its own and those of children.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let field = |at: usize| fields.get(at).and_then(|text| text.parse::<u32>().ok()).context("/proc/PID/stat");
        processes.insert(pid, (field(1)?, (11..15).map(field).sum::<Result<u32>>()?));
    }
    ensure!(processes.contains_key(&root), "there is no process {root}");
    let parent_of = |pid: &u32| processes.get(pid).map(|(parent, _)| *parent);
    let is_of_tree = |pid: u32| std::iter::successors(Some(pid), parent_of).any(|pid| pid == root);
    let ticks: u32 = processes.iter().filter(|(pid, _)| is_of_tree(**pid)).map(|(_, (_, ticks))| ticks).sum();
    Ok(f64::from(ticks) * 1e4)
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
    fn the_time_of_a_tree_is_that_of_all_in_it() {
        let before = cpu_us_of_tree(std::process::id()).unwrap();
        let busy = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
        // One that has ended, of one that still runs.
        let script = format!("sh -c '{busy}'; echo done; read line");
        let mut child =
            Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let of_child = cpu_us_of_tree(child.id()).unwrap();
        let of_all = cpu_us_of_tree(std::process::id()).unwrap() - before;
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(of_child > 0.0 && of_all >= of_child, "{of_child} µs of {of_all} µs");
        assert!(cpu_us_of_tree(child.id()).is_err());
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
