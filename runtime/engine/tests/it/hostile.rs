//! Every hostile component with its exact error, and the engine's health after each.

use std::time::Duration;

use eadem_engine::{
    CallClass, Engine, EngineError, FailureKind, Fault, Law, LimitHit, LimitKind, Refusal, UploadOptions,
    thread_cpu_time,
};

use crate::support::{
    TestEngine, apply_int64s, assert_engine_is_well, component, engine_with, int64s, shared, smuggled, x_to_all_shapes,
    x_to_y, y_of,
};

fn refusal(name: &str) -> Refusal {
    refusal_by(shared(), name)
}

fn refusal_by(engine: &Engine, name: &str) -> Refusal {
    let refused = engine.accept(&component(name), &UploadOptions::default());
    let refusal = refused.expect_err(name);
    println!("{name}: [{}] {refusal}", refusal.code());
    assert!(refusal.blames_component());
    assert_engine_is_well(engine);
    refusal
}

/// Waits half a second for an upload's calls, which is long enough for honest ones.
fn impatient() -> TestEngine {
    engine_with(|config| config.upload_deadline_ms = 500)
}

fn violation(name: &str) -> (Law, Option<u32>, String) {
    match refusal(name) {
        Refusal::Law(violation) => (violation.law, violation.row, violation.what),
        other => panic!("{name}: {other}"),
    }
}

