//! The point-in-time join. Memory goes with the spine: the spine is indexed by entity with its times sorted, and the
//! history passes once, in any order and in any number of parts.
//!
//! A *slot* is a distinct (entity, time) of the spine. Each history row is kept, if it is the greatest, at the first slot
//! that may see it; since candidates only grow with time, the winner at a slot is the maximum over it and all earlier
//! slots of its entity, which one pass forward fills in.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, BinaryArray, RecordBatch, UInt32Array, new_null_array};
use arrow_schema::{DataType as ArrowType, SchemaRef};
use eadem_semantics::{KnownAtCut, Lifetime, RowOrder};
use eadem_values::TieDigest;

use crate::QueryError;

const NO_SLOT: u32 = u32::MAX;
const NO_BATCH: u32 = u32::MAX;

/// Rows retained beyond twice the live ones before they are packed together.
const SLACK_ROWS: usize = 65_536;

/// Rows of one packed batch, so that no column outgrows 32-bit offsets.
const PACKED_ROWS: usize = 65_536;

/// The spine's keys and times, ready to be probed by history rows.
#[derive(Debug)]
pub struct SpineIndex {
    entities: HashMap<Box<[u8]>, u32>,
    /// Entity `e` owns the slots `slots_from[e]..slots_from[e + 1]`, ascending in time.
    slots_from: Vec<u32>,
    slot_times_us: Vec<i64>,
    slot_of_row: Vec<u32>,
}

/// Some history rows: the columns that decide, and those that are handed on.
#[derive(Debug)]
pub struct HistoryRows<'a> {
    /// The join keys, in the order of the spine's.
    pub keys: &'a [ArrayRef],
    /// Event times, in microseconds.
    pub event_times_us: &'a [i64],
    /// Known-at times, in microseconds.
    pub known_at_us: &'a [i64],
    /// Tie digests, 16 bytes each.
    pub ties: &'a BinaryArray,
    /// What is kept of a winning row.
    pub payload: &'a RecordBatch,
}

#[derive(Debug, Clone, Copy)]
struct Best {
    order: RowOrder,
    batch: u32,
    row: u32,
}

const NOTHING: Best = Best {
    order: RowOrder { event_time_us: i64::MIN, known_at_us: i64::MIN, tie: TieDigest::from_bytes([0; 16]) },
    batch: NO_BATCH,
    row: 0,
};

impl Best {
    fn is_row(&self) -> bool {
        self.batch != NO_BATCH
    }

    fn beats(&self, other: &Self) -> bool {
        self.is_row() && (!other.is_row() || self.order > other.order)
    }
}

/// The winners among the part of the history that has been absorbed. Parts merge by maximum.
#[derive(Debug)]
pub struct PartialWinners {
    cut: KnownAtCut,
    lifetime: Lifetime,
    best: Vec<Best>,
    /// Slots that have a winner.
    live: usize,
    kept: Vec<RecordBatch>,
    kept_rows: usize,
    scratch: Vec<u8>,
}

/// The winner of every spine row.
#[derive(Debug)]
pub struct Winners {
    kept: Vec<RecordBatch>,
    best: Vec<Best>,
    slot_of_row: Vec<u32>,
    payload_schema: SchemaRef,
}

impl SpineIndex {
    /// Indexes spine rows. A row with a null key belongs to no entity and finds nothing.
    ///
    /// # Errors
    /// Keys that are neither utf8 nor int64; more rows than 32 bits count.
    pub fn try_new(keys: &[ArrayRef], times_us: &[i64]) -> Result<Self, QueryError> {
        let rows = times_us.len();
        if rows >= NO_SLOT as usize {
            return Err(QueryError::Shape(format!("a spine of {rows} rows is too large for one join; split it")));
        }
        let mut entities: HashMap<Box<[u8]>, u32> = HashMap::new();
        let mut entity_of_row = vec![NO_SLOT; rows];
        let reader = KeyReader::try_new(keys, rows)?;
        let mut scratch = Vec::new();
        for (row, entity) in entity_of_row.iter_mut().enumerate() {
            if !reader.read(row, &mut scratch) {
                continue;
            }
            *entity = match entities.get(scratch.as_slice()) {
                Some(entity) => *entity,
                None => {
                    let next = entities.len() as u32;
                    entities.insert(scratch.clone().into_boxed_slice(), next);
                    next
                }
            };
        }
        let mut by_slot: Vec<u32> = (0..rows as u32).filter(|row| entity_of_row[*row as usize] != NO_SLOT).collect();
        by_slot.sort_unstable_by_key(|row| (entity_of_row[*row as usize], times_us[*row as usize]));

        let mut slots_from = Vec::with_capacity(entities.len() + 1);
        let mut slot_times_us = Vec::with_capacity(by_slot.len());
        let mut slot_of_row = vec![NO_SLOT; rows];
        let mut previous: Option<(u32, i64)> = None;
        for row in by_slot {
            let place = (entity_of_row[row as usize], times_us[row as usize]);
            if previous.is_none_or(|(entity, _)| entity != place.0) {
                slots_from.push(slot_times_us.len() as u32);
            }
            if previous != Some(place) {
                slot_times_us.push(place.1);
            }
            slot_of_row[row as usize] = slot_times_us.len() as u32 - 1;
            previous = Some(place);
        }
        slots_from.push(slot_times_us.len() as u32);
        Ok(Self { entities, slots_from, slot_times_us, slot_of_row })
    }

