//! The routes. [`ROUTES`] lists them all; the router and the OpenAPI document are made from it.

mod batch;
mod body;
mod features;
mod guard;
mod jobs;
mod openapi;
mod openapi_access;
mod projects;
mod quarantine;
mod query;
mod registry;
mod tokens;
mod trail;
mod transforms;
mod versions;

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use eadem_registry::{Actor, Mark, ObjectKind, Quota, RegistryError, Role};
use futures::future::try_join_all;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument as _;

use crate::access::{Access, By, OwnerOfDirectory, Principal, Refusal, who_asks};
use crate::metrics::text_of;
use crate::problem::{Problem, ProblemNote};
use crate::projects::Unopened;
use crate::readiness::Hindrance;
use crate::request_log::{REQUEST_ID, RequestId};
use crate::state::ApiState;

pub use guard::is_loopback_authority;
pub use openapi::openapi;

type Handler = fn(&ApiState) -> MethodRouter<Arc<ApiState>>;

/// A method of a route: its name, who it is for, what it does.
type Operation = (&'static str, Access, &'static str);

/// One route: its methods, its path, its handler.
struct Route {
    path: &'static str,
    methods: &'static [Operation],
    handler: Handler,
}

const EVERYBODY: Access = Access::Everybody;
const READER: Access = Access::AtLeast(Role::Reader);
const WRITER: Access = Access::AtLeast(Role::Writer);
const AUTHOR: Access = Access::AtLeast(Role::Author);
const ADMIN: Access = Access::AtLeast(Role::Admin);

