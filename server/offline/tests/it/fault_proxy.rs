//! Between a client and an HTTP server: passes requests on one by one, and loses the one it is told to, before or after the
//! server has carried it out.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The server never sees it; the connection breaks.
    Request,
    /// The server carries it out; the connection breaks before the reply.
    Reply,
    /// The server carries it out, and something on the way says 503.
    Unavailable,
}

pub const LOSSES: [Loss; 3] = [Loss::Request, Loss::Reply, Loss::Unavailable];

type Decide = dyn FnMut(usize, &str) -> Option<Loss> + Send;

struct State {
    decide: Box<Decide>,
    /// The first lines of all requests since the last change of mind.
    seen: Vec<String>,
}

/// It passes requests on until its process ends.
pub struct FaultProxy {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

impl FaultProxy {
    pub fn start(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State { decide: Box::new(|_, _| None), seen: Vec::new() }));
        let (server, shared) = (server.strip_prefix("http://").unwrap().to_owned(), state.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (server, state) = (server.clone(), shared.clone());
                std::thread::spawn(move || {
                    // A client that goes away is no fault of the proxy's.
                    let _ = client.and_then(|client| pass_on(client, &server, &state));
                });
            }
        });
        Self { endpoint, state }
    }

    /// From now on `decide` is asked about every request, with its number, counted from 1, and its first line.
    pub fn lose(&self, decide: impl FnMut(usize, &str) -> Option<Loss> + Send + 'static) {
        *self.state.lock().unwrap() = State { decide: Box::new(decide), seen: Vec::new() };
    }

    pub fn lose_nothing(&self) {
        self.lose(|_, _| None);
    }

    /// The first lines of the requests since the last change of mind.
    pub fn seen(&self) -> Vec<String> {
        self.state.lock().unwrap().seen.clone()
    }
}

/// One request on each connection: what it is about is never in doubt.
fn pass_on(mut client: TcpStream, server: &str, state: &Mutex<State>) -> std::io::Result<()> {
    let Some((head, body)) = read_request(&mut client)? else { return Ok(()) };
    let (line, headers) = head.split_once("\r\n").unwrap_or((&head, ""));
    let loss = {
        let mut state = state.lock().unwrap();
        state.seen.push(line.to_owned());
        let number = state.seen.len();
        (state.decide)(number, line)
    };
    if loss == Some(Loss::Request) {
        return Ok(());
    }
    let mut upstream = TcpStream::connect(server)?;
    write!(upstream, "{line}\r\nConnection: close\r\n{headers}")?;
    upstream.write_all(&body)?;
    let mut reply = Vec::new();
    upstream.read_to_end(&mut reply)?;
    match loss {
        None => client.write_all(&reply),
        Some(Loss::Unavailable) => {
            client.write_all(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        }
        Some(_) => Ok(()),
    }
}

/// Head, with its empty line, and body.
fn read_request(client: &mut TcpStream) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        match client.read(&mut buffer)? {
            0 => return Ok(None),
            read => bytes.extend_from_slice(&buffer[..read]),
        }
    };
    let mut body = bytes.split_off(end);
    let head = String::from_utf8_lossy(&bytes).into_owned();
    let lengths = head.lines().filter_map(|line| line.split_once(':'));
    let mut length =
        lengths.filter(|(name, _)| name.eq_ignore_ascii_case("content-length")).map(|(_, value)| value.trim());
    let length: usize = length.next_back().map_or(0, |value| value.parse().unwrap());
    while body.len() < length {
        match client.read(&mut buffer)? {
            0 => return Ok(None),
            read => body.extend_from_slice(&buffer[..read]),
        }
    }
    Ok(Some((head, body)))
}
