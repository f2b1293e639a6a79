//! `/features`: one entity by GET, many by POST.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use eadem_registry::model::ResolvedService;
use eadem_semantics::AsStored;
use eadem_values::{EntityKey, KeyType};
use serde_json::Value as Json;

use super::batch::{BatchRequest, check_features};
use super::body::body_of;
use super::query::RawQuery;
use crate::clock::as_us;
use crate::metrics::{FeatureRoute, MeteredTransforms, Stage};
use crate::problem::Problem;
use crate::request_log::RequestId;
use crate::serving::reply::{self, Include, RowWriter, Took};
use crate::serving::request::{self, Members};
use crate::serving::{
    self, EntityRows, ReadOptions, RowSource, RowSourceError, ServeError, ServeOptions, ServingPlan, StoredThen,
};
use crate::state::{ApiState, CountedPlan, Wanted};

const GET_PARAMETERS: &[&str] = &["features", "service", "entity", "timestamp", "as_stored", "include", "deadline_ms"];
const GET_PARAMETERS_WITH_ID: &[&str] =
    &["entity_id", "features", "service", "entity", "timestamp", "as_stored", "include", "deadline_ms"];
const REQUEST_PREFIX: &str = "request.";
const DEPRECATION: HeaderName = HeaderName::from_static("deprecation");

/// `GET /features/{entity_id}`
pub(super) async fn by_path(
    State(state): State<Arc<ApiState>>,
    id: Extension<RequestId>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    let began = Instant::now();
    // Not through the router's decoding: a composite id is split at its commas before it is decoded.
    let segment = uri.path().strip_prefix("/features/").unwrap_or_default();
    let query = RawQuery::parse(uri.query())?;
    query.check(GET_PARAMETERS, Some(REQUEST_PREFIX))?;
    let asking = Asking::read(&state, &id, FeatureRoute::ByPath, &headers, &query, began)?;
    answer_one(asking, segment, &query).await
}

/// `GET /features?entity_id=`
pub(super) async fn by_query(
    State(state): State<Arc<ApiState>>,
    id: Extension<RequestId>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    let began = Instant::now();
    let query = RawQuery::parse(uri.query())?;
    query.check(GET_PARAMETERS_WITH_ID, Some(REQUEST_PREFIX))?;
    let entity_id = query.raw("entity_id");
    let segment = entity_id.ok_or_else(|| Problem::bad_request("missing_key", "say which entity: entity_id=…"))?;
    let asking = Asking::read(&state, &id, FeatureRoute::ByQuery, &headers, &query, began)?;
    answer_one(asking, segment, &query).await
}

async fn answer_one(asking: Asking<'_>, segment: &str, query: &RawQuery) -> Result<Response, Problem> {
    let state = asking.state;
    let wanted = wanted_by_query(query)?;
    if let Wanted::Features { names, .. } = &wanted {
        check_features(names.len(), &state.limits)?;
    }
    let counted = state.plans.plan(state, &wanted).await?;
    check_values(&counted.plan, 1, state)?;
    let service = &counted.plan.service;
    let entity_id = one_entity(service, segment, state)?;
    let mut fields = Members::default();
    for (name, text) in query.with_prefix(REQUEST_PREFIX)? {
        let value = match service.request_fields.iter().find(|field| field.name == name) {
            Some(field) => request::request_field_from_text(field, &text)?,
            None => Json::from(text),
        };
        fields.put(name.into(), value);
    }
    let timestamp = query.get("timestamp")?;
    let rows = EntityRows {
        at_us: request::row_times(timestamp.as_deref(), None, 1, asking.now_us)?,
        keys: keys_in_service_order(service, &entity_id),
        request: request::request_columns(service, &[fields], 1)?,
    };
    asking
        .answer(&counted, &rows, query, |text, writer| {
            text.extend_from_slice(b"\"entity_id\":");
            reply::write_value(text, &entity_id_json(&entity_id))?;
            text.push(b',');
            writer.write(text, 0)
        })
        .await
}

/// A request for features: who asks, for when, and how.
struct Asking<'a> {
    state: &'a ApiState,
    id: &'a RequestId,
    route: FeatureRoute,
    began: Instant,
    /// The time of the request, in microseconds.
    now_us: i64,
    include: Include,
    wants_arrow: bool,
    options: ServeOptions,
}