/// Every route there is.
const ROUTES: &[Route] = &[
    Route {
        path: "/features/{entity_id}",
        methods: &[("get", READER, "The features of one entity, now or at a past instant")],
        handler: |_| get(features::by_path),
    },
    Route {
        path: "/features",
        methods: &[("get", READER, "The same, with the entity id in the query")],
        handler: |_| get(features::by_query),
    },
    Route {
        path: "/features/batch",
        methods: &[("post", READER, "The features of many entities, as JSON or as an Arrow stream")],
        handler: |_| post(features::batch),
    },
    Route {
        path: "/transforms",
        methods: &[("post", AUTHOR, "Upload a component"), ("get", READER, "All components")],
        handler: |_| post(transforms::upload).get(transforms::list),
    },
    Route {
        path: "/transforms/{name}",
        methods: &[("get", READER, "All components of this name")],
        handler: |_| get(transforms::by_name),
    },
    Route {
        path: "/transforms/{name}/{digest}",
        methods: &[("get", READER, "One component")],
        handler: |_| get(transforms::by_digest),
    },
    Route {
        path: "/registry/plan",
        methods: &[("post", AUTHOR, "What applying these definitions would do")],
        handler: |_| post(registry::plan),
    },
    Route {
        path: "/registry/apply",
        methods: &[("post", AUTHOR, "Apply definitions in one transaction")],
        handler: |_| post(registry::apply),
    },
    Route {
        path: "/registry/{kind}",
        methods: &[("get", READER, "All entities, sources, views or services")],
        handler: |_| get(registry::list),
    },
    Route {
        path: "/registry/{kind}/{name}",
        methods: &[(
            "get",
            READER,
            "One entity, source, transform, view version, feature or service version, and all that is known of it",
        )],
        handler: |_| get(versions::get),
    },
    Route {
        path: "/registry/{kind}/{name}/{action}",
        methods: &[("post", AUTHOR, "Deprecate or retire versions, or undo that")],
        handler: |_| post(versions::mark),
    },
    Route {
        path: "/lineage/{kind}/{name}",
        methods: &[("get", READER, "Where an object comes from and what depends on it")],
        handler: |_| get(registry::lineage),
    },
    Route {
        path: "/search",
        methods: &[("get", READER, "Definitions and features that have all the words")],
        handler: |_| get(registry::search),
    },
    Route { path: "/datasets", methods: &[("get", READER, "All training sets")], handler: |_| get(registry::datasets) },
    Route {
        path: "/datasets/{id}",
        methods: &[("get", READER, "One training set with its recipe")],
        handler: |_| get(registry::dataset),
    },
    Route { path: "/jobs", methods: &[("get", READER, "Jobs, newest first")], handler: |_| get(jobs::list) },
    // A job's id on GET and DELETE, a kind of job on POST.
    Route {
        path: "/jobs/{id}",
        methods: &[
            ("get", READER, "One job"),
            (
                "post",
                WRITER,
                "Start a job: backfill, materialize, dataset, compact, vacuum, replay, backup, restore or erase",
            ),
            ("delete", WRITER, "Call a job off"),
        ],
        handler: |_| get(jobs::get).post(jobs::start).delete(jobs::cancel),
    },
    Route {
        path: "/jobs/{id}/events",
        methods: &[("get", READER, "The job at every change, as server-sent events")],
        handler: |_| get(jobs::events),
    },
    Route {
        path: "/jobs/{id}/resume",
        methods: &[("post", WRITER, "Go on with a job that failed or was interrupted")],
        handler: |_| post(jobs::resume),
    },
    Route {
        path: "/erasures",
        methods: &[("post", ADMIN, "Erase entities everywhere, up to an instant, for good")],
        handler: |_| post(jobs::erase),
    },
    Route {
        path: "/quarantine",
        methods: &[("get", READER, "How many rows each view has refused, by reason")],
        handler: |_| get(quarantine::summary),
    },
    Route {
        path: "/quarantine/{view}",
        methods: &[("get", READER, "The refused rows of a view, newest jobs first")],
        handler: |_| get(quarantine::list),
    },
    Route {
        path: "/quarantine/{view}/{id}",
        methods: &[("get", READER, "One refused row, what has become of it, and whether it can be replayed")],
        handler: |_| get(quarantine::row),
    },
    Route {
        path: "/projects",
        methods: &[("get", ADMIN, "All projects, with their quotas"), ("post", ADMIN, "Make a project")],
        handler: |_| get(projects::list).post(projects::create),
    },
    Route {
        path: "/projects/{name}",
        methods: &[("get", ADMIN, "One project, with its quotas")],
        handler: |_| get(projects::get),
    },
    Route {
        path: "/projects/{name}/quotas",
        methods: &[("post", ADMIN, "Say how much the project may have")],
        handler: |_| post(projects::set_quotas),
    },
    Route {
        path: "/tokens",
        methods: &[("get", ADMIN, "All tokens, without their secrets"), ("post", ADMIN, "Make a token")],
        handler: |_| get(tokens::list).post(tokens::create),
    },
    Route {
        path: "/tokens/{id}",
        methods: &[("get", ADMIN, "One token"), ("delete", ADMIN, "End a token")],
        handler: |_| get(tokens::get).delete(tokens::revoke),
    },
    Route {
        path: "/trail",
        methods: &[("get", ADMIN, "Who did what, when and from where")],
        handler: |_| get(trail::list),
    },
    Route {
        path: "/trail/verification",
        methods: &[("get", ADMIN, "Whether every entry of the trail is as it was written")],
        handler: |_| get(trail::verify),
    },
    Route { path: "/online", methods: &[("get", READER, "What the online store holds")], handler: |_| get(online) },
    Route {
        path: "/metrics",
        methods: &[("get", READER, "Counters, in Prometheus' text format")],
        handler: |_| get(metrics),
    },
    Route { path: "/healthz", methods: &[("get", EVERYBODY, "The process lives")], handler: |_| get(healthz) },
    Route { path: "/readyz", methods: &[("get", EVERYBODY, "The stores answer")], handler: |_| get(readyz) },
    Route { path: "/openapi.json", methods: &[("get", READER, "This interface")], handler: |_| get(openapi::serve) },
];

