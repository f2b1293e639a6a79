//! Reading a quarantine table: what was refused, what has become of it since.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow_schema::{ArrowError, DataType as ArrowType};
use deltalake_core::logstore::LogStoreRef;
use eadem_values::DataType;
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::path::Path;
use parquet::arrow::ProjectionMask;
use parquet::arrow::async_reader::ParquetRecordBatchStreamBuilder;
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::statistics::Statistics;
use serde::{Deserialize, Serialize};

use super::replay::Loaded;
use super::{
    ARRIVAL, ATTEMPT, FILE, INPUTS, JOB, KIND, LANE, OUTCOME, QuarantinedRow, REASON, ROW, RefusalCounts, RowOutcome,
};
use crate::backfill::{Room, counted, reading_within};
use crate::erasure::{ErasedRows, ErasureLedger};
use crate::error::OfflineError;
use crate::location::{Location, OfflineStore};
use crate::object_file::ObjectFile;
use crate::partition::TAG_LANE;
use crate::table::{ViewTable, load, open_log, table_error};

pub(super) const BATCH_ROWS: usize = 8_192;

/// Reads a file of the table.
type FileReader = ParquetRecordBatchStreamBuilder<ObjectFile>;

/// The refused rows of a view version.
#[derive(Debug, Clone)]
pub struct Quarantine {
    pub(super) location: Location,
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(super) log_store: LogStoreRef,
    /// `name@version`.
    view: String,
    erasures: Option<Arc<dyn ErasureLedger>>,
}

/// Which refused rows are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineFilter {
    /// Those that this job has refused.
    pub job: Option<String>,
    /// Those whose reason has this text in it.
    pub reason: Option<String>,
    /// Those of lanes that begin with this text.
    pub lane: Option<String>,
    /// Those of this number in their file.
    pub row: Option<i64>,
    /// Also those that a replay has settled, or that other jobs have refused again or loaded since.
    pub settled: bool,
}

/// How a refused row stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryState {
    /// It was refused, and nothing has become of it since.
    Refused,
    /// A replay has stored it.
    Replayed,
    /// A replay's transform has dropped it.
    Dropped,
    /// Another job has refused it since, or a replay has; that refusal is an entry of its own.
    RefusedAgain,
    /// Another job has loaded its file since and has not refused it.
    LoadedSince,
}

/// A refusal, and what has become of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuarantineEntry {
    /// The refusal.
    #[serde(flatten)]
    pub row: QuarantinedRow,
    /// How it stands.
    pub state: EntryState,
    /// The job that has settled it, or refused it again.
    pub settled_by: Option<String>,
}

/// Where a list of entries goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuarantineCursor {
    /// The table's version that is listed.
    pub version: u64,
    /// Position of the file, the newest first.
    pub file: usize,
    /// Row of the file.
    pub row: usize,
}

/// Some entries, newest jobs first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QuarantinePage {
    /// The version that was read; `None`: nothing was ever refused.
    pub version: Option<u64>,
    /// The entries.
    pub entries: Vec<QuarantineEntry>,
    /// Where the next page begins; `None`: there are no more.
    pub next: Option<QuarantineCursor>,
}

/// What is in quarantine, in numbers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QuarantineSummary {
    /// The version that was read; `None`: nothing was ever refused.
    pub version: Option<u64>,
    /// Rows that are refused now, by reason.
    pub refused: RefusalCounts,
    /// Rows that replays have stored.
    pub replayed: u64,
    /// Rows that replays' transforms have dropped.
    pub dropped: u64,
}

impl fmt::Display for QuarantineCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.version, self.file, self.row)
    }
}

impl FromStr for QuarantineCursor {
    type Err = OfflineError;

    fn from_str(text: &str) -> Result<Self, OfflineError> {
        let bad = || OfflineError::Quarantine(format!("`{text}` is no cursor; take it from the page before"));
        let mut parts = text.split('.');
        let mut next = || parts.next().ok_or_else(bad);
        let (version, file, row) = (next()?, next()?, next()?);
        if parts.next().is_some() {
            return Err(bad());
        }
        Ok(Self {
            version: version.parse().map_err(|_| bad())?,
            file: file.parse().map_err(|_| bad())?,
            row: row.parse().map_err(|_| bad())?,
        })
    }
}