fn description_problems(refusal: Refusal) -> Vec<String> {
    let Refusal::Description(problems) = refusal else { panic!("{refusal}") };
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn endless_loop_in_describe() {
    let refusal = refusal_by(&impatient().engine, "endless_loop_in_describe");
    assert!(matches!(refusal, Refusal::Describe(Fault::Deadline { after_ms: 500 })), "{refusal}");
}

#[test]
fn endless_loop_in_apply() {
    let Refusal::Law(violation) = refusal_by(&impatient().engine, "endless_loop_in_apply") else { panic!() };
    assert_eq!((violation.law, violation.row), (Law::Terminates, Some(0)));
    assert_eq!(violation.what, "no answer to a call with 1 rows within 500 ms");
}

#[test]
fn start_function_that_loops() {
    assert!(matches!(refusal_by(&impatient().engine, "start_loops"), Refusal::Start(Fault::Deadline { .. })));
}

#[test]
fn memory_bomb_at_start() {
    let Refusal::Memory { asked_bytes, allowed_bytes } = refusal("memory_bomb_at_start") else { panic!() };
    assert_eq!(asked_bytes, 3_840 << 20);
    assert_eq!(allowed_bytes, 256 << 20);
}

#[test]
fn table_bomb_at_start() {
    let refusal = refusal("table_bomb_at_start");
    assert!(matches!(refusal, Refusal::Table { asked_elements: 10_000_000, allowed_elements: 20_000 }), "{refusal:?}");
}

#[test]
fn memory_bomb_later() {
    // Little, because to touch memory takes processor time, and that is limited too.
    let test = engine_with(|config| config.memory_bytes_max = 16 << 20);
    let refusal = test.engine.accept(&component("memory_bomb_later"), &UploadOptions::default()).unwrap_err();
    let Refusal::Law(violation) = refusal else { panic!("{refusal}") };
    assert_eq!((violation.law, violation.row), (Law::Total, Some(0)));
    assert!(violation.what.starts_with("the component asked for "), "{violation}");
    assert!(violation.what.ends_with("the limit is 16777216 (memory_bytes_max)"), "{violation}");
    assert_engine_is_well(&test.engine);
}

#[test]
fn trials_that_take_too_long_in_all_are_ended() {
    let test = engine_with(|config| config.upload_cpu_ms_max = 1);
    let refusal = test.engine.accept(&component("bench_string"), &UploadOptions::default()).unwrap_err();
    let Refusal::Law(violation) = refusal else { panic!("{refusal}") };
    assert_eq!(violation.law, Law::Terminates);
    assert_eq!(violation.what, "the trials took more than 1 ms of processor time (upload_cpu_ms_max)");
}

#[test]
fn deep_recursion() {
    let (law, _, what) = violation("deep_recursion");
    assert_eq!(law, Law::Total);
    assert_eq!(what, "the call stack is exhausted: the recursion is too deep, or endless");
}

#[test]
fn trap() {
    let (law, _, what) = violation("traps");
    assert_eq!(law, Law::Total);
    assert_eq!(what, "trap: wasm trap: wasm `unreachable` instruction executed");
}

#[test]
fn panic_with_a_message() {
    let (law, row, what) = violation("panics");
    assert_eq!((law, row), (Law::Total, Some(0)));
    assert!(what.starts_with("panic: "), "{what}");
    assert!(what.contains("no rule for carrier ZZ in row 0"), "{what}");
}

#[test]
fn a_refusal_says_where_it_trapped() {
    let Refusal::Law(violation) = refusal("panics") else { panic!() };
    let frames: Vec<&str> = violation.backtrace.lines().collect();
    assert!(!frames.is_empty() && frames.len() <= 5, "{frames:?}");
    assert!(!frames[0].contains("panicking"), "{frames:?}");
    assert!(violation.to_string().contains(&format!("; in {}", frames[0])), "{violation}");
}

#[test]
fn declined_call() {
    let (law, _, what) = violation("declines");
    assert_eq!(law, Law::Total);
    assert_eq!(what, "the component failed the call: not in the mood for 1 columns and 1 rows");
}

#[test]
fn flood_of_diagnostics_is_dropped() {
    // It answers honestly, so there is nothing to refuse; what it says is dropped beyond the limits.
    let transform = smuggled(shared(), "diagnostics_flood", x_to_y("diagnostics_flood"));
    let applied = apply_int64s(&transform, &[7, 8], CallClass::Batch);
    assert_eq!(y_of(&applied), [Some(7), Some(8)]);
    assert_engine_is_well(shared());
}

#[test]
fn wrong_row_count() {
    let (law, row, what) = violation("wrong_row_count");
    assert_eq!((law, row), (Law::Contract, Some(0)));
    assert_eq!(what, "the component breaks the contract: output y has 0 values for 1 rows");
}

#[test]
fn wrong_type() {
    let (law, _, what) = violation("wrong_type");
    assert_eq!(law, Law::Contract);
    assert_eq!(what, "the component breaks the contract: output y is float64, int64 is described");
}

#[test]
fn bad_offsets() {
    let (law, _, what) = violation("bad_offsets");
    assert_eq!(law, Law::Contract);
    assert_eq!(what, "the component breaks the contract: the offsets of output label end at 2, its values at 1");
}

#[test]
fn bad_utf8() {
    let (law, _, what) = violation("bad_utf8");
    assert_eq!(law, Law::Contract);
    assert_eq!(what, "the component breaks the contract: output label is not UTF-8 in row 0");
}

#[test]
fn bad_pointer() {
    let refusal = refusal("bad_pointer");
    assert!(matches!(refusal, Refusal::Describe(Fault::Breach(_))), "{refusal:?}");
}

#[test]
fn giant_strings() {
    let (law, _, what) = violation("giant_strings");
    assert_eq!(law, Law::Contract);
    assert_eq!(
        what,
        "the component breaks the contract: output label has length 2097154 in row 0, the limit is 1048576"
    );
}

#[test]
fn giant_output() {
    let (law, _, what) = violation("giant_output");
    assert_eq!(law, Law::Total);
    assert_eq!(what, "the output is larger than 67108864 bytes (output_bytes_max)");
}

#[test]
fn description_that_changes() {
    let Refusal::DescribeChanges { what } = refusal("describe_changes") else { panic!() };
    assert_eq!(what, "a second call changes the name from `describe_changes_0` to `describe_changes_1`");
}

#[test]
fn description_of_nothing() {
    let problems = description_problems(refusal("describes_nothing"));
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].starts_with("the transform: a name begins with"), "{problems:?}");
    assert_eq!(problems[1], "there are no outputs");
}

#[test]
fn result_that_depends_on_an_earlier_call() {
    let (law, row, what) = violation("remembers_earlier_call");
    assert_eq!((law, row), (Law::Memoryless, Some(0)));
    assert_eq!(what, "in a first and a second call of one instance it is [Int64(0)] and [Int64(1)]");
}

#[test]
fn result_that_depends_on_the_batch_size() {
    let (law, row, what) = violation("depends_on_batch_size");
    assert_eq!((law, row), (Law::RowByRow, Some(0)));
    assert_eq!(what, "alone and with all others it is [Int64(1)] and [Int64(512)]");
}

#[test]
fn result_that_depends_on_the_row_order() {
    let (law, row, _) = violation("depends_on_row_order");
    assert_eq!(law, Law::RowByRow);
    assert!(row.is_some_and(|row| row > 0));
}

