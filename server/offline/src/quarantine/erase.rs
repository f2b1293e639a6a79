//! What is kept of refused rows: committed without what is erased by then, and taken out where it is erased later.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{BooleanArray, RecordBatch};
use arrow_schema::DataType as ArrowType;
use async_trait::async_trait;
use deltalake_core::DeltaTable;
use deltalake_core::kernel::Action;
use deltalake_core::logstore::LogStoreRef;
use futures::TryStreamExt;
use object_store::ObjectStore;
use parquet::arrow::ProjectionMask;
use serde_json::Value as Json;

use super::read::{BATCH_ROWS, Quarantine};
use super::{INPUTS, delta_fields, schema};
use crate::commit::{Base, Change, LiveFile, NewFiles, Proposal, append, commit_once};
use crate::erase_files::{Batches, Erasable};
use crate::erasure::ErasedRows;
use crate::error::OfflineError;
use crate::location::Location;
use crate::partition::PartitionWriter;
use crate::read::typed_column;
use crate::replace::as_written;
use crate::table::{DataFile, load, load_or_create, table_error};

const BUFFERED_BYTES_MAX: usize = 64 << 20;

#[async_trait]
impl Erasable for Quarantine {
    fn place(&self) -> &Location {
        &self.location
    }

    fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    fn log_store(&self) -> &LogStoreRef {
        &self.log_store
    }

    async fn erased_by_now(&self) -> Result<Option<ErasedRows>, OfflineError> {
        self.erased_now().await
    }

    async fn loaded(&self) -> Result<Option<DeltaTable>, OfflineError> {
        load(&self.location, &self.log_store).await
    }

    async fn deciding_rows(&self, file: &DataFile) -> Result<Batches, OfflineError> {
        let (builder, damaged) = self.open_file(&file.path, file.bytes).await?;
        let mask = ProjectionMask::roots(builder.parquet_schema(), [builder.schema().index_of(INPUTS)?]);
        let stream = builder.with_projection(mask).with_batch_size(BATCH_ROWS).build().map_err(&damaged)?;
        Ok(Box::pin(stream.map_err(damaged)))
    }

    async fn whole_rows(&self, file: &DataFile) -> Result<Batches, OfflineError> {
        let (builder, damaged) = self.open_file(&file.path, file.bytes).await?;
        let stream = builder.with_batch_size(BATCH_ROWS).build().map_err(&damaged)?;
        Ok(Box::pin(stream.map_err(damaged).and_then(async |batch| as_written(&schema(), &batch))))
    }

    fn staying(&self, batch: &RecordBatch, erased: &ErasedRows) -> Result<Option<BooleanArray>, OfflineError> {
        let inputs = typed_column(batch, INPUTS, &ArrowType::Utf8)?;
        let goes = |inputs: Option<&str>| inputs.is_some_and(|inputs| erased.takes_kept(inputs));
        let stays: BooleanArray = inputs.as_string::<i32>().iter().map(|inputs| Some(!goes(inputs))).collect();
        Ok((stays.true_count() < stays.len()).then_some(stays))
    }

    fn rewriter(&self, job: &str, file: &LiveFile) -> PartitionWriter {
        let writer = PartitionWriter::new(self.store.clone(), schema(), None, BUFFERED_BYTES_MAX);
        writer.of_job(job).of_lane(file.lane.as_deref())
    }

    async fn commit_info(&self, _: u64) -> Result<Vec<(String, Json)>, OfflineError> {
        Ok(Vec::new())
    }
}

/// What a job puts into quarantine.
struct Refused<'a> {
    new: NewFiles<'a>,
}

#[async_trait]
impl Proposal for Refused<'_> {
    async fn on(&mut self, _: &Base) -> Result<Option<Change>, OfflineError> {
        let adds = self.new.ready().await?.iter().cloned();
        Ok(Some(Change { actions: adds.map(Action::Add).collect(), info: Vec::new(), operation: append() }))
    }
}

impl Quarantine {
    /// Makes a job's refused rows visible, unless it has done so already.
    pub(crate) async fn commit(&self, job: &str, adds: &[Json]) -> Result<(), OfflineError> {
        let table = load_or_create(&self.location, &self.log_store, delta_fields(), &[], &[]).await?;
        let mut proposal = Refused { new: NewFiles::of(self, job, adds)? };
        let committed = commit_once(&self.location, &self.log_store, table, job, &mut proposal).await?;
        let committed = committed.ok_or_else(|| table_error(&self.location, "a job has nothing to commit"))?;
        proposal.new.discard_uncommitted(&committed).await
    }
}
