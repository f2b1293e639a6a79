//! Several projects on one server: one name means something else in each, and nothing of one is seen from another.

use serde_json::{Value as Json, json};

use super::project::Project;
use super::support::{Asker, make_admin, make_token, sample};

const DEFINITIONS: &str = r#"
[entity.aircraft]
keys = { tailnum = "utf8" }

[source.planes]
csv = { path = "data" }
types = { year = "int64", engines = "int64", seats = "int64" }
event_time = 2000-01-01T00:00:00Z

[view.plane_profile]
entity = "aircraft"
source = "planes"
transform = "transforms/plane_profile.wasm"

[service.planes]
features = ["plane_profile:*"]
"#;

const TYPES: &str = "types = { year = \"int64\", engines = \"int64\", seats = \"int64\" }";

const FRAUD: &[&str] = &["--in-project", "fraud"];

fn planes(seats: u32) -> String {
    format!(
        "tailnum,year,type,manufacturer,model,engines,seats,engine\n\
         N1,1999,Fixed wing multi engine,BOEING,737-800,2,{seats},Turbo-fan\n"
    )
}

/// A project whose planes have 160 seats, and one in which they have 7.
fn two_projects() -> Project {
    let project = Project::new();
    project.add_component("plane_profile");
    project.write("features/planes.toml", DEFINITIONS);
    project.write("data/planes.csv", planes(160));
    project.write("projects/fraud/data/planes.csv", planes(7));
    project.succeed(&["project", "create", "fraud"]);
    for of in [&[], FRAUD] {
        for verb in ["apply", "backfill", "materialize"] {
            project.succeed(&[&[verb], of].concat());
        }
    }
    project
}

/// How many seats the plane has, or why that is not told.
fn seats(asker: &Asker<'_>) -> Result<i64, (u16, String)> {
    let (status, reply) = asker.get("/features/N1?service=planes@1");
    match reply["features"]["seats"].as_i64() {
        Some(seats) => Ok(seats),
        None => Err((status, reply["code"].as_str().unwrap_or(&reply.to_string()).to_owned())),
    }
}

#[test]
fn a_name_means_something_else_in_each_project() {
    let project = two_projects();
    let seats = |of: &[&str]| project.json(&[&["get", "N1", "--service", "planes@1"], of].concat());
    assert_eq!(seats(&[])["features"]["seats"], 160);
    assert_eq!(seats(FRAUD)["features"]["seats"], 7);
    let said = project.fail(&["get", "N1", "--service", "planes@1", "--in-project", "nobody"]);
    assert!(said.contains("unknown project `nobody`"), "{said}");
    for folder in ["offline", "online", "registry.sqlite"] {
        assert!(project.path(&format!(".eadem/projects/fraud/{folder}")).exists(), "{folder}");
    }

    // A service that only one of them has.
    project.write("features/seats.toml", "[service.seats]\nfeatures = [\"plane_profile:seats\"]\n");
    project.succeed(&[&["apply"], FRAUD].concat());
    assert_eq!(project.json(&["get", "N1", "--service", "seats@1", FRAUD[0], FRAUD[1]])["features"]["seats"], 7);
    assert!(project.fail(&["get", "N1", "--service", "seats@1"]).contains("unknown service"));

    // Each has jobs and a trail of its own.
    let jobs = |of: &[&str]| project.json(&[&["jobs", "list"], of].concat())["jobs"].as_array().unwrap().len();
    assert_eq!((jobs(&[]), jobs(FRAUD)), (2, 2));
    project.succeed(&[&["backfill"], FRAUD].concat());
    assert_eq!((jobs(&[]), jobs(FRAUD)), (2, 3));
    project.succeed(&["trail", "verify"]);
    project.succeed(&[&["trail", "verify"], FRAUD].concat());

    // What is erased in one is still there in the other.
    let erase = ["erase", "--entity", "aircraft", "--key", "tailnum=N1"];
    project.succeed(&[erase.as_slice(), FRAUD].concat());
    assert_eq!(seats(FRAUD)["features"]["seats"], Json::Null);
    assert_eq!(seats(&[])["features"]["seats"], 160);
}

