//! R3: `eadem serve` at half of what it can do, while components are uploaded, valid and hostile ones.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use arrow_array::cast::AsArray;
use eadem_benches::bars::Measured;
use eadem_benches::results::{Figure, load_average};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value as Json, json};

use crate::load::{Answered, Load, Pace, ask_once, post};
use crate::process::{median, root};
use crate::project::{self, Contents};
use crate::serving::{PATH, Server, results};

/// A build that is not for measuring only shows that everything works.
const UPLOADS: usize = if cfg!(debug_assertions) { 12 } else { 200 };
const WINDOW: Duration = Duration::from_secs(if cfg!(debug_assertions) { 2 } else { 10 });
const WARM_UP: Duration = Duration::from_secs(2);
const QUIET_WINDOWS: usize = 3;
const CONNECTIONS: usize = 16;
/// Enough that one always waits while another is checked.
const UPLOADERS: usize = 3;
/// A check gets what serving leaves.
const REPLY_WAIT: Duration = Duration::from_secs(900);

const VALID: [&str; 4] = ["bench_numeric", "bench_string", "payment_row", "plane_profile"];
const HOSTILE: [&str; 10] = [
    "panics",
    "depends_on_row_order",
    "giant_output",
    "traps",
    "wrong_type",
    "endless_loop_in_apply",
    "memory_bomb_later",
    "imports_random",
    "describe_changes",
    "deep_recursion",
];

const DEFINITIONS: &str = r#"
[entity.aircraft]
keys = { tailnum = "utf8" }

[source.planes]
parquet = "PLANES"
event_time = 2000-01-01T00:00:00Z

[view.plane_profile]
entity = "aircraft"
source = "planes"
transform = "transforms/plane_profile.wasm"

[service.planes]
features = ["plane_profile:*"]
"#;

fn planes() -> Result<PathBuf> {
    let planes = root().join("demo/data/planes.parquet");
    planes.canonicalize().with_context(|| planes.display().to_string())
}

/// Where what is uploaded lies, and a project that is served; made anew each time.
fn project() -> Result<PathBuf> {
    let definitions = DEFINITIONS.replace("PLANES", &planes()?.display().to_string());
    let contents = Contents { components: &["plane_profile"], settings: "", definitions: &definitions };
    let folder = project::make("uploads", &contents)?;
    for verb in [&["apply"][..], &["backfill"], &["materialize"]] {
        project::run(&folder, verb)?;
    }
    Ok(folder)
}

/// One request for each aircraft.
fn requests(address: &str) -> Result<Vec<Vec<u8>>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(planes()?)?)?.build()?;
    let mut requests = Vec::new();
    for batch in reader {
        let batch = batch?;
        let names = batch.column_by_name("tailnum").context("planes have no tailnum")?;
        let names = arrow_array::StringArray::from_iter(names.as_string_opt::<i32>().context("tailnum")?);
        let body = |name: &str| json!({ "service": "planes@1", "entities": [{ "tailnum": name }] });
        requests.extend(names.iter().flatten().map(|name| post(address, PATH, &body(name))));
    }
    Ok(requests)
}

/// The component with one more custom section at its end: another digest, and nothing else.
fn marked(component: &[u8], number: usize) -> Vec<u8> {
    const NAME: &[u8] = b"mark";
    let mark = (number as u64).to_le_bytes();
    let mut bytes = component.to_vec();
    // Id 0, the length of what follows, the length of the name; both lengths are less than 128.
    bytes.extend([0, (1 + NAME.len() + mark.len()) as u8, NAME.len() as u8]);
    bytes.extend(NAME);
    bytes.extend(mark);
    bytes
}

/// One component of each kind in turn, and the status that it has to get.
fn component(number: usize) -> Result<(Vec<u8>, u16)> {
    let (name, status) = match number.is_multiple_of(2) {
        true => (VALID[number / 2 % VALID.len()], 201),
        false => (HOSTILE[number / 2 % HOSTILE.len()], 422),
    };
    let file = root().join(format!("target/components/{name}.wasm"));
    let bytes = std::fs::read(&file).with_context(|| file.display().to_string())?;
    // What is no component gets no section.
    Ok((marked(&bytes, number), status))
}

fn upload(address: &str, bytes: &[u8]) -> Result<(u16, Json)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(REPLY_WAIT))?;
    let head = format!(
        "POST /transforms HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        bytes.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(bytes)?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply)?;
    let reply = String::from_utf8_lossy(&reply);
    let (head, body) = reply.split_once("\r\n\r\n").context("no reply to an upload")?;
    let status = head.split_whitespace().nth(1).context("no status")?.parse()?;
    Ok((status, serde_json::from_str(body).unwrap_or_default()))
}

