//! What goes through a whole table: scans, counts, trims, and the deletion of what was dropped.

use std::collections::VecDeque;

use bytes::BufMut;
use eadem_semantics::{RowOrder, erased, trim_mask};
use eadem_values::TieDigest;
use scylla::response::PagingState;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::epochs::{Epochs, Meta, read_meta};
use super::erasures::Visited;
use super::rows::{RowColumns, damaged, greatest, order_of};
use super::session::{Db, Page, run_all};
use crate::{KeyBytes, Row, RowBody, ScanCursor, ScanPage, StoreError, TableId, Trim};

/// How many parts of a table's directory are read at once, once it turns out that the first ones do not suffice.
const BUCKETS_AT_ONCE_MAX: u32 = 16;

/// How many entities a walk works on at once.
const ENTITIES_AT_ONCE: usize = 32;

/// How much of the bodies of one entity is read at once.
const BODIES_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Tables of more entities than this are not counted but estimated.
const COUNTED_ENTITIES_MAX: u64 = 4_096;

/// How many single rows are deleted in one request.
const DELETED_ROWS_MAX: usize = 500;

/// The times of a row, and how much it takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowHead {
    pub(super) order: RowOrder,
    bytes: usize,
    is_erased: bool,
    erased_up_to_us: Option<i64>,
}

/// What no row is greater than.
const NEWEST: RowOrder =
    RowOrder { event_time_us: i64::MAX, known_at_us: i64::MAX, tie: TieDigest::from_bytes([0xff; 16]) };

type HeadColumns = (i64, i64, Vec<u8>, Option<i32>, Option<Vec<i64>>);

/// Some of an entity's rows up to (and with) `newest`, newest first, without their bodies. Erased ones included, which say so.
pub(super) async fn orders_page(
    db: &Db,
    incarnation: Uuid,
    key: &KeyBytes,
    newest: RowOrder,
    state: PagingState,
) -> Result<Page<RowHead>, StoreError> {
    let RowOrder { event_time_us, known_at_us, tie } = newest;
    let values = (incarnation, key.as_slice(), event_time_us, known_at_us, *tie.as_bytes());
    let (rows, next): (Vec<HeadColumns>, _) =
        db.page("reading the times of rows", &db.statements.orders, values, state).await?;
    let mut heads = Vec::with_capacity(rows.len());
    for (event_time_us, known_at_us, tie, bytes, erasures) in rows {
        let order = order_of(event_time_us, known_at_us, &tie).ok_or_else(|| damaged(db, key))?;
        let erased_up_to_us = greatest(erasures);
        let is_erased = erased(event_time_us, erased_up_to_us);
        let bytes = usize::try_from(bytes.unwrap_or(0)).unwrap_or(0);
        heads.push(RowHead { order, bytes, is_erased, erased_up_to_us });
    }
    Ok((heads, next))
}

/// A part of the directory: its number, some of its entities and where it goes on.
struct Part {
    bucket: u32,
    first_key: Vec<u8>,
    keys: Vec<KeyBytes>,
    next: Option<PagingState>,
}

/// Goes through the entities of a table, in the order of the directory.
struct Walk<'a> {
    db: &'a Db,
    table: Visited,
    next_bucket: u32,
    /// Where the first part begins.
    first_key: Vec<u8>,
    at_once: u32,
    parts: VecDeque<Part>,
}

impl<'a> Walk<'a> {
    fn new(db: &'a Db, table: Visited) -> Self {
        Self::from(db, table, 0, Vec::new())
    }

    fn from(db: &'a Db, table: Visited, bucket: u32, first_key: Vec<u8>) -> Self {
        Self { db, table, next_bucket: bucket, first_key, at_once: 1, parts: VecDeque::new() }
    }

    /// Further entities, and in which part they stand.
    async fn next(&mut self) -> Result<Option<(u32, Vec<KeyBytes>)>, StoreError> {
        loop {
            while let Some(part) = self.parts.pop_front() {
                let (bucket, keys) = (part.bucket, part.keys);
                if let Some(state) = part.next {
                    let more = read_part(self.db, self.table, bucket, part.first_key, state).await?;
                    self.parts.push_front(more);
                }
                if !keys.is_empty() {
                    return Ok(Some((bucket, keys)));
                }
            }
            if self.next_bucket >= self.table.buckets {
                return Ok(None);
            }
            let last = (self.next_bucket + self.at_once).min(self.table.buckets);
            let parts = (self.next_bucket..last).map(|bucket| {
                let first_key = std::mem::take(&mut self.first_key);
                Box::pin(read_part(self.db, self.table, bucket, first_key, PagingState::start()))
            });
            self.parts = run_all(parts.collect(), self.db.concurrency()).await?.into();
            self.next_bucket = last;
            self.at_once = (self.at_once * 2).min(BUCKETS_AT_ONCE_MAX);
        }
    }
}

