//! A directory, opened: the stores of its projects behind the routes, and how these are served.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use async_trait::async_trait;
use axum::Router;
use eadem_api::serving::{EntityKeys, History, ReadOptions, ReadRow, RowSource, RowSourceError};
use eadem_api::tls::Certificate;
use eadem_api::{ApiState, Clock, Hindrance, Problem, Projects as _, Server, StoreStatus, StoredTable, SystemClock};
use eadem_engine::{CompilerCommand, EngineConfig};
use eadem_offline::OfflineStore;
use eadem_online::{CacheUsage, CachedStore, OnlineStore, StoreError, TableId, TableStatus};
use eadem_registry::model::ViewVersion;
use eadem_registry::{Epoch, EpochState, Registry};
use eadem_semantics::ReadAt;
use serde_json::{Value as Json, json};
use uuid::Uuid;

use crate::access::Upkeep;
use crate::adapters::{EngineTransforms, OfflineHistory};
use crate::config::{Config, TlsMode};
use crate::erasure::RegistryErasures;
use crate::job_threads::JobThreads;
use crate::jobs::JobRunner;
use crate::output::{Printer, since_text};
use crate::projects::{OpenProject, OpenProjects, Place};
use crate::sizes::Sizes;
use crate::upkeep;

/// Everything that one process needs to answer for the projects of a directory, which is its own.
pub(crate) struct Home {
    projects: Arc<OpenProjects>,
    main: Arc<OpenProject>,
    directory: PathBuf,
}

/// A directory while another process holds it: registries and offline stores, which several may use.
pub(crate) struct Beside {
    projects: Arc<OpenProjects>,
    main: Arc<OpenProject>,
}

/// Why a project's directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// A server runs on it: go there.
    #[error("a server at {address} serves this directory")]
    Serving {
        /// Where it listens.
        address: String,
    },
    /// Another verb works on it.
    #[error("{0}")]
    Busy(StoreError),
    /// Anything else.
    #[error("{0:#}")]
    Other(anyhow::Error),
}

/// What the stores, the jobs and the routes share.
#[derive(Clone)]
pub(crate) struct Stores {
    pub(crate) project: PathBuf,
    pub(crate) data_dir: PathBuf,
    pub(crate) registry: Registry,
    /// What this directory is called in the registry, which several may share.
    pub(crate) home_id: String,
    /// Whoever has work of a job has it done there.
    pub(crate) job_threads: Arc<JobThreads>,
    /// `None`: another process holds it.
    pub(crate) online: Option<Arc<CachedStore>>,
    pub(crate) offline: Arc<OfflineStore>,
    pub(crate) transforms: Arc<EngineTransforms>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Memory that the rows of one job may take.
    pub(crate) job_memory_bytes_max: usize,
}

impl Home {
    /// Opens a directory; makes what is not there yet.
    pub(crate) async fn open(directory: &Path, config: &Config) -> Result<Self, OpenError> {
        let (projects, main) = OpenProjects::open_first(directory, config, true).await?;
        Ok(Self { projects, main, directory: directory.to_owned() })
    }

    /// The routes over this directory.
    pub(crate) fn router(&self) -> Router {
        self.projects.routes(&self.main).into_router()
    }

