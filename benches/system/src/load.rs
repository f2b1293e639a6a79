//! A load on an HTTP server, and what it answers: as fast as it can, or at a fixed rate.
//!
//! One thread for each connection, with plain blocking sockets: next to nothing is spent beside the server, and a thread
//! sleeps to within some tens of microseconds, where timers of an event loop have a millisecond.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// No reply is larger.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// For how long requests that were due are still sent when the time of an overload is over.
const LATE_MAX: Duration = Duration::from_secs(5);

/// Of a connection's thread: a load may have thousands of them.
const STACK_BYTES: usize = 256 << 10;

/// For how long a reply may be waited for.
const REPLY_WAIT: Duration = Duration::from_secs(30);

/// When requests are sent.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// Each connection asks again as soon as it is answered (closed loop).
    Saturating,
    /// So many requests a second over all connections, each at its time whether or not others are answered (open loop): the
    /// time that one has to wait for its connection counts as the server's.
    Rate(f64),
}

/// Requests for one server.
#[derive(Debug)]
pub(crate) struct Load<'a> {
    /// `host:port`.
    pub(crate) address: &'a str,
    /// Whole requests, which take turns.
    pub(crate) requests: &'a [Vec<u8>],
    pub(crate) connections: usize,
    pub(crate) pace: Pace,
    /// Not measured.
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
}

/// What came of a load that a server cannot carry.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Overloaded {
    /// Requests that got what they asked for.
    pub(crate) served: u64,
    /// Requests that got a 503 or a 429 that says when to come back.
    pub(crate) refused: u64,
    /// All others: answered otherwise, on a connection that broke, or not even sent because every connection waited.
    pub(crate) lost: u64,
}

impl std::iter::Sum for Overloaded {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, part| Self {
            served: sum.served + part.served,
            refused: sum.refused + part.refused,
            lost: sum.lost + part.lost,
        })
    }
}

/// What came of a load, without its warm-up.
#[derive(Debug, Default)]
pub(crate) struct Answered {
    /// From when a request was due to the end of its reply, in microseconds, ascending.
    pub(crate) latencies_us: Vec<u32>,
    /// Requests answered in a second.
    pub(crate) rate: f64,
}

impl Answered {
    /// The latency that this share of the requests did not exceed, in milliseconds.
    pub(crate) fn percentile_ms(&self, share: f64) -> f64 {
        let rank = (share * self.latencies_us.len() as f64).ceil() as usize;
        let latency_us = self.latencies_us.get(rank.clamp(1, self.latencies_us.len().max(1)) - 1);
        latency_us.map_or(f64::NAN, |us| f64::from(*us) / 1e3)
    }
}

