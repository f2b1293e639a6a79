//! Connections: how many there are, how long one may say nothing, and how all of them end.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tower::Service;

use crate::access::Peer;
use crate::limits::Limits;
use crate::tls::{Certificate, TlsError};

/// A connection that has not shaken hands by then is closed.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// One that has not brought the whole head of a request by then is closed too.
const FIRST_HEAD_MAX: Duration = Duration::from_secs(10);
/// From the end of a request to the whole head of the next one. Longer than what stands in front of servers keeps connections
/// for (a minute is usual), so that it is not this side that closes one just when it is used again.
const NEXT_HEAD_MAX: Duration = Duration::from_secs(75);
/// How often the other end of an HTTP/2 connection is asked whether it is there, and how long its answer may take.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_MAX: Duration = Duration::from_secs(10);
/// After how long without a word the system asks the other end whether it is there, and how often then: one that has gone without
/// saying so does not keep its connection, whatever was being waited for.
const PROBE_AFTER: Duration = Duration::from_secs(60);
const PROBE_EVERY: Duration = Duration::from_secs(10);
/// Requests at once, and bytes of headers, of one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
const HEADERS_BYTES_MAX: u32 = 16 << 10;
/// How long to wait after the system has no connection to give, such as for lack of file descriptors.
const ACCEPT_RETRY_AFTER: Duration = Duration::from_millis(100);
/// How often the log says that there are too many.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// What connections may do.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    connections_max: usize,
    first_head_max: Duration,
    next_head_max: Duration,
}

/// The routes, and where they are asked for.
pub struct Server<S> {
    listener: TcpListener,
    connections: Arc<Connections<S>>,
}

/// What all connections share.
struct Connections<S> {
    routes: S,
    /// `None`: in the clear.
    tls: Option<TlsAcceptor>,
    http: Builder<TokioExecutor>,
    bounds: Bounds,
}

impl<S> Server<S>
where
    S: Service<Request<Body>, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    /// Connections of `listener`, by TLS where there is a certificate.
    ///
    /// # Errors
    /// TLS that cannot be configured.
    pub fn new(
        listener: TcpListener,
        routes: S,
        certificate: Option<&Arc<Certificate>>,
        limits: &Limits,
    ) -> Result<Self, TlsError> {
        let bounds = Bounds {
            connections_max: limits.connections_max,
            first_head_max: FIRST_HEAD_MAX,
            next_head_max: NEXT_HEAD_MAX,
        };
        let tls = certificate.map(Certificate::acceptor).transpose()?;
        Ok(Self::bounded(listener, routes, tls, bounds))
    }

    fn bounded(listener: TcpListener, routes: S, tls: Option<TlsAcceptor>, bounds: Bounds) -> Self {
        let mut http = Builder::new(TokioExecutor::new());
        http.http1().timer(TokioTimer::new()).header_read_timeout(bounds.next_head_max);
        http.http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_MAX)
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEADERS_BYTES_MAX);
        Self { listener, connections: Arc::new(Connections { routes, tls, http, bounds }) }
    }

    /// Answers until `end`, and then until all requests in flight are answered.
    pub async fn run(self, end: impl Future<Output = ()>) {
        let Self { listener, connections } = self;
        let (told, ending) = watch::channel(());
        let mut door = Door::new(listener, connections.bounds.connections_max);
        let mut end = pin!(end);
        loop {
            let (stream, address, place) = tokio::select! {
                () = &mut end => break,
                taken = door.take() => taken,
            };
            let (connections, ending) = (Arc::clone(&connections), ending.clone());
            tokio::spawn(async move {
                connections.answer(stream, Peer(address), ending).await;
                drop(place);
            });
        }
        drop((door, ending));
        told.send_replace(());
        // Each connection has a receiver.
        told.closed().await;
    }
}

/// Where connections are taken.
struct Door {
    listener: TcpListener,
    places: Arc<Semaphore>,
    warned_at: Option<Instant>,
}

impl Door {
    fn new(listener: TcpListener, connections_max: usize) -> Self {
        let places = Arc::new(Semaphore::new(connections_max.clamp(1, Semaphore::MAX_PERMITS)));
        Self { listener, places, warned_at: None }
    }

