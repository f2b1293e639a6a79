//! Components on their way in: how many, how fast, where their bytes wait, and who checks them.
//!
//! An upload's bytes go to an unnamed file as they come, so that neither large nor slow ones take memory, and nothing of them is
//! left whatever ends this process. The check happens in child processes ([`Engine::check`]).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::Request;
use axum::http::{StatusCode, header};
use eadem_engine::{CheckError, CheckPriority, Checked, Engine, Stop, UploadOptions};
use eadem_values::{Digest, Digester};
use futures::StreamExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};

use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::problem::{Finding, Problem};

/// What an upload that is turned away is told to wait.
const RETRY_AFTER_S: u32 = 5;

/// For so long the rest of an upload that is turned away is read and thrown away, because many clients look for the answer only
/// when they have sent everything.
const DISCARD: Duration = Duration::from_secs(5);

/// All uploads of a server.
pub struct Uploads {
    engine: Engine,
    /// Where bytes wait.
    folder: PathBuf,
    bytes_max: usize,
    arrival: Duration,
    /// Places for uploads from their first byte on.
    places: Arc<Semaphore>,
    /// Places for those that are checked at once.
    checks_at_once: Arc<Semaphore>,
    /// The checks that are wanted now, so that no two uploads of the same bytes are checked.
    checks: Mutex<HashMap<CheckId, Arc<CheckOnce>>>,
    /// Whether requests are served beside.
    steps_back: AtomicBool,
}

/// Checks of one id have one outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct CheckId {
    digest: Digest,
    strict_nan: bool,
    /// `None`: any.
    seed: Option<u64>,
}

type Outcome = Result<Arc<Checked>, Problem>;
type CheckOnce = OnceCell<Outcome>;

/// What the uploader wants of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) strict_nan: bool,
    /// `None`: a random one.
    pub(crate) seed: Option<u64>,
}

/// A component's bytes, whole, in an unnamed file.
pub(crate) struct Received {
    pub(crate) digest: Digest,
    file: Arc<File>,
    pub(crate) bytes: usize,
}

impl Received {
    /// All bytes.
    pub(crate) async fn read(&self) -> Result<Vec<u8>, Problem> {
        let (file, bytes) = (Arc::clone(&self.file), self.bytes);
        let read = tokio::task::spawn_blocking(move || read_whole(&file, bytes)).await;
        let read = read.unwrap_or_else(|error| Err(io::Error::other(error)));
        read.map_err(|error| Problem::internal("an upload's file cannot be read", error))
    }
}

fn read_whole(mut file: &File, bytes: usize) -> io::Result<Vec<u8>> {
    let mut all = Vec::with_capacity(bytes);
    file.rewind()?;
    file.read_to_end(&mut all)?;
    Ok(all)
}

/// Calls a check off when whoever wants it is gone.
struct StopWithThis(Stop);

impl Drop for StopWithThis {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// One who wants a check.
struct Wanting<'a> {
    uploads: &'a Uploads,
    id: CheckId,
    check: Arc<CheckOnce>,
}

impl Drop for Wanting<'_> {
    fn drop(&mut self) {
        let mut checks = self.uploads.checks();
        // This one and the map's: nobody else wants it.
        if Arc::strong_count(&self.check) == 2 {
            checks.remove(&self.id);
        }
    }
}

impl Uploads {
    /// Places for uploads by these limits. Bytes wait in the folder of the engine's artefacts.
    pub fn new(engine: Engine, limits: &Limits) -> Self {
        let at_once = limits.uploads_at_once.clamp(1, Semaphore::MAX_PERMITS / 2);
        let waiting_max = limits.uploads_waiting_max.min(Semaphore::MAX_PERMITS / 2);
        Self {
            folder: engine.config().artifacts_dir.clone(),
            engine,
            bytes_max: limits.component_bytes_max,
            arrival: Duration::from_millis(limits.upload_ms_max),
            places: Arc::new(Semaphore::new(at_once + waiting_max)),
            checks_at_once: Arc::new(Semaphore::new(at_once)),
            checks: Mutex::default(),
            steps_back: AtomicBool::new(false),
        }
    }

    /// From now on checks leave the processors to everybody else: requests are served beside them. Without that somebody waits
    /// for the check alone.
    pub fn step_back(&self) {
        self.steps_back.store(true, Ordering::Relaxed);
    }

