//! R6: `eadem serve` at half of what it can do for one project, while another one asks for far more than its quota.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use eadem_benches::bars::Measured;
use eadem_benches::results::{Figure, load_average};
use serde_json::json;

use crate::load::{Answered, Load, Overloaded, Pace, metrics, post, post_with};
use crate::planes;
use crate::process::median;
use crate::project::{self, Contents};
use crate::serving::{PATH, Server};

/// A build that is not for measuring only shows that everything works.
const WINDOW: Duration = Duration::from_secs(if cfg!(debug_assertions) { 2 } else { 10 });
const WARM_UP: Duration = Duration::from_secs(2);
const WINDOWS: usize = 3;
const CONNECTIONS: usize = 16;

const GREEDY: &str = "greedy";
/// A fifth of a core.
const QUOTA_US_PER_S: u64 = 200_000;
/// Each takes about a millisecond of a transform: twice as much as there is. What is refused costs the server something too, so with
/// many times as much this would be a bar for an overload, which S9 is.
const GREEDY_RATE: f64 = 400.0;
const GREEDY_CONNECTIONS: usize = 8;
/// Of its quota it has to take this much at least, or nobody was at a quota.
const SHARE_TAKEN_MIN: f64 = 0.8;

const SCORE: &str = "[view.slow_score]\ntransform = \"transforms/slow_score.wasm\"\n\n[view.slow_score.bind]\n\
                     seed = \"request.seed\"\n\n[service.score]\nfeatures = [\"slow_score:*\"]\n";

/// A project of planes, and beside it one of slow scores with a quota; made anew each time.
fn project() -> Result<PathBuf> {
    let definitions = planes::definitions()?;
    let contents = Contents { components: &["plane_profile", "slow_score"], settings: "", definitions: &definitions };
    let folder = project::make("quotas", &contents)?;
    for verb in [&["apply"][..], &["backfill"], &["materialize"], &["project", "create", GREEDY]] {
        project::run(&folder, verb)?;
    }
    std::fs::write(folder.join("features/definitions.toml"), SCORE)?;
    project::run(&folder, &["apply", "--in-project", GREEDY])?;
    let quota = QUOTA_US_PER_S.to_string();
    project::run(&folder, &["project", "quota", GREEDY, "--transform-us-per-s", &quota])?;
    Ok(folder)
}

fn window(address: &str, requests: &[Vec<u8>], pace: Pace) -> Result<Answered> {
    let load = Load { address, requests, connections: CONNECTIONS, pace, warm_up: WARM_UP, measured: WINDOW };
    load.run(|| (), |()| ())
}

fn windows(address: &str, requests: &[Vec<u8>], pace: Pace) -> Result<Vec<f64>> {
    (0..WINDOWS).map(|_| Ok(window(address, requests, pace)?.percentile_ms(0.95))).collect()
}

/// What the greedy project asks for in so much time, and what came of it.
fn greed(address: &str, measured: Duration) -> Result<Overloaded> {
    let body = |seed: i64| json!({ "service": "score@1", "entities": [{}], "request": [{ "seed": seed }] });
    let headers = format!("eadem-project: {GREEDY}\r\n");
    let requests: Vec<Vec<u8>> = (0..1_000).map(|seed| post_with(address, PATH, &headers, &body(seed))).collect();
    let pace = Pace::Rate(GREEDY_RATE);
    let connections = GREEDY_CONNECTIONS;
    let load = Load { address, requests: &requests, connections, pace, warm_up: Duration::ZERO, measured };
    load.overload(|_| true, || ())
}

/// Processor time of the greedy project's transforms, in microseconds.
fn greedy_cpu_us(address: &str) -> Result<f64> {
    let name = "eadem_project_transform_cpu_us_total";
    Ok(metrics(address, name)?.into_iter().filter(|(labels, _)| labels.contains(GREEDY)).map(|(_, value)| value).sum())
}

/// p95 of one project at half of saturation while another one is at its quota, against that without.
pub(crate) fn r6() -> Result<Measured> {
    let load = load_average();
    let folder = project()?;
    let server = Server::eadem(&folder)?;
    let address = server.address.as_str();
    let bodies = planes::bodies()?;
    let requests: Vec<Vec<u8>> = bodies.iter().map(|body| post(address, PATH, body)).collect();
    let rate = window(address, &requests, Pace::Saturating)?.rate / 2.0;
    let quiet_ms = median(windows(address, &requests, Pace::Rate(rate))?);

    let lasts = (WARM_UP + WINDOW) * WINDOWS as u32;
    let before_us = greedy_cpu_us(address)?;
    let (busy, greedy) = std::thread::scope(|scope| -> Result<_> {
        let greedy = scope.spawn(|| greed(address, lasts));
        let busy = windows(address, &requests, Pace::Rate(rate))?;
        match greedy.join() {
            Ok(greedy) => Ok((busy, greedy?)),
            Err(_) => bail!("the greedy project's load panicked"),
        }
    })?;
    let taken_us = greedy_cpu_us(address)? - before_us;
    let share_taken = taken_us / (QUOTA_US_PER_S as f64 * lasts.as_secs_f64());
    let busy_ms = median(busy);
    let baseline_ms = (2.0 * quiet_ms).max(quiet_ms + 2.0);
    let Overloaded { served, refused, lost } = greedy;
    println!(
        "at {rate:.0} requests/s: p95 {quiet_ms:.3} ms quiet, {busy_ms:.3} ms while another project takes {share_taken:.2} of \
         its quota ({served} of its requests served, {refused} refused, {lost} neither)"
    );
    let name = "p95 at half of saturation while another project is at its quota of processor time, against the greater of \
                twice the quiet p95 and 2 ms more";
    let figures = vec![
        Figure::against("R6", name, "ms", busy_ms, baseline_ms, WINDOWS as u64, load),
        Figure::alone("R6.quiet", "the same without the other project", "ms", quiet_ms, WINDOWS as u64, load),
        Figure::alone("R6.taken", "what the other project takes of its quota", "share", share_taken, 1, load),
    ];
    let mut failures = Vec::new();
    if busy_ms > baseline_ms {
        failures.push(format!("p95 is {busy_ms:.3} ms, more than {baseline_ms:.3} ms"));
    }
    if refused == 0 || share_taken < SHARE_TAKEN_MIN {
        failures.push(format!("nobody was at a quota: {refused} requests refused, {share_taken:.2} of it taken"));
    }
    if lost > 0 {
        failures.push(format!("{lost} requests of the other project were neither served nor refused with 429"));
    }
    Ok(Measured { figures, failure: (!failures.is_empty()).then(|| failures.join("; ")) })
}
