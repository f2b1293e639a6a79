//! What a transform says of itself.

use crate::contract::{Constraint, DataType, Description, Field, LengthRange, Literal};
use crate::run::Transform;

/// The description of a transform, as the store will read it: `eadem::describe::<weather>()` for a function `weather`.
#[must_use]
pub fn describe<T: Transform>() -> Description {
    T::describe()
}

/// One input or output.
pub fn field(name: &str, data_type: DataType, nullable: bool, doc: &str, constraints: Vec<Constraint>) -> Field {
    Field { name: name.to_owned(), data_type, nullable, doc: doc.to_owned(), constraints }
}

/// Constants of constraints, by type.
#[allow(missing_docs)]
pub mod literal {
    use super::Literal;

    pub fn boolean(value: bool) -> Literal {
        Literal::Boolean(value)
    }

    pub fn int64(value: i64) -> Literal {
        Literal::Int64(value)
    }

    pub fn float64(value: f64) -> Literal {
        Literal::Float64(value)
    }

    pub fn utf8(value: &str) -> Literal {
        Literal::Utf8(value.to_owned())
    }
}

/// Constraints, by name.
#[allow(missing_docs)]
pub mod constraint {
    use super::{Constraint, LengthRange, Literal};

    pub fn min(value: Literal) -> Constraint {
        Constraint::Min(value)
    }

    pub fn max(value: Literal) -> Constraint {
        Constraint::Max(value)
    }

    pub fn allowed(values: Vec<Literal>) -> Constraint {
        Constraint::Allowed(values)
    }

    pub fn not_null() -> Constraint {
        Constraint::NotNull
    }

    pub fn length(min: u32, max: u32) -> Constraint {
        Constraint::Length(LengthRange { min, max })
    }

    pub fn unit(name: &str) -> Constraint {
        Constraint::Unit(name.to_owned())
    }
}
