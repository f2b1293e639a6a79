//! One directory, one owner, one format.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use eadem_online::{Coverage, EmbeddedOptions, EmbeddedStore, LoadState, OnlineStore, StoreError};

use crate::support::{row, table};

fn open(folder: &Path) -> Result<EmbeddedStore, StoreError> {
    EmbeddedStore::open(folder, EmbeddedOptions::default())
}

/// Another process that owns the store in `folder` until it is killed.
struct Owner(Child);

impl Owner {
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "directory::own_a_store_in_a_child_process", "--ignored", "--nocapture"])
            .env("EADEM_TEST_STORE", folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(said.into_iter().any(|line| line.contains("owning")), "the child did not open the store");
        Self(child)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
#[ignore = "run by other tests, as a process of its own"]
fn own_a_store_in_a_child_process() {
    let folder = std::env::var("EADEM_TEST_STORE").unwrap();
    let store = open(Path::new(&folder)).unwrap();
    store.announce("127.0.0.1:7410").unwrap();
    println!("owning");
    // Until killed, or until the parent is gone.
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[test]
fn a_second_process_learns_who_owns_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let owner = Owner::start(folder.path());
    let Err(error) = open(folder.path()) else { panic!("two processes own one store") };
    let StoreError::InUse { path, pid, address } = &error else { panic!("{error}") };
    assert_eq!(path, folder.path());
    assert_eq!(*pid, Some(owner.0.id()));
    assert_eq!(address.as_deref(), Some("127.0.0.1:7410"));
    assert!(error.to_string().contains("serves at 127.0.0.1:7410"), "{error}");
    let info = EmbeddedStore::owner(folder.path()).unwrap().unwrap();
    assert_eq!((info.pid, info.address.as_deref()), (Some(owner.0.id()), Some("127.0.0.1:7410")));
    // A killed owner owns nothing, whatever its lock file still says.
    drop(owner);
    assert_eq!(EmbeddedStore::owner(folder.path()).unwrap(), None);
    open(folder.path()).unwrap();
}

#[test]
fn one_process_opens_a_store_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    let Err(error) = open(folder.path()) else { panic!("opened twice") };
    assert!(
        matches!(&error, StoreError::InUse { pid, address: None, .. } if *pid == Some(std::process::id())),
        "{error}"
    );
    let info = EmbeddedStore::owner(folder.path()).unwrap().unwrap();
    assert_eq!((info.pid, info.address), (Some(std::process::id()), None));
    drop(store);
    assert_eq!(EmbeddedStore::owner(folder.path()).unwrap(), None);
    open(folder.path()).unwrap();
}

#[test]
fn nobody_owns_a_folder_without_a_store() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(EmbeddedStore::owner(folder.path()).unwrap(), None);
    assert_eq!(EmbeddedStore::owner(folder.path().join("missing")).unwrap(), None);
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()).unwrap());
    let format = folder.path().join("FORMAT");
    let newer = r#"{"format":"eadem online store","version":2}"#;
    fs::write(&format, newer).unwrap();
    let Err(error) = open(folder.path()) else { panic!("read a format that does not exist yet") };
    assert!(matches!(error, StoreError::FormatTooNew { found: 2, supported: 1, .. }), "{error}");
    assert!(error.to_string().contains("use a newer release"), "{error}");
    assert_eq!(fs::read_to_string(&format).unwrap(), newer);
    assert!(folder.path().join("catalogue.redb").exists());
}

#[test]
fn folders_of_others_are_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("thesis.txt"), "years of work").unwrap();
    let Err(error) = open(folder.path()) else { panic!("took over a folder") };
    assert!(error.to_string().contains("`thesis.txt`"), "{error}");
    assert_eq!(fs::read_to_string(folder.path().join("thesis.txt")).unwrap(), "years of work");

    let folder = tempfile::tempdir().unwrap();
    for text in ["not json", r#"{"format":"something else","version":1}"#] {
        fs::write(folder.path().join("FORMAT"), text).unwrap();
        let Err(error) = open(folder.path()) else { panic!("took over a folder") };
        assert!(matches!(error, StoreError::NotAStore { .. }), "{error}");
    }
}

#[test]
fn an_interrupted_first_start_is_started_again() {
    let folder = tempfile::tempdir().unwrap();
    // As a kill leaves it before FORMAT is written: a lock file with a stale owner, files half made.
    fs::write(folder.path().join("LOCK"), r#"{"pid":1,"address":"127.0.0.1:1"}"#).unwrap();
    fs::write(folder.path().join("catalogue.redb"), b"half").unwrap();
    fs::write(folder.path().join("FORMAT.new"), b"{").unwrap();
    fs::create_dir(folder.path().join("tables")).unwrap();
    fs::write(folder.path().join("tables/1.redb"), b"half").unwrap();
    let store = open(folder.path()).unwrap();
    assert!(!folder.path().join("tables/1.redb").exists());
    drop(store);
    open(folder.path()).unwrap();
}

#[test]
fn a_file_in_the_way_is_a_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let Err(error) = open(&file) else { panic!("opened a file") };
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn strays_of_broken_loads_are_cleared_away() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    store.create_epoch(table(1)).await.unwrap();
    store.merge(table(1), vec![row("a", 1)]).await.unwrap();
    drop(store);
    let tables = folder.path().join("tables");
    fs::write(tables.join("1.1.run"), b"half a run").unwrap();
    fs::write(tables.join("99.redb"), b"an epoch never entered").unwrap();
    let store = open(folder.path()).unwrap();
    let left: Vec<_> = fs::read_dir(&tables).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["1.redb"]);
    let status = store.status(table(1)).await.unwrap();
    assert_eq!((status.state, status.rows), (LoadState::Loading, 1));
}

#[tokio::test]
async fn a_damaged_table_is_a_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    store.create_epoch(table(1)).await.unwrap();
    store.finish_load(table(1), Coverage::whole()).await.unwrap();
    drop(store);
    let file = folder.path().join("tables/1.redb");
    fs::write(&file, b"no database").unwrap();
    let Err(error) = open(folder.path()) else { panic!("opened a damaged table") };
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn dropping_an_epoch_gives_its_disk_space_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    store.create_epoch(table(1)).await.unwrap();
    let rows = (0..20_000).map(|time| row("a", time)).collect();
    store.merge(table(1), rows).await.unwrap();
    let status = store.status(table(1)).await.unwrap();
    assert_eq!(status.rows, 20_000);
    assert!(status.bytes > 20_000 * 40, "{} bytes", status.bytes);
    store.drop_epoch(table(1)).await.unwrap();
    assert_eq!(fs::read_dir(folder.path().join("tables")).unwrap().count(), 0);
}

/// Asking whether a store answers must never do anything to it.
#[tokio::test]
async fn a_store_whose_format_is_gone_says_so_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    store.create_epoch(table(1)).await.unwrap();
    store.finish_load(table(1), Coverage::whole()).await.unwrap();
    store.merge(table(1), vec![row("a", 1)]).await.unwrap();
    store.ping().await.unwrap();
    let format = folder.path().join("FORMAT");
    let text = fs::read(&format).unwrap();
    fs::remove_file(&format).unwrap();
    let refused = store.ping().await.unwrap_err().to_string();
    assert!(refused.contains("format is gone"), "{refused}");
    fs::write(&format, text).unwrap();
    drop(store);
    assert_eq!(open(folder.path()).unwrap().status(table(1)).await.unwrap().rows, 1);
}
