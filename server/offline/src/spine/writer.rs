//! Spines of our own making: rows that become a kept spine, named by the digest of its bytes.

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use object_store::ObjectStoreExt;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::{KeptSpine, SpineFormat};
use crate::error::OfflineError;
use crate::location::{Location, OfflineStore};
use crate::upload::Upload;

/// Rows of one row group.
const ROW_GROUP_ROWS: usize = 131_072;

/// Writes a spine row group by row group.
pub(super) struct SpineWriter {
    building: Location,
    encoder: ArrowWriter<Vec<u8>>,
    upload: Upload,
    rows: u64,
}

impl SpineWriter {
    /// `name` tells spines from each other that are written at the same time.
    pub(super) async fn begin(store: &OfflineStore, name: &str, schema: SchemaRef) -> Result<Self, OfflineError> {
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            .set_created_by("eadem".to_owned())
            .build();
        let building = store.spine_location(&format!("_building/{name}.parquet"))?;
        Ok(Self {
            encoder: ArrowWriter::try_new(Vec::new(), schema, Some(properties))?,
            upload: Upload::begin(building.clone()).await?,
            building,
            rows: 0,
        })
    }

    pub(super) async fn write(&mut self, rows: &RecordBatch) -> Result<(), OfflineError> {
        self.rows += rows.num_rows() as u64;
        self.encoder.write(rows)?;
        let bytes = std::mem::take(self.encoder.inner_mut());
        if bytes.is_empty() {
            return Ok(());
        }
        self.upload.send(bytes).await
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Takes back what was written, because of this error.
    pub(super) async fn discard_after(self, error: OfflineError) -> OfflineError {
        // What a store keeps of it all the same nobody ever sees.
        let _discarded = self.upload.discard().await;
        error
    }

    /// Keeps the spine under its digest.
    pub(super) async fn finish(mut self, store: &OfflineStore) -> Result<KeptSpine, OfflineError> {
        self.encoder.finish()?;
        let bytes = std::mem::take(self.encoder.inner_mut());
        self.upload.send(bytes).await?;
        let kept = KeptSpine { digest: self.upload.digest(), format: SpineFormat::Parquet };
        self.upload.publish().await?;
        let place = store.kept_spine_location(&kept)?;
        self.building.store.rename(&self.building.path, &place.path).await.map_err(|error| match error {
            object_store::Error::NotFound { .. } => OfflineError::Dataset(
                "the spine that was being made is gone, as an erasure takes away those that nothing names; run this job again"
                    .to_owned(),
            ),
            other => other.into(),
        })?;
        Ok(kept)
    }
}
