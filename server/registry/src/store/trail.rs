//! The trail: who did what, when and from where. Entries are only added, each with the hash of the one before it, in the same
//! transaction as the change that they tell of.

use eadem_values::Digest;
use serde::{Deserialize, Serialize};
use sqlx::Row;

use super::{
    Change, ROWS_PER_STATEMENT, Registry, Session, SqlRow, read_digest, read_name, rows_of_parameters, signed, unsigned,
};
use crate::access::Actor;
use crate::error::{ObjectKind, RegistryError};

/// What the hash of an entry begins with, so that it can be mistaken for no other one.
const DOMAIN: &str = "eadem-trail-1";

/// Entries that are read at once while all are checked.
const PAGE_ENTRIES: i64 = 1_000;

/// Faults that are told one by one; after so many the trail is broken beyond doubt.
const FAULTS_MAX: usize = 100;

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrailOutcome {
    /// It was done.
    Done,
    /// It was refused; nothing changed.
    Refused,
}

impl TrailOutcome {
    fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Done, Self::Refused].into_iter().find(|outcome| outcome.name() == name)
    }
}

/// What was done, by whomever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrailEvent {
    /// `apply`, `upload`, `create token`, …; of what was refused, method and route.
    pub verb: String,
    /// What it was done to: `view plane_profile@2`.
    pub object: String,
    /// What stood there before.
    pub before: Option<Digest>,
    /// What stands there now.
    pub after: Option<Digest>,
    /// How it ended.
    pub outcome: TrailOutcome,
    /// In words: what happened, or why it was refused.
    pub detail: String,
    /// How many equal events the entry stands for.
    pub count: u64,
}

impl TrailEvent {
    /// Something that is done once.
    pub fn done(verb: &str, object: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            verb: verb.to_owned(),
            object: object.into(),
            before: None,
            after: None,
            outcome: TrailOutcome::Done,
            detail: detail.into(),
            count: 1,
        }
    }

    /// The same, with what stood there before and what stands there now.
    #[must_use]
    pub(crate) fn with_digests(mut self, before: Option<Digest>, after: Option<Digest>) -> Self {
        (self.before, self.after) = (before, after);
        self
    }
}

/// An entry of the trail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrailEntry {
    /// 1, 2, 3, … without gaps.
    pub sequence: u64,
    /// When, µs since the epoch.
    pub at_us: i64,
    /// The token; `None` where none was needed or given.
    pub token_id: Option<String>,
    /// The token's name, or what stands in its place.
    pub name: String,
    /// The project that the token is for; `None`: all.
    pub project: Option<String>,
    /// Where the request came from.
    pub address: Option<String>,
    /// What the request is called.
    pub request_id: Option<String>,
    /// What was done.
    pub verb: String,
    /// What it was done to.
    pub object: String,
    /// What stood there before.
    pub before: Option<Digest>,
    /// What stands there now.
    pub after: Option<Digest>,
    /// How it ended.
    pub outcome: TrailOutcome,
    /// In words.
    pub detail: String,
    /// How many equal events it stands for.
    pub count: u64,
    /// The hash of the entry before; 32 zero bytes for the first.
    pub previous: Digest,
    /// SHA-256 of the canonical bytes: see [`TrailEntry::expected_hash`].
    pub hash: Digest,
}

/// Where the trail ends: kept elsewhere, it proves later that nothing up to here was touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrailHead {
    /// The last entry's number; 0: there is none.
    pub sequence: u64,
    /// Its hash.
    pub hash: Digest,
}

/// What is wrong with the trail at one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrailFault {
    /// The entry, or the one that should be there.
    pub sequence: u64,
    /// What is wrong.
    pub what: String,
}

/// What a check of the whole trail found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrailVerdict {
    /// Entries that were read.
    pub entries: u64,
    /// The last one.
    pub head: TrailHead,
    /// What is wrong; empty: every entry is as it was written. After a hundred faults no more are looked for.
    pub faults: Vec<TrailFault>,
}

/// Which entries are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrailFilter {
    /// Only those after this number.
    pub after: u64,
    /// Only those at or after this instant, µs since the epoch.
    pub since_us: Option<i64>,
    /// At most so many.
    pub limit: u32,
    /// The newest of them, the newest first, rather than the oldest.
    pub newest_first: bool,
}

/// The hash before the first entry.
fn no_hash() -> Digest {
    Digest::from_bytes([0; 32])
}

