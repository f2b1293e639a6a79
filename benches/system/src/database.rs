//! S4: `eadem serve` with its online store in a database, against the database's driver behind a minimal HTTP route.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use eadem_benches::bars::Measured;
use eadem_benches::results::load_average;
use serde_json::{Value as Json, json};

use crate::load::Pace;
use crate::project::{self, Contents};
use crate::service::Service;
use crate::serving::{Server, Sides, check_same, complete_entities, entities, events, payment_views, service_of_views};

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
    let bare = Server::of_verb("bare", &url)?;
    let body = |entity: &String| json!({ "service": "pair@1", "entities": [{ "entity_id": entity }] });
    let bodies: Vec<Json> = complete_entities(&ours, "pair@1", None)?.keys().map(body).collect();
    check_same(&ours, &bare, &bodies)?;
    let sides = Sides::measure(&ours, &bare, &bodies, (Pace::Saturating, WARM_UPS), load)?;
    let name = "one entity, 10 features of each of two views, from Cassandra, 16 connections, against the driver alone";
    Ok(vec![
        sides.figure("S4", name, "requests/s", |loaded| loaded.answered.rate),
        sides.figure("S4.cpu", "the same, processor time of a request, without the database's", "µs", |loaded| {
            loaded.cpu_us_per_request
        }),
    ]
    .into())
}

/// A project over the payments of the entities that are asked for, loaded into the database at this URL. It is made anew, because
/// the database is.
fn project(url: &str) -> Result<PathBuf> {
    // By the list: a tenth of all, evenly spread.
    let is_in_the_source = entities()?.iter().all(|entity| entity.ends_with('0'));
    ensure!(is_in_the_source, "entities that are asked for do not end with 0");
    let definitions =
        payment_views(&events()?.join(LAST_DAY), "where = \"entity_id like '%0'\"\n", 2) + &service_of_views("pair", 2);
    let settings = format!("[store]\nonline = \"{url}\"\n");
    let contents = Contents { components: &["payment_row"], settings: &settings, definitions: &definitions };
    let folder = project::make("serving-database", &contents)?;
    let make_keyspace = ["online", "init", "--apply", "--replication", "1"];
    for verb in [&make_keyspace[..], &["apply"], &["backfill"], &["materialize"]] {
        project::run(&folder, verb)?;
    }
    Ok(folder)
}
