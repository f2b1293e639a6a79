//! Rows on their way in, and single reads.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use eadem_semantics::{ReadAt, RowOrder, erased, is_candidate};
use eadem_values::TieDigest;
use scylla::response::PagingState;
use uuid::Uuid;

use super::epochs::Meta;
use super::erasures::{Visited, erased_up_to};
use super::session::{Db, run_all};
use crate::{KEY_BYTES_MAX, KeyBytes, Merged, PointRead, Row, RowBody, StoreError, VALUE_BYTES_MAX, Winner};

/// How large one change of a partition becomes. The database takes 16 MiB as it is delivered.
const CHANGE_BYTES_MAX: usize = VALUE_BYTES_MAX;
const CHANGE_ROWS_MAX: usize = 1_000;

/// How many entities are registered in one request.
const REGISTER_ROWS_MAX: usize = 200;

/// How much memory goes into knowing which entities are registered.
const REGISTERED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Entities that this process has registered already; only saves work.
#[derive(Debug, Default)]
pub(super) struct Registered {
    known: Mutex<(HashSet<Box<[u8]>>, usize)>,
}

impl Registered {
    fn entry(incarnation: Uuid, key: &KeyBytes) -> Box<[u8]> {
        [incarnation.as_bytes().as_slice(), key.as_slice()].concat().into()
    }

    fn contains(&self, incarnation: Uuid, key: &KeyBytes) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.0.contains(&Self::entry(incarnation, key))
    }

    fn insert(&self, incarnation: Uuid, key: &KeyBytes) {
        let entry = Self::entry(incarnation, key);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.1 += entry.len() + 64;
        if known.1 > REGISTERED_BYTES_MAX {
            *known = (HashSet::new(), entry.len() + 64);
        }
        known.0.insert(entry);
    }
}

/// In which part of a table's directory an entity stands. Part of the layout.
pub(super) fn bucket_of(key: &[u8], buckets: u32) -> i32 {
    let hash = u128::from_be_bytes(*TieDigest::of(key).as_bytes());
    (hash % u128::from(buckets)) as i32
}

/// When a row was "written", for a database whose last write wins: not a time but a number that follows from the body
/// alone. So the last write is the greatest body in an order of our own, whoever wrote first; equal rows are equal cells; and
/// no clock decides about data. All such numbers lie before 2005 as microseconds, so everything that is deleted stays
/// deleted: what is deleted, is deleted because no read will ever need it.
pub(super) fn write_timestamp(body: &RowBody, encoded: &[u8]) -> i64 {
    const HASH_BITS: u32 = 49;
    let hash = u128::from_be_bytes(*TieDigest::of(encoded).as_bytes()) >> (128 - HASH_BITS);
    let prefers_values = i64::from(body.error.is_none()) << HASH_BITS;
    (hash as i64).max(1) | prefers_values
}

pub(super) fn order_of(event_time_us: i64, known_at_us: i64, tie: &[u8]) -> Option<RowOrder> {
    let tie = TieDigest::from_bytes(tie.try_into().ok()?);
    Some(RowOrder { event_time_us, known_at_us, tie })
}

/// The greatest of an entity's erasures, as its partition lists them.
pub(super) fn greatest(erased_up_to: Option<Vec<i64>>) -> Option<i64> {
    erased_up_to.into_iter().flatten().max()
}

/// Makes sure that these entities can be found by whoever goes through the table, before anything of them is written.
pub(super) async fn register_entities(
    db: &Db,
    registered: &Registered,
    table: Visited,
    keys: impl IntoIterator<Item = &KeyBytes>,
) -> Result<(), StoreError> {
    let Visited { incarnation, buckets } = table;
    let mut by_bucket: HashMap<i32, Vec<&KeyBytes>> = HashMap::new();
    for key in keys {
        if !registered.contains(incarnation, key) {
            by_bucket.entry(bucket_of(key.as_slice(), buckets)).or_default().push(key);
        }
    }
    let mut work = Vec::new();
    for (bucket, keys) in &by_bucket {
        for part in keys.chunks(REGISTER_ROWS_MAX) {
            let values: Vec<_> = part.iter().map(|key| (incarnation, *bucket, key.as_slice())).collect();
            let bytes = part.iter().map(|key| key.as_slice().len()).sum();
            let doing = "registering entities";
            work.push(Box::pin(db.execute_as_one(doing, &db.statements.insert_entity, values, bytes)));
        }
    }
    run_all(work, db.concurrency()).await?;
    by_bucket.values().flatten().for_each(|key| registered.insert(incarnation, key));
    Ok(())
}

struct Encoded {
    order: RowOrder,
    body: Vec<u8>,
    timestamp: i64,
}

