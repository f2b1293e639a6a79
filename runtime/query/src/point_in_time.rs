//! The point-in-time join. Memory goes with the spine: the spine is indexed by entity with its times sorted, and the
//! history passes once, in any order and in any number of parts.
//!
//! A *slot* is a distinct (entity, time) of the spine. Each history row is kept, if it is the greatest, at the first slot
//! that may see it; since candidates only grow with time, the winner at a slot is the maximum over it and all earlier
//! slots of its entity, which one pass forward fills in.
//!
//! Of a history row only its keys, its times and its place are looked at. Rows with equal times have the same first slot,
//! where their tie digests decide; these are asked for by place, for such rows alone.

use std::ops::Range;

use arrow_array::ArrayRef;
use arrow_buffer::{BooleanBufferBuilder, NullBuffer};
use eadem_semantics::{KnownAtCut, Lifetime};
use eadem_values::TieDigest;

use crate::QueryError;
use crate::entities::{Entities, JoinKeys, NO_ENTITY};

const NO_SLOT: u32 = u32::MAX;

/// In place of a history row's place: there is no row.
const NO_PLACE: u64 = u64::MAX;

/// The spine's keys and times, ready to be probed by history rows.
#[derive(Debug)]
pub struct SpineIndex {
    entities: Entities,
    /// Entity `e` owns the slots `slots_from[e]..slots_from[e + 1]`, ascending in time.
    slots_from: Vec<u32>,
    slot_times_us: Vec<i64>,
    slot_of_row: Vec<u32>,
}

/// Some history rows.
#[derive(Debug)]
pub struct HistoryRows<'a> {
    /// The join keys, in the order of the spine's.
    pub keys: &'a [ArrayRef],
    /// Event times, in microseconds.
    pub event_times_us: &'a [i64],
    /// Known-at times, in microseconds.
    pub known_at_us: &'a [i64],
    /// The numbers under which the reader of the history finds the rows again. No two rows have the same, and none has
    /// `u64::MAX`.
    pub places: &'a [u64],
}

#[derive(Debug, Clone, Copy)]
struct Best {
    event_time_us: i64,
    known_at_us: i64,
    place: u64,
}

const NOTHING: Best = Best { event_time_us: i64::MIN, known_at_us: i64::MIN, place: NO_PLACE };

impl Best {
    fn is_row(&self) -> bool {
        self.place != NO_PLACE
    }

    fn times_us(&self) -> (i64, i64) {
        (self.event_time_us, self.known_at_us)
    }

    /// Whether its times are the later ones.
    fn is_after(&self, other: &Self) -> bool {
        self.is_row() && (!other.is_row() || self.times_us() > other.times_us())
    }
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
    level: Vec<LevelRow>,
}

/// A row that has the times of the row which was the best of its slot when it came.
#[derive(Debug, Clone, Copy)]
struct LevelRow {
    slot: u32,
    row: Best,
}

/// Rows that only their tie digests tell apart.
#[derive(Debug)]
pub struct LevelRows {
    rows: Vec<LevelRow>,
    places: Vec<u64>,
}

/// The winner of every spine row.
#[derive(Debug)]
pub struct Winners {
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
        PartialWinners { best: vec![NOTHING; self.slots()], level: Vec::new() }
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
    /// Winners started from another index; rows among them that are not settled.
    pub fn finish(self, winners: PartialWinners) -> Result<Winners, QueryError> {
        let PartialWinners { mut best, level } = winners;
        if best.len() != self.slots() {
            return Err(QueryError::Shape("winners of another spine".to_owned()));
        }
        if !level.is_empty() {
            return Err(QueryError::Shape(format!(
                "{} rows have the times of a winner and no tie digest",
                level.len()
            )));
        }
        for slots in self.slots_from.windows(2) {
            let mut so_far = NOTHING;
            for slot in &mut best[slots[0] as usize..slots[1] as usize] {
                // Rows with the same times have the same first slot, so that times suffice between slots.
                if so_far.is_after(slot) {
                    *slot = so_far;
                }
                so_far = *slot;
            }
        }
        Ok(Winners { best, slot_of_row: self.slot_of_row })
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
        if history.known_at_us.len() != rows || history.places.len() != rows {
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
    pub fn absorb(&mut self, probes: &[Probe], history: &HistoryRows<'_>) {
        for Probe { row, slot } in probes {
            let at = *row as usize;
            let row = Best {
                event_time_us: history.event_times_us[at],
                known_at_us: history.known_at_us[at],
                place: history.places[at],
            };
            let best = &mut self.best[*slot as usize];
            if row.is_after(best) {
                *best = row;
            } else if row.times_us() == best.times_us() {
                self.level.push(LevelRow { slot: *slot, row });
            }
        }
    }

    /// How many rows wait to be told from a winner.
    pub fn level_rows(&self) -> usize {
        self.level.len()
    }

    /// Hands out the rows that are level with the winner of their slot. Those that were beaten since are forgotten.
    pub fn take_level(&mut self) -> LevelRows {
        let mut rows = std::mem::take(&mut self.level);
        rows.retain(|level| self.best_at(level).times_us() == level.row.times_us());
        let mut places: Vec<u64> = rows.iter().flat_map(|level| [level.row.place, self.best_at(level).place]).collect();
        places.sort_unstable();
        places.dedup();
        LevelRows { rows, places }
    }

    /// Lets the tie digests decide that were read for [`LevelRows::places`]. Rows whose winner has changed meanwhile for
    /// another with the same times wait again.
    ///
    /// # Errors
    /// Another number of digests.
    pub fn settle(&mut self, level: LevelRows, ties: &[TieDigest]) -> Result<(), QueryError> {
        let LevelRows { rows, places } = level;
        if ties.len() != places.len() {
            return Err(QueryError::Shape(format!("{} tie digests for {} rows", ties.len(), places.len())));
        }
        let tie_of = |place: u64| places.binary_search(&place).ok().map(|at| ties[at]);
        for level in rows {
            let best = &mut self.best[level.slot as usize];
            if best.times_us() != level.row.times_us() {
                continue;
            }
            match (tie_of(best.place), tie_of(level.row.place)) {
                (Some(of_best), Some(of_row)) if of_row <= of_best => {}
                (Some(_), Some(_)) => *best = level.row,
                _ => self.level.push(level),
            }
        }
        Ok(())
    }

    fn best_at(&self, level: &LevelRow) -> &Best {
        &self.best[level.slot as usize]
    }
}

impl LevelRows {
    /// The places of the rows and of the winners that they are level with, ascending, each once.
    pub fn places(&self) -> &[u64] {
        &self.places
    }
}

impl Winners {
    /// For a range of spine rows the winners' event times and places, and where there is one: 0 stands elsewhere.
    pub fn of_rows(&self, rows: Range<usize>) -> (Vec<i64>, Vec<u64>, NullBuffer) {
        let mut event_times_us = Vec::with_capacity(rows.len());
        let mut places = Vec::with_capacity(rows.len());
        let mut is_found = BooleanBufferBuilder::new(rows.len());
        for slot in &self.slot_of_row[rows] {
            let best = self.best.get(*slot as usize).filter(|best| best.is_row());
            event_times_us.push(best.map_or(0, |best| best.event_time_us));
            places.push(best.map_or(0, |best| best.place));
            is_found.append(best.is_some());
        }
        (event_times_us, places, NullBuffer::new(is_found.finish()))
    }
}
