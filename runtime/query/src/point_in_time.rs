//! The point-in-time join. Memory goes with the spine: the spine is indexed by entity with its times sorted, and the
//! history passes once, in any order and in any number of parts.
//!
//! A *slot* is a distinct (entity, time) of the spine. Each history row is kept, if it is the greatest, at the first slot
//! that may see it; since candidates only grow with time, the winner at a slot is the maximum over it and all earlier
//! slots of its entity, which one pass forward fills in.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, BinaryViewArray, RecordBatch, UInt32Array, new_null_array};
use arrow_schema::SchemaRef;
use eadem_semantics::{KnownAtCut, Lifetime, RowOrder};
use eadem_values::TieDigest;

use crate::QueryError;
use crate::entities::{Entities, JoinKeys, NO_ENTITY};

const NO_SLOT: u32 = u32::MAX;

/// In place of a history row's place: there is no row.
const NO_PLACE: u64 = u64::MAX;

/// Rows retained beyond twice the live ones before they are packed together.
const SLACK_ROWS: usize = 65_536;

/// Rows of one packed batch, so that no column outgrows 32-bit offsets.
const PACKED_ROWS: usize = 65_536;

/// The spine's keys and times, ready to be probed by history rows.
#[derive(Debug)]
pub struct SpineIndex {
    entities: Entities,
    /// Entity `e` owns the slots `slots_from[e]..slots_from[e + 1]`, ascending in time.
    slots_from: Vec<u32>,
    slot_times_us: Vec<i64>,
    slot_of_row: Vec<u32>,
}

/// Some history rows: the columns that decide, and what is handed on from the rows that win.
#[derive(Debug)]
pub struct HistoryRows<'a> {
    /// The join keys, in the order of the spine's.
    pub keys: &'a [ArrayRef],
    /// Event times, in microseconds.
    pub event_times_us: &'a [i64],
    /// Known-at times, in microseconds.
    pub known_at_us: &'a [i64],
    /// Tie digests, 16 bytes each. Views, because a reader of files makes them without copying the bytes, and few are looked at.
    pub ties: &'a BinaryViewArray,
    /// What is kept of a winning row. All rows of one join hand on the same kind.
    pub handed_on: HandedOn<'a>,
}