impl QuarantineFilter {
    pub(super) fn takes(&self, line: &Line<'_>) -> bool {
        let job = line.job();
        // A job of several views names each of its parts `<job>/<view>`.
        let is_job = |wanted: &String| {
            job.strip_prefix(wanted.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.job.as_ref().is_none_or(is_job)
            && self.row.is_none_or(|wanted| wanted == line.row_number())
            && self.lane.as_ref().is_none_or(|wanted| line.lane().starts_with(wanted.as_str()))
            && self.reason.as_ref().is_none_or(|wanted| line.kind().contains(wanted) || line.reason().contains(wanted))
    }
}

/// A version of a quarantine table.
#[derive(Debug)]
pub(super) struct State {
    pub(super) version: u64,
    /// The newest job's first.
    files: Vec<LogFile>,
}

#[derive(Debug)]
struct LogFile {
    path: String,
    bytes: u64,
    arrival: String,
    /// The one lane of all its lines, as backfills write them; `None`: there may be several.
    lane: Option<String>,
    /// Whether replays may have written lines of it; most files hold refusals of backfills only.
    may_hold_replays: bool,
}

impl State {
    /// The files that hold lines of rows of which others may hold lines too: those of replays, and of lanes that several jobs
    /// have refused rows of.
    fn disputed_files(&self) -> Vec<&LogFile> {
        let mut arrivals: HashMap<&str, BTreeSet<&str>> = HashMap::new();
        for file in &self.files {
            if let Some(lane) = &file.lane {
                arrivals.entry(lane).or_default().insert(&file.arrival);
            }
        }
        let is_disputed = |file: &&LogFile| match &file.lane {
            Some(lane) => arrivals.get(lane.as_str()).is_some_and(|arrivals| arrivals.len() > 1),
            None => true,
        };
        self.files.iter().filter(is_disputed).collect()
    }
}

/// A line of the table, still in its batch.
pub(super) struct Line<'a> {
    columns: &'a Lines,
    row: usize,
}

/// A batch of lines. Columns that were not asked for are empty.
struct Lines {
    texts: [StringArray; 6],
    row: Int64Array,
    arrival: TimestampMicrosecondArray,
    attempt: Int64Array,
}

/// The columns of text, in the order of [`Lines::texts`].
const TEXTS: [&str; 6] = [KIND, REASON, FILE, LANE, JOB, OUTCOME];

impl<'a> Line<'a> {
    fn text(&self, column: usize) -> &'a str {
        let texts = &self.columns.texts[column];
        if texts.is_empty() { "" } else { texts.value(self.row) }
    }

    pub(super) fn kind(&self) -> &'a str {
        self.text(0)
    }

    pub(super) fn reason(&self) -> &'a str {
        self.text(1)
    }

    pub(super) fn file(&self) -> &'a str {
        self.text(2)
    }

    pub(super) fn lane(&self) -> &'a str {
        self.text(3)
    }

    pub(super) fn job(&self) -> &'a str {
        self.text(4)
    }

    fn outcome(&self) -> &'a str {
        self.text(5)
    }

    pub(super) fn row_number(&self) -> i64 {
        self.columns.row.value(self.row)
    }

    pub(super) fn arrival_us(&self) -> i64 {
        self.columns.arrival.value(self.row)
    }

    pub(super) fn attempt(&self) -> i64 {
        self.columns.attempt.value(self.row)
    }

    fn is_refusal(&self) -> bool {
        self.outcome() == RowOutcome::Refused.as_str()
    }
}

/// Lines by row: the last word about each.
#[derive(Debug, Default)]
pub(super) struct LastWords {
    lanes: HashMap<String, u32>,
    last: HashMap<(u32, i64), LastWord>,
}

#[derive(Debug, Clone)]
struct LastWord {
    arrival_us: i64,
    attempt: i64,
    outcome: RowOutcome,
    job: Arc<str>,
}

/// What a word takes among the others, about.
const WORD_BYTES: usize = 96;

impl LastWords {
    /// What all words take in memory, about.
    pub(super) fn bytes(&self) -> usize {
        self.last.len() * WORD_BYTES
    }

