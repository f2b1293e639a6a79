//! The real server: one node for all tests of the binary, or several for one test.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use eadem_online::ScyllaConfig;
use eadem_online::scylla::{Credentials, Replication, SchemaOptions, init};
use scylla::client::session::Session;
use scylla::deserialize::row::DeserializeRow;
use tempfile::TempDir;

pub(super) struct Server {
    folder: TempDir,
    pub(super) port: u16,
    is_secured: bool,
    process: Child,
    /// The server ends when this does.
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// A port that is free together with the one a thousand higher, which nodes use among themselves.
fn free_port() -> u16 {
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if port < 64_000 && TcpListener::bind(("127.0.0.1", port + 1_000)).is_ok() {
            return port;
        }
    }
}

impl Server {
    pub(super) fn start(nodes: u32, is_secured: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/services/cassandra.sh");
        let mut process = Command::new(script)
            .args(["run", folder.path().to_str().unwrap(), &port.to_string(), &nodes.to_string()])
            .env("CASSANDRA_SECURED", if is_secured { "1" } else { "0" })
            .env("CASSANDRA_BRIEF", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let mut server = Self { folder, port, is_secured, process, input, output };
        server.expect_ready();
        server
    }

    fn expect_ready(&mut self) {
        let mut said = String::new();
        self.output.read_line(&mut said).unwrap();
        assert_eq!(said.trim(), "ready", "the server did not start; what it said stands above");
    }

    /// `KILL` ends a node as the loss of its machine would, `STOP` lets it hang and `CONT` go on.
    pub(super) fn signal_node(&self, node: u32, signal: &str) {
        let pid = std::fs::read_to_string(self.folder.path().join(format!("node{node}/pid"))).unwrap();
        assert!(Command::new("kill").args([&format!("-{signal}"), pid.trim()]).status().unwrap().success());
    }

    /// Starts a node again, without waiting for it.
    pub(super) fn begin_to_start_node(&mut self, node: u32) {
        writeln!(self.input, "start {node}").unwrap();
    }

    pub(super) fn wait_for_node(&mut self) {
        self.expect_ready();
    }

    pub(super) fn certificate(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }

    pub(super) fn config(&self, keyspace: &str) -> ScyllaConfig {
        let mut config = ScyllaConfig::new(vec![format!("127.0.0.1:{}", self.port)], keyspace);
        // A machine that is busy with everything at once, the server included, may stall for seconds.
        config.timeout = Duration::from_secs(20);
        if self.is_secured {
            config.credentials = Some(Credentials { user: "cassandra".to_owned(), password: "cassandra".to_owned() });
        }
        config
    }

    /// An empty store in a keyspace of its own.
    pub(super) async fn keyspace(&self, copies: u32) -> ScyllaConfig {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let config = self.config(&format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        init(&config, &schema(copies)).await.unwrap();
        config
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its standard input ends with this process at the latest; here a test waits for it.
        let pid = self.process.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.process.wait();
    }
}

/// A short lease, because trims and drops wait for it.
pub(super) fn schema(copies: u32) -> SchemaOptions {
    SchemaOptions { replication: Replication::EveryDatacenter(copies), lease_ms: 60, buckets: 8 }
}

/// The one node that all tests share. It ends with the process.
pub(super) fn shared() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start(1, true))
}

/// A session of the driver's own.
pub(super) async fn session(config: &ScyllaConfig) -> Session {
    config.session_builder().unwrap().build().await.unwrap()
}

/// The rows of a statement that the store has nothing to do with.
pub(super) async fn rows<T>(session: &Session, text: &str) -> Vec<T>
where
    T: for<'f, 'm> DeserializeRow<'f, 'm>,
{
    let result = session.query_unpaged(text, ()).await.unwrap().into_rows_result().unwrap();
    result.rows::<T>().unwrap().map(Result::unwrap).collect()
}
