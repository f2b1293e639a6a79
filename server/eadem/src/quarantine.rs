//! Refused rows: shown by the routes, and replayed as jobs.

use std::sync::Arc;

use anyhow::Context as _;
use async_trait::async_trait;
use eadem_api::{Problem, QuarantineQuery};
use eadem_offline::{
    JobLedger, ProgressSink, Quarantine, QuarantineCursor, QuarantineEntry, QuarantineFilter, QuarantinedRow, Replay,
    ReplayOptions, ReplayReport, ViewSpec, ViewTable, run_replay,
};
use eadem_registry::definitions::split_version;
use eadem_registry::model::ViewVersion;
use eadem_values::format_timestamp;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tokio::sync::Semaphore;

use crate::home::Stores;

/// Rows of one replay where the request does not say, and at most: what is kept of them is in memory.
const REPLAY_ROWS_DEFAULT: usize = 100_000;
const REPLAY_ROWS_MAX: usize = 1_000_000;

/// Reads of quarantine tables at the same time: each takes a thread and decodes files.
const READS_AT_ONCE: usize = 2;

/// Hexadecimal digits of a file's digest that people see of a row's id, and the fewest that name a file.
const ID_DIGITS_SHOWN: usize = 12;
const ID_DIGITS_MIN: usize = 4;

/// What `POST /jobs/replay` takes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReplayRequest {
    /// `name` or `name@version`.
    pub(crate) view: String,
    /// Only what this job has refused.
    job: Option<String>,
    /// Only rows whose reason has this text in it.
    reason: Option<String>,
    /// Only the row of this id.
    row: Option<String>,
    /// At most so many rows.
    limit: Option<usize>,
    /// The version of the quarantine table, as it was when the job began; what a request says of it is replaced.
    quarantine_version: Option<u64>,
}

impl ReplayRequest {
    fn filter(&self) -> Result<QuarantineFilter, Problem> {
        let (lane, row) = match self.row.as_deref().map(read_id).transpose()? {
            Some((lane, row)) => (Some(lane), Some(row)),
            None => (None, None),
        };
        Ok(QuarantineFilter { job: self.job.clone(), reason: self.reason.clone(), lane, row, settled: false })
    }

    fn rows_max(&self) -> Result<usize, Problem> {
        match self.limit {
            None => Ok(REPLAY_ROWS_DEFAULT),
            Some(limit) if (1..=REPLAY_ROWS_MAX).contains(&limit) => Ok(limit),
            Some(_) => {
                let detail = format!("replay: `limit` is a whole number from 1 to {REPLAY_ROWS_MAX}");
                Err(Problem::bad_request("malformed_job", detail))
            }
        }
    }
}

/// A row's id: the digest of its file, or how it begins, and its number there.
fn read_id(id: &str) -> Result<(String, i64), Problem> {
    let malformed = || {
        let detail =
            format!("`{id}` is no id of a refused row: `<digest of the file>:<number of the row>`, as in the list");
        Problem::bad_request("malformed_row", detail)
    };
    let (digest, row) = id.rsplit_once(':').ok_or_else(malformed)?;
    let digits = digest.strip_prefix("sha256:").unwrap_or(digest);
    let is_digest = digits.len() >= ID_DIGITS_MIN && digits.chars().all(|digit| digit.is_ascii_hexdigit());
    let row = row.parse::<i64>().ok().filter(|row| *row >= 0);
    match (is_digest, row) {
        (true, Some(row)) => Ok((format!("sha256:{}", digits.to_lowercase()), row)),
        _ => Err(malformed()),
    }
}

/// The id of a row, as short as it is for people.
pub(crate) fn short_id(id: &str) -> String {
    let (digest, row) = id.rsplit_once(':').unwrap_or((id, ""));
    let digits = digest.strip_prefix("sha256:").unwrap_or(digest);
    format!("{}:{row}", digits.get(..ID_DIGITS_SHOWN).unwrap_or(digits))
}

/// The registry's id of a job, which may compute several views.
fn job_id(job: &str) -> &str {
    job.split('/').next().unwrap_or(job)
}

