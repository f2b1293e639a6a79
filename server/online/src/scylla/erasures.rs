//! Erasures of entities.
//!
//! An erasure stands in the table of erasures, by view, and in the partition of the entity in every epoch, where each read
//! gets it together with the rows. Both are sets that only grow, so the greatest counts whatever the order. `erase` writes
//! the erasure first and visits then all tables that are registered; creating a table registers it first and copies then all
//! erasures: whichever comes second sees the other.

use eadem_semantics::RowOrder;
use eadem_values::{Digest, TieDigest};
use scylla::response::PagingState;
use uuid::Uuid;

use super::epochs::{Meta, epoch_column};
use super::rows::{Registered, bucket_of, greatest, register_entities};
use super::session::{Db, run_all};
use crate::{KEY_BYTES_MAX, KeyBytes, StoreError, TableId};

/// Into how many partitions the erasures of a view are divided. Part of the layout: with another number none would be found.
const BUCKETS: u32 = 64;

/// How many erasures are copied to a new table at once.
const COPIED_AT_ONCE: usize = 500;

/// A table as an erasure visits it, registered or still being created.
#[derive(Debug, Clone, Copy)]
pub(super) struct Visited {
    pub(super) incarnation: Uuid,
    pub(super) buckets: u32,
}

/// Up to when an entity is erased in a view.
pub(super) async fn erased_up_to(db: &Db, view: Digest, key: KeyBytes) -> Result<Option<i64>, StoreError> {
    if key.as_slice().len() > KEY_BYTES_MAX {
        return Ok(None);
    }
    let bucket = bucket_of(key.as_slice(), BUCKETS);
    let values = (view.as_bytes().as_slice(), bucket, key.as_slice());
    let rows: Vec<(i64,)> = db.all("looking up erasures", &db.statements.erasure, values).await?;
    Ok(rows.into_iter().map(|(up_to_us,)| up_to_us).max())
}

/// Writes an erasure down, so that no table made from now on is without it.
pub(super) async fn record(db: &Db, view: Digest, key: &KeyBytes, up_to_us: i64) -> Result<(), StoreError> {
    let doing = "recording an erasure";
    let bucket = bucket_of(key.as_slice(), BUCKETS);
    let values = (view.as_bytes().as_slice(), bucket, key.as_slice(), up_to_us);
    db.execute(doing, &db.statements.insert_erasure, values, 0).await?;
    db.execute(doing, &db.statements.mark_erasures, (view.as_bytes().as_slice(),), 0).await?;
    // A greater one says all that lesser ones say.
    db.execute(doing, &db.statements.delete_lesser_erasures, values, 0).await
}

/// Applies an erasure to every table of the view that there is, and says how many rows went.
pub(super) async fn visit_tables(
    db: &Db,
    registered: &Registered,
    view: Digest,
    key: &KeyBytes,
    up_to_us: i64,
) -> Result<u64, StoreError> {
    let values = (view.as_bytes().as_slice(),);
    let epochs: Vec<(Option<i64>, Option<Uuid>, Option<i32>)> =
        db.all("listing the epochs of a view", &db.statements.epochs_of_view, values).await?;
    let mut removed = 0;
    for (epoch, incarnation, buckets) in epochs {
        // A view that has erasures and no table is a row of nulls.
        let (Some(_), Some(incarnation), Some(buckets)) = (epoch, incarnation, buckets) else { continue };
        let table = Visited { incarnation, buckets: buckets.max(1) as u32 };
        removed += erase_in(db, registered, table, key, up_to_us).await?;
    }
    Ok(removed)
}

async fn erase_in(
    db: &Db,
    registered: &Registered,
    table: Visited,
    key: &KeyBytes,
    up_to_us: i64,
) -> Result<u64, StoreError> {
    let doing = "erasing an entity";
    let incarnation = table.incarnation;
    register_entities(db, registered, table, [key]).await?;
    let partition = (incarnation, key.as_slice());
    let listed: Vec<(Uuid, Vec<u8>, Option<Vec<i64>>)> =
        db.all(doing, &db.statements.erasures_of_partition, partition).await?;
    let before: Vec<i64> = listed.into_iter().filter_map(|(.., erasures)| erasures).flatten().collect();
    let removed = count_rows(db, table, key, greatest(Some(before.clone())), up_to_us).await?;
    let lesser: Vec<i64> = before.into_iter().filter(|before_us| *before_us < up_to_us).collect();
    // One change of one partition: no read finds the rows gone and the erasure not there, or the other way round.
    let mut batch = db.batch();
    batch.append_statement(db.statements.erase_partition.clone());
    batch.append_statement(db.statements.delete_up_to.clone());
    batch.append_statement(db.statements.forget_lesser_erasures.clone());
    let values = (
        (vec![up_to_us], incarnation, key.as_slice()),
        (incarnation, key.as_slice(), up_to_us),
        (lesser, incarnation, key.as_slice()),
    );
    db.execute_batch(doing, &batch, values, 0).await?;
    Ok(removed)
}

/// How many rows with event time ≤ `up_to_us` are there that no earlier erasure covers.
async fn count_rows(
    db: &Db,
    table: Visited,
    key: &KeyBytes,
    erased_before_us: Option<i64>,
    up_to_us: i64,
) -> Result<u64, StoreError> {
    let tie = TieDigest::from_bytes([0xff; 16]);
    let newest = RowOrder { event_time_us: up_to_us, known_at_us: i64::MAX, tie };
    let mut state = PagingState::start();
    let mut rows = 0;
    loop {
        let (page, next) = super::walk::orders_page(db, table.incarnation, key, newest, state).await?;
        rows += page.iter().filter(|row| !eadem_semantics::erased(row.order.event_time_us, erased_before_us)).count();
        match next {
            Some(next) => state = next,
            None => return Ok(rows as u64),
        }
    }
}

/// Gives a new table the erasures of its view. May be repeated.
pub(super) async fn copy_to(db: &Db, registered: &Registered, meta: &Meta) -> Result<(), StoreError> {
    if !meta.has_erasures {
        return Ok(());
    }
    let TableId { view, .. } = meta.table;
    tracing::debug!(table = %meta.table, epoch = epoch_column(meta.table), "copying erasures to a new table");
    for bucket in 0..BUCKETS as i32 {
        let values = (view.as_bytes().as_slice(), bucket, [0_u8; 0]);
        let mut state = PagingState::start();
        loop {
            let page = db.page("reading erasures", &db.statements.erasures_of_view, values, state).await?;
            let (rows, next): (Vec<(Vec<u8>, i64)>, _) = page;
            for part in rows.chunks(COPIED_AT_ONCE) {
                copy_part(db, registered, meta, part).await?;
            }
            match next {
                Some(next) => state = next,
                None => break,
            }
        }
    }
    Ok(())
}

async fn copy_part(db: &Db, registered: &Registered, meta: &Meta, part: &[(Vec<u8>, i64)]) -> Result<(), StoreError> {
    let keys: Vec<KeyBytes> = part.iter().map(|(key, _)| KeyBytes::new(key.clone())).collect();
    register_entities(db, registered, Visited::from(meta), &keys).await?;
    let copy = |(key, up_to_us): &(Vec<u8>, i64)| {
        let values = (vec![*up_to_us], meta.incarnation, key.clone());
        Box::pin(db.execute("copying erasures", &db.statements.erase_partition, values, 0))
    };
    run_all(part.iter().map(copy).collect(), db.concurrency()).await.map(drop)
}

impl From<&Meta> for Visited {
    fn from(meta: &Meta) -> Self {
        Self { incarnation: meta.incarnation, buckets: meta.buckets }
    }
}
