//! Acceptance and refusal of components that are not hostile, only honest or mistaken.

use eadem_engine::{Refusal, UploadOptions, inspect};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::support::{component, engine_with, shared};

/// Wraps a module, written as text, as a component of the contract's world.
pub(crate) fn componentize(module: &str) -> Vec<u8> {
    let wit = concat!(env!("CARGO_MANIFEST_DIR"), "/../../wit/transform.wit");
    componentize_as(module, &std::fs::read_to_string(wit).unwrap(), "feature-transform")
}

fn componentize_as(module: &str, wit: &str, world: &str) -> Vec<u8> {
    let mut module = wat::parse_str(module).unwrap();
    let mut resolve = Resolve::default();
    let package = resolve.push_str("test.wit", wit).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false).unwrap();
    ComponentEncoder::default().module(&module).unwrap().validate(true).encode().unwrap()
}

fn refusal_of(component: &[u8]) -> Refusal {
    shared().accept(component, &UploadOptions::default()).unwrap_err()
}

#[test]
fn an_honest_component_is_accepted_with_evidence() {
    let options = UploadOptions { seed: 42, rows: 100, strict_nan: false };
    let bytes = component("bench_numeric");
    let accepted = shared().accept(&bytes, &options).unwrap();
    assert_eq!(accepted.description.name, "bench_numeric");
    assert!(accepted.description.total);
    assert!(!accepted.strict_nan);
    assert_eq!(accepted.contract_version, "0.1.0");
    assert_eq!(accepted.component_bytes, bytes.len() as u64);
    assert_eq!((accepted.evidence.seed, accepted.evidence.rows, accepted.evidence.faulty_rows), (42, 356, 0));
    // It is stored as JSON beside the component.
    let stored = serde_json::to_string(&accepted).unwrap();
    assert_eq!(serde_json::from_str::<eadem_engine::Accepted>(&stored).unwrap(), accepted);
}

#[test]
fn strict_nan_can_be_forced() {
    let options = UploadOptions { strict_nan: true, rows: 8, ..UploadOptions::default() };
    assert!(shared().accept(&component("bench_string"), &options).unwrap().strict_nan);
}

#[test]
fn a_refused_component_can_still_say_what_it_is() {
    let bytes = component("depends_on_row_order");
    let refusal = refusal_of(&bytes);
    assert_eq!(refusal.code(), "law_row_by_row", "{refusal}");
    let description = shared().describe(&bytes).unwrap();
    assert_eq!(description.outputs.len(), 1);

    // One that would be accepted says the same to both.
    let honest = component("bench_numeric");
    let accepted = shared().accept(&honest, &UploadOptions::default()).unwrap();
    assert_eq!(shared().describe(&honest).unwrap(), accepted.description);
}

#[test]
fn what_cannot_run_cannot_be_asked() {
    let endless = shared().describe(&component("endless_loop_in_describe")).unwrap_err();
    assert_eq!(endless.code(), "describe", "{endless}");
    let core = shared().describe(&component("core_module")).unwrap_err();
    assert_eq!(core.code(), "core_module", "{core}");
}

#[test]
fn a_component_of_another_world_is_told_what_is_missing() {
    let wit = "package some:thing@1.0.0; interface api { f: func(); } world w { export api; }";
    let module = r#"(module (func (export "some:thing/api@1.0.0#f")))"#;
    let Refusal::Contract { what } = refusal_of(&componentize_as(module, wit, "w")) else { panic!() };
    assert_eq!(what, "it does not export eadem:transform/transform@0.1.0, it exports some:thing/api@1.0.0");
}

#[test]
fn a_component_of_a_later_contract_is_told_so() {
    let wit = "package eadem:transform@0.2.0; interface transform { apply: func(); } world w { export transform; }";
    let module = r#"(module (func (export "eadem:transform/transform@0.2.0#apply")))"#;
    let Refusal::Contract { what } = refusal_of(&componentize_as(module, wit, "w")) else { panic!() };
    assert_eq!(what, "it is built for version 0.2.0, this build knows 0.1.0");
}

