//! Online epochs: which online table of a view version is read, and which are being loaded.

use serde::{Deserialize, Serialize};
use sqlx::Row;

use super::views::view_version_id;
use super::{Change, Registry, Session, TrailEvent, read_name, unsigned};
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

    /// Makes a loaded epoch the current one; the one before is retired. Servers follow. Where the epoch has the placement
    /// that the view version is being switched to, that becomes its placement in the same revision. Idempotent.
    ///
    /// # Errors
    /// No such view version or epoch, one that was retired, or one of a placement that nobody asks for any more.
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
        let loaded = epoch_placement(&mut change, id, epoch).await?;
        if loaded != placements(&mut change, id).await?.0 {
            switch(&mut change, id, view, loaded, now_us).await?;
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

    /// Makes the placement that a view version is being switched to its own, where nothing of it is online. Idempotent.
    ///
    /// # Errors
    /// No such view version, one that shall not be switched to it, or one that is online: a loaded epoch switches it.
    pub async fn switch_placement(
        &self,
        view: &ViewRef,
        placement: Placement,
        now_us: i64,
    ) -> Result<(), RegistryError> {
        let mut change = self.change().await?;
        let id = require(&mut change, view).await?;
        if placements(&mut change, id).await?.0 == placement {
            return Ok(());
        }
        if is_online(&mut change, view).await? {
            let message = format!("{view} is online: an epoch of {placement} switches it; materialize it");
            return Err(RegistryError::Conflict(message));
        }
        switch(&mut change, id, view, placement, now_us).await?;
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

    /// The epoch that is read by whoever sees the view version in this placement: the current one, or where that has the other
    /// placement, because it was switched after a request had begun, the one that was current then.
    ///
    /// # Errors
    /// The database failed.
    pub async fn epoch_in(&self, view: &ViewRef, placement: Placement) -> Result<Option<Epoch>, RegistryError> {
        let epochs = self.epochs(Some(view)).await?;
        let Some(current) = epochs.iter().find(|epoch| epoch.state == EpochState::Current) else { return Ok(None) };
        if current.placement == placement {
            return Ok(Some(current.clone()));
        }
        let is_left = |epoch: &Epoch| epoch.placement == placement && epoch.state == EpochState::Retired;
        Ok(epochs.into_iter().rfind(is_left))
    }
}

/// Whether an epoch of the view version is read.
pub(crate) async fn is_online(connection: &mut Session, view: &ViewRef) -> Result<bool, RegistryError> {
    let epochs: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM view_epoch JOIN view_version USING (view_version_id) JOIN view USING (view_id)
         WHERE name = $1 AND version = $2 AND state = 'current'",
    )
    .bind(&view.name)
    .bind(i64::from(view.version))
    .fetch_one(connection.sql())
    .await?;
    Ok(epochs > 0)
}

/// The placement of a view version, and the one that it is being switched to.
async fn placements(connection: &mut Session, id: i64) -> Result<(Placement, Option<Placement>), RegistryError> {
    let (now, next): (String, Option<String>) =
        sqlx::query_as("SELECT placement, next_placement FROM view_deployment WHERE view_version_id = $1")
            .bind(id)
            .fetch_one(connection.sql())
            .await?;
    let next = next.map(|next| read_name(&next, Placement::from_name)).transpose()?;
    Ok((read_name(&now, Placement::from_name)?, next))
}

async fn epoch_placement(connection: &mut Session, id: i64, epoch: u32) -> Result<Placement, RegistryError> {
    let placement: String =
        sqlx::query_scalar("SELECT placement FROM view_epoch WHERE view_version_id = $1 AND epoch = $2")
            .bind(id)
            .bind(i64::from(epoch))
            .fetch_one(connection.sql())
            .await?;
    read_name(&placement, Placement::from_name)
}

async fn switch(change: &mut Change, id: i64, view: &ViewRef, to: Placement, now_us: i64) -> Result<(), RegistryError> {
    let (from, next) = placements(change, id).await?;
    if next != Some(to) {
        return Err(RegistryError::Conflict(format!(
            "{view} is placed {from} and nobody asks for {to} any more; its placement stays as it is"
        )));
    }
    sqlx::query(
        "INSERT INTO view_placement (view_version_id, position, placement, until_us)
         SELECT $1, count(*), $2, $3 FROM view_placement WHERE view_version_id = $4",
    )
    .bind(id)
    .bind(from.as_str())
    .bind(now_us)
    .bind(id)
    .execute(change.sql())
    .await?;
    sqlx::query("UPDATE view_deployment SET placement = $1, next_placement = NULL WHERE view_version_id = $2")
        .bind(to.as_str())
        .bind(id)
        .execute(change.sql())
        .await?;
    let event = TrailEvent::done("switch placement", format!("view {view}"), format!("{from} → {to}"));
    change.record(event, now_us).await
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
