//! The same suite on a real PostgreSQL server, and what only that one has.
//!
//! One test starts the server (`tests/services/postgres.sh`) and runs all the others again, in a process of their own that
//! is told where it is.

use std::process::Command;
use std::time::Duration;

use eadem_registry::{Acceptance, PostgresAddress, Registry, RegistryAddress};
use sqlx::postgres::PgListener;
use tokio::sync::watch;

use crate::postgres_server::Postgres;
use crate::support::{Company, NOW_US, POSTGRES, context_transform, parse};

/// What never happens fails its test.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn the_suite_on_postgres() {
    if std::env::var_os(POSTGRES).is_some() {
        return;
    }
    let server = Postgres::start();
    let tests = Command::new(std::env::current_exe().unwrap())
        // Each registry keeps some connections, and the server gives away a hundred.
        .args(["--include-ignored", "--show-output", "--test-threads", "4"])
        .env(POSTGRES, server.url())
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&tests.stdout), String::from_utf8_lossy(&tests.stderr));
    assert!(tests.status.success(), "{stdout}\n{stderr}");
    stdout.lines().filter(|line| line.starts_with("R2: ")).for_each(|line| println!("{line}"));
    assert!(stdout.contains("a_change_is_heard_of_without_asking ... ok"), "not every test was run: {stdout}");
}

#[tokio::test]
#[ignore = "run by the_suite_on_postgres, which starts the server"]
async fn a_change_is_heard_of_without_asking() {
    let company = Company::found().await;
    let other = company.another_process().await;
    assert_listens(&company, &mut other.changes(), 1_000_000).await;
    // And whoever changes something tells of it.
    let mut listener = PgListener::connect(&std::env::var(POSTGRES).unwrap()).await.unwrap();
    listener.listen(&channel(&company)).await.unwrap();
    company.apply(&parse(&[("features/places.toml", "[entity.place]\nkeys = { place = \"utf8\" }\n")]).unwrap()).await;
    let told = tokio::time::timeout(PATIENCE, listener.recv()).await.unwrap().unwrap();
    // And how often something was erased.
    assert_eq!(told.payload(), format!("{} 0", company.registry.revision().await.unwrap()));
}

fn channel(company: &Company) -> String {
    format!("eadem_registry_{}", company.address_text())
}

/// Waits until the other process hears of a revision that the registry has not reached, so that nobody who asks for it finds it.
async fn assert_listens(company: &Company, heard: &mut watch::Receiver<u64>, revision: u64) {
    let mut tables = company.tables().await;
    let listens = async {
        while *heard.borrow_and_update() < revision {
            let tell = format!("NOTIFY {}, '{revision} 0'", channel(company));
            sqlx::query(sqlx::AssertSqlSafe(tell)).execute(&mut tables).await.unwrap();
            // Who did not listen yet has missed it.
            let _ = tokio::time::timeout(Duration::from_millis(100), heard.changed()).await;
        }
    };
    tokio::time::timeout(PATIENCE, listens).await.expect("nobody listens");
}

/// Waits until the other process knows the revision that this one is at, without asking for it.
async fn assert_heard(company: &Company, heard: &mut watch::Receiver<u64>) {
    let revision = company.registry.revision().await.unwrap();
    let told = tokio::time::timeout(PATIENCE, heard.wait_for(|heard| *heard >= revision)).await;
    assert_eq!(*told.expect("nothing was heard of it").unwrap(), revision);
}

/// Until somebody has looked, the server takes tables for as small as they were.
#[tokio::test]
#[ignore = "run by the_suite_on_postgres, which starts the server"]
async fn after_much_was_applied_the_server_knows_how_large_tables_are() {
    let company = Company::found().await;
    let entity = |number: u32| format!("[entity.place_{number}]\nkeys = {{ place_{number} = \"utf8\" }}\n");
    let many: String = (0..500).map(entity).collect();
    company.apply(&parse(&[("features/places.toml", &many)]).unwrap()).await;
    let mut tables = company.tables().await;
    let counted = "SELECT CAST(reltuples AS bigint) FROM pg_class WHERE oid = CAST('entity' AS regclass)";
    let rows: i64 = sqlx::query_scalar(counted).fetch_one(&mut tables).await.unwrap();
    assert_eq!(rows, 500);
}

/// A message may be lost with the connection that it was to come by.
#[tokio::test]
#[ignore = "run by the_suite_on_postgres, which starts the server"]
async fn a_change_that_nobody_told_of_is_heard_of_in_the_end() {
    let company = Company::found().await;
    let other = company.another_process().await;
    let mut heard = other.changes();
    assert_heard(&company, &mut heard).await;
    let mut tables = company.tables().await;
    sqlx::query("UPDATE registry_state SET revision = revision + 1").execute(&mut tables).await.unwrap();
    assert_heard(&company, &mut heard).await;
}