#[test]
fn functions_of_other_types_are_another_world() {
    let wit = "package eadem:transform@0.1.0; \
               interface transform { describe: func() -> u32; apply: func(rows: u32) -> u32; } \
               world w { export transform; }";
    let module = r#"(module
        (func (export "eadem:transform/transform@0.1.0#describe") (result i32) i32.const 7)
        (func (export "eadem:transform/transform@0.1.0#apply") (param i32) (result i32) i32.const 7))"#;
    let refusal = refusal_of(&componentize_as(module, wit, "w"));
    assert!(matches!(refusal, Refusal::Contract { .. }), "{refusal:?}");
}

#[test]
fn functions_cannot_hide_in_an_import_of_types() {
    let wit = "package eadem:transform@0.1.0; \
               interface types { now: func() -> u64; } \
               interface transform { describe: func() -> u64; } \
               world w { import types; export transform; }";
    let module = r#"(module
        (import "eadem:transform/types@0.1.0" "now" (func $now (result i64)))
        (func (export "eadem:transform/transform@0.1.0#describe") (result i64) (call $now)))"#;
    let Refusal::Import { import, .. } = refusal_of(&componentize_as(module, wit, "w")) else { panic!() };
    assert_eq!(import, "eadem:transform/types@0.1.0");
}

#[test]
fn a_core_module_of_a_browser_toolchain_names_its_culprit() {
    let module = r#"(module (import "__wbindgen_placeholder__" "__wbindgen_throw" (func (param i32 i32))))"#;
    let Refusal::CoreModule { imports, culprit } = refusal_of(&wat::parse_str(module).unwrap()) else { panic!() };
    assert_eq!(imports, ["__wbindgen_placeholder__/__wbindgen_throw"]);
    assert!(culprit.unwrap().starts_with("wasm-bindgen"));
}

#[test]
fn features_that_may_differ_between_machines_are_off() {
    let relaxed_simd = "(func (result v128) (f32x4.relaxed_madd (v128.const i64x2 1 2) (v128.const i64x2 1 2) (v128.const i64x2 1 2)))";
    let threads = "(memory 1 1 shared)";
    let memory64 = "(memory i64 1)";
    for code in [relaxed_simd, threads, memory64] {
        let component = format!("(component (core module {code}))");
        let refusal = refusal_of(&wat::parse_str(&component).unwrap());
        assert!(matches!(refusal, Refusal::Malformed(_)), "{code}: {refusal:?}");
    }
}

#[test]
fn an_inspection_shows_what_can_be_seen_from_outside() {
    let bytes = component("bench_numeric");
    let inspection = inspect(&bytes).unwrap();
    assert_eq!(inspection.digest, eadem_values::Digest::of(&bytes));
    assert_eq!(inspection.contract_version.as_deref(), Some("0.1.0"));
    assert_eq!(inspection.memories, 1);
    assert!(inspection.imports.iter().all(|import| import.starts_with("eadem:transform/")), "{inspection:?}");
    let random = inspect(&component("imports_random")).unwrap();
    assert!(random.imports.contains(&"wasi:random/random@0.2.0".to_owned()));
}

#[test]
fn descriptions_are_held_to_the_configured_limits() {
    let test = engine_with(|config| {
        config.name_bytes_max = 8;
        config.fields_max = 3;
        config.doc_bytes_max = 10;
    });
    let refusal = test.engine.accept(&component("bench_numeric"), &UploadOptions::default()).unwrap_err();
    let Refusal::Description(problems) = refusal else { panic!("{refusal}") };
    let all = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(all.contains("the transform: the name has 13 bytes, 8 are allowed (name_bytes_max)"), "{all}");
    assert!(all.contains("4 inputs, 3 are allowed (fields_max)"), "{all}");
    assert!(all.contains("(doc_bytes_max)"), "{all}");
}