/// The operations of each path.
static OPERATIONS: LazyLock<HashMap<&'static str, &'static [Operation]>> =
    LazyLock::new(|| ROUTES.iter().map(|route| (route.path, route.methods)).collect());

/// The router over this state. Until there are credentials it answers only requests from and for this machine.
pub fn router(state: Arc<ApiState>) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        router = router.route(route.path, (route.handler)(&state));
    }
    let admission = middleware::from_fn_with_state(Arc::clone(&state), admitted);
    router
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(CatchPanicLayer::custom(|_| {
            Problem::internal("the request met a fault of ours", "panic").into_response()
        }))
        .layer(admission)
        .with_state(state)
}

/// Names, admits, counts and times every request, whatever becomes of it. One step for all of that: each layer that waits
/// for the next one copies all that are below it, for every request.
async fn admitted(
    State(state): State<Arc<ApiState>>,
    matched: Option<MatchedPath>,
    mut request: Request,
    next: Next,
) -> Response {
    let began = Instant::now();
    let _in_flight = state.metrics.begin();
    let (method, version) = (known_method(request.method()), request.version());
    let id = RequestId::of(request.headers());
    let name = id.header();
    // A path that is no route could be anything; counters for each would be without end. In the log it could name an entity.
    let route = matched.as_ref().map_or("none", MatchedPath::as_str);
    let span = tracing::info_span!("request", id = id.as_str(), method, route);
    request.extensions_mut().insert(id);
    let access = access_of(route, method);
    let admitted = admit(&state, &request, access);
    let mut response = match admitted {
        Ok(Admitted { principal, mut place }) => {
            // What somebody wanted to change and might not is told in the trail.
            let is_change = matches!(method, "POST" | "DELETE") && access.is_some_and(|access| access > READER);
            let told = is_change.then(|| Told {
                actor: principal.actor(request.extensions()),
                verb: format!("{method} {route}"),
                object: request.uri().path().to_owned(),
                acts_here: true,
            });
            request.extensions_mut().insert(principal);
            let read = match takes_body(route, method) && access.is_some() {
                true => body::read_whole(&state, &mut request, &mut place).await,
                false => Ok(None),
            };
            let response = match read {
                // Its part of what all bodies may have is kept until the answer is there.
                Ok(_counted) => next.run(request).instrument(span).await,
                Err(problem) => problem.into_response(),
            };
            if let Some(told) = told.filter(|_| response.status().is_client_error()) {
                let note = response.extensions().get::<ProblemNote>().cloned();
                let note = note.unwrap_or_default();
                state.tell_refused(&told, &note.code, &note.detail).await;
            }
            response
        }
        Err(Refusal { problem, principal }) => {
            let lacks_right = matches!(problem.status, 401 | 403);
            // Paths may name entities, so the trail has the route.
            let told = lacks_right.then(|| Told {
                actor: principal.actor(request.extensions()),
                verb: format!("{method} {route}"),
                object: route.to_owned(),
                acts_here: principal.acts_in(&state.project),
            });
            drop(request);
            if let Some(told) = told {
                state.tell_refused(&told, &problem.code, &problem.detail).await;
            }
            (*problem).into_response()
        }
    };
    response.headers_mut().insert(REQUEST_ID, name);
    if response.status() == StatusCode::REQUEST_TIMEOUT && version <= Version::HTTP_11 {
        // What is still to come of the body is not read.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    state.metrics.answered(method, route, response.status(), began.elapsed());
    response
}

/// Whether the body is read before the route is asked. A component goes to the disk as it comes.
fn takes_body(route: &str, method: &str) -> bool {
    method == "POST" && route != "/transforms"
}

/// Who a method of a route is for; `None`: there is no such thing.
fn access_of(route: &str, method: &str) -> Option<Access> {
    let method = if method == "HEAD" { "GET" } else { method };
    let operations = OPERATIONS.get(route)?;
    let (_, access, _) = operations.iter().find(|(name, _, _)| name.eq_ignore_ascii_case(method))?;
    Some(*access)
}

/// What the trail says of a request that is refused.
pub(crate) struct Told {
    pub(crate) actor: Actor,
    pub(crate) verb: String,
    pub(crate) object: String,
    /// Whether the actor may ask for anything in the project.
    pub(crate) acts_here: bool,
}

/// Of methods there may be as many as clients make up.
fn known_method(method: &Method) -> &'static str {
    let known = ["GET", "POST", "DELETE", "HEAD", "OPTIONS"];
    known.into_iter().find(|known| *known == method.as_str()).unwrap_or("other")
}

