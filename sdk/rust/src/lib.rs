//! Write a feature as a function; get a WebAssembly component.
//!
//! ```
//! use eadem::prelude::*;
//!
//! #[derive(Input)]
//! struct Observation {
//!     wind_gust: Option<f64>,
//!     visib: Option<f64>,
//! }
//!
//! #[derive(Output)]
//! struct Weather {
//!     /// Gusts above the limit for small aircraft.
//!     gusty: bool,
//!     /// Visibility in km; null where the station did not report.
//!     #[field(min = 0.0, unit = "km")]
//!     visibility_km: Option<f64>,
//! }
//!
//! /// Weather at an airport, as the crew reads it.
//! #[transform(owner = "ops")]
//! fn weather(seen: Observation) -> Weather {
//!     Weather {
//!         gusty: seen.wind_gust.is_some_and(|knots| knots > 25.0),
//!         visibility_km: seen.visib.map(|miles| miles * 1.609_344),
//!     }
//! }
//!
//! # fn main() {
//! let calm = weather(Observation { wind_gust: None, visib: Some(10.0) });
//! assert!(!calm.gusty);
//! # }
//! ```
//!
//! The function stays an ordinary function: call it in your unit tests. Compiled for `wasm32-unknown-unknown` the same
//! crate is a transform, which the store runs in a backfill and in a live request alike.
//!
//! **Types** of fields: `bool`, `i64`, `f32`, `f64`, `String`, `Vec<u8>`, [`Timestamp`], `[f32; N]`, `Vec<i64>`, `Vec<f64>`,
//! `Vec<String>`; inputs may borrow instead of own (`&str`, `&[u8]`, `&[i64]`, `&[f64]`, `Vec<&str>`), and so may outputs.
//! `Option<…>` makes a field nullable.
//!
//! **Return types**: `T` for every row a result (the transform is *total*), `Option<T>` to drop rows, `Result<T, String>`
//! to fail rows with a message, `Result<Option<T>, String>` for both.
//!
//! **Constraints** on a field: `#[field(min = 0, max = 10, allowed = ["a", "b"], length = 1..=8, unit = "km",
//! rename = "other_name", not_null)]`.
//!
//! **Mathematics**: [`math`] gives the same bits natively and in the component. The methods of `f64` (`x.sin()`) come
//! from the component's own library too, but natively from this machine's, so their last bits may differ in unit tests.
//!
//! **Maps**: the prelude's [`HashMap`](prelude::HashMap) and [`HashSet`](prelude::HashSet) use a fixed hasher; std's would
//! iterate in another order in every row.

// Generated: see scripts/bindings.sh.
#[doc(hidden)]
#[allow(missing_docs, unreachable_pub, unsafe_code, clippy::all, clippy::restriction)]
#[rustfmt::skip]
pub mod bindings;

#[cfg(target_arch = "wasm32")]
mod allocator;
mod builders;
mod collections;
mod describe;
mod run;
#[cfg(any(target_arch = "wasm32", test))]
mod size_classes;
mod time;
mod views;

/// The words of the contract, as the macros use them.
pub mod contract {
    pub use crate::bindings::exports::eadem::transform::types::{
        Column, Constraint, DataType, Description, ElementType, Elements, Field, LengthRange, ListValues, Literal,
        Output, RowError, Values, VariableBytes,
    };
}

pub use builders::OutputValue;
pub use collections::FixedHasher;
pub use describe::describe;
pub use eadem_macros::{Input, Output, transform};
pub use run::{Outcome, Transform, apply};
pub use time::{CivilDate, Timestamp};
pub use views::InputValue;

/// Elementary functions whose bits are the same on every machine, natively and in the component.
pub mod math {
    pub use libm::{
        acos, acosh, asin, asinh, atan, atan2, atanh, cbrt, ceil, copysign, cos, cosf, cosh, erf, erfc, exp, exp2,
        exp10, expf, expm1, fabs, floor, fma, fmod, hypot, lgamma, log, log1p, log2, log10, logf, pow, powf, round,
        roundf, sin, sincos, sinf, sinh, sqrt, sqrtf, tan, tanh, tgamma, trunc,
    };
}

/// What a crate of feature logic needs: `use eadem::prelude::*;`.
pub mod prelude {
    pub use crate::collections::{HashMap, HashSet};
    pub use crate::time::{CivilDate, Timestamp};
    pub use crate::{Input, Output, math, transform};
}

/// A struct whose fields are the inputs of a transform. Derive it; do not implement it by hand.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no input of a transform",
    label = "this parameter must be a struct with named fields",
    note = "put #[derive(Input)] before the struct"
)]
pub trait Input<'a>: Sized {
    /// The columns, ready to be read.
    #[doc(hidden)]
    type Views;
    /// The declared inputs.
    #[doc(hidden)]
    fn fields() -> Vec<contract::Field>;
    /// Checks that the columns are the declared ones.
    #[doc(hidden)]
    fn views(columns: &'a [contract::Column], rows: usize) -> Result<Self::Views, String>;
    /// One row.
    #[doc(hidden)]
    fn read(views: &Self::Views, row: usize) -> Self;
}

/// A struct whose fields are the outputs of a transform. Derive it; do not implement it by hand.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no output of a transform",
    label = "a transform returns a struct with named fields, or Option or Result of one",
    note = "put #[derive(Output)] before the struct"
)]
pub trait Output: Sized {
    /// The columns in the making.
    #[doc(hidden)]
    type Builders;
    /// The declared outputs.
    #[doc(hidden)]
    fn fields() -> Vec<contract::Field>;
    /// Empty columns with room for that many rows.
    #[doc(hidden)]
    fn builders(rows: usize) -> Self::Builders;
    /// Writes one row; rows come in ascending order, each once.
    #[doc(hidden)]
    fn put(self, builders: &mut Self::Builders, row: usize);
    /// Passes over a row that has no result.
    #[doc(hidden)]
    fn skip(builders: &mut Self::Builders, row: usize);
    /// The finished columns, in declared order.
    #[doc(hidden)]
    fn finish(builders: Self::Builders) -> Vec<contract::Column>;
}

/// Not for people: what the macros' code calls.
#[doc(hidden)]
pub mod __private {
    pub use crate::describe::{constraint, field, literal};
    pub use crate::run::{report_panics, wrong_columns, wrong_type};
}
