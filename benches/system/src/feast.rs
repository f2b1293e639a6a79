//! S5: `eadem serve` against Feast's own feature server, which has its features in Redis.
//!
//! Feast gets what makes it faster, as measured: its fastest form of request (features by their names; one by the name of a
//! feature service costs it twice as much, with or without vectors that were computed before), no access log, no metrics, no
//! log of features, a registry that is never read again, workers that are never replaced, Python without assertions (which
//! switches the checks of types off that Feast would run on each call), hiredis, and the better of two numbers of workers.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use eadem_benches::bars::Measured;
use eadem_benches::results::{Figure, load_average};
use serde_json::{Value as Json, json};

use crate::load::{Pace, ask_once, post};
use crate::process::root;
use crate::project;
use crate::service::{Service, free_port};
use crate::serving::{
    self, FEATURES, Loaded, PATH, RUNS, Server, complete_entities, loaded, median_of, moment, results,
};

const FEAST_PATH: &str = "/get-online-features";

/// The one with more requests in a second of processor time is held against ours.
const WORKERS: [usize; 2] = [1, 2];

/// For how long Feast may start.
const START_WAIT: Duration = Duration::from_secs(120);

/// What is asked for.
#[derive(Debug, Clone, Copy)]
enum Asked {
    /// Ten features as they are stored.
    Stored,
    /// These, and three that are computed from them and from the request: by Feast with pandas, as its users mostly do.
    OnDemand,
    /// By Feast with Python's numbers, which is faster for a single row.
    OnDemandPython,
}

const ON_DEMAND: [&str; 3] = ["log_amount", "amount_ratio", "distance_km"];

impl Asked {
    fn of_ours(self, entity: &str) -> Json {
        let entities = json!([{ "entity_id": entity }]);
        match self {
            Self::Stored => json!({ "service": "stored@1", "entities": entities }),
            Self::OnDemand | Self::OnDemandPython => {
                json!({ "service": "fraud@1", "entities": entities, "request": [moment()] })
            }
        }
    }

    fn of_feast(self, entity: &str) -> Json {
        let mut features: Vec<String> = FEATURES.iter().map(|name| format!("payments:{name}")).collect();
        let mut columns = serde_json::Map::from_iter([("entity_id".to_owned(), json!([entity]))]);
        let view = match self {
            Self::Stored => return json!({ "features": features, "entities": columns }),
            Self::OnDemand => "payment_context",
            Self::OnDemandPython => "payment_context_python",
        };
        features.extend(ON_DEMAND.iter().map(|name| format!("{view}:{name}")));
        let moment = moment();
        let fields = moment.as_object().into_iter().flatten();
        columns.extend(fields.map(|(name, value)| (name.clone(), json!([value]))));
        json!({ "features": features, "entities": columns })
    }
}

/// Requests in a second of the server's processor time.
pub(crate) fn s5() -> Result<Measured> {
    let load = load_average();
    let folder = serving::project()?;
    add_service(&folder)?;
    let ours = Server::eadem(&folder)?;
    let entities: Vec<String> = complete_entities(&ours, "fraud@1", Some(&moment()))?.into_keys().collect();
    let redis = Service::redis()?;
    let repository = fill(&redis, &entities)?;
    let servers = WORKERS.iter().map(|workers| Feast::start(&repository, *workers)).collect::<Result<Vec<_>>>()?;
    let stored = race(Asked::Stored, &ours, &servers, &entities)?;
    let on_demand = race(Asked::OnDemand, &ours, &servers, &entities)?;
    let with_python = race(Asked::OnDemandPython, &ours, &servers, &entities)?;
    let figure = |bar: &str, what: &str, race: &Race| {
        let (theirs, workers) = race.best();
        let name = format!("{what}, JSON, 16 connections, against Feast's server (workers: {workers})");
        Figure::against(bar, &name, "requests/cpu-s", per_cpu_s(&race.ours), theirs, RUNS, load)
    };
    let rate = Figure::against(
        "S5.rate",
        "one entity, 10 stored features, without regard to processor time, against Feast's fastest",
        "requests/s",
        rate(&stored.ours),
        stored.theirs.iter().map(|runs| rate(runs)).fold(0.0, f64::max),
        RUNS,
        load,
    );
    Ok(vec![
        figure("S5", "one entity, 10 stored features", &stored),
        figure("S5.odfv", "one entity, 10 stored features and an on-demand transform", &on_demand),
        figure("S5.python", "the same, Feast's transform in Python without pandas", &with_python),
        rate,
    ]
    .into())
}

/// Loads of our server, and of Feast with each number of workers.
struct Race {
    ours: Vec<Loaded>,
    theirs: Vec<Vec<Loaded>>,
}

impl Race {
    /// Requests in a second of processor time, and with how many workers.
    fn best(&self) -> (f64, usize) {
        let of_each = self.theirs.iter().map(|runs| per_cpu_s(runs)).zip(WORKERS);
        of_each.fold((0.0, 0), |best, next| if next.0 > best.0 { next } else { best })
    }
}

fn per_cpu_s(runs: &[Loaded]) -> f64 {
    median_of(runs, |run| 1e6 / run.cpu_us_per_request)
}

fn rate(runs: &[Loaded]) -> f64 {
    median_of(runs, |run| run.answered.rate)
}