impl TrailEntry {
    /// The SHA-256 of: the hash before, the text `eadem-trail-1`, then sequence, time, token, name, project, address, request,
    /// verb, object, digest before, digest after, outcome, detail, count. Numbers are 8 bytes, little-endian; texts and digests
    /// are a length of 4 bytes, little-endian, and the bytes; what is absent has the length 2^32 - 1 and no bytes.
    pub fn expected_hash(&self) -> Digest {
        let mut bytes = self.previous.as_bytes().to_vec();
        let mut text = |text: Option<&[u8]>| match text {
            Some(text) => {
                bytes.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
                bytes.extend_from_slice(text);
            }
            None => bytes.extend_from_slice(&u32::MAX.to_le_bytes()),
        };
        text(Some(DOMAIN.as_bytes()));
        text(Some(&self.sequence.to_le_bytes()));
        text(Some(&self.at_us.to_le_bytes()));
        for part in [&self.token_id, &Some(self.name.clone()), &self.project, &self.address, &self.request_id] {
            text(part.as_ref().map(|part| part.as_bytes()));
        }
        text(Some(self.verb.as_bytes()));
        text(Some(self.object.as_bytes()));
        text(self.before.as_ref().map(|digest| digest.as_bytes().as_slice()));
        text(self.after.as_ref().map(|digest| digest.as_bytes().as_slice()));
        text(Some(self.outcome.name().as_bytes()));
        text(Some(self.detail.as_bytes()));
        text(Some(&self.count.to_le_bytes()));
        Digest::of(&bytes)
    }
}

impl Change {
    /// Adds an entry to the trail; it is there if and only if the change is.
    pub(crate) async fn record(&mut self, event: TrailEvent, now_us: i64) -> Result<(), RegistryError> {
        self.record_all(vec![event], now_us).await
    }

    /// The same for several, in their order.
    pub(crate) async fn record_all(&mut self, events: Vec<TrailEvent>, now_us: i64) -> Result<(), RegistryError> {
        let actor = self.actor().clone();
        self.record_by(events.into_iter().map(|event| (&actor, event)).collect(), now_us).await
    }

    async fn record_by(&mut self, events: Vec<(&Actor, TrailEvent)>, now_us: i64) -> Result<(), RegistryError> {
        let mut head = load_head(self).await?;
        let mut entries = Vec::with_capacity(events.len());
        for (actor, event) in events {
            let entry = next_entry(head, actor, event, now_us);
            head = TrailHead { sequence: entry.sequence, hash: entry.hash };
            entries.push(entry);
        }
        for entries in entries.chunks(ROWS_PER_STATEMENT) {
            insert(self, entries).await?;
        }
        sqlx::query("UPDATE trail_head SET sequence = $1, hash = $2")
            .bind(signed(head.sequence)?)
            .bind(head.hash.as_bytes().as_slice())
            .execute(self.sql())
            .await?;
        Ok(())
    }
}

/// What stands after the head.
fn next_entry(head: TrailHead, actor: &Actor, event: TrailEvent, now_us: i64) -> TrailEntry {
    let mut entry = TrailEntry {
        sequence: head.sequence + 1,
        at_us: now_us,
        token_id: actor.token_id.clone(),
        name: actor.name.clone(),
        project: actor.project.clone(),
        address: actor.address.clone(),
        request_id: actor.request_id.clone(),
        verb: event.verb,
        object: event.object,
        before: event.before,
        after: event.after,
        outcome: event.outcome,
        detail: event.detail,
        count: event.count,
        previous: head.hash,
        hash: no_hash(),
    };
    entry.hash = entry.expected_hash();
    entry
}

async fn insert(session: &mut Session, entries: &[TrailEntry]) -> Result<(), RegistryError> {
    let bytes = |digest: &Digest| digest.as_bytes().to_vec();
    let rows = rows_of_parameters(entries.len(), COLUMN_COUNT);
    let statement = format!("INSERT INTO trail ({COLUMNS}) VALUES {rows}");
    let mut query = sqlx::query(sqlx::AssertSqlSafe(statement)).persistent(false);
    for entry in entries {
        query = query
            .bind(signed(entry.sequence)?)
            .bind(entry.at_us)
            .bind(entry.token_id.clone())
            .bind(entry.name.clone())
            .bind(entry.project.clone())
            .bind(entry.address.clone())
            .bind(entry.request_id.clone())
            .bind(entry.verb.clone())
            .bind(entry.object.clone())
            .bind(entry.before.as_ref().map(bytes))
            .bind(entry.after.as_ref().map(bytes))
            .bind(entry.outcome.name())
            .bind(entry.detail.clone())
            .bind(signed(entry.count)?)
            .bind(bytes(&entry.previous))
            .bind(bytes(&entry.hash));
    }
    query.execute(session.sql()).await?;
    Ok(())
}

