//! Copies of the online store through the verbs: taken beside a server, loaded into a store that was lost, and refused where
//! they would bring older rows back.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Instant;

use serde_json::{Value as Json, json};

use super::project::{Project, Server};

const SERVICE: &str = "[service.seats]\nfeatures = [\"plane_profile:seats\"]\n";
const AS_OF: &str = "2014-01-01T00:00:00Z";
const READ: &str = "/features/N14228?service=seats@1&timestamp=2013-07-01T12:00:00Z&include=metadata";

/// Planes and weather of the demonstration, served.
fn served() -> Project {
    let project = Project::of_flights();
    project.write("features/seats.toml", SERVICE);
    project.succeed(&["apply"]);
    project.succeed(&["backfill", "plane_profile", "airport_weather"]);
    project.succeed(&["materialize", "plane_profile", "airport_weather", "--as-of", AS_OF]);
    project
}

/// The views that are served: name, rows, complete since, offline commit; and the epoch of each.
fn status(project: &Project) -> (Vec<[Json; 4]>, Vec<Json>) {
    let status = project.json(&["online", "status"]);
    let views: Vec<&Json> =
        status["views"].as_array().unwrap().iter().filter(|view| view["state"] == "current").collect();
    let shown = |view: &&Json| ["view", "rows", "complete_since", "offline_commit"].map(|name| view[name].clone());
    (views.iter().map(shown).collect(), views.iter().map(|view| view["epoch"].clone()).collect())
}

fn lose_online_store(project: &Project) {
    fs::remove_dir_all(project.path(".eadem/online")).unwrap();
}

fn backup_file(project: &Project, name: &str) -> PathBuf {
    project.path(name)
}

fn seats(server: &Server) -> Json {
    let (status, reply) = server.get(READ);
    assert_eq!(status, 200, "{reply}");
    json!([reply["features"]["seats"], reply["metadata"]["seats"]["store"]])
}

#[test]
fn a_lost_store_is_restored_as_it_was() {
    let project = served();
    let (views, epochs) = status(&project);
    let before = {
        let server = project.serve();
        let before = seats(&server);
        assert!(before[0].is_number() && before[1] == "online", "{before}");
        // Beside the server: the verb goes through it.
        let made = project.json(&["online", "backup", "--out", "copy.eadem"]);
        let result = &made["result"];
        assert_eq!(made["state"], "succeeded", "{made}");
        let copied = result["views"].as_array().unwrap();
        let shown = |view: &Json| ["view", "rows", "complete_since", "offline_commit"].map(|name| view[name].clone());
        assert_eq!(copied.iter().map(shown).collect::<Vec<_>>(), views, "{result}");
        assert_eq!(result["bytes"], fs::metadata(backup_file(&project, "copy.eadem")).unwrap().len());
        before
    };
    let leftovers: Vec<_> = fs::read_dir(project.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!leftovers.iter().any(|name| name.to_string_lossy().ends_with(".part")), "{leftovers:?}");

    // What is there is not written over unasked: neither the file nor the store.
    let refused = project.fail(&["online", "backup", "--out", "copy.eadem"]);
    assert!(refused.contains("is there already") && refused.contains("--replace"), "{refused}");
    let refused = project.fail(&["online", "restore", "copy.eadem"]);
    assert!(refused.contains("plane_profile@1") && refused.contains("--replace"), "{refused}");
    assert_eq!(status(&project), (views.clone(), epochs.clone()));

    lose_online_store(&project);
    let planned = project.json(&["online", "restore", "copy.eadem", "--dry-run"]);
    assert_eq!(planned["result"]["views"].as_array().unwrap().len(), 2, "{planned}");
    assert_eq!(status(&project).0, Vec::<[Json; 4]>::new(), "a dry run has loaded something");
    let restored = project.json(&["online", "restore", "copy.eadem"]);
    assert_eq!(restored["state"], "succeeded", "{restored}");
    assert_eq!(status(&project).0, views);
    assert_eq!(seats(&project.serve()), before);
    // Once more, over what is there now.
    project.succeed(&["online", "restore", "copy.eadem", "plane_profile", "--replace"]);
    assert_eq!(status(&project).0, views);
    assert_eq!(seats(&project.serve()), before);
}

#[test]
fn a_copy_that_is_older_than_what_is_served_is_refused() {
    let project = served();
    project.succeed(&["online", "backup", "--out", "old.eadem"]);
    // A later commit, which the store has seen and the copy has not.
    project.succeed(&["backfill", "plane_profile", "--recompute"]);
    let (views, epochs) = status(&project);
    for arguments in
        [&["online", "restore", "old.eadem", "plane_profile", "--replace"][..], &["online", "restore", "old.eadem"]]
    {
        let refused = project.fail(arguments);
        assert!(refused.contains("plane_profile@1"), "{refused}");
        assert!(refused.contains("taken out") || refused.contains("newer rows"), "{refused}");
    }
    assert_eq!(status(&project), (views.clone(), epochs));

    // The other view can be loaded without it.
    project.succeed(&["online", "restore", "old.eadem", "airport_weather", "--replace"]);
    assert_eq!(status(&project).0, views);

    // Materialized again since: the epoch in the copy is not the one that was lost.
    project.succeed(&["materialize", "airport_weather", "--as-of", AS_OF]);
    lose_online_store(&project);
    let refused = project.fail(&["online", "restore", "old.eadem", "airport_weather"]);
    assert!(refused.contains("is lost and is not the one in the backup"), "{refused}");
}

