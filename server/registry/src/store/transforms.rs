//! Components and what they say of themselves.

use std::sync::Arc;

use eadem_values::{Constraint, DataType, Description, Digest, Field, Literal};
use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::any::AnyRow;

use super::lifecycle::{Mark, read_mark};
use super::search::Indexer;
use super::trail::TrailEvent;
use super::{Registry, Session, Snapshot, read_digest, read_flag, signed, unsigned};
use crate::error::{ObjectKind, RegistryError};

/// What the checks at upload found. The verdict is made once and stored with the digest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acceptance {
    /// The component must be compiled with NaNs made canonical at every instruction.
    pub strict_nan: bool,
    /// Version of the generator of the rows that the laws were checked on.
    pub laws_corpus: u32,
    /// Seed of those of them that are not the fixed ones.
    pub laws_seed: u64,
    /// Number of all of them.
    pub laws_rows: u64,
    /// Deterministic cost label. The costs are `None` where they could not be measured.
    pub fuel_per_row: Option<u64>,
    /// Measured cost of each row of a batch.
    pub nanoseconds_per_row: Option<u64>,
    /// Measured cost of a call, whatever its rows.
    pub nanoseconds_per_call: Option<u64>,
    /// Most memory that an instance used, in bytes.
    pub memory_bytes: Option<u64>,
    /// Rows of the batch that was measured.
    pub measured_rows: Option<u64>,
}

/// A component in the registry, without its bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TransformRecord {
    /// Of its bytes.
    pub digest: Digest,
    /// What it says of itself.
    pub description: Arc<Description>,
    /// What the checks found.
    pub acceptance: Acceptance,
    /// Size in bytes.
    pub component_bytes: u64,
    /// When it was first uploaded, µs since the epoch.
    pub uploaded_at_us: i64,
    /// Whether it is on its way out.
    pub mark: Option<Mark>,
}

