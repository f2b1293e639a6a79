//! A real S3 server for the tests of this process. Test binaries include this file by its path.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::ports::{Port, free_port};

/// The one bucket.
pub(crate) const BUCKET: &str = "test";
pub(crate) const ACCESS_KEY: &str = "test-access";
pub(crate) const SECRET_KEY: &str = "test-secret-key";

/// A server with one empty bucket, on this machine only. It ends with its last owner, or with this process.
pub(crate) struct S3Server {
    process: Child,
    folder: tempfile::TempDir,
    pub(crate) endpoint: String,
    _claim: Port,
}

static RUNNING: Mutex<Weak<S3Server>> = Mutex::new(Weak::new());

impl S3Server {
    /// The server that other tests of this process use at the moment, or a new one. Tests keep apart by their prefixes.
    pub(crate) fn shared() -> Arc<Self> {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = running.upgrade() {
            return server;
        }
        let server = Arc::new(Self::start());
        *running = Arc::downgrade(&server);
        server
    }

    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let claim = free_port(&[]);
        let port = claim.number;
        let mut process = Command::new(script())
            .args([Path::new("run"), folder.path(), Path::new(&port.to_string())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready", "the S3 server did not start: see what tests/services/s3.sh said");
        Self { process, folder, endpoint: format!("http://127.0.0.1:{port}"), _claim: claim }
    }

    /// Where it keeps its objects.
    #[allow(dead_code)] // This file is part of two crates of tests, and one of them does not ask.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The variables by which a process finds the server, and no other place that could name one or hold credentials.
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_ENDPOINT_URL", self.endpoint.clone()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
            ("HOME", self.folder.path().display().to_string()),
        ]
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // The script ends the server when its standard input ends.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

fn script() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = here.ancestors().map(|folder| folder.join("tests/services/s3.sh")).find(|script| script.is_file());
    script.expect("tests/services/s3.sh")
}