async fn read_part(
    db: &Db,
    table: Visited,
    bucket: u32,
    first_key: Vec<u8>,
    state: PagingState,
) -> Result<Part, StoreError> {
    let values = (table.incarnation, bucket as i32, first_key.as_slice());
    let (rows, next): (Vec<(Vec<u8>,)>, _) =
        db.page("reading the entities of a table", &db.statements.entities, values, state).await?;
    let keys = rows.into_iter().map(|(key,)| KeyBytes::new(key)).collect();
    Ok(Part { bucket, first_key, keys, next })
}

// Scans.

/// Where a scan stands: in a part of the directory, at an entity, below one of its rows.
struct Place {
    bucket: u32,
    key: Vec<u8>,
    below: Option<RowOrder>,
}

impl Place {
    fn start() -> Self {
        Self { bucket: 0, key: Vec::new(), below: None }
    }

    fn encode(bucket: u32, row: &Row) -> ScanCursor {
        let mut bytes = Vec::with_capacity(36 + row.key.as_slice().len());
        bytes.put_u32(bucket);
        bytes.put_i64(row.order.event_time_us);
        bytes.put_i64(row.order.known_at_us);
        bytes.put_slice(row.order.tie.as_bytes());
        bytes.put_slice(row.key.as_slice());
        ScanCursor(bytes.into())
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (bucket, rest) = bytes.split_first_chunk::<4>()?;
        let (event_time, rest) = rest.split_first_chunk::<8>()?;
        let (known_at, rest) = rest.split_first_chunk::<8>()?;
        let (tie, key) = rest.split_first_chunk::<16>()?;
        let below = order_of(i64::from_be_bytes(*event_time), i64::from_be_bytes(*known_at), tie)?;
        Some(Self { bucket: u32::from_be_bytes(*bucket), key: key.to_vec(), below: Some(below) })
    }
}

/// A page of a table's rows.
pub(super) async fn scan(
    db: &Db,
    meta: &Meta,
    cursor: Option<&ScanCursor>,
    page_bytes_max: usize,
) -> Result<ScanPage, StoreError> {
    let mut place = match cursor {
        Some(cursor) => Place::decode(&cursor.0).ok_or_else(|| {
            db.failed("scanning", std::io::Error::other("the cursor is not one of this store; begin from the start"))
        })?,
        None => Place::start(),
    };
    let mut filling = Filling { db, meta, rows: Vec::new(), bytes: 0, bytes_max: page_bytes_max.max(1) };
    let mut walk = Walk::from(db, Visited::from(meta), place.bucket, place.key.clone());
    while let Some((bucket, keys)) = walk.next().await? {
        let mut rest = keys.as_slice();
        let mut ahead = 1;
        while !rest.is_empty() {
            let (now, after) = rest.split_at(ahead.min(rest.len()));
            let newest = |key: &KeyBytes| place.below.filter(|_| key.as_slice() == place.key).unwrap_or(NEWEST);
            let heads = now
                .iter()
                .map(|key| Box::pin(orders_page(db, meta.incarnation, key, newest(key), PagingState::start())));
            let heads = run_all(heads.collect(), db.concurrency()).await?;
            for (key, page) in now.iter().zip(heads) {
                let below = place.below.take_if(|_| key.as_slice() == place.key);
                if filling.add_entity(key, below, page).await?.is_full() {
                    let next = filling.rows.last().map(|row| Place::encode(bucket, row));
                    return Ok(ScanPage { rows: filling.rows, next });
                }
            }
            rest = after;
            ahead = (ahead * 2).min(ENTITIES_AT_ONCE);
        }
    }
    Ok(ScanPage { rows: filling.rows, next: None })
}

/// A page that is being filled.
struct Filling<'a> {
    db: &'a Db,
    meta: &'a Meta,
    rows: Vec<Row>,
    bytes: usize,
    bytes_max: usize,
}