    fn note(&mut self, line: &Line<'_>, job: Arc<str>) -> Result<(), OfflineError> {
        let outcome = RowOutcome::from_name(line.outcome()).ok_or_else(|| {
            OfflineError::Quarantine(format!("`{}` is no outcome; something else wrote the table", line.outcome()))
        })?;
        let count = u32::try_from(self.lanes.len()).unwrap_or(u32::MAX);
        let lane = match self.lanes.get(line.lane()) {
            Some(lane) => *lane,
            None => *self.lanes.entry(line.lane().to_owned()).or_insert(count),
        };
        let word = LastWord { arrival_us: line.arrival_us(), attempt: line.attempt(), outcome, job };
        let last = self.last.entry((lane, line.row_number())).or_insert_with(|| word.clone());
        if (word.arrival_us, word.attempt) > (last.arrival_us, last.attempt) {
            *last = word;
        }
        Ok(())
    }

    /// What has become of a refusal; `None`: it stands.
    fn of(&self, line: &Line<'_>) -> Option<&LastWord> {
        let lane = self.lanes.get(line.lane())?;
        let last = self.last.get(&(*lane, line.row_number()))?;
        ((last.arrival_us, last.attempt) > (line.arrival_us(), line.attempt())).then_some(last)
    }

    /// Whether a refusal is still one.
    pub(super) fn leaves(&self, line: &Line<'_>) -> bool {
        line.is_refusal() && self.of(line).is_none()
    }
}

impl OfflineStore {
    /// The quarantine of a view version, whether anything is in it or not.
    ///
    /// # Errors
    /// A name that no location can have.
    pub fn quarantine(&self, view: &str, version: u32) -> Result<Quarantine, OfflineError> {
        let location = self.quarantine_location(view, version)?;
        let (store, log_store) = open_log(&location);
        let erasures = self.erasures.clone();
        Ok(Quarantine { location, store, log_store, view: format!("{view}@{version}"), erasures })
    }
}

impl Quarantine {
    /// The current version; `None` if nothing was ever refused.
    ///
    /// # Errors
    /// A log that cannot be read.
    pub async fn version(&self) -> Result<Option<u64>, OfflineError> {
        Ok(self.state(None).await?.map(|state| state.version))
    }

    /// What is erased of the view's entity type, for readers.
    async fn erased(&self) -> Result<Option<ErasedRows>, OfflineError> {
        ErasedRows::of_view(self.erasures.as_ref(), &self.view, false).await
    }

    /// What is erased of it by now, by whichever process: for writers.
    pub(crate) async fn erased_now(&self) -> Result<Option<ErasedRows>, OfflineError> {
        ErasedRows::of_view(self.erasures.as_ref(), &self.view, true).await
    }

    /// Entries from a cursor on, newest jobs first; at most `limit`. `table` is the view's: it says what was loaded since.
    ///
    /// # Errors
    /// A cursor of no page; a table that cannot be read.
    pub async fn page(
        &self,
        table: &ViewTable,
        filter: &QuarantineFilter,
        from: Option<QuarantineCursor>,
        limit: usize,
    ) -> Result<QuarantinePage, OfflineError> {
        let Some(state) = self.state(from.map(|cursor| cursor.version)).await? else {
            return Ok(QuarantinePage::default());
        };
        let fates = self.fates(table, &state).await?;
        let erased = self.erased().await?;
        let mut page = QuarantinePage { version: Some(state.version), ..QuarantinePage::default() };
        let first = from.map_or((0, 0), |cursor| (cursor.file, cursor.row));
        for file in first.0..state.files.len() {
            let skipped = if file == first.0 { first.1 } else { 0 };
            let mut batches = self.batches(&state.files[file], &ALL, skipped, |_| true, None).await?;
            let mut at = skipped;
            while let Some(batch) = batches.try_next().await? {
                let (lines, inputs) = (Lines::of(&batch)?, text_column(&batch, INPUTS)?);
                for row in 0..batch.num_rows() {
                    let line = Line { columns: &lines, row };
                    let is_meant = line.is_refusal() && filter.takes(&line);
                    let is_erased = || erased.as_ref().is_some_and(|erased| erased.takes_kept(inputs.value(row)));
                    let fate = if is_meant { fates.of(&line, inputs.value(row)) } else { None };
                    if is_meant && (filter.settled || fate.is_none()) && !is_erased() {
                        if page.entries.len() == limit {
                            page.next = Some(QuarantineCursor { version: state.version, file, row: at });
                            return Ok(page);
                        }
                        page.entries.push(entry(&line, inputs.value(row), fate));
                    }
                    at += 1;
                }
            }
        }
        Ok(page)
    }

