//! `/registry`, `/lineage` and `/search`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Uri, header};
use axum::response::{IntoResponse, Response};
use eadem_registry::definitions::{DefinitionFile, Definitions};
use eadem_registry::{
    Applied, DatasetRecord, LINEAGE_NODES_MAX, LineageDirection, ObjectKind, Plan, RegistryError, SEARCH_LIMIT_MAX,
    Search, SourceInspector,
};
use eadem_values::Digest;
use futures::StreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::JsonBody;
use super::query::RawQuery;
use crate::access::{By, OwnSources, Principal};
use crate::effect::{EFFECT_ROWS_MAX, EffectOptions, EffectProgress, ViewEffect};
use crate::problem::Problem;
use crate::state::ApiState;

/// Characters of the reason for which an effect is accepted.
const REASON_CHARS_MAX: usize = 500;

/// The body of `/registry/plan` and `/registry/apply`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DefinitionsBody {
    /// Every file of definitions; together they are the whole.
    files: Vec<DefinitionFile>,
    /// Transform as the definitions name it → digest in the registry.
    #[serde(default)]
    transforms: BTreeMap<String, Digest>,
    /// Apply only if the definitions are still at this revision.
    revision: Option<u64>,
    /// Run history through the old and the new version of each view.
    effect: Option<EffectBody>,
    /// Apply although the effect is beyond what the policy tolerates, for this reason.
    accept: Option<String>,
}

/// How much history is run through both versions.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EffectBody {
    /// At most about this many rows of each view.
    rows: Option<u64>,
}

impl DefinitionsBody {
    /// How many rows of each view are compared; `None`: none, and nobody asked.
    fn effect_rows(&self, state: &ApiState, is_apply: bool) -> Result<Option<u64>, Problem> {
        let of_policy = (is_apply && state.policy.is_set()).then_some(state.policy.effect_rows);
        let asked = self.effect.as_ref().map(|effect| effect.rows.unwrap_or(state.policy.effect_rows));
        if let Some(rows) = asked
            && !(1..=EFFECT_ROWS_MAX).contains(&rows)
        {
            let detail = format!("effect.rows = {rows}: from 1 to {EFFECT_ROWS_MAX} rows of each view can be compared");
            return Err(Problem::bad_request("malformed_request", detail));
        }
        // Who asks for more gets more; nobody gets less than the policy looks at.
        Ok(asked.max(of_policy))
    }
}

pub(super) async fn plan(
    State(state): State<Arc<ApiState>>,
    by: By,
    headers: HeaderMap,
    JsonBody(body): JsonBody<DefinitionsBody>,
) -> Result<Response, Problem> {
    if body.accept.is_some() {
        let detail = "`accept` is a reason to apply; a plan changes nothing that could be accepted";
        return Err(Problem::bad_request("malformed_request", detail));
    }
    if wants_events(&headers) {
        return Ok(plan_events(state, body, by.principal));
    }
    Ok(Json(planned(&state, &body, &by.principal, None).await?).into_response())
}

/// The plan as JSON, with its effect if that was asked for.
async fn planned(
    state: &ApiState,
    body: &DefinitionsBody,
    principal: &Principal,
    progress: Option<EffectProgress>,
) -> Result<Value, Problem> {
    let effect_rows = body.effect_rows(state, false)?;
    let plan = make_plan(state, body, principal).await?;
    let effects = effects_of(state, &plan, effect_rows, progress).await;
    let mut json = plan_json(&plan)?;
    let mut text = plan.report().to_string();
    if let Some(effects) = &effects {
        let refusals = state.policy.refusals(plan.version_pairs(), effects);
        add_effects(&mut json, &mut text, effects, &refusals);
        for refusal in &refusals {
            text.push_str("\n! apply would refuse it: ");
            text.push_str(refusal);
        }
    }
    json["text"] = Value::from(text);
    Ok(json)
}

/// Whether the client listens to events, and so wants to know how far a comparison is.
fn wants_events(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|part| part.trim().starts_with("text/event-stream"))
}

