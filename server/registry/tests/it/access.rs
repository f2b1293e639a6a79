//! Tokens, projects, and the trail: what is told, and what is found when somebody touches it.

use std::collections::BTreeMap;

use eadem_registry::{
    Acceptance, Actor, NewToken, Quota, Registry, RegistryAddress, RegistryError, Role, TrailEntry, TrailEvent,
    TrailFilter, TrailHead, TrailOutcome,
};
use eadem_values::Digest;
use serde_json::json;
use sqlx::{AnyConnection, Connection};

use crate::support::{Company, NOW_US, a_connection_to, a_new_place, a_new_registry, company, weather_transform};

fn new_token(id: &str) -> NewToken {
    NewToken {
        id: id.to_owned(),
        name: format!("token {id}"),
        role: Role::Author,
        project: None,
        secret_hash: Digest::of(id.as_bytes()),
        expires_at_us: None,
    }
}

fn actor() -> Actor {
    Actor {
        token_id: Some("t0".to_owned()),
        name: "ci".to_owned(),
        project: Some("default".to_owned()),
        address: Some("192.0.2.7".to_owned()),
        request_id: Some("r-1".to_owned()),
    }
}

async fn all(registry: &Registry) -> Vec<TrailEntry> {
    registry.trail(&TrailFilter { limit: 1_000, ..TrailFilter::default() }).await.unwrap()
}

#[tokio::test]
async fn a_token_is_made_revoked_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::connect(&a_new_registry(folder.path())).await.unwrap();
    let before = registry.access_revision().await.unwrap();
    let acting = registry.acting(actor());
    let made = acting.create_token(&new_token("a"), NOW_US).await.unwrap();
    assert_eq!((made.created_by.as_str(), made.role, made.created_at_us), ("ci", Role::Author, NOW_US));
    assert!(acting.create_token(&new_token("a"), NOW_US).await.unwrap_err().to_string().contains("exists already"));
    let (revision, tokens) = registry.access().await.unwrap();
    assert_eq!((revision, tokens.len()), (before + 1, 1));
    assert_eq!(tokens[0].secret_hash, Digest::of(b"a"));

    registry.note_tokens_used(&[("a".to_owned(), NOW_US + 5)]).await.unwrap();
    registry.note_tokens_used(&[("a".to_owned(), NOW_US + 4)]).await.unwrap();
    assert_eq!(registry.token("a").await.unwrap().last_used_at_us, Some(NOW_US + 5), "what was later stays");
    assert_eq!(registry.access_revision().await.unwrap(), before + 1, "that it was used is no news");

    let ended = acting.revoke_token("a", NOW_US + 9).await.unwrap();
    assert_eq!((ended.revoked_at_us, ended.revoked_by.as_deref()), (Some(NOW_US + 9), Some("ci")));
    assert!(!ended.is_valid_at(NOW_US));
    let again = registry.revoke_token("a", NOW_US + 10).await.unwrap();
    assert_eq!(again, ended, "the first one stays");
    assert!(registry.revoke_token("b", NOW_US).await.unwrap_err().is_not_found());
    assert_eq!(registry.access_revision().await.unwrap(), before + 2);

    let entries = all(&registry).await;
    let told: Vec<(&str, &str)> = entries.iter().map(|entry| (entry.verb.as_str(), entry.object.as_str())).collect();
    assert_eq!(told, [("create token", "token a"), ("revoke token", "token a")]);
    let made = &entries[0];
    assert_eq!(
        (made.token_id.as_deref(), made.name.as_str(), made.address.as_deref(), made.request_id.as_deref()),
        (Some("t0"), "ci", Some("192.0.2.7"), Some("r-1"))
    );
    assert_eq!((made.before, made.after.is_some()), (None, true));
    assert_eq!(entries[1].before, made.after, "nothing happened to it in between");
    assert_ne!(entries[1].after, made.after);
}

#[tokio::test]
async fn a_token_ends_at_its_instant() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::connect(&a_new_registry(folder.path())).await.unwrap();
    let expiring = |expires_at_us| NewToken { expires_at_us: Some(expires_at_us), ..new_token("a") };
    let refused = registry.create_token(&expiring(NOW_US), NOW_US).await.unwrap_err().to_string();
    assert!(refused.contains("expired already"), "{refused}");
    let made = registry.create_token(&expiring(NOW_US + 1), NOW_US).await.unwrap();
    assert!(made.is_valid_at(NOW_US) && !made.is_valid_at(NOW_US + 1));
    for name in ["", " ", "two\nlines", &"x".repeat(101)] {
        let unfit = NewToken { name: name.to_owned(), ..new_token("b") };
        assert!(registry.create_token(&unfit, NOW_US).await.unwrap_err().is_callers_fault(), "{name}");
    }
    let nowhere = NewToken { project: Some("nowhere".to_owned()), ..new_token("c") };
    assert!(registry.create_token(&nowhere, NOW_US).await.unwrap_err().is_not_found());
    assert_eq!(registry.tokens().await.unwrap().len(), 1);
}

