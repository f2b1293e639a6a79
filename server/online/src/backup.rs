//! A backup of online tables: one stream of bytes, written once and checked whole before anything of it is used.
//!
//! ```text
//! eadem online backup 1\n
//! frames:  kind (u8) · length (u32, little-endian) · payload
//!   H      the header as JSON: which tables, and what they hold for certain
//!   R      rows of one table: its place in the header (u32), then per row the lengths of key and body (u32 each), event
//!          time and known-at (i64 each), tie digest (16 bytes), key, body
//!   E      erasures: per entry the view's digest (32 bytes), the length of the key (u32), up to when (i64), the key
//!   Z      the end as JSON: rows of each table and erasures; then the digest of all frames before it and of this JSON
//! ```
//!
//! The digest goes from frame to frame: that of a frame is SHA-256 over the one before it, the frame's kind and its payload.

use std::io::{ErrorKind, Read, Write};

use bytes::Bytes;
use eadem_semantics::RowOrder;
use eadem_values::{Digest, TieDigest};
use serde::{Deserialize, Serialize};

use crate::{Coverage, KEY_BYTES_MAX, KeyBytes, Row, RowBody, StoreError, TableId, VALUE_BYTES_MAX};

const MAGIC: &[u8] = b"eadem online backup ";
const FORMAT_VERSION: u32 = 1;

/// Rows gather until a frame has about this many bytes.
const FRAME_BYTES: usize = 1024 * 1024;
/// No frame is longer: a full one, and one more row of the largest size.
const FRAME_BYTES_MAX: usize = FRAME_BYTES + KEY_BYTES_MAX + 2 * VALUE_BYTES_MAX;
const DIGEST_BYTES: usize = 32;
const ROW_HEAD_BYTES: usize = 4 + 4 + 8 + 8 + 16;

/// A table in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackedUpTable {
    /// `name@version` of the view.
    pub view: String,
    /// The table that it was.
    pub table: TableId,
    /// When the registry made the epoch, in microseconds: epochs of several registries may have one number.
    pub epoch_created_at_us: i64,
    /// What its rows hold, as the registry names it: features or bound inputs.
    pub placement: String,
    /// What the table held for certain.
    pub coverage: Coverage,
    /// Rows that it had.
    pub rows: u64,
}

/// What a backup says of itself at its beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupHeader {
    /// When it was made, in microseconds.
    pub made_at_us: i64,
    /// The version of the canonical row encoding.
    pub row_encoding: u32,
    /// Its tables.
    pub tables: Vec<BackedUpTable>,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct BackupEnd {
    rows: Vec<u64>,
    erasures: u64,
}

/// An entity that was erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erasure {
    /// The view.
    pub view: Digest,
    /// The entity.
    pub key: KeyBytes,
    /// Up to (and with) this event time.
    pub up_to_us: i64,
}

/// Why a backup could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// Something else.
    #[error("it is no backup of an online store")]
    NotABackup,
    /// Written by a newer release.
    #[error("it has format {found}, and this release reads up to {supported}; use a newer release")]
    TooNew {
        /// The format found.
        found: u32,
        /// The newest that this release reads.
        supported: u32,
    },
    /// Cut off or changed.
    #[error("it is damaged: {0}; use another backup")]
    Damaged(String),
    /// The disk.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The store that is backed up.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn damaged(what: impl Into<String>) -> BackupError {
    BackupError::Damaged(what.into())
}

/// The digest that goes from frame to frame.
struct Chain([u8; DIGEST_BYTES]);

impl Chain {
    fn new() -> Self {
        Self([0; DIGEST_BYTES])
    }

    fn add(&mut self, kind: u8, payload: &[u8]) {
        let text = [self.0.as_slice(), &[kind], payload].concat();
        self.0 = *Digest::of(&text).as_bytes();
    }
}