impl Load<'_> {
    /// Sends the requests and waits for every reply. `at_the_start` runs when the warm-up is over, `at_the_end` when what
    /// is measured is.
    ///
    /// # Errors
    /// A connection that fails; a reply other than 200.
    pub(crate) fn run<T>(&self, at_the_start: impl FnOnce() -> T, at_the_end: impl FnOnce(T)) -> Result<Answered> {
        ensure!(!self.requests.is_empty() && self.connections > 0, "nothing to ask");
        let started = Barrier::new(self.connections + 1);
        let clock = std::sync::OnceLock::new();
        let parts: Vec<Result<Vec<u32>>> = std::thread::scope(|scope| {
            let connections: Vec<_> = (0..self.connections)
                .map(|number| {
                    let (started, clock) = (&started, &clock);
                    scope.spawn(move || {
                        let connection = Connection::open(self.address);
                        started.wait();
                        let begin = *clock.get_or_init(Instant::now);
                        self.ask(number, connection?, begin)
                    })
                })
                .collect();
            started.wait();
            let begin = *clock.get_or_init(Instant::now);
            sleep_until(begin + self.warm_up);
            let state = at_the_start();
            sleep_until(begin + self.warm_up + self.measured);
            at_the_end(state);
            let joined = connections.into_iter().map(|connection| {
                connection.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a connection of the load panicked")))
            });
            joined.collect()
        });
        let mut latencies_us = Vec::new();
        for part in parts {
            latencies_us.extend(part?);
        }
        ensure!(!latencies_us.is_empty(), "no request was answered in {:?}", self.measured);
        latencies_us.sort_unstable();
        let rate = latencies_us.len() as f64 / self.measured.as_secs_f64();
        Ok(Answered { latencies_us, rate })
    }

    /// Sends the requests although they are too many, and counts what comes of each. `is_served` looks into the body of a
    /// reply with 200. There is no warm-up. `at_the_end` runs when the time is over, before the last replies.
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub(crate) fn overload(
        &self,
        is_served: impl Fn(&[u8]) -> bool + Sync,
        at_the_end: impl FnOnce(),
    ) -> Result<Overloaded> {
        let Pace::Rate(rate) = self.pace else { bail!("an overload has a fixed rate") };
        ensure!(!self.requests.is_empty() && self.connections > 0, "nothing to ask");
        let begin = Instant::now();
        let is_served = &is_served;
        std::thread::scope(|scope| {
            let start = |number: usize| {
                let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
                thread.spawn_scoped(scope, move || self.overload_one(number, rate, begin, is_served))
            };
            let connections = (0..self.connections).map(start).collect::<std::io::Result<Vec<_>>>()?;
            sleep_until(begin + self.measured);
            at_the_end();
            let joined = connections
                .into_iter()
                .map(|connection| connection.join().map_err(|_| anyhow::anyhow!("a connection of the load panicked")));
            joined.sum()
        })
    }

    /// The part of one connection, which is opened again when it breaks.
    fn overload_one(&self, number: usize, rate: f64, begin: Instant, is_served: &impl Fn(&[u8]) -> bool) -> Overloaded {
        let end = begin + self.measured;
        let mut connection = None;
        let mut counts = Overloaded::default();
        for turn in 0.. {
            let place = turn * self.connections + number;
            let due = begin + Duration::from_secs_f64(place as f64 / rate);
            if due >= end {
                break;
            }
            sleep_until(due);
            if end + LATE_MAX < Instant::now() {
                counts.lost += 1;
                continue;
            }
            let open = match connection.take() {
                Some(open) => Ok(open),
                None => Connection::open(self.address),
            };
            let Ok(mut open) = open else {
                counts.lost += 1;
                continue;
            };
            let Ok((reply, body)) = open.ask_anything(&self.requests[place % self.requests.len()]) else {
                counts.lost += 1;
                continue;
            };
            match reply.status {
                200 if is_served(body) => counts.served += 1,
                429 | 503 if reply.says_when_to_come_back => counts.refused += 1,
                _ => counts.lost += 1,
            }
            connection = Some(open);
        }
        counts
    }

    /// The part of one connection: the latencies of what was due after the warm-up.
    fn ask(&self, number: usize, mut connection: Connection, begin: Instant) -> Result<Vec<u32>> {
        let (from, end) = (begin + self.warm_up, begin + self.warm_up + self.measured);
        let mut latencies_us = Vec::new();
        for turn in 0.. {
            let place = turn * self.connections + number;
            let due = match self.pace {
                Pace::Saturating => Instant::now(),
                Pace::Rate(rate) => begin + Duration::from_secs_f64(place as f64 / rate),
            };
            if due >= end {
                break;
            }
            sleep_until(due);
            connection.ask(&self.requests[place % self.requests.len()])?;
            let answered = Instant::now();
            let is_counted = match self.pace {
                // What ends within the time that is measured.
                Pace::Saturating => answered >= from && answered < end,
                Pace::Rate(_) => due >= from,
            };
            if is_counted {
                latencies_us.push(u32::try_from((answered - due).as_micros()).unwrap_or(u32::MAX));
            }
        }
        Ok(latencies_us)
    }
}

