//! The connection to the cluster: how it is made, and how requests go through it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use scylla::client::execution_profile::ExecutionProfileHandle;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::deserialize::row::DeserializeRow;
use scylla::response::query_result::QueryResult;
use scylla::response::{PagingState, PagingStateResponse};
use scylla::serialize::row::SerializeRow;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use scylla::statement::unprepared::Statement;
use scylla::statement::{Consistency, SerialConsistency};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::config::{IN_FLIGHT_MAX, ScyllaConfig, Tls, check_keyspace};
use super::policy::{read_profile, write_profile};
use super::schema::{Layout, check_layout};
use crate::StoreError;

/// How often a connection is tried, and how long an answer may take: a node that hangs is noticed within twice this time, and
/// what was sent to it goes to others.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// How much of a request counts as one place among those under way.
const PLACE_BYTES: usize = 64 * 1024;

impl ScyllaConfig {
    /// The driver's settings as the store uses them: nodes, credentials, encryption and the policies for reads. For
    /// measurements of the driver alone beside the store.
    ///
    /// # Errors
    /// [`StoreError::BadConfig`]: a certificate file that cannot be read.
    pub fn session_builder(&self) -> Result<SessionBuilder, StoreError> {
        let mut builder = SessionBuilder::new()
            .known_nodes(&self.nodes)
            .keyspaces_to_fetch([self.keyspace.as_str()])
            .keepalive_interval(KEEPALIVE)
            .keepalive_timeout(KEEPALIVE)
            .default_execution_profile_handle(read_profile(self).into_handle());
        if let Some(credentials) = &self.credentials {
            builder = builder.user(&credentials.user, &credentials.password);
        }
        if let Some(datacenter) = &self.datacenter {
            builder = builder.prefer_datacenter(datacenter.clone());
        }
        match &self.tls {
            Tls::Off => Ok(builder),
            Tls::PublicAuthorities => {
                let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
                Ok(builder.tls_context(Some(tls_config(roots)?)))
            }
            Tls::Authority(file) => Ok(builder.tls_context(Some(tls_config(roots_in(file)?)?))),
        }
    }
}