    fn checks(&self) -> MutexGuard<'_, HashMap<CheckId, Arc<CheckOnce>>> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more upload, and its bytes.
    pub(crate) async fn receive(&self, request: Request) -> Result<(Received, OwnedSemaphorePermit), Problem> {
        let announced = request.headers().get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|bytes| bytes.to_str().ok()?.parse::<u64>().ok());
        let mut body = request.into_body().into_data_stream();
        let received = match self.place(announced) {
            Ok(place) => match tokio::time::timeout(self.arrival, self.store(&mut body)).await {
                Ok(received) => received.map(|received| (received, place)),
                Err(_) => return Err(self.too_slow()),
            },
            Err(problem) => Err(problem),
        };
        if received.is_err() {
            let rest = async { while let Some(Ok(_)) = body.next().await {} };
            let _ = tokio::time::timeout(DISCARD, rest).await;
        }
        received
    }

    fn place(&self, announced_bytes: Option<u64>) -> Result<OwnedSemaphorePermit, Problem> {
        if announced_bytes.is_some_and(|bytes| bytes > self.bytes_max as u64) {
            return Err(self.too_large());
        }
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            let detail =
                "other uploads are on their way or wait for their check (limits.uploads_waiting_max); try again";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "uploads_full", detail).retry_after(RETRY_AFTER_S)
        })
    }

    async fn store(&self, body: &mut axum::body::BodyDataStream) -> Result<Received, Problem> {
        let unwritable = |error: io::Error| Problem::internal("an upload's bytes cannot be kept", error);
        let file = tempfile::tempfile_in(&self.folder).map_err(unwritable)?;
        let mut file = tokio::fs::File::from_std(file);
        let (mut digester, mut bytes) = (Digester::default(), 0_usize);
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| {
                Problem::bad_request("unreadable_body", format!("the body broke off after {bytes} bytes: {error}"))
            })?;
            bytes = bytes.saturating_add(piece.len());
            if bytes > self.bytes_max {
                return Err(self.too_large());
            }
            digester.update(&piece);
            file.write_all(&piece).await.map_err(unwritable)?;
        }
        file.flush().await.map_err(unwritable)?;
        let file = Arc::new(file.into_std().await);
        Ok(Received { digest: digester.finish(), file, bytes })
    }

    fn too_large(&self) -> Problem {
        let detail = format!("a component has at most {} bytes (limits.component_bytes_max)", self.bytes_max);
        Problem::too_large("body_too_large", detail)
    }

    fn too_slow(&self) -> Problem {
        let detail = format!(
            "the component has not arrived within {} ms (limits.upload_ms_max); send it over a faster way, or raise the limit",
            self.arrival.as_millis()
        );
        Problem::new(StatusCode::REQUEST_TIMEOUT, "upload_too_slow", detail)
    }

    /// Has a component checked, once for all who want it at the same time. One of them has it done: when that one goes, the check
    /// is called off, and the next one begins it again.
    pub(crate) async fn check(&self, received: &Received, wish: Wish, metrics: &Metrics) -> Outcome {
        let id = CheckId { digest: received.digest, strict_nan: wish.strict_nan, seed: wish.seed };
        let check = Arc::clone(self.checks().entry(id).or_default());
        let wanting = Wanting { uploads: self, id, check };
        wanting.check.get_or_init(|| self.check_now(received, wish, metrics)).await.clone()
    }

    async fn check_now(&self, received: &Received, wish: Wish, metrics: &Metrics) -> Outcome {
        let place = Arc::clone(&self.checks_at_once).acquire_owned().await;
        let place = place.map_err(|error| Problem::internal("uploads are closed", error))?;
        let options = UploadOptions {
            strict_nan: wish.strict_nan,
            seed: wish.seed.unwrap_or_else(eadem_engine::random_seed),
            ..UploadOptions::default()
        };
        let (engine, file, bytes) = (self.engine.clone(), Arc::clone(&received.file), received.bytes);
        let priority = match self.steps_back.load(Ordering::Relaxed) {
            true => CheckPriority::Lowest,
            false => CheckPriority::Normal,
        };
        let stop = Stop::default();
        let _stop = StopWithThis(stop.clone());
        let check = move || {
            // Held until no child is left, also when the client has gone.
            let _place = place;
            let component = read_whole(&file, bytes).map_err(|error| CheckError::Process(error.to_string()))?;
            engine.check(&component, &options, priority, &stop)
        };
        let checked = tokio::task::spawn_blocking(check)
            .await
            .map_err(|error| Problem::internal("the upload could not be checked", error))?;
        metrics.upload_checked(match &checked {
            Ok(_) => "accepted",
            Err(error) if error.code().is_some() => "refused",
            Err(_) => "unfinished",
        });
        checked.map(Arc::new).map_err(|error| problem(&error))
    }

    /// Keeps the machine code of a component that was accepted.
    pub(crate) async fn keep(&self, checked: Arc<Checked>) -> Result<(), Problem> {
        let engine = self.engine.clone();
        let kept = tokio::task::spawn_blocking(move || engine.keep(&checked)).await;
        kept.map_err(|error| Problem::internal("the artefact could not be stored", error))
    }
}

fn problem(error: &CheckError) -> Problem {
    let refused = |code: &str| Problem::refused(code, format!("the component is refused: {error}"));
    match error {
        CheckError::Process(_) => Problem::internal("the component could not be checked", error),
        CheckError::Refused(report) => {
            let finding =
                Finding { law: report.law.clone(), seed: report.seed, row: report.row, field: report.field.clone() };
            refused(&report.code).with_finding(finding)
        }
        error => match error.code() {
            Some(code) => refused(code),
            None => {
                let detail = format!("nothing was found out about the component: {error}; try again");
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "check_unfinished", detail).retry_after(RETRY_AFTER_S)
            }
        },
    }
}
