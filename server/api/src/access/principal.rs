//! Who asks.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{Extensions, StatusCode};
use eadem_registry::Actor;

use super::Credential;
use crate::problem::Problem;
use crate::request_log::RequestId;

/// Goes with the requests that a verb makes to the routes of its own process: whoever can open the project's directory can
/// change everything in it anyway. Nothing that comes over a network can carry it.
#[derive(Debug, Clone, Copy)]
pub struct OwnerOfDirectory;

/// The address at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Who a request comes from.
#[derive(Debug, Clone)]
pub(crate) enum Principal {
    /// Somebody who asks for what is for everybody.
    Nobody,
    /// Anybody on this machine, as long as there is no credential.
    Open,
    /// Whoever owns the project's directory.
    Owner,
    /// Whoever has this token.
    Token(Arc<Credential>),
}

impl Principal {
    /// The only project that it may act in; `None`: all.
    pub(crate) fn project(&self) -> Option<&str> {
        match self {
            Self::Token(credential) => credential.project.as_deref(),
            Self::Nobody | Self::Open | Self::Owner => None,
        }
    }

    /// Whether it may act in this project.
    pub(crate) fn acts_in(&self, project: &str) -> bool {
        match self {
            Self::Nobody => false,
            Self::Open | Self::Owner => true,
            Self::Token(credential) => credential.acts_in(project),
        }
    }

    /// 403 for whoever may act in one project only, who cannot do `what`.
    pub(crate) fn require_all_projects(&self, what: &str) -> Result<(), Problem> {
        let Some(own) = self.project() else { return Ok(()) };
        let detail = format!("an admin of the project `{own}` cannot {what}; an admin of all projects can");
        Err(Problem::new(StatusCode::FORBIDDEN, "other_project", detail))
    }

    /// As the trail names it.
    pub(crate) fn actor(&self, extensions: &Extensions) -> Actor {
        let name = match self {
            Self::Nobody => "nobody",
            Self::Open => "open",
            Self::Owner => "owner",
            Self::Token(credential) => &credential.name,
        };
        let token_id = match self {
            Self::Token(credential) => Some(credential.id.clone()),
            Self::Nobody | Self::Open | Self::Owner => None,
        };
        Actor {
            token_id,
            name: name.to_owned(),
            project: self.project().map(str::to_owned),
            address: extensions.get::<ConnectInfo<Peer>>().map(|ConnectInfo(Peer(address))| address.ip().to_string()),
            request_id: extensions.get::<RequestId>().map(|id| id.as_str().to_owned()),
        }
    }
}

/// Who asks, for handlers that change something or look at more than one project.
#[derive(Debug, Clone)]
pub(crate) struct By {
    pub(crate) principal: Principal,
    pub(crate) actor: Actor,
}

impl<S: Sync> FromRequestParts<S> for By {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let admitted = parts.extensions.get::<Principal>().cloned();
        let principal = admitted.ok_or_else(|| Problem::internal("the request was not admitted", "no principal"))?;
        Ok(Self { actor: principal.actor(&parts.extensions), principal })
    }
}
