//! The loop with sources, the offline store, spines and training sets on S3: all of it is as on a disk, and no secret comes up
//! anywhere.

use std::path::Path as FilePath;
use std::process::Output;

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};
use serde_json::{Value as Json, json};
use tokio::runtime::Runtime;

use super::project::{Project, texts};
use crate::s3_server::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};

/// The bucket, as the test sees it.
struct Bucket {
    runtime: Runtime,
    client: AmazonS3,
}

impl Bucket {
    fn of(server: &S3Server) -> Self {
        let client = AmazonS3Builder::new()
            .with_bucket_name(BUCKET)
            .with_endpoint(&server.endpoint)
            .with_allow_http(true)
            .with_access_key_id(ACCESS_KEY)
            .with_secret_access_key(SECRET_KEY);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { runtime, client: client.build().unwrap() }
    }

    fn put(&self, key: &str, bytes: Vec<u8>) {
        self.runtime.block_on(self.client.put(&Path::from(key), PutPayload::from(bytes))).unwrap();
    }

    fn get(&self, key: &str) -> Vec<u8> {
        let read = async { self.client.get(&Path::from(key)).await.unwrap().bytes().await.unwrap() };
        self.runtime.block_on(read).to_vec()
    }
}

const SERVICE: &str = "[service.weather]\nfeatures = [\"airport_weather:temperature_c\", \"airport_weather:visibility_km\", \
                       \"airport_weather:gusty\"]\n";
const SPINE: &str = "airport,timestamp,label\nEWR,2013-01-01T12:20:00Z,1\nJFK,2013-06-11T23:59:00Z,0\n\
                     LGA,2013-12-30T23:30:00Z,1\nXXX,2013-05-05T05:05:05Z,0\n";

fn project_of_weather() -> Project {
    let project = Project::of_flights();
    project.write("features/weather.toml", SERVICE);
    project.write("spine.csv", SPINE);
    project
}

/// A project whose sources and offline store are on S3.
fn project_on_s3(server: &S3Server, bucket: &Bucket, prefix: &str) -> Project {
    let mut project = project_of_weather();
    project.variables = server.variables();
    for entry in std::fs::read_dir(project.path("data")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        bucket.put(&format!("{prefix}/data/{name}"), std::fs::read(&path).unwrap());
    }
    bucket.put(&format!("{prefix}/spine.csv"), SPINE.into());
    let sources = std::fs::read_to_string(project.path("features/sources.toml")).unwrap();
    let moved = sources.replace("parquet = \"data/", &format!("parquet = \"s3://{BUCKET}/{prefix}/data/"));
    assert_ne!(sources, moved);
    project.write("features/sources.toml", moved);
    project.write("eadem.toml", format!("[store]\noffline = \"s3://{BUCKET}/{prefix}/store\"\n"));
    std::fs::remove_dir_all(project.path("data")).unwrap();
    project
}

/// Loads the weather, and makes a training set at `out` of the spine at `spine`.
fn loaded(project: &Project, spine: &str, out: &str) -> Json {
    project.succeed(&["apply"]);
    let job = project.json(&["backfill", "airport_weather"]);
    assert_eq!(job["backfill"]["state"], "succeeded", "{job}");
    project.json(&["dataset", "create", "--service", "weather@1", "--spine", spine, "--out", out])
}

fn served(project: &Project) -> Json {
    project.succeed(&["materialize", "airport_weather", "--as-of", "2014-01-01T00:00:00Z"]);
    let asked = ["get", "EWR", "--service", "weather@1", "--timestamp", "2013-01-01T12:20:00Z"];
    project.json(&asked)["features"].clone()
}

