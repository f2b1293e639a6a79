//! Taking what is kept of erased rows out of a quarantine table.

use std::sync::Arc;

use arrow_array::{BooleanArray, RecordBatch};
use async_trait::async_trait;
use futures::TryStreamExt;

use super::read::{BATCH_ROWS, Quarantine};
use super::{INPUTS, schema};
use crate::backfill::Cancel;
use crate::commit::{Base, Change, LiveFile, Proposal, adds_of, commit_once};
use crate::erasure::{DoomedFiles, ErasedRows, ErasureReport, RewrittenFiles};
use crate::error::OfflineError;
use crate::partition::PartitionWriter;
use crate::read::typed_column;
use crate::table::{DataFile, load};

const BUFFERED_BYTES_MAX: usize = 64 << 20;

impl Quarantine {
    /// Takes what is kept of rows that are erased by now out of the current version. The same job again never commits twice.
    ///
    /// # Errors
    /// A table that cannot be read, a full disk, cancellation. The table is then as it was.
    pub async fn erase_rows(&self, job: &str, cancel: &Cancel) -> Result<ErasureReport, OfflineError> {
        let Some(erased) = self.erased().await? else { return Ok(ErasureReport::default()) };
        let Some(table) = load(&self.location, &self.log_store).await? else { return Ok(ErasureReport::default()) };
        let mut proposal = Erased { quarantine: self, job, erased, cancel };
        let committed = commit_once(&self.location, &self.log_store, table, job, &mut proposal).await?;
        Ok(ErasureReport::of(committed))
    }

    /// As [`crate::doomed_files`], of the quarantine table.
    ///
    /// # Errors
    /// A folder that cannot be listed, a file that cannot be read, cancellation.
    pub async fn doomed_files(&self, cancel: &Cancel) -> Result<Option<DoomedFiles>, OfflineError> {
        let Some(erased) = self.erased().await? else { return Ok(None) };
        let holds_erased = async |file: &DataFile| self.holds_erased(file, &erased).await;
        DoomedFiles::find(&self.location, cancel, holds_erased).await.map(Some)
    }

    async fn holds_erased(&self, file: &DataFile, erased: &ErasedRows) -> Result<bool, OfflineError> {
        let mut batches = self.whole_lines(file).await?;
        while let Some(batch) = batches.try_next().await? {
            if staying(&batch, erased)?.true_count() < batch.num_rows() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The lines of a file, with all columns as they are written.
    async fn whole_lines(
        &self,
        file: &DataFile,
    ) -> Result<futures::stream::BoxStream<'static, Result<RecordBatch, OfflineError>>, OfflineError> {
        let (builder, damaged) = self.open_file(&file.path, file.bytes).await?;
        let stream = builder.with_batch_size(BATCH_ROWS).build().map_err(&damaged)?;
        Ok(Box::pin(stream.map_err(damaged).and_then(async |batch| in_order(&batch))))
    }
}

fn in_order(batch: &RecordBatch) -> Result<RecordBatch, OfflineError> {
    let wanted = schema();
    let column = |field: &Arc<arrow_schema::Field>| typed_column(batch, field.name(), field.data_type());
    let columns = wanted.fields().iter().map(column).collect::<Result<Vec<_>, _>>()?;
    Ok(RecordBatch::try_new(wanted, columns)?)
}

fn staying(batch: &RecordBatch, erased: &ErasedRows) -> Result<BooleanArray, OfflineError> {
    let inputs = typed_column(batch, INPUTS, &arrow_schema::DataType::Utf8)?;
    let inputs = arrow_array::cast::AsArray::as_string::<i32>(&inputs);
    Ok(inputs.iter().map(|inputs| Some(!inputs.is_some_and(|inputs| erased.takes_kept(inputs)))).collect())
}

struct Erased<'a> {
    quarantine: &'a Quarantine,
    job: &'a str,
    erased: ErasedRows,
    cancel: &'a Cancel,
}

impl Erased<'_> {
    /// The file without erased rows, and how many these are; `None` if there are none.
    async fn rewritten(
        &self,
        file: &LiveFile,
    ) -> Result<Option<(u64, Vec<deltalake_core::kernel::Add>)>, OfflineError> {
        let quarantine = self.quarantine;
        if !quarantine.holds_erased(&file.file, &self.erased).await? {
            return Ok(None);
        }
        let mut writer =
            PartitionWriter::new(quarantine.store.clone(), schema(), None, BUFFERED_BYTES_MAX).of_job(self.job);
        let (mut rows, mut batches) = (0, quarantine.whole_lines(&file.file).await?);
        while let Some(batch) = batches.try_next().await? {
            if self.cancel.is_cancelled() {
                return Err(OfflineError::Cancelled);
            }
            let kept = arrow_select::filter::filter_record_batch(&batch, &staying(&batch, &self.erased)?)?;
            rows += (batch.num_rows() - kept.num_rows()) as u64;
            writer.write(kept).await?;
        }
        Ok(Some((rows, adds_of(&writer.finish().await?)?)))
    }
}

#[async_trait]
impl Proposal for Erased<'_> {
    async fn on(&mut self, base: &Base) -> Result<Option<Change>, OfflineError> {
        let mut rewritten = RewrittenFiles::default();
        for file in &base.files {
            if let Some((rows, kept)) = self.rewritten(file).await? {
                rewritten.add(file, rows, kept);
            }
        }
        Ok((!rewritten.is_empty()).then(|| rewritten.into_change(Vec::new())))
    }
}