fn entry_json(entry: &QuarantineEntry) -> Json {
    let row = &entry.row;
    let kept: Json = serde_json::from_str(&row.inputs).unwrap_or_default();
    json!({
        "id": format!("{}:{}", row.lane, row.row),
        "state": entry.state,
        "kind": row.kind,
        "reason": row.reason,
        "file": row.file,
        "row": row.row,
        "keys": kept["keys"],
        "event_time": kept["event_time"],
        "known_at": kept["known_at"],
        "inputs": kept["inputs"],
        // All that is kept of a row that could not be read.
        "text": kept["text"],
        "incomplete": kept["incomplete"].as_bool().unwrap_or_default(),
        "arrival": format_timestamp(row.arrival_us),
        "job": job_id(&row.job),
        "attempt": row.attempt,
        "settled_by": entry.settled_by.as_deref().map(job_id),
    })
}

/// Quarantine as the routes see it.
pub(crate) struct RefusedRows {
    stores: Stores,
    reads: Semaphore,
}

impl RefusedRows {
    pub(crate) fn new(stores: Stores) -> Self {
        Self { stores, reads: Semaphore::new(READS_AT_ONCE) }
    }

    /// Decodes files: not on the threads of requests.
    async fn read<T: Send + 'static>(
        &self,
        read: impl Future<Output = Result<T, eadem_offline::OfflineError>> + Send + 'static,
    ) -> Result<T, Problem> {
        let _read = self.reads.acquire().await.map_err(|error| Problem::internal("quarantine", error))?;
        let runtime = tokio::runtime::Handle::current();
        let read = tokio::task::spawn_blocking(move || runtime.block_on(read)).await;
        let read = read.map_err(|error| Problem::internal("quarantine", error))?;
        read.map_err(|error| Problem::internal("the quarantine table could not be read", error))
    }

    fn quarantine_of(&self, view: &ViewVersion) -> Result<Quarantine, Problem> {
        let quarantine = self.stores.offline.quarantine(&view.id.name, view.id.version);
        quarantine.map_err(|error| Problem::internal("the quarantine table could not be found", error))
    }

    /// The view as jobs load it, and its table, which says what was loaded since rows were refused.
    async fn table_of(&self, view: &ViewVersion) -> Result<(ViewSpec, ViewTable), Problem> {
        let spec = self.stores.table_spec(view).await;
        let spec = spec.map_err(|error| Problem::internal("the view could not be loaded", format!("{error:#}")))?;
        let table = self.stores.offline.table(&spec);
        let table = table.map_err(|error| Problem::internal("the table could not be found", error))?;
        Ok((spec, table))
    }
}

/// A stored view, by `name` or `name@version`.
async fn stored_view(stores: &Stores, name: &str) -> Result<Arc<ViewVersion>, Problem> {
    let registry_problem = |error: eadem_registry::RegistryError| match &error {
        error if error.is_not_found() => Problem::not_found("unknown_view", error.to_string()),
        eadem_registry::RegistryError::MalformedVersion(_) => {
            Problem::bad_request("malformed_version", error.to_string())
        }
        _ => Problem::internal("the registry failed", error),
    };
    let (bare, version) = split_version(name).map_err(registry_problem)?;
    let view = stores.registry.view(bare, version).await.map_err(registry_problem)?;
    if view.is_on_demand() {
        let detail = format!("{} is computed on demand: no job refuses rows of it", view.id);
        return Err(Problem::bad_request("malformed_request", detail));
    }
    Ok(view)
}

#[async_trait]
impl eadem_api::Quarantine for RefusedRows {
    async fn summary(&self) -> Result<Json, Problem> {
        let registry_failed = |error| Problem::internal("the registry could not be read", error);
        let mut views = Vec::new();
        for summary in self.stores.registry.views().await.map_err(registry_failed)? {
            if summary.newest.is_on_demand() {
                continue;
            }
            for version in summary.versions {
                let name = &summary.newest.id.name;
                let quarantine = self.stores.offline.quarantine(name, version);
                let quarantine = quarantine.map_err(|error| Problem::internal("quarantine", error))?;
                let known = quarantine.clone();
                if self.read(async move { known.version().await }).await?.is_none() {
                    continue;
                }
                let view = self.stores.registry.view(name, Some(version)).await.map_err(registry_failed)?;
                let (_, table) = self.table_of(&view).await?;
                let found = self.read(async move { quarantine.summary(&table).await }).await?;
                views.push(json!({
                    "view": format!("{name}@{version}"),
                    "refused": found.refused.values().sum::<u64>(),
                    "reasons": found.refused,
                    "replayed": found.replayed,
                    "dropped": found.dropped,
                }));
            }
        }
        Ok(json!({ "views": views }))
    }