    /// Serves until SIGTERM or Ctrl-C, then lets requests in flight finish.
    pub(crate) async fn serve(self, config: &Config, printer: Printer) -> anyhow::Result<()> {
        let listen = &config.server.listen;
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host(listen)
            .await
            .with_context(|| format!("server.listen = {listen}: not an address and port"))?
            .collect();
        let files = config.server.certificate_files(&self.directory)?;
        let certificate = files.map(|(certificate, key)| Certificate::open(&certificate, &key)).transpose()?;
        self.check_exposure(config, &addresses, certificate.is_some())?;
        let listener = tokio::net::TcpListener::bind(addresses.as_slice())
            .await
            .with_context(|| format!("cannot listen on {listen}"))?;
        let address = listener.local_addr()?;
        self.projects.open_all().await?;
        if config.limits.uploads_lowest_priority {
            self.main.state.uploads.step_back();
        }
        if config.jobs.low_priority {
            self.projects.job_threads().step_back().context("the threads of jobs cannot be started")?;
        }
        for state in self.projects.opened() {
            tokio::spawn(ApiState::keep_components_loaded(Arc::downgrade(&state)));
        }
        let scheme = if certificate.is_some() { "https" } else { "http" };
        self.main.announce(&announced(scheme, address))?;
        printer.note(&format!("serving on {scheme}://{address}"));
        if self.main.state.credentials.is_open() {
            tracing::warn!(
                "open: there is no token, so everybody on this machine may do everything; `eadem token create` ends that"
            );
        }
        let upkeep = self.upkeep(certificate.clone());
        let drain = Duration::from_secs(config.server.drain_s);
        let (drained, shutdown) = tokio::sync::oneshot::channel::<()>();
        let end = async move {
            end_signal().await;
            let _ = drained.send(());
        };
        let routes = self.projects.routes(&self.main);
        let server = Server::new(listener, routes, certificate.as_ref(), &config.limits)?;
        tokio::select! {
            () = server.run(end) => {}
            () = async {
                let _ = shutdown.await;
                tokio::time::sleep(drain).await;
            } => tracing::warn!("requests in flight did not finish within {} s", drain.as_secs()),
            () = upkeep.run() => {}
        }
        upkeep.end().await;
        Ok(())
    }

    /// Beyond this machine nobody is served without a credential, and no credential goes over the wire in the clear.
    fn check_exposure(&self, config: &Config, addresses: &[SocketAddr], has_certificate: bool) -> anyhow::Result<()> {
        let listen = &config.server.listen;
        let exposed = addresses.iter().find(|address| !address.ip().is_loopback());
        // Everybody who shares a registry would be changed by whoever is on this machine.
        let is_shared = config.store.registry.is_some();
        if exposed.is_some() || is_shared {
            self.projects.book().never_open();
        }
        let why = match exposed {
            Some(address) => format!("server.listen = {listen} ({address}) is reachable from other machines"),
            None if is_shared => "others share the registry (store.registry)".to_owned(),
            None => return Ok(()),
        };
        if !self.projects.book().has_admin(self.main.state.clock.now_us()) {
            bail!("{why}, and there is no token of an admin; make one: `eadem token create --name admin --role admin`");
        }
        if exposed.is_some() && !has_certificate && config.server.tls != TlsMode::OffBehindProxy {
            bail!(
                "{why}, and there is no TLS; set server.tls_certificate and server.tls_key, or, where a proxy that nobody \
                 can go around ends TLS, server.tls = \"off_behind_proxy\""
            );
        }
        Ok(())
    }

    fn upkeep(&self, certificate: Option<Arc<Certificate>>) -> Upkeep {
        Upkeep { projects: Arc::clone(&self.projects), certificate }
    }
}

/// Where verbs on this machine find the server. A plain address stands for `http://`.
fn announced(scheme: &str, address: SocketAddr) -> String {
    // To listen on all interfaces is to listen on this one.
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let address = SocketAddr::new(ip, address.port());
    if scheme == "https" { format!("https://{address}") } else { address.to_string() }
}

/// Why a directory could not be taken into possession.
pub(crate) fn not_ours(error: StoreError) -> OpenError {
    match error {
        StoreError::InUse { address: Some(address), .. } => OpenError::Serving { address },
        error @ StoreError::InUse { .. } => OpenError::Busy(error),
        error => OpenError::Other(error.into()),
    }
}

/// The engine's configuration with paths below the data directory and this very program as the compiler: the one that
/// runs, also where its file has been replaced since.
pub(crate) fn engine_config(config: &EngineConfig, data_dir: &Path) -> anyhow::Result<EngineConfig> {
    let mut config = config.clone();
    config.artifacts_dir = data_dir.join(&config.artifacts_dir);
    if config.compiler == CompilerCommand::default() {
        config.compiler.args = vec!["compile-child".to_owned()];
    }
    Ok(config)
}

/// Waits for SIGTERM or Ctrl-C.
pub(crate) async fn end_signal() {
    let interrupted = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut terminated) => {
                tokio::select! {
                    _ = interrupted => {}
                    _ = terminated.recv() => {}
                }
            }
            Err(_) => {
                let _ = interrupted.await;
            }
        }
    }
    #[cfg(not(unix))]
    let _ = interrupted.await;
}

