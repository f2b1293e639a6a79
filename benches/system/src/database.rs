//! S4: `eadem serve` with its online store in a database, against the database's driver behind a minimal HTTP route.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use eadem_benches::bars::Measured;
use eadem_benches::results::{Figure, load_average};
use serde_json::{Value as Json, json};

use crate::load::Pace;
use crate::process::{median, root};
use crate::service::Service;
use crate::serving::{FEATURES, Loaded, PATH, RUNS, Server, complete_entities, eadem, entities, loaded, results};

/// Loads of each side that are not measured: so long the database's compiler has work.
const WARM_UPS: u64 = 3;

/// On which most of those who are asked for have paid: a database takes rows more slowly than the embedded store.
const LAST_DAY: &str = "day=2026-01-30";

/// Requests a second, one entity and two views in each.
pub(crate) fn s4() -> Result<Measured> {
    let load = load_average();
    let node = Service::cassandra()?;
    // A node that has just started is slow at first.
    let url = format!("scylla://127.0.0.1:{}/eadem?timeout_ms=30000", node.port);
    let ours = Server::eadem(&project(&url)?)?;
    let bare = bare(&url)?;
    let body = |entity: &String| json!({ "service": "pair@1", "entities": [{ "entity_id": entity }] });
    let bodies: Vec<Json> = complete_entities(&ours, "pair@1", None)?.iter().map(body).collect();
    for body in bodies.iter().step_by(97) {
        let (ours, theirs) = (results(&ours.address, body)?, results(&bare.address, body)?);
        let same = |part: &str| ours[0][part] == theirs[0][part];
        ensure!(same("entity") && same("features"), "replies differ: {} and {}", ours[0], theirs[0]);
    }
    let (mut sides_ours, mut sides_theirs) = (Vec::new(), Vec::new());
    for run in 0..WARM_UPS + RUNS {
        let (of_ours, of_theirs) =
            (loaded(&ours, PATH, &bodies, Pace::Saturating)?, loaded(&bare, PATH, &bodies, Pace::Saturating)?);
        if run >= WARM_UPS {
            sides_ours.push(of_ours);
            sides_theirs.push(of_theirs);
        }
    }
    let figure = |bar: &str, name: &str, unit: &str, part: fn(&Loaded) -> f64| {
        let median_of = |sides: &[Loaded]| median(sides.iter().map(part).collect());
        Figure::against(bar, name, unit, median_of(&sides_ours), median_of(&sides_theirs), RUNS, load)
    };
    let name = "one entity, 10 features of each of two views, from Cassandra, 16 connections, against the driver alone";
    Ok(vec![
        figure("S4", name, "requests/s", |loaded| loaded.answered.rate),
        figure("S4.cpu", "the same, processor time of a request, without the database's", "µs", |loaded| {
            loaded.cpu_us_per_request
        }),
    ]
    .into())
}

fn bare(url: &str) -> Result<Server> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("bare").arg(url);
    Server::start(command)
}

/// A project over the payments of the entities that are asked for, loaded into the database at this URL. It is made anew, because
/// the database is.
fn project(url: &str) -> Result<PathBuf> {
    let folder = root().join("target/bench/serving-database");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(folder.join("features"))?;
    std::fs::create_dir_all(folder.join("transforms"))?;
    let events = root().join("target/bench/payments/events").join(LAST_DAY);
    let events = events.canonicalize().with_context(|| format!("scripts/bench.sh makes {}", events.display()))?;
    let component = root().join("target/components/payment_row.wasm");
    std::fs::copy(&component, folder.join("transforms/payment_row.wasm"))
        .with_context(|| component.display().to_string())?;
    std::fs::write(folder.join("eadem.toml"), format!("[store]\nonline = \"{url}\"\n"))?;
    std::fs::write(folder.join("features/payments.toml"), definitions(&events)?)?;
    let make_keyspace = ["online", "init", "--apply", "--replication", "1"];
    for verb in [&make_keyspace[..], &["apply"], &["backfill"], &["materialize"]] {
        let ended = eadem(&folder).args(verb).stdout(Stdio::null()).status()?;
        ensure!(ended.success(), "eadem {} ended with {ended}", verb.join(" "));
    }
    Ok(folder.canonicalize()?)
}

fn definitions(events: &Path) -> Result<String> {
    // By the list: a tenth of all, evenly spread.
    let asked = entities()?;
    let last_digits = asked.iter().filter_map(|entity| entity.chars().last()).all(|digit| digit == '0');
    ensure!(last_digits, "entities that are asked for do not end with 0");
    let mut text = format!(
        "[entity.user]\nkeys = {{ entity_id = \"utf8\" }}\n\n\
         [source.payments]\nparquet = \"{}\"\nevent_time = \"event_timestamp\"\nwhere = \"entity_id like '%0'\"\n",
        events.display()
    );
    for number in 1..=2 {
        text += &format!(
            "\n[view.payment_row_{number}]\nentity = \"user\"\nsource = \"payments\"\n\
             transform = \"transforms/payment_row.wasm\"\n"
        );
    }
    text += "\n[service.pair]\nfeatures = [\n";
    for number in 1..=2 {
        for feature in FEATURES {
            text += &format!("    \"payment_row_{number}:{feature} as {feature}_{number}\",\n");
        }
    }
    Ok(text + "]\n")
}
