//! The same suite on a real PostgreSQL server, and what only that one has.
//!
//! One test starts the server (`tests/services/postgres.sh`) and runs all the others again, in a process of their own that
//! is told where it is.

use std::process::Command;
use std::time::Duration;

use eadem_registry::{Acceptance, PostgresAddress, Registry, RegistryAddress};

use crate::postgres_server::Postgres;
use crate::support::{Company, NOW_US, POSTGRES, context_transform, weather_transform};

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
    let mut heard = other.changes();
    let before = *heard.borrow_and_update();
    company.registry.put_transform(b"news", &weather_transform(), &Acceptance::default(), NOW_US).await.unwrap();
    let told = tokio::time::timeout(Duration::from_secs(30), heard.wait_for(|revision| *revision > before)).await;
    assert_eq!(*told.unwrap().unwrap(), before + 1);
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
        assert_eq!(registry.revision().await.unwrap(), 6);
    }
}

#[test]
fn an_address_is_understood_or_refused_without_its_password() {
    let address = PostgresAddress::parse("postgres://me:hunter2@db.example:5433/features?sslmode=require").unwrap();
    assert!(address.has_password());
    let shown = format!("{address:?} {}", address.redacted());
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
    for schema in ["", "Eadem", "a-b", "a\"b", &"x".repeat(64)] {
        assert!(address.clone().in_schema(schema).is_err(), "{schema}");
    }
}