    /// The next connection. One too many waits where the system keeps those that nobody has taken yet.
    async fn take(&mut self) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
        loop {
            let place = self.place().await;
            match self.listener.accept().await {
                Ok((stream, address)) => return (stream, address, place),
                // A client that has gone again is none of our business; anything else passes or does not.
                Err(error) if is_of_client(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "no connection could be taken");
                    tokio::time::sleep(ACCEPT_RETRY_AFTER).await;
                }
            }
        }
    }

    async fn place(&mut self) -> OwnedSemaphorePermit {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return place;
        }
        if self.warned_at.is_none_or(|warned_at| warned_at.elapsed() >= WARN_EVERY) {
            self.warned_at = Some(Instant::now());
            tracing::warn!("as many connections are open as may be (limits.connections_max); others wait");
        }
        match Arc::clone(&self.places).acquire_owned().await {
            Ok(place) => place,
            // Nobody closes it.
            Err(_) => std::future::pending().await,
        }
    }
}

fn is_of_client(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}

impl<S> Connections<S>
where
    S: Service<Request<Body>, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    async fn answer(&self, stream: TcpStream, peer: Peer, mut ending: watch::Receiver<()>) {
        // One small record after the other: each would wait for the one before to be acknowledged.
        let _ = stream.set_nodelay(true);
        let probes = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&probes);
        let Some(tls) = &self.tls else { return self.answer_over(stream, peer, ending).await };
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(HANDSHAKE_MAX, tls.accept(stream)) => shaken,
            _ = ending.changed() => return,
        };
        match shaken {
            Ok(Ok(stream)) => self.answer_over(stream, peer, ending).await,
            Ok(Err(error)) => tracing::debug!(address = %peer.0, %error, "a handshake failed"),
            Err(_) => tracing::debug!(address = %peer.0, "a handshake took too long"),
        }
    }

    async fn answer_over<I>(&self, stream: I, peer: Peer, mut ending: watch::Receiver<()>)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let has_asked = Arc::new(AtomicBool::new(false));
        let service = {
            let (routes, has_asked) = (self.routes.clone(), Arc::clone(&has_asked));
            service_fn(move |request: Request<Incoming>| {
                has_asked.store(true, Ordering::Relaxed);
                let mut request = request.map(Body::new);
                request.extensions_mut().insert(ConnectInfo(peer));
                routes.clone().call(request)
            })
        };
        let mut connection = pin!(self.http.serve_connection(TokioIo::new(stream), service));
        // Of the first request everything is waited for here: also the bytes that say which version of HTTP it is.
        let mut first_head = pin!(tokio::time::sleep(self.bounds.first_head_max));
        let (mut is_first, mut is_ending) = (true, false);
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(address = %peer.0, %error, "a connection broke off");
                    }
                    return;
                }
                () = &mut first_head, if is_first => {
                    is_first = false;
                    if !has_asked.load(Ordering::Relaxed) {
                        tracing::debug!(address = %peer.0, "a connection brought no request");
                        return;
                    }
                }
                _ = ending.changed(), if !is_ending => {
                    is_ending = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use axum::Router;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::{Notify, oneshot};
    use tokio::task::JoinHandle;

    use super::*;

    /// What never happens fails its test.
    const PATIENCE: Duration = Duration::from_secs(60);
    const LONG: Duration = Duration::from_secs(3_600);
    const REQUEST: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

    struct Running {
        address: SocketAddr,
        end: oneshot::Sender<()>,
        ran: JoinHandle<()>,
    }

    async fn serve(router: Router, bounds: Bounds) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (end, ended) = oneshot::channel();
        let server = Server::bounded(listener, router, None, bounds);
        let ran = tokio::spawn(server.run(async {
            let _ = ended.await;
        }));
        Running { address, end, ran }
    }

    fn bounds() -> Bounds {
        Bounds { connections_max: 100, first_head_max: LONG, next_head_max: LONG }
    }

    fn hello() -> Router {
        Router::new()
            .route("/", get(|ConnectInfo(Peer(address)): ConnectInfo<Peer>| async move { address.to_string() }))
    }

    async fn within<T>(work: impl Future<Output = T>) -> T {
        tokio::time::timeout(PATIENCE, work).await.unwrap()
    }

    /// All that comes until the other side closes.
    async fn rest(stream: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        within(stream.read_to_end(&mut bytes)).await.unwrap();
        String::from_utf8(bytes).unwrap()
    }

    /// One answer, whose body ends with `end`.
    async fn answer(stream: &mut TcpStream, end: &str) -> String {
        let mut text = String::new();
        while !text.ends_with(end) {
            let mut bytes = [0; 1_024];
            let count = within(stream.read(&mut bytes)).await.unwrap();
            assert_ne!(count, 0, "{text}");
            text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        }
        text
    }

    #[tokio::test]
    async fn who_brings_no_whole_head_is_cut_off() {
        let server = serve(hello(), Bounds { first_head_max: Duration::from_millis(50), ..bounds() }).await;
        // Nothing, the beginning of either version of HTTP, and half a head.
        for sent in ["", "PRI * HT", "GET / HTTP/1.1\r\nHost: local"] {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            stream.write_all(sent.as_bytes()).await.unwrap();
            assert_eq!(rest(&mut stream).await, "", "{sent}");
        }
    }

    #[tokio::test]
    async fn half_a_head_after_a_request_is_cut_off_too() {
        let server = serve(hello(), Bounds { next_head_max: Duration::from_millis(50), ..bounds() }).await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(format!("{REQUEST}GET / HT").as_bytes()).await.unwrap();
        let said = rest(&mut stream).await;
        assert_eq!(said.matches("HTTP/1.1 200").count(), 1, "{said}");
        // Routes know who asks.
        assert!(said.ends_with(&stream.local_addr().unwrap().to_string()), "{said}");
    }

    /// The system's own list says for each connection which timer runs: 2 is that of probes.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn who_goes_away_without_a_word_is_found_out() {
        let server = serve(hello(), bounds()).await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(REQUEST.as_bytes()).await.unwrap();
        let own = stream.local_addr().unwrap();
        answer(&mut stream, &own.to_string()).await;
        let of_port = |address: SocketAddr| format!(":{:04X}", address.port());
        let (here, there) = (of_port(server.address), of_port(own));
        let probes = || {
            let list = std::fs::read_to_string("/proc/net/tcp").unwrap();
            let lines = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let ours =
                |fields: &Vec<&str>| fields.len() > 5 && fields[1].ends_with(&here) && fields[2].ends_with(&there);
            lines.filter(ours).any(|fields| fields[5].starts_with("02:"))
        };
        // Until the answer is acknowledged another timer runs.
        within(async {
            while !probes() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_request_may_take_longer_than_its_head() {
        let go_on = Arc::new(Notify::new());
        let waited = Arc::clone(&go_on);
        let slow = Router::new().route("/", get(move || async move { waited.notified().await }));
        let short = Duration::from_millis(20);
        let server = serve(slow, Bounds { first_head_max: short, next_head_max: short, ..bounds() }).await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(REQUEST.as_bytes()).await.unwrap();
        // Others are cut off meanwhile.
        for _ in 0..3 {
            assert_eq!(rest(&mut TcpStream::connect(server.address).await.unwrap()).await, "");
        }
        go_on.notify_one();
        assert!(rest(&mut stream).await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn a_connection_too_many_waits_for_a_place() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let count = move || async move { format!("{};", counted.fetch_add(1, Ordering::Relaxed)) };
        let server = serve(Router::new().route("/", get(count)), Bounds { connections_max: 1, ..bounds() }).await;
        let mut first = TcpStream::connect(server.address).await.unwrap();
        first.write_all(REQUEST.as_bytes()).await.unwrap();
        answer(&mut first, ";").await;
        let mut second = TcpStream::connect(server.address).await.unwrap();
        second.write_all(REQUEST.as_bytes()).await.unwrap();
        for number in 1..=200 {
            first.write_all(REQUEST.as_bytes()).await.unwrap();
            assert!(answer(&mut first, ";").await.ends_with(&format!("\r\n{number};")), "the other was let in");
        }
        drop(first);
        assert!(answer(&mut second, ";").await.ends_with("\r\n201;"));
    }

    #[tokio::test]
    async fn at_the_end_what_is_in_flight_is_answered() {
        let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (begins, goes_on) = (Arc::clone(&begun), Arc::clone(&go_on));
        let slow = move || async move {
            begins.notify_one();
            goes_on.notified().await;
            "done"
        };
        let server = serve(Router::new().route("/", get(slow)).route("/fast", get(async || "fast")), bounds()).await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(REQUEST.as_bytes()).await.unwrap();
        within(begun.notified()).await;
        let mut idle = TcpStream::connect(server.address).await.unwrap();
        idle.write_all(REQUEST.replace("GET /", "GET /fast").as_bytes()).await.unwrap();
        answer(&mut idle, "fast").await;
        server.end.send(()).unwrap();
        assert_eq!(rest(&mut idle).await, "");
        assert!(!server.ran.is_finished());
        go_on.notify_one();
        let said = rest(&mut stream).await;
        assert!(said.starts_with("HTTP/1.1 200") && said.ends_with("done"), "{said}");
        within(server.ran).await.unwrap();
        assert!(TcpStream::connect(server.address).await.is_err());
    }
}
