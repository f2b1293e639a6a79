//! A table's log, read without the library that wrote it.

use std::collections::BTreeSet;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::Value as Json;

/// The actions of every version, from 0 on. A version that is missing is a fault of the table.
pub async fn versions(store: &dyn ObjectStore, table: &str) -> Vec<Vec<Json>> {
    let folder = Path::from(table).join("_delta_log");
    let found: Vec<_> = store.list(Some(&folder)).try_collect().await.unwrap();
    let mut commits: Vec<Path> = found.into_iter().map(|object| object.location).collect();
    commits.retain(|path| path.extension() == Some("json"));
    commits.sort();
    let mut versions = Vec::new();
    for (number, commit) in commits.iter().enumerate() {
        assert_eq!(
            commit.filename(),
            Some(format!("{number:020}.json").as_str()),
            "versions have no gaps: {commits:?}"
        );
        let bytes = store.get(commit).await.unwrap().bytes().await.unwrap();
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        versions.push(lines.map(|line| serde_json::from_slice(line).unwrap()).collect());
    }
    versions
}

/// The job of each version that has one, in the order of versions.
pub fn jobs(versions: &[Vec<Json>]) -> Vec<(usize, String)> {
    let of_version = |(number, actions): (usize, &Vec<Json>)| {
        let job = |action: &Json| action["txn"]["appId"].as_str().map(str::to_owned);
        actions.iter().filter_map(job).map(|job| (number, job)).collect::<Vec<_>>()
    };
    versions.iter().enumerate().flat_map(of_version).collect()
}

/// The data files of the last version. Their names are digests of their bytes.
pub fn live_files(versions: &[Vec<Json>]) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    for actions in versions {
        for action in actions {
            if let Some(path) = action["remove"]["path"].as_str() {
                files.remove(path);
            }
            if let Some(path) = action["add"]["path"].as_str() {
                assert!(files.insert(path.to_owned()), "{path} is added a second time");
            }
        }
    }
    files
}