    async fn list(&self, view: &str, query: QuarantineQuery) -> Result<Json, Problem> {
        let view = stored_view(&self.stores, view).await?;
        let cursor = match &query.cursor {
            None => None,
            Some(text) => Some(
                text.parse::<QuarantineCursor>()
                    .map_err(|error| Problem::bad_request("malformed_query", format!("cursor: {error}")))?,
            ),
        };
        let filter = QuarantineFilter {
            job: query.job,
            reason: query.reason,
            settled: query.all,
            ..QuarantineFilter::default()
        };
        let quarantine = self.quarantine_of(&view)?;
        if let Some(cursor) = cursor {
            let current = quarantine.clone();
            let version = self.read(async move { current.version().await }).await?;
            if version.is_none_or(|version| version < cursor.version) {
                return Err(Problem::bad_request(
                    "malformed_query",
                    format!("cursor: {cursor} is of no page of {}", view.id),
                ));
            }
        }
        let (_, table) = self.table_of(&view).await?;
        let page = self.read(async move { quarantine.page(&table, &filter, cursor, query.limit).await }).await?;
        let rows: Vec<Json> = page.entries.iter().map(entry_json).collect();
        Ok(json!({
            "view": view.id.to_string(),
            "rows": rows,
            "next": page.next.map(|next| next.to_string()),
        }))
    }

    async fn row(&self, view: &str, id: &str) -> Result<Json, Problem> {
        const REFUSALS_SHOWN_MAX: usize = 100;
        let (lane, row) = read_id(id)?;
        let view = stored_view(&self.stores, view).await?;
        let (spec, table) = self.table_of(&view).await?;
        let quarantine = self.quarantine_of(&view)?;
        let filter =
            QuarantineFilter { lane: Some(lane), row: Some(row), settled: true, ..QuarantineFilter::default() };
        let read = async move {
            let page = quarantine.page(&table, &filter, None, REFUSALS_SHOWN_MAX).await?;
            let mut entries = page.entries;
            entries.sort_by_key(|entry| std::cmp::Reverse((entry.row.arrival_us, entry.row.attempt)));
            let newest: Vec<&QuarantinedRow> = entries.first().iter().map(|entry| &entry.row).collect();
            let hindrance = quarantine.hindrances(&spec, &table, &newest).await?.pop().flatten();
            Ok((entries, hindrance))
        };
        let (entries, hindrance) = self.read(read).await?;
        let Some(first) = entries.first() else {
            let detail =
                format!("{} has refused no row `{id}`; `eadem quarantine list {}` lists them", view.id, view.id);
            return Err(Problem::not_found("unknown_row", detail));
        };
        if entries.iter().any(|entry| entry.row.lane != first.row.lane) {
            let detail = format!("several files have refused rows `{id}`: write more of the file's digest");
            return Err(Problem::bad_request("malformed_row", detail));
        }
        let is_open = first.state == eadem_offline::EntryState::Refused;
        let rows: Vec<Json> = entries.iter().map(entry_json).collect();
        Ok(json!({
            "view": view.id.to_string(),
            "rows": rows,
            "hindrance": hindrance.filter(|_| is_open),
        }))
    }
}

/// Checks a replay, and settles what it reads: its view's version, and that of the quarantine table.
pub(crate) async fn check_and_pin(stores: &Stores, spec: &mut Json) -> Result<(), Problem> {
    let request: ReplayRequest = serde_json::from_value(spec.clone())
        .map_err(|error| Problem::bad_request("malformed_job", format!("replay: {error}")))?;
    request.filter()?;
    request.rows_max()?;
    let view = stored_view(stores, &request.view).await?;
    let quarantine = stores.offline.quarantine(&view.id.name, view.id.version);
    let version = match quarantine {
        Ok(quarantine) => quarantine.version().await,
        Err(error) => Err(error),
    };
    let version = version.map_err(|error| Problem::internal("the quarantine table could not be read", error))?;
    let Some(version) = version else {
        let detail = format!("replay: {} has refused no row: there is nothing to do", view.id);
        return Err(Problem::bad_request("malformed_job", detail));
    };
    spec["view"] = json!(view.id.to_string());
    spec["quarantine_version"] = json!(version);
    Ok(())
}