impl Filling<'_> {
    fn is_full(&self) -> bool {
        self.bytes >= self.bytes_max
    }

    /// Adds rows of an entity below `below`, beginning with those whose heads are in `page`, until the page is full.
    async fn add_entity(
        &mut self,
        key: &KeyBytes,
        below: Option<RowOrder>,
        page: Page<RowHead>,
    ) -> Result<&Self, StoreError> {
        let newest = below.unwrap_or(NEWEST);
        let (mut heads, mut next) = page;
        loop {
            let is_left = |head: &RowHead| !head.is_erased && below.is_none_or(|below| head.order < below);
            heads.retain(is_left);
            let mut rest = heads.as_slice();
            while !rest.is_empty() && !self.is_full() {
                let (run, after) = rest.split_at(self.run_length(rest));
                self.add_run(key, run).await?;
                rest = after;
            }
            if self.is_full() {
                return Ok(self);
            }
            let Some(state) = next else { return Ok(self) };
            (heads, next) = orders_page(self.db, self.meta.incarnation, key, newest, state).await?;
        }
    }

    /// How many of these rows are read next: until the page is full, and not too many at once.
    fn run_length(&self, heads: &[RowHead]) -> usize {
        let mut run_bytes = 0;
        let fits = |head: &&RowHead| {
            let is_over = self.bytes + run_bytes >= self.bytes_max || run_bytes >= BODIES_BYTES_MAX;
            run_bytes = run_bytes.saturating_add(head.bytes.max(1));
            !is_over
        };
        heads.iter().take_while(fits).count().max(1)
    }

    async fn add_run(&mut self, key: &KeyBytes, run: &[RowHead]) -> Result<(), StoreError> {
        let (Some(newest), Some(oldest)) = (run.first(), run.last()) else { return Ok(()) };
        let (newest, oldest) = (newest.order, oldest.order);
        let values = (
            self.meta.incarnation,
            key.as_slice(),
            newest.event_time_us,
            newest.known_at_us,
            *newest.tie.as_bytes(),
            oldest.event_time_us,
            oldest.known_at_us,
            *oldest.tie.as_bytes(),
        );
        let rows: Vec<RowColumns> = self.db.all("scanning", &self.db.statements.bodies_between, values).await?;
        for (event_time_us, known_at_us, tie, body, erasures) in rows {
            if erased(event_time_us, greatest(erasures)) {
                continue;
            }
            let order = order_of(event_time_us, known_at_us, &tie).ok_or_else(|| damaged(self.db, key))?;
            self.bytes = self.bytes.saturating_add(key.as_slice().len() + body.len());
            let body = RowBody::decode(&body).ok_or_else(|| damaged(self.db, key))?;
            self.rows.push(Row { key: key.clone(), order, body });
        }
        Ok(())
    }
}

// Counts.

/// How many rows a table has and how many bytes they take, counted, or estimated from a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Size {
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

/// Counts the rows of up to [`COUNTED_ENTITIES_MAX`] entities. The directory is divided by a hash, so of a larger table a part
/// of it stands for the whole.
pub(super) async fn size(db: &Db, meta: &Meta) -> Result<Size, StoreError> {
    let table = Visited::from(meta);
    let entities = count_entities(db, table).await?;
    let mut counted = Size::default();
    let mut counted_entities = 0;
    let mut walk = Walk::new(db, table);
    while counted_entities < COUNTED_ENTITIES_MAX
        && let Some((_, keys)) = walk.next().await?
    {
        let left = usize::try_from(COUNTED_ENTITIES_MAX - counted_entities).unwrap_or(usize::MAX);
        let keys = &keys[..keys.len().min(left)];
        let sizes = keys.iter().map(|key| Box::pin(size_of_entity(db, meta.incarnation, key))).collect();
        for size in run_all(sizes, ENTITIES_AT_ONCE).await? {
            counted.rows += size.rows;
            counted.bytes += size.bytes;
        }
        counted_entities += keys.len() as u64;
    }
    Ok(counted.stretched(counted_entities, entities))
}

impl Size {
    /// What so many entities have, if some of them have this.
    fn stretched(self, counted_entities: u64, entities: u64) -> Self {
        if counted_entities == 0 || entities <= counted_entities {
            return self;
        }
        // 128 bits, because both may be large.
        let stretch = |count: u64| {
            let stretched = u128::from(count) * u128::from(entities) / u128::from(counted_entities);
            u64::try_from(stretched).unwrap_or(u64::MAX)
        };
        Self { rows: stretch(self.rows), bytes: stretch(self.bytes) }
    }
}