#[test]
fn a_token_reaches_its_project_and_no_other() {
    let project = two_projects();
    let root = make_admin(&project);
    let fraud = make_token(&project, "fraud", "admin", Some("fraud"));
    let own = make_token(&project, "own", "admin", Some("default"));
    let server = project.serve();
    let asker = |token: &'static str, project: &'static str| {
        let token = match token {
            "root" => Some(root.as_str()),
            "fraud" => Some(fraud.as_str()),
            "own" => Some(own.as_str()),
            _ => None,
        };
        Asker { server: &server, token, project: (!project.is_empty()).then_some(project) }
    };
    for (token, named, expected) in [
        ("root", "", Ok(160)),
        ("root", "default", Ok(160)),
        ("root", "fraud", Ok(7)),
        ("own", "", Ok(160)),
        ("own", "default", Ok(160)),
        ("fraud", "", Ok(7)),
        ("fraud", "fraud", Ok(7)),
        ("root", "nobody", Err((404, "unknown_project"))),
        ("own", "fraud", Err((403, "other_project"))),
        ("fraud", "default", Err((403, "other_project"))),
        // Whether there is such a project is nobody else's business.
        ("fraud", "nobody", Err((403, "other_project"))),
        ("", "fraud", Err((401, "no_credential"))),
        ("", "nobody", Err((401, "no_credential"))),
    ] {
        let expected = expected.map_err(|(status, code)| (status, code.to_owned()));
        assert_eq!(seats(&asker(token, named)), expected, "{token} asks in `{named}`");
    }
    assert_eq!(asker("", "nobody").get("/healthz").0, 200);

    // The trail of a project is its own; that of the first one tells of all.
    let verbs = |asker: Asker<'_>| -> Vec<String> {
        let (status, page) = asker.get("/trail");
        assert_eq!(status, 200, "{page}");
        page["entries"].as_array().unwrap().iter().map(|entry| entry["verb"].as_str().unwrap().to_owned()).collect()
    };
    // What others were refused there is none of its business.
    let names = |asker: Asker<'_>| asker.get("/trail").1.to_string();
    let (told, told_to_all) = (names(asker("fraud", "")), names(asker("root", "")));
    for stranger in ["\"own\"", "\"nobody\""] {
        assert!(!told.contains(stranger) && told_to_all.contains(stranger), "{stranger}: {told}");
    }
    let told = verbs(asker("fraud", ""));
    assert!(told.contains(&"apply".to_owned()) && !told.contains(&"create token".to_owned()), "{told:?}");
    assert!(verbs(asker("root", "")).contains(&"create project".to_owned()));
    assert_eq!(asker("own", "").get("/trail").0, 403);
    assert_eq!(asker("fraud", "").get("/trail/verification").1["faults"], json!([]));

    // Metrics are of one project, or of all.
    let metrics = |asker: Asker<'_>| asker.get("/metrics").1.as_str().unwrap().to_owned();
    let has =
        |text: &str, project: &str| text.contains(&format!("eadem_project_requests_total{{project=\"{project}\"}}"));
    let (all, one) = (metrics(asker("root", "")), metrics(asker("fraud", "")));
    assert!(has(&all, "default") && has(&all, "fraud") && !has(&one, "default") && has(&one, "fraud"), "{all}\n{one}");
    let headings = all.lines().filter(|line| *line == "# TYPE eadem_project_requests_total counter").count();
    assert_eq!(headings, 1, "what is told of one metric stands together");

    // What a job takes is counted where it ran.
    let counted = |text: &str| sample(text, "eadem_project_job_rows_total", &[("project", "fraud")]);
    assert_eq!(counted(&one), 0.0);
    let again = json!({ "recompute": true, "from": "1999-01-01T00:00:00Z", "to": "2001-01-01T00:00:00Z" });
    let (status, job) = asker("fraud", "").ask("POST", "/jobs/backfill", &again);
    assert_eq!(status, 202, "{job}");
    let path = format!("/jobs/{}/events", job["id"].as_str().unwrap());
    let events = asker("fraud", "").get(&path).1;
    assert!(events.as_str().unwrap().contains("\"succeeded\""), "{events}");
    assert_eq!(counted(&metrics(asker("fraud", ""))), 1.0);

    // A project that has just been made is there.
    assert_eq!(asker("root", "").ask("POST", "/projects", &json!({ "name": "new" })).0, 201);
    assert_eq!(seats(&asker("root", "new")), Err((404, "unknown_service".to_owned())));
    let tokens = asker("fraud", "").get("/tokens").1;
    assert_eq!(tokens["tokens"].as_array().unwrap().len(), 1, "{tokens}");
}

#[test]
fn a_quota_is_that_of_one_project() {
    let project = two_projects();
    let root = make_admin(&project);
    let author = make_token(&project, "author", "author", Some("fraud"));
    let server = project.serve();
    let main = Asker { server: &server, token: Some(&root), project: None };
    let fraud = Asker { server: &server, token: Some(&author), project: None };
    let limit = |quotas: Json| {
        let (status, said) = main.ask("POST", "/projects/fraud/quotas", &quotas);
        assert_eq!(status, 200, "{said}");
    };
    limit(json!({ "requests_per_s": 0 }));
    assert_eq!(seats(&fraud), Err((429, "quota_requests".to_owned())));
    assert_eq!(seats(&main), Ok(160));
    limit(json!({ "requests_per_s": null, "components": 1 }));
    assert_eq!(seats(&fraud), Ok(7));
    let component = std::fs::read(super::project::component("tail_number")).unwrap();
    let (status, refused) = fraud.upload(&component);
    assert_eq!((status, refused["code"].as_str()), (413, Some("quota_components")), "{refused}");
    assert!(refused["detail"].as_str().unwrap().contains("`fraud`"), "{refused}");
    assert_eq!(main.upload(&component).0, 201);
}