impl<'a> Asking<'a> {
    fn read(
        state: &'a ApiState,
        id: &'a RequestId,
        route: FeatureRoute,
        headers: &HeaderMap,
        query: &RawQuery,
        began: Instant,
    ) -> Result<Self, Problem> {
        let now_us = state.clock.now_us();
        let include = included(query)?;
        let wants_arrow = wants_arrow(headers);
        if wants_arrow && include != Include::Values {
            let detail = "metadata come with JSON only; ask without `include`";
            return Err(Problem::bad_request("malformed_request", detail));
        }
        let fresh = headers.get_all(header::CACHE_CONTROL).iter().any(names_no_cache);
        // Beyond what a clock can show there is none.
        let deadline = deadline_after(query, state)?.and_then(|after| began.checked_add(after));
        let options = ServeOptions { read: ReadOptions { now_us, fresh }, deadline };
        Ok(Self { state, id, route, began, now_us, include, wants_arrow, options })
    }

    /// Serves the rows and writes the reply. `write` puts the rows into an object of JSON that has been begun.
    async fn answer(
        self,
        counted: &CountedPlan,
        rows: &EntityRows,
        query: &RawQuery,
        write: impl FnOnce(&mut Vec<u8>, &mut RowWriter<'_>) -> Result<(), Problem>,
    ) -> Result<Response, Problem> {
        let state = self.state;
        let parsed_in = self.began.elapsed();
        state.metrics.stage(self.route, Stage::Parse, parsed_in);
        let as_stored = as_stored(query)?;
        let counted_then = match as_stored {
            Some(AsStored::Time(at_us)) => counted
                .plan
                .as_placed_at(at_us)
                .map_err(|error| Problem::internal("the service could not be compiled as it was", error))?
                .map(|plan| CountedPlan { counters: state.metrics.of_plan(&plan), plan }),
            _ => None,
        };
        let counted = counted_then.as_ref().unwrap_or(counted);
        let plan = &counted.plan;
        let stored = stored_then(state, plan, as_stored).await?;
        let serving_began = Instant::now();
        if plan.computes() {
            state.usage.check_transforms()?;
        }
        let answer = self.serve(counted, rows, stored.as_ref()).await?;
        state.usage.served(rows.at_us.len());
        let encoding_began = Instant::now();
        let took = Took { parse_us: as_us(parsed_in), serve_us: as_us(encoding_began - serving_began) };
        let (content_type, body) = if self.wants_arrow {
            (reply::ARROW_STREAM, reply::arrow_stream(plan, rows, &answer)?)
        } else {
            let mut text = b"{".to_vec();
            write(&mut text, &mut RowWriter::new(plan, &answer, self.include)?)?;
            if let Some(stored) = &stored {
                text.extend_from_slice(b",\"as_stored\":");
                reply::write_value(&mut text, &reply::commits(stored))?;
            }
            if self.include == Include::Explanation {
                text.extend_from_slice(b",\"timing\":");
                reply::write_value(&mut text, &reply::timing(plan, &answer, took))?;
            }
            text.push(b'}');
            ("application/json", text)
        };
        state.metrics.stage(self.route, Stage::Encode, encoding_began.elapsed());
        state.request_log.answered(self.id, plan, rows, &answer, self.began);
        let mut response = ([(header::CONTENT_TYPE, content_type)], body).into_response();
        if let Some(deprecation) = &plan.deprecation {
            let headers = response.headers_mut();
            headers.insert(DEPRECATION, deprecation.since.clone());
            headers.insert(header::WARNING, deprecation.warning.clone());
        }
        Ok(response)
    }

    async fn serve(
        &self,
        CountedPlan { plan, counters }: &CountedPlan,
        rows: &EntityRows,
        stored: Option<&StoredThen>,
    ) -> Result<serving::Answer, Problem> {
        let state = self.state;
        let source: &dyn RowSource = match stored {
            Some(stored) => stored,
            None => state.rows.as_ref(),
        };
        let (metrics, usage) = (state.metrics.as_ref(), &state.usage);
        let transforms = MeteredTransforms { transforms: state.transforms.as_ref(), metrics, usage };
        let answer =
            serving::serve(plan, rows, source, &transforms, self.options).await.map_err(|error| match error {
                ServeError::Rows(error) => rows_problem(&error),
                error if error.is_overload() => {
                    metrics.shed();
                    Problem::overloaded(format!("transforms: {error}; try again"))
                }
                error => Problem::internal("the request could not be answered", error),
            })?;
        metrics.served(self.route, plan, counters, &answer);
        Ok(answer)
    }
}

/// Whether a `Cache-Control` header asks for what the stores have, and not for what was kept of it.
fn names_no_cache(value: &HeaderValue) -> bool {
    let directives = value.to_str().unwrap_or_default().split(',');
    directives.map(str::trim).any(|directive| directive.eq_ignore_ascii_case("no-cache"))
}

/// For how long the request may be waited for: as long as the server allows, or less where it says so.
fn deadline_after(query: &RawQuery, state: &ApiState) -> Result<Option<Duration>, Problem> {
    let allowed = Some(state.limits.request_ms_max).filter(|ms| *ms > 0).map(Duration::from_millis);
    let Some(text) = query.get("deadline_ms")? else { return Ok(allowed) };
    let asked = text.parse().ok().filter(|ms| *ms > 0).map(Duration::from_millis).ok_or_else(|| {
        let detail = format!("deadline_ms={text}: it is a number of milliseconds, 1 at least");
        Problem::bad_request("malformed_request", detail)
    })?;
    Ok(Some(allowed.map_or(asked, |allowed| asked.min(allowed))))
}

fn wanted_by_query(query: &RawQuery) -> Result<Wanted, Problem> {
    let entity = query.get("entity")?;
    match (query.get("features")?, query.get("service")?) {
        (Some(_), Some(_)) => {
            Err(Problem::bad_request("malformed_request", "name either `features` or a `service`, not both"))
        }
        (None, Some(_)) if entity.is_some() => Err(Problem::bad_request(
            "malformed_request",
            "`entity` goes with `features` or alone; a service says which it needs",
        )),
        (None, Some(service)) => Ok(Wanted::Service(service)),
        (Some(features), None) => {
            let names: Vec<String> = features.split(',').map(|name| name.trim().to_owned()).collect();
            if names.iter().any(String::is_empty) {
                return Err(Problem::bad_request(
                    "malformed_request",
                    format!("`features={features}` has an empty name"),
                ));
            }
            Ok(Wanted::Features { names, entity })
        }
        (None, None) => Ok(Wanted::Entity(entity)),
    }
}

/// The key of a GET request: it serves one entity without roles.
fn one_entity(service: &ResolvedService, segment: &str, state: &ApiState) -> Result<EntityKey, Problem> {
    let mut entities: Vec<&str> = service.keys.iter().map(|key| key.entity.as_str()).collect();
    entities.sort_unstable();
    entities.dedup();
    let has_roles = service.keys.iter().any(|key| key.role.is_some());
    let mut shapes: Vec<_> =
        service.views.values().filter_map(|view| view.stored.as_ref()).map(|stored| &stored.entity.keys).collect();
    shapes.dedup();
    if entities.len() != 1 || has_roles || shapes.len() > 1 {
        let names: Vec<&str> = service.keys.iter().map(|key| key.name.as_str()).collect();
        let detail = format!(
            "what was asked for needs the keys ({}); GET serves one entity without roles: use POST /features/batch",
            names.join(", ")
        );
        return Err(Problem::bad_request("needs_batch", detail));
    }
    request::path_key(&declared_keys(service), segment, &state.limits)
}

/// The keys of the one entity in the order in which it declares them.
fn declared_keys(service: &ResolvedService) -> Vec<(String, KeyType)> {
    let stored = service.views.values().find_map(|view| view.stored.as_ref());
    match stored {
        Some(stored) => stored.entity.keys.iter().map(|key| (key.name.clone(), key.key_type)).collect(),
        None => Vec::new(),
    }
}

fn keys_in_service_order(service: &ResolvedService, key: &EntityKey) -> Vec<Vec<eadem_values::KeyValue>> {
    let declared = declared_keys(service);
    let position = |name: &str| declared.iter().position(|(declared, _)| declared == name);
    service.keys.iter().filter_map(|needed| Some(vec![key.0[position(&needed.join_key)?].clone()])).collect()
}

fn entity_id_json(key: &EntityKey) -> Json {
    match key.0.as_slice() {
        [only] => only.to_json(),
        _ => Json::from(key.to_path()),
    }
}

/// `POST /features/batch`
pub(super) async fn batch(
    State(state): State<Arc<ApiState>>,
    id: Extension<RequestId>,
    headers: HeaderMap,
    uri: Uri,
    request: Request,
) -> Result<Response, Problem> {
    let query = RawQuery::parse(uri.query())?;
    query.check(&["include", "as_stored", "deadline_ms"], None)?;
    let body = body_of(request).await?;
    // Without the time that the client takes to send it.
    let asking = Asking::read(&state, &id, FeatureRoute::Batch, &headers, &query, Instant::now())?;
    let asked = BatchRequest::parse(&body, &state.limits)?;
    let wanted = match (asked.service, asked.features) {
        (Some(service), None) => Wanted::Service(service.into_owned()),
        (None, Some(names)) => {
            Wanted::Features { names: names.into_iter().map(Cow::into_owned).collect(), entity: None }
        }
        _ => return Err(Problem::bad_request("malformed_request", "name either a `service` or a list of `features`")),
    };
    let counted = state.plans.plan(&state, &wanted).await?;
    let plan = &counted.plan;
    check_values(plan, asked.entities.len(), &state)?;
    let times = request::row_times(
        asked.timestamp.as_deref(),
        asked.timestamps.as_deref(),
        asked.entities.len(),
        asking.now_us,
    )?;
    let rows = request::entity_rows(&plan.service, &asked.entities, &asked.request, times, &state.limits)?;
    asking
        .answer(&counted, &rows, &query, |text, writer| {
            text.extend_from_slice(b"\"results\":[");
            for row in 0..rows.at_us.len() {
                text.extend_from_slice(if row == 0 { b"{\"entity\":" } else { b",{\"entity\":" });
                reply::write_entity(text, &plan.service, &rows, row)?;
                text.push(b',');
                writer.write(text, row)?;
                text.push(b'}');
            }
            text.push(b']');
            Ok(())
        })
        .await
}

/// The state of the offline store that the request names, if it does.
fn as_stored(query: &RawQuery) -> Result<Option<AsStored>, Problem> {
    let Some(text) = query.get("as_stored")? else { return Ok(None) };
    let as_stored = text.parse();
    as_stored.map(Some).map_err(|error| Problem::bad_request("malformed_as_stored", format!("as_stored: {error}")))
}

/// That state, found in the tables.
async fn stored_then(
    state: &ApiState,
    plan: &ServingPlan,
    as_stored: Option<AsStored>,
) -> Result<Option<StoredThen>, Problem> {
    let Some(as_stored) = as_stored else { return Ok(None) };
    let opened = StoredThen::open(Arc::clone(&state.history), plan, as_stored, state.limits.history_reads_max).await;
    opened.map(Some).map_err(|error| rows_problem(&error))
}

fn rows_problem(error: &RowSourceError) -> Problem {
    let detail = error.to_string();
    match error {
        RowSourceError::NotStored(_) => Problem::not_found("not_stored", detail),
        RowSourceError::Vacuumed(_) => Problem::new(StatusCode::GONE, "vacuumed", detail),
        RowSourceError::TooManyReads { .. } => Problem::too_large("too_many_history_reads", detail),
        RowSourceError::Unavailable { .. } | RowSourceError::Late => {
            Problem::internal("rows could not be read", detail)
        }
    }
}

fn check_values(plan: &ServingPlan, entities: usize, state: &ApiState) -> Result<(), Problem> {
    let limits = &state.limits;
    let features = plan.service.entries.len();
    check_features(features, limits)?;
    if entities.saturating_mul(features) > limits.values_max {
        let detail = format!(
            "{entities} entities × {features} features in one request; at most {} values are taken: send several requests",
            limits.values_max
        );
        return Err(Problem::too_large("too_many_values", detail));
    }
    Ok(())
}

fn included(query: &RawQuery) -> Result<Include, Problem> {
    match query.get("include")?.as_deref() {
        None => Ok(Include::Values),
        Some("metadata") => Ok(Include::Metadata),
        Some("explain") => Ok(Include::Explanation),
        Some(other) => Err(Problem::bad_request(
            "unknown_parameter",
            format!("include={other}: only `metadata` or `explain` can be included"),
        )),
    }
}

fn wants_arrow(headers: &HeaderMap) -> bool {
    reply::accepts_arrow(headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()))
}
