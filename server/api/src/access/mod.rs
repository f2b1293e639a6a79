//! Who may do what: which role each route needs, who a request comes from, and what is noted of those turned away.

mod bearer;
mod door;
mod files;
mod principal;
mod refusals;
mod sources;
mod usage;

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use eadem_registry::{Role, TokenRecord};

use crate::problem::Problem;

pub(crate) use bearer::{new_secret, presented_id};
pub(crate) use door::{Refusal, role_too_low, who_asks};
pub use files::ProjectFiles;
pub use principal::OwnerOfDirectory;
pub(crate) use principal::{By, Peer, Principal};
pub use refusals::Refusals;
pub(crate) use sources::OwnSources;
pub use usage::{ProjectUsage, Usage};

/// Who a route is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Access {
    /// Whoever can reach the server, without a credential: health checks, and nothing else.
    Everybody,
    /// Whoever has at least this role in the project.
    AtLeast(Role),
}

/// A token that the server knows, and when it was last seen.
#[derive(Debug)]
pub struct Credential {
    token: TokenRecord,
    /// µs since the epoch; `i64::MIN`: not by this process. Written to the registry now and then, and
    /// never by a request.
    last_used_at_us: AtomicI64,
}

impl Credential {
    /// A token as the registry knows it.
    pub fn of(token: TokenRecord) -> Self {
        Self { token, last_used_at_us: AtomicI64::new(i64::MIN) }
    }

    /// Whether it is for this project, or for all.
    pub(crate) fn acts_in(&self, project: &str) -> bool {
        self.project.as_deref().is_none_or(|own| own == project)
    }

    /// Notes that it was seen.
    pub fn used_at(&self, now_us: i64) {
        self.last_used_at_us.fetch_max(now_us, Ordering::Relaxed);
    }

    /// When this process last saw it; `None`: not yet.
    pub fn last_used_at_us(&self) -> Option<i64> {
        Some(self.last_used_at_us.load(Ordering::Relaxed)).filter(|at_us| *at_us != i64::MIN)
    }
}

impl Deref for Credential {
    type Target = TokenRecord;

    fn deref(&self) -> &TokenRecord {
        &self.token
    }
}

/// Where credentials are looked up. Implemented by whoever keeps them in memory: it is asked in every request.
#[async_trait]
pub trait Credentials: Send + Sync {
    /// The credential of this id, also one that has expired or was ended. No database is asked.
    fn find(&self, id: &str) -> Option<Arc<Credential>>;

    /// Whether requests without a credential may do everything: no credential was ever made, and nobody but this machine can
    /// ask.
    fn is_open(&self) -> bool;

    /// Whether what is known is recent enough to let anybody in by it. It is not where the registry has not answered for long.
    fn is_current(&self) -> bool;

    /// Takes over what has just been changed.
    ///
    /// # Errors
    /// The registry cannot be read.
    async fn refresh(&self) -> Result<(), Problem>;
}
