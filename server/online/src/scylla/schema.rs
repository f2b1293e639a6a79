//! The tables, and the version of their layout.

use std::collections::BTreeMap;
use std::time::Duration;

use scylla::client::session::Session;
use scylla::statement::Consistency;
use scylla::statement::unprepared::Statement;
use serde::Serialize;

use super::config::ScyllaConfig;
use super::session::{connect, datacenters, first_row, statement_failed};
use crate::StoreError;

/// The newest layout that this release reads and the one that it makes.
pub const LAYOUT_VERSION: u32 = 1;

/// Changes of the schema take the database seconds, whatever time a request may take otherwise.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// On which nodes copies of the data are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replication {
    /// So many copies in every data center that there is.
    EveryDatacenter(u32),
    /// So many copies in each of these data centers, and none elsewhere.
    Datacenters(BTreeMap<String, u32>),
}

/// What is decided once for a keyspace, when it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaOptions {
    /// Three copies make reads and writes outlive any one node.
    pub replication: Replication,
    /// For how long a process may believe what it has read about a table, in milliseconds. Trimming and dropping wait for
    /// so long before they delete anything, and reads ask again so often.
    pub lease_ms: u32,
    /// Into how many partitions the keys of a table's entities are divided. Scans, trims and counts go through them all;
    /// they should be small enough for the database (about 100,000 keys each).
    pub buckets: u32,
}

impl Default for SchemaOptions {
    fn default() -> Self {
        Self { replication: Replication::EveryDatacenter(3), lease_ms: 1_000, buckets: 256 }
    }
}

/// A statement of the schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaStatement {
    /// What it is for and why its settings are as they are.
    pub why: &'static str,
    /// The statement.
    pub text: String,
}

/// Something that a keyspace, which was there before, has otherwise than was asked for. Nothing changes it but what is said here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SchemaDifference {
    /// What is different: `replication`, `compaction of rows`.
    pub what: String,
    /// As it was asked for.
    pub wanted: String,
    /// As it is.
    pub found: String,
    /// What makes it what was asked for.
    pub remedy: String,
}

/// Levelled compaction keeps a partition in few files.
const COMPACTION: &str = "LeveledCompactionStrategy";
const GC_GRACE_S: i32 = 864_000;
const REPLICATION_CLASS: &str = "NetworkTopologyStrategy";
/// Tables that are made with settings of their own.
const ROWS: &str = "rows";
const ENTITIES: &str = "entities";

/// What a keyspace says about itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) lease_ms: u32,
    pub(super) buckets: u32,
}

impl Replication {
    fn text(&self) -> String {
        let mut text = format!("{{'class': '{REPLICATION_CLASS}'");
        match self {
            Self::EveryDatacenter(copies) => text += &format!(", 'replication_factor': {copies}"),
            Self::Datacenters(copies) => {
                for (datacenter, copies) in copies {
                    text += &format!(", '{}': {copies}", datacenter.replace('\'', "''"));
                }
            }
        }
        text + "}"
    }

    /// Whether a keyspace with this replication keeps so many copies, in a cluster of these data centers.
    fn is_kept_by(&self, found: &BTreeMap<String, String>, datacenters: &[String]) -> bool {
        if found.get("class").is_none_or(|class| short_name(class) != REPLICATION_CLASS) {
            return false;
        }
        let has = |datacenter: &str, copies: u32| found.get(datacenter).is_some_and(|of| *of == copies.to_string());
        match self {
            // Databases write it down for each data center that they had.
            Self::EveryDatacenter(copies) => {
                has("replication_factor", *copies) || datacenters.iter().all(|datacenter| has(datacenter, *copies))
            }
            Self::Datacenters(wanted) => {
                let is_elsewhere =
                    |(name, copies): (&String, &String)| name != "class" && copies != "0" && !wanted.contains_key(name);
                wanted.iter().all(|(datacenter, copies)| has(datacenter, *copies)) && !found.iter().any(is_elsewhere)
            }
        }
    }
}

/// The name of a class without its package.
fn short_name(class: &str) -> &str {
    class.rsplit('.').next().unwrap_or(class)
}

/// As statements write it.
fn map_text(map: &BTreeMap<String, String>) -> String {
    let entries: Vec<String> = map.iter().map(|(name, value)| format!("'{name}': '{}'", short_name(value))).collect();
    format!("{{{}}}", entries.join(", "))
}

impl SchemaOptions {
    fn check(&self) -> Result<(), StoreError> {
        let bad = |what: &str| Err(StoreError::BadConfig { what: what.to_owned() });
        let copies_are_positive = match &self.replication {
            Replication::EveryDatacenter(copies) => *copies > 0,
            Replication::Datacenters(copies) => !copies.is_empty() && copies.values().all(|copies| *copies > 0),
        };
        if !copies_are_positive {
            return bad(
                "the replication keeps no copy; it is a number of copies from 1 on, for at least one data center",
            );
        }
        if !(1..=60_000).contains(&self.lease_ms) {
            return bad("`lease_ms` is from 1 to 60000");
        }
        if !(1..=65_536).contains(&self.buckets) {
            return bad("`buckets` is from 1 to 65536");
        }
        Ok(())
    }