impl Registry {
    /// Stores an accepted component under the digest of its bytes. Idempotent: `false` if it was there already.
    ///
    /// # Errors
    /// The database failed.
    pub async fn put_transform(
        &self,
        component: &[u8],
        description: &Description,
        acceptance: &Acceptance,
        now_us: i64,
    ) -> Result<(Digest, bool), RegistryError> {
        let digest = Digest::of(component);
        let mut change = self.change().await?;
        if transform_id(&mut change, &digest).await?.is_some() {
            return Ok((digest, false));
        }
        change.check_components(component.len() as u64).await?;
        let component_bytes = i64::try_from(component.len())
            .map_err(|_| RegistryError::Invalid("the component is too large to be stored".into()))?;
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO transform (digest, name, doc, owner, total, component_bytes, strict_nan, laws_corpus,
                                    laws_seed, laws_rows, fuel_per_row, nanoseconds_per_row, nanoseconds_per_call,
                                    memory_bytes, measured_rows, uploaded_at_us)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) RETURNING transform_id",
        )
        .bind(digest.as_bytes().as_slice())
        .bind(&description.name)
        .bind(&description.doc)
        .bind(&description.owner)
        .bind(i64::from(description.total))
        .bind(component_bytes)
        .bind(i64::from(acceptance.strict_nan))
        .bind(i64::from(acceptance.laws_corpus))
        .bind(acceptance.laws_seed.cast_signed())
        .bind(signed(acceptance.laws_rows)?)
        .bind(acceptance.fuel_per_row.map(signed).transpose()?)
        .bind(acceptance.nanoseconds_per_row.map(signed).transpose()?)
        .bind(acceptance.nanoseconds_per_call.map(signed).transpose()?)
        .bind(acceptance.memory_bytes.map(signed).transpose()?)
        .bind(acceptance.measured_rows.map(signed).transpose()?)
        .bind(now_us)
        .fetch_one(change.sql())
        .await?;
        sqlx::query("INSERT INTO component (transform_id, bytes) VALUES ($1, $2)")
            .bind(id)
            .bind(component)
            .execute(change.sql())
            .await?;
        insert_fields(&mut change, id, "input", &description.inputs).await?;
        insert_fields(&mut change, id, "output", &description.outputs).await?;
        let mut indexer = Indexer::default();
        indexer.add_transform(description);
        indexer.write(&mut change).await?;
        let event = TrailEvent::done("upload", format!("transform {}", description.name), "accepted");
        change.record(event.with_digests(None, Some(digest)), now_us).await?;
        // Nothing is computed with it before it is applied.
        change.commit_quietly().await?;
        Ok((digest, true))
    }

    /// The bytes of a component.
    ///
    /// # Errors
    /// No such component, or bytes that no longer have their digest.
    pub async fn component(&self, digest: &Digest) -> Result<Vec<u8>, RegistryError> {
        let bytes: Option<Vec<u8>> = sqlx::query_scalar(
            "SELECT bytes FROM component JOIN transform USING (transform_id) WHERE transform.digest = $1",
        )
        .bind(digest.as_bytes().as_slice())
        .fetch_optional(self.readers())
        .await?;
        let bytes = bytes.ok_or_else(|| unknown_transform(&digest.to_string()))?;
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(RegistryError::damaged(format!("component {digest} has the bytes of {found}")));
        }
        Ok(bytes)
    }

    /// A component by digest.
    ///
    /// # Errors
    /// No such component.
    pub async fn transform(&self, digest: &Digest) -> Result<TransformRecord, RegistryError> {
        let mut snapshot = self.snapshot().await?;
        let id = transform_id(&mut snapshot, digest).await?.ok_or_else(|| unknown_transform(&digest.to_string()))?;
        load_record(&mut snapshot, id).await
    }

    /// Components, newest upload first; all, or those of one name.
    ///
    /// # Errors
    /// The database failed.
    pub async fn transforms(&self, name: Option<&str>) -> Result<Vec<TransformRecord>, RegistryError> {
        let mut snapshot = self.snapshot().await?;
        let ids: Vec<i64> = sqlx::query_scalar(
            "SELECT transform_id FROM transform WHERE name = coalesce($1, name) ORDER BY transform_id DESC",
        )
        .bind(name)
        .fetch_all(snapshot.sql())
        .await?;
        let mut records = Vec::with_capacity(ids.len());
        for id in ids {
            records.push(load_record(&mut snapshot, id).await?);
        }
        Ok(records)
    }
}

fn unknown_transform(name: &str) -> RegistryError {
    RegistryError::not_found(ObjectKind::Transform, name, "; upload it with `eadem push`")
}

pub(crate) async fn transform_id(connection: &mut Session, digest: &Digest) -> Result<Option<i64>, RegistryError> {
    let id = sqlx::query_scalar("SELECT transform_id FROM transform WHERE digest = $1")
        .bind(digest.as_bytes().as_slice())
        .fetch_optional(connection.sql())
        .await?;
    Ok(id)
}

async fn load_record(snapshot: &mut Snapshot, id: i64) -> Result<TransformRecord, RegistryError> {
    let (digest, description) = load_description(snapshot, id).await?;
    let row = sqlx::query(
        "SELECT component_bytes, strict_nan, laws_corpus, laws_seed, laws_rows, fuel_per_row, nanoseconds_per_row,
                nanoseconds_per_call, memory_bytes, measured_rows, uploaded_at_us, state, message, at_us
         FROM transform LEFT JOIN transform_mark USING (transform_id) WHERE transform.transform_id = $1",
    )
    .bind(id)
    .fetch_one(snapshot.sql())
    .await?;
    let optional = |column: &str| -> Result<Option<u64>, RegistryError> {
        row.try_get::<Option<i64>, _>(column)?.map(unsigned).transpose()
    };
    Ok(TransformRecord {
        digest,
        description,
        acceptance: Acceptance {
            strict_nan: read_flag(row.try_get("strict_nan")?),
            laws_corpus: unsigned(row.try_get("laws_corpus")?)?,
            laws_seed: row.try_get::<i64, _>("laws_seed")?.cast_unsigned(),
            laws_rows: unsigned(row.try_get("laws_rows")?)?,
            fuel_per_row: optional("fuel_per_row")?,
            nanoseconds_per_row: optional("nanoseconds_per_row")?,
            nanoseconds_per_call: optional("nanoseconds_per_call")?,
            memory_bytes: optional("memory_bytes")?,
            measured_rows: optional("measured_rows")?,
        },
        component_bytes: unsigned(row.try_get("component_bytes")?)?,
        uploaded_at_us: row.try_get("uploaded_at_us")?,
        mark: read_mark(&row)?,
    })
}

