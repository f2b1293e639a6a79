//! The two databases that a registry may be kept in: SQLite for one directory, PostgreSQL for several servers. The same
//! queries run on both, through sqlx's `Any` driver; what differs is here: how each is opened, how a change keeps others
//! out, and how other processes hear of it.

use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::sync::{Arc, Once, Weak};
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Any, AnyPool, ConnectOptions as _, Executor as _, Transaction};
use url::Url;

use super::{Reached, Shared};
use crate::error::RegistryError;

static SQLITE_MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");
static POSTGRES_MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// Connections that read at once.
const READERS: u32 = 4;
/// How long a writer waits for another's transaction, and a request for a connection.
const WAIT: Duration = Duration::from_secs(10);
/// How often a change is begun again after a failure that passes.
const ATTEMPTS_MAX: u32 = 4;
/// How long to wait before asking a database again that does not answer.
const RECONNECT_WAIT: Duration = Duration::from_millis(500);
/// What the names of channels begin with; the rest is the schema.
const CHANNEL_PREFIX: &str = "eadem_registry_";
/// PostgreSQL has no longer names. The name of a schema also stands in that of its channel.
const SCHEMA_NAME_BYTES_MAX: usize = 63 - CHANNEL_PREFIX.len();

/// Where a registry is kept.
#[derive(Debug, Clone)]
pub enum RegistryAddress {
    /// In this file, by SQLite.
    File(PathBuf),
    /// In a database of a PostgreSQL server.
    Postgres(PostgresAddress),
}

/// A schema of a PostgreSQL database. Shown without its password.
#[derive(Clone)]
pub struct PostgresAddress {
    url: Url,
    /// Used instead of the one in the URL.
    password: Option<String>,
    schema: String,
}

impl std::fmt::Debug for PostgresAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresAddress").field("url", &self.redacted()).field("schema", &self.schema).finish()
    }
}

impl PostgresAddress {
    /// Reads `postgres://user@host:port/database?sslmode=…`. The registry lies in the schema `eadem`, which is made if
    /// there is none.
    ///
    /// # Errors
    /// Another scheme, no database, or a parameter that is not known. The message never repeats a password.
    pub fn parse(text: &str) -> Result<Self, RegistryError> {
        const PARAMETERS: [&str; 5] = ["sslmode", "sslrootcert", "sslcert", "sslkey", "host"];
        let invalid = |what: String| RegistryError::Invalid(format!("the registry's address {what}"));
        let url = Url::parse(text).map_err(|error| invalid(format!("is no URL: {error}")))?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(invalid(format!("begins with {}://; only postgres:// is known", url.scheme())));
        }
        if url.path().trim_matches('/').is_empty() {
            return Err(invalid("names no database: postgres://user@host:5432/database".into()));
        }
        if let Some((name, _)) = url.query_pairs().find(|(name, _)| !PARAMETERS.contains(&name.as_ref())) {
            return Err(invalid(format!("has the parameter `{name}`; known are {}", PARAMETERS.join(", "))));
        }
        let address = Self { url, password: None, schema: "eadem".to_owned() };
        address.options()?;
        Ok(address)
    }

    /// The same with this password.
    #[must_use]
    pub fn with_password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// Whether the URL itself holds a password.
    pub fn has_password(&self) -> bool {
        self.url.password().is_some()
    }

    /// The same in another schema.
    ///
    /// # Errors
    /// A name that is not made of lower-case letters, digits and `_`, or is too long.
    pub fn in_schema(mut self, schema: &str) -> Result<Self, RegistryError> {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let is_name = !schema.is_empty() && schema.len() <= SCHEMA_NAME_BYTES_MAX && schema.bytes().all(is_plain);
        if !is_name {
            let rule = format!("at most {SCHEMA_NAME_BYTES_MAX} lower-case letters, digits and `_`");
            return Err(RegistryError::Invalid(format!("`{schema}` is no name of a schema: {rule}")));
        }
        schema.clone_into(&mut self.schema);
        Ok(self)
    }

    /// The URL without its password.
    fn redacted(&self) -> String {
        let mut url = self.url.clone();
        let _has_place = url.set_password(None);
        url.to_string()
    }

    fn options(&self) -> Result<PgConnectOptions, RegistryError> {
        let read = PgConnectOptions::from_str(self.url_with_password().as_str());
        read.map_err(|error| RegistryError::Invalid(format!("the registry's address: {error}")))
    }

    /// The URL with the password as a parameter: a URL without a host has no other place for it, and there every character
    /// stands for itself.
    fn url_with_password(&self) -> Url {
        let mut url = self.url.clone();
        if let Some(password) = &self.password {
            url.query_pairs_mut().append_pair("password", password);
        }
        url
    }

    /// The URL by which names stand for tables of the schema.
    fn url_in_schema(&self) -> Url {
        let mut url = self.url_with_password();
        let settings = [
            ("search_path", self.schema.as_str()),
            ("lock_timeout", "10s"),
            ("statement_timeout", "120s"),
            // A process that hangs in a change must not keep all others from theirs.
            ("idle_in_transaction_session_timeout", "60s"),
        ];
        for (name, value) in settings {
            url.query_pairs_mut().append_pair(&format!("options[{name}]"), value);
        }
        url
    }

    /// The channel on which changes of this schema are told.
    fn channel(&self) -> String {
        format!("{CHANNEL_PREFIX}{}", self.schema)
    }
}

