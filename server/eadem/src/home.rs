//! A project's directory, opened: registry, stores, engine and jobs, behind the routes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use async_trait::async_trait;
use axum::Router;
use eadem_api::serving::{History, OnlineThenHistory};
use eadem_api::{ApiState, Clock, PlanCache, Problem, StoreStatus, SystemClock};
use eadem_engine::{CompilerCommand, Engine, EngineConfig};
use eadem_offline::{OfflineStore, limit_object_stores};
use eadem_online::{EmbeddedOptions, EmbeddedStore, OnlineStore, StoreError, TableId};
use eadem_registry::{EpochState, Registry};
use eadem_values::format_timestamp;
use serde_json::{Value as Json, json};
use tokio::sync::Semaphore;

use crate::adapters::{EngineTransforms, Inspector, OfflineHistory};
use crate::config::{CONFIGURATION_TABLES, Config};
use crate::jobs::JobRunner;
use crate::output::Printer;
use crate::quarantine::RefusedRows;
use crate::upkeep;

/// Uploads that are checked at once: each compiles and runs a component in the background.
const UPLOADS_AT_ONCE: usize = 1;

/// Everything that one process needs to answer for a project.
pub(crate) struct Home {
    state: Arc<ApiState>,
    online: Arc<EmbeddedStore>,
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
    pub(crate) engine: Engine,
    pub(crate) online: Arc<dyn OnlineStore>,
    pub(crate) offline: Arc<OfflineStore>,
    pub(crate) transforms: Arc<EngineTransforms>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Home {
    /// Opens a project's directory; makes what is not there yet.
    pub(crate) async fn open(project: &Path, config: &Config) -> Result<Self, OpenError> {
        let data_dir = project.join(&config.store.data_dir);
        std::fs::create_dir_all(&data_dir)
            .with_context(|| format!("cannot make {}", data_dir.display()))
            .map_err(OpenError::Other)?;
        let online = match EmbeddedStore::open(data_dir.join("online"), EmbeddedOptions::default()) {
            Ok(online) => Arc::new(online),
            Err(StoreError::InUse { address: Some(address), .. }) => return Err(OpenError::Serving { address }),
            Err(error) => return Err(OpenError::Other(error.into())),
        };
        let state = Self::assemble(project, &data_dir, config, Arc::clone(&online)).await.map_err(OpenError::Other)?;
        Ok(Self { state, online })
    }

    async fn assemble(
        project: &Path,
        data_dir: &Path,
        config: &Config,
        online: Arc<EmbeddedStore>,
    ) -> anyhow::Result<Arc<ApiState>> {
        let registry = Registry::open(&data_dir.join("registry.sqlite")).await?;
        let engine = Engine::new(engine_config(&config.engine, data_dir)?)?;
        limit_object_stores(config.store.limits());
        let offline = Arc::new(OfflineStore::open(&config.store.offline_root(project))?);
        offline.prepare()?;
        let transforms = Arc::new(EngineTransforms::new(registry.clone(), engine.clone()));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let stores = Stores {
            project: project.to_owned(),
            data_dir: data_dir.to_owned(),
            registry: registry.clone(),
            engine: engine.clone(),
            online: Arc::clone(&online) as Arc<dyn OnlineStore>,
            offline,
            transforms: Arc::clone(&transforms),
            clock: Arc::clone(&clock),
        };
        let deadline = Duration::from_millis(config.limits.history_ms_max);
        let history: Arc<dyn History> = Arc::new(OfflineHistory::new(stores.clone(), deadline));
        let reads_max = config.limits.history_reads_max;
        let online = Arc::clone(&stores.online);
        let rows = OnlineThenHistory::new(registry.clone(), online, Arc::clone(&history), reads_max);
        Ok(Arc::new(ApiState {
            registry,
            engine,
            transforms,
            rows: Arc::new(rows),
            history,
            inspector: Arc::new(Inspector::new(project.to_owned())),
            jobs: Arc::new(JobRunner::new(stores.clone(), &config.jobs)),
            quarantine: Arc::new(RefusedRows::new(stores.clone())),
            status: Arc::new(Status { stores }),
            clock,
            limits: config.limits.clone(),
            configuration_tables: CONFIGURATION_TABLES,
            plans: PlanCache::default(),
            in_flight: Arc::new(Semaphore::new(config.limits.requests_in_flight_max.min(Semaphore::MAX_PERMITS))),
            uploads: Arc::new(Semaphore::new(UPLOADS_AT_ONCE)),
        }))
    }

    /// The routes over this directory.
    pub(crate) fn router(&self) -> Router {
        eadem_api::router(Arc::clone(&self.state))
    }

    /// Serves until SIGTERM or Ctrl-C, then lets requests in flight finish.
    pub(crate) async fn serve(self, config: &Config, printer: Printer) -> anyhow::Result<()> {
        let listen = &config.server.listen;
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host(listen)
            .await
            .with_context(|| format!("server.listen = {listen}: not an address and port"))?
            .collect();
        if let Some(open_to_all) = addresses.iter().find(|address| !address.ip().is_loopback()) {
            bail!(
                "server.listen = {listen} ({open_to_all}) is reachable from other machines, and there are no credentials yet; \
                 listen on 127.0.0.1 and put a proxy that authenticates in front"
            );
        }
        let listener = tokio::net::TcpListener::bind(addresses.as_slice())
            .await
            .with_context(|| format!("cannot listen on {listen}"))?;
        let address = listener.local_addr()?;
        self.online.announce(&address.to_string())?;
        printer.note(&format!("serving on http://{address}"));
        let drain = Duration::from_secs(config.server.drain_s);
        let (drained, shutdown) = tokio::sync::oneshot::channel::<()>();
        let server = axum::serve(listener, self.router()).with_graceful_shutdown(async move {
            end_signal().await;
            let _ = drained.send(());
        });
        tokio::select! {
            result = server => result?,
            () = async {
                let _ = shutdown.await;
                tokio::time::sleep(drain).await;
            } => tracing::warn!("requests in flight did not finish within {} s", drain.as_secs()),
        }
        Ok(())
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

async fn end_signal() {
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

struct Status {
    stores: Stores,
}

#[async_trait]
impl StoreStatus for Status {
    async fn online(&self) -> Result<Json, Problem> {
        let registry_failed = |error| Problem::internal("the registry could not be read", error);
        let mut views = Vec::new();
        for epoch in self.stores.registry.epochs(None).await.map_err(registry_failed)? {
            let view = self.stores.registry.view(&epoch.view.name, Some(epoch.view.version)).await;
            let view = view.map_err(registry_failed)?;
            let table = TableId { view: view.digest, epoch: u64::from(epoch.epoch) };
            let Ok(status) = self.stores.online.status(table).await else { continue };
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
                "complete_since": status.coverage.complete_since_us.map(|since_us| match since_us {
                    i64::MIN => "the beginning".to_owned(),
                    since_us => format_timestamp(since_us),
                }),
                "offline_commit": status.coverage.offline_commit,
                "withdrawn_in": withdrawn.map(|withdrawn| withdrawn.commit),
            }));
        }
        Ok(json!({ "store": self.stores.online.kind(), "views": views }))
    }

    async fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if let Err(error) = self.stores.registry.revision().await {
            reasons.push(format!("registry: {error}"));
        }
        if let Err(error) = self.stores.online.tables().await {
            reasons.push(format!("online store: {error}"));
        }
        reasons
    }
}
