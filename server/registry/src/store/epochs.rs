//! Online epochs: which online table of a view version is read, and which are being loaded.

use serde::{Deserialize, Serialize};
use sqlx::Row;

use super::views::view_version_id;
use super::{Registry, Session, read_name, unsigned};
use crate::error::{ObjectKind, RegistryError};
use crate::model::{Placement, ViewRef};

/// What an epoch is for at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EpochState {
    /// Written to, not read yet.
    Loading,
    /// Written to and read.
    Current,
    /// Neither; may be dropped.
    Retired,
}

/// One online table of a view version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// The view version.
    pub view: ViewRef,
    /// From 1, ascending.
    pub epoch: u32,
    /// Whether it holds features or bound inputs.
    pub placement: Placement,
    /// What it is for.
    pub state: EpochState,
    /// When it was made, in microseconds. Epochs of two registries may have one number.
    pub created_at_us: i64,
}

impl EpochState {
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "loading" => Some(Self::Loading),
            "current" => Some(Self::Current),
            "retired" => Some(Self::Retired),
            _ => None,
        }
    }
}

impl Registry {
    /// Opens a new epoch of a view version, to be loaded.
    ///
    /// # Errors
    /// No such view version.
    pub async fn create_epoch(
        &self,
        view: &ViewRef,
        placement: Placement,
        now_us: i64,
    ) -> Result<Epoch, RegistryError> {
        let mut change = self.change().await?;
        let id = require(&mut change, view).await?;
        let newest: Option<i64> = sqlx::query_scalar("SELECT max(epoch) FROM view_epoch WHERE view_version_id = $1")
            .bind(id)
            .fetch_one(change.sql())
            .await?;
        let epoch = newest.unwrap_or(0) + 1;
        sqlx::query(
            "INSERT INTO view_epoch (view_version_id, epoch, placement, state, created_at_us, changed_at_us)
             VALUES ($1, $2, $3, 'loading', $4, $5)",
        )
        .bind(id)
        .bind(epoch)
        .bind(placement.as_str())
        .bind(now_us)
        .bind(now_us)
        .execute(change.sql())
        .await?;
        // Nobody reads it yet.
        change.commit_quietly().await?;
        Ok(Epoch {
            view: view.clone(),
            epoch: unsigned(epoch)?,
            placement,
            state: EpochState::Loading,
            created_at_us: now_us,
        })
    }

    /// Makes a loaded epoch the current one; the one before is retired. Servers follow. Idempotent.
    ///
    /// # Errors
    /// No such view version or epoch, or one that was retired.
    pub async fn make_epoch_current(&self, view: &ViewRef, epoch: u32, now_us: i64) -> Result<(), RegistryError> {
        let mut change = self.change().await?;
        let id = require(&mut change, view).await?;
        match epoch_state(&mut change, id, epoch).await? {
            Some(EpochState::Current) => return Ok(()),
            Some(EpochState::Loading) => {}
            Some(EpochState::Retired) => {
                return Err(RegistryError::Conflict(format!("epoch {epoch} of {view} was retired; load a new one")));
            }
            None => return Err(RegistryError::not_found(ObjectKind::View, format!("{view} epoch {epoch}"), "")),
        }
        sqlx::query(
            "UPDATE view_epoch SET state = 'retired', changed_at_us = $1
                     WHERE view_version_id = $2 AND state = 'current'",
        )
        .bind(now_us)
        .bind(id)
        .execute(change.sql())
        .await?;
        sqlx::query(
            "UPDATE view_epoch SET state = 'current', changed_at_us = $1
                     WHERE view_version_id = $2 AND epoch = $3",
        )
        .bind(now_us)
        .bind(id)
        .bind(i64::from(epoch))
        .execute(change.sql())
        .await?;
        change.commit_and_announce().await?;
        Ok(())
    }

