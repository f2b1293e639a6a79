//! The loop with the online store in a database: every answer is as with the embedded store.

use serde_json::{Value as Json, json};

use super::project::Project;
use crate::cassandra::Cassandra;

const SERVICE: &str = "[service.weather]\nfeatures = [\"airport_weather:*\", \"airport_shape:*\"]\n";
const SPINE: &str = "airport,timestamp\nEWR,2013-01-01T12:20:00Z\nJFK,2013-06-11T23:59:00Z\nXXX,2013-05-05T05:05:05Z\n";

fn project_of_weather() -> Project {
    let project = Project::of_flights();
    project.write("features/weather.toml", SERVICE);
    project.write("spine.csv", SPINE);
    project
}

/// Applies, loads both stores, and asks for what is known of each airport at each time.
fn answers(project: &Project) -> Vec<Json> {
    project.succeed(&["apply"]);
    for verb in [["backfill", "airport_weather", "airport_shape"], ["materialize", "airport_weather", "airport_shape"]]
    {
        project.succeed(&verb);
    }
    let asked = [("EWR", "2013-01-01T12:20:00Z"), ("JFK", "2013-06-11T23:59:00Z"), ("XXX", "2013-05-05T05:05:05Z")];
    let get = |(airport, at)| {
        let reply = project.json(&["get", airport, "--service", "weather@1", "--timestamp", at]);
        json!([reply["features"], reply["status"]])
    };
    asked.into_iter().map(get).collect()
}

#[test]
fn the_loop_on_a_database_gives_what_the_embedded_store_gives() {
    let embedded = project_of_weather();
    let refused = embedded.fail(&["online", "init"]);
    assert!(refused.contains("the online store is the embedded one, which needs no schema"), "{refused}");

    let cassandra = Cassandra::start(1, false);
    let on_database = project_of_weather();
    let url = format!("scylla://127.0.0.1:{}/eadem_test?timeout_ms=20000", cassandra.port);
    on_database.write("eadem.toml", format!("[store]\nonline = \"{url}\"\n"));
    let refused = on_database.fail(&["apply"]);
    assert!(
        refused.contains("there is no keyspace `eadem_test`") && refused.contains("eadem online init"),
        "{refused}"
    );

    let shown = on_database.succeed(&["online", "init", "--replication", "1"]);
    assert!(
        shown.contains("CREATE KEYSPACE IF NOT EXISTS eadem_test") && shown.contains("Nothing was changed"),
        "{shown}"
    );
    on_database.fail(&["apply"]);
    for _ in 0..2 {
        let made = on_database.json(&["online", "init", "--replication", "1", "--lease-ms", "60", "--apply"]);
        assert_eq!(made["applied"], true, "{made}");
    }

    let loaded = answers(&on_database);
    assert_eq!(loaded, answers(&embedded));
    assert!(!on_database.path(".eadem/online/catalogue.redb").exists(), "no embedded store is made beside");
    let status = on_database.json(&["online", "status"]);
    assert_eq!(status["store"], "scylla", "{status}");
    assert_eq!(status["views"].as_array().map(Vec::len), Some(2), "{status}");
    let audit = on_database.succeed(&["audit", "--service", "weather@1", "--spine", "spine.csv"]);
    assert!(audit.contains(" 0 differing bits"), "{audit}");

    // Another project has a keyspace of its own.
    on_database.succeed(&["project", "create", "other"]);
    let in_other = ["--in-project", "other"];
    let refused = on_database.fail(&["apply", in_other[0], in_other[1]]);
    assert!(refused.contains("there is no keyspace `eadem_test__other`"), "{refused}");
    let init = ["online", "init", "--replication", "1", "--lease-ms", "60", "--apply"];
    on_database.succeed(&[init.as_slice(), &in_other].concat());
    let folder = on_database.path("projects/other");
    std::fs::create_dir_all(&folder).unwrap();
    std::os::unix::fs::symlink(on_database.path("data"), folder.join("data")).unwrap();
    on_database.succeed(&["apply", in_other[0], in_other[1]]);
    let there =
        ["get", "EWR", "--service", "weather@1", "--timestamp", "2013-01-01T12:20:00Z", "--in-project", "other"];
    let empty = on_database.json(&there);
    assert_ne!(empty["features"], loaded[0][0], "nothing was loaded there: {empty}");

    // Its clock is this machine's.
    let server = on_database.serve();
    assert_eq!(server.get("/readyz"), (200, json!({ "status": "ready", "access": "open" })));
    drop(server);

    // A password in a file of the project is refused, and not repeated.
    let secret = url.replace("scylla://", "scylla://me:hunter2@");
    on_database.write("eadem.toml", format!("[store]\nonline = \"{secret}\"\n"));
    let refused = on_database.fail(&["online", "status"]);
    assert!(refused.contains("store.online holds a password") && !refused.contains("hunter2"), "{refused}");
}
