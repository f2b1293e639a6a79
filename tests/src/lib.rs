//! Whole-system tests; they stand in `it/`.
