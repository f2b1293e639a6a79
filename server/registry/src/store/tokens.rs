//! Tokens: what lets a request in. Of the secret only its hash is here.

use eadem_values::Digest;
use serde::{Deserialize, Serialize};
use sqlx::Row;

use super::projects::require_project;
use super::trail::TrailEvent;
use super::{Change, Registry, Session, SqlRow, read_digest, read_name, unsigned};
use crate::access::Role;
use crate::error::{ObjectKind, RegistryError};

/// Longer names are refused: they stand in listings and in each entry of the trail.
const NAME_CHARS_MAX: usize = 100;

/// A token that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    /// Chosen by whoever creates it; it is no secret.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The project that it is for; `None`: all.
    pub project: Option<String>,
    /// SHA-256 of the secret. A plain hash is enough, and right: the secret is 256 random bits, which nobody finds by trying
    /// however fast that goes, and a slow hash would cost every request.
    pub secret_hash: Digest,
    /// From when on it is no longer taken, µs since the epoch; `None`: never.
    pub expires_at_us: Option<i64>,
}

/// A token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// No secret.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The project that it is for; `None`: all.
    pub project: Option<String>,
    /// SHA-256 of the secret.
    #[serde(skip_serializing)]
    pub secret_hash: Digest,
    /// µs since the epoch.
    pub created_at_us: i64,
    /// The name of whoever made it.
    pub created_by: String,
    /// From when on it is no longer taken, µs since the epoch.
    pub expires_at_us: Option<i64>,
    /// Since when it is no longer taken, because somebody said so, µs since the epoch.
    pub revoked_at_us: Option<i64>,
    /// The name of whoever said so.
    pub revoked_by: Option<String>,
    /// When it was last seen with a request, µs since the epoch; up to a minute behind.
    pub last_used_at_us: Option<i64>,
}

impl TokenRecord {
    /// Whether requests with it are answered at this instant.
    pub fn is_valid_at(&self, now_us: i64) -> bool {
        self.revoked_at_us.is_none() && self.expires_at_us.is_none_or(|expires_at_us| now_us < expires_at_us)
    }
}

impl Registry {
    /// Makes a token.
    ///
    /// # Errors
    /// A name that is empty or too long, a project that is not there, or an id that exists.
    pub async fn create_token(&self, token: &NewToken, now_us: i64) -> Result<TokenRecord, RegistryError> {
        check_name(&token.name)?;
        if token.expires_at_us.is_some_and(|expires_at_us| expires_at_us <= now_us) {
            return Err(RegistryError::Invalid("a token that has expired already is of no use".to_owned()));
        }
        let mut change = self.change().await?;
        if let Some(project) = &token.project {
            require_project(&mut change, project).await?;
        }
        let created_by = change.actor().name.clone();
        let created = sqlx::query(
            "INSERT INTO token (token_id, name, role, project, secret_hash, created_at_us, created_by, expires_at_us)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
        )
        .bind(token.id.clone())
        .bind(token.name.clone())
        .bind(token.role.name())
        .bind(token.project.clone())
        .bind(token.secret_hash.as_bytes().to_vec())
        .bind(now_us)
        .bind(created_by)
        .bind(token.expires_at_us)
        .execute(change.sql())
        .await?;
        if created.rows_affected() == 0 {
            return Err(RegistryError::Conflict(format!("token `{}` exists already", token.id)));
        }
        let record = load_token(&mut change, &token.id).await?;
        let scope = record.project.as_deref().map_or("all projects".to_owned(), |name| format!("project {name}"));
        let detail = format!("`{}`, {} of {scope}", record.name, record.role.name());
        let event = TrailEvent::done("create token", object(&record.id), detail);
        change.record(event.with_digests(None, Some(digest(&record))), now_us).await?;
        change.commit_access().await?;
        Ok(record)
    }

    /// Ends a token; requests with it are refused from now on. What was ended before stays as it is.
    ///
    /// # Errors
    /// No such token.
    pub async fn revoke_token(&self, id: &str, now_us: i64) -> Result<TokenRecord, RegistryError> {
        let mut change = self.change().await?;
        let before = load_token(&mut change, id).await?;
        if before.revoked_at_us.is_some() {
            return Ok(before);
        }
        let revoked_by = change.actor().name.clone();
        sqlx::query("UPDATE token SET revoked_at_us = $1, revoked_by = $2 WHERE token_id = $3")
            .bind(now_us)
            .bind(revoked_by)
            .bind(id.to_owned())
            .execute(change.sql())
            .await?;
        let after = load_token(&mut change, id).await?;
        let event = TrailEvent::done("revoke token", object(id), format!("`{}`", after.name));
        change.record(event.with_digests(Some(digest(&before)), Some(digest(&after))), now_us).await?;
        change.commit_access().await?;
        Ok(after)
    }

