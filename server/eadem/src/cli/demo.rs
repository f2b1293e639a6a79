//! `demo`: the whole loop on the 2013 New York flights, by the same verbs that a user types.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail};
use arrow_array::cast::AsArray as _;
use arrow_array::types::{Int64Type, TimestampMicrosecondType};
use arrow_array::{Array as _, ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use clap::Args;
use eadem_online::EmbeddedStore;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value as Json, json};

use super::{Context, PROJECT_FILE};
use crate::client::Client;
use crate::output::Format;
use crate::tls::Trust;

/// Run the whole loop on real flights.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// The folder to make and to leave behind.
    #[arg(long, default_value = "eadem-demo")]
    dir: PathBuf,
    /// Departures in the training set.
    #[arg(long, default_value_t = 1_000)]
    rows: usize,
    /// Plant a wrong bit before the last audit: the demo must fail.
    #[arg(long)]
    plant: bool,
    /// The folder `demo` of an eadem checkout; default: found from where this program stands.
    #[arg(long, env = "EADEM_DEMO_DATA")]
    from: Option<PathBuf>,
}

const TRANSFORMS: [&str; 8] = [
    "plane_profile",
    "tail_number",
    "aircraft_legs",
    "airport_weather",
    "airport_shape",
    "nearest_hubs",
    "completed_flights",
    "departure_context",
];

/// The marker of a folder that the demo made and may make again.
const MARKER: &str = ".eadem-demo";

/// Where the demo's project keeps its online store, whose lock says whether a process works on it.
const ONLINE_STORE: &str = ".eadem/online";

const MINUTE_US: i64 = 60_000_000;
const HOUR_US: i64 = 60 * MINUTE_US;

impl Demo {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let started = Instant::now();
        let from = match self.from.clone() {
            Some(from) => from,
            None => find_demo()?,
        };
        let mut steps = Steps { dir: std::path::absolute(&self.dir)?, context, results: Vec::new() };
        steps.lay_out(&from)?;

        steps.title("1. Build the transforms to components");
        for transform in TRANSFORMS {
            let folder = from.join("../transforms").join(transform);
            steps.run(&["build", &folder.display().to_string(), "--out", "transforms"])?;
        }
        steps.title("2. Upload them: each is checked before it is accepted, and a hostile one is refused");
        let paths: Vec<String> = TRANSFORMS.iter().map(|name| format!("transforms/{name}.wasm")).collect();
        let push: Vec<&str> = std::iter::once("push").chain(paths.iter().map(String::as_str)).collect();
        steps.run(&push)?;
        std::fs::write(steps.dir.join("transforms/not_a_component.wasm"), b"\0asm\x01\0\0\0")?;
        steps.run_to_failure(&["push", "transforms/not_a_component.wasm"])?;

        steps.title("3. Plan and apply the definitions in features/");
        steps.run(&["plan"])?;
        steps.run(&["apply"])?;

        steps.title("4. Backfill the year 2013 through the components");
        steps.run(&["backfill"])?;

        steps.title("5. Load the online store, with a year of history");
        steps.run(&["materialize", "--as-of", "2014-01-01T12:00:00Z"])?;

        steps.title("6. A training set: departures of the year, each as it stood an hour before schedule");
        let departures = write_spine(&steps.dir, self.rows)?;
        steps.note(&format!("wrote spine.parquet: {departures} departures"));
        let service = "departure_delay@1";
        steps.run(&[
            "dataset",
            "create",
            "--service",
            service,
            "--spine",
            "spine.parquet",
            "--out",
            "training.parquet",
        ])?;

        steps.title("7. Serve, and ask over HTTP");
        let server = Server::start(&steps)?;
        steps.note(&format!("$ eadem serve        # http://{}", server.address));
        let client = Client::local(&server.address, None, &Trust::Authorities(None))?;
        show_requests(&mut steps, &client).await?;

        steps.title("8. Audit: what the server serves, against the training set, bit for bit");
        let audit = ["audit", "--service", service, "--spine", "spine.parquet", "--dataset", "training.parquet"];
        if self.plant {
            let planted: Vec<&str> = audit.iter().copied().chain(["--plant"]).collect();
            steps.run(&planted).context("a bit was planted, so the audit must fail")?;
            bail!("a planted bit was not found: the audit is blind");
        }
        steps.run(&audit)?;
        drop(server);

        steps.note(&format!(
            "\nDone in {0} s. {1} is a project to go on with:\n\
             \x20 cd {1}\n\
             \x20 eadem serve                                     # then GET /features/N14228?entity=aircraft\n\
             \x20 eadem get N14228 --features seats,landed_at --timestamp 2013-07-01T12:00:00Z --explain\n\
             \x20 eadem lineage service departure_delay@1\n\
             \x20 eadem audit --service {service} --spine spine.parquet --plant     # one wrong bit is found\n\
             \x20 eadem new my_transform                          # a feature of your own; then features/, plan, apply",
            started.elapsed().as_secs(),
            self.dir.display(),
        ));
        steps.finish()
    }
}