/// Which database it is.
#[derive(Clone)]
pub(super) enum Dialect {
    Sqlite,
    Postgres(PostgresAddress),
}

/// An open database with its schema up to date.
pub(super) struct Database {
    pub(super) dialect: Dialect,
    pub(super) readers: AnyPool,
    pub(super) writer: AnyPool,
}

impl Database {
    pub(super) async fn open(address: &RegistryAddress) -> Result<Self, RegistryError> {
        static DRIVERS: Once = Once::new();
        DRIVERS.call_once(sqlx::any::install_default_drivers);
        match address {
            RegistryAddress::File(file) => Self::open_file(file).await,
            RegistryAddress::Postgres(address) => Self::open_postgres(address).await,
        }
    }

    async fn open_file(file: &Path) -> Result<Self, RegistryError> {
        let options = AnyConnectOptions::from_url(&file_url(file))?;
        let pool = |connections: u32, foreign_keys: &'static str| {
            // Each has a thread, which inherits the priority of whoever opens it, and anybody may be served by any of them: all are
            // opened now, and stay.
            let all = AnyPoolOptions::new().min_connections(connections).max_connections(connections);
            all.idle_timeout(None).max_lifetime(None).acquire_timeout(WAIT).after_connect(move |connection, _| {
                Box::pin(async move {
                    connection.execute(foreign_keys).await?;
                    connection.execute("PRAGMA busy_timeout = 10000").await?;
                    connection.execute("PRAGMA journal_mode = WAL").await?;
                    connection.execute("PRAGMA synchronous = FULL").await?;
                    // The keys of erased entities shall be gone from the file too when their rows go.
                    connection.execute("PRAGMA secure_delete = ON").await?;
                    Ok(())
                })
            })
        };
        // A migration may make a table anew, and what refers to it must not notice.
        let migrating = pool(1, "PRAGMA foreign_keys = OFF").connect_with(options.clone()).await?;
        migrate(&SQLITE_MIGRATIONS, &migrating).await?;
        migrating.close().await;
        Ok(Self {
            dialect: Dialect::Sqlite,
            readers: pool(READERS, "PRAGMA foreign_keys = ON").connect_with(options.clone()).await?,
            writer: pool(1, "PRAGMA foreign_keys = ON").connect_with(options).await?,
        })
    }

    async fn open_postgres(address: &PostgresAddress) -> Result<Self, RegistryError> {
        let options = AnyConnectOptions::from_url(&address.url_in_schema())?;
        let pool = |connections_max: u32| AnyPoolOptions::new().max_connections(connections_max).acquire_timeout(WAIT);
        let writer = pool(1).connect_with(options.clone()).await?;
        // Names of schemas are plain words, see `in_schema`.
        let make_schema = format!("CREATE SCHEMA IF NOT EXISTS {}", address.schema);
        // Two that make it at the same moment: one of them is told that it exists, whatever the words say.
        if let Err(first) = writer.execute(sqlx::AssertSqlSafe(make_schema.clone())).await {
            writer.execute(sqlx::AssertSqlSafe(make_schema)).await.map_err(|_| first)?;
        }
        migrate(&POSTGRES_MIGRATIONS, &writer).await?;
        Ok(Self {
            dialect: Dialect::Postgres(address.clone()),
            readers: pool(READERS).connect_with(options).await?,
            writer,
        })
    }

    /// Begins a change that no other change runs beside. Such changes are serial, so none of them ever has to be rolled
    /// back for another's sake; what is tried again is getting the database's attention.
    pub(super) async fn begin_change(&self) -> Result<Transaction<'static, Any>, RegistryError> {
        let mut attempt = 1;
        loop {
            match self.try_begin_change().await {
                Err(error) if attempt < ATTEMPTS_MAX && passes(&error) => {
                    tracing::warn!(attempt, %error, "the registry could not begin a change; trying again");
                    tokio::time::sleep(RECONNECT_WAIT * attempt).await;
                    attempt += 1;
                }
                begun => return Ok(begun?),
            }
        }
    }

    async fn try_begin_change(&self) -> Result<Transaction<'static, Any>, sqlx::Error> {
        match self.dialect {
            Dialect::Sqlite => self.writer.begin_with("BEGIN IMMEDIATE").await,
            Dialect::Postgres(_) => {
                let mut transaction = self.writer.begin_with("BEGIN ISOLATION LEVEL SERIALIZABLE").await?;
                // Before the first query, which would fix what the transaction sees.
                transaction.execute("LOCK TABLE registry_state IN EXCLUSIVE MODE").await?;
                Ok(transaction)
            }
        }
    }

    /// Begins reading one state of everything.
    pub(super) async fn begin_snapshot(&self) -> Result<Transaction<'static, Any>, RegistryError> {
        let begin = match self.dialect {
            Dialect::Sqlite => "BEGIN DEFERRED",
            Dialect::Postgres(_) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        };
        Ok(self.readers.begin_with(begin).await?)
    }

    /// Counts anew what tables hold, as those who plan queries need it after much was written. The database does so by itself, but
    /// not soon.
    pub(super) async fn gather_statistics(&self) -> Result<(), sqlx::Error> {
        let Dialect::Postgres(address) = &self.dialect else {
            self.writer.execute("PRAGMA optimize").await?;
            return Ok(());
        };
        let listed =
            "SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') FROM pg_tables WHERE schemaname = $1";
        let tables: String = sqlx::query_scalar(listed).bind(&address.schema).fetch_one(&self.readers).await?;
        self.readers.execute(sqlx::AssertSqlSafe(format!("ANALYZE {tables}"))).await?;
        Ok(())
    }

    /// Tells other processes, once the transaction is committed.
    pub(super) async fn announce(
        &self,
        transaction: &mut Transaction<'static, Any>,
        reached: Reached,
    ) -> Result<(), RegistryError> {
        let Dialect::Postgres(address) = &self.dialect else { return Ok(()) };
        sqlx::query("SELECT pg_notify($1, $2)")
            .bind(address.channel())
            .bind(reached.to_message())
            .execute(&mut **transaction)
            .await?;
        Ok(())
    }
}

