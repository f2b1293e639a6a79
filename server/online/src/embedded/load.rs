//! Bulk loads: rows gather in memory, are sorted, and go to the table in key order.
//!
//! A B-tree takes rows in key order several times faster than in any other, and packs its pages full. What does not fit
//! into memory is spilled as sorted runs beside the table and merged at the end.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use super::directory::failed;
use super::table::{EncodedRow, Table};
use crate::StoreError;

/// How much goes to the table in one transaction: long enough to be cheap, short enough for other writers to wait.
const CHUNK_BYTES: usize = 16 * 1024 * 1024;
/// What a row takes in memory beside its bytes, about.
const ROW_OVERHEAD_BYTES: usize = 64;

/// Rows that were handed to a load and are not in the table yet.
pub(super) struct LoadBuffer {
    table_path: PathBuf,
    rows: Vec<EncodedRow>,
    bytes: usize,
    bytes_max: usize,
    runs: Vec<Run>,
    runs_started: u64,
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

/// Rows to spill, and where.
pub(super) struct Spill {
    rows: Vec<EncodedRow>,
    path: PathBuf,
}

/// All that a load has gathered.
pub(super) struct Gathered {
    rows: Vec<EncodedRow>,
    runs: Vec<Run>,
}

impl LoadBuffer {
    /// Holds at most about `bytes_max` in memory.
    pub(super) fn new(table_path: &Path, bytes_max: usize) -> Self {
        let table_path = table_path.to_owned();
        Self { table_path, rows: Vec::new(), bytes: 0, bytes_max, runs: Vec::new(), runs_started: 0 }
    }

    /// Takes rows in; gives back a full buffer to be spilled.
    pub(super) fn push(&mut self, rows: Vec<EncodedRow>) -> Option<Spill> {
        self.bytes += rows.iter().map(|row| row.bytes() + ROW_OVERHEAD_BYTES).sum::<usize>();
        self.rows.extend(rows);
        if self.bytes < self.bytes_max {
            return None;
        }
        self.bytes = 0;
        self.runs_started += 1;
        let path = self.table_path.with_extension(format!("{}.run", self.runs_started));
        Some(Spill { rows: std::mem::take(&mut self.rows), path })
    }

    pub(super) fn add_run(&mut self, run: SpilledRun) {
        self.runs.push(run.0);
    }

    pub(super) fn take(&mut self) -> Gathered {
        self.bytes = 0;
        Gathered { rows: std::mem::take(&mut self.rows), runs: std::mem::take(&mut self.runs) }
    }
}

/// A run that was written.
pub(super) struct SpilledRun(Run);

impl Spill {
    /// Sorts the rows and writes them out; blocks.
    pub(super) fn write(mut self) -> Result<SpilledRun, StoreError> {
        sort(&mut self.rows);
        let write = || -> std::io::Result<Run> {
            let mut file = BufWriter::with_capacity(1024 * 1024, File::create(&self.path)?);
            let run = Run(self.path.clone());
            for row in &self.rows {
                put_bytes(&mut file, &row.key)?;
                put_bytes(&mut file, &row.body)?;
            }
            file.flush()?;
            Ok(run)
        };
        write().map(SpilledRun).map_err(|error| failed("spilling a bulk load to", &self.path, error))
    }
}

impl Gathered {
    /// Hands everything to the table in key order; blocks.
    pub(super) fn load_into(mut self, table: &Table) -> Result<(), StoreError> {
        sort(&mut self.rows);
        let mut sources: Vec<Source> = Vec::with_capacity(self.runs.len() + 1);
        for run in &self.runs {
            sources.push(Source::of_run(&run.0)?);
        }
        sources.push(Source::Memory(self.rows.into_iter()));
        let mut chunk = Vec::new();
        let mut chunk_bytes = 0;
        for row in MergedRows::new(sources)? {
            let row = row?;
            chunk_bytes += row.bytes();
            chunk.push(row);
            if chunk_bytes >= CHUNK_BYTES {
                table.load_blocking(std::mem::take(&mut chunk))?;
                chunk_bytes = 0;
            }
        }
        if chunk.is_empty() { Ok(()) } else { table.load_blocking(chunk) }
    }
}

/// Each call's rows come sorted; the stable sort makes use of that.
fn sort(rows: &mut [EncodedRow]) {
    rows.sort_by(|a, b| a.key.cmp(&b.key));
}

/// Sorted rows, from a run or from memory.
enum Source {
    Run { file: BufReader<File>, path: PathBuf },
    Memory(std::vec::IntoIter<EncodedRow>),
}

impl Source {
    fn of_run(path: &Path) -> Result<Self, StoreError> {
        let file = File::open(path).map_err(|error| failed("opening", path, error))?;
        Ok(Self::Run { file: BufReader::with_capacity(256 * 1024, file), path: path.to_owned() })
    }

    fn next(&mut self) -> Result<Option<EncodedRow>, StoreError> {
        match self {
            Self::Memory(rows) => Ok(rows.next()),
            Self::Run { file, path } => read_row(file).map_err(|error| failed("reading", path, error)),
        }
    }
}

/// Several sorted sources as one.
struct MergedRows {
    sources: Vec<Source>,
    heads: BinaryHeap<Reverse<Head>>,
    body_of: Vec<Vec<u8>>,
}

/// The next key of a source.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Head {
    key: Vec<u8>,
    source: usize,
}

impl MergedRows {
    fn new(sources: Vec<Source>) -> Result<Self, StoreError> {
        let heads = BinaryHeap::with_capacity(sources.len());
        let body_of = sources.iter().map(|_| Vec::new()).collect();
        let mut merged = Self { sources, heads, body_of };
        for source in 0..merged.sources.len() {
            merged.advance(source)?;
        }
        Ok(merged)
    }

    fn advance(&mut self, source: usize) -> Result<(), StoreError> {
        if let Some(EncodedRow { key, body }) = self.sources[source].next()? {
            self.heads.push(Reverse(Head { key, source }));
            self.body_of[source] = body;
        }
        Ok(())
    }
}

impl Iterator for MergedRows {
    type Item = Result<EncodedRow, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let Reverse(Head { key, source }) = self.heads.pop()?;
        let body = std::mem::take(&mut self.body_of[source]);
        Some(self.advance(source).map(|()| EncodedRow { key, body }))
    }
}

// Lengths fit: keys and bodies are bounded when they come in.
fn put_bytes(file: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
    file.write_all(&(bytes.len() as u32).to_le_bytes())?;
    file.write_all(bytes)
}

fn read_row(file: &mut impl Read) -> std::io::Result<Option<EncodedRow>> {
    let mut length = [0; 4];
    match file.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut key = vec![0; u32::from_le_bytes(length) as usize];
    file.read_exact(&mut key)?;
    file.read_exact(&mut length)?;
    let mut body = vec![0; u32::from_le_bytes(length) as usize];
    file.read_exact(&mut body)?;
    Ok(Some(EncodedRow { key, body }))
}