/// The plan as the last of several events: `{"progress":{"view":…,"rows_done":…,"rows":…}}`, then `{"plan":…}` or
/// `{"problem":…}`. The work ends when nobody listens any more.
fn plan_events(state: Arc<ApiState>, body: DefinitionsBody, principal: Principal) -> Response {
    let (told, heard) = tokio::sync::mpsc::unbounded_channel::<Value>();
    let teller = told.clone();
    let last_percent = std::sync::atomic::AtomicU64::new(u64::MAX);
    let progress: EffectProgress = Arc::new(move |view: &str, done: u64, total: u64| {
        // Once for each percent: nobody reads more.
        let percent = done.saturating_mul(100) / total.max(1);
        if last_percent.swap(percent, std::sync::atomic::Ordering::Relaxed) != percent {
            let event = json!({ "progress": { "view": view, "rows_done": done, "rows": total } });
            // A listener that is gone ends the work by itself.
            let _ = teller.send(event);
        }
    });
    let work = async move {
        let outcome = planned(&state, &body, &principal, Some(progress)).await;
        let _ = told.send(match outcome {
            Ok(plan) => json!({ "plan": plan }),
            Err(problem) => json!({ "problem": problem }),
        });
    };
    let heard = tokio_stream::wrappers::UnboundedReceiverStream::new(heard);
    // The work runs inside the stream, so that it ends with it.
    let done = futures::stream::once(work).filter_map(|()| std::future::ready(None));
    let events = futures::stream::select(heard, done).map(|event: Value| {
        Ok::<_, std::convert::Infallible>(axum::response::sse::Event::default().data(event.to_string()))
    });
    axum::response::Sse::new(events).into_response()
}

/// What a sample of history says of the plan's new versions; `None` if that was not asked for.
async fn effects_of(
    state: &ApiState,
    plan: &Plan,
    rows_max: Option<u64>,
    progress: Option<EffectProgress>,
) -> Option<Vec<ViewEffect>> {
    let rows_max = rows_max?;
    if plan.version_pairs().is_empty() {
        return Some(Vec::new());
    }
    let duration_max = Duration::from_millis(state.limits.effect_ms_max);
    let options = EffectOptions { rows_max, duration_max, progress };
    Some(state.effects.compare(plan.version_pairs(), &options).await)
}

fn add_effects(json: &mut Value, text: &mut String, effects: &[ViewEffect], refusals: &[String]) {
    for effect in effects {
        text.push('\n');
        text.push_str(&effect.to_text());
    }
    json["effects"] = serde_json::to_value(effects).unwrap_or_default();
    json["beyond_tolerance"] = json!(refusals);
}

pub(super) async fn apply(
    State(state): State<Arc<ApiState>>,
    by: By,
    JsonBody(body): JsonBody<DefinitionsBody>,
) -> Result<Json<Value>, Problem> {
    let reason = body.accept.as_deref().map(str::trim);
    if reason.is_some_and(|reason| reason.is_empty() || reason.chars().count() > REASON_CHARS_MAX) {
        let detail = format!("accept: a reason for people, of 1 to {REASON_CHARS_MAX} characters");
        return Err(Problem::bad_request("malformed_request", detail));
    }
    let AppliedPlan { plan, applied, effects, refusals } = apply_plan(&state, &body, &by, reason).await?;
    let revision = applied.definitions_revision;
    let mut json = plan_json(&plan)?;
    json["definitions_revision"] = Value::from(revision);
    let mut text = plan.report().summary();
    if let Some(effects) = &effects {
        add_effects(&mut json, &mut text, effects, &refusals);
    }
    if let (Some(reason), false) = (reason, refusals.is_empty()) {
        json["accepted"] = Value::from(reason);
        for refusal in &refusals {
            text.push_str(&format!("\naccepted ({reason}): {refusal}"));
        }
    }
    if reason.is_some() && refusals.is_empty() {
        text.push_str(
            "\nnothing had to be accepted: the effect is within what the policy tolerates, and the reason is not kept",
        );
    }
    json["text"] = Value::from(format!("{text}\napplied; the registry is at revision {revision}"));
    Ok(Json(json))
}

/// A plan that was applied.
struct AppliedPlan {
    plan: Plan,
    applied: Applied,
    effects: Option<Vec<ViewEffect>>,
    /// What was beyond the policy, and accepted.
    refusals: Vec<String>,
}

/// What a plan was found to change.
struct KnownEffects {
    /// The versions before and after.
    of_pairs: Vec<(Digest, Digest)>,
    effects: Option<Vec<ViewEffect>>,
}

