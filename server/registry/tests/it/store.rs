//! Transforms, jobs, epochs, datasets, erasures, and the revision that servers follow.

use eadem_registry::model::{Placement, ViewRef};
use eadem_registry::{
    Acceptance, ChunkWork, DatasetRecord, EpochState, ErasedEntity, Erasures, JobState, NewErasure, NewWorker,
    RecordedWork, Registry, RegistryError, WorkerReport,
};
use eadem_values::{Digest, EntityKey, KeyValue};
use serde_json::json;

use crate::support::{Company, FEATURES, NOW_US, company, company_with, weather_transform};

#[tokio::test]
async fn a_component_is_stored_once() {
    let company_registry = Company::found().await;
    let registry = &company_registry.registry;
    let acceptance = Acceptance {
        strict_nan: true,
        laws_corpus: 3,
        laws_seed: u64::MAX,
        laws_rows: 1000,
        fuel_per_row: Some(42),
        nanoseconds_per_row: None,
        nanoseconds_per_call: Some(1_300),
        memory_bytes: Some(1 << 20),
        measured_rows: Some(1_024),
    };
    let (digest, is_new) = registry.put_transform(b"bytes", &weather_transform(), &acceptance, NOW_US).await.unwrap();
    assert!(is_new);
    assert_eq!(digest, Digest::of(b"bytes"));
    let again = registry.put_transform(b"bytes", &weather_transform(), &Acceptance::default(), 7).await.unwrap();
    assert_eq!(again, (digest, false));
    let record = registry.transform(&digest).await.unwrap();
    assert_eq!(record.acceptance, acceptance, "the first verdict stays");
    assert_eq!((record.component_bytes, record.uploaded_at_us), (5, NOW_US));
    assert_eq!(*record.description, weather_transform(), "every constraint comes back as it was");
    assert!(registry.component(&Digest::of(b"other")).await.unwrap_err().is_not_found());
}

fn worker(id: &str, home: Option<&str>) -> NewWorker {
    NewWorker { id: id.to_owned(), label: format!("process of {id}"), home: home.map(str::to_owned) }
}

