//! The routes. [`ROUTES`] lists them all; the router and the OpenAPI document are made from it.

mod body;
mod features;
mod guard;
mod jobs;
mod openapi;
mod quarantine;
mod query;
mod registry;
mod transforms;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use eadem_registry::RegistryError;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument as _;

use crate::problem::Problem;
use crate::request_log::{REQUEST_ID, RequestId};
use crate::state::ApiState;

pub use openapi::openapi;

type Handler = fn(&ApiState) -> MethodRouter<Arc<ApiState>>;

/// One route: its methods with what they do, its path, its handler.
struct Route {
    path: &'static str,
    methods: &'static [(&'static str, &'static str)],
    handler: Handler,
}

/// Every route there is.
const ROUTES: &[Route] = &[
    Route {
        path: "/features/{entity_id}",
        methods: &[("get", "The features of one entity, now or at a past instant")],
        handler: |_| get(features::by_path),
    },
    Route {
        path: "/features",
        methods: &[("get", "The same, with the entity id in the query")],
        handler: |_| get(features::by_query),
    },
    Route {
        path: "/features/batch",
        methods: &[("post", "The features of many entities, as JSON or as an Arrow stream")],
        handler: |_| post(features::batch),
    },
    Route {
        path: "/transforms",
        methods: &[("post", "Upload a component"), ("get", "All components")],
        handler: |state| {
            let upload = post(transforms::upload).layer(DefaultBodyLimit::max(state.limits.component_bytes_max));
            upload.get(transforms::list)
        },
    },
    Route {
        path: "/transforms/{name}",
        methods: &[("get", "All components of this name")],
        handler: |_| get(transforms::by_name),
    },
    Route {
        path: "/transforms/{name}/{digest}",
        methods: &[("get", "One component")],
        handler: |_| get(transforms::by_digest),
    },
    Route {
        path: "/registry/plan",
        methods: &[("post", "What applying these definitions would do")],
        handler: |_| post(registry::plan),
    },
    Route {
        path: "/registry/apply",
        methods: &[("post", "Apply definitions in one transaction")],
        handler: |_| post(registry::apply),
    },
    Route {
        path: "/registry/{kind}",
        methods: &[("get", "All entities, sources, views or services")],
        handler: |_| get(registry::list),
    },
    Route {
        path: "/registry/{kind}/{name}",
        methods: &[("get", "One entity, source, view version or service version")],
        handler: |_| get(registry::get),
    },
    Route {
        path: "/lineage/{kind}/{name}",
        methods: &[("get", "Where an object comes from and what depends on it")],
        handler: |_| get(registry::lineage),
    },
    Route {
        path: "/search",
        methods: &[("get", "Definitions and features that have all the words")],
        handler: |_| get(registry::search),
    },
    Route { path: "/datasets", methods: &[("get", "All training sets")], handler: |_| get(registry::datasets) },
    Route {
        path: "/datasets/{id}",
        methods: &[("get", "One training set with its recipe")],
        handler: |_| get(registry::dataset),
    },
    Route { path: "/jobs", methods: &[("get", "Jobs, newest first")], handler: |_| get(jobs::list) },
    // A job's id on GET and DELETE, a kind of job on POST.
    Route {
        path: "/jobs/{id}",
        methods: &[
            ("get", "One job"),
            ("post", "Start a job: backfill, materialize, dataset, compact, vacuum or replay"),
            ("delete", "Call a job off"),
        ],
        handler: |_| get(jobs::get).post(jobs::start).delete(jobs::cancel),
    },
    Route {
        path: "/jobs/{id}/events",
        methods: &[("get", "The job at every change, as server-sent events")],
        handler: |_| get(jobs::events),
    },
    Route {
        path: "/jobs/{id}/resume",
        methods: &[("post", "Go on with a job that failed or was interrupted")],
        handler: |_| post(jobs::resume),
    },
    Route {
        path: "/quarantine",
        methods: &[("get", "How many rows each view has refused, by reason")],
        handler: |_| get(quarantine::summary),
    },
    Route {
        path: "/quarantine/{view}",
        methods: &[("get", "The refused rows of a view, newest jobs first")],
        handler: |_| get(quarantine::list),
    },
    Route {
        path: "/quarantine/{view}/{id}",
        methods: &[("get", "One refused row, what has become of it, and whether it can be replayed")],
        handler: |_| get(quarantine::row),
    },
    Route { path: "/online", methods: &[("get", "What the online store holds")], handler: |_| get(online) },
    Route { path: "/metrics", methods: &[("get", "Counters, in Prometheus' text format")], handler: |_| get(metrics) },
    Route { path: "/healthz", methods: &[("get", "The process lives")], handler: |_| get(healthz) },
    Route { path: "/readyz", methods: &[("get", "The stores answer")], handler: |_| get(readyz) },
    Route { path: "/openapi.json", methods: &[("get", "This interface")], handler: |_| get(openapi::serve) },
];

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
        .layer(DefaultBodyLimit::max(state.limits.body_bytes_max))
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
    route: Option<MatchedPath>,
    mut request: Request,
    next: Next,
) -> Response {
    let began = Instant::now();
    let _in_flight = state.metrics.begin();
    let method = known_method(request.method());
    let id = RequestId::of(request.headers());
    let name = id.header();
    // A path that is no route could be anything; counters for each would be without end. In the log it could name an entity.
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    let span = tracing::info_span!("request", id = id.as_str(), method, route);
    let mut response = match admit(&state, &request) {
        Ok(_place) => {
            request.extensions_mut().insert(id);
            next.run(request).instrument(span).await
        }
        Err(problem) => problem.into_response(),
    };
    response.headers_mut().insert(REQUEST_ID, name);
    state.metrics.answered(method, route, response.status(), began.elapsed());
    response
}