#[tokio::test]
async fn projects_have_names_and_quotas() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::connect(&a_new_registry(folder.path())).await.unwrap();
    registry.create_project("fraud", NOW_US).await.unwrap();
    assert!(registry.create_project("fraud", NOW_US).await.unwrap_err().to_string().contains("exists already"));
    for name in ["", "Fraud", "9", "a b", "a/b", "a-b", &"x".repeat(33)] {
        assert!(registry.create_project(name, NOW_US).await.unwrap_err().is_callers_fault(), "{name}");
    }
    let set = |most: Option<u64>| BTreeMap::from([(Quota::Jobs, Some(2)), (Quota::RequestsPerS, most)]);
    let project = registry.set_quotas("fraud", &set(Some(100)), NOW_US).await.unwrap();
    assert_eq!(project.quotas, BTreeMap::from([(Quota::Jobs, 2), (Quota::RequestsPerS, 100)]));
    let project = registry.set_quotas("fraud", &set(None), NOW_US).await.unwrap();
    assert_eq!(project.quotas, BTreeMap::from([(Quota::Jobs, 2)]));
    let told = all(&registry).await.len();
    registry.set_quotas("fraud", &set(None), NOW_US).await.unwrap();
    assert_eq!(all(&registry).await.len(), told, "nothing changed, so there is nothing to tell");
    assert!(registry.set_quotas("nobody", &set(None), NOW_US).await.unwrap_err().is_not_found());
    let names: Vec<String> = registry.projects().await.unwrap().into_iter().map(|project| project.name).collect();
    assert_eq!(names, ["default", "fraud"]);
    let token = NewToken { project: Some("fraud".to_owned()), ..new_token("a") };
    assert_eq!(registry.create_token(&token, NOW_US).await.unwrap().project.as_deref(), Some("fraud"));
}

/// Whatever changes what others read is told, with what stood there before and after.
#[tokio::test]
async fn every_change_has_its_entry() {
    let mut company_registry = Company::found().await;
    let uploads = all(&company_registry.registry).await;
    assert_eq!(uploads.iter().filter(|entry| entry.verb == "upload").count(), 3);
    company_registry.registry = company_registry.registry.acting(actor());
    company_registry.apply(&company()).await;
    let registry = &company_registry.registry;
    let applied: Vec<TrailEntry> = all(registry).await.into_iter().filter(|entry| entry.verb == "apply").collect();
    assert!(applied.len() > 5, "{applied:?}");
    for entry in &applied {
        assert_eq!((entry.before, entry.after.is_some(), entry.name.as_str()), (None, true, "ci"), "{entry:?}");
    }
    company_registry.apply(&company()).await;
    let registry = &company_registry.registry;
    assert_eq!(all(registry).await.len(), uploads.len() + applied.len(), "nothing changed");

    let mut changed = weather_transform();
    changed.doc = "Another text.".to_owned();
    company_registry.upload(&changed).await;
    company_registry.apply(&company()).await;
    let registry = &company_registry.registry;
    let entries = all(registry).await;
    let view = entries.iter().rfind(|entry| entry.object.starts_with("view airport_weather@")).unwrap();
    let first = applied.iter().find(|entry| entry.object == "view airport_weather@1").unwrap();
    assert_eq!((view.object.as_str(), view.before), ("view airport_weather@2", first.after));
    assert!(view.after.is_some() && view.after != first.after);

    registry.create_job("j", "backfill", &json!({}), NOW_US).await.unwrap();
    registry.ask_job_to_cancel("j", NOW_US).await.unwrap();
    let verbs: Vec<String> = all(registry).await.into_iter().map(|entry| entry.verb).rev().take(2).collect();
    assert_eq!(verbs, ["cancel job", "start job"]);
    let verdict = registry.verify_trail(None).await.unwrap();
    assert_eq!((verdict.faults, verdict.head), (vec![], registry.trail_head().await.unwrap()));
}

/// What is not done is not told, and what is told is done.
#[tokio::test]
async fn a_change_that_is_refused_leaves_no_entry() {
    let mut company_registry = Company::found().await;
    let plan = company_registry.plan(&company()).await.unwrap();
    company_registry.apply(&company()).await;
    let before = company_registry.registry.trail_head().await.unwrap();
    let stale = company_registry.registry.apply(&plan, NOW_US).await;
    assert!(stale.is_err());
    company_registry.second_process().await;
    assert_eq!(company_registry.second.unwrap().trail_head().await.unwrap(), before);
}