/// How many entities the directory has: of so many parts as are necessary to see enough of them, and the others like these.
async fn count_entities(db: &Db, table: Visited) -> Result<u64, StoreError> {
    let mut seen = 0;
    let mut bucket = 0;
    while bucket < table.buckets && seen < COUNTED_ENTITIES_MAX {
        let last = (bucket + BUCKETS_AT_ONCE_MAX).min(table.buckets);
        let counts = (bucket..last).map(|bucket| {
            let values = (table.incarnation, bucket as i32);
            Box::pin(db.all("counting entities", &db.statements.count_entities, values))
        });
        let counts: Vec<Vec<(i64,)>> = run_all(counts.collect(), db.concurrency()).await?;
        seen += counts.into_iter().flatten().map(|(count,)| u64::try_from(count).unwrap_or(0)).sum::<u64>();
        bucket = last;
    }
    Ok(Size { rows: seen, bytes: 0 }.stretched(u64::from(bucket), u64::from(table.buckets)).rows)
}

async fn size_of_entity(db: &Db, incarnation: Uuid, key: &KeyBytes) -> Result<Size, StoreError> {
    let mut size = Size::default();
    let mut state = PagingState::start();
    loop {
        let (heads, next) = orders_page(db, incarnation, key, NEWEST, state).await?;
        for head in heads.iter().filter(|head| !head.is_erased) {
            size.rows += 1;
            size.bytes += head.bytes as u64;
        }
        match next {
            Some(next) => state = next,
            None => return Ok(size),
        }
    }
}

// Trims.

/// Removes what no proved read needs, and says how many rows went. Nothing is deleted before `from`.
pub(super) async fn trim(db: &Db, meta: &Meta, trim: Trim, from: Instant) -> Result<u64, StoreError> {
    let mut removed = 0;
    let mut walk = Walk::new(db, Visited::from(meta));
    while let Some((_, keys)) = walk.next().await? {
        let entities = keys.iter().map(|key| Box::pin(trim_entity(db, meta.incarnation, key, trim, from)));
        removed += run_all(entities.collect(), ENTITIES_AT_ONCE).await?.into_iter().sum::<u64>();
    }
    Ok(removed)
}

/// Goes through an entity's rows from the newest on, a page at a time.
///
/// Among the rows above, only the least one kept can beat what follows: each row that is kept is visible sooner than all
/// above it. Below the row that is visible at the time of the trim nothing is ever needed again, arriving later or not, so
/// all of that goes as one range.
async fn trim_entity(db: &Db, incarnation: Uuid, key: &KeyBytes, trim: Trim, from: Instant) -> Result<u64, StoreError> {
    let mut judging = Judging { trim, least_kept: None, too_old_up_to_us: None, needs_range: false, removed: 0 };
    let mut state = PagingState::start();
    loop {
        let (heads, next) = orders_page(db, incarnation, key, NEWEST, state).await?;
        let losers = judging.judge(&heads);
        delete_rows(db, incarnation, key, &losers, from).await?;
        match next {
            Some(next) => state = next,
            None => break,
        }
    }
    delete_ranges(db, incarnation, key, &judging, from).await?;
    Ok(judging.removed)
}

struct Judging {
    trim: Trim,
    least_kept: Option<RowOrder>,
    /// Up to which event time there are rows that are too old or erased.
    too_old_up_to_us: Option<i64>,
    /// Whether there are rows below the row that is visible at the time of the trim.
    needs_range: bool,
    removed: u64,
}

impl Judging {
    /// The rows among these that lose and lie above the range.
    fn judge(&mut self, heads: &[RowHead]) -> Vec<RowOrder> {
        let mut young = Vec::new();
        for head in heads {
            let floor_us = self.trim.forget_up_to_us.max(head.erased_up_to_us);
            if floor_us.is_some_and(|floor_us| head.order.event_time_us <= floor_us) {
                self.too_old_up_to_us = floor_us;
                self.removed += u64::from(!head.is_erased);
            } else {
                young.push(head.order);
            }
        }
        let with_kept: Vec<RowOrder> = self.least_kept.into_iter().chain(young.iter().copied()).collect();
        let mask = trim_mask(&with_kept, self.trim.complete_since_us);
        let keeps = &mask[with_kept.len() - young.len()..];
        let mut losers = Vec::new();
        for (order, keep) in young.into_iter().zip(keeps) {
            if *keep {
                self.least_kept = Some(order);
                continue;
            }
            self.removed += 1;
            if self.is_settled() {
                self.needs_range = true;
            } else {
                losers.push(order);
            }
        }
        losers
    }

