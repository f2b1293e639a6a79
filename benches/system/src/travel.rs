//! H6: features of single entities long ago, over HTTP, from a table of 50 M rows that no online store has.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use eadem_benches::bars::Measured;
use eadem_benches::results::{Figure, load_average};
use serde_json::Value as Json;

use crate::process::{root, wait};

const REQUESTS: usize = 2_000;
const MEMORY_MIB_MAX: f64 = 512.0;
const FILES_MIN: usize = 30;

const DEFINITIONS: &str = r#"
[entity.user]
keys = { entity_id = "utf8" }

[source.events]
parquet = "../payments-50m/events"
event_time = "event_timestamp"
max_ahead = "3650d"

[view.payments]
entity = "user"
source = "events"
transform = "transforms/payments.wasm"
"#;

/// Reads 2,000 entities, each once, from a fresh server.
pub(crate) fn h6() -> Result<Measured> {
    let project = prepared(&root().join("target/bench/h6"))?;
    let (files, rows) = data_files(&project.join(".eadem/offline/views"))?;
    ensure!(files >= FILES_MIN, "the table has {files} data files; at least {FILES_MIN} are asked for");
    let users = users(&root().join("target/bench/payments-50m/meta.json"))?;
    let load = load_average();
    let mut server = Server::start(&project)?;
    let read_before = server.bytes_read()?;
    let mut milliseconds = Vec::with_capacity(REQUESTS);
    for number in 0..REQUESTS {
        milliseconds.push(server.ask(number, users)?);
    }
    let bytes = (server.bytes_read()? - read_before) as f64 / REQUESTS as f64;
    let memory_mib = server.stop()?;
    milliseconds.sort_by(f64::total_cmp);
    let percentile = |part: f64| milliseconds[(part * (REQUESTS - 1) as f64).round() as usize];
    let runs = REQUESTS as u64;
    let name = format!("one entity at an old timestamp, {rows} rows in {files} files, p95 over HTTP");
    let alone = |bar: &str, name: &str, unit: &str, value: f64| Figure::alone(bar, name, unit, value, runs, load);
    let figures = vec![
        alone("H6", &name, "ms", percentile(0.95)),
        alone("H6.p50", "the same, median", "ms", percentile(0.5)),
        alone("H6.max", "the same, the slowest", "ms", percentile(1.0)),
        alone("H6.bytes", "bytes read from files for one request, those of indexes included", "bytes", bytes),
        alone("H6.memory", "the server, most resident memory", "MiB", memory_mib),
    ];
    let is_too_large = memory_mib >= MEMORY_MIB_MAX;
    let failure = is_too_large.then(|| format!("the server took {memory_mib:.0} of {MEMORY_MIB_MAX} MiB"));
    Ok(Measured { figures, failure })
}

/// The product's binary, built like this one.
fn eadem() -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    let binary = this.parent().context("this program lies nowhere")?.join("eadem");
    ensure!(binary.is_file(), "{} is missing: scripts/bench.sh builds it", binary.display());
    Ok(binary)
}

/// The project with its table filled by a backfill, once and for all; the mark is made last.
fn prepared(project: &Path) -> Result<PathBuf> {
    let mark = project.join("filled");
    if mark.exists() {
        return Ok(project.canonicalize()?);
    }
    if project.exists() {
        std::fs::remove_dir_all(project)?;
    }
    std::fs::create_dir_all(project.join("features"))?;
    std::fs::create_dir_all(project.join("transforms"))?;
    std::fs::write(project.join("eadem.toml"), "")?;
    std::fs::write(project.join("features/payments.toml"), DEFINITIONS)?;
    let component = root().join("target/components/payments.wasm");
    std::fs::copy(&component, project.join("transforms/payments.wasm"))
        .with_context(|| component.display().to_string())?;
    for verb in ["apply", "backfill"] {
        let mut command = Command::new(eadem()?);
        let status = command.current_dir(project).arg(verb).stdout(Stdio::null()).status()?;
        ensure!(status.success(), "eadem {verb} ended with {status}");
    }
    std::fs::write(mark, "")?;
    Ok(project.canonicalize()?)
}

/// Data files below a folder, and the rows in them.
fn data_files(folder: &Path) -> Result<(usize, i64)> {
    let written = crate::table::written(folder)?;
    Ok((written.files, written.rows))
}

/// How many users the generator made up.
fn users(meta: &Path) -> Result<usize> {
    let meta: Json = serde_json::from_slice(&std::fs::read(meta).with_context(|| meta.display().to_string())?)?;
    let users = meta["entities"].as_u64().context("meta.json says no number of entities")?;
    ensure!(users as usize >= REQUESTS, "there are {users} users, {REQUESTS} different ones are asked for");
    Ok(users as usize)
}

/// A server that has served nobody yet.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(project: &Path) -> Result<Self> {
        let mut process = Command::new(eadem()?)
            .current_dir(project)
            .args(["serve", "--listen", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(process.stdout.take().context("no standard output")?).lines();
        let address = loop {
            let Some(line) = lines.next() else {
                process.kill()?;
                bail!("the server ended before it listened");
            };
            if let Some((_, address)) = line?.split_once("serving on http://") {
                break address.trim().to_owned();
            }
        };
        // Whatever it says later is read, so that it never waits for a reader.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Ok(Self { process, address })
    }

    /// Asks for all features of one user, and gives how many milliseconds that took.
    fn ask(&self, number: usize, users: usize) -> Result<f64> {
        let user = number * (users / REQUESTS);
        // Days and hours that have nothing to do with the user's number.
        let minute = (number * 7_919) % (28 * 24 * 60);
        let (day, hour, minute) = (minute / (24 * 60) + 2, minute / 60 % 24, minute % 60);
        let path = format!(
            "/features/user_{user:06}?entity=user&timestamp=2026-01-{day:02}T{hour:02}:{minute:02}:00Z&include=metadata"
        );
        let began = Instant::now();
        let mut stream = TcpStream::connect(&self.address)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address)?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        let milliseconds = began.elapsed().as_secs_f64() * 1e3;
        let (head, body) = reply.split_once("\r\n\r\n").context("the reply has no end of its head")?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {reply}");
        let body: Json = serde_json::from_str(body.trim())?;
        // Everybody paid on the first day.
        let found = &body["metadata"]["category"];
        ensure!(found["status"] == "present" && found["store"] == "offline", "{path}: {body}");
        Ok(milliseconds)
    }

    /// Bytes that the process has read from files so far; what comes over sockets is not among them.
    fn bytes_read(&self) -> Result<u64> {
        let counts = std::fs::read_to_string(format!("/proc/{}/io", self.process.id()))?;
        let line = counts.lines().find_map(|line| line.strip_prefix("rchar: ")).context("no rchar")?;
        Ok(line.trim().parse()?)
    }

    /// Ends it, and gives its peak of resident memory in MiB.
    fn stop(&mut self) -> Result<f64> {
        let told = Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status()?;
        ensure!(told.success(), "the server cannot be told to end");
        let (status, usage) = wait(self.process.id())?;
        ensure!(status == 0, "the server ended with wait status {status}");
        // Linux counts it in KiB.
        Ok(usage.ru_maxrss as f64 / 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
    }
}
