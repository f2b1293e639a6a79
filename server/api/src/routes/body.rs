//! Bodies of requests: how large one may be, how long it may take to come, and how many bytes of them there may be at once.
//! And JSON whose faults are problem documents.
//!
//! A body is read before its route is asked. One that is there already, as most are, is taken as it is. One that has to be
//! waited for has no place among the requests that are served until all of it is there: whoever sends slowly keeps nobody else
//! from being served.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use hyper::body::Body as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;

use crate::problem::Problem;
use crate::state::ApiState;

/// A body of so many bytes that is there at once is not counted among those of all bodies: of such there are no more than
/// places for requests.
const SMALL_BYTES_MAX: usize = 64 << 10;
/// One that is waited for counts as so many at least, because those who wait take memory too.
const WAITED_BYTES_MIN: usize = 16 << 10;

/// A JSON body. Anything else is 400 with line and column.
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let bytes = body_of(request).await?;
        parse_json(&bytes).map(Self)
    }
}

/// A body as JSON. Anything else is 400 with line and column.
pub(crate) fn parse_json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|error| malformed_json(&error))
}

pub(crate) fn malformed_json(error: &serde_json::Error) -> Problem {
    Problem::bad_request("malformed_json", format!("the body is not what this route takes: {error}"))
}

/// The body of a request for which [`read_whole`] was called: all of it in one piece.
pub(crate) async fn body_of(request: Request) -> Result<Bytes, Problem> {
    let mut body = request.into_body();
    match poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        None => Ok(Bytes::new()),
        Some(Ok(frame)) => Ok(frame.into_data().unwrap_or_default()),
        Some(Err(error)) => Err(unreadable(&error)),
    }
}

/// Reads the body of a request, and puts it into it in one piece. What it gives is the body's part of what all bodies may
/// have together, to be kept until the request is answered.
///
/// # Errors
/// A body that is too large, too slow or breaks off; too many bytes of others; no place any more once it is there.
pub(super) async fn read_whole(
    state: &ApiState,
    request: &mut Request,
    place: &mut Option<OwnedSemaphorePermit>,
) -> Result<Option<OwnedSemaphorePermit>, Problem> {
    let mut arriving = Arriving::new(state, std::mem::take(request.body_mut()));
    let is_whole = poll_fn(|context| Poll::Ready(arriving.take_what_is_there(context))).await?;
    if !is_whole {
        drop(place.take());
        Box::pin(arriving.wait_for_the_rest()).await?;
        *place = Some(super::place_of(state)?);
    }
    *request.body_mut() = Body::from(arriving.bytes());
    Ok(arriving.counted)
}

/// A body, as far as it has come.
struct Arriving<'a> {
    state: &'a ApiState,
    body: Body,
    /// The only piece, or none.
    first: Bytes,
    /// All of it where there are several.
    joined: Vec<u8>,
    count: usize,
    counted: Option<OwnedSemaphorePermit>,
}

impl<'a> Arriving<'a> {
    fn new(state: &'a ApiState, body: Body) -> Self {
        Self { state, body, first: Bytes::new(), joined: Vec::new(), count: 0, counted: None }
    }

    /// Takes what has come. Gives whether that is all.
    fn take_what_is_there(&mut self, context: &mut Context<'_>) -> Result<bool, Problem> {
        loop {
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Pending => return Ok(false),
                Poll::Ready(None) => return Ok(true),
                Poll::Ready(Some(Err(error))) => return Err(unreadable(&error)),
                Poll::Ready(Some(Ok(frame))) => {
                    // Nobody asks for trailers.
                    if let Ok(piece) = frame.into_data() {
                        self.add(piece)?;
                    }
                }
            }
            if self.body.is_end_stream() {
                return Ok(true);
            }
        }
    }

    async fn wait_for_the_rest(&mut self) -> Result<(), Problem> {
        let limits = &self.state.limits;
        let (ms_max, at_least) = (limits.body_ms_max, self.count.max(WAITED_BYTES_MIN));
        self.count_as(at_least)?;
        let whole = poll_fn(|context| match self.take_what_is_there(context) {
            Ok(false) => Poll::Pending,
            Ok(true) => Poll::Ready(Ok(())),
            Err(problem) => Poll::Ready(Err(problem)),
        });
        tokio::time::timeout(Duration::from_millis(ms_max), whole).await.unwrap_or_else(|_| {
            let detail = format!(
                "the body has not arrived within {ms_max} ms (limits.body_ms_max); send it over a faster way, send less, or \
                 raise the limit"
            );
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", detail))
        })
    }

    fn add(&mut self, piece: Bytes) -> Result<(), Problem> {
        self.count = self.count.saturating_add(piece.len());
        if self.count > self.state.limits.body_bytes_max {
            let detail = "the body is larger than this route takes; see `limits` in the configuration";
            return Err(Problem::too_large("body_too_large", detail));
        }
        if self.counted.is_some() || self.count > SMALL_BYTES_MAX {
            self.count_as(self.count)?;
        }
        if self.first.is_empty() && self.joined.is_empty() {
            self.first = piece;
            return Ok(());
        }
        self.joined.extend_from_slice(&std::mem::take(&mut self.first));
        self.joined.extend_from_slice(&piece);
        Ok(())
    }

    /// Counts the body as so many bytes of those that all bodies may have together.
    fn count_as(&mut self, bytes: usize) -> Result<(), Problem> {
        let counted = self.counted.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = u32::try_from(bytes.saturating_sub(counted)).unwrap_or(u32::MAX);
        if more == 0 {
            return Ok(());
        }
        let taken = Arc::clone(&self.state.body_bytes).try_acquire_many_owned(more).map_err(|_| {
            self.state.metrics.shed();
            Problem::overloaded(
                "the bodies of requests take as much as they may together (limits.bodies_bytes_max); try again",
            )
        })?;
        match &mut self.counted {
            Some(counted) => counted.merge(taken),
            None => self.counted = Some(taken),
        }
        Ok(())
    }

    fn bytes(&mut self) -> Bytes {
        match self.joined.is_empty() {
            true => std::mem::take(&mut self.first),
            false => std::mem::take(&mut self.joined).into(),
        }
    }
}

fn unreadable(error: &axum::Error) -> Problem {
    Problem::bad_request("unreadable_body", format!("the body broke off: {error}"))
}
