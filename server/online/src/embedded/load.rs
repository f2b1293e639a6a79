//! Bulk loads: rows gather in memory, are sorted, and go to the table in key order.
//!
//! A B-tree takes rows in key order many times faster than in any other, and packs its pages full. What does not fit into
//! memory is spilled as sorted runs beside the table and merged at the end. Where the load says by what it will be trimmed,
//! rows that lose are left out as soon as rows are in order: a table without history then never sees more than one row of
//! an entity that is visible.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use eadem_semantics::TrimNewestFirst;
use tokio::sync::oneshot;

use super::directory::failed;
use super::keys;
use super::packed::PackedRows;
use super::table::{Table, beats};
use crate::{Merged, Row, StoreError, Trim};

/// How much goes to the table in one transaction: long enough to be cheap, short enough for other writers to wait.
const CHUNK_BYTES: usize = 16 * 1024 * 1024;

/// What is read of a run at once; less where there are so many that together they would take the load's memory.
const RUN_BUFFER_BYTES: std::ops::RangeInclusive<usize> = 16 * 1024..=256 * 1024;

/// Rows that were handed to a load and are not in the table yet.
pub(super) struct LoadBuffer {
    table_path: PathBuf,
    rows: PackedRows,
    /// One buffer fills while another is sorted and written out.
    buffer_bytes_max: usize,
    runs: Vec<Run>,
    runs_started: u64,
    trim: Option<Trim>,
    left_out: u64,
    /// Why rows were lost on their way to the disk.
    failure: Option<StoreError>,
}

/// A sorted file, removed when dropped.
struct Run(PathBuf);

impl Drop for Run {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "cannot remove a run of a bulk load");
        }
    }
}

/// A full buffer, and where it may be spilled to.
pub(super) struct FullBuffer {
    rows: PackedRows,
    path: PathBuf,
    trim: Option<Trim>,
    keep_bytes_max: usize,
}

/// What became of a full buffer.
pub(super) struct Settled {
    left_out: u64,
    kept: Kept,
}

enum Kept {
    /// Little enough was left to stay in memory.
    InMemory(PackedRows),
    Spilled(Run),
}

/// All that a load has gathered.
pub(super) struct Gathered {
    rows: PackedRows,
    runs: Vec<Run>,
    run_buffer_bytes: usize,
    trim: Option<Trim>,
    left_out: u64,
}

/// What a load did when it ended.
pub(super) struct LoadEnd {
    /// The trim that its rows have been through.
    pub(super) trim: Option<Trim>,
    /// Rows that the trim left out.
    pub(super) left_out: u64,
}

impl LoadBuffer {
    /// Holds at most about `bytes_max` in memory.
    pub(super) fn new(table_path: &Path, bytes_max: usize) -> Self {
        Self {
            table_path: table_path.to_owned(),
            rows: PackedRows::default(),
            buffer_bytes_max: bytes_max / 2,
            runs: Vec::new(),
            runs_started: 0,
            trim: None,
            left_out: 0,
            failure: None,
        }
    }

    /// From here on rows that this trim would remove may be left out.
    pub(super) fn announce_trim(&mut self, trim: Trim) {
        self.trim = Some(trim);
    }

    /// Takes rows in; says whether the buffer is full.
    pub(super) fn push(&mut self, rows: &[Row]) -> bool {
        rows.iter().for_each(|row| self.rows.push_row(row));
        self.is_full()
    }

    fn is_full(&self) -> bool {
        self.rows.memory_bytes() >= self.buffer_bytes_max && !self.rows.is_empty()
    }

    /// The buffer, if it is full (still: another caller may have taken it).
    pub(super) fn take_full(&mut self) -> Option<FullBuffer> {
        if !self.is_full() {
            return None;
        }
        self.runs_started += 1;
        Some(FullBuffer {
            rows: std::mem::take(&mut self.rows),
            path: self.table_path.with_extension(format!("{}.run", self.runs_started)),
            trim: self.trim,
            keep_bytes_max: self.buffer_bytes_max / 2,
        })
    }

