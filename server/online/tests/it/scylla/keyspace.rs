//! What is particular to this store: its keyspace, its access, and several processes that use it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use eadem_online::scylla::{Credentials, Tls, init};
use eadem_online::{
    Coverage, KeyBytes, LoadState, OnlineStore, PointRead, Row, RowBody, ScyllaConfig, ScyllaStore, StoreError,
    TableId, Trim, scan_all,
};
use eadem_semantics::{ReadAt, RowOrder};
use eadem_values::{Digest, TieDigest};

use super::server::{rows, schema, session, shared};

fn table(epoch: u64) -> TableId {
    TableId { view: Digest::of(b"view"), epoch }
}

fn key(name: &str) -> KeyBytes {
    KeyBytes::new(name.as_bytes().to_vec())
}

fn order(time: i64) -> RowOrder {
    RowOrder { event_time_us: time, known_at_us: time, tie: TieDigest::from_bytes([7; 16]) }
}

fn row(name: &str, time: i64) -> Row {
    Row { key: key(name), order: order(time), body: RowBody::of_values(format!("{name} {time}").into_bytes()) }
}

async fn open(config: &ScyllaConfig) -> Arc<ScyllaStore> {
    Arc::new(ScyllaStore::open(config.clone()).await.unwrap())
}

async fn ready_table(store: &ScyllaStore, table: TableId) {
    store.create_epoch(table).await.unwrap();
    store.finish_load(table, Coverage::whole()).await.unwrap();
}

