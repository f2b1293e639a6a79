//! Erasures: for which entities everything up to an instant is gone, and stays gone.

use std::collections::HashMap;

use eadem_values::{Digest, EntityKey};
use sqlx::Row;

use super::trail::TrailEvent;
use super::{Registry, read_digest};
use crate::error::RegistryError;

/// Every erasure at one revision of the registry, by salted hash.
#[derive(Debug, Clone, Default)]
pub struct Erasures {
    salt: Vec<u8>,
    up_to_us: HashMap<Digest, i64>,
}

impl Erasures {
    /// The instant (µs since the epoch) up to which the rows of this entity are erased; `None` if none are.
    pub fn up_to_us(&self, entity: &str, key: &EntityKey) -> Option<i64> {
        if self.up_to_us.is_empty() {
            return None;
        }
        self.up_to_us.get(&key_hash(&self.salt, entity, key)).copied()
    }

    /// Whether nothing was ever erased.
    pub fn is_empty(&self) -> bool {
        self.up_to_us.is_empty()
    }
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
    /// Erases the rows of an entity with event time ≤ `up_to_us`, present or arriving later. Merged by maximum.
    ///
    /// # Errors
    /// The database failed.
    pub async fn record_erasure(
        &self,
        entity: &str,
        key: &EntityKey,
        up_to_us: i64,
        now_us: i64,
    ) -> Result<(), RegistryError> {
        let mut change = self.change().await?;
        let salt: Vec<u8> =
            sqlx::query_scalar("SELECT erasure_salt FROM registry_state").fetch_one(change.sql()).await?;
        sqlx::query(
            "INSERT INTO erasure (entity, key_hash, up_to_us, created_at_us) VALUES ($1, $2, $3, $4)
             ON CONFLICT (entity, key_hash) DO UPDATE SET up_to_us = excluded.up_to_us
                 WHERE excluded.up_to_us > erasure.up_to_us",
        )
        .bind(entity)
        .bind(key_hash(&salt, entity, key).as_bytes().as_slice())
        .bind(up_to_us)
        .bind(now_us)
        .execute(change.sql())
        .await?;
        // The key itself has no place where nothing is ever deleted.
        let event = TrailEvent::done("erase", format!("entity {entity}"), "rows of one key");
        change.record(event.with_digests(None, Some(key_hash(&salt, entity, key))), now_us).await?;
        change.commit_and_announce().await?;
        Ok(())
    }

    /// All erasures, for readers and writers to apply.
    ///
    /// # Errors
    /// The database failed.
    pub async fn erasures(&self) -> Result<Erasures, RegistryError> {
        let mut snapshot = self.snapshot().await?;
        let salt = sqlx::query_scalar("SELECT erasure_salt FROM registry_state").fetch_one(snapshot.sql()).await?;
        let rows = sqlx::query("SELECT key_hash, up_to_us FROM erasure").fetch_all(snapshot.sql()).await?;
        let mut up_to_us = HashMap::with_capacity(rows.len());
        for row in rows {
            up_to_us.insert(read_digest(row.try_get("key_hash")?)?, row.try_get("up_to_us")?);
        }
        Ok(Erasures { salt, up_to_us })
    }
}