pub(crate) async fn load_description(
    snapshot: &mut Snapshot,
    id: i64,
) -> Result<(Digest, Arc<Description>), RegistryError> {
    let shared = Arc::clone(&snapshot.shared);
    let revision = snapshot.revision;
    if let Some(Some(cached)) = shared.with_cache(revision, |cache| cache.descriptions.get(&id).cloned()) {
        return Ok(cached);
    }
    let row = sqlx::query("SELECT digest, name, doc, owner, total FROM transform WHERE transform_id = $1")
        .bind(id)
        .fetch_one(snapshot.sql())
        .await?;
    let description = Description {
        name: row.try_get("name")?,
        doc: row.try_get("doc")?,
        owner: row.try_get("owner")?,
        total: read_flag(row.try_get("total")?),
        inputs: load_fields(snapshot, id, "input").await?,
        outputs: load_fields(snapshot, id, "output").await?,
    };
    let loaded = (read_digest(row.try_get("digest")?)?, Arc::new(description));
    shared.with_cache(revision, |cache| cache.descriptions.insert(id, loaded.clone()));
    Ok(loaded)
}

async fn insert_fields(
    connection: &mut Session,
    id: i64,
    direction: &str,
    fields: &[Field],
) -> Result<(), RegistryError> {
    for (position, field) in (0_i64..).zip(fields) {
        sqlx::query(
            "INSERT INTO transform_field (transform_id, direction, position, name, data_type, nullable, doc)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(id)
        .bind(direction)
        .bind(position)
        .bind(&field.name)
        .bind(field.data_type.to_string())
        .bind(i64::from(field.nullable))
        .bind(&field.doc)
        .execute(connection.sql())
        .await?;
        for (constraint_position, constraint) in (0_i64..).zip(&field.constraints) {
            for (element, row) in (0_i64..).zip(constraint_rows(constraint)) {
                sqlx::query(
                    "INSERT INTO field_constraint (transform_id, direction, field_position, position, element, kind,
                                                   literal_type, integer_value, text_value)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                )
                .bind(id)
                .bind(direction)
                .bind(position)
                .bind(constraint_position)
                .bind(element)
                .bind(row.kind)
                .bind(row.literal_type)
                .bind(row.integer)
                .bind(row.text)
                .execute(connection.sql())
                .await?;
            }
        }
    }
    Ok(())
}

/// One row of a constraint. A list of no allowed values is one row without literal.
#[derive(Default)]
struct ConstraintRow {
    kind: &'static str,
    literal_type: Option<&'static str>,
    integer: Option<i64>,
    text: Option<String>,
}

fn constraint_rows(constraint: &Constraint) -> Vec<ConstraintRow> {
    match constraint {
        Constraint::Min(literal) => vec![literal_row("min", literal)],
        Constraint::Max(literal) => vec![literal_row("max", literal)],
        Constraint::Allowed(literals) if literals.is_empty() => {
            vec![ConstraintRow { kind: "allowed", ..ConstraintRow::default() }]
        }
        Constraint::Allowed(literals) => literals.iter().map(|literal| literal_row("allowed", literal)).collect(),
        Constraint::NotNull => vec![ConstraintRow { kind: "not_null", ..ConstraintRow::default() }],
        Constraint::Length { min, max } => {
            [min, max].into_iter().map(|length| literal_row("length", &Literal::Int64(i64::from(*length)))).collect()
        }
        Constraint::Unit(unit) => vec![literal_row("unit", &Literal::Utf8(unit.clone()))],
    }
}