/// The folder `demo` of the checkout that this program stands in, or that the user stands in.
fn find_demo() -> anyhow::Result<PathBuf> {
    let binary = std::env::current_exe()?;
    let here = std::env::current_dir()?;
    let candidates = here.ancestors().chain(binary.ancestors()).map(|folder| folder.join("demo"));
    let found = candidates.into_iter().find(|folder| folder.join("data/flights.parquet").is_file());
    found.context(
        "the demo's data was not found; --from (or EADEM_DEMO_DATA) names the folder `demo` of an eadem checkout",
    )
}

/// Runs verbs in the demo's folder and shows each as it would be typed.
struct Steps<'a> {
    dir: PathBuf,
    context: &'a Context,
    /// With `--output json`, what each verb printed: all of it is one document in the end.
    results: Vec<Json>,
}

impl Steps<'_> {
    fn title(&self, text: &str) {
        self.note(&format!("\n== {text}"));
    }

    fn note(&self, text: &str) {
        self.context.printer.note(text);
    }

    /// Makes the project's folder, or makes it anew where the demo made it before.
    fn lay_out(&self, from: &Path) -> anyhow::Result<()> {
        let dir = &self.dir;
        if dir.exists() {
            if !dir.join(MARKER).is_file() {
                bail!("{} is there already and was not made by the demo; --dir names another folder", dir.display());
            }
            if let Some(owner) = EmbeddedStore::owner(dir.join(ONLINE_STORE))? {
                let address = owner.address.map_or_else(String::new, |address| format!(" (http://{address})"));
                bail!("a process works on {}{address}; end it first, or --dir names another folder", dir.display());
            }
            std::fs::remove_dir_all(dir).with_context(|| format!("cannot remove the earlier {}", dir.display()))?;
        }
        for folder in ["data", "features", "transforms"] {
            std::fs::create_dir_all(dir.join(folder)).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        std::fs::write(dir.join(MARKER), "Made by `eadem demo`, which removes this folder when it runs again.\n")?;
        std::fs::write(dir.join(".gitignore"), ".eadem/\n")?;
        std::fs::copy(from.join(PROJECT_FILE), dir.join(PROJECT_FILE))?;
        for folder in ["data", "features"] {
            for entry in std::fs::read_dir(from.join(folder))? {
                let path = entry?.path();
                if let Some(name) = path.file_name() {
                    std::fs::copy(&path, dir.join(folder).join(name))
                        .with_context(|| format!("cannot copy {}", path.display()))?;
                }
            }
        }
        Ok(())
    }

    fn command(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments).current_dir(&self.dir).env_remove("EADEM_HOME");
        Ok(command)
    }

    fn show(&self, arguments: &[&str]) {
        self.note(&format!("$ eadem {}", arguments.join(" ")));
    }

    fn run(&mut self, arguments: &[&str]) -> anyhow::Result<()> {
        let status = self.status_of(arguments)?;
        if !status.success() {
            bail!("`eadem {}` failed ({status})", arguments.join(" "));
        }
        Ok(())
    }

    fn run_to_failure(&mut self, arguments: &[&str]) -> anyhow::Result<()> {
        let status = self.status_of(arguments)?;
        if status.success() {
            bail!("`eadem {}` should have been refused", arguments.join(" "));
        }
        Ok(())
    }

    /// Runs a verb. As text it prints for itself; as JSON its document becomes a part of the demo's.
    fn status_of(&mut self, arguments: &[&str]) -> anyhow::Result<ExitStatus> {
        self.show(arguments);
        if self.context.printer.format == Format::Text {
            return Ok(self.command(arguments)?.status()?);
        }
        let mut command = self.command(arguments)?;
        let output = command.args(["--output", "json"]).stderr(Stdio::inherit()).output()?;
        if !output.status.success() {
            self.note(&String::from_utf8_lossy(&output.stdout));
        }
        let result: Json = serde_json::from_slice(&output.stdout).unwrap_or_default();
        self.add_result(&format!("eadem {}", arguments.join(" ")), result);
        Ok(output.status)
    }

    fn add_result(&mut self, step: &str, result: Json) {
        self.results.push(json!({ "step": step, "result": result }));
    }

    /// Prints the one document of `--output json`.
    fn finish(&self) -> anyhow::Result<()> {
        match self.context.printer.format {
            // Everything was said on the way.
            Format::Text => Ok(()),
            Format::Json => {
                let document = json!({ "dir": self.dir, "steps": self.results });
                self.context.printer.result(&document, |_| String::new())
            }
        }
    }
}

