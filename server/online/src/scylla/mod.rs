//! The online store on ScyllaDB or Apache Cassandra, for several servers at once.
//!
//! **Rows.** Each entity of a table has one partition; each stored row is one packed row in it, clustered by event time,
//! known-at and tie digest, descending. A read takes the newest row with event time ≤ T and goes on below it, a page at a
//! time, while rows are not known by K. Distinct orders are distinct rows and equal orders are equal rows: their write
//! timestamps follow from their bodies, so the database never has to settle a tie, and no clock decides about data.
//!
//! **Deleting.** What is deleted is deleted because no read will ever need it (what lies below the row that is current at a
//! trim, what is erased, what is of a dropped table), so it does not matter whether a deletion also meets rows that arrive
//! later, or from a machine whose clock is behind.
//!
//! **Tables.** What decides about a table is a record that lightweight transactions change; `epochs.rs` says what a process
//! may believe of it and for how long. A table that is dropped and made again has another incarnation, which is part of
//! the key of every partition.
//!
//! **Consistency.** Writes, and reads of what decides about tables, take a majority of the replicas in the data center;
//! so do reads of rows, unless the URL says otherwise. So what a call wrote, a later call of any process reads. Two things may
//! take other processes up to the lease to learn: that a table was dropped, and that a view has erasures at all (which changes
//! what [`Merged::erased`] counts, and never what is read).
//!
//! **Whole or not at all.** A call is validated before anything is written. What fails half-way may be repeated: rows are
//! idempotent. The rows of one entity are written as one change of up to 8 MiB, which a read sees whole or not at all.
//!
//! **Retries.** Every statement but the lightweight transactions may be repeated, and is sent to up to three further nodes as long
//! as its deadline (`timeout_ms`) has not passed, whatever the node said that may be the node's fault: a write that timed
//! out has perhaps happened, and happens again without harm. Never with less consistency than asked. A lightweight
//! transaction is only sent again after a look at what became of it.
//!
//! **Speculation.** A read without an answer after 50 ms (`speculative_ms`) is also sent to one other node: a node that hangs
//! costs that, and not the deadline. Writes are not: a database that is slow with writes is not helped by more of them. What
//! was written to a node that hangs goes to others once its connection has been silent for ten seconds, or fails at its
//! deadline.

mod config;
mod epochs;
mod erasures;
mod policy;
mod rows;
mod schema;
mod session;
mod walk;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use eadem_values::Digest;
use tokio::time::sleep_until;

pub use config::{Credentials, PASSWORD_VARIABLE, ReadConsistency, ScyllaConfig, Tls, USER_VARIABLE};
pub use schema::{LAYOUT_VERSION, Replication, SchemaDifference, SchemaOptions, SchemaStatement, init};

use crate::{
    Answer, Coverage, KEY_BYTES_MAX, KeyBytes, Merged, OnlineStore, PointRead, Row, ScanCursor, ScanPage, StoreError,
    TableId, TableStatus, Trim,
};
use epochs::{Epochs, Meta, State, all_tables, mark_dropped};
use rows::Registered;
use session::Db;

/// A store in a keyspace of a ScyllaDB or Cassandra cluster. Any number of processes may use it at once.
pub struct ScyllaStore {
    db: Db,
    epochs: Epochs,
    registered: Registered,
}

impl fmt::Debug for ScyllaStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScyllaStore({})", self.db.config())
    }
}

const WRITABLE: &[State] = &[State::Loading, State::Ready];

impl ScyllaStore {
    /// Connects to a keyspace that [`init`] has made. The caller has a tokio runtime, in which connections are kept alive.
    ///
    /// # Errors
    /// [`StoreError::NoSchema`], [`StoreError::LayoutTooNew`], [`StoreError::BadConfig`] (a data center that is not there or
    /// has to be named), [`StoreError::Failed`] if no node answers.
    pub async fn open(config: ScyllaConfig) -> Result<Self, StoreError> {
        let db = Db::open(config).await?;
        let lease = Duration::from_millis(db.layout.lease_ms.into());
        Ok(Self { db, epochs: Epochs::new(lease), registered: Registered::default() })
    }

    async fn status_of(&self, table: TableId) -> Result<TableStatus, StoreError> {
        let meta = self.epochs.fresh(&self.db, table).await?;
        let size = walk::size(&self.db, &meta).await?;
        let (state, coverage) = (meta.load_state(), meta.coverage.clone());
        Ok(TableStatus { table, state, coverage, rows: size.rows, bytes: size.bytes })
    }

    async fn write(&self, table: TableId, rows: &[Row]) -> Result<Merged, StoreError> {
        rows.iter().try_for_each(Row::check_limits)?;
        loop {
            let meta = self.epochs.existing(&self.db, table).await?;
            let merged = rows::write(&self.db, &self.registered, &meta, rows).await?;
            if self.is_still(&meta).await? {
                return Ok(merged);
            }
            // It was dropped meanwhile, and what was written may have come after the rows were deleted.
            mark_dropped(&self.db, &meta).await?;
        }
    }

