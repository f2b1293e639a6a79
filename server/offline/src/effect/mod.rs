//! The effect of a new view version: a sample of history through the old and the new one, and how the results differ.
//!
//! Rows of the source are read, bound, transformed and validated twice, as a backfill of each version would, and compared
//! row by row by the canonical encoding: one bit in one value is a change. Nothing is stored, and memory does not grow with
//! the rows.

mod compare;
mod judge;
mod report;
mod sample;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use tokio::runtime::Handle;

pub use report::{ChangedRow, EffectOutcome, EffectReport, FeatureChange, FeatureEffect, OutcomeCount};

use self::compare::{Comparison, Where};
use self::judge::{Judged, Side};
use self::sample::{Portion, Sample};
use crate::bind::Acceptance;
use crate::cancel::Cancel;
use crate::erasure::{ErasedRows, ErasureLedger};
use crate::error::OfflineError;
use crate::source::{self, Footers, Portions};
use crate::spec::{Origin, ViewSpec};

/// Told how many rows are compared, of how many.
pub type EffectProgress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// Two versions of a view to compare.
#[derive(Clone)]
pub struct Effect {
    /// The version that there is.
    pub before: ViewSpec,
    /// The version that would take its place.
    pub after: ViewSpec,
    /// Who knows which entities are erased: nothing of them is looked at or shown. `None`: nothing is ever erased.
    pub erasures: Option<Arc<dyn ErasureLedger>>,
    /// How the comparison is made.
    pub options: EffectOptions,
    /// Told how far it is.
    pub progress: Option<EffectProgress>,
    /// Stops it between batches.
    pub cancel: Cancel,
}

/// How a comparison is made.
#[derive(Debug, Clone)]
pub struct EffectOptions {
    /// The arrival of all rows, in microseconds.
    pub arrival_us: i64,
    /// At most about this many rows are compared; where there are more, they are spread over all files.
    pub rows_max: u64,
    /// Threads.
    pub workers: usize,
    /// Rows in one call of the transform.
    pub batch_rows: usize,
    /// The report tells of what was compared until then.
    pub duration_max: Duration,
    /// Changed rows that are shown, per feature.
    pub examples_max: usize,
}

impl EffectOptions {
    /// All threads but no more than eight, a minute, five examples.
    pub fn of_rows(rows_max: u64, arrival_us: i64) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            arrival_us,
            rows_max,
            workers: threads.min(8),
            batch_rows: eadem_query::BATCH_ROWS,
            duration_max: Duration::from_secs(60),
            examples_max: 5,
        }
    }
}

/// What all threads share.
struct Bench {
    erased: Option<ErasedRows>,
    before: Side,
    after: Side,
    sample: Sample,
    footers: Footers,
    acceptance: Acceptance,
    options: EffectOptions,
    began: Instant,
    progress: Option<EffectProgress>,
    cancel: Cancel,
    failed: AtomicBool,
    out_of_time: AtomicBool,
    next: AtomicUsize,
    rows_done: AtomicU64,
}

/// Runs a sample of history through both versions.
///
/// # Errors
/// [`OfflineError::NotComparable`] where there is nothing that both versions could read; a file that cannot be read; a
/// transform that cannot be run; cancellation.
pub async fn compare_versions(effect: &Effect) -> Result<EffectReport, OfflineError> {
    let (mut before, after) = (effect.before.clone(), effect.after.clone());
    check_origins(&before.source.origin, &after.source.origin)?;
    // Where the rows lie is deployment: both versions read what the definitions name now.
    before.source.origin = after.source.origin.clone();
    let footers = Footers::default();
    let listing = source::list_all_files(&after.source).await?;
    if listing.files.is_empty() {
        return Err(source::no_files(&after.source));
    }
    let schemas = [
        source::survey(&before.source, &listing, &footers).await?,
        source::survey(&after.source, &listing, &footers).await?,
    ];
    let [schema_before, schema_after] = schemas;
    let sample = Sample::of(&after.source, listing, &footers, &schema_after, effect.options.rows_max).await?;
    let bench = Arc::new(Bench {
        // The new version need not be known to anybody yet.
        erased: ErasedRows::of_view(effect.erasures.as_ref(), &before.id(), true).await?,
        before: Side::try_new(before, &schema_before)?,
        after: Side::try_new(after, &schema_after)?,
        footers,
        acceptance: Acceptance { arrival_us: effect.options.arrival_us, ..Acceptance::default() },
        options: effect.options.clone(),
        began: Instant::now(),
        progress: effect.progress.clone(),
        cancel: effect.cancel.clone(),
        failed: AtomicBool::new(false),
        out_of_time: AtomicBool::new(false),
        next: AtomicUsize::new(0),
        rows_done: AtomicU64::new(0),
        sample,
    });
    let whole = Arc::new(Mutex::new(bench.comparison(0)));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..bench.options.workers.clamp(1, bench.sample.portions.len().max(1)) {
        let (bench, whole, runtime) = (Arc::clone(&bench), Arc::clone(&whole), Handle::current());
        // It computes far longer than it waits, so each has a thread and leaves the runtime's own to others.
        tasks.spawn_blocking(move || runtime.block_on(bench.work(&whole)));
    }
    let mut first_error = None;
    while let Some(ended) = tasks.join_next().await {
        let ended = ended.unwrap_or_else(|error| Err(OfflineError::Worker(error.to_string())));
        if let Err(error) = ended {
            bench.failed.store(true, Ordering::Relaxed);
            if matches!(first_error, None | Some(OfflineError::Cancelled)) {
                first_error = Some(error);
            }
        }
    }
    if let Some(error) = first_error {
        return Err(error);
    }
    let comparison = std::mem::replace(&mut *whole.lock().unwrap_or_else(PoisonError::into_inner), bench.comparison(0));
    let out_of_time = bench.out_of_time.load(Ordering::Relaxed);
    Ok(comparison.finish(&bench.sample, out_of_time, bench.options.examples_max))
}