/// Runs a replay.
pub(crate) async fn run(
    stores: &Stores,
    id: &str,
    request: ReplayRequest,
    ledger: Arc<dyn JobLedger>,
    cancel: eadem_offline::Cancel,
    progress: Arc<dyn ProgressSink>,
) -> anyhow::Result<Json> {
    let view = stored_view(stores, &request.view).await?;
    let replay = Replay {
        job: format!("{id}/{}", view.id),
        view: stores.table_spec(&view).await?,
        store: stores.offline.as_ref().clone(),
        ledger,
        options: ReplayOptions {
            created_at_us: stores.registry.job(id).await?.created_at_us,
            version: request.quarantine_version.context("the job has no version of the quarantine table")?,
            filter: request.filter()?,
            rows_max: request.rows_max()?,
            memory_bytes_max: stores.job_memory_bytes_max,
        },
        progress: Some(progress),
        cancel,
    };
    let report = run_replay(replay).await.with_context(|| view.id.to_string())?;
    Ok(json!({ "lines": report_lines(&view, id, &report), "replay": report_json(&view, &report) }))
}

fn report_lines(view: &ViewVersion, job: &str, report: &ReplayReport) -> Vec<String> {
    let mut line = format!("{}: {} rows stored of {} tried", view.id, report.rows_stored, report.rows_tried);
    let parts = [
        (report.rows_failed, "failed"),
        (report.rows_dropped, "dropped by the transform"),
        (report.rows_stored_before, "stored before"),
        (report.rows_refused(), "refused again"),
    ];
    for (rows, what) in parts {
        if rows > 0 {
            line.push_str(&format!(", {rows} {what}"));
        }
    }
    match report.version {
        Some(version) => line.push_str(&format!("; offline commit {version}")),
        None => line.push_str("; nothing to commit"),
    }
    let mut lines = vec![line];
    lines.extend(refusal_lines(&view.id.to_string(), job, &report.refused));
    for (hindrance, rows) in &report.hindered {
        lines.push(format!("{rows} rows cannot be replayed: {hindrance}"));
    }
    if report.rows_left > 0 {
        lines.push(format!("{} more rows match; replay again, or raise --limit", report.rows_left));
    }
    lines
}

/// The refused rows of a job by reason, the most frequent first, and where to look at them.
pub(crate) fn refusal_lines(view: &str, job: &str, refused: &eadem_offline::RefusalCounts) -> Vec<String> {
    const REASONS_SHOWN_MAX: usize = 10;
    let mut counts: Vec<(&String, &u64)> = refused.iter().collect();
    counts.sort_by_key(|(reason, rows)| (std::cmp::Reverse(**rows), reason.as_str()));
    let mut lines: Vec<String> =
        counts.iter().take(REASONS_SHOWN_MAX).map(|(reason, rows)| format!("  {rows} × {reason}")).collect();
    if counts.len() > REASONS_SHOWN_MAX {
        lines.push(format!("  and {} other reasons", counts.len() - REASONS_SHOWN_MAX));
    }
    if !counts.is_empty() {
        lines.push(format!("  look at them: eadem quarantine list {view} --job {job}"));
    }
    lines
}

fn report_json(view: &ViewVersion, report: &ReplayReport) -> Json {
    json!({
        "view": view.id.to_string(),
        "offline_commit": report.version,
        "rows_tried": report.rows_tried,
        "rows_stored": report.rows_stored,
        "rows_failed": report.rows_failed,
        "rows_dropped": report.rows_dropped,
        "rows_stored_before": report.rows_stored_before,
        "refused": report.refused,
        "hindered": report.hindered,
        "rows_left": report.rows_left,
        "memory_bytes_peak": report.memory_bytes_peak,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ids_name_a_file_and_a_row() {
        let digest = format!("sha256:{}", "0af9".repeat(16));
        assert_eq!(read_id(&format!("{digest}:7")).unwrap(), (digest.clone(), 7));
        assert_eq!(read_id("0AF9:12").unwrap(), ("sha256:0af9".to_owned(), 12));
        assert_eq!(read_id(&short_id(&format!("{digest}:7"))).unwrap(), ("sha256:0af90af90af9".to_owned(), 7));
        for id in ["", "7", ":7", "0af:7", "0af9:", "0af9:-1", "0af9:x", "xyzw:1", "0af9:99999999999999999999"] {
            assert_eq!(read_id(id).unwrap_err().code, "malformed_row", "{id}");
        }
    }
}