fn literal_row(kind: &'static str, literal: &Literal) -> ConstraintRow {
    let (literal_type, integer, text) = match literal {
        Literal::Boolean(flag) => ("boolean", Some(i64::from(*flag)), None),
        Literal::Int64(number) => ("int64", Some(*number), None),
        Literal::Float64(number) => ("float64", Some(number.to_bits().cast_signed()), None),
        Literal::Utf8(text) => ("utf8", None, Some(text.clone())),
    };
    ConstraintRow { kind, literal_type: Some(literal_type), integer, text }
}

fn read_literal(row: &AnyRow) -> Result<Option<Literal>, RegistryError> {
    let literal_type: Option<String> = row.try_get("literal_type")?;
    let integer: Option<i64> = row.try_get("integer_value")?;
    let text: Option<String> = row.try_get("text_value")?;
    match (literal_type.as_deref(), integer, text) {
        (None, _, _) => Ok(None),
        (Some("boolean"), Some(flag), _) => Ok(Some(Literal::Boolean(flag != 0))),
        (Some("int64"), Some(number), _) => Ok(Some(Literal::Int64(number))),
        (Some("float64"), Some(bits), _) => Ok(Some(Literal::Float64(f64::from_bits(bits.cast_unsigned())))),
        (Some("utf8"), _, Some(text)) => Ok(Some(Literal::Utf8(text))),
        _ => Err(RegistryError::damaged("a literal of a constraint has no value of its type")),
    }
}

async fn load_fields(connection: &mut Session, id: i64, direction: &str) -> Result<Vec<Field>, RegistryError> {
    let rows = sqlx::query(
        "SELECT name, data_type, nullable, doc FROM transform_field
         WHERE transform_id = $1 AND direction = $2 ORDER BY position",
    )
    .bind(id)
    .bind(direction)
    .fetch_all(connection.sql())
    .await?;
    let mut fields = Vec::with_capacity(rows.len());
    for row in &rows {
        let data_type: String = row.try_get("data_type")?;
        let data_type: DataType = data_type.parse().map_err(|_| RegistryError::damaged(format!("type {data_type}")))?;
        let mut field = Field::new(row.try_get::<String, _>("name")?, data_type, read_flag(row.try_get("nullable")?));
        field.doc = row.try_get("doc")?;
        fields.push(field);
    }
    let constraints = sqlx::query(
        "SELECT field_position, position, kind, literal_type, integer_value, text_value FROM field_constraint
         WHERE transform_id = $1 AND direction = $2 ORDER BY field_position, position, element",
    )
    .bind(id)
    .bind(direction)
    .fetch_all(connection.sql())
    .await?;
    for rows in constraints.chunk_by(same_constraint) {
        let Some(first) = rows.first() else { continue };
        let position: usize = unsigned(first.try_get("field_position")?)?;
        let field = fields.get_mut(position).ok_or_else(|| RegistryError::damaged("a constraint has no field"))?;
        field.constraints.push(read_constraint(first.try_get("kind")?, rows)?);
    }
    Ok(fields)
}

fn same_constraint(a: &AnyRow, b: &AnyRow) -> bool {
    let place = |row: &AnyRow| (row.try_get::<i64, _>("field_position").ok(), row.try_get::<i64, _>("position").ok());
    place(a) == place(b)
}

fn read_constraint(kind: &str, rows: &[AnyRow]) -> Result<Constraint, RegistryError> {
    let mut literals = Vec::with_capacity(rows.len());
    for row in rows {
        literals.extend(read_literal(row)?);
    }
    let damaged = || RegistryError::damaged(format!("a constraint `{kind}` has not the literals it needs"));
    match (kind, literals.as_slice()) {
        ("allowed", _) => Ok(Constraint::Allowed(literals)),
        ("not_null", []) => Ok(Constraint::NotNull),
        ("min", [literal]) => Ok(Constraint::Min(literal.clone())),
        ("max", [literal]) => Ok(Constraint::Max(literal.clone())),
        ("unit", [Literal::Utf8(unit)]) => Ok(Constraint::Unit(unit.clone())),
        ("length", [Literal::Int64(min), Literal::Int64(max)]) => {
            Ok(Constraint::Length { min: unsigned(*min)?, max: unsigned(*max)? })
        }
        _ => Err(damaged()),
    }
}
