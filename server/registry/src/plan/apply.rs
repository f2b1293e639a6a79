//! Writing a plan, in one transaction.

use std::collections::HashMap;

use eadem_values::Digest;
use sqlx::Row;

use super::{Applied, Plan, PlannedAction, PlannedChange, ServiceWrite, ViewWrite, Writes};
use crate::digest::{entity_digest, source_digest};
use crate::error::{ObjectKind, RegistryError};
use crate::store::write::{Indexed, Indexer};
use crate::store::{Change, Registry, TrailEvent, changes_since, read, signed, unsigned, write};

/// Each takes some tens of rows, most of them for search: after so many the next apply would be planned by what tables held before.
const MANY_OBJECTS: usize = 500;

pub(super) async fn apply(registry: &Registry, plan: &Plan, now_us: i64) -> Result<Applied, RegistryError> {
    let mut change = registry.change().await?;
    let row = sqlx::query("SELECT definitions_revision FROM registry_state").fetch_one(change.sql()).await?;
    let current: u64 = unsigned(row.try_get("definitions_revision")?)?;
    let planned = plan.definitions_revision();
    if current != planned {
        let changes = changes_since(&mut change, planned).await?;
        return Err(RegistryError::Stale { planned, current, changes });
    }
    if plan.is_empty() {
        return Ok(Applied { definitions_revision: current, changed: false });
    }
    let mut indexer = Indexer::default();
    let before = digests_before(&mut change, plan).await?;
    for entity in &plan.writes.entities {
        write::save_entity(&mut change, entity).await?;
        indexer.add(&Indexed::new("entity", &entity.name, &entity.about));
    }
    for (source, columns) in &plan.writes.sources {
        write::save_source(&mut change, source, columns).await?;
        indexer.add(&Indexed::new("source", &source.name, &source.about));
    }
    for view in &plan.writes.views {
        write_view(&mut change, view, now_us).await?;
        indexer.add_view(&view.version.id.name, &view.version.about, &view.version.description);
    }
    for service in &plan.writes.services {
        write_service(&mut change, service, now_us).await?;
        indexer.add(&Indexed::new("service", &service.name, &service.about));
    }
    indexer.write(&mut change).await?;
    let told: Vec<(ObjectKind, &str, String)> =
        changed(plan).map(|planned| (planned.kind, planned.name.as_str(), planned.summary())).collect();
    let revision = change.note_definitions(&told, now_us).await?;
    tell_trail(&mut change, plan, &before, now_us).await?;
    record_acceptance(&mut change, plan, revision, now_us).await?;
    change.commit_and_announce().await?;
    if told.len() >= MANY_OBJECTS {
        registry.gather_statistics().await;
    }
    Ok(Applied { definitions_revision: revision, changed: true })
}

async fn write_view(change: &mut Change, view: &ViewWrite, now_us: i64) -> Result<(), RegistryError> {
    let version = &view.version;
    let view_id = write::save_view(change, &version.id.name, &version.about).await?;
    let version_id = match view.existing {
        Some(id) => id,
        None => write::insert_version(change, view_id, version, now_us).await?,
    };
    if let Some(stored) = &version.stored {
        write::save_deployment(change, version_id, &stored.deployment).await?;
    }
    write::save_upstreams(change, view_id, &view.upstreams).await?;
    write::set_head(change, view_id, version_id).await
}

async fn write_service(change: &mut Change, service: &ServiceWrite, now_us: i64) -> Result<(), RegistryError> {
    let service_id = write::save_service(change, &service.name, &service.about, &service.written).await?;
    let version_id = match service.existing {
        Some(id) => id,
        None => {
            write::insert_service_version(
                change,
                service_id,
                service.version,
                &service.digest,
                &service.entries,
                now_us,
            )
            .await?
        }
    };
    write::set_service_head(change, service_id, version_id).await
}

fn changed(plan: &Plan) -> impl Iterator<Item = &PlannedChange> {
    plan.report.changes.iter().filter(|planned| planned.action != PlannedAction::Unchanged)
}

/// What stands in the place of each object that changes, in the order of the plan.
async fn digests_before(change: &mut Change, plan: &Plan) -> Result<Vec<Option<Digest>>, RegistryError> {
    let mut digests = Vec::new();
    for planned in changed(plan) {
        digests.push(read::head_digest(change, planned.kind, &planned.name).await?);
    }
    Ok(digests)
}

/// What will stand there.
fn digests_after(plan: &Plan) -> HashMap<(ObjectKind, &str), Digest> {
    let Writes { entities, sources, views, services } = &plan.writes;
    let entities = entities.iter().map(|entity| ((ObjectKind::Entity, entity.name.as_str()), entity_digest(entity)));
    let sources = sources.iter().map(|(source, _)| ((ObjectKind::Source, source.name.as_str()), source_digest(source)));
    let views = views.iter().map(|view| ((ObjectKind::View, view.version.id.name.as_str()), view.version.digest));
    let services = services.iter().map(|service| ((ObjectKind::Service, service.name.as_str()), service.digest));
    entities.chain(sources).chain(views).chain(services).collect()
}

/// An entry of the trail for each object.
async fn tell_trail(
    change: &mut Change,
    plan: &Plan,
    before: &[Option<Digest>],
    now_us: i64,
) -> Result<(), RegistryError> {
    let after = digests_after(plan);
    let told = changed(plan).zip(before).map(|(planned, before)| {
        let version = planned.version.map_or(String::new(), |version| format!("@{version}"));
        let object = format!("{} {}{version}", planned.kind, planned.name);
        let after = after.get(&(planned.kind, planned.name.as_str())).copied();
        TrailEvent::done("apply", object, planned.summary()).with_digests(*before, after)
    });
    change.record_all(told.collect(), now_us).await
}

/// Notes why an effect beyond what the policy tolerates was accepted.
async fn record_acceptance(change: &mut Change, plan: &Plan, revision: u64, now_us: i64) -> Result<(), RegistryError> {
    let Some(accepted) = &plan.acceptance else { return Ok(()) };
    sqlx::query("INSERT INTO accepted_effect (definitions_revision, at_us, reason, effect) VALUES ($1, $2, $3, $4)")
        .bind(signed(revision)?)
        .bind(now_us)
        .bind(&accepted.reason)
        .bind(&accepted.effect)
        .execute(change.sql())
        .await?;
    let event = TrailEvent::done("accept effect", format!("definitions {revision}"), &accepted.reason);
    change.record(event, now_us).await?;
    Ok(())
}
