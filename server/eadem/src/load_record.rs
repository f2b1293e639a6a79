//! What a job notes of its loads in its ledger, beside the chunks of backfills: of which commit each was begun, which files are
//! loaded, and that it is whole. A load that broke off goes on from there.

use std::collections::HashSet;

use anyhow::Context as _;
use eadem_registry::model::ViewRef;
use eadem_registry::{JobChunk, Registry};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::home::Stores;

/// What the names of these notes begin with. No view's chunks do, because a view has its version in its name.
const LOADS: &str = "online/";
const FILE: &str = "/file/";
const END: &str = "/end";

/// How a load began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Begun {
    /// The version of the offline table that is loaded.
    pub(crate) commit: u64,
    /// The instant that online history is counted back from.
    pub(crate) as_of_us: i64,
}

/// What a whole load came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) rows: u64,
    pub(crate) trimmed: u64,
    pub(crate) complete_since_us: i64,
}

/// The notes of one load: of a view into an epoch, by a job.
#[derive(Clone)]
pub(crate) struct LoadRecord {
    stores: Stores,
    job: String,
    /// `online/view@1/2`.
    name: String,
    pub(crate) epoch: u32,
}

/// A load that a job has begun before.
pub(crate) struct Earlier {
    pub(crate) record: LoadRecord,
    pub(crate) begun: Begun,
    /// `None`: it broke off.
    pub(crate) ended: Option<Ended>,
    /// The files whose rows are loaded, and how many these are.
    pub(crate) files: HashSet<String>,
    pub(crate) rows: u64,
}

impl LoadRecord {
    fn of(stores: &Stores, job: &str, view: &ViewRef, epoch: u32) -> Self {
        Self { stores: stores.clone(), job: job.to_owned(), name: format!("{LOADS}{view}/{epoch}"), epoch }
    }

    /// Notes that a load begins.
    pub(crate) async fn begin(
        stores: &Stores,
        job: &str,
        view: &ViewRef,
        epoch: u32,
        begun: Begun,
    ) -> anyhow::Result<Self> {
        let record = Self::of(stores, job, view, epoch);
        record.note("", &serde_json::to_value(begun)?).await?;
        Ok(record)
    }

    /// Notes that all rows of a file are loaded.
    pub(crate) async fn file_done(&self, path: &str, rows: u64) -> anyhow::Result<()> {
        self.note(&format!("{FILE}{path}"), &json!({ "rows": rows })).await
    }

    /// Notes that the load is whole.
    pub(crate) async fn end(&self, ended: Ended) -> anyhow::Result<()> {
        self.note(END, &serde_json::to_value(ended)?).await
    }

    async fn note(&self, what: &str, result: &Json) -> anyhow::Result<()> {
        let (registry, now_us) = (&self.stores.registry, self.stores.clock.now_us());
        registry.record_chunk(&self.job, &format!("{}{what}", self.name), result, None, now_us).await?;
        Ok(())
    }

    /// The load of this view that a job has begun last, if it has begun any.
    pub(crate) async fn latest(stores: &Stores, job: &str, view: &ViewRef) -> anyhow::Result<Option<Earlier>> {
        let prefix = format!("{LOADS}{view}/");
        let names = stores.registry.chunk_names(job, &prefix).await?;
        let epochs = names.iter().filter_map(|name| name[prefix.len()..].parse::<u32>().ok());
        let Some(epoch) = epochs.max() else { return Ok(None) };
        let record = Self::of(stores, job, view, epoch);
        let mut earlier = None;
        let (mut ended, mut files, mut rows) = (None, HashSet::new(), 0);
        for chunk in stores.registry.list_chunks(job).await? {
            let Some(what) = chunk.chunk.strip_prefix(&record.name) else { continue };
            let damaged = || format!("what job {job} has noted of its load ({}) is unreadable", chunk.chunk);
            if what.is_empty() {
                earlier = Some(serde_json::from_value(chunk.result).with_context(damaged)?);
            } else if what == END {
                ended = Some(serde_json::from_value(chunk.result).with_context(damaged)?);
            } else if let Some(path) = what.strip_prefix(FILE) {
                rows += chunk.result["rows"].as_u64().with_context(damaged)?;
                files.insert(path.to_owned());
            }
        }
        Ok(earlier.map(|begun| Earlier { record, begun, ended, files, rows }))
    }

    /// The views that a job has begun to load.
    pub(crate) async fn views(registry: &Registry, job: &str) -> anyhow::Result<Vec<ViewRef>> {
        let mut views: Vec<ViewRef> = Vec::new();
        for name in registry.chunk_names(job, LOADS).await? {
            let view = name[LOADS.len()..].split('/').next().and_then(|view| view.split_once('@'));
            let view = view
                .and_then(|(name, version)| Some(ViewRef { name: name.to_owned(), version: version.parse().ok()? }));
            views.extend(view.filter(|view| !views.contains(view)));
        }
        Ok(views)
    }

    /// The commit that a load was begun of and its view as `view@version`, where this is what a job notes then.
    pub(crate) fn commit_in(chunk: &JobChunk) -> Option<(&str, u64)> {
        let (view, rest) = chunk.chunk.strip_prefix(LOADS)?.split_once('/')?;
        rest.parse::<u32>().ok()?;
        Some((view, chunk.result["commit"].as_u64()?))
    }
}
