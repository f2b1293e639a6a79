//! Two servers, each with a directory of its own, on one registry in PostgreSQL.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::{Value as Json, json};

use super::datasets::{ASKING, ENDLESS, define};
use super::project::{Project, Server};
use super::support::{Asker, define_slow_score, make_admin, sample, wait_until};
use crate::postgres::{PASSWORD, Postgres};

fn project_on(postgres: &Postgres) -> Project {
    project_at(postgres.port)
}

fn project_at(port: u16) -> Project {
    let mut project = Project::new();
    let url = format!("postgres://test@127.0.0.1:{port}/test");
    project.write("eadem.toml", format!("[store]\nregistry = \"{url}\"\nregistry_schema = \"shared\"\n"));
    project.variables = vec![("EADEM_REGISTRY_PASSWORD", PASSWORD.to_owned())];
    project
}

/// A view whose rows are stored.
fn define_planes(project: &Project) {
    project.add_component("plane_profile");
    let planes = super::project::root().join("demo/data/planes.parquet");
    project.write("data/planes.parquet", std::fs::read(planes).unwrap());
    let text = "[entity.aircraft]\nkeys = { tailnum = \"utf8\" }\n\n[source.planes]\nparquet = \"data/planes.parquet\"\n\
                event_time = 2000-01-01T00:00:00Z\n\n[view.plane_profile]\nentity = \"aircraft\"\nsource = \"planes\"\n\
                transform = \"transforms/plane_profile.wasm\"\n";
    project.write("features/planes.toml", text);
}

/// Does something when it goes, however that comes about.
struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn ask(server: &Server, service: &str) -> (u16, Json) {
    server.post("/features/batch", &json!({ "service": service, "entities": [{}], "request": [{ "seed": 4 }] }))
}