#[test]
fn result_that_depends_on_the_place_in_the_batch() {
    let (law, row, what) = violation("depends_on_first_rows");
    assert_eq!(law, Law::Order);
    assert!(row.is_some());
    assert!(what.starts_with("alone and in a shuffled batch it is [Int64("), "{what}");
}

#[test]
fn breach_that_only_a_batch_has() {
    let (law, row, what) = violation("breaches_in_batches");
    assert_eq!((law, row), (Law::Contract, None));
    assert_eq!(
        what,
        "in a call with 512 rows: the component breaks the contract: the validity bitmap of output y has 63 bytes \
         instead of 64 or 0"
    );
}

#[test]
fn trap_that_only_a_batch_has() {
    let (law, row, what) = violation("traps_in_batches");
    assert_eq!((law, row), (Law::RowByRow, None));
    assert_eq!(
        what,
        "each of 512 rows has an answer alone, in one call they have none: trap: wasm trap: wasm `unreachable` \
         instruction executed"
    );
}

#[test]
fn trap_that_only_a_second_call_has() {
    let (law, row, what) = violation("traps_in_second_call");
    assert_eq!((law, row), (Law::Memoryless, None));
    assert_eq!(
        what,
        "a second call of one instance fails, the first did not: trap: wasm trap: wasm `unreachable` instruction \
         executed"
    );
}

#[test]
fn values_that_no_host_can_generate() {
    let problems = description_problems(refusal("needs_giant_values"));
    assert_eq!(
        problems,
        [
            "the inputs of one row take 9000000000 bytes at least, 1048576 are allowed (row_bytes_max)",
            "input `text`: a length of 1000000000 at least, 1048576 is allowed (value_bytes_max)",
            "input `list`: a length of 1000000000 at least, 65536 is allowed (list_elements_max)",
        ]
    );
}

#[test]
fn rows_that_are_too_wide() {
    let problems = description_problems(refusal("wide_rows"));
    let wide = |what: &str| {
        format!("the {what} of one row take 262144000 bytes at least, 1048576 are allowed (row_bytes_max)")
    };
    assert_eq!(problems, [wide("inputs"), wide("outputs")]);
}

#[test]
fn more_core_instances_than_a_component_needs() {
    let with_core_instances = |count: u8| {
        let mut bytes = component("bench_string");
        let core_module = add_core_module(&mut bytes, b"\0asm\x01\0\0\0");
        // Section 2: so many instances of that module, without arguments.
        bytes.extend([2, 1 + 3 * count, count]);
        for _ in 0..count {
            bytes.extend([0, core_module, 0]);
        }
        bytes
    };
    let options = UploadOptions { rows: 4, ..UploadOptions::default() };
    shared().accept(&with_core_instances(8), &options).unwrap();
    let Refusal::Contract { what } = shared().accept(&with_core_instances(17), &options).unwrap_err() else { panic!() };
    assert!(what.contains("core module instances, which exceeds the configured maximum of 16"), "{what}");
    assert_engine_is_well(shared());
}

#[test]
fn memories_of_several_modules() {
    let mut bytes = component("bench_string");
    add_core_module(&mut bytes, &wat::parse_str("(module (memory 1))").unwrap());
    let refusal = shared().accept(&bytes, &UploadOptions::default()).unwrap_err();
    assert!(matches!(refusal, Refusal::Memories(2)), "{refusal}");
}

/// Adds a core module to a component, and says which number it has.
fn add_core_module(component: &mut Vec<u8>, module: &[u8]) -> u8 {
    let is_module = |payload: &wasmparser::Payload<'_>| matches!(payload, wasmparser::Payload::ModuleSection { .. });
    let modules =
        wasmparser::Parser::new(0).parse_all(component).filter(|payload| is_module(payload.as_ref().unwrap()));
    let number = u8::try_from(modules.count()).unwrap();
    component.extend([1, u8::try_from(module.len()).unwrap()]);
    component.extend(module);
    number
}

#[test]
fn slow_batches_are_accepted_at_an_unknown_cost() {
    let test = engine_with(|config| config.upload_deadline_ms = 1_000);
    let options = UploadOptions::default();
    let accepted = test.engine.accept(&component("endless_loop_in_large_batches"), &options).unwrap();
    assert_eq!(accepted.cost.batch_rows, 0);
    let stored = || Err("the artefact was stored at upload".to_owned());
    let cost = Some(accepted.cost);
    let transform = test.engine.load(accepted.digest, stored, accepted.description, false, cost).unwrap();
    assert_eq!(transform.expected_cpu_us(1), None);
    assert!(!transform.runs_inline(1));
    assert_engine_is_well(&test.engine);
}