/// The event time of the row that wins, and whether that is proved.
async fn newest(store: &ScyllaStore, table: TableId, name: &str, at: i64) -> (Option<i64>, bool) {
    let key = key(name);
    let read = PointRead { key: &key, at: ReadAt::as_known_then(at) };
    let answer = store.read(table, &[read]).await.unwrap().remove(0);
    (answer.winner.map(|winner| winner.order.event_time_us), answer.proved)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keyspace_without_the_schema_is_refused_with_advice() {
    let config = shared().config("nowhere");
    let message = ScyllaStore::open(config.clone()).await.unwrap_err().to_string();
    assert!(message.contains("no keyspace `nowhere`") && message.contains("eadem online init"), "{message}");
    let session = session(&config).await;
    let create = "CREATE KEYSPACE nowhere WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}";
    session.query_unpaged(create, ()).await.unwrap();
    let refused = ScyllaStore::open(config.clone()).await.unwrap_err();
    assert!(matches!(refused, StoreError::NoSchema { .. }), "{refused:?}");
    assert!(refused.to_string().contains("eadem online init"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_layout_is_refused_and_left_alone() {
    let config = shared().keyspace(1).await;
    let session = session(&config).await;
    let newer = format!("UPDATE {}.layout SET version = 2 WHERE id = 0 IF EXISTS", config.keyspace);
    session.query_unpaged(newer, ()).await.unwrap();
    for refused in [ScyllaStore::open(config.clone()).await.map(drop), init(&config, &schema(1)).await.map(drop)] {
        let Err(StoreError::LayoutTooNew { found: 2, supported: 1, .. }) = &refused else { panic!("{refused:?}") };
        assert!(refused.unwrap_err().to_string().contains("newer release"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn making_a_keyspace_again_changes_nothing() {
    let config = shared().keyspace(1).await;
    let store = open(&config).await;
    ready_table(&store, table(1)).await;
    store.merge(table(1), vec![row("a", 10)]).await.unwrap();
    assert_eq!(init(&config, &schema(1)).await.unwrap(), []);
    let mut other = schema(1);
    other.buckets = 99;
    let session = session(&config).await;
    for altered in [
        "KEYSPACE @ WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}",
        "TABLE @.rows WITH default_time_to_live = 60 AND gc_grace_seconds = 10",
        "TABLE @.entities WITH compaction = {'class': 'SizeTieredCompactionStrategy'} AND gc_grace_seconds = 10",
    ] {
        session.query_unpaged(format!("ALTER {}", altered.replace('@', &config.keyspace)), ()).await.unwrap();
    }
    let differences = init(&config, &other).await.unwrap();
    let named: Vec<&str> = differences.iter().map(|difference| difference.what.as_str()).collect();
    assert_eq!(
        named,
        [
            "replication",
            "gc_grace_seconds of rows",
            "default_time_to_live of rows",
            "compaction of entities",
            "buckets"
        ]
    );
    // Each remedy is one: what it says makes the difference go away.
    for difference in &differences {
        let statement = difference.remedy.split(';').next().unwrap();
        assert!(statement.contains(&config.keyspace), "{difference:?}");
        if difference.what != "buckets" {
            session.query_unpaged(statement, ()).await.unwrap();
        }
    }
    let left = init(&config, &other).await.unwrap();
    assert_eq!(left, differences[4..], "{left:?}");
    let store = open(&config).await;
    store.create_epoch(table(2)).await.unwrap();
    assert_eq!(newest(&store, table(1), "a", 10).await, (Some(10), true));
    let buckets = format!("SELECT buckets FROM {}.epochs", config.keyspace);
    assert_eq!(rows::<(i32,)>(&session, &buckets).await, [(8,), (8,)], "a second init changed the layout");
}

#[test]
fn the_schema_says_what_it_does() {
    let statements = schema(3).statements("features");
    assert!(statements[0].text.contains("'replication_factor': 3"), "{}", statements[0].text);
    for statement in &statements {
        assert!(statement.text.contains("IF NOT EXISTS") && statement.text.contains("features"), "{}", statement.text);
        assert!(!statement.why.is_empty());
    }
    assert!(statements.last().unwrap().text.contains("layout"), "the version is not written last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_must_be_known_and_what_he_says_is_not_repeated() {
    let mut config = shared().keyspace(1).await;
    config.credentials = Some(Credentials { user: "cassandra".to_owned(), password: "Wrong7Secret".to_owned() });
    let refused = ScyllaStore::open(config.clone()).await.unwrap_err();
    for shown in [format!("{refused}"), format!("{refused:?}"), format!("{config:?}")] {
        assert!(!shown.contains("Wrong7Secret"), "{shown}");
    }
    assert!(refused.to_string().contains("connecting to scylla://cassandra:***@"), "{refused}");
    config.credentials = None;
    assert!(ScyllaStore::open(config).await.is_err(), "nobody was let in");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_encrypted_for_whom_the_certificate_convinces() {
    let server = shared();
    let mut config = server.keyspace(1).await;
    config.tls = Tls::Authority(server.nodes.certificate());
    let store = open(&config).await;
    ready_table(&store, table(1)).await;
    store.merge(table(1), vec![row("a", 10)]).await.unwrap();
    assert_eq!(newest(&store, table(1), "a", 10).await, (Some(10), true));
    config.tls = Tls::PublicAuthorities;
    let refused = ScyllaStore::open(config.clone()).await;
    assert!(refused.is_err(), "a certificate that nobody vouches for was believed");
    config.tls = Tls::Authority(server.nodes.certificate().with_extension("missing"));
    let refused = ScyllaStore::open(config).await.unwrap_err();
    assert!(matches!(refused, StoreError::BadConfig { .. }), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_center_that_is_not_there_is_refused() {
    let mut config = shared().keyspace(1).await;
    config.datacenter = Some("atlantis".to_owned());
    let message = ScyllaStore::open(config.clone()).await.unwrap_err().to_string();
    assert!(message.contains("atlantis") && message.contains("datacenter1"), "{message}");
    config.datacenter = Some("datacenter1".to_owned());
    open(&config).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_node_is_an_error_that_names_the_store() {
    let config = ScyllaConfig::parse("scylla://user:Secret7@127.0.0.1:1/k").unwrap();
    let message = ScyllaStore::open(config).await.unwrap_err().to_string();
    assert!(message.contains("scylla://user:***@127.0.0.1:1/k") && !message.contains("Secret7"), "{message}");
}

/// What one process erases, another no longer reads, whatever it knew before; also of a table that is just being made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn erasures_hold_for_every_process_at_once() {
    let config = shared().keyspace(1).await;
    let (here, there) = (open(&config).await, open(&config).await);
    ready_table(&here, table(1)).await;
    for round in 0..10_u64 {
        let name = format!("e{round}");
        there.merge(table(1), vec![row(&name, 10), row(&name, 30)]).await.unwrap();
        assert_eq!(newest(&there, table(1), &name, 20).await.0, Some(10));
        let made = table(100 + round);
        let entity = key(&name);
        let (erased, created) = tokio::join!(here.erase(made.view, &entity, 20), there.create_epoch(made));
        assert_eq!((erased.unwrap(), created.is_ok()), (1, true));
        assert_eq!(newest(&there, table(1), &name, 20).await.0, None);
        // A row that arrives late, by a process that may not know of any erasure yet.
        for table in [table(1), made] {
            there.merge(table, vec![row(&name, 15), row(&name, 40)]).await.unwrap();
        }
        there.finish_load(made, Coverage::whole()).await.unwrap();
        for table in [table(1), made] {
            assert_eq!(newest(&there, table, &name, 39).await.0, (table.epoch == 1).then_some(30), "{name} in {table}");
            assert_eq!(newest(&here, table, &name, 40).await.0, Some(40), "{name} in {table}");
        }
    }
    let mut late = 0;
    scan_all(&*there, table(1), |row| {
        late += usize::from(row.order.event_time_us < 20);
        std::ops::ControlFlow::Continue(())
    })
    .await
    .unwrap();
    assert_eq!(late, 0, "a scan shows erased rows");
}

/// The database forgets a deletion after ten days, and then lets rows in that arrive late. Nobody sees them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_row_stays_hidden_when_the_database_has_forgotten_the_deletion() {
    let config = shared().keyspace(1).await;
    let store = open(&config).await;
    ready_table(&store, table(1)).await;
    store.merge(table(1), vec![row("a", 30)]).await.unwrap();
    store.erase(table(1).view, &key("a"), 20).await.unwrap();
    let session = session(&config).await;
    let incarnation = format!("SELECT incarnation FROM {}.epochs", config.keyspace);
    let (incarnation,) = rows::<(uuid::Uuid,)>(&session, &incarnation).await[0];
    // With the time of day, unlike the store's own rows, so that the deletion before it does not count.
    let insert = format!(
        "INSERT INTO {}.rows (incarnation, entity, event_time, known_at, tie, body, bytes) VALUES (?, ?, 15, 15, ?, 0x00, 9)",
        config.keyspace
    );
    session.query_unpaged(insert, (incarnation, "a".as_bytes(), [7_u8; 16])).await.unwrap();
    let stored = format!("SELECT event_time FROM {}.rows", config.keyspace);
    assert_eq!(rows::<(i64,)>(&session, &stored).await, [(30,), (15,)]);
    assert_eq!(newest(&store, table(1), "a", 20).await, (None, true));
    assert_eq!(store.status(table(1)).await.unwrap().rows, 1);
    assert_eq!(store.scan(table(1), None, usize::MAX).await.unwrap().rows, [row("a", 30)]);
    // A new table knows of the erasure, too.
    store.create_epoch(table(2)).await.unwrap();
    let merged = store.merge(table(2), vec![row("a", 20), row("a", 21)]).await.unwrap();
    assert_eq!((merged.kept, merged.erased), (1, 1));
    // The next trim deletes it, and it does not count as removed.
    let all_kept = Trim { complete_since_us: i64::MIN, forget_up_to_us: None };
    assert_eq!(store.trim(table(1), all_kept).await.unwrap(), 0);
    let mut left = rows::<(i64,)>(&session, &stored).await;
    left.sort_unstable();
    assert_eq!(left, [(21,), (30,)]);
}

/// A process that trims and one that reads: whatever is proved is true, although each knows the table by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proofs_hold_while_another_process_trims() {
    const TIMES: i64 = 40;
    let config = shared().keyspace(1).await;
    let (trimming, reading) = (open(&config).await, open(&config).await);
    ready_table(&trimming, table(1)).await;
    let rows: Vec<Row> = (0..TIMES).flat_map(|time| ["a", "b", "c"].map(|name| row(name, time))).collect();
    trimming.merge(table(1), rows).await.unwrap();
    let is_done = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn({
        let is_done = Arc::clone(&is_done);
        async move {
            let mut proved = 0;
            let mut time = 0;
            while !is_done.load(Ordering::Relaxed) {
                time = (time + 7) % TIMES;
                let (found, is_proved) = newest(&reading, table(1), "b", time).await;
                assert!(!is_proved || found == Some(time), "at {time}: {found:?} was proved");
                proved += u32::from(is_proved);
            }
            proved
        }
    });
    let mut removed = 0;
    for complete_since_us in (0..TIMES).step_by(4) {
        removed += trimming.trim(table(1), Trim { complete_since_us, forget_up_to_us: None }).await.unwrap();
    }
    is_done.store(true, Ordering::Relaxed);
    assert!(reader.await.unwrap() > 0, "nothing was proved");
    assert_eq!(removed, 3 * 36);
}

/// What another process knows of a table's former life does not lead its rows there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_go_to_the_table_that_is_there() {
    let config = shared().keyspace(1).await;
    let (here, there) = (open(&config).await, open(&config).await);
    ready_table(&here, table(1)).await;
    let mut before = None;
    for round in 0..5 {
        there.merge(table(1), vec![row("a", round)]).await.unwrap();
        assert_eq!(newest(&there, table(1), "a", 100).await.0, Some(round));
        here.drop_epoch(table(1)).await.unwrap();
        ready_table(&here, table(1)).await;
        assert_eq!(newest(&there, table(1), "a", 100).await.0, None, "round {round}");
        there.merge(table(1), vec![row("b", round)]).await.unwrap();
        assert_eq!(newest(&here, table(1), "b", 100).await.0, Some(round), "round {round}");
        before = Some(round);
    }
    assert_eq!(before, Some(4));
    // Writers that overlap with a drop leave nothing behind that the next one does not delete.
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let writer = tokio::spawn(async move {
        for time in 0.. {
            match there.merge(table(1), vec![row(&format!("w{}", time % 50), time)]).await {
                Ok(_) => count.fetch_add(1, Ordering::SeqCst),
                Err(StoreError::UnknownTable(_)) => return,
                Err(error) => panic!("{error}"),
            };
        }
    });
    while written.load(Ordering::SeqCst) < 20 {
        assert!(!writer.is_finished(), "nobody writes");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    here.drop_epoch(table(1)).await.unwrap();
    writer.await.unwrap();
    here.drop_epoch(table(1)).await.unwrap();
    let session = session(&config).await;
    for leftover in ["rows", "entities", "dropped", "epochs"] {
        let count = format!("SELECT COUNT(*) FROM {}.{leftover}", config.keyspace);
        assert_eq!(rows::<(i64,)>(&session, &count).await, [(0,)], "left in {leftover}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_of_several_processes_are_all_kept() {
    const CLAIMS: i64 = 12;
    let config = shared().keyspace(1).await;
    let first = open(&config).await;
    // Both make it: it is one table.
    let stores = [Arc::clone(&first), open(&config).await, open(&config).await];
    let made = futures::future::join_all(stores.iter().map(|store| store.create_epoch(table(1)))).await;
    assert!(made.iter().all(Result::is_ok), "{made:?}");
    let mut tasks = tokio::task::JoinSet::new();
    for (number, store) in stores.into_iter().enumerate() {
        tasks.spawn(async move {
            for position in 0..CLAIMS {
                let lanes = [(format!("own/{number}"), position), ("shared".to_owned(), position * 3 + number as i64)];
                let claim = Coverage { lanes: lanes.into_iter().collect(), ..Coverage::default() };
                store.cover(table(1), claim).await.unwrap();
            }
            store.finish_load(table(1), Coverage::since(number as i64)).await.unwrap();
        });
    }
    tasks.join_all().await;
    let status = first.status(table(1)).await.unwrap();
    assert_eq!((status.state, status.coverage.complete_since_us), (LoadState::Ready, Some(0)));
    let expected = (0..3).map(|number| (format!("own/{number}"), CLAIMS - 1)).chain([("shared".to_owned(), 35)]);
    assert_eq!(status.coverage.lanes, expected.collect());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_history_is_trimmed_page_by_page() {
    const ROWS: i64 = 2_500;
    let config = shared().keyspace(1).await;
    let store = open(&config).await;
    ready_table(&store, table(1)).await;
    store.merge(table(1), (0..ROWS).map(|time| row("a", time)).collect()).await.unwrap();
    let trim = Trim { complete_since_us: ROWS - 10, forget_up_to_us: None };
    assert_eq!(store.trim(table(1), trim).await.unwrap() as i64, ROWS - 10);
    assert_eq!(store.status(table(1)).await.unwrap().rows, 10);
    // What arrives late below the row that was current then is never needed.
    store.merge(table(1), vec![row("a", 5)]).await.unwrap();
    assert_eq!(newest(&store, table(1), "a", ROWS - 10).await, (Some(ROWS - 10), true));
    let forget = Trim { complete_since_us: ROWS, forget_up_to_us: Some(ROWS - 1) };
    assert_eq!(store.trim(table(1), forget).await.unwrap(), 10);
    assert_eq!(store.trim(table(1), forget).await.unwrap(), 0);
    assert_eq!(newest(&store, table(1), "a", ROWS).await, (None, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_size_of_a_large_table_is_estimated() {
    const ENTITIES: u64 = 9_000;
    let config = shared().keyspace(1).await;
    let store = open(&config).await;
    ready_table(&store, table(1)).await;
    let rows: Vec<Row> =
        (0..ENTITIES).flat_map(|n| [row(&format!("entity {n}"), 1), row(&format!("entity {n}"), 2)]).collect();
    for part in rows.chunks(3_000) {
        store.bulk_load(table(1), part.to_vec()).await.unwrap();
    }
    let status = store.status(table(1)).await.unwrap();
    let off_by = status.rows.abs_diff(2 * ENTITIES);
    assert!(off_by < ENTITIES / 5, "{} rows of {}", status.rows, 2 * ENTITIES);
    let row_bytes = status.bytes / status.rows;
    assert!((20..40).contains(&row_bytes), "{row_bytes} bytes a row");
}
