//! The files of a source: which there are, what their paths say, and whether they are still the same.

use std::collections::BTreeMap;

use eadem_values::Digest;
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use percent_encoding::percent_decode_str;
use sha2::{Digest as _, Sha256};

use crate::error::OfflineError;
use crate::file_bytes;
use crate::ledger::{LaneOrigin, PlannedFile};
use crate::location::Location;

/// What a Hive writer calls the folder of rows whose partition column is null.
const HIVE_NULL: &str = "__HIVE_DEFAULT_PARTITION__";

/// A file of a source: one lane.
#[derive(Debug, Clone)]
pub(crate) struct SourceFile {
    /// Absolute URL.
    pub(crate) url: String,
    /// Relative to the location that it was found in; a single file's own name.
    pub(crate) path: String,
    pub(crate) location: Location,
    pub(crate) bytes: u64,
    pub(crate) modified_ms: i64,
    /// Columns that hold one value for the whole file, and that value: what its folders say, `date=2024-01-01`. `None` is
    /// null.
    pub(crate) partition: Vec<(String, Option<String>)>,
}

/// The files at the locations, in the order of their paths; in folders those whose names end in one of `suffixes`. Names
/// that start with `_` or `.` are not looked at.
pub(super) async fn list_files(locations: &[String], suffixes: &[&str]) -> Result<Vec<SourceFile>, OfflineError> {
    let mut files: BTreeMap<String, SourceFile> = BTreeMap::new();
    for text in locations {
        let location = Location::parse(text)?;
        for file in list_location(&location, suffixes).await? {
            files.entry(file.url.clone()).or_insert(file);
        }
    }
    Ok(files.into_values().collect())
}

async fn list_location(location: &Location, suffixes: &[&str]) -> Result<Vec<SourceFile>, OfflineError> {
    // A folder has no head on the local file system either: object stores know only objects.
    if let Ok(meta) = location.store.head(&location.path).await {
        let name = location.path.filename().unwrap_or_default().to_owned();
        return Ok(vec![SourceFile {
            url: location.url.to_string(),
            path: name,
            location: location.clone(),
            bytes: meta.size,
            modified_ms: meta.last_modified.timestamp_millis(),
            partition: Vec::new(),
        }]);
    }
    if location.local_path().is_some_and(|path| !path.exists()) {
        return Err(OfflineError::Location { location: location.url.to_string(), reason: "does not exist".to_owned() });
    }
    let objects: Vec<_> = location.store.list(Some(&location.path)).try_collect().await?;
    let mut files = Vec::new();
    for meta in objects {
        let parts: Vec<String> = match meta.location.prefix_match(&location.path) {
            Some(parts) => parts.map(|part| part.as_ref().to_owned()).collect(),
            None => continue,
        };
        let hidden = parts.iter().any(|part| part.starts_with(['_', '.']));
        let is_wanted = suffixes.iter().any(|suffix| meta.location.as_ref().ends_with(suffix));
        if hidden || !is_wanted {
            continue;
        }
        let path = parts.join("/");
        let file = location.below(&path)?;
        files.push(SourceFile {
            url: file.url.to_string(),
            partition: hive_partition(&parts)?,
            path,
            location: Location { path: meta.location.clone(), ..file },
            bytes: meta.size,
            modified_ms: meta.last_modified.timestamp_millis(),
        });
    }
    Ok(files)
}

/// What the folders of a file say: `region=eu/date=2024-01-01/part.parquet`.
fn hive_partition(parts: &[String]) -> Result<Vec<(String, Option<String>)>, OfflineError> {
    let mut partition: Vec<(String, Option<String>)> = Vec::new();
    let folders = parts.split_last().map_or(&[][..], |(_, folders)| folders);
    for folder in folders {
        let Some((name, value)) = folder.split_once('=').filter(|(name, _)| !name.is_empty()) else { continue };
        let decoded = |text: &str| {
            let text = percent_decode_str(text).decode_utf8().map(|text| text.into_owned());
            text.map_err(|_| OfflineError::File {
                file: parts.join("/"),
                reason: format!("the folder `{folder}` is not UTF-8 once its escapes are resolved"),
            })
        };
        let name = decoded(name)?;
        let value = if value == HIVE_NULL { None } else { Some(decoded(value)?) };
        if partition.iter().any(|(known, _)| *known == name) {
            let reason = format!("two of its folders give `{name}`");
            return Err(OfflineError::File { file: parts.join("/"), reason });
        }
        partition.push((name, value));
    }
    Ok(partition)
}

pub(crate) fn file_error(file: &SourceFile, reason: impl std::fmt::Display) -> OfflineError {
    OfflineError::File { file: file.url.clone(), reason: reason.to_string() }
}

/// What names the file's lane: SHA-256 of its bytes, and of what its folders say where they say anything. The same bytes
/// in two partitions are different rows.
pub(crate) async fn lane_digest(file: &SourceFile) -> Result<String, OfflineError> {
    let of_bytes = file_bytes::digest_of(file.location.store.as_ref(), &file.location.path).await;
    let mut digest = of_bytes.map_err(|error| file_error(file, error))?;
    if !file.partition.is_empty() {
        let mut hasher = Sha256::new_with_prefix(digest.as_bytes());
        hasher.update(serde_json::json!(file.partition).to_string());
        digest = Digest::from_bytes(hasher.finalize().into());
    }
    Ok(format!("sha256:{}", digest.hex()))
}

/// The planned file as it is now, if it is still the same.
pub(crate) async fn reopen(planned: &PlannedFile) -> Result<SourceFile, OfflineError> {
    let location = Location::parse(&planned.url)?;
    let gone = |error: object_store::Error| {
        let is_extract = matches!(planned.origin, Some(LaneOrigin::Extract { .. }));
        let reason = match error {
            object_store::Error::NotFound { .. } if is_extract => {
                "what the job had extracted is gone, as an erasure takes away the extracts of its entity type; cancel this job \
                 and start a new one"
                    .to_owned()
            }
            other => other.to_string(),
        };
        OfflineError::File { file: planned.url.clone(), reason }
    };
    let meta = location.store.head(&location.path).await.map_err(gone)?;
    let file = SourceFile {
        url: planned.url.clone(),
        path: planned.path.clone(),
        location,
        bytes: meta.size,
        modified_ms: meta.last_modified.timestamp_millis(),
        partition: planned.partition.clone(),
    };
    let untouched = file.bytes == planned.bytes && file.modified_ms == planned.modified_ms;
    if !untouched && lane_digest(&file).await? != planned.digest {
        let reason = "has changed while the job was reading it; cancel this job and start a new one";
        return Err(file_error(&file, reason));
    }
    Ok(file)
}