#[test]
fn nan_payloads_that_hide_what_a_component_looks_at_are_taken_to_matter() {
    let accepted = shared().accept(&component("traps_on_nan_payloads"), &UploadOptions::default()).unwrap();
    assert!(accepted.strict_nan);
}

#[test]
fn result_that_depends_on_a_maps_order() {
    let (law, row, _) = violation("depends_on_hash_order");
    assert_eq!(law, Law::RowByRow);
    assert!(row.is_some());
}

#[test]
fn result_that_depends_on_nan_bits_is_made_the_same_everywhere() {
    let accepted = shared().accept(&component("depends_on_nan_bits"), &UploadOptions::default()).unwrap();
    assert!(accepted.strict_nan);
    let unused = || Err("the artefact was stored at upload".to_owned());
    let transform = shared().load(accepted.digest, unused, accepted.description, true, None).unwrap();
    let applied = apply_int64s(&transform, &[1, -1], CallClass::Batch);
    assert_eq!(y_of(&applied), [Some(0x7ff8_0000_0000_0000); 2]);
    assert_engine_is_well(shared());
}

#[test]
fn import_of_random_numbers() {
    let Refusal::Import { import, culprit } = refusal("imports_random") else { panic!() };
    assert_eq!(import, "wasi:random/random@0.2.0");
    assert!(culprit.unwrap().starts_with("getrandom"));
}

#[test]
fn two_memories() {
    let Refusal::Malformed(what) = refusal("two_memories") else { panic!() };
    assert!(what.contains("multiple memories"), "{what}");
}

#[test]
fn core_module() {
    assert!(matches!(refusal("core_module"), Refusal::CoreModule { .. }));
}

#[test]
fn random_bytes() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut noise = Vec::new();
    for _ in 0..4_096 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend(state.to_le_bytes());
    }
    let honest = component("bench_numeric");
    let header = &honest[..8];
    let with_header: Vec<u8> = header.iter().chain(&noise).copied().collect();
    for bytes in [&noise[..], &with_header, b"", b"\0asm", &honest[..honest.len() / 2]] {
        let refusal = shared().accept(bytes, &UploadOptions::default()).unwrap_err();
        assert!(matches!(refusal, Refusal::Malformed(_)), "{refusal:?}");
    }
    assert_engine_is_well(shared());
}

#[test]
fn component_that_is_too_large() {
    let test = engine_with(|config| config.component_bytes_max = 1_000);
    let refusal = test.engine.accept(&component("bench_numeric"), &UploadOptions::default()).unwrap_err();
    assert!(matches!(refusal, Refusal::TooLarge { allowed_bytes: 1_000, .. }));
}

const POISON_TRAP: i64 = 6_660_001;
const POISON_PANIC: i64 = 6_660_002;
const POISON_LOOP: i64 = 6_660_003;
const POISON_MEMORY: i64 = 6_660_004;
const POISON_RECURSION: i64 = 6_660_005;
const POISON_DECLINE: i64 = 6_660_006;

#[test]
fn poisoned_rows_fail_alone() {
    let poisons = [
        (POISON_TRAP, FailureKind::Trap, "trap: wasm trap: wasm `unreachable` instruction executed"),
        (POISON_PANIC, FailureKind::Trap, "panic: "),
        (POISON_MEMORY, FailureKind::Limit(LimitKind::Memory), "the component asked for "),
        (POISON_RECURSION, FailureKind::Limit(LimitKind::Stack), "the call stack is exhausted"),
        (POISON_DECLINE, FailureKind::Declined, "the component failed the call: poisoned"),
    ];
    let test = engine_with(|config| config.memory_bytes_max = 16 << 20);
    let transform = smuggled(&test.engine, "poison_row", x_to_y("poison_row"));
    let clean: Vec<i64> = (0..100).collect();
    for (poison, kind, message) in poisons {
        for at in [0, 1, 49, 50, 98, 99] {
            let mut rows = clean.clone();
            rows[at] = poison;
            let applied = apply_int64s(&transform, &rows, CallClass::Batch);
            assert_eq!(applied.rows.failed.len(), 1, "{poison} at {at}");
            let failed = &applied.rows.failed[0];
            assert_eq!((failed.row as usize, failed.kind), (at, kind));
            assert!(failed.message.starts_with(message), "{}", failed.message);
            let expected: Vec<Option<i64>> =
                rows.iter().enumerate().map(|(row, x)| (row != at).then_some(*x)).collect();
            assert_eq!(y_of(&applied), expected);
        }
    }
    assert_engine_is_well(&test.engine);
}