    /// Every statement that makes a keyspace an empty store, in order. Each may be repeated.
    pub fn statements(&self, keyspace: &str) -> Vec<SchemaStatement> {
        let statement = |why, text| SchemaStatement { why, text };
        vec![
            statement(
                "The keyspace. With three copies a majority answers while one node is away.",
                format!("CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {}", self.replication.text()),
            ),
            statement(
                "One row for each table (a view in an epoch), changed by lightweight transactions only: its state and what \
                 it covers. `has_erasures` says of a whole view whether there is anything to look up.",
                format!(
                    "CREATE TABLE IF NOT EXISTS {keyspace}.epochs (view_digest blob, epoch bigint, has_erasures boolean STATIC, \
                     incarnation uuid, buckets int, revision bigint, record text, PRIMARY KEY (view_digest, epoch))"
                ),
            ),
            statement(
                "The rows: a partition for each entity of a table, newest first. Levelled compaction keeps an entity's rows \
                 in few files, for reads of one partition. No row has a TTL of the database's: whether a value is too old \
                 is decided when it is read, and what no read needs is deleted by trimming. Tombstones stay for ten days, \
                 within which a node that was away has to be repaired.",
                format!(
                    "CREATE TABLE IF NOT EXISTS {keyspace}.rows (incarnation uuid, entity blob, event_time bigint, known_at \
                     bigint, tie blob, body blob, bytes int, erased_up_to set<bigint> STATIC, PRIMARY KEY ((incarnation, \
                     entity), event_time, known_at, tie)) WITH CLUSTERING ORDER BY (event_time DESC, known_at DESC, tie \
                     DESC) AND compaction = {{'class': '{COMPACTION}'}} AND gc_grace_seconds = {GC_GRACE_S} AND \
                     default_time_to_live = 0"
                ),
            ),
            statement(
                "Which entities a table has: what scans, trims and counts go through, so that they cost what the table is \
                 large and not what the keyspace is.",
                format!(
                    "CREATE TABLE IF NOT EXISTS {keyspace}.entities (incarnation uuid, bucket int, entity blob, PRIMARY KEY \
                     ((incarnation, bucket), entity)) WITH compaction = {{'class': '{COMPACTION}'}}"
                ),
            ),
            statement(
                "Erasures of entities, by view. They outlive every epoch.",
                format!(
                    "CREATE TABLE IF NOT EXISTS {keyspace}.erasures (view_digest blob, bucket int, entity blob, up_to bigint, \
                     PRIMARY KEY ((view_digest, bucket), entity, up_to)) WITH CLUSTERING ORDER BY (entity ASC, up_to DESC)"
                ),
            ),
            statement(
                "Tables that were dropped and whose rows are not all deleted yet.",
                format!(
                    "CREATE TABLE IF NOT EXISTS {keyspace}.dropped (incarnation uuid PRIMARY KEY, view_digest blob, epoch bigint, \
                     buckets int)"
                ),
            ),
            statement(
                "The version of this layout, and what all processes have to agree on.",
                format!(
                    "CREATE TABLE IF NOT EXISTS {keyspace}.layout (id int PRIMARY KEY, version int, lease_ms int, buckets \
                     int)"
                ),
            ),
            // Last, so that a keyspace that says its version has all tables.
            statement(
                "Only where it says nothing yet: a lease must never change while processes use the keyspace.",
                format!(
                    "INSERT INTO {keyspace}.layout (id, version, lease_ms, buckets) VALUES (0, {LAYOUT_VERSION}, {}, {}) IF \
                     NOT EXISTS",
                    self.lease_ms, self.buckets
                ),
            ),
        ]
    }
}

/// Makes the keyspace of `config` an empty store, or does nothing if it is one. [`SchemaOptions::statements`] are what is
/// executed. Gives what a keyspace that was there before has otherwise than these options say.
///
/// # Errors
/// [`StoreError::BadConfig`], [`StoreError::LayoutTooNew`] for a keyspace of a newer release, [`StoreError::Failed`].
pub async fn init(config: &ScyllaConfig, options: &SchemaOptions) -> Result<Vec<SchemaDifference>, StoreError> {
    options.check()?;
    let session = connect(config).await?;
    if let Some(version) = read_version(&session, config).await? {
        check_version(config, version)?;
    }
    for statement in options.statements(&config.keyspace) {
        execute(&session, config, &statement.text).await?;
    }
    differences(&session, config, options).await
}