fn race(asked: Asked, ours: &Server, feast: &[Feast], entities: &[String]) -> Result<Race> {
    let to_ours: Vec<Json> = entities.iter().map(|entity| asked.of_ours(entity)).collect();
    let to_feast: Vec<Json> = entities.iter().map(|entity| asked.of_feast(entity)).collect();
    for (to_ours, to_feast) in to_ours.iter().zip(&to_feast).step_by(97) {
        for feast in feast {
            compare(&values_of_ours(ours, to_ours)?, &values_of_feast(&feast.server, to_feast)?)?;
        }
    }
    let mut race = Race { ours: Vec::new(), theirs: feast.iter().map(|_| Vec::new()).collect() };
    println!("{asked:?}: {RUNS} times ours, and Feast's with {WORKERS:?} workers");
    for _ in 0..RUNS {
        race.ours.push(loaded(ours, PATH, &to_ours, Pace::Saturating)?);
        for (feast, runs) in feast.iter().zip(&mut race.theirs) {
            runs.push(loaded(&feast.server, FEAST_PATH, &to_feast, Pace::Saturating)?);
        }
    }
    Ok(race)
}

/// Features by name.
type Values = BTreeMap<String, Json>;

fn values_of_ours(server: &Server, body: &Json) -> Result<Values> {
    let result = results(&server.address, body)?.into_iter().next().context("no result")?;
    let features = result["features"].as_object().context("no features")?;
    Ok(features.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
}

/// Feast answers by columns, the entities' keys among them.
fn values_of_feast(server: &Server, body: &Json) -> Result<Values> {
    let reply: Json = serde_json::from_slice(&ask_once(&server.address, &post(&server.address, FEAST_PATH, body))?)?;
    let (names, columns) = (reply["metadata"]["feature_names"].as_array(), reply["results"].as_array());
    let (Some(names), Some(columns)) = (names, columns) else { bail!("no features: {reply}") };
    let named = names.iter().zip(columns).map(|(name, column)| {
        let name = name.as_str().context("a name that is no text")?;
        Ok((name.to_owned(), column["values"][0].clone()))
    });
    let mut values = named.collect::<Result<Values>>()?;
    values.remove("entity_id");
    Ok(values)
}

/// Stored values have to be the same; what is computed may differ in last digits, where another library of mathematics was at
/// work.
fn compare(ours: &Values, theirs: &Values) -> Result<()> {
    let is_same = |(name, ours): (&String, &Json)| match (ours.as_f64(), theirs.get(name).and_then(Json::as_f64)) {
        (Some(ours), Some(theirs)) if ON_DEMAND.contains(&name.as_str()) => (ours - theirs).abs() <= 1e-9 * ours.abs(),
        _ => theirs.get(name) == Some(ours),
    };
    ensure!(ours.len() == theirs.len() && ours.iter().all(is_same), "replies differ: {ours:?} and {theirs:?}");
    Ok(())
}

/// The service of the ten stored features alone.
fn add_service(folder: &Path) -> Result<()> {
    std::fs::write(folder.join("features/stored.toml"), "[service.stored]\nfeatures = [\"payment_row_1:*\"]\n")?;
    project::run(folder, &["apply"])
}

fn python() -> Command {
    let mut command = Command::new(root().join("target/bench/venv-feast/bin/python"));
    command.args(["-W", "ignore"]).env("FEAST_USAGE", "False").stdin(Stdio::null());
    command
}

/// A repository of Feast's whose features are in this Redis.
fn fill(redis: &Service, entities: &[String]) -> Result<PathBuf> {
    let asked = redis.folder().join("entities.json");
    std::fs::write(&asked, serde_json::to_vec(entities)?)?;
    let repository = redis.folder().join("feast");
    let ended = python()
        .arg(root().join("benches/peers/feast_serving.py"))
        .arg(root().join("target/bench/payments"))
        .arg(asked)
        .arg(format!("127.0.0.1:{}", redis.port))
        .arg(&repository)
        .stdout(Stdio::null())
        .status()?;
    ensure!(ended.success(), "feast_serving.py ended with {ended}");
    Ok(repository)
}

/// `feast serve`, which ends with this.
struct Feast {
    server: Server,
}

impl Feast {
    fn start(repository: &Path, workers: usize) -> Result<Self> {
        let port = free_port()?;
        let log = repository.join(format!("workers-{workers}.log"));
        let process = python()
            // Feast's command is this module; the script of that name names the folder that Python was installed to.
            .args(["-m", "feast.cli.cli", "-c"])
            .arg(repository)
            .args(["serve", "--no-access-log", "--port", &port.to_string(), "--workers", &workers.to_string()])
            // Never: workers replaced, connections closed, the registry read again.
            .args(["--max-requests", "0", "--max-requests-jitter", "0", "--keep-alive-timeout", "3600"])
            .args(["--registry_ttl_sec", "0"])
            .env("PYTHONOPTIMIZE", "1")
            .stdout(File::create(&log)?)
            .stderr(File::options().append(true).open(&log)?)
            .spawn()
            .context("cannot start Feast")?;
        let mut feast = Self { server: Server::of(process, format!("127.0.0.1:{port}")) };
        feast.wait_until_ready().with_context(|| {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            format!("Feast did not start:\n{said}")
        })?;
        Ok(feast)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let address = self.server.address.clone();
        let question = format!("GET /health HTTP/1.1\r\nhost: {address}\r\n\r\n").into_bytes();
        let began = Instant::now();
        while let Err(error) = ask_once(&address, &question) {
            ensure!(self.server.process().try_wait()?.is_none(), "it ended");
            ensure!(began.elapsed() < START_WAIT, "it does not answer: {error:#}");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

impl Drop for Feast {
    /// The first of its processes ends the workers, if it is asked to; killed, it would leave them behind.
    fn drop(&mut self) {
        let process = self.server.process();
        let asked = Command::new("kill").args(["-TERM", &process.id().to_string()]).status();
        if asked.is_ok_and(|ended| ended.success()) {
            let _ = process.wait();
        }
    }
}