#[test]
fn several_poisoned_rows_fail_each_with_its_own_reason() {
    let transform = smuggled(shared(), "poison_row", x_to_y("poison_row"));
    let rows = [1, POISON_TRAP, 3, POISON_DECLINE, POISON_PANIC, 6];
    let applied = apply_int64s(&transform, &rows, CallClass::Batch);
    let failed: Vec<(u32, FailureKind)> = applied.rows.failed.iter().map(|failed| (failed.row, failed.kind)).collect();
    assert_eq!(failed, [(1, FailureKind::Trap), (3, FailureKind::Declined), (4, FailureKind::Trap)]);
    assert_eq!(y_of(&applied), [Some(1), None, Some(3), None, None, Some(6)]);
}

#[test]
fn a_poisoned_row_is_not_found_by_upload_and_still_fails_alone() {
    let accepted = shared().accept(&component("poison_row"), &UploadOptions::default()).unwrap();
    assert_eq!(accepted.evidence.faulty_rows, 0);
}

#[test]
fn a_loop_in_a_batch_stops_the_job_and_names_the_row() {
    let test = engine_with(|config| {
        config.batch_deadline_base_ms = 100;
        config.batch_deadline_row_ms_max = 400;
    });
    let transform = smuggled(&test.engine, "poison_row", x_to_y("poison_row"));
    let mut rows: Vec<i64> = (0..64).collect();
    rows[37] = POISON_LOOP;
    let error = transform.apply(64, &[int64s(rows)], CallClass::Batch).unwrap_err();
    let EngineError::Deadline { transform: name, row, after_ms } = error else { panic!("{error}") };
    assert_eq!((name.as_str(), row, after_ms), ("poison_row", 37, 400));
    assert_engine_is_well(&test.engine);
}

#[test]
fn a_loop_in_serving_fails_its_row_and_no_other() {
    // Long enough for the honest halves, however busy the machine is.
    let test = engine_with(|config| config.serving_deadline_base_ms = 100);
    let transform = smuggled(&test.engine, "poison_row", x_to_y("poison_row"));
    let applied = apply_int64s(&transform, &[1, 2, POISON_LOOP, 4], CallClass::Serving);
    assert_eq!(applied.rows.failed.len(), 1);
    assert_eq!((applied.rows.failed[0].row, applied.rows.failed[0].kind), (2, FailureKind::Deadline));
    assert_eq!(y_of(&applied), [Some(1), Some(2), None, Some(4)]);
    assert_engine_is_well(&test.engine);
}

#[test]
fn a_request_full_of_loops_is_given_up_as_a_whole() {
    let test = engine_with(|config| {
        config.serving_deadline_base_ms = 10;
        config.serving_deadline_per_row_us = 0;
        config.serving_deadline_total_ms = 30;
    });
    let transform = smuggled(&test.engine, "poison_row", x_to_y("poison_row"));
    let before = thread_cpu_time();
    let applied = apply_int64s(&transform, &[POISON_LOOP; 256], CallClass::Serving);
    assert_eq!(applied.rows.failed.len(), 256);
    assert!(applied.rows.failed.iter().all(|failed| failed.kind == FailureKind::Deadline));
    // 511 calls of 10 ms each would be five seconds.
    let spent = thread_cpu_time() - before;
    assert!(spent < Duration::from_secs(2), "{spent:?}");
}

#[test]
fn a_request_full_of_traps_is_given_up_as_well() {
    // No time is left once the first call has failed.
    let test = engine_with(|config| config.serving_deadline_total_ms = 0);
    let transform = smuggled(&test.engine, "poison_row", x_to_y("poison_row"));
    let rows = [1, POISON_TRAP, 3];
    let served = apply_int64s(&transform, &rows, CallClass::Serving);
    let kinds: Vec<FailureKind> = served.rows.failed.iter().map(|failed| failed.kind).collect();
    assert_eq!(kinds, [FailureKind::Deadline; 3]);
    assert_eq!(y_of(&served), [None; 3]);
    let in_batch = apply_int64s(&transform, &rows, CallClass::Batch);
    assert_eq!(y_of(&in_batch), [Some(1), None, Some(3)]);
}

