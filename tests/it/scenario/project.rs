//! A project in a scratch folder, and the binary that works on it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value as Json;

/// The root of the checkout.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn target_dir() -> PathBuf {
    // This test stands in <target>/<profile>/deps.
    std::env::current_exe().unwrap().ancestors().nth(3).unwrap().to_owned()
}

/// The binary, as `make build` left it.
fn eadem() -> PathBuf {
    let binary = target_dir().join("debug/eadem");
    assert!(binary.is_file(), "{} is missing: run `make build`", binary.display());
    binary
}

/// A component, as `make components` left it.
pub(crate) fn component(name: &str) -> PathBuf {
    let places = [target_dir().join("components"), root().join("target/components")];
    let file = places.iter().map(|place| place.join(format!("{name}.wasm"))).find(|file| file.is_file());
    file.unwrap_or_else(|| panic!("component {name} is missing: run `make components`"))
}

/// A project that goes away with its value.
pub(crate) struct Project {
    folder: tempfile::TempDir,
    /// Set for every verb.
    pub(crate) variables: Vec<(&'static str, String)>,
}

impl Project {
    /// An empty project.
    pub(crate) fn new() -> Self {
        let project = Self { folder: tempfile::tempdir().unwrap(), variables: Vec::new() };
        project.write("eadem.toml", "");
        project
    }

    /// The demonstration's definitions over its data.
    pub(crate) fn of_flights() -> Self {
        let project = Self::new();
        let demo = root().join("demo");
        for folder in ["data", "features"] {
            std::fs::create_dir_all(project.path(folder)).unwrap();
            for entry in std::fs::read_dir(demo.join(folder)).unwrap() {
                let path = entry.unwrap().path();
                std::fs::copy(&path, project.path(folder).join(path.file_name().unwrap())).unwrap();
            }
        }
        for name in [
            "plane_profile",
            "tail_number",
            "aircraft_legs",
            "airport_weather",
            "airport_shape",
            "nearest_hubs",
            "completed_flights",
            "departure_context",
        ] {
            project.add_component(name);
        }
        project
    }

    /// The same project once more, with all that it has made so far. Nothing may be at work on it.
    pub(crate) fn copied(&self) -> Self {
        let copy = Self { folder: tempfile::tempdir().unwrap(), variables: self.variables.clone() };
        copy_folder(self.folder.path(), copy.folder.path());
        copy
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join(relative)
    }

    pub(crate) fn write(&self, relative: &str, text: impl AsRef<[u8]>) {
        let path = self.path(relative);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(crate) fn add_component(&self, name: &str) {
        self.write(&format!("transforms/{name}.wasm"), std::fs::read(component(name)).unwrap());
    }

    /// A verb, ready to run.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(eadem());
        self.in_this_folder(command.args(arguments));
        command
    }

    fn in_this_folder<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.current_dir(self.folder.path());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("EADEM_")) {
            command.env_remove(name);
        }
        // Tests keep all processors busy: what runs only where nothing else does would never be done, and what steps back late.
        command.env("EADEM_LIMITS_UPLOADS_LOWEST_PRIORITY", "false");
        command.env("EADEM_JOBS_LOW_PRIORITY", "false");
        command.envs(self.variables.iter().map(|(name, value)| (name, value)))
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What a verb prints; it must succeed.
    pub(crate) fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let (out, err) = texts(&output);
        assert!(output.status.success(), "eadem {} failed\n{out}\n{err}", arguments.join(" "));
        out
    }

    /// The JSON that a verb prints; it must succeed.
    pub(crate) fn json(&self, arguments: &[&str]) -> Json {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--output", "json"]).collect();
        serde_json::from_str(&self.succeed(&arguments)).unwrap()
    }

    /// What a verb says when it fails; it must fail.
    pub(crate) fn fail(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let (out, err) = texts(&output);
        assert!(!output.status.success(), "eadem {} should have failed\n{out}", arguments.join(" "));
        err
    }

    /// A verb under a shell that runs `before` first: for limits and traps.
    pub(crate) fn run_after(&self, before: &str, arguments: &[&str]) -> Output {
        let script = format!("{before}; exec \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]).arg(eadem()).args(arguments);
        self.in_this_folder(&mut command).output().unwrap()
    }

    /// A server on a free port.
    pub(crate) fn serve(&self) -> Server {
        self.with_token(Server::start(self.command(SERVE).stderr(Stdio::null())))
    }

    /// The server, asked with the token that verbs send.
    fn with_token(&self, mut server: Server) -> Server {
        let token = self.variables.iter().find(|(name, _)| *name == "EADEM_TOKEN");
        server.token = token.map(|(_, token)| token.clone());
        server
    }

    /// The same, whose log goes to the project's `server.log`.
    pub(crate) fn serve_with_log(&self) -> Server {
        let log = std::fs::File::create(self.path("server.log")).unwrap();
        Server::start(self.command(SERVE).stderr(log))
    }

    /// A server for a value that is never dropped: it ends with this process, however that ends, and takes the project's
    /// folder along. Its standard input is a pipe whose other end this process has.
    pub(crate) fn serve_until_exit(&self) -> Server {
        const SCRIPT: &str = "trap '' INT; folder=$1; shift; \"$@\" </dev/null & server=$!; \
            cat >/dev/null; kill $server; wait $server; rm -rf -- \"$folder\"";
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "sh"]).arg(self.folder.path()).arg(eadem()).args(SERVE);
        Server::start(self.in_this_folder(&mut command).stdin(Stdio::piped()).stderr(Stdio::null()))
    }
}