impl Stores {
    /// The stores of a project at this place, the offline one at `root`.
    pub(crate) fn open(
        place: &Place,
        config: &Config,
        registry: Registry,
        transforms: Arc<EngineTransforms>,
        job_threads: Arc<JobThreads>,
        online: Option<Arc<CachedStore>>,
        root: &str,
    ) -> anyhow::Result<Self> {
        let erasures = Arc::new(RegistryErasures(registry.clone()));
        let offline = Arc::new(OfflineStore::open(root)?.with_erasures(erasures));
        offline.prepare()?;
        Ok(Self {
            project: place.folder.clone(),
            data_dir: place.data_dir.clone(),
            job_memory_bytes_max: config.jobs.memory_bytes_max,
            registry,
            home_id: home_id(&place.data_dir)?,
            job_threads,
            online,
            offline,
            transforms,
            clock: Arc::new(SystemClock),
        })
    }

    /// The directory, if this process holds it.
    pub(crate) fn home(&self) -> Option<String> {
        self.online.is_some().then(|| self.home_id.clone())
    }

    /// The online store.
    ///
    /// # Errors
    /// Another process holds it.
    pub(crate) fn online(&self) -> anyhow::Result<Arc<dyn OnlineStore>> {
        let online =
            self.online.clone().context("another process holds the online store, and only that one can use it")?;
        Ok(online)
    }
}

/// The file with a directory's name in the registry.
const HOME_ID: &str = "home-id";

/// The name of a directory, chosen when it is first opened.
fn home_id(data_dir: &Path) -> anyhow::Result<String> {
    let file = data_dir.join(HOME_ID);
    let context = || format!("cannot read {}", file.display());
    if !file.exists() {
        let chosen = data_dir.join(format!("{HOME_ID}-{}", std::process::id()));
        std::fs::write(&chosen, Uuid::now_v7().simple().to_string()).with_context(context)?;
        // Of several that choose at once the first has chosen.
        let _is_first = std::fs::hard_link(&chosen, &file);
        std::fs::remove_file(&chosen).with_context(context)?;
    }
    Ok(std::fs::read_to_string(&file).with_context(context)?.trim().to_owned())
}

/// What was stored once, as far as requests may ask for it.
pub(crate) fn history_of(stores: &Stores, config: &Config) -> Arc<dyn History> {
    let deadline = Duration::from_millis(config.limits.history_ms_max);
    Arc::new(OfflineHistory::new(stores.clone(), deadline))
}

impl Beside {
    /// Opens what several processes may use. There must be something already.
    ///
    /// # Errors
    /// A directory in which nothing was ever made, or that cannot be opened.
    pub(crate) async fn open(directory: &Path, config: &Config) -> anyhow::Result<Self> {
        let data_dir = directory.join(&config.store.data_dir);
        if !data_dir.join(HOME_ID).is_file() {
            bail!("nothing was made in {} yet: there is no job", data_dir.display());
        }
        let (projects, main) = OpenProjects::open_first(directory, config, false).await?;
        Ok(Self { projects, main })
    }

    /// The jobs of a project, without those that need the online store.
    pub(crate) async fn jobs(&self, project: &str) -> anyhow::Result<JobRunner> {
        Ok(self.projects.project(project).await?.jobs.clone())
    }

    /// The routes, of which those work that need no online store.
    pub(crate) fn router(&self) -> Router {
        self.projects.routes(&self.main).into_router()
    }
}

/// In the place of the online store where another process holds it.
pub(crate) struct NoOnlineStore {
    pub(crate) stores: Stores,
}

#[async_trait]
impl RowSource for NoOnlineStore {
    async fn read(
        &self,
        _: &ViewVersion,
        _: &EntityKeys,
        _: &[ReadAt],
        _: ReadOptions,
    ) -> Result<Vec<ReadRow>, RowSourceError> {
        let held = self.stores.online().err().map(|error| error.to_string());
        Err(RowSourceError::Unavailable { store: "online", message: held.unwrap_or_default() })
    }
}

