//! Bodies that come slowly, not at all, or hold more than anybody may ask for.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use serde_json::{Value as Json, json};

use super::project::{Project, Server};

/// A server with these limits, and nothing to ask for: whatever is understood is answered with 404.
fn serve(limits: &str) -> (Project, Server) {
    let project = Project::new();
    project.write("eadem.toml", format!("[limits]\n{limits}\n"));
    let server = project.serve();
    (project, server)
}

fn body() -> Json {
    json!({ "service": "nothing", "entities": [{}] })
}

/// A request whose body is waited for, and of which so much is sent then.
fn begin(server: &Server, announced: usize, sent: &[u8]) -> TcpStream {
    let mut stream = server.connect();
    let head = "POST /features/batch HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n";
    write!(stream, "{head}Content-Length: {announced}\r\n\r\n").unwrap();
    // That the server asks for the body says that it waits for it.
    let mut asked = [0; 25];
    stream.read_exact(&mut asked).unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(sent).unwrap();
    stream
}

/// All that is said until the connection is closed.
fn rest(mut stream: TcpStream) -> String {
    let mut said = Vec::new();
    // What was not read of the body may break the connection off after the answer.
    let _ = stream.read_to_end(&mut said);
    String::from_utf8(said).unwrap()
}

#[test]
fn a_body_that_does_not_come_takes_no_place_and_is_not_waited_for() {
    let (_project, server) = serve("body_ms_max = 1500\nrequests_in_flight_max = 1");
    let began = Instant::now();
    let stalled: Vec<TcpStream> =
        [b"".as_slice(), b"{\"service\""].iter().map(|sent| begin(&server, 50, sent)).collect();
    // Only one request is served at once, and it is none of these.
    let (status, reply) = server.post("/features/batch", &body());
    assert_eq!((status, &reply["code"]), (404, &json!("unknown_service")));
    // One that comes in parts, but comes, is answered.
    let whole = body().to_string();
    let mut slow = begin(&server, whole.len(), &whole.as_bytes()[..20]);
    slow.write_all(&whole.as_bytes()[20..]).unwrap();
    let mut answer = [0; 12];
    slow.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 404");
    for stream in stalled {
        let said = rest(stream);
        assert!(said.starts_with("HTTP/1.1 408") && said.contains("\"body_too_slow\""), "{said}");
        assert!(said.to_lowercase().contains("connection: close"), "{said}");
    }
    assert!(began.elapsed().as_millis() >= 1_500);
}

#[test]
fn bodies_take_no_more_together_than_they_may() {
    let (_project, server) = serve("body_bytes_max = 100000\nbodies_bytes_max = 100000");
    let blank = vec![b' '; 60_000];
    let held = begin(&server, 100_000, &blank);
    // The second has no room for as much, and is told so as soon as that is seen.
    let refused = loop {
        let refused = rest(begin_and_close(&server, &blank));
        // The first may not have been read yet.
        if refused.starts_with("HTTP/1.1 503") {
            break refused;
        }
        assert!(refused.starts_with("HTTP/1.1 400"), "{refused}");
    };
    assert!(refused.contains("bodies_bytes_max") && refused.to_lowercase().contains("retry-after: 1"), "{refused}");
    // Small ones that are there at once are not counted.
    let mut small = server.connect();
    let whole = body().to_string();
    let head = "POST /features/batch HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
    small.write_all(format!("{head}Content-Length: {}\r\n\r\n{whole}", whole.len()).as_bytes()).unwrap();
    let said = rest(small);
    assert!(said.starts_with("HTTP/1.1 404"), "{said}");
    drop(held);
}

/// A body of 100,000 bytes, whose beginning this is.
fn begin_and_close(server: &Server, beginning: &[u8]) -> TcpStream {
    let mut stream = server.connect();
    let head =
        "POST /features/batch HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 100000\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    // It may be refused before it has read everything.
    let _ = stream.write_all(beginning).and_then(|()| stream.write_all(&vec![b' '; 100_000 - beginning.len()]));
    stream
}

/// Kilobytes that the server has taken at most.
fn peak_kb(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn what_is_too_much_takes_no_memory() {
    let (_project, server) = serve("");
    assert_eq!(server.post("/features/batch", &body()).0, 404);
    let before = peak_kb(&server);
    let many = |element: &str| vec![element; 8_000_000 / (element.len() + 1)].join(",");
    for (body, code) in [
        (format!("{{\"entities\":[{}]}}", many("{\"a\":1}")), "too_many_entities"),
        (format!("{{\"entities\":[],\"request\":[{}]}}", many("{\"a\":1}")), "too_many_entities"),
        (format!("{{\"entities\":[],\"timestamps\":[{}]}}", many("\"\"")), "too_many_entities"),
        (format!("{{\"entities\":[],\"features\":[{}]}}", many("\"\"")), "too_many_features"),
    ] {
        let (status, reply) = server.raw("POST", "/features/batch", "Host: localhost\r\n", body.as_bytes());
        assert!(status == 413 && reply.contains(code), "{status} {reply}");
    }
    // As much as the bodies themselves and what they are gathered in, not hundreds of megabytes.
    let grown = peak_kb(&server) - before;
    assert!(grown < 100_000, "{grown} kB");
}