/// Writes a backup.
pub struct BackupWriter<W: Write> {
    to: W,
    chain: Chain,
    /// Rows of one table that make no full frame yet.
    rows: Vec<u8>,
    rows_of: usize,
    end: BackupEnd,
}

impl<W: Write> BackupWriter<W> {
    /// Begins one.
    ///
    /// # Errors
    /// The disk's.
    pub fn begin(mut to: W, header: &BackupHeader) -> Result<Self, BackupError> {
        to.write_all(MAGIC)?;
        to.write_all(format!("{FORMAT_VERSION}\n").as_bytes())?;
        let end = BackupEnd { rows: vec![0; header.tables.len()], erasures: 0 };
        let mut writer = Self { to, chain: Chain::new(), rows: Vec::new(), rows_of: 0, end };
        writer.frame(b'H', &serde_json::to_vec(header).map_err(std::io::Error::from)?)?;
        Ok(writer)
    }

    /// Adds rows of the header's `table`-th table.
    ///
    /// # Errors
    /// The disk's.
    pub fn rows(&mut self, table: usize, rows: &[Row]) -> Result<(), BackupError> {
        if table != self.rows_of {
            self.flush_rows()?;
            self.rows_of = table;
        }
        for row in rows {
            if self.rows.is_empty() {
                // Fits: a header lists far fewer tables.
                self.rows.extend_from_slice(&(table as u32).to_le_bytes());
            }
            put_row(&mut self.rows, row);
            if self.rows.len() >= FRAME_BYTES {
                self.flush_rows()?;
            }
        }
        if let Some(count) = self.end.rows.get_mut(table) {
            *count += rows.len() as u64;
        }
        Ok(())
    }

    fn flush_rows(&mut self) -> Result<(), BackupError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let mut rows = std::mem::take(&mut self.rows);
        self.frame(b'R', &rows)?;
        rows.clear();
        self.rows = rows;
        Ok(())
    }

    /// Adds erasures, behind the rows.
    ///
    /// # Errors
    /// The disk's.
    pub fn erasures(&mut self, erasures: &[Erasure]) -> Result<(), BackupError> {
        self.flush_rows()?;
        let mut payload = Vec::new();
        for erasure in erasures {
            payload.extend_from_slice(erasure.view.as_bytes());
            payload.extend_from_slice(&(erasure.key.as_slice().len() as u32).to_le_bytes());
            payload.extend_from_slice(&erasure.up_to_us.to_le_bytes());
            payload.extend_from_slice(erasure.key.as_slice());
            if payload.len() >= FRAME_BYTES {
                self.frame(b'E', &payload)?;
                payload.clear();
            }
        }
        self.end.erasures += erasures.len() as u64;
        if payload.is_empty() { Ok(()) } else { self.frame(b'E', &payload) }
    }

    /// Ends it; gives what it was written to, and its digest.
    ///
    /// # Errors
    /// The disk's.
    pub fn finish(mut self) -> Result<(W, Digest), BackupError> {
        self.flush_rows()?;
        let end = serde_json::to_vec(&self.end).map_err(std::io::Error::from)?;
        self.chain.add(b'Z', &end);
        let payload = [end.as_slice(), &self.chain.0].concat();
        put_frame(&mut self.to, b'Z', &payload)?;
        self.to.flush()?;
        Ok((self.to, Digest::from_bytes(self.chain.0)))
    }

    fn frame(&mut self, kind: u8, payload: &[u8]) -> Result<(), BackupError> {
        self.chain.add(kind, payload);
        put_frame(&mut self.to, kind, payload)
    }
}

fn put_frame(to: &mut impl Write, kind: u8, payload: &[u8]) -> Result<(), BackupError> {
    to.write_all(&[kind])?;
    // Fits: see `FRAME_BYTES_MAX`; a header is far shorter.
    to.write_all(&(payload.len() as u32).to_le_bytes())?;
    to.write_all(payload)?;
    Ok(())
}