/// Of methods there may be as many as clients make up.
fn known_method(method: &Method) -> &'static str {
    let known = ["GET", "POST", "DELETE", "HEAD", "OPTIONS"];
    known.into_iter().find(|known| *known == method.as_str()).unwrap_or("other")
}

/// A place among the requests that are served at once, for those that may ask.
fn admit(state: &ApiState, request: &Request) -> Result<Option<OwnedSemaphorePermit>, Problem> {
    guard::check_loopback(request)?;
    let place = place_of(state, request)?;
    check_path(request)?;
    Ok(place)
}

/// 503 with Retry-After once too many requests are in flight, before memory grows. Health checks and metrics always pass.
fn place_of(state: &ApiState, request: &Request) -> Result<Option<OwnedSemaphorePermit>, Problem> {
    let is_about_the_server = matches!(request.uri().path(), "/healthz" | "/readyz" | "/metrics");
    if is_about_the_server {
        return Ok(None);
    }
    Arc::clone(&state.in_flight).try_acquire_owned().map(Some).map_err(|_| {
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

async fn metrics(State(state): State<Arc<ApiState>>) -> Result<Response, Problem> {
    // A store that does not answer is a reason to look at metrics, not to give none.
    let tables = state.status.tables().await.unwrap_or_default();
    let revision = *state.registry.changes().borrow();
    let text = state.metrics.text(revision, &tables, state.status.cache())?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}

async fn healthz() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

async fn readyz(State(state): State<Arc<ApiState>>) -> Response {
    let not_ready = state.status.not_ready().await;
    if not_ready.is_empty() {
        return Json(json!({ "status": "ready" })).into_response();
    }
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", not_ready.join("; "))
        .with_errors(not_ready)
        .into_response()
}

/// A registry's error as a problem.
pub(crate) fn registry_problem(error: &RegistryError) -> Problem {
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
        RegistryError::Conflict(_) => Problem::conflict("conflict", error.to_string()),
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
