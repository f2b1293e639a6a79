//! Erasures: for which entities everything up to an instant is gone, and stays gone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use eadem_values::{Digest, EntityKey};
use serde_json::Value as Json;
use sqlx::{AssertSqlSafe, Row};

use super::jobs::insert_job;
use super::trail::TrailEvent;
use super::{ROWS_PER_STATEMENT, Registry, Session, read_digest, rows_of_parameters, unsigned};
use crate::error::RegistryError;

/// Every erasure at one revision of the registry, by salted hash.
#[derive(Debug, Clone, Default)]
pub struct Erasures {
    entities: HashMap<String, Arc<EntityErasures>>,
    revision: u64,
}

/// The erasures of one entity type.
#[derive(Debug, Clone, Default)]
pub struct EntityErasures {
    entity: String,
    salt: Vec<u8>,
    up_to_us: HashMap<Digest, i64>,
    latest_us: i64,
}

impl Erasures {
    /// The instant (µs since the epoch) up to which the rows of this entity are erased; `None` if none are.
    pub fn up_to_us(&self, entity: &str, key: &EntityKey) -> Option<i64> {
        self.entities.get(entity)?.up_to_us(key)
    }

    /// Those of one entity type; `None` if it has none.
    pub fn of(&self, entity: &str) -> Option<&Arc<EntityErasures>> {
        self.entities.get(entity)
    }

    /// How often erasures had been recorded by then.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether nothing was ever erased.
    pub fn is_empty(&self) -> bool {
        self.entities.is_empty()
    }
}

impl EntityErasures {
    /// The instant (µs since the epoch) up to which the rows of this entity are erased; `None` if none are.
    pub fn up_to_us(&self, key: &EntityKey) -> Option<i64> {
        self.up_to_us.get(&key_hash(&self.salt, &self.entity, key)).copied()
    }

    /// The latest instant up to which any entity is erased: rows after it all stay.
    pub fn latest_us(&self) -> i64 {
        self.latest_us
    }

    /// How many entities have erased rows.
    pub fn count(&self) -> usize {
        self.up_to_us.len()
    }
}

/// The erasures that this process knows.
#[derive(Default)]
pub(super) struct ErasureCache {
    known: RwLock<Option<Arc<Erasures>>>,
    /// How often erasures were recorded, as far as this process has heard.
    heard: AtomicU64,
    /// Held by the one that reads them.
    reading: tokio::sync::Mutex<()>,
}

impl ErasureCache {
    pub(super) fn hear_of(&self, erasures_revision: u64) {
        self.heard.fetch_max(erasures_revision, Ordering::AcqRel);
    }

    /// All erasures that this process has heard of, if they are known.
    fn all(&self) -> Option<Arc<Erasures>> {
        let heard = self.heard.load(Ordering::Acquire);
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().filter(|known| known.revision >= heard).map(Arc::clone)
    }

    fn learn(&self, read: Arc<Erasures>) {
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Some(read);
    }
}

/// An entity that a job of erasure is to find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErasedEntity {
    /// Its key.
    pub key: EntityKey,
    /// Rows with an event time up to this one are erased.
    pub up_to_us: i64,
}

/// SHA-256 of salt, entity type, a zero byte and the canonical key. Names of entities have no zero byte.
fn key_hash(salt: &[u8], entity: &str, key: &EntityKey) -> Digest {
    let mut bytes = salt.to_vec();
    bytes.extend_from_slice(entity.as_bytes());
    bytes.push(0);
    key.encode_into(&mut bytes);
    Digest::of(&bytes)
}