#[test]
fn the_loop_on_s3_gives_what_it_gives_on_a_disk() {
    let server = S3Server::shared();
    let bucket = Bucket::of(&server);
    let project = project_on_s3(&server, &bucket, "loop");
    let url = |name: &str| format!("s3://{BUCKET}/loop/{name}");
    let made = loaded(&project, &url("spine.csv"), &url("set.parquet"));
    assert!(!project.path(".eadem/offline").exists(), "nothing of the offline store is on the disk");

    let on_disk = project_of_weather();
    let set = on_disk.path("set.parquet");
    let made_on_disk = loaded(&on_disk, "spine.csv", set.to_str().unwrap());
    assert_eq!(made["content_digest"], made_on_disk["content_digest"]);
    assert_eq!(made["statuses"]["temperature_c"], json!({ "present": 3, "missing": 1 }));
    let bytes = bucket.get("loop/set.parquet");
    assert_eq!(bytes, std::fs::read(set).unwrap());

    let id = made["id"].as_str().unwrap();
    project.succeed(&["dataset", "rebuild", id, "--out", &url("again.parquet")]);
    assert_eq!(bucket.get("loop/again.parquet"), bytes);
    assert_eq!(served(&project), served(&on_disk));
    let audit = project.succeed(&["audit", "--service", "weather@1", "--spine", &url("spine.csv")]);
    assert!(audit.contains(" 0 differing bits"), "{audit}");

    // What is there already is not written over by accident.
    let source = url("data/weather.parquet");
    let refused = project.fail(&["dataset", "rebuild", id, "--out", &source]);
    assert!(refused.contains("is, or lies in, what source `weather` reads"), "{refused}");
    let refused = project.fail(&["dataset", "rebuild", id, "--out", &url("store/mine.parquet")]);
    assert!(refused.contains("lies in the offline store itself"), "{refused}");
}

#[test]
fn settings_of_object_stores_are_shown_with_where_they_stand() {
    let server = S3Server::shared();
    let mut project = Project::new();
    project.variables = server.variables();
    let settings = project.json(&["config"]);
    let shown = |key: &str| {
        let setting = settings.as_array().unwrap().iter().find(|setting| setting["key"] == key).unwrap();
        (setting["value"].clone(), setting["origin"].as_str().unwrap().to_owned())
    };
    assert_eq!(shown("s3.endpoint"), (json!(format!("{}/", server.endpoint)), "AWS_ENDPOINT_URL".to_owned()));
    assert_eq!(shown("s3.credentials"), (json!("(set, not shown)"), "AWS_ACCESS_KEY_ID".to_owned()));
    assert_eq!(shown("store.offline"), (Json::Null, "default".to_owned()));
}

/// Everything that a project's verbs said.
#[derive(Default)]
struct Said(String);

impl Said {
    fn add(&mut self, output: &Output) -> String {
        let (out, err) = texts(output);
        let text = format!("{out}\n{err}");
        self.0.push_str(&text);
        text
    }
}

/// Every file below a folder, whole.
fn all_bytes(folder: &FilePath, into: &mut Vec<u8>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all_bytes(&path, into),
            false => into.extend(std::fs::read(&path).unwrap()),
        }
    }
}

