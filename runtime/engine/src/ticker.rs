//! The clock that deadlines are counted in.

use std::time::Duration;

use wasmtime::Engine;

/// Advances the engine's epoch once per tick, until the engine is gone.
pub(crate) fn start(engine: &Engine, tick: Duration) -> Result<(), String> {
    let engine = engine.weak();
    let run = move || {
        loop {
            std::thread::sleep(tick);
            let Some(engine) = engine.upgrade() else {
                return;
            };
            engine.increment_epoch();
        }
    };
    let thread = std::thread::Builder::new().name("engine-ticker".to_owned()).spawn(run);
    thread.map(drop).map_err(|error| format!("the ticker thread: {error}"))
}