impl Registry {
    /// Creates a job of erasure and records its erasures, all or nothing: from then on the rows of each entity with event time
    /// ≤ `up_to_us`, present or arriving later, are gone for readers and writers. Merged by maximum. The keys themselves are
    /// kept only until the job is done.
    ///
    /// # Errors
    /// A job of this id exists.
    pub async fn begin_erasure(&self, job: &NewErasure<'_>, now_us: i64) -> Result<(), RegistryError> {
        let mut change = self.change().await?;
        insert_job(&mut change, job.id, job.kind, job.spec, now_us).await?;
        // The keys themselves have no place where nothing is ever deleted.
        let detail = format!("job {}, {} entities", job.id, job.entities.len());
        change.record(TrailEvent::done("erase", format!("entity {}", job.entity), detail), now_us).await?;
        let salt = read_salt(&mut change).await?;
        // The greatest instant of each: one statement may not change a row twice.
        let mut entities: BTreeMap<Vec<u8>, (Digest, i64)> = BTreeMap::new();
        for ErasedEntity { key, up_to_us } in job.entities {
            let entity = (key_hash(&salt, job.entity, key), *up_to_us);
            let known = entities.entry(key.encode()).or_insert(entity);
            known.1 = known.1.max(*up_to_us);
        }
        let entities: Vec<(Vec<u8>, (Digest, i64))> = entities.into_iter().collect();
        for entities in entities.chunks(ROWS_PER_STATEMENT) {
            insert_erasures(&mut change, job.entity, entities, now_us).await?;
            insert_erased_entities(&mut change, job, entities).await?;
        }
        sqlx::query("UPDATE registry_state SET erasures_revision = erasures_revision + 1")
            .execute(change.sql())
            .await?;
        change.commit_and_announce().await?;
        Ok(())
    }

    /// The entities of a job of erasure that is not done.
    ///
    /// # Errors
    /// The database failed.
    pub async fn erased_entities(&self, job: &str) -> Result<Vec<ErasedEntity>, RegistryError> {
        let rows = sqlx::query("SELECT key, up_to_us FROM erasure_entity WHERE job_id = $1 ORDER BY key")
            .bind(job)
            .fetch_all(self.readers())
            .await?;
        let read = |row: &sqlx::any::AnyRow| {
            let key: Vec<u8> = row.try_get("key")?;
            let key = EntityKey::decode(&key).map_err(|error| RegistryError::damaged(error.to_string()))?;
            Ok(ErasedEntity { key, up_to_us: row.try_get("up_to_us")? })
        };
        rows.iter().map(read).collect()
    }

    /// Forgets the entities of a job of erasure: it has found them all.
    ///
    /// # Errors
    /// The database failed.
    pub async fn forget_erased_entities(&self, job: &str) -> Result<(), RegistryError> {
        let mut change = self.change().await?;
        sqlx::query("DELETE FROM erasure_entity WHERE job_id = $1").bind(job).execute(change.sql()).await?;
        change.commit_quietly().await
    }

    /// Notes of training sets that an erasure takes away files that they were made of. The first such erasure stays noted.
    ///
    /// # Errors
    /// No such training set.
    pub async fn note_datasets_erased(
        &self,
        datasets: &BTreeSet<String>,
        job: &str,
        now_us: i64,
    ) -> Result<(), RegistryError> {
        let mut change = self.change().await?;
        for dataset in datasets {
            sqlx::query(
                "INSERT INTO dataset_erasure (dataset_id, job_id, erased_at_us) VALUES ($1, $2, $3)
                 ON CONFLICT (dataset_id) DO NOTHING",
            )
            .bind(dataset.as_str())
            .bind(job)
            .bind(now_us)
            .execute(change.sql())
            .await?;
        }
        change.commit_quietly().await
    }

    /// The job of erasure that has taken away files of a training set, and when; `None`: none has.
    ///
    /// # Errors
    /// The database failed.
    pub async fn dataset_erased_by(&self, dataset: &str) -> Result<Option<(String, i64)>, RegistryError> {
        let row = sqlx::query("SELECT job_id, erased_at_us FROM dataset_erasure WHERE dataset_id = $1")
            .bind(dataset)
            .fetch_optional(self.readers())
            .await?;
        row.map(|row| Ok((row.try_get("job_id")?, row.try_get("erased_at_us")?))).transpose()
    }

    /// The training sets of which a job of erasure was the first to take away files.
    ///
    /// # Errors
    /// The database failed.
    pub async fn datasets_erased_by(&self, job: &str) -> Result<BTreeSet<String>, RegistryError> {
        let ids: Vec<String> = sqlx::query_scalar("SELECT dataset_id FROM dataset_erasure WHERE job_id = $1")
            .bind(job)
            .fetch_all(self.readers())
            .await?;
        Ok(ids.into_iter().collect())
    }

    /// All erasures, for readers and writers to apply, as of the last revision that this process has heard of. They are read
    /// again only where one was recorded since: of everything else the database is not asked, which may be gone meanwhile.
    ///
    /// # Errors
    /// The database failed.
    pub async fn erasures(&self) -> Result<Arc<Erasures>, RegistryError> {
        let known = &self.shared.erasures;
        if let Some(erasures) = known.all() {
            return Ok(erasures);
        }
        // One reads, and whoever waits for it finds what it has read.
        let _reads = known.reading.lock().await;
        match known.all() {
            Some(erasures) => Ok(erasures),
            None => self.read_erasures().await,
        }
    }