#[tokio::test]
async fn writers_in_several_processes_make_one_chain() {
    let company_registry = Company::found().await;
    let before = company_registry.registry.trail_head().await.unwrap();
    let writers = futures::future::join_all((0..4).map(|_| company_registry.another_process())).await;
    let writes = writers.iter().enumerate().map(async |(writer, registry)| {
        for number in 0..10 {
            let event = TrailEvent {
                outcome: TrailOutcome::Refused,
                count: number + 1,
                ..TrailEvent::done("GET /jobs", format!("{writer}"), "no_credential")
            };
            registry.note_refusals(&[(actor(), event)], NOW_US).await.unwrap();
        }
    });
    futures::future::join_all(writes).await;
    let verdict = company_registry.registry.verify_trail(Some(before)).await.unwrap();
    assert_eq!((verdict.faults, verdict.entries), (vec![], before.sequence + 40));
}

#[tokio::test]
async fn the_trail_is_read_in_pages() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::connect(&a_new_registry(folder.path())).await.unwrap();
    for number in 0..5_i64 {
        registry.create_token(&new_token(&format!("{number}")), NOW_US + number).await.unwrap();
    }
    let sequences = async |filter: TrailFilter| -> Vec<u64> {
        registry.trail(&filter).await.unwrap().iter().map(|entry| entry.sequence).collect()
    };
    let page = TrailFilter { limit: 2, ..TrailFilter::default() };
    assert_eq!(sequences(page.clone()).await, [1, 2]);
    assert_eq!(sequences(TrailFilter { after: 2, ..page.clone() }).await, [3, 4]);
    assert_eq!(sequences(TrailFilter { newest_first: true, ..page.clone() }).await, [5, 4]);
    assert_eq!(sequences(TrailFilter { since_us: Some(NOW_US + 3), limit: 9, ..page }).await, [4, 5]);
}

/// A trail of six entries, with the triggers out of the way that keep it from being changed by mistake.
async fn a_trail_to_touch() -> (tempfile::TempDir, Registry, AnyConnection, TrailHead) {
    let folder = tempfile::tempdir().unwrap();
    let (address, schema) = a_new_place(folder.path());
    let registry = Registry::connect(&address).await.unwrap();
    for number in 0..6_i64 {
        registry.create_token(&new_token(&format!("{number}")), NOW_US + number).await.unwrap();
    }
    let head = registry.trail_head().await.unwrap();
    let mut connection = a_connection_to(&address, &schema).await;
    let is_file = matches!(address, RegistryAddress::File(_));
    let touching = ["UPDATE trail SET name = 'x'", "DELETE FROM trail", "TRUNCATE trail"];
    for touched in touching.into_iter().take(if is_file { 2 } else { 3 }) {
        let refused = sqlx::query(touched).execute(&mut connection).await.unwrap_err().to_string();
        assert!(refused.contains("only added to"), "{refused}");
    }
    let statements: &[&str] = match is_file {
        true => &["DROP TRIGGER trail_is_not_changed", "DROP TRIGGER trail_is_not_deleted"],
        false => &["DROP TRIGGER trail_is_not_changed ON trail"],
    };
    for statement in statements {
        sqlx::query(*statement).execute(&mut connection).await.unwrap();
    }
    (folder, registry, connection, head)
}