/// A server that ends with the demo.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(steps: &Steps<'_>) -> anyhow::Result<Self> {
        let mut process = steps.command(&["serve", "--listen", "127.0.0.1:0"])?.stdout(Stdio::piped()).spawn()?;
        let output = process.stdout.take().context("the server has no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let address = line.trim().strip_prefix("serving on http://").map(str::to_owned);
        match address {
            Some(address) => Ok(Self { process, address }),
            None => {
                let _ = process.kill();
                bail!("the server did not start: {line}")
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn show_requests(steps: &mut Steps<'_>, client: &Client) -> anyhow::Result<()> {
    let gets = [
        "/features/N14228?features=seats,maker,landed_at,aircraft_legs:arr_delay&timestamp=2013-07-01T12:00:00Z",
        "/features?entity_id=JFK&features=temperature_c,flight_rules,hubs&timestamp=2013-02-09T12:00:00Z",
        "/features/EWR,IAH?features=route,route_history:late&timestamp=2013-06-01T00:00:00Z&include=metadata",
        "/features/N14228?features=turnaround_minutes,tight&timestamp=2013-07-01T12:00:00Z\
         &request.scheduled_at=2013-07-01T13:00:00Z&request.distance=1400",
    ];
    for path in gets {
        let reply: Json = client.get(path).await?;
        steps.note(&format!("GET {path}\n{reply}"));
        steps.add_result(&format!("GET {path}"), reply);
    }
    let body = json!({
        "service": "departure_delay@1",
        "entities": [{ "tailnum": "N14228", "origin": "EWR", "dest": "IAH" }],
        "request": [{ "scheduled_at": "2013-07-01T13:00:00Z", "distance": 1400 }],
        "timestamp": "2013-07-01T12:00:00Z",
    });
    let reply: Json = client.post("/features/batch", &body).await?;
    steps.note(&format!("POST /features/batch {body}\n{reply}"));
    steps.add_result("POST /features/batch", reply);
    Ok(())
}

/// Writes a spine: every so many departures of the year, an hour before schedule, with the label that a model would learn.
fn write_spine(dir: &Path, rows: usize) -> anyhow::Result<usize> {
    let file = std::fs::File::open(dir.join("data/flights.parquet"))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)?;
    let schema = reader.schema().clone();
    let batches = reader.build()?.collect::<Result<Vec<_>, _>>()?;
    let flights = arrow::compute::concat_batches(&schema, &batches)?;
    let column =
        |name: &str| flights.column_by_name(name).with_context(|| format!("flights.parquet has no column `{name}`"));
    let texts = |name: &str| column(name).map(|column| column.as_string::<i32>().clone());
    let numbers = |name: &str| column(name).map(|column| column.as_primitive::<Int64Type>().clone());
    let (tailnum, origin, dest) = (texts("tailnum")?, texts("origin")?, texts("dest")?);
    let (minute, distance, arr_delay) = (numbers("minute")?, numbers("distance")?, numbers("arr_delay")?);
    let hour = column("time_hour")?.as_primitive::<TimestampMicrosecondType>();

    let usable: Vec<usize> = (0..flights.num_rows()).filter(|row| tailnum.is_valid(*row)).collect();
    let step = (usable.len() / rows.max(1)).max(1);
    let picked: Vec<usize> = usable.into_iter().step_by(step).take(rows).collect();
    let text = |column: &StringArray| {
        Arc::new(StringArray::from_iter_values(picked.iter().map(|row| column.value(*row)))) as ArrayRef
    };
    let instant = |before_us: i64| {
        let instants = picked.iter().map(|row| hour.value(*row) + minute.value(*row) * MINUTE_US - before_us);
        Arc::new(TimestampMicrosecondArray::from_iter_values(instants).with_timezone("UTC")) as ArrayRef
    };
    let late = picked.iter().map(|row| arr_delay.is_valid(*row).then(|| i64::from(arr_delay.value(*row) > 15)));
    let spine = RecordBatch::try_from_iter_with_nullable([
        ("tailnum", text(&tailnum), false),
        ("origin", text(&origin), false),
        ("dest", text(&dest), false),
        ("timestamp", instant(HOUR_US), false),
        ("scheduled_at", instant(0), false),
        (
            "distance",
            Arc::new(Int64Array::from_iter_values(picked.iter().map(|row| distance.value(*row)))) as ArrayRef,
            false,
        ),
        ("label_late", Arc::new(late.collect::<Int64Array>()) as ArrayRef, true),
    ])?;
    let mut writer = ArrowWriter::try_new(std::fs::File::create(dir.join("spine.parquet"))?, spine.schema(), None)?;
    writer.write(&spine)?;
    writer.close()?;
    Ok(spine.num_rows())
}
