//! Servers of others that a bar needs: the scripts of `tests/services`, which end when their standard input does, so also
//! when this process is killed.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process::root;

/// A server that ends with this, and its files with it.
pub(crate) struct Service {
    process: Child,
    input: Option<ChildStdin>,
    /// Where it listens on 127.0.0.1.
    pub(crate) port: u16,
    folder: tempfile::TempDir,
}

impl Service {
    /// An empty Redis.
    pub(crate) fn redis() -> Result<Self> {
        Self::start("redis.sh")
    }

    /// One empty node of Cassandra.
    pub(crate) fn cassandra() -> Result<Self> {
        Self::start("cassandra.sh")
    }

    /// An empty PostgreSQL, with the database that [`Service::postgres_url`] names.
    pub(crate) fn postgres() -> Result<Self> {
        Self::start("postgres.sh")
    }

    /// The address of [`Service::postgres`], with user and password.
    pub(crate) fn postgres_url(&self) -> String {
        format!("postgres://test:test-password@127.0.0.1:{}/test", self.port)
    }

    fn start(script: &str) -> Result<Self> {
        let folder =
            tempfile::Builder::new().prefix("service-").tempdir_in(root().join("target/bench").canonicalize()?)?;
        let port = free_port()?;
        let mut process = Command::new(root().join("tests/services").join(script))
            .arg("run")
            .arg(folder.path())
            .arg(port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {script}"))?;
        let input = process.stdin.take();
        let output = process.stdout.take().context("no standard output")?;
        let service = Self { process, input, port, folder };
        let mut said = String::new();
        BufReader::new(output).read_line(&mut said)?;
        match said.trim() {
            "ready" => Ok(service),
            _ => bail!("{script} did not start a server: see what it said"),
        }
    }

    /// Where its files are, and those that have to do with it.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.process.wait();
    }
}

/// A port that is free together with the one a thousand higher, which nodes of Cassandra use among themselves.
pub(crate) fn free_port() -> Result<u16> {
    loop {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        if port < 64_000 && TcpListener::bind(("127.0.0.1", port + 1_000)).is_ok() {
            return Ok(port);
        }
    }
}