    /// Every token there ever was, the oldest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn tokens(&self) -> Result<Vec<TokenRecord>, RegistryError> {
        let mut snapshot = self.snapshot().await?;
        load_tokens(&mut snapshot).await
    }

    /// A token.
    ///
    /// # Errors
    /// No such token.
    pub async fn token(&self, id: &str) -> Result<TokenRecord, RegistryError> {
        let mut snapshot = self.snapshot().await?;
        load_token(&mut snapshot, id).await
    }

    /// All tokens, and the number of changes of them that these are the result of.
    ///
    /// # Errors
    /// The database failed.
    pub async fn access(&self) -> Result<(u64, Vec<TokenRecord>), RegistryError> {
        let mut snapshot = self.snapshot().await?;
        let revision = unsigned(sqlx::query_scalar(ACCESS_REVISION).fetch_one(snapshot.sql()).await?)?;
        Ok((revision, load_tokens(&mut snapshot).await?))
    }

    /// The number of changes of tokens so far. Cheap: one row.
    ///
    /// # Errors
    /// The database failed.
    pub async fn access_revision(&self) -> Result<u64, RegistryError> {
        unsigned(sqlx::query_scalar(ACCESS_REVISION).fetch_one(self.readers()).await?)
    }

    /// Notes when tokens were last seen. It makes no entry in the trail, and what is there and later stays.
    ///
    /// # Errors
    /// The database failed.
    pub async fn note_tokens_used(&self, used: &[(String, i64)]) -> Result<(), RegistryError> {
        if used.is_empty() {
            return Ok(());
        }
        let mut change = self.change().await?;
        for (id, at_us) in used {
            sqlx::query(
                "UPDATE token SET last_used_at_us = $1
                 WHERE token_id = $2 AND (last_used_at_us IS NULL OR last_used_at_us < $3)",
            )
            .bind(*at_us)
            .bind(id.clone())
            .bind(*at_us)
            .execute(change.sql())
            .await?;
        }
        change.commit_quietly().await
    }
}

impl Change {
    /// Commits what everybody who checks credentials must follow.
    pub(crate) async fn commit_access(mut self) -> Result<(), RegistryError> {
        sqlx::query("UPDATE access_state SET revision = revision + 1").execute(self.sql()).await?;
        self.commit_quietly().await
    }
}

fn object(id: &str) -> String {
    format!("token {id}")
}

/// What the trail says of a token: all of it but when it was last used, which is no change.
fn digest(token: &TokenRecord) -> Digest {
    let told = TokenRecord { last_used_at_us: None, ..token.clone() };
    Digest::of(&serde_json::to_vec(&told).unwrap_or_default())
}

fn check_name(name: &str) -> Result<(), RegistryError> {
    let is_fit =
        !name.trim().is_empty() && name.chars().count() <= NAME_CHARS_MAX && !name.chars().any(char::is_control);
    if is_fit {
        return Ok(());
    }
    let what = format!("a token has a name of 1 to {NAME_CHARS_MAX} characters, such as `ci` or `model fraud`");
    Err(RegistryError::Invalid(what))
}

const ACCESS_REVISION: &str = "SELECT revision FROM access_state";

const COLUMNS: &str =
    "token_id, name, role, project, secret_hash, created_at_us, created_by, expires_at_us, revoked_at_us,
                       revoked_by, last_used_at_us";

fn read_token(row: &SqlRow) -> Result<TokenRecord, RegistryError> {
    let role: String = row.try_get("role")?;
    Ok(TokenRecord {
        id: row.try_get("token_id")?,
        name: row.try_get("name")?,
        role: read_name(&role, Role::from_name)?,
        project: row.try_get("project")?,
        secret_hash: read_digest(row.try_get("secret_hash")?)?,
        created_at_us: row.try_get("created_at_us")?,
        created_by: row.try_get("created_by")?,
        expires_at_us: row.try_get("expires_at_us")?,
        revoked_at_us: row.try_get("revoked_at_us")?,
        revoked_by: row.try_get("revoked_by")?,
        last_used_at_us: row.try_get("last_used_at_us")?,
    })
}

async fn load_tokens(session: &mut Session) -> Result<Vec<TokenRecord>, RegistryError> {
    let statement = format!("SELECT {COLUMNS} FROM token ORDER BY created_at_us, token_id");
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement)).fetch_all(session.sql()).await?;
    rows.iter().map(read_token).collect()
}

async fn load_token(session: &mut Session, id: &str) -> Result<TokenRecord, RegistryError> {
    let statement = format!("SELECT {COLUMNS} FROM token WHERE token_id = $1");
    let row = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(id.to_owned()).fetch_optional(session.sql()).await?;
    let row = row.ok_or_else(|| RegistryError::not_found(ObjectKind::Token, id, "; `eadem token list` shows all"))?;
    read_token(&row)
}