#[tokio::test]
#[ignore = "run by the_suite_on_postgres, which starts the server"]
async fn changes_are_heard_of_after_the_connection_was_lost() {
    let company = Company::found().await;
    let other = company.another_process().await;
    let mut heard = other.changes();
    let mut tables = company.tables().await;
    for revision in [1_000_000, 2_000_000, 3_000_000] {
        assert_listens(&company, &mut heard, revision).await;
        let cut = format!(
            "SELECT CAST(count(pg_terminate_backend(pid)) AS BIGINT) FROM pg_stat_activity
             WHERE query LIKE 'LISTEN %{}%'",
            channel(&company)
        );
        let cut: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(cut)).fetch_one(&mut tables).await.unwrap();
        assert!(cut > 0, "nobody listened");
    }
    assert_listens(&company, &mut heard, 4_000_000).await;
}

/// Also one that is written otherwise in a URL, and where the URL has no place for it.
#[tokio::test]
#[ignore = "run by the_suite_on_postgres, which starts the server"]
async fn any_password_is_used_as_it_is_given() {
    const PASSWORDS: [&str; 3] = ["50%41 off", "a:b@c/d?e#f&g=h+i", "%"];
    let company = Company::found().await;
    let mut tables = company.tables().await;
    let server = std::env::var(POSTGRES).unwrap();
    let server = server.split_once('@').unwrap().1;
    let (host, database) = server.split_once('/').unwrap();
    let (host, port) = host.split_once(':').unwrap();
    sqlx::query("CREATE ROLE somebody LOGIN").execute(&mut tables).await.unwrap();
    sqlx::query("GRANT CREATE ON DATABASE test TO somebody").execute(&mut tables).await.unwrap();
    for (number, password) in PASSWORDS.into_iter().enumerate() {
        let set = format!("ALTER ROLE somebody PASSWORD '{password}'");
        sqlx::query(sqlx::AssertSqlSafe(set)).execute(&mut tables).await.unwrap();
        let address = PostgresAddress::parse(&format!("postgres://somebody@{host}:{port}/{database}")).unwrap();
        let address = address.in_schema(&format!("of_somebody_{number}")).unwrap();
        let with = |password: &str| RegistryAddress::Postgres(address.clone().with_password(password));
        assert!(Registry::connect(&with("another")).await.is_err());
        let shown = format!("{:?}", with(password));
        assert!(!shown.contains(password) && !shown.contains("password"), "{shown}");
        let registry = Registry::connect(&with(password)).await.unwrap();
        // It listens with the same password: only who listens asks by itself.
        let told = format!("UPDATE of_somebody_{number}.registry_state SET revision = 1");
        sqlx::query(sqlx::AssertSqlSafe(told)).execute(&mut tables).await.unwrap();
        let mut heard = registry.changes();
        let told = tokio::time::timeout(Duration::from_secs(30), heard.wait_for(|heard| *heard == 1)).await;
        told.expect("nothing was heard").unwrap();
        registry.close().await;
    }
}

/// Those who make a registry at the same moment all find one.
#[tokio::test]
#[ignore = "run by the_suite_on_postgres, which starts the server"]
async fn several_servers_may_start_at_once() {
    let address = PostgresAddress::parse(&std::env::var(POSTGRES).unwrap()).unwrap().in_schema("all_at_once").unwrap();
    let address = RegistryAddress::Postgres(address);
    let opened = futures::future::join_all((0..6).map(|_| Registry::connect(&address))).await;
    let registries: Vec<Registry> = opened.into_iter().map(Result::unwrap).collect();
    let uploads = registries.iter().enumerate().map(async |(number, registry)| {
        let bytes = format!("component {number}").into_bytes();
        registry.put_transform(&bytes, &context_transform(), &Acceptance::default(), NOW_US).await.unwrap();
    });
    futures::future::join_all(uploads).await;
    for registry in &registries {
        assert_eq!(registry.transforms(None).await.unwrap().len(), 6);
    }
}

#[test]
fn an_address_is_understood_or_refused_without_its_password() {
    let address = PostgresAddress::parse("postgres://me:hunter2@db.example:5433/features?sslmode=require").unwrap();
    assert!(address.has_password());
    let shown = format!("{address:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
    for (text, expected) in [
        ("mysql://me:hunter2@db/features", "begins with mysql://"),
        ("postgres://me:hunter2@db", "names no database"),
        ("postgres://me:hunter2@db/features?sslmod=require", "has the parameter `sslmod`"),
        ("postgres://me:hunter2@db/features?sslmode=perhaps", "the registry's address"),
        ("features", "is no URL"),
    ] {
        let error = PostgresAddress::parse(text).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains("hunter2"), "{text}: {error}");
    }
    for schema in ["", "Eadem", "a-b", "a\"b", &"x".repeat(49)] {
        let error = address.clone().in_schema(schema).unwrap_err().to_string();
        assert!(error.contains("at most 48 lower-case letters"), "{schema}: {error}");
    }
    // One more character, and nobody could be told of changes.
    assert!(address.in_schema(&"x".repeat(48)).is_ok());
}
