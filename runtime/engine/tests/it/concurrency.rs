//! Many calls at once, and the pool of threads.

use std::future::Future;
use std::pin::pin;
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use eadem_engine::{CallClass, EngineError, JobLost};

use crate::support::{apply_int64s, assert_engine_is_well, engine_with, shared, smuggled, x_to_y, y_of};

#[test]
fn honest_calls_are_right_while_others_trap_and_loop() {
    // What the loop waits for; honest calls need a few microseconds of it.
    let test = engine_with(|config| {
        config.batch_deadline_base_ms = 500;
        config.batch_deadline_row_ms_max = 2_000;
    });
    let transform = smuggled(&test.engine, "poison_row", x_to_y("poison_row"));
    std::thread::scope(|scope| {
        for poison in [6_660_001, 6_660_002, 6_660_005] {
            let transform = &transform;
            scope.spawn(move || {
                for round in 0..20 {
                    let applied = apply_int64s(transform, &[round, poison], CallClass::Batch);
                    assert_eq!(y_of(&applied), [Some(round), None]);
                }
            });
        }
        let looping = &transform;
        scope.spawn(move || {
            let stopped = looping.apply(1, &[crate::support::int64s([6_660_003])], CallClass::Batch);
            assert!(matches!(stopped, Err(EngineError::Deadline { row: 0, .. })));
        });
        for thread in 0..3_i64 {
            let transform = &transform;
            scope.spawn(move || {
                for round in 0..50 {
                    let rows: Vec<i64> = (0..100).map(|row| thread * 1_000 + round + row).collect();
                    let applied = apply_int64s(transform, &rows, CallClass::Batch);
                    assert_eq!(y_of(&applied), rows.iter().copied().map(Some).collect::<Vec<_>>());
                }
            });
        }
    });
    assert_engine_is_well(&test.engine);
}

#[test]
fn an_exhausted_pool_is_said_and_recovers() {
    let test = engine_with(|config| {
        config.instances_max = 1;
        config.batch_deadline_row_ms_max = 2_000;
        config.batch_deadline_base_ms = 2_000;
    });
    let transform = smuggled(&test.engine, "poison_row", x_to_y("poison_row"));
    std::thread::scope(|scope| {
        let looping = scope.spawn(|| transform.apply(1, &[crate::support::int64s([6_660_003])], CallClass::Batch));
        // The loop holds the only instance from some moment on, until its deadline.
        let mut was_busy = false;
        while !looping.is_finished() {
            let honest = transform.apply(1, &[crate::support::int64s([1])], CallClass::Batch);
            was_busy |= matches!(honest, Err(EngineError::Busy { instances_max: 1 }));
        }
        // The loop itself may have found the instance taken by an honest call.
        let stopped = looping.join().unwrap();
        assert!(was_busy || matches!(stopped, Err(EngineError::Busy { .. })));
    });
    let applied = apply_int64s(&transform, &[5], CallClass::Batch);
    assert_eq!(y_of(&applied), [Some(5)]);
}

#[test]
fn a_pool_that_the_address_space_cannot_hold_fails_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = crate::support::config(directory.path());
    config.instances_max = 1_000_000;
    let error = eadem_engine::Engine::new(config).unwrap_err();
    assert!(error.to_string().starts_with("the engine cannot start: "), "{error}");
    assert!(error.to_string().contains("instances_max is 1000000"), "{error}");
}

#[test]
fn numbers_that_make_no_sense_are_named_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let error_of = |change: &dyn Fn(&mut eadem_engine::EngineConfig)| {
        let mut config = crate::support::config(directory.path());
        change(&mut config);
        eadem_engine::Engine::new(config).unwrap_err().to_string()
    };
    let start = "the engine cannot start: ";
    assert_eq!(
        error_of(&|config| config.instances_max = 0),
        format!("{start}instances_max is 0; it has to be at least 1")
    );
    assert_eq!(
        error_of(&|config| config.stack_bytes_max = 8 << 20),
        format!("{start}stack_bytes_max is 8388608; it can be at most 1048576")
    );
    // It would start itself without end.
    let nothing = error_of(&|config| config.compiler = Default::default());
    assert!(nothing.starts_with(&format!("{start}compiler names neither a program nor arguments")), "{nothing}");
}