fn tls_config(roots: RootCertStore) -> Result<Arc<ClientConfig>, StoreError> {
    // Named, because another crate of the process may have brought another provider.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| StoreError::BadConfig { what: format!("TLS: {error}") })?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

fn roots_in(file: &Path) -> Result<RootCertStore, StoreError> {
    let bad = |what: String| StoreError::BadConfig { what: format!("the certificates in {}: {what}", file.display()) };
    let certificates = CertificateDer::pem_file_iter(file).map_err(|error| bad(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        let certificate = certificate.map_err(|error| bad(error.to_string()))?;
        roots.add(certificate).map_err(|error| bad(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(bad("there are none".to_owned()));
    }
    Ok(roots)
}

/// A session in no keyspace.
pub(super) async fn connect(config: &ScyllaConfig) -> Result<Session, StoreError> {
    check_keyspace(&config.keyspace)?;
    let session = config
        .session_builder()?
        .build()
        .await
        .map_err(|error| StoreError::failed(format!("connecting to {config}"), error))?;
    check_datacenter(&session, config)?;
    Ok(session)
}

/// A majority is counted in the data center of whichever node is asked. With several of them, writing in one and reading in
/// another would break the promise to read one's own writes.
fn check_datacenter(session: &Session, config: &ScyllaConfig) -> Result<(), StoreError> {
    let names = datacenters(session);
    let what = match &config.datacenter {
        Some(wanted) if !names.contains(wanted) => {
            format!("{config} has no data center `{wanted}`; it has {}", names.join(", "))
        }
        None if names.len() > 1 => {
            format!("{config} has several data centers; choose one by `datacenter=`: {}", names.join(", "))
        }
        _ => return Ok(()),
    };
    Err(StoreError::BadConfig { what })
}

/// The data centers of the cluster, by name.
pub(super) fn datacenters(session: &Session) -> Vec<String> {
    let state = session.get_cluster_state();
    let names: BTreeSet<String> = state.get_nodes_info().iter().filter_map(|node| node.datacenter.clone()).collect();
    names.into_iter().collect()
}

pub(super) fn statement_failed(doing: String, error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::failed(doing, error)
}

/// The first row of a statement that is executed once, when a store is opened or made.
pub(super) async fn first_row<T>(
    session: &Session,
    config: &ScyllaConfig,
    text: &str,
    values: impl SerializeRow,
) -> Result<Option<T>, StoreError>
where
    T: for<'f, 'm> DeserializeRow<'f, 'm>,
{
    let doing = || format!("reading the schema of {config}");
    let mut statement = Statement::new(text);
    // What `init` decided by a lightweight transaction is seen by whoever opens the store next.
    statement.set_consistency(Consistency::LocalQuorum);
    let result = session.query_unpaged(statement, values).await.map_err(|error| statement_failed(doing(), error))?;
    let rows = result.into_rows_result().map_err(|error| statement_failed(doing(), error))?;
    rows.maybe_first_row::<T>().map_err(|error| statement_failed(doing(), error))
}

/// How a statement is executed.
#[derive(Clone, Copy)]
enum Kind {
    /// Reads rows, with the consistency of the URL, sent to another node when slow.
    ReadRows,
    /// Reads something else, with a majority, sent to another node when slow.
    ReadMajority,
    /// Writes with a majority.
    Write,
    /// Reads what lightweight transactions decided, those included whose outcome nobody knows yet.
    Serial,
    /// A lightweight transaction: must not be sent twice without looking in between.
    Transaction,
}

/// How many rows of times and keys are read at once.
const PAGE_ROWS: i32 = 1_000;

struct Preparing<'a> {
    session: &'a Session,
    config: &'a ScyllaConfig,
    reads: ExecutionProfileHandle,
    writes: ExecutionProfileHandle,
}

impl Preparing<'_> {
    async fn prepare(&self, kind: Kind, text: &str) -> Result<PreparedStatement, StoreError> {
        let text = text.replace("@", &format!("{}.", self.config.keyspace));
        let mut prepared = self
            .session
            .prepare(text)
            .await
            .map_err(|error| statement_failed(format!("preparing statements for {}", self.config), error))?;
        prepared.set_is_idempotent(!matches!(kind, Kind::Transaction));
        prepared.set_page_size(PAGE_ROWS);
        let profile = match kind {
            Kind::ReadRows | Kind::ReadMajority => &self.reads,
            Kind::Write | Kind::Serial | Kind::Transaction => &self.writes,
        };
        prepared.set_execution_profile_handle(Some(profile.clone()));
        match kind {
            Kind::ReadMajority => prepared.set_consistency(Consistency::LocalQuorum),
            Kind::Serial => prepared.set_consistency(Consistency::LocalSerial),
            Kind::ReadRows | Kind::Write | Kind::Transaction => {}
        }
        prepared.set_serial_consistency(Some(SerialConsistency::LocalSerial));
        Ok(prepared)
    }
}

macro_rules! statements {
    ($($name:ident: $kind:ident, $text:literal;)*) => {
        /// Statements, prepared once; `@` stands for the keyspace. All but the transactions may be repeated.
        #[derive(Debug)]
        pub(super) struct Statements {
            $(pub(super) $name: PreparedStatement,)*
        }

        impl Statements {
            async fn prepare(preparing: &Preparing<'_>) -> Result<Self, StoreError> {
                let ($($name,)*) = tokio::try_join!($(preparing.prepare(Kind::$kind, $text),)*)?;
                Ok(Self { $($name,)* })
            }
        }
    };
}

statements! {
    insert_row: Write,
        "INSERT INTO @rows (incarnation, entity, event_time, known_at, tie, body, bytes) VALUES (?, ?, ?, ?, ?, \
         ?, ?) USING TIMESTAMP ?";
    newest_row: ReadRows,
        "SELECT event_time, known_at, tie, body, erased_up_to FROM @rows WHERE incarnation = ? AND entity = ? AND \
         event_time <= ?";
    orders_below: ReadRows,
        "SELECT event_time, known_at, tie FROM @rows WHERE incarnation = ? AND entity = ? AND (event_time, \
         known_at, tie) < (?, ?, ?)";
    orders: ReadMajority,
        "SELECT event_time, known_at, tie, bytes, erased_up_to FROM @rows WHERE incarnation = ? AND entity = ? \
         AND (event_time, known_at, tie) <= (?, ?, ?)";
    one_body: ReadRows,
        "SELECT body, erased_up_to FROM @rows WHERE incarnation = ? AND entity = ? AND event_time = ? AND \
         known_at = ? AND tie = ?";
    bodies_between: ReadMajority,
        "SELECT event_time, known_at, tie, body, erased_up_to FROM @rows WHERE incarnation = ? AND entity = ? AND \
         (event_time, known_at, tie) <= (?, ?, ?) AND (event_time, known_at, tie) >= (?, ?, ?)";
    erasures_of_partition: ReadMajority,
        "SELECT DISTINCT incarnation, entity, erased_up_to FROM @rows WHERE incarnation = ? AND entity = ?";
    delete_row: Write,
        "DELETE FROM @rows WHERE incarnation = ? AND entity = ? AND event_time = ? AND known_at = ? AND tie = ?";
    delete_below: Write,
        "DELETE FROM @rows WHERE incarnation = ? AND entity = ? AND (event_time, known_at, tie) < (?, ?, ?)";
    delete_up_to: Write,
        "DELETE FROM @rows WHERE incarnation = ? AND entity = ? AND event_time <= ?";
    delete_partition: Write, "DELETE FROM @rows WHERE incarnation = ? AND entity = ?";
    erase_partition: Write,
        "UPDATE @rows SET erased_up_to = erased_up_to + ? WHERE incarnation = ? AND entity = ?";
    forget_lesser_erasures: Write,
        "UPDATE @rows SET erased_up_to = erased_up_to - ? WHERE incarnation = ? AND entity = ?";
    insert_entity: Write, "INSERT INTO @entities (incarnation, bucket, entity) VALUES (?, ?, ?)";
    entities: ReadMajority,
        "SELECT entity FROM @entities WHERE incarnation = ? AND bucket = ? AND entity >= ?";
    count_entities: ReadMajority, "SELECT COUNT(*) FROM @entities WHERE incarnation = ? AND bucket = ?";
    delete_entities: Write, "DELETE FROM @entities WHERE incarnation = ? AND bucket = ?";
    insert_erasure: Write,
        "INSERT INTO @erasures (view_digest, bucket, entity, up_to) VALUES (?, ?, ?, ?)";
    erasure: ReadMajority,
        "SELECT up_to FROM @erasures WHERE view_digest = ? AND bucket = ? AND entity = ?";
    delete_lesser_erasures: Write,
        "DELETE FROM @erasures WHERE view_digest = ? AND bucket = ? AND entity = ? AND up_to < ?";
    erasures_of_view: ReadMajority,
        "SELECT entity, up_to FROM @erasures WHERE view_digest = ? AND bucket = ? AND entity >= ?";
    mark_erasures: Write, "UPDATE @epochs SET has_erasures = true WHERE view_digest = ?";
    epoch: ReadMajority,
        "SELECT incarnation, buckets, revision, record, has_erasures FROM @epochs WHERE view_digest = ? AND epoch \
         = ?";
    epoch_for_change: Serial,
        "SELECT incarnation, buckets, revision, record, has_erasures FROM @epochs WHERE view_digest = ? AND epoch \
         = ?";
    epochs_of_view: ReadMajority,
        "SELECT epoch, incarnation, buckets FROM @epochs WHERE view_digest = ?";
    all_epochs: ReadMajority, "SELECT view_digest, epoch FROM @epochs";
    insert_epoch: Transaction,
        "INSERT INTO @epochs (view_digest, epoch, incarnation, buckets, revision, record) VALUES (?, ?, ?, ?, ?, \
         ?) IF NOT EXISTS";
    change_epoch: Transaction,
        "UPDATE @epochs SET record = ?, revision = ? WHERE view_digest = ? AND epoch = ? IF incarnation = ? AND \
         revision = ?";
    delete_epoch: Transaction,
        "DELETE FROM @epochs WHERE view_digest = ? AND epoch = ? IF incarnation = ?";
    insert_dropped: Write,
        "INSERT INTO @dropped (incarnation, view_digest, epoch, buckets) VALUES (?, ?, ?, ?)";
    all_dropped: ReadMajority, "SELECT incarnation, view_digest, epoch, buckets FROM @dropped";
    delete_dropped: Write, "DELETE FROM @dropped WHERE incarnation = ?";
    layout_version: ReadMajority, "SELECT version FROM @layout WHERE id = 0";
    clock_ms: ReadRows, "SELECT toUnixTimestamp(now()) FROM system.local";
}

/// A part of an answer, and where to go on.
pub(super) type Page<T> = (Vec<T>, Option<PagingState>);

/// The session with its statements. Everything that goes to the database goes through here, a bounded number at a time.
#[derive(Debug)]
pub(super) struct Db {
    session: Session,
    config: ScyllaConfig,
    pub(super) statements: Statements,
    pub(super) layout: Layout,
    places: Semaphore,
}

impl Db {
    pub(super) async fn open(config: ScyllaConfig) -> Result<Self, StoreError> {
        let session = connect(&config).await?;
        let layout = check_layout(&session, &config).await?;
        let preparing = Preparing {
            session: &session,
            config: &config,
            reads: read_profile(&config).into_handle(),
            writes: write_profile(&config).into_handle(),
        };
        let mut statements = Statements::prepare(&preparing).await?;
        // Nearly always the newest row is the one; further ones may be large.
        statements.newest_row.set_page_size(1);
        let config = ScyllaConfig { max_in_flight: config.max_in_flight.clamp(1, IN_FLIGHT_MAX), ..config };
        let places = Semaphore::new(config.max_in_flight);
        Ok(Self { session, config, statements, layout, places })
    }

    pub(super) fn config(&self) -> &ScyllaConfig {
        &self.config
    }

    /// How many requests one call keeps under way.
    pub(super) fn concurrency(&self) -> usize {
        self.config.max_in_flight.min(64)
    }

    pub(super) fn failed(&self, doing: &str, error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
        statement_failed(format!("{doing} in {}", self.config), error)
    }

    /// Waits for its turn; large requests take several places.
    async fn place(&self, bytes: usize) -> Result<SemaphorePermit<'_>, StoreError> {
        let places = (1 + bytes / PLACE_BYTES).min(self.config.max_in_flight);
        self.places.acquire_many(places as u32).await.map_err(|_| StoreError::Closed)
    }

    /// Executes a statement that gives no rows.
    pub(super) async fn execute(
        &self,
        doing: &str,
        statement: &PreparedStatement,
        values: impl SerializeRow,
        bytes: usize,
    ) -> Result<(), StoreError> {
        let _place = self.place(bytes).await?;
        self.session.execute_unpaged(statement, values).await.map_err(|error| self.failed(doing, error))?;
        Ok(())
    }

    /// Executes statements of one partition as one change: it is seen whole or not at all, and is one write for a replica.
    pub(super) async fn execute_as_one<V: SerializeRow>(
        &self,
        doing: &str,
        statement: &PreparedStatement,
        values: Vec<V>,
        bytes: usize,
    ) -> Result<(), StoreError> {
        let mut batch = self.batch();
        for _ in &values {
            batch.append_statement(statement.clone());
        }
        self.execute_batch(doing, &batch, values, bytes).await
    }

    pub(super) fn batch(&self) -> Batch {
        let mut batch = Batch::new(BatchType::Unlogged);
        batch.set_is_idempotent(true);
        batch.set_execution_profile_handle(self.statements.insert_row.get_execution_profile_handle().cloned());
        batch
    }

    pub(super) async fn execute_batch(
        &self,
        doing: &str,
        batch: &Batch,
        values: impl scylla::serialize::batch::BatchValues,
        bytes: usize,
    ) -> Result<(), StoreError> {
        let _place = self.place(bytes).await?;
        self.session.batch(batch, values).await.map_err(|error| self.failed(doing, error))?;
        Ok(())
    }

    /// Executes a lightweight transaction and says whether it was applied. After an error nobody knows.
    pub(super) async fn transact(
        &self,
        doing: &str,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<bool, StoreError> {
        let _place = self.place(0).await?;
        let result =
            self.session.execute_unpaged(statement, values).await.map_err(|error| self.failed(doing, error))?;
        let rows = result.into_rows_result().map_err(|error| self.failed(doing, error))?;
        // Its first column says so; the others, of what stands in the way, come and go.
        let row = rows.first_row::<scylla::value::Row>().map_err(|error| self.failed(doing, error))?;
        Ok(row.columns.first().is_some_and(|applied| *applied == Some(scylla::value::CqlValue::Boolean(true))))
    }

    /// A page of an answer.
    pub(super) async fn page<T>(
        &self,
        doing: &str,
        statement: &PreparedStatement,
        values: impl SerializeRow,
        state: PagingState,
    ) -> Result<Page<T>, StoreError>
    where
        T: for<'f, 'm> DeserializeRow<'f, 'm>,
    {
        let _place = self.place(0).await?;
        let (result, next) = self
            .session
            .execute_single_page(statement, values, state)
            .await
            .map_err(|error| self.failed(doing, error))?;
        let next = match next {
            PagingStateResponse::HasMorePages { state } => Some(state),
            PagingStateResponse::NoMorePages => None,
        };
        Ok((self.rows_of(doing, result)?, next))
    }

    /// A whole answer, for those that are small by their nature.
    pub(super) async fn all<T>(
        &self,
        doing: &str,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<Vec<T>, StoreError>
    where
        T: for<'f, 'm> DeserializeRow<'f, 'm>,
    {
        let mut all = Vec::new();
        let mut state = PagingState::start();
        loop {
            let (rows, next) = self.page(doing, statement, &values, state).await?;
            all.extend(rows);
            match next {
                Some(next) => state = next,
                None => return Ok(all),
            }
        }
    }

    fn rows_of<T>(&self, doing: &str, result: QueryResult) -> Result<Vec<T>, StoreError>
    where
        T: for<'f, 'm> DeserializeRow<'f, 'm>,
    {
        let rows = result.into_rows_result().map_err(|error| self.failed(doing, error))?;
        let typed = rows.rows::<T>().map_err(|error| self.failed(doing, error))?;
        typed.collect::<Result<_, _>>().map_err(|error| self.failed(doing, error))
    }
}

/// Runs this work, so much of it at once, and gives the outcomes in order.
pub(super) async fn run_all<F, T>(mut work: Vec<F>, at_once: usize) -> Result<Vec<T>, StoreError>
where
    F: Future<Output = Result<T, StoreError>> + Send,
    T: Send,
{
    // A single read is what most requests come down to.
    if work.len() == 1
        && let Some(only) = work.pop()
    {
        return Ok(vec![only.await?]);
    }
    stream::iter(work).buffered(at_once.max(1)).try_collect().await
}
