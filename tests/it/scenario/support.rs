//! What several scenarios need.

use std::time::{Duration, Instant};

use super::project::Project;

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