    /// All erasures that were recorded before this call: for writers, which another process's erasure must not miss.
    ///
    /// # Errors
    /// The database failed.
    pub async fn erasures_now(&self) -> Result<Arc<Erasures>, RegistryError> {
        self.shared.refresh().await?;
        self.erasures().await
    }

    async fn read_erasures(&self) -> Result<Arc<Erasures>, RegistryError> {
        let mut snapshot = self.snapshot().await?;
        let row = sqlx::query("SELECT erasures_revision, erasure_salt FROM registry_state");
        let row = row.fetch_one(snapshot.sql()).await?;
        let (erasures_revision, salt): (i64, Vec<u8>) =
            (row.try_get("erasures_revision")?, row.try_get("erasure_salt")?);
        let rows = sqlx::query("SELECT entity, key_hash, up_to_us FROM erasure").fetch_all(snapshot.sql()).await?;
        let mut entities: HashMap<String, EntityErasures> = HashMap::new();
        for row in rows {
            let entity: String = row.try_get("entity")?;
            let up_to_us = row.try_get("up_to_us")?;
            let of_entity = entities.entry(entity.clone()).or_insert_with(|| EntityErasures {
                entity,
                salt: salt.clone(),
                up_to_us: HashMap::new(),
                latest_us: i64::MIN,
            });
            of_entity.up_to_us.insert(read_digest(row.try_get("key_hash")?)?, up_to_us);
            of_entity.latest_us = of_entity.latest_us.max(up_to_us);
        }
        let entities = entities.into_iter().map(|(entity, erasures)| (entity, Arc::new(erasures))).collect();
        let erasures = Arc::new(Erasures { entities, revision: unsigned(erasures_revision)? });
        self.shared.erasures.learn(Arc::clone(&erasures));
        Ok(erasures)
    }
}

/// What [`Registry::begin_erasure`] begins.
#[derive(Debug, Clone, Copy)]
pub struct NewErasure<'a> {
    /// The job's id.
    pub id: &'a str,
    /// Its kind.
    pub kind: &'a str,
    /// What is kept of what it was asked to do.
    pub spec: &'a Json,
    /// The entity type.
    pub entity: &'a str,
    /// Which entities of it, and up to when.
    pub entities: &'a [ErasedEntity],
}

async fn read_salt(session: &mut Session) -> Result<Vec<u8>, RegistryError> {
    Ok(sqlx::query_scalar("SELECT erasure_salt FROM registry_state").fetch_one(session.sql()).await?)
}

/// Records that rows of these entities, by their canonical keys, are erased.
async fn insert_erasures(
    session: &mut Session,
    entity: &str,
    entities: &[(Vec<u8>, (Digest, i64))],
    now_us: i64,
) -> Result<(), RegistryError> {
    let mut query = sqlx::query(AssertSqlSafe(format!(
        "INSERT INTO erasure (entity, key_hash, up_to_us, created_at_us) VALUES {}
         ON CONFLICT (entity, key_hash) DO UPDATE SET up_to_us = excluded.up_to_us
             WHERE excluded.up_to_us > erasure.up_to_us",
        rows_of_parameters(entities.len(), 4)
    )))
    .persistent(entities.len() == ROWS_PER_STATEMENT);
    for (_, (hash, up_to_us)) in entities {
        query = query.bind(entity).bind(hash.as_bytes().as_slice()).bind(*up_to_us).bind(now_us);
    }
    query.execute(session.sql()).await?;
    Ok(())
}

/// Keeps the keys themselves for the job to find.
async fn insert_erased_entities(
    session: &mut Session,
    job: &NewErasure<'_>,
    entities: &[(Vec<u8>, (Digest, i64))],
) -> Result<(), RegistryError> {
    let mut query = sqlx::query(AssertSqlSafe(format!(
        "INSERT INTO erasure_entity (job_id, entity, key, up_to_us) VALUES {}",
        rows_of_parameters(entities.len(), 4)
    )))
    .persistent(entities.len() == ROWS_PER_STATEMENT);
    for (key, (_, up_to_us)) in entities {
        query = query.bind(job.id).bind(job.entity).bind(key.as_slice()).bind(*up_to_us);
    }
    query.execute(session.sql()).await?;
    Ok(())
}
