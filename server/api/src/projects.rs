//! Several projects behind one door. Each has routes and a state of its own; a request goes to the one that it names, or
//! else to the one that its token is for.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};

use async_trait::async_trait;
use axum::Router;
use axum::extract::Request;
use axum::http::HeaderName;
use axum::response::Response;
use axum::routing::future::RouteFuture;
use eadem_registry::{DEFAULT_PROJECT, Role};
use futures::FutureExt as _;
use futures::future::{BoxFuture, Either};
use tokio::sync::Semaphore;
use tower::Service;

use crate::access::{Access, presented_id, who_asks};
use crate::problem::Problem;
use crate::routes::router;
use crate::state::ApiState;

/// The header that names a project.
pub const PROJECT: HeaderName = HeaderName::from_static("eadem-project");

/// The projects of a server, each with stores of its own.
#[async_trait]
pub trait Projects: Send + Sync {
    /// The state of a project, which is opened if it was not yet.
    ///
    /// # Errors
    /// No such project, or its stores cannot be opened.
    async fn open(&self, name: &str) -> Result<Arc<ApiState>, Problem>;

    /// The states of those that are open, by name.
    fn opened(&self) -> Vec<Arc<ApiState>>;
}

/// The routes of all projects.
#[derive(Clone)]
pub struct ByProject {
    main: Router,
    shared: Arc<Shared>,
}

struct Shared {
    main: Arc<ApiState>,
    projects: Arc<dyn Projects>,
    /// The routes of projects other than the first that were asked for.
    others: RwLock<HashMap<String, Router>>,
    /// Places for requests that wait for a project to open.
    opening: Semaphore,
}

/// As many requests wait for projects to open.
const OPENING_MAX: usize = 64;

/// Goes with a request for a project that could not be opened, or in whose name whoever asks may not ask. It is answered by the
/// routes of the first project, which counts it and tells of it.
#[derive(Clone)]
pub(crate) struct Unopened {
    pub(crate) project: String,
    pub(crate) problem: Problem,
}

impl ByProject {
    /// The routes of the first project, and of those that are opened as they are asked for.
    pub fn new(main: Arc<ApiState>, projects: Arc<dyn Projects>) -> Self {
        let opening = Semaphore::new(OPENING_MAX);
        let shared = Shared { main: Arc::clone(&main), projects, others: RwLock::default(), opening };
        // With its state a router is made ready once, and not for each request.
        Self { main: router(main).with_state(()), shared: Arc::new(shared) }
    }

    /// The same as a router.
    pub fn into_router(self) -> Router {
        Router::new().fallback_service(self)
    }

    /// The routes of a project that nobody has asked for since the start.
    async fn first_request(mut self, name: String, mut request: Request) -> Result<Response, Infallible> {
        let opened = match self.check_right(&name, &request) {
            Ok(()) => self.open(&name).await,
            Err(problem) => Err(problem),
        };
        match opened {
            Ok(mut router) => router.call(request).await,
            Err(problem) => {
                request.extensions_mut().insert(Unopened { project: name, problem });
                self.main.call(request).await
            }
        }
    }

    /// Nobody has a project opened, or learns whether there is one, who may not ask for anything in it.
    fn check_right(&self, name: &str, request: &Request) -> Result<(), Problem> {
        let main = &self.shared.main;
        let least = Access::AtLeast(Role::Reader);
        let asked = who_asks(main.credentials.as_ref(), request, least, name, main.clock.now_us());
        asked.map(|_| ()).map_err(|refusal| *refusal.problem)
    }

    async fn open(&self, name: &str) -> Result<Router, Problem> {
        // Stores that do not answer gather few requests, and take no place that others need.
        let _place = self.shared.opening.try_acquire().map_err(|_| {
            self.shared.main.metrics.shed();
            Problem::overloaded("too many requests wait for projects to open; try again")
        })?;
        let state = self.shared.projects.open(name).await?;
        let opened = router(state).with_state(());
        let mut others = self.shared.others.write().unwrap_or_else(PoisonError::into_inner);
        Ok(others.entry(name.to_owned()).or_insert(opened).clone())
    }
}

impl Shared {
    /// The project that a request is for; `None`: the first.
    fn project_of(&self, request: &Request) -> Option<String> {
        let name = match request.headers().get(PROJECT) {
            Some(name) => String::from_utf8_lossy(name.as_bytes()).into_owned(),
            None => {
                let id = presented_id(request.headers())?;
                self.main.credentials.find(id)?.project.clone()?
            }
        };
        (name != DEFAULT_PROJECT).then_some(name)
    }
}

impl Service<Request> for ByProject {
    type Response = Response;
    type Error = Infallible;
    type Future = Either<RouteFuture<Infallible>, BoxFuture<'static, Result<Response, Infallible>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let Some(name) = self.shared.project_of(&request) else { return Either::Left(self.main.call(request)) };
        let known = self.shared.others.read().unwrap_or_else(PoisonError::into_inner).get(&name).cloned();
        match known {
            Some(mut router) => Either::Left(router.call(request)),
            None => Either::Right(self.clone().first_request(name, request).boxed()),
        }
    }
}
