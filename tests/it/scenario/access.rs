//! Who is let in: every route by every kind of credential, the open mode and its end, TLS, and what the trail tells of it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};
use serde_json::{Value as Json, json};

use super::project::{Project, Server, root};
use super::support::{Asker, define_slow_score, make_admin, sample, wait_until};

const ROLES: [&str; 4] = ["reader", "writer", "author", "admin"];

/// Something that happens in another process is waited for until then; what never happens fails its test.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a credential is wrong, or not: `other` is one of another project that asks in this one, `away` one of this project that asks
/// in another one, and `own` one of another project that asks there.
const KINDS: [&str; 7] = ["valid", "wrong", "expired", "revoked", "other", "away", "own"];

const GOLDEN: &str = "tests/it/authorisation.txt";

fn bearer(token: &str) -> String {
    format!("Host: localhost\r\nAuthorization: Bearer {token}\r\n")
}

/// A request with a token; status and JSON.
fn ask(server: &Server, method: &str, path: &str, token: &str, body: &Json) -> (u16, Json) {
    Asker { server, token: Some(token), project: None }.ask(method, path, body)
}

/// Tokens by role and by what is wrong with them.
struct Tokens(BTreeMap<(&'static str, &'static str), String>);

impl Tokens {
    fn of(&self, role: &'static str, kind: &'static str) -> &str {
        &self.0[&(role, kind)]
    }

    fn make(server: &Server, admin: &str) -> Self {
        let make = |role: &str, project: Option<&str>, expires_in_s: Option<u32>| {
            let body = json!({ "name": role, "role": role, "project": project, "expires_in_s": expires_in_s });
            let (status, made) = ask(server, "POST", "/tokens", admin, &body);
            assert_eq!(status, 201, "{made}");
            (made["id"].as_str().unwrap().to_owned(), made["token"].as_str().unwrap().to_owned())
        };
        assert_eq!(ask(server, "POST", "/projects", admin, &json!({ "name": "other" })).0, 201);
        let mut tokens = BTreeMap::new();
        for role in ROLES {
            let (id, valid) = make(role, (role != "admin").then_some("default"), None);
            let (_, expired) = make(role, None, Some(1));
            let (revoked_id, revoked) = make(role, None, None);
            let (_, other) = make(role, Some("other"), None);
            assert_eq!(ask(server, "DELETE", &format!("/tokens/{revoked_id}"), admin, &Json::Null).0, 200);
            let (_, other_secret) = other.rsplit_once('_').unwrap();
            let wrong = format!("eadem_{id}_{other_secret}");
            let (away, own) = (valid.clone(), other.clone());
            for (kind, token) in KINDS.into_iter().zip([valid, wrong, expired, revoked, other, away, own]) {
                tokens.insert((role, kind), token);
            }
        }
        for role in ROLES {
            let expired = &tokens[&(role, "expired")];
            wait_until("the token expires", || ask(server, "GET", "/jobs", expired, &Json::Null).0 == 401);
        }
        Self(tokens)
    }
}

/// What one request came to.
fn cell(status: u16) -> String {
    match status {
        401 | 403 => status.to_string(),
        _ => "in".to_owned(),
    }
}

/// The line of one operation: without a credential, then by kind, each for all roles.
fn line(server: &Server, method: &str, path: &str, tokens: &Tokens) -> String {
    let concrete = path.replace("{entity_id}", "x").replace("{kind}", "views").replace(['{', '}'], "");
    let none = cell(server.raw(method, &concrete, "Host: localhost\r\n", b"").0);
    let mut line = format!("{method:<6} {path:<28} none={none}");
    for kind in KINDS {
        let named = match kind {
            "other" => "Eadem-Project: default\r\n",
            "away" => "Eadem-Project: other\r\n",
            _ => "",
        };
        let headers = |role| format!("{}{named}", bearer(tokens.of(role, kind)));
        let cells = ROLES.map(|role| cell(server.raw(method, &concrete, &headers(role), b"").0));
        line += &format!(" {kind}={}", cells.join(","));
    }
    line
}

/// What must stand in the line, by the role that the document names for the operation.
fn by_the_rule(method: &str, path: &str, operation: &Json) -> String {
    let role = operation["x-eadem-role"].as_str();
    let mut line = format!("{method:<6} {path:<28} none={}", if role.is_none() { "in" } else { "401" });
    for kind in KINDS {
        let cells = ROLES.map(|own| {
            let rank = |role: &str| ROLES.iter().position(|known| *known == role).unwrap();
            match (role, kind) {
                (None, _) => "in",
                (Some(needed), "valid" | "own") if rank(own) >= rank(needed) => "in",
                // The admin among those of this project is one of all.
                (Some(_), "away") if own == "admin" => "in",
                (Some(_), "valid" | "own" | "other" | "away") => "403",
                (Some(_), _) => "401",
            }
        });
        line += &format!(" {kind}={}", cells.join(","));
    }
    line
}

fn cells(line: &str) -> impl Iterator<Item = &str> {
    line.split([' ', ',']).filter(|part| !part.is_empty())
}

