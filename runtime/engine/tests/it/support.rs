//! Engines, components and columns for tests.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array};
use eadem_engine::{Applied, CallClass, Engine, EngineConfig, Transform, UploadOptions};
use eadem_values::{DataType, Description, Digest, ElementType, Field, value_at};
use tempfile::TempDir;

/// An engine with a directory of its own.
pub(crate) struct TestEngine {
    pub(crate) engine: Engine,
    pub(crate) directory: TempDir,
}

pub(crate) fn config(directory: &Path) -> EngineConfig {
    let mut config = EngineConfig::with_artifacts_dir(directory);
    config.compiler.program = PathBuf::from(env!("CARGO_BIN_EXE_eadem-compiler"));
    // Tests start many engines; none of them needs a large pool, and none has more calls at once than this.
    config.instances_max = 64;
    config.cpu_threads = 2;
    // No honest call comes near these, however busy the machine is. Tests of endless loops have shorter ones, in
    // engines of their own.
    config.upload_deadline_ms = 20_000;
    config.serving_deadline_base_ms = 20_000;
    config.serving_deadline_total_ms = 600_000;
    config.batch_deadline_base_ms = 20_000;
    config.batch_deadline_row_ms_max = 60_000;
    config
}

pub(crate) fn engine_with(change: impl FnOnce(&mut EngineConfig)) -> TestEngine {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(directory.path());
    change(&mut config);
    TestEngine { engine: Engine::new(config).unwrap(), directory }
}

/// The engine that most tests share: what one of them does to it must not matter to the others.
pub(crate) fn shared() -> &'static Engine {
    static SHARED: OnceLock<TestEngine> = OnceLock::new();
    &SHARED.get_or_init(|| engine_with(|_| {})).engine
}

/// A built component of `transforms/`.
pub(crate) fn component(name: &str) -> Vec<u8> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/components").join(format!("{name}.wasm"));
    std::fs::read(&built).unwrap_or_else(|error| panic!("{}: {error}; run `make components` first", built.display()))
}

/// Accepts and loads an honest component.
pub(crate) fn accepted(engine: &Engine, name: &str) -> Transform {
    let bytes = component(name);
    let accepted =
        engine.accept(&bytes, &UploadOptions::default()).unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
    let unused = || Err("the artefact was stored at upload".to_owned());
    engine.load(accepted.digest, unused, accepted.description, accepted.strict_nan, Some(accepted.cost)).unwrap()
}

/// Loads a component that no upload would let in, as if it had been.
pub(crate) fn smuggled(engine: &Engine, name: &str, description: Description) -> Transform {
    let bytes = component(name);
    engine.load(Digest::of(&bytes), || Ok(bytes), description, false, None).unwrap()
}

/// What the hostile family says of itself: `x` in, `y` out.
pub(crate) fn x_to_y(name: &str) -> Description {
    Description {
        name: name.to_owned(),
        doc: String::new(),
        owner: String::new(),
        total: true,
        inputs: vec![Field::new("x", DataType::Int64, false)],
        outputs: vec![Field::new("y", DataType::Int64, false)],
    }
}

/// As [`x_to_y`], with nullable outputs of every shape.
pub(crate) fn x_to_all_shapes(name: &str) -> Description {
    let mut description = x_to_y(name);
    let outputs = [
        ("label", DataType::Utf8),
        ("steps", DataType::List(ElementType::Int64)),
        ("flag", DataType::Boolean),
        ("point", DataType::Vector(2)),
        ("blob", DataType::Binary),
        ("words", DataType::List(ElementType::Utf8)),
        ("shares", DataType::List(ElementType::Float64)),
    ];
    description.outputs.extend(outputs.map(|(name, data_type)| Field::new(name, data_type, true)));
    description
}

pub(crate) fn int64s(values: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

pub(crate) fn apply_int64s(transform: &Transform, values: &[i64], class: CallClass) -> Applied {
    transform.apply(values.len(), &[int64s(values.iter().copied())], class).unwrap()
}

/// The rows of `y`, `None` where there is no result.
pub(crate) fn y_of(applied: &Applied) -> Vec<Option<i64>> {
    applied.columns[0].as_primitive::<Int64Type>().iter().collect()
}

/// Whether two columns are the same values, bit for bit.
pub(crate) fn assert_same_bits(expected: &ArrayRef, found: &ArrayRef, what: &str) {
    assert_eq!(expected.len(), found.len(), "{what}: rows");
    for row in 0..expected.len() {
        let (expected, found) = (value_at(expected, row).unwrap(), value_at(found, row).unwrap());
        assert!(expected.bits_eq(&found), "{what}, row {row}: {expected:?} became {found:?}");
    }
}

/// Proves that the engine still computes an honest transform correctly.
pub(crate) fn assert_engine_is_well(engine: &Engine) {
    static HONEST: OnceLock<(Digest, Description, bool)> = OnceLock::new();
    let bytes = component("identity_all_types");
    let (digest, description, strict_nan) = HONEST.get_or_init(|| {
        let accepted = shared().accept(&bytes, &UploadOptions { rows: 8, ..UploadOptions::default() }).unwrap();
        (accepted.digest, accepted.description, accepted.strict_nan)
    });
    let honest = engine.load(*digest, || Ok(bytes), description.clone(), *strict_nan, None).unwrap();
    let columns = eadem_engine::generate_rows(&description.inputs, 50, 99);
    let applied = honest.apply(50, &columns, CallClass::Batch).unwrap();
    assert_eq!(applied.rows, Default::default());
    for (expected, found) in columns.iter().zip(&applied.columns) {
        assert_same_bits(&eadem_values::canonicalize(expected).unwrap(), found, "after a hostile component");
    }
}