/// What a check finds after these statements, as (entry, words).
async fn faults_after(statements: &[&'static str], with_head: bool) -> Vec<(u64, String)> {
    let (_folder, registry, mut connection, head) = a_trail_to_touch().await;
    assert_eq!(registry.verify_trail(Some(head)).await.unwrap().faults, []);
    for statement in statements {
        sqlx::query(*statement).execute(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
    let verdict = registry.verify_trail(with_head.then_some(head)).await.unwrap();
    registry.close().await;
    verdict.faults.into_iter().map(|fault| (fault.sequence, fault.what)).collect()
}

#[tokio::test]
async fn every_touched_entry_is_found() {
    // Each column by itself, so that none is left out of the hash.
    for statement in [
        "UPDATE trail SET at_us = at_us + 1 WHERE sequence = 3",
        "UPDATE trail SET token_id = 'x' WHERE sequence = 3",
        "UPDATE trail SET name = 'somebody else' WHERE sequence = 3",
        "UPDATE trail SET project = 'x' WHERE sequence = 3",
        "UPDATE trail SET address = '' WHERE sequence = 3",
        "UPDATE trail SET request_id = '' WHERE sequence = 3",
        "UPDATE trail SET verb = 'x' WHERE sequence = 3",
        "UPDATE trail SET object = 'x' WHERE sequence = 3",
        "UPDATE trail SET digest_before = digest_after WHERE sequence = 3",
        "UPDATE trail SET digest_after = NULL WHERE sequence = 3",
        "UPDATE trail SET outcome = 'refused' WHERE sequence = 3",
        "UPDATE trail SET detail = '' WHERE sequence = 3",
        "UPDATE trail SET event_count = 2 WHERE sequence = 3",
        "UPDATE trail SET hash = previous_hash WHERE sequence = 3",
        "UPDATE trail SET previous_hash = hash WHERE sequence = 3",
        "UPDATE trail SET outcome = 'maybe' WHERE sequence = 3",
    ] {
        let faults = faults_after(&[statement], false).await;
        assert!(faults.iter().any(|(sequence, _)| (3..=4).contains(sequence)), "{statement}: {faults:?}");
    }
}

#[tokio::test]
async fn what_was_removed_exchanged_or_cut_off_is_found() {
    let in_between = faults_after(&["DELETE FROM trail WHERE sequence IN (2, 3)"], false).await;
    assert_eq!(in_between[0], (2, "entries 2 to 3 are missing".to_owned()));
    let first = faults_after(&["DELETE FROM trail WHERE sequence = 1"], false).await;
    assert_eq!(first[0], (1, "entries 1 to 1 are missing".to_owned()));
    let cut = faults_after(&["DELETE FROM trail WHERE sequence > 4"], false).await;
    assert_eq!(cut, [(5, "entries 5 to 6 were cut off the end".to_owned())]);
    let all = faults_after(&["DELETE FROM trail"], false).await;
    assert_eq!(all, [(1, "entries 1 to 6 were cut off the end".to_owned())]);
    let exchanged = faults_after(
        &[
            "UPDATE trail SET sequence = 100 WHERE sequence = 3",
            "UPDATE trail SET sequence = 3 WHERE sequence = 4",
            "UPDATE trail SET sequence = 4 WHERE sequence = 100",
        ],
        false,
    )
    .await;
    assert!(exchanged.iter().any(|(sequence, _)| *sequence == 3), "{exchanged:?}");
}

/// Whoever also sets back where the trail says that it ends is found by an end that was kept elsewhere.
#[tokio::test]
async fn an_end_that_was_kept_elsewhere_finds_what_nothing_else_can() {
    let cut: &[&str] = &[
        "DELETE FROM trail WHERE sequence > 4",
        "UPDATE trail_head SET sequence = 4, hash = (SELECT hash FROM trail WHERE sequence = 4)",
    ];
    let unseen = faults_after(cut, false).await;
    assert_eq!(unseen, []);
    let seen = faults_after(cut, true).await;
    assert_eq!(seen, [(6, "this entry was there when it was kept elsewhere, and is missing".to_owned())]);
}

#[tokio::test]
async fn what_is_over_its_quota_is_not_stored() {
    let company_registry = Company::found().await;
    let registry = &company_registry.registry;
    let set = async |quota: Quota, most: u64| {
        registry.set_quotas("default", &BTreeMap::from([(quota, Some(most))]), NOW_US).await.unwrap();
    };
    set(Quota::Components, 3).await;
    let refused = registry.check_upload(1).await.unwrap_err();
    assert!(matches!(refused, RegistryError::OverQuota { quota: Quota::Components, most: 3, .. }), "{refused}");
    let stored = registry.put_transform(b"one more", &weather_transform(), &Acceptance::default(), NOW_US).await;
    assert!(matches!(stored, Err(RegistryError::OverQuota { .. })));
    assert_eq!(registry.transforms(None).await.unwrap().len(), 3);
    set(Quota::Components, 4).await;
    registry.put_transform(b"one more", &weather_transform(), &Acceptance::default(), NOW_US).await.unwrap();

    set(Quota::Jobs, 1).await;
    registry.create_job("a", "backfill", &json!({}), NOW_US).await.unwrap();
    let refused = registry.create_job("b", "backfill", &json!({}), NOW_US).await.unwrap_err();
    assert!(matches!(refused, RegistryError::OverQuota { quota: Quota::Jobs, .. }), "{refused}");
    // One that nobody is at keeps no other from its turn.
    let later_us = NOW_US + 60_000_000;
    registry.create_job("b", "backfill", &json!({}), later_us).await.unwrap();
    assert!(registry.reopen_job("a", later_us).await.is_err());
}
