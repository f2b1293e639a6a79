//! S9: `eadem serve` on one core, asked for five times as much as it can do.
//!
//! Every request runs a transform of about a millisecond. Whatever is too much has to be refused at once with 503 and
//! `Retry-After`, the server's memory has to stay where it is, and when the overload is over, its speed has to be back.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eadem_benches::bars::Measured;
use eadem_benches::results::{Figure, load_average};
use serde_json::json;

use crate::load::{Load, Overloaded, Pace, post};
use crate::project::{self, Contents};
use crate::serving::{Server, results};

/// The core of the server; the load has the others.
const SERVER_CORE: usize = 0;

/// Requests of the overload, for each that the server can serve.
const FACTOR: f64 = 5.0;
const OVERLOAD: Duration = Duration::from_secs(60);
/// More than the server serves at once (`limits.requests_in_flight_max`), or the load itself would hold back.
const CONNECTIONS: usize = 2_048;
/// Of both ends, and some more.
const OPEN_FILES: u64 = 3 * CONNECTIONS as u64;

/// Enough to keep the server busy, and no more.
const CONNECTIONS_AT_FULL_SPEED: usize = 4;
const SATURATION: Duration = Duration::from_secs(5);
const WARM_UP: Duration = Duration::from_secs(2);
const SEEDS: i64 = 1_000;

/// Speed is looked at in windows of this length, until it is this share of what it was.
const WINDOW: Duration = Duration::from_millis(500);
const FULL_SPEED: f64 = 0.9;
const RECOVERY_S: f64 = 5.0;
/// For so long recovery is waited for.
const RECOVERY_S_MAX: f64 = 60.0;

/// What the server may hold at most, ever.
const MEMORY_MIB_MAX: f64 = 512.0;

const DEFINITIONS: &str = r#"
[view.slow_score]
transform = "transforms/slow_score.wasm"

[view.slow_score.bind]
seed = "request.seed"

[service.score]
features = ["slow_score:*"]
"#;

/// A project of one transform; made anew each time.
fn project() -> Result<PathBuf> {
    let contents = Contents { components: &["slow_score"], settings: "", definitions: DEFINITIONS };
    let folder = project::make("overload", &contents)?;
    project::run(&folder, &["apply"])?;
    Ok(folder)
}

/// The server, on its one core.
fn start(folder: &Path) -> Result<Server> {
    let mut command = Command::new("taskset");
    command.args(["-c", &SERVER_CORE.to_string()]).arg(project::binary()?);
    command.args(["serve", "--listen", "127.0.0.1:0"]);
    Server::start(project::work_on(folder, command))
}

/// Keeps this process off the server's core, with all threads that it starts from here on, and lets it and the server have
/// as many connections as are needed.
fn make_room() -> Result<()> {
    // SAFETY: both are plain numbers, for which zero is a value; the calls are given locals and their sizes.
    #[allow(unsafe_code)]
    unsafe {
        let mut cores: libc::cpu_set_t = std::mem::zeroed();
        let size = std::mem::size_of::<libc::cpu_set_t>();
        ensure!(libc::sched_getaffinity(0, size, &raw mut cores) == 0, "the cores of this process are not known");
        libc::CPU_CLR(SERVER_CORE, &mut cores);
        ensure!(libc::CPU_COUNT(&cores) > 0, "an overload needs a core beside the server's");
        ensure!(libc::sched_setaffinity(0, size, &raw const cores) == 0, "this process cannot be kept to its cores");
        let mut files: libc::rlimit = std::mem::zeroed();
        ensure!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut files) == 0, "the limit of open files is not known");
        files.rlim_cur = files.rlim_cur.max(OPEN_FILES).min(files.rlim_max);
        ensure!(files.rlim_cur >= OPEN_FILES, "an overload needs {OPEN_FILES} open files (ulimit -n)");
        ensure!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files) == 0, "the limit of open files stays");
    }
    Ok(())
}

/// The most memory that a process has had so far, in MiB.
fn memory_peak_mib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    let kib: f64 = peak.context("/proc/PID/status")?.trim().parse()?;
    Ok(kib / 1024.0)
}

