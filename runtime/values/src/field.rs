//! What a component declares about its inputs and outputs.

use std::sync::Arc;

use arrow_schema::{Field as ArrowField, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use crate::{CANONICAL_NAN_F32, DataType, Value};

/// A constant in a constraint. It has the type of its field; for a timestamp, microseconds as `Int64`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Literal {
    Boolean(bool),
    Int64(i64),
    Float64(f64),
    Utf8(String),
}

/// What must hold for every value that is not null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Constraint {
    /// At least this.
    Min(Literal),
    /// At most this.
    Max(Literal),
    /// One of these.
    Allowed(Vec<Literal>),
    /// Never null, although the field's type would allow it.
    NotNull,
    /// A length, ends included: bytes of utf8 and binary, elements of a list.
    Length {
        /// Shortest.
        min: u32,
        /// Longest.
        max: u32,
    },
    /// The unit of measurement: documentation, not a check.
    Unit(String),
}

/// One input or output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Field {
    /// Unique among its siblings.
    pub name: String,
    /// The type.
    pub data_type: DataType,
    /// Whether a null may stand here.
    pub nullable: bool,
    /// For people.
    #[serde(default)]
    pub doc: String,
    /// What must hold for every value that is not null.
    #[serde(default)]
    pub constraints: Vec<Constraint>,
}

/// What a component says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// The transform's name.
    pub name: String,
    /// For people.
    #[serde(default)]
    pub doc: String,
    /// Who answers for it.
    #[serde(default)]
    pub owner: String,
    /// True if no row is ever dropped or failed.
    pub total: bool,
    /// In the order in which columns are passed.
    pub inputs: Vec<Field>,
    /// In the order in which columns come back.
    pub outputs: Vec<Field>,
}

impl Field {
    /// A field without documentation or constraints.
    pub fn new(name: impl Into<String>, data_type: DataType, nullable: bool) -> Self {
        Self { name: name.into(), data_type, nullable, doc: String::new(), constraints: Vec::new() }
    }

    /// Whether a null passes both the type and the constraints.
    pub fn accepts_null(&self) -> bool {
        self.nullable && !self.constraints.contains(&Constraint::NotNull)
    }

    /// The Arrow field of this name, type and nullability.
    pub fn to_arrow(&self) -> ArrowField {
        ArrowField::new(&self.name, self.data_type.to_arrow(), self.nullable)
    }
}

impl Literal {
    /// The constant as a value of `data_type`; `None` if it cannot have that type. A float64 becomes the nearest float32,
    /// because people write `0.1`; an integer becomes a float only if it is exactly that float.
    pub fn to_value(&self, data_type: DataType) -> Option<Value> {
        match (self, data_type) {
            (Self::Boolean(value), DataType::Boolean) => Some(Value::Boolean(*value)),
            (Self::Int64(value), DataType::Int64) => Some(Value::Int64(*value)),
            (Self::Int64(value), DataType::Timestamp) => Some(Value::Timestamp(*value)),
            (Self::Float64(value), DataType::Float64) => Some(Value::Float64(*value).canonical()),
            (Self::Float64(value), DataType::Float32) => nearest_f32(*value).map(Value::Float32),
            (Self::Int64(value), DataType::Float64) if i64_is_exact_f64(*value) => Some(Value::Float64(*value as f64)),
            (Self::Int64(value), DataType::Float32) if value.unsigned_abs() <= 1 << 24 => {
                Some(Value::Float32(*value as f32))
            }
            (Self::Utf8(value), DataType::Utf8) => Some(Value::Utf8(value.clone())),
            _ => None,
        }
    }
}

fn nearest_f32(value: f64) -> Option<f32> {
    if value.is_nan() {
        return Some(CANONICAL_NAN_F32);
    }
    let nearest = value as f32;
    let overflowed = value.is_finite() && nearest.is_infinite();
    if overflowed { None } else { Some(nearest) }
}

fn i64_is_exact_f64(value: i64) -> bool {
    value.unsigned_abs() <= 1 << 53
}

/// The Arrow schema of these fields, in their order.
pub fn arrow_schema(fields: &[Field]) -> SchemaRef {
    Arc::new(Schema::new(fields.iter().map(Field::to_arrow).collect::<Vec<_>>()))
}
