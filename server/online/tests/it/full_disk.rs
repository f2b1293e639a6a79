//! A disk that takes no more: clear errors, reads go on, nothing acknowledged is lost, nothing half-written is seen.
//!
//! A limit on file size stands for the full disk; the store meets it in the same place and in the same way.

use std::path::Path;
use std::process::{Command, Stdio};

use eadem_online::{Coverage, EmbeddedOptions, EmbeddedStore, OnlineStore, PointRead, StoreError};
use eadem_semantics::ReadAt;

use crate::support::{row, table};

/// In blocks of 512 bytes: room for the store's files, and for some hundred calls.
const FILE_BLOCKS_MAX: u32 = 16 * 1024;
const ROWS_PER_CALL: i64 = 200;

#[test]
#[ignore = "run by other tests, as a process of its own"]
fn fill_the_disk_in_a_child_process() {
    let folder = std::env::var("EADEM_TEST_STORE").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let store = EmbeddedStore::open(folder, EmbeddedOptions::default()).unwrap();
        store.create_epoch(table(1)).await.unwrap();
        store.finish_load(table(1), Coverage::since(0)).await.unwrap();
        let mut acknowledged = 0;
        let error = loop {
            let call = acknowledged + 1;
            let rows = (0..ROWS_PER_CALL).map(|n| row(&format!("e{n} {}", "-".repeat(200)), call)).collect();
            match store.merge(table(1), rows).await {
                Ok(_) => acknowledged = call,
                Err(error) => break error,
            }
            assert!(acknowledged < 10_000, "the disk is never full");
        };
        println!("acknowledged {acknowledged}");
        println!("error {error}");
        assert!(matches!(error, StoreError::Failed { .. }));
        let newest = row(&format!("e0 {}", "-".repeat(200)), acknowledged);
        let read = PointRead { key: &newest.key, at: ReadAt::as_known_then(acknowledged) };
        let answer = store.read(table(1), &[read]).await;
        println!("read {answer:?}");
        assert_eq!(answer.unwrap()[0].winner.as_ref().unwrap().body, newest.body);
        assert!(store.merge(table(1), vec![row("another", 1)]).await.is_err());
        println!("done");
    });
}

fn fill(folder: &Path, test: &str) -> String {
    let this = std::env::current_exe().unwrap();
    let arguments = format!("--exact full_disk::{test} --ignored --nocapture");
    let script = format!("trap '' XFSZ; ulimit -f {FILE_BLOCKS_MAX}; exec '{}' {arguments}", this.display());
    let output = Command::new("sh")
        .args(["-c", &script])
        .env("EADEM_TEST_STORE", folder)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn a_full_disk_is_a_clear_error_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let said = fill(folder.path(), "fill_the_disk_in_a_child_process");
    assert!(said.contains("\ndone"), "{said}");
    let line_of =
        |word: &str| said.lines().find_map(|line| line.strip_prefix(word)).unwrap_or_else(|| panic!("{said}"));
    let acknowledged: i64 = line_of("acknowledged ").parse().unwrap();
    let error = line_of("error ");
    assert!(error.contains("writing") && error.contains("1.redb"), "{error}");

    // With room again, everything acknowledged is there, and the call that failed is there whole or not at all.
    let store = EmbeddedStore::open(folder.path(), EmbeddedOptions::default()).unwrap();
    let rows = store.status(table(1)).await.unwrap().rows as i64;
    assert!(
        rows == acknowledged * ROWS_PER_CALL || rows == (acknowledged + 1) * ROWS_PER_CALL,
        "{rows}, {acknowledged}"
    );
    store.merge(table(1), vec![row("after", acknowledged + 2)]).await.unwrap();
    assert_eq!(store.status(table(1)).await.unwrap().rows as i64, rows + 1);
}

/// Erasures with keys so long that some hundred of them fill the catalogue.
const LONG_KEY_BYTES: usize = 12 * 1024;

#[test]
#[ignore = "run by other tests, as a process of its own"]
fn fill_the_catalogue_in_a_child_process() {
    let folder = std::env::var("EADEM_TEST_STORE").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let store = EmbeddedStore::open(folder, EmbeddedOptions::default()).unwrap();
        store.create_epoch(table(1)).await.unwrap();
        let long_key = |n: usize| row(&format!("{n} {}", "-".repeat(LONG_KEY_BYTES)), 0).key;
        let mut erased = 0;
        let error = loop {
            match store.erase(table(1).view, &long_key(erased), 1).await {
                Ok(_) => erased += 1,
                Err(error) => break error,
            }
            assert!(erased < 10_000, "the disk is never full");
        };
        println!("error {error}");
        assert!(erased > 0 && matches!(error, StoreError::Failed { .. }));
        // What still finds room is written, in the same process: one failure does not poison the store.
        store.drop_epoch(table(1)).await.unwrap();
        store.create_epoch(table(2)).await.unwrap();
        for n in 0..erased {
            assert_eq!(store.erased_up_to(table(1).view, &long_key(n)).await.unwrap(), Some(1), "erasure {n}");
        }
        println!("done");
    });
}

#[tokio::test]
async fn a_disk_that_was_full_does_not_poison_a_running_store() {
    let folder = tempfile::tempdir().unwrap();
    let said = fill(folder.path(), "fill_the_catalogue_in_a_child_process");
    assert!(said.contains("\ndone"), "{said}");
    assert!(said.contains("catalogue.redb"), "{said}");
    let store = EmbeddedStore::open(folder.path(), EmbeddedOptions::default()).unwrap();
    let tables: Vec<_> = store.tables().await.unwrap().iter().map(|status| status.table).collect();
    assert_eq!(tables, [table(2)]);
}