/// A request that is let in.
struct Admitted {
    principal: Principal,
    /// Until it is answered.
    place: Option<OwnedSemaphorePermit>,
}

/// A place among the requests that are served at once, for those that may ask. Also what does not exist is only told to
/// somebody who may ask for something. What asks how the server is always passes.
fn admit(state: &ApiState, request: &Request, access: Option<Access>) -> Result<Admitted, Refusal> {
    let is_from_outside = request.extensions().get::<OwnerOfDirectory>().is_none();
    if is_from_outside && state.credentials.is_open() {
        guard::check_loopback(request).map_err(Refusal::of_nobody)?;
    }
    let access = access.unwrap_or(READER);
    let now_us = state.clock.now_us();
    let unopened = request.extensions().get::<Unopened>();
    let project = unopened.map_or(&state.project, |unopened| &unopened.project);
    let principal = who_asks(state.credentials.as_ref(), request, access, project, now_us)?;
    if matches!(request.uri().path(), "/healthz" | "/readyz") {
        return Ok(Admitted { principal, place: None });
    }
    if let Some(unopened) = unopened {
        return Err(Refusal { problem: Box::new(unopened.problem.clone()), principal });
    }
    if request.uri().path() == "/metrics" {
        return Ok(Admitted { principal, place: None });
    }
    // Whoever may lift a limit must get through to do it.
    if access < ADMIN {
        state.usage.take_request().map_err(Refusal::of_nobody)?;
    }
    let place = place_of(state).map_err(Refusal::of_nobody)?;
    check_path(request).map_err(Refusal::of_nobody)?;
    Ok(Admitted { principal, place: Some(place) })
}

/// 503 with Retry-After once too many requests are in flight, before memory grows.
fn place_of(state: &ApiState) -> Result<OwnedSemaphorePermit, Problem> {
    Arc::clone(&state.in_flight).try_acquire_owned().map_err(|_| {
        state.metrics.shed();
        Problem::overloaded("too many requests are being served; try again")
    })
}

/// 400 for a path that is not UTF-8, before a route's own extractor answers it in plain text. An entity id is left to its
/// route, which names the key.
fn check_path(request: &Request) -> Result<(), Problem> {
    let path = request.uri().path();
    if !path.starts_with("/features/") && percent_decode_str(path).decode_utf8().is_err() {
        let detail = format!("the path `{path}` is not UTF-8 after percent-decoding");
        return Err(Problem::bad_request("malformed_path", detail));
    }
    Ok(())
}

async fn unknown_route(request: Request) -> Problem {
    Problem::not_found("unknown_route", format!("nothing at {}; /openapi.json lists every route", request.uri().path()))
}

async fn wrong_method(request: Request) -> Problem {
    let detail =
        format!("{} does not take {}; /openapi.json lists every route", request.uri().path(), request.method());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", detail)
}

async fn online(State(state): State<Arc<ApiState>>) -> Result<Json<Value>, Problem> {
    state.status.online().await.map(Json)
}

/// Of all projects for whoever may ask in all and names none, else of the one.
async fn metrics(State(state): State<Arc<ApiState>>, by: By) -> Result<Response, Problem> {
    let failed = |error| Problem::internal("the metrics could not be written", error);
    let all = state.projects.upgrade().filter(|_| state.is_main() && by.principal.project().is_none());
    let states = all.map_or_else(|| vec![Arc::clone(&state)], |projects| projects.opened());
    let families = try_join_all(states.iter().map(|state| state.gather_metrics())).await.map_err(failed)?;
    let text = text_of(families.concat()).map_err(failed)?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}