/// Two processes share a job: no part is with both, and what a dead one held is free when its lease has ended, not before.
#[tokio::test]
async fn parts_are_claimed_under_leases_that_end() {
    const LEASE_US: i64 = 100;
    let company_registry = Company::found().await;
    let registry = &company_registry.registry;
    registry.create_job("j", "backfill", &json!({}), 0).await.unwrap();
    let parts: Vec<String> = ["p0", "p1", "p2"].map(str::to_owned).to_vec();
    let stranger = registry.claim_part("j", "a", &parts, 0, LEASE_US).await.unwrap_err();
    assert!(matches!(stranger, RegistryError::Conflict(_)), "{stranger}");
    registry.join_job("j", &worker("a", Some("here")), 0, LEASE_US).await.unwrap();
    registry.join_job("j", &worker("b", None), 0, LEASE_US).await.unwrap();
    let claim = async |who: &str, now_us: i64| {
        let claim = registry.claim_part("j", who, &parts, now_us, LEASE_US).await.unwrap();
        (claim.part, claim.done.len())
    };
    let part = |name: &str| Some(name.to_owned());
    assert_eq!(claim("a", 0).await, (part("p0"), 0));
    assert_eq!(claim("b", 1).await, (part("p1"), 0));
    assert_eq!(claim("b", 2).await, (part("p2"), 0));
    assert_eq!(claim("a", 3).await, (None, 0), "its own parts are not given out twice either");
    let work = ChunkWork { worker: "b".to_owned(), rows: 7, refused: 1 };
    assert!(registry.record_chunk("j", "p1", &json!(1), Some(&work), 4).await.unwrap());
    registry.release_part("j", "b", "p2").await.unwrap();
    assert_eq!(claim("b", 5).await, (part("p2"), 1));

    // `b` lives, `a` does not: at 103 its lease ends.
    let report = WorkerReport { rows: 9, refused: 1, rows_per_s: 2.5 };
    registry.renew_lease("j", "b", &report, &json!({ "done": 7 }), 50, LEASE_US).await.unwrap();
    assert_eq!(claim("b", 102).await, (None, 1));
    assert_eq!(claim("b", 103).await, (part("p0"), 0));
    let activity = registry.job_activity("j", 103).await.unwrap();
    let ids: Vec<&str> = activity.workers.iter().map(|worker| worker.id.as_str()).collect();
    assert_eq!((ids, activity.workers[0].report), (vec!["b"], report));
    assert_eq!(activity.recorded, [RecordedWork { worker: "b".to_owned(), chunks: 1, rows: 7, refused: 1 }]);
    assert_eq!(registry.job("j").await.unwrap().progress, json!({ "done": 7 }));

    // `a` was only slow: what it saves first counts, and nothing of it counts twice.
    let late = ChunkWork { worker: "a".to_owned(), rows: 5, refused: 0 };
    assert!(registry.record_chunk("j", "p0", &json!("a"), Some(&late), 104).await.unwrap());
    let other = ChunkWork { worker: "b".to_owned(), ..late };
    assert!(!registry.record_chunk("j", "p0", &json!("b"), Some(&other), 105).await.unwrap());
    assert_eq!(registry.chunk("j", "p0").await.unwrap().unwrap().result, json!("a"));
    assert_eq!(registry.chunk_names("j", "p").await.unwrap(), ["p0", "p1"]);

    assert_eq!(registry.jobs_at_work(202).await.unwrap().len(), 1);
    registry.leave_job("j", "b").await.unwrap();
    assert!(registry.jobs_at_work(202).await.unwrap().is_empty());
    registry.join_job("j", &worker("c", Some("here")), 300, LEASE_US).await.unwrap();
    registry.join_job("j", &worker("d", None), 300, LEASE_US).await.unwrap();
    registry.join_job("j", &worker("e", Some("elsewhere")), 300, LEASE_US).await.unwrap();
    // Whoever holds the directory now knows that `c` is gone; of the others only their leases tell.
    registry.forget_workers_of("here").await.unwrap();
    let left = registry.job_activity("j", 301).await.unwrap().workers;
    assert_eq!(left.iter().map(|worker| worker.id.as_str()).collect::<Vec<_>>(), ["d", "e"]);
    assert_eq!(claim("d", 301).await, (part("p2"), 2));
    registry.finish_job("j", JobState::Failed, &json!({}), 302).await.unwrap();
    assert!(registry.jobs_at_work(303).await.unwrap().is_empty(), "nobody works on what is closed");
    let closed = registry.renew_lease("j", "d", &report, &json!({}), 303, LEASE_US).await.unwrap_err();
    assert_eq!(closed.to_string(), "job `j` is failed already");
}

/// Either rows may become visible, or the job may be called off; not both.
#[tokio::test]
async fn a_commit_and_a_cancellation_exclude_each_other() {
    let company_registry = Company::found().await;
    let registry = &company_registry.registry;
    for job in ["commits", "stops"] {
        registry.create_job(job, "backfill", &json!({}), 0).await.unwrap();
    }
    assert!(registry.begin_commit("commits", 1).await.unwrap());
    registry.ask_job_to_cancel("commits", 2).await.unwrap();
    // Another process that is at it may still do what has begun.
    assert!(registry.begin_commit("commits", 3).await.unwrap());
    let refused = registry.finish_job("commits", JobState::Cancelled, &json!({}), 4).await.unwrap_err();
    assert!(refused.to_string().contains("too late to cancel"), "{refused}");
    assert!(registry.job("commits").await.unwrap().committing);
    registry.end_commit("commits", 5).await.unwrap();
    assert!(!registry.begin_commit("commits", 6).await.unwrap(), "what comes next is stopped");
    registry.finish_job("commits", JobState::Cancelled, &json!({}), 7).await.unwrap();

    registry.ask_job_to_cancel("stops", 8).await.unwrap();
    assert!(!registry.begin_commit("stops", 9).await.unwrap());
    registry.finish_job("stops", JobState::Cancelled, &json!({}), 10).await.unwrap();
    assert!(registry.begin_commit("stops", 11).await.unwrap_err().to_string().contains("cancelled already"));
    registry.reopen_job("stops", 12).await.unwrap();
    assert!(registry.begin_commit("stops", 13).await.unwrap());
}