/// How far a clock is ahead of ours at least, or behind where this is negative, if it was read at some time in between.
fn ahead_us(their_us: i64, ours_us: std::ops::RangeInclusive<i64>) -> i64 {
    their_us - their_us.clamp(*ours_us.start(), *ours_us.end())
}

/// A store that has not said anything by then is not ready.
const PING_WAIT: Duration = Duration::from_secs(2);

pub(crate) struct Status {
    stores: Stores,
    /// How far the clock of a store may be from ours.
    clock_skew_max: Duration,
    /// Of a database, which has to count. An embedded store knows.
    sizes: Option<Sizes>,
}

/// The sizes of a database's tables are counted no sooner again: who scrapes metrics every few seconds must not keep it busy.
const SIZES_LAST: Duration = Duration::from_secs(30);

/// How long a scrape waits for them.
const SIZES_WAIT: Duration = Duration::from_secs(1);

impl Status {
    pub(crate) fn new(stores: Stores, config: &Config) -> Self {
        let sizes = config.store.online.is_some().then(|| Sizes::new(SIZES_LAST, SIZES_WAIT));
        let clock_skew_max = Duration::from_millis(config.limits.clock_skew_ms_max);
        Self { stores, clock_skew_max, sizes }
    }

    /// Why the offline store cannot be read at the moment: views that were never materialized, and the past, are read from it.
    async fn offline_hindrance(&self) -> Option<String> {
        match tokio::time::timeout(PING_WAIT, self.stores.offline.ping()).await {
            Ok(answered) => answered.err().map(|error| error.to_string()),
            Err(_) => Some(no_answer()),
        }
    }

    /// Why the online store cannot be relied on at the moment: it does not answer, or its clock and ours are too far apart for
    /// what either calls now.
    async fn online_hindrance(&self, online: &dyn OnlineStore) -> Option<String> {
        let clock = &self.stores.clock;
        let asked_at_us = clock.now_us();
        let their_us = match tokio::time::timeout(PING_WAIT, online.ping()).await {
            Ok(Ok(their_us)) => their_us?,
            Ok(Err(error)) => return Some(error.to_string()),
            Err(_) => return Some(no_answer()),
        };
        let ahead_us = ahead_us(their_us, asked_at_us..=clock.now_us());
        let skew = Duration::from_micros(ahead_us.unsigned_abs());
        (skew > self.clock_skew_max).then(|| {
            let direction = if ahead_us > 0 { "ahead of" } else { "behind" };
            format!(
                "its clock is {} ms {direction} this machine's, more than {} ms (limits.clock_skew_ms_max); \
                 set both by NTP",
                skew.as_millis(),
                self.clock_skew_max.as_millis()
            )
        })
    }

    /// Why the registry cannot be read at the moment.
    async fn registry_hindrance(&self) -> Option<String> {
        match tokio::time::timeout(PING_WAIT, self.stores.registry.revision()).await {
            Ok(answered) => answered.err().map(|error| error.to_string()),
            Err(_) => Some(no_answer()),
        }
    }
}

fn online_store(stores: &Stores) -> Result<Arc<dyn OnlineStore>, Problem> {
    stores.online().map_err(|error| Problem::internal("the online store cannot be shown", error))
}

fn no_answer() -> String {
    format!("no answer within {} s", PING_WAIT.as_secs())
}

/// Every epoch with its view, and how its table stands.
async fn epochs(stores: &Stores) -> Result<Vec<(Epoch, Arc<ViewVersion>, TableStatus)>, Problem> {
    let registry_failed = |error| Problem::internal("the registry could not be read", error);
    let (registry, online) = (&stores.registry, online_store(stores)?);
    let mut epochs = Vec::new();
    for epoch in registry.epochs(None).await.map_err(registry_failed)? {
        let view = registry.view(&epoch.view.name, Some(epoch.view.version)).await.map_err(registry_failed)?;
        let table = TableId { view: view.digest, epoch: u64::from(epoch.epoch) };
        // It may have been dropped meanwhile.
        let Ok(status) = online.status(table).await else { continue };
        epochs.push((epoch, view, status));
    }
    Ok(epochs)
}

