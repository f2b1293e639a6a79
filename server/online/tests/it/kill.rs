//! A process killed at any instant loses no acknowledged write and shows no half of one.
//!
//! A child process writes and says so on its standard output after each acknowledgement; the parent kills it after a random
//! number of them, opens the store, and compares. The seed decides everything except how far the child got beyond the
//! acknowledgement that was read last, and the check does not depend on that.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use eadem_online::{
    Coverage, EmbeddedOptions, EmbeddedStore, KeyBytes, LoadState, OnlineStore, PointRead, Row, Trim, scan_all,
};
use eadem_semantics::ReadAt;

use crate::support::{Dice, is_soak, key, row, seed, table};

/// Rows of one acknowledged call: all of them have the call's number as event time.
const ROWS_PER_CALL: i64 = 5;
/// Every so many calls the child does something else than merging.
const ERASE_EVERY: i64 = 7;
const TRIM_EVERY: i64 = 11;
const LOAD_EVERY: i64 = 13;

fn name_of(call: i64, place: i64) -> String {
    format!("e{}", (call * 3 + place) % 17)
}

fn rows_of(call: i64) -> Vec<Row> {
    (0..ROWS_PER_CALL).map(|place| row(&name_of(call, place), call)).collect()
}

/// The entity that call `call` erases, up to the call before.
fn erased_by(call: i64) -> String {
    name_of(call, 2)
}

/// The table that calls write to.
pub(crate) async fn begin(store: &EmbeddedStore) {
    store.create_epoch(table(1)).await.unwrap();
    store.finish_load(table(1), Coverage::since(0)).await.unwrap();
}

/// Whatever call `call` does; acknowledged when it returns.
pub(crate) async fn write_call(store: &EmbeddedStore, call: i64) {
    store.merge(table(1), rows_of(call)).await.unwrap();
    if call % ERASE_EVERY == 0 {
        store.erase(table(1).view, &key(&erased_by(call)), call - 1).await.unwrap();
    }
    if call % TRIM_EVERY == 0 {
        store.trim(table(1), Trim { complete_since_us: call, forget_up_to_us: None }).await.unwrap();
    }
    if call % LOAD_EVERY == 0 {
        let epoch = call as u64;
        store.drop_epoch(table(epoch - LOAD_EVERY as u64)).await.unwrap();
        store.create_epoch(table(epoch)).await.unwrap();
        store.bulk_load(table(epoch), (0..500).map(|n| row(&format!("e{n}"), call)).collect()).await.unwrap();
        store.merge(table(epoch), rows_of(call)).await.unwrap();
        store.finish_load(table(epoch), Coverage::whole()).await.unwrap();
    }
}

#[test]
#[ignore = "run by other tests, as a process of its own"]
fn write_in_a_child_process() {
    let folder = std::env::var("EADEM_TEST_STORE").unwrap();
    let first_call: i64 = std::env::var("EADEM_TEST_FIRST_CALL").unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let store = EmbeddedStore::open(folder, EmbeddedOptions::default()).unwrap();
        begin(&store).await;
        for call in first_call.. {
            write_call(&store, call).await;
            // One write, so that the parent never reads half a number.
            std::io::stdout().write_all(format!("\nacknowledged {call}\n").as_bytes()).unwrap();
        }
    });
}