    /// Whether a table was the same all the time since `meta` was believed.
    async fn is_still(&self, meta: &Meta) -> Result<bool, StoreError> {
        match self.epochs.existing(&self.db, meta.table).await {
            Ok(now) => Ok(now.incarnation == meta.incarnation),
            Err(StoreError::UnknownTable(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl OnlineStore for ScyllaStore {
    fn kind(&self) -> &'static str {
        "scylla"
    }

    async fn create_epoch(&self, table: TableId) -> Result<(), StoreError> {
        let (meta, is_new) = self.epochs.register(&self.db, table).await?;
        if !is_new {
            return Ok(());
        }
        // Nobody may still believe in a table of that name which is being dropped.
        let believed_until = self.epochs.believed_until();
        if walk::dropped(&self.db).await?.iter().any(|(dropped, _)| *dropped == table) {
            sleep_until(believed_until).await;
        }
        erasures::copy_to(&self.db, &self.registered, &meta).await?;
        let open = |record: &mut epochs::Record| {
            if record.state == State::Creating {
                record.state = State::Loading;
            }
        };
        let states = [State::Creating, State::Loading, State::Ready];
        self.epochs.change(&self.db, table, &states, open).await.map(drop)
    }

    async fn drop_epoch(&self, table: TableId) -> Result<(), StoreError> {
        self.epochs.unregister(&self.db, table).await?;
        walk::sweep(&self.db, &self.epochs).await
    }

    /// Of tables with more than 4,096 entities, rows and bytes are estimated from so many of them; see
    /// [`ScyllaStore::status`](OnlineStore::status).
    async fn tables(&self) -> Result<Vec<TableStatus>, StoreError> {
        let mut statuses = Vec::new();
        for table in all_tables(&self.db).await? {
            match self.status_of(table).await {
                Ok(status) => statuses.push(status),
                // Being created, or dropped meanwhile.
                Err(StoreError::UnknownTable(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(statuses)
    }

    /// Rows and bytes are counted where a table has up to 4,096 entities, and estimated from so many of them otherwise. Bytes are
    /// those of keys and packed rows, once, whatever the database makes of them on its disks.
    async fn status(&self, table: TableId) -> Result<TableStatus, StoreError> {
        self.status_of(table).await
    }

    /// Of the record that this process believes at the moment: mostly that costs no request.
    async fn coverage(&self, table: TableId) -> Result<Coverage, StoreError> {
        Ok(self.epochs.existing(&self.db, table).await?.coverage.clone())
    }

    async fn merge(&self, table: TableId, rows: Vec<Row>) -> Result<Merged, StoreError> {
        self.write(table, &rows).await
    }

    /// What returned is durable already.
    async fn bulk_load(&self, table: TableId, rows: Vec<Row>) -> Result<(), StoreError> {
        self.write(table, &rows).await.map(drop)
    }

    fn keeps_unfinished_loads(&self) -> bool {
        true
    }

    async fn finish_load(&self, table: TableId, coverage: Coverage) -> Result<(), StoreError> {
        let finish = |record: &mut epochs::Record| {
            record.claims.merge(&coverage);
            record.state = State::Ready;
        };
        self.epochs.change(&self.db, table, WRITABLE, finish).await.map(drop)
    }

    async fn cover(&self, table: TableId, coverage: Coverage) -> Result<(), StoreError> {
        let cover = |record: &mut epochs::Record| record.claims.merge(&coverage);
        self.epochs.change(&self.db, table, WRITABLE, cover).await.map(drop)
    }

    async fn read(&self, table: TableId, reads: &[PointRead<'_>]) -> Result<Vec<Answer>, StoreError> {
        loop {
            let meta = self.epochs.readable(&self.db, table).await?;
            let winners = rows::winners(&self.db, &meta, reads).await?;
            // What is proved is judged by what may be believed now that the rows have been read: a trim that took one of them
            // would have said so before.
            let judged = self.epochs.readable(&self.db, table).await?;
            if judged.incarnation != meta.incarnation {
                continue;
            }
            let answer =
                |(winner, read): (_, &PointRead<'_>)| Answer { winner, proved: judged.coverage.proves(read.at) };
            return Ok(winners.into_iter().zip(reads).map(answer).collect());
        }
    }

    async fn ping(&self) -> Result<Option<i64>, StoreError> {
        // A node that answers for itself may have lost the others: a majority has to answer for a read.
        let majority = self.db.all::<(Option<i32>,)>("asking a majority", &self.db.statements.layout_version, ());
        let clock = self.db.all::<(i64,)>("asking for the time", &self.db.statements.clock_ms, ());
        let (_, clocks) = tokio::try_join!(majority, clock)?;
        Ok(clocks.first().map(|(clock_ms,)| clock_ms.saturating_mul(1_000)))
    }

    async fn scan(
        &self,
        table: TableId,
        cursor: Option<ScanCursor>,
        page_bytes_max: usize,
    ) -> Result<ScanPage, StoreError> {
        let meta = self.epochs.existing(&self.db, table).await?;
        let page = walk::scan(&self.db, &meta, cursor.as_ref(), page_bytes_max).await?;
        match self.is_still(&meta).await? {
            true => Ok(page),
            false => Err(StoreError::UnknownTable(table)),
        }
    }

    async fn trim(&self, table: TableId, trim: Trim) -> Result<u64, StoreError> {
        let raise = |record: &mut epochs::Record| {
            record.trimmed_to_us = record.trimmed_to_us.max(Some(trim.complete_since_us));
        };
        let meta = self.epochs.change(&self.db, table, WRITABLE, raise).await?;
        let from = self.epochs.believed_until();
        walk::trim(&self.db, &meta, trim, from).await
    }

    async fn erase(&self, view: Digest, key: &KeyBytes, up_to_us: i64) -> Result<u64, StoreError> {
        if key.as_slice().len() > KEY_BYTES_MAX {
            return Err(StoreError::KeyTooLong { entity: key.shown(), bytes: key.as_slice().len() });
        }
        erasures::record(&self.db, view, key, up_to_us).await?;
        self.epochs.forget(|table| table.view == view);
        erasures::visit_tables(&self.db, &self.registered, view, key, up_to_us).await
    }

    async fn erased_up_to(&self, view: Digest, key: &KeyBytes) -> Result<Option<i64>, StoreError> {
        erasures::erased_up_to(&self.db, view, key.clone()).await
    }
}