/// Whether a reply has the score, and not a status instead of it.
fn is_served(body: &[u8]) -> bool {
    !body.windows(8).any(|bytes| bytes == b"\"status\"")
}

/// How fast the server is with a few connections that ask again as soon as they are answered.
fn saturation(address: &str, requests: &[Vec<u8>], warm_up: Duration, measured: Duration) -> Result<f64> {
    let pace = Pace::Saturating;
    let load = Load { address, requests, connections: CONNECTIONS_AT_FULL_SPEED, pace, warm_up, measured };
    Ok(load.run(|| (), |()| ())?.rate)
}

/// Seconds from `over` until the server is as fast as it was.
fn recovery_s(address: &str, requests: &[Vec<u8>], rate: f64, over: Instant) -> f64 {
    while over.elapsed().as_secs_f64() < RECOVERY_S_MAX {
        // Refusals and broken connections are what has not recovered yet.
        if let Ok(now) = saturation(address, requests, Duration::ZERO, WINDOW)
            && now >= FULL_SPEED * rate
        {
            return (over.elapsed() - WINDOW).as_secs_f64();
        }
    }
    RECOVERY_S_MAX
}

/// What the server does with five times as much as it can do, and afterwards.
pub(crate) fn s9() -> Result<Measured> {
    let load = load_average();
    let folder = project()?;
    make_room()?;
    let mut server = start(&folder)?;
    let body = |seed: i64| json!({ "service": "score@1", "entities": [{}], "request": [{ "seed": seed }] });
    let requests: Vec<Vec<u8>> = (0..SEEDS).map(|seed| post(&server.address, "/features/batch", &body(seed))).collect();
    let first = results(&server.address, &body(7))?;
    ensure!(first[0]["features"]["score"].is_number(), "no score came: {}", first[0]);

    let rate = saturation(&server.address, &requests, WARM_UP, SATURATION)?;
    let memory_before_mib = memory_peak_mib(server.process().id())?;
    let overload = Load {
        address: &server.address,
        requests: &requests,
        connections: CONNECTIONS,
        pace: Pace::Rate(FACTOR * rate),
        warm_up: Duration::ZERO,
        measured: OVERLOAD,
    };
    let mut over = None;
    let Overloaded { served, refused, lost } = overload.overload(is_served, || over = Some(Instant::now()))?;
    let over = over.context("the overload has not ended")?;
    let recovery_s = recovery_s(&server.address, &requests, rate, over);
    let memory_mib = memory_peak_mib(server.process().id())?;
    println!(
        "{rate:.0} requests/s can be served; of five times as many {served} were served ({:.0}/s), {refused} refused, {lost} \
         neither; full speed again after {recovery_s:.1} s; memory {memory_before_mib:.0} MiB before, {memory_mib:.0} at most",
        served as f64 / OVERLOAD.as_secs_f64()
    );
    let value = lost as f64 + (recovery_s - RECOVERY_S).max(0.0);
    let runs = served + refused + lost;
    let name = "requests of an overload, five times what one core can do for 60 s, that were neither served nor refused \
                with 503, and seconds over 5 until full speed is back; runs: requests";
    let figures = vec![
        Figure::alone("S9", name, "requests", value, runs, load),
        Figure::alone("S9.memory", "the same, most memory of the server", "MiB", memory_mib, 1, load),
    ];
    let mut failures = Vec::new();
    if value > 0.0 {
        failures.push(format!("{lost} of {runs} requests were lost, and it took {recovery_s:.1} s to recover"));
    }
    if refused == 0 {
        failures.push("nothing was refused: there was no overload".to_owned());
    }
    if memory_mib > MEMORY_MIB_MAX {
        failures.push(format!("the server took {memory_mib:.0} MiB of memory, more than {MEMORY_MIB_MAX}"));
    }
    let failure = (!failures.is_empty()).then(|| failures.join("; "));
    Ok(Measured { figures, failure })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_with_a_status_is_not_served() {
        assert!(is_served(br#"{"results":[{"entity":{},"features":{"score":0.5}}]}"#));
        assert!(!is_served(br#"{"results":[{"features":{"score":null},"status":{"score":"error"}}]}"#));
    }
}