/// The URL of a file. What it is made by leaves a `%` of the path as it stands, and whoever reads it takes it for the
/// beginning of an escaped character.
fn file_url(file: &Path) -> Url {
    let escaped = match file.to_str() {
        Some(path) => PathBuf::from(path.replace('%', "%25")),
        None => file.to_owned(),
    };
    SqliteConnectOptions::new().filename(escaped).create_if_missing(true).to_url_lossy()
}

async fn migrate(migrations: &Migrator, pool: &AnyPool) -> Result<(), RegistryError> {
    migrations.run(pool).await.map_err(|error| match error {
        MigrateError::VersionMissing(migration) => RegistryError::NewerSchema { migration },
        other => RegistryError::Migration(other),
    })
}

/// Whether trying again may help: the server was restarted, or somebody held the lock for too long.
fn passes(error: &sqlx::Error) -> bool {
    const SERIALIZATION_FAILURE: &str = "40001";
    const DEADLOCK: &str = "40P01";
    const LOCK_NOT_AVAILABLE: &str = "55P03";
    const ADMIN_SHUTDOWN: &str = "57P01";
    const STARTING_UP: &str = "57P03";
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            [SERIALIZATION_FAILURE, DEADLOCK, LOCK_NOT_AVAILABLE, ADMIN_SHUTDOWN, STARTING_UP].contains(&code.as_ref())
        }),
        _ => false,
    }
}

/// Follows the changes that other processes tell of, until the registry is gone.
pub(super) fn follow(address: PostgresAddress, shared: Weak<Shared>) {
    tokio::spawn(async move {
        while in_use(&shared).is_some() {
            if let Err(error) = listen(&address, &shared).await {
                tracing::warn!(%error, "no news of the registry; asking again");
                tokio::time::sleep(RECONNECT_WAIT).await;
            }
        }
    });
}

async fn listen(address: &PostgresAddress, shared: &Weak<Shared>) -> Result<(), RegistryError> {
    /// How long an idle listener outlives its registry, and a change at most goes unheard of which nobody told.
    const LOOK_UP: Duration = Duration::from_secs(5);
    let pool = PgPoolOptions::new().max_connections(1).connect_with(address.options()?).await?;
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen(&address.channel()).await?;
    // What happened before anybody listened.
    refresh(shared).await?;
    while in_use(shared).is_some() {
        match tokio::time::timeout(LOOK_UP, listener.try_recv()).await {
            Ok(Ok(Some(notification))) => {
                match (Reached::of_message(notification.payload()), shared.upgrade()) {
                    (Some(reached), Some(shared)) => shared.announce(reached),
                    // Nobody is left to tell, or it was told in other words: then it is asked for.
                    (_, _) => refresh(shared).await?,
                }
            }
            // The connection was lost and there is another that listens; what was told in between has to be asked for.
            Ok(Ok(None)) => refresh(shared).await?,
            Ok(Err(error)) => return Err(error.into()),
            // A connection that is dead without anybody having said so is idle too, and so is one that was lost and is being
            // made anew.
            Err(_idle) => refresh(shared).await?,
        }
    }
    Ok(())
}

/// The registry, if somebody still uses it.
fn in_use(shared: &Weak<Shared>) -> Option<Arc<Shared>> {
    shared.upgrade().filter(|shared| !shared.database.readers.is_closed())
}

async fn refresh(shared: &Weak<Shared>) -> Result<(), RegistryError> {
    match in_use(shared) {
        Some(shared) => shared.refresh().await.map(|_| ()),
        None => Ok(()),
    }
}
