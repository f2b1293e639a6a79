//! The check in child processes: the same verdicts as in this process, and nothing left behind whatever becomes of a child.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use eadem_engine::{Accepted, CheckError, CheckPriority, CompilerCommand, Engine, RefusalReport, Stop, UploadOptions};
use eadem_values::Digest;

use crate::support::{TestEngine, component, engine_with, shared};

const OPTIONS: UploadOptions = UploadOptions { seed: 7, rows: 32, strict_nan: false };

fn check(engine: &Engine, component: &[u8]) -> Result<Accepted, CheckError> {
    engine.check(component, &OPTIONS, CheckPriority::Normal, &Stop::default()).map(|checked| checked.accepted)
}

/// Without what differs from run to run: processor time.
fn without_time(accepted: Accepted) -> Accepted {
    let mut accepted = accepted;
    (accepted.cost.cpu_us_per_call, accepted.cost.cpu_us_per_row) = (0.0, 0.0);
    accepted
}

#[test]
fn the_verdict_is_that_of_a_check_in_this_process() {
    let test = engine_with(|_| {});
    for name in ["bench_numeric", "partial_filter", "depends_on_nan_bits", "poison_row"] {
        let bytes = component(name);
        let here = shared().accept(&bytes, &OPTIONS).unwrap();
        let there = check(&test.engine, &bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(without_time(there), without_time(here), "{name}");
    }
    // What was checked is kept by whoever wants it kept.
    let bytes = component("bench_numeric");
    let checked = test.engine.check(&bytes, &OPTIONS, CheckPriority::Lowest, &Stop::default()).unwrap();
    let artifact = test.engine.artifact_path(&Digest::of(&bytes), false);
    assert!(!artifact.exists());
    test.engine.keep(&checked);
    assert!(artifact.exists());
    let accepted = checked.accepted;
    let unused = || Err("the artefact is there".to_owned());
    test.engine.load(accepted.digest, unused, accepted.description, accepted.strict_nan, None).unwrap();
}

#[test]
fn refusals_are_those_of_a_check_in_this_process() {
    // An engine with short deadlines for those that never end.
    let test = engine_with(|config| config.upload_deadline_ms = 300);
    for name in [
        "core_module",
        "imports_random",
        "two_memories",
        "memory_bomb_at_start",
        "describes_nothing",
        "describe_changes",
        "endless_loop_in_apply",
        "wrong_row_count",
        "wrong_type",
        "depends_on_row_order",
        "depends_on_first_rows",
        "panics",
        "traps_in_second_call",
    ] {
        let bytes = component(name);
        let here = test.engine.accept(&bytes, &OPTIONS).unwrap_err().report();
        let Err(CheckError::Refused(there)) = check(&test.engine, &bytes) else { panic!("{name} is accepted") };
        assert_eq!(*there, here, "{name}");
    }
}

#[test]
fn a_report_says_which_law_which_row_and_which_field() {
    let found = |name: &str| {
        let Err(CheckError::Refused(report)) = check(shared(), &component(name)) else { panic!("{name} is accepted") };
        *report
    };
    let RefusalReport { code, law, seed, row, field, .. } = found("depends_on_row_order");
    assert_eq!((code.as_str(), law.as_deref(), seed), ("law_row_by_row", Some("row_by_row"), Some(7)));
    assert!(row.is_some());
    assert_eq!(field.as_deref(), Some("y"));
    let RefusalReport { code, law, row, field, .. } = found("wrong_row_count");
    assert_eq!((code.as_str(), law.as_deref(), row), ("law_contract", Some("contract"), Some(0)));
    assert_eq!(field.as_deref(), Some("y"));
    let RefusalReport { code, law, seed, row, field, .. } = found("imports_random");
    assert_eq!((code.as_str(), law, seed, row, field), ("import", None, None, None, None));
    let RefusalReport { code, field, .. } = found("needs_giant_values");
    assert_eq!(code, "description");
    assert!(field.is_some());
}

/// Processes that this one has started and not yet reaped.
fn children() -> Vec<u32> {
    let mut all = Vec::new();
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        let listed = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        all.extend(listed.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
    }
    all
}

fn is_of(child: u32, test: &TestEngine) -> bool {
    let arguments = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
    let mark = test.directory.path().to_str().unwrap().as_bytes();
    arguments.windows(mark.len()).any(|bytes| bytes == mark)
}

/// An engine whose children can be told from those of other tests: an argument that they do not look at names its folder.
fn marked_engine(change: impl FnOnce(&mut eadem_engine::EngineConfig)) -> TestEngine {
    engine_with(|config| {
        config.compiler.args = vec![config.artifacts_dir.display().to_string()];
        change(config);
    })
}

fn wait_for_child(test: &TestEngine) -> u32 {
    let began = Instant::now();
    loop {
        // A child that compiles is gone soon; the one that runs the component stays.
        let seen: Vec<u32> = children().into_iter().filter(|child| is_of(*child, test)).collect();
        if let [only] = seen.as_slice() {
            return *only;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "no child was seen: {seen:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn assert_no_child_is_left(test: &TestEngine) {
    let left: Vec<u32> = children().into_iter().filter(|child| is_of(*child, test)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_child_that_is_killed_decides_nothing_and_the_next_check_works() {
    let test = marked_engine(|config| config.upload_deadline_ms = 60_000);
    let endless = component("endless_loop_in_describe");
    let outcome = std::thread::scope(|scope| {
        let checking = scope.spawn(|| check(&test.engine, &endless));
        let child = wait_for_child(&test);
        let killed = Command::new("kill").args(["-KILL", &child.to_string()]).status().unwrap();
        assert!(killed.success());
        checking.join().unwrap()
    });
    assert_eq!(outcome.unwrap_err(), CheckError::Killed);
    assert_no_child_is_left(&test);
    check(&test.engine, &component("bench_numeric")).unwrap();
    assert_no_child_is_left(&test);
}

#[test]
fn a_check_that_is_called_off_ends_with_its_child() {
    let test = marked_engine(|config| config.upload_deadline_ms = 60_000);
    let endless = component("endless_loop_in_describe");
    let stop = Stop::default();
    let outcome = std::thread::scope(|scope| {
        let checking = scope.spawn(|| test.engine.check(&endless, &OPTIONS, CheckPriority::Lowest, &stop));
        wait_for_child(&test);
        stop.stop();
        checking.join().unwrap()
    });
    assert_eq!(outcome.unwrap_err(), CheckError::Stopped);
    assert_no_child_is_left(&test);
}

#[test]
fn a_check_that_takes_too_long_is_no_refusal() {
    let test = marked_engine(|config| {
        config.upload_deadline_ms = 60_000;
        config.check_ms_max = 1_500;
    });
    let error = check(&test.engine, &component("endless_loop_in_describe")).unwrap_err();
    assert!(error.code().is_none(), "{error:?}");
    assert!(error.to_string().contains("(check_ms_max)"), "{error}");
    assert_no_child_is_left(&test);
}

#[test]
fn a_child_gets_no_more_memory_than_it_may_have() {
    let test = engine_with(|config| config.check_memory_bytes_max = 1 << 20);
    let error = check(&test.engine, &component("bench_numeric")).unwrap_err();
    // Too little to start with is our fault or its own; either way there is no verdict, and no child.
    assert!(!matches!(error, CheckError::Refused(_)), "{error:?}");
}

/// A program in the child's place.
fn impostor(directory: &Path, script: &str) -> CompilerCommand {
    let program = directory.join("impostor");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    CompilerCommand { program, args: Vec::new() }
}

fn verdict_of_impostor(script: &str) -> CheckError {
    let test = engine_with(|config| config.compiler = impostor(&config.artifacts_dir.clone(), script));
    check(&test.engine, &component("bench_numeric")).unwrap_err()
}

/// A message as the child sends it.
fn message(json: &str) -> String {
    let length: String = (json.len() as u64).to_le_bytes().iter().map(|byte| format!("\\{byte:03o}")).collect();
    format!("cat >/dev/null & printf '{length}'; printf '%s' '{json}'")
}

#[test]
fn what_a_child_says_is_believed_only_as_far_as_it_can_be_true() {
    let died = |error: CheckError, what: &str| {
        assert!(matches!(&error, CheckError::Died(text) if text.contains(what)), "{error:?}");
        assert_eq!(error.code(), Some("check_died"));
    };
    died(verdict_of_impostor("echo hello"), "its messages break off");
    died(verdict_of_impostor("head -c 100000 /dev/zero | tr '\\0' '\\377'; exec sleep 600"), "a message of");
    died(verdict_of_impostor(&message("{\"Verdict\":")), "a message that is none");
    died(verdict_of_impostor("kill -SEGV $$"), "signal");
    let asks = message("{\"Compile\":\"production\"}");
    died(verdict_of_impostor(&format!("{asks}; {asks}")), "the same machine code twice");

    // An acceptance of something else.
    let accepted = shared().accept(&component("bench_string"), &OPTIONS).unwrap();
    let json = format!("{{\"Verdict\":{{\"Accepted\":{}}}}}", serde_json::to_string(&accepted).unwrap());
    died(verdict_of_impostor(&message(&json.replace('\'', "´"))), "another component");
    // An acceptance of this one, of which it has not seen a line run.
    let accepted = shared().accept(&component("bench_numeric"), &OPTIONS).unwrap();
    let json = format!("{{\"Verdict\":{{\"Accepted\":{}}}}}", serde_json::to_string(&accepted).unwrap());
    died(verdict_of_impostor(&message(&json.replace('\'', "´"))), "not seen run");
}

#[test]
fn what_a_child_says_is_cut_before_it_goes_into_logs_and_answers() {
    const LONG: usize = 100_000;
    let long = "x".repeat(LONG);
    let report = |blames: bool| {
        format!(
            "{{\"Verdict\":{{\"Refused\":{{\"code\":\"law\",\"message\":\"{long}\",\"law\":null,\"seed\":null,\
             \"row\":null,\"field\":null,\"blames_component\":{blames}}}}}}}"
        )
    };
    let unknown = format!("{{\"Verdict\":{{\"{long}\":1}}}}");
    let texts = [report(true), report(false), unknown].map(|json| verdict_of_impostor(&message(&json)));
    assert!(matches!(&texts, [CheckError::Refused(_), CheckError::Process(_), CheckError::Died(_)]), "{texts:?}");
    for error in texts {
        let text = error.to_string();
        assert!(text.contains("xxx") && text.len() < LONG / 4, "{} bytes", text.len());
    }
}
