//! Three nodes: the suite again, and what becomes of reads and writes when nodes are lost. With `EADEM_SOAK=1`, because
//! three nodes take a minute to start on a small machine. The second test prints `S7: cases=… faults=…`; the bar adds the lines up.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use eadem_online::{Coverage, KeyBytes, OnlineStore, PointRead, Row, RowBody, ScyllaConfig, ScyllaStore, TableId};
use eadem_semantics::{ReadAt, RowOrder};
use eadem_values::{Digest, TieDigest};
use scylla::response::PagingState;
use tokio::task::JoinSet;

use super::conformance::conforms_on;
use super::server::{Server, rows, session};

const ENTITIES: i64 = 40;
const NODE_LOST: u32 = 2;

fn table() -> TableId {
    TableId { view: Digest::of(b"view"), epoch: 1 }
}

fn key(entity: i64) -> KeyBytes {
    KeyBytes::new(entity.to_be_bytes().to_vec())
}

/// The `number`-th row, of one entity after the other.
fn row(number: i64) -> Row {
    let order = RowOrder {
        event_time_us: number,
        known_at_us: number,
        tie: TieDigest::from_bytes(number.to_be_bytes().repeat(2).try_into().unwrap()),
    };
    Row { key: key(number % ENTITIES), order, body: RowBody::of_values(format!("row {number}").into_bytes()) }
}

#[derive(Default)]
struct Counts {
    done: AtomicU64,
    failed: AtomicU64,
    slowest_us: AtomicU64,
}

impl Counts {
    fn count(&self, is_done: bool, took: Duration) {
        let counter = if is_done { &self.done } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        self.slowest_us.fetch_max(took.as_micros() as u64, Ordering::Relaxed);
    }

    fn shown(&self) -> String {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        format!("{} done, {} failed, slowest {} ms", of(&self.done), of(&self.failed), of(&self.slowest_us) / 1_000)
    }

    fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    fn all(&self) -> u64 {
        self.done.load(Ordering::Relaxed) + self.failed()
    }
}

/// So many requests a second are asked by each task, so that the machine's two processors are left to the nodes.
const PAUSE: Duration = Duration::from_millis(10);

struct Load {
    is_over: Arc<AtomicBool>,
    tasks: JoinSet<Vec<i64>>,
    reads: Arc<Counts>,
    reads_of_driver: Arc<Counts>,
    writes: Arc<Counts>,
}

impl Load {
    /// Writes rows from the number `first` on.
    async fn begin(config: &ScyllaConfig, first: i64) -> Self {
        let mut load = Self {
            is_over: Arc::default(),
            tasks: JoinSet::new(),
            reads: Arc::default(),
            reads_of_driver: Arc::default(),
            writes: Arc::default(),
        };
        let store = Arc::new(ScyllaStore::open(config.clone()).await.unwrap());
        for task in 0..2 {
            load.write(Arc::clone(&store), first + task);
            load.read(Arc::clone(&store), task);
            load.read_by_driver(config, task).await;
        }
        load
    }

    /// Merges rows one after the other, each until it is acknowledged. Gives the numbers of those that were.
    fn write(&mut self, store: Arc<ScyllaStore>, mut number: i64) {
        let (is_over, counts) = (Arc::clone(&self.is_over), Arc::clone(&self.writes));
        self.tasks.spawn(async move {
            let mut acknowledged = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let outcome = store.merge(table(), vec![row(number)]).await;
                counts.count(outcome.is_ok(), begun.elapsed());
                if outcome.is_ok() {
                    acknowledged.push(number);
                    number += 2;
                }
                tokio::time::sleep(PAUSE).await;
            }
            acknowledged
        });
    }

    /// Asks for one entity after the other, by `read`, which says whether there was an answer.
    fn ask<F>(&mut self, counts: &Arc<Counts>, task: i64, read: impl Fn(KeyBytes) -> F + Send + 'static)
    where
        F: Future<Output = bool> + Send,
    {
        let (is_over, counts) = (Arc::clone(&self.is_over), Arc::clone(counts));
        self.tasks.spawn(async move {
            for entity in task.. {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                let begun = Instant::now();
                let is_answered = read(key(entity % ENTITIES)).await;
                counts.count(is_answered, begun.elapsed());
                tokio::time::sleep(PAUSE).await;
            }
            Vec::new()
        });
    }

    fn read(&mut self, store: Arc<ScyllaStore>, task: i64) {
        let counts = Arc::clone(&self.reads);
        self.ask(&counts, task, move |key| {
            let store = Arc::clone(&store);
            async move {
                let read = PointRead { key: &key, at: ReadAt::as_known_then(i64::MAX) };
                store.read(table(), &[read]).await.is_ok()
            }
        });
    }

    /// The same by the driver alone, with the same policies: the same rows, if they are looked up as the store does.
    async fn read_by_driver(&mut self, config: &ScyllaConfig, task: i64) {
        let session = session(config).await;
        let keyspace = &config.keyspace;
        let incarnation = format!("SELECT incarnation FROM {keyspace}.epochs");
        let (incarnation,) = rows::<(uuid::Uuid,)>(&session, &incarnation).await[0];
        let select = format!(
            "SELECT event_time, known_at, tie, body, erased_up_to FROM {keyspace}.rows WHERE incarnation = ? AND entity = ? AND \
             event_time <= ?"
        );
        let mut select = session.prepare(select).await.unwrap();
        select.set_is_idempotent(true);
        select.set_page_size(1);
        let (counts, driver) = (Arc::clone(&self.reads_of_driver), Arc::new((session, select)));
        self.ask(&counts, task, move |key| {
            let driver = Arc::clone(&driver);
            async move {
                let (session, select) = driver.as_ref();
                let values = (incarnation, key.as_slice(), i64::MAX);
                session.execute_single_page(select, values, PagingState::start()).await.is_ok()
            }
        });
    }

    async fn judge(&self, event: &str, config: &ScyllaConfig, acknowledged: &[i64]) {
        let lost = lost(config, acknowledged).await;
        let cases = self.reads.all() + self.writes.all();
        // What the driver alone cannot do either is the database's.
        let faults = self.reads.failed().saturating_sub(self.reads_of_driver.failed()) + lost.len() as u64;
        println!("S7: cases={cases} faults={faults}");
        println!(
            "{event}: reads {}; reads of the driver alone {}; writes {}; {} of {} acknowledged rows lost",
            self.reads.shown(),
            self.reads_of_driver.shown(),
            self.writes.shown(),
            lost.len(),
            acknowledged.len(),
        );
        assert!(acknowledged.len() > 500, "too few writes to say anything: {}", acknowledged.len());
        assert_eq!(lost, Vec::<i64>::new(), "acknowledged rows lost");
        assert!(self.reads.failed() <= self.reads_of_driver.failed(), "more failed reads than by the driver alone");
    }

    /// The numbers of the rows that were acknowledged.
    async fn end(&mut self) -> Vec<i64> {
        self.is_over.store(true, Ordering::Relaxed);
        let mut acknowledged = Vec::new();
        while let Some(done) = self.tasks.join_next().await {
            acknowledged.extend(done.unwrap());
        }
        acknowledged
    }
}