async fn load_head(session: &mut Session) -> Result<TrailHead, RegistryError> {
    let row = sqlx::query("SELECT sequence, hash FROM trail_head").fetch_one(session.sql()).await?;
    Ok(TrailHead { sequence: unsigned(row.try_get("sequence")?)?, hash: read_digest(row.try_get("hash")?)? })
}

const COLUMN_COUNT: usize = 16;
const COLUMNS: &str = "sequence, at_us, token_id, name, project, address, request_id, verb, object, digest_before,
                       digest_after, outcome, detail, event_count, previous_hash, hash";

fn read_entry(row: &SqlRow) -> Result<TrailEntry, RegistryError> {
    let digest = |column: &str| row.try_get::<Option<Vec<u8>>, _>(column)?.map(read_digest).transpose();
    let outcome: String = row.try_get("outcome")?;
    Ok(TrailEntry {
        sequence: unsigned(row.try_get("sequence")?)?,
        at_us: row.try_get("at_us")?,
        token_id: row.try_get("token_id")?,
        name: row.try_get("name")?,
        project: row.try_get("project")?,
        address: row.try_get("address")?,
        request_id: row.try_get("request_id")?,
        verb: row.try_get("verb")?,
        object: row.try_get("object")?,
        before: digest("digest_before")?,
        after: digest("digest_after")?,
        outcome: read_name(&outcome, TrailOutcome::from_name)?,
        detail: row.try_get("detail")?,
        count: unsigned(row.try_get("event_count")?)?,
        previous: read_digest(row.try_get("previous_hash")?)?,
        hash: read_digest(row.try_get("hash")?)?,
    })
}

/// The digest of what stands under this name now: of an entity its shape, of a source its meaning, of views and services
/// their newest version.
pub(crate) async fn head_digest(
    session: &mut Session,
    kind: ObjectKind,
    name: &str,
) -> Result<Option<Digest>, RegistryError> {
    let statement = match kind {
        ObjectKind::Entity => {
            "SELECT shape.digest FROM entity JOIN entity_shape shape ON shape.shape_id = entity.shape_id
             WHERE entity.name = $1"
        }
        ObjectKind::Source => {
            "SELECT meaning.digest FROM source JOIN source_meaning meaning ON meaning.meaning_id = source.meaning_id
             WHERE source.name = $1"
        }
        ObjectKind::View => {
            "SELECT version.digest FROM view JOIN view_version version ON version.view_version_id = view.head_version_id
             WHERE view.name = $1"
        }
        ObjectKind::Service => {
            "SELECT version.digest FROM service
             JOIN service_version version ON version.service_version_id = service.head_version_id
             WHERE service.name = $1"
        }
        _ => return Ok(None),
    };
    let digest: Option<Vec<u8>> =
        sqlx::query_scalar(statement).bind(name.to_owned()).fetch_optional(session.sql()).await?;
    digest.map(read_digest).transpose()
}

impl Registry {
    /// Adds what was refused, which has no change of its own.
    ///
    /// # Errors
    /// The database failed.
    pub async fn note_refusals(&self, refusals: &[(Actor, TrailEvent)], now_us: i64) -> Result<(), RegistryError> {
        if refusals.is_empty() {
            return Ok(());
        }
        let mut change = self.change().await?;
        change.record_by(refusals.iter().map(|(actor, event)| (actor, event.clone())).collect(), now_us).await?;
        change.commit_quietly().await
    }