fn put_row(bytes: &mut Vec<u8>, row: &Row) {
    // Keys and bodies are bounded when they come into a store.
    bytes.extend_from_slice(&(row.key.as_slice().len() as u32).to_le_bytes());
    bytes.extend_from_slice(&(row.body.encoded_bytes() as u32).to_le_bytes());
    bytes.extend_from_slice(&row.order.event_time_us.to_le_bytes());
    bytes.extend_from_slice(&row.order.known_at_us.to_le_bytes());
    bytes.extend_from_slice(row.order.tie.as_bytes());
    bytes.extend_from_slice(row.key.as_slice());
    row.body.encode_into(bytes);
}

/// A part of a backup.
#[derive(Debug, PartialEq, Eq)]
pub enum BackupPart {
    /// Rows of a table.
    Rows {
        /// Its place in the header.
        table: usize,
        /// The rows.
        rows: Vec<Row>,
    },
    /// Erasures, to be made before any row is read.
    Erasures(Vec<Erasure>),
}

/// Reads a backup.
pub struct BackupReader<R: Read> {
    from: R,
    chain: Chain,
    header: BackupHeader,
    counted: BackupEnd,
    digest: Option<Digest>,
}

impl<R: Read> BackupReader<R> {
    /// Reads the header. Nothing of it is certain before all parts were read.
    ///
    /// # Errors
    /// Something that is no backup, or one of a newer release.
    pub fn open(mut from: R) -> Result<Self, BackupError> {
        let mut magic = vec![0; MAGIC.len()];
        from.read_exact(&mut magic).map_err(|error| cut_off_or(error, || BackupError::NotABackup))?;
        if magic != MAGIC {
            return Err(BackupError::NotABackup);
        }
        let found = read_version(&mut from)?;
        if found > FORMAT_VERSION {
            return Err(BackupError::TooNew { found, supported: FORMAT_VERSION });
        }
        if found < FORMAT_VERSION {
            return Err(damaged("it names a format that never was"));
        }
        let mut chain = Chain::new();
        let (kind, payload) = read_frame(&mut from)?;
        chain.add(kind, &payload);
        if kind != b'H' {
            return Err(damaged("it does not begin with its header"));
        }
        let header: BackupHeader =
            serde_json::from_slice(&payload).map_err(|error| damaged(format!("its header is unreadable: {error}")))?;
        let counted = BackupEnd { rows: vec![0; header.tables.len()], erasures: 0 };
        Ok(Self { from, chain, header, counted, digest: None })
    }

    /// What the backup says of itself.
    pub fn header(&self) -> &BackupHeader {
        &self.header
    }

    /// The digest, once everything was read.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The next part; `None` at the end, when everything was found to be as it was written.
    ///
    /// # Errors
    /// A backup that was cut off or changed.
    pub fn next_part(&mut self) -> Result<Option<BackupPart>, BackupError> {
        if self.digest.is_some() {
            return Ok(None);
        }
        let (kind, payload) = read_frame(&mut self.from)?;
        if kind == b'Z' {
            self.check_end(&payload)?;
            return Ok(None);
        }
        self.chain.add(kind, &payload);
        match kind {
            b'R' => self.take_rows(&payload).map(Some),
            b'E' => self.take_erasures(&payload).map(Some),
            kind => Err(damaged(format!("a frame of unknown kind {kind}"))),
        }
    }

    fn take_rows(&mut self, payload: &[u8]) -> Result<BackupPart, BackupError> {
        let ends_early = || damaged("a row ends early");
        let (table, mut rest) = payload.split_first_chunk::<4>().ok_or_else(ends_early)?;
        let table = u32::from_le_bytes(*table) as usize;
        let mut rows = Vec::new();
        while !rest.is_empty() {
            let (row, after) = parse_row(rest).ok_or_else(ends_early)?;
            rows.push(row);
            rest = after;
        }
        let count = self.counted.rows.get_mut(table).ok_or_else(|| damaged("rows of a table that the header lacks"))?;
        *count += rows.len() as u64;
        Ok(BackupPart::Rows { table, rows })
    }