/// Lets a child write until `acknowledgements` more calls are acknowledged, kills it, and gives the last one read.
fn write_and_kill(folder: &Path, first_call: i64, acknowledgements: i64) -> i64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::write_in_a_child_process", "--ignored", "--nocapture"])
        .env("EADEM_TEST_STORE", folder)
        .env("EADEM_TEST_FIRST_CALL", first_call.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let last_wanted = first_call + acknowledgements - 1;
    let mut last = first_call - 1;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        if let Some(call) = line.unwrap().strip_prefix("acknowledged ") {
            last = call.parse().unwrap();
        }
        if last >= last_wanted {
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(last >= last_wanted, "the child stopped by itself after call {last}");
    last
}

/// What a reader must find after `calls` acknowledged calls, by entity.
fn newest_calls(calls: i64) -> BTreeMap<String, i64> {
    let mut newest = BTreeMap::new();
    for call in 1..=calls {
        for place in 0..ROWS_PER_CALL {
            newest.insert(name_of(call, place), call);
        }
    }
    newest
}

/// What must hold of a store that `acknowledged` calls have written, and perhaps some more.
pub(crate) async fn check(folder: &Path, acknowledged: i64, context: &str) {
    let store = EmbeddedStore::open(folder, EmbeddedOptions::default())
        .unwrap_or_else(|error| panic!("{context}: it does not open: {error:?}"));
    if acknowledged == 0 {
        return;
    }
    let mut rows = Vec::new();
    scan_all(&store, table(1), |row| {
        rows.push(row);
        std::ops::ControlFlow::Continue(())
    })
    .await
    .unwrap();

    // A call is there whole or not at all. The child may have been ahead of what the pipe had told.
    let last_call = rows.iter().map(|row| row.order.event_time_us).max().unwrap_or(0);
    assert!(
        last_call >= acknowledged,
        "{context}: call {acknowledged} was acknowledged, {last_call} is the last there"
    );
    let of_last = rows.iter().filter(|row| row.order.event_time_us == last_call).count() as i64;
    assert_eq!(of_last, ROWS_PER_CALL, "{context}: the last call is there in part");

    // Every entity's newest row is of the last call that wrote it: nothing lost, nothing older wins.
    let expected = newest_calls(last_call);
    let keys: Vec<KeyBytes> = expected.keys().map(|name| key(name)).collect();
    let at = ReadAt::as_known_then(last_call);
    let reads: Vec<_> = keys.iter().map(|key| PointRead { key, at }).collect();
    let answers = store.read(table(1), &reads).await.unwrap();
    for ((name, call), answer) in expected.iter().zip(answers) {
        let winner = answer.winner.unwrap_or_else(|| panic!("{context}: {name} is gone"));
        assert_eq!(winner.order.event_time_us, *call, "{context}: {name}");
        assert_eq!(winner.body, row(name, *call).body, "{context}: {name}");
        assert!(answer.proved, "{context}: {name}");
    }

    // What acknowledged calls erased stays away, and what they trimmed stays unproved.
    for call in (1..=acknowledged).filter(|call| call % ERASE_EVERY == 0) {
        let erased = key(&erased_by(call));
        let back = rows.iter().find(|row| row.key == erased && row.order.event_time_us < call);
        assert!(back.is_none(), "{context}: {back:?} was erased by call {call}");
        assert!(store.erased_up_to(table(1).view, &erased).await.unwrap() >= Some(call - 1), "{context}");
    }
    let trimmed = acknowledged / TRIM_EVERY * TRIM_EVERY;
    let complete_since_us = store.status(table(1)).await.unwrap().coverage.complete_since_us.unwrap();
    assert!(complete_since_us >= trimmed, "{context}: complete since {complete_since_us}, trimmed to {trimmed}");

    // Epochs are loaded whole or not readable; an acknowledged one is there.
    let statuses = store.tables().await.unwrap();
    for status in statuses.iter().filter(|status| status.table.epoch != 1 && status.state == LoadState::Ready) {
        let call = status.table.epoch as i64;
        // Erasures reach loaded epochs too; the last one may or may not have been made.
        let erased = |last: i64| {
            let calls = (call + 1..=last).filter(|call| call % ERASE_EVERY == 0);
            calls.map(erased_by).collect::<BTreeSet<_>>().len() as u64
        };
        let expected = 500 - erased(last_call)..=500 - erased(acknowledged);
        assert!(expected.contains(&status.rows), "{context}: epoch {call} has {} rows, not {expected:?}", status.rows);
        assert_eq!(status.coverage, Coverage::whole(), "{context}: epoch {call}");
    }
    let loaded = acknowledged / LOAD_EVERY * LOAD_EVERY;
    if loaded > 0 && last_call < loaded + LOAD_EVERY {
        let status = statuses.iter().find(|status| status.table.epoch == loaded as u64);
        assert!(status.is_some_and(|status| status.state == LoadState::Ready), "{context}: epoch {loaded}: {status:?}");
    }
}

/// Checks a store in a task of its own, so that one that fails is counted and keeps no other from its check.
pub(crate) async fn is_sound(folder: &Path, acknowledged: i64, context: &str) -> bool {
    let (folder, context) = (folder.to_owned(), context.to_owned());
    tokio::spawn(async move { check(&folder, acknowledged, &context).await }).await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_instant_nothing_acknowledged_is_lost() {
    let seed = seed();
    let kills = if is_soak() { 240 } else { 12 };
    println!("seed {seed}, {kills} kills");
    let mut dice = Dice(seed);
    let mut folder = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    let mut faults = 0;
    for kill in 0..kills {
        // Now and then in a fresh directory, so that first starts are killed as well.
        if kill % 10 == 0 {
            folder = tempfile::tempdir().unwrap();
            acknowledged = 0;
        }
        let acknowledgements = 1 + dice.below(40) as i64;
        // What was not read as acknowledged is written again, as a source would.
        acknowledged = write_and_kill(folder.path(), acknowledged + 1, acknowledgements);
        let context = format!("seed {seed}, kill {kill}, after {acknowledgements} acknowledgements");
        if !is_sound(folder.path(), acknowledged, &context).await {
            faults += 1;
            folder = tempfile::tempdir().unwrap();
            acknowledged = 0;
        }
    }
    println!("S8: kills={kills} faults={faults}");
    assert_eq!(faults, 0, "seed {seed}");
}
