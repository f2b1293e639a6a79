//! `/jobs`

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::sse::{Event, KeepAlive, Sse};
use eadem_registry::Role;
use futures::{Stream, StreamExt};
use serde_json::Value;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

use crate::access::{By, Principal, role_too_low};
use crate::jobs::{Job, JobFilter, JobKind, JobState};
use crate::problem::Problem;
use crate::routes::body::JsonBody;
use crate::routes::query::RawQuery;
use crate::state::ApiState;

pub(super) async fn start(
    State(state): State<Arc<ApiState>>,
    by: By,
    Path(kind): Path<String>,
    JsonBody(spec): JsonBody<Value>,
) -> Result<(StatusCode, Json<Job>), Problem> {
    let kind = JobKind::from_name(&kind).ok_or_else(|| {
        let kinds = JobKind::ALL.map(JobKind::name).join(", ");
        Problem::not_found("unknown_job_kind", format!("no job of kind `{kind}`; kinds are {kinds}"))
    })?;
    check_right(&state, &by.principal, kind, &spec)?;
    begin(&state, &by, kind, spec).await
}

async fn begin(state: &ApiState, by: &By, kind: JobKind, spec: Value) -> Result<(StatusCode, Json<Job>), Problem> {
    let begun = state.jobs.start(kind, spec, &by.actor).await;
    // What is wrong with a request to erase is said in words of that request, and the trail is kept for good.
    let begun = begun.map_err(|problem| if kind == JobKind::Erase { problem.untold() } else { problem });
    Ok((StatusCode::ACCEPTED, Json(begun?)))
}

/// Jobs read and write files of the server's machine. Whoever comes over the network with less than a token of an admin of all
/// projects does so only within the project's folder, and not where the server keeps its own; and what copies, replaces or erases what all
/// have is for admins.
fn check_right(state: &ApiState, principal: &Principal, kind: JobKind, spec: &Value) -> Result<(), Problem> {
    let Principal::Token(credential) = principal else { return Ok(()) };
    let is_admin = credential.role == Role::Admin;
    if is_admin && credential.project.is_none() {
        return Ok(());
    }
    if !is_admin && matches!(kind, JobKind::Backup | JobKind::Restore | JobKind::Erase) {
        return Err(role_too_low(credential, Role::Admin));
    }
    for field in ["spine", "output", "out", "from"] {
        if let Some(file) = spec[field].as_str() {
            state.files.check(file).map_err(|why| {
                let detail = format!(
                    "{field}: {why}; only an admin of all projects may name other files of the server's machine"
                );
                Problem::new(StatusCode::FORBIDDEN, "foreign_file", detail)
            })?;
        }
    }
    Ok(())
}

/// Whoever may not start a job neither ends it nor goes on with it.
async fn check_right_to(state: &ApiState, principal: &Principal, id: &str) -> Result<(), Problem> {
    let job = state.jobs.get(id).await?;
    check_right(state, principal, job.kind, &job.spec)
}

/// `POST /erasures`: from the moment on at which it is answered, what it names is hidden.
pub(super) async fn erase(
    State(state): State<Arc<ApiState>>,
    by: By,
    JsonBody(spec): JsonBody<Value>,
) -> Result<(StatusCode, Json<Job>), Problem> {
    begin(&state, &by, JobKind::Erase, spec).await
}

pub(super) async fn list(State(state): State<Arc<ApiState>>, uri: Uri) -> Result<Json<Value>, Problem> {
    let jobs = state.jobs.list(&read_filter(uri.query())?).await?;
    Ok(Json(serde_json::json!({ "jobs": jobs })))
}

fn read_filter(query: Option<&str>) -> Result<JobFilter, Problem> {
    let query = RawQuery::parse(query)?;
    query.check(&["state", "kind", "limit"], None)?;
    let refuse = |name: &str, text: &str, known: &[&str]| {
        let detail = format!("{name} is `{text}`; it is one of {}", known.join(", "));
        Problem::bad_request("malformed_query", detail)
    };
    let mut filter = JobFilter::default();
    if let Some(text) = query.get("state")? {
        let known = JobState::ALL.map(JobState::name);
        filter.state = Some(JobState::from_name(&text).ok_or_else(|| refuse("state", &text, &known))?);
    }
    if let Some(text) = query.get("kind")? {
        let known = JobKind::ALL.map(JobKind::name);
        filter.kind = Some(JobKind::from_name(&text).ok_or_else(|| refuse("kind", &text, &known))?);
    }
    filter.limit = query.number("limit", 0..=usize::MAX)?;
    Ok(filter)
}

pub(super) async fn get(State(state): State<Arc<ApiState>>, Path(id): Path<String>) -> Result<Json<Job>, Problem> {
    state.jobs.get(&id).await.map(Json)
}

pub(super) async fn cancel(
    State(state): State<Arc<ApiState>>,
    by: By,
    Path(id): Path<String>,
) -> Result<Json<Job>, Problem> {
    check_right_to(&state, &by.principal, &id).await?;
    state.jobs.cancel(&id, &by.actor).await.map(Json)
}

pub(super) async fn resume(
    State(state): State<Arc<ApiState>>,
    by: By,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<Job>), Problem> {
    check_right_to(&state, &by.principal, &id).await?;
    let job = state.jobs.resume(&id, &by.actor).await?;
    Ok((StatusCode::ACCEPTED, Json(job)))
}

/// The job at every change, the last time when it has ended, or when nobody knows any more how it stands.
pub(super) async fn events(
    State(state): State<Arc<ApiState>>,
    Path(id): Path<String>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let events = named_events(state.jobs.watch(&id).await?).map(|(name, job)| {
        let data = serde_json::to_string(&job).unwrap_or_default();
        Ok(Event::default().event(name).data(data))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

/// What is told of a job, each with its name. Where no more comes of one that is at work, `lost` says so.
fn named_events(changes: watch::Receiver<Job>) -> impl Stream<Item = (&'static str, Job)> {
    let begin = (WatchStream::new(changes), None::<Job>, false);
    futures::stream::unfold(begin, |(mut changes, last, is_over)| async move {
        if is_over {
            return None;
        }
        match changes.next().await {
            Some(job) => {
                let is_over = job.state.is_final();
                let name = if is_over { "end" } else { "progress" };
                Some(((name, job.clone()), (changes, Some(job), is_over)))
            }
            None => last.map(|job| (("lost", job), (changes, None, true))),
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(state: JobState) -> Job {
        Job { state, ..Job::begun("job".to_owned(), JobKind::Dataset, json!({}), 0) }
    }

    #[tokio::test]
    async fn the_last_event_says_that_a_job_has_ended_or_that_nobody_knows() {
        let (running, receiver) = watch::channel(job(JobState::Running));
        let mut events = Box::pin(named_events(receiver));
        assert_eq!(events.next().await.map(|(name, _)| name), Some("progress"));
        running.send_replace(job(JobState::Failed));
        // Also where whoever tells of it stays.
        assert_eq!(events.map(|(name, _)| name).collect::<Vec<_>>().await, ["end"]);
        let (gone, receiver) = watch::channel(job(JobState::Running));
        drop(gone);
        let events: Vec<_> = named_events(receiver).map(|(name, _)| name).collect().await;
        assert_eq!(events, ["progress", "lost"]);
    }
}
