//! Kept spines in which entities stand that were erased since: which these are, and that they go.

use arrow_array::{Array, BooleanArray};
use eadem_values::DataType;
use futures::TryStreamExt;
use object_store::ObjectMeta;

use super::reader::{SpineBlock, SpineReader};
use super::{KeptSpine, file_failed};
use crate::cancel::Cancel;
use crate::dataset::SpineColumns;
use crate::erasure::ErasedRows;
use crate::error::OfflineError;
use crate::file_bytes;
use crate::location::OfflineStore;
use crate::schema::key_arrow_type;
use crate::table::{delete_if_there, is_there};

/// Rows that are looked at together.
const BLOCK_ROWS: usize = 65_536;

/// A file among the kept spines; also one that somebody is just making, or has left half made.
#[derive(Debug, Clone)]
pub struct SpineFile(ObjectMeta);

impl SpineFile {
    /// Where it is, as [`OfflineStore::spine_path`] says it.
    pub fn path(&self) -> &str {
        self.0.location.as_ref()
    }

    /// How large it is.
    pub fn bytes(&self) -> u64 {
        self.0.size
    }
}

/// How a service reads a kept spine, as far as one entity type is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpineUse {
    /// The spine.
    pub kept: KeptSpine,
    /// Its column of times.
    pub timestamp: String,
    /// For each role in which the service asks for the type its columns of the join keys, in declared order.
    pub keys: Vec<Vec<String>>,
}

impl SpineUse {
    /// `keys` are the join keys by the names that the service knows.
    pub fn new(kept: KeptSpine, columns: &SpineColumns, keys: &[Vec<String>]) -> Self {
        let column = |name: &String| columns.column(name).to_owned();
        let keys = keys.iter().map(|names| names.iter().map(column).collect()).collect();
        Self { kept, timestamp: columns.timestamp.clone(), keys }
    }
}

/// What stands in a spine of entities that are erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErasedInSpine {
    /// Nothing.
    Nothing,
    /// So many rows.
    Rows(u64),
    /// It cannot be told: the bytes are there, and are no rows of keys and times.
    Unreadable,
}

impl OfflineStore {
    /// The files of all kept spines.
    ///
    /// # Errors
    /// A store that cannot be listed.
    pub async fn kept_spines(&self) -> Result<Vec<SpineFile>, OfflineError> {
        Ok(self.list_below("spines").await?.into_iter().map(SpineFile).collect())
    }

    /// Where the file of a spine is.
    ///
    /// # Errors
    /// None that the name of a spine can have.
    pub fn spine_path(&self, kept: &KeptSpine) -> Result<String, OfflineError> {
        Ok(self.kept_spine_location(kept)?.path.to_string())
    }

    /// Deletes the file of a spine. One that is gone already is as good.
    ///
    /// # Errors
    /// A store that refuses.
    pub async fn delete_spine(&self, file: &SpineFile) -> Result<(), OfflineError> {
        delete_if_there(self.root.store.as_ref(), &file.0.location).await
    }

    /// Deletes a kept spine that nothing names yet.
    ///
    /// # Errors
    /// A store that refuses.
    pub async fn discard_spine(&self, kept: &KeptSpine) -> Result<(), OfflineError> {
        let place = self.kept_spine_location(kept)?;
        delete_if_there(place.store.as_ref(), &place.path).await
    }

    /// Whether the store still has a spine that it kept.
    ///
    /// # Errors
    /// A store that does not answer.
    pub async fn keeps_spine(&self, kept: &KeptSpine) -> Result<bool, OfflineError> {
        let place = self.kept_spine_location(kept)?;
        is_there(place.store.as_ref(), &place.path).await
    }

    /// What stands in a kept spine of entities of a view's type, `name@version`, that are erased by now. `memory_bytes_max`
    /// are those of a job.
    ///
    /// # Errors
    /// A store or a ledger that does not answer, cancellation.
    pub async fn erased_in_spine(
        &self,
        view: &str,
        spine: &SpineUse,
        memory_bytes_max: usize,
        cancel: &Cancel,
    ) -> Result<ErasedInSpine, OfflineError> {
        if spine.keys.is_empty() || !self.keeps_spine(&spine.kept).await? {
            return Ok(ErasedInSpine::Nothing);
        }
        let Some(erased) = ErasedRows::of_view(self.erasures.as_ref(), view, true).await? else {
            return Ok(ErasedInSpine::Nothing);
        };
        match self.count_erased(&erased, spine, memory_bytes_max, cancel).await {
            Ok(0) => Ok(ErasedInSpine::Nothing),
            Ok(rows) => Ok(ErasedInSpine::Rows(rows)),
            Err(OfflineError::Cancelled) => Err(OfflineError::Cancelled),
            // Only where the store gives all bytes is it they that cannot be read.
            Err(_) => {
                let copy = self.kept_spine_location(&spine.kept)?;
                let read = file_bytes::digest_of(copy.store.as_ref(), &copy.path).await;
                read.map_err(|error| file_failed(&copy, error))?;
                Ok(ErasedInSpine::Unreadable)
            }
        }
    }

    async fn count_erased(
        &self,
        erased: &ErasedRows,
        spine: &SpineUse,
        memory_bytes_max: usize,
        cancel: &Cancel,
    ) -> Result<u64, OfflineError> {
        let types = erased.keys().iter().map(|(_, key_type)| DataType::from_arrow(&key_arrow_type(*key_type)));
        let types: Vec<DataType> = types.map(|known| known.unwrap_or(DataType::Utf8)).collect();
        let of_keys = spine.keys.iter().flat_map(|columns| columns.iter().cloned().zip(types.iter().copied()));
        let wanted = of_keys.chain([(spine.timestamp.clone(), DataType::Timestamp)]).collect();
        let location = self.kept_spine_location(&spine.kept)?.url.to_string();
        let reader = SpineReader::open(self, &location, Some(&spine.kept), &wanted, memory_bytes_max).await?;
        let columns: Vec<&str> = wanted.keys().map(String::as_str).collect();
        let mut blocks = reader.blocks(Some(&columns), BLOCK_ROWS)?;
        let mut rows = 0;
        while let Some(block) = blocks.try_next().await? {
            cancel.check()?;
            rows += erased_in_block(erased, spine, &types, &block)?;
        }
        Ok(rows)
    }
}

/// The rows of a block in which an entity stands, in any role, that is erased at the row's time.
fn erased_in_block(
    erased: &ErasedRows,
    spine: &SpineUse,
    types: &[DataType],
    block: &SpineBlock,
) -> Result<u64, OfflineError> {
    let times = block.times(&spine.timestamp)?;
    let mut goes = vec![false; times.len()];
    for columns in &spine.keys {
        let keys = columns.iter().zip(types).map(|(column, data_type)| block.column(column, *data_type));
        let keys = keys.collect::<Result<Vec<_>, _>>()?;
        let Some(stays) = erased.staying(&keys, &times)? else { continue };
        // A row without a key is nobody's.
        let is_erased = |row: usize| !stays.value(row) && keys.iter().all(|key| key.is_valid(row));
        goes.iter_mut().enumerate().for_each(|(row, goes)| *goes |= is_erased(row));
    }
    Ok(BooleanArray::from(goes).true_count() as u64)
}
