//! Tokens in memory, for requests to be checked by; and what a server does about people besides answering them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use eadem_api::tls::Certificate;
use eadem_api::{Credential, Credentials, Problem, Projects as _, Usage};
use eadem_registry::{ProjectRecord, Registry, RegistryError, Role, TokenRecord};
use futures::future::join_all;

use crate::projects::OpenProjects;

/// How often the registry is asked whether tokens have changed. What somebody revokes elsewhere is refused here within a second.
const ASK_EVERY: Duration = Duration::from_millis(400);
/// How often it is written when tokens were last used, and what was refused again and again.
const WRITE_EVERY: Duration = Duration::from_secs(60);
/// How long writing that may take, and how long a server that ends waits for it.
const END_MAX: Duration = Duration::from_secs(5);
/// For how long tokens are believed without an answer of the registry. Longer than a database takes to be replaced, so that
/// models are served meanwhile.
const BELIEVED_FOR: Duration = Duration::from_secs(300);

/// All tokens of a registry. There are few of them, and unknown ones must not cost a query each.
pub(crate) struct TokenBook {
    registry: Registry,
    usage: Arc<Usage>,
    known: RwLock<Known>,
    /// Whether requests may come without a token as long as there is none.
    may_be_open: AtomicBool,
    made_at: Instant,
    /// When the registry last answered, in milliseconds since this was made.
    checked_at_ms: AtomicU64,
}

#[derive(Default)]
struct Known {
    revision: u64,
    by_id: HashMap<String, Arc<Credential>>,
}

impl TokenBook {
    /// Reads all tokens, and what projects may use.
    ///
    /// # Errors
    /// The registry cannot be read.
    pub(crate) async fn open(registry: Registry, usage: Arc<Usage>) -> Result<Arc<Self>, RegistryError> {
        let book = Self {
            registry,
            usage,
            known: RwLock::default(),
            may_be_open: AtomicBool::new(true),
            made_at: Instant::now(),
            checked_at_ms: AtomicU64::new(0),
        };
        book.load().await?;
        Ok(Arc::new(book))
    }

    /// Whether there is a token that may do everything in all projects, now.
    pub(crate) fn has_admin(&self, now_us: i64) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.by_id.values().any(|credential| {
            credential.role == Role::Admin && credential.project.is_none() && credential.is_valid_at(now_us)
        })
    }

    /// From now on every request needs a token, also while there is none.
    pub(crate) fn never_open(&self) {
        self.may_be_open.store(false, Ordering::Relaxed);
    }

    async fn load(&self) -> Result<(), RegistryError> {
        let (revision, tokens) = self.registry.access().await?;
        let projects = self.registry.projects().await?;
        self.take_over(revision, tokens, &projects);
        self.checked();
        Ok(())
    }

    fn take_over(&self, revision: u64, tokens: Vec<TokenRecord>, projects: &[ProjectRecord]) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        // Another load may have been faster and newer.
        if revision < known.revision {
            return;
        }
        self.usage.limit(projects);
        let by_id = tokens.into_iter().map(|token| (token.id.clone(), Arc::new(Credential::of(token)))).collect();
        let before = std::mem::replace(&mut *known, Known { revision, by_id });
        // When a token was last used must outlive what is known of it.
        for (id, credential) in &before.by_id {
            if let (Some(at_us), Some(now)) = (credential.last_used_at_us(), known.by_id.get(id)) {
                now.used_at(at_us);
            }
        }
    }

    fn checked(&self) {
        self.checked_at_ms.store(self.age_ms(), Ordering::Relaxed);
    }

    fn age_ms(&self) -> u64 {
        u64::try_from(self.made_at.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Loads all tokens again if any has changed.
    async fn follow(&self) -> Result<(), RegistryError> {
        let revision = self.registry.access_revision().await?;
        if revision != self.known.read().unwrap_or_else(PoisonError::into_inner).revision {
            return self.load().await;
        }
        self.checked();
        Ok(())
    }

    /// When each token was last used, of those that this process saw after `written`.
    fn used_since(&self, written: &HashMap<String, i64>) -> Vec<(String, i64)> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let used = known.by_id.iter().filter_map(|(id, credential)| Some((id.clone(), credential.last_used_at_us()?)));
        used.filter(|(id, at_us)| written.get(id).is_none_or(|written_us| written_us < at_us)).collect()
    }
}

