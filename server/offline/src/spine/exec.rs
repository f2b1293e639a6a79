//! Keys and times of a spine as a leaf of a DataFusion plan, whole or split by entity.

use std::fmt;
use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, RecordBatch};
use arrow_schema::{Field, Schema, SchemaRef};
use datafusion::common::hash_utils::{RandomState, create_hashes};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use eadem_values::DataType;
use futures::TryStreamExt;

use super::reader::{SpineBlock, SpineReader};
use crate::error::OfflineError;
use crate::leaf_exec::Leaf;
use crate::schema::key_arrow_type;
use crate::spec::JoinKey;

/// The column of the times. A key may be called anything that does not begin so.
const TIME_COLUMN: &str = "_at";

/// Which columns of a spine are the join keys of a view, and which is the time.
#[derive(Debug, Clone)]
pub(crate) struct SpineKeys {
    /// The spine's column for each key, with its type.
    columns: Vec<(String, DataType)>,
    time: String,
    schema: SchemaRef,
}

impl SpineKeys {
    /// For these join keys, whose columns in the spine are `columns`.
    ///
    /// # Errors
    /// A key without a type.
    pub(crate) fn try_new(keys: &[JoinKey], columns: &[String], time: &str) -> std::result::Result<Self, OfflineError> {
        let mut fields = Vec::with_capacity(keys.len() + 1);
        let mut typed = Vec::with_capacity(keys.len());
        for (key, column) in keys.iter().zip(columns) {
            let arrow_type = key_arrow_type(key.key_type);
            let data_type = DataType::from_arrow(&arrow_type)
                .ok_or_else(|| OfflineError::Dataset(format!("join key `{}` has no type", key.name)))?;
            typed.push((column.clone(), data_type));
            fields.push(Field::new(&key.name, arrow_type, true));
        }
        fields.push(Field::new(TIME_COLUMN, DataType::Timestamp.to_arrow(), false));
        Ok(Self { columns: typed, time: time.to_owned(), schema: Arc::new(Schema::new(fields)) })
    }

    /// How many keys there are.
    pub(crate) fn len(&self) -> usize {
        self.columns.len()
    }

    /// The key columns of a block.
    pub(crate) fn of(&self, block: &SpineBlock) -> std::result::Result<Vec<ArrayRef>, OfflineError> {
        self.columns.iter().map(|(column, data_type)| block.column(column, *data_type)).collect()
    }

    fn names(&self) -> Vec<&str> {
        self.columns.iter().map(|(column, _)| column.as_str()).chain([self.time.as_str()]).collect()
    }

    fn batch(&self, block: &SpineBlock) -> std::result::Result<RecordBatch, OfflineError> {
        let mut columns = self.of(block)?;
        columns.push(block.times(&self.time)?);
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}

/// In which of `partitions` parts the rows with these keys are: all rows of an entity in the same.
pub(crate) fn partitions_of(keys: &[ArrayRef], partitions: usize) -> std::result::Result<Vec<u16>, OfflineError> {
    let rows = keys.first().map_or(0, |key| key.len());
    let mut hashes = vec![0; rows];
    // The seeds are arbitrary, but not drawn: every pass over the spine has to split it alike.
    create_hashes(keys, &RandomState::with_seed(0), &mut hashes)?;
    Ok(hashes.into_iter().map(|hash| (hash % partitions.max(1) as u64) as u16).collect())
}

/// Gives the keys and times of a spine in as many partitions as asked for, each in the order of the spine. Of a view that
/// has several roles, each block of the spine comes once for each of them, one after the other, so that its history has to be
/// read once.
#[derive(Debug)]
pub(crate) struct SpineParts {
    spine: Arc<SpineReader>,
    /// The keys in each role, under the same names.
    roles: Vec<SpineKeys>,
    schema: SchemaRef,
    block_rows: usize,
    partitions: usize,
}

impl SpineParts {
    /// # Errors
    /// No roles.
    pub(crate) fn try_new(
        spine: Arc<SpineReader>,
        roles: Vec<SpineKeys>,
        block_rows: usize,
        partitions: usize,
    ) -> std::result::Result<Self, OfflineError> {
        let first = roles.first().ok_or_else(|| OfflineError::Dataset("a join needs keys of the spine".to_owned()))?;
        let schema = Arc::clone(&first.schema);
        Ok(Self { spine, roles, schema, block_rows, partitions: partitions.clamp(1, usize::from(u16::MAX)) })
    }

    fn names(&self) -> Vec<&str> {
        self.roles.iter().flat_map(SpineKeys::names).collect()
    }
}

impl Leaf for SpineParts {
    const NAME: &'static str = "SpineExec";

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn partitions(&self) -> usize {
        self.partitions
    }

    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rows={}, roles={}, partitions={}", self.spine.rows(), self.roles.len(), self.partitions)
    }

    fn read(&self, partition: usize) -> Result<SendableRecordBatchStream> {
        let partitions = self.partitions;
        let blocks = self.spine.blocks(Some(&self.names()), self.block_rows).map_err(external)?;
        let part = move |block: &SpineBlock, keys: &SpineKeys| {
            let rows = keys.batch(block)?;
            if partitions == 1 {
                return Ok(rows);
            }
            let of_row = partitions_of(&rows.columns()[..keys.len()], partitions)?;
            let mask: BooleanArray = of_row.into_iter().map(|of_row| Some(usize::from(of_row) == partition)).collect();
            Ok(arrow_select::filter::filter_record_batch(&rows, &mask)?)
        };
        let roles = self.roles.clone();
        let batches = blocks
            .map_ok(move |block| {
                let of_roles: Vec<_> = roles.iter().map(|keys| part(&block, keys)).collect();
                futures::stream::iter(of_roles)
            })
            .try_flatten()
            .map_err(external::<OfflineError>);
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), batches)))
    }
}

fn external<E: std::error::Error + Send + Sync + 'static>(error: E) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}