#[test]
fn the_cpu_pool_runs_jobs_and_turns_away_what_it_cannot_hold() {
    let test = engine_with(|config| {
        config.cpu_threads = 1;
        config.cpu_queue_jobs_max = 2;
    });
    let pool = test.engine.cpu_pool();
    let (started, has_started) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let blocking = pool.submit(Some(1), move || {
        started.send(()).unwrap();
        released.recv().unwrap();
        1
    });
    has_started.recv().unwrap();
    let second = pool.submit(Some(1), || 2).unwrap();
    let third = pool.submit(Some(1), || 3).unwrap();
    assert_eq!(pool.waiting(), 2);
    let refused = pool.submit(Some(1), || 4).err().unwrap();
    assert_eq!(
        refused.to_string(),
        "2 jobs of about 1 ms wait for the CPU pool already (cpu_queue_jobs_max, cpu_queue_ms_max)"
    );
    release.send(()).unwrap();
    assert_eq!(wait(blocking.unwrap()), Ok(1));
    assert_eq!(wait(second), Ok(2));
    assert_eq!(wait(third), Ok(3));
    assert_eq!(pool.waiting(), 0);
}

#[test]
fn the_cpu_pool_turns_away_what_would_wait_too_long() {
    let test = engine_with(|config| {
        config.cpu_threads = 1;
        config.cpu_queue_ms_max = 20;
    });
    let pool = test.engine.cpu_pool();
    let (started, has_started) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let blocking = pool.submit(Some(1_000_000), move || {
        started.send(()).unwrap();
        released.recv().unwrap();
    });
    has_started.recv().unwrap();
    // The one that runs does not wait; the first that waits may take as long as it will.
    let long = pool.submit(Some(50_000), || "long").unwrap();
    let refused = pool.submit(Some(1), || ()).err().unwrap();
    assert_eq!((refused.waiting, refused.expected_us), (1, 50_000));
    release.send(()).unwrap();
    assert_eq!(wait(blocking.unwrap()), Ok(()));
    assert_eq!(wait(long), Ok("long"));
    // Nothing waits any more, and what nobody knows the cost of counts as ten milliseconds.
    let (started, has_started) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let blocking = pool.submit(None, move || {
        started.send(()).unwrap();
        released.recv().unwrap();
    });
    has_started.recv().unwrap();
    let waiting = [pool.submit(None, || ()).unwrap(), pool.submit(None, || ()).unwrap()];
    assert_eq!(pool.submit(Some(1), || ()).err().unwrap().expected_us, 20_000);
    release.send(()).unwrap();
    assert_eq!(wait(blocking.unwrap()), Ok(()));
    for job in waiting {
        assert_eq!(wait(job), Ok(()));
    }
}

#[test]
fn a_job_that_panics_takes_no_thread_with_it() {
    let test = engine_with(|config| config.cpu_threads = 1);
    let pool = test.engine.cpu_pool();
    let lost = pool.submit(None, || -> u32 { panic!("on purpose") }).unwrap();
    assert_eq!(wait(lost), Err(JobLost));
    assert_eq!(wait(pool.submit(None, || 7).unwrap()), Ok(7));
}

#[test]
fn a_transform_knows_what_it_costs() {
    let numeric = crate::support::accepted(shared(), "bench_numeric");
    let cost = numeric.cost().unwrap();
    assert!(cost.fuel_per_row > 10.0 && cost.fuel_per_row < 100_000.0, "{cost:?}");
    assert!(cost.memory_bytes >= 64 * 1024);
    assert!(numeric.expected_cpu_us(10_000).unwrap() > numeric.expected_cpu_us(1).unwrap());
    assert!(!numeric.runs_inline(100_000_000));
    let unmeasured = smuggled(shared(), "poison_row", x_to_y("poison_row"));
    assert_eq!(unmeasured.expected_cpu_us(1), None);
    assert!(!unmeasured.runs_inline(1));
}

#[test]
fn fuel_is_a_label_that_does_not_change() {
    let fuel = || {
        let test = engine_with(|_| {});
        let bytes = crate::support::component("bench_string");
        test.engine.accept(&bytes, &eadem_engine::UploadOptions::default()).unwrap().cost.fuel_per_row
    };
    let label = fuel();
    assert!(label > 0.0);
    assert_eq!(fuel(), label);
}

/// Waits for a future without any runtime.
fn wait<F: Future>(future: F) -> F::Output {
    struct Signal(Mutex<bool>, Condvar);
    impl Wake for Signal {
        fn wake(self: Arc<Self>) {
            *self.0.lock().unwrap() = true;
            self.1.notify_one();
        }
    }
    let signal = Arc::new(Signal(Mutex::new(false), Condvar::new()));
    let waker = Waker::from(Arc::clone(&signal));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
            return result;
        }
        let mut was_woken = signal.0.lock().unwrap();
        while !*was_woken {
            was_woken = signal.1.wait(was_woken).unwrap();
        }
        *was_woken = false;
    }
}