    /// How many rows are refused, and how many replays have settled. `table` is the view's: it says what was loaded since.
    ///
    /// # Errors
    /// A table that cannot be read.
    pub async fn summary(&self, table: &ViewTable) -> Result<QuarantineSummary, OfflineError> {
        let Some(state) = self.state(None).await? else { return Ok(QuarantineSummary::default()) };
        let fates = self.fates(table, &state).await?;
        let mut summary = QuarantineSummary { version: Some(state.version), ..QuarantineSummary::default() };
        let erased = self.erased().await?;
        let mut columns = vec![KIND, LANE, ROW, ARRIVAL, OUTCOME, ATTEMPT];
        if erased.is_some() || fates.loaded.needs_times() {
            columns.push(INPUTS);
        }
        let mut visit = |line: &Line<'_>, inputs: &str| {
            let is_erased = || erased.as_ref().is_some_and(|erased| erased.takes_kept(inputs));
            if line.is_refusal() && fates.of(line, inputs).is_none() && !is_erased() {
                match summary.refused.get_mut(line.kind()) {
                    Some(rows) => *rows += 1,
                    None => {
                        summary.refused.insert(line.kind().to_owned(), 1);
                    }
                }
            }
            Ok(())
        };
        self.visit(&state, &columns, None, &mut visit).await?;
        for word in fates.words.last.values() {
            match word.outcome {
                RowOutcome::Replayed => summary.replayed += 1,
                RowOutcome::Dropped => summary.dropped += 1,
                RowOutcome::Refused => {}
            }
        }
        Ok(summary)
    }

    pub(super) async fn state(&self, version: Option<u64>) -> Result<Option<State>, OfflineError> {
        let Some(mut table) = load(&self.location, &self.log_store).await? else { return Ok(None) };
        let current = table.version().unwrap_or_default();
        if let Some(version) = version {
            if version > current {
                return Err(OfflineError::Quarantine(format!(
                    "there is no version {version} of {}",
                    self.location.url
                )));
            }
            table.load_version(version).await.map_err(|error| table_error(&self.location, error))?;
        }
        let snapshot = table.snapshot().map_err(|error| table_error(&self.location, error))?;
        let mut files: Vec<LogFile> = snapshot
            .log_data()
            .iter()
            .map(|file| {
                let stats = file.stats().map(|stats| stats.to_string()).unwrap_or_default();
                let stats: serde_json::Value = serde_json::from_str(&stats).unwrap_or_default();
                // The columns that would replace it cannot give tags.
                #[allow(deprecated)]
                let tags = file.add_action().tags;
                LogFile {
                    path: file.object_store_path().to_string(),
                    bytes: u64::try_from(file.size()).unwrap_or_default(),
                    arrival: stats["maxValues"][ARRIVAL].as_str().unwrap_or_default().to_owned(),
                    lane: tags.and_then(|mut tags| tags.remove(TAG_LANE)).flatten(),
                    may_hold_replays: stats["maxValues"][ATTEMPT].as_i64() != Some(0),
                }
            })
            .collect();
        files.sort_by(|one, other| (&other.arrival, &one.path).cmp(&(&one.arrival, &other.path)));
        Ok(Some(State { version: snapshot.version(), files }))
    }

    /// Shows all lines with these columns, and with their kept inputs if they are asked for.
    pub(super) async fn visit(
        &self,
        state: &State,
        columns: &[&str],
        room: Option<&Room>,
        visit: &mut (dyn FnMut(&Line<'_>, &str) -> Result<(), OfflineError> + Send),
    ) -> Result<(), OfflineError> {
        let with_inputs = columns.contains(&INPUTS);
        for file in &state.files {
            let mut batches = self.batches(file, columns, 0, |_| true, room).await?;
            while let Some(batch) = batches.try_next().await? {
                let lines = Lines::of(&batch)?;
                let inputs = if with_inputs { Some(text_column(&batch, INPUTS)?) } else { None };
                for row in 0..batch.num_rows() {
                    let kept = inputs.as_ref().map_or("", |inputs| inputs.value(row));
                    visit(&Line { columns: &lines, row }, kept)?;
                }
            }
        }
        Ok(())
    }

    /// What replays say. They are few beside the refusals of backfills, which are not read for it.
    pub(super) async fn replayed(&self, state: &State) -> Result<LastWords, OfflineError> {
        let mut words = LastWords::default();
        for file in state.files.iter().filter(|file| file.may_hold_replays) {
            self.note_words(file, may_hold_replays, |line| line.attempt() > 0, &mut words).await?;
        }
        Ok(words)
    }

    /// What has become of the refused rows.
    async fn fates(&self, table: &ViewTable, state: &State) -> Result<Fates, OfflineError> {
        let mut words = LastWords::default();
        for file in state.disputed_files() {
            self.note_words(file, |_| true, |_| true, &mut words).await?;
        }
        Ok(Fates { words, loaded: Loaded::of(table).await? })
    }

    /// Notes lines of a file.
    async fn note_words(
        &self,
        file: &LogFile,
        is_needed: fn(&RowGroupMetaData) -> bool,
        is_word: fn(&Line<'_>) -> bool,
        words: &mut LastWords,
    ) -> Result<(), OfflineError> {
        let columns = [LANE, ROW, ARRIVAL, JOB, OUTCOME, ATTEMPT];
        let mut batches = self.batches(file, &columns, 0, is_needed, None).await?;
        let mut job: Arc<str> = Arc::from("");
        while let Some(batch) = batches.try_next().await? {
            let lines = Lines::of(&batch)?;
            for line in (0..batch.num_rows()).map(|row| Line { columns: &lines, row }).filter(is_word) {
                if *job != *line.job() {
                    job = Arc::from(line.job());
                }
                words.note(&line, job.clone())?;
            }
        }
        Ok(())
    }

    /// A file of the table before it is read, and what makes an error of the file out of what is wrong with it.
    pub(super) async fn open_file(
        &self,
        path: &str,
        bytes: u64,
    ) -> Result<(FileReader, impl Fn(ParquetError) -> OfflineError + use<>), OfflineError> {
        let url = format!("{}/{path}", self.location.url);
        let damaged = move |error: ParquetError| OfflineError::File {
            file: url.clone(),
            reason: format!("a data file of the quarantine table cannot be read: {error}"),
        };
        let file = ObjectFile { store: self.store.clone(), path: Path::from(path), bytes, local: None };
        let builder = ParquetRecordBatchStreamBuilder::new(file).await.map_err(&damaged)?;
        Ok((builder, damaged))
    }

    async fn batches(
        &self,
        file: &LogFile,
        columns: &[&str],
        skipped_rows: usize,
        is_needed: fn(&RowGroupMetaData) -> bool,
        room: Option<&Room>,
    ) -> Result<impl futures::Stream<Item = Result<RecordBatch, OfflineError>> + Unpin + use<>, OfflineError> {
        let (builder, damaged) = self.open_file(&file.path, file.bytes).await?;
        let schema = builder.schema();
        let roots = columns.iter().map(|name| schema.index_of(name)).collect::<Result<Vec<_>, _>>()?;
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        let groups = builder.metadata().row_groups().iter().enumerate();
        let (numbers, groups): (Vec<usize>, Vec<&RowGroupMetaData>) =
            groups.filter(|(_, group)| is_needed(group)).unzip();
        let no_room =
            |reason: String| OfflineError::File { file: format!("{}/{}", self.location.url, file.path), reason };
        let (reading, held) = reading_within(room, groups, &mask, BATCH_ROWS).map_err(no_room)?;
        let stream = builder
            .with_projection(mask)
            .with_row_groups(numbers)
            .with_offset(skipped_rows)
            .with_batch_size(reading.batch_rows)
            .build()
            .map_err(&damaged)?;
        Ok(counted(held, reading.largest_bytes, stream.map_err(damaged)))
    }
}

const ALL: [&str; 10] = [KIND, REASON, FILE, LANE, ROW, INPUTS, ARRIVAL, JOB, OUTCOME, ATTEMPT];

/// Whether lines of replays may be in a row group, by its statistics.
fn may_hold_replays(group: &RowGroupMetaData) -> bool {
    let attempt = group.columns().iter().find(|column| column.column_path().string() == ATTEMPT);
    match attempt.and_then(|column| column.statistics()) {
        Some(Statistics::Int64(statistics)) => statistics.max_opt().is_none_or(|max| *max > 0),
        _ => true,
    }
}

/// What has become of a refusal.
struct Fate<'a> {
    state: EntryState,
    /// The job that says so.
    job: &'a str,
}

/// What tells what has become of refusals: later lines of the same rows, and later loads of their files.
struct Fates {
    words: LastWords,
    loaded: Loaded,
}

impl Fates {
    /// What has become of a refusal; `None`: it stands.
    fn of(&self, line: &Line<'_>, inputs: &str) -> Option<Fate<'_>> {
        if let Some(word) = self.words.of(line) {
            let state = match word.outcome {
                RowOutcome::Replayed => EntryState::Replayed,
                RowOutcome::Dropped => EntryState::Dropped,
                RowOutcome::Refused => EntryState::RefusedAgain,
            };
            return Some(Fate { state, job: &word.job });
        }
        let since = self.loaded.since(line.lane(), line.arrival_us(), inputs)?;
        Some(Fate { state: EntryState::LoadedSince, job: &since.job })
    }
}

fn entry(line: &Line<'_>, inputs: &str, fate: Option<Fate<'_>>) -> QuarantineEntry {
    QuarantineEntry {
        state: fate.as_ref().map_or(EntryState::Refused, |fate| fate.state),
        settled_by: fate.map(|fate| fate.job.to_owned()),
        row: QuarantinedRow {
            kind: line.kind().to_owned(),
            reason: line.reason().to_owned(),
            file: line.file().to_owned(),
            lane: line.lane().to_owned(),
            row: line.row_number(),
            inputs: inputs.to_owned(),
            arrival_us: line.arrival_us(),
            job: line.job().to_owned(),
            outcome: RowOutcome::Refused,
            attempt: line.attempt(),
        },
    }
}

fn typed(batch: &RecordBatch, name: &str, data_type: &ArrowType) -> Result<ArrayRef, OfflineError> {
    let Some(column) = batch.column_by_name(name) else { return Ok(arrow_array::new_empty_array(data_type)) };
    if column.null_count() > 0 {
        let reason = format!("column `{name}` of a quarantine table has a null; something else wrote it");
        return Err(ArrowError::SchemaError(reason).into());
    }
    if column.data_type() == data_type { Ok(column.clone()) } else { Ok(arrow_cast::cast(column, data_type)?) }
}

fn text_column(batch: &RecordBatch, name: &str) -> Result<StringArray, OfflineError> {
    Ok(typed(batch, name, &ArrowType::Utf8)?.as_string::<i32>().clone())
}

impl Lines {
    fn of(batch: &RecordBatch) -> Result<Self, OfflineError> {
        let [kind, reason, file, lane, job, outcome] = TEXTS.map(|name| text_column(batch, name));
        Ok(Self {
            texts: [kind?, reason?, file?, lane?, job?, outcome?],
            row: typed(batch, ROW, &ArrowType::Int64)?.as_primitive::<Int64Type>().clone(),
            arrival: typed(batch, ARRIVAL, &DataType::Timestamp.to_arrow())?
                .as_primitive::<TimestampMicrosecondType>()
                .clone(),
            attempt: typed(batch, ATTEMPT, &ArrowType::Int64)?.as_primitive::<Int64Type>().clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_read_as_they_are_written() {
        let cursor = QuarantineCursor { version: 3, file: 0, row: 70_000 };
        assert_eq!(cursor.to_string().parse::<QuarantineCursor>().ok(), Some(cursor));
        for text in ["", "1", "1.2", "1.2.3.4", "1.2.-3", "a.b.c"] {
            assert!(text.parse::<QuarantineCursor>().is_err(), "{text}");
        }
    }
}
