//! A real PostgreSQL server for a test, by `postgres.sh` beside this file.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::ports::{Port, free_port};

/// The password of its user `test`.
pub(crate) const PASSWORD: &str = "test-password";

/// A server with the database `test` that ends with the value.
pub(crate) struct Postgres {
    process: Child,
    pub(crate) port: u16,
    _claim: Port,
    _folder: TempDir,
}

impl Postgres {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let claim = free_port(&[]);
        let port = claim.number;
        let mut process = Command::new(script())
            .arg("run")
            .arg(folder.path())
            .arg(port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said.trim(), "ready", "PostgreSQL did not start: see what tests/services/postgres.sh said");
        Self { process, port, _claim: claim, _folder: folder }
    }

    #[allow(dead_code)] // This file is part of several crates of tests, and one of them does not ask.
    pub(crate) fn url(&self) -> String {
        format!("postgres://test:{PASSWORD}@127.0.0.1:{}/test", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // It ends when its input does.
        drop(self.process.stdin.take());
        let _ended = self.process.wait();
    }
}

fn script() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut scripts = here.ancestors().map(|folder| folder.join("tests/services/postgres.sh"));
    scripts.find(|script| script.is_file()).expect("tests/services/postgres.sh")
}
