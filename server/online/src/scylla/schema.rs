//! The tables, and the version of their layout.

use std::collections::BTreeMap;
use std::time::Duration;

use scylla::client::session::Session;
use scylla::statement::Consistency;
use scylla::statement::unprepared::Statement;

use super::config::ScyllaConfig;
use super::session::{connect, first_row, statement_failed};
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

/// What a keyspace says about itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) lease_ms: u32,
    pub(super) buckets: u32,
}

impl Replication {
    fn text(&self) -> String {
        let mut text = "{'class': 'NetworkTopologyStrategy'".to_owned();
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
                     DESC) AND compaction = {{'class': 'LeveledCompactionStrategy'}} AND gc_grace_seconds = 864000 AND \
                     default_time_to_live = 0"
                ),
            ),
            statement(
                "Which entities a table has: what scans, trims and counts go through, so that they cost what the table is \
                 large and not what the keyspace is.",
                format!(
                    "CREATE TABLE IF NOT EXISTS {keyspace}.entities (incarnation uuid, bucket int, entity blob, PRIMARY KEY \
                     ((incarnation, bucket), entity)) WITH compaction = {{'class': 'LeveledCompactionStrategy'}}"
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
/// executed.
///
/// # Errors
/// [`StoreError::BadConfig`], [`StoreError::LayoutTooNew`] for a keyspace of a newer release, [`StoreError::Failed`].
pub async fn init(config: &ScyllaConfig, options: &SchemaOptions) -> Result<(), StoreError> {
    options.check()?;
    let session = connect(config).await?;
    if let Some(version) = read_version(&session, config).await? {
        check_version(config, version)?;
    }
    for statement in options.statements(&config.keyspace) {
        execute(&session, config, &statement.text).await?;
    }
    Ok(())
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