/// The store once a majority of the nodes know that they are there: they answer clients before they have found each other.
async fn reachable(config: &ScyllaConfig) -> ScyllaStore {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let opened = match ScyllaStore::open(config.clone()).await {
            Ok(store) => store.status(table()).await.map(|_| store),
            Err(error) => Err(error),
        };
        match opened {
            Ok(store) => return store,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Those of these rows that the store does not find.
async fn lost(config: &ScyllaConfig, acknowledged: &[i64]) -> Vec<i64> {
    let store = reachable(config).await;
    let rows: Vec<Row> = acknowledged.iter().map(|number| row(*number)).collect();
    let mut lost = Vec::new();
    for part in rows.chunks(500) {
        let at = |row: &Row| ReadAt::as_known_then(row.order.event_time_us);
        let reads: Vec<_> = part.iter().map(|row| PointRead { key: &row.key, at: at(row) }).collect();
        let answers = store.read(table(), &reads).await.unwrap();
        for (row, answer) in part.iter().zip(answers) {
            if answer.winner.is_none_or(|winner| winner.order != row.order || winner.body != row.body) {
                lost.push(row.order.event_time_us);
            }
        }
    }
    lost
}

/// One test after the other: a machine has room for three nodes.
fn on_three_nodes<F: Future<Output = ()>>(test: impl FnOnce(Server) -> F) {
    static NODES: Mutex<()> = Mutex::new(());
    if !crate::support::is_soak() {
        println!("three nodes: left out; EADEM_SOAK=1 starts them");
        return;
    }
    let _nodes = NODES.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test(Server::start(3, false)));
}

#[test]
fn the_store_on_three_nodes_conforms() {
    on_three_nodes(|server| async move { conforms_on(&server, 3).await });
}

#[test]
fn a_node_that_is_lost_costs_no_row_and_no_answer() {
    on_three_nodes(lose_nodes);
}

async fn lose_nodes(mut server: Server) {
    let mut config = server.keyspace(3).await;
    config.timeout = Duration::from_secs(5);
    let store = ScyllaStore::open(config.clone()).await.unwrap();
    store.create_epoch(table()).await.unwrap();
    store.finish_load(table(), Coverage::whole()).await.unwrap();
    // A majority of three has to do with one node away, whichever it is; the store was told of the first only.
    let mut load = Load::begin(&config, 1).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    server.nodes.signal_node(NODE_LOST, "KILL");
    tokio::time::sleep(Duration::from_secs(20)).await;
    server.nodes.begin_to_start_node(NODE_LOST);
    let mut server = tokio::task::spawn_blocking(move || {
        server.nodes.wait_until_ready();
        server
    })
    .await
    .unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let mut acknowledged = load.end().await;
    load.judge("a node killed and back", &config, &acknowledged).await;
    // A node that hangs is worse than one that is gone: its connections stay.
    let mut load = Load::begin(&config, 10_000_000).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    server.nodes.signal_node(NODE_LOST, "STOP");
    tokio::time::sleep(Duration::from_secs(15)).await;
    server.nodes.signal_node(NODE_LOST, "CONT");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let later = load.end().await;
    load.judge("a node that hangs", &config, &later).await;
    acknowledged.extend(later);
    // All of them at once, as after a loss of power: the database is there again, with everything.
    (1..=3).for_each(|node| server.nodes.signal_node(node, "KILL"));
    for node in 1..=3 {
        server.nodes.begin_to_start_node(node);
        server.nodes.wait_until_ready();
    }
    let lost = lost(&config, &acknowledged).await;
    println!("S7: cases={} faults={}", acknowledged.len(), lost.len());
    assert_eq!(lost, Vec::<i64>::new(), "lost when all nodes ended");
    let rows = reachable(&config).await.status(table()).await.unwrap().rows;
    assert!(rows >= acknowledged.len() as u64, "{rows} rows of {}", acknowledged.len());
}
