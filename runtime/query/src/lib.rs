//! Transforms and the point-in-time join: pure functions over Arrow columns, and the same as DataFusion operators.
//!
//! The pure half ([`evaluate_on_demand`], [`project_feature`], [`run_transform`], [`SpineIndex`]) carries no DataFusion
//! type, so that a live request and a training set go through the very same code. The other half ([`TransformExec`],
//! [`PointInTimeJoinExec`]) puts it into plans, where `EXPLAIN` shows it.
//!
//! This crate knows no file, no table, no network and no WebAssembly: a component reaches it as [`RowTransform`].

mod entities;
mod gather;
mod on_demand;
mod point_in_time;
mod point_in_time_exec;
mod project;
mod transform;
mod transform_exec;
mod validate;

pub use on_demand::{OnDemandInput, OnDemandOutput, evaluate_on_demand};
pub use point_in_time::{HistoryRows, LevelRows, PartialWinners, Probe, Prober, SpineIndex, Winners};
pub use point_in_time_exec::{
    EVENT_TIME_COLUMN, HistoryColumns, PLACE_COLUMN, PointInTimeJoin, PointInTimeJoinExec, TieReader,
};
pub use project::{ReadRows, apply_default, compute_on_read, project_feature, status_dictionary};
pub use transform::{
    AppliedRows, BATCH_ROWS, FailedRow, RowTransform, TransformFailure, TransformedRows, run_transform,
};
pub use transform_exec::{DROPPED_COLUMN, FAILURE_COLUMN, TransformExec};
pub use validate::{OutlierBound, RefusedValue, Validation, ValidationPolicy, validate_outputs};

/// Why a step over columns could not be done at all. Faults of single rows are data, not errors.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// The transform could not be run, or broke off in a way that no row can be blamed for.
    #[error(transparent)]
    Transform(#[from] TransformFailure),
    /// A value refused by a constraint, where the policy is to stop.
    #[error("row {row} of the batch: {reason}; the view's validation policy is `stop_job`")]
    Stopped {
        /// Position in the columns passed.
        row: usize,
        /// Which constraint refused which value.
        reason: String,
    },
    /// Columns that do not fit the declared types, counts or lengths.
    #[error("{0}")]
    Shape(String),
    /// An error of the columnar library.
    #[error(transparent)]
    Arrow(#[from] arrow_schema::ArrowError),
    /// An error of the value library.
    #[error(transparent)]
    Value(#[from] eadem_values::ValueError),
}

impl QueryError {
    /// The same error with the row at fault as the caller numbers it.
    fn renumbered(self, number: impl Fn(usize) -> usize) -> Self {
        match self {
            Self::Stopped { row, reason } => Self::Stopped { row: number(row), reason },
            Self::Transform(failure) => {
                let row = failure.row.map(|row| u32::try_from(number(row as usize)).unwrap_or(u32::MAX));
                Self::Transform(TransformFailure { row, ..failure })
            }
            other => other,
        }
    }
}
