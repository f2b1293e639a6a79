//! S1 to S3: `eadem serve` with its embedded store, against the least that such a server has to do.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use eadem_benches::bars::Measured;
use eadem_benches::results::{Figure, load_average};
use serde_json::{Value as Json, json};

use crate::load::{Answered, Load, Pace, ask_once, post};
use crate::process::{cpu_us_of_tree, median, root};
use crate::project::{self, Contents};

/// Where our server answers.
pub(crate) const PATH: &str = "/features/batch";

const CONNECTIONS: usize = 16;
pub(crate) const RUNS: u64 = 5;
const WARM_UP: Duration = Duration::from_secs(2);
const MEASURED: Duration = Duration::from_secs(8);

/// Entities that are asked for, in turn.
const ENTITIES: usize = 10_000;

/// Views of ten features each of the wide service.
const WIDE_VIEWS: usize = 5;
const WIDE_ENTITIES: usize = 100;

pub(crate) const FEATURES: [&str; 10] =
    ["amount", "merchant_category", "is_foreign", "lat", "lon", "f0", "f1", "f2", "f3", "f4"];

/// The moment of every request.
pub(crate) fn moment() -> Json {
    json!({ "txn_lat": 40.7, "txn_lon": -74.0, "txn_amount": 12.5 })
}

/// A project over the payments, its online store loaded. It is made once.
pub(crate) fn project() -> Result<PathBuf> {
    let ready = project::folder("serving").join("ready");
    if let Some(folder) = ready.parent().filter(|_| ready.exists()) {
        return Ok(folder.canonicalize()?);
    }
    let definitions = payment_views(&events()?, "", WIDE_VIEWS)
        + &payment_context()
        + "\n[service.fraud]\nfeatures = [\"payment_row_1:*\", \"payment_context:*\"]\n"
        + &service_of_views("wide", WIDE_VIEWS);
    let components = &["payment_row", "payment_context"];
    let folder = project::make("serving", &Contents { components, settings: "", definitions: &definitions })?;
    for verb in [&["apply"][..], &["backfill"], &["materialize"]] {
        project::run(&folder, verb)?;
    }
    std::fs::write(ready, "")?;
    Ok(folder)
}

/// The payments that the generator has made.
pub(crate) fn events() -> Result<PathBuf> {
    let events = root().join("target/bench/payments/events");
    events.canonicalize().with_context(|| format!("scripts/bench.sh makes {}", events.display()))
}

/// So many equal views of payments, over a source with more to say about it.
pub(crate) fn payment_views(events: &Path, of_source: &str, count: usize) -> String {
    let mut text = format!(
        "[entity.user]\nkeys = {{ entity_id = \"utf8\" }}\n\n\
         [source.payments]\nparquet = \"{}\"\nevent_time = \"event_timestamp\"\n{of_source}",
        events.display()
    );
    for number in 1..=count {
        text += &format!(
            "\n[view.payment_row_{number}]\nentity = \"user\"\nsource = \"payments\"\n\
             transform = \"transforms/payment_row.wasm\"\n"
        );
    }
    text
}

/// A service of all features of so many [`payment_views`].
pub(crate) fn service_of_views(name: &str, count: usize) -> String {
    let mut text = format!("\n[service.{name}]\nfeatures = [\n");
    for number in 1..=count {
        for feature in FEATURES {
            text += &format!("    \"payment_row_{number}:{feature} as {feature}_{number}\",\n");
        }
    }
    text + "]\n"
}

fn payment_context() -> String {
    let mut text =
        "\n[view.payment_context]\ntransform = \"transforms/payment_context.wasm\"\n\n[view.payment_context.bind]\n"
            .to_owned();
    for input in ["amount", "lat", "lon"] {
        text += &format!("{input} = \"payment_row_1.{input}\"\n");
    }
    for input in ["txn_lat", "txn_lon", "txn_amount"] {
        text += &format!("{input} = \"request.{input}\"\n");
    }
    text
}

/// A server that ends with this.
pub(crate) struct Server {
    process: Child,
    pub(crate) address: String,
}

impl Server {
    /// Starts a server that says where it listens.
    pub(crate) fn start(mut command: Command) -> Result<Self> {
        let mut process = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn()?;
        let output = process.stdout.take().context("the server has no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let Some(address) = line.trim().strip_prefix("serving on http://").map(str::to_owned) else {
            let _ = process.kill();
            bail!("the server did not start: {line}")
        };
        Ok(Self { process, address })
    }

    pub(crate) fn eadem(folder: &Path) -> Result<Self> {
        let mut command = project::eadem(folder)?;
        command.args(["serve", "--listen", "127.0.0.1:0"]);
        Self::start(command)
    }

    /// One that this program is itself, by a verb of it.
    pub(crate) fn of_verb(verb: &str, argument: impl AsRef<OsStr>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(verb).arg(argument);
        Self::start(command)
    }

    /// One that is just starting, and where it will listen.
    pub(crate) fn of(process: Child, address: String) -> Self {
        Self { process, address }
    }

    pub(crate) fn process(&mut self) -> &mut Child {
        &mut self.process
    }