async fn healthz() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// Whether the stores answer. What they say when they do not is for whoever is let in.
async fn readyz(State(state): State<Arc<ApiState>>, request: Request) -> Response {
    let hindrances = state.readiness.hindrances(state.status.as_ref()).await;
    if hindrances.is_empty() {
        let access = if state.credentials.is_open() { "open" } else { "tokens" };
        return Json(json!({ "status": "ready", "access": access })).into_response();
    }
    let now_us = state.clock.now_us();
    let is_let_in = who_asks(state.credentials.as_ref(), &request, READER, &state.project, now_us).is_ok();
    let line = |hindrance: &Hindrance| match is_let_in {
        true => format!("{}: {}", hindrance.part, hindrance.reason),
        false => format!("{}: not ready", hindrance.part),
    };
    let lines: Vec<String> = hindrances.iter().map(line).collect();
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", lines.join("; ")).with_errors(lines).into_response()
}

/// What a project may not have more of. What passes by itself has its `Retry-After`.
fn over_quota(quota: Quota, detail: String) -> Problem {
    /// After which a job may have ended.
    const JOB_WAIT: Duration = Duration::from_secs(10);
    match quota {
        Quota::Components => Problem::too_large("quota_components", detail),
        Quota::ComponentBytes => Problem::too_large("quota_component_bytes", detail),
        Quota::Jobs | Quota::RequestsPerS | Quota::TransformUsPerS => Problem::too_many("quota_jobs", detail, JOB_WAIT),
    }
}

/// 410 for what is retired.
///
/// # Errors
/// The mark says that it is.
pub fn check_not_retired(kind: ObjectKind, name: impl Display, mark: Option<&Mark>) -> Result<(), Problem> {
    match RegistryError::if_retired(kind, name, mark) {
        Some(retired) => Err(retired.into()),
        None => Ok(()),
    }
}

impl From<RegistryError> for Problem {
    fn from(error: RegistryError) -> Self {
        registry_problem(&error)
    }
}

/// A registry's error as a problem.
pub fn registry_problem(error: &RegistryError) -> Problem {
    match error {
        RegistryError::NotFound { kind, .. } => Problem::not_found(&registry::not_found_code(*kind), error.to_string()),
        RegistryError::Ambiguous { .. } => Problem::bad_request("ambiguous_feature", error.to_string()),
        RegistryError::MalformedVersion(_) => Problem::bad_request("malformed_version", error.to_string()),
        RegistryError::Invalid(_) => Problem::bad_request("malformed_request", error.to_string()),
        RegistryError::Definitions(errors) => {
            let count = errors.count();
            let noun = if count == 1 { "mistake" } else { "mistakes" };
            Problem::refused("invalid_definitions", format!("the definitions have {count} {noun}; nothing was changed"))
                .with_errors(errors.lines())
        }
        RegistryError::Stale { .. } => Problem::conflict("stale_plan", error.to_string()),
        RegistryError::Retired { .. } => Problem::new(StatusCode::GONE, "retired", error.to_string()),
        RegistryError::InUse { dependants, .. } => {
            Problem::conflict("in_use", error.to_string()).with_errors(dependants.iter().cloned())
        }
        RegistryError::Conflict(_) => Problem::conflict("conflict", error.to_string()),
        RegistryError::OverQuota { quota, .. } => over_quota(*quota, error.to_string()),
        other => {
            let mut cause = other.to_string();
            let mut source = std::error::Error::source(other);
            while let Some(inner) = source {
                cause = format!("{cause}: {inner}");
                source = inner.source();
            }
            Problem::internal("the registry failed", cause)
        }
    }
}