async fn stored_tables(stores: Stores) -> Result<Vec<StoredTable>, Problem> {
    let table = |(epoch, _, status): (Epoch, Arc<ViewVersion>, TableStatus)| StoredTable {
        view: epoch.view.to_string(),
        epoch: status.table.epoch,
        is_current: epoch.state == EpochState::Current,
        rows: status.rows,
        bytes: status.bytes,
    };
    Ok(epochs(&stores).await?.into_iter().map(table).collect())
}

#[async_trait]
impl StoreStatus for Status {
    async fn online(&self) -> Result<Json, Problem> {
        let mut views = Vec::new();
        for (epoch, view, status) in epochs(&self.stores).await? {
            let withdrawn = match epoch.state == EpochState::Current {
                true => upkeep::withdrawn_online(&self.stores, &view).await,
                false => Ok(None),
            };
            let withdrawn = withdrawn.unwrap_or_else(|error| {
                tracing::warn!(view = %view.id, error = format!("{error:#}"), "its offline table could not be read");
                None
            });
            views.push(json!({
                "view": epoch.view.to_string(),
                "epoch": epoch.epoch,
                "state": epoch.state,
                "placement": epoch.placement,
                "rows": status.rows,
                "bytes": status.bytes,
                "complete_since": status.coverage.complete_since_us.map(since_text),
                "offline_commit": status.coverage.offline_commit,
                "withdrawn_in": withdrawn.map(|withdrawn| withdrawn.commit),
            }));
        }
        Ok(json!({ "store": online_store(&self.stores)?.kind(), "views": views }))
    }

    async fn view_tables(&self, view: &ViewVersion) -> Result<Json, Problem> {
        if view.is_on_demand() {
            return Ok(json!({ "offline": null, "online": [] }));
        }
        let unreadable = |error: anyhow::Error| Problem::internal("the offline table could not be read", error);
        let spec = self.stores.table_spec(view).await.map_err(unreadable)?;
        let table = self.stores.offline.table(&spec).map_err(|error| unreadable(error.into()))?;
        let offline = table.contents().await.map_err(|error| unreadable(error.into()))?;
        let registry_failed = |error| Problem::internal("the registry could not be read", error);
        let mut online = Vec::new();
        for epoch in self.stores.registry.epochs(Some(&view.id)).await.map_err(registry_failed)? {
            let table = TableId { view: view.digest, epoch: u64::from(epoch.epoch) };
            // It may have been dropped meanwhile, or another process may hold the store.
            let status = match &self.stores.online {
                Some(store) => store.status(table).await.ok(),
                None => None,
            };
            online.push(json!({
                "epoch": epoch.epoch,
                "state": epoch.state,
                "rows": status.as_ref().map(|status| status.rows),
                "bytes": status.as_ref().map(|status| status.bytes),
                "offline_commit": status.as_ref().and_then(|status| status.coverage.offline_commit),
            }));
        }
        Ok(json!({ "offline": offline, "online": online }))
    }

    async fn tables(&self) -> Result<Vec<StoredTable>, Problem> {
        let count = || stored_tables(self.stores.clone());
        match &self.sizes {
            Some(sizes) => sizes.get(count).await,
            None => count().await,
        }
    }

    async fn not_ready(&self) -> Vec<Hindrance> {
        let online = async {
            match self.stores.online() {
                Ok(online) => self.online_hindrance(online.as_ref()).await,
                Err(error) => Some(format!("{error:#}")),
            }
        };
        // At once: a caller waits for the slowest of them.
        let (registry, online, offline) = tokio::join!(self.registry_hindrance(), online, self.offline_hindrance());
        let parts = [("registry", registry), ("online store", online), ("offline store", offline)];
        parts.into_iter().filter_map(|(part, reason)| Some(Hindrance { part, reason: reason? })).collect()
    }

    fn cache(&self) -> Option<CacheUsage> {
        self.stores.online.as_ref().map(|online| online.usage())
    }
}

#[cfg(test)]
mod tests {
    use super::ahead_us;

    #[test]
    fn a_clock_is_off_by_what_no_time_in_between_explains() {
        assert_eq!([99, 100, 150, 200].map(|theirs| ahead_us(theirs, 100..=200)), [-1, 0, 0, 0]);
        assert_eq!(ahead_us(1_200, 100..=200), 1_000);
        assert_eq!(ahead_us(40, 100..=100), -60);
    }
}