/// What the database has, where that is not what was asked for.
async fn differences(
    session: &Session,
    config: &ScyllaConfig,
    options: &SchemaOptions,
) -> Result<Vec<SchemaDifference>, StoreError> {
    let keyspace = &config.keyspace;
    let mut differences = Vec::new();
    let read = "SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = ?";
    let found: Option<(BTreeMap<String, String>,)> = first_row(session, config, read, (keyspace.as_str(),)).await?;
    let (found,) = found.unwrap_or_default();
    if !options.replication.is_kept_by(&found, &datacenters(session)) {
        let wanted = options.replication.text();
        differences.push(SchemaDifference {
            what: "replication".to_owned(),
            found: map_text(&found),
            remedy: format!(
                "ALTER KEYSPACE {keyspace} WITH replication = {wanted}; then repair every node, so that the new copies are \
                 filled (nodetool repair --full {keyspace})"
            ),
            wanted,
        });
    }
    for table in [ROWS, ENTITIES] {
        differences.extend(table_settings(session, config, table).await?.differences(keyspace, table));
    }
    let layout = check_layout(session, config).await?;
    let numbers = [
        (
            "lease_ms",
            "--lease-ms",
            options.lease_ms,
            layout.lease_ms,
            "stop every process that uses the keyspace, then ",
        ),
        ("buckets", "--buckets", options.buckets, layout.buckets, ""),
    ];
    for (name, option, wanted, found, before) in numbers.into_iter().filter(|(_, _, wanted, found, _)| wanted != found)
    {
        differences.push(SchemaDifference {
            what: name.to_owned(),
            wanted: wanted.to_string(),
            found: found.to_string(),
            remedy: format!(
                "{before}UPDATE {keyspace}.layout SET {name} = {wanted} WHERE id = 0 IF EXISTS; or ask for what there is \
                 ({option} {found})"
            ),
        });
    }
    Ok(differences)
}

/// What the database does with a table's files.
#[derive(Debug, Default)]
struct TableSettings {
    compaction: BTreeMap<String, String>,
    gc_grace_s: i32,
    ttl_s: i32,
}

async fn table_settings(session: &Session, config: &ScyllaConfig, table: &str) -> Result<TableSettings, StoreError> {
    let read = "SELECT compaction, gc_grace_seconds, default_time_to_live FROM system_schema.tables WHERE keyspace_name = ? \
                AND table_name = ?";
    let key = (config.keyspace.as_str(), table);
    let found: Option<(BTreeMap<String, String>, i32, i32)> = first_row(session, config, read, key).await?;
    let (compaction, gc_grace_s, ttl_s) = found.unwrap_or_default();
    Ok(TableSettings { compaction, gc_grace_s, ttl_s })
}

impl TableSettings {
    /// What is not as [`SchemaOptions::statements`] says.
    fn differences(&self, keyspace: &str, table: &str) -> Vec<SchemaDifference> {
        let difference = |what: &str, wanted: &str, found: String, set: &str| SchemaDifference {
            what: format!("{what} of {table}"),
            wanted: wanted.to_owned(),
            found,
            remedy: format!("ALTER TABLE {keyspace}.{table} WITH {set}"),
        };
        let mut differences = Vec::new();
        if self.compaction.get("class").is_none_or(|class| short_name(class) != COMPACTION) {
            let found = map_text(&self.compaction);
            let set = format!("compaction = {{'class': '{COMPACTION}'}}");
            differences.push(difference("compaction", COMPACTION, found, &set));
        }
        // Of the others nothing is said: what the database gives them does.
        if table == ROWS && self.gc_grace_s != GC_GRACE_S {
            let (wanted, found) = (GC_GRACE_S.to_string(), self.gc_grace_s.to_string());
            let set = format!("gc_grace_seconds = {GC_GRACE_S}");
            differences.push(difference("gc_grace_seconds", &wanted, found, &set));
        }
        if self.ttl_s != 0 {
            let set = "default_time_to_live = 0";
            differences.push(difference("default_time_to_live", "0", self.ttl_s.to_string(), set));
        }
        differences
    }
}

async fn execute(session: &Session, config: &ScyllaConfig, text: &str) -> Result<(), StoreError> {
    let mut statement = Statement::new(text);
    statement.set_consistency(Consistency::LocalQuorum);
    statement.set_request_timeout(Some(STATEMENT_TIMEOUT));
    let done = session.query_unpaged(statement, ()).await;
    done.map(drop).map_err(|error| statement_failed(format!("applying the schema to {config}"), error))
}