/// Whoever is let in to one project names no file of another, and none outside.
#[test]
fn files_of_other_projects_are_out_of_reach() {
    let project = two_projects();
    let tokens = [("fraud", "author"), ("fraud", "admin"), ("default", "author"), ("default", "admin")]
        .map(|(of, role)| (of, role, make_token(&project, of, role, Some(of))));
    let main_file = project.path("data/planes.csv");
    let other_file = project.path("projects/fraud/data/planes.csv");
    let server = project.serve();
    for (of, role, token) in &tokens {
        let asker = Asker { server: &server, token: Some(token), project: None };
        let foreign = if *of == "fraud" { &main_file } else { &other_file };
        // Whoever reads a folder reads what is in it.
        let above = project.path("");
        for spine in [
            foreign.to_str().unwrap(),
            above.to_str().unwrap(),
            "../../data/planes.csv",
            ".eadem/projects/fraud/registry.sqlite",
        ] {
            let spec = json!({ "service": "planes@1", "spine": spine, "output": "out.parquet" });
            let (status, problem) = asker.ask("POST", "/jobs/dataset", &spec);
            // In the folder of the other project there is no such file.
            let is_inside = *of == "fraud" && spine.starts_with(".eadem");
            let expected = if is_inside { (400, "malformed_job") } else { (403, "foreign_file") };
            let code = problem["code"].as_str().unwrap_or_default();
            assert_eq!((status, code), expected, "{role} of {of}, {spine}: {problem}");
        }
        let copy = json!({ "out": foreign.with_file_name("copy").to_str().unwrap() });
        let (status, problem) = asker.ask("POST", "/jobs/backup", &copy);
        let code = if *role == "admin" { "foreign_file" } else { "role_too_low" };
        assert_eq!((status, problem["code"].as_str()), (403, Some(code)), "{role} of {of}");
    }
}

/// What a source reads is read with the server's rights, so whoever is let in to one project names only what is that one's.
#[test]
fn a_team_works_from_afar_and_reads_nothing_of_another_project() {
    let project = two_projects();
    let root = make_admin(&project);
    let author = make_token(&project, "author", "author", Some("fraud"));
    let foreign = project.path("data/planes.csv");
    let server = project.serve();
    // The team's own folder, on another machine.
    let team = Project::new();
    team.add_component("plane_profile");
    let apply = |source: &str, variables: &[(&str, &str)]| {
        team.write(
            "features/planes.toml",
            DEFINITIONS.replace(&format!("csv = {{ path = \"data\" }}\n{TYPES}"), source),
        );
        let mut command = team.command(&["apply", "--server", &format!("http://{}", server.address)]);
        let output = command.envs(variables.iter().copied()).output().unwrap();
        (output.status.success(), super::project::texts(&output).1)
    };
    let own = format!("csv = {{ path = \"data/planes.csv\" }}\n{TYPES}");
    let others = format!("csv = {{ path = \"{}\" }}\n{TYPES}", foreign.display());
    let database = "postgres = { url_env = \"EADEM_REGISTRY_PASSWORD\", query = \"select 1\" }";
    let as_author = [("EADEM_TOKEN", author.as_str())];
    let as_root = [("EADEM_TOKEN", root.as_str()), ("EADEM_PROJECT", "fraud")];
    assert_eq!(apply(&own, &as_author), (true, String::new()));
    let (applied, said) = apply(&others, &as_author);
    assert!(!applied && said.contains("is not in the project's folder"), "{said}");
    let (applied, said) = apply(database, &as_author);
    assert!(!applied && said.contains("no variable of the project `fraud`"), "{said}");
    // Of `fraud_eu`, whose name begins like this one's.
    project.succeed(&["project", "create", "fraud_eu"]);
    let (applied, said) = apply(&database.replace("EADEM_REGISTRY_PASSWORD", "FRAUD_EU_URL"), &as_author);
    assert!(!applied && said.contains("no variable of the project `fraud`"), "{said}");
    let (applied, said) = apply(&database.replace("EADEM_REGISTRY_PASSWORD", "FRAUD_URL"), &as_author);
    assert!(!applied && said.contains("the environment variable FRAUD_URL"), "{said}");
    // What somebody else put there stays usable.
    assert_eq!(apply(&others, &as_root), (true, String::new()));
    assert_eq!(apply(&others, &as_author), (true, String::new()));
}