    /// Whether the least row kept is visible at the time of the trim.
    fn is_settled(&self) -> bool {
        let since_us = self.trim.complete_since_us;
        self.least_kept.is_some_and(|kept| kept.event_time_us <= since_us && kept.known_at_us <= since_us)
    }
}

async fn delete_rows(
    db: &Db,
    incarnation: Uuid,
    key: &KeyBytes,
    orders: &[RowOrder],
    from: Instant,
) -> Result<(), StoreError> {
    for part in orders.chunks(DELETED_ROWS_MAX) {
        sleep_until(from).await;
        let row_key = |order: &RowOrder| {
            (incarnation, key.as_slice(), order.event_time_us, order.known_at_us, *order.tie.as_bytes())
        };
        let values: Vec<_> = part.iter().map(row_key).collect();
        db.execute_as_one("trimming", &db.statements.delete_row, values, 0).await?;
    }
    Ok(())
}

async fn delete_ranges(
    db: &Db,
    incarnation: Uuid,
    key: &KeyBytes,
    judging: &Judging,
    from: Instant,
) -> Result<(), StoreError> {
    if let Some(up_to_us) = judging.too_old_up_to_us {
        sleep_until(from).await;
        let values = (incarnation, key.as_slice(), up_to_us);
        db.execute("trimming", &db.statements.delete_up_to, values, 0).await?;
    }
    if let Some(kept) = judging.least_kept.filter(|_| judging.needs_range) {
        sleep_until(from).await;
        let values = (incarnation, key.as_slice(), kept.event_time_us, kept.known_at_us, *kept.tie.as_bytes());
        db.execute("trimming", &db.statements.delete_below, values, 0).await?;
    }
    Ok(())
}

// Dropped tables.

type DroppedColumns = (Uuid, Option<Vec<u8>>, Option<i64>, Option<i32>);

/// The notes of dropped tables whose rows are not all deleted yet.
pub(super) async fn dropped(db: &Db) -> Result<Vec<(TableId, Visited)>, StoreError> {
    let rows: Vec<DroppedColumns> = db.all("listing dropped tables", &db.statements.all_dropped, ()).await?;
    let note = |(incarnation, view, epoch, buckets): DroppedColumns| {
        let view = eadem_values::Digest::from_bytes(view?.try_into().ok()?);
        let buckets = u32::try_from(buckets?).ok()?;
        Some((TableId { view, epoch: epoch? as u64 }, Visited { incarnation, buckets }))
    };
    Ok(rows.into_iter().filter_map(note).collect())
}

/// Deletes the rows of tables that were dropped, also of those that another process did not finish.
pub(super) async fn sweep(db: &Db, epochs: &Epochs) -> Result<(), StoreError> {
    let mut gone = Vec::new();
    for (table, visited) in dropped(db).await? {
        // The note is left before the table is dropped; perhaps it never was.
        let registered = read_meta(db, &db.statements.epoch_for_change, table).await?;
        if registered.is_none_or(|meta| meta.incarnation != visited.incarnation) {
            gone.push(visited);
        }
    }
    if gone.is_empty() {
        return Ok(());
    }
    sleep_until(epochs.believed_until()).await;
    for table in gone {
        delete_table(db, table).await?;
    }
    Ok(())
}

async fn delete_table(db: &Db, table: Visited) -> Result<(), StoreError> {
    let doing = "deleting a dropped table";
    let mut walk = Walk::new(db, table);
    while let Some((_, keys)) = walk.next().await? {
        let delete = |key: &KeyBytes| {
            let values = (table.incarnation, key.as_slice().to_vec());
            Box::pin(db.execute(doing, &db.statements.delete_partition, values, 0))
        };
        run_all(keys.iter().map(delete).collect(), db.concurrency()).await?;
    }
    let parts = (0..table.buckets).map(|bucket| {
        let values = (table.incarnation, bucket as i32);
        Box::pin(db.execute(doing, &db.statements.delete_entities, values, 0))
    });
    run_all(parts.collect(), db.concurrency()).await?;
    // Last: until then another process goes on with it.
    db.execute(doing, &db.statements.delete_dropped, (table.incarnation,), 0).await
}