/// Plans and applies. Who has named a revision has seen a plan, and gets that one or none; for others the plan is made
/// again where somebody was faster.
async fn apply_plan(
    state: &ApiState,
    body: &DefinitionsBody,
    by: &By,
    reason: Option<&str>,
) -> Result<AppliedPlan, Problem> {
    const ATTEMPTS_MAX: u32 = 100;
    let registry = state.registry_of(&by.actor);
    let effect_rows = body.effect_rows(state, true)?;
    let mut attempt = 1;
    // What was found of the same versions is not looked for again.
    let mut known: Option<KnownEffects> = None;
    loop {
        let mut plan = make_plan(state, body, &by.principal).await?;
        let pairs: Vec<(Digest, Digest)> =
            plan.version_pairs().iter().map(|pair| (pair.before.digest, pair.after.digest)).collect();
        let effects = match known.take() {
            Some(known) if known.of_pairs == pairs => known.effects,
            _ => effects_of(state, &plan, effect_rows, None).await,
        };
        let refusals = check_policy(state, &mut plan, effects.as_deref(), reason)?;
        match registry.apply(&plan, state.clock.now_us()).await {
            Ok(applied) => return Ok(AppliedPlan { plan, applied, effects, refusals }),
            Err(RegistryError::Stale { .. }) if body.revision.is_none() && attempt < ATTEMPTS_MAX => attempt += 1,
            Err(error) => return Err(error.into()),
        }
        known = Some(KnownEffects { of_pairs: pairs, effects });
    }
}

/// Refuses a plan whose effect is beyond what the policy tolerates, unless there is a reason to accept it. Says what was
/// accepted.
fn check_policy(
    state: &ApiState,
    plan: &mut Plan,
    effects: Option<&[ViewEffect]>,
    reason: Option<&str>,
) -> Result<Vec<String>, Problem> {
    let refusals = state.policy.refusals(plan.version_pairs(), effects.unwrap_or_default());
    match reason {
        _ if refusals.is_empty() => {}
        Some(reason) => plan.accept_effect(reason, &refusals.join("; ")),
        None => {
            let count = refusals.len();
            let detail = format!(
                "the effect on {count} {} is beyond what the policy tolerates; nothing was changed. See `eadem plan \
                 --effect`; `eadem apply --accept \"<reason>\"` applies it nevertheless, and the reason is kept",
                if count == 1 { "view" } else { "views" }
            );
            return Err(Problem::refused("effect_beyond_tolerance", detail).with_errors(refusals));
        }
    }
    Ok(refusals)
}

async fn make_plan(state: &ApiState, body: &DefinitionsBody, principal: &Principal) -> Result<Plan, Problem> {
    let definitions = Definitions::parse(&body.files, state.configuration_tables).map_err(RegistryError::from)?;
    let mut transforms = BTreeMap::new();
    for (reference, _) in definitions.transform_references() {
        if let Some(digest) = body.transforms.get(&reference.to_string()) {
            transforms.insert(reference.clone(), *digest);
        }
    }
    let (inspector, registry) = (state.inspector.as_ref(), &state.registry);
    let (main_registry, files, project) = (&state.main_registry, &state.files, &state.project);
    let own = OwnSources { inspector, registry, main_registry, files, project };
    let inspector: &dyn SourceInspector = if principal.project().is_some() { &own } else { inspector };
    let plan = registry.plan(&definitions, &transforms, inspector).await?;
    if let Some(expected) = body.revision
        && expected != plan.definitions_revision()
    {
        let stale = state.registry.stale(expected, plan.definitions_revision()).await;
        return Err(stale.unwrap_or_else(|error| error).into());
    }
    Ok(plan)
}

/// What there is to say of a plan, but its text.
fn plan_json(plan: &Plan) -> Result<Value, Problem> {
    serde_json::to_value(plan.report()).map_err(|error| Problem::internal("the plan could not be shown", error))
}

pub(super) async fn list(State(state): State<Arc<ApiState>>, Path(kind): Path<String>) -> Result<Json<Value>, Problem> {
    let registry = &state.registry;
    let listed = match kind.as_str() {
        "entities" => json!({ "entities": registry.entities().await? }),
        "sources" => json!({ "sources": registry.sources().await? }),
        "views" => json!({ "views": registry.views().await? }),
        "services" => json!({ "services": registry.services().await? }),
        _ => return Err(unknown_kind(&kind)),
    };
    Ok(Json(listed))
}

fn unknown_kind(kind: &str) -> Problem {
    Problem::not_found("unknown_kind", format!("no kind `{kind}`; kinds are entities, sources, views, services"))
}

