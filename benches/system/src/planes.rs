//! A small project that is served: the planes of the demonstration, and a request for each.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result};
use arrow_array::cast::AsArray;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value as Json, json};

use crate::process::root;

const DEFINITIONS: &str = r#"
[entity.aircraft]
keys = { tailnum = "utf8" }

[source.planes]
parquet = "PLANES"
event_time = 2000-01-01T00:00:00Z

[view.plane_profile]
entity = "aircraft"
source = "planes"
transform = "transforms/plane_profile.wasm"

[service.planes]
features = ["plane_profile:*"]
"#;

fn file() -> Result<PathBuf> {
    let planes = root().join("demo/data/planes.parquet");
    planes.canonicalize().with_context(|| planes.display().to_string())
}

/// The definitions; they need the component `plane_profile`.
pub(crate) fn definitions() -> Result<String> {
    Ok(DEFINITIONS.replace("PLANES", &file()?.display().to_string()))
}

/// One request for each plane.
pub(crate) fn bodies() -> Result<Vec<Json>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(file()?)?)?.build()?;
    let mut bodies = Vec::new();
    for batch in reader {
        let batch = batch?;
        let names = batch.column_by_name("tailnum").context("planes have no tailnum")?;
        let names = arrow_array::StringArray::from_iter(names.as_string_opt::<i32>().context("tailnum")?);
        let body = |name: &str| json!({ "service": "planes@1", "entities": [{ "tailnum": name }] });
        bodies.extend(names.iter().flatten().map(body));
    }
    Ok(bodies)
}