/// R5: every operation of the document, by every role with every kind of credential, against the golden matrix.
#[test]
fn every_cell_of_the_matrix() {
    let project = Project::new();
    let admin = make_admin(&project);
    let server = project.serve();
    let tokens = Tokens::make(&server, &admin);
    let (status, document) = ask(&server, "GET", "/openapi.json", &admin, &Json::Null);
    assert_eq!(status, 200);
    let mut found = Vec::new();
    let mut ruled = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let method = method.to_uppercase();
            found.push(line(&server, &method, path, &tokens));
            ruled.push(by_the_rule(&method, path, operation));
        }
    }
    let heading = "# Every operation of the interface: answered (in) or refused, without a credential and with each kind,\n\
                   # for reader, writer, author, admin. Written by the test with EADEM_WRITE_GOLDEN=1.\n";
    let text = format!("{heading}{}\n", found.join("\n"));
    let golden_file = root().join(GOLDEN);
    if std::env::var_os("EADEM_WRITE_GOLDEN").is_some() {
        std::fs::write(&golden_file, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&golden_file).unwrap_or_default();
    let wanted: Vec<&str> = golden.lines().filter(|line| !line.starts_with('#')).collect();
    let tried = (ROLES.len() * KINDS.len() + 1) * found.len();
    let mut faults = 0;
    for line in &found {
        let operation: Vec<&str> = cells(line).take(2).collect();
        let golden = wanted.iter().find(|golden| cells(golden).take(2).eq(operation.iter().copied()));
        let off = match golden {
            // Nobody has decided who it is for.
            None => ROLES.len() * KINDS.len() + 1,
            Some(golden) => cells(line).zip(cells(golden)).filter(|(found, wanted)| found != wanted).count(),
        };
        if off > 0 {
            println!("{off} cells off:\n  found  {line}\n  golden {}", golden.copied().unwrap_or("-"));
        }
        faults += off;
    }
    let gone = wanted.len().saturating_sub(found.len());
    println!("R5: cases={tried} faults={}", faults + gone);
    assert_eq!((faults, gone), (0, 0), "see above, and {GOLDEN}");
    assert_eq!(found, ruled, "the golden matrix is not what the roles in the document say");
    assert!(tried > 500, "{tried}");
}

#[test]
fn an_open_server_is_closed_by_the_first_token() {
    let project = Project::new();
    let server = project.serve_with_log();
    assert_eq!(server.get("/readyz"), (200, json!({ "status": "ready", "access": "open" })));
    assert_eq!(server.get("/jobs").0, 200);
    // Everybody on this machine could shut out the owner.
    let first = server.post("/tokens", &json!({ "name": "x", "role": "admin" }));
    assert_eq!((first.0, first.1["code"].as_str()), (403, Some("first_token")));
    assert_eq!(server.raw("GET", "/jobs", "Host: evil.example\r\n", b"").0, 421);

    let admin = make_admin(&project);
    wait_until("the server hears of the token", || server.get("/jobs").0 == 401);
    assert_eq!(server.get("/readyz"), (200, json!({ "status": "ready", "access": "tokens" })));
    assert_eq!(ask(&server, "GET", "/jobs", &admin, &Json::Null).0, 200);
    // A proxy sends the name that it was asked by; who has a token is no page of somebody else's.
    let headers = format!("Host: features.example.com\r\nAuthorization: Bearer {admin}\r\n");
    assert_eq!(server.raw("GET", "/jobs", &headers, b"").0, 200);
    for path in ["/metrics", "/openapi.json", "/no/such/route", "/features/x", "/features/%FF"] {
        let reply = server.send("GET", path, "Host: localhost\r\n", b"");
        assert_eq!(reply.status, 401, "{path}: {}", reply.text());
        assert!(reply.head.contains("www-authenticate: bearer"), "{}", reply.head);
        let problem: Json = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(problem["code"], "no_credential");
    }
    assert_eq!(server.get("/healthz").0, 200);
    drop(server);
    let log = std::fs::read_to_string(project.path("server.log")).unwrap();
    assert!(log.contains("open: there is no token"), "{log}");
    // Once there was one, it never opens again.
    let id = project.json(&["token", "list"])["tokens"][0]["id"].as_str().unwrap().to_owned();
    project.succeed(&["token", "revoke", &id]);
    assert_eq!(project.serve().get("/jobs").0, 401);
}

#[test]
fn what_is_no_valid_token_is_told_apart_only_for_those_who_have_it() {
    let project = Project::new();
    let admin = make_admin(&project);
    let server = project.serve();
    let code = |authorization: &str| {
        let headers = format!("Host: localhost\r\n{authorization}");
        let (status, text) = server.raw("GET", "/jobs", &headers, b"");
        let problem: Json = serde_json::from_str(&text).unwrap();
        (status, problem["code"].as_str().unwrap_or_default().to_owned(), problem["detail"].to_string())
    };
    let (head, secret) = admin.rsplit_once('_').unwrap();
    let other_secret: String = secret.chars().rev().collect();
    let wrong_secret = code(&format!("Authorization: Bearer {head}_{other_secret}\r\n"));
    let wrong_id = code(&format!("Authorization: Bearer eadem_{}_{secret}\r\n", "0".repeat(16)));
    assert_eq!((wrong_secret.0, wrong_secret.1.as_str()), (401, "unknown_credential"));
    assert_eq!(wrong_secret, wrong_id);
    for malformed in [
        "Authorization: Basic eDp5\r\n".to_owned(),
        "Authorization: Bearer\r\n".to_owned(),
        format!("Authorization: {admin}\r\n"),
        format!("Authorization: Bearer {admin}0\r\n"),
        format!("Authorization: Bearer {admin}\r\nAuthorization: Bearer {admin}\r\n"),
    ] {
        let (status, code, _) = code(&malformed);
        assert_eq!((status, code.as_str()), (401, "malformed_credential"), "{malformed}");
    }
    // The secret is nowhere: neither in listings, nor in the trail, nor in the files.
    for shown in [project.succeed(&["token", "list"]), project.succeed(&["trail", "export"])] {
        assert!(!shown.contains(secret), "{shown}");
    }
    let registry = std::fs::read(project.path(".eadem/registry.sqlite")).unwrap();
    assert!(!registry.windows(secret.len()).any(|bytes| bytes == secret.as_bytes()));
}