#[tokio::test]
async fn jobs_keep_what_is_done() {
    let company_registry = Company::found().await;
    let registry = &company_registry.registry;
    registry.create_job("j1", "backfill", &json!({ "view": "a" }), 10).await.unwrap();
    registry.create_job("j2", "dataset", &json!({}), 20).await.unwrap();
    let twice = registry.create_job("j1", "backfill", &json!({}), 30).await.unwrap_err();
    assert!(matches!(twice, RegistryError::Conflict(_)));
    assert!(registry.record_chunk("j1", "0002", &json!({ "rows": 2 }), None, 11).await.unwrap());
    assert!(registry.record_chunk("j1", "0001", &json!({ "rows": 1 }), None, 12).await.unwrap());
    assert!(!registry.record_chunk("j1", "0001", &json!({ "rows": 9 }), None, 13).await.unwrap());
    let chunks = registry.list_chunks("j1").await.unwrap();
    assert_eq!(chunks.iter().map(|chunk| chunk.chunk.as_str()).collect::<Vec<_>>(), ["0001", "0002"]);
    assert_eq!(chunks[0].result, json!({ "rows": 1 }), "the first record stays");
    registry.set_job_progress("j1", &json!({ "done": 2 }), 14).await.unwrap();
    assert_eq!(registry.open_jobs().await.unwrap().iter().map(|job| job.id.as_str()).collect::<Vec<_>>(), ["j1", "j2"]);
    registry.ask_job_to_cancel("j2", 21).await.unwrap();
    assert!(registry.job("j2").await.unwrap().cancel_asked);
    registry.finish_job("j2", JobState::Cancelled, &json!(null), 22).await.unwrap();
    registry.finish_job("j1", JobState::Done, &json!({ "rows": 3 }), 15).await.unwrap();
    registry.finish_job("j1", JobState::Done, &json!({ "rows": 0 }), 16).await.unwrap();
    let job = registry.job("j1").await.unwrap();
    assert_eq!((job.state, job.outcome, job.changed_at_us), (JobState::Done, json!({ "rows": 3 }), 15));
    assert_eq!((job.progress, job.created_at_us), (json!({ "done": 2 }), 10));
    for refused in [
        registry.finish_job("j1", JobState::Failed, &json!("late"), 17).await.unwrap_err(),
        registry.record_chunk("j1", "0003", &json!({}), None, 17).await.unwrap_err(),
        registry.ask_job_to_cancel("j1", 17).await.unwrap_err(),
        registry.set_job_progress("j1", &json!({}), 17).await.unwrap_err(),
    ] {
        assert_eq!(refused.to_string(), "job `j1` is done already");
    }
    assert!(registry.open_jobs().await.unwrap().is_empty());
    assert_eq!(registry.reopen_job("j1", 18).await.unwrap_err().to_string(), "job `j1` is done already");
    registry.reopen_job("j2", 23).await.unwrap();
    let reopened = registry.job("j2").await.unwrap();
    assert_eq!((reopened.state, reopened.cancel_asked, reopened.outcome), (JobState::Open, false, json!(null)));
    assert_eq!(registry.jobs(None).await.unwrap().len(), 2);
    assert!(registry.job("j9").await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn epochs_switch_whole() {
    let company_registry = Company::found().await;
    company_registry.apply(&company()).await;
    let registry = &company_registry.registry;
    let view = ViewRef { name: "aircraft_legs".into(), version: 1 };
    assert_eq!(registry.current_epoch(&view).await.unwrap(), None);
    let before = registry.revision().await.unwrap();
    let first = registry.create_epoch(&view, Placement::OnWrite, 1).await.unwrap();
    let second = registry.create_epoch(&view, Placement::OnWrite, 2).await.unwrap();
    assert_eq!((first.epoch, second.epoch), (1, 2));
    assert_eq!(registry.revision().await.unwrap(), before, "nobody reads them yet, so servers need not follow");
    registry.make_epoch_current(&view, 1, 3).await.unwrap();
    assert_eq!(registry.revision().await.unwrap(), before + 1, "servers follow");
    registry.make_epoch_current(&view, 1, 3).await.unwrap();
    assert_eq!(registry.current_epoch(&view).await.unwrap().unwrap().epoch, 1);
    registry.make_epoch_current(&view, 2, 4).await.unwrap();
    let current = registry.current_epoch(&view).await.unwrap().unwrap();
    assert_eq!((current.epoch, current.placement), (2, Placement::OnWrite));
    let states: Vec<EpochState> =
        registry.epochs(Some(&view)).await.unwrap().into_iter().map(|epoch| epoch.state).collect();
    assert_eq!(states, [EpochState::Retired, EpochState::Current]);
    assert!(matches!(registry.make_epoch_current(&view, 1, 5).await.unwrap_err(), RegistryError::Conflict(_)));
    assert!(matches!(registry.retire_epoch(&view, 2, 5).await.unwrap_err(), RegistryError::Conflict(_)));
    assert!(registry.make_epoch_current(&view, 9, 5).await.unwrap_err().is_not_found());
    registry.forget_epoch(&view, 1).await.unwrap();
    registry.forget_epoch(&view, 2).await.unwrap();
    assert_eq!(registry.epochs(None).await.unwrap().len(), 1, "only a retired epoch is forgotten");
    assert_eq!(registry.create_epoch(&view, Placement::OnWrite, 6).await.unwrap().epoch, 3);
    let unknown = ViewRef { name: "aircraft_legs".into(), version: 9 };
    assert!(registry.create_epoch(&unknown, Placement::OnWrite, 6).await.unwrap_err().is_not_found());
}

/// What is served and its placement are one: requests that saw the version before read on in the epoch that they saw.
#[tokio::test]
async fn an_epoch_of_the_placement_that_is_asked_for_switches_it() {
    let company_registry = Company::found().await;
    let clamped = FEATURES.replace("ttl = \"2d\"", "ttl = \"2d\"\nvalidation = \"clamp\"");
    let placed = |placement: &str| {
        company_with(&clamped.replace("ttl = \"2d\"", &format!("ttl = \"2d\"\nplacement = \"{placement}\"")))
    };
    company_registry.apply(&placed("on_write")).await;
    let registry = &company_registry.registry;
    let view = ViewRef { name: "aircraft_legs".into(), version: 1 };
    let (on_write, on_read) = (Placement::OnWrite, Placement::OnRead);
    let placement = async || {
        let version = registry.view("aircraft_legs", Some(1)).await.unwrap();
        version.stored.as_ref().unwrap().deployment.placement
    };
    let read_in = async |placement| registry.epoch_in(&view, placement).await.unwrap().map(|epoch| epoch.epoch);
    registry.create_epoch(&view, on_write, 1).await.unwrap();
    assert_eq!(read_in(on_write).await, None, "nothing is loaded");
    registry.make_epoch_current(&view, 1, 2).await.unwrap();
    registry.create_epoch(&view, on_read, 3).await.unwrap();
    let unasked = registry.make_epoch_current(&view, 2, 4).await.unwrap_err();
    assert!(matches!(unasked, RegistryError::Conflict(_)), "{unasked}");
    assert_eq!((placement().await, read_in(on_write).await, read_in(on_read).await), (on_write, Some(1), None));

    company_registry.apply(&placed("on_read")).await;
    let online = registry.switch_placement(&view, on_read, 5).await.unwrap_err();
    assert!(matches!(online, RegistryError::Conflict(_)), "{online}");
    let before = registry.revision().await.unwrap();
    registry.make_epoch_current(&view, 2, 6).await.unwrap();
    assert_eq!(registry.revision().await.unwrap(), before + 1, "in one revision");
    assert_eq!((placement().await, read_in(on_write).await, read_in(on_read).await), (on_read, Some(1), Some(2)));
    registry.forget_epoch(&view, 1).await.unwrap();
    assert_eq!(read_in(on_write).await, None);
    // Back again.
    company_registry.apply(&placed("on_write")).await;
    registry.create_epoch(&view, on_write, 7).await.unwrap();
    registry.make_epoch_current(&view, 3, 8).await.unwrap();
    assert_eq!((placement().await, read_in(on_write).await, read_in(on_read).await), (on_write, Some(3), Some(2)));
    let version = registry.view("aircraft_legs", Some(1)).await.unwrap();
    let deployment = &version.stored.as_ref().unwrap().deployment;
    let then = [5, 6, 7, 8].map(|at_us| deployment.placement_at(at_us));
    assert_eq!(then, [on_write, on_read, on_read, on_write]);
}

#[tokio::test]
async fn erasures_merge_by_maximum() {
    let company_registry = Company::found().await;
    let registry = &company_registry.registry;
    let key = EntityKey(vec![KeyValue::Utf8("N14228".into())]);
    assert!(registry.erasures().await.unwrap().is_empty());
    for (id, up_to_us) in [("first", 100), ("second", 50)] {
        let entities = [ErasedEntity { key: key.clone(), up_to_us }];
        registry.begin_erasure(&erasure(id, &entities), 1).await.unwrap();
    }
    let erasures = registry.erasures().await.unwrap();
    assert_eq!(erasures.up_to_us("aircraft", &key), Some(100));
    assert_eq!(erasures.up_to_us("airport", &key), None);
    assert_eq!(erasures.up_to_us("aircraft", &EntityKey(vec![KeyValue::Utf8("N1".into())])), None);
}

fn erasure<'a>(id: &'a str, entities: &'a [ErasedEntity]) -> NewErasure<'a> {
    NewErasure { id, kind: "erase", spec: &serde_json::Value::Null, entity: "aircraft", entities }
}

/// More than one statement takes, with keys that come again in the same and in another one.
#[tokio::test]
async fn many_entities_are_erased_at_once() {
    const ENTITIES: i64 = 1_203;
    let company_registry = Company::found().await;
    let registry = &company_registry.registry;
    let key = |number: i64| EntityKey(vec![KeyValue::Int64(number)]);
    let mut entities: Vec<ErasedEntity> =
        (0..ENTITIES).map(|number| ErasedEntity { key: key(number), up_to_us: 1_000 + number }).collect();
    entities.extend(
        [(7, 5_000), (7, 4_000), (1_100, 1), (0, 6_000)]
            .map(|(number, up_to_us)| ErasedEntity { key: key(number), up_to_us }),
    );
    registry.begin_erasure(&erasure("many", &entities), 1).await.unwrap();
    let erasures = registry.erasures().await.unwrap();
    assert_eq!(erasures.of("aircraft").unwrap().count() as i64, ENTITIES);
    for number in 0..ENTITIES {
        let expected = match number {
            0 => 6_000,
            7 => 5_000,
            other => 1_000 + other,
        };
        assert_eq!(erasures.up_to_us("aircraft", &key(number)), Some(expected), "{number}");
    }
    let kept = registry.erased_entities("many").await.unwrap();
    assert_eq!(kept.len() as i64, ENTITIES);
    assert!(kept.contains(&ErasedEntity { key: key(7), up_to_us: 5_000 }));
}

/// Whoever asks at a new revision reads them once for all, and not at all where nothing was erased.
#[tokio::test]
async fn erasures_are_read_again_only_after_one() {
    let company_registry = Company::found().await;
    let registry = &company_registry.registry;
    let entities =
        ["N1", "N2"].map(|name| ErasedEntity { key: EntityKey(vec![KeyValue::Utf8(name.into())]), up_to_us: 9 });
    registry.begin_erasure(&erasure("first", &entities[..1]), 1).await.unwrap();
    let all_at_once = async || {
        let asked = futures::future::join_all((0..8).map(|_| registry.erasures())).await;
        let asked: Vec<std::sync::Arc<Erasures>> = asked.into_iter().map(Result::unwrap).collect();
        assert!(
            asked.iter().all(|erasures| std::sync::Arc::ptr_eq(erasures, &asked[0])),
            "they were read several times"
        );
        std::sync::Arc::clone(&asked[0])
    };
    let known = all_at_once().await;
    let other = company_registry.another_process().await;
    let known_there = other.erasures().await.unwrap();
    company_registry.apply(&company()).await;
    assert!(std::sync::Arc::ptr_eq(&known, &all_at_once().await), "nothing was erased since");
    // Whoever has heard that need not ask: the database may be gone.
    other.revision().await.unwrap();
    other.close().await;
    assert!(std::sync::Arc::ptr_eq(&known_there, &other.erasures().await.unwrap()), "nothing was erased since");

    registry.begin_erasure(&erasure("second", &entities[1..]), 2).await.unwrap();
    assert_eq!(all_at_once().await.of("aircraft").unwrap().count(), 2);
    // Also one of another process.
    let other = company_registry.another_process().await;
    assert_eq!(other.erasures().await.unwrap().of("aircraft").unwrap().count(), 2);
    let third = [ErasedEntity { key: EntityKey(vec![KeyValue::Utf8("N3".into())]), up_to_us: 9 }];
    other.begin_erasure(&erasure("third", &third), 3).await.unwrap();
    assert_eq!(registry.erasures_now().await.unwrap().of("aircraft").unwrap().count(), 3);
}

#[tokio::test]
async fn a_job_of_erasure_keeps_its_keys_until_it_is_done_and_everybody_hears_of_it() {
    let company_registry = Company::found().await;
    let registry = &company_registry.registry;
    let key = |name: &str| EntityKey(vec![KeyValue::Utf8(name.into())]);
    let entities = [("N2", 200), ("N1", 100), ("N2", 150)];
    let entities = entities.map(|(name, up_to_us)| ErasedEntity { key: key(name), up_to_us });
    let spec = json!({ "entity": "aircraft", "entities": 3 });
    let job = NewErasure { id: "e", kind: "erase", spec: &spec, entity: "aircraft", entities: &entities };
    let known = registry.erasures().await.unwrap();
    assert!(known.is_empty() && known.of("aircraft").is_none());
    let before = registry.revision().await.unwrap();
    registry.begin_erasure(&job, 5).await.unwrap();
    assert!(registry.revision().await.unwrap() > before, "servers follow");
    assert_eq!(registry.job("e").await.unwrap().spec, spec);

    let erasures = registry.erasures().await.unwrap();
    let of_aircraft = erasures.of("aircraft").unwrap();
    assert_eq!((of_aircraft.count(), of_aircraft.latest_us()), (2, 200));
    assert_eq!([of_aircraft.up_to_us(&key("N1")), of_aircraft.up_to_us(&key("N2"))], [Some(100), Some(200)]);
    assert!(erasures.of("airport").is_none());
    // It is read once for a revision.
    assert!(std::sync::Arc::ptr_eq(&erasures, &registry.erasures().await.unwrap()));
    assert!(std::sync::Arc::ptr_eq(&erasures, &registry.erasures_now().await.unwrap()));

    let kept = registry.erased_entities("e").await.unwrap();
    let wanted = [("N1", 100), ("N2", 200)].map(|(name, up_to_us)| ErasedEntity { key: key(name), up_to_us });
    assert_eq!(kept, wanted);
    registry.forget_erased_entities("e").await.unwrap();
    assert!(registry.erased_entities("e").await.unwrap().is_empty());
    assert_eq!(registry.erasures().await.unwrap().up_to_us("aircraft", &key("N1")), Some(100), "that stays");
    // All or nothing: the job exists.
    let later = [ErasedEntity { key: key("N3"), up_to_us: 1 }];
    let again = NewErasure { entities: &later, ..job };
    assert!(matches!(registry.begin_erasure(&again, 6).await.unwrap_err(), RegistryError::Conflict(_)));
    assert_eq!(registry.erasures_now().await.unwrap().up_to_us("aircraft", &key("N3")), None);
}

#[tokio::test]
async fn datasets_are_saved_once() {
    let company_registry = Company::found().await;
    company_registry.apply(&company()).await;
    let registry = &company_registry.registry;
    let dataset = DatasetRecord {
        id: "d".into(),
        name: "training".into(),
        service: Some(("departure_delay".into(), 1)),
        rows: 5,
        content_digest: Digest::of(b"content"),
        output: "/sets/training.parquet".into(),
        report: json!({ "statistics": null }),
        recipe: json!({ "files": ["a", "b"] }),
        columns: Vec::new(),
        created_at_us: NOW_US,
    };
    registry.record_dataset(&dataset).await.unwrap();
    registry.record_dataset(&dataset).await.unwrap();
    assert_eq!(registry.dataset("d").await.unwrap(), dataset);
    assert_eq!(registry.dataset("training").await.unwrap(), dataset);
    assert_eq!(registry.dataset_erased_by("d").await.unwrap(), None);
    let touched = std::collections::BTreeSet::from(["d".to_owned()]);
    let before = registry.revision().await.unwrap();
    registry.note_datasets_erased(&touched, "first", 7).await.unwrap();
    assert_eq!(registry.revision().await.unwrap(), before, "servers need not follow that");
    registry.note_datasets_erased(&touched, "second", 8).await.unwrap();
    assert_eq!(registry.dataset_erased_by("d").await.unwrap(), Some(("first".to_owned(), 7)));
    let other = DatasetRecord { content_digest: Digest::of(b"other"), ..dataset.clone() };
    assert!(matches!(registry.record_dataset(&other).await.unwrap_err(), RegistryError::Conflict(_)));
    let unknown = DatasetRecord { id: "e".into(), service: Some(("departure_delay".into(), 2)), ..dataset };
    assert!(registry.record_dataset(&unknown).await.unwrap_err().is_not_found());
    assert_eq!(registry.datasets().await.unwrap().len(), 1);
}

#[tokio::test]
async fn subscribers_hear_of_every_change() {
    let company_registry = Company::found().await;
    let registry = &company_registry.registry;
    let mut changes = registry.changes();
    let before = *changes.borrow_and_update();
    company_registry.apply(&company()).await;
    assert!(changes.has_changed().unwrap());
    let after = *changes.borrow_and_update();
    assert_eq!(after, before + 1);
    assert_eq!(registry.revision().await.unwrap(), after);
    registry.create_job("j", "backfill", &json!({}), 1).await.unwrap();
    assert!(!changes.has_changed().unwrap(), "servers need not follow jobs");
}

#[tokio::test]
async fn a_second_process_sees_what_the_first_applied() {
    let company = Company::found().await;
    let (writer, reader) = (&company.registry, company.another_process().await);
    let mut heard = reader.changes();
    heard.borrow_and_update();
    company.apply(&crate::support::company()).await;
    assert_eq!(reader.entities().await.unwrap().len(), writer.entities().await.unwrap().len());
    assert_eq!(reader.revision().await.unwrap(), writer.revision().await.unwrap());
    assert!(heard.has_changed().unwrap(), "asking for the revision tells subscribers");
}

/// Whatever the characters of its path may mean in a URL.
#[tokio::test]
async fn a_registry_lies_in_the_file_that_was_named() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["100% sure.db", "a%41b.db", "50%25.db", "what? #1.db"] {
        let file = folder.path().join(name);
        Registry::open(&file).await.unwrap().close().await;
        assert!(file.is_file(), "{name}: {:?}", std::fs::read_dir(folder.path()).unwrap().collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("registry.db");
    Registry::open(&file).await.unwrap().close().await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'later', 1, x'00', 0)",
    )
    .execute(&pool)
    .await
    .unwrap();
    pool.close().await;
    let error = Registry::open(&file).await.err().unwrap();
    assert!(matches!(error, RegistryError::NewerSchema { migration: 9999 }), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_registry_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("registry.db");
    std::fs::write(&file, "this is a text and certainly no database of any kind".repeat(40)).unwrap();
    let error = Registry::open(&file).await.err().unwrap();
    assert!(!error.is_callers_fault(), "{error}");
}