    fn take_erasures(&mut self, payload: &[u8]) -> Result<BackupPart, BackupError> {
        let mut rest = payload;
        let mut erasures = Vec::new();
        while !rest.is_empty() {
            let (erasure, after) = parse_erasure(rest).ok_or_else(|| damaged("an erasure ends early"))?;
            erasures.push(erasure);
            rest = after;
        }
        self.counted.erasures += erasures.len() as u64;
        Ok(BackupPart::Erasures(erasures))
    }

    fn check_end(&mut self, payload: &[u8]) -> Result<(), BackupError> {
        let (end, digest) =
            payload.split_last_chunk::<DIGEST_BYTES>().ok_or_else(|| damaged("it has no digest at its end"))?;
        self.chain.add(b'Z', end);
        if self.chain.0 != *digest {
            return Err(damaged("its digest is another one than when it was made"));
        }
        let end: BackupEnd =
            serde_json::from_slice(end).map_err(|error| damaged(format!("its end is unreadable: {error}")))?;
        if end != self.counted {
            return Err(damaged("it has another number of rows or erasures than when it was made"));
        }
        if self.from.read(&mut [0])? != 0 {
            return Err(damaged("something follows its end"));
        }
        self.digest = Some(Digest::from_bytes(*digest));
        Ok(())
    }
}

fn read_version(from: &mut impl Read) -> Result<u32, BackupError> {
    let mut text = String::new();
    loop {
        let mut byte = [0];
        from.read_exact(&mut byte).map_err(|error| cut_off_or(error, || BackupError::NotABackup))?;
        match byte[0] {
            b'\n' => return text.parse().map_err(|_| BackupError::NotABackup),
            digit if digit.is_ascii_digit() && text.len() < 9 => text.push(digit.into()),
            _ => return Err(BackupError::NotABackup),
        }
    }
}

fn cut_off_or(error: std::io::Error, cut_off: impl FnOnce() -> BackupError) -> BackupError {
    if error.kind() == ErrorKind::UnexpectedEof { cut_off() } else { error.into() }
}

fn read_frame(from: &mut impl Read) -> Result<(u8, Vec<u8>), BackupError> {
    let cut_off = |error| cut_off_or(error, || damaged("it ends early"));
    let mut head = [0; 5];
    from.read_exact(&mut head).map_err(cut_off)?;
    let [kind, a, b, c, d] = head;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(damaged("a frame is longer than any"));
    }
    let mut payload = vec![0; length];
    from.read_exact(&mut payload).map_err(cut_off)?;
    Ok((kind, payload))
}

fn parse_row(bytes: &[u8]) -> Option<(Row, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<ROW_HEAD_BYTES>()?;
    let (key_bytes, head) = head.split_first_chunk::<4>()?;
    let (body_bytes, head) = head.split_first_chunk::<4>()?;
    let (event_time, head) = head.split_first_chunk::<8>()?;
    let (known_at, tie) = head.split_first_chunk::<8>()?;
    let (key, rest) = rest.split_at_checked(u32::from_le_bytes(*key_bytes) as usize)?;
    let (body, rest) = rest.split_at_checked(u32::from_le_bytes(*body_bytes) as usize)?;
    let order = RowOrder {
        event_time_us: i64::from_le_bytes(*event_time),
        known_at_us: i64::from_le_bytes(*known_at),
        tie: TieDigest::from_bytes(tie.try_into().ok()?),
    };
    Some((Row { key: KeyBytes::new(Bytes::copy_from_slice(key)), order, body: RowBody::decode(body)? }, rest))
}