#[test]
fn outputs_that_are_too_large_all_together_end_the_application() {
    let test = engine_with(|config| {
        config.call_rows_max = 1_000;
        config.applied_bytes_max = 100_000;
    });
    let transform = smuggled(&test.engine, "poison_row", x_to_y("poison_row"));
    // 8 bytes a row: 80,000 are allowed, 160,000 are not, also where the rows have no result.
    let honest = |rows: usize| transform.apply(rows, &[int64s(0..rows as i64)], CallClass::Batch);
    assert_eq!(honest(10_000).unwrap().rows, Default::default());
    let error = honest(20_000).unwrap_err();
    assert!(matches!(error, EngineError::Applied { rows: 20_000, allowed_bytes: 100_000, .. }), "{error}");
    assert_engine_is_well(&test.engine);
}

#[test]
fn every_limit_is_named_when_it_is_hit() {
    let test = engine_with(|config| config.memory_bytes_max = 8 << 20);
    let transform = smuggled(&test.engine, "poison_row", x_to_y("poison_row"));
    let applied = apply_int64s(&transform, &[POISON_MEMORY], CallClass::Batch);
    let message = &applied.rows.failed[0].message;
    assert!(message.ends_with("the limit is 8388608 (memory_bytes_max)"), "{message}");

    let test = engine_with(|config| config.output_bytes_max = 10_000);
    let transform = smuggled(&test.engine, "contract_breaches", x_to_all_shapes("contract_breaches"));
    // Each row gives 18 bytes and some offsets: all together are too much, each alone is not.
    let rows: Vec<i64> = (0..1_000).collect();
    let applied = apply_int64s(&transform, &rows, CallClass::Batch);
    assert_eq!(applied.rows, Default::default());
    assert_eq!(y_of(&applied), rows.iter().copied().map(Some).collect::<Vec<_>>());
    assert_eq!(Fault::Limit(LimitHit::Stack).code(), "stack");
}

#[test]
fn a_component_that_takes_too_long_to_compile_is_refused_in_time() {
    let bomb = compile_bomb();
    let test = engine_with(|config| config.compile_ms_max = 300);
    let refusal = test.engine.accept(&bomb, &UploadOptions::default()).unwrap_err();
    assert_eq!(refusal.code(), "compile_time", "{refusal}");
    assert_engine_is_well(shared());
}

#[test]
fn a_component_that_takes_too_much_memory_to_compile_is_refused() {
    let bomb = compile_bomb();
    let test = engine_with(|config| config.compile_memory_bytes_max = 96 << 20);
    let refusal = test.engine.accept(&bomb, &UploadOptions::default()).unwrap_err();
    assert_eq!(refusal.code(), "compile_memory", "{refusal}");
    assert_engine_is_well(shared());
}

#[test]
fn a_component_whose_machine_code_is_too_large_is_refused() {
    let test = engine_with(|config| config.artifact_bytes_max = 10_000);
    let refusal = test.engine.accept(&component("bench_string"), &UploadOptions::default()).unwrap_err();
    assert_eq!(refusal.code(), "compile_size", "{refusal}");
}

/// A small component whose one function keeps a compiler busy: a web of locals, all alive at once.
fn compile_bomb() -> Vec<u8> {
    const LOCALS: usize = 4_000;
    const ROUNDS: usize = 25;
    let mut body = String::new();
    for round in 0..ROUNDS {
        for local in 0..LOCALS {
            let other = (local * 7 + round * 13 + 1) % LOCALS;
            body.push_str(&format!(
                "(local.set {local} (i64.add (local.get {local}) (i64.mul (local.get {other}) (i64.const {round}))))\n"
            ));
        }
        body.push_str("(if (i64.eqz (local.get 1)) (then (local.set 0 (local.get 2))))\n");
    }
    let locals = "i64 ".repeat(LOCALS);
    let module = format!(
        r#"(module
            (memory (export "memory") 1)
            (func $bomb (result i64) (local {locals}) {body} (local.get 0))
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
            (func (export "eadem:transform/transform@0.1.0#describe") (result i32) (drop (call $bomb)) i32.const 1024)
            (func (export "eadem:transform/transform@0.1.0#apply") (param i32 i32 i32) (result i32) unreachable))"#
    );
    crate::upload::componentize(&module)
}