/// Uploads all of them; gives those that ended otherwise than they have to.
fn upload_all(address: &str, next: &AtomicUsize) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= UPLOADS {
            return Ok(wrong);
        }
        let (bytes, expected) = component(number)?;
        let (status, reply) = upload(address, &bytes)?;
        if status != expected {
            wrong.push(format!("upload {number}: {status} instead of {expected}: {}", reply["detail"]));
        }
    }
}

fn window(address: &str, requests: &[Vec<u8>], pace: Pace) -> Result<Answered> {
    let load = Load { address, requests, connections: CONNECTIONS, pace, warm_up: WARM_UP, measured: WINDOW };
    load.run(|| (), |()| ())
}

/// p95 at half of saturation while components are uploaded, against that without.
pub(crate) fn r3() -> Result<Measured> {
    let load = load_average();
    let folder = project()?;
    let server = Server::eadem(&folder)?;
    let address = server.address.as_str();
    let requests = requests(address)?;
    let first = results(address, &json!({ "service": "planes@1", "entities": [{ "tailnum": "N14228" }] }))?;
    ensure!(first[0]["features"]["seats"].is_number(), "no features came: {}", first[0]);

    let rate = window(address, &requests, Pace::Saturating)?.rate / 2.0;
    let pace = Pace::Rate(rate);
    let mut quiet = Vec::new();
    for _ in 0..QUIET_WINDOWS {
        quiet.push(window(address, &requests, pace)?.percentile_ms(0.95));
    }
    let quiet_ms = median(quiet);

    let next = AtomicUsize::new(0);
    let (busy, wrong) = std::thread::scope(|scope| -> Result<_> {
        let uploaders: Vec<_> = (0..UPLOADERS).map(|_| scope.spawn(|| upload_all(address, &next))).collect();
        let mut busy = Answered::default();
        // A window in which the last upload ended before its end would count quiet time.
        while busy.latencies_us.is_empty() || !uploaders.iter().all(|uploader| uploader.is_finished()) {
            let answered = window(address, &requests, pace)?;
            let is_whole = !uploaders.iter().all(|uploader| uploader.is_finished());
            if is_whole || busy.latencies_us.is_empty() {
                busy.latencies_us.extend(answered.latencies_us);
            }
        }
        busy.latencies_us.sort_unstable();
        let mut wrong = Vec::new();
        for uploader in uploaders {
            match uploader.join() {
                Ok(ended) => wrong.extend(ended?),
                Err(_) => bail!("an uploader panicked"),
            }
        }
        Ok((busy, wrong))
    })?;
    let baseline_ms = (2.0 * quiet_ms).max(quiet_ms + 2.0);
    let busy_ms = busy.percentile_ms(0.95);
    println!(
        "at {rate:.0} requests/s: p95 {quiet_ms:.3} ms quiet, {busy_ms:.3} ms while {UPLOADS} components are checked \
         (p99 {:.3} ms, {} requests)",
        busy.percentile_ms(0.99),
        busy.latencies_us.len()
    );
    let counted = outcomes(address)?;
    println!("checks: {counted:?}");
    let name = "p95 at half of saturation while components are uploaded, half of them hostile, against the greater of twice the \
                quiet p95 and 2 ms more; runs: uploads";
    let figures = vec![
        Figure::against("R3", name, "ms", busy_ms, baseline_ms, UPLOADS as u64, load),
        Figure::alone("R3.quiet", "the same without uploads", "ms", quiet_ms, QUIET_WINDOWS as u64, load),
    ];
    let mut failures = wrong;
    if busy_ms > baseline_ms {
        failures.push(format!("p95 is {busy_ms:.3} ms, more than {baseline_ms:.3} ms"));
    }
    Ok(Measured { figures, failure: (!failures.is_empty()).then(|| failures.join("; ")) })
}

/// What came of the checks, as the server counts them.
fn outcomes(address: &str) -> Result<BTreeMap<String, u64>> {
    let text = ask_once(address, format!("GET /metrics HTTP/1.1\r\nhost: {address}\r\n\r\n").as_bytes())?;
    let text = String::from_utf8(text)?;
    let counted = text.lines().filter_map(|line| {
        let (outcome, count) = line.strip_prefix("eadem_upload_checks_total{outcome=\"")?.split_once("\"} ")?;
        Some((outcome.to_owned(), count.parse().ok()?))
    });
    Ok(counted.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_a_section_of_its_own() {
        let marked = marked(b"\0asm", 7);
        assert_eq!(marked[4..], *b"\0\x0d\x04mark\x07\0\0\0\0\0\0\0");
    }
}