    /// Gives an epoch up that is still loading. Idempotent; a current one is refused.
    ///
    /// # Errors
    /// No such view version or epoch, or one that is current.
    pub async fn retire_epoch(&self, view: &ViewRef, epoch: u32, now_us: i64) -> Result<(), RegistryError> {
        let mut change = self.change().await?;
        let id = require(&mut change, view).await?;
        match epoch_state(&mut change, id, epoch).await? {
            Some(EpochState::Retired) => return Ok(()),
            Some(EpochState::Loading) => {}
            Some(EpochState::Current) => {
                return Err(RegistryError::Conflict(format!("epoch {epoch} of {view} is being served")));
            }
            None => return Err(RegistryError::not_found(ObjectKind::View, format!("{view} epoch {epoch}"), "")),
        }
        sqlx::query(
            "UPDATE view_epoch SET state = 'retired', changed_at_us = $1
                     WHERE view_version_id = $2 AND epoch = $3",
        )
        .bind(now_us)
        .bind(id)
        .bind(i64::from(epoch))
        .execute(change.sql())
        .await?;
        // Nobody has read it.
        change.commit_quietly().await
    }

    /// Forgets a retired epoch after its table was dropped. Its number is not used again while a later one exists.
    ///
    /// # Errors
    /// No such view version.
    pub async fn forget_epoch(&self, view: &ViewRef, epoch: u32) -> Result<(), RegistryError> {
        let mut change = self.change().await?;
        let id = require(&mut change, view).await?;
        sqlx::query(
            "DELETE FROM view_epoch WHERE view_version_id = $1 AND epoch = $2 AND state = 'retired'
                 AND epoch < (SELECT max(epoch) FROM view_epoch WHERE view_version_id = $3)",
        )
        .bind(id)
        .bind(i64::from(epoch))
        .bind(id)
        .execute(change.sql())
        .await?;
        change.commit_quietly().await
    }

    /// The epochs of one view version, or of all, by view, version and number.
    ///
    /// # Errors
    /// The database failed.
    pub async fn epochs(&self, view: Option<&ViewRef>) -> Result<Vec<Epoch>, RegistryError> {
        let rows = sqlx::query(
            "SELECT name, version, epoch, placement, state, view_epoch.created_at_us
             FROM view_epoch JOIN view_version USING (view_version_id) JOIN view USING (view_id)
             WHERE name = coalesce($1, name) AND version = coalesce($2, version) ORDER BY name, version, epoch",
        )
        .bind(view.map(|view| view.name.as_str()))
        .bind(view.map(|view| i64::from(view.version)))
        .fetch_all(self.readers())
        .await?;
        rows.into_iter()
            .map(|row| {
                let placement: String = row.try_get("placement")?;
                let state: String = row.try_get("state")?;
                Ok(Epoch {
                    view: ViewRef { name: row.try_get("name")?, version: unsigned(row.try_get("version")?)? },
                    epoch: unsigned(row.try_get("epoch")?)?,
                    placement: read_name(&placement, Placement::from_name)?,
                    state: read_name(&state, EpochState::from_name)?,
                    created_at_us: row.try_get("created_at_us")?,
                })
            })
            .collect()
    }

    /// The epoch that is read, if the view version was ever loaded.
    ///
    /// # Errors
    /// The database failed.
    pub async fn current_epoch(&self, view: &ViewRef) -> Result<Option<Epoch>, RegistryError> {
        let epochs = self.epochs(Some(view)).await?;
        Ok(epochs.into_iter().find(|epoch| epoch.state == EpochState::Current))
    }
}

async fn require(connection: &mut Session, view: &ViewRef) -> Result<i64, RegistryError> {
    let id = view_version_id(connection, view).await?;
    id.ok_or_else(|| RegistryError::not_found(ObjectKind::View, view.to_string(), ""))
}

async fn epoch_state(
    connection: &mut Session,
    view_version_id: i64,
    epoch: u32,
) -> Result<Option<EpochState>, RegistryError> {
    let state: Option<String> =
        sqlx::query_scalar("SELECT state FROM view_epoch WHERE view_version_id = $1 AND epoch = $2")
            .bind(view_version_id)
            .bind(i64::from(epoch))
            .fetch_optional(connection.sql())
            .await?;
    state.map(|state| read_name(&state, EpochState::from_name)).transpose()
}
