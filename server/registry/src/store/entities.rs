//! Entities: a name, and the immutable shape that it has now.

use sqlx::Row;

use super::{Registry, Session, load_tags, read_name, save_tags};
use crate::digest::entity_digest;
use crate::error::{ObjectKind, RegistryError};
use crate::model::{About, Entity, JoinKey};
use eadem_values::KeyType;

impl Registry {
    /// All entities, by name.
    ///
    /// # Errors
    /// The database failed.
    pub async fn entities(&self) -> Result<Vec<Entity>, RegistryError> {
        let mut snapshot = self.snapshot().await?;
        let names: Vec<String> =
            sqlx::query_scalar("SELECT name FROM entity ORDER BY name").fetch_all(snapshot.sql()).await?;
        let mut entities = Vec::with_capacity(names.len());
        for name in names {
            entities.extend(load_entity(&mut snapshot, &name).await?);
        }
        Ok(entities)
    }

    /// An entity type, as it stands now.
    ///
    /// # Errors
    /// No entity of this name.
    pub async fn entity(&self, name: &str) -> Result<Entity, RegistryError> {
        let mut snapshot = self.snapshot().await?;
        let entity = load_entity(&mut snapshot, name).await?;
        match entity {
            Some(entity) => Ok(entity),
            None => Err(unknown_entity(&mut snapshot, name).await?),
        }
    }
}

pub(crate) async fn unknown_entity(connection: &mut Session, name: &str) -> Result<RegistryError, RegistryError> {
    let names: Vec<String> = sqlx::query_scalar("SELECT name FROM entity").fetch_all(connection.sql()).await?;
    let hint = crate::definitions::did_you_mean(name, names.iter().map(String::as_str));
    Ok(RegistryError::not_found(ObjectKind::Entity, name, hint))
}

pub(crate) async fn load_entity(connection: &mut Session, name: &str) -> Result<Option<Entity>, RegistryError> {
    let row = sqlx::query("SELECT shape_id, doc, owner FROM entity WHERE name = $1")
        .bind(name)
        .fetch_optional(connection.sql())
        .await?;
    let Some(row) = row else { return Ok(None) };
    let mut entity = load_shape(connection, row.try_get("shape_id")?).await?;
    entity.about = About {
        doc: row.try_get("doc")?,
        owner: row.try_get("owner")?,
        tags: load_tags(connection, "entity", name).await?,
    };
    Ok(Some(entity))
}

/// The entity that a shape describes, without what people say about it.
pub(crate) async fn load_shape(connection: &mut Session, shape_id: i64) -> Result<Entity, RegistryError> {
    let name: String = sqlx::query_scalar("SELECT name FROM entity_shape WHERE shape_id = $1")
        .bind(shape_id)
        .fetch_one(connection.sql())
        .await?;
    let rows = sqlx::query("SELECT name, key_type FROM entity_key WHERE shape_id = $1 ORDER BY position")
        .bind(shape_id)
        .fetch_all(connection.sql())
        .await?;
    let mut keys = Vec::with_capacity(rows.len());
    for row in rows {
        let key_type: String = row.try_get("key_type")?;
        keys.push(JoinKey { name: row.try_get("name")?, key_type: read_name(&key_type, key_type_of)? });
    }
    Ok(Entity { name, keys, about: About::default() })
}

fn key_type_of(name: &str) -> Option<KeyType> {
    match name {
        "utf8" => Some(KeyType::Utf8),
        "int64" => Some(KeyType::Int64),
        _ => None,
    }
}

/// The row of this shape, made if it is new.
pub(crate) async fn save_shape(connection: &mut Session, entity: &Entity) -> Result<i64, RegistryError> {
    let digest = entity_digest(entity);
    let known: Option<i64> = sqlx::query_scalar("SELECT shape_id FROM entity_shape WHERE digest = $1")
        .bind(digest.as_bytes().as_slice())
        .fetch_optional(connection.sql())
        .await?;
    if let Some(shape_id) = known {
        return Ok(shape_id);
    }
    let shape_id: i64 =
        sqlx::query_scalar("INSERT INTO entity_shape (name, digest) VALUES ($1, $2) RETURNING shape_id")
            .bind(&entity.name)
            .bind(digest.as_bytes().as_slice())
            .fetch_one(connection.sql())
            .await?;
    for (position, key) in (0_i64..).zip(&entity.keys) {
        sqlx::query("INSERT INTO entity_key (shape_id, position, name, key_type) VALUES ($1, $2, $3, $4)")
            .bind(shape_id)
            .bind(position)
            .bind(&key.name)
            .bind(key.key_type.to_string())
            .execute(connection.sql())
            .await?;
    }
    Ok(shape_id)
}

pub(crate) async fn save_entity(connection: &mut Session, entity: &Entity) -> Result<(), RegistryError> {
    let shape_id = save_shape(connection, entity).await?;
    sqlx::query(
        "INSERT INTO entity (name, shape_id, doc, owner) VALUES ($1, $2, $3, $4)
         ON CONFLICT (name) DO UPDATE SET shape_id = excluded.shape_id, doc = excluded.doc, owner = excluded.owner",
    )
    .bind(&entity.name)
    .bind(shape_id)
    .bind(&entity.about.doc)
    .bind(&entity.about.owner)
    .execute(connection.sql())
    .await?;
    save_tags(connection, "entity", &entity.name, &entity.about).await
}