pub(super) async fn lineage(
    State(state): State<Arc<ApiState>>,
    Path((kind, name)): Path<(String, String)>,
    uri: Uri,
) -> Result<Response, Problem> {
    let query = RawQuery::parse(uri.query())?;
    query.check(&["direction", "format", "nodes_max"], None)?;
    let nodes_max = query.number("nodes_max", 1..=LINEAGE_NODES_MAX)?.unwrap_or(LINEAGE_NODES_MAX);
    let as_dot = match query.get("format")?.as_deref() {
        None | Some("json") => false,
        Some("dot") => true,
        Some(other) => {
            let detail = format!("format={other}: it is json or dot");
            return Err(Problem::bad_request("unknown_parameter", detail));
        }
    };
    let direction = query.get("direction")?.unwrap_or_else(|| "both".to_owned());
    let direction: LineageDirection = serde_json::from_value(Value::from(direction.as_str())).map_err(|_| {
        Problem::bad_request("unknown_parameter", format!("direction={direction}: it is upstream, downstream or both"))
    })?;
    let object_kind: ObjectKind = serde_json::from_value(Value::from(kind.as_str())).map_err(|_| {
        let kinds = "source, entity, transform, view, feature, service, dataset";
        Problem::not_found("unknown_kind", format!("no kind `{kind}`; kinds are {kinds}"))
    })?;
    let lineage = state.registry.lineage_within(object_kind, &name, direction, nodes_max).await?;
    if as_dot {
        return Ok(([(header::CONTENT_TYPE, "text/vnd.graphviz")], lineage.to_dot()).into_response());
    }
    let mut json =
        serde_json::to_value(&lineage).map_err(|error| Problem::internal("lineage could not be shown", error))?;
    json["text"] = Value::from(lineage.to_text());
    json["dot"] = Value::from(lineage.to_dot());
    Ok(Json(json).into_response())
}

pub(super) async fn search(State(state): State<Arc<ApiState>>, uri: Uri) -> Result<Json<Value>, Problem> {
    /// Hits of a search that does not say how many it wants.
    const LIMIT: usize = 20;
    let query = RawQuery::parse(uri.query())?;
    query.check(&["q", "kind", "limit"], None)?;
    let text = query.get("q")?.unwrap_or_default();
    let kinds = query.get("kind")?.unwrap_or_default();
    let kinds: Vec<String> = kinds.split(',').filter(|kind| !kind.is_empty()).map(str::to_owned).collect();
    let limit = match query.get("limit")? {
        None => LIMIT,
        Some(limit) => limit.parse().map_err(|_| {
            Problem::bad_request("malformed_query", format!("limit is `{limit}`; it is 1 to {SEARCH_LIMIT_MAX}"))
        })?,
    };
    let found = state.registry.search(&Search { text: &text, kinds: &kinds, limit }).await?;
    Ok(Json(json!({ "hits": found.hits, "is_cut": found.is_cut })))
}

pub(super) async fn datasets(State(state): State<Arc<ApiState>>) -> Result<Json<Value>, Problem> {
    let datasets = state.registry.datasets().await?;
    let shortened = |dataset: &DatasetRecord| {
        let mut json = dataset_json(dataset)?;
        // Of each file and feature: `GET /datasets/{id}` has them.
        if let Some(fields) = json.as_object_mut() {
            fields.retain(|name, _| !matches!(name.as_str(), "recipe" | "report"));
        }
        Ok(json)
    };
    let datasets = datasets.iter().map(shortened).collect::<Result<Vec<_>, Problem>>()?;
    Ok(Json(json!({ "datasets": datasets })))
}

pub(super) async fn dataset(
    State(state): State<Arc<ApiState>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let dataset = state.registry.dataset(&id).await?;
    let mut json = dataset_json(&dataset)?;
    let erased = state.registry.dataset_erased_by(&dataset.id).await?;
    // Files that it was made of are gone: it cannot be made again.
    json["erased"] = match erased {
        Some((job, at_us)) => json!({ "job": job, "at": eadem_values::format_timestamp(at_us) }),
        None => Value::Null,
    };
    Ok(Json(json))
}

fn dataset_json(dataset: &DatasetRecord) -> Result<Value, Problem> {
    let shown = serde_json::to_value(dataset);
    let mut json = shown.map_err(|error| Problem::internal("the dataset could not be shown", error))?;
    json["created_at"] = Value::from(eadem_values::format_timestamp(dataset.created_at_us));
    Ok(json)
}

/// The code of a name that nothing has, by what was looked for.
pub(super) fn not_found_code(kind: ObjectKind) -> String {
    format!("unknown_{}", kind.as_str())
}