fn parse_erasure(bytes: &[u8]) -> Option<(Erasure, &[u8])> {
    let (view, rest) = bytes.split_first_chunk::<DIGEST_BYTES>()?;
    let (key_bytes, rest) = rest.split_first_chunk::<4>()?;
    let (up_to, rest) = rest.split_first_chunk::<8>()?;
    let (key, rest) = rest.split_at_checked(u32::from_le_bytes(*key_bytes) as usize)?;
    let erasure = Erasure {
        view: Digest::from_bytes(*view),
        key: KeyBytes::new(Bytes::copy_from_slice(key)),
        up_to_us: i64::from_le_bytes(*up_to),
    };
    Some((erasure, rest))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn header() -> BackupHeader {
        let table = |view: u8| BackedUpTable {
            view: format!("view{view}@1"),
            table: TableId { view: Digest::of(&[view]), epoch: 3 },
            epoch_created_at_us: 7,
            placement: "on_write".to_owned(),
            coverage: Coverage { offline_commit: Some(5), ..Coverage::since(-1) },
            rows: 3,
        };
        BackupHeader { made_at_us: 11, row_encoding: 1, tables: vec![table(0), table(1)] }
    }

    fn row(number: u8) -> Row {
        let order = RowOrder {
            event_time_us: -i64::from(number),
            known_at_us: i64::MAX,
            tie: TieDigest::from_bytes([number; 16]),
        };
        let body = match number % 2 {
            0 => RowBody::of_values(vec![number; usize::from(number)]),
            _ => RowBody::of_error("trap"),
        };
        Row { key: KeyBytes::new(vec![b'k', number]), order, body }
    }

    fn erasure() -> Erasure {
        Erasure { view: Digest::of(&[0]), key: KeyBytes::new(&b"gone"[..]), up_to_us: -3 }
    }

    fn backup() -> Vec<u8> {
        let mut writer = BackupWriter::begin(Vec::new(), &header()).unwrap();
        writer.rows(0, &[row(0), row(1)]).unwrap();
        writer.rows(0, &[row(2)]).unwrap();
        writer.rows(1, &[row(3)]).unwrap();
        writer.erasures(&[erasure()]).unwrap();
        writer.finish().unwrap().0
    }

    fn read(bytes: &[u8]) -> Result<Vec<BackupPart>, BackupError> {
        let mut reader = BackupReader::open(bytes)?;
        assert_eq!(*reader.header(), header());
        let mut parts = Vec::new();
        while let Some(part) = reader.next_part()? {
            parts.push(part);
        }
        assert!(reader.digest().is_some());
        Ok(parts)
    }

    #[test]
    fn what_was_written_is_read() {
        let expected = [
            BackupPart::Rows { table: 0, rows: vec![row(0), row(1), row(2)] },
            BackupPart::Rows { table: 1, rows: vec![row(3)] },
            BackupPart::Erasures(vec![erasure()]),
        ];
        assert_eq!(read(&backup()).unwrap(), expected);
    }

    #[test]
    fn every_byte_counts() {
        let sound = backup();
        for cut in 0..sound.len() {
            assert!(BackupReader::open(&sound[..cut]).is_err() || read(&sound[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..sound.len() {
            let mut changed = sound.clone();
            changed[at] ^= 1;
            // The header is only looked at here: what it says is not certain before the end.
            let outcome = BackupReader::open(changed.as_slice()).and_then(|mut reader| {
                while reader.next_part()?.is_some() {}
                Ok(())
            });
            assert!(outcome.is_err(), "byte {at} changed");
        }
        let longer = [sound.as_slice(), b"x"].concat();
        assert!(read(&longer).unwrap_err().to_string().contains("follows"), "longer");
    }

    #[test]
    fn other_files_and_newer_formats_are_named() {
        assert!(matches!(BackupReader::open(&b"PAR1 and more than that"[..]).err().unwrap(), BackupError::NotABackup));
        assert!(matches!(BackupReader::open(&b""[..]).err().unwrap(), BackupError::NotABackup));
        let newer = BackupReader::open(&b"eadem online backup 2\nwhatever"[..]).err().unwrap();
        assert!(matches!(newer, BackupError::TooNew { found: 2, supported: 1 }));
    }
}
