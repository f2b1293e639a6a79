//! Figures for every bar.
//!
//! A bar is a promise with a number. [`timer`] takes the figures, [`results`] keeps them, and each bar is a function that
//! returns its figures; `main.rs` lists them, and [`bars`] runs them. Micro bars measure thread processor time, the least of at least 15
//! alternating runs on both sides, so that a busy machine cannot favour one of them.

pub mod bars;
pub mod engine;
pub mod results;
pub mod timer;