fn sleep_until(instant: Instant) {
    let left = instant.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        std::thread::sleep(left);
    }
}

/// A connection that is kept alive.
struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REPLY_WAIT))?;
        Ok(Self { stream, buffer: vec![0; 64 << 10] })
    }

    /// Sends a request and reads its reply, which has to be 200. Gives the reply's body.
    fn ask(&mut self, request: &[u8]) -> Result<&[u8]> {
        let (reply, body) = self.ask_anything(request)?;
        ensure!(reply.status == 200, "{}\n{}", reply.head, String::from_utf8_lossy(body));
        Ok(body)
    }

    /// Sends a request and reads its reply, which has to say how long it is. Gives the reply and its body.
    fn ask_anything(&mut self, request: &[u8]) -> Result<(Reply, &[u8])> {
        self.stream.write_all(request)?;
        let mut filled = 0;
        loop {
            if filled == self.buffer.len() {
                ensure!(filled < REPLY_BYTES_MAX, "a reply of more than {REPLY_BYTES_MAX} bytes");
                self.buffer.resize(2 * filled, 0);
            }
            let read = self.stream.read(&mut self.buffer[filled..])?;
            ensure!(read > 0, "the server closed the connection");
            filled += read;
            let Some(reply) = Reply::read(&self.buffer[..filled])? else { continue };
            if filled >= reply.body.end {
                ensure!(filled == reply.body.end, "{} bytes follow a reply", filled - reply.body.end);
                let body = reply.body.clone();
                return Ok((reply, &self.buffer[body]));
            }
        }
    }
}

/// What the head of a reply says.
#[derive(Debug, PartialEq, Eq)]
struct Reply {
    status: u16,
    says_when_to_come_back: bool,
    /// Where the body stands.
    body: std::ops::Range<usize>,
    /// Empty where the status is 200.
    head: String,
}

impl Reply {
    /// `None` while the head is not whole.
    fn read(reply: &[u8]) -> Result<Option<Self>> {
        let Some(end_of_head) = reply.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return Ok(None) };
        let head = std::str::from_utf8(&reply[..end_of_head]).context("the head of a reply")?;
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status: u16 = status.with_context(|| format!("no status: {head}"))?;
        let (mut length, mut says_when_to_come_back) = (None, false);
        for (name, value) in head.lines().filter_map(|line| line.split_once(':')) {
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse::<usize>().ok();
            }
            says_when_to_come_back |= name.eq_ignore_ascii_case("retry-after");
        }
        let start = end_of_head + 4;
        let length = length.with_context(|| format!("a reply does not say how long it is:\n{head}"))?;
        let head = if status == 200 { String::new() } else { head.to_owned() };
        Ok(Some(Self { status, says_when_to_come_back, body: start..start + length, head }))
    }
}

/// One request, and its reply's body.
pub(crate) fn ask_once(address: &str, request: &[u8]) -> Result<Vec<u8>> {
    Connection::open(address)?.ask(request).map(<[u8]>::to_vec)
}

/// A `POST` of JSON.
pub(crate) fn post(address: &str, path: &str, body: &serde_json::Value) -> Vec<u8> {
    post_with(address, path, "", body)
}