const SERVE: &[&str] = &["serve", "--listen", "127.0.0.1:0"];

pub(crate) fn texts(output: &Output) -> (String, String) {
    (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// A server that ends with its value.
pub(crate) struct Server {
    pub(crate) process: Child,
    pub(crate) address: String,
    /// What requests bring.
    token: Option<String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How long a server may say nothing at all: a hanging server fails its test instead of hanging it. Long work sends signs
/// of life more often.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// What a server answered.
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Status line and headers, in small letters.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    fn read(mut stream: TcpStream) -> Self {
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).unwrap();
        let end = reply.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no reply: {}", String::from_utf8_lossy(&reply)));
        let head = String::from_utf8_lossy(&reply[..end]).to_lowercase();
        let status = head.split_whitespace().nth(1).unwrap().parse().unwrap();
        Self { status, head, body: reply[end + 4..].to_vec() }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Server {
    /// Starts a server that says on its standard output where it listens.
    fn start(command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said = line.trim().strip_prefix("serving on http").map(|rest| rest.trim_start_matches('s'));
        let address = said.and_then(|rest| rest.strip_prefix("://"));
        let address = address.unwrap_or_else(|| panic!("no server: {line}")).to_owned();
        Self { process, address, token: None }
    }

    /// Starts a server by a verb with settings of its own; what it logs is dropped.
    pub(crate) fn start_with(mut command: Command) -> Self {
        Self::start(command.stderr(Stdio::null()))
    }

    /// The same server, asked at another address.
    pub(crate) fn at(mut self, address: &str) -> Self {
        address.clone_into(&mut self.address);
        self
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(SILENCE_MAX)).unwrap();
        stream
    }

    /// Sends a request as it stands. Plain HTTP/1.0, so that no client helps or hinders.
    pub(crate) fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Reply {
        let mut stream = self.connect();
        write!(stream, "{method} {path} HTTP/1.0\r\n{headers}Content-Length: {}\r\n\r\n", body.len()).unwrap();
        stream.write_all(body).unwrap();
        Reply::read(stream)
    }

    /// The same; gives status and body as text.
    pub(crate) fn raw(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String) {
        let reply = self.send(method, path, headers, body);
        (reply.status, reply.text())
    }

    fn headers(&self) -> String {
        let token = self.token.iter().map(|token| format!("Authorization: Bearer {token}\r\n"));
        std::iter::once("Host: localhost\r\n".to_owned()).chain(token).collect()
    }

    pub(crate) fn get(&self, path: &str) -> (u16, Json) {
        let (status, body) = self.raw("GET", path, &self.headers(), b"");
        (status, serde_json::from_str(&body).unwrap_or_else(|_| panic!("{path}: {body}")))
    }

    pub(crate) fn delete(&self, path: &str) -> (u16, Json) {
        let (status, body) = self.raw("DELETE", path, &self.headers(), b"");
        (status, serde_json::from_str(&body).unwrap_or_else(|_| panic!("{path}: {body}")))
    }

    pub(crate) fn post(&self, path: &str, body: &Json) -> (u16, Json) {
        let headers = format!("{}Content-Type: application/json\r\n", self.headers());
        let (status, reply) = self.raw("POST", path, &headers, body.to_string().as_bytes());
        (status, serde_json::from_str(&reply).unwrap_or_else(|_| panic!("{path}: {reply}")))
    }
}
