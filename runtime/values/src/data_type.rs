//! The types of the contract.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arrow_schema::{DataType as ArrowType, Field as ArrowField, TimeUnit};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What the elements of a list are. Elements are never null.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum ElementType {
    Int64,
    Float64,
    Utf8,
}

/// The type of an input, output, or stored column. There is no decimal and no local time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DataType {
    /// True or false.
    Boolean,
    /// 64-bit signed integer.
    Int64,
    /// IEEE single.
    Float32,
    /// IEEE double.
    Float64,
    /// UTF-8 text.
    Utf8,
    /// Bytes.
    Binary,
    /// Microseconds since the Unix epoch, UTC.
    Timestamp,
    /// That many float32 per row, at least one, never null one by one.
    Vector(u32),
    /// Any number of elements per row.
    List(ElementType),
}

/// Text that names no type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown type `{0}`; types are boolean, int64, float32, float64, utf8, binary, timestamp, vector(n), \
     list(int64), list(float64), list(utf8)"
)]
pub struct UnknownDataType(pub String);

const VECTOR_ITEM: &str = "item";

impl ElementType {
    /// The Arrow type of one element.
    pub fn to_arrow(self) -> ArrowType {
        match self {
            Self::Int64 => ArrowType::Int64,
            Self::Float64 => ArrowType::Float64,
            Self::Utf8 => ArrowType::Utf8,
        }
    }

    fn from_arrow(arrow: &ArrowType) -> Option<Self> {
        match arrow {
            ArrowType::Int64 => Some(Self::Int64),
            ArrowType::Float64 => Some(Self::Float64),
            ArrowType::Utf8 => Some(Self::Utf8),
            _ => None,
        }
    }
}

impl DataType {
    /// The one Arrow type that holds this type. Offsets are 32 bits wide; elements of vectors and lists are not nullable.
    pub fn to_arrow(self) -> ArrowType {
        match self {
            Self::Boolean => ArrowType::Boolean,
            Self::Int64 => ArrowType::Int64,
            Self::Float32 => ArrowType::Float32,
            Self::Float64 => ArrowType::Float64,
            Self::Utf8 => ArrowType::Utf8,
            Self::Binary => ArrowType::Binary,
            Self::Timestamp => ArrowType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Self::Vector(dimensions) => {
                let item = Arc::new(ArrowField::new(VECTOR_ITEM, ArrowType::Float32, false));
                ArrowType::FixedSizeList(item, i32::try_from(dimensions).unwrap_or(i32::MAX))
            }
            Self::List(element) => ArrowType::List(Arc::new(ArrowField::new(VECTOR_ITEM, element.to_arrow(), false))),
        }
    }

    /// The type whose [`DataType::to_arrow`] this is, whatever the names and nullability of nested fields; `None` for
    /// every other Arrow type, also those that could be cast.
    pub fn from_arrow(arrow: &ArrowType) -> Option<Self> {
        match arrow {
            ArrowType::Boolean => Some(Self::Boolean),
            ArrowType::Int64 => Some(Self::Int64),
            ArrowType::Float32 => Some(Self::Float32),
            ArrowType::Float64 => Some(Self::Float64),
            ArrowType::Utf8 => Some(Self::Utf8),
            ArrowType::Binary => Some(Self::Binary),
            ArrowType::Timestamp(TimeUnit::Microsecond, Some(zone)) if is_utc(zone) => Some(Self::Timestamp),
            ArrowType::FixedSizeList(item, dimensions) if item.data_type() == &ArrowType::Float32 => {
                u32::try_from(*dimensions).ok().filter(|dimensions| *dimensions > 0).map(Self::Vector)
            }
            ArrowType::List(item) => ElementType::from_arrow(item.data_type()).map(Self::List),
            _ => None,
        }
    }
}

fn is_utc(zone: &str) -> bool {
    matches!(zone, "UTC" | "Z" | "+00:00" | "Etc/UTC")
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Int64 => "int64",
            Self::Float64 => "float64",
            Self::Utf8 => "utf8",
        })
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean => f.write_str("boolean"),
            Self::Int64 => f.write_str("int64"),
            Self::Float32 => f.write_str("float32"),
            Self::Float64 => f.write_str("float64"),
            Self::Utf8 => f.write_str("utf8"),
            Self::Binary => f.write_str("binary"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::Vector(dimensions) => write!(f, "vector({dimensions})"),
            Self::List(element) => write!(f, "list({element})"),
        }
    }
}

impl FromStr for DataType {
    type Err = UnknownDataType;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownDataType(text.to_owned());
        let simple = match text {
            "boolean" => Some(Self::Boolean),
            "int64" => Some(Self::Int64),
            "float32" => Some(Self::Float32),
            "float64" => Some(Self::Float64),
            "utf8" => Some(Self::Utf8),
            "binary" => Some(Self::Binary),
            "timestamp" => Some(Self::Timestamp),
            "list(int64)" => Some(Self::List(ElementType::Int64)),
            "list(float64)" => Some(Self::List(ElementType::Float64)),
            "list(utf8)" => Some(Self::List(ElementType::Utf8)),
            _ => None,
        };
        if let Some(data_type) = simple {
            return Ok(data_type);
        }
        let digits = text.strip_prefix("vector(").and_then(|rest| rest.strip_suffix(')')).ok_or_else(unknown)?;
        let dimensions: u32 = digits.parse().map_err(|_| unknown())?;
        let fits_arrow = dimensions > 0 && i32::try_from(dimensions).is_ok();
        // One name per type: `vector(+3)` and `vector(03)` are none.
        let is_plain = dimensions.to_string() == digits;
        if fits_arrow && is_plain { Ok(Self::Vector(dimensions)) } else { Err(unknown()) }
    }
}

impl Serialize for DataType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DataType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