    /// How many winners can be kept: the distinct (entity, time) pairs.
    pub fn slots(&self) -> usize {
        self.slot_times_us.len()
    }

    /// A set of winners to absorb history into. One per thread; [`SpineIndex::finish`] merges them.
    pub fn start(&self, cut: KnownAtCut, lifetime: Lifetime) -> PartialWinners {
        PartialWinners {
            cut,
            lifetime,
            best: vec![NOTHING; self.slots()],
            live: 0,
            kept: Vec::new(),
            kept_rows: 0,
            scratch: Vec::new(),
        }
    }

    /// The first slot of the entity at or after `from_us`.
    fn first_slot(&self, key: &[u8], from_us: i64) -> Option<usize> {
        let entity = *self.entities.get(key)? as usize;
        let (start, end) = (self.slots_from[entity] as usize, self.slots_from[entity + 1] as usize);
        let slot = start + self.slot_times_us[start..end].partition_point(|time_us| *time_us < from_us);
        (slot < end).then_some(slot)
    }

    /// Merges the parts and carries each entity's winners forward. `payload_schema` is that of the absorbed payloads, every
    /// column nullable: a spine row may find nothing.
    ///
    /// # Errors
    /// Parts started from another index.
    pub fn finish(self, parts: Vec<PartialWinners>, payload_schema: SchemaRef) -> Result<Winners, QueryError> {
        let mut best = vec![NOTHING; self.slots()];
        let mut kept = Vec::new();
        for part in parts {
            if part.best.len() != best.len() {
                return Err(QueryError::Shape("winners of another spine".to_owned()));
            }
            let shift = kept.len() as u32;
            for (ours, theirs) in best.iter_mut().zip(&part.best) {
                if theirs.beats(ours) {
                    *ours = Best { batch: theirs.batch + shift, ..*theirs };
                }
            }
            kept.extend(part.kept);
        }
        for slots in self.slots_from.windows(2) {
            let mut so_far = NOTHING;
            for slot in &mut best[slots[0] as usize..slots[1] as usize] {
                if so_far.beats(slot) {
                    *slot = so_far;
                }
                so_far = *slot;
            }
        }
        Ok(Winners { kept, best, slot_of_row: self.slot_of_row, payload_schema })
    }
}

impl PartialWinners {
    /// Takes part of the history in.
    ///
    /// # Errors
    /// Columns of other types or lengths than declared.
    pub fn absorb(&mut self, index: &SpineIndex, history: &HistoryRows<'_>) -> Result<(), QueryError> {
        let rows = history.event_times_us.len();
        if history.known_at_us.len() != rows || history.ties.len() != rows || history.payload.num_rows() != rows {
            return Err(QueryError::Shape("history columns differ in length".to_owned()));
        }
        let reader = KeyReader::try_new(history.keys, rows)?;
        let batch = self.kept.len() as u32;
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut touched: Vec<u32> = Vec::new();
        for row in 0..rows {
            if !reader.read(row, &mut scratch) {
                continue;
            }
            let order = RowOrder {
                event_time_us: history.event_times_us[row],
                known_at_us: history.known_at_us[row],
                tie: tie_at(history.ties, row)?,
            };
            let Some(visible_from_us) = self.cut.visible_from_us(&order) else {
                continue;
            };
            let Some(slot) = index.first_slot(&scratch, visible_from_us) else {
                continue;
            };
            // What is gone at the first slot that may see it is gone at every later one, and whatever it would hide is
            // older still.
            if order.event_time_us < self.lifetime.oldest_readable_us(index.slot_times_us[slot]) {
                continue;
            }
            let candidate = Best { order, batch, row: row as u32 };
            if candidate.beats(&self.best[slot]) {
                self.live += usize::from(!self.best[slot].is_row());
                self.best[slot] = candidate;
                touched.push(slot as u32);
            }
        }
        self.scratch = scratch;
        self.keep_winners(touched, batch, history.payload)
    }

    /// How many history rows are held. Besides the winners these are rows that have been beaten since; when there are more
    /// than 65,536 more of them than of winners, they go.
    pub fn rows_held(&self) -> usize {
        self.kept_rows
    }

    /// Copies the payload of the rows that still win, so that the batch itself can go.
    fn keep_winners(&mut self, mut touched: Vec<u32>, batch: u32, payload: &RecordBatch) -> Result<(), QueryError> {
        touched.sort_unstable();
        touched.dedup();
        if touched.is_empty() {
            return Ok(());
        }
        let rows: Vec<u32> = touched.iter().map(|slot| self.best[*slot as usize].row).collect();
        for (position, slot) in touched.iter().enumerate() {
            self.best[*slot as usize] = Best { row: position as u32, batch, ..self.best[*slot as usize] };
        }
        self.kept_rows += rows.len();
        self.kept.push(arrow_select::take::take_record_batch(payload, &UInt32Array::from(rows))?);
        if self.kept_rows > 2 * self.live + SLACK_ROWS { self.pack() } else { Ok(()) }
    }