#[test]
fn a_token_that_is_revoked_by_another_process_is_refused_soon() {
    let project = Project::new();
    let admin = make_admin(&project);
    let server = project.serve();
    let made = project.json(&["token", "create", "--name", "model", "--role", "reader", "--expires", "30d"]);
    let token = made["token"].as_str().unwrap();
    wait_until("the server hears of the token", || ask(&server, "GET", "/jobs", token, &Json::Null).0 == 200);
    let shown = ask(&server, "GET", &format!("/tokens/{}", made["id"].as_str().unwrap()), &admin, &Json::Null);
    assert_eq!((shown.1["name"].as_str(), shown.1["created_by"].as_str()), (Some("model"), Some("owner")));
    assert!(shown.1["expires_at"].is_string() && shown.1.get("token").is_none(), "{}", shown.1);
    let revoked = project.json(&["token", "revoke", made["id"].as_str().unwrap()]);
    assert_eq!(revoked["state"], "revoked");
    wait_until("the server hears that it ended", || {
        let (status, problem) = ask(&server, "GET", "/jobs", token, &Json::Null);
        status == 401 && problem["code"] == "revoked_credential"
    });
    let unknown = ask(&server, "DELETE", "/tokens/0000000000000000", &admin, &Json::Null);
    assert_eq!((unknown.0, unknown.1["code"].as_str()), (404, Some("unknown_token")));
}

/// A token of one project makes and sees only tokens of that one, and neither projects nor the trail, which are everybody's.
#[test]
fn an_admin_of_one_project_stays_in_it() {
    let project = Project::new();
    let root = make_admin(&project);
    let own = ["token", "create", "--name", "own", "--role", "admin", "--for-project", "default"];
    let own = project.json(&own)["token"].as_str().unwrap().to_owned();
    let server = project.serve();
    assert_eq!(ask(&server, "POST", "/projects", &root, &json!({ "name": "fraud" })).0, 201);
    let made = ask(&server, "POST", "/tokens", &own, &json!({ "name": "mine", "role": "reader" }));
    assert_eq!((made.0, made.1["project"].as_str()), (201, Some("default")));
    let others = ask(&server, "POST", "/tokens", &own, &json!({ "name": "x", "role": "reader", "project": "fraud" }));
    assert_eq!((others.0, others.1["code"].as_str()), (403, Some("other_project")));
    let listed = ask(&server, "GET", "/tokens", &own, &Json::Null).1;
    let names: Vec<&str> =
        listed["tokens"].as_array().unwrap().iter().map(|token| token["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["own", "mine"]);
    let roots_id = root.split('_').nth(1).unwrap();
    assert_eq!(ask(&server, "DELETE", &format!("/tokens/{roots_id}"), &own, &Json::Null).0, 404);
    for (method, path, body) in [
        ("POST", "/projects", json!({ "name": "mine" })),
        ("POST", "/projects/default/quotas", json!({ "jobs": 99 })),
        ("GET", "/trail", Json::Null),
        ("GET", "/trail/verification", Json::Null),
    ] {
        let (status, problem) = ask(&server, method, path, &own, &body);
        assert_eq!((status, problem["code"].as_str()), (403, Some("other_project")), "{method} {path}");
    }
    assert_eq!(ask(&server, "GET", "/jobs", &root, &Json::Null).0, 200);
}

#[test]
fn beyond_this_machine_nobody_is_served_without_a_token_and_tls() {
    let project = Project::new();
    let beyond = ["serve", "--listen", "0.0.0.0:0"];
    let said = project.fail(&beyond);
    assert!(said.contains("no token of an admin") && said.contains("eadem token create"), "{said}");
    // One that has no say over all is not enough.
    let weak = ["token", "create", "--name", "weak", "--role", "admin", "--for-project", "default"];
    project.succeed(&weak);
    project.succeed(&["token", "create", "--name", "weak", "--role", "author"]);
    assert!(project.fail(&beyond).contains("no token of an admin"));
    let admin = make_admin(&project);
    let said = project.fail(&beyond);
    assert!(said.contains("there is no TLS") && said.contains("off_behind_proxy"), "{said}");
    let server = Server::start_with(project.command(&[
        "serve",
        "--listen",
        "0.0.0.0:0",
        "--set",
        "server.tls=off_behind_proxy",
    ]));
    let port = server.address.rsplit_once(':').unwrap().1.to_owned();
    let server = server.at(&format!("127.0.0.1:{port}"));
    for path in ["/healthz", "/readyz"] {
        assert_eq!(server.raw("GET", path, "Host: features.example.com\r\n", b"").0, 200, "{path}");
    }
    assert_eq!(server.raw("GET", "/metrics", "Host: features.example.com\r\n", b"").0, 401);
    assert_eq!(ask(&server, "GET", "/metrics", &admin, &Json::Null).0, 200);
    let said = project.fail(&["jobs", "list"]);
    assert!(said.contains("no_credential"), "{said}");
}

#[test]
fn settings_of_tls_that_contradict_each_other_are_refused() {
    let project = Project::new();
    let certificate = make_certificate(&project, "server", "localhost");
    let refused = |settings: &[&str]| {
        let mut arguments = vec!["serve", "--listen", "127.0.0.1:0"];
        arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        project.fail(&arguments)
    };
    assert!(refused(&["server.tls_certificate=server.pem"]).contains("needs server.tls_key"));
    assert!(refused(&["server.tls_key=server.key"]).contains("needs server.tls_certificate"));
    let both = ["server.tls_certificate=server.pem", "server.tls_key=server.key"];
    assert!(refused(&[both[0], both[1], "server.tls=off_behind_proxy"]).contains("leave out one of the two"));
    assert!(refused(&["server.tls=on"]).contains("server.tls"));
    assert!(refused(&["server.tls_certificate=none.pem", both[1]]).contains("none.pem"));
    project.write("empty.pem", "");
    assert!(refused(&["server.tls_certificate=empty.pem", both[1]]).contains("no certificate in it"));
    assert!(refused(&[both[0], "server.tls_key=empty.pem"]).contains("no key in it"));
    make_certificate(&project, "another", "localhost");
    let said = refused(&[both[0], "server.tls_key=another.key"]);
    assert!(said.contains("server.pem") && said.contains("another.key"), "{said}");
    drop(certificate);
}

/// A certificate that vouches for itself, and its key, as `<name>.pem` and `<name>.key` of the project.
fn make_certificate(project: &Project, name: &str, host: &str) -> CertificateDer<'static> {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![host.to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    project.write(&format!("{name}.key"), key.serialize_pem());
    project.write(&format!("{name}.pem"), certificate.pem());
    CertificateDer::from_pem_slice(certificate.pem().as_bytes()).unwrap()
}

type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// A connection that trusts this certificate only and has shaken hands.
fn connect(
    address: &str,
    trusted: &CertificateDer<'static>,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<TlsStream, std::io::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(StreamOwned::new(connection, stream))
}

fn read_all(mut stream: TlsStream) -> String {
    let mut reply = Vec::new();
    // A server that closes without a last word has still said what it had to say.
    match stream.read_to_end(&mut reply) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "{error}"),
    }
    String::from_utf8_lossy(&reply).into_owned()
}

