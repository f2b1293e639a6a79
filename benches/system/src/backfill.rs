//! F6, our side: a backfill of the payments through the engine.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use arrow_array::ArrayRef;
use eadem_engine::{Accepted, CallClass, CompilerCommand, Engine, EngineConfig, EngineError, Transform, UploadOptions};
use eadem_offline::{
    Backfill, BackfillOptions, Binding, Cancel, EventTime, JoinKey, KnownAt, MemoryLedger, OfflineStore, Origin,
    Placement, SourceSpec, ViewSpec, run_backfill,
};
use eadem_query::{AppliedRows, FailedRow, RowTransform, TransformFailure, ValidationPolicy};
use eadem_semantics::Lifetime;
use eadem_values::{Description, Digest, KeyType};
use serde_json::json;

/// The argument with which this executable compiles a component and does nothing else.
pub(crate) const COMPILER_VERB: &str = "compile-component";

/// Workers of the backfill, and the width of the baseline.
pub(crate) const THREADS: usize = 2;

/// Later than all payments.
const CREATED_AT: &str = "2027-01-01T00:00:00Z";

const ACCEPTED_FILE: &str = "accepted.json";

/// The component as backfills run it.
#[derive(Debug)]
struct BatchTransform(Transform);

impl RowTransform for BatchTransform {
    fn description(&self) -> &Description {
        self.0.description()
    }

    fn digest(&self) -> &Digest {
        self.0.digest()
    }

    fn apply(&self, rows: usize, inputs: &[ArrayRef]) -> Result<AppliedRows, TransformFailure> {
        let applied = self.0.apply(rows, inputs, CallClass::Batch).map_err(|error| TransformFailure {
            transform: self.0.description().name.clone(),
            row: match &error {
                EngineError::Deadline { row, .. } => Some(*row),
                _ => None,
            },
            message: error.to_string(),
            is_busy: matches!(error, EngineError::Busy { .. }),
        })?;
        let failed = applied.rows.failed.into_iter();
        Ok(AppliedRows {
            columns: applied.columns,
            dropped: applied.rows.dropped,
            failed: failed.map(|failed| FailedRow { row: failed.row, message: failed.message }).collect(),
            ..AppliedRows::default()
        })
    }
}

fn engine(home: &Path) -> Result<Engine> {
    let mut config = EngineConfig::with_artifacts_dir(home.join("artifacts"));
    config.compiler = CompilerCommand { program: std::env::current_exe()?, args: vec![COMPILER_VERB.to_owned()] };
    Ok(Engine::new(config)?)
}

/// Uploads the component, as is done once, long before a backfill.
pub(crate) fn accept(component: &Path, home: &Path) -> Result<()> {
    std::fs::create_dir_all(home)?;
    let bytes = std::fs::read(component).with_context(|| component.display().to_string())?;
    let Accepted { digest, description, strict_nan, cost, .. } =
        engine(home)?.accept(&bytes, &UploadOptions::default())?;
    let record = json!({
        "digest": digest, "description": description, "strict_nan": strict_nan, "cost": cost,
    });
    Ok(std::fs::write(home.join(ACCEPTED_FILE), record.to_string())?)
}

fn load(component: &Path, home: &Path) -> Result<BatchTransform> {
    let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(home.join(ACCEPTED_FILE))?)?;
    let bytes = || std::fs::read(component).map_err(|error| error.to_string());
    let transform = engine(home)?.load(
        serde_json::from_value(record["digest"].take())?,
        bytes,
        serde_json::from_value(record["description"].take())?,
        serde_json::from_value(record["strict_nan"].take())?,
        serde_json::from_value(record["cost"].take())?,
    )?;
    Ok(BatchTransform(transform))
}

/// Backfills all events into `out`.
pub(crate) fn run(events: &str, component: &Path, home: &Path, out: &Path) -> Result<()> {
    let transform = load(component, home)?;
    fill(view(events, Arc::new(transform)), &out.display().to_string())
}

/// Backfills a view into `out`; every row has to arrive.
pub(crate) fn fill(view: ViewSpec, out: &str) -> Result<()> {
    let mut options = BackfillOptions::created_at(eadem_values::parse_timestamp(CREATED_AT)?);
    options.workers = THREADS;
    let backfill = Backfill {
        job: "bench".to_owned(),
        view,
        store: OfflineStore::open(out)?,
        ledger: Arc::new(MemoryLedger::default()),
        options,
        progress: None,
        cancel: Cancel::default(),
    };
    let report = runtime()?.block_on(run_backfill(backfill))?;
    ensure!(report.rows_stored == report.rows_read, "not every row was stored: {report:?}");
    println!("{} rows stored as version {:?}", report.rows_stored, report.version);
    Ok(())
}

/// Of a job, in a process of its own as a verb has it.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    eadem_engine::use_small_pages();
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?)
}

/// The payments as a view; the transform's inputs are called like the columns.
pub(crate) fn view(events: &str, transform: Arc<dyn RowTransform>) -> ViewSpec {
    let bindings = transform.description().inputs.iter().map(|input| Binding::Column(input.name.clone())).collect();
    ViewSpec {
        name: "payments".to_owned(),
        version: 1,
        digest: format!("sha256:{}", transform.digest()),
        source: SourceSpec {
            name: "events".to_owned(),
            origin: Origin::Parquet { locations: vec![events.to_owned()] },
            types: BTreeMap::new(),
            columns: Vec::new(),
            filter: None,
            time_zone: None,
            event_time: EventTime::Column("event_timestamp".to_owned()),
            known_at: KnownAt::EventTime,
            event_id: None,
            max_ahead_us: 0,
        },
        keys: vec![JoinKey { name: "entity_id".to_owned(), key_type: KeyType::Utf8, column: "entity_id".to_owned() }],
        transform,
        bindings,
        lifetime: Lifetime::FOREVER,
        placement: Placement::OnWrite,
        first_placement: Placement::OnWrite,
        validation: ValidationPolicy::RefuseRow.into(),
    }
}