#[async_trait]
impl Credentials for TokenBook {
    fn find(&self, id: &str) -> Option<Arc<Credential>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).by_id.get(id).cloned()
    }

    fn is_open(&self) -> bool {
        let may_be_open = self.may_be_open.load(Ordering::Relaxed);
        may_be_open && self.known.read().unwrap_or_else(PoisonError::into_inner).by_id.is_empty()
    }

    fn is_current(&self) -> bool {
        let since_ms = self.age_ms().saturating_sub(self.checked_at_ms.load(Ordering::Relaxed));
        u128::from(since_ms) < BELIEVED_FOR.as_millis()
    }

    async fn refresh(&self) -> Result<(), Problem> {
        self.load().await.map_err(|error| Problem::internal("the tokens cannot be read", error))
    }
}

/// What goes on beside the requests of a server.
pub(crate) struct Upkeep {
    pub(crate) projects: Arc<OpenProjects>,
    pub(crate) certificate: Option<Arc<Certificate>>,
}

impl Upkeep {
    /// Follows tokens and certificates, and writes what has gathered, for as long as it is polled.
    pub(crate) async fn run(&self) {
        let mut ask = tokio::time::interval(ASK_EVERY);
        ask.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut hung_up = HangUps::new();
        let mut written = HashMap::new();
        let mut written_at = Instant::now();
        loop {
            tokio::select! {
                _ = ask.tick() => {}
                () = hung_up.next() => self.renew_certificate(true),
            }
            if let Err(error) = self.projects.book().follow().await {
                tracing::warn!(%error, "the registry does not say whether tokens have changed");
            }
            self.renew_certificate(false);
            if written_at.elapsed() >= WRITE_EVERY {
                written_at = Instant::now();
                self.write(&mut written, false).await;
            }
        }
    }

    /// Writes what has gathered, before the process ends.
    pub(crate) async fn end(&self) {
        if tokio::time::timeout(END_MAX, self.write(&mut HashMap::new(), true)).await.is_err() {
            tracing::warn!("the registry took too long to be told of refusals and of when tokens were last used");
        }
    }

    async fn write(&self, written: &mut HashMap<String, i64>, at_once: bool) {
        let book = self.projects.book();
        let used = book.used_since(written);
        match book.registry.note_tokens_used(&used).await {
            Ok(()) => written.extend(used),
            Err(error) => tracing::warn!(%error, "when tokens were last used could not be written"),
        }
        let opened = self.projects.opened();
        join_all(opened.iter().map(async |state| {
            let now_us = state.clock.now_us();
            let refused = state.refusals.end_window(now_us, at_once);
            // One project whose registry is busy keeps no other one waiting.
            match tokio::time::timeout(END_MAX, state.registry.note_refusals(&refused, now_us)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(project = state.project, %error, "refusals could not be told in the trail");
                }
                Err(_) => tracing::warn!(project = state.project, "the registry took too long to be told of refusals"),
            }
        }))
        .await;
    }

    fn renew_certificate(&self, anyway: bool) {
        let Some(certificate) = &self.certificate else { return };
        let renewed = match anyway {
            true => certificate.reload().map(|()| true),
            false => certificate.reload_if_changed(),
        };
        match renewed {
            Ok(true) => tracing::info!("the certificate was read again"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the certificate could not be read again; the one before stays"),
        }
    }
}

/// Hang-ups, by which operators tell a server to read its files again.
struct HangUps {
    #[cfg(unix)]
    signals: Option<tokio::signal::unix::Signal>,
}

impl HangUps {
    fn new() -> Self {
        Self {
            #[cfg(unix)]
            signals: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).ok(),
        }
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        if let Some(signals) = &mut self.signals
            && signals.recv().await.is_some()
        {
            return;
        }
        std::future::pending().await
    }
}