    /// Entries of the trail.
    ///
    /// # Errors
    /// The database failed.
    pub async fn trail(&self, filter: &TrailFilter) -> Result<Vec<TrailEntry>, RegistryError> {
        let mut snapshot = self.snapshot().await?;
        let order = if filter.newest_first { "DESC" } else { "ASC" };
        let statement = format!(
            "SELECT {COLUMNS} FROM trail WHERE sequence > $1 AND at_us >= $2 ORDER BY sequence {order} LIMIT $3"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
            .bind(signed(filter.after)?)
            .bind(filter.since_us.unwrap_or(i64::MIN))
            .bind(i64::from(filter.limit))
            .fetch_all(snapshot.sql())
            .await?;
        rows.iter().map(read_entry).collect()
    }

    /// Where the trail ends.
    ///
    /// # Errors
    /// The database failed.
    pub async fn trail_head(&self) -> Result<TrailHead, RegistryError> {
        load_head(&mut *self.snapshot().await?).await
    }

    /// Reads the whole trail and checks each entry against its hash, its neighbour, and the place where the trail says that it
    /// ends. `known` is an earlier end that was kept elsewhere: only that finds a trail that somebody wrote anew from some
    /// entry on.
    ///
    /// # Errors
    /// The database failed.
    pub async fn verify_trail(&self, known: Option<TrailHead>) -> Result<TrailVerdict, RegistryError> {
        // One snapshot for all pages, so that the end is the end of these entries.
        let mut snapshot = self.snapshot().await?;
        let stated = load_head(&mut snapshot).await?;
        let mut check = ChainCheck::new(known);
        let statement = format!("SELECT {COLUMNS} FROM trail WHERE sequence > $1 ORDER BY sequence LIMIT $2");
        let mut after = i64::MIN;
        loop {
            let rows = sqlx::query(sqlx::AssertSqlSafe(statement.clone()))
                .bind(after)
                .bind(PAGE_ENTRIES)
                .fetch_all(snapshot.sql())
                .await?;
            let Some(last) = rows.last() else { break };
            after = last.try_get("sequence")?;
            for row in &rows {
                match read_entry(row) {
                    Ok(entry) => check.next(&entry),
                    Err(error) => check.unreadable(row.try_get("sequence")?, &error),
                }
            }
            if check.faults.len() >= FAULTS_MAX {
                break;
            }
        }
        Ok(check.end(stated))
    }
}

/// Follows the chain entry by entry.
struct ChainCheck {
    known: Option<TrailHead>,
    last: TrailHead,
    entries: u64,
    faults: Vec<TrailFault>,
}

impl ChainCheck {
    fn new(known: Option<TrailHead>) -> Self {
        Self { known, last: TrailHead { sequence: 0, hash: no_hash() }, entries: 0, faults: Vec::new() }
    }

    fn fault(&mut self, sequence: u64, what: impl Into<String>) {
        self.faults.push(TrailFault { sequence, what: what.into() });
    }

    fn next(&mut self, entry: &TrailEntry) {
        let expected = self.last.sequence + 1;
        if entry.sequence != expected {
            self.fault(expected, format!("entries {expected} to {} are missing", entry.sequence.saturating_sub(1)));
        } else if entry.previous != self.last.hash {
            self.fault(entry.sequence, "it does not continue the entry before it: one of the two was exchanged");
        }
        if entry.expected_hash() != entry.hash {
            self.fault(entry.sequence, "it is not what its hash was made of: it was altered");
        }
        self.step(entry.sequence, entry.hash);
    }

    /// What cannot even be read is no entry that this program has written.
    fn unreadable(&mut self, sequence: i64, error: &RegistryError) {
        let sequence = u64::try_from(sequence).unwrap_or_default();
        self.fault(sequence, format!("it cannot be read: {error}"));
        self.step(sequence, no_hash());
    }

    fn step(&mut self, sequence: u64, hash: Digest) {
        if let Some(known) = self.known.filter(|known| known.sequence == sequence)
            && known.hash != hash
        {
            self.fault(sequence, format!("its hash is {hash}, and was {} when it was kept elsewhere", known.hash));
        }
        self.entries += 1;
        self.last = TrailHead { sequence, hash };
    }

    fn end(mut self, stated: TrailHead) -> TrailVerdict {
        let last = self.last;
        if self.faults.len() < FAULTS_MAX {
            if stated.sequence > last.sequence {
                let (from, to) = (last.sequence + 1, stated.sequence);
                self.fault(from, format!("entries {from} to {to} were cut off the end"));
            } else if stated != last {
                self.fault(last.sequence, "the trail ends otherwise than was noted when its last entry was written");
            }
            if let Some(known) = self.known
                && known.sequence > last.sequence.max(stated.sequence)
            {
                self.fault(known.sequence, "this entry was there when it was kept elsewhere, and is missing");
            }
        }
        TrailVerdict { entries: self.entries, head: last, faults: self.faults }
    }
}
