//! A real Cassandra for tests, of one node or of several. Test binaries include this file by its path.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::ports::{Port, free_port};

/// Nodes use the port that is so much higher among themselves.
const AMONG_NODES: u16 = 1_000;

/// Nodes on this machine only, which end with this.
pub(crate) struct Cassandra {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    folder: tempfile::TempDir,
    /// Of all nodes: node N is at 127.0.0.N.
    pub(crate) port: u16,
    _claim: Port,
}

impl Cassandra {
    /// Nodes that answer; with `is_secured` they ask for a password and have a certificate.
    pub(crate) fn start(nodes: u32, is_secured: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let claim = free_port(&[AMONG_NODES]);
        let port = claim.number;
        let mut process = Command::new(script())
            .args(["run", folder.path().to_str().unwrap(), &port.to_string(), &nodes.to_string()])
            .env("CASSANDRA_SECURED", if is_secured { "1" } else { "0" })
            .env("CASSANDRA_BRIEF", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let mut cassandra = Self { process, input, output, folder, port, _claim: claim };
        cassandra.wait_until_ready();
        cassandra
    }

    /// Waits for the nodes that were started last.
    pub(crate) fn wait_until_ready(&mut self) {
        let mut said = String::new();
        self.output.read_line(&mut said).unwrap();
        assert_eq!(said.trim(), "ready", "Cassandra did not start: see what tests/services/cassandra.sh said");
    }
}

#[allow(dead_code)] // This file is part of two crates of tests, and one of them does not ask.
impl Cassandra {
    /// `KILL` ends a node as the loss of its machine would, `STOP` lets it hang and `CONT` go on.
    pub(crate) fn signal_node(&self, node: u32, signal: &str) {
        let pid = std::fs::read_to_string(self.folder.path().join(format!("node{node}/pid"))).unwrap();
        assert!(Command::new("kill").args([&format!("-{signal}"), pid.trim()]).status().unwrap().success());
    }

    /// Starts a node again, without waiting for it.
    pub(crate) fn begin_to_start_node(&mut self, node: u32) {
        writeln!(self.input, "start {node}").unwrap();
    }

    /// That of secured nodes.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }
}

impl Drop for Cassandra {
    fn drop(&mut self) {
        // Its standard input ends with this process at the latest; here a test waits for it.
        let pid = self.process.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.process.wait();
    }
}

fn script() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut scripts = here.ancestors().map(|folder| folder.join("tests/services/cassandra.sh"));
    scripts.find(|script| script.is_file()).expect("tests/services/cassandra.sh")
}