    /// Leaves only rows that still win.
    fn pack(&mut self) -> Result<(), QueryError> {
        let live: Vec<usize> = (0..self.best.len()).filter(|slot| self.best[*slot].is_row()).collect();
        let Some(schema) = self.kept.first().map(RecordBatch::schema) else {
            return Ok(());
        };
        let mut packed = Vec::with_capacity(live.len().div_ceil(PACKED_ROWS));
        for slots in live.chunks(PACKED_ROWS) {
            let picks: Vec<(usize, usize)> =
                slots.iter().map(|slot| (self.best[*slot].batch as usize, self.best[*slot].row as usize)).collect();
            packed.push(interleave(&self.kept, &schema, &picks)?);
        }
        for (position, slot) in live.iter().enumerate() {
            self.best[*slot].batch = (position / PACKED_ROWS) as u32;
            self.best[*slot].row = (position % PACKED_ROWS) as u32;
        }
        self.kept = packed;
        self.kept_rows = live.len();
        Ok(())
    }
}

impl Winners {
    /// The winners' payload for a range of spine rows, one entry per row; null where nothing was found.
    ///
    /// # Errors
    /// Only what the columnar library reports.
    pub fn payload(&self, rows: Range<usize>) -> Result<RecordBatch, QueryError> {
        let nothing = RecordBatch::try_new(
            self.payload_schema.clone(),
            self.payload_schema.fields().iter().map(|field| new_null_array(field.data_type(), 1)).collect(),
        )?;
        let mut sources = self.kept.clone();
        sources.push(nothing);
        let absent = (sources.len() - 1, 0);
        let picks: Vec<(usize, usize)> =
            rows.map(|row| self.best_of(row).map_or(absent, |best| (best.batch as usize, best.row as usize))).collect();
        interleave(&sources, &self.payload_schema, &picks)
    }

    /// The winner's place in the order of rows, for a spine row.
    pub fn order(&self, row: usize) -> Option<RowOrder> {
        self.best_of(row).map(|best| best.order)
    }

    fn best_of(&self, row: usize) -> Option<&Best> {
        let slot = *self.slot_of_row.get(row)?;
        self.best.get(slot as usize).filter(|best| best.is_row())
    }
}

fn interleave(
    batches: &[RecordBatch],
    schema: &SchemaRef,
    picks: &[(usize, usize)],
) -> Result<RecordBatch, QueryError> {
    let columns = (0..schema.fields().len())
        .map(|column| {
            let sources: Vec<&dyn Array> = batches.iter().map(|batch| batch.column(column).as_ref()).collect();
            arrow_select::interleave::interleave(&sources, picks)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let options = arrow_array::RecordBatchOptions::new().with_row_count(Some(picks.len()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

fn tie_at(ties: &BinaryArray, row: usize) -> Result<TieDigest, QueryError> {
    <[u8; 16]>::try_from(ties.value(row)).map(TieDigest::from_bytes).map_err(|_| {
        QueryError::Shape(format!("row {row}: a tie digest has 16 bytes, found {}", ties.value(row).len()))
    })
}

/// Reads the key of a row as bytes: injective within one list of key types, and without allocation.
struct KeyReader<'a> {
    columns: Vec<KeyColumn<'a>>,
}

enum KeyColumn<'a> {
    Utf8(&'a arrow_array::StringArray),
    Int64(&'a arrow_array::Int64Array),
}

impl<'a> KeyReader<'a> {
    fn try_new(keys: &'a [ArrayRef], rows: usize) -> Result<Self, QueryError> {
        let columns = keys
            .iter()
            .map(|key| match key.data_type() {
                _ if key.len() != rows => {
                    Err(QueryError::Shape(format!("a key column has {} rows, not {rows}", key.len())))
                }
                ArrowType::Utf8 => Ok(KeyColumn::Utf8(key.as_string::<i32>())),
                ArrowType::Int64 => Ok(KeyColumn::Int64(key.as_primitive::<Int64Type>())),
                other => Err(QueryError::Shape(format!("a join key is utf8 or int64, not {other}"))),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { columns })
    }

    /// False if a part of the key is null.
    fn read(&self, row: usize, bytes: &mut Vec<u8>) -> bool {
        bytes.clear();
        let several = self.columns.len() > 1;
        for column in &self.columns {
            match column {
                KeyColumn::Utf8(texts) => {
                    if texts.is_null(row) {
                        return false;
                    }
                    let text = texts.value(row).as_bytes();
                    if several {
                        bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
                    }
                    bytes.extend_from_slice(text);
                }
                KeyColumn::Int64(numbers) => {
                    if numbers.is_null(row) {
                        return false;
                    }
                    bytes.extend_from_slice(&numbers.value(row).to_le_bytes());
                }
            }
        }
        true
    }
}
