//! What several scenarios need.

use std::time::{Duration, Instant};

use serde_json::Value as Json;

use super::project::{Project, Server};

/// Nothing that is waited for takes as long.
const PATIENCE: Duration = Duration::from_secs(600);

/// Waits for something that has to come; how long it takes decides nothing.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "{what}: it has not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The value of the one sample of `/metrics` with this name and these labels.
pub(crate) fn sample(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let has_all = |line: &str| labels.iter().all(|(label, value)| line.contains(&format!("{label}=\"{value}\"")));
    let is_sample = |line: &&str| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with([' ', '{'])) && has_all(line)
    };
    let lines: Vec<&str> = text.lines().filter(is_sample).collect();
    let [line] = lines.as_slice() else { panic!("{} samples of {name} {labels:?} in\n{text}", lines.len()) };
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// A view that is computed when it is asked, and services that have it.
pub(crate) fn define_slow_score(project: &Project, services: &[&str]) {
    project.add_component("slow_score");
    let mut text = "[view.slow_score]\ntransform = \"transforms/slow_score.wasm\"\n\n[view.slow_score.bind]\nseed = \
                    \"request.seed\"\n"
        .to_owned();
    for service in services {
        text.push_str(&format!("\n[service.{service}]\nfeatures = [\"slow_score:*\"]\n"));
    }
    project.write("features/score.toml", text);
}

/// A token that whoever owns the directory makes, for a project or for all.
pub(crate) fn make_token(project: &Project, name: &str, role: &str, of: Option<&str>) -> String {
    let of = of.map_or(vec![], |of| vec!["--for-project", of]);
    let made = project.json(&[&["token", "create", "--name", name, "--role", role], of.as_slice()].concat());
    made["token"].as_str().unwrap().to_owned()
}

/// An admin's token, for all projects.
pub(crate) fn make_admin(project: &Project) -> String {
    make_token(project, "root", "admin", None)
}

/// Who asks, and which project is named.
pub(crate) struct Asker<'a> {
    pub(crate) server: &'a Server,
    pub(crate) token: Option<&'a str>,
    pub(crate) project: Option<&'a str>,
}

impl Asker<'_> {
    /// Status and JSON, or text where it is none.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &Json) -> (u16, Json) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.send(method, path, "application/json", body.as_bytes())
    }

    pub(crate) fn get(&self, path: &str) -> (u16, Json) {
        self.ask("GET", path, &Json::Null)
    }

    pub(crate) fn upload(&self, component: &[u8]) -> (u16, Json) {
        self.send("POST", "/transforms", "application/wasm", component)
    }

    fn send(&self, method: &str, path: &str, content_type: &str, body: &[u8]) -> (u16, Json) {
        let token = self.token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let project = self.project.map(|project| format!("Eadem-Project: {project}\r\n")).unwrap_or_default();
        let headers = format!("Host: localhost\r\n{token}{project}Content-Type: {content_type}\r\n");
        let (status, text) = self.server.raw(method, path, &headers, body);
        (status, serde_json::from_str(&text).unwrap_or(Json::String(text)))
    }
}
