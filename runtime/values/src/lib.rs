//! What a value is: types, fields, columns, the canonical row encoding, the JSON mapping and digests.
//!
//! Everything that compares, hashes, stores or prints a feature value goes through this crate, so that "the same value"
//! means the same bits everywhere. It knows no network, no database and no WebAssembly.

mod canonical;
mod data_type;
mod digest;
mod encoding;
mod field;
mod json;
mod key;
mod time;
mod value;

pub use canonical::{CANONICAL_NAN_F32, CANONICAL_NAN_F64, canonicalize, null_element_rows};
pub use data_type::{DataType, ElementType, UnknownDataType};
pub use digest::{Digest, Digester, InvalidDigest, TieDigest};
pub use encoding::{BatchEncoder, ENCODING_VERSION, decode_row, decode_rows, encode_value, encode_values};
pub use field::{Constraint, Description, Field, Literal, arrow_schema};
pub use json::{JsonColumn, value_from_json, value_to_json};
pub use key::{EntityKey, KeyError, KeyType, KeyValue};
pub use time::{
    InvalidTime, TIME_MAX_US, TIME_MIN_US, format_duration, format_timestamp, parse_duration, parse_timestamp,
};
pub use value::{Value, array_from_values, null_array, value_at};

/// Why a value could not be read, converted or decoded.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ValueError {
    /// A value of one type stood where another is declared.
    #[error("expected {expected}, found {found}")]
    WrongType {
        /// The declared type.
        expected: String,
        /// What was there.
        found: String,
    },
    /// An Arrow type that the contract does not have.
    #[error("Arrow type {0} has no counterpart; cast it in the source's `columns`")]
    UnsupportedArrowType(String),
    /// The contract has no null inside a vector or list.
    #[error("row {row} has a null inside a vector or list; remove or replace null elements in the source")]
    NullElement {
        /// Position in the column.
        row: usize,
    },
    /// A number that does not fit.
    #[error("{value} does not fit into {data_type}")]
    OutOfRange {
        /// The number as written.
        value: String,
        /// The declared type.
        data_type: String,
    },
    /// Text that is not what its type demands (base64, RFC 3339).
    #[error("{0}")]
    Malformed(String),
    /// Encoded bytes that no encoder of this version writes.
    #[error("encoded row is damaged at byte {at}: {what}")]
    Damaged {
        /// Position in the encoded row.
        at: usize,
        /// What was wrong there.
        what: &'static str,
    },
}
