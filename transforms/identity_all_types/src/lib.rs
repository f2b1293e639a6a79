//! Every type in, null and not, and the same values out: whatever differs was changed on the way.

use eadem::prelude::*;

/// One value of each type, and one of each that may be null.
#[derive(Input)]
pub struct Row<'a> {
    pub boolean: bool,
    pub boolean_or_null: Option<bool>,
    pub int64: i64,
    pub int64_or_null: Option<i64>,
    pub float32: f32,
    pub float32_or_null: Option<f32>,
    pub float64: f64,
    pub float64_or_null: Option<f64>,
    pub utf8: &'a str,
    pub utf8_or_null: Option<&'a str>,
    pub binary: &'a [u8],
    pub binary_or_null: Option<&'a [u8]>,
    pub timestamp: Timestamp,
    pub timestamp_or_null: Option<Timestamp>,
    pub vector: [f32; 3],
    pub vector_or_null: Option<[f32; 3]>,
    pub list_int64: &'a [i64],
    pub list_int64_or_null: Option<&'a [i64]>,
    pub list_float64: &'a [f64],
    pub list_float64_or_null: Option<&'a [f64]>,
    pub list_utf8: Vec<&'a str>,
    pub list_utf8_or_null: Option<Vec<&'a str>>,
}

/// The same.
#[derive(Output, Debug, Clone, PartialEq)]
pub struct Same<'a> {
    pub boolean: bool,
    pub boolean_or_null: Option<bool>,
    pub int64: i64,
    pub int64_or_null: Option<i64>,
    pub float32: f32,
    pub float32_or_null: Option<f32>,
    pub float64: f64,
    pub float64_or_null: Option<f64>,
    pub utf8: &'a str,
    pub utf8_or_null: Option<&'a str>,
    pub binary: &'a [u8],
    pub binary_or_null: Option<&'a [u8]>,
    pub timestamp: Timestamp,
    pub timestamp_or_null: Option<Timestamp>,
    pub vector: [f32; 3],
    pub vector_or_null: Option<[f32; 3]>,
    pub list_int64: &'a [i64],
    pub list_int64_or_null: Option<&'a [i64]>,
    pub list_float64: &'a [f64],
    pub list_float64_or_null: Option<&'a [f64]>,
    pub list_utf8: Vec<&'a str>,
    pub list_utf8_or_null: Option<Vec<&'a str>>,
}

/// Gives back what it was given.
#[transform(owner = "eadem")]
pub fn identity_all_types<'a>(row: Row<'a>) -> Same<'a> {
    Same {
        boolean: row.boolean,
        boolean_or_null: row.boolean_or_null,
        int64: row.int64,
        int64_or_null: row.int64_or_null,
        float32: row.float32,
        float32_or_null: row.float32_or_null,
        float64: row.float64,
        float64_or_null: row.float64_or_null,
        utf8: row.utf8,
        utf8_or_null: row.utf8_or_null,
        binary: row.binary,
        binary_or_null: row.binary_or_null,
        timestamp: row.timestamp,
        timestamp_or_null: row.timestamp_or_null,
        vector: row.vector,
        vector_or_null: row.vector_or_null,
        list_int64: row.list_int64,
        list_int64_or_null: row.list_int64_or_null,
        list_float64: row.list_float64,
        list_float64_or_null: row.list_float64_or_null,
        list_utf8: row.list_utf8,
        list_utf8_or_null: row.list_utf8_or_null,
    }
}