/// Writes rows that have been checked, but for those that an erasure covers.
pub(super) async fn write(db: &Db, registered: &Registered, meta: &Meta, rows: &[Row]) -> Result<Merged, StoreError> {
    let mut merged = Merged::default();
    let mut by_key: HashMap<&KeyBytes, Vec<&Row>> = HashMap::new();
    for row in rows {
        by_key.entry(&row.key).or_default().push(row);
    }
    if meta.has_erasures {
        merged.erased = leave_out_erased(db, meta, &mut by_key).await?;
    }
    register_entities(db, registered, Visited::from(meta), by_key.keys().copied()).await?;
    let mut work = Vec::new();
    for (key, rows) in &by_key {
        merged.kept += rows.len() as u64;
        for change in changes(rows) {
            work.push(Box::pin(write_change(db, meta.incarnation, key, change)));
        }
    }
    run_all(work, db.concurrency()).await?;
    Ok(merged)
}

/// The rows of one entity in parts, each of which is seen whole or not at all.
fn changes(rows: &[&Row]) -> Vec<Vec<Encoded>> {
    let mut changes: Vec<Vec<Encoded>> = Vec::new();
    let mut bytes = usize::MAX;
    for row in rows {
        let body = row.body.encode();
        let is_full = bytes.saturating_add(body.len()) > CHANGE_BYTES_MAX;
        if is_full || changes.last().is_none_or(|change| change.len() >= CHANGE_ROWS_MAX) {
            changes.push(Vec::new());
            bytes = 0;
        }
        bytes += body.len();
        let timestamp = write_timestamp(&row.body, &body);
        if let Some(change) = changes.last_mut() {
            change.push(Encoded { order: row.order, body, timestamp });
        }
    }
    changes
}

async fn write_change(db: &Db, incarnation: Uuid, key: &KeyBytes, change: Vec<Encoded>) -> Result<(), StoreError> {
    let bytes = change.iter().map(|row| key.as_slice().len() + row.body.len()).sum();
    let values: Vec<_> = change
        .iter()
        .map(|row| {
            let RowOrder { event_time_us, known_at_us, tie } = row.order;
            let size = (key.as_slice().len() + row.body.len()) as i32;
            let body = row.body.as_slice();
            (incarnation, key.as_slice(), event_time_us, known_at_us, *tie.as_bytes(), body, size, row.timestamp)
        })
        .collect();
    let (doing, insert) = ("writing rows", &db.statements.insert_row);
    match values.as_slice() {
        [one] => db.execute(doing, insert, one, bytes).await,
        _ => db.execute_as_one(doing, insert, values, bytes).await,
    }
}

async fn leave_out_erased(db: &Db, meta: &Meta, by_key: &mut HashMap<&KeyBytes, Vec<&Row>>) -> Result<u64, StoreError> {
    let keys: Vec<&KeyBytes> = by_key.keys().copied().collect();
    let look_up = |key: &&KeyBytes| Box::pin(erased_up_to(db, meta.table.view, (*key).clone()));
    let erasures = run_all(keys.iter().map(look_up).collect(), db.concurrency()).await?;
    let mut left_out = 0;
    for (key, up_to_us) in keys.into_iter().zip(erasures) {
        let Some(rows) = by_key.get_mut(key) else { continue };
        let before = rows.len();
        rows.retain(|row| !erased(row.order.event_time_us, up_to_us));
        left_out += (before - rows.len()) as u64;
        if rows.is_empty() {
            by_key.remove(key);
        }
    }
    Ok(left_out)
}