fn get_by_tls(address: &str, trusted: &CertificateDer<'static>, path: &str, token: &str) -> String {
    let mut stream = connect(address, trusted, rustls::ALL_VERSIONS).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n{}\r\n", bearer(token)).unwrap();
    read_all(stream)
}

/// A project whose server speaks TLS.
fn project_with_tls() -> (Project, String, CertificateDer<'static>) {
    let project = Project::new();
    let admin = make_admin(&project);
    let certificate = make_certificate(&project, "server", "localhost");
    project.write("eadem.toml", "[server]\ntls_certificate = \"server.pem\"\ntls_key = \"server.key\"\n");
    (project, admin, certificate)
}

#[test]
fn tls_serves_both_versions_and_nothing_in_the_clear() {
    let (project, admin, certificate) = project_with_tls();
    let server = Server::start_with(project.command(&["serve", "--listen", "0.0.0.0:0"]));
    let port = server.address.rsplit_once(':').unwrap().1.to_owned();
    let address = format!("127.0.0.1:{port}");
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut stream = connect(&address, &certificate, &[version]).unwrap();
        write!(stream, "GET /jobs HTTP/1.0\r\n{}\r\n", bearer(&admin)).unwrap();
        assert!(read_all(stream).starts_with("HTTP/1.0 200"), "{version:?}");
    }
    let mut stream = connect(&address, &certificate, rustls::ALL_VERSIONS).unwrap();
    write!(stream, "GET /jobs HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    assert!(read_all(stream).starts_with("HTTP/1.0 401"));
    let mut plain = TcpStream::connect(&address).unwrap();
    plain.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(plain, "GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut reply = Vec::new();
    let _ = plain.read_to_end(&mut reply);
    assert!(!String::from_utf8_lossy(&reply).contains("HTTP/"), "{reply:?}");

    // Connections that never shake hands keep nobody waiting.
    let idle: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let mut half = TcpStream::connect(&address).unwrap();
    half.write_all(&[0x16, 3, 1, 2, 0]).unwrap();
    assert!(get_by_tls(&address, &certificate, "/jobs", &admin).starts_with("HTTP/1.0 200"));
    drop((idle, half));

    // Verbs find the server by its own certificate, or by the one who vouches for it.
    let with_token = |arguments: &[&str]| {
        let output = project.command(arguments).env("EADEM_TOKEN", &admin).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(with_token(&["jobs", "list"]), (true, String::new()));
    let url = format!("https://localhost:{port}");
    let (succeeded, said) = with_token(&["jobs", "list", "--server", &url]);
    assert!(!succeeded && said.contains("does not answer"), "{said}");
    assert_eq!(with_token(&["jobs", "list", "--server", &url, "--server-ca", "server.pem"]), (true, String::new()));
    assert_eq!(with_token(&["token", "list", "--server", &url, "--server-ca", "server.pem"]), (true, String::new()));
    // A certificate that only looks like it is not taken.
    make_certificate(&project, "another", "localhost");
    let (succeeded, said) = with_token(&["jobs", "list", "--server", &url, "--server-ca", "another.pem"]);
    assert!(!succeeded && said.contains("does not answer"), "{said}");
}

#[test]
fn a_new_certificate_is_served_without_a_restart_and_a_bad_one_is_not() {
    let (project, admin, first) = project_with_tls();
    let server = project.serve();
    let address = server.address.clone();
    // A connection that is open stays.
    let mut open = connect(&address, &first, rustls::ALL_VERSIONS).unwrap();
    project.write("server.key", "this is no key");
    let second = make_certificate(&project, "next", "localhost");
    // Only one of the two files is there yet: what was served stays.
    std::fs::copy(project.path("next.pem"), project.path("server.pem")).unwrap();
    let hang_up = |server: &Server| {
        let pid = server.process.id().to_string();
        assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    };
    hang_up(&server);
    assert!(get_by_tls(&address, &first, "/jobs", &admin).starts_with("HTTP/1.0 200"));
    std::fs::copy(project.path("next.key"), project.path("server.key")).unwrap();
    wait_until("the new certificate is served", || connect(&address, &second, rustls::ALL_VERSIONS).is_ok());
    assert!(connect(&address, &first, rustls::ALL_VERSIONS).is_err());
    write!(open, "GET /jobs HTTP/1.0\r\n{}\r\n", bearer(&admin)).unwrap();
    assert!(read_all(open).starts_with("HTTP/1.0 200"));
}

#[test]
fn a_request_in_flight_is_finished_over_tls_too() {
    let (project, admin, certificate) = project_with_tls();
    let mut server = project.serve();
    let mut stream = connect(&server.address, &certificate, rustls::ALL_VERSIONS).unwrap();
    let body = json!({ "name": "late", "role": "reader" }).to_string();
    let head = format!(
        "POST /tokens HTTP/1.1\r\n{}Connection: close\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        bearer(&admin),
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // The server asks for the body once the request is at work.
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).unwrap();
    assert!(go_on.starts_with(b"HTTP/1.1 100"), "{}", String::from_utf8_lossy(&go_on));
    let pid = server.process.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    wait_until("the server takes no more connections", || TcpStream::connect(&server.address).is_err());
    stream.write_all(body.as_bytes()).unwrap();
    let reply = read_all(stream);
    assert!(reply.starts_with("HTTP/1.1 201"), "{reply}");
    assert!(server.process.wait().unwrap().success());
}

#[test]
fn a_verb_takes_its_token_from_the_environment_or_from_a_file_that_is_its_owners() {
    let project = Project::new();
    let admin = make_admin(&project);
    let server = project.serve();
    let said = project.fail(&["jobs", "list"]);
    assert!(said.contains("no_credential") && said.contains("Authorization"), "{said}");
    project.write("token", format!("{admin}\n"));
    let mode = |mode: u32| {
        std::fs::set_permissions(project.path("token"), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(0o640);
    let said = project.fail(&["jobs", "list", "--token-file", "token"]);
    assert!(said.contains("0640") && said.contains("chmod 600"), "{said}");
    mode(0o600);
    project.succeed(&["jobs", "list", "--token-file", "token"]);
    let output = project.command(&["config"]).env("EADEM_TOKEN", &admin).output().unwrap();
    assert!(output.status.success());
    assert!(!String::from_utf8_lossy(&output.stdout).contains(&admin));
    let insecure = ["jobs", "list", "--token-file", "token", "--server", "http://features.example.com"];
    let said = project.fail(&insecure);
    assert!(said.contains("only over https://") && !said.contains(&admin), "{said}");
    let here = format!("http://{}", server.address);
    project.succeed(&["jobs", "list", "--token-file", "token", "--server", &here]);
    let said = project.fail(&["jobs", "list", "--token-file", "token", "--server", "ftp://x"]);
    assert!(said.contains("https:// or http://"), "{said}");
}

/// Jobs name files of the server's machine. A token that is no admin's reaches none but the project's.
#[test]
fn a_writer_reaches_no_files_but_the_projects() {
    let project = Project::new();
    let admin = make_admin(&project);
    let server = project.serve();
    let writer = ask(&server, "POST", "/tokens", &admin, &json!({ "name": "batch", "role": "writer" })).1;
    let writer = writer["token"].as_str().unwrap();
    let outside = project.path("../outside.parquet").display().to_string();
    let own = project.path(".eadem/registry.sqlite").display().to_string();
    for (kind, body, code) in [
        ("backup", json!({ "out": outside }), "role_too_low"),
        ("restore", json!({ "from": outside }), "role_too_low"),
        ("dataset", json!({ "service": "x", "output": outside }), "foreign_file"),
        ("dataset", json!({ "service": "x", "output": own }), "foreign_file"),
        ("dataset", json!({ "service": "x", "output": "x.parquet", "spine": "/etc/passwd" }), "foreign_file"),
        ("dataset", json!({ "rebuild": "x", "output": "/etc/passwd" }), "foreign_file"),
        ("dataset", json!({ "rebuild": "x", "output": "FILE:///etc/passwd" }), "foreign_file"),
        ("dataset", json!({ "service": "x", "output": "x.parquet", "spine": "FILE:///etc/passwd" }), "foreign_file"),
        ("dataset", json!({ "service": "x", "output": "x.parquet", "spine": " file:///etc/passwd" }), "foreign_file"),
        ("dataset", json!({ "service": "x", "output": "x.parquet", "spine": "fi\tle:///etc/passwd" }), "foreign_file"),
    ] {
        let (status, problem) = ask(&server, "POST", &format!("/jobs/{kind}"), writer, &body);
        assert_eq!((status, problem["code"].as_str()), (403, Some(code)), "{kind} {body}: {problem}");
        let (status, problem) = ask(&server, "POST", &format!("/jobs/{kind}"), &admin, &body);
        assert_ne!(status, 403, "{problem}");
    }
    assert!(!Path::new(&outside).exists());
    let inside = json!({ "service": "x", "output": project.path("x.parquet") });
    assert_ne!(ask(&server, "POST", "/jobs/dataset", writer, &inside).0, 403);
}

/// A writer who must not start a job must not end it or go on with it either.
#[test]
fn a_writer_leaves_an_admins_jobs_alone() {
    let project = Project::new();
    let admin = make_admin(&project);
    let server = project.serve();
    let writer = ask(&server, "POST", "/tokens", &admin, &json!({ "name": "batch", "role": "writer" })).1;
    let writer = writer["token"].as_str().unwrap();
    let start = |kind: &str, body: &Json| {
        let (status, job) = ask(&server, "POST", &format!("/jobs/{kind}"), &admin, body);
        assert_eq!(status, 202, "{job}");
        let job = format!("/jobs/{}", job["id"].as_str().unwrap());
        wait_until("it fails", || ask(&server, "GET", &job, writer, &Json::Null).1["state"] != "running");
        job
    };
    // There is no such file, so that it can be resumed again and again.
    let restore = start("restore", &json!({ "from": project.path("../none.backup") }));
    for (method, path) in [("DELETE", restore.clone()), ("POST", format!("{restore}/resume"))] {
        let (status, problem) = ask(&server, method, &path, writer, &Json::Null);
        assert_eq!((status, problem["code"].as_str()), (403, Some("role_too_low")), "{method}: {problem}");
    }
    assert_eq!(ask(&server, "POST", &format!("{restore}/resume"), &admin, &Json::Null).0, 202);
    // What a writer may start he may end.
    let vacuum = start("vacuum", &json!({}));
    assert_eq!(ask(&server, "DELETE", &vacuum, writer, &Json::Null).0, 200);
    assert_eq!(ask(&server, "DELETE", "/jobs/none", writer, &Json::Null).1["code"], "unknown_job");
}

/// Paths of a spine are meant from the project's folder, where they are checked, and not from where the server was started.
#[test]
fn a_spine_is_read_where_it_was_checked() {
    let (project, admin) = project_that_computes();
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("elsewhere.csv"), "timestamp,seed\n2024-01-01T00:00:00Z,4\n").unwrap();
    project.write("spine.csv", "timestamp,seed\n2024-01-01T00:00:00Z,4\n2024-01-02T00:00:00Z,5\n");
    let mut command = project.command(&["serve", "--listen", "127.0.0.1:0", "--project"]);
    command.arg(project.path("")).current_dir(elsewhere.path());
    let server = Server::start_with(command);
    let writer = ask(&server, "POST", "/tokens", &admin, &json!({ "name": "batch", "role": "writer" })).1;
    let writer = writer["token"].as_str().unwrap();
    let start = |spine: &str| {
        let body = json!({ "service": "score@1", "spine": spine, "output": project.path("training.parquet") });
        ask(&server, "POST", "/jobs/dataset", writer, &body)
    };
    let (status, problem) = start("elsewhere.csv");
    assert_eq!((status, problem["code"].as_str()), (400, Some("malformed_job")), "{problem}");
    let (status, job) = start("spine.csv");
    assert_eq!(status, 202, "{job}");
    let path = format!("/jobs/{}", job["id"].as_str().unwrap());
    wait_until("it ends", || ask(&server, "GET", &path, writer, &Json::Null).1["state"] != "running");
    let job = ask(&server, "GET", &path, writer, &Json::Null).1;
    assert_eq!((job["state"].as_str(), job["result"]["rows"].as_u64()), (Some("succeeded"), Some(2)), "{job}");
}

/// The entries with this verb, the oldest first.
fn told(project: &Project, verb: &str) -> Vec<Json> {
    let exported = project.succeed(&["trail", "export"]);
    let entries = exported.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
    entries.filter(|entry| entry["verb"] == verb).collect()
}

#[test]
fn the_trail_tells_who_did_what_from_where_and_who_was_refused() {
    let project = Project::of_flights();
    let admin = make_admin(&project);
    let server = project.serve();
    let author = project.json(&["token", "create", "--name", "ci", "--role", "author"]);
    let (id, author) = (author["id"].as_str().unwrap().to_owned(), author["token"].as_str().unwrap().to_owned());
    wait_until("the server hears of the token", || ask(&server, "GET", "/jobs", &author, &Json::Null).0 == 200);
    let applied = project.command(&["apply"]).env("EADEM_TOKEN", &author).output().unwrap();
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));

    let uploads = told(&project, "upload");
    let applies = told(&project, "apply");
    assert!(uploads.len() >= 8 && applies.len() >= 8, "{} {}", uploads.len(), applies.len());
    for entry in uploads.iter().chain(&applies) {
        assert_eq!((entry["name"].as_str(), entry["token_id"].as_str()), (Some("ci"), Some(id.as_str())), "{entry}");
        assert_eq!((entry["address"].as_str(), entry["outcome"].as_str()), (Some("127.0.0.1"), Some("done")));
        assert!(entry["request_id"].as_str().is_some_and(|id| !id.is_empty()) && entry["after"].is_string(), "{entry}");
    }

    // What was refused: definitions with a mistake, a job that cannot be, a component that is none, a role too low.
    let headers = format!("{}X-Request-Id: by-hand\r\n", bearer(&author));
    let definitions = json!({ "files": [{ "path": "x.toml", "text": "[view.x]\n" }] }).to_string();
    let definitions = definitions.as_bytes();
    assert!((400..500).contains(&server.raw("POST", "/registry/apply", &headers, definitions).0));
    assert_eq!(server.raw("POST", "/jobs/backfill", &headers, b"{\"views\":[\"none\"]}").0, 404);
    assert_eq!(server.raw("POST", "/transforms", &headers, b"no component").0, 422);
    for _ in 0..50 {
        assert_eq!(ask(&server, "GET", "/tokens", &author, &Json::Null).0, 403);
    }
    for verb in ["POST /registry/apply", "POST /jobs/{id}", "POST /transforms", "GET /tokens"] {
        let entries = told(&project, verb);
        assert_eq!(entries.len(), 1, "{verb}: {entries:?}");
        let entry = &entries[0];
        assert_eq!((entry["outcome"].as_str(), entry["name"].as_str()), (Some("refused"), Some("ci")), "{entry}");
    }
    assert_eq!(told(&project, "POST /jobs/{id}")[0]["request_id"], "by-hand");
    assert_eq!(told(&project, "POST /jobs/{id}")[0]["object"], "/jobs/backfill");

    // What was refused again and again is one entry more, when the server ends at the latest.
    let pid = server.process.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let mut server = server;
    assert!(server.process.wait().unwrap().success());
    let counts: Vec<u64> = told(&project, "GET /tokens").iter().map(|entry| entry["count"].as_u64().unwrap()).collect();
    assert_eq!(counts, [1, 49]);
    let used = project.json(&["token", "show", &id]);
    assert!(used["last_used_at"].is_string(), "{used}");
    let listed = project.succeed(&["trail", "list", "--limit", "3"]);
    assert!(listed.contains("49 × refused GET /tokens"), "{listed}");
    drop(admin);
}

/// Whom somebody wanted to erase is not kept for good because the request was wrong.
#[test]
fn the_trail_keeps_no_keys_of_erasures_that_were_refused() {
    let project = Project::of_flights();
    project.succeed(&["apply"]);
    let admin = make_admin(&project);
    let server = project.serve();
    for path in ["/erasures", "/jobs/erase"] {
        for body in [
            json!({ "entity": "aircraft", "keys": [{ "hush_hush": 1 }] }),
            json!({ "entity": "hush_hush", "keys": [{ "tail": "x" }] }),
            json!({ "entity": "aircraft", "keys": ["hush_hush"] }),
        ] {
            let (status, problem) = ask(&server, "POST", path, &admin, &body);
            assert!((400..500).contains(&status), "{problem}");
            assert!(problem["detail"].as_str().unwrap().contains("hush_hush"), "{problem}");
        }
    }
    // Also what was counted.
    let pid = server.process.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let mut server = server;
    assert!(server.process.wait().unwrap().success());
    for verb in ["POST /erasures", "POST /jobs/{id}"] {
        let refused: Vec<Json> = told(&project, verb);
        assert!(refused.iter().any(|entry| entry["detail"] == "malformed_job"), "{refused:?}");
    }
    let trail = project.succeed(&["trail", "export"]);
    assert!(!trail.contains("hush_hush"), "{trail}");
}

#[test]
fn the_trail_is_checked_against_an_end_that_was_kept() {
    let project = Project::new();
    make_admin(&project);
    let verdict = project.json(&["trail", "verify"]);
    let head = format!("{}:{}", verdict["head"]["sequence"], verdict["head"]["hash"].as_str().unwrap());
    assert!(project.succeed(&["trail", "verify"]).contains(&head));
    project.succeed(&["token", "create", "--name", "more", "--role", "reader"]);
    project.succeed(&["trail", "verify", "--head", &head]);
    let forged = format!("1:sha256:{}", "0".repeat(64));
    let said = project.fail(&["trail", "verify", "--head", &forged]);
    assert!(said.contains("not as it was written"), "{said}");
    let later = format!("99:sha256:{}", "0".repeat(64));
    assert!(project.fail(&["trail", "verify", "--head", &later]).contains("not as it was written"));
    assert!(project.fail(&["trail", "verify", "--head", "nonsense"]).contains("head is `nonsense`"));
    project.succeed(&["trail", "export", "--out", "trail.jsonl", "--since", "2020-01-01T00:00:00Z"]);
    let lines = std::fs::read_to_string(project.path("trail.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 2);
    assert!(Path::new(&project.path("trail.jsonl")).is_file());
    project.succeed(&["trail", "export", "--out", "none.jsonl", "--since", "2999-01-01T00:00:00Z"]);
    assert_eq!(std::fs::read_to_string(project.path("none.jsonl")).unwrap(), "");
}

/// A project whose one service is computed when it is asked, and a server for it.
fn project_that_computes() -> (Project, String) {
    let mut project = Project::new();
    define_slow_score(&project, &["score"]);
    let admin = make_admin(&project);
    project.variables = vec![("EADEM_TOKEN", admin.clone())];
    project.succeed(&["apply"]);
    (project, admin)
}

#[test]
fn a_project_gets_no_more_than_its_quota() {
    let (project, admin) = project_that_computes();
    let server = project.serve();
    let reader = ask(&server, "POST", "/tokens", &admin, &json!({ "name": "model", "role": "reader" })).1;
    let reader = reader["token"].as_str().unwrap();
    let quota = |body: Json| {
        let (status, project) = ask(&server, "POST", "/projects/default/quotas", &admin, &body);
        assert_eq!(status, 200, "{project}");
    };
    let score = || {
        let body = json!({ "service": "score@1", "entities": [{}], "request": [{ "seed": 4 }] });
        let headers = format!("{}Content-Type: application/json\r\n", bearer(reader));
        server.send("POST", "/features/batch", &headers, body.to_string().as_bytes())
    };
    let code = |body: &[u8]| serde_json::from_slice::<Json>(body).unwrap()["code"].as_str().unwrap_or("").to_owned();
    assert_eq!(score().status, 200);

    // One microsecond of transforms in a second: a call is made up for in minutes.
    quota(json!({ "transform_us_per_s": 1 }));
    assert_eq!(score().status, 200, "what it takes is known only afterwards");
    let refused = score();
    assert_eq!((refused.status, code(&refused.body).as_str()), (429, "quota_transforms"));
    assert!(refused.head.contains("retry-after: "), "{}", refused.head);
    assert_eq!(ask(&server, "GET", "/registry/services", reader, &Json::Null).0, 200, "nothing is computed for that");
    quota(json!({ "transform_us_per_s": null }));
    assert_eq!(score().status, 200);

    quota(json!({ "requests_per_s": 0 }));
    let refused = score();
    assert_eq!((refused.status, code(&refused.body).as_str()), (429, "quota_requests"));
    assert!(refused.head.contains("retry-after: "), "{}", refused.head);
    assert_eq!(server.get("/healthz").0, 200);
    // In another process: the server hears of it.
    project.succeed(&["project", "quota", "default", "--requests-per-s", "none"]);
    wait_until("the limit is lifted", || score().status == 200);

    quota(json!({ "jobs": 0 }));
    let (status, refused) = ask(&server, "POST", "/jobs/vacuum", &admin, &json!({}));
    assert_eq!((status, refused["code"].as_str()), (429, Some("quota_jobs")), "{refused}");
    assert!(refused["retry_after_s"].as_u64().is_some_and(|seconds| seconds > 0), "{refused}");
    quota(json!({ "jobs": 1 }));
    assert_eq!(ask(&server, "POST", "/jobs/vacuum", &admin, &json!({})).0, 202);

    let component = std::fs::read(super::project::component("plane_profile")).unwrap();
    let upload = || {
        let (status, reply) = Asker { server: &server, token: Some(&admin), project: None }.upload(&component);
        (status, reply["code"].as_str().unwrap_or("").to_owned())
    };
    quota(json!({ "components": 1 }));
    assert_eq!(upload(), (413, "quota_components".to_owned()));
    quota(json!({ "components": 2, "component_bytes": 1 }));
    assert_eq!(upload(), (413, "quota_component_bytes".to_owned()));
    quota(json!({ "component_bytes": null }));
    assert_eq!(upload(), (201, String::new()));

    let metrics = server.raw("GET", "/metrics", &bearer(&admin), b"").1;
    let counted = |name: &str| sample(&metrics, name, &[("project", "default")]);
    assert!(counted("eadem_project_requests_total") > 10.0);
    assert!(counted("eadem_project_rows_total") >= 4.0);
    assert!(counted("eadem_project_transform_cpu_us_total") > 0.0);
    let shown = project.json(&["project", "list"]);
    assert_eq!(shown["projects"][0]["quotas"], json!({ "components": 2, "jobs": 1 }), "{shown}");
    let said = project.fail(&["project", "quota", "default", "--jobs", "many"]);
    assert!(said.contains("--jobs is `many`"), "{said}");
    assert!(project.fail(&["project", "quota", "nobody", "--jobs", "1"]).contains("unknown_project"));
}