/// Rows can only be compared where both versions read the same files in the same way.
fn check_origins(before: &Origin, after: &Origin) -> Result<(), OfflineError> {
    let not_comparable = |reason: &str| Err(OfflineError::NotComparable(reason.to_owned()));
    match (before, after) {
        (Origin::Postgres(_), _) | (_, Origin::Postgres(_)) => {
            not_comparable("a database is only read by backfills, so there is no history to run through both versions")
        }
        (Origin::Csv { format: before, .. }, Origin::Csv { format: after, .. }) if before != after => {
            not_comparable("the two versions read CSV that is written in different ways")
        }
        (before, after) if std::mem::discriminant(before) != std::mem::discriminant(after) => {
            not_comparable("the two versions read different kinds of files, whose rows cannot be told to be the same")
        }
        _ => Ok(()),
    }
}

impl Bench {
    fn comparison(&self, first_row: u64) -> Comparison {
        Comparison::new(self.before.spec.description(), self.after.spec.description(), first_row)
    }

    async fn work(&self, whole: &Mutex<Comparison>) -> Result<(), OfflineError> {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(portion) = self.sample.portions.get(number) else { return Ok(()) };
            if self.failed.load(Ordering::Relaxed) || self.is_out_of_time() {
                return Ok(());
            }
            let compared = self.compare_portion(number, portion).await.inspect_err(|_| {
                self.failed.store(true, Ordering::Relaxed);
            })?;
            let mut whole = whole.lock().unwrap_or_else(PoisonError::into_inner);
            whole.merge(compared, self.options.examples_max);
        }
    }

    async fn compare_portion(&self, number: usize, portion: &Portion) -> Result<Comparison, OfflineError> {
        let file = &self.sample.files[portion.file];
        let rows_max = usize::try_from(portion.rows_max).unwrap_or(usize::MAX).max(1);
        // Equal batches, so that the last one does not go far beyond what is asked for.
        let batches = rows_max.div_ceil(self.options.batch_rows.max(1));
        let batch_rows = rows_max.div_ceil(batches);
        let open = |side: &Side| {
            let (source, wanted) = (side.spec.source.clone(), side.reader.read.clone());
            async move {
                let part = (&portion.part, portion.first_row);
                source::open(&source, file, &self.footers, part, wanted, Portions::of_rows(batch_rows)).await
            }
        };
        let (mut before, mut after) = (open(&self.before).await?, open(&self.after).await?);
        // Numbers of rows only pick the sample that quantiles are taken of; each portion has a range of its own.
        let mut comparison = self.comparison((number as u64) << 32);
        let mut rows = 0;
        while rows < rows_max {
            self.cancel.check()?;
            if self.failed.load(Ordering::Relaxed) || self.is_out_of_time() {
                break;
            }
            let (old, new) = match (before.try_next().await?, after.try_next().await?) {
                (Some(old), Some(new)) => (old, new),
                (None, None) => break,
                _ => return Err(not_aligned(&file.url)),
            };
            let mut old = self.before.judge(old, &self.acceptance)?;
            let mut new = self.after.judge(new, &self.acceptance)?;
            if old.sequence != new.sequence {
                return Err(not_aligned(&file.url));
            }
            self.leave_out_erased(&mut old, &mut new)?;
            let place = Where {
                portion: number,
                file: &file.url,
                keys: &self.after.key_names,
                examples_max: self.options.examples_max,
            };
            comparison.add(&place, &old, &new)?;
            rows += old.sequence.len();
            self.tell(old.sequence.len() as u64);
        }
        Ok(comparison)
    }

    /// Rows that are erased under either version are in neither.
    fn leave_out_erased(&self, old: &mut Judged, new: &mut Judged) -> Result<(), OfflineError> {
        let Some(erased) = &self.erased else { return Ok(()) };
        let mut gone = old.erased(erased)?;
        if self.before.key_names == self.after.key_names {
            gone.extend(new.erased(erased)?);
        }
        for row in gone {
            old.leave_out(row);
            new.leave_out(row);
        }
        Ok(())
    }

    fn tell(&self, rows: u64) {
        let done = self.rows_done.fetch_add(rows, Ordering::Relaxed) + rows;
        if let Some(progress) = &self.progress {
            progress(done, self.sample.rows_planned.max(done));
        }
    }

    fn is_out_of_time(&self) -> bool {
        let is_over = self.began.elapsed() >= self.options.duration_max;
        if is_over {
            self.out_of_time.store(true, Ordering::Relaxed);
        }
        is_over
    }
}

fn not_aligned(file: &str) -> OfflineError {
    OfflineError::NotComparable(format!("the two versions find different rows in {file}"))
}
