//! Files of text: their bytes, and the records that stand in them.

use std::io::Write as _;

use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::{GetOptions, GetRange};

use super::Cut;
use super::files::{SourceFile, file_error};
use crate::error::OfflineError;
use crate::ledger::ChunkPart;

/// Bytes of one record. A quote that is never closed would otherwise take in the rest of the file.
pub(crate) const RECORD_BYTES_MAX: usize = 16 << 20;
/// Compressed bytes that are expanded at once: gzip may expand them a thousandfold.
const GZIP_INPUT_BYTES: usize = 256;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

pub(super) type ByteStream = BoxStream<'static, Result<Bytes, OfflineError>>;

pub(super) fn is_compressed(file: &SourceFile) -> bool {
    file.location.path.as_ref().ends_with(".gz")
}

/// The bytes of a part of a file, expanded if it is compressed.
pub(super) async fn bytes_of(file: &SourceFile, part: &ChunkPart) -> Result<ByteStream, OfflineError> {
    let range = match part {
        ChunkPart::Bytes { from, to } => Some(GetRange::Bounded(*from..*to)),
        _ => None,
    };
    if matches!(&range, Some(GetRange::Bounded(range)) if range.is_empty()) {
        return Ok(futures::stream::empty().boxed());
    }
    let options = GetOptions { range, ..GetOptions::default() };
    let object = file.location.store.get_opts(&file.location.path, options).await;
    let object = object.map_err(|error| file_error(file, error))?;
    let failed = file.clone();
    let bytes = object.into_stream().map_err(move |error| file_error(&failed, error)).boxed();
    Ok(if is_compressed(file) { expanded(file.clone(), bytes) } else { bytes })
}

struct Expansion {
    file: SourceFile,
    bytes: ByteStream,
    waiting: Bytes,
    decoder: Option<MultiGzDecoder<Vec<u8>>>,
}

fn expanded(file: SourceFile, bytes: ByteStream) -> ByteStream {
    let decoder = Some(MultiGzDecoder::new(Vec::new()));
    futures::stream::try_unfold(Expansion { file, bytes, waiting: Bytes::new(), decoder }, expand).boxed()
}

/// The next bytes; `None` at the end.
async fn expand(mut open: Expansion) -> Result<Option<(Bytes, Expansion)>, OfflineError> {
    let damaged =
        |file: &SourceFile, error: std::io::Error| file_error(file, format!("not a whole gzip file: {error}"));
    loop {
        let Some(mut decoder) = open.decoder.take() else { return Ok(None) };
        if open.waiting.is_empty() {
            let Some(bytes) = open.bytes.try_next().await? else {
                let rest = decoder.finish().map_err(|error| damaged(&open.file, error))?;
                return Ok(Some((Bytes::from(rest), open)));
            };
            open.waiting = bytes;
        }
        let input = open.waiting.split_to(open.waiting.len().min(GZIP_INPUT_BYTES));
        decoder.write_all(&input).map_err(|error| damaged(&open.file, error))?;
        let output = std::mem::take(decoder.get_mut());
        open.decoder = Some(decoder);
        if !output.is_empty() {
            return Ok(Some((Bytes::from(output), open)));
        }
    }
}

/// How records are told apart.
#[derive(Debug, Clone)]
pub(super) enum Splitter {
    /// A line each.
    Lines,
    /// RFC 4180, with this delimiter.
    Csv { delimiter: u8 },
}

/// One record: fields one after the other, and where they end.
#[derive(Debug, Default)]
pub(super) struct Record {
    data: Vec<u8>,
    /// End in `data`, and whether the field was quoted.
    fields: Vec<(usize, bool)>,
    /// What makes it unreadable.
    pub(super) fault: Option<&'static str>,
}

impl Record {
    pub(super) fn len(&self) -> usize {
        self.fields.len()
    }

    /// The bytes of a field, and whether they stood in quotes.
    pub(super) fn field(&self, at: usize) -> (&[u8], bool) {
        let start = if at == 0 { 0 } else { self.fields[at - 1].0 };
        let (end, quoted) = self.fields[at];
        (&self.data[start..end], quoted)
    }