/// The same with more headers, each a line.
pub(crate) fn post_with(address: &str, path: &str, headers: &str, body: &serde_json::Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// What the server counts under this name: by labels, as they are written.
pub(crate) fn metrics(address: &str, name: &str) -> Result<BTreeMap<String, f64>> {
    let request = format!("GET /metrics HTTP/1.1\r\nhost: {address}\r\n\r\n");
    let text = String::from_utf8(ask_once(address, request.as_bytes())?)?;
    let samples = text.lines().filter_map(|line| {
        let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.split_once("} ")?;
        Some((labels.to_owned(), value.parse().ok()?))
    });
    Ok(samples.collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn percentiles_are_ranks() {
        let answered = Answered { latencies_us: (1..=1000).map(|number| number * 1000).collect(), rate: 0.0 };
        assert_eq!(answered.percentile_ms(0.5), 500.0);
        assert_eq!(answered.percentile_ms(0.95), 950.0);
        assert_eq!(answered.percentile_ms(0.999), 999.0);
        assert!(Answered::default().percentile_ms(0.5).is_nan());
    }

    #[test]
    fn the_body_follows_the_head() {
        assert_eq!(Reply::read(b"HTTP/1.1 200 OK\r\ncontent-le").unwrap(), None);
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        let reply = Reply::read(whole).unwrap().unwrap();
        assert_eq!((reply.status, reply.body), (200, whole.len() - 2..whole.len()));
        assert!(Reply::read(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }

    /// A server on one connection after the other: each gets the next of these replies, however often it asks.
    fn scripted(replies: Vec<&'static str>) -> (String, std::thread::JoinHandle<()>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            for reply in replies {
                let (mut stream, _) = listener.accept().unwrap();
                let mut buffer = [0; 1024];
                while stream.read(&mut buffer).is_ok_and(|read| read > 0) {
                    stream.write_all(reply.as_bytes()).unwrap();
                    if reply.is_empty() {
                        break;
                    }
                }
            }
        });
        (address, server)
    }

    #[test]
    fn a_reply_other_than_200_is_an_error_with_what_it_says() {
        let (address, server) = scripted(vec!["HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy"]);
        let refused = ask_once(&address, b"GET / HTTP/1.1\r\n\r\n").unwrap_err();
        assert!(refused.to_string().contains("503") && refused.to_string().ends_with("busy"), "{refused}");
        server.join().unwrap();
    }

    #[test]
    fn an_overload_counts_what_becomes_of_every_request() {
        let count = |replies: Vec<&'static str>| {
            let (address, server) = scripted(replies);
            let requests = [b"GET / HTTP/1.1\r\n\r\n".to_vec()];
            let load = Load {
                address: &address,
                requests: &requests,
                connections: 1,
                pace: Pace::Rate(100.0),
                warm_up: Duration::ZERO,
                measured: Duration::from_millis(100),
            };
            let counts = load.overload(|body| body == b"{}", || ()).unwrap();
            server.join().unwrap();
            (counts.served, counts.refused, counts.lost)
        };
        assert_eq!(count(vec!["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"]), (10, 0, 0));
        assert_eq!(count(vec!["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]"]), (0, 0, 10));
        let busy = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(count(vec![busy]), (0, 10, 0));
        assert_eq!(count(vec!["HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"]), (0, 0, 10));
        // A connection that breaks costs its request, and the next one is tried on another.
        assert_eq!(count(vec!["", busy]), (0, 9, 1));
    }

    /// A server that stalls once: with a fixed rate the requests that were due meanwhile have waited as well.
    #[test]
    fn a_stall_counts_for_every_request_that_was_due() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut served = 0;
            let mut buffer = [0; 1024];
            while stream.read(&mut buffer).is_ok_and(|read| read > 0) {
                served += 1;
                if served == 10 {
                    std::thread::sleep(Duration::from_millis(300));
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").unwrap();
            }
        });
        let requests = [b"GET / HTTP/1.1\r\n\r\n".to_vec()];
        let load = Load {
            address: &address,
            requests: &requests,
            connections: 1,
            pace: Pace::Rate(100.0),
            warm_up: Duration::ZERO,
            measured: Duration::from_secs(1),
        };
        let answered = load.run(|| (), |()| ()).unwrap();
        server.join().unwrap();
        assert_eq!(answered.latencies_us.len(), 100);
        let late = answered.latencies_us.iter().filter(|us| **us > 50_000).count();
        assert!(late >= 15, "{late} of 100 requests have waited through a stall of 30 of them");
    }
}
