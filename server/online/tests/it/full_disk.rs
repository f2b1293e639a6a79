//! A disk that takes no more: clear errors, reads go on, nothing acknowledged is lost, nothing half-written is seen, and once there
//! is room the store goes on without being opened again.
//!
//! A limit on file size stands for the full disk; the store meets it in the same place and in the same way.

use std::path::Path;
use std::process::{Command, Stdio};

use eadem_online::{Coverage, EmbeddedOptions, EmbeddedStore, OnlineStore, PointRead, Row, StoreError};
use eadem_semantics::ReadAt;

use crate::support::{row, table};

/// In blocks of 512 bytes: room for the store's files, and for some hundred calls.
const FILE_BLOCKS_MAX: u32 = 16 * 1024;
const ROWS_PER_CALL: i64 = 200;

/// So little that most reads miss it.
const TABLE_CACHE_BYTES: usize = 64 * 1024;

fn options() -> EmbeddedOptions {
    EmbeddedOptions { table_cache_bytes: TABLE_CACHE_BYTES, ..EmbeddedOptions::default() }
}

/// The `n`-th row of a call, of an entity of its own.
fn row_of_call(call: i64, n: i64) -> Row {
    row(&format!("e{n} {}", "-".repeat(200)), call)
}

/// Asks for the first rows of some calls, and whether the store says that it can answer.
async fn check_reads(store: &EmbeddedStore, acknowledged: i64) {
    store.ping().await.unwrap();
    for call in [1, acknowledged / 2, acknowledged] {
        for n in (0..ROWS_PER_CALL).step_by(7) {
            let row = row_of_call(call, n);
            let read = PointRead { key: &row.key, at: ReadAt::as_known_then(call) };
            let answer = store.read(table(1), &[read]).await.unwrap();
            assert_eq!(answer[0].winner.as_ref().unwrap().body, row.body, "row {n} of call {call}");
        }
    }
}

#[test]
#[ignore = "run by other tests, as a process of its own"]
fn fill_the_disk_in_a_child_process() {
    let folder = std::env::var("EADEM_TEST_STORE").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let store = EmbeddedStore::open(folder, options()).unwrap();
        store.create_epoch(table(1)).await.unwrap();
        store.finish_load(table(1), Coverage::since(0)).await.unwrap();
        let mut acknowledged = 0;
        let error = loop {
            let call = acknowledged + 1;
            let rows = (0..ROWS_PER_CALL).map(|n| row_of_call(call, n)).collect();
            match store.merge(table(1), rows).await {
                Ok(_) => acknowledged = call,
                Err(error) => break error,
            }
            assert!(acknowledged < 10_000, "the disk is never full");
        };
        println!("error {error}");
        assert!(matches!(error, StoreError::Failed { .. }));
        check_reads(&store, acknowledged).await;

        // Room again, and the same process goes on.
        let this = std::process::id().to_string();
        assert!(
            Command::new("prlimit").args(["--fsize=unlimited:unlimited", "--pid", &this]).status().unwrap().success()
        );
        let rows = (0..ROWS_PER_CALL).map(|n| row_of_call(acknowledged + 1, n)).collect();
        store.merge(table(1), rows).await.unwrap();
        acknowledged += 1;
        check_reads(&store, acknowledged).await;
        println!("acknowledged {acknowledged}");
        println!("done");
    });
}

fn fill(folder: &Path, test: &str) -> String {
    let this = std::env::current_exe().unwrap();
    let arguments = format!("--exact full_disk::{test} --ignored --nocapture");
    let script = format!("trap '' XFSZ; ulimit -S -f {FILE_BLOCKS_MAX}; exec '{}' {arguments}", this.display());
    let output = Command::new("sh")
        .args(["-c", &script])
        .env("EADEM_TEST_STORE", folder)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn a_full_disk_is_a_clear_error_and_over_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let said = fill(folder.path(), "fill_the_disk_in_a_child_process");
    assert!(said.contains("\ndone"), "{said}");
    let line_of =
        |word: &str| said.lines().find_map(|line| line.strip_prefix(word)).unwrap_or_else(|| panic!("{said}"));
    let acknowledged: i64 = line_of("acknowledged ").parse().unwrap();
    let error = line_of("error ");
    assert!(error.contains("writing") && error.contains("1.redb"), "{error}");

    // Everything acknowledged is there, and of the call that failed (whose rows were written again) nothing twice.
    let store = EmbeddedStore::open(folder.path(), options()).unwrap();
    assert_eq!(store.status(table(1)).await.unwrap().rows as i64, acknowledged * ROWS_PER_CALL);
    check_reads(&store, acknowledged).await;
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
