//! The example transforms give, in this engine, the values that lie beside their sources. A native run could not stand in:
//! its last bits may differ. After a deliberate change run with `EADEM_BLESS=1`, and read the difference.

use std::path::{Path, PathBuf};

use arrow_array::ArrayRef;
use eadem_engine::{Applied, CallClass, Transform};
use eadem_values::{Field, Value, array_from_values, value_at, value_from_json, value_to_json};
use serde_json::{Map, Value as Json, json};

use crate::support::{accepted, shared};

/// Every honest transform, and how many rows of it are held fast.
const GOLDEN: [(&str, usize); 19] = [
    ("aircraft_legs", 7),
    ("airport_shape", 8),
    ("airport_weather", 10),
    ("bench_numeric", 6),
    ("bench_score", 4),
    ("bench_score_planted", 4),
    ("bench_string", 6),
    ("completed_flights", 6),
    ("departure_context", 6),
    ("identity_all_types", 8),
    ("nearest_hubs", 8),
    ("partial_filter", 8),
    ("payment_context", 6),
    ("payment_row", 4),
    ("payments", 7),
    ("plane_profile", 9),
    ("slow_score", 3),
    ("tail_number", 8),
    ("wide_row", 3),
];

fn transforms() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../transforms")
}

/// A list of `{"in": {…}, "out": {…}}`, where `out` may be the string `dropped`, and `{"error": "…"}` stands for a failed
/// row.
fn golden_file(name: &str) -> PathBuf {
    transforms().join(name).join("golden.json")
}

#[test]
fn every_honest_transform_has_golden_values() {
    let folders = std::fs::read_dir(transforms()).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<String> = folders
        .filter(|folder| folder.join("Cargo.toml").is_file() && !folder.ends_with("hostile"))
        .map(|folder| folder.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert_eq!(names, GOLDEN.map(|(name, _)| name));
}

/// A column from one member of each row's `in`; what is not there is null.
fn column(rows: &[Json], input: &Field) -> ArrayRef {
    let value = |row: &Json| match row["in"].get(&input.name) {
        None | Some(Json::Null) => Value::Null,
        Some(given) => value_from_json(input.data_type, given).unwrap(),
    };
    let values: Vec<Value> = rows.iter().map(value).collect();
    array_from_values(input.data_type, &values).unwrap()
}

fn results(transform: &Transform, rows: &[Json]) -> Vec<Json> {
    let description = transform.description();
    for row in rows {
        let unknown = row["in"]
            .as_object()
            .unwrap()
            .keys()
            .find(|name| description.inputs.iter().all(|input| input.name != **name));
        assert_eq!(unknown, None, "{}: no such input", description.name);
    }
    let columns: Vec<ArrayRef> = description.inputs.iter().map(|input| column(rows, input)).collect();
    let batch = transform.apply(rows.len(), &columns, CallClass::Batch).unwrap();
    (0..rows.len()).map(|row| result(&batch, &description.outputs, row)).collect()
}

fn result(applied: &Applied, outputs: &[Field], row: usize) -> Json {
    if applied.rows.dropped.contains(&(row as u32)) {
        return json!("dropped");
    }
    if let Some(failed) = applied.rows.failed.iter().find(|failed| failed.row as usize == row) {
        return json!({ "error": failed.message });
    }
    let members = outputs.iter().zip(&applied.columns).map(|(output, column)| {
        let value = value_at(column, row).unwrap();
        (output.name.clone(), value_to_json(&value))
    });
    Json::Object(members.collect::<Map<_, _>>())
}

#[test]
fn example_transforms_give_their_golden_values() {
    let bless = std::env::var_os("EADEM_BLESS").is_some();
    for (name, expected_rows) in GOLDEN {
        let file = golden_file(name);
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let rows: Vec<Json> = serde_json::from_str(&text).unwrap();
        assert_eq!(rows.len(), expected_rows, "rows of {name}");
        let transform = accepted(shared(), name);
        let results = results(&transform, &rows);
        if bless {
            let blessed: Vec<Json> =
                rows.iter().zip(&results).map(|(row, out)| json!({ "in": row["in"], "out": out })).collect();
            std::fs::write(&file, serde_json::to_string_pretty(&blessed).unwrap() + "\n").unwrap();
            continue;
        }
        for (row, (golden, found)) in rows.iter().zip(&results).enumerate() {
            // As text, so that −0.0 is not 0.0.
            assert_eq!(golden["out"].to_string(), found.to_string(), "{name}, row {row}: {}", golden["in"]);
        }
    }
}