/// What a join keeps of a row that wins.
#[derive(Debug, Clone, Copy)]
pub enum HandedOn<'a> {
    /// A copy of these columns.
    Columns(&'a RecordBatch),
    /// The number under which the reader of the history finds the row again, one for each row. It must not be `u64::MAX`.
    Places(&'a [u64]),
}

impl HandedOn<'_> {
    fn rows(&self) -> usize {
        match self {
            Self::Columns(columns) => columns.num_rows(),
            Self::Places(places) => places.len(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Best {
    order: RowOrder,
    /// The row's place in the history, or among the kept batches (batch number << 32 | row).
    place: u64,
}

const NOTHING: Best = Best {
    order: RowOrder { event_time_us: i64::MIN, known_at_us: i64::MIN, tie: TieDigest::from_bytes([0; 16]) },
    place: NO_PLACE,
};

impl Best {
    fn is_row(&self) -> bool {
        self.place != NO_PLACE
    }

    fn beats(&self, other: &Self) -> bool {
        self.is_row() && (!other.is_row() || self.order > other.order)
    }

    fn kept(self) -> (usize, usize) {
        ((self.place >> 32) as usize, (self.place & u64::from(u32::MAX)) as usize)
    }
}

fn kept_place(batch: usize, row: usize) -> u64 {
    ((batch as u64) << 32) | row as u64
}

/// Finds for history rows the slots that may see them. One per thread: it keeps its memory from batch to batch.
#[derive(Debug)]
pub struct Prober {
    cut: KnownAtCut,
    lifetime: Lifetime,
    /// The entity of each row of the batch at hand.
    entities: Vec<u32>,
    found: Vec<Probe>,
}

/// A row of a batch, and the first slot that may see it.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    row: u32,
    slot: u32,
}

/// The winners among the part of the history that has been absorbed.
#[derive(Debug)]
pub struct PartialWinners {
    best: Vec<Best>,
    /// Slots that have a winner.
    live: usize,
    kept: Vec<RecordBatch>,
    kept_rows: usize,
}

/// The winner of every spine row.
#[derive(Debug)]
pub struct Winners {
    kept: Vec<RecordBatch>,
    best: Vec<Best>,
    slot_of_row: Vec<u32>,
}

impl SpineIndex {
    /// Indexes spine rows. A row with a null key belongs to no entity and finds nothing.
    ///
    /// # Errors
    /// Keys that are neither utf8 nor int64; more rows than 32 bits count.
    pub fn try_new(keys: &[ArrayRef], times_us: &[i64]) -> Result<Self, QueryError> {
        let rows = times_us.len();
        let mut entities = Entities::default();
        let mut entity_of_row = entities.add(&JoinKeys::try_new(keys, rows)?, rows)?;
        entities.number_by_key(keys, &mut entity_of_row)?;

        // Rows by entity (counting sort), then by time within each.
        let mut rows_from = vec![0_u32; entities.len() + 1];
        for entity in entity_of_row.iter().filter(|entity| **entity != NO_ENTITY) {
            rows_from[*entity as usize + 1] += 1;
        }
        for entity in 0..entities.len() {
            rows_from[entity + 1] += rows_from[entity];
        }
        let mut next = rows_from.clone();
        let mut sorted = vec![(0_i64, 0_u32); rows_from[entities.len()] as usize];
        for (row, entity) in entity_of_row.iter().enumerate().filter(|(_, entity)| **entity != NO_ENTITY) {
            let at = &mut next[*entity as usize];
            sorted[*at as usize] = (times_us[row], row as u32);
            *at += 1;
        }

        let mut slots_from = Vec::with_capacity(entities.len() + 1);
        let mut slot_times_us: Vec<i64> = Vec::with_capacity(sorted.len());
        let mut slot_of_row = vec![NO_SLOT; rows];
        for bounds in rows_from.windows(2) {
            slots_from.push(slot_times_us.len() as u32);
            let of_entity = &mut sorted[bounds[0] as usize..bounds[1] as usize];
            of_entity.sort_unstable();
            let mut previous = None;
            for (time_us, row) in of_entity {
                if previous != Some(*time_us) {
                    slot_times_us.push(*time_us);
                    previous = Some(*time_us);
                }
                slot_of_row[*row as usize] = slot_times_us.len() as u32 - 1;
            }
        }
        slots_from.push(slot_times_us.len() as u32);
        Ok(Self { entities, slots_from, slot_times_us, slot_of_row })
    }

    /// How many winners can be kept: the distinct (entity, time) pairs.
    pub fn slots(&self) -> usize {
        self.slot_times_us.len()
    }

    /// A set of winners to absorb history into.
    pub fn start(&self) -> PartialWinners {
        PartialWinners { best: vec![NOTHING; self.slots()], live: 0, kept: Vec::new(), kept_rows: 0 }
    }

    /// The first slot of the entity at or after `from_us`.
    fn first_slot(&self, entity: u32, from_us: i64) -> Option<usize> {
        let (start, end) = (self.slots_from[entity as usize] as usize, self.slots_from[entity as usize + 1] as usize);
        let slot = start + self.slot_times_us[start..end].partition_point(|time_us| *time_us < from_us);
        (slot < end).then_some(slot)
    }

    /// Carries each entity's winners forward.
    ///
    /// # Errors
    /// Winners started from another index.
    pub fn finish(self, winners: PartialWinners) -> Result<Winners, QueryError> {
        let PartialWinners { mut best, kept, .. } = winners;
        if best.len() != self.slots() {
            return Err(QueryError::Shape("winners of another spine".to_owned()));
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
        Ok(Winners { kept, best, slot_of_row: self.slot_of_row })
    }
}

impl Prober {
    /// For a join with this cut and lifetime.
    pub fn new(cut: KnownAtCut, lifetime: Lifetime) -> Self {
        Self { cut, lifetime, entities: Vec::new(), found: Vec::new() }
    }

    /// The rows of the batch that some spine row may see.
    ///
    /// # Errors
    /// Columns of other types or lengths than declared.
    pub fn probe(&mut self, index: &SpineIndex, history: &HistoryRows<'_>) -> Result<&[Probe], QueryError> {
        let rows = history.event_times_us.len();
        if history.known_at_us.len() != rows || history.ties.len() != rows || history.handed_on.rows() != rows {
            return Err(QueryError::Shape("history columns differ in length".to_owned()));
        }
        // All look-ups first, then what follows from them, so that the cache misses of many rows overlap.
        index.entities.look_up(&JoinKeys::try_new(history.keys, rows)?, rows, &mut self.entities);
        self.found.clear();
        for (row, entity) in self.entities.iter().enumerate() {
            if *entity == NO_ENTITY {
                continue;
            }
            let event_time_us = history.event_times_us[row];
            let from_us = self.cut.visible_from_times_us(event_time_us, history.known_at_us[row]);
            let slot = from_us.and_then(|from_us| index.first_slot(*entity, from_us));
            let Some(slot) = slot else { continue };
            // What is gone at the first slot that may see it is gone at every later one, and whatever it would hide is
            // older still.
            if event_time_us >= self.lifetime.oldest_readable_us(index.slot_times_us[slot]) {
                self.found.push(Probe { row: row as u32, slot: slot as u32 });
            }
        }
        Ok(&self.found)
    }
}

impl PartialWinners {
    /// Takes the rows in that a [`Prober`] of the same index has found among `history`.
    ///
    /// # Errors
    /// Tie digests of another length.
    pub fn absorb(&mut self, probes: &[Probe], history: &HistoryRows<'_>) -> Result<(), QueryError> {
        match history.handed_on {
            HandedOn::Places(places) => {
                for Probe { row, slot } in probes {
                    self.offer(history, *row, *slot, places[*row as usize])?;
                }
                Ok(())
            }
            HandedOn::Columns(columns) => {
                let batch = self.kept.len();
                let mut touched: Vec<u32> = Vec::new();
                for Probe { row, slot } in probes {
                    if self.offer(history, *row, *slot, kept_place(batch, *row as usize))? {
                        touched.push(*slot);
                    }
                }
                self.keep_winners(touched, batch, columns)
            }
        }
    }

    /// How many history rows are held. Besides the winners these are rows that have been beaten since; when there are more
    /// than 65,536 more of them than of winners, they go. Rows that are handed on by place are not held.
    pub fn rows_held(&self) -> usize {
        self.kept_rows
    }

    /// Keeps the row at the slot if it beats the one there; says whether it did.
    fn offer(&mut self, history: &HistoryRows<'_>, row: u32, slot: u32, place: u64) -> Result<bool, QueryError> {
        let (row, slot) = (row as usize, slot as usize);
        let times = (history.event_times_us[row], history.known_at_us[row]);
        let best = &mut self.best[slot];
        if best.is_row() && times < (best.order.event_time_us, best.order.known_at_us) {
            return Ok(false);
        }
        let order = RowOrder { event_time_us: times.0, known_at_us: times.1, tie: tie_at(history.ties, row)? };
        let candidate = Best { order, place };
        if !candidate.beats(best) {
            return Ok(false);
        }
        self.live += usize::from(!best.is_row());
        *best = candidate;
        Ok(true)
    }

    /// Copies the columns of the rows that still win, so that the batch itself can go.
    fn keep_winners(&mut self, mut touched: Vec<u32>, batch: usize, columns: &RecordBatch) -> Result<(), QueryError> {
        touched.sort_unstable();
        touched.dedup();
        if touched.is_empty() {
            return Ok(());
        }
        let rows: Vec<u32> = touched.iter().map(|slot| self.best[*slot as usize].kept().1 as u32).collect();
        for (position, slot) in touched.iter().enumerate() {
            self.best[*slot as usize].place = kept_place(batch, position);
        }
        self.kept_rows += rows.len();
        self.kept.push(arrow_select::take::take_record_batch(columns, &UInt32Array::from(rows))?);
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
            let picks: Vec<(usize, usize)> = slots.iter().map(|slot| self.best[*slot].kept()).collect();
            packed.push(interleave(&self.kept, &schema, &picks)?);
        }
        for (position, slot) in live.iter().enumerate() {
            self.best[*slot].place = kept_place(position / PACKED_ROWS, position % PACKED_ROWS);
        }
        self.kept = packed;
        self.kept_rows = live.len();
        Ok(())
    }
}

impl Winners {
    /// The winners' columns for a range of spine rows, one entry per row; null where nothing was found. `schema` is that of
    /// the columns that the history handed on.
    ///
    /// # Errors
    /// A history that handed on places instead.
    pub fn columns(&self, rows: Range<usize>, schema: &SchemaRef) -> Result<RecordBatch, QueryError> {
        let nothing = RecordBatch::try_new(
            Arc::clone(schema),
            schema.fields().iter().map(|field| new_null_array(field.data_type(), 1)).collect(),
        )?;
        let mut sources = self.kept.clone();
        sources.push(nothing);
        let absent = (sources.len() - 1, 0);
        let picks: Vec<(usize, usize)> = rows.map(|row| self.best_of(row).map_or(absent, |best| best.kept())).collect();
        let is_kept = |(batch, _): &(usize, usize)| *batch < sources.len();
        if !picks.iter().all(is_kept) {
            return Err(QueryError::Shape("the history handed on places, not columns".to_owned()));
        }
        interleave(&sources, schema, &picks)
    }

    /// The winner's place in the order of rows, for a spine row.
    pub fn order(&self, row: usize) -> Option<RowOrder> {
        self.best_of(row).map(|best| best.order)
    }

    /// The number that the history handed on for the winner of a spine row.
    pub fn place(&self, row: usize) -> Option<u64> {
        self.best_of(row).map(|best| best.place)
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

fn tie_at(ties: &BinaryViewArray, row: usize) -> Result<TieDigest, QueryError> {
    <[u8; 16]>::try_from(ties.value(row)).map(TieDigest::from_bytes).map_err(|_| {
        QueryError::Shape(format!("row {row}: a tie digest has 16 bytes, found {}", ties.value(row).len()))
    })
}
