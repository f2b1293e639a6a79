//! What was extracted from databases for a view version: copies of rows, which an erasure takes away.

use object_store::ObjectMeta;

use crate::cancel::Cancel;
use crate::error::OfflineError;
use crate::location::OfflineStore;
use crate::table::delete_if_there;

/// The folder of all extracts.
pub(crate) const EXTRACTS_FOLDER: &str = "extracts";

/// Files that were deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeletedFiles {
    /// How many.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl DeletedFiles {
    /// Counts one more.
    pub fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

impl OfflineStore {
    /// Deletes everything that was extracted for a view version, whoever needs it still. Which entities an extract holds can be
    /// told only of the rows that the view's source lets through, and it holds the others as well.
    ///
    /// # Errors
    /// A store that cannot be listed or refuses, cancellation.
    pub async fn delete_extracts(
        &self,
        view: &str,
        version: u32,
        cancel: &Cancel,
    ) -> Result<DeletedFiles, OfflineError> {
        let extracts: Vec<ObjectMeta> = self.list_below(&format!("{EXTRACTS_FOLDER}/{view}/v{version}")).await?;
        let mut deleted = DeletedFiles::default();
        for extract in extracts {
            cancel.check()?;
            delete_if_there(self.root.store.as_ref(), &extract.location).await?;
            deleted.add(extract.size);
        }
        Ok(deleted)
    }
}
