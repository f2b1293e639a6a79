//! What the host keeps beside one instance: its limits and what it said.

use wasmtime::ResourceLimiter;

use crate::bindings::eadem::transform::diagnostics;
use crate::config::EngineConfig;
use crate::error::LimitHit;

/// The data of one store. It lives as long as one instance: one call.
pub(crate) struct CallState {
    memory: MemoryMeter,
    diagnostics: Diagnostics,
}

struct MemoryMeter {
    used_bytes: u64,
    allowed_bytes: u64,
    table_elements_used: u64,
    table_elements_max: u64,
}

/// What a component reported of itself, cut to what the configuration allows.
struct Diagnostics {
    calls_left: u32,
    bytes_left: usize,
    last: Option<String>,
}

/// Raised through the guest when a limit refuses it something, and found again at the bottom of the call.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) LimitHit);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Refused {}

impl CallState {
    pub(crate) fn new(config: &EngineConfig) -> Self {
        Self {
            memory: MemoryMeter {
                used_bytes: 0,
                allowed_bytes: config.memory_bytes_max_in_pages(),
                table_elements_used: 0,
                table_elements_max: u64::from(config.table_elements_max),
            },
            diagnostics: Diagnostics {
                calls_left: config.diagnostics_calls_max,
                bytes_left: config.diagnostics_bytes_max as usize,
                last: None,
            },
        }
    }

    /// Linear memory of the instance now. Memory never shrinks, so this is also its peak.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory.used_bytes
    }

    /// The message of the last panic that the component reported.
    pub(crate) fn take_panic_message(&mut self) -> Option<String> {
        self.diagnostics.last.take()
    }
}

impl ResourceLimiter for CallState {
    fn memory_growing(
        &mut self,
        current_bytes: usize,
        desired_bytes: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let grown_by = (desired_bytes as u64).saturating_sub(current_bytes as u64);
        let asked_bytes = self.memory.used_bytes.saturating_add(grown_by);
        if asked_bytes > self.memory.allowed_bytes {
            let allowed_bytes = self.memory.allowed_bytes;
            return Err(Refused(LimitHit::Memory { asked_bytes, allowed_bytes }).into());
        }
        self.memory.used_bytes = asked_bytes;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        current_elements: usize,
        desired_elements: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let grown_by = (desired_elements as u64).saturating_sub(current_elements as u64);
        let asked_elements = self.memory.table_elements_used.saturating_add(grown_by);
        if asked_elements > self.memory.table_elements_max {
            let allowed_elements = self.memory.table_elements_max;
            return Err(Refused(LimitHit::Table { asked_elements, allowed_elements }).into());
        }
        self.memory.table_elements_used = asked_elements;
        Ok(true)
    }
}

impl diagnostics::Host for CallState {
    fn panicked(&mut self, message: String) {
        let diagnostics = &mut self.diagnostics;
        if diagnostics.calls_left == 0 || diagnostics.bytes_left == 0 {
            return;
        }
        diagnostics.calls_left -= 1;
        let kept = cut_to(&message, diagnostics.bytes_left);
        diagnostics.bytes_left -= kept.len();
        diagnostics.last = Some(kept.to_owned());
    }
}

/// The longest prefix of whole characters with at most `bytes_max` bytes.
pub(crate) fn cut_to(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bindings::eadem::transform::diagnostics::Host;

    fn state(calls_max: u32, bytes_max: u32) -> CallState {
        CallState::new(&EngineConfig {
            diagnostics_calls_max: calls_max,
            diagnostics_bytes_max: bytes_max,
            ..EngineConfig::default()
        })
    }

    #[test]
    fn calls_of_diagnostics_beyond_the_limit_are_not_heard() {
        let mut state = state(2, 1_000);
        for message in ["first", "second", "third"] {
            state.panicked(message.to_owned());
        }
        assert_eq!(state.take_panic_message().as_deref(), Some("second"));
    }

    #[test]
    fn bytes_of_diagnostics_beyond_the_limit_are_not_kept() {
        let mut state = state(100, 10);
        state.panicked("seven b".to_owned());
        // Three bytes are left; the second character has two of its own.
        state.panicked("abé".to_owned());
        assert_eq!(state.take_panic_message().as_deref(), Some("ab"));
        state.panicked("z".repeat(100));
        assert_eq!(state.take_panic_message().as_deref(), Some("z"));
        state.panicked("nothing is left".to_owned());
        assert_eq!(state.take_panic_message(), None);
    }
}