    /// Takes back what a full buffer has become.
    pub(super) fn settle(&mut self, settled: Result<Settled, StoreError>) -> Result<(), StoreError> {
        match settled {
            Ok(Settled { left_out, kept }) => {
                self.left_out += left_out;
                match kept {
                    Kept::InMemory(rows) => self.rows.append(rows),
                    Kept::Spilled(run) => self.runs.push(run),
                }
                Ok(())
            }
            Err(error) => {
                // Rows of calls that have returned are among those that are lost.
                self.failure = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Everything since the last load ended.
    ///
    /// # Errors
    /// Rows were lost meanwhile; they can be loaded again.
    pub(super) fn take(&mut self) -> Result<Gathered, StoreError> {
        let gathered = Gathered {
            rows: std::mem::take(&mut self.rows),
            runs: std::mem::take(&mut self.runs),
            run_buffer_bytes: self.buffer_bytes_max,
            trim: self.trim.take(),
            left_out: std::mem::take(&mut self.left_out),
        };
        self.failure.take().map_or(Ok(gathered), Err)
    }
}

impl FullBuffer {
    /// Sorts the rows, and spills those that are left unless they are few; blocks.
    pub(super) fn settle(mut self) -> Result<Settled, StoreError> {
        self.rows.sort();
        let mut survivors = Survivors::new(self.trim);
        if self.trim.is_some() {
            let kept = survivors.of_sorted(&self.rows);
            self.rows.select(&kept);
        }
        let left_out = survivors.left_out;
        if self.rows.selected_bytes() <= self.keep_bytes_max {
            return Ok(Settled { left_out, kept: Kept::InMemory(self.rows.compacted()) });
        }
        let run = self.write().map_err(|error| failed("spilling a bulk load to", &self.path, error))?;
        Ok(Settled { left_out, kept: Kept::Spilled(run) })
    }

    fn write(&self) -> std::io::Result<Run> {
        let mut file = BufWriter::with_capacity(1024 * 1024, File::create(&self.path)?);
        let run = Run(self.path.clone());
        for (key, body) in self.rows.iter() {
            // Lengths fit: keys and bodies are bounded when they come in.
            file.write_all(&(key.len() as u32).to_le_bytes())?;
            file.write_all(&(body.len() as u32).to_le_bytes())?;
            file.write_all(key)?;
            file.write_all(body)?;
        }
        file.flush()?;
        Ok(run)
    }
}

impl Gathered {
    /// Hands everything to the table in key order; blocks.
    pub(super) fn load_into(mut self, table: &Table) -> Result<LoadEnd, StoreError> {
        self.rows.sort();
        let buffer_bytes = self.run_buffer_bytes / self.runs.len().max(1);
        let buffer_bytes = buffer_bytes.clamp(*RUN_BUFFER_BYTES.start(), *RUN_BUFFER_BYTES.end());
        let mut sources = Vec::with_capacity(self.runs.len() + 1);
        for run in &self.runs {
            sources.push(Source::of_run(&run.0, buffer_bytes)?);
        }
        sources.push(Source::of_memory(self.rows));
        let mut survivors = Survivors::new(self.trim);
        let mut chunks = Chunks { table, filling: PackedRows::default(), writing: None };
        survivors.of_merged(&mut MergedRows::new(sources)?, |key, body| chunks.push(key, body))?;
        chunks.finish()?;
        Ok(LoadEnd { trim: self.trim, left_out: self.left_out + survivors.left_out })
    }
}

/// Rows on their way to the table, a chunk at a time: while one is written, the next one fills.
struct Chunks<'a> {
    table: &'a Table,
    filling: PackedRows,
    writing: Option<oneshot::Receiver<Result<Merged, StoreError>>>,
}

impl Chunks<'_> {
    fn push(&mut self, key: &[u8], body: &[u8]) -> Result<(), StoreError> {
        self.filling.push(key, body);
        if self.filling.bytes() >= CHUNK_BYTES { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> Result<(), StoreError> {
        let chunk = std::mem::take(&mut self.filling);
        let writing = self.table.load_blocking(chunk)?;
        // No more than two on their way.
        match self.writing.replace(writing) {
            Some(before) => wait_for(before),
            None => Ok(()),
        }
    }

    fn finish(mut self) -> Result<(), StoreError> {
        if !self.filling.is_empty() {
            self.send()?;
        }
        self.writing.map_or(Ok(()), wait_for)
    }
}

fn wait_for(writing: oneshot::Receiver<Result<Merged, StoreError>>) -> Result<(), StoreError> {
    writing.blocking_recv().map_err(|_| StoreError::Closed)?.map(|_| ())
}

/// Decides about rows that come in key order which of them stay.
struct Survivors {
    trim: Option<Trim>,
    entity: Vec<u8>,
    of_entity: TrimNewestFirst,
    left_out: u64,
}

impl Survivors {
    fn new(trim: Option<Trim>) -> Self {
        Self { trim, entity: Vec::new(), of_entity: TrimNewestFirst::new(i64::MIN), left_out: 0 }
    }

    /// Whether the row of this key stays. Each key comes once.
    fn keeps(&mut self, row_key: &[u8]) -> bool {
        let Some(trim) = self.trim else { return true };
        let Some((entity, order)) = keys::parse_row_key(row_key) else { return true };
        if entity != self.entity {
            self.entity.clear();
            self.entity.extend_from_slice(entity);
            self.of_entity = TrimNewestFirst::new(trim.complete_since_us);
        }
        let stays = self.of_entity.keeps(&order) && !trim.forgets(&order);
        self.left_out += u64::from(!stays);
        stays
    }

    /// The numbers of those that stay of sorted rows, each once.
    fn of_sorted(&mut self, rows: &PackedRows) -> Vec<usize> {
        let mut kept = Vec::new();
        let mut next = 0;
        while next < rows.len() {
            let key = rows.get(next).0;
            let mut greatest = next;
            next += 1;
            while next < rows.len() && rows.get(next).0 == key {
                if beats(rows.get(next).1, rows.get(greatest).1) {
                    greatest = next;
                }
                next += 1;
            }
            if self.keeps(key) {
                kept.push(greatest);
            }
        }
        kept
    }

    /// Shows those that stay of rows that are being merged, each once.
    fn of_merged(
        &mut self,
        rows: &mut MergedRows,
        mut show: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut row = Buffered::default();
        let mut other = Buffered::default();
        if !rows.take(&mut row)? {
            return Ok(());
        }
        loop {
            let has_other = rows.take(&mut other)?;
            if has_other && other.key == row.key {
                if beats(&other.body, &row.body) {
                    std::mem::swap(&mut row.body, &mut other.body);
                }
                continue;
            }
            if self.keeps(&row.key) {
                show(&row.key, &row.body)?;
            }
            if !has_other {
                return Ok(());
            }
            std::mem::swap(&mut row, &mut other);
        }
    }
}

/// A row in memory that is used again and again.
#[derive(Default)]
struct Buffered {
    key: Vec<u8>,
    body: Vec<u8>,
}

/// Sorted rows, from a run or from memory.
struct Source {
    from: From,
    head: Buffered,
}

enum From {
    Run { file: BufReader<File>, path: PathBuf },
    Memory { rows: PackedRows, next: usize },
}

impl Source {
    fn of_run(path: &Path, buffer_bytes: usize) -> Result<Self, StoreError> {
        let file = File::open(path).map_err(|error| failed("opening", path, error))?;
        let from = From::Run { file: BufReader::with_capacity(buffer_bytes, file), path: path.to_owned() };
        Ok(Self { from, head: Buffered::default() })
    }

    fn of_memory(rows: PackedRows) -> Self {
        Self { from: From::Memory { rows, next: 0 }, head: Buffered::default() }
    }

    /// Reads the next row into the head; says whether there was one.
    fn advance(&mut self) -> Result<bool, StoreError> {
        match &mut self.from {
            From::Memory { rows, next } => {
                if *next == rows.len() {
                    return Ok(false);
                }
                let (key, body) = rows.get(*next);
                *next += 1;
                fill(&mut self.head.key, key);
                fill(&mut self.head.body, body);
                Ok(true)
            }
            From::Run { file, path } => read_row(file, &mut self.head).map_err(|error| failed("reading", path, error)),
        }
    }
}

fn fill(buffer: &mut Vec<u8>, bytes: &[u8]) {
    buffer.clear();
    buffer.extend_from_slice(bytes);
}

fn read_row(file: &mut impl Read, row: &mut Buffered) -> std::io::Result<bool> {
    let mut lengths = [0; 8];
    match file.read_exact(&mut lengths) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(false),
        Err(error) => return Err(error),
    }
    let [a, b, c, d, e, f, g, h] = lengths;
    row.key.resize(u32::from_le_bytes([a, b, c, d]) as usize, 0);
    row.body.resize(u32::from_le_bytes([e, f, g, h]) as usize, 0);
    file.read_exact(&mut row.key)?;
    file.read_exact(&mut row.body)?;
    Ok(true)
}

/// Several sorted sources as one: those that have rows, the one with the least key first.
struct MergedRows(BinaryHeap<Reverse<Source>>);

impl MergedRows {
    fn new(sources: Vec<Source>) -> Result<Self, StoreError> {
        let mut heap = BinaryHeap::with_capacity(sources.len());
        for mut source in sources {
            if source.advance()? {
                heap.push(Reverse(source));
            }
        }
        Ok(Self(heap))
    }

    /// Moves the least row into `row`; says whether there was one.
    fn take(&mut self, row: &mut Buffered) -> Result<bool, StoreError> {
        let Some(mut least) = self.0.peek_mut() else { return Ok(false) };
        std::mem::swap(row, &mut least.0.head);
        if !least.0.advance()? {
            PeekMut::pop(least);
        }
        Ok(true)
    }
}

/// By the key of the next row.
impl Ord for Source {
    fn cmp(&self, other: &Self) -> Ordering {
        self.head.key.cmp(&other.head.key)
    }
}

impl PartialOrd for Source {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Source {}