#[test]
fn servers_of_one_registry_see_an_apply_at_once_and_drop_no_request() {
    let postgres = Postgres::start();
    let (mut first, mut second) = (project_on(&postgres), project_on(&postgres));
    // A registry that others share is open to nobody, on this machine neither.
    let refused = first.fail(&["serve", "--listen", "127.0.0.1:0"]);
    assert!(refused.contains("others share the registry"), "{refused}");
    let admin = make_admin(&first);
    for project in [&mut first, &mut second] {
        project.variables.push(("EADEM_TOKEN", admin.clone()));
    }
    define_slow_score(&first, &["score"]);
    first.succeed(&["apply"]);
    let (here, there) = (first.serve(), second.serve());
    // The component comes from the registry and is compiled before anybody asks.
    let engine = second.path(".eadem/artifacts");
    let is_compiled = || {
        let files: Vec<std::fs::DirEntry> =
            std::fs::read_dir(&engine).map_or_else(|_| Vec::new(), |files| files.map(Result::unwrap).collect());
        files.iter().any(|file| file.path().extension().is_some_and(|extension| extension == "aot"))
    };
    wait_until("the component is compiled", is_compiled);
    // Whoever waits for nothing is answered too.
    let hasty = || {
        let asked = json!({ "service": "score@1", "entities": [{}], "request": [{ "seed": 4 }] });
        let (status, reply) = there.post("/features/batch?deadline_ms=5", &asked);
        assert_eq!(status, 200, "{reply}");
        reply["results"][0]["status"].is_null()
    };
    wait_until("the component is loaded", hasty);
    let (status, reply) = ask(&there, "score@1");
    assert_eq!(status, 200, "{reply}");
    assert_eq!(ask(&here, "score@1").1["results"][0]["features"], reply["results"][0]["features"]);
    assert_eq!(ask(&there, "rank@1").0, 404);

    // Through a running server, while the other one is being asked.
    let (is_over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let took = std::thread::scope(|scope| {
        let clients = (0..2).map(|_| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let (status, reply) = ask(&there, "score@1");
                    assert_eq!(status, 200, "{reply}");
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let clients: Vec<_> = clients.collect();
        // Also where what follows fails: the scope waits for its threads.
        let over = OnDrop(|| is_over.store(true, Ordering::Relaxed));
        define_slow_score(&first, &["score", "rank"]);
        first.succeed(&["apply"]);
        let applied_at = Instant::now();
        wait_until("the other server hears of it", || ask(&there, "rank@1").0 == 200);
        let took = applied_at.elapsed();
        drop(over);
        clients.into_iter().for_each(|client| client.join().unwrap());
        took
    });
    assert!(asked.load(Ordering::Relaxed) > 0);
    println!("heard of after {} ms", took.as_millis());

    // A search, a job list and an apply from the other side.
    let found = second.json(&["search", "score", "--kind", "service"]);
    assert_eq!(found["hits"].as_array().map(Vec::len), Some(1), "{found}");
    define_slow_score(&second, &["score", "rank", "last"]);
    second.succeed(&["apply"]);
    wait_until("the first server hears of it", || ask(&here, "last@1").0 == 200);

    assert_eq!(ask(&here, "score@1").0, 200);
    for project in [&first, &second] {
        define_planes(project);
    }
    first.succeed(&["apply"]);
    first.succeed(&["backfill", "--online"]);
    let seats = || here.get("/features/N14228?features=seats&include=metadata").1;
    let known = seats();
    assert_eq!([&known["features"]["seats"], &known["metadata"]["seats"]["store"]], [&json!(149), &json!("online")]);
    // Both hear of one more change, and then the database goes, before anybody has asked them again. What is known is served on,
    // and the server says that it is not ready.
    define_slow_score(&second, &["score", "rank", "last", "another"]);
    second.succeed(&["apply"]);
    let revision = |server: &Server| {
        let admin = format!("Host: localhost\r\nAuthorization: Bearer {admin}\r\n");
        sample(&server.raw("GET", "/metrics", &admin, b"").1, "eadem_registry_revision", &[("project", "default")])
    };
    wait_until("the first server hears of it", || revision(&here) >= revision(&there));
    drop(postgres);
    for _ in 0..20 {
        let (status, reply) = ask(&here, "score@1");
        assert!(status == 200 && reply["results"][0]["status"].is_null(), "{status} {reply}");
        let served = seats();
        assert_eq!([&served["features"], &served["metadata"]], [&known["features"], &known["metadata"]]);
    }
    let (status, reply) = here.get("/readyz");
    assert_eq!(status, 503, "{reply}");
    let detail = reply["detail"].as_str().unwrap_or_default();
    assert!(detail.starts_with("registry: ") && !detail.contains("registry: not ready"), "{reply}");
    // Hosts and errors are not for everybody.
    let (status, reply) = here.raw("GET", "/readyz", "Host: localhost\r\n", b"");
    let reply: Json = serde_json::from_str(&reply).unwrap();
    assert_eq!(
        (status, &reply["detail"], &reply["errors"]),
        (503, &json!("registry: not ready"), &json!(["registry: not ready"]))
    );
    let refused = here.post("/registry/plan", &json!({ "files": [] }));
    assert!(refused.0 >= 500, "{refused:?}");
}

/// A way to a server that can be cut, and mended.
struct Line {
    port: u16,
    state: Arc<Mutex<LineState>>,
}

#[derive(Default)]
struct LineState {
    is_cut: bool,
    open: Vec<TcpStream>,
}

impl Line {
    fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let line = Self { port: listener.local_addr().unwrap().port(), state: Arc::default() };
        let state = Arc::clone(&line.state);
        std::thread::spawn(move || {
            for caller in listener.incoming() {
                let (caller, mut state) = (caller.unwrap(), state.lock().unwrap());
                let Some(server) = (!state.is_cut).then(|| TcpStream::connect(("127.0.0.1", port)).ok()).flatten()
                else {
                    continue;
                };
                for (from, to) in [(&caller, &server), (&server, &caller)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    std::thread::spawn(move || {
                        let _ended = std::io::copy(&mut from, &mut to);
                        let _closed = to.shutdown(Shutdown::Both);
                    });
                }
                state.open.extend([caller, server]);
            }
        });
        line
    }

    fn cut(&self) {
        let mut state = self.state.lock().unwrap();
        state.is_cut = true;
        for end in state.open.drain(..) {
            let _closed = end.shutdown(Shutdown::Both);
        }
    }

    fn mend(&self) {
        self.state.lock().unwrap().is_cut = false;
    }
}

/// One server runs the job, another tells of it, and for a while does not reach the database.
#[test]
fn a_job_of_another_server_is_followed_to_its_end_over_a_registry_that_was_away() {
    let postgres = Postgres::start();
    let line = Line::to(postgres.port);
    let (mut here, mut there) = (project_on(&postgres), project_at(line.port));
    let admin = make_admin(&here);
    for project in [&mut here, &mut there] {
        project.variables.push(("EADEM_TOKEN", admin.clone()));
    }
    define(&here);
    here.succeed(&["apply"]);
    let (runs, tells) = (here.serve(), there.serve_with_log());
    let output = here.path("set.parquet");
    let spec = json!({ "service": "planes", "spine_sql": ENDLESS, "output": output.to_str().unwrap() });
    let (status, job) = runs.post("/jobs/dataset", &spec);
    assert_eq!(status, 202, "{job}");
    let path = format!("/jobs/{}", job["id"].as_str().unwrap());
    wait_until("the job is at work", || runs.get(&path).1["progress"]["message"] == ASKING);

    let mut stream = tells.connect();
    let head = format!("GET {path}/events HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer {admin}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut events = BufReader::new(stream);
    let mut told = String::new();
    while !told.ends_with("event: progress\n") {
        assert!(events.read_line(&mut told).unwrap() > 0, "{told}");
    }
    line.cut();
    let log = there.path("server.log");
    wait_until("the registry was missed", || {
        std::fs::read_to_string(&log).unwrap().contains("a job that is followed cannot be looked up")
    });
    line.mend();
    let (status, ended) = runs.delete(&path);
    assert_eq!((status, &ended["state"]), (200, &json!("cancelled")), "{ended}");
    events.read_to_string(&mut told).unwrap();
    assert!(told.contains("event: end") && !told.contains("event: lost"), "{told}");
    let last = told.lines().filter_map(|line| line.strip_prefix("data:")).next_back().unwrap();
    assert_eq!(serde_json::from_str::<Json>(last).unwrap()["state"], "cancelled", "{told}");
}

#[test]
fn a_password_in_the_address_of_the_registry_is_refused_and_not_repeated() {
    let project = Project::new();
    project.write("eadem.toml", "[store]\nregistry = \"postgres://me:hunter2@db.example/features\"\n");
    let refused = project.fail(&["plan"]);
    assert!(refused.contains("EADEM_REGISTRY_PASSWORD") && !refused.contains("hunter2"), "{refused}");
    project.write("eadem.toml", "[store]\nregistry = \"postgres://me@127.0.0.1:1/features\"\n");
    let refused = project.fail(&["plan"]);
    assert!(refused.contains("registry"), "{refused}");
}

/// A project that is made through one server is one of all that share the registry: a schema of its own beside theirs.
#[test]
fn a_project_is_that_of_every_server_of_the_registry() {
    let postgres = Postgres::start();
    let (first, second) = (project_on(&postgres), project_on(&postgres));
    let token = make_admin(&first);
    let there = second.serve();
    let asker = |project: &'static str| Asker { server: &there, token: Some(&token), project: Some(project) };
    first.succeed(&["project", "create", "fraud"]);
    define_slow_score(&first, &["score"]);
    first.succeed(&["apply", "--in-project", "fraud"]);
    let score = json!({ "service": "score@1", "entities": [{}], "request": [{ "seed": 4 }] });
    let ask_in = |project: &'static str| asker(project).ask("POST", "/features/batch", &score);
    let (status, reply) = ask_in("fraud");
    assert_eq!(status, 200, "{reply}");
    // Its names are its own, also in the database.
    assert_eq!(ask_in("default").0, 404);
    define_slow_score(&first, &["score", "rank"]);
    first.succeed(&["apply"]);
    wait_until("the other project has it too", || ask_in("default").0 == 200);
    let service = |project: &'static str| asker(project).get("/registry/services/rank").0;
    assert_eq!((service("fraud"), service("default")), (404, 200));
}