#[test]
fn a_registry_that_does_not_know_the_views_refuses_and_one_that_knows_no_epoch_takes_them() {
    let project = served();
    let (views, _) = status(&project);
    project.succeed(&["online", "backup", "--out", "copy.eadem", "plane_profile"]);
    let copy = backup_file(&project, "copy.eadem");
    let copy = copy.to_str().unwrap();

    let empty = Project::new();
    let refused = empty.fail(&["online", "restore", copy]);
    assert!(refused.contains("plane_profile@1") && refused.contains("does not know it"), "{refused}");

    // The definitions are the same, and the offline table is another one, or none.
    let fresh = Project::of_flights();
    fresh.write("features/seats.toml", SERVICE);
    fresh.succeed(&["apply"]);
    let refused = fresh.fail(&["online", "restore", copy]);
    assert!(refused.contains("offline table has no rows"), "{refused}");
    fresh.succeed(&["backfill", "plane_profile"]);
    fresh.succeed(&["online", "restore", copy]);
    let restored = status(&fresh).0;
    assert_eq!(restored, views.iter().filter(|view| view[0] == "plane_profile@1").cloned().collect::<Vec<_>>());
    let refused = fresh.fail(&["online", "restore", copy, "airport_weather"]);
    assert!(refused.contains("does not hold airport_weather@1"), "{refused}");
}

/// Whenever it is killed: a backup is whole or not there, and a restore leaves what was served or what it brings.
#[test]
fn killed_at_any_moment_it_leaves_nothing_half_done() {
    const KILLS: u64 = 6;
    let project = served();
    let get = ["get", "N14228", "--service", "seats@1", "--timestamp", "2013-07-01T12:00:00Z"];
    let (views, before) = (status(&project).0, project.json(&get));
    project.succeed(&["online", "backup", "--out", "sound.eadem"]);
    // As long as the whole verb takes, so that kills are spread over it.
    let began = Instant::now();
    project.succeed(&["online", "restore", "sound.eadem", "--replace"]);
    let whole = began.elapsed();
    let mut met = 0;
    for kill in 1..=KILLS {
        let after = whole.mul_f64(kill as f64 / KILLS as f64);
        for arguments in [
            &["online", "restore", "sound.eadem", "--replace"][..],
            &["online", "backup", "--out", "copy.eadem", "--replace"],
        ] {
            let mut process = project.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(after);
            met += usize::from(process.try_wait().unwrap().is_none());
            let _ = process.kill();
            process.wait().unwrap();
            let context = format!("{arguments:?} killed after {after:?}");
            assert_eq!(status(&project).0, views, "{context}");
            assert_eq!(project.json(&get)["features"], before["features"], "{context}");
        }
        if backup_file(&project, "copy.eadem").exists() {
            project.succeed(&["online", "restore", "copy.eadem", "--dry-run", "--replace"]);
        }
    }
    assert!(met > 0, "every kill came too late");
}

#[test]
fn damaged_files_and_other_files_change_nothing() {
    let project = served();
    project.succeed(&["online", "backup", "--out", "copy.eadem"]);
    let sound = fs::read(backup_file(&project, "copy.eadem")).unwrap();
    lose_online_store(&project);
    let mut changed = sound.clone();
    changed[sound.len() / 2] ^= 1;
    let cases: [(&str, &[u8], &str); 4] = [
        ("changed.eadem", &changed, "damaged"),
        ("cut.eadem", &sound[..sound.len() - 1], "damaged"),
        ("other.eadem", b"PAR1 and whatever follows it", "no backup"),
        ("newer.eadem", b"eadem online backup 2\n", "newer release"),
    ];
    for (name, bytes, expected) in cases {
        project.write(name, bytes);
        let refused = project.fail(&["online", "restore", name]);
        assert!(refused.contains(name) && refused.contains(expected), "{name}: {refused}");
    }
    let refused = project.fail(&["online", "restore", "missing.eadem"]);
    assert!(refused.contains("missing.eadem"), "{refused}");
    assert_eq!(status(&project).0, Vec::<[Json; 4]>::new());
    let within = project.fail(&["online", "backup", "--out", ".eadem/copy.eadem"]);
    assert!(within.contains("outside of the store's own directory"), "{within}");
    // And the sound one still is.
    project.succeed(&["online", "restore", "copy.eadem"]);
    assert_eq!(status(&project).0.len(), 2);
}

#[test]
fn a_store_that_serves_nothing_says_so() {
    let project = Project::of_flights();
    project.succeed(&["apply"]);
    let refused = project.fail(&["online", "backup", "--out", "copy.eadem"]);
    assert!(refused.contains("materialize first"), "{refused}");
    let refused = project.fail(&["online", "backup", "--out", "copy.eadem", "plane_profile"]);
    assert!(refused.contains("plane_profile@1 is not in the online store"), "{refused}");
    assert!(!backup_file(&project, "copy.eadem").exists());
}