#[test]
fn no_secret_comes_up_in_what_is_said_or_kept() {
    const WRONG_SECRET: &str = "wrong-secret-of-the-test";
    const TOKEN: &str = "session-token-of-the-test";
    const IN_URL: &str = "secret-in-a-url";
    let server = S3Server::shared();
    let bucket = Bucket::of(&server);
    let mut project = project_on_s3(&server, &bucket, "secrets");
    let mut said = Said::default();
    let mut run = |project: &Project, arguments: &[&str]| {
        let output = project.command(arguments).env("EADEM_LOG", "debug").output().unwrap();
        (output.status.success(), said.add(&output))
    };
    assert!(run(&project, &["apply"]).0);
    assert!(run(&project, &["backfill", "airport_weather"]).0);
    assert!(run(&project, &["config"]).0);

    // Keys that the server refuses: it answers with what was signed.
    let right = std::mem::take(&mut project.variables);
    project.variables = right.iter().filter(|(name, _)| *name != "AWS_SECRET_ACCESS_KEY").cloned().collect();
    project.variables.push(("AWS_SECRET_ACCESS_KEY", WRONG_SECRET.to_owned()));
    let (succeeded, text) = run(&project, &["backfill", "airport_weather"]);
    assert!(!succeeded && text.contains("SignatureDoesNotMatch"), "{text}");
    assert!(text.contains("the credentials are those of AWS_ACCESS_KEY_ID"), "{text}");
    project.variables.push(("AWS_SESSION_TOKEN", TOKEN.to_owned()));
    assert!(!run(&project, &["plan"]).0);

    // Keys of a profile.
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".aws")).unwrap();
    let profile = format!("[lake]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n");
    std::fs::write(home.path().join(".aws/credentials"), profile).unwrap();
    project.variables = right.iter().filter(|(name, _)| !name.contains("_KEY") && *name != "HOME").cloned().collect();
    project.variables.push(("HOME", home.path().to_str().unwrap().to_owned()));
    project.variables.push(("AWS_PROFILE", "lake".to_owned()));
    let (succeeded, text) = run(&project, &["config"]);
    assert!(succeeded && text.contains("profile `lake` in "), "{text}");
    let (succeeded, text) = run(&project, &["backfill", "airport_weather"]);
    assert!(succeeded, "{text}");

    // Credentials where they must not be.
    let url = format!("s3://AKIAEXAMPLE:{IN_URL}@{BUCKET}/secrets/spine.csv");
    let out = format!("s3://{BUCKET}/secrets/set.parquet?X-Amz-Signature={IN_URL}");
    let spine = format!("s3://{BUCKET}/secrets/spine.csv");
    for (spine, out) in [(url.as_str(), "set.parquet"), (spine.as_str(), out.as_str())] {
        let create = ["dataset", "create", "--service", "weather@1", "--spine", spine, "--out", out];
        let (succeeded, text) = run(&project, &create);
        assert!(!succeeded && text.contains("(not shown)"), "{text}");
    }
    let setting = format!("store.offline={url}");
    let (succeeded, text) = run(&project, &["config", "--set", &setting]);
    assert!(!succeeded && text.contains("a location holds no credentials"), "{text}");
    {
        let served = project.serve();
        let spec = json!({ "service": "weather@1", "spine": url, "output": "/tmp/set.parquet" });
        let (status, problem) = served.post("/jobs/dataset", &spec);
        assert_eq!(status, 400, "{problem}");
        said_of_server(&mut said.0, &problem);
        let (_, jobs) = served.get("/jobs");
        said_of_server(&mut said.0, &jobs);
    }
    let sources = std::fs::read_to_string(project.path("features/sources.toml")).unwrap();
    let with_secret = sources.replace(
        &format!("s3://{BUCKET}/secrets/data/weather"),
        &format!("s3://AKIAEXAMPLE:{IN_URL}@{BUCKET}/secrets/data/weather"),
    );
    assert_ne!(sources, with_secret);
    project.write("features/sources.toml", with_secret);
    for verb in ["plan", "apply"] {
        let output = project.command(&[verb]).env("EADEM_LOG", "debug").output().unwrap();
        assert!(!output.status.success());
        let text = said.add(&output);
        assert!(text.contains("a location holds no credentials"), "{text}");
    }

    let mut kept = Vec::new();
    all_bytes(&project.path(".eadem"), &mut kept);
    let kept = String::from_utf8_lossy(&kept);
    for secret in [SECRET_KEY, WRONG_SECRET, TOKEN, IN_URL, "AKIAEXAMPLE"] {
        assert!(!said.0.contains(secret), "{secret} was said: {}", said.0);
        assert!(!kept.contains(secret), "{secret} was kept");
    }
}

fn said_of_server(said: &mut String, reply: &Json) {
    said.push_str(&reply.to_string());
}

#[test]
fn a_server_is_ready_only_while_its_object_store_answers() {
    let s3 = S3Server::shared();
    let mut project = Project::new();
    let readiness = |project: &Project, bucket: &str| {
        project.write("eadem.toml", format!("[store]\noffline = \"s3://{bucket}/ready\"\n"));
        let (status, reply) = project.serve().get("/readyz");
        (status, reply["detail"].as_str().unwrap_or_default().to_owned())
    };
    project.variables = s3.variables();
    // Nothing is there yet, which is an answer.
    assert_eq!(readiness(&project, BUCKET).0, 200);
    let (status, detail) = readiness(&project, "no-such-bucket");
    assert!(status == 503 && detail.starts_with("offline store: "), "{detail}");
    for (name, value) in &mut project.variables {
        if name.starts_with("AWS_ENDPOINT_URL") {
            *value = "http://127.0.0.1:1".to_owned();
        }
    }
    let (status, detail) = readiness(&project, BUCKET);
    assert!(status == 503 && detail.starts_with("offline store: "), "{detail}");
    assert!(!detail.contains(SECRET_KEY), "{detail}");
}