/// The winners of many reads, in their order.
pub(super) async fn winners(db: &Db, meta: &Meta, reads: &[PointRead<'_>]) -> Result<Vec<Option<Winner>>, StoreError> {
    let work = reads.iter().map(|read| Box::pin(winner(db, meta.incarnation, read.key, read.at))).collect();
    run_all(work, db.concurrency()).await
}

/// Event time, known-at, tie digest, body, and the erasures of the entity.
pub(super) type RowColumns = (i64, i64, Vec<u8>, Bytes, Option<Vec<i64>>);

/// Reads the newest row with event time ≤ T. Where it is not known by K yet, goes on with the times of those below.
async fn winner(db: &Db, incarnation: Uuid, key: &KeyBytes, at: ReadAt) -> Result<Option<Winner>, StoreError> {
    // Nobody can have stored it, and the database would refuse to look.
    if key.as_slice().len() > KEY_BYTES_MAX {
        return Ok(None);
    }
    let doing = "reading rows";
    let values = (incarnation, key.as_slice(), at.at_us);
    let (rows, _): (Vec<RowColumns>, _) =
        db.page(doing, &db.statements.newest_row, values, PagingState::start()).await?;
    let Some((event_time_us, known_at_us, tie, body, erasures)) = rows.into_iter().next() else { return Ok(None) };
    let newest = order_of(event_time_us, known_at_us, &tie).ok_or_else(|| damaged(db, key))?;
    if is_candidate(&newest, at) {
        return not_erased(db, key, newest, &body, erasures);
    }
    let Some(candidate) = candidate_below(db, incarnation, key, at, newest).await? else { return Ok(None) };
    let RowOrder { event_time_us, known_at_us, tie } = candidate;
    let values = (incarnation, key.as_slice(), event_time_us, known_at_us, *tie.as_bytes());
    let found: Vec<(Bytes, Option<Vec<i64>>)> = db.all(doing, &db.statements.one_body, values).await?;
    match found.into_iter().next() {
        Some((body, erasures)) => not_erased(db, key, candidate, &body, erasures),
        // It went in between: erased, and then all below it are too; or trimmed, and then nothing is proved for this time.
        None => Ok(None),
    }
}

async fn candidate_below(
    db: &Db,
    incarnation: Uuid,
    key: &KeyBytes,
    at: ReadAt,
    newest: RowOrder,
) -> Result<Option<RowOrder>, StoreError> {
    let RowOrder { event_time_us, known_at_us, tie } = newest;
    let values = (incarnation, key.as_slice(), event_time_us, known_at_us, *tie.as_bytes());
    let mut state = PagingState::start();
    loop {
        let page = db.page("reading rows", &db.statements.orders_below, values, state).await?;
        let (rows, next): (Vec<(i64, i64, Vec<u8>)>, _) = page;
        for (event_time_us, known_at_us, tie) in rows {
            let order = order_of(event_time_us, known_at_us, &tie).ok_or_else(|| damaged(db, key))?;
            if is_candidate(&order, at) {
                return Ok(Some(order));
            }
        }
        match next {
            Some(next) => state = next,
            None => return Ok(None),
        }
    }
}

/// The winner, unless an erasure covers it; and then it covers all below it too.
fn not_erased(
    db: &Db,
    key: &KeyBytes,
    order: RowOrder,
    body: &[u8],
    erasures: Option<Vec<i64>>,
) -> Result<Option<Winner>, StoreError> {
    if erased(order.event_time_us, greatest(erasures)) {
        return Ok(None);
    }
    let body = RowBody::decode(body).ok_or_else(|| damaged(db, key))?;
    Ok(Some(Winner { order, body }))
}

pub(super) fn damaged(db: &Db, key: &KeyBytes) -> StoreError {
    let doing = format!("reading the rows of entity `{}`", key.shown());
    db.failed(&doing, std::io::Error::other("a row is damaged; load a new epoch of the view"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_follow_from_bodies_and_lie_before_every_deletion() {
        let of = |body: &RowBody| write_timestamp(body, &body.encode());
        let values: Vec<RowBody> = (0..500_u32).map(|n| RowBody::of_values(n.to_be_bytes().to_vec())).collect();
        let errors: Vec<RowBody> = (0..500_u32).map(|n| RowBody::of_error(n.to_string())).collect();
        let year_2006_us = 1_136_073_600_000_000;
        for body in values.iter().chain(&errors) {
            assert_eq!(of(body), of(&body.clone()));
            assert!((1..year_2006_us).contains(&of(body)));
        }
        assert!(errors.iter().map(of).max() < values.iter().map(of).min(), "values beat errors");
        let mut distinct: Vec<i64> = values.iter().map(of).collect();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), values.len());
    }

    #[test]
    fn changes_are_split_by_size_and_number_and_lose_nothing() {
        let row = |time: i64, bytes: usize| Row {
            key: KeyBytes::new(&b"k"[..]),
            order: RowOrder { event_time_us: time, known_at_us: time, tie: TieDigest::from_bytes([0; 16]) },
            body: RowBody::of_values(vec![0; bytes]),
        };
        let sizes =
            |rows: &[Row]| -> Vec<usize> { changes(&rows.iter().collect::<Vec<_>>()).iter().map(Vec::len).collect() };
        assert_eq!(sizes(&[]), Vec::<usize>::new());
        assert_eq!(sizes(&[row(1, 10), row(2, 10)]), [2]);
        let large = CHANGE_BYTES_MAX / 2 - 1;
        assert_eq!(sizes(&[row(1, large), row(2, large), row(3, 1)]), [2, 1]);
        assert_eq!(sizes(&[row(1, CHANGE_BYTES_MAX - 1), row(2, CHANGE_BYTES_MAX - 1)]), [1, 1]);
        let many: Vec<Row> = (0..CHANGE_ROWS_MAX as i64 + 5).map(|time| row(time, 1)).collect();
        assert_eq!(sizes(&many), [CHANGE_ROWS_MAX, 5]);
    }

    #[test]
    fn buckets_are_even() {
        let mut counts = [0_u32; 16];
        for n in 0..16_000_u32 {
            counts[bucket_of(&n.to_be_bytes(), 16) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (800..1_200).contains(count)), "{counts:?}");
        assert_eq!(bucket_of(b"anything", 1), 0);
    }
}