    /// Processor time so far, in microseconds: of the server's threads and processes, and the kernel's work for them.
    fn cpu_us(&self) -> Result<f64> {
        cpu_us_of_tree(self.process.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Both servers, and requests that they answer alike.
struct Pair {
    ours: Server,
    mirror: Server,
    bodies: Vec<Json>,
}

/// What a load cost a server.
pub(crate) struct Loaded {
    pub(crate) answered: Answered,
    pub(crate) cpu_us_per_request: f64,
}

impl Pair {
    /// Of the narrow service, one entity in a request.
    fn start() -> Result<Self> {
        let folder = project()?;
        let ours = Server::eadem(&folder)?;
        let known = complete_entities(&ours, "fraud@1", Some(&moment()))?;
        let body = |entity: &String| json!({ "service": "fraud@1", "entities": [{ "entity_id": entity }], "request": [moment()] });
        let bodies: Vec<Json> = known.keys().map(body).collect();
        let file = folder.join("known.json");
        std::fs::write(&file, serde_json::to_vec(&known)?)?;
        let mirror = Server::of_verb("mirror", &file)?;
        check_same(&ours, &mirror, &bodies)?;
        Ok(Self { ours, mirror, bodies })
    }
}

/// Refuses to measure servers that answer differently.
pub(crate) fn check_same(ours: &Server, theirs: &Server, bodies: &[Json]) -> Result<()> {
    for body in bodies.iter().step_by(97) {
        let (ours, theirs) = (results(&ours.address, body)?, results(&theirs.address, body)?);
        let same = |part: &str| ours[0][part] == theirs[0][part];
        ensure!(same("entity") && same("features"), "replies differ: {} and {}", ours[0], theirs[0]);
    }
    Ok(())
}

/// Loads of two servers, which took turns.
pub(crate) struct Sides {
    ours: Vec<Loaded>,
    theirs: Vec<Loaded>,
    /// Of the machine, before anything of the bar was done.
    load: f64,
}

impl Sides {
    /// After so many turns that do not count. `load` is the machine's, from before the bar was prepared.
    pub(crate) fn measure(
        ours: &Server,
        theirs: &Server,
        bodies: &[Json],
        (pace, warm_ups): (Pace, u64),
        load: f64,
    ) -> Result<Self> {
        let mut sides = Self { ours: Vec::new(), theirs: Vec::new(), load };
        for turn in 0..warm_ups + RUNS {
            let of_ours = loaded(ours, PATH, bodies, pace)?;
            let of_theirs = loaded(theirs, PATH, bodies, pace)?;
            if turn >= warm_ups {
                sides.ours.push(of_ours);
                sides.theirs.push(of_theirs);
            }
        }
        Ok(sides)
    }

    /// The medians of both.
    pub(crate) fn figure(&self, bar: &str, name: &str, unit: &str, part: impl Fn(&Loaded) -> f64) -> Figure {
        Figure::against(bar, name, unit, median_of(&self.ours, &part), median_of(&self.theirs, &part), RUNS, self.load)
    }

    /// The median of ours.
    fn figure_of_ours(&self, bar: &str, name: &str, unit: &str, part: impl Fn(&Loaded) -> f64) -> Figure {
        Figure::alone(bar, name, unit, median_of(&self.ours, part), RUNS, self.load)
    }
}

pub(crate) fn median_of(runs: &[Loaded], part: impl Fn(&Loaded) -> f64) -> f64 {
    median(runs.iter().map(part).collect())
}

/// Sends these bodies in turn.
pub(crate) fn loaded(server: &Server, path: &str, bodies: &[Json], pace: Pace) -> Result<Loaded> {
    let requests: Vec<Vec<u8>> = bodies.iter().map(|body| post(&server.address, path, body)).collect();
    let load = Load {
        address: &server.address,
        requests: &requests,
        connections: CONNECTIONS,
        pace,
        warm_up: WARM_UP,
        measured: MEASURED,
    };
    let mut cpu_us = f64::NAN;
    let answered = load
        .run(|| server.cpu_us().unwrap_or(f64::NAN), |before| cpu_us = server.cpu_us().unwrap_or(f64::NAN) - before)?;
    let cpu_us_per_request = cpu_us / answered.latencies_us.len() as f64;
    println!(
        "{:.0} requests/s, p50 {:.3} ms, p95 {:.3} ms, p99 {:.3} ms, p99.9 {:.3} ms, {cpu_us_per_request:.1} µs of processor a request",
        answered.rate,
        answered.percentile_ms(0.5),
        answered.percentile_ms(0.95),
        answered.percentile_ms(0.99),
        answered.percentile_ms(0.999),
    );
    Ok(Loaded { answered, cpu_us_per_request })
}

/// The answers of our server, or of one that answers like it.
pub(crate) fn results(address: &str, body: &Json) -> Result<Vec<Json>> {
    let reply = ask_once(address, &post(address, PATH, body))?;
    let mut reply: Json = serde_json::from_slice(&reply)?;
    match reply["results"].take() {
        Json::Array(results) => Ok(results),
        other => bail!("no results: {other}"),
    }
}

/// Users that have made payments, as the generator names them.
pub(crate) fn entities() -> Result<Vec<String>> {
    let meta = root().join("target/bench/payments/meta.json");
    let meta: Json = serde_json::from_slice(&std::fs::read(&meta).with_context(|| meta.display().to_string())?)?;
    let known = meta["entities"].as_u64().context("meta.json does not say how many entities there are")?;
    let step = usize::try_from(known)? / ENTITIES;
    Ok((0..ENTITIES).map(|number| format!("user_{:06}", number * step)).collect())
}

/// Those of [`entities`] that all features of a service are there for, with them. One row in a hundred has a null, of which
/// others say something else than we, or nothing.
pub(crate) fn complete_entities(ours: &Server, service: &str, moment: Option<&Json>) -> Result<BTreeMap<String, Json>> {
    let mut complete = BTreeMap::new();
    for asked in entities()?.chunks(WIDE_ENTITIES) {
        let keys: Vec<Json> = asked.iter().map(|entity| json!({ "entity_id": entity })).collect();
        let mut body = json!({ "service": service, "entities": keys });
        if let Some(moment) = moment {
            body["request"] = json!(vec![moment; asked.len()]);
        }
        let answered = results(&ours.address, &body)?;
        ensure!(answered.len() == asked.len(), "{} answers for {} entities", answered.len(), asked.len());
        let with_all = asked.iter().zip(answered).filter(|(_, result)| result.get("status").is_none());
        complete.extend(with_all.map(|(entity, mut result)| (entity.clone(), result["features"].take())));
    }
    ensure!(complete.len() > ENTITIES / 2, "only {} of {ENTITIES} entities have all features", complete.len());
    Ok(complete)
}

/// Requests a second of both sides, and what one costs.
pub(crate) fn s1() -> Result<Measured> {
    let load = load_average();
    let Pair { ours, mirror, bodies } = Pair::start()?;
    let sides = Sides::measure(&ours, &mirror, &bodies, (Pace::Saturating, 0), load)?;
    let name = "one entity of 10,000, mostly in memory, 10 stored features and an on-demand transform, 16 connections, against \
                the least a server does";
    Ok(vec![
        sides.figure("S1", name, "requests/s", |loaded| loaded.answered.rate),
        sides.figure("S1.cpu", "the same, processor time of a request", "µs", |loaded| loaded.cpu_us_per_request),
    ]
    .into())
}

/// Latencies at half of what our side can do.
pub(crate) fn s2() -> Result<Measured> {
    let load = load_average();
    let Pair { ours, mirror, bodies } = Pair::start()?;
    let saturation = loaded(&ours, PATH, &bodies, Pace::Saturating)?.answered.rate;
    let sides = Sides::measure(&ours, &mirror, &bodies, (Pace::Rate(saturation / 2.0), 0), load)?;
    let percentile = |share: f64| move |loaded: &Loaded| loaded.answered.percentile_ms(share);
    let name =
        format!("95th percentile of latency at {:.0} requests/s, half of our saturation, open loop", saturation / 2.0);
    Ok(vec![
        sides.figure("S2", &name, "ms", percentile(0.95)),
        sides.figure_of_ours("S2.p95", "the same, ours", "ms", percentile(0.95)),
        sides.figure_of_ours("S2.p99", "99th percentile, ours", "ms", percentile(0.99)),
        sides.figure_of_ours("S2.p999", "99.9th percentile, ours", "ms", percentile(0.999)),
    ]
    .into())
}

/// Many entities and features in a request.
pub(crate) fn s3() -> Result<Measured> {
    let load = load_average();
    let server = Server::eadem(&project()?)?;
    let entities = entities()?;
    let body = |entities: &[String]| {
        let entities: Vec<Json> = entities.iter().map(|entity| json!({ "entity_id": entity })).collect();
        json!({ "service": "wide@1", "entities": entities })
    };
    let bodies: Vec<Json> = entities.chunks(WIDE_ENTITIES).map(body).collect();
    let first = results(&server.address, &bodies[0])?;
    let features = first.first().and_then(|result| result["features"].as_object()).map_or(0, serde_json::Map::len);
    ensure!(first.len() == WIDE_ENTITIES && features == WIDE_VIEWS * FEATURES.len(), "{features} features came");
    let absent = first.iter().filter(|result| result.get("status").is_some()).count();
    ensure!(absent < WIDE_ENTITIES / 2, "features of {absent} entities are missing: {}", first[0]);
    let values = (WIDE_ENTITIES * features) as f64;
    let mut runs = Vec::new();
    for _ in 0..RUNS {
        runs.push(loaded(&server, PATH, &bodies, Pace::Saturating)?);
    }
    let rate = median_of(&runs, |run| run.answered.rate) * values;
    let p95 = median_of(&runs, |run| run.answered.percentile_ms(0.95));
    Ok(vec![
        Figure::alone(
            "S3",
            "100 entities and 50 features (of five views) in a request, mostly in memory, JSON",
            "values/s",
            rate,
            RUNS,
            load,
        ),
        Figure::alone("S3.p95", "the same with 16 connections, 95th percentile of latency", "ms", p95, RUNS, load),
    ]
    .into())
}
