//! Erasures: rows that are gone for readers and writers at once, and taken out of the files by a job.
//!
//! Who may be erased up to when, somebody else knows ([`ErasureLedger`]). Every reader and writer of tables asks. Of an entity
//! all rows up to an instant go, so a reader may leave them out before or after it chooses the winner: what the winner beats
//! lies before it.

use std::fmt;
use std::sync::Arc;

use arrow::compute::partition;
use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch};
use arrow_schema::DataType as ArrowType;
use async_trait::async_trait;
use eadem_semantics::erased;
use eadem_values::{EntityKey, KeyType, KeyValue};
use serde_json::Value as Json;

use crate::error::OfflineError;
use crate::ledger::LedgerError;
use crate::schema::COLUMN_EVENT_TIME;
use crate::table::{DataFile, ViewTable};

/// The erasures of one entity type, at one moment.
pub trait ErasedEntities: Send + Sync + fmt::Debug {
    /// Up to when (and with) the rows of an entity are erased, in microseconds; `None` if none are.
    fn up_to_us(&self, key: &EntityKey) -> Option<i64>;

    /// The latest such instant of any entity.
    fn latest_us(&self) -> i64;

    /// The join keys of the entity type, in declared order.
    fn keys(&self) -> &[(String, KeyType)];

    /// Another number whenever more is erased.
    fn revision(&self) -> u64;
}

/// Who knows what is erased.
#[async_trait]
pub trait ErasureLedger: Send + Sync + fmt::Debug {
    /// The erasures of a view's entity type, `name@version`, as this process knows them; `None` if there are none. What others
    /// have erased a moment ago need not be among them unless `now` is set.
    ///
    /// # Errors
    /// The message says why it cannot be told; then nothing is read or written.
    async fn of_view(&self, view: &str, now: bool) -> Result<Option<Arc<dyn ErasedEntities>>, LedgerError>;
}

/// The erasures of a view's entity type, as readers and writers apply them.
#[derive(Debug, Clone)]
pub(crate) struct ErasedRows(Arc<dyn ErasedEntities>);

impl ErasedRows {
    /// What is erased of a view's entity type now; `None` if nothing is.
    pub(crate) async fn of_view(
        ledger: Option<&Arc<dyn ErasureLedger>>,
        view: &str,
        now: bool,
    ) -> Result<Option<Self>, OfflineError> {
        match ledger {
            None => Ok(None),
            Some(ledger) => Ok(ledger.of_view(view, now).await?.map(Self)),
        }
    }

    /// Whether the file can hold an erased row, by its times.
    pub(crate) fn may_be_in(&self, file: &DataFile) -> bool {
        file.event_time_us.is_none_or(|(earliest, _)| earliest <= self.0.latest_us())
    }

    /// The join keys of the entity type, in declared order.
    pub(crate) fn keys(&self) -> &[(String, KeyType)] {
        self.0.keys()
    }

    /// Changes whenever more is erased.
    pub(crate) fn revision(&self) -> u64 {
        self.0.revision()
    }

    /// Whether a row of this entity and time is erased.
    pub(crate) fn takes(&self, key: &EntityKey, event_time_us: i64) -> bool {
        erased(event_time_us, self.0.up_to_us(key))
    }

    /// Which rows stay, of these columns; `None`: all of them.
    ///
    /// # Errors
    /// Columns of other types than keys and times have.
    pub(crate) fn staying(
        &self,
        keys: &[ArrayRef],
        event_times: &ArrayRef,
    ) -> Result<Option<BooleanArray>, OfflineError> {
        let columns: Vec<ArrayRef> = keys
            .iter()
            .map(|column| match column.data_type() {
                ArrowType::Int64 | ArrowType::Utf8 => Ok(column.clone()),
                _ => arrow_cast::cast(column, &ArrowType::Utf8),
            })
            .collect::<Result<_, _>>()?;
        let times = event_times.as_primitive::<TimestampMicrosecondType>().values();
        let latest_us = self.0.latest_us();
        if times.iter().all(|time_us| *time_us > latest_us) {
            return Ok(None);
        }
        let part = |column: &ArrayRef, row: usize| match column.data_type() {
            ArrowType::Int64 => KeyValue::Int64(column.as_primitive::<Int64Type>().value(row)),
            _ => KeyValue::Utf8(column.as_string::<i32>().value(row).to_owned()),
        };
        let (mut stays, mut all_stay) = (vec![true; times.len()], true);
        // Rows of one entity mostly lie together.
        for rows in partition(&columns)?.ranges() {
            if times[rows.clone()].iter().all(|time_us| *time_us > latest_us) {
                continue;
            }
            let key = EntityKey(columns.iter().map(|column| part(column, rows.start)).collect());
            let up_to_us = self.0.up_to_us(&key);
            for row in rows {
                stays[row] = !erased(times[row], up_to_us);
                all_stay &= stays[row];
            }
        }
        Ok((!all_stay).then(|| BooleanArray::from(stays)))
    }

    /// The same of a batch with columns of the table's names.
    pub(crate) fn staying_in(&self, batch: &RecordBatch) -> Result<Option<BooleanArray>, OfflineError> {
        let column = |name: &str| Ok::<_, OfflineError>(batch.column(batch.schema().index_of(name)?).clone());
        let keys = self.0.keys().iter().map(|(name, _)| column(name)).collect::<Result<Vec<_>, _>>()?;
        self.staying(&keys, &column(COLUMN_EVENT_TIME)?)
    }

    /// The batch without erased rows, and how many these were.
    pub(crate) fn without(&self, batch: RecordBatch) -> Result<(RecordBatch, u64), OfflineError> {
        match self.staying_in(&batch)? {
            None => Ok((batch, 0)),
            Some(stays) => {
                let rows = batch.num_rows();
                let kept = arrow_select::filter::filter_record_batch(&batch, &stays)?;
                let gone = (rows - kept.num_rows()) as u64;
                Ok((kept, gone))
            }
        }
    }

    /// Whether a row is erased of which quarantine keeps this. A row of an erased entity whose time cannot be told goes as well;
    /// one that names no entity stays.
    pub(crate) fn takes_kept(&self, inputs: &str) -> bool {
        let Ok(kept) = serde_json::from_str::<Json>(inputs) else { return false };
        let part = |(name, key_type): &(String, KeyType)| KeyValue::from_json(name, *key_type, &kept["keys"][name]);
        let Ok(key) = self.0.keys().iter().map(part).collect::<Result<Vec<_>, _>>() else { return false };
        let Some(up_to_us) = self.0.up_to_us(&EntityKey(key)) else { return false };
        let time_us = kept["event_time"].as_str().and_then(|text| eadem_values::parse_timestamp(text).ok());
        time_us.is_none_or(|time_us| time_us <= up_to_us)
    }
}

impl ViewTable {
    /// What is erased of the view's entity type, for readers.
    pub(crate) async fn erased(&self) -> Result<Option<ErasedRows>, OfflineError> {
        ErasedRows::of_view(self.erasures.as_ref(), self.view_id(), false).await
    }

    /// What is erased of it by now, by whichever process: for writers.
    pub(crate) async fn erased_now(&self) -> Result<Option<ErasedRows>, OfflineError> {
        ErasedRows::of_view(self.erasures.as_ref(), self.view_id(), true).await
    }
}
