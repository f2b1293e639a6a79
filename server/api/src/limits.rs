//! What one request may ask for. Every limit has its documented answer: 408, 413, 414, 422 or 503.

use serde::{Deserialize, Serialize};

/// Limits on requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of a request's body, components excepted; over it: 413.
    pub body_bytes_max: usize,
    /// Milliseconds in which a request's body has to arrive, components excepted; after them: 408.
    pub body_ms_max: u64,
    /// Bytes of the bodies of all requests at once, those that are small and there at once excepted; over it: 503 with
    /// Retry-After. At least one body as large as may be is always taken.
    pub bodies_bytes_max: usize,
    /// Bytes of an uploaded component; over it: 413.
    pub component_bytes_max: usize,
    /// Uploads that are checked at once, each in a child process.
    pub uploads_at_once: usize,
    /// Whether a server checks uploads only where nothing else wants to run; on a machine that is always busy they hardly ever do.
    pub uploads_lowest_priority: bool,
    /// Uploads that may be on their way or wait for their check besides; over it: 503 with Retry-After. What waits lies on disk.
    pub uploads_waiting_max: usize,
    /// Milliseconds in which the bytes of an upload have to arrive; after them: 408.
    pub upload_ms_max: u64,
    /// Entities in one batch; over it: 413.
    pub entities_max: usize,
    /// Features in one request; over it: 413.
    pub features_max: usize,
    /// Values in one request: entities × features, and those in its body; over it: 413.
    pub values_max: usize,
    /// Bytes of an entity id in a path or query; over it: 414.
    pub key_bytes_max_in_path: usize,
    /// Bytes of a key in a body; over it: 422.
    pub key_bytes_max_in_body: usize,
    /// Entities of one view in one request that are looked up in the offline store; over it: 413.
    pub history_reads_max: usize,
    /// Milliseconds that the offline store has for the reads of one view; after them: status `error`.
    pub history_ms_max: u64,
    /// Milliseconds that a request for features may take; what is not there by then has status `error`. 0: no limit.
    pub request_ms_max: u64,
    /// Milliseconds by which the clock of the online store may differ from ours; over it `/readyz` answers 503.
    pub clock_skew_ms_max: u64,
    /// Milliseconds that comparing the versions of one view may take; the report tells of what was compared by then.
    pub effect_ms_max: u64,
    /// Requests served at once; over it: 503 with Retry-After.
    pub requests_in_flight_max: usize,
    /// Connections that are open at once; more wait to be taken.
    pub connections_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 8 << 20,
            body_ms_max: 30_000,
            bodies_bytes_max: 128 << 20,
            component_bytes_max: 32 << 20,
            uploads_at_once: 1,
            uploads_lowest_priority: true,
            uploads_waiting_max: 16,
            upload_ms_max: 60_000,
            entities_max: 10_000,
            features_max: 2_000,
            values_max: 2_000_000,
            key_bytes_max_in_path: 1 << 10,
            key_bytes_max_in_body: 8 << 10,
            history_reads_max: 10_000,
            history_ms_max: 30_000,
            request_ms_max: 30_000,
            clock_skew_ms_max: 1_000,
            effect_ms_max: 60_000,
            requests_in_flight_max: 1_024,
            connections_max: 8_192,
        }
    }
}