    /// The record as one line of text, for people.
    pub(super) fn text(&self, splitter: &Splitter) -> String {
        const BYTES_MAX: usize = 4_096;
        let Splitter::Csv { delimiter } = splitter else {
            return String::from_utf8_lossy(&self.data[..self.data.len().min(BYTES_MAX)]).into_owned();
        };
        let mut text = Vec::new();
        for at in 0..self.len() {
            let (field, quoted) = self.field(at);
            if at > 0 {
                text.push(*delimiter);
            }
            if quoted {
                text.push(b'"');
                text.extend(
                    field.iter().flat_map(|byte| std::iter::repeat_n(*byte, if *byte == b'"' { 2 } else { 1 })),
                );
                text.push(b'"');
            } else {
                text.extend_from_slice(field);
            }
            if text.len() > BYTES_MAX {
                text.truncate(BYTES_MAX);
                break;
            }
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// What it takes in memory.
    fn bytes(&self) -> usize {
        self.data.len() + self.fields.len() * size_of::<(usize, bool)>()
    }

    fn end_field(&mut self, quoted: bool) {
        self.fields.push((self.data.len(), quoted));
    }

    fn clear(&mut self) {
        self.data.clear();
        self.fields.clear();
        self.fault = None;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    StartOfRecord,
    StartOfField,
    Plain,
    Quoted,
    QuoteInQuoted,
}

/// Takes bytes as they come and gives records.
#[derive(Debug)]
struct Parser {
    splitter: Splitter,
    record: Record,
    state: State,
}

impl Parser {
    fn new(splitter: Splitter) -> Self {
        Self { splitter, record: Record::default(), state: State::StartOfRecord }
    }

    /// Reads up to the end of a record. Gives how many bytes it took, and whether a record is complete.
    fn read(&mut self, input: &[u8]) -> (usize, bool) {
        match self.splitter {
            Splitter::Lines => self.read_line(input),
            Splitter::Csv { delimiter } => self.read_csv(input, delimiter),
        }
    }

    fn read_line(&mut self, input: &[u8]) -> (usize, bool) {
        if self.state == State::StartOfRecord {
            self.record.clear();
            self.state = State::Plain;
        }
        let Some(end) = input.iter().position(|byte| *byte == b'\n') else {
            self.record.data.extend_from_slice(input);
            return (input.len(), false);
        };
        self.record.data.extend_from_slice(&input[..end]);
        (end + 1, self.end_line())
    }

    /// Whether the line says anything.
    fn end_line(&mut self) -> bool {
        self.state = State::StartOfRecord;
        self.record.end_field(false);
        !self.record.data.iter().all(u8::is_ascii_whitespace)
    }

    fn read_csv(&mut self, input: &[u8], delimiter: u8) -> (usize, bool) {
        let mut at = 0;
        while at < input.len() {
            let byte = input[at];
            let ends_line = matches!(byte, b'\n' | b'\r');
            match self.state {
                State::StartOfRecord => {
                    if ends_line {
                        at += 1;
                        continue;
                    }
                    self.record.clear();
                    self.state = State::StartOfField;
                    continue;
                }
                State::StartOfField if byte == b'"' => self.state = State::Quoted,
                State::QuoteInQuoted if byte == b'"' => {
                    self.record.data.push(b'"');
                    self.state = State::Quoted;
                }
                State::Quoted => {
                    let rest = &input[at..];
                    let length = rest.iter().position(|byte| *byte == b'"').unwrap_or(rest.len());
                    self.record.data.extend_from_slice(&rest[..length]);
                    at += length;
                    if length < rest.len() {
                        self.state = State::QuoteInQuoted;
                        at += 1;
                    }
                    continue;
                }
                state if byte == delimiter => {
                    self.record.end_field(state == State::QuoteInQuoted);
                    self.state = State::StartOfField;
                }
                state if ends_line => {
                    self.record.end_field(state == State::QuoteInQuoted);
                    self.state = State::StartOfRecord;
                    return (at + 1, true);
                }
                state => {
                    if state == State::QuoteInQuoted {
                        self.record.fault = Some("text follows a closing quote");
                    }
                    let rest = &input[at..];
                    let is_end = |byte: &u8| *byte == delimiter || matches!(byte, b'\n' | b'\r');
                    let length = rest.iter().position(is_end).unwrap_or(rest.len());
                    self.record.data.extend_from_slice(&rest[..length]);
                    self.state = State::Plain;
                    at += length;
                    continue;
                }
            }
            at += 1;
        }
        (at, false)
    }

    /// The file is over. Whether a record was open.
    fn finish(&mut self) -> bool {
        if self.state == State::StartOfRecord {
            return false;
        }
        if matches!(self.splitter, Splitter::Lines) {
            return self.end_line();
        }
        if self.state == State::Quoted {
            self.record.fault = Some("a quote is never closed");
        }
        self.record.end_field(matches!(self.state, State::Quoted | State::QuoteInQuoted));
        self.state = State::StartOfRecord;
        true
    }
}

/// The records of a part of a file.
pub(super) struct Records {
    file: SourceFile,
    bytes: ByteStream,
    buffer: Bytes,
    parser: Parser,
    /// Where the next record begins, counted in the expanded file.
    offset: u64,
    is_over: bool,
    record_bytes_max: usize,
}

impl Records {
    /// A record that takes more than `record_bytes_max` ends the reading.
    pub(super) async fn open(
        file: &SourceFile,
        part: &ChunkPart,
        splitter: Splitter,
        record_bytes_max: usize,
    ) -> Result<Self, OfflineError> {
        let bytes = bytes_of(file, part).await?;
        let offset = if let ChunkPart::Bytes { from, .. } = part { *from } else { 0 };
        let mut records = Self {
            file: file.clone(),
            bytes,
            buffer: Bytes::new(),
            parser: Parser::new(splitter),
            offset,
            is_over: false,
            record_bytes_max,
        };
        if offset == 0 {
            records.skip_byte_order_mark().await?;
        }
        Ok(records)
    }

    async fn skip_byte_order_mark(&mut self) -> Result<(), OfflineError> {
        let mut start = Vec::new();
        while start.len() < BYTE_ORDER_MARK.len() {
            let Some(bytes) = self.bytes.try_next().await? else { break };
            start.extend_from_slice(&bytes);
        }
        let length = if start.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
        self.buffer = Bytes::from(start).slice(length..);
        self.offset = length as u64;
        Ok(())
    }

    /// The next record; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<&Record>, OfflineError> {
        while !self.is_over {
            if self.buffer.is_empty() {
                match self.bytes.try_next().await? {
                    Some(bytes) => self.buffer = bytes,
                    None => {
                        self.is_over = true;
                        return Ok(if self.parser.finish() { Some(&self.parser.record) } else { None });
                    }
                }
            }
            let (taken, is_complete) = self.parser.read(&self.buffer);
            let _taken = self.buffer.split_to(taken);
            self.offset += taken as u64;
            if self.parser.record.bytes() > self.record_bytes_max {
                return Err(self.too_long());
            }
            if is_complete {
                return Ok(Some(&self.parser.record));
            }
        }
        Ok(None)
    }

    fn too_long(&self) -> OfflineError {
        let what = format!("the record that ends beyond byte {} is too long; is a quote never closed?", self.offset);
        if self.record_bytes_max < RECORD_BYTES_MAX {
            return self.no_room(&what, self.record_bytes_max);
        }
        file_error(&self.file, format!("{what} No record has more than {} MiB", RECORD_BYTES_MAX >> 20))
    }

    /// A record for which there is no room.
    pub(super) fn no_room(&self, what: &str, bytes_max: usize) -> OfflineError {
        let reason = format!(
            "{what} Of the memory for jobs (setting jobs.memory_bytes_max) {bytes_max} bytes are for it: raise it, use fewer \
             threads (jobs.workers), or leave the record out"
        );
        file_error(&self.file, reason)
    }

    pub(super) fn splitter(&self) -> &Splitter {
        &self.parser.splitter
    }
}

/// Where a file of records is cut. `headers` records at its beginning are no rows. What is compressed can only be read
/// from its beginning and stays in one piece.
pub(super) async fn cut(
    file: &SourceFile,
    splitter: Splitter,
    headers: u64,
    chunk_rows: u64,
    record_bytes_max: usize,
) -> Result<Vec<Cut>, OfflineError> {
    let mut records = Records::open(file, &ChunkPart::Whole, splitter, record_bytes_max).await?;
    let mut header_rows = 0;
    while header_rows < headers && records.next().await?.is_some() {
        header_rows += 1;
    }
    let (mut cuts, mut first_row, mut row) = (Vec::new(), 0, 0);
    let mut from = records.offset;
    loop {
        let is_row = records.next().await?.is_some();
        row += u64::from(is_row);
        let rows = row - first_row;
        let is_full = !is_compressed(file) && rows >= chunk_rows.max(1);
        if rows > 0 && (is_full || !is_row) {
            let part = match is_compressed(file) {
                true => ChunkPart::Whole,
                false => ChunkPart::Bytes { from, to: records.offset },
            };
            cuts.push(Cut { part, first_row, rows });
            (first_row, from) = (row, records.offset);
        }
        if !is_row {
            return Ok(cuts);
        }
    }
}