/// Reads what the keyspace says about itself.
pub(super) async fn check_layout(session: &Session, config: &ScyllaConfig) -> Result<Layout, StoreError> {
    let no_schema = |what: String| StoreError::NoSchema { store: config.to_string(), what };
    let exists = "SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?";
    let found: Option<(String,)> = first_row(session, config, exists, (config.keyspace.as_str(),)).await?;
    if found.is_none() {
        return Err(no_schema(format!("there is no keyspace `{}`", config.keyspace)));
    }
    let Some(version) = read_version(session, config).await? else {
        return Err(no_schema(format!("the keyspace `{}` has no schema", config.keyspace)));
    };
    check_version(config, version)?;
    let read = format!("SELECT lease_ms, buckets FROM {}.layout WHERE id = 0", config.keyspace);
    let settings: Option<(Option<i32>, Option<i32>)> = first_row(session, config, &read, ()).await?;
    let (lease_ms, buckets) = settings.unwrap_or_default();
    let positive =
        |number: Option<i32>| number.and_then(|number| u32::try_from(number).ok()).filter(|number| *number > 0);
    match (positive(lease_ms), positive(buckets)) {
        (Some(lease_ms), Some(buckets)) => Ok(Layout { lease_ms, buckets }),
        _ => Err(no_schema("its table `layout` holds settings that no release wrote".to_owned())),
    }
}

/// The version alone: a newer release may have given the table other columns.
async fn read_version(session: &Session, config: &ScyllaConfig) -> Result<Option<i32>, StoreError> {
    let exists = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ? AND table_name = 'layout'";
    let found: Option<(String,)> = first_row(session, config, exists, (config.keyspace.as_str(),)).await?;
    if found.is_none() {
        return Ok(None);
    }
    let read = format!("SELECT version FROM {}.layout WHERE id = 0", config.keyspace);
    let row: Option<(Option<i32>,)> = first_row(session, config, &read, ()).await?;
    Ok(row.and_then(|(version,)| version))
}

fn check_version(config: &ScyllaConfig, version: i32) -> Result<(), StoreError> {
    let found = u32::try_from(version).unwrap_or(0);
    if found > LAYOUT_VERSION {
        return Err(StoreError::LayoutTooNew { store: config.to_string(), found, supported: LAYOUT_VERSION });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replication_is_said_in_the_databases_words() {
        let of = |replication| SchemaOptions { replication, ..SchemaOptions::default() }.statements("k").remove(0).text;
        assert!(
            of(Replication::EveryDatacenter(2))
                .ends_with("{'class': 'NetworkTopologyStrategy', 'replication_factor': 2}")
        );
        let datacenters = [("it's".to_owned(), 1), ("eu".to_owned(), 3)].into_iter().collect();
        let text = of(Replication::Datacenters(datacenters));
        assert!(text.ends_with("{'class': 'NetworkTopologyStrategy', 'eu': 3, 'it''s': 1}"), "{text}");
    }

    #[test]
    fn copies_are_counted_where_there_are_nodes() {
        let found = |entries: &[(&str, &str)]| -> BTreeMap<String, String> {
            entries.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let topology = ("class", "org.apache.cassandra.locator.NetworkTopologyStrategy");
        let datacenters = ["eu".to_owned(), "us".to_owned()];
        let every = Replication::EveryDatacenter(3);
        assert!(every.is_kept_by(&found(&[topology, ("eu", "3"), ("us", "3"), ("gone", "1")]), &datacenters));
        assert!(every.is_kept_by(&found(&[topology, ("replication_factor", "3")]), &datacenters));
        for other in [
            &[topology, ("eu", "3"), ("us", "1")][..],
            &[topology, ("eu", "3")],
            &[("class", "org.apache.cassandra.locator.SimpleStrategy"), ("replication_factor", "3")],
            &[],
        ] {
            assert!(!every.is_kept_by(&found(other), &datacenters), "{other:?}");
        }
        let one = Replication::Datacenters([("eu".to_owned(), 2)].into_iter().collect());
        assert!(one.is_kept_by(&found(&[topology, ("eu", "2"), ("us", "0")]), &datacenters));
        assert!(!one.is_kept_by(&found(&[topology, ("eu", "2"), ("us", "1")]), &datacenters));
        assert!(!one.is_kept_by(&found(&[topology, ("eu", "3")]), &datacenters));
    }

    #[test]
    fn a_schema_that_keeps_nothing_is_refused() {
        let bad = [
            SchemaOptions { replication: Replication::EveryDatacenter(0), ..SchemaOptions::default() },
            SchemaOptions { replication: Replication::Datacenters(BTreeMap::new()), ..SchemaOptions::default() },
            SchemaOptions { lease_ms: 0, ..SchemaOptions::default() },
            SchemaOptions { lease_ms: 60_001, ..SchemaOptions::default() },
            SchemaOptions { buckets: 0, ..SchemaOptions::default() },
        ];
        for options in bad {
            assert!(matches!(options.check(), Err(StoreError::BadConfig { .. })), "{options:?}");
        }
        assert!(SchemaOptions::default().check().is_ok());
    }
}
